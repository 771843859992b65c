//! Resource `r0` on two machines.

use crate::acks::Scan;
use crate::config::{self, Config};
use crate::guest;
use crate::helpers;
use crate::proc_drbd::Device;
use anyhow::{bail, Context, Result};
use lab::{shared, stretched, Disk, Machine, Module, Options, Shared, Tools, ADDRESSES, NAMES};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Limit for what takes a moment: a state change, a connection.
pub const SOON: Duration = Duration::from_secs(30);

/// Limit for a resync of the whole disk.
pub const RESYNC: Duration = Duration::from_secs(120);

/// MiB of `/dev/sdb1`.
pub const DISK_MIB: u64 = 64;

/// Pause between two looks at a state.
const POLL: Duration = Duration::from_millis(100);

/// Who runs what. The first machine is the one that is primary first.
#[derive(Clone, Copy, Debug)]
pub struct Pairing {
    /// The kernel modules of the first and the second machine.
    pub modules: [Module; 2],
    /// Their tools.
    pub tools: [Tools; 2],
}

impl Pairing {
    /// Only ours.
    pub const OURS: Pairing = Pairing::new([Module::Ours, Module::Ours], [Tools::Ours, Tools::Ours]);
    /// Ours on the first machine, the C module on the second; unmodified drbd-utils on both.
    pub const OURS_PRIMARY: Pairing = Pairing::new([Module::Ours, Module::Stock], [Tools::Utils, Tools::Utils]);
    /// The C module on the first machine, ours on the second; our tools on both.
    pub const C_PRIMARY: Pairing = Pairing::new([Module::Stock, Module::Ours], [Tools::Ours, Tools::Ours]);

    /// Modules and tools of the first and the second machine.
    pub const fn new(modules: [Module; 2], tools: [Tools; 2]) -> Pairing {
        Pairing { modules, tools }
    }

    /// The machines for it. `LAB_INSTEAD=module`, `tools` or `both` puts the C module, drbd-utils or both everywhere where
    /// ours would be: so the tests themselves are tested.
    pub fn options(self) -> Options {
        let Pairing { modules, tools } = self.replaced();
        Options::default()
            .name("machines")
            // Each slab cache for itself: merged ones hide who leaks.
            .kernel_arguments("slab_nomerge")
            .disks(&[Disk::whole(64), Disk::partitioned(DISK_MIB)])
            .modules(modules)
            .each_tools(tools)
    }

    /// What really runs, after `LAB_INSTEAD`.
    pub fn replaced(mut self) -> Pairing {
        if Self::is_module_replaced() {
            self.modules = self.modules.map(|module| match module {
                Module::Ours => Module::Stock,
                other => other,
            });
        }
        if matches!(instead().as_str(), "tools" | "both") {
            self.tools = [Tools::Utils; 2];
        }
        self
    }

    /// Whether the C module stands in for ours.
    pub fn is_module_replaced() -> bool {
        matches!(instead().as_str(), "module" | "both")
    }
}

fn instead() -> String {
    std::env::var("LAB_INSTEAD").unwrap_or_default()
}

/// Resource `r0` on both machines, or on its way there.
pub struct Pair {
    cluster: Shared,
}

impl Pair {
    /// Machines with this configuration; nothing is up yet.
    pub fn new(pairing: Pairing, config: &Config) -> Result<Pair> {
        Pair::with_options(pairing.options(), config)
    }

    /// The same with modules that run [`helpers`] for events.
    pub fn with_helper(pairing: Pairing, config: &Config) -> Result<Pair> {
        let options = pairing.options().parameters(&format!("usermode_helper={}", helpers::PATH));
        let pair = Pair::with_options(options, config)?;
        pair.machines().iter().try_for_each(helpers::install)?;
        Ok(pair)
    }

    fn with_options(options: Options, config: &Config) -> Result<Pair> {
        let pair = Pair { cluster: shared(options)? };
        for machine in pair.machines() {
            guest::install(machine)?;
        }
        pair.configure(config)?;
        Ok(pair)
    }

    /// The same, with meta data written, up, and the whole disk copied from the first machine, which is primary then.
    pub fn mirrored(pairing: Pairing, config: &Config) -> Result<Pair> {
        let pair = Pair::new(pairing, config)?;
        pair.mirror()?;
        Ok(pair)
    }

