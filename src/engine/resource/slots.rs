// SPDX-License-Identifier: GPL-2.0
//! The tables of requests: application requests and peer requests, each in a preallocated slot.
//!
//! A slot is free, or in the life of exactly one request. Its generation changes when it is taken, so an identifier
//! that is kept too long, or invented by a peer, does not fit any more. A slot is in at most one [`List`] at a time;
//! the transfer log has links of its own.
//! spec: state-machine 18; wire-protocol 3.4

use super::api::{Inspect, IoError, IoFlags, IoRequest, IoResult, Op, PeerId, RequestId, VolumeId};
use crate::netlink::WireProtocol;
use crate::storage::{OutOfMemory, Storage};
use crate::wire::DataFlags;

/// "No slot" in a link.
pub(super) const NIL: u16 = u16::MAX;

/// Where an application request is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The slot is free.
    Free,
    /// Waits for an earlier overlapping write.
    Overlap,
    /// Waits for its activity log extents.
    ActivityLog,
    /// Submitted and, where it is mirrored, sent or queued to be.
    Active,
    /// Its bio has been ended; the slot waits for the barrier acknowledgement or a late part.
    Completed,
}

/// The local part of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Local {
    /// There is none.
    None,
    /// On the backing device, or in the queue to it.
    Pending,
    /// Done.
    Ok,
    /// Failed.
    Failed,
    /// Given up: counts as failed, but the device still has it, and the slot waits for it.
    Aborted,
}

/// The part of a request that concerns the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Net {
    /// There is none.
    None,
    /// In the queue to the data socket, or being sent.
    Queued,
    /// Sent, its acknowledgement or answer is missing.
    Waiting,
    /// Acknowledged as the protocol demands.
    Ok,
    /// Refused by the peer, or the connection was lost.
    Failed,
}

/// An application request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) generation: u32,
    pub(super) phase: Phase,
    pub(super) volume: VolumeId,
    pub(super) io: IoRequest,
    pub(super) local: Local,
    /// Why it failed on the disk, if it did.
    pub(super) local_error: Option<IoError>,
    /// The local part alone makes the request a success. Not so a write to a disk that a resync will overwrite: when the
    /// good copy is lost with the connection, the application must not believe it was written.
    pub(super) local_counts: bool,
    /// The same for the peer's part: a copy on a resync target does not stand in for a failed disk.
    pub(super) net_counts: bool,
    pub(super) net: Net,
    /// What the packet is; an out-of-sync notice has no payload and no acknowledgement.
    pub(super) notice_only: bool,
    /// On the transfer log: the epoch's barrier has not been acknowledged.
    pub(super) in_log: bool,
    /// It was given to a connection that is gone, and waits for the next one because I/O is frozen.
    pub(super) kept: bool,
    /// The peer cleared its bits for this write (P_RS_WRITE_ACK).
    pub(super) peer_in_sync: bool,
    /// The peer has refused it, and its state packet that tells why has not come yet.
    pub(super) refused: bool,
    pub(super) in_activity_log: bool,
    pub(super) in_overlaps: bool,
    /// Its local part has pages of its own.
    pub(super) copied: bool,
    /// A discard that failed on the own disk, where zeroes are written instead.
    pub(super) zeroed_here: bool,
    /// A later write of the same blocks was only announced: that the peer has this one does not make them equal.
    pub(super) overtaken: bool,
    /// Epoch in which it was given to the data socket's queue.
    pub(super) epoch: u32,
    /// Protocol in force when it was created.
    pub(super) protocol: WireProtocol,
    /// When its local part began, for `disk-timeout`.
    pub(super) local_since_ms: u64,
    /// When its packet was made, for the request timeout.
    pub(super) sent_ms: u64,
    /// The peer, Primary as well, wants it to be done again after its own write of the range.
    pub(super) postponed: bool,
    /// When that was asked for.
    pub(super) postponed_ms: u64,
    /// It made this node refuse a write of the peer, first in this epoch ([`super::received_epoch::ReceivedEpoch`]).
    pub(super) contested: Option<u32>,
    /// A read that the own disk could not do.
    pub(super) local_read_failed: bool,
    /// A read that counts as one of those the peer is asked for.
    pub(super) peer_read: bool,
    link: u16,
    log_next: u16,
    log_previous: u16,
}

