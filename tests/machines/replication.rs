//! Replication between two modules in every combination: protocols changed while writing, read balancing, write ordering, discards
//! and zeroes, odd sizes, pages that change in flight, a side without a disk, two primaries.

use crate::rows::{self, Step};
use anyhow::{ensure, Context};
use lab::{Machine, Module};
use machine_tests::acks::Acks;
use machine_tests::config::Config;
use machine_tests::guest::{self, Workload};
use machine_tests::pair::{Pair, Pairing, RESYNC, SOON};
use machine_tests::Result;
use std::collections::HashMap;

/// Sectors the writers use.
const SECTORS: u64 = 16 << 11;

#[test]
fn ours_with_ours() -> Result<()> {
    replication(Pairing::OURS, &[])
}

#[test]
fn ours_primary_c_secondary() -> Result<()> {
    replication(Pairing::OURS_PRIMARY, &["protocols", "balancing", "ordering", "diskless-primary"])
}

#[test]
fn c_primary_ours_secondary() -> Result<()> {
    replication(Pairing::C_PRIMARY, &["protocols", "discards", "stable", "diskless-secondary", "dual"])
}

const STEPS: &[Step] = &[
    ("protocols", protocols),
    ("balancing", read_balancing),
    ("ordering", write_ordering),
    ("discards", discards),
    ("stable", stable_pages),
    ("diskless-secondary", diskless_secondary),
    ("diskless-primary", diskless_primary),
    ("dual", two_primaries),
];

fn replication(pairing: Pairing, short: &[&str]) -> Result<()> {
    rows::run(pairing, &Config::default(), STEPS, short)
}

/// Protocols A, B and C take turns while the primary writes.
fn protocols(pair: &Pair) -> Result<()> {
    let writer = Workload { sectors: SECTORS, ..Workload::default() }.spawn(pair.first())?;
    for protocol in ["A", "B", "C", "B", "A", "C"] {
        pair.net_options(&format!("--protocol={protocol}"))?;
        for machine in pair.machines() {
            machine.run_ok(&format!("grep -q ' {protocol} r-----$' /proc/drbd"))?;
        }
        writer.wait_more(40, SOON)?;
    }
    let acks = writer.stop()?;
    pair.compare_disks()?;
    acks.check(&pair.scan(pair.first(), SECTORS)?)
}

/// Every policy reads the same data, from the side that it is meant to read from.
fn read_balancing(pair: &Pair) -> Result<()> {
    let sectors = 2 << 11;
    let acks = Workload { sectors, count: Some(40), first: 100_000, longest: 64, ..Workload::default() }
        .run(pair.first(), SOON)?;
    pair.compare_disks()?;
    for (policy, expected) in [
        ("prefer-local", 0.0..=0.0),
        ("prefer-remote", 1.0..=1.0),
        ("round-robin", 0.5..=0.5),
        ("least-pending", 1.0..=1.0),
        ("when-congested-remote", 0.0..=0.0),
        ("32K-striping", 0.5..=0.5),
        ("64K-striping", 0.5..=0.5),
        ("128K-striping", 0.5..=0.5),
        ("256K-striping", 0.5..=0.5),
        ("512K-striping", 0.5..=0.5),
        ("1M-striping", 0.5..=0.5),
    ] {
        pair.disk_options(&format!("--read-balancing={policy}"))?;
        let read = |machine: &Machine| pair.device(machine)?.counter("dr");
        let before = [read(pair.first())?, read(pair.second())?];
        let found = guest::scan_in_pieces(pair.first(), "/dev/drbd0", 0, sectors, 32)?;
        let [local, remote] = [read(pair.first())? - before[0], read(pair.second())? - before[1]];
        acks.check(&found).context(policy)?;
        let part = remote as f64 / (local + remote) as f64;
        ensure!(expected.contains(&part), "{policy}: {local} KiB were read locally, {remote} KiB from the peer");
    }
    pair.disk_options("--read-balancing=prefer-local")
}

