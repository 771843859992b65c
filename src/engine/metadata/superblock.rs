// SPDX-License-Identifier: GPL-2.0
//! The v08 superblock: one 4096-byte block, no checksum, the magic at offset 60.
//!
//! The module writes it with [`Magic::Unclean`] once the disk is in use; [`Magic::Clean`] comes from the meta-data tool, which has
//! applied the activity log, and stays as long as an attach has not come to its end. So every attach is preceded by the tool's
//! `apply-al`.
// spec: metadata 2

use core::fmt;

use super::layout::{Layout, Striping};
use super::{be_u32, be_u64, put_bytes, Block, BM_BLOCK_BYTES};

/// Magic of obsolete 0.6 meta data.
pub const MAGIC_06: u32 = 0x8374_0269;
/// Magic of obsolete 0.7 meta data.
pub const MAGIC_07: u32 = 0x8374_026A;
/// Magic of v08 meta data; clean only together with [`MetaFlags::AL_CLEAN`].
pub const MAGIC_08: u32 = 0x8374_026B;
/// Magic of v08 meta data written by a running module.
pub const MAGIC_84_UNCLEAN: u32 = 0x8374_026C;
/// Magic of DRBD 9 meta data.
pub const MAGIC_09: u32 = 0x8374_026D;

/// Index of the current data generation in [`Superblock::uuids`].
pub const UI_CURRENT: usize = 0;
/// Index of the generation the bitmap is based on; 0 = none.
pub const UI_BITMAP: usize = 1;
/// Index of the younger history entry.
pub const UI_HISTORY_START: usize = 2;
/// Index of the older history entry.
pub const UI_HISTORY_END: usize = 3;

/// Current UUID of meta data that was just created.
pub const UUID_JUST_CREATED: u64 = 4;
/// Number of activity log slots that the tool writes; nothing reads it.
pub const AL_NR_EXTENTS_CREATED: u32 = 257;

/// Offset of the magic, the same in all versions of the format.
const MAGIC_OFFSET: usize = 60;

/// The flag word of the superblock. spec: metadata 2.1
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MetaFlags(pub u32);

impl MetaFlags {
    /// The data is consistent.
    pub const CONSISTENT: MetaFlags = MetaFlags(0x001);
    /// The node was Primary: the activity log has to be applied.
    pub const PRIMARY_IND: MetaFlags = MetaFlags(0x002);
    /// The node was connected.
    pub const CONNECTED_IND: MetaFlags = MetaFlags(0x004);
    /// The whole bitmap counts as set.
    pub const FULL_SYNC: MetaFlags = MetaFlags(0x008);
    /// The data was up to date.
    pub const WAS_UP_TO_DATE: MetaFlags = MetaFlags(0x010);
    /// The peer was outdated or worse.
    pub const PEER_OUT_DATED: MetaFlags = MetaFlags(0x020);
    /// The node crashed while it was Primary.
    pub const CRASHED_PRIMARY: MetaFlags = MetaFlags(0x040);
    /// The activity log has been applied; set by the tool only.
    pub const AL_CLEAN: MetaFlags = MetaFlags(0x080);
    /// The activity log was not kept (`al-updates no`).
    pub const AL_DISABLED: MetaFlags = MetaFlags(0x100);

    /// Sets the bits of `other`.
    pub fn set(&mut self, other: MetaFlags) {
        self.0 |= other.0;
    }

    /// Clears the bits of `other`.
    pub fn clear(&mut self, other: MetaFlags) {
        self.0 &= !other.0;
    }

    /// Sets or clears the bits of `other`.
    pub fn assign(&mut self, other: MetaFlags, on: bool) {
        if on {
            self.set(other);
        } else {
            self.clear(other);
        }
    }

    /// True when all bits of `other` are set.
    pub fn contains(self, other: MetaFlags) -> bool {
        self.0 & other.0 == other.0
    }
}

impl core::ops::BitOr for MetaFlags {
    type Output = MetaFlags;
    fn bitor(self, other: MetaFlags) -> MetaFlags {
        MetaFlags(self.0 | other.0)
    }
}

