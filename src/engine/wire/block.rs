// SPDX-License-Identifier: GPL-2.0
//! Packets about ranges of the device: writes, reads, resync, verification, their acknowledgements, barriers.
//!
//! A `block_id` belongs to whoever made it: a receiver sends its eight bytes back unchanged, and so it does with the
//! four bytes of a barrier number. Both are read and written here in the same order, so a value that is echoed is
//! echoed bit for bit.
// spec: wire-protocol 3.2, 3.3, 3.4

use super::codec::{flags, layouts, DecodeError, Fields, Room, WireField};
use super::BufferTooSmall;

/// `block_id` of everything that belongs to resync or verification.
pub const ID_SYNCER: u64 = u64::MAX;
/// `block_id` of a `P_OV_RESULT`: the block is equal on both nodes.
pub const ID_IN_SYNC: u64 = 4711;
/// `block_id` of a `P_OV_RESULT`: the block differs.
pub const ID_OUT_OF_SYNC: u64 = 4712;

flags! {
    /// Properties of a write.
    // spec: wire-protocol 3.3
    DataFlags: u32 {
        /// Never sent, ignored.
        HARDBARRIER = 1,
        /// The application waits for it.
        RW_SYNC = 2,
        /// The sender is in a resync or verification: the receiver may clear the bits and answer `P_RS_WRITE_ACK`.
        MAY_SET_IN_SYNC = 4,
        /// Never sent, ignored.
        UNPLUG = 8,
        /// To be on stable storage when completed.
        FUA = 16,
        /// The disk's cache is to be flushed before.
        FLUSH = 32,
        /// A discard; together with [`DataFlags::ZEROES`]: unmapping is allowed.
        DISCARD = 64,
        /// The writer waits for `P_RECV_ACK`.
        SEND_RECEIVE_ACK = 128,
        /// The writer waits for `P_WRITE_ACK` or `P_RS_WRITE_ACK`.
        SEND_WRITE_ACK = 256,
        /// Never sent, ignored.
        WSAME = 512,
        /// Zeroes are to be written.
        ZEROES = 1024,
    }
}

