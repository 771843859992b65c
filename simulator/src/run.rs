//! Random runs: faults, an application, an administrator; what must hold all the time, and at the end.
//!
//! The administrator of most runs is *careful*: he never makes the halves diverge. He promotes a node that is alone only
//! if the other one has nothing that this one lacks. Then no acknowledged write may ever be missing, and no connection
//! may ever be refused. The *careless* one promotes as he likes; then only convergence is asked for, after one side was
//! told to give up its changes.

mod aftermath;
mod epilogue;
mod special;
mod trouble;

use crate::disk::Stamp;
use crate::draw;
use crate::world::{Action, Config, World};
use crate::Random;
use engine::metadata::superblock::{MetaFlags, UI_BITMAP, UI_CURRENT};
use engine::netlink::{DiskConf, Fencing, NetConf, OnCongestion, ResizeParms, WireProtocol};
use engine::resource::{hmac_of, AdminRequest, Fault, TableLimits, VolumeId};
use engine::state::{Conn, Disk, Role};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{catch_unwind, AssertUnwindSafe};

/// What a run was like.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// Events carried out.
    pub events: u64,
    /// Simulated time.
    pub simulated_ms: u64,
    /// Operations of the application.
    pub operations: u64,
    /// Power cuts.
    pub crashes: u64,
    /// Network cuts and resets.
    pub cuts: u64,
    /// Resyncs that were finished.
    pub resyncs: u64,
    /// Connections that were refused because of the data.
    pub refusals: u64,
    /// Times that the device grew.
    pub grown: u64,
    /// Damages that a verify found.
    pub damages: u64,
    /// Rules that decided about a resync.
    pub rules: BTreeSet<String>,
    /// Kinds of packets that were exchanged.
    pub packets: BTreeSet<&'static str>,
    /// What went wrong, if anything.
    pub failure: Option<String>,
    /// The last lines before it went wrong.
    pub trace: Vec<String>,
}

/// Steps of the administrator and the application in a run.
const STEPS: u64 = 60;

/// Carries out the run of a seed; a failed one is repeated with a trace.
pub fn run(seed: u64) -> Report {
    run_with(seed, Wishes::default())
}

/// What is asked of a run besides its seed.
#[derive(Clone, Copy, Debug)]
pub struct Wishes {
    /// The trace of a failed run notes every change of this sector of this volume.
    pub watch: Option<(VolumeId, u64)>,
    /// Percentage of runs in which both nodes may be Primary.
    pub two_primaries: u64,
    /// Percentage, of the other runs of a careful administrator, in which the resource has several volumes.
    pub several_volumes: u64,
}

impl Default for Wishes {
    fn default() -> Self {
        Wishes { watch: None, two_primaries: 8, several_volumes: 20 }
    }
}

/// As [`run`], with wishes.
pub fn run_with(seed: u64, wishes: Wishes) -> Report {
    let report = finish(seed, Driver::new(seed, false, wishes, |_| {}));
    if report.failure.is_none() {
        return report;
    }
    let traced = finish(seed, Driver::new(seed, true, wishes, |config| config.watch = wishes.watch));
    assert_eq!(traced.failure, report.failure, "the same seed gave another run");
    traced
}

/// Carries out the run of a seed with broken engines.
#[cfg(feature = "sabotage")]
pub fn run_sabotaged(seed: u64, how: engine::resource::Sabotage) -> Report {
    finish(seed, Driver::new(seed, false, Wishes::default(), |config| config.sabotage = Some(how)))
}

fn finish(seed: u64, mut driver: Driver) -> Report {
    let result = catch_unwind(AssertUnwindSafe(|| driver.run()));
    let failure = result.err().map(|panic| match panic.downcast::<String>() {
        Ok(message) => *message,
        Err(panic) => panic.downcast::<&str>().map_or("panic".into(), |message| message.to_string()),
    });
    let world = &driver.world;
    Report {
        seed,
        events: world.events,
        simulated_ms: world.now_us() / 1000,
        operations: world.operations.len() as u64,
        crashes: driver.crashes,
        cuts: driver.cuts,
        resyncs: world.resyncs,
        refusals: world.refusals.len() as u64,
        grown: driver.grown,
        damages: driver.damages,
        rules: world.rules.clone(),
        packets: world.packets.clone(),
        failure,
        trace: world.trace().map(String::from).collect(),
    }
}

/// What a node's administrator waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Nothing,
    Promotion,
    Demotion,
    Other,
}

