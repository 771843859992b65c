// SPDX-License-Identifier: GPL-2.0
//! A queue of fixed capacity.
//!
//! # Invariants
//! At most `table.len()` entries. A full queue refuses; it never drops and never grows. Capacities are chosen so that
//! what may be queued (one entry a slot, plus a bounded number of control entries) always fits.

use crate::storage::{OutOfMemory, Storage};

/// First in, first out, of `Copy` entries.
pub(super) struct Ring<T: Copy + 'static, S: Storage> {
    table: S::Table<Option<T>>,
    first: usize,
    len: usize,
}

impl<T: Copy + 'static, S: Storage> Ring<T, S> {
    /// A queue for `capacity` entries (at least 1).
    pub(super) fn new(capacity: usize) -> Result<Self, OutOfMemory> {
        Ok(Ring { table: S::table(capacity.max(1), |_| None)?, first: 0, len: 0 })
    }

    /// Number of entries.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// True without entries.
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Entries that still fit.
    pub(super) fn free(&self) -> usize {
        self.table.len().saturating_sub(self.len)
    }

    /// Appends; false when full.
    #[must_use]
    pub(super) fn push(&mut self, entry: T) -> bool {
        let capacity = self.table.len();
        if self.len >= capacity {
            return false;
        }
        let mut at = self.first + self.len;
        if at >= capacity {
            at -= capacity;
        }
        if let Some(place) = self.table.get_mut(at) {
            *place = Some(entry);
            self.len += 1;
        }
        true
    }

    /// The oldest entry.
    pub(super) fn front(&self) -> Option<T> {
        self.get(0)
    }

    /// The entry that is `position` places behind the oldest one.
    pub(super) fn get(&self, position: usize) -> Option<T> {
        if position >= self.len {
            return None;
        }
        let mut at = self.first + position;
        if at >= self.table.len() {
            at -= self.table.len();
        }
        self.table.get(at).copied().flatten()
    }

    /// Removes the oldest entry.
    pub(super) fn pop(&mut self) -> Option<T> {
        if self.len == 0 {
            return None;
        }
        let entry = self.table.get_mut(self.first).and_then(Option::take);
        self.first += 1;
        if self.first >= self.table.len() {
            self.first = 0;
        }
        self.len -= 1;
        entry
    }

    /// Removes the oldest entry for which `wanted` holds; the others keep their order.
    pub(super) fn pop_if(&mut self, wanted: impl Fn(&T) -> bool) -> Option<T> {
        if self.front().is_some_and(|entry| wanted(&entry)) {
            return self.pop();
        }
        let mut found = None;
        self.retain(|entry| {
            let takes = found.is_none() && wanted(entry);
            if takes {
                found = Some(*entry);
            }
            !takes
        });
        found
    }

    /// Forgets every entry.
    pub(super) fn clear(&mut self) {
        while self.pop().is_some() {}
    }

    /// Changes entries where they are.
    pub(super) fn for_each_mut(&mut self, change: impl FnMut(&mut T)) {
        self.table.iter_mut().flatten().for_each(change);
    }

    /// Keeps the entries for which `keep` holds, in order.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        for _ in 0..self.len {
            if let Some(entry) = self.pop() {
                if keep(&entry) {
                    let _fits = self.push(entry);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::HeapStorage;

    #[test]
    fn what_is_wanted_is_taken_from_the_middle() {
        let mut ring: Ring<u32, HeapStorage> = Ring::new(4).unwrap();
        for entry in [1, 2, 3, 4] {
            assert!(ring.push(entry));
        }
        assert_eq!(ring.pop_if(|entry| entry % 2 == 0), Some(2));
        assert_eq!(ring.pop_if(|entry| *entry > 4), None);
        assert_eq!([ring.pop(), ring.pop(), ring.pop(), ring.pop()], [Some(1), Some(3), Some(4), None]);
    }

    #[test]
    fn keeps_order_over_the_end_of_the_table_and_refuses_when_full() {
        let mut ring: Ring<u32, HeapStorage> = Ring::new(3).unwrap();
        for round in 0..5u32 {
            assert!(ring.push(round * 3) && ring.push(round * 3 + 1) && ring.push(round * 3 + 2));
            assert!(!ring.push(99), "a full queue must refuse");
            assert_eq!(ring.pop(), Some(round * 3));
            assert_eq!(ring.front(), Some(round * 3 + 1));
            ring.retain(|entry| entry % 3 == 2);
            assert_eq!((ring.len(), ring.free()), (1, 2));
            let mut seen = 0;
            ring.for_each_mut(|_| seen += 1);
            assert_eq!(seen, 1, "what was taken is still there");
            assert_eq!(ring.pop(), Some(round * 3 + 2));
            assert!(ring.is_empty() && ring.pop().is_none());
        }
    }
}
