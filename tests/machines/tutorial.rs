//! The tutorial, typed as it is, steps 1 to 7: two machines, one disk.

use anyhow::ensure;
use lab::{Machine, Module, Tools};
use machine_tests::pair::{Pair, Pairing, RESYNC, SOON};
use machine_tests::tutorial::CONFIGURATION;
use machine_tests::{config, Config, Result};

#[test]
fn as_typed_with_our_module_and_tools() -> Result<()> {
    tutorial(Pairing::OURS)
}

#[test]
fn as_typed_with_our_tools_and_the_c_module() -> Result<()> {
    tutorial(Pairing::new([Module::Stock; 2], [Tools::Ours; 2]))
}

fn tutorial(pairing: Pairing) -> Result<()> {
    let pair = Pair::new(pairing, &Config::default())?;
    let (first, second) = (pair.first(), pair.second());
    for machine in pair.machines() {
        machine.run_ok("grep -q 192.168.1.11.*drbd1 /etc/hosts && grep -q 192.168.1.12.*drbd2 /etc/hosts")?;
        install_init_script(machine)?;
        machine.put(config::PATH, CONFIGURATION.as_bytes())?;
        let created = machine.run_ok("drbdadm create-md r0 </dev/null 2>&1")?;
        ensure!(created.contains("success"), "create-md said {created:?}");
    }
    pair.both("/etc/init.d/drbd start </dev/null")?;
    pair.wait_connected()?;
    for machine in pair.machines() {
        shows(machine, "ro:Secondary/Secondary ds:Inconsistent/Inconsistent C")?;
    }

    first.run_ok("drbdsetup /dev/drbd0 primary -o")?;
    pair.wait(first, SOON, "the initial sync under way", |device| {
        device.roles == "Primary/Secondary" && device.progress.is_some()
    })?;
    pair.wait_in_sync(RESYNC)?;
    shows(first, "ro:Primary/Secondary ds:UpToDate/UpToDate C")?;
    shows(second, "ro:Secondary/Primary ds:UpToDate/UpToDate C")?;

    first.run_ok(
        "mkfs.ext3 -q /dev/drbd0 && mount -t ext3 /dev/drbd0 /mnt && cd /mnt && touch file1 file2 && date >file3",
    )?;
    let written = first.run_ok("cd /mnt && ls && cat file3")?;
    first.run_ok("umount /mnt && drbdadm secondary r0")?;
    second.run_ok("drbdadm primary r0 && mount -t ext3 /dev/drbd0 /mnt")?;
    ensure!(second.run_ok("cd /mnt && ls && cat file3")? == written);
    second.run_ok("umount /mnt")?;
    second.run_ok("drbdadm secondary r0")?;

    // At boot: what a run level manager reads from the script, and a second start that changes nothing.
    for machine in pair.machines() {
        machine
            .run_ok("grep -q '^# chkconfig: ' /etc/init.d/drbd && grep -q '^### BEGIN INIT INFO' /etc/init.d/drbd")?;
        machine.run_ok("/etc/init.d/drbd start </dev/null && /etc/init.d/drbd status")?;
    }
    pair.wait_in_sync(SOON)?;
    for machine in pair.machines() {
        // One after the other: of two C modules that disconnect in the same moment one refuses (concurrent state changes).
        machine.run_ok("/etc/init.d/drbd stop")?;
        ensure!(!machine.run("test -e /proc/drbd")?.success(), "`stop` leaves the module loaded");
    }
    pair.finish()
}

/// Our package brings its own script; it takes the place of drbd-utils' one in the image.
fn install_init_script(machine: &Machine) -> Result<()> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../drbdadm/scripts/drbd");
    machine.put_file("/etc/init.d/drbd", script.as_ref())
}

fn shows(machine: &Machine, text: &str) -> Result<()> {
    let found = machine.run_ok("cat /proc/drbd")?;
    ensure!(found.contains(text), "{}: expected {text:?} in\n{found}", machine.name());
    Ok(())
}
