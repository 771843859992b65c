//! What a node promises, compared at once with what its disks hold.
//!
//! A promise that a fault of the engine makes too early is broken only if the power fails, or a disk, in the right
//! moment. Here no luck is needed: an acknowledgement of the peer's write is checked when it is sent, the end of an
//! application's write when it ends, a write when it is handed to the disk.
//!
//! # Invariants
//! * `P_WRITE_ACK` and `P_RS_WRITE_ACK`: the disk has done that write, without an error.
//! * `P_BARRIER_ACK`: every write of the epoch is over, and what the disk took is not in its volatile cache, unless the
//!   writer knows already that this disk has failed.
//! * Two writes of the same sectors are never on one disk at the same time, nor a write and a read whose result the peer
//!   puts in its place in the order of writes. What came over the data socket goes to the disk in that order.
//! * A write of an application begins when the activity log on the disk covers it, or its bits are set there.
//! * An extent leaves that log when its bits are on the disk.
//! * A write that one disk lacks is marked when it ends, or is announced; and a read meets no mark on a disk that is not good.
//! * It ends when it is on a good disk; and if the peer has not got it, when the data generation on the disk tells so.
//! * A transfer that failed clears no bit.
//! * Where both disks count as good neither lacks what was acknowledged, also if that is marked.
//! * Where a write of the application is said to be in sync, during a resync, its blocks are not marked.

use super::*;
use engine::metadata::AL_EXTENT_SECTORS;
use engine::wire::{Barrier, BarrierAck, BlockAck, BlockDesc, Data, DataFlags, Trim, ID_OUT_OF_SYNC, ID_SYNCER};

/// Local I/O is handed to the disk within this time.
const SOON_US: u64 = 20;

/// A write that came over the data socket.
#[derive(Clone, Debug)]
struct Arrived {
    resync: bool,
    block_id: u64,
    sector: u64,
    count: u64,
    flags: DataFlags,
    /// The peer made it while this node was Primary: a conflict may turn it down, or change its turn.
    contested: bool,
    /// When it came.
    since_us: u64,
    /// What the disk is to do.
    op: Option<Op>,
    /// The writer has no disk for it.
    alone: bool,
    /// The epoch it belongs to, once its barrier has come.
    barrier: Option<u32>,
    fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Not handed to the disk yet.
    Waits,
    /// On the disk, as this transfer.
    Transfer(u64),
    /// Written; durable when the disk has flushed so far.
    Written {
        mark: u64,
    },
    /// The disk said so, and lost it when a flush failed.
    Lost,
    Failed,
}

/// A packet with a write, or about one, that is on its way.
#[derive(Clone, Copy, Debug)]
struct Coming {
    sector: u64,
    count: u64,
    /// See [`Arrived`].
    alone: bool,
}

/// The writes that one node has received over a connection and not been released from; and the ranges of those that are
/// on their way.
#[derive(Debug, Default)]
pub(super) struct Arrivals(Vec<Arrived>, Vec<Coming>);

impl Arrivals {
    /// The oldest that waits for the disk.
    fn next(&mut self, resync: bool, sector: u64, count: u64) -> Option<usize> {
        self.0.iter().position(|write| {
            (write.resync, write.sector, write.count, write.fate) == (resync, sector, count, Fate::Waits)
        })
    }

    /// Takes out those of the epoch that this barrier ended.
    fn take_epoch(&mut self, number: u32) -> Vec<Arrived> {
        let (epoch, others) = self.0.drain(..).partition(|write| write.barrier == Some(number));
        self.0 = others;
        epoch
    }

    /// A write of this range is on its way here, or here and not written.
    pub(super) fn concern(&self, sector: u64, count: u64) -> bool {
        let written = |write: &&Arrived| matches!(write.fate, Fate::Written { .. });
        let here = self.0.iter().filter(|write| !written(write));
        here.map(|write| (write.sector, write.count))
            .chain(self.1.iter().map(|coming| (coming.sector, coming.count)))
            .any(|(first, sectors)| overlap(sector, count, first, sectors))
    }

    /// The disk is let go: what has not reached it never will.
    pub(super) fn disk_gone(&mut self) {
        self.0.retain(|write| write.fate != Fate::Waits);
    }
}

