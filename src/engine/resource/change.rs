// SPDX-License-Identifier: GPL-2.0
//! The one function that changes the state of a volume, and what a change brings about.
//!
//! A change is made coherent, checked, stored and then its effects are carried out, in the order of the table in
//! `state::effects`. Effects may change the state again; that is a change of its own.
//! spec: state-machine 3, 8, 9, 10

use super::api::{Helper, VolumeId, Wakes};
use super::link::Link;
use super::meeting::{set_of, words_of};
use super::metadata_pipeline::{Job, Then};
use super::outgoing::Control;
use super::slots::Local;
use super::verify::is_verifying;
use super::volume::{DiskError, ResyncEnd, ResyncStart, NEW_BITMAP_OFFSET};
use super::work::{LogLine, Notice, Overall, Work};
use super::{Engine, Sabotage, Volume};
use crate::handshake::is_source_of_growth;
use crate::metadata::superblock::MetaFlags;
use crate::netlink::{Fencing, OnIoError, OnNoData};
use crate::state::And;
use crate::state::{
    conn_transition, effects, explain_dropped_verify, explain_soft, meta_flags, sanitize, sends_out_of_sync,
    transition, Aggregates, Change, Conn, Disk, Effect, EffectContext, FencingPolicy, Outcome, Refusal, Role, Rules,
    State, StateError, Susp,
};
use crate::storage::Storage;

/// How a change is checked. spec: state-machine 3.1
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A wish: every rule applies.
    Soft,
    /// A fact: only impossible transitions are refused.
    Hard,
}

impl<S: Storage> Engine<S> {
    /// What the rules may look at, for one volume.
    pub(super) fn rules(&self, id: VolumeId) -> Rules {
        let Some(volume) = self.volume(id) else { return Rules::default() };
        let fencing = policy(volume.conf.fencing);
        let others = self.volumes_with(|other| other.minor != volume.minor && other.state.peer == Role::Primary);
        Rules {
            net_configured: self.link.configured,
            two_primaries: self.link.net.two_primaries,
            peer_primary_on_other_volume: others.count() > 0,
            open_count: volume.readers + volume.writers,
            fencing: fencing.effective(volume.state.disk),
            has_verify_alg: !self.link.net.verify_alg.is_empty(),
            apv: self.link.apv,
            on_no_data_suspend: self.options.on_no_data == OnNoData::SuspendIo,
            state_sent: self.link.state_sent,
            negotiated: volume.negotiated,
            ed_uuid_matches: volume
                .disk
                .as_ref()
                .is_some_and(|disk| disk.current() == volume.exposed_uuid && !volume.wrote_elsewhere),
            peer_says_worse: volume.peer.says_worse,
            target_of_growth: volume.resync.of_growth || volume.resync.before_growth.is_some(),
            target_unheard: volume.resync.target_unheard || volume.resync.begin_unheard,
        }
    }

    /// Changes the state of one volume.
    ///
    /// # Errors
    /// The rule that does not allow it. A hard change that leaves the connection state alone is always applied.
    pub(super) fn change(&mut self, id: VolumeId, change: Change, kind: Kind) -> Result<Outcome, StateError> {
        let Some(old) = self.volume(id).map(|volume| volume.state) else { return Err(StateError::NoLocalDisk) };
        let rules = self.rules(id);
        let susp = change.apply_susp(self.susp);
        let change = with_implied_disk(change, old);
        let wanted = change.apply(old);
        let sane = sanitize(old, wanted, &rules);
        if let Some(refusal) = explain_dropped_verify(old, wanted, sane.state, &rules).filter(|_| kind == Kind::Soft) {
            self.log(LogLine::Refused { volume: id, from: old, to: wanted, refusal });
            return Err(refusal.error);
        }
        let susp = Susp {
            no_data: susp.no_data || sane.susp_no_data_raised,
            fencing: susp.fencing || sane.susp_fencing_raised,
            ..susp
        };
        let new = sane.state;
        if new == old && susp == self.susp {
            return Ok(Outcome::NothingToDo);
        }
        if kind == Kind::Soft {
            if let Err(refusal) = explain_soft(old, new, &rules) {
                self.log_refused(id, old, new, refusal);
                return Err(refusal.error);
            }
        } else {
            transition(old, new)?;
        }
        if let Some(warning) = sane.warning {
            self.log(LogLine::Warning { volume: id, warning });
        }
        self.apply(id, old, new, susp);
        Ok(Outcome::Success)
    }

    fn log_refused(&mut self, id: VolumeId, from: State, to: State, refusal: Refusal) {
        // Tried again with every change of any state, and told once.
        if !(refusal.error == StateError::InTransientState && self.admin.tries_again()) {
            self.log(LogLine::Refused { volume: id, from, to, refusal });
        }
    }

    /// What [`Engine::change`] would say to a wish, without doing anything.
    pub(super) fn would_be(&self, id: VolumeId, change: Change) -> Option<(State, State)> {
        let old = self.volume(id)?.state;
        Some((old, sanitize(old, with_implied_disk(change, old).apply(old), &self.rules(id)).state))
    }

