// SPDX-License-Identifier: GPL-2.0
//! Meta data on its device: where it is, reading it, writing it.
//!
//! # Invariants
//! The superblock is always written last, and only after everything before it has reached the device: a power cut in
//! the middle leaves either the old superblock or none, never a new one that describes what is not there. Where what an
//! old superblock describes is overwritten, that superblock is wiped first ([`wipe_superblock`]).

use super::device::{AlignedBuffer, Device, BLOCK_BYTES};
use super::last_known::LastKnown;
use crate::failure::Failure;
use engine::metadata::layout::{superblock_sector, Layout, LayoutError, MetaIndex, Striping};
use engine::metadata::superblock::{Magic, Superblock, SuperblockError};
use engine::metadata::{Block, BM_BLOCK_BYTES};
use std::path::Path;

/// Meta data that was found, with the place it was found at.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Where things are, for the size of device it was made for.
    pub layout: Layout,
    /// The superblock as read.
    pub superblock: Superblock,
}

/// What is in the place of the superblock.
#[derive(Clone, Copy, Debug)]
pub enum Lookup {
    /// Valid meta data of the version this tool writes.
    Valid(Found),
    /// Meta data of another version.
    OtherVersion(SuperblockError),
    /// Nothing, or meta data for a device of another size.
    Nothing,
}

/// Looks where the superblock belongs on a device of this size.
///
/// # Errors
/// Exit code 10 when the device cannot be read.
// spec: metadata 2.3 (last paragraph)
pub fn look(device: &Device, index: MetaIndex, device_sectors: u64) -> Result<Lookup, Failure> {
    let Ok(sector) = superblock_sector(index, device_sectors) else {
        return Ok(Lookup::Nothing);
    };
    if sector.saturating_add(8) > device.size_sectors() {
        return Ok(Lookup::Nothing);
    }
    let superblock = match Superblock::decode_raw(&read_block(device, sector)?) {
        Ok(superblock) => superblock,
        Err(SuperblockError::NoMagic { .. }) => return Ok(Lookup::Nothing),
        Err(other) => return Ok(Lookup::OtherVersion(other)),
    };
    let layout = superblock.striping().ok().and_then(|striping| {
        compute(index, device_sectors, striping).ok().filter(|layout| layout.matches(&superblock))
    });
    Ok(match layout {
        Some(layout) if superblock.bm_bytes_per_bit == BM_BLOCK_BYTES => Lookup::Valid(Found { layout, superblock }),
        _ => Lookup::Nothing,
    })
}

/// Looks where internal meta data was last seen, if the device has changed its size since.
///
/// # Errors
/// As [`look`].
// spec: metadata 9.8
pub fn look_at_last_known(
    device: &Device,
    index: MetaIndex,
    note: Option<&LastKnown>,
    force: bool,
) -> Result<Option<Found>, Failure> {
    let Some(note) = note.filter(|note| index.is_internal() && note.size_bytes != device.size_bytes()) else {
        return Ok(None);
    };
    let Lookup::Valid(found) = look(device, index, note.size_bytes / 512)? else {
        return Ok(None);
    };
    let same_device = note.device_uuid.is_none_or(|uuid| uuid == found.superblock.device_uuid);
    if !same_device && !force {
        eprintln!("The note about {} is about another device, it is ignored.", device.path().display());
        return Ok(None);
    }
    Ok(Some(found))
}

/// Reads one meta-data block.
///
/// # Errors
/// Exit code 10.
pub fn read_block(device: &Device, sector: u64) -> Result<Block, Failure> {
    let mut block = [0; BLOCK_BYTES];
    block.copy_from_slice(&device.read(sector, BLOCK_BYTES)?);
    Ok(block)
}

/// Writes one meta-data block.
///
/// # Errors
/// Exit code 10.
pub fn write_block(device: &Device, sector: u64, block: &Block) -> Result<(), Failure> {
    let mut buffer = AlignedBuffer::zeroed(BLOCK_BYTES);
    buffer.copy_from_slice(block);
    device.write(sector, &buffer)
}

/// Writes the superblock as clean, after everything written before is safe.
///
/// # Errors
/// Exit code 10.
pub fn write_superblock(device: &Device, found: &Found, magic: Magic) -> Result<(), Failure> {
    let mut block = [0; BLOCK_BYTES];
    found.superblock.encode(magic, &mut block);
    device.sync()?;
    write_block(device, found.layout.superblock_sector, &block)?;
    device.sync()
}

/// Wipes a superblock; when this returns it is gone for good.
///
/// # Errors
/// Exit code 10.
pub fn wipe_superblock(device: &Device, layout: &Layout) -> Result<(), Failure> {
    write_block(device, layout.superblock_sector, &[0; BLOCK_BYTES])?;
    device.sync()
}

/// Bytes of bitmap that describe `size_sectors`, as far as the tool reads and writes it.
// spec: metadata 9.6 (bm-bytes)
pub fn bitmap_bytes(size_sectors: u64) -> u64 {
    let bits = size_sectors.div_ceil(8);
    (bits.div_ceil(64) * 8).div_ceil(BLOCK_BYTES as u64) * BLOCK_BYTES as u64
}

/// The layout for a device.
///
/// # Errors
/// Exit code 10 with the reason.
pub fn plan(device: &Device, index: MetaIndex, striping: Striping) -> Result<Layout, Failure> {
    compute(index, device.size_sectors(), striping)
        .map_err(|error| Failure::new(10, format!("{}: {error}", device.path().display())))
}

/// The layout on a meta-data device of this size. Of external meta data the tool does not know the device with the data:
/// as much of that counts as usable as the bitmap has room for.
fn compute(index: MetaIndex, meta_device_sectors: u64, striping: Striping) -> Result<Layout, LayoutError> {
    let backing_sectors = if index.is_internal() { meta_device_sectors } else { u64::MAX };
    Layout::compute(index, backing_sectors, meta_device_sectors, striping)
}

/// Keeps or removes the note where the meta data is.
pub fn update_note(device: &Device, index: MetaIndex, superblock: &Superblock, note_dir: &Path, minor: i64) {
    if device.is_dry_run() {
        return;
    }
    let result = if index.is_internal() {
        let uuid = superblock.device_uuid;
        LastKnown {
            size_bytes: device.size_bytes(),
            path: device.path().display().to_string(),
            device_uuid: (uuid != 0).then_some(uuid),
        }
        .write(note_dir, minor)
    } else {
        LastKnown::remove(note_dir, minor)
    };
    if let Err(error) = result {
        // Only a grown device would need the note: worth a word, no reason to fail.
        eprintln!("The note about minor {minor} in {} is not up to date: {error}", note_dir.display());
    }
}
