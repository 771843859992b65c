//! The serial console of a machine: a log file that QEMU writes, and the lines in it that a healthy kernel never prints.
//!
//! The checkers of the debug kernel find mistakes in the C module as well. A test is not to fail for those; [`Known`] lists them,
//! and [`Console::check`] tells them from ours by the module that was loaded.

use crate::client::tail;
use crate::cluster::Module;
use crate::limit::is_debug_kernel;
use anyhow::{bail, Context, Result};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

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

/// Lines with an alarm in them that say nothing. Any healthy machine prints the first two; the third comes where allocations are made to
/// fail, also those of kmemleak, which then looks more closely at the block than it would have; and whoever asks kmemleak for the
/// last one reads what it is about.
const HARMLESS: &[&str] = &[
    "kmemleak: Kernel memory leak detector initialized",
    "kmemleak: Automatic memory scanning thread ",
    "kmemleak: Cannot allocate a scan area, scanning the full object",
    " new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
];

/// Lines of context that are shown before and after an alarm.
const CONTEXT_BEFORE: usize = 5;
const CONTEXT_AFTER: usize = 40;

/// A mistake of the C module that the debug kernel complains about.
struct Known {
    /// What the report says, in the line of the alarm or the one before it.
    says: &'static str,
    /// The functions of the C module on the way there, all of them in the call trace, each called by the next.
    way: &'static [&'static str],
}

const KNOWN: &[Known] = &[
    // The worker takes a mutex while it is about to sleep.
    Known {
        says: "do not call blocking ops when !TASK_RUNNING",
        way: &["conn_prepare_command", "maybe_send_barrier", "wait_for_work", "drbd_worker"],
    },
    // `disk-options` looks at what it has freed.
    Known { says: "KASAN: slab-use-after-free in drbd_nl_chg_disk_opts_doit", way: &["drbd_nl_chg_disk_opts_doit"] },
];

/// What ends a report: a warning says so, of the others it is the last call trace.
const END: &[&str] = &["---[ end trace", "</TASK>"];

/// Lines that a report may have from its alarm to its end.
const LONGEST_REPORT: usize = 250;

/// The log of one machine; it goes on over power cuts and reboots.
#[derive(Clone, Debug)]
pub struct Console {
    name: String,
    path: PathBuf,
    /// From where on which module was loaded.
    modules: Arc<Mutex<Vec<(Mark, Module)>>>,
}

/// A place in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(usize);

impl Console {
    /// The console of the machine `name` whose log is at `path`.
    pub fn new(name: &str, path: PathBuf) -> Console {
        Console { name: name.to_owned(), path, modules: Arc::default() }
    }

    /// From now on this module is loaded, or about to be.
    pub(crate) fn loads(&self, module: Module) {
        self.modules.lock().unwrap_or_else(PoisonError::into_inner).push((self.mark(), module));
    }

    /// The module that was loaded last, if any was.
    pub(crate) fn last_loaded(&self) -> Module {
        let modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = modules.iter().rev().map(|(_, module)| *module).find(|module| *module != Module::None);
        loaded.unwrap_or(Module::None)
    }

    /// The module that is loaded.
    pub fn loaded(&self) -> Module {
        self.module_at(self.mark())
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

    /// Fails when the kernel has complained after `mark`, and shows the complaint. What the debug kernel has to say about the C
    /// module does not count where that was loaded; it is returned.
    pub fn check(&self, mark: Mark) -> Result<Vec<&'static str>> {
        self.check_with(mark, is_debug_kernel())
    }

