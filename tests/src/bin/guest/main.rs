//! `guest`: what the tests run inside the machines.
//!
//! ```text
//! guest write --device D --start S --sectors N --threads T --align A --longest L --seed X --first Q [--count C]
//!     [--memory-offset B]
//! guest scan --device D --start S --sectors N [--longest L]
//! guest scribble --device D --start S --sectors N --threads T --count C
//! guest hostile --to ADDRESS:PORT --case NAME
//! ```

mod hostile;
mod scribble;

use anyhow::{bail, Context, Result};
use machine_tests::pattern::{self, Content, Random, SECTOR_BYTES};
use nix::fcntl::OFlag;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

/// Direct I/O wants its memory aligned.
const ALIGNMENT_BYTES: usize = 4096;

/// Sectors that a scan reads at a time.
const SCAN_SECTORS: u64 = 2048;

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Default)]
struct Arguments {
    command: String,
    device: String,
    to: String,
    case: String,
    start: u64,
    sectors: u64,
    threads: u64,
    align: u64,
    longest: u64,
    seed: u64,
    first: u64,
    count: Option<u64>,
    memory_offset: usize,
}

impl Arguments {
    fn parse() -> Result<Arguments> {
        use lexopt::prelude::*;
        let mut parser = lexopt::Parser::from_env();
        let mut arguments = Arguments::default();
        while let Some(argument) = parser.next()? {
            match argument {
                Long("device") => arguments.device = parser.value()?.string()?,
                Long("to") => arguments.to = parser.value()?.string()?,
                Long("case") => arguments.case = parser.value()?.string()?,
                Long("start") => arguments.start = parser.value()?.parse()?,
                Long("sectors") => arguments.sectors = parser.value()?.parse()?,
                Long("threads") => arguments.threads = parser.value()?.parse()?,
                Long("align") => arguments.align = parser.value()?.parse()?,
                Long("longest") => arguments.longest = parser.value()?.parse()?,
                Long("seed") => arguments.seed = parser.value()?.parse()?,
                Long("first") => arguments.first = parser.value()?.parse()?,
                Long("count") => arguments.count = Some(parser.value()?.parse()?),
                Long("memory-offset") => arguments.memory_offset = parser.value()?.parse()?,
                Value(word) if arguments.command.is_empty() => arguments.command = word.string()?,
                other => return Err(other.unexpected().into()),
            }
        }
        Ok(arguments)
    }
}

fn start() -> Result<()> {
    let arguments = Arguments::parse()?;
    match arguments.command.as_str() {
        "write" => write(&arguments),
        "scan" => scan(&arguments),
        "scribble" => scribble::run(&arguments),
        "hostile" => hostile::run(&arguments.to, &arguments.case),
        other => bail!("no command {other:?}"),
    }
}

fn write(arguments: &Arguments) -> Result<()> {
    let device = open(&arguments.device, true)?;
    let next = AtomicU64::new(arguments.first);
    let stop = AtomicBool::new(false);
    let share = arguments.sectors / arguments.threads.max(1) / arguments.align * arguments.align;
    thread::scope(|scope| {
        if arguments.count.is_none() {
            // The end of the standard input ends the writing.
            scope.spawn(|| {
                let outcome = io::stdin().read_to_end(&mut Vec::new());
                stop.store(true, Ordering::Relaxed);
                outcome
            });
        }
        let (device, next, stop) = (&device, &next, &stop);
        let writers: Vec<_> = (0..arguments.threads)
            .map(|thread| scope.spawn(move || write_part(arguments, device, next, stop, thread, share)))
            .collect();
        for writer in writers {
            let outcome = writer.join().map_err(|_| anyhow::anyhow!("a writer panicked"))?;
            if let Err(error) = outcome {
                // The other threads and the reader of the standard input end with the process.
                eprintln!("guest: {error:#}");
                std::process::exit(1);
            }
        }
        Ok(())
    })
}

