// SPDX-License-Identifier: GPL-2.0
//! A read-only file in `/proc` whose contents are made when it is opened.

use super::raw;
use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;
use kernel::ffi::{c_int, c_void};
use kernel::prelude::*;
use kernel::seq_file::SeqFile;
use kernel::sync::Arc;
use kernel::types::ForeignOwnable;

/// What a file shows.
pub(crate) trait Show: Send + Sync + 'static {
    /// Writes the contents. Called in process context; may sleep; may be called again with a larger buffer.
    fn show(&self, out: &mut dyn fmt::Write) -> fmt::Result;
}

/// A file in `/proc` (mode 0444); it goes when this is dropped, after all readers have finished.
///
/// # Invariants
/// `entry` was created by us and is removed once; `data` is an `Arc<T>` which the entry uses until then.
pub(crate) struct ProcFile<T: Show> {
    entry: NonNull<raw::proc_dir_entry>,
    data: *mut c_void,
    _shows: PhantomData<Arc<T>>,
}

// SAFETY: the entry and the counted reference may be given up from any thread.
unsafe impl<T: Show> Send for ProcFile<T> {}
// SAFETY: there are no methods on `&ProcFile`.
unsafe impl<T: Show> Sync for ProcFile<T> {}

impl<T: Show> ProcFile<T> {
    /// Creates `/proc/NAME`.
    ///
    /// # Errors
    /// `ENOMEM`; also when the name exists.
    pub(crate) fn new(name: &CStr, shown: Arc<T>) -> Result<Self> {
        let data = shown.into_foreign();
        // SAFETY: the name is copied; `show::<T>` gets `data`, which stays valid until the entry is removed.
        let entry = unsafe { raw::drbd_h_proc_create(name.as_char_ptr(), Some(show::<T>), data) };
        match NonNull::new(entry) {
            Some(entry) => Ok(ProcFile { entry, data, _shows: PhantomData }),
            None => {
                // SAFETY: no entry was created, so the reference is still ours.
                drop(unsafe { Arc::<T>::from_foreign(data) });
                Err(ENOMEM)
            }
        }
    }
}

impl<T: Show> Drop for ProcFile<T> {
    fn drop(&mut self) {
        // SAFETY: by the type's invariant; waits for all readers.
        unsafe { raw::drbd_h_proc_remove(self.entry.as_ptr()) };
        // SAFETY: by the type's invariant; no reader is left.
        drop(unsafe { Arc::<T>::from_foreign(self.data) });
    }
}

/// # Safety
/// Called by the kernel for an open file of a [`ProcFile<T>`].
unsafe extern "C" fn show<T: Show>(file: *mut raw::seq_file, _position: *mut c_void) -> c_int {
    // SAFETY: `file` is valid during this call; its private data is what `ProcFile::new` passed.
    let data = unsafe { raw::drbd_h_seq_private(file) };
    // SAFETY: the entry holds the reference while there are readers.
    let shown = unsafe { Arc::<T>::borrow(data) };
    // SAFETY: valid during this call, used by this thread only.
    let file = unsafe { SeqFile::from_raw(file) };
    // `seq_file` notes an overflow by itself and calls again with a larger buffer.
    let _ = shown.show(&mut Output(file));
    0
}

struct Output<'a>(&'a SeqFile);

impl fmt::Write for Output<'_> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        kernel::seq_print!(self.0, "{}", s);
        Ok(())
    }
}
