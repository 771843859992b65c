// SPDX-License-Identifier: GPL-2.0
//! `apply-al`: after a crash, what the activity log calls hot is marked out of sync in the bitmap.
//!
//! The order makes it safe to be interrupted: bitmap, then the ring, then the superblock; each is on the device before
//! the next begins, and doing it all a second time changes nothing.
//! spec: metadata 4.5, 4.6

use super::device::{AlignedBuffer, Device, BLOCK_BYTES, SECTOR_BYTES};
use super::store::{bitmap_bytes, write_superblock, Found};
use crate::failure::Failure;
use engine::metadata::layout::Layout;
use engine::metadata::replay::{replay, Replay, MAX_SLOTS};
use engine::metadata::superblock::{Magic, MetaFlags};
use engine::metadata::transaction::Transaction;
use engine::metadata::Block;

/// Bytes of bitmap that describe one activity log extent.
const BITMAP_BYTES_PER_EXTENT: u64 = 128;
/// The largest activity log that is read, bytes.
const MAX_AL_BYTES: u64 = 32 << 20;

/// Applies the log if it has to be and leaves the meta data clean. True if anything was written.
///
/// # Errors
/// Exit code 1 when a log that is needed cannot be understood, 10 on an I/O error.
pub fn apply_al(device: &Device, found: &mut Found) -> Result<bool, Failure> {
    let area = read_ring(device, &found.layout)?;
    let blocks = u32::try_from(area.len() / BLOCK_BYTES).unwrap_or(u32::MAX);
    let block_at = |logical: u32| {
        let start = usize::try_from(found.layout.striping.ring_block(logical)).ok()?.checked_mul(BLOCK_BYTES)?;
        area.get(start..)?.first_chunk::<BLOCK_BYTES>()
    };
    let mut table = vec![0; MAX_SLOTS];
    let result = replay(blocks, block_at, &mut table);
    let was_primary = found.superblock.flags.contains(MetaFlags::PRIMARY_IND);
    let applied = match result {
        // A second one that is torn later must not make two of it.
        Replay::Nothing { torn } => torn,
        Replay::Replayed { invalid_blocks, skipped_entries, active, .. } => {
            if invalid_blocks > 0 {
                eprintln!("{invalid_blocks} blocks of the activity log are torn or damaged and were skipped");
            }
            if skipped_entries > 0 {
                eprintln!("{skipped_entries} entries of the activity log name impossible slots and were skipped");
            }
            if was_primary {
                mark_extents(device, found, table.get(..active).unwrap_or_default())?;
            }
            true
        }
        Replay::NoUsableLog | Replay::Damaged { .. } if was_primary => {
            let text = "The activity log is needed and cannot be read; it may be of a version before 8.4.";
            return Err(Failure::new(1, text));
        }
        Replay::NoUsableLog | Replay::Damaged { .. } => true,
    };
    if applied {
        device.sync()?;
        initialise_ring(device, &found.layout)?;
    }
    let is_clean = found.superblock.flags.contains(MetaFlags::AL_CLEAN) && found.superblock.magic == Magic::Clean;
    if applied || !is_clean {
        found.superblock.flags.set(MetaFlags::AL_CLEAN);
        found.superblock.magic = Magic::Clean;
        write_superblock(device, found, Magic::Clean)?;
        return Ok(true);
    }
    Ok(false)
}

/// Writes a ring in which nothing was ever logged.
///
/// # Errors
/// Exit code 10.
pub fn initialise_ring(device: &Device, layout: &Layout) -> Result<(), Failure> {
    let mut block: Block = [0; BLOCK_BYTES];
    Transaction::INITIALIZED.encode(&mut block);
    let mut ring = AlignedBuffer::zeroed(ring_bytes(layout)?);
    for target in ring.chunks_exact_mut(BLOCK_BYTES) {
        target.copy_from_slice(&block);
    }
    device.write(layout.al_sector(), &ring)
}

/// Reads the whole ring.
///
/// # Errors
/// Exit code 10.
pub fn read_ring(device: &Device, layout: &Layout) -> Result<AlignedBuffer, Failure> {
    device.read(layout.al_sector(), ring_bytes(layout)?)
}

fn ring_bytes(layout: &Layout) -> Result<usize, Failure> {
    let bytes = layout.al_sectors.saturating_mul(SECTOR_BYTES);
    match usize::try_from(bytes) {
        Ok(len) if bytes <= MAX_AL_BYTES => Ok(len),
        _ => Err(Failure::new(10, format!("an activity log of {bytes} bytes is larger than {MAX_AL_BYTES}"))),
    }
}

/// Sets every bit of these extents (ascending, each once) and says how much that added.
fn mark_extents(device: &Device, found: &Found, extents: &[u32]) -> Result<(), Failure> {
    let on_disk = found.layout.bitmap_sectors * SECTOR_BYTES;
    let limit = bitmap_bytes(found.superblock.la_size_sectors).min(on_disk);
    let extents_per_block = BLOCK_BYTES as u64 / BITMAP_BYTES_PER_EXTENT;
    let beyond = extents.iter().filter(|extent| u64::from(**extent) * BITMAP_BYTES_PER_EXTENT >= limit).count();
    if beyond > 0 {
        eprintln!("{beyond} extents of the activity log lie beyond the end of the bitmap and were skipped");
    }
    let mut added_bits = 0_u64;
    for group in extents.chunk_by(|a, b| u64::from(*a) / extents_per_block == u64::from(*b) / extents_per_block) {
        let page = u64::from(group.first().copied().unwrap_or(0)) / extents_per_block;
        if page * BLOCK_BYTES as u64 >= limit {
            continue;
        }
        let sector = found.layout.bitmap_sector() + page * 8;
        let len = (limit - page * BLOCK_BYTES as u64).min(BLOCK_BYTES as u64);
        let mut block = device.read(sector, len as usize)?;
        for extent in group {
            let start = (u64::from(*extent) % extents_per_block * BITMAP_BYTES_PER_EXTENT) as usize;
            // Beyond the end of a last block that is only a part.
            let Some(bits) = block.get_mut(start..start + BITMAP_BYTES_PER_EXTENT as usize) else { continue };
            added_bits += bits.iter().map(|byte| u64::from(byte.count_zeros())).sum::<u64>();
            bits.fill(0xFF);
        }
        device.write(sector, &block)?;
    }
    eprintln!("Marked additional {} KB as out-of-sync based on the activity log.", added_bits * 4);
    Ok(())
}