/// With less care for the order of writes on the disks the data is the same.
fn write_ordering(pair: &Pair) -> Result<()> {
    let writer = Workload { sectors: SECTORS, first: 200_000, ..Workload::default() }.spawn(pair.first())?;
    for (options, letter) in [
        ("--disk-flushes=no", "d"),
        ("--disk-flushes=no --disk-drain=no", "n"),
        ("--disk-flushes=yes --disk-drain=yes --disk-barrier=yes", "f"),
        ("--md-flushes=no --disk-barrier=no", "f"),
        ("--md-flushes=yes", "f"),
    ] {
        pair.disk_options(options)?;
        writer.wait_more(40, SOON)?;
        for machine in pair.machines() {
            let state = machine.run_ok("cat /proc/drbd")?;
            ensure!(state.contains(&format!(" wo:{letter} ")), "{}: {options}: {state}", machine.name());
        }
    }
    let acks = writer.stop()?;
    pair.compare_disks()?;
    acks.check(&pair.scan(pair.first(), SECTORS)?)
}

/// Discards and zeroes of all alignments, beside writes of all sizes up to the largest.
fn discards(pair: &Pair) -> Result<()> {
    let first = pair.first();
    let writer = Workload { sectors: SECTORS, first: 300_000, longest: 4096, ..Workload::default() }.spawn(first)?;
    let kept = 40 << 20;
    for zeroes_if_aligned in ["yes", "no"] {
        pair.disk_options(&format!("--discard-zeroes-if-aligned={zeroes_if_aligned}"))?;
        first.run_ok("dd if=/dev/urandom of=/dev/drbd0 bs=1M seek=40 count=12 oflag=direct status=none")?;
        for (command, zero) in [
            ("blkdiscard --offset 41943040 --length 4194304 /dev/drbd0", true),
            ("blkdiscard --zeroout --offset 44040192 --length 4194304 /dev/drbd0", true),
            // Odd places: single sectors, parts of blocks.
            ("blkdiscard --offset 48235008 --length 1049088 /dev/drbd0", true),
            ("blkdiscard --zeroout --offset 49285632 --length 512 /dev/drbd0", true),
            ("blkdiscard --zeroout --offset 49287680 --length 131584 /dev/drbd0", true),
            ("fallocate --punch-hole --offset 50331648 --length 65536 /dev/drbd0", true),
            ("fallocate --zero-range --offset 51380224 --length 69632 /dev/drbd0", true),
        ] {
            first.run_ok(command)?;
            let words: Vec<&str> = command.split(' ').collect();
            let value = |name: &str| words.iter().position(|word| *word == name).and_then(|at| words.get(at + 1));
            let (offset, length) = (value("--offset").context("offset")?, value("--length").context("length")?);
            if zero {
                first.run_ok(&format!("cmp --bytes={length} --ignore-initial={offset}:0 /dev/drbd0 /dev/zero"))?;
            }
        }
    }
    pair.disk_options("--discard-zeroes-if-aligned=yes")?;
    let acks = writer.stop()?;
    pair.compare_disks()?;
    first.run_ok(&format!("cmp --bytes=4194304 --ignore-initial={kept}:0 /dev/drbd0 /dev/zero"))?;
    acks.check(&pair.scan(first, SECTORS)?)
}

/// A program changes pages of the cache while they are being written: the halves are the same.
fn stable_pages(pair: &Pair) -> Result<()> {
    for protocol in ["A", "C"] {
        pair.net_options(&format!("--protocol={protocol}"))?;
        pair.first().run_ok(&format!(
            "{} scribble --device /dev/drbd0 --start 120000 --sectors 256 --threads 2 --count 30",
            guest::PATH
        ))?;
        pair.compare_disks().with_context(|| format!("protocol {protocol}"))?;
    }
    Ok(())
}

/// The secondary loses its disk while the primary writes, and gets it back.
fn diskless_secondary(pair: &Pair) -> Result<()> {
    let (first, second) = (pair.first(), pair.second());
    let writer = Workload { sectors: SECTORS, first: 500_000, ..Workload::default() }.spawn(first)?;
    writer.wait_more(20, SOON)?;
    second.run_ok("drbdadm detach r0")?;
    pair.wait(first, SOON, "a peer without disk", |device| device.disks == "UpToDate/Diskless")?;
    writer.wait_more(40, SOON)?;
    second.run_ok("drbdadm attach r0")?;
    writer.wait_more(40, SOON)?;
    pair.wait_in_sync(RESYNC)?;
    let acks = writer.stop()?;
    pair.compare_disks()?;
    acks.check(&pair.scan(first, SECTORS)?)
}

