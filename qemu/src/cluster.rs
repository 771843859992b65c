//! One or two machines with a private link, each with a DRBD module and tools of its own choice.

use crate::disk::Disk;
use crate::initrd::Archive;
use crate::limit::stretched;
use crate::machine::{Machine, Plan, BOOT_LIMIT};
use crate::paths::{Paths, RunDirectory};
use crate::qemu::Accelerator;
use crate::wire::{End, Wire};
use crate::NAMES;
use anyhow::{bail, ensure, Context, Result};
use std::io::{self, Write};
use std::ops::Deref;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// What the debug kernel needs at least.
const DEBUG_MEMORY_MIB: u32 = 1536;

/// While it looks for its processor's features again the debug kernel forgets for a moment that it uses page tables of five
/// levels, and an interrupt just then is reported by KASAN. Four do.
///
/// It has nothing but an old timer chip to compare the processor's time stamps with. On a busy host its clock ran five times too fast
/// then, and every timeout in it was over at once. Counting ticks, some of which get lost there, its clock is late instead, which
/// does no harm.
const DEBUG_ARGUMENTS: &str = " no5lvl tsc=unstable";

/// Limit for the search for leaked memory.
const LEAKS_LIMIT: Duration = Duration::from_secs(60);

/// Where the debug kernel tells about it.
const KMEMLEAK: &str = "/sys/kernel/debug/kmemleak";

/// A task that waits longer without a break is one that hangs.
const HUNG_TASK: Duration = Duration::from_secs(45);

/// Which kernel module a machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Module {
    /// The module of this project.
    Ours,
    /// The C module of the stock kernel.
    Stock,
    /// None is loaded.
    None,
}

/// Which programs `drbdadm`, `drbdsetup` and `drbdmeta` are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tools {
    /// The program of this project, in `/opt/drbd/sbin`, first in the search path.
    Ours,
    /// Unmodified drbd-utils.
    Utils,
}

/// What a machine runs; see [`Machine::install`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// The kernel module.
    pub module: Module,
    /// Its parameters, as `insmod` takes them.
    pub parameters: String,
    /// The tools.
    pub tools: Tools,
}

impl Setup {
    /// Module and tools; the module calls no helper programs.
    pub fn new(module: Module, tools: Tools) -> Setup {
        Setup { module, parameters: "usermode_helper=/bin/true".into(), tools }
    }
}

/// How a cluster is made. The default: two machines, ours on both, one virtual processor, a disk `sda` of 64 MiB without
/// partitions (for external meta data) and a disk `sdb` with a partition 1 of 128 MiB; packets of 9000 bytes, because an
/// emulated network card costs its time by the packet (1500: 4 MB/s, 9000: 30 MB/s).
#[derive(Clone, Debug)]
pub struct Options {
    name: String,
    machines: usize,
    setups: [Setup; 2],
    vcpus: u32,
    memory_mib: u32,
    disks: Vec<Disk>,
    mtu: u32,
    accelerator: Option<Accelerator>,
    kernel_arguments: String,
}

impl Default for Options {
    fn default() -> Self {
        let setup = Setup::new(Module::Ours, Tools::Ours);
        Options {
            name: "cluster".into(),
            machines: 2,
            setups: [setup.clone(), setup],
            vcpus: 1,
            memory_mib: 640,
            disks: vec![Disk::whole(64), Disk::partitioned(128)],
            mtu: 9000,
            accelerator: None,
            // On a busy host an emulated timer may come too late for the kernel's early check of it.
            kernel_arguments: format!(
                "no_timer_check hung_task_panic=0 sysctl.kernel.hung_task_timeout_secs={}",
                stretched(HUNG_TASK).as_secs()
            ),
        }
    }
}

impl Options {
    /// A name for the directory of the logs.
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Only the first machine, without a network.
    pub fn single(mut self) -> Self {
        self.machines = 1;
        self
    }

    /// One machine whose time is counted in instructions: repeated runs agree to about 1 %.
    pub fn benchmark(self) -> Self {
        self.single().accelerator(Accelerator::Counted).memory_mib(1536).name("bench")
    }

