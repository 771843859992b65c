//! Two machines, one disk, whoever made the modules: initial sync, writes under A, B and C, an outage with I/O running, the
//! roles exchanged, a clean disconnect; in the end both lower disks are the same byte by byte.

use machine_tests::config::Config;
use machine_tests::guest::Workload;
use machine_tests::pair::{Pair, Pairing, DISK_MIB, RESYNC, SOON};
use machine_tests::Result;
use std::time::Duration;

/// Sectors the writers use: a part of the disk, so that "the whole disk was copied" can be told from "what was written".
const SECTORS: u64 = 24 << 11;

/// What the writer may put out of sync between the look at the bitmap and the end of the outage.
const SLACK_KIB: u64 = 4096;

#[test]
fn ours_with_ours() -> Result<()> {
    mirror(Pairing::OURS)
}

#[test]
fn ours_primary_c_secondary() -> Result<()> {
    mirror(Pairing::OURS_PRIMARY)
}

#[test]
fn c_primary_ours_secondary() -> Result<()> {
    mirror(Pairing::C_PRIMARY)
}

fn mirror(pairing: Pairing) -> Result<()> {
    let config = Config::default();
    let pair = Pair::new(pairing, &config)?;
    initial_sync(&pair)?;
    for protocol in ['A', 'B', 'C'] {
        reconnect_with(&pair, &Config { protocol, ..config.clone() })?;
        writes(&pair)?;
    }
    outage(&pair)?;
    roles_exchanged(&pair)?;
    file_system(&pair)?;
    clean_disconnect(&pair)?;
    pair.compare_disks()?;
    pair.one_by_one("drbdadm down r0")?;
    pair.finish()
}

/// What was on the first machine's disk before is on both afterwards.
fn initial_sync(pair: &Pair) -> Result<()> {
    let lower = Workload {
        device: "/dev/sdb1".into(),
        sectors: (DISK_MIB - 2) << 11,
        count: Some(50),
        longest: 2048,
        ..Workload::default()
    };
    let acks = lower.run(pair.first(), SOON)?;
    pair.both("drbdadm create-md --force r0")?;
    pair.both("drbdadm up r0")?;
    pair.wait_connected()?;
    for machine in pair.machines() {
        let device = pair.device(machine)?;
        assert_eq!((&*device.roles, &*device.disks), ("Secondary/Secondary", "Inconsistent/Inconsistent"));
    }
    pair.first().run_ok("drbdadm primary --force r0")?;
    pair.wait_in_sync(RESYNC)?;
    pair.compare_disks()?;
    acks.check(&pair.scan(pair.first(), lower.sectors)?)
}

fn reconnect_with(pair: &Pair, config: &Config) -> Result<()> {
    // One after the other: two at the same moment may lose against each other.
    pair.second().run_ok("drbdadm disconnect r0")?;
    pair.first().run_ok("drbdadm disconnect r0")?;
    pair.configure(config)?;
    pair.both("drbdadm connect r0")?;
    pair.wait_in_sync(SOON)
}

/// Writes of all lengths and places, several at a time, up to the largest that are split.
fn writes(pair: &Pair) -> Result<()> {
    let workload =
        Workload { sectors: SECTORS, count: Some(60), longest: 4096, first: 1_000_000, ..Workload::default() };
    let acks = workload.run(pair.first(), SOON)?;
    pair.compare_disks()?;
    acks.check(&pair.scan(pair.first(), SECTORS)?)
}

fn file_system(pair: &Pair) -> Result<()> {
    let files = "cd /mnt && find . -type f | sort | xargs sha256sum; cd /; umount /mnt";
    let there = pair.first().run_ok(&format!(
        "mkfs.ext4 -q /dev/drbd0 && mount /dev/drbd0 /mnt && cp -r /etc/init.d /etc/default /bin/bash /mnt && {files}"
    ))?;
    pair.hand_over(pair.first(), pair.second())?;
    let here = pair.second().run_ok(&format!("mount /dev/drbd0 /mnt && {files}"))?;
    assert_eq!(there, here);
    pair.hand_over(pair.second(), pair.first())?;
    pair.compare_disks()
}

/// The link breaks while the primary writes, comes back while it still writes; only what was written meanwhile is copied.
fn outage(pair: &Pair) -> Result<()> {
    let workload = Workload { sectors: SECTORS, first: 2_000_000, longest: 64, ..Workload::default() };
    let writer = workload.spawn(pair.first())?;
    writer.wait_more(50, SOON)?;
    pair.cluster().wire().cut();
    for machine in pair.machines() {
        pair.wait(machine, SOON, "the loss of the peer", |device| device.connection == "WFConnection")?;
    }
    writer.wait_more(50, SOON)?;
    let received = |pair: &Pair| pair.device(pair.second())?.counter("nr");
    let received_kib = received(pair)?;
    let acknowledged_kib = writer.acks()?.kib();
    let out_of_sync_kib = pair.device(pair.first())?.counter("oos")?;
    assert!(out_of_sync_kib > 0);
    pair.cluster().wire().restore();
    pair.wait(pair.second(), SOON, "a resync from the first machine", |device| {
        device.connection == "SyncTarget" || device.connection == "Connected"
    })?;
    writer.wait_more(50, SOON)?;
    pair.wait_in_sync(RESYNC)?;
    writer.wait_more(10, SOON)?;
    let acks = writer.stop()?;
    pair.wait_idle()?;
    let copied_kib = (received(pair)? - received_kib).saturating_sub(acks.kib() - acknowledged_kib);
    assert!(
        copied_kib <= out_of_sync_kib + SLACK_KIB && copied_kib < DISK_MIB * 1024 / 2,
        "{out_of_sync_kib} KiB were out of sync, {copied_kib} KiB were copied"
    );
    pair.compare_disks()?;
    acks.check(&pair.scan(pair.first(), SECTORS)?)
}

/// The second machine serves, and what it writes arrives on the first.
fn roles_exchanged(pair: &Pair) -> Result<()> {
    pair.hand_over(pair.first(), pair.second())?;
    let device = pair.device(pair.second())?;
    assert_eq!((&*device.roles, &*device.connection), ("Primary/Secondary", "Connected"));
    let workload = Workload { sectors: SECTORS, count: Some(60), first: 3_000_000, ..Workload::default() };
    let acks = workload.run(pair.second(), SOON)?;
    pair.hand_over(pair.second(), pair.first())?;
    acks.check(&pair.scan(pair.first(), SECTORS)?)
}

/// A pause without writes costs nothing; one with writes costs what was written.
fn clean_disconnect(pair: &Pair) -> Result<()> {
    pair.second().run_ok("drbdadm disconnect r0")?;
    pair.wait(pair.first(), SOON, "a peer that left", |device| device.connection == "WFConnection")?;
    pair.second().run_ok("drbdadm connect r0")?;
    pair.wait_in_sync(SOON)?;
    assert_eq!(pair.device(pair.second())?.counter("nr")?, 0, "nothing was written, something was copied");
    pair.first().run_ok("drbdadm disconnect r0")?;
    pair.first().run_ok("dd if=/dev/urandom of=/dev/drbd0 bs=64k count=16 oflag=direct status=none")?;
    std::thread::sleep(Duration::from_millis(100));
    pair.first().run_ok("drbdadm connect r0")?;
    pair.wait_in_sync(SOON)?;
    assert_eq!(pair.device(pair.second())?.counter("nr")?, 1024);
    Ok(())
}
