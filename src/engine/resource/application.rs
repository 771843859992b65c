// SPDX-License-Identifier: GPL-2.0
//! Application requests: from the arrival of a bio to the end of its slot.
//!
//! A write goes through at most two waiting rooms, first for earlier writes it overlaps, then for its activity log
//! extents; then it is *activated*: in one step its local part is put into the queue to the disk and its packet into
//! the queue to the peer. Local completion and acknowledgement come back in either order; the bio ends when the
//! protocol allows it, exactly once ([`Engine::settle`]); the slot stays until the epoch's barrier is acknowledged.
//! spec: state-machine 18; wire-protocol 5

use super::api::{Completion, IoError, IoRequest, IoResult, LocalIo, Op, RequestId, Submit, VolumeId, Wakes};
use super::overlaps::Kind;
use super::slots::{List, Local, Net, Phase};
use super::volume::{Begin, Volume};
use super::{DataOut, Engine, Sabotage};
use crate::netlink::WireProtocol;
use crate::state::{io_may_start, replicates, sends_out_of_sync, Conn, Disk, Role};
use crate::storage::Storage;

/// First version that knows P_OUT_OF_SYNC. spec: wire-protocol 3.7
pub(super) const NOTICE_PROTOCOL: u32 = 96;

/// Where a read goes. spec: state-machine 18.5
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReadPath {
    Local,
    Peer,
    Nowhere,
}

impl<S: Storage> Engine<S> {
    /// An application request arrived at the device of `volume`.
    pub fn submit(&mut self, id: VolumeId, io: IoRequest, now_ms: u64) -> Submit {
        self.now_ms = now_ms;
        let Some(volume) = self.volume(id) else { return Submit::Failed(IoError::Io) };
        let end = io.sector.checked_add(u64::from(io.size_bytes / 512));
        if io.op != Op::Flush && end.is_none_or(|end| end > volume.size_sectors) {
            return Submit::Failed(IoError::Io);
        }
        if !self.gate_open(id) || (io.op == Op::Read && !self.peer_takes_reads()) {
            self.gate_waiters = true;
            return Submit::Later;
        }
        let Some(request) = self.requests.take() else {
            self.gate_waiters = true;
            self.want_barrier();
            return Submit::Later;
        };
        let protocol = self.link.net.wire_protocol;
        if let Some(slot) = self.requests.at_mut(request.index) {
            slot.phase = Phase::Overlap;
            slot.volume = id;
            slot.io = io;
            slot.protocol = protocol;
        }
        if let Some(volume) = self.volume_mut(id) {
            volume.upper_pending += 1;
        }
        self.upper_pending = self.upper_pending.saturating_add(1);
        match io.op {
            Op::Flush => self.start_flush(request),
            Op::Read => self.start_read(request),
            Op::Write | Op::Discard | Op::WriteZeroes { .. } => self.start_write(request),
        }
        Submit::Accepted(request)
    }

    /// May new application I/O start? spec: state-machine 18.3
    pub(super) fn gate_open(&self, id: VolumeId) -> bool {
        let Some(volume) = self.volume(id) else { return false };
        let most = if self.link.configured { self.link.net.max_buffers } else { u32::MAX };
        !self.susp.any()
            && volume.holds == 0
            && self.link.held_request.is_none_or(|held| held.volume != id)
            && volume.upper_pending < most
            && io_may_start(volume.state, self.link.apv)
    }

    /// An empty flush: closes the epoch for the peer, and flushes the local disk. It is not transmitted.
    pub(super) fn start_flush(&mut self, request: RequestId) {
        let Some((id, replicate, local)) = self.requests.at(request.index).and_then(|slot| {
            let volume = self.volume(slot.volume)?;
            Some((slot.volume, replicates(volume.state), volume.state.disk >= Disk::Inconsistent))
        }) else {
            return;
        };
        if replicate {
            self.close_epoch();
        }
        if let Some(slot) = self.requests.at_mut(request.index) {
            slot.phase = Phase::Active;
            slot.net = if replicate { Net::Ok } else { Net::None };
            slot.local = if local { Local::Pending } else { Local::None };
            slot.local_counts = true;
            slot.net_counts = true;
        }
        if local {
            self.submit_request(id, request, Op::Flush);
        } else {
            self.settle(request.index);
        }
    }