    /// Writes the meta data, brings both up, and copies the whole disk from the first machine, which is primary then.
    pub fn mirror(&self) -> Result<()> {
        self.both("drbdadm create-md --force r0")?;
        self.both("drbdadm up r0")?;
        self.wait_connected()?;
        self.first().run_ok("drbdadm primary --force r0")?;
        self.wait_in_sync(RESYNC)
    }

    /// The machines.
    pub fn cluster(&self) -> &lab::Cluster {
        &self.cluster
    }

    /// Both machines.
    pub fn machines(&self) -> &[Machine] {
        self.cluster.machines()
    }

    /// The first machine.
    pub fn first(&self) -> &Machine {
        self.cluster.drbd1()
    }

    /// The second machine.
    pub fn second(&self) -> &Machine {
        self.cluster.drbd2()
    }

    /// Writes the configuration file of both.
    pub fn configure(&self, config: &Config) -> Result<()> {
        self.machines().iter().try_for_each(|machine| machine.put(config::PATH, config.to_string().as_bytes()))
    }

    /// Switches a machine on after a power cut; its files are as they were, whatever its root disk had not stored yet.
    pub fn power_on(&self, machine: &Machine, config: &Config) -> Result<()> {
        machine.power_on()?;
        guest::install(machine)?;
        machine.put(config::PATH, config.to_string().as_bytes())
    }

    /// Runs a command first on the first machine, then on the second: what takes a connection down. When both ask for that in the
    /// same moment the C module may refuse (concurrent state changes), and so does ours as the node that decides.
    pub fn one_by_one(&self, command: &str) -> Result<()> {
        self.machines().iter().try_for_each(|machine| machine.run_ok(command).map(|_| ()))
    }

    /// Runs a command on both at the same time; both must succeed.
    pub fn both(&self, command: &str) -> Result<()> {
        thread::scope(|scope| {
            let other = scope.spawn(|| self.second().run_ok(command));
            self.first().run_ok(command)?;
            other.join().unwrap_or_else(|_| bail!("`{command}` on both: a thread panicked"))?;
            Ok(())
        })
    }

    /// Changes options of the connection on one machine while everything runs.
    pub fn net_options_on(&self, machine: &Machine, options: &str) -> Result<()> {
        let port = Config::default().port;
        let [own, peer] = if machine.name() == NAMES[0] { ADDRESSES } else { [ADDRESSES[1], ADDRESSES[0]] };
        machine.run_ok(&format!("drbdsetup net-options ipv4:{own}:{port} ipv4:{peer}:{port} {options}"))?;
        Ok(())
    }

    /// The same on both, one after the other.
    pub fn net_options(&self, options: &str) -> Result<()> {
        self.machines().iter().try_for_each(|machine| self.net_options_on(machine, options))
    }

    /// Changes options of the disk on both machines while everything runs.
    pub fn disk_options(&self, options: &str) -> Result<()> {
        self.both(&format!("drbdsetup disk-options 0 {options}"))
    }

    /// The device on one machine.
    pub fn device(&self, machine: &Machine) -> Result<Device> {
        device(machine)
    }

    /// Waits until the device on one machine looks as wanted.
    pub fn wait(
        &self,
        machine: &Machine,
        limit: Duration,
        what: &str,
        wanted: impl Fn(&Device) -> bool,
    ) -> Result<Device> {
        wait(machine, limit, what, wanted)
    }

    /// Waits until both are connected and the handshake is over, whatever follows it.
    pub fn wait_connected(&self) -> Result<()> {
        for machine in self.machines() {
            self.wait(machine, SOON, "a connection", |device| {
                device.connection == "Connected" || device.connection.starts_with("Sync")
            })?;
        }
        Ok(())
    }

    /// Waits until both are connected and have the same data.
    pub fn wait_in_sync(&self, limit: Duration) -> Result<()> {
        for machine in self.machines() {
            self.wait(machine, limit, "both disks UpToDate", |device| {
                device.connection == "Connected" && device.disks == "UpToDate/UpToDate"
            })?;
        }
        Ok(())
    }

