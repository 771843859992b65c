// SPDX-License-Identifier: GPL-2.0
//! Meta data as text: `dump-md`, `restore-md`, `verify-dump`.
//!
//! The text is that of drbdmeta 9.22 except for one thing: `flags` are the real flags of the superblock. drbdmeta prints
//! an unused field there, always 0, so that restoring its dump loses them.
//! spec: metadata 9.6

use super::device::{Device, SECTOR_BYTES};
use super::store::{bitmap_bytes, Found};
use crate::failure::Failure;
use std::io::Write;

/// Bytes of bitmap read at once.
const CHUNK_BYTES: u64 = 1 << 20;
/// Entries of one line.
const ENTRIES_PER_LINE: usize = 4;
/// A run of equal entries is written in one line if it is at least this long.
const MIN_RUN: usize = 8;
/// Lines that start at a multiple of this many entries get a comment with the place.
const ENTRIES_PER_PLACE: usize = 32;
/// Storage one entry describes, KiB.
const KIB_PER_ENTRY: usize = 256;

/// Writes everything after the header comments. A dump of `unclean` meta data gets a line that keeps it from being
/// restored.
///
/// # Errors
/// Exit code 10 on an I/O error, also of the output.
pub fn write_dump(device: &Device, found: &Found, unclean: bool, out: &mut impl Write) -> Result<(), Failure> {
    let words = read_bitmap(device, found)?;
    write_head(found, unclean, out)
        .and_then(|()| write_bitmap(&words, out))
        .map_err(|error| Failure::new(10, format!("writing the dump: {error}")))
}

/// The scalars of a dump.
fn write_head(found: &Found, unclean: bool, out: &mut impl Write) -> std::io::Result<()> {
    let (superblock, layout) = (&found.superblock, &found.layout);
    let bytes = |sector: u64| sector * SECTOR_BYTES;
    writeln!(out, "version \"v08\";\n")?;
    if unclean {
        writeln!(out, "This_is_an_unclean_meta_data_dump._Don't_trust_the_bitmap.\n")?;
    }
    writeln!(out, "# md_size_sect {}", layout.md_size_sectors)?;
    writeln!(out, "# md_offset {}", bytes(layout.superblock_sector))?;
    writeln!(out, "# al_offset {}", bytes(layout.al_sector()))?;
    writeln!(out, "# bm_offset {}\n", bytes(layout.bitmap_sector()))?;
    let uuids: Vec<_> = superblock.uuids.iter().map(|uuid| format!("0x{uuid:016X};")).collect();
    writeln!(out, "uuid {{\n    {}\n    flags 0x{:08X};\n}}", uuids.join(" "), superblock.flags.0)?;
    writeln!(out, "# al-extents {};", superblock.al_nr_extents)?;
    writeln!(out, "la-size-sect {};", superblock.la_size_sectors)?;
    writeln!(out, "bm-byte-per-bit {};", superblock.bm_bytes_per_bit)?;
    writeln!(out, "device-uuid 0x{:016X};", superblock.device_uuid)?;
    writeln!(out, "la-peer-max-bio-size {};", superblock.la_peer_max_bio_bytes)?;
    writeln!(out, "al-stripes {};", layout.striping.stripes)?;
    writeln!(out, "al-stripe-size-4k {};", layout.striping.stripe_size_4k)?;
    writeln!(out, "# bm-bytes {};", bitmap_bytes(superblock.la_size_sectors))
}

/// The bitmap in its two forms of lines.
fn write_bitmap(words: &[u64], out: &mut impl Write) -> std::io::Result<()> {
    writeln!(out, "bm {{")?;
    let mut at = 0;
    while at < words.len() {
        if at % ENTRIES_PER_PLACE == 0 {
            writeln!(out, "   # at {}kB", at * KIB_PER_ENTRY)?;
        }
        let run = run_length(&words[at..]);
        if run >= MIN_RUN {
            writeln!(out, "    {run} times 0x{:016X};", words[at])?;
            at += run;
            continue;
        }
        let line = &words[at..words.len().min(at + ENTRIES_PER_LINE)];
        let entries: Vec<_> = line.iter().map(|word| format!("0x{word:016X};")).collect();
        writeln!(out, "    {}", entries.join(" "))?;
        at += line.len();
    }
    let set: u64 = words.iter().map(|word| u64::from(word.count_ones())).sum();
    writeln!(out, "}}\n# bits-set {set};")
}

