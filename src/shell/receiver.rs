// SPDX-License-Identifier: GPL-2.0
//! Receiving from the data socket: header, fixed part, then application data straight into the pages it belongs to.

use super::connection::{failed, is_running, Closing, Sockets};
use super::disk_io::tell_device_sizes;
use super::hashes::{self, Check};
use super::log::log_info;
use super::resource::{Locked, Processors, Resource};
use crate::linux::clock;
use crate::linux::mem::PageChain;
use engine::resource::{Fault, LinkFailure, LinkTask, Next, PeerId, RequestId, PACKET_BUFFER_BYTES};
use kernel::prelude::*;
use kernel::sync::atomic::Relaxed;
use kernel::sync::Arc;

/// Largest packet header in bytes.
const HEADER_BYTES_MAX: usize = 16;
/// How long the receiver sleeps at most before it looks again whether it may read.
const LOOK_AGAIN_MS: u32 = 1000;

struct Receiver<'a> {
    resource: &'a Arc<Resource>,
    sockets: &'a Sockets,
    body: KVec<u8>,
}

/// Receives until the link has to be wound down.
pub(crate) fn run(resource: &Arc<Resource>, sockets: &Arc<Sockets>) -> Closing {
    let body = match KVec::from_elem(0u8, PACKET_BUFFER_BYTES, GFP_KERNEL) {
        Ok(body) => body,
        Err(_) => return failed(resource, LinkFailure::DataReceive),
    };
    let mut receiver = Receiver { resource, sockets, body };
    let mut processors = Processors::default();
    loop {
        processors.follow(resource);
        if let Err(closing) = receiver.packet() {
            return closing;
        }
    }
}

