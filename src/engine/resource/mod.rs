// SPDX-License-Identifier: GPL-2.0
//! One resource: its connection, its volumes and every request on them.
//!
//! [`Engine`] composes the parts of this crate: it is told what happened (a bio arrived, a packet was read, a
//! transfer completed, time passed, an administrator asked) and keeps in bounded queues what has to be done about it
//! (submit, send, write meta data, complete, report). Whoever owns it carries that out and reports back. The kernel
//! module owns it under one spinlock per resource, the simulator owns two of them and a simulated world between.
//!
//! # The contract (what the owner calls, and when)
//!
//! Every call takes `now_ms`, a monotonic clock in milliseconds, where time matters. No call blocks, allocates or frees,
//! except `new`: tables for an attach or a resize are made, and released ones dropped, by the owner without its lock.
//! After **every** call, or several in one critical section, the owner fetches `take_wakes()` and looks after the queues
//! named there.
//!
//! ```text
//! // set-up
//! Engine::new(options: &ResourceOpts, limits: TableLimits) -> Result<Engine<S>, OutOfMemory>
//! wants_entropy() -> bool; add_entropy(u64)                    // random numbers for UUIDs, topped up by the owner
//! add_volume(vnr: u16, minor: u32, now_ms) -> Result<VolumeId, RetCode>
//! remove_volume(VolumeId, now_ms) -> Result<(), RetCode>
//! volume_by_number(vnr) / volume_by_minor(minor) -> Option<VolumeId>;  volumes() -> iterator of VolumeId
//!
//! // application I/O (process context)
//! submit(VolumeId, IoRequest, now_ms) -> Submit
//! few_requests() -> bool                                        // who submits should send at once: nobody else has anything
//! request(RequestId) -> Option<RequestView { volume, op, sector, size_bytes }>
//! open(VolumeId, write: bool) -> Result<(), OpenError::{ReadOnly, NotPrimary}>;  release(VolumeId, write)
//!
//! // local I/O on the backing device
//! poll_local() -> Option<LocalIo>                               // carry out in process context
//! has_local() -> bool                                           // it has something
//! clears_ordered() -> u64                                       // volumes for which poll_clear has something new
//! poll_clear(VolumeId) -> Option<LocalIo>                       // discards and zeroes: may wait for the disk
//! request_io_done(RequestId, IoResult, now_ms)                  // any context
//! peer_io_done(PeerId, IoResult, now_ms)                        // any context
//! flush_done(VolumeId, IoResult, now_ms)
//! inspected(PeerId, Finding, now_ms) -> bool                     // any context; true: keep the slot's pages, they are sent
//! poll_completion() -> Option<Completion>                       // any context
//!
//! // meta data of one volume: superblock, activity log, bitmap pages (one thread a volume)
//! next_metadata_io(VolumeId, &mut [u8; 4096]) -> Option<MetadataIo>   // several may be in flight; None: wait for METADATA
//! metadata_io_done(VolumeId, ticket, IoResult, &[u8; 4096], now_ms)   // the buffer matters for reads only
//!
//! // administrator; one request at a time per resource (the owner serialises)
//! admin(AdminRequest<'_>, now_ms)                               // starts it
//! know_algorithm(&AlgorithmName, digest_bytes) -> bool          // before Connect and NetOptions: what can be computed
//! wanted_algorithms() -> [AlgorithmName; 3]; algorithms_looked_for(now_ms)   // answers Work::Algorithms
//! plan_attach(VolumeId, &DiskConf, &Backing) -> Result<AttachPlan, AdminResult>; AttachTables::new(plan)   // the latter without the lock
//! attach(VolumeId, &DiskConf, &Backing, AttachTables<S>, now_ms)   // a request as well; -18, of the plan too: again when not is_meeting()
//! device_sizes(VolumeId, DeviceSizes)                           // before AdminRequest::Resize and link_up; see wants_device_sizes
//! resize(VolumeId, Option<BitmapTables<S>>, now_ms) -> Option<BitmapTables<S>>   // answers DeviceWork::Resize; drop the old ones unlocked
//! admin_result() -> Option<AdminResult { code: i32, info: AdminInfo }>  // when Wakes::ADMIN
//! admin_cancel(now_ms)                                          // the waiting user was interrupted
//!
//! // the link (connection thread; data reader, meta reader, data sender, meta sender)
//! link_task() -> LinkTask
//! link_up(resolve_conflicts: bool, now_ms)                      // both sockets stand
//! data_header_bytes() -> usize                                  // 8 or 16
//! data_header(&[u8], now_ms) -> Result<PacketHead, Fault>       // PacketHead.body_bytes: read so many bytes (<= 4096) next
//! wants_device_sizes(&PacketHead) -> Option<VolumeId>           // Some: call device_sizes before data_packet
//! data_packet(&PacketHead, body: &[u8], now_ms) -> Result<Next, Fault>
//! own_challenge() -> Digest; authenticate(Option<(Digest, Digest)>, now_ms) -> Result<(), Fault>   // answers Next::Authenticate
//! received_integrity() -> Option<AlgorithmName>                  // Some: before the next two calls check the data's digest
//! check_payload(Option<Digest>, now_ms) -> Result<(), Fault>
//! payload_received(PeerId, now_ms) -> Result<(), Fault>
//! read_reply_received(RequestId, now_ms) -> Result<(), Fault>
//! receiver_may_read() -> bool                                   // false: wait for Wakes::RECEIVER before the next header
//! meta_header_bytes() -> Option<usize>                          // 8 or 16; None: features not exchanged, wait for RECEIVER, read nothing
//! meta_header(&[u8], now_ms) -> Result<PacketHead, Fault>; meta_packet(&PacketHead, &[u8], now_ms) -> Result<(), Fault>
//! meta_receive_timeout_ms() -> u32; meta_timeout(data_arrived: bool, now_ms) -> Result<(), Fault>
//! sent_integrity() -> AlgorithmName                             // of the digest of Outgoing.digest_bytes
//! next_data(&mut [u8], now_ms) -> Option<Outgoing>; data_sent(ok: bool, now_ms)     // strictly alternating
//! next_meta(&mut [u8], now_ms) -> Option<Outgoing>; meta_sent(ok: bool, now_ms)   // one meta_sent for several packets will do
//! handshake_is_over() -> bool                                   // false: the peer's packets have to come within 4 x ping-timeout
//! link_failed(LinkFailure, now_ms)
//! awaits_reason() -> bool                                       // one socket has ended: leave the other one to its reader
//! parting(now_ms) -> Parting                                    // how the sockets are left, asked again while it is not AtOnce
//! link_drained() -> bool                                        // no peer request is in flight on a disk or in a sender
//! link_closed(now_ms) -> Reconnect                              // sockets are gone, nobody uses them
//!
//! // time and everything else
//! tick(now_ms)                                                  // every 100 ms while wants_tick()
//! poll_device_work() -> Option<DeviceWork>; has_device_work() -> bool   // carried out in order, by whoever is free: see below
//! poll_work() -> Option<Work>; work_ordered() -> u64            // carried out by the resource's worker, in order; how many so far
//! poll_log() -> Option<Work>                                    // what the kernel log has to say of it, also while a program runs
//! metadata_is_stored(Option<VolumeId>) -> bool                  // to be waited for, for a while, before a helper is run
//! helper_done(ticket: u32, exit_code: i32, now_ms);  backing_released(VolumeId, now_ms) -> Option<ReleasedTables<S>>
//! volume_status(VolumeId) -> Option<VolumeStatus>; connection_status() -> ConnectionStatus; resource_status() -> ResourceStatus
//! ```
//!
//! Orders for devices ([`DeviceWork`]) are a queue of their own because the worker may be busy with a program for a long time, and the
//! program may give commands itself. Who waits for [`Engine::admin_result`] carries them out meanwhile, and once more before
//! it answers: then the device is what the command has made of it.
//!
//! A [`Fault`] means: the connection is given up; the engine has already changed its state and `link_task()` says
//! [`LinkTask::Close`]. The owner logs it (it is `Display`) and winds the link down.

