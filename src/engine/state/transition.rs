// SPDX-License-Identifier: GPL-2.0
//! Transitions: which state may follow which, for requests (soft) and for facts (hard), and the two checks together.

use super::codes::{Outcome, Refusal, StateError};
use super::types::{Conn, Disk, Role, Rules, State};
use super::validity;

/// One row of the soft table.
struct SoftRule {
    name: &'static str,
    error: StateError,
    broken: fn(State, State, &Rules) -> bool,
}

const fn soft(name: &'static str, error: StateError, broken: fn(State, State, &Rules) -> bool) -> SoftRule {
    SoftRule { name, error, broken }
}

fn starting_sync(state: State) -> bool {
    matches!(state.conn, Conn::StartingSyncS | Conn::StartingSyncT)
}

fn verifying(state: State) -> bool {
    matches!(state.conn, Conn::VerifyS | Conn::VerifyT)
}

/// The only connection changes that are part of a handshake.
fn handshake_step(old: State, new: State) -> bool {
    match old.conn {
        Conn::WFConnection => new.conn == Conn::WFReportParams,
        Conn::WFReportParams => new.conn >= Conn::Connected,
        _ => false,
    }
}

/// A resync or verify run of a volume that has met its peer goes on, whatever its neighbours wait for: nobody asks for its next
/// step a second time.
fn step_of_a_run(old: State, new: State) -> bool {
    old.conn > Conn::Connected && new.conn >= Conn::Connected && (old.role, old.peer) == (new.role, new.peer)
}

// spec: state-machine 6; the last match wins.
const SOFT_RULES: [SoftRule; 13] = [
    soft("full resync while one runs", StateError::ResyncRunning, |old, new, _| {
        starting_sync(new) && old.conn > Conn::Connected
    }),
    soft("disconnect of StandAlone", StateError::AlreadyStandalone, |old, new, _| {
        new.conn == Conn::Disconnecting && old.conn == Conn::StandAlone
    }),
    soft("disk without attach", StateError::IsDiskless, |old, new, _| {
        new.disk > Disk::Attaching && old.disk == Disk::Diskless
    }),
    soft("waiting for connection without network configuration", StateError::NoNetConfig, |old, new, _| {
        new.conn == Conn::WFConnection && old.conn < Conn::Unconnected
    }),
    soft("outdating a disk that is worth less", StateError::LowerThanOutdated, |old, new, _| {
        new.disk == Disk::Outdated && old.disk < Disk::Outdated && old.disk != Disk::Attaching
    }),
    soft("disconnect of Unconnected", StateError::InTransientState, |old, new, _| {
        new.conn == Conn::Disconnecting && old.conn == Conn::Unconnected
    }),
    soft("handshake in progress", StateError::InTransientState, |old, new, rules| {
        rules.state_sent && !handshake_step(old, new) && !step_of_a_run(old, new)
    }),
    soft("promotion while a resync to the good data is due", StateError::InTransientState, |old, new, _| {
        old.role != Role::Primary
            && new.role == Role::Primary
            && new.pdsk == Disk::UpToDate
            && !matches!(new.disk, Disk::UpToDate | Disk::Diskless)
            && (new.conn <= Conn::WFSyncUUID || new.conn != old.conn)
    }),
    soft("verify without connection", StateError::NeedConnection, |old, new, _| {
        verifying(new) && old.conn < Conn::Connected
    }),
    soft("verify while a resync runs", StateError::ResyncRunning, |old, new, _| {
        verifying(new) && new.conn != old.conn && old.conn > Conn::Connected
    }),
    soft("full resync without connection", StateError::NeedConnection, |old, new, _| {
        starting_sync(new) && old.conn < Conn::Connected
    }),
    soft("resync without connection", StateError::NeedConnection, |old, new, _| {
        matches!(new.conn, Conn::SyncTarget | Conn::SyncSource) && old.conn < Conn::WFReportParams
    }),
    soft("outdating the peer at disconnect without connection", StateError::OutdateWoConn, |old, new, _| {
        new.conn == Conn::Disconnecting
            && new.pdsk == Disk::Outdated
            && old.conn < Conn::Connected
            && old.pdsk > Disk::Outdated
    }),
];

