// SPDX-License-Identifier: GPL-2.0
//! After a split brain: what the configured policies make of it.
//!
//! Both nodes hold the same policies (the handshake refuses others, with local and remote mirrored), know the same
//! numbers and so come to opposite decisions.

use core::fmt;

/// Makes the policies from one table: name, number, option word.
macro_rules! policies {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $word:literal;)*) => {
        /// An after-split-brain policy; the common numbering of all of them and of rr-conflict.
        // spec: state-machine 1.7
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum SbPolicy {
            $($(#[$doc])* $variant = $number,)*
        }

        impl SbPolicy {
            /// Every policy, by number.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The policy with this number on the wire and in the control protocol.
            pub const fn from_u32(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// The number on the wire and in the control protocol.
            pub const fn number(self) -> u32 {
                self as u32
            }

            /// The word in the configuration.
            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }
        }
    };
}

policies! {
    /// No resync, the nodes part.
    Disconnect = 0, "disconnect";
    /// Who became Primary last loses.
    DiscardYoungerPrimary = 1, "discard-younger-primary";
    /// Who became Primary first loses.
    DiscardOlderPrimary = 2, "discard-older-primary";
    /// Who wrote nothing loses.
    DiscardZeroChanges = 3, "discard-zero-changes";
    /// Who wrote less loses.
    DiscardLeastChanges = 4, "discard-least-changes";
    /// This node loses.
    DiscardLocal = 5, "discard-local";
    /// The peer loses.
    DiscardRemote = 6, "discard-remote";
    /// As without Primaries, if that makes the Secondary lose.
    Consensus = 7, "consensus";
    /// The Secondary loses.
    DiscardSecondary = 8, "discard-secondary";
    /// As without Primaries; a Primary that loses must become Secondary first, else a helper is called.
    CallHelper = 9, "call-pri-lost-after-sb";
    /// As without Primaries, even if a Primary loses.
    Violently = 10, "violently-as0p";
}

impl SbPolicy {
    /// The policy the other node must have.
    // spec: wire-protocol 4.4
    #[must_use]
    pub const fn mirrored(self) -> Self {
        match self {
            Self::DiscardLocal => Self::DiscardRemote,
            Self::DiscardRemote => Self::DiscardLocal,
            same => same,
        }
    }
}

impl fmt::Display for SbPolicy {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.word())
    }
}

/// The configured policies by the number of Primaries at the time the nodes meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SbPolicies {
    /// after-sb-0pri
    pub zero: SbPolicy,
    /// after-sb-1pri
    pub one: SbPolicy,
    /// after-sb-2pri
    pub two: SbPolicy,
}

impl Default for SbPolicies {
    fn default() -> Self {
        Self { zero: SbPolicy::Disconnect, one: SbPolicy::Disconnect, two: SbPolicy::Disconnect }
    }
}

/// What the policies look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitBrain {
    /// The configuration.
    pub policies: SbPolicies,
    /// This node is Primary.
    pub own_primary: bool,
    /// The peer is Primary.
    pub peer_primary: bool,
    /// This node was Primary when the generations parted: lowest bit of its bitmap generation.
    pub own_was_primary: bool,
    /// The peer was Primary when the generations parted: lowest bit of its bitmap generation.
    pub peer_was_primary: bool,
    /// Bits set in this node's bitmap, as last told to the peer.
    pub own_changes: u64,
    /// Bits set in the peer's bitmap, as it told.
    pub peer_changes: u64,
    /// This node has the upper hand where both are equal (and therefore gives in).
    pub resolve_conflicts: bool,
}

/// What becomes of a split brain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SbDecision {
    /// This node's data wins.
    Source,
    /// The peer's data wins.
    Target,
    /// A person must decide.
    Unresolved,
}

/// A program that is told what happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Helper {
    /// pri-lost-after-sb
    PriLostAfterSb,
    /// pri-lost
    PriLost,
    /// initial-split-brain
    InitialSplitBrain,
    /// split-brain
    SplitBrain,
}

impl Helper {
    /// The name it is called by.
    // spec: state-machine 11
    pub const fn name(self) -> &'static str {
        match self {
            Self::PriLostAfterSb => "pri-lost-after-sb",
            Self::PriLost => "pri-lost",
            Self::InitialSplitBrain => "initial-split-brain",
            Self::SplitBrain => "split-brain",
        }
    }
}

/// Something to do before a decision may be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Become Secondary (soft, without waiting). If that fails the outcome is [`SbOutcome::DEMOTION_FAILED`].
    Demote,
    /// Run a helper.
    CallHelper(Helper),
}

