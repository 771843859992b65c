// SPDX-License-Identifier: GPL-2.0
//! Promotion and demotion, with the peer's consent or after it has been fenced.
//! spec: state-machine 3.2, 12, 13.6

use super::{Op, RoleChange, RoleStage, Target};
use crate::netlink::RetCode;
use crate::resource::api::VolumeId;
use crate::resource::fencing::FenceStart;
use crate::resource::slots::{Phase, Request};
use crate::resource::work::{DeviceWork, LogLine};
use crate::resource::Engine;
use crate::state::{explain_soft, And, Change, Conn, Disk, Outcome, Role, StateError};
use crate::storage::Storage;

/// How often a role is asked for before the answer is final. spec: state-machine 13.6
const MOST_ROLE_TRIES: u8 = 4;

/// Whether writes are on the transfer log that a demotion waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::resource) enum Undrained {
    Nothing,
    /// Only of epochs in which writes of two Primaries met, about which the C module does not tell.
    Untold,
    /// The peer is going to acknowledge them.
    Awaited,
}

impl<S: Storage> Engine<S> {
    pub(super) fn start_role(&mut self, volume: VolumeId, role: Role, force: bool) {
        let Some(state) = self.volume(volume).map(|volume| volume.state) else {
            self.answer(RetCode::MinorInvalid.number());
            return;
        };
        if state.role == role && state.conn != Conn::WFReportParams {
            self.answer(Outcome::NothingToDo.code());
            return;
        }
        if role == Role::Secondary && self.refused_while_open(volume) {
            return;
        }
        let ping = role == Role::Primary && self.link.is_running() && self.link.conn == Conn::WFReportParams;
        let stage = match (ping, role) {
            (true, _) => RoleStage::Ping { answered: false },
            (false, Role::Primary) => RoleStage::Ask,
            (false, _) => RoleStage::Drain { asked: None },
        };
        self.admin.op = Some(Op::Role(RoleChange {
            volume,
            role,
            force,
            stage,
            good_disk: false,
            forced_disk: false,
            outdate_peer: false,
            paused_once: false,
            refusal: StateError::PrimaryNop,
            tries: 1,
            result: Outcome::Success.code(),
        }));
        match stage {
            RoleStage::Ping { .. } => self.fresh_ping(),
            RoleStage::Drain { .. } => self.want_barrier(),
            _ => self.ask_role(),
        }
    }

    /// Answers a demotion of a device that is held open: at once, because whoever writes to it may keep the transfer log from draining for
    /// ever. What else may be wrong is looked at when that is empty.
    // spec: state-machine 5 (3), 13.6
    fn refused_while_open(&mut self, id: VolumeId) -> bool {
        let Some((old, new)) = self.would_be(id, Change::role(Role::Secondary)) else { return false };
        match explain_soft(old, new, &self.rules(id)) {
            Err(refusal) if refusal.error == StateError::DeviceInUse => {
                self.log(LogLine::Refused { volume: id, from: old, to: new, refusal });
                self.answer(refusal.error.code());
                true
            }
            _ => false,
        }
    }

    /// What the transfer log still has of this volume, beside what it keeps for the next connection because I/O is frozen.
    pub(in crate::resource) fn undrained(&self, id: VolumeId) -> Undrained {
        let mut found = Undrained::Nothing;
        let mut at = self.log.front();
        while let Some(index) = at {
            at = self.log.next(&self.requests, index);
            let kept = |slot: &Request| self.susp.any() && self.is_kept(slot);
            let Some(slot) = self.requests.at(index).filter(|slot| slot.volume == id && !kept(slot)) else { continue };
            if slot.phase != Phase::Completed || self.departed.of(slot.epoch) == 0 {
                return Undrained::Awaited;
            }
            found = Undrained::Untold;
        }
        found
    }

