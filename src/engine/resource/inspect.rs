// SPDX-License-Identifier: GPL-2.0
//! Looking at data: which algorithms there are, and what follows from a digest or from nothing but zeroes.
//!
//! The engine cannot compute digests. The owner tells, before a configuration names an algorithm, that it can
//! ([`Engine::know_algorithm`]); a name that nobody told about is refused with the number that belongs to its option.
//! When the data of a slot has been read and something is to be found out about it, the owner is asked to
//! ([`LocalIo::Inspect`]); all comparisons are made here.
//!
//! An algorithm that the *peer* names while connected may be unknown. Then the receiver waits, the owner is asked to
//! look for it ([`Work::Algorithms`]) and the packet is carried out when it has.
//! spec: wire-protocol 4.5, 8.6, 8.8

use super::api::{Digest, Finding, Inspect, IoResult, LocalIo, PeerId, VolumeId, Wakes, MAX_DIGEST_BYTES};
use super::incoming::Fault;
use super::outgoing::{DataOut, MetaOut};
use super::slots::{PeerKind, PeerPhase, PeerRequest};
use super::work::Work;
use super::Engine;
use crate::metadata::BM_BLOCK_SECTORS;
use crate::netlink::{NetConf, RetCode};
use crate::state::Conn;
use crate::storage::{OutOfMemory, Storage};
use crate::wire::command::Command;
use crate::wire::{BlockRequest, Text, FEATURE_THIN_RESYNC};

/// Bound: algorithms that a resource can know in its life.
const MAX_ALGORITHMS: usize = 16;

/// Name of an algorithm as the configuration gives it.
pub type AlgorithmName = Text<64>;

/// The algorithms the owner can compute, with the sizes of their digests; and what the peer named that nobody has looked
/// for yet.
pub(super) struct Algorithms<S: Storage> {
    known: S::Table<Option<(AlgorithmName, u8)>>,
    /// `verify-alg`, `csums-alg` and `data-integrity-alg` of the peer's packet.
    wanted: S::Table<AlgorithmName>,
    /// `data-integrity-alg` of what is sent, and of what is received.
    integrity: S::Table<AlgorithmName>,
}

impl<S: Storage> Algorithms<S> {
    /// None.
    pub(super) fn new() -> Result<Self, OutOfMemory> {
        Ok(Algorithms {
            known: S::table(MAX_ALGORITHMS, |_| None)?,
            wanted: S::table(3, |_| AlgorithmName::EMPTY)?,
            integrity: S::table(2, |_| AlgorithmName::EMPTY)?,
        })
    }

    /// Size of a digest in bytes; `None` when the algorithm is unknown.
    fn size_of(&self, name: &AlgorithmName) -> Option<u8> {
        self.known.iter().flatten().find(|(known, _)| known == name).map(|&(_, size)| size)
    }

    /// True when there is nothing to know, or it is known.
    fn know(&self, name: &AlgorithmName) -> bool {
        name.is_empty() || self.size_of(name).is_some()
    }

    fn wanted(&self) -> [AlgorithmName; 3] {
        let name = |at: usize| self.wanted.get(at).copied().unwrap_or(AlgorithmName::EMPTY);
        [name(0), name(1), name(2)]
    }

    fn want(&mut self, names: [&AlgorithmName; 3]) {
        for (place, name) in self.wanted.iter_mut().zip(names) {
            *place = *name;
        }
    }

    fn integrity(&self, direction: Direction) -> AlgorithmName {
        self.integrity.get(direction as usize).copied().unwrap_or(AlgorithmName::EMPTY)
    }
}

/// Which data a digest goes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// What this node sends: its own configuration rules.
    Sent = 0,
    /// What the peer sends: as the peer said.
    Received = 1,
}

impl<S: Storage> Engine<S> {
    // Which algorithms there are.

    /// The owner can compute digests by this algorithm, of so many bytes (1..=[`MAX_DIGEST_BYTES`]). To be told before a
    /// request of the administrator that names it. False: no room for another one.
    pub fn know_algorithm(&mut self, name: &AlgorithmName, digest_bytes: usize) -> bool {
        if self.algorithms.know(name) {
            return true;
        }
        let size = u8::try_from(digest_bytes).ok().filter(|_| (1..=MAX_DIGEST_BYTES).contains(&digest_bytes));
        match (self.algorithms.known.iter_mut().find(|place| place.is_none()), size) {
            (Some(place), Some(size)) => {
                *place = Some((*name, size));
                true
            }
            _ => false,
        }
    }

