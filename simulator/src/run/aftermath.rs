//! The last part of most runs: what the parts before come to so seldom that a fault of the engine there would go unnoticed. A
//! generator of its own here as well.

use super::*;

/// Sectors of the device that the writes are about.
const ROOM: u64 = 4000;
/// What a damaged sector holds, beside what it held.
const DAMAGE: Stamp = 1 << 40;

impl Driver {
    /// One kind of it, or none.
    pub(super) fn aftermath(&mut self) {
        let mut random = Random::new(self.world.config.seed ^ 0xaf7e_3a74);
        self.look_at_any(&mut random);
        let Some(primary) = self.any_primary() else { return };
        if self.dual {
            self.fight(&mut random);
        } else {
            match random.below(12) {
                0 | 1 => self.lose_what_is_on_its_way(primary, &mut random),
                2 | 3 => self.damage_and_verify(primary, &mut random),
                4 => self.hang_a_disk(primary, &mut random),
                5 => self.pause_a_resync(primary, &mut random),
                6 => self.meet_while_attaching(primary, &mut random),
                7 | 8 => self.write_without_disk(primary, &mut random),
                9 => self.replace_a_disk(primary, &mut random),
                10 => self.write_into_verify(primary, &mut random),
                _ => return,
            }
        }
        self.mended();
    }

    fn write_some(&mut self, node: usize, random: &mut Random, most: u64, room: u64) {
        for _ in 0..random.between(1, most) {
            let (sector, count) = (random.below(room), random.pick(&[1, 8, 8, 8, 24, 128]));
            let action = random.pick(&[
                Action::Write { fua: false },
                Action::Write { fua: false },
                Action::Write { fua: false },
                Action::Write { fua: true },
                Action::Discard,
                Action::Read,
            ]);
            if self.is_primary(node) && self.world.open_operations() < 100 {
                self.world.start(node, action, sector, count);
            }
            let us = random.below(200);
            self.world.run_for_us(us);
        }
    }

    /// The network has stopped, perhaps under I/O that is suspended, and what it holds is gone with the connection.
    fn lose_what_is_on_its_way(&mut self, primary: usize, random: &mut Random) {
        self.write_some(primary, random, 10, ROOM);
        self.world.set_direction(primary, false);
        self.write_some(primary, random, 20, ROOM);
        let suspends = random.percent(70);
        if suspends {
            self.ask(primary, Asked::Other, AdminRequest::SuspendIo { volume: self.volume() });
            self.world.run_for_ms(random.below(20));
        }
        self.cuts += 1;
        self.world.reset_connection();
        self.world.set_direction(primary, true);
        self.world.run_for_ms(random.below(60));
        self.poll();
        if suspends {
            self.ask(primary, Asked::Other, AdminRequest::ResumeIo { volume: self.volume() });
        }
        self.write_some(primary, random, 10, ROOM);
    }

    /// Blocks differ, also the first and the last one of the device, and a verify that begins and ends somewhere, or is interrupted,
    /// finds them.
    fn damage_and_verify(&mut self, primary: usize, random: &mut Random) {
        let sectors = self.world.status(primary).size_sectors;
        let victim = 1 - primary;
        if self.world.config.net.verify_alg.is_empty() || sectors > 100_000 || self.is_primary(victim) {
            return;
        }
        self.world.run_for_ms(500);
        let anywhere = random.below(sectors);
        let first = random.pick(&[0, 0, 8, anywhere]);
        let end = first + 8 + random.below(sectors);
        let stop = random.pick(&[None, None, Some(end)]).filter(|&stop| stop < sectors);
        let places = BTreeSet::from([first, sectors - 1, random.below(sectors), stop.map_or(first, |stop| stop - 1)]);
        let damaged: Vec<(u64, Stamp)> =
            places.into_iter().map(|sector| (sector, self.world.nodes[victim].data.get(sector))).collect();
        for &(sector, held) in &damaged {
            self.world.nodes[victim].data.write(sector, &[held + DAMAGE], true);
        }
        let asked = random.below(2) as usize;
        let verify = AdminRequest::Verify { volume: self.volume(), start_sector: Some(first), stop_sector: stop };
        let begun = self.both_good() && self.world.admin(asked, verify) == 1;
        if begun {
            self.world.run_until("verify", 600_000, |world| {
                (0..2).all(|node| world.status(node).state.conn == Conn::Connected)
            });
            self.world.run_for_ms(200);
        }
        let seen = first / 8 * 8..stop.unwrap_or(sectors);
        for (sector, held) in damaged {
            for node in 0..2 {
                let known = self.world.engine_of(node).is_out_of_sync(self.volume(), sector) == Some(true);
                assert!(
                    !begun || known || !seen.contains(&sector),
                    "a verify of {seen:?} did not find on node {node} that sector {sector} differs"
                );
            }
            self.world.nodes[victim].data.write(sector, &[held], true);
        }
        self.damages += u64::from(begun);
        // What it has marked is copied by the next connection.
        self.ask(victim, Asked::Other, AdminRequest::Disconnect { force: false });
        self.world.run_for_ms(100);
    }

