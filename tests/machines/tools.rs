//! The tools and the modules in every combination: unmodified drbd-utils and our tools drive the C module and ours through the
//! same list of commands. Each command must say and return what drbd-utils on the C module say and return.

use crate::transcript::{Compare, Transcript};
use anyhow::{anyhow, ensure};
use lab::{stretched, Machine, Module, Tools};
use machine_tests::config::Config;
use machine_tests::pair::{Pair, Pairing, SOON};
use machine_tests::Result;
use std::sync::Mutex;
use std::time::{Duration, Instant};

#[test]
fn utils_drive_our_module() -> Result<()> {
    check(Module::Ours, Tools::Utils, Compare::Everything)
}

#[test]
fn our_tools_drive_the_c_module() -> Result<()> {
    check(Module::Stock, Tools::Ours, Compare::NotTheErrors)
}

#[test]
fn our_tools_drive_our_module() -> Result<()> {
    check(Module::Ours, Tools::Ours, Compare::NotTheErrors)
}

fn check(module: Module, tools: Tools, compare: Compare) -> Result<()> {
    let expected = expected()?;
    session(Pairing::new([module; 2], [tools; 2]))?.check(&expected, compare)
}

/// What drbd-utils say about the C module; made once.
fn expected() -> Result<Transcript> {
    static EXPECTED: Mutex<Option<Transcript>> = Mutex::new(None);
    let mut expected = EXPECTED.lock().map_err(|_| anyhow!("the reference could not be made"))?;
    if expected.is_none() {
        *expected = Some(session(Pairing::new([Module::Stock; 2], [Tools::Utils; 2]))?);
    }
    expected.clone().ok_or_else(|| anyhow!("no reference"))
}

/// Everything that asks and changes nothing.
const QUESTIONS: &[&str] = &[
    "drbdadm role r0",
    "drbdadm cstate r0",
    "drbdadm dstate r0",
    "drbdadm status r0",
    "drbdsetup role 0",
    "drbdsetup cstate 0",
    "drbdsetup dstate /dev/drbd0",
    "drbdsetup status",
    "drbdsetup status r0 --verbose",
    "drbdsetup status r0 --verbose --statistics",
    "drbdsetup show r0",
    "drbdsetup show r0 --show-defaults",
    "drbdsetup events2 --now",
    "drbdsetup events2 --now --statistics r0",
    "drbdadm get-gi r0",
    "drbdadm show-gi r0",
    "cat /proc/drbd",
];

fn session(pairing: Pairing) -> Result<Transcript> {
    let config = Config::default();
    let pair = Pair::new(pairing, &config)?;
    let (first, second) = (pair.first(), pair.second());
    let mut transcript = Transcript::default();
    let ask = |transcript: &mut Transcript| {
        pair.wait_idle()?;
        transcript.ask(pair.machines(), QUESTIONS)
    };

    pair.both("drbdadm create-md --force r0")?;
    unconfigured(&mut transcript, first)?;
    let events = first.spawn("exec drbdsetup events2 all")?;
    wait_said(&events, "exists -")?;
    pair.both("drbdadm up r0")?;
    pair.wait_connected()?;
    ask(&mut transcript)?;
    refused(&mut transcript, first)?;
    transcript.run(first, "drbdadm primary --force r0")?;
    pair.wait_in_sync(SOON)?;
    ask(&mut transcript)?;
    transcript.run(second, "drbdadm primary r0")?;
    let queue =
        "cd /sys/block/drbd0/queue; cat discard_granularity discard_max_bytes logical_block_size max_hw_sectors_kb";
    transcript.run(first, queue)?;

    transcript.run(second, "drbdadm disconnect r0")?;
    pair.wait(first, SOON, "a peer that left", |device| device.connection == "WFConnection")?;
    transcript.ask(pair.machines(), QUESTIONS)?;
    short_resync(&pair, &mut transcript)?;
    transcript.run_all(first, &["drbdadm wait-connect r0", "drbdsetup wait-sync 0"])?;

    transcript.run(second, "drbdadm detach r0")?;
    pair.wait(first, SOON, "a peer without disk", |device| device.disks == "UpToDate/Diskless")?;
    transcript.ask(pair.machines(), QUESTIONS)?;
    transcript.run(second, "drbdadm attach r0")?;
    pair.wait_in_sync(SOON)?;

    adjusted(&pair, &mut transcript, &config)?;
    ask(&mut transcript)?;
    transcript.run(first, "drbdadm secondary r0")?;
    ask(&mut transcript)?;
    transcript.run(first, "drbdadm down r0")?;
    pair.wait(second, SOON, "a peer that left", |device| device.connection == "WFConnection")?;
    let said = wait_said(&events, "destroy resource")?;
    events.kill()?;
    transcript.note(first, "drbdsetup events2 all", &changes(&said));
    let module = pairing.modules[0];
    transcript.note(first, "drbdsetup events2 all: the connection", &connection_states(&said, module).join("\n"));
    unconfigured(&mut transcript, first)?;
    transcript.run(second, "drbdadm down r0")?;
    pair.finish()?;
    Ok(transcript)
}

