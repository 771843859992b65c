// SPDX-License-Identifier: GPL-2.0
//! What lies on the meta-data device: bytes to types and back.
//!
//! The meta data of a volume is one superblock ([`superblock`]), a ring of activity log transactions
//! ([`transaction`]) and the bitmap; [`layout`] says at which sectors. Every superblock and activity log access is one
//! aligned block of 4096 bytes, all numbers in them are big-endian.
//!
//! "sector" is 512 bytes everywhere, "block" 4096 bytes.

pub mod crc32c;
pub mod layout;
pub mod replay;
pub mod superblock;
pub mod transaction;

/// Size in bytes of a meta-data block, the unit of all meta-data I/O.
pub const BLOCK_BYTES: usize = 4096;
/// Sectors in a meta-data block.
pub const BLOCK_SECTORS: u64 = 8;
/// One meta-data block.
pub type Block = [u8; BLOCK_BYTES];

/// Bytes of storage that one bit of the bitmap stands for.
pub const BM_BLOCK_BYTES: u32 = 4096;
/// Sectors of storage that one bit of the bitmap stands for.
pub const BM_BLOCK_SECTORS: u64 = 8;
/// Sectors of storage that one 512-byte sector of the bitmap describes: 16 MiB.
pub const SECTORS_PER_BITMAP_SECTOR: u64 = 32768;
/// Sectors in an activity log extent (4 MiB), the unit the activity log tracks.
pub const AL_EXTENT_SECTORS: u64 = 8192;
/// Activity log extents described by one 4 KiB page of the bitmap.
pub const AL_EXTENTS_PER_BITMAP_PAGE: u32 = 32;
/// "No extent": the number of a free activity log slot.
pub const LC_FREE: u32 = 0xFFFF_FFFF;

/// The `N` bytes at `offset`; zeroes where the block ends before.
fn bytes_at<const N: usize>(block: &Block, offset: usize) -> [u8; N] {
    block.get(offset..).and_then(|rest| rest.first_chunk::<N>()).copied().unwrap_or([0; N])
}

/// Stores `bytes` at `offset`; does nothing where they would not fit.
fn put_bytes<const N: usize>(block: &mut Block, offset: usize, bytes: [u8; N]) {
    if let Some(target) = block.get_mut(offset..).and_then(|rest| rest.first_chunk_mut::<N>()) {
        *target = bytes;
    }
}

fn be_u16(block: &Block, offset: usize) -> u16 {
    u16::from_be_bytes(bytes_at(block, offset))
}

fn be_u32(block: &Block, offset: usize) -> u32 {
    u32::from_be_bytes(bytes_at(block, offset))
}

fn be_u64(block: &Block, offset: usize) -> u64 {
    u64::from_be_bytes(bytes_at(block, offset))
}
