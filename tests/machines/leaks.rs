//! Nothing is left behind: a hundred times (fifty where time is short) up and down, connected and disconnected, loaded and
//! unloaded, and neither slab caches nor pages nor virtual memory grow from round to round; an unloaded module leaves no trace.
//! (Memory that nothing points to is looked for after every test, where the kernel can do that.)

use anyhow::{bail, ensure, Context};
use lab::{is_debug_kernel, Machine, Module, Tools};
use machine_tests::config::Config;
use machine_tests::pair::{Pair, Pairing};
use machine_tests::{is_short, Result};
use std::collections::BTreeMap;
use std::time::Duration;

/// Rounds before the first look, when caches are still being filled, and between two looks. There are three looks, so a hundred rounds.
const ROUNDS: [u32; 2] = [20, 40];

/// The same where time is short.
const SHORT_ROUNDS: [u32; 2] = [10, 20];

/// Rounds on the debug kernel. KASAN keeps what was freed for a while, so that counting says nothing there; that memory is not
/// pointed to any more does, after the test.
const DEBUG_ROUNDS: u32 = 5;

const UP_AND_DOWN: &str = "drbdadm up r0; drbdadm primary --force r0; drbdadm secondary r0; drbdadm down r0";

const ROUNDS_LIMIT: Duration = Duration::from_secs(240);

#[test]
fn up_and_down_leaks_nothing() -> Result<()> {
    let pair = Pair::new(alone(), &Config::default())?;
    let machine = pair.first();
    machine.run_ok("drbdadm create-md --force r0")?;
    rounds(machine, UP_AND_DOWN)?;
    pair.finish()
}

#[test]
fn connect_and_disconnect_leaks_nothing() -> Result<()> {
    let config = Config::default();
    let pair = Pair::mirrored(Pairing::new([Module::Ours; 2], [Tools::Utils; 2]), &config)?;
    let machine = pair.first();
    rounds(
        machine,
        "drbdadm disconnect r0; dd if=/dev/zero of=/dev/drbd0 bs=4k count=4 oflag=direct status=none; drbdadm connect r0; \
         drbdsetup wait-sync 0",
    )?;
    pair.compare_disks()?;
    pair.one_by_one("drbdadm down r0")?;
    pair.finish()
}

#[test]
fn loading_and_unloading_leaks_nothing() -> Result<()> {
    let pair = Pair::new(alone(), &Config::default())?;
    let machine = pair.first();
    let load = if Pairing::is_module_replaced() {
        "modprobe drbd usermode_helper=/bin/true"
    } else {
        "insmod /run/lab/drbd.ko usermode_helper=/bin/true"
    };
    machine.run_ok("drbdadm create-md --force r0")?;
    // With this round, a short run needs no `up_and_down` of its own.
    rounds(machine, &format!("rmmod drbd; {load}; {UP_AND_DOWN}"))?;
    pair.finish()
}

#[test]
fn an_unloaded_module_leaves_no_trace() -> Result<()> {
    let pair = Pair::mirrored(Pairing::OURS, &Config::default())?;
    pair.one_by_one("drbdadm down r0 && rmmod drbd")?;
    for machine in pair.machines() {
        for (what, command) in [
            ("/proc/drbd", "ls /proc/drbd"),
            ("device nodes", "ls /dev/drbd*"),
            ("the block major", "grep drbd /proc/devices"),
            ("the netlink family", "genl ctrl list | grep -w drbd"),
            ("slab caches", "grep drbd /proc/slabinfo"),
            ("threads", "ps -e -o comm | grep '^drbd'"),
            ("debugfs", "ls /sys/kernel/debug/drbd"),
            ("memory of the module", "grep -w drbd /proc/vmallocinfo"),
            ("an open lower device", "ls /sys/block/sdb/sdb1/holders/* 2>/dev/null"),
        ] {
            let output = machine.run(command)?;
            ensure!(!output.success(), "{}: {what} is still there: {output}", machine.name());
        }
        // The lower device is free.
        machine.run_ok("mkfs.ext4 -q -F /dev/sdb1")?;
    }
    pair.finish()
}