struct Driver {
    world: World,
    random: Random,
    careful: bool,
    /// Both nodes may be Primary.
    dual: bool,
    /// Every write so far was made under protocol C.
    strict: bool,
    /// When the network was last touched.
    touched_us: u64,
    /// The node whose disk may fail.
    weak: usize,
    asked: [Asked; 2],
    /// Volumes one of whose disks got new meta data in the end.
    started_over: BTreeSet<VolumeId>,
    /// Turns of the mending in which an answer was still awaited.
    turns_waited: u32,
    /// The node whose data of a volume is being given up, or may be before long.
    invalidating: BTreeMap<VolumeId, usize>,
    /// How often the disks have grown.
    grown: u64,
    /// Damages that a verify has found.
    damages: u64,
    crashes: u64,
    cuts: u64,
}

impl Driver {
    /// The run of a seed, with the world changed by `change`.
    fn new(seed: u64, trace: bool, wishes: Wishes, change: impl FnOnce(&mut Config)) -> Self {
        let mut random = Random::new(seed ^ 0x5eed_5eed_5eed_5eed);
        let careful = !random.percent(15);
        let dual = random.percent(wishes.two_primaries);
        let kind = draw::Kind { careful, dual };
        let net = NetConf { max_buffers: draw::max_buffers(seed), ..draw::net(&mut random, kind) };
        let wire_protocol = net.wire_protocol;
        let slots = random.pick(&[64, 64, 16, 200]);
        let mut config = Config::new(seed);
        config.net = net;
        config.trace = trace;
        config.check_reads = careful;
        config.sectors = random.pick(&[32_768, 32_768, 20_001, 1 << 20]);
        // Two Primaries need room for all that the other one may have under way, or both stop reading.
        let peer_slots = random.pick(&[16, 64, 200]);
        let peer_requests = if dual { 2 * slots.max(peer_slots) } else { peer_slots };
        config.volumes = draw::volumes(seed, kind, wishes.several_volumes);
        config.limits = TableLimits { volumes: usize::from(config.volumes), requests: slots, peer_requests };
        config.disk = draw::disk(&mut random, kind, config.disk, &net);
        config.resource = draw::resource(&mut random);
        config.one_by_one = config.volumes > 1 && seed % 2 == 0;
        config.internal = random.percent(70);
        config.sent_us_most = random.pick(&[60, 60, 20_000]);
        let fence = draw::fence(&mut random, kind);
        let weak = random.below(2) as usize;
        change(&mut config);
        let mut world = World::new(config);
        world.fence = fence;
        Driver {
            world,
            random,
            careful,
            dual,
            strict: wire_protocol == WireProtocol::C,
            touched_us: 0,
            weak,
            asked: [Asked::Nothing; 2],
            started_over: BTreeSet::new(),
            turns_waited: 0,
            invalidating: BTreeMap::new(),
            grown: 0,
            damages: 0,
            crashes: 0,
            cuts: 0,
        }
    }

    fn run(&mut self) {
        self.set_up();
        for _ in 0..STEPS {
            self.step();
            self.check();
        }
        self.repair();
        self.verify();
        if self.random.percent(25) {
            self.verify_what_was_damaged();
            self.verify();
        }
        self.epilogue();
        self.trouble();
        self.aftermath();
    }

    fn set_up(&mut self) {
        let world = &mut self.world;
        for node in 0..2 {
            for volume in world.volumes() {
                assert_eq!(world.at(volume, |world| world.attach(node)), 101);
            }
            assert_eq!(world.connect(node), 1);
        }
        // All of them before any resync: where a volume has to wait for another one's, its state packets cross this.
        if self.world.config.sectors > 100_000 || self.random.percent(70) {
            self.each(Driver::skip_first_sync);
        } else {
            self.each(|driver| driver.world.leave_junk(1));
        }
        self.each(Driver::promote_first);
    }

    fn skip_first_sync(&mut self) {
        let world = &mut self.world;
        let skip = AdminRequest::NewCurrentUuid { volume: world.looked_at(), clear_bitmap: true };
        world.run_until("first connection", 10_000, |world| {
            (0..2).all(|node| world.status(node).state.conn == Conn::Connected)
        });
        // The state packets of the handshake have arrived.
        world.run_for_ms(100);
        assert_eq!(world.admin(0, skip), 101);
        world.run_until("skipped sync", 10_000, |world| {
            (0..2).all(|node| {
                let state = world.status(node).state;
                state.disk == Disk::UpToDate && state.pdsk == Disk::UpToDate
            })
        });
    }