/// The write that a packet is about, and its length; `payload_bytes`: of its data.
pub(super) fn described(name: &str, body: &[u8], payload_bytes: Option<u32>) -> Option<(Data, u32)> {
    match (name, payload_bytes) {
        ("P_DATA" | "P_RS_DATA_REPLY", Some(bytes)) => Data::decode(body).map(|data| (data, bytes)).ok(),
        ("P_TRIM" | "P_ZEROES", _) => Trim::decode(body).map(|trim| (trim.data, trim.size_bytes)).ok(),
        ("P_RS_DEALLOCATED", _) => {
            let range = BlockDesc::decode(body).ok()?;
            let data = Data { sector: range.sector, block_id: ID_SYNCER, seq: 0, flags: Default::default() };
            Some((data, range.size_bytes))
        }
        _ => None,
    }
}

/// The range of such a packet, and of one that only announces a write.
fn range_of(name: &str, body: &[u8], payload_bytes: Option<u32>) -> Option<(u64, u32)> {
    if name == "P_OUT_OF_SYNC" {
        return BlockDesc::decode(body).ok().map(|range| (range.sector, range.size_bytes));
    }
    described(name, body, payload_bytes).map(|(data, bytes)| (data.sector, bytes))
}

pub(super) fn overlap(first: u64, count: u64, other: u64, other_count: u64) -> bool {
    first < other + other_count && other < first + count
}

impl World {
    pub(super) fn arrivals(&mut self, node: usize) -> Option<&mut Arrivals> {
        let volume = usize::from(self.volume.0);
        self.connection.as_mut()?.ends[node].as_mut().map(|end| &mut end.arrivals[volume])
    }

    /// A packet of the data socket has been received and understood; the engine wants so many bytes of payload written.
    pub(super) fn note_arrival(&mut self, node: usize, name: &str, body: &[u8], payload_bytes: Option<u32>) {
        if name == "P_OUT_OF_SYNC" && self.hostile.is_none() {
            self.check_announced(node, body);
        }
        if name == "P_BARRIER" {
            let Ok(Barrier { number }) = Barrier::decode(body) else { return };
            // An epoch has the writes of all volumes.
            let end = self.connection.as_mut().and_then(|connection| connection.ends[node].as_mut());
            let arrivals = end.into_iter().flat_map(|end| &mut end.arrivals).flat_map(|arrivals| &mut arrivals.0);
            let open = arrivals.filter(|write| !write.resync && write.barrier.is_none());
            open.for_each(|write| write.barrier = Some(number));
            self.note_barrier(node, number);
            return;
        }
        let alone = self.note_coming_over(node, name, body);
        // Refused at once, as what has a payload is, which then is not wanted.
        if matches!(name, "P_TRIM" | "P_ZEROES") && self.status(node).state.disk < Disk::Inconsistent {
            return;
        }
        let Some((Data { sector, block_id, flags, .. }, bytes)) = described(name, body, payload_bytes) else { return };
        let contested = self.status(node).state.role == Role::Primary;
        let since_us = self.now_us;
        let resync = name.starts_with("P_RS");
        let count = u64::from(bytes / 512);
        let fate = Fate::Waits;
        let op = self.wanted_op(node, name, flags);
        let Some(arrivals) = self.arrivals(node).filter(|_| count > 0) else { return };
        arrivals.0.push(Arrived {
            resync,
            block_id,
            sector,
            count,
            flags,
            contested,
            since_us,
            op,
            alone,
            barrier: None,
            fate,
        });
    }

    /// A packet with a write for the other node, or about one, is about to be sent.
    pub(super) fn note_coming(&mut self, node: usize, name: &str, body: &[u8], payload_bytes: Option<u32>) {
        let Some((sector, bytes)) = range_of(name, body, payload_bytes) else { return };
        let alone = matches!(name, "P_DATA" | "P_TRIM" | "P_ZEROES") && self.is_without_disk(node, body);
        if let Some(arrivals) = self.arrivals(1 - node) {
            arrivals.1.push(Coming { sector, count: u64::from(bytes / 512), alone });
        }
    }

    /// It has arrived. True: see [`Arrived::alone`].
    fn note_coming_over(&mut self, node: usize, name: &str, body: &[u8]) -> bool {
        // Of data only the start is known here; the oldest with that start is the one.
        let Some((start, _)) = range_of(name, body, Some(0)) else { return false };
        let Some(arrivals) = self.arrivals(node) else { return false };
        let at = arrivals.1.iter().position(|coming| coming.sector == start);
        at.is_some_and(|at| arrivals.1.remove(at).alone)
    }

