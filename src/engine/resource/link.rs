// SPDX-License-Identifier: GPL-2.0
//! The life of the connection: from the two sockets to their end.
//!
//! The connection's state goes from Unconnected through WFConnection (looking for the peer) to WFReportParams and stays
//! there; what comes after, Connected and beyond, are states of the volumes. A loss goes through one of the states that
//! name its reason; the owner then winds the sockets down and calls [`Engine::link_closed`], which settles everything
//! that was under way.
//! spec: wire-protocol 1, 4, 10, 11; state-machine 10, 14

use super::api::{LinkFailure, LinkTask, Wakes};
use super::authenticate::Authentication;
use super::change::Kind;
use super::fencing::FenceRun;
use super::incoming::Fault;
use super::metadata_pipeline::{Job, Then};
use super::outgoing::{Control, MetaOut, Sending};
use super::received_epoch::ReceivedEpoch;
use super::slots::{Net, Phase, Request};
use super::state_request::HeldRequest;
use super::volume::Volume;
use super::work::LogLine;
use super::{Engine, VolumeId};
use crate::netlink::{NetConf, OnCongestion, WireProtocol};
use crate::state::{And, Change, Conn, Disk};
use crate::storage::{OutOfMemory, Storage};
use crate::wire::UuidFlags;

/// Version before the features are exchanged. spec: wire-protocol 1.2
pub(super) const VERSION_BEFORE_FEATURES: u32 = 80;

/// How far the handshake on the data socket has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handshake {
    /// No sockets.
    Down,
    /// P_CONNECTION_FEATURES was sent, the peer's is awaited.
    Features,
    /// The peer proves that it knows the secret.
    Authentication(Authentication),
    /// Parameters are exchanged, or everything is.
    Running,
}

/// How the sockets of a connection that is being given up are left. See [`Engine::parting`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parting {
    /// Both are shut down.
    AtOnce,
    /// The nodes do not come together, and the peer has not ended the connection yet. It has been told all that it needs for the
    /// same verdict, and reads that if the end of the connection does not overtake it: the owner says on the data socket that
    /// nothing more comes, and leaves both sockets open until the peer closes them.
    PeerJudges,
    /// The peer disconnects, and has our consent: both sockets stay as they are until it closes them. A peer that finds them closed before
    /// it has read the consent has lost this node, and may have it fenced. (A C module that has just sent its request does not know yet
    /// that the end of a socket is an answer.)
    PeerCloses,
}

/// What to do after a connection has been wound down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reconnect {
    /// Look for the peer at once.
    AtOnce,
    /// Something went wrong before the connection was of use: wait a second first.
    AfterOneSecond,
    /// StandAlone.
    Never,
}

/// Writes that left the transfer log before their barrier, by epoch: only conflicts of two Primaries do that.
///
/// Found by the low bits of the epoch's number, in as many places as there are requests. An epoch of which a write is left has a place
/// for itself then; but one that all writes have left may lose it to a later one, while its acknowledgement is still awaited.
pub(super) struct Departed<S: Storage> {
    epochs: S::Table<(u32, u32)>,
    /// The last epoch that lost its place: of those up to there nothing is known.
    lost: Option<u32>,
}

impl<S: Storage> Departed<S> {
    pub(super) fn new(epochs: usize) -> Result<Self, OutOfMemory> {
        Ok(Departed { epochs: S::table(epochs.max(1), |_| (0, 0))?, lost: None })
    }

    fn place(&self, epoch: u32) -> usize {
        (epoch as usize).checked_rem(self.epochs.len()).unwrap_or(0)
    }

    /// One more of this epoch.
    pub(super) fn count(&mut self, epoch: u32) {
        let at = self.place(epoch);
        if let Some(entry) = self.epochs.get_mut(at) {
            let (old, writes) = *entry;
            if old == epoch {
                entry.1 = writes.saturating_add(1);
                return;
            }
            *entry = (epoch, 1);
            if writes > 0 && !self.is_lost(old) {
                self.lost = Some(old);
            }
        }
    }

    fn is_lost(&self, epoch: u32) -> bool {
        self.lost.is_some_and(|lost| (lost.wrapping_sub(epoch) as i32) >= 0)
    }

