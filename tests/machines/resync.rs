//! Resync and online verify between two modules in every combination: rates, pauses, dependencies, checksums, thin, invalidated
//! disks, and whatever interrupts a resync; in the end both lower disks are the same byte by byte.

use crate::rows::{self, Step};
use anyhow::{ensure, Context};
use lab::{stretch, Machine};
use machine_tests::config::{self, Config};
use machine_tests::guest::Workload;
use machine_tests::pair::{compare_disk_files, wait_minor, Pair, Pairing, RESYNC, SOON};
use machine_tests::Result;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Sectors the writers use.
const SECTORS: u64 = 16 << 11;

/// Lets a resync of some MiB last long enough to look at it.
fn slow() -> String {
    format!("--c-plan-ahead=0 --resync-rate={}K", 2048 / stretch())
}

/// Ends that.
const FAST: &str = "--c-plan-ahead=0 --resync-rate=100M";

#[test]
fn ours_with_ours() -> Result<()> {
    resync(Pairing::OURS, &[])
}

#[test]
fn ours_primary_c_secondary() -> Result<()> {
    resync(Pairing::OURS_PRIMARY, &["verify", "checksums", "roles", "crash"])
}

#[test]
fn c_primary_ours_secondary() -> Result<()> {
    resync(Pairing::C_PRIMARY, &["pause", "rate", "thin", "invalidate", "interrupted", "dependency"])
}

const STEPS: &[Step] = &[
    ("verify", verify),
    ("checksums", checksums),
    ("pause", pause),
    ("rate", rate),
    ("thin", thin),
    ("invalidate", invalidate),
    ("interrupted", interrupted),
    ("roles", roles),
    ("dependency", dependency),
    ("crash", crash),
];

fn configuration() -> Config {
    Config { net: "verify-alg crc32c;".into(), ..Config::default() }
}

fn resync(pairing: Pairing, short: &[&str]) -> Result<()> {
    rows::run(pairing, &configuration(), STEPS, short)
}

/// Disconnects, has the first machine write random data, and connects again: that much has to be copied.
fn fall_behind(pair: &Pair, offset_mib: u64, mib: u64) -> Result<()> {
    pair.first().run_ok("drbdadm disconnect r0")?;
    write_mib(pair.first(), offset_mib, mib)?;
    pair.first().run_ok("drbdadm connect r0")?;
    Ok(())
}

fn write_mib(machine: &Machine, offset_mib: u64, mib: u64) -> Result<()> {
    machine.run_ok(&format!(
        "dd if=/dev/urandom of=/dev/drbd0 bs=1M seek={offset_mib} count={mib} oflag=direct status=none"
    ))?;
    Ok(())
}

/// Waits for these connection states on the first and the second machine.
fn wait_states(pair: &Pair, wanted: [&str; 2]) -> Result<()> {
    for (machine, wanted) in pair.machines().iter().zip(wanted) {
        pair.wait(machine, SOON, wanted, |device| device.connection == wanted)?;
    }
    Ok(())
}

/// KiB out of sync, as the machine says.
fn out_of_sync(pair: &Pair, machine: &Machine) -> Result<u64> {
    pair.device(machine)?.counter("oos")
}

/// Fails unless the command exits with this code.
fn exits_with(machine: &Machine, code: i32, command: &str) -> Result<()> {
    let output = machine.run(command)?;
    ensure!(output.code() == code, "{}: `{command}`: expected exit code {code}, found {output}", machine.name());
    Ok(())
}

