// SPDX-License-Identifier: GPL-2.0
//! CRC-32C (Castagnoli) as the activity log uses it: reflected, start value 0, no final inversion.
// spec: metadata 4.1

/// The polynomial, bit-reversed.
const POLYNOMIAL: u32 = 0x82F6_3B78;

static TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0u32; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ (POLYNOMIAL & (crc & 1).wrapping_neg());
            bit += 1;
        }
        // A constant evaluation: an index out of range would not compile.
        #[allow(clippy::indexing_slicing)]
        {
            table[byte] = crc;
        }
        byte += 1;
    }
    table
}

/// Continues the checksum `crc` over `bytes`; begin with 0.
pub fn crc32c(crc: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(crc, |crc, byte| {
        let index = (crc as u8) ^ byte;
        (crc >> 8) ^ TABLE.get(usize::from(index)).copied().unwrap_or(0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_value_of_the_reference() {
        assert_eq!(crc32c(0, b"123456789"), 0x58E3_FA20);
    }

    #[test]
    fn the_standard_variant_differs_by_two_inversions() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xE306_9283);
    }

    #[test]
    fn may_be_computed_in_pieces() {
        assert_eq!(crc32c(crc32c(0, b"1234"), b"56789"), crc32c(0, b"123456789"));
    }
}