    fn check_with(&self, mark: Mark, debug_kernel: bool) -> Result<Vec<&'static str>> {
        let lines = self.lines_since(mark);
        let mut known = Vec::new();
        let mut rest = 0;
        while let Some(report) = Report::first(&lines, rest) {
            let theirs = debug_kernel && self.module_at(lines[report.alarm].place) == Module::Stock;
            match report.known().filter(|_| theirs) {
                Some((says, end)) => {
                    known.push(says);
                    rest = end;
                }
                None => {
                    let path = self.path.display();
                    bail!("the kernel of {} complained ({path}):\n{}", self.name, report.excerpt())
                }
            }
        }
        Ok(known)
    }

    fn lines_since(&self, mark: Mark) -> Vec<Line> {
        let bytes = std::fs::read(&self.path).unwrap_or_default();
        let mut place = mark.0;
        let lines = bytes.get(mark.0..).unwrap_or_default().split(|&byte| byte == b'\n');
        let line = |bytes: &[u8]| {
            let line = Line { place: Mark(place), text: String::from_utf8_lossy(bytes).replace('\r', "") };
            place += bytes.len() + 1;
            line
        };
        lines.map(line).collect()
    }

    fn module_at(&self, place: Mark) -> Module {
        let modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        modules.iter().rev().find(|(from, _)| *from <= place).map_or(Module::None, |(_, module)| *module)
    }

    /// Copies the log, for instance next to a test report.
    pub fn copy_to(&self, path: &Path) -> Result<()> {
        std::fs::copy(&self.path, path)
            .with_context(|| format!("copying {} to {}", self.path.display(), path.display()))?;
        Ok(())
    }
}

struct Line {
    place: Mark,
    text: String,
}

/// A complaint in a log.
struct Report<'a> {
    lines: &'a [Line],
    /// Its line.
    alarm: usize,
}

impl<'a> Report<'a> {
    /// The first one from a line on.
    fn first(lines: &'a [Line], from: usize) -> Option<Report<'a>> {
        let is_alarm = |line: &Line| {
            ALARMS.iter().any(|alarm| line.text.contains(alarm))
                && !HARMLESS.iter().any(|harmless| line.text.contains(harmless))
        };
        let alarm = lines.iter().skip(from).position(is_alarm)?.checked_add(from)?;
        Some(Report { lines, alarm })
    }

    /// It and the lines around it.
    fn excerpt(&self) -> String {
        let end = (self.alarm + CONTEXT_AFTER).min(self.lines.len());
        let lines = &self.lines[self.alarm.saturating_sub(CONTEXT_BEFORE)..end];
        lines.iter().map(|line| line.text.as_str()).collect::<Vec<_>>().join("\n")
    }

    /// Whether it is one of [`KNOWN`]: what it says, and the line behind it.
    fn known(&self) -> Option<(&'static str, usize)> {
        let rest = &self.lines[self.alarm..];
        let last = rest.iter().take(LONGEST_REPORT).position(|line| END.iter().any(|end| line.text.contains(end)))?;
        let body = &rest[..=last];
        // Modules from outside of the kernel's tree are marked with an O; then it is ours that is loaded. It may have been before.
        let loaded = |line: &Line| line.text.split("[last unloaded").next().is_some_and(|text| text.contains("drbd("));
        if body.iter().any(loaded) {
            return None;
        }
        let head = &self.lines[self.alarm.saturating_sub(1)..=self.alarm];
        let way: Vec<&str> = body.iter().filter_map(|line| frame(&line.text)).collect();
        let fits = |known: &&Known| {
            head.iter().any(|line| line.text.contains(known.says))
                && way.windows(known.way.len()).any(|frames| frames == known.way)
        };
        KNOWN.iter().find(fits).map(|known| (known.says, self.alarm + last + 1))
    }
}

/// The function of the module `drbd` in a line of a call trace; none where the kernel is not sure (`?`).
fn frame(line: &str) -> Option<&str> {
    let (_, line) = line.split_once("]  ")?;
    line.strip_suffix(" [drbd]").filter(|frame| !frame.starts_with('?'))?.split('+').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log in a file of its own.
    struct Log(Console);

    impl Log {
        fn new(name: &str, text: &str) -> Log {
            let path = std::env::temp_dir().join(format!("console-{}-{name}", std::process::id()));
            std::fs::write(&path, text).unwrap();
            Log(Console::new("drbd1", path))
        }

        fn with(name: &str, module: Module, text: &str) -> Log {
            let log = Log::new(name, "");
            log.0.loads(module);
            std::fs::write(log.0.path(), text).unwrap();
            log
        }

        fn alarm(&self) -> Option<String> {
            self.0.check_with(Mark::default(), true).err().map(|error| error.to_string())
        }
    }

    impl Drop for Log {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(self.0.path());
        }
    }

