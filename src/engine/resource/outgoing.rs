// SPDX-License-Identifier: GPL-2.0
//! What goes to the peer: the order of packets on the two sockets, and their bytes.
//!
//! The queue of the data socket holds small places: an application request, an answer, a resync request, or "the next
//! control packet". A packet gets its bytes when the sender takes it. Barriers are not queued: the sender emits one when
//! it comes to the first packet of another epoch, or when it has nothing else to do.
//! spec: wire-protocol 2, 3, 3.6, 5

use super::api::{Outgoing, Payload, PeerId, RequestId, VolumeId, Wakes};
use super::inspect::Direction;
use super::link::{Handshake, VERSION_BEFORE_FEATURES};
use super::slots::{Net, PeerKind, PeerPhase};
use super::Engine;
use crate::metadata::superblock::MetaFlags;
use crate::state::{Conn, Disk, Role, State, Susp};
use crate::storage::Storage;
use crate::wire::{command::Command, header::header_size, header::Header, BitmapSender, BufferTooSmall, Features};
use crate::wire::{Barrier, BarrierAck, BlockAck, BlockDesc, BlockRequest, Data, DataFlags, Trim, ID_SYNCER};
use crate::wire::{
    Controller, Protocol, Sizes, StateReply, StateRequest, StateWord, SyncParam, SyncUuid, UuidFlags, Uuids,
};
use crate::wire::{OWN_FEATURES, PRO_VERSION_MAX, PRO_VERSION_MIN};

/// A place in the order of the data socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DataOut {
    /// A mirrored write.
    Write(RequestId),
    /// A read that the peer serves.
    ReadRequest(RequestId),
    /// A write that is only announced.
    OutOfSync(RequestId),
    /// Data for the peer: the answer to a read or resync request.
    Reply(PeerId),
    /// A resync request.
    ResyncRequest(PeerId),
    /// The oldest control packet.
    Control,
}

/// A packet without application data.
#[derive(Clone, Copy, Debug)]
pub(super) enum Control {
    Features,
    AuthChallenge,
    AuthResponse,
    Protocol,
    /// Options changed while connected.
    ProtocolUpdate,
    SyncParam(VolumeId),
    Sizes {
        volume: VolumeId,
        dds_flags: u16,
        ask: bool,
    },
    /// Goes out when that version of the superblock is durable.
    Uuids {
        volume: VolumeId,
        uuids: Uuids,
        version: u32,
    },
    State {
        volume: VolumeId,
        word: u32,
    },
    SyncUuid {
        volume: VolumeId,
        uuid: u64,
        version: u32,
    },
    StateRequest {
        volume: VolumeId,
        mask: u32,
        val: u32,
    },
    ConnectionRequest {
        mask: u32,
        val: u32,
    },
    /// As many packets as it takes. `counts`: the exchange that it was queued for goes on.
    Bitmap {
        volume: VolumeId,
        counts: bool,
    },
    /// What is marked of `Resync::uncounted`. As many packets as it takes.
    Marks(VolumeId),
    /// What stood here must not be sent any more.
    Nothing,
}

impl Control {
    /// The volume it concerns.
    pub(super) fn volume(&self) -> Option<VolumeId> {
        match *self {
            Control::Features | Control::AuthChallenge | Control::AuthResponse | Control::Nothing => None,
            Control::Protocol | Control::ProtocolUpdate | Control::ConnectionRequest { .. } => None,
            Control::SyncParam(volume) | Control::Marks(volume) => Some(volume),
            Control::Sizes { volume, .. }
            | Control::Bitmap { volume, .. }
            | Control::Uuids { volume, .. }
            | Control::State { volume, .. }
            | Control::SyncUuid { volume, .. }
            | Control::StateRequest { volume, .. } => Some(volume),
        }
    }
}

/// A packet for the meta socket.
#[derive(Clone, Copy, Debug)]
pub(super) enum MetaOut {
    Ack { command: Command, volume: VolumeId, sector: u64, block_id: u64, size_bytes: u32 },
    BarrierAck { number: u32, set_size: u32 },
    Ping,
    PingAck,
    StateReply { volume: VolumeId, code: i32 },
    ConnectionReply { code: i32 },
}

impl MetaOut {
    /// It acknowledges or refuses a write of the peer's application, which may let a write begin here that waited for it.
    fn answers_write(self) -> bool {
        use Command::{NegAck, RecvAck, RetryWrite, RsWriteAck, Superseded, WriteAck};
        let MetaOut::Ack { command, block_id, .. } = self else { return false };
        let answers = matches!(command, RecvAck | WriteAck | RsWriteAck | Superseded | RetryWrite | NegAck);
        answers && block_id != ID_SYNCER
    }
}

/// What the data sender is sending right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sending {
    Nothing,
    Control,
    Request(RequestId),
    Reply(PeerId),
    ResyncRequest(PeerId),
}

