// SPDX-License-Identifier: GPL-2.0
//! What an administrator asks for: role changes, connecting, attaching and their opposites.
//!
//! One request at a time ([`Engine::admin`]); the owner serialises them. A request that has to wait, for the peer's
//! consent, for I/O to drain, for the disk, stays here as an [`Op`] and is looked at again whenever something changed
//! ([`Engine::run_admin`]). The result is the number that the netlink reply carries.
//! spec: state-machine 3.2, 13.6, 22; netlink 6

use super::api::{BackingLimits, VolumeId, Wakes};
use super::change::Kind;
use super::disk::AttachTables;
use super::metadata_pipeline::{Job, Then};
use super::outgoing::Control;
use super::Engine;
use crate::metadata::layout::MetaIndex;
use crate::metadata::Block;
use crate::netlink::{DiskConf, Fencing, NetConf, OnCongestion, ResourceOpts, RetCode, WireProtocol};
use crate::state::{cluster_wide, explain_soft, And, Change, Conn, Disk, Outcome, Role, StateError, Susp};
use crate::storage::Storage;

/// What the owner found when it opened the devices of a volume.
#[derive(Clone, Copy, Debug)]
pub struct Backing<'a> {
    /// The superblock, 4096 bytes.
    pub superblock: &'a Block,
    /// Where the meta data is.
    pub index: MetaIndex,
    /// Size of the backing device in sectors.
    pub backing_sectors: u64,
    /// Size of the meta-data device in sectors; the same for internal meta data.
    pub meta_sectors: u64,
    /// Limits of the backing device.
    pub limits: BackingLimits,
}

/// A request of the administrator.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // The names are those of the commands.
pub enum AdminRequest<'a> {
    Detach {
        volume: VolumeId,
        force: bool,
    },
    Connect {
        conf: &'a NetConf,
    },
    Disconnect {
        force: bool,
    },
    Primary {
        volume: VolumeId,
        force: bool,
    },
    Secondary {
        volume: VolumeId,
    },
    Invalidate {
        volume: VolumeId,
    },
    InvalidateRemote {
        volume: VolumeId,
    },
    Verify {
        volume: VolumeId,
        start_sector: Option<u64>,
        stop_sector: Option<u64>,
    },
    PauseSync {
        volume: VolumeId,
    },
    ResumeSync {
        volume: VolumeId,
    },
    SuspendIo {
        volume: VolumeId,
    },
    ResumeIo {
        volume: VolumeId,
    },
    Outdate {
        volume: VolumeId,
    },
    NewCurrentUuid {
        volume: VolumeId,
        clear_bitmap: bool,
    },
    /// A volume is about to be removed: the peer is told that it is not connected any more.
    Part {
        volume: VolumeId,
    },
    DiskOptions {
        volume: VolumeId,
        conf: &'a DiskConf,
    },
    NetOptions {
        conf: &'a NetConf,
    },
    ResourceOptions {
        conf: &'a ResourceOpts,
    },
}

/// More about a result, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminInfo {
    /// The number says it all.
    None,
    /// A sentence for the administrator.
    Text(&'static str),
}

/// The answer to an [`AdminRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdminResult {
    /// Number for the reply: a [`RetCode`] or the result of a state change.
    pub code: i32,
    /// Explanation.
    pub info: AdminInfo,
}

/// Whom a state change is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Volume(VolumeId),
    Connection,
}

