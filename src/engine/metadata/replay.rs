// SPDX-License-Identifier: GPL-2.0
//! Puts the slot table together again from the blocks of the ring: after a crash of a Primary, the extents in it
//! may differ between the nodes.
// spec: metadata 4.6

use super::transaction::{decode, Kind, TransactionView, SLOT_FREE};
use super::{Block, LC_FREE};

/// Slots that can occur; also the length of the table [`replay`] works on.
pub const MAX_SLOTS: usize = 65534;

/// What the ring says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    /// No valid block at all (ENODATA).
    NoUsableLog,
    /// Nothing was ever logged, but not every block is valid (EINVAL).
    Damaged {
        /// Blocks without right magic and checksum.
        invalid_blocks: u32,
    },
    /// Nothing was ever logged.
    Nothing {
        /// One block is not valid: the very first transaction, torn. The ring should be written anew.
        torn: bool,
    },
    /// The slot table was put together.
    Replayed {
        /// Number of the oldest transaction used.
        oldest: u32,
        /// Number of the newest transaction used.
        newest: u32,
        /// Blocks that were skipped because they are torn or damaged; one is to be expected.
        invalid_blocks: u32,
        /// Entries with impossible slot numbers, skipped.
        skipped_entries: u32,
        /// Active extents: so many entries at the start of the table, ascending, each once.
        active: usize,
    },
}

/// Reads the ring of `blocks` blocks. `block_at` is given a logical index (the ring position of a transaction number,
/// see [`super::layout::Striping::ring_block`]) and returns that block, `None` if it could not be read. `table` needs
/// [`MAX_SLOTS`] entries, its contents do not matter.
pub fn replay<'a>(blocks: u32, block_at: impl Fn(u32) -> Option<&'a Block>, table: &mut [u32]) -> Replay {
    let valid_at = |index| block_at(index).and_then(|block| decode(block).ok());
    let scan = Scan::of_ring(blocks, valid_at);
    let Some((oldest, newest)) = scan.oldest_and_newest else {
        return scan.without_updates();
    };

    table.fill(LC_FREE);
    let mut skipped_entries = 0;
    let mut index = oldest.0;
    // Bounded by one round, whatever the transaction numbers pretend.
    for _ in 0..blocks {
        if let Some(view) = valid_at(index).filter(|view| view.kind() == Kind::Update) {
            apply(&view, table, &mut skipped_entries);
        }
        if index == newest.0 {
            break;
        }
        index = if index + 1 == blocks { 0 } else { index + 1 };
    }
    Replay::Replayed {
        oldest: oldest.1,
        newest: newest.1,
        invalid_blocks: scan.invalid_blocks,
        skipped_entries,
        active: sort_active(table),
    }
}

/// What a first look at all blocks found.
struct Scan {
    valid_blocks: u32,
    invalid_blocks: u32,
    /// Logical index and number of the oldest and the newest update.
    oldest_and_newest: Option<((u32, u32), (u32, u32))>,
}

impl Scan {
    fn of_ring<'a>(blocks: u32, valid_at: impl Fn(u32) -> Option<TransactionView<'a>>) -> Scan {
        let mut scan = Scan { valid_blocks: 0, invalid_blocks: 0, oldest_and_newest: None };
        for index in 0..blocks {
            let Some(view) = valid_at(index) else {
                scan.invalid_blocks += 1;
                continue;
            };
            scan.valid_blocks += 1;
            if view.kind() == Kind::Update {
                let this = (index, view.number());
                let (oldest, newest) = scan.oldest_and_newest.unwrap_or((this, this));
                scan.oldest_and_newest = Some((
                    if is_before(this.1, oldest.1) { this } else { oldest },
                    if is_before(newest.1, this.1) { this } else { newest },
                ));
            }
        }
        scan
    }

    /// One block that is not valid is the first transaction since the log was emptied, torn: nothing before it was logged,
    /// and nothing that depends on it was written. Its place goes by its number, which a C module does not begin anew when the
    /// disk was detached and is attached again. (drbdmeta knows of the first place only, and calls the log damaged otherwise.)
    fn without_updates(&self) -> Replay {
        if self.valid_blocks == 0 {
            Replay::NoUsableLog
        } else if self.invalid_blocks <= 1 {
            Replay::Nothing { torn: self.invalid_blocks > 0 }
        } else {
            Replay::Damaged { invalid_blocks: self.invalid_blocks }
        }
    }
}

/// Transaction numbers wrap: `left` is before `right` when their signed difference says so.
fn is_before(left: u32, right: u32) -> bool {
    (left.wrapping_sub(right) as i32) < 0
}

/// The window first, it shows the table before the change.
fn apply(view: &TransactionView<'_>, table: &mut [u32], skipped_entries: &mut u32) {
    let mut store = |slot: u32, extent: u32| match table.get_mut(slot as usize) {
        Some(entry) if (slot as usize) < MAX_SLOTS => *entry = extent,
        _ => *skipped_entries = skipped_entries.saturating_add(1),
    };
    for (slot, extent) in view.context() {
        let unused = extent == LC_FREE && slot >= u32::from(view.context_size());
        if !unused {
            store(slot, extent);
        }
    }
    for (index, (slot, extent)) in view.updates().enumerate() {
        let unused = index >= usize::from(view.update_count()) && slot == SLOT_FREE;
        if !unused {
            store(u32::from(slot), extent);
        }
    }
}

