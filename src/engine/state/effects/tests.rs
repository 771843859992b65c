// SPDX-License-Identifier: GPL-2.0
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

fn at(conn: Conn) -> State {
    State { conn, ..GOOD }
}

fn disk(disk: Disk) -> State {
    State { disk, ..GOOD }
}

fn pdsk(pdsk: Disk) -> State {
    State { pdsk, ..GOOD }
}

fn peer(peer: Role) -> State {
    State { peer, ..GOOD }
}

/// Asserts that the row fires for the change and that its effects are in the result.
#[track_caller]
fn fires(number: &str, old: State, new: State, ctx: &EffectContext) {
    let row = IMMEDIATE.iter().chain(AFTER).find(|row| row.number == number).unwrap();
    assert!((row.condition)(old, new, ctx), "{number}: {old} -> {new}");
    let all = effects(old, new, ctx);
    assert!(row.effects.iter().all(|effect| all.contains(*effect)), "{number}: {all:?}");
}

#[track_caller]
fn silent(number: &str, old: State, new: State, ctx: &EffectContext) {
    let row = IMMEDIATE.iter().chain(AFTER).find(|row| row.number == number).unwrap();
    assert!(!(row.condition)(old, new, ctx), "{number}: {old} -> {new}");
}

fn ctx(new: State) -> EffectContext {
    EffectContext::of(new, 101)
}

#[track_caller]
fn yes(number: &str, old: State, new: State) {
    fires(number, old, new, &ctx(new));
}

#[track_caller]
fn no(number: &str, old: State, new: State) {
    silent(number, old, new, &ctx(new));
}

#[test]
fn row_numbers_are_unique() {
    let numbers: Vec<&str> = IMMEDIATE.iter().chain(AFTER).map(|row| row.number).collect();
    let mut unique = numbers.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), numbers.len());
}

#[test]
fn rows_that_always_fire() {
    for number in ["8.1", "8.7", "8.16", "9.1", "9.3", "9.29"] {
        yes(number, GOOD, GOOD);
    }
    let always = [E::LogChange, E::WakeWaiters, E::UpdateMetaFlags, E::QueueAfterWork];
    let after = [E::Notify, E::LegacyEvent, E::WriteMetadata];
    let all: Vec<Effect> = effects(GOOD, GOOD, &ctx(GOOD)).iter().collect();
    assert_eq!(all, [always.as_slice(), after.as_slice()].concat());
}

#[test]
fn rows_8_1_to_8_7() {
    yes("8.1b", GOOD, disk(Disk::Failed));
    yes("8.1b", disk(Disk::Failed), disk(Disk::Diskless));
    no("8.1b", disk(Disk::Failed), disk(Disk::Failed));
    yes("8.2", at(Conn::WFSyncUUID), at(Conn::SyncTarget));
    no("8.2", at(Conn::SyncTarget), at(Conn::PausedSyncT));
    yes("8.4", GOOD, State { conn: Conn::WFConnection, pdsk: Disk::Unknown, ..GOOD });
    no("8.4", GOOD, at(Conn::VerifyS));
    yes("8.5", disk(Disk::Attaching), disk(Disk::Negotiating));
    yes("8.5", disk(Disk::Attaching), GOOD);
    no("8.5", disk(Disk::Attaching), disk(Disk::Failed));
    yes("8.6", at(Conn::WFReportParams), GOOD);
    yes("8.6", at(Conn::WFReportParams), at(Conn::NetworkFailure));
    let other = EffectContext { other_volume_reporting: true, ..ctx(GOOD) };
    silent("8.6", at(Conn::WFReportParams), GOOD, &other);
    no("8.6", at(Conn::WFReportParams), State { user_isp: true, ..at(Conn::WFReportParams) });
}

