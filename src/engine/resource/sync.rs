// SPDX-License-Identifier: GPL-2.0
//! Resync: exchange of the bitmaps, start, requests at the rate the controller allows, end.
//!
//! The target asks for what its bitmap marks, a few blocks every 100 ms as the rate controller says; the source answers;
//! every answer is acknowledged, and a bit is cleared on both sides when the block is on the target's disk. The target
//! ends the resync when no bit is left, after a ping whose answer proves that the source has seen all acknowledgements.
//! spec: wire-protocol 8; state-machine 17

use super::api::{Helper, VolumeId, Wakes};
use super::application::NOTICE_PROTOCOL;
use super::change::Kind;
use super::incoming::Fault;
use super::metadata_pipeline::{Job, Then};
use super::outgoing::Control;
use super::slots::PeerKind;
use super::verify::is_verifying;
use super::volume::{ResyncEnd, ResyncStart};
use super::work::{LogLine, Work};
use super::{Engine, Sabotage};
use crate::bitmap::Scan;
use crate::metadata::superblock::{UI_BITMAP, UI_CURRENT, UI_HISTORY_END, UI_HISTORY_START};
use crate::resync::rate::{Controller, RateConfig};
use crate::resync::{merge_request, MergeLimits, Progress};
use crate::state::{Change, Conn, Disk, Role, State};
use crate::storage::Storage;
use crate::wire::command::Command;
use crate::wire::{BitmapReceiver, Progress as BitmapProgress};

/// Length of a turn of the rate controller.
const TURN_MS: u64 = 100;
/// How often the bitmap is written while a resync runs.
const SAVE_MS: u64 = 10_000;
/// Words of the bitmap looked at in one go, so that the lock is held shortly.
pub(super) const SCAN_WORDS: usize = 1024;
/// Bound: requests made in one go, at a turn of the clock and when an answer arrives.
pub(super) const REQUESTS_PER_TURN: u32 = 256;
const REQUESTS_PER_ANSWER: u32 = 4;

impl<S: Storage> Engine<S> {
    // Exchange of the bitmaps. spec: wire-protocol 8.2, 8.3

    /// Queues this node's bitmap for the peer.
    pub(super) fn send_bitmap(&mut self, id: VolumeId) {
        if self.volume(id).is_some_and(|volume| volume.disk.is_some()) {
            self.queue_control(Control::Bitmap { volume: id, counts: true });
        }
    }

    /// The last packet of the own bitmap is about to be sent. It is handed over before the peer can possibly react.
    pub(super) fn bitmap_sent(&mut self, id: VolumeId) {
        if self.volume(id).is_some_and(|volume| volume.state.conn == Conn::WFBitMapT) {
            let _outcome = self.change(id, Change::conn(Conn::WFSyncUUID), Kind::Hard);
        }
    }

    /// P_BITMAP, P_COMPRESSED_BITMAP.
    pub(super) fn receive_bitmap(&mut self, id: VolumeId, command: Command, body: &[u8]) -> Result<(), Fault> {
        let apv = self.link.apv;
        let Some(volume) = self.volume_mut(id) else { return Err(Fault::UnknownVolume) };
        let State { conn, disk, pdsk, .. } = volume.state;
        if !matches!(conn, Conn::WFBitMapS | Conn::WFBitMapT) {
            // A disk was lost since an exchange began, and perhaps attached again; who has not heard of it yet is about to. The own one
            // may have been lost before this node began.
            let lost = disk <= Disk::Negotiating || (volume.resync.disowned && pdsk <= Disk::Failed);
            let ended = conn == Conn::Connected && lost;
            return if ended { Ok(()) } else { Err(Fault::UnexpectedBitmap { conn }) };
        }
        let Some(disk) = volume.disk.as_mut() else { return Ok(()) };
        let receiver = volume.resync.receiver.get_or_insert_with(|| BitmapReceiver::new(disk.bitmap.bits(), apv));
        match receiver.packet(command, body, &mut disk.bitmap).map_err(Fault::Bitmap)? {
            BitmapProgress::More => self.link.bitmap_for = Some(id),
            BitmapProgress::Done => {
                volume.resync.receiver = None;
                volume.peer.negotiates = false;
                self.link.bitmap_for = None;
                self.update_meta_flags(id);
                if conn == Conn::WFBitMapT {
                    self.send_bitmap(id);
                } else {
                    self.prepare_resync(id, Conn::SyncSource);
                }
            }
        }
        Ok(())
    }