    /// The module of both machines.
    pub fn module(self, module: Module) -> Self {
        self.modules([module, module])
    }

    /// The modules of the first and the second machine.
    pub fn modules(mut self, modules: [Module; 2]) -> Self {
        for (setup, module) in self.setups.iter_mut().zip(modules) {
            setup.module = module;
        }
        self
    }

    /// The tools of both machines.
    pub fn tools(self, tools: Tools) -> Self {
        self.each_tools([tools, tools])
    }

    /// The tools of the first and the second machine.
    pub fn each_tools(mut self, tools: [Tools; 2]) -> Self {
        for (setup, tools) in self.setups.iter_mut().zip(tools) {
            setup.tools = tools;
        }
        self
    }

    /// Parameters of the module, on both machines; the default is `usermode_helper=/bin/true`.
    pub fn parameters(mut self, parameters: &str) -> Self {
        for setup in &mut self.setups {
            parameters.clone_into(&mut setup.parameters);
        }
        self
    }

    /// The disks of each machine: `sda`, `sdb` …
    pub fn disks(mut self, disks: &[Disk]) -> Self {
        disks.clone_into(&mut self.disks);
        self
    }

    /// Virtual processors of each machine.
    pub fn vcpus(mut self, vcpus: u32) -> Self {
        self.vcpus = vcpus;
        self
    }

    /// Memory of each machine in MiB.
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// Largest packet on the link in bytes.
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = mtu;
        self
    }

    /// The accelerator, where the one that [`Accelerator::probe`] finds is not wanted.
    pub fn accelerator(mut self, accelerator: Accelerator) -> Self {
        self.accelerator = Some(accelerator);
        self
    }

    /// More words for the kernel's command line.
    pub fn kernel_arguments(mut self, arguments: &str) -> Self {
        self.kernel_arguments.push(' ');
        self.kernel_arguments.push_str(arguments);
        self
    }

    /// Whether machines made for `other` can serve after [`Cluster::clean`].
    fn same_hardware(&self, other: &Options) -> bool {
        self.machines == other.machines
            && self.vcpus == other.vcpus
            && self.memory_mib == other.memory_mib
            && self.disks == other.disks
            && self.mtu == other.mtu
            && self.accelerator == other.accelerator
            && self.kernel_arguments == other.kernel_arguments
    }
}

/// One or two machines and their link.
pub struct Cluster {
    // The machines go first, then the link, then the directory.
    machines: Vec<Machine>,
    wire: Option<Wire>,
    run: Arc<RunDirectory>,
    options: Options,
}

impl Cluster {
    /// Boots the machines side by side and installs module and tools.
    pub fn boot(options: Options) -> Result<Cluster> {
        let paths = Paths::from_env()?;
        let run = Arc::new(RunDirectory::new(&paths, &options.name)?);
        let initrd = run.scratch("initrd");
        let uses = |check: fn(&Setup) -> bool| options.setups[..options.machines].iter().any(check);
        let payload = Payload {
            module: uses(|setup| setup.module == Module::Ours) || paths.module().is_ok(),
            tools: uses(|setup| setup.tools == Tools::Ours) || paths.tools().is_ok(),
        };
        payload.write(&paths, &initrd)?;
        let accelerator = match options.accelerator {
            Some(accelerator) => accelerator,
            // Emulated processors on several host threads and the debug kernel do not go together.
            None if paths.debug_kernel() => Accelerator::TcgOneThread,
            None => Accelerator::probe(&paths)?,
        };
        let (least_memory_mib, more_arguments) =
            if paths.debug_kernel() { (DEBUG_MEMORY_MIB, DEBUG_ARGUMENTS) } else { (0, "") };
        let ends = NAMES.map(|name| End::new(&run.sockets, name));
        let two = options.machines == 2;
        let wire = if two { Some(Wire::new(&ends[0], &ends[1])?) } else { None };
        let mut machines = Vec::new();
        for (index, end) in ends.into_iter().enumerate().take(options.machines) {
            let plan = Plan {
                name: NAMES[index].into(),
                index,
                vcpus: options.vcpus,
                memory_mib: options.memory_mib.max(least_memory_mib),
                disks: options.disks.clone(),
                mtu: options.mtu,
                accelerator,
                kernel_arguments: format!("{}{more_arguments}", options.kernel_arguments),
                net: two.then_some(end),
                initrd: initrd.clone(),
            };
            machines.push(Machine::new(plan, &paths, &run)?);
        }
        for (machine, setup) in machines.iter().zip(&options.setups) {
            machine.wait_ready(BOOT_LIMIT)?;
            machine.install(setup)?;
        }
        Ok(Cluster { machines, wire, run, options })
    }

