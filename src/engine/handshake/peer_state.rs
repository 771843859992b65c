// SPDX-License-Identifier: GPL-2.0
//! The peer's state packet: what this node makes of it.
//!
//! [`receive_state`] is asked once, and, if it wants the decision about a resync, a second time with the outcome. The
//! own state must be the same both times; if it changed meanwhile the caller starts over.

use super::decide::{RefuseReason, SyncDecision};
use crate::state::{Conn, Disk, Role, State};
use core::fmt;

/// The outcome of the decision about a resync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeResult {
    /// The connection state to go to: Connected, WFBitMapS or WFBitMapT.
    To(Conn),
    /// The nodes do not come together.
    Failed {
        /// The peer only asked for a dry run.
        peer_dry_run: bool,
        /// The data tells it, and the peer comes to the same verdict whoever is Primary.
        both_refuse: bool,
    },
}

impl HandshakeResult {
    /// Of a decision; `None` for one that is not final.
    pub const fn of(decision: SyncDecision, peer_dry_run: bool) -> Option<Self> {
        match decision {
            SyncDecision::Connected => Some(Self::To(Conn::Connected)),
            SyncDecision::SyncSource { .. } => Some(Self::To(Conn::WFBitMapS)),
            SyncDecision::SyncTarget { .. } => Some(Self::To(Conn::WFBitMapT)),
            SyncDecision::Refuse(reason) => {
                let both_refuse = matches!(reason, RefuseReason::Unrelated | RefuseReason::SplitBrain);
                Some(Self::Failed { peer_dry_run, both_refuse })
            }
            SyncDecision::Demote => None,
        }
    }
}

/// What [`receive_state`] looks at.
#[derive(Clone, Copy, Debug)]
pub struct PeerStateInput {
    /// Own state.
    pub own: State,
    /// The state in the packet, as the peer sees it.
    pub received: State,
    /// The peer's generations are known.
    pub uuids_known: bool,
    /// The peer's generations came with flag 4: its disk would be Inconsistent.
    pub peer_negotiates_inconsistent: bool,
    /// Both disks were Inconsistent and the peer became Primary since the last state packet.
    pub consider_resync: bool,
    /// All bits that are still set belong to failed blocks.
    pub resync_complete: bool,
    /// What the own disk was found to be at attach, while it is `Negotiating`.
    pub negotiated: Option<Disk>,
    /// I/O is suspended.
    pub suspended: bool,
    /// A new data generation is due when I/O goes on.
    pub new_generation_due: bool,
    /// Of what waits for the peer because I/O is suspended it does not take everything: with other options it has no packet for zeroes.
    pub takes_not_all: bool,
    /// The nodes have agreed to overwrite the peer's disk, and the peer has not told that it begins. What says that it is connected
    /// and nothing more was sent before: the answer to the request comes over the other socket.
    pub target_unheard: bool,
    /// The own disk was lost while the peer was only told of writes, and that one has not been promoted since: it lacks them, whatever it
    /// tells.
    pub peer_lacks_writes: bool,
    /// The own disk is Outdated, and the peer, a Primary without a disk, may still refuse its generation.
    pub unattested: bool,
    /// The outcome of the decision, in the second call.
    pub handshake: Option<HandshakeResult>,
}

/// Why the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerStateRefusal {
    /// It is already going down: nothing more to do.
    GoingDown,
    /// The decision failed: Disconnecting (hard), then StandAlone.
    Disconnect,
    /// Both nodes want to be the source of the resync, or both its target: Disconnecting (hard), then StandAlone.
    SameSide {
        /// The source.
        source: bool,
    },
    /// The source has pulled ahead, and has not sent its bitmap: ProtocolError, this node connects again.
    AheadTooEarly,
    /// The decision failed and the peer only asked for a dry run: ProtocolError, this node connects again.
    PeerDryRun,
    /// The peer was rebooted while I/O is frozen here: drop the transfer log, start a new data generation, ProtocolError
    /// (hard) with the administrator's suspension cleared.
    PeerRebooted,
}