    fn promote_first(&mut self) {
        let world = &mut self.world;
        let volume = world.looked_at();
        world.run_until("first connection", 10_000, |world| {
            (0..2).all(|node| world.status(node).state.conn == Conn::Connected)
        });
        let primary = AdminRequest::Primary { volume, force: true };
        assert_eq!(world.admin(0, primary), 1);
        if self.dual {
            self.world.run_until("both good", 600_000, |world| {
                (0..2).all(|node| {
                    let state = world.status(node).state;
                    (state.conn, state.disk, state.pdsk) == (Conn::Connected, Disk::UpToDate, Disk::UpToDate)
                })
            });
            let primary = AdminRequest::Primary { volume, force: false };
            assert_eq!(self.world.admin(1, primary), 1);
        }
    }

    /// The volume that everything is about just now.
    fn volume(&self) -> VolumeId {
        self.world.looked_at()
    }

    fn look_at(&mut self, volume: VolumeId) {
        self.world.look_at(volume);
    }

    /// What follows is about any one of the volumes.
    fn look_at_any(&mut self, random: &mut Random) {
        let volumes = u64::from(self.world.config.volumes);
        if volumes > 1 {
            self.look_at(VolumeId(random.below(volumes) as u8));
        }
    }

    /// Does something with each volume.
    fn each(&mut self, mut what: impl FnMut(&mut Driver)) {
        let before = self.volume();
        for volume in self.world.volumes() {
            self.look_at(volume);
            what(self);
        }
        self.look_at(before);
    }

    /// True when this holds for all volumes.
    fn all(&mut self, mut holds: impl FnMut(&Driver) -> bool) -> bool {
        let mut all = true;
        self.each(|driver| all &= holds(driver));
        all
    }

    // One thing that happens.

    fn step(&mut self) {
        self.poll();
        let mut random = self.random.clone();
        self.look_at_any(&mut random);
        self.random = random;
        match self.random.below(100) {
            0..=2 => self.follow_resync(),
            3..=44 => self.each(Driver::application),
            45..=59 => self.wait(20),
            60..=64 => self.wait(3000),
            65..=71 => self.network(),
            72..=75 => self.power(),
            76..=83 => self.roles(),
            84..=89 => self.connections(),
            90..=93 => self.disks(),
            94 => self.invalidate(),
            95..=97 => self.special(),
            _ => self.disk_faults(),
        }
        let pause = self.random.pick(&[0, 0, 1, 2, 10]);
        self.wait(pause);
    }

    fn wait(&mut self, most_ms: u64) {
        let ms = self.random.below(most_ms + 1);
        self.world.run_for_ms(ms);
    }

    fn poll(&mut self) {
        for node in 0..2 {
            if self.asked[node] != Asked::Nothing && (!self.world.is_on(node) || self.world.poll_admin(node).is_some())
            {
                self.asked[node] = Asked::Nothing;
            }
        }
    }

    fn ask(&mut self, node: usize, what: Asked, request: AdminRequest<'_>) {
        if self.world.is_on(node) && self.asked[node] == Asked::Nothing {
            self.world.ask(node, request);
            self.asked[node] = what;
        }
    }

    fn is_connected(&self, node: usize) -> bool {
        self.world.is_on(node) && self.world.status(node).state.conn >= Conn::Connected
    }

    fn is_primary(&self, node: usize) -> bool {
        self.world.is_on(node) && self.world.status(node).state.role == Role::Primary
    }

    fn application(&mut self) {
        for node in 0..2 {
            if !self.is_primary(node) || self.asked[node] == Asked::Demotion || self.world.open_operations() > 300 {
                continue;
            }
            for _ in 0..self.random.between(1, 30) {
                let sectors = self.world.config.sectors;
                let count = self.random.pick(&[1, 2, 3, 7, 8, 8, 8, 8, 9, 16, 40, 256, 2048]);
                let room = match self.random.below(10) {
                    0..=5 => 600.max(count),
                    6..=7 => 8192.min(sectors),
                    _ => sectors,
                };
                let sector = self.random.below(room - count + 1);
                let action = match self.random.below(24) {
                    0..=7 => Action::Read,
                    8 => Action::Discard,
                    9 => Action::WriteZeroes,
                    10 => Action::Write { fua: true },
                    11 => Action::Flush,
                    _ => Action::Write { fua: false },
                };
                let (sector, count) = if action == Action::Flush { (0, 0) } else { (sector, count) };
                self.world.start(node, action, sector, count);
            }
        }
    }