    /// A transfer is about to be handed to the data disk.
    pub(super) fn check_transfer(&mut self, node: usize, number: u64, transfer: &Transfer) {
        let (sector, count) = (transfer.sector, transfer.count);
        if self.hostile.is_some() || count == 0 {
            return;
        }
        let disk_is_there = self.status(node).state.disk > Disk::Failed;
        let running = self.nodes[node].running.as_ref().expect("on");
        let ordered = |other: &Transfer| other.op.is_write() || self.is_ordered_read(node, other);
        if disk_is_there && ordered(transfer) {
            let met = running.transfers.values().find(|other| {
                overlap(sector, count, other.sector, other.count)
                    && other.volume == transfer.volume
                    && ordered(other)
                    && (transfer.op.is_write() || other.op.is_write())
            });
            if let Some(other) = met {
                panic!("node {node}: {transfer} goes to the disk while {other} is on it");
            }
        }
        match transfer.io {
            LocalIo::Request { .. } if transfer.op.is_write() => {
                self.check_logged(node, transfer);
                self.check_verify_waits(node, transfer);
            }
            LocalIo::Peer { peer, .. } if transfer.op == Op::Read && running.engine.is_resync(peer) => {
                self.check_verify_read(node, transfer);
            }
            LocalIo::Peer { peer, .. } if transfer.op == Op::Read && !running.engine.is_resync(peer) => {
                // When it came from the peer the disk was good, if that has failed only now.
                if self.now_us - self.nodes[node].failed_us > SOON_US {
                    self.check_stale(node, sector, count);
                }
            }
            LocalIo::Peer { peer, .. } if transfer.op.is_write() => {
                let resync = running.engine.is_resync(peer);
                let Some(arrivals) = self.arrivals(node) else { return };
                let at = arrivals.next(resync, sector, count);
                let at = at.unwrap_or_else(|| panic!("node {node}: {transfer} of the peer has not come from it"));
                let overtaken = arrivals.0[..at].iter().find(|write| {
                    write.fate == Fate::Waits && !write.contested && overlap(sector, count, write.sector, write.count)
                });
                if let Some(write) = overtaken.filter(|_| !arrivals.0[at].contested) {
                    panic!("node {node}: {transfer} goes to the disk before what came before it: {write:?}");
                }
                let write = &mut arrivals.0[at];
                write.fate = Fate::Transfer(number);
                let (wanted, alone) = (write.op, write.alone && !write.resync);
                assert!(
                    wanted.is_none_or(|op| op == transfer.op),
                    "node {node}: {:?} on the disk for a packet that asks for {wanted:?}",
                    transfer.op
                );
                if alone && disk_is_there {
                    self.check_written_for_peer(node, transfer);
                }
            }
            _ => {}
        }
    }

    /// A read whose result has its place among the writes that the peer is sent.
    fn is_ordered_read(&self, node: usize, transfer: &Transfer) -> bool {
        let engine = self.engine_of(node);
        let conn = self.status(node).state.conn;
        let for_peer = matches!(conn, Conn::SyncSource | Conn::PausedSyncS | Conn::VerifyS | Conn::VerifyT);
        for_peer
            && transfer.op == Op::Read
            && matches!(transfer.io, LocalIo::Peer { peer, .. } if engine.is_resync(peer))
    }

    /// A transfer is over; what the cache lost meanwhile is known already.
    pub(super) fn note_done(&mut self, node: usize, number: u64, fua: bool, failed: bool) {
        let mark = if fua { 0 } else { self.nodes[node].data.mark() };
        let Some(arrivals) = self.arrivals(node) else { return };
        if let Some(write) = arrivals.0.iter_mut().find(|write| write.fate == Fate::Transfer(number)) {
            write.fate = if failed { Fate::Failed } else { Fate::Written { mark } };
        }
    }

    /// A flush is about to fail, and with it everything goes that is in the cache.
    pub(super) fn note_lost_cache(&mut self, node: usize) {
        let settled = self.nodes[node].data.settled();
        let Some(arrivals) = self.arrivals(node) else { return };
        for write in &mut arrivals.0 {
            if matches!(write.fate, Fate::Written { mark } if mark > settled) {
                write.fate = Fate::Lost;
            }
        }
    }

