// SPDX-License-Identifier: GPL-2.0
//! One volume: its state, its configuration, what is attached to it and what is known of the peer's half.

use super::api::{BackingLimits, Helper};
use super::metadata_pipeline::Pipeline;
use super::slots::List;
use super::verify::Verify;
use super::Op;
use crate::activity_log::{self, ActivityLog};
use crate::bitmap::Bitmap;
use crate::handshake::Fixup;
use crate::metadata::layout::Layout;
use crate::metadata::superblock::{MetaFlags, Superblock, UI_BITMAP, UI_CURRENT, UI_HISTORY_END, UI_HISTORY_START};
use crate::netlink::{DiskConf, ReadBalancing};
use crate::resync::rate::{ActivityMeter, Controller};
use crate::resync::Progress;
use crate::state::{Conn, Disk, Role, State};
use crate::storage::Storage;
use crate::wire::Uuids;
use crate::wire::{BitmapReceiver, BitmapSender};

/// Added to the bitmap UUID when a resync starts. spec: metadata 6.2 (12)
pub(super) const NEW_BITMAP_OFFSET: u64 = 0x0001_0000_0000_0000;

/// Kinds of local I/O errors. spec: state-machine 13.4
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DiskError {
    Read,
    Write,
    Metadata,
    /// It has not answered for `disk-timeout`.
    Timeout,
    /// The administrator has it let go: nothing is wrong with it.
    ForceDetach,
}

/// Answer of the activity log to a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    /// No disk, or the log is suspended.
    NotNeeded,
    /// References taken, nothing to write.
    Active,
    /// References taken; start after the next transaction.
    Pending,
    /// Nothing taken; try again later.
    NoSlot,
}

/// Amounts for /proc/drbd and the status messages, in sectors and counts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Sectors sent to the peer.
    pub sent_sectors: u64,
    /// Sectors received from the peer.
    pub received_sectors: u64,
    /// Sectors read from the local disk.
    pub read_sectors: u64,
    /// Sectors written to the local disk.
    pub written_sectors: u64,
    /// Activity log transactions.
    pub activity_log_writes: u64,
    /// Bitmap pages written.
    pub bitmap_writes: u64,
}

impl Counters {
    /// A connection is configured. spec: proc-and-sysfs 1.2
    pub(super) fn forget_peer(&mut self) {
        self.sent_sectors = 0;
        self.received_sectors = 0;
    }
}

/// What is attached: the backing device's half of a volume.
pub(super) struct AttachedDisk<S: Storage> {
    pub(super) superblock: Superblock,
    pub(super) layout: Layout,
    pub(super) limits: BackingLimits,
    pub(super) bitmap: Bitmap<S>,
    pub(super) log: ActivityLog<S>,
    /// Number of the next transaction on disk; survives detach and attach.
    pub(super) pipeline: Pipeline,
    /// This node crashed while Primary and has not been in sync since.
    pub(super) crashed_primary: bool,
    /// All bits are set and nobody is connected: recording writes is pointless. spec: metadata 5.6
    pub(super) log_suspended: bool,
    /// A new area has to be resynced after the negotiation.
    pub(super) resync_after_negotiation: bool,
    /// Size before, while attaching a disk that has grown.
    pub(super) grew_from_sectors: Option<u64>,
    /// It has its state. Before that only the attach has written to it, and the activity log is as `apply-al` left it: an attach that has
    /// to begin anew finds a superblock that says so.
    pub(super) in_use: bool,
    /// How far the way out has got.
    pub(super) release: Release,
}

/// What a flush of the data disk is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlushFor {
    /// The acknowledgement of a barrier.
    Barrier,
    /// Meta data is going to be written.
    Metadata,
}

/// How a disk is let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Release {
    /// It is in use.
    No,
    /// It has failed, or is being detached: its bitmap is being written.
    Writing,
    /// The owner has been asked to close it.
    Releasing,
}

impl<S: Storage> AttachedDisk<S> {
    /// The four UUIDs.
    pub(super) fn uuids(&self) -> [u64; 4] {
        self.superblock.uuids
    }

