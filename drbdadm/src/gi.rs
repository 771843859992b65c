// SPDX-License-Identifier: GPL-2.0
//! Generation identifiers as people and scripts see them: `get-gi`, `show-gi` and the value of `set-gi`.
//!
//! spec: commands 3.4, metadata 9.5

use std::fmt::Write;

/// The seven flags that are shown, in their order: bit in the superblock and in `disk_flags`, and what it says.
const SHOWN_FLAGS: [(u32, &str); 7] = [
    (1 << 0, "data is consistent"),
    (1 << 4, "data was up to date"),
    (1 << 1, "node was Primary"),
    (1 << 2, "node was connected"),
    (1 << 3, "whole bitmap counts as set"),
    (1 << 5, "peer was outdated or worse"),
    (1 << 6, "node crashed as Primary and has not met its peer since"),
];

/// Superblock flag: the data is consistent.
pub const CONSISTENT: u32 = 1 << 0;
/// Superblock flag: the node was Primary.
pub const PRIMARY: u32 = 1 << 1;
/// Superblock flag: the node was connected.
pub const CONNECTED: u32 = 1 << 2;
/// Superblock flag: every bit of the bitmap counts as set.
pub const FULL_SYNC: u32 = 1 << 3;
/// Superblock flag: the data was up to date.
pub const WAS_UP_TO_DATE: u32 = 1 << 4;
/// Superblock flag: the peer's data was outdated.
pub const PEER_OUTDATED: u32 = 1 << 5;
/// Superblock flag: the node crashed as Primary.
pub const CRASHED_PRIMARY: u32 = 1 << 6;
/// Superblock flag: nothing in the activity log has to be applied.
pub const AL_CLEAN: u32 = 1 << 7;

const COLUMN_OF_FIRST_FLAG: usize = 68;

/// The generation identifiers of one volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenerationIds {
    /// Current, bitmap, younger history, older history.
    pub uuids: [u64; 4],
    /// Flag word of the superblock.
    pub flags: u32,
}

impl GenerationIds {
    /// The line `get-gi` prints.
    pub fn line(&self) -> String {
        let mut line: String = self.uuids.iter().map(|uuid| format!("{uuid:016X}:")).collect();
        let flags: Vec<_> = SHOWN_FLAGS.iter().map(|(bit, _)| u8::from(self.flags & bit != 0).to_string()).collect();
        line += &flags.join(":");
        line
    }

    /// The drawing of `show-gi` with the words about the flags.
    pub fn drawing(&self) -> String {
        let mut text = String::from(
            "\n\
             \x20      +--<  current UUID: this generation of the data\n\
             \x20      |               +--<  bitmap UUID: the generation the bitmap counts from\n\
             \x20      |               |                 +--<  younger history UUID\n\
             \x20      |               |                 |         +--<  older history UUID\n\
             \x20      V               V                 V         V\n",
        );
        let last = SHOWN_FLAGS.len() - 1;
        let _ = writeln!(text, "{}", self.line());
        let _ = writeln!(text, "{:COLUMN_OF_FIRST_FLAG$}{}", "", ["^"; SHOWN_FLAGS.len()].join(" "));
        for (index, (_, label)) in SHOWN_FLAGS.iter().enumerate() {
            let column = COLUMN_OF_FIRST_FLAG + 2 * index;
            let _ = writeln!(text, "{:>column$}+{}", format!("-<  {label}  >--"), " |".repeat(last - index));
        }
        let _ = writeln!(text, "\nflags:{}", self.words());
        let state = if self.flags & AL_CLEAN != 0 { "clean" } else { "need apply-al" };
        let _ = writeln!(text, "meta-data: {state}");
        text
    }

    /// The flags in words, each preceded by what separates it from the one before.
    fn words(&self) -> String {
        let is = |bit: u32| self.flags & bit != 0;
        let mut words = String::new();
        words += if is(CRASHED_PRIMARY) { " crashed" } else { "" };
        words += if is(PRIMARY) { " Primary" } else { " Secondary" };
        words += if is(CONNECTED) { ", Connected" } else { ", StandAlone" };
        words += match (is(CONSISTENT), is(WAS_UP_TO_DATE)) {
            (true, true) => ", UpToDate",
            (true, false) => ", Outdated",
            (false, _) => ", Inconsistent",
        };
        words += if is(FULL_SYNC) { ", need full sync" } else { "" };
        words += if is(PEER_OUTDATED) { ", peer Outdated" } else { "" };
        words
    }

