// SPDX-License-Identifier: GPL-2.0
//! Enumerations that travel as numbers and that people write as words.
//!
//! Only values that are configured or reported through the control interface; states live with the state tables.
// spec: netlink 3.3, state-machine 1.7

use super::value::{FieldKind, FieldValue, Value};

/// A number and the word it is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// As sent.
    pub number: u32,
    /// As written by people.
    pub word: &'static str,
}

macro_rules! words {
    ($($(#[doc = $doc:literal])* $name:ident {
        $($(#[doc = $help:literal])* $variant:ident = $number:literal $word:literal,)+
    })+) => {$(
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum $name {
            $($(#[doc = $help])* $variant = $number,)+
        }

        impl $name {
            /// Every value with its word, by number.
            pub const WORDS: &'static [Word] = &[$(Word { number: $number, word: $word },)+];

            /// The value with this number.
            #[must_use]
            pub const fn from_u32(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)+
                    _ => None,
                }
            }

            /// Its number.
            #[must_use]
            pub const fn as_u32(self) -> u32 {
                self as u32
            }

            /// Its word.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }

            /// The value with this word.
            #[must_use]
            pub fn from_word(word: &str) -> Option<Self> {
                match word {
                    $($word => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }

        impl FieldValue for $name {
            const KIND: FieldKind = FieldKind::Words(Self::WORDS);

            fn value(&self) -> Option<Value<'_>> {
                Some(Value::U32(self.as_u32()))
            }

            fn from_value(value: Value<'_>) -> Option<Self> {
                u32::from_value(value).and_then(Self::from_u32)
            }
        }
    )+};
}

words! {
    /// What happens when the backing disk reports an error.
    OnIoError {
        /// Reads are retried on the peer, write errors reach the application on the node without a peer.
        PassOn = 0 "pass_on",
        /// The helper `local-io-error` is run.
        CallLocalIoError = 1 "call-local-io-error",
        /// The disk is dropped; the volume goes on diskless.
        Detach = 2 "detach",
    }

    /// What a Primary does about a peer it lost.
    Fencing {
        /// Nothing.
        DontCare = 0 "dont-care",
        /// The fence-peer helper is run.
        ResourceOnly = 1 "resource-only",
        /// I/O is frozen until the fence-peer helper succeeded.
        ResourceAndStonith = 2 "resource-and-stonith",
    }

    /// When a write counts as completed.
    WireProtocol {
        /// Locally written and handed to TCP.
        A = 1 "A",
        /// Locally written and received by the peer.
        B = 2 "B",
        /// Written on both nodes.
        C = 3 "C",
    }

    /// What to do after a split brain, and (`rr-conflict`) when a resync contradicts the roles.
    AfterSplitBrain {
        /// Refuse to connect.
        Disconnect = 0 "disconnect",
        /// The node that became Primary last loses its changes.
        DiscardYoungerPrimary = 1 "discard-younger-primary",
        /// The node that became Primary first loses its changes.
        DiscardOlderPrimary = 2 "discard-older-primary",
        /// If one node did not write at all, it takes the other's data.
        DiscardZeroChanges = 3 "discard-zero-changes",
        /// The node with fewer changed blocks loses them.
        DiscardLeastChanges = 4 "discard-least-changes",
        /// This node loses its changes.
        DiscardLocal = 5 "discard-local",
        /// The peer loses its changes.
        DiscardRemote = 6 "discard-remote",
        /// The decision for no Primary, if it makes the Secondary the victim.
        Consensus = 7 "consensus",
        /// The Secondary loses its changes.
        DiscardSecondary = 8 "discard-secondary",
        /// As the decision for no Primary; if the Primary is the victim, its helper is run.
        CallPriLost = 9 "call-pri-lost-after-sb",
        /// As the decision for no Primary, even if that changes data under a Primary.
        Violently = 10 "violently-as0p",
    }

    /// What happens to I/O when no up-to-date data can be reached.
    OnNoData {
        /// It fails.
        IoError = 0 "io-error",
        /// It waits.
        SuspendIo = 1 "suspend-io",
    }

    /// What happens when the network does not keep up (protocol A).
    OnCongestion {
        /// The application waits.
        Block = 0 "block",
        /// Replication stops, changes are recorded in the bitmap.
        PullAhead = 1 "pull-ahead",
        /// The connection is given up.
        Disconnect = 2 "disconnect",
    }

    /// Which node serves a read.
    ReadBalancing {
        /// This one.
        PreferLocal = 0 "prefer-local",
        /// The peer.
        PreferRemote = 1 "prefer-remote",
        /// Both in turn.
        RoundRobin = 2 "round-robin",
        /// The one with fewer requests waiting.
        LeastPending = 3 "least-pending",
        /// The peer when the local disk is congested.
        WhenCongestedRemote = 4 "when-congested-remote",
        /// Alternating stripes of 32 KiB.
        Striping32K = 5 "32K-striping",
        /// Alternating stripes of 64 KiB.
        Striping64K = 6 "64K-striping",
        /// Alternating stripes of 128 KiB.
        Striping128K = 7 "128K-striping",
        /// Alternating stripes of 256 KiB.
        Striping256K = 8 "256K-striping",
        /// Alternating stripes of 512 KiB.
        Striping512K = 9 "512K-striping",
        /// Alternating stripes of 1 MiB.
        Striping1M = 10 "1M-striping",
    }

    /// Which of the three waiting times at start-up applies.
    TimeoutType {
        /// The ordinary one.
        Default = 0 "default",
        /// The cluster was degraded before.
        Degraded = 1 "degraded",
        /// The peer was outdated.
        PeerOutdated = 2 "peer-outdated",
    }

    /// Why a status message (command `EVENT` or `GET_STATUS`) was sent.
    SibReason {
        /// It was asked for.
        Status = 1 "status",
        /// A state changed.
        StateChange = 2 "state-change",
        /// A helper is about to run.
        HelperPre = 3 "helper-pre",
        /// A helper has finished.
        HelperPost = 4 "helper-post",
        /// A resync has come further.
        SyncProgress = 5 "sync-progress",
    }

    /// What happened to the object of a notification; the words are those of `events2`.
    NotificationType {
        /// It was there before.
        Exists = 0 "exists",
        /// It was made.
        Create = 1 "create",
        /// It changed.
        Change = 2 "change",
        /// It is gone.
        Destroy = 3 "destroy",
        /// A helper is called.
        Call = 4 "call",
        /// A helper has answered.
        Response = 5 "response",
    }
}

/// Added to a [`NotificationType`]: more messages of the same change follow.
pub const NOTIFY_CONTINUES: u32 = 0x8000;

impl NotificationType {
    /// Number for the header of a notification.
    #[must_use]
    pub const fn with_continues(self, continues: bool) -> u32 {
        if continues {
            self.as_u32() | NOTIFY_CONTINUES
        } else {
            self.as_u32()
        }
    }

    /// Splits the number of a notification's header; `None` when the type is unknown.
    #[must_use]
    pub const fn split(number: u32) -> Option<(Self, bool)> {
        match Self::from_u32(number & !NOTIFY_CONTINUES) {
            Some(kind) => Some((kind, number & NOTIFY_CONTINUES != 0)),
            None => None,
        }
    }
}

/// Policies with no node Primary.
pub const AFTER_SB_0PRI_WORDS: &[Word] = &[
    Word { number: 0, word: "disconnect" },
    Word { number: 1, word: "discard-younger-primary" },
    Word { number: 2, word: "discard-older-primary" },
    Word { number: 3, word: "discard-zero-changes" },
    Word { number: 4, word: "discard-least-changes" },
    Word { number: 5, word: "discard-local" },
    Word { number: 6, word: "discard-remote" },
];

/// Policies with one node Primary.
pub const AFTER_SB_1PRI_WORDS: &[Word] = &[
    Word { number: 0, word: "disconnect" },
    Word { number: 7, word: "consensus" },
    Word { number: 8, word: "discard-secondary" },
    Word { number: 9, word: "call-pri-lost-after-sb" },
    Word { number: 10, word: "violently-as0p" },
];

/// Policies with both nodes Primary.
pub const AFTER_SB_2PRI_WORDS: &[Word] = &[
    Word { number: 0, word: "disconnect" },
    Word { number: 9, word: "call-pri-lost-after-sb" },
    Word { number: 10, word: "violently-as0p" },
];

/// Policies when a resync would change data under a Primary.
pub const RR_CONFLICT_WORDS: &[Word] = &[
    Word { number: 0, word: "disconnect" },
    Word { number: 9, word: "call-pri-lost" },
    Word { number: 10, word: "violently" },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_words_are_those_of_the_interface() {
        assert_eq!(OnIoError::from_word("pass_on"), Some(OnIoError::PassOn));
        assert_eq!(AfterSplitBrain::WORDS.len(), 11);
        for word in AfterSplitBrain::WORDS {
            let value = AfterSplitBrain::from_u32(word.number).unwrap();
            assert_eq!((value.as_u32(), value.word()), (word.number, word.word));
            assert_eq!(AfterSplitBrain::from_word(word.word), Some(value));
        }
        assert_eq!(ReadBalancing::from_u32(10).unwrap().word(), "1M-striping");
        assert_eq!(WireProtocol::from_u32(0), None);
        assert_eq!(WireProtocol::from_u32(4), None);
        assert_eq!(Fencing::from_word("stonith"), None);
    }

    #[test]
    fn subsets_agree_with_the_common_numbering() {
        for word in [AFTER_SB_0PRI_WORDS, AFTER_SB_1PRI_WORDS, AFTER_SB_2PRI_WORDS].concat() {
            assert_eq!(AfterSplitBrain::from_u32(word.number).unwrap().word(), word.word);
        }
    }

    #[test]
    fn continuation_is_a_flag_of_the_type() {
        assert_eq!(NotificationType::Create.with_continues(true), 0x8001);
        assert_eq!(NotificationType::split(0x8003), Some((NotificationType::Destroy, true)));
        assert_eq!(NotificationType::split(9), None);
    }
}