/// Online verify finds what was changed behind its back, all of it or between two positions, and nothing else even while the
/// primary writes; a reconnect repairs it.
fn verify(pair: &Pair) -> Result<()> {
    let (first, second) = (pair.first(), pair.second());
    for runner in [first, second] {
        // Blocks 2000 and 2001, and one at 40 MiB.
        for block in ["2000 count=2", "10240 count=1"] {
            second.run_ok(&format!("dd if=/dev/urandom of=/dev/sdb1 bs=4k seek={block} oflag=direct status=none"))?;
        }
        let marks = [first.console().mark(), second.console().mark()];
        run_verify(pair, runner, "--start=0 --stop=8192")?;
        ensure!(out_of_sync(pair, first)? == 0 && out_of_sync(pair, second)? == 0, "before the first difference");
        run_verify(pair, runner, "--start=8192 --stop=40960")?;
        ensure!(out_of_sync(pair, first)? == 8 && out_of_sync(pair, second)? == 8, "in the range of the first");
        // From where the last run stopped.
        run_verify(pair, runner, "--stop=90000")?;
        for (machine, mark) in pair.machines().iter().zip(marks) {
            ensure!(out_of_sync(pair, machine)? == 12, "{}: {:?}", machine.name(), pair.device(machine)?);
            // Programs look for these lines. Neighbours are reported together, if their results come one after the other.
            let console = machine.console().since(mark);
            let found = [16000, 81920].map(|sector| format!("Out of sync: start={sector}, size="));
            for text in found.iter().map(String::as_str).chain(["Online verify done (total "]) {
                ensure!(
                    console.contains(&format!("drbd r0/0 drbd0: {text}")),
                    "{}: not on the console: {text}",
                    machine.name()
                );
            }
        }
        first.run_ok("drbdadm disconnect r0")?;
        first.run_ok("drbdadm connect r0")?;
        pair.wait_in_sync(SOON)?;
        pair.compare_disks()?;
        let writer = Workload { sectors: SECTORS, ..Workload::default() }.spawn(first)?;
        run_verify(pair, runner, "--start=0 --stop=32768")?;
        let acks = writer.stop()?;
        ensure!(out_of_sync(pair, first)? == 0 && out_of_sync(pair, second)? == 0, "writes were taken for differences");
        pair.compare_disks()?;
        acks.check(&pair.scan(first, SECTORS)?)?;
    }
    Ok(())
}

fn run_verify(pair: &Pair, machine: &Machine, options: &str) -> Result<()> {
    machine.run_ok(&format!("drbdsetup verify 0 {options}"))?;
    for machine in pair.machines() {
        pair.wait(machine, RESYNC, "the end of the verify run", |device| device.connection == "Connected")?;
    }
    Ok(())
}

/// Blocks that are the same on both sides are not sent.
fn checksums(pair: &Pair) -> Result<()> {
    let (first, second) = (pair.first(), pair.second());
    let same = "dd if=/dev/drbd0 of=/dev/drbd0 bs=1M count=8 iflag=direct oflag=direct conv=notrunc status=none";
    // The same data again is different for the bitmap, not for a checksum.
    for (algorithm, after_crash_only, saves) in [("crc32c", "no", true), ("md5", "yes", false), ("md5", "no", true)] {
        let net = format!("verify-alg crc32c; csums-alg {algorithm}; csums-after-crash-only {after_crash_only};");
        pair.configure(&Config { net, ..configuration() })?;
        pair.both("drbdadm adjust r0")?;
        first.run_ok("drbdadm disconnect r0")?;
        first.run_ok(same)?;
        // Beyond what the writers use.
        write_mib(first, 17, 1)?;
        let before_kib = pair.device(second)?.counter("nr")?;
        let marks = [first.console().mark(), second.console().mark()];
        first.run_ok("drbdadm connect r0")?;
        pair.wait_in_sync(SOON)?;
        let received_kib = pair.device(second)?.counter("nr")? - before_kib;
        let context = format!("{algorithm}, after a crash only: {after_crash_only}");
        ensure!(received_kib == if saves { 1024 } else { 9 * 1024 }, "{context}: {received_kib} KiB were received");
        // Both modules tell the administrator, each in its words.
        for (machine, mark) in pair.machines().iter().zip(marks) {
            let console = machine.console().since(mark);
            let told = console.lines().any(|line| line.contains("equal") && line.contains("checksums"));
            let done = console.contains("drbd r0/0 drbd0: Resync done (total ");
            ensure!(done && told == saves, "{context}: {} says:\n{console}", machine.name());
        }
        pair.compare_disks()?;
    }
    pair.configure(&configuration())?;
    pair.both("drbdadm adjust r0")
}