    /// How many of this epoch, at most.
    pub(super) fn of(&self, epoch: u32) -> u32 {
        let known = self.epochs.get(self.place(epoch)).filter(|entry| entry.0 == epoch).map(|entry| entry.1);
        let unknown = if self.is_lost(epoch) { u32::MAX } else { 0 };
        known.unwrap_or(unknown)
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.epochs.iter_mut().for_each(|entry| *entry = (0, 0));
        self.lost = None;
    }
}

/// A write of the peer that waits for packets on the meta socket that were sent before it. spec: wire-protocol 3.5
#[derive(Clone, Copy, Debug)]
pub(super) struct SequenceWait {
    pub(super) peer: super::PeerId,
    pub(super) volume: VolumeId,
    pub(super) seq: u32,
    pub(super) until_ms: u64,
}

/// The end of a socket that need not be an error.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    failure: LinkFailure,
    since_ms: u64,
}

/// The connection.
pub(super) struct Link {
    /// Between StandAlone and WFReportParams.
    pub(super) conn: Conn,
    /// A network configuration is present.
    pub(super) configured: bool,
    pub(super) net: NetConf,
    pub(super) handshake: Handshake,
    /// Agreed protocol version; the last one while not connected.
    pub(super) apv: u32,
    /// Version that rules the header format right now.
    pub(super) wire_version: u32,
    pub(super) features: u32,
    /// This node accepted the meta socket: it decides ties.
    pub(super) resolve_conflicts: bool,
    /// The last program that the decision under way asked for; if that decision is to part, its end is awaited.
    pub(super) told: Option<u32>,
    pub(super) refusal: Option<u32>,
    /// One of the sockets has ended, and what comes on the other one may still say why.
    pub(super) ended: Option<Ended>,
    /// This node parts with the peer because of what both know; until then the peer may find it out too.
    pub(super) verdict_until_ms: Option<u64>,
    /// The peer disconnects with our consent; until then the end of the connection is left to it.
    pub(super) consent_until_ms: Option<u64>,
    /// Own parameters are on their way. Until they are sent nothing is read: the peer has to learn them even if what it
    /// says itself ends the connection.
    pub(super) introducing: bool,
    /// Own parameters were sent, some volume waits for the peer's.
    pub(super) state_sent: bool,
    /// The peer sent P_PROTOCOL and it fits.
    pub(super) protocol_checked: bool,
    /// The connection reached WFReportParams.
    pub(super) was_up: bool,
    /// discard-my-data of the connection attempt under way.
    pub(super) discarding: bool,
    pub(super) peer_dry_run: bool,
    /// Current epoch, writes in it; epoch of the last write sent and writes sent in that epoch.
    pub(super) epoch: u32,
    pub(super) epoch_writes: u32,
    pub(super) sent_epoch: u32,
    pub(super) sent_writes: u32,
    /// Reads of a verify that wait for a barrier acknowledgement.
    pub(super) verify_waits: u32,
    /// The barrier of the last epoch is sent even if no write follows.
    pub(super) barrier_due: bool,
    /// Writes in the queue to the data socket.
    pub(super) queued_writes: u32,
    pub(super) received_epoch: ReceivedEpoch,
    /// Volumes whose disk has failed without the peer having shown that it knows, and until when that is waited for.
    pub(super) failures_unseen: u64,
    pub(super) failures_unseen_until_ms: u64,
    /// Epochs of the peer that have been closed.
    pub(super) received_epochs: u32,
    pub(super) sequence_wait: Option<SequenceWait>,
    /// The receiver waits until the owner has looked for algorithms.
    pub(super) algorithms_pending: bool,
    pub(super) sending: Sending,
    pub(super) sending_meta: bool,
    /// A P_PING has not been answered.
    pub(super) ping_outstanding: bool,
    /// When it was given to the socket.
    pub(super) ping_since_ms: u64,
    /// It has not been given to the socket yet.
    pub(super) ping_queued: bool,
    /// Another ping has to follow the one under way.
    pub(super) ping_again: bool,
    /// A bitmap is being received for this volume: no other packet may come between.
    pub(super) bitmap_for: Option<VolumeId>,
    /// Since then the packets of the data socket are read.
    pub(super) reads_since_ms: u64,
    /// When WFReportParams was entered.
    pub(super) up_since_ms: u64,
    /// The state and, since it has one of its own, the reason why the connection is being given up.
    pub(super) fault: Option<Fault>,
    /// The fence-peer helper that runs because the peer was lost.
    pub(super) fence: Option<FenceRun>,
    /// Counts how often volumes got connected.
    pub(super) connects: u32,
    /// The peer disconnects in order; this happens when our consent has been sent.
    pub(super) tear_down: Option<Change>,
    /// The peer asks for a change of state that has to wait; meanwhile the application's requests for that volume do, too.
    pub(super) held_request: Option<HeldRequest>,
    /// When unanswered requests were looked for last.
    pub(super) requests_checked_ms: u64,
    /// When the last barrier was sent.
    pub(super) barrier_sent_ms: u64,
}