/// The second node comes back and gets one block. However quickly that is done, events tell what there was to do.
fn short_resync(pair: &Pair, transcript: &mut Transcript) -> Result<()> {
    let command = "exec drbdsetup events2 all --statistics";
    let events = pair.machines().iter().map(|machine| machine.spawn(command)).collect::<Result<Vec<_>>>()?;
    events.iter().try_for_each(|events| wait_said(events, "exists -").map(|_| ()))?;
    pair.first().run_ok("dd if=/dev/urandom of=/dev/drbd0 bs=4k count=1 oflag=direct status=none")?;
    transcript.run(pair.second(), "drbdadm connect r0")?;
    pair.wait_in_sync(SOON)?;
    for (machine, events) in pair.machines().iter().zip(&events) {
        let said = wait_said(events, "replication:Established")?;
        let begins: Vec<&str> = said.lines().filter(|line| line.contains("replication:Sync")).collect();
        transcript.note(machine, "events2: the begin of a resync", &begins.join("\n"));
        events.kill()?;
    }
    Ok(())
}

/// Nothing is configured.
fn unconfigured(transcript: &mut Transcript, machine: &Machine) -> Result<()> {
    transcript.run_all(
        machine,
        &[
            "drbdsetup status",
            "drbdsetup show",
            "drbdsetup events2 --now",
            "drbdsetup role 0",
            "drbdsetup status nobody",
            "drbdsetup down nobody",
            "drbdadm dstate r0",
            "drbdadm -d up r0",
            "drbdadm -d adjust r0",
            "drbdadm sh-resources",
            "drbdadm sh-dev r0",
            "drbdsetup new-resource empty",
            "drbdsetup show empty",
            "drbdsetup status empty",
            "drbdsetup del-resource empty",
        ],
    )
}

/// What must be refused, and how.
fn refused(transcript: &mut Transcript, machine: &Machine) -> Result<()> {
    transcript.run_all(
        machine,
        &[
            "drbdadm primary r0",
            "drbdsetup primary 0",
            "drbdsetup secondary 7",
            "drbdsetup attach 0 /dev/sdb1 /dev/sdb1 internal",
            "drbdsetup new-minor r0 0 1",
            "drbdsetup new-resource r0",
            "drbdsetup del-resource r0",
            "drbdsetup del-minor 0",
            "drbdsetup connect r0 ipv4:192.168.1.11:7788 ipv4:192.168.1.12:7788",
            "drbdsetup nonsense 0",
            "drbdadm nonsense r0",
            "drbdadm up nobody",
            "rmmod drbd",
        ],
    )
}

/// The configuration changes while everything runs.
fn adjusted(pair: &Pair, transcript: &mut Transcript, config: &Config) -> Result<()> {
    pair.configure(&Config {
        disk: "al-extents 257; c-max-rate 50M;".into(),
        ko_count: 5,
        net: "max-buffers 4000;".into(),
        ..config.clone()
    })?;
    for machine in [pair.second(), pair.first()] {
        transcript.run_all(machine, &["drbdadm -d adjust r0", "drbdadm adjust r0", "drbdadm -d adjust r0"])?;
    }
    // Both sides tell each other their new settings.
    std::thread::sleep(Duration::from_millis(200));
    Ok(())
}

