// SPDX-License-Identifier: GPL-2.0
//! Requests received from the peer, and resync data.
//!
//! A write of the peer is received into pages, waits for what it overlaps, goes to the disk and is acknowledged; a
//! barrier waits for all writes before it and for the disks' caches, so that its acknowledgement means "safe". A read
//! goes to the disk and back. A block of a resync is a slot on both sides: here are the target's write and the source's
//! read.
//! spec: wire-protocol 5.2, 7, 8.6

use super::api::{Digest, Finding, Inspect, IoError, IoFlags, IoResult, LocalIo, Next, Op, PeerId, VolumeId, Wakes};
use super::application::NOTICE_PROTOCOL;
use super::conflict::newer;
use super::incoming::Fault;
use super::outgoing::{DataOut, MetaOut};
use super::overlaps::Kind;
use super::slots::{List, PeerKind, PeerPhase};
use super::volume::{Begin, DiskError};
use super::{Engine, Sabotage};
use crate::state::{Conn, Disk, Role};
use crate::storage::Storage;
use crate::wire::command::Command;
use crate::wire::{BlockRequest, Data, DataFlags, ID_SYNCER};
use crate::wire::{FEATURE_WZEROES, MAX_DATA_BYTES, MAX_TRIM_BYTES};

/// A write as the packet describes it.
pub(super) struct IncomingWrite {
    pub(super) op: Op,
    pub(super) data: Data,
    pub(super) size_bytes: u32,
    /// Bytes of data that follow the packet.
    pub(super) payload_bytes: u32,
}

impl<S: Storage> Engine<S> {
    /// Entry of a peer slot among the overlaps; `data` for the second one, of arrived resync data.
    pub(super) fn overlap_entry(&self, index: u16, data: bool) -> u32 {
        self.requests.capacity() as u32 + u32::from(index) * 2 + u32::from(data)
    }

    /// P_DATA, P_TRIM, P_ZEROES. spec: wire-protocol 5.2
    pub(super) fn receive_write(&mut self, id: VolumeId, write: &IncomingWrite) -> Result<Next, Fault> {
        let Some(volume) = self.volume_mut(id) else { return Err(Fault::UnknownVolume) };
        if volume.state.disk < Disk::Inconsistent {
            // It meets nothing, so it does not wait for what was sent before it; but nothing waits for its number either.
            volume.peer_seq = newer(volume.peer_seq, write.data.seq);
            volume.lacks_write_of_peer();
            self.link.received_epoch.count();
            self.queue_meta(MetaOut::Ack {
                command: Command::NegAck,
                volume: id,
                sector: write.data.sector,
                block_id: write.data.block_id,
                // Of a discard as well: a writer that has forgotten the request (protocols A and B) marks what this says. (The C
                // module says 0 then.)
                size_bytes: write.size_bytes,
            });
            return Ok(match write.payload_bytes {
                0 => Next::Packet,
                size_bytes => Next::Drain { size_bytes },
            });
        }
        let most = if write.op == Op::Write { MAX_DATA_BYTES } else { MAX_TRIM_BYTES };
        let empty_flush = write.op == Op::Write && write.size_bytes == 0;
        let sound_flush = empty_flush && write.data.sector <= volume.size_sectors;
        if !sound_flush {
            check_range(write.data.sector, write.size_bytes, most, volume.size_sectors)?;
        }
        let op = match write.op {
            _ if empty_flush => Op::Flush,
            // The peer's range reads as zeroes afterwards; whether ours would, `discard-zeroes-if-aligned` tells.
            Op::Discard => volume.discard_op(),
            op => op,
        };
        let Some(peer) = self.peers.take() else { return Err(Fault::NoSlot) };
        if let Some(slot) = self.peers.at_mut(peer.index) {
            slot.phase = PeerPhase::Receiving;
            slot.kind = PeerKind::Write;
            slot.volume = id;
            slot.op = op;
            slot.sector = write.data.sector;
            slot.size_bytes = write.size_bytes;
            slot.block_id = write.data.block_id;
            slot.flags = write.data.flags;
            slot.seq = write.data.seq;
            slot.in_epoch = true;
        }
        self.link.received_epoch.count();
        self.link.received_epoch.active += 1;
        self.with_volume(id, |volume| volume.unacked += 1);
        if write.payload_bytes == 0 {
            self.payload_received(peer, self.now_ms)?;
            return Ok(Next::Packet);
        }
        self.hold_buffer(peer.index);
        Ok(Next::Payload { peer, size_bytes: write.payload_bytes })
    }

    /// What the operation of a write packet is. spec: wire-protocol 3.3, 5.2 (4)
    pub(super) fn write_op(&self, command: Command, flags: DataFlags) -> Op {
        match command {
            // A peer without the write-zeroes feature expects a trimmed range to read back as zeroes.
            Command::Trim if self.link.features & FEATURE_WZEROES == 0 => Op::WriteZeroes { unmap: true },
            Command::Trim => Op::Discard,
            Command::Zeroes => Op::WriteZeroes { unmap: flags.contains(DataFlags::DISCARD) },
            _ => Op::Write,
        }
    }

