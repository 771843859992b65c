//! First process of a machine of the lab: makes a small Linux system out of the root file system (mounts, modules, disks, host
//! name, network), keeps a shell on the serial console, reaps orphans, and has a second copy of itself serve the host
//! (`agent serve`, see [`lab::agent`]).

use nix::errno::Errno;
use nix::mount::{mount, MsFlags};
use nix::sys::wait::{wait, WaitStatus};
use std::error::Error;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const PORT_NAME: &str = "lab.agent";
const DEVICE_LIMIT: Duration = Duration::from_secs(20);
const SEARCH_PATH: &str = "/opt/drbd/sbin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn main() {
    std::env::set_var("PATH", SEARCH_PATH);
    std::env::set_var("HOME", "/root");
    std::env::set_var("LC_ALL", "C.UTF-8");
    // There is no udev here: dmsetup makes its device nodes itself.
    std::env::set_var("DM_DISABLE_UDEV", "1");
    let outcome = match std::env::args().nth(1).as_deref() {
        Some("serve") => serve(),
        _ => init(),
    };
    if let Err(error) = outcome {
        eprintln!("lab-agent: {error}");
        std::process::exit(1);
    }
}

/// Serves the host until the machine ends; a host that goes away may come back.
fn serve() -> Result<()> {
    let path = port()?;
    loop {
        let port = File::options().read(true).write(true).open(&path)?;
        let output = port.try_clone()?;
        if let Err(error) = lab::agent::serve(port, output) {
            eprintln!("lab-agent: {error}");
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// The device of the virtio-serial port the host talks through.
fn port() -> Result<PathBuf> {
    let find = || {
        let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
        let is_ours = |path: &PathBuf| fs::read_to_string(path.join("name")).is_ok_and(|name| name.trim() == PORT_NAME);
        let path = ports.flatten().map(|entry| entry.path()).find(is_ours)?;
        Some(Path::new("/dev").join(path.file_name()?))
    };
    wait_for(&format!("the virtio-serial port {PORT_NAME}"), || find().filter(|path| path.exists()))
}

/// The first process. It must never end, so each step that fails is reported and the next one is tried.
fn init() -> Result<()> {
    let options = fs::read_to_string("/proc/cmdline").or_else(|_| {
        step("mounting /proc", mount_at("proc", "/proc", "proc"));
        fs::read_to_string("/proc/cmdline")
    })?;
    let option = |name: &str| {
        options.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default()
    };
    step("mounting", mount_all());
    step("loading modules", run("modprobe", &["-a", "virtio_console", "virtio_net", "virtio_scsi", "sd_mod"]));
    step("host name", fs::write("/proc/sys/kernel/hostname", option("lab.host")).map_err(Into::into));
    step("finding the disks", scan_disks(option("lab.disks").parse().unwrap_or(0)));
    step("network", network(option("lab.host"), option("lab.ip"), option("lab.mtu")));
    // The host takes a served port for a machine that is ready.
    let mut server = None;
    let mut shell = None;
    loop {
        if shell.is_none() {
            shell = console_shell();
        }
        if server.is_none() {
            step("starting the agent", start_server(&mut server));
        }
        match wait() {
            Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)) => {
                let ended = |child: &Option<Child>| {
                    child.as_ref().is_some_and(|child| i64::from(child.id()) == i64::from(pid.as_raw()))
                };
                let child = [&mut shell, &mut server].into_iter().find(|child| ended(child));
                if let Some(child) = child {
                    *child = None;
                    // One that cannot live must not keep the processor busy.
                    thread::sleep(Duration::from_millis(500));
                }
            }
            Ok(_) | Err(Errno::EINTR) => (),
            Err(_) => thread::sleep(Duration::from_secs(1)),
        }
    }
}

/// Reports a failure on the console and to the host, which reads the file once the machine is up.
fn step(what: &str, outcome: Result<()>) {
    if let Err(error) = outcome {
        eprintln!("lab-agent: {what}: {error}");
        let file = File::options().create(true).append(true).open(lab::FAILURES);
        if let Err(error) = file.and_then(|mut file| writeln!(file, "{what}: {error}")) {
            eprintln!("lab-agent: {}: {error}", lab::FAILURES);
        }
    }
}

fn start_server(server: &mut Option<Child>) -> Result<()> {
    *server = Some(Command::new("/proc/self/exe").arg("serve").spawn()?);
    Ok(())
}

fn mount_all() -> Result<()> {
    for (kind, path) in [
        ("devtmpfs", "/dev"),
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("tmpfs", "/run"),
        ("tmpfs", "/tmp"),
        ("devpts", "/dev/pts"),
        ("tmpfs", "/dev/shm"),
        ("debugfs", "/sys/kernel/debug"),
    ] {
        mount_at(kind, path, kind)?;
    }
    for (link, target) in [("/dev/fd", "/proc/self/fd"), ("/dev/stdin", "fd/0"), ("/dev/stdout", "fd/1")] {
        if !Path::new(link).exists() {
            symlink(target, link)?;
        }
    }
    fs::create_dir_all("/run/lab")?;
    fs::create_dir_all("/run/lock")?;
    Ok(())
}

/// Mounts, unless something is mounted there already.
fn mount_at(source: &str, path: &str, kind: &str) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    if mounts.lines().any(|line| line.split(' ').nth(1) == Some(path)) {
        return Ok(());
    }
    if !Path::new(path).is_dir() {
        fs::create_dir_all(path)?;
    }
    mount(Some(source), path, Some(kind), MsFlags::empty(), None::<&str>)
        .map_err(|error| format!("{path}: {error}"))?;
    Ok(())
}