/// Writes at random places of one part and says which writes were acknowledged.
fn write_part(
    arguments: &Arguments,
    device: &File,
    next: &AtomicU64,
    stop: &AtomicBool,
    thread: u64,
    share: u64,
) -> Result<()> {
    let mut random = Random::new(arguments.seed.wrapping_mul(1000).wrapping_add(thread));
    let mut memory = Aligned::new(arguments.longest, arguments.memory_offset);
    let start = arguments.start + thread * share;
    let bits = (arguments.longest / arguments.align).max(1).ilog2();
    let mut left = arguments.count.unwrap_or(u64::MAX);
    while left > 0 && !stop.load(Ordering::Relaxed) {
        left -= 1;
        // Short ones are more frequent than long ones.
        let exponent = random.below(u64::from(bits) + 1);
        let units = (1 + random.below(1 << exponent)).min(share / arguments.align);
        let count = units * arguments.align;
        let sector = start + random.below((share - count) / arguments.align + 1) * arguments.align;
        let sequence = next.fetch_add(1, Ordering::Relaxed);
        let buffer = memory.sectors(count);
        pattern::fill(buffer, sector, sequence);
        device
            .write_all_at(buffer, sector * SECTOR_BYTES as u64)
            .with_context(|| format!("write {sequence} of {count} sectors at sector {sector}"))?;
        writeln!(io::stdout().lock(), "ack {sequence} {sector} {count}")?;
    }
    Ok(())
}

fn scan(arguments: &Arguments) -> Result<()> {
    let device = open(&arguments.device, false)?;
    let at_a_time = if arguments.longest == 0 { SCAN_SECTORS } else { arguments.longest };
    let mut memory = Aligned::new(at_a_time, 0);
    let mut output = io::BufWriter::new(io::stdout().lock());
    let mut run: Option<(u64, u64, Content)> = None;
    let end = arguments.start + arguments.sectors;
    let mut at = arguments.start;
    while at < end {
        let count = at_a_time.min(end - at);
        let buffer = memory.sectors(count);
        device
            .read_exact_at(buffer, at * SECTOR_BYTES as u64)
            .with_context(|| format!("reading {count} sectors at sector {at}"))?;
        for (sector, bytes) in (at..).zip(buffer.chunks_exact(SECTOR_BYTES)) {
            let content = pattern::read(bytes, sector);
            match &mut run {
                Some((_, length, same)) if *same == content => *length += 1,
                _ => {
                    show(&mut output, run)?;
                    run = Some((sector, 1, content));
                }
            }
        }
        at += count;
    }
    show(&mut output, run)?;
    Ok(output.flush()?)
}

fn show(output: &mut impl Write, run: Option<(u64, u64, Content)>) -> io::Result<()> {
    match run {
        None => Ok(()),
        Some((sector, count, Content::Blank)) => writeln!(output, "{sector} {count} blank"),
        Some((sector, count, Content::Bad)) => writeln!(output, "{sector} {count} bad"),
        Some((sector, count, Content::Written(sequence))) => writeln!(output, "{sector} {count} {sequence}"),
    }
}

fn open(path: &str, write: bool) -> Result<File> {
    File::options()
        .read(true)
        .write(write)
        .custom_flags(OFlag::O_DIRECT.bits())
        .open(path)
        .with_context(|| format!("opening {path}"))
}

/// Memory for sectors, so many bytes behind what direct I/O wants it aligned to.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
}

impl Aligned {
    fn new(sectors: u64, offset: usize) -> Aligned {
        let bytes = vec![0; sectors as usize * SECTOR_BYTES + ALIGNMENT_BYTES + offset];
        let start = bytes.as_ptr().align_offset(ALIGNMENT_BYTES) + offset;
        Aligned { bytes, start }
    }

    fn sectors(&mut self, count: u64) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + count as usize * SECTOR_BYTES]
    }
}