mod admin;
mod api;
mod application;
mod authenticate;
mod buffers;
mod change;
mod conflict;
mod disk;
mod disk_timeout;
mod fencing;
mod frozen;
mod incoming;
mod inspect;
mod link;
mod marks;
mod meeting;
mod metadata_pipeline;
mod outgoing;
mod overlaps;
mod peer;
mod received_epoch;
mod resize;
mod ring;
mod sabotage;
mod slots;
mod state_request;
mod status;
mod sync;
mod throttle;
mod verify;
mod volume;
mod work;

pub use admin::{AdminInfo, AdminRequest, AdminResult, Backing};
pub use api::*;
pub use authenticate::{hmac_of, CHALLENGE_BYTES};
pub use disk::{AttachPlan, AttachTables, ReleasedTables};
pub use incoming::{Fault, PacketHead};
pub use inspect::AlgorithmName;
pub use link::{Parting, Reconnect};
pub use resize::DeviceSizes;
#[cfg(feature = "sabotage")]
pub use sabotage::Sabotage;
#[cfg(not(feature = "sabotage"))]
use sabotage::Sabotage;
pub use status::{ConnectionStatus, RequestView, ResourceStatus, SyncStatus, Usage, VolumeStatus};
pub use volume::Counters;
pub use work::{DeviceWork, LogLine, Notice, Overall, Work};