#[test]
fn rows_8_8_to_8_10() {
    yes("8.8", at(Conn::VerifyS), GOOD);
    yes("8.8", at(Conn::VerifyT), at(Conn::BrokenPipe));
    no("8.8", at(Conn::SyncSource), GOOD);
    for (paused, running) in [(Conn::PausedSyncS, Conn::SyncSource), (Conn::PausedSyncT, Conn::SyncTarget)] {
        yes("8.9", at(paused), at(running));
        no("8.9", at(running), at(paused));
        yes("8.9c", at(running), at(paused));
        no("8.9c", at(paused), at(running));
    }
    yes("8.9b", at(Conn::PausedSyncT), at(Conn::SyncTarget));
    no("8.9b", at(Conn::PausedSyncS), at(Conn::SyncSource));
    yes("8.10", GOOD, at(Conn::VerifyT));
    yes("8.10b", GOOD, at(Conn::VerifyS));
    no("8.10b", GOOD, at(Conn::VerifyT));
    no("8.10", at(Conn::VerifyT), at(Conn::VerifyT));
}

#[test]
fn rows_8_11_to_8_15() {
    yes("8.11", GOOD, disk(Disk::Inconsistent));
    no("8.11", GOOD, disk(Disk::Failed));
    yes("8.11b", disk(Disk::Inconsistent), GOOD);
    no("8.11b", disk(Disk::Consistent), GOOD);
    let both = State { disk: Disk::Inconsistent, pdsk: Disk::Inconsistent, ..GOOD };
    yes("8.12", both, State { peer: Role::Primary, ..both });
    no("8.12", GOOD, peer(Role::Primary));
    no("8.12", State { peer: Role::Unknown, ..both }, State { peer: Role::Primary, ..both });
    yes("8.13", GOOD, at(Conn::Disconnecting));
    yes("8.13", at(Conn::Disconnecting), at(Conn::StandAlone));
    no("8.13", at(Conn::StandAlone), at(Conn::StandAlone));
    for lost in [Conn::Timeout, Conn::BrokenPipe, Conn::NetworkFailure, Conn::ProtocolError, Conn::TearDown] {
        yes("8.13b", at(Conn::WFReportParams), at(lost));
        no("8.13b", at(Conn::WFConnection), at(lost));
    }
    no("8.13b", GOOD, at(Conn::Disconnecting));
    yes("8.14", at(Conn::WFReportParams), at(Conn::WFBitMapS));
    no("8.14", GOOD, at(Conn::WFBitMapS));
    yes("8.15", disk(Disk::Negotiating), GOOD);
    yes("8.15", disk(Disk::Attaching), disk(Disk::Inconsistent));
    no("8.15", disk(Disk::Attaching), disk(Disk::Negotiating));
}

#[test]
fn rows_9_2_and_9_4() {
    yes("9.2", disk(Disk::Inconsistent), GOOD);
    no("9.2", GOOD, GOOD);
    no("9.2", disk(Disk::Inconsistent), disk(Disk::Consistent));
    let nothing = State { disk: Disk::Failed, pdsk: Disk::Inconsistent, ..GOOD };
    yes("9.4", pdsk(Disk::Inconsistent), nothing);
    no("9.4", nothing, State { disk: Disk::Diskless, ..nothing });
    no("9.4", GOOD, State { role: Role::Secondary, ..nothing });
}

