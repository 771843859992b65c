// SPDX-License-Identifier: GPL-2.0
//! Where superblock, activity log and bitmap lie, how much storage remains, and which device size is agreed on.
//!
//! [`Layout`] is only made by [`Layout::compute`] (from the size of the devices) and [`Layout::validate`] (from a
//! superblock that was read), so its numbers fit together: every area lies inside the meta-data area, and the
//! meta-data area inside its device.
// spec: metadata 2.3, 3, 7

use core::fmt;
use core::num::NonZeroU64;

use super::superblock::Superblock;
use super::{BLOCK_SECTORS, SECTORS_PER_BITMAP_SECTOR};

/// Size of one slot on a shared meta-data device: 128 MiB.
pub const FIXED_AREA_SECTORS: u64 = 262_144;
/// Smallest meta-data device an attach accepts: 1 MiB.
pub const MIN_META_DEVICE_SECTORS: u64 = 2048;
/// Largest device that fits into a fixed-size slot.
pub const MAX_FIXED_DEVICE_SECTORS: u64 = 8_587_575_296;
/// Largest device with flexible meta data on a 64-bit kernel.
pub const MAX_FLEXIBLE_DEVICE_SECTORS: u64 = 1 << 51;

/// Fewest activity log slots.
pub const MIN_AL_EXTENTS: u32 = 67;
/// Most activity log slots.
pub const MAX_AL_EXTENTS: u32 = 65534;
/// Slots whose contents one transaction block repeats.
const CONTEXT_PER_BLOCK: u32 = 919;

/// Which meta data: inside the backing device, or where on a separate one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaIndex {
    /// -1: at the end of the backing device.
    Internal,
    /// -2: the whole separate device.
    FlexibleExternal,
    /// -3: the same as [`MetaIndex::Internal`] since 0.8.
    FlexibleInternal,
    /// 0 and above: this 128 MiB slot of a separate device. At most `i32::MAX`.
    Fixed(u32),
}

impl MetaIndex {
    /// From the number on netlink; `None` below -3 (ERR_MD_IDX_INVALID, 116).
    pub fn from_i32(value: i32) -> Option<MetaIndex> {
        match value {
            -1 => Some(MetaIndex::Internal),
            -2 => Some(MetaIndex::FlexibleExternal),
            -3 => Some(MetaIndex::FlexibleInternal),
            _ => u32::try_from(value).ok().map(MetaIndex::Fixed),
        }
    }

    /// The number on netlink.
    pub fn as_i32(self) -> i32 {
        match self {
            MetaIndex::Internal => -1,
            MetaIndex::FlexibleExternal => -2,
            MetaIndex::FlexibleInternal => -3,
            MetaIndex::Fixed(slot) => i32::try_from(slot).unwrap_or(i32::MAX),
        }
    }

    /// True when data and meta data share a device.
    pub fn is_internal(self) -> bool {
        matches!(self, MetaIndex::Internal | MetaIndex::FlexibleInternal)
    }
}

/// How the activity log is spread over its area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Striping {
    /// Number of stripes.
    pub stripes: u32,
    /// Size of a stripe in blocks.
    pub stripe_size_4k: u32,
}

impl Striping {
    /// One stripe of eight blocks: 32 KiB.
    pub const DEFAULT: Striping = Striping { stripes: 1, stripe_size_4k: 8 };
    /// Fewest blocks of an activity log: 32 KiB.
    pub const MIN_BLOCKS: u64 = 8;
    /// Most blocks of an activity log: 16 GiB.
    pub const MAX_BLOCKS: u64 = 4_194_304;

    /// Blocks of the activity log.
    pub fn blocks(self) -> u64 {
        u64::from(self.stripes).saturating_mul(u64::from(self.stripe_size_4k))
    }

    /// Sectors of the activity log.
    pub fn sectors(self) -> u64 {
        self.blocks().saturating_mul(BLOCK_SECTORS)
    }

    /// Whether the kernel accepts it. spec: metadata 3.6
    pub fn is_valid(self) -> bool {
        (Striping::MIN_BLOCKS..=Striping::MAX_BLOCKS).contains(&self.blocks())
    }

