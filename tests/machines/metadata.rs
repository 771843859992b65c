//! Meta data on the disk: what one program writes, the other reads, internal and external, clean and after a crash.

use crate::transcript::normalise;
use anyhow::{anyhow, bail, ensure, Context};
use lab::{Machine, Module, Tools};
use machine_tests::config::Config;
use machine_tests::guest::Workload;
use machine_tests::pair::{Pair, Pairing, RESYNC, SOON};
use machine_tests::Result;
use std::collections::BTreeMap;
use std::sync::Mutex;

/// Unmodified drbdmeta, and ours under its name.
const THEIRS: &str = "/usr/sbin/drbdmeta";
const OURS: &str = "/tmp/ours/drbdmeta";

fn internal() -> Config {
    Config::default()
}

fn external() -> Config {
    Config { meta: "/dev/sda".into(), ..Config::default() }
}

#[test]
fn drbdmeta_made_and_ours_attached_internal() -> Result<()> {
    made_and_attached(&internal())
}

#[test]
fn drbdmeta_made_and_ours_attached_external() -> Result<()> {
    made_and_attached(&external())
}

#[test]
fn ours_made_and_the_c_module_attached_internal() -> Result<()> {
    attached_by_c(&internal())
}

#[test]
fn ours_made_and_the_c_module_attached_external() -> Result<()> {
    attached_by_c(&external())
}

/// What our module leaves behind is what the C module leaves behind, and both programs read the same from it.
fn made_and_attached(config: &Config) -> Result<()> {
    let expected = expected(config)?;
    let found = life(Pairing::new([Module::Ours; 2], [Tools::Utils; 2]), config)?;
    ensure!(expected == found, "the C module leaves\n{}\nours leaves\n{}", expected.join("\n"), found.join("\n"));
    Ok(())
}

/// Our tool writes the meta data, the C module lives with it.
fn attached_by_c(config: &Config) -> Result<()> {
    let expected = expected(config)?;
    let found = life(Pairing::new([Module::Stock; 2], [Tools::Ours; 2]), config)?;
    ensure!(expected == found, "with drbdmeta's meta data:\n{}\nwith ours:\n{}", expected.join("\n"), found.join("\n"));
    Ok(())
}

/// The same life with drbdmeta and the C module only; lived once for each place of the meta data.
fn expected(config: &Config) -> Result<Vec<String>> {
    static EXPECTED: Mutex<BTreeMap<String, Vec<String>>> = Mutex::new(BTreeMap::new());
    let mut expected = EXPECTED.lock().map_err(|_| anyhow!("the reference could not be made"))?;
    if let Some(dumps) = expected.get(&config.meta) {
        return Ok(dumps.clone());
    }
    let dumps = life(Pairing::new([Module::Stock; 2], [Tools::Utils; 2]), config)?;
    expected.insert(config.meta.clone(), dumps.clone());
    Ok(dumps)
}

/// A resource is made, synchronised, written to, half of it disconnected, and taken down; returns what the dumps of both machines
/// say then, generations replaced by their relation.
fn life(pairing: Pairing, config: &Config) -> Result<Vec<String>> {
    let pair = Pair::mirrored(pairing, config)?;
    let workload = Workload { count: Some(10), align: 8, ..Workload::default() };
    workload.run(pair.first(), SOON)?;
    pair.wait_idle()?;
    pair.second().run_ok("drbdadm disconnect r0")?;
    pair.wait(pair.first(), SOON, "a peer that left", |device| device.connection == "WFConnection")?;
    workload.run(pair.first(), SOON)?;
    pair.one_by_one("drbdadm down r0")?;
    let mut dumps = Vec::new();
    for machine in pair.machines() {
        dumps.extend(normalise(&within_the_device(&dump(machine, config)?)?));
        let generations = machine.run_ok(&format!("{THEIRS} 0 v08 {} get-gi", device(config)))?;
        dumps.extend(normalise(&generations));
    }
    pair.finish()?;
    Ok(dumps)
}

/// `dump-md` of both programs, which must say the same, after `apply-al` of theirs.
fn dump(machine: &Machine, config: &Config) -> Result<String> {
    machine.run_ok("mkdir -p /tmp/ours && ln -sf /run/lab/drbdadm /tmp/ours/drbdmeta")?;
    let device = device(config);
    machine.run_ok(&format!("{THEIRS} 0 v08 {device} apply-al"))?;
    let theirs = machine.run_ok(&format!("{THEIRS} 0 v08 {device} dump-md"))?;
    // Without our tool there is nothing to compare.
    if machine.run("test -e /tmp/ours/drbdmeta")?.success() {
        let ours = machine.run_ok(&format!("{OURS} 0 v08 {device} dump-md"))?;
        compare_fields(&theirs, &ours)?;
        // The flags, which drbdmeta's dump does not have.
        let generations = |program: &str| machine.run_ok(&format!("{program} 0 v08 {device} get-gi"));
        ensure!(generations(THEIRS)? == generations(OURS)?);
    }
    Ok(fields(&theirs).join("\n"))
}

