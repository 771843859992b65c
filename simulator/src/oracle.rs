//! What the application may see: every write it made, when it began, and when it was acknowledged.

use crate::disk::Stamp;
use std::collections::BTreeMap;

/// Never.
const NEVER: u64 = u64::MAX;

/// A write of the application.
#[derive(Clone, Debug)]
pub struct Written {
    /// Node it was made on.
    pub node: usize,
    /// First sector.
    pub sector: u64,
    /// Sectors.
    pub count: u64,
    /// It leaves zeroes.
    pub zeroes: bool,
    /// When it was submitted.
    pub start_us: u64,
    /// When it was acknowledged; [`u64::MAX`] while it is under way, and for ever when that was lost.
    pub end_us: u64,
    /// It was written with FUA, or a flush was acknowledged that began after it was.
    pub stable: bool,
    /// The only good copy lost its power while it was under way: it may be acknowledged and gone.
    pub doomed: bool,
}

/// All writes of the application.
#[derive(Default)]
pub struct Oracle {
    writes: Vec<Written>,
    by_sector: BTreeMap<u64, Vec<u32>>,
}

impl Oracle {
    /// A write begins; returns the stamp of its sectors.
    pub fn begin(&mut self, node: usize, sector: u64, count: u64, zeroes: bool, now_us: u64) -> Stamp {
        let index = self.writes.len();
        self.writes.push(Written {
            node,
            sector,
            count,
            zeroes,
            start_us: now_us,
            end_us: NEVER,
            stable: false,
            doomed: false,
        });
        for sector in sector..sector + count {
            self.by_sector.entry(sector).or_default().push(index as u32);
        }
        index as Stamp + 1
    }

    /// It was acknowledged; `stable`: and is durable.
    pub fn acknowledge(&mut self, stamp: Stamp, stable: bool, now_us: u64) {
        let write = &mut self.writes[stamp as usize - 1];
        write.end_us = if write.doomed { NEVER } else { now_us };
        write.stable = stable;
    }

    /// A flush on this node that began at `start_us` was acknowledged.
    pub fn flushed(&mut self, node: usize, start_us: u64) {
        for write in self.writes.iter_mut().filter(|write| write.node == node && write.end_us < start_us) {
            write.stable = true;
        }
    }

    /// The power of the node failed that its writes were made on: what no flush has made durable may be gone.
    pub fn power_cut(&mut self, node: usize) {
        for write in self.writes.iter_mut().filter(|write| write.node == node && !write.stable) {
            write.end_us = NEVER;
        }
    }

    /// The only good copy lost its power and holds `stamp` in this sector now: what was written later is gone.
    pub fn lost(&mut self, sector: u64, stamp: Stamp) {
        let here = self.by_sector.get(&sector).map(Vec::as_slice).unwrap_or_default();
        let ends = here.iter().map(|&index| &self.writes[index as usize]).zip(here);
        let held = ends.filter(|(write, &index)| match stamp {
            0 => write.zeroes,
            _ => index as Stamp + 1 == stamp,
        });
        let end_us = held.map(|(write, _)| write.end_us).max().unwrap_or(0);
        for &index in here {
            let write = &mut self.writes[index as usize];
            if write.start_us > end_us {
                write.end_us = NEVER;
            }
        }
    }

    /// The only good copy lost its power while this write was under way.
    pub fn doom(&mut self, stamp: Stamp) {
        self.writes[stamp as usize - 1].doomed = true;
    }

    /// The write of a stamp.
    pub fn write(&self, stamp: Stamp) -> Option<&Written> {
        self.writes.get((stamp as usize).checked_sub(1)?)
    }

    /// Sectors that were ever written.
    pub fn sectors(&self) -> impl Iterator<Item = u64> + '_ {
        self.by_sector.keys().copied()
    }

    /// Number of writes.
    pub fn len(&self) -> usize {
        self.writes.len()
    }

    /// No write was made.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// May a read from `start_us` to `end_us` find `stamp` in `sector`? The reason if not.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&self, sector: u64, stamp: Stamp, start_us: u64, end_us: u64) -> Result<(), String> {
        let here = self.by_sector.get(&sector).map(Vec::as_slice).unwrap_or_default();
        let writes = || here.iter().map(|&index| (index as Stamp + 1, &self.writes[index as usize]));
        // Something acknowledged before the read that began after `end_us` of a candidate hides the candidate.
        let newest_start = writes().filter(|(_, write)| write.end_us < start_us).map(|(_, write)| write.start_us).max();
        let visible = |end_us: u64| newest_start.is_none_or(|start| start <= end_us);
        let allowed = if stamp == 0 {
            visible(0) || writes().any(|(_, write)| write.zeroes && write.start_us <= end_us && visible(write.end_us))
        } else {
            writes().any(|(number, write)| {
                number == stamp && !write.zeroes && write.start_us <= end_us && visible(write.end_us)
            })
        };
        if allowed {
            return Ok(());
        }
        let known: Vec<String> = writes()
            .map(|(number, write)| format!("{number} ({}..{}, node {})", write.start_us, write.end_us, write.node))
            .collect();
        Err(format!(
            "sector {sector} holds {stamp} at {start_us}..{end_us} us, which is older than an acknowledged write; writes: {}",
            known.join(", ")
        ))
    }
}
