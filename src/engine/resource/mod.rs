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
//! Every call takes `now_ms`, a monotonic clock in milliseconds, where time matters. No call blocks or allocates,
//! except `new`, `add_volume`, `attach` and `resize`, which may allocate through [`Storage`]. After **every** call the owner
//! fetches `take_wakes()` and looks after the queues named there.
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
//! request(RequestId) -> Option<RequestView { volume, op, sector, size_bytes }>
//! open(VolumeId, write: bool) -> Result<(), OpenError::{ReadOnly, NotPrimary}>;  release(VolumeId, write)
//!
//! // local I/O on the backing device
//! poll_local() -> Option<LocalIo>                               // carry out in process context
//! request_io_done(RequestId, IoResult, now_ms)                  // any context
//! peer_io_done(PeerId, IoResult, now_ms)                        // any context
//! flush_done(VolumeId, IoResult, now_ms)
//! poll_completion() -> Option<Completion>                       // any context
//!
//! // meta data of one volume: superblock, activity log, bitmap pages (one thread a volume)
//! next_metadata_io(VolumeId, &mut [u8; 4096]) -> Option<MetadataIo>   // several may be in flight; None: wait for METADATA
//! metadata_io_done(VolumeId, ticket, IoResult, &[u8; 4096], now_ms)   // the buffer matters for reads only
//!
//! // administrator; one request at a time per resource (the owner serialises)
//! admin(AdminRequest<'_>, now_ms)                               // starts it
//! admin_result() -> Option<AdminResult { code: i32, info: AdminInfo }>  // when Wakes::ADMIN
//! admin_cancel(now_ms)                                          // the waiting user was interrupted
//!
//! // the link (connection thread; data reader, meta reader, data sender, meta sender)
//! link_task() -> LinkTask
//! link_up(resolve_conflicts: bool, now_ms)                      // both sockets stand
//! data_header_bytes() -> usize                                  // 8 or 16
//! data_header(&[u8], now_ms) -> Result<PacketHead, Fault>       // PacketHead.body_bytes: read so many bytes (<= 4096) next
//! data_packet(&PacketHead, body: &[u8], now_ms) -> Result<Next, Fault>
//! payload_received(PeerId, now_ms) -> Result<(), Fault>
//! read_reply_received(RequestId, now_ms) -> Result<(), Fault>
//! receiver_may_read() -> bool                                   // false: wait for Wakes::RECEIVER before the next header
//! meta_header(&[u8], now_ms) -> Result<PacketHead, Fault>; meta_packet(&PacketHead, &[u8], now_ms) -> Result<(), Fault>
//! meta_receive_timeout_ms() -> u32; meta_timeout(data_arrived: bool, now_ms) -> Result<(), Fault>
//! next_data(&mut [u8], now_ms) -> Option<Outgoing>; data_sent(ok: bool, now_ms)     // strictly alternating
//! next_meta(&mut [u8], now_ms) -> Option<Outgoing>; meta_sent(ok: bool, now_ms)
//! link_failed(LinkFailure, now_ms)
//! link_drained() -> bool                                        // no peer request is in flight on a disk or in a sender
//! link_closed(now_ms)                                           // sockets are gone, nobody uses them
//!
//! // time and everything else
//! tick(now_ms)                                                  // every 100 ms while wants_tick()
//! poll_work() -> Option<Work>                                   // carried out by the resource's worker, in order
//! helper_done(ticket: u32, exit_code: i32, now_ms);  backing_released(VolumeId, now_ms)
//! volume_status(VolumeId) -> VolumeStatus; connection_status() -> ConnectionStatus; resource_status() -> ResourceStatus
//! ```
//!
//! A [`Fault`] means: the connection is given up; the engine has already changed its state and `link_task()` says
//! [`LinkTask::Close`]. The owner logs it (it is `Display`) and winds the link down.

mod api;

pub use api::*;

use crate::storage::Storage;

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

/// The engine of one resource. See the module's text for the contract.
pub struct Engine<S: Storage> {
    _storage: core::marker::PhantomData<S>,
}