    /// Both nodes are Primary, or may be so before long. Without each other they would part ways.
    fn both_write(&self) -> bool {
        let primaries = (0..2).filter(|&node| self.is_primary(node)).count();
        primaries == 2 || (primaries == 1 && self.dual && self.asked.contains(&Asked::Promotion))
    }

    fn network(&mut self) {
        self.touched_us = self.world.now_us();
        if self.world.network_up != [true, true] {
            self.world.set_network(true);
            return;
        }
        if self.careful && self.both_write() {
            return;
        }
        self.cuts += 1;
        match self.random.below(4) {
            0 => self.world.reset_connection(),
            1 => {
                let from = self.random.below(2) as usize;
                self.world.set_direction(from, false);
            }
            _ => self.world.set_network(false),
        }
    }

    fn power(&mut self) {
        let node = self.random.below(2) as usize;
        if !self.world.is_on(node) {
            self.world.boot(node);
            return;
        }
        let other = 1 - node;
        if self.dual && !self.is_connected(other) {
            // If both lose their power with one generation neither is the newer one, even if the second was demoted meanwhile:
            // one of them has to note first that it goes on alone. A bitmap generation may be that
            // of a resync, whose end was not recorded yet (seed 55000831).
            let [own, others] = [node, other].map(|node| self.world.superblock(node).uuids[UI_CURRENT]);
            let noted = (own ^ others) & !1 != 0;
            if !noted && self.careful {
                return;
            }
            self.world.overwrite_allowed |= !noted;
        }
        self.each(|driver| driver.check_before_power_cut(node));
        self.cut_power(node);
    }

    fn check_before_power_cut(&self, node: usize) {
        let own = self.world.status(node).state;
        let mirrored = self.both_good() && self.strict;
        // The peer may have agreed already to overwrite what is here, and gone on without this node (seed 12014425).
        let given_up = self.invalidating.get(&self.volume()) == Some(&node);
        // Or to its detach (seeds 50004608, 50027411).
        let other = 1 - node;
        let agreed = self.world.is_on(other) && {
            let state = self.world.status(other).state;
            state.conn >= Conn::Connected && state.pdsk <= Disk::Failed
        };
        if self.careful && !given_up && !agreed && own.disk == Disk::UpToDate && (own.role == Role::Primary || mirrored)
        {
            if let Err(reason) = self.world.check_acknowledged(node) {
                panic!("node {node} is UpToDate but lacks an acknowledged write: {reason}");
            }
        }
    }

    fn cut_power(&mut self, node: usize) {
        let other = 1 - node;
        let mut lack_good_disk = BTreeSet::new();
        self.each(|driver| {
            if driver.world.is_on(node) && driver.world.status(node).state.disk != Disk::UpToDate {
                lack_good_disk.insert(driver.volume());
            }
        });
        self.world.power_cut(node);
        self.each(|driver| {
            let volume = driver.volume();
            if lack_good_disk.contains(&volume) {
                // Its power is the second failure: what it had only handed to the network is nowhere.
                let peer = &driver.world.nodes[other].data;
                driver.world.oracle.out_of_reach(node, |sector| peer.get(sector));
            }
            let given_up = driver.invalidating.get(&volume) == Some(&other);
            let world = &mut driver.world;
            if given_up || !world.is_on(other) || world.status(other).state.disk != Disk::UpToDate {
                // No other copy could take over: what was in the disk's cache is gone, as with any disk.
                world.only_left(node);
            }
        });
        self.asked[node] = Asked::Nothing;
        self.crashes += 1;
    }

    fn roles(&mut self) {
        let node = self.random.below(2) as usize;
        if !self.world.is_on(node) {
            return;
        }
        if self.is_primary(node) {
            // The device must have been closed, as the module demands.
            if self.world.open_operations_of(node) == 0 {
                self.ask(node, Asked::Demotion, AdminRequest::Secondary { volume: self.volume() });
            }
        } else if !self.careful || self.may_promote(node) {
            self.world.overwrite_allowed |= self.forgets_a_crash(node);
            self.ask(node, Asked::Promotion, AdminRequest::Primary { volume: self.volume(), force: false });
        }
    }

