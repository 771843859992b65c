// SPDX-License-Identifier: GPL-2.0
//! drbd: a block device that is mirrored to another machine over the network.
//!
//! This is the crate root of the module: what is registered, in order; it is torn down in reverse.
#![deny(unsafe_code)]
#![deny(
    unused_must_use,
    static_mut_refs,
    clippy::undocumented_unsafe_blocks,
    clippy::missing_safety_doc,
    clippy::multiple_unsafe_ops_per_block,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::large_stack_arrays
)]

#[allow(unsafe_code)]
mod linux;
mod shell;

use kernel::prelude::*;

module! {
    type: Module,
    name: "drbd",
    authors: ["The drbd-rs authors"],
    description: "Distributed Replicated Block Device, compatible with 8.4.11",
    license: "GPL",
    alias: ["block-major-147-*"],
}

/// Everything the module registered. Fields are dropped in order: first what lets new work in.
struct Module {
    _major: linux::disk::Major,
}

impl kernel::Module for Module {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(Module {
            _major: linux::disk::Major::register()?,
        })
    }
}
