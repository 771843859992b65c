// SPDX-License-Identifier: GPL-2.0
//! Packets of the handshake and of later changes of parameters: features, protocol, resync parameters, sizes, UUIDs.
//!
//! Values a peer chooses (protocol letter, policies) are kept as numbers: comparing them is the handshake's business.
// spec: wire-protocol 3.2, 4.2, 4.4, 4.5, 4.6, 4.7

use super::codec::{flags, layouts, DecodeError, Fields, Room, WireField};
use super::text::Text;
use super::{BufferTooSmall, Command, FEATURE_WSAME};

/// Flag of [`Protocol::conn_flags`]: the sender gives up its changes.
pub const CONN_DISCARD_MY_DATA: u32 = 1;
/// Flag of [`Protocol::conn_flags`]: the sender only wants to know what would happen.
pub const CONN_DRY_RUN: u32 = 2;
/// Flag of [`Sizes::dds_flags`]: assume that the peer has the space.
pub const DDS_FORCED: u16 = 1;
/// Flag of [`Sizes::dds_flags`]: new space is not resynchronised.
pub const DDS_NO_RESYNC: u16 = 2;

flags! {
    /// What a sender of UUIDs says about itself.
    UuidFlags: u64 {
        /// It gives up its changes.
        DISCARD_MY_DATA = 1,
        /// It was Primary when it crashed.
        CRASHED_PRIMARY = 2,
        /// The disk it is negotiating about is inconsistent.
        INCONSISTENT = 4,
        /// The initial resync is skipped.
        SKIP_INITIAL_SYNC = 8,
    }
}

layouts! {
    /// `P_UUIDS`: the sender's data generations.
    Uuids, 48 bytes exact, pad 0 {
        /// Current, bitmap, younger and older history UUID.
        uuids: [u64; 4],
        /// Set bits of the bitmap.
        dirty_bits: u64,
        /// What else there is to know.
        flags: UuidFlags,
    }

    /// `P_SYNC_UUID`: the resync begins, with this generation.
    SyncUuid, 8 bytes exact, pad 0 {
        /// The source's new bitmap UUID.
        uuid: u64,
    }

    /// What a queue can do; end of `P_SIZES` if the peers agreed on it. Receivers ignore the content.
    QueueLimits, 24 bytes exact, pad 1 {
        /// Bytes.
        physical_block_size: u32,
        /// Bytes.
        logical_block_size: u32,
        /// Bytes.
        alignment_offset: u32,
        /// Bytes.
        io_min: u32,
        /// Bytes.
        io_opt: u32,
        /// 0 or 1.
        discard_enabled: u8,
        /// Always 0.
        discard_zeroes_data: u8,
        /// Always 0.
        write_same_capable: u8,
    }
}

/// `P_CONNECTION_FEATURES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Oldest version the sender speaks.
    pub min: u32,
    /// Newest version the sender speaks; 0 stands for the oldest.
    pub max: u32,
    /// Features the sender offers.
    pub flags: u32,
}

impl Features {
    /// Bytes of the packet.
    pub const LEN: usize = 72;
    /// Bytes that are sent as zero and not read.
    const RESERVED: usize = 60;

    /// Reads the payload.
    ///
    /// # Errors
    /// [`DecodeError`] when it has not 72 bytes.
    pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        DecodeError::check(payload.len(), Self::LEN, Self::LEN)?;
        let mut fields = Fields::new(payload);
        let (min, flags, max) = (fields.get()?, fields.get()?, fields.get()?);
        Ok(Self { min, max, flags })
    }

    /// Writes the payload and returns its length.
    ///
    /// # Errors
    /// [`BufferTooSmall`].
    pub fn encode(&self, buffer: &mut [u8]) -> Result<usize, BufferTooSmall> {
        let mut room = Room::new(buffer);
        room.put(&self.min)?;
        room.put(&self.flags)?;
        room.put(&self.max)?;
        room.bytes(&[0; Self::RESERVED])?;
        Ok(room.written())
    }
}

