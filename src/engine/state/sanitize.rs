// SPDX-License-Identifier: GPL-2.0
//! Sanitising: a wanted state becomes one that is coherent in itself.
//!
//! Nothing is refused here. The rules run in a fixed order and later ones see what earlier ones made. The result is a
//! fixed point except in two cases, where one more pass changes it once (see the property test): a resumed resync has
//! a narrower disk range than a paused one, and a disk given up in rule 4 comes too late for rule 2.

use super::types::{Conn, Disk, FencingPolicy, Role, Rules, State};
use core::fmt;

/// What sanitising made of a wanted state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sanitized {
    /// The coherent state.
    pub state: State,
    /// The change makes all good data unreachable and I/O shall freeze: set the resource's `no_data` suspension.
    pub susp_no_data_raised: bool,
    /// The change loses sight of the peer and I/O shall freeze until it is fenced: set the `fencing` suspension.
    pub susp_fencing_raised: bool,
    /// What the administrator should read about it; the last one if there are several.
    pub warning: Option<Warning>,
}

/// A change that sanitising made and nobody asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warning {
    /// A disk was lost during online verify.
    VerifyAborted,
    /// A disk was lost during resync.
    ResyncAborted,
    /// The connection was lost while the worth of the disk was negotiated.
    ConnectionLostNegotiating,
    /// The connection state implies a better own disk than asked for.
    DiskUpgraded,
    /// The connection state implies a better peer disk than asked for.
    PeerDiskUpgraded,
}

impl fmt::Display for Warning {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::VerifyAborted => "online verify ended early: a disk is gone",
            Self::ResyncAborted => "resync ended early: a disk is gone",
            Self::ConnectionLostNegotiating => "connection lost before the worth of the disk was agreed",
            Self::DiskUpgraded => "own disk state raised to what the connection state implies",
            Self::PeerDiskUpgraded => "peer's disk state raised to what the connection state implies",
        })
    }
}

/// The disk states a connection state allows, lowest and highest.
struct Range {
    disk: (Disk, Disk),
    pdsk: (Disk, Disk),
}

/// The range table of rule 6.
// spec: state-machine 4 (range table), wire-protocol 9.3
const fn range(conn: Conn) -> Range {
    use Disk::{Consistent, Diskless, Inconsistent, Outdated, Unknown, UpToDate};
    match conn {
        Conn::StandAlone
        | Conn::Disconnecting
        | Conn::Unconnected
        | Conn::Timeout
        | Conn::BrokenPipe
        | Conn::NetworkFailure
        | Conn::ProtocolError
        | Conn::TearDown
        | Conn::WFConnection
        | Conn::WFReportParams => Range { disk: (Diskless, UpToDate), pdsk: (Inconsistent, Unknown) },
        Conn::Connected => Range { disk: (Diskless, UpToDate), pdsk: (Diskless, UpToDate) },
        Conn::WFBitMapT | Conn::PausedSyncT | Conn::StartingSyncT | Conn::WFSyncUUID | Conn::Behind => {
            Range { disk: (Inconsistent, Outdated), pdsk: (UpToDate, UpToDate) }
        }
        Conn::SyncTarget => Range { disk: (Inconsistent, Inconsistent), pdsk: (UpToDate, UpToDate) },
        Conn::WFBitMapS | Conn::PausedSyncS | Conn::StartingSyncS | Conn::Ahead => {
            Range { disk: (UpToDate, UpToDate), pdsk: (Inconsistent, Consistent) }
        }
        Conn::SyncSource => Range { disk: (UpToDate, UpToDate), pdsk: (Inconsistent, Inconsistent) },
        Conn::VerifyS | Conn::VerifyT => Range { disk: (UpToDate, UpToDate), pdsk: (UpToDate, UpToDate) },
    }
}

/// Makes `wanted`, to be entered from `old`, coherent.
// spec: state-machine 4
pub fn sanitize(old: State, wanted: State, rules: &Rules) -> Sanitized {
    let mut new = wanted;
    let mut warning = None;
    forget_the_peer(old, &mut new, rules);
    warning = end_sync_without_disks(old, &mut new).or(warning);
    warning = end_negotiation(old, &mut new, rules).or(warning);
    settle_while_connected(old, &mut new, rules);
    warning = clip(&mut new).or(warning);
    let susp_fencing_raised = rules.fencing == FencingPolicy::ResourceAndStonith && unfenced(new) && !unfenced(old);
    let susp_no_data_raised = rules.on_no_data_suspend && new.without_data() && !old.without_data();
    pause_or_resume(&mut new);
    Sanitized { state: new, susp_no_data_raised, susp_fencing_raised, warning }
}