    // Start. spec: state-machine 17.2

    /// Runs the helper that may object, then becomes sync source or target.
    pub(super) fn prepare_resync(&mut self, id: VolumeId, side: Conn) {
        let Some(state) = self.volume(id).map(|volume| volume.state) else { return };
        if (Conn::SyncSource..=Conn::PausedSyncT).contains(&state.conn) {
            return;
        }
        let helper = if side == Conn::SyncTarget { Helper::BeforeResyncTarget } else { Helper::BeforeResyncSource };
        let ticket = self.call_helper(helper, Some(id));
        self.with_volume(id, |volume| volume.resync.start = ResyncStart::Helper { side, ticket });
    }

    /// A helper program has ended.
    pub fn helper_done(&mut self, ticket: u32, exit_code: i32, now_ms: u64) {
        self.now_ms = now_ms;
        let awaited = self
            .volume_ids()
            .find_map(|id| self.volume(id).and_then(|volume| volume.awaits_helper(ticket)).map(|found| (id, found)));
        if self.link.refusal == Some(ticket) {
            self.link.refusal = None;
            self.fail(super::Fault::HandshakeRefused, Conn::Disconnecting);
            return;
        }
        let Some((id, (side, helper))) = awaited else {
            self.admin_helper_done(ticket, exit_code);
            return;
        };
        self.with_volume(id, |volume| volume.resync.start = ResyncStart::No);
        // 3 on the source: "not for me", ignored.
        if exit_code > 0 && !(side == Conn::SyncSource && exit_code == 3) {
            self.log(LogLine::HelperRefused { volume: id, helper, exit_code });
            let _outcome = self.change_connection(Change::conn(Conn::Disconnecting), Kind::Hard, false);
            return;
        }
        self.start_resync(id, side);
    }

    /// A start that had to wait for the peer's answer to something else.
    fn start_due(&mut self, id: VolumeId) {
        if let Some(ResyncStart::Due { side }) = self.volume(id).map(|volume| volume.resync.start) {
            self.with_volume(id, |volume| volume.resync.start = ResyncStart::No);
            self.start_resync(id, side);
        }
    }

    fn start_resync(&mut self, id: VolumeId, side: Conn) {
        if self.awaits_consent(id) {
            // What the peer agrees to must still be possible then. Tried again at the next tick. spec: state-machine 17.2 (3)
            self.with_volume(id, |volume| volume.resync.start = ResyncStart::Due { side });
            return;
        }
        let Some(volume) = self.volume(id) else { return };
        if volume.state.conn < Conn::Connected || volume.state.disk < Disk::Negotiating {
            return;
        }
        if side == Conn::SyncSource && volume.state.disk == Disk::Inconsistent {
            // Both were good, and the device has grown; then this disk failed, and is kept. As the source it would count as good, and
            // the peer's, which alone has what was written since, would be overwritten. (The C module does that.)
            self.fail(Fault::SourceFailed, Conn::NetworkFailure);
            return;
        }
        use crate::state::And;
        let change = if side == Conn::SyncTarget {
            Change::conn(side).disk(Disk::Inconsistent)
        } else {
            Change::conn(side).pdsk(Disk::Inconsistent)
        };
        let met = volume.state.conn == Conn::WFBitMapS;
        let volume_bits = volume.weight();
        let uses_checksums = side == Conn::SyncTarget && self.wants_checksums(id);
        self.begin_run(id, volume_bits);
        self.with_volume(id, |volume| {
            volume.resync.position = 0;
            volume.resync.uses_checksums = uses_checksums;
        });
        if self.change(id, change, Kind::Soft).is_err() {
            return;
        }
        self.with_volume(id, |volume| {
            volume.resync.of_earlier_run = volume.resync.unanswered;
            if let Some(disk) = volume.disk.as_mut() {
                // Written with a flush: the bitmap pages that went before it are durable as well. Without them a crash
                // would forget what was to be resynced, while the source has cleared the bits of what was written here.
                disk.pipeline.touch();
                volume.resync.start_version = Some(disk.pipeline.version());
            }
        });
        self.log(LogLine::ResyncStarted { volume: id, source: side == Conn::SyncSource, bits: volume_bits });
        // Those that follow this volume have to wait from now on.
        self.work(Work::ResyncDependencies);
        self.sync_metadata(id);
        if side == Conn::SyncTarget {
            self.resync_turn(id);
        } else {
            if self.link.apv < 96 {
                // From 96 on it is the first thing that the change of the state brings about.
                self.start_sync_generation(id, met);
            }
            // Below 96 the source ends by itself, also when there is nothing to do.
            self.check_resync_end(id);
        }
    }

