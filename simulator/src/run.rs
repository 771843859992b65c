//! Random runs: faults, an application, an administrator; what must hold all the time, and at the end.
//!
//! The administrator of most runs is *careful*: he never makes the halves diverge. He promotes a node that is alone only
//! if the other one has nothing that this one lacks. Then no acknowledged write may ever be missing, and no connection
//! may ever be refused. The *careless* one promotes as he likes; then only convergence is asked for, after one side was
//! told to give up its changes.

mod aftermath;
mod epilogue;
mod mending;
mod special;
mod trouble;

use crate::disk::Stamp;
use crate::draw;
use crate::world::{Action, Config, World};
use crate::Random;
use engine::metadata::superblock::{MetaFlags, UI_BITMAP, UI_CURRENT};
use engine::netlink::{DiskConf, Fencing, NetConf, OnCongestion, WireProtocol};
use engine::resource::{hmac_of, AdminRequest, TableLimits, VolumeId};
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
        let mut config = Config { seed, ..Config::new(seed) };
        config.net = net;
        config.trace = trace;
        config.check_reads = careful;
        config.sectors = random.pick(&[32_768, 32_768, 20_001, 1 << 20]);
        let peer_requests = random.pick(&[16, 64, 200]);
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
            let noted = self.survivor_has_noted();
            if !noted && self.careful {
                return;
            }
            self.world.overwrite_allowed |= !noted;
        }
        // Nor can it note that on a disk that fails (seed 86010235).
        if self.dual && !self.world.nodes[other].faults.is_sound() {
            if self.careful {
                return;
            }
            self.world.overwrite_allowed = true;
        }
        self.each(|driver| driver.check_before_power_cut(node));
        self.cut_power(node);
    }

    /// One of two Primaries goes on alone, and a crash of it does not make them equal.
    pub(super) fn survivor_has_noted(&self) -> bool {
        let [own, others] = [0, 1].map(|node| self.world.superblock(node).uuids[UI_CURRENT]);
        (own ^ others) & !1 != 0
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
}