use crate::netlink::{ResourceOpts, RetCode};
use crate::state::{Conn, Disk, Role, Susp};
use crate::storage::{OutOfMemory, Storage};
use admin::Admin;
use authenticate::HandshakeDigests;
use buffers::PeerBuffers;
use conflict::HeldAck;
use inspect::Algorithms;
use link::{Departed, Link};
use outgoing::{Control, DataOut, MetaOut};
use overlaps::Overlaps;
use ring::Ring;
use slots::{List, PeerTable, RequestTable, TransferLog};
use volume::Volume;

/// Bound: control packets waiting for the data socket.
const MAX_CONTROL_PACKETS: usize = 1024;
/// Bound: packets for the meta socket that one request of the peer leads to, P_RECV_ACK and what its disk says.
const ANSWERS: usize = 2;
/// Bound: control answers waiting for the meta socket, besides [`ANSWERS`].
const MAX_META_CONTROL: usize = 64;
/// Bound: notices and orders waiting for the resource's worker.
const MAX_WORK: usize = 2048;
/// Bound: orders for devices. Of each kind there is at most one for a volume.
const MAX_DEVICE_WORK: usize = 6 * MAX_VOLUMES_PER_RESOURCE;
/// Random numbers held in stock.
const ENTROPY: usize = 16;

/// Lengths of a resource's tables.
#[derive(Clone, Copy, Debug)]
pub struct TableLimits {
    /// Volumes, 1..=[`MAX_VOLUMES_PER_RESOURCE`].
    pub volumes: usize,
    /// Application requests, 16..=[`MAX_REQUESTS_PER_RESOURCE`].
    pub requests: usize,
    /// Peer requests, 16..=[`MAX_PEER_REQUESTS_PER_RESOURCE`].
    pub peer_requests: usize,
}

impl Default for TableLimits {
    fn default() -> Self {
        TableLimits {
            volumes: MAX_VOLUMES_PER_RESOURCE,
            requests: MAX_REQUESTS_PER_RESOURCE,
            peer_requests: MAX_PEER_REQUESTS_PER_RESOURCE,
        }
    }
}

/// Why an open was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// Opened for writing while not Primary (EROFS).
    ReadOnly,
    /// Opened for reading while not Primary (EMEDIUMTYPE).
    NotPrimary,
}

