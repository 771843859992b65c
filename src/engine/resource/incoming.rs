// SPDX-License-Identifier: GPL-2.0
//! What comes from the peer: every byte is checked here before anything is believed.
//!
//! The owner reads a header, asks how much belongs to the fixed part, reads that, and hands both over; application data
//! is then read straight to where it belongs ([`Next`]). Whatever does not fit ends the connection with one [`Fault`]
//! that names the reason; the node goes on serving its data.
//! spec: wire-protocol 3, 5, 9.3, 11.1

use core::fmt;

use super::api::{Digest, Next, Op, RequestId, VolumeId};
use super::conflict::newer;
use super::inspect::Direction;
use super::link::Handshake;
use super::outgoing::MetaOut;
use super::peer::IncomingWrite;
use super::slots::Net;
use super::work::LogLine;
use super::{Engine, Sabotage, ANSWERS};
use crate::handshake::{Incompatible, ProtocolMismatch};
use crate::state::{BadChange, BadState, Conn, Outcome, StateError};
use crate::storage::Storage;
use crate::wire::{
    check_agreed_length, check_length, header_size, Barrier, BarrierAck, BitmapError, BlockAck, BlockDesc,
    BlockRequest, Command, Data, DecodeError, Header, HeaderError, LengthError, Socket, StateReply, StateRequest,
    StateWord, SyncParam, SyncUuid, Trim, ID_SYNCER, MAX_DATA_BYTES,
};

/// A header that has been understood.
#[derive(Clone, Copy, Debug)]
pub struct PacketHead {
    command: Command,
    volume: u16,
    length: u32,
    /// Bytes to read next and to pass on with the head, at most 4096.
    pub body_bytes: usize,
}

impl PacketHead {
    /// The packet's name, for messages.
    pub fn name(&self) -> &'static str {
        self.command.name()
    }

    pub(super) fn command(&self) -> Command {
        self.command
    }

    pub(super) fn volume_number(&self) -> u16 {
        self.volume
    }
}