    /// The block of the area, counted from its start, that holds transaction `tr_number`. spec: metadata 4.2
    pub fn ring_block(self, tr_number: u32) -> u64 {
        let (Some(blocks), Some(stripes)) = (NonZeroU64::new(self.blocks()), NonZeroU64::new(u64::from(self.stripes)))
        else {
            return 0;
        };
        let logical = u64::from(tr_number) % blocks;
        (logical % stripes) * u64::from(self.stripe_size_4k) + logical / stripes
    }
}

/// Why there is no usable layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayoutError {
    /// The meta-data device is too small.
    MetaDeviceTooSmall {
        /// Sectors it would have to have.
        needed_sectors: u64,
        /// Sectors it has.
        found_sectors: u64,
    },
    /// The meta-data area would not fit the fields of the superblock.
    MetaDeviceTooLarge,
    /// Impossible activity log striping (or another than 1 x 8 in a fixed-size slot).
    BadStriping(Striping),
    /// A fixed-size slot has one possible size, and these offsets; found something else.
    BadFixedArea,
    /// The superblock says the meta-data area is larger than the space it has on the device.
    AreaBeyondDevice,
    /// The activity log does not lie where, or is not as long as, it must be.
    BadActivityLogOffset {
        /// `al_offset` as found.
        al_offset: i32,
    },
    /// The bitmap does not lie where it must.
    BadBitmapOffset {
        /// `bm_offset` as found.
        bm_offset: i32,
    },
    /// The bitmap is too small for the last agreed size.
    BitmapTooSmall {
        /// Sectors that the last agreed size needs.
        needed_sectors: u64,
        /// Sectors of the bitmap area.
        found_sectors: u64,
    },
}

impl LayoutError {
    /// The code an attach answers with: ERR_MD_DISK_TOO_SMALL (112) or ERR_MD_INVALID (119).
    pub fn error_code(self) -> i32 {
        match self {
            LayoutError::MetaDeviceTooSmall { .. } => 112,
            _ => 119,
        }
    }
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            LayoutError::MetaDeviceTooSmall { needed_sectors, found_sectors } => {
                write!(f, "meta-data device has {found_sectors} sectors, needs {needed_sectors}")
            }
            LayoutError::MetaDeviceTooLarge => f.write_str("meta-data area exceeds 2^31 sectors"),
            LayoutError::BadStriping(Striping { stripes, stripe_size_4k }) => {
                write!(f, "impossible activity log striping: {stripes} stripes of {stripe_size_4k} blocks")
            }
            LayoutError::BadFixedArea => f.write_str("size or offsets do not fit a fixed-size meta-data slot"),
            LayoutError::AreaBeyondDevice => f.write_str("meta-data area reaches beyond its device"),
            LayoutError::BadActivityLogOffset { al_offset } => {
                write!(f, "activity log offset {al_offset} does not fit its size")
            }
            LayoutError::BadBitmapOffset { bm_offset } => write!(f, "bitmap offset {bm_offset} is not possible"),
            LayoutError::BitmapTooSmall { needed_sectors, found_sectors } => {
                write!(f, "bitmap has {found_sectors} sectors, the device needs {needed_sectors}")
            }
        }
    }
}

/// Where everything is. Relative offsets are relative to the superblock; the others are absolute sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Which meta data.
    pub index: MetaIndex,
    /// How the activity log is spread.
    pub striping: Striping,
    /// Sector of the superblock.
    pub superblock_sector: u64,
    /// First sector of the activity log, relative; negative for internal meta data.
    pub al_offset: i32,
    /// First sector of the bitmap, relative; negative for internal meta data.
    pub bm_offset: i32,
    /// Size of the whole meta-data area, in sectors.
    pub md_size_sectors: u32,
    /// Size of the activity log, in sectors.
    pub al_sectors: u64,
    /// First sector of the meta-data area.
    pub first_sector: u64,
    /// Last sector of the meta-data area.
    pub last_sector: u64,
    /// Size of the bitmap area, in sectors.
    pub bitmap_sectors: u64,
    /// Largest device that can be replicated with it, in sectors.
    pub usable_sectors: u64,
}

