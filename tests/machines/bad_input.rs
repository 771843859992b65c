//! Bad input: peers that do not keep to the protocol, disks that are not what they should be, and configurations with mistakes.
//! Each is refused with a reason, and the node keeps serving.

use crate::transcript::{Compare, Transcript};
use anyhow::{bail, ensure};
use lab::{stretched, Machine, Module, Tools};
use machine_tests::config::{self, Config};
use machine_tests::pair::{device, wait, Pair, Pairing, SOON};
use machine_tests::{guest, Result};
use std::time::{Duration, Instant};

/// A case of `guest hostile`, and what our log must name as the reason; empty where nothing needs to be said: nobody was a peer
/// yet.
const HOSTILE: &[(&str, &str)] = &[
    ("first-garbage", ""),
    ("features-magic", "no magic"),
    ("features-other", "P_PROTOCOL"),
    ("features-length", "P_CONNECTION_FEATURES with 71 bytes"),
    ("features-truncated", ""),
    ("features-version", "no common protocol version"),
    ("protocol-letter", "protocol does not fit"),
    ("data-first", "P_DATA"),
    ("magic", "0xdeadbeef"),
    ("pad", "padding"),
    ("unknown", "unknown packet 0x7777"),
    ("unused", "P_BECOME_SYNC_TARGET"),
    ("short", "P_STATE with 2 bytes"),
    ("oversized", "P_STATE with 4294967295 bytes"),
    ("data-huge", "P_DATA with 2147483648 bytes"),
    ("data-odd", "100 bytes"),
    ("data-beyond", "range of 4096 bytes"),
    ("data-volume", "volume"),
    ("request-beyond", "range of 4096 bytes"),
    ("bitmap", "bitmap"),
    ("noise", "no magic"),
    ("truncated", ""),
    ("meta-magic", "no magic"),
    ("meta-unknown", "0x7777"),
    ("meta-length", "P_WRITE_ACK with 1048576 bytes"),
    ("meta-write-ack", "P_WRITE_ACK for sector 8"),
    ("meta-barrier-ack", "barrier acknowledgement"),
];

#[test]
fn hostile_peers_are_shown_the_door() -> Result<()> {
    let config = Config::default();
    let pairing = Pairing::new([Module::Ours, Module::None], [Tools::Utils, Tools::Utils]);
    let pair = Pair::new(pairing, &config)?;
    let (victim, attacker) = (pair.first(), pair.second());
    victim.run_ok("drbdadm create-md --force r0 && drbdadm up r0 && drbdadm primary --force r0")?;
    let mut wrong = Vec::new();
    for &(case, reason) in HOSTILE {
        // The C module itself reads beyond its table there, and its kernel says so.
        if Pairing::is_module_replaced() && case == "unknown" {
            continue;
        }
        if let Err(error) = hostile(victim, attacker, case, reason) {
            wrong.push(format!("{case}: {error:#}"));
        }
        victim.check_console()?;
    }
    if !wrong.is_empty() {
        bail!("{} of {} cases:\n{}", wrong.len(), HOSTILE.len(), wrong.join("\n"));
    }
    victim.run_ok("drbdadm down r0")?;
    pair.finish()
}

