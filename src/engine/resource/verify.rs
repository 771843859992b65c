// SPDX-License-Identifier: GPL-2.0
//! Online verify: both nodes' data is compared block by block, by digests.
//!
//! The node the administrator asked (VerifyS) asks for the digest of one block of 4 KiB after the other, at the rate the
//! controller allows; the peer (VerifyT) reads and answers; VerifyS then reads its own block, compares, and tells the
//! result. Both set the bit of a block that differs; nothing is repaired, the next connect resyncs it.
//!
//! A block under comparison keeps application writes out on both sides: on VerifyS from the request to the result, on
//! VerifyT from the read to the result. VerifyT reads when the peer has acknowledged the barrier of what was written there before, and
//! VerifyS reads its own block after everything that VerifyT sent before the digest is on the disk. So a difference is one. (A C
//! module as VerifyS reads beside the writes that are sent to it.)
//! spec: wire-protocol 8.8; state-machine 17.6

use super::api::{Digest, Helper, Inspect, PeerId, VolumeId};
use super::incoming::Fault;
use super::outgoing::MetaOut;
use super::overlaps::Kind;
use super::peer::check_range;
use super::slots::{Net, PeerKind, PeerPhase, PeerRequest};
use super::sync::REQUESTS_PER_TURN;
use super::work::LogLine;
use super::{Engine, Sabotage, Volume};
use crate::netlink::WireProtocol;
use crate::state::{Conn, Disk, State};
use crate::storage::Storage;
use crate::wire::command::Command;
use crate::wire::{BlockAck, BlockRequest, BLOCK_BYTES, ID_IN_SYNC, ID_OUT_OF_SYNC, MAX_DATA_BYTES};

/// Sectors of a block.
const BLOCK_SECTORS: u64 = 8;

/// The disk here became Inconsistent during a run, which ended that. A C module as peer goes on with the run, and takes the disk for good
/// until then, whatever it is told: it hears of it once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Untold {
    /// This node compared: at that time, when the peer has ended the run.
    At(u64),
    /// The peer compares: when it says that it does not any more. Until then it gets its digests.
    PeerCompares,
}

/// A verify run, and what the next one goes on with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Verify {
    /// First sector of the next run.
    start_sector: u64,
    /// The next run ends here; all ones: at the end of the device.
    stop_sector: u64,
    /// Next sector to ask for (VerifyS).
    position: u64,
    /// Blocks without a result.
    pub(super) left_blocks: u64,
    /// The start is known (VerifyT learns it from the first request).
    started: bool,
    /// Range out of sync that has been found and not been reported, in sectors: first, number.
    found: Option<(u64, u64)>,
    /// Digests that the peer has and has not told the result of (VerifyT).
    told: u32,
    /// What the peer may not have heard of.
    untold: Option<Untold>,
}

impl Verify {
    /// From the start to the end of the device.
    pub(super) const NEW: Verify = Verify {
        start_sector: 0,
        stop_sector: u64::MAX,
        position: 0,
        left_blocks: 0,
        started: false,
        found: None,
        told: 0,
        untold: None,
    };

    /// Where the run stops early.
    pub(super) fn stop_sector(&self) -> Option<u64> {
        (self.stop_sector != u64::MAX).then_some(self.stop_sector)
    }
}

impl<S: Storage> Engine<S> {
    /// The administrator wants a run: from where, and to where. `None`: where the last one stopped; the end.
    /// Of a run that is under way only the end changes, where this node is the one that compares: nothing begins.
    pub(super) fn plan_verify(&mut self, id: VolumeId, start_sector: Option<u64>, stop_sector: Option<u64>) {
        let Some(volume) = self.volume_mut(id).filter(|volume| volume.state.conn != Conn::VerifyT) else { return };
        if let Some(start) = start_sector.filter(|_| volume.state.conn != Conn::VerifyS) {
            volume.verify.start_sector = start & !(BLOCK_SECTORS - 1);
        }
        volume.verify.stop_sector = stop_sector.unwrap_or(u64::MAX);
    }

