// SPDX-License-Identifier: GPL-2.0
//! What was under way when I/O was frozen: it waits for the next connection, or for good data, and goes on from there.
//! spec: state-machine 18.6 (RESEND, RESTART_FROZEN_DISK_IO), 18.9; wire-protocol 11.2 (3)

use super::api::{Op, VolumeId};
use super::outgoing::DataOut;
use super::slots::{Local, Net, Phase, Request};
use super::Engine;
use crate::netlink::WireProtocol;
use crate::state::{replicates, Conn, Disk};
use crate::storage::Storage;

impl<S: Storage> Engine<S> {
    /// The connection is lost while I/O is frozen: what was given to it is kept for the next one. What was only to be announced
    /// is in the bitmap, which the next one exchanges.
    pub(super) fn keep_network_parts(&mut self) {
        self.fail_what_was_only_sent();
        for index in 0..self.requests.capacity() as u16 {
            let Some(slot) = self.requests.at_mut(index) else { continue };
            slot.kept |= slot.in_log || slot.awaits_answer();
            // The next bitmaps mark it on both nodes again, if this one has not cleared it by then. (The C module clears it only here.)
            slot.peer_in_sync = false;
            if core::mem::take(&mut slot.notice_only) {
                slot.net = Net::None;
            }
        }
    }

    /// A write under protocol A that has been ended cannot be sent again, and nobody knows whether the peer has it: it is marked, and told by a
    /// new generation, as when I/O is not frozen. (The C module takes it for one that is on the peer's disk.)
    fn fail_what_was_only_sent(&mut self) {
        let mut at = self.log.front();
        while let Some(index) = at {
            at = self.log.next(&self.requests, index);
            let sent = |slot: &&Request| slot.phase == Phase::Completed && slot.protocol == WireProtocol::A;
            let Some(id) = self.requests.at(index).filter(sent).map(|slot| slot.volume) else { continue };
            self.record_loss_of_peer(id);
            let mut log = self.log;
            log.remove(&mut self.requests, index);
            self.log = log;
            self.fail_network_part(index);
        }
    }

    /// Something of this volume that [`Engine::resend`] would send is not understood by this peer.
    pub(super) fn has_what_peer_does_not_take(&self, id: VolumeId) -> bool {
        let slots = (0..self.requests.capacity() as u16).filter_map(|index| self.requests.at(index));
        let waits = |slot: &&Request| slot.volume == id && slot.phase == Phase::Active && slot.io.op.is_write();
        slots.filter(waits).any(|slot| (slot.kept || slot.net == Net::None) && !self.peer_takes(&slot.io))
    }

    /// Writes of this volume wait for the next connection, though it may have been demoted meanwhile.
    pub(super) fn keeps_writes(&self, id: VolumeId) -> bool {
        let mut at = self.log.front();
        while let Some(index) = at {
            if self.requests.at(index).is_some_and(|slot| slot.volume == id && self.is_kept(slot)) {
                return true;
            }
            at = self.log.next(&self.requests, index);
        }
        false
    }

    /// This write on the transfer log waits for the next connection.
    pub(super) fn is_kept(&self, slot: &Request) -> bool {
        slot.kept || self.link.conn < Conn::WFReportParams
    }

    /// Nothing is kept any more: the superblocks need not ask for the activity log because of it.
    pub(super) fn kept_writes_over(&mut self) {
        for id in self.volume_ids() {
            self.update_meta_flags(id);
            self.sync_metadata(id);
        }
    }

    /// The connection is back: what was kept and has no acknowledgement is sent again, in the present epoch; what has one is
    /// on the peer's disk.
    pub(super) fn resend(&mut self) {
        let mut at = self.log.front();
        while let Some(index) = at {
            at = self.log.next(&self.requests, index);
            self.resend_write(index);
        }
        for index in 0..self.requests.capacity() as u16 {
            let request = self.requests.id(index);
            let epoch = self.link.epoch;
            let Some(slot) = self.requests.at_mut(index) else { continue };
            if core::mem::take(&mut slot.kept) && slot.awaits_answer() {
                slot.net = Net::Queued;
                slot.epoch = epoch;
                self.queue_data(DataOut::ReadRequest(request));
            } else if slot.phase == Phase::Active && slot.io.op.is_write() && slot.net == Net::None {
                self.send_late(index);
            }
        }
        self.kept_writes_over();
    }