/// The decision, what it takes, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SbOutcome {
    /// What becomes of the split brain.
    pub decision: SbDecision,
    /// What must be done for it.
    pub action: Option<Action>,
    /// Why, for the log.
    pub reason: &'static str,
}

impl SbOutcome {
    /// What holds when this node should have become Secondary and could not.
    pub const DEMOTION_FAILED: Self = Self {
        decision: SbDecision::Unresolved,
        action: Some(Action::CallHelper(Helper::PriLostAfterSb)),
        reason: "this node lost and cannot become Secondary",
    };

    const fn new(decision: SbDecision, reason: &'static str) -> Self {
        Self { decision, action: None, reason }
    }

    const fn unresolved(reason: &'static str) -> Self {
        Self::new(SbDecision::Unresolved, reason)
    }
}

const WRONG_POLICY: SbOutcome = SbOutcome::unresolved("the policy does not fit the number of Primaries");

/// Applies the policy for the number of Primaries.
// spec: state-machine 16
pub fn after_split_brain(input: &SplitBrain) -> SbOutcome {
    match (input.own_primary, input.peer_primary) {
        (false, false) => no_primary(input),
        (true, true) => two_primaries(input),
        _ => one_primary(input),
    }
}

// spec: state-machine 16.1
fn no_primary(input: &SplitBrain) -> SbOutcome {
    use SbDecision::{Source, Target};
    match (input.policies.zero, input.own_was_primary, input.peer_was_primary) {
        (SbPolicy::Disconnect, ..) => SbOutcome::unresolved("after-sb-0pri is disconnect"),
        (SbPolicy::DiscardYoungerPrimary, false, true) => SbOutcome::new(Target, "the peer was Primary first"),
        (SbPolicy::DiscardYoungerPrimary, true, false) => SbOutcome::new(Source, "this node was Primary first"),
        (SbPolicy::DiscardOlderPrimary, false, true) => SbOutcome::new(Source, "this node was Primary last"),
        (SbPolicy::DiscardOlderPrimary, true, false) => SbOutcome::new(Target, "the peer was Primary last"),
        (SbPolicy::DiscardYoungerPrimary | SbPolicy::DiscardOlderPrimary, ..) => {
            zero_changes(input).unwrap_or_else(|| least_changes(input))
        }
        (SbPolicy::DiscardZeroChanges, ..) => zero_changes(input).unwrap_or(SbOutcome::unresolved("both nodes wrote")),
        (SbPolicy::DiscardLeastChanges, ..) => least_changes(input),
        (SbPolicy::DiscardLocal, ..) => SbOutcome::new(Target, "after-sb-0pri is discard-local"),
        (SbPolicy::DiscardRemote, ..) => SbOutcome::new(Source, "after-sb-0pri is discard-remote"),
        (SbPolicy::Consensus | SbPolicy::DiscardSecondary | SbPolicy::CallHelper | SbPolicy::Violently, ..) => {
            WRONG_POLICY
        }
    }
}

/// Who wrote nothing loses.
fn zero_changes(input: &SplitBrain) -> Option<SbOutcome> {
    match (input.own_changes, input.peer_changes) {
        (0, 0) => Some(SbOutcome::new(tie(input), "neither node wrote")),
        (_, 0) => Some(SbOutcome::new(SbDecision::Source, "the peer wrote nothing")),
        (0, _) => Some(SbOutcome::new(SbDecision::Target, "this node wrote nothing")),
        _ => None,
    }
}

/// Who wrote less loses.
fn least_changes(input: &SplitBrain) -> SbOutcome {
    match input.own_changes.cmp(&input.peer_changes) {
        core::cmp::Ordering::Less => SbOutcome::new(SbDecision::Target, "this node wrote less"),
        core::cmp::Ordering::Greater => SbOutcome::new(SbDecision::Source, "the peer wrote less"),
        core::cmp::Ordering::Equal => SbOutcome::new(tie(input), "both nodes wrote as much"),
    }
}

fn tie(input: &SplitBrain) -> SbDecision {
    if input.resolve_conflicts {
        SbDecision::Target
    } else {
        SbDecision::Source
    }
}

// spec: state-machine 16.2
fn one_primary(input: &SplitBrain) -> SbOutcome {
    let base = no_primary(input);
    match input.policies.one {
        SbPolicy::Disconnect => SbOutcome::unresolved("after-sb-1pri is disconnect"),
        SbPolicy::Consensus => match (base.decision, input.own_primary) {
            (SbDecision::Target, false) | (SbDecision::Source, true) => base,
            _ => SbOutcome::unresolved("no consensus to discard the Secondary's changes"),
        },
        SbPolicy::Violently => base,
        SbPolicy::DiscardSecondary if input.own_primary => {
            SbOutcome::new(SbDecision::Source, "the peer is the Secondary")
        }
        SbPolicy::DiscardSecondary => SbOutcome::new(SbDecision::Target, "this node is the Secondary"),
        SbPolicy::CallHelper => demoting(base, input),
        SbPolicy::DiscardYoungerPrimary
        | SbPolicy::DiscardOlderPrimary
        | SbPolicy::DiscardZeroChanges
        | SbPolicy::DiscardLeastChanges
        | SbPolicy::DiscardLocal
        | SbPolicy::DiscardRemote => WRONG_POLICY,
    }
}

