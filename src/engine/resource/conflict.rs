// SPDX-License-Identifier: GPL-2.0
//! Two Primaries: writes of both that meet.
//!
//! The node that accepted the meta socket decides: its write stays, and the other node's is refused, as superseded if ours
//! covers it, else to be done again after ours. The other node holds our write back until its own is done or refused. So
//! that nothing is taken for a conflict that is none, the deciding node takes a write only after everything that was sent
//! before it on the other socket.
//! spec: wire-protocol 3.5, 6, 13 (H4); state-machine 18.12

use super::api::{PeerId, RequestId, Wakes};
use super::incoming::Fault;
use super::link::SequenceWait;
use super::outgoing::MetaOut;
use super::overlaps::Kind;
use super::received_epoch::ReceivedEpoch;
use super::slots::{Local, Net, PeerPhase, PeerRequest, Phase, Request};
use super::{Engine, Sabotage};
use crate::state::Conn;
use crate::storage::Storage;
use crate::wire::command::Command;

/// How long a write that has to yield waits for the one of the peer that it has to yield to.
const YIELD_MS: u64 = 300;

/// An acknowledgement of an epoch in which writes were refused, or of a later one.
///
/// The C module takes a write that we refused off its books when it is done with it: what it expects an epoch to have depends on
/// that moment. When it has answered the write of ours that was in the way, it is done. So the acknowledgement is held back until
/// then, and leaves out what was refused; those of later epochs have to stay behind it. Each of them has a write that is on
/// the peer's books until then, so there are no more than the peer has requests. spec: wire-protocol 13 (H4)
#[derive(Clone, Copy, Debug)]
pub(super) struct HeldAck {
    number: u32,
    set_size: u32,
    /// How many epochs there were before.
    epochs: u32,
}

impl<S: Storage> Engine<S> {
    /// Keeps track of the peer's sequence numbers. True: the write waits for what the peer sent before it.
    pub(super) fn wait_for_sequence(&mut self, peer: PeerId, slot: &PeerRequest) -> bool {
        let strict = self.link.net.two_primaries && self.link.resolve_conflicts;
        let until_ms = self.sequence_limit_ms();
        let Some(volume) = self.volume_mut(slot.volume) else { return false };
        let missing = newer(volume.peer_seq, slot.seq.wrapping_sub(1)) != volume.peer_seq;
        if !(strict && missing) {
            volume.peer_seq = newer(volume.peer_seq, slot.seq);
            return false;
        }
        if let Some(slot) = self.peers.get_mut(peer) {
            slot.phase = PeerPhase::Sequence;
        }
        self.link.sequence_wait = Some(SequenceWait { peer, volume: slot.volume, seq: slot.seq, until_ms });
        true
    }

    /// How long a write waits for the next packet of those that were sent before it.
    fn sequence_limit_ms(&self) -> u64 {
        self.now_ms.saturating_add(u64::from(self.link.net.ping_timeo).saturating_mul(100))
    }

    /// An acknowledgement arrived on the meta socket: is it the one that was missing? If not, the socket is behind, but what it
    /// carries comes: the waiting time begins anew. So it does with one that has no number of its own, and with one of another
    /// volume, since the missing one waits behind these as well.
    pub(super) fn check_sequence(&mut self) {
        let until_ms = self.sequence_limit_ms();
        if let Some(wait) = &mut self.link.sequence_wait {
            wait.until_ms = until_ms;
        }
        self.release_sequence();
    }

    /// The write goes on when nothing is missing any more, or nothing meets it: there are no two Primaries any more.
    pub(super) fn release_sequence(&mut self) {
        let strict = self.link.net.two_primaries;
        let Some(wait) = self.link.sequence_wait.filter(|_| !self.link.is_closing()) else { return };
        let Some(volume) = self.volume_mut(wait.volume) else { return };
        if strict && newer(volume.peer_seq, wait.seq.wrapping_sub(1)) != volume.peer_seq {
            return;
        }
        volume.peer_seq = newer(volume.peer_seq, wait.seq);
        self.link.sequence_wait = None;
        if let Some(slot) = self.peers.get_mut(wait.peer) {
            slot.phase = PeerPhase::Overlap;
        }
        self.enter_overlaps(wait.peer, Kind::Peer, false);
        self.wakes.insert(Wakes::RECEIVER);
    }

