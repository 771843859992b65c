// SPDX-License-Identifier: GPL-2.0
//! Data generations: who has what the other lacks.
//!
//! Both nodes compare the same two sets, each from its side, and must come to opposite results without talking about
//! it. The lowest bit of a generation only tells whether its node was Primary and is ignored in every comparison; only
//! the questions "is there a bitmap generation at all" of rules 34 to 37 look at the full value.

use crate::state::{Conn, Disk, Role, State};
use core::fmt;

/// A generation that a fresh device starts with.
const JUST_CREATED: u64 = 4;
/// What the generation of a resync differs in from the bitmap generation before it.
const SYNC_OFFSET: u64 = 1 << 48;
/// Feature without which rule 41 cannot be applied on both nodes alike (WSAME).
const FEATURE_CRASHED_PRIMARY_RULE: u32 = 4;
/// First protocol version whose nodes repair a half finished resync.
const REPAIR_PROTOCOL: u32 = 91;

/// The data generations of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UuidSet {
    /// What the data is now.
    pub current: u64,
    /// What both had when the bitmap began to record; 0 if it does not.
    pub bitmap: u64,
    /// Older bitmap generations, youngest first.
    pub history: [u64; 2],
}

impl UuidSet {
    /// A resync starts: `generation` is the new bitmap generation, and the one before becomes history. `of_target`: what the target has,
    /// if that is known. When it has heard of none of the starts before, what it has stays in the history, in place of what neither has: with
    /// one more of them none that both know would be left. (In the C module that is "Unrelated data" then.)
    // spec: metadata 6.2 (12)
    pub fn start_resync(&mut self, generation: u64, of_target: Option<u64>) {
        let [young, old] = self.history;
        if self.bitmap != 0 {
            let missed = of_target.is_some_and(|has| same(has, old));
            self.history = [self.bitmap, if missed { old } else { young }];
        }
        self.bitmap = generation;
    }

    /// The bitmap generation becomes history, none is recorded any more.
    fn finish(&mut self) {
        self.history = [self.bitmap, self.history[0]];
        self.bitmap = 0;
    }

    /// The start of a resync is undone: the youngest history is the bitmap generation again.
    fn undo_start(&mut self) {
        self.bitmap = self.history[0];
        self.history[0] = self.history[1];
    }
}

impl fmt::Display for UuidSet {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [young, old] = self.history;
        write!(out, "{:016X}:{:016X}:{young:016X}:{old:016X}", self.current, self.bitmap)
    }
}

/// What the comparison looks at besides the generations. Exactly one of two nodes has `resolve_conflicts`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompareContext {
    /// Agreed protocol version.
    pub apv: u32,
    /// Agreed features.
    pub features: u32,
    /// This node was Primary when it crashed.
    pub own_crashed: bool,
    /// The peer was Primary when it crashed.
    pub peer_crashed: bool,
    /// This node is Primary.
    pub own_primary: bool,
    /// The peer is Primary.
    pub peer_primary: bool,
    /// This node has the upper hand where both are equal.
    pub resolve_conflicts: bool,
}

/// The rule of the comparison that fired.
// spec: state-machine 15.1
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// 10
    BothJustCreated,
    /// 20
    JustCreated,
    /// 30
    PeerJustCreated,
    /// 34
    MissedEndOfResync,
    /// 36
    PeerMissedSyncUuid,
    /// 35
    PeerMissedEndOfResync,
    /// 37
    MissedSyncUuid,
    /// 40, nobody crashed
    SameGeneration,
    /// 40, only this node crashed
    OwnCrashed,
    /// 40, only the peer crashed
    PeerCrashed,
    /// 40, both crashed
    BothCrashed,
    /// 41, without the feature that makes both nodes apply it
    CrashedNeedsFeature,
    /// 41, both are Primary
    CrashedBothPrimary,
    /// 41, this node is Primary
    CrashedOwnPrimary,
    /// 41, the peer is Primary
    CrashedPeerPrimary,
    /// 50
    CurrentIsPeersBitmap,
    /// 51
    PeersSyncUuidLost,
    /// 60
    CurrentIsPeersHistory,
    /// 70
    BitmapIsPeersCurrent,
    /// 71
    OwnSyncUuidLost,
    /// 80
    HistoryIsPeersCurrent,
    /// 90
    SameBitmap,
    /// 100, some old generation in common
    SameHistory,
    /// 100, nothing in common
    Unrelated,
    /// 34 to 37, 51, 71 with a protocol below 91
    NeedsProtocol,
}

