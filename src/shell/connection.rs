// SPDX-License-Identifier: GPL-2.0
//! The connection of a resource: its thread, its two sockets and everybody who uses them.
//!
//! The engine says by `link_task()` what should be going on. The connection's thread (`drbd_r_NAME`) follows: it
//! establishes the two sockets, starts the other three threads of the link, receives from the data socket, and winds
//! everything down again. The supervisor starts the thread when there is something to establish and shuts sockets down
//! when there is not; it looks again every 100 ms until the thread has followed, so a shutdown that came a moment
//! before a connect or accept began cannot be lost.
// spec: wire-protocol 1, 11.2

use super::acks::MetaOut;
use super::disk_io::tell_device_sizes;
use super::log::log_error;
use super::outlet::Outlet;
use super::resource::Resource;
use super::sender::DataOut;
use super::{acks, establish, receiver, sender};
use crate::linux::clock;
use crate::linux::mem::NoIoScope;
use crate::linux::sock::{Listener, Priority, Stream};
use crate::linux::thread::Thread;
use engine::netlink::NetConf;
use engine::resource::{LinkFailure, LinkTask, Parting, Reconnect, VolumeId};
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed};
use kernel::sync::Arc;

/// How long a wait in the connection's thread lasts at most before its condition is looked at again.
const LOOK_AGAIN_MS: u32 = 1000;
/// How long a wait for the peer to close the connection lasts at most before its condition is looked at again.
const PARTING_SLICE_MS: u32 = 50;
/// Pause after a connection that failed before it was of use.
const RETRY_MS: u32 = 1000;

/// What the connection's thread and the supervisor share.
#[derive(Default)]
pub(crate) struct Link {
    thread: Option<Thread>,
    /// The thread's last act was to set this.
    ended: bool,
    /// Whatever the thread may be blocked on.
    listener: Option<Arc<Listener>>,
    streams: [Option<Arc<Stream>>; STREAMS],
}

/// Sockets the thread holds at most: data, meta and the one just being made.
const STREAMS: usize = 3;

/// The two sockets of an established connection and what its threads share.
#[pin_data]
pub(crate) struct Sockets {
    /// Data socket.
    pub(crate) data: Arc<Stream>,
    /// Meta socket.
    pub(crate) meta: Arc<Stream>,
    /// Packets received on the data socket.
    pub(crate) packets_received: Atomic<u32>,
    /// What is being sent on the data socket.
    #[pin]
    pub(crate) data_out: Outlet<DataOut>,
    /// What is being sent on the meta socket.
    #[pin]
    pub(crate) meta_out: Outlet<MetaOut>,
}

/// The link has to be wound down.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Closing;

impl Sockets {
    fn new(data: Arc<Stream>, meta: Arc<Stream>) -> Result<Arc<Self>> {
        let (data_out, meta_out) = (DataOut::new()?, MetaOut::new()?);
        Arc::pin_init(
            pin_init!(Sockets {
                data,
                meta,
                packets_received: Atomic::new(0),
                data_out <- Outlet::new(data_out),
                meta_out <- Outlet::new(meta_out),
            }),
            GFP_KERNEL,
        )
    }

    /// A thread does not need them any more: ends them, unless the peer is to find out why, or this node may from the other
    /// socket.
    pub(crate) fn give_up(&self, resource: &Arc<Resource>) {
        if parting(resource) == Parting::AtOnce && !awaits_reason(resource) {
            self.shutdown();
        }
    }

    /// How long one send may take, as the option `timeout` says now.
    pub(crate) fn set_send_timeouts(&self, resource: &Resource) {
        if let Some(timeout) = net_option(resource, |net| net.timeout) {
            self.data.set_send_timeout(tenths_ms(timeout));
            self.meta.set_send_timeout(tenths_ms(timeout));
        }
    }

    /// Leaves the peer time to read what it was told, and waits for it to close the connection, where the engine says so.
    // spec: wire-protocol 11.1
    fn part(&self, resource: &Arc<Resource>) {
        while awaits_reason(resource) {
            resource.link_event.wait_timeout_ms(PARTING_SLICE_MS);
        }
        if parting(resource) == Parting::PeerJudges {
            self.data.end_sending();
        }
        self.data.set_receive_timeout(PARTING_SLICE_MS);
        while parting(resource) != Parting::AtOnce {
            // What it still sends is of no interest.
            match self.data.receive(&mut [0; 64], false) {
                Ok(0) => break,
                Err(error) if error != EAGAIN => break,
                Ok(_) | Err(_) => {}
            }
        }
        self.shutdown();
    }

