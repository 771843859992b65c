// SPDX-License-Identifier: GPL-2.0
//! The way into the engine, and what it wants done on the local disks afterwards.
//!
//! [`enter`] is the only place that takes a resource's lock. What the engine wants done is collected in the same
//! critical section and carried out without the lock: completions of application requests and wake-ups in every
//! context, local I/O only in process context. What cannot be carried out where it became known goes to the volume's
//! work item ([`Volume`]'s `run`). Discards and zeroes, which are waited for, go to one of their own ([`clear_all`]): a disk that
//! is slow at them, or hangs, keeps nobody from anything else.
//!
//! # Cost of a 4 KiB write without a peer
//! Two critical sections (arrival, local completion), one allocation (the clone with its context, from a per-CPU
//! reserve), no wake-up, no context switch.

use super::backing::{Backing, Tag};
use super::connection::Sockets;
use super::faults::{self, Fault};
use super::hashes;
use super::resource::{Locked, Resource};
use super::volume::{Volume, CLEARS};
use super::{acks, sender};
use crate::linux::bdev::LowerDevice;
use crate::linux::bio::{self, BioFlags, BioList, EndedBios, Lent, Status};
use crate::linux::clock;
use crate::linux::hash::Hash;
use crate::linux::mem::PageChain;
use crate::linux::work::{self, DeferredArc};
use engine::discard::{Granules, Split};
use engine::resource::{
    Finding, Inspect, IoError, IoFlags, IoResult, LocalIo, Op, PeerId, RequestId, VolumeId, Wakes,
    MAX_VOLUMES_PER_RESOURCE,
};
use kernel::prelude::*;
use kernel::sync::Arc;

/// Bound: completions taken in one critical section.
const BATCH: usize = 16;
/// Who can be spared a wake-up by sending on the spot.
pub(crate) const SENDERS: Wakes = Wakes(Wakes::DATA_SENDER.0 | Wakes::META_SENDER.0);
/// What volumes' work items look after.
pub(crate) const KICKS: Wakes = Wakes(Wakes::METADATA.0 | Wakes::GATE.0);

/// Where the code runs that enters the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Context {
    /// A thread that may sleep and does not handle a request of ours right now.
    Process,
    /// A request is being submitted to our disk: memory only from reserves, no waiting for I/O.
    Submit,
    /// Anything else: interrupt, softirq, or a lower device that ends a request in the middle of whatever it does. Also a thread
    /// that looks after all resources, and must not be stopped by the disk of one.
    Atomic,
}

/// The block side's part of what a resource's lock protects.
pub(crate) struct BlockState {
    /// Backing devices, by the index in their volume's [`VolumeId`].
    backings: [Option<DeferredArc<Backing>>; MAX_VOLUMES_PER_RESOURCE],
    /// Application requests that the engine does not take yet, in order of arrival.
    parked: [BioList; MAX_VOLUMES_PER_RESOURCE],
    /// An order that somebody took who could not carry it out.
    handed_over: Option<LocalIo>,
    /// There were more completions than one critical section takes.
    completions_left: bool,
}

impl Default for BlockState {
    fn default() -> Self {
        BlockState {
            backings: [const { None }; MAX_VOLUMES_PER_RESOURCE],
            parked: [const { BioList::new() }; MAX_VOLUMES_PER_RESOURCE],
            handed_over: None,
            completions_left: false,
        }
    }
}

impl BlockState {
    /// The backing device of a volume.
    #[inline]
    pub(crate) fn backing(&self, id: VolumeId) -> Option<&DeferredArc<Backing>> {
        self.backings.get(usize::from(id.0))?.as_ref()
    }

    /// Sets or takes away the backing device of a volume; gives back what was there.
    pub(crate) fn set_backing(
        &mut self,
        id: VolumeId,
        backing: Option<DeferredArc<Backing>>,
    ) -> Option<DeferredArc<Backing>> {
        match self.backings.get_mut(usize::from(id.0)) {
            Some(place) => core::mem::replace(place, backing),
            None => backing,
        }
    }

    /// The parked requests of a volume.
    #[inline]
    pub(crate) fn parked(&mut self, id: VolumeId) -> Option<&mut BioList> {
        self.parked.get_mut(usize::from(id.0))
    }
}

