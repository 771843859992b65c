// SPDX-License-Identifier: GPL-2.0
//! Handlers: what the kernel calls when something happens.
//!
//! The kernel waits for the end of the program and uses its exit code; no handler means success.
//! spec: commands 2.14, state-machine 11

use super::lines::Lines;
use crate::config::model::{Host, Volume};
use crate::failure::Failure;
use std::process::Command;

/// Runs the handler of an event about a volume, or about the whole resource.
///
/// # Errors
/// Exit code 20 when the shell cannot be executed.
pub fn run(lines: &Lines<'_>, event: &str, volume: Option<&Volume>, dry_run: bool) -> Result<i32, Failure> {
    let handlers = &lines.resource.sections.handlers;
    let Some(handler) = handlers.iter().rev().find(|setting| setting.name == event) else { return Ok(0) };
    let Some(text) = handler.value.as_deref() else { return Ok(0) };
    let environment = environment(lines, volume);
    if dry_run {
        println!("/bin/sh -c {}", super::shell_escape(text));
        return Ok(0);
    }
    let status = Command::new("/bin/sh").args(["-c", text]).envs(environment).status();
    let status = status.map_err(|error| Failure::new(20, format!("Can not exec /bin/sh: {error}")))?;
    Ok(status.code().unwrap_or(20))
}

/// The variables a handler gets.
fn environment(lines: &Lines<'_>, volume: Option<&Volume>) -> Vec<(&'static str, String)> {
    let minors: Vec<_> = match volume {
        Some(volume) => volume.minor.into_iter().collect(),
        None => lines.host.volumes.iter().filter_map(|volume| volume.minor).collect(),
    };
    let minors: Vec<_> = minors.iter().map(ToString::to_string).collect();
    let mut variables = vec![
        ("DRBD_RESOURCE", lines.resource.name.clone()),
        ("DRBD_CONF", lines.config.file.clone()),
        ("DRBD_MINOR", minors.join(" ")),
    ];
    if let Some(volume) = volume {
        variables.push(("DRBD_VOLUME", volume.number.to_string()));
        variables.push(("DRBD_LL_DISK", volume.disk_path().to_owned()));
    }
    if let Some(peer) = peer(lines) {
        let address = peer.address.as_ref();
        variables.push(("DRBD_PEER_AF", address.map_or(String::new(), |address| address.family.to_owned())));
        variables.push(("DRBD_PEER_ADDRESS", address.map_or(String::new(), |address| address.ip.clone())));
        variables.push(("DRBD_PEER", peer.names.first().cloned().unwrap_or_default()));
        variables.push(("DRBD_PEERS", peer.names.join(" ")));
    }
    variables
}

/// The peer of the configuration; where that leaves a choice, the one the kernel names.
fn peer<'a>(lines: &Lines<'a>) -> Option<&'a Host> {
    if let Some(peer) = lines.resource.peer_host() {
        return Some(peer);
    }
    let family = std::env::var("DRBD_PEER_AF").ok()?;
    let ip = std::env::var("DRBD_PEER_ADDRESS").ok()?;
    let is_it =
        |host: &&Host| host.address.as_ref().is_some_and(|address| address.family == family && address.ip == ip);
    lines.resource.hosts.iter().find(is_it)
}
