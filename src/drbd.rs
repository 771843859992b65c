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
    _proc: shell::proc::File,
    _family: shell::control::Family,
    _running: shell::Running,
    _major: linux::disk::Major,
    _work: linux::work::WorkQueue,
}

impl kernel::Module for Module {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        shell::params::check()?;
        let work = linux::work::WorkQueue::new()?;
        let major = linux::disk::Major::register()?;
        let driver = shell::Driver::new()?;
        let running = shell::Running::start(driver.clone())?;
        let family = shell::control::register(driver.clone())?;
        let module = Module {
            _proc: shell::proc::register(driver)?,
            _family: family,
            _running: running,
            _major: major,
            _work: work,
        };
        pr_info!("initialized, version {}, block major {}\n", shell::proc::VERSION, linux::disk::MAJOR);
        Ok(module)
    }
}
