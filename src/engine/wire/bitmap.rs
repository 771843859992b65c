// SPDX-License-Identifier: GPL-2.0
//! The bitmap exchange: run lengths in a variable-length code, or plain words where that is shorter.
//!
//! The bitmap itself stays where it is: the sender asks it for runs and words ([`Bits`]), the receiver tells it ranges
//! and words ([`BitSink`]). Both sides keep the same two offsets and advance them by the same rules.
//!
//! # Invariants
//! * `bit_offset <= bit_count` and `word_offset <= word_count`, on both sides, whatever is received.
//! * `BitmapSender::next_packet` comes to an end: every packet but the last advances `word_offset` or `bit_offset`.
// spec: wire-protocol 8.3

use core::fmt;

use super::header::header_size;
use super::{BufferTooSmall, Command, SOCKET_BUFFER_BYTES};

/// A bitmap that is sent.
pub trait Bits {
    /// Number of bits.
    fn bit_count(&self) -> u64;

    /// Length of the run of bits with value `set` that starts at `start_bit`, up to the end of the bitmap; 0 if that
    /// bit has the other value or does not exist.
    fn run_length(&self, start_bit: u64, set: bool) -> u64;

    /// Bits `64 * index` to `64 * index + 63`, the first one least significant. Bits beyond the end may be anything.
    fn word(&self, index: u64) -> u64;
}

/// A bitmap that takes over what the peer sends.
pub trait BitSink {
    /// Sets `len` bits from `start_bit` on; the range lies inside the bitmap.
    fn set_range(&mut self, start_bit: u64, len: u64);

    /// Sets the bits of a word that are set in `word`; no bit beyond the end of the bitmap is.
    fn or_word(&mut self, index: u64, word: u64);
}

/// Most bytes of a payload at this version.
#[must_use]
pub const fn max_payload(apv: u32) -> usize {
    SOCKET_BUFFER_BYTES.saturating_sub(header_size(apv))
}

/// Bits in a word.
const WORD_BITS: u64 = 64;
/// Bytes in a word.
const WORD_BYTES: usize = 8;
/// The only code there is, in the low bits of the first byte of a compressed packet.
const CODE: u8 = 2;
/// First byte of a compressed packet: the first run is one of set bits.
const FIRST_RUN_SET: u8 = 0x80;
/// Oldest version that knows compressed bitmaps.
const APV_COMPRESSED: u32 = 90;

/// Where a transfer stands; both sides advance it by the same rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    bit_count: u64,
    bit: u64,
    word: u64,
}

impl Position {
    fn start(bit_count: u64) -> Self {
        Self { bit_count, bit: 0, word: 0 }
    }

    fn word_count(&self) -> u64 {
        self.bit_count.div_ceil(WORD_BITS)
    }

    /// Words of the next plain packet.
    fn plain_words(&self, apv: u32) -> usize {
        let room = max_payload(apv) / WORD_BYTES;
        usize::try_from(self.word_count().saturating_sub(self.word)).map_or(room, |left| left.min(room))
    }

    fn advance_plain(&mut self, words: usize) {
        self.word = self.word.saturating_add(words as u64).min(self.word_count());
        self.bit = self.word.saturating_mul(WORD_BITS).min(self.bit_count);
    }

    fn advance_compressed(&mut self, bit: u64) {
        self.bit = bit.min(self.bit_count);
        self.word = self.bit / WORD_BITS;
    }
}

/// The sending side of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapSender {
    position: Position,
    done: bool,
}

impl BitmapSender {
    /// A transfer of a bitmap with this many bits.
    #[must_use]
    pub fn new(bit_count: u64) -> Self {
        Self { position: Position::start(bit_count), done: false }
    }

    /// The first bit not yet sent; for progress reports.
    #[must_use]
    pub fn bit_offset(&self) -> u64 {
        self.position.bit
    }