impl Request {
    const FREE: Request = Request {
        generation: 0,
        phase: Phase::Free,
        volume: VolumeId(0),
        io: IoRequest {
            op: Op::Read,
            sector: 0,
            size_bytes: 0,
            flags: IoFlags { fua: false, preflush: false, sync: false, readahead: false, unplug: false },
        },
        local: Local::None,
        local_error: None,
        local_counts: false,
        net_counts: false,
        net: Net::None,
        notice_only: false,
        in_log: false,
        kept: false,
        peer_in_sync: false,
        refused: false,
        in_activity_log: false,
        in_overlaps: false,
        copied: false,
        zeroed_here: false,
        overtaken: false,
        epoch: 0,
        protocol: WireProtocol::C,
        local_since_ms: 0,
        sent_ms: 0,
        postponed: false,
        postponed_ms: 0,
        contested: None,
        local_read_failed: false,
        peer_read: false,
        link: NIL,
        log_next: NIL,
        log_previous: NIL,
    };

    /// The local part so far does not count any more; one that was given up keeps the slot until the device is done.
    pub(super) fn forget_local(&mut self) {
        self.local_error = None;
        if self.local != Local::Aborted {
            self.local = Local::None;
        }
    }

    /// First sector, and the one after the last.
    pub(super) fn sectors(&self) -> [u64; 2] {
        let sectors = u64::from(self.io.size_bytes.div_ceil(512));
        [self.io.sector, self.io.sector.saturating_add(sectors)]
    }

    /// The peer has this write, or is about to get it.
    pub(super) fn is_mirrored(&self) -> bool {
        matches!(self.net, Net::Queued | Net::Waiting | Net::Ok) && !self.notice_only
    }

    /// A read whose answer the peer owes.
    pub(super) fn awaits_answer(&self) -> bool {
        self.phase == Phase::Active && self.io.op == Op::Read && matches!(self.net, Net::Queued | Net::Waiting)
    }

    /// A write to this sector that the peer may still refuse for one of its own: it has not been ended.
    pub(super) fn awaits_verdict(&self, sector: u64) -> bool {
        self.phase == Phase::Active && self.in_log && self.io.sector == sector
    }

    /// First and last activity log extent (4 MiB) it touches.
    pub(super) fn extents(&self) -> (u32, u32) {
        extents(self.io.sector, self.io.size_bytes)
    }
}

/// First and last activity log extent (4 MiB) of a range. spec: state-machine 19.1
pub(super) fn extents(sector: u64, size_bytes: u32) -> (u32, u32) {
    let sectors = u64::from(size_bytes / 512).max(1);
    let last = sector.saturating_add(sectors - 1);
    (u32::try_from(sector >> 13).unwrap_or(u32::MAX), u32::try_from(last >> 13).unwrap_or(u32::MAX))
}

/// What a peer request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PeerKind {
    /// A write of the peer's application.
    Write,
    /// A read of the peer's application (P_DATA_REQUEST).
    Read,
    /// A block the sync target asked for (P_RS_DATA_REQUEST).
    ResyncRead,
    /// A block this node, the sync target, asked for; later the data that arrived.
    Resync,
    /// A block whose digest the peer asked for (P_OV_REQUEST).
    VerifyRead,
    /// A block this node compares: asked the peer for its digest, later reads its own.
    Verify,
}

impl PeerKind {
    /// This node has asked the peer for it.
    pub(super) fn is_own(self) -> bool {
        matches!(self, PeerKind::Resync | PeerKind::Verify)
    }
}

/// Where a peer request is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PeerPhase {
    /// The slot is free.
    Free,
    /// Its payload is being received into its pages.
    Receiving,
    /// Waits until everything the peer sent before it on the meta socket has arrived (two Primaries).
    Sequence,
    /// A request of the peer's resync that is held back.
    Throttled,
    /// Waits for an overlapping request.
    Overlap,
    /// VerifyT: waits until earlier writes of the range are on the peer's disk.
    Barrier,
    /// Write of a peer without a disk: waits for its activity log extents.
    ActivityLog,
    /// Resync: waits until no application write is under way in the range.
    Planned,
    /// Resync: request queued or sent, answer outstanding.
    Asked,
    /// On the disk.
    Disk,
    /// Its data is being looked at.
    Inspect,
    /// Its answer is queued or being sent.
    Reply,
    /// VerifyT: the peer has the digest, and has not told what it found.
    Told,
}

