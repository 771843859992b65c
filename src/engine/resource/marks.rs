// SPDX-License-Identifier: GPL-2.0
//! What only one of the two disks has: which bits a write, and its acknowledgement, sets and clears.
//!
//! A write that both have clears its bits, if nothing that came later is only here; one that either lacks sets them. While this
//! node is Ahead, writes are announced and not sent; what the peer acknowledges then of earlier writes and of a resync may have
//! been written anew. That does not count, and the target, which took it for done, is told before the resync goes on.
//! spec: metadata 5; state-machine 18.8; wire-protocol 10.3

use super::api::VolumeId;
use super::outgoing::Control;
use super::slots::{Local, Net, Phase};
use super::sync::SCAN_WORDS;
use super::{Engine, Sabotage};
use crate::bitmap::Scan;
use crate::state::{replicates, Conn, State};
use crate::storage::Storage;
use crate::wire::{command::Command, BlockDesc};

/// Bound: words of the bitmap that one P_OUT_OF_SYNC of [`Control::Marks`] is about, 4 MiB of the device.
const MARKS_WORDS: usize = 16;

impl<S: Storage> Engine<S> {
    /// Writes down whether both halves have this write now. At its completion, before an overlapping write can start, or
    /// when a part fails later; not as late as the end of the slot, which may be after the next exchange of bitmaps.
    /// spec: state-machine 18.8
    pub(super) fn record(&mut self, index: u16) {
        let Some(slot) = self.requests.at(index).copied().filter(|slot| slot.io.op.is_write()) else { return };
        let (id, sector, size) = (slot.volume, slot.io.sector, slot.io.size_bytes);
        if self.sabotaged(Sabotage::LoseBitmapBit) {
            return;
        }
        // One that is only announced may have come later. One that is mirrored marks what it lacks itself; a resync would not end.
        let is_only_here = |other: u32| self.requests.at(other as u16).is_some_and(|other| !other.is_mirrored());
        if slot.local != Local::Ok || slot.net != Net::Ok {
            self.mark_out_of_sync(id, sector, size);
        } else if slot.peer_in_sync
            && !slot.overtaken
            && self.volume(id).is_some_and(|volume| replicates(volume.state) || volume.state.conn == Conn::Ahead)
            && !self.overlaps.any_application(id.0, sector, size, is_only_here)
        {
            self.mark_in_sync(id, sector, size);
            self.check_resync_end(id);
        } else if slot.peer_in_sync {
            self.do_not_count(id, sector, size);
        }
    }

    /// Marks a range as different from the peer's; true when a bit changed.
    pub(super) fn mark_out_of_sync(&mut self, id: VolumeId, sector: u64, size_bytes: u32) -> bool {
        let Some(disk) = self.volume_mut(id).and_then(|volume| volume.disk.as_mut()) else { return false };
        size_bytes > 0 && disk.bitmap.set_range_sectors(sector, size_bytes) > 0
    }

    /// Marks a range as equal to the peer's.
    pub(super) fn mark_in_sync(&mut self, id: VolumeId, sector: u64, size_bytes: u32) {
        if let Some(disk) = self.volume_mut(id).and_then(|volume| volume.disk.as_mut()) {
            disk.bitmap.clear_range_sectors(sector, size_bytes);
        }
    }

    /// What was just written here, and may be in the cache only, is what the peer has. False: it stays marked for now.
    /// spec: metadata 5.2
    pub(super) fn written_in_sync(&mut self, id: VolumeId, sector: u64, size_bytes: u32) -> bool {
        let disk = self.volume_mut(id).and_then(|volume| volume.disk.as_mut());
        disk.is_some_and(|disk| disk.written_in_sync(sector, size_bytes))
    }

    /// Writes that are under way are not in the bitmap that is about to be sent unless their bits are set now. That goes
    /// for mirrored ones as well: one that the peer refused is only settled by the acknowledgement of its barrier.
    pub(super) fn mark_writes_under_way(&mut self, id: VolumeId) {
        let is_silent = self.link.apv < super::application::NOTICE_PROTOCOL;
        for index in 0..self.requests.capacity() as u16 {
            let Some(slot) = self.requests.at(index) else { continue };
            // What still waits for its turn cannot be announced to an old peer.
            let waits = matches!(slot.phase, Phase::Overlap | Phase::ActivityLog) && is_silent;
            let started = matches!(slot.phase, Phase::Active | Phase::Completed);
            let under_way = (started || waits) && slot.io.op.is_write();
            if under_way && slot.volume == id {
                let (sector, size) = (slot.io.sector, slot.io.size_bytes);
                self.mark_out_of_sync(id, sector, size);
            }
        }
    }

