// SPDX-License-Identifier: GPL-2.0
//! Sending on the data socket (`drbd_s_NAME`): takes packets from the engine one after the other, with their
//! application data straight from the pages it is in.

use super::connection::{failed, is_running, tenths_ms, Closing, Sockets};
use super::hashes;
use super::log::log_info;
use super::params;
use super::resource::{Locked, Processors, Resource};
use crate::linux::bio::Lent;
use crate::linux::clock;
use crate::linux::hash::Hash;
use crate::linux::mem::{NoIoScope, PageChain};
use crate::linux::sock::Sending;
use crate::linux::thread::Thread;
use engine::resource::{Digest, LinkFailure, Outgoing, Payload, PACKET_BUFFER_BYTES};
use kernel::prelude::*;
use kernel::sync::Arc;

/// How long the sender sleeps at most before it looks whether the link still runs.
const LOOK_AGAIN_MS: u32 = 1000;

struct Sender {
    resource: Arc<Resource>,
    sockets: Arc<Sockets>,
    buffer: KVec<u8>,
    /// TCP holds the tail of a packet back.
    held_back: bool,
}

/// A packet with the loan of its application data.
struct Packet {
    outgoing: Outgoing,
    data: Data,
    /// For a digest that goes between the head and the data.
    hash: Option<Arc<Hash>>,
}

enum Data {
    None,
    Bio(Lent),
    Pages(PageChain, usize),
}

/// Starts the thread.
///
/// # Errors
/// `ENOMEM`.
pub(crate) fn start(resource: &Arc<Resource>, sockets: &Arc<Sockets>) -> Result<Thread> {
    let mut sender = Sender {
        resource: resource.clone(),
        sockets: sockets.clone(),
        buffer: KVec::from_elem(0u8, PACKET_BUFFER_BYTES, GFP_KERNEL)?,
        held_back: false,
    };
    Thread::spawn(fmt!("drbd_s_{}", resource.name.as_str()), move || {
        let _no_io = NoIoScope::enter();
        sender.run();
        sender.sockets.shutdown();
        sender.resource.wake_link();
    })
}

impl Sender {
    fn run(&mut self) {
        let timeout_ms = tenths_ms(self.sockets.options.timeout);
        self.sockets.data.set_send_timeout(timeout_ms);
        let mut sent = None;
        let mut processors = Processors::default();
        loop {
            processors.follow(&self.resource);
            let buffer = &mut self.buffer;
            let next = self.resource.engine(|locked| {
                let now_ms = clock::monotonic_ms();
                if let Some(ok) = sent.take() {
                    locked.engine.data_sent(ok, now_ms);
                }
                let outgoing = locked.engine.next_data(buffer, now_ms)?;
                let hash = locked.hashes.for_sending(&outgoing, &locked.engine);
                Some(Packet { outgoing, data: lend(locked, outgoing.payload), hash })
            });
            match next {
                Some(packet) => match self.send(&packet) {
                    Ok(()) => sent = Some(true),
                    Err(Closing) => {
                        sent = Some(false);
                        break;
                    }
                },
                None if is_running(&self.resource) => self.wait(),
                None => break,
            }
        }
        if let Some(ok) = sent {
            self.resource.engine(|locked| locked.engine.data_sent(ok, clock::monotonic_ms()));
        }
    }

    fn wait(&mut self) {
        if self.held_back {
            self.held_back = false;
            self.sockets.data.set_nodelay();
        }
        self.resource.sender.wait_timeout_ms(LOOK_AGAIN_MS);
    }

    fn send(&mut self, packet: &Packet) -> Result<(), Closing> {
        let outgoing = &packet.outgoing;
        // An option of the connection decides whether small packets may wait for the next one.
        let more = self.sockets.options.tcp_cork && !outgoing.last;
        let how = Sending { copy: outgoing.copy || params::disable_sendpage(), more };
        let head = self.buffer.get(..outgoing.head_bytes).ok_or(Closing)?;
        let has_data = !matches!(packet.data, Data::None);
        let digest = self.digest(packet)?;
        let data = &self.sockets.data;
        let mut patience = Patience::for_data(&self.resource, self.sockets.options.ko_count);
        complete(&mut patience, head.len(), |done| data.send(head.get(done..).unwrap_or_default(), more || has_data))?;
        let digest = digest.as_bytes();
        complete(&mut patience, digest.len(), |done| data.send(digest.get(done..).unwrap_or_default(), true))?;
        match &packet.data {
            Data::None => {}
            Data::Bio(bio) => complete(&mut patience, bio.bytes() as usize, |done| data.send_lent(bio, done, how))?,
            Data::Pages(pages, bytes) => {
                complete(&mut patience, *bytes, |done| data.send_pages(pages, done, *bytes, how))?;
            }
        }
        self.held_back = more;
        Ok(())
    }
}

impl Sender {
    /// The digest that goes with a packet; empty without.
    fn digest(&self, packet: &Packet) -> Result<Digest, Closing> {
        if packet.outgoing.digest_bytes == 0 {
            return Ok(Digest::EMPTY);
        }
        let digest = packet.hash.as_ref().and_then(|hash| match &packet.data {
            Data::None => None,
            Data::Bio(bio) => hashes::digest(hash, bio.segments()),
            Data::Pages(pages, _) => hashes::digest(hash, pages.segments()),
        });
        digest.ok_or_else(|| failed(&self.resource, LinkFailure::Send))
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

/// Calls `send(done)` until `bytes` are sent.
pub(crate) fn complete(
    patience: &mut Patience<'_>,
    bytes: usize,
    mut send: impl FnMut(usize) -> Result<usize>,
) -> Result<(), Closing> {
    let mut done: usize = 0;
    while done < bytes {
        match send(done) {
            Ok(sent) => done = done.saturating_add(sent),
            Err(error) if error == EAGAIN => patience.timed_out()?,
            Err(error) => {
                if is_running(patience.resource) {
                    log_info!("{}: sending failed: {:?}", patience.resource.name.as_str(), error);
                }
                return Err(failed(patience.resource, LinkFailure::Send));
            }
        }
    }
    Ok(())
}
