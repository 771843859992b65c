// SPDX-License-Identifier: GPL-2.0
//! How far a resync or verify run got, and how fast: the figures of `/proc/drbd`.
//!
//! Eight samples of what was left, at least three seconds apart. No sample is taken while nothing gets done, so the
//! age of the samples shows a run that is stuck.
// spec: proc-and-sysfs 1.3; wire-protocol 8.9

use core::fmt;
use core::num::NonZeroU64;

/// Number of samples.
const MARKS: usize = 8;
/// Time between two samples.
const MARK_STEP_MS: u64 = 3000;
/// A run whose samples are older than this is stuck.
const STALLED_S: u64 = 180;

#[derive(Clone, Copy, Debug)]
struct Mark {
    left_bits: u64,
    time_ms: u64,
}

/// The progress of one run. Amounts are in bits of the bitmap (4 KiB), times in milliseconds of a monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    total_bits: u64,
    start_ms: u64,
    paused_ms: u64,
    marks: [Mark; MARKS],
    last_mark: usize,
}

impl Default for Progress {
    /// No run.
    fn default() -> Self {
        Progress::new(0, 0)
    }
}

/// How long a run took, and how fast it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Time from the beginning to the end, with pauses, in seconds; what ran for less than a second counts as one that ran for one.
    pub seconds: u64,
    /// Time in which it was paused, in seconds.
    pub paused_seconds: u64,
    /// Average speed while it ran, in KiB/s.
    pub speed_kib: u64,
}

// In the form that programs look for in the kernel log. spec: proc-and-sysfs 7
impl fmt::Display for Pace {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Pace { seconds, paused_seconds, speed_kib } = self;
        write!(out, "(total {seconds} sec; paused {paused_seconds} sec; {speed_kib} K/sec)")
    }
}

/// What is shown about a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// Bits to do when the run started.
    pub total_bits: u64,
    /// Bits left, never more than `total_bits`.
    pub left_bits: u64,
    /// Part done, in thousandths.
    pub permille: u32,
    /// Estimated time to the end, in seconds.
    pub finish_s: u64,
    /// Speed over about the last 18 seconds, in KiB/s.
    pub speed_kib: u64,
    /// Speed over about the last 3 seconds, in KiB/s.
    pub short_speed_kib: u64,
    /// Average speed since the start, without pauses, in KiB/s.
    pub average_speed_kib: u64,
    /// Nothing got done for more than three minutes.
    pub is_stalled: bool,
}

impl Progress {
    /// A run with so much to do begins.
    pub fn new(total_bits: u64, now_ms: u64) -> Progress {
        let mark = Mark { left_bits: total_bits, time_ms: now_ms };
        Progress { total_bits, start_ms: now_ms, paused_ms: 0, marks: [mark; MARKS], last_mark: 0 }
    }

    /// Bits to do when the run started.
    pub fn total_bits(&self) -> u64 {
        self.total_bits
    }

    /// The run was paused for so long. Averages leave that out; the samples begin anew.
    pub fn add_pause(&mut self, left_bits: u64, paused_ms: u64, now_ms: u64) {
        self.paused_ms = self.paused_ms.saturating_add(paused_ms);
        self.marks = [Mark { left_bits, time_ms: now_ms }; MARKS];
    }

    /// Takes a sample if it is time for one. To be called whenever something was done; not while paused.
    pub fn advance(&mut self, left_bits: u64, now_ms: u64) {
        let last = self.mark(self.last_mark);
        if now_ms.saturating_sub(last.time_ms) < MARK_STEP_MS || left_bits == last.left_bits {
            return;
        }
        self.last_mark = (self.last_mark + 1) % MARKS;
        if let Some(mark) = self.marks.get_mut(self.last_mark) {
            *mark = Mark { left_bits, time_ms: now_ms };
        }
    }

    /// The figures with `left_bits` to do: for a resync the dirty bits less the failed ones, for a verify run the
    /// blocks not yet looked at.
    pub fn figures(&self, left_bits: u64, now_ms: u64) -> Figures {
        let total_bits = self.total_bits;
        let (left_bits, permille) = if left_bits <= total_bits {
            (left_bits, permille(left_bits, total_bits))
        } else {
            (total_bits, if total_bits == 0 { 1000 } else { 0 })
        };
        let (done_bits, age_s) = self.since(2, left_bits, now_ms);
        let (short_bits, short_s) = self.since(7, left_bits, now_ms);
        Figures {
            total_bits,
            left_bits,
            permille,
            finish_s: age_s.max(1).saturating_mul(left_bits / (done_bits / 100 + 1)) / 100,
            speed_kib: kib(per_second(done_bits, age_s)),
            short_speed_kib: kib(per_second(short_bits, short_s)),
            average_speed_kib: self.average_speed_kib(left_bits, now_ms),
            is_stalled: age_s > STALLED_S,
        }
    }

    /// The run ends, with `left_bits` that it could not do.
    pub fn pace(&self, left_bits: u64, now_ms: u64) -> Pace {
        let running_seconds = (self.running_ms(now_ms) / 1000).max(1);
        let paused_seconds = self.paused_ms / 1000;
        Pace {
            seconds: running_seconds.saturating_add(paused_seconds),
            paused_seconds,
            speed_kib: self.average_speed_kib(left_bits, now_ms),
        }
    }

