//! `lab`: the machines by hand.

use anyhow::{bail, Context, Result};
use lab::{script, terminal, Accelerator, Cluster, Disk, Mark, Module, Options, Tools};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

const HELP: &str = "\
lab try [OPTIONS] SCRIPT      boot, run the script in the machines, show its output and the kernel logs
lab try [OPTIONS] -c LINE     the same with one line of bash
lab shell [OPTIONS]           boot and sit in front of the consoles (tmux where it is installed)
lab boot [OPTIONS]            boot, say how to get at the machines, and wait for Enter
lab console SOCKET...         connect this terminal to a console of `lab boot`

  --machines 1|2              how many (2)
  --module ours|stock|none    kernel module of both; two names with a comma for drbd1,drbd2 (ours)
  --tools ours|utils          drbdadm, drbdsetup, drbdmeta; two names likewise (ours)
  --size MIB                  size of /dev/sdb1 (128)
  --sector 512|4096           sector size of the disks (512)
  --vcpus N  --memory MIB     of each machine (1, 640)
  --mtu BYTES                 of the link (9000)
  --accel kvm|tcg|counted     instead of what a probe finds
  --parameters WORDS          parameters of the module (usermode_helper=/bin/true)
  --quiet                     try: no kernel logs at the end, unless something failed

SCRIPT: lines `@both`, `@drbd1`, `@drbd2` say where the following lines of bash run; further: `@limit S`, `@wait S MACHINE COMMAND`,
`@link cut|restore|delay MS|lose PERMILLE`, `@kill|start|reboot|pause|resume MACHINE`, `@sleep S`, `@check`.";

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<()> {
    let request = Request::parse()?;
    match request.command.as_str() {
        "try" => try_script(request),
        "shell" => shell(request),
        "boot" => boot(request),
        "console" => terminal::attach(&request.files),
        "" | "help" => {
            println!("{HELP}");
            Ok(())
        }
        other => bail!("no command {other:?}; `lab help` lists them"),
    }
}

/// The command line.
struct Request {
    command: String,
    files: Vec<PathBuf>,
    line: Option<String>,
    machines: usize,
    quiet: bool,
    options: Options,
}

impl Request {
    fn parse() -> Result<Request> {
        use lexopt::prelude::*;
        let mut parser = lexopt::Parser::from_env();
        let mut request = Request {
            command: String::new(),
            files: Vec::new(),
            line: None,
            machines: 2,
            quiet: false,
            options: Options::default(),
        };
        let (mut size_mib, mut sector_bytes) = (128, 512);
        while let Some(argument) = parser.next()? {
            let options = request.options.clone();
            request.options = match argument {
                Short('h') | Long("help") => {
                    request.command = "help".into();
                    options
                }
                Short('c') => {
                    request.line = Some(parser.value()?.string()?);
                    options
                }
                Long("quiet") => {
                    request.quiet = true;
                    options
                }
                Long("machines") => {
                    request.machines = parser.value()?.parse()?;
                    match request.machines {
                        1 => options.single(),
                        2 => options,
                        other => bail!("--machines {other}: 1 or 2"),
                    }
                }
                Long("module") => options.modules(pair(&parser.value()?.string()?, module)?),
                Long("tools") => options.each_tools(pair(&parser.value()?.string()?, tools)?),
                Long("size") => {
                    size_mib = parser.value()?.parse()?;
                    options
                }
                Long("sector") => {
                    sector_bytes = parser.value()?.parse()?;
                    options
                }
                Long("vcpus") => options.vcpus(parser.value()?.parse()?),
                Long("memory") => options.memory_mib(parser.value()?.parse()?),
                Long("mtu") => options.mtu(parser.value()?.parse()?),
                Long("accel") => options.accelerator(accelerator(&parser.value()?.string()?)?),
                Long("parameters") => options.parameters(&parser.value()?.string()?),
                Value(word) if request.command.is_empty() => {
                    request.command = word.string()?;
                    options
                }
                Value(word) => {
                    request.files.push(word.into());
                    options
                }
                other => return Err(other.unexpected().into()),
            };
        }
        let disks = [Disk::whole(64), Disk::partitioned(size_mib)].map(|disk| Disk { sector_bytes, ..disk });
        request.options = request.options.name(&request.command).disks(&disks);
        Ok(request)
    }
}