impl Link {
    /// StandAlone, without configuration.
    pub(super) fn new() -> Self {
        Link {
            conn: Conn::StandAlone,
            configured: false,
            net: NetConf::default(),
            handshake: Handshake::Down,
            apv: crate::wire::PRO_VERSION_MAX,
            wire_version: VERSION_BEFORE_FEATURES,
            features: 0,
            resolve_conflicts: false,
            told: None,
            refusal: None,
            ended: None,
            verdict_until_ms: None,
            consent_until_ms: None,
            introducing: false,
            state_sent: false,
            protocol_checked: false,
            was_up: false,
            discarding: false,
            peer_dry_run: false,
            epoch: 0,
            epoch_writes: 0,
            sent_epoch: 0,
            sent_writes: 0,
            verify_waits: 0,
            barrier_due: false,
            queued_writes: 0,
            received_epoch: ReceivedEpoch::default(),
            failures_unseen: 0,
            failures_unseen_until_ms: 0,
            received_epochs: 0,
            sequence_wait: None,
            algorithms_pending: false,
            sending: Sending::Nothing,
            sending_meta: false,
            ping_outstanding: false,
            ping_since_ms: 0,
            ping_queued: false,
            ping_again: false,
            bitmap_for: None,
            up_since_ms: 0,
            reads_since_ms: 0,
            fault: None,
            fence: None,
            connects: 0,
            tear_down: None,
            held_request: None,
            requests_checked_ms: 0,
            barrier_sent_ms: 0,
        }
    }

    /// The sockets stand, whatever they are used for.
    pub(super) fn has_sockets(&self) -> bool {
        self.handshake != Handshake::Down
    }

    /// Packets about volumes may be sent.
    pub(super) fn is_running(&self) -> bool {
        self.handshake == Handshake::Running && self.conn >= Conn::WFConnection
    }

    /// The connection is being given up: nothing is sent, nothing is believed.
    pub(super) fn is_closing(&self) -> bool {
        self.conn < Conn::WFConnection
    }
}

/// What the connection goes through when its sockets have failed so.
fn state_after(failure: LinkFailure) -> Conn {
    match failure {
        LinkFailure::DataReceive | LinkFailure::Send => Conn::BrokenPipe,
        LinkFailure::MetaReceive => Conn::NetworkFailure,
        LinkFailure::SendTimeout => Conn::Timeout,
        LinkFailure::LocalAddress => Conn::Disconnecting,
    }
}

impl<S: Storage> Engine<S> {
    /// What the connection thread should be doing. Looking for the peer begins here.
    pub fn link_task(&mut self) -> LinkTask {
        match self.link.conn {
            Conn::StandAlone => LinkTask::Stop,
            Conn::Unconnected => {
                let _outcome = self.change_connection(Change::conn(Conn::WFConnection), Kind::Hard, false);
                LinkTask::Establish
            }
            Conn::WFConnection if !self.link.has_sockets() => LinkTask::Establish,
            conn if conn >= Conn::WFConnection => LinkTask::Run,
            _ => LinkTask::Close,
        }
    }

