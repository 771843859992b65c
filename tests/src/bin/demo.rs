//! `make demo`: the tutorial in the two machines, from set-up to the last check, shown as a person wants to see it; then one of
//! them is killed in the middle of writing. Ends with an error on any difference.

use anyhow::{bail, ensure, Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use lab::{Cluster, Disk, Machine, Module, Options, Tools};
use machine_tests::guest::{self, Workload};
use machine_tests::pair::{device, wait, RESYNC, SOON};
use machine_tests::{config, tutorial};
use std::io::IsTerminal;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

/// MiB of the disk that is mirrored.
const DISK_MIB: u64 = 320;

/// The file that is being written when the power goes, and its size.
const FILE: &str = "/mnt/ledger";
const FILE_MIB: u64 = 16;

/// The most that may be copied afterwards: what the activity log covers, which is what has been written to since the start, not
/// the disk.
const MOST_KIB: u64 = DISK_MIB * 1024 / 2;

fn main() -> ExitCode {
    let began = Instant::now();
    let outcome = Show::start().and_then(|show| show.play());
    let seconds = began.elapsed().as_secs();
    match outcome {
        Ok(()) => {
            println!("\n{}", bold(&format!("All of it worked, in {seconds} s.")));
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("\nNot as it should be: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The machines on the stage.
struct Show {
    cluster: Cluster,
}

impl Show {
    fn start() -> Result<Show> {
        heading("Two machines start: a stock Debian kernel, our drbd.ko, our drbdadm");
        let spinner = ProgressBar::new_spinner().with_message("booting drbd1 and drbd2");
        spinner.enable_steady_tick(Duration::from_millis(100));
        let options = Options::default()
            .name("demo")
            .disks(&[Disk::partitioned(DISK_MIB), Disk::partitioned(DISK_MIB)])
            .modules([Module::Ours; 2])
            .tools(Tools::Ours);
        let cluster = Cluster::boot(options)?;
        for machine in cluster.machines() {
            guest::install(machine)?;
            machine.put_file("/etc/init.d/drbd", INIT_SCRIPT.as_ref())?;
            machine.put(config::PATH, tutorial::CONFIGURATION.as_bytes())?;
            machine.run_ok("sync")?;
        }
        spinner.finish_and_clear();
        Ok(Show { cluster })
    }

    fn play(&self) -> Result<()> {
        self.set_up()?;
        self.first_sync()?;
        self.files_and_roles()?;
        self.start_at_boot()?;
        let acknowledged = self.power_goes()?;
        self.comes_back()?;
        self.last_check(&acknowledged)
    }

    fn first(&self) -> &Machine {
        self.cluster.drbd1()
    }

    fn second(&self) -> &Machine {
        self.cluster.drbd2()
    }

    fn set_up(&self) -> Result<()> {
        heading("Step 1 and 2: names, addresses and the configuration, the same on both");
        for machine in self.cluster.machines() {
            command(machine, "uname -n -r")?;
        }
        command(self.first(), "cat /etc/drbd.conf")?;
        heading("Step 3: room for the meta data");
        for machine in self.cluster.machines() {
            command(machine, "drbdadm create-md r0 </dev/null")?;
        }
        heading("Step 4: start");
        // Each waits for the other: both at the same time.
        thread::scope(|scope| {
            let other = scope.spawn(|| self.second().run_ok("/etc/init.d/drbd start </dev/null"));
            command(self.first(), "/etc/init.d/drbd start </dev/null")?;
            other.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
            Ok::<_, anyhow::Error>(())
        })?;
        wait(self.first(), SOON, "a connection", |device| device.connection == "Connected")?;
        let state = command(self.first(), "cat /proc/drbd")?;
        ensure!(
            state.contains("Secondary/Secondary") && state.contains("Inconsistent/Inconsistent"),
            "expected Secondary/Secondary, Inconsistent on both"
        );
        Ok(())
    }

    fn first_sync(&self) -> Result<()> {
        heading("Step 5: drbd1 becomes primary; its disk is copied to drbd2");
        command(self.first(), "drbdsetup /dev/drbd0 primary -o")?;
        follow_resync(self.first())?;
        let state = command(self.first(), "cat /proc/drbd")?;
        ensure!(state.contains("Primary/Secondary") && state.contains("UpToDate/UpToDate"));
        Ok(())
    }

    fn files_and_roles(&self) -> Result<()> {
        heading("Step 6: a file system, three files, and the roles change");
        let first = self.first();
        command(first, "mkfs.ext3 -q /dev/drbd0")?;
        command(first, "mount /dev/drbd0 /mnt")?;
        command(first, "echo 'first file' >/mnt/one; head -c 3M /dev/urandom >/mnt/two; uname -a >/mnt/three")?;
        command(first, &format!("head -c {FILE_MIB}M /dev/zero >{FILE}"))?;
        let written = command(first, "cd /mnt && sha256sum one two three")?;
        command(first, "umount /mnt")?;
        command(first, "drbdadm secondary r0")?;
        let second = self.second();
        command(second, "drbdadm primary r0")?;
        command(second, "mount /dev/drbd0 /mnt")?;
        let found = command(second, "cd /mnt && sha256sum one two three")?;
        ensure!(written == found, "drbd2 has other files than drbd1 has written");
        good("the three files are on drbd2, byte by byte");
        command(second, "umount /mnt")?;
        command(second, "drbdadm secondary r0")?;
        Ok(())
    }

    /// drbd1 is shut down properly and boots again; nothing was written, nothing is copied.
    fn start_at_boot(&self) -> Result<()> {
        heading("Step 7: start at boot");
        let first = self.first();
        command(first, "/etc/init.d/drbd stop")?;
        println!("{} reboot", prompt(first));
        first.reboot()?;
        command(first, "/etc/init.d/drbd start </dev/null")?;
        follow_resync(first)?;
        let copied_kib = device(first)?.counter("nr")?;
        ensure!(copied_kib == 0, "{copied_kib} KiB were copied, nothing was written");
        Ok(())
    }

    /// drbd1 dies while it writes; drbd2 takes over. Returns what had been acknowledged.
    fn power_goes(&self) -> Result<machine_tests::acks::Acks> {
        heading("Now the bad day: drbd1 writes, and its power goes");
        let (first, second) = (self.first(), self.second());
        command(first, "drbdadm primary r0")?;
        command(first, "mount /dev/drbd0 /mnt")?;
        println!("{} a program writes to {FILE} and notes each write that was acknowledged", prompt(first));
        let writer = ledger().spawn(first)?;
        writer.wait_more(500, SOON)?;
        first.power_cut()?;
        let acks = writer.last_words()?;
        println!("{} {}", prompt(first), bold("power cut"));
        good(&format!("{} writes, {} KiB, had been acknowledged", acks.writes(), acks.kib()));
        wait(second, SOON, "the loss of the peer", |device| device.connection == "WFConnection")?;
        command(second, "cat /proc/drbd")?;
        command(second, "drbdadm primary r0")?;
        command(second, "mount /dev/drbd0 /mnt")?;
        acks.check(&guest::scan(second, FILE, 0, FILE_MIB << 11)?)?;
        good("every acknowledged write is there on drbd2");
        command(second, "cd /mnt && ls -l; date >/mnt/written-meanwhile; cd; sync")?;
        Ok(acks)
    }

    fn comes_back(&self) -> Result<()> {
        heading("drbd1 comes back, and is told only what may differ");
        let first = self.first();
        first.power_on()?;
        command(first, "/etc/init.d/drbd start </dev/null")?;
        follow_resync(first)?;
        let copied_kib = device(first)?.counter("nr")?;
        ensure!(copied_kib <= MOST_KIB, "{copied_kib} KiB were copied: more than what may have differed");
        good(&format!("{copied_kib} of {} KiB were copied", DISK_MIB * 1024));
        command(first, "cat /proc/drbd")?;
        Ok(())
    }

    fn last_check(&self, acks: &machine_tests::acks::Acks) -> Result<()> {
        heading("The last check");
        let (first, second) = (self.first(), self.second());
        command(second, "umount /mnt")?;
        command(second, "drbdadm secondary r0")?;
        self.compare_disks()?;
        good("both disks are the same, byte by byte");
        command(first, "drbdadm primary r0")?;
        command(first, "mount /dev/drbd0 /mnt")?;
        command(first, "ls /mnt && cat /mnt/one /mnt/written-meanwhile")?;
        acks.check(&guest::scan(first, FILE, 0, FILE_MIB << 11)?)?;
        good("every acknowledged write is there on drbd1 too");
        command(first, "umount /mnt")?;
        for machine in self.cluster.machines() {
            command(machine, "/etc/init.d/drbd stop")?;
            ensure!(!machine.run("test -e /proc/drbd")?.success(), "the module is still loaded");
        }
        self.cluster.check_consoles()
    }

    fn compare_disks(&self) -> Result<()> {
        let sectors: u64 = self.first().run_ok("cat /sys/block/drbd0/size")?.parse()?;
        machine_tests::pair::compare_disk_files(
            [&self.first().disk_file("sdb"), &self.second().disk_file("sdb")],
            Disk::partitioned(DISK_MIB).start_bytes(),
            sectors * 512,
        )
    }
}

const INIT_SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../drbdadm/scripts/drbd");

fn ledger() -> Workload {
    Workload { device: FILE.into(), sectors: FILE_MIB << 11, align: 8, longest: 64, ..Workload::default() }
}

/// Shows a resync from its start to its end.
fn follow_resync(machine: &Machine) -> Result<()> {
    let terminal = std::io::stdout().is_terminal();
    let bar = ProgressBar::new(DISK_MIB * 1024);
    let style = "  {bar:40} {percent:>3} %  {msg}";
    bar.set_style(ProgressStyle::with_template(style).context("progress bar")?);
    // How long it takes is for the host to say; that it stands still is not.
    let (mut left_kib, mut until) = (u64::MAX, Instant::now() + RESYNC);
    let mut next_percent = 0.0;
    loop {
        let state = device(machine)?;
        if let Some(progress) = &state.progress {
            if progress.left_kib < left_kib {
                (left_kib, until) = (progress.left_kib, Instant::now() + RESYNC);
            }
            bar.set_length(progress.total_kib);
            bar.set_position(progress.total_kib.saturating_sub(progress.left_kib));
            let text = format!("{} KiB/s, {} left", progress.speed_kib, progress.finish);
            bar.set_message(text.clone());
            if !terminal && progress.percent >= next_percent {
                println!("  {:>5.1} %  {text}", progress.percent);
                next_percent += 20.0;
            }
        }
        if state.connection == "Connected" && state.disks == "UpToDate/UpToDate" {
            bar.finish_and_clear();
            good("both disks are up to date");
            return Ok(());
        }
        if Instant::now() > until {
            bail!("the resync has made no progress for {} s: {state:?}", RESYNC.as_secs());
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// Shows a command and what it says; it must succeed.
fn command(machine: &Machine, line: &str) -> Result<String> {
    println!("{} {}", prompt(machine), line.trim_end_matches(" </dev/null"));
    let output = machine.run(line)?;
    for line in output.text().lines().chain(output.error_text().lines()) {
        println!("    {line}");
    }
    ensure!(output.success(), "{}: `{line}` ended with exit code {}", machine.name(), output.code());
    Ok(output.text())
}

fn heading(text: &str) {
    println!("\n{}\n", bold(text));
}

fn good(text: &str) {
    println!("  {} {text}", paint("32", "ok"));
}

fn prompt(machine: &Machine) -> String {
    let colour = if machine.name() == "drbd1" { "36" } else { "33" };
    paint(colour, &format!("{}#", machine.name()))
}

fn bold(text: &str) -> String {
    paint("1", text)
}

fn paint(code: &str, text: &str) -> String {
    if std::io::stdout().is_terminal() {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}