    /// The last packet was written.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.done
    }

    /// The first word the next plain packet would carry.
    #[must_use]
    pub fn word_offset(&self) -> u64 {
        self.position.word
    }

    /// Writes the next packet's payload to the start of `buffer`: its command and length in bytes, or `None` when the
    /// transfer is over. `bits` must have as many bits as the transfer was made for.
    ///
    /// # Errors
    /// [`BufferTooSmall`] when the buffer has less than [`max_payload`] bytes; the transfer has not advanced then.
    pub fn next_packet(
        &mut self,
        bits: &impl Bits,
        apv: u32,
        use_rle: bool,
        buffer: &mut [u8],
    ) -> Result<Option<(Command, usize)>, BufferTooSmall> {
        let buffer = buffer.get_mut(..max_payload(apv)).ok_or(BufferTooSmall)?;
        if self.done {
            return Ok(None);
        }
        if use_rle && apv >= APV_COMPRESSED && self.position.bit < self.position.bit_count {
            if let Some((end, len)) = compress(bits, self.position, buffer) {
                self.position.advance_compressed(end);
                self.done = self.position.bit == self.position.bit_count;
                return Ok(Some((Command::CompressedBitmap, len)));
            }
            // Not worth it: back to the start of the word, and the next part goes plain.
            self.position.word = self.position.bit / WORD_BITS;
        }
        let words = self.position.plain_words(apv);
        copy_words(bits, self.position.word, words, buffer)?;
        self.position.advance_plain(words);
        // An empty packet is the end marker.
        self.done = words == 0;
        Ok(Some((Command::Bitmap, words.saturating_mul(WORD_BYTES))))
    }
}

fn copy_words(bits: &impl Bits, first: u64, words: usize, buffer: &mut [u8]) -> Result<(), BufferTooSmall> {
    let target = buffer.get_mut(..words.saturating_mul(WORD_BYTES)).ok_or(BufferTooSmall)?;
    for (index, to) in (first..).zip(target.chunks_exact_mut(WORD_BYTES)) {
        let valid = valid_bits(bits.bit_count(), index);
        to.copy_from_slice(&(bits.word(index) & valid).to_le_bytes());
    }
    Ok(())
}

/// The bits of a word that lie inside the bitmap.
fn valid_bits(bit_count: u64, index: u64) -> u64 {
    match bit_count.saturating_sub(index.saturating_mul(WORD_BITS)) {
        left @ 0..=63 => (1u64 << left) - 1,
        _ => u64::MAX,
    }
}

/// Fills a compressed packet: the first bit after it and its length, or `None` when plain words are shorter.
fn compress(bits: &impl Bits, position: Position, buffer: &mut [u8]) -> Option<(u64, usize)> {
    let (head, code) = buffer.split_first_mut()?;
    let first_run_set = bits.run_length(position.bit, false) == 0;
    let mut stream = CodeWriter::new(code);
    let mut bit = position.bit;
    let mut set = first_run_set;
    while bit < position.bit_count {
        // A run cannot be empty, unless somebody changes the bitmap meanwhile; then this packet ends here.
        let run = bits.run_length(bit, set).min(position.bit_count.saturating_sub(bit));
        if run == 0 || !stream.put_run(run) {
            break;
        }
        bit = bit.saturating_add(run);
        set = !set;
    }
    let code_bytes = stream.bits.div_ceil(8);
    let covered = bit.saturating_sub(position.bit);
    if covered == 0 || covered < (code_bytes as u64).saturating_mul(8) {
        return None;
    }
    let unused = (8 - stream.bits % 8) % 8;
    *head = CODE | ((unused as u8) << 4) | if first_run_set { FIRST_RUN_SET } else { 0 };
    Some((bit, code_bytes.saturating_add(1)))
}

/// One row of the code: code words start with `prefix`, followed by the run length minus `smallest`.
struct Level {
    prefix_bits: u32,
    prefix: u64,
    data_bits: u32,
    smallest: u64,
}

impl Level {
    const fn new(prefix_bits: u32, prefix: u64, data_bits: u32, smallest: u64) -> Self {
        Self { prefix_bits, prefix, data_bits, smallest }
    }

    fn bits(&self) -> usize {
        (self.prefix_bits + self.data_bits) as usize
    }

    fn largest(&self) -> u64 {
        self.smallest.saturating_add(low_bits(u64::MAX, self.data_bits))
    }
}