/// The engine of one resource. See the module's text for the contract.
pub struct Engine<S: Storage> {
    /// Clock at the last call.
    now_ms: u64,
    options: ResourceOpts,
    /// Reasons why application I/O is suspended.
    susp: Susp,
    /// No volume lacks its data any more; frozen I/O goes on when all of them know that the connection is lost.
    data_back: bool,
    link: Link,
    volumes: S::Table<Option<Volume<S>>>,
    /// No entry of `volumes` from here on was ever used.
    volumes_end: usize,
    requests: RequestTable<S>,
    peers: PeerTable<S>,
    buffers: PeerBuffers,
    /// Entries: one for each request slot, then two for each peer slot.
    overlaps: Overlaps<S>,
    log: TransferLog,
    /// Writes that are not on it any more, by epoch.
    departed: Departed<S>,
    held_acks: Ring<HeldAck, S>,
    /// Became ready during the present call; started by [`Engine::pump`].
    ready: List,
    ready_peers: List,
    /// Writes to be done again, after a write of a peer that is Primary as well.
    restarts: List,
    /// By slot of the peer requests: the digest that belongs to one.
    digests: S::Table<Digest>,
    algorithms: Algorithms<S>,
    handshake_digests: HandshakeDigests,
    /// What came with the data that is being received.
    payload_digest: Digest,
    local: Ring<LocalIo, S>,
    /// Discards and zeroes, apart from the rest because whoever carries them out waits for the disk.
    clears: Ring<LocalIo, S>,
    /// Volumes that have got one lately, one bit each.
    clears_ordered: u64,
    completions: Ring<Completion, S>,
    data_out: Ring<DataOut, S>,
    control: Ring<Control, S>,
    /// Packets, each with its sequence number if it has one.
    meta_out: Ring<(MetaOut, u32), S>,
    work: Ring<Work, S>,
    work_ordered: u64,
    /// Of the orders at the front of `work`: so many have been looked at for the kernel log.
    work_logged: usize,
    device_work: Ring<DeviceWork, S>,
    wakes: Wakes,
    /// Volumes whose activity log may have room again, one bit each ([`MAX_VOLUMES_PER_RESOURCE`] is 64).
    log_retry: u64,
    /// Application requests under way, on all volumes.
    upper_pending: u32,
    /// Those of them that are reads which the peer is asked for.
    peer_reads: u32,
    /// Somebody holds application requests back until [`Wakes::GATE`].
    gate_waiters: bool,
    admin: Admin,
    entropy: [u64; ENTROPY],
    entropy_len: usize,
    next_ticket: u32,
    /// When requests that disks do not answer were looked for last.
    disks_checked_ms: u64,
    #[cfg(feature = "sabotage")]
    sabotage: Option<Sabotage>,
}

impl<S: Storage> Engine<S> {
    /// A resource without volumes, StandAlone.
    ///
    /// # Errors
    /// [`OutOfMemory`] when a table cannot be had.
    pub fn new(options: &ResourceOpts, limits: TableLimits) -> Result<Self, OutOfMemory> {
        let requests = limits.requests.clamp(16, MAX_REQUESTS_PER_RESOURCE);
        let peers = limits.peer_requests.clamp(16, MAX_PEER_REQUESTS_PER_RESOURCE);
        let volumes = limits.volumes.clamp(1, MAX_VOLUMES_PER_RESOURCE);
        Ok(Engine {
            now_ms: 0,
            options: *options,
            susp: Susp::default(),
            data_back: false,
            link: Link::new(),
            volumes: S::table(volumes, |_| None)?,
            volumes_end: 0,
            requests: RequestTable::new(requests)?,
            peers: PeerTable::new(peers)?,
            buffers: PeerBuffers::default(),
            overlaps: Overlaps::new(requests + 2 * peers)?,
            log: TransferLog::EMPTY,
            departed: Departed::new(requests)?,
            held_acks: Ring::new(requests)?,
            ready: List::EMPTY,
            ready_peers: List::EMPTY,
            restarts: List::EMPTY,
            digests: S::table(peers, |_| Digest::EMPTY)?,
            algorithms: Algorithms::new()?,
            handshake_digests: HandshakeDigests::NONE,
            payload_digest: Digest::EMPTY,
            local: Ring::new(requests + peers + volumes)?,
            clears: Ring::new(requests + peers)?,
            clears_ordered: 0,
            completions: Ring::new(requests)?,
            // A slot has at most one entry; the control packets have one each.
            data_out: Ring::new(requests + 2 * peers + MAX_CONTROL_PACKETS)?,
            control: Ring::new(MAX_CONTROL_PACKETS)?,
            meta_out: Ring::new(ANSWERS * peers + MAX_META_CONTROL)?,
            work: Ring::new(MAX_WORK)?,
            work_ordered: 0,
            work_logged: 0,
            device_work: Ring::new(MAX_DEVICE_WORK)?,
            wakes: Wakes::default(),
            log_retry: 0,
            upper_pending: 0,
            peer_reads: 0,
            gate_waiters: false,
            admin: Admin::default(),
            entropy: [0; ENTROPY],
            entropy_len: 0,
            next_ticket: 1,
            disks_checked_ms: 0,
            #[cfg(feature = "sabotage")]
            sabotage: None,
        })
    }

