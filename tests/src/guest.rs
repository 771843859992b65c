//! The program `guest` (`src/bin/guest.rs`) that does in a machine what no Debian program does: write so that every
//! acknowledged sector can be checked afterwards, read that back, and play a hostile peer.

use crate::acks::{Acks, Scan};
use anyhow::{bail, Context, Result};
use lab::{stretched, Machine, Process};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Where it is in a machine: on its root disk, so that a power cut does not take it away.
pub const PATH: &str = "/usr/local/bin/guest";

/// How long a writer may take to end once it is told to.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// What a writer does. It writes with `O_DIRECT`, each thread to a part of its own, until it is stopped.
#[derive(Clone, Debug)]
pub struct Workload {
    /// The device.
    pub device: String,
    /// First sector.
    pub start: u64,
    /// How many sectors belong to it.
    pub sectors: u64,
    /// How many writes are under way at a time.
    pub threads: u32,
    /// Every write starts at and is a multiple of so many sectors.
    pub align: u64,
    /// Longest write in sectors.
    pub longest: u64,
    /// Writes of each thread; `None`: until it is stopped.
    pub count: Option<u64>,
    /// Seed of the pseudo-random places and lengths.
    pub seed: u64,
    /// Number of the first write.
    pub first: u64,
}

impl Default for Workload {
    fn default() -> Self {
        Workload {
            device: "/dev/drbd0".into(),
            start: 0,
            sectors: 32 << 11,
            threads: 4,
            align: 1,
            longest: 256,
            count: None,
            seed: 1,
            first: 1,
        }
    }
}

impl Workload {
    fn command(&self) -> String {
        let count = self.count.map(|count| format!(" --count {count}")).unwrap_or_default();
        format!(
            "exec {PATH} write --device {} --start {} --sectors {} --threads {} --align {} --longest {} --seed {} \
             --first {}{count}",
            self.device, self.start, self.sectors, self.threads, self.align, self.longest, self.seed, self.first
        )
    }

    /// Starts it.
    pub fn spawn(&self, machine: &Machine) -> Result<Writer> {
        Ok(Writer { process: machine.spawn(&self.command())? })
    }

    /// Runs it to its end; it needs a count.
    pub fn run(&self, machine: &Machine, limit: Duration) -> Result<Acks> {
        let output = machine.run_for(limit, &self.command())?;
        if !output.success() {
            bail!("{}: the writer failed: {}", machine.name(), output.error_text());
        }
        Acks::parse(&output.stdout)
    }
}

/// A writer that runs.
pub struct Writer {
    process: Process,
}

impl Writer {
    /// What was acknowledged up to now.
    pub fn acks(&self) -> Result<Acks> {
        Acks::parse(&self.process.stdout())
    }

    /// Waits until at least `writes` more writes have been acknowledged.
    pub fn wait_more(&self, writes: u64, limit: Duration) -> Result<()> {
        let wanted = self.acks()?.writes() + writes;
        let limit = stretched(limit);
        let until = std::time::Instant::now() + limit;
        while self.acks()?.writes() < wanted {
            if std::time::Instant::now() > until || !self.process.running() {
                bail!(
                    "expected {wanted} acknowledged writes within {:.1} s, there are {}",
                    limit.as_secs_f32(),
                    self.acks()?.writes()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Ends it; none of its writes may have failed.
    pub fn stop(self) -> Result<Acks> {
        self.process.close_input()?;
        let output = self.process.wait(stretched(STOP_LIMIT))?;
        if !output.success() {
            bail!("the writer failed: {}", output.error_text());
        }
        Acks::parse(&output.stdout)
    }

    /// What it was promised before its machine lost power.
    pub fn last_words(self) -> Result<Acks> {
        self.acks()
    }
}

/// Copies the program into a machine, unless it is there.
pub fn install(machine: &Machine) -> Result<()> {
    static PROGRAM: Mutex<Option<Arc<Vec<u8>>>> = Mutex::new(None);
    let program = {
        let mut program = PROGRAM.lock().unwrap_or_else(PoisonError::into_inner);
        match &*program {
            Some(program) => Arc::clone(program),
            None => Arc::clone(program.insert(Arc::new(lab::initrd::stripped(&host_program()?)?))),
        }
    };
    if machine.run(&format!("stat -c %s {PATH}"))?.text() != program.len().to_string() {
        machine.put_program(PATH, &program)?;
        machine.run_ok("sync")?;
    }
    Ok(())
}

/// Reads sectors of a device, past all caches.
pub fn scan(machine: &Machine, device: &str, start: u64, sectors: u64) -> Result<Scan> {
    let text = machine.run_ok(&format!("{PATH} scan --device {device} --start {start} --sectors {sectors}"))?;
    Scan::parse(&text)
}

/// The same in pieces of so many sectors.
pub fn scan_in_pieces(machine: &Machine, device: &str, start: u64, sectors: u64, piece: u64) -> Result<Scan> {
    let command = format!("{PATH} scan --device {device} --start {start} --sectors {sectors} --longest {piece}");
    Scan::parse(&machine.run_ok(&command)?)
}

/// The program on the host, beside the running one.
fn host_program() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    // A test program is one directory deeper than the binaries.
    let mut beside = program.ancestors().skip(1).take(2).map(|directory| directory.join("guest"));
    beside
        .find(|path| path.is_file())
        .with_context(|| format!("no program `guest` beside {}: run `make tools`", program.display()))
}
