// SPDX-License-Identifier: GPL-2.0
//! How much the target of a resync (or the source of a verify run) asks for in each turn of 0.1 s.
//!
//! The controller plans ahead: what is missing to the wanted amount of data on its way is spread evenly over the next
//! `c_plan_ahead` turns, and each turn takes its part of all the plans made so far. Integer arithmetic throughout, with
//! divisions toward zero, so that both implementations arrive at the same numbers.
// spec: wire-protocol 8.9; state-machine 17.4

/// Largest `c_plan_ahead`, in turns.
pub const MAX_PLAN_AHEAD: usize = 300;
/// Turns per second.
const TURNS_PER_SECOND: u64 = 10;
/// Sectors per block of 4 KiB.
const BLOCK_SECTORS: i64 = 8;
/// Foreign I/O on the backing device, in sectors, that counts as activity.
const ACTIVITY_SECTORS: i64 = 64;

/// The options that control the rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateConfig {
    /// Fixed rate, and the first guess of the controller, in KiB/s.
    pub resync_rate_kib: u32,
    /// Turns (of 0.1 s) to plan ahead, at most [`MAX_PLAN_AHEAD`]; 0: fixed rate.
    pub c_plan_ahead: u32,
    /// Wanted delay between request and answer, in 0.1 s; counts when `c_fill_target_sectors` is 0.
    pub c_delay_target: u32,
    /// Wanted amount of data on its way, in sectors; 0: use the delay.
    pub c_fill_target_sectors: u32,
    /// Upper limit in KiB/s.
    pub c_max_rate_kib: u32,
    /// Pages the peer connection may use; half of them for resync.
    pub max_buffers: u32,
}

impl Default for RateConfig {
    fn default() -> Self {
        RateConfig {
            resync_rate_kib: 250,
            c_plan_ahead: 20,
            c_delay_target: 10,
            c_fill_target_sectors: 100,
            c_max_rate_kib: 102_400,
            max_buffers: 2048,
        }
    }
}

/// The rate controller of one volume.
pub struct Controller {
    config: RateConfig,
    /// Ring of corrections planned for the coming turns; `config.c_plan_ahead` of them are in use.
    plan: [i32; MAX_PLAN_AHEAD],
    plan_next: usize,
    plan_total: i64,
    inflight_sectors: i64,
    target_rate_kib: u32,
}

impl Controller {
    /// A controller at the start of a run.
    pub fn new(config: RateConfig) -> Controller {
        let mut controller = Controller {
            config,
            plan: [0; MAX_PLAN_AHEAD],
            plan_next: 0,
            plan_total: 0,
            inflight_sectors: 0,
            target_rate_kib: 0,
        };
        controller.configure(config);
        controller
    }

    /// Takes other options. The plan is kept unless its length changes.
    pub fn configure(&mut self, config: RateConfig) {
        let c_plan_ahead = config.c_plan_ahead.min(MAX_PLAN_AHEAD as u32);
        if c_plan_ahead != self.config.c_plan_ahead {
            self.forget_plan();
        }
        self.config = RateConfig { c_plan_ahead, ..config };
    }

    /// A new run begins: nothing planned, nothing on its way.
    pub fn reset(&mut self) {
        self.forget_plan();
        self.inflight_sectors = 0;
        self.target_rate_kib = 0;
    }

    /// One turn: `in_sectors` have arrived since the last one. Returns how many blocks of 4 KiB the rate allows until the
    /// next turn; report with [`Controller::requested`] how many were. How many may be under way at a time is another
    /// question: [`Controller::room`].
    pub fn turn(&mut self, in_sectors: u64) -> u32 {
        let in_sectors = i64::try_from(in_sectors).unwrap_or(i64::MAX / 4).min(i64::MAX / 4);
        self.inflight_sectors = self.inflight_sectors.saturating_sub(in_sectors);
        let blocks = if self.config.c_plan_ahead > 0 {
            let blocks = self.planned_sectors(in_sectors) / BLOCK_SECTORS;
            self.target_rate_kib = u32::try_from(blocks.saturating_mul(40)).unwrap_or(u32::MAX);
            blocks
        } else {
            self.target_rate_kib = self.config.resync_rate_kib;
            i64::from(self.config.resync_rate_kib / 40)
        };
        u32::try_from(blocks.max(0)).unwrap_or(u32::MAX)
    }

    /// How many more blocks may be requested while so many are under way: half of max-buffers. Looked at whenever an
    /// answer arrives, not only every turn, so that a fast network is not held up by the clock.
    pub fn room(&self, blocks_in_flight: u32) -> u32 {
        (self.config.max_buffers / 2).saturating_sub(blocks_in_flight)
    }

    /// So many blocks were requested in this turn.
    pub fn requested(&mut self, blocks: u32) {
        self.inflight_sectors = self.inflight_sectors.saturating_add(i64::from(blocks) * BLOCK_SECTORS);
    }

    /// Sectors requested and not yet arrived, as of the last turn.
    pub fn inflight_sectors(&self) -> i64 {
        self.inflight_sectors
    }

