// SPDX-License-Identifier: GPL-2.0
//! What goes into and comes out of a resource's engine: plain values, no behaviour.
//!
//! Identifiers are an index into a preallocated table plus a generation. An identifier that comes back from outside
//! (the wire's `block_id`) is only believed when its generation still fits.

use core::fmt;
use core::num::NonZeroU8;

/// Bound: volumes of one resource. Volume *numbers* may be anything up to 65534.
pub const MAX_VOLUMES_PER_RESOURCE: usize = 64;
/// Bound: application requests of one resource between `submit` and their release.
pub const MAX_REQUESTS_PER_RESOURCE: usize = 4096;
/// Bound: requests received from the peer, or made for resync, that have not been answered.
pub const MAX_PEER_REQUESTS_PER_RESOURCE: usize = 2048;
/// Size in bytes of the buffer for one outgoing packet without its application data.
pub const PACKET_BUFFER_BYTES: usize = 4096 + 16;

/// Index of a volume in its resource's table; stable until the volume is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VolumeId(pub u8);

/// An application request: slot and generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId {
    /// Slot, below [`MAX_REQUESTS_PER_RESOURCE`]; the shell keeps the bio in a table of the same length.
    pub index: u16,
    /// Counts the reuses of the slot.
    pub generation: u32,
}

/// A request on behalf of the peer or of resync: slot and generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerId {
    /// Slot, below [`MAX_PEER_REQUESTS_PER_RESOURCE`]; the shell keeps the pages in a table of the same length.
    pub index: u16,
    /// Counts the reuses of the slot.
    pub generation: u32,
}

/// What a block request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Read.
    Read,
    /// Write with data.
    Write,
    /// The contents are no longer needed.
    Discard,
    /// Must read back as zeroes; `unmap` allows to deallocate.
    WriteZeroes {
        /// Deallocation is allowed.
        unmap: bool,
    },
    /// Only a flush of the write cache; size 0.
    Flush,
}

impl Op {
    /// True for everything that changes data.
    pub fn is_write(self) -> bool {
        matches!(self, Op::Write | Op::Discard | Op::WriteZeroes { .. })
    }
}

/// Flags of a block request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoFlags {
    /// Durable when completed.
    pub fua: bool,
    /// Flush the write cache first.
    pub preflush: bool,
    /// Somebody waits for it.
    pub sync: bool,
    /// A read that nobody asked for yet; may fail without consequence.
    pub readahead: bool,
    /// Last of a plug: the peer should start at once.
    pub unplug: bool,
}

/// An application request as it arrives at `/dev/drbdN`.
#[derive(Clone, Copy, Debug)]
pub struct IoRequest {
    /// What to do.
    pub op: Op,
    /// First sector (512 bytes).
    pub sector: u64,
    /// Length in bytes, a multiple of 512; 0 for [`Op::Flush`].
    pub size_bytes: u32,
    /// Flags.
    pub flags: IoFlags,
}

/// Why a block request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoError {
    /// Input/output error.
    Io,
    /// The operation is not supported by the lower disk.
    NotSupported,
    /// Any other reason of the lower disk, by the number that the owner knows it by: an application may want to know it, as that
    /// there is no space left.
    Lower(NonZeroU8),
}

/// Result of a block request.
pub type IoResult = Result<(), IoError>;

/// The engine's answer to an arriving application request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submit {
    /// The engine owns it now. Store the bio in the slot *before* the engine's lock is released; drain the queues.
    Accepted(RequestId),
    /// Not now (suspended, negotiating, no free slot). Keep it in order of arrival; submit again on [`Wakes::GATE`].
    Later,
    /// Complete it with this error; the engine keeps nothing.
    Failed(IoError),
}

/// Local I/O the shell has to submit to the backing device. Never from interrupt context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalIo {
    /// Clone the application's bio to the backing device; report with `request_io_done`.
    Request {
        /// The slot whose bio is cloned.
        request: RequestId,
        /// Volume.
        volume: VolumeId,
        /// Same as that of the bio, except that discard and zeroes may be executed differently.
        op: Op,
        /// With pages of its own, copied from or to those of the bio: the bio may end while the device still has the
        /// request. What was read is copied while [`super::RequestView::on_disk`] holds, and not later.
        copy: bool,
    },
    /// Read into or write from the pages of a peer request; report with `peer_io_done`.
    Peer {
        /// The slot whose pages are used.
        peer: PeerId,
        /// Volume.
        volume: VolumeId,
        /// Read, write, discard (aligned part discarded, rest zeroed), write zeroes.
        op: Op,
        /// First sector.
        sector: u64,
        /// Length in bytes.
        size_bytes: u32,
        /// Flags for the lower bio.
        flags: IoFlags,
    },
    /// Flush the write cache of the backing device; report with `flush_done`.
    Flush {
        /// Volume.
        volume: VolumeId,
    },
    /// Look at the data that was read into the pages of a peer request; report with `inspected`. Needs no disk.
    Inspect {
        /// The slot whose pages are looked at.
        peer: PeerId,
        /// What is to be found out.
        what: Inspect,
    },
}

