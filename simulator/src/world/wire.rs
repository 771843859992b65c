//! What goes to the peer, and to the disks, is what the application, the options and the protocol ask for.
//!
//! Both nodes are of one kind, so that they understand each other in whatever they do. Here the packets are compared with what was
//! asked for.
//!
//! # Invariants
//! * A write says which acknowledgement it waits for: that of its protocol, C where the peer's copy is the only good one.
//! * Data goes as data, zeroes as zeroes, a discard as a discard, of the same range; the peer's disk does what the packet says.
//! * An epoch has no more writes than `max-epoch-size`, and none that began when another one of it was over.
//! * The acknowledgement of a barrier counts the writes of its epoch.
//! * A read is sent when the barrier has been sent of all writes that were over when it began.
//! * Where both disks are good, a read goes to the one that `read-balancing` names.
//! * What is sent when too much is on its way is not sent as usual: the node pulls ahead, or disconnects.
//! * A node serves the peer from a good disk only.
//! * What the peer writes without a disk of its own is marked, and its activity log extent is on the disk before, and a good disk has
//!   a generation that tells.
//! * A target is done when its source has heard of every block; a bitmap for a full resync has all bits.
//! * Of two Primaries, who refuses a write acknowledges its epoch, and those after it, when the other one has answered what was in the way.

use super::promises::overlap;
use super::verifying::Told;
use super::*;
use engine::netlink::{Fencing, OnCongestion, ReadBalancing, WireProtocol};
use engine::resource::RequestView;
use engine::state::State;
use engine::wire::{BarrierAck, BlockAck, BlockRequest, Data, DataFlags, FEATURE_WZEROES, ID_SYNCER};

/// An epoch of a connection, in the order in which the sender closes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SentEpoch {
    link: u64,
    number: u64,
}

/// A write that the peer has been sent, and not acknowledged the barrier of.
#[derive(Clone, Copy, Debug)]
struct SentWrite {
    volume: VolumeId,
    block_id: u64,
    sectors: u64,
    barrier: Option<u32>,
    since_us: u64,
    operation: usize,
    seq: u32,
}

/// How far the source has heard of a target's blocks: those told, those told before the last ping, those before the last one answered.
#[derive(Clone, Copy, Debug, Default)]
struct Heard {
    told: u64,
    asked: u64,
    proved: u64,
}

/// What one node has sent over a connection.
#[derive(Debug, Default)]
pub(super) struct Wire {
    link: u64,
    epoch: u64,
    /// Writes in the epoch, and the most that it may have.
    writes: u32,
    most_writes: u32,
    sent: Vec<SentWrite>,
    /// By volume.
    heard: BTreeMap<u8, Heard>,
    /// The newest epoch of which a write is over.
    over: Option<SentEpoch>,
    /// Volumes whose next bitmap on this connection has all bits.
    full: BTreeSet<u8>,
    told: Vec<Told>,
    in_the_way: Vec<InTheWay>,
}

/// A write of this node for which one of the other Primary was refused.
#[derive(Clone, Copy, Debug)]
struct InTheWay {
    operation: usize,
    /// See [`Operation::sent`].
    sent: (u64, u64),
    /// The epoch that the refused one is in, once its barrier has come.
    barrier: Option<u32>,
}

/// What a node is like when a request comes.
pub(super) struct Before {
    status: VolumeStatus,
    congested: bool,
}

impl World {
    /// That of the present connection.
    fn wire(&mut self, node: usize) -> &mut Wire {
        let link = self.link_of(node).unwrap_or(0);
        // What is queued now may be sent when the options have changed.
        let conf = self.nodes[node].running.as_ref().and_then(|running| running.engine.net_conf());
        let most_writes = conf.map_or(0, |conf| conf.max_epoch_size);
        let wire = &mut self.wires[node];
        if wire.link != link {
            *wire = Wire { link, ..Wire::default() };
        }
        wire.most_writes = wire.most_writes.max(most_writes);
        wire
    }

    /// Digests of a verify whose results have not come over the present connection.
    pub(super) fn told(&mut self, node: usize) -> &mut Vec<Told> {
        &mut self.wire(node).told
    }

