//! The world: two nodes, the network between them, time, and what happens next.
//!
//! # Invariants
//! * Nothing happens but through an [`Event`] of the queue or a call from outside; the queue is ordered by time, and by
//!   chance among events of the same time.
//! * An event of a machine or connection that is gone does nothing.
//! * After every call into an engine its `take_wakes` is looked after, and nothing else wakes anybody: a wake that the
//!   engine forgets is a run that stops.

mod admin;
mod application;
mod calm;
mod coverage;
mod disks;
mod hostile;
mod link;
mod machine;
mod overdue;
mod policies;
mod promises;
mod trace;
mod verifying;
mod wire;
mod worker;

use crate::disk::{Block, DataDisk, MetaDisk, Stamp};
use crate::inspect;
use crate::network::{Pipe, DATA, META};
use crate::node::{
    Attaching, Device, DiskFaults, Disks, HeapEngine, MetaTransfer, Node, Running, Transfer, Upper, VOLUME,
};
use crate::{scenario, Oracle, Random};
use engine::handshake::SyncDecision;
use engine::metadata::layout::{Layout, MetaIndex, Striping};
use engine::metadata::replay::{replay, Replay, MAX_SLOTS};
use engine::metadata::superblock::{Magic, MetaFlags, Superblock, UI_BITMAP, UI_CURRENT};
use engine::metadata::transaction::Transaction;
use engine::netlink::{DiskConf, NetConf, OnIoError, ResizeParms, ResourceOpts};
use engine::resource::{
    hmac_of, AdminRequest, AdminResult, AlgorithmName, AttachTables, Backing, BackingLimits, DeviceSizes, DeviceWork,
    Fault, Finding, Helper, IoError, IoFlags, IoRequest, IoResult, LinkFailure, LinkTask, LocalIo, LogLine, Next,
    Notice, Op, PacketHead, Parting, Payload, PeerId, Reconnect, RequestId, Submit, TableLimits, VolumeId,
    VolumeStatus, Wakes, Work, PACKET_BUFFER_BYTES,
};
use engine::state::{Conn, Disk, Role};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub use coverage::Unflushed;
pub use hostile::Hostile;
use link::Connection;
use machine::{boot, layout};
pub use wire::SentEpoch;

/// Lines of the trace that are kept.
const TRACE_LINES: usize = 200_000;
const MS: u64 = 1000;

/// What a world is made of.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Decides everything that is left to chance.
    pub seed: u64,
    /// Size of the data disks, in sectors.
    pub sectors: u64,
    /// Volumes of the resource.
    pub volumes: u8,
    /// Lengths of the engines' tables.
    pub limits: TableLimits,
    /// Options of the connection.
    pub net: NetConf,
    /// Options of the disks.
    pub disk: DiskConf,
    /// Each volume is resynced after the one before it.
    pub one_by_one: bool,
    /// Options of the resource.
    pub resource: ResourceOpts,
    /// The meta data is on the data disk: what makes it durable makes data durable that was written before.
    pub internal: bool,
    /// How long, in microseconds, a node may take at most to notice that a packet has been handed over: it can be longer than
    /// the way to the peer and back.
    pub sent_us_most: u64,
    /// Every read must find what was acknowledged. Not so when the administrator lets the halves diverge.
    pub check_reads: bool,
    /// Newest protocol version that the nodes offer, and their features, where that is less than they can.
    pub offers: Option<(u32, u32)>,
    /// Keep a readable trace.
    pub trace: bool,
    /// Note every change of this sector of this volume in the trace.
    pub watch: Option<(VolumeId, u64)>,
    /// How the engines of both nodes are broken.
    #[cfg(feature = "sabotage")]
    pub sabotage: Option<engine::resource::Sabotage>,
}