    /// What the owner has to look after. Call after every other call, under the same lock; finishes what the call began.
    pub fn take_wakes(&mut self) -> Wakes {
        self.pump();
        core::mem::take(&mut self.wakes)
    }

    /// True when the stock of random numbers is not full.
    pub fn wants_entropy(&self) -> bool {
        self.entropy_len < ENTROPY
    }

    /// Adds a random number to the stock that new UUIDs are made from.
    pub fn add_entropy(&mut self, random: u64) {
        if let Some(place) = self.entropy.get_mut(self.entropy_len) {
            *place = random;
            self.entropy_len += 1;
        }
    }

    /// A random number from the stock. When the stock is empty the last numbers are mixed once more; the owner tops it
    /// up at every control event, so this is the exception.
    fn random(&mut self) -> u64 {
        if self.entropy_len > 0 {
            self.entropy_len -= 1;
        }
        let value = self.entropy.get(self.entropy_len).copied().unwrap_or(0);
        let mut mixed = value ^ self.now_ms.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        if let Some(place) = self.entropy.get_mut(self.entropy_len) {
            *place = mixed ^ (mixed >> 31);
        }
        // 0 and 4 mean something else, the lowest bit carries the role.
        (mixed ^ (mixed >> 31)) | 0x10
    }

    fn new_ticket(&mut self) -> u32 {
        let ticket = self.next_ticket;
        self.next_ticket = self.next_ticket.wrapping_add(1).max(1);
        ticket
    }

    /// Adds a diskless volume.
    ///
    /// # Errors
    /// 161 when the number or minor is taken, 122 when the table is full.
    // spec: netlink 6 NEW_MINOR
    pub fn add_volume(&mut self, number: u16, minor: u32, now_ms: u64) -> Result<VolumeId, RetCode> {
        self.now_ms = now_ms;
        if self.volume_by_number(number).is_some() || self.volume_by_minor(minor).is_some() {
            return Err(RetCode::MinorOrVolumeExists);
        }
        let conn = self.link.conn;
        let free = self.volumes.iter().position(Option::is_none).ok_or(RetCode::Nomem)?;
        let id = VolumeId(u8::try_from(free).map_err(|_| RetCode::Nomem)?);
        if let Some(place) = self.volumes.get_mut(free) {
            *place = Some(Volume::new(number, minor, conn));
            self.volumes_end = self.volumes_end.max(free.saturating_add(1));
        }
        if self.link.is_running() {
            self.send_volume_parameters(id);
        }
        Ok(id)
    }