    /// The state is VerifyS or VerifyT now.
    pub(super) fn begin_verify(&mut self, id: VolumeId) {
        let apv = self.link.apv;
        let Some(volume) = self.volume_mut(id) else { return };
        let Some(bits) = volume.disk.as_ref().map(|disk| disk.bitmap.bits()) else { return };
        let source = volume.state.conn == Conn::VerifyS;
        let start_bit = match volume.verify.start_sector / BLOCK_SECTORS {
            start if source && apv >= 90 => start.min(bits.saturating_sub(1)),
            _ => 0,
        };
        let verify = &mut volume.verify;
        verify.position = start_bit * BLOCK_SECTORS;
        verify.left_blocks = bits.saturating_sub(start_bit);
        verify.started = source || apv < 90;
        verify.found = None;
        let left_blocks = verify.left_blocks;
        self.begin_run(id, left_blocks);
        if source {
            self.log(LogLine::VerifyStarted { volume: id, sector: start_bit * BLOCK_SECTORS });
        }
    }

    /// The run is over: the next one goes on where it stopped, and begins anew if it came to the end of the device.
    /// spec: state-machine 8 (8), 17.6
    pub(super) fn remember_verify_position(&mut self, id: VolumeId) {
        self.with_volume(id, |volume| {
            let bits = volume.disk.as_ref().map_or(0, |disk| disk.bitmap.bits());
            let left_blocks = volume.verify.left_blocks;
            let done_blocks = if left_blocks == 0 { 0 } else { bits.saturating_sub(left_blocks) };
            volume.verify.start_sector = done_blocks * BLOCK_SECTORS;
        });
        // What is still under way does not count in the next run. The peer gets a result for each digest all the same: until then a C
        // module keeps writes of the application out of the 16 MiB around it, and its receiver may wait behind one.
        let stands = self.volume(id).is_some_and(|volume| volume.state.conn >= Conn::Connected);
        for index in 0..self.peers.capacity() as u16 {
            let left_over = |slot: &&mut PeerRequest| {
                slot.phase != PeerPhase::Free && slot.kind == PeerKind::Verify && slot.volume == id && !slot.orphan
            };
            let Some(slot) = self.peers.at_mut(index).filter(left_over) else { continue };
            slot.orphan = true;
            let slot = *slot;
            // Not when the disk is done with it, which may take its time. What has been asked for is answered when the digest comes.
            if stands && matches!(slot.phase, PeerPhase::Overlap | PeerPhase::Disk | PeerPhase::Inspect) {
                self.tell_result(&slot, true);
            }
        }
    }

    // VerifyS.

    /// Makes the requests that the rate controller allows in this turn.
    pub(super) fn verify_turn(&mut self, id: VolumeId) {
        let now_ms = self.now_ms;
        let Some(volume) = self.volume_mut(id).filter(|volume| is_verifying(volume.state.conn)) else { return };
        volume.resync.progress.advance(volume.verify.left_blocks, now_ms);
        if volume.state.conn != Conn::VerifyS {
            return;
        }
        volume.take_allowance(now_ms);
        self.request_digests(id, REQUESTS_PER_TURN);
        self.check_verify_end(id);
    }

    /// Asks for the digests of so many blocks, as far as the controller allows.
    pub(super) fn request_digests(&mut self, id: VolumeId, most: u32) {
        for _ in 0..most {
            if !self.request_digest(id) {
                return;
            }
        }
    }

    /// Asks for the digest of the next block. False: not now.
    fn request_digest(&mut self, id: VolumeId) -> bool {
        let can_stop = self.can_stop_verify();
        let Some(volume) = self.volume(id) else { return false };
        let sector = volume.verify.position;
        let left_sectors = volume.size_sectors.saturating_sub(sector);
        if volume.blocks_to_request() == 0 || left_sectors == 0 || volume.verify_stops_at(sector, can_stop) {
            return false;
        }
        let size_bytes = u32::try_from(left_sectors * 512).unwrap_or(u32::MAX).min(BLOCK_BYTES);
        if !self.ask_for(id, PeerKind::Verify, sector, size_bytes) {
            return false;
        }
        self.with_volume(id, |volume| {
            volume.verify.position += BLOCK_SECTORS;
            volume.requested(1);
        });
        true
    }