/// A request received from the peer, or made for resync.
#[derive(Clone, Copy, Debug)]
pub(super) struct PeerRequest {
    pub(super) generation: u32,
    pub(super) phase: PeerPhase,
    pub(super) kind: PeerKind,
    pub(super) volume: VolumeId,
    pub(super) op: Op,
    pub(super) sector: u64,
    pub(super) size_bytes: u32,
    /// The peer's handle, echoed bit for bit.
    pub(super) block_id: u64,
    pub(super) flags: DataFlags,
    /// Sequence number of its packet.
    pub(super) seq: u32,
    /// It counts in the epoch being received.
    pub(super) in_epoch: bool,
    /// Result of the disk.
    pub(super) result: IoResult,
    /// Belongs to an earlier connection: do the disk work, answer nothing.
    pub(super) orphan: bool,
    /// The disk that it was received for is gone, or there was none: it is refused, which is no failure of the disk of today.
    pub(super) no_disk: bool,
    pub(super) in_activity_log: bool,
    /// What is to be found out about the data when it has been read.
    pub(super) inspect: Option<Inspect>,
    /// The digest that belongs to it is known.
    pub(super) has_digest: bool,
    /// All zeroes: answered without data.
    pub(super) deallocated: bool,
    /// When the peer was told the digest.
    pub(super) told_ms: u64,
    /// Its data is in memory, or will be.
    pub(super) holds_buffer: bool,
    link: u16,
}

impl PeerRequest {
    const FREE: PeerRequest = PeerRequest {
        generation: 0,
        phase: PeerPhase::Free,
        kind: PeerKind::Write,
        volume: VolumeId(0),
        op: Op::Write,
        sector: 0,
        size_bytes: 0,
        block_id: 0,
        flags: DataFlags(0),
        seq: 0,
        in_epoch: false,
        result: Ok(()),
        orphan: false,
        no_disk: false,
        in_activity_log: false,
        inspect: None,
        has_digest: false,
        deallocated: false,
        told_ms: 0,
        holds_buffer: false,
        link: NIL,
    };
}

impl PeerRequest {
    /// It has not got as far as the disk.
    pub(super) fn waits_for_disk(&self) -> bool {
        use PeerPhase::{ActivityLog, Overlap, Receiving, Sequence};
        matches!(self.phase, Receiving | Sequence | Overlap | ActivityLog)
    }

    /// What a lost connection leaves without a purpose. Not so a write that was received completely: the writer may
    /// count on it (protocol B). With two Primaries it does not, and a peer that is not Primary should not have sent it:
    /// `writers` are the volumes, one bit each, whose application writes as well.
    pub(super) fn is_forgotten_with_the_connection(&self, writers: u64) -> bool {
        match self.phase {
            PeerPhase::Free | PeerPhase::Disk | PeerPhase::Inspect | PeerPhase::ActivityLog => false,
            PeerPhase::Overlap => self.kind != PeerKind::Write || writers & (1 << self.volume.0) != 0,
            PeerPhase::Receiving
            | PeerPhase::Sequence
            | PeerPhase::Throttled
            | PeerPhase::Barrier
            | PeerPhase::Planned
            | PeerPhase::Asked
            | PeerPhase::Reply
            | PeerPhase::Told => true,
        }
    }
}

/// A queue of slots of one table, linked through the slots themselves.
#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    head: u16,
    tail: u16,
}

impl List {
    /// Without entries.
    pub(super) const EMPTY: List = List { head: NIL, tail: NIL };

    /// True without entries.
    pub(super) fn is_empty(&self) -> bool {
        self.head == NIL
    }

    /// The oldest slot.
    pub(super) fn front(&self) -> Option<u16> {
        (self.head != NIL).then_some(self.head)
    }
}