/// Why the connection is given up. One line for the log each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The sentences below say what each is.
pub enum Fault {
    Header(HeaderError),
    UnknownCommand { number: u16 },
    WrongSocket { command: Command },
    NotNow { command: Command },
    Length(LengthError),
    Decode { command: Command, error: DecodeError },
    UnknownVolume,
    NoSlot,
    StrayPayload,
    BadRange { sector: u64, size_bytes: u32, device_sectors: u64 },
    UnknownReply { sector: u64 },
    UnknownRequest { command: Command, sector: u64 },
    BarrierMismatch { expected: Option<(u32, u32)>, found: (u32, u32) },
    Bitmap(BitmapError),
    UnexpectedBitmap { conn: Conn },
    InsideBitmap { command: Command },
    Incompatible(Incompatible),
    Protocol(ProtocolMismatch),
    DryRun,
    DryRunUnsupported,
    UnknownPolicy { value: u32 },
    Algorithm { what: &'static str },
    State(BadState),
    Change(BadChange),
    StateRefused(StateError),
    HandshakeRefused,
    SameSide { source: bool },
    AheadTooEarly,
    SizeRefused,
    DataRefused,
    Authentication { what: &'static str },
    PeerRebooted,
    PingTimeout,
    HandshakeTimeout { limit_ms: u64 },
    TooManyEpochs,
    NotDurable,
    SourceFailed,
    MissingSequence { seq: u32 },
    Integrity,
    DigestSize { command: Command, found: usize, expected: u8 },
    NotSupported { command: Command },
    Closing,
}

impl Fault {
    /// What both nodes have told each other during the handshake rules each other out, so that the peer comes to this too.
    fn is_verdict(self) -> bool {
        matches!(
            self,
            Fault::HandshakeRefused
                | Fault::SameSide { .. }
                | Fault::SizeRefused
                | Fault::DataRefused
                | Fault::StateRefused(_)
                | Fault::Protocol(_)
        )
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Fault::Header(error) => write!(f, "bad packet header: {error}"),
            Fault::UnknownCommand { number } => write!(f, "unknown packet {number:#06x}"),
            Fault::WrongSocket { command } => write!(f, "{} does not belong on this socket", command.name()),
            Fault::NotNow { command } => write!(f, "{} was not expected now", command.name()),
            Fault::Length(error) => write!(f, "{error}"),
            Fault::Decode { command, error } => write!(f, "{}: {error}", command.name()),
            Fault::UnknownVolume => f.write_str("packet for a volume that does not exist here"),
            Fault::NoSlot => f.write_str("the peer has more requests under way than it may"),
            Fault::StrayPayload => f.write_str("data for a request that does not wait for any"),
            Fault::BadRange { sector, size_bytes, device_sectors } => write!(
                f,
                "range of {size_bytes} bytes at sector {sector} is not valid on a device of {device_sectors} sectors"
            ),
            Fault::UnknownReply { sector } => write!(f, "data for sector {sector} that was not asked for"),
            Fault::UnknownRequest { command, sector } => {
                write!(f, "{} for sector {sector} names a request that is not under way", command.name())
            }
            Fault::BarrierMismatch { expected: Some((number, size)), found } => write!(
                f,
                "barrier acknowledgement for epoch {} with {} writes, expected epoch {number} with {size}",
                found.0, found.1
            ),
            Fault::BarrierMismatch { expected: None, found } => {
                write!(f, "barrier acknowledgement for epoch {}, expected none", found.0)
            }
            Fault::Bitmap(error) => write!(f, "bitmap: {error}"),
            Fault::UnexpectedBitmap { conn } => write!(f, "bitmap received in state {conn}"),
            Fault::InsideBitmap { command } => write!(f, "{} inside a bitmap", command.name()),
            Fault::Incompatible(error) => write!(f, "{error}"),
            Fault::Protocol(mismatch) => write!(f, "{mismatch}"),
            Fault::DryRun => f.write_str("the peer only wanted to know what would happen"),
            Fault::DryRunUnsupported => f.write_str("the peer is too old for a dry run"),
            Fault::UnknownPolicy { value } => write!(f, "the peer has an unknown after-split-brain policy {value}"),
            Fault::Algorithm { what } => write!(f, "the peer's {what} differs from ours, or is not supported"),
            Fault::State(error) => write!(f, "state packet: {error}"),
            Fault::Change(error) => write!(f, "state request: {error}"),
            Fault::StateRefused(error) => write!(f, "the peer's state cannot be taken over: {error}"),
            Fault::HandshakeRefused => f.write_str("the nodes do not come together; see the decision above"),
            Fault::SameSide { source } => {
                let side = if source { "source" } else { "target" };
                write!(f, "both nodes want to be the {side} of the resync: each decided by another rule, see the decision above")
            }
            Fault::AheadTooEarly => {
                f.write_str("the peer pulls ahead before it has told what this node lacks: connecting anew")
            }
            Fault::SizeRefused => f.write_str("the peer's size is not acceptable; see above"),
            Fault::DataRefused => f.write_str("the peer's data is not acceptable; see above"),
            Fault::Authentication { what } => write!(f, "authentication failed: {what}"),
            Fault::PeerRebooted => f.write_str(
                "the peer was restarted, or does not take what it is to get, while I/O was frozen: connecting anew",
            ),
            Fault::MissingSequence { seq } => {
                write!(f, "packet {seq} of the peer arrived, but not the acknowledgements that it sent before")
            }
            Fault::TooManyEpochs => f.write_str("the peer has more epochs under way than can be remembered"),
            Fault::NotDurable => f.write_str("the disk failed before the peer's writes were durable: connecting anew"),
            Fault::SourceFailed => f.write_str("the disk failed before it was the source of a resync: connecting anew"),
            Fault::Integrity => f.write_str("data arrived that is not what its digest says"),
            Fault::DigestSize { command, found, expected } => {
                write!(f, "{} with a digest of {found} bytes, expected {expected}", command.name())
            }
            Fault::HandshakeTimeout { limit_ms } => {
                write!(
                    f,
                    "the peer has not told its state within {limit_ms} ms: the connection is given up, and tried anew"
                )
            }
            Fault::PingTimeout => f.write_str("the peer did not answer a ping in time"),
            Fault::NotSupported { command } => write!(f, "{} is not supported by this version", command.name()),
            Fault::Closing => f.write_str("the connection is being closed"),
        }
    }
}

impl<S: Storage> Engine<S> {
    /// Gives the connection up for this reason.
    pub(super) fn fail(&mut self, fault: Fault, conn: Conn) -> Fault {
        if !self.link.is_closing() {
            self.log(LogLine::Fault { fault });
            self.link.fault = Some(fault);
            if fault.is_verdict() {
                let patience_ms = u64::from(self.link.net.ping_timeo).saturating_mul(100);
                self.link.verdict_until_ms = Some(self.now_ms.saturating_add(patience_ms));
            }
        }
        self.link_fault(conn);
        fault
    }

