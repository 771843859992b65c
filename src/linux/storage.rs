// SPDX-License-Identifier: GPL-2.0
//! Where the engine's tables live: kernel memory, contiguous for small tables, pages mapped together for large ones.

use super::{mem, raw};
use engine::storage::{OutOfMemory, Storage};
use kernel::prelude::*;

/// The engine's tables in kernel memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KernelStorage;

impl Storage for KernelStorage {
    type Table<T: 'static> = KVVec<T>;

    fn table<T: 'static>(entries: usize, fill: impl FnMut(usize) -> T) -> Result<Self::Table<T>, OutOfMemory> {
        mem::might_sleep();
        let mut table = KVVec::with_capacity(entries, GFP_KERNEL).map_err(|_| OutOfMemory { entries })?;
        for entry in (0..entries).map(fill) {
            table.push_within_capacity(entry).map_err(|_| OutOfMemory { entries })?;
        }
        Ok(table)
    }

    fn crc32c(crc: u32, bytes: &[u8]) -> u32 {
        // SAFETY: The slice is readable during the call, which may be made in any context.
        unsafe { raw::crc32c(crc, bytes.as_ptr().cast(), bytes.len()) }
    }
}
