// SPDX-License-Identifier: GPL-2.0
//! The configuration file.
//!
//! spec: drbd-conf

pub mod lexer;
pub mod model;
pub mod parser;
pub mod source;
