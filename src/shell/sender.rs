// SPDX-License-Identifier: GPL-2.0
//! Sending on the data socket: takes packets from the engine one after the other, with their application data straight
//! from the pages it is in. By whoever made them, or by the thread `drbd_s_NAME`: see [`super::outlet`].

use super::connection::{failed, is_running, Closing, Sockets};
use super::disk_io::{self, Context};
use super::hashes;
use super::log::log_info;
use super::params;
use super::resource::{Locked, Processors, Resource};
use crate::linux::bio::Lent;
use crate::linux::clock;
use crate::linux::hash::Hash;
use crate::linux::mem::{NoIoScope, PageChain};
use crate::linux::sock::{PacketData, Sending};
use crate::linux::thread::Thread;
use engine::resource::{Digest, LinkFailure, Outgoing, Payload, PACKET_BUFFER_BYTES};
use kernel::prelude::*;
use kernel::sync::Arc;

/// How long the sender sleeps at most before it looks whether the link still runs.
const LOOK_AGAIN_MS: u32 = 1000;

/// What is being sent on the data socket.
pub(crate) struct DataOut {
    /// Head of the packet.
    buffer: KVec<u8>,
    /// Taken from the engine and not sent completely.
    packet: Option<Packet>,
    /// Bytes of it that are sent.
    done: usize,
    /// TCP holds the tail of a packet back.
    held_back: bool,
    /// The thread runs.
    open: bool,
}

/// A packet with the loan of its application data.
struct Packet {
    outgoing: Outgoing,
    data: Data,
    /// For a digest that goes between the head and the data.
    hash: Option<Arc<Hash>>,
    /// The options `tcp-cork` and `ko-count` when it was taken.
    cork: bool,
    ko_count: u32,
}

enum Data {
    None,
    Bio(Lent),
    Pages(PageChain, usize),
}

/// How sending came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// Nothing is left.
    Idle,
    /// What is left needs somebody who can wait.
    Blocked,
}

/// Starts the thread.
///
/// # Errors
/// `ENOMEM`.
pub(crate) fn start(resource: &Arc<Resource>, sockets: &Arc<Sockets>) -> Result<Thread> {
    let (own, sockets) = (resource.clone(), sockets.clone());
    Thread::spawn(fmt!("drbd_s_{}", resource.name.as_str()), move || {
        let _no_io = NoIoScope::enter();
        run(&own, &sockets);
        sockets.give_up(&own);
        own.wake_link();
    })
}

fn run(resource: &Arc<Resource>, sockets: &Sockets) {
    sockets.set_send_timeouts(resource);
    let mut processors = Processors::default();
    loop {
        processors.follow(resource);
        sockets.data_out.take(|out| {
            out.push(resource, sockets, Context::Process, true);
        });
        if !is_running(resource) {
            break;
        }
        resource.sender.wait_timeout_ms(LOOK_AGAIN_MS);
    }
    sockets.data_out.take(|out| out.close(resource));
}

/// Sends what the engine has, as far as the socket takes it at once; the rest is for the thread.
pub(crate) fn send_at_once(resource: &Arc<Resource>, sockets: &Sockets, context: Context) {
    sockets.data_out.offer(|out| {
        if out.push(resource, sockets, context, false) == Flow::Blocked {
            resource.sender.set();
        }
    });
}