    /// A node is to be promoted that lost what was in its cache, by a power cut after which the other one had no time to note that it
    /// went on alone before it lost its power as well: nothing tells that its data is the older one (seed 60100477).
    fn forgets_a_crash(&self, node: usize) -> bool {
        let world = &self.world;
        let [own, others] = [node, 1 - node].map(|node| world.superblock(node).uuids);
        let one_generation = (own[UI_CURRENT] ^ others[UI_CURRENT]) & !1 == 0 && others[UI_BITMAP] == 0;
        !self.is_connected(node)
            && !self.is_connected(1 - node)
            && one_generation
            && world.check_acknowledged(node).is_err()
    }

    /// True when a promotion does not let the halves diverge.
    fn may_promote(&self, node: usize) -> bool {
        let world = &self.world;
        let other = 1 - node;
        if self.dual && self.is_primary(other) {
            // Only while the network is reliable.
            let quiet = world.now_us() > self.touched_us + 5_000_000 && world.network_up == [true, true];
            return quiet && self.both_good() && self.asked == [Asked::Nothing; 2];
        }
        if self.is_primary(other) || self.asked[other] == Asked::Promotion {
            return false;
        }
        let attached = |node: usize| world.is_on(node) && world.status(node).state.disk > Disk::Failed;
        let connected = |node: usize| world.is_on(node) && world.status(node).state.conn >= Conn::Connected;
        let stale = |node: usize| {
            let state = world.status(node).state;
            state.disk == Disk::UpToDate && world.check_acknowledged(node).is_err()
        };
        // What is on a disk that nobody uses may be newer.
        if (0..2).any(|node| !attached(node) && world.superblock(node).uuids[UI_BITMAP] != 0) {
            return false;
        }
        if connected(node) && connected(other) {
            return !stale(node) && !stale(other);
        }
        // In the middle of a handshake nobody knows.
        let state = world.status(node).state;
        let alone = state.conn <= Conn::WFConnection && !connected(other);
        let newer = attached(other) && world.status(other).uuids[UI_BITMAP] != 0;
        alone && state.disk == Disk::UpToDate && !newer && !stale(node)
    }

    fn connections(&mut self) {
        let node = self.random.below(2) as usize;
        if !self.world.is_on(node) {
            return;
        }
        if self.world.status(node).state.conn == Conn::StandAlone {
            let mut conf = self.world.config.net;
            if !self.careful && self.random.percent(15) && !self.is_primary(node) {
                conf.discard_my_data = true;
            }
            self.connect(node, &conf);
        } else if self.random.percent(40) && !(self.careful && self.both_write()) {
            let force = self.random.percent(20);
            self.ask(node, Asked::Other, AdminRequest::Disconnect { force });
        }
    }

    fn connect(&mut self, node: usize, conf: &NetConf) {
        self.know_algorithms(node);
        let conf = draw::net_of(node, conf);
        self.ask(node, Asked::Other, AdminRequest::Connect { conf: &conf });
    }

    fn know_algorithms(&mut self, node: usize) {
        let net = &self.world.config.net;
        let names = [net.verify_alg, net.csums_alg, net.integrity_alg, hmac_of(&net.cram_hmac_alg)];
        self.world.tell_algorithms(node, &names);
    }

    fn disks(&mut self) {
        let node = self.random.below(2) as usize;
        if !self.world.is_on(node) || self.asked[node] != Asked::Nothing {
            return;
        }
        if !self.world.status(node).has_disk {
            let _begun = self.attach(node);
        } else if self.random.percent(50) {
            // Whoever has agreed that the other node lets its disk go, and that has not heard of it, is the only one to have what is written now
            // (seed 50011923).
            let state = self.world.status(node).state;
            let agreed =
                state.conn >= Conn::Connected && state.pdsk == Disk::Failed && self.asked[1 - node] != Asked::Nothing;
            let force = self.random.percent(20) && self.invalidating.is_empty() && !(self.careful && agreed);
            self.ask(node, Asked::Other, AdminRequest::Detach { volume: self.volume(), force });
        }
    }

    /// False when it was refused at once.
    fn attach(&mut self, node: usize) -> bool {
        let begun = self.world.start_attach(node).is_ok();
        if begun {
            self.asked[node] = Asked::Other;
        }
        begun
    }

    /// Both nodes are connected, and say so of both disks that they are UpToDate.
    fn both_good(&self) -> bool {
        self.world.both_good()
    }

    // What must hold.

    fn check(&mut self) {
        if self.asked == [Asked::Nothing; 2] && self.all(Driver::both_good) {
            self.invalidating.clear();
            self.world.overwrite_allowed = false;
        }
        self.each(|driver| driver.check_volume());
    }