    /// Changes the state of the connection and of all its volumes, or of nothing at all.
    ///
    /// # Errors
    /// The first rule that does not allow it on some volume.
    // spec: state-machine 3.5
    pub(super) fn change_connection(
        &mut self,
        change: Change,
        kind: Kind,
        ignore_outdate: bool,
    ) -> Result<Outcome, StateError> {
        let wanted = change.wanted_conn();
        if let Some(conn) = wanted {
            conn_transition(self.link.conn, conn)?;
        }
        for id in self.volume_ids() {
            let Some(old) = self.volume(id).map(|volume| volume.state) else { continue };
            let change = Self::for_volume(change, old, ignore_outdate);
            let rules = self.rules(id);
            let new = sanitize(old, change.apply(old), &rules).state;
            if new == old {
                continue;
            }
            if kind == Kind::Soft {
                if let Err(refusal) = explain_soft(old, new, &rules) {
                    self.log_refused(id, old, new, refusal);
                    return Err(refusal.error);
                }
            } else {
                transition(old, new)?;
            }
        }
        let before = self.link.conn;
        if let Some(conn) = wanted {
            self.link.conn = conn;
        }
        let volumes_part = self.volumes.iter().flatten().any(|volume| volume.state.conn >= Conn::Connected)
            && wanted.is_some_and(|conn| conn < Conn::WFReportParams);
        for id in self.volume_ids() {
            if let Some(old) = self.volume(id).map(|volume| volume.state) {
                // Checked above; a volume cannot refuse any more.
                let _outcome = self.change(id, Self::for_volume(change, old, ignore_outdate), Kind::Hard);
            }
        }
        if core::mem::take(&mut self.data_back) {
            self.thaw_with_own_disks();
        }
        if before != self.link.conn {
            self.connection_changed(before, volumes_part);
        }
        self.thaw_if_fenced();
        Ok(Outcome::Success)
    }

    /// What [`Engine::change_connection`] would say to a wish of the peer, without doing anything.
    pub(super) fn check_connection(&self, change: Change) -> Result<Outcome, StateError> {
        for id in self.volume_ids() {
            let Some(old) = self.volume(id).map(|volume| volume.state) else { continue };
            let rules = self.rules(id);
            let new = sanitize(old, Self::for_volume(change, old, true).apply(old), &rules).state;
            explain_soft(old, new, &rules)?;
        }
        Ok(Outcome::Success)
    }

    fn for_volume(change: Change, old: State, ignore_outdate: bool) -> Change {
        if ignore_outdate && change.wanted_disk() == Some(Disk::Outdated) && old.disk < Disk::Outdated {
            change.without_disk()
        } else {
            change
        }
    }

    /// spec: state-machine 10
    fn connection_changed(&mut self, before: Conn, volumes_part: bool) {
        let now = self.link.conn;
        self.notify(Notice::Connection { from: before, to: now, peer: self.overall().peer, volumes_part });
        self.wakes.insert(Wakes::LINK);
        if now == Conn::StandAlone {
            let Link { epoch, connects, fence, .. } = self.link;
            self.link = Link { epoch, connects, fence, ..Link::new() };
        }
        self.admin_step();
    }