impl LocalIo {
    /// Discards or zeroes, which may take long and is waited for. Its volume, and nothing for everything else.
    pub fn clears(&self) -> Option<VolumeId> {
        match *self {
            LocalIo::Request { volume, op, .. } | LocalIo::Peer { volume, op, .. } => {
                matches!(op, Op::Discard | Op::WriteZeroes { .. }).then_some(volume)
            }
            LocalIo::Flush { .. } | LocalIo::Inspect { .. } => None,
        }
    }
}

/// What is to be found out about the data in a slot's pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inspect {
    /// Its digest by `verify-alg`.
    VerifyDigest,
    /// Its digest by `csums-alg`.
    ChecksumDigest,
    /// Whether it is nothing but zeroes.
    Zeroes,
}

/// What was found out about the data in a slot's pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The digest asked for.
    Digest(Digest),
    /// Whether it is nothing but zeroes.
    Zeroes(bool),
    /// It could not be found out.
    Failed,
}

/// A digest of at most [`MAX_DIGEST_BYTES`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest {
    bytes: [u8; MAX_DIGEST_BYTES],
    len: u8,
}

/// Longest digest in bytes.
pub const MAX_DIGEST_BYTES: usize = 64;

impl Digest {
    /// Of no bytes.
    pub const EMPTY: Digest = Digest { bytes: [0; MAX_DIGEST_BYTES], len: 0 };

    /// A digest of these bytes; `None` when there are too many.
    pub fn new(digest: &[u8]) -> Option<Digest> {
        let mut bytes = [0; MAX_DIGEST_BYTES];
        bytes.get_mut(..digest.len())?.copy_from_slice(digest);
        Some(Digest { bytes, len: digest.len() as u8 })
    }

    /// As many zeroes, at most [`MAX_DIGEST_BYTES`]: the digest of a block that could not be read.
    pub fn zeroes(len: u8) -> Digest {
        Digest { len: len.min(MAX_DIGEST_BYTES as u8), ..Digest::EMPTY }
    }

    /// True without bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// An application request that is complete: end its bio. Allowed in any context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Slot whose bio ends; the engine does not touch the bio afterwards.
    pub request: RequestId,
    /// Its result.
    pub result: IoResult,
}

/// One 4 KiB transfer on the meta-data device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetadataIo {
    /// To hand back with `metadata_io_done`.
    pub ticket: u32,
    /// True: write the buffer. False: read into it.
    pub write: bool,
    /// Absolute first sector on the meta-data device, multiple of 8.
    pub sector: u64,
    /// Length in bytes: 4096, or less for the last bitmap page of a small area (multiple of 512).
    pub size_bytes: u32,
    /// Write with PREFLUSH and FUA.
    pub durable: bool,
}

/// What to do with the payload of the packet just read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing more belongs to this packet.
    Packet,
    /// The body was the peer's challenge: compute the HMACs of it and of `own_challenge`, then call `authenticate`.
    Authenticate,
    /// Read `size_bytes` into fresh pages of this slot, then call `payload_received`.
    Payload {
        /// Slot for the pages.
        peer: PeerId,
        /// Bytes that follow on the wire.
        size_bytes: u32,
    },
    /// Read `size_bytes` into the bio of this slot, then call `read_reply_received`.
    ReadReply {
        /// Slot whose bio receives the data.
        request: RequestId,
        /// Bytes that follow on the wire.
        size_bytes: u32,
    },
    /// Read and forget that many bytes.
    Drain {
        /// Bytes that follow on the wire.
        size_bytes: u32,
    },
}

/// Application data that follows the bytes of an outgoing packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// None.
    None,
    /// All data of the application's bio.
    Request(RequestId),
    /// `size_bytes` of the pages of a peer request.
    Peer(PeerId, u32),
}

/// A packet to be sent: `head_bytes` of the buffer, then the payload. Call `data_sent`/`meta_sent` afterwards.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing {
    /// Valid bytes in the buffer that was passed.
    pub head_bytes: usize,
    /// What follows them.
    pub payload: Payload,
    /// Bytes of the payload's digest by `sent_integrity`, which goes between the two; 0: none.
    pub digest_bytes: u8,
    /// The payload's pages may change after the request completed (protocol A): copy, do not splice.
    pub copy: bool,
    /// Nothing further is queued: push out what TCP holds back.
    pub last: bool,
}

/// What the shell's threads must look at. Returned by `take_wakes` after every call into the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wakes(pub u16);

impl Wakes {
    /// `next_data` has something.
    pub const DATA_SENDER: Wakes = Wakes(1);
    /// `next_meta` has something.
    pub const META_SENDER: Wakes = Wakes(2);
    /// `receiver_may_read` turned true.
    pub const RECEIVER: Wakes = Wakes(4);
    /// `poll_local` or `poll_clear` has something.
    pub const LOCAL_IO: Wakes = Wakes(8);
    /// `poll_completion` has something.
    pub const COMPLETIONS: Wakes = Wakes(16);
    /// `next_metadata_io` of some volume has something.
    pub const METADATA: Wakes = Wakes(32);
    /// `poll_work` or `poll_device_work` has something.
    pub const WORK: Wakes = Wakes(64);
    /// `admin_result` has something.
    pub const ADMIN: Wakes = Wakes(128);
    /// Parked application requests may be submitted again.
    pub const GATE: Wakes = Wakes(256);
    /// `link_task` changed: establish, close or stop.
    pub const LINK: Wakes = Wakes(512);

