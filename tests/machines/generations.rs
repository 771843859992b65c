//! Who has the better data: every rule of the comparison of generations that two machines can reach, the policies after a split
//! brain, `rr-conflict`, `discard-my-data`, `always-asbp` and tentative connections.
//!
//! Each case is a resource of its own on a slice of the disk, with generations written by drbdmeta; all of them meet at
//! once. What must come of it, on both nodes, is in `generations.expected`, written by two C modules
//! (`LAB_INSTEAD=both LAB_BLESS=1`). The first and the second machine hold different data, `a` and `b`, so that it can be seen
//! whose has survived.

use anyhow::{bail, ensure, Context};
use lab::{stretched, Machine, Mark, ADDRESSES, NAMES};
use machine_tests::config::{self, Config};
use machine_tests::helpers;
use machine_tests::pair::{Pair, Pairing};
use machine_tests::{is_short, Result};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Size of a slice in sectors.
const SLICE_SECTORS: u64 = 2048;

/// Limit for all resources to come to rest.
const REST: Duration = Duration::from_secs(90);

/// What a node does before the nodes meet.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Node {
    /// Its generations and flags, as [`generations`] reads them.
    set: &'static str,
    /// It is Primary, and the device is open.
    primary: bool,
    busy: bool,
    /// Option of its connect command.
    connect: &'static str,
}

struct Case {
    name: &'static str,
    nodes: [Node; 2],
    net: &'static str,
}

const fn node(set: &'static str) -> Node {
    Node { set, primary: false, busy: false, connect: "" }
}

const fn primary(set: &'static str) -> Node {
    Node { primary: true, ..node(set) }
}

const fn busy(set: &'static str) -> Node {
    Node { busy: true, ..primary(set) }
}

const fn case(name: &'static str, first: Node, second: Node) -> Case {
    with(name, first, second, "")
}

const fn with(name: &'static str, first: Node, second: Node, net: &'static str) -> Case {
    Case { name, nodes: [first, second], net }
}