impl<S: Storage> Engine<S> {
    /// Puts a request or answer into the order of the data socket.
    pub(super) fn queue_data(&mut self, entry: DataOut) {
        if !self.link.is_running() {
            return;
        }
        if !self.data_out.push(entry) {
            self.internal_error("the queue to the data socket is full");
        }
        self.link.queued_writes += u32::from(matches!(entry, DataOut::Write(_)));
        self.wakes.insert(Wakes::DATA_SENDER);
    }

    /// Puts a control packet into the order of the data socket. Until the peer is known to be who it should be nothing but the handshake
    /// goes out: it would end there, and all that a peer has to know of the volumes comes right after.
    pub(super) fn queue_control(&mut self, packet: Control) {
        let introduces = matches!(packet, Control::Features | Control::AuthChallenge | Control::AuthResponse);
        if !self.link.has_sockets() || !(introduces || self.link.handshake == Handshake::Running) {
            return;
        }
        if !(self.control.push(packet) && self.data_out.push(DataOut::Control)) {
            self.internal_error("too many control packets");
        }
        self.wakes.insert(Wakes::DATA_SENDER);
    }

    /// Puts a packet into the queue of the meta socket.
    pub(super) fn queue_meta(&mut self, packet: MetaOut) {
        if !self.link.has_sockets() {
            return;
        }
        // Drawn here and not when it is sent: a write that starts because of what is acknowledged has a later number, so that
        // the peer does not take it for one that meets its own. spec: wire-protocol 3.5, 6
        let seq = match packet {
            MetaOut::Ack { volume, .. } if packet.answers_write() => self.sequence(volume),
            _ => 0,
        };
        if !self.meta_out.push((packet, seq)) {
            self.internal_error("the queue to the meta socket is full");
        }
        self.wakes.insert(Wakes::META_SENDER);
    }

    /// The next packet for the data socket, with its bytes in `buffer` (at least [`super::PACKET_BUFFER_BYTES`]).
    pub fn next_data(&mut self, buffer: &mut [u8], now_ms: u64) -> Option<Outgoing> {
        self.now_ms = now_ms;
        let packet = self.take_data(buffer);
        if packet.is_none() {
            self.introduced();
        }
        packet
    }

    /// The own parameters have been sent: now the peer's are read.
    fn introduced(&mut self) {
        if self.link.introducing && self.control.is_empty() && self.link.sending == Sending::Nothing {
            self.link.introducing = false;
            self.wakes.insert(Wakes::RECEIVER);
        }
    }

    fn take_data(&mut self, buffer: &mut [u8]) -> Option<Outgoing> {
        if self.link.is_closing() || self.link.sending != Sending::Nothing {
            return None;
        }
        self.drop_late_verify();
        let Some(entry) = self.data_out.front() else { return self.idle_barrier(buffer) };
        if let Some(barrier) = self.barrier_before(entry, buffer) {
            return Some(barrier);
        }
        let (head_bytes, payload, sending) = match entry {
            DataOut::Control => return self.next_control(buffer),
            DataOut::Write(id) => self.write_packet(id, buffer),
            DataOut::ReadRequest(id) => self.read_request_packet(id, buffer),
            DataOut::OutOfSync(id) => self.out_of_sync_packet(id, buffer),
            DataOut::Reply(id) => self.reply_packet(id, buffer),
            DataOut::ResyncRequest(id) => self.resync_request_packet(id, buffer),
        }
        .unwrap_or((0, Payload::None, Sending::Nothing));
        let _taken = self.data_out.pop();
        let written = u32::from(matches!(entry, DataOut::Write(_)));
        self.link.queued_writes = self.link.queued_writes.saturating_sub(written);
        let unfit = |id| self.requests.get(id).is_some_and(|slot| slot.net == Net::Queued);
        if head_bytes == 0 && matches!(entry, DataOut::Write(id) if unfit(id)) {
            self.internal_error("a write is larger than the agreed version can send");
            return None;
        }
        if head_bytes == 0 {
            // The request is gone (its connection was lost meanwhile): look at the next one.
            return self.take_data(buffer);
        }
        self.link.sending = sending;
        if let Sending::Request(id) = sending {
            let now_ms = self.now_ms;
            if let Some(slot) = self.requests.get_mut(id) {
                slot.sent_ms = now_ms;
            }
        }
        let copy = matches!(sending, Sending::Request(id) if self.completes_when_sent(id));
        let digest_bytes = if payload == Payload::None { 0 } else { self.integrity_bytes(Direction::Sent) };
        Some(Outgoing { head_bytes, payload, digest_bytes, copy, last: self.data_out.is_empty() })
    }

    /// What is asked for nobody waits for any more: the peer does not have to read it.
    fn drop_late_verify(&mut self) {
        while let Some(DataOut::ResyncRequest(id)) = self.data_out.front() {
            if !self.is_late_verify(id) {
                return;
            }
            let _taken = self.data_out.pop();
            self.end_resync_request(id);
        }
    }