// spec: state-machine 16.3
fn two_primaries(input: &SplitBrain) -> SbOutcome {
    match input.policies.two {
        SbPolicy::Disconnect => SbOutcome::unresolved("after-sb-2pri is disconnect"),
        SbPolicy::Violently => no_primary(input),
        SbPolicy::CallHelper => demoting(no_primary(input), input),
        _ => WRONG_POLICY,
    }
}

/// A Primary must step down before it loses its changes.
fn demoting(base: SbOutcome, input: &SplitBrain) -> SbOutcome {
    let steps_down = base.decision == SbDecision::Target && input.own_primary;
    SbOutcome { action: steps_down.then_some(Action::Demote), ..base }
}

#[cfg(test)]
mod tests {
    use super::*;
    use SbDecision::{Source, Target, Unresolved};

    fn split(zero: SbPolicy) -> SplitBrain {
        SplitBrain {
            policies: SbPolicies { zero, ..SbPolicies::default() },
            own_primary: false,
            peer_primary: false,
            own_was_primary: false,
            peer_was_primary: false,
            own_changes: 7,
            peer_changes: 9,
            resolve_conflicts: false,
        }
    }

    fn decided(input: SplitBrain) -> SbDecision {
        after_split_brain(&input).decision
    }

    #[test]
    fn numbers_and_words() {
        for (number, policy) in (0..).zip(SbPolicy::ALL.iter().copied()) {
            assert_eq!((policy.number(), SbPolicy::from_u32(number)), (number, Some(policy)));
        }
        assert_eq!(SbPolicy::ALL.len(), 11);
        assert_eq!(SbPolicy::from_u32(11), None);
        assert_eq!(SbPolicy::DiscardLocal.mirrored(), SbPolicy::DiscardRemote);
        assert_eq!(SbPolicy::Consensus.mirrored(), SbPolicy::Consensus);
    }

    #[test]
    fn without_primary() {
        assert_eq!(decided(split(SbPolicy::Disconnect)), Unresolved);
        assert_eq!(decided(split(SbPolicy::DiscardLocal)), Target);
        assert_eq!(decided(split(SbPolicy::DiscardRemote)), Source);
        for wrong in [SbPolicy::Consensus, SbPolicy::DiscardSecondary, SbPolicy::CallHelper, SbPolicy::Violently] {
            assert_eq!(after_split_brain(&split(wrong)), WRONG_POLICY);
        }
    }

    #[test]
    fn younger_and_older_primary() {
        for (policy, own_first) in [(SbPolicy::DiscardYoungerPrimary, Source), (SbPolicy::DiscardOlderPrimary, Target)]
        {
            let own = SplitBrain { own_was_primary: true, ..split(policy) };
            assert_eq!(decided(own), own_first);
            let peer = SplitBrain { peer_was_primary: true, ..split(policy) };
            assert_eq!(decided(peer), if own_first == Source { Target } else { Source });
            // Equal: who wrote nothing, then who wrote less.
            for both in [false, true] {
                let equal = SplitBrain { own_was_primary: both, peer_was_primary: both, ..split(policy) };
                assert_eq!(decided(SplitBrain { peer_changes: 0, ..equal }), Source);
                assert_eq!(decided(SplitBrain { own_changes: 0, ..equal }), Target);
                assert_eq!(decided(equal), Target);
                assert_eq!(decided(SplitBrain { own_changes: 10, ..equal }), Source);
            }
        }
    }

    #[test]
    fn zero_and_least_changes() {
        let zero = split(SbPolicy::DiscardZeroChanges);
        assert_eq!(decided(zero), Unresolved);
        assert_eq!(decided(SplitBrain { own_changes: 0, ..zero }), Target);
        assert_eq!(decided(SplitBrain { peer_changes: 0, ..zero }), Source);
        let none = SplitBrain { own_changes: 0, peer_changes: 0, ..zero };
        assert_eq!(decided(none), Source);
        assert_eq!(decided(SplitBrain { resolve_conflicts: true, ..none }), Target);
        let least = split(SbPolicy::DiscardLeastChanges);
        assert_eq!(decided(least), Target);
        assert_eq!(decided(SplitBrain { own_changes: 10, ..least }), Source);
        let equal = SplitBrain { own_changes: 9, ..least };
        assert_eq!(decided(equal), Source);
        assert_eq!(decided(SplitBrain { resolve_conflicts: true, ..equal }), Target);
    }

