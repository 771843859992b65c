// SPDX-License-Identifier: GPL-2.0
//! Activity log transactions: one block each, written one after the other around a ring.
//!
//! A block carries up to 64 changes of slots and repeats a window of the slot table as it was before these changes,
//! so that a run of consecutive blocks contains the whole table. [`super::replay`] puts it together again.
// spec: metadata 4.1, 4.5

use core::fmt;

use super::{be_u16, be_u32, put_bytes, Block, LC_FREE};

pub use super::crc32c::crc32c;
pub use super::replay::{replay, Replay};

/// Magic of an activity log block.
pub const AL_MAGIC: u32 = 0x69CB_65A2;
/// Changes of slots that one transaction can carry.
pub const AL_UPDATES_PER_TRANSACTION: usize = 64;
/// Slots that one transaction can repeat.
pub const AL_CONTEXT_PER_TRANSACTION: usize = 919;
/// Slot number meaning "no slot".
pub const SLOT_FREE: u16 = 0xFFFF;

const TYPE_UPDATE: u16 = 0;
const TYPE_INITIALIZED: u16 = 0xFFFF;
const CRC_OFFSET: usize = 8;
const SLOTS_OFFSET: usize = 36;
const EXTENTS_OFFSET: usize = 164;
const CONTEXT_OFFSET: usize = 420;

/// What kind of block it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Changes of the slot table.
    Update,
    /// Written when the ring was initialised; says nothing.
    Initialized,
}

/// A transaction to be written.
#[derive(Clone, Copy, Debug)]
pub struct Transaction<'a> {
    /// Sequence number; decides on the position in the ring.
    pub number: u32,
    /// Kind of block.
    pub kind: Kind,
    /// Slots that change and the extent each gets; only the first 64 count.
    pub updates: &'a [(u16, u32)],
    /// First slot of the window.
    pub context_start: u16,
    /// Number of slots of the whole table.
    pub context_size: u16,
    /// Extents of the slots of the window before the change; only the first 919 count.
    pub context: &'a [u32],
}

impl Transaction<'_> {
    /// A block of a freshly initialised ring; all are alike.
    pub const INITIALIZED: Transaction<'static> = Transaction {
        number: 0,
        kind: Kind::Initialized,
        updates: &[],
        context_start: 0,
        context_size: 0,
        context: &[],
    };

    /// Writes the block, checksum included.
    pub fn encode(&self, block: &mut Block) {
        self.encode_with(block, crc32c);
    }

    /// As [`Transaction::encode`], with the checksum computed by `crc`, which does the same as [`crc32c`].
    pub fn encode_with(&self, block: &mut Block, crc: impl FnOnce(u32, &[u8]) -> u32) {
        let (used, rest) = match self.kind {
            Kind::Initialized => (0..block.len(), block.len()),
            // Everything from the slots to the end of the window is written below.
            Kind::Update => (0..SLOTS_OFFSET, CONTEXT_OFFSET + 4 * AL_CONTEXT_PER_TRANSACTION),
        };
        for range in [used, rest..super::BLOCK_BYTES] {
            block.get_mut(range).unwrap_or_default().fill(0);
        }
        put_bytes(block, 0, AL_MAGIC.to_be_bytes());
        put_bytes(block, 4, self.number.to_be_bytes());
        match self.kind {
            Kind::Initialized => put_bytes(block, 12, TYPE_INITIALIZED.to_be_bytes()),
            Kind::Update => self.encode_update(block),
        }
        let crc = crc(0, block.as_slice());
        put_bytes(block, CRC_OFFSET, crc.to_be_bytes());
    }

    fn encode_update(&self, block: &mut Block) {
        let updates = self.updates.len().min(AL_UPDATES_PER_TRANSACTION);
        put_bytes(block, 12, TYPE_UPDATE.to_be_bytes());
        put_bytes(block, 14, (updates as u16).to_be_bytes());
        put_bytes(block, 16, self.context_size.to_be_bytes());
        put_bytes(block, 18, self.context_start.to_be_bytes());
        for index in 0..AL_UPDATES_PER_TRANSACTION {
            let (slot, extent) = self.updates.get(index).copied().unwrap_or((SLOT_FREE, LC_FREE));
            put_bytes(block, SLOTS_OFFSET + 2 * index, slot.to_be_bytes());
            put_bytes(block, EXTENTS_OFFSET + 4 * index, extent.to_be_bytes());
        }
        let window = block.get_mut(CONTEXT_OFFSET..).unwrap_or_default().chunks_exact_mut(4);
        let extents = self.context.iter().copied().chain(core::iter::repeat(LC_FREE));
        for (place, extent) in window.take(AL_CONTEXT_PER_TRANSACTION).zip(extents) {
            place.copy_from_slice(&extent.to_be_bytes());
        }
    }
}