    /// The first machine.
    pub fn drbd1(&self) -> &Machine {
        &self.machines[0]
    }

    /// The second machine.
    ///
    /// # Panics
    /// Where there is only one.
    pub fn drbd2(&self) -> &Machine {
        &self.machines[1]
    }

    /// All machines.
    pub fn machines(&self) -> &[Machine] {
        &self.machines
    }

    /// The link between the two machines.
    ///
    /// # Panics
    /// Where there is only one.
    pub fn wire(&self) -> &Wire {
        self.wire.as_ref().expect("two machines have a link")
    }

    /// Where the logs are.
    pub fn log_directory(&self) -> &Path {
        &self.run.path
    }

    /// Time that the host's processors have spent on the machines.
    fn processor_time(&self) -> Duration {
        self.machines.iter().map(Machine::processor_time).sum()
    }

    /// Fails when one of the kernels has complained since the last check.
    pub fn check_consoles(&self) -> Result<()> {
        self.machines.iter().try_for_each(Machine::check_console)
    }

    /// Whether all machines look at locks which are to get our module.
    fn checks_locks(&self, options: &Options) -> Result<bool> {
        let mut ours = self.machines.iter().zip(&options.setups).filter(|(_, setup)| setup.module == Module::Ours);
        ours.try_fold(true, |checks, (machine, _)| Ok(checks && machine.checks_locks()?))
    }

    /// Installs what the machines are to have; nothing may be loaded.
    pub fn install(&self, setups: &[Setup; 2]) -> Result<()> {
        self.machines.iter().zip(setups).try_for_each(|(machine, setup)| machine.install(setup))
    }

    /// Makes the machines as good as new: on and running, link whole, DRBD down and its module unloaded (that must work),
    /// no device-mapper devices, no configuration, empty disks. Fails when a kernel has complained.
    pub fn clean(&self) -> Result<()> {
        if let Some(wire) = &self.wire {
            wire.restore();
        }
        for machine in &self.machines {
            if machine.is_on() {
                machine.resume()?;
            } else {
                machine.power_on_bare()?;
            }
        }
        // One after the other: two that leave at the same moment may refuse each other.
        self.machines.iter().try_for_each(Machine::take_down)?;
        let outcomes = thread::scope(|scope| {
            let clean = |machine| scope.spawn(move || Machine::clean(machine));
            let threads: Vec<_> = self.machines.iter().map(clean).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| bail!("a thread panicked"))).collect()
        });
        let outcomes: Vec<Result<()>> = outcomes;
        for (machine, outcome) in self.machines.iter().zip(outcomes) {
            outcome.with_context(|| format!("cleaning up {}", machine.name()))?;
        }
        self.check_consoles()
    }
}

/// What the machines get with their initial RAM disk.
struct Payload {
    module: bool,
    tools: bool,
}

const PAYLOAD_MODULE: &str = "/run/lab/drbd.ko";
const PAYLOAD_TOOLS: &str = "/run/lab/drbdadm";

impl Payload {
    fn write(&self, paths: &Paths, target: &Path) -> Result<()> {
        let mut archive = Archive::default();
        archive.directory("payload");
        archive.host_program("payload/agent", &paths.agent()?)?;
        if self.module {
            archive.host_program("payload/drbd.ko", &paths.module()?)?;
        }
        if self.tools {
            archive.host_program("payload/drbdadm", &paths.tools()?)?;
        }
        let base = paths.initramfs()?;
        let base = std::fs::read(&base).with_context(|| base.display().to_string())?;
        std::fs::write(target, archive.append_to(base)).with_context(|| target.display().to_string())
    }
}