    // The data socket.

    /// Bytes of a header on the data socket.
    pub fn data_header_bytes(&self) -> usize {
        header_size(self.link.wire_version)
    }

    /// A header of the data socket.
    ///
    /// # Errors
    /// [`Fault`]: the connection is given up.
    pub fn data_header(&mut self, bytes: &[u8], now_ms: u64) -> Result<PacketHead, Fault> {
        self.now_ms = now_ms;
        let first = self.link.handshake == Handshake::Features;
        self.header(bytes, Socket::Data).map_err(|fault| {
            // Whoever begins with something else is no peer; what is no header at all may be a bad line.
            // spec: wire-protocol 4.2
            let stranger = first && !matches!(fault, Fault::Header(_) | Fault::Closing);
            let challenge = matches!(fault, Fault::Length(error) if error.command == Command::AuthChallenge);
            let refused = stranger || challenge || matches!(fault, Fault::Authentication { .. });
            self.fail(fault, if refused { Conn::Disconnecting } else { Conn::ProtocolError })
        })
    }

    fn header(&mut self, bytes: &[u8], socket: Socket) -> Result<PacketHead, Fault> {
        if self.link.is_closing() {
            return Err(Fault::Closing);
        }
        let header = Header::decode(self.link.wire_version, bytes).map_err(Fault::Header)?;
        let command = Command::from_u16(header.command).ok_or(Fault::UnknownCommand { number: header.command })?;
        let spec = command.spec();
        if !spec.socket.accepts(socket) {
            return Err(Fault::WrongSocket { command });
        }
        match self.link.handshake {
            Handshake::Features if command == Command::ConnectionFeatures => {}
            Handshake::Authentication(stage) => self.check_authentication_packet(command, stage)?,
            Handshake::Running if spec.handled => {}
            _ => return Err(Fault::NotNow { command }),
        }
        if self.link.handshake == Handshake::Running {
            check_agreed_length(command, header.length, self.link.features).map_err(Fault::Length)?;
        } else {
            check_length(command, header.length).map_err(Fault::Length)?;
        }
        let with_data = matches!(command, Command::Data | Command::DataReply | Command::RsDataReply);
        let body = if with_data { self.data_head_bytes(command, header.length)? } else { header.length as usize };
        let bitmap = matches!(command, Command::Bitmap | Command::CompressedBitmap);
        if self.link.bitmap_for.is_some() && !bitmap && socket == Socket::Data {
            return Err(Fault::InsideBitmap { command });
        }
        Ok(PacketHead { command, volume: header.volume, length: header.length, body_bytes: body })
    }

    /// Bytes of a packet with data that come before the data: its fixed part and the digest.
    fn data_head_bytes(&self, command: Command, length: u32) -> Result<usize, Fault> {
        let expected = self.integrity_bytes(Direction::Received);
        let head = Data::LEN + usize::from(expected);
        let length = length as usize;
        if length < head {
            return Err(Fault::DigestSize { command, found: length.saturating_sub(Data::LEN), expected });
        }
        Ok(head)
    }