    pub(super) fn start_read(&mut self, request: RequestId) {
        match self.read_path(request) {
            ReadPath::Local => {
                let Some(id) = self.requests.at_mut(request.index).map(|slot| {
                    slot.phase = Phase::Active;
                    slot.local = Local::Pending;
                    slot.local_counts = true;
                    slot.volume
                }) else {
                    return;
                };
                self.submit_request(id, request, Op::Read);
            }
            ReadPath::Peer => {
                let epoch = self.link.epoch;
                let Some((id, counted)) = self.requests.at_mut(request.index).map(|slot| {
                    slot.phase = Phase::Active;
                    slot.net = Net::Queued;
                    slot.net_counts = true;
                    slot.epoch = epoch;
                    (slot.volume, core::mem::replace(&mut slot.peer_read, true))
                }) else {
                    return;
                };
                self.peer_reads = self.peer_reads.saturating_add(u32::from(!counted));
                if let Some(volume) = self.volume_mut(id) {
                    volume.peer_pending += 1;
                }
                self.queue_data(DataOut::ReadRequest(request));
            }
            ReadPath::Nowhere => {
                if let Some(slot) = self.requests.at_mut(request.index) {
                    slot.phase = Phase::Active;
                }
                self.settle(request.index);
            }
        }
    }

    fn read_path(&mut self, request: RequestId) -> ReadPath {
        let Some(slot) = self.requests.at(request.index) else { return ReadPath::Nowhere };
        let (id, sector, size_bytes, failed_here) =
            (slot.volume, slot.io.sector, slot.io.size_bytes, slot.local_read_failed);
        let stale = self.sabotaged(Sabotage::ReadStaleBlocks);
        let Some(volume) = self.volume_mut(id) else { return ReadPath::Nowhere };
        let readable = match volume.state.disk {
            Disk::UpToDate => true,
            Disk::Inconsistent if stale => true,
            Disk::Inconsistent if volume.lacks_are_marked => volume
                .disk
                .as_ref()
                .is_some_and(|disk| !disk.pipeline.is_about_to_set_all() && !disk.bitmap.any_set(sector, size_bytes)),
            _ => false,
        };
        let local = readable && !failed_here;
        let peer = volume.state.pdsk == Disk::UpToDate;
        match (local, peer) {
            (false, false) => ReadPath::Nowhere,
            (true, false) => ReadPath::Local,
            (false, true) => ReadPath::Peer,
            (true, true) => {
                if volume.prefers_peer(sector) || self.gives_up_data(id) {
                    ReadPath::Peer
                } else {
                    ReadPath::Local
                }
            }
        }
    }

    pub(super) fn start_write(&mut self, request: RequestId) {
        let Some(slot) = self.requests.at_mut(request.index) else { return };
        slot.in_overlaps = true;
        let (volume, sector, size) = (slot.volume, slot.io.sector, slot.io.size_bytes);
        let ready = self.overlaps.insert(u32::from(request.index), Kind::Application, volume.0, sector, size);
        if ready || self.sabotaged(Sabotage::IgnoreOverlap) {
            self.log_activity(request.index);
        }
    }

    /// A write that overlaps nothing any more: does its activity log extent allow it to start?
    /// spec: state-machine 19.1, 19.2
    pub(super) fn log_activity(&mut self, index: u16) {
        let Some(slot) = self.requests.at_mut(index) else { return };
        slot.phase = Phase::ActivityLog;
        if slot.in_activity_log {
            // It had got this far before a write of the peer came between.
            self.activate(index);
            return;
        }
        let (id, (first, last)) = (slot.volume, slot.extents());
        let forget = self.sabotaged(Sabotage::ForgetActivityLogExtent);
        let Some(volume) = self.volume_mut(id) else { return };
        match volume.begin_activity(first, last) {
            _ if forget => self.activate(index),
            Begin::NotNeeded => self.activate(index),
            Begin::Active => {
                self.mark_logged(index);
                self.activate(index);
            }
            Begin::Pending => {
                self.mark_logged(index);
                let Some(volume) = self.volumes.get_mut(usize::from(id.0)).and_then(Option::as_mut) else { return };
                self.requests.push(&mut volume.log.pending, index);
                self.wakes.insert(Wakes::METADATA);
            }
            Begin::NoSlot => {
                let Some(volume) = self.volumes.get_mut(usize::from(id.0)).and_then(Option::as_mut) else { return };
                self.requests.push(&mut volume.log.waiting, index);
                // References are only given back after barrier acknowledgements.
                self.want_barrier();
            }
        }
    }

    fn mark_logged(&mut self, index: u16) {
        if let Some(slot) = self.requests.at_mut(index) {
            slot.in_activity_log = true;
        }
    }

    /// The activity log transaction of these writes is on the disk.
    pub(super) fn activity_logged(&mut self, id: VolumeId) {
        let Some(volume) = self.volume_mut(id) else { return };
        let own = core::mem::replace(&mut volume.log.committing, List::EMPTY);
        let peers = core::mem::replace(&mut volume.peer_log.committing, List::EMPTY);
        self.start_logged(own, peers);
        self.want_activity_retry(id);
    }