    /// Goes on with a demotion when everything written is safe at the peer.
    fn run_drain(&mut self, change: RoleChange, asked: Option<u32>) {
        // Opened since. Whoever only reads is in nobody's way until the role changes, and may have gone by then.
        if self.volume(change.volume).is_some_and(|volume| volume.writers > 0) && self.refused_while_open(change.volume)
        {
            return;
        }
        let answer = self.admin.ask.and_then(|ask| ask.reply);
        if let Some(epoch) = asked.filter(|_| answer.is_some()) {
            let has_disk = self.volume(change.volume).is_some_and(|volume| volume.state.pdsk >= Disk::Inconsistent);
            self.later_epoch_answered(epoch, has_disk);
        }
        match self.undrained(change.volume) {
            Undrained::Nothing => {
                self.abandon_ask();
                self.role_stage(change, RoleStage::Ask);
                self.ask_role();
            }
            // Nothing is to be expected of their barriers; what the peer is asked after them it answers after them.
            Undrained::Untold if asked.is_none() || answer.is_some() => {
                if let Some(epoch) = self.first_epoch_open(change.volume).filter(|&epoch| asked != Some(epoch)) {
                    self.ask_for_nothing(change.volume);
                    self.role_stage(change, RoleStage::Drain { asked: Some(epoch) });
                }
            }
            Undrained::Untold | Undrained::Awaited => {}
        }
    }

    /// The first epoch of which no barrier has been sent, if nothing of this volume is in it or in a later one.
    fn first_epoch_open(&self, id: VolumeId) -> Option<u32> {
        let open = self.link.sent_writes > 0;
        let first = if open { self.link.sent_epoch } else { self.link.sent_epoch.wrapping_add(1) };
        let mut at = self.log.front();
        while let Some(index) = at {
            let later = |slot: &Request| slot.volume == id && (slot.epoch.wrapping_sub(first) as i32) >= 0;
            if self.requests.at(index).is_some_and(later) {
                return None;
            }
            at = self.log.next(&self.requests, index);
        }
        Some(first)
    }

    fn role_stage(&mut self, change: RoleChange, stage: RoleStage) {
        self.admin.op = Some(Op::Role(RoleChange { stage, ..change }));
        self.admin.poked = true;
    }

    fn ask_role(&mut self) {
        let Some(Op::Role(change)) = self.admin.op else { return };
        let mut wanted = Change::role(change.role);
        if change.good_disk {
            wanted = wanted.disk(Disk::UpToDate);
        }
        if change.outdate_peer {
            wanted = wanted.pdsk(Disk::Outdated);
        }
        self.begin_ask(Target::Volume(change.volume), wanted);
    }

    pub(super) fn run_role(&mut self, change: RoleChange) {
        match change.stage {
            RoleStage::Ping { answered } => {
                if answered || !self.link.is_running() {
                    self.role_stage(change, RoleStage::Ask);
                    self.ask_role();
                }
            }
            RoleStage::Drain { asked } => self.run_drain(change, asked),
            RoleStage::Ask => {
                if let Some(result) = self.run_ask() {
                    self.role_decided(change, result);
                }
            }
            RoleStage::Pause { until_ms } => {
                if self.now_ms >= until_ms {
                    self.role_stage(change, RoleStage::Ask);
                    self.ask_role();
                }
            }
            RoleStage::Fence(_) => {}
            RoleStage::Settle => {
                if self.volume(change.volume).is_none_or(|volume| volume.peer_pending == 0) {
                    self.finish_role(change);
                }
            }
            RoleStage::Durable => {
                let usable = self.volume(change.volume).filter(|volume| volume.state.disk > Disk::Failed);
                let durable = usable.and_then(|volume| volume.disk.as_ref());
                if durable.is_none_or(|disk| !disk.pipeline.is_dirty()) {
                    self.answer(change.result);
                }
            }
        }
    }

    fn role_decided(&mut self, change: RoleChange, result: Result<Outcome, StateError>) {
        let Some(volume) = self.volume(change.volume) else {
            self.answer(RetCode::MinorInvalid.number());
            return;
        };
        let disk = volume.state.disk;
        match result {
            Ok(Outcome::NothingToDo) => self.answer(Outcome::NothingToDo.code()),
            Ok(outcome) => {
                let change = RoleChange { result: outcome.code(), ..change };
                self.role_stage(change, RoleStage::Settle);
            }
            Err(refusal @ StateError::CwFailedByPeer) if change.outdate_peer => {
                self.retry_role(RoleChange { outdate_peer: false, refusal, ..change });
            }
            Err(refusal @ StateError::NoUpToDateDisk)
                if change.force && !change.good_disk && (Disk::Inconsistent..Disk::UpToDate).contains(&disk) =>
            {
                self.retry_role(RoleChange { good_disk: true, forced_disk: true, refusal, ..change });
            }
            Err(error @ StateError::NoUpToDateDisk) if disk == Disk::Consistent && !change.good_disk => {
                self.fence_for(change, error);
            }
            Err(error @ StateError::PrimaryNop) if !change.outdate_peer => self.fence_for(change, error),
            Err(StateError::TwoPrimaries) if !change.paused_once => {
                let pause_ms = u64::from(self.link.net.ping_timeo).saturating_add(1) * 100;
                let until_ms = self.now_ms + pause_ms;
                self.role_stage(RoleChange { paused_once: true, ..change }, RoleStage::Pause { until_ms });
            }
            Err(error) => self.answer(error.code()),
        }
    }

