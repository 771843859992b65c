//! Sectors that can be checked one by one: each holds its own number, the number of the write that put it there, and a
//! filling that follows from both. A sector that was never written is all zeros.

/// Bytes of a sector.
pub const SECTOR_BYTES: usize = 512;

const MAGIC: u64 = 0x6472_6264_2d73_6563;

/// What a sector turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// All zeros.
    Blank,
    /// Written by the write of this number.
    Written(u64),
    /// Neither: torn, of another place, or somebody else's.
    Bad,
}

/// Fills a buffer of whole sectors as write number `sequence` at `first_sector` does.
pub fn fill(buffer: &mut [u8], first_sector: u64, sequence: u64) {
    for (sector, bytes) in (first_sector..).zip(buffer.chunks_exact_mut(SECTOR_BYTES)) {
        fill_sector(bytes, sector, sequence);
    }
}

/// What the sector at `sector` holds.
pub fn read(bytes: &[u8], sector: u64) -> Content {
    if bytes.iter().all(|&byte| byte == 0) {
        return Content::Blank;
    }
    let word = |index: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[8 * index..8 * index + 8]);
        u64::from_le_bytes(word)
    };
    let sequence = word(2);
    let mut expected = [0; SECTOR_BYTES];
    fill_sector(&mut expected, sector, sequence);
    if bytes == expected {
        Content::Written(sequence)
    } else {
        Content::Bad
    }
}

fn fill_sector(bytes: &mut [u8], sector: u64, sequence: u64) {
    let mut random = Random::new(sector ^ sequence.rotate_left(32));
    let words = [MAGIC, sector, sequence].into_iter().chain(std::iter::repeat_with(|| random.next_word()));
    for (bytes, word) in bytes.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
}

/// A fixed pseudo-random sequence (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number.
    pub fn next_word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number below `limit`; 0 where there is none.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next_word().checked_rem(limit).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_says_where_and_when() {
        let mut buffer = [0; 2 * SECTOR_BYTES];
        assert_eq!(read(&buffer[..SECTOR_BYTES], 7), Content::Blank);
        fill(&mut buffer, 7, 99);
        let (first, second) = buffer.split_at(SECTOR_BYTES);
        assert_eq!(read(first, 7), Content::Written(99));
        assert_eq!(read(second, 8), Content::Written(99));
        assert_eq!(read(second, 7), Content::Bad);
    }

    #[test]
    fn one_wrong_bit_is_seen() {
        let mut buffer = [0; SECTOR_BYTES];
        fill(&mut buffer, 0, 1);
        buffer[511] ^= 1;
        assert_eq!(read(&buffer, 0), Content::Bad);
    }
}