    fn start_logged(&mut self, mut own: List, mut peers: List) {
        while let Some(index) = self.requests.pop(&mut own) {
            self.activate(index);
        }
        while let Some(index) = self.peers.pop(&mut peers) {
            self.submit_peer(index);
        }
    }

    /// There will be no transaction any more: whoever waits for one goes on without.
    pub(super) fn activate_without_log(&mut self, id: VolumeId) {
        self.activity_logged(id);
        self.log_retry &= !(1 << id.0);
        let Some(volume) = self.volume_mut(id) else { return };
        let own = [&mut volume.log.pending, &mut volume.log.waiting].map(|list| core::mem::replace(list, List::EMPTY));
        let peers = [&mut volume.peer_log.pending, &mut volume.peer_log.waiting]
            .map(|list| core::mem::replace(list, List::EMPTY));
        for (own, peers) in own.into_iter().zip(peers) {
            self.start_logged(own, peers);
        }
    }

    /// The activity log is gone, and with it every reference to it. A write of the peer that still waits must not go to the disk that
    /// is attached next.
    pub(super) fn forget_activity(&mut self, id: VolumeId) {
        for index in 0..self.requests.capacity() as u16 {
            if let Some(slot) = self.requests.at_mut(index).filter(|slot| slot.volume == id) {
                slot.in_activity_log = false;
            }
        }
        for index in 0..self.peers.capacity() as u16 {
            if let Some(slot) = self.peers.at_mut(index).filter(|slot| slot.volume == id) {
                slot.in_activity_log = false;
                slot.no_disk |= slot.waits_for_disk();
            }
        }
    }

    /// Room may have become free in the activity log.
    pub(super) fn want_activity_retry(&mut self, id: VolumeId) {
        let waits = |volume: &Volume<S>| !(volume.log.waiting.is_empty() && volume.peer_log.waiting.is_empty());
        if self.volume(id).is_some_and(waits) {
            self.log_retry |= 1 << id.0;
        }
    }

    /// Writes that found no room in the activity log try again, in order of arrival.
    fn retry_activity(&mut self, id: VolumeId) {
        self.log_retry &= !(1 << id.0);
        let Some(volume) = self.volume_mut(id) else { return };
        let mut own = core::mem::replace(&mut volume.log.waiting, List::EMPTY);
        let mut peers = core::mem::replace(&mut volume.peer_log.waiting, List::EMPTY);
        // Those that still find no room go back, and keep their order because all later ones follow them.
        while let Some(index) = self.requests.pop(&mut own) {
            self.log_activity(index);
        }
        while let Some(index) = self.peers.pop(&mut peers) {
            self.log_peer_activity(index);
        }
    }

    /// Sends and submits a write: both halves in the same breath. spec: state-machine 18.3, 18.4
    fn activate(&mut self, index: u16) {
        if !self.overlaps.activate(u32::from(index)) && !self.sabotaged(Sabotage::IgnoreOverlap) {
            if let Some(slot) = self.requests.at_mut(index) {
                slot.phase = Phase::Overlap;
            }
            return;
        }
        let Some((id, io)) = self.requests.at(index).map(|slot| (slot.volume, slot.io)) else { return };
        let request = self.requests.id(index);
        self.check_congestion(id);
        let Some(volume) = self.volume(id) else { return };
        let state = volume.state;
        let replicate = replicates(state);
        if replicate && !self.peer_takes(&io) {
            // Offered before it was known who the peer is. Nothing is done on either node. (The C module sends what it cannot
            // understand, and the connection breaks.)
            self.end(index, Err(IoError::NotSupported));
            self.release_request(index);
            return;
        }
        // Neither side has good data: writing only locally would make a third version.
        let local = state.disk >= Disk::Inconsistent && (state.disk == Disk::UpToDate || state.pdsk == Disk::UpToDate);
        let announces = !replicate && sends_out_of_sync(state);
        let silent = self.sabotaged(Sabotage::AnnounceWithoutMark);
        // A peer that has sent its bitmap marks what it does not know yet to be written here too; our bitmap goes next.
        let marks = ((announces && !silent) || state.conn == Conn::WFBitMapT)
            && self.mark_out_of_sync(id, io.sector, io.size_bytes);
        // Before that the peer does not understand it; what waits is in the bitmap that it gets, see `mark_writes_under_way`.
        let announces = announces && self.link.apv >= NOTICE_PROTOCOL;
        // While Ahead it is told even if nothing changes here: an earlier write of the same blocks may be on its way, and the peer
        // clears their bits when that is done. (The C module keeps quiet then, and the two differ in the end.)
        let notice = announces && (marks || state.conn == Conn::Ahead);
        let epoch = self.link.epoch;
        // Each packet says what acknowledgement it wants. spec: wire-protocol 3.3
        let asks_for_acks = self.link.apv >= 100;
        if let Some(slot) = self.requests.at_mut(index) {
            slot.phase = Phase::Active;
            if local {
                slot.local = Local::Pending;
            } else {
                slot.forget_local();
            }
            slot.local_counts = state.disk == Disk::UpToDate;
            slot.net_counts = state.pdsk == Disk::UpToDate;
            if !slot.local_counts && asks_for_acks {
                // The peer's copy is the only good one: it has to be on its disk before the write is acknowledged.
                slot.protocol = WireProtocol::C;
            }
            slot.net = if notice { Net::Queued } else { Net::None };
            slot.notice_only = notice;
            slot.epoch = epoch;
        }
        if replicate {
            self.mirror(index);
        } else if notice {
            self.overtake_mirrored(index);
            self.queue_data(DataOut::OutOfSync(request));
        }
        if local {
            self.submit_request(id, request, io.op);
        } else {
            self.local_part_over(index);
        }
        if !local && !replicate {
            self.settle(index);
        }
    }

