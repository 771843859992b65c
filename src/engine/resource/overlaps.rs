// SPDX-License-Identifier: GPL-2.0
//! Who has to wait for whom because they touch the same sectors.
//!
//! Every write, and every read or write of a resync, that is under way has an entry here. A new entry waits for all
//! earlier entries that overlap it and whose kind it has to respect ([`Kind::waits_for`]); when the last of them is
//! removed it is ready. Waiting is by arrival, so there is no starvation, and an entry only ever waits for earlier
//! ones, so there is no cycle.
//!
//! Entries are found through buckets of 1 MiB of the device, hashed; a longer range (a discard) is kept in a list of
//! its own that every look-up also visits.
//!
//! # Invariants
//! `waits` of an entry is the number of entries present that are older, overlap it and have a kind it waits for.
//! spec: wire-protocol 5.1, 5.2 (8), 6; state-machine 18.3

use crate::storage::{OutOfMemory, Storage};

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A write of the application on this node.
    Application,
    /// A write received from the peer.
    Peer,
    /// Resync data requested from the source, until it is on the disk (target). Holds back the application.
    ResyncRequest,
    /// Resync data that has arrived and is being written (target). Holds back writes of the peer.
    ResyncWrite,
    /// A block being read for the target (source).
    ResyncRead,
}

impl Kind {
    /// True when a new entry of this kind has to wait for an older entry of kind `older`.
    ///
    /// A write of the peer does not wait for resync data that has not arrived: the source sends that data only after
    /// the same write has been acknowledged by us, so waiting would never end.
    fn waits_for(self, older: Kind) -> bool {
        use Kind::{Application, Peer, ResyncRead, ResyncRequest, ResyncWrite};
        match self {
            Application => true,
            Peer => matches!(older, Application | Peer | ResyncWrite | ResyncRead),
            ResyncRequest => matches!(older, Application),
            ResyncWrite => matches!(older, Peer | ResyncWrite),
            ResyncRead => matches!(older, Application | Peer),
        }
    }
}

const NONE: u32 = u32::MAX;
const BUCKET_SHIFT: u32 = 11; // 2048 sectors, 1 MiB
const BUCKETS: usize = 512;
/// A range touches at most two buckets, or it is in the list of the long ones.
const LONGEST_BUCKETED_SECTORS: u64 = 1 << BUCKET_SHIFT;

#[derive(Clone, Copy)]
struct Entry {
    present: bool,
    kind: Kind,
    volume: u8,
    long: bool,
    first: u64,
    end: u64,
    order: u64,
    waits: u32,
    /// Links in the bucket of the first and of the last sector (the same chain is used once when they are equal).
    next: [u32; 2],
    previous: [u32; 2],
}

const ABSENT: Entry = Entry {
    present: false,
    kind: Kind::Application,
    volume: 0,
    long: false,
    first: 0,
    end: 0,
    order: 0,
    waits: 0,
    next: [NONE; 2],
    previous: [NONE; 2],
};

/// A chain is a list of (entry, which of its two links), packed as `entry * 2 + link`.
pub(super) struct Overlaps<S: Storage> {
    entries: S::Table<Entry>,
    heads: S::Table<u32>,
    next_order: u64,
}

impl<S: Storage> Overlaps<S> {
    /// Room for `entries` entries; an entry's number is chosen by the caller.
    pub(super) fn new(entries: usize) -> Result<Self, OutOfMemory> {
        Ok(Overlaps { entries: S::table(entries, |_| ABSENT)?, heads: S::table(BUCKETS + 1, |_| NONE)?, next_order: 0 })
    }

    /// Adds an entry; returns true when it is ready at once.
    pub(super) fn insert(&mut self, id: u32, kind: Kind, volume: u8, sector: u64, size_bytes: u32) -> bool {
        let end = sector.saturating_add(u64::from(size_bytes).div_ceil(512));
        let order = self.next_order;
        self.next_order += 1;
        let long = end.saturating_sub(sector) > LONGEST_BUCKETED_SECTORS;
        let mut new = Entry { present: true, kind, volume, long, first: sector, end, order, ..ABSENT };
        let mut waits = 0u32;
        self.for_each_overlapping(&new, |_, entry| {
            if kind.waits_for(entry.kind) {
                waits += 1;
            }
        });
        new.waits = waits;
        if let Some(place) = self.entries.get_mut(id as usize) {
            *place = new;
        }
        for link in 0..Self::links(&new) {
            self.chain(id, link);
        }
        waits == 0
    }