impl Machine {
    /// Loads the module and chooses the tools; also after every [`Machine::power_on`].
    pub fn install(&self, setup: &Setup) -> Result<()> {
        let directory = "/opt/drbd/sbin";
        match setup.tools {
            Tools::Ours => self.run_ok(&format!(
                "mkdir -p {directory} && for name in drbdadm drbdsetup drbdmeta; do ln -sf {PAYLOAD_TOOLS} {directory}/$name; done"
            ))?,
            Tools::Utils => self.run_ok(&format!("rm -rf {directory}"))?,
        };
        // The search takes a minute of the machine's only processor; it is done after a test, not whenever the kernel likes.
        self.run_ok(&format!("test ! -w {KMEMLEAK} || echo scan=off >{KMEMLEAK}"))?;
        self.load_module(setup.module, &setup.parameters)?;
        self.remember(setup);
        Ok(())
    }

    /// Loads a module with these parameters.
    pub fn load_module(&self, module: Module, parameters: &str) -> Result<()> {
        if module != Module::Stock && self.console().last_loaded() == Module::Stock {
            self.run_ok(&format!("awk '$1 == \"jiffies:\" {{ print $2; exit }}' /proc/timer_list >{STOCK_UNTIL}"))?;
        }
        self.console().loads(module);
        match module {
            Module::Ours => self.run_ok(&format!(
                "for name in $(modinfo -F depends {PAYLOAD_MODULE} | tr , ' '); do modprobe $name || exit; done; insmod {PAYLOAD_MODULE} {parameters}"
            ))?,
            Module::Stock => self.run_ok(&format!("modprobe drbd {parameters}"))?,
            Module::None => String::new(),
        };
        Ok(())
    }

    /// Unloads the module, if one is loaded.
    pub fn unload_module(&self) -> Result<()> {
        self.run_ok("test ! -d /sys/module/drbd || rmmod drbd")?;
        self.console().loads(Module::None);
        Ok(())
    }

    /// Whether locks are looked at, if the kernel can do that: after its first report about one, whoever that was about, it does
    /// not any more.
    fn checks_locks(&self) -> Result<bool> {
        const FILE: &str = "/proc/lockdep_stats";
        Ok(self.run(&format!("test ! -e {FILE} || grep -q 'debug_locks: *1$' {FILE}"))?.success())
    }

    /// Whatever fails here because it was never there shows when the module cannot be unloaded.
    fn take_down(&self) -> Result<()> {
        self.run_for(
            Duration::from_secs(60),
            "killall -q -9 fio dd; awk '$1 ~ \"^/dev/(drbd|mapper)\" { print $2 }' /proc/mounts | xargs -r -n1 umount; \
             dmsetup ls 2>/dev/null | awk '$2 != \"\" && $1 != \"No\" { print $1 }' | xargs -r -n1 dmsetup resume; \
             test -d /sys/module/drbd && drbdadm down all",
        )?;
        Ok(())
    }

    fn clean(&self) -> Result<()> {
        self.check_leaks()?;
        self.run_ok(
            "test ! -d /sys/module/drbd || rmmod drbd || { cat /proc/drbd; fuser -v -m /dev/drbd*; exit 1; } 2>&1",
        )?;
        self.console().loads(Module::None);
        self.run_ok("test ! -e /dev/mapper/control || dmsetup remove_all --force")?;
        // A command that expected a device, and made a file where there was none: the next device would not get its node.
        self.run_ok("set -- $(find /dev -maxdepth 1 -type f -name 'drbd*'); test $# = 0 || { rm \"$@\"; echo \"files: $*\"; exit 1; }")?;
        self.run_ok("rm -rf /etc/drbd.conf /etc/drbd.d; mkdir -p /etc/drbd.d; rm -rf /var/lib/drbd/*")?;
        for (index, disk) in self.disks().iter().enumerate() {
            let name = crate::disk::name(index);
            let device = if disk.partitioned { format!("/dev/{name}1") } else { format!("/dev/{name}") };
            self.run_ok(&format!("blkdiscard -f {device}"))?;
        }
        self.throttle_nothing()
    }