impl Rule {
    /// The number in the specification; 100 for `Unrelated`, 0 for `NeedsProtocol`, which stands for several.
    pub const fn number(self) -> u32 {
        match self {
            Self::BothJustCreated => 10,
            Self::JustCreated => 20,
            Self::PeerJustCreated => 30,
            Self::MissedEndOfResync => 34,
            Self::PeerMissedEndOfResync => 35,
            Self::PeerMissedSyncUuid => 36,
            Self::MissedSyncUuid => 37,
            Self::SameGeneration | Self::OwnCrashed | Self::PeerCrashed | Self::BothCrashed => 40,
            Self::CrashedNeedsFeature
            | Self::CrashedBothPrimary
            | Self::CrashedOwnPrimary
            | Self::CrashedPeerPrimary => 41,
            Self::CurrentIsPeersBitmap => 50,
            Self::PeersSyncUuidLost => 51,
            Self::CurrentIsPeersHistory => 60,
            Self::BitmapIsPeersCurrent => 70,
            Self::OwnSyncUuidLost => 71,
            Self::HistoryIsPeersCurrent => 80,
            Self::SameBitmap => 90,
            Self::SameHistory | Self::Unrelated => 100,
            Self::NeedsProtocol => 0,
        }
    }

    /// What was found, in words.
    pub const fn evidence(self) -> &'static str {
        match self {
            Self::BothJustCreated => "both disks are just created",
            Self::JustCreated => "this disk is just created, the peer's is not",
            Self::PeerJustCreated => "the peer's disk is just created, this one is not",
            Self::MissedEndOfResync => "same data; this node was source of a resync and missed its end",
            Self::PeerMissedEndOfResync => "same data; the peer was source of a resync and missed its end",
            Self::PeerMissedSyncUuid => "same data; the peer did not store the start of a resync from this node",
            Self::MissedSyncUuid => "same data; this node did not store the start of a resync from the peer",
            Self::SameGeneration => "same data, nobody crashed",
            Self::OwnCrashed => "same data, this node crashed as Primary",
            Self::PeerCrashed => "same data, the peer crashed as Primary",
            Self::BothCrashed => "same data, both nodes crashed as Primary",
            Self::CrashedNeedsFeature => "same data, a crashed Primary and a node that is Primary now",
            Self::CrashedBothPrimary => "same data, a crash, and both nodes are Primary now",
            Self::CrashedOwnPrimary => "same data, a crash, and this node is Primary now",
            Self::CrashedPeerPrimary => "same data, a crash, and the peer is Primary now",
            Self::CurrentIsPeersBitmap => "the peer recorded its changes since this node's data",
            Self::PeersSyncUuidLost => "a resync from the peer was announced but never reached this node",
            Self::CurrentIsPeersHistory => "this node's data is older than what the peer's bitmap covers",
            Self::BitmapIsPeersCurrent => "this node recorded its changes since the peer's data",
            Self::OwnSyncUuidLost => "a resync from this node was announced but never reached the peer",
            Self::HistoryIsPeersCurrent => "the peer's data is older than what this node's bitmap covers",
            Self::SameBitmap => "both nodes wrote on their own since they had the same data",
            Self::SameHistory => "both nodes wrote on their own since they last had an old generation in common",
            Self::Unrelated => "no generation in common",
            Self::NeedsProtocol => "a half finished resync that needs a newer protocol to repair",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number() {
            0 => out.write_str(self.evidence()),
            number => write!(out, "rule {number}: {}", self.evidence()),
        }
    }
}

/// What the comparison says about a resync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncResult {
    /// None needed (0).
    NoSync,
    /// From this node (+1, full: +2).
    Source {
        /// All blocks, not only those in the bitmap.
        full: bool,
    },
    /// To this node (-1, full: -2).
    Target {
        /// All blocks, not only those in the bitmap.
        full: bool,
    },
    /// Both wrote (+100, not recoverable by policy: -100).
    SplitBrain {
        /// The after-split-brain policies may decide.
        recoverable: bool,
    },
    /// Never had the same data (-1000).
    Unrelated,
    /// Cannot be resolved below this protocol version (-1000 - version).
    NeedsProtocol(u32),
    /// Cannot be resolved without this protocol version and feature.
    NeedsFeature {
        /// Protocol version.
        protocol: u32,
        /// Feature bit.
        feature: u32,
    },
}

impl SyncResult {
    /// What the peer must conclude.
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Source { full } => Self::Target { full },
            Self::Target { full } => Self::Source { full },
            same => same,
        }
    }
}

impl fmt::Display for SyncResult {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSync => out.write_str("no resync"),
            Self::Source { full: false } => out.write_str("resync source by bitmap"),
            Self::Source { full: true } => out.write_str("source of a full resync"),
            Self::Target { full: false } => out.write_str("resync target by bitmap"),
            Self::Target { full: true } => out.write_str("target of a full resync"),
            // The words that are looked for in logs.
            Self::SplitBrain { .. } => out.write_str("Split-Brain detected"),
            Self::Unrelated => out.write_str("unrelated data"),
            Self::NeedsProtocol(version) => write!(out, "needs protocol {version}"),
            Self::NeedsFeature { protocol, feature } => {
                write!(out, "needs protocol {protocol} and feature {feature:#x}")
            }
        }
    }
}