#[test]
fn rows_9_5_and_9_6_thaw() {
    let frozen = Susp { no_data: true, ..Susp::default() };
    let both = EffectContext { susp_then: frozen, susp_now: frozen, ..ctx(GOOD) };
    let back = State { conn: Conn::WFReportParams, disk: Disk::Diskless, ..GOOD };
    fires("9.5", back, disk(Disk::Diskless), &both);
    silent("9.5", GOOD, GOOD, &both);
    // The peer has attached its disk, or has none.
    let nothing = State { pdsk: Disk::Diskless, ..disk(Disk::Diskless) };
    fires("9.5", nothing, disk(Disk::Diskless), &both);
    silent("9.5", back, nothing, &EffectContext { data_in_reach: false, ..both });
    silent("9.5", back, GOOD, &EffectContext { all_volumes_connected: false, ..both });
    silent("9.5", back, GOOD, &EffectContext { susp_now: Susp::default(), ..both });
    silent("9.5", back, GOOD, &EffectContext { susp_then: Susp::default(), ..both });
    for before in [Disk::Attaching, Disk::Negotiating] {
        fires("9.5b", disk(before), GOOD, &both);
        silent("9.5b", disk(before), GOOD, &EffectContext { all_disks_up_to_date: false, ..both });
    }
    silent("9.5b", disk(Disk::Inconsistent), GOOD, &both);
    // If both are back the disk decides.
    let attaching = State { conn: Conn::WFReportParams, ..disk(Disk::Attaching) };
    fires("9.5b", attaching, GOOD, &both);
    silent("9.5", attaching, GOOD, &both);

    let fencing = Susp { fencing: true, ..Susp::default() };
    let both = EffectContext { susp_then: fencing, susp_now: fencing, ..ctx(GOOD) };
    fires("9.6", at(Conn::WFReportParams), GOOD, &both);
    silent("9.6", GOOD, GOOD, &EffectContext { all_volumes_connected: false, ..both });
    silent("9.6", GOOD, GOOD, &EffectContext { susp_now: Susp::default(), ..both });
    silent("9.6", GOOD, GOOD, &EffectContext { susp_then: Susp::default(), ..both });
}

#[test]
fn rows_9_7_to_9_9() {
    let source = State { conn: Conn::SyncSource, pdsk: Disk::Inconsistent, ..GOOD };
    yes("9.7", at(Conn::WFBitMapS), source);
    yes("9.7", at(Conn::Ahead), State { conn: Conn::PausedSyncS, ..source });
    no("9.7", at(Conn::PausedSyncS), source);
    silent("9.7", at(Conn::WFBitMapS), source, &EffectContext::of(source, 95));
    yes("9.8", pdsk(Disk::Diskless), pdsk(Disk::Inconsistent));
    yes("9.8", pdsk(Disk::Diskless), pdsk(Disk::Attaching));
    no("9.8", pdsk(Disk::Diskless), pdsk(Disk::Unknown));
    no("9.8", pdsk(Disk::Failed), GOOD);
    yes("9.9", GOOD, at(Conn::WFBitMapS));
    no("9.9", at(Conn::WFBitMapS), at(Conn::WFBitMapS));
    let gone = EffectContext { current_conn: Conn::NetworkFailure, ..ctx(GOOD) };
    silent("9.9", GOOD, at(Conn::WFBitMapS), &gone);
}

