//! Faults on purpose, by the module's parameters `enable_faults`, `fault_rate` and `fault_devs`: what they name fails, nothing
//! else, and the pair lives through it. Debian's C module is built without them.

use anyhow::ensure;
use lab::{Machine, Module};
use machine_tests::acks::Acks;
use machine_tests::config::Config;
use machine_tests::guest::Workload;
use machine_tests::pair::{Pair, Pairing, RESYNC, SOON};
use machine_tests::Result;

/// Sectors the writers use.
const SECTORS: u64 = 16 << 11;

/// Bits of `enable_faults`.
const META_WRITE: u32 = 1;
const META_READ: u32 = 1 << 1;
const RESYNC_WRITE: u32 = 1 << 2;
const DATA_WRITE: u32 = 1 << 4;
const DATA_READ: u32 = 1 << 5;
const BITMAP_MEMORY: u32 = 1 << 7;
const PEER_REQUEST: u32 = 1 << 8;
const RECEIVE: u32 = 1 << 9;

#[test]
fn ours_with_ours() -> Result<()> {
    all_faults(Pairing::OURS)
}

#[test]
fn ours_primary_c_secondary() -> Result<()> {
    all_faults(Pairing::OURS_PRIMARY)
}

fn all_faults(pairing: Pairing) -> Result<()> {
    ensure!(!Pairing::is_module_replaced(), "the C module has no such parameters");
    let config = Config { on_io_error: "pass_on".into(), net: "verify-alg crc32c;".into(), ..Config::default() };
    let pair = Pair::mirrored(pairing, &config)?;
    let mut acks = write(pair.first(), 1)?;
    not_meant(&pair, &mut acks)?;
    reads_and_writes(&pair, &mut acks)?;
    if pairing.modules[1] == Module::Ours {
        resync_writes(&pair, &mut acks)?;
        received(&pair, &mut acks)?;
    }
    meta_data(&pair, &mut acks)?;
    acks.check(&pair.scan(pair.first(), SECTORS)?)?;
    pair.one_by_one("drbdadm down r0")?;
    pair.finish()
}

/// From now on these fail, with this probability in per cent, on these minors (a bit for each, 0: all).
fn inject(machine: &Machine, faults: u32, rate: u32, minors: u32) -> Result<()> {
    let at = "/sys/module/drbd/parameters";
    machine
        .run_ok(&format!(
            "echo {rate} >{at}/fault_rate; echo {minors} >{at}/fault_devs; echo {faults} >{at}/enable_faults"
        ))
        .map(|_| ())
}

fn nothing_fails(machine: &Machine) -> Result<()> {
    inject(machine, 0, 0, 0)
}

/// How many requests were made to fail up to now.
fn injected(machine: &Machine) -> Result<u64> {
    Ok(machine.run_ok("cat /sys/module/drbd/parameters/fault_count")?.parse()?)
}

fn write(machine: &Machine, number: u64) -> Result<Acks> {
    let first = number * 100_000;
    Workload { sectors: SECTORS, first, seed: number, count: Some(20), ..Workload::default() }.run(machine, SOON)
}

fn wait_disks(pair: &Pair, machine: &Machine, disks: &str) -> Result<()> {
    pair.wait(machine, SOON, &format!("disks {disks}"), |device| device.disks == disks).map(|_| ())
}

/// The connection is made anew, and repairs what failed.
fn repaired(pair: &Pair) -> Result<()> {
    pair.second().run_ok("drbdadm disconnect --force r0")?;
    pair.wait(pair.first(), SOON, "a peer that left", |device| device.connection == "WFConnection")?;
    pair.second().run_ok("drbdadm connect r0")?;
    pair.wait_in_sync(RESYNC)?;
    pair.compare_disks()
}

/// Another minor is named, or no request at all.
fn not_meant(pair: &Pair, acks: &mut Acks) -> Result<()> {
    let first = pair.first();
    let everything = META_WRITE | DATA_WRITE | DATA_READ;
    for (number, rate, minors) in [(2, 100, 0b10), (3, 0, 0b1)] {
        inject(first, everything, rate, minors)?;
        acks.merge(&write(first, number)?);
        acks.check(&pair.scan(first, SECTORS)?)?;
        ensure!(injected(first)? == 0, "rate {rate}, minors {minors}: {} requests failed", injected(first)?);
    }
    nothing_fails(first)?;
    pair.wait_in_sync(SOON)
}

