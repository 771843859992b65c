//! What most runs do after everything is well again: short scenarios that meet on purpose what the part before meets by
//! luck. They draw from a generator of their own, so that the part before does not depend on them.

use super::*;

/// Sectors of the device that the writes are about.
const ROOM: u64 = 8192;

impl Driver {
    /// One of the scenarios that suit this run, or none.
    pub(super) fn epilogue(&mut self) {
        let mut random = Random::new(self.world.config.seed ^ 0x0e91_1096);
        self.look_at_any(&mut random);
        let Some(primary) = self.any_primary() else { return };
        let net = &self.world.config.net;
        let pulls_ahead = net.wire_protocol == WireProtocol::A && net.on_congestion == OnCongestion::PullAhead;
        let large = self.world.config.sectors > 100_000;
        match random.below(4) {
            0 | 1 if !self.dual && large => self.write_everywhere(primary, &mut random),
            0 | 1 if !self.dual && pulls_ahead => self.write_too_fast(primary, &mut random),
            0 | 1 if !self.dual => self.write_into_resync(primary, &mut random),
            2 => self.write_long(primary, &mut random),
            _ => return,
        }
        self.repair();
        self.verify();
    }

    pub(super) fn any_primary(&mut self) -> Option<usize> {
        let quiet = self.both_good() && self.asked == [Asked::Nothing; 2];
        if !quiet || (0..2).any(|node| self.world.is_suspended(node)) {
            return None;
        }
        let primary = (0..2).find(|&node| self.is_primary(node));
        primary.or_else(|| {
            let code = self.world.admin(0, AdminRequest::Primary { volume: self.volume(), force: false });
            (code == 1).then_some(0)
        })
    }

    fn write_at(&mut self, node: usize, random: &mut Random, sector: u64, count: u64) {
        let action = match random.below(8) {
            0 => Action::Read,
            1 => Action::Discard,
            2 => Action::WriteZeroes,
            3 => Action::Write { fua: true },
            _ => Action::Write { fua: false },
        };
        let sector = sector.min(self.world.config.sectors - count);
        if self.is_primary(node) && self.world.open_operations() < 200 {
            self.world.start(node, action, sector, count);
        }
    }

    /// Writes and reads of the application where a resync is busy just now, with disks that take their time, and fail.
    fn write_into_resync(&mut self, primary: usize, random: &mut Random) {
        // The Primary is the target if it has been its own disk that was away.
        let detach = AdminRequest::Detach { volume: self.volume(), force: false };
        let own = random.percent(40) && self.world.admin(primary, detach) == 1;
        let side = if own { Conn::SyncTarget } else { Conn::SyncSource };
        if !own {
            self.cuts += 1;
            self.world.set_network(false);
            self.world.reset_connection();
        }
        self.world.run_for_ms(20);
        for _ in 0..random.between(5, 20) {
            let (sector, count) = (random.below(ROOM), random.pick(&[8, 8, 40, 256, 2048]));
            self.write_at(primary, random, sector, count);
        }
        self.world.run_for_ms(20);
        if own {
            let _begun = self.attach(primary);
        } else {
            self.world.set_network(true);
        }
        for _ in 0..2000 {
            self.poll();
            if self.world.status(primary).state.conn == side {
                break;
            }
            self.world.run_for_ms(5);
        }
        for node in 0..2 {
            self.world.nodes[node].faults.slowness = random.pick(&[0, 2, 8]);
        }
        if random.percent(30) {
            self.world.nodes[1 - primary].faults.write_percent = 3;
        }
        for _ in 0..200 {
            if self.world.status(primary).state.conn != side {
                break;
            }
            let engine = self.world.engine_of(primary);
            let volume = self.volume();
            let is_set = |sector: &u64| engine.is_out_of_sync(volume, *sector) == Some(true);
            let next = (0..ROOM + 2048).step_by(8).find(is_set).unwrap_or(0);
            for _ in 0..random.between(1, 4) {
                let (beside, count) = (random.below(512), random.pick(&[1, 8, 8, 24, 128]));
                self.write_at(primary, random, (next + beside).saturating_sub(128), count);
            }
            let us = random.below(150);
            self.world.run_for_us(us);
        }
    }

    /// More than the activity log has room for; then, perhaps, the power fails.
    fn write_everywhere(&mut self, primary: usize, random: &mut Random) {
        let sectors = self.world.config.sectors;
        if random.percent(50) {
            self.cuts += 1;
            self.world.set_network(false);
            self.world.reset_connection();
            self.world.run_for_ms(20);
        }
        for _ in 0..40 {
            for _ in 0..random.between(1, 12) {
                let sector = random.below(sectors);
                self.write_at(primary, random, sector, 8);
            }
            let us = random.below(1500);
            self.world.run_for_us(us);
        }
        if random.percent(60) {
            self.cut_power(primary);
        }
    }

    /// The network stops for a while under a burst of writes, and the Primary pulls ahead.
    fn write_too_fast(&mut self, primary: usize, random: &mut Random) {
        for _ in 0..3 {
            self.world.set_direction(primary, false);
            for _ in 0..60 {
                let (sector, count) = (random.below(ROOM), random.pick(&[8, 40, 256]));
                self.write_at(primary, random, sector, count);
                let us = random.below(60);
                self.world.run_for_us(us);
            }
            self.world.set_direction(primary, true);
            for _ in 0..40 {
                let (sector, count) = (random.below(ROOM), random.pick(&[1, 8, 24]));
                self.write_at(primary, random, sector, count);
                let us = random.below(400);
                self.world.run_for_us(us);
            }
        }
    }

    /// Discards of more than any write can have, and writes in their midst.
    fn write_long(&mut self, primary: usize, random: &mut Random) {
        let sectors = self.world.config.sectors;
        for _ in 0..15 {
            let count = random.between(2049, 20_000.min(sectors));
            let sector = random.below(sectors - count + 1);
            let action = random.pick(&[Action::Discard, Action::WriteZeroes]);
            self.world.start(primary, action, sector, count);
            for _ in 0..4 {
                let within = sector + random.below(count);
                self.write_at(primary, random, within, 8);
            }
            let us = random.below(400);
            self.world.run_for_us(us);
        }
    }
}
