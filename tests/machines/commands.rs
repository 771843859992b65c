//! Commands that are given while something else goes on: a program that was called for an event, a writer, a verify, a connection
//! that is being waited for. Each is answered, and soon.

use anyhow::ensure;
use lab::{stretched, Machine, Module};
use machine_tests::acks::Acks;
use machine_tests::config::Config;
use machine_tests::guest::{Workload, Writer};
use machine_tests::helpers;
use machine_tests::pair::{Pair, Pairing, RESYNC, SOON};
use machine_tests::Result;
use std::time::{Duration, Instant};

/// Sectors the writers use.
const SECTORS: u64 = 24 << 11;

/// How long a command may take that has nothing to wait for.
const AT_ONCE: Duration = Duration::from_secs(10);

/// So slow a verify that it is still under way when the test has done what it wants to do meanwhile.
const SLOW: &str = "--c-plan-ahead=0 --resync-rate=500K";
/// What the pair is configured with.
const FAST: &str = "--c-plan-ahead=0 --resync-rate=100M";

/// Lets the program of an event wait until `/run/waits` is gone, which it makes.
const WAIT: &str = "touch /run/waits; while [ -e /run/waits ]; do sleep 0.1; done";

#[test]
fn ours_with_ours() -> Result<()> {
    meanwhile(Pairing::OURS)
}

#[test]
fn ours_primary_c_secondary() -> Result<()> {
    meanwhile(Pairing::OURS_PRIMARY)
}

#[test]
fn c_primary_ours_secondary() -> Result<()> {
    meanwhile(Pairing::C_PRIMARY)
}

fn meanwhile(pairing: Pairing) -> Result<()> {
    let config = Config { net: "verify-alg crc32c;".into(), ..Config::default() };
    let pair = Pair::with_helper(pairing, &config)?;
    pair.mirror()?;
    let mut run = Run { pair: &pair, config, acks: Acks::default(), next: 1 };
    let ours = pairing.replaced().modules.map(|module| module == Module::Ours);
    run.row("held open", Run::held_open)?;
    run.row("another secret", Run::another_secret)?;
    run.row("disconnect of a Primary that fences", Run::disconnect_under_load)?;
    let nodes = [pair.first(), pair.second()];
    let runners: Vec<&Machine> = nodes.into_iter().zip(ours).filter(|(_, ours)| *ours).map(|(node, _)| node).collect();
    for (at, node) in nodes.into_iter().enumerate().filter(|(at, _)| ours[*at]) {
        let other = nodes[1 - at];
        run.row(&format!("detach during a verify, {}", node.name()), |run| run.detach_while_verified(node, &runners))?;
        // The C module's worker carries out its programs: what needs the worker waits for them.
        run.row(&format!("promotion during a program, {}", node.name()), |run| run.promoted(node, other))?;
        run.row(&format!("a program that gives commands, {}", node.name()), |run| run.by_the_program(node, other))?;
    }
    drop(run);
    pair.one_by_one("drbdadm down r0")?;
    pair.finish()
}

/// The pair with its configuration and the writes so far; each row finds and leaves the first machine as the Primary.
struct Run<'a> {
    pair: &'a Pair,
    config: Config,
    acks: Acks,
    next: u64,
}

