// SPDX-License-Identifier: GPL-2.0
//! Resync: how fast ([`rate`]), in which pieces ([`merge_request`]), and how far it got ([`Progress`]).

pub mod progress;
pub mod rate;
pub mod request;

pub use progress::{Figures, Pace, Progress};
pub use request::{merge_request, MergeLimits};