impl fmt::Display for PeerStateRefusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::GoingDown => "the connection is already going down",
            Self::Disconnect => "the nodes cannot agree on the data",
            Self::AheadTooEarly => "the peer pulls ahead before it has told what this node lacks",
            Self::SameSide { source: true } => "both nodes want to be the source of the resync",
            Self::SameSide { source: false } => "both nodes want to be the target of the resync",
            Self::PeerDryRun => "the peer only asked what would happen",
            Self::PeerRebooted => "the peer was rebooted while I/O is frozen here",
        })
    }
}

/// What to do because of a state packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerStateAction {
    /// The target is done: finish the resync.
    FinishResync,
    /// The target says it is done but blocks are still out of sync here: nothing.
    ResyncNotComplete,
    /// The target could not write everything and has given up: end the resync, the peer's disk stays Inconsistent.
    ResyncFailed,
    /// The comparing side is done: finish the online verify.
    FinishVerify,
    /// Decide about a resync and call again.
    RunHandshake {
        /// What the peer's disk is worth.
        peer_disk: Disk,
    },
    /// The decision failed while the own disk is `Negotiating`: disk Failed (hard), then start over with the new state.
    FailOwnDisk,
    /// Change the own state. If that is refused: Disconnecting. Afterwards forget discard-my-data of this volume and
    /// write meta data if it changed.
    Apply {
        /// The state wanted, not yet sanitised.
        new: State,
        /// As a request: this establishes the connection. Otherwise as a fact.
        soft: bool,
        /// Then send UUIDs and state: the peer does not know yet that a resync is wanted.
        send_uuids_and_state: bool,
    },
    /// The connection ends.
    Refuse(PeerStateRefusal),
}

/// What to do because of the peer's state packet. The mark `consider_resync` is used up by it.
// spec: state-machine 14.3, wire-protocol 9.4
pub fn receive_state(input: &PeerStateInput) -> PeerStateAction {
    let (own, received) = (input.own, input.received);
    if own.conn <= Conn::TearDown {
        return PeerStateAction::Refuse(PeerStateRefusal::GoingDown);
    }
    let mut peer_disk = real_disk(input);
    match end_of_sync(input, peer_disk) {
        Sync::Ended(action) => return action,
        Sync::Goes(disk) => peer_disk = disk,
    }
    let mut conn = own.conn;
    if conn == Conn::WFReportParams {
        conn = Conn::Connected;
    }
    if received.conn == Conn::Ahead {
        conn = Conn::Behind;
    }
    if wants_handshake(input) {
        match input.handshake {
            None => return PeerStateAction::RunHandshake { peer_disk },
            Some(HandshakeResult::To(decided)) => conn = decided,
            Some(HandshakeResult::Failed { .. }) if own.disk == Disk::Negotiating => {
                return PeerStateAction::FailOwnDisk;
            }
            Some(HandshakeResult::Failed { .. }) if received.disk == Disk::Negotiating => {
                (peer_disk, conn) = (Disk::Diskless, Conn::Connected);
            }
            Some(HandshakeResult::Failed { peer_dry_run: true, .. }) => {
                return PeerStateAction::Refuse(PeerStateRefusal::PeerDryRun);
            }
            Some(HandshakeResult::Failed { peer_dry_run: false, .. }) => {
                return PeerStateAction::Refuse(PeerStateRefusal::Disconnect);
            }
        }
    }
    if received.conn == Conn::Ahead && (own.conn == Conn::WFBitMapT || conn == Conn::WFBitMapT) {
        // As source it would go on with what it announces from now on, and the end of that would count as the end of all. (In the C module
        // it does.)
        return PeerStateAction::Refuse(PeerStateRefusal::AheadTooEarly);
    }
    if conn == received.conn && matches!(conn, Conn::WFBitMapS | Conn::WFBitMapT) {
        // The policies, or what the administrator wants, made each node go by another rule. Each would wait for ever for the
        // other one. (The C module does.)
        return PeerStateAction::Refuse(PeerStateRefusal::SameSide { source: conn == Conn::WFBitMapS });
    }
    apply(input, conn, peer_disk)
}