    /// A packet is about to be sent.
    pub(super) fn check_promise(&mut self, node: usize, name: &str, body: &[u8]) {
        if self.hostile.is_some() {
            return;
        }
        match name {
            "P_RECV_ACK" | "P_WRITE_ACK" | "P_RS_WRITE_ACK" | "P_NEG_ACK" | "P_SUPERSEDED" | "P_RETRY_WRITE" => {
                if let Ok(ack) = BlockAck::decode(body) {
                    self.check_ack(node, name, &ack);
                }
            }
            "P_BARRIER_ACK" => {
                if let Ok(ack) = BarrierAck::decode(body) {
                    for volume in self.volumes() {
                        self.at(volume, |world| world.check_barrier_ack(node, ack.number));
                    }
                }
            }
            "P_OV_RESULT" => {
                if let Ok(result) = BlockAck::decode(body) {
                    self.check_found(node, &result);
                }
            }
            "P_OUT_OF_SYNC" => self.check_announced(node, body),
            _ => {}
        }
    }

    fn check_ack(&mut self, node: usize, name: &str, ack: &BlockAck) {
        // From version 100 on each packet says what it is to be answered with.
        let tells = self.config.offers.is_none();
        let Some(arrivals) = self.arrivals(node) else { return };
        let resync = ack.block_id == ID_SYNCER;
        let count = u64::from(ack.size_bytes / 512);
        // A discard without a disk is refused with a length of 0.
        let names = |write: &Arrived| {
            (write.resync, write.block_id, write.sector) == (resync, ack.block_id, ack.sector)
                && (write.count == count || (!resync && name == "P_NEG_ACK"))
        };
        let positive = matches!(name, "P_WRITE_ACK" | "P_RS_WRITE_ACK");
        let done = |write: &Arrived| matches!(write.fate, Fate::Written { .. } | Fate::Lost);
        let at = match name {
            // The same range may be on its way for a second time.
            "P_NEG_ACK" => arrivals.0.iter().position(|write| names(write) && !done(write)),
            _ if positive => {
                let best = arrivals.0.iter().position(|write| names(write) && done(write));
                best.or_else(|| arrivals.0.iter().position(names))
            }
            _ => arrivals.0.iter().rposition(names),
        };
        let Some(at) = at else {
            // What came without a disk to write it to is not noted.
            assert!(!positive || ack.size_bytes == 0, "node {node}: {name} for what it has not received: {ack:?}");
            return;
        };
        let write = &arrivals.0[at];
        let wanted = match name {
            _ if !tells || resync => true,
            "P_RECV_ACK" => write.flags.contains(DataFlags::SEND_RECEIVE_ACK),
            _ => !positive || write.flags.contains(DataFlags::SEND_WRITE_ACK),
        };
        let refused = matches!(name, "P_SUPERSEDED" | "P_RETRY_WRITE").then_some(write.since_us);
        assert!(wanted, "node {node}: {name} that the packet did not ask for: {write:?}");
        assert!(!positive || done(write), "node {node}: {name} for a write that the disk has not done: {write:?}");
        // Of an epoch it is part until the barrier is acknowledged.
        if matches!(name, "P_SUPERSEDED" | "P_RETRY_WRITE") || (name != "P_RECV_ACK" && (resync || !positive)) {
            arrivals.0.remove(at);
        }
        if let Some(since_us) = refused {
            self.check_conflict(node, ack, since_us);
        }
        if name == "P_RS_WRITE_ACK" && !resync {
            self.check_told_in_sync(node, ack.sector, count);
        }
    }

    /// A write during a resync, of which the peer is told that its blocks are in sync: here they are not marked either, or only one of the
    /// nodes would come to an end.
    fn check_told_in_sync(&self, node: usize, sector: u64, count: u64) {
        let state = self.status(node).state;
        let runs = matches!(state.conn, Conn::SyncSource | Conn::SyncTarget);
        let sound = self.nodes.iter().all(|node| node.faults.is_sound());
        let whole = sector.div_ceil(8) * 8..(sector + count) / 8 * 8;
        let mut marked = whole.step_by(8).filter(|&block| self.unmarked(node, block, 1).is_none());
        let left = marked.find(|&block| !self.is_being_written(node, block, 8));
        assert!(
            left.is_none() || !runs || !sound,
            "node {node} tells that {count} at {sector} are in sync, and has {left:?} marked"
        );
    }