    /// Both sockets stand. `resolve_conflicts`: this node accepted the meta socket. spec: wire-protocol 1.2, 4.1
    pub fn link_up(&mut self, resolve_conflicts: bool, now_ms: u64) {
        self.now_ms = now_ms;
        if self.link.is_closing() {
            return;
        }
        self.forget_packets();
        self.forget_abandoned();
        self.held_acks.clear();
        self.departed.clear();
        let link = &mut self.link;
        link.handshake = Handshake::Features;
        link.wire_version = VERSION_BEFORE_FEATURES;
        link.resolve_conflicts = resolve_conflicts;
        link.introducing = false;
        link.ended = None;
        link.verdict_until_ms = None;
        link.consent_until_ms = None;
        link.protocol_checked = false;
        link.was_up = false;
        link.peer_dry_run = false;
        link.ping_outstanding = false;
        link.ping_queued = false;
        link.ping_again = false;
        link.bitmap_for = None;
        link.received_epoch = ReceivedEpoch::default();
        link.failures_unseen = 0;
        link.received_epochs = 0;
        link.sequence_wait = None;
        link.algorithms_pending = false;
        link.discarding = link.net.discard_my_data;
        link.fault = None;
        self.overlaps.set_resolves(resolve_conflicts);
        let link = &mut self.link;
        link.tear_down = None;
        // The first write sent on the new connection defines the current epoch.
        link.sent_writes = 0;
        link.verify_waits = 0;
        link.sent_epoch = link.epoch;
        self.queue_control(Control::Features);
    }

    /// The peer is who it should be. Until then it has to say what it has to within a limited time. spec: wire-protocol 1.2
    pub fn handshake_is_over(&self) -> bool {
        self.link.handshake == Handshake::Running
    }

    /// The features fit. spec: wire-protocol 4.1 (4)
    pub(super) fn features_agreed(&mut self, apv: u32, features: u32) {
        self.link.apv = apv;
        self.link.wire_version = apv;
        self.link.features = features;
        self.begin_authentication();
    }

    /// The peer is who it should be: send everything it has to know. spec: wire-protocol 4.1 (5..7)
    pub(super) fn authenticated(&mut self) {
        self.link.handshake = Handshake::Running;
        // The reader of the meta socket knows the size of a header now.
        self.wakes.insert(Wakes::RECEIVER);
        self.queue_control(Control::Protocol);
        let any_volume = self.volumes().next().is_some();
        self.link.state_sent = any_volume;
        for id in self.volume_ids() {
            if self.volume(id).is_some() {
                self.send_volume_parameters(id);
            }
        }
        self.link.introducing = true;
        let _outcome = self.change_connection(Change::conn(Conn::WFReportParams), Kind::Hard, false);
        self.link.was_up = true;
        self.link.up_since_ms = self.now_ms;
        // Single shot. spec: wire-protocol 4.1
        self.link.net.discard_my_data = false;
    }

    /// The owner's sockets failed.
    pub fn link_failed(&mut self, failure: LinkFailure, now_ms: u64) {
        self.now_ms = now_ms;
        let consented = self.link.tear_down.filter(|_| self.meta_out.is_empty() && !self.link.is_closing());
        if let Some(change) = consented {
            // The peer has our consent to its disconnect, and is faster than we are in noticing that it is out.
            self.link.tear_down = None;
            let _outcome = self.change_connection(change, Kind::Hard, true);
            return;
        }
        if self.link.is_closing() {
            self.link_fault(state_after(failure));
            return;
        }
        let broke = matches!(failure, LinkFailure::DataReceive | LinkFailure::MetaReceive | LinkFailure::Send);
        if broke && self.asks_to_disconnect() {
            // A peer that has agreed closes both sockets, and its answer is on one of them. Its consent is not to be taken for
            // a loss, which the peer may be fenced for.
            self.link.ended.get_or_insert(Ended { failure, since_ms: now_ms });
            return;
        }
        self.log(LogLine::LinkFailed { failure });
        if failure == LinkFailure::MetaReceive && self.link.state_sent {
            // A peer that refuses us closes both sockets. What it has said on the other one makes us come to a verdict
            // of our own.
            self.link.ended = Some(Ended { failure, since_ms: now_ms });
            return;
        }
        self.link_fault(state_after(failure));
    }

