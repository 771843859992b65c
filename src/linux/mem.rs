// SPDX-License-Identifier: GPL-2.0
//! Memory of the data path: pages from a reserve that was filled beforehand.
//!
//! A block device must make progress when memory is short, because writing to it is how memory gets free again. So
//! threads of the data path allocate inside a [`NoIoScope`], and pages come from a [`PagePool`], with a [`PageReserve`] behind
//! it.

use super::raw;
use super::spare_pages::SparePages;
use super::sync::{new_irq_lock, IrqLock};
use core::marker::PhantomData;
use core::ptr::{self, NonNull};
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::types::{NotThreadSafe, Opaque};

/// Bytes of a page.
pub(crate) const PAGE_BYTES: usize = 4096;
/// Largest piece of a chain, as power of two of pages: 32 KiB, what the page allocator keeps at hand per CPU.
pub(super) const LARGEST_ORDER: u32 = 3;
/// Bound: bytes of one chain.
pub(crate) const MAX_CHAIN_BYTES: usize = 1 << 20;

/// While it lives, no allocation of this thread starts I/O to get memory (`GFP_KERNEL` means `GFP_NOIO`).
pub(crate) struct NoIoScope {
    previous: c_uint,
    _same_thread: NotThreadSafe,
}

impl NoIoScope {
    /// Enters the scope; it ends when the guard is dropped.
    #[must_use = "the scope ends when the guard is dropped"]
    pub(crate) fn enter() -> Self {
        NoIoScope {
            // SAFETY: Changes the current task's flags; taken back by the same task in `drop`.
            previous: unsafe { raw::drbd_h_memalloc_noio_save() },
            _same_thread: NotThreadSafe,
        }
    }
}

impl Drop for NoIoScope {
    fn drop(&mut self) {
        // SAFETY: The value is from the save of this task, the guard cannot change threads.
        unsafe { raw::drbd_h_memalloc_noio_restore(self.previous) }
    }
}

/// Says that the function may sleep; a debug kernel complains when it is called in atomic context.
#[inline]
pub(crate) fn might_sleep() {
    // SAFETY: No requirements.
    unsafe { raw::drbd_h_might_sleep() }
}

/// A reserve of pages: allocation from it waits for a page to come back, and never fails.
#[pin_data(PinnedDrop)]
pub(crate) struct PageReserve {
    #[pin]
    pool: Opaque<raw::mempool_t>,
}

// SAFETY: A mempool has its own lock.
unsafe impl Send for PageReserve {}
// SAFETY: As above.
unsafe impl Sync for PageReserve {}

impl PageReserve {
    /// Makes a reserve that keeps `pages` pages back. May sleep.
    pub(crate) fn new(pages: u16) -> Result<Arc<Self>> {
        Arc::pin_init(
            try_pin_init!(Self {
                pool <- Opaque::try_ffi_init(|slot: *mut raw::mempool_t| {
                    // SAFETY: `slot` is valid memory for a pool; zeroed memory is its state before initialisation.
                    unsafe { ptr::write_bytes(slot, 0, 1) };
                    // SAFETY: As above.
                    kernel::error::to_result(unsafe { raw::drbd_h_page_pool_init(slot, c_int::from(pages)) })
                }),
            }),
            GFP_KERNEL,
        )
    }

    /// One page. May sleep.
    fn page(&self) -> NonNull<raw::page> {
        loop {
            // SAFETY: The pool was initialised by `new`.
            let page = unsafe { raw::drbd_h_mempool_alloc_page(self.pool.get()) };
            // A pool does not fail when the caller may sleep.
            if let Some(page) = NonNull::new(page) {
                return page;
            }
        }
    }
}

#[pinned_drop]
impl PinnedDrop for PageReserve {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Initialised by `new`; every chain holds a reference, so all pages are back.
        unsafe { raw::mempool_exit(self.pool.get()) }
    }
}

/// Where the chains of one resource have their pages from: those that other chains have given back, else the page allocator,
/// else the reserve.
#[pin_data]
pub(crate) struct PagePool {
    reserve: Arc<PageReserve>,
    #[pin]
    spare: IrqLock<SparePages>,
}

