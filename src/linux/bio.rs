// SPDX-License-Identifier: GPL-2.0
//! Block requests: those that arrive at our disks, and those we send to the devices below.
//!
//! * [`OwnedBio`]: a request from above. Whoever has it must end it; dropping it ends it with an error.
//! * [`Lent`]: a counted loan of the memory of an [`OwnedBio`], for a transfer to a socket or to a lower device. The
//!   block layer's own count on the request keeps the memory alive: the request only really ends when it was completed
//!   *and* all loans are back.
//! * [`submit`]: a request to a lower device on behalf of an [`Owner`], which is told the result in atomic context.
//!   Context and request are one allocation from a reserve.

use super::bdev::LowerDevice;
use super::mem::{PageChain, Piece};
use super::raw;
use super::work::{Deferred, DeferredArc};
use core::marker::PhantomData;
use core::mem::{offset_of, ManuallyDrop, MaybeUninit};
use core::num::NonZeroU8;
use core::ptr::{self, NonNull};
use kernel::error::to_result;
use kernel::prelude::*;
use kernel::types::Opaque;

/// Bound: pieces of memory in one request.
const MAX_VECTORS: usize = 256;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status(u8);

impl Status {
    /// Success.
    pub(crate) const OK: Status = Status(raw::DRBD_CONST_BLK_STS_OK);
    /// Input/output error.
    pub(crate) const IO_ERROR: Status = Status(raw::DRBD_CONST_BLK_STS_IOERR);
    /// The operation is not supported.
    pub(crate) const NOT_SUPPORTED: Status = Status(raw::DRBD_CONST_BLK_STS_NOTSUPP);

    /// From the error of a call that waits.
    pub(crate) fn of(error: Error) -> Status {
        // SAFETY: No requirements: what it does not know is an input/output error.
        Status(unsafe { raw::errno_to_blk_status(error.to_errno()) })
    }

    /// Of an error with this number.
    pub(crate) fn from_number(number: NonZeroU8) -> Status {
        Status(number.get())
    }

    /// The number of an error; nothing for success.
    pub(crate) fn number(self) -> Option<NonZeroU8> {
        NonZeroU8::new(self.0)
    }
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BioOp {
    /// Read.
    Read,
    /// Write; with size 0, only a flush.
    Write,
    /// Discard.
    Discard,
    /// Write zeroes.
    WriteZeroes {
        /// Deallocation is allowed.
        unmap: bool,
    },
    /// Anything else.
    Other,
}

/// Flags of a request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BioFlags {
    /// Durable when complete.
    pub(crate) fua: bool,
    /// Flush the cache first.
    pub(crate) preflush: bool,
    /// Somebody waits.
    pub(crate) sync: bool,
    /// Read ahead.
    pub(crate) readahead: bool,
    /// Meta data.
    pub(crate) meta: bool,
}

impl BioFlags {
    fn bits(self) -> u32 {
        let mut bits = 0;
        for (set, bit) in [
            (self.fua, raw::DRBD_CONST_REQ_FUA),
            (self.preflush, raw::DRBD_CONST_REQ_PREFLUSH),
            (self.sync, raw::DRBD_CONST_REQ_SYNC),
            (self.readahead, raw::DRBD_CONST_REQ_RAHEAD),
            (self.meta, raw::DRBD_CONST_REQ_META),
        ] {
            if set {
                bits |= bit;
            }
        }
        bits
    }

    fn from_bits(bits: u32) -> BioFlags {
        BioFlags {
            fua: bits & raw::DRBD_CONST_REQ_FUA != 0,
            preflush: bits & raw::DRBD_CONST_REQ_PREFLUSH != 0,
            sync: bits & raw::DRBD_CONST_REQ_SYNC != 0,
            readahead: bits & raw::DRBD_CONST_REQ_RAHEAD != 0,
            meta: bits & raw::DRBD_CONST_REQ_META != 0,
        }
    }
}

