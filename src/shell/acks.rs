// SPDX-License-Identifier: GPL-2.0
//! The meta socket: acknowledgements, pings and answers to state requests, received by `drbd_a_NAME`, and sent by whoever
//! made them or by `drbd_k_NAME`: see [`super::outlet`].
//!
//! Acknowledgements come in bursts of small packets, so as many as there are go into one call of the socket, and the
//! receiver takes what has arrived in one call and hands it to the engine in one critical section.
// spec: wire-protocol 10.1

use super::connection::{failed, is_running, Closing, Sockets};
use super::disk_io::{self, Context};
use super::log::log_info;
use super::resource::{Locked, Processors, Resource};
use super::sender::{complete, Flow, Patience};
use crate::linux::clock;
use crate::linux::mem::NoIoScope;
use crate::linux::sock::{PacketData, Sending};
use crate::linux::thread::{self, Thread};
use engine::resource::{Fault, LinkFailure, PacketHead};
use engine::state::Conn;
use kernel::prelude::*;
use kernel::sync::atomic::Relaxed;
use kernel::sync::Arc;

/// How long a thread sleeps at most before it looks whether the link still runs.
const LOOK_AGAIN_MS: u32 = 1000;
/// How long the reader sleeps at most before it looks again how long it may wait: a ping shortens that.
const SLICE_MS: u32 = 200;
/// Bytes received in one call at most.
const INBOX_BYTES: usize = 4096;
/// Largest body of a packet on the meta socket in bytes; the longest of the catalogue has 24.
const BODY_BYTES_MAX: usize = 256;
/// Bytes sent in one call at most.
const OUTBOX_BYTES: usize = 2048;
/// Room that every packet to be sent finds: header and body.
const PACKET_BYTES_MAX: usize = 16 + 24;
/// Bound: headers and bodies handed over in one critical section.
const BATCH: usize = 32;

/// Starts the thread that receives.
///
/// # Errors
/// `ENOMEM`.
pub(crate) fn start_receiver(resource: &Arc<Resource>, sockets: &Arc<Sockets>) -> Result<Thread> {
    let mut receiver = AckReceiver {
        resource: resource.clone(),
        sockets: sockets.clone(),
        inbox: KVec::from_elem(0u8, INBOX_BYTES, GFP_KERNEL)?,
        start: 0,
        end: 0,
        head: None,
        waiting: Waiting { since_ms: 0, timeout_ms: u32::MAX, packets: 0 },
    };
    Thread::spawn(fmt!("drbd_a_{}", resource.name.as_str()), move || {
        let _no_io = NoIoScope::enter();
        // spec: wire-protocol 1.1 (reader priority)
        thread::set_fifo_low();
        if receiver.wait_for_handshake().is_ok() {
            receiver.sockets.meta.set_receive_timeout(SLICE_MS);
            let mut processors = Processors::default();
            while receiver.packets().is_ok() {
                processors.follow(&receiver.resource);
            }
        }
        receiver.sockets.give_up(&receiver.resource);
        receiver.resource.wake_link();
    })
}

/// Starts the thread that sends.
///
/// # Errors
/// `ENOMEM`.
pub(crate) fn start_sender(resource: &Arc<Resource>, sockets: &Arc<Sockets>) -> Result<Thread> {
    let (own, sockets) = (resource.clone(), sockets.clone());
    Thread::spawn(fmt!("drbd_k_{}", resource.name.as_str()), move || {
        let _no_io = NoIoScope::enter();
        send_until_closed(&own, &sockets);
        sockets.give_up(&own);
        own.wake_link();
    })
}

struct AckReceiver {
    resource: Arc<Resource>,
    sockets: Arc<Sockets>,
    /// Received and not handed over yet: `inbox[start..end]`.
    inbox: KVec<u8>,
    start: usize,
    end: usize,
    /// Header of the packet in front, once it is there and understood.
    head: Option<PacketHead>,
    /// For the next packet.
    waiting: Waiting,
}

