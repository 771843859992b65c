//! What the application may see: every write it made, when it began, and when it was acknowledged.

use crate::disk::Stamp;
use crate::node::VOLUME;
use engine::netlink::WireProtocol;
use engine::resource::VolumeId;
use std::collections::{BTreeMap, BTreeSet};

/// Never.
const NEVER: u64 = u64::MAX;

/// A write of the application.
#[derive(Clone, Debug)]
pub struct Written {
    /// Node it was made on.
    pub node: usize,
    /// Volume.
    pub volume: VolumeId,
    /// First sector.
    pub sector: u64,
    /// Sectors.
    pub count: u64,
    /// It leaves zeroes.
    pub zeroes: bool,
    /// When it was submitted.
    pub start_us: u64,
    /// When it was acknowledged; [`u64::MAX`] while it is under way, and for ever when that was lost.
    pub end_us: u64,
    /// It was written with FUA, or a flush was acknowledged that began after it was.
    pub stable: bool,
    /// That flush was acknowledged without a disk here: it may be in the peer's cache only.
    pub elsewhere: bool,
    /// The only good copy lost its power while it was under way: it may be acknowledged and gone.
    pub doomed: bool,
    /// It was made under protocol A: it may be acknowledged before the peer has it.
    pub early: bool,
    /// It was made under protocol C.
    pub strict: bool,
    /// The other Primary's write that it met is in its place: wherever that is, and no longer than that is.
    pub superseded: bool,
}

impl Written {
    fn sectors(&self) -> std::ops::Range<u64> {
        self.sector..self.sector + self.count
    }
}

/// All writes of the application. What is said of sectors is said of the volume that is looked at, see [`crate::World::at`].
pub struct Oracle {
    writes: Vec<Written>,
    by_sector: BTreeMap<(VolumeId, u64), Vec<u32>>,
    /// The volume that is looked at.
    pub looked_at: VolumeId,
}

impl Default for Oracle {
    fn default() -> Self {
        Oracle { writes: Vec::new(), by_sector: BTreeMap::new(), looked_at: VOLUME }
    }
}

impl Oracle {
    /// A write begins; returns the stamp of its sectors.
    pub fn begin(&mut self, node: usize, sector: u64, count: u64, zeroes: bool, now_us: u64) -> Stamp {
        let index = self.writes.len();
        self.writes.push(Written {
            node,
            volume: self.looked_at,
            sector,
            count,
            zeroes,
            start_us: now_us,
            end_us: NEVER,
            stable: false,
            elsewhere: false,
            doomed: false,
            early: false,
            strict: false,
            superseded: false,
        });
        for sector in sector..sector + count {
            self.by_sector.entry((self.looked_at, sector)).or_default().push(index as u32);
        }
        index as Stamp + 1
    }

    /// It was acknowledged; `stable`: and is durable.
    pub fn acknowledge(&mut self, stamp: Stamp, stable: bool, now_us: u64) {
        let write = &mut self.writes[stamp as usize - 1];
        write.end_us = if write.doomed { NEVER } else { now_us };
        write.stable = stable;
    }

    /// Of a sector, in the order in which they began.
    fn writes_to(&self, sector: u64) -> &[u32] {
        self.by_sector.get(&(self.looked_at, sector)).map(Vec::as_slice).unwrap_or_default()
    }

    /// Those that a node's application made to the volume.
    fn writes_on(&mut self, node: usize) -> impl Iterator<Item = &mut Written> {
        let volume = self.looked_at;
        self.writes.iter_mut().filter(move |write| write.node == node && write.volume == volume)
    }

    /// A flush on this node that began at `start_us` was acknowledged; `has_disk`: by its own disk.
    pub fn flushed(&mut self, node: usize, start_us: u64, has_disk: bool) {
        for write in self.writes_on(node).filter(|write| write.end_us < start_us) {
            write.elsewhere = !has_disk && (write.elsewhere || !write.stable);
            write.stable = true;
        }
    }

    /// The only good copy, on this node, lost what was in its cache: the flushes that the other node acknowledged without a
    /// disk promised only that its own power may fail.
    pub fn cache_lost(&mut self, node: usize) {
        for write in self.writes_on(1 - node).filter(|write| write.elsewhere) {
            write.end_us = NEVER;
        }
    }

    /// The other Primary has answered that one of its own writes takes the place of this one.
    pub fn superseded(&mut self, stamp: Stamp) {
        self.writes[stamp as usize - 1].superseded = true;
    }

