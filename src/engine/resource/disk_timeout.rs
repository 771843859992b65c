// SPDX-License-Identifier: GPL-2.0
//! A disk that does not answer: it is given up after `disk-timeout`, or when the administrator forces a detach.
//!
//! What the device still has cannot be taken from it. So the local parts of requests have pages of their own where a
//! timeout is configured: the application's request goes on without its local part, on the peer or with an error, and the
//! slot, the copy and the disk itself stay until the device is done.
//! spec: state-machine 13.4, 21.2

use super::api::{RequestId, VolumeId};
use super::slots::Local;
use super::volume::DiskError;
use super::work::LogLine;
use super::Engine;
use crate::state::Disk;
use crate::storage::Storage;

impl<S: Storage> Engine<S> {
    /// The disk is let go although requests are on it, for a timeout or by command.
    pub(super) fn force_detach(&mut self, id: VolumeId, why: DiskError) {
        self.with_volume(id, |volume| volume.force_detach = true);
        self.disk_failed(id, why);
        self.abort_disk_io(id);
        // A transaction that is on its way may never end. The peer has been told before these writes come: it has to
        // note what only it has.
        self.activate_without_log(id);
        self.check_disk_idle(id);
    }

    /// Gives up every local part that can be given up.
    pub(super) fn abort_disk_io(&mut self, id: VolumeId) {
        // Nothing that needs a generation on this disk can succeed any more.
        self.with_volume(id, |volume| volume.generation_version = None);
        for index in 0..self.requests.capacity() as u16 {
            let on_disk = |slot: &&mut super::slots::Request| slot.volume == id && slot.local == Local::Pending;
            let Some(slot) = self.requests.at_mut(index).filter(on_disk).filter(|slot| slot.copied) else { continue };
            slot.local = Local::Aborted;
            slot.local_read_failed = true;
            let slot = *slot;
            if slot.postponed {
                self.yield_to_peer(index);
            }
            self.local_part_over(index);
            self.settle(index);
        }
    }

    /// The device is done with a request that was given up.
    pub(super) fn aborted_io_done(&mut self, request: RequestId) {
        let Some(slot) = self.requests.get_mut(request) else { return };
        slot.local = Local::Failed;
        let id = slot.volume;
        self.with_volume(id, |volume| volume.lower_pending = volume.lower_pending.saturating_sub(1));
        self.settle(request.index);
        self.check_disk_idle(id);
    }

    /// Looks for requests that the disks do not answer, once a second.
    pub(super) fn check_disk_timeouts(&mut self) {
        if self.now_ms < self.disks_checked_ms.saturating_add(1000) {
            return;
        }
        self.disks_checked_ms = self.now_ms;
        for id in self.volume_ids() {
            let Some(volume) = self.volume(id) else { continue };
            let limit_ms = u64::from(volume.conf.disk_timeout) * 100;
            let attached_ms = self.now_ms.saturating_sub(volume.attached_ms);
            if limit_ms == 0 || volume.state.disk <= Disk::Failed || attached_ms < limit_ms {
                continue;
            }
            let oldest = self.oldest_on_disk(id).into_iter().chain(self.metadata_waits_since(id)).min();
            if oldest.is_some_and(|since_ms| self.now_ms.saturating_sub(since_ms) > limit_ms) {
                self.log(LogLine::DiskTimeout { volume: id, limit_ms });
                self.force_detach(id, DiskError::Timeout);
            }
        }
    }

    fn oldest_on_disk(&self, id: VolumeId) -> Option<u64> {
        let slots = (0..self.requests.capacity() as u16).filter_map(|index| self.requests.at(index));
        let waits = |slot: &&super::slots::Request| slot.volume == id && slot.local == Local::Pending;
        slots.filter(waits).map(|slot| slot.local_since_ms).min()
    }

    fn metadata_waits_since(&self, id: VolumeId) -> Option<u64> {
        self.volume(id)?.disk.as_ref()?.pipeline.waits_since_ms()
    }
}
