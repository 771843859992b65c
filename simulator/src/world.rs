//! The world: two nodes, the network between them, time, and what happens next.
//!
//! # Invariants
//! * Nothing happens but through an [`Event`] of the queue or a call from outside; the queue is ordered by time, and by
//!   chance among events of the same time.
//! * An event of a machine or connection that is gone does nothing.
//! * After every call into an engine its `take_wakes` is looked after, and nothing else wakes anybody: a wake that the
//!   engine forgets is a run that stops.

use crate::disk::{Block, DataDisk, MetaDisk, Stamp};
use crate::inspect;
use crate::network::{Pipe, DATA, META};
use crate::node::{DiskFaults, HeapEngine, Node, Running, Transfer, Upper, VOLUME};
use crate::{Oracle, Random};
use engine::handshake::SyncDecision;
use engine::metadata::layout::{Layout, MetaIndex, Striping};
use engine::metadata::replay::{replay, Replay, MAX_SLOTS};
use engine::metadata::superblock::{Magic, MetaFlags, Superblock};
use engine::metadata::transaction::Transaction;
use engine::netlink::{DiskConf, NetConf, ResizeParms};
use engine::resource::{
    hmac_of, AdminRequest, AlgorithmName, AttachTables, Backing, BackingLimits, DeviceSizes, Fault, Finding, Helper,
    IoError, IoFlags, IoRequest, IoResult, LinkFailure, LinkTask, LocalIo, LogLine, Next, Notice, Op, PacketHead,
    Payload, PeerId, Reconnect, RequestId, Submit, TableLimits, VolumeStatus, Wakes, Work, PACKET_BUFFER_BYTES,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Lines of the trace that are kept.
const TRACE_LINES: usize = 200_000;
const MS: u64 = 1000;

/// What a world is made of.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Decides everything that is left to chance.
    pub seed: u64,
    /// Size of both data disks, in sectors.
    pub sectors: u64,
    /// Lengths of the engines' tables.
    pub limits: TableLimits,
    /// Options of the connection.
    pub net: NetConf,
    /// Options of the disks.
    pub disk: DiskConf,
    /// The meta data is on the data disk: what makes it durable makes data durable that was written before.
    pub internal: bool,
    /// Every read must find what was acknowledged. Not so when the administrator lets the halves diverge.
    pub check_reads: bool,
    /// Keep a readable trace.
    pub trace: bool,
    /// How the engines of both nodes are broken.
    #[cfg(feature = "sabotage")]
    pub sabotage: Option<engine::resource::Sabotage>,
}

impl Config {
    /// 64 MiB disks, protocol C.
    pub fn new(seed: u64) -> Self {
        let net = NetConf::default();
        let disk = DiskConf { al_extents: 67, ..DiskConf::default() };
        let limits = TableLimits { volumes: 1, requests: 64, peer_requests: 64 };
        Config {
            seed,
            sectors: 131_072,
            limits,
            net,
            disk,
            internal: true,
            check_reads: true,
            trace: true,
            #[cfg(feature = "sabotage")]
            sabotage: None,
        }
    }
}

/// What the application does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Reads sectors.
    Read,
    /// Writes sectors; durable when acknowledged if `fua`.
    Write {
        /// Force unit access.
        fua: bool,
    },
    /// Leaves zeroes.
    Discard,
    /// Leaves zeroes.
    WriteZeroes,
    /// Flushes the write cache.
    Flush,
}

/// An operation of the application.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Node it runs on.
    pub node: usize,
    /// What it is.
    pub action: Action,
    /// First sector.
    pub sector: u64,
    /// Sectors.
    pub count: u64,
    /// Its number, for a write.
    pub stamp: Stamp,
    /// When it was submitted.
    pub start_us: u64,
    /// Its result; `None` while under way.
    pub result: Option<IoResult>,
    /// It died with its machine.
    pub lost: bool,
}

#[derive(Clone, Debug)]
enum Event {
    Receive { node: usize, link: u64, socket: usize },
    Send { node: usize, link: u64, socket: usize },
    Sent { node: usize, link: u64, socket: usize },
    Patience { node: usize, link: u64, socket: usize, blocked_at_us: u64 },
    MetaTimer { node: usize, link: u64 },
    Own { node: usize, incarnation: u32, what: Own },
    Meet,
}

#[derive(Clone, Debug)]
enum Own {
    Local,
    LocalDone(u64),
    Metadata,
    MetadataDone(u64),
    Work,
    Helper { ticket: u32, exit_code: i32 },
    Released,
    Gate,
    Link,
    Tick,
}

impl Own {
    /// Events that are in the queue at most once.
    fn place(&self) -> Option<usize> {
        match self {
            Own::Local => Some(0),
            Own::Metadata => Some(1),
            Own::Work => Some(2),
            Own::Gate => Some(3),
            Own::Link => Some(4),
            Own::Tick => Some(5),
            _ => None,
        }
    }
}

/// How far a reader has got.
#[derive(Clone, Debug)]
enum Reading {
    Header,
    Body(PacketHead),
    Payload(PeerId, usize),
    ReadReply(RequestId, usize),
    Drain(usize),
    Stopped,
}

/// One machine's half of a connection.
#[derive(Debug)]
struct End {
    reading: [Reading; 2],
    sending: [bool; 2],
    blocked_since_us: [Option<u64>; 2],
    closing: bool,
    data_arrived: bool,
    meta_since_us: u64,
    meta_timeout_ms: u32,
}

struct Connection {
    number: u64,
    /// By sender, then socket.
    pipes: [[Pipe; 2]; 2],
    ends: [Option<End>; 2],
}

/// Two nodes and everything around them.
pub struct World {
    /// What it was made with.
    pub config: Config,
    /// The machines.
    pub nodes: [Node; 2],
    /// What the application did.
    pub oracle: Oracle,
    /// All operations.
    pub operations: Vec<Operation>,
    /// Chance.
    pub random: Random,
    /// Packets from this node get through.
    pub network_up: [bool; 2],
    /// Exit code of the helpers.
    pub helper_exit_code: i32,
    /// Every state packet and change, for tests of the order of states.
    pub history: Vec<(usize, Notice)>,
    /// Kinds of packets that were sent.
    pub packets: BTreeSet<&'static str>,
    /// Rules that decided about a resync.
    pub rules: BTreeSet<String>,
    /// Resyncs that were finished.
    pub resyncs: u64,
    /// Decisions that refused the connection.
    pub refusals: Vec<String>,
    /// Connections that a node without a disk refused because the peer's data is older than what it has shown.
    pub old_data_refused: u64,
    /// Events carried out.
    pub events: u64,
    /// Reasons why connections were given up.
    pub faults: Vec<(usize, Fault)>,
    /// Packets sent, by name.
    pub packets_sent: BTreeMap<&'static str, u64>,
    /// Helper programs that ran.
    pub helpers: Vec<(usize, Helper)>,
    /// This node's secret is not that of the configuration.
    pub wrong_secret: [bool; 2],
    /// The next data that goes with a digest is damaged on its way.
    pub garble: bool,
    now_us: u64,
    queue: BTreeMap<(u64, u64, u64), Event>,
    sequence: u64,
    connection: Option<Connection>,
    next_connection: u64,
    meeting: bool,
    next_transfer: u64,
    trace: VecDeque<String>,
    buffer: Vec<u8>,
}