/// A request that arrived at one of our disks and is ours to end.
///
/// # Invariants
/// `bio` is a live request that was handed to our disk's submit function and has not been ended.
pub(crate) struct OwnedBio {
    bio: NonNull<raw::bio>,
    accounted_from: Option<c_ulong>,
}

// SAFETY: A request may be ended by every thread, in every context.
unsafe impl Send for OwnedBio {}
// SAFETY: Shared references only read, or use the request's atomic count.
unsafe impl Sync for OwnedBio {}

impl OwnedBio {
    /// Takes over a request.
    ///
    /// # Safety
    /// `bio` was handed to a disk's submit function, which gives it up with this call.
    pub(super) unsafe fn from_raw(bio: NonNull<raw::bio>) -> OwnedBio {
        OwnedBio { bio, accounted_from: None }
    }

    #[inline]
    fn raw(&self) -> &raw::bio {
        // SAFETY: By the invariant. Until it ends, only its status and its count change, which are not read through
        // this reference.
        unsafe { self.bio.as_ref() }
    }

    /// What it does.
    #[inline]
    pub(crate) fn op(&self) -> BioOp {
        let bits = self.raw().bi_opf;
        match bits & raw::DRBD_CONST_REQ_OP_MASK {
            raw::DRBD_CONST_REQ_OP_READ => BioOp::Read,
            raw::DRBD_CONST_REQ_OP_WRITE | raw::DRBD_CONST_REQ_OP_FLUSH => BioOp::Write,
            raw::DRBD_CONST_REQ_OP_DISCARD => BioOp::Discard,
            raw::DRBD_CONST_REQ_OP_WRITE_ZEROES => {
                BioOp::WriteZeroes { unmap: bits & raw::DRBD_CONST_REQ_NOUNMAP == 0 }
            }
            _ => BioOp::Other,
        }
    }

    /// Its flags.
    #[inline]
    pub(crate) fn flags(&self) -> BioFlags {
        BioFlags::from_bits(self.raw().bi_opf)
    }

    /// First sector of 512 bytes.
    #[inline]
    pub(crate) fn sector(&self) -> u64 {
        self.raw().bi_iter.bi_sector
    }

    /// Length in bytes.
    #[inline]
    pub(crate) fn bytes(&self) -> u32 {
        self.raw().bi_iter.bi_size
    }

    /// Starts the disk's I/O statistics for it. Any context.
    pub(crate) fn start_accounting(&mut self) {
        // SAFETY: By the invariant.
        self.accounted_from = Some(unsafe { raw::bio_start_io_acct(self.bio.as_ptr()) });
    }

    /// Lends its memory. Any context.
    #[inline]
    pub(crate) fn lend(&self) -> Lent {
        // SAFETY: By the invariant the request is live; the count is atomic, and the flag that goes with it is only
        // changed by whoever owns the request, serialised by the lock around the table it is kept in.
        unsafe { raw::drbd_h_bio_inc_remaining(self.bio.as_ptr()) };
        Lent { bio: self.bio }
    }

    /// Ends it. Any context, but not under a lock that the submitter's completion might want.
    pub(crate) fn complete(self, status: Status) {
        let bio = self.close(status);
        // SAFETY: Given up by `close`, which leaves this to us.
        unsafe { raw::bio_endio(bio.as_ptr()) };
    }

    /// Sets the status and ends the accounting; what is left is to call `bio_endio` once.
    fn close(self, status: Status) -> NonNull<raw::bio> {
        let this = ManuallyDrop::new(self);
        let (bio, accounted_from) = (this.bio.as_ptr(), this.accounted_from);
        if status != Status::OK {
            // SAFETY: By the invariant; nobody else writes the status before the request ends.
            unsafe { (*bio).bi_status = status.0 };
        }
        if let Some(start) = accounted_from {
            // SAFETY: As above.
            let bdev = unsafe { (*bio).bi_bdev };
            // SAFETY: As above; accounting was started on this request's device.
            unsafe { raw::bio_end_io_acct_remapped(bio, start, bdev) };
        }
        this.bio
    }
}