impl PagePool {
    /// A pool in front of `reserve`.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn new(reserve: Arc<PageReserve>) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self { reserve, spare <- new_irq_lock!(SparePages::new(), c"drbd::PagePool::spare") }),
            GFP_KERNEL,
        )
    }

    /// Gives back to the system what no chain uses.
    pub(crate) fn trim(&self) {
        drop(self.spare.with(core::mem::take));
    }

    /// A piece of at most `left` pages, of two at least if `left` allows it, and how many pages it has: if there is one at hand.
    fn piece(&self, left: usize) -> Option<(NonNull<raw::page>, usize)> {
        let order = left.checked_ilog2().unwrap_or(0).min(LARGEST_ORDER);
        let page = self.spare.with(|spare| spare.take(order)).or_else(|| {
            // SAFETY: No requirements.
            NonNull::new(unsafe { raw::drbd_h_alloc_pages_hint(order) })
        })?;
        Some((page, 1 << order))
    }

    /// One page at hand.
    fn single(&self) -> Option<(NonNull<raw::page>, usize)> {
        self.piece(1)
    }

    /// Takes back a piece that a chain does not use any more. In any context.
    ///
    /// # Safety
    /// The caller gives up its reference, the only one that a chain has.
    unsafe fn put(&self, page: NonNull<raw::page>) {
        // SAFETY: By the caller's promise the pool may do with the piece what it likes.
        let Some(page) = self.spare.with(|spare| unsafe { spare.put(page) }) else { return };
        let page = page.as_ptr();
        // SAFETY: As above.
        let order = unsafe { raw::drbd_h_page_order(page) };
        // SAFETY: As above.
        if order > 0 || unsafe { raw::drbd_h_page_is_shared(page) } {
            // SAFETY: As above.
            unsafe { raw::drbd_h_put_page(page) };
        } else {
            // SAFETY: A page of order 0 may go into the reserve; nobody else refers to it.
            unsafe { raw::mempool_free(page.cast(), self.reserve.pool.get()) };
        }
    }
}

/// Owned pages for the data of one request: a list of pieces of 4 to 32 KiB, in order.
///
/// The pages are full but the last one. Dropping is allowed in any context. A page that somebody else, the network
/// stack, still refers to is not used again before that reference is gone.
///
/// # Invariants
/// `head` starts a list, linked through the pages' private words, of pages owned by this chain which together hold at
/// least `bytes` bytes.
pub(crate) struct PageChain {
    head: *mut raw::page,
    bytes: usize,
    pool: Arc<PagePool>,
}

// SAFETY: The pages belong to the chain, no matter which thread has it.
unsafe impl Send for PageChain {}
// SAFETY: A shared reference only allows to read.
unsafe impl Sync for PageChain {}

impl PageChain {
    /// Pages for `bytes` bytes, at most [`MAX_CHAIN_BYTES`]; what is asked for beyond is cut off. May sleep; does not
    /// fail. The contents are whatever was there before.
    pub(crate) fn new(pool: &Arc<PagePool>, bytes: usize) -> PageChain {
        let mut chain = PageChain { head: ptr::null_mut(), bytes: bytes.min(MAX_CHAIN_BYTES), pool: pool.clone() };
        let _complete = chain
            .fill(|left| Some(pool.piece(left).or_else(|| pool.single()).unwrap_or_else(|| (pool.reserve.page(), 1))));
        chain
    }

    /// As [`PageChain::new`], but only if the pages can be had without waiting, and without the reserve.
    pub(crate) fn at_hand(pool: &Arc<PagePool>, bytes: usize) -> Option<PageChain> {
        let mut chain = PageChain { head: ptr::null_mut(), bytes: bytes.min(MAX_CHAIN_BYTES), pool: pool.clone() };
        chain.fill(|left| pool.piece(left).or_else(|| pool.single())).then_some(chain)
    }

    /// Allocates the pages of an empty chain by `piece`. False if it had none any more.
    fn fill(&mut self, mut piece: impl FnMut(usize) -> Option<(NonNull<raw::page>, usize)>) -> bool {
        let mut tail = ptr::null_mut();
        let mut left = self.bytes.div_ceil(PAGE_BYTES);
        while left > 0 {
            let Some((page, pages)) = piece(left) else { return false };
            // SAFETY: Fresh from the allocator, owned.
            unsafe { raw::drbd_h_set_page_next(page.as_ptr(), ptr::null_mut()) };
            if self.head.is_null() {
                self.head = page.as_ptr();
            } else {
                // SAFETY: `tail` is the page allocated in the round before.
                unsafe { raw::drbd_h_set_page_next(tail, page.as_ptr()) };
            }
            tail = page.as_ptr();
            left = left.saturating_sub(pages);
        }
        true
    }