/// A state change that may need the peer's consent. spec: state-machine 3.2
#[derive(Clone, Copy, Debug)]
struct Ask {
    target: Target,
    change: Change,
    sent: bool,
    reply: Option<i32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RoleStage {
    /// A ping is to find out whether the peer is still there.
    Ping {
        answered: bool,
    },
    /// Before a demotion: writes are complete but the peer has not said yet that they are safe there. The mark that
    /// this node was Primary must stay until then, or a crash of both nodes would hide a difference.
    Drain,
    Ask,
    /// Another Primary may just be stepping down.
    Pause {
        until_ms: u64,
    },
    /// The fence-peer helper runs.
    Fence {
        ticket: u32,
    },
    /// Answers of the peer are awaited.
    Settle,
    /// The UUIDs are being written.
    Durable,
}

#[derive(Clone, Copy, Debug)]
struct RoleChange {
    volume: VolumeId,
    role: Role,
    force: bool,
    stage: RoleStage,
    /// Own disk is declared good; the peer's is declared outdated.
    forced_disk: bool,
    outdate_peer: bool,
    paused_once: bool,
    result: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DisconnectStage {
    Ask,
    Close,
}

/// The request under way.
#[derive(Clone, Copy, Debug)]
enum Op {
    Attach {
        volume: VolumeId,
    },
    Detach {
        volume: VolumeId,
        asked: bool,
        result: i32,
    },
    Disconnect {
        stage: DisconnectStage,
    },
    Role(RoleChange),
    /// A single state change.
    Change {
        success: Option<i32>,
    },
    /// A job on the bitmap.
    Job {
        volume: VolumeId,
    },
}

/// The administrator's side of the engine.
#[derive(Default)]
pub(super) struct Admin {
    op: Option<Op>,
    ask: Option<Ask>,
    result: Option<AdminResult>,
    /// Something changed: look at `op` again.
    poked: bool,
}

const OK: i32 = RetCode::NoError as i32;

impl<S: Storage> Engine<S> {
    /// Starts a request. Its answer is [`Engine::admin_result`], at once or later.
    pub fn admin(&mut self, request: AdminRequest<'_>, now_ms: u64) {
        self.now_ms = now_ms;
        self.admin.result = None;
        if self.admin.op.is_some() {
            self.answer_with(StateError::InTransientState.code(), AdminInfo::Text("another request is under way"));
            return;
        }
        self.start_admin(request);
        self.admin_step();
    }

    /// Attaches a disk, with tables made from [`Engine::plan_attach`]. Its answer comes as of any other request;
    /// -18 means that the plan is out of date. Tables that it does not take come back, to be dropped when the lock is
    /// not held.
    pub fn attach(
        &mut self,
        volume: VolumeId,
        conf: &DiskConf,
        backing: &Backing<'_>,
        tables: AttachTables<S>,
        now_ms: u64,
    ) -> Option<AttachTables<S>> {
        self.now_ms = now_ms;
        self.admin.result = None;
        if self.admin.op.is_some() {
            self.answer(StateError::InTransientState.code());
            return Some(tables);
        }
        let mut tables = Some(tables);
        match self.begin_attach(volume, conf, backing, &mut tables) {
            Ok(()) => self.admin.op = Some(Op::Attach { volume }),
            Err(code) => self.answer(code),
        }
        tables
    }

    /// The answer to the last request, once.
    pub fn admin_result(&mut self) -> Option<AdminResult> {
        self.admin.result.take()
    }

    /// Whoever waited was interrupted: the request is given up where that is possible.
    pub fn admin_cancel(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        if let Some(Op::Detach { volume, .. }) = self.admin.op {
            self.with_volume(volume, |volume| volume.holds = volume.holds.saturating_sub(1));
        }
        if !matches!(self.admin.op, Some(Op::Attach { .. } | Op::Job { .. })) {
            self.admin.op = None;
            self.admin.ask = None;
            self.answer(RetCode::Intr.number());
        }
        self.reopen_gate();
    }

    fn start_admin(&mut self, request: AdminRequest<'_>) {
        use AdminRequest as R;
        match request {
            R::Detach { volume, force } => self.start_detach(volume, force),
            R::Connect { conf } => self.start_connect(conf),
            R::Disconnect { force } => self.start_disconnect(force),
            R::Primary { volume, force } => self.start_role(volume, Role::Primary, force),
            R::Secondary { volume } => self.start_role(volume, Role::Secondary, false),
            R::Invalidate { volume } => self.start_invalidate(volume, Conn::StartingSyncT),
            R::InvalidateRemote { volume } => self.start_invalidate(volume, Conn::StartingSyncS),
            R::Verify { volume, start_sector, stop_sector } => {
                self.plan_verify(volume, start_sector, stop_sector);
                self.ask(Target::Volume(volume), Change::conn(Conn::VerifyS), None);
            }
            R::PauseSync { volume } => self.pause_sync(volume),
            R::ResumeSync { volume } => self.resume_sync(volume),
            R::SuspendIo { .. } => {
                let before = self.susp;
                self.thaw(Susp { user: true, ..before });
                self.answer(if before.user { Outcome::NothingToDo.code() } else { Outcome::Success.code() });
            }
            R::ResumeIo { volume } => self.resume_io(volume),
            R::Outdate { volume } => self.ask(Target::Volume(volume), Change::disk(Disk::Outdated), None),
            R::NewCurrentUuid { volume, clear_bitmap } => self.start_new_current_uuid(volume, clear_bitmap),
            R::Part { volume } => self.ask(Target::Volume(volume), Change::conn(Conn::WFReportParams), None),
            R::DiskOptions { volume, conf } => self.set_disk_options(volume, conf),
            R::NetOptions { conf } => self.set_net_options(conf),
            R::ResourceOptions { conf } => {
                self.options = *conf;
                self.answer(OK);
            }
        }
    }