    /// The rate aimed at in the last turn, in KiB/s: the `want` of `/proc/drbd`.
    pub fn target_rate_kib(&self) -> u32 {
        self.target_rate_kib
    }

    /// What the controller asks for in this turn, in sectors.
    fn planned_sectors(&mut self, in_sectors: i64) -> i64 {
        let steps = i64::from(self.config.c_plan_ahead);
        let want = if self.inflight_sectors.saturating_add(in_sectors) == 0 {
            sectors_per_turn(self.config.resync_rate_kib) * steps
        } else if self.config.c_fill_target_sectors != 0 {
            i64::from(self.config.c_fill_target_sectors)
        } else {
            in_sectors.saturating_mul(i64::from(self.config.c_delay_target))
        };
        let correction = want.saturating_sub(self.inflight_sectors).saturating_sub(self.plan_total);
        self.plan_correction(correction / steps);
        let this_turn = self.take_next();
        in_sectors.saturating_add(this_turn).clamp(0, sectors_per_turn(self.config.c_max_rate_kib))
    }

    /// Adds a correction to every turn of the plan.
    fn plan_correction(&mut self, per_step: i64) {
        let steps = self.config.c_plan_ahead as usize;
        let per_step = per_step.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32;
        for planned in self.plan.iter_mut().take(steps) {
            *planned = planned.saturating_add(per_step);
        }
        self.plan_total = self.plan.iter().take(steps).map(|planned| i64::from(*planned)).sum();
    }

    /// The part of the plan that is due, replaced by nothing.
    fn take_next(&mut self) -> i64 {
        let due = self.plan.get_mut(self.plan_next).map_or(0, core::mem::take);
        self.plan_next += 1;
        if self.plan_next >= self.config.c_plan_ahead as usize {
            self.plan_next = 0;
        }
        self.plan_total -= i64::from(due);
        i64::from(due)
    }

    fn forget_plan(&mut self) {
        self.plan.fill(0);
        self.plan_next = 0;
        self.plan_total = 0;
    }
}

/// Sectors in a turn of 0.1 s at a rate in KiB/s.
fn sectors_per_turn(rate_kib: u32) -> i64 {
    (u64::from(rate_kib) * 2 / TURNS_PER_SECOND) as i64
}

/// Notices I/O on the backing device that is not the resync's own.
#[derive(Clone, Copy, Debug, Default)]
pub struct ActivityMeter {
    accounted_sectors: i64,
}

impl ActivityMeter {
    /// True when application I/O waits for the activity log, or more than 64 sectors went over the backing device that
    /// were neither the resync's nor accounted for by an earlier `true`.
    pub fn is_busy(&mut self, waiting_for_log: bool, backing_sectors: u64, own_resync_sectors: u64) -> bool {
        // The counters only ever grow and may wrap.
        let foreign = backing_sectors.wrapping_sub(own_resync_sectors) as i64;
        let busy = waiting_for_log || foreign.wrapping_sub(self.accounted_sectors) > ACTIVITY_SECTORS;
        if busy {
            self.accounted_sectors = foreign;
        }
        busy
    }

    /// Everything up to now is accounted for: a run begins.
    pub fn reset(&mut self, backing_sectors: u64, own_resync_sectors: u64) {
        self.accounted_sectors = backing_sectors.wrapping_sub(own_resync_sectors) as i64;
    }
}