/// `P_PROTOCOL` and `P_PROTOCOL_UPDATE`. All numbers are as received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// Protocol letter: 1 A, 2 B, 3 C.
    pub wire_protocol: u32,
    /// Policy after a split brain with no node Primary.
    pub after_sb_0p: u32,
    /// Policy after a split brain with one node Primary.
    pub after_sb_1p: u32,
    /// Policy after a split brain with both nodes Primary.
    pub after_sb_2p: u32,
    /// [`CONN_DISCARD_MY_DATA`], [`CONN_DRY_RUN`].
    pub conn_flags: u32,
    /// 1 if both nodes may be Primary.
    pub two_primaries: u32,
    /// Digest over the data the sender sends; empty for none, and below version 87.
    pub integrity_alg: Text<64>,
}

impl Protocol {
    /// Bytes of the fixed part.
    pub const LEN: usize = 24;
    /// Bytes of the longest packet.
    pub const MAX_LEN: usize = Self::LEN + 64;

    /// Reads the payload; a name that is not terminated loses its last byte.
    ///
    /// # Errors
    /// [`DecodeError`] when the fixed part is incomplete, or the name longer than the version allows.
    // spec: wire-protocol 4.4
    pub fn decode(apv: u32, payload: &[u8]) -> Result<Self, DecodeError> {
        let max = if apv >= 87 { Self::MAX_LEN } else { Self::LEN };
        DecodeError::check(payload.len(), Self::LEN, max)?;
        let mut fields = Fields::new(payload);
        Ok(Self {
            wire_protocol: fields.get()?,
            after_sb_0p: fields.get()?,
            after_sb_1p: fields.get()?,
            after_sb_2p: fields.get()?,
            conn_flags: fields.get()?,
            two_primaries: fields.get()?,
            integrity_alg: Text::truncated(payload.get(Self::LEN..).unwrap_or_default()),
        })
    }

    /// Writes the payload and returns its length.
    ///
    /// # Errors
    /// [`BufferTooSmall`].
    pub fn encode(&self, apv: u32, buffer: &mut [u8]) -> Result<usize, BufferTooSmall> {
        let mut room = Room::new(buffer);
        room.put(&self.wire_protocol)?;
        room.put(&self.after_sb_0p)?;
        room.put(&self.after_sb_1p)?;
        room.put(&self.after_sb_2p)?;
        room.put(&self.conn_flags)?;
        room.put(&self.two_primaries)?;
        if apv >= 87 {
            room.bytes(self.integrity_alg.as_bytes_with_nul())?;
        }
        Ok(room.written())
    }
}

/// Parameters of the resync controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Controller {
    /// 0.1 s.
    pub c_plan_ahead: u32,
    /// 0.1 s.
    pub c_delay_target: u32,
    /// Sectors.
    pub c_fill_target: u32,
    /// KiB/s.
    pub c_max_rate: u32,
}

/// `P_SYNC_PARAM` and `P_SYNC_PARAM89`: which one, and how much of it, depends on the version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyncParam {
    /// KiB/s.
    pub resync_rate: u32,
    /// Digest of the verification; empty for none, and below version 88.
    pub verify_alg: Text<64>,
    /// Digest of the checksum-based resync; empty for none, and below version 89.
    pub csums_alg: Text<64>,
    /// Parameters of the controller, from version 95 on. Not sent below.
    pub controller: Option<Controller>,
}

impl SyncParam {
    /// What a node without a disk sends.
    // spec: wire-protocol 4.5
    pub const WITHOUT_DISK: Self = Self {
        resync_rate: 250,
        verify_alg: Text::EMPTY,
        csums_alg: Text::EMPTY,
        controller: Some(Controller { c_plan_ahead: 20, c_delay_target: 10, c_fill_target: 100, c_max_rate: 102_400 }),
    };

    /// Bytes of the longest packet.
    pub const MAX_LEN: usize = 148;

    /// The command that carries it.
    #[must_use]
    pub const fn command(apv: u32) -> Command {
        if apv >= 89 {
            Command::SyncParam89
        } else {
            Command::SyncParam
        }
    }