    /// A write of the other Primary is refused for these operations. What was sent after that was decided has a later number.
    pub(super) fn note_in_the_way(&mut self, node: usize, operations: &[usize], seq: u32) {
        let wire = self.wire(node);
        let before = wire.sent.iter().filter(|write| (seq.wrapping_sub(write.seq) as i32) > 0);
        let met: Vec<usize> =
            before.map(|write| write.operation).filter(|number| operations.contains(number)).collect();
        for operation in met {
            if let Some(sent) = self.operations[operation].sent {
                self.wire(node).in_the_way.push(InTheWay { operation, sent, barrier: None });
            }
        }
    }

    /// A barrier has come from the peer.
    pub(super) fn note_barrier(&mut self, node: usize, number: u32) {
        let open = self.wire(node).in_the_way.iter_mut().filter(|write| write.barrier.is_none());
        open.for_each(|write| write.barrier = Some(number));
    }

    /// The acknowledgement of an epoch from which something was refused, or of a later one, waits until the other Primary has answered what was
    /// in the way: a C module counts the refused write until then.
    fn check_nothing_in_the_way(&mut self, node: usize, ack: &BarrierAck) {
        let mut known = std::mem::take(&mut self.wire(node).in_the_way);
        known.retain(|write| self.operations[write.operation].sent == Some(write.sent));
        let concerns =
            |write: &&InTheWay| write.barrier.is_some_and(|barrier| (ack.number.wrapping_sub(barrier) as i32) >= 0);
        if let Some(write) = known.iter().find(concerns) {
            let operation = &self.operations[write.operation];
            panic!("node {node}: {ack:?}, and the peer may be busy with what was refused for {operation:?}");
        }
        self.wire(node).in_the_way = known;
    }

    /// The application's request that a packet of the node, or an answer to it, names.
    fn named(&self, node: usize, block_id: u64) -> Option<(usize, RequestView)> {
        let request = RequestId::from_block_id(block_id).filter(|_| block_id != ID_SYNCER)?;
        self.request_of(node, request)
    }

    fn request_of(&self, node: usize, request: RequestId) -> Option<(usize, RequestView)> {
        let running = self.nodes[node].running.as_ref()?;
        let upper = running.uppers.get(usize::from(request.index))?.as_ref()?;
        let view = running.engine.request(request).filter(|_| upper.request == request)?;
        Some((upper.operation, view))
    }

    // What the application asks for.

    /// The application is about to hand over a request.
    pub(super) fn before_request(&mut self, node: usize) -> Before {
        let status = self.status(node);
        let volume = self.volume;
        // All volumes lose their peer at once.
        let can_part = self.volumes().all(|volume| {
            self.at(volume, |world| {
                let state = world.status(node).state;
                state.role != Role::Primary || state.disk == Disk::UpToDate
            })
        });
        let engine = self.engine_of(node);
        let extents = engine.activity_status(volume).map_or(0, |(used, ..)| used);
        let apv = engine.connection_status().apv;
        let conf = engine.net_conf().copied();
        let in_flight = self.wire(node).sent.iter().filter(|write| write.volume == volume);
        let in_flight: u64 = in_flight.map(|write| write.sectors).sum();
        let congested = conf.is_some_and(|conf| {
            let waits = match conf.on_congestion {
                OnCongestion::Block => false,
                OnCongestion::PullAhead => conf.wire_protocol == WireProtocol::A,
                // Whoever has to fence the peer before it is alone is not let go.
                OnCongestion::Disconnect => self.config.disk.fencing == Fencing::DontCare && can_part,
            };
            let fills = conf.cong_fill > 0 && in_flight >= u64::from(conf.cong_fill);
            apv >= 96 && waits && (fills || extents >= conf.cong_extents)
        });
        Before { status, congested }
    }