impl Layout {
    /// The layout for devices of these sizes; `meta_device_sectors` is not looked at for internal meta data.
    ///
    /// # Errors
    /// [`LayoutError`] when the meta data does not fit, or the striping is not possible.
    // spec: metadata 3.1, 3.2, 3.3
    pub fn compute(
        index: MetaIndex,
        backing_sectors: u64,
        meta_device_sectors: u64,
        striping: Striping,
    ) -> Result<Layout, LayoutError> {
        if !striping.is_valid() {
            return Err(LayoutError::BadStriping(striping));
        }
        match index {
            MetaIndex::Internal | MetaIndex::FlexibleInternal => Layout::internal(index, backing_sectors, striping),
            MetaIndex::FlexibleExternal => Layout::external(index, backing_sectors, 0, meta_device_sectors, striping),
            MetaIndex::Fixed(slot) => {
                if striping != Striping::DEFAULT {
                    return Err(LayoutError::BadStriping(striping));
                }
                let missing_sectors = missing_meta_sectors(index, meta_device_sectors);
                if missing_sectors > 0 {
                    let needed_sectors = meta_device_sectors.saturating_add(missing_sectors);
                    return Err(LayoutError::MetaDeviceTooSmall { needed_sectors, found_sectors: meta_device_sectors });
                }
                let superblock_sector = u64::from(slot) * FIXED_AREA_SECTORS;
                Layout::external(index, backing_sectors, superblock_sector, FIXED_AREA_SECTORS, striping)
            }
        }
    }

    /// The layout that a superblock records, checked the way an attach does.
    ///
    /// # Errors
    /// The first rule that is broken (all but the striping of code ERR_MD_INVALID).
    // spec: metadata 2.3, step 5
    pub fn validate(
        superblock: &Superblock,
        index: MetaIndex,
        backing_sectors: u64,
        meta_device_sectors: u64,
    ) -> Result<Layout, LayoutError> {
        let Ok(striping) = superblock.striping() else {
            let (stripes, stripe_size_4k) = (superblock.al_stripes, superblock.al_stripe_size_4k);
            return Err(LayoutError::BadStriping(Striping { stripes, stripe_size_4k }));
        };
        let device_sectors = if index.is_internal() { backing_sectors } else { meta_device_sectors };
        let superblock_sector = superblock_sector(index, backing_sectors)?;
        let (al_sectors, bitmap_sectors) = recorded_areas(superblock, index)?;
        check_fixed_area(superblock, index, striping)?;

        let first_sector = if index.is_internal() {
            superblock_sector
                .checked_add_signed(i64::from(superblock.bm_offset))
                .ok_or(LayoutError::AreaBeyondDevice)?
        } else {
            superblock_sector
        };
        let md_size_sectors = u64::from(superblock.md_size_sectors);
        match device_sectors.checked_sub(md_size_sectors) {
            Some(before_area) if before_area >= first_sector => {}
            _ => return Err(LayoutError::AreaBeyondDevice),
        }
        if al_sectors % BLOCK_SECTORS != 0 || al_sectors < 64 || al_sectors != striping.sectors() {
            return Err(LayoutError::BadActivityLogOffset { al_offset: superblock.al_offset });
        }
        if superblock.bm_offset % 8 != 0 {
            return Err(LayoutError::BadBitmapOffset { bm_offset: superblock.bm_offset });
        }
        let needed_sectors = superblock.la_size_sectors.div_ceil(8) / 4096;
        if bitmap_sectors < needed_sectors {
            return Err(LayoutError::BitmapTooSmall { needed_sectors, found_sectors: bitmap_sectors });
        }
        Ok(Layout {
            index,
            striping,
            superblock_sector,
            al_offset: superblock.al_offset,
            bm_offset: superblock.bm_offset,
            md_size_sectors: superblock.md_size_sectors,
            al_sectors,
            first_sector,
            last_sector: last_sector(index, superblock_sector, md_size_sectors),
            bitmap_sectors,
            usable_sectors: usable_sectors(index, backing_sectors, first_sector, bitmap_sectors),
        })
    }

