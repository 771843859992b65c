//! One machine: a QEMU process, its agent, its console and its disks. It can be killed and started again on the same disks.
//!
//! All methods take `&self`: tests use a machine from several threads at once.

use crate::client::{Client, Output, Process, Stuck};
use crate::cluster::{Module, Setup};
use crate::console::{Console, Mark};
use crate::disk::Disk;
use crate::limit::{is_debug_kernel, stretched};
use crate::paths::{Paths, RunDirectory};
use crate::qemu::{self, Accelerator};
use crate::qmp::Qmp;
use crate::wire::End;
use crate::{disk, ADDRESSES, FAILURES};
use anyhow::{anyhow, bail, Context, Result};
use serde_json::{json, Value};
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Time limit of a command when the caller names none.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// Time limit of a boot: emulation on a busy host takes long.
pub const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// Lines of the console that an error shows.
const TAIL_LINES: usize = 25;

/// The same where it ends with the stacks of tasks.
const STACK_LINES: usize = 120;

/// Pause between two looks of [`Machine::wait_until`].
const POLL: Duration = Duration::from_millis(100);

/// What a machine is made of.
pub(crate) struct Plan {
    pub(crate) name: String,
    /// Place among the machines: 0 or 1.
    pub(crate) index: usize,
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u32,
    pub(crate) disks: Vec<Disk>,
    pub(crate) mtu: u32,
    pub(crate) accelerator: Accelerator,
    pub(crate) kernel_arguments: String,
    pub(crate) net: Option<End>,
    pub(crate) initrd: PathBuf,
}

/// Limits of a disk's speed; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throttle {
    /// Requests a second.
    pub iops: u64,
    /// Bytes a second.
    pub bytes_per_second: u64,
}

/// One machine.
pub struct Machine {
    plan: Plan,
    paths: Paths,
    run: Arc<RunDirectory>,
    console: Console,
    checked: Mutex<Mark>,
    /// What to install after a power cut.
    setup: Mutex<Option<Setup>>,
    live: Mutex<Option<Live>>,
    /// Processor time of its past QEMU processes.
    spent: Mutex<Duration>,
}

/// What exists while the machine is on.
struct Live {
    child: Child,
    qmp: Qmp,
    client: Client,
}

impl Machine {
    /// Makes the disks and starts the machine, without waiting for it.
    pub(crate) fn new(plan: Plan, paths: &Paths, run: &Arc<RunDirectory>) -> Result<Machine> {
        let console = Console::new(&plan.name, run.log(&format!("{}.console.log", plan.name)));
        let machine = Machine {
            plan,
            paths: paths.clone(),
            run: Arc::clone(run),
            console,
            checked: Mutex::default(),
            setup: Mutex::default(),
            live: Mutex::new(None),
            spent: Mutex::default(),
        };
        machine.create_disks()?;
        machine.start()?;
        Ok(machine)
    }

    /// Its host name.
    pub fn name(&self) -> &str {
        &self.plan.name
    }

