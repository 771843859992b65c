// SPDX-License-Identifier: GPL-2.0
//! The network protocol, versions 86 to 101: bytes on the wire to typed values and back.
//!
//! A packet is a [`Header`], a fixed part (the structs of the family modules) and, in some packets, what follows it
//! (digest, data, code bytes). A receiver decodes the header, looks the command up ([`Command::from_u16`]), checks
//! the length ([`check_length`]) and decodes the fixed part. Nothing here keeps state, except the bitmap transfer.
//!
//! Integers are big endian. "apv" is the agreed protocol version of a connection, 80 before it is agreed.

pub mod bitmap;
pub mod block;
mod codec;
pub mod command;
pub mod header;
pub mod parameters;
pub mod state;
pub mod text;

pub use bitmap::{BitSink, BitmapError, BitmapReceiver, BitmapSender, Bits, Progress};
pub use block::{
    Barrier, BarrierAck, BlockAck, BlockDesc, BlockRequest, Data, DataFlags, DelayProbe, Trim, ID_IN_SYNC,
    ID_OUT_OF_SYNC, ID_SYNCER,
};
pub use codec::{DecodeError, WireField};
pub use command::{check_agreed_length, check_length, Command, LengthError, PacketSpec, Socket, PACKETS};
pub use header::{encode_packet, header_size, Header, HeaderError, HeaderFormat};
pub use parameters::{
    Controller, Features, Protocol, QueueLimits, Sizes, SyncParam, SyncUuid, UuidFlags, Uuids, CONN_DISCARD_MY_DATA,
    CONN_DRY_RUN, DDS_FORCED, DDS_NO_RESYNC,
};
pub use state::{StateReply, StateRequest, StateWord};
pub use text::{Text, TextTooLong};

/// The buffer given to an encoder has no room for what was to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferTooSmall;

/// Oldest protocol version spoken.
// spec: wire-protocol 0
pub const PRO_VERSION_MIN: u32 = 86;
/// Newest protocol version spoken.
pub const PRO_VERSION_MAX: u32 = 101;
/// The apv that counts until the peers agreed on one.
pub const PRO_VERSION_BEFORE_FEATURES: u32 = 80;

/// Feature: `P_TRIM` is understood.
pub const FEATURE_TRIM: u32 = 1;
/// Feature: `P_RS_THIN_REQ` and `P_RS_DEALLOCATED` are understood.
pub const FEATURE_THIN_RESYNC: u32 = 2;
/// Feature: `P_SIZES` carries queue limits, discards may have 128 MiB. Nothing else.
pub const FEATURE_WSAME: u32 = 4;
/// Feature: `P_ZEROES` is understood, `P_TRIM` is a plain discard.
pub const FEATURE_WZEROES: u32 = 8;
/// The features this side offers.
pub const OWN_FEATURES: u32 = FEATURE_TRIM | FEATURE_THIN_RESYNC | FEATURE_WSAME | FEATURE_WZEROES;

/// Bytes of a sector, the unit of every `sector` field.
pub const SECTOR_BYTES: u32 = 512;
/// Bytes of data one bit of the bitmap stands for.
pub const BLOCK_BYTES: u32 = 4096;
/// Largest bitmap packet with its header, in bytes.
pub const SOCKET_BUFFER_BYTES: usize = 4096;
/// Bytes of a shared secret, its NUL included.
pub const SHARED_SECRET_MAX: usize = 64;
/// Longest digest a packet may carry, in bytes.
pub const MAX_DIGEST_BYTES: u32 = 128;
/// Most data one packet may carry, in bytes; receivers take it at any apv.
pub const MAX_DATA_BYTES: u32 = 1 << 20;
/// Most bytes one `P_TRIM` or `P_ZEROES` may be about; receivers take it with any features.
pub const MAX_TRIM_BYTES: u32 = 128 << 20;
/// Most bytes of a `P_TRIM` to a peer without [`FEATURE_WSAME`].
pub const MAX_TRIM_BYTES_WITHOUT_WSAME: u32 = 4 << 20;
/// Largest volume number.
pub const VOLUME_MAX: u16 = 65534;
/// Current UUID of a device whose meta-data was just made.
pub const UUID_JUST_CREATED: u64 = 4;
/// What a source adds to its bitmap UUID for a resync.
pub const UUID_NEW_BM_OFFSET: u64 = 0x0001_0000_0000_0000;

/// Largest `max_bio_size` to announce, in bytes.
// spec: wire-protocol 2 (size limits)
#[must_use]
pub const fn max_bio_size_announced(apv: u32) -> u32 {
    match apv {
        0..=94 => 32 << 10,
        95..=99 => 128 << 10,
        _ => MAX_DATA_BYTES,
    }
}

/// Most data to put into one packet, in bytes, towards a peer that announced `peer_max_bio_size`.
// spec: wire-protocol 2 (size limits)
#[must_use]
pub const fn max_data_bytes(apv: u32, peer_max_bio_size: u32) -> u32 {
    let limit = max_bio_size_announced(apv);
    if apv < 94 && peer_max_bio_size < limit {
        peer_max_bio_size
    } else {
        limit
    }
}

/// Most bytes of one discard towards a peer with these agreed features.
// spec: wire-protocol 2 (size limits)
#[must_use]
pub const fn max_trim_bytes(features: u32) -> u32 {
    if features & FEATURE_WSAME != 0 {
        MAX_TRIM_BYTES
    } else {
        MAX_TRIM_BYTES_WITHOUT_WSAME
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_limits_by_version() {
        assert_eq!(OWN_FEATURES, 0xf);
        assert_eq!(
            [86, 94, 95, 99, 100, 101].map(max_bio_size_announced),
            [32768, 32768, 131072, 131072, 1 << 20, 1 << 20]
        );
        assert_eq!(max_data_bytes(93, 4096), 4096);
        assert_eq!(max_data_bytes(93, 1 << 20), 32768);
        assert_eq!(max_data_bytes(94, 4096), 32768);
        assert_eq!(max_data_bytes(101, 4096), 1 << 20);
        assert_eq!([0, FEATURE_WSAME, OWN_FEATURES].map(max_trim_bytes), [4 << 20, 128 << 20, 128 << 20]);
    }
}