/// One row of the table for connection states.
struct ConnRule {
    name: &'static str,
    error: StateError,
    broken: fn(Conn, Conn) -> bool,
}

const fn conn_rule(name: &'static str, error: StateError, broken: fn(Conn, Conn) -> bool) -> ConnRule {
    ConnRule { name, error, broken }
}

// spec: state-machine 7, rows 2 to 6; row 1 is the caller's. The first match wins.
const CONN_RULES: [ConnRule; 5] = [
    conn_rule("disconnect of StandAlone", StateError::AlreadyStandalone, |old, new| {
        old == Conn::StandAlone && new == Conn::Disconnecting
    }),
    conn_rule("StandAlone is left only to Unconnected", StateError::NeedConnection, |old, new| {
        old == Conn::StandAlone && new != Conn::Unconnected
    }),
    conn_rule("connected only after the handshake", StateError::NeedConnection, |old, new| {
        old < Conn::WFReportParams && new >= Conn::Connected
    }),
    conn_rule("a lost connection is only cleaned up", StateError::InTransientState, |old, new| {
        (Conn::Timeout..=Conn::TearDown).contains(&old) && !matches!(new, Conn::Unconnected | Conn::Disconnecting)
    }),
    conn_rule("Disconnecting is left only to StandAlone", StateError::InTransientState, |old, new| {
        old == Conn::Disconnecting && new != Conn::StandAlone
    }),
];

const FAILED_WITHOUT_DISK: Refusal =
    Refusal { error: StateError::IsDiskless, rule: "failing a disk that is not there" };

fn conn_refusal(old: Conn, new: Conn) -> Option<Refusal> {
    if old == new {
        return None;
    }
    let broken = CONN_RULES.iter().find(|rule| (rule.broken)(old, new));
    broken.map(|rule| Refusal { error: rule.error, rule: rule.name })
}

fn refusal(old: State, new: State) -> Option<Refusal> {
    if new.disk == Disk::Failed && old.disk == Disk::Diskless {
        return Some(FAILED_WITHOUT_DISK);
    }
    conn_refusal(old.conn, new.conn)
}

fn soft_refusal(old: State, new: State, rules: &Rules) -> Option<Refusal> {
    let broken = SOFT_RULES.iter().rev().find(|rule| (rule.broken)(old, new, rules));
    broken.map(|rule| Refusal { error: rule.error, rule: rule.name })
}

/// A verify compares two good disks: one that is not must not be taken for one because of it, as `sanitize` would. (The C
/// module does; a disk that is still being negotiated would become UpToDate.)
fn verify_refusal(old: State, new: State) -> Option<Refusal> {
    let begins = verifying(new) && !verifying(old);
    let good = old.disk == Disk::UpToDate && old.pdsk == Disk::UpToDate;
    let refusal = Refusal { error: StateError::NoUpToDateDisk, rule: "verify of a disk that is not UpToDate" };
    (begins && !good).then_some(refusal)
}

/// A Primary without good data, of either node. An Outdated disk stays that while connected (see `sanitize`), which must not excuse this
/// as well.
fn blind(old: State, new: State) -> Option<Refusal> {
    let promoted = old.role != Role::Primary && new.role == Role::Primary;
    let peer_promoted = old.conn >= Conn::Connected && old.peer == Role::Secondary && new.peer == Role::Primary;
    let without_data = new.disk < Disk::UpToDate && new.pdsk < Disk::UpToDate;
    let refusal = Refusal { error: StateError::NoUpToDateDisk, rule: "promotion without UpToDate disk in reach" };
    ((promoted || peer_promoted) && without_data).then_some(refusal)
}

/// A disk that is connected is not outdated by request, whatever the peer has.
fn outdate_refusal(old: State, new: State) -> Option<Refusal> {
    let connected = old.conn >= Conn::Connected && new.conn == Conn::Connected;
    let outdated = new.disk == Disk::Outdated && old.disk > Disk::Outdated;
    let refusal = Refusal { error: StateError::ConnectedOutdates, rule: "own disk Outdated while connected or source" };
    (connected && outdated).then_some(refusal)
}

