// SPDX-License-Identifier: GPL-2.0
//! The configuration file: read ([`parser`]), completed and checked ([`resolve`]), printed ([`print`]).
//!
//! spec: drbd-conf

pub mod lexer;
pub mod model;
pub mod parser;
pub mod print;
pub mod resolve;
pub mod source;