    fn apply(&mut self, id: VolumeId, old: State, new: State, susp: Susp) {
        let susp_before = self.susp;
        if let Some(volume) = self.volume_mut(id) {
            volume.state = new;
            volume.note_lacks(old);
            volume.note_unattested(old);
            volume.peer_lacks_writes |= sends_out_of_sync(old);
            volume.peer_lacks_writes &= new.disk < Disk::Inconsistent && new.conn == Conn::Connected;
            if new.conn != Conn::WFSyncUUID {
                volume.growth_left(new);
            }
            if new.disk != Disk::Negotiating {
                // However it ended: what was found at attach must not speak for the disk any more.
                volume.negotiated = None;
                volume.unjudged = None;
            }
        }
        self.susp = susp;
        if new.conn <= Conn::Connected {
            // The resync of what the device has grown by is about to begin while the nodes are Connected.
            let may_start = old.conn == Conn::Connected
                && new.conn == Conn::Connected
                && new.disk >= Disk::Inconsistent
                && new.pdsk >= Disk::Inconsistent;
            self.with_volume(id, |volume| {
                if !may_start {
                    volume.resync.start = ResyncStart::No;
                }
                volume.resync.end = ResyncEnd::No;
                volume.resync.target_prepares = false;
                volume.resync.target_unheard = false;
            });
        } else if new.conn == Conn::StartingSyncS && old.conn != new.conn {
            self.with_volume(id, |volume| volume.resync.target_unheard = true);
        }
        let relies_on_peer = |state: State| state.disk < Disk::Inconsistent && state.pdsk == Disk::UpToDate;
        if !relies_on_peer(old) && relies_on_peer(new) {
            // From now on the application sees the peer's data. Its generation may have arrived already, because the
            // peer began it when it agreed to this change, or during the handshake. spec: state-machine 14.2
            self.with_volume(id, |volume| {
                let peer = volume.peer.uuids.and_then(|uuids| uuids.uuids.first().copied());
                volume.exposed_uuid = peer.unwrap_or(volume.exposed_uuid);
            });
        }
        self.note_level_peer(id, old, new);
        self.note_overtaken_end(id, old, new);
        if new.conn >= Conn::Connected && new.disk == Disk::UpToDate {
            self.with_volume(id, |volume| volume.wrote_elsewhere = false);
        }
        let loses_disk = old.disk > Disk::Failed && new.disk <= Disk::Failed;
        if loses_disk && new.conn >= Conn::Connected && new.peer == Role::Primary {
            // What the other Primary writes from now on may never arrive here.
            self.with_volume(id, |volume| volume.lacks_write_of_peer());
        }
        if old.conn >= Conn::Connected && new.conn < Conn::Connected {
            // What has no answer by now has failed.
            self.with_volume(id, |volume| {
                volume.loss_version = None;
                volume.failure_unseen_until_ms = None;
                volume.resync.unanswered = 0;
                volume.resync.of_earlier_run = 0;
            });
        }
        if old.disk == Disk::UpToDate && relies_on_peer(new) && new.role == Role::Primary {
            self.await_peers_knowledge(id);
        }
        // A disk that fails may forget what was in its cache; it is only sure of what it has acknowledged a barrier for.
        let fails = new.conn >= Conn::Connected && old.pdsk >= Disk::Inconsistent && new.pdsk < Disk::Inconsistent;
        // A write that began without the own disk is not there either when the bitmaps are exchanged.
        let exchanges = |state: State| matches!(state.conn, Conn::WFBitMapS | Conn::WFBitMapT);
        if fails || (!exchanges(old) && exchanges(new)) {
            self.mark_writes_under_way(id);
        }
        if exchanges(old) && !exchanges(new) {
            self.disown_bitmaps(id);
        }
        if old.conn < Conn::Connected && self.all_connected() {
            self.resend();
        }
        self.announce_uncounted(id, old, new);
        self.note_spoilt_verify(id, old, new);
        let mut set = effects(old, new, &self.effect_context(id, new));
        if old.conn == Conn::Connected && new.conn == Conn::StartingSyncT {
            // The peer learns it by the request for the resync or the answer to its own; told twice it would negotiate.
            set = set.without(Effect::SendState);
        }
        for effect in set {
            self.carry_out(id, old, new, susp_before, effect);
        }
        if old.disk == Disk::Negotiating && new.disk > Disk::Negotiating {
            self.record_loss_of_peer(id);
        }
        if old.conn == Conn::VerifyT && new.conn != Conn::VerifyT {
            self.expect_no_results(id);
        }
        self.note_target_is_good(id, old, new);
        let refusals_explained = old.pdsk == Disk::UpToDate && new.pdsk != Disk::UpToDate;
        if refusals_explained {
            self.explain_refusals(id);
        }
        let bitmaps_exchanged = old.conn == Conn::WFBitMapS && new.conn != Conn::WFBitMapS;
        let no_target = new.conn <= Conn::Connected && self.forget_consent(id);
        if refusals_explained || no_target || bitmaps_exchanged || (susp_before.any() && !self.susp.any()) {
            self.settle_all();
        }
        if old.conn != new.conn && !matches!(new.conn, Conn::StartingSyncT | Conn::WFBitMapT) {
            self.take_early_sync_uuid(id);
        }
        self.reopen_gate();
        self.admin_step();
    }

    fn all_connected(&self) -> bool {
        Aggregates::of(self.volumes.iter().flatten().map(|volume| volume.state)).all_at_least(Conn::Connected)
    }

    /// There is no resync any more that was agreed on. True: something may have waited for the peer to hear of that.
    fn forget_consent(&mut self, id: VolumeId) -> bool {
        self.volume_mut(id).is_some_and(|volume| core::mem::take(&mut volume.resync.consent_unheard))
    }

    /// What the peer refused it refused because its disk is not good any more.
    fn explain_refusals(&mut self, id: VolumeId) {
        for index in 0..self.requests.capacity() as u16 {
            if let Some(slot) = self.requests.at_mut(index).filter(|slot| slot.volume == id) {
                slot.refused = false;
            }
        }
    }

    /// The source of a resync loses its target, which may have finished without our hearing of it, or not have heard of the beginning
    /// where the generations were the same before: then they are the same now, and what is written on one side only must be of
    /// another. (The C module goes on with the same, and the other node would be told that it is the one with changes, or be
    /// taken for what the application has seen.)
    fn note_level_peer(&mut self, id: VolumeId, old: State, new: State) {
        let is_source = |state: State| matches!(state.conn, Conn::SyncSource | Conn::PausedSyncS);
        self.with_volume(id, |volume| {
            let current = volume.disk.as_ref().map_or(0, |disk| disk.current());
            let peer = volume.peer.uuids.and_then(|uuids| uuids.uuids.first().copied());
            if is_source(new) && !is_source(old) {
                // What the device has grown by is synced without a handshake.
                let was_level = peer.is_some_and(|peer| (peer ^ current) & !1 == 0);
                volume.resync.begin_unheard = was_level || old.conn == Conn::Connected;
            }
            if is_source(old) && new.conn <= Conn::Connected && new.pdsk != Disk::UpToDate {
                volume.peer_may_be_level = volume.weight() == 0 || volume.resync.begin_unheard;
            } else if old.conn < Conn::Connected && new.conn >= Conn::Connected {
                volume.peer_may_be_level = false;
            }
            volume.resync.begin_unheard &= new.conn > Conn::Connected;
        });
    }

