// SPDX-License-Identifier: GPL-2.0
//! What a row of the attribute table says about a field, and the values fields have.

use super::attr::Attr;
use super::words::Word;
use crate::wire::text::Text;
use core::fmt;

/// The form a field has on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldKind {
    /// One byte, 0 or 1. Any other value is taken as 1.
    Bool,
    /// Four bytes.
    U32,
    /// Four bytes, signed.
    I32,
    /// Eight bytes.
    U64,
    /// A NUL-terminated text stored in `capacity` bytes, NUL included.
    Text {
        /// Bytes of storage.
        capacity: usize,
    },
    /// Up to `capacity` bytes without a terminator.
    Binary {
        /// Bytes of storage.
        capacity: usize,
    },
    /// Four bytes; each valid number has a word.
    Words(&'static [Word]),
}

/// The value of a field, whatever its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// Of [`FieldKind::Bool`].
    Bool(bool),
    /// Of [`FieldKind::U32`] and, as number, of [`FieldKind::Words`].
    U32(u32),
    /// Of [`FieldKind::I32`].
    I32(i32),
    /// Of [`FieldKind::U64`].
    U64(u64),
    /// Of [`FieldKind::Text`], without NUL.
    Text(&'a [u8]),
    /// Of [`FieldKind::Binary`].
    Binary(&'a [u8]),
}

impl FieldKind {
    /// Reads a field of this kind; `None` when the payload is not one.
    ///
    /// A text that needs exactly one byte more than there is room for loses its last byte, as it always did.
    // spec: netlink 1.2 (strings), 1.3 (exact integer sizes)
    #[must_use]
    pub fn read<'a>(&self, attr: &Attr<'a>) -> Option<Value<'a>> {
        match *self {
            Self::Bool => attr.as_u8().map(|byte| Value::Bool(byte != 0)),
            Self::U32 => attr.as_u32().map(Value::U32),
            Self::I32 => attr.as_i32().map(Value::I32),
            Self::U64 => attr.as_u64().map(Value::U64),
            Self::Text { capacity } => {
                let len = attr.payload.iter().position(|&byte| byte == 0)?;
                let stored = len.min(capacity.saturating_sub(1));
                (len <= capacity).then_some(Value::Text(attr.payload.get(..stored)?))
            }
            Self::Binary { capacity } => (attr.payload.len() <= capacity).then_some(Value::Binary(attr.payload)),
            Self::Words(words) => {
                let number = attr.as_u32()?;
                words.iter().any(|word| word.number == number).then_some(Value::U32(number))
            }
        }
    }
}

impl Value<'_> {
    /// The value as a number: booleans count 0 and 1, texts and binaries have none.
    #[must_use]
    pub fn as_number(&self) -> Option<i128> {
        match *self {
            Self::Bool(value) => Some(value.into()),
            Self::U32(value) => Some(value.into()),
            Self::I32(value) => Some(value.into()),
            Self::U64(value) => Some(value.into()),
            Self::Text(_) | Self::Binary(_) => None,
        }
    }

    /// The nearest value within the limits; texts and binaries stay as they are.
    #[must_use]
    pub fn clamped(self, (min, max): (i64, i64)) -> Self {
        let limit = |number: i128| number.clamp(min.into(), i128::from(max).max(min.into()));
        match self {
            Self::U32(value) => Self::U32(u32::try_from(limit(value.into())).unwrap_or(value)),
            Self::I32(value) => Self::I32(i32::try_from(limit(value.into())).unwrap_or(value)),
            Self::U64(value) => Self::U64(u64::try_from(limit(value.into())).unwrap_or(value)),
            other => other,
        }
    }
}

/// A type fields can have. `None` as a value means that the field is absent and not sent.
pub trait FieldValue: Copy {
    /// Its form on the wire.
    const KIND: FieldKind;

    /// The value, or `None` if absent.
    fn value(&self) -> Option<Value<'_>>;

    /// From a value of [`FieldValue::KIND`]; `None` when it is of another kind or out of range.
    fn from_value(value: Value<'_>) -> Option<Self>;
}

impl FieldValue for bool {
    const KIND: FieldKind = FieldKind::Bool;

    fn value(&self) -> Option<Value<'_>> {
        Some(Value::Bool(*self))
    }

    fn from_value(value: Value<'_>) -> Option<Self> {
        if let Value::Bool(value) = value {
            Some(value)
        } else {
            None
        }
    }
}

impl FieldValue for u32 {
    const KIND: FieldKind = FieldKind::U32;

    fn value(&self) -> Option<Value<'_>> {
        Some(Value::U32(*self))
    }

    fn from_value(value: Value<'_>) -> Option<Self> {
        if let Value::U32(value) = value {
            Some(value)
        } else {
            None
        }
    }
}