    /// The owner can compute digests by this algorithm.
    pub(super) fn knows_algorithm(&self, name: &AlgorithmName) -> bool {
        self.algorithms.know(name)
    }

    /// spec: netlink 6 CONNECT, CHG_NET_OPTS
    pub(super) fn check_algorithms(&self, conf: &NetConf) -> Result<(), RetCode> {
        let algorithms = [
            (&conf.integrity_alg, RetCode::IntegrityAlg),
            (&conf.csums_alg, RetCode::CsumsAlg),
            (&conf.verify_alg, RetCode::VerifyAlg),
        ];
        for (name, code) in algorithms {
            if !self.algorithms.know(name) {
                return Err(code);
            }
        }
        Ok(())
    }

    /// An algorithm cannot change while it is in use.
    pub(super) fn check_algorithms_unused(&self, conf: &NetConf) -> Result<(), RetCode> {
        let net = &self.link.net;
        let any = |from, to| self.volumes_with(move |volume| (from..=to).contains(&volume.state.conn)).next().is_some();
        let resyncing = any(Conn::SyncSource, Conn::SyncTarget) || any(Conn::PausedSyncS, Conn::PausedSyncT);
        if conf.csums_alg != net.csums_alg && resyncing {
            return Err(RetCode::CsumsResyncRunning);
        }
        if conf.verify_alg != net.verify_alg && any(Conn::VerifyS, Conn::VerifyT) {
            return Err(RetCode::VerifyRunning);
        }
        Ok(())
    }

    /// P_SYNC_PARAM89 with other algorithms than ours, while connected: they are adopted if they can be had.
    pub(super) fn adopt_algorithms(&mut self, verify_alg: &AlgorithmName, csums_alg: &AlgorithmName) {
        let integrity = self.algorithms.integrity(Direction::Received);
        self.algorithms.want([verify_alg, csums_alg, &integrity]);
        self.adopt_or_look();
    }

    /// P_PROTOCOL_UPDATE: from now on the peer's data comes with this digest.
    pub(super) fn adopt_integrity(&mut self, integrity: &AlgorithmName) {
        let Engine { algorithms, link, .. } = self;
        algorithms.want([&link.net.verify_alg, &link.net.csums_alg, integrity]);
        self.adopt_or_look();
    }

    fn adopt_or_look(&mut self) {
        if !self.adopt_wanted() {
            self.link.algorithms_pending = true;
            self.work(Work::Algorithms);
        }
    }

    /// False: one of them is unknown.
    fn adopt_wanted(&mut self) -> bool {
        let [verify_alg, csums_alg, integrity] = self.algorithms.wanted();
        let known = [verify_alg, csums_alg, integrity].iter().all(|name| self.algorithms.know(name));
        if known {
            self.set_integrity(Direction::Received, integrity);
            self.link.net.verify_alg = verify_alg;
            self.link.net.csums_alg = csums_alg;
        }
        known
    }

    /// The algorithms that [`Work::Algorithms`] is about: tell about those that can be computed, then call
    /// [`Engine::algorithms_looked_for`].
    pub fn wanted_algorithms(&self) -> [AlgorithmName; 3] {
        self.algorithms.wanted()
    }

    /// All that can be had of [`Engine::wanted_algorithms`] have been told about.
    pub fn algorithms_looked_for(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        if !core::mem::take(&mut self.link.algorithms_pending) {
            return;
        }
        self.wakes.insert(Wakes::RECEIVER);
        if !self.adopt_wanted() {
            self.fail(Fault::Algorithm { what: "verify-alg, csums-alg or data-integrity-alg" }, Conn::Disconnecting);
        }
    }

    /// Size of a digest by `verify-alg` in bytes; 0 without.
    pub(super) fn verify_digest_bytes(&self) -> u8 {
        self.algorithms.size_of(&self.link.net.verify_alg).unwrap_or(0)
    }

    /// Size of a digest by `csums-alg` in bytes; 0 without.
    fn checksum_bytes(&self) -> u8 {
        self.algorithms.size_of(&self.link.net.csums_alg).unwrap_or(0)
    }