    /// Protocol A: the bio may end, and its pages change, while TCP still holds them.
    fn completes_when_sent(&self, id: RequestId) -> bool {
        self.requests.get(id).is_some_and(|slot| slot.protocol == crate::netlink::WireProtocol::A)
    }

    /// A packet of another epoch comes next: close the last one first. spec: wire-protocol 3.6
    fn barrier_before(&mut self, entry: DataOut, buffer: &mut [u8]) -> Option<Outgoing> {
        let epoch = match entry {
            DataOut::Write(id) | DataOut::ReadRequest(id) | DataOut::OutOfSync(id) => self.requests.get(id)?.epoch,
            // A resync or an online verify may go on for hours: the barrier does not wait for a pause.
            DataOut::Reply(_) | DataOut::ResyncRequest(_) => return self.idle_barrier(buffer),
            DataOut::Control => return None,
        };
        (epoch != self.link.sent_epoch).then(|| self.barrier(buffer)).flatten()
    }

    /// No other write is to be sent. The barrier goes out when it has been waiting for a tick: usually the next write comes
    /// sooner and takes it along, which saves both nodes a wake-up and a packet for every write that waits for the last.
    fn idle_barrier(&mut self, buffer: &mut [u8]) -> Option<Outgoing> {
        let due = self.link.barrier_due && self.link.epoch != self.link.sent_epoch && self.link.queued_writes == 0;
        due.then(|| self.barrier(buffer)).flatten()
    }

    /// A tick: an idle barrier that was not due at the last one is due now.
    pub(super) fn check_idle_barrier(&mut self) {
        let waiting = self.link.sent_writes > 0 && self.link.epoch != self.link.sent_epoch;
        if waiting && self.link.queued_writes == 0 {
            self.link.barrier_due = true;
            self.wakes.insert(Wakes::DATA_SENDER);
        }
    }

    fn barrier(&mut self, buffer: &mut [u8]) -> Option<Outgoing> {
        if self.link.sent_writes == 0 {
            return None;
        }
        let number = self.link.sent_epoch;
        self.link.sent_writes = 0;
        self.link.barrier_due = false;
        self.link.barrier_sent_ms = self.now_ms;
        // A demotion may wait for it to be sent.
        self.check_waiting_command();
        let payload = Barrier { number };
        let head_bytes = self.packet(buffer, Command::Barrier, 0, 0, |body| payload.encode(body))?;
        Some(Outgoing {
            head_bytes,
            payload: Payload::None,
            digest_bytes: 0,
            copy: false,
            last: self.data_out.is_empty(),
        })
    }

    /// Writes header and body; `extra_bytes` follow from elsewhere. Returns the bytes in the buffer.
    pub(super) fn packet(
        &mut self,
        buffer: &mut [u8],
        command: Command,
        volume: u16,
        extra_bytes: u32,
        body: impl FnOnce(&mut [u8]) -> Result<usize, BufferTooSmall>,
    ) -> Option<usize> {
        // The peer's features may arrive before ours are sent: those go out in the oldest format always.
        let apv = if command == Command::ConnectionFeatures { VERSION_BEFORE_FEATURES } else { self.link.wire_version };
        let header_bytes = header_size(apv);
        let written = body(buffer.get_mut(header_bytes..)?).ok()?;
        let length = u32::try_from(written).ok()?.checked_add(extra_bytes)?;
        let header = Header { command: command as u16, volume, length };
        header.encode(apv, buffer).ok()?;
        Some(header_bytes + written)
    }

    pub(super) fn number(&self, id: VolumeId) -> u16 {
        self.volume(id).map_or(0, |volume| volume.number)
    }

    /// Draws the next sequence number of a volume. spec: wire-protocol 3.5
    fn sequence(&mut self, id: VolumeId) -> u32 {
        self.volume_mut(id).map_or(0, |volume| {
            volume.packet_seq = volume.packet_seq.wrapping_add(1);
            volume.packet_seq
        })
    }

    /// The number of an acknowledgement that is sent now. One that no write can depend on repeats the last: where many of them wait for a
    /// slow socket the peer would wait for all of them before it takes the next write.
    fn sequence_of_ack(&mut self, id: VolumeId, drawn: Option<u32>) -> u32 {
        self.volume_mut(id).map_or(0, |volume| {
            volume.acked_seq = drawn.unwrap_or(volume.acked_seq);
            volume.acked_seq
        })
    }