    /// The peer can be told that a run ends before the end of the device. spec: wire-protocol 3.7
    fn can_stop_verify(&self) -> bool {
        self.link.apv >= 97 && self.link.apv != 100
    }

    /// P_OV_REPLY: the digest of the peer's block.
    pub(super) fn receive_verify_reply(
        &mut self,
        id: VolumeId,
        reply: &BlockRequest,
        digest: Digest,
    ) -> Result<(), Fault> {
        let unknown = Fault::UnknownReply { sector: reply.sector };
        let peer = self.asked_for(id, reply.sector, reply.size_bytes).ok_or(unknown)?;
        let asked =
            self.peers.get(peer).filter(|slot| slot.kind == PeerKind::Verify && slot.size_bytes == reply.size_bytes);
        let slot = *asked.ok_or(unknown)?;
        self.with_volume(id, |volume| volume.resync.arrived_sectors += u64::from(slot.size_bytes / 512));
        if slot.orphan {
            // The run is over (what was asked over an earlier connection is not found any more): nothing to compare with, or to count.
            self.tell_result(&slot, true);
        }
        if slot.orphan || self.volume(id).is_none_or(|volume| volume.state.disk <= Disk::Failed) {
            self.verify_compared(peer, &slot, true);
            return Ok(());
        }
        self.keep_digest(peer, digest);
        if let Some(slot) = self.peers.get_mut(peer) {
            slot.phase = PeerPhase::Overlap;
            slot.inspect = Some(Inspect::VerifyDigest);
        }
        self.enter_overlaps(peer, Kind::ResyncWrite, true);
        Ok(())
    }

    /// Both digests are known, or there is nothing to compare.
    pub(super) fn verify_compared(&mut self, peer: PeerId, slot: &PeerRequest, equal: bool) {
        let id = slot.volume;
        if !slot.orphan {
            if !equal {
                self.verify_found(id, slot.sector, slot.size_bytes);
            }
            self.tell_result(slot, equal);
            self.with_volume(id, |volume| {
                volume.verify.left_blocks = volume.verify.left_blocks.saturating_sub(1);
            });
        }
        self.leave_overlaps(self.overlap_entry(peer.index, true));
        self.end_resync_request(peer);
        self.check_verify_end(id);
    }

    /// P_OV_RESULT: the peer need not keep anything out of this block any more.
    fn tell_result(&mut self, slot: &PeerRequest, equal: bool) {
        self.queue_meta(MetaOut::Ack {
            command: Command::OvResult,
            volume: slot.volume,
            sector: slot.sector,
            block_id: if equal { ID_IN_SYNC } else { ID_OUT_OF_SYNC },
            size_bytes: slot.size_bytes,
        });
    }

    /// Its run ended before the request was sent.
    pub(super) fn is_late_verify(&self, peer: PeerId) -> bool {
        let late = |slot: &&PeerRequest| slot.kind == PeerKind::Verify && slot.orphan && slot.phase == PeerPhase::Asked;
        self.peers.get(peer).filter(late).is_some()
    }

    // VerifyT.

    /// P_OV_REQUEST: the peer wants the digest of a block.
    pub(super) fn receive_verify_request(&mut self, id: VolumeId, request: &BlockRequest) -> Result<(), Fault> {
        self.serve_read(id, request, PeerKind::VerifyRead, Some(Inspect::VerifyDigest))?;
        let Some(volume) = self.volume_mut(id) else { return Ok(()) };
        let bits = volume.disk.as_ref().map_or(0, |disk| disk.bitmap.bits());
        if volume.state.conn == Conn::VerifyT && !volume.verify.started {
            volume.verify.started = true;
            volume.verify.position = request.sector;
            let left_blocks = bits.saturating_sub(request.sector / BLOCK_SECTORS);
            volume.verify.left_blocks = left_blocks;
            self.begin_run(id, left_blocks);
            self.log(LogLine::VerifyStarted { volume: id, sector: request.sector });
        }
        Ok(())
    }

