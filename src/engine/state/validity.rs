// SPDX-License-Identifier: GPL-2.0
//! Validity: states that nobody may enter by request. The first rule that fits refuses.

use super::codes::{Refusal, StateError};
use super::types::{Conn, Disk, FencingPolicy, Role, Rules, State};

/// One row of the table.
struct ValidityRule {
    name: &'static str,
    error: StateError,
    broken: fn(State, &Rules) -> bool,
}

const fn rule(name: &'static str, error: StateError, broken: fn(State, &Rules) -> bool) -> ValidityRule {
    ValidityRule { name, error, broken }
}

fn primary(new: State) -> bool {
    new.role == Role::Primary
}

fn verifying(new: State) -> bool {
    matches!(new.conn, Conn::VerifyS | Conn::VerifyT)
}

// spec: state-machine 5
const RULES: [ValidityRule; 15] = [
    rule("both nodes Primary", StateError::TwoPrimaries, |new, rules| {
        rules.net_configured && !rules.two_primaries && primary(new) && new.peer == Role::Primary
    }),
    rule("peer Primary on another volume", StateError::OVolPeerPri, |new, rules| {
        rules.net_configured && !rules.two_primaries && primary(new) && rules.peer_primary_on_other_volume
    }),
    rule("Secondary while held open", StateError::DeviceInUse, |new, rules| {
        new.role == Role::Secondary && rules.open_count > 0
    }),
    rule("Primary alone without UpToDate disk", StateError::NoUpToDateDisk, |new, _| {
        primary(new) && new.conn < Conn::Connected && new.disk < Disk::UpToDate
    }),
    rule("fencing Primary alone, peer not outdated", StateError::PrimaryNop, |new, rules| {
        rules.fencing >= FencingPolicy::ResourceOnly
            && primary(new)
            && new.conn < Conn::Connected
            && new.pdsk >= Disk::Unknown
    }),
    rule("Primary with both disks Inconsistent or worse", StateError::NoUpToDateDisk, |new, _| {
        primary(new) && new.disk <= Disk::Inconsistent && new.pdsk <= Disk::Inconsistent
    }),
    rule("resync without local disk", StateError::NoLocalDisk, |new, _| {
        new.conn > Conn::Connected && new.disk < Disk::Inconsistent
    }),
    rule("resync without peer disk", StateError::NoRemoteDisk, |new, _| {
        new.conn > Conn::Connected && new.pdsk < Disk::Inconsistent
    }),
    rule("resync without UpToDate disk", StateError::NoUpToDateDisk, |new, _| {
        new.conn > Conn::Connected && new.disk < Disk::UpToDate && new.pdsk < Disk::UpToDate
    }),
    // To a peer without a disk it connects, see `sanitize`.
    rule("own disk Outdated while connected or source", StateError::ConnectedOutdates, |new, _| {
        matches!(new.conn, Conn::Connected | Conn::WFBitMapS | Conn::SyncSource | Conn::PausedSyncS)
            && new.disk == Disk::Outdated
            && new.pdsk >= Disk::Negotiating
    }),
    rule("verify without verify-alg", StateError::NoVerifyAlg, |new, rules| {
        rules.net_configured && verifying(new) && !rules.has_verify_alg
    }),
    rule("verify below protocol 88", StateError::NotSupported, |new, rules| verifying(new) && rules.apv < 88),
    rule("Primary without UpToDate disk in reach", StateError::NoUpToDateDisk, |new, _| {
        primary(new) && new.disk < Disk::UpToDate && new.pdsk < Disk::UpToDate
    }),
    rule("full resync with unknown peer disk", StateError::NeedConnection, |new, _| {
        matches!(new.conn, Conn::StartingSyncS | Conn::StartingSyncT) && new.pdsk == Disk::Unknown
    }),
    rule("connected with unknown peer disk", StateError::ConnectedOutdates, |new, _| {
        new.conn >= Conn::Connected && new.pdsk == Disk::Unknown
    }),
];

/// Whether a volume may be in `new` by request.
///
/// # Errors
/// The code of the first rule that does not allow it.
pub fn validity(new: State, rules: &Rules) -> Result<(), StateError> {
    match refusal(new, rules) {
        Some(refusal) => Err(refusal.error),
        None => Ok(()),
    }
}

/// The first rule that does not allow `new`, if any.
pub(super) fn refusal(new: State, rules: &Rules) -> Option<Refusal> {
    RULES.iter().find(|rule| (rule.broken)(new, rules)).map(|rule| Refusal { error: rule.error, rule: rule.name })
}

#[cfg(test)]
mod tests {
    use super::super::testing::Random;
    use super::*;

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

