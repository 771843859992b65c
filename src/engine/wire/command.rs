// SPDX-License-Identifier: GPL-2.0
//! The packet catalogue: number, name, socket and length of every packet.
// spec: wire-protocol 3.1

use core::fmt;

use super::{FEATURE_WSAME, MAX_DATA_BYTES, MAX_DIGEST_BYTES};

/// The connection a packet travels on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Socket {
    /// Requests, data, parameters, states, bitmaps.
    Data,
    /// Acknowledgements and keep-alive.
    Meta,
    /// Either.
    Both,
}

impl Socket {
    /// Whether a packet of this row may arrive on `socket`.
    #[must_use]
    pub fn accepts(self, socket: Self) -> bool {
        self == Self::Both || self == socket
    }
}

/// One row of the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketSpec {
    /// The command.
    pub command: Command,
    /// Its name.
    pub name: &'static str,
    /// Where it travels.
    pub socket: Socket,
    /// Bytes of the fixed part, the least a packet has.
    pub fixed_len: u32,
    /// More may follow the fixed part: digest, data, code bytes, a name.
    pub more: bool,
    /// The most bytes a packet has.
    pub max_len: u32,
    /// A reader of an established connection takes it; otherwise it is one of the handshake or nobody sends it.
    pub handled: bool,
}

/// Most bytes of a packet that carries a digest and data.
const DATA_MAX: u32 = 24 + MAX_DIGEST_BYTES + MAX_DATA_BYTES;
/// Most bytes of a packet that carries a digest.
const DIGEST_MAX: u32 = 24 + MAX_DIGEST_BYTES;
/// Most bytes of a bitmap packet.
const BITMAP_MAX: u32 = 4096 - 8;

macro_rules! packets {
    ($($number:literal $command:ident $name:literal $socket:ident $min:literal ..= $max:expr, $handled:ident;)+) => {
        /// A command, by its number in the packet header.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum Command {
            $(#[doc = concat!("`", $name, "`.")] $command = $number,)+
        }

        /// The catalogue, by number.
        pub static PACKETS: &[PacketSpec] = &[$($command),+];

        $(#[allow(non_upper_case_globals)]
        const $command: PacketSpec = PacketSpec {
            command: Command::$command,
            name: $name,
            socket: Socket::$socket,
            fixed_len: $min,
            more: $max > $min,
            max_len: $max,
            handled: packets!(@handled $handled),
        };)+

        impl Command {
            /// The command with this number; `None` for numbers that are reserved or unknown.
            #[must_use]
            pub const fn from_u16(number: u16) -> Option<Self> {
                match number {
                    $($number => Some(Self::$command),)+
                    _ => None,
                }
            }

            /// Its row of the catalogue.
            #[must_use]
            pub const fn spec(self) -> &'static PacketSpec {
                match self {
                    $(Self::$command => &$command,)+
                }
            }
        }
    };
    (@handled handled) => { true };
    (@handled handshake) => { false };
    (@handled unused) => { false };
}

