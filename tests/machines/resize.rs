//! Another size of the device while it is in use: both lower disks grow and the device follows, internal meta data moves to
//! the new end, the device becomes smaller and larger again; whoever made the modules, whoever is asked.

use anyhow::{bail, ensure, Context};
use lab::{stretched, Machine};
use machine_tests::config::Config;
use machine_tests::guest::Workload;
use machine_tests::pair::{Pair, Pairing, RESYNC, SOON};
use machine_tests::Result;
use std::time::{Duration, Instant};

/// MiB of the lower disks, before and after.
const SMALL_MIB: u64 = 20;
const LARGE_MIB: u64 = 44;

fn internal() -> Config {
    Config { lower: "/dev/mapper/lower".into(), ..Config::default() }
}

fn external() -> Config {
    Config { meta: "/dev/sda".into(), ..internal() }
}

#[test]
fn ours_with_ours() -> Result<()> {
    life(Pairing::OURS, &internal())
}

#[test]
fn ours_primary_c_secondary() -> Result<()> {
    life(Pairing::OURS_PRIMARY, &internal())
}

#[test]
fn c_primary_ours_secondary() -> Result<()> {
    life(Pairing::C_PRIMARY, &internal())
}

#[test]
fn with_external_meta_data() -> Result<()> {
    life(Pairing::OURS, &external())
}

/// The data is the same on both at every size, and what was written is there.
fn life(pairing: Pairing, config: &Config) -> Result<()> {
    let pair = Pair::new(pairing, config)?;
    for machine in pair.machines() {
        machine.run_ok(&format!("modprobe dm-mod && dmsetup create lower --table '{}'", table(SMALL_MIB)))?;
    }
    // What is behind the end differs and is nobody's data; that of the primary counts.
    pair.second().run_ok(&format!("dd if=/dev/urandom of=/dev/sdb1 bs=1M seek={SMALL_MIB} count=24 conv=fsync"))?;
    pair.both("drbdadm create-md --force r0 && drbdadm up r0")?;
    pair.wait_connected()?;
    pair.first().run_ok("drbdadm primary --force r0")?;
    pair.wait_in_sync(RESYNC)?;
    let small = sectors(pair.first())?;

    // The first machine is asked, which is primary, with a writer running.
    let writer = Workload { sectors: small, ..Workload::default() }.spawn(pair.first())?;
    writer.wait_more(20, SOON)?;
    pair.both(&format!("dmsetup load lower --table '{0}' && dmsetup resume lower", table(LARGE_MIB)))?;
    pair.first().run_ok("drbdadm resize r0")?;
    let large = wait_size(&pair, |size| size > small)?;
    writer.wait_more(20, SOON)?;
    let acks = writer.stop()?;
    pair.wait_in_sync(SOON)?;
    pair.compare_disks()?;
    acks.check(&pair.scan(pair.first(), small)?)?;

    // The new space is used; then the device shrinks and grows again, the second machine being asked.
    let acks = filled(&pair, large, 1_000_000)?;
    let half = small / 2 / 8 * 8;
    pair.first().run_ok(&format!("drbdsetup resize 0 --size={half}s"))?;
    wait_size(&pair, |size| size == half)?;
    pair.compare_disks()?;
    pair.second().run_ok("drbdsetup resize 0 --size=0 --assume-clean")?;
    wait_size(&pair, |size| size == large)?;
    pair.wait_in_sync(SOON)?;
    pair.compare_disks()?;
    acks.check(&pair.scan(pair.first(), large)?)?;

    // Everything was written down: it comes up again as it was.
    pair.one_by_one("drbdadm down r0")?;
    pair.both("drbdadm up r0")?;
    pair.wait_connected()?;
    pair.wait_in_sync(SOON)?;
    pair.first().run_ok("drbdadm primary r0")?;
    ensure!(sectors(pair.first())? == large, "the size is forgotten");
    acks.check(&pair.scan(pair.first(), large)?)?;
    filled(&pair, large, 2_000_000)?;
    pair.one_by_one("drbdadm down r0")?;
    pair.finish()
}

fn filled(pair: &Pair, sectors: u64, first: u64) -> Result<machine_tests::acks::Acks> {
    let workload = Workload { sectors, count: Some(60), longest: 2048, first, ..Workload::default() };
    let acks = workload.run(pair.first(), SOON)?;
    pair.compare_disks()?;
    acks.check(&pair.scan(pair.first(), sectors)?)?;
    Ok(acks)
}

fn table(mib: u64) -> String {
    format!("0 {} linear /dev/sdb1 0", mib << 11)
}

fn sectors(machine: &Machine) -> Result<u64> {
    let text = machine.run_ok("cat /sys/block/drbd0/size")?;
    text.parse().with_context(|| format!("size of /dev/drbd0: {text:?}"))
}

/// Waits until both devices have the same size, one that is wanted.
fn wait_size(pair: &Pair, wanted: impl Fn(u64) -> bool) -> Result<u64> {
    let until = Instant::now() + stretched(SOON);
    loop {
        let sizes = [sectors(pair.first())?, sectors(pair.second())?];
        if sizes[0] == sizes[1] && wanted(sizes[0]) {
            return Ok(sizes[0]);
        }
        if Instant::now() > until {
            bail!("the sizes stay {sizes:?}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