    /// The engine has taken it.
    pub(super) fn check_request(&self, operation: &Operation, view: &RequestView, before: &Before) {
        let node = operation.node;
        if self.hostile.is_some() || !view.started {
            return;
        }
        let state = before.status.state;
        let good = (state.conn, state.disk, state.pdsk) == (Conn::Connected, Disk::UpToDate, Disk::UpToDate);
        let now = self.status(node).state;
        if matches!(operation.action, Action::Read | Action::ReadAhead) {
            let remote = self.balanced(node, operation.sector, &before.status);
            if let Some(remote) = remote.filter(|_| good && !self.overwrite_allowed && !self.gives_up[node]) {
                assert!(
                    remote != view.on_disk,
                    "node {node}: {operation:?} is read from the other disk than it should"
                );
            }
        } else if operation.stamp != 0 {
            let kept = before.congested && good && now.conn == Conn::Connected;
            assert!(!kept, "node {node}: {operation:?} is sent as usual, though too much is on its way; {now}");
            let net = self.engine_of(node).net_conf();
            let lonely = now.disk != Disk::UpToDate && self.config.offers.is_none();
            let wanted = if lonely { WireProtocol::C } else { net.map_or(view.protocol, |net| net.wire_protocol) };
            assert!(
                view.protocol == wanted || net.is_none(),
                "node {node}: {operation:?} under protocol {:?}",
                view.protocol
            );
        }
    }

    /// Which disk is to serve a read: true, the peer's. Whose turn it is is not known here.
    fn balanced(&self, node: usize, sector: u64, status: &VolumeStatus) -> Option<bool> {
        let striped = |shift: u32| Some(((sector * 512) >> shift) & 1 == 1);
        match self.engine_of(node).disk_conf(self.volume)?.read_balancing {
            ReadBalancing::PreferLocal | ReadBalancing::WhenCongestedRemote => Some(false),
            ReadBalancing::PreferRemote => Some(true),
            ReadBalancing::RoundRobin => None,
            ReadBalancing::LeastPending => Some(status.lower_pending >= status.peer_pending + status.resync_pending),
            ReadBalancing::Striping32K => striped(15),
            ReadBalancing::Striping64K => striped(16),
            ReadBalancing::Striping128K => striped(17),
            ReadBalancing::Striping256K => striped(18),
            ReadBalancing::Striping512K => striped(19),
            ReadBalancing::Striping1M => striped(20),
        }
    }

    /// The newest epoch of which a write is over.
    pub(super) fn epoch_that_is_over(&mut self, node: usize) -> Option<SentEpoch> {
        self.wire(node).over
    }

    /// An operation is over.
    pub(super) fn note_epoch_over(&mut self, node: usize, epoch: Option<SentEpoch>) {
        let wire = self.wire(node);
        if epoch.is_some_and(|epoch| epoch.link == wire.link) {
            wire.over = wire.over.max(epoch);
        }
    }

    // What is sent.

    /// A packet is about to be sent.
    pub(super) fn check_wire(&mut self, node: usize, name: &str, body: &[u8], payload_bytes: Option<u32>) {
        if self.hostile.is_some() {
            return;
        }
        let volume = self.volume;
        let dual = self.config.net.two_primaries;
        let _begun = self.wire(node);
        match name {
            "P_DATA" | "P_TRIM" | "P_ZEROES" => {
                let Some((data, bytes)) = super::promises::described(name, body, payload_bytes) else { return };
                self.check_sent_write(node, name, data, bytes);
            }
            "P_DATA_REQUEST" => {
                let Ok(request) = BlockRequest::decode(body) else { return };
                if let Some((number, _)) = self.named(node, request.block_id) {
                    self.check_range_sent(number, name, request.sector, request.size_bytes);
                    self.note_request_sent(node, number);
                    let after = self.operations[number].after;
                    let wire = self.wire(node);
                    let follows = after.is_some_and(|after| after.link == wire.link && after.number >= wire.epoch);
                    let open = follows && wire.writes > 0;
                    assert!(!open || dual, "node {node} reads what it may have written in the same epoch: {request:?}");
                }
            }
            "P_BARRIER" => {
                let Ok(barrier) = engine::wire::Barrier::decode(body) else { return };
                let wire = self.wire(node);
                wire.epoch += 1;
                wire.writes = 0;
                let open = wire.sent.iter_mut().filter(|write| write.barrier.is_none());
                open.for_each(|write| write.barrier = Some(barrier.number));
            }
            "P_RS_WRITE_ACK" | "P_NEG_ACK" => {
                if BlockAck::decode(body).is_ok_and(|ack| ack.block_id == ID_SYNCER) {
                    self.wire(node).heard.entry(volume.0).or_default().told += 1;
                }
            }
            "P_PING" => self.wire(node).heard.values_mut().for_each(|heard| heard.asked = heard.told),
            "P_BITMAP" | "P_COMPRESSED_BITMAP" => self.check_full_bitmap(node),
            "P_OV_REPLY" => self.note_digest_told(node, body),
            "P_BARRIER_ACK" => {
                let Ok(ack) = BarrierAck::decode(body) else { return };
                self.check_nothing_in_the_way(node, &ack);
            }
            _ => {}
        }
    }

