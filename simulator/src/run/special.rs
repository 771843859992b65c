//! What the administrator does more seldom, and what happens to disks.

use super::*;
use engine::netlink::ResizeParms;
use engine::resource::Fault;

/// Sectors by which disks grow: more than an extent of the activity log, and not a whole number of them.
const GROWTH: u64 = 10_008;
/// What is on the new part of the disks before anybody has written there.
const JUNK: [Stamp; 2] = [1 << 50, 1 << 51];

impl Driver {
    pub(super) fn special(&mut self) {
        let node = self.random.below(2) as usize;
        if !self.world.is_on(node) {
            return;
        }
        let state = self.world.status(node).state;
        match self.random.below(12) {
            0 | 1 if self.both_good() => self.start_verify(node),
            2 if state.user_isp => self.ask(node, Asked::Other, AdminRequest::ResumeSync { volume: self.volume() }),
            2 => self.ask(node, Asked::Other, AdminRequest::PauseSync { volume: self.volume() }),
            3 | 4 if self.world.is_suspended(node) => {
                self.ask(node, Asked::Other, AdminRequest::ResumeIo { volume: self.volume() });
            }
            3 | 4 if !self.dual => self.ask(node, Asked::Other, AdminRequest::SuspendIo { volume: self.volume() }),
            5 => self.outdate(node),
            6 if !self.dual && self.both_good() && self.asked == [Asked::Nothing; 2] => self.change_protocol(node),
            7 => self.change_options(node),
            8 => self.change_disk_options(node),
            9 => self.grow(node),
            10 => self.betray(),
            _ => self.follow_resync(),
        }
    }

    fn start_verify(&mut self, node: usize) {
        let sectors = self.world.config.sectors;
        let start_sector = self.random.pick(&[Some(0), None, Some(sectors / 2)]);
        let stop_sector = self.random.pick(&[None, None, Some(sectors / 2 + 800)]);
        self.ask(node, Asked::Other, AdminRequest::Verify { volume: self.volume(), start_sector, stop_sector });
    }

    fn change_protocol(&mut self, node: usize) {
        let letter = self.random.pick(&[WireProtocol::A, WireProtocol::B, WireProtocol::C]);
        if letter == WireProtocol::A && self.world.config.disk.fencing == Fencing::ResourceAndStonith {
            return;
        }
        self.strict &= letter == WireProtocol::C;
        self.world.config.net.wire_protocol = letter;
        if letter != WireProtocol::A {
            self.world.config.net.on_congestion = OnCongestion::Block;
        }
        self.set_net_options(node);
    }

    /// Options that both nodes need not have the same.
    fn change_options(&mut self, node: usize) {
        if self.asked[node] != Asked::Nothing {
            return;
        }
        let fresh = draw::net(&mut self.random, draw::Kind { careful: self.careful, dual: self.dual });
        let net = &mut self.world.config.net;
        net.max_epoch_size = fresh.max_epoch_size;
        net.use_rle = fresh.use_rle;
        net.ko_count = fresh.ko_count;
        net.csums_after_crash_only = fresh.csums_after_crash_only;
        self.set_net_options(node);
    }

    fn change_disk_options(&mut self, node: usize) {
        if self.asked[node] != Asked::Nothing {
            return;
        }
        let kind = draw::Kind { careful: self.careful, dual: self.dual };
        let World { config, .. } = &mut self.world;
        let fresh = draw::disk(&mut self.random, kind, config.disk, &config.net);
        config.disk = DiskConf {
            read_balancing: fresh.read_balancing,
            rs_discard_granularity: fresh.rs_discard_granularity,
            c_plan_ahead: fresh.c_plan_ahead,
            resync_rate: fresh.resync_rate,
            al_updates: fresh.al_updates,
            ..config.disk
        };
        let conf = self.world.disk_conf();
        self.ask(node, Asked::Other, AdminRequest::DiskOptions { volume: self.volume(), conf: &conf });
    }

    /// Both disks have become larger, and so does the device.
    pub(super) fn grow(&mut self, node: usize) {
        let idle = self.both_good() && self.asked == [Asked::Nothing; 2];
        let primary = (0..2).any(|node| self.is_primary(node));
        // If a disk fails meanwhile the connection is given up: two Primaries must not lose each other.
        let risky = self.dual && !self.disks_are_sound();
        if !idle || !primary || risky || self.grown > 0 || self.world.config.sectors > 100_000 {
            return;
        }
        self.grown += 1;
        for (node, junk) in JUNK.into_iter().enumerate() {
            self.world.grow_disk(node, GROWTH, junk);
        }
        self.asked[node] = Asked::Other;
        self.world.start_resize(node, &ResizeParms::default());
    }