    /// A write of the other Primary, which came then, is refused for one of this node that it meets. Not for one that the other one had
    /// answered before.
    fn check_conflict(&mut self, node: usize, ack: &BlockAck, since_us: u64) {
        let count = u64::from(ack.size_bytes / 512);
        let later = |us: Option<u64>| us.is_none_or(|us| us >= since_us);
        let meets = |operation: &Operation| {
            (operation.node, operation.volume) == (node, self.volume)
                && operation.stamp != 0
                && later(operation.end_us)
                && later(operation.answered_us)
                && overlap(ack.sector, count, operation.sector, operation.count)
        };
        let numbered = self.operations.iter().enumerate().rev();
        let met: Vec<usize> = numbered.filter(|(_, operation)| meets(operation)).map(|(number, _)| number).collect();
        assert!(!met.is_empty(), "node {node} refuses {ack:?}, and has no write of its own that is in its way");
        self.note_in_the_way(node, &met, ack.seq);
    }

    fn check_barrier_ack(&mut self, node: usize, number: u32) {
        let settled = self.nodes[node].data.settled();
        // Its data is not counted on any more, and what it lacks is remembered where that is known.
        let told = !self.is_on(1 - node) || self.status(1 - node).state.pdsk <= Disk::Failed;
        let Some(arrivals) = self.arrivals(node) else { return };
        let epoch = arrivals.take_epoch(number);
        for write in epoch {
            let kept = match write.fate {
                Fate::Written { mark } => mark <= settled,
                Fate::Lost => false,
                Fate::Failed => true,
                Fate::Waits | Fate::Transfer(_) => {
                    panic!("node {node}: the barrier of a write is acknowledged that is not over: {write:?}")
                }
            };
            // That disk may be back by now (seed 86000674).
            let marked = || self.is_on(1 - node) && self.unmarked(1 - node, write.sector, write.count).is_none();
            assert!(
                kept || told || marked(),
                "node {node}: the barrier of a write is acknowledged that is not durable: {write:?}"
            );
        }
    }

    /// A verify has found a difference, and tells the peer.
    fn check_found(&mut self, node: usize, result: &BlockAck) {
        let unmarked = self.unmarked(node, result.sector, u64::from(result.size_bytes / 512));
        let [zero, one] = [0, 1].map(|node| &self.nodes[node].data);
        // Where the meta socket is slow it may have been written on both meanwhile, or is just being (seed 84003600).
        let written = |sector: u64| (0..2).any(|node| self.is_being_written(node, sector, 1));
        let differs = |sector: &u64| zero.get(*sector) != one.get(*sector) && !written(*sector);
        if let Some(sector) = unmarked.filter(differs).filter(|_| result.block_id == ID_OUT_OF_SYNC) {
            panic!("node {node}: a verify found that sector {sector} differs, and it is not marked");
        }
    }

    /// A write is only announced: it is marked on the node that tells, and on the one that is told.
    fn check_announced(&self, node: usize, body: &[u8]) {
        let Ok(range) = BlockDesc::decode(body) else { return };
        let unmarked = self.unmarked(node, range.sector, u64::from(range.size_bytes / 512));
        let syncs = matches!(self.status(node).state.conn, Conn::Ahead | Conn::Behind);
        assert!(!syncs || unmarked.is_none(), "node {node}: a write is only announced, and {unmarked:?} is not marked");
    }

    /// A packet of the meta socket has been received: the peer has a write.
    pub(super) fn note_answer(&mut self, node: usize, name: &str, body: &[u8]) {
        if !matches!(name, "P_RECV_ACK" | "P_WRITE_ACK" | "P_RS_WRITE_ACK" | "P_SUPERSEDED") {
            return;
        }
        let Ok(ack) = BlockAck::decode(body) else { return };
        let running = self.nodes[node].running.as_ref().expect("on");
        let named = RequestId::from_block_id(ack.block_id).and_then(|request| {
            let upper = running.uppers.get(usize::from(request.index))?.as_ref();
            upper.filter(|upper| upper.request == request)
        });
        if let Some(upper) = named {
            let operation = &mut self.operations[upper.operation];
            operation.answered = true;
            operation.answered_us.get_or_insert(self.now_us);
            if name == "P_SUPERSEDED" && operation.stamp != 0 {
                self.oracle.superseded(operation.stamp);
            }
        }
    }

    /// The engine is done with it.
    pub(super) fn check_answer(&mut self, node: usize, name: &str, body: &[u8]) {
        let Some(ack) = BlockAck::decode(body).ok().filter(|_| self.hostile.is_none()) else { return };
        if name == "P_OV_RESULT" {
            self.check_found(node, &ack);
        } else if name == "P_NEG_ACK" && ack.block_id != ID_SYNCER {
            let unmarked = self.unmarked(node, ack.sector, u64::from(ack.size_bytes / 512));
            assert!(unmarked.is_none(), "node {node}: the peer refused {ack:?}, and sector {unmarked:?} is not marked");
        }
    }

