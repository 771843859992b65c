// SPDX-License-Identifier: GPL-2.0
//! The engine: every decision of the replication module, and nothing else.
//!
//! No kernel, no `unsafe`, no clock, no randomness, no I/O and, after set-up, no allocation: all of these are
//! arguments. The same source runs under `cargo test`, under the simulator and, as a second crate of `drbd.ko`, in
//! the kernel.
#![cfg_attr(not(any(MODULE, test)), no_std)]
#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]
// `MODULE` is set by Kbuild, which passes `no_std` by itself.
#![allow(unexpected_cfgs)]

pub mod activity_log;
pub mod bitmap;
pub mod discard;
pub mod handshake;
pub mod metadata;
pub mod netlink;
pub mod resource;
pub mod resync;
pub mod state;
pub mod storage;
pub mod wire;