    /// Writes to the blocks that a verify is comparing: it finds nothing.
    fn write_into_verify(&mut self, primary: usize, random: &mut Random) {
        if self.world.config.net.verify_alg.is_empty() {
            return;
        }
        self.world.run_for_ms(500);
        let asked = if random.percent(70) { 1 - primary } else { primary };
        for node in 0..2 {
            self.world.nodes[node].faults.slowness = random.pick(&[0, 0, 3, 10]);
        }
        let volume = self.volume();
        let verify = AdminRequest::Verify { volume, start_sector: Some(0), stop_sector: Some(ROOM) };
        let faults = self.world.faults.len();
        let sent = |world: &World, name| world.packets_sent.get(name).copied().unwrap_or(0);
        let before = ["P_OV_REQUEST", "P_OV_REPLY"].map(|name| sent(&self.world, name));
        let marked = |world: &World| (0..2).map(|node| world.status(node).bits_out_of_sync).sum::<u64>();
        if !self.both_good() || marked(&self.world) > 0 || self.world.admin(asked, verify) != 1 {
            return;
        }
        for _ in 0..100 {
            // What is asked for next, or the digest that has just been told.
            let (name, from) = random.pick(&[("P_OV_REQUEST", before[0]), ("P_OV_REPLY", before[1])]);
            let seen = sent(&self.world, name);
            for _ in 0..500 {
                if sent(&self.world, name) != seen {
                    break;
                }
                self.world.step();
            }
            if self.world.status(asked).state.conn != Conn::VerifyS {
                break;
            }
            let block = (sent(&self.world, name) - from).saturating_sub(random.below(2));
            let (sector, count) = (8 * block + random.pick(&[0, 0, 3]), random.pick(&[1, 8, 8, 24]));
            if self.world.open_operations() < 40 && self.is_primary(primary) {
                self.world.start(primary, Action::Write { fua: random.percent(10) }, sector, count);
            }
            let us = random.pick(&[0, 0, 50, 300]);
            self.world.run_for_us(us);
        }
        // It ends earlier where the writes are too many for the network, and `on-congestion disconnect` is set.
        self.world.run_until("verify", 600_000, |world| {
            (0..2).all(|node| !matches!(world.status(node).state.conn, Conn::VerifyS | Conn::VerifyT))
        });
        for node in 0..2 {
            self.world.nodes[node].faults.slowness = 0;
        }
        // Who pulls ahead marks what it writes.
        let calm = self.both_good() && self.world.faults.len() == faults;
        let found = marked(&self.world);
        assert!(!calm || found == 0, "a verify found {found} blocks that do not differ; {}", self.world.describe());
    }

    /// A disk does not answer for longer than `disk-timeout`, if there is one.
    fn hang_a_disk(&mut self, primary: usize, random: &mut Random) {
        let node = random.below(2) as usize;
        self.write_some(primary, random, 6, ROOM);
        self.world.nodes[node].faults.hangs = true;
        self.write_some(primary, random, 20, ROOM);
        self.world.run_for_ms(random.pick(&[100, 2500, 4000]));
        self.write_some(primary, random, 6, ROOM);
        if random.percent(20) {
            let detach = AdminRequest::Detach { volume: self.volume(), force: true };
            self.ask(node, Asked::Other, detach);
            self.world.run_for_ms(random.below(500));
        }
        self.world.nodes[node].faults.hangs = false;
    }

    /// A resync that stops and goes on, by the will of either node.
    fn pause_a_resync(&mut self, primary: usize, random: &mut Random) {
        self.cuts += 1;
        self.world.set_network(false);
        self.world.reset_connection();
        self.world.run_for_ms(20);
        self.write_some(primary, random, 30, ROOM);
        let node = random.below(2) as usize;
        let early = random.percent(50);
        if early {
            self.ask(node, Asked::Other, AdminRequest::PauseSync { volume: self.volume() });
        }
        self.world.set_network(true);
        for _ in 0..4000 {
            self.poll();
            if self.world.status(primary).state.conn > Conn::WFBitMapT {
                break;
            }
            self.world.step();
        }
        if !early {
            self.ask(node, Asked::Other, AdminRequest::PauseSync { volume: self.volume() });
        }
        self.write_some(primary, random, 10, ROOM);
        self.world.run_for_ms(random.pick(&[10, 1500, 2500]));
        self.poll();
        self.ask(node, Asked::Other, AdminRequest::ResumeSync { volume: self.volume() });
    }

