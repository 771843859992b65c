// SPDX-License-Identifier: GPL-2.0
//! Netlink attributes: a bounds-checked reader over received bytes and a writer into a given buffer.
//!
//! An attribute is a 4-byte header (length including the header, type), the payload, and filling up to a multiple of
//! four. The two top bits of the type are flags. Integers are in host byte order.
//!
//! # Invariants
//! * [`AttrReader`] never yields a payload that reaches outside the bytes it was given, and ends after its first error.
//! * [`AttrWriter`]: `len` is a multiple of four and never exceeds the buffer; what a failed call had begun is undone.

use super::value::{FieldKind, Value};
use crate::wire::text::Text;
use crate::wire::BufferTooSmall;

/// Type bit: the payload is a list of attributes.
pub const NESTED: u16 = 0x8000;
/// Type bit: a receiver that does not know this number must refuse the request.
pub const MANDATORY: u16 = 0x4000;
/// The type without its flags: the attribute's number.
pub const NUMBER_MASK: u16 = 0x3fff;
/// Bytes of an attribute header.
pub const HEADER_LEN: usize = 4;

/// One received attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr<'a> {
    /// The number, without flags.
    pub number: u16,
    /// The sender marked the payload as a list of attributes.
    pub nested: bool,
    /// The sender asked to be refused if the number is unknown.
    pub mandatory: bool,
    /// The bytes after the header, without filling.
    pub payload: &'a [u8],
    /// Header and payload, without filling: what an echo repeats.
    pub raw: &'a [u8],
}

impl<'a> Attr<'a> {
    /// The attributes inside this one.
    #[must_use]
    pub fn attributes(&self) -> AttrReader<'a> {
        AttrReader::new(self.payload)
    }

    /// The payload as one byte, if it is exactly one.
    #[must_use]
    pub fn as_u8(&self) -> Option<u8> {
        <[u8; 1]>::try_from(self.payload).ok().map(|[byte]| byte)
    }

    /// The payload as u16, if it has exactly two bytes.
    #[must_use]
    pub fn as_u16(&self) -> Option<u16> {
        self.payload.try_into().ok().map(u16::from_ne_bytes)
    }

    /// The payload as u32, if it has exactly four bytes.
    #[must_use]
    pub fn as_u32(&self) -> Option<u32> {
        self.payload.try_into().ok().map(u32::from_ne_bytes)
    }

    /// The payload as i32, if it has exactly four bytes.
    #[must_use]
    pub fn as_i32(&self) -> Option<i32> {
        self.payload.try_into().ok().map(i32::from_ne_bytes)
    }

    /// The payload as u64, if it has exactly eight bytes.
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        self.payload.try_into().ok().map(u64::from_ne_bytes)
    }

    /// The payload up to its NUL, if it has one and the text fits.
    #[must_use]
    pub fn as_text<const N: usize>(&self) -> Option<Text<N>> {
        self.payload.contains(&0).then(|| Text::from_bytes(self.payload).ok()).flatten()
    }
}

/// The bytes are not a list of attributes: a length below the header's or beyond the end, or bytes left over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// Where the bad attribute starts, in bytes from the start of the list.
    pub offset: usize,
}

/// Iterates over the attributes of a list.
#[derive(Clone, Debug)]
pub struct AttrReader<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> AttrReader<'a> {
    /// A reader of a list: the bytes after the message headers, or the payload of a nest.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0 }
    }

    /// The first attribute with this number; `None` if there is none before the end or before a malformed one.
    #[must_use]
    pub fn find(bytes: &'a [u8], number: u16) -> Option<Attr<'a>> {
        Self::new(bytes).map_while(Result::ok).find(|attr| attr.number == number)
    }

    fn take(&mut self) -> Option<Attr<'a>> {
        let rest = self.bytes.get(self.offset..)?;
        let header = rest.first_chunk::<HEADER_LEN>()?;
        let [len_0, len_1, type_0, type_1] = *header;
        let len = usize::from(u16::from_ne_bytes([len_0, len_1]));
        let kind = u16::from_ne_bytes([type_0, type_1]);
        let raw = rest.get(..len)?;
        let payload = raw.get(HEADER_LEN..)?;
        // The filling of the last attribute may be missing.
        self.offset = self.offset.saturating_add(padded(len)).min(self.bytes.len());
        Some(Attr {
            number: kind & NUMBER_MASK,
            nested: kind & NESTED != 0,
            mandatory: kind & MANDATORY != 0,
            payload,
            raw,
        })
    }
}