/// A pause on the meta socket.
struct Waiting {
    since_ms: u64,
    /// How long it may be.
    timeout_ms: u32,
    /// What had arrived on the data socket before.
    packets: u32,
}

impl AckReceiver {
    /// Nothing may be read before the peer's features are known: they decide how large a header is.
    // spec: wire-protocol 4.1 (7)
    fn wait_for_handshake(&self) -> Result<(), Closing> {
        let state = || self.resource.look(|locked| locked.engine.connection_status().state);
        while is_running(&self.resource) {
            let known = || !(Conn::WFConnection..Conn::WFReportParams).contains(&state());
            if self.resource.changed.wait_until_timeout_ms(LOOK_AGAIN_MS, known) && state() >= Conn::WFReportParams {
                return Ok(());
            }
        }
        Err(Closing)
    }

    /// Receives, and hands what is complete to the engine.
    fn packets(&mut self) -> Result<(), Closing> {
        self.receive()?;
        while self.hand_over()? {}
        Ok(())
    }

    /// Hands packets to the engine, as many as fit in a critical section. True if there are more.
    fn hand_over(&mut self) -> Result<bool, Closing> {
        let AckReceiver { resource, inbox, start, end, head, .. } = self;
        let result = resource.engine(|locked| {
            let now_ms = clock::monotonic_ms();
            for _ in 0..BATCH {
                let inbox = inbox.get(*start..*end).unwrap_or_default();
                let Some(known) = *head else {
                    let bytes = locked.engine.data_header_bytes();
                    let Some(header) = inbox.get(..bytes) else { return Ok(false) };
                    *head = Some(locked.engine.meta_header(header, now_ms)?);
                    *start = start.saturating_add(bytes);
                    continue;
                };
                let Some(body) = inbox.get(..known.body_bytes) else { return Ok(false) };
                locked.engine.meta_packet(&known, body, now_ms)?;
                *head = None;
                *start = start.saturating_add(known.body_bytes);
            }
            Ok(true)
        });
        let too_long = self.head.is_some_and(|head| head.body_bytes > BODY_BYTES_MAX);
        if too_long {
            return Err(failed(&self.resource, LinkFailure::MetaReceive));
        }
        // The engine has logged the fault and changed its state.
        result.map_err(|_fault: Fault| Closing)
    }

    fn receive(&mut self) -> Result<(), Closing> {
        if self.start < self.end {
            self.inbox.copy_within(self.start..self.end, 0);
        }
        self.end = self.end.saturating_sub(self.start);
        self.start = 0;
        // Somebody may have sent a ping meanwhile, whose answer is expected sooner.
        let timeout_ms = self.resource.look(|locked| locked.engine.meta_receive_timeout_ms());
        if timeout_ms != self.waiting.timeout_ms {
            self.wait_anew(timeout_ms);
        }
        let place = self.inbox.get_mut(self.end..).ok_or(Closing)?;
        match self.sockets.meta.receive(place, false) {
            Ok(bytes) if bytes > 0 => {
                self.end = self.end.saturating_add(bytes);
                self.wait_anew(timeout_ms);
                Ok(())
            }
            Err(error) if error == EAGAIN => self.slice_over(),
            Ok(_) => Err(failed(&self.resource, LinkFailure::MetaReceive)),
            Err(error) => {
                if is_running(&self.resource) {
                    log_info!("{}: receiving on the meta socket failed: {:?}", self.resource.name.as_str(), error);
                }
                Err(failed(&self.resource, LinkFailure::MetaReceive))
            }
        }
    }

    fn wait_anew(&mut self, timeout_ms: u32) {
        let packets = self.sockets.packets_received.load(Relaxed);
        self.waiting = Waiting { since_ms: clock::monotonic_ms(), timeout_ms, packets };
    }