/// The administrator of either side pauses the resync; it goes on when nobody wants it paused any more.
fn pause(pair: &Pair) -> Result<()> {
    let (first, second) = (pair.first(), pair.second());
    pair.disk_options(&slow())?;
    fall_behind(pair, 20, 12)?;
    wait_states(pair, ["SyncSource", "SyncTarget"])?;
    exits_with(first, 10, "drbdadm resume-sync r0")?;
    for (pausing, other) in [(first, second), (second, first)] {
        exits_with(pausing, 0, "drbdadm pause-sync r0")?;
        wait_states(pair, ["PausedSyncS", "PausedSyncT"])?;
        exits_with(pausing, 10, "drbdadm pause-sync r0")?;
        exits_with(other, 10, "drbdadm resume-sync r0")?;
        pausing.run_ok("grep -q 'C r--u--$' /proc/drbd || { cat /proc/drbd; false; }")?;
        other.run_ok("grep -q 'C r-p---$' /proc/drbd || { cat /proc/drbd; false; }")?;
        // What was under way arrives; then nothing more.
        sleep(Duration::from_millis(500));
        let left_kib = out_of_sync(pair, second)?;
        sleep(Duration::from_millis(1200));
        ensure!(out_of_sync(pair, second)? == left_kib && left_kib > 0, "it goes on while it is paused");
        exits_with(other, 0, "drbdadm pause-sync r0")?;
        exits_with(pausing, 0, "drbdadm resume-sync r0")?;
        sleep(Duration::from_millis(300));
        wait_states(pair, ["PausedSyncS", "PausedSyncT"])?;
        exits_with(other, 0, "drbdadm resume-sync r0")?;
        wait_states(pair, ["SyncSource", "SyncTarget"])?;
        pair.wait(second, SOON, "progress", |device| device.counters.get("oos").is_some_and(|&oos| oos < left_kib))?;
    }
    // Paused before it starts.
    first.run_ok("drbdadm disconnect r0")?;
    second.run_ok("drbdadm pause-sync r0")?;
    first.run_ok("drbdadm connect r0")?;
    wait_states(pair, ["PausedSyncS", "PausedSyncT"])?;
    pair.disk_options(FAST)?;
    second.run_ok("drbdadm resume-sync r0")?;
    pair.wait_in_sync(RESYNC)?;
    pair.compare_disks()
}

/// A fixed rate, a limit, and changes of both while it runs are kept.
fn rate(pair: &Pair) -> Result<()> {
    let [fixed, most] = [2048, 1536].map(|kib_per_second| kib_per_second / stretch());
    for (options, kib_per_second) in [
        (format!("--c-plan-ahead=0 --resync-rate={fixed}K"), fixed),
        (format!("--c-plan-ahead=20 --c-fill-target=1M --c-max-rate={most}K --resync-rate=1M"), most),
    ] {
        pair.disk_options(&options)?;
        fall_behind(pair, 20, 24)?;
        wait_states(pair, ["SyncSource", "SyncTarget"])?;
        let began = (Instant::now(), out_of_sync(pair, pair.second())?);
        sleep(Duration::from_millis(2000));
        let ended = (Instant::now(), out_of_sync(pair, pair.second())?);
        let seconds = (ended.0 - began.0).as_secs_f64();
        let rate = (began.1 - ended.1) as f64 / seconds;
        println!("{options}: {rate:.0} KiB/s");
        // The clock of an emulated machine may be late, never early.
        let wanted = f64::from(kib_per_second);
        ensure!((wanted * 0.5..wanted * 1.2).contains(&rate), "{options}: {rate:.0} KiB/s");
        pair.disk_options(FAST)?;
        let changed = Instant::now();
        pair.wait_in_sync(RESYNC)?;
        let seconds = changed.elapsed().as_secs_f64();
        println!("the rest, {} KiB, in {seconds:.1} s", ended.1);
        // Nothing but the processor limits it now, and the debug kernel has less of that.
        ensure!(
            seconds < ended.1 as f64 / wanted * 0.8 * f64::from(stretch()),
            "still slow: {} KiB in {seconds:.1} s",
            ended.1
        );
    }
    // An application that is busy goes first: then only c-min-rate is left for the resync.
    pair.disk_options("--c-plan-ahead=0 --resync-rate=8M --c-min-rate=500K")?;
    let writer = Workload { sectors: SECTORS, ..Workload::default() }.spawn(pair.first())?;
    writer.wait_more(20, SOON)?;
    fall_behind(pair, 20, 40)?;
    wait_states(pair, ["SyncSource", "SyncTarget"])?;
    // It is fast until it is seen to be faster than that.
    sleep(Duration::from_secs(3));
    let began = (Instant::now(), out_of_sync(pair, pair.second())?);
    sleep(Duration::from_secs(4));
    let ended = (Instant::now(), out_of_sync(pair, pair.second())?);
    let rate = began.1.saturating_sub(ended.1) as f64 / (ended.0 - began.0).as_secs_f64();
    println!("beside a busy application: {rate:.0} KiB/s, {} KiB left", ended.1);
    ensure!(ended.1 > 0 && rate < 2000.0, "beside a busy application: {rate:.0} KiB/s, {} KiB left", ended.1);
    // Without it the resync does not hold back.
    pair.disk_options("--c-min-rate=0")?;
    let changed = Instant::now();
    pair.wait_in_sync(RESYNC)?;
    let seconds = changed.elapsed().as_secs_f64();
    ensure!(
        seconds < ended.1 as f64 / 2000.0 * f64::from(stretch()),
        "still held back: {} KiB in {seconds:.1} s",
        ended.1
    );
    let acks = writer.stop()?;
    pair.compare_disks()?;
    acks.check(&pair.scan(pair.first(), SECTORS)?)
}