    /// The peer gets a write, in the present epoch.
    pub(super) fn mirror(&mut self, index: u16) {
        let request = self.requests.id(index);
        let epoch = self.link.epoch;
        let Some(slot) = self.requests.at_mut(index) else { return };
        slot.net = Net::Queued;
        slot.overtaken = false;
        slot.epoch = epoch;
        let id = slot.volume;
        let mut log = self.log;
        log.push(&mut self.requests, index);
        self.log = log;
        self.link.epoch_writes += 1;
        if let Some(volume) = self.volume_mut(id) {
            volume.peer_pending += 1;
        }
        self.queue_data(DataOut::Write(request));
        if self.link.epoch_writes >= self.link.net.max_epoch_size {
            self.close_epoch();
        }
    }

    /// Sends the local part of an application request to the disk. With a disk-timeout it may have to be given up while
    /// the device still has it; how long the request has waited for the peer before is not the disk's fault.
    fn submit_request(&mut self, id: VolumeId, request: RequestId, op: Op) {
        let copy = self.volume(id).is_some_and(|volume| volume.conf.disk_timeout > 0);
        let now_ms = self.now_ms;
        if let Some(slot) = self.requests.get_mut(request) {
            slot.copied = copy;
            slot.local_since_ms = now_ms;
        }
        self.submit_local(id, LocalIo::Request { request, volume: id, op, copy });
    }

    /// Queues local I/O and counts it.
    pub(super) fn submit_local(&mut self, id: VolumeId, io: LocalIo) {
        if let Some(volume) = self.volume_mut(id) {
            volume.lower_pending += 1;
        }
        let pushed = match io.clears() {
            Some(volume) => {
                self.clears_ordered |= 1 << volume.0;
                self.clears.push(io)
            }
            None => self.local.push(io),
        };
        if !pushed {
            self.internal_error("the queue of local I/O is full");
        }
        self.wakes.insert(Wakes::LOCAL_IO);
    }

    /// The local part of an application request has completed. May be called in any context.
    pub fn request_io_done(&mut self, request: RequestId, result: IoResult, now_ms: u64) {
        self.now_ms = now_ms;
        if self.requests.get(request).is_some_and(|slot| slot.local == Local::Aborted) {
            self.aborted_io_done(request);
            return;
        }
        let Some(slot) = self.requests.get_mut(request).filter(|slot| slot.local == Local::Pending) else { return };
        slot.local = if result.is_ok() { Local::Ok } else { Local::Failed };
        slot.local_error = result.err();
        let slot = *slot;
        let sectors = u64::from(slot.io.size_bytes / 512);
        if let Some(volume) = self.volume_mut(slot.volume) {
            volume.lower_pending = volume.lower_pending.saturating_sub(1);
            volume.foreign_sectors = volume.foreign_sectors.wrapping_add(sectors);
            if result.is_ok() {
                let counters = &mut volume.counters;
                let counter =
                    if slot.io.op == Op::Read { &mut counters.read_sectors } else { &mut counters.written_sectors };
                *counter = counter.wrapping_add(sectors);
            }
        }
        if result.is_err() && self.zero_instead(request) {
            return;
        }
        if result.is_err() {
            self.local_request_failed(request.index);
        }
        if slot.postponed {
            self.yield_to_peer(request.index);
        }
        self.local_part_over(request.index);
        self.settle(request.index);
        self.check_disk_idle(slot.volume);
    }