    fn write_packet(&mut self, id: RequestId, buffer: &mut [u8]) -> Option<(usize, Payload, Sending)> {
        let slot = *self.requests.get(id).filter(|slot| slot.net == Net::Queued)?;
        let state = self.volume(slot.volume)?.state;
        let flags = self.write_flags(&slot, state);
        let seq = self.sequence(slot.volume);
        let data = Data { sector: slot.io.sector, block_id: id.block_id(), seq, flags };
        let volume = self.number(slot.volume);
        self.link.sent_epoch = slot.epoch;
        self.link.sent_writes += 1;
        let (command, payload) = match slot.io.op {
            super::Op::Discard => (Command::Trim, Payload::None),
            super::Op::WriteZeroes { .. } if self.link.features & crate::wire::FEATURE_WZEROES != 0 => {
                (Command::Zeroes, Payload::None)
            }
            super::Op::WriteZeroes { .. } => (Command::Trim, Payload::None),
            _ => (Command::Data, Payload::Request(id)),
        };
        let head = if command == Command::Data {
            let extra_bytes = slot.io.size_bytes + u32::from(self.integrity_bytes(Direction::Sent));
            self.packet(buffer, command, volume, extra_bytes, |body| data.encode(body))?
        } else {
            let trim = Trim { data, size_bytes: slot.io.size_bytes };
            self.packet(buffer, command, volume, 0, |body| trim.encode(body))?
        };
        Some((head, payload, Sending::Request(id)))
    }

    /// spec: wire-protocol 3.3
    fn write_flags(&self, slot: &super::slots::Request, state: State) -> DataFlags {
        let mut flags = DataFlags(0);
        let apv = self.link.apv;
        let in_sync = (Conn::SyncSource..=Conn::PausedSyncT).contains(&state.conn);
        flags = flags.with_if(slot.io.flags.sync, DataFlags::RW_SYNC);
        flags = flags.with_if(in_sync, DataFlags::MAY_SET_IN_SYNC);
        if apv >= 95 {
            flags = flags.with_if(slot.io.flags.fua, DataFlags::FUA);
            flags = flags.with_if(slot.io.flags.preflush, DataFlags::FLUSH);
            match slot.io.op {
                super::Op::Discard => flags = flags.with(DataFlags::DISCARD),
                super::Op::WriteZeroes { unmap } => {
                    let zeroes = self.link.features & crate::wire::FEATURE_WZEROES != 0;
                    flags = flags.with_if(zeroes, DataFlags::ZEROES);
                    flags = flags.with_if(unmap || !zeroes, DataFlags::DISCARD);
                }
                _ => {}
            }
        }
        if apv >= 100 {
            flags = flags.with_if(slot.protocol == crate::netlink::WireProtocol::B, DataFlags::SEND_RECEIVE_ACK);
            flags =
                flags.with_if(slot.protocol == crate::netlink::WireProtocol::C || in_sync, DataFlags::SEND_WRITE_ACK);
        }
        flags
    }

    fn read_request_packet(&mut self, id: RequestId, buffer: &mut [u8]) -> Option<(usize, Payload, Sending)> {
        let slot = *self.requests.get(id).filter(|slot| slot.net == Net::Queued)?;
        let request = BlockRequest { sector: slot.io.sector, block_id: id.block_id(), size_bytes: slot.io.size_bytes };
        let volume = self.number(slot.volume);
        let head = self.packet(buffer, Command::DataRequest, volume, 0, |body| request.encode(body))?;
        Some((head, Payload::None, Sending::Request(id)))
    }

    fn out_of_sync_packet(&mut self, id: RequestId, buffer: &mut [u8]) -> Option<(usize, Payload, Sending)> {
        let slot = *self.requests.get(id).filter(|slot| slot.net == Net::Queued)?;
        let notice = BlockDesc { sector: slot.io.sector, size_bytes: slot.io.size_bytes };
        let volume = self.number(slot.volume);
        let head = self.packet(buffer, Command::OutOfSync, volume, 0, |body| notice.encode(body))?;
        Some((head, Payload::None, Sending::Request(id)))
    }

    fn reply_packet(&mut self, id: PeerId, buffer: &mut [u8]) -> Option<(usize, Payload, Sending)> {
        let slot = *self.peers.get(id).filter(|slot| slot.phase == PeerPhase::Reply)?;
        let volume = self.number(slot.volume);
        if slot.kind == PeerKind::VerifyRead {
            let head = self.digest_packet(id, &slot, Command::OvReply, buffer)?;
            return Some((head, Payload::None, Sending::Reply(id)));
        }
        if slot.deallocated {
            let range = BlockDesc { sector: slot.sector, size_bytes: slot.size_bytes };
            let head = self.packet(buffer, Command::RsDeallocated, volume, 0, |body| range.encode(body))?;
            return Some((head, Payload::None, Sending::Reply(id)));
        }
        let resync = slot.kind == PeerKind::ResyncRead;
        let command = if resync { Command::RsDataReply } else { Command::DataReply };
        let data = Data { sector: slot.sector, block_id: slot.block_id, seq: 0, flags: DataFlags(0) };
        let extra_bytes = slot.size_bytes + u32::from(self.integrity_bytes(Direction::Sent));
        let head = self.packet(buffer, command, volume, extra_bytes, |body| data.encode(body))?;
        Some((head, Payload::Peer(id, slot.size_bytes), Sending::Reply(id)))
    }

