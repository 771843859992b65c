// SPDX-License-Identifier: GPL-2.0
//! The network protocol.

pub mod text;

pub use text::{Text, TextTooLong};

/// The buffer given to an encoder has no room for what was to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferTooSmall;