    /// Removes a diskless Secondary volume.
    ///
    /// # Errors
    /// 160 when it has a disk or is Primary, 127 when there is none.
    // spec: netlink 6 DEL_MINOR
    pub fn remove_volume(&mut self, id: VolumeId, now_ms: u64) -> Result<(), RetCode> {
        self.now_ms = now_ms;
        let volume = self.volume(id).ok_or(RetCode::MinorInvalid)?;
        let busy = volume.disk.is_some() || volume.upper_pending > 0 || volume.unacked > 0 || volume.lower_pending > 0;
        if volume.state.disk != Disk::Diskless || volume.state.role != Role::Secondary || busy {
            return Err(RetCode::MinorConfigured);
        }
        self.control.retain(|packet| packet.volume() != Some(id));
        let removed = self.control.len();
        let mut seen = 0usize;
        // The places of its control packets in the order of the socket go with them.
        self.data_out.retain(|entry| {
            if matches!(entry, DataOut::Control) {
                seen += 1;
                seen <= removed
            } else {
                true
            }
        });
        if let Some(place) = self.volumes.get_mut(usize::from(id.0)) {
            *place = None;
        }
        Ok(())
    }

    /// The volume with this number.
    pub fn volume_by_number(&self, number: u16) -> Option<VolumeId> {
        self.volumes_with(|volume| volume.number == number).next()
    }

    /// The volume with this minor.
    pub fn volume_by_minor(&self, minor: u32) -> Option<VolumeId> {
        self.volumes_with(|volume| volume.minor == minor).next()
    }

    /// All volumes in the order of their table.
    pub fn volumes(&self) -> impl Iterator<Item = VolumeId> + '_ {
        self.volumes_with(|_| true)
    }

    fn volumes_with<'a>(
        &'a self,
        mut wanted: impl FnMut(&Volume<S>) -> bool + 'a,
    ) -> impl Iterator<Item = VolumeId> + 'a {
        self.volumes.iter().take(self.volumes_end).enumerate().filter_map(move |(index, place)| {
            place.as_ref().filter(|volume| wanted(volume)).map(|_| VolumeId(index as u8))
        })
    }

    /// Indices of volumes are below this number.
    pub fn volumes_end(&self) -> usize {
        self.volumes_end
    }

    /// Every possible identifier, for loops that change volumes on the way.
    fn volume_ids(&self) -> impl Iterator<Item = VolumeId> {
        (0..self.volumes_end as u8).map(VolumeId)
    }

    fn volume(&self, id: VolumeId) -> Option<&Volume<S>> {
        self.volumes.get(usize::from(id.0)).and_then(Option::as_ref)
    }

    fn volume_mut(&mut self, id: VolumeId) -> Option<&mut Volume<S>> {
        self.volumes.get_mut(usize::from(id.0)).and_then(Option::as_mut)
    }

    /// Opens the device of a volume.
    ///
    /// # Errors
    /// [`OpenError`] while the volume is not Primary.
    // spec: proc-and-sysfs 3
    pub fn open(&mut self, id: VolumeId, write: bool) -> Result<(), OpenError> {
        let Some(volume) = self.volume_mut(id) else { return Err(OpenError::NotPrimary) };
        match (volume.state.role == Role::Primary, write) {
            (false, true) => Err(OpenError::ReadOnly),
            (false, false) => Err(OpenError::NotPrimary),
            (true, true) => {
                volume.writers += 1;
                Ok(())
            }
            (true, false) => {
                volume.readers += 1;
                Ok(())
            }
        }
    }

    /// Takes an [`Engine::open`] back.
    pub fn release(&mut self, id: VolumeId, write: bool) {
        if let Some(volume) = self.volume_mut(id) {
            let opens = if write { &mut volume.writers } else { &mut volume.readers };
            *opens = opens.saturating_sub(1);
        }
    }

    /// Something that cannot happen has happened. The connection is given up: what the peer thinks and what we think
    /// may have parted, and a new handshake puts that right. Nothing else is touched; nobody panics.
    fn internal_error(&mut self, what: &'static str) {
        self.log(LogLine::InternalError { what });
        self.link_fault(Conn::ProtocolError);
    }
}