    fn check_volume(&self) {
        let world = &self.world;
        if !self.both_good() {
            return;
        }
        if self.careful && self.strict {
            for node in 0..2 {
                if let Err(reason) = world.check_acknowledged(node) {
                    panic!("both nodes are UpToDate, but node {node} lacks an acknowledged write: {reason}");
                }
            }
        }
        world.check_differences();
    }

    // The end.

    /// Everything that was broken is mended, and an administrator does what is to be done.
    fn repair(&mut self) {
        self.world.note(|| "--- everything is mended".into());
        self.world.set_network(true);
        for node in 0..2 {
            self.each(|driver| driver.world.nodes[node].faults = Default::default());
            if !self.world.is_on(node) {
                self.world.boot(node);
            }
        }
        let mut bad_turns = 0;
        // Volumes may have to be copied one after the other; where a packet takes 20 ms, 512 MiB take their time (seed 1205).
        for turn in 0..1200 * u32::from(self.world.config.volumes) {
            if self.in_sync() {
                return;
            }
            self.world.run_for_ms(500);
            self.poll();
            if self.in_sync() {
                return;
            }
            bad_turns = if self.is_stuck() { bad_turns + 1 } else { 0 };
            self.mend_volumes(turn, bad_turns);
        }
        panic!("the pair does not come together; {}; refusals {:?}", self.world.describe(), self.world.refusals);
    }

    fn in_sync(&mut self) -> bool {
        self.all(Driver::volume_in_sync) && self.asked == [Asked::Nothing; 2] && self.world.open_operations() == 0
    }

    fn volume_in_sync(&self) -> bool {
        self.both_good() && (0..2).all(|node| self.world.status(node).bits_out_of_sync == 0)
    }

    /// Connected, and nothing goes on.
    fn is_stuck(&mut self) -> bool {
        let connected = |driver: &Driver| (0..2).any(|node| driver.world.status(node).state.conn == Conn::Connected);
        let several = self.world.config.volumes > 1;
        // With several volumes this one may be in sync while another one gets there.
        self.all(|driver| connected(driver) || (several && driver.volume_in_sync()))
    }

    /// One request at a time: another volume's turn comes first each time.
    fn mend_volumes(&mut self, turn: u32, bad_turns: u32) {
        // A program that fences may take many turns, and nothing else can be asked for meanwhile (seed 31002881 with several volumes).
        self.turns_waited += u32::from(self.asked != [Asked::Nothing; 2]);
        // Where all are in sync something else is still to be done.
        let all = self.all(Driver::volume_in_sync);
        let before = self.volume();
        let volumes = u32::from(self.world.config.volumes);
        for number in turn..turn + volumes {
            self.look_at(VolumeId((number % volumes) as u8));
            // A resync that the administrator holds back holds back those that come after it (seed 20004224).
            let is_paused = (0..2).any(|node| self.world.is_on(node) && self.world.status(node).state.user_isp);
            if all || is_paused || !self.volume_in_sync() {
                self.mend(turn, bad_turns);
            }
        }
        self.look_at(before);
    }