    /// Whether a superblock found at the expected place records exactly this layout; the tools' rule for "valid".
    // spec: metadata 2.3, last paragraph
    pub fn matches(&self, superblock: &Superblock) -> bool {
        let offsets = superblock.al_offset == self.al_offset && superblock.bm_offset == self.bm_offset;
        offsets && (!self.index.is_internal() || superblock.md_size_sectors == self.md_size_sectors)
    }

    /// Absolute first sector of the bitmap.
    pub fn bitmap_sector(&self) -> u64 {
        self.superblock_sector.saturating_add_signed(i64::from(self.bm_offset))
    }

    /// Absolute first sector of the activity log.
    pub fn al_sector(&self) -> u64 {
        self.superblock_sector.saturating_add_signed(i64::from(self.al_offset))
    }

    /// Absolute sector of the block that holds transaction `tr_number`. spec: metadata 4.2
    pub fn transaction_sector(&self, tr_number: u32) -> u64 {
        self.al_sector() + self.striping.ring_block(tr_number) * BLOCK_SECTORS
    }

    /// Absolute sector and size in bytes of a 4 KiB page of the bitmap; the last page of the area may be shorter.
    /// `None` beyond the area.
    pub fn bitmap_page(&self, page: u64) -> Option<(u64, u32)> {
        let first = page.checked_mul(BLOCK_SECTORS)?;
        let sectors = self.bitmap_sectors.checked_sub(first)?.min(BLOCK_SECTORS) as u32;
        (sectors != 0).then(|| (self.bitmap_sector() + first, sectors * 512))
    }

    /// Bits the bitmap area has room for. A device that needs more cannot be used. spec: metadata 5.5
    pub fn bitmap_bits(&self) -> u64 {
        self.bitmap_sectors << 12
    }

    /// Most activity log slots that the area can hold.
    pub fn max_al_extents(&self) -> u32 {
        max_al_extents(self.striping.blocks())
    }

    fn internal(index: MetaIndex, backing_sectors: u64, striping: Striping) -> Result<Layout, LayoutError> {
        let al_sectors = striping.sectors();
        let bitmap_sectors = round_up_to_block(backing_sectors.div_ceil(SECTORS_PER_BITMAP_SECTOR));
        let needed_sectors = bitmap_sectors + al_sectors + BLOCK_SECTORS;
        let md_size = i32::try_from(needed_sectors).map_err(|_| LayoutError::MetaDeviceTooLarge)?;
        let too_small = LayoutError::MetaDeviceTooSmall { needed_sectors, found_sectors: backing_sectors };
        let superblock_sector = superblock_sector(index, backing_sectors).map_err(|_| too_small)?;
        // Nothing left for data is as useless as too small.
        let first_sector =
            superblock_sector.checked_sub(al_sectors + bitmap_sectors).filter(|first| *first > 0).ok_or(too_small)?;
        Ok(Layout {
            index,
            striping,
            superblock_sector,
            al_offset: -(al_sectors as i32),
            bm_offset: 8 - md_size,
            md_size_sectors: md_size.unsigned_abs(),
            al_sectors,
            first_sector,
            last_sector: superblock_sector + 7,
            bitmap_sectors,
            usable_sectors: usable_sectors(index, backing_sectors, first_sector, bitmap_sectors),
        })
    }

