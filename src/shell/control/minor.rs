// SPDX-License-Identifier: GPL-2.0
//! NEW_MINOR, DEL_MINOR.

use super::{ask, volume_number, Answer, Task, DONE};
use crate::linux::clock;
use crate::shell::events;
use crate::shell::resource::{Resource, VolumeConfig};
use crate::shell::volume::Volume;
use crate::shell::{Driver, Minor};
use engine::netlink::{RetCode, MINOR_MAX};
use engine::resource::{AdminRequest, VolumeId, MAX_VOLUMES_PER_RESOURCE};
use engine::state::{Conn, Disk, Role, State};
use kernel::prelude::*;
use kernel::sync::Arc;

// spec: netlink 6 NEW_MINOR
#[inline(never)]
pub(super) fn new_minor(task: &mut Task<'_>) -> Answer {
    let resource = task.resource()?;
    let number = task.request.minor;
    if number > MINOR_MAX {
        return Ok(task.refuse(RetCode::InvalidRequest, "requested minor out of range").0);
    }
    let Some(volume_number) = volume_number(&task.context) else {
        return Ok(task.refuse(RetCode::InvalidRequest, "requested volume id out of range").0);
    };
    if task.minor.is_some() {
        let code = if task.request.exclusive { RetCode::MinorOrVolumeExists } else { RetCode::NoError };
        return Ok(code.number());
    }
    let _admin = resource.admin.lock();
    match create(task, &resource, number, volume_number) {
        Ok(id) => {
            events::tell_volume_created(&resource, id);
            DONE
        }
        Err(RetCode::Nomem) if resource.config.lock().volumes.len() >= MAX_VOLUMES_PER_RESOURCE => {
            Ok(task.refuse(RetCode::Nomem, "a resource can have 64 volumes: put this one into another resource").0)
        }
        Err(code) => Ok(code.number()),
    }
}

fn create(task: &Task<'_>, resource: &Arc<Resource>, number: u32, volume_number: u16) -> Result<VolumeId, RetCode> {
    resource.config.lock().volumes.reserve(1, GFP_KERNEL).map_err(|_| RetCode::Nomem)?;
    let id = resource.engine(|locked| locked.engine.add_volume(volume_number, number, clock::monotonic_ms()))?;
    let created = Volume::create(resource, id, number, volume_number);
    let registered = created
        .and_then(|volume| register(task, resource, VolumeConfig { id, number: volume_number, minor: number, volume }));
    if registered.is_err() {
        // It was added a moment ago, nobody has used it.
        let _ = resource.engine(|locked| locked.engine.remove_volume(id, clock::monotonic_ms()));
    }
    registered.map(|()| id)
}

fn register(task: &Task<'_>, resource: &Arc<Resource>, config: VolumeConfig) -> Result<(), RetCode> {
    let minor = Minor { number: config.minor, resource: resource.clone(), id: config.id, volume_number: config.number };
    let volume = config.volume.clone();
    if task.driver.directory.lock().add_minor(minor).is_err() {
        volume.remove();
        return Err(RetCode::Nomem);
    }
    let mut configuration = resource.config.lock();
    let at = configuration.volumes.partition_point(|other| other.number < config.number);
    // Room was reserved before.
    configuration.volumes.insert_within_capacity(at, config).map_err(|_| RetCode::Nomem)
}

// spec: netlink 6 DEL_MINOR
#[inline(never)]
pub(super) fn del_minor(task: &mut Task<'_>) -> Answer {
    let minor = task.minor()?;
    let _admin = minor.resource.admin.lock();
    match delete(task.driver, &minor.resource, minor.number) {
        Ok(()) => DONE,
        Err(code) => Ok(code.number()),
    }
}

/// Deletes a volume; the caller holds `resource.admin`.
///
/// # Errors
/// 160 when it has a disk or is Primary.
pub(super) fn delete(driver: &Driver, resource: &Arc<Resource>, number: u32) -> Result<(), RetCode> {
    let (id, volume) = {
        let config = resource.config.lock();
        let found = config.volumes.iter().find(|volume| volume.minor == number);
        found.map(|config| (config.id, config.volume.clone())).ok_or(RetCode::MinorInvalid)?
    };
    part(resource, id);
    let destroyed = events::VolumeDestroyed::prepare(resource, id);
    resource.engine(|locked| locked.engine.remove_volume(id, clock::monotonic_ms()))?;
    driver.directory.lock().remove_minor(number);
    resource.config.lock().volumes.retain(|volume| volume.id != id);
    volume.remove();
    destroyed.tell(resource);
    Ok(())
}

/// Tells a connected peer that a volume goes, if it may go. The peer is not asked for its consent: it goes anyway.
// spec: state-machine 22 del-minor
fn part(resource: &Arc<Resource>, id: VolumeId) {
    let may_go =
        |state: State| (state.conn, state.disk, state.role) == (Conn::Connected, Disk::Diskless, Role::Secondary);
    if resource.look(|locked| locked.engine.volume_state(id).is_some_and(may_go)) {
        let _ = ask(resource, AdminRequest::Part { volume: id });
    }
}