    fn check_range_sent(&self, number: usize, name: &str, sector: u64, bytes: u32) {
        let operation = &self.operations[number];
        assert!(
            (sector, u64::from(bytes)) == (operation.sector, operation.count * 512),
            "{name} of {bytes} bytes at {sector} for {operation:?}"
        );
    }

    fn check_sent_write(&mut self, node: usize, name: &str, data: Data, bytes: u32) {
        let Some((number, view)) = self.named(node, data.block_id) else { return };
        self.check_range_sent(number, name, data.sector, bytes);
        self.note_request_sent(node, number);
        let operation = self.operations[number].clone();
        let status = self.engine_of(node).connection_status();
        let zeroes = status.features & FEATURE_WZEROES != 0;
        let kind = match operation.action {
            Action::Discard => "P_TRIM",
            Action::WriteZeroes if zeroes => "P_ZEROES",
            Action::WriteZeroes => "P_TRIM",
            _ => "P_DATA",
        };
        assert_eq!(name, kind, "node {node} sends {operation:?}");
        let volume = self.volume;
        if status.apv >= 95 {
            let discard = data.flags.contains(DataFlags::DISCARD);
            assert_eq!(discard, kind == "P_TRIM", "node {node} sends {operation:?} as {data:?}");
        }
        if status.apv >= 100 {
            let in_sync = (Conn::SyncSource..=Conn::PausedSyncT).contains(&self.status(node).state.conn);
            let received = data.flags.contains(DataFlags::SEND_RECEIVE_ACK);
            let written = data.flags.contains(DataFlags::SEND_WRITE_ACK);
            let wanted = (view.protocol == WireProtocol::B, view.protocol == WireProtocol::C || in_sync);
            assert_eq!((received, written), wanted, "node {node} sends {operation:?} as {data:?}");
            assert_eq!(data.flags.contains(DataFlags::MAY_SET_IN_SYNC), in_sync, "node {node} sends {data:?}");
        }
        let dual = self.config.net.two_primaries;
        let since_us = self.now_us;
        let wire = self.wire(node);
        wire.writes += 1;
        let epoch = SentEpoch { link: wire.link, number: wire.epoch };
        assert!(wire.writes <= wire.most_writes, "node {node}: {} writes in one epoch", wire.writes);
        let (block_id, sectors) = (data.block_id, u64::from(bytes / 512));
        wire.sent.push(SentWrite {
            volume,
            block_id,
            sectors,
            barrier: None,
            since_us,
            operation: number,
            seq: data.seq,
        });
        // A write that the other Primary has overridden is in no epoch any more.
        let follows = operation.after.is_some_and(|after| after.link == epoch.link && after.number >= epoch.number);
        assert!(!follows || dual, "node {node}: {operation:?} is in the same epoch as one that was over before");
        self.operations[number].epoch = Some(epoch);
    }

    /// Will the write that is about to be sent be on the peer's disk alone, as the peer knows?
    pub(super) fn is_without_disk(&self, node: usize, body: &[u8]) -> bool {
        let Ok(data) = Data::decode(body) else { return false };
        let disk = self.status(node).state.disk;
        self.named(node, data.block_id).is_some_and(|(_, view)| disk < Disk::Inconsistent && view.without_disk)
    }

    /// The bitmap for a full resync, before its bits are set.
    fn check_full_bitmap(&mut self, node: usize) {
        let volume = self.volume.0;
        let status = self.status(node);
        let exchanges = matches!(status.state.conn, Conn::WFBitMapS | Conn::WFBitMapT);
        if exchanges && self.wire(node).full.contains(&volume) {
            assert_eq!(
                status.bits_out_of_sync, status.bits_total,
                "node {node}: everything is to be copied, and the bitmap that is sent does not tell"
            );
        }
    }