    /// A sector of this range whose bit is not set, on a disk that has a bitmap.
    pub(super) fn unmarked(&self, node: usize, sector: u64, count: u64) -> Option<u64> {
        let engine = self.engine_of(node);
        (sector..sector + count).step_by(8).find(|&sector| engine.is_out_of_sync(self.volume, sector) == Some(false))
    }

    /// Is every bit still set that was set before a transfer failed?
    pub(super) fn check_still_marked(&self, node: usize, transfer: &Transfer, before: &[u64]) {
        let engine = self.engine_of(node);
        let cleared = before.iter().find(|&&sector| engine.is_out_of_sync(self.volume, sector) == Some(false));
        assert!(cleared.is_none(), "node {node}: {transfer} failed, and sector {cleared:?} counts as in sync");
    }

    /// Those sectors of a range, one of each block, whose bits are set.
    pub(super) fn marked(&self, node: usize, sector: u64, count: u64) -> Vec<u64> {
        let engine = self.engine_of(node);
        (sector..sector + count)
            .step_by(8)
            .filter(|&sector| engine.is_out_of_sync(self.volume, sector) == Some(true))
            .collect()
    }

    // The halves.

    /// Both nodes are connected, and say so of both disks that they are UpToDate.
    pub fn both_good(&self) -> bool {
        (0..2).all(|node| {
            self.is_on(node) && {
                let state = self.status(node).state;
                (state.conn, state.disk, state.pdsk) == (Conn::Connected, Disk::UpToDate, Disk::UpToDate)
            }
        })
    }

    /// Do the halves differ anywhere without anybody knowing?
    ///
    /// # Panics
    /// When they do.
    pub fn check_differences(&self) {
        if self.hostile.is_some() {
            return;
        }
        let [zero, one] = [0, 1].map(|node| &self.nodes[node].data);
        let marked = |sector: u64| (0..2).any(|node| self.engine_of(node).is_marked(self.volume, sector));
        let unknown = |sector: &u64| zero.get(*sector) != one.get(*sector) && !marked(*sector);
        if let Some(sector) = self.oracle.sectors().find(unknown) {
            panic!("sector {sector} differs and neither node knows; {}", self.describe());
        }
        // Marked or not: either of them may be all that is left before long.
        let is_old = |node: usize, sector: u64| {
            let held = self.nodes[node].data.get(sector);
            self.oracle.check(sector, held, self.now_us, self.now_us).is_err()
        };
        let settled = |sector: &u64| !(0..2).any(|node| self.is_being_written(node, *sector, 1));
        let differs = self.oracle.sectors().filter(|&sector| zero.get(sector) != one.get(sector));
        let old = differs.filter(settled).find(|&sector| (0..2).any(|node| is_old(node, sector)));
        if let Some(sector) = old.filter(|_| self.config.check_reads) {
            panic!(
                "both disks count as good, and one has not what was acknowledged in sector {sector}; {}",
                self.describe()
            );
        }
    }

    // The activity log.

    fn check_logged(&mut self, node: usize, transfer: &Transfer) {
        let state = self.status(node).state;
        // Who takes the device away from under its user gets what he asked for.
        if state.disk > Disk::Failed && state.role == Role::Primary {
            self.check_covered(node, transfer);
        }
    }

    /// After a crash it is known that this range may have been written.
    pub(super) fn check_covered(&mut self, node: usize, transfer: &Transfer) {
        let (layout, superblock) = self.durable_meta(node);
        if superblock.flags.contains(MetaFlags::AL_DISABLED) {
            return;
        }
        let last = transfer.sector + transfer.count - 1;
        let mut extents = transfer.sector / AL_EXTENT_SECTORS..=last / AL_EXTENT_SECTORS;
        let logged = self.logged(node, &layout);
        let covered = superblock.flags.contains(MetaFlags::PRIMARY_IND)
            && extents.all(|extent| logged.contains(&(extent as u32)));
        // The log rests while all bits are set.
        let marked = || (transfer.sector / 8..=last / 8).all(|bit| self.is_set_on_disk(node, &layout, bit));
        assert!(covered || marked(), "node {node}: {transfer} begins before the activity log on the disk covers it");
    }