/// How many entries from here on go into one `times` line: runs are counted in units of four, and only of values both
/// halves of which are equal.
fn run_length(words: &[u64]) -> usize {
    let Some(&first) = words.first() else { return 0 };
    if first >> 32 != first & 0xFFFF_FFFF {
        return 0;
    }
    let run = words.iter().take_while(|word| **word == first).count();
    run - run % ENTRIES_PER_LINE
}

fn read_bitmap(device: &Device, found: &Found) -> Result<Vec<u64>, Failure> {
    let mut left = bitmap_bytes(found.superblock.la_size_sectors).min(found.layout.bitmap_sectors * SECTOR_BYTES);
    let mut sector = found.layout.bitmap_sector();
    let mut words = Vec::new();
    while left > 0 {
        let part = left.min(CHUNK_BYTES);
        let bytes = device.read(sector, part as usize)?;
        words.extend(bytes.chunks_exact(8).map(|word| {
            let mut le = [0; 8];
            le.copy_from_slice(word);
            u64::from_le_bytes(le)
        }));
        left -= part;
        sector += part / SECTOR_BYTES;
    }
    Ok(words)
}

/// What a dump says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dump {
    /// Current, bitmap, two history UUIDs.
    pub uuids: [u64; 4],
    /// Flags of the superblock.
    pub flags: u32,
    /// Last agreed size, sectors.
    pub la_size_sectors: u64,
    /// Id of the device.
    pub device_uuid: u64,
    /// Largest bio of the peer, bytes.
    pub la_peer_max_bio_bytes: u32,
    /// Stripes of the activity log.
    pub al_stripes: u32,
    /// Blocks in one of them.
    pub al_stripe_size_4k: u32,
    /// Runs of bitmap words: how many, which value.
    pub bitmap: Vec<(u64, u64)>,
}

impl Dump {
    /// Reads a dump.
    ///
    /// # Errors
    /// Exit code 10 with the line and what was expected there.
    pub fn parse(text: &str) -> Result<Dump, Failure> {
        let mut words = DumpWords::new(text);
        let mut dump = Dump::default();
        words.expect("version")?;
        words.expect("\"v08\"")?;
        words.expect(";")?;
        words.expect("uuid")?;
        words.expect("{")?;
        for uuid in &mut dump.uuids {
            *uuid = words.hexadecimal(16)?;
            words.expect(";")?;
        }
        dump.flags = words.named_hexadecimal("flags", 8)? as u32;
        words.expect("}")?;
        dump.la_size_sectors = words.named_decimal("la-size-sect")?;
        if words.named_decimal("bm-byte-per-bit")? != 4096 {
            return Err(words.failure("4096 bytes per bit"));
        }
        dump.device_uuid = words.named_hexadecimal("device-uuid", 16)?;
        dump.la_peer_max_bio_bytes = words.named_u32("la-peer-max-bio-size")?;
        dump.al_stripes = words.named_u32("al-stripes")?;
        dump.al_stripe_size_4k = words.named_u32("al-stripe-size-4k")?;
        words.expect("bm")?;
        words.expect("{")?;
        while words.peek() != Some("}") {
            let count = if words.peek().is_some_and(|word| word.starts_with("0x")) {
                1
            } else {
                let count = words.decimal()?;
                words.expect("times")?;
                count
            };
            dump.bitmap.push((count, words.hexadecimal(16)?));
            words.expect(";")?;
        }
        words.expect("}")?;
        match words.peek() {
            None => Ok(dump),
            Some(_) => Err(words.failure("the end of the file")),
        }
    }
}

/// The words of a dump with the lines they stand on.
struct DumpWords<'a> {
    words: Vec<(usize, &'a str)>,
    at: usize,
}

