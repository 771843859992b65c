//! Power cuts and link cuts at random, of either side, while writers write: whatever was acknowledged is there afterwards,
//! and both halves are the same.
//!
//! The program plays the cluster manager, and plays it by the book: the second machine is made primary only when the first is
//! known to be dead, and only when it has everything the first acknowledged. Who wrote alone has begun a new data
//! generation before it acknowledged anything; that is read from the disk of the dead machine.

use crate::acks::Acks;
use crate::config::Config;
use crate::guest::{Workload, Writer};
use crate::pair::{Pair, Pairing, DISK_MIB, RESYNC, SOON};
use crate::pattern::Random;
use anyhow::{bail, Context, Result};
use lab::{stretched, Direction, Disk, Machine, Process, Quality};
use std::fmt::{self, Display};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

/// Sectors of the writers of short and of long writes. Behind them, blocks are zeroed and discarded.
const SHORT_SECTORS: u64 = 20 << 11;
const LONG_SECTORS: u64 = 20 << 11;
const ZEROED_MIB: u64 = 44;

/// Numbers of writes that each new writer may use.
const SEQUENCES: u64 = 1_000_000;

/// How long a link may be cut: shorter than, about as long as, and longer than the peer's silence is tolerated.
const LONGEST_CUT_MS: u64 = 9000;

/// From the end of the partition to its superblock, and in it to the bitmap's generation.
const SUPERBLOCK_BYTES: u64 = 4096;
const BITMAP_UUID_AT: u64 = 16;

/// What is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The primary's power.
    Primary,
    /// The secondary's power.
    Secondary,
    /// The power of both at the same moment.
    Both,
    /// The link, in one direction or both, for a while.
    Link,
    /// The link, and then the power of the primary.
    LinkThenPrimary,
    /// The link, and then the power of the secondary.
    LinkThenSecondary,
}

/// All kinds; each comes once, in random order, before one comes again.
const CUTS: [Cut; 6] =
    [Cut::Primary, Cut::Secondary, Cut::Both, Cut::Link, Cut::LinkThenPrimary, Cut::LinkThenSecondary];

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Who runs what.
    pub pairing: Pairing,
    /// How many cuts.
    pub cuts: u32,
    /// What is cut and when follows from it; what the machines make of it does not.
    pub seed: u64,
}

/// What has happened so far.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Cuts that were recovered from.
    pub cuts: u32,
    /// Times that the other machine took over after a power cut.
    pub take_overs: u32,
    /// Times that everything was compared.
    pub checks: u32,
    /// Acknowledged writes, each of them checked.
    pub writes: u64,
    /// What they wrote.
    pub kib: u64,
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { cuts, take_overs, checks, writes, kib } = self;
        write!(f, "{cuts} cuts, {take_overs} take-overs, {checks} checks, {writes} writes of {} MiB", kib >> 10)
    }
}

/// Cuts, recovers and checks until the plan is carried out. `tell` hears of every cut before and of every recovery after it.
pub fn run(plan: Plan, tell: &mut dyn FnMut(&Report, &str)) -> Result<Report> {
    let config = Config::default();
    let pair = Pair::mirrored(plan.pairing, &config)?;
    let mut torture = Torture {
        pair: &pair,
        config,
        random: Random::new(plan.seed),
        primary: 0,
        acks: Acks::default(),
        next: 1,
        load: None,
        report: Report::default(),
    };
    torture.start_load()?;
    let mut kinds = Vec::new();
    for number in 1..=plan.cuts {
        if kinds.is_empty() {
            kinds.extend(CUTS);
        }
        let kind = kinds.swap_remove(torture.below(kinds.len() as u64) as usize);
        let what = format!("cut {number}: {kind:?}, primary is {}", torture.primary().name());
        tell(&torture.report, &what);
        let outcome = torture.cut(kind).and_then(|()| torture.go_on(number == plan.cuts));
        outcome.with_context(|| format!("seed {}, {what}", plan.seed))?;
        torture.report.cuts += 1;
        tell(&torture.report, "recovered");
    }
    torture.stop_load()?;
    let report = torture.report;
    pair.one_by_one("drbdadm down r0")?;
    pair.finish()?;
    Ok(report)
}

/// What writes.
struct Load {
    writers: [Writer; 2],
    zeroes: Process,
}