    /// Everything that a resync or verify run counts starts anew.
    pub(super) fn begin_run(&mut self, id: VolumeId, total_bits: u64) {
        let now_ms = self.now_ms;
        let max_buffers = self.link.net.max_buffers;
        self.with_volume(id, |volume| {
            volume.max_buffers = max_buffers;
            let config = volume.rate_config();
            let resync = &mut volume.resync;
            resync.total_bits = total_bits;
            resync.failed_bits = 0;
            resync.equal_bits = 0;
            resync.arrived_sectors = 0;
            resync.allowance_blocks = 0;
            resync.next_turn_ms = now_ms;
            resync.end = ResyncEnd::No;
            resync.peer_done = false;
            resync.peer_failed = false;
            resync.own_failed = false;
            resync.done_since_ms = None;
            resync.progress = Progress::new(total_bits, now_ms);
            resync.save_at_ms = now_ms + SAVE_MS;
            resync.saved_bits = total_bits;
            resync.paused_since_ms = None;
            resync.controller = Some(Controller::new(config));
            resync.meter.reset(volume.foreign_sectors, 0);
        });
    }

    /// P_SYNC_UUID: the source starts. It may be faster than this node, which is still setting its bits, or even than its own
    /// consent to the resync, which comes on the other socket: then the receiver waits.
    /// spec: wire-protocol 8.5; state-machine 17.1; metadata 6.2 (13)
    pub(super) fn receive_sync_uuid(&mut self, id: VolumeId, uuid: u64) {
        let asks = self.asks_peer(Some(id));
        let Some(volume) = self.volume_mut(id) else { return };
        let conn = volume.state.conn;
        if matches!(conn, Conn::StartingSyncT | Conn::WFBitMapT) || (asks && conn == Conn::Connected) {
            volume.resync.early_sync_uuid = Some(uuid);
        } else {
            self.begin_as_target(id, uuid);
        }
    }

    /// This node may have become ready for a sync UUID that came early.
    pub(super) fn take_early_sync_uuid(&mut self, id: VolumeId) {
        let early = self.volume_mut(id).and_then(|volume| volume.resync.early_sync_uuid.take());
        if let Some(uuid) = early {
            self.wakes.insert(Wakes::RECEIVER);
            self.begin_as_target(id, uuid);
        }
    }

    fn begin_as_target(&mut self, id: VolumeId, uuid: u64) {
        let Some(volume) = self.volume_mut(id) else { return };
        let primary = volume.state.role == Role::Primary;
        let expected = matches!(volume.state.conn, Conn::WFSyncUUID | Conn::Behind);
        let usable = volume.state.disk >= Disk::Negotiating;
        if let Some(disk) = volume.disk.as_mut().filter(|_| expected && usable) {
            volume.resync.before_growth = Some(disk.generation()).filter(|_| volume.resync.of_growth);
            disk.set_current(uuid, primary);
            disk.set_bitmap_uuid(0);
            volume.exposed_uuid = uuid;
            // The source forgets a block when it is acknowledged: the bitmap has to be on the disk before.
            volume.resync.target_prepares = true;
            self.queue_job(id, Job::Write(Then::SyncTarget));
        }
    }