const LEVELS: [Level; 10] = [
    Level::new(1, 0x00, 1, 1),
    Level::new(2, 0x01, 1, 3),
    Level::new(3, 0x03, 2, 5),
    Level::new(4, 0x07, 3, 9),
    Level::new(5, 0x0f, 5, 17),
    Level::new(6, 0x1f, 8, 49),
    Level::new(8, 0x3f, 13, 305),
    Level::new(8, 0x7f, 21, 8497),
    Level::new(8, 0xbf, 34, 2_105_649),
    Level::new(8, 0xff, 56, 17_181_974_833),
];

/// The code word of a run and its length in bits; `None` for a run no code word stands for.
fn code_word(run: u64) -> Option<(u64, usize)> {
    let level = LEVELS.iter().find(|level| (level.smallest..=level.largest()).contains(&run))?;
    Some(((run.checked_sub(level.smallest)? << level.prefix_bits) | level.prefix, level.bits()))
}

/// The run the look-ahead starts with and the length of its code word in bits.
fn run_of(look_ahead: u64) -> Option<(u64, usize)> {
    let level = LEVELS.iter().find(|level| low_bits(look_ahead, level.prefix_bits) == level.prefix)?;
    let data = low_bits(look_ahead >> level.prefix_bits, level.data_bits);
    Some((data.checked_add(level.smallest)?, level.bits()))
}

fn low_bits(value: u64, bits: u32) -> u64 {
    value & 1u64.checked_shl(bits).map_or(u64::MAX, |limit| limit - 1)
}

/// Appends code words to a stream of bits, least significant bit of each byte first.
struct CodeWriter<'a> {
    bytes: &'a mut [u8],
    bits: usize,
}

impl<'a> CodeWriter<'a> {
    fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes, bits: 0 }
    }

    /// False, and nothing written, when the code word does not fit any more.
    fn put_run(&mut self, run: u64) -> bool {
        let Some((code, len)) = code_word(run) else {
            return false;
        };
        let end = self.bits.saturating_add(len);
        let (first, shift) = (self.bits / 8, self.bits % 8);
        let Some(target) = self.bytes.get_mut(first..end.div_ceil(8)) else {
            return false;
        };
        let shifted = u128::from(code) << shift;
        for (index, (to, from)) in target.iter_mut().zip(shifted.to_le_bytes()).enumerate() {
            // The first byte may have the end of the previous word; the others are what the buffer held before.
            *to = if index == 0 && shift != 0 { *to | from } else { from };
        }
        self.bits = end;
        true
    }
}

/// Takes code words from a stream of bits.
struct CodeReader<'a> {
    bytes: &'a [u8],
    position: usize,
    end: usize,
}

impl CodeReader<'_> {
    fn left(&self) -> usize {
        self.end.saturating_sub(self.position)
    }

    /// The next run; `None` when its code word is longer than what is left.
    fn next_run(&mut self) -> Option<u64> {
        let (run, len) = run_of(self.look_ahead())?;
        self.position = self.position.checked_add(len).filter(|&end| end <= self.end)?;
        Some(run)
    }

    /// The next 64 bits; zeros behind the end.
    fn look_ahead(&self) -> u64 {
        let mut window = [0; 16];
        let bytes = self.bytes.get(self.position / 8..).unwrap_or_default();
        for (to, from) in window.iter_mut().zip(bytes.iter().take(9)) {
            *to = *from;
        }
        (u128::from_le_bytes(window) >> (self.position % 8)) as u64
    }
}

/// Whether a transfer is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The whole bitmap was received.
    Done,
    /// More packets follow.
    More,
}

/// Why a bitmap packet was refused; the connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitmapError {
    /// It is no bitmap packet.
    Command(Command),
    /// A plain packet has not the size it must have.
    PlainSize {
        /// Bytes it must have.
        expected: usize,
        /// Bytes it has.
        found: usize,
    },
    /// A compressed packet is too small or too large.
    CompressedSize {
        /// Bytes it has.
        found: usize,
    },
    /// The code is unknown.
    Encoding {
        /// Its number.
        found: u8,
    },
    /// The last code word is incomplete.
    CodeWord {
        /// Where the run would have started.
        bit_offset: u64,
    },
    /// A run reaches beyond the end of the bitmap.
    Run {
        /// Where it starts.
        bit_offset: u64,
        /// Its length in bits.
        len: u64,
        /// Bits of the bitmap.
        bit_count: u64,
    },
}