/// Requests from above whose result is known, collected under a lock and ended without it.
///
/// # Invariants
/// `head` starts a list, linked through `bi_next`, of closed requests owned by this list; `tail` is its last element, if
/// there is one.
pub(crate) struct EndedBios {
    head: *mut raw::bio,
    tail: *mut raw::bio,
}

impl EndedBios {
    /// None.
    #[inline]
    pub(crate) const fn new() -> EndedBios {
        EndedBios { head: ptr::null_mut(), tail: ptr::null_mut() }
    }

    /// True when nothing is in it.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.head.is_null()
    }

    /// Adds a request. Any context.
    pub(crate) fn push(&mut self, bio: OwnedBio, status: Status) {
        let raw = bio.close(status).as_ptr();
        // SAFETY: Owned; `bi_next` belongs to the request's owner.
        unsafe { (*raw).bi_next = ptr::null_mut() };
        if self.head.is_null() {
            self.head = raw;
        } else {
            // SAFETY: By the invariant.
            unsafe { (*self.tail).bi_next = raw };
        }
        self.tail = raw;
    }

    /// Ends all requests, in order. Any context, but not under a lock that a submitter's completion might want.
    #[inline]
    pub(crate) fn end(&mut self) {
        while let Some(bio) = NonNull::new(self.head) {
            // SAFETY: By the invariant.
            self.head = unsafe { (*bio.as_ptr()).bi_next };
            // SAFETY: As above; whoever gets it finds it as it was submitted.
            unsafe { (*bio.as_ptr()).bi_next = ptr::null_mut() };
            // SAFETY: As above; given up here.
            unsafe { raw::bio_endio(bio.as_ptr()) };
        }
    }
}

impl Drop for EndedBios {
    #[inline]
    fn drop(&mut self) {
        self.end();
    }
}

impl Drop for OwnedBio {
    fn drop(&mut self) {
        OwnedBio { bio: self.bio, accounted_from: self.accounted_from.take() }.complete(Status::IO_ERROR);
    }
}

/// A loan of the memory of an [`OwnedBio`]. May be dropped in any context.
///
/// # Invariants
/// `bio` has one count for this loan, so it has not ended.
pub(crate) struct Lent {
    bio: NonNull<raw::bio>,
}

// SAFETY: The count may be given back by every thread, in every context.
unsafe impl Send for Lent {}

impl Lent {
    /// Length in bytes.
    pub(crate) fn bytes(&self) -> u32 {
        // SAFETY: By the invariant.
        unsafe { self.bio.as_ref() }.bi_iter.bi_size
    }

    /// The data, piece by piece.
    pub(crate) fn segments(&self) -> impl Iterator<Item = &[u8]> {
        let (vectors, mut skip, mut left) = self.raw_bvecs();
        vectors.iter().map(move |vector| {
            let bytes = (vector.bv_len as usize).saturating_sub(skip).min(left);
            let offset = vector.bv_offset as usize + skip;
            (skip, left) = (0, left - bytes);
            // SAFETY: Pages of a request are in the direct mapping, one after the other within a vector.
            let start = unsafe { raw::drbd_h_page_address(vector.bv_page) }.cast::<u8>();
            // SAFETY: Within the vector, by its offset and length.
            let first = unsafe { start.add(offset) };
            // SAFETY: As above; the memory is there as long as the request is lent. Whoever writes to it meanwhile
            // breaks the promise of stable pages, and gets a digest that does not fit.
            unsafe { core::slice::from_raw_parts(first, bytes) }
        })
    }