    fn put(&mut self, at: usize, value: u64) {
        if let Some(place) = self.superblock.uuids.get_mut(at) {
            *place = value;
        }
        self.pipeline.touch();
    }

    /// The current UUID.
    pub(super) fn current(&self) -> u64 {
        self.superblock.uuids.get(UI_CURRENT).copied().unwrap_or(0)
    }

    /// The bitmap UUID.
    pub(super) fn bitmap_uuid(&self) -> u64 {
        self.superblock.uuids.get(UI_BITMAP).copied().unwrap_or(0)
    }

    fn history(&self) -> [u64; 2] {
        [
            self.superblock.uuids.get(UI_HISTORY_START).copied().unwrap_or(0),
            self.superblock.uuids.get(UI_HISTORY_END).copied().unwrap_or(0),
        ]
    }

    /// Stores the current UUID; its lowest bit tells whether this node is Primary. spec: metadata 6.1
    pub(super) fn set_current(&mut self, value: u64, primary: bool) {
        let value = if primary { value | 1 } else { value & !1 };
        if value != self.current() {
            self.put(UI_CURRENT, value);
        }
    }

    /// Current and bitmap UUID.
    pub(super) fn generation(&self) -> [u64; 2] {
        [self.current(), self.bitmap_uuid()]
    }

    /// Stores the bitmap UUID without touching the history.
    pub(super) fn set_bitmap_uuid(&mut self, value: u64) {
        self.put(UI_BITMAP, value);
    }

    /// Stores all four UUIDs as they are.
    pub(super) fn set_uuids(&mut self, uuids: [u64; 4]) {
        self.superblock.uuids = uuids;
        self.pipeline.touch();
    }

    /// H1 := H0, H0 := `value`.
    pub(super) fn push_history(&mut self, value: u64) {
        let [start, _] = self.history();
        self.put(UI_HISTORY_END, start);
        self.put(UI_HISTORY_START, value);
    }

    /// The bitmap UUID goes into the history if it is set, and is replaced. spec: metadata 6.2 (12, 14)
    pub(super) fn rotate_bitmap_uuid(&mut self, value: u64) {
        let old = self.bitmap_uuid();
        if old != 0 {
            self.push_history(old);
        }
        self.set_bitmap_uuid(value);
    }

    /// Recomputed meta-data flags; the superblock becomes dirty when they differ.
    pub(super) fn set_flags(&mut self, flags: u32) {
        if self.superblock.flags.0 != flags {
            self.superblock.flags = MetaFlags(flags);
            self.pipeline.touch();
        }
    }

    /// Switches flags on or off.
    pub(super) fn assign_flag(&mut self, flag: MetaFlags, on: bool) {
        let before = self.superblock.flags;
        self.superblock.flags.assign(flag, on);
        if self.superblock.flags != before {
            self.pipeline.touch();
        }
    }
}

/// Writes that wait for the activity log.
pub(super) struct LogWaiters {
    /// Their extents are in the transaction that is being collected.
    pub(super) pending: List,
    /// Their extents are in the transaction that is being written.
    pub(super) committing: List,
    /// They found no room.
    pub(super) waiting: List,
}

impl LogWaiters {
    const NONE: LogWaiters = LogWaiters { pending: List::EMPTY, committing: List::EMPTY, waiting: List::EMPTY };

    /// A transaction begins: the writes collected so far are the ones it is for.
    pub(super) fn begin_transaction(&mut self) {
        self.committing = core::mem::replace(&mut self.pending, List::EMPTY);
    }
}

