// SPDX-License-Identifier: GPL-2.0
//! Resync and verify hold back while the disk is busy with other things, as long as they are faster than `c-min-rate`.
//!
//! The asking side leaves its turn out. The answering side lets one request go every 100 ms, unless its peer is Primary: then
//! the application is over there, and that side holds back.
//! spec: wire-protocol 8.9; state-machine 17.4

use super::api::VolumeId;
use super::slots::{List, PeerPhase};
use super::{Engine, Sabotage, Volume};
use crate::resync::rate::must_throttle;
use crate::state::Role;
use crate::storage::Storage;

impl<S: Storage> Engine<S> {
    /// A request of the peer's resync or verify has to wait. True: it does, and goes on by itself.
    pub(super) fn hold_back(&mut self, id: VolumeId, index: u16) -> bool {
        let now_ms = self.now_ms;
        let Some(volume) = self.volumes.get_mut(usize::from(id.0)).and_then(Option::as_mut) else { return false };
        // Those that wait already go first.
        let waits = !volume.throttled.is_empty() || (volume.state.peer != Role::Primary && volume.is_throttled(now_ms));
        if waits {
            if let Some(slot) = self.peers.at_mut(index) {
                slot.phase = PeerPhase::Throttled;
            }
            self.peers.push(&mut volume.throttled, index);
        }
        waits
    }

    /// A tick: one request that was held back goes on, or all of them when nothing else is going on.
    pub(super) fn release_throttled(&mut self, id: VolumeId) {
        let now_ms = self.now_ms;
        let Some(volume) = self.volume_mut(id).filter(|volume| !volume.throttled.is_empty()) else { return };
        let one = volume.is_throttled(now_ms);
        let mut list = core::mem::replace(&mut volume.throttled, List::EMPTY);
        while let Some(index) = self.peers.pop(&mut list) {
            self.serve_resync(index);
            if one {
                break;
            }
        }
        self.with_volume(id, |volume| volume.throttled = list);
    }

    /// The connection is lost, and with it whoever waited.
    pub(super) fn forget_throttled(&mut self) {
        for id in self.volume_ids() {
            let Some(volume) = self.volume_mut(id) else { continue };
            let mut list = core::mem::replace(&mut volume.throttled, List::EMPTY);
            while self.peers.pop(&mut list).is_some() {}
        }
    }

    /// Nothing overlaps a read of the peer's resync, or it waits for what does.
    pub(super) fn serve_resync(&mut self, index: u16) {
        let Some(slot) = self.peers.at_mut(index) else { return };
        slot.phase = PeerPhase::Overlap;
        let (id, sector, size_bytes) = (slot.volume, slot.sector, slot.size_bytes);
        let entry = self.overlap_entry(index, false);
        let ready = self.overlaps.insert(entry, super::overlaps::Kind::ResyncRead, id.0, sector, size_bytes);
        if ready || self.sabotaged(Sabotage::ReadWhileWriting) {
            self.peer_overlap_ended(index);
        }
    }
}

impl<S: Storage> Volume<S> {
    /// The disk is busy, and the resync, or verify, is fast enough.
    pub(super) fn is_throttled(&mut self, now_ms: u64) -> bool {
        let rate = self.conf.c_min_rate;
        if rate == 0 || self.resync.controller.is_none() {
            return false;
        }
        let waiting = !(self.log.waiting.is_empty() && self.log.pending.is_empty());
        let busy = self.resync.meter.is_busy(waiting, self.foreign_sectors, 0);
        let left = match super::verify::is_verifying(self.state.conn) {
            true => self.verify.left_blocks,
            false => self.weight().saturating_sub(self.resync.failed_bits),
        };
        must_throttle(rate, busy, self.resync.progress.throttle_rate_kib(left, now_ms))
    }
}