    /// One of the sockets has ended, and the other one may still say why: the owner leaves both as they are, and goes on with
    /// what the other one has, until the link is to be closed. No longer than `ping-timeout`. spec: wire-protocol 11.1
    pub fn awaits_reason(&self) -> bool {
        self.link.ended.is_some() && !self.link.is_closing()
    }

    /// The clock: nothing has come that makes the end of a socket something else than a loss.
    pub(super) fn check_ended(&mut self) {
        let Some(Ended { failure, since_ms }) = self.link.ended.filter(|_| !self.link.is_closing()) else { return };
        let limit_ms = u64::from(self.link.net.ping_timeo) * 100;
        let disconnects = self.asks_to_disconnect();
        let meets = failure == LinkFailure::MetaReceive && self.link.state_sent;
        if (disconnects || meets) && self.now_ms.saturating_sub(since_ms) <= limit_ms {
            return;
        }
        self.link.ended = None;
        if disconnects {
            self.log(LogLine::LinkFailed { failure });
        }
        self.link_fault(state_after(failure));
    }

    /// A peer ignores what it hears of a volume that it does not have, and says nothing about it. Where nothing else is left of
    /// the handshake after `timeout`, nobody waits for such a volume any more; it joins in when the peer gets it.
    /// spec: state-machine 6 (7): the C module lets every command wait for it, for ever.
    pub(super) fn check_missing_volumes(&mut self) {
        let up_ms = self.now_ms.saturating_sub(self.link.up_since_ms);
        let is_over = self.link.state_sent
            && self.link.protocol_checked
            && !self.link.introducing
            && up_ms > u64::from(self.link.net.timeout) * 100
            && self
                .volumes_with(|volume| volume.state.conn == Conn::WFReportParams && volume.peer.introduced)
                .next()
                .is_none();
        if !is_over {
            return;
        }
        self.link.state_sent = false;
        for id in self.volume_ids() {
            if self.volume(id).is_some_and(|volume| volume.state.conn == Conn::WFReportParams) {
                self.log(LogLine::MissingVolume { volume: id });
            }
        }
    }

    /// A peer that is there, and has told of itself what comes before its state, and then nothing more: until it does, whoever gives a
    /// command waits. It is given up after twice `timeout`. (The C module waits for ever.)
    pub(super) fn check_handshake_ends(&mut self) {
        let limit_ms = u64::from(self.link.net.timeout) * 2 * 100;
        if !self.link.is_running() || self.link.is_closing() || !self.receiver_may_read() {
            // What it has sent may lie in the socket.
            self.link.reads_since_ms = self.now_ms;
            return;
        }
        let (now_ms, reads_since_ms) = (self.now_ms, self.link.reads_since_ms);
        let is_mute = |volume: &Volume<S>| {
            volume.state.conn == Conn::WFReportParams
                && volume.peer.introduced
                && !volume.peer.state_told
                && now_ms.saturating_sub(volume.peer.introduced_ms.max(reads_since_ms)) > limit_ms
        };
        if self.volumes_with(is_mute).next().is_some() {
            let _fault = self.fail(Fault::HandshakeTimeout { limit_ms }, Conn::Timeout);
        }
    }

    /// Gives the connection up. The first reason sticks. spec: wire-protocol 11.1
    pub(super) fn link_fault(&mut self, conn: Conn) {
        let already = self.link.conn < Conn::Unconnected
            || (self.link.is_closing() && self.link.conn != Conn::Unconnected && conn != Conn::Disconnecting);
        if already {
            return;
        }
        if self.link.conn == Conn::Unconnected && conn != Conn::Disconnecting {
            return;
        }
        let _outcome = self.change_connection(Change::conn(conn), Kind::Hard, false);
        self.wakes.insert(Wakes::LINK);
        self.wakes.insert(Wakes::RECEIVER);
    }

    /// How the owner leaves the sockets of a connection that is being given up. spec: wire-protocol 11.1
    pub fn parting(&self, now_ms: u64) -> Parting {
        let still = |until_ms: Option<u64>| until_ms.is_some_and(|until_ms| now_ms < until_ms);
        match self.link.conn {
            Conn::Disconnecting if still(self.link.verdict_until_ms) => Parting::PeerJudges,
            Conn::TearDown if still(self.link.consent_until_ms) => Parting::PeerCloses,
            _ => Parting::AtOnce,
        }
    }