/// The primary loses its disk while it writes and goes on with its peer's; then one that never had a disk is promoted.
fn diskless_primary(pair: &Pair) -> Result<()> {
    let (first, second) = (pair.first(), pair.second());
    let writer = Workload { sectors: SECTORS, first: 600_000, ..Workload::default() }.spawn(first)?;
    writer.wait_more(20, SOON)?;
    first.run_ok("drbdadm detach r0")?;
    pair.wait(second, SOON, "a peer without disk", |device| device.disks == "UpToDate/Diskless")?;
    writer.wait_more(40, SOON)?;
    let mut acks = writer.stop()?;
    acks.check(&pair.scan(first, SECTORS)?)?;
    let writer = Workload { sectors: SECTORS, first: 610_000, ..Workload::default() }.spawn(first)?;
    writer.wait_more(20, SOON)?;
    first.run_ok("drbdadm attach r0")?;
    writer.wait_more(40, SOON)?;
    pair.wait_in_sync(RESYNC)?;
    acks.merge(&writer.stop()?);
    pair.compare_disks()?;
    acks.check(&pair.scan(first, SECTORS)?)?;

    first.run_ok("drbdadm secondary r0 && drbdadm down r0")?;
    first.run_ok("drbdadm new-resource r0 && drbdadm new-minor r0 && drbdadm connect r0")?;
    pair.wait(first, SOON, "a connection", |device| device.disks == "Diskless/UpToDate")?;
    first.run_ok("drbdadm primary r0")?;
    let workload = Workload { sectors: SECTORS, first: 620_000, count: Some(40), ..Workload::default() };
    acks.merge(&workload.run(first, SOON)?);
    acks.check(&pair.scan(first, SECTORS)?)?;
    first.run_ok("drbdadm attach r0")?;
    pair.wait_in_sync(RESYNC)?;
    pair.compare_disks()?;
    acks.check(&pair.scan(first, SECTORS)?)
}

/// Writers on both nodes, to places of their own and to the same place.
fn two_primaries(pair: &Pair) -> Result<()> {
    pair.net_options("--protocol=C --allow-two-primaries=yes")?;
    pair.second().run_ok("drbdadm primary r0")?;
    let mut written: HashMap<&str, [Acks; 2]> = HashMap::new();
    // Far apart, then one beside the other, then all over each other.
    for (name, starts, sectors, longest) in
        [("apart", [0, SECTORS], SECTORS, 256), ("together", [0, 0], 4096, 64), ("on one spot", [0, 0], 64, 16)]
    {
        let mut outcomes = Vec::new();
        let workload = |index: usize| Workload {
            start: starts[index],
            sectors,
            longest,
            threads: if starts[0] == starts[1] { at_a_time(&pair.machines()[index]) } else { 4 },
            count: Some(100),
            seed: 10 + index as u64,
            first: 1_000_000 * (index as u64 + 1) + 1000 * written.len() as u64,
            ..Workload::default()
        };
        std::thread::scope(|scope| {
            let other = scope.spawn(|| workload(1).run(pair.second(), SOON));
            outcomes.push(workload(0).run(pair.first(), SOON));
            outcomes.extend(other.join());
        });
        let mut outcomes = outcomes.into_iter();
        let (Some(one), Some(two)) = (outcomes.next(), outcomes.next()) else { anyhow::bail!("a thread panicked") };
        let (one, two) = (one.context(name)?, two.context(name)?);
        pair.wait_in_sync(SOON)?;
        pair.compare_disks().context(name)?;
        for machine in pair.machines() {
            for start in starts {
                let found = guest::scan(machine, "/dev/drbd0", start, sectors)?;
                one.check_either(&two, &found).with_context(|| format!("{name}, read on {}", machine.name()))?;
            }
        }
        written.insert(name, [one, two]);
    }
    pair.second().run_ok("drbdadm secondary r0")?;
    pair.net_options("--allow-two-primaries=no")
}

/// How many writes under way at a time a module survives where they meet those of the other Primary all the time.
///
/// The C module takes a write that it has to repeat out of its tree of requests without its lock. Where other writes of its
/// end at that moment the tree is broken, and the kernel stops in `__rb_erase_color` (docs/TESTING.md).
fn at_a_time(machine: &Machine) -> u32 {
    match machine.console().loaded() {
        Module::Stock => 1,
        _ => 4,
    }
}