    /// The payload of this slot is in its pages.
    ///
    /// # Errors
    /// [`Fault`] when the slot does not wait for a payload.
    pub fn payload_received(&mut self, peer: PeerId, now_ms: u64) -> Result<(), Fault> {
        self.now_ms = now_ms;
        let Some(slot) = self.peers.get_mut(peer).filter(|slot| slot.phase == PeerPhase::Receiving) else {
            return Err(Fault::StrayPayload);
        };
        slot.phase = PeerPhase::Overlap;
        let slot = *slot;
        let sectors = u64::from(slot.size_bytes / 512);
        // What is only described has not been received.
        let received = if slot.op == Op::Write { sectors } else { 0 };
        self.with_volume(slot.volume, |volume| {
            volume.counters.received_sectors = volume.counters.received_sectors.wrapping_add(received);
        });
        let (kind, data) = match slot.kind {
            PeerKind::Resync => {
                self.with_volume(slot.volume, |volume| volume.resync.arrived_sectors += sectors);
                (Kind::ResyncWrite, true)
            }
            _ => (Kind::Peer, false),
        };
        if slot.kind == PeerKind::Write && self.sabotaged(Sabotage::AcknowledgeBeforeDisk) {
            self.queue_meta(MetaOut::Ack {
                command: Command::WriteAck,
                volume: slot.volume,
                sector: slot.sector,
                block_id: slot.block_id,
                size_bytes: slot.size_bytes,
            });
        }
        let forgets = self.sabotaged(Sabotage::ForgetReceiveAck);
        if slot.kind == PeerKind::Write && self.wants_receive_ack(slot.flags) && !forgets {
            // Before any disk I/O and before waiting for anybody: that is what protocol B promises.
            self.queue_meta(MetaOut::Ack {
                command: Command::RecvAck,
                volume: slot.volume,
                sector: slot.sector,
                block_id: slot.block_id,
                size_bytes: slot.size_bytes,
            });
        }
        if slot.kind == PeerKind::Write && self.wait_for_sequence(peer, &slot) {
            return Ok(());
        }
        self.enter_overlaps(peer, kind, data);
        Ok(())
    }

    pub(super) fn enter_overlaps(&mut self, peer: PeerId, kind: Kind, data: bool) {
        let Some(slot) = self.peers.get(peer).copied() else { return };
        let entry = self.overlap_entry(peer.index, data);
        let passes = kind == Kind::Peer && self.sabotaged(Sabotage::OvertakeResyncData);
        if self.overlaps.insert(entry, kind, slot.volume.0, slot.sector, slot.size_bytes) || passes {
            self.peer_overlap_ended(peer.index);
        }
    }

    fn wants_receive_ack(&self, flags: DataFlags) -> bool {
        if self.link.apv >= 100 {
            flags.contains(DataFlags::SEND_RECEIVE_ACK)
        } else {
            self.link.net.wire_protocol == crate::netlink::WireProtocol::B
        }
    }

    fn wants_write_ack(&self, flags: DataFlags) -> bool {
        if self.link.apv >= 100 {
            flags.contains(DataFlags::SEND_WRITE_ACK)
        } else {
            self.link.net.wire_protocol == crate::netlink::WireProtocol::C
        }
    }

    /// Nothing overlaps this slot any more: on with it.
    pub(super) fn peer_overlap_ended(&mut self, index: u16) {
        let Some(slot) = self.peers.at_mut(index) else { return };
        let peer = PeerId { index, generation: slot.generation };
        match slot.phase {
            PeerPhase::Planned => {
                let slot = *slot;
                self.may_ask(peer, &slot);
                return;
            }
            PeerPhase::Overlap => {}
            _ => return,
        }
        let waiting = *slot;
        if waiting.kind == PeerKind::Write && self.decide_conflict(peer, &waiting) {
            return;
        }
        if waiting.kind == PeerKind::VerifyRead && self.verify_waits_for_barrier(index, &waiting) {
            return;
        }
        if waiting.kind == PeerKind::Write && waiting.op != Op::Flush && self.is_diskless_writer(waiting.volume) {
            // It will have to be resynced to that peer. spec: wire-protocol 5.2 (9)
            self.record_writer(waiting.volume);
            self.mark_out_of_sync(waiting.volume, waiting.sector, waiting.size_bytes);
            if let Some(slot) = self.peers.at_mut(index) {
                slot.flags = slot.flags.without(DataFlags::MAY_SET_IN_SYNC);
            }
            self.log_peer_activity(index);
        } else {
            self.submit_peer(index);
        }
    }

    /// A peer without a disk depends on the activity log of this node: only here is noted what it wrote last. So does one
    /// that attaches its disk and does not know yet what will become of it.
    fn is_diskless_writer(&self, id: VolumeId) -> bool {
        self.volume(id).is_some_and(|volume| volume.state.pdsk < Disk::Inconsistent || volume.peer.negotiates)
    }