/// Calls `f` with the engine, under the resource's lock, and afterwards, without it, looks after everything that the
/// engine wants done.
#[inline]
pub(crate) fn enter<R>(resource: &Arc<Resource>, context: Context, f: impl FnOnce(&mut Locked) -> R) -> R {
    let mut todo = Todo::new();
    let (result, wakes) = resource.locked.with(|locked| {
        let result = f(locked);
        (result, todo.collect(resource, locked, context))
    });
    todo.look_after(resource, context, wakes);
    if !todo.send.is_empty() {
        todo.send(resource, context);
    }
    result
}

/// As [`enter`] in process context, but what is to be sent is only noted in `held`, for [`send_held`]: more is about to
/// come, and goes along. Unless it `is_all`: then an acknowledgement of what was received does not wait for the disk.
#[inline]
pub(crate) fn enter_holding<R>(
    resource: &Arc<Resource>,
    held: &mut Wakes,
    is_all: impl FnOnce() -> bool,
    f: impl FnOnce(&mut Locked) -> R,
) -> R {
    let mut todo = Todo::new();
    let (result, wakes) = resource.locked.with(|locked| {
        let result = f(locked);
        (result, todo.collect(resource, locked, Context::Process))
    });
    if todo.order.is_some() && todo.send.contains(Wakes::META_SENDER) && is_all() {
        todo.send(resource, Context::Process);
    }
    todo.look_after(resource, Context::Process, wakes);
    held.insert(todo.send);
    result
}

/// Sends what was held back.
#[inline]
pub(crate) fn send_held(resource: &Arc<Resource>, held: &mut Wakes) {
    if !held.is_empty() {
        let mut todo = Todo { send: core::mem::take(held), ..Todo::new() };
        todo.send(resource, Context::Process);
    }
}

/// An order for the disk with everything needed to carry it out.
enum Order {
    /// Send the application's request to the lower device.
    Clone(DeferredArc<Backing>, RequestId, Lent),
    /// Write a copy of the application's data.
    WriteCopy(DeferredArc<Backing>, RequestId, BioFlags, u64, Lent),
    /// Read what is copied to the application's request later.
    ReadCopy(DeferredArc<Backing>, RequestId, BioFlags, Range),
    /// Flush the lower device for the application.
    RequestFlush(DeferredArc<Backing>, RequestId),
    /// Discard, or write zeroes. Waits for the disk.
    Clear(DeferredArc<Backing>, LocalIo, Range, Op),
    /// Write the pages of a peer request.
    Write(DeferredArc<Backing>, PeerId, Range, BioFlags, PageChain),
    /// Read into new pages for a peer request.
    Read(DeferredArc<Backing>, PeerId, Range, BioFlags),
    /// Flush the lower device for a peer request.
    PeerFlush(DeferredArc<Backing>, PeerId),
    /// Flush the lower device.
    Flush(DeferredArc<Backing>),
    /// Look at the data of a peer request.
    Inspect(PeerId, Inspect, Option<Arc<Hash>>, PageChain),
    /// There is nothing to carry it out with.
    Fail(LocalIo),
}

#[derive(Clone, Copy)]
struct Range {
    sector: u64,
    size_bytes: u32,
}

/// What one critical section left to be done. Small, because every way into the engine has one.
struct Todo {
    ended: EndedBios,
    order: Option<Order>,
    /// There is more than fitted in.
    more: bool,
    /// Sockets on which something has to be sent.
    send: Wakes,
    sockets: Option<Arc<Sockets>>,
}

impl Todo {
    #[inline]
    fn new() -> Todo {
        Todo { ended: EndedBios::new(), order: None, more: false, send: Wakes(0), sockets: None }
    }

    /// Takes what is to be done out of the engine's queues. Under the lock. Returns who has to be woken.
    fn collect(&mut self, resource: &Resource, locked: &mut Locked, context: Context) -> Wakes {
        let mut wakes = locked.engine.take_wakes();
        self.more = false;
        if wakes.contains(SENDERS) {
            wakes = self.collect_senders(resource, locked, context, wakes);
        }
        if wakes.contains(Wakes::COMPLETIONS) || locked.block.completions_left {
            self.collect_completions(locked);
        }
        if wakes.contains(Wakes::LOCAL_IO) {
            kick_clears(locked);
        }
        if locked.engine.has_local() || locked.block.handed_over.is_some() {
            self.collect_order(resource, locked, context);
        }
        if wakes.contains(KICKS) && !(context == Context::Atomic && resource.leave_to_looker(Wakes(wakes.0 & KICKS.0)))
        {
            kick_for(locked, wakes);
        }
        wakes
    }

