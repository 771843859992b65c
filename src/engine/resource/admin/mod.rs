// SPDX-License-Identifier: GPL-2.0
//! What an administrator asks for: role changes, connecting, attaching and their opposites.
//!
//! One request at a time ([`Engine::admin`]); the owner serialises them. A request that has to wait, for the peer's
//! consent, for I/O to drain, for the disk, stays here as an [`Op`] and is looked at again whenever something changed
//! ([`Engine::run_admin`]). The result is the number that the netlink reply carries.
//! spec: state-machine 3.2, 13.6, 22; netlink 6

mod connection;
mod disk;
mod resize;
mod role;

pub(super) use role::Undrained;

use core::fmt;

use super::api::{BackingLimits, VolumeId, Wakes};
use super::change::Kind;
use super::disk::AttachTables;
use super::fencing::FenceRun;
use super::outgoing::Control;
use super::Engine;
use crate::metadata::layout::MetaIndex;
use crate::metadata::Block;
use crate::netlink::{DiskConf, NetConf, ResizeParms, ResourceOpts, RetCode};
use crate::state::{
    check_cluster_wide, cluster_wide, explain_soft, Change, Conn, Disk, Outcome, Role, StateError, Susp,
};
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

/// A request of the administrator. Its answer is the number of a state change (1 and above: done) or a [`RetCode`]; 127
/// where the volume does not exist.
// spec: state-machine 22; netlink 6
#[derive(Clone, Copy, Debug)]
pub enum AdminRequest<'a> {
    /// Disk Failed, with the peer's consent while connected; answered when the disk has been let go.
    Detach {
        /// Volume.
        volume: VolumeId,
        /// Without asking anybody, and at once: what is on the disk is given up where that is possible.
        force: bool,
    },
    /// Unconnected, with these options. 125 when there is a connection; what the options refuse: 120, 123, 139, 141, 144,
    /// 146, 154, 155.
    Connect {
        /// All options of the connection.
        conf: &'a NetConf,
    },
    /// Disconnecting, with the peer's consent while connected, then StandAlone.
    Disconnect {
        /// Without asking the peer.
        force: bool,
    },
    /// Role Primary. spec: state-machine 13.6
    Primary {
        /// Volume.
        volume: VolumeId,
        /// An Inconsistent, Outdated or Consistent disk becomes UpToDate, and a peer that cannot be fenced counts as Outdated.
        force: bool,
    },
    /// Role Secondary; -12 while the device is held open.
    Secondary {
        /// Volume.
        volume: VolumeId,
    },
    /// The own data is bad: StartingSyncT; StandAlone and Secondary, all bits are set. 138 without a disk, 118 when the bitmap
    /// cannot be written.
    Invalidate {
        /// Volume.
        volume: VolumeId,
    },
    /// The peer's data is bad: StartingSyncS; StandAlone and Primary, all bits are set. 138 without a disk, 118 when the
    /// bitmap cannot be written.
    InvalidateRemote {
        /// Volume.
        volume: VolumeId,
    },
    /// VerifyS. -14 without verify-alg, -15 without connection, -8 while a resync or verify runs, -2 while a
    /// disk is not UpToDate. 2 where this node verifies already: that run takes the stop sector.
    Verify {
        /// Volume.
        volume: VolumeId,
        /// First sector, rounded down to 8; `None`: where the last run stopped.
        start_sector: Option<u64>,
        /// Where to stop, if the peer's protocol can be told (97 and above, not 100); `None`: at the end.
        stop_sector: Option<u64>,
    },
    /// user_isp on; 134 when it is.
    PauseSync {
        /// Volume.
        volume: VolumeId,
    },
    /// user_isp off; 135 when it is, 156 or 157 when the resync stays paused for a dependency or for the peer.
    ResumeSync {
        /// Volume.
        volume: VolumeId,
    },
    /// I/O of the resource is suspended (susp).
    SuspendIo {
        /// The volume named in the request; all are meant.
        volume: VolumeId,
    },
    /// No reason suspends I/O any more (susp, susp_nod, susp_fen). spec: state-machine 18.9
    ResumeIo {
        /// The volume whose postponed generation begins; I/O goes on for all.
        volume: VolumeId,
    },
    /// Disk Outdated; -16 when it is worth less, -11 without one.
    Outdate {
        /// Volume.
        volume: VolumeId,
    },
    /// A new data generation. 138 without a disk, 151 unless StandAlone, or Connected with a fresh disk and `clear_bitmap`.
    /// spec: metadata 6.2 (18)
    NewCurrentUuid {
        /// Volume.
        volume: VolumeId,
        /// No block differs; while connected the initial resync is skipped.
        clear_bitmap: bool,
    },
    /// A volume is about to be removed: the peer is told that it is not connected any more (WFReportParams).
    Part {
        /// Volume.
        volume: VolumeId,
    },
    /// Other options of an attached disk; 138 without one.
    DiskOptions {
        /// Volume.
        volume: VolumeId,
        /// All options of the disk.
        conf: &'a DiskConf,
    },
    /// Another size. 130, 131, 138, 140, 153, 166 to 170. spec: metadata 7.4
    Resize {
        /// Volume.
        volume: VolumeId,
        /// What is wanted.
        parms: &'a ResizeParms,
    },
    /// Other options of the connection. 162 without one, 163 and 164 for what cannot change now, 148 and 149 while an algorithm
    /// is in use, and all codes of `Connect`.
    NetOptions {
        /// All options of the connection.
        conf: &'a NetConf,
    },
    /// Other options of the resource.
    ResourceOptions {
        /// All options of the resource.
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
    /// Number 170 of an attach: both sizes in sectors.
    WouldShrink {
        /// Of the device when the disk was last used.
        from_sectors: u64,
        /// What it would be with this disk.
        sectors: u64,
    },
}