macro_rules! slot_table {
    ($table:ident, $slot:ident, $id:ident, $phase:ident) => {
        /// A table of slots with its free list.
        pub(super) struct $table<S: Storage> {
            slots: S::Table<$slot>,
            free: List,
            used: usize,
        }

        impl<S: Storage> $table<S> {
            /// A table of `entries` free slots, at most 65535.
            pub(super) fn new(entries: usize) -> Result<Self, OutOfMemory> {
                let entries = entries.min(usize::from(NIL));
                let mut table = $table { slots: S::table(entries, |_| $slot::FREE)?, free: List::EMPTY, used: 0 };
                let mut free = List::EMPTY;
                for index in 0..entries {
                    table.push(&mut free, index as u16);
                }
                table.free = free;
                Ok(table)
            }

            /// Length of the table.
            pub(super) fn capacity(&self) -> usize {
                self.slots.len()
            }

            /// Slots in use.
            pub(super) fn used(&self) -> usize {
                self.used
            }

            /// Takes a free slot, cleared but for its new generation; `None` when all are in use.
            pub(super) fn take(&mut self) -> Option<$id> {
                let mut free = self.free;
                let index = self.pop(&mut free)?;
                self.free = free;
                self.used += 1;
                let slot = self.slots.get_mut(usize::from(index))?;
                // All ones is reserved: such a block_id means "resync".
                let generation = match slot.generation.wrapping_add(1) {
                    u32::MAX => 1,
                    next => next,
                };
                *slot = $slot { generation, ..$slot::FREE };
                Some($id { index, generation })
            }

            /// Gives a slot back.
            pub(super) fn release(&mut self, index: u16) {
                let Some(slot) = self.slots.get_mut(usize::from(index)) else { return };
                if slot.phase == $phase::Free {
                    return;
                }
                slot.phase = $phase::Free;
                self.used = self.used.saturating_sub(1);
                // The slot that was used last is used next: its memory is warm.
                let mut free = self.free;
                self.push_front(&mut free, index);
                self.free = free;
            }

            /// The slot, if the identifier is current and the slot in use.
            pub(super) fn get(&self, id: $id) -> Option<&$slot> {
                self.slots
                    .get(usize::from(id.index))
                    .filter(|slot| slot.generation == id.generation && slot.phase != $phase::Free)
            }

            /// As [`Self::get`], to change it.
            pub(super) fn get_mut(&mut self, id: $id) -> Option<&mut $slot> {
                self.slots
                    .get_mut(usize::from(id.index))
                    .filter(|slot| slot.generation == id.generation && slot.phase != $phase::Free)
            }

            /// The slot at an index, whatever its phase.
            pub(super) fn at(&self, index: u16) -> Option<&$slot> {
                self.slots.get(usize::from(index))
            }

            /// As [`Self::at`], to change it.
            pub(super) fn at_mut(&mut self, index: u16) -> Option<&mut $slot> {
                self.slots.get_mut(usize::from(index))
            }

            /// Appends to a list.
            pub(super) fn push(&mut self, list: &mut List, index: u16) {
                if let Some(slot) = self.at_mut(index) {
                    slot.link = NIL;
                }
                if list.tail == NIL {
                    list.head = index;
                } else if let Some(last) = self.at_mut(list.tail) {
                    last.link = index;
                }
                list.tail = index;
            }

            fn push_front(&mut self, list: &mut List, index: u16) {
                if let Some(slot) = self.at_mut(index) {
                    slot.link = list.head;
                }
                list.head = index;
                if list.tail == NIL {
                    list.tail = index;
                }
            }

            /// Takes the oldest slot of a list.
            pub(super) fn pop(&mut self, list: &mut List) -> Option<u16> {
                let index = list.front()?;
                let next = self.at(index).map_or(NIL, |slot| slot.link);
                list.head = next;
                if next == NIL {
                    list.tail = NIL;
                }
                Some(index)
            }
        }
    };
}

slot_table!(RequestTable, Request, RequestId, Phase);
slot_table!(PeerTable, PeerRequest, PeerId, PeerPhase);

impl<S: Storage> RequestTable<S> {
    /// The current identifier of a slot.
    pub(super) fn id(&self, index: u16) -> RequestId {
        RequestId { index, generation: self.at(index).map_or(0, |slot| slot.generation) }
    }
}

/// The transfer log: mirrored writes in the order of their epochs, until the barrier acknowledgement.
#[derive(Clone, Copy, Debug)]
pub(super) struct TransferLog {
    head: u16,
    tail: u16,
}

