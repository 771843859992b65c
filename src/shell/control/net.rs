// SPDX-License-Identifier: GPL-2.0
//! CONNECT, DISCONNECT, CHG_NET_OPTS.

use super::{ask, is_success, unless_refused, Answer, Refused, Task, DONE};
use crate::linux::sock::SockAddr;
use crate::shell::resource::{ConnectionConfig, Resource};
use crate::shell::{events, hashes};
use engine::netlink::{DisconnectParms, Nest, NetConf, ParseMode, RetCode};
use engine::resource::{AdminRequest, AdminResult};
use engine::state::Conn;
use kernel::prelude::*;
use kernel::sync::atomic::Relaxed;
use kernel::sync::Arc;

/// How long the worker may take to forget the configuration after a disconnect.
const FORGET_MS: u32 = 2000;

// spec: netlink 6 CONNECT
#[inline(never)]
pub(super) fn connect(task: &mut Task<'_>) -> Answer {
    let resource = task.resource()?;
    let (my_address, peer_address) = unless_refused!(endpoints(task));
    unless_refused!(check_unused(task, &resource, &my_address, &peer_address));
    let mut net = KBox::new(NetConf::default(), GFP_KERNEL)?;
    unless_refused!(task.parse(&mut *net, ParseMode::Create));
    net.clamp();
    let _admin = resource.admin.lock();
    if !is_standalone(&resource) {
        return Ok(RetCode::NetConfigured.number());
    }
    resource.pin_module()?;
    forget_if_down(&resource);
    hashes::look_for(&resource, &hashes::needed_by(&net));
    // Before the engine begins: the connection's thread needs it at once.
    resource.config.lock().connection = Some(ConnectionConfig { my_address, peer_address, started: false });
    resource.has_connection.store(true, Relaxed);
    if let Err(code) = resource.look(|locked| locked.engine.check_connect(&net)) {
        forget(&resource, false);
        resource.unpin_unused_module();
        return Ok(code.number());
    }
    // Before anything can happen to it.
    events::tell_connection_created(&resource);
    let result = ask(&resource, AdminRequest::Connect { conf: &net });
    if let Some(connection) = resource.config.lock().connection.as_mut() {
        connection.started = true;
    }
    if is_standalone(&resource) {
        forget(&resource, true);
    }
    resource.unpin_unused_module();
    task.answer(&result)
}

fn is_standalone(resource: &Resource) -> bool {
    resource.look(|locked| locked.engine.connection_status().state) == Conn::StandAlone
}

fn endpoints(task: &mut Task<'_>) -> Result<(SockAddr, SockAddr), Refused> {
    let (Some(my), Some(peer)) = (task.context.ctx_my_addr, task.context.ctx_peer_addr) else {
        return Err(task.refuse(RetCode::InvalidRequest, "connection endpoint(s) missing"));
    };
    match (SockAddr::new(my.as_bytes()), SockAddr::new(peer.as_bytes())) {
        (Ok(my), Ok(peer)) => Ok((my, peer)),
        _ => Err(task.refuse(RetCode::InvalidRequest, "only IPv4 and IPv6 addresses can be used")),
    }
}

/// No two connections may share an endpoint. The handlers run one after the other, so nobody takes it meanwhile.
fn check_unused(
    task: &mut Task<'_>,
    own: &Resource,
    my_address: &SockAddr,
    peer_address: &SockAddr,
) -> Result<(), Refused> {
    for resource in task.driver.resources() {
        let Some((my, peer)) = resource.addresses() else { continue };
        // A connection that is StandAlone keeps its addresses for messages only.
        if resource.id == own.id && is_standalone(own) {
            continue;
        }
        if my == *my_address {
            return Err(RetCode::LocalAddr.into());
        }
        if peer == *peer_address {
            return Err(RetCode::PeerAddr.into());
        }
    }
    Ok(())
}

// spec: netlink 6 DISCONNECT
#[inline(never)]
pub(super) fn disconnect(task: &mut Task<'_>) -> Answer {
    let mut parms = DisconnectParms::default();
    unless_refused!(task.parse(&mut parms, ParseMode::Create));
    let resource = task.resource()?;
    let _admin = resource.admin.lock();
    let result = take_down(&resource, parms.force_disconnect);
    if is_success(result.code) {
        return DONE;
    }
    task.answer(&result)
}

/// Disconnects; the caller holds `resource.admin`. On success the configuration of the connection is gone.
pub(super) fn take_down(resource: &Arc<Resource>, force: bool) -> AdminResult {
    let result = ask(resource, AdminRequest::Disconnect { force });
    if is_success(result.code) {
        // The worker forgets it, after it has told everybody what happened before. It may be waiting for a helper.
        let forgotten = || !resource.has_connection.load(Relaxed);
        if !resource.changed.wait_until_timeout_ms(FORGET_MS, forgotten) {
            forget_if_down(resource);
        }
    }
    result
}

/// Forgets the configuration of a connection that was up for use and is StandAlone now.
pub(crate) fn forget_if_down(resource: &Arc<Resource>) {
    let started = resource.config.lock().connection.as_ref().is_some_and(|connection| connection.started);
    if started && is_standalone(resource) {
        forget(resource, true);
    }
}

fn forget(resource: &Arc<Resource>, tell: bool) {
    if tell {
        events::tell_connection_destroyed(resource);
    }
    resource.config.lock().connection = None;
    resource.has_connection.store(false, Relaxed);
    resource.changed.wake_all();
}

// spec: netlink 6 CHG_NET_OPTS
#[inline(never)]
pub(super) fn chg_net_opts(task: &mut Task<'_>) -> Answer {
    let resource = task.resource()?;
    let _admin = resource.admin.lock();
    let mut net = KBox::new(NetConf::default(), GFP_KERNEL)?;
    match resource.look(|locked| locked.engine.net_conf().copied()) {
        Some(old) => *net = old,
        None => return Ok(task.refuse(RetCode::InvalidRequest, "net conf missing, try connect").0),
    }
    if task.sets_defaults() {
        net.reset_changeable();
    }
    unless_refused!(task.parse(&mut *net, ParseMode::Change));
    net.clamp();
    hashes::look_for(&resource, &hashes::needed_by(&net));
    let result = ask(&resource, AdminRequest::NetOptions { conf: &net });
    // The other options are looked at when they are needed; this one is in the sockets.
    if let Some(sockets) = resource.look(|locked| locked.sockets.clone()) {
        sockets.set_send_timeouts(&resource);
    }
    task.answer(&result)
}