    /// The bitmap of the target is on the disk.
    pub(super) fn target_prepared(&mut self, id: VolumeId) {
        let Some(volume) = self.volume_mut(id) else { return };
        let expected = matches!(volume.state.conn, Conn::WFSyncUUID | Conn::Behind);
        if core::mem::take(&mut volume.resync.target_prepares) && expected {
            self.prepare_resync(id, Conn::SyncTarget);
        }
    }

    // Requests. spec: wire-protocol 8.6; state-machine 17.4

    /// Makes the resync requests that the rate controller allows in this turn.
    pub(super) fn resync_turn(&mut self, id: VolumeId) {
        let now_ms = self.now_ms;
        if !self.asks_for_blocks(id) {
            return;
        }
        let Some(volume) = self.volume_mut(id) else { return };
        let weight = volume.weight();
        let resync = &mut volume.resync;
        resync.progress.advance(weight.saturating_sub(resync.failed_bits), now_ms);
        volume.take_allowance(now_ms);
        self.make_requests(id, REQUESTS_PER_TURN);
        self.check_resync_end(id);
    }

    /// This node is the target of a resync that runs, and is not paused.
    pub(super) fn asks_for_blocks(&self, id: VolumeId) -> bool {
        let goes_on = self.sabotaged(Sabotage::AskWhilePaused);
        let conn = self.volume(id).map(|volume| volume.state.conn);
        conn == Some(Conn::SyncTarget) || (goes_on && conn == Some(Conn::PausedSyncT))
    }

    /// The run goes on after a pause: its figures leave the pause out.
    pub(super) fn account_pause(&mut self, id: VolumeId) {
        let now_ms = self.now_ms;
        self.with_volume(id, |volume| {
            let left = volume.weight().saturating_sub(volume.resync.failed_bits);
            if let Some(since_ms) = volume.resync.paused_since_ms.take() {
                volume.resync.progress.add_pause(left, now_ms.saturating_sub(since_ms), now_ms);
            }
        });
    }

    /// An answer made room for more.
    pub(super) fn resync_answered(&mut self, id: VolumeId) {
        let conn = self.volume(id).map(|volume| volume.state.conn).filter(|_| !self.data_queue_is_long());
        match conn {
            Some(Conn::SyncTarget) => self.make_requests(id, REQUESTS_PER_ANSWER),
            Some(Conn::VerifyS) => self.request_digests(id, REQUESTS_PER_ANSWER),
            _ => {}
        }
    }

    fn make_requests(&mut self, id: VolumeId, most: u32) {
        let discard_granularity_bytes = self.thin_request_bytes(id);
        if !self.volume(id).is_some_and(super::Volume::start_is_durable) {
            return;
        }
        for _ in 0..most {
            let Some(volume) = self.volume_mut(id) else { return };
            let limits = MergeLimits {
                max_size_bytes: volume.request_limit_bytes(),
                budget_blocks: volume.blocks_to_request(),
                discard_granularity_bytes,
            };
            if limits.budget_blocks == 0 {
                return;
            }
            let Some(disk) = volume.disk.as_ref() else { return };
            let bit = match disk.bitmap.next_set(volume.resync.position, SCAN_WORDS) {
                Scan::Found(bit) => bit,
                Scan::Continue(bit) => {
                    volume.resync.position = bit;
                    continue;
                }
                Scan::None => {
                    let resync = &mut volume.resync;
                    // Bits behind us: the source cancelled requests. Once more from the start, in the next turn.
                    if resync.requests_in_flight == 0 {
                        resync.position = 0;
                    }
                    return;
                }
            };
            let size_bytes = merge_request(&disk.bitmap, bit, &limits);
            if size_bytes == 0 || !self.ask_for(id, PeerKind::Resync, bit * 8, size_bytes) {
                return;
            }
            let blocks = size_bytes.div_ceil(4096);
            self.with_volume(id, |volume| {
                volume.resync.position = bit + u64::from(blocks);
                volume.requested(blocks);
            });
        }
    }