impl FieldValue for i32 {
    const KIND: FieldKind = FieldKind::I32;

    fn value(&self) -> Option<Value<'_>> {
        Some(Value::I32(*self))
    }

    fn from_value(value: Value<'_>) -> Option<Self> {
        if let Value::I32(value) = value {
            Some(value)
        } else {
            None
        }
    }
}

impl FieldValue for u64 {
    const KIND: FieldKind = FieldKind::U64;

    fn value(&self) -> Option<Value<'_>> {
        Some(Value::U64(*self))
    }

    fn from_value(value: Value<'_>) -> Option<Self> {
        if let Value::U64(value) = value {
            Some(value)
        } else {
            None
        }
    }
}

impl<const N: usize> FieldValue for Text<N> {
    const KIND: FieldKind = FieldKind::Text { capacity: N };

    fn value(&self) -> Option<Value<'_>> {
        Some(Value::Text(self.as_bytes()))
    }

    fn from_value(value: Value<'_>) -> Option<Self> {
        if let Value::Text(bytes) = value {
            Self::from_bytes(bytes).ok()
        } else {
            None
        }
    }
}

impl<const N: usize> FieldValue for Bytes<N> {
    const KIND: FieldKind = FieldKind::Binary { capacity: N };

    fn value(&self) -> Option<Value<'_>> {
        Some(Value::Binary(self.as_bytes()))
    }

    fn from_value(value: Value<'_>) -> Option<Self> {
        if let Value::Binary(bytes) = value {
            Self::from_bytes(bytes)
        } else {
            None
        }
    }
}

impl<T: FieldValue> FieldValue for Option<T> {
    const KIND: FieldKind = T::KIND;

    fn value(&self) -> Option<Value<'_>> {
        self.as_ref().and_then(T::value)
    }

    fn from_value(value: Value<'_>) -> Option<Self> {
        T::from_value(value).map(Some)
    }
}

/// Up to `N` bytes: socket addresses, UUID lists. Compared by length and content.
///
/// # Invariants
/// `len <= N`, and every byte from `len` on is zero.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Bytes<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Bytes<N> {
    /// No bytes.
    pub const EMPTY: Self = Self { bytes: [0; N], len: 0 };

    /// A copy; `None` when there are more than `N`.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut copy = Self::EMPTY;
        copy.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        copy.len = bytes.len();
        Some(copy)
    }

    /// Numbers in host byte order, as UUID lists are sent; `None` when there is no room for all.
    #[must_use]
    pub fn from_u64s(numbers: &[u64]) -> Option<Self> {
        let mut copy = Self::EMPTY;
        let len = numbers.len().checked_mul(8)?;
        for (to, number) in copy.bytes.get_mut(..len)?.chunks_exact_mut(8).zip(numbers) {
            to.copy_from_slice(&number.to_ne_bytes());
        }
        copy.len = len;
        Some(copy)
    }

    /// The number at `index` of a list of u64 in host byte order; `None` behind its end.
    #[must_use]
    pub fn u64_at(&self, index: usize) -> Option<u64> {
        let chunk = self.as_bytes().get(index.checked_mul(8)?..)?.first_chunk::<8>()?;
        Some(u64::from_ne_bytes(*chunk))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// Number of bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<const N: usize> Default for Bytes<N> {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl<const N: usize> fmt::Debug for Bytes<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.as_bytes()).finish()
    }
}

/// Marks of a field.
// spec: netlink 4 (legend)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// A receiver that does not know the field must refuse the request (`M`; tools set the bit).
    pub mandatory: bool,
    /// Absence fails the request that creates the object (`R`).
    pub required: bool,
    /// Cannot be changed later (`I`).
    pub invariant: bool,
    /// Shown only to those who may see secrets (`S`).
    pub sensitive: bool,
}

/// What one step of a number means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// A plain number, or no number at all.
    One,
    /// Seconds.
    Seconds,
    /// Tenths of a second.
    Tenths,
    /// Bytes.
    Bytes,
    /// Sectors of 512 bytes.
    Sectors,
    /// KiB.
    Kib,
    /// KiB a second.
    KibPerSecond,
    /// Pages of 4096 bytes.
    Pages,
    /// A minor number.
    Minor,
}

impl Scale {
    /// The unit letter numbers are given and printed with: `k` KiB, `s` sectors, none otherwise.
    // spec: drbd-conf 2.2, commands 3.5
    #[must_use]
    pub fn prefix(self) -> Option<char> {
        match self {
            Self::Kib | Self::KibPerSecond => Some('k'),
            Self::Sectors => Some('s'),
            _ => None,
        }
    }