impl World {
    /// Two machines that are switched on, with fresh meta data; nothing is attached or connected.
    pub fn new(config: Config) -> Self {
        let backing_sectors = if config.internal { config.sectors + 256 } else { config.sectors };
        let layout = layout(config.internal, backing_sectors);
        let config = Config { sectors: layout.usable_sectors, ..config };
        let node = || Node {
            incarnation: 1,
            running: Some(boot(&config)),
            data: DataDisk::new(config.sectors),
            meta: MetaDisk::default(),
            backing_sectors,
            known_sectors: backing_sectors,
            faults: DiskFaults::default(),
        };
        let mut world = World {
            config,
            nodes: [node(), node()],
            oracle: Oracle::default(),
            operations: Vec::new(),
            random: Random::new(config.seed),
            network_up: [true, true],
            helper_exit_code: 0,
            history: Vec::new(),
            packets: BTreeSet::new(),
            rules: BTreeSet::new(),
            resyncs: 0,
            refusals: Vec::new(),
            old_data_refused: 0,
            events: 0,
            faults: Vec::new(),
            packets_sent: BTreeMap::new(),
            helpers: Vec::new(),
            wrong_secret: [false; 2],
            garble: false,
            now_us: MS,
            queue: BTreeMap::new(),
            sequence: 0,
            connection: None,
            next_connection: 1,
            meeting: false,
            next_transfer: 0,
            trace: VecDeque::new(),
            buffer: vec![0; PACKET_BUFFER_BYTES],
        };
        world.create_md(0);
        world.create_md(1);
        world
    }

    /// The time in microseconds.
    pub fn now_us(&self) -> u64 {
        self.now_us
    }

    fn now_ms(&self) -> u64 {
        self.now_us / MS
    }

    /// A line for whoever reads a failed run.
    pub fn note(&mut self, line: impl FnOnce() -> String) {
        if self.config.trace {
            if self.trace.len() >= TRACE_LINES {
                self.trace.pop_front();
            }
            self.trace.push_back(format!("{:>12.3} ms  {}", self.now_us as f64 / 1000.0, line()));
        }
    }

    /// The trace so far.
    pub fn trace(&self) -> impl Iterator<Item = &str> {
        self.trace.iter().map(String::as_str)
    }

    fn schedule(&mut self, after_us: u64, event: Event) {
        self.schedule_at(self.now_us + after_us, event);
    }

    fn schedule_at(&mut self, at_us: u64, event: Event) {
        self.sequence += 1;
        let key = (at_us.max(self.now_us), self.random.number(), self.sequence);
        self.queue.insert(key, event);
    }

    fn schedule_own(&mut self, node: usize, after_us: u64, what: Own) {
        let Some(running) = self.nodes[node].running.as_mut() else { return };
        if let Some(place) = what.place() {
            if std::mem::replace(&mut running.scheduled[place], true) {
                return;
            }
        }
        let incarnation = self.nodes[node].incarnation;
        self.schedule(after_us, Event::Own { node, incarnation, what });
    }

    // Running.

    /// Carries out the next event; false when there is none.
    pub fn step(&mut self) -> bool {
        let Some((key, event)) = self.queue.pop_first() else { return false };
        self.now_us = key.0;
        self.events += 1;
        match event {
            Event::Receive { node, link, socket } => self.receive(node, link, socket),
            Event::Send { node, link, socket } => self.send(node, link, socket),
            Event::Sent { node, link, socket } => self.sent(node, link, socket),
            Event::Patience { node, link, socket, blocked_at_us } => {
                let blocked =
                    self.end(node, link).is_some_and(|end| end.blocked_since_us[socket] == Some(blocked_at_us));
                if blocked {
                    self.link_failed(node, link, LinkFailure::SendTimeout);
                }
            }
            Event::MetaTimer { node, link } => self.meta_timer(node, link),
            Event::Meet => self.meet(),
            Event::Own { node, incarnation, what } => {
                if self.nodes[node].incarnation != incarnation || self.nodes[node].running.is_none() {
                    return true;
                }
                if let (Some(place), Some(running)) = (what.place(), self.nodes[node].running.as_mut()) {
                    running.scheduled[place] = false;
                }
                self.own(node, what);
            }
        }
        true
    }

    fn own(&mut self, node: usize, what: Own) {
        match what {
            Own::Local => self.submit_local(node),
            Own::LocalDone(number) => self.local_done(node, number),
            Own::Metadata => self.next_metadata(node),
            Own::MetadataDone(number) => self.metadata_done(node, number),
            Own::Work => self.work(node),
            Own::Helper { ticket, exit_code } => {
                self.engine(node, |engine, now| engine.helper_done(ticket, exit_code, now))
            }
            Own::Released => self.release_backing(node),
            Own::Gate => self.gate(node),
            Own::Link => self.link(node),
            Own::Tick => {
                let wanted = self.engine(node, |engine, now| {
                    engine.tick(now);
                    engine.wants_tick()
                });
                if wanted {
                    self.schedule_own(node, 100 * MS, Own::Tick);
                }
            }
        }
    }

    /// Runs for so long.
    pub fn run_for_ms(&mut self, ms: u64) {
        let end_us = self.now_us + ms * MS;
        while self.queue.first_key_value().is_some_and(|(key, _)| key.0 <= end_us) {
            self.step();
        }
        self.now_us = end_us;
    }

    /// Runs until `done` holds.
    ///
    /// # Panics
    /// When it does not within `ms` milliseconds.
    #[track_caller]
    pub fn run_until(&mut self, what: &str, ms: u64, mut done: impl FnMut(&World) -> bool) {
        let end_us = self.now_us + ms * MS;
        while !done(self) {
            let goes_on = self.now_us <= end_us && self.step();
            assert!(goes_on, "{what}: not within {ms} ms; {}", self.describe());
        }
    }

    /// Both nodes in one line.
    pub fn describe(&self) -> String {
        let one = |node: usize| match self.nodes[node].running.as_ref() {
            None => "off".into(),
            Some(running) => {
                let status = running.engine.volume_status(VOLUME).expect("volume");
                format!(
                    "{} link {} bits {} upper {} lower {} peer {} unacked {} resync {} usage {:?}",
                    status.state,
                    running.engine.connection_status().state,
                    status.bits_out_of_sync,
                    status.upper_pending,
                    status.lower_pending,
                    status.peer_pending,
                    status.unacked,
                    status.resync_pending,
                    running.engine.usage()
                )
            }
        };
        format!("node 0: {}; node 1: {}", one(0), one(1))
    }

    /// The state of a node's volume.
    pub fn status(&self, node: usize) -> VolumeStatus {
        let running = self.nodes[node].running.as_ref().expect("the node is on");
        running.engine.volume_status(VOLUME).expect("volume")
    }

    /// True when the machine is on.
    pub fn is_on(&self, node: usize) -> bool {
        self.nodes[node].running.is_some()
    }

    /// The engine of a node that is on.
    pub fn engine_of(&self, node: usize) -> &HeapEngine {
        &self.nodes[node].running.as_ref().expect("the node is on").engine
    }

    /// A call into an engine and what has to follow every call.
    pub fn engine<R>(&mut self, node: usize, f: impl FnOnce(&mut HeapEngine, u64) -> R) -> R {
        let now_ms = self.now_ms();
        let running = self.nodes[node].running.as_mut().expect("the node is on");
        while running.engine.wants_entropy() {
            running.engine.add_entropy(self.random.number());
        }
        let result = f(&mut running.engine, now_ms);
        let wakes = running.engine.take_wakes();
        self.look_after(node, wakes);
        result
    }