    /// The power of the node failed that its writes were made on: what no flush has made durable may be gone. With it goes what it had
    /// superseded, which was never on this node's disk.
    pub fn power_cut(&mut self, node: usize) {
        let gone: Vec<Written> =
            self.writes_on(node).filter(|write| !write.stable).map(|write| write.clone()).collect();
        let in_place_of = |write: &Written| {
            gone.iter().any(|winner| {
                let (own, others) = (write.sectors(), winner.sectors());
                let meet = own.start < others.end && others.start < own.end;
                meet && winner.start_us <= write.end_us && write.start_us <= winner.end_us
            })
        };
        for write in self.writes_on(1 - node).filter(|write| write.superseded && in_place_of(write)) {
            write.end_us = NEVER;
        }
        for write in self.writes_on(node).filter(|write| !write.stable) {
            write.end_us = NEVER;
        }
    }

    /// This write is made under this protocol.
    pub fn protocol(&mut self, stamp: Stamp, protocol: WireProtocol) {
        let write = &mut self.writes[stamp as usize - 1];
        write.early = protocol == WireProtocol::A;
        write.strict = protocol == WireProtocol::C;
    }

    /// This node has neither its disk nor the peer any more, whose disk holds these stamps: what was made under protocol A
    /// and has not got there is nowhere. That is two failures at once, and protocol A promises that one is survived.
    pub fn out_of_reach(&mut self, node: usize, held: impl Fn(u64) -> Stamp) {
        let sectors: BTreeSet<u64> =
            self.writes_on(node).filter(|write| write.early).flat_map(|write| write.sectors()).collect();
        for sector in sectors {
            self.forget_newer(sector, held(sector), |write| write.early && write.node == node);
        }
    }

    /// The only good copy lost its power and holds `stamp` in this sector now: what was written later is gone.
    pub fn lost(&mut self, sector: u64, stamp: Stamp) {
        self.forget_newer(sector, stamp, |_| true);
    }

    /// Those of the writes that are newer than what the sector holds may be gone.
    fn forget_newer(&mut self, sector: u64, stamp: Stamp, which: impl Fn(&Written) -> bool) {
        let here = self.by_sector.get(&(self.looked_at, sector)).map(Vec::as_slice).unwrap_or_default();
        let ends = here.iter().map(|&index| &self.writes[index as usize]).zip(here);
        let held = ends.filter(|(write, &index)| match stamp {
            0 => write.zeroes,
            _ => index as Stamp + 1 == stamp,
        });
        let end_us = held.map(|(write, _)| write.end_us).max().unwrap_or(0);
        for &index in here {
            let write = &mut self.writes[index as usize];
            if write.start_us > end_us && which(write) {
                write.end_us = NEVER;
            }
        }
    }

    /// The only good copy lost its power while this write was under way.
    pub fn doom(&mut self, stamp: Stamp) {
        self.writes[stamp as usize - 1].doomed = true;
    }

    /// One of a sector's contents was acknowledged under protocol C, and was written after the other one was acknowledged.
    pub fn is_newer(&self, sector: u64, stamp: Stamp, other: Stamp) -> bool {
        let here = self.writes_to(sector);
        // Zeroes may have been there from the beginning, or be of any of these writes.
        let end_us = match other {
            0 if here.iter().any(|&index| self.writes[index as usize].zeroes) => return false,
            0 => 0,
            _ => self.write(other).map_or(NEVER, |write| write.end_us),
        };
        self.write(stamp).is_some_and(|write| write.strict && write.end_us != NEVER && write.start_us > end_us)
    }

    /// The write of a stamp.
    pub fn write(&self, stamp: Stamp) -> Option<&Written> {
        self.writes.get((stamp as usize).checked_sub(1)?)
    }