    /// The target has written a block of the resync: it is the same on both sides now (source).
    pub(super) fn resync_acknowledged(&mut self, id: VolumeId, sector: u64, size_bytes: u32) {
        let late = self.is_of_earlier_run(id);
        if self.runs_resync(id, Conn::SyncSource) && !late {
            self.mark_in_sync(id, sector, size_bytes);
            self.check_resync_end(id);
        } else {
            // A write of these blocks may have been announced since.
            self.do_not_count(id, sector, size_bytes);
        }
    }

    /// The target could not write a block of the resync (source).
    pub(super) fn resync_refused_by_target(&mut self, id: VolumeId, sector: u64, size_bytes: u32) {
        if !self.is_of_earlier_run(id) {
            self.resync_failed(id, sector, size_bytes);
        }
    }

    /// What the target says now is about a block that it was sent before this run began: its disk may have come and gone since, and the
    /// bitmaps have been exchanged, faster than what waits for the meta socket. (The C module counts that.) To a peer so old that
    /// nothing can be announced no block is written meanwhile.
    fn is_of_earlier_run(&mut self, id: VolumeId) -> bool {
        let announces = self.link.apv >= NOTICE_PROTOCOL;
        let Some(volume) = self.volume_mut(id) else { return false };
        let resync = &mut volume.resync;
        let late = resync.of_earlier_run > 0;
        resync.unanswered = resync.unanswered.saturating_sub(1);
        resync.of_earlier_run = resync.of_earlier_run.saturating_sub(1);
        late && announces
    }

    /// A resync runs, with this node as `side`. Only then a block of it clears bits: one of a run that was ended may arrive
    /// while the bitmaps are exchanged, or after a write that is only announced, and would make the two bitmaps differ,
    /// or both forget that write. (The C module clears them at any time.)
    pub(super) fn runs_resync(&self, id: VolumeId, side: Conn) -> bool {
        let conn = self.volume(id).map(|volume| volume.state.conn);
        let paused = if side == Conn::SyncTarget { Conn::PausedSyncT } else { Conn::PausedSyncS };
        conn == Some(side) || conn == Some(paused)
    }

    /// A block, within the device, could not be synced: its bit stays, and the end does not wait for it.
    pub(super) fn resync_failed(&mut self, id: VolumeId, sector: u64, size_bytes: u32) {
        let first = sector / 8;
        let last = (sector + u64::from(size_bytes / 512)).saturating_sub(1) / 8;
        let bits = last.saturating_sub(first).saturating_add(1).min(u64::from(size_bytes.div_ceil(4096)) + 1);
        self.with_volume(id, |volume| volume.resync.failed_bits += bits);
    }

    /// Bits that stay set when this resync is complete. A source that is told the end by its target goes by that: a target that has
    /// failed to write something says that its disk is Inconsistent, and what it tells of single blocks over the other socket may
    /// be about an earlier resync. (The C module counts that.)
    pub(super) fn bits_given_up(&self, id: VolumeId) -> u64 {
        let told = self.link.apv > 95 && self.runs_resync(id, Conn::SyncSource);
        self.volume(id).filter(|_| !told).map_or(0, |volume| volume.resync.failed_bits)
    }

    // End. spec: wire-protocol 8.7; state-machine 17.3

    /// Is the resync of this target complete? Then ping, to be sure that the source has processed every answer.
    pub(super) fn check_resync_end(&mut self, id: VolumeId) {
        let own_end = self.link.apv <= 95;
        let given_up = self.bits_given_up(id);
        let Some(volume) = self.volume_mut(id) else { return };
        let conn = volume.state.conn;
        let source_ends = conn == Conn::SyncSource && (own_end || volume.resync.peer_done);
        // What only the target has stays marked.
        let is_marked = volume.weight() > given_up && !(source_ends && volume.resync.own_failed);
        let left = is_marked || volume.resync.requests_in_flight > 0;
        if !(conn == Conn::SyncTarget || source_ends) || left || volume.resync.end != ResyncEnd::No {
            return;
        }
        if conn == Conn::SyncTarget && self.source_may_lag(id) {
            return;
        }
        self.finish_resync(id);
    }