    /// Number of bytes.
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The data, piece by piece.
    pub(crate) fn segments(&self) -> impl Iterator<Item = &[u8]> {
        self.pieces().map(|piece| {
            // SAFETY: The pieces are owned by `self`, which is borrowed as long as the slices live.
            unsafe { core::slice::from_raw_parts(piece.address(), piece.bytes) }
        })
    }

    /// The memory, piece by piece.
    pub(crate) fn segments_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.pieces().map(|piece| {
            // SAFETY: The pieces do not overlap and are owned by `self`, which is borrowed as long as the slices live.
            unsafe { core::slice::from_raw_parts_mut(piece.address(), piece.bytes) }
        })
    }

    /// Forgets everything behind the first `bytes` bytes; the memory stays.
    pub(crate) fn truncate(&mut self, bytes: usize) {
        self.bytes = self.bytes.min(bytes);
    }

    /// The first page, whole; nothing if the chain was made for 0 bytes.
    pub(crate) fn first_page(&self) -> Option<&[u8; PAGE_BYTES]> {
        let page = NonNull::new(self.head)?;
        // SAFETY: A piece has at least one page, owned by `self`, which is borrowed as long as the reference lives.
        Some(unsafe { &*Piece { page: page.as_ptr(), bytes: PAGE_BYTES }.address().cast() })
    }

    /// The first page, whole; nothing if the chain was made for 0 bytes.
    pub(crate) fn first_page_mut(&mut self) -> Option<&mut [u8; PAGE_BYTES]> {
        let page = NonNull::new(self.head)?;
        // SAFETY: A piece has at least one page, owned by `self`, which is borrowed as long as the reference lives.
        Some(unsafe { &mut *Piece { page: page.as_ptr(), bytes: PAGE_BYTES }.address().cast() })
    }

    /// Fills everything with zeroes.
    pub(crate) fn zero(&mut self) {
        for segment in self.segments_mut() {
            segment.fill(0);
        }
    }

    pub(super) fn pieces(&self) -> Pieces<'_> {
        Pieces { next: self.head, left: self.bytes, _chain: PhantomData }
    }

    /// Describes the data from `from_byte` on, as far as `vectors` is long enough. Returns the number of vectors.
    pub(super) fn bvecs(&self, from_byte: usize, vectors: &mut [raw::bio_vec]) -> usize {
        let (mut skip, mut count) = (from_byte, 0);
        for piece in self.pieces() {
            let offset = skip.min(piece.bytes);
            skip -= offset;
            if offset == piece.bytes {
                continue;
            }
            let Some(vector) = vectors.get_mut(count) else { break };
            // CAST: A piece is at most 32 KiB.
            *vector =
                raw::bio_vec { bv_page: piece.page, bv_len: (piece.bytes - offset) as u32, bv_offset: offset as u32 };
            count += 1;
        }
        count
    }
}

impl Drop for PageChain {
    fn drop(&mut self) {
        let mut next = NonNull::new(self.head);
        while let Some(page) = next {
            // SAFETY: By the invariant `page` is owned by the chain.
            next = NonNull::new(unsafe { raw::drbd_h_page_next(page.as_ptr()) });
            // SAFETY: As above.
            unsafe { raw::drbd_h_set_page_next(page.as_ptr(), ptr::null_mut()) };
            // SAFETY: The chain does not use the piece any more.
            unsafe { self.pool.put(page) };
        }
    }
}

/// One piece of a chain.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    pub(super) page: *mut raw::page,
    pub(super) bytes: usize,
}

impl Piece {
    fn address(self) -> *mut u8 {
        // SAFETY: Pieces come from an iterator over a live chain; its pages are in the direct mapping.
        unsafe { raw::drbd_h_page_address(self.page) }.cast()
    }
}

/// The pieces of a chain, in order.
pub(super) struct Pieces<'a> {
    next: *mut raw::page,
    left: usize,
    _chain: PhantomData<&'a PageChain>,
}

impl Iterator for Pieces<'_> {
    type Item = Piece;

    #[inline]
    fn next(&mut self) -> Option<Piece> {
        if self.next.is_null() || self.left == 0 {
            return None;
        }
        let page = self.next;
        // SAFETY: By the invariant of the borrowed chain, `page` is one of its pages.
        let order = unsafe { raw::drbd_h_page_order(page) };
        let bytes = (PAGE_BYTES << order.min(LARGEST_ORDER)).min(self.left);
        self.left -= bytes;
        // SAFETY: As above.
        self.next = unsafe { raw::drbd_h_page_next(page) };
        Some(Piece { page, bytes })
    }
}