fn alone() -> Pairing {
    Pairing::new([Module::Ours, Module::None], [Tools::Utils; 2])
}

/// Repeats a command and looks at the memory three times; whatever has grown with every round is a leak.
fn rounds(machine: &Machine, command: &str) -> Result<()> {
    // The kernel keeps what remains of a closed connection for a minute (TIME_WAIT); with rounds of half a second that grows.
    machine.run_ok("sysctl -q -w net.ipv4.tcp_max_tw_buckets=0")?;
    let repeat = |count: u32| {
        machine.run_ok_for(ROUNDS_LIMIT, &format!("set -e; for round in $(seq {count}); do {command}; done >/dev/null"))
    };
    if is_debug_kernel() {
        return repeat(DEBUG_ROUNDS).map(|_| ());
    }
    let [warm_up, between] = if is_short() { SHORT_ROUNDS } else { ROUNDS };
    repeat(warm_up)?;
    let first = Memory::of(machine)?;
    repeat(between)?;
    let second = Memory::of(machine)?;
    repeat(between)?;
    let third = Memory::of(machine)?;
    let mut grown = Vec::new();
    for (name, &last) in &third.counts {
        let (Some(&first), Some(&second)) = (first.counts.get(name), second.counts.get(name)) else {
            continue;
        };
        let least = i64::from(between) * 9 / 10;
        if second - first >= least && last - second >= least {
            grown.push(format!("{name}: {first}, {second}, {last}"));
        }
    }
    if !grown.is_empty() {
        bail!("after each {between} rounds of `{command}`:\n{}", grown.join("\n"));
    }
    Ok(())
}

/// How many there are: objects of each slab cache, pages that are no cache, areas of virtual memory.
struct Memory {
    counts: BTreeMap<String, i64>,
}

impl Memory {
    fn of(machine: &Machine) -> Result<Memory> {
        // What was freed by call-backs is freed now, and what can be thrown away is thrown away. The address ranges of ended
        // threads' stacks are not: the kernel collects megabytes of them ("unpurged") before it forgets them.
        let text = machine.run_ok(
            "sync; sleep 1; echo 3 >/proc/sys/vm/drop_caches; sleep 0.5; echo 3 >/proc/sys/vm/drop_caches; \
             awk 'NR > 2 { print \"slab\", $1, $2 }' /proc/slabinfo; \
             awk '{ print \"mem\", $1, $2 }' /proc/meminfo; \
             awk '$1 == \"count:\" { pages += $2 } END { print \"mem\", \"PerCpuFree:\", pages * 4 }' /proc/zoneinfo; \
             echo vmalloc areas $(grep -vc unpurged /proc/vmallocinfo)",
        )?;
        let mut counts = BTreeMap::new();
        let mut memory_kib = BTreeMap::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let &[kind, name, number] = words.as_slice() else {
                bail!("unexpected {line:?}");
            };
            let number: i64 = number.parse().with_context(|| line.to_owned())?;
            // The areas are counted below, where those that wait to be purged can be told apart.
            if name == "vmap_area" {
                continue;
            }
            if kind == "mem" {
                memory_kib.insert(name.trim_end_matches(':').to_owned(), number);
            } else {
                counts.insert(format!("{kind} {name}"), number);
            }
        }
        let kib = |name: &str| memory_kib.get(name).copied().unwrap_or_default();
        // Each processor keeps free pages for itself, here many megabytes that come and go, and MemFree does not count them.
        let free = kib("MemFree") + kib("PerCpuFree");
        let used = kib("MemTotal") - free - kib("Buffers") - kib("Cached") - kib("Slab") - kib("AnonPages");
        counts.insert("pages".into(), used / 4);
        Ok(Memory { counts })
    }
}