/// A set is `current:bitmap:history:history flags`: a letter is a generation, `'` after it its lowest bit, `+` the offset of a
/// resync, 4 and 0 themselves. Flags: `u` UpToDate, `o` Outdated, `i` Inconsistent, then `f` all bits set, `c` crashed while
/// Primary.
const CASES: &[Case] = &[
    case("10", node("4:0:0:0 i"), node("4:0:0:0 i")),
    case("20", node("4:0:0:0 i"), node("A:0:0:0 u")),
    case("30", node("A:0:0:0 u"), node("4:0:0:0 i")),
    case("34", node("A:B:C:0 uf"), node("A:0:B:C uf")),
    case("35", node("A:0:B:C uf"), node("A:B:C:0 uf")),
    case("36", node("A:B:C:0 uf"), node("A:0:D:E uf")),
    case("37", node("A:0:D:E uf"), node("A:B:C:0 uf")),
    case("40", node("A:0:B:C u"), node("A:0:B:C u")),
    case("40 first crashed", node("A:0:B:C ufc"), node("A:0:B:C uf")),
    case("40 second crashed", node("A:0:B:C uf"), node("A:0:B:C ufc")),
    case("40 both crashed", node("A:0:B:C uc"), node("A:0:B:C uc")),
    case("40 one outdated", node("A:0:B:C o"), node("A:0:B:C u")),
    case("40 both outdated", node("A:0:B:C o"), node("A:0:B:C o")),
    case("40 first inconsistent", node("A:0:B:C if"), node("A:0:B:C uf")),
    case("41 first primary", primary("A:B:C:0 ufc"), node("A:B:C:0 uf")),
    case("41 second primary", node("A:B:C:0 uf"), primary("A:B:C:0 ufc")),
    with("41 both primary", primary("A:B:C:0 ufc"), primary("A:B:C:0 uf"), "allow-two-primaries yes;"),
    case("50", node("A:0:B:C uf"), node("D:A:B:C uf")),
    case("51", node("A:0:B:C uf"), node("D:A+:A:B uf")),
    case("60", node("A:0:B:C u"), node("D:E:A:0 u")),
    case("60 oldest", node("A:0:B:C u"), node("D:0:E:A u")),
    case("70", node("D:A:B:C uf"), node("A:0:B:C uf")),
    case("70 inconsistent", node("D:A:B:C i"), node("A:0:B:C i")),
    case("71", node("D:A+:A:B uf"), node("A:0:B:C uf")),
    case("80", node("D:E:A:0 u"), node("A:0:B:C u")),
    case("80 oldest", node("D:0:E:A u"), node("A:0:B:C u")),
    case("90", node("D:A:B:C uf"), node("E:A:B:C uf")),
    case("90 first inconsistent", node("D:A:B:C if"), node("E:A:B:C uf")),
    case("100", node("D:E:A:B u"), node("F:G:A:B u")),
    case("100 first inconsistent", node("D:E:A:B i"), node("F:G:A:B u")),
    case("100 empty histories", node("D:0:0:0 u"), node("E:0:0:0 u")),
    case("unrelated", node("A:B:C:D u"), node("E:F:G:H u")),
    with("0pri younger", node("D:A:B:C uf"), node("E:A':B:C uf"), "after-sb-0pri discard-younger-primary;"),
    with("0pri younger, alike", node("D:A:B:C uf"), node("E:A:B:C u"), "after-sb-0pri discard-younger-primary;"),
    with("0pri older", node("D:A:B:C uf"), node("E:A':B:C uf"), "after-sb-0pri discard-older-primary;"),
    with("0pri zero changes", node("D:A:B:C u"), node("E:A:B:C uf"), "after-sb-0pri discard-zero-changes;"),
    with("0pri zero, both changed", node("D:A:B:C uf"), node("E:A:B:C uf"), "after-sb-0pri discard-zero-changes;"),
    with("0pri zero, none changed", node("D:A:B:C u"), node("E:A:B:C u"), "after-sb-0pri discard-zero-changes;"),
    with("0pri least changes", node("D:A:B:C uf"), node("E:A:B:C u"), "after-sb-0pri discard-least-changes;"),
    with("0pri least, alike", node("D:A:B:C uf"), node("E:A:B:C uf"), "after-sb-0pri discard-least-changes;"),
    with("0pri a node", node("D:A:B:C uf"), node("E:A:B:C uf"), "after-sb-0pri discard-node-drbd1;"),
    with("1pri disconnect", primary("D:A:B:C uf"), node("E:A:B:C uf"), "after-sb-0pri discard-node-drbd2;"),
    with("1pri consensus", primary("D:A:B:C uf"), node("E:A:B:C uf"), CONSENSUS_2),
    with("1pri no consensus", primary("D:A:B:C uf"), node("E:A:B:C uf"), CONSENSUS_1),
    with("1pri secondary", node("D:A:B:C uf"), primary("E:A:B:C uf"), "after-sb-1pri discard-secondary;"),
    with("1pri violently", primary("D:A:B:C uf"), node("E:A:B:C uf"), VIOLENTLY_1),
    with("1pri call, idle", primary("D:A:B:C uf"), node("E:A:B:C uf"), CALL_1),
    with("1pri call, busy", busy("D:A:B:C uf"), node("E:A:B:C uf"), CALL_1),
    with("2pri disconnect", primary("D:A:B:C uf"), primary("E:A:B:C uf"), "allow-two-primaries yes;"),
    with("2pri call, idle", primary("D:A:B:C uf"), primary("E:A:B:C uf"), CALL_2),
    with("2pri call, busy", busy("D:A:B:C uf"), primary("E:A:B:C uf"), CALL_2),
    with("always-asbp", node("D:E:A:B u"), node("F:G:A:B u"), "always-asbp yes; after-sb-0pri discard-node-drbd2;"),
    case("discard-my-data 90", node("D:A:B:C uf"), Node { connect: "--discard-my-data", ..node("E:A:B:C uf") }),
    case("discard-my-data 100", Node { connect: "--discard-my-data", ..node("D:E:A:B u") }, node("F:G:A:B u")),
    case(
        "discard-my-data both",
        Node { connect: "--discard-my-data", ..node("D:A:B:C uf") },
        Node { connect: "--discard-my-data", ..node("E:A:B:C uf") },
    ),
    case("discard-my-data unrelated", node("A:B:C:D u"), Node { connect: "--discard-my-data", ..node("E:F:G:H u") }),
    case("rr-conflict disconnect", primary("A:F:B:C uf"), node("D:A:B:C uf")),
    with("rr-conflict call", busy("A:F:B:C uf"), node("D:A:B:C uf"), "rr-conflict call-pri-lost;"),
    with("rr-conflict violently", primary("A:F:B:C uf"), node("D:A:B:C uf"), "rr-conflict violently;"),
    case("tentative", Node { connect: "--tentative", ..node("D:A:B:C uf") }, node("A:0:B:C uf")),
    case("tentative split", node("D:A:B:C uf"), Node { connect: "--tentative", ..node("E:A:B:C uf") }),
];

