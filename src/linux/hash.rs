// SPDX-License-Identifier: GPL-2.0
//! Digests by the kernel's hash algorithms, which are found by name.

use super::raw;
use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};
use kernel::error::{from_err_ptr, to_result};
use kernel::prelude::*;

/// Longest digest in bytes.
pub(crate) const DIGEST_BYTES_MAX: usize = 64;
/// Largest state of a calculation in bytes; the kernel's own limit is less.
const STATE_BYTES_MAX: usize = 1024;

/// A hash algorithm, with its key if it needs one.
///
/// # Invariants
/// `hash` is a live algorithm whose digests have `digest_bytes` bytes, at most [`DIGEST_BYTES_MAX`], and whose state
/// has at most [`STATE_BYTES_MAX`] bytes.
pub(crate) struct Hash {
    hash: NonNull<raw::drbd_h_hash>,
    digest_bytes: usize,
}

// SAFETY: An algorithm may be used and freed by every thread.
unsafe impl Send for Hash {}
// SAFETY: It does not change after its key was set; every calculation has a state of its own.
unsafe impl Sync for Hash {}

impl Hash {
    /// The algorithm with this name, without a key. May sleep and load a module: not under locks, not in the data path.
    ///
    /// # Errors
    /// `ENOENT` when there is none, `EINVAL` when its digests do not fit, and others.
    pub(crate) fn new(name: &CStr) -> Result<Hash> {
        Hash::with_key(name, None)
    }

    /// The same with a key, for names as `hmac(sha1)`.
    ///
    /// # Errors
    /// As [`Hash::new`].
    pub(crate) fn keyed(name: &CStr, key: &[u8]) -> Result<Hash> {
        Hash::with_key(name, Some(key))
    }

    fn with_key(name: &CStr, key: Option<&[u8]>) -> Result<Hash> {
        let key_bytes = c_uint::try_from(key.map_or(0, <[u8]>::len))?;
        let key = key.map_or(ptr::null(), <[u8]>::as_ptr);
        // SAFETY: Name and key outlive the call.
        let hash = from_err_ptr(unsafe { raw::drbd_h_hash_alloc(name.as_char_ptr(), key, key_bytes) })?;
        let mut hash = Hash { hash: NonNull::new(hash).ok_or(ENOMEM)?, digest_bytes: 0 };
        // SAFETY: Live; from here on dropping `hash` frees it.
        let digest_bytes = unsafe { raw::drbd_h_hash_digest_bytes(hash.hash.as_ptr()) } as usize;
        // SAFETY: As above.
        let state_bytes = unsafe { raw::drbd_h_hash_state_bytes(hash.hash.as_ptr()) } as usize;
        if digest_bytes == 0 || digest_bytes > DIGEST_BYTES_MAX || state_bytes > STATE_BYTES_MAX {
            return Err(EINVAL);
        }
        hash.digest_bytes = digest_bytes;
        Ok(hash)
    }

    /// Size of its digests in bytes, 1..=[`DIGEST_BYTES_MAX`].
    pub(crate) fn digest_bytes(&self) -> usize {
        self.digest_bytes
    }

    /// The digest of the pieces one after the other, in the first [`Hash::digest_bytes`] bytes. Process context.
    ///
    /// # Errors
    /// Those of the algorithm.
    pub(crate) fn digest<'a>(&self, pieces: impl Iterator<Item = &'a [u8]>) -> Result<[u8; DIGEST_BYTES_MAX]> {
        let mut digest = [0; DIGEST_BYTES_MAX];
        let mut state = State(MaybeUninit::uninit());
        let mut calculation = Calculation::start(self, &mut state)?;
        for piece in pieces {
            calculation.add(piece)?;
        }
        calculation.end(&mut digest)?;
        Ok(digest)
    }
}

impl Drop for Hash {
    fn drop(&mut self) {
        // SAFETY: By the invariant; every calculation borrows `self`, so none is under way.
        unsafe { raw::drbd_h_hash_free(self.hash.as_ptr()) }
    }
}

/// Memory for the state of a calculation.
#[repr(C, align(64))]
struct State(MaybeUninit<[u8; STATE_BYTES_MAX]>);

/// A calculation under way.
///
/// # Invariants
/// `state` names its algorithm, which is borrowed as long as the calculation lives.
struct Calculation<'a> {
    state: &'a mut State,
}

impl<'a> Calculation<'a> {
    fn start(hash: &'a Hash, state: &'a mut State) -> Result<Self> {
        // SAFETY: The state is large enough by the invariant of `Hash`.
        let started = to_result(unsafe { raw::drbd_h_hash_init(state.0.as_mut_ptr().cast(), hash.hash.as_ptr()) });
        let calculation = Calculation { state };
        started.map(|()| calculation)
    }

    fn state(&mut self) -> *mut c_void {
        self.state.0.as_mut_ptr().cast()
    }

    fn add(&mut self, data: &[u8]) -> Result {
        let bytes = c_uint::try_from(data.len())?;
        // SAFETY: The calculation was started; the data outlives the call.
        to_result(unsafe { raw::drbd_h_hash_update(self.state(), data.as_ptr(), bytes) })
    }

    fn end(mut self, digest: &mut [u8; DIGEST_BYTES_MAX]) -> Result {
        // SAFETY: The calculation was started; the digest has room by the invariant of `Hash`.
        to_result(unsafe { raw::drbd_h_hash_final(self.state(), digest.as_mut_ptr()) })
    }
}

impl Drop for Calculation<'_> {
    fn drop(&mut self) {
        // SAFETY: By the invariant the state names its algorithm; it is not used any more.
        unsafe { raw::drbd_h_hash_forget(self.state()) }
    }
}