    /// A packet of the data socket; `body` are the bytes asked for by its head.
    ///
    /// # Errors
    /// [`Fault`]: the connection is given up.
    pub fn data_packet(&mut self, head: &PacketHead, body: &[u8], now_ms: u64) -> Result<Next, Fault> {
        self.now_ms = now_ms;
        if self.link.is_closing() {
            return Err(Fault::Closing);
        }
        self.dispatch_data(head, body).map_err(|fault| {
            let conn = match fault {
                Fault::Incompatible(_)
                | Fault::DryRunUnsupported
                | Fault::Protocol(_)
                | Fault::UnknownPolicy { .. }
                | Fault::Algorithm { .. }
                | Fault::StateRefused(_)
                | Fault::HandshakeRefused
                | Fault::SameSide { .. }
                | Fault::SizeRefused
                | Fault::DataRefused
                | Fault::Authentication { .. } => Conn::Disconnecting,
                _ => Conn::ProtocolError,
            };
            self.fail(fault, conn)
        })
    }

    fn dispatch_data(&mut self, head: &PacketHead, body: &[u8]) -> Result<Next, Fault> {
        let command = head.command;
        let bad = |error| Fault::Decode { command, error };
        if self.link.handshake == Handshake::Features {
            let features = crate::wire::Features::decode(body).map_err(bad)?;
            self.receive_features(&features)?;
            return Ok(Next::Packet);
        }
        if let Handshake::Authentication(stage) = self.link.handshake {
            return self.receive_authentication(stage, body);
        }
        if command == Command::Protocol || command == Command::ProtocolUpdate {
            let protocol = crate::wire::Protocol::decode(self.link.apv, body).map_err(bad)?;
            self.receive_protocol(&protocol, command == Command::ProtocolUpdate)?;
            return Ok(Next::Packet);
        }
        if !self.link.protocol_checked {
            return Err(Fault::NotNow { command });
        }
        match command {
            Command::Barrier => {
                self.receive_barrier(Barrier::decode(body).map_err(bad)?.number);
                return Ok(Next::Packet);
            }
            Command::ConnStChgReq => {
                let request = StateRequest::decode(body).map_err(bad)?;
                self.receive_connection_request(&request)?;
                return Ok(Next::Packet);
            }
            Command::UnplugRemote | Command::DelayProbe => return Ok(Next::Packet),
            _ => {}
        }
        let Some(id) = self.volume_by_number(head.volume) else {
            let parameters = matches!(
                command,
                Command::SyncParam | Command::SyncParam89 | Command::Sizes | Command::Uuids | Command::State
            );
            if parameters {
                self.log(LogLine::UnknownVolume { number: head.volume });
                return Ok(Next::Packet);
            }
            return Err(Fault::UnknownVolume);
        };
        let now_ms = self.now_ms;
        self.with_volume(id, |volume| {
            if !core::mem::replace(&mut volume.peer.introduced, true) {
                volume.peer.introduced_ms = now_ms;
            }
        });
        match command {
            Command::Data => {
                let data = Data::decode(body).map_err(bad)?;
                let payload_bytes = self.payload_bytes(head, body);
                let write = IncomingWrite { op: Op::Write, data, size_bytes: payload_bytes, payload_bytes };
                return self.receive_write(id, &write);
            }
            Command::Trim | Command::Zeroes => {
                let trim = Trim::decode(body).map_err(bad)?;
                let op = self.write_op(command, trim.data.flags);
                let write = IncomingWrite { op, data: trim.data, size_bytes: trim.size_bytes, payload_bytes: 0 };
                return self.receive_write(id, &write);
            }
            Command::DataReply => {
                let data = Data::decode(body).map_err(bad)?;
                let size_bytes = self.payload_bytes(head, body);
                return self.receive_read_reply(id, &data, size_bytes);
            }
            Command::RsDataReply => {
                let data = Data::decode(body).map_err(bad)?;
                let size_bytes = self.payload_bytes(head, body);
                return self.receive_resync_data(id, data.sector, size_bytes);
            }
            Command::DataRequest => self.receive_read(id, &BlockRequest::decode(body).map_err(bad)?)?,
            Command::RsDataRequest | Command::RsThinReq => {
                let request = BlockRequest::decode(body).map_err(bad)?;
                self.receive_resync_request(id, &request, command, Digest::EMPTY)?;
            }
            Command::CsumRsRequest => {
                let request = BlockRequest::decode(body).map_err(bad)?;
                let digest = self.received_digest(command, body)?;
                self.receive_resync_request(id, &request, command, digest)?;
            }
            Command::RsDeallocated => {
                let range = BlockDesc::decode(body).map_err(bad)?;
                self.receive_deallocated(id, range.sector, range.size_bytes)?;
            }
            Command::OvRequest => self.receive_verify_request(id, &BlockRequest::decode(body).map_err(bad)?)?,
            Command::OvReply => {
                let reply = BlockRequest::decode(body).map_err(bad)?;
                let digest = self.received_digest(command, body)?;
                self.receive_verify_reply(id, &reply, digest)?;
            }
            Command::SyncParam | Command::SyncParam89 => {
                let parameters = SyncParam::decode(self.link.apv, body).map_err(bad)?;
                self.receive_sync_param(id, &parameters)?;
            }
            Command::Sizes => {
                let sizes = crate::wire::Sizes::decode(body).map_err(bad)?;
                self.receive_sizes(id, &sizes)?;
            }
            Command::Uuids => {
                let uuids = crate::wire::Uuids::decode(body).map_err(bad)?;
                self.receive_uuids(id, &uuids)?;
            }
            Command::State => {
                let word = StateWord::decode(body).map_err(bad)?;
                self.receive_state(id, word.word)?;
            }
            Command::SyncUuid => {
                let sync = SyncUuid::decode(body).map_err(bad)?;
                self.receive_sync_uuid(id, sync.uuid);
            }
            Command::StateChgReq => {
                let request = StateRequest::decode(body).map_err(bad)?;
                self.receive_state_request(id, &request)?;
            }
            Command::Bitmap | Command::CompressedBitmap => self.receive_bitmap(id, command, body)?,
            Command::OutOfSync => {
                let range = BlockDesc::decode(body).map_err(bad)?;
                let sectors = self.volume(id).map_or(0, |volume| volume.size_sectors);
                super::peer::check_range(range.sector, range.size_bytes, !511, sectors)?;
                self.mark_out_of_sync(id, range.sector, range.size_bytes);
            }
            _ => return Err(Fault::NotSupported { command }),
        }
        Ok(Next::Packet)
    }

