// SPDX-License-Identifier: GPL-2.0
//! Lists: GET_STATUS, GET_RESOURCES, GET_DEVICES, GET_CONNECTIONS, GET_PEER_DEVICES, GET_INITIAL_STATE.
//!
//! Every list is made completely at the first call, so it is one moment's view of the directory, and is handed out in
//! as many datagrams as it takes.
// spec: netlink 8, 9.4

use super::status::redaction;
use crate::linux::errno;
use crate::linux::genl::{Dump, DumpStyle, Message, Request};
use crate::shell::events::{volumes, Notification};
use crate::shell::messages::{
    connection_info, connection_statistics, device_info, device_statistics, empty_resource_status, is_attached,
    message, peer_device_info, peer_device_statistics, resource_context, resource_info, resource_statistics,
    volume_context, volume_status, with_addresses, Reason, ResourceSnapshot, VolumeSnapshot,
};
use crate::shell::resource::Resource;
use crate::shell::Driver;
use engine::netlink::{
    AttrReader, CfgContext, Command, Nest, NotificationHeader, NotificationType, ParseMode, Redact, RetCode, MINOR_NONE,
};
use kernel::prelude::*;
use kernel::sync::Arc;

/// The answer to a request for a list.
pub(super) fn dump(driver: &Driver, request: &Request<'_>) -> Result<Dump> {
    match Command::from_number(request.command) {
        Some(Command::GetStatus) => get_status(driver, request),
        Some(Command::GetResources) => get_resources(driver),
        Some(Command::GetDevices) => get_devices(driver, request),
        Some(Command::GetConnections) => get_connections(driver, request),
        Some(Command::GetPeerDevices) => get_peer_devices(driver, request),
        Some(Command::GetInitialState) => get_initial_state(driver),
        _ => Err(errno::eopnotsupp()),
    }
}

/// Which resources are asked for.
enum Filter {
    All,
    One(Arc<Resource>),
    Unknown,
    /// A context without a name.
    Nameless,
}

impl Filter {
    fn new(driver: &Driver, request: &Request<'_>) -> Result<Self> {
        let Some(attribute) = AttrReader::find(request.attributes, CfgContext::NUMBER) else { return Ok(Filter::All) };
        let mut context = CfgContext::default();
        context.parse(attribute.payload, ParseMode::Receive).map_err(|_| EINVAL)?;
        let Some(name) = context.ctx_resource_name else { return Ok(Filter::Nameless) };
        Ok(driver.resource(name.as_bytes()).map_or(Filter::Unknown, Filter::One))
    }
}

fn get_status(driver: &Driver, request: &Request<'_>) -> Result<Dump> {
    let mut dump = Dump::new(DumpStyle::Items);
    let redact = redaction(request);
    match Filter::new(driver, request)? {
        Filter::All => {
            for resource in driver.resources() {
                push_status(&mut dump, &resource, redact)?;
            }
        }
        Filter::One(resource) => push_status(&mut dump, &resource, redact)?,
        Filter::Unknown => dump.fail(ENODEV),
        Filter::Nameless => dump.fail(EINVAL),
    }
    Ok(dump)
}

fn push_status(dump: &mut Dump, resource: &Resource, redact: Redact) -> Result {
    let now = ResourceSnapshot::take(resource)?;
    let volumes = volumes(resource);
    if volumes.is_empty() {
        return dump.push(message(Command::GetStatus, MINOR_NONE, |w| empty_resource_status(w, resource, &now))?);
    }
    for volume in volumes.iter() {
        dump.push(message(Command::GetStatus, volume.status.minor, |w| {
            volume_status(w, resource, &now, volume, &Reason::Status, redact)
        })?)?;
    }
    Ok(())
}

fn get_resources(driver: &Driver) -> Result<Dump> {
    let mut dump = Dump::new(DumpStyle::Items);
    for resource in driver.resources() {
        let now = ResourceSnapshot::take(&resource)?;
        dump.push(message(Command::GetResources, MINOR_NONE, |w| {
            resource_context(&resource).emit(w, Redact::Sensitive)?;
            now.options.emit(w, Redact::Sensitive)?;
            resource_info(now.status.role, now.status.susp).emit(w, Redact::Sensitive)?;
            resource_statistics(&now.status).emit(w, Redact::Sensitive)
        })?)?;
    }
    Ok(dump)
}