/// Step 1: a disk that is being negotiated counts as what it would be.
fn real_disk(input: &PeerStateInput) -> Disk {
    match (input.received.disk, input.peer_negotiates_inconsistent) {
        (Disk::Negotiating, true) => Disk::Inconsistent,
        (Disk::Negotiating, false) => Disk::Consistent,
        (disk, _) => disk,
    }
}

/// What the packet says about a resync or verify that is under way.
enum Sync {
    Ended(PeerStateAction),
    /// It goes on, or there is none: what the peer's disk counts as.
    Goes(Disk),
}

/// Steps 3 to 5.
fn end_of_sync(input: &PeerStateInput, peer_disk: Disk) -> Sync {
    let (own, received) = (input.own, input.received);
    let was_target = matches!(own.pdsk, Disk::Inconsistent | Disk::Consistent);
    let both_good = own.disk == Disk::UpToDate && peer_disk == Disk::UpToDate;
    if input.target_unheard && received.conn == Conn::Connected && peer_disk >= Disk::Inconsistent {
        // Neither is its disk good nor is the resync over. (The C module takes it for good again.)
        return Sync::Goes(Disk::Inconsistent);
    }
    if input.peer_lacks_writes && peer_disk == Disk::UpToDate {
        // Sent before it had heard of what it lacks, or by a C module, to which the loss of this disk makes its own good. (The C module
        // reads there.)
        return Sync::Goes(own.pdsk);
    }
    if was_target && both_good && own.conn > Conn::Connected {
        if received.conn > Conn::Connected && received.conn < Conn::SyncSource {
            // The peer has not heard of the resync yet.
            return Sync::Goes(Disk::Inconsistent);
        }
        // Not from a node that is Ahead: the peer has not heard of that, and will lack something.
        if (Conn::SyncSource..Conn::Ahead).contains(&own.conn) && received.conn == Conn::Connected {
            let complete = input.resync_complete;
            return Sync::Ended(if complete {
                PeerStateAction::FinishResync
            } else {
                PeerStateAction::ResyncNotComplete
            });
        }
    }
    let source = matches!(own.conn, Conn::SyncSource | Conn::PausedSyncS) && own.disk == Disk::UpToDate;
    if source && received.conn == Conn::WFSyncUUID {
        // The target is about to start, or waits for its turn; its disk is Inconsistent as soon as it does, and nothing tells so.
        return Sync::Goes(Disk::Inconsistent);
    }
    if source && was_target && peer_disk == Disk::Inconsistent && received.conn == Conn::Connected {
        return Sync::Ended(PeerStateAction::ResyncFailed);
    }
    if own.conn == Conn::VerifyT && both_good && received.conn == Conn::Connected {
        return Sync::Ended(PeerStateAction::FinishVerify);
    }
    let outrun = own.pdsk == Disk::UpToDate
        && peer_disk == Disk::Inconsistent
        && own.conn == Conn::Connected
        && received.conn > Conn::SyncSource;
    // This node finished the resync before the peer told so.
    Sync::Goes(if outrun { Disk::UpToDate } else { peer_disk })
}

/// Step 7: whether the decision about a resync is due.
fn wants_handshake(input: &PeerStateInput) -> bool {
    let (own, received) = (input.own, input.received);
    let negotiable = input.uuids_known && received.disk >= Disk::Negotiating && own.disk >= Disk::Negotiating;
    let connected = own.conn == Conn::Connected;
    let negotiating = own.disk == Disk::Negotiating || received.disk == Disk::Negotiating;
    let peer_resyncs = (Conn::StartingSyncS..=Conn::WFBitMapT).contains(&received.conn);
    negotiable
        && (own.conn < Conn::Connected
            || (connected && negotiating)
            || input.consider_resync
            || (connected && peer_resyncs))
}