packets! {
    0x00 Data "P_DATA" Data 24..=DATA_MAX, handled;
    0x01 DataReply "P_DATA_REPLY" Data 24..=DATA_MAX, handled;
    0x02 RsDataReply "P_RS_DATA_REPLY" Data 24..=DATA_MAX, handled;
    0x03 Barrier "P_BARRIER" Data 8..=8, handled;
    0x04 Bitmap "P_BITMAP" Data 0..=BITMAP_MAX, handled;
    0x05 BecomeSyncTarget "P_BECOME_SYNC_TARGET" Data 0..=0, unused;
    0x06 BecomeSyncSource "P_BECOME_SYNC_SOURCE" Data 0..=0, unused;
    0x07 UnplugRemote "P_UNPLUG_REMOTE" Data 0..=0, handled;
    0x08 DataRequest "P_DATA_REQUEST" Data 24..=24, handled;
    0x09 RsDataRequest "P_RS_DATA_REQUEST" Data 24..=24, handled;
    0x0a SyncParam "P_SYNC_PARAM" Data 0..=148, handled;
    0x0b Protocol "P_PROTOCOL" Data 24..=24 + 64, handled;
    0x0c Uuids "P_UUIDS" Data 48..=48, handled;
    // With queue limits if agreed: `check_agreed_length`.
    0x0d Sizes "P_SIZES" Data 32..=56, handled;
    0x0e State "P_STATE" Data 4..=4, handled;
    0x0f SyncUuid "P_SYNC_UUID" Data 8..=8, handled;
    0x10 AuthChallenge "P_AUTH_CHALLENGE" Data 64..=128, handshake;
    0x11 AuthResponse "P_AUTH_RESPONSE" Data 0..=MAX_DIGEST_BYTES, handshake;
    0x12 StateChgReq "P_STATE_CHG_REQ" Data 8..=8, handled;
    0x13 Ping "P_PING" Meta 0..=0, handled;
    0x14 PingAck "P_PING_ACK" Meta 0..=0, handled;
    0x15 RecvAck "P_RECV_ACK" Meta 24..=24, handled;
    0x16 WriteAck "P_WRITE_ACK" Meta 24..=24, handled;
    0x17 RsWriteAck "P_RS_WRITE_ACK" Meta 24..=24, handled;
    0x18 Superseded "P_SUPERSEDED" Meta 24..=24, handled;
    0x19 NegAck "P_NEG_ACK" Meta 24..=24, handled;
    0x1a NegDreply "P_NEG_DREPLY" Meta 24..=24, handled;
    0x1b NegRsDreply "P_NEG_RS_DREPLY" Meta 24..=24, handled;
    0x1c BarrierAck "P_BARRIER_ACK" Meta 8..=8, handled;
    0x1d StateChgReply "P_STATE_CHG_REPLY" Meta 4..=4, handled;
    0x1e OvRequest "P_OV_REQUEST" Data 24..=24, handled;
    0x1f OvReply "P_OV_REPLY" Data 24..=DIGEST_MAX, handled;
    0x20 OvResult "P_OV_RESULT" Meta 24..=24, handled;
    0x21 CsumRsRequest "P_CSUM_RS_REQUEST" Data 24..=DIGEST_MAX, handled;
    0x22 RsIsInSync "P_RS_IS_IN_SYNC" Meta 24..=24, handled;
    0x23 SyncParam89 "P_SYNC_PARAM89" Data 0..=148, handled;
    0x24 CompressedBitmap "P_COMPRESSED_BITMAP" Data 0..=BITMAP_MAX, handled;
    0x27 DelayProbe "P_DELAY_PROBE" Both 8..=8, handled;
    0x28 OutOfSync "P_OUT_OF_SYNC" Data 16..=16, handled;
    0x29 RsCancel "P_RS_CANCEL" Meta 24..=24, handled;
    0x2a ConnStChgReq "P_CONN_ST_CHG_REQ" Data 8..=8, handled;
    0x2b ConnStChgReply "P_CONN_ST_CHG_REPLY" Meta 4..=4, handled;
    0x2c RetryWrite "P_RETRY_WRITE" Meta 24..=24, handled;
    0x2d ProtocolUpdate "P_PROTOCOL_UPDATE" Data 24..=24 + 64, handled;
    0x31 Trim "P_TRIM" Data 28..=28, handled;
    0x32 RsThinReq "P_RS_THIN_REQ" Data 24..=24, handled;
    0x33 RsDeallocated "P_RS_DEALLOCATED" Data 16..=16, handled;
    0x34 Wsame "P_WSAME" Data 0..=0, unused;
    0x36 Zeroes "P_ZEROES" Data 28..=28, handled;
    0xfff1 InitialMeta "P_INITIAL_META" Meta 0..=0, handshake;
    0xfff2 InitialData "P_INITIAL_DATA" Data 0..=0, handshake;
    0xfffe ConnectionFeatures "P_CONNECTION_FEATURES" Data 72..=72, handshake;
}

impl Command {
    /// Its number.
    #[must_use]
    pub const fn as_u16(self) -> u16 {
        self as u16
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.spec().name
    }
}

/// A packet has a length its command cannot have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LengthError {
    /// The command.
    pub command: Command,
    /// The length in the header, in bytes.
    pub length: u32,
    /// The least it can have.
    pub min: u32,
    /// The most it can have.
    pub max: u32,
}

impl fmt::Display for LengthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, length, min, max } = *self;
        write!(f, "{} with {length} bytes, expected {min} to {max}", command.name())
    }
}

