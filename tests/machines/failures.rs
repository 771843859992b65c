//! Disks that fail, peers that fall silent, fencing, and the programs that are run for events. What is expected is what two C
//! modules do (`LAB_INSTEAD=both`).

use anyhow::{bail, ensure};
use lab::faults::FaultyDisk;
use lab::{stretched, Machine, Module, Process};
use machine_tests::acks::Acks;
use machine_tests::config::{self, Config};
use machine_tests::guest::Workload;
use machine_tests::helpers::{self, Call};
use machine_tests::pair::{Pair, Pairing, RESYNC, SOON};
use machine_tests::{is_short, Result};
use std::thread;
use std::time::{Duration, Instant};

/// What the writers use.
const SECTORS: u64 = 24 << 11;

/// Long enough to see that something does not happen.
const A_WHILE: Duration = Duration::from_millis(2500);

macro_rules! for_each_pairing {
    ($name:ident) => {
        mod $name {
            use super::*;

            #[test]
            fn ours_with_ours() -> Result<()> {
                super::$name(Pairing::OURS)
            }

            #[test]
            fn ours_primary_c_secondary() -> Result<()> {
                super::$name(Pairing::OURS_PRIMARY)
            }

            #[test]
            fn c_primary_ours_secondary() -> Result<()> {
                super::$name(Pairing::C_PRIMARY)
            }
        }
    };
}

for_each_pairing!(failing_disks);
for_each_pairing!(silent_peers);
for_each_pairing!(fencing);

/// What the C module itself does not survive is left out where it is the first machine's.
fn first_is_c(pairing: Pairing) -> bool {
    pairing.modules[0] == Module::Stock || Pairing::is_module_replaced()
}

/// Whether to do what only the first machine's module has a part in: where time is short, that is ours.
fn with_the_firsts_own(pairing: Pairing) -> bool {
    !(is_short() && first_is_c(pairing))
}

/// A scenario's machines with the configuration and the writes so far.
struct Run<'a> {
    pair: &'a Pair,
    config: Config,
    acks: Acks,
    next: u64,
}