/// What the peer told about its half of the volume.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PeerVolume {
    /// It has sent parameters of this volume on the present connection: it has the volume.
    pub(super) introduced: bool,
    /// Since when it is.
    pub(super) introduced_ms: u64,
    /// It has told its state on the present connection.
    pub(super) state_told: bool,
    pub(super) uuids: Option<Uuids>,
    /// By its last state packet it negotiates its disk, and it has not sent its bitmap since: it writes nothing to that
    /// disk, whatever the disk counts as here.
    pub(super) negotiates: bool,
    /// By its last state packet it is connected with a disk that is complete and not good.
    pub(super) says_worse: bool,
    /// Usable sectors of its disk; 0 unknown or diskless.
    pub(super) disk_sectors: u64,
    /// Largest request it accepts, in bytes: what its protocol does, and before that what the meta data tells of the last one.
    pub(super) max_bio_bytes: u32,
    /// Logical block of its disk, in bytes; 0 unknown.
    pub(super) logical_block_bytes: u32,
}

/// How far the start of a resync has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResyncStart {
    No,
    /// The helper before-resync-* runs; afterwards become this.
    Helper {
        side: Conn,
        ticket: u32,
    },
    /// The peer has not answered yet what it was asked; afterwards become this.
    Due {
        side: Conn,
    },
}

/// How far the end of a resync or verify has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResyncEnd {
    No,
    /// The ping that makes sure that our acknowledgements were processed has not been answered yet.
    Ping,
}

/// A resync that is running or being prepared.
pub(super) struct Resync {
    pub(super) start: ResyncStart,
    pub(super) end: ResyncEnd,
    /// The target has told that it is done, before we were (source).
    pub(super) peer_done: bool,
    /// The target has told that it could not write everything (source).
    pub(super) peer_failed: bool,
    /// The own disk has failed something, and is kept because it is the only good one (source).
    pub(super) own_failed: bool,
    /// The resync was agreed on, by a request of one node, and the target has not been heard of since (source).
    pub(super) target_unheard: bool,
    /// The peer asked for it, to be its target, and may not have the answer: until then its disk is as good as this one to it (source).
    pub(super) consent_unheard: bool,
    /// It has begun, for a target with the same generation, which has not been heard of since (source).
    pub(super) begin_unheard: bool,
    /// It waits for the source only because the device has grown: what the disk had before is as good as the source's (target).
    pub(super) of_growth: bool,
    /// Current and bitmap UUID from before such a resync, if it has been announced or the connection was lost (target).
    pub(super) before_growth: Option<[u64; 2]>,
    /// First and last bit of what the target has acknowledged and does not count here, since it may have been written anew and only
    /// announced: this node is, or was, Ahead (source).
    pub(super) uncounted: Option<[u64; 2]>,
    /// Answers to requests of the target that it has not acknowledged or refused to write, and how many of them are from before the present
    /// run (source).
    pub(super) unanswered: u32,
    pub(super) of_earlier_run: u32,
    /// Nothing is left to be done since then (target).
    pub(super) done_since_ms: Option<u64>,
    /// Bits when it started.
    pub(super) total_bits: u64,
    /// Bits that could not be synced.
    pub(super) failed_bits: u64,
    /// Bits of which the checksums were the same, so that no data was sent.
    pub(super) equal_bits: u64,
    /// Next bit to look at.
    pub(super) position: u64,
    /// Requests without an answer, and the blocks of 4 KiB they are about.
    pub(super) requests_in_flight: u32,
    pub(super) blocks_in_flight: u32,
    /// Sectors that arrived since the last turn of the controller.
    pub(super) arrived_sectors: u64,
    pub(super) controller: Option<Controller>,
    /// Paused since then.
    pub(super) paused_since_ms: Option<u64>,
    pub(super) progress: Progress,
    /// When the bitmap is written next, and how many bits were set when it was written last.
    pub(super) save_at_ms: u64,
    pub(super) saved_bits: u64,
    pub(super) next_turn_ms: u64,
    /// The bitmap as it is being sent, from the first packet to the last, and received.
    pub(super) sender: Option<BitmapSender>,
    pub(super) receiver: Option<BitmapReceiver>,
    /// An exchange of bitmaps has ended on the present connection: what the peer sent for it may still come.
    pub(super) disowned: bool,
    /// This node is the target and writes the bitmap it is going to work off.
    pub(super) target_prepares: bool,
    /// Nothing is asked for before this version of the superblock is durable: it tells that this disk is Inconsistent.
    pub(super) start_version: Option<u32>,
    /// Of a source that started before this node was ready; the receiver waits.
    pub(super) early_sync_uuid: Option<u64>,
    /// The target sends checksums of its own data with its requests.
    pub(super) uses_checksums: bool,
    /// Notices what else the disk does.
    pub(super) meter: ActivityMeter,
    /// Blocks the controller allows in the present turn that have not been asked for.
    pub(super) allowance_blocks: u32,
}