/// What is nothing but zeroes on the source is not sent but deallocated on the target.
fn thin(pair: &Pair) -> Result<()> {
    let (first, second) = (pair.first(), pair.second());
    // A turn ends where a request ends: one that is cut short is no thin one.
    pair.disk_options(FAST)?;
    for zeroes_if_aligned in ["yes", "no"] {
        pair.disk_options(&format!("--rs-discard-granularity=65536 --discard-zeroes-if-aligned={zeroes_if_aligned}"))?;
        write_mib(first, 20, 16)?;
        first.run_ok("drbdadm disconnect r0")?;
        first.run_ok("blkdiscard --offset 20971520 --length 8388608 /dev/drbd0")?;
        write_mib(first, 30, 1)?;
        first.run_ok("dd if=/dev/zero of=/dev/drbd0 bs=1M seek=32 count=2 oflag=direct status=none")?;
        let before_kib = pair.device(second)?.counter("nr")?;
        first.run_ok("drbdadm connect r0")?;
        pair.wait_in_sync(SOON)?;
        let received_kib = pair.device(second)?.counter("nr")? - before_kib;
        ensure!(received_kib == 1024, "{received_kib} KiB were received, 1024 of 11264 are not zeroes");
        pair.compare_disks()?;
    }
    pair.disk_options("--rs-discard-granularity=0 --discard-zeroes-if-aligned=yes")
}

/// The data of either side is declared bad while the primary writes.
fn invalidate(pair: &Pair) -> Result<()> {
    let (first, second) = (pair.first(), pair.second());
    for (machine, command, states) in [
        (second, "invalidate", ["SyncSource", "SyncTarget"]),
        (first, "invalidate-remote", ["SyncSource", "SyncTarget"]),
        (first, "invalidate", ["SyncTarget", "SyncSource"]),
        (second, "invalidate-remote", ["SyncTarget", "SyncSource"]),
    ] {
        pair.disk_options("--c-plan-ahead=0 --resync-rate=16M")?;
        let writer = Workload { sectors: SECTORS, ..Workload::default() }.spawn(first)?;
        writer.wait_more(20, SOON)?;
        exits_with(machine, 0, &format!("drbdadm {command} r0"))?;
        wait_states(pair, states).with_context(|| format!("{command} on {}", machine.name()))?;
        exits_with(machine, 11, &format!("drbdadm {command} r0"))?;
        writer.wait_more(20, SOON)?;
        pair.disk_options(FAST)?;
        pair.wait_in_sync(RESYNC)?;
        let acks = writer.stop()?;
        pair.compare_disks()?;
        acks.check(&pair.scan(first, SECTORS)?)?;
    }
    Ok(())
}