/// Sorts the active extents to the front, each once; returns their number.
fn sort_active(table: &mut [u32]) -> usize {
    table.sort_unstable();
    let mut active = 0;
    let mut last = LC_FREE;
    for index in 0..table.len() {
        let extent = table.get(index).copied().unwrap_or(LC_FREE);
        if extent == LC_FREE {
            break;
        }
        if active == 0 || extent != last {
            if let Some(entry) = table.get_mut(active) {
                *entry = extent;
            }
            active += 1;
            last = extent;
        }
    }
    active
}

#[cfg(test)]
mod tests {
    use super::super::transaction::Transaction;
    use super::*;

    fn initialised(blocks: usize) -> Vec<Block> {
        let mut block = [0; 4096];
        Transaction::INITIALIZED.encode(&mut block);
        vec![block; blocks]
    }

    /// Without a window, it is put behind the table: free places there say nothing.
    fn update(number: u32, updates: &[(u16, u32)], context_start: u16, context: &[u32]) -> Block {
        let mut block = [0; 4096];
        let context_size = 1237;
        let context_start = if context.is_empty() { context_size } else { context_start };
        let kind = Kind::Update;
        Transaction { number, kind, updates, context_start, context_size, context }.encode(&mut block);
        block
    }

    fn run(ring: &[Block]) -> (Replay, Vec<u32>) {
        let mut table = vec![0x5555; MAX_SLOTS];
        let result = replay(ring.len() as u32, |index| ring.get(index as usize), &mut table);
        let active = if let Replay::Replayed { active, .. } = result { active } else { 0 };
        table.truncate(active);
        (result, table)
    }

    fn replayed(oldest: u32, newest: u32, invalid_blocks: u32, active: usize) -> Replay {
        Replay::Replayed { oldest, newest, invalid_blocks, skipped_entries: 0, active }
    }

    #[test]
    fn rings_without_updates() {
        let mut ring = initialised(8);
        assert_eq!(run(&ring).0, Replay::Nothing { torn: false });
        ring[0] = [0; 4096];
        assert_eq!(run(&ring).0, Replay::Nothing { torn: true });
        ring[3] = [0; 4096];
        assert_eq!(run(&ring).0, Replay::Damaged { invalid_blocks: 2 });
        ring[0] = ring[1];
        assert_eq!(run(&ring).0, Replay::Nothing { torn: true }, "torn in the place of its number");
        assert_eq!(run(&vec![[0; 4096]; 8]).0, Replay::NoUsableLog);
        assert_eq!(run(&[]).0, Replay::NoUsableLog);
    }

    #[test]
    fn later_updates_win_and_context_comes_first() {
        let mut ring = initialised(8);
        ring[0] = update(0, &[(2, 20), (1, 10)], 0, &[LC_FREE; 3]);
        // The window still shows slot 1 with its old extent, the change replaces it.
        ring[1] = update(1, &[(1, 11)], 0, &[LC_FREE, 10, 20]);
        assert_eq!(run(&ring), (replayed(0, 1, 0, 2), vec![11, 20]));
    }

    #[test]
    fn the_walk_wraps_and_so_do_the_numbers() {
        let mut ring = initialised(4);
        // Numbers 0xFFFFFFFE..=1 lie at 2, 3, 0, 1.
        ring[2] = update(0xFFFF_FFFE, &[(5, 1)], 0, &[]);
        ring[3] = update(0xFFFF_FFFF, &[(5, 2)], 0, &[]);
        ring[0] = update(0, &[(5, 3)], 0, &[]);
        ring[1] = update(1, &[(6, 4)], 0, &[]);
        assert_eq!(run(&ring), (replayed(0xFFFF_FFFE, 1, 0, 2), vec![3, 4]));
    }

    #[test]
    fn torn_blocks_are_skipped() {
        let mut ring = initialised(8);
        ring[0] = update(8, &[(1, 1)], 0, &[]);
        ring[1] = update(1, &[(2, 2)], 0, &[]);
        ring[2] = update(2, &[(3, 3)], 0, &[]);
        ring[2][4000] ^= 1;
        assert_eq!(run(&ring), (replayed(1, 8, 1, 2), vec![1, 2]));
    }

    #[test]
    fn a_window_can_free_a_slot() {
        let mut ring = initialised(8);
        ring[0] = update(0, &[(1, 77)], 0, &[LC_FREE; 919]);
        ring[1] = update(1, &[], 0, &[LC_FREE; 919]);
        assert_eq!(run(&ring), (replayed(0, 1, 0, 0), vec![]));
    }

    #[test]
    fn impossible_slots_are_reported() {
        let mut ring = initialised(8);
        ring[0] = update(0, &[(65534, 1), (65533, 2), (0xFFFF, 3)], 65500, &[9; 919]);
        let (result, active) = run(&ring);
        // 34 entries of the window and one update fit.
        let skipped_entries = 2 + (919 - 34);
        assert_eq!(result, Replay::Replayed { oldest: 0, newest: 0, invalid_blocks: 0, skipped_entries, active: 2 });
        assert_eq!(active, [2, 9]);
    }

    #[test]
    fn unused_places_are_judged_like_the_tool_does() {
        let mut ring = initialised(1);
        // A window entry beyond the table counts unless it is free.
        ring[0] = update(0, &[], 1236, &[4, 5, LC_FREE]);
        assert_eq!(run(&ring), (replayed(0, 0, 0, 2), vec![4, 5]));
    }

    #[test]
    fn duplicates_count_once() {
        let mut ring = initialised(1);
        ring[0] = update(0, &[(7, 3), (8, 1), (9, 3)], 0, &[]);
        assert_eq!(run(&ring), (replayed(0, 0, 0, 2), vec![1, 3]));
    }
}