    #[test]
    fn complaints_are_found_with_what_stands_around_them() {
        for (index, line) in [
            "[   12.3] WARNING: CPU: 0 PID: 1 at drivers/block/x.c:3 f+0x3/0x9 [drbd]",
            "[   12.3] INFO: task drbd_w_r0:812 blocked for more than 45 seconds.",
            "[   12.3] rust_kernel: panicked at src/drbd.rs:3:4:",
            "[   12.3] BUG: unable to handle page fault for address: 0000000000001000",
            "[   12.3] WARNING: possible circular locking dependency detected",
            "[   12.3] kmemleak: Kernel memory leak detector disabled",
        ]
        .into_iter()
        .enumerate()
        {
            for module in [Module::Ours, Module::Stock] {
                let text = format!("a\nb\nc\nd\ne\nf\ng\n{line}\nCall Trace:\n f\n </TASK>");
                let said = Log::with(&format!("alarm{index}"), module, &text).alarm().expect(line);
                assert!(said.contains("\nc\n") && !said.contains("\nb\n") && said.ends_with(" </TASK>"), "{said}");
            }
        }
    }

    #[test]
    fn ordinary_lines_are_not_complaints() {
        let text = "[    0.0] Linux version 7.3.4\n\
                    [    0.3] kmemleak: Kernel memory leak detector initialized (mem pool available: 15783)\n\
                    [    8.1] kmemleak: Cannot allocate a scan area, scanning the full object\n\
                    [    9.1] drbd: loading out-of-tree module taints kernel.\n\
                    [    9.2] drbd r0: conn( WFConnection -> WFReportParams )\n\
                    [    9.3] EXT4-fs warning (device vda): mounting fs with errors\n";
        assert_eq!(Log::with("ordinary", Module::Ours, text).alarm(), None);
    }

    /// What the debug kernel says of the C module's worker.
    const WORKER: &str = "\
[  144.344856] do not call blocking ops when !TASK_RUNNING; state=1 set at [<ffffffff8112cc62>] prepare_to_wait+0x33/0x150\r
[  144.344856] WARNING: kernel/sched/core.c:9191 at __might_sleep+0x6a/0x90, CPU#0: drbd_w_r0/141\r
[  144.348856] Modules linked in: drbd lru_cache\r
[  144.356857] Call Trace:\r
[  144.360857]  <TASK>\r
[  144.360857]  ? conn_prepare_command+0x19/0x80 [drbd]\r
[  144.360857]  __mutex_lock+0x5d/0xe80\r
[  144.364857]  conn_prepare_command+0x19/0x80 [drbd]\r
[  144.364857]  maybe_send_barrier+0x78/0x140 [drbd]\r
[  144.368857]  wait_for_work+0x406/0x670 [drbd]\r
[  144.368857]  ? wait_for_work+0x9b/0x670 [drbd]\r
[  144.368857]  drbd_worker+0x196/0xa90 [drbd]\r
[  144.376858]  ret_from_fork_asm+0x11/0x20\r
[  144.376858]  </TASK>\r
[  144.380858] ---[ end trace 0000000000000000 ]---\r
";

    #[test]
    fn the_debug_kernel_may_complain_about_the_c_module() {
        let log = Log::with("theirs", Module::Stock, &format!("boot\r\n{WORKER}more\r\n{WORKER}"));
        assert_eq!(log.0.check_with(Mark::default(), true).unwrap(), [KNOWN[0].says; 2]);
        assert!(log.0.check_with(Mark::default(), false).is_err(), "the stock kernel does not know why");
        let text = WORKER.replace("drbd lru_cache", "drbd lru_cache [last unloaded: drbd(O)]");
        assert_eq!(Log::with("unloaded", Module::Stock, &text).alarm(), None, "ours was loaded before");
    }

