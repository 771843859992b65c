//! Where things are: what the Makefile exports as `LAB_…` variables, or has written to `$DRBD_CACHE/lab.env` for programs that
//! are started without it. The environment wins. Where a run keeps its files.

use anyhow::{bail, Context, Result};
use std::collections::HashMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Logs of so many earlier runs are kept.
const KEPT_RUNS: usize = 30;

/// The files the machines are made of.
#[derive(Clone, Debug)]
pub struct Paths {
    cache: PathBuf,
    values: HashMap<String, String>,
}

impl Paths {
    /// Reads `$DRBD_CACHE/lab.env`, if it is there, and the environment.
    pub fn from_env() -> Result<Paths> {
        let cache = match env::var_os("DRBD_CACHE") {
            Some(path) => PathBuf::from(path),
            None => {
                PathBuf::from(env::var_os("HOME").context("neither DRBD_CACHE nor HOME is set")?).join(".cache/drbd-rs")
            }
        };
        let text = fs::read_to_string(cache.join("lab.env")).unwrap_or_default();
        let mut values = parse(&text);
        values.extend(env::vars().filter(|(name, value)| name.starts_with("LAB_") && !value.is_empty()));
        Ok(Paths { cache, values })
    }

    /// The directory for everything that outlives a checkout.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// The kernel image.
    pub fn vmlinuz(&self) -> Result<PathBuf> {
        self.file("LAB_VMLINUZ", "make images")
    }

    /// Whether the kernel is the debug kernel (KASAN, lockdep, kmemleak): slow and hungry.
    pub fn debug_kernel(&self) -> bool {
        self.values.get("LAB_KERNEL_RELEASE").is_some_and(|release| release.ends_with("-debug"))
    }

    /// The initial RAM disk.
    pub fn initramfs(&self) -> Result<PathBuf> {
        self.file("LAB_INITRAMFS", "make images")
    }

    /// The image of the root file system, never written to.
    pub fn rootfs(&self) -> Result<PathBuf> {
        self.file("LAB_ROOTFS", "make images")
    }

    /// The format of [`Paths::rootfs`] as QEMU names it.
    pub fn rootfs_format(&self) -> String {
        self.values.get("LAB_ROOTFS_FORMAT").cloned().unwrap_or_else(|| "qcow2".into())
    }

    /// Our kernel module.
    pub fn module(&self) -> Result<PathBuf> {
        self.file("LAB_MODULE", "make module")
    }

    /// Our tool, one program under three names.
    pub fn tools(&self) -> Result<PathBuf> {
        self.file("LAB_TOOLS", "make tools")
    }

    /// The agent: the one built beside the running program, which speaks the same protocol, else `LAB_AGENT`.
    pub fn agent(&self) -> Result<PathBuf> {
        let program = env::current_exe()?;
        // A test program is one directory deeper than the binaries.
        let mut beside = program.ancestors().skip(1).take(2).map(|directory| directory.join("agent"));
        match beside.find(|path| path.is_file()) {
            Some(path) => Ok(path),
            None => self.file("LAB_AGENT", "cargo build -p lab"),
        }
    }

    /// QEMU itself.
    pub fn qemu(&self) -> PathBuf {
        self.program("LAB_QEMU", "qemu-system-x86_64")
    }

    /// QEMU's tool for images.
    pub fn qemu_img(&self) -> PathBuf {
        self.program("LAB_QEMU_IMG", "qemu-img")
    }

    fn program(&self, variable: &str, name: &str) -> PathBuf {
        match self.values.get(variable) {
            Some(path) => PathBuf::from(path),
            None => Some(self.cache.join("bin").join(name)).filter(|path| path.exists()).unwrap_or_else(|| name.into()),
        }
    }

    fn file(&self, variable: &str, command: &str) -> Result<PathBuf> {
        let Some(path) = self.values.get(variable) else {
            bail!("{variable} is not set and not in {}/lab.env: run `{command}`", self.cache.display());
        };
        let path = PathBuf::from(path);
        if !path.is_file() {
            bail!("{variable}={} does not exist: run `{command}`", path.display());
        }
        Ok(path)
    }
}

fn parse(text: &str) -> HashMap<String, String> {
    let pair = |line: &str| {
        let (name, value) = line.trim().split_once('=')?;
        name.starts_with("LAB_").then(|| (name.to_owned(), value.trim_matches('"').to_owned()))
    };
    text.lines().filter_map(pair).collect()
}

/// The files of one set of machines. The logs stay; the disks go with this value.
#[derive(Debug)]
pub struct RunDirectory {
    /// Logs and disks.
    pub path: PathBuf,
    /// Sockets: their paths may not be longer than 108 bytes, so they have a directory with a short name.
    pub sockets: PathBuf,
}