    /// Does the bitmap on the disk have this bit?
    pub(super) fn is_set_on_disk(&self, node: usize, layout: &Layout, bit: u64) -> bool {
        const BITS_PER_PAGE: u64 = 8 * 4096;
        let page = layout.bitmap_page(bit / BITS_PER_PAGE);
        page.is_some_and(|(sector, _)| {
            let block = self.nodes[node].meta.durable(sector);
            block[(bit % BITS_PER_PAGE / 8) as usize] & (1 << (bit % 8)) != 0
        })
    }

    /// The extents in the activity log on the disk.
    pub(super) fn logged(&mut self, node: usize, layout: &Layout) -> &BTreeSet<u32> {
        if self.nodes[node].logged.is_none() {
            self.nodes[node].logged = Some(self.read_log(node, layout));
        }
        self.nodes[node].logged.as_ref().expect("just read")
    }

    fn read_log(&self, node: usize, layout: &Layout) -> BTreeSet<u32> {
        let meta = &self.nodes[node].meta;
        let blocks = layout.striping.blocks() as u32;
        let ring: Vec<Block> = (0..blocks).map(|number| meta.durable(layout.transaction_sector(number))).collect();
        let mut table = vec![0u32; MAX_SLOTS];
        match replay(blocks, |index| ring.get(index as usize), &mut table) {
            Replay::Replayed { active, .. } => table[..active].iter().copied().collect(),
            _ => BTreeSet::new(),
        }
    }

    /// A block of meta data has been written. An extent that has left the activity log is covered by nothing but the bitmap.
    pub(super) fn check_forgotten(&mut self, node: usize, sector: u64, start_us: u64) {
        let (layout, superblock) = self.durable_meta(node);
        let mut ring = (0..layout.striping.blocks() as u32).map(|number| layout.transaction_sector(number));
        if !ring.any(|block| block == sector) {
            return;
        }
        let Some(before) = self.nodes[node].logged.take() else { return };
        let after = self.read_log(node, &layout);
        let state = self.status(node).state;
        // Whoever syncs changes bits that are written later.
        let quiet = state.conn <= Conn::Connected && state.role == Role::Primary && state.disk > Disk::Failed;
        let quiet = quiet && superblock.flags.contains(MetaFlags::PRIMARY_IND) && self.hostile.is_none();
        // What was on the disk before an extent left may have been lost, with the disk's cache, while that was being written: then all bits are set,
        // and this extent is no worse off than any other one (seed 82100240).
        let quiet = quiet && self.nodes[node].failed_us < start_us;
        for &extent in before.difference(&after).filter(|_| quiet) {
            let first = u64::from(extent) * AL_EXTENT_SECTORS;
            let bits = self.marked(node, first, AL_EXTENT_SECTORS.min(self.config.sectors.saturating_sub(first)));
            // What a peer without a disk has sent is marked, and waits for its extent (seed 88103019).
            let end = self.connection.as_ref().and_then(|connection| connection.ends[node].as_ref());
            let waits =
                |sector: u64| end.is_some_and(|end| end.arrivals[usize::from(self.volume.0)].concern(sector, 8));
            let unmarked = |sector: &&u64| !self.is_set_on_disk(node, &layout, **sector / 8);
            let lost = bits.iter().filter(unmarked).find(|&&sector| !waits(sector));
            assert!(
                lost.is_none(),
                "node {node}: extent {extent} has left the log, and {lost:?} is not marked on the disk"
            );
        }
        let left: Vec<u32> = before.difference(&after).copied().filter(|_| quiet).collect();
        self.check_written_here(
            node,
            &layout,
            |sector| left.contains(&((sector / AL_EXTENT_SECTORS) as u32)),
            "its extent has left the log",
        );
        self.nodes[node].logged = Some(after);
    }

    // The application.

    /// A read has been taken by the engine: which disk is to serve it?
    pub(super) fn check_read(&self, node: usize, request: RequestId) {
        let Some(view) = self.engine_of(node).request(request).filter(|view| view.on_disk) else { return };
        let disk = self.status(node).state.disk;
        assert!(
            !matches!(disk, Disk::Outdated | Disk::Consistent),
            "node {node}: {view:?} reads from a disk that is {disk:?}"
        );
        self.check_stale(node, view.sector, u64::from(view.size_bytes / 512));
    }