/// A dump with as much of the bitmap as the device has blocks. Behind that, to the end of the page, the C module writes what its memory
/// held; only where the kernel clears pages that is zero.
fn within_the_device(dump: &str) -> Result<String> {
    const BLOCK_SECTORS: usize = 8;
    let (before, bitmap) = dump.split_once("bm {").context("no bitmap in the dump")?;
    let (bitmap, after) = bitmap.split_once('}').context("a bitmap without an end")?;
    let size = before.lines().find_map(|line| line.strip_prefix("la-size-sect ")).context("no size in the dump")?;
    let blocks = size.trim_end_matches(';').parse::<usize>()?.div_ceil(BLOCK_SECTORS);
    let mut words = Vec::new();
    for entry in bitmap.split(';').map(str::trim).filter(|entry| !entry.is_empty()) {
        let (times, word) = entry.split_once(" times ").unwrap_or(("1", entry));
        words.extend(std::iter::repeat_n(u64::from_str_radix(word.trim_start_matches("0x"), 16)?, times.parse()?));
    }
    ensure!(words.len() * 64 >= blocks, "{} words for {blocks} blocks", words.len());
    words.truncate(blocks.div_ceil(64));
    if let Some(last) = words.last_mut().filter(|_| blocks % 64 > 0) {
        *last &= (1 << (blocks % 64)) - 1;
    }
    let words: Vec<String> = words.iter().map(|word| format!("0x{word:016X};")).collect();
    Ok(format!("{before}bm {{\n{}\n}}{after}", words.join("\n")))
}

fn device(config: &Config) -> String {
    match config.meta.as_str() {
        "internal" => format!("{} internal", config.lower),
        meta => format!("{meta} flex-external"),
    }
}

/// The lines that say something about the meta data: not those about the program and the moment.
fn fields(dump: &str) -> Vec<&str> {
    dump.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

/// All fields but the flags: drbdmeta 9.22 always prints those of a version 08 as zero.
fn compare_fields(theirs: &str, ours: &str) -> Result<()> {
    let without_flags =
        |dump| -> Vec<&str> { fields(dump).into_iter().filter(|line| !line.starts_with("flags ")).collect() };
    let (theirs, ours) = (without_flags(theirs), without_flags(ours));
    let different = theirs.iter().zip(&ours).find(|(theirs, ours)| theirs != ours);
    if let Some((theirs, ours)) = different {
        bail!("drbdmeta reads {theirs:?}, ours reads {ours:?}");
    }
    ensure!(theirs.len() == ours.len(), "drbdmeta reads {} fields, ours {}", theirs.len(), ours.len());
    Ok(())
}

/// After a crash the activity log says what may differ: drbdmeta and ours make the same bitmap of what our module left.
#[test]
fn a_crashed_log_is_applied_by_both_alike() -> Result<()> {
    let config = internal();
    let pair = Pair::mirrored(Pairing::new([Module::Ours; 2], [Tools::Utils; 2]), &config)?;
    let machine = pair.first();
    pair.second().run_ok("drbdadm down r0")?;
    let writer = Workload::default().spawn(machine)?;
    writer.wait_more(100, SOON)?;
    machine.power_cut()?;
    let acks = writer.last_words()?;
    pair.power_on(machine, &config)?;
    machine.run_ok("mkdir -p /tmp/ours && ln -sf /run/lab/drbdadm /tmp/ours/drbdmeta")?;
    let refused = machine.run(&format!("{THEIRS} 0 v08 {} dump-md", device(&config)))?;
    ensure!(refused.code() == 1, "the log is not marked as in use: {refused}");
    // The same bytes for both: the disk and a copy of it.
    let mut dumps = Vec::new();
    machine
        .run_ok("modprobe loop; dd if=/dev/sdb1 of=/root/copy bs=1M status=none && losetup /dev/loop0 /root/copy")?;
    for (program, device) in [(THEIRS, "/dev/sdb1"), (OURS, "/dev/loop0")] {
        if machine.run(&format!("test -e {program}"))?.success() {
            machine.run_ok(&format!("{program} 0 v08 {device} internal apply-al"))?;
            dumps.push(machine.run_ok(&format!("{THEIRS} 0 v08 {device} internal dump-md"))?);
        }
    }
    machine.run_ok("losetup -d /dev/loop0; rm /root/copy")?;
    if let [theirs, ours] = dumps.as_slice() {
        compare_fields(theirs, ours)?;
    }
    machine.run_ok("drbdadm up r0")?;
    let marked_kib = pair.device(machine)?.counter("oos")?;
    ensure!(marked_kib >= 4096, "{} KiB were acknowledged without a peer, {marked_kib} KiB are marked", acks.kib());
    pair.second().run_ok("drbdadm up r0")?;
    machine.run_ok("drbdadm primary r0")?;
    pair.wait_in_sync(RESYNC)?;
    acks.check(&pair.scan(machine, 32 << 11)?)?;
    pair.compare_disks()?;
    pair.one_by_one("drbdadm down r0")?;
    pair.finish()
}