    /// Its address on the private link.
    pub fn address(&self) -> &'static str {
        ADDRESSES[self.plan.index]
    }

    /// Its serial log.
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// The socket of its serial console, for [`crate::terminal`].
    pub fn console_socket(&self) -> PathBuf {
        self.socket("console")
    }

    /// Runs a command line in bash and waits at most [`COMMAND_LIMIT`] for its end. Any exit code is a result.
    pub fn run(&self, command: &str) -> Result<Output> {
        self.run_for(COMMAND_LIMIT, command)
    }

    /// The same with another time limit. A command that takes longer is killed and is an error.
    pub fn run_for(&self, limit: Duration, command: &str) -> Result<Output> {
        let outcome = self.spawn(command)?.wait(stretched(limit));
        outcome.map_err(|error| {
            let mut lines = TAIL_LINES;
            if error.is::<Stuck>() {
                self.show_blocked_tasks();
                lines = STACK_LINES;
            }
            anyhow!("{error:#}\n{}", self.console.tail(lines))
        })
    }

    /// Runs a command line that must exit with 0; returns its standard output without white space at the end.
    pub fn run_ok(&self, command: &str) -> Result<String> {
        self.run_ok_for(COMMAND_LIMIT, command)
    }

    /// The same with another time limit.
    pub fn run_ok_for(&self, limit: Duration, command: &str) -> Result<String> {
        let output = self.run_for(limit, command)?;
        if !output.success() {
            bail!("{}: `{command}`: {output}\n{}", self.plan.name, self.console.tail(TAIL_LINES));
        }
        Ok(output.text())
    }

    /// Starts a command line in bash and returns at once.
    pub fn spawn(&self, command: &str) -> Result<Process> {
        self.client()?.spawn(&["bash", "-c", command])
    }

    /// Writes a file in the machine.
    pub fn put(&self, path: &str, data: &[u8]) -> Result<()> {
        let process =
            self.client()?.spawn(&["sh", "-c", "mkdir -p \"$(dirname \"$1\")\" && cat >\"$1\"", "put", path])?;
        process.write(data)?;
        process.close_input()?;
        let output = process.wait(stretched(COMMAND_LIMIT))?;
        if !output.success() {
            bail!("{}: putting {path}: {output}", self.plan.name);
        }
        Ok(())
    }

    /// Copies a file of the host into the machine, executable.
    pub fn put_file(&self, path: &str, source: &Path) -> Result<()> {
        self.put_program(path, &std::fs::read(source).with_context(|| source.display().to_string())?)
    }

    /// Writes an executable file in the machine.
    pub fn put_program(&self, path: &str, data: &[u8]) -> Result<()> {
        self.put(path, data)?;
        self.client()?.spawn(&["chmod", "755", path])?.wait(stretched(COMMAND_LIMIT))?;
        Ok(())
    }

    /// Reads a file of the machine.
    pub fn get(&self, path: &str) -> Result<Vec<u8>> {
        let output = self.client()?.spawn(&["cat", path])?.wait(stretched(COMMAND_LIMIT))?;
        if !output.success() {
            bail!("{}: getting {path}: {output}", self.plan.name);
        }
        Ok(output.stdout)
    }

    /// Repeats a command until `check` likes its standard output. The error shows what it said last.
    pub fn wait_until(
        &self,
        limit: Duration,
        what: &str,
        command: &str,
        mut check: impl FnMut(&str) -> bool,
    ) -> Result<String> {
        let limit = stretched(limit);
        let until = Instant::now() + limit;
        loop {
            let output = self.run(command)?;
            if check(&output.text()) {
                return Ok(output.text());
            }
            if Instant::now() > until {
                bail!(
                    "{}: expected {what} within {:.1} s; `{command}`: {output}\n{}",
                    self.plan.name,
                    limit.as_secs_f32(),
                    self.console.tail(TAIL_LINES)
                );
            }
            thread::sleep(POLL);
        }
    }

    /// Repeats a command until it exits with 0.
    pub fn wait_success(&self, limit: Duration, what: &str, command: &str) -> Result<()> {
        self.wait_until(limit, what, &format!("{{ {command}\n}} 2>&1; echo \"lab-exit=$?\""), |text| {
            text.ends_with("lab-exit=0")
        })
        .map(|_| ())
    }

    /// Waits until the console has shown a text after `mark`.
    pub fn wait_console(&self, limit: Duration, mark: Mark, text: &str) -> Result<()> {
        let limit = stretched(limit);
        let until = Instant::now() + limit;
        while !self.console.since(mark).contains(text) {
            if Instant::now() > until {
                let tail = self.console.tail(TAIL_LINES);
                bail!(
                    "{}: expected {text:?} on the console within {:.1} s\n{tail}",
                    self.plan.name,
                    limit.as_secs_f32()
                );
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// Fails when the kernel has complained since the last check (or the first boot). What it said about the C module itself is
    /// printed, past the test harness, which keeps what a test prints to itself.
    pub fn check_console(&self) -> Result<()> {
        let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        let from = std::mem::replace(&mut *checked, self.console.mark());
        for says in self.console.check(from)? {
            // A closed standard error output is no reason to fail.
            let _ = writeln!(io::stderr().lock(), "note: {}: the C module's own: {says}", self.plan.name);
        }
        Ok(())
    }

    /// Power cut: QEMU is killed. What the machine's disks had completed survives in the host's page cache; everything else
    /// is lost.
    pub fn power_cut(&self) -> Result<()> {
        let Some(mut live) = self.lock().take() else { bail!("{} is off already", self.plan.name) };
        self.add_spent(&live.child);
        live.child.kill()?;
        live.child.wait()?;
        Ok(())
    }

    /// Switches the machine on again, on the same disks, waits until it answers, and installs the module and the tools it had.
    pub fn power_on(&self) -> Result<()> {
        self.power_on_bare()?;
        let setup = self.setup.lock().unwrap_or_else(PoisonError::into_inner).clone();
        setup.map_or(Ok(()), |setup| self.install(&setup))
    }

    /// The same without module and tools.
    pub fn power_on_bare(&self) -> Result<()> {
        self.start()?;
        self.wait_ready(BOOT_LIMIT)
    }

    /// Restarts the machine the orderly way: file systems are written out and remounted read-only first.
    pub fn reboot(&self) -> Result<()> {
        // The command is not expected to come back.
        self.spawn("sync; echo s >/proc/sysrq-trigger; echo u >/proc/sysrq-trigger; echo b >/proc/sysrq-trigger")?;
        let Some(mut live) = self.lock().take() else { bail!("{} is off", self.plan.name) };
        let until = Instant::now() + stretched(COMMAND_LIMIT);
        while live.child.try_wait()?.is_none() {
            if Instant::now() > until {
                live.child.kill()?;
                live.child.wait()?;
                bail!("{}: did not restart by itself\n{}", self.plan.name, self.console.tail(TAIL_LINES));
            }
            thread::sleep(POLL);
        }
        self.power_on()
    }

    /// Whether QEMU is running.
    pub fn is_on(&self) -> bool {
        self.lock().as_mut().is_some_and(|live| matches!(live.child.try_wait(), Ok(None)))
    }

    /// Freezes the machine: to others it looks dead, it itself does not notice.
    pub fn pause(&self) -> Result<()> {
        self.qmp("stop", json!({})).map(|_| ())
    }

    /// Ends [`Machine::pause`].
    pub fn resume(&self) -> Result<()> {
        self.qmp("cont", json!({})).map(|_| ())
    }

    /// Limits the speed of a disk (`sdb`) from outside; the default value lifts the limit.
    pub fn throttle(&self, disk: &str, limit: Throttle) -> Result<()> {
        let arguments = json!({
            "id": disk, "iops": limit.iops, "iops_rd": 0, "iops_wr": 0, "bps": limit.bytes_per_second, "bps_rd": 0, "bps_wr": 0,
        });
        self.qmp("block_set_io_throttle", arguments).map(|_| ())
    }

    /// Runs any command of QEMU's machine protocol.
    pub fn qmp(&self, command: &str, arguments: Value) -> Result<Value> {
        let mut live = self.lock();
        let live = live.as_mut().ok_or_else(|| anyhow!("{} is off", self.plan.name))?;
        live.qmp.execute(command, arguments).with_context(|| self.plan.name.clone())
    }

    /// The host's file of a disk (`sdb`), whole disk with its partition table: see [`Disk::start_bytes`].
    pub fn disk_file(&self, disk: &str) -> PathBuf {
        self.run.scratch(&format!("{}-{disk}", self.plan.name))
    }

    /// The disks it was made with.
    pub fn disks(&self) -> &[Disk] {
        &self.plan.disks
    }

    /// Waits until the machine answers and checks that its boot went well.
    pub(crate) fn wait_ready(&self, limit: Duration) -> Result<()> {
        let ready = self.client()?.wait_ready(stretched(limit));
        ready.map_err(|error| anyhow!("{error:#}\n{}", self.console.tail(TAIL_LINES)))?;
        let failures = self.run(&format!("cat {FAILURES} 2>/dev/null"))?.text();
        if !failures.is_empty() {
            bail!("{}: booting went wrong: {failures}\n{}", self.plan.name, self.console.tail(TAIL_LINES));
        }
        Ok(())
    }

    pub(crate) fn remember(&self, setup: &Setup) {
        *self.setup.lock().unwrap_or_else(PoisonError::into_inner) = Some(setup.clone());
    }

    fn lock(&self) -> MutexGuard<'_, Option<Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time that the host's processors have spent on it, without what it did before it switched itself off.
    pub(crate) fn processor_time(&self) -> Duration {
        let now = self.lock().as_ref().map_or(Duration::ZERO, |live| qemu::processor_time(&live.child));
        now + *self.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add_spent(&self, child: &Child) {
        *self.spent.lock().unwrap_or_else(PoisonError::into_inner) += qemu::processor_time(child);
    }

    fn client(&self) -> Result<Client> {
        Ok(self.lock().as_ref().ok_or_else(|| anyhow!("{} is off", self.plan.name))?.client.clone())
    }

    /// Has the kernel print the stacks of all tasks that wait in it.
    fn show_blocked_tasks(&self) {
        let show = || self.spawn("echo w >/proc/sysrq-trigger; sleep 1")?.wait(stretched(Duration::from_secs(10)));
        if let Err(error) = show() {
            eprintln!("lab: {}: no stacks: {error:#}", self.plan.name);
        }
    }

    fn socket(&self, kind: &str) -> PathBuf {
        self.run.sockets.join(format!("{}.{kind}", self.plan.name))
    }

    fn create_disks(&self) -> Result<()> {
        for (index, disk) in self.plan.disks.iter().enumerate() {
            disk.create(&self.disk_file(&disk::name(index)))?;
        }
        let mut command = Command::new(self.paths.qemu_img());
        command.args(["create", "-q", "-f", "qcow2", "-F", &self.paths.rootfs_format(), "-b"]);
        command.arg(self.paths.rootfs()?).arg(self.disk_file("root"));
        let output = command.output().with_context(|| format!("running {}", self.paths.qemu_img().display()))?;
        if !output.status.success() {
            bail!("qemu-img: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    fn start(&self) -> Result<()> {
        let mut live = self.lock();
        if let Some(live) = live.as_mut() {
            // A kernel that panicked has ended its QEMU.
            if live.child.try_wait()?.is_none() {
                bail!("{} is on already", self.plan.name);
            }
        }
        self.console.loads(Module::None);
        let log = self.run.log(&format!("{}.qemu.log", self.plan.name));
        let mut child = qemu::spawn(self.command()?, &log)?;
        let connected = self.connect(&mut child);
        match connected {
            Ok((qmp, client)) => {
                *live = Some(Live { child, qmp, client });
                Ok(())
            }
            Err(error) => {
                child.kill()?;
                child.wait()?;
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                Err(error.context(format!("{}: QEMU did not start: {}", self.plan.name, said.trim())))
            }
        }
    }

    fn connect(&self, child: &mut Child) -> Result<(Qmp, Client)> {
        let qmp = Qmp::new(connect(&self.socket("qmp"), child)?)?;
        let client = Client::new(&self.plan.name, connect(&self.socket("agent"), child)?)?;
        Ok((qmp, client))
    }

    fn command(&self) -> Result<Command> {
        let plan = &self.plan;
        let mut command = Command::new(self.paths.qemu());
        command.arg("-kernel").arg(self.paths.vmlinuz()?).arg("-initrd").arg(&plan.initrd);
        let mut add = |words: &[&str]| {
            command.args(words);
        };
        add(&[
            "-name",
            &plan.name,
            "-machine",
            "q35",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ]);
        add(plan.accelerator.arguments());
        add(&["-smp", &plan.vcpus.to_string(), "-m", &plan.memory_mib.to_string()]);
        add(&["-append", &self.kernel_command_line()]);
        add(&["-qmp", &format!("unix:{},server=on,wait=off", path_text(&self.socket("qmp"))?)]);
        let (console, log) = (path_text(&self.socket("console"))?, path_text(self.console.path())?);
        let chardev = format!("socket,id=console,path={console},server=on,wait=off,logfile={log},logappend=on");
        add(&["-chardev", &chardev, "-serial", "chardev:console"]);
        let agent = format!("socket,id=agent,path={},server=on,wait=off", path_text(&self.socket("agent"))?);
        add(&["-chardev", &agent, "-device", "virtio-serial-pci"]);
        add(&["-device", "virtserialport,chardev=agent,name=lab.agent", "-device", "virtio-rng-pci"]);
        // A killed QEMU leaves what it has completed in the host's page cache, so "unsafe" only spares the host's disk; but not
        // with qcow2, whose tables QEMU keeps to itself until the guest flushes.
        let root = path_text(&self.disk_file("root"))?;
        add(&["-drive", &format!("if=none,id=root,file={root},format=qcow2,cache=writeback,discard=unmap")]);
        add(&["-device", "virtio-blk-pci,drive=root", "-device", "virtio-scsi-pci,id=scsi"]);
        for (index, disk) in plan.disks.iter().enumerate() {
            let name = disk::name(index);
            let file = path_text(&self.disk_file(&name))?;
            add(&["-drive", &format!("if=none,id={name}-file,file={file},format=raw,cache=unsafe,discard=unmap")]);
            let sector = disk.sector_bytes;
            let device = format!("scsi-hd,id={name},drive={name}-file,bus=scsi.0,scsi-id={index},serial={name}");
            add(&["-device", &format!("{device},logical_block_size={sector},physical_block_size={sector}")]);
        }
        if let Some(end) = &plan.net {
            let (local, remote) = (path_text(&end.machine)?, path_text(&end.wire)?);
            let sockets = format!("local.type=unix,local.path={local},remote.type=unix,remote.path={remote}");
            add(&["-netdev", &format!("dgram,id=net,{sockets}")]);
            let mtu = if plan.mtu == 1500 { String::new() } else { format!(",host_mtu={}", plan.mtu) };
            let address = format!("52:54:00:d2:bd:{:02x}", plan.index + 1);
            add(&["-device", &format!("virtio-net-pci,netdev=net,mac={address},romfile={mtu}")]);
        }
        Ok(command)
    }

    fn kernel_command_line(&self) -> String {
        let plan = &self.plan;
        let address = if plan.net.is_some() { format!("{}/24", self.address()) } else { String::new() };
        // KASAN would be silent after its first report, whoever that is about.
        let debug = if is_debug_kernel() { "kasan_multi_shot" } else { "" };
        format!(
            "console=ttyS0,115200 panic=-1 loglevel=7 root=/dev/vda rw net.ifnames=0 mitigations=off random.trust_cpu=on \
             scsi_mod.scan=manual lab.host={} lab.ip={address} lab.mtu={} lab.disks={} {debug} {}",
            plan.name,
            plan.mtu,
            plan.disks.len(),
            plan.kernel_arguments
        )
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(mut live) = self.lock().take() {
            // Nothing useful can be done about a process that cannot be killed.
            let _ = live.child.kill();
            let _ = live.child.wait();
        }
    }
}

/// Connects to a socket that QEMU is about to listen on.
fn connect(path: &Path, child: &mut Child) -> Result<UnixStream> {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > until => return Err(error).with_context(|| path.display().to_string()),
            Err(_) => (),
        }
        if let Some(status) = child.try_wait()? {
            bail!("it ended with {status}");
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// QEMU's option syntax needs text, and a comma in it would need an escape.
fn path_text(path: &Path) -> Result<String> {
    let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
    Ok(text.replace(',', ",,"))
}