/// Rules 1 and 2: without a connection nothing is known of the peer, except that its disk is bad. That is not known of one that is to
/// be resynced and has not been heard of since that was agreed on: its disk may be as good as ever. (The C module calls it Consistent
/// until the resync starts, and forgets that.)
fn forget_the_peer(old: State, new: &mut State, rules: &Rules) {
    if new.conn < Conn::Connected {
        new.peer_isp = false;
        new.peer = Role::Unknown;
        let agreed = old.conn >= Conn::Connected && old.pdsk == Disk::Inconsistent && new.pdsk == Disk::Inconsistent;
        let only_agreed = rules.target_unheard && agreed;
        if new.pdsk > Disk::Unknown || new.pdsk < Disk::Inconsistent || only_agreed {
            new.pdsk = Disk::Unknown;
        }
    }
    if new.conn == Conn::StandAlone && new.disk == Disk::Diskless && new.role == Role::Secondary {
        new.aftr_isp = false;
    }
}

/// Rule 3: no resync and no verify without two disks.
///
/// Nor a verify of a disk that could not do a write and is kept (`on-io-error pass_on`). (The C module goes on, by rule 6 with a
/// disk that counts as good, and reads from it what was there before that write.) A wish for a verify while a resync runs is left as it
/// is: it is refused, and must not end that resync, one of whose disks is Inconsistent.
fn end_sync_without_disks(old: State, new: &mut State) -> Option<Warning> {
    let verify = |state: &State| matches!(state.conn, Conn::VerifyS | Conn::VerifyT);
    let resync = old.conn > Conn::Connected && !verify(&old);
    let verify = verify(new);
    let worst = if verify && !resync { Disk::Inconsistent } else { Disk::Failed };
    if new.conn <= Conn::Connected || (new.disk > worst && new.pdsk > worst) {
        return None;
    }
    new.conn = Conn::Connected;
    Some(if verify { Warning::VerifyAborted } else { Warning::ResyncAborted })
}

/// Rule 4: a disk cannot negotiate with nobody.
fn end_negotiation(old: State, new: &mut State, rules: &Rules) -> Option<Warning> {
    if new.conn >= Conn::Connected || new.disk != Disk::Negotiating || old.disk < Disk::Negotiating {
        return None;
    }
    match rules.negotiated {
        Some((disk, pdsk)) if rules.ed_uuid_matches => {
            (new.disk, new.pdsk) = (disk, pdsk);
            None
        }
        _ => {
            (new.disk, new.pdsk) = (Disk::Diskless, Disk::Unknown);
            Some(Warning::ConnectionLostNegotiating)
        }
    }
}

/// Rule 5: connected and not behind, a complete disk is the newest.
///
/// Not so a disk that was known to be worse while connected: when rule 3 ends a resync because the source lost its disk,
/// the target still has the old data, and says so, which then counts; unless it was to be resynced only because the device has
/// grown, and what it has is as good as before. Nor does a disk that is known to be old become good because a node without a disk
/// connects, or is connected when that disk is attached. Only a Primary has seen the newest data, and takes no other generation; but
/// when the nodes meet it has not said so yet, see `Volume::note_unattested`. (The C module calls all of these UpToDate and goes on with
/// old data.)
fn settle_while_connected(old: State, new: &mut State, rules: &Rules) {
    if new.conn < Conn::Connected || new.conn >= Conn::Ahead {
        return;
    }
    let meets = old.conn < Conn::Connected;
    let own_stays_old =
        (meets || old.disk == Disk::Negotiating) && new.pdsk < Disk::Negotiating && !rules.target_of_growth;
    let peer_stays_old = meets && new.disk < Disk::Negotiating && new.role != Role::Primary;
    if own_stays_old && new.disk == Disk::Outdated || peer_stays_old && new.pdsk == Disk::Outdated {
        return;
    }
    for (before, disk, told) in [(old.disk, &mut new.disk, false), (old.pdsk, &mut new.pdsk, rules.peer_says_worse)] {
        let only_grows = old.conn == Conn::WFSyncUUID && rules.target_of_growth;
        let worse =
            old.conn >= Conn::Connected && (Disk::Inconsistent..Disk::UpToDate).contains(&before) && !only_grows;
        if matches!(*disk, Disk::Consistent | Disk::Outdated) && !worse && !told {
            *disk = Disk::UpToDate;
        }
    }
    // The target tells that it calls its disk Outdated until the resync starts: nothing new, and nothing to tell listeners.
    if old.conn == Conn::WFBitMapS
        && new.conn == Conn::WFBitMapS
        && old.pdsk == Disk::Consistent
        && new.pdsk == Disk::Outdated
    {
        new.pdsk = Disk::Consistent;
    }
}