    /// Nothing came for a while. Has it been too long?
    fn slice_over(&mut self) -> Result<(), Closing> {
        let now_ms = clock::monotonic_ms();
        let Waiting { since_ms, timeout_ms, packets } = self.waiting;
        if now_ms.saturating_sub(since_ms) < u64::from(timeout_ms) {
            return Ok(());
        }
        let data = &self.sockets;
        let arrived = data.packets_received.load(Relaxed) != packets || data.data.unread_bytes() > 0;
        self.wait_anew(timeout_ms);
        self.engine(|locked| locked.engine.meta_timeout(arrived, now_ms))
    }

    fn engine<R>(&self, f: impl FnOnce(&mut Locked) -> Result<R, Fault>) -> Result<R, Closing> {
        // The engine has logged the fault and changed its state.
        self.resource.engine(f).map_err(|_fault| Closing)
    }
}

fn send_until_closed(resource: &Arc<Resource>, sockets: &Sockets) {
    sockets.set_send_timeouts(resource);
    let mut processors = Processors::default();
    loop {
        processors.follow(resource);
        sockets.meta_out.take(|out| {
            out.push(resource, sockets, Context::Process, true);
        });
        if !is_running(resource) {
            break;
        }
        resource.acks.wait_timeout_ms(LOOK_AGAIN_MS);
    }
    sockets.meta_out.take(|out| out.close(resource));
}

/// Sends what the engine has, as far as the socket takes it at once; the rest is for the thread.
pub(crate) fn send_at_once(resource: &Arc<Resource>, sockets: &Sockets, context: Context) {
    sockets.meta_out.offer(|out| {
        if out.push(resource, sockets, context, false) == Flow::Blocked {
            resource.acks.set();
        }
    });
}

/// What is being sent on the meta socket.
pub(crate) struct MetaOut {
    /// Packets taken from the engine: `outbox[..end]`, of which `done` bytes are sent.
    outbox: KVec<u8>,
    end: usize,
    done: usize,
    /// The thread runs.
    open: bool,
}

impl MetaOut {
    /// For a new connection.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn new() -> Result<Self> {
        Ok(MetaOut { outbox: KVec::from_elem(0u8, OUTBOX_BYTES, GFP_KERNEL)?, end: 0, done: 0, open: true })
    }

    /// Sends until nothing is left; unless it may `wait`, no further than the socket takes it at once.
    fn push(&mut self, resource: &Arc<Resource>, sockets: &Sockets, context: Context, wait: bool) -> Flow {
        while self.open {
            if self.done >= self.end {
                self.fill(resource, context);
            }
            let Some(packets) = self.outbox.get(..self.end).filter(|packets| !packets.is_empty()) else { break };
            let how = Sending { copy: true, more: false, wait };
            let mut patience = Patience::for_meta(resource);
            let meta = &sockets.meta;
            let sent = complete(&mut patience, &mut self.done, self.end, wait, |done| {
                meta.send_packet(packets, PacketData::None, done, how)
            });
            match sent {
                Ok(Flow::Idle) => {}
                Ok(Flow::Blocked) => return Flow::Blocked,
                Err(Closing) => self.close(resource),
            }
        }
        Flow::Idle
    }

    /// Takes as many packets as there is room for, and reports those that were sent.
    fn fill(&mut self, resource: &Arc<Resource>, context: Context) {
        let MetaOut { outbox, end, done, .. } = self;
        let any_sent = core::mem::take(end) > 0;
        *done = 0;
        disk_io::enter(resource, context, |locked| {
            let now_ms = clock::monotonic_ms();
            if any_sent {
                locked.engine.meta_sent(true, now_ms);
            }
            while let Some(room) = outbox.get_mut(*end..).filter(|room| room.len() >= PACKET_BYTES_MAX) {
                let Some(outgoing) = locked.engine.next_meta(room, now_ms) else { break };
                *end = end.saturating_add(outgoing.head_bytes);
                if outgoing.last {
                    break;
                }
            }
        });
    }

    /// Nothing is sent any more.
    pub(crate) fn close(&mut self, resource: &Arc<Resource>) {
        self.open = false;
        if core::mem::take(&mut self.end) > 0 {
            resource.engine(|locked| locked.engine.meta_sent(false, clock::monotonic_ms()));
        }
    }
}