    /// A discard failed on the own disk, and the peer does it: the range has to read the same here, so zeroes are written. (The C
    /// module keeps what was there, and reads it.)
    fn zero_instead(&mut self, request: RequestId) -> bool {
        let Some(slot) = self.requests.get_mut(request) else { return false };
        let again = slot.io.op == Op::Discard && slot.is_mirrored() && !slot.zeroed_here && !slot.postponed;
        let id = slot.volume;
        if !again || self.volume(id).is_none_or(|volume| volume.state.disk < Disk::Inconsistent) {
            return false;
        }
        if let Some(slot) = self.requests.get_mut(request) {
            slot.zeroed_here = true;
            slot.local = Local::Pending;
        }
        self.submit_request(id, request, Op::WriteZeroes { unmap: false });
        true
    }

    /// spec: state-machine 13.4, 18.6
    fn local_request_failed(&mut self, index: u16) {
        let Some(slot) = self.requests.at_mut(index) else { return };
        match slot.io.op {
            Op::Read => {
                slot.local_read_failed = true;
                if !slot.io.flags.readahead {
                    let (id, sector, size) = (slot.volume, slot.io.sector, slot.io.size_bytes);
                    self.mark_out_of_sync(id, sector, size);
                    self.disk_failed(id, super::volume::DiskError::Read);
                }
            }
            Op::Write | Op::Flush => {
                let id = slot.volume;
                let flushes = slot.io.op == Op::Flush || slot.io.flags.preflush;
                self.disk_failed(id, super::volume::DiskError::Write);
                if flushes {
                    self.cache_lost(id);
                }
            }
            // The peer has the zeroes that this disk could not write. (The C module lets the disk be.)
            Op::Discard | Op::WriteZeroes { .. } if slot.is_mirrored() => {
                let id = slot.volume;
                self.disk_failed(id, super::volume::DiskError::Write);
            }
            // What nobody has done fails, and a failed discard is not a failed disk.
            Op::Discard | Op::WriteZeroes { .. } => {}
        }
    }

    /// Moves a request on after one of its parts has changed: ends the bio when the protocol allows it, gives the slot
    /// back when nothing more can come for it. The only place that does either.
    /// spec: state-machine 18.2, 18.7, 18.8
    pub(super) fn settle(&mut self, index: u16) {
        let Some(slot) = self.requests.at(index).copied() else { return };
        let waiting = slot.local == Local::Pending
            || (matches!(slot.net, Net::Queued | Net::Waiting) && !self.sabotaged(Sabotage::AcknowledgeWithoutPeer))
            || self.waits_for_barrier(&slot);
        if slot.phase == Phase::Active && !waiting && self.only_peer_has(&slot) {
            self.record_loss(slot.volume);
        }
        if slot.phase == Phase::Active && !waiting && !self.completion_held(&slot) {
            let done = self.local_copy_counts(&slot) || self.peers_copy_counts(&slot);
            if !done && slot.io.op == Op::Read && self.retry_read(index) {
                return;
            }
            // What the own disk said comes first. spec: state-machine 18.7
            let error = self.requests.at(index).and_then(|slot| slot.local_error).unwrap_or(IoError::Io);
            self.complete(index, if done { Ok(()) } else { Err(error) });
        } else if slot.phase == Phase::Active && !waiting && slot.in_overlaps && self.awaits_peers_word(&slot) {
            // The packet that it waits for may come after a barrier, and that after a write of the peer, Primary as well, that
            // waits for this one. Both halves of this one are over.
            self.leave_overlaps(u32::from(index));
        }
        let over = self.requests.at(index).is_some_and(|slot| {
            let on_disk = matches!(slot.local, Local::Pending | Local::Aborted);
            slot.phase == Phase::Completed && !slot.in_log && !on_disk
        });
        if over {
            self.release_request(index);
        }
    }

    /// The local part alone makes the request a success. A write has to be on a disk that was good when it began and still
    /// is: what a disk holds that failed or became the target of a resync meanwhile will be overwritten.
    pub(super) fn local_copy_counts(&self, slot: &super::slots::Request) -> bool {
        let still_good = || self.volume(slot.volume).is_some_and(|volume| volume.state.disk == Disk::UpToDate);
        let counts = !slot.io.op.is_write() || still_good() || self.sabotaged(Sabotage::CountBadDisk);
        slot.local == Local::Ok && slot.local_counts && counts
    }

    /// The same for the peer's part: its disk may have been invalidated meanwhile.
    pub(super) fn peers_copy_counts(&self, slot: &super::slots::Request) -> bool {
        let still_good = || self.volume(slot.volume).is_some_and(|volume| volume.state.pdsk == Disk::UpToDate);
        slot.net == Net::Ok && slot.net_counts && (slot.io.op == Op::Read || still_good())
    }

