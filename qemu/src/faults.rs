//! What fails in a machine on demand: disks that fail, are slow or hang, by the device mapper (a device over a real one whose
//! table changes), and, with the debug kernel, memory that cannot be had.

use crate::Machine;
use anyhow::{Context, Result};
use std::time::Duration;

const SECTOR_BYTES: u64 = 512;

/// A device-mapper device over a real disk of a machine. At first it only passes everything on.
pub struct FaultyDisk<'a> {
    machine: &'a Machine,
    name: String,
    lower: String,
    sectors: u64,
}

impl Machine {
    /// Puts a device `/dev/mapper/NAME` over a disk (`/dev/sdb1`).
    pub fn faulty_disk(&self, name: &str, lower: &str) -> Result<FaultyDisk<'_>> {
        self.run_ok("modprobe -a dm-mod dm-delay dm-flakey")?;
        let sectors = self.run_ok(&format!("blockdev --getsz {lower}"))?;
        let sectors = sectors.parse().with_context(|| format!("size of {lower}: {sectors:?}"))?;
        let disk = FaultyDisk { machine: self, name: name.into(), lower: lower.into(), sectors };
        let table = disk.linear(0, sectors);
        self.run_ok(&format!("dmsetup create {name} --table '{table}'"))?;
        Ok(disk)
    }
}

/// Allocations let fail at most, between two calls of [`Machine::fail_allocations`].
const MOST_FAILURES: u64 = 1_000_000;

/// Sets up both ways to fail of the kernel, `failslab` and `fail_page_alloc`, for allocations with code of the module `drbd` in
/// their call chain, whatever the task, those that may sleep included. Arguments: probability in percent, most failures.
const FAIL_ALLOCATIONS: &str = r#"
set -e
text=$(awk '$2 ~ /^[tT]$/ && $4 == "[drbd]" { print $1 }' /proc/kallsyms | sort)
test -n "$text"
for way in failslab fail_page_alloc; do
    cd /sys/kernel/debug/$way
    echo 0 >probability
    echo 0x${text%%$'\n'*} >require-start
    printf '0x%x' $((0x${text##*$'\n'} + 4096)) >require-end
    echo 32 >stacktrace-depth
    echo N >task-filter
    echo N >ignore-gfp-wait
    echo 0 >verbose
    echo 1 >interval
    echo $most >times
    echo $percent >probability
done"#;

impl Machine {
    /// Lets so many of a hundred allocations of the module `drbd` fail, also those that it causes in the network stack, the
    /// block layer and elsewhere. The debug kernel can do that.
    pub fn fail_allocations(&self, percent: u32) -> Result<()> {
        let smallest = "echo 0 >/sys/kernel/debug/fail_page_alloc/min-order";
        self.run_ok(&format!("percent={percent} most={MOST_FAILURES}; {smallest}; {FAIL_ALLOCATIONS}")).map(|_| ())
    }

    /// No allocation fails any more. Returns how many did.
    pub fn stop_failing_allocations(&self) -> Result<u64> {
        let left = self.run_ok(
            "cd /sys/kernel/debug; for way in failslab fail_page_alloc; do echo 0 >$way/probability; cat $way/times; done",
        )?;
        let left = left.lines().map(|left| left.parse::<u64>().with_context(|| format!("failures left: {left:?}")));
        left.map(|left| Ok(MOST_FAILURES.saturating_sub(left?))).sum()
    }
}

impl FaultyDisk<'_> {
    /// The device to use instead of the real one.
    pub fn path(&self) -> String {
        format!("/dev/mapper/{}", self.name)
    }

    /// Everything is passed on.
    pub fn heal(&self) -> Result<()> {
        self.load(&self.linear(0, self.sectors))
    }

    /// Everything fails.
    pub fn fail(&self) -> Result<()> {
        self.load(&format!("0 {} error", self.sectors))
    }

    /// Reads and writes fail that touch these bytes (rounded out to whole sectors of 512 bytes).
    pub fn fail_range(&self, start_bytes: u64, length_bytes: u64) -> Result<()> {
        let start = (start_bytes / SECTOR_BYTES).min(self.sectors);
        let end = start_bytes.saturating_add(length_bytes).div_ceil(SECTOR_BYTES).min(self.sectors);
        let bad = if end > start { format!("{start} {} error", end - start) } else { String::new() };
        let parts = [self.linear(0, start), bad, self.linear(end, self.sectors)];
        self.load(&parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n"))
    }

    /// Writes fail, reads succeed.
    pub fn fail_writes(&self) -> Result<()> {
        self.load(&format!("0 {} flakey {} 0 0 1 1 error_writes", self.sectors, self.lower))
    }

    /// Reads and writes take so much longer.
    pub fn delay(&self, read: Duration, write: Duration) -> Result<()> {
        let (read, write, lower) = (read.as_millis(), write.as_millis(), &self.lower);
        self.load(&format!("0 {} delay {lower} 0 {read} {lower} 0 {write}", self.sectors))
    }

    /// Nothing comes back any more, until [`FaultyDisk::heal`].
    pub fn hang(&self) -> Result<()> {
        self.machine.run_ok(&format!("dmsetup suspend --noflush --nolockfs {}", self.name)).map(|_| ())
    }

    /// Removes the device; nobody may use it any more.
    pub fn remove(self) -> Result<()> {
        self.machine.run_ok(&format!("dmsetup remove {}", self.name)).map(|_| ())
    }

    fn linear(&self, start: u64, end: u64) -> String {
        if end <= start {
            return String::new();
        }
        format!("{start} {} linear {} {start}", end - start, self.lower)
    }

    fn load(&self, table: &str) -> Result<()> {
        let name = &self.name;
        self.machine
            .run_ok(&format!(
                "dmsetup load {name} --table '{table}' && dmsetup suspend --noflush --nolockfs {name} && \
                 dmsetup resume {name}"
            ))
            .map(|_| ())
    }
}