    /// Keeps the digest that came with data; returns the number of bytes that follow.
    fn payload_bytes(&mut self, head: &PacketHead, body: &[u8]) -> u32 {
        let digest = body.get(Data::LEN..).unwrap_or_default();
        if !(digest.is_empty() && self.payload_digest.is_empty()) {
            self.payload_digest = Digest::new(digest).unwrap_or(Digest::EMPTY);
        }
        head.length.saturating_sub(body.len() as u32)
    }

    /// True when the next packet of the data socket may be read. spec: wire-protocol 3.6 (barrier), 5.2
    pub fn receiver_may_read(&self) -> bool {
        self.link.is_closing()
            || (self.may_answer_one_more(0)
                && self.has_buffers()
                && !self.worker_is_behind()
                && !self.link.received_epoch.is_closing()
                && !self.link.introducing
                && self.link.refusal.is_none()
                && !self.volume_must_follow()
                && self.link.sequence_wait.is_none()
                && !self.link.algorithms_pending)
    }

    /// There is a slot for one more request of the peer, and room for all answers in the queue of the meta socket, had that `more`
    /// packets than it has: the socket may be slow while the other one is not.
    pub(super) fn may_answer_one_more(&self, more: usize) -> bool {
        let (used, capacity) = (self.peers.used(), self.peers.capacity());
        used < capacity && self.meta_out.len() + more + ANSWERS * (used + 1) <= ANSWERS * capacity
    }

    /// Some volume has to carry out what the last packet said before the next one can be understood.
    fn volume_must_follow(&self) -> bool {
        self.volumes_with(|volume| volume.resize.is_some() || volume.resync.early_sync_uuid.is_some()).next().is_some()
    }

    /// P_DATA_REPLY. spec: wire-protocol 7
    fn receive_read_reply(&mut self, id: VolumeId, data: &Data, size_bytes: u32) -> Result<Next, Fault> {
        let unknown = Fault::UnknownReply { sector: data.sector };
        let request = RequestId::from_block_id(data.block_id).ok_or(unknown)?;
        let slot = self.requests.get(request).ok_or(unknown)?;
        let fits = slot.volume == id
            && slot.io.op == Op::Read
            && slot.io.sector == data.sector
            && slot.io.size_bytes == size_bytes
            && matches!(slot.net, Net::Waiting | Net::Queued);
        if fits {
            Ok(Next::ReadReply { request, size_bytes })
        } else {
            Err(unknown)
        }
    }