    /// Time since the start without pauses.
    fn running_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.start_ms).saturating_sub(self.paused_ms)
    }

    fn average_speed_kib(&self, left_bits: u64, now_ms: u64) -> u64 {
        kib(per_second(self.total_bits.saturating_sub(left_bits), self.running_ms(now_ms) / 1000))
    }

    /// The speed that is compared with `c-min-rate`, in KiB/s. spec: wire-protocol 8.9
    pub fn throttle_rate_kib(&self, left_bits: u64, now_ms: u64) -> u64 {
        let (done_bits, age_s) = self.since(MARKS - 1, left_bits, now_ms);
        kib(per_second(done_bits, age_s))
    }

    /// Bits done, and seconds gone, since the sample `steps` after the last one in the ring.
    fn since(&self, steps: usize, left_bits: u64, now_ms: u64) -> (u64, u64) {
        let mark = self.mark((self.last_mark + steps) % MARKS);
        (mark.left_bits.saturating_sub(left_bits), now_ms.saturating_sub(mark.time_ms) / 1000)
    }

    fn mark(&self, index: usize) -> Mark {
        self.marks.get(index).copied().unwrap_or(Mark { left_bits: 0, time_ms: 0 })
    }
}

/// What began less than a second ago counts as a second old.
fn per_second(amount: u64, seconds: u64) -> u64 {
    amount / NonZeroU64::new(seconds).unwrap_or(NonZeroU64::MIN)
}

/// `left` is at most `total`.
fn permille(left: u64, total: u64) -> u32 {
    let shift = if total > u64::from(u32::MAX) { 16 } else { 10 };
    let still_to_do = (left >> shift).saturating_mul(1000) / (1 + (total >> shift));
    1000u32.saturating_sub(still_to_do as u32)
}

fn kib(bits: u64) -> u64 {
    bits.saturating_mul(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_just_started() {
        let figures = Progress::new(2_097_152, 5000).figures(2_097_152, 5000);
        // 2048 * 1000 / 2049 = 999
        assert_eq!((figures.permille, figures.speed_kib, figures.average_speed_kib), (1, 0, 0));
        assert_eq!(figures.finish_s, 20971);
        assert!(!figures.is_stalled);
    }

    #[test]
    fn the_speed_leaves_pauses_out() {
        let mut progress = Progress::new(2560, 1000);
        progress.add_pause(1280, 7000, 12_000);
        let pace = progress.pace(0, 13_500);
        assert_eq!(pace, Pace { seconds: 12, paused_seconds: 7, speed_kib: 2048 });
        assert_eq!(pace.to_string(), "(total 12 sec; paused 7 sec; 2048 K/sec)");
        // What failed was not done; a run of no time has a speed as well.
        let pace = Progress::new(2560, 1000).pace(2000, 1000);
        assert_eq!(pace, Pace { seconds: 1, paused_seconds: 0, speed_kib: 2240 });
    }

    #[test]
    fn permille_at_the_edges() {
        for (left, total, expected) in [
            (0, 0, 1000),
            (1, 0, 1000),
            (11, 10, 0),
            (10, 10, 1000),
            (0, 1 << 30, 1000),
            (1 << 20, 1 << 21, 501),
            (1 << 33, 1 << 34, 501),
            (u64::MAX, u64::MAX, 1),
        ] {
            assert_eq!(Progress::new(total, 0).figures(left, 0).permille, expected, "{left}/{total}");
        }
        assert_eq!(Progress::new(10, 0).figures(11, 0).left_bits, 10);
    }

    /// 1000 bits a second, looked at every second.
    fn steady(seconds: u64) -> Progress {
        let mut progress = Progress::new(100_000, 0);
        for second in 0..=seconds {
            progress.advance(100_000 - 1000 * second, second * 1000);
        }
        progress
    }

    #[test]
    fn a_steady_run_shows_its_speed() {
        let figures = steady(50).figures(50_000, 50_000);
        assert_eq!((figures.speed_kib, figures.short_speed_kib, figures.average_speed_kib), (4000, 4000, 4000));
        // The last sample is 2 s old, the sample two further in the ring 18 s more: 20 * (50000 / 201) / 100.
        assert_eq!(figures.finish_s, 49);
        assert_eq!(steady(50).throttle_rate_kib(50_000, 50_000), 4000);
    }

    #[test]
    fn samples_are_three_seconds_apart() {
        let progress = steady(50);
        let mut times: Vec<u64> = progress.marks.iter().map(|mark| mark.time_ms).collect();
        times.sort_unstable();
        assert_eq!(times, [27_000, 30_000, 33_000, 36_000, 39_000, 42_000, 45_000, 48_000]);
    }

    #[test]
    fn a_stuck_run_is_stalled() {
        let mut progress = steady(50);
        for second in 51..300 {
            progress.advance(50_000, second * 1000);
        }
        // At 51 s one more sample was due, as 50000 is less than the 52000 of the last; from then on nothing.
        assert!(!progress.figures(50_000, 213_000).is_stalled);
        assert!(progress.figures(50_000, 214_000).is_stalled);
        let figures = progress.figures(50_000, 300_000);
        // Two after the newest sample, that of 51 s, the ring has the one of 33 s.
        assert_eq!(figures.speed_kib, 4 * ((67_000 - 50_000) / (300 - 33)));
    }

    #[test]
    fn pauses_do_not_count() {
        let mut progress = steady(50);
        progress.add_pause(50_000, 40_000, 90_000);
        let figures = progress.figures(40_000, 100_000);
        assert_eq!((figures.speed_kib, figures.average_speed_kib), (4000, 4000));
    }

    #[test]
    fn writes_during_a_resync_never_make_a_negative_speed() {
        let mut progress = steady(20);
        progress.advance(95_000, 24_000);
        let figures = progress.figures(96_000, 24_500);
        assert_eq!((figures.short_speed_kib, figures.permille), (0, 1000 - 93 * 1000 / 98));
        // A clock that went backwards.
        assert_eq!(progress.figures(96_000, 0).average_speed_kib, 16_000);
    }
}