    /// The write went to a disk that was good and is not any more; the peer has it.
    fn only_peer_has(&self, slot: &super::slots::Request) -> bool {
        slot.io.op.is_write()
            && slot.local_counts
            && matches!(slot.local, Local::Ok | Local::Failed | Local::Aborted)
            && !self.local_copy_counts(slot)
            && self.peers_copy_counts(slot)
    }

    /// Protocol A or B, and the local copy is worth nothing any more: that the peer's has been handed to TCP, or is in its
    /// memory, is not enough. The acknowledgement of the barrier tells that it is safe.
    fn waits_for_barrier(&mut self, slot: &super::slots::Request) -> bool {
        let waits = slot.protocol != WireProtocol::C
            && matches!(slot.local, Local::Ok | Local::Failed | Local::Aborted)
            && !self.local_copy_counts(slot)
            && slot.net == Net::Ok
            && slot.in_log;
        if waits && slot.epoch == self.link.epoch {
            self.close_epoch();
        }
        waits
    }

    /// Completions are withheld while I/O is suspended, and while the loss of the peer, or of its disk, is not yet recorded:
    /// a write that only this node has must not be acknowledged before the new generation is durable.
    fn completion_held(&self, slot: &super::slots::Request) -> bool {
        if self.susp.any() {
            return true;
        }
        let Some(volume) = self.volume(slot.volume) else { return false };
        let unseen = volume.failure_unseen_until_ms.is_some();
        let only_peer = || !self.local_copy_counts(slot) && self.peers_copy_counts(slot);
        // A disk that failed and is kept: whatever the peer alone has, also if that was written after the failure.
        let kept = volume.loss_version.is_some() && volume.state.disk == Disk::Inconsistent;
        if slot.io.op == Op::Flush {
            return (unseen || kept) && only_peer();
        }
        if !slot.io.op.is_write() {
            return false;
        }
        if slot.net == Net::Ok {
            ((unseen || volume.loss_version.is_some()) && self.only_peer_has(slot)) || (kept && only_peer())
        } else {
            // The peer's disk has failed, as its state packet is about to tell: a new generation is due. Not where the copy here is
            // worth nothing: then nothing is acknowledged anyway, and the peer, being the source of a resync, tells nothing when it
            // keeps its disk.
            (slot.refused && slot.local_counts && volume.state.disk == Disk::UpToDate)
                || (volume.generation_pending() && !self.sabotaged(Sabotage::AcknowledgeBeforeGeneration))
                || volume.outdates_silently()
                || volume.resync.consent_unheard
        }
    }

    /// A packet of the peer has to come before this write may end: the one that explains its refusal, or one that shows that the peer
    /// knows of the loss of the disk here.
    fn awaits_peers_word(&self, slot: &super::slots::Request) -> bool {
        // No other peer writes, and what comes later keeps behind this one.
        let awaits = |volume: &Volume<S>| {
            volume.state.peer == Role::Primary
                && (volume.failure_unseen_until_ms.is_some() || volume.loss_version.is_some())
        };
        slot.refused || (slot.net == Net::Ok && self.volume(slot.volume).is_some_and(awaits))
    }

    /// A read that failed takes whatever path there is now, or none (false). Where the peer could not do it that is often the same
    /// one: its refusal comes over the other socket than its state, which tells why, or its disk may be back by now.
    // spec: wire-protocol 7
    fn retry_read(&mut self, index: u16) -> bool {
        let request = self.requests.id(index);
        let Some(slot) = self.requests.at_mut(index) else { return false };
        if slot.io.flags.readahead {
            return false;
        }
        slot.forget_local();
        slot.net = Net::None;
        self.answered_while_sent(request);
        if self.read_path(request) == ReadPath::Nowhere {
            return false;
        }
        self.start_read(request);
        true
    }

    /// Ends the application's request, and remembers what the two nodes differ in.
    fn complete(&mut self, index: u16, result: IoResult) {
        if let Some(slot) = self.requests.at_mut(index) {
            slot.phase = Phase::Completed;
        }
        self.record(index);
        self.end(index, result);
    }

    /// Ends the application's request.
    fn end(&mut self, index: u16, result: IoResult) {
        let request = self.requests.id(index);
        let Some(slot) = self.requests.at_mut(index) else { return };
        slot.phase = Phase::Completed;
        let slot = *slot;
        if slot.io.op.is_write() && result.is_ok() && slot.local != Local::Ok {
            self.with_volume(slot.volume, |volume| volume.wrote_elsewhere = true);
        }
        if slot.in_log && slot.epoch == self.link.epoch {
            // A later write may depend on this one: it must not be in the same epoch.
            self.close_epoch();
        }
        if slot.in_overlaps {
            self.leave_overlaps(u32::from(index));
        }
        if slot.in_log && self.sabotaged(Sabotage::ForgetBeforeBarrier) {
            self.leave_log(index);
        }
        if self.sabotaged(Sabotage::CompleteTwice) {
            let _fits = self.completions.push(Completion { request, result });
        }
        if !self.completions.push(Completion { request, result }) {
            self.internal_error("the queue of completions is full");
        }
        self.wakes.insert(Wakes::COMPLETIONS);
        if let Some(volume) = self.volume_mut(slot.volume) {
            volume.upper_pending = volume.upper_pending.saturating_sub(1);
            self.upper_pending = self.upper_pending.saturating_sub(1);
        }
        self.reopen_gate();
        self.upper_request_ended(slot.volume);
    }

