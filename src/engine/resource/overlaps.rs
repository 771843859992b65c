// SPDX-License-Identifier: GPL-2.0
//! Who has to wait for whom because they touch the same sectors.
//!
//! Every write, and every read or write of a resync, that is under way has an entry here. An entry that is blocked by
//! another one ([`Overlaps::blocks`]) waits; it becomes ready when the last that blocks it is gone. Once *active* it is
//! on its way to the disk or the peer and does not wait again.
//!
//! Waiting is by arrival, so there is no starvation. The exception are the writes of a peer that is Primary as well: they
//! do not wait for local writes that have not been sent yet, because those in turn have to wait for the peer's.
//! Nothing waits for an entry that (over whatever detour) waits for it: active entries wait for nobody; among the others
//! an application write may wait for a younger write of the peer, but no write of the peer waits for it.
//!
//! Entries are found through buckets of 1 MiB of the device, hashed; a longer range (a discard) is kept in a list of
//! its own that every look-up also visits.
//! spec: wire-protocol 5.1, 5.2 (8), 6; state-machine 18.3, 18.12

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
    /// On its way; waits for nobody any more.
    active: bool,
    /// Told to be ready; becomes active or waits again.
    ready: bool,
    /// A local write that the peer wants to be done again: the peer's write goes first.
    yielding: bool,
    /// A local write that the peer has answered.
    answered: bool,
    /// A local write whose local part is over.
    written: bool,
    first: u64,
    end: u64,
    order: u64,
    /// Links in the bucket of the first and of the last sector (the same chain is used once when they are equal).
    next: [u32; 2],
    previous: [u32; 2],
}

const ABSENT: Entry = Entry {
    present: false,
    kind: Kind::Application,
    volume: 0,
    long: false,
    active: false,
    ready: false,
    yielding: false,
    answered: false,
    written: false,
    first: 0,
    end: 0,
    order: 0,
    next: [NONE; 2],
    previous: [NONE; 2],
};

/// A chain is a list of (entry, which of its two links), packed as `entry * 2 + link`.
pub(super) struct Overlaps<S: Storage> {
    entries: S::Table<Entry>,
    heads: S::Table<u32>,
    next_order: u64,
    /// This node decides conflicts of two Primaries: writes of the peer do not wait for the application's.
    resolves: bool,
}

impl<S: Storage> Overlaps<S> {
    /// Room for `entries` entries; an entry's number is chosen by the caller.
    pub(super) fn new(entries: usize) -> Result<Self, OutOfMemory> {
        Ok(Overlaps {
            entries: S::table(entries, |_| ABSENT)?,
            heads: S::table(BUCKETS + 1, |_| NONE)?,
            next_order: 0,
            resolves: false,
        })
    }

    /// Whether this node decides conflicts of two Primaries.
    pub(super) fn set_resolves(&mut self, resolves: bool) {
        self.resolves = resolves;
    }

    /// True when `other` keeps `entry` from starting.
    ///
    /// A write of the peer does not wait for resync data that has not arrived: the source sends that data only after
    /// the same write has been acknowledged by us, so waiting would never end.
    fn blocks(&self, other: &Entry, entry: &Entry) -> bool {
        use Kind::{Application, Peer, ResyncRead, ResyncRequest, ResyncWrite};
        let older = other.order < entry.order;
        match (entry.kind, other.kind) {
            (Application, Peer) => older || other.active,
            (Application, _) => older,
            // The peer answered our write before it sent its own, so there is nothing to decide: ours goes first. A write that
            // ours overrides counts as done for the peer when it hears of that: by then ours has to be on the disk here. That is
            // all there is to wait for: the end of ours may depend on what the peer has to hear of before, and that one on this.
            (Peer, Application) if self.resolves => {
                other.active && !other.written && (other.answered || covers(other, entry))
            }
            (Peer, Application) => other.active && !other.yielding,
            (Peer, Peer | ResyncWrite | ResyncRead) => older,
            (Peer, ResyncRequest) => false,
            (ResyncRequest, Application) | (ResyncWrite, Peer | ResyncWrite) | (ResyncRead, Application | Peer) => {
                older
            }
            (ResyncRequest | ResyncWrite | ResyncRead, _) => false,
        }
    }