impl fmt::Display for AdminInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AdminInfo::None => Ok(()),
            AdminInfo::Text(text) => f.write_str(text),
            AdminInfo::WouldShrink { from_sectors, sectors } => write!(
                f,
                "The data is consistent, and the device would become smaller than it was with this disk.\n\
                 ({from_sectors} sectors before, {sectors} now.) Not attached."
            ),
        }
    }
}

/// The answer to an [`AdminRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdminResult {
    /// Number for the reply: a [`RetCode`] or the result of a state change.
    pub code: i32,
    /// Explanation.
    pub info: AdminInfo,
}

impl From<i32> for AdminResult {
    fn from(code: i32) -> Self {
        AdminResult { code, info: AdminInfo::None }
    }
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
    /// When it went to the socket, while there is no answer.
    went_ms: Option<u64>,
    /// It could not be done because of something that is under way, and waits for the end of that.
    again: bool,
}

impl Ask {
    fn new(target: Target, change: Change) -> Ask {
        Ask { target, change, sent: false, reply: None, went_ms: None, again: false }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RoleStage {
    /// A ping is to find out whether the peer is still there.
    Ping {
        answered: bool,
    },
    /// Before a demotion: writes are complete but the peer has not said yet that they are safe there. The mark that
    /// this node was Primary must stay until then, or a crash of both nodes would hide a difference.
    Drain {
        /// The peer has been asked whether it is done with all epochs before this one.
        asked: Option<u32>,
    },
    Ask,
    /// Another Primary may just be stepping down.
    Pause {
        until_ms: u64,
    },
    /// The fence-peer helper runs.
    Fence(FenceRun),
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
    /// Own disk is declared good, by force or because the peer is fenced; the peer's is declared outdated.
    good_disk: bool,
    forced_disk: bool,
    outdate_peer: bool,
    paused_once: bool,
    /// Why it was refused last.
    refusal: StateError,
    /// How often it was asked for.
    tries: u8,
    result: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DisconnectStage {
    /// Until the peer has acknowledged the last barrier, but not longer than this.
    Drain {
        until_ms: u64,
    },
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
    /// The data here is to be overwritten: not before the peer has all of it on its disk (`asked`).
    Invalidate {
        volume: VolumeId,
        asked: bool,
    },
    Disconnect {
        stage: DisconnectStage,
    },
    Role(RoleChange),
    /// A single state change.
    Change {
        success: Option<i32>,
    },
    /// The resync is paused by the administrator (`on`), or not any more.
    Pause {
        volume: VolumeId,
        on: bool,
    },
    /// A job on the bitmap.
    Job {
        volume: VolumeId,
        /// Number of success.
        success: i32,
    },
    /// Waits until no application I/O is under way, then (`begun`) until everything is written.
    Resize {
        volume: VolumeId,
        parms: ResizeParms,
        begun: bool,
    },
}

/// The administrator's side of the engine.
#[derive(Default)]
pub(super) struct Admin {
    op: Option<Op>,
    ask: Option<Ask>,
    /// Sent to the peer, and not waited for any more; their answers still come, in this order.
    abandoned: [Option<Ask>; MAX_ABANDONED],
    result: Option<AdminResult>,
    /// Something changed: look at `op` again.
    poked: bool,
}

impl Admin {
    /// A request to the peer goes to the socket.
    pub(super) fn ask_goes(&mut self, now_ms: u64) {
        if let Some(ask) = self.ask.as_mut().filter(|ask| ask.sent && ask.reply.is_none()) {
            ask.went_ms = Some(now_ms);
        }
    }

    /// When what the peer has been asked for went to the socket, while there is no answer.
    pub(super) fn ask_went_ms(&self) -> Option<u64> {
        self.ask.and_then(|ask| ask.went_ms)
    }

    /// What waits could not be done so far because of something that is under way.
    pub(super) fn tries_again(&self) -> bool {
        self.ask.is_some_and(|ask| ask.again)
    }
}

/// Bound: requests to the peer that were given up before their answer came. One more ends the connection.
const MAX_ABANDONED: usize = 4;

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
    /// -18, which the plan may come to as well, means that the nodes are meeting, or have begun to while the bitmap was loaded, or
    /// that the plan is out of date: to be done again from the start when [`Engine::is_meeting`] says no. Nothing is to be held
    /// until then that a program needs which the handshake waits for. Tables that it does not take come back, to be dropped when
    /// the lock is not held.
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
            Err(refusal) => self.answer_with(refusal.code, refusal.info),
        }
        tables
    }