impl<'a> Run<'a> {
    fn new(pair: &'a Pair, config: Config) -> Run<'a> {
        Run { pair, config, acks: Acks::default(), next: 1 }
    }

    fn workload(&mut self, count: Option<u64>) -> Workload {
        let first = self.next;
        self.next += 1_000_000;
        Workload { sectors: SECTORS, longest: 128, first, seed: first, count, ..Workload::default() }
    }

    /// Writes on the first machine; none fails.
    fn write(&mut self) -> Result<()> {
        let workload = self.workload(Some(15));
        let acks = workload.run(self.pair.first(), SOON)?;
        self.acks.merge(&acks);
        Ok(())
    }

    /// What was acknowledged is read on the first machine.
    fn read(&self) -> Result<()> {
        self.acks.check(&self.pair.scan(self.pair.first(), SECTORS)?)
    }

    /// Both halves become the same again, and hold what was acknowledged.
    fn recovered(&self) -> Result<()> {
        self.pair.wait_in_sync(RESYNC)?;
        self.pair.compare_disks()?;
        self.read()?;
        self.pair.cluster().check_consoles()
    }

    /// What a machine says about the disks, its own first.
    fn wait_disks(&self, machine: &Machine, disks: &str) -> Result<()> {
        self.pair.wait(machine, SOON, &format!("disks {disks}"), |device| device.disks == disks).map(|_| ())
    }

    /// The connection is made anew.
    fn reconnect(&self) -> Result<()> {
        self.pair.second().run_ok("drbdadm disconnect --force r0")?;
        self.pair.wait(self.pair.first(), SOON, "a peer that left", |device| device.connection == "WFConnection")?;
        self.pair.second().run_ok("drbdadm connect r0").map(|_| ())
    }

    /// Changes the configuration of both while they run.
    fn adjust(&mut self, change: impl FnOnce(&mut Config)) -> Result<()> {
        change(&mut self.config);
        self.pair.configure(&self.config)?;
        self.pair.both("drbdadm adjust r0")
    }

    /// The first machine's disk is good again.
    fn attach_first(&self) -> Result<()> {
        self.pair.first().run_ok("drbdadm attach r0").map(|_| ())
    }

    fn cut(&self) -> Result<()> {
        self.pair.cluster().wire().cut();
        self.pair
            .wait(self.pair.first(), SOON, "the loss of the peer", |device| device.connection == "WFConnection")?;
        Ok(())
    }

    fn restore(&self) {
        self.pair.cluster().wire().restore();
    }
}

/// A command that writes a block on the first machine and says when it is done.
fn start_write(machine: &Machine) -> Result<Process> {
    machine.spawn("dd if=/dev/urandom of=/dev/drbd0 bs=4k count=1 seek=7000 oflag=direct status=none")
}

fn still_waits(write: &Process) -> Result<()> {
    thread::sleep(A_WHILE);
    ensure!(write.running(), "a write that should wait is done");
    Ok(())
}

fn ends_well(write: &Process, limit: Duration) -> Result<()> {
    let output = write.wait(stretched(limit))?;
    ensure!(output.success(), "the write failed: {output}");
    Ok(())
}

/// The calls of one event on a machine.
fn calls(machine: &Machine, event: &str) -> Result<Vec<Call>> {
    Ok(helpers::calls(machine)?.into_iter().filter(|call| call.event == event).collect())
}

/// Waits for so many calls of an event, and checks how the program was called.
fn called(pair: &Pair, machine: &Machine, event: &str, times: usize) -> Result<()> {
    let until = Instant::now() + stretched(SOON);
    let mut found = calls(machine, event)?;
    while found.len() < times {
        if Instant::now() > until {
            bail!("{}: {event} was called {} times, not {times}", machine.name(), found.len());
        }
        thread::sleep(Duration::from_millis(100));
        found = calls(machine, event)?;
    }
    ensure!(found.len() == times, "{}: {event} was called {} times, not {times}", machine.name(), found.len());
    let peer = if machine.name() == pair.first().name() { pair.second() } else { pair.first() };
    let object = if event.ends_with("fence-peer") { "r0" } else { "minor-0" };
    let environment = [
        "HOME=/".into(),
        "TERM=linux".into(),
        "PATH=/sbin:/usr/sbin:/bin:/usr/bin".into(),
        "DRBD_PEER_AF=ipv4".into(),
        format!("DRBD_PEER_ADDRESS={}", peer.address()),
    ];
    for call in found {
        ensure!(call.object == object, "{event}: expected the argument {object}, found {call:?}");
        let different = call.environment.len() != environment.len()
            || environment.iter().any(|variable| !call.environment.contains(variable));
        ensure!(!different, "{event}: expected the environment {environment:?}, found {:?}", call.environment);
    }
    Ok(())
}

fn forget_calls(pair: &Pair) -> Result<()> {
    pair.machines().iter().try_for_each(helpers::forget)
}

// Disks that fail.

fn failing_disks(pairing: Pairing) -> Result<()> {
    let config = Config {
        lower: "/dev/mapper/lower".into(),
        meta: "/dev/mapper/meta".into(),
        on_io_error: "pass_on".into(),
        net: "verify-alg crc32c;".into(),
        ..Config::default()
    };
    let pair = Pair::with_helper(pairing, &config)?;
    failing_disks_of(&pair, config, pairing)?;
    pair.one_by_one("drbdadm down r0; dmsetup remove lower meta")?;
    pair.finish()
}

fn failing_disks_of(pair: &Pair, config: Config, pairing: Pairing) -> Result<()> {
    let lower = [pair.first().faulty_disk("lower", "/dev/sdb1")?, pair.second().faulty_disk("lower", "/dev/sdb1")?];
    let meta = pair.first().faulty_disk("meta", "/dev/sda")?;
    pair.second().faulty_disk("meta", "/dev/sda")?;
    pair.mirror()?;
    let mut run = Run::new(pair, config);
    run.passed_on(&lower)?;
    let modules = pairing.replaced().modules;
    // A C module takes its disk for good until the verify is over.
    for ((machine, lower), _) in
        pair.machines().iter().zip(&lower).zip(modules).filter(|(_, module)| *module == Module::Ours)
    {
        run.passed_on_while_verified(machine, lower)?;
    }
    if with_the_firsts_own(pairing) {
        run.told_to_a_program(&lower[0])?;
    }
    run.detached(&lower, &meta)?;
    if with_the_firsts_own(pairing) {
        run.no_data(&lower[0])?;
    }
    Ok(())
}

impl Run<'_> {
    /// `pass_on`: the application notices nothing, because the peer reads and writes for it; the disk is Inconsistent, and the
    /// next connection repairs it.
    fn passed_on(&mut self, lower: &[FaultyDisk<'_>; 2]) -> Result<()> {
        let (first, second) = (self.pair.first(), self.pair.second());
        self.write()?;
        lower[0].fail_range(4 << 20, 4 << 20)?;
        self.read()?;
        self.wait_disks(first, "Inconsistent/UpToDate")?;
        lower[0].heal()?;
        self.reconnect()?;
        self.recovered()?;

        lower[0].fail_writes()?;
        self.write()?;
        self.wait_disks(first, "Inconsistent/UpToDate")?;
        self.read()?;
        lower[0].heal()?;
        self.reconnect()?;
        self.recovered()?;

        lower[1].fail_writes()?;
        self.write()?;
        self.wait_disks(second, "Inconsistent/UpToDate")?;
        lower[1].heal()?;
        self.reconnect()?;
        self.recovered()
    }

    /// The same in the middle of an online verify, whoever began it: it ends for the node whose disk that is. (A C module goes on with it
    /// until it hears of the disk.)
    fn passed_on_while_verified(&mut self, machine: &Machine, lower: &FaultyDisk<'_>) -> Result<()> {
        for runner in self.pair.machines() {
            self.pair.disk_options("--c-plan-ahead=0 --resync-rate=500K")?;
            runner.run_ok("drbdadm verify r0")?;
            self.pair.wait(machine, SOON, "a verify", |device| device.connection.starts_with("Verify"))?;
            lower.fail_writes()?;
            self.write()?;
            self.wait_disks(machine, "Inconsistent/UpToDate")?;
            self.pair.wait(machine, SOON, "the end of the verify", |device| device.connection == "Connected")?;
            self.read()?;
            lower.heal()?;
            self.reconnect()?;
            self.pair.disk_options("--c-plan-ahead=0 --resync-rate=100M")?;
            self.recovered()?;
        }
        Ok(())
    }

    /// `call-local-io-error`: a program is told, then the disk is let go.
    fn told_to_a_program(&mut self, lower: &FaultyDisk<'_>) -> Result<()> {
        let first = self.pair.first();
        self.adjust(|config| config.on_io_error = "call-local-io-error".into())?;
        forget_calls(self.pair)?;
        lower.fail()?;
        self.write()?;
        self.wait_disks(first, "Diskless/UpToDate")?;
        called(self.pair, first, "local-io-error", 1)?;
        self.read()?;
        lower.heal()?;
        self.attach_first()?;
        self.recovered()
    }

    /// `detach`: a disk, of either side, or its meta data, fails for good; attached again, what it missed is copied.
    fn detached(&mut self, lower: &[FaultyDisk<'_>; 2], meta: &FaultyDisk<'_>) -> Result<()> {
        let (first, second) = (self.pair.first(), self.pair.second());
        self.adjust(|config| config.on_io_error = "detach".into())?;
        lower[0].fail_range(4 << 20, 4 << 20)?;
        self.read()?;
        self.wait_disks(first, "Diskless/UpToDate")?;
        self.write()?;
        lower[0].heal()?;
        self.attach_first()?;
        self.recovered()?;

        // A part of the disk that the activity log does not know yet.
        meta.fail()?;
        first.run_ok("dd if=/dev/urandom of=/dev/drbd0 bs=4k count=1 seek=15000 oflag=direct status=none")?;
        self.wait_disks(first, "Diskless/UpToDate")?;
        self.write()?;
        meta.heal()?;
        self.attach_first()?;
        self.recovered()?;

        lower[1].fail()?;
        self.write()?;
        self.wait_disks(second, "Diskless/UpToDate")?;
        self.write()?;
        lower[1].heal()?;
        second.run_ok("drbdadm attach r0")?;
        self.recovered()
    }

    /// Neither disk nor peer: errors at once, or everything waits for one of them to come back.
    fn no_data(&mut self, lower: &FaultyDisk<'_>) -> Result<()> {
        let first = self.pair.first();
        forget_calls(self.pair)?;
        first.run_ok("drbdadm detach r0")?;
        self.wait_disks(first, "Diskless/UpToDate")?;
        self.cut()?;
        called(self.pair, first, "pri-on-incon-degr", 1)?;
        let begin = Instant::now();
        for command in [
            "dd if=/dev/urandom of=/dev/drbd0 bs=4k count=1 oflag=direct status=none",
            "dd if=/dev/drbd0 of=/dev/null bs=4k count=1 iflag=direct status=none",
        ] {
            let output = first.run(command)?;
            ensure!(output.error_text().contains("Input/output error"), "expected an error: {output}");
        }
        ensure!(begin.elapsed() < stretched(Duration::from_secs(10)), "the errors took {:?}", begin.elapsed());
        self.restore();
        self.wait_disks(first, "Diskless/UpToDate")?;
        self.attach_first()?;
        self.recovered()?;

        self.adjust(|config| config.options = "on-no-data-accessible suspend-io;".into())?;
        first.run_ok("drbdadm detach r0")?;
        self.wait_disks(first, "Diskless/UpToDate")?;
        self.cut()?;
        let write = start_write(first)?;
        still_waits(&write)?;
        self.restore();
        ends_well(&write, RESYNC)?;
        self.wait_disks(first, "Diskless/UpToDate")?;
        self.attach_first()?;
        self.recovered()?;

        self.pair.second().run_ok("drbdadm disconnect --force r0")?;
        self.pair.wait(first, SOON, "a peer that left", |device| device.connection == "WFConnection")?;
        lower.fail()?;
        let write = start_write(first)?;
        self.wait_disks(first, "Diskless/DUnknown")?;
        still_waits(&write)?;
        lower.heal()?;
        self.attach_first()?;
        ends_well(&write, SOON)?;
        self.pair.second().run_ok("drbdadm connect r0")?;
        self.recovered()
    }
}

// Peers that fall silent.

fn silent_peers(pairing: Pairing) -> Result<()> {
    let config = Config { lower: "/dev/mapper/lower".into(), ko_count: 2, ..Config::default() };
    let pair = Pair::with_helper(pairing, &config)?;
    silent_peers_of(&pair, config, pairing)?;
    pair.one_by_one("drbdadm down r0; dmsetup remove lower")?;
    pair.finish()
}

fn silent_peers_of(pair: &Pair, config: Config, pairing: Pairing) -> Result<()> {
    pair.first().faulty_disk("lower", "/dev/sdb1")?;
    let lower = pair.second().faulty_disk("lower", "/dev/sdb1")?;
    pair.mirror()?;
    let mut run = Run::new(pair, config);
    run.silent()?;
    run.slow_disk(&lower)?;
    if with_the_firsts_own(pairing) {
        run.suspended()?;
        run.congested(first_is_c(pairing))?;
    }
    Ok(())
}

/// What the host's load may add to a limit.
const SLACK: Duration = Duration::from_secs(15);

impl Run<'_> {
    /// The peer answers nothing any more: a write is done when `ping-int` and `ping-timeout` have passed.
    fn silent(&mut self) -> Result<()> {
        let (first, second) = (self.pair.first(), self.pair.second());
        second.pause()?;
        let write = start_write(first)?;
        ends_well(&write, Duration::from_secs(4) + SLACK)?;
        self.wait_disks(first, "UpToDate/DUnknown")?;
        self.write()?;
        second.resume()?;
        self.recovered()
    }

    /// The peer is alive, but its disk does not answer: `timeout` x `ko-count` is the limit, and 0 is none.
    fn slow_disk(&mut self, lower: &FaultyDisk<'_>) -> Result<()> {
        let first = self.pair.first();
        lower.hang()?;
        let write = start_write(first)?;
        still_waits(&write)?;
        ends_well(&write, Duration::from_secs(4) + SLACK)?;
        let device = self.pair.device(first)?;
        ensure!(device.connection != "Connected", "found {device:?}");
        self.write()?;
        lower.heal()?;
        self.recovered()?;

        self.adjust(|config| config.ko_count = 0)?;
        lower.hang()?;
        let write = start_write(first)?;
        // Longer than what was the limit before.
        thread::sleep(stretched(Duration::from_secs(7)));
        still_waits(&write)?;
        let device = self.pair.device(first)?;
        ensure!(device.connection == "Connected", "found {device:?}");
        lower.heal()?;
        ends_well(&write, SOON)?;
        self.adjust(|config| config.ko_count = config::KO_COUNT)?;
        self.recovered()
    }

    /// `suspend-io` holds everything back, also while the connection is lost and made again.
    fn suspended(&mut self) -> Result<()> {
        let first = self.pair.first();
        first.run_ok("drbdadm suspend-io r0")?;
        let write = start_write(first)?;
        still_waits(&write)?;
        first.run_ok("drbdadm resume-io r0")?;
        ends_well(&write, SOON)?;
        first.run_ok("drbdadm suspend-io r0")?;
        let write = start_write(first)?;
        self.cut()?;
        still_waits(&write)?;
        first.run_ok("drbdadm resume-io r0")?;
        ends_well(&write, SOON)?;
        self.restore();
        self.recovered()
    }

    /// A slow link under protocol A: `block` waits, `disconnect` does not.
    fn congested(&mut self, first_is_c: bool) -> Result<()> {
        let first = self.pair.first();
        let burst = "dd if=/dev/urandom of=/dev/drbd0 bs=64k count=64 seek=512 oflag=direct status=none";
        self.pair.second().run_ok("drbdadm disconnect r0")?;
        first.run_ok("drbdadm disconnect r0")?;
        self.config.protocol = 'A';
        self.config.net = "ping-timeout 50; on-congestion block; congestion-fill 100k;".into();
        self.pair.configure(&self.config)?;
        self.pair.both("drbdadm connect r0")?;
        self.pair.wait_in_sync(SOON)?;
        self.pair.cluster().wire().delay(Duration::from_millis(150));
        first.run_ok(burst)?;
        self.restore();
        self.pair.wait_in_sync(SOON)?;

        // The C module stays in Disconnecting for ever: only its volume had been told.
        if first_is_c {
            return self.recovered();
        }
        self.adjust(|config| config.net = "ping-timeout 50; on-congestion disconnect; congestion-fill 100k;".into())?;
        self.pair.cluster().wire().delay(Duration::from_millis(300));
        first.run_ok(burst)?;
        self.pair.wait(first, SOON, "a node that gave up", |device| device.connection == "StandAlone")?;
        self.restore();
        first.run_ok("drbdadm connect r0")?;
        self.recovered()
    }
}

// Fencing.

fn fencing(pairing: Pairing) -> Result<()> {
    let config =
        Config { disk: "fencing resource-only;".into(), net: "verify-alg crc32c;".into(), ..Config::default() };
    let pair = Pair::with_helper(pairing, &config)?;
    pair.mirror()?;
    let mut run = Run::new(&pair, config);
    run.exit_codes(if with_the_firsts_own(pairing) { &EXIT_CODES } else { &EXIT_CODES[..1] })?;
    run.promotions()?;
    if with_the_firsts_own(pairing) {
        run.frozen(first_is_c(pairing))?;
    }
    run.objections()?;
    drop(run);
    pair.one_by_one("drbdadm down r0")?;
    pair.finish()
}

/// What the program says with its exit code, and the disks then.
const EXIT_CODES: [(u8, &str); 6] = [
    (3, "UpToDate/Inconsistent"),
    (4, "UpToDate/Outdated"),
    (5, "UpToDate/Outdated"),
    (6, "UpToDate/DUnknown"),
    (7, "UpToDate/Outdated"),
    (1, "UpToDate/DUnknown"),
];

impl Run<'_> {
    /// The second machine is gone; what the first makes of the exit code.
    fn exit_codes(&mut self, codes: &[(u8, &str)]) -> Result<()> {
        let (first, second) = (self.pair.first(), self.pair.second());
        for &(code, disks) in codes {
            forget_calls(self.pair)?;
            helpers::answer(first, "fence-peer", 0, code)?;
            second.run_ok("drbdadm disconnect --force r0")?;
            called(self.pair, first, "fence-peer", 1)?;
            // With this policy, writes go on.
            self.write()?;
            self.wait_disks(first, disks)?;
            first.run_ok(&format!("dmesg | grep -q 'fence-peer.*returned {code}'"))?;
            second.run_ok("drbdadm connect r0")?;
            self.pair.wait_in_sync(RESYNC)?;
            called(self.pair, first, "before-resync-source", 1)?;
            called(self.pair, second, "before-resync-target", 1)?;
            called(self.pair, second, "after-resync-target", 1)?;
            called(self.pair, first, "unfence-peer", 1)?;
        }
        self.recovered()
    }