    /// Whether a resync that starts now, with this node as target, compares checksums. spec: wire-protocol 8.6
    pub(super) fn wants_checksums(&self, id: VolumeId) -> bool {
        let crashed = self.volume(id).and_then(|volume| volume.disk.as_ref()).is_some_and(|disk| disk.crashed_primary);
        self.link.apv >= 89 && self.checksum_bytes() > 0 && (crashed || !self.link.net.csums_after_crash_only)
    }

    /// Size of a request to which the answer may be "nothing but zeroes"; 0: none. spec: wire-protocol 8.6
    pub(super) fn thin_request_bytes(&self, id: VolumeId) -> u32 {
        match self.volume(id) {
            Some(volume) if self.link.features & FEATURE_THIN_RESYNC != 0 => volume.conf.rs_discard_granularity,
            _ => 0,
        }
    }

    // Digests that go with data. spec: wire-protocol 3.8, 4.4

    /// The algorithm of what is sent or received from now on.
    pub(super) fn set_integrity(&mut self, direction: Direction, name: AlgorithmName) {
        if let Some(place) = self.algorithms.integrity.get_mut(direction as usize) {
            *place = name;
        }
    }

    /// Bytes of the digest that goes with data; 0: none.
    pub(super) fn integrity_bytes(&self, direction: Direction) -> u8 {
        self.algorithms.integrity.get(direction as usize).map_or(0, |name| {
            if name.is_empty() {
                0
            } else {
                self.algorithms.size_of(name).unwrap_or(0)
            }
        })
    }

    /// The algorithm of the digest between head and payload of the packet that was just taken.
    pub fn sent_integrity(&self) -> AlgorithmName {
        self.algorithms.integrity(Direction::Sent)
    }

    /// Data that is received has to be checked by this algorithm: report with `check_payload` before anything else.
    pub fn received_integrity(&self) -> Option<AlgorithmName> {
        Some(self.algorithms.integrity(Direction::Received)).filter(|name| !name.is_empty())
    }

    /// The digest of the data that has just been received; `None`: it cannot be computed.
    ///
    /// # Errors
    /// [`Fault`]: it is not the one that came with the data, and the connection is given up.
    pub fn check_payload(&mut self, digest: Option<Digest>, now_ms: u64) -> Result<(), Fault> {
        self.now_ms = now_ms;
        if digest == Some(self.payload_digest) {
            Ok(())
        } else {
            Err(self.fail(Fault::Integrity, Conn::ProtocolError))
        }
    }

    // Digests of slots.

    /// The digest that belongs to a slot.
    pub(super) fn digest(&self, peer: PeerId) -> Digest {
        self.digests.get(usize::from(peer.index)).copied().unwrap_or(Digest::EMPTY)
    }

    pub(super) fn keep_digest(&mut self, peer: PeerId, digest: Digest) {
        if let Some(place) = self.digests.get_mut(usize::from(peer.index)) {
            *place = digest;
        }
        if let Some(slot) = self.peers.get_mut(peer) {
            slot.has_digest = true;
        }
    }

    /// The digest at the end of a packet; its size is that of the algorithm.
    pub(super) fn received_digest(&self, command: Command, body: &[u8]) -> Result<Digest, Fault> {
        let expected = match command {
            Command::CsumRsRequest => self.checksum_bytes(),
            _ => self.verify_digest_bytes(),
        };
        let bytes = body.get(BlockRequest::LEN..).unwrap_or_default();
        match Digest::new(bytes) {
            Some(digest) if expected > 0 && bytes.len() == usize::from(expected) => Ok(digest),
            _ => Err(Fault::DigestSize { command, found: bytes.len(), expected }),
        }
    }

    // Looking at data.

    /// The data of this slot has been read: have it looked at.
    pub(super) fn inspect(&mut self, peer: PeerId, what: Inspect) {
        if let Some(slot) = self.peers.get_mut(peer) {
            slot.phase = PeerPhase::Inspect;
        }
        if !self.local.push(LocalIo::Inspect { peer, what }) {
            self.internal_error("the queue of local I/O is full");
        }
        self.wakes.insert(Wakes::LOCAL_IO);
    }