    /// The nodes are meeting: what each says of its disks must stay true until both have come to a decision.
    pub fn is_meeting(&self) -> bool {
        self.link.state_sent
    }

    /// The answer to the last request, once.
    pub fn admin_result(&mut self) -> Option<AdminResult> {
        self.admin.result.take()
    }

    /// Whoever waited was interrupted: the request is given up where that is possible.
    pub fn admin_cancel(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        if let Some(
            Op::Detach { volume, .. } | Op::Invalidate { volume, .. } | Op::Resize { volume, begun: false, .. },
        ) = self.admin.op
        {
            self.with_volume(volume, |volume| volume.holds = volume.holds.saturating_sub(1));
        }
        if !matches!(self.admin.op, Some(Op::Attach { .. } | Op::Job { .. } | Op::Resize { begun: true, .. })) {
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
            R::PauseSync { volume } => self.start_pause(volume, true),
            R::ResumeSync { volume } => self.start_pause(volume, false),
            R::SuspendIo { .. } => {
                let before = self.susp;
                self.thaw(Susp { user: true, ..before });
                self.answer(if before.user { Outcome::NothingToDo.code() } else { Outcome::Success.code() });
            }
            R::ResumeIo { .. } => self.resume_io(),
            R::Outdate { volume } => self.ask(Target::Volume(volume), Change::disk(Disk::Outdated), None),
            R::NewCurrentUuid { volume, clear_bitmap } => self.start_new_current_uuid(volume, clear_bitmap),
            R::Part { volume } => self.ask(Target::Volume(volume), Change::conn(Conn::WFReportParams), None),
            R::DiskOptions { volume, conf } => self.set_disk_options(volume, conf),
            R::Resize { volume, parms } => self.start_resize(volume, parms),
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
        // Why the peer refused is between the nodes: the C module says this about every refusal.
        let code = if code == StateError::ConcurrentStChg.code() { StateError::CwFailedByPeer.code() } else { code };
        self.admin.op = None;
        self.abandon_ask();
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
            None | Some(Op::Attach { .. } | Op::Job { .. } | Op::Resize { begun: true, .. }) => {}
            Some(Op::Resize { volume, parms, begun: false }) => self.run_resize(volume, parms),
            Some(Op::Change { success }) => {
                if let Some(result) = self.run_ask() {
                    let code = result.map_or_else(|error| error.code(), |outcome| success.unwrap_or(outcome.code()));
                    self.answer(code);
                }
            }
            Some(Op::Pause { volume, on }) => self.run_pause(volume, on),
            Some(Op::Detach { volume, asked, result }) => self.run_detach(volume, asked, result),
            Some(Op::Invalidate { volume, asked }) => self.run_invalidate(volume, asked),
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
        self.admin.ask = Some(Ask::new(target, change));
        self.admin.poked = true;
    }

    /// The peer has agreed to a full resync before it has heard that the device grows, and takes part in that one only.
    fn make_way_for_full_resync(&mut self, ask: &Ask) {
        let full = matches!(ask.change.wanted_conn(), Some(Conn::StartingSyncS | Conn::StartingSyncT));
        if let (Target::Volume(id), true, Some(_)) = (ask.target, full, ask.reply) {
            self.stop_waiting_for_growth(id);
        }
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
            _ => {
                self.make_way_for_full_resync(&ask);
                self.change_target(&ask)
            }
        };
        if result.is_err() && ask.reply.is_some_and(|code| code >= Outcome::Success.code()) {
            self.peer_went_ahead(&ask);
        }
        if result == Err(StateError::InTransientState) {
            // Tried again at the next change of any state.
            self.abandon_ask();
            self.admin.ask = Some(Ask { sent: false, reply: None, went_ms: None, again: true, ..ask });
            return None;
        }
        self.abandon_ask();
        Some(result)
    }

