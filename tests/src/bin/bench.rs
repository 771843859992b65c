//! `make bench`: the C module and ours in the same measurement, as a table with the ratio of each row.
//!
//! One machine with one processor whose time is counted in instructions (2 ns each), so the host's mood does not matter: both
//! ends of a resource are in one kernel, connected over loopback, on RAM disks filled beforehand. Repeated runs agree to about
//! 1 %. What is measured are the instructions on the whole path; latency of real disks and links is not.
//!
//! `--modules ours` or `stock` measures one of them only, `--rows TEXT` only the rows that have TEXT in their name (it can
//! be given more than once); neither writes a file. `--around PROGRAM` is for profilers: PROGRAM is run on the host before
//! and after each row with the arguments `begin` or `end`, the module, the row and a file with the symbols of the machine.
//! `--counts` only counts what a write costs in locks, wake-ups and the like (see [`COUNTS`]).

use anyhow::{bail, Context, Result};
use indicatif::ProgressBar;
use lab::{Cluster, Disk, Machine, Module, Options, Tools};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Size of a RAM disk.
const DISK_MIB: u64 = 256;

/// Size of the disks that store nothing, for the row where every write is somewhere else.
const NULL_GIB: u64 = 100;

/// Time on the host's clock that a row may take; its guest takes 1.5 s.
const ROW_LIMIT: Duration = Duration::from_secs(300);

/// The least ratio that is accepted.
const LEAST_RATIO: f64 = 0.5;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/PERFORMANCE.md");

/// What is counted for each write: a name, and the functions whose calls are added up.
const COUNTS: &[(&str, &[&str])] = &[
    (
        "spinlocks taken",
        &["_raw_spin_lock", "_raw_spin_lock_bh", "_raw_spin_lock_irq", "_raw_spin_lock_irqsave", "_raw_spin_trylock"],
    ),
    ("mutexes taken", &["mutex_lock", "mutex_trylock"]),
    ("locks of sockets taken", &["lock_sock_nested"]),
    ("wake-ups of a thread", &["try_to_wake_up"]),
    ("context switches", &["finish_task_switch.isra.0"]),
    ("calls that send", &["tcp_sendmsg_locked"]),
    ("calls that receive", &["tcp_recvmsg"]),
    ("TCP segments", &["__tcp_transmit_skb"]),
    (
        "allocations",
        &[
            "kmem_cache_alloc_noprof",
            "kmem_cache_alloc_node_noprof",
            "kmem_cache_alloc_lru_noprof",
            "__kmalloc_noprof",
            "__kmalloc_cache_noprof",
            "__kmalloc_node_track_caller_noprof",
            "kmalloc_reserve",
            "get_page_from_freelist",
        ],
    ),
];

/// Writes over which is counted.
const COUNTED_WRITES: u32 = 5000;

/// Queue depths at which is counted.
const COUNTED_DEPTHS: [u32; 2] = [1, 16];

/// What a row is measured on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Connected with this protocol, in sync.
    Connected(char),
    /// The same, but the peer is away.
    Disconnected,
    /// Connected with protocol C, on the large disks, the activity log never fitting.
    Cold,
}

/// A row of fio.
struct Row {
    name: &'static str,
    stage: Stage,
    fio: &'static str,
}

const fn row(name: &'static str, stage: Stage, fio: &'static str) -> Row {
    Row { name, stage, fio }
}

use Stage::{Cold, Connected, Disconnected};

const ROWS: &[Row] = &[
    row("protocol C, random write 4k, depth 1", Connected('C'), "--rw=randwrite --bs=4k --iodepth=1"),
    row("protocol C, random write 4k, depth 16", Connected('C'), "--rw=randwrite --bs=4k --iodepth=16"),
    row(
        "protocol C, random write 4k, depth 32 x 4 jobs",
        Connected('C'),
        "--rw=randwrite --bs=4k --iodepth=32 --numjobs=4",
    ),
    row("protocol C, random write 64k, depth 8", Connected('C'), "--rw=randwrite --bs=64k --iodepth=8"),
    row("protocol C, sequential write 1M, depth 4", Connected('C'), "--rw=write --bs=1M --iodepth=4"),
    row("connected, random read 4k, depth 8", Connected('C'), "--rw=randread --bs=4k --iodepth=8"),
    row("protocol A, random write 4k, depth 1", Connected('A'), "--rw=randwrite --bs=4k --iodepth=1"),
    row("protocol A, random write 4k, depth 16", Connected('A'), "--rw=randwrite --bs=4k --iodepth=16"),
    row("protocol B, random write 4k, depth 1", Connected('B'), "--rw=randwrite --bs=4k --iodepth=1"),
    row("protocol B, random write 4k, depth 16", Connected('B'), "--rw=randwrite --bs=4k --iodepth=16"),
    row("disconnected, random write 4k, depth 16", Disconnected, "--rw=randwrite --bs=4k --iodepth=16"),
    row("activity log cold, random write 4k, depth 1", Cold, "--rw=randwrite --bs=4k --iodepth=1"),
    row("activity log cold, random write 4k, depth 16", Cold, "--rw=randwrite --bs=4k --iodepth=16"),
];