/// Rule 6: both disks into the range of the connection state.
fn clip(new: &mut State) -> Option<Warning> {
    let range = range(new.conn);
    let own_raised = new.disk < range.disk.0;
    let peer_raised = new.pdsk < range.pdsk.0;
    new.disk = new.disk.clamp(range.disk.0, range.disk.1);
    new.pdsk = new.pdsk.clamp(range.pdsk.0, range.pdsk.1);
    match (own_raised, peer_raised) {
        (_, true) => Some(Warning::PeerDiskUpgraded),
        (true, false) => Some(Warning::DiskUpgraded),
        (false, false) => None,
    }
}

/// Condition of rule 7: a Primary that cannot know what its peer does.
fn unfenced(state: State) -> bool {
    state.role == Role::Primary && state.conn < Conn::Connected && state.pdsk > Disk::Outdated
}

/// Rules 9 and 10: a resync is paused exactly while some pause flag is set.
fn pause_or_resume(new: &mut State) {
    new.conn = match (new.conn, new.paused()) {
        (Conn::SyncSource, true) => Conn::PausedSyncS,
        (Conn::SyncTarget, true) => Conn::PausedSyncT,
        (Conn::PausedSyncS, false) => Conn::SyncSource,
        (Conn::PausedSyncT, false) => Conn::SyncTarget,
        (conn, _) => conn,
    };
}

#[cfg(test)]
mod tests {
    use super::super::testing::Random;
    use super::*;

    const CONNECTED: State = State {
        role: Role::Secondary,
        peer: Role::Secondary,
        conn: Conn::Connected,
        disk: Disk::UpToDate,
        pdsk: Disk::UpToDate,
        aftr_isp: false,
        peer_isp: false,
        user_isp: false,
    };

    fn sanitized(old: State, wanted: State) -> Sanitized {
        sanitize(old, wanted, &Rules::default())
    }

    #[test]
    fn an_outdated_disk_stays_that_when_a_peer_without_one_connects() {
        let meeting = State { conn: Conn::WFReportParams, disk: Disk::Outdated, pdsk: Disk::Unknown, ..CONNECTED };
        let met = State { disk: Disk::Outdated, pdsk: Disk::Diskless, ..CONNECTED };
        let own = |met, rules: &Rules| sanitize(meeting, met, rules).state.disk;
        let rules = Rules::default();
        assert_eq!(own(met, &rules), Disk::Outdated);
        // A Primary without a disk has not agreed to the generation yet.
        assert_eq!(own(State { peer: Role::Primary, ..met }, &rules), Disk::Outdated);
        // What was called Outdated for want of the new space only.
        assert_eq!(own(met, &Rules { target_of_growth: true, ..rules }), Disk::UpToDate);
        // With a disk the peer has compared the generations as well, and a Consistent one is not known to be old.
        assert_eq!(own(State { pdsk: Disk::UpToDate, ..met }, &rules), Disk::UpToDate);
        assert_eq!(own(State { disk: Disk::Consistent, ..met }, &rules), Disk::UpToDate);
        // The same for a disk that is attached beside it.
        let attaching = State { disk: Disk::Negotiating, pdsk: Disk::Diskless, ..CONNECTED };
        assert_eq!(sanitized(attaching, met).state.disk, Disk::Outdated);
        // As the node without the disk sees it.
        let meeting = State { disk: Disk::Diskless, pdsk: Disk::Unknown, ..meeting };
        let met = State { disk: Disk::Diskless, pdsk: Disk::Outdated, ..CONNECTED };
        let peers = |met| sanitize(meeting, met, &Rules::default()).state.pdsk;
        assert_eq!(peers(met), Disk::Outdated);
        assert_eq!(peers(State { role: Role::Primary, ..met }), Disk::UpToDate);
    }

