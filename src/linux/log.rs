// SPDX-License-Identifier: GPL-2.0
//! Lines for the kernel log that begin with `drbd NAME: `, as those of the C module do: programs look for that. The macros of
//! the kernel crate begin them with `drbd: `.

use core::ffi::c_void;
use core::fmt;

use super::raw;

/// How much a line matters.
#[derive(Clone, Copy)]
pub(crate) enum Level {
    /// Something is wrong.
    Error,
    /// Something may be wrong.
    Warning,
    /// What happens.
    Info,
}

/// Writes a line.
pub(crate) fn print(level: Level, line: fmt::Arguments<'_>) {
    let format: &'static [u8; 12] = match level {
        Level::Error => b"\x013drbd %pA\n\0",
        Level::Warning => b"\x014drbd %pA\n\0",
        Level::Info => b"\x016drbd %pA\n\0",
    };
    // SAFETY: The format ends with a NUL, and its only argument is what `%pA` asks for: a pointer to `fmt::Arguments`, which
    // live until the call has returned.
    unsafe { raw::_printk(format.as_ptr(), core::ptr::from_ref(&line).cast::<c_void>()) };
}