/// A volume.
pub(super) struct Volume<S: Storage> {
    pub(super) number: u16,
    pub(super) minor: u32,
    pub(super) state: State,
    pub(super) conf: DiskConf,
    pub(super) disk: Option<AttachedDisk<S>>,
    /// Version of the superblock that the next disk begins with: packets may still wait until that of the last one is durable.
    pub(super) superblock_version: u32,
    /// Size of the virtual device.
    pub(super) size_sectors: u64,
    /// Generation of the data last exposed to the application.
    pub(super) exposed_uuid: u64,
    /// A write is done, by this node or by the peer, that is not on the own disk: alone, that must not become what the application sees, even if its
    /// generation is the same.
    pub(super) wrote_elsewhere: bool,
    /// This node was the source of a resync, and the peer may have the same generation: it may have finished without our hearing of it,
    /// or it had the same before and may not have heard that the resync has begun.
    pub(super) peer_may_be_level: bool,
    /// The nodes have met, the peer is Primary without a disk, and this one is Outdated: the next state packet shows that the peer has not
    /// refused its generation, as it may still do.
    pub(super) unattested: bool,
    /// The disk was lost while the peer was only told of writes, and that one, which lacks them, has not been promoted since.
    pub(super) peer_lacks_writes: bool,
    /// A correction of the own generations that is carried out when the resync starts.
    pub(super) late_fixup: Option<Fixup>,
    pub(super) peer: PeerVolume,
    /// Disk and peer disk states found at attach, while Negotiating.
    pub(super) negotiated: Option<(Disk, Disk)>,
    /// While Negotiating, and the peer has not answered: the generations that it had told before, and when they are judged without it.
    pub(super) unjudged: Option<(Uuids, u64)>,
    /// Both were Inconsistent and the peer became Primary: decide again at its next state packet.
    pub(super) consider_resync: bool,
    /// This volume's handshake wants the peer's data to win (single shot).
    pub(super) discard_my_data: bool,
    /// A new generation is due as soon as I/O is resumed.
    pub(super) generation_due: bool,
    /// Whatever a disk that is not good lacks is marked: what is not can be read there. Not before the bitmaps were exchanged.
    pub(super) lacks_are_marked: bool,
    /// Superblock version that must be durable before writes of this node alone are acknowledged.
    pub(super) generation_version: Option<u32>,
    /// The disk of this Primary has failed, and may be kept: superblock version that says so. What only the peer has is acknowledged when
    /// that is durable, or the peer has begun a generation of its own (`loss_known`).
    pub(super) loss_version: Option<u32>,
    pub(super) loss_known: bool,
    /// The peer knows that this disk has failed, or was detached: writes of its that are here, perhaps only in the disk's
    /// cache, are on its own list of what has to be resynced.
    pub(super) failure_seen: bool,
    /// The disk of this Primary has failed, or is being detached, and the peer has not shown that it knows: until then, but not
    /// longer than this, nothing is acknowledged because the peer has it. The attach of the next disk does not change that.
    pub(super) failure_unseen_until_ms: Option<u64>,
    pub(super) degraded_wait: bool,
    pub(super) force_detach: bool,
    /// When the disk was attached.
    pub(super) attached_ms: u64,
    pub(super) io_error: Option<DiskError>,
    pub(super) readers: u32,
    pub(super) writers: u32,
    /// Application requests accepted and not completed.
    pub(super) upper_pending: u32,
    /// Requests on the backing device, of any kind, without meta data.
    pub(super) lower_pending: u32,
    /// Application requests sent and not answered.
    pub(super) peer_pending: u32,
    /// Requests of the peer not yet answered.
    pub(super) unacked: u32,
    /// Reasons that keep new application I/O out (bitmap work, attach, detach, resize).
    pub(super) holds: u32,
    pub(super) counters: Counters,
    pub(super) packet_seq: u32,
    /// Number of the last acknowledgement that was sent.
    pub(super) acked_seq: u32,
    pub(super) peer_seq: u32,
    /// With `read-balancing round-robin`, the next read goes to the peer; the first one does not.
    pub(super) next_read_remote: bool,
    /// Writes whose extents are in the transaction being collected, being written, or found no room.
    pub(super) log: LogWaiters,
    /// The same for writes of a peer without a disk.
    pub(super) peer_log: LogWaiters,
    pub(super) resync: Resync,
    pub(super) verify: Verify,
    /// Bits set when the UUIDs were last sent.
    pub(super) told_bits: u64,
    /// Requests of the peer's resync that are held back.
    pub(super) throttled: List,
    /// The congestion is over (Ahead): the resync starts then. spec: wire-protocol 10.3
    pub(super) catch_up_at_ms: Option<u64>,
    /// Sectors on the backing device that were not for a resync.
    pub(super) foreign_sectors: u64,
    /// Limit for resync requests under way, in pages.
    pub(super) max_buffers: u32,
    /// Flushes of the data disk under way, oldest first; at most one of each kind. The one that completes first is taken
    /// for the oldest: it covers all that the oldest would have covered, and when the last is done so is its own.
    pub(super) flushes: [Option<FlushFor>; 2],
    /// Another size, or another place of the meta data, that is being carried out.
    pub(super) resize: Option<super::resize::PendingResize>,
    /// The administrator has made the device larger; the peer has not answered yet.
    pub(super) resize_pending: bool,
    /// Sizes of the lower devices when they were last told.
    pub(super) devices: super::DeviceSizes,
}

