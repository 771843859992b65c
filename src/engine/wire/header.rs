// SPDX-License-Identifier: GPL-2.0
//! Packet headers: three formats, told apart by their magic; which one is used depends on the agreed version.
// spec: wire-protocol 2

use core::fmt;

use super::codec::{Fields, Room};
use super::{BufferTooSmall, Command};

/// The three formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderFormat {
    /// Magic u32, command u16, length u16.
    H80,
    /// Magic u16, command u16, length u32.
    H95,
    /// Magic u32, volume u16, command u16, length u32, four zero bytes.
    H100,
}

const MAGIC_H80: [u8; 4] = [0x83, 0x74, 0x02, 0x67];
const MAGIC_H95: [u8; 2] = [0x83, 0x5a];
const MAGIC_H100: [u8; 4] = [0x86, 0x20, 0xec, 0x20];

/// Longest payload that goes with [`HeaderFormat::H80`] where there is a choice, in bytes.
const H80_MAX_LENGTH: u32 = 32768;

/// Bytes of the largest header.
pub const MAX_HEADER_SIZE: usize = 16;

/// Bytes of a header at this version (80 before the features are exchanged).
#[must_use]
pub const fn header_size(apv: u32) -> usize {
    if apv >= 100 {
        16
    } else {
        8
    }
}

impl HeaderFormat {
    /// The format a sender uses.
    #[must_use]
    pub const fn to_send(apv: u32, length: u32) -> Self {
        match apv {
            100.. => Self::H100,
            95..=99 if length > H80_MAX_LENGTH => Self::H95,
            _ => Self::H80,
        }
    }
}

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Number of the command, not yet checked against the catalogue.
    pub command: u16,
    /// Volume; 0 below version 100 and in packets about the whole connection.
    pub volume: u16,
    /// Bytes that follow the header.
    pub length: u32,
}

/// The bytes are no header of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// There are not enough bytes.
    TooShort {
        /// Bytes of a header.
        needed: usize,
        /// Bytes there.
        found: usize,
    },
    /// They do not start with a magic of this version.
    Magic {
        /// The first four bytes as a big-endian number.
        found: u32,
    },
    /// The zero bytes at the end are not zero.
    Pad {
        /// Those bytes as a big-endian number.
        found: u32,
    },
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TooShort { needed, found } => write!(f, "{found} bytes, a header has {needed}"),
            Self::Magic { found } => write!(f, "it starts with {found:#010x}, which is no magic of this version"),
            Self::Pad { found } => write!(f, "padding is {found:#010x}, expected 0"),
        }
    }
}

impl Header {
    /// Reads the header at the start of `bytes`.
    ///
    /// # Errors
    /// [`HeaderError`]: the connection cannot go on.
    pub fn decode(apv: u32, bytes: &[u8]) -> Result<Self, HeaderError> {
        let too_short = HeaderError::TooShort { needed: header_size(apv), found: bytes.len() };
        let bytes = bytes.get(..header_size(apv)).ok_or(too_short)?;
        let mut fields = Fields::new(bytes);
        // Cannot fail: the length was checked.
        let magic = fields.array::<4>().map_err(|_| too_short)?;
        let rest = &mut fields;
        if apv >= 100 {
            if magic != MAGIC_H100 {
                return Err(HeaderError::Magic { found: u32::from_be_bytes(magic) });
            }
            Self::decode_h100(rest).ok_or(too_short)?
        } else if magic == MAGIC_H80 {
            Self::decode_h80(rest).ok_or(too_short)
        } else if magic.starts_with(&MAGIC_H95) {
            let [_, _, command_0, command_1] = magic;
            let length = rest.get().map_err(|_| too_short)?;
            Ok(Self { command: u16::from_be_bytes([command_0, command_1]), volume: 0, length })
        } else {
            Err(HeaderError::Magic { found: u32::from_be_bytes(magic) })
        }
    }

    fn decode_h80(rest: &mut Fields<'_>) -> Option<Self> {
        let command = rest.get().ok()?;
        let length = rest.get::<u16>().ok()?;
        Some(Self { command, volume: 0, length: length.into() })
    }

    fn decode_h100(rest: &mut Fields<'_>) -> Option<Result<Self, HeaderError>> {
        let volume = rest.get().ok()?;
        let command = rest.get().ok()?;
        let length = rest.get().ok()?;
        let found = rest.get::<u32>().ok()?;
        let header = Self { command, volume, length };
        Some(if found == 0 { Ok(header) } else { Err(HeaderError::Pad { found }) })
    }

    /// Writes the header in the format a sender uses and returns its size in bytes.
    ///
    /// # Errors
    /// [`BufferTooSmall`] when there is no room, or the format has none for this length (above 65535 bytes below
    /// version 95, where no packet is that long).
    pub fn encode(&self, apv: u32, buffer: &mut [u8]) -> Result<usize, BufferTooSmall> {
        let mut room = Room::new(buffer);
        match HeaderFormat::to_send(apv, self.length) {
            HeaderFormat::H80 => {
                let length = u16::try_from(self.length).map_err(|_| BufferTooSmall)?;
                room.bytes(&MAGIC_H80)?;
                room.put(&self.command)?;
                room.put(&length)?;
            }
            HeaderFormat::H95 => {
                room.bytes(&MAGIC_H95)?;
                room.put(&self.command)?;
                room.put(&self.length)?;
            }
            HeaderFormat::H100 => {
                room.bytes(&MAGIC_H100)?;
                room.put(&self.volume)?;
                room.put(&self.command)?;
                room.put(&self.length)?;
                room.put(&0u32)?;
            }
        }
        Ok(room.written())
    }
}