    fn answer(&mut self, code: i32) {
        self.answer_with(code, AdminInfo::None);
    }

    fn answer_with(&mut self, code: i32, info: AdminInfo) {
        self.admin.op = None;
        self.admin.ask = None;
        self.admin.result = Some(AdminResult { code, info });
        self.wakes.insert(Wakes::ADMIN);
    }

    /// Something changed that a waiting request may depend on.
    pub(super) fn admin_step(&mut self) {
        self.admin.poked = self.admin.op.is_some();
    }

    /// Looks at the waiting request if something changed. True when it did.
    pub(super) fn run_admin(&mut self) -> bool {
        if !core::mem::take(&mut self.admin.poked) {
            return false;
        }
        match self.admin.op {
            None | Some(Op::Attach { .. } | Op::Job { .. }) => {}
            Some(Op::Change { success }) => {
                if let Some(result) = self.run_ask() {
                    let code = result.map_or_else(|error| error.code(), |outcome| success.unwrap_or(outcome.code()));
                    self.answer(code);
                }
            }
            Some(Op::Detach { volume, asked, result }) => self.run_detach(volume, asked, result),
            Some(Op::Disconnect { stage }) => self.run_disconnect(stage),
            Some(Op::Role(change)) => self.run_role(change),
        }
        true
    }

    // A state change that may need the peer's consent.

    fn ask(&mut self, target: Target, change: Change, success: Option<i32>) {
        self.admin.op = Some(Op::Change { success });
        self.begin_ask(target, change);
    }

    fn begin_ask(&mut self, target: Target, change: Change) {
        self.admin.ask = Some(Ask { target, change, sent: false, reply: None });
        self.admin.poked = true;
    }

    /// `None`: undecided. spec: state-machine 3.2
    fn run_ask(&mut self) -> Option<Result<Outcome, StateError>> {
        let ask = self.admin.ask?;
        let needs_peer = self.needs_consent(&ask);
        let result = match ask.reply {
            Some(code) if code < Outcome::Success.code() => Err(if code == StateError::ConcurrentStChg.code() {
                StateError::ConcurrentStChg
            } else {
                StateError::CwFailedByPeer
            }),
            None if needs_peer && ask.sent => return None,
            None if needs_peer => match self.check_ask(&ask) {
                Ok(_) => {
                    self.admin.ask = Some(Ask { sent: true, ..ask });
                    self.send_state_request(&ask);
                    return None;
                }
                Err(error) => Err(error),
            },
            // The peer agreed, or need not (any more) be asked.
            _ => self.change_target(&ask),
        };
        if result == Err(StateError::InTransientState) {
            // Tried again at the next change of any state.
            self.admin.ask = Some(Ask { sent: false, reply: None, ..ask });
            return None;
        }
        self.admin.ask = None;
        Some(result)
    }

    fn needs_consent(&self, ask: &Ask) -> bool {
        match ask.target {
            Target::Volume(id) => self.would_be(id, ask.change).is_some_and(|(old, new)| cluster_wide(old, new)),
            Target::Connection => {
                self.link.conn == Conn::WFReportParams && ask.change.wanted_conn() == Some(Conn::Disconnecting)
            }
        }
    }

    fn check_ask(&self, ask: &Ask) -> Result<Outcome, StateError> {
        match ask.target {
            Target::Volume(id) => match self.would_be(id, ask.change) {
                Some((old, new)) => explain_soft(old, new, &self.rules(id)).map_err(StateError::from),
                None => Err(StateError::NoLocalDisk),
            },
            Target::Connection => {
                for id in self.volume_ids() {
                    if let Some((old, new)) = self.would_be(id, ask.change) {
                        explain_soft(old, new, &self.rules(id)).map_err(StateError::from)?;
                    }
                }
                Ok(Outcome::Success)
            }
        }
    }

    fn change_target(&mut self, ask: &Ask) -> Result<Outcome, StateError> {
        match ask.target {
            Target::Volume(id) => self.change(id, ask.change, Kind::Soft),
            Target::Connection => self.change_connection(ask.change, Kind::Soft, false),
        }
    }