/// Cases in which the node wins that happens to have accepted the second socket: seen as if it were the first.
const EITHER: [&str; 3] = ["40 both crashed", "0pri zero, none changed", "0pri least, alike"];

/// In how many cases of a run one of two nodes that refuse may be too slow.
const MOST_SLOW: usize = 4;

/// Both nodes refuse, but one of them saw the other end the connection before it had come to its own verdict, and waits for
/// the other now: two C modules do that, too, when a machine is busy.
fn was_too_slow(expected: &str, found: &str) -> bool {
    let refuses = |line: &str| line.trim_start().starts_with("StandAlone");
    let slower = |line: &str| {
        let state = line.split(" rule ").next().unwrap_or_default();
        state.replacen("StandAlone", "WFConnection", 1)
    };
    let differing: Vec<_> = expected.lines().zip(found.lines()).filter(|(expected, found)| expected != found).collect();
    let both = expected.lines().filter(|line| refuses(line)).count() == 2;
    matches!(differing.as_slice(), [(expected, found)] if both && *found == slower(expected))
}

fn mirrored(text: &str) -> String {
    let swap = |word: &str| match word.contains(':') {
        true => word.replace('D', "?").replace('E', "D").replace('?', "E"),
        false => word.to_owned(),
    };
    let text = text.split(' ').map(swap).collect::<Vec<_>>().join(" ");
    let lines: Vec<&str> = text.lines().collect();
    match lines.as_slice() {
        [name, first, second, data] => format!("{name}\n{second}\n{first}\n{}", data.replace("b b", "a a")),
        _ => text,
    }
}

const CONSENSUS_1: &str = "after-sb-0pri discard-node-drbd1; after-sb-1pri consensus;";
const CONSENSUS_2: &str = "after-sb-0pri discard-node-drbd2; after-sb-1pri consensus;";
const VIOLENTLY_1: &str = "after-sb-0pri discard-node-drbd1; after-sb-1pri violently-as0p;";
const CALL_1: &str = "after-sb-0pri discard-node-drbd1; after-sb-1pri call-pri-lost-after-sb;";
const CALL_2: &str = "allow-two-primaries yes; after-sb-0pri discard-node-drbd1; after-sb-2pri call-pri-lost-after-sb;";

#[test]
fn ours_with_ours() -> Result<()> {
    meet(Pairing::OURS, &share(1, 0))
}

#[test]
fn ours_first_c_second() -> Result<()> {
    meet(Pairing::OURS_PRIMARY, &share(2, 0))
}

#[test]
fn c_first_ours_second() -> Result<()> {
    meet(Pairing::C_PRIMARY, &share(2, 1))
}

/// All cases; with `LAB_SHORT=1` only one in so many, so that each meets the C module once.
fn share(one_in: usize, from: usize) -> Vec<&'static Case> {
    let (one_in, from) = if is_short() { (one_in, from) } else { (1, 0) };
    CASES.iter().skip(from).step_by(one_in).collect()
}

fn meet(pairing: Pairing, cases: &[&Case]) -> Result<()> {
    let pair = Pair::with_helper(pairing, &Config::default())?;
    for machine in pair.machines() {
        machine.put(config::PATH, configuration(cases).as_bytes())?;
    }
    both(&pair, |index| prepare(cases, index))?;
    let marks: Vec<Mark> = pair.machines().iter().map(|machine| machine.console().mark()).collect();
    both(&pair, |index| connect(cases, index))?;
    rest(&pair, cases)?;
    let mut lines = Vec::new();
    let reports = [0, 1].map(|index| report(&pair.machines()[index], marks[index], cases));
    let [first, second] = reports;
    let mut names = Names::default();
    for (case, (first, second)) in cases.iter().zip(first?.into_iter().zip(second?)) {
        lines.push(format!("{}\n  {}\n  {}", case.name, names.line(&first), names.line(&second)));
        names.forget();
    }
    both(&pair, |_| "killall -q -9 sleep; sleep 0.2; drbdadm down all".into())?;
    let data = [0, 1]
        .map(|index| pair.machines()[index].run_ok(&each(cases, index, |at, _| format!("head -c1 /dev/mapper/g{at}"))));
    let [first, second] = data;
    for ((case, line), (first, second)) in cases.iter().zip(&mut lines).zip(first?.chars().zip(second?.chars())) {
        write!(line, "\n  data {first} {second}")?;
        let second_wins = line.lines().nth(2).is_some_and(|line| line.contains("before-resync-source"));
        if EITHER.contains(&case.name) && second_wins {
            *line = mirrored(line);
        }
    }
    both(&pair, |_| "dmsetup remove_all --force".into())?;
    pair.finish()?;
    compare(cases, &lines)
}

