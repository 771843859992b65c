//! Lower disks with wishes of their own: a partition of a disk that discards only whole granules, which begin neither where the disk
//! begins nor where the partition does, and an encrypted disk that takes only memory aligned to its blocks.

use anyhow::{ensure, Context};
use lab::Machine;
use machine_tests::config::Config;
use machine_tests::guest::{self, Workload};
use machine_tests::pair::{Pair, Pairing, RESYNC, SOON};
use machine_tests::Result;

/// MiB of the disk that discards.
const THIN_MIB: u64 = 40;
/// Blocks of 512 bytes of a granule, and the first one that begins a granule.
const GRANULE: u64 = 64;
const GRANULE_START: u64 = 37;
/// Where the partition begins, in the same blocks: in the middle of a granule, and of a block of 4096 bytes.
const PARTITION_START: u64 = 2051;
/// Sectors of the device that are looked at.
const SECTORS: u64 = 32 << 11;
/// What is discarded, first sector and how many: whole granules, none, parts at either end, a lot.
const DISCARDS: [(u64, u64); 8] = [
    (0, 8),
    (GRANULE * 4 + GRANULE_START - 3, GRANULE * 2),
    (5000, 40),
    (5101, 700),
    (8192, 8192),
    (20_001, 9_999),
    (40_000, 1),
    (50_000, SECTORS - 50_000),
];

#[test]
fn discards_ours_with_ours() -> Result<()> {
    discards(Pairing::OURS)
}

#[test]
fn discards_ours_primary_c_secondary() -> Result<()> {
    discards(Pairing::OURS_PRIMARY)
}

#[test]
fn discards_c_primary_ours_secondary() -> Result<()> {
    discards(Pairing::C_PRIMARY)
}

// The debug kernel cannot encrypt, so ours runs with the C module here.
#[test]
fn encrypted_ours_primary_c_secondary() -> Result<()> {
    encrypted(Pairing::OURS_PRIMARY)
}

#[test]
fn encrypted_c_primary_ours_secondary() -> Result<()> {
    encrypted(Pairing::C_PRIMARY)
}

/// Zeroes where something was discarded, and on both disks; what lies beside it stays, whoever discards it, connected or not.
fn discards(pairing: Pairing) -> Result<()> {
    let config = Config { lower: "/dev/thin1".into(), disk: "rs-discard-granularity 64k;".into(), ..Config::default() };
    let pair = Pair::new(pairing, &config)?;
    pair.machines().iter().try_for_each(thin_disk)?;
    pair.mirror()?;
    let (first, second) = (pair.first(), pair.second());
    for machine in pair.machines() {
        let most: u64 =
            machine.run_ok("cat /sys/block/drbd0/queue/discard_max_bytes")?.parse().context("a number of bytes")?;
        ensure!(most > 0, "{}: the device offers no discards", machine.name());
    }
    // Connected.
    fill(&pair, first)?;
    for (start, count) in DISCARDS {
        discard(first, start, count)?;
    }
    as_expected(&pair, first)?;
    pair.hand_over(first, second)?;
    // What was discarded while the other one was away is copied as discards.
    second.run_ok("drbdadm disconnect r0")?;
    fill(&pair, second)?;
    for (start, count) in DISCARDS {
        discard(second, start, count)?;
    }
    second.run_ok("drbdadm connect r0")?;
    pair.wait_in_sync(RESYNC)?;
    as_expected(&pair, second)?;
    pair.one_by_one("drbdadm down r0 && rm /dev/thin1 /dev/thin && modprobe --remove scsi_debug && rm /run/expected")?;
    pair.finish()
}

/// Makes `/dev/thin` with the partition `/dev/thin1`.
fn thin_disk(machine: &Machine) -> Result<()> {
    machine
        .run_ok(&format!(
            "modprobe scsi_debug dev_size_mb={THIN_MIB} lbpu=1 lbprz=1 delay=0 unmap_granularity={GRANULE} \
                 unmap_alignment={GRANULE_START} || exit; \
             for host in /sys/bus/pseudo/drivers/scsi_debug/adapter0/host*; do \
                 echo - - - >/sys/class/scsi_host/${{host##*/}}/scan; done; \
             for i in $(seq 100); do model=$(grep -l scsi_debug /sys/block/*/device/model) && break; sleep 0.1; done; \
             disk=/dev/$(basename ${{model%/device/model}}) && ln -s $disk /dev/thin && \
             echo 'start={PARTITION_START}, type=83' | sfdisk --quiet /dev/thin && ln -s ${{disk}}1 /dev/thin1 && \
             test -b /dev/thin1"
        ))
        .map(|_| ())
}