fn outcome(old: Conn, new: Conn, refusal: Option<Refusal>) -> Result<Outcome, Refusal> {
    match refusal {
        Some(refusal) => Err(refusal),
        None if old == new => Ok(Outcome::NothingToDo),
        None => Ok(Outcome::Success),
    }
}

/// Whether a connection in `old` may become `new`.
///
/// # Errors
/// The code of the rule that does not allow it.
// spec: state-machine 3.5 step 1, 7
pub fn conn_transition(old: Conn, new: Conn) -> Result<Outcome, StateError> {
    outcome(old, new, conn_refusal(old, new)).map_err(StateError::from)
}

/// Whether a volume in `old` may become `new`, as a request or as a fact. `NothingToDo` means that the connection
/// state stays as it is; other fields may still change.
///
/// # Errors
/// The code of the rule that does not allow it.
// spec: state-machine 7
pub fn transition(old: State, new: State) -> Result<Outcome, StateError> {
    outcome(old.conn, new.conn, refusal(old, new)).map_err(StateError::from)
}

/// Whether `new` may be requested now that the volume is in `old`.
///
/// # Errors
/// The code of the last rule that does not allow it.
// spec: state-machine 6
pub fn soft_transition(old: State, new: State, rules: &Rules) -> Result<(), StateError> {
    match soft_refusal(old, new, rules) {
        Some(refusal) => Err(refusal.error),
        None => Ok(()),
    }
}

/// All checks of a request, on the sanitised state `new`.
///
/// # Errors
/// The code of the rule that does not allow it.
pub fn check_soft(old: State, new: State, rules: &Rules) -> Result<Outcome, StateError> {
    explain_soft(old, new, rules).map_err(StateError::from)
}

/// As [`check_soft`], telling the rule.
///
/// A state that is already invalid may be left for one that is invalid for the same reason.
///
/// # Errors
/// The rule that does not allow it.
// spec: state-machine 3.1
pub fn explain_soft(old: State, new: State, rules: &Rules) -> Result<Outcome, Refusal> {
    if old == new {
        return Ok(Outcome::NothingToDo);
    }
    let invalid = validity::refusal(new, rules)
        .filter(|refusal| validity::refusal(old, rules).map(|before| before.error) != Some(refusal.error));
    let found = refusal(old, new).or(invalid).or_else(|| blind(old, new)).or_else(|| soft_refusal(old, new, rules));
    match found.or_else(|| outdate_refusal(old, new)).or_else(|| verify_refusal(old, new)) {
        Some(refusal) => Err(refusal),
        None => Ok(Outcome::Success),
    }
}

/// Why a verify cannot begin that `sanitize` has made nothing of, because a disk is no good: what it leaves looks like nothing to do, and
/// the peer, or the administrator, would take that for a yes. (The C module raises the disk, or says that there is nothing to do.)
pub fn explain_dropped_verify(old: State, wanted: State, new: State, rules: &Rules) -> Option<Refusal> {
    let dropped = verifying(wanted) && !verifying(new) && !verifying(old);
    dropped.then(|| soft_refusal(old, wanted, rules).or_else(|| verify_refusal(old, wanted))).flatten()
}

/// The checks of a request before the peer is asked: as [`explain_soft`], but an invalid state stays refused whatever
/// the old one was.
///
/// # Errors
/// The rule that does not allow it.
// spec: state-machine 3.2 step 4
pub fn check_cluster_wide(old: State, new: State, rules: &Rules) -> Result<Outcome, Refusal> {
    if old == new {
        return Ok(Outcome::NothingToDo);
    }
    let found = refusal(old, new).or_else(|| validity::refusal(new, rules)).or_else(|| blind(old, new));
    let found = found.or_else(|| soft_refusal(old, new, rules));
    match found.or_else(|| outdate_refusal(old, new)).or_else(|| verify_refusal(old, new)) {
        Some(refusal) => Err(refusal),
        None => Ok(Outcome::Success),
    }
}

#[cfg(test)]
mod tests {
    use super::super::sanitize::sanitize;
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

    fn at(conn: Conn) -> State {
        State { conn, ..CONNECTED }
    }