    fn send_state_request(&mut self, ask: &Ask) {
        let (mask, val) = ask.change.request();
        let packet = match ask.target {
            Target::Volume(volume) => Control::StateRequest { volume, mask, val },
            Target::Connection => {
                self.link.disconnect_sent = true;
                Control::ConnectionRequest { mask, val }
            }
        };
        self.queue_control(packet);
    }

    /// The peer's answer to a request for one of our volumes, or the connection.
    pub(super) fn state_reply(&mut self, volume: Option<VolumeId>, code: i32) {
        if let Some(ask) = self.admin.ask.as_mut().filter(|ask| ask.sent) {
            let fits = match ask.target {
                Target::Volume(id) => volume == Some(id),
                // Below version 100 both kinds have the same answer.
                Target::Connection => true,
            };
            if fits {
                ask.reply = Some(code);
                self.admin.poked = true;
            }
        }
    }

    /// True while we wait for the peer's consent ourselves. spec: wire-protocol 9.3
    pub(super) fn asks_peer(&self, volume: Option<VolumeId>) -> bool {
        self.admin.ask.is_some_and(|ask| {
            ask.sent
                && match (ask.target, volume) {
                    (Target::Volume(id), Some(other)) => id == other,
                    (Target::Connection, None) => true,
                    _ => false,
                }
        })
    }

    // Role. spec: state-machine 13.6

    fn start_role(&mut self, volume: VolumeId, role: Role, force: bool) {
        let Some(state) = self.volume(volume).map(|volume| volume.state) else {
            self.answer(RetCode::MinorInvalid.number());
            return;
        };
        if state.role == role && state.conn != Conn::WFReportParams {
            self.answer(Outcome::NothingToDo.code());
            return;
        }
        let ping = role == Role::Primary && self.link.is_running() && self.link.conn == Conn::WFReportParams;
        let stage = match (ping, role) {
            (true, _) => RoleStage::Ping { answered: false },
            (false, Role::Primary) => RoleStage::Ask,
            (false, _) => RoleStage::Drain,
        };
        self.admin.op = Some(Op::Role(RoleChange {
            volume,
            role,
            force,
            stage,
            forced_disk: false,
            outdate_peer: false,
            paused_once: false,
            result: Outcome::Success.code(),
        }));
        match stage {
            RoleStage::Ping { .. } => self.fresh_ping(),
            RoleStage::Drain => self.close_epoch(),
            _ => self.ask_role(),
        }
    }

    /// The transfer log has no write of this volume any more, or keeps them because I/O is frozen.
    fn is_drained(&self, id: VolumeId) -> bool {
        let mut at = self.log.front();
        while let Some(index) = at.filter(|_| !self.susp.any()) {
            if self.requests.at(index).is_some_and(|slot| slot.volume == id) {
                return false;
            }
            at = self.log.next(&self.requests, index);
        }
        true
    }

    fn role_stage(&mut self, change: RoleChange, stage: RoleStage) {
        self.admin.op = Some(Op::Role(RoleChange { stage, ..change }));
        self.admin.poked = true;
    }

    fn ask_role(&mut self) {
        let Some(Op::Role(change)) = self.admin.op else { return };
        let mut wanted = Change::role(change.role);
        if change.forced_disk {
            wanted = wanted.disk(Disk::UpToDate);
        }
        if change.outdate_peer {
            wanted = wanted.pdsk(Disk::Outdated);
        }
        self.begin_ask(Target::Volume(change.volume), wanted);
    }