impl Config {
    /// 64 MiB disks, protocol C. It is for a scenario, whose seed `SCENARIO_SEED` shifts.
    pub fn new(seed: u64) -> Self {
        let net = NetConf::default();
        let disk = DiskConf { al_extents: 67, ..DiskConf::default() };
        let limits = TableLimits { volumes: 1, requests: 64, peer_requests: 64 };
        Config {
            seed: scenario::seed(seed),
            sectors: 131_072,
            volumes: 1,
            limits,
            net,
            disk,
            one_by_one: false,
            resource: ResourceOpts::default(),
            internal: true,
            sent_us_most: 60,
            check_reads: true,
            offers: None,
            trace: true,
            watch: None,
            #[cfg(feature = "sabotage")]
            sabotage: None,
        }
    }
}

/// What the program fence-peer exits with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    /// The same as all programs.
    AsOthers,
    /// What is true of the other node.
    Truthful,
    /// Any of the agreed codes, and others.
    Any,
}

/// What the application does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Reads sectors.
    Read,
    /// Reads sectors that nobody has asked for yet.
    ReadAhead,
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
    /// Volume.
    pub volume: VolumeId,
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
    /// The peer has said that it has this write.
    pub answered: bool,
    /// When the peer answered it first, whatever it said.
    pub answered_us: Option<u64>,
    /// When it was over.
    pub end_us: Option<u64>,
    /// The local disk has said so.
    pub on_disk: bool,
    /// The local disk has failed to do it.
    pub disk_failed: bool,
    /// The connection over which the peer has been sent it, and when; `None` once it is answered.
    pub sent: Option<(u64, u64)>,
    /// The epoch in which it was sent.
    pub epoch: Option<SentEpoch>,
    /// The newest epoch of which a write was over when this one began.
    pub after: Option<SentEpoch>,
}

impl Operation {
    /// It is under way.
    pub fn is_open(&self) -> bool {
        self.result.is_none() && !self.lost
    }

    /// Before it is written the caches are flushed (REQ_PREFLUSH): every other one of the writes with FUA.
    pub fn flushes_first(&self) -> bool {
        self.action == Action::Write { fua: true } && self.stamp % 2 == 0
    }

    /// Somebody waits for it (REQ_SYNC): some of the writes.
    pub fn is_waited_for(&self) -> bool {
        matches!(self.action, Action::Write { .. }) && self.stamp % 3 == 0
    }
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
    Helper { helper: Helper, ticket: u32, exit_code: i32 },
    Released(VolumeId),
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
    /// How much longer than otherwise a packet takes, by the node that sends it and the socket.
    pub late_us: [[u64; 2]; 2],
    /// Exit code of the helpers.
    pub helper_exit_code: i32,
    /// This node takes the other one's disk for good while it verifies, as a C module does.
    pub trusts_in_verify: Option<usize>,
    /// How long helper programs run, if that is not drawn.
    pub programs_us: Option<u64>,
    /// What fence-peer says.
    pub fence: Fence,
    /// A policy, the administrator or a broken disk allows that data is overwritten which is nowhere else.
    pub overwrite_allowed: bool,
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
    /// How often the log told that a change of a state was refused.
    pub changes_refused: u32,
    /// Times that the log tells that a Primary gives up what its application has seen.
    pub warned_of_loss: u64,
    /// Generations that a node began for its own data while it was connected with a Primary, which has not heard of them since.
    unheard: BTreeSet<(VolumeId, u64)>,
    /// The last size that this node has refused was too small for a Primary without a disk.
    outgrown: [bool; 2],
    /// There were some when the nodes refused each other; or the Primary was the target of a resync whose source missed the end, and then that
    /// is to be its source again (rule 35; the C module refuses as well).
    refused_excusably: bool,
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
    /// A node that does not keep to the protocol.
    pub hostile: Option<Hostile>,
    /// See [`World::at`].
    volume: VolumeId,
    now_us: u64,
    queue: BTreeMap<(u64, u64, u64), Event>,
    sequence: u64,
    connection: Option<Connection>,
    next_connection: u64,
    meeting: bool,
    next_transfer: u64,
    /// The first lines of a long trace, and the last ones; what was between is gone.
    beginning: Vec<String>,
    trace: VecDeque<String>,
    watched: trace::Watched,
    calm: calm::Calm,
    wires: [wire::Wire; 2],
    limits: [overdue::Limit; 2],
    /// Its administrator has asked to give up its data, and has no answer yet.
    gives_up: [bool; 2],
    wishes: [policies::Wishes; 2],
    /// Volumes whose disk has failed, and a program is to be called because of that.
    helpers_due: BTreeSet<(usize, VolumeId)>,
    /// The peer may be unfenced: the program is about to be called.
    unfences: [bool; 2],
    buffer: Vec<u8>,
}