    /// The data, to be written by whoever fills the request.
    pub(crate) fn segments_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let (vectors, mut skip, mut left) = self.raw_bvecs();
        vectors.iter().map(move |vector| {
            let bytes = (vector.bv_len as usize).saturating_sub(skip).min(left);
            let offset = vector.bv_offset as usize + skip;
            (skip, left) = (0, left - bytes);
            // SAFETY: Pages of a request are in the direct mapping, one after the other within a vector.
            let start = unsafe { raw::drbd_h_page_address(vector.bv_page) }.cast::<u8>();
            // SAFETY: Within the vector, by its offset and length.
            let first = unsafe { start.add(offset) };
            // SAFETY: As above; the memory is there as long as the request is lent, and each vector is handed out once.
            // Whoever reads it before the request has ended finds whatever is there.
            unsafe { core::slice::from_raw_parts_mut(first, bytes) }
        })
    }

    /// The memory as the kernel describes it: whole vectors, bytes to skip in the first, bytes altogether.
    pub(super) fn raw_bvecs(&self) -> (&[raw::bio_vec], usize, usize) {
        // SAFETY: By the invariant.
        let bio = unsafe { self.bio.as_ref() };
        // The iterator is a packed struct: copy the fields.
        let (index, bytes) = (bio.bi_iter.bi_idx as usize, bio.bi_iter.bi_size as usize);
        // SAFETY: As above.
        let skip = unsafe { raw::drbd_h_bio_first_skip(bio) } as usize;
        // SAFETY: The index is within the request's vectors.
        let first = unsafe { bio.bi_io_vec.cast_const().add(index) };
        let (mut count, mut covered) = (0, 0);
        while covered < bytes + skip {
            // SAFETY: The vectors together hold the request's bytes, so there is one more.
            let vector = unsafe { first.add(count) };
            // SAFETY: As above.
            covered += unsafe { (*vector).bv_len } as usize;
            count += 1;
        }
        // SAFETY: `count` vectors were just read; they stay as they are while the request is lent.
        (unsafe { core::slice::from_raw_parts(first, count) }, skip, bytes)
    }
}

impl Drop for Lent {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the invariant; this gives back the loan's count.
        unsafe { raw::bio_endio(self.bio.as_ptr()) };
    }
}

/// Requests from above that wait, in order of arrival. Dropping it ends them with an error.
///
/// # Invariants
/// `head` starts a list, linked through `bi_next`, of requests owned by this list; `tail` is its last element.
pub(crate) struct BioList {
    head: *mut raw::bio,
    tail: *mut raw::bio,
}

// SAFETY: As for `OwnedBio`.
unsafe impl Send for BioList {}

impl BioList {
    /// An empty list.
    pub(crate) const fn new() -> BioList {
        BioList { head: ptr::null_mut(), tail: ptr::null_mut() }
    }

    /// True when nothing is in it.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.head.is_null()
    }

    /// Adds a request whose accounting has not started at the end.
    pub(crate) fn push_back(&mut self, bio: OwnedBio) {
        let raw = ManuallyDrop::new(bio).bio.as_ptr();
        // SAFETY: Owned; `bi_next` belongs to the request's owner.
        unsafe { (*raw).bi_next = ptr::null_mut() };
        if self.head.is_null() {
            self.head = raw;
        } else {
            // SAFETY: By the invariant.
            unsafe { (*self.tail).bi_next = raw };
        }
        self.tail = raw;
    }

    /// Puts a request back at the front.
    pub(crate) fn push_front(&mut self, bio: OwnedBio) {
        let raw = ManuallyDrop::new(bio).bio.as_ptr();
        // SAFETY: Owned; `bi_next` belongs to the request's owner.
        unsafe { (*raw).bi_next = self.head };
        if self.head.is_null() {
            self.tail = raw;
        }
        self.head = raw;
    }

    /// Takes the oldest.
    pub(crate) fn pop_front(&mut self) -> Option<OwnedBio> {
        let bio = NonNull::new(self.head)?;
        // SAFETY: By the invariant.
        self.head = unsafe { (*bio.as_ptr()).bi_next };
        // SAFETY: As above.
        unsafe { (*bio.as_ptr()).bi_next = ptr::null_mut() };
        Some(OwnedBio { bio, accounted_from: None })
    }
}

impl Default for BioList {
    fn default() -> Self {
        BioList::new()
    }
}

impl Drop for BioList {
    fn drop(&mut self) {
        while self.pop_front().is_some() {}
    }
}

/// How a request to a lower device ended.
pub(crate) struct Outcome {
    /// Its status.
    pub(crate) result: Result<(), Status>,
    /// The pages it was submitted with, if it was.
    pub(crate) pages: Option<PageChain>,
}