    fn disks_are_sound(&self) -> bool {
        self.world.nodes.iter().all(|node| node.faults.is_sound() && node.faults.slowness == 0)
    }

    /// The application writes where a resync is busy: what it asks for next.
    pub(super) fn follow_resync(&mut self) {
        for _ in 0..self.random.between(5, 40) {
            let source =
                (0..2).find(|&node| self.world.is_on(node) && self.world.status(node).state.conn == Conn::SyncSource);
            let Some(source) = source else { return };
            let sectors = self.world.config.sectors;
            let engine = self.world.engine_of(source);
            let volume = self.volume();
            let is_set = |sector: &u64| engine.is_out_of_sync(volume, *sector) == Some(true);
            let Some(next) = (0..sectors.min(1 << 16)).step_by(8).find(is_set) else { return };
            for node in 0..2 {
                if self.is_primary(node) && self.asked[node] != Asked::Demotion && self.world.open_operations() < 300 {
                    let count = self.random.pick(&[1, 8, 8, 16, 256]);
                    let sector = (next + self.random.below(1024)).min(sectors - count);
                    self.world.start(node, Action::Write { fua: false }, sector, count);
                }
            }
            let us = self.random.below(600);
            self.world.run_for_us(us);
        }
    }

    /// A Primary loses its peer, acknowledges writes and loses its power; somebody promotes the other node.
    pub(super) fn betray(&mut self) {
        let Some(node) = (0..2).find(|&node| self.is_primary(node) && !self.is_primary(1 - node)) else { return };
        if self.careful || !self.both_good() || self.asked != [Asked::Nothing; 2] {
            return;
        }
        for _ in 0..4 {
            let sector = self.random.below(600);
            self.world.start(node, Action::Write { fua: true }, sector, 8);
        }
        self.cuts += 1;
        self.world.reset_connection();
        for _ in 0..100 {
            if self.world.status(node).state.conn < Conn::Connected {
                break;
            }
            self.world.run_for_us(50);
        }
        self.world.set_network(false);
        let us = self.random.below(800);
        self.world.run_for_us(us);
        self.cut_power(node);
        self.world.run_for_ms(10);
        self.ask(1 - node, Asked::Promotion, AdminRequest::Primary { volume: self.volume(), force: false });
        self.world.run_for_ms(20);
    }