    #[test]
    fn a_disk_that_was_known_to_be_worse_does_not_become_good_by_being_reported() {
        for (before, reported) in [
            (Disk::Inconsistent, Disk::Outdated),
            (Disk::Inconsistent, Disk::Consistent),
            (Disk::Outdated, Disk::Consistent),
        ] {
            let old = State { disk: Disk::Failed, pdsk: before, ..CONNECTED };
            assert_eq!(sanitized(old, State { pdsk: reported, ..old }).state.pdsk, reported);
        }
        let old = State { pdsk: Disk::Diskless, ..CONNECTED };
        assert_eq!(sanitized(old, State { pdsk: Disk::Consistent, ..old }).state.pdsk, Disk::UpToDate, "attached");
    }

    #[test]
    fn rule_1_without_connection_the_peer_is_unknown() {
        for (pdsk, known) in [
            (Disk::UpToDate, Disk::Unknown),
            (Disk::Consistent, Disk::Unknown),
            (Disk::Unknown, Disk::Unknown),
            (Disk::Outdated, Disk::Outdated),
            (Disk::Inconsistent, Disk::Inconsistent),
            (Disk::Negotiating, Disk::Unknown),
            (Disk::Diskless, Disk::Unknown),
        ] {
            let wanted = State { conn: Conn::NetworkFailure, peer: Role::Primary, pdsk, peer_isp: true, ..CONNECTED };
            let new = sanitized(CONNECTED, wanted).state;
            assert_eq!((new.peer, new.pdsk, new.peer_isp), (Role::Unknown, known, false));
        }
        let wanted = State { peer_isp: true, ..CONNECTED };
        assert_eq!(sanitized(CONNECTED, wanted).state, wanted);
    }

    #[test]
    fn rule_1_a_target_that_was_not_heard_of_is_unknown() {
        let source = State { conn: Conn::StartingSyncS, pdsk: Disk::Inconsistent, ..CONNECTED };
        let lost = State { conn: Conn::BrokenPipe, ..source };
        let unheard = Rules { target_unheard: true, ..Rules::default() };
        assert_eq!(sanitize(source, lost, &Rules::default()).state.pdsk, Disk::Inconsistent);
        assert_eq!(sanitize(source, lost, &unheard).state.pdsk, Disk::Unknown);
        // What is found out about it later, or is agreed on when the connection ends, is known.
        let alone = State { pdsk: Disk::Unknown, ..lost };
        let fenced = State { pdsk: Disk::Inconsistent, ..lost };
        assert_eq!(sanitize(alone, fenced, &unheard).state.pdsk, Disk::Inconsistent);
        let outdated = State { pdsk: Disk::Outdated, ..lost };
        assert_eq!(sanitize(source, outdated, &unheard).state.pdsk, Disk::Outdated);
    }

    #[test]
    fn rule_2_an_idle_volume_waits_for_nobody() {
        let wanted = State { aftr_isp: true, ..State::initial(Conn::StandAlone) };
        assert!(!sanitized(wanted, wanted).state.aftr_isp);
        for other in [
            State { role: Role::Primary, ..wanted },
            State { disk: Disk::UpToDate, ..wanted },
            State { conn: Conn::Unconnected, ..wanted },
        ] {
            assert!(sanitized(other, other).state.aftr_isp);
        }
    }

