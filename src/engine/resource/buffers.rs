// SPDX-License-Identifier: GPL-2.0
//! Memory and slots for what the peer sends and asks for.
//!
//! # `max-buffers`
//! A peer can send faster than a disk writes, and ask for more than a network carries. What is in memory for it meanwhile is
//! limited; above the limit the receiver reads no further, and TCP makes the peer wait. The limit is a soft one, as in the C
//! module: two nodes may each have what the other one has to read before anything is given back, so a packet is read
//! every 100 ms all the same.
//! spec: drbd-conf, `max-buffers`
//!
//! # Slots
//! What the peer asks for keeps its slot until the answer is in the data socket, and what it verifies until its result has come, over the
//! meta socket. If all slots of both nodes were taken by what the other
//! one has to read first, neither would read on, and neither answer would get through. So there are eight parts: a node asks for
//! three at most to resync and verify, which take slots here as well as there, and for two at most for its applications. With
//! the three and the two of the peer that is all. Writes are answered over the meta socket and keep nobody.

use super::api::Wakes;
use super::Engine;
use crate::storage::Storage;

const PAGE_BYTES: u64 = 4096;

/// What is in memory for the peer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PeerBuffers {
    held_bytes: u64,
    /// One packet more, though the limit is reached.
    one_more: bool,
}

impl<S: Storage> Engine<S> {
    /// A peer request needs memory for its data from now on, until its slot is given back.
    pub(super) fn hold_buffer(&mut self, index: u16) {
        let Some(slot) = self.peers.at_mut(index).filter(|slot| !slot.holds_buffer) else { return };
        slot.holds_buffer = true;
        self.buffers.held_bytes += u64::from(slot.size_bytes);
        self.buffers.one_more = false;
    }

    /// Gives a slot back, and its memory.
    pub(super) fn release_peer(&mut self, index: u16) {
        if let Some(slot) = self.peers.at_mut(index).filter(|slot| slot.holds_buffer) {
            slot.holds_buffer = false;
            self.buffers.held_bytes = self.buffers.held_bytes.saturating_sub(u64::from(slot.size_bytes));
        }
        self.peers.release(index);
    }

    /// Whether the peer may have more memory. `max-buffers` is meant for each volume; they share what all may have.
    pub(super) fn has_buffers(&self) -> bool {
        let each = u64::from(self.link.net.max_buffers) * PAGE_BYTES;
        let held = self.buffers.held_bytes;
        held < each || self.buffers.one_more || held < each.saturating_mul(self.volumes_with(|_| true).count() as u64)
    }

    /// The clock: the limit has held the receiver up for long enough.
    pub(super) fn exceed_buffers(&mut self) {
        if !self.has_buffers() {
            self.buffers.one_more = true;
            self.wakes.insert(Wakes::RECEIVER);
        }
    }

    /// Whether the peer may be asked for one more block to resync or verify.
    pub(super) fn may_ask_for_one_more(&self) -> bool {
        (self.peers.used() + 1) * 8 <= self.peers.capacity() * 3
    }

    /// Whether the peer may be asked for one more read of an application. (Those that were on the own disk when that failed are read from the
    /// peer all the same.)
    pub(super) fn peer_takes_reads(&self) -> bool {
        self.peer_reads as usize * 8 < self.peers.capacity() * 2
    }

    /// Bytes in memory for the peer.
    pub(super) fn buffered_bytes(&self) -> u64 {
        self.buffers.held_bytes
    }
}