    #[test]
    fn a_use_after_free_of_the_c_module_is_its_own() {
        const REPORT: &str = "\
[  226.264446] BUG: KASAN: slab-use-after-free in drbd_nl_chg_disk_opts_doit+0x690/0x9d0 [drbd]\r
[  226.265451] Read of size 1 at addr ffff88800d1e2150 by task drbdsetup-84/687\r
[  226.265747] Call Trace:\r
[  226.265747]  <TASK>\r
[  226.265747]  dump_stack_lvl+0x67/0x90\r
[  226.265747]  ? drbd_nl_chg_disk_opts_doit+0x690/0x9d0 [drbd]\r
[  226.265747]  kasan_report+0xb8/0xf0\r
[  226.265747]  drbd_nl_chg_disk_opts_doit+0x690/0x9d0 [drbd]\r
[  226.265747]  genl_family_rcv_msg_doit+0xdc/0x120\r
[  226.265747]  </TASK>\r
[  226.265747] Allocated by task 687:\r
[  226.265747]  drbd_nl_chg_disk_opts_doit+0x114/0x9d0 [drbd]\r
";
        assert_eq!(Log::with("freed", Module::Stock, REPORT).alarm(), None);
        assert!(Log::with("freed-ours", Module::Ours, REPORT).alarm().is_some());
        let elsewhere = REPORT.replace("free in drbd_nl_chg_disk_opts_doit", "free in drbd_nl_attach_doit");
        assert!(Log::with("freed-elsewhere", Module::Stock, &elsewhere).alarm().is_some());
    }

    #[test]
    fn nothing_else_is_taken_for_the_c_modules_own() {
        let spared = |log: &Log| log.alarm().is_none();
        assert!(!spared(&Log::with("ours", Module::Ours, WORKER)));
        assert!(!spared(&Log::with("none", Module::None, WORKER)));
        let text = WORKER.replace("in: drbd", "in: drbd(O)");
        assert!(!spared(&Log::with("outside", Module::Stock, &text)), "by its mark it is ours");
        for (name, from, to) in [
            ("kind", "do not call blocking ops", "something else"),
            ("way", "  maybe_send_barrier+", "  drbd_send_state+"),
            ("unsure", "  wait_for_work+0x406", "  ? wait_for_work+0x406"),
            ("where", "drbd_worker+0x196/0xa90 [drbd]", "drbd_worker+0x196/0xa90"),
        ] {
            assert!(!spared(&Log::with(name, Module::Stock, &WORKER.replace(from, to))), "{name}");
        }
        let open = WORKER.split("[  144.376858]  </TASK>").next().unwrap_or_default();
        assert!(!spared(&Log::with("open", Module::Stock, open)), "a report without end");
        assert!(!spared(&Log::with("next", Module::Stock, &format!("{WORKER}BUG: KASAN: wild-memory-access in f\n"))));
    }

    #[test]
    fn a_complaint_is_about_the_module_that_was_loaded_then() {
        let log = Log::new("change", "");
        log.0.loads(Module::Stock);
        std::fs::write(log.0.path(), WORKER).unwrap();
        log.0.loads(Module::Ours);
        assert!(log.alarm().is_none());
        std::fs::write(log.0.path(), WORKER.repeat(2)).unwrap();
        assert!(log.alarm().is_some());
    }

    #[test]
    fn only_what_came_after_the_mark_counts() {
        let log = Log::new("mark", "");
        let (console, path) = (&log.0, log.0.path());
        assert_eq!(console.text(), "");
        std::fs::write(path, "BUG: old\r\n").unwrap();
        let mark = console.mark();
        assert!(console.check(Mark::default()).is_err());
        assert!(console.check(mark).is_ok());
        std::fs::write(path, "BUG: old\r\nBUG: new\r\n").unwrap();
        let error = console.check(mark).unwrap_err().to_string();
        assert!(error.contains("BUG: new") && !error.contains("BUG: old"), "{error}");
    }
}