    /// Nothing comes at all: something is wrong with the peer.
    pub(super) fn check_sequence_timeout(&mut self) {
        if let Some(wait) = self.link.sequence_wait.filter(|wait| self.now_ms > wait.until_ms) {
            self.fail(Fault::MissingSequence { seq: wait.seq }, Conn::ProtocolError);
        }
    }

    /// A write of the peer meets a write of our application, and this node decides: ours stays.
    pub(super) fn decide_conflict(&mut self, peer: PeerId, slot: &PeerRequest) -> bool {
        if !(self.link.net.two_primaries && self.link.resolve_conflicts) || slot.orphan {
            return false;
        }
        let entry = self.overlap_entry(peer.index, false);
        let Some(covered) = self.overlaps.conflict(entry) else { return false };
        if self.sabotaged(Sabotage::IgnoreConflict) {
            return false;
        }
        let command = if covered || self.link.apv < 100 { Command::Superseded } else { Command::RetryWrite };
        self.queue_meta(MetaOut::Ack {
            command,
            volume: slot.volume,
            sector: slot.sector,
            block_id: slot.block_id,
            size_bytes: slot.size_bytes,
        });
        self.contest(entry);
        self.leave_overlaps(entry);
        self.end_peer(peer, slot.volume);
        if slot.in_epoch {
            self.link.received_epoch.refuse();
            self.close_received_epoch();
        }
        true
    }

    /// Notes which local writes are in the way of a write of the peer.
    fn contest(&mut self, entry: u32) {
        let Engine { overlaps, requests, link, .. } = self;
        let epoch = link.received_epochs;
        overlaps.for_each_conflicting(entry, |id| {
            let slot = u16::try_from(id).ok().and_then(|index| requests.at_mut(index));
            if let Some(slot) = slot.filter(|slot| slot.contested.is_none()) {
                slot.contested = Some(epoch);
            }
        });
    }

    /// The peer has answered a local write that had been in the way of one of its own, or heard of a failed disk.
    pub(super) fn release_held_acks(&mut self) {
        while let Some(ack) = self.held_acks.front() {
            if self.link.failures_unseen != 0 || self.is_contested(ack.epochs) {
                return;
            }
            self.held_acks.pop();
            self.queue_meta(MetaOut::BarrierAck { number: ack.number, set_size: ack.set_size });
        }
    }

    /// A write that was in the way in this epoch, or in one before, has not been answered.
    fn is_contested(&self, epoch: u32) -> bool {
        let mut at = self.log.front();
        while let Some(index) = at {
            let contested = self.requests.at(index).and_then(|slot| slot.contested);
            if contested.is_some_and(|first| (epoch.wrapping_sub(first) as i32) >= 0) {
                return true;
            }
            at = self.log.next(&self.requests, index);
        }
        false
    }

    /// Acknowledges an epoch, now or when the peer is ready for it.
    pub(super) fn send_barrier_ack(&mut self, number: u32, epoch: &ReceivedEpoch) {
        let set_size = epoch.size.saturating_sub(epoch.refused);
        let epochs = self.link.received_epochs;
        self.link.received_epochs = epochs.wrapping_add(1);
        // Nothing of it is left on the peer's books: no acknowledgement is expected.
        if epoch.refused == 0 || set_size > 0 {
            // Also behind an epoch of which nothing is left here: the peer may still be busy with what was refused of it.
            let contested = self.link.net.two_primaries && self.is_contested(epochs);
            let contested = contested || self.link.failures_unseen != 0;
            let waits = !self.held_acks.is_empty() || epoch.refused > 0 || contested;
            if !waits {
                self.queue_meta(MetaOut::BarrierAck { number, set_size });
            } else if !self.held_acks.push(HeldAck { number, set_size, epochs }) {
                self.fail(Fault::TooManyEpochs, Conn::NetworkFailure);
            }
        }
        self.release_held_acks();
    }

    /// Our writes that had to let this one pass are done again.
    pub(super) fn restart_postponed(&mut self, peer: PeerId) {
        let entry = self.overlap_entry(peer.index, false);
        let Engine { overlaps, requests, restarts, .. } = self;
        let capacity = requests.capacity() as u32;
        overlaps.for_each_yielding(entry, |id| {
            let postponed = (id < capacity).then(|| requests.at_mut(id as u16)).flatten();
            if let Some(slot) = postponed.filter(|slot| slot.postponed) {
                slot.postponed = false;
                requests.push(restarts, id as u16);
            }
        });
    }