    /// The source clears its bits for writes made meanwhile when their epoch is acknowledged, and looks only once
    /// whether it is done too: when it hears that we are. So the epoch goes first, for a second at most; looked at again
    /// at every tick. spec: wire-protocol 13 (H10)
    fn source_may_lag(&mut self, id: VolumeId) -> bool {
        let now_ms = self.now_ms;
        let open = self.link.received_epoch.is_open();
        let Some(volume) = self.volume_mut(id) else { return false };
        let since = *volume.resync.done_since_ms.get_or_insert(now_ms);
        open && now_ms.saturating_sub(since) < 1000
    }

    /// The end of a resync, or of this side's part in it: first the ping.
    pub(super) fn finish_resync(&mut self, id: VolumeId) {
        self.with_volume(id, |volume| volume.resync.end = ResyncEnd::Ping);
        self.fresh_ping();
    }

    /// A ping was answered that was sent after everything now waiting for it.
    pub(super) fn resync_ping_answered(&mut self) {
        self.consents_heard();
        for id in self.volume_ids() {
            if !self.volume(id).is_some_and(|volume| volume.resync.end == ResyncEnd::Ping) {
                continue;
            }
            // What a read of the application could not get from the own disk meanwhile has to be copied as well.
            let given_up = self.bits_given_up(id);
            let goes_on =
                self.runs_resync(id, Conn::SyncTarget) && self.volume(id).is_some_and(|v| v.weight() > given_up);
            if goes_on {
                self.with_volume(id, |volume| volume.resync.end = ResyncEnd::No);
            } else {
                self.resync_finished(id);
            }
        }
    }

    /// The peers that wanted to be targets know by now that their data is given up. What was written here alone since this node agreed is
    /// acknowledged now: after a power cut before, the peer would have gone on without it. (The C module does not wait.)
    fn consents_heard(&mut self) {
        for id in self.volume_ids() {
            self.with_volume(id, |volume| volume.resync.consent_unheard = false);
        }
        self.settle_all();
    }

    fn resync_finished(&mut self, id: VolumeId) {
        use crate::state::And;
        let now_ms = self.now_ms;
        let wrongly = self.sabotaged(Sabotage::RotateWrongly);
        let given_up = self.bits_given_up(id);
        let Some(volume) = self.volume_mut(id) else { return };
        volume.resync.end = ResyncEnd::No;
        let conn = volume.state.conn;
        if conn <= Conn::Connected {
            return;
        }
        let incomplete = given_up > 0 || volume.resync.peer_failed;
        let failed = if incomplete { volume.resync.failed_bits } else { 0 };
        let target = matches!(conn, Conn::SyncTarget | Conn::PausedSyncT);
        let source = matches!(conn, Conn::SyncSource | Conn::PausedSyncS);
        // Only now there is another disk that is good (`on-io-error pass_on`).
        let lacks = source && volume.resync.own_failed && volume.weight() > 0;
        let mut change = Change::conn(Conn::Connected);
        if target || source {
            change = match (incomplete, target) {
                (false, _) if lacks => change.disk(Disk::Inconsistent).pdsk(Disk::UpToDate),
                (false, _) => change.disk(Disk::UpToDate).pdsk(Disk::UpToDate),
                (true, true) => change.disk(Disk::Inconsistent).pdsk(Disk::UpToDate),
                (true, false) => change.disk(Disk::UpToDate).pdsk(Disk::Inconsistent),
            };
            if !incomplete && !wrongly {
                volume.close_generations(target);
            }
        }
        let bits = volume.resync.total_bits;
        let equal_bits = volume.resync.equal_bits;
        let pace = volume.resync.progress.pace(failed, now_ms);
        // Programs run before listeners are told: whoever waits for the end may rely on what they have done.
        if is_verifying(conn) {
            self.verify_over(id);
        } else {
            self.log(LogLine::ResyncDone { volume: id, source, bits, equal_bits, failed_bits: failed, pace });
            if target {
                self.call_helper(Helper::AfterResyncTarget, Some(id));
            }
        }
        self.with_volume(id, |volume| {
            volume.resync.total_bits = 0;
            volume.resync.failed_bits = 0;
            volume.resync.controller = None;
        });
        let _outcome = self.change(id, change, Kind::Soft);
        if lacks {
            self.record_kept_loss(id);
        }
        self.queue_job(id, Job::Write(Then::Nothing));
        self.sync_metadata(id);
        if source {
            self.unfence_if_done();
        }
    }

