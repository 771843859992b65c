// SPDX-License-Identifier: GPL-2.0
//! What is on a device already: nobody's data is overwritten without a word.
//!
//! Only the first 68 KiB are looked at, so that creating meta data stays quick.
//! spec: metadata 9.4

use std::path::Path;
use std::process::{Command, Stdio};

/// How much of the device is looked at, bytes.
pub const PROBE_BYTES: usize = 68 * 1024;

/// What the beginning of a device looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Nothing but zeroes.
    Empty,
    /// Something that says how large it is.
    Sized {
        /// For people: "ext3 filesystem".
        name: &'static str,
        /// Bytes it uses from the beginning of the device.
        bytes: u64,
    },
    /// Something known that does not say how large it is.
    Unsized {
        /// For people.
        name: &'static str,
    },
    /// Not empty, not known.
    Unknown,
}

impl Contents {
    /// True for something with a signature.
    pub fn is_recognised(&self) -> bool {
        matches!(self, Contents::Sized { .. } | Contents::Unsized { .. })
    }
}

/// Classifies the first [`PROBE_BYTES`] of a device.
pub fn classify(head: &[u8]) -> Contents {
    if head.iter().all(|&byte| byte == 0) {
        return Contents::Empty;
    }
    let detectors = [swap, lvm, ext, xfs, jfs, reiserfs];
    detectors.iter().find_map(|detect| detect(head)).unwrap_or(Contents::Unknown)
}

/// Asks the volume manager for the size of a physical volume; [`Contents::Unsized`] stays what it is if it does not know.
pub fn with_volume_manager_size(contents: Contents, device: &Path) -> Contents {
    let Contents::Unsized { name: LVM } = contents else {
        return contents;
    };
    let output = Command::new("pvs")
        .args(["-o", "pv_size", "--noheadings", "--nosuffix", "--units", "b"])
        .arg(device)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    let bytes = output.ok().filter(|output| output.status.success());
    match bytes.and_then(|output| String::from_utf8_lossy(&output.stdout).trim().parse().ok()) {
        Some(bytes) => Contents::Sized { name: LVM, bytes },
        None => contents,
    }
}

const LVM: &str = "LVM2 physical volume";

fn bytes_at<const N: usize>(head: &[u8], offset: usize) -> Option<[u8; N]> {
    head.get(offset..offset.checked_add(N)?)?.try_into().ok()
}

fn le32(head: &[u8], offset: usize) -> Option<u64> {
    bytes_at(head, offset).map(|bytes| u64::from(u32::from_le_bytes(bytes)))
}

fn le16(head: &[u8], offset: usize) -> Option<u64> {
    bytes_at(head, offset).map(|bytes| u64::from(u16::from_le_bytes(bytes)))
}

fn has(head: &[u8], offset: usize, text: &[u8]) -> bool {
    head.get(offset..).is_some_and(|rest| rest.starts_with(text))
}

fn sized(name: &'static str, blocks: u64, block_bytes: u64) -> Contents {
    match blocks.checked_mul(block_bytes) {
        Some(bytes) if bytes > 0 => Contents::Sized { name, bytes },
        _ => Contents::Unsized { name },
    }
}

fn swap(head: &[u8]) -> Option<Contents> {
    let found =
        [4096, 8192].into_iter().any(|page| has(head, page - 10, b"SWAP-SPACE") || has(head, page - 10, b"SWAPSPACE2"));
    found.then_some(Contents::Unsized { name: "swap space signature" })
}

fn lvm(head: &[u8]) -> Option<Contents> {
    has(head, 0x218, b"LVM2").then_some(Contents::Unsized { name: LVM })
}

fn ext(head: &[u8]) -> Option<Contents> {
    if le16(head, 0x438)? != 0xEF53 {
        return None;
    }
    let name = if head.get(0x45C)? & 4 != 0 { "ext3 filesystem" } else { "ext2 filesystem" };
    let block_bytes = match le32(head, 0x418)? {
        code @ 0..=2 => 1024 << code,
        _ => 0,
    };
    // ext4 with the feature "64bit" counts its blocks in two halves; without the upper one 16 TiB and more look small.
    let upper = if le32(head, 0x460)? & 0x80 != 0 { le32(head, 0x550)? } else { 0 };
    Some(sized(name, (upper << 32) | le32(head, 0x404)?, block_bytes))
}