/// A correction of the generations that goes with a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fixup {
    /// Own set, rule 34: end the resync that was missed. Written with the next superblock.
    OwnFinish,
    /// What is known of the peer, rule 35.
    PeerFinish,
    /// Own set, rule 71: undo the start of the resync.
    OwnUndoStart,
    /// What is known of the peer, rule 51.
    PeerUndoStart,
}

impl Fixup {
    /// Corrects the set it is about.
    // spec: state-machine 15.1, metadata 6.2 (20 to 22)
    pub fn apply(self, own: &mut UuidSet, peer: &mut UuidSet) {
        match self {
            Self::OwnFinish => own.finish(),
            Self::PeerFinish => peer.finish(),
            Self::OwnUndoStart => own.undo_start(),
            Self::PeerUndoStart => peer.undo_start(),
        }
    }
}

/// The outcome of [`compare`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// Why.
    pub rule: Rule,
    /// What.
    pub result: SyncResult,
    /// What must be corrected before going on.
    pub fixup: Option<Fixup>,
}

impl Comparison {
    const fn new(rule: Rule, result: SyncResult) -> Self {
        Self { rule, result, fixup: None }
    }

    const fn repairing(rule: Rule, result: SyncResult, fixup: Fixup) -> Self {
        Self { rule, result, fixup: Some(fixup) }
    }

    /// This outcome, unless the peer's protocol is too old to come to the opposite one.
    fn if_repairable(self, ctx: &CompareContext) -> Self {
        if ctx.apv < REPAIR_PROTOCOL {
            return Self::new(Rule::NeedsProtocol, SyncResult::NeedsProtocol(REPAIR_PROTOCOL));
        }
        self
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} ({})", self.result, self.rule)
    }
}

const SOURCE: SyncResult = SyncResult::Source { full: false };
const TARGET: SyncResult = SyncResult::Target { full: false };
const FULL_SOURCE: SyncResult = SyncResult::Source { full: true };
const FULL_TARGET: SyncResult = SyncResult::Target { full: true };

/// Without the bit that tells the role.
const fn plain(uuid: u64) -> u64 {
    uuid & !1
}

fn same(one: u64, other: u64) -> bool {
    plain(one) == plain(other)
}

/// Compares the generations of both nodes. The first rule that fits decides.
// spec: state-machine 15.1, wire-protocol 8.1
pub fn compare(own: &UuidSet, peer: &UuidSet, ctx: &CompareContext) -> Comparison {
    let fresh = |uuid: u64| plain(uuid) == JUST_CREATED;
    let nothing = |uuid: u64| fresh(uuid) || plain(uuid) == 0;
    if fresh(own.current) && fresh(peer.current) {
        Comparison::new(Rule::BothJustCreated, SyncResult::NoSync)
    } else if nothing(own.current) && !fresh(peer.current) {
        Comparison::new(Rule::JustCreated, FULL_TARGET)
    } else if !fresh(own.current) && nothing(peer.current) {
        Comparison::new(Rule::PeerJustCreated, FULL_SOURCE)
    } else if same(own.current, peer.current) {
        same_current(own, peer, ctx)
    } else {
        older_or_newer(own, peer, ctx).unwrap_or_else(|| diverged(own, peer))
    }
}

/// Rules 34 to 41.
fn same_current(own: &UuidSet, peer: &UuidSet, ctx: &CompareContext) -> Comparison {
    match (own.bitmap, peer.bitmap) {
        (0, 0) => crashed(ctx),
        (_, 0) => {
            let missed_end = same(own.bitmap, peer.history[0]) && same(own.history[0], peer.history[1]);
            if missed_end {
                Comparison::repairing(Rule::MissedEndOfResync, SOURCE, Fixup::OwnFinish)
            } else {
                Comparison::new(Rule::PeerMissedSyncUuid, SOURCE)
            }
            .if_repairable(ctx)
        }
        (0, _) => {
            let missed_end = same(own.history[0], peer.bitmap) && same(own.history[1], peer.history[0]);
            if missed_end {
                Comparison::repairing(Rule::PeerMissedEndOfResync, TARGET, Fixup::PeerFinish)
            } else {
                Comparison::new(Rule::MissedSyncUuid, TARGET)
            }
            .if_repairable(ctx)
        }
        _ => crashed(ctx),
    }
}