    /// Stops asking and forgets what is not answered; called when a disk or the connection is lost.
    pub(super) fn cancel_resync(&mut self, id: VolumeId) {
        self.with_volume(id, |volume| {
            let resync = &mut volume.resync;
            resync.start = ResyncStart::No;
            resync.end = ResyncEnd::No;
            resync.controller = None;
            resync.allowance_blocks = 0;
            resync.total_bits = 0;
            resync.failed_bits = 0;
        });
    }

    /// The new space of a device that grew is resynced. spec: metadata 7.5
    pub(super) fn start_grow_resync(&mut self, id: VolumeId, source: bool) {
        if source {
            self.prepare_resync(id, Conn::SyncSource);
        } else {
            let _outcome = self.change(id, Change::conn(Conn::WFSyncUUID), Kind::Hard);
            self.with_volume(id, |volume| volume.resync.of_growth = volume.state.conn == Conn::WFSyncUUID);
        }
    }

    /// The peer takes itself for the target of what the device has grown by. So may this node, if one of two Primaries was demoted
    /// meanwhile: each has decided by the roles that it knew. Then the node that has the upper hand is the source after all. (Two C modules
    /// wait for ever.) spec: wire-protocol 8.4
    pub(super) fn peer_waits_for_growth(&mut self, id: VolumeId) {
        if self.link.resolve_conflicts && self.stop_waiting_for_growth(id) {
            self.prepare_resync(id, Conn::SyncSource);
        }
    }

    /// Waits no longer for the resync of what the device has grown by, if it does and that has not begun. The disk is as good as it was
    /// before: it has not taken anything yet.
    pub(super) fn stop_waiting_for_growth(&mut self, id: VolumeId) -> bool {
        let waits = self.volume(id).is_some_and(|volume| volume.resync.of_growth && !volume.resync.target_prepares);
        if waits {
            let _outcome = self.change(id, Change::conn(Conn::Connected), Kind::Hard);
        }
        waits
    }

    /// What a resync has done is written down every now and then, so that a crash does not make it start anew. (The C module
    /// does so when 16 MiB are complete, every 2 s at most. Here the disk's cache is flushed before, and what arrives
    /// meanwhile does not count; so it is done less often.) spec: metadata 5.2
    fn save_progress(&mut self, id: VolumeId) {
        let now_ms = self.now_ms;
        let Some(volume) = self.volume_mut(id) else { return };
        let weight = volume.weight();
        let resync = &mut volume.resync;
        let runs = matches!(volume.state.conn, Conn::SyncSource | Conn::SyncTarget);
        if !runs || now_ms < resync.save_at_ms || weight >= resync.saved_bits {
            return;
        }
        resync.save_at_ms = now_ms + SAVE_MS;
        resync.saved_bits = weight;
        self.queue_job(id, Job::Write(Then::Flush));
    }

    /// Application I/O may be waiting in the queue of the data socket; resync requests do not fill it up.
    pub(super) fn data_queue_is_long(&self) -> bool {
        self.data_out.len() > 256
    }

    /// The clock. Every 100 ms while [`Engine::wants_tick`].
    pub fn tick(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        for id in self.volume_ids() {
            if self.volume(id).is_none() {
                continue;
            }
            self.start_due(id);
            if !self.data_queue_is_long() {
                self.resync_turn(id);
                self.verify_turn(id);
            }
            self.with_volume(id, |volume| {
                let left = volume.weight().saturating_sub(volume.resync.failed_bits);
                if volume.state.conn == Conn::SyncSource {
                    volume.resync.progress.advance(left, now_ms);
                }
            });
            self.release_throttled(id);
            self.check_results_come(id);
            self.tell_spoilt_verify(id);
            self.check_verdict_comes(id);
            self.save_progress(id);
            self.sync_metadata(id);
        }
        self.exceed_buffers();
        self.check_idle_barrier();
        self.check_request_timeouts();
        self.check_sequence_timeout();
        self.check_failures_unseen();
        self.check_peers_knowledge();
        self.check_disk_timeouts();
        self.congestion_ended();
        self.check_ended();
        self.check_missing_volumes();
        self.check_handshake_ends();
        self.restart_forgotten();
        self.catch_up();
        self.admin_step();
    }