/// The link breaks, and the disk of the target goes away, in the middle of a resync.
fn interrupted(pair: &Pair) -> Result<()> {
    let (first, second) = (pair.first(), pair.second());
    pair.disk_options(&slow())?;
    let writer = Workload { sectors: SECTORS, ..Workload::default() }.spawn(first)?;
    fall_behind(pair, 20, 16)?;
    wait_states(pair, ["SyncSource", "SyncTarget"])?;
    pair.cluster().wire().cut();
    wait_states(pair, ["WFConnection", "WFConnection"])?;
    writer.wait_more(20, SOON)?;
    pair.cluster().wire().restore();
    wait_states(pair, ["SyncSource", "SyncTarget"])?;
    let left_kib = out_of_sync(pair, first)?;
    // The only good data cannot be let go.
    let detach = first.run("drbdadm detach r0")?;
    println!("detach of the source: {detach}");
    second.run_ok("drbdadm detach r0")?;
    pair.wait(first, SOON, "a peer without disk", |device| device.disks == "UpToDate/Diskless")?;
    writer.wait_more(20, SOON)?;
    second.run_ok("drbdadm attach r0")?;
    wait_states(pair, ["SyncSource", "SyncTarget"])?;
    second.run_ok("drbdadm disconnect r0")?;
    second.run_ok("drbdadm down r0 && drbdadm up r0")?;
    wait_states(pair, ["SyncSource", "SyncTarget"])?;
    println!("left {left_kib} KiB before, {} KiB after", out_of_sync(pair, first)?);
    pair.disk_options(FAST)?;
    pair.wait_in_sync(RESYNC)?;
    let acks = writer.stop()?;
    pair.compare_disks()?;
    acks.check(&pair.scan(first, SECTORS)?)
}

/// The roles change in the middle of a resync: the target serves what it does not have yet from its peer.
fn roles(pair: &Pair) -> Result<()> {
    let (first, second) = (pair.first(), pair.second());
    pair.disk_options(&slow())?;
    let mut acks = Workload { sectors: SECTORS, count: Some(40), ..Workload::default() }.run(first, SOON)?;
    first.run_ok("drbdadm disconnect r0")?;
    let workload =
        |first, longest| Workload { sectors: SECTORS, count: Some(60), first, longest, ..Workload::default() };
    acks.merge(&workload(10_000, 1024).run(first, SOON)?);
    first.run_ok("drbdadm connect r0")?;
    wait_states(pair, ["SyncSource", "SyncTarget"])?;
    pair.hand_over(first, second)?;
    acks.check(&pair.scan(second, SECTORS)?)?;
    acks.merge(&workload(20_000, 64).run(second, SOON)?);
    acks.check(&pair.scan(second, SECTORS)?)?;
    println!("left {} KiB", out_of_sync(pair, second)?);
    pair.disk_options(FAST)?;
    pair.wait_in_sync(RESYNC)?;
    acks.check(&pair.scan(second, SECTORS)?)?;
    pair.compare_disks()?;
    pair.hand_over(second, first)
}