    /// Fails when the debug kernel finds memory that nothing points to. With the module still loaded, so that it can name who
    /// allocated it.
    fn check_leaks(&self) -> Result<()> {
        // Reported is what two scans saw unchanged, and what is older than five seconds.
        const FILE: &str = KMEMLEAK;
        let command = format!("test ! -w {FILE} || {{ echo scan >{FILE}; sleep 6; echo scan >{FILE}; cat {FILE}; }}");
        let found = self.run_ok_for(LEAKS_LIMIT, &command)?;
        let stock_until = self.run_ok(&format!("cat {STOCK_UNTIL} 2>/dev/null || true"))?;
        let ours = not_of_the_c_module(&found, self.console().loaded(), stock_until.trim().parse().ok());
        ensure!(ours.is_empty(), "{}: nothing points to\n{ours}", self.name());
        if !found.is_empty() {
            let says = "memory that nothing points to";
            let _ = writeln!(io::stderr().lock(), "note: {}: the C module's own: {says}", self.name());
            // Not to be taken for that of the next module.
            self.run_ok(&format!("echo clear >{FILE}"))?;
        }
        Ok(())
    }

    fn throttle_nothing(&self) -> Result<()> {
        (0..self.disks().len()).try_for_each(|index| self.throttle(&crate::disk::name(index), Default::default()))
    }
}

/// Where the C module allocates what it is known to leave behind: the plan of a resync's rates, which it makes anew with each
/// attach and each time a peer tells its options, and the options that `disk-options` takes.
const LEFT_BEHIND: &[&[&str]] = &[
    &["fifo_alloc", "drbd_nl_attach_doit"],
    &["fifo_alloc", "receive_SyncParam", "drbd_receiver", "drbd_thread_setup"],
    &["__disk_conf_from_attrs", "drbd_nl_chg_disk_opts_doit"],
];

/// In the machine: the jiffies when the C module gave way to another one. What it left may be found later, if something pointed there
/// by chance, and then names functions of the module that took its place in memory.
const STOCK_UNTIL: &str = "/run/lab/stock-until";

/// What kmemleak found, without what the C module is known to leave behind where that is loaded, and without what is older than
/// `stock_until`.
fn not_of_the_c_module(found: &str, loaded: Module, stock_until: Option<u64>) -> String {
    const START: &str = "unreferenced object";
    let is_known = |report: &str| {
        let frames: Vec<&str> =
            report.lines().filter_map(|line| line.trim().strip_suffix(" [drbd]")?.split('+').next()).collect();
        let at = report.split_once("jiffies ").and_then(|(_, rest)| rest.lines().next()?.trim().parse::<u64>().ok());
        let is_older = at.zip(stock_until).is_some_and(|(at, until)| at < until);
        is_older || (loaded == Module::Stock && LEFT_BEHIND.contains(&frames.as_slice()))
    };
    let reports = found.split(START).skip(1).filter(|report| !is_known(report));
    let before = found.split(START).next().unwrap_or_default();
    reports.fold(before.to_owned(), |text, report| text + START + report)
}

/// The machines of a test program: its tests take turns. See [`shared`].
pub struct Shared {
    guard: MutexGuard<'static, Option<Cluster>>,
    finished: bool,
    began: Instant,
    /// Processor time of the machines when the test got them.
    processor_time: Duration,
}

impl Shared {
    /// The end of a test that went well: everything is taken down ([`Cluster::clean`]), which is part of the test.
    pub fn finish(mut self) -> Result<()> {
        self.clean()?;
        self.finished = true;
        Ok(())
    }