    fn look_after(&mut self, node: usize, wakes: Wakes) {
        if wakes.contains(Wakes::COMPLETIONS) {
            self.complete(node);
        }
        let soon = self.random.below(20);
        if wakes.contains(Wakes::LOCAL_IO) {
            self.schedule_own(node, soon, Own::Local);
        }
        if wakes.contains(Wakes::METADATA) {
            self.schedule_own(node, soon, Own::Metadata);
        }
        if wakes.contains(Wakes::WORK) {
            self.schedule_own(node, soon, Own::Work);
        }
        if wakes.contains(Wakes::GATE) {
            self.schedule_own(node, soon, Own::Gate);
        }
        if wakes.contains(Wakes::LINK) {
            self.schedule_own(node, soon, Own::Link);
        }
        if let Some(link) = self.link_of(node) {
            if wakes.contains(Wakes::DATA_SENDER) {
                self.schedule(soon, Event::Send { node, link, socket: DATA });
            }
            if wakes.contains(Wakes::META_SENDER) {
                self.schedule(soon, Event::Send { node, link, socket: META });
            }
            if wakes.contains(Wakes::RECEIVER) {
                self.schedule(soon, Event::Receive { node, link, socket: DATA });
                self.schedule(soon, Event::Receive { node, link, socket: META });
            }
            self.watch_meta(node, link);
        }
        let running = self.nodes[node].running.as_ref().expect("the node is on");
        if running.engine.wants_tick() {
            self.schedule_own(node, 100 * MS, Own::Tick);
        }
    }

    // Data disk.

    fn disk_delay(&mut self, node: usize) -> u64 {
        let slowness = self.nodes[node].faults.slowness + 1;
        // Now and then a transfer is very late.
        let most = if self.random.percent(3) { 20_000 } else { 300 };
        self.random.between(20, most) * slowness
    }

    fn submit_local(&mut self, node: usize) {
        loop {
            let mark = self.nodes[node].data.mark();
            let Some(io) = self.engine(node, |engine, _| engine.poll_local()) else { return };
            let running = self.nodes[node].running.as_mut().expect("on");
            let transfer = match io {
                LocalIo::Request { request, op, .. } => {
                    let view = running.engine.request(request).expect("local I/O of a request that is over");
                    let upper = running.uppers[usize::from(request.index)].as_ref().expect("local I/O without a bio");
                    assert_eq!(upper.request, request, "local I/O for another bio");
                    let flags = match self.operations[upper.operation].action {
                        Action::Write { fua } => fua,
                        _ => false,
                    };
                    Transfer {
                        io,
                        op,
                        sector: view.sector,
                        data: upper.data.clone(),
                        count: u64::from(view.size_bytes / 512),
                        fua: flags,
                        preflush: false,
                        mark,
                    }
                }
                LocalIo::Peer { peer, op, sector, size_bytes, flags, .. } => {
                    let count = u64::from(size_bytes / 512);
                    let data = match (&running.pages[usize::from(peer.index)], op) {
                        (Some((owner, data)), Op::Write) if *owner == peer => data.clone(),
                        (_, Op::Write) => panic!("write of a peer request without its pages"),
                        _ => Vec::new(),
                    };
                    assert!(op != Op::Write || data.len() as u64 == count, "pages of another size");
                    Transfer { io, op, sector, data, count, fua: flags.fua, preflush: flags.preflush, mark }
                }
                LocalIo::Inspect { peer, .. } => {
                    let (owner, data) = running.pages[usize::from(peer.index)].take().expect("pages to look at");
                    assert_eq!(owner, peer, "pages of another request");
                    Transfer { io, op: Op::Read, sector: 0, data, count: 0, fua: false, preflush: false, mark }
                }
                LocalIo::Flush { .. } => Transfer {
                    io,
                    op: Op::Flush,
                    sector: 0,
                    data: Vec::new(),
                    count: 0,
                    fua: false,
                    preflush: false,
                    mark,
                },
            };
            self.next_transfer += 1;
            let number = self.next_transfer;
            self.note(|| {
                format!("node {node} disk <- {:?} sector {} count {}", transfer.io, transfer.sector, transfer.count)
            });
            self.nodes[node].running.as_mut().expect("on").transfers.insert(number, transfer);
            let delay = self.disk_delay(node);
            self.schedule_own(node, delay, Own::LocalDone(number));
        }
    }

    fn local_done(&mut self, node: usize, number: u64) {
        if self.nodes[node].faults.hangs {
            self.schedule_own(node, 20 * MS, Own::LocalDone(number));
            return;
        }
        let machine = &mut self.nodes[node];
        let running = machine.running.as_mut().expect("on");
        let transfer = running.transfers.remove(&number).expect("transfer");
        let faults = machine.faults;
        let percent = if transfer.op == Op::Read { faults.read_percent } else { faults.write_percent };
        let fails = !running.backing_open || self.random.percent(percent);
        let machine = &mut self.nodes[node];
        let mut read = Vec::new();
        if !fails {
            if transfer.preflush || transfer.op == Op::Flush {
                machine.data.flush_until(transfer.mark);
            }
            match transfer.op {
                Op::Read => read = machine.data.read(transfer.sector, transfer.count),
                Op::Write => machine.data.write(transfer.sector, &transfer.data, transfer.fua),
                Op::Discard | Op::WriteZeroes { .. } => {
                    machine.data.write(transfer.sector, &vec![0; transfer.count as usize], transfer.fua);
                }
                Op::Flush => {}
            }
        }
        let result = if fails { Err(IoError::Io) } else { Ok(()) };
        self.note(|| format!("node {node} disk -> {:?} {result:?}", transfer.io));
        match transfer.io {
            LocalIo::Request { request, .. } => {
                let running = self.nodes[node].running.as_mut().expect("on");
                let wanted = running.engine.request(request).is_some_and(|view| view.on_disk);
                if transfer.op == Op::Read && !fails && wanted {
                    let upper = running.uppers[usize::from(request.index)].as_mut();
                    upper.filter(|upper| upper.request == request).expect("bio of a local read").data = read;
                }
                self.engine(node, |engine, now| engine.request_io_done(request, result, now));
            }
            LocalIo::Peer { peer, .. } => {
                if transfer.op == Op::Read && !fails {
                    let running = self.nodes[node].running.as_mut().expect("on");
                    running.pages[usize::from(peer.index)] = Some((peer, read));
                }
                self.engine(node, |engine, now| engine.peer_io_done(peer, result, now));
            }
            LocalIo::Inspect { peer, what } => {
                let finding = if fails { Finding::Failed } else { inspect::finding(what, &transfer.data) };
                if self.engine(node, |engine, now| engine.inspected(peer, finding, now)) {
                    let running = self.nodes[node].running.as_mut().expect("on");
                    running.pages[usize::from(peer.index)] = Some((peer, transfer.data));
                }
            }
            LocalIo::Flush { volume } => self.engine(node, |engine, now| engine.flush_done(volume, result, now)),
        }
    }

    // Meta-data disk.

    fn next_metadata(&mut self, node: usize) {
        loop {
            let mut block = Box::new([0u8; 4096]);
            let Some(io) = self.engine(node, |engine, _| engine.next_metadata_io(VOLUME, &mut block)) else { return };
            self.next_transfer += 1;
            let number = self.next_transfer;
            self.note(|| format!("node {node} meta <- {io:?}"));
            let mark = self.nodes[node].data.mark();
            self.nodes[node].running.as_mut().expect("on").meta_transfers.insert(number, (io, block, mark));
            let delay = self.disk_delay(node);
            self.schedule_own(node, delay, Own::MetadataDone(number));
        }
    }

