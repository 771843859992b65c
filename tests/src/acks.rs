//! What a writer was promised, and whether it was kept.
//!
//! A write that was acknowledged must be found, or a later one at the same place. A write that was under way when the
//! power went may be there or not, sector by sector.

use crate::pattern::Content;
use anyhow::{bail, Context, Result};
use std::collections::BTreeMap;

/// How many wrong sectors a message lists.
const SHOWN: usize = 8;

/// The acknowledged writes of a run, as the last one of each sector.
#[derive(Clone, Debug, Default)]
pub struct Acks {
    last: BTreeMap<u64, u64>,
    writes: u64,
    sectors: u64,
    highest: u64,
}

impl Acks {
    /// Reads the lines `ack SEQUENCE SECTOR COUNT` of a writer; a last line without its end is not one yet.
    pub fn parse(output: &[u8]) -> Result<Acks> {
        let mut acks = Acks::default();
        acks.add(output)?;
        Ok(acks)
    }

    /// Adds the lines of another writer.
    pub fn add(&mut self, output: &[u8]) -> Result<()> {
        let end = output.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        for line in std::str::from_utf8(&output[..end])?.lines() {
            let mut words = line.split(' ');
            if words.next() != Some("ack") {
                bail!("the writer said {line:?}");
            }
            let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
            let (Some(sequence), Some(sector), Some(count)) = (number(), number(), number()) else {
                bail!("the writer said {line:?}");
            };
            self.writes += 1;
            self.sectors += count;
            self.highest = self.highest.max(sequence);
            for sector in sector..sector + count {
                let last = self.last.entry(sector).or_default();
                *last = sequence.max(*last);
            }
        }
        Ok(())
    }

    /// Adds what another writer was promised.
    pub fn merge(&mut self, other: &Acks) {
        for (&sector, &sequence) in &other.last {
            let last = self.last.entry(sector).or_default();
            *last = sequence.max(*last);
        }
        self.writes += other.writes;
        self.sectors += other.sectors;
        self.highest = self.highest.max(other.highest);
    }

    /// How many writes.
    pub fn writes(&self) -> u64 {
        self.writes
    }

    /// How many KiB were written, places written twice counted twice, rounded up.
    pub fn kib(&self) -> u64 {
        self.sectors.div_ceil(2)
    }

    /// The highest number of a write; the next writer starts above it.
    pub fn highest(&self) -> u64 {
        self.highest
    }

    /// Compares with what was found after two writers, on two machines, wrote to the same place at the same time: each sector
    /// holds the last write of the one or of the other, never an earlier one and never parts of both.
    pub fn check_either(&self, other: &Acks, found: &Scan) -> Result<()> {
        let mut wrong = Vec::new();
        for (&sector, &content) in &found.sectors {
            let last = [self.last.get(&sector), other.last.get(&sector)];
            let good = match content {
                Content::Bad => false,
                Content::Blank => last == [None, None],
                Content::Written(sequence) => last == [None, None] || last.contains(&Some(&sequence)),
            };
            if !good {
                wrong.push(format!("sector {sector}: acknowledged {last:?}, found {content:?}"));
            }
        }
        report(wrong, found.sectors.len())
    }

    /// Compares with what was found. A sector that is neither blank nor of any writer is wrong even where no write was
    /// acknowledged: a write that the power cut must not tear a sector. So whoever scans has seen to it that nothing else
    /// was there before.
    pub fn check(&self, found: &Scan) -> Result<()> {
        let mut wrong = Vec::new();
        for (&sector, &content) in &found.sectors {
            if content == Content::Bad && !self.last.contains_key(&sector) {
                wrong.push(format!("sector {sector}: nothing acknowledged, found {content:?}"));
            }
        }
        for (&sector, &sequence) in &self.last {
            match found.sectors.get(&sector) {
                Some(&Content::Written(other)) if other >= sequence => (),
                other => wrong.push(format!("sector {sector}: acknowledged write {sequence}, found {other:?}")),
            }
        }
        report(wrong, self.last.len())
    }
}

fn report(mut wrong: Vec<String>, sectors: usize) -> Result<()> {
    if wrong.is_empty() {
        return Ok(());
    }
    let more = wrong.len().saturating_sub(SHOWN);
    wrong.truncate(SHOWN);
    bail!("of {sectors} sectors with acknowledged data, these are wrong:\n{}\nand {more} more", wrong.join("\n"))
}

/// What a device holds, sector by sector.
#[derive(Clone, Debug, Default)]
pub struct Scan {
    sectors: BTreeMap<u64, Content>,
}

impl Scan {
    /// Reads the lines `SECTOR COUNT blank|bad|SEQUENCE` of `guest scan`.
    pub fn parse(text: &str) -> Result<Scan> {
        let mut scan = Scan::default();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let &[sector, count, content] = words.as_slice() else {
                bail!("the scan said {line:?}");
            };
            let content = match content {
                "blank" => Content::Blank,
                "bad" => Content::Bad,
                number => Content::Written(number.parse().with_context(|| line.to_owned())?),
            };
            let (sector, count): (u64, u64) = (sector.parse()?, count.parse()?);
            scan.sectors.extend((sector..sector + count).map(|sector| (sector, content)));
        }
        Ok(scan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_acknowledged_write_or_a_later_one_must_be_there() {
        let acks = Acks::parse(b"ack 1 0 4\nack 2 2 1\nack 3 9").unwrap();
        assert_eq!((acks.writes(), acks.kib(), acks.highest()), (2, 3, 2));
        let check = |text: &str| acks.check(&Scan::parse(text).unwrap());
        check("0 2 1\n2 1 2\n3 1 1\n4 4 blank").unwrap();
        check("0 2 1\n2 1 5\n3 1 1").unwrap();
        let error = check("0 4 1").unwrap_err().to_string();
        assert!(error.contains("sector 2: acknowledged write 2, found Some(Written(1))"), "{error}");
        assert!(check("0 2 1\n2 1 2").is_err());
        let error = check("0 2 1\n2 1 2\n3 1 1\n100 1 bad").unwrap_err().to_string();
        assert!(error.contains("sector 100: nothing acknowledged"), "{error}");
        let error = check("0 2 1\n2 1 bad\n3 1 1").unwrap_err().to_string();
        assert!(error.contains("sector 2: acknowledged write 2, found Some(Bad)"), "{error}");
    }

    #[test]
    fn of_two_writers_the_last_write_of_either_must_be_there() {
        let (one, two) = (Acks::parse(b"ack 1 0 4\nack 2 0 1\n").unwrap(), Acks::parse(b"ack 101 1 2\n").unwrap());
        let check = |text: &str| one.check_either(&two, &Scan::parse(text).unwrap());
        check("0 1 2\n1 1 1\n2 1 101\n3 1 1\n4 9 blank").unwrap();
        assert!(check("0 1 1").is_err(), "an earlier one");
        assert!(check("2 1 bad").is_err() && check("2 1 blank").is_err());
    }

    #[test]
    fn what_is_no_line_of_a_writer_is_refused() {
        assert!(Acks::parse(b"error\n").is_err());
        assert!(Scan::parse("1 2").is_err());
    }
}