    /// The data of a remote read is in its bio.
    ///
    /// # Errors
    /// [`Fault`] when the request does not wait for data.
    pub fn read_reply_received(&mut self, request: RequestId, now_ms: u64) -> Result<(), Fault> {
        self.now_ms = now_ms;
        let slot = self.requests.get_mut(request).filter(|slot| matches!(slot.net, Net::Waiting | Net::Queued));
        let Some(slot) = slot else { return Err(self.fail(Fault::StrayPayload, Conn::ProtocolError)) };
        slot.net = Net::Ok;
        let (id, sectors) = (slot.volume, u64::from(slot.io.size_bytes / 512));
        self.with_volume(id, |volume| {
            volume.peer_pending = volume.peer_pending.saturating_sub(1);
            volume.counters.received_sectors = volume.counters.received_sectors.wrapping_add(sectors);
        });
        self.settle(request.index);
        self.check_waiting_command();
        Ok(())
    }

    // The meta socket.

    /// Bytes of a header on the meta socket. `None` until the features have been exchanged on the data socket: the size
    /// is not known before, and the peer's first packet here may overtake its features. Wait for `Wakes::RECEIVER`.
    pub fn meta_header_bytes(&self) -> Option<usize> {
        (self.link.handshake == Handshake::Running).then(|| header_size(self.link.wire_version))
    }

    /// A header of the meta socket.
    ///
    /// # Errors
    /// [`Fault`]: the connection is given up.
    pub fn meta_header(&mut self, bytes: &[u8], now_ms: u64) -> Result<PacketHead, Fault> {
        self.now_ms = now_ms;
        self.header(bytes, Socket::Meta).map_err(|fault| {
            // Nor is there a place for packets of the handshake. spec: wire-protocol 11.1
            let unknown =
                matches!(fault, Fault::UnknownCommand { .. } | Fault::WrongSocket { .. } | Fault::NotNow { .. });
            self.fail(fault, if unknown { Conn::Disconnecting } else { Conn::NetworkFailure })
        })
    }

    /// A packet of the meta socket.
    ///
    /// # Errors
    /// [`Fault`]: the connection is given up.
    pub fn meta_packet(&mut self, head: &PacketHead, body: &[u8], now_ms: u64) -> Result<(), Fault> {
        self.now_ms = now_ms;
        if self.link.is_closing() {
            return Err(Fault::Closing);
        }
        self.dispatch_meta(head, body).map_err(|fault| {
            let protocol = matches!(fault, Fault::BarrierMismatch { .. });
            self.fail(fault, if protocol { Conn::ProtocolError } else { Conn::NetworkFailure })
        })
    }

    fn dispatch_meta(&mut self, head: &PacketHead, body: &[u8]) -> Result<(), Fault> {
        let command = head.command;
        let bad = |error| Fault::Decode { command, error };
        match command {
            Command::Ping => {
                self.queue_meta(MetaOut::PingAck);
                return Ok(());
            }
            Command::PingAck => {
                self.ping_answered();
                return Ok(());
            }
            Command::BarrierAck => return self.receive_barrier_ack(&BarrierAck::decode(body).map_err(bad)?),
            Command::ConnStChgReply => {
                self.state_reply(None, StateReply::decode(body).map_err(bad)?.code);
                return Ok(());
            }
            Command::DelayProbe => return Ok(()),
            _ => {}
        }
        let id = self.volume_by_number(head.volume).ok_or(Fault::UnknownVolume)?;
        if command == Command::StateChgReply {
            self.state_reply(Some(id), StateReply::decode(body).map_err(bad)?.code);
            return Ok(());
        }
        let ack = BlockAck::decode(body).map_err(bad)?;
        self.with_volume(id, |volume| volume.peer_seq = newer(volume.peer_seq, ack.seq));
        self.receive_block_ack(id, command, &ack)?;
        // Only now: the write that waits for this answer was sent after it and must not meet what it is the answer to.
        self.check_sequence();
        Ok(())
    }