/// Steps 9 to 12.
fn apply(input: &PeerStateInput, conn: Conn, peer_disk: Disk) -> PeerStateAction {
    let (own, received) = (input.own, input.received);
    // A peer with a disk answers to our generations with its own. What comes before them was sent before it knew.
    let answered = input.uuids_known || received.disk < Disk::Negotiating;
    let negotiated = matches!(conn, Conn::Connected | Conn::WFBitMapS) && own.disk == Disk::Negotiating && answered;
    // A disk that stayed Outdated because the peer had none is found to be as good as the one that the peer has attached now.
    let equal = input.handshake == Some(HandshakeResult::To(Conn::Connected)) && own.disk == Disk::Outdated;
    // What a Primary without a disk tells as a connected one it has told after it has taken this generation.
    let attested = input.unattested && received.conn == Conn::Connected;
    let own_disk = if equal || attested { Disk::UpToDate } else { own.disk };
    let disk = input.negotiated.filter(|_| negotiated).unwrap_or(own_disk);
    let peer_isp = received.aftr_isp || received.user_isp;
    let new = State { conn, disk, peer: received.role, pdsk: peer_disk, peer_isp, ..own };
    let soft = own.conn < Conn::Connected && conn >= Conn::Connected;
    let frozen = input.suspended && input.new_generation_due;
    // Its disk was attached anew, and may have been outdated since. (The C module does not think of that.)
    let rebooted = matches!(peer_disk, Disk::Consistent | Disk::Outdated);
    if frozen && (rebooted || input.takes_not_all) && conn == Conn::Connected && own.conn < Conn::Connected {
        return PeerStateAction::Refuse(PeerStateRefusal::PeerRebooted);
    }
    let wants_resync = own.conn > Conn::WFReportParams
        && conn > Conn::Connected
        && received.conn <= Conn::Connected
        && received.disk != Disk::Negotiating;
    // A disk that is not taken has to come to the same verdict, which it does where this node refused neither because it is Primary nor
    // for its own disk. (The C module leaves it waiting.)
    let same_verdict = match input.handshake {
        Some(HandshakeResult::Failed { both_refuse, .. }) => both_refuse || own.role == Role::Secondary,
        _ => false,
    };
    let not_taken = own.conn > Conn::WFReportParams
        && received.disk == Disk::Negotiating
        && own.disk >= Disk::Outdated
        && same_verdict;
    let send_uuids_and_state = wants_resync || not_taken;
    PeerStateAction::Apply { new, soft, send_uuids_and_state }
}

#[cfg(test)]
mod tests {
    use super::super::decide::RefuseReason;
    use super::*;
    use crate::state::testing::Random;

    const GOOD: State = State {
        role: Role::Primary,
        peer: Role::Secondary,
        conn: Conn::Connected,
        disk: Disk::UpToDate,
        pdsk: Disk::UpToDate,
        aftr_isp: false,
        peer_isp: false,
        user_isp: false,
    };

    /// The packet of a connected peer with a good disk.
    const PEER: State = State { role: Role::Secondary, peer: Role::Primary, ..GOOD };

    fn input(own: State, received: State) -> PeerStateInput {
        PeerStateInput {
            own,
            received,
            uuids_known: true,
            peer_negotiates_inconsistent: false,
            consider_resync: false,
            resync_complete: false,
            negotiated: None,
            suspended: false,
            new_generation_due: false,
            takes_not_all: false,
            target_unheard: false,
            peer_lacks_writes: false,
            unattested: false,
            handshake: None,
        }
    }

    fn meeting() -> PeerStateInput {
        let own = State { conn: Conn::WFReportParams, peer: Role::Unknown, pdsk: Disk::Unknown, ..GOOD };
        input(own, State { conn: Conn::WFConnection, peer: Role::Unknown, pdsk: Disk::Unknown, ..PEER })
    }

