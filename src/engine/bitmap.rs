// SPDX-License-Identifier: GPL-2.0
//! The bitmap of a volume in core: one bit for every 4 KiB of storage, 1 = out of sync.
//!
//! # Invariants
//!
//! * Bits at and beyond [`Bitmap::bits`] are zero, whatever the disk contains there.
//! * [`Bitmap::weight`] is the number of ones; every change keeps it, so it never has to be counted.
//! * A page (4 KiB of the bitmap, 128 MiB of storage) whose bits were changed since its last [`Bitmap::copy_page`]
//!   carries a flag. All pages below `changed_from` carry none, all below `hinted_from` carry no hint; so a sweep over
//!   the pages to be written looks at every page once.
//!
//! Nothing here walks over the whole bitmap in one call, except where the text says so.
// spec: metadata 5

use crate::metadata::{Block, AL_EXTENTS_PER_BITMAP_PAGE, BM_BLOCK_SECTORS};
use crate::storage::{OutOfMemory, Storage};
use crate::wire::{BitSink, Bits};

/// 64-bit words in a page of the bitmap.
pub const WORDS_PER_PAGE: usize = 512;
/// Bits in a page of the bitmap.
pub const BITS_PER_PAGE: u64 = 32768;
/// Largest range, in bytes, that one call may set or clear: 128 MiB.
pub const MAX_RANGE_BYTES: u32 = 1 << 27;

/// Bits were set.
const NEED_WRITEOUT: u8 = 1;
/// Bits were cleared, or taken over from the peer's bitmap.
const LAZY_WRITEOUT: u8 = 2;
/// The activity log evicts an extent of this page.
const HINT: u8 = 4;
/// A write of this page is on its way.
const IO_LOCKED: u8 = 8;
const CHANGED: u8 = NEED_WRITEOUT | LAZY_WRITEOUT;

/// Result of a search in steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scan {
    /// The first bit found.
    Found(u64),
    /// There is none up to the end.
    None,
    /// Not found so far; go on from this bit.
    Continue(u64),
}

/// Which pages to write. spec: metadata 5.2
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// Every page that was changed, for whatever reason.
    Changed,
    /// Pages with a hint that were changed: before an activity log transaction.
    Hinted,
}

/// The memory of a bitmap. Made without holding a lock, handed to [`Bitmap::resize`] under it.
pub struct BitmapTables<S: Storage> {
    words: S::Table<u64>,
    pages: S::Table<u8>,
    capacity_sectors: u64,
}

impl<S: Storage> BitmapTables<S> {
    /// Memory for a device of that size, all bits zero. May sleep.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(capacity_sectors: u64) -> Result<Self, OutOfMemory> {
        let words =
            usize::try_from(bits_of(capacity_sectors).div_ceil(64)).map_err(|_| OutOfMemory { entries: usize::MAX })?;
        Ok(BitmapTables {
            words: S::table(words, |_| 0)?,
            pages: S::table(words.div_ceil(WORDS_PER_PAGE), |_| 0)?,
            capacity_sectors,
        })
    }
}

/// The bitmap of one volume.
pub struct Bitmap<S: Storage> {
    words: S::Table<u64>,
    pages: S::Table<u8>,
    capacity_sectors: u64,
    bits: u64,
    weight: u64,
    changed_from: usize,
    hinted_from: usize,
    pages_in_flight: usize,
}