    /// Disks come and go while the nodes come together.
    fn meet_while_attaching(&mut self, primary: usize, random: &mut Random) {
        for _ in 0..3 {
            let node = if random.percent(30) { primary } else { 1 - primary };
            self.ask(node, Asked::Other, AdminRequest::Detach { volume: self.volume(), force: random.percent(20) });
            self.write_some(primary, random, 10, ROOM);
            self.world.run_for_ms(30);
            self.poll();
            self.cuts += 1;
            self.world.reset_connection();
            self.world.run_for_us(random.below(8000));
            if self.asked[node] == Asked::Nothing && !self.world.status(node).has_disk {
                let _begun = self.attach(node);
            }
            self.world.run_for_us(random.below(8000));
            self.write_some(primary, random, 10, ROOM);
            self.mended();
            if self.any_primary() != Some(primary) {
                return;
            }
        }
    }

    /// A node is promoted that has no disk; its disk comes back while it writes, or when it has lost the peer.
    fn write_without_disk(&mut self, primary: usize, random: &mut Random) {
        let volume = self.volume();
        let node = random.below(2) as usize;
        self.world.run_for_ms(100);
        let requests = [
            (primary, AdminRequest::Secondary { volume }),
            (node, AdminRequest::Detach { volume, force: false }),
            (node, AdminRequest::Primary { volume, force: false }),
        ];
        if requests.into_iter().any(|(node, request)| self.world.admin(node, request) != 1) {
            return;
        }
        self.write_some(node, random, 12, ROOM);
        if random.percent(40) {
            self.cuts += 1;
            self.world.reset_connection();
            self.world.run_for_ms(random.below(10));
            self.write_some(node, random, 6, ROOM);
        }
        self.world.run_for_ms(random.below(20));
        let _begun = self.attach(node);
        for _ in 0..random.below(6) {
            self.write_some(node, random, 3, ROOM);
            let us = random.below(400);
            self.world.run_for_us(us);
        }
        match random.below(6) {
            0 => self.cut_power(1 - node),
            1 => self.cut_power(node),
            2 => self.world.reset_connection(),
            _ => {}
        }
    }

    /// The disk of the node that is not Primary is replaced by one that has been used for something else. It gets everything.
    fn replace_a_disk(&mut self, primary: usize, random: &mut Random) {
        let victim = 1 - primary;
        if self.world.config.sectors > 100_000 || self.grown > 0 {
            return;
        }
        self.write_some(primary, random, 10, ROOM);
        self.world.run_for_ms(100);
        if self.world.admin(victim, AdminRequest::Detach { volume: self.volume(), force: false }) != 1 {
            return;
        }
        self.world.run_until("the disk is let go", 10_000, |world| !world.status(victim).has_disk);
        self.world.overwrite_allowed = true;
        self.world.create_md(victim);
        self.world.leave_junk(victim);
        self.write_some(primary, random, 10, ROOM);
        let _begun = self.attach(victim);
        self.write_some(primary, random, 20, ROOM);
    }

    /// Both nodes write to the same few blocks at once.
    fn fight(&mut self, random: &mut Random) {
        for node in 0..2 {
            self.world.nodes[node].faults.slowness = random.pick(&[0, 0, 3, 10]);
        }
        for _ in 0..random.between(20, 60) {
            for node in 0..2 {
                if self.is_primary(node) && self.world.open_operations() < 60 {
                    let sector = 8 * random.below(6) + random.pick(&[0, 0, 0, 3]);
                    let count = random.pick(&[1, 8, 8, 8, 16, 24, 40]);
                    let action =
                        random.pick(&[Action::Write { fua: false }, Action::Write { fua: false }, Action::Read]);
                    self.world.start(node, action, sector, count);
                }
            }
            let us = random.pick(&[0, 20, 200, 1000]);
            self.world.run_for_us(us);
        }
        self.world.run_for_ms(random.below(100));
        for node in 0..2 {
            self.world.nodes[node].faults.slowness = 0;
        }
    }
}
