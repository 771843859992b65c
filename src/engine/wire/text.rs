// SPDX-License-Identifier: GPL-2.0
//! A short text of bounded length, as it stands in packets and in netlink attributes.
//!
//! # Invariants
//! * `len < N`: there is always room for the terminating NUL, so a `Text<64>` holds at most 63 bytes.
//! * No byte before `len` is NUL; every byte from `len` on is NUL. Two equal texts are therefore equal byte for byte.

use core::fmt;

/// A NUL-terminated byte string in `N` bytes of storage: at most `N - 1` bytes of text.
///
/// The bytes need not be UTF-8: device paths and names chosen by a peer are whatever they are.
#[derive(Clone, Copy)]
pub struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

/// The text does not fit: it has more than `N - 1` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextTooLong {
    /// Length of the text offered, in bytes, without its NUL.
    pub len: usize,
    /// The longest length that fits, in bytes, without the NUL.
    pub max: usize,
}

impl<const N: usize> Text<N> {
    /// The longest text, in bytes, without the NUL.
    pub const MAX_LEN: usize = N - 1;

    /// The empty text.
    pub const EMPTY: Self = Self { bytes: [0; N], len: 0 };

    /// Takes the bytes up to the first NUL, or all of them if there is none.
    ///
    /// # Errors
    /// [`TextTooLong`] when more than `N - 1` bytes precede the NUL.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TextTooLong> {
        let len = len_before_nul(bytes);
        if len > Self::MAX_LEN {
            return Err(TextTooLong { len, max: Self::MAX_LEN });
        }
        Ok(Self::truncated(bytes))
    }

    /// Takes the bytes up to the first NUL and cuts off what does not fit.
    #[must_use]
    pub fn truncated(bytes: &[u8]) -> Self {
        let mut text = Self::EMPTY;
        let len = len_before_nul(bytes).min(Self::MAX_LEN);
        for (to, from) in text.bytes.iter_mut().zip(bytes.iter().take(len)) {
            *to = *from;
        }
        text.len = len;
        text
    }

    /// The text without its NUL.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// The text and one NUL, as it is put into a packet or an attribute.
    #[must_use]
    pub fn as_bytes_with_nul(&self) -> &[u8] {
        self.bytes.get(..=self.len).unwrap_or_default()
    }

    /// All `N` bytes: the text, filled up with NULs.
    #[must_use]
    pub fn as_padded(&self) -> &[u8; N] {
        &self.bytes
    }

    /// The text as far as it is UTF-8: everything before the first byte that is not.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.as_bytes().utf8_chunks().next().map_or("", |chunk| chunk.valid())
    }

    /// Number of bytes without the NUL.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the text has no byte at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl<const N: usize> TryFrom<&str> for Text<N> {
    type Error = TextTooLong;

    /// As [`Text::from_bytes`]: what follows a NUL is dropped.
    fn try_from(text: &str) -> Result<Self, TextTooLong> {
        Self::from_bytes(text.as_bytes())
    }
}

impl<const N: usize, const M: usize> PartialEq<Text<M>> for Text<N> {
    fn eq(&self, other: &Text<M>) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl<const N: usize> Eq for Text<N> {}

impl<const N: usize> PartialEq<str> for Text<N> {
    fn eq(&self, other: &str) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl<const N: usize> PartialEq<&str> for Text<N> {
    fn eq(&self, other: &&str) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl<const N: usize> fmt::Display for Text<N> {
    /// Bytes that are not UTF-8 appear as the replacement character.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.as_bytes().utf8_chunks() {
            f.write_str(chunk.valid())?;
            if !chunk.invalid().is_empty() {
                f.write_str("\u{fffd}")?;
            }
        }
        Ok(())
    }
}

impl<const N: usize> fmt::Debug for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

fn len_before_nul(bytes: &[u8]) -> usize {
    bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_precedes_the_nul() {
        let text = Text::<8>::from_bytes(b"crc32c\0x").unwrap();
        assert_eq!(text, "crc32c");
        assert_eq!(text.as_bytes_with_nul(), b"crc32c\0");
        assert_eq!(text.as_padded(), b"crc32c\0\0");
        assert_eq!(text.to_string(), "crc32c");
    }

    #[test]
    fn leaves_room_for_the_nul() {
        assert_eq!(Text::<8>::from_bytes(b"1234567").unwrap().len(), 7);
        assert_eq!(Text::<8>::from_bytes(b"12345678"), Err(TextTooLong { len: 8, max: 7 }));
        assert_eq!(Text::<8>::truncated(b"12345678"), "1234567");
        assert!(Text::<8>::from_bytes(b"").unwrap().is_empty());
    }

    #[test]
    fn texts_of_different_room_compare_by_content() {
        assert_eq!(Text::<8>::try_from("sha1").unwrap(), Text::<64>::try_from("sha1").unwrap());
    }

    #[test]
    fn bytes_that_are_not_utf8_are_kept_and_shown() {
        let text = Text::<8>::from_bytes(b"a\xffb").unwrap();
        assert_eq!(text.as_bytes(), b"a\xffb");
        assert_eq!(text.as_str(), "a");
        assert_eq!(text.to_string(), "a\u{fffd}b");
    }
}