impl World {
    /// Two machines that are switched on, with fresh meta data; nothing is attached or connected.
    pub fn new(config: Config) -> Self {
        let backing_sectors = if config.internal { config.sectors + 256 } else { config.sectors };
        let layout = layout(config.internal, backing_sectors);
        let config = Config { sectors: layout.usable_sectors, ..config };
        let disks = || Disks {
            device: Device::default(),
            data: DataDisk::new(config.sectors),
            meta: MetaDisk::default(),
            backing_sectors,
            known_sectors: backing_sectors,
            generations: BTreeSet::new(),
            logged: None,
            unflushed: Vec::new(),
            faults: DiskFaults::default(),
            sync_uuids: [0; 2],
            failed_us: 0,
        };
        let node = || Node {
            incarnation: 1,
            booted_us: 0,
            running: Some(boot(&config)),
            volumes: (0..config.volumes).map(|_| disks()).collect(),
            looked_at: VOLUME,
        };
        let mut world = World {
            config,
            nodes: [node(), node()],
            oracle: Oracle::default(),
            operations: Vec::new(),
            random: Random::new(config.seed),
            network_up: [true, true],
            late_us: [[0; 2]; 2],
            helper_exit_code: 0,
            trusts_in_verify: None,
            programs_us: None,
            fence: Fence::AsOthers,
            overwrite_allowed: false,
            history: Vec::new(),
            packets: BTreeSet::new(),
            rules: BTreeSet::new(),
            resyncs: 0,
            refusals: Vec::new(),
            old_data_refused: 0,
            changes_refused: 0,
            warned_of_loss: 0,
            unheard: BTreeSet::new(),
            outgrown: [false; 2],
            refused_excusably: false,
            events: 0,
            faults: Vec::new(),
            packets_sent: BTreeMap::new(),
            helpers: Vec::new(),
            wrong_secret: [false; 2],
            garble: false,
            hostile: None,
            volume: VOLUME,
            now_us: MS,
            queue: BTreeMap::new(),
            sequence: 0,
            connection: None,
            next_connection: 1,
            meeting: false,
            next_transfer: 0,
            beginning: Vec::new(),
            trace: VecDeque::new(),
            watched: Default::default(),
            calm: Default::default(),
            wires: Default::default(),
            limits: Default::default(),
            gives_up: [false; 2],
            wishes: Default::default(),
            helpers_due: BTreeSet::new(),
            unfences: [false; 2],
            buffer: vec![0; PACKET_BUFFER_BYTES],
        };
        for (volume, node) in world.volumes().flat_map(|volume| [(volume, 0), (volume, 1)]) {
            world.at(volume, |world| world.create_md(node));
        }
        world
    }

    /// All volumes.
    pub fn volumes(&self) -> impl Iterator<Item = VolumeId> {
        (0..self.config.volumes).map(VolumeId)
    }

    /// The volume that is looked at. Whatever concerns a volume is about this one: its status, its disks, what the application does and
    /// what it may find.
    pub fn looked_at(&self) -> VolumeId {
        self.volume
    }

    /// Looks at this volume for as long as something is done with it.
    pub fn at<R>(&mut self, volume: VolumeId, what: impl FnOnce(&mut World) -> R) -> R {
        let before = self.look_at(volume);
        let result = what(self);
        self.look_at(before);
        result
    }