impl<'a> Iterator for AttrReader<'a> {
    type Item = Result<Attr<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.offset >= self.bytes.len() {
            return None;
        }
        let offset = self.offset;
        let attr = self.take();
        if attr.is_none() {
            self.offset = self.bytes.len();
        }
        Some(attr.ok_or(Malformed { offset }))
    }
}

/// Who receives what is written: the two differ in the flags they expect.
// spec: netlink 1.2, 1.3
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// A tool's request: nests carry the nested bit, fields marked so the mandatory bit.
    Request,
    /// A message of the module: never the mandatory bit, the nested bit only on the nests that always had it.
    Reply,
}

/// An attribute that was begun and waits for its length.
#[derive(Debug)]
#[must_use = "the nest is only complete after `end_nest`"]
pub struct OpenNest {
    start: usize,
}

/// Appends attributes to a buffer.
#[derive(Debug)]
pub struct AttrWriter<'a> {
    buffer: &'a mut [u8],
    len: usize,
    direction: Direction,
    alignment_base: Option<usize>,
}

impl<'a> AttrWriter<'a> {
    /// A writer for one list of attributes that starts at the start of `buffer`.
    pub fn new(buffer: &'a mut [u8], direction: Direction) -> Self {
        Self { buffer, len: 0, direction, alignment_base: None }
    }

    /// From now on puts an empty attribute of type 0 before a u64 whose payload would not be 8-aligned.
    ///
    /// `base` is where the buffer starts, in bytes from an 8-aligned address (28 in a message: after its headers).
    /// Only for processors that cannot read unaligned words; a module that validates strictly refuses it in requests.
    #[must_use]
    pub fn align_u64(mut self, base: usize) -> Self {
        self.alignment_base = Some(base);
        self
    }