    // For each soft rule a change that breaks it, and a change beside it that does not.
    #[test]
    fn a_node_that_is_outdated_while_connected_is_not_promoted() {
        let old = State {
            role: Role::Secondary,
            peer: Role::Secondary,
            conn: Conn::Connected,
            disk: Disk::Outdated,
            pdsk: Disk::Diskless,
            aftr_isp: false,
            peer_isp: false,
            user_isp: false,
        };
        let refused = explain_soft(old, State { role: Role::Primary, ..old }, &Rules::default());
        assert_eq!(refused.map_err(|refusal| refusal.error), Err(StateError::NoUpToDateDisk));
        // Nor a peer without a disk, whose wish this is.
        let refused = explain_soft(old, State { peer: Role::Primary, ..old }, &Rules::default());
        assert_eq!(refused.map_err(|refusal| refusal.error), Err(StateError::NoUpToDateDisk));
    }

    #[test]
    fn an_outdated_disk_may_meet_a_peer_without_one() {
        let met = State { disk: Disk::Outdated, pdsk: Disk::Diskless, ..CONNECTED };
        let meeting = State { conn: Conn::WFReportParams, pdsk: Disk::Unknown, ..met };
        assert_eq!(explain_soft(meeting, met, &Rules::default()), Ok(Outcome::Success));
        let with_disk = State { pdsk: Disk::UpToDate, ..met };
        let refused = explain_soft(meeting, with_disk, &Rules::default());
        assert_eq!(refused.map_err(|refusal| refusal.error), Err(StateError::ConnectedOutdates));
        // But none that is connected is outdated by request.
        let good = State { disk: Disk::UpToDate, ..met };
        let refused = explain_soft(good, met, &Rules::default());
        assert_eq!(refused.map_err(|refusal| refusal.error), Err(StateError::ConnectedOutdates));
    }

    #[test]
    fn a_verify_does_not_make_a_disk_good() {
        for disk in [Disk::Negotiating, Disk::Inconsistent, Disk::Outdated, Disk::Consistent] {
            for old in [State { disk, ..CONNECTED }, State { pdsk: disk, ..CONNECTED }] {
                let refused = explain_soft(old, at(Conn::VerifyT), &Rules::default());
                assert_eq!(refused.map_err(|refusal| refusal.error), Err(StateError::NoUpToDateDisk));
            }
        }
        assert_eq!(explain_soft(CONNECTED, at(Conn::VerifyT), &Rules::default()), Ok(Outcome::Success));
    }

    /// What has become of the wish when it is checked.
    #[test]
    fn a_verify_of_bad_disks_is_not_taken_for_nothing_to_do() {
        let rules = Rules { has_verify_alg: true, ..Rules::default() };
        let wish = |old: State, conn| {
            let wanted = State { conn, ..old };
            let new = sanitize(old, wanted, &rules).state;
            let dropped = explain_dropped_verify(old, wanted, new, &rules);
            dropped.or_else(|| explain_soft(old, new, &rules).err()).map(|refusal| refusal.error)
        };
        for disk in Disk::ALL.iter().copied().filter(|disk| *disk < Disk::UpToDate && *disk != Disk::Unknown) {
            for old in [State { disk, ..CONNECTED }, State { pdsk: disk, ..CONNECTED }] {
                for conn in [Conn::VerifyS, Conn::VerifyT] {
                    assert_eq!(wish(old, conn), Some(StateError::NoUpToDateDisk), "{disk}");
                }
            }
        }
        assert_eq!(wish(CONNECTED, Conn::VerifyS), None);
        // Which of them comes first.
        let alone = State { conn: Conn::WFConnection, disk: Disk::Inconsistent, pdsk: Disk::Unknown, ..CONNECTED };
        assert_eq!(wish(alone, Conn::VerifyS), Some(StateError::NeedConnection));
        let syncs = State { conn: Conn::SyncTarget, disk: Disk::Inconsistent, ..CONNECTED };
        assert_eq!(wish(syncs, Conn::VerifyS), Some(StateError::ResyncRunning));
    }

