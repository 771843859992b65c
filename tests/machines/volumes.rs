//! Several volumes of one resource: they share the connection, and with it the handshake, epochs and pings.

use anyhow::ensure;
use lab::Machine;
use machine_tests::acks::Acks;
use machine_tests::config::{self, Config};
use machine_tests::guest::{self, Workload, Writer};
use machine_tests::pair::{wait_minor, Pair, Pairing, RESYNC, SOON};
use machine_tests::Result;

/// Volumes of the resource, with the same numbers as their minors.
const VOLUMES: u32 = 3;
/// Sectors of a volume's disk.
const DISK_SECTORS: u32 = 20 << 11;
/// Sectors the writers use on each volume.
const SECTORS: u64 = 16 << 11;

#[test]
fn cuts_ours_with_ours() -> Result<()> {
    cuts(Pairing::OURS)
}

#[test]
fn cuts_ours_primary_c_secondary() -> Result<()> {
    cuts(Pairing::OURS_PRIMARY)
}

#[test]
fn cuts_c_primary_ours_secondary() -> Result<()> {
    cuts(Pairing::C_PRIMARY)
}

#[test]
fn one_more_ours_with_ours() -> Result<()> {
    one_volume_more(Pairing::OURS)
}

#[test]
fn one_more_than_the_c_module() -> Result<()> {
    one_volume_more(Pairing::OURS_PRIMARY)
}

/// Resource r0 with [`VOLUMES`] volumes, each on a part of the disk; the last one is resynced after the first.
fn configuration() -> String {
    let times = config::times(config::KO_COUNT);
    let mut text = String::from("global { usage-count no; }\nresource r0 {\n");
    text.push_str(&format!("  net {{ protocol C; {times} socket-check-timeout 1; max-epoch-size 50; }}\n"));
    text.push_str("  disk { c-plan-ahead 0; resync-rate 100M; c-min-rate 0; al-extents 67; }\n");
    for number in 0..VOLUMES {
        let after = if number + 1 == VOLUMES { "disk { resync-after r0/0; }" } else { "" };
        text.push_str(&format!(
            "  volume {number} {{ device /dev/drbd{number}; disk /dev/mapper/part{number}; meta-disk internal; {after} }}\n"
        ));
    }
    for (name, address) in lab::NAMES.iter().zip(lab::ADDRESSES) {
        text.push_str(&format!("  on {name} {{ address {address}:7788; }}\n"));
    }
    text + "}\n"
}

/// The parts of the disk and the configuration file: also after a power cut.
fn prepare(machine: &Machine) -> Result<()> {
    machine.put(config::PATH, configuration().as_bytes())?;
    machine.run_ok("modprobe dm-mod")?;
    for number in 0..VOLUMES {
        let table = format!("0 {DISK_SECTORS} linear /dev/sdb1 {}", number * DISK_SECTORS);
        machine.run_ok(&format!("dmsetup create part{number} --table '{table}'"))?;
    }
    Ok(())
}

fn in_sync(pair: &Pair) -> Result<()> {
    for machine in pair.machines() {
        for minor in 0..VOLUMES {
            wait_minor(machine, minor, RESYNC, "both disks UpToDate", |device| {
                device.connection == "Connected" && device.disks == "UpToDate/UpToDate"
            })?;
        }
    }
    Ok(())
}

fn parted(machine: &Machine) -> Result<()> {
    for minor in 0..VOLUMES {
        wait_minor(machine, minor, SOON, "the loss of the peer", |device| device.connection == "WFConnection")?;
    }
    Ok(())
}

/// Writers on all volumes, whose writes are numbered from `first`.
fn writers(machine: &Machine, first: u64) -> Result<Vec<Writer>> {
    let workload = |minor| Workload {
        device: format!("/dev/drbd{minor}"),
        sectors: SECTORS,
        threads: 2,
        longest: 64,
        first,
        seed: u64::from(minor) + first,
        ..Workload::default()
    };
    (0..VOLUMES).map(|minor| workload(minor).spawn(machine)).collect()
}

fn wait_more(writers: &[Writer], writes: u64) -> Result<()> {
    writers.iter().try_for_each(|writer| writer.wait_more(writes, SOON))
}

fn check(acks: &[Acks], machine: &Machine) -> Result<()> {
    for (minor, acks) in acks.iter().enumerate() {
        acks.check(&guest::scan(machine, &format!("/dev/drbd{minor}"), 0, SECTORS)?)?;
    }
    Ok(())
}