/// Runs a script on both machines at the same time; it is told which one it is for.
fn both(pair: &Pair, script: impl Fn(usize) -> String + Sync) -> Result<()> {
    let run = |index: usize| pair.machines()[index].run_ok_for(Duration::from_secs(180), &script(index)).map(|_| ());
    thread::scope(|scope| {
        let other = scope.spawn(|| run(1));
        run(0)?;
        other.join().unwrap_or_else(|_| bail!("a thread panicked"))
    })
}

/// A command for each case, told the number of the case and the node.
fn each(cases: &[&Case], index: usize, command: impl Fn(usize, &Node) -> String) -> String {
    let lines = cases.iter().enumerate().map(|(at, case)| command(at, &case.nodes[index]));
    lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}

fn configuration(cases: &[&Case]) -> String {
    let mut text = String::from(
        "global { usage-count no; }\ncommon { net { connect-int 3; ping-int 10; timeout 60; ping-timeout 90; socket-check-timeout 5; } }\n",
    );
    for (at, case) in cases.iter().enumerate() {
        let _ = writeln!(text, "resource g{at} {{ net {{ protocol C; {} }} disk {{ c-plan-ahead 0; }}", case.net);
        for (name, address) in NAMES.iter().zip(ADDRESSES) {
            let _ = writeln!(
                text,
                "  on {name} {{ device minor {at}; disk /dev/mapper/g{at}; address {address}:{}; meta-disk internal; }}",
                7800 + at
            );
        }
        text.push_str("}\n");
    }
    text
}

/// Slices with generations and data, attached, and Primary where that is wanted. One slice gets its meta data by drbdadm, and
/// a bitmap without a bit set by `new-current-uuid --clear-bitmap`; the others are copies of it.
fn prepare(cases: &[&Case], index: usize) -> String {
    let letter = ['a', 'b'][index];
    let slices = each(cases, index, |at, _| {
        let start = at as u64 * SLICE_SECTORS;
        format!("dmsetup create g{at} --table '0 {SLICE_SECTORS} linear /dev/sdb1 {start}'")
    });
    let generations = each(cases, index, |at, node| {
        let copy = format!("cp /tmp/slice /dev/mapper/g{at}");
        format!("{copy}; drbdmeta --force {at} v08 /dev/mapper/g{at} internal set-gi {} >/dev/null", set_gi(node.set))
    });
    let primaries = each(cases, index, |at, node| match (node.primary, node.busy) {
        (false, _) => String::new(),
        (true, false) => format!("drbdadm primary g{at}"),
        (true, true) => format!("drbdadm primary g{at}; sleep 1000 </dev/drbd{at} >/dev/null 2>&1 &"),
    });
    format!(
        "set -e; modprobe dm-mod\n{slices}\ndd if=/dev/zero bs=1M count=1 status=none | tr '\\0' {letter} >/dev/mapper/g0\n\
         drbdadm create-md --force g0 >/dev/null 2>&1\n\
         drbdadm new-resource g0; drbdadm new-minor g0; drbdadm attach g0; drbdadm new-current-uuid --clear-bitmap g0\n\
         drbdadm down g0; sync\ncp /dev/mapper/g0 /tmp/slice\n{generations}\nsync\n\
         drbdadm new-resource all; drbdadm new-minor all; drbdadm attach all\n{primaries}"
    )
}

fn connect(cases: &[&Case], index: usize) -> String {
    let plain = cases.iter().enumerate().filter(|(_, case)| case.nodes[index].connect.is_empty());
    let plain: Vec<String> = plain.map(|(at, _)| format!("g{at}")).collect();
    let special = each(cases, index, |at, node| {
        if node.connect.is_empty() {
            String::new()
        } else {
            format!("drbdadm connect {} g{at}", node.connect)
        }
    });
    format!("drbdadm connect {} || exit\n{special}", plain.join(" "))
}

