// SPDX-License-Identifier: GPL-2.0
//! The meta socket: acknowledgements, pings and answers to state requests, received by `drbd_a_NAME` and sent by
//! `drbd_k_NAME`.
//!
//! Acknowledgements come in bursts of small packets, so the receiver takes what has arrived in one call and hands the
//! packets to the engine out of its buffer.
// spec: wire-protocol 10.1

use super::connection::{failed, is_running, tenths_ms, Closing, Sockets};
use super::log::log_info;
use super::resource::{Locked, Processors, Resource};
use super::sender::{complete, Patience};
use crate::linux::clock;
use crate::linux::mem::NoIoScope;
use crate::linux::thread::{self, Thread};
use engine::resource::{Fault, LinkFailure, PACKET_BUFFER_BYTES};
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
/// Largest packet header in bytes; the header of the meta socket is as large as that of the data socket.
const HEADER_BYTES_MAX: usize = 16;
/// Largest body of a packet on the meta socket in bytes; the longest of the catalogue has 24.
const BODY_BYTES_MAX: usize = 256;

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
        waiting: Waiting { since_ms: 0, timeout_ms: u32::MAX, packets: 0 },
    };
    Thread::spawn(fmt!("drbd_a_{}", resource.name.as_str()), move || {
        let _no_io = NoIoScope::enter();
        // spec: wire-protocol 1.1 (reader priority)
        thread::set_fifo_low();
        if receiver.wait_for_handshake().is_ok() {
            receiver.sockets.meta.set_receive_timeout(SLICE_MS);
            let mut processors = Processors::default();
            while receiver.packet().is_ok() {
                processors.follow(&receiver.resource);
            }
        }
        receiver.sockets.shutdown();
        receiver.resource.wake_link();
    })
}

/// Starts the thread that sends.
///
/// # Errors
/// `ENOMEM`.
pub(crate) fn start_sender(resource: &Arc<Resource>, sockets: &Arc<Sockets>) -> Result<Thread> {
    let mut sender = AckSender {
        resource: resource.clone(),
        sockets: sockets.clone(),
        buffer: KVec::from_elem(0u8, PACKET_BUFFER_BYTES, GFP_KERNEL)?,
        held_back: false,
    };
    Thread::spawn(fmt!("drbd_k_{}", resource.name.as_str()), move || {
        let _no_io = NoIoScope::enter();
        sender.run();
        sender.sockets.shutdown();
        sender.resource.wake_link();
    })
}

struct AckReceiver {
    resource: Arc<Resource>,
    sockets: Arc<Sockets>,
    /// Received and not handed over yet: `inbox[start..end]`.
    inbox: KVec<u8>,
    start: usize,
    end: usize,
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

    /// Hands one packet to the engine.
    fn packet(&mut self) -> Result<(), Closing> {
        let bytes = self.resource.look(|locked| locked.engine.data_header_bytes());
        let mut header = [0; HEADER_BYTES_MAX];
        let header = header.get_mut(..bytes).ok_or(Closing)?;
        self.take(header)?;
        let head = self.engine(|locked| locked.engine.meta_header(header, clock::monotonic_ms()))?;
        let mut body = [0; BODY_BYTES_MAX];
        let Some(body) = body.get_mut(..head.body_bytes) else {
            return Err(failed(&self.resource, LinkFailure::MetaReceive));
        };
        self.take(body)?;
        self.engine(|locked| locked.engine.meta_packet(&head, body, clock::monotonic_ms()))
    }

    /// Fills `buffer` from the inbox, and the inbox from the socket.
    fn take(&mut self, buffer: &mut [u8]) -> Result<(), Closing> {
        while self.end.saturating_sub(self.start) < buffer.len() {
            self.receive()?;
        }
        let end = self.start.saturating_add(buffer.len());
        let bytes = self.inbox.get(self.start..end).ok_or(Closing)?;
        buffer.copy_from_slice(bytes);
        self.start = end;
        Ok(())
    }

    fn receive(&mut self) -> Result<(), Closing> {
        self.inbox.copy_within(self.start..self.end, 0);
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

struct AckSender {
    resource: Arc<Resource>,
    sockets: Arc<Sockets>,
    buffer: KVec<u8>,
    /// TCP holds the tail of a packet back.
    held_back: bool,
}

impl AckSender {
    fn run(&mut self) {
        self.sockets.meta.set_send_timeout(tenths_ms(self.sockets.options.timeout));
        let mut sent = None;
        let mut processors = Processors::default();
        loop {
            processors.follow(&self.resource);
            let buffer = &mut self.buffer;
            let next = self.resource.engine(|locked| {
                let now_ms = clock::monotonic_ms();
                if let Some(ok) = sent.take() {
                    locked.engine.meta_sent(ok, now_ms);
                }
                locked.engine.next_meta(buffer, now_ms)
            });
            let Some(outgoing) = next else {
                if !is_running(&self.resource) {
                    break;
                }
                self.wait();
                continue;
            };
            let more = self.sockets.options.tcp_cork && !outgoing.last;
            let result = self.send(outgoing.head_bytes, more);
            sent = Some(result.is_ok());
            if result.is_err() {
                break;
            }
        }
        if let Some(ok) = sent {
            self.resource.engine(|locked| locked.engine.meta_sent(ok, clock::monotonic_ms()));
        }
    }

    fn send(&mut self, bytes: usize, more: bool) -> Result<(), Closing> {
        let packet = self.buffer.get(..bytes).ok_or(Closing)?;
        let meta = &self.sockets.meta;
        let mut patience = Patience::for_meta(&self.resource);
        complete(&mut patience, bytes, |done| meta.send(packet.get(done..).unwrap_or_default(), more))?;
        self.held_back = more;
        Ok(())
    }

    fn wait(&mut self) {
        if self.held_back {
            self.held_back = false;
            self.sockets.meta.set_nodelay();
        }
        self.resource.acks.wait_timeout_ms(LOOK_AGAIN_MS);
    }
}