    /// Under protocol A and B a write is over before it is on the peer's disk, and a C module as VerifyS reads that beside it. True: the
    /// read waits until the barrier of such a write is acknowledged.
    pub(super) fn verify_waits_for_barrier(&mut self, index: u16, slot: &PeerRequest) -> bool {
        let waits = !slot.orphan && self.is_verify_target(slot.volume) && self.is_on_its_way(slot);
        if waits {
            if let Some(slot) = self.peers.at_mut(index) {
                slot.phase = PeerPhase::Barrier;
            }
            self.link.verify_waits += 1;
            self.want_barrier();
        }
        waits
    }

    /// A write of this range has been completed, and may not be on the peer's disk.
    fn is_on_its_way(&self, read: &PeerRequest) -> bool {
        let end = read.sector + u64::from(read.size_bytes / 512);
        let mut at = self.log.front();
        while let Some(slot) = at.and_then(|index| self.requests.at(index)) {
            let [first, slot_end] = slot.sectors();
            let counts = slot.net == Net::Ok && slot.protocol != WireProtocol::C && !slot.kept;
            if counts && slot.volume == read.volume && first < end && read.sector < slot_end {
                return true;
            }
            at = at.and_then(|index| self.log.next(&self.requests, index));
        }
        false
    }

    /// A barrier is acknowledged: reads that waited for it begin, or wait for the next one.
    pub(super) fn verify_barrier_over(&mut self) {
        if core::mem::take(&mut self.link.verify_waits) == 0 {
            return;
        }
        for index in 0..self.peers.capacity() as u16 {
            if let Some(slot) = self.peers.at_mut(index).filter(|slot| slot.phase == PeerPhase::Barrier) {
                slot.phase = PeerPhase::Overlap;
                self.peer_overlap_ended(index);
            }
        }
    }

    /// The digest for the peer is made. A block that cannot be read has a digest of zeroes.
    pub(super) fn verify_digest_made(&mut self, peer: PeerId, slot: &PeerRequest, finding: super::Finding) {
        if slot.orphan {
            self.end_read(peer, slot.volume);
            return;
        }
        let digest = match finding {
            super::Finding::Digest(digest) => digest,
            _ => Digest::zeroes(self.verify_digest_bytes()),
        };
        self.keep_digest(peer, digest);
        let holds = self.link.is_running() && self.is_verify_target(slot.volume);
        self.reply(peer);
        if !holds {
            self.leave_overlaps(self.overlap_entry(peer.index, false));
        }
    }

    fn is_verify_target(&self, id: VolumeId) -> bool {
        self.volume(id).is_some_and(|volume| volume.state.conn == Conn::VerifyT)
    }

    /// The digest is out. True: later writes of the range wait until the peer has compared, and the slot with them.
    pub(super) fn verify_reply_sent(&mut self, peer: PeerId, id: VolumeId) -> bool {
        let entry = self.overlap_entry(peer.index, false);
        if !self.link.is_running() || !self.is_verify_target(id) || !self.overlaps.has(entry) {
            self.leave_overlaps(entry);
            return false;
        }
        let now_ms = self.now_ms;
        if let Some(slot) = self.peers.get_mut(peer) {
            slot.phase = PeerPhase::Told;
            slot.told_ms = now_ms;
        }
        self.with_volume(id, |volume| volume.verify.told += 1);
        true
    }

    /// The result for this range has come: writes may go on.
    fn verify_answered(&mut self, id: VolumeId, sector: u64) {
        let first = self.requests.capacity() as u32;
        let found = self.overlaps.find(Kind::ResyncRead, id.0, sector, |entry| {
            let slot = entry.checked_sub(first).and_then(|at| self.peers.at((at / 2) as u16));
            slot.is_some_and(|slot| {
                slot.kind == PeerKind::VerifyRead && matches!(slot.phase, PeerPhase::Reply | PeerPhase::Told)
            })
        });
        let Some(entry) = found else { return };
        self.leave_overlaps(entry);
        let index = ((entry - first) / 2) as u16;
        if self.peers.at(index).is_some_and(|slot| slot.phase == PeerPhase::Told) {
            self.forget_told(index, id);
        }
    }

