// SPDX-License-Identifier: GPL-2.0
//! NEW_RESOURCE, RESOURCE_OPTS, DEL_RESOURCE, DOWN.

use super::{ask, disk, minor, net, unless_refused, Answer, Refused, Task, DONE};
use crate::shell::log::log_error;
use crate::shell::resource::{Name, Resource};
use crate::shell::{connection, events, worker, Driver};
use engine::netlink::{ParseMode, ResourceOpts, RetCode};
use engine::resource::AdminRequest;
use kernel::prelude::*;
use kernel::sync::Arc;

/// How long the threads of a resource that is StandAlone may take to end, in steps of this length.
const LOOK_AGAIN_MS: u32 = 100;

// spec: netlink 6 NEW_RESOURCE
#[inline(never)]
pub(super) fn new_resource(task: &mut Task<'_>) -> Answer {
    let name = match task.context.ctx_resource_name {
        Some(name) if !name.is_empty() => name,
        _ => return Ok(task.refuse(RetCode::MandatoryTag, "resource name missing").0),
    };
    let mut options = ResourceOpts::default();
    unless_refused!(task.parse(&mut options, ParseMode::Create));
    if name.as_bytes().contains(&b'/') {
        return Ok(task.refuse(RetCode::InvalidRequest, "invalid resource name").0);
    }
    if !is_cpu_mask(options.cpu_mask.as_bytes()) {
        return Ok(task.refuse(RetCode::Nomem, "the CPU mask is not a hexadecimal number").0);
    }
    if task.resource.is_some() {
        if task.request.exclusive {
            return Ok(task.refuse(RetCode::InvalidRequest, "resource exists").0);
        }
        return DONE;
    }
    match create(task, &name, &options) {
        Ok(resource) => {
            events::tell_resource_created(&resource);
            DONE
        }
        Err(_) => Ok(RetCode::Nomem.number()),
    }
}

fn create(task: &Task<'_>, name: &Name, options: &ResourceOpts) -> Result<Arc<Resource>> {
    let driver = task.driver;
    let mut directory = driver.directory.lock();
    let resource = directory.add_resource(name, |id| {
        let resource = Resource::new(id, *name, options, driver.shared.clone())?;
        worker::start(&resource)?;
        Ok(resource)
    })?;
    drop(directory);
    driver.shared.supervisor.set();
    Ok(resource)
}

/// A hexadecimal mask, with commas between groups; empty for all processors.
fn is_cpu_mask(text: &[u8]) -> bool {
    text.iter().all(|byte| byte.is_ascii_hexdigit() || *byte == b',')
}

// spec: netlink 6 RESOURCE_OPTS
#[inline(never)]
pub(super) fn resource_opts(task: &mut Task<'_>) -> Answer {
    let resource = task.resource()?;
    let _admin = resource.admin.lock();
    let mut options = resource.look(|locked| *locked.engine.resource_opts());
    if task.sets_defaults() {
        options = ResourceOpts::default();
    }
    unless_refused!(task.parse(&mut options, ParseMode::Change));
    if !is_cpu_mask(options.cpu_mask.as_bytes()) {
        return Ok(task.refuse(RetCode::InvalidRequest, "the CPU mask is not a hexadecimal number").0);
    }
    let result = ask(&resource, AdminRequest::ResourceOptions { conf: &options });
    resource.follow_cpu_mask();
    task.answer(&result)
}

// spec: netlink 6 DEL_RESOURCE
#[inline(never)]
pub(super) fn del_resource(task: &mut Task<'_>) -> Answer {
    let resource = task.resource()?;
    let _admin = resource.admin.lock();
    if resource.look(|locked| locked.engine.connection_status().state) != engine::state::Conn::StandAlone {
        return Ok(RetCode::NetConfigured.number());
    }
    if !resource.config.lock().volumes.is_empty() {
        return Ok(RetCode::ResInUse.number());
    }
    delete(task.driver, &resource);
    DONE
}

/// Ends the threads of a resource without volumes that is StandAlone, and forgets it.
fn delete(driver: &Driver, resource: &Arc<Resource>) {
    events::tell_resource_destroyed(resource);
    // The supervisor joins the connection's thread, for which it must still find the resource.
    while !connection::is_gone(resource) {
        resource.wake_link();
        resource.changed.wait_until_timeout_ms(LOOK_AGAIN_MS, || connection::is_gone(resource));
    }
    driver.directory.lock().remove_resource(resource.id);
    worker::stop(resource);
}

/// Forgets all resources, because the module is being unloaded; none of them is in use then, and no more requests come.
pub(crate) fn delete_all(driver: &Driver) {
    while let Some(resource) = driver.resource_after(0) {
        let _admin = resource.admin.lock();
        let first = || resource.config.lock().volumes.first().map(|volume| volume.minor);
        while let Some(number) = first() {
            if minor::delete(driver, &resource, number).is_err() {
                log_error!("{}: drbd{} is in use while the module goes", resource.name.as_str(), number);
                return;
            }
        }
        delete(driver, &resource);
    }
}

// spec: netlink 6 DOWN
#[inline(never)]
pub(super) fn down(task: &mut Task<'_>) -> Answer {
    let resource = task.resource()?;
    let _admin = resource.admin.lock();
    match take_down(task, &resource) {
        Ok(()) => DONE,
        Err(refused) => Ok(refused.0),
    }
}

fn take_down(task: &mut Task<'_>, resource: &Arc<Resource>) -> Result<(), Refused> {
    let mut volumes = KVec::new();
    for config in resource.config.lock().volumes.iter() {
        volumes.push((config.id, config.minor), GFP_KERNEL).map_err(|_| RetCode::Nomem)?;
    }
    for (id, _) in volumes.iter() {
        let result = ask(resource, AdminRequest::Secondary { volume: *id });
        task.step(&result, "failed to demote")?;
    }
    if resource.config.lock().connection.is_some() {
        let result = net::take_down(resource, false);
        task.step(&result, "failed to disconnect")?;
    }
    for (id, _) in volumes.iter() {
        let result = disk::take_down(resource, *id);
        task.step(&result, "failed to detach")?;
    }
    for (_, number) in volumes.iter() {
        if let Err(code) = minor::delete(task.driver, resource, *number) {
            return Err(task.refuse(code, "failed to delete volume"));
        }
    }
    delete(task.driver, resource);
    Ok(())
}