impl fmt::Display for BitmapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Command(command) => write!(f, "{} is no bitmap packet", command.name()),
            Self::PlainSize { expected, found } => write!(f, "plain packet of {found} bytes, expected {expected}"),
            Self::CompressedSize { found } => write!(f, "compressed packet of {found} bytes"),
            Self::Encoding { found } => write!(f, "unknown encoding {found}"),
            Self::CodeWord { bit_offset } => write!(f, "incomplete code word at bit {bit_offset}"),
            Self::Run { bit_offset, len, bit_count } => {
                write!(f, "run of {len} bits at bit {bit_offset} leaves the bitmap of {bit_count} bits")
            }
        }
    }
}

/// The receiving side of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapReceiver {
    position: Position,
    apv: u32,
}

impl BitmapReceiver {
    /// A transfer of a bitmap with this many bits at this version.
    #[must_use]
    pub fn new(bit_count: u64, apv: u32) -> Self {
        Self { position: Position::start(bit_count), apv }
    }

    /// The first bit not yet received; for progress reports.
    #[must_use]
    pub fn bit_offset(&self) -> u64 {
        self.position.bit
    }

    /// Takes over one packet.
    ///
    /// # Errors
    /// [`BitmapError`]; a part of the packet may have been taken over then, which is harmless: bits are only set.
    pub fn packet(
        &mut self,
        command: Command,
        payload: &[u8],
        sink: &mut impl BitSink,
    ) -> Result<Progress, BitmapError> {
        match command {
            Command::Bitmap => self.plain(payload, sink),
            Command::CompressedBitmap => self.compressed(payload, sink),
            other => Err(BitmapError::Command(other)),
        }
    }

    fn plain(&mut self, payload: &[u8], sink: &mut impl BitSink) -> Result<Progress, BitmapError> {
        let words = self.position.plain_words(self.apv);
        let expected = words.saturating_mul(WORD_BYTES);
        if payload.len() != expected {
            return Err(BitmapError::PlainSize { expected, found: payload.len() });
        }
        for (index, bytes) in (self.position.word..).zip(payload.chunks_exact(WORD_BYTES)) {
            let word = bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
            let inside = word & valid_bits(self.position.bit_count, index);
            if inside != 0 {
                sink.or_word(index, inside);
            }
        }
        self.position.advance_plain(words);
        Ok(if words == 0 { Progress::Done } else { Progress::More })
    }

    fn compressed(&mut self, payload: &[u8], sink: &mut impl BitSink) -> Result<Progress, BitmapError> {
        let found = payload.len();
        let (&head, code) = payload.split_first().ok_or(BitmapError::CompressedSize { found })?;
        if code.is_empty() || found > max_payload(self.apv) {
            return Err(BitmapError::CompressedSize { found });
        }
        if head & 0x0f != CODE {
            return Err(BitmapError::Encoding { found: head & 0x0f });
        }
        let unused = usize::from((head >> 4) & 7);
        let mut stream = CodeReader { bytes: code, position: 0, end: code.len().saturating_mul(8) - unused };
        let bit_count = self.position.bit_count;
        let mut bit = self.position.bit;
        let mut set = head & FIRST_RUN_SET != 0;
        while stream.left() > 0 {
            let len = stream.next_run().ok_or(BitmapError::CodeWord { bit_offset: bit })?;
            let outside = BitmapError::Run { bit_offset: bit, len, bit_count };
            let end = bit.checked_add(len).filter(|&end| end <= bit_count).ok_or(outside)?;
            if set {
                sink.set_range(bit, len);
            }
            bit = end;
            set = !set;
        }
        self.position.advance_compressed(bit);
        Ok(if bit == bit_count { Progress::Done } else { Progress::More })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bitmap as plain as possible.
    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Plain(Vec<bool>);

    impl Plain {
        fn of_runs(runs: &[(usize, bool)]) -> Self {
            Self(runs.iter().flat_map(|&(len, set)| std::iter::repeat_n(set, len)).collect())
        }
    }

    impl Bits for Plain {
        fn bit_count(&self) -> u64 {
            self.0.len() as u64
        }

        fn run_length(&self, start_bit: u64, set: bool) -> u64 {
            self.0[start_bit as usize..].iter().take_while(|&&bit| bit == set).count() as u64
        }

        fn word(&self, index: u64) -> u64 {
            let bits = &self.0[index as usize * 64..];
            let inside = bits.iter().take(64).rev().fold(0, |word, &bit| (word << 1) | u64::from(bit));
            // What lies beyond the end must not reach the wire.
            inside | !valid_bits(self.bit_count(), index)
        }
    }

    impl BitSink for Plain {
        fn set_range(&mut self, start_bit: u64, len: u64) {
            self.0[start_bit as usize..(start_bit + len) as usize].fill(true);
        }

        fn or_word(&mut self, index: u64, word: u64) {
            for bit in (0..64).filter(|bit| (word >> bit) & 1 != 0) {
                self.0[index as usize * 64 + bit] = true;
            }
        }
    }

    /// xorshift64*: small, seeded, the same everywhere.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
        }