    /// Who sends? Whoever may sleep; but somebody who submits one request of several leaves it to the thread, which takes
    /// those of the others along.
    #[inline]
    fn collect_senders(&mut self, resource: &Resource, locked: &mut Locked, context: Context, wakes: Wakes) -> Wakes {
        let senders = Wakes(wakes.0 & SENDERS.0);
        let others = Wakes(wakes.0 & !SENDERS.0);
        let at_once = match context {
            Context::Atomic => return if resource.leave_to_looker(senders) { others } else { wakes },
            Context::Submit => locked.engine.few_requests(),
            Context::Process => true,
        };
        if !at_once || locked.sockets.is_none() {
            return wakes;
        }
        self.send.insert(senders);
        if self.sockets.is_none() {
            self.sockets = locked.sockets.clone();
        }
        others
    }

    fn collect_completions(&mut self, locked: &mut Locked) {
        locked.block.completions_left = false;
        for _ in 0..BATCH {
            let Some(completion) = locked.engine.poll_completion() else { return };
            if let Some(bio) = locked.uppers.take(completion.request) {
                self.ended.push(bio, status_of(completion.result));
            }
        }
        // Whoever comes next takes them, at the latest this thread.
        locked.block.completions_left = true;
        self.more = true;
    }

    fn collect_order(&mut self, resource: &Resource, locked: &mut Locked, context: Context) {
        if context == Context::Atomic && resource.leave_to_looker(Wakes::LOCAL_IO) {
            return;
        }
        if context == Context::Atomic || (context == Context::Submit && locked.block.handed_over.is_some()) {
            kick_any(locked);
            return;
        }
        let Some(io) = locked.block.handed_over.take().or_else(|| locked.engine.poll_local()) else { return };
        if context == Context::Submit && !is_simple(&io) {
            locked.block.handed_over = Some(io);
            kick_any(locked);
            return;
        }
        self.order = Some(order_of(locked, io));
        self.more |= locked.engine.has_local();
    }

    /// Carries everything out, and what comes up meanwhile. Without the lock.
    #[inline]
    fn look_after(&mut self, resource: &Arc<Resource>, context: Context, wakes: Wakes) {
        if !wakes.is_empty() {
            resource.wake(wakes);
        }
        if self.order.is_some() || self.more || !self.ended.is_empty() {
            self.carry_out(resource, context);
        }
    }

    /// Sends what there is, without the wake-up of a thread.
    #[inline(never)]
    fn send(&mut self, resource: &Arc<Resource>, context: Context) {
        let send = core::mem::take(&mut self.send);
        let sockets = self.sockets.take().or_else(|| resource.look(|locked| locked.sockets.clone()));
        let Some(sockets) = sockets else { return };
        if send.contains(Wakes::META_SENDER) {
            acks::send_at_once(resource, &sockets, context);
        }
        if send.contains(Wakes::DATA_SENDER) {
            sender::send_at_once(resource, &sockets, context);
        }
    }

    #[inline(never)]
    fn carry_out(&mut self, resource: &Arc<Resource>, context: Context) {
        loop {
            self.ended.end();
            let mut kicks = Wakes(0);
            let report = match self.order.take() {
                Some(order) if context == Context::Process => {
                    let (report, left) = resource.looking_after(|| order.carry_out());
                    self.send.insert(Wakes(left.0 & SENDERS.0));
                    self.more |= left.contains(Wakes::LOCAL_IO);
                    kicks = Wakes(left.0 & KICKS.0);
                    report
                }
                Some(order) => order.carry_out(),
                None => None,
            };
            if report.is_none() && !self.more && kicks.is_empty() {
                return;
            }
            let mut left_over = None;
            let wakes = resource.locked.with(|locked| {
                left_over = report.and_then(|report| tell(locked, report));
                kick_for(locked, kicks);
                self.collect(resource, locked, context)
            });
            drop(left_over);
            resource.wake(wakes);
        }
    }
}

/// The result of an order that was carried out at once.
enum Report {
    /// I/O.
    Io(LocalIo, IoResult),
    /// What was found out about the data of a peer request.
    Inspected(PeerId, Finding, PageChain),
}

/// Can be carried out while a request is being submitted to our disk: takes only a clone from the reserve.
fn is_simple(io: &LocalIo) -> bool {
    matches!(io, LocalIo::Request { op: Op::Read | Op::Write | Op::Flush, copy: false, .. })
}