/// The value for drbdmeta's set-gi.
fn set_gi(set: &str) -> String {
    let (uuids, flags) = set.split_once(' ').unwrap_or((set, ""));
    let uuids: Vec<String> = uuids.split(':').map(|name| format!("{:016X}", uuid(name))).collect();
    let bit = |letters: &[char]| u8::from(flags.contains(letters));
    let (crashed, full) = (bit(&['c']), bit(&['f']));
    format!("{}:{}:{}:0:0:{full}:0:{crashed}:", uuids.join(":"), bit(&['u', 'o']), bit(&['u']))
}

fn uuid(name: &str) -> u64 {
    let mut characters = name.chars();
    match characters.next() {
        Some(letter @ 'A'..='H') => {
            let base = ((u64::from(letter) - u64::from('A') + 0xA) << 60) | 0x0011_2233_4455_6670;
            name[1..].chars().fold(base, |uuid, mark| match mark {
                '+' => uuid.wrapping_add(1 << 48),
                _ => uuid | 1,
            })
        }
        _ => name.parse().unwrap_or_default(),
    }
}

/// Generations in the notation of the cases.
#[derive(Default)]
struct Names {
    new: Vec<u64>,
}

impl Names {
    fn line(&mut self, report: &NodeReport) -> String {
        let uuids: Vec<String> = report.uuids.iter().map(|&uuid| self.name(uuid)).collect();
        let NodeReport { state, flags, rules, helpers, .. } = report;
        let mut line = format!("{state} {} {flags}", uuids.join(":"));
        // A node whose peer has refused first may or may not have come to a verdict of its own.
        if !state.starts_with("WFConnection") {
            let _ = write!(line, " rule {rules}, helpers:{helpers}");
        }
        line
    }

    fn name(&mut self, value: u64) -> String {
        let mark = if value & 1 == 1 { "'" } else { "" };
        let plain = value & !1;
        for letter in 'A'..='H' {
            for steps in 0..4_u64 {
                if plain == uuid(&letter.to_string()).wrapping_add(steps << 48) {
                    return format!("{letter}{}{mark}", "+".repeat(steps as usize));
                }
            }
        }
        if plain < 10 {
            return value.to_string();
        }
        let known = self.new.iter().position(|&new| new == plain);
        let number = known.unwrap_or_else(|| {
            self.new.push(plain);
            self.new.len() - 1
        });
        // Its lowest bit is as random as the rest.
        format!("new{number}")
    }

    fn forget(&mut self) {
        self.new.clear();
    }
}

/// Waits until nothing moves any more on either node.
fn rest(pair: &Pair, cases: &[&Case]) -> Result<()> {
    let until = Instant::now() + stretched(REST);
    let look = || -> Result<Vec<[String; 2]>> {
        let texts = [pair.first().run_ok("cat /proc/drbd")?, pair.second().run_ok("cat /proc/drbd")?];
        let states = texts.map(|text| states(&text));
        let [first, second] = states;
        Ok(first.into_iter().zip(second).map(|(first, second)| [first, second]).collect())
    };
    let mut before = look()?;
    loop {
        thread::sleep(Duration::from_secs(1));
        let now = look()?;
        let restless: Vec<&str> =
            cases.iter().zip(&now).filter(|(_, now)| !at_rest(now)).map(|(case, _)| case.name).collect();
        if now == before && restless.is_empty() && now.len() == cases.len() {
            return Ok(());
        }
        if Instant::now() > until {
            bail!("not at rest: {restless:?}\n{now:#?}");
        }
        before = now;
    }
}

fn at_rest([first, second]: &[String; 2]) -> bool {
    let conn = |state: &str| state.split(' ').next().unwrap_or_default().to_owned();
    match (&*conn(first), &*conn(second)) {
        ("WFConnection", other) | (other, "WFConnection") => other == "StandAlone",
        (first, second) => [first, second].iter().all(|conn| ["Connected", "StandAlone"].contains(conn)),
    }
}

/// `cs ro ds` of each minor, in their order.
fn states(proc: &str) -> Vec<String> {
    let values = |line: &str| {
        let words = line.split_whitespace().filter_map(|word| word.split_once(':'));
        words
            .filter(|(name, _)| ["cs", "ro", "ds"].contains(name))
            .map(|(_, value)| value.to_owned())
            .collect::<Vec<_>>()
    };
    proc.lines().filter(|line| line.contains(": cs:")).map(|line| values(line).join(" ")).collect()
}