    /// True while somebody has to call [`Engine::tick`].
    pub fn wants_tick(&self) -> bool {
        self.link.configured || self.volumes_with(|volume| volume.disk.is_some()).next().is_some()
    }
}

impl<S: Storage> super::Volume<S> {
    /// The superblock says by now that this disk is being overwritten.
    fn start_is_durable(&self) -> bool {
        let disk = self.disk.as_ref();
        disk.is_some_and(|disk| self.resync.start_version.is_none_or(|version| disk.pipeline.is_durable(version)))
    }

    /// What the rate controller goes by.
    pub(super) fn rate_config(&self) -> RateConfig {
        RateConfig {
            resync_rate_kib: self.conf.resync_rate,
            c_plan_ahead: self.conf.c_plan_ahead,
            c_delay_target: self.conf.c_delay_target,
            c_fill_target_sectors: self.conf.c_fill_target,
            c_max_rate_kib: self.conf.c_max_rate,
            max_buffers: self.max_buffers,
        }
    }

    /// A turn of the rate controller, when it is time.
    pub(super) fn take_allowance(&mut self, now_ms: u64) {
        let resync = &mut self.resync;
        // The clock may come a little early: better now than a whole turn late.
        if now_ms + TURN_MS / 4 >= resync.next_turn_ms {
            resync.next_turn_ms = now_ms + TURN_MS;
            let arrived = core::mem::take(&mut resync.arrived_sectors);
            resync.allowance_blocks = resync.controller.as_mut().map_or(0, |controller| controller.turn(arrived));
            if self.is_throttled(now_ms) {
                self.resync.allowance_blocks = 0;
            }
        }
    }

    /// Blocks that may be asked for now.
    pub(super) fn blocks_to_request(&self) -> u32 {
        let resync = &self.resync;
        let room = resync.controller.as_ref().map_or(0, |controller| controller.room(resync.blocks_in_flight));
        resync.allowance_blocks.min(room)
    }

    /// A request for so many blocks has been made.
    pub(super) fn requested(&mut self, blocks: u32) {
        let resync = &mut self.resync;
        resync.requests_in_flight += 1;
        resync.blocks_in_flight += blocks;
        resync.allowance_blocks = resync.allowance_blocks.saturating_sub(blocks);
        if let Some(controller) = resync.controller.as_mut() {
            controller.requested(blocks);
        }
    }

    /// Largest request to the peer.
    pub(super) fn request_limit_bytes(&self) -> u32 {
        let own = self.disk.as_ref().map_or(u32::MAX, |disk| disk.limits.max_bio_bytes);
        own.min(self.peer.max_bio_bytes.max(4096)).min(crate::wire::MAX_DATA_BYTES)
    }

    /// The resync is complete: both nodes end with the same UUIDs. spec: metadata 6.2 (14, 15)
    pub(super) fn close_generations(&mut self, target: bool) {
        let primary = self.state.role == Role::Primary;
        let Some(disk) = self.disk.as_mut() else { return };
        if target {
            if let Some(peer) = self.peer.uuids {
                let sync_uuid = disk.current();
                let mut uuids = disk.uuids();
                for at in [UI_BITMAP, UI_HISTORY_START, UI_HISTORY_END] {
                    if let (Some(own), Some(other)) = (uuids.get_mut(at), peer.uuids.get(at)) {
                        *own = *other;
                    }
                }
                disk.set_uuids(uuids);
                disk.rotate_bitmap_uuid(sync_uuid);
                let current = peer.uuids.get(UI_CURRENT).copied().unwrap_or(0);
                disk.set_current(current, primary);
                self.exposed_uuid = disk.current();
            }
        }
        disk.rotate_bitmap_uuid(0);
        // From now on the peer's UUIDs are known to be the same.
        if let Some(peer) = self.peer.uuids.as_mut() {
            peer.uuids = disk.uuids();
        }
    }
}