    /// Whether this entry is present.
    pub(super) fn has(&self, id: u32) -> bool {
        self.entries.get(id as usize).is_some_and(|entry| entry.present)
    }

    /// Number of entries present. Looks at all of them.
    pub(super) fn used(&self) -> usize {
        self.entries.iter().filter(|entry| entry.present).count()
    }

    /// Adds an entry; returns true when it is ready at once.
    pub(super) fn insert(&mut self, id: u32, kind: Kind, volume: u8, sector: u64, size_bytes: u32) -> bool {
        let end = sector.saturating_add(u64::from(size_bytes).div_ceil(512));
        let order = self.next_order;
        self.next_order += 1;
        let long = end.saturating_sub(sector) > LONGEST_BUCKETED_SECTORS;
        let mut new = Entry { present: true, kind, volume, long, first: sector, end, order, ..ABSENT };
        // Everything but the writes of two Primaries is active as soon as it is ready.
        new.ready = !self.is_blocked(&new, id);
        new.active = new.ready && kind != Kind::Application;
        if let Some(place) = self.entries.get_mut(id as usize) {
            *place = new;
        }
        for link in 0..Self::links(&new) {
            self.chain(id, link);
        }
        new.ready
    }

    fn is_blocked(&self, entry: &Entry, id: u32) -> bool {
        let mut blocked = false;
        self.for_each_overlapping(entry, |other, found| blocked |= other != id && self.blocks(found, entry));
        blocked
    }

    /// A ready application write wants to start now. False: a write of the peer came between, it is told again.
    pub(super) fn activate(&mut self, id: u32) -> bool {
        let Some(entry) = self.entries.get(id as usize).copied().filter(|entry| entry.present) else { return true };
        let blocked = !entry.active && self.is_blocked(&entry, id);
        if let Some(place) = self.entries.get_mut(id as usize) {
            place.active = !blocked;
            place.ready = !blocked;
        }
        !blocked
    }

    /// A local write lets the writes of the peer pass that overlap it; calls `ready` for those that can start.
    pub(super) fn yield_to_peer(&mut self, id: u32, ready: impl FnMut(u32)) {
        let Some(place) = self.entries.get_mut(id as usize).filter(|entry| entry.present) else { return };
        place.yielding = true;
        let entry = *place;
        self.release_waiters(&entry, ready);
    }

    /// A write of the peer overlaps this local write.
    pub(super) fn meets_peer(&self, id: u32) -> bool {
        let Some(entry) = self.entries.get(id as usize).copied().filter(|entry| entry.present) else { return false };
        let mut meets = false;
        self.for_each_overlapping(&entry, |_, found| meets |= found.kind == Kind::Peer);
        meets
    }

    /// The peer has answered a local write that is still on its way to the local disk.
    pub(super) fn answered(&mut self, id: u32) {
        if let Some(entry) = self.entries.get_mut(id as usize).filter(|entry| entry.present) {
            entry.answered = true;
        }
    }

    /// The local part of a local write is over, or there is none; with `tell`, `ready` is called for the writes of the peer
    /// that waited for that.
    pub(super) fn written(&mut self, id: u32, tell: bool, ready: impl FnMut(u32)) {
        let Some(place) = self.entries.get_mut(id as usize).filter(|entry| entry.present && !entry.written) else {
            return;
        };
        place.written = true;
        let entry = *place;
        if self.resolves && tell {
            self.release_waiters(&entry, ready);
        }
    }

    /// Calls `visit` for every local write under way that a write of the peer conflicts with.
    pub(super) fn for_each_conflicting(&self, id: u32, mut visit: impl FnMut(u32)) {
        let Some(entry) = self.entries.get(id as usize).copied().filter(|entry| entry.present) else { return };
        self.for_each_overlapping(&entry, |other, found| {
            if other != id && found.kind == Kind::Application && found.active && !found.answered {
                visit(other);
            }
        });
    }