    /// Removes an entry and calls `ready` for every entry that waited for it last.
    pub(super) fn remove(&mut self, id: u32, mut ready: impl FnMut(u32)) {
        let Some(gone) = self.entries.get(id as usize).copied().filter(|entry| entry.present) else { return };
        for link in 0..Self::links(&gone) {
            self.unchain(id, link);
        }
        if let Some(place) = self.entries.get_mut(id as usize) {
            *place = ABSENT;
        }
        // Collected in order of arrival by repeated search: there are few, and the order matters.
        let mut after = gone.order;
        loop {
            let mut first: Option<(u64, u32)> = None;
            self.for_each_overlapping(&gone, |other, entry| {
                let waited = entry.order > after && entry.kind.waits_for(gone.kind);
                if waited && first.is_none_or(|(order, _)| entry.order < order) {
                    first = Some((entry.order, other));
                }
            });
            let Some((order, other)) = first else { return };
            after = order;
            if let Some(entry) = self.entries.get_mut(other as usize) {
                entry.waits = entry.waits.saturating_sub(1);
                if entry.waits == 0 {
                    ready(other);
                }
            }
        }
    }

    /// True when the entry waits for nobody.
    pub(super) fn is_ready(&self, id: u32) -> bool {
        self.entries.get(id as usize).is_some_and(|entry| entry.present && entry.waits == 0)
    }

    /// The entry of this kind that starts at `sector`, if there is one.
    pub(super) fn find(&self, kind: Kind, volume: u8, sector: u64) -> Option<u32> {
        let probe = Entry { present: true, volume, first: sector, end: sector.saturating_add(1), ..ABSENT };
        let mut found = None;
        self.for_each_overlapping(&probe, |id, entry| {
            if entry.kind == kind && entry.first == sector {
                found = Some(id);
            }
        });
        found
    }

    /// True when anything of the given kinds overlaps the range.
    pub(super) fn any(&self, volume: u8, sector: u64, size_bytes: u32, mut of: impl FnMut(Kind) -> bool) -> bool {
        let end = sector.saturating_add(u64::from(size_bytes).div_ceil(512));
        let long = end.saturating_sub(sector) > LONGEST_BUCKETED_SECTORS;
        let probe = Entry { present: true, volume, long, first: sector, end, ..ABSENT };
        let mut found = false;
        self.for_each_overlapping(&probe, |_, entry| found |= of(entry.kind));
        found
    }

    fn links(entry: &Entry) -> usize {
        if entry.long || Self::bucket(entry, 0) == Self::bucket(entry, 1) {
            1
        } else {
            2
        }
    }

    fn bucket_of(volume: u8, sector: u64) -> usize {
        let region = sector >> BUCKET_SHIFT;
        // Neighbouring regions go to different buckets; volumes are spread apart.
        ((region ^ (region >> 9) ^ (u64::from(volume) << 4)) % BUCKETS as u64) as usize
    }

    fn bucket(entry: &Entry, link: usize) -> usize {
        if entry.long {
            return BUCKETS;
        }
        let sector = if link == 0 { entry.first } else { entry.end.saturating_sub(1).max(entry.first) };
        Self::bucket_of(entry.volume, sector)
    }

    /// Calls `visit` once for every present entry that overlaps `range`. An entry in two chains is visited from the
    /// chain of its first link, or from that of its second when the search does not come along the first.
    fn for_each_overlapping(&self, range: &Entry, mut visit: impl FnMut(u32, &Entry)) {
        if range.long {
            // Rare and bounded by the table.
            for (id, entry) in self.entries.iter().enumerate() {
                if Self::overlap(entry, range) {
                    visit(id as u32, entry);
                }
            }
            return;
        }
        let buckets = [Self::bucket(range, 0), Self::bucket(range, 1), BUCKETS];
        for (turn, &bucket) in buckets.iter().enumerate() {
            if turn == 1 && bucket == buckets[0] {
                continue;
            }
            let mut at = self.heads.get(bucket).copied().unwrap_or(NONE);
            while at != NONE {
                let (id, link) = (at / 2, (at % 2) as usize);
                let Some(entry) = self.entries.get(id as usize) else { break };
                at = entry.next.get(link).copied().unwrap_or(NONE);
                // Seen before through its other chain?
                let twice = turn == 1
                    && Self::links(entry) == 2
                    && (Self::bucket(entry, 0) == buckets[0] || Self::bucket(entry, 1) == buckets[0]);
                if !twice && Self::overlap(entry, range) {
                    visit(id, entry);
                }
            }
        }
    }

    fn overlap(a: &Entry, b: &Entry) -> bool {
        a.present && a.volume == b.volume && a.first < b.end && b.first < a.end
    }

    fn chain(&mut self, id: u32, link: usize) {
        let Some(bucket) = self.entries.get(id as usize).map(|entry| Self::bucket(entry, link)) else { return };
        let packed = id * 2 + link as u32;
        let head = self.heads.get(bucket).copied().unwrap_or(NONE);
        if head != NONE {
            self.set_previous(head, packed);
        }
        if let Some(entry) = self.entries.get_mut(id as usize) {
            if let (Some(next), Some(previous)) = (entry.next.get_mut(link), entry.previous.get_mut(link)) {
                *next = head;
                *previous = NONE;
            }
        }
        if let Some(place) = self.heads.get_mut(bucket) {
            *place = packed;
        }
    }

