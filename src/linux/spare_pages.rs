// SPDX-License-Identifier: GPL-2.0
//! Pages that are kept to be used again.
//!
//! A page from the allocator is cleared (`init_on_alloc`), which costs as much as copying a page of data. Here the next data
//! just overwrites the last.

use super::mem::LARGEST_ORDER;
use super::raw;
use core::ptr::{self, NonNull};

/// Bound: pieces kept, by their order: 2.25 MiB together.
const KEPT_MAX: [u16; LARGEST_ORDER as usize + 1] = [128, 32, 32, 32];

/// Pieces that nobody uses, or only the network stack any more, which sends what is in them.
pub(super) struct SparePages {
    by_order: [Pieces; LARGEST_ORDER as usize + 1],
}

/// Pieces of one size.
struct Pieces {
    free: List,
    /// Somebody else had a reference to these, the oldest first: the network lets go of them in the order it got them.
    shared: List,
}

/// Pieces in the order in which they came, linked through their private words.
///
/// # Invariants
/// All of them are owned by the list; `first` and `last` are both null, or the ends of it, where it has `count` pieces.
struct List {
    first: *mut raw::page,
    last: *mut raw::page,
    count: u16,
}

// SAFETY: The pages belong to the list, no matter which thread has it.
unsafe impl Send for List {}

impl Default for SparePages {
    fn default() -> Self {
        Self::new()
    }
}

impl SparePages {
    pub(super) const fn new() -> Self {
        SparePages {
            by_order: [const { Pieces { free: List::new(), shared: List::new() } }; LARGEST_ORDER as usize + 1],
        }
    }

    /// A piece of two to the power of `order` pages that nobody else refers to.
    pub(super) fn take(&mut self, order: u32) -> Option<NonNull<raw::page>> {
        let pieces = self.by_order.get_mut(order as usize)?;
        pieces.free.pop().or_else(|| if pieces.shared.first_is_free() { pieces.shared.pop() } else { None })
    }

    /// Keeps a piece; gives it back if there are enough of them.
    ///
    /// # Safety
    /// The caller gives up its reference, and its use of the private word.
    pub(super) unsafe fn put(&mut self, page: NonNull<raw::page>) -> Option<NonNull<raw::page>> {
        // SAFETY: By the caller's promise a page with a reference.
        let order = unsafe { raw::drbd_h_page_order(page.as_ptr()) } as usize;
        let (Some(pieces), Some(&most)) = (self.by_order.get_mut(order), KEPT_MAX.get(order)) else {
            return Some(page);
        };
        if pieces.free.count.saturating_add(pieces.shared.count) >= most {
            return Some(page);
        }
        // SAFETY: As above.
        if unsafe { raw::drbd_h_page_is_shared(page.as_ptr()) } {
            pieces.shared.push_last(page);
        } else {
            pieces.free.push_first(page);
        }
        None
    }
}

impl List {
    const fn new() -> Self {
        List { first: ptr::null_mut(), last: ptr::null_mut(), count: 0 }
    }

    fn first_is_free(&self) -> bool {
        // SAFETY: By the invariant the first piece is owned by the list.
        !self.first.is_null() && !unsafe { raw::drbd_h_page_is_shared(self.first) }
    }

    fn pop(&mut self) -> Option<NonNull<raw::page>> {
        let page = NonNull::new(self.first)?;
        // SAFETY: By the invariant the first piece is owned by the list.
        self.first = unsafe { raw::drbd_h_page_next(page.as_ptr()) };
        if self.first.is_null() {
            self.last = ptr::null_mut();
        }
        // SAFETY: As above.
        unsafe { raw::drbd_h_set_page_next(page.as_ptr(), ptr::null_mut()) };
        self.count = self.count.saturating_sub(1);
        Some(page)
    }

    /// Takes over a piece.
    fn push_first(&mut self, page: NonNull<raw::page>) {
        // SAFETY: The list owns the piece from now on.
        unsafe { raw::drbd_h_set_page_next(page.as_ptr(), self.first) };
        self.first = page.as_ptr();
        if self.last.is_null() {
            self.last = page.as_ptr();
        }
        self.count = self.count.saturating_add(1);
    }

    /// Takes over a piece.
    fn push_last(&mut self, page: NonNull<raw::page>) {
        // SAFETY: The list owns the piece from now on.
        unsafe { raw::drbd_h_set_page_next(page.as_ptr(), ptr::null_mut()) };
        if self.last.is_null() {
            self.first = page.as_ptr();
        } else {
            // SAFETY: By the invariant the last piece is owned by the list.
            unsafe { raw::drbd_h_set_page_next(self.last, page.as_ptr()) };
        }
        self.last = page.as_ptr();
        self.count = self.count.saturating_add(1);
    }
}

impl Drop for List {
    fn drop(&mut self) {
        while let Some(page) = self.pop() {
            // SAFETY: The list owned the piece, and gives up its reference.
            unsafe { raw::drbd_h_put_page(page.as_ptr()) };
        }
    }
}
