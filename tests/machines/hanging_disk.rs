//! A lower disk that does not answer any more: let go after `disk-timeout`, or by a forced detach, while the application goes
//! on with the peer's data; attached again it is brought up to date.

use anyhow::ensure;
use lab::Module;
use machine_tests::config::Config;
use machine_tests::guest::Workload;
use machine_tests::pair::{Pair, Pairing, RESYNC, SOON};
use machine_tests::Result;

/// Sectors the writer uses.
const SECTORS: u64 = 16 << 11;

fn config() -> Config {
    Config { lower: "/dev/mapper/lower".into(), disk: "disk-timeout 30;".into(), ..Config::default() }
}

#[test]
fn ours_with_ours() -> Result<()> {
    hangs_twice(Pairing::OURS)
}

#[test]
fn ours_primary_c_secondary() -> Result<()> {
    hangs_twice(Pairing::OURS_PRIMARY)
}

fn hangs_twice(pairing: Pairing) -> Result<()> {
    ensure!(pairing.modules[0] == Module::Ours && !Pairing::is_module_replaced(), "the C module does not survive this");
    let pair = Pair::new(pairing, &config())?;
    let disk = pair.first().faulty_disk("lower", "/dev/sdb1")?;
    let other = pair.second().faulty_disk("lower", "/dev/sdb1")?;
    pair.both("drbdadm create-md --force r0 && drbdadm up r0")?;
    pair.wait_connected()?;
    pair.first().run_ok("drbdadm primary --force r0")?;
    pair.wait_in_sync(RESYNC)?;
    let writer = Workload { sectors: SECTORS, ..Workload::default() }.spawn(pair.first())?;
    for by_command in [false, true] {
        writer.wait_more(20, SOON)?;
        disk.hang()?;
        if by_command {
            // Something has to be on the disk, or it would be gone at once.
            pair.wait(pair.first(), SOON, "a request that hangs", |device| {
                device.counter("lo").is_ok_and(|requests| requests > 0)
            })?;
            pair.first().run_ok("drbdsetup detach 0 --force")?;
        }
        pair.wait(pair.first(), SOON, "a disk given up", |device| device.disks == "Failed/UpToDate")?;
        // Writes and reads go on, the peer alone serving them.
        writer.wait_more(20, SOON)?;
        pair.first().run_ok("dd if=/dev/drbd0 of=/dev/null bs=64k count=16 iflag=direct status=none")?;
        disk.heal()?;
        pair.wait(pair.first(), SOON, "no disk", |device| device.disks == "Diskless/UpToDate")?;
        writer.wait_more(20, SOON)?;
        pair.first().run_ok("drbdadm attach r0")?;
        pair.wait_in_sync(RESYNC)?;
    }
    let acks = writer.stop()?;
    pair.compare_disks()?;
    acks.check(&pair.scan(pair.first(), SECTORS)?)?;
    pair.one_by_one("drbdadm down r0")?;
    disk.remove()?;
    other.remove()?;
    pair.finish()
}