#[test]
fn rows_9_10_and_9_11_new_generations() {
    let zero = EffectContext { bitmap_uuid_zero: true, ..ctx(GOOD) };
    let alone = State { conn: Conn::NetworkFailure, peer: Role::Unknown, pdsk: Disk::Unknown, ..GOOD };
    fires("9.10b", GOOD, alone, &zero);
    silent("9.10", GOOD, alone, &zero);
    let frozen = EffectContext { susp_now: Susp { fencing: true, ..Susp::default() }, ..zero };
    fires("9.10", GOOD, alone, &frozen);
    silent("9.10b", GOOD, alone, &frozen);
    // The peer lacks what was acknowledged, or may lack it.
    let suspended = EffectContext { susp_now: Susp { user: true, ..Susp::default() }, ..zero };
    fires("9.10b", GOOD, alone, &suspended);
    fires("9.10b", State { pdsk: Disk::Consistent, ..at(Conn::Ahead) }, alone, &frozen);
    fires("9.10b", GOOD, pdsk(Disk::Diskless), &frozen);
    let ahead = State { pdsk: Disk::Consistent, ..at(Conn::Ahead) };
    fires("9.10c", ahead, State { role: Role::Secondary, ..ahead }, &zero);
    silent("9.10c", ahead, State { role: Role::Secondary, ..ahead }, &ctx(ahead));
    silent("9.10c", GOOD, State { role: Role::Secondary, ..GOOD }, &zero);
    let failed = State { disk: Disk::Failed, ..ahead };
    fires("9.10d", ahead, failed, &zero);
    fires("9.10d", State { conn: Conn::WFBitMapS, ..ahead }, failed, &zero);
    silent("9.10d", ahead, failed, &ctx(ahead));
    silent("9.10d", GOOD, failed, &zero);
    silent("9.10d", State { role: Role::Secondary, ..ahead }, State { role: Role::Secondary, ..failed }, &zero);
    for other in ["9.10", "9.10b"] {
        silent(other, GOOD, alone, &ctx(alone));
        silent(other, GOOD, State { role: Role::Secondary, ..alone }, &zero);
        silent(other, GOOD, State { disk: Disk::Consistent, ..alone }, &zero);
        silent(other, pdsk(Disk::Outdated), alone, &zero);
    }
    let secondary = State { role: Role::Secondary, peer: Role::Primary, ..GOOD };
    fires("9.10b", secondary, State { pdsk: Disk::Failed, ..secondary }, &zero);

    let diskless = State { pdsk: Disk::Diskless, role: Role::Secondary, ..GOOD };
    let promoted = State { peer: Role::Primary, ..diskless };
    fires("9.11", diskless, promoted, &zero);
    silent("9.11", diskless, promoted, &ctx(promoted));
    silent("9.11", promoted, promoted, &zero);
    silent("9.11", diskless, State { pdsk: Disk::Inconsistent, ..promoted }, &zero);
    silent("9.11", diskless, State { disk: Disk::Consistent, ..promoted }, &zero);
    // One that connects without a disk may never write.
    let connecting = State { conn: Conn::WFReportParams, peer: Role::Unknown, pdsk: Disk::Unknown, ..promoted };
    let attaches = State { pdsk: Disk::Negotiating, ..promoted };
    silent("9.11", connecting, promoted, &zero);
    fires("9.11", connecting, attaches, &zero);
    let negotiating = State { disk: Disk::Negotiating, ..attaches };
    fires("9.11b", negotiating, attaches, &zero);
    silent("9.11b", negotiating, attaches, &ctx(attaches));
    silent("9.11b", attaches, attaches, &zero);
    silent("9.11b", State { disk: Disk::Negotiating, ..promoted }, promoted, &zero);
    silent("9.11b", negotiating, State { peer: Role::Secondary, ..attaches }, &zero);
    silent("9.11b", negotiating, State { pdsk: Disk::Inconsistent, ..attaches }, &zero);
    fires("9.11c", promoted, attaches, &zero);
    fires("9.11c", State { pdsk: Disk::Attaching, ..promoted }, attaches, &zero);
    silent("9.11c", promoted, attaches, &ctx(attaches));
    silent("9.11c", promoted, State { pdsk: Disk::Attaching, ..promoted }, &zero);
}

// The diskless peer comes back while the Primary is frozen: the freeze ends, so the generation must not wait.
#[test]
fn a_thaw_counts_before_the_new_generation() {
    let fencing = Susp { fencing: true, ..Susp::default() };
    let before = State { conn: Conn::WFReportParams, pdsk: Disk::Unknown, ..GOOD };
    let after = pdsk(Disk::Diskless);
    let ctx = EffectContext { susp_then: fencing, susp_now: fencing, bitmap_uuid_zero: true, ..ctx(after) };
    let all = effects(before, after, &ctx);
    assert!(all.contains(E::ThawFencing) && all.contains(E::NewCurrentUuid));
    assert!(!all.contains(E::DeferNewCurrentUuid));
}