const RESYNC_ROW: &str = "full resync, rate limit lifted";

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<()> {
    use lexopt::prelude::*;
    let mut only = None;
    let mut choice = Choice::default();
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("modules") => {
                only = Some(match parser.value()?.string()?.as_str() {
                    "ours" => Module::Ours,
                    "stock" => Module::Stock,
                    other => bail!("--modules {other}: ours or stock"),
                });
            }
            Long("rows") => choice.rows.push(parser.value()?.string()?),
            Long("counts") => choice.counts = true,
            Long("around") => choice.around = Some(PathBuf::from(parser.value()?)),
            other => return Err(other.unexpected().into()),
        }
    }
    let partly = !choice.rows.is_empty();
    let only_counts = choice.counts;
    let bench = Bench::boot(choice)?;
    if only_counts {
        println!("{}", bench.counts()?);
        return bench.cluster.check_consoles();
    }
    if let Some(module) = only {
        for (name, figure) in bench.measure(module)? {
            println!("{name}: {}", figure.text());
        }
        return bench.cluster.check_consoles();
    }
    let stock = bench.measure(Module::Stock)?;
    let ours = bench.measure(Module::Ours)?;
    bench.cluster.check_consoles()?;
    let table = Table::new(&stock, &ours)?;
    println!("{}", table.text);
    if partly {
        return Ok(());
    }
    let counts = bench.counts()?;
    println!("{counts}");
    bench.cluster.check_consoles()?;
    report(&bench, &table, &counts)
}

/// What is to be measured, and how.
#[derive(Default)]
struct Choice {
    /// Parts of names; all rows when there is none.
    rows: Vec<String>,
    /// A program to be run before and after each row.
    around: Option<PathBuf>,
    /// Nothing is measured, only counted.
    counts: bool,
}

impl Choice {
    fn includes(&self, name: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|part| name.contains(part.as_str()))
    }
}

/// A measured value.
#[derive(Clone, Copy, Debug)]
enum Figure {
    /// Requests a second.
    Iops(f64),
    /// Megabytes a second.
    Speed(f64),
}

impl Figure {
    fn value(self) -> f64 {
        match self {
            Figure::Iops(value) | Figure::Speed(value) => value,
        }
    }

    fn text(self) -> String {
        match self {
            Figure::Iops(value) => format!("{value:.0}"),
            Figure::Speed(value) => format!("{value:.0} MB/s"),
        }
    }
}

