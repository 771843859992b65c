// SPDX-License-Identifier: GPL-2.0
//! The activity log in core: which 4 MiB extents may be written to at the moment.
//!
//! An extent is *active* while the log on disk names it: after a crash of this node the active extents are resynced.
//! A write needs a reference to each extent it touches. Extents without references stay active until their slot is
//! needed for another one, least recently used first.
//!
//! # Invariants
//!
//! * `committed[slot]` is the extent that the log on disk shows for the slot, `assigned` the one it is going to show.
//!   They differ exactly for the slots named in `pending`, at most 64.
//! * Every slot is in exactly one place: in the list `free` (assigned to nothing), in the list `lru` (active, no
//!   references), named in `pending`, or none of these (active with references).
//! * Each extent is assigned to at most one slot; the hash chains contain the assigned slots by `assigned`.
//! * While a transaction is on its way (`in_progress`) `pending` does not change. So when it is done, every request
//!   that was answered [`Begin::Pending`] until then has what it needs.
//! * No memory is allocated after [`ActivityLog::new`].
// spec: metadata 4.3, 4.4; state-machine 19

use crate::metadata::layout::{MAX_AL_EXTENTS, MIN_AL_EXTENTS};
use crate::metadata::transaction::{Kind, Transaction, AL_CONTEXT_PER_TRANSACTION, AL_UPDATES_PER_TRANSACTION};
use crate::metadata::{Block, AL_EXTENT_SECTORS, LC_FREE};
use crate::storage::{OutOfMemory, Storage};

/// End of a list; never the number of a slot.
const NONE: u16 = 0xFFFF;

/// First and last extent that a range touches; the size in bytes may be 0. spec: state-machine 19.1
pub fn extents_of(sector: u64, size_bytes: u32) -> (u32, u32) {
    let last_sector = sector.saturating_add(u64::from(size_bytes / 512).saturating_sub(1));
    let extent = |sector: u64| u32::try_from(sector / AL_EXTENT_SECTORS).unwrap_or(LC_FREE - 1);
    (extent(sector), extent(last_sector))
}

/// Answer to [`ActivityLog::begin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// All extents are active and referenced: go ahead.
    Active,
    /// All extents are referenced, but a transaction has to be written first; the next [`ActivityLog::committed`]
    /// makes them active.
    Pending,
    /// Nothing is referenced. Try again after the transaction on its way, or after a [`ActivityLog::put`] that says so.
    NoSlot,
}

/// Counters, as shown in `/proc/drbd`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// References to extents that had a slot.
    pub hits: u64,
    /// Extents that had to be given a slot.
    pub misses: u64,
    /// Times there was no slot to be had.
    pub starving: u64,
    /// Times a change had to wait for the transaction on its way.
    pub locked: u64,
    /// Slots that changed.
    pub changed: u64,
}

#[derive(Clone, Copy)]
struct Slot {
    assigned: u32,
    references: u32,
    previous: u16,
    next: u16,
    hash_next: u16,
}

/// Both ends of a list of slots.
#[derive(Clone, Copy)]
struct List {
    first: u16,
    last: u16,
    length: u16,
}

impl List {
    const EMPTY: List = List { first: NONE, last: NONE, length: 0 };
}

/// The activity log of one volume.
pub struct ActivityLog<S: Storage> {
    slots: S::Table<Slot>,
    /// Extents by slot as on disk; apart from the slots so that a window of it can go into a transaction as it is.
    committed: S::Table<u32>,
    /// First slot of each hash chain; the length is a power of two.
    chains: S::Table<u16>,
    /// Handed out from its end.
    free: List,
    /// Least recently used first.
    lru: List,
    pending: [(u16, u32); AL_UPDATES_PER_TRANSACTION],
    pending_count: usize,
    in_progress: bool,
    starving: bool,
    used: u32,
    context_next: usize,
    statistics: Statistics,
}

