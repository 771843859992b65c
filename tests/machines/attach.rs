//! A disk is attached while the nodes meet: the command waits for the end of the handshake and attaches then.

use anyhow::ensure;
use lab::{stretched, Machine, Module};
use machine_tests::config::Config;
use machine_tests::guest::Workload;
use machine_tests::pair::{Pair, Pairing, SOON};
use machine_tests::{is_short, Result};
use std::time::{Duration, Instant};

/// Sectors that are written.
const SECTORS: u64 = 8 << 11;
/// How long an attach may take that nobody wants.
const AT_ONCE: Duration = Duration::from_secs(20);
/// Rounds on a slow link, and on a fast one.
const ROUNDS: [u32; 2] = [6, 50];
/// The same where time is short.
const SHORT_ROUNDS: [u32; 2] = [2, 4];
/// Makes the link so slow that a handshake takes about as long as a command.
const SLOW: Duration = Duration::from_millis(300);
/// Returns in the middle of the handshake, or shortly after it: how long it takes is for the slower node to say.
const MEET: &str =
    "drbdadm connect r0 && for i in $(seq 500); do grep -qE 'cs:(WFReportP|Conn)' /proc/drbd && break; sleep 0.01; done";

#[test]
fn ours_with_ours() -> Result<()> {
    attach_while_meeting(Pairing::OURS)
}

#[test]
fn ours_primary_c_secondary() -> Result<()> {
    attach_while_meeting(Pairing::OURS_PRIMARY)
}

#[test]
fn c_primary_ours_secondary() -> Result<()> {
    attach_while_meeting(Pairing::C_PRIMARY)
}

fn attach_while_meeting(pairing: Pairing) -> Result<()> {
    let [slow, fast] = if is_short() { SHORT_ROUNDS } else { ROUNDS };
    let pair = Pair::mirrored(pairing, &Config::default())?;
    pair.cluster().wire().delay(SLOW);
    for round in 0..slow {
        let machine = &pair.machines()[round as usize % 2];
        let other = &pair.machines()[(round as usize + 1) % 2];
        one_without_disk(&pair, machine, other, u64::from(round))?;
    }
    // The other commands of this time.
    let machine = pair.second();
    machine.run_ok("drbdadm disconnect r0")?;
    let paused = machine.run_ok(&format!("{MEET}; drbdadm pause-sync r0; grep cs: /proc/drbd"))?;
    ensure!(paused.contains(" r--u"), "not paused: {paused}");
    machine.run_ok("drbdadm resume-sync r0")?;
    pair.cluster().wire().restore();
    pair.wait_in_sync(SOON)?;

    pair.one_by_one("drbdadm secondary r0")?;
    // Both at once, at any moment of the handshake.
    for round in 0..fast {
        pair.one_by_one("drbdadm disconnect r0")?;
        pair.both("drbdadm detach r0")?;
        let pause = round % 10 * 3;
        pair.both(&format!("drbdadm connect r0 && sleep 0.0{pause:02} && drbdadm attach r0"))?;
        attach_again_what_c_let_go(&pair, pairing)?;
        pair.wait_in_sync(SOON)?;
    }
    for (at, module) in pairing.replaced().modules.into_iter().enumerate() {
        if module == Module::Ours {
            let (machine, other) = (&pair.machines()[at], &pair.machines()[1 - at]);
            outdated_beside_none(&pair, machine, other)?;
            outdated_beside_a_primary_without_disk(&pair, machine, other)?;
            diverged(&pair, machine, other)?;
        }
    }
    pair.compare_disks()?;
    pair.one_by_one("drbdadm down r0")?;
    pair.finish()
}

/// What this node lacks may be on the disk that the other one does not have when they meet: nobody is promoted until that is back. (To
/// the C module an Outdated disk is then as good as any.)
fn outdated_beside_none(pair: &Pair, machine: &Machine, other: &Machine) -> Result<()> {
    pair.one_by_one("drbdadm disconnect r0")?;
    machine.run_ok("drbdadm outdate r0")?;
    other.run_ok("drbdadm detach r0")?;
    pair.both("drbdadm connect r0 && drbdadm wait-connect r0")?;
    let states = machine.run_ok("drbdadm cstate r0; drbdadm dstate r0")?;
    ensure!(states.split_whitespace().eq(["Connected", "Outdated/Diskless"]), "not Outdated: {states}");
    for node in [machine, other] {
        let refused = node.run("drbdadm primary r0")?;
        ensure!(!refused.success(), "a node was promoted that has no good data: {states}");
        // The one without a disk is told by the other one, if it does not know by itself.
        let why = refused.to_string();
        ensure!(why.contains("(-2)") || why.contains("(-10)"), "refused for another reason: {refused}");
    }
    other.run_ok("drbdadm attach r0")?;
    pair.wait_in_sync(SOON)
}

