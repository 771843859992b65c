//! What somebody relies on who follows `drbdsetup events2`: nothing is told that did not go wrong, a resync is told to be over when
//! the helper program has run, and both nodes notice a split brain.

use anyhow::{ensure, Context};
use lab::{stretched, Machine, Process};
use machine_tests::config::Config;
use machine_tests::pair::{Pair, Pairing, SOON};
use machine_tests::Result;
use std::thread;
use std::time::{Duration, Instant};

/// How often both nodes have to notice a split brain.
const SPLITS: usize = 5;

#[test]
fn ours_with_ours() -> Result<()> {
    follow(Pairing::OURS)
}

#[test]
fn ours_primary_c_secondary() -> Result<()> {
    follow(Pairing::OURS_PRIMARY)
}

#[test]
fn c_primary_ours_secondary() -> Result<()> {
    follow(Pairing::C_PRIMARY)
}

fn follow(pairing: Pairing) -> Result<()> {
    let pair = Pair::new(pairing, &Config::default())?;
    pair.both("drbdadm create-md --force r0 && drbdadm up r0")?;
    pair.wait_connected()?;
    // Not before: two nodes that look for each other in the same moment may get hold of one socket each at first.
    let command = "exec drbdsetup events2 all --statistics";
    let events = pair.machines().iter().map(|machine| machine.spawn(command)).collect::<Result<Vec<_>>>()?;
    events.iter().try_for_each(|events| wait_said(events, "exists -"))?;
    pair.first().run_ok("drbdadm new-current-uuid --clear-bitmap r0/0 && drbdadm primary r0")?;
    pair.wait_in_sync(SOON)?;
    for (leave, join) in [("disconnect", "connect"), ("detach", "attach"), ("down", "up"), ("detach", "attach")] {
        leave_and_join(&pair, pair.second(), leave, join)?;
    }
    leave_and_join(&pair, pair.first(), "disconnect", "connect")?;
    leave_and_join(&pair, pair.first(), "detach", "attach")?;
    // The last of it has been told when this has.
    pair.first().run_ok("drbdadm secondary r0")?;
    pair.second().run_ok("drbdadm primary r0 && drbdadm secondary r0")?;
    thread::sleep(Duration::from_secs(1));
    for (machine, events) in pair.machines().iter().zip(&events) {
        check_story(events).with_context(|| format!("{} in {pairing:?}", machine.name()))?;
    }
    (1..=SPLITS).try_for_each(|round| split(&pair).with_context(|| format!("split brain {round}")))?;
    events.iter().try_for_each(|events| events.kill().map(|_| ()))?;
    pair.one_by_one("drbdadm down r0")?;
    pair.finish()
}

fn wait_said(events: &Process, wanted: &str) -> Result<()> {
    let until = Instant::now() + stretched(SOON);
    while !String::from_utf8_lossy(&events.stdout()).contains(wanted) {
        ensure!(Instant::now() < until, "expected {wanted:?} of the events, found {:?}", events.stdout());
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// The second disk, or the first one, misses a write and gets it.
fn leave_and_join(pair: &Pair, machine: &Machine, leave: &str, join: &str) -> Result<()> {
    machine.run_ok(&format!("drbdadm {leave} r0"))?;
    pair.first().run_ok("dd if=/dev/urandom of=/dev/drbd0 bs=4k count=3 oflag=direct status=none")?;
    machine.run_ok(&format!("drbdadm {join} r0"))?;
    pair.wait_in_sync(SOON).with_context(|| format!("{leave}, {join} on {}", machine.name()))
}

/// What is told only if something goes wrong.
const TROUBLE: [&str; 5] = ["BrokenPipe", "NetworkFailure", "Timeout", "ProtocolError", "split-brain"];

fn check_story(events: &Process) -> Result<()> {
    let said = String::from_utf8_lossy(&events.stdout()).into_owned();
    let trouble = said.lines().find(|line| TROUBLE.iter().any(|word| line.contains(word)));
    ensure!(trouble.is_none(), "nothing has gone wrong, found {trouble:?} in\n{said}");
    // A helper program of the target runs between these two.
    let mut lines = said.lines();
    let mut resyncs = 0;
    while lines.any(|line| line.contains("replication:SyncTarget")) {
        let end = lines.find(|line| {
            line.contains("replication:Established")
                || line.contains("response helper") && line.contains("after-resync")
        });
        ensure!(end.is_some_and(|end| end.contains("helper")), "{end:?} is told before the helper has run in\n{said}");
        resyncs += 1;
    }
    ensure!(said.contains("replication:SyncSource") || resyncs > 0, "no resync at all in\n{said}");
    Ok(())
}

/// Both write on their own, and then meet: both have to see it, whoever is quicker. The changes of the first are discarded.
fn split(pair: &Pair) -> Result<()> {
    pair.one_by_one("drbdadm disconnect r0")?;
    let write = "dd if=/dev/urandom of=/dev/drbd0 bs=4k count=1 oflag=direct status=none";
    pair.both(&format!("drbdadm primary r0 && {write} && drbdadm secondary r0"))?;
    pair.both("drbdadm connect r0")?;
    for machine in pair.machines() {
        pair.wait(machine, SOON, "a split brain", |device| device.connection == "StandAlone")?;
    }
    pair.first().run_ok("drbdadm connect --discard-my-data r0")?;
    pair.second().run_ok("drbdadm connect r0")?;
    pair.wait_in_sync(SOON)
}