/// One device waits until the one that it follows is done.
fn dependency(pair: &Pair) -> Result<()> {
    let times = config::times(config::KO_COUNT);
    let mut second_resource = format!("resource r1 {{\n  net {{ protocol C; {times} socket-check-timeout 2; }}\n");
    second_resource.push_str("  disk { resync-after r0; c-plan-ahead 0; resync-rate 100M; c-min-rate 0; }\n");
    for (name, address) in lab::NAMES.iter().zip(lab::ADDRESSES) {
        second_resource.push_str(&format!(
            "  on {name} {{ device /dev/drbd1; disk /dev/sda; address {address}:7789; meta-disk internal; }}\n"
        ));
    }
    second_resource.push_str("}\n");
    for machine in pair.machines() {
        machine.put(config::PATH, format!("{}{second_resource}", configuration()).as_bytes())?;
    }
    let (first, second) = (pair.first(), pair.second());
    pair.both("drbdadm create-md --force r1")?;
    pair.both("drbdadm up r1")?;
    wait_minor(first, 1, SOON, "a connection", |device| device.connection == "Connected")?;
    first.run_ok("drbdadm primary --force r1")?;
    let synced = |device: &machine_tests::proc_drbd::Device| device.disks == "UpToDate/UpToDate";
    wait_minor(first, 1, RESYNC, "both disks UpToDate", synced)?;
    pair.disk_options(&slow())?;
    first.run_ok("drbdadm disconnect r1")?;
    first.run_ok("dd if=/dev/urandom of=/dev/drbd1 bs=1M count=4 oflag=direct status=none")?;
    fall_behind(pair, 20, 12)?;
    wait_states(pair, ["SyncSource", "SyncTarget"])?;
    first.run_ok("drbdadm connect r1")?;
    wait_minor(first, 1, SOON, "a pause", |device| device.connection == "PausedSyncS")?;
    wait_minor(second, 1, SOON, "a pause", |device| device.connection == "PausedSyncT")?;
    second.run_ok("grep -q '1: cs:PausedSyncT .* C ra' /proc/drbd")?;
    println!("{}", second.run_ok("cat /proc/drbd")?);
    exits_with(second, 10, "drbdadm resume-sync r1")?;
    // Following nobody any more it goes on at once.
    pair.both("drbdsetup disk-options 1 --resync-after=-1")?;
    wait_minor(second, 1, SOON, "both disks UpToDate", synced)?;
    // And what follows somebody is stopped in the middle.
    pair.both(&format!("drbdsetup disk-options 1 --resync-after=0 --resync-rate={}K", 1024 / stretch()))?;
    exits_with(first, 10, "drbdsetup disk-options 0 --resync-after=1")?;
    pair.disk_options(FAST)?;
    pair.wait_in_sync(RESYNC)?;
    first.run_ok("drbdadm disconnect r1")?;
    first.run_ok("dd if=/dev/urandom of=/dev/drbd1 bs=1M count=4 oflag=direct status=none")?;
    first.run_ok("drbdadm connect r1")?;
    wait_minor(second, 1, SOON, "a resync", |device| device.connection == "SyncTarget")?;
    pair.disk_options(&slow())?;
    fall_behind(pair, 20, 4)?;
    wait_minor(second, 1, SOON, "a pause", |device| device.connection == "PausedSyncT")?;
    pair.both("drbdsetup disk-options 1 --resync-rate=100M")?;
    pair.disk_options(FAST)?;
    pair.wait_in_sync(RESYNC)?;
    wait_minor(second, 1, RESYNC, "both disks UpToDate", synced)?;
    // Resyncs that are done as soon as they may start.
    for _ in 0..3 {
        for resource in ["r0", "r1"] {
            first.run_ok(&format!("drbdadm disconnect {resource}"))?;
        }
        for device in ["drbd0", "drbd1"] {
            first.run_ok(&format!("dd if=/dev/urandom of=/dev/{device} bs=64k count=4 oflag=direct status=none"))?;
        }
        first.run_ok("drbdadm connect r0 && drbdadm connect r1")?;
        for machine in pair.machines() {
            for minor in 0..2 {
                wait_minor(machine, minor, RESYNC, "a resync that ends", |device| {
                    device.connection == "Connected" && synced(device)
                })?;
            }
        }
    }
    let bytes = 512 * first.run_ok("cat /sys/block/drbd1/size")?.parse::<u64>()?;
    compare_disk_files([&first.disk_file("sda"), &second.disk_file("sda")], 0, bytes)?;
    pair.one_by_one("drbdadm down r1")?;
    pair.configure(&configuration())
}

/// Either side loses its power in the middle of a resync.
fn crash(pair: &Pair) -> Result<()> {
    let (first, second) = (pair.first(), pair.second());
    // The row before leaves random data in the first sectors, which no check could tell from a torn write.
    first.run_ok(&format!("dd if=/dev/zero of=/dev/drbd0 bs=1M count={} oflag=direct status=none", SECTORS >> 11))?;
    pair.disk_options(&slow())?;
    let writer = Workload { sectors: SECTORS, first: 100_000, ..Workload::default() }.spawn(first)?;
    fall_behind(pair, 20, 16)?;
    wait_states(pair, ["SyncSource", "SyncTarget"])?;
    second.power_cut()?;
    pair.wait(first, SOON, "the loss of the peer", |device| device.connection == "WFConnection")?;
    writer.wait_more(20, SOON)?;
    pair.power_on(second, &configuration())?;
    second.run_ok("drbdadm up r0")?;
    wait_states(pair, ["SyncSource", "SyncTarget"])?;
    let left_kib = out_of_sync(pair, first)?;
    println!("left {left_kib} KiB after the target's crash");
    first.power_cut()?;
    let acks = writer.last_words()?;
    pair.wait(second, SOON, "the loss of the peer", |device| device.connection == "WFConnection")?;
    let device = pair.device(second)?;
    ensure!(device.disks.starts_with("Inconsistent/"), "{device:?}");
    exits_with(second, 17, "drbdadm primary r0")?;
    pair.power_on(first, &configuration())?;
    first.run_ok("drbdadm up r0")?;
    pair.wait_connected()?;
    first.run_ok("drbdadm primary r0")?;
    pair.wait_in_sync(RESYNC)?;
    pair.compare_disks()?;
    acks.check(&pair.scan(first, SECTORS)?)
}