    fn resync_request_packet(&mut self, id: PeerId, buffer: &mut [u8]) -> Option<(usize, Payload, Sending)> {
        let slot = *self.peers.get(id).filter(|slot| slot.phase == PeerPhase::Asked)?;
        let request = BlockRequest { sector: slot.sector, block_id: ID_SYNCER, size_bytes: slot.size_bytes };
        let volume = self.number(slot.volume);
        let command = match slot.kind {
            PeerKind::Verify => Command::OvRequest,
            _ if slot.has_digest => Command::CsumRsRequest,
            _ if slot.size_bytes == self.thin_request_bytes(slot.volume) => Command::RsThinReq,
            _ => Command::RsDataRequest,
        };
        let head = if slot.has_digest {
            self.digest_packet(id, &slot, command, buffer)?
        } else {
            self.packet(buffer, command, volume, 0, |body| request.encode(body))?
        };
        Some((head, Payload::None, Sending::ResyncRequest(id)))
    }

    /// A range, followed by the digest of its data.
    fn digest_packet(
        &mut self,
        id: PeerId,
        slot: &super::slots::PeerRequest,
        command: Command,
        buffer: &mut [u8],
    ) -> Option<usize> {
        let range = BlockRequest { sector: slot.sector, block_id: ID_SYNCER, size_bytes: slot.size_bytes };
        let digest = self.digest(id);
        let volume = self.number(slot.volume);
        self.packet(buffer, command, volume, 0, |body| {
            let bytes = digest.as_bytes();
            let end = BlockRequest::LEN + bytes.len();
            range.encode(body)?;
            body.get_mut(BlockRequest::LEN..end).ok_or(BufferTooSmall)?.copy_from_slice(bytes);
            Ok(end)
        })
    }

    fn next_control(&mut self, buffer: &mut [u8]) -> Option<Outgoing> {
        let packet = self.control.front()?;
        if !self.may_go(&packet) {
            return None;
        }
        let (head, done) = match packet {
            Control::Bitmap { volume, counts } => self.bitmap_packet(volume, counts, buffer),
            Control::Marks(id) => self.marks_packet(id, buffer),
            _ => (self.control_packet(packet, buffer), true),
        };
        if done {
            let _taken = (self.control.pop(), self.data_out.pop());
        }
        let Some(head_bytes) = head else {
            if !done {
                // Not found yet: others may have the lock now.
                self.wakes.insert(Wakes::DATA_SENDER);
                return None;
            }
            // The volume is gone, or what there was to be told of it.
            return self.take_data(buffer);
        };
        self.link.sending = Sending::Control;
        Some(Outgoing {
            head_bytes,
            payload: Payload::None,
            digest_bytes: 0,
            copy: false,
            last: self.data_out.is_empty(),
        })
    }

    /// This state says Secondary, and after a crash the superblock would still say Primary. Nobody may be promoted before it does
    /// not: of two nodes that both crashed as Primary the wrong one may be taken for the newer one.
    fn demotion_is_pending(&self, id: VolumeId, word: u32) -> bool {
        let secondary = State::from_word(word).is_ok_and(|(state, _)| state.role != Role::Primary);
        let disk = self.volume(id).filter(|volume| volume.state.disk > Disk::Failed);
        let disk = disk.and_then(|volume| volume.disk.as_ref());
        secondary
            && disk.is_some_and(|disk| {
                disk.pipeline.counts_as_primary() && !disk.superblock.flags.contains(MetaFlags::PRIMARY_IND)
            })
    }

    /// UUIDs are durable here before the peer hears of them, and so is a demotion; a bitmap is complete before it is sent.
    fn may_go(&self, packet: &Control) -> bool {
        let disk = |id: VolumeId| self.volume(id).and_then(|volume| volume.disk.as_ref());
        match *packet {
            Control::Uuids { volume, version, .. } | Control::SyncUuid { volume, version, .. } => {
                disk(volume).is_none_or(|disk| disk.pipeline.is_durable(version))
            }
            Control::Bitmap { volume, .. } => disk(volume).is_none_or(|disk| !disk.pipeline.changes_all_bits()),
            Control::State { volume, word } => !self.demotion_is_pending(volume, word),
            _ => true,
        }
    }