    fn external(
        index: MetaIndex,
        backing_sectors: u64,
        superblock_sector: u64,
        area_sectors: u64,
        striping: Striping,
    ) -> Result<Layout, LayoutError> {
        let al_sectors = striping.sectors();
        let before_bitmap = BLOCK_SECTORS + al_sectors;
        let bm_offset = i32::try_from(before_bitmap).map_err(|_| LayoutError::MetaDeviceTooLarge)?;
        let md_size_sectors = u32::try_from(area_sectors).map_err(|_| LayoutError::MetaDeviceTooLarge)?;
        let bitmap_sectors = area_sectors.checked_sub(before_bitmap).filter(|sectors| *sectors > 0).ok_or(
            LayoutError::MetaDeviceTooSmall { needed_sectors: before_bitmap + 1, found_sectors: area_sectors },
        )?;
        Ok(Layout {
            index,
            striping,
            superblock_sector,
            al_offset: 8,
            bm_offset,
            md_size_sectors,
            al_sectors,
            first_sector: superblock_sector,
            last_sector: last_sector(index, superblock_sector, area_sectors),
            bitmap_sectors,
            usable_sectors: usable_sectors(index, backing_sectors, superblock_sector, bitmap_sectors),
        })
    }
}

/// Sectors that a meta-data device lacks of what an attach demands: 1 MiB, or up to the end of the slot.
// spec: metadata 3.2, 3.3
pub fn missing_meta_sectors(index: MetaIndex, meta_device_sectors: u64) -> u64 {
    let needed_sectors = match index {
        MetaIndex::Fixed(slot) => FIXED_AREA_SECTORS * (u64::from(slot) + 1),
        _ => MIN_META_DEVICE_SECTORS,
    };
    needed_sectors.saturating_sub(meta_device_sectors)
}

/// Sector of the superblock: the only thing that must be known to read it.
///
/// # Errors
/// [`LayoutError::MetaDeviceTooSmall`] when the device has not even room for that.
// spec: metadata 3.1 to 3.3
pub fn superblock_sector(index: MetaIndex, backing_sectors: u64) -> Result<u64, LayoutError> {
    match index {
        MetaIndex::Internal | MetaIndex::FlexibleInternal => (backing_sectors & !7)
            .checked_sub(BLOCK_SECTORS)
            .ok_or(LayoutError::MetaDeviceTooSmall { needed_sectors: 8, found_sectors: backing_sectors }),
        MetaIndex::FlexibleExternal => Ok(0),
        MetaIndex::Fixed(slot) => Ok(u64::from(slot) * FIXED_AREA_SECTORS),
    }
}

/// Most activity log slots that an area of `al_blocks` blocks can hold. spec: metadata 3.6
pub fn max_al_extents(al_blocks: u64) -> u32 {
    if al_blocks > 72 {
        return MAX_AL_EXTENTS;
    }
    (al_blocks as u32).saturating_sub(1) * CONTEXT_PER_BLOCK
}

/// The number of activity log slots in effect when `requested` are configured. spec: metadata 3.6
pub fn clamp_al_extents(requested: u32, al_blocks: u64) -> u32 {
    requested.min(max_al_extents(al_blocks)).max(MIN_AL_EXTENTS)
}

/// What goes into the agreement on a device size; sizes in sectors, 0 = unknown or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SizeInputs {
    /// Usable size of the own disk.
    pub own_sectors: u64,
    /// Size the peer announced for its disk.
    pub peer_sectors: u64,
    /// Last agreed size, from the meta data.
    pub last_agreed_sectors: u64,
    /// Configured `size` of the disk section.
    pub user_sectors: u64,
    /// `resize --assume-peer-has-space`.
    pub assume_peer_has_space: bool,
    /// Connection state is Connected or above.
    pub is_connected: bool,
}

/// The agreed size, and what has to be said about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AgreedSize {
    /// The size in sectors; 0 when nobody has a disk.
    pub size_sectors: u64,
    /// Warn: the peer was assumed to have the space.
    pub peer_assumed: bool,
}

/// Decides on the size of the replicated device. spec: metadata 7.1
pub fn agreed_size(inputs: &SizeInputs) -> AgreedSize {
    let own = inputs.own_sectors;
    let peer_assumed = inputs.assume_peer_has_space && !inputs.is_connected;
    let peer = if peer_assumed { own } else { inputs.peer_sectors };
    let lowered_to = |size: u64, limit: u64| if limit == 0 { size } else { size.min(limit) };

    let possible = if own != 0 && peer != 0 {
        own.min(peer)
    } else if inputs.last_agreed_sectors != 0 {
        lowered_to(lowered_to(inputs.last_agreed_sectors, own), peer)
    } else if peer != 0 {
        peer
    } else {
        own
    };
    // Larger than possible: ignored, which is worth an error in the log.
    let use_user_size = inputs.user_sectors != 0 && inputs.user_sectors <= possible;
    AgreedSize { size_sectors: if use_user_size { inputs.user_sectors } else { possible }, peer_assumed }
}