    fn forget_told(&mut self, index: u16, id: VolumeId) {
        self.with_volume(id, |volume| volume.verify.told = volume.verify.told.saturating_sub(1));
        if let Some(generation) = self.peers.at(index).map(|slot| slot.generation) {
            self.end_read(PeerId { index, generation }, id);
        }
    }

    /// No result comes any more: the run is over.
    pub(super) fn expect_no_results(&mut self, id: VolumeId) {
        self.forget_told_before(id, u64::MAX);
        self.with_volume(id, |volume| volume.verify.told = 0);
    }

    fn forget_told_before(&mut self, id: VolumeId, ms: u64) {
        for index in 0..self.peers.capacity() as u16 {
            let told = |slot: &PeerRequest| slot.phase == PeerPhase::Told && slot.volume == id && slot.told_ms < ms;
            if self.peers.at(index).is_some_and(told) {
                self.forget_told(index, id);
            }
        }
    }

    /// The clock. Writes do not wait for ever for a peer that does not tell what it has found.
    pub(super) fn check_results_come(&mut self, id: VolumeId) {
        let patience_ms = u64::from(self.link.net.timeout) * 100;
        if self.volume(id).is_some_and(|volume| volume.verify.told > 0) {
            self.forget_told_before(id, self.now_ms.saturating_sub(patience_ms));
        }
    }

    /// P_OV_RESULT: what VerifyS has found.
    pub(super) fn receive_verify_result(&mut self, id: VolumeId, result: &BlockAck) -> Result<(), Fault> {
        let sectors = self.volume(id).map_or(0, |volume| volume.size_sectors);
        check_range(result.sector, result.size_bytes, MAX_DATA_BYTES, sectors)?;
        if result.block_id == ID_OUT_OF_SYNC {
            self.verify_found(id, result.sector, result.size_bytes);
        }
        self.verify_answered(id, result.sector);
        self.with_volume(id, |volume| volume.verify.left_blocks = volume.verify.left_blocks.saturating_sub(1));
        self.check_verify_end(id);
        Ok(())
    }

    /// VerifyS has finished, before the end of the device.
    pub(super) fn peer_finished_verify(&mut self, id: VolumeId) {
        self.end_verify(id);
    }

    // Both.

    /// The state changes from `old` to `new`, which the peer is about to be told. The own disk may have become Inconsistent during a run, see
    /// [`Untold`]. Where the C module does not compare it ends its run only when it hears, from a disk that it counts as good, that the
    /// nodes are just connected: that is what it hears first. Until then it takes the disk for good anyway.
    pub(super) fn note_spoilt_verify(&mut self, id: VolumeId, old: State, new: State) {
        let connected = new.conn == Conn::Connected && new.disk == Disk::Inconsistent;
        let compares = old.conn == Conn::VerifyS;
        let spoilt = connected && is_verifying(old.conn) && old.disk == Disk::UpToDate;
        if spoilt && compares {
            self.send_state(id, State { disk: Disk::UpToDate, ..new });
        }
        let at_ms = self.when_peer_has_ended();
        self.with_volume(id, |volume| {
            volume.verify.untold = match (spoilt, compares) {
                (true, true) => Some(Untold::At(at_ms)),
                (true, false) => Some(Untold::PeerCompares),
                _ => volume.verify.untold.filter(|_| connected),
            };
        });
    }

    /// A C module ends its run when it has got the result of every digest, a little later.
    fn when_peer_has_ended(&self) -> u64 {
        self.now_ms.saturating_add(u64::from(self.link.net.timeout) * 100)
    }

    /// The clock: the peer has ended its run by now.
    pub(super) fn tell_spoilt_verify(&mut self, id: VolumeId) {
        let at_ms = self.when_peer_has_ended();
        let now_ms = self.now_ms;
        let Some(volume) = self.volume_mut(id) else { return };
        let Some(Untold::At(due_ms)) = volume.verify.untold else { return };
        if volume.resync.requests_in_flight > 0 {
            volume.verify.untold = Some(Untold::At(at_ms));
        } else if now_ms >= due_ms {
            volume.verify.untold = None;
            let state = volume.state;
            self.send_state(id, state);
        }
    }