    /// From now on this is the volume that is looked at; returns the one before.
    pub fn look_at(&mut self, volume: VolumeId) -> VolumeId {
        self.nodes.iter_mut().for_each(|node| node.looked_at = volume);
        self.oracle.looked_at = volume;
        std::mem::replace(&mut self.volume, volume)
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
            if self.trace.len() >= TRACE_LINES && self.beginning.is_empty() {
                self.beginning = self.trace.drain(..TRACE_LINES / 2).collect();
            } else if self.trace.len() >= TRACE_LINES {
                self.trace.pop_front();
            }
            let volume = if self.config.volumes > 1 { format!("/{} ", self.volume.0) } else { String::new() };
            self.trace.push_back(format!("{:>12.3} ms  {volume}{}", self.now_us as f64 / 1000.0, line()));
        }
    }

    /// The trace so far.
    pub fn trace(&self) -> impl Iterator<Item = &str> {
        self.beginning.iter().chain(&self.trace).map(String::as_str)
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
                    self.check_timeout(node, self.send_patience_ms(), "a socket that takes nothing");
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
        self.watch();
        true
    }

    fn own(&mut self, node: usize, what: Own) {
        match what {
            Own::Local => self.submit_local(node),
            Own::LocalDone(number) => self.local_done(node, number),
            Own::Metadata => self.volumes().for_each(|volume| self.at(volume, |world| world.next_metadata(node))),
            Own::MetadataDone(number) => self.metadata_done(node, number),
            Own::Work => self.work(node),
            Own::Helper { helper, ticket, exit_code } => self.helper_ended(node, helper, ticket, exit_code),
            Own::Released(volume) => self.at(volume, |world| world.release_backing(node)),
            Own::Gate => self.volumes().for_each(|volume| self.at(volume, |world| world.gate(node))),
            Own::Link => self.link(node),
            Own::Tick => {
                self.check_calm();
                self.check_overdue(node);
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
        self.run_for_us(ms * MS);
    }

    /// Lets that much time pass.
    pub fn run_for_us(&mut self, us: u64) {
        let end_us = self.now_us + us;
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
        format!("node 0: {}; node 1: {}", self.describe_node(0), self.describe_node(1))
    }

    fn describe_node(&self, node: usize) -> String {
        let Some(running) = self.nodes[node].running.as_ref() else { return "off".into() };
        let one = |volume: VolumeId| {
            let status = running.engine.volume_status(volume).expect("volume");
            let is_set = |sector: &u64| running.engine.is_out_of_sync(volume, *sector) == Some(true);
            let first = (0..status.size_sectors).step_by(8).find(is_set);
            format!(
                "{} link {} bits {} {} upper {} lower {} peer {} unacked {} resync {}",
                status.state,
                running.engine.connection_status().state,
                status.bits_out_of_sync,
                first.map(|sector| format!("(first sector {sector})")).unwrap_or_default(),
                status.upper_pending,
                status.lower_pending,
                status.peer_pending,
                status.unacked,
                status.resync_pending,
            )
        };
        let volumes: Vec<String> = self.volumes().map(one).collect();
        format!("{} usage {:?}", volumes.join(" | "), running.engine.usage())
    }

    /// The options for the disk of the volume.
    pub fn disk_conf(&self) -> DiskConf {
        let resync_after = if self.config.one_by_one { i32::from(self.volume.0) - 1 } else { -1 };
        DiskConf { resync_after, ..self.config.disk }
    }

    /// The state of a node's volume.
    pub fn status(&self, node: usize) -> VolumeStatus {
        let running = self.nodes[node].running.as_ref().expect("the node is on");
        running.engine.volume_status(self.volume).expect("volume")
    }

    /// True when the application's I/O is suspended.
    pub fn is_suspended(&self, node: usize) -> bool {
        self.engine_of(node).resource_status().susp.any()
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
        self.note_held_wish(node);
        self.look_after(node, wakes);
        if let Some(running) = self.nodes[node].running.as_mut() {
            running.suspended = running.engine.resource_status().susp.any();
        }
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