    /// A resync or verify was over but for the answer to the ping that the end waits for, and one of the nodes has pulled ahead meanwhile:
    /// it has ended all the same, and what the answer would have made of it, Connected nodes, is not so any more. (The C module forgets
    /// that the resync has ended when the target is Ahead, and the generations differ from then on.)
    fn note_overtaken_end(&mut self, id: VolumeId, old: State, new: State) {
        let left_out = |state: State| matches!(state.conn, Conn::Ahead | Conn::Behind);
        let Some(volume) = self.volume_mut(id).filter(|_| left_out(new) && !left_out(old)) else { return };
        let was_over = core::mem::replace(&mut volume.resync.end, ResyncEnd::No) == ResyncEnd::Ping;
        if volume.target_is_done(old, was_over) {
            volume.close_generations(false);
        }
        if was_over && is_verifying(old.conn) {
            self.remember_verify_position(id);
            self.verify_over(id);
        }
    }

    /// The target of a resync was done, as it has told, when the source lost its disk: the target's is the good one, as it knows itself, and
    /// does not tell again. (In the C module it stays Inconsistent.)
    fn note_target_is_good(&mut self, id: VolumeId, old: State, new: State) {
        let was_source = matches!(old.conn, Conn::SyncSource | Conn::PausedSyncS);
        let lost = new.conn == Conn::Connected && new.disk <= Disk::Failed && new.pdsk == Disk::Inconsistent;
        let told = |volume: &Volume<S>| volume.resync.peer_done && !volume.resync.peer_failed;
        if was_source && lost && self.volume(id).is_some_and(told) {
            let _outcome = self.change(id, Change::pdsk(Disk::UpToDate), Kind::Hard);
        }
    }

    /// The resource as it is.
    fn overall(&self) -> Overall {
        self.overall_of(Aggregates::of(self.volumes.iter().flatten().map(|volume| volume.state)))
    }

    /// The resource with one volume in this state.
    fn overall_with(&self, id: VolumeId, state: State) -> Overall {
        let others = self.volume_ids().filter(|other| *other != id);
        let others = others.filter_map(|other| self.volume(other).map(|volume| volume.state));
        self.overall_of(Aggregates::of(others.chain([state])))
    }

    fn overall_of(&self, all: Aggregates) -> Overall {
        Overall { role: all.highest_role, peer: all.highest_peer, conn: self.link.conn }
    }

    fn effect_context(&self, id: VolumeId, new: State) -> EffectContext {
        let all = Aggregates::of(self.volumes.iter().flatten().map(|volume| volume.state));
        let volume = self.volume(id);
        let disk = volume.and_then(|volume| volume.disk.as_ref());
        let follows = new.conn >= Conn::Connected && new.role == Role::Secondary;
        let is_told = |volume: &super::Volume<S>| volume.records_changes() || (follows && volume.is_left_behind());
        EffectContext {
            other_volume_reporting: self
                .volumes
                .iter()
                .flatten()
                .any(|other| Some(other.minor) != volume.map(|v| v.minor) && other.state.conn == Conn::WFReportParams),
            susp_then: self.susp,
            susp_now: self.susp,
            // The program may switch this node off: not for a disk that the administrator lets go.
            io_error_helper: volume.is_some_and(|volume| {
                volume.io_error.is_some_and(|error| error != DiskError::ForceDetach)
                    && volume.conf.on_io_error == OnIoError::CallLocalIoError
            }),
            force_detach: volume.is_some_and(|volume| volume.force_detach),
            current_conn: new.conn,
            all_volumes_connected: all.all_at_least(Conn::Connected),
            all_disks_up_to_date: all.lowest_disk == Some(Disk::UpToDate),
            data_in_reach: !self.volumes.iter().flatten().any(|volume| volume.state.without_data()),
            bitmap_uuid_zero: disk.is_some() && volume.is_some_and(|volume| !is_told(volume)),
            resync_after_negotiation: disk.is_some_and(|disk| disk.resync_after_negotiation),
            unattested: volume.is_some_and(|volume| volume.unattested),
            ..EffectContext::of(new, self.link.apv)
        }
    }