    /// Calls `visit` for every local write under way that overlaps the entry and yields to it.
    pub(super) fn for_each_yielding(&self, id: u32, mut visit: impl FnMut(u32)) {
        let Some(entry) = self.entries.get(id as usize).copied().filter(|entry| entry.present) else { return };
        self.for_each_overlapping(&entry, |other, found| {
            if found.yielding {
                visit(other);
            }
        });
    }

    /// How a write of the peer meets the local writes under way: `None` when it meets none, otherwise whether one of
    /// them covers it completely. spec: wire-protocol 6
    pub(super) fn conflict(&self, id: u32) -> Option<bool> {
        let entry = self.entries.get(id as usize).copied().filter(|entry| entry.present)?;
        let mut covered = None;
        self.for_each_overlapping(&entry, |other, found| {
            if other != id && found.kind == Kind::Application && found.active && !found.answered {
                covered = Some(covered.unwrap_or(false) || covers(found, &entry));
            }
        });
        covered
    }

    /// True when a write of the application is under way in the range for whose number `wanted` holds.
    pub(super) fn any_application(
        &self,
        volume: u8,
        sector: u64,
        size_bytes: u32,
        wanted: impl Fn(u32) -> bool,
    ) -> bool {
        let end = sector.saturating_add(u64::from(size_bytes).div_ceil(512));
        let long = end.saturating_sub(sector) > LONGEST_BUCKETED_SECTORS;
        let range = Entry { present: true, volume, long, first: sector, end, ..ABSENT };
        let mut found = false;
        self.for_each_overlapping(&range, |other, entry| {
            found |= entry.active && entry.kind == Kind::Application && wanted(other);
        });
        found
    }

    /// Removes an entry and calls `ready` for every entry that nothing blocks any more.
    pub(super) fn remove(&mut self, id: u32, ready: impl FnMut(u32)) {
        let Some(gone) = self.entries.get(id as usize).copied().filter(|entry| entry.present) else { return };
        for link in 0..Self::links(&gone) {
            self.unchain(id, link);
        }
        if let Some(place) = self.entries.get_mut(id as usize) {
            *place = ABSENT;
        }
        self.release_waiters(&gone, ready);
    }

    /// In order of arrival, by repeated search: there are few, and the order matters.
    fn release_waiters(&mut self, range: &Entry, mut ready: impl FnMut(u32)) {
        let mut after = None;
        loop {
            let mut first: Option<(u64, u32)> = None;
            self.for_each_overlapping(range, |other, entry| {
                let next = !entry.ready && after.is_none_or(|after| entry.order > after);
                if next && first.is_none_or(|(order, _)| entry.order < order) {
                    first = Some((entry.order, other));
                }
            });
            let Some((order, other)) = first else { return };
            after = Some(order);
            let Some(entry) = self.entries.get(other as usize).copied() else { return };
            if !self.is_blocked(&entry, other) {
                if let Some(place) = self.entries.get_mut(other as usize) {
                    place.ready = true;
                    place.active = place.kind != Kind::Application;
                }
                ready(other);
            }
        }
    }