/// What a Primary has seen last, and connects to again, is good, though this node was told that it is Outdated. It says so when they have met.
fn outdated_beside_a_primary_without_disk(pair: &Pair, machine: &Machine, other: &Machine) -> Result<()> {
    other.run_ok("drbdadm primary r0")?;
    let workload = Workload { sectors: SECTORS, count: Some(20), first: 100_001, ..Workload::default() };
    let acks = workload.run(other, SOON)?;
    other.run_ok("drbdadm detach r0")?;
    pair.cluster().wire().cut();
    for node in [machine, other] {
        pair.wait(node, SOON, "the loss of the peer", |device| device.connection == "WFConnection")?;
    }
    machine.run_ok("drbdadm outdate r0")?;
    pair.cluster().wire().restore();
    pair.wait(machine, SOON, "what the Primary takes", |device| device.disks == "UpToDate/Diskless")?;
    pair.wait(other, SOON, "good data", |device| device.disks == "Diskless/UpToDate")?;
    acks.check(&pair.scan(other, SECTORS)?)?;
    other.run_ok("drbdadm attach r0")?;
    pair.wait_in_sync(SOON)?;
    other.run_ok("drbdadm secondary r0")?;
    Ok(())
}

/// A disk that has gone its own way is attached beside a Primary. Nobody takes it, whichever node finds out first, and the log says why; the
/// Primary goes on with its own data. (A C module tells nothing of that.)
fn diverged(pair: &Pair, machine: &Machine, other: &Machine) -> Result<()> {
    pair.one_by_one("drbdadm disconnect r0")?;
    machine.run_ok("drbdadm primary r0")?;
    let workload =
        |first: u64| Workload { sectors: SECTORS, count: Some(20), first, seed: first, ..Workload::default() };
    workload(200_001).run(machine, SOON)?;
    machine.run_ok("drbdadm secondary r0 && drbdadm detach r0")?;
    other.run_ok("drbdadm primary r0")?;
    let mut acks = workload(300_001).run(other, SOON)?;
    pair.both("drbdadm connect r0 && drbdadm wait-connect r0")?;
    let mark = machine.console().mark();
    let began = Instant::now();
    let attached = machine.run("drbdadm attach r0")?;
    ensure!(began.elapsed() < stretched(AT_ONCE), "after {:?}: {attached}", began.elapsed());
    pair.wait(machine, SOON, "an end of the attach", |device| {
        device.disks == "Diskless/UpToDate" || device.connection == "StandAlone"
    })?;
    let log = machine.console().since(mark);
    ensure!(log.to_lowercase().contains("split-brain"), "the log of {} does not say why:\n{log}", machine.name());
    acks.merge(&workload(400_001).run(other, SOON)?);
    acks.check(&pair.scan(other, SECTORS)?)?;
    // What the administrator does then.
    pair.one_by_one("drbdadm disconnect --force r0")?;
    let disk = machine.run_ok("drbdadm dstate r0")?;
    if disk.starts_with("Diskless") || disk == "Unconfigured" {
        machine.run_ok("drbdadm attach r0")?;
    }
    machine.run_ok("drbdadm connect --discard-my-data r0")?;
    other.run_ok("drbdadm connect r0")?;
    pair.wait_in_sync(SOON)?;
    acks.check(&pair.scan(other, SECTORS)?)?;
    other.run_ok("drbdadm secondary r0")?;
    Ok(())
}

/// Where an attach ends in the moment in which the nodes meet, the C module lets the disk go again and answers that all went well.
fn attach_again_what_c_let_go(pair: &Pair, pairing: Pairing) -> Result<()> {
    for (machine, module) in pair.machines().iter().zip(pairing.replaced().modules) {
        if module == Module::Stock {
            machine.run_ok("drbdadm dstate r0 | grep -qv '^Diskless/' || drbdadm attach r0")?;
        }
    }
    Ok(())
}

/// `machine` meets the other one, which has been writing meanwhile, and gets its disk before that is over.
fn one_without_disk(pair: &Pair, machine: &Machine, other: &Machine, round: u64) -> Result<()> {
    machine.run_ok("drbdadm secondary r0 && drbdadm disconnect r0 && drbdadm detach r0")?;
    other.run_ok("drbdadm primary r0")?;
    let workload = Workload { sectors: SECTORS, count: Some(20), first: round * 1000 + 1, ..Workload::default() };
    let acks = workload.run(other, SOON)?;
    machine.run_ok(&format!("{MEET}; drbdadm attach r0"))?;
    pair.wait_in_sync(SOON)?;
    acks.check(&pair.scan(other, SECTORS)?)?;
    pair.compare_disks()
}
