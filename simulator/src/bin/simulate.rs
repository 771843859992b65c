//! Runs many seeds on all cores, shows how far it is, and keeps what is needed to repeat a failure.
//!
//! `simulate [--seeds N] [--first N] [--threads N] [--failures DIRECTORY] [--watch [VOLUME/]SECTOR] [--two-primaries PERCENT]
//! [--several-volumes PERCENT]`

use engine::resource::VolumeId;
use engine::wire::command::PACKETS;
use indicatif::{ProgressBar, ProgressStyle};
use simulator::{run_with, Report, Wishes};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Mutex;
use std::time::Instant;

const USAGE: &str =
    "usage: simulate [--seeds N] [--first N] [--threads N] [--failures DIRECTORY] [--watch [VOLUME/]SECTOR] \
                     [--two-primaries PERCENT] [--several-volumes PERCENT]";

struct Options {
    seeds: u64,
    first: u64,
    threads: usize,
    failures: PathBuf,
    wishes: Wishes,
}

impl Options {
    fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
        let mut options = Options {
            seeds: 2000,
            first: 1,
            threads,
            failures: "target/failing-seeds".into(),
            wishes: Wishes::default(),
        };
        let mut arguments = arguments;
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{name}: a value is expected\n{USAGE}"))?;
            let number = || value.parse::<u64>().map_err(|_| format!("{name}: `{value}` is not a number\n{USAGE}"));
            match name.as_str() {
                "--seeds" => options.seeds = number()?,
                "--first" => options.first = number()?,
                "--threads" => options.threads = number()?.clamp(1, 1024) as usize,
                "--watch" => options.wishes.watch = Some(watched(&value)?),
                "--several-volumes" => options.wishes.several_volumes = number()?.min(100),
                "--two-primaries" => options.wishes.two_primaries = number()?.min(100),
                "--failures" => options.failures = value.into(),
                _ => return Err(format!("{name}: unknown option\n{USAGE}")),
            }
        }
        Ok(options)
    }
}

/// `SECTOR` of the first volume, or `VOLUME/SECTOR`.
fn watched(value: &str) -> Result<(VolumeId, u64), String> {
    let (volume, sector) = value.split_once('/').unwrap_or(("0", value));
    let parts = volume.parse().ok().zip(sector.parse().ok());
    let (volume, sector) = parts.ok_or_else(|| format!("--watch: `{value}` is no VOLUME/SECTOR\n{USAGE}"))?;
    Ok((VolumeId(volume), sector))
}

/// Rules of the comparison of generations.
const RULES: usize = 25;

/// Sums over all runs.
#[derive(Default)]
struct Figures {
    events: u64,
    simulated_ms: u64,
    operations: u64,
    crashes: u64,
    cuts: u64,
    resyncs: u64,
    refusals: u64,
    grown: u64,
    damages: u64,
    rules: BTreeSet<String>,
    packets: BTreeSet<&'static str>,
    failed: Vec<(u64, String)>,
}

impl Figures {
    fn add(&mut self, report: Report) {
        self.events += report.events;
        self.simulated_ms += report.simulated_ms;
        self.operations += report.operations;
        self.crashes += report.crashes;
        self.cuts += report.cuts;
        self.resyncs += report.resyncs;
        self.refusals += report.refusals;
        self.grown += report.grown;
        self.damages += report.damages;
        self.rules.extend(report.rules);
        self.packets.extend(report.packets);
        self.failed.extend(report.failure.map(|failure| (report.seed, failure)));
    }

    fn print(&self, options: &Options, seconds: f64) {
        println!("{:>12.1} seeds a second", options.seeds as f64 / seconds);
        println!("{:>12} simulated hours", self.simulated_ms / 3_600_000);
        for (count, what) in [
            (self.events, "events"),
            (self.operations, "operations of the application"),
            (self.crashes, "power cuts"),
            (self.cuts, "network cuts and resets"),
            (self.resyncs, "resyncs finished"),
            (self.refusals, "connections refused because of the data"),
            (self.grown, "times that the disks grew"),
            (self.damages, "damages found by a verify"),
        ] {
            println!("{count:>12} {what}");
        }
        println!("{:>12} of {RULES} rules about the generations reached: {}", self.rules.len(), list(&self.rules));
        // Old and never sent ones aside.
        let known = PACKETS.iter().filter(|packet| packet.handled).count();
        println!("{:>12} of {known} kinds of packets exchanged: {}", self.packets.len(), list(&self.packets));
    }
}

fn list(words: &BTreeSet<impl AsRef<str>>) -> String {
    words.iter().map(AsRef::as_ref).collect::<Vec<&str>>().join(" ")
}

fn keep(options: &Options, report: &Report) -> std::io::Result<()> {
    std::fs::create_dir_all(&options.failures)?;
    let failure = report.failure.as_deref().unwrap_or_default();
    let mut text = format!(
        "seed {}: {failure}\nrepeat: cargo run -p simulator --bin simulate -- --first {} --seeds 1\n\n",
        report.seed, report.seed
    );
    for line in &report.trace {
        text.push_str(line);
        text.push('\n');
    }
    std::fs::write(options.failures.join(format!("seed-{}.txt", report.seed)), text)
}

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    // A run that fails says so in its report.
    std::panic::set_hook(Box::new(|_| {}));
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} seeds, {per_sec}, {eta} left, {msg}");
    let bar = ProgressBar::new(options.seeds).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let next = AtomicU64::new(0);
    let figures = Mutex::new(Figures::default());
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..options.threads {
            scope.spawn(|| loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= options.seeds {
                    return;
                }
                let report = run_with(options.first + number, options.wishes);
                if report.failure.is_some() {
                    if let Err(error) = keep(&options, &report) {
                        bar.println(format!("cannot keep the trace of seed {}: {error}", report.seed));
                    }
                }
                let mut figures = figures.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                figures.add(report);
                bar.set_message(format!("{} failed", figures.failed.len()));
                bar.inc(1);
            });
        }
    });
    bar.finish_and_clear();
    let figures = figures.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    figures.print(&options, begin.elapsed().as_secs_f64());
    for (seed, failure) in &figures.failed {
        println!("FAILED seed {seed}: {}", failure.lines().next().unwrap_or_default());
        println!("       trace in {}", options.failures.join(format!("seed-{seed}.txt")).display());
    }
    if figures.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
