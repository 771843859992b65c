// SPDX-License-Identifier: GPL-2.0
//! Numbers with a unit letter.
//!
//! spec: drbd-conf 2.2

use std::fmt;

/// What a number without a letter counts, and what the value is converted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// Ones: counts, seconds, bytes.
    One,
    /// KiB.
    Kib,
    /// Sectors of 512 bytes.
    Sector,
}

impl Base {
    /// The base of options that print this letter behind their values.
    pub fn of_prefix(prefix: Option<char>) -> Self {
        match prefix {
            Some('k') => Base::Kib,
            Some('s') => Base::Sector,
            _ => Base::One,
        }
    }

    fn bytes(self) -> u128 {
        match self {
            Base::One => 1,
            Base::Kib => 1024,
            Base::Sector => 512,
        }
    }
}

/// Why a text is no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadNumber {
    /// No digits, or something else among them.
    NotANumber,
    /// A letter that is no unit.
    BadSuffix(char),
    /// More than 64 bits.
    TooLarge,
}

impl fmt::Display for BadNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadNumber::NotANumber => formatter.write_str("not a number"),
            BadNumber::BadSuffix(letter) => write!(formatter, "`{letter}` is no unit; k, M, G and s are"),
            BadNumber::TooLarge => formatter.write_str("too large"),
        }
    }
}

/// Reads a number and converts it to its base, rounding up.
///
/// # Errors
/// [`BadNumber`].
pub fn parse_number(text: &str, base: Base) -> Result<u64, BadNumber> {
    let digits_end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (digits, suffix) = text.split_at(digits_end);
    if digits.is_empty() {
        return Err(BadNumber::NotANumber);
    }
    let number: u64 = digits.parse().map_err(|_| BadNumber::TooLarge)?;
    let mut letters = suffix.chars();
    let unit_bytes = match (letters.next(), letters.next()) {
        (None, _) => return Ok(number),
        (Some('k' | 'K'), None) => 1 << 10,
        (Some('m' | 'M'), None) => 1 << 20,
        (Some('g' | 'G'), None) => 1 << 30,
        (Some('s'), None) => 512_u128,
        (Some(letter), None) => return Err(BadNumber::BadSuffix(letter)),
        _ => return Err(BadNumber::NotANumber),
    };
    let bytes = u128::from(number) * unit_bytes;
    u64::try_from(bytes.div_ceil(base.bytes())).map_err(|_| BadNumber::TooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        for (text, base, value) in [
            ("10", Base::Kib, Ok(10)),
            ("10M", Base::Kib, Ok(10240)),
            ("1s", Base::Kib, Ok(1)),
            ("3s", Base::Kib, Ok(2)),
            ("1G", Base::Sector, Ok(2_097_152)),
            ("2k", Base::One, Ok(2048)),
            ("123456789012", Base::One, Ok(123_456_789_012)),
            ("", Base::One, Err(BadNumber::NotANumber)),
            ("x", Base::One, Err(BadNumber::NotANumber)),
            ("-1", Base::One, Err(BadNumber::NotANumber)),
            ("10X", Base::One, Err(BadNumber::BadSuffix('X'))),
            ("10MB", Base::One, Err(BadNumber::NotANumber)),
            ("99999999999999999999", Base::One, Err(BadNumber::TooLarge)),
            ("18446744073709551615G", Base::One, Err(BadNumber::TooLarge)),
        ] {
            assert_eq!(parse_number(text, base), value, "{text}");
        }
    }
}