#[test]
fn rows_9_12_to_9_18() {
    let writing = State { pdsk: Disk::Diskless, peer: Role::Primary, ..GOOD };
    yes("9.12", writing, State { peer: Role::Secondary, ..writing });
    no("9.12", writing, State { peer: Role::Unknown, ..writing });
    no("9.12", peer(Role::Primary), GOOD);
    let demoted = State { role: Role::Secondary, ..GOOD };
    yes("9.13", GOOD, demoted);
    no("9.13", demoted, GOOD);
    let syncing = EffectContext { current_conn: Conn::SyncSource, ..ctx(demoted) };
    silent("9.13", GOOD, demoted, &syncing);
    yes("9.14", disk(Disk::Attaching), disk(Disk::Negotiating));
    no("9.14", disk(Disk::Attaching), GOOD);
    no("9.14", disk(Disk::Attaching), State { conn: Conn::WFConnection, ..disk(Disk::Negotiating) });
    yes("9.15", GOOD, State { user_isp: true, ..GOOD });
    yes("9.15", State { aftr_isp: true, ..GOOD }, GOOD);
    no("9.15", GOOD, State { peer_isp: true, ..GOOD });
    no("9.15", GOOD, State { user_isp: true, ..at(Conn::WFConnection) });
    yes("9.16", GOOD, State { peer_isp: true, ..GOOD });
    no("9.16", State { peer_isp: true, ..GOOD }, State { peer_isp: true, user_isp: true, ..GOOD });
    yes("9.17", at(Conn::WFReportParams), at(Conn::WFBitMapT));
    no("9.17", at(Conn::WFReportParams), at(Conn::NetworkFailure));
    let unattested = EffectContext { unattested: true, ..ctx(GOOD) };
    silent("9.17", at(Conn::WFReportParams), State { disk: Disk::Outdated, ..GOOD }, &unattested);
    yes("9.17b", State { disk: Disk::Outdated, ..GOOD }, GOOD);
    no("9.17b", State { disk: Disk::Outdated, ..at(Conn::WFReportParams) }, GOOD);
    yes("9.18", GOOD, at(Conn::Ahead));
    no("9.18", at(Conn::Ahead), at(Conn::Ahead));
}

#[test]
fn rows_9_19_to_9_22() {
    yes("9.19", GOOD, at(Conn::StartingSyncS));
    yes("9.19", GOOD, at(Conn::StartingSyncT));
    no("9.19", at(Conn::StartingSyncS), at(Conn::StartingSyncS));
    let failed = disk(Disk::Failed);
    yes("9.20", GOOD, failed);
    no("9.20", failed, failed);
    fires("9.20b", GOOD, failed, &EffectContext { io_error_helper: true, ..ctx(failed) });
    no("9.20b", GOOD, failed);
    fires("9.20c", GOOD, failed, &EffectContext { force_detach: true, ..ctx(failed) });
    no("9.20c", GOOD, failed);
    yes("9.20d", GOOD, failed);
    no("9.20d", GOOD, State { conn: Conn::WFConnection, ..failed });
    yes("9.21", failed, disk(Disk::Diskless));
    yes("9.21b", failed, disk(Disk::Diskless));
    no("9.21b", failed, State { conn: Conn::StandAlone, ..disk(Disk::Diskless) });
    yes("9.22", GOOD, disk(Disk::Inconsistent));
    no("9.22", disk(Disk::Consistent), disk(Disk::Inconsistent));
    no("9.22", GOOD, State { conn: Conn::WFConnection, ..disk(Disk::Inconsistent) });
}

