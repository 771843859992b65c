// SPDX-License-Identifier: GPL-2.0
//! The raw declarations: what the `kernel` crate has, and our own on top.
//!
//! Only the files of this folder use this module; nothing of it appears in a signature that the shell sees.
#![allow(
    dead_code,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    improper_ctypes,
    unreachable_pub,
    unsafe_op_in_unsafe_fn,
    unnameable_types,
    rust_2018_idioms,
    clippy::all,
    clippy::ptr_as_ptr,
    clippy::ref_as_ptr,
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block
)]

#[doc(no_inline)]
pub(crate) use kernel::bindings::*;
use kernel::ffi;
#[allow(unused_imports)]
use pin_init::{MaybeZeroable, Zeroable};

include!(env!("RAW_BINDINGS"));