impl<S: Storage> Bitmap<S> {
    /// A bitmap for a device of that size, all bits zero and no page changed. May sleep.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(capacity_sectors: u64) -> Result<Self, OutOfMemory> {
        Ok(Bitmap::from_tables(BitmapTables::new(capacity_sectors)?))
    }

    /// The same from memory made before.
    pub fn from_tables(tables: BitmapTables<S>) -> Self {
        let BitmapTables { words, pages, capacity_sectors } = tables;
        let page_count = pages.len();
        Bitmap {
            words,
            pages,
            capacity_sectors,
            bits: bits_of(capacity_sectors),
            weight: 0,
            changed_from: page_count,
            hinted_from: page_count,
            pages_in_flight: 0,
        }
    }

    /// Takes new memory for another size of the device. The contents are kept; the bits of added storage become
    /// `set_new_bits`. Returns the old memory, to be freed without a lock. Walks over the whole bitmap.
    // spec: metadata 5.5
    pub fn resize(&mut self, tables: BitmapTables<S>, set_new_bits: bool) -> BitmapTables<S> {
        let old_bits = self.bits;
        let mut new = Bitmap::from_tables(tables);
        for (target, word) in new.words.iter_mut().zip(self.words.iter()) {
            *target = *word;
        }
        for (target, flags) in new.pages.iter_mut().zip(self.pages.iter()) {
            *target = *flags;
        }
        (new.changed_from, new.hinted_from) = (0, 0);
        new.pages_in_flight = new.pages.iter().filter(|flags| **flags & IO_LOCKED != 0).count();
        if new.bits < old_bits {
            new.mask_tail();
            new.weight = new.words.iter().map(|word| u64::from(word.count_ones())).sum();
        } else {
            new.weight = self.weight;
            // The last block may have been shorter than the others.
            let first_new = self.capacity_sectors / BM_BLOCK_SECTORS;
            if set_new_bits && new.capacity_sectors > self.capacity_sectors && new.bits > 0 {
                new.set_bits(first_new, new.bits - 1);
            }
        }
        core::mem::swap(self, &mut new);
        BitmapTables { words: new.words, pages: new.pages, capacity_sectors: new.capacity_sectors }
    }

    /// Number of bits.
    pub fn bits(&self) -> u64 {
        self.bits
    }

    /// Size of the device in sectors.
    pub fn capacity_sectors(&self) -> u64 {
        self.capacity_sectors
    }

    /// Number of ones.
    pub fn weight(&self) -> u64 {
        self.weight
    }

    /// Number of 64-bit words.
    pub fn word_count(&self) -> usize {
        self.words.len()
    }

    /// Number of 4 KiB pages.
    pub fn page_count(&self) -> u64 {
        self.pages.len() as u64
    }

    /// A word: bit 0 is the lowest block. 0 beyond the end.
    pub fn word(&self, index: usize) -> u64 {
        self.words.get(index).copied().unwrap_or(0)
    }

    /// Whether a bit is set. False beyond the end.
    pub fn is_set(&self, bit: u64) -> bool {
        (self.word(word_of(bit)) >> (bit % 64)) & 1 == 1
    }

    /// Marks a range out of sync: every block it touches. Clipped to the device; ranges longer than
    /// [`MAX_RANGE_BYTES`], empty or not made of sectors are ignored. Returns the number of bits that changed.
    // spec: metadata 5.1
    pub fn set_range_sectors(&mut self, sector: u64, size_bytes: u32) -> u64 {
        match self.touched_bits(sector, size_bytes) {
            Some((first, last)) => self.set_bits(first, last),
            None => 0,
        }
    }

    /// Marks a range in sync: every block it covers completely. The last, partial block of the device counts as covered
    /// when the range reaches the end. Limits and result as for [`Bitmap::set_range_sectors`].
    // spec: metadata 5.1
    pub fn clear_range_sectors(&mut self, sector: u64, size_bytes: u32) -> u64 {
        let Some((sector, end)) = self.clipped(sector, size_bytes) else {
            return 0;
        };
        let first = sector.div_ceil(BM_BLOCK_SECTORS);
        let behind = if end == self.capacity_sectors { self.bits } else { end / BM_BLOCK_SECTORS };
        match behind.checked_sub(1) {
            Some(last) => self.clear_bits(first, last),
            None => 0,
        }
    }

    /// Whether any block that the range touches is out of sync.
    pub fn any_set(&self, sector: u64, size_bytes: u32) -> bool {
        let Some((first, last)) = self.touched_bits(sector, size_bytes) else {
            return false;
        };
        (word_of(first)..=word_of(last)).any(|index| self.word(index) & word_mask(index, first, last) != 0)
    }

    /// Number of ones from `first_bit` to `last_bit`, both included. Takes time in proportion to the range.
    pub fn count_in(&self, first_bit: u64, last_bit: u64) -> u64 {
        let Some((first, last)) = self.clipped_bits(first_bit, last_bit) else {
            return 0;
        };
        (word_of(first)..=word_of(last))
            .map(|index| u64::from((self.word(index) & word_mask(index, first, last)).count_ones()))
            .sum()
    }

    /// Sets the bits from `first_bit` to `last_bit`, both included; returns how many changed. Takes time in proportion
    /// to the range.
    pub fn set_bits(&mut self, first_bit: u64, last_bit: u64) -> u64 {
        self.change_bits(first_bit, last_bit, true, NEED_WRITEOUT)
    }

    /// The same for bits that the peer reported: the pages are written when there is time.
    pub fn merge_bits(&mut self, first_bit: u64, last_bit: u64) -> u64 {
        self.change_bits(first_bit, last_bit, true, LAZY_WRITEOUT)
    }

    /// Clears the bits from `first_bit` to `last_bit`, both included; returns how many changed.
    pub fn clear_bits(&mut self, first_bit: u64, last_bit: u64) -> u64 {
        self.change_bits(first_bit, last_bit, false, LAZY_WRITEOUT)
    }

    /// Adds the ones of a word of the peer's bitmap; returns how many bits changed.
    pub fn or_word(&mut self, index: usize, value: u64) -> u64 {
        let value = value & self.valid_mask(index);
        self.change_word(index, value, true, LAZY_WRITEOUT)
    }

    /// Sets all bits. Walks over the whole bitmap.
    pub fn set_all(&mut self) {
        self.set_all_from(0, usize::MAX);
    }

    /// Clears all bits. Walks over the whole bitmap.
    pub fn clear_all(&mut self) {
        self.clear_all_from(0, usize::MAX);
    }

    /// [`Bitmap::set_all`] in steps: `limit_words` words in this call, beginning with `from_word`. Returns where to go on.
    pub fn set_all_from(&mut self, from_word: usize, limit_words: usize) -> Option<usize> {
        self.change_all(from_word, limit_words, true, NEED_WRITEOUT)
    }

    /// [`Bitmap::clear_all`] in steps, as [`Bitmap::set_all_from`].
    pub fn clear_all_from(&mut self, from_word: usize, limit_words: usize) -> Option<usize> {
        self.change_all(from_word, limit_words, false, LAZY_WRITEOUT)
    }

    /// Looks for the first one at or after `from_bit`, at most in `limit_words` words (at least one).
    pub fn next_set(&self, from_bit: u64, limit_words: usize) -> Scan {
        self.scan(from_bit, true, limit_words)
    }

    /// Looks for the first zero at or after `from_bit`, at most in `limit_words` words (at least one).
    pub fn next_clear(&self, from_bit: u64, limit_words: usize) -> Scan {
        self.scan(from_bit, false, limit_words)
    }

    /// Number of bits from `start_bit` on that equal `set`, up to the end. Takes time in proportion to the run; use
    /// [`Bitmap::next_set`] and [`Bitmap::next_clear`] where runs may be long.
    pub fn run_length(&self, start_bit: u64, set: bool) -> u64 {
        let end = match self.scan(start_bit, !set, usize::MAX) {
            Scan::Found(bit) | Scan::Continue(bit) => bit,
            Scan::None => self.bits,
        };
        end.saturating_sub(start_bit)
    }

    /// The activity log evicts this extent: its page must be on disk first. spec: metadata 4.4
    pub fn hint_extent(&mut self, extent: u32) {
        let page = (extent / AL_EXTENTS_PER_BITMAP_PAGE) as usize;
        if let Some(flags) = self.pages.get_mut(page) {
            *flags |= HINT;
            self.hinted_from = self.hinted_from.min(page);
        }
    }

    /// Asks for every page to be written: the meta data moved. Walks over the pages.
    pub fn mark_all_pages(&mut self) {
        self.pages.iter_mut().for_each(|flags| *flags |= NEED_WRITEOUT);
        self.changed_from = 0;
    }

    /// The lowest page that has to be written and has no write on its way. Hints that turn out needless are dropped.
    pub fn next_page_to_write(&mut self, which: Pages) -> Option<u64> {
        let page = match which {
            Pages::Changed => self.next_changed_page(),
            Pages::Hinted => self.next_hinted_page(),
        };
        page.map(|page| page as u64)
    }

    /// Copies a page in the format of the disk and takes its flags away, so that a change from now on flags it anew.
    /// Zeroes beyond the end.
    pub fn copy_page(&mut self, page: u64, block: &mut Block) {
        if let Some(flags) = self.page_mut(page) {
            *flags &= !(CHANGED | HINT);
        }
        let first = first_word(page);
        for (index, target) in block.chunks_exact_mut(8).enumerate() {
            target.copy_from_slice(&self.word(first.saturating_add(index)).to_le_bytes());
        }
    }

    /// Notes that a write of the page is on its way: [`Bitmap::next_page_to_write`] leaves it out until
    /// [`Bitmap::unlock_page_io`], so that two writes of one page never overtake each other. False when there is one
    /// already.
    pub fn lock_page_io(&mut self, page: u64) -> bool {
        match self.page_mut(page) {
            Some(flags) if *flags & IO_LOCKED == 0 => {
                *flags |= IO_LOCKED;
                self.pages_in_flight += 1;
                true
            }
            _ => false,
        }
    }

    /// The write noted by [`Bitmap::lock_page_io`] ended.
    pub fn unlock_page_io(&mut self, page: u64) {
        match self.page_mut(page) {
            Some(flags) if *flags & IO_LOCKED != 0 => {
                *flags &= !IO_LOCKED;
                self.pages_in_flight = self.pages_in_flight.saturating_sub(1);
            }
            _ => {}
        }
    }

    /// Pages between [`Bitmap::lock_page_io`] and [`Bitmap::unlock_page_io`]. The hinted pages are on disk when
    /// [`Pages::Hinted`] finds none and this is zero.
    pub fn pages_in_flight(&self) -> usize {
        self.pages_in_flight
    }

    /// Takes over a page read from disk. Bits beyond the end are ignored. Bits that were set in core meanwhile stay, and
    /// the page has to be written because of them.
    pub fn load_page(&mut self, page: u64, block: &Block) {
        let first = first_word(page);
        let mut differs = false;
        for (index, source) in block.chunks_exact(8).enumerate() {
            let index = first.saturating_add(index);
            let value = source.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes)) & self.valid_mask(index);
            let Some(word) = self.words.get_mut(index) else { break };
            differs |= *word & !value != 0;
            self.weight += u64::from((value & !*word).count_ones());
            *word |= value;
        }
        if let Some(flags) = self.page_mut(page).filter(|_| !differs) {
            *flags &= !(CHANGED | HINT);
        }
    }

    /// All pages were loaded. Returns the number of ones; it was kept up to date page by page.
    // The last word keeps all of its bits when their number is a multiple of 64. spec: metadata 5.1
    pub fn finish_load(&mut self) -> u64 {
        self.weight
    }

    fn page_mut(&mut self, page: u64) -> Option<&mut u8> {
        self.pages.get_mut(usize::try_from(page).ok()?)
    }

    fn next_changed_page(&mut self) -> Option<usize> {
        let mut all_clean = true;
        for page in self.changed_from..self.pages.len() {
            let flags = self.pages.get(page).copied().unwrap_or(0);
            if flags & CHANGED != 0 {
                all_clean = false;
                if flags & IO_LOCKED == 0 {
                    return Some(page);
                }
            } else if all_clean {
                self.changed_from = page + 1;
            }
        }
        None
    }

    fn next_hinted_page(&mut self) -> Option<usize> {
        let mut none_hinted = true;
        for page in self.hinted_from..self.pages.len() {
            let Some(flags) = self.pages.get_mut(page) else { break };
            if *flags & CHANGED == 0 {
                *flags &= !HINT;
            }
            if *flags & HINT != 0 {
                none_hinted = false;
                if *flags & IO_LOCKED == 0 {
                    return Some(page);
                }
            } else if none_hinted {
                self.hinted_from = page + 1;
            }
        }
        None
    }

    fn scan(&self, from_bit: u64, set: bool, limit_words: usize) -> Scan {
        if from_bit >= self.bits {
            return Scan::None;
        }
        let first = word_of(from_bit);
        let behind = first.saturating_add(limit_words.max(1)).min(self.words.len());
        for index in first..behind {
            let word = if set { self.word(index) } else { !self.word(index) };
            let wanted = word & self.valid_mask(index) & word_mask(index, from_bit, u64::MAX);
            if wanted != 0 {
                return Scan::Found(index as u64 * 64 + u64::from(wanted.trailing_zeros()));
            }
        }
        if behind == self.words.len() {
            Scan::None
        } else {
            Scan::Continue(behind as u64 * 64)
        }
    }

    fn change_bits(&mut self, first_bit: u64, last_bit: u64, set: bool, flag: u8) -> u64 {
        let Some((first, last)) = self.clipped_bits(first_bit, last_bit) else {
            return 0;
        };
        (word_of(first)..=word_of(last))
            .map(|index| self.change_word(index, word_mask(index, first, last), set, flag))
            .sum()
    }

    fn change_all(&mut self, from_word: usize, limit_words: usize, set: bool, flag: u8) -> Option<usize> {
        let behind = from_word.saturating_add(limit_words.max(1)).min(self.words.len());
        for index in from_word..behind {
            self.change_word(index, self.valid_mask(index), set, flag);
        }
        (behind < self.words.len()).then_some(behind)
    }

    /// The one place where bits change. `mask` lies within the valid bits.
    fn change_word(&mut self, index: usize, mask: u64, set: bool, flag: u8) -> u64 {
        let Some(word) = self.words.get_mut(index) else {
            return 0;
        };
        let changing = mask & if set { !*word } else { *word };
        if changing == 0 {
            return 0;
        }
        *word ^= changing;
        let count = u64::from(changing.count_ones());
        self.weight = if set { self.weight + count } else { self.weight.saturating_sub(count) };
        let page = index / WORDS_PER_PAGE;
        if let Some(flags) = self.pages.get_mut(page) {
            *flags |= flag;
        }
        self.changed_from = self.changed_from.min(page);
        count
    }

    fn mask_tail(&mut self) {
        let last = self.words.len().saturating_sub(1);
        let mask = self.valid_mask(last);
        if let Some(word) = self.words.get_mut(last) {
            *word &= mask;
        }
    }

    /// The bits of a word that exist.
    fn valid_mask(&self, index: usize) -> u64 {
        match self.bits.checked_sub(1) {
            Some(last) => word_mask(index, 0, last),
            None => 0,
        }
    }

    /// First and last block a range touches.
    fn touched_bits(&self, sector: u64, size_bytes: u32) -> Option<(u64, u64)> {
        let (sector, end) = self.clipped(sector, size_bytes)?;
        Some((sector / BM_BLOCK_SECTORS, (end - 1) / BM_BLOCK_SECTORS))
    }

    /// First sector, and the one behind the last, of a range that may be changed, cut at the end of the device.
    fn clipped(&self, sector: u64, size_bytes: u32) -> Option<(u64, u64)> {
        let is_sound = size_bytes != 0 && size_bytes <= MAX_RANGE_BYTES && size_bytes % 512 == 0;
        if !is_sound || sector >= self.capacity_sectors {
            return None;
        }
        Some((sector, sector.saturating_add(u64::from(size_bytes / 512)).min(self.capacity_sectors)))
    }

    fn clipped_bits(&self, first: u64, last: u64) -> Option<(u64, u64)> {
        let last = last.min(self.bits.checked_sub(1)?);
        (first <= last).then_some((first, last))
    }
}