/// One name for both machines or two with a comma.
fn pair<T: Copy>(text: &str, one: fn(&str) -> Result<T>) -> Result<[T; 2]> {
    let (first, second) = text.split_once(',').unwrap_or((text, text));
    Ok([one(first)?, one(second)?])
}

fn module(name: &str) -> Result<Module> {
    Ok(match name {
        "ours" => Module::Ours,
        "stock" => Module::Stock,
        "none" => Module::None,
        other => bail!("--module {other}: ours, stock or none"),
    })
}

fn tools(name: &str) -> Result<Tools> {
    Ok(match name {
        "ours" => Tools::Ours,
        "utils" => Tools::Utils,
        other => bail!("--tools {other}: ours or utils"),
    })
}

fn accelerator(name: &str) -> Result<Accelerator> {
    Ok(match name {
        "kvm" => Accelerator::Kvm,
        "tcg" => Accelerator::Tcg,
        "counted" => Accelerator::Counted,
        other => bail!("--accel {other}: kvm, tcg or counted"),
    })
}

fn booted(options: Options) -> Result<Cluster> {
    let began = Instant::now();
    let cluster = Cluster::boot(options)?;
    eprintln!("lab: up after {:.1} s, logs in {}", began.elapsed().as_secs_f32(), cluster.log_directory().display());
    Ok(cluster)
}

fn try_script(request: Request) -> Result<()> {
    let text = match (request.line, request.files.as_slice()) {
        (Some(line), []) => line,
        (None, [path]) => std::fs::read_to_string(path).with_context(|| path.display().to_string())?,
        _ => bail!("`lab try` takes one script or -c LINE"),
    };
    let steps = script::parse(&text, request.machines)?;
    let cluster = booted(request.options)?;
    let marks: Vec<Mark> = cluster.machines().iter().map(|machine| machine.console().mark()).collect();
    let outcome = script::run(&cluster, &steps).and_then(|()| cluster.check_consoles());
    if !request.quiet || outcome.is_err() {
        for (machine, mark) in cluster.machines().iter().zip(marks) {
            println!("----- kernel log of {}\n{}", machine.name(), machine.console().since(mark).trim_end());
        }
    }
    outcome
}

fn boot(request: Request) -> Result<()> {
    let cluster = booted(request.options)?;
    let program = std::env::current_exe()?;
    for machine in cluster.machines() {
        println!("{} console {}", program.display(), machine.console_socket().display());
    }
    println!("Run one of these in another terminal to sit in front of a machine. Enter switches the machines off.");
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}

fn shell(request: Request) -> Result<()> {
    let cluster = booted(request.options)?;
    let sockets: Vec<PathBuf> = cluster.machines().iter().map(|machine| machine.console_socket()).collect();
    let tmux = Command::new("tmux").arg("-V").output().is_ok_and(|output| output.status.success());
    if !tmux {
        eprintln!("lab: no tmux here: one console at a time");
        return terminal::attach(&sockets);
    }
    let program = std::env::current_exe()?;
    let console = |socket: &PathBuf| format!("'{}' console '{}'", program.display(), socket.display());
    let mut command = Command::new("tmux");
    // A server of its own: the user's sessions and key bindings are left alone.
    command.arg("-L").arg(format!("lab-{}", std::process::id())).arg("new-session").arg(console(&sockets[0]));
    for socket in &sockets[1..] {
        command.args([";", "split-window", "-h"]).arg(console(socket));
    }
    command.args([";", "set-option", "mouse", "on", ";", "select-pane", "-t", "0"]);
    let status = command.status().context("running tmux")?;
    if !status.success() {
        bail!("tmux ended with {status}");
    }
    Ok(())
}