/// Carries out all discards and writes of zeroes of a volume, one after the other. Waits for the disk, so only for the work item
/// that does nothing else. May sleep.
pub(crate) fn clear_all(volume: &Volume) {
    let mut report = None;
    loop {
        let (next, left_over) = enter(&volume.resource, Context::Process, |locked| {
            let left_over = report.take().and_then(|report| tell(locked, report));
            let next = locked.engine.poll_clear(volume.id).map(|io| order_of(locked, io));
            (next, left_over)
        });
        drop(left_over);
        let Some(order) = next else { return };
        report = order.carry_out();
    }
}

/// Puts together what carrying out `io` needs. Under the lock.
fn order_of(locked: &mut Locked, io: LocalIo) -> Order {
    let volume = match io {
        LocalIo::Request { volume, .. } | LocalIo::Peer { volume, .. } | LocalIo::Flush { volume } => volume,
        LocalIo::Inspect { peer, what } => {
            let hash = locked.hashes.for_inspect(what, locked.engine.net_conf());
            let pages = locked.peer_pages.take(peer);
            return pages.map_or(Order::Fail(io), |pages| Order::Inspect(peer, what, hash, pages));
        }
    };
    let Some(backing) = locked.block.backing(volume).cloned() else {
        return Order::Fail(io);
    };
    if fault_of(locked, &io).is_some_and(|fault| faults::strikes(backing.minor(), fault)) {
        if let LocalIo::Peer { peer, op: Op::Write, .. } = io {
            drop(locked.peer_pages.take(peer));
        }
        return Order::Fail(io);
    }
    match io {
        LocalIo::Flush { .. } => Order::Flush(backing),
        LocalIo::Inspect { .. } => Order::Fail(io),
        LocalIo::Request { request, op, copy, .. } => {
            let Some(upper) = locked.uppers.get(request) else {
                return Order::Fail(io);
            };
            match op {
                Op::Discard | Op::WriteZeroes { .. } => {
                    let range = Range { sector: upper.sector(), size_bytes: upper.bytes() };
                    Order::Clear(backing, io, range, op)
                }
                Op::Read if copy => {
                    let range = Range { sector: upper.sector(), size_bytes: upper.bytes() };
                    Order::ReadCopy(backing, request, upper.flags(), range)
                }
                Op::Write if copy => Order::WriteCopy(backing, request, upper.flags(), upper.sector(), upper.lend()),
                Op::Flush if copy => Order::RequestFlush(backing, request),
                Op::Read | Op::Write | Op::Flush => Order::Clone(backing, request, upper.lend()),
            }
        }
        LocalIo::Peer { peer, op, sector, size_bytes, flags, .. } => {
            let range = Range { sector, size_bytes };
            match op {
                Op::Discard | Op::WriteZeroes { .. } => Order::Clear(backing, io, range, op),
                Op::Flush => Order::PeerFlush(backing, peer),
                Op::Read => Order::Read(backing, peer, range, flags_of(flags)),
                Op::Write => match locked.peer_pages.take(peer) {
                    Some(pages) if pages.bytes() == size_bytes as usize => {
                        Order::Write(backing, peer, range, flags_of(flags), pages)
                    }
                    _ => Order::Fail(io),
                },
            }
        }
    }
}

/// What `io` is to those who want requests to fail.
fn fault_of(locked: &Locked, io: &LocalIo) -> Option<Fault> {
    match *io {
        LocalIo::Request { request, op: Op::Read, .. } => {
            let is_ahead = locked.uppers.get(request).is_some_and(|upper| upper.flags().readahead);
            Some(if is_ahead { Fault::ReadAhead } else { Fault::DataRead })
        }
        LocalIo::Request { op: Op::Write | Op::Discard | Op::WriteZeroes { .. }, .. } => Some(Fault::DataWrite),
        LocalIo::Peer { op: Op::Flush, .. } => None,
        LocalIo::Peer { peer, op, .. } => Some(match (op, locked.engine.is_resync(peer)) {
            (Op::Read, true) => Fault::ResyncRead,
            (Op::Read, false) => Fault::DataRead,
            (_, true) => Fault::ResyncWrite,
            (_, false) => Fault::DataWrite,
        }),
        _ => None,
    }
}