impl<S: Storage> Volume<S> {
    /// A diskless volume. `conn` is that of the resource's connection.
    pub(super) fn new(number: u16, minor: u32, conn: Conn) -> Self {
        Volume {
            number,
            minor,
            state: State::initial(conn),
            conf: DiskConf::default(),
            disk: None,
            superblock_version: 0,
            size_sectors: 0,
            exposed_uuid: 0,
            wrote_elsewhere: false,
            peer_may_be_level: false,
            unattested: false,
            peer_lacks_writes: false,
            late_fixup: None,
            peer: PeerVolume::default(),
            negotiated: None,
            consider_resync: false,
            discard_my_data: false,
            generation_due: false,
            lacks_are_marked: false,
            generation_version: None,
            loss_version: None,
            loss_known: false,
            failure_seen: false,
            failure_unseen_until_ms: None,
            degraded_wait: false,
            force_detach: false,
            attached_ms: 0,
            io_error: None,
            readers: 0,
            writers: 0,
            upper_pending: 0,
            lower_pending: 0,
            peer_pending: 0,
            unacked: 0,
            holds: 0,
            counters: Counters::default(),
            packet_seq: 0,
            acked_seq: 0,
            peer_seq: 0,
            next_read_remote: false,
            log: LogWaiters::NONE,
            peer_log: LogWaiters::NONE,
            resync: Resync {
                start: ResyncStart::No,
                end: ResyncEnd::No,
                peer_done: false,
                peer_failed: false,
                own_failed: false,
                target_unheard: false,
                consent_unheard: false,
                begin_unheard: false,
                of_growth: false,
                before_growth: None,
                uncounted: None,
                unanswered: 0,
                of_earlier_run: 0,
                done_since_ms: None,
                total_bits: 0,
                failed_bits: 0,
                equal_bits: 0,
                position: 0,
                requests_in_flight: 0,
                blocks_in_flight: 0,
                arrived_sectors: 0,
                controller: None,
                paused_since_ms: None,
                progress: Progress::default(),
                save_at_ms: 0,
                saved_bits: 0,
                next_turn_ms: 0,
                sender: None,
                receiver: None,
                disowned: false,
                target_prepares: false,
                start_version: None,
                early_sync_uuid: None,
                uses_checksums: false,
                allowance_blocks: 0,
                meter: ActivityMeter::default(),
            },
            verify: Verify::NEW,
            unjudged: None,
            told_bits: 0,
            throttled: List::EMPTY,
            catch_up_at_ms: None,
            foreign_sectors: 0,
            max_buffers: 2048,
            flushes: [None; 2],
            resize: None,
            resize_pending: false,
            devices: super::DeviceSizes::default(),
        }
    }