    fn metadata_done(&mut self, node: usize, number: u64) {
        if self.nodes[node].faults.hangs {
            self.schedule_own(node, 20 * MS, Own::MetadataDone(number));
            return;
        }
        let machine = &mut self.nodes[node];
        let running = machine.running.as_mut().expect("on");
        let (io, mut block, mark) = running.meta_transfers.remove(&number).expect("transfer");
        let percent = machine.faults.meta_percent;
        let fails = !running.backing_open || self.random.percent(percent);
        let machine = &mut self.nodes[node];
        if !fails {
            if io.write {
                machine.meta.write(io.sector, &block, io.size_bytes as usize, io.durable);
                if io.durable && self.config.internal {
                    machine.data.flush_until(mark);
                }
            } else {
                *block = machine.meta.read(io.sector);
                block[io.size_bytes as usize..].fill(0);
            }
        }
        let result = if fails { Err(IoError::Io) } else { Ok(()) };
        self.note(|| format!("node {node} meta -> {io:?} {result:?}"));
        self.engine(node, |engine, now| engine.metadata_io_done(VOLUME, io.ticket, result, &block, now));
    }

    // The worker.

    fn work(&mut self, node: usize) {
        let Some(work) = self.engine(node, |engine, _| engine.poll_work()) else { return };
        self.schedule_own(node, 1, Own::Work);
        match work {
            Work::Notice(notice) => {
                self.note(|| match notice {
                    Notice::State { from, to, .. } => format!("node {node} STATE {from} -> {to}"),
                    other => format!("node {node} {other:?}"),
                });
                self.history.push((node, notice));
            }
            Work::Log(line) => {
                self.note(|| format!("node {node} LOG {line}"));
                match line {
                    LogLine::Fault { fault } => self.faults.push((node, fault)),
                    LogLine::PeerExposedDataDiffers { .. } => self.old_data_refused += 1,
                    LogLine::ResyncDone { source: false, .. } => self.resyncs += 1,
                    LogLine::Decision { comparison, decision, .. } => {
                        self.rules.insert(format!("{:?}", comparison.rule));
                        if let SyncDecision::Refuse(reason) = decision {
                            self.refusals.push(format!("node {node}: {reason}"));
                        }
                    }
                    _ => {}
                }
                assert!(!matches!(line, LogLine::InternalError { .. }), "node {node}: {line}");
            }
            Work::Helper { helper, ticket, .. } => {
                let exit_code = self.helper_exit_code;
                self.helpers.push((node, helper));
                self.note(|| format!("node {node} helper {helper} -> {exit_code}"));
                let delay = self.random.between(100, 20_000);
                self.schedule_own(node, delay, Own::Helper { ticket, exit_code });
            }
            Work::ReleaseBacking { .. } => self.schedule_own(node, 500, Own::Released),
            Work::ReadOnly { read_only, .. } => self.nodes[node].running.as_mut().expect("on").read_only = read_only,
            Work::Resize { volume, sectors } => {
                let tables = engine::bitmap::BitmapTables::new(sectors).ok();
                let _old = self.engine(node, |engine, now| engine.resize(volume, tables, now));
            }
            Work::Algorithms => {
                let wanted = self.engine(node, |engine, _| engine.wanted_algorithms());
                self.tell_algorithms(node, &wanted);
                self.engine(node, |engine, now| engine.algorithms_looked_for(now));
            }
            Work::Capacity { .. } | Work::Limits { .. } | Work::Uevent { .. } | Work::ResyncDependencies => {}
        }
    }

    fn release_backing(&mut self, node: usize) {
        let running = self.nodes[node].running.as_mut().expect("on");
        assert!(running.transfers.is_empty(), "the disk is let go with transfers on it: {:?}", running.transfers);
        assert!(running.meta_transfers.is_empty(), "the disk is let go with meta-data transfers on it");
        running.backing_open = false;
        let _tables = self.engine(node, |engine, now| engine.backing_released(VOLUME, now));
    }

    // Application.

    /// Starts an operation; returns its number.
    pub fn start(&mut self, node: usize, action: Action, sector: u64, count: u64) -> usize {
        let zeroes = matches!(action, Action::Discard | Action::WriteZeroes);
        let writes = zeroes || matches!(action, Action::Write { .. });
        let stamp = if writes { self.oracle.begin(node, sector, count, zeroes, self.now_us) } else { 0 };
        let start_us = self.now_us;
        let number = self.operations.len();
        self.operations.push(Operation { node, action, sector, count, stamp, start_us, result: None, lost: false });
        self.note(|| format!("node {node} app {action:?} sector {sector} count {count} stamp {stamp} (#{number})"));
        let running = self.nodes[node].running.as_mut().expect("on");
        if running.parked.is_empty() {
            self.offer(node, number);
        } else {
            running.parked.push_back(number);
        }
        number
    }

    /// Submits an operation; false when it has to wait (it is parked then).
    fn offer(&mut self, node: usize, number: usize) -> bool {
        let operation = self.operations[number].clone();
        let (op, fua) = match operation.action {
            Action::Read => (Op::Read, false),
            Action::Write { fua } => (Op::Write, fua),
            Action::Discard => (Op::Discard, false),
            Action::WriteZeroes => (Op::WriteZeroes { unmap: false }, false),
            Action::Flush => (Op::Flush, false),
        };
        let io = IoRequest {
            op,
            sector: operation.sector,
            size_bytes: (operation.count * 512) as u32,
            flags: IoFlags { fua, ..IoFlags::default() },
        };
        let now_ms = self.now_ms();
        let running = self.nodes[node].running.as_mut().expect("on");
        let submit = running.engine.submit(VOLUME, io, now_ms);
        match submit {
            Submit::Accepted(request) => {
                let place = &mut running.uppers[usize::from(request.index)];
                assert!(place.is_none(), "a slot was reused while its bio is under way");
                let data = if op == Op::Write { vec![operation.stamp; operation.count as usize] } else { Vec::new() };
                *place = Some(Upper { request, operation: number, data });
            }
            Submit::Later => running.parked.push_back(number),
            Submit::Failed(error) => self.finish(number, Err(error), &[]),
        }
        let running = self.nodes[node].running.as_mut().expect("on");
        let wakes = running.engine.take_wakes();
        self.look_after(node, wakes);
        submit != Submit::Later
    }

    fn gate(&mut self, node: usize) {
        let running = self.nodes[node].running.as_mut().expect("on");
        let mut waiting = std::mem::take(&mut running.parked);
        while let Some(number) = waiting.pop_front() {
            if !self.offer(node, number) {
                // It was parked again: everybody behind it stays behind it.
                break;
            }
        }
        self.nodes[node].running.as_mut().expect("on").parked.extend(waiting);
    }

    fn complete(&mut self, node: usize) {
        loop {
            let running = self.nodes[node].running.as_mut().expect("on");
            let Some(completion) = running.engine.poll_completion() else { return };
            let index = usize::from(completion.request.index);
            let upper = running.uppers[index].take().expect("a request was completed twice");
            assert_eq!(upper.request, completion.request, "completion of another request");
            let busy = running.transfers.values().any(
                |transfer| matches!(transfer.io, LocalIo::Request { request, copy: false, .. } if request == completion.request),
            );
            assert!(!busy, "a bio was ended while the disk has it");
            self.finish(upper.operation, completion.result, &upper.data);
        }
    }

    fn finish(&mut self, number: usize, result: IoResult, data: &[Stamp]) {
        let now_us = self.now_us;
        self.operations[number].result = Some(result);
        let operation = self.operations[number].clone();
        self.note(|| format!("node {} app #{number} done {result:?}", operation.node));
        if result.is_err() {
            return;
        }
        if operation.stamp != 0 {
            self.oracle.acknowledge(operation.stamp, operation.action == Action::Write { fua: true }, now_us);
        }
        if operation.action == Action::Flush {
            self.oracle.flushed(operation.node, operation.start_us);
        }
        if operation.action == Action::Read && self.config.check_reads {
            assert_eq!(data.len() as u64, operation.count, "a read without its data");
            for (sector, &stamp) in (operation.sector..).zip(data) {
                if let Err(reason) = self.oracle.check(sector, stamp, operation.start_us, now_us) {
                    panic!("read #{number} on node {}: {reason}", operation.node);
                }
            }
        }
    }