#[test]
fn rows_9_23_to_9_28() {
    let grew = EffectContext { resync_after_negotiation: true, ..ctx(GOOD) };
    fires("9.23", GOOD, at(Conn::WFBitMapS), &grew);
    silent("9.23", GOOD, pdsk(Disk::Negotiating), &grew);
    no("9.23", GOOD, GOOD);
    fires("9.23b", disk(Disk::Negotiating), GOOD, &grew);
    silent("9.23b", GOOD, at(Conn::WFBitMapS), &grew);
    yes("9.24", at(Conn::SyncSource), GOOD);
    yes("9.24", State { user_isp: true, ..GOOD }, GOOD);
    yes("9.24", State { peer_isp: true, ..GOOD }, GOOD);
    no("9.24", State { aftr_isp: true, ..GOOD }, GOOD);
    yes("9.25", State { disk: Disk::Inconsistent, ..at(Conn::SyncTarget) }, GOOD);
    no("9.25", at(Conn::SyncSource), GOOD);
    no("9.25", disk(Disk::Inconsistent), GOOD);
    for (apv, speaks) in [(96, false), (97, true), (99, true), (100, false), (101, true)] {
        let ctx = EffectContext::of(GOOD, apv);
        if speaks {
            fires("9.26", at(Conn::VerifyS), GOOD, &ctx);
        } else {
            silent("9.26", at(Conn::VerifyS), GOOD, &ctx);
        }
    }
    yes("9.27", at(Conn::SyncTarget), GOOD);
    yes("9.27", at(Conn::WFBitMapS), at(Conn::Behind));
    no("9.27", GOOD, GOOD);
    no("9.27", at(Conn::Ahead), GOOD);
    no("9.27", at(Conn::SyncTarget), at(Conn::NetworkFailure));
    let idle = State::initial(Conn::StandAlone);
    yes("9.28", State { aftr_isp: true, ..idle }, idle);
    no("9.28", idle, idle);
    no("9.28", State { aftr_isp: true, ..idle }, State { role: Role::Primary, ..idle });
}

#[test]
fn the_order_keeps_its_promises() {
    let before = |first: Effect, second: Effect| assert!(first < second, "{first:?} {second:?}");
    before(E::SyncUuid, E::SendState);
    before(E::NewCurrentUuid, E::SendUuids);
    before(E::SendSizes, E::SendUuids);
    before(E::SendUuids, E::SendState);
    before(E::SendState, E::QueueBitmapSend);
    before(E::HelperLocalIoError, E::SendState);
    before(E::ClearCrashedPrimary, E::WriteMetadata);
    before(E::WriteMetadata, E::DropLocalReference);
    before(E::NewCurrentUuid, E::ThawNoDataResend);
    before(E::NewCurrentUuid, E::ThawNoDataRestartDisk);
    before(E::NewCurrentUuid, E::ThawFencing);
    let set: EffectSet = [E::SendState, E::SyncUuid, E::LogChange].into_iter().collect();
    assert_eq!(set.iter().collect::<Vec<_>>(), [E::LogChange, E::SyncUuid, E::SendState]);
    assert_eq!(set.immediate().iter().collect::<Vec<_>>(), [E::LogChange]);
    assert_eq!(set.after().iter().collect::<Vec<_>>(), [E::SyncUuid, E::SendState]);
    assert!(set.without(E::LogChange).immediate().is_empty());
}

#[test]
fn property_rows_stay_on_their_side() {
    for (rows, under_lock) in [(IMMEDIATE, true), (AFTER, false)] {
        for effect in rows.iter().flat_map(|row| row.effects) {
            assert_eq!(*effect < E::Notify, under_lock, "{effect:?}");
        }
    }
    let mut random = Random::new(5);
    for _ in 0..100_000 {
        let (old, new) = (random.state(), random.state());
        let all = effects(old, new, &EffectContext::of(new, 101));
        assert_eq!(all.immediate().union(all.after()), all);
        assert_eq!(all.iter().collect::<EffectSet>(), all);
        // A disk held because it fails is let go by the worker.
        assert_eq!(all.contains(E::TakeLocalReference), all.contains(E::DropLocalReference));
    }
}