/// How the agreed size changed. The numbers are those of the reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizeChange {
    /// The same size.
    Unchanged = 0,
    /// Smaller.
    Shrunk = 1,
    /// Larger than before.
    Grew = 2,
    /// The first size at all.
    GrewFromZero = 3,
}

/// Why a new size is not applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizeChangeError {
    /// A new activity log layout would shrink the device, and nobody asked for that (DS_ERROR_SHRINK).
    ImplicitShrink = -3,
    /// The wanted size does not leave room for the meta data (DS_ERROR_SPACE_MD).
    NoSpaceForMetaData = -2,
}

/// Judges the step from the last agreed size to a new one. spec: metadata 7.2, steps 3 and 6
///
/// # Errors
/// [`SizeChangeError`]: the old layout stays.
pub fn size_change(
    last_agreed_sectors: u64,
    new_sectors: u64,
    user_sectors: u64,
    new_al_layout: bool,
) -> Result<SizeChange, SizeChangeError> {
    if new_sectors < last_agreed_sectors {
        if new_al_layout && user_sectors == 0 {
            return Err(SizeChangeError::ImplicitShrink);
        }
        if user_sectors > new_sectors {
            return Err(SizeChangeError::NoSpaceForMetaData);
        }
    }
    Ok(if new_sectors == last_agreed_sectors {
        SizeChange::Unchanged
    } else if new_sectors < last_agreed_sectors {
        SizeChange::Shrunk
    } else if last_agreed_sectors == 0 {
        SizeChange::GrewFromZero
    } else {
        SizeChange::Grew
    })
}

/// What an attach knows about sizes, in sectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttachSizes {
    /// Usable size of the disk being attached.
    pub usable_sectors: u64,
    /// Configured `size` of the disk section; 0 = none.
    pub user_sectors: u64,
    /// Result of [`missing_meta_sectors`].
    pub missing_meta_sectors: u64,
    /// Current size of the virtual device (a diskless Primary has one); 0 = none.
    pub virtual_sectors: u64,
}

/// What an attach knows about the size of the device, in sectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttachedSize {
    /// Result of [`agreed_size`].
    pub agreed_sectors: u64,
    /// Last agreed size, from the meta data.
    pub last_agreed_sectors: u64,
    /// Configured `size` of the disk section; 0 = none.
    pub user_sectors: u64,
    /// The CONSISTENT flag of the meta data.
    pub is_consistent: bool,
}

/// Why a disk cannot be attached with these sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachSizeError {
    /// Smaller than the configured size.
    BelowConfigured,
    /// The meta-data device is smaller than it has to be.
    MetaDeviceTooSmall,
    /// Smaller than the device that is already in use.
    BelowVirtualDevice,
    /// Consistent data would be cut off.
    ImplicitShrink,
}

impl AttachSizeError {
    /// ERR_DISK_TOO_SMALL (111), ERR_MD_DISK_TOO_SMALL (112) or ERR_IMPLICIT_SHRINK (170).
    pub fn error_code(self) -> i32 {
        match self {
            AttachSizeError::BelowConfigured | AttachSizeError::BelowVirtualDevice => 111,
            AttachSizeError::MetaDeviceTooSmall => 112,
            AttachSizeError::ImplicitShrink => 170,
        }
    }
}