    /// The peer's disconnect has been consented to, and the answer is out.
    pub(super) fn tear_down(&mut self, change: Change) {
        let patience_ms = u64::from(self.link.net.ping_timeo).saturating_mul(100);
        self.link.consent_until_ms = Some(self.now_ms.saturating_add(patience_ms));
        let _outcome = self.change_connection(change, Kind::Hard, true);
    }

    /// True when nothing of the old connection is under way: not on a disk, not in a sender.
    pub fn link_drained(&mut self) -> bool {
        if !self.link.is_closing() {
            return false;
        }
        self.abandon_peer_requests();
        self.flush_abandoned();
        self.peers_idle() && self.link.sending == Sending::Nothing && !self.link.sending_meta
    }

    /// The sockets are gone and nobody uses them: settle what was under way. spec: wire-protocol 11.2
    pub fn link_closed(&mut self, now_ms: u64) -> Reconnect {
        self.now_ms = now_ms;
        let was_up = self.link.was_up;
        self.abandon_peer_requests();
        self.forget_packets();
        self.link.held_request = None;
        self.reopen_gate();
        self.link.handshake = Handshake::Down;
        self.link.wire_version = VERSION_BEFORE_FEATURES;
        self.link.state_sent = false;
        self.link.bitmap_for = None;
        self.link.ping_outstanding = false;
        self.link.ping_queued = false;
        self.link.ping_again = false;
        for id in self.volume_ids() {
            self.cancel_resync(id);
            self.with_volume(id, |volume| {
                volume.peer.introduced = false;
                volume.peer.state_told = false;
                volume.peer.uuids = None;
                volume.peer.negotiates = false;
                volume.peer.says_worse = false;
                volume.late_fixup = None;
                volume.resync.sender = None;
                volume.resync.receiver = None;
                volume.resync.disowned = false;
                volume.consider_resync = false;
            });
        }
        if self.susp.any() {
            self.keep_network_parts();
        } else {
            self.fail_network_parts();
        }
        self.close_epoch();
        for id in self.volume_ids() {
            self.queue_job(id, Job::Write(Then::Nothing));
            self.sync_metadata(id);
        }
        self.fence_lost_peer();
        let next = if self.link.conn == Conn::Disconnecting { Conn::StandAlone } else { Conn::Unconnected };
        let _outcome = self.change_connection(Change::conn(next), Kind::Hard, false);
        self.admin_step();
        match (next, was_up) {
            (Conn::StandAlone, _) => Reconnect::Never,
            (_, true) => Reconnect::AtOnce,
            (_, false) => Reconnect::AfterOneSecond,
        }
    }

    // Keepalive. spec: wire-protocol 10.1

    /// How long the meta reader should wait for a packet, in milliseconds.
    pub fn meta_receive_timeout_ms(&self) -> u32 {
        if self.link.ping_outstanding {
            self.link.net.ping_timeo.saturating_mul(100)
        } else {
            self.link.net.ping_int.saturating_mul(1000)
        }
    }

    /// Nothing arrived on the meta socket in that time. `data_arrived`: something did on the data socket.
    ///
    /// # Errors
    /// [`Fault`] when a ping was not answered in time.
    pub fn meta_timeout(&mut self, data_arrived: bool, now_ms: u64) -> Result<(), Fault> {
        self.now_ms = now_ms;
        if data_arrived || self.link.is_closing() {
            return Ok(());
        }
        if !self.link.ping_outstanding {
            self.ping();
            return Ok(());
        }
        // A ping that was asked for while the reader waited for something else has its whole time still. One that waits behind other
        // packets is not late; that the socket takes nothing is noticed by whoever sends.
        let waited_ms = self.now_ms.saturating_sub(self.link.ping_since_ms);
        if self.link.ping_queued || waited_ms < u64::from(self.link.net.ping_timeo) * 100 {
            return Ok(());
        }
        Err(self.fail(Fault::PingTimeout, Conn::NetworkFailure))
    }

    /// Sending on the data socket makes no progress: is the peer still there? spec: wire-protocol 10.1
    pub fn ping_wanted(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        if self.link.is_running() && self.link.conn == Conn::WFReportParams && !self.link.ping_outstanding {
            self.ping();
        }
    }