    fn retry_role(&mut self, change: RoleChange) {
        if change.tries >= MOST_ROLE_TRIES {
            self.answer(change.refusal.code());
            return;
        }
        let change = RoleChange { tries: change.tries + 1, ..change };
        self.role_stage(change, RoleStage::Ask);
        self.ask_role();
    }

    /// Only a fenced peer would allow it.
    fn fence_for(&mut self, change: RoleChange, refusal: StateError) {
        match self.start_fencing() {
            FenceStart::Runs(run) => self.role_stage(RoleChange { refusal, ..change }, RoleStage::Fence(run)),
            FenceStart::Over(fenced) => self.role_fenced(RoleChange { refusal, ..change }, fenced),
        }
    }

    /// A helper ended that no resync waited for. spec: state-machine 12
    pub(in crate::resource) fn admin_helper_done(&mut self, ticket: u32, exit_code: i32) {
        if let Some(run) = self.link.fence.take_if(|run| run.ticket == ticket) {
            let _fenced = self.end_fencing(run, exit_code);
        }
        let Some(Op::Role(change)) = self.admin.op else { return };
        if let RoleStage::Fence(run) = change.stage {
            if run.ticket == ticket {
                let fenced = self.end_fencing(run, exit_code);
                self.role_fenced(change, fenced);
            }
        }
    }

    /// spec: state-machine 13.6
    fn role_fenced(&mut self, change: RoleChange, fenced: bool) {
        let change = match change.refusal {
            StateError::NoUpToDateDisk => RoleChange { good_disk: change.good_disk || fenced, ..change },
            _ => RoleChange { outdate_peer: !fenced && change.force, ..change },
        };
        self.retry_role(change);
    }

    fn finish_role(&mut self, change: RoleChange) {
        let id = change.volume;
        let Some(volume) = self.volume_mut(id) else {
            self.answer(RetCode::MinorInvalid.number());
            return;
        };
        let state = volume.state;
        let mut begins = false;
        if change.role == Role::Primary {
            volume.discard_my_data = false;
            let alone = state.conn < Conn::Connected || state.pdsk <= Disk::Failed;
            let recorded = volume.disk.is_none() || volume.records_changes();
            begins = change.forced_disk || (alone && !recorded);
            if begins {
                self.new_current_uuid(id);
            }
        }
        self.with_disk(id, |disk| {
            let current = disk.current();
            disk.set_current(current, change.role == Role::Primary);
        });
        if change.role == Role::Primary {
            self.link.net.discard_my_data = false;
        }
        if state.conn >= Conn::WFReportParams {
            // A peer without a disk sees this data from now on. (The C module does not tell it.)
            if begins {
                self.send_uuids(id);
            }
            if let Some(state) = self.volume(id).map(|volume| volume.state) {
                self.send_state(id, state);
            }
        }
        self.sync_metadata(id);
        self.order(DeviceWork::ReadOnly { volume: id, read_only: change.role != Role::Primary });
        self.role_stage(change, RoleStage::Durable);
    }

    /// A ping sent after a promotion was asked for has been answered.
    pub(in crate::resource) fn admin_ping_answered(&mut self) {
        if let Some(Op::Role(change)) = self.admin.op {
            if matches!(change.stage, RoleStage::Ping { .. }) {
                self.role_stage(change, RoleStage::Ping { answered: true });
            }
        }
    }

    /// An answer of the peer arrived that a change of the role, an invalidate, or a disconnect may wait for.
    pub(in crate::resource) fn check_waiting_command(&mut self) {
        if matches!(self.admin.op, Some(Op::Role(_) | Op::Invalidate { .. } | Op::Disconnect { .. })) {
            self.admin.poked = true;
        }
    }
}