/// Writes a header and, behind it, what `payload` writes; `following` more bytes (digest, data) will be sent after
/// them and count in the length. Returns the bytes written.
///
/// # Errors
/// [`BufferTooSmall`] when there is no room, or the length is more than a header can say.
pub fn encode_packet(
    apv: u32,
    volume: u16,
    command: Command,
    following: u32,
    buffer: &mut [u8],
    payload: impl FnOnce(&mut [u8]) -> Result<usize, BufferTooSmall>,
) -> Result<usize, BufferTooSmall> {
    let (head, rest) = buffer.split_at_mut_checked(header_size(apv)).ok_or(BufferTooSmall)?;
    let written = payload(rest)?;
    let fixed = u32::try_from(written).map_err(|_| BufferTooSmall)?;
    let length = fixed.checked_add(following).ok_or(BufferTooSmall)?;
    let header = Header { command: command.as_u16(), volume, length };
    header.encode(apv, head)?.checked_add(written).ok_or(BufferTooSmall)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(apv: u32, header: Header) -> Vec<u8> {
        let mut buffer = [0xaa; MAX_HEADER_SIZE];
        let len = header.encode(apv, &mut buffer).unwrap();
        assert_eq!(len, header_size(apv));
        buffer[..len].to_vec()
    }

    #[test]
    fn the_bytes_of_the_specification() {
        let first = |command| encoded(80, Header { command, volume: 0, length: 0 });
        assert_eq!(first(0xfff2), [0x83, 0x74, 0x02, 0x67, 0xff, 0xf2, 0, 0]);
        assert_eq!(first(0xfff1), [0x83, 0x74, 0x02, 0x67, 0xff, 0xf1, 0, 0]);
        let ping = encoded(101, Header { command: 0x13, volume: 0, length: 0 });
        assert_eq!(ping, [0x86, 0x20, 0xec, 0x20, 0, 0, 0, 0x13, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn senders_choose_by_version_and_length() {
        let format = |apv, length| HeaderFormat::to_send(apv, length);
        assert_eq!([80, 86, 94].map(|apv| format(apv, 32769)), [HeaderFormat::H80; 3]);
        assert_eq!([95, 99].map(|apv| format(apv, 32768)), [HeaderFormat::H80; 2]);
        assert_eq!([95, 99].map(|apv| format(apv, 32769)), [HeaderFormat::H95; 2]);
        assert_eq!([100, 101].map(|apv| format(apv, 0)), [HeaderFormat::H100; 2]);
        let long = Header { command: 0, volume: 0, length: 65536 };
        assert_eq!(long.encode(94, &mut [0; 16]), Err(BufferTooSmall));
        assert_eq!(encoded(95, long), [0x83, 0x5a, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn round_trips_and_truncation() {
        for apv in [80, 86, 94, 95, 99, 100, 101] {
            for length in [0, 24, 32768, 32769, 65535] {
                let header = Header { command: 0x2a, volume: if apv >= 100 { 7 } else { 0 }, length };
                let bytes = encoded(apv, header);
                assert_eq!(Header::decode(apv, &bytes), Ok(header));
                for found in 0..bytes.len() {
                    let error = HeaderError::TooShort { needed: bytes.len(), found };
                    assert_eq!(Header::decode(apv, &bytes[..found]), Err(error));
                    assert_eq!(header.encode(apv, &mut vec![0; found]), Err(BufferTooSmall));
                }
            }
        }
    }

    #[test]
    fn below_100_both_old_formats_are_taken_at_any_version() {
        let h95 = [0x83, 0x5a, 0, 0x0e, 0, 0, 0, 4];
        let header = Header { command: 0x0e, volume: 0, length: 4 };
        assert_eq!(Header::decode(86, &h95), Ok(header));
        assert_eq!(Header::decode(99, &h95), Ok(header));
    }

    #[test]
    fn errors_say_what_was_found() {
        let mut h100 = encoded(101, Header { command: 0x13, volume: 0, length: 0 });
        assert_eq!(Header::decode(99, &h100), Err(HeaderError::Magic { found: 0x8620_ec20 }));
        h100[15] = 1;
        assert_eq!(Header::decode(101, &h100), Err(HeaderError::Pad { found: 1 }));
        let h80 = encoded(80, Header { command: 0x13, volume: 0, length: 0 });
        let padded = [h80.as_slice(), &[0; 8]].concat();
        assert_eq!(Header::decode(101, &padded), Err(HeaderError::Magic { found: 0x8374_0267 }));
    }

    #[test]
    fn whole_packets() {
        let mut buffer = [0; 64];
        let len = encode_packet(101, 3, Command::Data, 4096, &mut buffer, |rest| {
            rest[..24].fill(1);
            Ok(24)
        });
        assert_eq!(len, Ok(40));
        assert_eq!(Header::decode(101, &buffer), Ok(Header { command: 0, volume: 3, length: 24 + 4096 }));
        assert_eq!(encode_packet(101, 0, Command::Ping, 0, &mut [0; 15], |_| Ok(0)), Err(BufferTooSmall));
        assert_eq!(encode_packet(101, 0, Command::Data, u32::MAX, &mut buffer, |_| Ok(1)), Err(BufferTooSmall));
    }
}
