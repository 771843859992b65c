//! Skipping the initial sync, and a writer that does not wait for a slow link: whoever made the modules.

use anyhow::ensure;
use lab::Module;
use machine_tests::config::Config;
use machine_tests::guest::Workload;
use machine_tests::pair::{Pair, Pairing, RESYNC, SOON};
use machine_tests::Result;
use std::time::Duration;

/// Sectors the writers use.
const SECTORS: u64 = 32 << 11;

#[test]
fn initial_sync_skipped_ours_with_ours() -> Result<()> {
    skipped(Pairing::OURS)
}

#[test]
fn initial_sync_skipped_by_ours() -> Result<()> {
    skipped(Pairing::OURS_PRIMARY)
}

#[test]
fn initial_sync_skipped_by_the_c_module() -> Result<()> {
    skipped(Pairing::C_PRIMARY)
}

#[test]
fn congestion_ours_with_ours() -> Result<()> {
    congested(Pairing::OURS)
}

#[test]
fn congestion_of_ours() -> Result<()> {
    congested(Pairing::OURS_PRIMARY)
}

#[test]
fn congestion_of_the_c_module() -> Result<()> {
    congested(Pairing::C_PRIMARY)
}

fn skipped(pairing: Pairing) -> Result<()> {
    let pair = Pair::new(pairing, &Config::default())?;
    pair.both("drbdadm create-md --force r0 && drbdadm up r0")?;
    pair.wait_connected()?;
    pair.first().run_ok("drbdadm new-current-uuid --clear-bitmap r0/0")?;
    pair.wait_in_sync(SOON)?;
    for machine in pair.machines() {
        let device = pair.device(machine)?;
        let counter = |name: &str| device.counters.get(name).copied();
        ensure!(counter("oos") == Some(0), "{device:?}");
        ensure!(counter("ns") == Some(0) && counter("nr") == Some(0), "something was copied: {device:?}");
    }
    ensure!(
        !pair.first().run("drbdadm new-current-uuid --clear-bitmap r0/0")?.success(),
        "only a new pair may do that"
    );
    pair.first().run_ok("drbdadm primary r0")?;
    let acks = Workload { sectors: SECTORS, count: Some(40), ..Workload::default() }.run(pair.first(), SOON)?;
    new_generation(&pair)?;
    pair.hand_over(pair.first(), pair.second())?;
    acks.check(&pair.scan(pair.second(), SECTORS)?)?;
    pair.compare_disks()?;
    pair.one_by_one("drbdadm down r0")?;
    pair.finish()
}

/// Without `--clear-bitmap` the command begins a new generation; at the next connection nothing has to be copied for it.
fn new_generation(pair: &Pair) -> Result<()> {
    let (first, second) = (pair.first(), pair.second());
    ensure!(!first.run("drbdadm new-current-uuid r0/0")?.success(), "not while it is connected");
    first.run_ok("drbdadm secondary r0 && drbdadm disconnect r0")?;
    let before = generations(first)?;
    first.run_ok("drbdadm new-current-uuid r0/0")?;
    let after = generations(first)?;
    ensure!(after[0] != before[0] && after[1] == before[0], "from {before:x?} to {after:x?}");
    let received = |machine| pair.device(machine)?.counter("nr");
    let before_kib = received(second)?;
    first.run_ok("drbdadm connect r0")?;
    pair.wait_in_sync(SOON)?;
    let now = [generations(first)?[0], generations(second)?[0]];
    ensure!(now == [after[0]; 2] && received(second)? == before_kib, "{now:x?} after {after:x?}");
    first.run_ok("drbdadm primary r0").map(|_| ())
}

/// Current, bitmap and the last two generations, without their lowest bits, which tell who was Primary.
fn generations(machine: &lab::Machine) -> Result<Vec<u64>> {
    let set = machine.run_ok("drbdsetup get-gi 0")?;
    let uuids = set.trim().split(':').take(4).map(|uuid| u64::from_str_radix(uuid, 16));
    Ok(uuids.map(|uuid| uuid.map(|uuid| uuid & !1)).collect::<Result<_, _>>()?)
}

/// The link is too slow for the writer: the nodes part, and catch up when it has finished.
fn congested(pairing: Pairing) -> Result<()> {
    let net = "on-congestion pull-ahead; congestion-fill 64K; sndbuf-size 128K;";
    let pair = Pair::mirrored(pairing, &Config { protocol: 'A', net: net.into(), ..Config::default() })?;
    pair.cluster().wire().delay(Duration::from_millis(150));
    let writer = Workload { sectors: SECTORS, ..Workload::default() }.spawn(pair.first())?;
    pair.wait(pair.first(), SOON, "Ahead", |device| device.connection == "Ahead")?;
    pair.wait(pair.second(), SOON, "Behind", |device| device.connection == "Behind")?;
    writer.wait_more(50, SOON)?;
    let acks = writer.stop()?;
    pair.cluster().wire().restore();
    pair.wait_in_sync(RESYNC)?;
    pair.compare_disks()?;
    acks.check(&pair.scan(pair.first(), SECTORS)?)?;
    if pairing.replaced().modules[0] == Module::Ours {
        disk_lost_while_ahead(&pair)?;
    }
    pair.one_by_one("drbdadm down r0")?;
    pair.finish()
}

/// The peer lacks what it was only told of, and the disk that has it is gone: whatever the peer says, the Primary does not read there. (A
/// C module says that it is UpToDate.) When it has its disk again that is the source.
fn disk_lost_while_ahead(pair: &Pair) -> Result<()> {
    pair.cluster().wire().delay(Duration::from_millis(150));
    let writer = Workload { sectors: SECTORS, first: 100_001, ..Workload::default() }.spawn(pair.first())?;
    pair.wait(pair.first(), SOON, "Ahead", |device| device.connection == "Ahead")?;
    pair.wait(pair.second(), SOON, "Behind", |device| device.connection == "Behind")?;
    writer.wait_more(50, SOON)?;
    pair.first().run_ok("drbdadm detach --force r0")?;
    pair.wait(pair.first(), SOON, "no disk", |device| device.disks.starts_with("Diskless/"))?;
    pair.cluster().wire().restore();
    pair.wait(pair.second(), SOON, "the loss", |device| device.disks.ends_with("/Diskless"))?;
    let acks = writer.last_words()?;
    for _ in 0..10 {
        let device = pair.device(pair.first())?;
        ensure!(
            device.disks != "Diskless/UpToDate",
            "data that lacks acknowledged writes is taken for good: {device:?}"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    let read = pair.first().run("dd if=/dev/drbd0 of=/dev/null bs=4k count=1 iflag=direct")?;
    ensure!(!read.success(), "old data was read: {read}");
    pair.first().run_ok("drbdadm attach r0")?;
    pair.wait_in_sync(RESYNC)?;
    pair.compare_disks()?;
    acks.check(&pair.scan(pair.first(), SECTORS)?)
}