    /// Waits until both sides have nothing under way any more. Under protocols A and B a write is done before the peer has it
    /// on its disk.
    pub fn wait_idle(&self) -> Result<()> {
        let idle = |device: &Device| ["lo", "pe", "ua", "ap"].iter().all(|name| device.counters.get(*name) == Some(&0));
        // What the first has sent is answered before its counter is zero; only then the second's counters tell the rest.
        self.wait(self.first(), SOON, "nothing under way", idle)?;
        self.wait(self.second(), SOON, "nothing under way", idle)?;
        self.wait(self.first(), SOON, "nothing under way", idle)?;
        Ok(())
    }

    /// Makes the other machine primary; `from` is.
    pub fn hand_over(&self, from: &Machine, to: &Machine) -> Result<()> {
        from.run_ok("drbdadm secondary r0")?;
        to.run_ok("drbdadm primary r0")?;
        Ok(())
    }

    /// What the device holds, as its primary reads it.
    pub fn scan(&self, machine: &Machine, sectors: u64) -> Result<Scan> {
        guest::scan(machine, "/dev/drbd0", 0, sectors)
    }

    /// Compares the lower disks byte by byte, as the host sees them, over the part that the application can use.
    pub fn compare_disks(&self) -> Result<()> {
        self.wait_idle()?;
        let text = self.first().run_ok("cat /sys/block/drbd0/size")?;
        let sectors: u64 = text.parse().with_context(|| format!("size of /dev/drbd0: {text:?}"))?;
        let length = sectors * 512;
        if length == 0 {
            bail!("/dev/drbd0 has no size");
        }
        let files = [self.first().disk_file("sdb"), self.second().disk_file("sdb")];
        compare_disk_files([&files[0], &files[1]], Disk::partitioned(DISK_MIB).start_bytes(), length)
    }

    /// The end of a test that went well: everything down, module unloaded, consoles checked.
    pub fn finish(self) -> Result<()> {
        self.cluster.finish()
    }
}

/// Minor 0 of a machine.
pub fn device(machine: &Machine) -> Result<Device> {
    minor(machine, 0)
}

/// Any minor of a machine.
pub fn minor(machine: &Machine, minor: u32) -> Result<Device> {
    Device::parse(&machine.run_ok("cat /proc/drbd")?, minor)
}

/// Waits until minor 0 of a machine looks as wanted.
pub fn wait(machine: &Machine, limit: Duration, what: &str, wanted: impl Fn(&Device) -> bool) -> Result<Device> {
    wait_minor(machine, 0, limit, what, wanted)
}

/// Waits until a minor of a machine looks as wanted.
pub fn wait_minor(
    machine: &Machine,
    number: u32,
    limit: Duration,
    what: &str,
    wanted: impl Fn(&Device) -> bool,
) -> Result<Device> {
    let limit = stretched(limit);
    let until = Instant::now() + limit;
    loop {
        let device = minor(machine, number)?;
        if wanted(&device) {
            return Ok(device);
        }
        if Instant::now() > until {
            bail!(
                "{}: expected {what} within {:.0} s, found {device:?}\n{}",
                machine.name(),
                limit.as_secs_f32(),
                machine.console().tail(30)
            );
        }
        thread::sleep(POLL);
    }
}

/// Compares a part of two files.
pub fn compare_disk_files(paths: [&Path; 2], start: u64, length: u64) -> Result<()> {
    const CHUNK_BYTES: u64 = 1 << 20;
    let files = [File::open(paths[0])?, File::open(paths[1])?];
    let mut buffers = [vec![0; CHUNK_BYTES as usize], vec![0; CHUNK_BYTES as usize]];
    let mut different = Vec::new();
    let mut at = 0;
    while at < length {
        let count = CHUNK_BYTES.min(length - at) as usize;
        for (file, buffer) in files.iter().zip(&mut buffers) {
            file.read_exact_at(&mut buffer[..count], start + at)?;
        }
        let [first, second] = [&buffers[0][..count], &buffers[1][..count]];
        if first != second {
            let blocks = first.chunks(4096).zip(second.chunks(4096));
            different.extend(
                (at / 4096..).zip(blocks).filter(|(_, (first, second))| first != second).map(|(block, _)| block),
            );
        }
        at += count as u64;
    }
    if different.is_empty() {
        return Ok(());
    }
    let shown: Vec<String> = different.iter().take(10).map(u64::to_string).collect();
    bail!("the lower disks differ in {} blocks of 4 KiB, the first ones: {}", different.len(), shown.join(", "))
}