impl RunDirectory {
    /// Makes the directories of a new run and removes those of old ones.
    pub fn new(paths: &Paths, name: &str) -> Result<RunDirectory> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let process = std::process::id();
        let runs = paths.cache.join("runs");
        remove_old(&runs);
        // The parts are told apart by `-`, see `parts`.
        let path = runs.join(format!("{seconds}-{process}-{number}-{name}"));
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        let sockets = sockets_of(&process.to_string(), &number.to_string());
        // A process that was killed may have left one of the same number.
        let _ = fs::remove_dir_all(&sockets);
        fs::create_dir_all(&sockets).with_context(|| format!("creating {}", sockets.display()))?;
        Ok(RunDirectory { path, sockets })
    }

    /// A file of the run that stays when the run is over.
    pub fn log(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A file of the run that goes when the run is over.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.tmp"))
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.sockets);
        remove_scratch(&self.path);
    }
}

fn sockets_of(process: &str, number: &str) -> PathBuf {
    env::temp_dir().join(format!("lab-{process}-{number}"))
}

/// Removes the disks and sockets of runs whose process is gone, and the logs of the oldest runs: machines shared by several tests
/// stay until the process ends, which drops nothing. Whatever cannot be removed stays.
fn remove_old(runs: &Path) {
    let Ok(entries) = fs::read_dir(runs) else { return };
    let mut old: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| !in_use(path)).collect();
    old.sort();
    for path in &old {
        remove_scratch(path);
        if let [_, process, number] = *parts(path).split('-').take(3).collect::<Vec<_>>() {
            let _ = fs::remove_dir_all(sockets_of(process, number));
        }
    }
    for path in old.iter().rev().skip(KEPT_RUNS) {
        let _ = fs::remove_dir_all(path);
    }
}

/// The name of a run's directory: seconds, process, number of the run in it, name.
fn parts(run: &Path) -> &str {
    run.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn in_use(run: &Path) -> bool {
    parts(run).split('-').nth(1).is_some_and(|process| Path::new("/proc").join(process).exists())
}

fn remove_scratch(run: &Path) {
    let Ok(entries) = fs::read_dir(run) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_some_and(|extension| extension == "tmp") {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_holds_one_value_a_line() {
        let values =
            parse("# note\nLAB_VMLINUZ=/a b/vmlinuz\nLAB_X=\"q\"\nPATH=/bin\n\nLAB_KERNEL_RELEASE=7.3.4+deb13-amd64\n");
        assert_eq!(values.len(), 3);
        assert_eq!(values["LAB_VMLINUZ"], "/a b/vmlinuz");
        assert_eq!(values["LAB_X"], "q");
        assert_eq!(values["LAB_KERNEL_RELEASE"], "7.3.4+deb13-amd64");
    }

    #[test]
    fn a_missing_file_says_what_makes_it() {
        let paths = Paths { cache: "/nowhere".into(), values: parse("LAB_MODULE=/nowhere/drbd.ko") };
        let error = paths.module().unwrap_err().to_string();
        assert!(error.contains("/nowhere/drbd.ko") && error.contains("make module"), "{error}");
        let error = paths.tools().unwrap_err().to_string();
        assert!(error.contains("LAB_TOOLS") && error.contains("make tools"), "{error}");
    }

    #[test]
    fn a_run_leaves_its_logs_and_nothing_else() {
        let cache = env::temp_dir().join(format!("runs-{}", std::process::id()));
        let paths = Paths { cache: cache.clone(), values: HashMap::new() };
        let run = RunDirectory::new(&paths, "test").unwrap();
        fs::write(run.log("drbd1.log"), "x").unwrap();
        fs::write(run.scratch("disk"), "x").unwrap();
        let (path, sockets) = (run.path.clone(), run.sockets.clone());
        assert!(sockets.is_dir());
        drop(run);
        assert!(!sockets.exists() && path.join("drbd1.log").exists() && !path.join("disk.tmp").exists());
        fs::remove_dir_all(&cache).unwrap();
    }

    #[test]
    fn what_a_killed_process_left_goes_with_the_next_run() {
        let cache = env::temp_dir().join(format!("old-runs-{}", std::process::id()));
        let gone = "99999999";
        let (old, sockets) = (cache.join(format!("runs/1-{gone}-3-two-machines")), sockets_of(gone, "3"));
        fs::create_dir_all(&old).unwrap();
        fs::create_dir_all(&sockets).unwrap();
        fs::write(old.join("disk.tmp"), "x").unwrap();
        fs::write(old.join("drbd1.log"), "x").unwrap();
        let paths = Paths { cache: cache.clone(), values: HashMap::new() };
        let run = RunDirectory::new(&paths, "test").unwrap();
        assert!(!sockets.exists() && !old.join("disk.tmp").exists() && old.join("drbd1.log").exists());
        drop(run);
        fs::remove_dir_all(&cache).unwrap();
    }
}