    /// Removes an entry from the overlaps; what waited for it starts in [`Engine::pump`].
    pub(super) fn leave_overlaps(&mut self, entry: u32) {
        let Engine { overlaps, requests, peers, ready, ready_peers, .. } = self;
        let capacity = requests.capacity() as u32;
        if entry < capacity {
            if let Some(slot) = requests.at_mut(entry as u16) {
                slot.in_overlaps = false;
            }
        }
        overlaps.remove(entry, |id| {
            if id < capacity {
                requests.push(ready, id as u16);
            } else {
                peers.push(ready_peers, ((id - capacity) / 2) as u16);
            }
        });
    }

    /// Starts what became ready during the last call. A loop, not recursion: a long queue of overlapping writes must
    /// not become a deep stack.
    pub(super) fn pump(&mut self) {
        loop {
            let Engine { requests, ready, .. } = self;
            if let Some(index) = requests.pop(ready) {
                self.log_activity(index);
                continue;
            }
            let Engine { peers, ready_peers, .. } = self;
            if let Some(index) = peers.pop(ready_peers) {
                self.peer_overlap_ended(index);
                continue;
            }
            let Engine { requests, restarts, .. } = self;
            if let Some(index) = requests.pop(restarts) {
                self.restart_write(index);
                continue;
            }
            if self.log_retry != 0 {
                self.retry_activity(VolumeId(self.log_retry.trailing_zeros() as u8));
            } else if !self.run_held_request() && !self.run_admin() {
                return;
            }
        }
    }

    /// Nothing more can come for this slot: give back its activity log extents, then free it.
    /// spec: state-machine 18.8
    fn release_request(&mut self, index: u16) {
        let Some(slot) = self.requests.at(index) else { return };
        let logged = slot.in_activity_log.then(|| (slot.volume, slot.extents()));
        self.peer_reads = self.peer_reads.saturating_sub(u32::from(slot.peer_read));
        self.requests.release(index);
        if let Some((id, (first, last))) = logged {
            if let Some(volume) = self.volume_mut(id) {
                volume.end_activity(first, last);
            }
            self.want_activity_retry(id);
        }
        self.reopen_gate();
    }

    /// An acknowledgement arrived for a write. `None` when it names nothing on the books.
    pub(super) fn acknowledged(&mut self, request: RequestId, sector: u64, result: Net) -> Option<()> {
        let slot = self.requests.get_mut(request).filter(|slot| slot.io.sector == sector && slot.io.op != Op::Read)?;
        if slot.phase != Phase::Active && !slot.in_log {
            return None;
        }
        let id = slot.volume;
        let state = self.volume(id)?.state;
        let is_good = state.conn >= Conn::Connected && state.pdsk == Disk::UpToDate;
        let slot = self.requests.get_mut(request)?;
        let pending = slot.net == Net::Waiting || slot.net == Net::Queued;
        if result == Net::Failed || slot.net != Net::Failed {
            slot.net = result;
        }
        slot.refused |= result == Net::Failed && is_good;
        let contested = slot.contested.take().is_some();
        let began_without_disk = slot.local == Local::None;
        self.overlaps.answered(u32::from(request.index));
        let slot = self.requests.get_mut(request)?;
        if slot.phase == Phase::Completed || result == Net::Failed {
            self.record(request.index);
        }
        if pending {
            if let Some(volume) = self.volume_mut(id) {
                volume.peer_pending = volume.peer_pending.saturating_sub(1);
            }
            self.check_waiting_command();
        }
        if contested {
            self.release_held_acks();
        }
        if began_without_disk && result == Net::Ok && state.disk <= Disk::Failed {
            // It was sent after the state packet that tells of that.
            self.peers_knowledge_shown(id);
        }
        self.settle(request.index);
        Some(())
    }