/// Why a block is not a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionError {
    /// Another magic.
    NoMagic {
        /// What was found in its place.
        found: u32,
    },
    /// Torn or damaged.
    BadChecksum {
        /// Checksum in the block.
        found: u32,
        /// Checksum of its contents.
        computed: u32,
    },
}

impl fmt::Display for TransactionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            TransactionError::NoMagic { found } => write!(f, "no activity log magic (found {found:#010x})"),
            TransactionError::BadChecksum { found, computed } => {
                write!(f, "activity log checksum {found:#010x}, computed {computed:#010x}")
            }
        }
    }
}

/// A transaction that was read: magic and checksum are right, everything else is still to be judged.
#[derive(Clone, Copy)]
pub struct TransactionView<'a> {
    block: &'a Block,
}

/// Reads a block.
///
/// # Errors
/// [`TransactionError`]: the block is to be skipped.
pub fn decode(block: &Block) -> Result<TransactionView<'_>, TransactionError> {
    let magic = be_u32(block, 0);
    if magic != AL_MAGIC {
        return Err(TransactionError::NoMagic { found: magic });
    }
    let found = be_u32(block, CRC_OFFSET);
    let computed = checksum(block);
    if found != computed {
        return Err(TransactionError::BadChecksum { found, computed });
    }
    Ok(TransactionView { block })
}

impl<'a> TransactionView<'a> {
    /// Sequence number.
    pub fn number(&self) -> u32 {
        be_u32(self.block, 4)
    }

    /// Kind of block; every type but "initialised" counts as an update.
    pub fn kind(&self) -> Kind {
        if be_u16(self.block, 12) == TYPE_INITIALIZED {
            Kind::Initialized
        } else {
            Kind::Update
        }
    }

    /// Number of changes it claims to carry.
    pub fn update_count(&self) -> u16 {
        be_u16(self.block, 14)
    }

    /// Number of slots of the writer's table.
    pub fn context_size(&self) -> u16 {
        be_u16(self.block, 16)
    }

    /// First slot of the window.
    pub fn context_start(&self) -> u16 {
        be_u16(self.block, 18)
    }

    /// All 64 places for a change: slot and extent, used or not.
    pub fn updates(&self) -> impl Iterator<Item = (u16, u32)> + 'a {
        let block = self.block;
        (0..AL_UPDATES_PER_TRANSACTION)
            .map(move |index| (be_u16(block, SLOTS_OFFSET + 2 * index), be_u32(block, EXTENTS_OFFSET + 4 * index)))
    }

    /// All 919 places of the window: slot (which may exceed 16 bits in a damaged block) and extent.
    pub fn context(&self) -> impl Iterator<Item = (u32, u32)> + 'a {
        let block = self.block;
        let start = u32::from(self.context_start());
        (0..AL_CONTEXT_PER_TRANSACTION as u32)
            .map(move |index| (start + index, be_u32(block, CONTEXT_OFFSET + 4 * index as usize)))
    }
}

