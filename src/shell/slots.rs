// SPDX-License-Identifier: GPL-2.0
//! What belongs to a slot of the engine's tables: the bio of an application request, the pages of a peer request.
//!
//! The engine names slots by index and generation; an entry is only found under the name it was put in with.

use engine::resource::{PeerId, RequestId};
use kernel::prelude::*;

/// Name of a slot.
pub(crate) trait SlotName: Copy {
    /// Index in the table, and reuse count.
    fn parts(self) -> (usize, u32);
}

impl SlotName for RequestId {
    #[inline]
    fn parts(self) -> (usize, u32) {
        (usize::from(self.index), self.generation)
    }
}

impl SlotName for PeerId {
    #[inline]
    fn parts(self) -> (usize, u32) {
        (usize::from(self.index), self.generation)
    }
}

/// A table as long as one of the engine's.
pub(crate) struct Slots<T> {
    entries: KVVec<Option<(u32, T)>>,
}

impl<T> Slots<T> {
    /// An empty table of `length` slots. May sleep.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn new(length: usize) -> Result<Self> {
        let mut entries = KVVec::with_capacity(length, GFP_KERNEL)?;
        for _ in 0..length {
            entries.push(None, GFP_KERNEL)?;
        }
        Ok(Slots { entries })
    }

    /// Puts an entry into a slot. Gives back what does not belong there any more: an entry that was left behind, or,
    /// if there is no such slot, the entry itself.
    #[inline]
    #[must_use = "dropping bios or pages under the lock takes time"]
    pub(crate) fn put(&mut self, name: impl SlotName, entry: T) -> Option<T> {
        let (index, generation) = name.parts();
        match self.entries.get_mut(index) {
            Some(place) => place.replace((generation, entry)).map(|(_, old)| old),
            None => Some(entry),
        }
    }

    /// The entry of a slot.
    #[inline]
    pub(crate) fn get(&self, name: impl SlotName) -> Option<&T> {
        let (index, generation) = name.parts();
        match self.entries.get(index)? {
            Some((own, entry)) if *own == generation => Some(entry),
            _ => None,
        }
    }

    /// Takes the entry out of a slot.
    #[inline]
    pub(crate) fn take(&mut self, name: impl SlotName) -> Option<T> {
        let (index, generation) = name.parts();
        self.entries.get_mut(index)?.take_if(|(own, _)| *own == generation).map(|(_, entry)| entry)
    }
}