/// Whether resync must hold back in favour of application I/O: `recent_rate_kib` (see
/// [`super::Progress::throttle_rate_kib`]) exceeds `c_min_rate_kib` while the disk is busy. 0: never.
pub fn must_throttle(c_min_rate_kib: u32, is_busy: bool, recent_rate_kib: u64) -> bool {
    c_min_rate_kib != 0 && is_busy && recent_rate_kib > u64::from(c_min_rate_kib)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_rate() {
        let mut controller = Controller::new(RateConfig { c_plan_ahead: 0, ..RateConfig::default() });
        assert_eq!(controller.turn(0), 6);
        controller.requested(6);
        assert_eq!(controller.inflight_sectors(), 48);
        assert_eq!(controller.turn(40), 6);
        assert_eq!(controller.inflight_sectors(), 8);
        assert_eq!(controller.target_rate_kib(), 250);
    }

    #[test]
    fn first_turn_spreads_the_configured_rate() {
        let mut controller = Controller::new(RateConfig::default());
        // want = 50 * 20 = 1000 sectors in 20 steps: 50 sectors = 6 blocks in this turn.
        assert_eq!(controller.turn(0), 6);
        assert_eq!(controller.target_rate_kib(), 240);
        controller.requested(6);
        // 48 arrived: want 100, nothing in flight, 950 planned. -850 / 20 = -42; 48 + 50 - 42 = 56 sectors.
        assert_eq!(controller.turn(48), 7);
        controller.requested(7);
        // 950 - 840 - 8 = 102 planned, 40 of 56 arrived: (100 - 16 - 102) / 20 = 0; 40 + 8 = 48 sectors.
        assert_eq!(controller.turn(40), 6);
    }

    /// The formulas once more, written down naively.
    struct Model {
        plan: Vec<i64>,
        inflight: i64,
    }

    impl Model {
        fn turn(&mut self, config: &RateConfig, input: i64) -> i64 {
            self.inflight -= input;
            let steps = self.plan.len() as i64;
            let want = if self.inflight + input == 0 {
                (i64::from(config.resync_rate_kib) * 2 / 10) * steps
            } else if config.c_fill_target_sectors != 0 {
                i64::from(config.c_fill_target_sectors)
            } else {
                input * i64::from(config.c_delay_target)
            };
            let correction = (want - self.inflight - self.plan.iter().sum::<i64>()) / steps;
            self.plan.iter_mut().for_each(|planned| *planned += correction);
            let due = self.plan.remove(0);
            self.plan.push(0);
            let request = (input + due).max(0).min(i64::from(config.c_max_rate_kib) * 2 / 10);
            request / 8
        }
    }

    #[test]
    fn agrees_with_the_formulas_over_long_runs() {
        let mut seed = 0x5EED_0004u64;
        let mut below = move |limit: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % limit
        };
        for run in 0..60 {
            let config = RateConfig {
                resync_rate_kib: 1 + below(100_000) as u32,
                c_plan_ahead: 1 + below(300) as u32,
                c_delay_target: 1 + below(100) as u32,
                c_fill_target_sectors: if run % 2 == 0 { 0 } else { below(100_000) as u32 },
                c_max_rate_kib: 250 + below(1_000_000) as u32,
                max_buffers: 32 + below(100_000) as u32,
            };
            let mut controller = Controller::new(config);
            let mut model = Model { plan: vec![0; config.c_plan_ahead as usize], inflight: 0 };
            for turn in 0..500 {
                let input = below(model.inflight.max(0) as u64 + 1);
                let blocks = controller.turn(input);
                assert_eq!(i64::from(blocks), model.turn(&config, input as i64), "run {run} turn {turn}");
                let requested = below(u64::from(blocks) + 1) as u32;
                controller.requested(requested);
                model.inflight += i64::from(requested) * 8;
                assert_eq!(controller.inflight_sectors(), model.inflight);
            }
        }
    }

    #[test]
    fn buffers_limit_what_is_on_its_way() {
        let config =
            RateConfig { c_plan_ahead: 0, resync_rate_kib: 4_194_304, max_buffers: 32, ..RateConfig::default() };
        let controller = Controller::new(config);
        assert_eq!(controller.room(0), 16);
        assert_eq!(controller.room(13), 3);
        assert_eq!(controller.room(100), 0);
    }

    #[test]
    fn the_maximum_rate_holds() {
        let config =
            RateConfig { c_max_rate_kib: 250, resync_rate_kib: 4_194_304, c_plan_ahead: 300, ..RateConfig::default() };
        let mut controller = Controller::new(config);
        for _ in 0..10 {
            assert!(controller.turn(0) <= 6);
        }
    }

    #[test]
    fn impossible_numbers_do_no_harm() {
        let config = RateConfig {
            resync_rate_kib: u32::MAX,
            c_plan_ahead: u32::MAX,
            c_delay_target: u32::MAX,
            c_fill_target_sectors: 0,
            c_max_rate_kib: u32::MAX,
            max_buffers: u32::MAX,
        };
        let mut controller = Controller::new(config);
        for input in [0, 1, u64::MAX, 0, u64::MAX] {
            controller.turn(input);
            controller.requested(u32::MAX);
        }
        controller.configure(RateConfig::default());
        controller.reset();
        assert_eq!(controller.turn(0), 6);
    }

    #[test]
    fn other_options_start_a_new_plan_only_when_its_length_changes() {
        let mut controller = Controller::new(RateConfig::default());
        controller.turn(0);
        assert_eq!(controller.plan_total, 950);
        controller.configure(RateConfig { c_max_rate_kib: 300, ..RateConfig::default() });
        assert_eq!(controller.plan_total, 950);
        controller.configure(RateConfig { c_plan_ahead: 10, ..RateConfig::default() });
        assert_eq!(controller.plan_total, 0);
        assert_eq!(controller.turn(0), 6);
    }

    #[test]
    fn throttling() {
        assert!(!must_throttle(0, true, u64::MAX));
        assert!(!must_throttle(250, true, 250));
        assert!(must_throttle(250, true, 251));
        assert!(!must_throttle(250, false, 251));
    }

    #[test]
    fn foreign_io_is_noticed_when_it_adds_up() {
        let mut meter = ActivityMeter::default();
        meter.reset(1000, 200);
        assert!(!meter.is_busy(false, 1064, 200));
        assert!(!meter.is_busy(false, 2064, 1200));
        assert!(meter.is_busy(false, 2065, 1200));
        assert!(!meter.is_busy(false, 2065, 1200));
        assert!(meter.is_busy(true, 2065, 1200));
    }
}