    #[test]
    fn with_one_primary() {
        let with = |one, zero, own_primary| {
            let policies = SbPolicies { zero, one, two: SbPolicy::Disconnect };
            after_split_brain(&SplitBrain { policies, own_primary, peer_primary: !own_primary, ..split(zero) })
        };
        let (local, remote) = (SbPolicy::DiscardLocal, SbPolicy::DiscardRemote);
        assert_eq!(with(SbPolicy::Disconnect, local, true).decision, Unresolved);
        assert_eq!(with(SbPolicy::Consensus, local, false).decision, Target);
        assert_eq!(with(SbPolicy::Consensus, remote, true).decision, Source);
        assert_eq!(with(SbPolicy::Consensus, local, true).decision, Unresolved);
        assert_eq!(with(SbPolicy::Consensus, remote, false).decision, Unresolved);
        assert_eq!(with(SbPolicy::Violently, local, true).decision, Target);
        assert_eq!(with(SbPolicy::DiscardSecondary, local, true).decision, Source);
        assert_eq!(with(SbPolicy::DiscardSecondary, remote, false).decision, Target);
        let demote = with(SbPolicy::CallHelper, local, true);
        assert_eq!((demote.decision, demote.action), (Target, Some(Action::Demote)));
        let willing = with(SbPolicy::CallHelper, local, false);
        assert_eq!((willing.decision, willing.action), (Target, None));
        assert_eq!(with(SbPolicy::CallHelper, remote, true).action, None);
        for number in 1..=6 {
            assert_eq!(with(SbPolicy::from_u32(number).unwrap(), local, true), WRONG_POLICY);
        }
    }

    #[test]
    fn with_two_primaries() {
        let with = |two, zero| {
            let policies = SbPolicies { zero, one: SbPolicy::Disconnect, two };
            after_split_brain(&SplitBrain { policies, own_primary: true, peer_primary: true, ..split(zero) })
        };
        let (local, remote) = (SbPolicy::DiscardLocal, SbPolicy::DiscardRemote);
        assert_eq!(with(SbPolicy::Disconnect, local).decision, Unresolved);
        assert_eq!(with(SbPolicy::Violently, local).decision, Target);
        assert_eq!(with(SbPolicy::CallHelper, local).action, Some(Action::Demote));
        assert_eq!(with(SbPolicy::CallHelper, remote), with(SbPolicy::Violently, remote));
        for number in 1..=8 {
            assert_eq!(with(SbPolicy::from_u32(number).unwrap(), local), WRONG_POLICY);
        }
    }

    #[test]
    fn helpers_have_their_names() {
        let Some(Action::CallHelper(helper)) = SbOutcome::DEMOTION_FAILED.action else { panic!() };
        assert_eq!(helper.name(), "pri-lost-after-sb");
        assert_eq!(Helper::SplitBrain.name(), "split-brain");
    }

    // Both nodes decide alike, seen from opposite sides.
    #[test]
    fn property_both_nodes_agree() {
        let mut random = crate::state::testing::Random::new(7);
        for _ in 0..200_000 {
            let here = SplitBrain {
                policies: SbPolicies {
                    zero: random.pick(SbPolicy::ALL),
                    one: random.pick(SbPolicy::ALL),
                    two: random.pick(SbPolicy::ALL),
                },
                own_primary: random.flag(),
                peer_primary: random.flag(),
                own_was_primary: random.flag(),
                peer_was_primary: random.flag(),
                own_changes: random.pick(&[0, 1, 2]),
                peer_changes: random.pick(&[0, 1, 2]),
                resolve_conflicts: random.flag(),
            };
            let there = SplitBrain {
                policies: SbPolicies {
                    zero: here.policies.zero.mirrored(),
                    one: here.policies.one.mirrored(),
                    two: here.policies.two.mirrored(),
                },
                own_primary: here.peer_primary,
                peer_primary: here.own_primary,
                own_was_primary: here.peer_was_primary,
                peer_was_primary: here.own_was_primary,
                own_changes: here.peer_changes,
                peer_changes: here.own_changes,
                resolve_conflicts: !here.resolve_conflicts,
            };
            let opposite = match decided(here) {
                Source => Target,
                Target => Source,
                Unresolved => Unresolved,
            };
            assert_eq!(decided(there), opposite, "{here:?}");
        }
    }
}