    /// Read balancing between two good copies. spec: state-machine 18.5
    pub(super) fn prefers_peer(&mut self, sector: u64) -> bool {
        let striped = |shift: u32| (sector >> (shift - 9)) & 1 == 1;
        match self.conf.read_balancing {
            ReadBalancing::PreferLocal | ReadBalancing::WhenCongestedRemote => false,
            ReadBalancing::PreferRemote => true,
            ReadBalancing::RoundRobin => {
                self.next_read_remote = !self.next_read_remote;
                !self.next_read_remote
            }
            // The C module counts the read itself among the local ones.
            ReadBalancing::LeastPending => self.lower_pending >= self.peer_pending + self.resync.requests_in_flight,
            ReadBalancing::Striping32K => striped(15),
            ReadBalancing::Striping64K => striped(16),
            ReadBalancing::Striping128K => striped(17),
            ReadBalancing::Striping256K => striped(18),
            ReadBalancing::Striping512K => striped(19),
            ReadBalancing::Striping1M => striped(20),
        }
    }

    /// Asks the activity log for the extents of a write.
    pub(super) fn begin_activity(&mut self, first: u32, last: u32) -> Begin {
        let usable = self.state.disk >= Disk::Inconsistent;
        let Some(disk) = self.disk.as_mut().filter(|disk| usable && !disk.log_suspended) else {
            return Begin::NotNeeded;
        };
        // An extent that is active since this node last relied on the log protects nothing before the superblock says
        // again that it does; a transaction always comes after that.
        let meaningful = disk.pipeline.log_is_meaningful();
        if first == last && meaningful && disk.log.hot(first) {
            return Begin::Active;
        }
        match disk.log.begin(first, last) {
            activity_log::Begin::Active if meaningful => Begin::Active,
            activity_log::Begin::Active | activity_log::Begin::Pending => {
                disk.pipeline.want_transaction();
                Begin::Pending
            }
            activity_log::Begin::NoSlot => Begin::NoSlot,
        }
    }

    /// Gives the extents of a write back.
    pub(super) fn end_activity(&mut self, first: u32, last: u32) {
        if let Some(disk) = self.disk.as_mut() {
            disk.log.put(first, last);
        }
    }

    /// The application has seen data that a disk of this generation does not have.
    pub(super) fn has_seen_other_data(&self, current: u64) -> bool {
        self.exposed_uuid != 0 && ((self.exposed_uuid ^ current) & !1 != 0 || self.wrote_elsewhere)
    }

    /// The peer has a write of its own that could not be done here, or may have. The application of a Primary may read it over there: alone,
    /// the own disk is not what it has seen, though its generation may be the last one that this node has heard of.
    pub(super) fn lacks_write_of_peer(&mut self) {
        self.wrote_elsewhere |= self.state.role == Role::Primary;
    }

    /// What only this node writes is already told apart from what the peer has, by its generation.
    pub(super) fn records_changes(&self) -> bool {
        self.disk.as_ref().is_some_and(|disk| disk.bitmap_uuid() != 0) && !self.peer_may_be_level
    }