    /// A packet of an application request has been handed to TCP (or could not be).
    pub(super) fn request_sent(&mut self, request: RequestId, ok: bool) {
        let Some(slot) = self.requests.get_mut(request).filter(|slot| slot.net == Net::Queued) else {
            // It was acknowledged before the sender came back to tell.
            return;
        };
        if !ok {
            // The connection is about to be given up; what was not sent is settled then.
            return;
        }
        let id = slot.volume;
        let sectors = u64::from(slot.io.size_bytes / 512);
        let slot_op = slot.io.op;
        let write = slot_op.is_write();
        let mut settled = false;
        if slot.notice_only {
            slot.net = Net::None;
            slot.notice_only = false;
            settled = true;
        } else if write && slot.protocol == WireProtocol::A {
            slot.net = Net::Ok;
            settled = true;
        } else {
            slot.net = Net::Waiting;
        }
        let notice = settled && slot.net == Net::None;
        if let Some(volume) = self.volume_mut(id) {
            if slot_op == Op::Write && !notice {
                volume.counters.sent_sectors = volume.counters.sent_sectors.wrapping_add(sectors);
            }
            if settled && !notice {
                volume.peer_pending = volume.peer_pending.saturating_sub(1);
            }
        }
        if settled {
            self.settle(request.index);
        }
    }

    /// The network part of everything under way has failed: the connection is gone.
    /// spec: state-machine 18.9
    pub(super) fn fail_network_parts(&mut self) {
        while let Some(index) = self.log.front() {
            let mut log = self.log;
            log.remove(&mut self.requests, index);
            self.log = log;
            self.fail_network_part(index);
        }
        for index in 0..self.requests.capacity() as u16 {
            let outstanding = self
                .requests
                .at(index)
                .is_some_and(|slot| slot.phase == Phase::Active && matches!(slot.net, Net::Queued | Net::Waiting));
            if outstanding {
                self.fail_network_part(index);
            }
        }
        self.kept_writes_over();
    }

    pub(super) fn fail_network_part(&mut self, index: u16) {
        let Some(slot) = self.requests.at_mut(index) else { return };
        let id = slot.volume;
        let pending = matches!(slot.net, Net::Queued | Net::Waiting) && !slot.notice_only;
        slot.net = if slot.notice_only { Net::None } else { Net::Failed };
        slot.notice_only = false;
        slot.postponed = false;
        slot.kept = false;
        slot.refused = false;
        self.record(index);
        if pending {
            if let Some(volume) = self.volume_mut(id) {
                volume.peer_pending = volume.peer_pending.saturating_sub(1);
            }
        }
        self.settle(index);
    }

    /// Closes the current epoch if it has writes. spec: wire-protocol 3.6
    pub(super) fn close_epoch(&mut self) {
        if self.link.epoch_writes > 0 && !self.sabotaged(Sabotage::NeverCloseEpoch) {
            self.link.epoch = self.link.epoch.wrapping_add(1);
            self.link.epoch_writes = 0;
        }
    }

    /// Somebody waits for what only a barrier acknowledgement gives back: do not wait for the next write to send one.
    pub(super) fn want_barrier(&mut self) {
        self.close_epoch();
        if self.link.sent_writes > 0 {
            self.link.barrier_due = true;
            self.wakes.insert(Wakes::DATA_SENDER);
        }
    }

    /// Tells the owner that parked requests may be submitted again.
    pub(super) fn reopen_gate(&mut self) {
        if self.gate_waiters && !self.susp.any() {
            self.gate_waiters = false;
            self.wakes.insert(Wakes::GATE);
        }
    }

    /// True when the application waits for no more than one request: nothing is gained by collecting packets. Under
    /// protocol A that cannot be told, because what is sent is done.
    pub fn few_requests(&self) -> bool {
        self.upper_pending <= 1 && self.link.net.wire_protocol != WireProtocol::A
    }

    /// The next completed application request; its bio may be ended in any context.
    pub fn poll_completion(&mut self) -> Option<Completion> {
        self.completions.pop()
    }

    /// Volumes, one bit each, for which [`Engine::poll_clear`] has something that it had not at the last call.
    pub fn clears_ordered(&mut self) -> u64 {
        core::mem::take(&mut self.clears_ordered)
    }

    /// The next discard or write of zeroes on this volume's disk. Whoever carries it out may have to wait for as long as the disk
    /// takes, so nobody should whom others wait for.
    pub fn poll_clear(&mut self, id: VolumeId) -> Option<LocalIo> {
        self.clears.pop_if(|io| io.clears() == Some(id))
    }

    /// The next local I/O to submit, in process context; it is only started, and never has to be waited for.
    pub fn poll_local(&mut self) -> Option<LocalIo> {
        self.local.pop()
    }

    /// True when [`Engine::poll_local`] has something.
    pub fn has_local(&self) -> bool {
        !self.local.is_empty()
    }

    /// True when this node may write.
    pub(super) fn is_primary(&self, id: VolumeId) -> bool {
        self.volume(id).is_some_and(|volume| volume.state.role == Role::Primary)
    }
}