impl<S: Storage> ActivityLog<S> {
    /// An empty log of `extents` slots, taken to be within 67 to 65534. May sleep.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(extents: u32) -> Result<Self, OutOfMemory> {
        let extents = extents.clamp(MIN_AL_EXTENTS, MAX_AL_EXTENTS) as usize;
        let unused = Slot { assigned: LC_FREE, references: 0, previous: NONE, next: NONE, hash_next: NONE };
        let mut log = ActivityLog {
            slots: S::table(extents, |_| unused)?,
            committed: S::table(extents, |_| LC_FREE)?,
            chains: S::table(extents.next_power_of_two(), |_| NONE)?,
            free: List::EMPTY,
            lru: List::EMPTY,
            pending: [(NONE, LC_FREE); AL_UPDATES_PER_TRANSACTION],
            pending_count: 0,
            in_progress: false,
            starving: false,
            used: 0,
            context_next: 0,
            statistics: Statistics::default(),
        };
        log.free_all();
        Ok(log)
    }

    /// Number of slots.
    pub fn extents(&self) -> u32 {
        self.slots.len() as u32
    }

    /// Number of slots with references.
    pub fn used(&self) -> u32 {
        self.used
    }

    /// The counters.
    pub fn statistics(&self) -> Statistics {
        self.statistics
    }

    /// The short way of a write within one extent: takes a reference if the extent is active already.
    pub fn hot(&mut self, extent: u32) -> bool {
        if self.starving {
            self.statistics.starving += 1;
            return false;
        }
        match self.find(extent) {
            Some(slot) if self.is_committed(slot) => {
                self.statistics.hits += 1;
                self.reference(slot);
                true
            }
            _ => false,
        }
    }

    /// Takes a reference to each extent from `first_extent` to `last_extent`, or none at all. A range of more than 64
    /// extents never succeeds.
    // spec: state-machine 19.2
    pub fn begin(&mut self, first_extent: u32, last_extent: u32) -> Begin {
        if self.starving {
            self.statistics.starving += 1;
            return Begin::NoSlot;
        }
        let range = first_extent..=last_extent.min(LC_FREE - 1);
        if range.is_empty() || last_extent - first_extent >= AL_UPDATES_PER_TRANSACTION as u32 {
            return Begin::NoSlot;
        }
        if !self.has_room_for(range.clone()) {
            return Begin::NoSlot;
        }
        // References first, so that no extent of this range is recycled for another one.
        for extent in range.clone() {
            if let Some(slot) = self.find(extent) {
                self.statistics.hits += 1;
                self.reference(slot);
            }
        }
        let mut all_active = true;
        for extent in range {
            match self.find(extent) {
                Some(slot) => all_active &= self.is_committed(slot),
                None => {
                    self.statistics.misses += 1;
                    self.assign(extent);
                    all_active = false;
                }
            }
        }
        if all_active {
            Begin::Active
        } else {
            Begin::Pending
        }
    }

    /// Gives back what [`ActivityLog::hot`] or [`ActivityLog::begin`] took. True when an extent lost its last
    /// reference: whoever waits for a slot, or for that extent, should try again.
    pub fn put(&mut self, first_extent: u32, last_extent: u32) -> bool {
        let mut wake = false;
        for extent in first_extent..=last_extent {
            if let Some(slot) = self.find(extent) {
                wake |= self.unreference(slot);
            }
        }
        wake
    }

    /// Whether a transaction has to be written.
    pub fn has_pending(&self) -> bool {
        self.pending_count != 0
    }

    /// Whether a transaction is on its way: started, and not yet [`ActivityLog::committed`].
    pub fn in_progress(&self) -> bool {
        self.in_progress
    }

    /// A transaction begins with the changes so far (maybe none, when the ring is initialised): no further changes are let
    /// in until [`ActivityLog::committed`]. False, and nothing done, when one is on its way.
    // spec: metadata 4.3
    pub fn start_transaction(&mut self) -> bool {
        !core::mem::replace(&mut self.in_progress, true)
    }

    /// Builds the block of the transaction that was started; once for each transaction, because the next one repeats
    /// the next window of the table.
    // spec: metadata 4.1
    pub fn encode_transaction(&mut self, number: u32, block: &mut Block) {
        let behind = (self.context_next + AL_CONTEXT_PER_TRANSACTION).min(self.committed.len());
        Transaction {
            number,
            kind: Kind::Update,
            updates: self.pending.get(..self.pending_count).unwrap_or(&[]),
            context_start: self.context_next as u16,
            context_size: self.committed.len() as u16,
            context: self.committed.get(self.context_next..behind).unwrap_or(&[]),
        }
        .encode_with(block, S::crc32c);
        self.context_next = if behind == self.committed.len() { 0 } else { behind };
    }

    /// [`ActivityLog::start_transaction`] and [`ActivityLog::encode_transaction`] in one, where no bitmap pages have to be
    /// written between them.
    pub fn transaction(&mut self, number: u32, block: &mut Block) -> bool {
        let started = self.start_transaction();
        if started {
            self.encode_transaction(number, block);
        }
        started
    }

    /// The extents that lose their slot by the transaction: their bitmap pages must be on disk before it.
    // spec: metadata 4.4
    pub fn evicted_extents(&self) -> impl Iterator<Item = u32> + '_ {
        let pending = self.pending.iter().take(self.pending_count);
        pending.filter_map(|(slot, _)| self.committed.get(usize::from(*slot)).copied()).filter(|old| *old != LC_FREE)
    }

    /// The transaction was written, or failed and took the disk with it: its changes hold.
    pub fn committed(&mut self) {
        for index in 0..core::mem::take(&mut self.pending_count) {
            let Some((slot, extent)) = self.pending.get(index).copied() else {
                break;
            };
            if let Some(committed) = self.committed.get_mut(usize::from(slot)) {
                *committed = extent;
            }
            self.statistics.changed += 1;
            if self.slot(slot).references == 0 {
                self.push(slot, Which::Lru);
            }
        }
        self.in_progress = false;
    }

    /// Whether anybody holds a reference to the extent, committed or not.
    pub fn is_in_use(&self, extent: u32) -> bool {
        self.find(extent).is_some_and(|slot| self.slot(slot).references != 0)
    }

    /// Whether the extent is active, that is, named by the log on disk.
    pub fn is_active(&self, extent: u32) -> bool {
        self.find(extent).is_some_and(|slot| self.is_committed(slot))
    }

    /// Forgets all extents (the log is going to be suspended). False, and nothing done, while any is referenced or a
    /// change is under way.
    // spec: metadata 5.6
    pub fn clear(&mut self) -> bool {
        if self.used != 0 || self.has_pending() || self.in_progress {
            return false;
        }
        self.free_all();
        true
    }

    /// Whether all missing extents can get a slot and a place in the transaction.
    fn has_room_for(&mut self, range: core::ops::RangeInclusive<u32>) -> bool {
        let (mut missing, mut unreferenced) = (0usize, 0usize);
        for extent in range {
            match self.find(extent) {
                None => missing += 1,
                Some(slot) => {
                    // A pending slot is in no list, even without references.
                    let in_lru = self.is_committed(slot) && self.slot(slot).references == 0;
                    unreferenced += usize::from(in_lru);
                }
            }
        }
        if missing == 0 {
            return true;
        }
        if self.in_progress {
            self.statistics.locked += 1;
            return false;
        }
        if self.pending_count + missing > AL_UPDATES_PER_TRANSACTION {
            return false;
        }
        let available = usize::from(self.free.length) + usize::from(self.lru.length).saturating_sub(unreferenced);
        if missing > available {
            // Unless changes that nobody waits for any more are about to free some, a reference must go first.
            self.statistics.starving += 1;
            self.starving = self.used != 0;
            return false;
        }
        true
    }

    /// Gives the extent a slot, with one reference, as a pending change. The caller has checked for room.
    fn assign(&mut self, extent: u32) {
        let slot = if self.free.length != 0 { self.free.last } else { self.lru.first };
        if slot == NONE {
            return;
        }
        let list = if self.free.length != 0 { Which::Free } else { Which::Lru };
        self.unlink(slot, list);
        self.unhash(slot);
        if let Some(entry) = self.slots.get_mut(usize::from(slot)) {
            entry.assigned = extent;
            entry.references = 1;
        }
        self.used += 1;
        self.hash(slot);
        if let Some(place) = self.pending.get_mut(self.pending_count) {
            *place = (slot, extent);
            self.pending_count += 1;
        }
    }

    fn reference(&mut self, slot: u16) {
        if self.slot(slot).references == 0 {
            if self.is_committed(slot) {
                self.unlink(slot, Which::Lru);
            }
            self.used += 1;
        }
        if let Some(entry) = self.slots.get_mut(usize::from(slot)) {
            entry.references = entry.references.saturating_add(1);
        }
    }

    /// True when it was the last reference.
    fn unreference(&mut self, slot: u16) -> bool {
        match self.slots.get_mut(usize::from(slot)) {
            Some(entry) if entry.references != 0 => {
                entry.references -= 1;
                if entry.references != 0 {
                    return false;
                }
            }
            _ => return false,
        }
        self.used = self.used.saturating_sub(1);
        self.starving = false;
        if self.is_committed(slot) {
            self.push(slot, Which::Lru);
        }
        true
    }

    fn free_all(&mut self) {
        let unused = Slot { assigned: LC_FREE, references: 0, previous: NONE, next: NONE, hash_next: NONE };
        self.slots.iter_mut().for_each(|slot| *slot = unused);
        self.committed.iter_mut().for_each(|extent| *extent = LC_FREE);
        self.chains.iter_mut().for_each(|first| *first = NONE);
        (self.free, self.lru, self.starving) = (List::EMPTY, List::EMPTY, false);
        for slot in 0..self.slots.len() as u16 {
            self.push(slot, Which::Free);
        }
    }

    fn slot(&self, slot: u16) -> Slot {
        let missing = Slot { assigned: LC_FREE, references: 0, previous: NONE, next: NONE, hash_next: NONE };
        self.slots.get(usize::from(slot)).copied().unwrap_or(missing)
    }

    fn is_committed(&self, slot: u16) -> bool {
        self.committed.get(usize::from(slot)).copied() == Some(self.slot(slot).assigned)
    }
}

