// SPDX-License-Identifier: GPL-2.0
//! The end of an epoch that the peer writes: its barrier, the flushes of the disks' caches, the acknowledgement.
//! spec: wire-protocol 3.6

use super::api::{IoResult, LocalIo, VolumeId, Wakes};
use super::incoming::Fault;
use super::volume::{DiskError, FlushFor};
use super::{Engine, Sabotage};
use crate::state::{Conn, Disk, Role};
use crate::storage::Storage;

/// The epoch being received. spec: wire-protocol 3.6
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ReceivedEpoch {
    /// Writes since the last barrier.
    pub(super) size: u32,
    /// Of these, not yet on the disk.
    pub(super) active: u32,
    /// The barrier that closes it has arrived; the receiver waits.
    barrier: Option<u32>,
    /// Volumes whose disk has a write of it, one bit each: their caches have to be flushed.
    pub(super) written: u64,
    /// Cache flushes under way, before the acknowledgement.
    pub(super) flushes: u32,
    /// Volumes whose cache is being flushed, or has been.
    flushed: u64,
    /// Volumes whose disk failed before its cache was flushed: the writer must not forget what it wrote there.
    lost: u64,
    /// Writes of it that were refused for one of our own.
    pub(super) refused: u32,
}

impl ReceivedEpoch {
    /// One more write. How many there are before a barrier is up to the peer, and some are answered at once, so that the
    /// number of requests is no bound either. What it says of an epoch larger than any writer counts is of no use to anybody.
    pub(super) fn count(&mut self) {
        self.size = self.size.saturating_add(1);
    }

    /// A write of it was refused for one of our own.
    pub(super) fn refuse(&mut self) {
        self.refused = self.refused.saturating_add(1);
        self.active = self.active.saturating_sub(1);
    }

    /// It has writes that are not acknowledged by a barrier.
    pub(super) fn is_open(&self) -> bool {
        self.size > 0
    }

    /// The next packet has to wait until the barrier is acknowledged.
    pub(super) fn is_closing(&self) -> bool {
        self.barrier.is_some()
    }

    /// The cache of this volume's disk is lost, and with it what the peer has written there since its last barrier.
    pub(super) fn cache_lost(&mut self, id: VolumeId) {
        self.lost |= (self.written | self.flushed) & (1 << id.0);
    }

    /// The connection is gone. Flushes under way are still counted, and what is to be flushed: that has to end before the next one.
    pub(super) fn abandon(&mut self) {
        let ReceivedEpoch { written, flushes, .. } = *self;
        *self = ReceivedEpoch { written, flushes, ..ReceivedEpoch::default() };
    }
}

impl<S: Storage> Engine<S> {
    /// P_BARRIER. spec: wire-protocol 3.6
    pub(super) fn receive_barrier(&mut self, number: u32) {
        if self.link.received_epoch.size == 0 {
            return;
        }
        self.link.received_epoch.barrier = Some(number);
        self.close_received_epoch();
    }

    /// All writes of the epoch are on the disks: flush their caches, then acknowledge. An acknowledged epoch is
    /// forgotten by the writer, so it has to survive a power cut here; the acknowledgement comes after the flush.
    pub(super) fn close_received_epoch(&mut self) {
        let epoch = self.link.received_epoch;
        if epoch.barrier.is_none() || epoch.active > 0 || epoch.flushes > 0 {
            return;
        }
        self.flush_written();
        if self.link.received_epoch.flushes == 0 {
            self.acknowledge_epoch();
        }
    }

    /// Has the caches flushed of all disks that have a write of the epoch being received.
    fn flush_written(&mut self) {
        let written = core::mem::take(&mut self.link.received_epoch.written);
        self.link.received_epoch.flushed |= written;
        for id in self.volume_ids().filter(|id| written & (1 << id.0) != 0) {
            match self.volume(id) {
                _ if self.sabotaged(Sabotage::SkipBarrierFlush) => {}
                Some(volume) if !volume.conf.disk_flushes => {}
                Some(volume) if volume.can_flush() => {
                    self.link.received_epoch.flushes += 1;
                    self.submit_flush(id, FlushFor::Barrier);
                }
                _ => self.link.received_epoch.lost |= 1 << id.0,
            }
        }
    }

    /// The connection is gone, and with it the barrier that was to come. A writer whose I/O is frozen takes what was acknowledged for
    /// safe when it meets this node again, not rebooted. (The C module does not flush.)
    pub(super) fn flush_abandoned(&mut self) {
        if self.peers.used() == 0 && self.link.received_epoch.flushes == 0 {
            self.flush_written();
        }
    }