    /// The nodes have decided about a resync.
    pub(super) fn note_decision(&mut self, node: usize, decision: SyncDecision) {
        let volume = self.volume.0;
        let full =
            matches!(decision, SyncDecision::SyncSource { full: true } | SyncDecision::SyncTarget { full: true });
        let wire = self.wire(node);
        wire.full.remove(&volume);
        if full {
            wire.full.insert(volume);
        }
    }

    /// The state of a volume has changed.
    pub(super) fn check_state_change(&mut self, node: usize, from: State, to: State) {
        let volume = self.volume.0;
        let exchanges = |state: State| matches!(state.conn, Conn::WFBitMapS | Conn::WFBitMapT);
        let exchanged = exchanges(from) && !exchanges(to);
        let pulls = to.conn == Conn::Ahead && from.conn != Conn::Ahead;
        let disconnects = |net: &NetConf| net.on_congestion == OnCongestion::Disconnect;
        let wrongly = pulls && self.engine_of(node).net_conf().is_some_and(disconnects);
        assert!(!wrongly, "node {node} pulls ahead, and was to disconnect");
        let target = matches!(from.conn, Conn::SyncTarget | Conn::PausedSyncT);
        let done = target && to.conn == Conn::Connected && to.disk == Disk::UpToDate;
        let honest = self.hostile.is_none();
        if from.conn == Conn::VerifyT && to.conn != Conn::VerifyT {
            self.forget_told(node);
        }
        let wire = self.wire(node);
        if exchanged {
            wire.full.remove(&volume);
        }
        let heard = wire.heard.get(&volume).copied().unwrap_or_default();
        assert!(
            !done || heard.proved == heard.told || !honest,
            "node {node} is done, and has not made sure that the source has heard of it: {heard:?}"
        );
    }

    // What arrives.

    /// A packet of the meta socket has been received.
    pub(super) fn note_meta_packet(&mut self, node: usize, name: &str, body: &[u8]) {
        match name {
            "P_OV_RESULT" => self.note_result(node, body),
            "P_PING_ACK" => self.wire(node).heard.values_mut().for_each(|heard| heard.proved = heard.asked),
            "P_BARRIER_ACK" => {
                if let Ok(ack) = BarrierAck::decode(body) {
                    self.check_epoch_size(node, &ack);
                    self.wire(node).sent.retain(|write| write.barrier != Some(ack.number));
                }
            }
            "P_RECV_ACK" | "P_WRITE_ACK" | "P_RS_WRITE_ACK" | "P_SUPERSEDED" | "P_RETRY_WRITE" | "P_NEG_ACK"
            | "P_NEG_DREPLY" => {
                let ack = BlockAck::decode(body).ok().filter(|ack| ack.block_id != ID_SYNCER);
                if let ("P_SUPERSEDED" | "P_RETRY_WRITE", Some(ack)) = (name, &ack) {
                    let sent = &mut self.wire(node).sent;
                    if let Some(at) = sent.iter().position(|write| write.block_id == ack.block_id) {
                        sent.remove(at);
                    }
                }
                if let Some(request) = ack.and_then(|ack| RequestId::from_block_id(ack.block_id)) {
                    self.note_request_answered(node, request);
                }
            }
            _ => {}
        }
    }

    /// An epoch has all writes that were sent in it, but for those that gave way to writes of the other Primary.
    fn check_epoch_size(&mut self, node: usize, ack: &BarrierAck) {
        let sent = self.wire(node).sent.iter().filter(|write| write.barrier == Some(ack.number)).count();
        assert!(
            sent == ack.set_size as usize || self.hostile.is_some(),
            "node {node} has sent {sent} writes in an epoch, and hears {ack:?}"
        );
    }

    /// The peer has answered what a packet of this node asked for.
    pub(super) fn note_request_answered(&mut self, node: usize, request: RequestId) {
        if let Some((number, _)) = self.request_of(node, request) {
            self.operations[number].sent = None;
        }
    }