    #[test]
    fn every_soft_row() {
        let rules = Rules::default();
        let sent = Rules { state_sent: true, ..rules };
        let diskless = State { disk: Disk::Diskless, ..CONNECTED };
        let failed = State { disk: Disk::Failed, ..CONNECTED };
        let attaching = State { disk: Disk::Attaching, ..CONNECTED };
        let outdated = State { disk: Disk::Outdated, ..CONNECTED };
        let syncing = State { conn: Conn::SyncTarget, disk: Disk::Inconsistent, ..CONNECTED };
        let waiting = State { conn: Conn::WFBitMapT, disk: Disk::Inconsistent, ..CONNECTED };
        let promoted = |state: State| State { role: Role::Primary, ..state };
        let goodbye = State { conn: Conn::Disconnecting, pdsk: Disk::Outdated, ..CONNECTED };
        let lost = State { conn: Conn::WFConnection, pdsk: Disk::Unknown, ..CONNECTED };
        type Pair = (State, State);
        let rows: [(Rules, Pair, Pair); 13] = [
            (rules, (syncing, at(Conn::StartingSyncT)), (CONNECTED, at(Conn::StartingSyncS))),
            (rules, (at(Conn::StandAlone), at(Conn::Disconnecting)), (CONNECTED, at(Conn::Disconnecting))),
            (rules, (diskless, CONNECTED), (diskless, attaching)),
            (rules, (at(Conn::Disconnecting), at(Conn::WFConnection)), (at(Conn::Unconnected), at(Conn::WFConnection))),
            (rules, (failed, outdated), (attaching, outdated)),
            (rules, (at(Conn::Unconnected), at(Conn::Disconnecting)), (lost, at(Conn::Disconnecting))),
            (
                sent,
                (at(Conn::WFReportParams), promoted(at(Conn::WFReportParams))),
                (at(Conn::WFReportParams), CONNECTED),
            ),
            (rules, (waiting, promoted(waiting)), (syncing, promoted(syncing))),
            (rules, (lost, at(Conn::VerifyS)), (CONNECTED, at(Conn::VerifyS))),
            (rules, (at(Conn::SyncSource), at(Conn::VerifyT)), (at(Conn::VerifyT), at(Conn::VerifyT))),
            (rules, (lost, at(Conn::StartingSyncS)), (CONNECTED, at(Conn::StartingSyncS))),
            (rules, (lost, syncing), (at(Conn::WFReportParams), syncing)),
            (rules, (lost, goodbye), (CONNECTED, goodbye)),
        ];
        for ((rules, (old, new), (good_old, good_new)), row) in rows.into_iter().zip(&SOFT_RULES) {
            let expected = Refusal { error: row.error, rule: row.name };
            assert_eq!(soft_refusal(old, new, &rules), Some(expected), "{old} -> {new}");
            assert_eq!(soft_transition(old, new, &rules), Err(row.error));
            assert_eq!(soft_transition(good_old, good_new, &rules), Ok(()), "{}: {good_old} -> {good_new}", row.name);
        }
    }

    #[test]
    fn of_the_soft_rules_the_last_wins() {
        let rules = Rules { state_sent: true, ..Rules::default() };
        let old = State { conn: Conn::StandAlone, pdsk: Disk::Unknown, ..CONNECTED };
        let both = State { conn: Conn::Disconnecting, pdsk: Disk::Unknown, ..CONNECTED };
        assert_eq!(soft_transition(old, both, &rules), Err(StateError::InTransientState));
        let three = State { pdsk: Disk::Outdated, ..both };
        assert_eq!(soft_transition(old, three, &rules), Err(StateError::OutdateWoConn));
    }

    #[test]
    fn handshake_steps_pass_while_parameters_are_exchanged() {
        let rules = Rules { state_sent: true, ..Rules::default() };
        assert_eq!(soft_transition(at(Conn::WFConnection), at(Conn::WFReportParams), &rules), Ok(()));
        assert_eq!(soft_transition(at(Conn::WFReportParams), at(Conn::WFBitMapS), &rules), Ok(()));
        let back = soft_transition(at(Conn::WFReportParams), at(Conn::Disconnecting), &rules);
        assert_eq!(back, Err(StateError::InTransientState));
        // Of a volume that is past it.
        for (old, new) in [(Conn::WFBitMapS, Conn::SyncSource), (Conn::VerifyT, Conn::Connected)] {
            assert_eq!(soft_transition(at(old), at(new), &rules), Ok(()));
        }
        let promoted = State { role: Role::Primary, ..at(Conn::SyncSource) };
        assert_eq!(soft_transition(at(Conn::SyncSource), promoted, &rules), Err(StateError::InTransientState));
    }