/// The two magics of the v08 format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Magic {
    /// [`MAGIC_08`]: as the tool leaves it.
    Clean,
    /// [`MAGIC_84_UNCLEAN`]: written by the module for a disk in use; the activity log must be applied before the next attach.
    Unclean,
}

impl Magic {
    /// The number on disk.
    pub fn value(self) -> u32 {
        match self {
            Magic::Clean => MAGIC_08,
            Magic::Unclean => MAGIC_84_UNCLEAN,
        }
    }
}

/// Why a block is not a superblock that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuperblockError {
    /// Not meta data of any known version.
    NoMagic {
        /// What was found in the place of the magic.
        found: u32,
    },
    /// Obsolete meta data of version 0.6.
    Old06,
    /// Obsolete meta data of version 0.7.
    Old07,
    /// Meta data of DRBD 9.
    Drbd9,
    /// Written by a running module: the activity log was not applied.
    Unclean,
    /// Version 8.3 or older: the activity log has the old format.
    NeedsConversion,
    /// A granularity of the bitmap other than 4096 bytes.
    BadBytesPerBit {
        /// What was found.
        found: u32,
    },
    /// Impossible activity log striping.
    BadStriping {
        /// `al_stripes` as found.
        stripes: u32,
        /// `al_stripe_size_4k` as found.
        stripe_size_4k: u32,
    },
}

impl SuperblockError {
    /// The code an attach answers with: ERR_MD_UNCLEAN (165) or ERR_MD_INVALID (119).
    pub fn error_code(self) -> i32 {
        match self {
            SuperblockError::Unclean | SuperblockError::NeedsConversion => 165,
            _ => 119,
        }
    }
}

impl fmt::Display for SuperblockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            SuperblockError::NoMagic { found } => write!(f, "no meta-data magic (found {found:#010x})"),
            SuperblockError::Old06 => f.write_str("obsolete meta-data format 0.6"),
            SuperblockError::Old07 => f.write_str("obsolete meta-data format 0.7"),
            SuperblockError::Drbd9 => f.write_str("meta data of DRBD 9"),
            SuperblockError::Unclean => f.write_str("the activity log has not been applied"),
            SuperblockError::NeedsConversion => f.write_str("the activity log has the format of 8.3 or older"),
            SuperblockError::BadBytesPerBit { found } => {
                write!(f, "{found} bytes per bit of the bitmap, expected {BM_BLOCK_BYTES}")
            }
            SuperblockError::BadStriping { stripes, stripe_size_4k } => {
                write!(f, "impossible activity log striping: {stripes} stripes of {stripe_size_4k} blocks")
            }
        }
    }
}

/// The fields of a v08 superblock, as on disk. spec: metadata 2
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Last agreed size of the replicated device, in sectors.
    pub la_size_sectors: u64,
    /// Data generation UUIDs, indexed by [`UI_CURRENT`] to [`UI_HISTORY_END`].
    pub uuids: [u64; 4],
    /// Identity of the backing device, given by the tools; the module never changes it.
    pub device_uuid: u64,
    /// Flags.
    pub flags: MetaFlags,
    /// The magic found; [`Superblock::encode`] takes its own.
    pub magic: Magic,
    /// Size of the whole meta-data area, in sectors.
    pub md_size_sectors: u32,
    /// First sector of the activity log, relative to the superblock.
    pub al_offset: i32,
    /// Configured activity log slots; informational.
    pub al_nr_extents: u32,
    /// First sector of the bitmap, relative to the superblock.
    pub bm_offset: i32,
    /// Bytes of storage per bit of the bitmap.
    pub bm_bytes_per_bit: u32,
    /// Largest bio the peer accepted last, in bytes.
    pub la_peer_max_bio_bytes: u32,
    /// Activity log stripes; 0 together with the stripe size in old meta data.
    pub al_stripes: u32,
    /// Activity log stripe size, in blocks.
    pub al_stripe_size_4k: u32,
}