/// A peer that answers every ping, and never says in what state it is (mute), or nothing more after that (deaf): whoever gives a command
/// has an answer all the same, writes are written, and a disconnect gets rid of it.
#[test]
fn silent_peers_hold_nothing_up() -> Result<()> {
    let config = Config::default();
    let pair = Pair::new(Pairing::new([Module::Ours, Module::None], [Tools::Utils; 2]), &config)?;
    let (victim, attacker) = (pair.first(), pair.second());
    victim.run_ok("drbdadm create-md --force r0 && drbdadm up r0 && drbdadm primary --force r0")?;
    let mute = ["primary r0", "detach r0", "disconnect r0", "disconnect --force r0", "down r0"];
    let mute = mute.map(|command| ("mute", format!("drbdadm {command}")));
    // drbdadm gives drbdsetup up after 5 s; `timeout` x `ko-count` is longer.
    let disconnect = format!("drbdsetup disconnect {}:7788 {}:7788", victim.address(), attacker.address());
    let deaf = ["drbdadm secondary r0".into(), disconnect, "drbdadm disconnect --force r0".into()];
    let deaf = deaf.map(|command| ("deaf", command));
    for (case, command) in mute.into_iter().chain(deaf) {
        wait(victim, SOON, "a node that waits for its peer", |device| device.connection == "WFConnection")?;
        let peer = attacker.spawn(&format!("{} hostile --to {}:7788 --case {case}", guest::PATH, victim.address()))?;
        let expected = if case == "mute" { "WFReportParams" } else { "Connected" };
        wait(victim, SOON, "a peer that says no more", |device| device.connection == expected)?;
        victim.run_ok("dd if=/dev/urandom of=/dev/drbd0 bs=64k count=4 oflag=direct status=none")?;
        if matches!(&*command, "drbdadm detach r0" | "drbdadm down r0") {
            victim.run_ok("drbdadm secondary r0")?;
        }
        let began = Instant::now();
        victim.run_ok(&command)?;
        // `timeout` is 2 s: twice that, or seven times (`ko-count`) for what is asked of a peer that is connected.
        ensure!(began.elapsed() < stretched(Duration::from_secs(20)), "{case}, {command}: {:?}", began.elapsed());
        victim.run_ok("drbdadm disconnect --force r0 || drbdadm down r0")?;
        peer.wait(stretched(SOON))?;
        victim.run_ok("drbdadm adjust r0 && drbdadm primary --force r0")?;
    }
    victim.run_ok("drbdadm down r0")?;
    pair.finish()
}

fn hostile(victim: &Machine, attacker: &Machine, case: &str, reason: &str) -> Result<()> {
    if device(victim)?.connection == "StandAlone" {
        victim.run_ok("drbdadm connect r0")?;
    }
    wait(victim, SOON, "a node that waits for its peer", |device| device.connection == "WFConnection")?;
    let mark = victim.console().mark();
    let command = format!("{} hostile --to {}:7788 --case {case}", guest::PATH, victim.address());
    let output = attacker.run(&command)?;
    ensure!(output.success(), "{output}");
    let state = wait(victim, SOON, "the end of the connection", |device| {
        matches!(&*device.connection, "WFConnection" | "StandAlone")
    })?;
    ensure!(state.disks == "UpToDate/DUnknown" && state.roles == "Primary/Unknown", "found {state:?}");
    victim.run_ok(
        "head -c 64k /dev/urandom >/tmp/data && dd if=/tmp/data of=/dev/drbd0 bs=64k oflag=direct status=none && \
         dd if=/dev/drbd0 bs=64k count=1 iflag=direct status=none | cmp - /tmp/data",
    )?;
    // The C module names the reasons in its own words.
    if Pairing::is_module_replaced() {
        return Ok(());
    }
    let log = victim.console().since(mark);
    let named = log.lines().filter(|line| line.contains("r0") && line.contains(reason)).count();
    ensure!(reason.is_empty() || named == 1, "expected one line with {reason:?}, found {named}:\n{log}");
    Ok(())
}

/// Disks that cannot be used. The C module is the judge of the exit codes and of the sentences, which the tool derives from the
/// result number.
#[test]
fn unusable_disks_are_refused() -> Result<()> {
    let session = |module| unusable_disks(Pairing::new([module, Module::None], [Tools::Utils; 2]));
    let expected = session(Module::Stock)?;
    session(Module::Ours)?.check(&expected, Compare::Everything)
}