    /// Reads the value of `set-gi`: fields that are empty or missing keep what `self` has.
    ///
    /// # Errors
    /// A sentence naming the field that makes no sense.
    pub fn with_changes(mut self, value: &str) -> Result<Self, String> {
        let mut fields = value.trim().split(':');
        for uuid in &mut self.uuids {
            let field = fields.next().unwrap_or("").trim();
            if !field.is_empty() {
                let digits = field.strip_prefix("0x").or_else(|| field.strip_prefix("0X")).unwrap_or(field);
                *uuid = u64::from_str_radix(digits, 16).map_err(|_| format!("'{field}' is not a UUID"))?;
            }
        }
        for (bit, label) in SHOWN_FLAGS {
            match fields.next().unwrap_or("").trim() {
                "" => {}
                "0" => self.flags &= !bit,
                "1" => self.flags |= bit,
                other => return Err(format!("'{other}' is not 0 or 1: {label}")),
            }
        }
        match fields.find(|field| !field.trim().is_empty()) {
            Some(surplus) => Err(format!("'{surplus}' is one field too many")),
            None => Ok(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRESH: GenerationIds = GenerationIds { uuids: [4, 0, 0, 0], flags: AL_CLEAN };

    #[test]
    fn line_of_a_fresh_device() {
        assert_eq!(FRESH.line(), "0000000000000004:0000000000000000:0000000000000000:0000000000000000:0:0:0:0:0:0:0");
    }

    #[test]
    fn drawing_points_at_the_fields() {
        let drawing = GenerationIds { uuids: [4, 0, 0, 0], flags: 0 }.drawing();
        let expected = r"
       +--<  current UUID: this generation of the data
       |               +--<  bitmap UUID: the generation the bitmap counts from
       |               |                 +--<  younger history UUID
       |               |                 |         +--<  older history UUID
       V               V                 V         V
0000000000000004:0000000000000000:0000000000000000:0000000000000000:0:0:0:0:0:0:0
                                                                    ^ ^ ^ ^ ^ ^ ^
                                         -<  data is consistent  >--+ | | | | | |
                                          -<  data was up to date  >--+ | | | | |
                                               -<  node was Primary  >--+ | | | |
                                               -<  node was connected  >--+ | | |
                                         -<  whole bitmap counts as set  >--+ | |
                                           -<  peer was outdated or worse  >--+ |
                 -<  node crashed as Primary and has not met its peer since  >--+

flags: Secondary, StandAlone, Inconsistent
meta-data: need apply-al
";
        assert_eq!(drawing, expected);
    }

    #[test]
    fn flags_in_words() {
        let all = GenerationIds { uuids: [0; 4], flags: 0x7F };
        assert_eq!(all.words(), " crashed Primary, Connected, UpToDate, need full sync, peer Outdated");
    }

    #[test]
    fn changes_keep_what_is_not_named() {
        let ids = FRESH.with_changes("0x1111::7:::1:1").unwrap();
        assert_eq!(ids.uuids, [0x1111, 0, 7, 0]);
        assert_eq!(ids.flags, AL_CLEAN | WAS_UP_TO_DATE | PRIMARY);
        assert_eq!(FRESH.with_changes("0x1111::7:::1:1").unwrap().with_changes("").unwrap(), ids);
    }

    #[test]
    fn bad_values_are_named() {
        assert_eq!(FRESH.with_changes("xyz").unwrap_err(), "'xyz' is not a UUID");
        assert_eq!(FRESH.with_changes("1:2:3:4:5").unwrap_err(), "'5' is not 0 or 1: data is consistent");
        assert!(FRESH.with_changes("1:2:3:4:1:1:1:1:1:1:1:1").is_err());
    }
}
