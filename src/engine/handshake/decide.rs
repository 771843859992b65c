// SPDX-License-Identifier: GPL-2.0
//! The decision about a resync: the comparison of the generations, corrected by what the disks are worth, by the
//! policies after a split brain, and by what the administrator asked for.

use super::split_brain::{after_split_brain, Action, Helper, SbDecision, SbOutcome, SbPolicies, SbPolicy, SplitBrain};
use super::uuids::{compare, CompareContext, Comparison, SyncResult, UuidSet};
use crate::state::Disk;
use core::fmt;

/// Whether this node was asked to become Secondary for the sake of a decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Demotion {
    /// Not yet.
    #[default]
    NotTried,
    /// It is Secondary now.
    Done,
    /// It could not.
    Failed,
}

/// What [`decide`] looks at.
#[derive(Clone, Copy, Debug)]
pub struct DecideInput {
    /// Own generations.
    pub own: UuidSet,
    /// The peer's generations.
    pub peer: UuidSet,
    /// Versions, crashes, roles.
    pub context: CompareContext,
    /// Own disk, or what it was found to be at attach while it is `Negotiating`.
    pub own_disk: Disk,
    /// Own disk as it is.
    pub current_disk: Disk,
    /// The peer's disk, with `Negotiating` replaced.
    pub peer_disk: Disk,
    /// Bits set in this node's bitmap, as last told to the peer.
    pub own_changes: u64,
    /// Bits set in the peer's bitmap, as it told.
    pub peer_changes: u64,
    /// after-sb-0pri, -1pri, -2pri.
    pub policies: SbPolicies,
    /// always-asbp: the policies decide also where the common generation is older than the bitmaps.
    pub always_asbp: bool,
    /// discard-my-data of this node.
    pub own_discards: bool,
    /// discard-my-data of the peer.
    pub peer_discards: bool,
    /// rr-conflict: what happens when a Primary would become target.
    pub rr_conflict: SbPolicy,
    /// This node or the peer only wants to know what would happen.
    pub dry_run: bool,
    /// For the second call after [`SyncDecision::Demote`]; everything else stays as in the first.
    pub demotion: Demotion,
}

/// What happens between the two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncDecision {
    /// No resync.
    Connected,
    /// This node becomes source (WFBitMapS).
    SyncSource {
        /// All blocks.
        full: bool,
    },
    /// This node becomes target (WFBitMapT).
    SyncTarget {
        /// All blocks.
        full: bool,
    },
    /// This node must become Secondary first: try it and decide again with [`DecideInput::demotion`] set.
    Demote,
    /// The nodes do not come together.
    Refuse(RefuseReason),
}

impl fmt::Display for SyncDecision {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected => SyncResult::NoSync.fmt(out),
            Self::SyncSource { full } => SyncResult::Source { full: *full }.fmt(out),
            Self::SyncTarget { full } => SyncResult::Target { full: *full }.fmt(out),
            Self::Demote => out.write_str("become Secondary first"),
            Self::Refuse(reason) => write!(out, "refused: {reason}"),
        }
    }
}

/// Why the nodes do not come together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefuseReason {
    /// The data was never the same.
    Unrelated,
    /// The peer's protocol is too old for the case at hand.
    NeedsProtocol(u32),
    /// The peer lacks a feature for the case at hand.
    NeedsFeature {
        /// Protocol version.
        protocol: u32,
        /// Feature bit.
        feature: u32,
    },
    /// Both wrote and nothing decides whose changes are lost.
    SplitBrain,
    /// This node would be source without good data.
    SourceWithoutData,
    /// This node is Primary with data and would be target.
    TargetWhilePrimary,
    /// Only a dry run was asked for; the inner value tells what would have happened.
    DryRun(SyncResult),
}

impl fmt::Display for RefuseReason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // The first words are those that are looked for in logs.
            Self::Unrelated => out.write_str("Unrelated data: the disks never held the same data"),
            Self::NeedsProtocol(version) => write!(out, "both nodes need protocol {version} or newer"),
            Self::NeedsFeature { protocol, feature } => {
                write!(out, "both nodes need protocol {protocol} and feature {feature:#x}")
            }
            Self::SplitBrain => out.write_str("nothing decides whose changes to discard"),
            Self::SourceWithoutData => out.write_str("this node would be resync source without good data"),
            Self::TargetWhilePrimary => out.write_str("this node is Primary and would be resync target"),
            Self::DryRun(result) => write!(out, "dry run, it would be: {result}"),
        }
    }
}