/// The two lists of slots.
#[derive(Clone, Copy)]
enum Which {
    Free,
    Lru,
}

/// Lists and hash chains.
impl<S: Storage> ActivityLog<S> {
    fn list(&mut self, which: Which) -> &mut List {
        match which {
            Which::Free => &mut self.free,
            Which::Lru => &mut self.lru,
        }
    }

    /// Appends a slot that is in no list.
    fn push(&mut self, slot: u16, which: Which) {
        let list = self.list(which);
        let previous = list.last;
        list.last = slot;
        list.length += 1;
        if previous == NONE {
            list.first = slot;
        }
        if let Some(entry) = self.slots.get_mut(usize::from(previous)) {
            entry.next = slot;
        }
        if let Some(entry) = self.slots.get_mut(usize::from(slot)) {
            (entry.previous, entry.next) = (previous, NONE);
        }
    }

    /// Takes a slot out of the list it is in.
    fn unlink(&mut self, slot: u16, which: Which) {
        let Slot { previous, next, .. } = self.slot(slot);
        let list = self.list(which);
        list.length = list.length.saturating_sub(1);
        if list.first == slot {
            list.first = next;
        }
        if list.last == slot {
            list.last = previous;
        }
        if let Some(entry) = self.slots.get_mut(usize::from(previous)) {
            entry.next = next;
        }
        if let Some(entry) = self.slots.get_mut(usize::from(next)) {
            entry.previous = previous;
        }
        if let Some(entry) = self.slots.get_mut(usize::from(slot)) {
            (entry.previous, entry.next) = (NONE, NONE);
        }
    }