    fn mend(&mut self, turn: u32, bad_turns: u32) {
        if turn.saturating_sub(self.turns_waited) > 20 && self.is_hopeless() && self.start_over() {
            return;
        }
        if !self.dual && (0..2).all(|node| self.is_primary(node)) {
            // The careless one made both Primary; nothing but a demotion brings them together.
            let poor = (0..2).find(|&node| self.world.status(node).state.disk != Disk::UpToDate);
            let node = poor.unwrap_or_else(|| self.victim());
            // A demotion waits for I/O that is suspended.
            if self.world.is_suspended(node) {
                self.ask(node, Asked::Other, AdminRequest::ResumeIo { volume: self.volume() });
            } else {
                self.demote(node);
            }
        }
        if turn >= 500 && matches!(self.world.status(0).state.conn, Conn::VerifyS | Conn::VerifyT) {
            // At its rate it takes longer than there is time. Two Primaries must not lose sight of each other for that.
            let both_primary = (0..2).all(|node| self.is_primary(node));
            match (both_primary, self.asked) {
                (true, [_, Asked::Nothing]) => self.demote(1),
                (false, [Asked::Nothing, _]) => self.ask(0, Asked::Other, AdminRequest::Disconnect { force: true }),
                _ => {}
            }
        }
        for node in 0..2 {
            if self.asked[node] != Asked::Nothing {
                continue;
            }
            let status = self.world.status(node);
            if self.world.is_suspended(node) {
                self.ask(node, Asked::Other, AdminRequest::ResumeIo { volume: self.volume() });
            } else if status.state.user_isp {
                self.ask(node, Asked::Other, AdminRequest::ResumeSync { volume: self.volume() });
            } else if turn % 8 == 7 && status.state.conn < Conn::WFReportParams && status.state.conn > Conn::StandAlone
            {
                // Its options may be those from before the last change.
                self.set_net_options(node);
            } else if !status.has_disk {
                if turn > 20 && self.is_primary(node) && !self.world.refusals.is_empty() {
                    // Its data is refused time and again: whoever is Primary with the other's data does not get out of that.
                    self.demote(node);
                } else if !self.attach(node) {
                    // A Primary without good data has shown what this disk does not have: it has to give up first.
                    for primary in (0..2).filter(|&node| self.is_primary(node)).collect::<Vec<_>>() {
                        self.demote(primary);
                    }
                }
            } else if status.state.conn == Conn::StandAlone {
                // A Primary without a disk refuses data that it has not seen, and I/O is frozen until somebody asks for more after each
                // attempt. What that volume needs comes first every now and then (seed 35013492 with several volumes).
                let sees_no_disk = |driver: &Driver| driver.is_primary(node) && !driver.world.status(node).has_disk;
                if turn > 20 && turn % 8 >= 4 && !self.all(|driver| !sees_no_disk(driver)) {
                    continue;
                }
                let mut conf = self.world.config.net;
                let refused = !self.world.refusals.is_empty();
                if refused && turn % 2 == 0 && node != self.victim() && self.waits_for_peer(1 - node) {
                    // That one has to say first that its data is given up.
                    self.ask(1 - node, Asked::Other, AdminRequest::Disconnect { force: false });
                    continue;
                }
                if refused {
                    self.world.overwrite_allowed = true;
                    conf.discard_my_data = node == self.victim();
                    if self.is_primary(node) {
                        self.demote(node);
                    }
                    // What has no disk when the nodes meet does not tell the peer that its data is given up.
                    let ready = |driver: &Driver| !driver.is_primary(node) && driver.world.status(node).has_disk;
                    if !self.all(ready) {
                        continue;
                    }
                }
                self.connect(node, &conf);
            } else if !self.world.refusals.is_empty() && status.state.conn == Conn::WFConnection {
                // The other one refused: begin again, as told above.
                if self.world.status(1 - node).state.conn == Conn::StandAlone && node == self.victim() {
                    self.ask(node, Asked::Other, AdminRequest::Disconnect { force: false });
                }
            } else if bad_turns == 5 && node == 0 && self.both_good() {
                // An invalidate that was interrupted before it began leaves its bits. He repeats it.
                self.ask(node, Asked::Other, AdminRequest::InvalidateRemote { volume: self.volume() });
            } else if bad_turns > 10 && bad_turns % 10 == 1 && (node == 0 || self.asked[0] != Asked::Nothing) {
                // Blocks that could not be synced while the disk failed are tried again with the next connection. So does a promotion
                // wait for it, which finds that the peer has better data (seed 9201291). Two Primaries must not lose sight of each other for
                // that, nor where `max-buffers` lets only one packet through in 100 ms (seed 50014738, and 51023677 with several volumes).
                match (0..2).all(|node| self.is_primary(node)) {
                    true => self.demote(1),
                    false => self.ask(1, Asked::Other, AdminRequest::Disconnect { force: true }),
                }
            }
        }
    }

    /// The module refuses while the device is open, as it is while somebody waits for the gate.
    fn demote(&mut self, node: usize) {
        if self.world.nodes[node].device.parked.is_empty() {
            self.ask(node, Asked::Other, AdminRequest::Secondary { volume: self.volume() });
        }
    }

    fn waits_for_peer(&self, node: usize) -> bool {
        self.world.status(node).state.conn == Conn::WFConnection
    }

    /// There is no good disk, or they have no past in common: nothing comes together by itself.
    fn is_hopeless(&self) -> bool {
        let unrelated = |refusal: &String| refusal.contains("never held the same data");
        !self.started_over.contains(&self.volume())
            && (!self.has_good_disk() || self.world.refusals.iter().any(unrelated))
    }