/// What settled the question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecidedBy {
    /// The generations alone.
    Generations,
    /// One disk is Inconsistent and the other is better.
    Disks,
    /// An after-split-brain policy, for this reason.
    Policy(&'static str),
    /// discard-my-data of one node.
    DiscardMyData,
}

impl fmt::Display for DecidedBy {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Generations => out.write_str("by the data generations"),
            Self::Disks => out.write_str("because one disk is Inconsistent"),
            Self::Policy(reason) => write!(out, "by policy: {reason}"),
            Self::DiscardMyData => out.write_str("by discard-my-data"),
        }
    }
}

/// Something to do for a decision, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thing {
    /// Run a helper.
    CallHelper(Helper),
    /// Set all bits of the bitmap and write it; if that fails, refuse.
    SetAllBits,
}

/// Most things one decision can ask for: two helpers for a split brain, one more after a failed demotion.
const MAX_THINGS: usize = 4;

/// The things to do for a decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Things([Option<Thing>; MAX_THINGS]);

impl Things {
    fn push(&mut self, thing: Thing) {
        if let Some(place) = self.0.iter_mut().find(|place| place.is_none()) {
            *place = Some(thing);
        }
    }

    /// In the order to be done.
    pub fn iter(&self) -> impl Iterator<Item = Thing> + '_ {
        self.0.iter().copied().flatten()
    }
}

/// The decision with everything needed to carry it out and to explain it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What happens.
    pub decision: SyncDecision,
    /// The rule and the evidence it began with; also the correction of the generations.
    pub comparison: Comparison,
    /// What settled it.
    pub by: DecidedBy,
    /// A Primary gives up its data because rr-conflict says so: to be warned about.
    pub violent: bool,
    /// What to do.
    pub things: Things,
}

impl fmt::Display for Decision {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {} ({})", self.decision, self.by, self.comparison.rule)
    }
}

/// Decides about a resync.
// spec: state-machine 15, wire-protocol 8.1
pub fn decide(input: &DecideInput) -> Decision {
    let comparison = compare(&input.own, &input.peer, &input.context);
    let mut verdict = Verdict { by: DecidedBy::Generations, violent: false, things: Things::default() };
    let decision = match verdict.settle(input, comparison.result) {
        Ok(decision) => decision,
        Err(reason) => SyncDecision::Refuse(reason),
    };
    if matches!(decision, SyncDecision::SyncSource { full: true } | SyncDecision::SyncTarget { full: true }) {
        verdict.things.push(Thing::SetAllBits);
    }
    Decision { decision, comparison, by: verdict.by, violent: verdict.violent, things: verdict.things }
}

/// The decision while it is being made.
struct Verdict {
    by: DecidedBy,
    violent: bool,
    things: Things,
}

impl Verdict {
    /// The steps of 15.2 in their order.
    fn settle(&mut self, input: &DecideInput, found: SyncResult) -> Result<SyncDecision, RefuseReason> {
        match found {
            SyncResult::Unrelated => return Err(RefuseReason::Unrelated),
            SyncResult::NeedsProtocol(version) => return Err(RefuseReason::NeedsProtocol(version)),
            SyncResult::NeedsFeature { protocol, feature } => {
                return Err(RefuseReason::NeedsFeature { protocol, feature })
            }
            _ => {}
        }
        let corrected = self.by_disks(input, found);
        let Some(result) = self.end_split_brain(input, corrected)? else {
            return Ok(SyncDecision::Demote);
        };
        self.forbid_loss(input, result)?;
        if input.dry_run {
            return Err(RefuseReason::DryRun(result));
        }
        Ok(match result {
            SyncResult::Source { full } => SyncDecision::SyncSource { full },
            SyncResult::Target { full } => SyncDecision::SyncTarget { full },
            _ => SyncDecision::Connected,
        })
    }

