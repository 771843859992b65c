// SPDX-License-Identifier: GPL-2.0
//! The note where internal meta data was last seen, so that it is found again after the device has grown.
//!
//! spec: metadata 9.8, proc-and-sysfs 6

use std::io;
use std::path::{Path, PathBuf};

/// Where the notes are kept.
pub const NOTE_DIR: &str = "/var/lib/drbd";

/// What is known about a backing device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastKnown {
    /// Size of the device when it was written, bytes.
    pub size_bytes: u64,
    /// Its path then.
    pub path: String,
    /// The id that is in the superblock too; `None` if it never got one.
    pub device_uuid: Option<u64>,
}

impl LastKnown {
    /// Reads the note about `minor` from `dir`; `None` if there is none that makes sense.
    pub fn read(dir: &Path, minor: i64) -> Option<Self> {
        Self::decode(&std::fs::read_to_string(note_path(dir, minor)).ok()?)
    }

    /// Writes the note, replacing the old one at once.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, dir: &Path, minor: i64) -> io::Result<()> {
        std::fs::create_dir_all(dir)?;
        let path = note_path(dir, minor);
        let new = path.with_extension("lkbd.new");
        std::fs::write(&new, self.encode())?;
        std::fs::rename(new, path)
    }

    /// Removes the note about `minor`; that there was none is fine.
    ///
    /// # Errors
    /// What the file system says.
    pub fn remove(dir: &Path, minor: i64) -> io::Result<()> {
        match std::fs::remove_file(note_path(dir, minor)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn encode(&self) -> String {
        let mut text = format!("{}\t{}\n", self.size_bytes, self.path);
        if let Some(uuid) = self.device_uuid {
            text += &format!("uuid:\t{uuid:016X}\n");
        }
        text
    }

    fn decode(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let (size, path) = lines.next()?.split_once('\t')?;
        let device_uuid = lines.next().and_then(|line| line.strip_prefix("uuid:\t"));
        Some(LastKnown {
            size_bytes: size.trim().parse().ok()?,
            path: path.to_owned(),
            device_uuid: device_uuid.and_then(|digits| u64::from_str_radix(digits, 16).ok()),
        })
    }
}

fn note_path(dir: &Path, minor: i64) -> PathBuf {
    dir.join(format!("drbd-minor-{minor}.lkbd"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_lines_survive() {
        let note = LastKnown { size_bytes: 4096, path: "/dev/sdb1".into(), device_uuid: Some(0xAB) };
        assert_eq!(note.encode(), "4096\t/dev/sdb1\nuuid:\t00000000000000AB\n");
        assert_eq!(LastKnown::decode(&note.encode()), Some(note.clone()));
        let without = LastKnown { device_uuid: None, ..note };
        assert_eq!(LastKnown::decode(&without.encode()), Some(without));
    }

    #[test]
    fn nonsense_is_no_note() {
        for text in ["", "12", "x\t/dev/sda"] {
            assert_eq!(LastKnown::decode(text), None);
        }
    }
}