    /// The entry of this kind that starts at `sector` and is `wanted`, if there is one.
    pub(super) fn find(&self, kind: Kind, volume: u8, sector: u64, wanted: impl Fn(u32) -> bool) -> Option<u32> {
        let probe = Entry { present: true, volume, first: sector, end: sector.saturating_add(1), ..ABSENT };
        let mut found = None;
        self.for_each_overlapping(&probe, |id, entry| {
            if entry.kind == kind && entry.first == sector && wanted(id) {
                found = Some(id);
            }
        });
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

/// Nothing of `inner` is outside of `outer`.
fn covers(outer: &Entry, inner: &Entry) -> bool {
    outer.first <= inner.first && outer.end >= inner.end
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::HeapStorage;

    /// Removes an entry; application writes that become ready start at once.
    fn remove(overlaps: &mut Overlaps<HeapStorage>, id: u32) -> Vec<u32> {
        let mut ready = Vec::new();
        overlaps.remove(id, |id| ready.push(id));
        for &id in &ready {
            assert!(overlaps.activate(id));
        }
        ready
    }

    /// Removes an entry; tells what becomes ready.
    fn remove_ready(overlaps: &mut Overlaps<HeapStorage>, id: u32) -> Vec<u32> {
        let mut ready = Vec::new();
        overlaps.remove(id, |id| ready.push(id));
        ready
    }

    fn insert(
        overlaps: &mut Overlaps<HeapStorage>,
        id: u32,
        kind: Kind,
        volume: u8,
        sector: u64,
        size_bytes: u32,
    ) -> bool {
        overlaps.insert(id, kind, volume, sector, size_bytes) && overlaps.activate(id)
    }

    #[test]
    fn a_later_write_waits_for_every_earlier_one_and_is_ready_in_order() {
        let mut overlaps: Overlaps<HeapStorage> = Overlaps::new(8).unwrap();
        assert!(insert(&mut overlaps, 0, Kind::Application, 0, 100, 4096));
        assert!(insert(&mut overlaps, 1, Kind::Application, 0, 108, 4096), "neighbours do not overlap");
        assert!(!insert(&mut overlaps, 2, Kind::Application, 0, 104, 4096));
        assert!(!insert(&mut overlaps, 3, Kind::Application, 0, 100, 512), "must queue behind 0 only");
        assert!(insert(&mut overlaps, 4, Kind::Application, 1, 100, 4096), "another volume");
        assert!(remove(&mut overlaps, 1).is_empty());
        assert_eq!(remove(&mut overlaps, 0), [2, 3]);
    }

    #[test]
    fn a_write_of_the_peer_passes_resync_data_that_has_not_arrived() {
        let mut overlaps: Overlaps<HeapStorage> = Overlaps::new(8).unwrap();
        assert!(insert(&mut overlaps, 0, Kind::ResyncRequest, 0, 0, 1 << 20));
        assert!(insert(&mut overlaps, 1, Kind::Peer, 0, 8, 4096));
        assert!(!insert(&mut overlaps, 2, Kind::Application, 0, 16, 4096), "the application waits for the resync");
        assert!(!insert(&mut overlaps, 3, Kind::ResyncWrite, 0, 0, 1 << 20), "arrived data waits for the peer's write");
        assert!(!insert(&mut overlaps, 4, Kind::Peer, 0, 8, 4096), "and the peer's next write for the data");
        assert_eq!(remove(&mut overlaps, 1), [3]);
        assert_eq!(overlaps.find(Kind::ResyncRequest, 0, 0, |_| true), Some(0));
        assert_eq!(remove(&mut overlaps, 3), [4]);
        assert_eq!(remove(&mut overlaps, 0), [2], "the request is removed only when its data is on the disk");
    }

    #[test]
    fn with_two_primaries_the_peers_write_passes_what_has_not_been_sent() {
        let mut overlaps: Overlaps<HeapStorage> = Overlaps::new(8).unwrap();
        // Ready, but it has to wait for the activity log.
        assert!(overlaps.insert(0, Kind::Application, 0, 0, 4096));
        assert!(overlaps.insert(1, Kind::Peer, 0, 0, 4096));
        assert!(!overlaps.activate(0), "a write of the peer is on the disk");
        assert_eq!(remove(&mut overlaps, 1), [0]);
    }

    #[test]
    fn the_node_that_does_not_decide_waits_until_its_write_yields() {
        let mut overlaps: Overlaps<HeapStorage> = Overlaps::new(8).unwrap();
        assert!(insert(&mut overlaps, 0, Kind::Application, 0, 0, 8192));
        assert!(!overlaps.insert(1, Kind::Peer, 0, 8, 4096));
        let mut ready = Vec::new();
        overlaps.yield_to_peer(0, |id| ready.push(id));
        assert_eq!(ready, [1]);
        let mut yielding = Vec::new();
        overlaps.for_each_yielding(1, |id| yielding.push(id));
        assert_eq!(yielding, [0]);
    }

    #[test]
    fn the_node_that_decides_tells_how_writes_meet() {
        let mut overlaps: Overlaps<HeapStorage> = Overlaps::new(8).unwrap();
        overlaps.set_resolves(true);
        assert!(insert(&mut overlaps, 0, Kind::Application, 0, 0, 8192));
        assert!(!overlaps.insert(1, Kind::Peer, 0, 8, 4096), "overridden, but not before ours is on the disk");
        let mut ready = Vec::new();
        overlaps.written(0, true, |id| ready.push(id));
        assert_eq!(ready, [1]);
        assert_eq!(overlaps.conflict(1), Some(true), "covered completely");
        assert!(remove(&mut overlaps, 1).is_empty());
        assert!(overlaps.insert(2, Kind::Peer, 0, 12, 4096));
        assert_eq!(overlaps.conflict(2), Some(false));
        assert!(overlaps.insert(3, Kind::Peer, 0, 100, 4096));
        assert_eq!(overlaps.conflict(3), None);
    }

    #[test]
    fn a_local_write_that_the_peer_has_answered_is_no_conflict() {
        let mut overlaps: Overlaps<HeapStorage> = Overlaps::new(8).unwrap();
        overlaps.set_resolves(true);
        assert!(insert(&mut overlaps, 0, Kind::Application, 0, 0, 8192));
        overlaps.answered(0);
        assert!(!overlaps.insert(1, Kind::Peer, 0, 8, 4096), "it was sent later, and waits");
        assert_eq!(remove_ready(&mut overlaps, 0), [1]);
        assert_eq!(overlaps.conflict(1), None);
    }

    /// The index against a list searched from end to end, without and with writes of the peer (how those pass writes of
    /// the application is tested above).
    #[test]
    fn agrees_with_a_naive_model() {
        use Kind::{Application, Peer, ResyncRead, ResyncRequest, ResyncWrite};
        agrees([Application, ResyncRequest, ResyncWrite, ResyncRead]);
        agrees([Peer, ResyncRequest, ResyncWrite, ResyncRead]);
    }

    fn agrees(kinds: [Kind; 4]) {
        let mut seed = 7u64;
        let mut random = move |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        let mut overlaps: Overlaps<HeapStorage> = Overlaps::new(64).unwrap();
        let mut model: Vec<(u32, Entry)> = Vec::new(); // in order of arrival
        let blocked = |overlaps: &Overlaps<HeapStorage>, model: &[(u32, Entry)], new: &Entry| {
            let blocks = |other: &Entry| Overlaps::<HeapStorage>::overlap(other, new) && overlaps.blocks(other, new);
            model.iter().any(|(_, other)| other.order != new.order && blocks(other))
        };
        for order in 0..20_000 {
            let id = random(64) as u32;
            if let Some(at) = model.iter().position(|entry| entry.0 == id) {
                model.remove(at);
                let mut expected = Vec::new();
                for at in 0..model.len() {
                    let (id, entry) = model[at];
                    if !entry.active && !blocked(&overlaps, &model, &entry) {
                        expected.push(id);
                        model[at].1.active = true;
                    }
                }
                assert_eq!(remove(&mut overlaps, id), expected);
            } else {
                let (kind, volume) = (kinds[random(4) as usize], random(2) as u8);
                let size = if random(50) == 0 { 8 << 20 } else { (1 + random(2048)) as u32 * 512 };
                let first = random(4096 * 3);
                let end = first + u64::from(size) / 512;
                let mut new = Entry { present: true, kind, volume, first, end, order, ..ABSENT };
                new.active = !blocked(&overlaps, &model, &new);
                model.push((id, new));
                assert_eq!(insert(&mut overlaps, id, kind, volume, first, size), new.active);
            }
        }
    }
}