    /// Step 2: a complete disk is source for an Inconsistent one, whatever the generations say.
    fn by_disks(&mut self, input: &DecideInput, found: SyncResult) -> SyncResult {
        let (own, peer) = (input.own_disk, input.peer_disk);
        let own_better = peer == Disk::Inconsistent && own > Disk::Inconsistent;
        let peer_better = own == Disk::Inconsistent && peer > Disk::Inconsistent;
        let full = matches!(
            found,
            SyncResult::SplitBrain { recoverable: false }
                | SyncResult::Source { full: true }
                | SyncResult::Target { full: true }
        );
        let decided = match (own_better, peer_better) {
            (true, _) => SyncResult::Source { full },
            (_, true) => SyncResult::Target { full },
            _ => return found,
        };
        if decided != found {
            self.by = DecidedBy::Disks;
        }
        decided
    }

    /// Steps 3 to 6. `None` if this node must become Secondary before it can be said.
    fn end_split_brain(&mut self, input: &DecideInput, found: SyncResult) -> Result<Option<SyncResult>, RefuseReason> {
        let SyncResult::SplitBrain { recoverable } = found else {
            return Ok(Some(found));
        };
        if input.demotion == Demotion::NotTried {
            self.things.push(Thing::CallHelper(Helper::InitialSplitBrain));
        }
        if recoverable || input.always_asbp {
            let outcome = policy(input);
            match (outcome.action, input.demotion) {
                (Some(Action::Demote), Demotion::NotTried) => return Ok(None),
                (Some(Action::CallHelper(helper)), _) => self.things.push(Thing::CallHelper(helper)),
                _ => {}
            }
            let full = !recoverable;
            let solved = match outcome.decision {
                SbDecision::Source => Some(SyncResult::Source { full }),
                SbDecision::Target => Some(SyncResult::Target { full }),
                SbDecision::Unresolved => None,
            };
            self.by = DecidedBy::Policy(outcome.reason);
            if solved.is_some() {
                return Ok(solved);
            }
        }
        if input.own_discards != input.peer_discards {
            self.by = DecidedBy::DiscardMyData;
            let full = false;
            return Ok(Some(if input.own_discards {
                SyncResult::Target { full }
            } else {
                SyncResult::Source { full }
            }));
        }
        self.things.push(Thing::CallHelper(Helper::SplitBrain));
        Err(RefuseReason::SplitBrain)
    }

    /// Steps 7 and 8: bad data is not spread, a Primary's data is not taken away.
    fn forbid_loss(&mut self, input: &DecideInput, result: SyncResult) -> Result<(), RefuseReason> {
        let is_primary = input.context.own_primary && input.demotion != Demotion::Done;
        match result {
            SyncResult::Source { .. } if input.own_disk <= Disk::Inconsistent => Err(RefuseReason::SourceWithoutData),
            SyncResult::Target { .. } if is_primary && input.current_disk >= Disk::Consistent => {
                if input.rr_conflict == SbPolicy::Violently {
                    self.violent = true;
                    return Ok(());
                }
                if input.rr_conflict == SbPolicy::CallHelper {
                    self.things.push(Thing::CallHelper(Helper::PriLost));
                }
                Err(RefuseReason::TargetWhilePrimary)
            }
            _ => Ok(()),
        }
    }
}