    fn receive_block_ack(&mut self, id: VolumeId, command: Command, ack: &BlockAck) -> Result<(), Fault> {
        let unknown = Fault::UnknownRequest { command, sector: ack.sector };
        let resync = ack.block_id == ID_SYNCER;
        let answered = RequestId::from_block_id(ack.block_id).filter(|_| !resync && self.link.net.two_primaries);
        if let Some(slot) = answered.and_then(|request| self.requests.get(request)).filter(|slot| slot.in_log) {
            self.later_epoch_answered(slot.epoch, command != Command::NegAck);
        }
        if resync {
            let sectors = self.volume(id).map_or(0, |volume| volume.size_sectors);
            super::peer::check_range(ack.sector, ack.size_bytes, MAX_DATA_BYTES, sectors)?;
        }
        match command {
            Command::RecvAck | Command::WriteAck | Command::RsWriteAck | Command::Superseded if resync => {
                self.resync_acknowledged(id, ack.sector, ack.size_bytes);
            }
            Command::NegAck if resync => self.resync_refused_by_target(id, ack.sector, ack.size_bytes),
            Command::Superseded => {
                let request = RequestId::from_block_id(ack.block_id).ok_or(unknown)?;
                self.superseded(request, ack.sector).ok_or(unknown)?;
            }
            Command::RetryWrite => {
                let request = RequestId::from_block_id(ack.block_id).ok_or(unknown)?;
                self.postpone(request, ack.sector).ok_or(unknown)?;
            }
            Command::RecvAck | Command::WriteAck => {
                let request = RequestId::from_block_id(ack.block_id).ok_or(unknown)?;
                self.acknowledged(request, ack.sector, Net::Ok).ok_or(unknown)?;
            }
            Command::RsWriteAck => {
                let request = RequestId::from_block_id(ack.block_id).ok_or(unknown)?;
                if let Some(slot) = self.requests.get_mut(request) {
                    slot.peer_in_sync = true;
                }
                self.acknowledged(request, ack.sector, Net::Ok).ok_or(unknown)?;
            }
            Command::NegAck => {
                let result = if self.sabotaged(Sabotage::AcceptRefusal) { Net::Ok } else { Net::Failed };
                let known = RequestId::from_block_id(ack.block_id)
                    .and_then(|request| self.acknowledged(request, ack.sector, result));
                if known.is_none() {
                    // The request is gone; the peer still does not have the data.
                    let sectors = self.volume(id).map_or(0, |volume| volume.size_sectors);
                    super::peer::check_range(ack.sector, ack.size_bytes, !511, sectors)?;
                    self.mark_out_of_sync(id, ack.sector, ack.size_bytes);
                }
            }
            Command::NegDreply => {
                let request = RequestId::from_block_id(ack.block_id).ok_or(unknown)?;
                self.read_refused(request, ack.sector).ok_or(unknown)?;
            }
            Command::RsIsInSync => self.resync_in_sync(id, ack.sector, ack.size_bytes),
            Command::OvResult => self.receive_verify_result(id, ack)?,
            Command::NegRsDreply => self.resync_refused(id, ack.sector, ack.size_bytes, true),
            Command::RsCancel => self.resync_refused(id, ack.sector, ack.size_bytes, false),
            _ => return Err(Fault::NotSupported { command }),
        }
        Ok(())
    }

    /// The peer could not read for us: the request takes another path. spec: wire-protocol 7
    fn read_refused(&mut self, request: RequestId, sector: u64) -> Option<()> {
        let slot = self.requests.get_mut(request).filter(|slot| {
            slot.io.sector == sector && slot.io.op == Op::Read && matches!(slot.net, Net::Waiting | Net::Queued)
        })?;
        slot.net = Net::Failed;
        let id = slot.volume;
        self.with_volume(id, |volume| volume.peer_pending = volume.peer_pending.saturating_sub(1));
        self.settle(request.index);
        Some(())
    }