fn xfs(head: &[u8]) -> Option<Contents> {
    if u32::from_be_bytes(bytes_at(head, 0)?) != 0x5846_5342 {
        return None;
    }
    let block_bytes = u32::from_be_bytes(bytes_at(head, 4)?);
    Some(sized("xfs filesystem", u64::from_be_bytes(bytes_at(head, 8)?), u64::from(block_bytes)))
}

fn jfs(head: &[u8]) -> Option<Contents> {
    if !has(head, 0x8000, b"JFS1") {
        return None;
    }
    Some(sized("jfs filesystem", u64::from_le_bytes(bytes_at(head, 0x8008)?), le32(head, 0x8018)?))
}

fn reiserfs(head: &[u8]) -> Option<Contents> {
    if !has(head, 0x10034, b"ReIsErFs") && !has(head, 0x10034, b"ReIsEr2Fs") {
        return None;
    }
    Some(sized("reiser filesystem", le32(head, 0x10000)?, le16(head, 0x1002C)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(parts: &[(usize, &[u8])]) -> Vec<u8> {
        let mut head = vec![0; PROBE_BYTES];
        for (offset, bytes) in parts {
            head[*offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        head
    }

    #[test]
    fn signatures() {
        let ext2: &[(usize, &[u8])] = &[(0x438, &[0x53, 0xEF]), (0x404, &[0, 0, 1, 0]), (0x418, &[2])];
        let ext3: &[(usize, &[u8])] = &[(0x438, &[0x53, 0xEF]), (0x404, &[16]), (0x45C, &[4])];
        let ext4: &[(usize, &[u8])] =
            &[(0x438, &[0x53, 0xEF]), (0x404, &[16]), (0x418, &[2]), (0x460, &[0x80]), (0x550, &[1])];
        // The upper half of the number counts only with the feature that says so.
        let small: &[(usize, &[u8])] = &[(0x438, &[0x53, 0xEF]), (0x404, &[16]), (0x418, &[2]), (0x550, &[1])];
        let strange: &[(usize, &[u8])] = &[(0x438, &[0x53, 0xEF]), (0x404, &[16]), (0x418, &[9])];
        let table = [
            (head(&[]), Contents::Empty),
            (head(&[(5, b"x")]), Contents::Unknown),
            (head(&[(4086, b"SWAPSPACE2")]), Contents::Unsized { name: "swap space signature" }),
            (head(&[(8182, b"SWAP-SPACE")]), Contents::Unsized { name: "swap space signature" }),
            (head(&[(0x218, b"LVM2")]), Contents::Unsized { name: LVM }),
            (head(ext2), Contents::Sized { name: "ext2 filesystem", bytes: 65536 * 4096 }),
            (head(ext3), Contents::Sized { name: "ext3 filesystem", bytes: 16 * 1024 }),
            (head(ext4), Contents::Sized { name: "ext2 filesystem", bytes: ((1 << 32) + 16) * 4096 }),
            (head(small), Contents::Sized { name: "ext2 filesystem", bytes: 16 * 4096 }),
            (head(strange), Contents::Unsized { name: "ext2 filesystem" }),
            (
                head(&[(0, b"XFSB\0\0\x10\0"), (8, &[0, 0, 0, 0, 0, 0, 0, 7])]),
                Contents::Sized { name: "xfs filesystem", bytes: 7 * 4096 },
            ),
            (
                head(&[(0x8000, b"JFS1"), (0x8008, &[9]), (0x8018, &[0, 2])]),
                Contents::Sized { name: "jfs filesystem", bytes: 9 * 512 },
            ),
            (
                head(&[(0x10034, b"ReIsEr2Fs"), (0x10000, &[3]), (0x1002C, &[0, 16])]),
                Contents::Sized { name: "reiser filesystem", bytes: 3 * 4096 },
            ),
        ];
        for (bytes, expected) in table {
            assert_eq!(classify(&bytes), expected);
        }
    }

    #[test]
    fn a_short_head_is_no_error() {
        assert_eq!(classify(&[1; 100]), Contents::Unknown);
    }
}