    /// One match arm an effect; what takes more than a line has a function of its own.
    fn carry_out(&mut self, id: VolumeId, old: State, new: State, susp_before: Susp, effect: Effect) {
        match effect {
            Effect::LogChange | Effect::Notify => {
                if effect == Effect::Notify {
                    self.notify(Notice::State {
                        volume: id,
                        from: old,
                        to: new,
                        susp_before,
                        susp: self.susp,
                        overall_before: self.overall_with(id, old),
                        overall: self.overall_with(id, new),
                        bits_out_of_sync: self.volume(id).map_or(0, |volume| volume.weight()),
                        size_sectors: self.volume(id).map_or(0, |volume| volume.size_sectors),
                    });
                }
            }
            Effect::CountConnect => self.link.connects = self.link.connects.wrapping_add(1),
            Effect::NewEpoch => self.close_epoch(),
            Effect::ClearStateSent => self.link.state_sent = false,
            Effect::UpdateMetaFlags => self.update_meta_flags(id),
            Effect::RememberExposedUuid => {
                if let Some(volume) = self.volume_mut(id) {
                    volume.exposed_uuid = volume.disk.as_ref().map_or(volume.exposed_uuid, |disk| disk.current());
                    volume.wrote_elsewhere &= volume.disk.is_none();
                }
            }
            Effect::SetConsiderResync => self.with_volume(id, |volume| volume.consider_resync = true),
            Effect::StopReceiver | Effect::RestartReceiver => self.wakes.insert(Wakes::LINK),
            Effect::ResumeActivityLog => self.with_disk(id, |disk| {
                if core::mem::take(&mut disk.log_suspended) {
                    disk.pipeline.log_resumed();
                }
            }),
            Effect::ClearCrashedPrimary => {
                self.with_disk(id, |disk| {
                    disk.crashed_primary = false;
                    disk.assign_flag(MetaFlags::CRASHED_PRIMARY, false);
                });
                self.with_volume(id, |volume| {
                    if let Some(uuids) = volume.peer.uuids.as_mut() {
                        uuids.flags = uuids.flags.without(crate::wire::UuidFlags::CRASHED_PRIMARY);
                    }
                });
                self.update_meta_flags(id);
            }
            Effect::HelperPriOnInconDegr => _ = self.call_helper(Helper::PriOnInconDegr, Some(id)),
            Effect::HelperLocalIoError => _ = self.call_helper(Helper::LocalIoError, Some(id)),
            Effect::ThawNoDataResend => {
                self.restart_failed();
                self.thaw(Susp { no_data: false, ..self.susp });
            }
            Effect::ThawNoDataRestartDisk => {
                // The connection is being lost, and some volumes have yet to be told: then they are first.
                let parts = |volume: &super::Volume<S>| volume.state.conn >= Conn::Connected;
                self.data_back = self.link.conn < Conn::WFReportParams && self.volumes.iter().flatten().any(parts);
                if !self.data_back {
                    self.thaw_with_own_disks();
                }
            }
            Effect::ThawFencing => {
                for other in self.volume_ids() {
                    self.with_volume(other, |volume| volume.generation_due = false);
                }
                self.thaw(Susp { fencing: false, ..self.susp });
            }
            Effect::SyncUuid => self.start_sync_generation(id, old.conn == Conn::WFBitMapS),
            Effect::ResetResync | Effect::ClearResyncDone => {
                self.with_volume(id, |volume| volume.resync.end = ResyncEnd::No);
            }
            Effect::DeferNewCurrentUuid => self.with_volume(id, |volume| volume.generation_due = true),
            Effect::NewCurrentUuid => self.new_current_uuid(id),
            Effect::WriteBitmap | Effect::WriteBitmapCopies => self.queue_job(id, Job::Write(Then::Nothing)),
            Effect::AbortDiskIo => self.abort_disk_io(id),
            Effect::SendSizes => self.send_sizes(id, 0, false),
            Effect::SendUuids => self.send_uuids(id),
            Effect::SendState => self.send_state(id, new),
            Effect::CancelResync => self.cancel_resync(id),
            Effect::QueueBitmapSend => self.send_bitmap(id),
            Effect::PauseDependents | Effect::ResumeDependents => self.work(Work::ResyncDependencies),
            Effect::StartSetAll => {
                let then = if new.conn == Conn::StartingSyncT { Then::StartTarget } else { Then::StartSource };
                self.queue_job(id, Job::SetAll(then));
            }
            Effect::ClearResyncAfterNegotiation => self.with_disk(id, |disk| disk.resync_after_negotiation = false),
            Effect::GrowResync => self.start_grow_resync(id, is_source_of_growth(new, self.link.resolve_conflicts)),
            Effect::RememberPauseTime => {
                let now_ms = self.now_ms;
                self.with_volume(id, |volume| volume.resync.paused_since_ms = Some(now_ms));
            }
            Effect::AccountPauseTime => self.account_pause(id),
            Effect::RunResyncTimer => self.with_volume(id, |volume| volume.resync.next_turn_ms = 0),
            Effect::WriteMetadata => self.sync_metadata(id),
            Effect::DropLocalReference => self.check_disk_idle(id),
            Effect::RememberVerifyPosition => self.remember_verify_position(id),
            Effect::InitVerifyCounters => self.begin_verify(id),
            Effect::TakeLocalReference
            | Effect::LogUuids
            | Effect::WakeWaiters
            | Effect::RecordAttachTime
            | Effect::QueueAfterWork
            | Effect::LegacyEvent => {}
        }
    }

    pub(super) fn with_volume(&mut self, id: VolumeId, change: impl FnOnce(&mut super::Volume<S>)) {
        if let Some(volume) = self.volume_mut(id) {
            change(volume);
        }
    }