impl Superblock {
    /// The state right after `create-md`. spec: metadata 9.3
    pub fn new_created(layout: &Layout, device_uuid: u64, striping: Striping) -> Superblock {
        Superblock {
            la_size_sectors: 0,
            uuids: [UUID_JUST_CREATED, 0, 0, 0],
            device_uuid,
            flags: MetaFlags::AL_CLEAN,
            magic: Magic::Clean,
            md_size_sectors: layout.md_size_sectors,
            al_offset: layout.al_offset,
            al_nr_extents: AL_NR_EXTENTS_CREATED,
            bm_offset: layout.bm_offset,
            bm_bytes_per_bit: BM_BLOCK_BYTES,
            la_peer_max_bio_bytes: 0,
            al_stripes: striping.stripes,
            al_stripe_size_4k: striping.stripe_size_4k,
        }
    }

    /// Reads a superblock that is fit for an attach: [`Superblock::decode_raw`], then
    /// [`Superblock::check_for_attach`].
    ///
    /// # Errors
    /// The first rule that is broken, in the order of the specification.
    pub fn decode(block: &Block) -> Result<Superblock, SuperblockError> {
        let superblock = Superblock::decode_raw(block)?;
        superblock.check_for_attach()?;
        Ok(superblock)
    }

    /// Reads the fields of a block with one of the two v08 magics and checks nothing else; for the tools.
    ///
    /// # Errors
    /// Which other magic was found.
    pub fn decode_raw(block: &Block) -> Result<Superblock, SuperblockError> {
        let magic = match be_u32(block, MAGIC_OFFSET) {
            MAGIC_08 => Magic::Clean,
            MAGIC_84_UNCLEAN => Magic::Unclean,
            MAGIC_06 => return Err(SuperblockError::Old06),
            MAGIC_07 => return Err(SuperblockError::Old07),
            MAGIC_09 => return Err(SuperblockError::Drbd9),
            found => return Err(SuperblockError::NoMagic { found }),
        };
        Ok(Superblock {
            la_size_sectors: be_u64(block, 0),
            uuids: [be_u64(block, 8), be_u64(block, 16), be_u64(block, 24), be_u64(block, 32)],
            device_uuid: be_u64(block, 40),
            flags: MetaFlags(be_u32(block, 56)),
            magic,
            md_size_sectors: be_u32(block, 64),
            al_offset: be_u32(block, 68) as i32,
            al_nr_extents: be_u32(block, 72),
            bm_offset: be_u32(block, 76) as i32,
            bm_bytes_per_bit: be_u32(block, 80),
            la_peer_max_bio_bytes: be_u32(block, 84),
            al_stripes: be_u32(block, 88),
            al_stripe_size_4k: be_u32(block, 92),
        })
    }

    /// The rules that need nothing but the superblock itself; the offsets are checked by [`Layout::validate`].
    ///
    /// # Errors
    /// The first rule that is broken.
    // spec: metadata 2.3, steps 2 to 4
    pub fn check_for_attach(&self) -> Result<(), SuperblockError> {
        if self.magic == Magic::Unclean {
            return Err(SuperblockError::Unclean);
        }
        if !self.flags.contains(MetaFlags::AL_CLEAN) {
            return Err(SuperblockError::NeedsConversion);
        }
        if self.bm_bytes_per_bit != BM_BLOCK_BYTES {
            return Err(SuperblockError::BadBytesPerBit { found: self.bm_bytes_per_bit });
        }
        self.striping().map(|_| ())
    }

    /// The activity log striping; both fields zero (old meta data) mean 1 x 8.
    ///
    /// # Errors
    /// [`SuperblockError::BadStriping`] when the kernel would refuse it.
    pub fn striping(&self) -> Result<Striping, SuperblockError> {
        if self.al_stripes == 0 && self.al_stripe_size_4k == 0 {
            return Ok(Striping::DEFAULT);
        }
        let striping = Striping { stripes: self.al_stripes, stripe_size_4k: self.al_stripe_size_4k };
        if striping.is_valid() {
            Ok(striping)
        } else {
            Err(SuperblockError::BadStriping { stripes: self.al_stripes, stripe_size_4k: self.al_stripe_size_4k })
        }
    }