/// Rules 40 and 41: the same data, but a Primary that crashed may have written what the other did not get.
fn crashed(ctx: &CompareContext) -> Comparison {
    if !ctx.own_crashed && !ctx.peer_crashed {
        return Comparison::new(Rule::SameGeneration, SyncResult::NoSync);
    }
    let some_primary = ctx.own_primary || ctx.peer_primary;
    if some_primary && ctx.features & FEATURE_CRASHED_PRIMARY_RULE == 0 {
        let needs = SyncResult::NeedsFeature { protocol: 101, feature: FEATURE_CRASHED_PRIMARY_RULE };
        return Comparison::new(Rule::CrashedNeedsFeature, needs);
    }
    match (ctx.own_primary, ctx.peer_primary) {
        (true, true) => Comparison::new(Rule::CrashedBothPrimary, SyncResult::SplitBrain { recoverable: false }),
        (true, false) => Comparison::new(Rule::CrashedOwnPrimary, SOURCE),
        (false, true) => Comparison::new(Rule::CrashedPeerPrimary, TARGET),
        (false, false) => match (ctx.own_crashed, ctx.peer_crashed) {
            (true, false) => Comparison::new(Rule::OwnCrashed, SOURCE),
            (false, _) => Comparison::new(Rule::PeerCrashed, TARGET),
            (true, true) if ctx.resolve_conflicts => Comparison::new(Rule::BothCrashed, TARGET),
            (true, true) => Comparison::new(Rule::BothCrashed, SOURCE),
        },
    }
}

/// Rules 50 to 80: one node's data is a generation the other remembers.
fn older_or_newer(own: &UuidSet, peer: &UuidSet, ctx: &CompareContext) -> Option<Comparison> {
    // Whether `announcer` began a resync towards a node with the youngest generation of its history, in vain.
    let start_was_lost = |announcer: &UuidSet, other: &UuidSet| {
        if ctx.apv < 96 {
            // The older protocol announces a random generation; the histories tell instead.
            same(announcer.history[1], other.history[0])
        } else {
            plain(announcer.history[0]).wrapping_add(SYNC_OFFSET) == plain(announcer.bitmap)
        }
    };
    let remembers = |set: &UuidSet, uuid: u64| set.history.iter().any(|old| same(*old, uuid));
    Some(if same(own.current, peer.bitmap) {
        Comparison::new(Rule::CurrentIsPeersBitmap, TARGET)
    } else if same(own.current, peer.history[0]) && start_was_lost(peer, own) {
        Comparison::repairing(Rule::PeersSyncUuidLost, TARGET, Fixup::PeerUndoStart).if_repairable(ctx)
    } else if remembers(peer, own.current) {
        Comparison::new(Rule::CurrentIsPeersHistory, FULL_TARGET)
    } else if same(own.bitmap, peer.current) {
        Comparison::new(Rule::BitmapIsPeersCurrent, SOURCE)
    } else if same(own.history[0], peer.current) && start_was_lost(own, peer) {
        Comparison::repairing(Rule::OwnSyncUuidLost, SOURCE, Fixup::OwnUndoStart).if_repairable(ctx)
    } else if remembers(own, peer.current) {
        Comparison::new(Rule::HistoryIsPeersCurrent, FULL_SOURCE)
    } else {
        return None;
    })
}

/// Rules 90 and 100: neither knows the other's data.
fn diverged(own: &UuidSet, peer: &UuidSet) -> Comparison {
    if same(own.bitmap, peer.bitmap) && plain(own.bitmap) != 0 {
        return Comparison::new(Rule::SameBitmap, SyncResult::SplitBrain { recoverable: true });
    }
    // Empty history counts as common: two nodes that diverged at once must not be taken for strangers.
    if own.history.iter().any(|old| peer.history.iter().any(|other| same(*old, *other))) {
        return Comparison::new(Rule::SameHistory, SyncResult::SplitBrain { recoverable: false });
    }
    Comparison::new(Rule::Unrelated, SyncResult::Unrelated)
}

/// What [`receive_uuids`] looks at.
#[derive(Clone, Copy, Debug)]
pub struct UuidsInput {
    /// Own state.
    pub own: State,
    /// Agreed protocol version.
    pub apv: u32,
    /// Own current generation, if there is a disk.
    pub own_current: Option<u64>,
    /// The generation of the data last shown to users here.
    pub exposed: u64,
    /// The own disk, which may still be negotiated, holds what was last shown.
    pub holds_exposed: bool,
    /// The peer's current generation.
    pub peer_current: u64,
    /// The packet asks to skip the first resync (flag 8).
    pub skip_initial_sync: bool,
}

/// What to do on receipt of the peer's generations, besides storing them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UuidsAction {
    /// Nothing more.
    Keep,
    /// Disconnecting: a diskless Primary must not go on with other data than it showed so far.
    Refuse,
    /// Clear and write the bitmap, take over the peer's current generation, bitmap generation 0, both disks UpToDate.
    SkipInitialSync,
    /// The generation last shown is the peer's.
    Expose,
}