impl<'a> DumpWords<'a> {
    fn new(text: &'a str) -> Self {
        let mut words = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let code = line.split('#').next().unwrap_or("");
            for word in code.split_whitespace() {
                let mut rest = word;
                while let Some(at) = rest.find([';', '{', '}']) {
                    words.extend((at > 0).then(|| (index + 1, &rest[..at])));
                    words.push((index + 1, &rest[at..=at]));
                    rest = &rest[at + 1..];
                }
                words.extend((!rest.is_empty()).then_some((index + 1, rest)));
            }
        }
        DumpWords { words, at: 0 }
    }

    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.at).map(|(_, word)| *word)
    }

    fn failure(&self, expected: &str) -> Failure {
        let line = self.words.get(self.at).or(self.words.last()).map_or(1, |(line, _)| *line);
        let found = self.peek().map_or("the end of the file".to_owned(), |word| format!("'{word}'"));
        Failure::new(10, format!("dump, line {line}: expected {expected}, found {found}"))
    }

    fn expect(&mut self, word: &str) -> Result<(), Failure> {
        if self.peek() != Some(word) {
            return Err(self.failure(&format!("'{word}'")));
        }
        self.at += 1;
        Ok(())
    }

    fn hexadecimal(&mut self, digits: usize) -> Result<u64, Failure> {
        let text = self.peek().and_then(|word| word.strip_prefix("0x")).filter(|text| text.len() == digits);
        let value = text.and_then(|text| u64::from_str_radix(text, 16).ok());
        let value = value.ok_or_else(|| self.failure(&format!("0x and {digits} hexadecimal digits")))?;
        self.at += 1;
        Ok(value)
    }

    fn decimal(&mut self) -> Result<u64, Failure> {
        let value = self.peek().and_then(|word| word.parse().ok());
        let value = value.ok_or_else(|| self.failure("a number"))?;
        self.at += 1;
        Ok(value)
    }

    fn named_hexadecimal(&mut self, name: &str, digits: usize) -> Result<u64, Failure> {
        self.expect(name)?;
        let value = self.hexadecimal(digits)?;
        self.expect(";")?;
        Ok(value)
    }

    fn named_decimal(&mut self, name: &str) -> Result<u64, Failure> {
        self.expect(name)?;
        let value = self.decimal()?;
        self.expect(";")?;
        Ok(value)
    }

    fn named_u32(&mut self, name: &str) -> Result<u32, Failure> {
        u32::try_from(self.named_decimal(name)?).map_err(|_| self.failure("a smaller number"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bitmap_text(words: &[u64]) -> String {
        let mut out = Vec::new();
        write_bitmap(words, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn runs_and_single_entries() {
        assert_eq!(bitmap_text(&[]), "bm {\n}\n# bits-set 0;\n");
        let mut words = vec![u64::MAX; 32];
        words.extend([1, 2, 3, 4, 5]);
        words.extend([0; 9]);
        assert_eq!(
            bitmap_text(&words),
            "bm {\n   # at 0kB\n    32 times 0xFFFFFFFFFFFFFFFF;\n   # at 8192kB\n    \
             0x0000000000000001; 0x0000000000000002; 0x0000000000000003; 0x0000000000000004;\n    \
             0x0000000000000005; 0x0000000000000000; 0x0000000000000000; 0x0000000000000000;\n    \
             0x0000000000000000; 0x0000000000000000; 0x0000000000000000; 0x0000000000000000;\n    \
             0x0000000000000000; 0x0000000000000000;\n}\n# bits-set 2055;\n"
        );
    }

    const TEXT: &str = r#"# comment
version "v08";
uuid { 0x0000000000000004; 0x0000000000000001; 0x0000000000000000; 0x0000000000000000; flags 0x00000081; }
la-size-sect 204720; bm-byte-per-bit 4096; device-uuid 0x00000000000000AB; la-peer-max-bio-size 0;
al-stripes 1; al-stripe-size-4k 8;
bm { 16 times 0xFFFFFFFFFFFFFFFF; 0x0000000000000001; }
# bits-set 1025;
"#;

    #[test]
    fn a_dump_is_read() {
        let dump = Dump::parse(TEXT).unwrap();
        assert_eq!((dump.uuids[1], dump.flags, dump.la_size_sectors, dump.device_uuid), (1, 0x81, 204_720, 0xAB));
        assert_eq!(dump.bitmap, [(16, u64::MAX), (1, 1)]);
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (from, to, message) in [
            ("\"v08\"", "\"v09\"", "dump, line 2: expected '\"v08\"', found '\"v09\"'"),
            ("al-stripes", "al-strips", "dump, line 5: expected 'al-stripes', found 'al-strips'"),
            ("0x00000081", "81", "dump, line 3: expected 0x and 8 hexadecimal digits, found '81'"),
            ("}\n# bits", "\n# bits", "dump, line 6: expected a number, found the end of the file"),
            ("# bits", "x # bits", "dump, line 7: expected the end of the file, found 'x'"),
        ] {
            assert_eq!(Dump::parse(&TEXT.replacen(from, to, 1)).unwrap_err().message, message);
        }
    }
}