    /// Takes over where things are: offsets, size of the area, striping.
    pub fn set_layout(&mut self, layout: &Layout) {
        self.md_size_sectors = layout.md_size_sectors;
        self.al_offset = layout.al_offset;
        self.bm_offset = layout.bm_offset;
        self.al_stripes = layout.striping.stripes;
        self.al_stripe_size_4k = layout.striping.stripe_size_4k;
    }

    /// Writes the whole block, reserved bytes zero, with the given magic.
    pub fn encode(&self, magic: Magic, block: &mut Block) {
        block.fill(0);
        put_bytes(block, 0, self.la_size_sectors.to_be_bytes());
        for (index, uuid) in self.uuids.iter().enumerate() {
            put_bytes(block, 8 + 8 * index, uuid.to_be_bytes());
        }
        put_bytes(block, 40, self.device_uuid.to_be_bytes());
        put_bytes(block, 56, self.flags.0.to_be_bytes());
        put_bytes(block, MAGIC_OFFSET, magic.value().to_be_bytes());
        put_bytes(block, 64, self.md_size_sectors.to_be_bytes());
        put_bytes(block, 68, self.al_offset.to_be_bytes());
        put_bytes(block, 72, self.al_nr_extents.to_be_bytes());
        put_bytes(block, 76, self.bm_offset.to_be_bytes());
        put_bytes(block, 80, self.bm_bytes_per_bit.to_be_bytes());
        put_bytes(block, 84, self.la_peer_max_bio_bytes.to_be_bytes());
        put_bytes(block, 88, self.al_stripes.to_be_bytes());
        put_bytes(block, 92, self.al_stripe_size_4k.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::MetaIndex;
    use super::*;

    fn created() -> Superblock {
        let layout = Layout::compute(MetaIndex::Internal, 2_097_152, 2_097_152, Striping::DEFAULT).unwrap();
        Superblock::new_created(&layout, 0x1122_3344_5566_7788, Striping::DEFAULT)
    }

    fn block_of(superblock: &Superblock, magic: Magic) -> Block {
        let mut block = [0xAA; 4096];
        superblock.encode(magic, &mut block);
        block
    }

    #[test]
    fn fields_lie_where_the_format_says() {
        let superblock = Superblock {
            la_size_sectors: 0x0102_0304_0506_0708,
            uuids: [0x11, 0x22, 0x33, 0x44],
            device_uuid: 0x55,
            flags: MetaFlags::CONSISTENT | MetaFlags::AL_DISABLED,
            magic: Magic::Unclean,
            md_size_sectors: 136,
            al_offset: -64,
            al_nr_extents: 1237,
            bm_offset: -128,
            bm_bytes_per_bit: 4096,
            la_peer_max_bio_bytes: 0x10_0000,
            al_stripes: 1,
            al_stripe_size_4k: 8,
        };
        let block = block_of(&superblock, Magic::Unclean);
        assert_eq!(block[0..8], [1, 2, 3, 4, 5, 6, 7, 8]);
        for (offset, last_byte) in [(8, 0x11), (16, 0x22), (24, 0x33), (32, 0x44), (40, 0x55), (48, 0)] {
            assert_eq!(block[offset..offset + 7], [0; 7]);
            assert_eq!(block[offset + 7], last_byte);
        }
        assert_eq!(block[56..60], [0, 0, 1, 1]);
        assert_eq!(block[60..64], [0x83, 0x74, 0x02, 0x6C]);
        assert_eq!(block[64..68], [0, 0, 0, 136]);
        assert_eq!(block[68..72], [0xFF, 0xFF, 0xFF, 0xC0]);
        assert_eq!(block[72..76], [0, 0, 0x04, 0xD5]);
        assert_eq!(block[76..80], [0xFF, 0xFF, 0xFF, 0x80]);
        assert_eq!(block[80..84], [0, 0, 0x10, 0]);
        assert_eq!(block[84..88], [0, 0x10, 0, 0]);
        assert_eq!(block[88..96], [0, 0, 0, 1, 0, 0, 0, 8]);
        assert!(block[96..].iter().all(|byte| *byte == 0));
        assert_eq!(Superblock::decode_raw(&block), Ok(superblock));
    }

    #[test]
    fn create_md_leaves_a_clean_superblock() {
        let superblock = created();
        let decoded = Superblock::decode(&block_of(&superblock, Magic::Clean)).unwrap();
        assert_eq!(decoded, superblock);
        assert_eq!(decoded.uuids, [4, 0, 0, 0]);
        assert_eq!(decoded.flags, MetaFlags(0x80));
        assert_eq!((decoded.al_offset, decoded.bm_offset, decoded.md_size_sectors), (-64, -128, 136));
        assert_eq!(decoded.al_nr_extents, 257);
    }

    #[test]
    fn every_magic_is_told_apart() {
        let mut block = block_of(&created(), Magic::Clean);
        for (magic, error) in [
            (0x8374_0269u32, SuperblockError::Old06),
            (0x8374_026A, SuperblockError::Old07),
            (0x8374_026C, SuperblockError::Unclean),
            (0x8374_026D, SuperblockError::Drbd9),
            (0, SuperblockError::NoMagic { found: 0 }),
            (0xDEAD_BEEF, SuperblockError::NoMagic { found: 0xDEAD_BEEF }),
        ] {
            block[60..64].copy_from_slice(&magic.to_be_bytes());
            assert_eq!(Superblock::decode(&block), Err(error));
        }
        assert_eq!(SuperblockError::Unclean.error_code(), 165);
        assert_eq!(SuperblockError::NeedsConversion.error_code(), 165);
        assert_eq!(SuperblockError::Old07.error_code(), 119);
    }

    #[test]
    fn attach_checks_run_in_the_order_of_the_specification() {
        let mut superblock = created();
        superblock.flags.clear(MetaFlags::AL_CLEAN);
        superblock.bm_bytes_per_bit = 8192;
        superblock.al_stripes = 0;
        assert_eq!(superblock.check_for_attach(), Err(SuperblockError::NeedsConversion));
        superblock.flags.set(MetaFlags::AL_CLEAN);
        assert_eq!(superblock.check_for_attach(), Err(SuperblockError::BadBytesPerBit { found: 8192 }));
        superblock.bm_bytes_per_bit = 4096;
        let one_is_zero = SuperblockError::BadStriping { stripes: 0, stripe_size_4k: 8 };
        assert_eq!(superblock.check_for_attach(), Err(one_is_zero));
        superblock.al_stripe_size_4k = 0;
        assert_eq!(superblock.check_for_attach(), Ok(()));
        assert_eq!(superblock.striping(), Ok(Striping::DEFAULT));
    }

    #[test]
    fn striping_limits_of_the_kernel() {
        let mut superblock = created();
        for (stripes, stripe_size_4k, fits) in [
            (1, 7, false),
            (1, 8, true),
            (8, 0, false),
            (1024, 4096, true),
            (1024, 4097, false),
            (u32::MAX, u32::MAX, false),
        ] {
            superblock.al_stripes = stripes;
            superblock.al_stripe_size_4k = stripe_size_4k;
            assert_eq!(superblock.striping().is_ok(), fits, "{stripes} x {stripe_size_4k}");
        }
    }

    #[test]
    fn flags_set_clear_contain() {
        let mut flags = MetaFlags::CONSISTENT | MetaFlags::FULL_SYNC;
        assert!(flags.contains(MetaFlags::CONSISTENT));
        assert!(!flags.contains(MetaFlags::CONSISTENT | MetaFlags::PRIMARY_IND));
        flags.clear(MetaFlags::CONSISTENT);
        flags.assign(MetaFlags::PRIMARY_IND, true);
        flags.assign(MetaFlags::FULL_SYNC, false);
        assert_eq!(flags, MetaFlags::PRIMARY_IND);
    }
}