    /// The peer has begun a generation because this disk leaves, as it was asked to agree to. What is here is older from then on: if its
    /// own disk fails now as well, a generation begun here would make it a split brain. (The C module begins one.)
    pub(super) fn is_left_behind(&self) -> bool {
        let recorded = self.peer.uuids.and_then(|peer| peer.uuids.get(UI_BITMAP).copied()).unwrap_or(0);
        recorded != 0 && self.disk.as_ref().is_some_and(|disk| (disk.current() ^ recorded) & !1 == 0)
    }

    /// The state has changed: does the bitmap still mark all that the disk lacks? What the peer writes while this node
    /// is away, and not Primary, is in the peer's bitmap alone.
    pub(super) fn note_lacks(&mut self, old: State) {
        let new = self.state;
        self.lacks_are_marked = match new.disk {
            Disk::UpToDate => true,
            Disk::Inconsistent if matches!(new.conn, Conn::SyncTarget | Conn::PausedSyncT) => true,
            Disk::Inconsistent if new.conn < Conn::Connected && new.role != Role::Primary => false,
            Disk::Inconsistent => self.lacks_are_marked && old.disk >= Disk::Inconsistent,
            _ => false,
        };
    }

    /// The state has changed: does an Outdated disk wait for the word of a Primary without one? Not if it lacks writes that this one only
    /// announced: they are of the same generation.
    pub(super) fn note_unattested(&mut self, old: State) {
        let new = self.state;
        let meets = old.conn == Conn::WFReportParams && !self.lacks_writes();
        let blind = new.peer == Role::Primary && new.pdsk <= Disk::Failed;
        self.unattested =
            (self.unattested || meets) && blind && new.conn == Conn::Connected && new.disk == Disk::Outdated;
    }

    /// True while the cache of the disk can be flushed, also when the disk has just failed.
    pub(super) fn can_flush(&self) -> bool {
        self.disk.as_ref().is_some_and(|disk| disk.release == Release::No)
    }

    /// True while a new generation has been made that is not durable yet.
    pub(super) fn generation_pending(&self) -> bool {
        self.generation_version.is_some()
    }

    /// The peer's disk is about to get out of date, and neither disk tells: both have the same generation, the one of the resync has not
    /// begun, and the peer has perhaps not come to the same verdict. After a power cut now it could take over.
    pub(super) fn outdates_silently(&self) -> bool {
        self.state.conn == Conn::WFBitMapS
            && self.state.pdsk > Disk::Outdated
            && self.disk.as_ref().is_some_and(|disk| disk.bitmap_uuid() == 0)
    }

    /// How a discard of the peer, or of resync, is carried out. What cannot be discarded is zeroed.
    // spec: state-machine 21.1; wire-protocol 5.2
    pub(super) fn discard_op(&self) -> Op {
        let can_discard = self.disk.as_ref().is_some_and(|disk| disk.limits.max_discard_bytes > 0);
        if can_discard && self.conf.discard_zeroes_if_aligned {
            Op::Discard
        } else {
            Op::WriteZeroes { unmap: true }
        }
    }

    /// Number of bits that differ from the peer.
    pub(super) fn weight(&self) -> u64 {
        self.disk.as_ref().map_or(0, |disk| disk.bitmap.weight())
    }

    /// Blocks are marked and no generation is that of the peer: it wrote them and announced that, so what it has is newer.
    pub(super) fn lacks_writes(&self) -> bool {
        let announced = |disk: &AttachedDisk<S>| disk.bitmap_uuid() == 0 && disk.bitmap.weight() > 0;
        self.disk.as_ref().is_some_and(announced)
    }

    /// True when a helper of the start of a resync is awaited under this ticket.
    pub(super) fn awaits_helper(&self, ticket: u32) -> Option<(Conn, Helper)> {
        match self.resync.start {
            ResyncStart::Helper { side, ticket: awaited } if awaited == ticket => {
                let helper =
                    if side == Conn::SyncTarget { Helper::BeforeResyncTarget } else { Helper::BeforeResyncSource };
                Some((side, helper))
            }
            _ => None,
        }
    }
}
