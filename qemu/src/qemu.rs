//! Starting QEMU: the process that dies with this one, and the accelerator that works on this host.

use crate::console::Console;
use crate::paths::{Paths, RunDirectory};
use anyhow::{bail, Context, Result};
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Sender};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

/// How long a machine may take to its first user-space process when the accelerator is good.
const PROBE_LIMIT: Duration = Duration::from_secs(8);

/// What the kernel prints when it starts the first process.
const PROBE_SIGN: &str = "Run /init as init process";

/// How QEMU executes the machine's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The host's hardware virtualisation.
    Kvm,
    /// Emulation, a host thread for each virtual processor.
    Tcg,
    /// Emulation, one host thread for all virtual processors.
    TcgOneThread,
    /// Emulation on one host thread with guest time counted in instructions (2 ns each): repeatable figures.
    Counted,
}

impl Accelerator {
    /// QEMU's arguments for it.
    pub fn arguments(self) -> &'static [&'static str] {
        match self {
            Accelerator::Kvm => &["-accel", "kvm", "-cpu", "host"],
            Accelerator::Tcg => &["-accel", "tcg,thread=multi", "-cpu", "max"],
            Accelerator::TcgOneThread => &["-accel", "tcg,thread=single", "-cpu", "max"],
            Accelerator::Counted => &["-accel", "tcg,thread=single", "-cpu", "max", "-icount", "shift=1,sleep=off"],
        }
    }

    /// The best one that works here: `LAB_ACCEL` (kvm, tcg) decides, else a boot of a few seconds whose result is kept in the
    /// cache until the host is booted anew.
    pub fn probe(paths: &Paths) -> Result<Accelerator> {
        match std::env::var("LAB_ACCEL").as_deref() {
            Ok("kvm") => return Ok(Accelerator::Kvm),
            Ok("tcg") => return Ok(Accelerator::Tcg),
            Ok("") | Err(_) => (),
            Ok(other) => bail!("LAB_ACCEL={other}: expected kvm or tcg"),
        }
        if File::options().read(true).write(true).open("/dev/kvm").is_err() {
            return Ok(Accelerator::Tcg);
        }
        let answer = paths.cache().join("accelerator");
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let kept = fs::read_to_string(&answer).unwrap_or_default();
        if let Some(kept) = kept.strip_prefix(&boot) {
            return Ok(if kept == "kvm" { Accelerator::Kvm } else { Accelerator::Tcg });
        }
        let works = boots_with_kvm(paths)?;
        fs::write(&answer, format!("{boot}{}", if works { "kvm" } else { "tcg" }))
            .with_context(|| format!("writing {}", answer.display()))?;
        Ok(if works { Accelerator::Kvm } else { Accelerator::Tcg })
    }
}

fn boots_with_kvm(paths: &Paths) -> Result<bool> {
    let run = RunDirectory::new(paths, "probe")?;
    let console = Console::new("probe", run.log("console.log"));
    let mut command = Command::new(paths.qemu());
    command.args(["-machine", "q35", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-m", "512"]);
    command.args(Accelerator::Kvm.arguments()).arg("-kernel").arg(paths.vmlinuz()?);
    command.arg("-initrd").arg(paths.initramfs()?).args(["-append", "console=ttyS0 panic=-1"]);
    command.arg("-serial").arg(format!("file:{}", console.path().display()));
    let mut child = spawn(command, &run.log("qemu.log"))?;
    let until = Instant::now() + PROBE_LIMIT;
    let mut works = false;
    while !works && Instant::now() < until && child.try_wait()?.is_none() {
        thread::sleep(Duration::from_millis(50));
        works = console.text().contains(PROBE_SIGN);
    }
    child.kill()?;
    child.wait()?;
    Ok(works)
}

/// Starts a command that is killed by the kernel when this process ends, however it ends. What it says goes to `log`.
///
/// The kernel kills it when the *thread* that started it ends, so one thread that lives for ever starts them all.
pub(crate) fn spawn(command: Command, log: &Path) -> Result<Child> {
    type Job = (Command, Sender<std::io::Result<Child>>);
    static SPAWNER: OnceLock<Sender<Job>> = OnceLock::new();
    let program = command.get_program().to_owned();
    let mut bound = Command::new("setpriv");
    bound.args(["--pdeathsig", "KILL"]).arg(&program).args(command.get_args());
    let log_file = File::options().create(true).append(true).open(log).with_context(|| format!("{}", log.display()))?;
    bound.stdin(Stdio::null()).stdout(log_file.try_clone()?).stderr(log_file);
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        thread::spawn(move || {
            for (mut command, answer) in jobs {
                // Somebody who has given up waiting does not exist: the answer comes at once.
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    let (sender, answer) = mpsc::channel();
    spawner.send((bound, sender)).ok().context("the starting thread has ended")?;
    answer.recv()?.with_context(|| format!("starting {} by setpriv", program.to_string_lossy()))
}

/// Time that the host's processors have spent on a process; nothing once it was waited for.
// proc(5): fields 14 and 15 of `stat`, after the name, which may contain blanks.
pub(crate) fn processor_time(child: &Child) -> Duration {
    const TICK_MS: u64 = 10;
    let text = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
    let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * TICK_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_computes_uses_processor_time() {
        let mut child = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        let until = Instant::now() + Duration::from_secs(30);
        while processor_time(&child) < Duration::from_millis(50) {
            assert!(Instant::now() < until);
            thread::sleep(Duration::from_millis(10));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(processor_time(&child), Duration::ZERO);
    }

    #[test]
    fn what_a_short_lived_thread_starts_stays() {
        let log = std::env::temp_dir().join(format!("spawn-{}", std::process::id()));
        let thread_log = log.clone();
        let start = move || {
            let mut command = Command::new("sh");
            command.args(["-c", "echo said; sleep 0.3"]);
            spawn(command, &thread_log).unwrap()
        };
        let mut child = thread::spawn(start).join().unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(fs::read_to_string(&log).unwrap(), "said\n");
        fs::remove_file(&log).unwrap();
    }
}