    /// A write of such a peer is on its way to the disk, by the activity log.
    pub(super) fn logs_for_peer(&self, id: VolumeId) -> bool {
        (0..self.peers.capacity() as u16).any(|index| {
            self.peers.at(index).is_some_and(|slot| {
                let logs = slot.in_activity_log || slot.phase == PeerPhase::ActivityLog;
                logs && slot.volume == id && slot.phase != PeerPhase::Free
            })
        })
    }

    /// The superblock asks for the activity log as long as a write of such a peer needs it, also when the connection has ended.
    fn log_for_peer_changes(&mut self, id: VolumeId) {
        let by_state = self.is_primary(id) || (self.is_diskless_writer(id) && self.peer_is_primary(id));
        if !by_state {
            self.update_meta_flags(id);
            self.sync_metadata(id);
        }
    }

    fn peer_is_primary(&self, id: VolumeId) -> bool {
        self.volume(id).is_some_and(|volume| volume.state.peer == Role::Primary)
    }

    /// From now on the peer's disk, wherever it is, lacks something that is here. Its write is on its way to the disk when the
    /// generation that tells so is durable. spec: state-machine 9 (11)
    fn record_writer(&mut self, id: VolumeId) {
        let unrecorded = self.volume(id).is_some_and(|volume| {
            let state = volume.state;
            state.pdsk < Disk::Inconsistent && state.disk == Disk::UpToDate && !volume.records_changes()
        });
        if unrecorded {
            self.new_current_uuid(id);
            self.send_uuids(id);
        }
    }

    /// As [`Engine::log_activity`], for a write of a peer without a disk. spec: state-machine 19.1
    pub(super) fn log_peer_activity(&mut self, index: u16) {
        let Some(slot) = self.peers.at_mut(index) else { return };
        slot.phase = PeerPhase::ActivityLog;
        let (id, (first, last)) = (slot.volume, super::slots::extents(slot.sector, slot.size_bytes));
        self.log_for_peer_changes(id);
        let Some(volume) = self.volumes.get_mut(usize::from(id.0)).and_then(Option::as_mut) else { return };
        if volume.generation_pending() && volume.state.disk > Disk::Failed {
            self.peers.push(&mut volume.peer_log.waiting, index);
            return;
        }
        let begun = self.volume_mut(id).map_or(Begin::NotNeeded, |volume| volume.begin_activity(first, last));
        if let Some(slot) = self.peers.at_mut(index) {
            slot.in_activity_log = matches!(begun, Begin::Active | Begin::Pending);
        }
        let Some(volume) = self.volumes.get_mut(usize::from(id.0)).and_then(Option::as_mut) else { return };
        match begun {
            Begin::NotNeeded | Begin::Active => self.submit_peer(index),
            Begin::Pending => {
                self.peers.push(&mut volume.peer_log.pending, index);
                self.wakes.insert(Wakes::METADATA);
            }
            Begin::NoSlot => self.peers.push(&mut volume.peer_log.waiting, index),
        }
    }

    /// Nothing keeps this peer request from the disk any more. If that is gone by now the request has failed.
    pub(super) fn submit_peer(&mut self, index: u16) {
        let Some(slot) = self.peers.at_mut(index) else { return };
        let peer = PeerId { index, generation: slot.generation };
        slot.phase = PeerPhase::Disk;
        let slot = *slot;
        if slot.no_disk || self.volume(slot.volume).is_none_or(|volume| volume.state.disk < Disk::Inconsistent) {
            if let Some(slot) = self.peers.get_mut(peer) {
                slot.no_disk = true;
            }
            self.peer_request_done(peer, Err(IoError::Io));
            return;
        }
        let op = match slot.kind {
            PeerKind::Read | PeerKind::ResyncRead | PeerKind::VerifyRead | PeerKind::Verify => Op::Read,
            PeerKind::Resync if slot.inspect.is_some() => Op::Read,
            PeerKind::Write | PeerKind::Resync => slot.op,
        };
        if op == Op::Read {
            self.hold_buffer(index);
        }
        let flags = IoFlags {
            fua: slot.flags.contains(DataFlags::FUA),
            preflush: slot.flags.contains(DataFlags::FLUSH),
            sync: slot.flags.contains(DataFlags::RW_SYNC),
            ..IoFlags::default()
        };
        let io =
            LocalIo::Peer { peer, volume: slot.volume, op, sector: slot.sector, size_bytes: slot.size_bytes, flags };
        self.submit_local(slot.volume, io);
    }