    fn ping(&mut self) {
        self.link.ping_outstanding = true;
        self.link.ping_queued = true;
        self.queue_meta(MetaOut::Ping);
    }

    /// The ping goes to the socket now.
    pub(super) fn ping_sent(&mut self) {
        self.link.ping_queued = false;
        self.link.ping_since_ms = self.now_ms;
    }

    /// Asks for a ping that is sent from now on: its answer proves that the peer has processed everything that was
    /// queued for the meta socket before.
    pub(super) fn fresh_ping(&mut self) {
        if self.link.ping_outstanding {
            self.link.ping_again = true;
        } else {
            self.ping();
        }
    }

    /// P_PING_ACK.
    pub(super) fn ping_answered(&mut self) {
        self.link.ping_outstanding = false;
        if core::mem::take(&mut self.link.ping_again) {
            self.ping();
            return;
        }
        self.resync_ping_answered();
        self.admin_ping_answered();
    }

    /// A request that the peer has had for too long, looked for once a second. What is still to be sent does not count: a
    /// slow network is not a dead peer, and one that takes nothing is noticed by whoever sends.
    /// spec: wire-protocol 10.2; state-machine 21.2
    pub(super) fn check_request_timeouts(&mut self) {
        if self.now_ms < self.link.requests_checked_ms.saturating_add(1000) {
            return;
        }
        self.link.requests_checked_ms = self.now_ms;
        let limit_ms = u64::from(self.link.net.timeout) * 100 * u64::from(self.link.net.ko_count);
        let up_ms = self.now_ms.saturating_sub(self.link.up_since_ms);
        if limit_ms == 0 || self.link.conn < Conn::WFReportParams || up_ms < limit_ms {
            return;
        }
        let oldest_write = self.oldest_unanswered().or_else(|| self.oldest_barrier());
        // A command waits for what the peer has been asked for. (In the C module for ever.)
        let oldest = oldest_write.into_iter().chain(self.admin.ask_went_ms()).min();
        if oldest.is_some_and(|since_ms| self.now_ms.saturating_sub(since_ms) > limit_ms) {
            self.log(LogLine::RequestTimeout { limit_ms });
            self.link_fault(Conn::Timeout);
        }
    }

    /// When the oldest request that waits for its own answer was sent.
    fn oldest_unanswered(&self) -> Option<u64> {
        let slots = (0..self.requests.capacity() as u16).filter_map(|index| self.requests.at(index));
        let waits = |slot: &&Request| slot.phase != Phase::Free && slot.net == Net::Waiting && !slot.kept;
        slots.filter(waits).map(|slot| slot.sent_ms).min()
    }

    /// When the last barrier was sent, if the oldest write waits for nothing but the acknowledgement of its own.
    fn oldest_barrier(&self) -> Option<u64> {
        let oldest = self.log.front().and_then(|index| self.requests.at(index))?;
        let answered = matches!(oldest.net, Net::Ok | Net::Failed) && !oldest.kept;
        let closed = self.link.sent_writes == 0 || oldest.epoch != self.link.sent_epoch;
        // The C module does not tell about an epoch in which it refused a write for one of its own.
        let is_told = self.departed.of(oldest.epoch) == 0;
        (answered && closed && is_told).then_some(self.link.barrier_sent_ms)
    }

    /// spec: wire-protocol 10.3; state-machine 20
    pub(super) fn check_congestion(&mut self, id: VolumeId) {
        let net = &self.link.net;
        if net.on_congestion == OnCongestion::Block || self.link.apv < 96 {
            return;
        }
        // The peer may have asked for another protocol since that was configured; under B and C no write ends without it.
        if net.on_congestion == OnCongestion::PullAhead && net.wire_protocol != WireProtocol::A {
            return;
        }
        let Some(volume) = self.volume(id) else { return };
        // Nor before the peer knows what it lacks: it would copy what is announced from now on, and take that for all. (In the C module it may.)
        let not_met = !matches!(
            volume.state.conn,
            Conn::Connected | Conn::SyncSource | Conn::PausedSyncS | Conn::VerifyS | Conn::VerifyT
        );
        if volume.state.disk != Disk::UpToDate || not_met {
            return;
        }
        let fill = net.cong_fill > 0 && self.sectors_in_flight(id) >= u64::from(net.cong_fill);
        let extents = volume.disk.as_ref().is_some_and(|disk| disk.log.used() >= net.cong_extents);
        if !(fill || extents) {
            return;
        }
        let to = if net.on_congestion == OnCongestion::PullAhead { Conn::Ahead } else { Conn::Disconnecting };
        // A target that is done is not Inconsistent any more. Until it tells that it is Outdated it might be taken for good.
        let pdsk = volume.pdsk_when_ahead();
        self.close_epoch();
        let _outcome = if to == Conn::Ahead {
            self.change(id, Change::conn(to).pdsk(pdsk), Kind::Soft)
        } else {
            self.change_connection(Change::conn(to), Kind::Soft, false)
        };
    }