    /// For whom this is written.
    #[must_use]
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// Bytes written, filling included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was written yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What was written.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.buffer.get(..self.len).unwrap_or_default()
    }

    /// Takes back everything after the first `len` bytes; does nothing if fewer are written.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(padded(len));
    }

    /// Appends one attribute; `kind` is its number with flags.
    ///
    /// # Errors
    /// [`BufferTooSmall`] when it does not fit, or is longer than an attribute can be; nothing is written then.
    pub fn put(&mut self, kind: u16, payload: &[u8]) -> Result<(), BufferTooSmall> {
        let len = HEADER_LEN.checked_add(payload.len()).ok_or(BufferTooSmall)?;
        let len_field = u16::try_from(len).map_err(|_| BufferTooSmall)?;
        let room =
            self.buffer.get_mut(self.len..).and_then(|rest| rest.get_mut(..padded(len))).ok_or(BufferTooSmall)?;
        let (header, rest) = room.split_first_chunk_mut::<HEADER_LEN>().ok_or(BufferTooSmall)?;
        *header = header_bytes(len_field, kind);
        let (body, filling) = rest.split_at_mut_checked(payload.len()).ok_or(BufferTooSmall)?;
        body.copy_from_slice(payload);
        filling.fill(0);
        self.len = self.len.saturating_add(padded(len));
        Ok(())
    }

    /// Appends an attribute exactly as it was received ([`Attr::raw`]).
    ///
    /// # Errors
    /// [`BufferTooSmall`] when it does not fit or is no attribute; nothing is written then.
    pub fn put_raw(&mut self, raw: &[u8]) -> Result<(), BufferTooSmall> {
        let (header, payload) = raw.split_first_chunk::<HEADER_LEN>().ok_or(BufferTooSmall)?;
        let [_, _, type_0, type_1] = *header;
        self.put(u16::from_ne_bytes([type_0, type_1]), payload)
    }

    /// Appends a u8.
    ///
    /// # Errors
    /// As [`AttrWriter::put`].
    pub fn put_u8(&mut self, kind: u16, value: u8) -> Result<(), BufferTooSmall> {
        self.put(kind, &[value])
    }

    /// Appends a u32.
    ///
    /// # Errors
    /// As [`AttrWriter::put`].
    pub fn put_u32(&mut self, kind: u16, value: u32) -> Result<(), BufferTooSmall> {
        self.put(kind, &value.to_ne_bytes())
    }

    /// Appends a u64, after an empty attribute of type 0 if alignment was asked for and needs it.
    ///
    /// # Errors
    /// As [`AttrWriter::put`].
    pub fn put_u64(&mut self, kind: u16, value: u64) -> Result<(), BufferTooSmall> {
        let before = self.len;
        if let Some(base) = self.alignment_base {
            if base.wrapping_add(self.len).wrapping_add(HEADER_LEN) % 8 != 0 {
                self.put(0, &[])?;
            }
        }
        self.put(kind, &value.to_ne_bytes()).inspect_err(|_| self.len = before)
    }

    /// Appends a text and its NUL.
    ///
    /// # Errors
    /// As [`AttrWriter::put`].
    pub fn put_text<const N: usize>(&mut self, kind: u16, text: &Text<N>) -> Result<(), BufferTooSmall> {
        self.put(kind, text.as_bytes_with_nul())
    }

    /// Appends a text given as bytes without NUL, and its NUL.
    ///
    /// # Errors
    /// As [`AttrWriter::put`].
    pub fn put_text_bytes(&mut self, kind: u16, text: &[u8]) -> Result<(), BufferTooSmall> {
        let before = self.len;
        let open = self.begin_nest(kind)?;
        self.append(text)
            .and_then(|()| self.append(&[0]))
            .and_then(|()| self.end_nest(open))
            .inspect_err(|_| self.len = before)
    }

    /// Appends a field's value in the form its kind has on the wire.
    ///
    /// # Errors
    /// As [`AttrWriter::put`]; also when the value is not of this kind.
    pub fn put_value(&mut self, kind: u16, field: &FieldKind, value: &Value<'_>) -> Result<(), BufferTooSmall> {
        match (field, *value) {
            (FieldKind::Bool, Value::Bool(value)) => self.put_u8(kind, value.into()),
            (FieldKind::U32 | FieldKind::Words(_), Value::U32(value)) => self.put_u32(kind, value),
            (FieldKind::I32, Value::I32(value)) => self.put(kind, &value.to_ne_bytes()),
            (FieldKind::U64, Value::U64(value)) => self.put_u64(kind, value),
            (FieldKind::Text { .. }, Value::Text(text)) => self.put_text_bytes(kind, text),
            (FieldKind::Binary { .. }, Value::Binary(bytes)) => self.put(kind, bytes),
            _ => Err(BufferTooSmall),
        }
    }

    /// Starts an attribute whose payload is what is appended until [`AttrWriter::end_nest`].
    ///
    /// # Errors
    /// [`BufferTooSmall`] when its header does not fit.
    pub fn begin_nest(&mut self, kind: u16) -> Result<OpenNest, BufferTooSmall> {
        let start = self.len;
        self.put(kind, &[])?;
        Ok(OpenNest { start })
    }

    /// Completes an attribute.
    ///
    /// # Errors
    /// [`BufferTooSmall`] when it became longer than an attribute can be; it is taken back then.
    pub fn end_nest(&mut self, open: OpenNest) -> Result<(), BufferTooSmall> {
        let end = self.len;
        let complete = self.write_length(open.start, end);
        self.len = if complete.is_some() { padded(end) } else { open.start.min(end) };
        complete.ok_or(BufferTooSmall)
    }

    /// Writes the length of the attribute at `start..end` and its filling.
    fn write_length(&mut self, start: usize, end: usize) -> Option<()> {
        let len = u16::try_from(end.checked_sub(start)?).ok()?;
        self.buffer.get_mut(end..padded(end))?.fill(0);
        *self.buffer.get_mut(start..)?.first_chunk_mut::<2>()? = len.to_ne_bytes();
        Some(())
    }

    /// Appends bare bytes to an open attribute; its end restores the alignment of `len`.
    fn append(&mut self, bytes: &[u8]) -> Result<(), BufferTooSmall> {
        let end = self.len.checked_add(bytes.len()).ok_or(BufferTooSmall)?;
        self.buffer.get_mut(self.len..end).ok_or(BufferTooSmall)?.copy_from_slice(bytes);
        self.len = end;
        Ok(())
    }
}

fn header_bytes(len: u16, kind: u16) -> [u8; HEADER_LEN] {
    let ([len_0, len_1], [type_0, type_1]) = (len.to_ne_bytes(), kind.to_ne_bytes());
    [len_0, len_1, type_0, type_1]
}

