//! A power cut of each side while the primary writes: every write that was acknowledged is found afterwards, and only what may
//! differ is copied.
//!
//! The acknowledgements reach the host through the machine's agent, so they survive the machine.

use machine_tests::config::Config;
use machine_tests::guest::Workload;
use machine_tests::pair::{Pair, Pairing, DISK_MIB, RESYNC, SOON};
use machine_tests::Result;

/// Sectors the writers use: six extents of the activity log of sixteen on the disk.
const SECTORS: u64 = 24 << 11;

/// The most that may be copied: after a crash, what the activity log covers counts as different.
const MOST_KIB: u64 = 28 * 1024;

#[test]
fn primary_ours_with_ours() -> Result<()> {
    primary_loses_power(Pairing::OURS)
}

#[test]
fn primary_ours_with_c() -> Result<()> {
    primary_loses_power(Pairing::OURS_PRIMARY)
}

#[test]
fn primary_c_with_ours() -> Result<()> {
    primary_loses_power(Pairing::C_PRIMARY)
}

#[test]
fn secondary_ours_with_ours() -> Result<()> {
    secondary_loses_power(Pairing::OURS)
}

#[test]
fn secondary_c_of_ours() -> Result<()> {
    secondary_loses_power(Pairing::OURS_PRIMARY)
}

#[test]
fn secondary_ours_of_c() -> Result<()> {
    secondary_loses_power(Pairing::C_PRIMARY)
}

fn workload() -> Workload {
    Workload { sectors: SECTORS, longest: 64, ..Workload::default() }
}

fn primary_loses_power(pairing: Pairing) -> Result<()> {
    let pair = Pair::mirrored(pairing, &Config::default())?;
    let (first, second) = (pair.first(), pair.second());
    let writer = workload().spawn(first)?;
    writer.wait_more(200, SOON)?;
    first.power_cut()?;
    let mut acks = writer.last_words()?;

    pair.wait(second, SOON, "the loss of the peer", |device| device.connection == "WFConnection")?;
    second.run_ok("drbdadm primary r0")?;
    acks.check(&pair.scan(second, SECTORS)?)?;

    let more = Workload { first: 1_000_000, ..workload() };
    let writer = more.spawn(second)?;
    writer.wait_more(50, SOON)?;
    pair.power_on(first, &Config::default())?;
    first.run_ok("drbdadm up r0")?;
    pair.wait_connected()?;
    writer.wait_more(50, SOON)?;
    pair.wait_in_sync(RESYNC)?;
    let later = writer.stop()?;
    pair.wait_idle()?;
    let copied_kib = pair.device(first)?.counter("nr")?.saturating_sub(later.kib());
    assert!(copied_kib <= MOST_KIB, "{copied_kib} KiB were copied");
    acks.merge(&later);
    pair.compare_disks()?;
    pair.hand_over(second, first)?;
    acks.check(&pair.scan(first, SECTORS)?)?;
    pair.one_by_one("drbdadm down r0")?;
    pair.finish()
}

fn secondary_loses_power(pairing: Pairing) -> Result<()> {
    let pair = Pair::mirrored(pairing, &Config::default())?;
    let (first, second) = (pair.first(), pair.second());
    let writer = workload().spawn(first)?;
    writer.wait_more(200, SOON)?;
    second.power_cut()?;
    pair.wait(first, SOON, "the loss of the peer", |device| device.connection == "WFConnection")?;
    writer.wait_more(50, SOON)?;
    pair.power_on(second, &Config::default())?;
    let acknowledged_kib = writer.acks()?.kib();
    second.run_ok("drbdadm up r0")?;
    pair.wait_connected()?;
    writer.wait_more(50, SOON)?;
    pair.wait_in_sync(RESYNC)?;
    let acks = writer.stop()?;
    pair.wait_idle()?;
    let received_kib = pair.device(second)?.counter("nr")?;
    let copied_kib = received_kib.saturating_sub(acks.kib() - acknowledged_kib);
    assert!(copied_kib <= MOST_KIB, "{copied_kib} KiB of {DISK_MIB} MiB were copied");
    pair.compare_disks()?;
    pair.hand_over(first, second)?;
    acks.check(&pair.scan(second, SECTORS)?)?;
    pair.one_by_one("drbdadm down r0")?;
    pair.finish()
}