    /// Nobody waits for the peer's consent any more; what it answers still matters.
    fn abandon_ask(&mut self) {
        if let Some(Target::Volume(id)) = self.admin.ask.map(|ask| ask.target) {
            // Nothing came of what was asked: the receiver goes on.
            if self.volume(id).is_some_and(|volume| volume.state.conn == Conn::Connected) {
                self.take_early_sync_uuid(id);
            }
        }
        let Some(ask) = self.admin.ask.take().filter(|ask| ask.sent && ask.reply.is_none()) else { return };
        if !self.link.is_running() {
            return;
        }
        match self.admin.abandoned.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = Some(ask),
            None => self.link_fault(Conn::ProtocolError),
        }
    }

    /// The connection is new: no answer comes to what was asked before.
    pub(super) fn forget_abandoned(&mut self) {
        self.admin.abandoned = [None; MAX_ABANDONED];
    }

    /// The peer agreed, and has changed its view of this node; here nothing comes of it, because something has happened meanwhile.
    fn peer_went_ahead(&mut self, ask: &Ask) {
        let Target::Volume(id) = ask.target else { return };
        let Some(state) = self.volume_state(id).filter(|state| state.conn >= Conn::Connected) else { return };
        if ask.change.wanted_conn() == Some(Conn::StartingSyncS) {
            // It was to be overwritten and has given up its data, and this node's disk has failed. Nobody has good data now, and no
            // write that only the peer has counts as written.
            if state.pdsk > Disk::Inconsistent {
                let _outcome = self.change(id, Change::pdsk(Disk::Inconsistent), Kind::Hard);
            }
        } else if ask.change.wanted_conn().is_none() {
            // It takes this node for a Primary, or its disk for one that has been let go. (The C module leaves it at that.)
            let takes_disk_for_gone = ask.change.wanted_disk().is_some_and(|disk| disk < Disk::Inconsistent);
            let source = state.conn == Conn::WFBitMapS && takes_disk_for_gone;
            if source {
                self.send_uuids(id);
            }
            self.send_state(id, state);
            if source {
                // It has left the exchange by that, and made nothing of the bitmap that it was sent.
                self.send_bitmap(id);
            }
        }
    }

    fn needs_consent(&self, ask: &Ask) -> bool {
        match ask.target {
            Target::Volume(id) => self.would_be(id, ask.change).is_some_and(|(old, new)| cluster_wide(old, new)),
            Target::Connection => {
                self.link.conn == Conn::WFReportParams && ask.change.wanted_conn() == Some(Conn::Disconnecting)
            }
        }
    }

    /// What is asked of the peer has to be right in itself: that the volume is no better off already does not excuse it. (A change of the
    /// connection is judged as any other.)
    // spec: state-machine 3.2 step 4, 3.5 step 2
    fn check_ask(&self, ask: &Ask) -> Result<Outcome, StateError> {
        match ask.target {
            Target::Volume(id) => match self.would_be(id, ask.change) {
                Some((old, new)) => check_cluster_wide(old, new, &self.rules(id)).map_err(StateError::from),
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

    /// Asks the peer for no change at all. Its answer shows that it has done what came before over the data socket.
    fn ask_for_nothing(&mut self, id: VolumeId) {
        self.abandon_ask();
        let ask = Ask { sent: true, ..Ask::new(Target::Volume(id), Change::default()) };
        self.admin.ask = Some(ask);
        self.send_state_request(&ask);
    }

    fn send_state_request(&mut self, ask: &Ask) {
        let (mask, val) = ask.change.request();
        let packet = match ask.target {
            Target::Volume(volume) => Control::StateRequest { volume, mask, val },
            Target::Connection => Control::ConnectionRequest { mask, val },
        };
        self.queue_control(packet);
    }

    /// The peer's answer to a request for one of our volumes, or the connection.
    pub(super) fn state_reply(&mut self, volume: Option<VolumeId>, code: i32) {
        let [oldest, ..] = &mut self.admin.abandoned;
        if let Some(ask) = oldest.take() {
            self.admin.abandoned.rotate_left(1);
            if code >= Outcome::Success.code() {
                self.peer_went_ahead(&ask);
            }
            return;
        }
        if let Some(ask) = self.admin.ask.as_mut().filter(|ask| ask.sent) {
            let fits = match ask.target {
                Target::Volume(id) => volume == Some(id),
                // Below version 100 both kinds have the same answer.
                Target::Connection => true,
            };
            if fits {
                ask.reply = Some(code);
                ask.went_ms = None;
                self.admin.poked = true;
            }
        }
    }

    /// True while we wait for the peer's consent ourselves. spec: wire-protocol 9.3
    pub(super) fn asks_peer(&self, volume: Option<VolumeId>) -> bool {
        self.admin.ask.is_some_and(|ask| {
            ask.sent
                && ask.change != Change::default()
                && match (ask.target, volume) {
                    (Target::Volume(id), Some(other)) => id == other,
                    (Target::Connection, None) => true,
                    _ => false,
                }
        })
    }

    /// The peer has been asked to part, and what follows from its answer has not been done yet.
    pub(super) fn asks_to_disconnect(&self) -> bool {
        self.admin.ask.is_some_and(|ask| ask.sent && ask.target == Target::Connection)
    }

    /// A request for this volume has not been answered, though perhaps nobody waits for it any more. Below version 100 all requests of a
    /// connection exclude each other. spec: wire-protocol 9.2
    pub(super) fn awaits_consent(&self, id: VolumeId) -> bool {
        let asked = self.admin.ask.iter().filter(|ask| ask.sent).chain(self.admin.abandoned.iter().flatten());
        asked.map(|ask| ask.target).any(|target| target == Target::Volume(id) || self.link.apv < 100)
    }

    /// The peer has been asked to overwrite the data here, or that was asked before the command was given up. It may have agreed, and then
    /// it does not send its own writes any more.
    pub(super) fn gives_up_data(&self, id: VolumeId) -> bool {
        // Looked at for each read; they are kept without a gap.
        let abandoned = self.admin.abandoned.iter().map_while(Option::as_ref);
        let asked = self.admin.ask.iter().filter(|ask| ask.sent);
        asked
            .chain(abandoned)
            .any(|ask| ask.target == Target::Volume(id) && ask.change.wanted_conn() == Some(Conn::StartingSyncT))
    }

    /// All volumes go on. (The C module, told once for each volume by drbdadm, lets all of them go on with the first, and a volume
    /// begins its generation when it is named.) spec: state-machine 18.9 resume-io
    fn resume_io(&mut self) {
        let before = self.susp;
        if before.any() && self.link.conn < Conn::WFReportParams {
            self.fail_network_parts();
        }
        self.thaw(Susp::default());
        self.answer(if before.any() { Outcome::Success.code() } else { Outcome::NothingToDo.code() });
    }

    /// An application request ended: somebody may wait for the device to be quiet.
    pub(super) fn upper_request_ended(&mut self, _id: VolumeId) {
        if matches!(self.admin.op, Some(Op::Detach { .. } | Op::Invalidate { .. } | Op::Role(_) | Op::Resize { .. })) {
            self.admin.poked = true;
        }
    }
}