    /// Sectors that were ever written.
    pub fn sectors(&self) -> impl Iterator<Item = u64> + '_ {
        self.by_sector.range((self.looked_at, 0)..=(self.looked_at, u64::MAX)).map(|(&(_, sector), _)| sector)
    }

    /// Number of writes.
    pub fn len(&self) -> usize {
        self.writes.len()
    }

    /// No write was made.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// May a read from `start_us` to `end_us` find `stamp` in `sector`? The reason if not.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&self, sector: u64, stamp: Stamp, start_us: u64, end_us: u64) -> Result<(), String> {
        let here = self.writes_to(sector);
        let writes = || here.iter().map(|&index| (index as Stamp + 1, &self.writes[index as usize]));
        // Something acknowledged before the read that began after `end_us` of a candidate hides the candidate.
        let newest_start = writes().filter(|(_, write)| write.end_us < start_us).map(|(_, write)| write.start_us).max();
        let visible = |end_us: u64| newest_start.is_none_or(|start| start <= end_us);
        let allowed = if stamp == 0 {
            visible(0) || writes().any(|(_, write)| write.zeroes && write.start_us <= end_us && visible(write.end_us))
        } else {
            writes().any(|(number, write)| {
                number == stamp && !write.zeroes && write.start_us <= end_us && visible(write.end_us)
            })
        };
        if allowed {
            return Ok(());
        }
        let known: Vec<String> = writes()
            .map(|(number, write)| format!("{number} ({}..{}, node {})", write.start_us, write.end_us, write.node))
            .collect();
        Err(format!(
            "sector {sector} holds {stamp} at {start_us}..{end_us} us, which is older than an acknowledged write; writes: {}",
            known.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seed 15785: the network was cut, the disk failed before the Primary noticed that, and later it read from the peer.
    #[test]
    fn without_disk_and_peer_only_early_writes_of_that_node_may_be_gone() {
        let mut oracle = Oracle::default();
        let mut write = |sector, node, early| {
            let start_us = (oracle.len() as u64 + 1) * 10;
            let stamp = oracle.begin(node, sector, 1, false, start_us);
            if early {
                oracle.protocol(stamp, WireProtocol::A);
            }
            oracle.acknowledge(stamp, false, start_us + 5);
            stamp
        };
        let there = write(0, 0, true);
        let early = write(0, 0, true);
        let old = write(1, 0, true);
        let late = write(1, 0, false);
        let other = [write(2, 1, true), write(2, 1, true)];
        oracle.out_of_reach(0, |sector| [there, old, other[0]][sector as usize]);
        let may_hold = |sector, stamp| oracle.check(sector, stamp, 1000, 1001).is_ok();
        assert!(may_hold(0, there) && may_hold(0, early), "an early write that the peer has not got");
        assert!(!may_hold(0, 0), "the peer has that");
        assert!(!may_hold(1, old) && may_hold(1, late), "not made under protocol A");
        assert!(!may_hold(2, other[0]) && may_hold(2, other[1]), "of the other node");
    }

    /// Seed 50006302: the Primary let its disk go, flushed, and lost its power, and then the peer did.
    #[test]
    fn a_flush_without_a_disk_promises_nothing_of_the_peers_power() {
        for (has_disk, again, cut, is_kept) in [
            (false, false, Some(1), false),
            (false, false, Some(0), true),
            (false, false, None, true),
            (true, false, Some(1), true),
            (true, true, Some(1), true),
            (false, true, Some(1), false),
        ] {
            let mut oracle = Oracle::default();
            let stamp = oracle.begin(0, 0, 8, false, 10);
            oracle.acknowledge(stamp, false, 20);
            oracle.flushed(0, 30, has_disk);
            if again {
                oracle.flushed(0, 40, false);
            }
            if let Some(node) = cut {
                oracle.power_cut(node);
                oracle.cache_lost(node);
            }
            let what = format!("{has_disk}, {again}, {cut:?}");
            assert_eq!(oracle.check(0, 0, 1000, 1001).is_err(), is_kept, "{what}");
        }
        let mut oracle = Oracle::default();
        let stamp = oracle.begin(0, 0, 8, false, 10);
        oracle.acknowledge(stamp, false, 20);
        oracle.flushed(0, 30, false);
        oracle.flushed(0, 40, true);
        oracle.cache_lost(1);
        assert!(oracle.check(0, 0, 1000, 1001).is_err(), "its own disk has flushed since");
    }

    /// Seed 34002467: two Primaries wrote one sector, and the node whose write counted lost its power before it had flushed.
    #[test]
    fn what_was_superseded_is_gone_with_what_took_its_place() {
        let (winner, loser) = (0, 1);
        for (node, start_us, is_kept) in [(winner, 12, false), (winner, 30, true), (loser, 12, true)] {
            let mut oracle = Oracle::default();
            let superseded = oracle.begin(loser, 0, 8, false, 10);
            let other = oracle.begin(node, 7, 8, false, start_us);
            oracle.superseded(superseded);
            oracle.acknowledge(superseded, false, 20);
            oracle.acknowledge(other, false, 40);
            oracle.power_cut(winner);
            assert_eq!(oracle.check(0, 0, 1000, 1001).is_err(), is_kept, "by a write of node {node} at {start_us}");
        }
    }
}