    fn chain_of(&self, extent: u32) -> usize {
        extent as usize & self.chains.len().saturating_sub(1)
    }

    /// The slot an extent is assigned to.
    fn find(&self, extent: u32) -> Option<u16> {
        let mut slot = self.chains.get(self.chain_of(extent)).copied().unwrap_or(NONE);
        while slot != NONE {
            let entry = self.slot(slot);
            if entry.assigned == extent {
                return Some(slot);
            }
            slot = entry.hash_next;
        }
        None
    }

    fn hash(&mut self, slot: u16) {
        let chain = self.chain_of(self.slot(slot).assigned);
        let Some(first) = self.chains.get_mut(chain) else {
            return;
        };
        let next = core::mem::replace(first, slot);
        if let Some(entry) = self.slots.get_mut(usize::from(slot)) {
            entry.hash_next = next;
        }
    }

    /// Takes a slot out of its chain; does nothing for a slot that is assigned to nothing.
    fn unhash(&mut self, slot: u16) {
        let Slot { assigned, hash_next, .. } = self.slot(slot);
        if assigned == LC_FREE {
            return;
        }
        let chain = self.chain_of(assigned);
        let mut before = self.chains.get(chain).copied().unwrap_or(NONE);
        if before == slot {
            if let Some(first) = self.chains.get_mut(chain) {
                *first = hash_next;
            }
            return;
        }
        while before != NONE {
            let next = self.slot(before).hash_next;
            if next == slot {
                if let Some(entry) = self.slots.get_mut(usize::from(before)) {
                    entry.hash_next = hash_next;
                }
                return;
            }
            before = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::replay::{replay, Replay};
    use crate::metadata::transaction::decode;
    use crate::storage::HeapStorage;
    use std::collections::{BTreeMap, BTreeSet};

    type TestLog = ActivityLog<HeapStorage>;

    fn log(extents: u32) -> TestLog {
        ActivityLog::new(extents).unwrap()
    }

    /// Writes a transaction and commits it; returns the changes in it.
    fn commit(log: &mut TestLog, number: u32) -> Vec<(u16, u32)> {
        let mut block = [0; 4096];
        assert!(log.transaction(number, &mut block));
        log.committed();
        let view = decode(&block).map_err(|error| error.to_string()).unwrap();
        assert_eq!(view.number(), number);
        view.updates().take(usize::from(view.update_count())).collect()
    }

    #[test]
    fn the_number_of_slots_is_kept_in_range() {
        for (asked, given) in [(0, 67), (67, 67), (1237, 1237), (65534, 65534), (u32::MAX, 65534)] {
            assert_eq!(log(asked).extents(), given);
        }
    }

    #[test]
    fn extents_of_ranges() {
        assert_eq!(extents_of(0, 0), (0, 0));
        assert_eq!(extents_of(8191, 512), (0, 0));
        assert_eq!(extents_of(8191, 1024), (0, 1));
        assert_eq!(extents_of(8192, 0), (1, 1));
        assert_eq!(extents_of(1, 128 << 20), (0, 32));
        assert_eq!(extents_of(u64::MAX, u32::MAX).1, LC_FREE - 1);
    }

    #[test]
    fn a_cold_extent_becomes_hot_by_a_transaction() {
        let mut log = log(1237);
        assert!(!log.hot(7));
        assert_eq!(log.begin(7, 7), Begin::Pending);
        assert!(log.has_pending() && log.is_in_use(7) && !log.is_active(7));
        assert!(!log.hot(7));
        // Somebody else wants the same before the transaction is built.
        assert_eq!(log.begin(7, 8), Begin::Pending);
        assert_eq!(commit(&mut log, 0), [(1236, 7), (1235, 8)]);
        assert!(log.hot(7) && log.is_active(8) && !log.has_pending());
        assert_eq!(log.used(), 2);
        assert!(!log.put(7, 7));
        assert!(log.put(7, 8));
        assert!(log.put(7, 7));
        assert_eq!(log.used(), 0);
        assert!(log.is_active(7) && !log.is_in_use(7));
        assert_eq!(log.begin(7, 8), Begin::Active);
        let statistics = Statistics { hits: 4, misses: 2, starving: 0, locked: 0, changed: 2 };
        assert_eq!(log.statistics(), statistics);
    }

    #[test]
    fn while_a_transaction_is_on_its_way_only_active_extents_go() {
        let mut log = log(1237);
        log.begin(1, 1);
        commit(&mut log, 0);
        log.begin(2, 2);
        let mut block = [0; 4096];
        assert!(log.transaction(1, &mut block));
        assert!(!log.transaction(2, &mut block));
        assert!(log.hot(1));
        assert_eq!(log.begin(1, 1), Begin::Active);
        assert_eq!(log.begin(3, 3), Begin::NoSlot);
        assert!(!log.is_in_use(3));
        assert_eq!(log.statistics().locked, 1);
        // An extent of that very transaction becomes active with it.
        assert_eq!(log.begin(1, 2), Begin::Pending);
        log.committed();
        assert!(log.hot(2));
        assert_eq!(log.begin(3, 3), Begin::Pending);
    }

    #[test]
    fn the_least_recently_used_slot_is_recycled() {
        let mut log = log(67);
        for extent in 0..67 {
            assert_eq!(log.begin(extent, extent), Begin::Pending);
            commit(&mut log, extent);
        }
        for extent in 0..67 {
            assert!(log.put(extent, extent));
        }
        assert!(log.hot(0));
        assert_eq!(log.begin(100, 101), Begin::Pending);
        assert_eq!(log.evicted_extents().collect::<Vec<_>>(), [1, 2]);
        // A recycled extent is cold at once, although the log on disk still names it.
        assert!(!log.is_active(1));
        assert_eq!(commit(&mut log, 67), [(65, 100), (64, 101)]);
        assert_eq!(log.evicted_extents().count(), 0);
    }

    #[test]
    fn a_range_does_not_recycle_its_own_extents() {
        let mut log = log(67);
        log.begin(0, 63);
        commit(&mut log, 0);
        log.begin(64, 66);
        commit(&mut log, 1);
        log.put(3, 66);
        log.put(0, 2);
        // 64 slots are least recently used before 0..=2; all but those of the range are candidates.
        assert_eq!(log.begin(3, 66), Begin::Active);
        assert_eq!(log.begin(0, 2), Begin::Active);
        log.put(0, 2);
        assert_eq!(log.begin(65, 70), Begin::NoSlot);
        assert_eq!(log.used(), 64);
    }

    #[test]
    fn starving_ends_when_a_reference_goes() {
        let mut log = log(67);
        log.begin(0, 63);
        commit(&mut log, 0);
        log.begin(64, 65);
        commit(&mut log, 1);
        assert_eq!(log.begin(70, 71), Begin::NoSlot);
        assert_eq!(log.statistics().starving, 1);
        // Not even active extents are handed out now, so that the waiter gets its turn.
        assert!(!log.hot(0));
        assert_eq!(log.begin(0, 0), Begin::NoSlot);
        assert!(log.put(5, 5));
        assert_eq!(log.begin(70, 71), Begin::Pending);
        assert!(log.hot(0));
        assert_eq!(log.evicted_extents().collect::<Vec<_>>(), [5]);
    }

    #[test]
    fn at_most_64_changes_in_a_transaction() {
        let mut log = log(1237);
        assert_eq!(log.begin(0, 64), Begin::NoSlot);
        assert_eq!(log.begin(5, 4), Begin::NoSlot);
        assert_eq!(log.begin(0, 32), Begin::Pending);
        assert_eq!(log.begin(32, 64), Begin::NoSlot);
        assert!(!log.is_in_use(33));
        assert_eq!(log.begin(32, 63), Begin::Pending);
        assert_eq!(log.begin(64, 64), Begin::NoSlot);
        assert_eq!(log.begin(0, 63), Begin::Pending);
        assert_eq!(commit(&mut log, 0).len(), 64);
        assert_eq!(log.begin(64, 64), Begin::Pending);
        assert_eq!(log.statistics().starving, 0);
    }

    #[test]
    fn a_reference_may_go_before_its_transaction() {
        let mut log = log(67);
        log.begin(0, 9);
        assert!(log.put(0, 9));
        assert_eq!(log.used(), 0);
        assert!(!log.clear());
        commit(&mut log, 0);
        assert!(log.is_active(9) && log.hot(9));
        assert!(!log.clear());
        log.put(9, 9);
        assert!(log.clear());
        assert!(!log.is_active(9));
        log.begin(50, 50);
        assert_eq!(commit(&mut log, 1), [(66, 50)]);
    }

    #[test]
    fn giving_back_too_much_does_no_harm() {
        let mut log = log(67);
        assert!(!log.put(0, 5));
        log.begin(1, 1);
        commit(&mut log, 0);
        assert!(log.put(1, 1));
        assert!(!log.put(1, 1));
        assert_eq!(log.used(), 0);
    }

    #[test]
    fn the_window_goes_round_the_table() {
        let mut log = log(2000);
        log.begin(0, 0);
        let mut windows = Vec::new();
        for number in 0..5 {
            let mut block = [0; 4096];
            log.transaction(number, &mut block);
            log.committed();
            let view = decode(&block).map_err(|error| error.to_string()).unwrap();
            assert_eq!(view.context_size(), 2000);
            let used: Vec<(u32, u32)> = view.context().filter(|(_, extent)| *extent != LC_FREE).collect();
            windows.push((view.context_start(), used));
        }
        let named = vec![(1999, 0)];
        assert_eq!(windows, [(0, vec![]), (919, vec![]), (1838, named), (0, vec![]), (919, vec![])]);
    }

    /// Random requests; after every transaction the ring is replayed and must name every active extent.
    #[test]
    fn the_ring_always_names_the_active_extents() {
        const BLOCKS: usize = 8;
        let mut seed = 0x5EED_0003u64;
        let mut below = move |limit: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed % limit) as u32
        };
        for slots in [67, 200, 2000] {
            let mut log = log(slots);
            let mut initialised = [0; 4096];
            Transaction::INITIALIZED.encode(&mut initialised);
            let mut ring = vec![initialised; BLOCKS];
            let mut held: Vec<(u32, u32)> = Vec::new();
            let mut number = 0u32.wrapping_sub(20);
            for _ in 0..3000 {
                let first = below(u64::from(slots) * 3 / 2);
                let range = (first, first + below(3));
                match below(3) {
                    0 if log.begin(range.0, range.1) != Begin::NoSlot => held.push(range),
                    1 if !held.is_empty() => {
                        let (first, last) = held.swap_remove(below(held.len() as u64) as usize);
                        log.put(first, last);
                    }
                    _ if log.has_pending() => {
                        log.transaction(number, &mut ring[number as usize % BLOCKS]);
                        number = number.wrapping_add(1);
                        log.committed();
                        check_ring(&log, &ring);
                    }
                    _ => {}
                }
                check_references(&log, &held);
            }
            assert!(log.statistics().changed > 200);
        }
    }

