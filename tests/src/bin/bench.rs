//! `make bench`: the C module and ours in the same measurement, as a table with the ratio of each row.
//!
//! One machine with one processor whose time is counted in instructions (2 ns each), so the host's mood does not matter: both
//! ends of a resource are in one kernel, connected over loopback, on RAM disks filled beforehand. Repeated runs agree to about
//! 1 %. What is measured are the instructions on the whole path; latency of real disks and links is not.
//!
//! `--modules ours` or `stock` measures one of them only and writes no file.

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
            other => return Err(other.unexpected().into()),
        }
    }
    let bench = Bench::boot()?;
    if let Some(module) = only {
        for (name, figure) in bench.measure(module)? {
            println!("{name}: {}", figure.text());
        }
        return Ok(());
    }
    let stock = bench.measure(Module::Stock)?;
    let ours = bench.measure(Module::Ours)?;
    bench.cluster.check_consoles()?;
    report(&bench, &stock, &ours)
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
}

impl Bench {
    fn boot() -> Result<Bench> {
        let options = Options::default()
            .benchmark()
            .memory_mib(2048)
            .disks(&[Disk::whole(16)])
            .module(Module::None)
            .tools(Tools::Utils);
        let bench = Bench { cluster: Cluster::boot(options)? };
        let machine = bench.machine();
        // Counted time does not depend on the host, the host's time does.
        let prepare = format!(
            "modprobe brd rd_nr=4 rd_size={} && modprobe null_blk nr_devices=2 gb={NULL_GIB} queue_mode=0 bs=512 && \
             for disk in 0 1 2 3; do dd if=/dev/zero of=/dev/ram$disk bs=1M oflag=direct count=$((disk < 2 ? {DISK_MIB} : 8)) \
             status=none || exit; done",
            DISK_MIB << 10
        );
        machine.run_ok_for(ROW_LIMIT, &prepare)?;
        Ok(bench)
    }

    fn machine(&self) -> &Machine {
        self.cluster.drbd1()
    }

    fn measure(&self, module: Module) -> Result<Figures> {
        let machine = self.machine();
        let progress = ProgressBar::new(ROWS.len() as u64 + 1);
        progress.set_style(indicatif::ProgressStyle::with_template("{prefix:12} {bar:20} {pos}/{len} {msg}")?);
        progress.set_prefix(if module == Module::Ours { "ours" } else { "C module" });
        machine.load_module(module, "usermode_helper=/bin/true")?;
        let mut figures = Vec::new();
        let mut stage = None;
        for row in ROWS {
            progress.set_message(row.name);
            if stage != Some(row.stage) {
                let resync = self.enter(stage, row.stage)?;
                if let Some(figure) = resync {
                    figures.push((RESYNC_ROW, figure));
                    progress.inc(1);
                }
                stage = Some(row.stage);
            }
            figures.push((row.name, self.fio(row)?));
            progress.inc(1);
        }
        self.down()?;
        machine.unload_module()?;
        progress.finish_and_clear();
        Ok(figures)
    }

    /// From one stage to the next; the first one begins with a full resync, which is a row too.
    fn enter(&self, from: Option<Stage>, to: Stage) -> Result<Option<Figure>> {
        let machine = self.machine();
        match (from, to) {
            (None, Connected(protocol)) => {
                for minor in 0..2 {
                    let disk = format!("/dev/ram{minor}");
                    self.configure(minor, &disk, &disk, "internal")?;
                }
                self.connect(protocol)?;
                return self.full_resync().map(Some);
            }
            (Some(_), Connected(protocol)) => {
                self.disconnect()?;
                self.connect(protocol)?;
                self.wait("grep -q '^ 0: cs:Connected.*UpToDate/UpToDate' /proc/drbd")?;
            }
            (_, Disconnected) => self.disconnect()?,
            (_, Cold) => {
                self.down()?;
                for minor in 0..2 {
                    let (disk, meta) = (format!("/dev/nullb{minor}"), format!("/dev/ram{}", minor + 2));
                    self.configure(minor, &disk, &meta, "flexible")?;
                }
                self.connect('C')?;
                self.wait("grep -q '^ 0: cs:Connected' /proc/drbd && grep -q '^ 1: cs:Connected' /proc/drbd")?;
                // Nothing to copy: the disks store nothing.
                machine.run_ok("drbdsetup new-current-uuid --clear-bitmap 0 && drbdsetup primary 0")?;
            }
        }
        Ok(None)
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

fn report(bench: &Bench, stock: &Figures, ours: &Figures) -> Result<()> {
    let expected: BTreeMap<_, _> = stock.iter().copied().collect();
    let mut table = String::from("| row | C 8.4.11 | ours | ratio |\n|---|---|---|---|\n");
    let mut slow = Vec::new();
    for &(name, figure) in ours {
        let Some(stock) = expected.get(name) else {
            bail!("the C module has no row {name:?}");
        };
        let ratio = figure.value() / stock.value();
        table.push_str(&format!("| {name} | {} | {} | {ratio:.2} |\n", stock.text(), figure.text()));
        if ratio < LEAST_RATIO {
            slow.push(format!("{name}: {ratio:.2}"));
        }
    }
    println!("{table}");
    let release = bench.machine().run_ok("uname -r")?;
    let text = format!(
        "# Performance\n\n\
         Made by `make bench` on {}, kernel {release}; the same command repeats it.\n\n\
         One machine with one emulated processor, whose time is counted in instructions (2 ns each), so that the figures do not \
         depend on the host. Both ends of a resource are in one kernel, connected over loopback, on RAM disks of {DISK_MIB} MiB. \
         Requests a second (fio, 1.5 s a row) unless a unit is named; the ratio is ours divided by the C module's.\n\n\
         {table}",
        today()?
    );
    let path = PathBuf::from(FILE);
    std::fs::write(&path, text).with_context(|| path.display().to_string())?;
    if !slow.is_empty() {
        bail!("rows below {LEAST_RATIO}:\n{}", slow.join("\n"));
    }
    Ok(())
}

/// The date, by the host's own program.
fn today() -> Result<String> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let output = Command::new("date").args(["-u", "+%F", "-d", &format!("@{seconds}")]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