/// The generation that a peer has begun because this node's disk left, where both go by the same data: all that this disk has, and that
/// one lacks, is marked here, so this node may count it as the one that its bitmap goes by. Only for a Primary that has stayed connected,
/// and a peer that has not been promoted. (A C module that was Behind takes its own disk for good when the disk that is Ahead leaves;
/// without this it would be a split brain.)
pub fn generation_begun_without(own: &UuidSet, peer: &UuidSet) -> Option<u64> {
    let apart = peer.bitmap != 0 && same(peer.bitmap, own.bitmap) && !same(peer.current, own.current);
    apart.then_some(peer.current)
}

/// What to do on receipt of the peer's generations. They are stored in every case but `Refuse`.
// spec: state-machine 14.2, wire-protocol 4.7
pub fn receive_uuids(input: &UuidsInput) -> UuidsAction {
    let own = input.own;
    let primary = own.role == Role::Primary;
    // Its disk may be known as Attaching already, if that began before the nodes met. (The C module takes any data then.)
    let meets_peer = own.conn < Conn::Connected || matches!(own.pdsk, Disk::Diskless | Disk::Attaching);
    // Where both attach their disks at the same time, this one is going to be the source.
    let needs_peer = own.disk < Disk::Inconsistent && !(own.disk == Disk::Negotiating && input.holds_exposed);
    if meets_peer && needs_peer && primary && !same(input.exposed, input.peer_current) {
        return UuidsAction::Refuse;
    }
    let fresh = input.own_current.map(plain) == Some(JUST_CREATED);
    if own.conn == Conn::Connected && input.apv >= 90 && fresh && input.skip_initial_sync {
        return UuidsAction::SkipInitialSync;
    }
    // A Primary sees the peer's data only while that is good. (The C module goes by any data from then on.)
    let sees_it = own.pdsk == Disk::UpToDate || !primary;
    if own.disk < Disk::Inconsistent && own.conn >= Conn::Connected && sees_it {
        return UuidsAction::Expose;
    }
    UuidsAction::Keep
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: u64 = 0xaaaa_0000_0000_1000;
    const B: u64 = 0xbbbb_0000_0000_2000;
    const C: u64 = 0xcccc_0000_0000_3000;
    const D: u64 = 0xdddd_0000_0000_4000;
    const E: u64 = 0xeeee_0000_0000_6000;

    fn set(current: u64, bitmap: u64, young: u64, old: u64) -> UuidSet {
        UuidSet { current, bitmap, history: [young, old] }
    }

    #[test]
    fn a_generation_that_a_peer_begins_without_this_disk_is_known_by_the_data_it_goes_by() {
        let own = set(A | 1, B | 1, C, D);
        assert_eq!(generation_begun_without(&own, &set(E, B, C, D)), Some(E));
        for other in [set(E, 0, C, D), set(E, C, D, 0), set(A, B, C, D), set(B, 0, C, D)] {
            assert_eq!(generation_begun_without(&own, &other), None, "{other:x?}");
        }
        assert_eq!(generation_begun_without(&set(A, 0, B, C), &set(E, 0, B, C)), None);
    }

    #[test]
    fn a_resync_that_starts_keeps_what_its_target_has() {
        let starts = |of_target| {
            let mut own = set(A, B, C, D);
            own.start_resync(E, of_target);
            own
        };
        for of_target in [None, Some(B), Some(B | 1), Some(A), Some(C), Some(0)] {
            assert_eq!(starts(of_target), set(A, E, B, C), "{of_target:?}");
        }
        for missed in [D, D | 1] {
            assert_eq!(starts(Some(missed)), set(A, E, B, D), "{missed:x}");
        }
        let mut first = set(A, 0, C, D);
        first.start_resync(E, Some(C));
        assert_eq!(first, set(A, E, C, D));
    }

    fn context(apv: u32) -> CompareContext {
        CompareContext { apv, features: 0xff, ..CompareContext::default() }
    }

    fn mirrored(ctx: &CompareContext) -> CompareContext {
        CompareContext {
            own_crashed: ctx.peer_crashed,
            peer_crashed: ctx.own_crashed,
            own_primary: ctx.peer_primary,
            peer_primary: ctx.own_primary,
            resolve_conflicts: !ctx.resolve_conflicts,
            ..*ctx
        }
    }

    /// Asserts the rule and the result here, and the opposite result on the other node, by `peers_rule`.
    #[track_caller]
    fn check(own: UuidSet, peer: UuidSet, ctx: &CompareContext, rule: Rule, peers_rule: Rule, result: SyncResult) {
        let here = compare(&own, &peer, ctx);
        assert_eq!((here.rule, here.result), (rule, result));
        let there = compare(&peer, &own, &mirrored(ctx));
        assert_eq!((there.rule, there.result), (peers_rule, result.opposite()));
    }

    #[test]
    fn a_primary_without_disk_does_not_take_over_the_generation_of_a_worse_disk() {
        let own = State {
            role: Role::Primary,
            peer: Role::Secondary,
            conn: Conn::Connected,
            disk: Disk::Failed,
            pdsk: Disk::Outdated,
            aftr_isp: false,
            peer_isp: false,
            user_isp: false,
        };
        let input = UuidsInput {
            own,
            apv: 101,
            own_current: Some(A),
            exposed: A,
            holds_exposed: true,
            peer_current: B,
            skip_initial_sync: false,
        };
        assert_eq!(receive_uuids(&input), UuidsAction::Keep);
        let good = State { pdsk: Disk::UpToDate, ..own };
        assert_eq!(receive_uuids(&UuidsInput { own: good, ..input }), UuidsAction::Expose);
    }

    #[test]
    fn rules_10_to_30_new_disks() {
        let ctx = context(101);
        let new = set(JUST_CREATED, 0, 0, 0);
        check(new, new, &ctx, Rule::BothJustCreated, Rule::BothJustCreated, SyncResult::NoSync);
        check(set(5, 0, 0, 0), new, &ctx, Rule::BothJustCreated, Rule::BothJustCreated, SyncResult::NoSync);
        check(new, set(A, B, 0, 0), &ctx, Rule::JustCreated, Rule::PeerJustCreated, FULL_TARGET);
        check(set(0, 0, 0, 0), set(A, B, 0, 0), &ctx, Rule::JustCreated, Rule::PeerJustCreated, FULL_TARGET);
        check(set(A | 1, 0, 0, 0), new, &ctx, Rule::PeerJustCreated, Rule::JustCreated, FULL_SOURCE);
        check(new, set(0, 0, 0, 0), &ctx, Rule::JustCreated, Rule::PeerJustCreated, FULL_TARGET);
    }

    #[test]
    fn rules_34_and_35_missed_end_of_resync() {
        let (source, target) = (set(A, B, C, D), set(A | 1, 0, B, C));
        let rules = (Rule::MissedEndOfResync, Rule::PeerMissedEndOfResync);
        check(source, target, &context(91), rules.0, rules.1, SOURCE);
        let (mut own, mut peer) = (source, target);
        compare(&own, &peer, &context(91)).fixup.unwrap().apply(&mut own, &mut peer);
        assert_eq!((own, peer), (set(A, 0, B, C), target));
        let (mut own, mut peer) = (target, source);
        compare(&own, &peer, &context(91)).fixup.unwrap().apply(&mut own, &mut peer);
        assert_eq!((own, peer), (target, set(A, 0, B, C)));
        let needs = SyncResult::NeedsProtocol(91);
        check(source, target, &context(90), Rule::NeedsProtocol, Rule::NeedsProtocol, needs);
    }

    #[test]
    fn rules_36_and_37_missed_sync_uuid() {
        let (source, target) = (set(A, B, C, D), set(A, 0, C, D));
        check(source, target, &context(91), Rule::PeerMissedSyncUuid, Rule::MissedSyncUuid, SOURCE);
        assert_eq!(compare(&source, &target, &context(91)).fixup, None);
        let needs = SyncResult::NeedsProtocol(91);
        check(source, target, &context(90), Rule::NeedsProtocol, Rule::NeedsProtocol, needs);
        // "There is a bitmap generation" is asked of the full value.
        check(
            set(A, 1, 0, 0),
            set(A, 0, 0, 0),
            &context(101),
            Rule::MissedEndOfResync,
            Rule::PeerMissedEndOfResync,
            SOURCE,
        );
    }

    #[test]
    fn rule_40_same_generation() {
        let ctx = context(101);
        let (one, other) = (set(A, 0, B, C), set(A | 1, 0, D, E));
        check(one, other, &ctx, Rule::SameGeneration, Rule::SameGeneration, SyncResult::NoSync);
        check(set(A, B, 0, 0), set(A, C, 0, 0), &ctx, Rule::SameGeneration, Rule::SameGeneration, SyncResult::NoSync);
        let own = CompareContext { own_crashed: true, ..ctx };
        check(one, other, &own, Rule::OwnCrashed, Rule::PeerCrashed, SOURCE);
        let both = CompareContext { peer_crashed: true, ..own };
        check(one, other, &both, Rule::BothCrashed, Rule::BothCrashed, SOURCE);
        let upper = CompareContext { resolve_conflicts: true, ..both };
        check(one, other, &upper, Rule::BothCrashed, Rule::BothCrashed, TARGET);
    }

    #[test]
    fn rule_41_crash_and_primary() {
        let same = set(A, 0, B, C);
        let base = CompareContext { peer_crashed: true, own_primary: true, ..context(101) };
        check(same, same, &base, Rule::CrashedOwnPrimary, Rule::CrashedPeerPrimary, SOURCE);
        let both = CompareContext { peer_primary: true, ..base };
        let split = SyncResult::SplitBrain { recoverable: false };
        check(same, same, &both, Rule::CrashedBothPrimary, Rule::CrashedBothPrimary, split);
        let old = CompareContext { features: 0xff & !4, ..base };
        let needs = SyncResult::NeedsFeature { protocol: 101, feature: 4 };
        check(same, same, &old, Rule::CrashedNeedsFeature, Rule::CrashedNeedsFeature, needs);
    }

    #[test]
    fn rules_50_and_70_bitmap() {
        let (old, new) = (set(B, 0, 0, 0), set(A | 1, B | 1, C, D));
        check(old, new, &context(101), Rule::CurrentIsPeersBitmap, Rule::BitmapIsPeersCurrent, TARGET);
    }

    #[test]
    fn rules_51_and_71_lost_sync_uuid() {
        // From protocol 96 the announced generation is the bitmap generation plus an offset.
        let (old, new) = (set(B, C, D, E), set(A, B + SYNC_OFFSET, B | 1, C));
        let rules = (Rule::PeersSyncUuidLost, Rule::OwnSyncUuidLost);
        check(old, new, &context(96), rules.0, rules.1, TARGET);
        let (mut own, mut peer) = (old, new);
        compare(&own, &peer, &context(96)).fixup.unwrap().apply(&mut own, &mut peer);
        assert_eq!((own, peer), (old, set(A, B | 1, C, C)));
        let (mut own, mut peer) = (new, old);
        compare(&own, &peer, &context(96)).fixup.unwrap().apply(&mut own, &mut peer);
        assert_eq!((own, peer), (set(A, B | 1, C, C), old));
        // Before, the histories tell.
        let (old, new) = (set(B, 0, C, D), set(A, E, B, C));
        check(old, new, &context(95), rules.0, rules.1, TARGET);
        check(old, new, &context(91), rules.0, rules.1, TARGET);
        let needs = SyncResult::NeedsProtocol(91);
        check(old, new, &context(90), Rule::NeedsProtocol, Rule::NeedsProtocol, needs);
        // Where they do not hold, it is a full resync.
        let rules = (Rule::CurrentIsPeersHistory, Rule::HistoryIsPeersCurrent);
        check(old, new, &context(96), rules.0, rules.1, FULL_TARGET);
        // The sum must not overflow.
        let high = u64::MAX - 1;
        check(set(high, 0, 0, 0), set(A, B, high, C), &context(101), rules.0, rules.1, FULL_TARGET);
    }

    #[test]
    fn rules_60_and_80_history() {
        let rules = (Rule::CurrentIsPeersHistory, Rule::HistoryIsPeersCurrent);
        check(set(D, 0, 0, 0), set(A, B, C, D), &context(101), rules.0, rules.1, FULL_TARGET);
        check(set(C, 0, 0, 0), set(A, B, C, D), &context(101), rules.0, rules.1, FULL_TARGET);
    }

    #[test]
    fn rules_90_and_100_split_brain() {
        let ctx = context(101);
        let auto = SyncResult::SplitBrain { recoverable: true };
        check(set(A, C, 0, 0), set(B, C | 1, D, E), &ctx, Rule::SameBitmap, Rule::SameBitmap, auto);
        let hopeless = SyncResult::SplitBrain { recoverable: false };
        check(set(A, 0, C, D), set(B, 0, E, C | 1), &ctx, Rule::SameHistory, Rule::SameHistory, hopeless);
        check(set(A, C, D, 0), set(B, 0, E, 0), &ctx, Rule::SameHistory, Rule::SameHistory, hopeless);
        let strangers = (set(A, 0, A - 16, A - 32), set(B, 0, B - 16, B - 32));
        check(strangers.0, strangers.1, &ctx, Rule::Unrelated, Rule::Unrelated, SyncResult::Unrelated);
    }

    // The worked scenarios of metadata 6.5 that are about generations.
    #[test]
    fn scenarios() {
        let ctx = context(101);
        let interrupted = (set(A, B + SYNC_OFFSET, B, 0), set(B + SYNC_OFFSET, 0, 0, 0));
        let rules = (Rule::BitmapIsPeersCurrent, Rule::CurrentIsPeersBitmap);
        check(interrupted.0, interrupted.1, &ctx, rules.0, rules.1, SOURCE);
        let both_wrote = (set(A | 1, C, 0, 0), set(B | 1, C, 0, 0));
        let split = SyncResult::SplitBrain { recoverable: true };
        check(both_wrote.0, both_wrote.1, &ctx, Rule::SameBitmap, Rule::SameBitmap, split);
    }

    #[test]
    fn texts_tell_rule_and_evidence() {
        let comparison = compare(&set(B, 0, 0, 0), &set(A, B, 0, 0), &context(101));
        assert_eq!(
            comparison.to_string(),
            "resync target by bitmap (rule 50: the peer recorded its changes since this node's data)"
        );
        let shown = set(A | 1, B, C, D).to_string();
        assert_eq!(shown, "AAAA000000001001:BBBB000000002000:CCCC000000003000:DDDD000000004000");
    }

    // Both nodes come to opposite results, except where the sets contradict each other:
    // * both currents are zero (each takes itself for new), or
    // * each node remembers the other's current data, which no sequence of events produces.
    #[test]
    fn property_both_nodes_agree() {
        let mut random = crate::state::testing::Random::new(6);
        let pool = [0, 1, 4, 5, A, A | 1, B, B | 1, A + SYNC_OFFSET, B + SYNC_OFFSET, C, D];
        let mut compared = 0;
        for _ in 0..400_000 {
            let mut any = || set(random.pick(&pool), random.pick(&pool), random.pick(&pool), random.pick(&pool));
            let (own, peer) = (any(), any());
            let ctx = CompareContext {
                apv: random.pick(&[86, 90, 91, 95, 96, 101]),
                features: random.pick(&[0, 4, 0x1f]),
                own_crashed: random.flag(),
                peer_crashed: random.flag(),
                own_primary: random.flag(),
                peer_primary: random.flag(),
                resolve_conflicts: random.flag(),
            };
            let knows = |set: &UuidSet, uuid| same(set.bitmap, uuid) || set.history.iter().any(|old| same(*old, uuid));
            let both_zero = plain(own.current) == 0 && plain(peer.current) == 0;
            let crossed = knows(&own, peer.current) && knows(&peer, own.current) && !same(own.current, peer.current);
            let here = compare(&own, &peer, &ctx);
            let there = compare(&peer, &own, &mirrored(&ctx));
            if both_zero || crossed {
                continue;
            }
            compared += 1;
            assert_eq!(there.result, here.result.opposite(), "{own} {peer} {ctx:?}: {here} / {there}");
        }
        assert!(compared > 200_000, "{compared}");
    }

    #[test]
    fn received_generations() {
        let alone = State { role: Role::Primary, ..State::initial(Conn::WFConnection) };
        let input = UuidsInput {
            own: alone,
            apv: 101,
            own_current: None,
            exposed: A,
            holds_exposed: false,
            peer_current: A | 1,
            skip_initial_sync: false,
        };
        assert_eq!(receive_uuids(&input), UuidsAction::Keep);
        assert_eq!(receive_uuids(&UuidsInput { peer_current: B, ..input }), UuidsAction::Refuse);
        let reattached = State { conn: Conn::Connected, pdsk: Disk::Diskless, ..alone };
        assert_eq!(receive_uuids(&UuidsInput { own: reattached, peer_current: B, ..input }), UuidsAction::Refuse);
        let attaching = State { pdsk: Disk::Attaching, ..reattached };
        assert_eq!(receive_uuids(&UuidsInput { own: attaching, peer_current: B, ..input }), UuidsAction::Refuse);
        let both = UuidsInput { own: State { disk: Disk::Negotiating, ..reattached }, peer_current: B, ..input };
        assert_eq!(receive_uuids(&both), UuidsAction::Refuse);
        assert_eq!(receive_uuids(&UuidsInput { holds_exposed: true, ..both }), UuidsAction::Keep);
        let connected = State { pdsk: Disk::UpToDate, ..reattached };
        assert_eq!(receive_uuids(&UuidsInput { own: connected, peer_current: B, ..input }), UuidsAction::Expose);
        let secondary = State { role: Role::Secondary, ..alone };
        assert_eq!(receive_uuids(&UuidsInput { own: secondary, peer_current: B, ..input }), UuidsAction::Keep);

        let new = State { disk: Disk::Inconsistent, ..connected };
        let skip = UuidsInput { own: new, own_current: Some(5), skip_initial_sync: true, ..input };
        assert_eq!(receive_uuids(&skip), UuidsAction::SkipInitialSync);
        assert_eq!(receive_uuids(&UuidsInput { apv: 89, ..skip }), UuidsAction::Keep);
        assert_eq!(receive_uuids(&UuidsInput { own_current: Some(A), ..skip }), UuidsAction::Keep);
        assert_eq!(receive_uuids(&UuidsInput { skip_initial_sync: false, ..skip }), UuidsAction::Keep);
        let early = State { conn: Conn::WFReportParams, ..new };
        assert_eq!(receive_uuids(&UuidsInput { own: early, ..skip }), UuidsAction::Keep);
    }
}