impl TransferLog {
    /// Without entries.
    pub(super) const EMPTY: TransferLog = TransferLog { head: NIL, tail: NIL };

    /// The oldest write.
    pub(super) fn front(&self) -> Option<u16> {
        (self.head != NIL).then_some(self.head)
    }

    /// The write after `index`.
    pub(super) fn next<S: Storage>(&self, table: &RequestTable<S>, index: u16) -> Option<u16> {
        table.at(index).map(|slot| slot.log_next).filter(|&next| next != NIL)
    }

    /// Appends a write.
    pub(super) fn push<S: Storage>(&mut self, table: &mut RequestTable<S>, index: u16) {
        let last = self.tail;
        if let Some(slot) = table.at_mut(index) {
            slot.in_log = true;
            slot.log_next = NIL;
            slot.log_previous = last;
        }
        if last == NIL {
            self.head = index;
        } else if let Some(slot) = table.at_mut(last) {
            slot.log_next = index;
        }
        self.tail = index;
    }

    /// Takes a write off the log.
    pub(super) fn remove<S: Storage>(&mut self, table: &mut RequestTable<S>, index: u16) {
        let Some((next, previous)) = table
            .at_mut(index)
            .filter(|slot| slot.in_log)
            .map(|slot| (core::mem::replace(&mut slot.log_next, NIL), core::mem::replace(&mut slot.log_previous, NIL)))
        else {
            return;
        };
        if let Some(slot) = table.at_mut(index) {
            slot.in_log = false;
        }
        if previous == NIL {
            self.head = next;
        } else if let Some(slot) = table.at_mut(previous) {
            slot.log_next = next;
        }
        if next == NIL {
            self.tail = previous;
        } else if let Some(slot) = table.at_mut(next) {
            slot.log_previous = previous;
        }
    }
}

impl RequestId {
    /// The handle that goes over the wire. Never all ones.
    pub(super) fn block_id(self) -> u64 {
        (u64::from(self.generation) << 16) | u64::from(self.index)
    }

    /// The identifier in a handle that came back; checked against the table by the caller.
    pub fn from_block_id(block_id: u64) -> Option<RequestId> {
        let generation = u32::try_from(block_id >> 16).ok()?;
        Some(RequestId { index: (block_id & 0xffff) as u16, generation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::HeapStorage;

    #[test]
    fn a_stale_identifier_finds_nothing() {
        let mut table: RequestTable<HeapStorage> = RequestTable::new(2).unwrap();
        let first = table.take().unwrap();
        table.get_mut(first); // still free: phase not set
        table.at_mut(first.index).unwrap().phase = Phase::Active;
        assert!(table.get(first).is_some());
        table.release(first.index);
        assert!(table.get(first).is_none());
        let again = table.take().unwrap();
        table.at_mut(again.index).unwrap().phase = Phase::Active;
        assert_eq!(again.index, first.index, "the warm slot is used first");
        assert!(table.get(first).is_none() && table.get(again).is_some());
        let other = table.take().unwrap();
        table.at_mut(other.index).unwrap().phase = Phase::Active;
        assert!(table.take().is_none(), "bounded");
        assert_eq!(RequestId::from_block_id(other.block_id()), Some(other));
        assert_eq!(RequestId::from_block_id(u64::MAX), None);
    }

    #[test]
    fn the_transfer_log_keeps_order_when_writes_leave_it_anywhere() {
        let mut table: RequestTable<HeapStorage> = RequestTable::new(4).unwrap();
        let mut log = TransferLog::EMPTY;
        let ids: Vec<u16> = (0..4).map(|_| table.take().unwrap().index).collect();
        for &id in &ids {
            log.push(&mut table, id);
        }
        log.remove(&mut table, ids[1]);
        log.remove(&mut table, ids[3]);
        log.remove(&mut table, ids[3]); // no harm
        assert_eq!(log.front(), Some(ids[0]));
        assert_eq!(log.next(&table, ids[0]), Some(ids[2]));
        assert_eq!(log.next(&table, ids[2]), None);
        log.remove(&mut table, ids[0]);
        log.remove(&mut table, ids[2]);
        assert_eq!(log.front(), None);
    }
}
