//! Disks with a volatile cache: what was written and not flushed may be lost, sector by sector, at a power cut.

use crate::random::Random;
use std::collections::BTreeMap;

/// What a sector holds: the number of the write that put it there; 0: zeroes.
pub type Stamp = u64;

const SECTORS_PER_PAGE: u64 = 2048;
/// Bound: sectors in the volatile cache; the oldest are written out when there are more.
const MAX_CACHED: usize = 8192;

/// No sector: what was written there is durable.
const GONE: u64 = u64::MAX;

#[derive(Clone, Copy, Debug)]
struct Cached {
    sector: u64,
    before: Stamp,
    stamp: Stamp,
}

/// A data disk.
pub struct DataDisk {
    sectors: u64,
    pages: Vec<Option<Box<[Stamp; SECTORS_PER_PAGE as usize]>>>,
    /// Completed and not durable, in order of completion.
    cached: Vec<Cached>,
    /// Entries that have left the front of `cached`.
    settled: u64,
}

impl DataDisk {
    /// A disk full of zeroes.
    pub fn new(sectors: u64) -> Self {
        let pages = sectors.div_ceil(SECTORS_PER_PAGE);
        DataDisk { sectors, pages: (0..pages).map(|_| None).collect(), cached: Vec::new(), settled: 0 }
    }

    /// Its size.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// The disk becomes larger; the new sectors hold `stamp`.
    pub fn grow(&mut self, sectors: u64, stamp: Stamp) {
        let before = self.sectors;
        self.sectors = sectors.max(before);
        self.pages.resize_with(self.sectors.div_ceil(SECTORS_PER_PAGE) as usize, || None);
        for sector in before..self.sectors {
            self.put(sector, stamp);
        }
    }

    /// What a sector holds.
    pub fn get(&self, sector: u64) -> Stamp {
        let page = self.pages.get((sector / SECTORS_PER_PAGE) as usize);
        page.and_then(Option::as_ref).map_or(0, |page| page[(sector % SECTORS_PER_PAGE) as usize])
    }

    fn put(&mut self, sector: u64, stamp: Stamp) {
        let page = &mut self.pages[(sector / SECTORS_PER_PAGE) as usize];
        page.get_or_insert_with(|| Box::new([0; SECTORS_PER_PAGE as usize]))[(sector % SECTORS_PER_PAGE) as usize] =
            stamp;
    }

    /// Reads a range.
    pub fn read(&self, sector: u64, count: u64) -> Vec<Stamp> {
        (sector..sector + count).map(|sector| self.get(sector)).collect()
    }

    /// A position for [`DataDisk::flush_until`]: everything that has completed by now.
    pub fn mark(&self) -> u64 {
        self.settled + self.cached.len() as u64
    }

    /// What had completed at this mark is durable.
    pub fn settled(&self) -> u64 {
        self.settled
    }

    /// Writes a range; `durable`: as with FUA.
    pub fn write(&mut self, sector: u64, stamps: &[Stamp], durable: bool) {
        assert!(sector + stamps.len() as u64 <= self.sectors, "write beyond the end of the disk");
        for (sector, &stamp) in (sector..).zip(stamps) {
            if durable {
                // They keep their places, by which a flush that has begun counts.
                self.cached.iter_mut().filter(|cached| cached.sector == sector).for_each(|cached| cached.sector = GONE);
            } else {
                self.cached.push(Cached { sector, before: self.get(sector), stamp });
            }
            self.put(sector, stamp);
        }
        if self.cached.len() > MAX_CACHED {
            let surplus = self.cached.len() - MAX_CACHED / 2;
            self.cached.drain(..surplus);
            self.settled += surplus as u64;
        }
    }

    /// Everything that had completed at `mark` is durable now.
    pub fn flush_until(&mut self, mark: u64) {
        let count = mark.saturating_sub(self.settled).min(self.cached.len() as u64);
        self.cached.drain(..count as usize);
        self.settled += count;
    }

    /// The power fails: of what is in the cache each sector keeps one of the values it could have.
    pub fn power_cut(&mut self, random: &mut Random) {
        let mut candidates: BTreeMap<u64, Vec<Stamp>> = BTreeMap::new();
        for cached in self.cached.iter().filter(|cached| cached.sector != GONE) {
            candidates.entry(cached.sector).or_insert_with(|| vec![cached.before]).push(cached.stamp);
        }
        for (sector, stamps) in candidates {
            let stamp = random.pick(&stamps);
            self.put(sector, stamp);
        }
        self.settled += self.cached.len() as u64;
        self.cached.clear();
    }

    /// The first sector in which two disks of one size differ.
    pub fn first_difference(&self, other: &DataDisk, sectors: u64) -> Option<u64> {
        (0..sectors).step_by(SECTORS_PER_PAGE as usize).find_map(|first| {
            let page = (first / SECTORS_PER_PAGE) as usize;
            if self.pages[page].is_none() && other.pages[page].is_none() {
                return None;
            }
            (first..(first + SECTORS_PER_PAGE).min(sectors)).find(|&sector| self.get(sector) != other.get(sector))
        })
    }
}

/// One block of meta data.
pub type Block = [u8; 4096];

/// A meta-data disk: real bytes in blocks of 4 KiB.
#[derive(Default)]
pub struct MetaDisk {
    blocks: BTreeMap<u64, Box<Block>>,
    /// Completed and not durable: block number and what it held before.
    cached: Vec<(u64, Box<Block>)>,
}

impl MetaDisk {
    /// The block at a sector (a multiple of 8).
    pub fn read(&self, sector: u64) -> Block {
        assert_eq!(sector % 8, 0, "meta data is accessed in aligned blocks");
        self.blocks.get(&(sector / 8)).map_or([0; 4096], |block| **block)
    }

    /// What a power cut leaves of it at least: without anything that is still in the cache.
    pub fn durable(&self, sector: u64) -> Block {
        let lost = self.cached.iter().find(|(number, _)| *number == sector / 8);
        lost.map_or_else(|| self.read(sector), |(_, before)| **before)
    }

    /// Writes the first `bytes` of a block; `durable`: with PREFLUSH and FUA.
    pub fn write(&mut self, sector: u64, block: &Block, bytes: usize, durable: bool) {
        let mut new = self.read(sector);
        if durable {
            self.cached.clear();
        } else {
            self.cached.push((sector / 8, Box::new(new)));
        }
        new[..bytes].copy_from_slice(&block[..bytes]);
        self.blocks.insert(sector / 8, Box::new(new));
    }

    /// The power fails: each cached write may be lost.
    pub fn power_cut(&mut self, random: &mut Random) {
        for (number, before) in self.cached.drain(..).rev() {
            if random.percent(50) {
                self.blocks.insert(number, before);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seeds 1002573 and 1002618: a durable write made a flush that had begun before it forget one of the first writes.
    #[test]
    fn a_durable_write_does_not_shorten_a_flush() {
        let mut random = Random::new(1);
        for _ in 0..20 {
            let mut disk = DataDisk::new(2048);
            disk.write(0, &[1], false);
            disk.write(5, &[2], false);
            let begun = disk.mark();
            disk.write(7, &[3], false);
            disk.write(7, &[4], true);
            disk.flush_until(begun);
            disk.power_cut(&mut random);
            assert_eq!([0, 5, 7].map(|sector| disk.get(sector)), [1, 2, 4]);
        }
    }
}