impl DataOut {
    /// For a new connection.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn new() -> Result<Self> {
        let buffer = KVec::from_elem(0u8, PACKET_BUFFER_BYTES, GFP_KERNEL)?;
        Ok(DataOut { buffer, packet: None, done: 0, held_back: false, open: true })
    }

    /// Sends until nothing is left; unless it may `wait`, no further than the socket takes it at once.
    fn push(&mut self, resource: &Arc<Resource>, sockets: &Sockets, context: Context, wait: bool) -> Flow {
        let mut sent = None;
        while self.open {
            if self.packet.is_none() {
                self.packet = self.next(resource, context, sent.take());
                self.done = 0;
            }
            let Some(packet) = &self.packet else { break };
            let needs_digest = packet.outgoing.digest_bytes > 0 && self.done == 0;
            if needs_digest && !wait {
                return Flow::Blocked;
            }
            match self.send(resource, sockets, wait) {
                Ok(Flow::Idle) => {
                    self.packet = None;
                    sent = Some(true);
                }
                Ok(Flow::Blocked) => return Flow::Blocked,
                Err(Closing) => self.close(resource),
            }
        }
        if self.held_back {
            self.held_back = false;
            sockets.data.set_nodelay();
        }
        Flow::Idle
    }

    /// The next packet; `sent` is what became of the last one.
    fn next(&mut self, resource: &Arc<Resource>, context: Context, sent: Option<bool>) -> Option<Packet> {
        let buffer = &mut self.buffer;
        disk_io::enter(resource, context, |locked| {
            let now_ms = clock::monotonic_ms();
            if let Some(ok) = sent {
                locked.engine.data_sent(ok, now_ms);
            }
            let outgoing = locked.engine.next_data(buffer, now_ms)?;
            let hash = locked.hashes.for_sending(&outgoing, &locked.engine);
            let (cork, ko_count) = locked.engine.net_conf().map_or((false, 0), |net| (net.tcp_cork, net.ko_count));
            Some(Packet { outgoing, data: lend(locked, outgoing.payload), hash, cork, ko_count })
        })
    }

    /// Sends the packet, or as much of it as the socket takes.
    fn send(&mut self, resource: &Arc<Resource>, sockets: &Sockets, wait: bool) -> Result<Flow, Closing> {
        let Some(packet) = &self.packet else { return Ok(Flow::Idle) };
        let outgoing = &packet.outgoing;
        let head_bytes = outgoing.head_bytes.saturating_add(usize::from(outgoing.digest_bytes));
        if outgoing.digest_bytes > 0 && self.done == 0 {
            // It goes between the head and the data.
            let digest = packet.digest().ok_or_else(|| failed(resource, LinkFailure::Send))?;
            let place = self.buffer.get_mut(outgoing.head_bytes..head_bytes).ok_or(Closing)?;
            for (to, from) in place.iter_mut().zip(digest.as_bytes()) {
                *to = *from;
            }
        }
        let head = self.buffer.get(..head_bytes).ok_or(Closing)?;
        // An option of the connection decides whether small packets may wait for the next one.
        let more = packet.cork && !outgoing.last;
        let how = Sending { copy: outgoing.copy || params::disable_sendpage(), more, wait };
        let (data, data_bytes) = match &packet.data {
            Data::None => (PacketData::None, 0),
            Data::Bio(bio) => (PacketData::Bio(bio), bio.bytes() as usize),
            Data::Pages(pages, bytes) => (PacketData::Pages(pages, *bytes), *bytes),
        };
        self.held_back = more;
        let bytes = head_bytes.saturating_add(data_bytes);
        let mut patience = Patience::for_data(resource, packet.ko_count);
        let socket = &sockets.data;
        complete(&mut patience, &mut self.done, bytes, wait, |done| socket.send_packet(head, data, done, how))
    }

    /// Nothing is sent any more.
    pub(crate) fn close(&mut self, resource: &Arc<Resource>) {
        self.open = false;
        if self.packet.take().is_some() {
            resource.engine(|locked| locked.engine.data_sent(false, clock::monotonic_ms()));
        }
    }
}

impl Packet {
    /// The digest that goes with it.
    fn digest(&self) -> Option<Digest> {
        let hash = self.hash.as_ref()?;
        match &self.data {
            Data::None => None,
            Data::Bio(bio) => hashes::digest(hash, bio.segments()),
            Data::Pages(pages, _) => hashes::digest(hash, pages.segments()),
        }
    }
}

fn lend(locked: &mut Locked, payload: Payload) -> Data {
    match payload {
        Payload::None => Data::None,
        Payload::Request(request) => locked.uppers.get(request).map_or(Data::None, |bio| Data::Bio(bio.lend())),
        Payload::Peer(peer, bytes) => {
            locked.peer_pages.take(peer).map_or(Data::None, |pages| Data::Pages(pages, bytes as usize))
        }
    }
}

/// How often sending may time out before the peer counts as dead.
// spec: wire-protocol 10.2
pub(crate) struct Patience<'a> {
    resource: &'a Arc<Resource>,
    /// Timeouts left; `None`: any number.
    left: Option<u32>,
    /// Every timeout makes the meta socket find out whether the peer is still there.
    pings: bool,
}

impl<'a> Patience<'a> {
    /// On the data socket a packet may take `ko-count` times the timeout, once the handshake is over.
    fn for_data(resource: &'a Arc<Resource>, ko_count: u32) -> Self {
        let left = match ko_count {
            0 => None,
            count => Some(count),
        };
        Patience { resource, left, pings: true }
    }

    /// On the meta socket the first timeout is the last.
    pub(crate) fn for_meta(resource: &'a Arc<Resource>) -> Self {
        Patience { resource, left: Some(1), pings: false }
    }

    /// A timeout is over.
    fn timed_out(&mut self) -> Result<(), Closing> {
        if !is_running(self.resource) {
            return Err(Closing);
        }
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(1);
            if *left == 0 {
                return Err(failed(self.resource, LinkFailure::SendTimeout));
            }
        }
        if self.pings {
            self.resource.engine(|locked| locked.engine.ping_wanted(clock::monotonic_ms()));
        }
        Ok(())
    }
}

/// Calls `send(done)` until `done` is `bytes`, or, when it must not `wait`, until the socket is full.
pub(crate) fn complete(
    patience: &mut Patience<'_>,
    done: &mut usize,
    bytes: usize,
    wait: bool,
    mut send: impl FnMut(usize) -> Result<usize>,
) -> Result<Flow, Closing> {
    while *done < bytes {
        match send(*done) {
            Ok(sent) => *done = done.saturating_add(sent),
            Err(error) if error == EAGAIN && !wait => return Ok(Flow::Blocked),
            Err(error) if error == EAGAIN => patience.timed_out()?,
            Err(error) => {
                if is_running(patience.resource) {
                    log_info!("{}: sending failed: {:?}", patience.resource.name.as_str(), error);
                }
                return Err(failed(patience.resource, LinkFailure::Send));
            }
        }
    }
    Ok(Flow::Idle)
}