impl Order {
    /// Starts the order, or carries it out and returns its result. May sleep, unless the order is simple; waits for the disk only
    /// to clear.
    #[inline]
    fn carry_out(self) -> Option<Report> {
        match self {
            Order::Clone(backing, request, lent) => bio::submit_clone(backing, Tag::Request(request), lent),
            Order::WriteCopy(backing, request, flags, sector, lent) => {
                let mut pages = PageChain::new(backing.page_pool(), lent.bytes() as usize);
                copy(lent.segments(), pages.segments_mut());
                drop(lent);
                bio::submit_pages(backing, Tag::Request(request), true, flags, sector, pages);
            }
            Order::ReadCopy(backing, request, flags, range) => {
                let pages = PageChain::new(backing.page_pool(), range.size_bytes as usize);
                bio::submit_pages(backing, Tag::ReadCopy(request), false, flags, range.sector, pages);
            }
            Order::RequestFlush(backing, request) => bio::submit_flush(backing, Tag::Request(request)),
            Order::Clear(backing, io, range, op) => {
                return Some(Report::Io(io, result_of(clear(backing.data(), range, op))))
            }
            Order::Write(backing, peer, range, flags, pages) => {
                bio::submit_pages(backing, Tag::PeerWrite(peer), true, flags, range.sector, pages);
            }
            Order::Read(backing, peer, range, flags) => {
                let pages = PageChain::new(backing.page_pool(), range.size_bytes as usize);
                bio::submit_pages(backing, Tag::PeerRead(peer), false, flags, range.sector, pages);
            }
            Order::PeerFlush(backing, peer) => bio::submit_flush(backing, Tag::PeerWrite(peer)),
            Order::Flush(backing) => bio::submit_flush(backing, Tag::Flush),
            Order::Inspect(peer, what, hash, pages) => return Some(inspect(peer, what, hash, pages)),
            Order::Fail(io) => return Some(Report::Io(io, Err(IoError::Io))),
        }
        None
    }
}

/// Copies as many bytes as both have.
pub(crate) fn copy<'a, 'b>(from: impl Iterator<Item = &'a [u8]>, to: impl Iterator<Item = &'b mut [u8]>) {
    let (mut from, mut to) = (from, to);
    let (mut source, mut target): (&[u8], &mut [u8]) = (&[], &mut []);
    loop {
        if source.is_empty() {
            let Some(next) = from.next() else { return };
            source = next;
        }
        if target.is_empty() {
            let Some(next) = to.next() else { return };
            target = next;
        }
        let bytes = source.len().min(target.len());
        let (head, rest) = source.split_at(bytes);
        let (place, room) = target.split_at_mut(bytes);
        place.copy_from_slice(head);
        (source, target) = (rest, room);
    }
}

#[inline(never)]
fn inspect(peer: PeerId, what: Inspect, hash: Option<Arc<Hash>>, pages: PageChain) -> Report {
    let finding = hashes::inspect(what, hash.as_ref(), &pages);
    Report::Inspected(peer, finding, pages)
}

/// Reports the result of an order to the engine. Under the lock. Returns what has to be dropped without it.
#[inline(never)]
fn tell(locked: &mut Locked, report: Report) -> Option<PageChain> {
    let now_ms = clock::monotonic_ms();
    let (io, result) = match report {
        Report::Io(io, result) => (io, result),
        Report::Inspected(peer, finding, pages) => {
            // In the same critical section: a sender may want them at once.
            let sent = locked.engine.inspected(peer, finding, now_ms);
            return if sent { locked.peer_pages.put(peer, pages) } else { Some(pages) };
        }
    };
    match io {
        LocalIo::Request { request, .. } => locked.engine.request_io_done(request, result, now_ms),
        LocalIo::Peer { peer, .. } => locked.engine.peer_io_done(peer, result, now_ms),
        LocalIo::Flush { volume } => locked.engine.flush_done(volume, result, now_ms),
        // There are no pages.
        LocalIo::Inspect { peer, .. } => _ = locked.engine.inspected(peer, Finding::Failed, now_ms),
    }
    None
}