    /// No application write is under way in the range of an own request any more: it goes out, with a checksum after the
    /// data has been read for it.
    fn may_ask(&mut self, peer: PeerId, slot: &super::slots::PeerRequest) {
        if slot.kind == PeerKind::Verify && (slot.orphan || !self.verify_runs(slot.volume)) {
            self.end_resync_request(peer);
        } else if slot.kind == PeerKind::Resync && !self.is_still_wanted(slot) {
            // The rate controller has counted it as asked for.
            let sectors = u64::from(slot.size_bytes / 512);
            self.with_volume(slot.volume, |volume| volume.resync.arrived_sectors += sectors);
            self.end_resync_request(peer);
            self.check_resync_end(slot.volume);
        } else if slot.kind == PeerKind::Resync && slot.inspect.is_some() {
            self.submit_peer(peer.index);
        } else {
            if let Some(slot) = self.peers.get_mut(peer) {
                slot.phase = PeerPhase::Asked;
            }
            self.queue_data(DataOut::ResyncRequest(peer));
        }
    }

    /// A range of a resync that may have waited for writes of the application is still to be asked for as a whole. If these have brought a
    /// part of it in sync the rest is found again in the next pass.
    fn is_still_wanted(&self, slot: &super::slots::PeerRequest) -> bool {
        let (first, end) = (slot.sector / 8, (slot.sector + u64::from(slot.size_bytes / 512)).div_ceil(8));
        let disk = self.volume(slot.volume).and_then(|volume| volume.disk.as_ref());
        let marked = disk.map_or(0, |disk| disk.bitmap.count_in(first, end.saturating_sub(1)));
        self.asks_for_blocks(slot.volume) && first + marked == end
    }

    /// The disk is done with a peer request. May be called in any context.
    pub fn peer_io_done(&mut self, peer: PeerId, result: IoResult, now_ms: u64) {
        self.now_ms = now_ms;
        let Some(slot) = self.peers.get(peer).filter(|slot| slot.phase == PeerPhase::Disk).copied() else { return };
        let sectors = u64::from(slot.size_bytes / 512);
        self.with_volume(slot.volume, |volume| {
            volume.lower_pending = volume.lower_pending.saturating_sub(1);
            let writes = slot.kind == PeerKind::Write || (slot.kind == PeerKind::Resync && slot.inspect.is_none());
            let counters = &mut volume.counters;
            let counter = if writes { &mut counters.written_sectors } else { &mut counters.read_sectors };
            *counter = counter.wrapping_add(sectors);
            if matches!(slot.kind, PeerKind::Write | PeerKind::Read) {
                volume.foreign_sectors = volume.foreign_sectors.wrapping_add(sectors);
            }
        });
        self.peer_request_done(peer, result);
        self.check_disk_idle(slot.volume);
        if self.link.is_closing() {
            self.wakes.insert(Wakes::LINK);
        }
    }

    fn peer_request_done(&mut self, peer: PeerId, result: IoResult) {
        let Some(slot) = self.peers.get_mut(peer) else { return };
        slot.result = result;
        let slot = *slot;
        match (slot.kind, slot.inspect) {
            (PeerKind::Write, _) => self.peer_write_done(peer, &slot),
            (PeerKind::Read, _) => self.peer_read_done(peer, &slot),
            (PeerKind::Resync, Some(what)) => self.checksum_read_done(peer, &slot, what, result),
            (PeerKind::Resync, None) => self.resync_write_done(peer, &slot),
            (_, Some(what)) if result.is_ok() => self.inspect(peer, what),
            (PeerKind::ResyncRead, _) => self.resync_read_done(peer, &slot),
            (PeerKind::VerifyRead, _) => self.verify_digest_made(peer, &slot, Finding::Failed),
            (PeerKind::Verify, _) => self.verify_compared(peer, &slot, false),
        }
        if matches!(slot.kind, PeerKind::VerifyRead | PeerKind::Verify) {
            self.failed_on_disk(&slot, DiskError::Read);
        }
    }

    /// A peer request is over that may have met an error of the disk. One that found no disk, or waited while that was let go, says
    /// nothing about the one that is attached now.
    fn failed_on_disk(&mut self, slot: &super::slots::PeerRequest, error: DiskError) {
        if slot.result.is_err() && !slot.no_disk {
            self.disk_failed(slot.volume, error);
        }
    }