    /// Carries out one operation to its end.
    #[track_caller]
    pub fn io(&mut self, node: usize, action: Action, sector: u64, count: u64) -> IoResult {
        let number = self.start(node, action, sector, count);
        self.run_until("application I/O", 60_000, |world| world.operations[number].result.is_some());
        self.operations[number].result.expect("result")
    }

    // The link.

    fn link_of(&self, node: usize) -> Option<u64> {
        self.connection
            .as_ref()
            .filter(|connection| connection.ends[node].is_some())
            .map(|connection| connection.number)
    }

    fn end(&mut self, node: usize, link: u64) -> Option<&mut End> {
        self.connection.as_mut().filter(|connection| connection.number == link)?.ends[node].as_mut()
    }

    /// The connection thread.
    fn link(&mut self, node: usize) {
        let task = self.engine(node, |engine, _| engine.link_task());
        match task {
            LinkTask::Stop | LinkTask::Run => {}
            LinkTask::Establish => self.try_to_meet(),
            LinkTask::Close => self.close(node),
        }
    }

    fn try_to_meet(&mut self) {
        if !self.meeting {
            self.meeting = true;
            let delay = self.random.between(100, 3000);
            self.schedule(delay, Event::Meet);
        }
    }

    fn meet(&mut self) {
        self.meeting = false;
        let now_us = self.now_us;
        let mut later = None;
        for node in 0..2 {
            let Some(running) = self.nodes[node].running.as_ref() else { return };
            if running.establish_from_us > now_us {
                later = Some(running.establish_from_us);
            }
        }
        let ready = (0..2).all(|node| {
            self.link_of(node).is_none() && self.engine(node, |engine, _| engine.link_task()) == LinkTask::Establish
        });
        if !ready || self.network_up != [true, true] {
            return;
        }
        if let Some(at_us) = later {
            self.meeting = true;
            self.schedule_at(at_us, Event::Meet);
            return;
        }
        let end = || End {
            reading: [Reading::Header, Reading::Header],
            sending: [false; 2],
            blocked_since_us: [None; 2],
            closing: false,
            data_arrived: false,
            meta_since_us: now_us,
            meta_timeout_ms: 0,
        };
        let number = self.next_connection;
        self.next_connection += 1;
        self.connection = Some(Connection { number, pipes: Default::default(), ends: [Some(end()), Some(end())] });
        let resolver = self.random.below(2) as usize;
        self.note(|| format!("sockets stand, connection {number}, node {resolver} resolves conflicts"));
        for node in 0..2 {
            self.engine(node, |engine, now| engine.link_up(node == resolver, now));
        }
    }

    /// A step of winding the connection down.
    fn close(&mut self, node: usize) {
        let Some(link) = self.link_of(node) else {
            // Given up before it stood.
            self.closed(node);
            return;
        };
        let now_us = self.now_us;
        let delay = self.random.between(50, 2000);
        let Some(connection) = self.connection.as_mut() else { return };
        let Some(end) = connection.ends[node].as_mut() else { return };
        if !end.closing {
            end.closing = true;
            end.reading = [Reading::Stopped, Reading::Stopped];
            let ends = [DATA, META].map(|socket| connection.pipes[node][socket].close(now_us + delay));
            for socket in [DATA, META] {
                self.schedule_at(ends[socket], Event::Receive { node: 1 - node, link, socket });
            }
        }
        let busy = self.end(node, link).is_some_and(|end| end.sending != [false; 2]);
        // The senders see the end of their sockets, then report.
        if !busy && self.engine(node, |engine, _| engine.link_drained()) {
            if let Some(connection) = self.connection.as_mut() {
                connection.ends[node] = None;
                if connection.ends[1 - node].is_none() {
                    self.connection = None;
                }
            }
            self.closed(node);
        }
    }

    fn closed(&mut self, node: usize) {
        let reconnect = self.engine(node, |engine, now| engine.link_closed(now));
        self.note(|| format!("node {node} link closed, {reconnect:?}"));
        let wait_us = if reconnect == Reconnect::AfterOneSecond { 1000 * MS } else { 0 };
        let from_us = self.now_us + wait_us;
        self.nodes[node].running.as_mut().expect("on").establish_from_us = from_us;
        self.schedule_own(node, wait_us, Own::Link);
    }

    fn link_failed(&mut self, node: usize, link: u64, failure: LinkFailure) {
        if let Some(end) = self.end(node, link) {
            end.reading = [Reading::Stopped, Reading::Stopped];
            self.engine(node, |engine, now| engine.link_failed(failure, now));
        }
    }

    fn send(&mut self, node: usize, link: u64, socket: usize) {
        let now_us = self.now_us;
        let Some(connection) = self.connection.as_mut().filter(|connection| connection.number == link) else { return };
        let full = connection.pipes[node][socket].is_full();
        let Some(end) = connection.ends[node].as_mut() else { return };
        if end.sending[socket] || end.closing {
            return;
        }
        if full {
            if end.blocked_since_us[socket].is_none() {
                end.blocked_since_us[socket] = Some(now_us);
                let net = &self.config.net;
                let patience_ms = u64::from(net.timeout) * 100 * u64::from(net.ko_count.max(1));
                self.schedule(patience_ms * MS, Event::Patience { node, link, socket, blocked_at_us: now_us });
            }
            return;
        }
        end.blocked_since_us[socket] = None;
        let mut buffer = std::mem::take(&mut self.buffer);
        let outgoing = self.engine(node, |engine, now| {
            if socket == DATA {
                engine.next_data(&mut buffer, now)
            } else {
                engine.next_meta(&mut buffer, now)
            }
        });
        let head = outgoing.map(|outgoing| buffer[..outgoing.head_bytes].to_vec());
        self.buffer = buffer;
        let (Some(outgoing), Some(mut head)) = (outgoing, head) else { return };
        let running = self.nodes[node].running.as_mut().expect("on");
        let mut payload = match outgoing.payload {
            Payload::None => None,
            Payload::Request(request) => {
                let upper = running.uppers[usize::from(request.index)].as_ref();
                Some(upper.filter(|upper| upper.request == request).expect("bio to be sent").data.clone())
            }
            Payload::Peer(peer, bytes) => {
                let pages = running.pages[usize::from(peer.index)].take();
                let (owner, data) = pages.expect("pages to be sent");
                assert!(owner == peer && data.len() == bytes as usize / 512, "pages of another request");
                Some(data)
            }
        };
        if outgoing.digest_bytes > 0 {
            head.extend(inspect::digest(payload.as_deref().expect("a digest goes with data")));
            if let (Some(first), true) = (payload.as_mut().and_then(|data| data.first_mut()), self.garble) {
                self.garble = false;
                *first += 1 << 40;
            }
        }
        let name = packet_name(&head);
        self.packets.insert(name);
        *self.packets_sent.entry(name).or_default() += 1;
        self.note(|| format!("node {node} {} > {name} {} bytes", ["data", "meta"][socket], head.len()));
        let most = if self.random.percent(3) { 5000 } else { 200 };
        let arrival = now_us + self.random.between(30, most);
        let Some(connection) = self.connection.as_mut().filter(|connection| connection.number == link) else { return };
        let pipe = &mut connection.pipes[node][socket];
        let mut at_us = pipe.send(head, arrival);
        if let Some(stamps) = payload {
            at_us = pipe.send_sectors(stamps, arrival);
        }
        if let Some(end) = connection.ends[node].as_mut() {
            end.sending[socket] = true;
        }
        self.schedule_at(at_us, Event::Receive { node: 1 - node, link, socket });
        let delay = self.random.between(1, 60);
        self.schedule(delay, Event::Sent { node, link, socket });
    }