/// The peer serves the application, which notices nothing.
fn reads_and_writes(pair: &Pair, acks: &mut Acks) -> Result<()> {
    let first = pair.first();
    for (number, faults, minors) in [(4, DATA_READ, 0b1), (5, DATA_WRITE, 0)] {
        let before = injected(first)?;
        inject(first, faults, 100, minors)?;
        acks.check(&pair.scan(first, SECTORS)?)?;
        acks.merge(&write(first, number)?);
        wait_disks(pair, first, "Inconsistent/UpToDate")?;
        acks.check(&pair.scan(first, SECTORS)?)?;
        ensure!(injected(first)? > before, "{faults:#x}: no fault was counted");
        nothing_fails(first)?;
        repaired(pair)?;
    }
    Ok(())
}

/// Half of a resync fails on its target: what failed stays marked, what did not fail is good, the next one does the rest.
fn resync_writes(pair: &Pair, acks: &mut Acks) -> Result<()> {
    let (first, second) = (pair.first(), pair.second());
    first.run_ok("drbdadm disconnect r0")?;
    acks.merge(&write(first, 6)?);
    let marked_kib = pair.device(first)?.counter("oos")?;
    inject(second, RESYNC_WRITE, 50, 0)?;
    first.run_ok("drbdadm connect r0")?;
    for (machine, disks) in [(first, "UpToDate/Inconsistent"), (second, "Inconsistent/UpToDate")] {
        pair.wait(machine, RESYNC, "the end of a resync that failed in part", |device| {
            device.connection == "Connected" && device.disks == disks
        })?;
    }
    let left_kib = pair.device(first)?.counter("oos")?;
    println!("{} writes failed, {left_kib} of {marked_kib} KiB are left", injected(second)?);
    ensure!(injected(second)? > 0 && left_kib > 0 && left_kib < marked_kib, "{left_kib} of {marked_kib} KiB are left");
    nothing_fails(second)?;
    repaired(pair)
}

/// What arrives as something else is found by a verify run; a request without memory costs the connection, and no more.
fn received(pair: &Pair, acks: &mut Acks) -> Result<()> {
    let (first, second) = (pair.first(), pair.second());
    inject(second, RECEIVE, 100, 0)?;
    acks.merge(&write(first, 8)?);
    nothing_fails(second)?;
    ensure!(pair.compare_disks().is_err(), "nothing arrived as something else");
    first.run_ok("drbdsetup verify 0")?;
    for machine in pair.machines() {
        pair.wait(machine, RESYNC, "the end of the verify run", |device| device.connection == "Connected")?;
    }
    ensure!(pair.device(first)?.counter("oos")? > 0, "the verify run found nothing");
    repaired(pair)?;
    let before = injected(second)?;
    inject(second, PEER_REQUEST, 100, 0)?;
    acks.merge(&write(first, 9)?);
    ensure!(injected(second)? > before, "no fault was counted");
    nothing_fails(second)?;
    pair.wait_in_sync(RESYNC)?;
    pair.compare_disks()
}

/// Meta data that cannot be written costs the disk, that cannot be read, or has no room in memory, keeps it away.
fn meta_data(pair: &Pair, acks: &mut Acks) -> Result<()> {
    let first = pair.first();
    inject(first, META_WRITE, 100, 0)?;
    // A part of the disk that the activity log does not know yet.
    first.run_ok("dd if=/dev/urandom of=/dev/drbd0 bs=4k count=1 seek=15000 oflag=direct status=none")?;
    wait_disks(pair, first, "Diskless/UpToDate")?;
    acks.merge(&write(first, 10)?);
    for fault in [META_READ, BITMAP_MEMORY] {
        inject(first, fault, 100, 0)?;
        let attach = first.run("drbdadm attach r0")?;
        ensure!(!attach.success(), "attached in spite of fault {fault:#x}");
        wait_disks(pair, first, "Diskless/UpToDate")?;
    }
    nothing_fails(first)?;
    first.run_ok("drbdadm attach r0")?;
    pair.wait_in_sync(RESYNC)?;
    pair.compare_disks()
}