    // Every pair of connection states against section 7, written once more as sets.
    #[test]
    fn every_pair_of_connection_states() {
        for old in Conn::ALL.iter().copied() {
            for new in Conn::ALL.iter().copied() {
                let expected = match (old.bits(), new.bits()) {
                    (from, to) if from == to => Ok(Outcome::NothingToDo),
                    (0, 1) => Err(StateError::AlreadyStandalone),
                    (0, 2) => Ok(Outcome::Success),
                    (0, _) => Err(StateError::NeedConnection),
                    (1..=8, 10..) => Err(StateError::NeedConnection),
                    (3..=7, 0 | 3..=9) => Err(StateError::InTransientState),
                    (1, 2..=9) => Err(StateError::InTransientState),
                    _ => Ok(Outcome::Success),
                };
                assert_eq!(conn_transition(old, new), expected, "{old} -> {new}");
                assert_eq!(transition(at(old), at(new)), expected, "{old} -> {new}");
            }
        }
    }

    #[test]
    fn a_missing_disk_cannot_fail() {
        let diskless = State { disk: Disk::Diskless, ..CONNECTED };
        let failed = State { disk: Disk::Failed, ..CONNECTED };
        assert_eq!(transition(diskless, failed), Err(StateError::IsDiskless));
        assert_eq!(transition(CONNECTED, failed), Ok(Outcome::NothingToDo));
        // It overrides the rules about the connection.
        let alone = State { conn: Conn::StandAlone, ..diskless };
        assert_eq!(transition(alone, failed), Err(StateError::IsDiskless));
    }

    #[test]
    fn an_invalid_state_may_stay_invalid_for_the_same_reason() {
        let rules = Rules { net_configured: true, ..Rules::default() };
        let old = State { role: Role::Primary, disk: Disk::Inconsistent, pdsk: Disk::Inconsistent, ..CONNECTED };
        let new = State { user_isp: true, ..old };
        assert_eq!(check_soft(old, new, &rules), Ok(Outcome::Success));
        let refused = check_cluster_wide(old, new, &rules).map_err(StateError::from);
        assert_eq!(refused, Err(StateError::NoUpToDateDisk));
        let worse = State { peer: Role::Primary, ..old };
        assert_eq!(check_soft(old, worse, &rules), Err(StateError::TwoPrimaries));
        // The transition rules still apply.
        let two = Rules { state_sent: true, ..rules };
        assert_eq!(check_soft(old, new, &two), Err(StateError::InTransientState));
    }

    #[test]
    fn checks_come_in_order() {
        let rules = Rules::default();
        assert_eq!(check_soft(CONNECTED, CONNECTED, &rules), Ok(Outcome::NothingToDo));
        // Transition before validity: StandAlone Primary with bad disks asked to verify.
        let old = State { conn: Conn::StandAlone, pdsk: Disk::Unknown, ..CONNECTED };
        let new = State { role: Role::Primary, conn: Conn::VerifyS, disk: Disk::Inconsistent, ..CONNECTED };
        let refusal = explain_soft(old, new, &rules).unwrap_err();
        assert_eq!(refusal.rule, "StandAlone is left only to Unconnected");
        // Validity before the soft rules.
        let old = State { role: Role::Secondary, disk: Disk::Failed, ..CONNECTED };
        let new = State { disk: Disk::Outdated, ..CONNECTED };
        assert_eq!(check_soft(old, new, &rules), Err(StateError::ConnectedOutdates));
        assert_eq!(check_soft(CONNECTED, State { role: Role::Primary, ..CONNECTED }, &rules), Ok(Outcome::Success));
    }

    #[test]
    fn property_a_request_allowed_cluster_wide_is_allowed_locally() {
        let mut random = Random::new(4);
        for _ in 0..200_000 {
            let (old, new, rules) = (random.state(), random.state(), random.rules());
            if check_cluster_wide(old, new, &rules).is_ok() {
                assert!(check_soft(old, new, &rules).is_ok());
            }
            if check_soft(old, new, &rules).is_ok() {
                assert!(transition(old, new).is_ok());
            }
        }
    }
}