    fn resend_write(&mut self, index: u16) {
        let Some(slot) = self.requests.at_mut(index).filter(|slot| slot.kept) else { return };
        slot.kept = false;
        let slot = *slot;
        let mut log = self.log;
        log.remove(&mut self.requests, index);
        self.log = log;
        // What has been ended, though the peer refused it, is in the bitmap; its pages are not ours any more. That a write was handed
        // to a connection which is gone (protocol A) does not mean that the peer has it. And where that one's copy is the only one,
        // a new generation begins there with the first write that comes.
        let acknowledged = slot.net == Net::Ok && slot.protocol != WireProtocol::A && self.local_copy_counts(&slot);
        if acknowledged || slot.phase == Phase::Completed {
            self.settle(index);
            return;
        }
        if let Some(slot) = self.requests.at_mut(index) {
            slot.postponed = false;
            slot.contested = None;
        }
        if !self.peer_takes(&slot.io) {
            // It is another peer than before.
            self.fail_network_part(index);
            return;
        }
        if matches!(slot.net, Net::Queued | Net::Waiting) {
            self.with_volume(slot.volume, |volume| volume.peer_pending = volume.peer_pending.saturating_sub(1));
        }
        let has_disk = self.volume(slot.volume).is_some_and(|volume| volume.state.disk >= Disk::Inconsistent);
        if has_disk && matches!(slot.local, Local::None | Local::Failed) {
            // It began while there was no disk here, or failed on it.
            self.do_anew(index);
        } else {
            self.mirror(index);
        }
    }

    /// A write that began while there was no connection, because its extents of the activity log took so long, and is not
    /// over because I/O is frozen. Neither is it in the bitmap nor is a resync due, so the peer has to have it.
    fn send_late(&mut self, index: u16) {
        let Some(slot) = self.requests.at(index).copied() else { return };
        let Some(state) = self.volume(slot.volume).map(|volume| volume.state) else { return };
        // What no disk here has is done anew where that is wanted, see `restart_failed`.
        if !replicates(state) || !matches!(slot.local, Local::Pending | Local::Ok) {
            return;
        }
        if let Some(slot) = self.requests.at_mut(index) {
            slot.net_counts = state.pdsk == Disk::UpToDate;
        }
        self.mirror(index);
    }

    /// Good data is in reach again while I/O was frozen for want of it: what would have failed is done anew.
    pub(super) fn restart_failed(&mut self) {
        for index in 0..self.requests.capacity() as u16 {
            let Some(slot) = self.requests.at(index).copied() else { continue };
            let under_way =
                slot.local == Local::Pending || matches!(slot.net, Net::Queued | Net::Waiting) || slot.in_log;
            let done = self.local_copy_counts(&slot) || self.peers_copy_counts(&slot);
            if slot.phase != Phase::Active || under_way || done {
                continue;
            }
            self.do_anew(index);
        }
    }

    /// A request whose parts, here and at the peer, do not count any more: as if it had just come.
    fn do_anew(&mut self, index: u16) {
        let Some(slot) = self.requests.at_mut(index) else { return };
        slot.forget_local();
        slot.net = Net::None;
        slot.local_read_failed = false;
        let (op, in_overlaps) = (slot.io.op, slot.in_overlaps);
        let request = self.requests.id(index);
        match op {
            Op::Read => self.start_read(request),
            Op::Flush => self.start_flush(request),
            Op::Write | Op::Discard | Op::WriteZeroes { .. } if in_overlaps => self.log_activity(index),
            Op::Write | Op::Discard | Op::WriteZeroes { .. } => {
                if let Some(slot) = self.requests.at_mut(index) {
                    slot.phase = Phase::Overlap;
                }
                self.start_write(request);
            }
        }
    }
}