    /// Without its peer a node may become Primary only when the peer is fenced.
    fn promotions(&mut self) -> Result<()> {
        let (first, second) = (self.pair.first(), self.pair.second());
        first.run_ok("drbdadm secondary r0")?;
        first.run_ok("drbdadm disconnect --force r0")?;
        self.pair.wait(second, SOON, "a peer that left", |device| device.connection == "WFConnection")?;
        forget_calls(self.pair)?;
        helpers::answer(second, "fence-peer", 0, 1)?;
        let refused = second.run("drbdsetup primary 0")?;
        ensure!(refused.code() == 11, "{refused}");
        called(self.pair, second, "fence-peer", 4)?;
        forget_calls(self.pair)?;
        helpers::answer(second, "fence-peer", 0, 6)?;
        let refused = second.run("drbdsetup primary 0")?;
        ensure!(refused.code() == 17, "{refused}");
        self.wait_disks(second, "Outdated/DUnknown")?;
        called(self.pair, second, "fence-peer", 1)?;
        first.run_ok("drbdadm connect r0")?;
        self.pair.wait_in_sync(SOON)?;
        first.run_ok("drbdadm disconnect --force r0")?;
        self.pair.wait(second, SOON, "a peer that left", |device| device.connection == "WFConnection")?;
        forget_calls(self.pair)?;
        helpers::answer(second, "fence-peer", 0, 4)?;
        second.run_ok("drbdsetup primary 0")?;
        called(self.pair, second, "fence-peer", 1)?;
        self.wait_disks(second, "UpToDate/Outdated")?;
        second.run_ok("dd if=/dev/urandom of=/dev/drbd0 bs=64k count=4 seek=500 oflag=direct status=none")?;
        second.run_ok("drbdadm secondary r0")?;
        first.run_ok("drbdadm connect r0")?;
        self.pair.wait_in_sync(SOON)?;
        first.run_ok("drbdadm primary r0")?;
        self.recovered()
    }