/// Checks sizes at attach, when the superblock has been found good.
///
/// # Errors
/// [`AttachSizeError`]: the disk must not be attached.
// spec: metadata 7.3; state-machine 13.1 (5)
pub fn check_attach_sizes(sizes: &AttachSizes) -> Result<(), AttachSizeError> {
    if sizes.user_sectors > sizes.usable_sectors {
        return Err(AttachSizeError::BelowConfigured);
    }
    if sizes.missing_meta_sectors > 0 {
        return Err(AttachSizeError::MetaDeviceTooSmall);
    }
    if sizes.usable_sectors < sizes.virtual_sectors {
        return Err(AttachSizeError::BelowVirtualDevice);
    }
    Ok(())
}

/// Whether the device may get that size at attach. `Ok(true)`: it shrinks because the administrator said so; worth a warning.
///
/// # Errors
/// [`AttachSizeError::ImplicitShrink`]: the disk must not be attached.
// spec: metadata 7.3; state-machine 13.1 (8)
pub fn check_attach_shrink(size: &AttachedSize) -> Result<bool, AttachSizeError> {
    let shrinks = size.is_consistent && size.agreed_sectors < size.last_agreed_sectors;
    if shrinks && size.agreed_sectors != size.user_sectors {
        return Err(AttachSizeError::ImplicitShrink);
    }
    Ok(shrinks)
}

fn round_up_to_block(sectors: u64) -> u64 {
    sectors.div_ceil(BLOCK_SECTORS) * BLOCK_SECTORS
}

/// Sizes in sectors of activity log and bitmap as the superblock's offsets imply them.
fn recorded_areas(superblock: &Superblock, index: MetaIndex) -> Result<(u64, u64), LayoutError> {
    let (al_offset, bm_offset) = (superblock.al_offset, superblock.bm_offset);
    let bad_al = LayoutError::BadActivityLogOffset { al_offset };
    let bad_bitmap = LayoutError::BadBitmapOffset { bm_offset };
    if index.is_internal() != (al_offset < 0) {
        return Err(bad_al);
    }
    if al_offset < 0 {
        let bitmap = i64::from(al_offset) - i64::from(bm_offset);
        return Ok((u64::from(al_offset.unsigned_abs()), u64::try_from(bitmap).map_err(|_| bad_bitmap)?));
    }
    if al_offset != 8 {
        return Err(bad_al);
    }
    let al_sectors = u64::try_from(i64::from(bm_offset) - 8).map_err(|_| bad_bitmap)?;
    let bitmap = i64::from(superblock.md_size_sectors) - i64::from(bm_offset);
    Ok((al_sectors, u64::try_from(bitmap).map_err(|_| bad_bitmap)?))
}

fn check_fixed_area(superblock: &Superblock, index: MetaIndex, striping: Striping) -> Result<(), LayoutError> {
    let MetaIndex::Fixed(_) = index else { return Ok(()) };
    let fits = u64::from(superblock.md_size_sectors) == FIXED_AREA_SECTORS
        && superblock.al_offset == 8
        && superblock.bm_offset == 72
        && striping == Striping::DEFAULT;
    if fits {
        Ok(())
    } else {
        Err(LayoutError::BadFixedArea)
    }
}

fn last_sector(index: MetaIndex, superblock_sector: u64, md_size_sectors: u64) -> u64 {
    let from_superblock = if index.is_internal() { 7 } else { md_size_sectors.saturating_sub(1) };
    superblock_sector.saturating_add(from_superblock)
}

/// Largest device that can be exported. spec: metadata 3.1 to 3.3, 3.5
fn usable_sectors(index: MetaIndex, backing_sectors: u64, first_sector: u64, bitmap_sectors: u64) -> u64 {
    let by_bitmap = bitmap_sectors.saturating_mul(SECTORS_PER_BITMAP_SECTOR);
    match index {
        MetaIndex::Internal | MetaIndex::FlexibleInternal => first_sector.min(MAX_FLEXIBLE_DEVICE_SECTORS),
        MetaIndex::FlexibleExternal => backing_sectors.min(by_bitmap).min(MAX_FLEXIBLE_DEVICE_SECTORS),
        MetaIndex::Fixed(_) => backing_sectors.min(by_bitmap).min(MAX_FIXED_DEVICE_SECTORS),
    }
}

#[cfg(test)]
mod tests;