    /// A barrier was acknowledged: is the congestion of a volume over? spec: wire-protocol 10.3
    pub(super) fn congestion_ended(&mut self) {
        let at_ms = self.now_ms + 1000;
        for id in self.volume_ids() {
            // Not once more while the program that is asked before the resync still runs.
            let waits = |volume: &super::Volume<S>| {
                volume.state.conn == Conn::Ahead && volume.resync.start == super::volume::ResyncStart::No
            };
            if self.volume(id).is_some_and(waits) && self.sectors_in_flight(id) == 0 {
                self.with_volume(id, |volume| _ = volume.catch_up_at_ms.get_or_insert(at_ms));
            }
        }
    }

    /// The time has come to resync what was only announced, when nothing of this volume is unanswered in either direction.
    pub(super) fn catch_up(&mut self) {
        let now_ms = self.now_ms;
        for id in self.volume_ids() {
            let idle = |volume: &&super::Volume<S>| volume.unacked == 0 && volume.resync.requests_in_flight == 0;
            let due = |volume: &&super::Volume<S>| volume.catch_up_at_ms.is_some_and(|at_ms| now_ms >= at_ms);
            let Some(conn) = self.volume(id).filter(due).filter(idle).map(|volume| volume.state.conn) else { continue };
            self.with_volume(id, |volume| volume.catch_up_at_ms = None);
            if conn == Conn::Ahead {
                self.prepare_resync(id, Conn::SyncSource);
            }
        }
    }

    /// Sectors of this volume's writes sent or queued and not yet acknowledged by a barrier.
    fn sectors_in_flight(&self, id: VolumeId) -> u64 {
        let mut sectors = 0;
        let mut at = self.log.front();
        while let Some(index) = at {
            let slot = self.requests.at(index).filter(|slot| slot.volume == id);
            sectors += slot.map_or(0, |slot| u64::from(slot.io.size_bytes / 512));
            at = self.log.next(&self.requests, index);
        }
        sectors
    }

    /// Tells the peer about a generation that was made while connected.
    pub(super) fn announce_skip_initial_sync(&mut self, id: VolumeId) {
        if let Some((uuids, version)) = self.own_uuids(id, UuidFlags::SKIP_INITIAL_SYNC) {
            self.queue_control(Control::Uuids { volume: id, uuids, version });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Departed;
    use crate::storage::HeapStorage;

    /// Seed 60201444 with two Primaries throughout: of more epochs than there are requests all writes had been refused, and the
    /// acknowledgement of the first one was taken for a mistake of the peer.
    #[test]
    fn an_epoch_that_has_lost_its_place_is_not_taken_for_one_that_nothing_has_left() {
        let mut departed = Departed::<HeapStorage>::new(4).expect("memory");
        let first = u32::MAX - 1;
        let epochs = (0..7).map(|number| first.wrapping_add(number));
        for epoch in epochs.clone() {
            assert_eq!(departed.of(epoch), 0);
            departed.count(epoch);
            departed.count(epoch);
        }
        let known: Vec<u32> = epochs.map(|epoch| departed.of(epoch)).collect();
        assert_eq!(known, [u32::MAX, u32::MAX, u32::MAX, 2, 2, 2, 2]);
        assert_eq!(departed.of(first.wrapping_add(7)), 0);
        departed.clear();
        assert_eq!(departed.of(first), 0);
    }
}
