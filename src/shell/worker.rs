// SPDX-License-Identifier: GPL-2.0
//! The resource's worker (`drbd_w_NAME`): carries out, in order, what the engine wants done outside of the data path.
//! Programs of user space may take minutes, and give commands; so they have threads of their own, and orders for devices are carried out
//! meanwhile ([`carry_out_orders`]), also by whoever waits for the answer to a command.

use super::control::net;
use super::log::{log_error, log_info};
use super::resource::{Processors, Resource, VolumeConfig};
use super::volume::Volume;
use super::{events, hashes, helpers};
use crate::linux::clock;
use crate::linux::mem::NoIoScope;
use crate::linux::thread::Thread;
use core::fmt;
use engine::bitmap::BitmapTables;
use engine::resource::{DeviceWork, Helper, LogLine, Notice, VolumeId, Work};
use engine::state::{Conn, State, Susp};
use kernel::prelude::*;
use kernel::sync::atomic::Relaxed;
use kernel::sync::Arc;
use kernel::time::delay::fsleep;
use kernel::time::Delta;

/// How long the worker sleeps at most before it tops up random numbers.
const LOOK_AGAIN_MS: u32 = 5000;

/// How long, and how often, a helper program waits for the meta data: not longer, because the disk may hang.
const METADATA_LOOK: Delta = Delta::from_millis(5);
const METADATA_LOOKS: usize = 400;

/// Starts the thread.
///
/// # Errors
/// `ENOMEM`.
pub(crate) fn start(resource: &Arc<Resource>) -> Result {
    let worker = resource.clone();
    let thread = Thread::spawn(fmt!("drbd_w_{}", resource.name.as_str()), move || run(&worker))?;
    *resource.worker_thread.lock() = Some(thread);
    Ok(())
}

/// Ends the thread after it has done what was ordered.
pub(crate) fn stop(resource: &Arc<Resource>) {
    resource.stopping.store(true, Relaxed);
    resource.worker.set();
    let thread = resource.worker_thread.lock().take();
    // Joins without the lock.
    drop(thread);
    let fencing = core::mem::take(&mut *resource.fencing_threads.lock());
    resource.shared.leave_fencing(fencing);
}

fn run(resource: &Arc<Resource>) {
    let _no_io = NoIoScope::enter();
    let mut processors = Processors::default();
    loop {
        processors.follow(resource);
        carry_out_orders(resource);
        while do_next(resource) {
            carry_out_orders(resource);
        }
        resource.add_entropy();
        if resource.stopping.load(Relaxed) {
            return;
        }
        resource.worker.wait_timeout_ms(LOOK_AGAIN_MS);
    }
}

/// The next line of the kernel log or, when that says everything, the next order. False when there was neither.
fn do_next(resource: &Arc<Resource>) -> bool {
    // Under one lock: no order is carried out before the log tells of it.
    let (logged, work) = resource.engine(|locked| match locked.engine.poll_log() {
        None => (None, locked.engine.poll_work()),
        logged => (logged, None),
    });
    if let Some(work) = &logged {
        log(resource, work);
    }
    if let Some(work) = work {
        carry_out(resource, work);
        resource.work_done.add(1, Relaxed);
        resource.changed.wake_all();
    }
    logged.is_some() || work.is_some()
}

/// What each kind of work needs is on the stack only while it is done.
fn carry_out(resource: &Arc<Resource>, work: Work) {
    match work {
        Work::Notice(notice) => tell(resource, &notice),
        // The log has it.
        Work::Log(_) => {}
        Work::Helper { helper: helper @ Helper::FencePeer, volume, ticket } => {
            // It may take minutes, and the peer may come back meanwhile.
            if fence_aside(resource, volume, ticket).is_err() {
                help_waiting(resource, helper, volume, ticket);
            }
        }
        Work::Helper { helper, volume, ticket } => help_waiting(resource, helper, volume, ticket),
        Work::Algorithms => {
            let wanted = resource.look(|locked| locked.engine.wanted_algorithms());
            hashes::look_for(resource, &wanted);
            resource.engine(|locked| locked.engine.algorithms_looked_for(clock::monotonic_ms()));
        }
        Work::ResyncDependencies => resource.shared.review_dependencies(),
    }
}