    /// The peer has answered a write of this epoch. The C module never acknowledges the barrier of an epoch in which it refused
    /// a write for one of its own; but before it took the first write of a later epoch it waited for everything before, and
    /// flushed its disk's cache. So by now such an epoch is safe, unless it refuses the later write because that disk has failed.
    /// spec: wire-protocol 3.6, 13 (H4)
    pub(super) fn later_epoch_answered(&mut self, answered: u32, has_disk: bool) {
        while let Some((_, epoch)) = self.oldest_in_log() {
            let earlier = (answered.wrapping_sub(epoch) as i32) > 0;
            if !earlier || self.departed.of(epoch) == 0 {
                return;
            }
            if !has_disk {
                self.mark_epoch(epoch);
            }
            self.forget_epoch(epoch);
        }
    }

    /// The writes of this epoch may have been in a cache that is lost.
    fn mark_epoch(&mut self, epoch: u32) {
        let mut at = self.log.front();
        while let Some((index, slot)) = at.and_then(|index| Some((index, *self.requests.at(index)?))) {
            if slot.epoch == epoch {
                self.mark_out_of_sync(slot.volume, slot.io.sector, slot.io.size_bytes);
            }
            at = self.log.next(&self.requests, index);
        }
    }

    /// The oldest write on the transfer log, and its epoch. What the peer has refused is going to be written again, in a later
    /// epoch, and does not count; nor does what an earlier connection has left and is sent again.
    fn oldest_in_log(&self) -> Option<(u16, u32)> {
        let mut at = self.log.front();
        while let Some(index) = at {
            match self.requests.at(index) {
                Some(slot) if !slot.postponed && !slot.kept => return Some((index, slot.epoch)),
                _ => at = self.log.next(&self.requests, index),
            }
        }
        None
    }

    /// Writes of the oldest epoch that are on the transfer log.
    fn oldest_epoch_size(&self, epoch: u32) -> u32 {
        let mut size = 0u32;
        let mut at = self.log.front();
        while let Some(slot) = at.and_then(|index| self.requests.at(index)) {
            match (slot.postponed || slot.kept, slot.epoch == epoch) {
                (true, _) => {}
                (false, true) => size += 1,
                (false, false) => break,
            }
            at = at.and_then(|index| self.log.next(&self.requests, index));
        }
        size
    }

    /// The writes of the oldest epoch are safe on the peer's disk: off the transfer log.
    fn forget_epoch(&mut self, epoch: u32) {
        while let Some((index, _)) = self.oldest_in_log().filter(|(_, oldest)| *oldest == epoch) {
            let mut log = self.log;
            log.remove(&mut self.requests, index);
            self.log = log;
            self.settle(index);
        }
        self.verify_barrier_over();
    }

    /// P_BARRIER_ACK: it must name the oldest epoch, with the right number of writes. spec: wire-protocol 3.6
    fn receive_barrier_ack(&mut self, ack: &BarrierAck) -> Result<(), Fault> {
        let found = (ack.number, ack.set_size);
        let epoch = self.oldest_in_log().map(|(_, epoch)| epoch);
        if self.sabotaged(Sabotage::ForgetBeforeBarrier) {
            return Ok(());
        }
        let Some(epoch) = epoch else {
            let departed = self.departed.of(ack.number) > 0;
            return if departed { Ok(()) } else { Err(Fault::BarrierMismatch { expected: None, found }) };
        };
        let size = self.oldest_epoch_size(epoch);
        // Writes that the peer's own overrode are off our list; the peer may have counted them.
        let departed = self.departed.of(epoch);
        if ack.number != epoch || ack.set_size < size || ack.set_size > size.saturating_add(departed) {
            if ack.number != epoch && self.departed.of(ack.number) > 0 {
                return Ok(());
            }
            return Err(Fault::BarrierMismatch { expected: Some((epoch, size)), found });
        }
        self.forget_epoch(epoch);
        self.congestion_ended();
        self.check_waiting_command();
        Ok(())
    }
}

/// The number for a reply.
pub(super) fn result_code(result: Result<Outcome, StateError>) -> i32 {
    match result {
        Ok(outcome) => outcome.code(),
        Err(error) => error.code(),
    }
}
