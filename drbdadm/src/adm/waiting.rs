// SPDX-License-Identifier: GPL-2.0
//! `wait-con-int`: at boot, until the peers are there or somebody at the console is tired of waiting.
//!
//! spec: commands 2.11

use super::execute::Execution;
use super::Target;
use crate::failure::Failure;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use std::io::{BufRead, IsTerminal, Write};
use std::os::fd::AsFd;
use std::process::Child;
use std::time::{Duration, Instant};

/// So long only dots are shown.
const QUIET_TIME: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Waits for the connections of all targets.
///
/// # Errors
/// Exit code 20 when a child cannot be executed.
pub(super) fn wait_for_all(execution: &Execution<'_>, targets: &[Target<'_>]) -> Result<i32, Failure> {
    let mut children = Vec::new();
    for target in targets {
        let resource = execution.config.resources.iter().find(|resource| resource.name == target.resource.name);
        let Some(lines) = resource.and_then(|resource| execution.lines(resource)) else { continue };
        for volume in &lines.host.volumes {
            let line = lines.wait_connect(volume, execution.request.stacked);
            execution.runner.announce(&lines.resource.name, &line);
            if !execution.runner.dry_run {
                children.push(execution.runner.start(&line)?);
            }
        }
    }
    if execution.runner.dry_run {
        return Ok(0);
    }
    if wait_with_dots(&mut children) {
        return Ok(0);
    }
    print!("{}", banner(execution));
    let _ = std::io::stdout().flush();
    if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
        wait_for_answer(&mut children);
    } else {
        println!("To stop waiting, end process {}.", std::process::id());
    }
    for child in &mut children {
        // It ends by itself or was told to.
        let _ = child.wait();
    }
    println!();
    Ok(0)
}

/// True when all have ended within the quiet time.
fn wait_with_dots(children: &mut [Child]) -> bool {
    let start = Instant::now();
    let mut dots = 0;
    while start.elapsed() < QUIET_TIME {
        if all_ended(children) {
            return true;
        }
        if start.elapsed().as_secs() >= dots {
            dots += 1;
            print!(".");
            let _ = std::io::stdout().flush();
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    false
}

fn all_ended(children: &mut [Child]) -> bool {
    // A child that cannot be asked is not ours any more.
    children.iter_mut().all(|child| !matches!(child.try_wait(), Ok(None)))
}

fn banner(execution: &Execution<'_>) -> String {
    let first = execution.config.resources.first();
    let seconds = |name: &str| {
        let startup = first.map_or(&[][..], |resource| &resource.sections.startup);
        startup.iter().rev().find(|setting| setting.name == name).map_or("0", |setting| setting.argument()).to_owned()
    };
    let stars = "*".repeat(63);
    format!(
        "\n{stars}\n Waiting for the other nodes of the replicated volumes.\n - If this node was already degraded before it was \
         restarted,\n   it waits {} seconds. [degr-wfc-timeout]\n - If the peer was there before, it waits {} seconds. \
         [wfc-timeout]\n   (0 is for ever; both can be changed in the configuration)\n{stars}\n",
        seconds("degr-wfc-timeout"),
        seconds("wfc-timeout"),
    )
}

/// Until all have ended, or somebody types yes.
fn wait_for_answer(children: &mut [Child]) {
    let stdin = std::io::stdin();
    let prompt = || {
        print!(" To abort waiting enter 'yes': ");
        let _ = std::io::stdout().flush();
    };
    prompt();
    while !all_ended(children) {
        let mut watched = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(POLL_INTERVAL).unwrap_or(PollTimeout::ZERO);
        if !matches!(poll(&mut watched, limit), Ok(1..)) {
            continue;
        }
        let mut answer = String::new();
        match stdin.lock().read_line(&mut answer) {
            Ok(0) | Err(_) => return,
            Ok(_) if answer.trim() == "yes" => {
                for child in children.iter() {
                    let pid = Pid::from_raw(child.id() as i32);
                    // One that has just ended needs no signal.
                    let _ = kill(pid, Signal::SIGINT);
                }
                return;
            }
            Ok(_) => prompt(),
        }
    }
}