    /// The peer has told its state, and what it takes this node's disk for.
    pub(super) fn check_verify_untold(&mut self, id: VolumeId, received: State) {
        let Some(volume) = self.volume_mut(id).filter(|volume| volume.verify.untold == Some(Untold::PeerCompares))
        else {
            return;
        };
        if received.pdsk <= volume.state.disk {
            volume.verify.untold = None;
        } else if received.conn <= Conn::Connected {
            let state = volume.state;
            self.send_state(id, state);
        }
    }

    /// A block differs: its bit is set on both nodes. Neighbours are reported together.
    fn verify_found(&mut self, id: VolumeId, sector: u64, size_bytes: u32) {
        if !self.sabotaged(Sabotage::VerifyWithoutMark) {
            self.mark_out_of_sync(id, sector, size_bytes);
        }
        let sectors = u64::from(size_bytes / 512);
        let Some(volume) = self.volume_mut(id) else { return };
        let (merged, report) = match volume.verify.found {
            Some((first, number)) if first + number == sector => ((first, number + sectors), None),
            Some((first, number)) if sector + sectors == first => ((sector, number + sectors), None),
            before => ((sector, sectors), before),
        };
        volume.verify.found = Some(merged);
        self.report_found(id, report);
    }

    fn report_found(&mut self, id: VolumeId, range: Option<(u64, u64)>) {
        if let Some((sector, sectors)) = range {
            self.log(LogLine::VerifyFound { volume: id, sector, sectors });
        }
    }

    /// Is the run complete?
    fn check_verify_end(&mut self, id: VolumeId) {
        let can_stop = self.can_stop_verify();
        let Some(volume) = self.volume(id).filter(|volume| is_verifying(volume.state.conn)) else { return };
        let verify = &volume.verify;
        let stopped = volume.state.conn == Conn::VerifyS
            && volume.verify_stops_at(verify.position, can_stop)
            && volume.resync.requests_in_flight == 0;
        if verify.left_blocks == 0 || stopped {
            self.end_verify(id);
        }
    }

    /// The last result is on its way to the peer, or has come from it.
    fn end_verify(&mut self, id: VolumeId) {
        let Some(volume) = self.volume_mut(id) else { return };
        if !is_verifying(volume.state.conn) || volume.resync.end != super::volume::ResyncEnd::No {
            return;
        }
        let found = volume.verify.found.take();
        self.report_found(id, found);
        self.finish_resync(id);
    }

    /// The ping at the end of a run has been answered, or does not matter any more. spec: state-machine 17.6
    pub(super) fn verify_over(&mut self, id: VolumeId) {
        let now_ms = self.now_ms;
        let Some(volume) = self.volume(id) else { return };
        let left_blocks = volume.verify.left_blocks;
        let bits = volume.resync.total_bits.saturating_sub(left_blocks);
        let pace = volume.resync.progress.pace(left_blocks, now_ms);
        let differing_bits = volume.weight();
        self.log(LogLine::VerifyDone { volume: id, bits, pace });
        if differing_bits > 0 {
            self.log(LogLine::VerifyFoundInAll { volume: id, bits: differing_bits });
            self.call_helper(Helper::OutOfSync, Some(id));
        }
    }

    /// A request of this node, before it is sent: does the run that it belongs to still go on?
    pub(super) fn verify_runs(&self, id: VolumeId) -> bool {
        self.volume(id).is_some_and(|volume| volume.state.conn == Conn::VerifyS)
    }
}

impl<S: Storage> Volume<S> {
    /// The peer compares, though the disk here is not good any more. It does not end before it has every digest.
    pub(super) fn owes_digests(&self) -> bool {
        self.state.disk == Disk::Inconsistent && self.verify.untold == Some(Untold::PeerCompares)
    }

    /// The run ends before `sector`; at least one block is compared.
    fn verify_stops_at(&self, sector: u64, can_stop: bool) -> bool {
        let first = self.verify.left_blocks == self.resync.total_bits && self.resync.requests_in_flight == 0;
        can_stop && sector >= self.verify.stop_sector && !first
    }
}

/// A verify run is under way.
pub(super) fn is_verifying(conn: Conn) -> bool {
    matches!(conn, Conn::VerifyS | Conn::VerifyT)
}