/// The after-split-brain policy, with the outcome of a demotion it asked for.
fn policy(input: &DecideInput) -> SbOutcome {
    let outcome = after_split_brain(&SplitBrain {
        policies: input.policies,
        own_primary: input.context.own_primary,
        peer_primary: input.context.peer_primary,
        own_was_primary: input.own.bitmap & 1 == 1,
        peer_was_primary: input.peer.bitmap & 1 == 1,
        own_changes: input.own_changes,
        peer_changes: input.peer_changes,
        resolve_conflicts: input.context.resolve_conflicts,
    });
    match (outcome.action, input.demotion) {
        (Some(Action::Demote), Demotion::Failed) => SbOutcome::DEMOTION_FAILED,
        _ => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::super::uuids::Rule;
    use super::*;
    use crate::state::testing::Random;

    const A: u64 = 0xaaaa_0000_0000_1000;
    const B: u64 = 0xbbbb_0000_0000_2000;
    const C: u64 = 0xcccc_0000_0000_3000;

    fn set(current: u64, bitmap: u64) -> UuidSet {
        UuidSet { current, bitmap, history: [0, 0] }
    }

    /// Two good disks with the same data.
    fn equal() -> DecideInput {
        DecideInput {
            own: set(A, 0),
            peer: set(A, 0),
            context: CompareContext { apv: 101, features: 0xff, ..CompareContext::default() },
            own_disk: Disk::UpToDate,
            current_disk: Disk::UpToDate,
            peer_disk: Disk::UpToDate,
            own_changes: 7,
            peer_changes: 9,
            policies: SbPolicies::default(),
            always_asbp: false,
            own_discards: false,
            peer_discards: false,
            rr_conflict: SbPolicy::Disconnect,
            dry_run: false,
            demotion: Demotion::NotTried,
        }
    }

    /// Both wrote since they had generation C.
    fn split() -> DecideInput {
        DecideInput { own: set(A, C), peer: set(B, C), ..equal() }
    }

    /// Both wrote, the bitmaps began at different times.
    fn hopeless() -> DecideInput {
        DecideInput { own: set(A, 0), peer: set(B, C), ..equal() }
    }

    fn asked(input: &DecideInput) -> (SyncDecision, Vec<Thing>) {
        let decision = decide(input);
        (decision.decision, decision.things.iter().collect())
    }

    const INITIAL: Thing = Thing::CallHelper(Helper::InitialSplitBrain);
    const SPLIT: Thing = Thing::CallHelper(Helper::SplitBrain);

    #[test]
    fn plain_results() {
        assert_eq!(asked(&equal()), (SyncDecision::Connected, vec![]));
        let behind = DecideInput { own: set(C, 0), peer: set(A, C), ..equal() };
        assert_eq!(asked(&behind), (SyncDecision::SyncTarget { full: false }, vec![]));
        let ahead = DecideInput { own: set(A, C), peer: set(C, 0), ..equal() };
        assert_eq!(asked(&ahead), (SyncDecision::SyncSource { full: false }, vec![]));
        let first = DecideInput { peer: set(4, 0), ..equal() };
        assert_eq!(asked(&first), (SyncDecision::SyncSource { full: true }, vec![Thing::SetAllBits]));
    }

    #[test]
    fn step_1_refusals_of_the_comparison() {
        let strangers = DecideInput {
            own: UuidSet { history: [A - 16, A - 32], ..set(A, 0) },
            peer: UuidSet { history: [B - 16, B - 32], ..set(B, 0) },
            ..equal()
        };
        assert_eq!(asked(&strangers).0, SyncDecision::Refuse(RefuseReason::Unrelated));
        let old = CompareContext { apv: 90, ..equal().context };
        let repair = DecideInput { own: set(A, B), context: old, ..equal() };
        assert_eq!(asked(&repair).0, SyncDecision::Refuse(RefuseReason::NeedsProtocol(91)));
        let context = CompareContext { own_primary: true, own_crashed: true, features: 0, ..equal().context };
        let needs = RefuseReason::NeedsFeature { protocol: 101, feature: 4 };
        assert_eq!(asked(&DecideInput { context, ..equal() }).0, SyncDecision::Refuse(needs));
    }

    #[test]
    fn step_2_disks_decide_the_direction() {
        let bad_here = DecideInput { own_disk: Disk::Inconsistent, current_disk: Disk::Inconsistent, ..equal() };
        let decision = decide(&bad_here);
        assert_eq!((decision.decision, decision.by), (SyncDecision::SyncTarget { full: false }, DecidedBy::Disks));
        let bad_there = DecideInput { peer_disk: Disk::Inconsistent, own_disk: Disk::Outdated, ..equal() };
        assert_eq!(asked(&bad_there).0, SyncDecision::SyncSource { full: false });
        // A full resync stays one, also when it turns round, and so does a hopeless split brain.
        let full = DecideInput { own: set(4, 0), peer_disk: Disk::Inconsistent, ..equal() };
        assert_eq!(asked(&full), (SyncDecision::SyncSource { full: true }, vec![Thing::SetAllBits]));
        let lost = DecideInput { peer_disk: Disk::Inconsistent, ..hopeless() };
        assert_eq!(asked(&lost), (SyncDecision::SyncSource { full: true }, vec![Thing::SetAllBits]));
        let recoverable = DecideInput { peer_disk: Disk::Inconsistent, ..split() };
        assert_eq!(asked(&recoverable), (SyncDecision::SyncSource { full: false }, vec![]));
        let both_bad = DecideInput { own_disk: Disk::Inconsistent, peer_disk: Disk::Inconsistent, ..equal() };
        assert_eq!(asked(&both_bad).0, SyncDecision::Connected);
    }

    #[test]
    fn steps_3_to_6_split_brain() {
        let unresolved = SyncDecision::Refuse(RefuseReason::SplitBrain);
        assert_eq!(asked(&split()), (unresolved, vec![INITIAL, SPLIT]));
        let policies = SbPolicies { zero: SbPolicy::DiscardLeastChanges, ..SbPolicies::default() };
        let least = DecideInput { policies, ..split() };
        assert_eq!(asked(&least), (SyncDecision::SyncTarget { full: false }, vec![INITIAL]));
        assert_eq!(decide(&least).by, DecidedBy::Policy("this node wrote less"));
        // The bits that tell the role are those of the bitmap generations.
        let policies = SbPolicies { zero: SbPolicy::DiscardYoungerPrimary, ..policies };
        let older = DecideInput { own: set(A, C | 1), policies, ..split() };
        assert_eq!(asked(&older).0, SyncDecision::SyncSource { full: false });
        // A split brain that is not recoverable needs always-asbp, and then all blocks.
        let far = DecideInput { policies: least.policies, ..hopeless() };
        assert_eq!(asked(&far).0, unresolved);
        let always = DecideInput { always_asbp: true, ..far };
        assert_eq!(asked(&always), (SyncDecision::SyncTarget { full: true }, vec![INITIAL, Thing::SetAllBits]));
    }

    #[test]
    fn step_5_discard_my_data() {
        for input in [split(), hopeless()] {
            let own = DecideInput { own_discards: true, ..input };
            assert_eq!(asked(&own), (SyncDecision::SyncTarget { full: false }, vec![INITIAL]));
            assert_eq!(decide(&own).by, DecidedBy::DiscardMyData);
            let peer = DecideInput { peer_discards: true, ..input };
            assert_eq!(asked(&peer), (SyncDecision::SyncSource { full: false }, vec![INITIAL]));
            let both = DecideInput { own_discards: true, ..peer };
            assert_eq!(asked(&both).0, SyncDecision::Refuse(RefuseReason::SplitBrain));
        }
        assert_eq!(asked(&DecideInput { own_discards: true, ..equal() }).0, SyncDecision::Connected);
    }

    #[test]
    fn a_primary_that_loses_is_demoted_first() {
        let context = CompareContext { own_primary: true, ..equal().context };
        let policies =
            SbPolicies { zero: SbPolicy::DiscardLeastChanges, one: SbPolicy::CallHelper, two: SbPolicy::Disconnect };
        let input = DecideInput { context, policies, ..split() };
        assert_eq!(asked(&input), (SyncDecision::Demote, vec![INITIAL]));
        let done = DecideInput { demotion: Demotion::Done, ..input };
        assert_eq!(asked(&done), (SyncDecision::SyncTarget { full: false }, vec![]));
        let failed = DecideInput { demotion: Demotion::Failed, ..input };
        let helper = Thing::CallHelper(Helper::PriLostAfterSb);
        assert_eq!(asked(&failed), (SyncDecision::Refuse(RefuseReason::SplitBrain), vec![helper, SPLIT]));
    }

    #[test]
    fn step_7_bad_data_is_not_spread() {
        for disk in [Disk::Inconsistent, Disk::Diskless] {
            let input = DecideInput { own_disk: disk, peer_disk: disk, peer: set(4, 0), ..equal() };
            assert_eq!(asked(&input).0, SyncDecision::Refuse(RefuseReason::SourceWithoutData));
        }
    }

    #[test]
    fn step_8_a_primary_keeps_its_data() {
        let context = CompareContext { own_primary: true, ..equal().context };
        let input = DecideInput { own: set(C, 0), peer: set(A, C), context, ..equal() };
        let refused = SyncDecision::Refuse(RefuseReason::TargetWhilePrimary);
        assert_eq!(asked(&input), (refused, vec![]));
        let helper = DecideInput { rr_conflict: SbPolicy::CallHelper, ..input };
        assert_eq!(asked(&helper), (refused, vec![Thing::CallHelper(Helper::PriLost)]));
        let violent = decide(&DecideInput { rr_conflict: SbPolicy::Violently, ..input });
        assert_eq!((violent.decision, violent.violent), (SyncDecision::SyncTarget { full: false }, true));
        // A Primary without good data of its own loses nothing.
        let diskless = DecideInput { current_disk: Disk::Negotiating, ..input };
        assert_eq!(asked(&diskless).0, SyncDecision::SyncTarget { full: false });
    }

    #[test]
    fn step_9_dry_run() {
        let input = DecideInput { own: set(4, 0), dry_run: true, ..equal() };
        let would = SyncResult::Target { full: true };
        assert_eq!(asked(&input), (SyncDecision::Refuse(RefuseReason::DryRun(would)), vec![]));
        assert_eq!(
            decide(&input).to_string(),
            "refused: dry run, it would be: target of a full resync by the data generations \
             (rule 20: this disk is just created, the peer's is not)"
        );
    }

    #[test]
    fn rule_and_correction_are_kept() {
        let own = UuidSet { history: [B, C], ..set(A, 0) };
        let peer = UuidSet { current: A, bitmap: B, history: [C, 0] };
        let decision = decide(&DecideInput { own, peer, ..equal() });
        assert_eq!(decision.comparison.rule, Rule::PeerMissedEndOfResync);
        assert!(decision.comparison.fixup.is_some());
    }

    // Where both nodes let a resync happen they are on opposite sides of it.
    #[test]
    fn property_both_nodes_agree() {
        let mut random = Random::new(8);
        let mut resyncs = 0;
        for _ in 0..200_000 {
            let pool = [0, 4, A, B, C, C | 1];
            let mut any = || UuidSet {
                current: random.pick(&pool),
                bitmap: random.pick(&pool),
                history: [random.pick(&[0, A]), 0],
            };
            let (own, peer) = (any(), any());
            let disks = [Disk::Inconsistent, Disk::Outdated, Disk::Consistent, Disk::UpToDate];
            let (own_disk, peer_disk) = (random.pick(&disks), random.pick(&disks));
            let policies = SbPolicies {
                zero: random.pick(SbPolicy::ALL),
                one: random.pick(SbPolicy::ALL),
                two: random.pick(SbPolicy::ALL),
            };
            let context = CompareContext {
                own_crashed: random.flag(),
                peer_crashed: random.flag(),
                own_primary: random.flag(),
                peer_primary: random.flag(),
                resolve_conflicts: random.flag(),
                ..equal().context
            };
            let here = DecideInput {
                own,
                peer,
                context,
                own_disk,
                current_disk: own_disk,
                peer_disk,
                own_changes: random.pick(&[0, 1, 2]),
                peer_changes: random.pick(&[0, 1, 2]),
                policies,
                always_asbp: random.flag(),
                own_discards: random.flag(),
                peer_discards: random.flag(),
                rr_conflict: SbPolicy::Violently,
                ..equal()
            };
            let there = DecideInput {
                own: peer,
                peer: own,
                context: CompareContext {
                    own_crashed: context.peer_crashed,
                    peer_crashed: context.own_crashed,
                    own_primary: context.peer_primary,
                    peer_primary: context.own_primary,
                    resolve_conflicts: !context.resolve_conflicts,
                    ..context
                },
                own_disk: peer_disk,
                current_disk: peer_disk,
                peer_disk: own_disk,
                own_changes: here.peer_changes,
                peer_changes: here.own_changes,
                policies: SbPolicies { zero: policies.zero.mirrored(), ..policies },
                own_discards: here.peer_discards,
                peer_discards: here.own_discards,
                ..here
            };
            let opposite_rules =
                compare(&peer, &own, &there.context).result == compare(&own, &peer, &context).result.opposite();
            match (decide(&here).decision, decide(&there).decision) {
                _ if !opposite_rules => {}
                (SyncDecision::SyncSource { full }, other) | (other, SyncDecision::SyncSource { full }) => {
                    let refused = matches!(other, SyncDecision::Demote | SyncDecision::Refuse(_));
                    assert!(refused || other == SyncDecision::SyncTarget { full }, "{here:?}");
                    resyncs += 1;
                }
                (SyncDecision::SyncTarget { .. }, other) | (other, SyncDecision::SyncTarget { .. }) => {
                    assert!(matches!(other, SyncDecision::Demote | SyncDecision::Refuse(_)), "{here:?}");
                }
                (one, other) => {
                    assert_eq!(one == SyncDecision::Connected, other == SyncDecision::Connected, "{here:?}");
                }
            }
        }
        assert!(resyncs > 50_000, "{resyncs}");
    }
}