    /// `resource-and-stonith`: nothing is acknowledged until the peer is fenced, or back.
    fn frozen(&mut self, first_is_c: bool) -> Result<()> {
        let (first, second) = (self.pair.first(), self.pair.second());
        self.adjust(|config| config.disk = "fencing resource-and-stonith;".into())?;
        // When its peer is fenced, the C module writes its meta data where it must not sleep, and its kernel says so.
        let codes: &[u8] = if first_is_c { &[1] } else { &[7, 1] };
        for &code in codes {
            forget_calls(self.pair)?;
            helpers::answer(first, "fence-peer", 5, code)?;
            second.run_ok("drbdadm disconnect --force r0")?;
            called(self.pair, first, "fence-peer", 1)?;
            let write = start_write(first)?;
            still_waits(&write)?;
            if code == 7 {
                ends_well(&write, SOON)?;
                self.wait_disks(first, "UpToDate/Outdated")?;
                second.run_ok("drbdadm connect r0")?;
            } else {
                // Longer than the program runs.
                thread::sleep(Duration::from_secs(4));
                still_waits(&write)?;
                second.run_ok("drbdadm connect r0")?;
                ends_well(&write, SOON)?;
            }
            self.recovered()?;
        }
        // The administrator may decide.
        helpers::answer(first, "fence-peer", 0, 1)?;
        second.run_ok("drbdadm disconnect --force r0")?;
        self.pair.wait(first, SOON, "a peer that left", |device| device.connection == "WFConnection")?;
        let write = start_write(first)?;
        still_waits(&write)?;
        first.run_ok("drbdadm resume-io r0")?;
        ends_well(&write, SOON)?;
        second.run_ok("drbdadm connect r0")?;
        self.recovered()
    }