    fn control_packet(&mut self, packet: Control, buffer: &mut [u8]) -> Option<usize> {
        let volume = packet.volume().map_or(0, |id| self.number(id));
        match packet {
            Control::Features => {
                let features = Features { min: PRO_VERSION_MIN, max: PRO_VERSION_MAX, flags: OWN_FEATURES };
                self.packet(buffer, Command::ConnectionFeatures, 0, 0, |body| features.encode(body))
            }
            Control::AuthChallenge => {
                let challenge = self.handshake_digests.challenge;
                self.packet(buffer, Command::AuthChallenge, 0, 0, |body| put_bytes(challenge.as_bytes(), body))
            }
            Control::AuthResponse => {
                let response = self.handshake_digests.response;
                self.packet(buffer, Command::AuthResponse, 0, 0, |body| put_bytes(response.as_bytes(), body))
            }
            Control::Protocol | Control::ProtocolUpdate => {
                let protocol = self.own_protocol();
                let apv = self.link.apv;
                let update = matches!(packet, Control::ProtocolUpdate);
                // What follows this packet comes with digests by the algorithm that it names.
                self.set_integrity(Direction::Sent, protocol.integrity_alg);
                let command = if update { Command::ProtocolUpdate } else { Command::Protocol };
                self.packet(buffer, command, 0, 0, |body| protocol.encode(apv, body))
            }
            Control::SyncParam(id) => {
                let parameters = self.own_sync_param(id)?;
                let apv = self.link.apv;
                let command = if apv <= 88 { Command::SyncParam } else { Command::SyncParam89 };
                self.packet(buffer, command, volume, 0, |body| parameters.encode(apv, body))
            }
            Control::Sizes { volume: id, dds_flags, ask } => {
                let sizes = self.own_sizes(id, dds_flags, ask)?;
                self.packet(buffer, Command::Sizes, volume, 0, |body| sizes.encode(body))
            }
            Control::Uuids { uuids, .. } => self.packet(buffer, Command::Uuids, volume, 0, |body| uuids.encode(body)),
            Control::State { word, .. } => {
                let state = StateWord { word };
                self.packet(buffer, Command::State, volume, 0, |body| state.encode(body))
            }
            Control::SyncUuid { uuid, .. } => {
                let sync = SyncUuid { uuid };
                self.packet(buffer, Command::SyncUuid, volume, 0, |body| sync.encode(body))
            }
            Control::StateRequest { mask, val, .. } => {
                self.admin.ask_goes(self.now_ms);
                let request = StateRequest { mask, val };
                self.packet(buffer, Command::StateChgReq, volume, 0, |body| request.encode(body))
            }
            Control::ConnectionRequest { mask, val } => {
                self.admin.ask_goes(self.now_ms);
                let request = StateRequest { mask, val };
                let command = if self.link.apv >= 100 { Command::ConnStChgReq } else { Command::StateChgReq };
                self.packet(buffer, command, 0, 0, |body| request.encode(body))
            }
            Control::Bitmap { .. } | Control::Marks(_) | Control::Nothing => None,
        }
    }

    /// The disk is gone; only that version of its superblock has been written. A later generation of a resync is on no disk: the next
    /// resync from this disk would begin as the same one, and its target must not have it by then. The resync has ended with the disk. (The
    /// C module tells of it all the same.) Packets that wait for the disk have nothing to wait for.
    pub(super) fn forget_unwritten_resync(&mut self, id: VolumeId, is_durable: impl Fn(u32) -> bool) {
        self.control.for_each_mut(|packet| {
            if matches!(*packet, Control::SyncUuid { volume, version, .. } if volume == id && !is_durable(version)) {
                *packet = Control::Nothing;
            }
        });
        self.wakes.insert(Wakes::DATA_SENDER);
    }

    /// One packet of the bitmap; the flag says whether it was the last. What has been begun is sent to its end, whatever becomes of the
    /// exchange: the peer reads nothing else meanwhile. spec: wire-protocol 8.3
    fn bitmap_packet(&mut self, id: VolumeId, counts: bool, buffer: &mut [u8]) -> (Option<usize>, bool) {
        let apv = self.link.apv;
        let wire_version = self.link.wire_version;
        let use_rle = self.link.net.use_rle;
        let number = self.number(id);
        let header_bytes = header_size(wire_version);
        let Some(volume) = self.volume_mut(id) else { return (None, true) };
        let begun = volume.resync.sender.take();
        let (Some(disk), Some(body)) = (volume.disk.as_ref(), buffer.get_mut(header_bytes..)) else {
            return (None, true);
        };
        let mut sender = begun.unwrap_or_else(|| BitmapSender::new(disk.bitmap.bits()));
        let Ok(Some((command, bytes))) = sender.next_packet(&disk.bitmap, apv, use_rle, body) else {
            return (None, true);
        };
        let last = sender.is_over();
        volume.resync.sender = Some(sender).filter(|_| !last);
        let length = u32::try_from(bytes).unwrap_or(0);
        let header = Header { command: command as u16, volume: number, length };
        let head = header.encode(wire_version, buffer).ok().map(|_| header_bytes + bytes);
        if last && counts {
            self.bitmap_sent(id);
        }
        (head, last)
    }

    /// The bitmaps are not exchanged any more. One that is queued, or being sent, is sent all the same, as the C module does, but the
    /// next exchange does not take it for its own.
    pub(super) fn disown_bitmaps(&mut self, id: VolumeId) {
        self.control.for_each_mut(|packet| {
            if let Control::Bitmap { volume, counts } = packet {
                *counts &= *volume != id;
            }
        });
        self.with_volume(id, |volume| {
            volume.resync.receiver = None;
            volume.resync.disowned = true;
        });
        self.link.bitmap_for = self.link.bitmap_for.filter(|receives| *receives != id);
    }