    fn unchain(&mut self, id: u32, link: usize) {
        let Some(entry) = self.entries.get(id as usize).copied() else { return };
        let (next, previous) =
            (entry.next.get(link).copied().unwrap_or(NONE), entry.previous.get(link).copied().unwrap_or(NONE));
        if next != NONE {
            self.set_previous(next, previous);
        }
        if previous == NONE {
            if let Some(place) = self.heads.get_mut(Self::bucket(&entry, link)) {
                *place = next;
            }
        } else if let Some(other) = self.entries.get_mut((previous / 2) as usize) {
            if let Some(place) = other.next.get_mut((previous % 2) as usize) {
                *place = next;
            }
        }
    }

    fn set_previous(&mut self, packed: u32, previous: u32) {
        if let Some(entry) = self.entries.get_mut((packed / 2) as usize) {
            if let Some(place) = entry.previous.get_mut((packed % 2) as usize) {
                *place = previous;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::HeapStorage;

    fn remove(overlaps: &mut Overlaps<HeapStorage>, id: u32) -> Vec<u32> {
        let mut ready = Vec::new();
        overlaps.remove(id, |id| ready.push(id));
        ready
    }

    #[test]
    fn a_later_write_waits_for_every_earlier_one_and_is_ready_in_order() {
        let mut overlaps: Overlaps<HeapStorage> = Overlaps::new(8).unwrap();
        assert!(overlaps.insert(0, Kind::Application, 0, 100, 4096));
        assert!(overlaps.insert(1, Kind::Application, 0, 108, 4096), "neighbours do not overlap");
        assert!(!overlaps.insert(2, Kind::Application, 0, 104, 4096));
        assert!(!overlaps.insert(3, Kind::Application, 0, 100, 512), "must queue behind 0 only");
        assert!(overlaps.insert(4, Kind::Application, 1, 100, 4096), "another volume");
        assert!(remove(&mut overlaps, 1).is_empty());
        assert_eq!(remove(&mut overlaps, 0), [2, 3]);
    }

    #[test]
    fn a_write_of_the_peer_passes_resync_data_that_has_not_arrived() {
        let mut overlaps: Overlaps<HeapStorage> = Overlaps::new(8).unwrap();
        assert!(overlaps.insert(0, Kind::ResyncRequest, 0, 0, 1 << 20));
        assert!(overlaps.insert(1, Kind::Peer, 0, 8, 4096));
        assert!(!overlaps.insert(2, Kind::Application, 0, 16, 4096), "the application waits for the resync");
        assert!(!overlaps.insert(3, Kind::ResyncWrite, 0, 0, 1 << 20), "arrived data waits for the peer's write");
        assert!(!overlaps.insert(4, Kind::Peer, 0, 8, 4096), "and the peer's next write for the data");
        assert_eq!(remove(&mut overlaps, 1), [3]);
        assert_eq!(overlaps.find(Kind::ResyncRequest, 0, 0), Some(0));
        assert_eq!(remove(&mut overlaps, 3), [4]);
        assert_eq!(remove(&mut overlaps, 0), [2], "the request is removed only when its data is on the disk");
    }

    /// The index against a list searched from end to end.
    #[test]
    fn agrees_with_a_naive_model() {
        let kinds = [Kind::Application, Kind::Peer, Kind::ResyncRequest, Kind::ResyncWrite, Kind::ResyncRead];
        let mut seed = 7u64;
        let mut random = move |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        let mut overlaps: Overlaps<HeapStorage> = Overlaps::new(64).unwrap();
        let mut model: Vec<(u32, Kind, u8, u64, u64)> = Vec::new(); // in order of arrival
        let waits = |model: &[(u32, Kind, u8, u64, u64)], at: usize| {
            let (_, kind, volume, first, end) = model[at];
            model[..at].iter().any(|&(_, k, v, f, e)| kind.waits_for(k) && v == volume && f < end && first < e)
        };
        for _ in 0..20_000 {
            let id = random(64) as u32;
            if let Some(at) = model.iter().position(|entry| entry.0 == id) {
                let before: Vec<u32> = (0..model.len()).filter(|&i| !waits(&model, i)).map(|i| model[i].0).collect();
                model.remove(at);
                let expected: Vec<u32> = (0..model.len())
                    .filter(|&i| !waits(&model, i))
                    .map(|i| model[i].0)
                    .filter(|id| !before.contains(id))
                    .collect();
                assert_eq!(remove(&mut overlaps, id), expected);
            } else {
                let (kind, volume) = (kinds[random(5) as usize], random(2) as u8);
                let size = if random(50) == 0 { 8 << 20 } else { (1 + random(2048)) as u32 * 512 };
                let first = random(4096 * 3);
                model.push((id, kind, volume, first, first + u64::from(size) / 512));
                let ready = overlaps.insert(id, kind, volume, first, size);
                assert_eq!(ready, !waits(&model, model.len() - 1));
            }
        }
    }
}
