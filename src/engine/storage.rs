// SPDX-License-Identifier: GPL-2.0
//! Where the engine's tables live.
//!
//! The kernel has no `alloc` crate, so the engine asks its owner for memory through [`Storage`], and only while a
//! resource or a volume is set up. Afterwards every table has its final length.

use core::ops::DerefMut;

/// The owner had no memory for a table of this many entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory {
    /// Number of entries asked for.
    pub entries: usize,
}

/// A source of fixed-length tables: `KVVec` in the kernel, `Vec` in user space.
pub trait Storage: 'static {
    /// A table; its length never changes after [`Storage::table`] made it.
    type Table<T: 'static>: DerefMut<Target = [T]>;

    /// Makes a table of `entries` entries, each made by `fill` from its index.
    ///
    /// # Errors
    /// [`OutOfMemory`] when the owner cannot provide it. May sleep; called only during set-up.
    fn table<T: 'static>(entries: usize, fill: impl FnMut(usize) -> T) -> Result<Self::Table<T>, OutOfMemory>;

    /// CRC-32C over bytes of such tables, as [`crate::metadata::crc32c::crc32c`], for an owner who has the machine's own
    /// instructions for it: a transaction of the activity log is 4 KiB.
    fn crc32c(crc: u32, bytes: &[u8]) -> u32 {
        crate::metadata::crc32c::crc32c(crc, bytes)
    }
}

/// Tables on the heap of a user-space program: tests, simulator, tools.
#[cfg(not(MODULE))]
#[derive(Clone, Copy, Debug)]
pub struct HeapStorage;

#[cfg(not(MODULE))]
extern crate alloc;

#[cfg(not(MODULE))]
impl Storage for HeapStorage {
    type Table<T: 'static> = alloc::vec::Vec<T>;

    fn table<T: 'static>(entries: usize, fill: impl FnMut(usize) -> T) -> Result<Self::Table<T>, OutOfMemory> {
        Ok((0..entries).map(fill).collect())
    }
}
