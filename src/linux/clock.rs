// SPDX-License-Identifier: GPL-2.0
//! Clocks and random numbers. All functions may be called in any context.

use super::raw;

/// Milliseconds of a clock that never goes back and starts at some point before the module was loaded. It moves with the
/// timer interrupt, every 1 to 10 ms.
#[inline]
pub(crate) fn monotonic_ms() -> u64 {
    // SAFETY: No requirements.
    unsafe { raw::drbd_h_get_jiffies_ms() }
}

/// A random number of cryptographic quality.
#[inline]
pub(crate) fn random_u64() -> u64 {
    // SAFETY: No requirements.
    unsafe { raw::get_random_u64() }
}