    fn sent(&mut self, node: usize, link: u64, socket: usize) {
        let Some(end) = self.end(node, link) else { return };
        end.sending[socket] = false;
        let ok = !end.closing;
        self.engine(node, |engine, now| {
            if socket == DATA {
                engine.data_sent(ok, now);
            } else {
                engine.meta_sent(ok, now);
            }
        });
        if ok {
            self.send(node, link, socket);
        } else {
            self.schedule_own(node, 1, Own::Link);
        }
    }

    fn receive(&mut self, node: usize, link: u64, socket: usize) {
        loop {
            if !self.network_up[1 - node] {
                return;
            }
            let now_us = self.now_us;
            let Some(connection) = self.connection.as_mut().filter(|connection| connection.number == link) else {
                return;
            };
            let Some(end) = connection.ends[node].as_ref() else { return };
            let pipe = &mut connection.pipes[1 - node][socket];
            if matches!(end.reading[socket], Reading::Stopped) {
                return;
            }
            if pipe.at_end(now_us) {
                self.link_failed(
                    node,
                    link,
                    if socket == DATA { LinkFailure::DataReceive } else { LinkFailure::MetaReceive },
                );
                return;
            }
            let nothing_to_wait_for = matches!(&end.reading[socket], Reading::Body(head) if head.body_bytes == 0);
            if !(nothing_to_wait_for || pipe.readable(now_us)) || !self.read_some(node, link, socket) {
                return;
            }
            if self.random.percent(30) {
                let delay = self.random.between(1, 100);
                self.schedule(delay, Event::Receive { node, link, socket });
                return;
            }
        }
    }

    /// One step of a reader; false when it has to wait.
    fn read_some(&mut self, node: usize, link: u64, socket: usize) -> bool {
        let now_us = self.now_us;
        let Some(reading) = self.end(node, link).map(|end| end.reading[socket].clone()) else { return false };
        let engine = self.engine_of(node);
        let header_bytes = match socket {
            DATA => engine.receiver_may_read().then(|| engine.data_header_bytes()),
            _ => engine.meta_header_bytes(),
        };
        let Some(connection) = self.connection.as_mut() else { return false };
        let pipe = &mut connection.pipes[1 - node][socket];
        let was_full = pipe.is_full();
        let next = match reading {
            Reading::Stopped => return false,
            Reading::Header => {
                let Some(bytes) = header_bytes.and_then(|bytes| pipe.take(bytes, now_us)) else { return false };
                self.engine(node, |engine, now| match socket {
                    DATA => engine.data_header(&bytes, now),
                    _ => engine.meta_header(&bytes, now),
                })
                .map(Reading::Body)
            }
            Reading::Body(head) => {
                let Some(bytes) = pipe.take(head.body_bytes, now_us) else { return false };
                self.body_received(node, link, socket, &head, &bytes)
            }
            Reading::Payload(peer, count) => {
                let Some(stamps) = pipe.take_sectors(count, now_us) else { return false };
                let running = self.nodes[node].running.as_mut().expect("on");
                let digest = engine::resource::Digest::new(&inspect::digest(&stamps));
                running.pages[usize::from(peer.index)] = Some((peer, stamps));
                self.check_payload(node, digest)
                    .and_then(|()| self.engine(node, |engine, now| engine.payload_received(peer, now)))
                    .map(|()| Reading::Header)
            }
            Reading::ReadReply(request, count) => {
                let Some(stamps) = pipe.take_sectors(count, now_us) else { return false };
                let running = self.nodes[node].running.as_mut().expect("on");
                let upper = running.uppers[usize::from(request.index)].as_mut();
                let digest = engine::resource::Digest::new(&inspect::digest(&stamps));
                upper.filter(|upper| upper.request == request).expect("bio of a remote read").data = stamps;
                self.check_payload(node, digest)
                    .and_then(|()| self.engine(node, |engine, now| engine.read_reply_received(request, now)))
                    .map(|()| Reading::Header)
            }
            Reading::Drain(count) => {
                let Some(_stamps) = pipe.take_sectors(count, now_us) else { return false };
                Ok(Reading::Header)
            }
        };
        if was_full {
            self.schedule(1, Event::Send { node: 1 - node, link, socket });
        }
        let goes_on = next.is_ok();
        if let Some(end) = self.end(node, link) {
            if !matches!(end.reading[socket], Reading::Stopped) {
                end.reading[socket] = next.unwrap_or(Reading::Stopped);
            }
            if socket == META {
                end.meta_since_us = now_us;
            } else {
                end.data_arrived = true;
            }
        }
        goes_on
    }

    /// Data has arrived: is it what its digest says?
    fn check_payload(&mut self, node: usize, digest: Option<engine::resource::Digest>) -> Result<(), Fault> {
        match self.engine_of(node).received_integrity() {
            Some(_) => self.engine(node, |engine, now| engine.check_payload(digest, now)),
            None => Ok(()),
        }
    }

    fn body_received(
        &mut self,
        node: usize,
        link: u64,
        socket: usize,
        head: &PacketHead,
        bytes: &[u8],
    ) -> Result<Reading, Fault> {
        self.note(|| format!("node {node} {} < {}", ["data", "meta"][socket], head.name()));
        if socket == META {
            return self.engine(node, |engine, now| engine.meta_packet(head, bytes, now)).map(|()| Reading::Header);
        }
        let sizes = self.device_sizes(node);
        let next = self.engine(node, |engine, now| {
            if let Some(volume) = engine.wants_device_sizes(head) {
                engine.device_sizes(volume, sizes);
            }
            engine.data_packet(head, bytes, now)
        })?;
        let _ = link;
        Ok(match next {
            Next::Packet => Reading::Header,
            Next::Authenticate => {
                let net = &self.config.net;
                let secret = if self.wrong_secret[node] { "wrong" } else { net.shared_secret.as_str() };
                let own = self.engine_of(node).own_challenge();
                let hmacs = inspect::hmac(secret, bytes).zip(inspect::hmac(secret, own.as_bytes()));
                self.engine(node, |engine, now| engine.authenticate(hmacs, now))?;
                Reading::Header
            }
            Next::Payload { peer, size_bytes } => Reading::Payload(peer, size_bytes as usize / 512),
            Next::ReadReply { request, size_bytes } => Reading::ReadReply(request, size_bytes as usize / 512),
            Next::Drain { size_bytes } => Reading::Drain(size_bytes as usize / 512),
        })
    }

    /// The receive timeout of the meta socket may have changed.
    fn watch_meta(&mut self, node: usize, link: u64) {
        let engine = self.engine_of(node);
        if engine.meta_header_bytes().is_none() {
            return;
        }
        let timeout_ms = engine.meta_receive_timeout_ms();
        let now_us = self.now_us;
        let Some(end) = self.end(node, link) else { return };
        if end.meta_timeout_ms != timeout_ms {
            end.meta_timeout_ms = timeout_ms;
            end.meta_since_us = now_us;
            self.schedule(u64::from(timeout_ms) * MS, Event::MetaTimer { node, link });
        }
    }

