// SPDX-License-Identifier: GPL-2.0
//! Programs of user space that the module runs for events.
// spec: netlink 10, state-machine 11

use super::events;
use super::log::{log_info, log_warning};
use super::resource::Resource;
use super::worker::Prefix;
use crate::linux::param::{self, HELPER_PATH_BYTES};
use crate::linux::umh;
use core::fmt;
use engine::resource::{Helper, VolumeId};
use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::Arc;

/// Runs a helper for a volume or, with `None`, for the resource; waits for its end and tells listeners before and
/// after. Returns its exit code; a program that cannot be started counts as 0.
#[inline(never)]
pub(crate) fn run(resource: &Arc<Resource>, helper: Helper, volume: Option<VolumeId>) -> i32 {
    let minor = volume.and_then(|id| resource.config.lock().volume(id).map(|config| config.minor));
    events::tell_helper(resource, helper, volume, None);
    let prefix = Prefix::new(resource, volume.filter(|_| !helper.is_for_resource()));
    let status = start(resource, helper, minor, &prefix);
    let (shown, exit_code) = match status {
        Ok(status) => (status, (status >> 8) & 0xff),
        Err(error) => {
            log_warning!("{prefix}: helper {helper} cannot be started: {error:?}");
            (error.to_errno(), 0)
        }
    };
    events::tell_helper(resource, helper, volume, Some(shown));
    exit_code
}

/// Returns the wait status.
fn start(resource: &Resource, helper: Helper, minor: Option<u32>, prefix: &Prefix<'_>) -> Result<i32> {
    let mut path = [0; HELPER_PATH_BYTES];
    let path = param::usermode_helper(&mut path)?;
    let event = CString::try_from_fmt(format_args!("{}", helper.name()))?;
    let object = match minor {
        Some(minor) if !helper.is_for_resource() => CString::try_from_fmt(format_args!("minor-{minor}"))?,
        _ => CString::try_from_fmt(format_args!("{}", resource.name.as_str()))?,
    };
    let command = Command { path, event: &event, object: &object };
    log_info!("{prefix}: helper command: {command}");
    let status = match resource.addresses() {
        Some((_, peer)) => {
            let family = CString::try_from_fmt(format_args!("DRBD_PEER_AF={}", peer.family_name()))?;
            let address = CString::try_from_fmt(format_args!("DRBD_PEER_ADDRESS={peer}"))?;
            umh::run(path, &[&event, &object], &[HOME, TERM, PATH, &family, &address])
        }
        None => umh::run(path, &[&event, &object], &[HOME, TERM, PATH]),
    }?;
    let exit_code = (status >> 8) & 0xff;
    log_info!("{prefix}: helper command: {command} exit code {exit_code} ({status:#x})");
    Ok(status)
}

/// A program with its arguments, for the log.
struct Command<'a> {
    path: &'a CStr,
    event: &'a CStr,
    object: &'a CStr,
}

impl fmt::Display for Command<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", text_of(self.path), text_of(self.event), text_of(self.object))
    }
}

/// As much of it as is UTF-8.
fn text_of(text: &CStr) -> &str {
    text.to_bytes().utf8_chunks().next().map_or("", |chunk| chunk.valid())
}

const HOME: &CStr = c"HOME=/";
const TERM: &CStr = c"TERM=linux";
const PATH: &CStr = c"PATH=/sbin:/usr/sbin:/bin:/usr/bin";
