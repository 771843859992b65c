//! After that, in most runs: a disk that fails, a lost disk, a power cut, in the moments in which something is only half
//! done. The part before meets them by luck, and one such moment in a run. A generator of its own here as well.

use super::*;

/// Sectors of the device that the writes are about.
const ROOM: u64 = 6000;

impl Driver {
    /// One kind of trouble, or none.
    pub(super) fn trouble(&mut self) {
        let mut random = Random::new(self.world.config.seed ^ 0x7b0b_1e00);
        self.look_at_any(&mut random);
        // Two Primaries must not lose each other.
        let Some(primary) = self.any_primary().filter(|_| !self.dual) else { return };
        match random.below(8) {
            0 | 1 => self.fail_disk(primary, &mut random),
            2 => self.be_without_disk(primary, &mut random),
            3 => self.crash_often(primary, &mut random),
            4 => self.crash_while_syncing(primary, &mut random),
            5 => self.crash_while_invalidating(primary, &mut random),
            6 => self.lose_peer_while_suspended(primary, &mut random),
            _ => self.grow_once(primary, &mut random),
        }
        self.mended();
    }

    pub(super) fn mended(&mut self) {
        self.repair();
        self.verify();
        self.check();
    }

    fn some_io(&mut self, node: usize, random: &mut Random, most: u64) {
        for _ in 0..random.between(1, most) {
            let (sector, count) = (random.below(ROOM), random.pick(&[1, 8, 8, 8, 40, 256]));
            let action = match random.below(12) {
                0 => Action::ReadAhead,
                1..=3 => Action::Read,
                4 => Action::Discard,
                5 => Action::Flush,
                6 => Action::Write { fua: true },
                _ => Action::Write { fua: false },
            };
            let (sector, count) = if action == Action::Flush { (0, 0) } else { (sector, count) };
            if self.is_primary(node) && self.world.open_operations() < 100 {
                self.world.start(node, action, sector, count);
            }
            let us = random.below(300);
            self.world.run_for_us(us);
        }
    }

    /// So many events happen.
    fn step_on(&mut self, random: &mut Random, most: u64) {
        for _ in 0..random.below(most) {
            self.world.step();
        }
    }

    /// One of the disks fails under reads and writes, or its meta data does; it comes back.
    fn fail_disk(&mut self, primary: usize, random: &mut Random) {
        let node = random.below(2) as usize;
        let percent = random.pick(&[5, 30, 100]);
        let faults = &mut self.world.nodes[node].faults;
        match random.below(7) {
            0 | 1 => faults.write_percent = percent,
            2 | 3 => faults.read_percent = percent,
            4 | 5 => faults.flush_percent = percent,
            _ => faults.meta_percent = percent,
        }
        self.some_io(primary, random, 40);
        self.world.nodes[node].faults = Default::default();
        if random.percent(50) {
            self.some_io(primary, random, 20);
        }
        if random.percent(30) {
            self.cut_power(random.below(2) as usize);
        }
    }

    /// One of the nodes is without its disk for a while, and the connection is lost before that comes back, or after.
    fn be_without_disk(&mut self, primary: usize, random: &mut Random) {
        let node = if random.percent(60) { primary } else { 1 - primary };
        let detach = AdminRequest::Detach { volume: self.volume(), force: random.percent(30) };
        if self.world.admin(node, detach) != 1 {
            return;
        }
        self.some_io(primary, random, 30);
        let early = random.percent(50);
        if early {
            self.world.run_for_ms(random.below(30));
            self.lose_connection(random);
        }
        self.some_io(primary, random, 10);
        let _begun = self.attach(node);
        self.step_on(random, 300);
        if !early {
            self.lose_connection(random);
        }
        self.some_io(primary, random, 20);
    }

    fn lose_connection(&mut self, random: &mut Random) {
        self.cuts += 1;
        if random.percent(50) {
            self.world.set_network(false);
        }
        self.world.reset_connection();
        self.world.run_for_ms(10);
    }

    /// The power fails under writes, again and again, often while meta data is on its way to the disk.
    fn crash_often(&mut self, primary: usize, random: &mut Random) {
        for _ in 0..3 {
            self.some_io(primary, random, 20);
            if random.percent(30) {
                self.lose_connection(random);
                self.some_io(primary, random, 10);
            }
            let node = if random.percent(60) { primary } else { 1 - primary };
            self.wait_for_metadata(node, random);
            self.cut_power(node);
            self.world.run_for_ms(random.below(20));
            self.mended();
            let Some(again) = self.any_primary() else { return };
            if again != primary {
                return;
            }
        }
    }

    fn wait_for_metadata(&mut self, node: usize, random: &mut Random) {
        let busy = |world: &World| {
            world.nodes[node].running.as_ref().is_some_and(|running| !running.meta_transfers.is_empty())
        };
        if random.percent(70) {
            for _ in 0..400 {
                if busy(&self.world) {
                    break;
                }
                self.world.step();
            }
        }
        self.step_on(random, 12);
    }

    /// The peer was away; it comes back, and one of them is away again before everything is in sync.
    fn crash_while_syncing(&mut self, primary: usize, random: &mut Random) {
        for _ in 0..2 {
            self.world.set_network(false);
            self.world.reset_connection();
            self.world.run_for_ms(20);
            self.some_io(primary, random, 40);
            self.world.set_network(true);
            for _ in 0..4000 {
                if self.world.status(primary).state.conn > Conn::Connected {
                    break;
                }
                self.world.step();
            }
            self.step_on(random, 600);
            if random.percent(40) {
                self.some_io(primary, random, 6);
            }
            match random.below(4) {
                0 => self.lose_connection(random),
                1 => self.cut_power(primary),
                _ => self.cut_power(1 - primary),
            }
            self.mended();
            if self.any_primary() != Some(primary) {
                return;
            }
        }
    }

    /// The peer's data is given up, and one of them loses its power before it has been copied anew.
    fn crash_while_invalidating(&mut self, primary: usize, random: &mut Random) {
        if self.world.config.sectors > 100_000 {
            return;
        }
        let victim = 1 - primary;
        self.invalidating.insert(self.volume(), victim);
        self.world.overwrite_allowed = true;
        let (node, request) = match random.percent(50) {
            true => (victim, AdminRequest::Invalidate { volume: self.volume() }),
            false => (primary, AdminRequest::InvalidateRemote { volume: self.volume() }),
        };
        self.ask(node, Asked::Other, request);
        self.step_on(random, 400);
        if random.percent(30) {
            self.some_io(primary, random, 6);
        }
        match random.below(3) {
            0 => self.lose_connection(random),
            1 => self.cut_power(primary),
            _ => self.cut_power(victim),
        }
    }

    /// What was under way when I/O was suspended is not over when the connection is lost.
    fn lose_peer_while_suspended(&mut self, primary: usize, random: &mut Random) {
        self.some_io(primary, random, 20);
        if self.world.admin(primary, AdminRequest::SuspendIo { volume: self.volume() }) != 1 {
            return;
        }
        self.step_on(random, 30);
        self.lose_connection(random);
        if random.percent(30) {
            self.cut_power(1 - primary);
        }
        self.world.run_for_ms(random.below(40));
        if random.percent(50) {
            self.ask(primary, Asked::Other, AdminRequest::ResumeIo { volume: self.volume() });
            self.some_io(primary, random, 10);
        }
    }

    /// The device grows under writes.
    fn grow_once(&mut self, primary: usize, random: &mut Random) {
        self.some_io(primary, random, 10);
        self.world.run_for_ms(100);
        self.grow(random.below(2) as usize);
        self.some_io(primary, random, 20);
    }
}