    /// A write is only announced. Earlier ones of the same blocks may be on their way to the peer.
    pub(super) fn overtake_mirrored(&mut self, announced: u16) {
        let Some(later) = self.requests.at(announced).copied() else { return };
        let [first, end] = later.sectors();
        let mut at = self.log.front();
        while let Some(index) = at {
            at = self.log.next(&self.requests, index);
            if let Some(slot) = self.requests.at_mut(index) {
                let [earlier_first, earlier_end] = slot.sectors();
                slot.overtaken |= slot.volume == later.volume && earlier_first < end && first < earlier_end;
            }
        }
    }

    /// The target takes these blocks for done; here they stay marked.
    pub(super) fn do_not_count(&mut self, id: VolumeId, sector: u64, size_bytes: u32) {
        let end = sector.saturating_add(u64::from(size_bytes / 512));
        let (first, last) = (sector / 8, end.saturating_sub(1) / 8);
        let source = self.runs_resync(id, Conn::SyncSource);
        let Some(volume) = self.volume_mut(id).filter(|volume| source || volume.state.conn == Conn::Ahead) else {
            return;
        };
        let [from, to] = volume.resync.uncounted.unwrap_or([first, last]);
        let unannounced = volume.resync.uncounted.is_none();
        volume.resync.uncounted = Some([from.min(first), to.max(last)]);
        if source && unannounced {
            self.queue_control(Control::Marks(id));
        }
    }

    /// This node is not Ahead any more and goes on as the source. What did not count meanwhile is announced before the state that starts
    /// the resync, because the target drives it. (The C module counts it.)
    pub(super) fn announce_uncounted(&mut self, id: VolumeId, old: State, new: State) {
        let starts = matches!(new.conn, Conn::SyncSource | Conn::PausedSyncS);
        let uncounted = self.volume(id).is_some_and(|volume| volume.resync.uncounted.is_some());
        if old.conn == Conn::Ahead && starts && uncounted {
            self.queue_control(Control::Marks(id));
        } else if new.conn != Conn::Ahead {
            self.with_volume(id, |volume| volume.resync.uncounted = volume.resync.uncounted.filter(|_| starts));
        }
    }

    /// One P_OUT_OF_SYNC of [`Control::Marks`]; the flag says whether nothing is left. spec: wire-protocol 10.3
    pub(super) fn marks_packet(&mut self, id: VolumeId, buffer: &mut [u8]) -> (Option<usize>, bool) {
        let number = self.number(id);
        let Some(volume) = self.volume_mut(id) else { return (None, true) };
        let (Some([from, last]), Some(disk)) = (volume.resync.uncounted, volume.disk.as_ref()) else {
            return (None, true);
        };
        let first = match disk.bitmap.next_set(from, SCAN_WORDS) {
            Scan::Continue(bit) if bit <= last => {
                volume.resync.uncounted = Some([bit, last]);
                return (None, false);
            }
            Scan::Found(bit) if bit <= last => bit,
            _ => {
                volume.resync.uncounted = None;
                return (None, true);
            }
        };
        let clear = match disk.bitmap.next_clear(first, MARKS_WORDS) {
            Scan::Found(bit) | Scan::Continue(bit) => bit,
            Scan::None => disk.bitmap.bits(),
        };
        let end = clear.min(last.saturating_add(1));
        volume.resync.uncounted = Some([end, last]).filter(|_| end <= last);
        let done = volume.resync.uncounted.is_none();
        let sectors = end.saturating_mul(8).min(volume.size_sectors).saturating_sub(first.saturating_mul(8));
        let Some(size_bytes) = u32::try_from(sectors).ok().and_then(|sectors| sectors.checked_mul(512)) else {
            return (None, true);
        };
        let notice = BlockDesc { sector: first.saturating_mul(8), size_bytes };
        (self.packet(buffer, Command::OutOfSync, number, 0, |body| notice.encode(body)), done)
    }
}