struct Torture<'a> {
    pair: &'a Pair,
    config: Config,
    random: Random,
    primary: usize,
    /// Everything that was promised.
    acks: Acks,
    /// The first number of the next writer.
    next: u64,
    load: Option<Load>,
    report: Report,
}

impl Torture<'_> {
    fn below(&mut self, limit: u64) -> u64 {
        self.random.below(limit)
    }

    fn pause(&mut self, longest_ms: u64) {
        thread::sleep(Duration::from_millis(self.random.below(longest_ms)));
    }

    fn primary(&self) -> &Machine {
        &self.pair.machines()[self.primary]
    }

    fn secondary(&self) -> &Machine {
        &self.pair.machines()[1 - self.primary]
    }

    // The load.

    fn start_load(&mut self) -> Result<()> {
        let seed = self.random.next_word() % 100_000;
        let mut first = || {
            let first = self.next;
            self.next += SEQUENCES;
            first
        };
        let short = Workload { sectors: SHORT_SECTORS, longest: 64, seed, first: first(), ..Workload::default() };
        let long = Workload {
            start: SHORT_SECTORS,
            sectors: LONG_SECTORS,
            threads: 2,
            align: 8,
            longest: 2048,
            seed,
            first: first(),
            ..Workload::default()
        };
        let machine = self.primary();
        let zeroes = format!(
            "n={seed}; while :; do n=$((n * 75 % 65537)); at=$((({ZEROED_MIB} << 20) + n % 3000 * 4096)); \
             dd if=/dev/urandom of=/dev/drbd0 oflag=direct,seek_bytes seek=$at bs=64k count=1 status=none || exit 1; \
             blkdiscard $([ $((n % 2)) = 0 ] && echo -z) -o $((at + 8192)) -l 16384 /dev/drbd0 || exit 1; sleep 0.1; done"
        );
        self.load =
            Some(Load { writers: [short.spawn(machine)?, long.spawn(machine)?], zeroes: machine.spawn(&zeroes)? });
        self.wait_writes(20)
    }

    fn wait_writes(&self, writes: u64) -> Result<()> {
        self.load.iter().flat_map(|load| &load.writers).try_for_each(|writer| writer.wait_more(writes, RESYNC))
    }

    /// Ends the writers; none of their writes may have failed.
    fn stop_load(&mut self) -> Result<()> {
        let Some(Load { writers, zeroes }) = self.load.take() else { return Ok(()) };
        if !zeroes.running() {
            let output = zeroes.wait(stretched(SOON))?;
            bail!("{}: zeroing blocks failed: {output}", self.primary().name());
        }
        zeroes.kill()?;
        for writer in writers {
            let acks = writer.stop()?;
            self.promised(&acks);
        }
        Ok(())
    }

    /// The machine of the writers is dead: what it had promised counts.
    fn load_died(&mut self) -> Result<()> {
        let Some(Load { writers, .. }) = self.load.take() else { return Ok(()) };
        for writer in writers {
            let acks = writer.last_words()?;
            self.promised(&acks);
        }
        Ok(())
    }

    fn promised(&mut self, acks: &Acks) {
        self.acks.merge(acks);
        self.report.writes = self.acks.writes();
        self.report.kib = self.acks.kib();
    }

    // The cuts.

    fn cut(&mut self, kind: Cut) -> Result<()> {
        self.pause(2000);
        let wire = self.pair.cluster().wire();
        match kind {
            Cut::Primary => self.primary_lost(),
            Cut::Secondary => self.secondary_lost(),
            Cut::Both => self.both_lost(),
            Cut::Link => {
                self.cut_link();
                self.pause(LONGEST_CUT_MS);
                wire.restore();
                self.rejoin()
            }
            Cut::LinkThenPrimary => {
                self.cut_link();
                self.pause(LONGEST_CUT_MS);
                self.primary_lost()
            }
            Cut::LinkThenSecondary => {
                self.cut_link();
                self.pause(LONGEST_CUT_MS);
                self.secondary_lost()
            }
        }
    }

    fn cut_link(&mut self) {
        let wire = self.pair.cluster().wire();
        let cut = Quality { cut: true, ..Quality::GOOD };
        match self.below(3) {
            0 => wire.set(Direction::Forward, cut),
            1 => wire.set(Direction::Backward, cut),
            _ => wire.cut(),
        }
    }

    fn primary_lost(&mut self) -> Result<()> {
        self.primary().power_cut()?;
        self.load_died()?;
        self.pair.cluster().wire().restore();
        let (lost, other) = (self.primary(), self.secondary());
        let state =
            self.pair.wait(other, SOON, "the loss of the peer", |device| device.connection == "WFConnection")?;
        let may_take_over = state.disks.starts_with("UpToDate/") && bitmap_uuid(lost)? == 0;
        if may_take_over {
            other.run_ok("drbdadm primary r0")?;
            self.primary = 1 - self.primary;
            self.report.take_overs += 1;
            self.acks.check(&self.pair.scan(self.primary(), SHORT_SECTORS + LONG_SECTORS)?)?;
            self.start_load()?;
            self.pair.power_on(self.secondary(), &self.config)?;
            self.secondary().run_ok("drbdadm up r0")?;
            return self.rejoin();
        }
        self.pair.power_on(self.primary(), &self.config)?;
        self.primary().run_ok("drbdadm up r0")?;
        self.rejoin()?;
        self.primary().run_ok("drbdadm primary r0")?;
        self.start_load()
    }

    fn secondary_lost(&mut self) -> Result<()> {
        self.secondary().power_cut()?;
        self.pause(5000);
        self.pair.cluster().wire().restore();
        self.pair.power_on(self.secondary(), &self.config)?;
        self.secondary().run_ok("drbdadm up r0")?;
        self.rejoin()
    }

    fn both_lost(&mut self) -> Result<()> {
        self.primary().power_cut()?;
        self.secondary().power_cut()?;
        self.load_died()?;
        let (pair, config) = (self.pair, &self.config);
        thread::scope(|scope| {
            let other = scope.spawn(|| pair.power_on(pair.second(), config));
            pair.power_on(pair.first(), config)?;
            other.join().unwrap_or_else(|_| bail!("switching on the second machine panicked"))
        })?;
        pair.both("drbdadm up r0")?;
        self.rejoin()?;
        self.primary().run_ok("drbdadm primary r0")?;
        self.start_load()
    }

    /// Waits until the two have found each other again.
    fn rejoin(&self) -> Result<()> {
        for machine in self.pair.machines() {
            let device = self.pair.wait(machine, RESYNC, "a connection", |device| {
                ["Connected", "StandAlone"].contains(&&*device.connection) || device.connection.starts_with("Sync")
            })?;
            if device.connection == "StandAlone" {
                bail!("{} does not want to connect: {device:?}\n{}", machine.name(), machine.console().tail(20));
            }
        }
        if self.load.is_some() {
            self.wait_writes(5)?;
        }
        Ok(())
    }

    // What follows a cut.

    /// The next cut comes at once, or everything is checked first.
    fn go_on(&mut self, last: bool) -> Result<()> {
        if !last && self.below(3) == 0 {
            return Ok(());
        }
        self.check()?;
        if self.below(3) == 0 {
            self.pair.hand_over(self.primary(), self.secondary())?;
            self.primary = 1 - self.primary;
        }
        self.start_load()
    }

    /// Both halves are the same, and hold what was promised.
    fn check(&mut self) -> Result<()> {
        self.pair.wait_in_sync(RESYNC)?;
        self.stop_load()?;
        // A connection may have been lost on a busy host meanwhile.
        self.pair.wait_in_sync(RESYNC)?;
        self.pair.compare_disks()?;
        self.acks.check(&self.pair.scan(self.primary(), SHORT_SECTORS + LONG_SECTORS)?)?;
        self.report.checks += 1;
        self.pair.cluster().check_consoles()
    }
}

/// The bitmap's generation in the superblock of a machine's lower disk: not 0 when it has data that its peer does not have.
fn bitmap_uuid(machine: &Machine) -> Result<u64> {
    let path = machine.disk_file("sdb");
    let disk = Disk::partitioned(DISK_MIB);
    let at = disk.start_bytes() + disk.size_bytes() - SUPERBLOCK_BYTES + BITMAP_UUID_AT;
    let mut bytes = [0; 8];
    File::open(&path)
        .and_then(|file| file.read_exact_at(&mut bytes, at))
        .with_context(|| format!("reading {}", path.display()))?;
    Ok(u64::from_be_bytes(bytes))
}