    /// The packet of the last [`Engine::next_data`] has been sent, or could not be.
    pub fn data_sent(&mut self, ok: bool, now_ms: u64) {
        self.now_ms = now_ms;
        match core::mem::replace(&mut self.link.sending, Sending::Nothing) {
            Sending::Nothing | Sending::Control => {}
            Sending::Request(id) => self.request_sent(id, ok),
            Sending::Reply(id) => self.reply_sent(id),
            Sending::ResyncRequest(_) => {}
        }
        self.introduced();
        if self.link.is_closing() {
            self.wakes.insert(Wakes::LINK);
        } else if !self.data_out.is_empty() {
            self.wakes.insert(Wakes::DATA_SENDER);
        }
    }

    /// A request takes another path. If the answer was here before the owner has told that its packet is out, what it tells is not about
    /// the next packet.
    pub(super) fn answered_while_sent(&mut self, request: RequestId) {
        if self.link.sending == Sending::Request(request) {
            self.link.sending = Sending::Control;
        }
    }

    /// The next packet for the meta socket.
    pub fn next_meta(&mut self, buffer: &mut [u8], now_ms: u64) -> Option<Outgoing> {
        self.now_ms = now_ms;
        if self.link.is_closing() {
            return None;
        }
        let (packet, seq) = self.meta_out.pop()?;
        if !self.may_answer_one_more(1) {
            self.wakes.insert(Wakes::RECEIVER);
        }
        let head_bytes = match packet {
            MetaOut::Ack { command, volume, sector, block_id, size_bytes } => {
                let seq = self.sequence_of_ack(volume, packet.answers_write().then_some(seq));
                let ack = BlockAck { sector, block_id, size_bytes, seq };
                let number = self.number(volume);
                self.packet(buffer, command, number, 0, |body| ack.encode(body))
            }
            MetaOut::BarrierAck { number, set_size } => {
                let ack = BarrierAck { number, set_size };
                self.packet(buffer, Command::BarrierAck, 0, 0, |body| ack.encode(body))
            }
            MetaOut::Ping => {
                self.ping_sent();
                self.packet(buffer, Command::Ping, 0, 0, |_| Ok(0))
            }
            MetaOut::PingAck => self.packet(buffer, Command::PingAck, 0, 0, |_| Ok(0)),
            MetaOut::StateReply { volume, code } => {
                let reply = StateReply { code };
                let number = self.number(volume);
                self.packet(buffer, Command::StateChgReply, number, 0, |body| reply.encode(body))
            }
            MetaOut::ConnectionReply { code } => {
                let reply = StateReply { code };
                let command = if self.link.apv >= 100 { Command::ConnStChgReply } else { Command::StateChgReply };
                self.packet(buffer, command, 0, 0, |body| reply.encode(body))
            }
        }?;
        self.link.sending_meta = true;
        Some(Outgoing {
            head_bytes,
            payload: Payload::None,
            digest_bytes: 0,
            copy: false,
            last: self.meta_out.is_empty(),
        })
    }

    /// The packet of the last [`Engine::next_meta`] has been sent, or could not be.
    pub fn meta_sent(&mut self, _ok: bool, now_ms: u64) {
        self.now_ms = now_ms;
        self.link.sending_meta = false;
        if self.link.is_closing() {
            self.wakes.insert(Wakes::LINK);
        } else if self.meta_out.is_empty() {
            // The peer's orderly disconnect has been answered: now it happens.
            if let Some(change) = self.link.tear_down.take() {
                self.tear_down(change);
            }
        }
    }

    // What the packets of the handshake say about this node.

    fn own_protocol(&self) -> Protocol {
        let net = &self.link.net;
        let mut flags = 0;
        if self.link.discarding {
            flags |= crate::wire::CONN_DISCARD_MY_DATA;
        }
        if net.tentative {
            flags |= crate::wire::CONN_DRY_RUN;
        }
        Protocol {
            wire_protocol: net.wire_protocol.as_u32(),
            after_sb_0p: net.after_sb_0p.as_u32(),
            after_sb_1p: net.after_sb_1p.as_u32(),
            after_sb_2p: net.after_sb_2p.as_u32(),
            conn_flags: flags,
            two_primaries: u32::from(net.two_primaries),
            integrity_alg: net.integrity_alg,
        }
    }

    /// spec: wire-protocol 4.5
    fn own_sync_param(&self, id: VolumeId) -> Option<SyncParam> {
        let volume = self.volume(id)?;
        let defaults = crate::netlink::DiskConf::default();
        let conf = if volume.disk.is_some() { &volume.conf } else { &defaults };
        Some(SyncParam {
            resync_rate: conf.resync_rate,
            verify_alg: self.link.net.verify_alg,
            csums_alg: self.link.net.csums_alg,
            controller: Some(Controller {
                c_plan_ahead: conf.c_plan_ahead,
                c_delay_target: conf.c_delay_target,
                c_fill_target: conf.c_fill_target,
                c_max_rate: conf.c_max_rate,
            }),
        })
    }