    fn shutdown(&self) {
        self.data.shutdown();
        self.meta.shutdown();
    }
}

/// Reports the failure of a socket to the engine, which decides what follows.
pub(crate) fn failed(resource: &Arc<Resource>, failure: LinkFailure) -> Closing {
    resource.engine(|locked| locked.engine.link_failed(failure, clock::monotonic_ms()));
    Closing
}

fn parting(resource: &Arc<Resource>) -> Parting {
    resource.look(|locked| locked.engine.parting(clock::monotonic_ms()))
}

fn awaits_reason(resource: &Arc<Resource>) -> bool {
    resource.look(|locked| locked.engine.awaits_reason())
}

/// An option of the connection, as it is now: the administrator may change it at any time. `None`: nothing is configured.
pub(crate) fn net_option<R>(resource: &Resource, pick: impl FnOnce(&NetConf) -> R) -> Option<R> {
    resource.look(|locked| locked.engine.net_conf().map(pick))
}

fn link_task(resource: &Arc<Resource>) -> LinkTask {
    resource.engine(|locked| locked.engine.link_task())
}

/// True while the engine wants this link to be used.
pub(crate) fn is_running(resource: &Arc<Resource>) -> bool {
    link_task(resource) == LinkTask::Run
}

/// Called by the supervisor: starts the connection's thread, makes it notice a change, or joins it.
pub(crate) fn supervise(resource: &Arc<Resource>) {
    if !resource.link_changed.load(Relaxed) {
        return;
    }
    resource.link_changed.store(false, Relaxed);
    let mut link = resource.link.lock();
    // Asked for under the lock, as in `register`: the thread may be through with one link and on to the next, whose
    // sockets must not be shut down because of the one before.
    let task = resource.engine_without_disk(|locked| locked.engine.link_task());
    let finished = if link.ended {
        link.ended = false;
        link.thread.take()
    } else {
        None
    };
    match (task, link.thread.is_some()) {
        (LinkTask::Stop, false) | (LinkTask::Establish | LinkTask::Run, true) => {}
        (LinkTask::Stop | LinkTask::Close, true) => {
            match parting(resource) {
                Parting::AtOnce => link.shutdown(),
                Parting::PeerJudges => link.end_sending(),
                // Its end of the sockets wakes the thread.
                Parting::PeerCloses => {}
            }
            // Again until the thread has noticed.
            resource.link_changed.store(true, Relaxed);
        }
        (LinkTask::Establish | LinkTask::Run | LinkTask::Close, false) => match start(resource) {
            Ok(thread) => link.thread = Some(thread),
            Err(error) => {
                log_error!("{}: cannot start the connection's thread: {:?}", resource.name.as_str(), error);
                resource.link_changed.store(true, Relaxed);
            }
        },
    }
    drop(link);
    // Joins without the lock; it has ended but for a few instructions.
    drop(finished);
}

/// True when the connection's thread is gone. Waits for nothing.
pub(crate) fn is_gone(resource: &Resource) -> bool {
    resource.link.lock().thread.is_none()
}

fn start(resource: &Arc<Resource>) -> Result<Thread> {
    let followed = resource.clone();
    Thread::spawn(fmt!("drbd_r_{}", resource.name.as_str()), move || run(&followed))
}

fn run(resource: &Arc<Resource>) {
    let _no_io = NoIoScope::enter();
    loop {
        match link_task(resource) {
            LinkTask::Stop => break,
            LinkTask::Establish => establish_and_serve(resource),
            LinkTask::Run | LinkTask::Close => close(resource),
        }
    }
    let mut link = resource.link.lock();
    link.forget();
    link.ended = true;
    drop(link);
    resource.wake_link();
}

#[inline(never)]
fn establish_and_serve(resource: &Arc<Resource>) {
    let addresses = resource.config.lock().connection;
    let is_configured = net_option(resource, |_| ()).is_some();
    let Some(addresses) = addresses.filter(|_| is_configured) else {
        failed(resource, LinkFailure::LocalAddress);
        return;
    };
    let established = establish::establish(resource, &addresses);
    resource.link.lock().listener = None;
    if let Some(established) = established {
        match Sockets::new(established.data, established.meta) {
            Ok(sockets) => serve(resource, &sockets, established.resolve_conflicts),
            Err(_) => {
                resource.link_event.wait_timeout_ms(RETRY_MS);
            }
        }
    }
    resource.link.lock().forget();
}