layouts! {
    /// `P_DATA`, `P_DATA_REPLY`, `P_RS_DATA_REPLY`; digest and data follow.
    Data, 24 bytes prefix, pad 0 {
        /// First sector.
        sector: u64,
        /// The writer's handle, or [`ID_SYNCER`].
        block_id: u64,
        /// Sequence number of the volume's packets; 0 in replies.
        seq: u32,
        /// Properties; none in replies.
        flags: DataFlags,
    }

    /// `P_TRIM` and `P_ZEROES`.
    Trim, 28 bytes exact, pad 0 {
        /// As of a write.
        data: Data,
        /// Length of the range in bytes.
        size_bytes: u32,
    }

    /// Every positive and negative acknowledgement of a block, `P_OV_RESULT`, `P_RS_IS_IN_SYNC`, `P_RS_CANCEL`.
    BlockAck, 24 bytes exact, pad 0 {
        /// First sector.
        sector: u64,
        /// The `block_id` that is answered, or [`ID_SYNCER`], [`ID_IN_SYNC`], [`ID_OUT_OF_SYNC`].
        block_id: u64,
        /// Length of the range in bytes.
        size_bytes: u32,
        /// Sequence number of the volume's packets.
        seq: u32,
    }

    /// `P_DATA_REQUEST`, `P_RS_DATA_REQUEST`, `P_RS_THIN_REQ`, `P_OV_REQUEST`; in `P_CSUM_RS_REQUEST` and
    /// `P_OV_REPLY` a digest follows.
    BlockRequest, 24 bytes prefix, pad 4 {
        /// First sector.
        sector: u64,
        /// The reader's handle, or [`ID_SYNCER`].
        block_id: u64,
        /// Length of the range in bytes.
        size_bytes: u32,
    }

    /// `P_OUT_OF_SYNC` and `P_RS_DEALLOCATED`.
    BlockDesc, 16 bytes exact, pad 4 {
        /// First sector.
        sector: u64,
        /// Length of the range in bytes.
        size_bytes: u32,
    }

    /// `P_BARRIER`: ends an epoch.
    Barrier, 8 bytes exact, pad 4 {
        /// The epoch's number; opaque to the receiver.
        number: u32,
    }

    /// `P_BARRIER_ACK`: every write of the epoch is on the disk or was refused.
    BarrierAck, 8 bytes exact, pad 0 {
        /// The epoch's number as it was received.
        number: u32,
        /// Writes of the epoch.
        set_size: u32,
    }

    /// `P_DELAY_PROBE`: never sent, ignored.
    DelayProbe, 8 bytes exact, pad 0 {
        /// A number.
        seq: u32,
        /// Microseconds.
        offset_us: u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: Data = Data {
        sector: 0x0102_0304_0506_0708,
        block_id: 0x1112_1314_1516_1718,
        seq: 0x2122_2324,
        flags: DataFlags(0x3132_3334),
    };
    const DATA_BYTES: [u8; 24] = [
        1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x21, 0x22, 0x23, 0x24, 0x31, 0x32,
        0x33, 0x34,
    ];

    /// Encoding gives these bytes, decoding them gives the packet back, and no shorter payload or buffer will do.
    macro_rules! check_layout {
        ($packet:expr, $name:ident, $bytes:expr) => {{
            let (packet, bytes) = ($packet, $bytes);
            let mut buffer = [0xaa; 64];
            assert_eq!(packet.encode(&mut buffer), Ok($name::LEN));
            assert_eq!(&buffer[..$name::LEN], bytes);
            assert_eq!(buffer[$name::LEN], 0xaa);
            assert_eq!($name::decode(&bytes[..]), Ok(packet));
            for found in 0..$name::LEN {
                let error = DecodeError::TooShort { needed: $name::LEN, found };
                assert_eq!($name::decode(&bytes[..found]), Err(error));
                assert_eq!(packet.encode(&mut vec![0; found]), Err(BufferTooSmall));
            }
        }};
    }

    #[test]
    fn layouts_are_those_of_the_specification() {
        check_layout!(DATA, Data, DATA_BYTES);
        let trim = Trim { data: DATA, size_bytes: 0x4142_4344 };
        check_layout!(trim, Trim, [&DATA_BYTES[..], b"ABCD"].concat());
        let ack = BlockAck { sector: 1, block_id: ID_OUT_OF_SYNC, size_bytes: 4096, seq: 5 };
        let bytes = [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x12, 0x68, 0, 0, 0x10, 0, 0, 0, 0, 5];
        check_layout!(ack, BlockAck, bytes);
        let request = BlockRequest { sector: 8, block_id: ID_SYNCER, size_bytes: 512 };
        let bytes = [&[0, 0, 0, 0, 0, 0, 0, 8][..], &[0xff; 8], &[0, 0, 2, 0, 0, 0, 0, 0]].concat();
        check_layout!(request, BlockRequest, bytes);
        let range = BlockDesc { sector: 8, size_bytes: 512 };
        check_layout!(range, BlockDesc, [0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 2, 0, 0, 0, 0, 0]);
        check_layout!(Barrier { number: 0x0102_0304 }, Barrier, [1, 2, 3, 4, 0, 0, 0, 0]);
        check_layout!(BarrierAck { number: 0x0102_0304, set_size: 2 }, BarrierAck, [1, 2, 3, 4, 0, 0, 0, 2]);
        check_layout!(DelayProbe { seq: 1, offset_us: 2 }, DelayProbe, [0, 0, 0, 1, 0, 0, 0, 2]);
    }

    #[test]
    fn only_packets_with_digest_or_data_may_be_longer() {
        let long = [0; 64];
        assert!(Data::decode(&long).is_ok());
        assert!(BlockRequest::decode(&long).is_ok());
        assert_eq!(Trim::decode(&long[..29]), Err(DecodeError::TooLong { max: 28, found: 29 }));
        assert_eq!(BlockAck::decode(&long[..25]), Err(DecodeError::TooLong { max: 24, found: 25 }));
        assert!(BlockDesc::decode(&long[..17]).is_err());
        assert!(Barrier::decode(&long[..9]).is_err());
        assert!(BarrierAck::decode(&long[..9]).is_err());
        assert!(DelayProbe::decode(&long[..9]).is_err());
    }

    #[test]
    fn padding_is_not_read() {
        let mut bytes = [0; 24];
        bytes[20..].fill(0xee);
        assert_eq!(BlockRequest::decode(&bytes), Ok(BlockRequest { sector: 0, block_id: 0, size_bytes: 0 }));
    }

    #[test]
    fn flags_keep_unknown_bits() {
        let flags = DataFlags(0x8000_0000) | DataFlags::ZEROES | DataFlags::DISCARD;
        assert!(flags.contains(DataFlags::ZEROES));
        assert!(!flags.contains(DataFlags::ZEROES | DataFlags::FUA));
        assert_eq!(flags.without(DataFlags::DISCARD).0, 0x8000_0400);
        assert_eq!(DataFlags::NONE.with_if(false, DataFlags::FUA), DataFlags::NONE);
    }
}
