// SPDX-License-Identifier: GPL-2.0
//! What a state change returns: the numbers userland and the peer know, with a sentence for people.

use core::fmt;

/// A state change that was carried out, or that there was no need for.
// spec: state-machine 1.5
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Outcome {
    /// Done.
    Success = 1,
    /// The state already was, or the connection state already was, as wanted.
    NothingToDo = 2,
    /// The peer agreed.
    CwSuccess = 3,
    /// The change no longer needs the peer's consent.
    CwNoNeed = 4,
}

impl Outcome {
    /// The number in replies.
    pub const fn code(self) -> i32 {
        self as i32
    }
}

/// Makes the error enumeration from one table: name, number, sentence.
macro_rules! state_errors {
    ($($variant:ident = $code:literal, $sentence:literal;)*) => {
        /// Why a state change is refused.
        // spec: state-machine 1.5
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(i32)]
        pub enum StateError {
            $(#[doc = $sentence] $variant = $code,)*
        }

        impl StateError {
            /// Every error, by falling number.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The number in replies, -1..=-21.
            pub const fn code(self) -> i32 {
                self as i32
            }

            /// The error with this number, as found in a reply of the peer.
            pub const fn from_code(code: i32) -> Option<Self> {
                match code {
                    $($code => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// The reason in one sentence.
            pub const fn sentence(self) -> &'static str {
                match self {
                    $(Self::$variant => $sentence,)*
                }
            }
        }
    };
}

state_errors! {
    TwoPrimaries = -1, "both nodes would be Primary and allow-two-primaries is off";
    NoUpToDateDisk = -2, "no UpToDate data would be in reach";
    NoLocalDisk = -4, "a resync needs a local disk that holds data";
    NoRemoteDisk = -5, "a resync needs a peer disk that holds data";
    ConnectedOutdates = -6, "a disk cannot be Outdated or unknown while connected";
    PrimaryNop = -7, "the peer must be outdated before this node is Primary without it";
    ResyncRunning = -8, "a resync or verify is already active";
    AlreadyStandalone = -9, "the connection is already StandAlone";
    CwFailedByPeer = -10, "the peer refused the change";
    IsDiskless = -11, "there is no local disk";
    DeviceInUse = -12, "the device is held open";
    NoNetConfig = -13, "there is no network configuration";
    NoVerifyAlg = -14, "no verify-alg is configured";
    NeedConnection = -15, "this needs a connection to the peer";
    LowerThanOutdated = -16, "the disk is worth less than Outdated";
    NotSupported = -17, "the peer's protocol is too old for this";
    InTransientState = -18, "another change is under way, to be tried again after it";
    ConcurrentStChg = -19, "the other node changes the state at the same time";
    OVolPeerPri = -20, "the peer is Primary on another volume of this connection";
    OutdateWoConn = -21, "the peer cannot be outdated without a connection";
}

impl fmt::Display for StateError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.sentence())
    }
}

/// A refusal with the rule that fired, for the log and for whoever asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What to return.
    pub error: StateError,
    /// Name of the rule: the table it stands in and what it says.
    pub rule: &'static str,
}

impl From<Refusal> for StateError {
    fn from(refusal: Refusal) -> Self {
        refusal.error
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} ({}; rule: {})", self.error, self.error.code(), self.rule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_the_protocol() {
        let codes: Vec<i32> = StateError::ALL.iter().map(|error| error.code()).collect();
        let expected: Vec<i32> = (1..=21).filter(|n| *n != 3).map(|n| -n).collect();
        assert_eq!(codes, expected);
        for error in StateError::ALL.iter().copied() {
            assert_eq!(StateError::from_code(error.code()), Some(error));
        }
        for code in [0, -3, -22, 1, i32::MIN] {
            assert_eq!(StateError::from_code(code), None);
        }
    }

    #[test]
    fn successes_are_positive() {
        let outcomes = [Outcome::Success, Outcome::NothingToDo, Outcome::CwSuccess, Outcome::CwNoNeed];
        assert_eq!(outcomes.map(Outcome::code), [1, 2, 3, 4]);
    }

    #[test]
    fn a_refusal_tells_reason_number_and_rule() {
        let refusal = Refusal { error: StateError::IsDiskless, rule: "disk without attach" };
        assert_eq!(refusal.to_string(), "there is no local disk (-11; rule: disk without attach)");
        assert_eq!(StateError::from(refusal), StateError::IsDiskless);
    }
}