        fn below(&mut self, limit: u64) -> u64 {
            self.next() % limit
        }
    }

    fn in_transmission_order(run: u64) -> String {
        let (code, len) = code_word(run).unwrap();
        (0..len).map(|bit| if (code >> bit) & 1 != 0 { '1' } else { '0' }).collect()
    }

    #[test]
    fn code_words_of_the_specification() {
        for (run, bits) in [
            (1, "00"),
            (2, "01"),
            (3, "100"),
            (4, "101"),
            (5, "11000"),
            (8, "11011"),
            (9, "1110000"),
            (16, "1110111"),
            (17, "1111000000"),
            (48, "1111011111"),
            (49, "11111000000000"),
            (304, "11111011111111"),
            (305, "111111000000000000000"),
            (8496, "111111001111111111111"),
        ] {
            assert_eq!(in_transmission_order(run), bits, "{run}");
        }
        for (run, code, len) in [
            (8497, 0x7f, 29),
            (2_105_648, 0x1fff_ff7f, 29),
            (2_105_649, 0xbf, 42),
            (17_181_974_832, 0x3ff_ffff_ffbf, 42),
            (17_181_974_833, 0xff, 64),
        ] {
            assert_eq!(code_word(run), Some((code, len)), "{run}");
        }
        assert_eq!(code_word(0), None);
        assert_eq!(code_word(72_057_611_219_902_769), None);
    }

    #[test]
    fn every_level_is_read_as_it_is_written() {
        for (level, next) in LEVELS.iter().zip(LEVELS.iter().skip(1)) {
            assert_eq!(level.largest() + 1, next.smallest);
        }
        assert_eq!(LEVELS[9].largest(), 72_057_611_219_902_768);
        for level in &LEVELS {
            for run in [level.smallest, level.smallest + 1, level.largest()] {
                let (code, len) = code_word(run).unwrap();
                assert_eq!(run_of(code), Some((run, len)));
            }
        }
    }

    #[test]
    fn every_pattern_is_a_code_word_of_one_level() {
        for pattern in 0..=0xffu64 {
            let matching = LEVELS.iter().filter(|level| low_bits(pattern, level.prefix_bits) == level.prefix);
            assert_eq!(matching.count(), 1, "{pattern:#x}");
        }
    }

    /// Sends and receives a whole bitmap; returns the packets.
    fn transfer(bits: &Plain, into: &mut Plain, apv: u32, use_rle: bool) -> Vec<(Command, Vec<u8>)> {
        let mut sender = BitmapSender::new(bits.bit_count());
        let mut receiver = BitmapReceiver::new(bits.bit_count(), apv);
        let mut packets = Vec::new();
        let mut progress = Progress::More;
        // Garbage in the buffer must not reach the wire.
        let mut buffer = [0x5a; 4096];
        while let Some((command, len)) = sender.next_packet(bits, apv, use_rle, &mut buffer).unwrap() {
            assert_eq!(progress, Progress::More, "a packet after the last one");
            progress = receiver.packet(command, &buffer[..len], into).unwrap();
            assert_eq!(receiver.position, sender.position);
            packets.push((command, buffer[..len].to_vec()));
        }
        assert_eq!(progress, Progress::Done);
        packets
    }

    fn payload_of(runs: &[(usize, bool)]) -> Vec<u8> {
        let bits = Plain::of_runs(runs);
        let mut into = Plain(vec![false; bits.0.len()]);
        let packets = transfer(&bits, &mut into, 101, true);
        assert_eq!(into, bits);
        assert_eq!(packets.len(), 1);
        assert_eq!(packets[0].0, Command::CompressedBitmap);
        packets[0].1.clone()
    }

    #[test]
    fn payloads_of_the_specification() {
        assert_eq!(payload_of(&[(262_144, true)]), [0xb2, 0x7f, 0xcf, 0xde, 0x03]);
        assert_eq!(payload_of(&[(262_144, false)]), [0x32, 0x7f, 0xcf, 0xde, 0x03]);
        assert_eq!(
            payload_of(&[(1000, false), (24, true), (261_120, false)]),
            [0x42, 0x3f, 0xb7, 0xe2, 0x9d, 0xbf, 0x67, 0xed, 0x01]
        );
        assert_eq!(payload_of(&[(8, true), (262_136, false)]), [0xe2, 0xfb, 0xef, 0xd8, 0x7b, 0x00]);
    }

    #[test]
    fn plain_transfers_end_with_an_empty_packet() {
        let bits = Plain::of_runs(&[(70_000, true)]);
        for (apv, use_rle, room) in [(101, false, 4080), (99, false, 4088), (89, true, 4088)] {
            let mut into = Plain(vec![false; 70_000]);
            let packets = transfer(&bits, &mut into, apv, use_rle);
            assert_eq!(into, bits);
            assert!(packets.iter().all(|(command, _)| *command == Command::Bitmap));
            let lengths: Vec<_> = packets.iter().map(|(_, payload)| payload.len()).collect();
            assert_eq!(lengths, [room, room, 70_000usize.div_ceil(64) * 8 - 2 * room, 0]);
        }
    }

    #[test]
    fn words_are_little_endian_and_end_with_the_bitmap() {
        let bits = Plain::of_runs(&[(1, true), (63, false), (2, true)]);
        let packets = transfer(&bits, &mut Plain(vec![false; 66]), 101, false);
        assert_eq!(packets[0].1, [1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn bits_that_alternate_are_not_compressed() {
        let bits = Plain((0..100_000).map(|bit| bit % 2 == 0).collect());
        let mut into = Plain(vec![false; 100_000]);
        let packets = transfer(&bits, &mut into, 101, true);
        assert_eq!(into, bits);
        assert!(packets.iter().all(|(command, _)| *command == Command::Bitmap));
        assert!(packets.last().unwrap().1.is_empty());
    }

    #[test]
    fn both_kinds_of_packets_follow_each_other() {
        let mut random = Random(7);
        let mut bits = Plain::of_runs(&[(100_001, true), (100_000, false)]);
        bits.0.extend((0..80_000).map(|_| random.below(2) == 0));
        bits.0.extend([true; 200_000]);
        let mut into = Plain(vec![false; bits.0.len()]);
        let kinds: Vec<_> = transfer(&bits, &mut into, 101, true).iter().map(|(command, _)| *command).collect();
        assert_eq!(into, bits);
        assert!(kinds.contains(&Command::Bitmap) && kinds.contains(&Command::CompressedBitmap));
        assert_eq!(kinds.last(), Some(&Command::CompressedBitmap), "no end marker after it");
    }

    #[test]
    fn what_was_set_stays_set() {
        let bits = Plain::of_runs(&[(500, false), (500, true)]);
        let before = Plain::of_runs(&[(100, true), (900, false)]);
        for use_rle in [true, false] {
            let mut into = before.clone();
            transfer(&bits, &mut into, 101, use_rle);
            assert_eq!(into, Plain::of_runs(&[(100, true), (400, false), (500, true)]));
        }
    }

    #[test]
    fn random_bitmaps_arrive_as_they_were() {
        let mut random = Random(0x1234_5678_9abc_def1);
        for round in 0..300 {
            let bit_count = random.below(if round % 10 == 0 { 300_000 } else { 3000 }) as usize;
            let magnitude = random.below(14);
            let longest = 1 + random.below(1 << magnitude);
            let mut bits = Plain(Vec::new());
            while bits.0.len() < bit_count {
                let len = (1 + random.below(longest)) as usize;
                let set = random.below(2) == 0;
                bits.0.extend(std::iter::repeat_n(set, len.min(bit_count - bits.0.len())));
            }
            for apv in [89, 95, 101] {
                for use_rle in [true, false] {
                    let mut into = Plain(vec![false; bit_count]);
                    transfer(&bits, &mut into, apv, use_rle);
                    assert!(into == bits, "round {round}, apv {apv}, rle {use_rle}");
                }
            }
        }
    }

    #[test]
    fn an_empty_bitmap_is_an_end_marker() {
        let packets = transfer(&Plain(vec![]), &mut Plain(vec![]), 101, true);
        assert_eq!(packets, [(Command::Bitmap, vec![])]);
    }

    #[test]
    fn a_buffer_that_is_too_small_changes_nothing() {
        let bits = Plain::of_runs(&[(100, true)]);
        let mut sender = BitmapSender::new(100);
        assert_eq!(sender.next_packet(&bits, 101, true, &mut [0; 4079]), Err(BufferTooSmall));
        assert_eq!(sender, BitmapSender::new(100));
    }

    fn received(bit_count: usize, command: Command, payload: &[u8]) -> Result<Progress, BitmapError> {
        let mut into = Plain(vec![false; bit_count]);
        BitmapReceiver::new(bit_count as u64, 101).packet(command, payload, &mut into)
    }

    #[test]
    fn bad_packets_are_refused() {
        let compressed = |payload: &[u8]| received(100, Command::CompressedBitmap, payload);
        assert_eq!(received(100, Command::State, &[]), Err(BitmapError::Command(Command::State)));
        for found in [0, 8, 15, 17] {
            let error = BitmapError::PlainSize { expected: 16, found };
            assert_eq!(received(100, Command::Bitmap, &vec![0; found]), Err(error));
        }
        assert_eq!(compressed(&[]), Err(BitmapError::CompressedSize { found: 0 }));
        assert_eq!(compressed(&[0x02]), Err(BitmapError::CompressedSize { found: 1 }));
        assert_eq!(compressed(&[0x02; 4081]), Err(BitmapError::CompressedSize { found: 4081 }));
        assert_eq!(compressed(&[0x03, 0]), Err(BitmapError::Encoding { found: 3 }));
        assert_eq!(compressed(&[0x02, 0xff]), Err(BitmapError::CodeWord { bit_offset: 0 }));
        assert_eq!(compressed(&[0x72, 0x01]), Err(BitmapError::CodeWord { bit_offset: 0 }), "one bit is no code word");
        // A run of 101 bits, set or clear: level 6, 52 more than its smallest.
        let code = ((52u16 << 6) | 0x1f).to_le_bytes();
        for first in [0xa2, 0x22] {
            let error = BitmapError::Run { bit_offset: 0, len: 101, bit_count: 100 };
            assert_eq!(compressed(&[first, code[0], code[1]]), Err(error));
        }
        // One of 100 bits is the whole bitmap.
        let code = ((51u16 << 6) | 0x1f).to_le_bytes();
        assert_eq!(compressed(&[0xa2, code[0], code[1]]), Ok(Progress::Done));
    }

    #[test]
    fn padding_bits_of_a_peer_are_dropped() {
        let mut into = Plain(vec![false; 70]);
        let progress = BitmapReceiver::new(70, 101).packet(Command::Bitmap, &[0xff; 16], &mut into);
        assert_eq!((progress, into), (Ok(Progress::More), Plain(vec![true; 70])));
    }

    #[test]
    fn random_bytes_never_panic() {
        let mut random = Random(99);
        for _ in 0..20_000 {
            let bit_count = random.below(5000) as usize;
            let mut payload: Vec<u8> = (0..random.below(40)).map(|_| random.next() as u8).collect();
            if let Some(head) = payload.first_mut() {
                *head = *head & 0xf0 | CODE;
            }
            let mut into = Plain(vec![false; bit_count]);
            let mut receiver = BitmapReceiver::new(bit_count as u64, 101);
            for _ in 0..3 {
                if receiver.packet(Command::CompressedBitmap, &payload, &mut into).is_err() {
                    break;
                }
                assert!(receiver.bit_offset() <= bit_count as u64);
            }
        }
    }
}