/// The checksum of a block with its checksum field taken as zero.
fn checksum(block: &Block) -> u32 {
    let (before, rest) = block.split_at(CRC_OFFSET);
    let (_, after) = rest.split_at(4);
    crc32c(crc32c(crc32c(0, before), &[0; 4]), after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(transaction: &Transaction<'_>) -> Block {
        let mut block = [0xAA; 4096];
        transaction.encode(&mut block);
        block
    }

    #[test]
    fn initialised_block() {
        let block = encoded(&Transaction::INITIALIZED);
        assert_eq!(block[..4], AL_MAGIC.to_be_bytes());
        assert_eq!(block[8..12], 0x709C_C651u32.to_be_bytes());
        assert_eq!(block[12..14], [0xFF, 0xFF]);
        assert!(block[4..8].iter().chain(&block[14..]).all(|byte| *byte == 0));
        assert_eq!(decode(&block).map(|view| view.kind()), Ok(Kind::Initialized));
    }

    #[test]
    fn update_block_byte_by_byte() {
        let block = encoded(&Transaction {
            number: 0x0102_0304,
            kind: Kind::Update,
            updates: &[(1236, 7), (1235, 0x0A0B_0C0D)],
            context_start: 919,
            context_size: 1237,
            context: &[1, LC_FREE, 3],
        });
        assert_eq!(block[4..8], [1, 2, 3, 4]);
        assert_eq!(block[12..20], [0, 0, 0, 2, 0x04, 0xD5, 0x03, 0x97]);
        assert_eq!(block[20..36], [0; 16]);
        assert_eq!(block[36..42], [0x04, 0xD4, 0x04, 0xD3, 0xFF, 0xFF]);
        assert_eq!(block[164..172], [0, 0, 0, 7, 0x0A, 0x0B, 0x0C, 0x0D]);
        assert!(block[40..164].iter().chain(&block[172..420]).all(|byte| *byte == 0xFF));
        assert_eq!(block[420..432], [0, 0, 0, 1, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 3]);
        assert!(block[432..].iter().all(|byte| *byte == 0xFF));
    }

    #[test]
    fn what_was_written_is_read_back() {
        let updates: Vec<(u16, u32)> = (0..64).map(|index| (index * 3, u32::from(index) * 1000)).collect();
        let context: Vec<u32> = (0..919).map(|index| index * 5).collect();
        let block = encoded(&Transaction {
            number: u32::MAX,
            kind: Kind::Update,
            updates: &updates,
            context_start: 1838,
            context_size: 6433,
            context: &context,
        });
        let view = decode(&block).map_err(|error| error.to_string()).unwrap();
        assert_eq!((view.number(), view.kind(), view.update_count()), (u32::MAX, Kind::Update, 64));
        assert_eq!((view.context_start(), view.context_size()), (1838, 6433));
        assert_eq!(view.updates().collect::<Vec<_>>(), updates);
        let expected: Vec<(u32, u32)> = context.iter().enumerate().map(|(i, e)| (1838 + i as u32, *e)).collect();
        assert_eq!(view.context().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn every_damaged_byte_is_noticed() {
        let good = encoded(&Transaction::INITIALIZED);
        for offset in 0..4096 {
            let mut block = good;
            block[offset] ^= 0x10;
            assert!(decode(&block).is_err(), "byte {offset}");
        }
        assert!(matches!(decode(&[0; 4096]), Err(TransactionError::NoMagic { found: 0 })));
    }

    #[test]
    fn more_than_fits_is_cut_off() {
        let updates = [(5u16, 5u32); 70];
        let context = [9u32; 1000];
        let block = encoded(&Transaction {
            number: 1,
            kind: Kind::Update,
            updates: &updates,
            context_start: 0,
            context_size: 1000,
            context: &context,
        });
        let view = decode(&block).map_err(|error| error.to_string()).unwrap();
        assert_eq!(view.update_count(), 64);
        assert_eq!(view.context().count(), 919);
    }
}