    /// Has the cache of a data disk flushed.
    pub(super) fn submit_flush(&mut self, id: VolumeId, purpose: FlushFor) {
        self.with_volume(id, |volume| {
            if let Some(place) = volume.flushes.iter_mut().find(|place| place.is_none()) {
                *place = Some(purpose);
            }
        });
        self.submit_local(id, LocalIo::Flush { volume: id });
    }

    /// A flush is done.
    pub fn flush_done(&mut self, id: VolumeId, result: IoResult, now_ms: u64) {
        self.now_ms = now_ms;
        let Some(volume) = self.volume_mut(id) else { return };
        volume.lower_pending = volume.lower_pending.saturating_sub(1);
        let [first, _] = &mut volume.flushes;
        let purpose = first.take();
        volume.flushes.rotate_left(1);
        if result.is_err() {
            self.disk_failed(id, DiskError::Write);
            self.cache_lost(id);
        }
        match purpose {
            Some(FlushFor::Barrier) => self.barrier_flushed(id, result),
            Some(FlushFor::Metadata) => self.metadata_flushed(id, result.is_ok()),
            None => {}
        }
        self.check_disk_idle(id);
        if self.link.is_closing() {
            self.wakes.insert(Wakes::LINK);
        }
    }

    fn barrier_flushed(&mut self, id: VolumeId, result: IoResult) {
        let ignored = self.sabotaged(Sabotage::IgnoreFailedFlush);
        let epoch = &mut self.link.received_epoch;
        epoch.lost |= u64::from(result.is_err() && !ignored) << id.0;
        if epoch.flushes > 0 {
            epoch.flushes -= 1;
            if epoch.flushes == 0 {
                self.acknowledge_epoch();
            }
        }
    }

    fn acknowledge_epoch(&mut self) {
        let epoch = core::mem::take(&mut self.link.received_epoch);
        if epoch.lost != 0 && epoch.barrier.is_some() && !self.failure_is_told(epoch.lost) {
            // Without the acknowledgement the writer keeps in mind what may be missing here.
            self.fail(Fault::NotDurable, Conn::NetworkFailure);
        } else if let Some(number) = epoch.barrier {
            self.send_barrier_ack(number, &epoch);
        }
        self.wakes.insert(Wakes::RECEIVER);
    }

    /// The caches of these disks are lost. A Primary depends on the connection then, and if it were made anew the peer's
    /// data would not be what the application here has seen. So it waits until the peer has heard of the failure, from
    /// when on that one keeps the writes in mind in its bitmap, before anything more is acknowledged.
    fn failure_is_told(&mut self, volumes: u64) -> bool {
        let lost = |id: &VolumeId| volumes & (1 << id.0) != 0;
        let relies_on_peer = |id: VolumeId| {
            let state = self.volume(id).map(|volume| volume.state);
            state.is_some_and(|state| state.role == Role::Primary && state.pdsk == Disk::UpToDate)
        };
        if !self.volume_ids().filter(lost).all(relies_on_peer) {
            return false;
        }
        let unseen = self.volume_ids().filter(lost);
        let unseen = unseen.filter(|id| self.volume(*id).is_some_and(|volume| !volume.failure_seen));
        let unseen = unseen.fold(0, |all, id| all | (1 << id.0));
        if unseen != 0 && self.link.failures_unseen == 0 {
            self.link.failures_unseen_until_ms = self.now_ms + u64::from(self.link.net.timeout) * 100;
        }
        self.link.failures_unseen |= unseen;
        true
    }

    /// The peer knows that the disk of this volume has failed.
    pub(super) fn peer_saw_failure(&mut self, id: VolumeId) {
        let Some(volume) = self.volume_mut(id) else { return };
        if volume.state.disk <= Disk::Failed {
            volume.failure_seen = true;
        }
        // The next disk may be attached by now: what is held back since the loss of this one waits for the same.
        if self.link.failures_unseen & (1 << id.0) != 0 {
            self.link.failures_unseen &= !(1 << id.0);
            self.release_held_acks();
        }
        self.peers_knowledge_shown(id);
    }

    /// The clock: the peer has not shown that it knows of a failure here.
    pub(super) fn check_failures_unseen(&mut self) {
        if self.link.failures_unseen != 0 && self.now_ms > self.link.failures_unseen_until_ms {
            self.link.failures_unseen = 0;
            self.fail(Fault::NotDurable, Conn::NetworkFailure);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A peer that sends no barrier for months, or never meant to.
    #[test]
    fn an_epoch_without_an_end_breaks_nothing() {
        let mut epoch =
            ReceivedEpoch { size: u32::MAX - 1, refused: u32::MAX - 1, active: 1, ..ReceivedEpoch::default() };
        for _ in 0..2 {
            epoch.count();
            epoch.refuse();
        }
        assert_eq!((epoch.size, epoch.refused, epoch.active), (u32::MAX, u32::MAX, 0));
        assert!(epoch.is_open());
    }
}
