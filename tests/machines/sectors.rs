//! A lower disk of 512 bytes a logical block on one machine and of 4096 on the other: the device offers what both can take, and
//! data goes both ways. The C module offers what its own disk can take; with it, the application keeps to 4096 bytes.

use anyhow::ensure;
use lab::{Machine, Module};
use machine_tests::config::Config;
use machine_tests::guest::Workload;
use machine_tests::pair::{Pair, Pairing, RESYNC, SOON};
use machine_tests::Result;

/// Sectors the writers use.
const SECTORS: u64 = 16 << 11;

/// Sectors of the larger block.
const ALIGNED: u64 = 8;

#[test]
fn ours_with_ours() -> Result<()> {
    mixed(Pairing::OURS)
}

#[test]
fn ours_primary_c_secondary() -> Result<()> {
    mixed(Pairing::OURS_PRIMARY)
}

#[test]
fn c_primary_ours_secondary() -> Result<()> {
    mixed(Pairing::C_PRIMARY)
}

fn mixed(pairing: Pairing) -> Result<()> {
    let config = Config { lower: "/dev/mapper/lower".into(), ..Config::default() };
    let pair = Pair::new(pairing, &config)?;
    for with_4k in 0..2 {
        for (index, machine) in pair.machines().iter().enumerate() {
            lower_disk(machine, index == with_4k)?;
        }
        pair.mirror()?;
        for (index, module) in pairing.replaced().modules.into_iter().enumerate() {
            let expected = if index == with_4k || module == Module::Ours { "4096" } else { "512" };
            let found = pair.machines()[index].run_ok("cat /sys/block/drbd0/queue/logical_block_size")?;
            ensure!(found == expected, "{}: a block of {found} bytes, not {expected}", pair.machines()[index].name());
        }
        life(&pair)?;
        pair.one_by_one("drbdadm down r0 && dmsetup remove lower")?;
        pair.machines()[with_4k].run_ok("losetup --detach /dev/loop0")?;
    }
    pair.finish()
}

/// Puts `/dev/mapper/lower` over the disk, with blocks of 512 or 4096 bytes.
fn lower_disk(machine: &Machine, with_4k: bool) -> Result<()> {
    let mut lower = "/dev/sdb1";
    if with_4k {
        machine.run_ok(&format!("modprobe loop && losetup --direct-io=on --sector-size 4096 /dev/loop0 {lower}"))?;
        lower = "/dev/loop0";
    }
    let _made = machine.faulty_disk("lower", lower)?;
    Ok(())
}

/// Writes, resync, other roles, and a disk that is away for a while; always on whole blocks of the larger size.
fn life(pair: &Pair) -> Result<()> {
    let (first, second) = (pair.first(), pair.second());
    let workload = |number: u64| Workload {
        sectors: SECTORS,
        align: ALIGNED,
        first: number * 100_000,
        seed: number,
        count: Some(25),
        ..Workload::default()
    };
    let mut acks = workload(1).run(first, SOON)?;
    pair.compare_disks()?;
    for (number, [from, to]) in [(2, [first, second]), (4, [second, first])] {
        from.run_ok("drbdadm disconnect r0")?;
        acks.merge(&workload(number).run(from, SOON)?);
        from.run_ok("drbdadm connect r0")?;
        pair.wait_in_sync(RESYNC)?;
        acks.check(&pair.scan(from, SECTORS)?)?;
        from.run_ok("drbdadm detach r0")?;
        acks.merge(&workload(number + 1).run(from, SOON)?);
        acks.check(&pair.scan(from, SECTORS)?)?;
        from.run_ok("drbdadm attach r0")?;
        pair.wait_in_sync(RESYNC)?;
        pair.compare_disks()?;
        pair.hand_over(from, to)?;
        acks.check(&pair.scan(to, SECTORS)?)?;
    }
    Ok(())
}