    fn meta_timer(&mut self, node: usize, link: u64) {
        let now_us = self.now_us;
        let Some(end) = self.end(node, link) else { return };
        if matches!(end.reading[META], Reading::Stopped) {
            return;
        }
        let due_us = end.meta_since_us + u64::from(end.meta_timeout_ms) * MS;
        if now_us >= due_us {
            end.meta_since_us = now_us;
            let arrived = std::mem::take(&mut end.data_arrived);
            if self.engine(node, |engine, now| engine.meta_timeout(arrived, now)).is_err() {
                return;
            }
        }
        let Some(end) = self.end(node, link) else { return };
        let due_us = (end.meta_since_us + u64::from(end.meta_timeout_ms) * MS).max(now_us + MS);
        self.schedule_at(due_us, Event::MetaTimer { node, link });
    }

    /// Cuts or restores the network, in both directions.
    pub fn set_network(&mut self, up: bool) {
        self.set_direction(0, up);
        self.set_direction(1, up);
    }

    /// Cuts or restores what `from` sends.
    pub fn set_direction(&mut self, from: usize, up: bool) {
        self.note(|| format!("network from node {from}: {}", if up { "up" } else { "cut" }));
        self.network_up[from] = up;
        if up {
            if let Some(link) = self.connection.as_ref().map(|connection| connection.number) {
                for socket in [DATA, META] {
                    self.schedule(200, Event::Receive { node: 1 - from, link, socket });
                }
            }
            self.try_to_meet();
        }
    }

    // Power.

    /// The power of a machine fails.
    pub fn power_cut(&mut self, node: usize) {
        self.note(|| format!("node {node} POWER CUT"));
        let machine = &mut self.nodes[node];
        machine.running = None;
        machine.incarnation += 1;
        let mut random = self.random.clone();
        machine.data.power_cut(&mut random);
        machine.meta.power_cut(&mut random);
        self.random = random;
        self.oracle.power_cut(node);
        for operation in &mut self.operations {
            if operation.node == node && operation.result.is_none() {
                operation.lost = true;
            }
        }
        if let Some(connection) = self.connection.as_mut() {
            connection.ends[node] = None;
            if connection.ends[1 - node].is_none() {
                self.connection = None;
            }
        }
    }

    /// The machine boots; nothing is attached or connected.
    pub fn boot(&mut self, node: usize) {
        self.note(|| format!("node {node} boots"));
        assert!(self.nodes[node].running.is_none());
        self.nodes[node].running = Some(boot(&self.config));
        // It knows nothing of its old connection.
        let now_us = self.now_us;
        if let Some(connection) = self.connection.as_mut() {
            let link = connection.number;
            let ends = [DATA, META].map(|socket| connection.pipes[node][socket].close(now_us + 1000));
            for socket in [DATA, META] {
                self.schedule_at(ends[socket], Event::Receive { node: 1 - node, link, socket });
            }
        }
    }

    // Administration.

    /// As `drbdadm create-md`.
    pub fn create_md(&mut self, node: usize) {
        let layout = self.layout(node);
        let device_uuid = self.random.number();
        let mut block: Block = [0; 4096];
        Superblock::new_created(&layout, device_uuid, Striping::DEFAULT).encode(Magic::Clean, &mut block);
        let meta = &mut self.nodes[node].meta;
        meta.write(layout.superblock_sector, &block, 4096, true);
        write_empty_log(meta, &layout);
        for page in 0.. {
            let Some((sector, bytes)) = layout.bitmap_page(page) else { break };
            meta.write(sector, &[0xff; 4096], bytes as usize, true);
        }
    }

    /// As `drbdadm apply-al`, which precedes every attach. spec: metadata 4.6
    pub fn apply_al(&mut self, node: usize) {
        self.follow_the_disk(node);
        let layout = self.layout(node);
        let meta = &mut self.nodes[node].meta;
        let mut superblock = Superblock::decode_raw(&meta.read(layout.superblock_sector)).expect("superblock");
        let blocks = Striping::DEFAULT.blocks() as u32;
        let ring: Vec<Block> = (0..blocks).map(|number| meta.read(layout.transaction_sector(number))).collect();
        let mut table = vec![0u32; MAX_SLOTS];
        let found = replay(blocks, |index| ring.get(index as usize), &mut table);
        let primary = superblock.flags.contains(MetaFlags::PRIMARY_IND);
        match found {
            Replay::Replayed { active, .. } => {
                if primary {
                    for &extent in &table[..active] {
                        mark_extent(meta, &layout, extent);
                    }
                }
                write_empty_log(meta, &layout);
            }
            Replay::Nothing => {}
            Replay::NoUsableLog | Replay::Damaged { .. } => assert!(!primary, "the activity log is damaged"),
        }
        superblock.flags.set(MetaFlags::AL_CLEAN);
        let mut block: Block = [0; 4096];
        superblock.encode(Magic::Clean, &mut block);
        self.nodes[node].meta.write(layout.superblock_sector, &block, 4096, true);
    }

    /// The disk has grown since the meta data was written: it is moved to the end. spec: metadata 9.8
    fn follow_the_disk(&mut self, node: usize) {
        let (internal, known) = (self.config.internal, self.nodes[node].known_sectors);
        let (old, new) = (layout(internal, known), self.layout(node));
        self.nodes[node].known_sectors = self.nodes[node].backing_sectors;
        let meta = &mut self.nodes[node].meta;
        if Superblock::decode_raw(&meta.read(new.superblock_sector)).is_ok() {
            return;
        }
        let mut superblock = Superblock::decode_raw(&meta.read(old.superblock_sector)).expect("superblock");
        for number in 0..Striping::DEFAULT.blocks() as u32 {
            let block = meta.read(old.transaction_sector(number));
            meta.write(new.transaction_sector(number), &block, 4096, true);
        }
        let pages: Vec<Block> = (0..).map_while(|page| old.bitmap_page(page)).map(|(at, _)| meta.read(at)).collect();
        for (page, block) in pages.iter().enumerate() {
            let (sector, bytes) = new.bitmap_page(page as u64).expect("larger than before");
            meta.write(sector, block, bytes as usize, true);
        }
        superblock.set_layout(&new);
        let mut block: Block = [0; 4096];
        superblock.encode(superblock.magic, &mut block);
        meta.write(new.superblock_sector, &block, 4096, true);
    }

    /// The superblock as it is on the disk.
    pub fn superblock(&self, node: usize) -> Superblock {
        Superblock::decode_raw(&self.nodes[node].meta.read(self.layout(node).superblock_sector)).expect("superblock")
    }

    /// Starts an attach; its result is that of [`World::admin_result`], or the error at once.
    ///
    /// # Errors
    /// The number of the reply.
    pub fn start_attach(&mut self, node: usize) -> Result<(), i32> {
        self.apply_al(node);
        let block = self.nodes[node].meta.read(self.layout(node).superblock_sector);
        let backing = Backing {
            superblock: &block,
            index: index(self.config.internal),
            backing_sectors: self.device_sizes(node).backing_sectors,
            meta_sectors: self.device_sizes(node).meta_sectors,
            limits: LIMITS,
        };
        let conf = self.config.disk;
        self.note(|| format!("node {node} attach"));
        let plan = self.engine_of(node).plan_attach(VOLUME, &conf, &backing).inspect_err(|code| {
            self.trace.push_back(format!("node {node} attach refused: {code}"));
        })?;
        let tables = AttachTables::new(plan).expect("memory");
        self.nodes[node].running.as_mut().expect("on").backing_open = true;
        self.engine(node, |engine, now| engine.attach(VOLUME, &conf, &backing, tables, now));
        Ok(())
    }