    /// spec: wire-protocol 5.2 (11)
    fn peer_write_done(&mut self, peer: PeerId, slot: &super::slots::PeerRequest) {
        let state = self.volume(slot.volume).map(|volume| volume.state);
        let syncing = state.is_some_and(|state| (Conn::SyncSource..=Conn::PausedSyncT).contains(&state.conn));
        let in_sync = syncing && slot.flags.contains(DataFlags::MAY_SET_IN_SYNC);
        let command = if slot.result.is_err() && self.sabotaged(Sabotage::AcknowledgeFailedWrite) {
            Some(Command::WriteAck)
        } else if slot.result.is_err() {
            self.mark_out_of_sync(slot.volume, slot.sector, slot.size_bytes);
            self.with_volume(slot.volume, |volume| volume.lacks_write_of_peer());
            Some(Command::NegAck)
        } else if in_sync && self.wants_write_ack(slot.flags) {
            // Where it stays marked it stays so on both nodes, or the target would be done without its source.
            let cleared = self.written_in_sync(slot.volume, slot.sector, slot.size_bytes);
            Some(if cleared { Command::RsWriteAck } else { Command::WriteAck })
        } else {
            self.wants_write_ack(slot.flags).then_some(Command::WriteAck)
        };
        let acknowledged = self.sabotaged(Sabotage::AcknowledgeBeforeDisk);
        if let Some(command) = command.filter(|_| !slot.orphan && !acknowledged) {
            self.queue_meta(MetaOut::Ack {
                command,
                volume: slot.volume,
                sector: slot.sector,
                block_id: slot.block_id,
                size_bytes: slot.size_bytes,
            });
        }
        if slot.in_activity_log {
            let (first, last) = super::slots::extents(slot.sector, slot.size_bytes);
            self.with_volume(slot.volume, |volume| volume.end_activity(first, last));
            self.want_activity_retry(slot.volume);
        }
        let counted = slot.in_epoch && !slot.orphan;
        self.restart_postponed(peer);
        self.leave_overlaps(self.overlap_entry(peer.index, false));
        self.end_peer(peer, slot.volume);
        if slot.in_activity_log {
            self.log_for_peer_changes(slot.volume);
        }
        self.failed_on_disk(slot, DiskError::Write);
        let flushes = slot.op == Op::Flush || slot.flags.contains(DataFlags::FLUSH);
        if slot.result.is_err() && flushes && !slot.no_disk {
            self.cache_lost(slot.volume);
        }
        if slot.result.is_ok() {
            // Also when the connection is gone by now: it may have been acknowledged when it was received.
            self.link.received_epoch.written |= 1 << slot.volume.0;
        }
        if counted {
            self.link.received_epoch.active = self.link.received_epoch.active.saturating_sub(1);
            self.close_received_epoch();
        }
        if in_sync {
            self.check_resync_end(slot.volume);
        }
    }

    /// P_DATA_REQUEST. spec: wire-protocol 7
    pub(super) fn receive_read(&mut self, id: VolumeId, request: &BlockRequest) -> Result<(), Fault> {
        self.serve_read(id, request, PeerKind::Read, None).map(|_peer| ())
    }

    /// P_RS_DATA_REQUEST; P_RS_THIN_REQ, answered without data if there are only zeroes; P_CSUM_RS_REQUEST, answered
    /// without data if the digest is the same. spec: wire-protocol 8.6
    pub(super) fn receive_resync_request(
        &mut self,
        id: VolumeId,
        request: &BlockRequest,
        command: Command,
        digest: Digest,
    ) -> Result<(), Fault> {
        let inspect = match command {
            Command::RsThinReq => Some(Inspect::Zeroes),
            Command::CsumRsRequest => Some(Inspect::ChecksumDigest),
            _ => None,
        };
        self.with_volume(id, |volume| {
            volume.resync.target_unheard = false;
            volume.resync.begin_unheard = false;
        });
        let peer = self.serve_read(id, request, PeerKind::ResyncRead, inspect)?;
        if let Some(peer) = peer.filter(|_| command == Command::CsumRsRequest) {
            self.keep_digest(peer, digest);
        }
        Ok(())
    }

    /// Reads for the peer. `None`: refused.
    pub(super) fn serve_read(
        &mut self,
        id: VolumeId,
        request: &BlockRequest,
        kind: PeerKind,
        inspect: Option<Inspect>,
    ) -> Result<Option<PeerId>, Fault> {
        let Some(volume) = self.volume(id) else { return Err(Fault::UnknownVolume) };
        check_range(request.sector, request.size_bytes, MAX_DATA_BYTES, volume.size_sectors)?;
        let owed = kind == PeerKind::VerifyRead && volume.owes_digests();
        if volume.state.disk != Disk::UpToDate && !owed {
            let command = if kind == PeerKind::Read { Command::NegDreply } else { Command::NegRsDreply };
            self.queue_meta(MetaOut::Ack {
                command,
                volume: id,
                sector: request.sector,
                block_id: request.block_id,
                size_bytes: request.size_bytes,
            });
            return Ok(None);
        }
        let Some(peer) = self.peers.take() else { return Err(Fault::NoSlot) };
        if let Some(slot) = self.peers.at_mut(peer.index) {
            slot.phase = PeerPhase::Overlap;
            slot.kind = kind;
            slot.volume = id;
            slot.op = Op::Read;
            slot.sector = request.sector;
            slot.size_bytes = request.size_bytes;
            slot.block_id = request.block_id;
            slot.inspect = inspect;
        }
        self.with_volume(id, |volume| volume.unacked += 1);
        if kind == PeerKind::Read {
            self.peer_overlap_ended(peer.index);
        } else if !self.hold_back(id, peer.index) {
            self.serve_resync(peer.index);
        }
        Ok(Some(peer))
    }