    /// The peer, Primary as well, has written the same range: its write goes first, then ours is done again.
    /// spec: wire-protocol 6 (P_RETRY_WRITE)
    pub(super) fn postpone(&mut self, request: RequestId, sector: u64) -> Option<()> {
        let now_ms = self.now_ms;
        let slot = self.requests.get_mut(request).filter(|slot| slot.awaits_verdict(sector))?;
        if !slot.postponed {
            slot.postponed = true;
            slot.postponed_ms = now_ms;
            self.departed.count(slot.epoch);
        }
        if slot.local != Local::Pending {
            self.yield_to_peer(request.index);
        }
        Some(())
    }

    pub(super) fn yield_to_peer(&mut self, index: u16) {
        let Engine { overlaps, peers, ready_peers, requests, .. } = self;
        let capacity = requests.capacity() as u32;
        overlaps.yield_to_peer(u32::from(index), |id| {
            if id >= capacity {
                peers.push(ready_peers, ((id - capacity) / 2) as u16);
            }
        });
    }

    /// The local part of a write has ended: the peer may hear now that its own is overridden by it.
    pub(super) fn local_part_over(&mut self, index: u16) {
        let Engine { overlaps, peers, ready_peers, requests, link, .. } = self;
        let capacity = requests.capacity() as u32;
        overlaps.written(u32::from(index), link.net.two_primaries, |id| {
            if id >= capacity {
                peers.push(ready_peers, ((id - capacity) / 2) as u16);
            }
        });
    }

    /// The peer's write overrides ours: it counts as done, but is not in the epoch any more.
    /// spec: wire-protocol 6 (P_SUPERSEDED)
    pub(super) fn superseded(&mut self, request: RequestId, sector: u64) -> Option<()> {
        if self.requests.get(request).filter(|slot| slot.awaits_verdict(sector))?.postponed {
            return Some(());
        }
        if !self.overlaps.meets_peer(u32::from(request.index)) {
            // What overrides it is not here yet, or has been here already (the C module may decide a little late): then the
            // write would be lost there and not here. Doing it again is right in both cases.
            return self.postpone(request, sector);
        }
        if let Some(slot) = self.requests.get(request) {
            self.departed.count(slot.epoch);
        }
        self.leave_log(request.index);
        self.acknowledged(request, sector, Net::Ok)
    }

    /// The clock: whoever was told to yield to a write of the peer that does not come starts again.
    pub(super) fn restart_forgotten(&mut self) {
        if !self.link.net.two_primaries {
            return;
        }
        let now_ms = self.now_ms;
        let mut at = self.log.front();
        while let Some(index) = at {
            at = self.log.next(&self.requests, index);
            let old = |slot: &&mut Request| {
                slot.postponed && slot.local != Local::Pending && now_ms.saturating_sub(slot.postponed_ms) >= YIELD_MS
            };
            let meets = self.overlaps.meets_peer(u32::from(index));
            if let Some(slot) = self.requests.at_mut(index).filter(old).filter(|_| !meets) {
                slot.postponed = false;
                self.requests.push(&mut self.restarts, index);
            }
        }
    }

    /// Takes a write off the transfer log before its barrier is acknowledged.
    pub(super) fn leave_log(&mut self, index: u16) {
        if self.requests.at(index).is_some_and(|slot| slot.in_log) {
            let mut log = self.log;
            log.remove(&mut self.requests, index);
            self.log = log;
        }
    }

    /// A write that had to yield to the peer's starts from the beginning.
    pub(super) fn restart_write(&mut self, index: u16) {
        self.leave_log(index);
        self.leave_overlaps(u32::from(index));
        let request = self.requests.id(index);
        self.answered_while_sent(request);
        let Some(slot) = self.requests.at_mut(index) else { return };
        let pending = matches!(slot.net, Net::Queued | Net::Waiting);
        slot.postponed = false;
        slot.forget_local();
        slot.net = Net::None;
        slot.phase = Phase::Overlap;
        let id = slot.volume;
        if pending {
            self.with_volume(id, |volume| volume.peer_pending = volume.peer_pending.saturating_sub(1));
        }
        self.start_write(request);
    }
}

/// The later of two sequence numbers, in wrap-around order. spec: wire-protocol 3.5
pub(super) fn newer(a: u32, b: u32) -> u32 {
    if (b.wrapping_sub(a) as i32) > 0 {
        b
    } else {
        a
    }
}