/// Waits until a command that follows events has said so much; it may go on or end then. Returns what it has said.
fn wait_said(events: &lab::Process, wanted: &str) -> Result<String> {
    let until = Instant::now() + stretched(SOON);
    loop {
        let text = String::from_utf8_lossy(&events.stdout()).into_owned();
        if text.contains(wanted) {
            return Ok(text);
        }
        ensure!(Instant::now() < until, "expected {wanted:?} of the events, found\n{text}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The states of the connection that events told about, in their order: none is left out, however short it was.
///
/// The peer answers our wish to disconnect on one socket and closes both. Where the C module comes late to the answer it takes
/// the end of a socket for a failure, and only then leaves, sometimes after it has tried to connect once more. That is its own
/// race, and not what is compared here: such an end is read as the orderly one. Ours has to be orderly always.
fn connection_states(text: &str, module: Module) -> Vec<&str> {
    const BROKEN: [&[&str]; 3] = [
        &["connection:BrokenPipe", "role:Unknown", "connection:Unconnected", "connection:Connecting"],
        &["connection:BrokenPipe", "role:Unknown"],
        &["connection:NetworkFailure", "role:Unknown"],
    ];
    const LEAVES: [&str; 3] = ["connection:Disconnecting", "connection:StandAlone", "destroy"];
    let about = |line: &&str| line.split(' ').nth(1) == Some("connection");
    let told = |word: &&str| {
        ["create", "destroy"].contains(word) || word.starts_with("connection:") || word.starts_with("role:")
    };
    let mut states: Vec<&str> = text.lines().filter(about).flat_map(|line| line.split(' ').filter(told)).collect();
    let broken = BROKEN.iter().find(|broken| states.ends_with(&[**broken, LEAVES.as_slice()].concat()));
    if let (Module::Stock, Some(broken)) = (module, broken) {
        states.truncate(states.len() - broken.len() - LEAVES.len());
        states.extend(["connection:Disconnecting", "role:Unknown", "connection:StandAlone", "destroy"]);
    }
    states
}

#[test]
fn only_the_c_module_may_break_the_pipe() {
    let event = |word: &str| format!("change connection name:r0 peer-node-id:1 {word}\n");
    let early: String = ["connection:Connected", "role:Secondary"].map(event).concat();
    let orderly = ["connection:Disconnecting", "role:Unknown", "connection:StandAlone"].map(event).concat();
    let again = ["connection:Unconnected", "connection:Connecting"].map(event).concat();
    let leaves = ["connection:Disconnecting", "connection:StandAlone"].map(event).concat();
    let whole = |end: String| format!("{early}{end}destroy connection name:r0\n");
    let orderly = whole(orderly);
    let expected = connection_states(&orderly, Module::Stock);
    assert_eq!(connection_states(&orderly, Module::Ours), expected);
    for (failure, again) in [("BrokenPipe", again.as_str()), ("BrokenPipe", ""), ("NetworkFailure", "")] {
        let failed = [format!("connection:{failure}"), "role:Unknown".into()].map(|word| event(&word)).concat();
        let broken = whole(failed + again + &leaves);
        assert_eq!(connection_states(&broken, Module::Stock), expected);
        assert_ne!(connection_states(&broken, Module::Ours), expected);
    }
}

/// The states that events told about, each once and sorted: the order of two messages from different threads is not fixed, nor
/// which of the states on the way to a connection or a resync are seen on their own.
fn changes(text: &str) -> String {
    const LASTING: [&str; 3] = ["replication:Established", "replication:SyncSource", "replication:SyncTarget"];
    let lasting = |line: &str| {
        !line.starts_with("change connection ")
            && (!line.starts_with("change peer-device ") || LASTING.iter().any(|state| line.ends_with(state)))
    };
    let mut lines: Vec<&str> = text.lines().filter(|line| lasting(line)).collect();
    lines.sort_unstable();
    lines.dedup();
    lines.join("\n")
}