/// On whose behalf requests are sent to lower devices: has the devices and the reserve, and is told the results.
pub(crate) trait Owner: Deferred {
    /// Says which request ended.
    type Tag: Send + 'static;

    /// Where requests of this owner come from.
    fn bios(&self) -> &BioSet<Self>
    where
        Self: Sized;

    /// The device a request with this tag goes to.
    fn device(&self, tag: &Self::Tag) -> &LowerDevice;

    /// A request has ended. Called in any context, also interrupt: must not sleep.
    fn done(&self, tag: Self::Tag, outcome: Outcome);
}

/// What travels with a lower request.
struct Context<T: Owner> {
    owner: DeferredArc<T>,
    tag: T::Tag,
    memory: Memory,
}

/// What keeps the memory of a lower request alive.
enum Memory {
    None,
    #[allow(dead_code)] // Kept to be dropped.
    Lent(Lent),
    Pages(PageChain),
}

/// A lower request with its context in front of it.
#[repr(C)]
struct Front<T: Owner> {
    context: MaybeUninit<Context<T>>,
    bio: raw::bio,
}

/// A reserve of lower requests with context for an owner of type `T`.
#[pin_data(PinnedDrop)]
pub(crate) struct BioSet<T: Owner> {
    #[pin]
    set: Opaque<raw::bio_set>,
    _context: PhantomData<fn(T)>,
}

// SAFETY: A bio set has its own locks.
unsafe impl<T: Owner> Send for BioSet<T> {}
// SAFETY: As above.
unsafe impl<T: Owner> Sync for BioSet<T> {}

impl<T: Owner> BioSet<T> {
    /// Makes a set that keeps `reserve` requests back. May sleep.
    pub(crate) fn new(reserve: u16) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            set <- Opaque::try_ffi_init(|slot: *mut raw::bio_set| {
                // SAFETY: `slot` is valid memory for a set; zeroed memory is its state before initialisation.
                unsafe { ptr::write_bytes(slot, 0, 1) };
                // CAST: the context is small.
                let front = offset_of!(Front<T>, bio) as c_uint;
                // SAFETY: As above.
                to_result(unsafe { raw::bioset_init(slot, reserve.into(), front, raw::DRBD_CONST_BIOSET_FLAGS) })
            }),
            _context: PhantomData,
        }? Error)
    }
}

#[pinned_drop]
impl<T: Owner> PinnedDrop for BioSet<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Initialised by `new`. Requests of the set keep its owner alive, so none is left.
        unsafe { raw::bioset_exit(self.set.get()) }
    }
}

/// Sends the request that `lent` is a loan of to the lower device, unchanged. Process context; may wait for memory, but
/// not for other requests of the caller.
pub(crate) fn submit_clone<T: Owner>(owner: DeferredArc<T>, tag: T::Tag, lent: Lent) {
    let (bdev, set) = (owner.device(&tag).as_raw(), owner.bios().set.get());
    // SAFETY: Device and set live as long as the owner, which the context keeps alive; the original lives as long as
    // the loan, which the context keeps as well.
    let bio = unsafe { raw::drbd_h_bio_alloc_clone(bdev, lent.bio.as_ptr(), set) };
    start(bio, Context { owner, tag, memory: Memory::Lent(lent) });
}

/// Reads into or writes from `pages`, starting at `sector`. Process context; may wait for memory.
pub(crate) fn submit_pages<T: Owner>(
    owner: DeferredArc<T>,
    tag: T::Tag,
    write: bool,
    flags: BioFlags,
    sector: u64,
    pages: PageChain,
) {
    let op = if write { raw::DRBD_CONST_REQ_OP_WRITE } else { raw::DRBD_CONST_REQ_OP_READ };
    let count = pages.pieces().count().min(MAX_VECTORS);
    let (bdev, set) = (owner.device(&tag).as_raw(), owner.bios().set.get());
    // CAST: At most `MAX_VECTORS`.
    // SAFETY: Device and set live as long as the owner, which the context keeps alive.
    let bio = unsafe { raw::drbd_h_bio_alloc(bdev, count as c_ushort, op | flags.bits(), set) };
    if !bio.is_null() {
        // SAFETY: Fresh from the allocator.
        unsafe { (*bio).bi_iter.bi_sector = sector };
        for Piece { page, bytes } in pages.pieces().take(count) {
            // SAFETY: The request has `count` vectors; the pages live in the context. CAST: a piece is small.
            unsafe { raw::__bio_add_page(bio, page, bytes as c_uint, 0) };
        }
    }
    start(bio, Context { owner, tag, memory: Memory::Pages(pages) });
}

