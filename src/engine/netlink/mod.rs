// SPDX-License-Identifier: GPL-2.0
//! The control interface: one table of commands, attributes, defaults, limits and result codes for module and tools.
//!
//! A message is a generic-netlink header, the [`DrbdHeader`] and a list of attributes; nearly every attribute is a
//! nest and has a type of its own here. The trait [`Nest`] carries what all of them can do.
// spec: netlink

pub mod attr;
pub mod codes;
pub mod command;
mod nest;
pub mod table;
pub mod value;
pub mod words;

pub use crate::wire::text::{Text, TextTooLong};
pub use crate::wire::BufferTooSmall;
pub use attr::{Attr, AttrReader, AttrWriter, Direction, Malformed, OpenNest};
pub use codes::{exit_code, result_sentence, RetCode, StateResult};
pub use command::{Command, CommandSpec, DrbdHeader, Need, COMMANDS, MINOR_NONE, REQUEST_SET_DEFAULTS};
pub use nest::{AttrError, AttrErrorKind, Nest, ParseMode, Present, Redact};
pub use table::*;
pub use value::{Bytes, FieldKind, FieldSpec, FieldValue, Marks, OptionSpec, Scale, Value};
pub use words::*;

/// Name of the generic-netlink family.
pub const FAMILY_NAME: &str = "drbd";
/// Version of the family; tools refuse any other.
pub const FAMILY_VERSION: u8 = 1;
/// Bytes of the family's own header; tools refuse any other.
pub const FAMILY_HEADER_LEN: usize = DrbdHeader::LEN;
/// Name of the only multicast group.
pub const EVENTS_GROUP: &str = "events";
/// Highest top-level attribute number.
pub const MAX_ATTRIBUTE: u16 = 24;