/// From the moment both sockets stand until nobody uses them any more.
#[inline(never)]
fn serve(resource: &Arc<Resource>, sockets: &Arc<Sockets>, resolve_conflicts: bool) {
    prepare(resource, sockets);
    let before = resource.engine(|locked| {
        // The peer is told how large the disks are now.
        for id in (0..locked.volumes.len()).filter_map(|index| u8::try_from(index).ok()) {
            tell_device_sizes(locked, VolumeId(id));
        }
        locked.engine.link_up(resolve_conflicts, clock::monotonic_ms());
        // From now on everybody may send, and not before: what is still due for the last connection must not come first.
        locked.sockets.replace(sockets.clone())
    });
    drop(before);
    let threads = (
        sender::start(resource, sockets),
        acks::start_receiver(resource, sockets),
        acks::start_sender(resource, sockets),
    );
    if let (Ok(_), Ok(_), Ok(_)) = &threads {
        let Closing = receiver::run(resource, sockets);
    } else {
        log_error!("{}: cannot start the threads of the connection", resource.name.as_str());
        failed(resource, LinkFailure::DataReceive);
    }
    sockets.part(resource);
    resource.wake_link();
    // Each of them sees that the link is not running, or its socket fails.
    drop(threads);
    let before = resource.locked.with(|locked| locked.sockets.take());
    drop(before);
    // Whoever still has them finds them closed.
    sockets.data_out.take(|out| out.close(resource));
    sockets.meta_out.take(|out| out.close(resource));
    close(resource);
}

/// Waits until nothing of this link is in flight any more and says so.
#[inline(never)]
fn close(resource: &Arc<Resource>) {
    while !resource.engine(|locked| locked.engine.link_drained()) {
        resource.link_event.wait_timeout_ms(LOOK_AGAIN_MS);
    }
    match resource.engine(|locked| locked.engine.link_closed(clock::monotonic_ms())) {
        Reconnect::AfterOneSecond => {
            // Ended early by a disconnect.
            resource.link_event.take();
            resource.link_event.wait_timeout_ms(RETRY_MS);
        }
        Reconnect::AtOnce | Reconnect::Never => {}
    }
}

// spec: wire-protocol 1.2 (after both sockets stand)
fn prepare(resource: &Resource, sockets: &Sockets) {
    // Where nothing is configured any more the link does not run.
    let times = net_option(resource, |net| (net.ping_timeo, net.timeout, net.ping_int));
    let (ping_timeo, timeout, ping_int) = times.unwrap_or_default();
    let handshake_ms = tenths_ms(ping_timeo).saturating_mul(4);
    sockets.data.set_priority(Priority::Data);
    sockets.meta.set_priority(Priority::Meta);
    sockets.data.set_timeouts(handshake_ms, handshake_ms);
    sockets.meta.set_timeouts(tenths_ms(timeout), ping_int.saturating_mul(1000));
    sockets.data.set_nodelay();
    sockets.meta.set_nodelay();
}

/// Tenths of a second in milliseconds.
pub(crate) fn tenths_ms(tenths: u32) -> u32 {
    tenths.saturating_mul(100)
}

impl Link {
    /// Lets the supervisor end what the thread is about to block on. Refused when the link has nothing to establish any
    /// more.
    ///
    /// # Errors
    /// [`Closing`]: do not begin.
    pub(crate) fn register(resource: &Arc<Resource>, slot: usize, stream: &Arc<Stream>) -> Result<(), Closing> {
        let mut link = resource.link.lock();
        if link_task(resource) != LinkTask::Establish {
            return Err(Closing);
        }
        *link.streams.get_mut(slot).ok_or(Closing)? = Some(stream.clone());
        Ok(())
    }

    /// As [`Link::register`], for the listening socket.
    ///
    /// # Errors
    /// [`Closing`]: do not begin.
    pub(crate) fn register_listener(resource: &Arc<Resource>, listener: &Arc<Listener>) -> Result<(), Closing> {
        let mut link = resource.link.lock();
        if link_task(resource) != LinkTask::Establish {
            return Err(Closing);
        }
        link.listener = Some(listener.clone());
        Ok(())
    }

    fn shutdown(&self) {
        if let Some(listener) = &self.listener {
            listener.shutdown();
        }
        for stream in self.streams.iter().flatten() {
            stream.shutdown();
        }
    }

    /// Nothing more comes on the data socket.
    fn end_sending(&self) {
        if let [Some(data), ..] = &self.streams {
            data.end_sending();
        }
    }

    fn forget(&mut self) {
        self.listener = None;
        self.streams = Default::default();
    }
}