/// Fills the device and a file of what is expected on it.
fn fill(pair: &Pair, machine: &Machine) -> Result<()> {
    machine.run_ok(&format!(
        "head -c {} /dev/urandom >/run/expected && dd if=/run/expected of=/dev/drbd0 bs=1M oflag=direct status=none",
        SECTORS * 512
    ))?;
    pair.wait_idle()
}

/// Discards on the device, and zeroes in the file.
fn discard(machine: &Machine, start: u64, count: u64) -> Result<()> {
    machine
        .run_ok(&format!(
            "blkdiscard --offset $(({start} * 512)) --length $(({count} * 512)) /dev/drbd0 && \
             dd if=/dev/zero of=/run/expected bs=512 seek={start} count={count} conv=notrunc status=none"
        ))
        .map(|_| ())
}

/// The Primary reads it, and the lower disks hold it.
fn as_expected(pair: &Pair, primary: &Machine) -> Result<()> {
    pair.wait_idle()?;
    let bytes = SECTORS * 512;
    primary
        .run_ok(&format!("dd if=/dev/drbd0 iflag=direct bs=1M status=none | cmp --bytes={bytes} - /run/expected"))?;
    let expected = primary.run_ok("sha256sum </run/expected")?;
    for machine in pair.machines() {
        // Past what the partition's own cache has of an earlier look.
        let found = machine.run_ok(&format!(
            "blockdev --flushbufs /dev/thin1; dd if=/dev/thin1 iflag=direct bs=1M count={} status=none | sha256sum",
            bytes >> 20
        ))?;
        ensure!(found == expected, "{}: the lower disk differs from what was written", machine.name());
    }
    Ok(())
}

/// The device asks for memory aligned as the encrypted disk wants it, on both; writes, a resync, the other role.
fn encrypted(pairing: Pairing) -> Result<()> {
    let config = Config { lower: "/dev/mapper/lower".into(), ..Config::default() };
    let pair = Pair::new(pairing, &config)?;
    for machine in pair.machines() {
        machine.run_ok(&format!(
            "modprobe -a dm-crypt xts && dmsetup create lower --table \
             \"0 $(($(blockdev --getsz /dev/sdb1) / 8 * 8)) crypt aes-xts-plain64 {} 0 /dev/sdb1 0 1 sector_size:4096\"",
            "5a".repeat(64)
        ))?;
    }
    pair.mirror()?;
    let (first, second) = (pair.first(), pair.second());
    let workload = |first: u64| Workload {
        sectors: SECTORS,
        align: 8,
        first,
        seed: first,
        count: Some(25),
        ..Workload::default()
    };
    // What nobody has written is no zeroes, decrypted.
    first.run_ok(&format!("dd if=/dev/zero of=/dev/drbd0 bs=1M count={} oflag=direct status=none", SECTORS >> 11))?;
    let mut acks = workload(1).run(first, SOON)?;
    for [from, to] in [[first, second], [second, first]] {
        for name in ["logical_block_size", "dma_alignment"] {
            let [lower, ours] = ["/dev/mapper/lower", "/dev/drbd0"].map(|device| {
                from.run_ok(&format!(
                    "cat /sys/dev/block/$(lsblk --nodeps --noheadings --raw --output MAJ:MIN {device})/queue/{name}"
                ))
            });
            let [lower, ours]: [u64; 2] = [lower?.parse()?, ours?.parse()?];
            ensure!(ours >= lower, "{}: {name} is {ours}, the lower disk's {lower}", from.name());
        }
        // Refused by the kernel, so that the disk need not fail.
        let odd = from.run(&format!(
            "{} write --device /dev/drbd0 --start 0 --sectors 80 --threads 1 --align 8 --longest 8 \
                                     --seed 1 --first 900000 --count 1 --memory-offset 512",
            guest::PATH
        ))?;
        ensure!(odd.error_text().contains("Invalid argument"), "{}: memory that is not aligned: {odd}", from.name());
        pair.wait_in_sync(SOON)?;
        to.run_ok("drbdadm disconnect r0")?;
        acks.merge(&workload(100_000 * (1 + u64::from(from.name() == second.name()))).run(from, SOON)?);
        to.run_ok("drbdadm connect r0")?;
        pair.wait_in_sync(RESYNC)?;
        pair.hand_over(from, to)?;
        acks.check(&pair.scan(to, SECTORS)?)?;
    }
    // The same key on both: what differs encrypted differs.
    pair.compare_disks()?;
    pair.one_by_one("drbdadm down r0 && dmsetup remove lower")?;
    pair.finish()
}