/// Rows by their names, in the order they were measured.
type Figures = Vec<(&'static str, Figure)>;

struct Bench {
    cluster: Cluster,
    choice: Choice,
}

impl Bench {
    fn boot(choice: Choice) -> Result<Bench> {
        let options = Options::default()
            .benchmark()
            .memory_mib(2048)
            .disks(&[Disk::whole(16)])
            .module(Module::None)
            .tools(Tools::Utils);
        // When the machine has nothing to do its time runs ahead of the host's: a disk of the host then seems to hang.
        let bench = Bench { cluster: Cluster::boot(options)?, choice };
        let machine = bench.machine();
        machine.run_ok_for(ROW_LIMIT, &format!(
            "sysctl -q kernel.hung_task_timeout_secs=0; modprobe brd rd_nr=4 rd_size={} && modprobe null_blk nr_devices=2 gb={NULL_GIB} queue_mode=0 bs=512 && \
             for disk in 0 1 2 3; do dd if=/dev/zero of=/dev/ram$disk bs=1M oflag=direct count=$((disk < 2 ? {DISK_MIB} : 8)) \
             status=none || exit; done",
            DISK_MIB << 10
        ))?;
        Ok(bench)
    }

    fn machine(&self) -> &Machine {
        self.cluster.drbd1()
    }

    fn measure(&self, module: Module) -> Result<Figures> {
        let machine = self.machine();
        let rows: Vec<&Row> = ROWS.iter().filter(|row| self.choice.includes(row.name)).collect();
        let progress = ProgressBar::new(rows.len() as u64 + 1);
        progress.set_style(indicatif::ProgressStyle::with_template("{prefix:12} {bar:20} {pos}/{len} {msg}")?);
        progress.set_prefix(if module == Module::Ours { "ours" } else { "C module" });
        machine.load_module(module, "usermode_helper=/bin/true")?;
        let mut figures = Vec::new();
        let mut stage = None;
        for row in rows {
            progress.set_message(row.name);
            if stage != Some(row.stage) {
                let resync = self.enter(stage, row.stage)?;
                if let Some(figure) = resync {
                    figures.push((RESYNC_ROW, figure));
                    progress.inc(1);
                }
                stage = Some(row.stage);
            }
            self.around("begin", module, row)?;
            figures.push((row.name, self.fio(row)?));
            self.around("end", module, row)?;
            progress.inc(1);
        }
        self.down()?;
        machine.unload_module()?;
        progress.finish_and_clear();
        Ok(figures)
    }

    /// What a write under protocol C costs on both nodes together, as a table.
    fn counts(&self) -> Result<String> {
        let mut columns: Vec<Vec<f64>> = Vec::new();
        for module in [Module::Stock, Module::Ours] {
            self.machine().load_module(module, "usermode_helper=/bin/true")?;
            self.configure_ram_disks()?;
            self.connect('C')?;
            self.skip_resync()?;
            for depth in COUNTED_DEPTHS {
                columns.push(self.count(depth)?);
            }
            self.down()?;
            self.machine().unload_module()?;
        }
        let mut text = String::from("| per write |");
        for module in ["C", "ours"] {
            for depth in COUNTED_DEPTHS {
                text.push_str(&format!(" {module}, depth {depth} |"));
            }
        }
        text.push_str("\n|---|");
        text.push_str(&"---|".repeat(columns.len()));
        text.push('\n');
        for (row, (name, _)) in COUNTS.iter().enumerate() {
            text.push_str(&format!("| {name} |"));
            for column in &columns {
                text.push_str(&format!(" {:.1} |", column.get(row).copied().unwrap_or(0.0)));
            }
            text.push('\n');
        }
        Ok(text)
    }

    /// Calls for each write at this depth, in the order of [`COUNTS`].
    fn count(&self, depth: u32) -> Result<Vec<f64>> {
        // What fio itself needs to start and to end is in both.
        let (few, many) = (self.count_calls(depth, 1)?, self.count_calls(depth, 1 + COUNTED_WRITES)?);
        let calls = |calls: &BTreeMap<String, f64>, function: &str| calls.get(function).copied().unwrap_or(0.0);
        let per_write = |functions: &[&str]| {
            let more: f64 = functions.iter().map(|function| calls(&many, function) - calls(&few, function)).sum();
            more / f64::from(COUNTED_WRITES)
        };
        Ok(COUNTS.iter().map(|(_, functions)| per_write(functions)).collect())
    }

    /// How often each function of [`COUNTS`] is called while so many blocks are written.
    fn count_calls(&self, depth: u32, writes: u32) -> Result<BTreeMap<String, f64>> {
        let functions: Vec<&str> = COUNTS.iter().flat_map(|(_, functions)| functions.iter().copied()).collect();
        // Not every kernel has each of them.
        let script = format!(
            "cd /sys/kernel/tracing 2>/dev/null && [ -e kprobe_events ] || mount -t tracefs tracefs /sys/kernel/tracing; \
             cd /sys/kernel/tracing || exit; echo > kprobe_events; n=0; \
             for function in {}; do echo \"p:bench/f$n $function\" >> kprobe_events 2>/dev/null && echo \"name f$n $function\"; \
             n=$((n + 1)); done; echo 1 > events/bench/enable || exit; \
             fio --name=count --filename=/dev/drbd0 --direct=1 --ioengine=libaio --thread --rw=randwrite --bs=4k \
             --norandommap --randrepeat=1 --gtod_reduce=1 --iodepth={depth} --number_ios={writes} --output=/dev/null || exit; \
             echo 0 > events/bench/enable; sed 's/^/hits /' kprobe_profile; echo > kprobe_events",
            functions.join(" ")
        );
        let text = self.machine().run_ok_for(ROW_LIMIT, &script)?;
        let mut names = BTreeMap::new();
        let mut calls = BTreeMap::new();
        for line in text.lines() {
            match line.split_whitespace().collect::<Vec<_>>().as_slice() {
                ["name", probe, function] => _ = names.insert((*probe).to_owned(), (*function).to_owned()),
                // What happened inside of another probe is counted apart.
                ["hits", probe, hits, missed] => {
                    let sum = hits.parse::<f64>()? + missed.parse::<f64>()?;
                    let function = names.get(*probe).with_context(|| text.clone())?;
                    calls.insert(function.clone(), sum);
                }
                _ => {}
            }
        }
        if calls.is_empty() {
            bail!("nothing was counted: {text}");
        }
        Ok(calls)
    }

    /// Runs the profiler's program, if there is one.
    fn around(&self, moment: &str, module: Module, row: &Row) -> Result<()> {
        let Some(program) = &self.choice.around else { return Ok(()) };
        let symbols = std::env::temp_dir().join(format!("bench-symbols-{}", std::process::id()));
        if moment == "begin" {
            std::fs::write(&symbols, self.machine().run_ok("cat /proc/kallsyms")?)?;
        }
        let module = if module == Module::Ours { "ours" } else { "stock" };
        let status = Command::new(program).args([moment, module, row.name]).arg(&symbols).status();
        if !status.with_context(|| program.display().to_string())?.success() {
            bail!("{} failed", program.display());
        }
        Ok(())
    }

    /// From one stage to the next; the first one begins with a full resync, which is a row too.
    fn enter(&self, from: Option<Stage>, to: Stage) -> Result<Option<Figure>> {
        match (from, to) {
            (None, Connected(protocol)) => {
                self.configure_ram_disks()?;
                self.connect(protocol)?;
                if self.choice.includes(RESYNC_ROW) {
                    return self.full_resync().map(Some);
                }
                self.skip_resync()?;
            }
            (Some(_), Connected(protocol)) => {
                self.disconnect()?;
                self.connect(protocol)?;
                self.wait("grep -q '^ 0: cs:Connected.*UpToDate/UpToDate' /proc/drbd")?;
            }
            (Some(_), Disconnected) => self.disconnect()?,
            (None, Disconnected) => {
                self.configure_ram_disks()?;
                self.connect('C')?;
                self.skip_resync()?;
                self.disconnect()?;
            }
            (_, Cold) => {
                if from.is_some() {
                    self.down()?;
                }
                for minor in 0..2 {
                    let (disk, meta) = (format!("/dev/nullb{minor}"), format!("/dev/ram{}", minor + 2));
                    self.configure(minor, &disk, &meta, "flexible")?;
                }
                self.connect('C')?;
                // Nothing to copy: the disks store nothing.
                self.skip_resync()?;
            }
        }
        Ok(None)
    }

    fn configure_ram_disks(&self) -> Result<()> {
        for minor in 0..2 {
            let disk = format!("/dev/ram{minor}");
            self.configure(minor, &disk, &disk, "internal")?;
        }
        Ok(())
    }

    /// Declares the halves equal and promotes one.
    fn skip_resync(&self) -> Result<()> {
        self.wait("grep -q '^ 0: cs:Connected' /proc/drbd && grep -q '^ 1: cs:Connected' /proc/drbd")?;
        self.machine().run_ok("drbdsetup new-current-uuid --clear-bitmap 0 && drbdsetup primary 0").map(|_| ())
    }

    fn configure(&self, minor: u32, disk: &str, meta: &str, index: &str) -> Result<()> {
        let format_index = if index == "internal" { "internal" } else { "flex-external" };
        let options = "--c-plan-ahead=0 --resync-rate=2000000k --c-min-rate=0";
        let script = format!(
            "yes yes | drbdmeta {minor} v08 {meta} {format_index} create-md --force >/dev/null 2>&1 && \
             drbdsetup new-resource r{minor} && drbdsetup new-minor r{minor} {minor} 0 && \
             drbdsetup attach {minor} {disk} {meta} {index} {options}"
        );
        self.machine().run_ok_for(ROW_LIMIT, &script).map(|_| ())
    }

    fn connect(&self, protocol: char) -> Result<()> {
        for minor in 0..2 {
            let (own, peer) = (7001 + minor, 7002 - minor);
            self.machine().run_ok(&format!(
                "drbdsetup connect r{minor} ipv4:127.0.0.1:{own} ipv4:127.0.0.1:{peer} --protocol={protocol}"
            ))?;
        }
        Ok(())
    }

    fn disconnect(&self) -> Result<()> {
        let machine = self.machine();
        machine.run_ok("drbdsetup disconnect ipv4:127.0.0.1:7001 ipv4:127.0.0.1:7002")?;
        machine.run_ok("drbdsetup disconnect ipv4:127.0.0.1:7002 ipv4:127.0.0.1:7001")?;
        Ok(())
    }

    fn down(&self) -> Result<()> {
        self.machine()
            .run_ok_for(ROW_LIMIT, "drbdsetup secondary 0; drbdsetup down r0 && drbdsetup down r1")
            .map(|_| ())
    }

    /// Guest time from the promotion to the end of the copy.
    fn full_resync(&self) -> Result<Figure> {
        self.wait("grep -q '^ 0: cs:Connected' /proc/drbd && grep -q '^ 1: cs:Connected' /proc/drbd")?;
        let text = self.machine().run_ok_for(
            ROW_LIMIT,
            "began=$(date +%s%N); drbdsetup primary 0 --force || exit; \
             until grep -q '^ 1: cs:Connected.*UpToDate/UpToDate' /proc/drbd; do sleep 0.05; done; \
             ended=$(date +%s%N); echo $(( (ended - began) / 1000 ))",
        )?;
        let microseconds: f64 = text.parse().with_context(|| text.clone())?;
        Ok(Figure::Speed((DISK_MIB << 20) as f64 / microseconds))
    }

    fn wait(&self, condition: &str) -> Result<()> {
        let script = format!(
            "for try in $(seq 600); do if {condition}; then exit 0; fi; sleep 0.1; done; cat /proc/drbd; exit 1"
        );
        self.machine().run_ok_for(ROW_LIMIT, &script).map(|_| ())
    }

    fn fio(&self, row: &Row) -> Result<Figure> {
        let command = format!(
            "fio --name=row --filename=/dev/drbd0 --direct=1 --ioengine=libaio --thread --time_based --runtime=1500ms \
             --norandommap --randrepeat=1 --gtod_reduce=1 --group_reporting --output-format=json {}",
            row.fio
        );
        let text = self.machine().run_ok_for(ROW_LIMIT, &command)?;
        let json = text.find('{').map_or("", |at| &text[at..]);
        let report: serde_json::Value = serde_json::from_str(json).with_context(|| text.clone())?;
        let direction = if row.fio.contains("read") { "read" } else { "write" };
        let job = &report["jobs"][0];
        if job["error"].as_i64() != Some(0) {
            bail!("{}: fio failed: {text}", row.name);
        }
        let value = |name: &str| job[direction][name].as_f64().filter(|&value| value > 0.0);
        let figure = if row.fio.contains("bs=1M") {
            value("bw_bytes").map(|bytes| Figure::Speed(bytes / 1e6))
        } else {
            value("iops").map(Figure::Iops)
        };
        figure.with_context(|| format!("{}: fio measured nothing: {text}", row.name))
    }
}

/// The result.
struct Table {
    text: String,
    /// Rows below the least ratio.
    slow: Vec<String>,
}

impl Table {
    fn new(stock: &Figures, ours: &Figures) -> Result<Table> {
        let expected: BTreeMap<_, _> = stock.iter().copied().collect();
        let mut text = String::from("| row | C 8.4.11 | ours | ratio |\n|---|---|---|---|\n");
        let mut slow = Vec::new();
        for &(name, figure) in ours {
            let Some(stock) = expected.get(name) else {
                bail!("the C module has no row {name:?}");
            };
            let ratio = figure.value() / stock.value();
            text.push_str(&format!("| {name} | {} | {} | {ratio:.2} |\n", stock.text(), figure.text()));
            if ratio < LEAST_RATIO {
                slow.push(format!("{name}: {ratio:.2}"));
            }
        }
        Ok(Table { text, slow })
    }
}

fn report(bench: &Bench, table: &Table, counts: &str) -> Result<()> {
    let release = bench.machine().run_ok("uname -r")?;
    let text = format!(
        "# Performance\n\n\
         Made by `make bench` on {}, kernel {release}; the same command repeats it.\n\n\
         One machine with one emulated processor, whose time is counted in instructions (2 ns each), so that the figures do not \
         depend on the host. Both ends of a resource are in one kernel, connected over loopback, on RAM disks of {DISK_MIB} MiB. \
         Requests a second (fio, 1.5 s a row) unless a unit is named; the ratio is ours divided by the C module's.\n\n\
         {}\n\
         ## What a write costs\n\n\
         Calls for each write of 4 KiB under protocol C, on both nodes together and with what fio itself does; counted with \
         kernel probes over {COUNTED_WRITES} writes on the same machine. `make bench ARGS=--counts` repeats it alone.\n\n\
         {counts}",
        today()?,
        table.text
    );
    let path = PathBuf::from(FILE);
    std::fs::write(&path, text).with_context(|| path.display().to_string())?;
    if !table.slow.is_empty() {
        bail!("rows below {LEAST_RATIO}:\n{}", table.slow.join("\n"));
    }
    Ok(())
}

/// The date, by the host's own program.
fn today() -> Result<String> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let output = Command::new("date").args(["-u", "+%F", "-d", &format!("@{seconds}")]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