/// What the disks of all volumes hold, up to the last incomplete 64 KiB.
fn compare(pair: &Pair) -> Result<()> {
    pair.wait_idle()?;
    for minor in 0..VOLUMES {
        // Past the cache: the device mapper's own does not see what the module writes.
        let command = format!(
            "dd if=/dev/mapper/part{minor} bs=64k count=$(($(cat /sys/block/drbd{minor}/size) / 128)) iflag=direct status=none | md5sum"
        );
        let sums = pair.machines().iter().map(|machine| machine.run_ok(&command)).collect::<Result<Vec<_>>>()?;
        ensure!(sums[0] == sums[1], "volume {minor} differs");
    }
    Ok(())
}

/// Writers on all volumes while the secondary, the link and the primary are lost.
fn cuts(pairing: Pairing) -> Result<()> {
    let pair = Pair::new(pairing, &Config::default())?;
    let (first, second) = (pair.first(), pair.second());
    pair.machines().iter().try_for_each(prepare)?;
    pair.both("drbdadm create-md --force r0")?;
    pair.both("drbdadm up r0")?;
    first.run_ok("drbdadm wait-connect r0 && drbdadm primary --force r0")?;
    in_sync(&pair)?;

    let under_way = writers(first, 1)?;
    wait_more(&under_way, 40)?;
    second.power_cut()?;
    parted(first)?;
    wait_more(&under_way, 20)?;
    pair.power_on(second, &Config::default())?;
    prepare(second)?;
    second.run_ok("drbdadm up r0")?;
    in_sync(&pair)?;
    let mut acks = under_way.into_iter().map(Writer::stop).collect::<Result<Vec<_>>>()?;
    compare(&pair)?;

    // Resyncs that are done as soon as they may start.
    for round in 1..=3 {
        second.run_ok("drbdadm disconnect r0")?;
        let few = writers(first, round * 100_000)?;
        wait_more(&few, 10)?;
        for (acks, writer) in acks.iter_mut().zip(few) {
            acks.merge(&writer.stop()?);
        }
        second.run_ok("drbdadm connect r0")?;
        in_sync(&pair)?;
    }
    compare(&pair)?;

    let under_way = writers(first, 1_000_000)?;
    wait_more(&under_way, 40)?;
    first.power_cut()?;
    for (acks, writer) in acks.iter_mut().zip(under_way) {
        acks.merge(&writer.last_words()?);
    }
    parted(second)?;
    second.run_ok("drbdadm primary r0")?;
    check(&acks, second)?;
    pair.power_on(first, &Config::default())?;
    prepare(first)?;
    first.run_ok("drbdadm up r0")?;
    in_sync(&pair)?;
    compare(&pair)?;
    pair.one_by_one("drbdadm down r0")?;
    pair.one_by_one(&format!("for number in $(seq 0 {}); do dmsetup remove part$number; done", VOLUMES - 1))?;
    pair.finish()
}

/// A volume was configured on one node, and the connection made anew before it was on the other: the administrator goes on there,
/// and the volume is connected when the other node has it. Two C modules wait for each other: every command hangs.
fn one_volume_more(pairing: Pairing) -> Result<()> {
    let pair = Pair::mirrored(pairing, &Config::default())?;
    let (first, second) = (pair.first(), pair.second());
    first.run_ok("drbdadm disconnect r0")?;
    let mark = first.console().mark();
    first.run_ok("drbdsetup new-minor r0 1 1 && drbdadm connect r0")?;
    pair.wait_in_sync(SOON)?;
    for command in ["drbdadm secondary r0", "drbdadm primary r0", "drbdsetup detach 0", "drbdadm attach r0"] {
        first.run_ok(command)?;
    }
    pair.wait_in_sync(SOON)?;
    wait_minor(first, 1, SOON, "a volume of this node", |device| device.connection == "WFReportParams")?;
    let told = "drbd r0/1 drbd1: the peer does not have this volume";
    ensure!(first.console().since(mark).contains(told), "not on the console: {told}");
    let acks = Workload { sectors: SECTORS, count: Some(40), ..Workload::default() }.run(first, SOON)?;
    second.run_ok("drbdsetup new-minor r0 1 1")?;
    for machine in pair.machines() {
        wait_minor(machine, 1, SOON, "the second volume", |device| device.connection == "Connected")?;
    }
    acks.check(&pair.scan(first, SECTORS)?)?;
    second.run_ok("drbdsetup del-minor 1")?;
    first.run_ok("drbdsetup disconnect ipv4:192.168.1.11:7788 ipv4:192.168.1.12:7788 && drbdadm connect r0")?;
    pair.wait_in_sync(SOON)?;
    pair.compare_disks()?;
    pair.one_by_one("drbdadm down r0")?;
    pair.finish()
}