    /// spec: wire-protocol 4.6
    fn own_sizes(&self, id: VolumeId, dds_flags: u16, ask: bool) -> Option<Sizes> {
        let volume = self.volume(id)?;
        let disk = volume.disk.as_ref().filter(|_| volume.state.disk >= Disk::Negotiating);
        // Of the devices as they are: the other node may have seen that both have grown.
        let usable = volume.layout_now(None).map_or(0, |layout| layout.usable_sectors);
        let most = crate::wire::max_bio_size_announced(self.link.apv);
        Some(Sizes {
            d_size: disk.map_or(0, |_| usable),
            u_size: disk.map_or(0, |_| volume.conf.disk_size),
            c_size: if ask { 0 } else { volume.size_sectors },
            max_bio_size: disk.map_or(most, |disk| disk.limits.max_bio_bytes.min(most)),
            queue_order_type: 0,
            dds_flags,
            limits: (self.link.features & crate::wire::FEATURE_WSAME != 0).then(|| volume.queue_limits()),
        })
    }

    /// What P_UUIDS says. spec: wire-protocol 4.7
    pub(super) fn own_uuids(&self, id: VolumeId, extra: UuidFlags) -> Option<(Uuids, u32)> {
        let volume = self.volume(id)?;
        let disk = volume.disk.as_ref()?;
        let mut flags = extra;
        flags = flags.with_if(volume.discard_my_data, UuidFlags::DISCARD_MY_DATA);
        flags = flags.with_if(disk.crashed_primary, UuidFlags::CRASHED_PRIMARY);
        let negotiating = volume.negotiated.is_some_and(|(own, _)| own == Disk::Inconsistent);
        flags = flags.with_if(negotiating && volume.state.disk == Disk::Negotiating, UuidFlags::INCONSISTENT);
        let mut uuids = disk.uuids();
        if let Some(current) = uuids.first_mut() {
            *current = if volume.state.role == Role::Primary { *current | 1 } else { *current & !1 };
        }
        Some((Uuids { uuids, dirty_bits: disk.bitmap.weight(), flags }, disk.pipeline.version()))
    }

    pub(super) fn send_uuids(&mut self, id: VolumeId) {
        if let Some((uuids, version)) = self.own_uuids(id, UuidFlags::default()) {
            self.with_volume(id, |volume| volume.told_bits = uuids.dirty_bits);
            self.queue_control(Control::Uuids { volume: id, uuids, version });
            self.sync_metadata(id);
        }
    }

    pub(super) fn send_sizes(&mut self, id: VolumeId, dds_flags: u16, ask: bool) {
        self.queue_control(Control::Sizes { volume: id, dds_flags, ask });
    }

    /// Tells the peer this state of a volume.
    ///
    /// A disk that is being attached is not there yet. A C module that heard of it would not answer when it is, and this node would wait
    /// for that for ever. (Two C modules do, where the nodes meet in the middle of an attach.)
    pub(super) fn send_state(&mut self, id: VolumeId, state: State) {
        let disk = if state.disk == Disk::Attaching { Disk::Diskless } else { state.disk };
        let state = State { disk, ..state };
        self.queue_control(Control::State { volume: id, word: state.word(Susp::default()) });
    }

    /// Everything about a volume the peer has to know. spec: wire-protocol 4.1 (6)
    pub(super) fn send_volume_parameters(&mut self, id: VolumeId) {
        let discard_my_data = self.link.discarding;
        self.with_volume(id, |volume| {
            volume.packet_seq = 0;
            volume.acked_seq = 0;
            volume.peer_seq = 0;
            volume.discard_my_data = discard_my_data;
            volume.degraded_wait = false;
            volume.resize_pending = false;
        });
        self.queue_control(Control::SyncParam(id));
        self.send_sizes(id, 0, false);
        let Some(state) = self.volume(id).map(|volume| volume.state) else { return };
        if state.disk >= Disk::Negotiating {
            self.send_uuids(id);
        }
        self.send_state(id, state);
    }

    /// Drops everything queued for the sockets: the connection is over.
    pub(super) fn forget_packets(&mut self) {
        self.data_out.clear();
        self.link.queued_writes = 0;
        // Nor is a barrier due for writes that went out on the old connection.
        self.link.sent_writes = 0;
        self.link.barrier_due = false;
        self.control.clear();
        self.meta_out.clear();
        self.link.sending = Sending::Nothing;
        self.link.sending_meta = false;
    }
}

fn put_bytes(bytes: &[u8], body: &mut [u8]) -> Result<usize, BufferTooSmall> {
    body.get_mut(..bytes.len()).ok_or(BufferTooSmall)?.copy_from_slice(bytes);
    Ok(bytes.len())
}