/// The length with the filling to a multiple of four.
fn padded(len: usize) -> usize {
    len.saturating_add(3) & !3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(direction: Direction, fill: impl FnOnce(&mut AttrWriter<'_>)) -> Vec<u8> {
        let mut buffer = [0xaa; 256];
        let mut writer = AttrWriter::new(&mut buffer, direction);
        fill(&mut writer);
        writer.as_bytes().to_vec()
    }

    #[test]
    fn reads_what_it_wrote() {
        let bytes = written(Direction::Reply, |w| {
            let nest = w.begin_nest(3 | NESTED).unwrap();
            w.put_u8(1 | MANDATORY, 7).unwrap();
            w.put_u64(2, 0x0102_0304_0506_0708).unwrap();
            w.put_text_bytes(3, b"abc").unwrap();
            w.end_nest(nest).unwrap();
            w.put_u32(9, 42).unwrap();
        });
        let top: Vec<_> = AttrReader::new(&bytes).map(Result::unwrap).collect();
        assert_eq!(top.iter().map(|attr| (attr.number, attr.nested)).collect::<Vec<_>>(), [(3, true), (9, false)]);
        assert_eq!(top[1].as_u32(), Some(42));
        let inner: Vec<_> = top[0].attributes().map(Result::unwrap).collect();
        assert_eq!((inner[0].number, inner[0].mandatory, inner[0].as_u8()), (1, true, Some(7)));
        assert_eq!(inner[1].as_u64(), Some(0x0102_0304_0506_0708));
        assert_eq!(inner[2].payload, b"abc\0");
        assert_eq!(inner[2].as_text::<8>().unwrap(), "abc");
        assert_eq!(inner[2].as_text::<3>(), None);
    }

    #[test]
    fn layout_is_that_of_netlink() {
        let bytes = written(Direction::Request, |w| w.put_u8(1, 7).unwrap());
        assert_eq!(bytes, [5u16.to_ne_bytes(), 1u16.to_ne_bytes(), [7, 0], [0, 0]].concat());
    }

    #[test]
    fn alignment_puts_an_empty_attribute_before_a_u64() {
        let mut buffer = [0; 64];
        let mut writer = AttrWriter::new(&mut buffer, Direction::Reply).align_u64(28);
        writer.put_u64(1, 1).unwrap();
        assert_eq!(writer.len(), 12, "28 + 4 is aligned already");
        writer.put_u64(2, 2).unwrap();
        assert_eq!(writer.len(), 28, "one more header");
        let numbers: Vec<_> = AttrReader::new(writer.as_bytes()).map(|attr| attr.unwrap().number).collect();
        assert_eq!(numbers, [1, 0, 2]);
    }

    #[test]
    fn echo_is_identical_up_to_filling() {
        let bytes = written(Direction::Request, |w| w.put(2 | NESTED | MANDATORY, b"hello").unwrap());
        let attr = AttrReader::new(&bytes).next().unwrap().unwrap();
        assert_eq!(written(Direction::Reply, |w| w.put_raw(attr.raw).unwrap()), bytes);
    }

    #[test]
    fn a_full_buffer_keeps_what_was_complete() {
        let mut buffer = [0; 16];
        let mut writer = AttrWriter::new(&mut buffer, Direction::Reply);
        writer.put_u32(1, 1).unwrap();
        assert_eq!(writer.put_u64(2, 2), Err(BufferTooSmall));
        assert_eq!(writer.put_text_bytes(2, b"too long"), Err(BufferTooSmall));
        assert_eq!(writer.len(), 8);
        writer.put_text_bytes(2, b"fit").unwrap();
        assert_eq!(writer.len(), 16);
    }

    #[test]
    fn bad_lengths_end_the_list_with_an_error() {
        for bytes in [&[3, 0, 1, 0][..], &[9, 0, 1, 0, 1, 2, 3, 4], &[4, 0], &[0; 4], &[0xff; 7]] {
            let mut reader = AttrReader::new(bytes);
            assert_eq!(reader.next(), Some(Err(Malformed { offset: 0 })), "{bytes:?}");
            assert_eq!(reader.next(), None);
        }
        assert_eq!(AttrReader::new(&[]).next(), None);
    }

    #[test]
    fn filling_may_be_missing_at_the_end() {
        let bytes = written(Direction::Request, |w| w.put_u8(1, 7).unwrap());
        let attr = AttrReader::new(&bytes[..5]).next().unwrap().unwrap();
        assert_eq!(attr.as_u8(), Some(7));
    }
}