    /// True when any bit of `other` is set.
    pub fn contains(self, other: Wakes) -> bool {
        self.0 & other.0 != 0
    }

    /// Adds the bits of `other`.
    pub fn insert(&mut self, other: Wakes) {
        self.0 |= other.0;
    }

    /// True when nothing is to be done.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// What the connection thread should be doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkTask {
    /// No network configuration, or on the way there: the thread ends.
    Stop,
    /// Try to establish the two sockets, then call `link_up`.
    Establish,
    /// Sockets stand: receive.
    Run,
    /// Shut both sockets down, let the readers and senders end, wait for `link_drained`, then call `link_closed`.
    Close,
}

/// Why a socket is given up, as the shell sees it, and the state the connection gets by it.
// spec: wire-protocol 11.1
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkFailure {
    /// End of stream or read error on the data socket: BrokenPipe.
    DataReceive,
    /// End of stream or read error on the meta socket: NetworkFailure.
    MetaReceive,
    /// Send error on either socket: BrokenPipe.
    Send,
    /// Nothing could be sent for `timeout`, on the data socket `ko-count` times in a row: Timeout.
    SendTimeout,
    /// The local address cannot be bound or listened on: Disconnecting, no retry.
    LocalAddress,
}

/// Limits of a backing device.
#[derive(Clone, Copy, Debug, Default)]
pub struct BackingLimits {
    /// Largest bio in bytes.
    pub max_bio_bytes: u32,
    /// Logical block size in bytes.
    pub logical_block_bytes: u32,
    /// Physical block size in bytes.
    pub physical_block_bytes: u32,
    /// Alignment offset in bytes.
    pub alignment_offset_bytes: u32,
    /// Preferred minimum I/O size in bytes.
    pub io_min_bytes: u32,
    /// Preferred I/O size in bytes.
    pub io_opt_bytes: u32,
    /// Largest discard in bytes; 0: not supported.
    pub max_discard_bytes: u32,
    /// Granularity of discards in bytes.
    pub discard_granularity_bytes: u32,
}

/// The programs of user space that are run for events. Where nothing is said about the exit code, it does not matter.
// spec: state-machine 11
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Helper {
    /// A Primary has no UpToDate disk in reach any more, neither its own nor the peer's.
    PriOnInconDegr,
    /// The own disk failed by an I/O error, and `on-io-error` is call-local-io-error. Ordered before the peer hears of it, which
    /// does not wait for the program; nor does the disk, which may be gone when that looks for it.
    LocalIoError,
    /// A Primary lost its peer, or a promotion needs the peer fenced. The exit code, 3 to 7, tells what the peer's disk
    /// is worth. For the resource. spec: state-machine 12
    FencePeer,
    /// This node was the source of a resync, a fencing policy is set, and all disks on both nodes are UpToDate again. For
    /// the resource.
    UnfencePeer,
    /// Before the target of a resync becomes Inconsistent. Exit code 0: go on, anything above: Disconnecting.
    BeforeResyncTarget,
    /// Before this node becomes the source of a resync. Exit codes 0 and 3: go on, others above 0: Disconnecting.
    BeforeResyncSource,
    /// The resync of which this node was the target has ended, also one that could not write every block.
    AfterResyncTarget,
    /// An online verify has ended and bits are set.
    OutOfSync,
    /// A split brain was found, before any policy is looked at.
    InitialSplitBrain,
    /// A split brain that no policy has solved.
    SplitBrain,
    /// `call-pri-lost-after-sb`: this Primary would lose its changes, and could not become Secondary.
    PriLostAfterSb,
    /// `rr-conflict call-pri-lost`: this Primary would become the target of a resync.
    PriLost,
}

impl Helper {
    /// The word the program gets as first argument.
    pub fn name(self) -> &'static str {
        match self {
            Helper::PriOnInconDegr => "pri-on-incon-degr",
            Helper::LocalIoError => "local-io-error",
            Helper::FencePeer => "fence-peer",
            Helper::UnfencePeer => "unfence-peer",
            Helper::BeforeResyncTarget => "before-resync-target",
            Helper::BeforeResyncSource => "before-resync-source",
            Helper::AfterResyncTarget => "after-resync-target",
            Helper::OutOfSync => "out-of-sync",
            Helper::InitialSplitBrain => "initial-split-brain",
            Helper::SplitBrain => "split-brain",
            Helper::PriLostAfterSb => "pri-lost-after-sb",
            Helper::PriLost => "pri-lost",
        }
    }

    /// True when the argument is the resource's name, not `minor-N`.
    pub fn is_for_resource(self) -> bool {
        matches!(self, Helper::FencePeer | Helper::UnfencePeer)
    }
}

impl fmt::Display for Helper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