    /// Shortest and longest payload of a version, in bytes.
    const fn lengths(apv: u32) -> (usize, usize) {
        match apv {
            0..=87 => (4, 4),
            88 => (4 + 1, 4 + 64),
            89..=94 => (132, 132),
            _ => (Self::MAX_LEN, Self::MAX_LEN),
        }
    }

    /// Reads the payload; names that are not terminated lose their last byte.
    ///
    /// # Errors
    /// [`DecodeError`] when the length is not that of the version.
    // spec: wire-protocol 4.5, 13 (H7)
    pub fn decode(apv: u32, payload: &[u8]) -> Result<Self, DecodeError> {
        let (min, max) = Self::lengths(apv);
        DecodeError::check(payload.len(), min, max)?;
        let mut fields = Fields::new(payload);
        let resync_rate = fields.get()?;
        let (verify_alg, csums_alg) = match apv {
            0..=87 => (Text::EMPTY, Text::EMPTY),
            88 => (Text::truncated(payload.get(4..).unwrap_or_default()), Text::EMPTY),
            _ => (fields.get()?, fields.get()?),
        };
        let controller = if apv >= 95 {
            Some(Controller {
                c_plan_ahead: fields.get()?,
                c_delay_target: fields.get()?,
                c_fill_target: fields.get()?,
                c_max_rate: fields.get()?,
            })
        } else {
            None
        };
        Ok(Self { resync_rate, verify_alg, csums_alg, controller })
    }

    /// Writes the payload of the version and returns its length. Without parameters of the controller, those of
    /// [`SyncParam::WITHOUT_DISK`] are sent.
    ///
    /// # Errors
    /// [`BufferTooSmall`].
    pub fn encode(&self, apv: u32, buffer: &mut [u8]) -> Result<usize, BufferTooSmall> {
        let mut room = Room::new(buffer);
        room.put(&self.resync_rate)?;
        if apv == 88 {
            room.bytes(self.verify_alg.as_bytes_with_nul())?;
        }
        if apv >= 89 {
            room.put(&self.verify_alg)?;
            room.put(&self.csums_alg)?;
        }
        if apv >= 95 {
            if let Some(controller) = self.controller.or(Self::WITHOUT_DISK.controller) {
                room.put(&controller.c_plan_ahead)?;
                room.put(&controller.c_delay_target)?;
                room.put(&controller.c_fill_target)?;
                room.put(&controller.c_max_rate)?;
            }
        }
        Ok(room.written())
    }
}

/// `P_SIZES`. All sizes are in sectors unless the name says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Usable size of the sender's disk in sectors, 0 without a disk.
    pub d_size: u64,
    /// Configured size in sectors, 0 for none.
    pub u_size: u64,
    /// Current size of the volume in sectors; 0 asks for a reply.
    pub c_size: u64,
    /// Largest request the sender takes, in bytes.
    pub max_bio_size: u32,
    /// Always 0.
    pub queue_order_type: u16,
    /// [`DDS_FORCED`], [`DDS_NO_RESYNC`].
    pub dds_flags: u16,
    /// Present if, and only if, the peers agreed on [`FEATURE_WSAME`].
    pub limits: Option<QueueLimits>,
}

impl Sizes {
    /// Bytes without queue limits.
    pub const LEN: usize = 32;
    /// Bytes with queue limits.
    pub const LEN_WITH_LIMITS: usize = Self::LEN + QueueLimits::LEN;

    /// Bytes of the packet with these agreed features.
    #[must_use]
    pub const fn len_with(features: u32) -> usize {
        if features & FEATURE_WSAME != 0 {
            Self::LEN_WITH_LIMITS
        } else {
            Self::LEN
        }
    }