/// Discards or zeroes a range of a lower device, and waits. What cannot be discarded is zeroed, so that the range reads
/// the same on both nodes.
// spec: state-machine 21.1
fn clear(device: &LowerDevice, range: Range, op: Op) -> Result<(), Status> {
    let sectors = u64::from(range.size_bytes / 512);
    let zero = |sector, sectors: u64, unmap| {
        if sectors > 0 {
            device.zero_out(sector, sectors, unmap).map_err(Status::of)
        } else {
            Ok(())
        }
    };
    if let Op::WriteZeroes { unmap } = op {
        return zero(range.sector, sectors, unmap);
    }
    let limits = device.limits();
    let granules =
        Granules::new(limits.discard_granularity_bytes, limits.discard_alignment_bytes, limits.max_discard_bytes);
    let Split { head, discarded, tail, piece } = granules.split(range.sector, sectors);
    zero(range.sector, head, true)?;
    let (mut sector, mut left) = (range.sector + head, discarded);
    while left > 0 {
        let now = left.min(piece);
        device.discard(sector, now).map_err(Status::of)?;
        sector += now;
        left -= now;
    }
    zero(sector, tail, true)
}

/// Lets the work items run that have something to do after these wakes. Under the lock.
fn kick_for(locked: &mut Locked, wakes: Wakes) {
    kick_others(locked, wakes, None);
}

/// As [`kick_for`], but not that of the volume `own`.
pub(crate) fn kick_others(locked: &mut Locked, wakes: Wakes, own: Option<VolumeId>) {
    if wakes.contains(Wakes::METADATA) {
        kick_all(locked, |locked, id| Some(id) != own && locked.block.backing(id).is_some());
    }
    if wakes.contains(Wakes::GATE) {
        let waits = |locked: &mut Locked, id| locked.block.parked(id).is_some_and(|parked| !parked.is_empty());
        kick_all(locked, |locked, id| Some(id) != own && waits(locked, id));
    }
}

/// Lets the work items of those volumes run that `wanted` picks. Under the lock.
fn kick_all(locked: &mut Locked, mut wanted: impl FnMut(&mut Locked, VolumeId) -> bool) {
    for index in 0..locked.engine.volumes_end() {
        // CAST: At most 64.
        let id = VolumeId(index as u8);
        if locked.volumes.get(index).is_some_and(Option::is_some) && wanted(locked, id) {
            kick(locked, id);
        }
    }
}

/// Lets some volume's work item run; orders are for whoever comes first. Under the lock.
fn kick_any(locked: &Locked) {
    if let Some(volume) = locked.volumes.iter().flatten().next() {
        work::run_soon::<Volume, 0>(volume.clone());
    }
}

/// Lets those work items run that clear. Under the lock.
#[inline(never)]
fn kick_clears(locked: &mut Locked) {
    let mut ordered = locked.engine.clears_ordered();
    while ordered != 0 {
        // CAST: At most 63.
        let index = ordered.trailing_zeros() as usize;
        ordered &= ordered - 1;
        if let Some(volume) = locked.volumes.get(index).and_then(Option::as_ref) {
            work::run_soon::<Volume, CLEARS>(volume.clone());
        }
    }
}

/// Lets a volume's work item run. Under the lock.
pub(crate) fn kick(locked: &Locked, id: VolumeId) {
    if let Some(volume) = locked.volumes.get(usize::from(id.0)).and_then(Option::as_ref) {
        work::run_soon::<Volume, 0>(volume.clone());
    }
}

/// Tells the engine how large the lower devices of a volume are now. Under the lock.
pub(crate) fn tell_device_sizes(locked: &mut Locked, id: VolumeId) {
    if let Some(sizes) = locked.block.backing(id).map(|backing| backing.sizes()) {
        locked.engine.device_sizes(id, sizes);
    }
}

/// The engine's word for a result of the block layer.
pub(crate) fn result_of(result: Result<(), Status>) -> IoResult {
    result.map_err(|status| match status {
        Status::NOT_SUPPORTED => IoError::NotSupported,
        Status::IO_ERROR => IoError::Io,
        // An application may do something about it: a guest is stopped where there is no space left.
        other => other.number().map_or(IoError::Io, IoError::Lower),
    })
}

/// The block layer's word for a result of the engine.
pub(crate) fn status_of(result: IoResult) -> Status {
    match result {
        Ok(()) => Status::OK,
        Err(IoError::Io) => Status::IO_ERROR,
        Err(IoError::NotSupported) => Status::NOT_SUPPORTED,
        Err(IoError::Lower(number)) => Status::from_number(number),
    }
}

fn flags_of(flags: IoFlags) -> BioFlags {
    BioFlags { fua: flags.fua, preflush: flags.preflush, sync: flags.sync, readahead: flags.readahead, meta: false }
}