    /// One disk is declared to be good, the other one gets new meta data. False: there is nothing to be done just now.
    fn start_over(&mut self) -> bool {
        let worse = self.victim();
        let better = 1 - worse;
        let [state, other] = [better, worse].map(|node| self.world.status(node));
        self.world.overwrite_allowed = true;
        if self.asked != [Asked::Nothing; 2] {
            return true;
        }
        if state.state.disk != Disk::UpToDate {
            if !state.has_disk {
                return false;
            }
            let promote = AdminRequest::Primary { volume: self.volume(), force: true };
            let demote = AdminRequest::Secondary { volume: self.volume() };
            let primary = self.is_primary(better);
            self.ask(better, Asked::Other, if primary { demote } else { promote });
        } else if other.has_disk {
            self.ask(worse, Asked::Other, AdminRequest::Detach { volume: self.volume(), force: true });
        } else {
            self.world.create_md(worse);
            self.started_over.insert(self.volume());
        }
        true
    }

    fn has_good_disk(&self) -> bool {
        (0..2).any(|node| self.world.status(node).state.disk == Disk::UpToDate)
    }

    /// After a split brain: whose changes are given up, of all volumes.
    fn victim(&mut self) -> usize {
        // A node that met a Primary without disk may have begun a generation before that one refused its old data.
        // So may one with which the Primary lost the connection when it had just lost its disk: that Primary does not hear of it, and
        // attaches its disk again (seed 12003488). The protocol is like that; neither of them has written anything.
        let excused = !self.careful || self.world.old_data_refused > 0 || self.world.is_excused();
        // With the disks that fail kept, there may be no good one: one of the nodes has to be forced.
        let excused = excused || self.world.passes_on();
        assert!(excused, "refused: {:?}", self.world.refusals);
        let [zero, one] = [0, 1].map(|node| self.all(|driver| driver.world.check_acknowledged(node).is_ok()));
        usize::from(zero || !one)
    }

    fn verify(&mut self) {
        self.world.run_for_ms(3000);
        let world = &self.world;
        for node in 0..2 {
            assert_eq!(
                world.engine_of(node).usage(),
                Default::default(),
                "left over on node {node}: {}",
                world.describe()
            );
        }
        let excusable = |fault: &Fault| is_excusable(fault) || (self.grown > 0 && matches!(fault, Fault::Bitmap(_)));
        if let Some((node, fault)) = world.faults.iter().find(|(_, fault)| !excusable(fault)) {
            panic!("node {node} gave up a connection: {fault}");
        }
        self.each(|driver| driver.verify_volume());
    }

    fn verify_volume(&self) {
        let world = &self.world;
        for node in 0..2 {
            let status = world.status(node);
            let pending = [status.upper_pending, status.lower_pending, status.peer_pending, status.unacked];
            assert_eq!(pending, [0; 4], "counted on node {node} as under way: {}", world.describe());
        }
        for node in 0..2 {
            let superblock = world.superblock(node);
            let size = world.status(node).size_sectors;
            assert_eq!(superblock.la_size_sectors, size, "the size that node {node} has written down");
            assert!(
                !superblock.flags.contains(MetaFlags::FULL_SYNC),
                "node {node} would copy everything when it boots"
            );
        }
        let [zero, one] = [0, 1].map(|node| world.status(node).uuids.map(|uuid| uuid & !1));
        assert_eq!(zero[UI_CURRENT], one[UI_CURRENT], "generations differ");
        assert_eq!([zero[UI_BITMAP], one[UI_BITMAP]], [0, 0], "generations are not closed");
        let sectors = world.status(0).size_sectors;
        assert_eq!(sectors, world.status(1).size_sectors, "the sizes differ");
        let difference = world.nodes[0].data.first_difference(&world.nodes[1].data, sectors);
        assert_eq!(difference, None, "the halves differ; {}", world.describe());
        if self.careful {
            for node in 0..2 {
                if let Err(reason) = world.check_acknowledged(node) {
                    panic!("node {node} lacks an acknowledged write: {reason}");
                }
            }
        }
    }
}

/// Two engines of ours never break the protocol. What is left is what they tell each other on purpose, what silence does, and two
/// changes of a state that cross each other on their way: then the connection is made anew.
fn is_excusable(fault: &Fault) -> bool {
    matches!(
        fault,
        Fault::Closing
            | Fault::DataRefused
            | Fault::InsideBitmap { .. }
            | Fault::HandshakeRefused
            | Fault::MissingSequence { .. }
            | Fault::NotDurable
            | Fault::PeerRebooted
            | Fault::PingTimeout
            | Fault::SameSide { .. }
            | Fault::SourceFailed
            | Fault::StateRefused(_)
            | Fault::UnexpectedBitmap { .. }
            | Fault::Algorithm { .. }
            | Fault::Protocol(_)
    )
}