    /// Reads the payload, with or without queue limits; whether they must be there is checked with the length of the
    /// packet ([`check_agreed_length`](super::check_agreed_length)).
    ///
    /// # Errors
    /// [`DecodeError`] when the payload has neither length.
    // spec: wire-protocol 3.2, 4.6
    pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let with_limits = payload.len() > Self::LEN;
        let len = if with_limits { Self::LEN_WITH_LIMITS } else { Self::LEN };
        DecodeError::check(payload.len(), len, len)?;
        let mut fields = Fields::new(payload);
        Ok(Self {
            d_size: fields.get()?,
            u_size: fields.get()?,
            c_size: fields.get()?,
            max_bio_size: fields.get()?,
            queue_order_type: fields.get()?,
            dds_flags: fields.get()?,
            limits: if with_limits { Some(fields.get()?) } else { None },
        })
    }

    /// Writes the payload and returns its length.
    ///
    /// # Errors
    /// [`BufferTooSmall`].
    pub fn encode(&self, buffer: &mut [u8]) -> Result<usize, BufferTooSmall> {
        let mut room = Room::new(buffer);
        room.put(&self.d_size)?;
        room.put(&self.u_size)?;
        room.put(&self.c_size)?;
        room.put(&self.max_bio_size)?;
        room.put(&self.queue_order_type)?;
        room.put(&self.dds_flags)?;
        if let Some(limits) = &self.limits {
            room.put(limits)?;
        }
        Ok(room.written())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{encode_packet, OWN_FEATURES, PRO_VERSION_MAX, PRO_VERSION_MIN};

    fn encoded(encode: impl Fn(&mut [u8]) -> Result<usize, BufferTooSmall>) -> Vec<u8> {
        let mut buffer = [0xaa; 256];
        let len = encode(&mut buffer).unwrap();
        for room in 0..len {
            assert_eq!(encode(&mut vec![0; room]), Err(BufferTooSmall));
        }
        buffer[..len].to_vec()
    }

    #[test]
    fn features_as_the_reference_sends_them() {
        let features = Features { min: PRO_VERSION_MIN, max: PRO_VERSION_MAX, flags: OWN_FEATURES };
        let bytes = encoded(|buffer| {
            encode_packet(80, 0, Command::ConnectionFeatures, 0, buffer, |rest| features.encode(rest))
        });
        let head = [0x83, 0x74, 2, 0x67, 0xff, 0xfe, 0, 0x48, 0, 0, 0, 0x56, 0, 0, 0, 0x0f, 0, 0, 0, 0x65];
        assert_eq!(bytes, [&head[..], &[0; 60]].concat());
        assert_eq!(Features::decode(&bytes[8..]), Ok(features));
        assert!(Features::decode(&bytes[9..]).is_err());
        assert!(Features::decode(&bytes[7..]).is_err());
    }

    #[test]
    fn protocol_with_and_without_name() {
        let protocol = Protocol {
            wire_protocol: 3,
            after_sb_0p: 1,
            after_sb_1p: 2,
            after_sb_2p: 99,
            conn_flags: CONN_DRY_RUN,
            two_primaries: 1,
            integrity_alg: Text::try_from("sha1").unwrap(),
        };
        let bytes = encoded(|buffer| protocol.encode(101, buffer));
        assert_eq!(bytes[..24], [0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 99, 0, 0, 0, 2, 0, 0, 0, 1]);
        assert_eq!(&bytes[24..], b"sha1\0");
        assert_eq!(Protocol::decode(101, &bytes), Ok(protocol));
        assert_eq!(Protocol::decode(86, &bytes), Err(DecodeError::TooLong { max: 24, found: 29 }));
        assert_eq!(encoded(|buffer| protocol.encode(86, buffer)).len(), 24);

        let unnamed = Protocol { integrity_alg: Text::EMPTY, ..protocol };
        assert_eq!(encoded(|buffer| unnamed.encode(87, buffer)).len(), 25, "a single NUL");
        assert_eq!(Protocol::decode(87, &bytes[..24]), Ok(unnamed), "no name at all is taken, too");
        assert_eq!(Protocol::decode(87, &bytes[..23]), Err(DecodeError::TooShort { needed: 24, found: 23 }));
        let unterminated = [&bytes[..24], &[b'x'; 64]].concat();
        assert_eq!(Protocol::decode(101, &unterminated).unwrap().integrity_alg.len(), 63);
        assert!(Protocol::decode(101, &[unterminated, vec![0]].concat()).is_err());
    }

    #[test]
    fn sync_param_in_all_its_versions() {
        let full = SyncParam {
            resync_rate: 250,
            verify_alg: Text::try_from("crc32c").unwrap(),
            csums_alg: Text::try_from("md5").unwrap(),
            controller: SyncParam::WITHOUT_DISK.controller,
        };
        let with_names = SyncParam { controller: None, ..full };
        let with_verify = SyncParam { csums_alg: Text::EMPTY, ..with_names };
        let plain = SyncParam { verify_alg: Text::EMPTY, ..with_verify };
        for (apv, len, received) in [
            (86, 4, plain),
            (87, 4, plain),
            (88, 4 + 7, with_verify),
            (89, 132, with_names),
            (94, 132, with_names),
            (95, 148, full),
            (101, 148, full),
        ] {
            let bytes = encoded(|buffer| full.encode(apv, buffer));
            assert_eq!(bytes.len(), len, "{apv}");
            assert_eq!(SyncParam::decode(apv, &bytes), Ok(received), "{apv}");
            if apv != 88 {
                assert!(SyncParam::decode(apv, &bytes[..len - 1]).is_err());
                assert!(SyncParam::decode(apv, &[bytes, vec![0]].concat()).is_err());
            }
        }
        assert!(SyncParam::decode(88, &[0; 4]).is_err(), "no name");
        assert!(SyncParam::decode(88, &[0; 68]).is_ok());
        assert!(SyncParam::decode(88, &[0; 69]).is_err());
        assert_eq!([88, 89].map(SyncParam::command), [Command::SyncParam, Command::SyncParam89]);
        let bytes = encoded(|buffer| full.encode(101, buffer));
        assert_eq!(bytes[132..], [0, 0, 0, 20, 0, 0, 0, 10, 0, 0, 0, 100, 0, 1, 0x90, 0]);
    }

    #[test]
    fn sizes_with_and_without_limits() {
        let limits = QueueLimits {
            physical_block_size: 4096,
            logical_block_size: 512,
            alignment_offset: 0,
            io_min: 4096,
            io_opt: 0,
            discard_enabled: 1,
            discard_zeroes_data: 0,
            write_same_capable: 0,
        };
        let sizes = Sizes {
            d_size: 1,
            u_size: 2,
            c_size: 3,
            max_bio_size: 1 << 20,
            queue_order_type: 0,
            dds_flags: DDS_NO_RESYNC,
            limits: Some(limits),
        };
        let bytes = encoded(|buffer| sizes.encode(buffer));
        assert_eq!(bytes.len(), Sizes::len_with(OWN_FEATURES));
        assert_eq!(bytes[24..32], [0, 0x10, 0, 0, 0, 0, 0, 2]);
        assert_eq!(bytes[52..], [1, 0, 0, 0]);
        assert_eq!(Sizes::decode(&bytes), Ok(sizes));
        let short = Sizes { limits: None, ..sizes };
        assert_eq!(Sizes::decode(&bytes[..32]), Ok(short));
        assert_eq!(encoded(|buffer| short.encode(buffer)).len(), Sizes::len_with(0));
        for len in [0, 31, 33, 55] {
            assert!(Sizes::decode(&bytes[..len]).is_err());
        }
        assert!(Sizes::decode(&[bytes, vec![0]].concat()).is_err());
    }

    #[test]
    fn uuids_round_trip() {
        let uuids = Uuids {
            uuids: [0x0102_0304_0506_0708, 0, 2, 3],
            dirty_bits: 4,
            flags: UuidFlags::CRASHED_PRIMARY | UuidFlags::SKIP_INITIAL_SYNC,
        };
        let bytes = encoded(|buffer| uuids.encode(buffer));
        assert_eq!(bytes[..8], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(bytes[47], 10);
        assert_eq!(Uuids::decode(&bytes), Ok(uuids));
        assert!(Uuids::decode(&bytes[..47]).is_err());
        assert!(Uuids::decode(&[&bytes[..], &[0]].concat()).is_err());

        let uuid = SyncUuid { uuid: 0x0102_0304_0506_0708 };
        let bytes = encoded(|buffer| uuid.encode(buffer));
        assert_eq!(SyncUuid::decode(&bytes), Ok(uuid));
        assert!(SyncUuid::decode(&bytes[..7]).is_err());
    }
}