/// Waits until the worker has told, to the log and to listeners, what has happened so far; unless it is waiting for a program, which
/// may itself be what has given the command. The caller may hold `resource.admin`. May sleep.
pub(crate) fn wait_told(resource: &Arc<Resource>) {
    let ordered = resource.look(|locked| locked.engine.work_ordered());
    let told = || {
        let left = ordered.wrapping_sub(resource.work_done.load(Relaxed));
        // The worker may have done more by now.
        left == 0 || left > u64::MAX / 2 || resource.in_program.load(Relaxed)
    };
    resource.changed.wait_until(told);
}

/// Carries out all orders for devices; when it returns, everything that was ordered before is done, whoever did it. The caller may hold
/// `resource.admin`. May sleep.
pub(crate) fn carry_out_orders(resource: &Arc<Resource>) {
    // Application I/O may wait for what is done here.
    let _no_io = NoIoScope::enter();
    let _one_at_a_time = resource.orders.lock();
    while let Some(order) = resource.engine(|locked| locked.engine.poll_device_work()) {
        carry_out_order(resource, order);
    }
}

#[inline(never)]
fn carry_out_order(resource: &Arc<Resource>, order: DeviceWork) {
    match order {
        DeviceWork::Capacity { volume, sectors } => {
            with_volume(resource, volume, |volume| volume.set_capacity(sectors))
        }
        DeviceWork::Resize { volume, sectors } => resize(resource, volume, sectors),
        DeviceWork::Limits { volume } => with_volume(resource, volume, Volume::update_limits),
        DeviceWork::ReadOnly { volume, read_only } => {
            with_volume(resource, volume, |volume| volume.set_role_read_only(read_only));
        }
        DeviceWork::Uevent { volume } => with_volume(resource, volume, Volume::uevent_change),
        DeviceWork::ReleaseBacking { volume } => {
            with_volume(resource, volume, Volume::release_backing);
            // Without a disk it holds up nobody.
            resource.shared.review_dependencies();
        }
    }
}

#[inline(never)]
fn tell(resource: &Arc<Resource>, notice: &Notice) {
    events::tell(resource, notice);
    if matches!(notice, Notice::Connection { to: Conn::StandAlone, .. }) {
        net::forget_if_down(resource);
    }
}

/// Runs a program while the rest of the worker's orders waits. Those for devices do not: the receiver waits for the tables of another size.
/// Nor does the kernel log.
#[inline(never)]
fn help_waiting(resource: &Arc<Resource>, helper: Helper, volume: Option<VolumeId>, ticket: u32) {
    resource.in_program.store(true, Relaxed);
    resource.changed.wake_all();
    let helped = resource.clone();
    let thread = Thread::spawn(fmt!("drbd_help_{}", resource.name.as_str()), move || {
        let _no_io = NoIoScope::enter();
        help(&helped, helper, volume, ticket);
        helped.in_program.store(false, Relaxed);
        helped.worker.set();
    });
    if thread.is_err() {
        // Without memory they wait as well.
        help(resource, helper, volume, ticket);
        resource.in_program.store(false, Relaxed);
    }
    while resource.in_program.load(Relaxed) {
        resource.worker.wait_timeout_ms(LOOK_AGAIN_MS);
        carry_out_orders(resource);
        while let Some(work) = resource.engine(|locked| locked.engine.poll_log()) {
            log(resource, &work);
        }
    }
    // Joins: nothing of the next program begins before this one has ended.
    drop(thread);
}

#[inline(never)]
fn help(resource: &Arc<Resource>, helper: Helper, volume: Option<VolumeId>, ticket: u32) {
    for _ in 0..METADATA_LOOKS {
        if resource.look(|locked| locked.engine.metadata_is_stored(volume)) {
            break;
        }
        fsleep(METADATA_LOOK);
    }
    let exit_code = helpers::run(resource, helper, volume);
    resource.engine(|locked| locked.engine.helper_done(ticket, exit_code, clock::monotonic_ms()));
}

/// Runs fence-peer in a thread of its own.
///
/// # Errors
/// `ENOMEM`.
#[inline(never)]
fn fence_aside(resource: &Arc<Resource>, volume: Option<VolumeId>, ticket: u32) -> Result {
    let mut threads = resource.fencing_threads.lock();
    threads.retain(|thread| !thread.is_finished());
    threads.reserve(1, GFP_KERNEL)?;
    let fenced = resource.clone();
    let thread = Thread::spawn(fmt!("drbd_fence_{}", resource.name.as_str()), move || {
        let _no_io = NoIoScope::enter();
        help(&fenced, Helper::FencePeer, volume, ticket);
    })?;
    threads.push(thread, GFP_KERNEL)?;
    Ok(())
}