impl Run<'_> {
    fn row(&mut self, name: &str, row: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let began = Instant::now();
        helpers::nothing(self.pair.first())?;
        helpers::nothing(self.pair.second())?;
        row(self)?;
        self.pair.wait_in_sync(RESYNC)?;
        self.pair.compare_disks()?;
        self.acks.check(&self.pair.scan(self.pair.first(), SECTORS)?)?;
        self.pair.cluster().check_consoles()?;
        println!("row {name}: {:.1} s", began.elapsed().as_secs_f32());
        Ok(())
    }

    fn workload(&mut self, count: Option<u64>) -> Workload {
        let first = self.next;
        self.next += 1_000_000;
        Workload { sectors: SECTORS, longest: 64, first, seed: first, count, ..Workload::default() }
    }

    fn write(&mut self, machine: &Machine) -> Result<()> {
        let acks = self.workload(Some(15)).run(machine, SOON)?;
        self.acks.merge(&acks);
        Ok(())
    }

    /// A writer on the first machine that is busy already.
    fn writer(&mut self) -> Result<Writer> {
        let writer = self.workload(None).spawn(self.pair.first())?;
        writer.wait_more(20, SOON)?;
        Ok(writer)
    }

    /// It gets on still, and no write of its has failed.
    fn stop(&mut self, writer: Writer) -> Result<()> {
        writer.wait_more(20, SOON)?;
        self.acks.merge(&writer.stop()?);
        Ok(())
    }

    fn adjust(&mut self, change: impl FnOnce(&mut Config)) -> Result<()> {
        change(&mut self.config);
        self.pair.configure(&self.config)?;
        self.pair.both("drbdadm adjust r0")
    }

    /// A device that somebody holds open is not demoted, and not taken down: the answer comes at once, however busy it is.
    fn held_open(&mut self) -> Result<()> {
        let first = self.pair.first();
        let writer = self.writer()?;
        for command in ["drbdadm secondary r0", "drbdadm down r0"] {
            let refused = at_once(|| first.run(command))?;
            ensure!(!refused.success() && refused.to_string().contains("(-12)"), "`{command}`: {refused}");
            let device = self.pair.device(first)?;
            ensure!(device.connection == "Connected" && device.roles == "Primary/Secondary", "{command}: {device:?}");
        }
        self.stop(writer)
    }

    /// The shared secret changes while a node waits for its peer: the next connection needs the new one, and one that has another
    /// one is turned away.
    fn another_secret(&mut self) -> Result<()> {
        let (first, second) = (self.pair.first(), self.pair.second());
        let before = self.config.net.clone();
        for secret in ["one", "another"] {
            second.run_ok("drbdadm disconnect r0")?;
            self.pair.wait(first, SOON, "a peer that left", |device| device.connection == "WFConnection")?;
            self.config.net = format!("{before} cram-hmac-alg sha256; shared-secret \"{secret}\";");
            self.pair.configure(&self.config)?;
            first.run_ok("drbdadm adjust r0")?;
            self.write(first)?;
            if secret == "another" {
                // Whoever turns it away, no connection comes of it.
                second.run_ok(
                    "sed 's/another/one/' /etc/drbd.conf >/run/old.conf && drbdadm -c /run/old.conf connect r0",
                )?;
                for _ in 0..20 {
                    let states =
                        [first, second].map(|machine| self.pair.device(machine).map(|device| device.connection));
                    for state in states {
                        let state = state?;
                        ensure!(
                            state != "Connected" && !state.starts_with("Sync"),
                            "connected with two secrets: {state}"
                        );
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
            self.pair.both("drbdadm adjust r0")?;
            self.pair.wait_in_sync(RESYNC)?;
        }
        self.adjust(|config| config.net = before)
    }

    /// An administrator who disconnects a Primary is no loss of the peer: that is asked to be Outdated, nobody is fenced, and the
    /// writer goes on.
    fn disconnect_under_load(&mut self) -> Result<()> {
        let (first, second) = (self.pair.first(), self.pair.second());
        self.adjust(|config| config.disk = "fencing resource-and-stonith;".into())?;
        helpers::answer(first, "fence-peer", 0, 1)?;
        helpers::forget(first)?;
        for _ in 0..3 {
            let writer = self.writer()?;
            at_once(|| first.run_ok("drbdadm disconnect r0"))?;
            let device = self.pair.device(first)?;
            ensure!(device.connection == "StandAlone" && device.disks == "UpToDate/Outdated", "{device:?}");
            self.pair.wait(second, SOON, "Outdated", |device| device.disks == "Outdated/DUnknown")?;
            self.stop(writer)?;
            first.run_ok("drbdadm connect r0")?;
            self.pair.wait_in_sync(RESYNC)?;
        }
        let calls = helpers::calls(first)?;
        ensure!(calls.iter().all(|call| call.event != "fence-peer"), "the peer was fenced: {calls:?}");
        self.adjust(|config| config.disk.clear())
    }

    /// A disk is let go in the middle of an online verify that one of `runners` began; the Primary's writer gets on. (A C module that runs
    /// it may keep writes out of the extent that it was going to ask for, until the connection ends.)
    fn detach_while_verified(&mut self, machine: &Machine, runners: &[&Machine]) -> Result<()> {
        for runner in runners {
            self.pair.disk_options(SLOW)?;
            let writer = self.writer()?;
            runner.run_ok("drbdadm verify r0")?;
            self.pair.wait(machine, SOON, "a verify", |device| device.connection.starts_with("Verify"))?;
            writer.wait_more(20, SOON)?;
            at_once(|| machine.run_ok("drbdadm detach r0"))?;
            self.pair.wait(machine, SOON, "no disk", |device| device.disks == "Diskless/UpToDate")?;
            self.pair.wait(machine, SOON, "the end of the verify", |device| device.connection == "Connected")?;
            self.stop(writer)?;
            machine.run_ok("drbdadm attach r0")?;
            self.pair.disk_options(FAST)?;
            self.pair.wait_in_sync(RESYNC)?;
        }
        Ok(())
    }

    /// `machine` was the target of a resync that is over.
    fn resync_to(&mut self, machine: &Machine, other: &Machine) -> Result<()> {
        if machine.name() == self.pair.first().name() {
            self.pair.hand_over(machine, other)?;
        }
        machine.run_ok("drbdadm disconnect r0")?;
        self.write(other)?;
        machine.run_ok("drbdadm connect r0")?;
        self.pair.wait_in_sync(RESYNC)
    }

    /// The program that is told of the end of a resync takes its time: the node that was its target is promoted, its file system
    /// mounted, its size changed from the other side, its disk let go and attached, all meanwhile. The kernel log tells at once.
    fn promoted(&mut self, machine: &Machine, other: &Machine) -> Result<()> {
        helpers::commands(machine, "after-resync-target", WAIT)?;
        self.resync_to(machine, other)?;
        machine.wait_success(SOON, "the program", "test -e /run/waits")?;
        at_once(|| self.pair.hand_over(other, machine))?;
        self.write(machine)?;
        self.acks.check(&self.pair.scan(machine, SECTORS)?)?;
        // A file system, beyond what the writers use.
        let mounted = format!(
            "losetup --offset {} /dev/loop1 /dev/drbd0 && mkfs.ext4 -q /dev/loop1 && mount /dev/loop1 /mnt && \
             cp /bin/bash /mnt && sync -f /mnt && umount /mnt && losetup --detach /dev/loop1",
            SECTORS * 512
        );
        machine.run_ok(&format!("modprobe loop && {mounted}"))?;
        self.resized(machine, other)?;
        let mark = machine.console().mark();
        at_once(|| machine.run_ok("drbdadm detach r0"))?;
        self.write(machine)?;
        let log = machine.console().since(mark);
        ensure!(log.contains("-> Diskless )"), "the kernel log does not tell of the detach:\n{log}");
        // The next resync, with programs of its own, comes after this one.
        at_once(|| machine.run_ok("drbdadm attach r0"))?;
        machine.run_ok("test -e /run/waits && rm /run/waits")?;
        helpers::nothing(machine)?;
        self.pair.wait_in_sync(RESYNC)?;
        self.first_again(machine)
    }

    /// The other machine is asked for another size, and `machine` follows.
    fn resized(&self, machine: &Machine, other: &Machine) -> Result<()> {
        let sectors =
            |machine: &Machine| Ok::<u64, anyhow::Error>(machine.run_ok("cat /sys/block/drbd0/size")?.parse()?);
        let whole = sectors(machine)?;
        let less = whole - (8 << 11);
        for (command, wanted) in [(format!("--size={less}s"), less), ("--size=0 --assume-clean".into(), whole)] {
            at_once(|| other.run_ok(&format!("drbdsetup resize 0 {command}")))?;
            let has_it = format!("test $(cat /sys/block/drbd0/size) = {wanted}");
            for machine in [machine, other] {
                machine.wait_success(SOON, &format!("a size of {wanted} sectors"), &has_it)?;
            }
        }
        Ok(())
    }

    fn first_again(&self, machine: &Machine) -> Result<()> {
        if machine.name() == self.pair.first().name() {
            return Ok(());
        }
        self.pair.hand_over(machine, self.pair.first())
    }

    /// A program gives commands itself, about the volume that it was called for.
    fn by_the_program(&mut self, machine: &Machine, other: &Machine) -> Result<()> {
        let commands = |commands: &str| format!("({commands}) >/run/said 2>&1; echo \"ended with $?\" >>/run/said");
        let before = "set -e; drbdadm dstate r0; drbdadm role r0; drbdsetup get-gi 0; drbdsetup show r0; drbdsetup events2 --now r0; \
                      drbdsetup disk-options 0 --resync-rate=90M";
        // What it leads to calls it again.
        let after = "set -e; rm /run/helper.after-resync-target.sh; drbdadm resize r0; drbdadm pause-sync r0; drbdadm resume-sync r0; \
                     drbdadm detach r0; drbdadm attach r0; drbdadm disconnect r0; drbdadm connect r0";
        for (event, text) in [("before-resync-target", before), ("after-resync-target", after)] {
            helpers::nothing(machine)?;
            machine.run_ok("rm -f /run/said")?;
            helpers::commands(machine, event, &commands(text))?;
            self.resync_to(machine, other)?;
            machine.wait_success(SOON, "the end of the program", "grep -q '^ended' /run/said")?;
            machine.run_ok("grep -q '^ended with 0$' /run/said || { cat /run/said >&2; false; }")?;
            self.pair.wait_in_sync(RESYNC)?;
            if machine.name() == self.pair.first().name() {
                self.pair.hand_over(other, machine)?;
            }
        }
        self.pair.disk_options(FAST)
    }
}

/// What the command says, within [`AT_ONCE`].
fn at_once<T>(command: impl FnOnce() -> Result<T>) -> Result<T> {
    let began = Instant::now();
    let said = command()?;
    let took = began.elapsed();
    ensure!(took < stretched(AT_ONCE), "it took {:.1} s", took.as_secs_f32());
    Ok(said)
}
