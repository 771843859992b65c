//! Memory that cannot be had: every now and then an allocation fails which the module does or causes. It may refuse what it is
//! asked to do, and fail requests with an error; it does not die, hang or leak. Only the debug kernel can do that.

use anyhow::ensure;
use lab::{is_debug_kernel, Module, Tools};
use machine_tests::config::Config;
use machine_tests::guest::Workload;
use machine_tests::pair::{Pair, Pairing, RESYNC, SOON};
use machine_tests::Result;
use std::time::Duration;

/// Limit of some rounds of configuration.
const ROUNDS_LIMIT: Duration = Duration::from_secs(120);

/// An administrator tries everything once, and takes no notice of what is refused.
const TRY_EVERYTHING: &str = "
drbdadm up r0
drbdadm primary --force r0
dd if=/dev/zero of=/dev/drbd0 bs=64k count=4 oflag=direct conv=nocreat
blkdiscard --length 65536 /dev/drbd0
cat /proc/drbd
drbdsetup show
drbdsetup events2 --now
drbdsetup disk-options 0 --al-extents=257
drbdadm disconnect r0
drbdadm secondary r0
drbdadm detach r0
drbdadm attach r0
drbdadm down r0";

#[test]
fn configuration() -> Result<()> {
    if !is_debug_kernel() {
        return Ok(());
    }
    let pair = Pair::new(Pairing::new([Module::Ours, Module::None], [Tools::Ours; 2]), &Config::default())?;
    let machine = pair.first();
    machine.run_ok("drbdadm create-md --force r0")?;
    for percent in [1, 3, 10, 30] {
        machine.fail_allocations(percent)?;
        machine.run_for(ROUNDS_LIMIT, &format!("for round in $(seq 5); do {TRY_EVERYTHING}\ndone >/dev/null 2>&1"))?;
        let failed = machine.stop_failing_allocations()?;
        ensure!(failed > 0, "no allocation has failed");
        machine.run_ok("drbdadm down r0 && test -z \"$(drbdsetup show)\"")?;
    }
    machine.run_ok("drbdadm up r0 && drbdadm primary --force r0")?;
    machine.run_ok("dd if=/dev/zero of=/dev/drbd0 bs=64k count=4 oflag=direct conv=nocreat status=none")?;
    machine.run_ok("drbdadm down r0")?;
    pair.finish()
}

/// What the writer uses.
const SECTORS: u64 = 16 << 11;

/// While allocations fail on the second node, the first, and both, the first writes, and they lose each other and resync. A
/// node may give up its connection or its disk. The writer notices nothing, and when it is over both have everything.
#[test]
fn replication() -> Result<()> {
    if !is_debug_kernel() {
        return Ok(());
    }
    let pair = Pair::mirrored(Pairing::OURS, &Config::default())?;
    let (first, second) = (pair.first(), pair.second());
    let writer = Workload { sectors: SECTORS, longest: 64, ..Workload::default() }.spawn(first)?;
    // Most writes need no new memory: pages and bios are used again.
    for (machines, percent) in [(&[second][..], 10), (&[first], 10), (&[first, second], 20)] {
        for machine in machines {
            machine.fail_allocations(percent)?;
        }
        writer.wait_more(40, SOON)?;
        pair.cluster().wire().cut();
        // Asking for the state may fail as well.
        first.wait_success(SOON, "the loss of the peer", "grep -q 'cs:WFC\\|cs:StandAlone' /proc/drbd")?;
        writer.wait_more(20, SOON)?;
        pair.cluster().wire().restore();
        writer.wait_more(40, SOON)?;
        for machine in machines {
            let failed = machine.stop_failing_allocations()?;
            println!("{}: {failed} allocations failed", machine.name());
            ensure!(failed > 0, "no allocation has failed on {}", machine.name());
        }
        writer.wait_more(10, SOON)?;
        pair.one_by_one("drbdadm adjust r0")?;
        pair.wait_in_sync(RESYNC)?;
    }
    let acks = writer.stop()?;
    pair.compare_disks()?;
    acks.check(&pair.scan(first, SECTORS)?)?;
    pair.one_by_one("drbdadm down r0")?;
    pair.finish()
}