    /// The unit in words, as it stands behind a printed value.
    #[must_use]
    pub fn unit(self) -> Option<&'static str> {
        match self {
            Self::Seconds => Some("seconds"),
            Self::Tenths => Some("1/10 seconds"),
            Self::Bytes | Self::Sectors | Self::Kib => Some("bytes"),
            Self::KibPerSecond => Some("bytes/second"),
            Self::One | Self::Pages | Self::Minor => None,
        }
    }
}

/// The command-line and configuration option that sets a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionSpec {
    /// Its name, without dashes.
    pub name: &'static str,
    /// Other accepted names.
    pub aliases: &'static [&'static str],
}

/// One row of the table: all that module and tools know about a field.
#[derive(Clone, Copy, Debug)]
pub struct FieldSpec {
    /// Attribute number inside the nest.
    pub number: u16,
    /// The field's name.
    pub name: &'static str,
    /// One sentence about it.
    pub help: &'static str,
    /// Its form.
    pub kind: FieldKind,
    /// Its marks.
    pub marks: Marks,
    /// Smallest and largest number a tool accepts, inclusive.
    pub range: Option<(i64, i64)>,
    /// What one step of the number means.
    pub scale: Scale,
    /// The option that sets it.
    pub option: Option<OptionSpec>,
    words: &'static [Word],
    default: fn() -> Option<Value<'static>>,
}

impl FieldSpec {
    /// A row with neither range, scale nor option.
    #[must_use]
    pub const fn new(
        number: u16,
        name: &'static str,
        help: &'static str,
        kind: FieldKind,
        marks: Marks,
        default: fn() -> Option<Value<'static>>,
    ) -> Self {
        let words = match kind {
            FieldKind::Words(words) => words,
            _ => &[],
        };
        Self { number, name, help, kind, marks, range: None, scale: Scale::One, option: None, words, default }
    }

    /// With limits, inclusive.
    #[must_use]
    pub const fn range(mut self, min: i64, max: i64) -> Self {
        self.range = Some((min, max));
        self
    }

    /// With a scale.
    #[must_use]
    pub const fn scale(mut self, scale: Scale) -> Self {
        self.scale = scale;
        self
    }

    /// With an option.
    #[must_use]
    pub const fn option(self, name: &'static str) -> Self {
        self.option_or(name, &[])
    }

    /// With an option that has more than one name.
    #[must_use]
    pub const fn option_or(mut self, name: &'static str, aliases: &'static [&'static str]) -> Self {
        self.option = Some(OptionSpec { name, aliases });
        self
    }

    /// Offers other words than those of its type: fewer, or spelled differently.
    #[must_use]
    pub const fn offers(mut self, words: &'static [Word]) -> Self {
        self.words = words;
        self
    }

    /// The default; `None` for a field that is absent unless set.
    #[must_use]
    pub fn default(&self) -> Option<Value<'static>> {
        (self.default)()
    }

    /// Whether this is the option's name or one of its aliases.
    #[must_use]
    pub fn is_option(&self, name: &str) -> bool {
        self.option.is_some_and(|option| option.name == name || option.aliases.contains(&name))
    }

    /// The words the option offers; empty when it takes none.
    #[must_use]
    pub fn words(&self) -> &'static [Word] {
        self.words
    }

    /// The word of a number, also of one that is not offered; `None` when there is none.
    #[must_use]
    pub fn word_of(&self, number: u32) -> Option<&'static str> {
        let FieldKind::Words(all) = self.kind else { return None };
        self.words.iter().chain(all).find(|word| word.number == number).map(|word| word.word)
    }

    /// The number of an offered word.
    #[must_use]
    pub fn number_of(&self, word: &str) -> Option<u32> {
        self.words.iter().find(|known| known.word == word).map(|known| known.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clamping_keeps_the_type() {
        assert_eq!(Value::U32(7).clamped((10, 20)), Value::U32(10));
        assert_eq!(Value::U64(u64::MAX).clamped((0, 1 << 41)), Value::U64(1 << 41));
        assert_eq!(Value::I32(-5).clamped((-1, 9)), Value::I32(-1));
        assert_eq!(Value::Bool(true).clamped((0, 0)), Value::Bool(true));
    }

    #[test]
    fn lists_of_numbers() {
        let bytes = Bytes::<32>::from_u64s(&[1, 2, 3, 4]).unwrap();
        assert_eq!((bytes.len(), bytes.u64_at(3), bytes.u64_at(4)), (32, Some(4), None));
        assert_eq!(Bytes::<8>::from_u64s(&[1, 2]), None);
        assert_eq!(Bytes::<2>::from_bytes(b"abc"), None);
    }
}