    pub(super) fn with_disk(&mut self, id: VolumeId, change: impl FnOnce(&mut super::volume::AttachedDisk<S>)) {
        if let Some(disk) = self.volume_mut(id).and_then(|volume| volume.disk.as_mut()) {
            change(disk);
        }
    }

    /// Recomputes the flags that tell, after a crash, how things stood. spec: metadata 2.1
    pub(super) fn update_meta_flags(&mut self, id: VolumeId) {
        let keeps_writes = self.keeps_writes(id);
        let logs_for_peer = self.logs_for_peer(id);
        let Some(volume) = self.volume_mut(id) else { return };
        let state = volume.state;
        // While a Primary negotiates its disk it still writes only here, and the activity log has to tell after a crash.
        let writes_here = volume.peer.negotiates && state.peer == Role::Primary;
        if let Some(disk) = volume.disk.as_mut().filter(|_| state.disk >= Disk::Inconsistent) {
            let mut flags = meta_flags(disk.superblock.flags.0, state, disk.crashed_primary);
            // Nor is it known yet what the peer has of the writes that are kept; and what the peer wrote before the connection ended may reach
            // this disk after that.
            if writes_here || keeps_writes || logs_for_peer {
                flags |= MetaFlags::PRIMARY_IND.0;
            }
            disk.set_flags(flags);
        }
    }

    /// The peer will not see what is written from now on: a new data generation. Writes that only this node has are
    /// acknowledged when it is durable. spec: metadata 6.2 (6)
    pub(super) fn new_current_uuid(&mut self, id: VolumeId) {
        if self.sabotaged(Sabotage::KeepGeneration) {
            return;
        }
        let random = self.random();
        let Some(volume) = self.volume_mut(id) else { return };
        let primary = volume.state.role == Role::Primary;
        volume.generation_due = false;
        let Some(disk) = volume.disk.as_mut() else {
            volume.exposed_uuid = random;
            return;
        };
        let old = disk.current();
        if core::mem::take(&mut volume.peer_may_be_level) && disk.bitmap_uuid() != 0 {
            // As if the end had been heard of, or the beginning not.
            disk.rotate_bitmap_uuid(0);
        }
        disk.set_bitmap_uuid(old);
        disk.set_current(random, primary);
        volume.exposed_uuid = disk.current();
        volume.generation_version = Some(disk.pipeline.version());
        let uuids = disk.uuids();
        self.log(LogLine::NewGeneration { volume: id, uuids });
        self.sync_metadata(id);
    }

    /// This node becomes the source of a resync: the bitmap generation moves on and is told to the target. `met`: the target has just told
    /// its generations, and has heard of none since. spec: wire-protocol 8.5; metadata 6.2 (12)
    pub(super) fn start_sync_generation(&mut self, id: VolumeId, met: bool) {
        let random = self.random();
        let late_fixup = self.volume_mut(id).and_then(|volume| volume.late_fixup.take());
        if let Some(fixup) = late_fixup {
            self.correct_generations(id, fixup);
        }
        let Some(volume) = self.volume_mut(id) else { return };
        let of_target = volume.peer.uuids.filter(|_| met).map(|uuids| set_of(uuids.uuids).current);
        let Some(disk) = volume.disk.as_mut() else { return };
        let before = disk.bitmap_uuid();
        let uuid = match before {
            0 | crate::metadata::superblock::UUID_JUST_CREATED => random,
            old => old.wrapping_add(NEW_BITMAP_OFFSET),
        };
        let mut uuids = set_of(disk.uuids());
        uuids.start_resync(uuid, of_target);
        disk.set_uuids(words_of(uuids));
        let version = disk.pipeline.version();
        if before == 0 {
            // If the target lets its disk go now, only this tells that it lacks what is written from then on.
            volume.generation_version = Some(version);
        }
        self.queue_control(Control::SyncUuid { volume: id, uuid, version });
        self.sync_metadata(id);
    }

    /// A resync of another volume that this one has to wait for began (`paused`) or ended.
    /// spec: state-machine 17.5; called by the owner, who knows all volumes, on `Work::ResyncDependencies`
    pub fn set_paused_by_dependency(&mut self, id: VolumeId, paused: bool, now_ms: u64) {
        self.now_ms = now_ms;
        let _outcome = self.change(id, Change::aftr_isp(paused), Kind::Hard);
    }

    /// Completions that were withheld may go now.
    pub(super) fn settle_all(&mut self) {
        for index in 0..self.requests.capacity() as u16 {
            if self.requests.at(index).is_some_and(|slot| slot.phase == super::slots::Phase::Active) {
                self.settle(index);
            }
        }
        self.reopen_gate();
    }

    /// All data is here again. What was frozen goes on for all volumes, each of which begins the generation that it owes.
    fn thaw_with_own_disks(&mut self) {
        for id in self.volume_ids() {
            self.record_loss_of_peer(id);
        }
        if self.link.conn < Conn::WFReportParams {
            // The connection that it was sent on is gone, and nobody waits for the next one.
            self.fail_network_parts();
        }
        self.restart_failed();
        self.thaw(Susp { no_data: false, ..self.susp });
        self.settle_all();
    }