    fn run_role(&mut self, change: RoleChange) {
        match change.stage {
            RoleStage::Ping { answered } => {
                if answered || !self.link.is_running() {
                    self.role_stage(change, RoleStage::Ask);
                    self.ask_role();
                }
            }
            RoleStage::Drain => {
                if self.is_drained(change.volume) {
                    self.role_stage(change, RoleStage::Ask);
                    self.ask_role();
                }
            }
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
            RoleStage::Fence { .. } => {}
            RoleStage::Settle => {
                if self.volume(change.volume).is_none_or(|volume| volume.peer_pending == 0) {
                    self.finish_role(change);
                }
            }
            RoleStage::Durable => {
                let durable = self.volume(change.volume).and_then(|volume| volume.disk.as_ref());
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
        let fencing = volume.conf.fencing;
        match result {
            Ok(Outcome::NothingToDo) => self.answer(Outcome::NothingToDo.code()),
            Ok(outcome) => {
                let change = RoleChange { result: outcome.code(), ..change };
                self.role_stage(change, RoleStage::Settle);
            }
            Err(StateError::CwFailedByPeer) if change.outdate_peer => {
                self.retry_role(RoleChange { outdate_peer: false, ..change });
            }
            Err(StateError::NoUpToDateDisk)
                if change.force && !change.forced_disk && (Disk::Inconsistent..Disk::UpToDate).contains(&disk) =>
            {
                self.retry_role(RoleChange { forced_disk: true, ..change });
            }
            Err(StateError::NoUpToDateDisk) if disk == Disk::Consistent && !change.forced_disk => {
                if fencing == Fencing::DontCare {
                    self.retry_role(RoleChange { forced_disk: true, ..change });
                } else {
                    self.fence_for(change);
                }
            }
            Err(StateError::PrimaryNop) if !change.outdate_peer => self.fence_for(change),
            Err(StateError::TwoPrimaries) if !change.paused_once => {
                let pause_ms = u64::from(self.link.net.ping_timeo).saturating_add(1) * 100;
                let until_ms = self.now_ms + pause_ms;
                self.role_stage(RoleChange { paused_once: true, ..change }, RoleStage::Pause { until_ms });
            }
            Err(error) => self.answer(error.code()),
        }
    }

    fn retry_role(&mut self, change: RoleChange) {
        self.role_stage(change, RoleStage::Ask);
        self.ask_role();
    }

    fn fence_for(&mut self, change: RoleChange) {
        let ticket = self.call_helper(super::Helper::FencePeer, None);
        self.role_stage(change, RoleStage::Fence { ticket });
    }

    /// A helper ended that no resync waited for. spec: state-machine 12
    pub(super) fn admin_helper_done(&mut self, ticket: u32, exit_code: i32) {
        let fenced = match exit_code {
            3 => Some(Disk::Inconsistent),
            4 | 7 => Some(Disk::Outdated),
            5 if self.volumes_with(|volume| volume.state.disk == Disk::UpToDate).next().is_some() => {
                Some(Disk::Outdated)
            }
            _ => None,
        };
        let waiting = match self.admin.op {
            Some(Op::Role(change)) if change.stage == RoleStage::Fence { ticket } => Some(change),
            _ => None,
        };
        if self.link.conn < Conn::WFReportParams {
            if let (Some(pdsk), true) = (fenced, waiting.is_some() || self.link.fence_ticket == Some(ticket)) {
                let _outcome = self.change_connection(Change::pdsk(pdsk), Kind::Soft, false);
                if self.susp.fencing {
                    self.fenced();
                }
            }
        }
        let Some(change) = waiting else { return };
        match fenced {
            Some(_) => self.retry_role(RoleChange { forced_disk: true, outdate_peer: false, ..change }),
            None if change.force => self.retry_role(RoleChange { outdate_peer: true, ..change }),
            None => self.answer(StateError::PrimaryNop.code()),
        }
    }

    /// The peer is fenced: frozen I/O goes on as a new generation. spec: state-machine 10 (4)
    fn fenced(&mut self) {
        for id in self.volume_ids() {
            if self.volume(id).is_some_and(|volume| volume.generation_due) {
                self.new_current_uuid(id);
            }
        }
        self.fail_network_parts();
        self.thaw(Susp { fencing: false, ..self.susp });
    }

    fn finish_role(&mut self, change: RoleChange) {
        let id = change.volume;
        let Some(volume) = self.volume_mut(id) else {
            self.answer(RetCode::MinorInvalid.number());
            return;
        };
        let state = volume.state;
        if change.role == Role::Primary {
            volume.discard_my_data = false;
            let alone = state.conn < Conn::Connected || state.pdsk <= Disk::Failed;
            let recorded = volume.disk.as_ref().is_none_or(|disk| disk.bitmap_uuid() != 0);
            if change.forced_disk || (alone && !recorded) {
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
            if change.forced_disk {
                self.send_uuids(id);
            }
            if let Some(state) = self.volume(id).map(|volume| volume.state) {
                self.send_state(id, state);
            }
        }
        self.sync_metadata(id);
        self.work(super::Work::ReadOnly { volume: id, read_only: change.role != Role::Primary });
        self.role_stage(change, RoleStage::Durable);
    }

    /// A ping sent after a promotion was asked for has been answered.
    pub(super) fn admin_ping_answered(&mut self) {
        if let Some(Op::Role(change)) = self.admin.op {
            if matches!(change.stage, RoleStage::Ping { .. }) {
                self.role_stage(change, RoleStage::Ping { answered: true });
            }
        }
    }

    // Disk.

    /// The attach has ended, one way or the other.
    pub(super) fn admin_attached(&mut self, id: VolumeId, code: i32) {
        if matches!(self.admin.op, Some(Op::Attach { volume }) if volume == id) {
            self.answer(code);
        }
    }

    /// A bitmap job of a command is done.
    pub(super) fn admin_job_done(&mut self, id: VolumeId, ok: bool) {
        if matches!(self.admin.op, Some(Op::Job { volume }) if volume == id) {
            self.with_volume(id, |volume| volume.holds = volume.holds.saturating_sub(1));
            self.reopen_gate();
            self.answer(if ok { Outcome::Success.code() } else { RetCode::IoMdDisk.number() });
        }
    }

    fn start_detach(&mut self, id: VolumeId, force: bool) {
        let Some(volume) = self.volume_mut(id) else {
            self.answer(RetCode::MinorInvalid.number());
            return;
        };
        if volume.disk.is_none() {
            self.answer(Outcome::NothingToDo.code());
            return;
        }
        if force {
            volume.force_detach = true;
            self.disk_failed(id, super::volume::DiskError::ForceDetach);
            self.check_disk_idle(id);
            self.answer(Outcome::Success.code());
            return;
        }
        volume.holds += 1;
        self.admin.op = Some(Op::Detach { volume: id, asked: false, result: 0 });
    }

    fn run_detach(&mut self, id: VolumeId, asked: bool, result: i32) {
        let Some(volume) = self.volume(id) else {
            self.answer(RetCode::MinorInvalid.number());
            return;
        };
        if result != 0 {
            // Asked and granted: wait until the disk is gone.
            if volume.disk.is_none() {
                self.end_detach(id, result);
            } else {
                self.check_disk_idle(id);
            }
            return;
        }
        if !asked {
            if volume.upper_pending == 0 || self.susp.any() {
                self.admin.op = Some(Op::Detach { volume: id, asked: true, result: 0 });
                self.begin_ask(Target::Volume(id), Change::disk(Disk::Failed));
            }
            return;
        }
        match self.run_ask() {
            None => {}
            Some(Ok(outcome)) => {
                self.admin.op = Some(Op::Detach { volume: id, asked: true, result: outcome.code() });
                self.admin.poked = true;
            }
            Some(Err(StateError::IsDiskless)) => self.end_detach(id, Outcome::NothingToDo.code()),
            Some(Err(error)) => self.end_detach(id, error.code()),
        }
    }

    fn end_detach(&mut self, id: VolumeId, code: i32) {
        self.with_volume(id, |volume| volume.holds = volume.holds.saturating_sub(1));
        self.answer(code);
        self.reopen_gate();
    }

    /// An application request ended: somebody may wait for the device to be quiet.
    pub(super) fn upper_request_ended(&mut self, _id: VolumeId) {
        if matches!(self.admin.op, Some(Op::Detach { .. } | Op::Role(_))) {
            self.admin.poked = true;
        }
    }

    /// An answer of the peer arrived that a change of the role may wait for.
    pub(super) fn check_role_wait(&mut self) {
        if matches!(self.admin.op, Some(Op::Role(_))) {
            self.admin.poked = true;
        }
    }

    // Connection.

    fn start_connect(&mut self, conf: &NetConf) {
        if self.link.conn > Conn::StandAlone || self.link.configured {
            self.answer(RetCode::NetConfigured.number());
            return;
        }
        if let Err(code) = self.check_net_conf(conf) {
            self.answer(code.number());
            return;
        }
        self.link.net = *conf;
        self.link.configured = true;
        for id in self.volume_ids() {
            self.with_volume(id, |volume| volume.counters.forget_peer());
        }
        match self.change_connection(Change::conn(Conn::Unconnected), Kind::Soft, false) {
            Ok(outcome) => self.answer(outcome.code()),
            Err(error) => {
                self.link.configured = false;
                self.answer(error.code());
            }
        }
    }

    /// spec: netlink 6 CHG_NET_OPTS; state-machine 16.3
    fn check_net_conf(&self, conf: &NetConf) -> Result<(), RetCode> {
        if conf.two_primaries && conf.wire_protocol != WireProtocol::C {
            return Err(RetCode::NotProtoC);
        }
        let stonith = |volume: &super::Volume<S>| volume.conf.fencing == Fencing::ResourceAndStonith;
        if conf.wire_protocol == WireProtocol::A && self.volumes_with(stonith).next().is_some() {
            return Err(RetCode::StonithAndProtA);
        }
        let primary = |volume: &super::Volume<S>| volume.state.role == Role::Primary;
        if conf.discard_my_data && self.volumes_with(primary).next().is_some() {
            return Err(RetCode::DiscardImpossible);
        }
        if conf.on_congestion != OnCongestion::Block && conf.wire_protocol != WireProtocol::A {
            return Err(RetCode::CongNotProtoA);
        }
        self.check_authentication(conf)?;
        self.check_algorithms(conf)
    }

    fn set_net_options(&mut self, conf: &NetConf) {
        if !self.link.configured {
            self.answer_with(RetCode::InvalidRequest.number(), AdminInfo::Text("net conf missing, try connect"));
            return;
        }
        let net = &self.link.net;
        let up = self.link.conn >= Conn::WFReportParams;
        let needs_100 = conf.wire_protocol != net.wire_protocol
            || conf.two_primaries != net.two_primaries
            || conf.integrity_alg != net.integrity_alg;
        if up && needs_100 && self.link.apv < 100 {
            self.answer(RetCode::NeedApv100.number());
            return;
        }
        let both = |volume: &super::Volume<S>| volume.state.role == Role::Primary && volume.state.peer == Role::Primary;
        if net.two_primaries && !conf.two_primaries && self.volumes_with(both).next().is_some() {
            self.answer(RetCode::NeedAllowTwoPri.number());
            return;
        }
        if let Err(code) = self.check_algorithms_unused(conf).and_then(|()| self.check_net_conf(conf)) {
            self.answer(code.number());
            return;
        }
        self.link.net = *conf;
        for id in self.volume_ids().filter(|_| needs_100) {
            if self.volume(id).is_some() {
                self.work(super::Work::Limits { volume: id });
            }
        }
        if up && needs_100 {
            self.queue_control(Control::ProtocolUpdate);
        }
        if up {
            for id in self.volume_ids() {
                if self.volume(id).is_some() {
                    self.queue_control(Control::SyncParam(id));
                }
            }
        }
        self.answer(OK);
    }

    fn start_disconnect(&mut self, force: bool) {
        if self.link.conn == Conn::StandAlone {
            self.answer(OK);
            return;
        }
        self.admin.op = Some(Op::Disconnect { stage: DisconnectStage::Ask });
        if force {
            let _outcome = self.change_connection(Change::conn(Conn::Disconnecting), Kind::Hard, false);
            self.admin.op = Some(Op::Disconnect { stage: DisconnectStage::Close });
        } else {
            self.begin_ask(Target::Connection, Change::conn(Conn::Disconnecting));
        }
    }

    /// spec: state-machine 22 disconnect
    fn run_disconnect(&mut self, stage: DisconnectStage) {
        if self.link.conn == Conn::StandAlone {
            self.answer(OK);
            return;
        }
        if stage == DisconnectStage::Close || self.link.conn == Conn::Disconnecting {
            return;
        }
        let plain = Change::conn(Conn::Disconnecting);
        let change = self.admin.ask.map(|ask| ask.change);
        let Some(result) = self.run_ask() else { return };
        match result {
            Ok(_) => self.admin.op = Some(Op::Disconnect { stage: DisconnectStage::Close }),
            Err(StateError::AlreadyStandalone) => self.answer(OK),
            // Both nodes disconnect at once and the peer decides: it leaves, and then nobody has to be asked. Looked at
            // again when that shows, or at the next tick.
            Err(StateError::ConcurrentStChg) => {
                let change = change.unwrap_or(plain);
                self.admin.ask = Some(Ask { target: Target::Connection, change, sent: false, reply: None });
            }
            Err(StateError::PrimaryNop) if change == Some(plain) => {
                self.begin_ask(Target::Connection, plain.pdsk(Disk::Outdated));
            }
            Err(StateError::OutdateWoConn) => self.hard_disconnect(),
            Err(StateError::CwFailedByPeer) if change == Some(plain) && self.link.conn > Conn::WFConnection => {
                self.begin_ask(Target::Connection, plain.disk(Disk::Outdated));
            }
            Err(StateError::IsDiskless | StateError::LowerThanOutdated) => self.hard_disconnect(),
            Err(error) => self.answer(error.code()),
        }
    }

    fn hard_disconnect(&mut self) {
        self.admin.op = Some(Op::Disconnect { stage: DisconnectStage::Close });
        let _outcome = self.change_connection(Change::conn(Conn::Disconnecting), Kind::Hard, false);
    }

    // The rest.

    /// spec: state-machine 22 invalidate, invalidate-remote
    fn start_invalidate(&mut self, id: VolumeId, conn: Conn) {
        let Some(volume) = self.volume_mut(id) else {
            self.answer(RetCode::MinorInvalid.number());
            return;
        };
        if volume.disk.is_none() {
            self.answer(RetCode::NoDisk.number());
            return;
        }
        let state = volume.state;
        let local = state.conn == Conn::StandAlone
            && ((conn == Conn::StartingSyncT && state.role == Role::Secondary)
                || (conn == Conn::StartingSyncS && state.role == Role::Primary));
        if !local {
            self.ask(Target::Volume(id), Change::conn(conn), None);
            return;
        }
        volume.holds += 1;
        let change = if conn == Conn::StartingSyncT {
            Change::disk(Disk::Inconsistent)
        } else {
            Change::pdsk(Disk::Inconsistent)
        };
        if let Err(error) = self.change(id, change, Kind::Soft) {
            self.end_detach(id, error.code());
            return;
        }
        self.admin.op = Some(Op::Job { volume: id });
        self.queue_job(id, Job::SetAll(Then::Admin));
    }

    fn pause_sync(&mut self, id: VolumeId) {
        match self.change(id, Change::user_isp(true), Kind::Soft) {
            Ok(Outcome::NothingToDo) => self.answer(RetCode::PauseIsSet.number()),
            _ => self.answer(OK),
        }
    }

    fn resume_sync(&mut self, id: VolumeId) {
        let result = self.change(id, Change::user_isp(false), Kind::Soft);
        let Some(state) = self.volume(id).map(|volume| volume.state) else { return };
        let paused = matches!(state.conn, Conn::PausedSyncS | Conn::PausedSyncT);
        self.answer(match result {
            Ok(Outcome::NothingToDo) if paused && state.aftr_isp => RetCode::PicAfterDep.number(),
            Ok(Outcome::NothingToDo) if paused && state.peer_isp => RetCode::PicPeerDep.number(),
            Ok(Outcome::NothingToDo) => RetCode::PauseIsClear.number(),
            _ => OK,
        });
    }

    /// spec: state-machine 18.9 resume-io
    fn resume_io(&mut self, id: VolumeId) {
        if self.volume(id).is_some_and(|volume| volume.generation_due) {
            self.new_current_uuid(id);
        }
        let before = self.susp;
        if before.any() && self.link.conn < Conn::WFReportParams {
            self.fail_network_parts();
        }
        self.thaw(Susp::default());
        self.answer(if before.any() { Outcome::Success.code() } else { Outcome::NothingToDo.code() });
    }

    /// spec: metadata 6.2 (18)
    fn start_new_current_uuid(&mut self, id: VolumeId, clear_bitmap: bool) {
        let Some(volume) = self.volume(id) else {
            self.answer(RetCode::MinorInvalid.number());
            return;
        };
        let Some(disk) = volume.disk.as_ref() else {
            self.answer(RetCode::NoDisk.number());
            return;
        };
        let fresh = disk.current() & !1 == crate::metadata::superblock::UUID_JUST_CREATED;
        let skip = volume.state.conn == Conn::Connected && self.link.apv >= 90 && fresh && clear_bitmap;
        if volume.state.conn != Conn::StandAlone && !skip {
            self.answer(RetCode::Connected.number());
            return;
        }
        self.with_disk(id, |disk| disk.rotate_bitmap_uuid(0));
        self.new_current_uuid(id);
        if !clear_bitmap {
            self.answer(OK);
            return;
        }
        if skip {
            self.announce_skip_initial_sync(id);
            self.with_disk(id, |disk| disk.set_bitmap_uuid(0));
        }
        self.queue_job(id, Job::ClearAll(if skip { Then::Skipped } else { Then::Nothing }));
        self.sync_metadata(id);
        self.answer(OK);
    }

    fn set_disk_options(&mut self, id: VolumeId, conf: &DiskConf) {
        let up = self.link.is_running();
        let Some(volume) = self.volume_mut(id) else {
            self.answer(RetCode::MinorInvalid.number());
            return;
        };
        if volume.disk.is_none() {
            self.answer(RetCode::NoDisk.number());
            return;
        }
        volume.conf = *conf;
        volume.adapt_discard_granularity();
        volume.configure_resync();
        let connected = volume.state.conn >= Conn::Connected;
        self.with_disk(id, |disk| {
            disk.assign_flag(crate::metadata::superblock::MetaFlags::AL_DISABLED, !conf.al_updates);
        });
        if up && connected {
            self.queue_control(Control::SyncParam(id));
        }
        self.sync_metadata(id);
        self.answer(OK);
    }
}