    /// A disk of a Secondary changes behind everybody's back; a verify finds that, and the next connection mends it.
    pub(super) fn verify_what_was_damaged(&mut self) {
        let sound = self.disks_are_sound();
        let idle = self.asked == [Asked::Nothing; 2] && self.world.open_operations() == 0 && self.both_good();
        let Some(primary) = (0..2).find(|&node| self.is_primary(node) && !self.is_primary(1 - node)) else { return };
        let quiet = sound && idle && self.world.network_up == [true, true] && !self.world.is_suspended(primary);
        let sectors = self.world.config.sectors;
        if !quiet || self.world.config.net.verify_alg.is_empty() || sectors > 100_000 {
            return;
        }
        // The resync that mends it is not to wait for him.
        self.each(|driver| {
            for node in (0..2).filter(|&node| driver.world.status(node).state.user_isp).collect::<Vec<_>>() {
                let resume = AdminRequest::ResumeSync { volume: driver.volume() };
                assert_eq!(driver.world.admin(node, resume), 101);
            }
        });
        // What is written last may be on its way to the peer's cache; nothing else goes on meanwhile.
        self.world.run_for_ms(500);
        let victim = 1 - primary;
        let sector = self.random.below(sectors);
        let junk = self.world.nodes[victim].data.get(sector) + (1 << 40);
        self.world.nodes[victim].data.write(sector, &[junk], true);
        let asked = self.random.below(2) as usize;
        let verify = AdminRequest::Verify { volume: self.volume(), start_sector: Some(0), stop_sector: None };
        let faults = self.world.faults.len();
        if !self.both_good() || self.world.admin(asked, verify) != 1 {
            // It was told to know another algorithm meanwhile.
            self.world.nodes[victim].data.write(sector, &[junk - (1 << 40)], true);
            return;
        }
        self.world
            .run_until("verify", 600_000, |world| (0..2).all(|node| world.status(node).state.conn == Conn::Connected));
        self.world.run_for_ms(200);
        let lost = self.world.faults[faults..].iter().any(|(_, fault)| *fault == Fault::PingTimeout);
        if lost && self.world.config.sent_us_most >= 1_000 {
            // A ping had to wait behind the results of the whole verify, and not all of them have arrived (seed 19005302).
            self.world.nodes[victim].data.write(sector, &[junk - (1 << 40)], true);
            return;
        }
        for node in 0..2 {
            let known = self.world.engine_of(node).is_out_of_sync(self.volume(), sector);
            assert_eq!(known, Some(true), "a verify did not find on node {node} that sector {sector} differs");
        }
        assert_eq!(self.world.admin(victim, AdminRequest::Disconnect { force: false }), 101);
        self.world
            .run_until("the Primary is alone", 60_000, |world| world.status(primary).state.conn < Conn::Connected);
        // Where that freezes I/O the peer has to be fenced first: without a new generation nothing is resynced.
        self.world.run_for_ms(500);
        if self.world.is_suspended(primary) {
            let _code = self.world.admin(primary, AdminRequest::ResumeIo { volume: self.volume() });
        }
        self.know_algorithms(victim);
        let conf = draw::net_of(victim, &self.world.config.net);
        assert_eq!(self.world.admin(victim, AdminRequest::Connect { conf: &conf }), 1);
        self.world.run_until("the damage is mended", 600_000, |world| {
            (0..2).all(|node| {
                let status = world.status(node);
                let state = status.state;
                state.conn == Conn::Connected && state.disk == Disk::UpToDate && status.bits_out_of_sync == 0
            })
        });
        assert_ne!(self.world.nodes[victim].data.get(sector), junk, "the damage was not mended");
        self.damages += 1;
    }

    /// As the program does that fences a peer: it is not to be promoted while another node has newer data.
    fn outdate(&mut self, node: usize) {
        let good = |node: usize| self.world.is_on(node) && self.world.status(node).state.disk == Disk::UpToDate;
        if !self.dual && !self.is_primary(node) && !self.is_connected(node) && good(1 - node) {
            self.ask(node, Asked::Other, AdminRequest::Outdate { volume: self.volume() });
        }
    }

    pub(super) fn set_net_options(&mut self, node: usize) {
        let conf = draw::net_of(node, &self.world.config.net);
        self.know_algorithms(node);
        self.ask(node, Asked::Other, AdminRequest::NetOptions { conf: &conf });
    }

    pub(super) fn invalidate(&mut self) {
        let node = self.random.below(2) as usize;
        let (request, victim) = if self.random.percent(50) {
            (AdminRequest::Invalidate { volume: self.volume() }, node)
        } else {
            (AdminRequest::InvalidateRemote { volume: self.volume() }, 1 - node)
        };
        // What a Primary has acknowledged under protocol A or B may be nowhere else.
        let sure = self.strict || !self.is_primary(victim);
        // Nor does he do it when the other disk is about to fail.
        let survivor = &self.world.nodes[1 - victim].faults;
        let sound = survivor.is_sound() || survivor.hangs;
        if self.both_good() && self.world.config.sectors < 100_000 && sound && (sure || !self.careful) {
            self.invalidating.insert(self.volume(), victim);
            self.world.overwrite_allowed = true;
            self.ask(node, Asked::Other, request);
        }
    }

    pub(super) fn disk_faults(&mut self) {
        let weak = self.weak;
        if self.invalidating.values().any(|&victim| victim != weak) {
            return;
        }
        let alone = self.dual && !(0..2).all(|node| self.is_connected(node));
        if alone && self.careful && !self.survivor_has_noted() {
            return;
        }
        let percent = self.random.pick(&[0, 1, 10]);
        let quiet = !(self.dual && self.careful);
        let faults = &mut self.world.nodes[weak].faults;
        match self.random.below(5) {
            0 => faults.read_percent = percent,
            1 => faults.write_percent = percent,
            2 => faults.meta_percent = percent,
            // Two Primaries must not lose each other.
            3 if quiet => faults.hangs = !faults.hangs && self.random.percent(50),
            4 if quiet => {
                let node = self.random.below(2) as usize;
                self.world.nodes[node].faults.slowness = self.random.pick(&[0, 0, 10, 200]);
            }
            _ => {}
        }
    }
}
