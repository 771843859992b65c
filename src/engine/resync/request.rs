// SPDX-License-Identifier: GPL-2.0
//! Which dirty blocks one resync request asks for.
// spec: wire-protocol 8.6

use crate::bitmap::Bitmap;
use crate::metadata::{BM_BLOCK_BYTES, BM_BLOCK_SECTORS};
use crate::storage::Storage;

/// Bits of a resync extent (16 MiB). No request crosses its border.
pub const BITS_PER_RESYNC_EXTENT: u64 = 4096;

/// What limits the size of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeLimits {
    /// Largest request in bytes.
    pub max_size_bytes: u32,
    /// Stop at exactly this size, the granularity of thin requests; 0: none.
    pub discard_granularity_bytes: u32,
    /// Blocks left in this turn.
    pub budget_blocks: u32,
}

/// Size in bytes of the request for the dirty block `start_bit` and as many dirty blocks after it as may go along: up to
/// the power of two that the start is aligned to. Cut at the end of the device. 0 when the bit is not set, or no budget
/// is left.
pub fn merge_request<S: Storage>(bitmap: &Bitmap<S>, start_bit: u64, limits: &MergeLimits) -> u32 {
    if limits.budget_blocks == 0 || !bitmap.is_set(start_bit) {
        return 0;
    }
    let mut size_bytes = BM_BLOCK_BYTES;
    let mut blocks = 1;
    let may_grow = |size_bytes: u32, blocks: u32| {
        let next_bit = start_bit + u64::from(blocks);
        let fits = size_bytes.checked_add(BM_BLOCK_BYTES).is_some_and(|size| size <= limits.max_size_bytes);
        // The next size up would have to be aligned to the power of two that holds it.
        let is_aligned = start_bit % u64::from(blocks + 1).next_power_of_two() == 0;
        fits && is_aligned
            && size_bytes != limits.discard_granularity_bytes
            && next_bit % BITS_PER_RESYNC_EXTENT != 0
            && blocks < limits.budget_blocks
            && bitmap.is_set(next_bit)
    };
    while may_grow(size_bytes, blocks) {
        size_bytes += BM_BLOCK_BYTES;
        blocks += 1;
    }
    let sectors_left = bitmap.capacity_sectors().saturating_sub(start_bit * BM_BLOCK_SECTORS);
    u32::try_from(sectors_left.saturating_mul(512)).unwrap_or(u32::MAX).min(size_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::HeapStorage;

    const KIB: u32 = 1024;
    const MIB: u32 = 1024 * KIB;
    const WIDE: MergeLimits =
        MergeLimits { max_size_bytes: MIB, discard_granularity_bytes: 0, budget_blocks: u32::MAX };

    fn all_dirty(capacity_sectors: u64) -> Bitmap<HeapStorage> {
        let mut bitmap = Bitmap::new(capacity_sectors).unwrap();
        bitmap.set_bits(0, u64::MAX);
        bitmap
    }

    #[test]
    fn alignment_of_the_start_limits_the_size() {
        let bitmap = all_dirty(1 << 20);
        for (start_bit, size_bytes) in [
            (0, MIB),
            (1, 4 * KIB),
            (2, 8 * KIB),
            (3, 4 * KIB),
            (4, 16 * KIB),
            (6, 8 * KIB),
            (128, 512 * KIB),
            (256, MIB),
            (4095, 4 * KIB),
        ] {
            assert_eq!(merge_request(&bitmap, start_bit, &WIDE), size_bytes, "{start_bit}");
        }
    }

    #[test]
    fn a_request_ends_with_the_dirty_blocks() {
        let mut bitmap = all_dirty(1 << 20);
        bitmap.clear_bits(5, 5);
        assert_eq!(merge_request(&bitmap, 0, &WIDE), 20 * KIB);
        assert_eq!(merge_request(&bitmap, 4, &WIDE), 4 * KIB);
        assert_eq!(merge_request(&bitmap, 5, &WIDE), 0);
        assert_eq!(merge_request(&bitmap, u64::MAX, &WIDE), 0);
    }

    #[test]
    fn every_limit_holds() {
        let bitmap = all_dirty(1 << 20);
        for (limits, size_bytes) in [
            (MergeLimits { max_size_bytes: 128 * KIB, ..WIDE }, 128 * KIB),
            (MergeLimits { max_size_bytes: 130 * KIB, ..WIDE }, 128 * KIB),
            (MergeLimits { max_size_bytes: 0, ..WIDE }, 4 * KIB),
            (MergeLimits { max_size_bytes: u32::MAX, ..WIDE }, 16 * MIB),
            (MergeLimits { budget_blocks: 3, ..WIDE }, 12 * KIB),
            (MergeLimits { budget_blocks: 1, ..WIDE }, 4 * KIB),
            (MergeLimits { budget_blocks: 0, ..WIDE }, 0),
            (MergeLimits { discard_granularity_bytes: 64 * KIB, ..WIDE }, 64 * KIB),
            (MergeLimits { discard_granularity_bytes: 2 * MIB, ..WIDE }, MIB),
            (MergeLimits { discard_granularity_bytes: 4096, ..WIDE }, 4 * KIB),
        ] {
            assert_eq!(merge_request(&bitmap, 0, &limits), size_bytes, "{limits:?}");
        }
    }

    #[test]
    fn no_request_leaves_its_extent() {
        let bitmap = all_dirty(1 << 20);
        let unlimited = MergeLimits { max_size_bytes: u32::MAX, ..WIDE };
        assert_eq!(merge_request(&bitmap, 4096, &unlimited), 16 * MIB);
        assert_eq!(merge_request(&bitmap, 4094, &unlimited), 8 * KIB);
    }

    #[test]
    fn the_last_request_is_cut_at_the_end_of_the_device() {
        for (capacity_sectors, size_bytes) in [(1024 + 1, 512), (1024 + 7, 3584), (1024 + 8, 4096), (1024 + 9, 4608)] {
            let bitmap = all_dirty(capacity_sectors);
            assert_eq!(merge_request(&bitmap, 128, &WIDE), size_bytes, "{capacity_sectors}");
        }
    }
}
