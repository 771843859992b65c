// SPDX-License-Identifier: GPL-2.0
//! Safe types over the kernel's C interfaces that the `kernel` crate lacks. **The only folder with `unsafe`.**
//!
//! Rules of this folder:
//!
//! * No raw pointer and no type of the bindings in a signature the shell sees; what other files of this folder need is
//!   `pub(super)`.
//! * An `extern "C"` function converts its arguments and calls one safe function.
//! * A type that owns a kernel object releases it in exactly one way. What must not be dropped in atomic context says so.
//! * Whoever registers a callback waits, on the way out, until it cannot run any more.
//! * Traits that are called in atomic context (interrupt, softirq, under a spinlock) take `&self` and say so.
//! * The kernel's atomics, never `core::sync::atomic`.

pub(crate) mod bdev;
pub(crate) mod bio;
pub(crate) mod clock;
pub(crate) mod disk;
pub(crate) mod errno;
pub(crate) mod genl;
pub(crate) mod hash;
pub(crate) mod log;
pub(crate) mod mem;
pub(crate) mod module;
pub(crate) mod param;
pub(crate) mod procfs;
mod raw;
pub(crate) mod sock;
mod spare_pages;
pub(crate) mod storage;
pub(crate) mod sync;
pub(crate) mod thread;
pub(crate) mod umh;
pub(crate) mod work;
