// SPDX-License-Identifier: GPL-2.0
//! Receiving from the data socket: heads of packets through a buffer, application data straight into the pages it belongs
//! to.
//!
//! TCP's own acknowledgements are left to TCP: it sends one for every other segment, or after 40 ms, which a sender with
//! room for more than one packet never waits for.

use super::connection::{failed, is_running, net_option, Closing, Sockets};
use super::disk_io::{self, tell_device_sizes};
use super::faults;
use super::hashes::{self, Check};
use super::log::log_info;
use super::resource::{Locked, Processors, Resource};
use crate::linux::clock;
use crate::linux::mem::PageChain;
use engine::netlink::NetConf;
use engine::resource::{Fault, LinkFailure, LinkTask, Next, PacketHead, PeerId, RequestId, Wakes, PACKET_BUFFER_BYTES};
use kernel::prelude::*;
use kernel::sync::atomic::Relaxed;
use kernel::sync::Arc;

/// Bytes of small packets received in one call at most, and of a packet without its data.
const INBOX_BYTES: usize = PACKET_BUFFER_BYTES;
/// Bound: bytes of data for which pages are ready before the packet is there.
const AHEAD_BYTES_MAX: usize = 128 << 10;
/// Bound: packets handed over in one critical section.
const BATCH: usize = 16;
/// Bound: packets received before what follows from them is sent.
const HOLD: usize = 16;
/// How long the receiver sleeps at most before it looks again whether it may read.
const LOOK_AGAIN_MS: u32 = 1000;

/// What has arrived and was not handed over yet is, in this order, in `inbox[start..end]`, in `ahead` and in the socket.
///
/// Writes come one after the other and mostly have the same size, and mostly the same packets between them. So where a packet
/// with data was the last, what comes next is received into a piece of the inbox as large as the usual packets between and the
/// head of that packet, and into pages for as much data, in one call. If it is something else, what came into the pages is
/// copied back.
struct Receiver<'a> {
    resource: &'a Arc<Resource>,
    sockets: &'a Sockets,
    inbox: KVec<u8>,
    start: usize,
    end: usize,
    ahead: Option<Ahead>,
    /// Header of the packet in front, once it is there and understood.
    head: Option<PacketHead>,
    /// What may come next.
    forecast: Forecast,
    /// To be sent before the next wait.
    held: Wakes,
    /// Packets since something was sent.
    packets_held: usize,
    /// The peer has to say what it has to within a limited time; afterwards the keepalive notices one that is dead.
    is_timed: bool,
}

/// What may come next, by what came last.
#[derive(Default)]
struct Forecast {
    /// Bytes to come until the next data begins, and bytes of that data.
    expected: Option<(usize, usize)>,
    /// Bytes of the packets taken since the last data.
    taken: usize,
    /// Bytes between the last data and the head of the packet before it; the same, when it was so twice in a row.
    last_between: usize,
    usual_between: usize,
}

impl Forecast {
    /// Bytes of a packet have been taken.
    fn take(&mut self, bytes: usize) {
        self.taken = self.taken.saturating_add(bytes);
        self.expected = match self.expected {
            Some((head_bytes, data_bytes)) if head_bytes > bytes => {
                Some((head_bytes.saturating_sub(bytes), data_bytes))
            }
            _ => None,
        };
    }

    /// What was taken last is the head of a packet, of `head_bytes`, that wants this.
    fn follow(&mut self, next: &Next, head_bytes: usize) {
        let data_bytes = match *next {
            Next::Payload { size_bytes, .. } if size_bytes as usize <= AHEAD_BYTES_MAX => size_bytes as usize,
            Next::Payload { .. } | Next::ReadReply { .. } => 0,
            Next::Packet => return,
            Next::Authenticate | Next::Drain { .. } => {
                self.expected = None;
                return;
            }
        };
        let between = self.taken.saturating_sub(head_bytes);
        if between == self.last_between {
            self.usual_between = between;
        }
        self.last_between = between;
        self.taken = 0;
        self.expected = Some((self.usual_between.saturating_add(head_bytes), data_bytes));
    }
}

/// Pages that were ready for data.
struct Ahead {
    pages: PageChain,
    /// What is in them: `start..end`.
    start: usize,
    end: usize,
}

/// What has to be done before the next packet can be handed over.
enum Step {
    /// So many bytes have to be in the inbox.
    Receive(usize),
    /// The engine has no room for another packet.
    Wait,
    /// There are more packets.
    Again,
    /// The packet whose body is `inbox[at..at + bytes]` wants something.
    Next { next: Next, check: Check, at: usize, bytes: usize },
}