    /// The data of a slot has been looked at. True: it will be sent, keep its pages. May be called in any context.
    pub fn inspected(&mut self, peer: PeerId, finding: Finding, now_ms: u64) -> bool {
        self.now_ms = now_ms;
        let Some(slot) = self.peers.get_mut(peer).filter(|slot| slot.phase == PeerPhase::Inspect) else { return false };
        slot.inspect = None;
        slot.deallocated = finding == Finding::Zeroes(true);
        let slot = *slot;
        match (slot.kind, finding) {
            (PeerKind::ResyncRead, Finding::Digest(own))
                if !slot.orphan && own == self.digest(peer) && !self.is_of_earlier_resync(slot.volume) =>
            {
                self.checksum_equal(peer, &slot);
            }
            (PeerKind::Resync, finding) => self.checksum_made(peer, &slot, finding),
            (PeerKind::VerifyRead, finding) => self.verify_digest_made(peer, &slot, finding),
            (PeerKind::Verify, Finding::Digest(own)) => {
                let equal = own == self.digest(peer);
                self.verify_compared(peer, &slot, equal);
            }
            (PeerKind::Verify, _) => self.verify_compared(peer, &slot, false),
            _ => self.resync_read_done(peer, &slot),
        }
        if self.link.is_closing() {
            self.wakes.insert(Wakes::LINK);
        }
        let replies = |slot: &PeerRequest| slot.kind == PeerKind::ResyncRead && slot.phase == PeerPhase::Reply;
        self.peers.get(peer).is_some_and(|slot| replies(slot) && !slot.deallocated)
    }

    /// The checksums of a block were the same on both sides: for the figures at the end of the resync.
    fn count_equal(&mut self, id: VolumeId, size_bytes: u32) {
        let bits = u64::from(size_bytes / 512).div_ceil(BM_BLOCK_SECTORS);
        self.with_volume(id, |volume| volume.resync.equal_bits = volume.resync.equal_bits.saturating_add(bits));
    }

    /// Source: the target has the same data.
    fn checksum_equal(&mut self, peer: PeerId, slot: &PeerRequest) {
        self.mark_in_sync(slot.volume, slot.sector, slot.size_bytes);
        self.count_equal(slot.volume, slot.size_bytes);
        self.queue_meta(MetaOut::Ack {
            command: Command::RsIsInSync,
            volume: slot.volume,
            sector: slot.sector,
            block_id: slot.block_id,
            size_bytes: slot.size_bytes,
        });
        self.end_read(peer, slot.volume);
        self.check_resync_end(slot.volume);
    }

    /// Target: ask with the checksum of the own data, or without when there is none.
    fn checksum_made(&mut self, peer: PeerId, slot: &PeerRequest, finding: Finding) {
        if slot.orphan {
            self.end_resync_request(peer);
            return;
        }
        if let Finding::Digest(digest) = finding {
            self.keep_digest(peer, digest);
        }
        if let Some(slot) = self.peers.get_mut(peer) {
            slot.phase = PeerPhase::Asked;
        }
        self.queue_data(DataOut::ResyncRequest(peer));
    }

    /// Target: the own data has been read for its checksum. What cannot be read is asked for without.
    pub(super) fn checksum_read_done(&mut self, peer: PeerId, slot: &PeerRequest, what: Inspect, result: IoResult) {
        if result.is_ok() && !slot.orphan {
            self.inspect(peer, what);
            return;
        }
        if let Some(slot) = self.peers.get_mut(peer) {
            slot.inspect = None;
        }
        self.checksum_made(peer, slot, Finding::Failed);
    }

    /// P_RS_IS_IN_SYNC: the data of the source is what this target has already.
    pub(super) fn resync_in_sync(&mut self, id: VolumeId, sector: u64, size_bytes: u32) {
        let Some(peer) = self.asked_for(id, sector, size_bytes) else { return };
        if self.peers.get(peer).is_none_or(|slot| slot.size_bytes != size_bytes || slot.kind != PeerKind::Resync) {
            return;
        }
        if self.runs_resync(id, Conn::SyncTarget) {
            // It may have been written a moment ago, and be in the disk's cache still.
            self.written_in_sync(id, sector, size_bytes);
            self.count_equal(id, size_bytes);
        }
        self.with_volume(id, |volume| volume.resync.arrived_sectors += u64::from(size_bytes / 512));
        self.end_resync_request(peer);
        self.check_resync_end(id);
    }
}