    fn rules() -> Rules {
        Rules { net_configured: true, has_verify_alg: true, ..Rules::default() }
    }

    // One state for each row, found by exactly that row.
    #[test]
    fn every_row() {
        let secondary = State { role: Role::Secondary, ..GOOD };
        let alone = State { conn: Conn::WFConnection, pdsk: Disk::Unknown, ..GOOD };
        let fencing = Rules { fencing: FencingPolicy::ResourceOnly, ..rules() };
        let other_volume = Rules { peer_primary_on_other_volume: true, ..rules() };
        let open = Rules { open_count: 1, ..rules() };
        let no_alg = Rules { has_verify_alg: false, ..rules() };
        let old_peer = Rules { apv: 87, ..rules() };
        let source = State { conn: Conn::SyncSource, ..secondary };
        let verify = State { conn: Conn::VerifyT, ..secondary };
        let rows = [
            (State { peer: Role::Primary, ..GOOD }, rules(), StateError::TwoPrimaries),
            (GOOD, other_volume, StateError::OVolPeerPri),
            (secondary, open, StateError::DeviceInUse),
            (State { disk: Disk::Consistent, ..alone }, rules(), StateError::NoUpToDateDisk),
            (alone, fencing, StateError::PrimaryNop),
            (State { disk: Disk::Inconsistent, pdsk: Disk::Inconsistent, ..GOOD }, rules(), StateError::NoUpToDateDisk),
            (State { disk: Disk::Negotiating, ..source }, rules(), StateError::NoLocalDisk),
            (State { pdsk: Disk::Failed, ..source }, rules(), StateError::NoRemoteDisk),
            (State { disk: Disk::Consistent, pdsk: Disk::Consistent, ..source }, rules(), StateError::NoUpToDateDisk),
            (State { disk: Disk::Outdated, ..secondary }, rules(), StateError::ConnectedOutdates),
            (verify, no_alg, StateError::NoVerifyAlg),
            (verify, old_peer, StateError::NotSupported),
            (State { disk: Disk::Consistent, pdsk: Disk::Consistent, ..GOOD }, rules(), StateError::NoUpToDateDisk),
            (
                State { conn: Conn::StartingSyncS, pdsk: Disk::Unknown, ..secondary },
                rules(),
                StateError::NeedConnection,
            ),
            (State { pdsk: Disk::Unknown, ..secondary }, rules(), StateError::ConnectedOutdates),
        ];
        for ((state, rules, error), row) in rows.into_iter().zip(&RULES) {
            assert_eq!(refusal(state, &rules), Some(Refusal { error, rule: row.name }), "{state}");
            assert_eq!(validity(state, &rules), Err(error));
        }
    }

    #[test]
    fn what_is_allowed() {
        let two = Rules { two_primaries: true, peer_primary_on_other_volume: true, ..rules() };
        assert_eq!(validity(State { peer: Role::Primary, ..GOOD }, &two), Ok(()));
        let alone = State { conn: Conn::WFConnection, pdsk: Disk::Outdated, peer: Role::Unknown, ..GOOD };
        let fencing = Rules { fencing: FencingPolicy::ResourceAndStonith, ..rules() };
        assert_eq!(validity(alone, &fencing), Ok(()), "the peer is outdated");
        assert_eq!(validity(State { pdsk: Disk::Unknown, ..alone }, &rules()), Ok(()), "nobody asked for fencing");
        let offline = Rules { net_configured: false, has_verify_alg: false, ..rules() };
        assert_eq!(validity(State { peer: Role::Primary, ..GOOD }, &offline), Ok(()));
        assert_eq!(validity(State::initial(Conn::StandAlone), &Rules::default()), Ok(()));
        assert_eq!(validity(State { disk: Disk::Diskless, ..GOOD }, &rules()), Ok(()), "diskless Primary");
        assert_eq!(validity(State { conn: Conn::VerifyS, ..GOOD }, &Rules { apv: 88, ..rules() }), Ok(()));
    }

    #[test]
    fn the_first_rule_wins() {
        let state = State { peer: Role::Primary, disk: Disk::Diskless, pdsk: Disk::Diskless, ..GOOD };
        assert_eq!(validity(state, &rules()), Err(StateError::TwoPrimaries));
    }

    #[test]
    fn property_never_panics_and_refuses_with_a_code() {
        let mut random = Random::new(3);
        for _ in 0..200_000 {
            let (state, rules) = (random.state(), random.rules());
            if let Err(error) = validity(state, &rules) {
                assert!(RULES.iter().any(|rule| rule.error == error && (rule.broken)(state, &rules)));
            } else {
                assert!(RULES.iter().all(|rule| !(rule.broken)(state, &rules)));
            }
        }
    }
}