    #[test]
    fn rule_3_sync_and_verify_end_with_a_disk() {
        for disk in [Disk::Diskless, Disk::Attaching, Disk::Failed] {
            let own = sanitized(CONNECTED, State { conn: Conn::SyncSource, disk, ..CONNECTED });
            assert_eq!((own.state.conn, own.warning), (Conn::Connected, Some(Warning::ResyncAborted)));
            let peer = sanitized(CONNECTED, State { conn: Conn::VerifyT, pdsk: disk, ..CONNECTED });
            assert_eq!((peer.state.conn, peer.warning), (Conn::Connected, Some(Warning::VerifyAborted)));
        }
        for conn in [Conn::VerifyS, Conn::VerifyT] {
            let old = State { conn, ..CONNECTED };
            let own = sanitized(old, State { disk: Disk::Inconsistent, ..old }).state;
            assert_eq!((own.conn, own.disk), (Conn::Connected, Disk::Inconsistent));
            let peer = sanitized(old, State { pdsk: Disk::Inconsistent, ..old }).state;
            assert_eq!((peer.conn, peer.pdsk), (Conn::Connected, Disk::Inconsistent));
        }
    }

    #[test]
    fn rule_3_a_wish_for_a_verify_does_not_end_a_resync() {
        use super::super::transition::check_soft;
        use super::super::StateError;
        for (conn, verify, disk, pdsk) in [
            (Conn::StartingSyncS, Conn::VerifyS, Disk::UpToDate, Disk::Inconsistent),
            (Conn::WFSyncUUID, Conn::VerifyT, Disk::Inconsistent, Disk::UpToDate),
            (Conn::SyncSource, Conn::VerifyT, Disk::UpToDate, Disk::Inconsistent),
        ] {
            let old = State { conn, disk, pdsk, ..CONNECTED };
            let rules = Rules { has_verify_alg: true, apv: 101, ..Rules::default() };
            let new = sanitize(old, State { conn: verify, ..old }, &rules).state;
            assert_eq!(check_soft(old, new, &rules), Err(StateError::ResyncRunning), "{old}");
        }
    }

    #[test]
    fn rule_4_negotiation_ends_with_the_connection() {
        let old = State { disk: Disk::Negotiating, ..CONNECTED };
        let wanted = State { conn: Conn::BrokenPipe, ..old };
        let remembered = Some((Disk::UpToDate, Disk::Outdated));
        let rules = Rules { negotiated: remembered, ed_uuid_matches: true, ..Rules::default() };
        let kept = sanitize(old, wanted, &rules);
        assert_eq!((kept.state.disk, kept.state.pdsk, kept.warning), (Disk::UpToDate, Disk::Outdated, None));
        for rules in [Rules { ed_uuid_matches: false, ..rules }, Rules { negotiated: None, ..rules }] {
            let lost = sanitize(old, wanted, &rules);
            assert_eq!((lost.state.disk, lost.state.pdsk), (Disk::Diskless, Disk::Unknown));
            assert_eq!(lost.warning, Some(Warning::ConnectionLostNegotiating));
        }
        let attaching = State { disk: Disk::Attaching, ..CONNECTED };
        assert_eq!(sanitize(attaching, wanted, &rules).state.disk, Disk::Negotiating);
    }

    #[test]
    fn rule_5_connected_disks_are_up_to_date() {
        for disk in [Disk::Consistent, Disk::Outdated] {
            let new = sanitized(CONNECTED, State { disk, pdsk: disk, ..CONNECTED });
            assert_eq!((new.state, new.warning), (CONNECTED, None));
        }
        let behind = State { conn: Conn::Behind, disk: Disk::Outdated, ..CONNECTED };
        assert_eq!(sanitized(behind, behind).state.disk, Disk::Outdated);
        let ahead = State { conn: Conn::Ahead, pdsk: Disk::Consistent, ..CONNECTED };
        assert_eq!(sanitized(ahead, ahead).state.pdsk, Disk::Consistent);
        let alone = State { conn: Conn::WFConnection, disk: Disk::Consistent, pdsk: Disk::Unknown, ..CONNECTED };
        assert_eq!(sanitized(alone, alone).state.disk, Disk::Consistent);
    }

    #[test]
    fn rule_5_a_target_that_prepares_is_as_good_as_before() {
        let source = State { conn: Conn::WFBitMapS, pdsk: Disk::Consistent, ..CONNECTED };
        assert_eq!(sanitized(source, State { pdsk: Disk::Outdated, ..source }).state, source);
        let worse = sanitized(source, State { pdsk: Disk::Inconsistent, ..source }).state;
        assert_eq!(worse.pdsk, Disk::Inconsistent);
    }