fn unusable_disks(pairing: Pairing) -> Result<Transcript> {
    let pair = Pair::new(pairing, &Config::default())?;
    let machine = pair.first();
    let mut made = Transcript::default();
    let transcript = &mut made;
    machine.run_ok("drbdsetup new-resource r0 && drbdsetup new-minor r0 0 0")?;
    let internal = "drbdsetup attach 0 /dev/sdb1 /dev/sdb1 internal";
    let external = "drbdsetup attach 0 /dev/sdb1 /dev/sda flexible";
    let refused = |transcript: &mut Transcript, preparation: &str, command: &str, undo: &str| -> Result<()> {
        machine.run_ok(preparation)?;
        let before = disks(machine)?;
        transcript.run(machine, command)?;
        transcript.run(machine, "drbdsetup dstate 0")?;
        ensure!(disks(machine)? == before, "`{command}` was refused, and wrote something");
        machine.run_ok(undo)?;
        Ok(())
    };

    // Nothing there, noise there, a file system there.
    refused(transcript, "true", internal, "true")?;
    refused(transcript, "true", external, "true")?;
    refused(
        transcript,
        "dd if=/dev/urandom of=/dev/sdb1 bs=1M seek=60 count=4 status=none",
        internal,
        "blkdiscard -f /dev/sdb1",
    )?;
    refused(transcript, "mkfs.ext4 -q /dev/sda", external, "blkdiscard -f /dev/sda")?;
    // A superblock that says what cannot be: its fields one after the other. It is in the last 4 KiB but one of the disk.
    let create = "drbdmeta 0 v08 /dev/sdb1 internal create-md --force >/dev/null 2>&1";
    let end = 64 << 20;
    for (name, offset) in [
        ("effective size", 0),
        ("magic", 60),
        ("size of the meta data", 64),
        ("offset of the activity log", 68),
        ("offset of the bitmap", 76),
        ("bytes a bit", 80),
        ("stripes", 88),
    ] {
        let at = end - 4096 + offset;
        let damage = format!(
            "{create}; printf '\\177\\377\\377\\377' | dd of=/dev/sdb1 bs=1 seek={at} conv=notrunc status=none; sync"
        );
        refused(transcript, &format!("# {name}\n{damage}"), internal, "blkdiscard -f /dev/sdb1")?;
    }
    // Too small, missing, busy, no disk at all.
    let tiny = |sectors: u32| format!("dmsetup create tiny --table '0 {sectors} linear /dev/sda 0'");
    let remove = "dmsetup remove tiny";
    machine.run_ok("modprobe dm-mod")?;
    refused(transcript, &tiny(64), "drbdsetup attach 0 /dev/mapper/tiny /dev/mapper/tiny internal", remove)?;
    refused(transcript, &tiny(1024), "drbdsetup attach 0 /dev/sdb1 /dev/mapper/tiny flexible", remove)?;
    refused(transcript, "true", "drbdsetup attach 0 /dev/none /dev/none internal", "true")?;
    refused(transcript, "true", "drbdsetup attach 0 /dev/sdb1 /dev/none flexible", "true")?;
    refused(transcript, "true", "drbdsetup attach 0 /etc/passwd /etc/passwd internal", "true")?;
    // Not asked: the same device for data and external meta data. The C module refuses it and keeps it claimed.
    let good = "drbdmeta 0 v08 /dev/sdb1 internal create-md --force >/dev/null 2>&1; sync";
    refused(transcript, &format!("{good}; dmsetup create tiny --table '0 1024 linear /dev/sdb1 0'"), internal, remove)?;

    // A device that is smaller than the data the meta data speak of.
    machine.run_ok("drbdmeta 0 v08 /dev/sda flex-external create-md --force >/dev/null 2>&1")?;
    transcript.run(machine, external)?;
    transcript.run(machine, "drbdsetup primary 0 --force")?;
    transcript.run(machine, "drbdsetup secondary 0")?;
    transcript.run(machine, "drbdsetup detach 0")?;
    // The C module writes the superblock here before it refuses, so does ours.
    machine.run_ok("dmsetup create tiny --table '0 65536 linear /dev/sdb1 0'")?;
    transcript.run(machine, "drbdsetup attach 0 /dev/mapper/tiny /dev/sda flexible")?;
    transcript.run(machine, "drbdsetup dstate 0")?;
    machine.run_ok(remove)?;

    // A second resource that wants what another one has.
    let (own, peer) = (pair.first().address(), pair.second().address());
    let connect = |name: &str, port: u16, peer_port: u16| {
        format!("drbdsetup connect {name} ipv4:{own}:{port} ipv4:{peer}:{peer_port}")
    };
    transcript.run(machine, "drbdsetup new-resource r1")?;
    transcript.run(machine, &connect("r0", 7788, 7788))?;
    transcript.run(machine, &connect("r1", 7788, 7789))?;
    transcript.run(machine, &connect("r1", 7789, 7788))?;
    transcript.run(machine, &connect("r0", 7790, 7790))?;
    transcript.run(machine, "drbdsetup new-minor r1 0 0")?;
    transcript.run(machine, "drbdsetup down r1")?;
    machine.run_ok("drbdsetup down r0")?;
    pair.finish()?;
    Ok(made)
}