impl Receiver<'_> {
    /// Receives one packet and hands it to the engine.
    fn packet(&mut self) -> Result<(), Closing> {
        let mut header = [0; HEADER_BYTES_MAX];
        let bytes = self.wait_for_turn()?;
        let header = header.get_mut(..bytes).ok_or(Closing)?;
        self.quick_ack();
        self.exactly(header)?;
        self.packet_arrived();
        let head = self.engine(|locked| locked.engine.data_header(header, clock::monotonic_ms()))?;
        let mut body = core::mem::take(&mut self.body);
        let next = self.body_of(&mut body, head.body_bytes).and_then(|body| {
            self.engine(|locked| {
                if let Some(id) = locked.engine.wants_device_sizes(&head) {
                    tell_device_sizes(locked, id);
                }
                let next = locked.engine.data_packet(&head, body, clock::monotonic_ms())?;
                Ok((next, locked.hashes.for_receiving(&next, &locked.engine)))
            })
        });
        self.body = body;
        let (next, check) = next?;
        match next {
            Next::Packet => Ok(()),
            Next::Authenticate => self.authenticate(head.body_bytes),
            Next::Payload { peer, size_bytes } => self.payload(peer, size_bytes as usize, &check),
            Next::ReadReply { request, size_bytes } => self.read_reply(request, size_bytes as usize, &check),
            Next::Drain { size_bytes } => self.drain(size_bytes as usize),
        }
    }

    fn body_of<'b>(&self, buffer: &'b mut KVec<u8>, bytes: usize) -> Result<&'b [u8], Closing> {
        let body = buffer.get_mut(..bytes).ok_or_else(|| failed(self.resource, LinkFailure::DataReceive))?;
        self.exactly(body)?;
        Ok(body)
    }

    /// Waits until the engine has room for another packet; returns the size of its header.
    fn wait_for_turn(&mut self) -> Result<usize, Closing> {
        loop {
            let (task, may_read, header_bytes) = self.resource.engine(|locked| {
                let engine = &mut locked.engine;
                (engine.link_task(), engine.receiver_may_read(), engine.data_header_bytes())
            });
            if task != LinkTask::Run {
                return Err(Closing);
            }
            if may_read {
                return Ok(header_bytes);
            }
            self.resource.receiver.wait_timeout_ms(LOOK_AGAIN_MS);
        }
    }

    /// After the features, and a challenge and its answer, the handshake is over: from then on the keepalive notices a
    /// dead peer.
    fn packet_arrived(&self) {
        let last_of_handshake = if self.sockets.options.cram_hmac_alg.is_empty() { 1 } else { 3 };
        if self.sockets.packets_received.fetch_add(1, Relaxed) + 1 == last_of_handshake {
            self.sockets.data.set_receive_timeout(0);
        }
    }

    /// With nothing left to read, the peer should not wait for our TCP acknowledgement.
    // spec: wire-protocol 1.1 (quick ack)
    fn quick_ack(&self) {
        if self.sockets.data.unread_bytes() == 0 {
            self.sockets.data.quick_ack();
        }
    }

    /// Answers the peer's challenge, which is in `self.body`.
    // spec: wire-protocol 4.3
    fn authenticate(&self, bytes: usize) -> Result<(), Closing> {
        let challenge = self.body.get(..bytes).ok_or(Closing)?;
        let own = self.resource.look(|locked| locked.engine.own_challenge());
        let hmacs = hashes::hmacs(&self.sockets.options, challenge, own.as_bytes());
        self.engine(|locked| locked.engine.authenticate(hmacs, clock::monotonic_ms()))
    }

    /// Data has arrived: is it what its digest says?
    fn check<'b>(&self, check: &Check, data: impl Iterator<Item = &'b [u8]>) -> Result<(), Closing> {
        let digest = match check {
            Check::No => return Ok(()),
            Check::With(hash) => hash.as_ref().and_then(|hash| hashes::digest(hash, data)),
        };
        self.engine(|locked| locked.engine.check_payload(digest, clock::monotonic_ms()))
    }

    fn payload(&self, peer: PeerId, size_bytes: usize, check: &Check) -> Result<(), Closing> {
        let mut pages = PageChain::new(&self.resource.shared.pages, size_bytes);
        let mut done = 0;
        while done < size_bytes {
            let received = self.sockets.data.receive_pages(&mut pages, done, size_bytes);
            done = done.saturating_add(self.some(received)?);
        }
        self.check(check, pages.segments())?;
        let mut left_behind = None;
        let result = self.engine(|locked| {
            left_behind = locked.peer_pages.put(peer, pages);
            locked.engine.payload_received(peer, clock::monotonic_ms())
        });
        drop(left_behind);
        result
    }

    fn read_reply(&self, request: RequestId, size_bytes: usize, check: &Check) -> Result<(), Closing> {
        let lent = self.resource.look(|locked| locked.uppers.get(request).map(|bio| bio.lend()));
        let Some(mut bio) = lent else { return Err(failed(self.resource, LinkFailure::DataReceive)) };
        let mut done = 0;
        while done < size_bytes {
            let received = self.sockets.data.receive_lent(&mut bio, done);
            done = done.saturating_add(self.some(received)?);
        }
        self.check(check, bio.segments())?;
        drop(bio);
        self.engine(|locked| locked.engine.read_reply_received(request, clock::monotonic_ms()))
    }

    fn drain(&mut self, mut size_bytes: usize) -> Result<(), Closing> {
        while size_bytes > 0 {
            let part = size_bytes.min(self.body.len());
            let Some(buffer) = self.body.get_mut(..part) else { return Err(Closing) };
            let received = self.sockets.data.receive(buffer, true);
            size_bytes = size_bytes.saturating_sub(self.some(received)?);
        }
        Ok(())
    }

    /// Fills `buffer`.
    fn exactly(&self, buffer: &mut [u8]) -> Result<(), Closing> {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let received = self.sockets.data.receive(rest, true);
            done = done.saturating_add(self.some(received)?);
        }
        Ok(())
    }

    /// End of stream, a timeout and errors all end the link.
    fn some(&self, received: Result<usize>) -> Result<usize, Closing> {
        match received {
            Ok(bytes) if bytes > 0 => Ok(bytes),
            Ok(_) => Err(failed(self.resource, LinkFailure::DataReceive)),
            Err(error) => {
                if is_running(self.resource) {
                    log_info!("{}: receiving on the data socket failed: {:?}", self.resource.name.as_str(), error);
                }
                Err(failed(self.resource, LinkFailure::DataReceive))
            }
        }
    }

    fn engine<R>(&self, f: impl FnOnce(&mut Locked) -> Result<R, Fault>) -> Result<R, Closing> {
        // The engine has logged the fault and changed its state.
        self.resource.engine(f).map_err(|_fault| Closing)
    }
}