    #[track_caller]
    fn applied(input: &PeerStateInput) -> (State, bool, bool) {
        match receive_state(input) {
            PeerStateAction::Apply { new, soft, send_uuids_and_state } => (new, soft, send_uuids_and_state),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn step_2_a_dying_connection_hears_nothing() {
        for conn in Conn::ALL.iter().copied().filter(|conn| *conn <= Conn::TearDown) {
            let action = receive_state(&input(State { conn, ..GOOD }, PEER));
            assert_eq!(action, PeerStateAction::Refuse(PeerStateRefusal::GoingDown));
        }
    }

    #[test]
    fn step_1_negotiating_counts_as_what_it_would_be() {
        let peer = State { disk: Disk::Negotiating, ..PEER };
        let consistent = input(GOOD, peer);
        assert_eq!(receive_state(&consistent), PeerStateAction::RunHandshake { peer_disk: Disk::Consistent });
        let bad = PeerStateInput { peer_negotiates_inconsistent: true, ..consistent };
        assert_eq!(receive_state(&bad), PeerStateAction::RunHandshake { peer_disk: Disk::Inconsistent });
    }

    #[test]
    fn step_3_end_of_resync() {
        let source = State { conn: Conn::SyncSource, pdsk: Disk::Inconsistent, ..GOOD };
        let done = PeerStateInput { resync_complete: true, ..input(source, PEER) };
        assert_eq!(receive_state(&done), PeerStateAction::FinishResync);
        assert_eq!(receive_state(&input(source, PEER)), PeerStateAction::ResyncNotComplete);
        let paused = State { conn: Conn::PausedSyncS, pdsk: Disk::Consistent, ..GOOD };
        assert_eq!(receive_state(&PeerStateInput { own: paused, ..done }), PeerStateAction::FinishResync);
        // Before this node is source the packet is no end.
        let early = State { conn: Conn::WFBitMapS, ..source };
        assert!(matches!(receive_state(&PeerStateInput { own: early, ..done }), PeerStateAction::Apply { .. }));
        // A peer that has not heard of the resync yet still is its target.
        let late = State { conn: Conn::WFBitMapT, ..PEER };
        assert_eq!(applied(&input(source, late)).0.pdsk, Disk::Inconsistent);
        // So does one that waits for another resync before it starts: what it says next may be that it is done.
        let waits = State { conn: Conn::WFSyncUUID, disk: Disk::Outdated, aftr_isp: true, ..PEER };
        assert_eq!(applied(&input(source, waits)).0, State { peer_isp: true, ..source });
    }

    #[test]
    fn a_target_that_gave_up_ends_the_resync() {
        let source = State { conn: Conn::SyncSource, pdsk: Disk::Inconsistent, ..GOOD };
        let gave_up = State { disk: Disk::Inconsistent, ..PEER };
        assert_eq!(receive_state(&input(source, gave_up)), PeerStateAction::ResyncFailed);
        let goes_on = State { conn: Conn::SyncTarget, ..gave_up };
        assert_eq!(applied(&input(source, goes_on)).0, source);
        // What was said before this node became the source is no end.
        let early = State { conn: Conn::WFBitMapS, ..source };
        assert_eq!(applied(&input(early, gave_up)).0, early);
    }

    #[test]
    fn what_was_said_before_the_consent_is_not_believed_after_it() {
        for conn in [Conn::StartingSyncS, Conn::SyncSource, Conn::PausedSyncS] {
            let source = State { conn, pdsk: Disk::Inconsistent, ..GOOD };
            for disk in [Disk::UpToDate, Disk::Consistent, Disk::Inconsistent] {
                let early = PeerStateInput { target_unheard: true, ..input(source, State { disk, ..PEER }) };
                assert_eq!(applied(&early).0, source, "{conn} {disk}");
            }
            let broken = State { disk: Disk::Failed, ..PEER };
            let broken = PeerStateInput { target_unheard: true, ..input(source, broken) };
            assert_eq!(applied(&broken).0.pdsk, Disk::Failed);
        }
    }

    #[test]
    fn a_peer_that_lacks_announced_writes_is_not_good() {
        let lost = State { disk: Disk::Failed, pdsk: Disk::Consistent, ..GOOD };
        let early = PeerStateInput { peer_lacks_writes: true, ..input(lost, PEER) };
        assert_eq!(applied(&early).0, lost);
        let worse = State { disk: Disk::Outdated, ..PEER };
        assert_eq!(applied(&PeerStateInput { received: worse, ..early }).0.pdsk, Disk::Outdated);
        assert_eq!(applied(&PeerStateInput { peer_lacks_writes: false, ..early }).0.pdsk, Disk::UpToDate);
    }

    #[test]
    fn step_4_end_of_verify() {
        let verify = State { conn: Conn::VerifyT, ..GOOD };
        assert_eq!(receive_state(&input(verify, PEER)), PeerStateAction::FinishVerify);
        let still = State { conn: Conn::VerifyS, ..PEER };
        assert_eq!(applied(&input(verify, still)).0, verify);
        let worse = State { disk: Disk::Inconsistent, ..PEER };
        assert_eq!(applied(&input(verify, worse)).0.pdsk, Disk::Inconsistent);
    }

    #[test]
    fn step_5_a_finished_peer_is_not_taken_back() {
        let late = State { conn: Conn::SyncTarget, disk: Disk::Inconsistent, ..PEER };
        assert_eq!(applied(&input(GOOD, late)).0.pdsk, Disk::UpToDate);
        let broken = State { conn: Conn::Connected, ..late };
        assert_eq!(applied(&input(GOOD, broken)).0.pdsk, Disk::Inconsistent);
    }

    #[test]
    fn step_6_connection_states() {
        let diskless = State { disk: Disk::Diskless, ..meeting().own };
        let (new, soft, _) = applied(&PeerStateInput { own: diskless, ..meeting() });
        assert_eq!((new.conn, new.peer, new.pdsk, soft), (Conn::Connected, Role::Secondary, Disk::UpToDate, true));
        let ahead = State { conn: Conn::Ahead, ..PEER };
        let (new, soft, _) = applied(&input(GOOD, ahead));
        assert_eq!((new.conn, soft), (Conn::Behind, false));
        // Not before it has told what this node lacks.
        let early = PeerStateAction::Refuse(PeerStateRefusal::AheadTooEarly);
        let waits = State { conn: Conn::WFBitMapT, disk: Disk::Outdated, ..GOOD };
        assert_eq!(receive_state(&input(waits, ahead)), early);
        let decided = |conn| {
            let handshake = Some(HandshakeResult::To(conn));
            receive_state(&PeerStateInput { received: ahead, handshake, ..meeting() })
        };
        assert_eq!(decided(Conn::WFBitMapT), early);
        assert!(matches!(decided(Conn::Connected), PeerStateAction::Apply { .. }));
    }

    #[test]
    fn step_7_when_the_decision_is_due() {
        let due = |input: &PeerStateInput| matches!(receive_state(input), PeerStateAction::RunHandshake { .. });
        assert!(due(&meeting()));
        assert!(!due(&PeerStateInput { uuids_known: false, ..meeting() }));
        assert!(!due(&PeerStateInput { received: State { disk: Disk::Diskless, ..PEER }, ..meeting() }));
        assert!(!due(&input(GOOD, PEER)));
        assert!(due(&input(State { disk: Disk::Negotiating, ..GOOD }, PEER)));
        assert!(due(&input(GOOD, State { disk: Disk::Negotiating, ..PEER })));
        assert!(due(&PeerStateInput { consider_resync: true, ..input(GOOD, PEER) }));
        for conn in Conn::ALL.iter().copied().filter(|conn| *conn >= Conn::Connected) {
            let expected =
                matches!(conn, Conn::StartingSyncS | Conn::StartingSyncT | Conn::WFBitMapS | Conn::WFBitMapT);
            assert_eq!(due(&input(GOOD, State { conn, ..PEER })), expected, "{conn}");
        }
        let syncing = State { conn: Conn::SyncTarget, disk: Disk::Inconsistent, ..GOOD };
        assert!(!due(&input(syncing, State { conn: Conn::WFBitMapS, ..PEER })));
    }

    #[test]
    fn step_7_outcomes() {
        let with = |input: PeerStateInput, handshake| PeerStateInput { handshake: Some(handshake), ..input };
        for conn in [Conn::Connected, Conn::WFBitMapS, Conn::WFBitMapT] {
            let (new, soft, _) = applied(&with(meeting(), HandshakeResult::To(conn)));
            assert_eq!((new.conn, soft), (conn, true));
        }
        let failed = HandshakeResult::Failed { peer_dry_run: false, both_refuse: false };
        let split = HandshakeResult::Failed { peer_dry_run: false, both_refuse: true };
        let dry = HandshakeResult::Failed { peer_dry_run: true, both_refuse: false };
        let refused = |input| match receive_state(&input) {
            PeerStateAction::Refuse(refusal) => refusal,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(with(meeting(), failed)), PeerStateRefusal::Disconnect);
        assert_eq!(refused(with(meeting(), dry)), PeerStateRefusal::PeerDryRun);
        let attaching = input(State { disk: Disk::Negotiating, ..GOOD }, PEER);
        assert_eq!(receive_state(&with(attaching, dry)), PeerStateAction::FailOwnDisk);
        let peer_attaches = input(GOOD, State { disk: Disk::Negotiating, ..PEER });
        let (new, soft, told) = applied(&with(peer_attaches, failed));
        assert_eq!((new.conn, new.pdsk, soft), (Conn::Connected, Disk::Diskless, false));
        assert!(!told, "the peer would not refuse because this node is Primary");
        assert!(applied(&with(peer_attaches, split)).2, "a Primary tells of a split brain");
    }

    #[test]
    fn decisions_become_connection_states() {
        let of = |decision| HandshakeResult::of(decision, true);
        assert_eq!(of(SyncDecision::Connected), Some(HandshakeResult::To(Conn::Connected)));
        assert_eq!(of(SyncDecision::SyncSource { full: true }), Some(HandshakeResult::To(Conn::WFBitMapS)));
        assert_eq!(of(SyncDecision::SyncTarget { full: false }), Some(HandshakeResult::To(Conn::WFBitMapT)));
        let refused = |reason| of(SyncDecision::Refuse(reason));
        let failed = |both_refuse| Some(HandshakeResult::Failed { peer_dry_run: true, both_refuse });
        assert_eq!(refused(RefuseReason::SplitBrain), failed(true));
        assert_eq!(refused(RefuseReason::TargetWhilePrimary), failed(false));
        assert_eq!(of(SyncDecision::Demote), None);
    }

    #[test]
    fn step_9_what_is_taken_over() {
        let peer = State { role: Role::Primary, disk: Disk::Outdated, aftr_isp: true, ..PEER };
        let (new, ..) = applied(&input(GOOD, peer));
        assert_eq!(new, State { peer: Role::Primary, pdsk: Disk::Outdated, peer_isp: true, ..GOOD });
        let resumed = applied(&input(State { peer_isp: true, ..GOOD }, PEER)).0;
        assert_eq!(resumed, GOOD, "the peer's own peer_isp does not count");
        assert!(applied(&input(GOOD, State { user_isp: true, ..PEER })).0.peer_isp);
        assert!(!applied(&input(GOOD, State { peer_isp: true, ..PEER })).0.peer_isp);
        let own = State { disk: Disk::Negotiating, ..GOOD };
        let base = PeerStateInput { negotiated: Some(Disk::Outdated), ..input(own, PEER) };
        for (conn, disk) in
            [(Conn::Connected, Disk::Outdated), (Conn::WFBitMapS, Disk::Outdated), (Conn::WFBitMapT, Disk::Negotiating)]
        {
            let (new, ..) = applied(&PeerStateInput { handshake: Some(HandshakeResult::To(conn)), ..base });
            assert_eq!(new.disk, disk, "{conn}");
        }
        let before_it_knew = PeerStateInput { uuids_known: false, ..base };
        assert_eq!(applied(&before_it_knew).0.disk, Disk::Negotiating);
        let without_disk = PeerStateInput { received: State { disk: Disk::Diskless, ..PEER }, ..before_it_knew };
        assert_eq!(applied(&without_disk).0.disk, Disk::Outdated);
    }

    #[test]
    fn a_node_that_is_ahead_does_not_end_the_resync_before() {
        let own = State { conn: Conn::Ahead, pdsk: Disk::Inconsistent, ..GOOD };
        for resync_complete in [false, true] {
            let (new, ..) = applied(&PeerStateInput { resync_complete, ..input(own, PEER) });
            assert_eq!(new, State { pdsk: Disk::UpToDate, ..own });
        }
    }

    #[test]
    fn step_10_a_rebooted_peer() {
        let received = State { disk: Disk::Consistent, ..meeting().received };
        let handshake = Some(HandshakeResult::To(Conn::Connected));
        let base = PeerStateInput { received, handshake, suspended: true, new_generation_due: true, ..meeting() };
        assert_eq!(receive_state(&base), PeerStateAction::Refuse(PeerStateRefusal::PeerRebooted));
        for harmless in [
            PeerStateInput { suspended: false, ..base },
            PeerStateInput { new_generation_due: false, ..base },
            PeerStateInput { received: meeting().received, ..base },
            PeerStateInput { handshake: Some(HandshakeResult::To(Conn::WFBitMapS)), ..base },
        ] {
            assert!(matches!(receive_state(&harmless), PeerStateAction::Apply { .. }));
        }
        let unable = PeerStateInput { received: meeting().received, takes_not_all: true, ..base };
        assert_eq!(receive_state(&unable), PeerStateAction::Refuse(PeerStateRefusal::PeerRebooted));
    }

    #[test]
    fn step_12_the_peer_is_told_of_a_wanted_resync() {
        let own = State { disk: Disk::Inconsistent, pdsk: Disk::Inconsistent, ..GOOD };
        let handshake = Some(HandshakeResult::To(Conn::WFBitMapT));
        let base = PeerStateInput { consider_resync: true, handshake, ..input(own, PEER) };
        assert!(applied(&base).2);
        let knows = State { conn: Conn::WFBitMapS, ..PEER };
        assert!(!applied(&PeerStateInput { received: knows, ..base }).2);
        let attaches = State { disk: Disk::Negotiating, ..PEER };
        assert!(!applied(&PeerStateInput { received: attaches, ..base }).2);
        let first = PeerStateInput { handshake, ..meeting() };
        assert!(!applied(&first).2);
        let none = PeerStateInput { handshake: Some(HandshakeResult::To(Conn::Connected)), ..base };
        assert!(!applied(&none).2);
    }

    #[test]
    fn property_any_packet_gets_an_answer() {
        let mut random = Random::new(9);
        for _ in 0..200_000 {
            let mut input = input(random.state(), random.state());
            input.uuids_known = random.flag();
            input.consider_resync = random.flag();
            input.resync_complete = random.flag();
            input.suspended = random.flag();
            input.new_generation_due = random.flag();
            input.takes_not_all = random.flag();
            input.negotiated = random.flag().then_some(Disk::Outdated);
            if let PeerStateAction::RunHandshake { peer_disk } = receive_state(&input) {
                assert_ne!(peer_disk, Disk::Negotiating);
                input.handshake = Some(HandshakeResult::To(Conn::WFBitMapS));
                assert!(!matches!(receive_state(&input), PeerStateAction::RunHandshake { .. }));
            }
            if let PeerStateAction::Apply { new, .. } = receive_state(&input) {
                assert_eq!((new.role, new.peer), (input.own.role, input.received.role));
                assert_ne!(new.conn, Conn::WFReportParams);
            }
        }
    }
}