/// Receives until the link has to be wound down.
pub(crate) fn run(resource: &Arc<Resource>, sockets: &Arc<Sockets>) -> Closing {
    let inbox = match KVec::from_elem(0u8, INBOX_BYTES, GFP_KERNEL) {
        Ok(inbox) => inbox,
        Err(_) => return failed(resource, LinkFailure::DataReceive),
    };
    let mut receiver = Receiver {
        resource,
        sockets,
        inbox,
        start: 0,
        end: 0,
        ahead: None,
        head: None,
        forecast: Forecast::default(),
        held: Wakes::default(),
        packets_held: 0,
        is_timed: true,
    };
    let mut processors = Processors::default();
    let closing = loop {
        processors.follow(resource);
        if let Err(closing) = receiver.step() {
            break closing;
        }
    };
    disk_io::send_held(resource, &mut receiver.held);
    resource.pages.trim();
    closing
}

impl Receiver<'_> {
    fn step(&mut self) -> Result<(), Closing> {
        match self.hand_over()? {
            Step::Again => Ok(()),
            Step::Receive(bytes) => self.fill(bytes),
            Step::Wait => {
                self.send_held();
                self.resource.receiver.wait_timeout_ms(LOOK_AGAIN_MS);
                Ok(())
            }
            Step::Next { next, check, at, bytes } => self.follow(next, &check, at, bytes),
        }
    }

    /// Hands packets to the engine, as far as they are there.
    fn hand_over(&mut self) -> Result<Step, Closing> {
        let mut left_behind = None;
        let Receiver { resource, sockets, inbox, start, end, ahead, head, forecast, held, packets_held, is_timed } =
            self;
        let mut lift_timeout = false;
        let is_all = || sockets.data.unread_bytes() == 0;
        let step = disk_io::enter_holding(resource, held, is_all, |locked| {
            let now_ms = clock::monotonic_ms();
            for _ in 0..BATCH {
                if locked.engine.link_task() != LinkTask::Run {
                    return Err(Closing);
                }
                let known = match *head {
                    Some(known) => known,
                    None if !locked.engine.receiver_may_read() => return Ok(Step::Wait),
                    None => {
                        let bytes = locked.engine.data_header_bytes();
                        let Some(header) = inbox.get(*start..*end).and_then(|inbox| inbox.get(..bytes)) else {
                            return Ok(Step::Receive(bytes));
                        };
                        let known = locked.engine.data_header(header, now_ms).map_err(|_fault| Closing)?;
                        *start = start.saturating_add(bytes);
                        forecast.take(bytes);
                        *head = Some(known);
                        sockets.packets_received.fetch_add(1, Relaxed);
                        known
                    }
                };
                let Some(body) = inbox.get(*start..*end).and_then(|inbox| inbox.get(..known.body_bytes)) else {
                    return Ok(Step::Receive(known.body_bytes));
                };
                if let Some(id) = locked.engine.wants_device_sizes(&known) {
                    tell_device_sizes(locked, id);
                }
                // The engine has logged a fault and changed its state.
                let next = locked.engine.data_packet(&known, body, now_ms).map_err(|_fault| Closing)?;
                lift_timeout = *is_timed && locked.engine.handshake_is_over();
                let at = *start;
                *start = start.saturating_add(known.body_bytes);
                forecast.take(known.body_bytes);
                *head = None;
                *packets_held = packets_held.saturating_add(1);
                if matches!(next, Next::Packet) {
                    continue;
                }
                let check = locked.hashes.for_receiving(&next, &locked.engine);
                let head_bytes = locked.engine.data_header_bytes().saturating_add(known.body_bytes);
                forecast.follow(&next, head_bytes);
                match (next, &check) {
                    (Next::Payload { peer, size_bytes }, Check::No) if start == end => {
                        let Some(pages) = whole(ahead, size_bytes as usize) else {
                            return Ok(Step::Next { next, check, at, bytes: known.body_bytes });
                        };
                        left_behind = locked.peer_pages.put(peer, pages);
                        locked.engine.payload_received(peer, now_ms).map_err(|_fault| Closing)?;
                        return Ok(Step::Again);
                    }
                    _ => return Ok(Step::Next { next, check, at, bytes: known.body_bytes }),
                }
            }
            Ok(Step::Again)
        });
        drop(left_behind);
        if lift_timeout {
            self.is_timed = false;
            self.sockets.data.set_receive_timeout(0);
        }
        step
    }

    /// Does what a packet wants besides being read.
    fn follow(&mut self, next: Next, check: &Check, at: usize, bytes: usize) -> Result<(), Closing> {
        match next {
            Next::Packet => Ok(()),
            Next::Authenticate => self.authenticate(at, bytes),
            Next::Payload { peer, size_bytes } => self.payload(peer, size_bytes as usize, check),
            Next::ReadReply { request, size_bytes } => self.read_reply(request, size_bytes as usize, check),
            Next::Drain { size_bytes } => self.drain(size_bytes as usize),
        }
    }

    /// Gets at least one more byte into the inbox, where `bytes` are needed.
    fn fill(&mut self, bytes: usize) -> Result<(), Closing> {
        if bytes > INBOX_BYTES {
            return Err(failed(self.resource, LinkFailure::DataReceive));
        }
        if self.start > 0 && self.start < self.end {
            self.inbox.copy_within(self.start..self.end, 0);
        }
        self.end = self.end.saturating_sub(self.start);
        self.start = 0;
        if self.take_back() {
            return Ok(());
        }
        self.before_receiving();
        // Of what is expected no more than the head goes into the inbox.
        let (until, data_bytes) = match self.forecast.expected {
            Some((head_bytes, data_bytes)) if self.end < head_bytes && head_bytes <= INBOX_BYTES => {
                (head_bytes, data_bytes)
            }
            _ => (INBOX_BYTES, 0),
        };
        let wanted = until.saturating_sub(self.end);
        let received = match self.pages_ahead(data_bytes) {
            Some(mut ahead) => {
                let received = self.sockets.data.receive_packet(&mut self.inbox, self.end..until, &mut ahead.pages);
                let received = self.some(received)?;
                ahead.end = received.saturating_sub(wanted);
                self.ahead = Some(ahead);
                received.min(wanted)
            }
            None => {
                let place = self.inbox.get_mut(self.end..until).ok_or(Closing)?;
                let received = self.sockets.data.receive(place, false);
                self.some(received)?
            }
        };
        self.end = self.end.saturating_add(received);
        Ok(())
    }

    /// Pages for the data that is expected, if they are at hand: they may lie ready for long, so they do not come from the
    /// reserve.
    fn pages_ahead(&mut self, data_bytes: usize) -> Option<Ahead> {
        let ready = self.ahead.take().map(|ahead| ahead.pages).filter(|pages| pages.bytes() == data_bytes);
        // Faults are injected where data is received for a packet that is known.
        if data_bytes == 0 || injects_faults() {
            return None;
        }
        let pages = ready.or_else(|| PageChain::at_hand(&self.resource.pages, data_bytes))?;
        Some(Ahead { pages, start: 0, end: 0 })
    }

    /// Another packet came than was expected: takes back what is in the pages, as much as there is room for. True if there
    /// was something.
    fn take_back(&mut self) -> bool {
        let Some(ahead) = self.ahead.as_mut().filter(|ahead| ahead.start < ahead.end) else { return false };
        self.forecast.expected = None;
        let place = self.inbox.get_mut(self.end..).unwrap_or_default();
        let copied = ahead.copy_to(place);
        self.end = self.end.saturating_add(copied);
        copied > 0
    }

    /// The next call may wait for the peer: it should have everything that it may be waiting for.
    fn before_receiving(&mut self) {
        if self.held.is_empty() {
            self.packets_held = 0;
        } else if self.packets_held >= HOLD || self.sockets.data.unread_bytes() == 0 {
            self.send_held();
        }
    }

    fn send_held(&mut self) {
        self.packets_held = 0;
        disk_io::send_held(self.resource, &mut self.held);
    }

    /// Answers the peer's challenge, which is in the inbox.
    // spec: wire-protocol 4.3
    fn authenticate(&mut self, at: usize, bytes: usize) -> Result<(), Closing> {
        let challenge = self.inbox.get(at..).and_then(|inbox| inbox.get(..bytes)).ok_or(Closing)?;
        let own = self.resource.look(|locked| locked.engine.own_challenge());
        let hmacs = options_now(self.resource).and_then(|net| hashes::hmacs(&net, challenge, own.as_bytes()));
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

    fn payload(&mut self, peer: PeerId, size_bytes: usize, check: &Check) -> Result<(), Closing> {
        let (mut pages, mut done) = self.pages_with_what_is_there(size_bytes);
        while done < size_bytes {
            self.before_receiving();
            let received = self.sockets.data.receive_pages(&mut pages, done, size_bytes);
            done = done.saturating_add(self.some(received)?);
        }
        self.inject_faults(peer, &mut pages)?;
        self.check(check, pages.segments())?;
        let mut left_behind = None;
        let is_all = || self.sockets.data.unread_bytes() == 0;
        let result = disk_io::enter_holding(self.resource, &mut self.held, is_all, |locked| {
            left_behind = locked.peer_pages.put(peer, pages);
            locked.engine.payload_received(peer, clock::monotonic_ms())
        });
        drop(left_behind);
        result.map_err(|_fault| Closing)
    }

    /// What the module's parameters ask for: there is no memory for the request, or the data is not what was sent.
    fn inject_faults(&self, peer: PeerId, pages: &mut PageChain) -> Result<(), Closing> {
        use faults::Fault as Injected;
        if !injects_faults() {
            return Ok(());
        }
        let Some(minor) = self.resource.look(|locked| locked.engine.peer_minor(peer)) else { return Ok(()) };
        if faults::strikes(minor, Injected::PeerRequest) {
            return Err(failed(self.resource, LinkFailure::DataReceive));
        }
        for segment in pages.segments_mut() {
            if faults::strikes(minor, Injected::Receive) {
                segment.iter_mut().take(8).for_each(|byte| *byte = !*byte);
            }
        }
        Ok(())
    }

    /// Pages for so many bytes of data, and how many of these are in them already.
    fn pages_with_what_is_there(&mut self, size_bytes: usize) -> (PageChain, usize) {
        if self.start == self.end {
            let fits = |ahead: &mut Ahead| ahead.start == 0 && ahead.end > 0 && ahead.pages.bytes() == size_bytes;
            if let Some(ahead) = self.ahead.take_if(fits) {
                return (ahead.pages, ahead.end);
            }
        }
        let mut pages = PageChain::new(&self.resource.pages, size_bytes);
        let mut done = 0;
        for segment in pages.segments_mut() {
            let copied = self.copy_out(segment);
            done += copied;
            if copied < segment.len() {
                break;
            }
        }
        (pages, done)
    }

    /// Copies from what has arrived and was not handed over yet. Returns the number of bytes.
    fn copy_out(&mut self, to: &mut [u8]) -> usize {
        let there = self.inbox.get(self.start..self.end).unwrap_or_default();
        let copied = copy(there, to);
        self.start = self.start.saturating_add(copied);
        let rest = to.get_mut(copied..).unwrap_or_default();
        copied + self.ahead.as_mut().map_or(0, |ahead| ahead.copy_to(rest))
    }

    fn read_reply(&mut self, request: RequestId, size_bytes: usize, check: &Check) -> Result<(), Closing> {
        let lent = self.resource.look(|locked| locked.uppers.get(request).map(|bio| bio.lend()));
        let Some(mut bio) = lent else { return Err(failed(self.resource, LinkFailure::DataReceive)) };
        let mut done: usize = 0;
        for segment in bio.segments_mut() {
            let copied = self.copy_out(segment);
            done = done.saturating_add(copied);
            if copied < segment.len() {
                break;
            }
        }
        while done < size_bytes {
            self.before_receiving();
            let received = self.sockets.data.receive_lent(&mut bio, done);
            done = done.saturating_add(self.some(received)?);
        }
        self.check(check, bio.segments())?;
        drop(bio);
        self.engine(|locked| locked.engine.read_reply_received(request, clock::monotonic_ms()))
    }

    fn drain(&mut self, mut size_bytes: usize) -> Result<(), Closing> {
        while size_bytes > 0 {
            if self.start == self.end {
                self.fill(1)?;
            }
            let there = self.end.saturating_sub(self.start).min(size_bytes);
            self.start = self.start.saturating_add(there);
            size_bytes -= there;
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

impl Ahead {
    /// Copies what is there, from the front. Returns the number of bytes.
    fn copy_to(&mut self, to: &mut [u8]) -> usize {
        let (mut skip, mut copied) = (self.start, 0);
        for segment in self.pages.segments() {
            let from = segment.get(skip..).unwrap_or_default();
            skip = skip.saturating_sub(segment.len());
            let left = self.end.saturating_sub(self.start).saturating_sub(copied);
            let from = from.get(..left.min(from.len())).unwrap_or_default();
            copied += copy(from, to.get_mut(copied..).unwrap_or_default());
        }
        self.start = self.start.saturating_add(copied);
        copied
    }
}

/// Copies as much as there is and fits. Returns the number of bytes.
fn copy(from: &[u8], to: &mut [u8]) -> usize {
    let bytes = from.len().min(to.len());
    if let (Some(to), Some(from)) = (to.get_mut(..bytes), from.get(..bytes)) {
        to.copy_from_slice(from);
    }
    bytes
}

/// A copy of the options of the connection: computing with the secret may sleep.
#[inline(never)]
fn options_now(resource: &Resource) -> Option<KBox<NetConf>> {
    let mut options = KBox::new(NetConf::default(), GFP_KERNEL).ok()?;
    net_option(resource, |net| *options = *net)?;
    Some(options)
}

/// Some of the faults on purpose concern what is received.
#[inline]
fn injects_faults() -> bool {
    faults::is_enabled(faults::Fault::PeerRequest) || faults::is_enabled(faults::Fault::Receive)
}

/// The pages, if they hold all of the data.
fn whole(ahead: &mut Option<Ahead>, size_bytes: usize) -> Option<PageChain> {
    let complete = |ahead: &mut Ahead| ahead.start == 0 && ahead.end == size_bytes && ahead.pages.bytes() == size_bytes;
    ahead.take_if(complete).map(|ahead| ahead.pages)
}