    /// As `drbdsetup resize`.
    #[track_caller]
    pub fn resize(&mut self, node: usize, parms: &ResizeParms) -> i32 {
        self.start_resize(node, parms);
        self.admin_answer(node)
    }

    /// The same without waiting for the answer.
    pub fn start_resize(&mut self, node: usize, parms: &ResizeParms) {
        let sizes = self.device_sizes(node);
        self.note(|| format!("node {node} resize {parms:?}"));
        self.engine(node, |engine, now| {
            engine.device_sizes(VOLUME, sizes);
            engine.admin(AdminRequest::Resize { volume: VOLUME, parms }, now);
        });
    }

    /// A lower disk becomes larger by so many sectors, which hold `stamp`.
    pub fn grow_disk(&mut self, node: usize, sectors: u64, stamp: Stamp) {
        let machine = &mut self.nodes[node];
        machine.backing_sectors += sectors;
        let end = machine.data.sectors() + sectors;
        machine.data.grow(end, stamp);
    }

    fn device_sizes(&self, node: usize) -> DeviceSizes {
        let backing_sectors = self.nodes[node].backing_sectors;
        let meta_sectors = if self.config.internal { backing_sectors } else { META_SECTORS };
        DeviceSizes { backing_sectors, meta_sectors }
    }

    /// Where the meta data of a node belongs on its disk as it is now.
    pub fn layout(&self, node: usize) -> Layout {
        layout(self.config.internal, self.nodes[node].backing_sectors)
    }

    /// Does this node's disk hold everything that was acknowledged?
    ///
    /// # Errors
    /// What is missing.
    pub fn check_acknowledged(&self, node: usize) -> Result<(), String> {
        let data = &self.nodes[node].data;
        self.oracle
            .sectors()
            .try_for_each(|sector| self.oracle.check(sector, data.get(sector), self.now_us, self.now_us))
    }

    /// Operations that are neither done nor lost with their machine.
    pub fn open_operations(&self) -> usize {
        self.operations.iter().filter(|operation| operation.result.is_none() && !operation.lost).count()
    }

    /// Both sockets break.
    pub fn reset_connection(&mut self) {
        let now_us = self.now_us;
        let Some(connection) = self.connection.as_mut() else { return };
        let link = connection.number;
        for pipe in connection.pipes.iter_mut().flatten() {
            pipe.reset(now_us);
        }
        self.note(|| "connection reset".into());
        for node in 0..2 {
            for socket in [DATA, META] {
                let delay = self.random.below(3000);
                self.schedule(delay, Event::Receive { node, link, socket });
            }
        }
    }

    /// Asks for something; the answer is fetched with [`World::poll_admin`].
    pub fn ask(&mut self, node: usize, request: AdminRequest<'_>) {
        self.note(|| format!("node {node} asks {request:?}").chars().take(120).collect());
        self.engine(node, |engine, now| engine.admin(request, now));
    }

    /// The answer to what was asked for, once.
    pub fn poll_admin(&mut self, node: usize) -> Option<i32> {
        let code = self.engine(node, |engine, _| engine.admin_result())?.code;
        self.note(|| format!("node {node} answer {code}"));
        Some(code)
    }

    /// Asks for something and waits for the answer.
    #[track_caller]
    pub fn admin(&mut self, node: usize, request: AdminRequest<'_>) -> i32 {
        self.note(|| format!("node {node} admin {request:?}").chars().take(200).collect());
        self.engine(node, |engine, now| engine.admin(request, now));
        self.admin_answer(node)
    }

    /// Waits for the answer of a request that was started.
    #[track_caller]
    pub fn admin_answer(&mut self, node: usize) -> i32 {
        let end_us = self.now_us + 120_000 * MS;
        loop {
            if let Some(result) = self.engine(node, |engine, _| engine.admin_result()) {
                self.note(|| format!("node {node} admin answer {}", result.code));
                return result.code;
            }
            let goes_on = self.now_us <= end_us && self.step();
            assert!(goes_on, "no answer to the administrator; {}", self.describe());
        }
    }

    /// As `drbdadm attach`.
    #[track_caller]
    pub fn attach(&mut self, node: usize) -> i32 {
        match self.start_attach(node) {
            Ok(()) => self.admin_answer(node),
            Err(code) => code,
        }
    }

    /// Tells a node's engine which of these algorithms can be computed.
    pub fn tell_algorithms(&mut self, node: usize, names: &[AlgorithmName]) {
        for name in names.iter().filter(|name| inspect::is_known(name)) {
            let known = self.engine(node, |engine, _| engine.know_algorithm(name, inspect::DIGEST_BYTES));
            assert!(known, "room for an algorithm");
        }
    }

    /// As `drbdadm connect`.
    #[track_caller]
    pub fn connect(&mut self, node: usize) -> i32 {
        let conf = self.config.net;
        self.tell_algorithms(
            node,
            &[conf.verify_alg, conf.csums_alg, conf.integrity_alg, hmac_of(&conf.cram_hmac_alg)],
        );
        self.admin(node, AdminRequest::Connect { conf: &conf })
    }
}

const META_SECTORS: u64 = 1 << 16;

fn boot(config: &Config) -> Running {
    #[allow(unused_mut)] // Only changed to be broken.
    let mut running = Running::new(config.limits);
    #[cfg(feature = "sabotage")]
    if let Some(how) = config.sabotage {
        running.engine.sabotage(how);
    }
    running
}

fn index(internal: bool) -> MetaIndex {
    if internal {
        MetaIndex::Internal
    } else {
        MetaIndex::FlexibleExternal
    }
}

fn layout(internal: bool, backing_sectors: u64) -> Layout {
    let meta_sectors = if internal { backing_sectors } else { META_SECTORS };
    Layout::compute(index(internal), backing_sectors, meta_sectors, Striping::DEFAULT).expect("the meta data fits")
}

/// Limits of the simulated disks.
const LIMITS: BackingLimits = BackingLimits {
    max_bio_bytes: 1 << 20,
    logical_block_bytes: 512,
    physical_block_bytes: 4096,
    alignment_offset_bytes: 0,
    io_min_bytes: 4096,
    io_opt_bytes: 0,
    max_discard_bytes: 64 << 20,
    discard_granularity_bytes: 4096,
};

fn write_empty_log(meta: &mut MetaDisk, layout: &Layout) {
    let mut block: Block = [0; 4096];
    Transaction::INITIALIZED.encode(&mut block);
    for number in 0..Striping::DEFAULT.blocks() as u32 {
        meta.write(layout.transaction_sector(number), &block, 4096, true);
    }
}

/// Sets the 128 bytes of the bitmap that stand for an activity log extent.
fn mark_extent(meta: &mut MetaDisk, layout: &Layout, extent: u32) {
    let Some((sector, bytes)) = layout.bitmap_page(u64::from(extent) / 32) else { return };
    let mut block = meta.read(sector);
    let first = (extent as usize % 32) * 128;
    block[first..first + 128].fill(0xff);
    meta.write(sector, &block, bytes as usize, true);
}

fn packet_name(head: &[u8]) -> &'static str {
    let command = match head {
        [0x86, 0x20, 0xec, 0x20, _, _, high, low, ..] => [*high, *low],
        [_, _, _, _, high, low, ..] => [*high, *low],
        _ => [0xff, 0xff],
    };
    engine::wire::Command::from_u16(u16::from_be_bytes(command)).map_or("?", |command| command.name())
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let skipped = self.trace.len().saturating_sub(400);
            for line in self.trace.iter().skip(skipped) {
                eprintln!("{line}");
            }
            eprintln!("seed {}", self.config.seed);
        }
    }
}