    /// What an application reads here, or on the other node, is not to be overwritten by a resync.
    fn check_stale(&self, node: usize, sector: u64, count: u64) {
        if self.status(node).state.disk == Disk::Inconsistent {
            let stale = self.marked(node, sector, count);
            assert!(stale.is_empty(), "node {node}: {count} at {sector} would find what is out of date: {stale:?}");
        }
    }

    /// A write of the application ends well.
    pub(super) fn check_completion(&self, operation: &Operation) {
        // A hostile peer may have the device shrink meanwhile, and there is no bit for what was written beyond its new end.
        if operation.stamp == 0 || self.hostile.is_some() {
            return;
        }
        let strict = self.oracle.write(operation.stamp).is_some_and(|write| write.strict);
        let alone = strict && !operation.answered;
        if alone || !operation.on_disk {
            let unmarked = self.unmarked(operation.node, operation.sector, operation.count);
            assert!(unmarked.is_none(), "{operation:?} is acknowledged, one disk lacks it, and that is not marked");
        }
        self.check_good_copy(operation, strict);
        if alone {
            self.check_written_alone(operation);
        } else if !operation.on_disk {
            self.check_written_elsewhere(operation);
        }
    }

    /// There is a good disk that has it; under protocol A or B, where this node's is not, the peer's.
    fn check_good_copy(&self, operation: &Operation, strict: bool) {
        let node = operation.node;
        let state = self.status(node).state;
        if operation.on_disk && state.disk == Disk::UpToDate {
            return;
        }
        assert!(
            state.pdsk == Disk::UpToDate,
            "node {node}: {operation:?} is acknowledged, and neither disk that has it is good; {state}"
        );
        let zeroes = matches!(operation.action, Action::Discard | Action::WriteZeroes);
        let stamp = if zeroes { 0 } else { operation.stamp };
        let peer = &self.nodes[1 - node].data;
        let lacks = (operation.sector..operation.sector + operation.count).find(|&sector| peer.get(sector) != stamp);
        // What is on a disk that fails (or failed since it was made, seed 82005307), or has lost its power, is another matter; nor is the
        // other Primary's write a loss.
        // Also if that one has been booted since (seed 10015066).
        let there = self.is_on(1 - node) && self.nodes[1 - node].booted_us < operation.start_us;
        let there = there && self.status(1 - node).state.role != Role::Primary;
        let failed =
            self.nodes[1 - node].faults.write_percent > 0 || self.nodes[1 - node].failed_us > operation.start_us;
        assert!(
            strict || !there || lacks.is_none() || failed,
            "node {node}: {operation:?} is acknowledged, and no disk has sector {lacks:?}; {state}"
        );
    }

    /// The peer has not said that it has it.
    fn check_written_alone(&self, operation: &Operation) {
        let node = operation.node;
        let state = self.status(node).state;
        assert!(
            operation.on_disk && state.disk == Disk::UpToDate,
            "node {node}: {operation:?} is acknowledged, and no good disk has it; {state}"
        );
        // A peer that has said itself that it is not good, or whose disk says so, cannot take over.
        let good = MetaFlags::CONSISTENT | MetaFlags::WAS_UP_TO_DATE;
        let harmless = matches!(state.pdsk, Disk::Inconsistent | Disk::Outdated)
            || !self.durable_meta(1 - node).1.flags.contains(good);
        assert!(
            harmless || self.durable_meta(node).1.uuids[UI_BITMAP] != 0,
            "node {node}: {operation:?} is acknowledged without the peer, and the generation on the disk does not tell; {state}"
        );
    }

    /// The local disk has failed: it must not be taken for good after a crash.
    fn check_written_elsewhere(&self, operation: &Operation) {
        let node = operation.node;
        let state = self.status(node).state;
        let machine = &self.nodes[node];
        let unable = machine.faults.meta_percent > 0 || machine.faults.hangs || state.disk != Disk::Failed;
        // The peer begins a new generation. What it has on its disk it has told of, though it may have been rebooted since.
        let recorded = self.durable_meta(1 - node).1.uuids[UI_BITMAP] ^ self.durable_meta(node).1.uuids[UI_CURRENT];
        let told = unable || recorded & !1 == 0;
        let told = told || (self.is_on(1 - node) && self.status(1 - node).state.pdsk <= Disk::Failed);
        assert!(
            told || !self.durable_meta(node).1.flags.contains(MetaFlags::CONSISTENT),
            "node {node}: {operation:?} is acknowledged by the peer, and the disk does not tell that it lacks it; {state}"
        );
    }
}