    /// The programs before a resync may object; the others are only told.
    fn objections(&mut self) -> Result<()> {
        let (first, second) = (self.pair.first(), self.pair.second());
        helpers::answer(first, "fence-peer", 0, 4)?;
        self.adjust(|config| config.disk = "fencing dont-care;".into())?;
        let resync = |run: &mut Self| -> Result<()> {
            second.run_ok("drbdadm disconnect --force r0")?;
            run.pair.wait(first, SOON, "a peer that left", |device| device.connection == "WFConnection")?;
            run.write()?;
            second.run_ok("drbdadm connect r0").map(|_| ())
        };
        helpers::answer(first, "before-resync-source", 0, 3)?;
        resync(self)?;
        self.recovered()?;
        helpers::answer(second, "before-resync-target", 0, 1)?;
        resync(self)?;
        self.pair.wait(second, SOON, "a node that gave up", |device| device.connection == "StandAlone")?;
        helpers::answer(second, "before-resync-target", 0, 0)?;
        second.run_ok("drbdadm connect r0")?;
        if self.pair.device(first)?.connection == "StandAlone" {
            first.run_ok("drbdadm connect r0")?;
        }
        self.recovered()?;

        // A difference that nobody noticed.
        forget_calls(self.pair)?;
        second.run_ok("dd if=/dev/urandom of=/dev/sdb1 bs=4k count=1 seek=9000 oflag=direct status=none")?;
        first.run_ok("drbdadm verify r0")?;
        called(self.pair, first, "out-of-sync", 1)?;
        self.pair.wait(first, SOON, "the end of the verify", |device| device.connection == "Connected")?;
        second.run_ok("drbdadm disconnect r0")?;
        self.pair.wait(first, SOON, "a peer that left", |device| device.connection == "WFConnection")?;
        second.run_ok("drbdadm connect r0")?;
        self.recovered()
    }
}