    /// The peer has not acknowledged the barrier of a write, and has been sent none since then. (On a slow network an epoch may take long.)
    pub(super) fn check_barriers(&self, before_us: u64) {
        for node in 0..2 {
            let wire = &self.wires[node];
            let current = self.link_of(node) == Some(wire.link);
            let late = wire.sent.last().filter(|write| current && write.since_us < before_us);
            assert!(
                late.is_none(),
                "nothing disturbs the nodes, and node {node} waits for the barrier of {late:?}; {}",
                self.describe()
            );
        }
    }

    /// A write to this range is on its way to the peer, or what the peer says of it is on its way back.
    pub(super) fn is_sent(&self, node: usize, sector: u64, count: u64) -> bool {
        self.sent_to(node, sector, count).next().is_some()
    }

    /// Writes to this range that the peer has been sent, and not acknowledged the barrier of.
    pub(super) fn sent_to(&self, node: usize, sector: u64, count: u64) -> impl Iterator<Item = RequestView> + '_ {
        let wire = &self.wires[node];
        let current = self.link_of(node) == Some(wire.link);
        let sent = wire.sent.iter().filter(move |write| current && write.volume == self.volume);
        let requests = sent.filter_map(|write| RequestId::from_block_id(write.block_id));
        let views = requests.filter_map(move |request| self.engine_of(node).request(request));
        views.filter(move |view| overlap(sector, count, view.sector, u64::from(view.size_bytes / 512)))
    }

    /// What the disk is to do for a packet of the peer.
    pub(super) fn wanted_op(&self, node: usize, name: &str, flags: DataFlags) -> Option<Op> {
        let engine = self.engine_of(node);
        let zeroes = engine.connection_status().features & FEATURE_WZEROES != 0;
        let conf = engine.disk_conf(self.volume)?;
        let discard = if conf.discard_zeroes_if_aligned { Op::Discard } else { Op::WriteZeroes { unmap: true } };
        match name {
            "P_TRIM" if zeroes => Some(discard),
            "P_TRIM" => Some(Op::WriteZeroes { unmap: true }),
            "P_ZEROES" => Some(Op::WriteZeroes { unmap: flags.contains(DataFlags::DISCARD) }),
            "P_RS_DEALLOCATED" => Some(discard),
            _ => Some(Op::Write),
        }
    }

    /// What the disk is to do for the application.
    pub(super) fn check_local_op(operation: &Operation, op: Op) {
        let fits = match operation.action {
            Action::Read | Action::ReadAhead => op == Op::Read,
            Action::Write { .. } => op == Op::Write,
            // Zeroes take the place of a discard that has failed.
            Action::Discard => op == Op::Discard || (op == Op::WriteZeroes { unmap: false } && operation.disk_failed),
            Action::WriteZeroes => op == Op::WriteZeroes { unmap: false },
            Action::Flush => op == Op::Flush,
        };
        assert!(fits, "{op:?} on the disk for {operation:?}");
    }

    /// A packet that wants something read has been received, with this status before: only a good disk serves it. A verify of the peer's may
    /// not have heard that the disk is not good any more; it gets digests until it has.
    pub(super) fn check_served(&self, node: usize, name: &str, before: &VolumeStatus) {
        let after = self.status(node);
        let state = before.state;
        let spoilt = (state.conn, state.disk) == (Conn::Connected, Disk::Inconsistent) && self.passes_on();
        let serves = state.disk == Disk::UpToDate || (spoilt && name == "P_OV_REQUEST");
        assert!(
            serves || after.unacked == before.unacked || self.hostile.is_some(),
            "node {node}: {name} is served by a disk that is {:?}",
            state.disk
        );
    }

    /// What the peer, without a disk of its own, has written is about to go to the disk.
    pub(super) fn check_written_for_peer(&mut self, node: usize, transfer: &Transfer) {
        let unmarked = self.unmarked(node, transfer.sector, transfer.count);
        assert!(unmarked.is_none(), "node {node}: {transfer} is on this disk alone, and {unmarked:?} is not marked");
        self.check_covered(node, transfer);
        let state = self.status(node).state;
        let told = state.disk != Disk::UpToDate
            || state.pdsk >= Disk::Inconsistent
            || self.durable_meta(node).1.uuids[UI_BITMAP] != 0;
        assert!(told, "node {node}: {transfer} is on this disk alone, and the generation does not tell; {state}");
    }
}