/// Flushes the write cache of the lower device. Process context; may wait for memory.
pub(crate) fn submit_flush<T: Owner>(owner: DeferredArc<T>, tag: T::Tag) {
    let flags = BioFlags { preflush: true, sync: true, ..BioFlags::default() };
    let (bdev, set) = (owner.device(&tag).as_raw(), owner.bios().set.get());
    // SAFETY: Device and set live as long as the owner, which the context keeps alive.
    let bio = unsafe { raw::drbd_h_bio_alloc(bdev, 0, raw::DRBD_CONST_REQ_OP_WRITE | flags.bits(), set) };
    start(bio, Context { owner, tag, memory: Memory::None });
}

/// Attaches the context to a fresh request of the owner's set and sends it off; without a request, reports an error.
fn start<T: Owner>(bio: *mut raw::bio, context: Context<T>) {
    if bio.is_null() {
        context.finish(Err(Status::IO_ERROR));
        return;
    }
    // SAFETY: The set was made with room for a `Front<T>` in front of each request.
    let front: *mut Front<T> = unsafe { bio.byte_sub(offset_of!(Front<T>, bio)) }.cast();
    // SAFETY: As above; nobody else uses the request yet.
    unsafe { (*front).context = MaybeUninit::new(context) };
    // SAFETY: As above.
    unsafe { (*bio).bi_end_io = Some(ended::<T>) };
    // SAFETY: The request is complete: device, sector, memory, end function.
    unsafe { raw::submit_bio_noacct(bio) };
}

/// Called by the block layer when a lower request has ended, in any context.
///
/// # Safety
/// `bio` is the request of a `Front<T>` whose context was written by `start`.
unsafe extern "C" fn ended<T: Owner>(bio: *mut raw::bio) {
    // SAFETY: By the requirement.
    let front: *mut Front<T> = unsafe { bio.byte_sub(offset_of!(Front<T>, bio)) }.cast();
    // SAFETY: The front is ours; a request ends once, so the context is taken out once.
    let context = unsafe { core::mem::replace(&mut (*front).context, MaybeUninit::uninit()) };
    // SAFETY: Written by `start`.
    let context = unsafe { context.assume_init() };
    // SAFETY: The request is ours until it is put.
    let status = unsafe { (*bio).bi_status };
    // SAFETY: The reference from the allocation; the set is alive, the context still has its owner.
    unsafe { raw::bio_put(bio) };
    context.finish(if status == Status::OK.0 { Ok(()) } else { Err(Status(status)) });
}

impl<T: Owner> Context<T> {
    fn finish(self, result: Result<(), Status>) {
        let pages = match self.memory {
            Memory::Pages(pages) => Some(pages),
            // A loan goes back first, so that the owner's completion of the original is the last.
            Memory::Lent(_) | Memory::None => None,
        };
        self.owner.done(self.tag, Outcome { result, pages });
    }
}

/// Collects the requests submitted inside, so that the lower device sees them together. Process context.
pub(crate) fn plugged<R>(submit: impl FnOnce() -> R) -> R {
    let plug = Opaque::<raw::blk_plug>::uninit();
    // SAFETY: `plug` is valid memory that does not move before it is finished below, by the same task.
    unsafe { raw::drbd_h_blk_start_plug(plug.get()) };
    let result = submit();
    // SAFETY: Started above.
    unsafe { raw::blk_finish_plug(plug.get()) };
    result
}