    /// A reason for suspended I/O is gone.
    pub(super) fn thaw(&mut self, susp: Susp) {
        let before = self.susp;
        self.susp = susp;
        if before != susp {
            self.notify(Notice::Suspended { from: before, to: susp, role: self.overall().role });
            if !susp.any() {
                // Whatever it was frozen for, and for which of the volumes.
                for id in self.volume_ids() {
                    self.begin_generation_due(id);
                }
                self.settle_all();
            }
        }
    }

    /// What was frozen goes on without the peer, unless that is back.
    fn begin_generation_due(&mut self, id: VolumeId) {
        let Some(state) = self.volume(id).filter(|volume| volume.generation_due).map(|volume| volume.state) else {
            return;
        };
        if state.conn >= Conn::Connected && state.pdsk >= Disk::Inconsistent {
            // It has, or gets, all that is here.
            self.with_volume(id, |volume| volume.generation_due = false);
        } else {
            self.new_current_uuid(id);
        }
    }

    /// Something is wrong with the local disk. spec: state-machine 13.4
    pub(super) fn disk_failed(&mut self, id: VolumeId, error: DiskError) {
        let Some(volume) = self.volume_mut(id) else { return };
        let state = volume.state;
        let tolerated =
            volume.conf.on_io_error == OnIoError::PassOn && matches!(error, DiskError::Read | DiskError::Write);
        if state.disk <= Disk::Failed {
            if error == DiskError::Read && volume.io_error.is_some() {
                // Whatever it has failed for first: what could not be read is not forgotten.
                volume.io_error = Some(error);
            }
            return;
        }
        self.log(LogLine::DiskError { volume: id, what: error.text() });
        if tolerated {
            if state.disk > Disk::Inconsistent {
                let _outcome = self.change(id, Change::disk(Disk::Inconsistent), Kind::Hard);
                self.record_kept_loss(id);
            }
            // The source of a resync stays good until its target is: then that is the better one. (The C module's resync does not end.)
            self.with_volume(id, |volume| {
                let source = matches!(volume.state.conn, Conn::SyncSource | Conn::PausedSyncS);
                volume.resync.own_failed |= source && volume.state.disk == Disk::UpToDate;
            });
            self.check_resync_end(id);
            return;
        }
        self.with_volume(id, |volume| {
            volume.io_error = Some(error);
            volume.loss_known = false;
        });
        let _outcome = self.change(id, Change::disk(Disk::Failed), Kind::Hard);
    }

    /// A flush has failed, and the disk with it, if that is not tolerated.
    pub(super) fn cache_lost(&mut self, id: VolumeId) {
        let stays = self.volume(id).is_some_and(|volume| volume.state.disk > Disk::Failed);
        if !self.sabotaged(Sabotage::IgnoreFailedFlush) {
            self.link.received_epoch.cache_lost(id);
        }
        for index in 0..self.requests.capacity() as u16 {
            if let Some(slot) = self.requests.at_mut(index).filter(|slot| slot.volume == id && slot.io.op.is_write()) {
                // The peer's acknowledgement of it must not clear the bits that are set now. Nor is it on the disk if that comes back
                // while I/O is frozen: then it is done anew.
                if slot.local == Local::Ok {
                    slot.local = Local::Failed;
                }
            }
        }
        self.with_disk(id, |disk| disk.cache_lost(stays));
        if self.volume_state(id).is_some_and(|state| state.conn >= Conn::Connected && state.pdsk == Disk::UpToDate) {
            self.record_loss(id);
        }
    }

    /// A write that was under way when the disk failed is about to be acknowledged because the peer has it, or what was acknowledged before
    /// was in a cache that is lost. The peer may never learn that it is the only one, and then this disk might come back as the good one:
    /// so it is marked as no good, as long as it can be written. (The C module leaves it marked as good.)
    pub(super) fn record_loss(&mut self, id: VolumeId) {
        let Some(volume) = self.volume_mut(id) else { return };
        if volume.state.disk != Disk::Failed || volume.loss_known || volume.loss_version.is_some() {
            return;
        }
        if let Some(disk) = volume.disk.as_mut().filter(|disk| disk.release != super::volume::Release::Releasing) {
            disk.assign_flag(MetaFlags::CONSISTENT, false);
            if disk.pipeline.is_dirty() {
                volume.loss_version = Some(disk.pipeline.version());
                self.sync_metadata(id);
            }
        }
    }

    /// The same for a disk that is kept (`on-io-error pass_on`). If this node lost its power before that is on the disk, it would be that
    /// of a crashed Primary, and its data would win.
    pub(super) fn record_kept_loss(&mut self, id: VolumeId) {
        let Some(volume) = self.volume_mut(id).filter(|volume| volume.state.disk == Disk::Inconsistent) else { return };
        if let Some(disk) = volume.disk.as_ref().filter(|disk| disk.pipeline.is_dirty()) {
            volume.loss_version = Some(disk.pipeline.version());
            self.sync_metadata(id);
        }
    }