    fn peer_read_done(&mut self, peer: PeerId, slot: &super::slots::PeerRequest) {
        if slot.result.is_ok() && !slot.orphan {
            self.reply(peer);
            return;
        }
        if !slot.orphan {
            self.refuse_read(Command::NegDreply, slot);
        }
        self.end_peer(peer, slot.volume);
        self.failed_on_disk(slot, DiskError::Read);
    }

    pub(super) fn resync_read_done(&mut self, peer: PeerId, slot: &super::slots::PeerRequest) {
        let checksum = slot.has_digest;
        let ahead = !checksum && self.volume(slot.volume).is_some_and(|volume| volume.state.conn == Conn::Ahead);
        let cancelled = ahead || (slot.result.is_ok() && self.is_of_earlier_resync(slot.volume));
        let answer = slot.result.is_ok() && !slot.orphan && !cancelled;
        if answer {
            // In the order of the socket before any later write of the same range: those start only now.
            self.reply(peer);
        } else if !slot.orphan && cancelled {
            self.refuse_read(Command::RsCancel, slot);
        } else if !slot.orphan {
            self.refuse_read(Command::NegRsDreply, slot);
            if !checksum {
                self.resync_failed(slot.volume, slot.sector, slot.size_bytes);
            }
        }
        self.leave_overlaps(self.overlap_entry(peer.index, false));
        if !answer {
            self.end_peer(peer, slot.volume);
            self.failed_on_disk(slot, DiskError::Read);
        }
    }

    /// A request that the target made in a resync that was ended early, and which could not be answered then. While the bitmaps are
    /// exchanged anew, a later write of its range would only be announced, and the target's acknowledgement of the answer, which comes
    /// after that in the new resync, would count for what was written since. (The C module answers.) spec: wire-protocol 8.6
    pub(super) fn is_of_earlier_resync(&self, id: VolumeId) -> bool {
        let conn = self.volume(id).map(|volume| volume.state.conn);
        conn == Some(Conn::WFBitMapS) && self.link.apv >= NOTICE_PROTOCOL
    }

    /// A read for the peer that is not answered with its data is over.
    pub(super) fn end_read(&mut self, peer: PeerId, id: VolumeId) {
        self.leave_overlaps(self.overlap_entry(peer.index, false));
        self.end_peer(peer, id);
    }

    pub(super) fn reply(&mut self, peer: PeerId) {
        let Some(slot) = self.peers.get_mut(peer) else { return };
        slot.phase = PeerPhase::Reply;
        let (id, kind) = (slot.volume, slot.kind);
        if self.link.is_running() {
            if kind == PeerKind::ResyncRead {
                self.with_volume(id, |volume| volume.resync.unanswered = volume.resync.unanswered.saturating_add(1));
            }
            self.queue_data(DataOut::Reply(peer));
            if self.sabotaged(Sabotage::ReuseSlotEarly) {
                self.reply_sent(peer);
            }
        } else {
            self.reply_sent(peer);
        }
    }

    fn refuse_read(&mut self, command: Command, slot: &super::slots::PeerRequest) {
        self.queue_meta(MetaOut::Ack {
            command,
            volume: slot.volume,
            sector: slot.sector,
            block_id: slot.block_id,
            size_bytes: slot.size_bytes,
        });
    }

    /// The answer is with TCP, or will never be.
    pub(super) fn reply_sent(&mut self, peer: PeerId) {
        let Some(slot) = self.peers.get(peer).filter(|slot| slot.phase == PeerPhase::Reply).copied() else { return };
        let with_data = slot.kind != PeerKind::VerifyRead && !slot.deallocated;
        let sectors = if with_data { u64::from(slot.size_bytes / 512) } else { 0 };
        self.with_volume(slot.volume, |volume| {
            volume.counters.sent_sectors = volume.counters.sent_sectors.wrapping_add(sectors);
        });
        if slot.kind == PeerKind::VerifyRead && self.verify_reply_sent(peer, slot.volume) {
            return;
        }
        self.end_peer(peer, slot.volume);
    }

    /// Takes a slot for a range this node, the sync target, wants, or whose digest it wants to compare. The request goes out when no application write is
    /// under way in it. False: not now.
    pub(super) fn ask_for(&mut self, id: VolumeId, kind: PeerKind, sector: u64, size_bytes: u32) -> bool {
        if !self.may_ask_for_one_more() {
            return false;
        }
        let checksums = kind == PeerKind::Resync && self.volume(id).is_some_and(|volume| volume.resync.uses_checksums);
        let Some(peer) = self.peers.take() else { return false };
        if let Some(slot) = self.peers.at_mut(peer.index) {
            slot.phase = PeerPhase::Planned;
            slot.kind = kind;
            slot.inspect = checksums.then_some(Inspect::ChecksumDigest);
            slot.volume = id;
            slot.op = Op::Write;
            slot.sector = sector;
            slot.size_bytes = size_bytes;
            slot.block_id = ID_SYNCER;
        }
        let entry = self.overlap_entry(peer.index, false);
        if self.overlaps.insert(entry, Kind::ResyncRequest, id.0, sector, size_bytes) {
            self.peer_overlap_ended(peer.index);
        }
        true
    }