/// Makes a bitmap of the new size without the engine's lock, and drops the old one without it.
#[inline(never)]
fn resize(resource: &Arc<Resource>, volume: VolumeId, sectors: u64) {
    let tables = BitmapTables::new(sectors).ok();
    let old = resource.engine(|locked| locked.engine.resize(volume, tables, clock::monotonic_ms()));
    drop(old);
}

fn with_volume(resource: &Arc<Resource>, id: VolumeId, f: impl FnOnce(&Arc<Volume>)) {
    let volume = resource.config.lock().volume(id).map(|config| config.volume.clone());
    if let Some(volume) = volume {
        f(&volume);
    }
}

/// The prefix of log lines about a volume: `r0/0 drbd0`.
pub(crate) struct Prefix<'a> {
    resource: &'a Resource,
    volume: Option<(u16, u32)>,
}

impl<'a> Prefix<'a> {
    /// For a volume, or for the resource.
    pub(crate) fn new(resource: &'a Resource, id: Option<VolumeId>) -> Self {
        let numbers = |config: &VolumeConfig| (config.number, config.minor);
        let volume = id.and_then(|id| resource.config.lock().volume(id).map(numbers));
        Prefix { resource, volume }
    }
}

impl fmt::Display for Prefix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.resource.name.as_str())?;
        match self.volume {
            Some((number, minor)) => write!(f, "/{number} drbd{minor}"),
            None => Ok(()),
        }
    }
}

/// Tells the kernel log of an order.
fn log(resource: &Resource, work: &Work) {
    match work {
        Work::Log(line) => log_line(resource, line),
        Work::Notice(notice) => log_notice(resource, notice),
        Work::Helper { .. } | Work::Algorithms | Work::ResyncDependencies => {}
    }
}

#[inline(never)]
fn log_line(resource: &Resource, line: &LogLine) {
    let prefix = Prefix::new(resource, line.volume());
    if line.is_error() {
        log_error!("{}: {}", prefix, line);
    } else {
        log_info!("{}: {}", prefix, line);
    }
}

// spec: proc-and-sysfs 7 (state change)
#[inline(never)]
fn log_notice(resource: &Resource, notice: &Notice) {
    match notice {
        Notice::State { volume, from, to, susp_before, susp, .. } => {
            let change = StateChange { from, to, susp_before: *susp_before, susp: *susp };
            log_info!("{}: {}", Prefix::new(resource, Some(*volume)), change);
        }
        Notice::Connection { from, to, .. } => {
            log_info!("{}: conn( {} -> {} )", resource.name.as_str(), from, to);
        }
        Notice::Suspended { from, to, .. } => {
            log_info!("{}: susp( {} -> {} )", resource.name.as_str(), u8::from(from.any()), u8::from(to.any()));
        }
    }
}

/// `role( Secondary -> Primary ) disk( ...`: what changed, in the words administrators know.
struct StateChange<'a> {
    from: &'a State,
    to: &'a State,
    susp_before: Susp,
    susp: Susp,
}

impl fmt::Display for StateChange<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (self.from, self.to);
        let mut changes = Changes { f, any: false };
        changes.add("peer", &from.peer.text(), &to.peer.text())?;
        changes.add("role", &from.role.text(), &to.role.text())?;
        changes.add("conn", &from.conn.text(), &to.conn.text())?;
        changes.add("disk", &from.disk.text(), &to.disk.text())?;
        changes.add("pdsk", &from.pdsk.text(), &to.pdsk.text())?;
        changes.add("susp", &u8::from(self.susp_before.any()), &u8::from(self.susp.any()))?;
        changes.add("aftr_isp", &u8::from(from.aftr_isp), &u8::from(to.aftr_isp))?;
        changes.add("peer_isp", &u8::from(from.peer_isp), &u8::from(to.peer_isp))?;
        changes.add("user_isp", &u8::from(from.user_isp), &u8::from(to.user_isp))
    }
}

struct Changes<'a, 'b> {
    f: &'a mut fmt::Formatter<'b>,
    any: bool,
}

impl Changes<'_, '_> {
    fn add<T: fmt::Display + PartialEq>(&mut self, name: &str, from: &T, to: &T) -> fmt::Result {
        if from == to {
            return Ok(());
        }
        let space = if self.any { " " } else { "" };
        self.any = true;
        write!(self.f, "{space}{name}( {from} -> {to} )")
    }
}