    /// The disk of this Primary is lost, or being let go: what only the peer has is acknowledged when that one has shown that it
    /// knows. If this node lost its power before, the disk would come back as that of a crashed Primary, and its data
    /// would win. (The C module does not wait.)
    fn await_peers_knowledge(&mut self, id: VolumeId) {
        let until_ms = self.now_ms.saturating_add(u64::from(self.link.net.timeout) * 100);
        self.with_volume(id, |volume| {
            volume.failure_unseen_until_ms = Some(until_ms).filter(|_| !volume.failure_seen);
        });
    }

    /// The peer knows, or will never tell.
    pub(super) fn peers_knowledge_shown(&mut self, id: VolumeId) {
        let awaited = self.volume_mut(id).and_then(|volume| volume.failure_unseen_until_ms.take());
        if awaited.is_some() {
            self.settle_all();
        }
    }

    /// The clock: a peer that tells of no new generation has one already that this disk does not have.
    pub(super) fn check_peers_knowledge(&mut self) {
        let now_ms = self.now_ms;
        for id in self.volume_ids() {
            if self.volume(id).and_then(|volume| volume.failure_unseen_until_ms).is_some_and(|until| now_ms > until) {
                self.peers_knowledge_shown(id);
            }
        }
    }

    /// The loss of the own disk is known where it matters: writes that only the peer has may be acknowledged.
    pub(super) fn loss_recorded(&mut self, id: VolumeId) {
        let is_bad = |volume: &&mut Volume<S>| matches!(volume.state.disk, Disk::Failed | Disk::Inconsistent);
        let Some(volume) = self.volume_mut(id).filter(is_bad) else { return };
        volume.loss_known = true;
        if volume.loss_version.take().is_some() {
            self.settle_all();
        }
    }
}

impl<S: Storage> Volume<S> {
    /// In `state`, as the source: the target has told that it has everything. `ends`: the end waits for the answer to the ping.
    fn target_is_done(&self, state: State, ends: bool) -> bool {
        let source = matches!(state.conn, Conn::SyncSource | Conn::PausedSyncS);
        source && (ends || self.resync.peer_done) && !self.resync.peer_failed
    }

    /// The disk of the peer, if this node pulls ahead now.
    pub(super) fn pdsk_when_ahead(&self) -> Disk {
        if self.target_is_done(self.state, self.resync.end == ResyncEnd::Ping) {
            Disk::UpToDate
        } else {
            self.state.pdsk
        }
    }

    /// The target no longer waits for the resync of what the device has grown by. If that is not to be, because the source lost its
    /// disk, the data here is of the generation that it was of before, not of the one that the resync would have led to: its source,
    /// with the next disk or this one again, has not left that one, and would take what is written here meanwhile for a split brain.
    /// The source may also lose its disk while they are not connected.
    fn growth_left(&mut self, new: State) {
        let waited = core::mem::take(&mut self.resync.of_growth);
        if new.conn < Conn::Connected && new.disk == Disk::Outdated {
            let unheard = self.disk.as_ref().filter(|_| waited).map(|disk| disk.generation());
            self.resync.before_growth = self.resync.before_growth.or(unheard);
            return;
        }
        let before = self.resync.before_growth.take();
        let stays_good = new.conn == Conn::Connected && new.disk == Disk::UpToDate && new.pdsk < Disk::Inconsistent;
        let (Some([current, bitmap]), Some(disk)) = (before.filter(|_| stays_good), self.disk.as_mut()) else { return };
        disk.set_current(current, new.role == Role::Primary);
        disk.set_bitmap_uuid(bitmap);
        self.exposed_uuid = current;
    }
}

/// A full resync that is asked for makes the target's data worthless at once. If it is interrupted before it has begun,
/// the generations are still the same on both nodes, and only this tells at the next connection that they are not.
/// (The C module only calls the disk Outdated; then it forgets.) Without both disks nothing begins: one may be gone by the time the
/// request arrives.
fn with_implied_disk(change: Change, old: State) -> Change {
    if old.disk < Disk::Inconsistent || old.pdsk < Disk::Inconsistent {
        return change;
    }
    match change.wanted_conn() {
        Some(Conn::StartingSyncT) if old.disk > Disk::Inconsistent => change.disk(Disk::Inconsistent),
        Some(Conn::StartingSyncS) if old.pdsk > Disk::Inconsistent => change.pdsk(Disk::Inconsistent),
        _ => change,
    }
}

/// The fencing policy as the state tables know it.
pub(super) fn policy(option: Fencing) -> FencingPolicy {
    match option {
        Fencing::DontCare => FencingPolicy::DontCare,
        Fencing::ResourceOnly => FencingPolicy::ResourceOnly,
        Fencing::ResourceAndStonith => FencingPolicy::ResourceAndStonith,
    }
}

impl DiskError {
    fn text(self) -> &'static str {
        match self {
            DiskError::Read => "read error",
            DiskError::Write => "write error",
            DiskError::Metadata => "meta-data error",
            DiskError::Timeout => "taken for dead",
            DiskError::ForceDetach => "forced detach",
        }
    }
}