/// Finds the disks one after the other: a scan of the whole bus at once would give out the names in any order.
fn scan_disks(count: usize) -> Result<()> {
    for index in 0..count {
        let host =
            wait_for("the disk controller", || fs::read_dir("/sys/class/scsi_host").ok()?.flatten().next())?.path();
        fs::write(host.join("scan"), format!("0 {index} 0"))?;
        let name = lab::disk::name(index);
        let device = Path::new("/dev").join(&name);
        wait_for(&format!("disk {name}"), || device.exists().then_some(()))?;
    }
    Ok(())
}

fn network(host: &str, address: &str, mtu: &str) -> Result<()> {
    fs::write("/etc/hostname", format!("{host}\n"))?;
    fs::write("/etc/hosts", lab::hosts_file())?;
    run("ip", &["link", "set", "lo", "up"])?;
    if address.is_empty() {
        return Ok(());
    }
    wait_for("eth0", || Path::new("/sys/class/net/eth0").exists().then_some(()))?;
    run("ip", &["address", "add", address, "dev", "eth0"])?;
    run("ip", &["link", "set", "eth0", "mtu", mtu, "up"])
}

/// A login shell on the serial console, or nothing when that cannot be started.
fn console_shell() -> Option<Child> {
    let terminal = File::options().read(true).write(true).open("/dev/ttyS0").ok()?;
    let shell = Command::new("setsid")
        .args(["--ctty", "--wait", "bash", "--login"])
        .current_dir("/root")
        .env("TERM", "linux")
        .stdin(terminal.try_clone().ok()?)
        .stdout(terminal.try_clone().ok()?)
        .stderr(terminal)
        .spawn();
    shell.map_err(|error| eprintln!("lab-agent: shell: {error}")).ok()
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {}: {}: {}", arguments.join(" "), output.status, said.trim()).into())
}

fn wait_for<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> Result<T> {
    let until = Instant::now() + DEVICE_LIMIT;
    loop {
        if let Some(value) = check() {
            return Ok(value);
        }
        if Instant::now() > until {
            return Err(format!("{what} did not appear within {} s", DEVICE_LIMIT.as_secs()).into());
        }
        thread::sleep(Duration::from_millis(5));
    }
}