    /// P_RS_DATA_REPLY: the slot that asked for it receives the data.
    pub(super) fn receive_resync_data(&mut self, id: VolumeId, sector: u64, size_bytes: u32) -> Result<Next, Fault> {
        let peer = self.asked_for(id, sector, size_bytes).ok_or(Fault::UnknownReply { sector })?;
        if self.awaits_data(peer, id, sector, size_bytes)? {
            self.hold_buffer(peer.index);
            Ok(Next::Payload { peer, size_bytes })
        } else {
            Ok(Next::Drain { size_bytes })
        }
    }

    /// P_RS_DEALLOCATED: the range is nothing but zeroes on the source, and will be here. spec: wire-protocol 3.8
    pub(super) fn receive_deallocated(&mut self, id: VolumeId, sector: u64, size_bytes: u32) -> Result<(), Fault> {
        let peer = self.asked_for(id, sector, size_bytes).ok_or(Fault::UnknownReply { sector })?;
        if !self.awaits_data(peer, id, sector, size_bytes)? {
            return Ok(());
        }
        let op = self.volume(id).map_or(Op::Discard, |volume| volume.discard_op());
        if let Some(slot) = self.peers.get_mut(peer) {
            slot.op = op;
        }
        self.payload_received(peer, self.now_ms)
    }

    /// The answer to a resync request has come. False: there is no disk for it.
    fn awaits_data(&mut self, peer: PeerId, id: VolumeId, sector: u64, size_bytes: u32) -> Result<bool, Fault> {
        let asked =
            |slot: &&mut super::slots::PeerRequest| slot.kind == PeerKind::Resync && slot.size_bytes == size_bytes;
        let Some(slot) = self.peers.get_mut(peer).filter(asked) else { return Err(Fault::UnknownReply { sector }) };
        slot.phase = PeerPhase::Receiving;
        if self.volume(id).map_or(Disk::Diskless, |volume| volume.state.disk) >= Disk::Inconsistent {
            return Ok(true);
        }
        self.answer_resync(id, sector, size_bytes, Command::NegAck);
        self.end_resync_request(peer);
        Ok(false)
    }

    /// The resync request that was sent for this sector and is not answered. Data of an earlier run for the same sector may
    /// still be on its way to the disk, and a request of an earlier run, perhaps of another size, may wait for the peer's disk.
    pub(super) fn asked_for(&self, id: VolumeId, sector: u64, size_bytes: u32) -> Option<PeerId> {
        let first = self.requests.capacity() as u32;
        let index = |entry: u32| u16::try_from(entry.checked_sub(first)? / 2).ok();
        let asked = |entry: u32| {
            let slot = index(entry).and_then(|index| self.peers.at(index));
            slot.filter(|slot| slot.phase == PeerPhase::Asked)
        };
        let find = |wanted: &dyn Fn(u32) -> bool| self.overlaps.find(Kind::ResyncRequest, id.0, sector, wanted);
        let exactly = find(&|entry| asked(entry).is_some_and(|slot| slot.size_bytes == size_bytes));
        let index = index(exactly.or_else(|| find(&|entry| asked(entry).is_some()))?)?;
        let generation = self.peers.at(index)?.generation;
        Some(PeerId { index, generation })
    }

    fn resync_write_done(&mut self, peer: PeerId, slot: &super::slots::PeerRequest) {
        if slot.result.is_ok() || self.sabotaged(Sabotage::ClearFailedResync) {
            if self.runs_resync(slot.volume, Conn::SyncTarget) {
                self.written_in_sync(slot.volume, slot.sector, slot.size_bytes);
            }
        } else {
            self.resync_failed(slot.volume, slot.sector, slot.size_bytes);
        }
        if !slot.orphan {
            let command = if slot.result.is_ok() { Command::RsWriteAck } else { Command::NegAck };
            self.answer_resync(slot.volume, slot.sector, slot.size_bytes, command);
        }
        self.leave_overlaps(self.overlap_entry(peer.index, true));
        self.end_resync_request(peer);
        self.failed_on_disk(slot, DiskError::Write);
        self.check_resync_end(slot.volume);
    }

    fn answer_resync(&mut self, id: VolumeId, sector: u64, size_bytes: u32, command: Command) {
        self.queue_meta(MetaOut::Ack { command, volume: id, sector, block_id: ID_SYNCER, size_bytes });
    }

    /// The source cannot, or will not, send this range.
    pub(super) fn resync_refused(&mut self, id: VolumeId, sector: u64, size_bytes: u32, failed: bool) {
        let Some(peer) = self.asked_for(id, sector, size_bytes) else { return };
        let Some(slot) = self.peers.get(peer).copied() else { return };
        let size_bytes = size_bytes.min(slot.size_bytes);
        self.with_volume(id, |volume| volume.resync.arrived_sectors += u64::from(size_bytes / 512));
        if slot.kind == PeerKind::Verify {
            // Not compared: the peer has no good disk any more, which ends the run.
            self.end_resync_request(peer);
            return;
        }
        if failed {
            self.resync_failed(id, sector, size_bytes);
        }
        self.end_resync_request(peer);
        self.check_resync_end(id);
    }

