// SPDX-License-Identifier: GPL-2.0
//! What of a range can be discarded: whole granules of the device, counted from where it has its first.
//!
//! The rest, at both ends, has to be zeroed, so that the range reads the same on both nodes.
//! spec: state-machine 21.1

use core::num::NonZeroU64;

/// Largest discard sent down at once, in sectors.
const MAX_SECTORS: u64 = 1 << 22;

/// How a device discards, in sectors of 512 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granules {
    /// Length of a granule.
    pub length: NonZeroU64,
    /// Where the first whole granule begins, less than a length: not at 0 on a partition, for one.
    pub first: u64,
    /// Longest discard, a multiple of the length; 0 if the device discards nothing.
    pub most: u64,
}

impl Granules {
    /// From the device's limits in bytes; a granularity that is not known is a sector.
    pub fn new(granularity_bytes: u32, alignment_bytes: u32, max_bytes: u32) -> Granules {
        let length = NonZeroU64::new(u64::from(granularity_bytes / 512)).unwrap_or(NonZeroU64::MIN);
        let most = u64::from(max_bytes / 512).min(MAX_SECTORS);
        Granules { length, first: u64::from(alignment_bytes / 512) % length, most: most - most % length }
    }

    /// How `sectors` from `sector` on are discarded.
    pub fn split(&self, sector: u64, sectors: u64) -> Split {
        let Granules { length, first, most } = *self;
        let past = sector % length;
        let head = if past <= first { first - past } else { length.get() - (past - first) };
        let whole = sectors.saturating_sub(head);
        // The C module does without a whole granule in the middle of less than two as well.
        let worth_it = most > 0 && (head == 0 || sectors >= length.get().saturating_mul(2));
        let discarded = if worth_it { whole - whole % length } else { 0 };
        if discarded == 0 {
            return Split { head: sectors, discarded: 0, tail: 0, piece: most };
        }
        Split { head, discarded, tail: whole - discarded, piece: most }
    }
}

/// A range to be discarded: zeroes, whole granules, zeroes. Numbers of sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// To be zeroed in front; all of it where there is no whole granule.
    pub head: u64,
    /// To be discarded after that.
    pub discarded: u64,
    /// To be zeroed at the end.
    pub tail: u64,
    /// Most of `discarded` that the device takes at once.
    pub piece: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(granules: Granules, sector: u64, sectors: u64) -> (u64, u64, u64) {
        let split = granules.split(sector, sectors);
        (split.head, split.discarded, split.tail)
    }

    #[test]
    fn granules_are_counted_from_where_the_device_has_its_first() {
        // 64 KiB, on a partition that begins 1 KiB after the start of one.
        let granules = Granules::new(64 << 10, 63 << 10, 1 << 30);
        assert_eq!((granules.length.get(), granules.first), (128, 126));
        assert_eq!(parts(granules, 126, 128), (0, 128, 0), "exactly one granule");
        assert_eq!(parts(granules, 0, 128), (128, 0, 0), "as long as one, but parts of two");
        assert_eq!(parts(granules, 0, 256), (126, 128, 2));
        assert_eq!(parts(granules, 127, 383), (127, 256, 0));
        assert_eq!(parts(granules, 254, 127), (127, 0, 0));
    }

    #[test]
    fn without_an_offset_they_begin_at_the_first_sector() {
        let granules = Granules::new(4096, 0, 1 << 30);
        assert_eq!(parts(granules, 0, 16), (0, 16, 0));
        assert_eq!(parts(granules, 1, 16), (7, 8, 1));
        assert_eq!(parts(granules, 1, 15), (15, 0, 0));
        // An offset is what is left of whole granules.
        assert_eq!(Granules::new(4096, 8192, 1 << 30), granules);
    }

    #[test]
    fn what_the_device_cannot_discard_is_zeroed() {
        assert_eq!(parts(Granules::new(4096, 0, 0), 0, 64), (64, 0, 0));
        // Less than a granule at once is nothing.
        assert_eq!(parts(Granules::new(1 << 20, 0, 512 << 10), 0, 4096), (4096, 0, 0));
        assert_eq!(parts(Granules::new(0, 0, 4096), 3, 5), (0, 5, 0), "no granularity is that of a sector");
    }

    #[test]
    fn pieces_are_whole_granules_and_not_too_long() {
        assert_eq!(Granules::new(3 << 10, 0, 10 << 10).most, 18);
        assert_eq!(Granules::new(4096, 0, u32::MAX).split(0, 1 << 30).piece, MAX_SECTORS);
    }

    #[test]
    fn every_sector_is_in_exactly_one_part_and_only_whole_granules_are_discarded() {
        for (length, first) in [(1, 0), (3, 2), (8, 0), (8, 5)] {
            let granules = Granules { length: NonZeroU64::new(length).unwrap(), first, most: 4 * length };
            for (sector, sectors) in (0..20).flat_map(|sector| (0..40).map(move |sectors| (sector, sectors))) {
                let (head, discarded, tail) = parts(granules, sector, sectors);
                assert_eq!(head + discarded + tail, sectors);
                assert_eq!(discarded % length, 0);
                if discarded > 0 {
                    assert_eq!((sector + head) % length, first);
                    assert!(head < length && tail < length);
                } else {
                    assert!(sectors < 2 * length);
                }
            }
        }
    }

    #[test]
    fn no_range_is_too_large() {
        let granules = Granules::new(u32::MAX, u32::MAX, u32::MAX);
        assert_eq!(parts(granules, u64::MAX, 1), (1, 0, 0));
        let (head, discarded, tail) = parts(granules, u64::MAX, u64::MAX);
        assert_eq!(head.checked_add(discarded).and_then(|sum| sum.checked_add(tail)), Some(u64::MAX));
    }
}