/// A list of what `push` makes of each volume: by number within one resource, else by minor.
fn each_volume(
    driver: &Driver,
    request: &Request<'_>,
    mut push: impl FnMut(&mut Dump, &Resource, &VolumeSnapshot, bool) -> Result,
) -> Result<Dump> {
    let mut dump = Dump::new(DumpStyle::Items);
    match Filter::new(driver, request)? {
        Filter::All | Filter::Nameless => {
            for minor in driver.minors() {
                if let Some(volume) = VolumeSnapshot::take(&minor.resource, minor.id)? {
                    push(&mut dump, &minor.resource, &volume, false)?;
                }
            }
        }
        Filter::One(resource) => {
            for volume in volumes(&resource).iter() {
                push(&mut dump, &resource, volume, true)?;
            }
        }
        Filter::Unknown => dump.push(unknown_resource(request))?,
    }
    Ok(dump)
}

/// One message with this result is all a reader gets to know.
fn unknown_resource(request: &Request<'_>) -> Message {
    Message {
        command: request.command,
        minor: MINOR_NONE,
        code: RetCode::ResNotKnown.number(),
        attributes: KVec::new(),
    }
}

fn get_devices(driver: &Driver, request: &Request<'_>) -> Result<Dump> {
    each_volume(driver, request, |dump, resource, volume, _| {
        let status = &volume.status;
        dump.push(message(Command::GetDevices, status.minor, |w| {
            volume_context(resource, status.number).emit(w, Redact::Sensitive)?;
            if let Some(disk) = volume.disk.as_ref().filter(|_| is_attached(status)) {
                disk.emit(w, Redact::Sensitive)?;
            }
            device_info(&status.state).emit(w, Redact::Sensitive)?;
            device_statistics(status).emit(w, Redact::Sensitive)
        })?)
    })
}

fn get_peer_devices(driver: &Driver, request: &Request<'_>) -> Result<Dump> {
    each_volume(driver, request, |dump, resource, volume, filtered| {
        if resource.addresses().is_none() {
            return Ok(());
        }
        let status = &volume.status;
        // Readers know the volume by the context; this number is what the list counts by.
        let index = if filtered { status.number.into() } else { status.minor };
        dump.push(message(Command::GetPeerDevices, index, |w| {
            with_addresses(resource, volume_context(resource, status.number)).emit(w, Redact::Sensitive)?;
            peer_device_info(&status.state).emit(w, Redact::Sensitive)?;
            peer_device_statistics(status).emit(w, Redact::Sensitive)
        })?)
    })
}

fn get_connections(driver: &Driver, request: &Request<'_>) -> Result<Dump> {
    let mut dump = Dump::new(DumpStyle::Items);
    let redact = redaction(request);
    match Filter::new(driver, request)? {
        Filter::All | Filter::Nameless => {
            for resource in driver.resources() {
                push_connection(&mut dump, &resource, redact)?;
            }
        }
        Filter::One(resource) => push_connection(&mut dump, &resource, redact)?,
        Filter::Unknown => dump.push(unknown_resource(request))?,
    }
    Ok(dump)
}

fn push_connection(dump: &mut Dump, resource: &Resource, redact: Redact) -> Result {
    let now = ResourceSnapshot::take(resource)?;
    let Some(net) = now.net.as_ref().filter(|_| resource.addresses().is_some()) else { return Ok(()) };
    dump.push(message(Command::GetConnections, MINOR_NONE, |w| {
        with_addresses(resource, resource_context(resource)).emit(w, Redact::Sensitive)?;
        net.emit(w, redact)?;
        connection_info(now.connection.state, now.connection.peer_role).emit(w, Redact::Sensitive)?;
        connection_statistics().emit(w, Redact::Sensitive)
    })?)
}

// spec: netlink 9.4
fn get_initial_state(driver: &Driver) -> Result<Dump> {
    let mut dump = Dump::new(DumpStyle::Events);
    for resource in driver.resources() {
        let volumes = volumes(&resource);
        let about = |continues| Notification::new(&resource, NotificationType::Exists, continues);
        dump.push(about(true).resource()?)?;
        dump.push(about(!volumes.is_empty()).connection()?)?;
        for volume in volumes.iter() {
            dump.push(about(true).device(&volume.status, &volume.status.state)?)?;
        }
        for (index, volume) in volumes.iter().enumerate() {
            let continues = index + 1 < volumes.len();
            dump.push(about(continues).peer_device(&volume.status, &volume.status.state)?)?;
        }
    }
    let header = NotificationHeader { nh_type: NotificationType::Exists.with_continues(false) };
    dump.push(message(Command::InitialStateDone, MINOR_NONE, |w| header.emit(w, Redact::Sensitive))?)?;
    Ok(dump)
}