    #[test]
    fn rule_5_old_data_stays_old_when_the_resync_source_goes() {
        let target = State { conn: Conn::WFSyncUUID, disk: Disk::Outdated, ..CONNECTED };
        let left = sanitized(target, State { pdsk: Disk::Failed, ..target }).state;
        assert_eq!((left.conn, left.disk), (Conn::Connected, Disk::Outdated));
        assert_eq!(sanitized(left, State { pdsk: Disk::Diskless, ..left }).state.disk, Disk::Outdated);
        let source = State { conn: Conn::WFBitMapS, pdsk: Disk::Consistent, ..CONNECTED };
        let alone = sanitized(source, State { disk: Disk::Failed, ..source }).state;
        assert_eq!((alone.conn, alone.pdsk), (Conn::Connected, Disk::Consistent));
    }

    // Each row of the range table, as printed in the specification.
    #[test]
    fn rule_5_a_connected_peer_that_says_it_has_old_data_is_believed() {
        let wanted = State { disk: Disk::Diskless, pdsk: Disk::Outdated, ..CONNECTED };
        let old = State { disk: Disk::Diskless, ..CONNECTED };
        for peer_says_worse in [false, true] {
            let rules = Rules { peer_says_worse, ..Rules::default() };
            let expected = if peer_says_worse { Disk::Outdated } else { Disk::UpToDate };
            assert_eq!(sanitize(old, wanted, &rules).state.pdsk, expected);
        }
    }

    #[test]
    fn rule_6_range_table() {
        use Disk::{Consistent, Diskless, Inconsistent, Outdated, Unknown, UpToDate};
        let rows: [(&[Conn], [Disk; 4]); 7] = [
            (
                &[Conn::WFBitMapT, Conn::PausedSyncT, Conn::StartingSyncT, Conn::WFSyncUUID, Conn::Behind],
                [Inconsistent, Outdated, UpToDate, UpToDate],
            ),
            (&[Conn::VerifyS, Conn::VerifyT], [UpToDate; 4]),
            (&[Conn::Connected], [Diskless, UpToDate, Diskless, UpToDate]),
            (
                &[Conn::WFBitMapS, Conn::PausedSyncS, Conn::StartingSyncS, Conn::Ahead],
                [UpToDate, UpToDate, Inconsistent, Consistent],
            ),
            (&[Conn::SyncTarget], [Inconsistent, Inconsistent, UpToDate, UpToDate]),
            (&[Conn::SyncSource], [UpToDate, UpToDate, Inconsistent, Inconsistent]),
            (
                &[
                    Conn::StandAlone,
                    Conn::Disconnecting,
                    Conn::Unconnected,
                    Conn::Timeout,
                    Conn::BrokenPipe,
                    Conn::NetworkFailure,
                    Conn::ProtocolError,
                    Conn::TearDown,
                    Conn::WFConnection,
                    Conn::WFReportParams,
                ],
                [Diskless, UpToDate, Inconsistent, Unknown],
            ),
        ];
        let mut seen = 0;
        for (conns, [low, high, peer_low, peer_high]) in rows {
            for conn in conns.iter().copied() {
                let table = range(conn);
                assert_eq!((table.disk, table.pdsk), ((low, high), (peer_low, peer_high)), "{conn}");
                seen += 1;
            }
        }
        assert_eq!(seen, Conn::ALL.len());
    }

    #[test]
    fn rule_6_raising_warns_and_lowering_does_not() {
        let own = State { conn: Conn::StartingSyncS, disk: Disk::Inconsistent, ..CONNECTED };
        let raised = sanitized(CONNECTED, own);
        assert_eq!((raised.state.disk, raised.warning), (Disk::UpToDate, Some(Warning::DiskUpgraded)));
        let peer = State { conn: Conn::StartingSyncT, pdsk: Disk::Inconsistent, ..CONNECTED };
        let raised = sanitized(CONNECTED, peer);
        assert_eq!((raised.state.pdsk, raised.warning), (Disk::UpToDate, Some(Warning::PeerDiskUpgraded)));
        let lowered = sanitized(CONNECTED, State { conn: Conn::SyncTarget, ..CONNECTED });
        assert_eq!((lowered.state.disk, lowered.warning), (Disk::Inconsistent, None));
    }