    /// Prints how long the machines were in use, with how much of the host's processor time: on a busy host only the second
    /// number says something. Past the test harness, which keeps what a test prints to itself.
    fn print_time(&self) {
        let used = self.guard.as_ref().map_or(Duration::ZERO, Cluster::processor_time);
        let (seconds, used) = (self.began.elapsed().as_secs(), used.saturating_sub(self.processor_time).as_secs());
        // A closed standard error output is no reason to fail.
        let _ = write!(io::stderr().lock(), "[{seconds} s, {used} s busy] ");
    }
}

impl Deref for Shared {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        self.guard.as_ref().expect("filled by shared(), emptied by drop()")
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.print_time();
        if self.finished {
            return;
        }
        // The test failed. Its machines show what happened, and nobody else may have them.
        if let Some(cluster) = self.guard.take() {
            eprintln!("logs of the machines: {}", cluster.run.path.display());
            for machine in &cluster.machines {
                eprintln!("{}", machine.console().tail(40));
            }
        }
    }
}

/// Machines that the tests of one program share: booted for the first one, taken down and used again where a test ended with
/// [`Shared::finish`], else (it failed), for other hardware, or where the debug kernel has stopped to look at locks, booted anew.
pub fn shared(options: Options) -> Result<Shared> {
    let began = Instant::now();
    static CLUSTER: Mutex<Option<Cluster>> = Mutex::new(None);
    let mut guard = CLUSTER.lock().unwrap_or_else(PoisonError::into_inner);
    let mut processor_time = Duration::ZERO;
    match guard.take() {
        Some(cluster) if cluster.options.same_hardware(&options) && cluster.checks_locks(&options)? => {
            processor_time = cluster.processor_time();
            cluster.install(&options.setups)?;
            *guard = Some(cluster);
        }
        other => {
            // First the old ones go: two sets of machines at a time are too much for a small host.
            drop(other);
            *guard = Some(Cluster::boot(options)?);
        }
    }
    Ok(Shared { guard, finished: false, began, processor_time })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: &str =
        "unreferenced object 0xffff888008f90de0 (size 16):\n  comm \"drbdsetup-84\", pid 607, jiffies 4294967031\n  \
                        backtrace (crc 0):\n    __kmalloc_noprof+0x2a1/0x490\n    fifo_alloc+0x1e/0x60 [drbd]\n    \
                        drbd_nl_attach_doit+0x4ae/0x1690 [drbd]\n    genl_rcv_msg+0x22c/0x260\n";

    #[test]
    fn only_the_c_module_leaves_its_plan_behind() {
        assert_eq!(not_of_the_c_module(PLAN, Module::Stock, None), "");
        assert_eq!(not_of_the_c_module(PLAN, Module::Ours, None), PLAN);
        assert_eq!(not_of_the_c_module(PLAN, Module::None, None), PLAN);
        let options = PLAN.replace("fifo_alloc", "__disk_conf_from_attrs").replace("attach", "chg_disk_opts");
        assert_eq!(not_of_the_c_module(&options, Module::Stock, None), "");
        let told = "receive_SyncParam+0x7b1/0xd80 [drbd]\n    drbd_receiver+0x2afb/0x2c60 [drbd]\n    drbd_thread_setup+0xbc/0x280 [drbd]";
        let told = PLAN.replace("drbd_nl_attach_doit+0x4ae/0x1690 [drbd]", told);
        assert_eq!(not_of_the_c_module(&told, Module::Stock, None), "");
        assert_eq!(not_of_the_c_module(&told, Module::Ours, None), told);
        let other = PLAN.replace("fifo_alloc", "lc_create");
        assert_eq!(not_of_the_c_module(&format!("{PLAN}{other}{PLAN}"), Module::Stock, None), other);
        assert_eq!(not_of_the_c_module("", Module::Stock, None), "");
    }

    #[test]
    fn what_is_older_than_the_module_is_of_the_one_before() {
        assert_eq!(not_of_the_c_module(PLAN, Module::Ours, Some(4_294_967_032)), "");
        assert_eq!(not_of_the_c_module(PLAN, Module::Ours, Some(4_294_967_031)), PLAN);
    }
}