/// What one node says about one case.
struct NodeReport {
    state: String,
    uuids: Vec<u64>,
    flags: String,
    rules: String,
    helpers: String,
}

fn report(machine: &Machine, mark: Mark, cases: &[&Case]) -> Result<Vec<NodeReport>> {
    let states = states(&machine.run_ok("cat /proc/drbd")?);
    let sets = machine.run_ok(&each(cases, 0, |at, _| format!("drbdsetup get-gi {at}")))?;
    let log = machine.console().since(mark);
    let helpers = helpers::calls(machine)?;
    let mut reports = Vec::new();
    for ((at, state), set) in states.into_iter().enumerate().zip(sets.lines()) {
        let fields: Vec<&str> = set.trim().split(':').collect();
        let uuids = fields.iter().take(4).map(|field| u64::from_str_radix(field, 16).with_context(|| set.to_owned()));
        let mut called: Vec<&str> =
            helpers.iter().filter(|call| call.object == format!("minor-{at}")).map(|call| &*call.event).collect();
        called.sort_unstable();
        called.dedup();
        reports.push(NodeReport {
            state,
            uuids: uuids.collect::<Result<_>>()?,
            // Not whether it crashed as Primary: the C module forgets that later than ours.
            flags: fields.get(4..10).unwrap_or_default().concat(),
            rules: rules(&log, at),
            helpers: called.iter().map(|event| format!(" {event}")).collect(),
        });
    }
    Ok(reports)
}

/// The numbers of the rules that a module names for a minor, each once.
fn rules(log: &str, minor: usize) -> String {
    let place = format!("g{minor}/0 drbd{minor}: ");
    let mut numbers = BTreeMap::new();
    for line in log.lines().filter(|line| line.contains(&place)) {
        if let Some((_, rest)) = line.split_once("rule ") {
            let number: String = rest.chars().take_while(char::is_ascii_digit).collect();
            numbers.insert(number, ());
        }
    }
    numbers.into_keys().collect::<Vec<_>>().join(" ")
}

fn compare(cases: &[&Case], found: &[String]) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("machines/generations.expected");
    if std::env::var_os("LAB_BLESS").is_some() {
        ensure!(cases.len() == CASES.len(), "LAB_BLESS=1 is for all cases, not for those of LAB_SHORT=1");
        return std::fs::write(&path, found.join("\n") + "\n").with_context(|| path.display().to_string());
    }
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let lines: Vec<&str> = text.lines().collect();
    let mut expected: Vec<String> = lines.chunks(4).map(|lines| lines.join("\n")).collect();
    expected.retain(|lines| cases.iter().any(|case| lines.lines().next() == Some(case.name)));
    let (slow, different): (Vec<_>, Vec<_>) = expected
        .iter()
        .zip(found)
        .filter(|(expected, found)| expected != found)
        .partition(|(expected, found)| was_too_slow(expected, found));
    let different = different.into_iter().chain(slow.into_iter().skip(MOST_SLOW));
    let mut message = String::new();
    for (expected, found) in different {
        write!(message, "\nexpected {expected}\nfound    {found}\n")?;
    }
    if expected.len() != found.len() {
        write!(message, "\n{} cases are expected, there are {}", expected.len(), found.len())?;
    }
    if message.is_empty() {
        return Ok(());
    }
    bail!("not what two C modules do:{message}")
}

#[test]
fn of_two_nodes_that_refuse_only_one_may_be_too_slow() {
    let of = |first: &str, second: &str| format!("90\n  {first}\n  {second}\n  data a b");
    let refuses = "StandAlone Secondary/Unknown A:0 110000 rule 90, helpers: split-brain";
    let waits = "WFConnection Secondary/Unknown A:0 110000";
    let both = of(refuses, refuses);
    assert!(was_too_slow(&both, &of(refuses, waits)) && was_too_slow(&both, &of(waits, refuses)));
    assert!(!was_too_slow(&both, &of(waits, waits)));
    assert!(!was_too_slow(&both, &of(refuses, &waits.replace("A:0", "B:0"))));
    let meet = of("Connected Secondary/Secondary A:0", "Connected Secondary/Secondary A:0");
    assert!(!was_too_slow(&meet, &of("Connected Secondary/Secondary A:0", waits)));
}