    #[test]
    fn rule_7_a_lost_peer_freezes_a_fencing_primary() {
        let old = State { role: Role::Primary, ..CONNECTED };
        let wanted = State { conn: Conn::NetworkFailure, ..old };
        let rules = Rules { fencing: FencingPolicy::ResourceAndStonith, ..Rules::default() };
        let frozen = sanitize(old, wanted, &rules);
        assert!(frozen.susp_fencing_raised && !frozen.susp_no_data_raised);
        assert!(!sanitize(frozen.state, frozen.state, &rules).susp_fencing_raised, "only when it becomes true");
        assert!(!sanitize(old, State { pdsk: Disk::Outdated, ..wanted }, &rules).susp_fencing_raised);
        assert!(!sanitize(old, State { role: Role::Secondary, ..wanted }, &rules).susp_fencing_raised);
        assert!(!sanitize(old, old, &rules).susp_fencing_raised);
        let weaker = Rules { fencing: FencingPolicy::ResourceOnly, ..rules };
        assert!(!sanitize(old, wanted, &weaker).susp_fencing_raised);
    }

    #[test]
    fn rule_8_lost_data_freezes_a_primary() {
        let old = State { role: Role::Primary, pdsk: Disk::Inconsistent, ..CONNECTED };
        let wanted = State { disk: Disk::Failed, ..old };
        let rules = Rules { on_no_data_suspend: true, ..Rules::default() };
        assert!(sanitize(old, wanted, &rules).susp_no_data_raised);
        assert!(!sanitize(wanted, wanted, &rules).susp_no_data_raised, "only when it becomes true");
        assert!(!sanitize(old, State { pdsk: Disk::UpToDate, ..wanted }, &rules).susp_no_data_raised);
        assert!(!sanitize(old, State { role: Role::Secondary, ..wanted }, &rules).susp_no_data_raised);
        assert!(!sanitized(old, wanted).susp_no_data_raised);
    }

    #[test]
    fn rules_9_and_10_pause_flags_decide() {
        for (running, paused) in [(Conn::SyncSource, Conn::PausedSyncS), (Conn::SyncTarget, Conn::PausedSyncT)] {
            for conn in [running, paused] {
                let base = State { conn, ..CONNECTED };
                assert_eq!(sanitized(base, base).state.conn, running);
                for flagged in [
                    State { aftr_isp: true, ..base },
                    State { peer_isp: true, ..base },
                    State { user_isp: true, ..base },
                ] {
                    assert_eq!(sanitized(base, flagged).state.conn, paused);
                }
            }
        }
    }

    #[test]
    fn property_sanitising_is_idempotent() {
        let mut random = Random::new(1);
        for _ in 0..200_000 {
            let (old, wanted, rules) = (random.state(), random.state(), random.rules());
            let once = sanitize(old, wanted, &rules).state;
            let twice = sanitize(old, once, &rules).state;
            assert_eq!(sanitize(old, twice, &rules).state, twice, "{old} -> {wanted}");
            // The two exceptions the specified order of the rules makes.
            let resumed = matches!(wanted.conn, Conn::PausedSyncS | Conn::PausedSyncT) && !wanted.paused();
            let gave_up_disk = once.conn == Conn::StandAlone && wanted.disk == Disk::Negotiating && wanted.aftr_isp;
            if !resumed && !gave_up_disk {
                assert_eq!(twice, once, "{old} -> {wanted}");
            }
        }
    }

    #[test]
    fn property_the_result_lies_in_the_range_of_some_connection_state() {
        let mut random = Random::new(2);
        for _ in 0..200_000 {
            let (old, wanted, rules) = (random.state(), random.state(), random.rules());
            let new = sanitize(old, wanted, &rules).state;
            let wide = match new.conn {
                Conn::SyncSource => range(Conn::PausedSyncS),
                Conn::SyncTarget => range(Conn::PausedSyncT),
                conn => range(conn),
            };
            assert!(new.disk >= wide.disk.0 && new.disk <= wide.disk.1, "{new}");
            assert!(new.pdsk >= wide.pdsk.0 && new.pdsk <= wide.pdsk.1, "{new}");
        }
    }
}