/// Checks the length of a header against the catalogue.
///
/// # Errors
/// [`LengthError`].
// spec: wire-protocol 11.1 (wrong-length rule)
pub fn check_length(command: Command, length: u32) -> Result<(), LengthError> {
    let PacketSpec { fixed_len, max_len, .. } = *command.spec();
    check_range(command, length, fixed_len, max_len)?;
    if command == Command::Sizes && length != fixed_len && length != max_len {
        return Err(LengthError { command, length, min: fixed_len, max: max_len });
    }
    Ok(())
}

/// As [`check_length`], with the agreed features, which decide on the length of `P_SIZES`.
///
/// # Errors
/// [`LengthError`].
pub fn check_agreed_length(command: Command, length: u32, features: u32) -> Result<(), LengthError> {
    if command != Command::Sizes {
        return check_length(command, length);
    }
    let PacketSpec { fixed_len, max_len, .. } = *command.spec();
    let len = if features & FEATURE_WSAME != 0 { max_len } else { fixed_len };
    check_range(command, length, len, len)
}

fn check_range(command: Command, length: u32, min: u32, max: u32) -> Result<(), LengthError> {
    if (min..=max).contains(&length) {
        Ok(())
    } else {
        Err(LengthError { command, length, min, max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::OWN_FEATURES;

    #[test]
    fn numbers_and_rows_agree() {
        assert_eq!(PACKETS.len(), 52);
        for spec in PACKETS {
            assert_eq!(Command::from_u16(spec.command.as_u16()), Some(spec.command));
            assert_eq!(spec.command.spec(), spec);
            assert_eq!(spec.more, spec.max_len > spec.fixed_len);
        }
        let numbers: Vec<_> = PACKETS.iter().map(|spec| spec.command.as_u16()).collect();
        assert!(numbers.is_sorted());
        for reserved in [0x25, 0x26, 0x2e, 0x2f, 0x30, 0x35, 0x37, 0x40, 0x48, 0x100, 0xfff3, 0xffff] {
            assert_eq!(Command::from_u16(reserved), None, "{reserved:#x}");
        }
    }

    #[test]
    fn some_rows_of_the_catalogue() {
        for (number, name, socket, len) in [
            (0x00, "P_DATA", Socket::Data, 24),
            (0x0e, "P_STATE", Socket::Data, 4),
            (0x1c, "P_BARRIER_ACK", Socket::Meta, 8),
            (0x20, "P_OV_RESULT", Socket::Meta, 24),
            (0x2a, "P_CONN_ST_CHG_REQ", Socket::Data, 8),
            (0x2c, "P_RETRY_WRITE", Socket::Meta, 24),
            (0x33, "P_RS_DEALLOCATED", Socket::Data, 16),
            (0x36, "P_ZEROES", Socket::Data, 28),
        ] {
            let spec = Command::from_u16(number).unwrap().spec();
            assert_eq!((spec.name, spec.socket, spec.fixed_len, spec.handled), (name, socket, len, true));
        }
        for unhandled in ["P_BECOME_SYNC_TARGET", "P_BECOME_SYNC_SOURCE", "P_WSAME", "P_AUTH_CHALLENGE"] {
            assert!(!PACKETS.iter().find(|spec| spec.name == unhandled).unwrap().handled);
        }
        assert!(Command::DelayProbe.spec().socket.accepts(Socket::Meta));
        assert!(!Command::Ping.spec().socket.accepts(Socket::Data));
    }

    #[test]
    fn lengths() {
        assert_eq!(check_length(Command::Ping, 0), Ok(()));
        let error = LengthError { command: Command::Ping, length: 1, min: 0, max: 0 };
        assert_eq!(check_length(Command::Ping, 1), Err(error));
        assert!(check_length(Command::Data, 23).is_err());
        assert!(check_length(Command::Data, 24 + 64 + (1 << 20)).is_ok());
        assert!(check_length(Command::Data, u32::MAX).is_err());
        assert!(check_length(Command::Protocol, 88).is_ok());
        assert!(check_length(Command::Protocol, 89).is_err());
        assert!([32, 56].iter().all(|&length| check_length(Command::Sizes, length).is_ok()));
        assert!([31, 33, 55, 57].iter().all(|&length| check_length(Command::Sizes, length).is_err()));
        assert!(check_agreed_length(Command::Sizes, 56, OWN_FEATURES).is_ok());
        assert!(check_agreed_length(Command::Sizes, 32, OWN_FEATURES).is_err());
        assert!(check_agreed_length(Command::Sizes, 32, 0).is_ok());
        assert!(check_agreed_length(Command::State, 5, 0).is_err());
    }
}