    fn check_ring(log: &TestLog, ring: &[Block]) {
        let mut table = vec![0; log.slots.len()];
        let result = replay(ring.len() as u32, |index| ring.get(index as usize), &mut table);
        let Replay::Replayed { active, .. } = result else { panic!("{result:?}") };
        let on_disk: BTreeSet<u32> = table[..active].iter().copied().collect();
        let in_core: BTreeSet<u32> = log.committed.iter().copied().filter(|extent| *extent != LC_FREE).collect();
        assert_eq!(on_disk, in_core);
    }

    fn check_references(log: &TestLog, held: &[(u32, u32)]) {
        let mut expected: BTreeMap<u32, u32> = BTreeMap::new();
        for extent in held.iter().flat_map(|(first, last)| *first..=*last) {
            *expected.entry(extent).or_default() += 1;
        }
        let found: BTreeMap<u32, u32> =
            log.slots.iter().filter(|slot| slot.references != 0).map(|slot| (slot.assigned, slot.references)).collect();
        assert_eq!(found, expected);
        assert_eq!(log.used() as usize, expected.len());
        let elsewhere = log
            .slots
            .iter()
            .enumerate()
            .filter(|(index, slot)| slot.references != 0 || log.committed[*index] != slot.assigned);
        assert_eq!(usize::from(log.free.length) + usize::from(log.lru.length) + elsewhere.count(), log.slots.len());
    }
}