/// What is on the disks, as the host sees it.
fn disks(machine: &Machine) -> Result<[Vec<u8>; 2]> {
    machine.run_ok("sync")?;
    let read = |disk| std::fs::read(machine.disk_file(disk));
    Ok([read("sda")?, read("sdb")?])
}

/// A configuration with a mistake: what is wrong, where, and what was expected. Only our tools are asked.
#[test]
fn mistakes_in_the_configuration_are_pointed_at() -> Result<()> {
    let pairing = Pairing::new([Module::Ours, Module::None], [Tools::Ours; 2]);
    let pair = Pair::new(pairing, &Config::default())?;
    let machine = pair.first();
    let good = Config::default().to_string();
    machine.run_ok("drbdadm dump >/dev/null")?;
    let second_resource = good.replace("resource r0", "resource r1").replace("7788", "7789");
    let second_resource = second_resource.replace("global { usage-count no; }\n", "");
    let cases = [
        ("a typo in an option", good.replace("connect-int", "conect-int"), "drbd.conf:3", "conect-int"),
        ("a typo in a section", good.replace("  disk {", "  dsik {"), "drbd.conf:4", "dsik"),
        ("a value out of range", good.replace("timeout 20", "timeout 60000"), "drbd.conf:3", "60000"),
        ("a value of another kind", good.replace("connect-int 3", "connect-int soon"), "drbd.conf:3", "soon"),
        ("no semicolon", good.replace("protocol C;", "protocol C"), "drbd.conf:3", "`;`"),
        ("a brace that is never closed", good.trim_end().trim_end_matches('}').into(), "drbd.conf:", "`}`"),
        ("no section for this host", good.replace("on drbd1", "on drbd3"), "", "for this host"),
        ("no address", good.replace("address 192.168.1.11:7788;", ""), "drbd.conf:5", "address"),
        ("a duplicate minor", good.clone() + &second_resource, "drbd.conf:", "drbd0"),
        ("an empty file", String::new(), "", ""),
    ];
    let mut wrong = Vec::new();
    for (name, text, place, word) in cases {
        machine.put(config::PATH, text.as_bytes())?;
        let output = machine.run("drbdadm up r0")?;
        let said = output.error_text();
        // Nothing is wrong with a file that is not about this host.
        let code = if place.is_empty() { 1 } else { 10 };
        if output.code() != code || !said.contains(place) || !said.contains(word) {
            wrong.push(format!("{name}: expected exit code {code}, {place:?} and {word:?}, found {output}"));
        }
        ensure!(!machine.run_ok("cat /proc/drbd")?.contains(" 0: cs:"), "{name}: something was configured");
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    pair.configure(&Config::default())?;
    pair.finish()
}