#[test]
fn replication_predicates() {
    for conn in Conn::ALL.iter().copied() {
        assert!(replicates(at(conn)), "an UpToDate peer gets everything");
        let resyncing = conn >= Conn::WFBitMapT && conn < Conn::Ahead;
        assert_eq!(replicates(State { pdsk: Disk::Inconsistent, ..at(conn) }), resyncing, "{conn}");
        assert!(!replicates(State { pdsk: Disk::Negotiating, ..at(conn) }));
        assert_eq!(sends_out_of_sync(at(conn)), matches!(conn, Conn::Ahead | Conn::WFBitMapS));
    }
}

#[test]
fn stable_states() {
    for conn in Conn::ALL.iter().copied() {
        let waits = matches!(conn, Conn::WFBitMapT | Conn::WFSyncUUID);
        assert_eq!(io_may_start(at(conn), 96), !waits, "{conn}");
        assert_eq!(io_may_start(at(conn), 95), !waits && conn != Conn::WFBitMapS, "{conn}");
    }
    for state in Disk::ALL.iter().copied() {
        let moving = matches!(state, Disk::Attaching | Disk::Negotiating);
        assert_eq!(io_may_start(disk(state), 101), !moving, "{state}");
    }
}

#[test]
fn lost_data_pair_by_pair() {
    for old in Disk::ALL.iter().copied() {
        for new in Disk::ALL.iter().copied() {
            // 6, 1, a peer that meets us while it attaches, is not among those of the C module.
            let expected = matches!((old.bits(), new.bits()), (4 | 7 | 8, 0..=3 | 5 | 6) | (6, 0..=2 | 5));
            assert_eq!(lost_peer_data(old, new), expected, "{old} -> {new}");
        }
    }
}

#[test]
fn flags_of_the_meta_data() {
    assert_eq!(meta_flags(0, GOOD, false), 0x017);
    assert_eq!(meta_flags(0, GOOD, true), 0x057);
    let alone = State { conn: Conn::WFConnection, pdsk: Disk::Outdated, role: Role::Secondary, ..GOOD };
    assert_eq!(meta_flags(0, alone, false), 0x031);
    assert_eq!(meta_flags(0, State { conn: Conn::WFReportParams, ..alone }, false), 0x031);
    assert_eq!(meta_flags(0, State { disk: Disk::Outdated, ..alone }, false), 0x021);
    let bad = State { disk: Disk::Inconsistent, pdsk: Disk::Diskless, peer: Role::Primary, ..alone };
    assert_eq!(meta_flags(0, bad, false), 0x002);
    assert_eq!(meta_flags(0, State { pdsk: Disk::Inconsistent, ..bad }, false), 0x020);
    // FULL_SYNC, AL_DISABLED and unknown bits stay, AL_CLEAN goes, the rest follows the state.
    assert_eq!(meta_flags(u32::MAX, bad, false), !(0x001 | 0x004 | 0x010 | 0x020 | 0x040 | 0x080));
}

#[test]
fn disks_at_attach() {
    use FencingPolicy::{DontCare, ResourceOnly};
    let rows = [
        (0x000, DontCare, (Disk::Inconsistent, Disk::Unknown)),
        (0x010, DontCare, (Disk::Inconsistent, Disk::Unknown)),
        (0x001, DontCare, (Disk::Outdated, Disk::Unknown)),
        (0x011, DontCare, (Disk::UpToDate, Disk::Unknown)),
        (0x011, ResourceOnly, (Disk::Consistent, Disk::Unknown)),
        (0x031, ResourceOnly, (Disk::UpToDate, Disk::Outdated)),
        (0x020, ResourceOnly, (Disk::Inconsistent, Disk::Outdated)),
    ];
    for (flags, fencing, disks) in rows {
        assert_eq!(initial_disks(flags, Disk::Unknown, fencing), disks, "{flags:#x}");
    }
    assert_eq!(initial_disks(0x011, Disk::UpToDate, ResourceOnly), (Disk::Consistent, Disk::UpToDate));
}
