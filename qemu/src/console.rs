//! The serial console of a machine: a log file that QEMU writes, and the lines in it that a healthy kernel never prints.

use crate::client::tail;
use anyhow::{bail, Context, Result};
use std::path::{Path, PathBuf};

/// What a kernel prints when something is wrong with it; any line that contains one of these fails
/// [`Console::check`].
const ALARMS: &[&str] = &[
    "WARNING: ",
    "BUG: ",
    "BUG at ",
    "kernel BUG",
    "Oops",
    "Kernel panic",
    "general protection fault",
    "blocked for more than",
    "soft lockup",
    "hard LOCKUP",
    "rcu_preempt self-detected stall",
    "rcu_preempt detected stalls",
    "possible circular locking",
    "possible recursive locking",
    "inconsistent lock state",
    "suspicious RCU usage",
    "held lock freed",
    "scheduling while atomic",
    "sleeping function called from invalid context",
    "KASAN",
    "UBSAN",
    "rust_kernel: panicked",
    "kmemleak: ",
    "Objects remaining",
    "list_add corruption",
    "list_del corruption",
    "refcount_t: ",
    "stack-protector",
    "page allocation failure",
    "Out of memory",
    "NETDEV WATCHDOG",
];

/// Lines with an alarm in them that any healthy boot prints.
const HARMLESS: &[&str] =
    &["kmemleak: Kernel memory leak detector", "kmemleak: Automatic memory scanning thread started"];

/// Lines of context that are shown before and after an alarm.
const CONTEXT_BEFORE: usize = 5;
const CONTEXT_AFTER: usize = 40;

/// The log of one machine; it goes on over power cuts and reboots.
#[derive(Clone, Debug)]
pub struct Console {
    name: String,
    path: PathBuf,
}

/// A place in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark(usize);

impl Console {
    /// The console of the machine `name` whose log is at `path`.
    pub fn new(name: &str, path: PathBuf) -> Console {
        Console { name: name.to_owned(), path }
    }

    /// Where the log is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The end of the log now.
    pub fn mark(&self) -> Mark {
        Mark(std::fs::metadata(&self.path).map_or(0, |data| usize::try_from(data.len()).unwrap_or(usize::MAX)))
    }

    /// The whole log; empty before the first start.
    pub fn text(&self) -> String {
        self.since(Mark::default())
    }

    /// What was printed after a mark.
    pub fn since(&self, mark: Mark) -> String {
        let bytes = std::fs::read(&self.path).unwrap_or_default();
        String::from_utf8_lossy(bytes.get(mark.0..).unwrap_or_default()).replace('\r', "")
    }

    /// The last lines, for messages.
    pub fn tail(&self, lines: usize) -> String {
        format!("--- console of {} ({})\n{}", self.name, self.path.display(), tail(&self.text(), lines))
    }

    /// Fails when the kernel has complained after `mark`, and shows the complaint.
    pub fn check(&self, mark: Mark) -> Result<()> {
        let text = self.since(mark);
        match alarm(&text) {
            Some(excerpt) => bail!("the kernel of {} complained ({}):\n{excerpt}", self.name, self.path.display()),
            None => Ok(()),
        }
    }

    /// Copies the log, for instance next to a test report.
    pub fn copy_to(&self, path: &Path) -> Result<()> {
        std::fs::copy(&self.path, path)
            .with_context(|| format!("copying {} to {}", self.path.display(), path.display()))?;
        Ok(())
    }
}

/// The first alarm in a log, with the lines around it.
fn alarm(text: &str) -> Option<String> {
    let lines: Vec<&str> = text.lines().collect();
    let is_alarm = |line: &str| {
        ALARMS.iter().any(|alarm| line.contains(alarm)) && !HARMLESS.iter().any(|harmless| line.contains(harmless))
    };
    let at = lines.iter().position(|line| is_alarm(line))?;
    let end = (at + CONTEXT_AFTER).min(lines.len());
    Some(lines[at.saturating_sub(CONTEXT_BEFORE)..end].join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_found_with_what_stands_around_them() {
        for line in [
            "[   12.3] WARNING: CPU: 0 PID: 1 at drivers/block/x.c:3 f+0x3/0x9 [drbd]",
            "[   12.3] INFO: task drbd_w_r0:812 blocked for more than 45 seconds.",
            "[   12.3] rust_kernel: panicked at src/drbd.rs:3:4:",
            "[   12.3] BUG: unable to handle page fault for address: 0000000000001000",
            "[   12.3] WARNING: possible circular locking dependency detected",
        ] {
            let text = format!("a\nb\nc\nd\ne\nf\ng\n{line}\nCall Trace:\n f\n");
            let excerpt = alarm(&text).expect(line);
            assert!(excerpt.starts_with("c\n") && excerpt.ends_with("Call Trace:\n f"), "{excerpt}");
        }
    }

    #[test]
    fn ordinary_lines_are_not_complaints() {
        let text = "[    0.0] Linux version 7.3.4\n\
                    [    0.3] kmemleak: Kernel memory leak detector initialized (mem pool available: 15783)\n\
                    [    9.1] drbd: loading out-of-tree module taints kernel.\n\
                    [    9.2] drbd r0: conn( WFConnection -> WFReportParams )\n\
                    [    9.3] EXT4-fs warning (device vda): mounting fs with errors\n";
        assert_eq!(alarm(text), None);
    }

    #[test]
    fn only_what_came_after_the_mark_counts() {
        let path = std::env::temp_dir().join(format!("console-{}", std::process::id()));
        let console = Console::new("drbd1", path.clone());
        assert_eq!(console.text(), "");
        std::fs::write(&path, "BUG: old\r\n").unwrap();
        let mark = console.mark();
        assert!(console.check(Mark::default()).is_err());
        assert!(console.check(mark).is_ok());
        std::fs::write(&path, "BUG: old\r\nBUG: new\r\n").unwrap();
        let error = console.check(mark).unwrap_err().to_string();
        assert!(error.contains("BUG: new") && !error.contains("BUG: old"), "{error}");
        std::fs::remove_file(&path).unwrap();
    }
}