fn bits_of(capacity_sectors: u64) -> u64 {
    capacity_sectors.div_ceil(BM_BLOCK_SECTORS)
}

fn word_of(bit: u64) -> usize {
    usize::try_from(bit / 64).unwrap_or(usize::MAX)
}

fn first_word(page: u64) -> usize {
    usize::try_from(page).unwrap_or(usize::MAX).saturating_mul(WORDS_PER_PAGE)
}

/// The bits of word `index` that lie between `first` and `last`, both included.
fn word_mask(index: usize, first: u64, last: u64) -> u64 {
    let word = index as u64;
    let from_first = match word.cmp(&(first / 64)) {
        core::cmp::Ordering::Less => 0,
        core::cmp::Ordering::Equal => u64::MAX << (first % 64),
        core::cmp::Ordering::Greater => u64::MAX,
    };
    let to_last = match word.cmp(&(last / 64)) {
        core::cmp::Ordering::Less => u64::MAX,
        core::cmp::Ordering::Equal => u64::MAX >> (63 - last % 64),
        core::cmp::Ordering::Greater => 0,
    };
    from_first & to_last
}

impl<S: Storage> Bits for Bitmap<S> {
    fn bit_count(&self) -> u64 {
        self.bits()
    }

    fn run_length(&self, start_bit: u64, set: bool) -> u64 {
        Bitmap::run_length(self, start_bit, set)
    }

    fn word(&self, index: u64) -> u64 {
        usize::try_from(index).map_or(0, |index| Bitmap::word(self, index))
    }
}

impl<S: Storage> BitSink for Bitmap<S> {
    fn set_range(&mut self, start_bit: u64, len: u64) {
        if len > 0 {
            self.merge_bits(start_bit, start_bit.saturating_add(len - 1));
        }
    }

    fn or_word(&mut self, index: u64, word: u64) {
        if let Ok(index) = usize::try_from(index) {
            Bitmap::or_word(self, index, word);
        }
    }
}

#[cfg(test)]
mod tests;