    pub(super) fn end_resync_request(&mut self, peer: PeerId) {
        let Some((id, size_bytes)) = self.peers.get(peer).map(|slot| (slot.volume, slot.size_bytes)) else { return };
        self.leave_overlaps(self.overlap_entry(peer.index, false));
        self.with_volume(id, |volume| {
            let resync = &mut volume.resync;
            resync.requests_in_flight = resync.requests_in_flight.saturating_sub(1);
            resync.blocks_in_flight = resync.blocks_in_flight.saturating_sub(size_bytes.div_ceil(4096));
        });
        self.release_peer(peer.index);
        self.resync_answered(id);
        self.peer_slot_free();
    }

    pub(super) fn end_peer(&mut self, peer: PeerId, id: VolumeId) {
        self.release_peer(peer.index);
        self.with_volume(id, |volume| volume.unacked = volume.unacked.saturating_sub(1));
        self.peer_slot_free();
    }

    /// A slot more for the peer's requests, or one less that a closing connection waits for.
    fn peer_slot_free(&mut self) {
        self.wakes.insert(if self.link.is_closing() { Wakes::LINK } else { Wakes::RECEIVER });
    }

    /// The connection is lost: what is on the disk, or complete and on its way there, finishes silently; everything else
    /// is forgotten.
    pub(super) fn abandon_peer_requests(&mut self) {
        let two_primaries = self.link.net.two_primaries;
        // Where the application writes, a write of the peer may have to wait for one that in turn waits for the connection.
        let writers = self.volume_ids().filter(|id| two_primaries || self.is_primary(*id));
        let writers = writers.fold(0u64, |all, id| all | (1 << id.0));
        self.forget_throttled();
        self.link.sequence_wait = None;
        for index in 0..self.peers.capacity() as u16 {
            let Some(slot) = self.peers.at_mut(index).filter(|slot| slot.phase != PeerPhase::Free) else { continue };
            slot.orphan = true;
            slot.in_epoch = false;
            if slot.is_forgotten_with_the_connection(writers) {
                // Both entries: a block of a resync has two.
                self.leave_overlaps(self.overlap_entry(index, true));
                self.leave_overlaps(self.overlap_entry(index, false));
            }
        }
        // Some became ready by that; a slot must not be given back while it is in a list.
        let mut ready = core::mem::replace(&mut self.ready_peers, List::EMPTY);
        while let Some(index) = self.peers.pop(&mut ready) {
            if self.peers.at(index).is_some_and(|slot| !slot.is_forgotten_with_the_connection(writers)) {
                let Engine { peers, ready_peers, .. } = self;
                peers.push(ready_peers, index);
            }
        }
        for index in 0..self.peers.capacity() as u16 {
            let Some(slot) = self.peers.at(index).filter(|slot| slot.phase != PeerPhase::Free).copied() else {
                continue;
            };
            let peer = PeerId { index, generation: slot.generation };
            match (slot.is_forgotten_with_the_connection(writers), slot.kind) {
                (false, _) => {}
                (true, kind) if kind.is_own() => self.end_resync_request(peer),
                (true, _) => self.end_peer(peer, slot.volume),
            }
        }
        self.link.received_epoch.abandon();
    }

    /// Nothing that the peer caused is under way on a disk.
    pub(super) fn peers_idle(&self) -> bool {
        self.peers.used() == 0 && self.link.received_epoch.flushes == 0
    }
}

/// Ranges that come from the peer. spec: wire-protocol 5.2 (3), 7, 8.6
pub(super) fn check_range(sector: u64, size_bytes: u32, most_bytes: u32, device_sectors: u64) -> Result<(), Fault> {
    let end = sector.checked_add(u64::from(size_bytes / 512));
    let sound = size_bytes > 0 && size_bytes % 512 == 0 && size_bytes <= most_bytes;
    if sound && end.is_some_and(|end| end <= device_sectors) {
        Ok(())
    } else {
        Err(Fault::BadRange { sector, size_bytes, device_sectors })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_lies_within_the_device() {
        let check = |sector, size_bytes| check_range(sector, size_bytes, 8192, 100).is_ok();
        assert!(check(0, 512) && check(99, 512) && check(92, 4096) && check(84, 8192));
        for (sector, size_bytes) in [(99, 1024), (93, 4096), (100, 512), (101, 512), (u64::MAX, 512)] {
            assert!(!check(sector, size_bytes), "{size_bytes} bytes at {sector}");
        }
        for size_bytes in [0, 511, 513, 8704] {
            assert!(!check(0, size_bytes), "{size_bytes} bytes");
        }
    }
}
