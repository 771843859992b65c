// SPDX-License-Identifier: GPL-2.0
//! Settings that both nodes must have alike.

use super::split_brain::SbPolicy;
use core::fmt;

/// The settings a node announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProtocolSettings<'a> {
    /// 1 (A), 2 (B) or 3 (C).
    pub protocol: u32,
    /// after-sb-0pri, by number.
    pub after_sb_0p: u32,
    /// after-sb-1pri, by number.
    pub after_sb_1p: u32,
    /// after-sb-2pri, by number.
    pub after_sb_2p: u32,
    /// allow-two-primaries
    pub two_primaries: bool,
    /// data-integrity-alg up to its NUL; empty for none and below protocol 87.
    pub integrity_alg: &'a [u8],
}

/// A setting that must agree, by its name in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolField {
    /// protocol
    Protocol,
    /// after-sb-0pri
    AfterSb0p,
    /// after-sb-1pri
    AfterSb1p,
    /// after-sb-2pri
    AfterSb2p,
    /// allow-two-primaries
    TwoPrimaries,
    /// data-integrity-alg
    IntegrityAlg,
}

impl ProtocolField {
    /// The name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Protocol => "protocol",
            Self::AfterSb0p => "after-sb-0pri",
            Self::AfterSb1p => "after-sb-1pri",
            Self::AfterSb2p => "after-sb-2pri",
            Self::TwoPrimaries => "allow-two-primaries",
            Self::IntegrityAlg => "data-integrity-alg",
        }
    }
}

/// How much of an algorithm's name is kept for a message. Every fault of a connection is as large as the largest one.
const ALG_NAME_BYTES: usize = 31;

/// The beginning of an algorithm's name, as it came from the peer: any bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlgName {
    bytes: [u8; ALG_NAME_BYTES],
    len: u8,
}

impl AlgName {
    /// Keeps the first 31 bytes of `name`.
    pub fn new(name: &[u8]) -> Self {
        let mut kept = Self { bytes: [0; ALG_NAME_BYTES], len: 0 };
        for (to, from) in kept.bytes.iter_mut().zip(name) {
            *to = *from;
            kept.len += 1;
        }
        kept
    }

    /// What was kept.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

/// The value of a setting, to be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// A, B or C by number.
    Protocol(u32),
    /// An after-split-brain policy by number.
    Policy(u32),
    /// yes or no
    Flag(bool),
    /// The name of an algorithm.
    Name(AlgName),
}

impl fmt::Display for Setting {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Protocol(1) => out.write_str("A"),
            Self::Protocol(2) => out.write_str("B"),
            Self::Protocol(3) => out.write_str("C"),
            Self::Policy(number) => match SbPolicy::from_u32(number) {
                Some(policy) => policy.fmt(out),
                None => write!(out, "unknown ({number})"),
            },
            Self::Protocol(number) => write!(out, "unknown ({number})"),
            Self::Flag(true) => out.write_str("yes"),
            Self::Flag(false) => out.write_str("no"),
            Self::Name(name) if name.len == 0 => out.write_str("none"),
            Self::Name(name) => name.as_bytes().escape_ascii().fmt(out),
        }
    }
}

/// A setting that differs; the connection goes Disconnecting, then StandAlone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProtocolMismatch {
    /// Which.
    pub field: ProtocolField,
    /// The value here.
    pub own: Setting,
    /// The value at the peer, as it sent it.
    pub peer: Setting,
}

impl fmt::Display for ProtocolMismatch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} does not fit: {} here, {} at the peer", self.field.name(), self.own, self.peer)
    }
}

/// Compares the settings of the initial protocol packet. The packet that changes settings online is not compared.
///
/// That both nodes have `discard-my-data` is no mismatch: in a split brain neither is the target then, and otherwise it
/// means nothing. (The C module compares it as well, but only after its own wish is used up.)
///
/// # Errors
/// The first setting that does not fit.
// spec: wire-protocol 4.4, state-machine 14.1
pub fn compare_protocol(own: &ProtocolSettings<'_>, peer: &ProtocolSettings<'_>) -> Result<(), ProtocolMismatch> {
    use ProtocolField as Field;
    let policy = |field, own: u32, peer: u32| {
        let expected = SbPolicy::from_u32(own).map_or(own, |policy| policy.mirrored().number());
        (expected == peer, field, Setting::Policy(own), Setting::Policy(peer))
    };
    let rows = [
        (
            own.protocol == peer.protocol,
            Field::Protocol,
            Setting::Protocol(own.protocol),
            Setting::Protocol(peer.protocol),
        ),
        policy(Field::AfterSb0p, own.after_sb_0p, peer.after_sb_0p),
        policy(Field::AfterSb1p, own.after_sb_1p, peer.after_sb_1p),
        policy(Field::AfterSb2p, own.after_sb_2p, peer.after_sb_2p),
        (
            own.two_primaries == peer.two_primaries,
            Field::TwoPrimaries,
            Setting::Flag(own.two_primaries),
            Setting::Flag(peer.two_primaries),
        ),
        (
            own.integrity_alg == peer.integrity_alg,
            Field::IntegrityAlg,
            Setting::Name(AlgName::new(own.integrity_alg)),
            Setting::Name(AlgName::new(peer.integrity_alg)),
        ),
    ];
    match rows.into_iter().find(|(fits, ..)| !fits) {
        Some((_, field, own, peer)) => Err(ProtocolMismatch { field, own, peer }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> ProtocolSettings<'static> {
        ProtocolSettings {
            protocol: 3,
            after_sb_0p: 4,
            after_sb_1p: 8,
            after_sb_2p: 0,
            two_primaries: false,
            integrity_alg: b"",
        }
    }

    #[track_caller]
    fn differs(peer: ProtocolSettings<'_>, text: &str) {
        assert_eq!(compare_protocol(&settings(), &peer).unwrap_err().to_string(), text);
    }

    #[test]
    fn equal_settings_fit() {
        assert_eq!(compare_protocol(&settings(), &settings()), Ok(()));
    }

    #[test]
    fn each_field_is_named_with_both_values() {
        let base = settings();
        differs(ProtocolSettings { protocol: 1, ..base }, "protocol does not fit: C here, A at the peer");
        differs(
            ProtocolSettings { after_sb_0p: 3, ..base },
            "after-sb-0pri does not fit: discard-least-changes here, discard-zero-changes at the peer",
        );
        differs(
            ProtocolSettings { after_sb_1p: 0, ..base },
            "after-sb-1pri does not fit: discard-secondary here, disconnect at the peer",
        );
        differs(
            ProtocolSettings { after_sb_2p: 77, ..base },
            "after-sb-2pri does not fit: disconnect here, unknown (77) at the peer",
        );
        differs(
            ProtocolSettings { two_primaries: true, ..base },
            "allow-two-primaries does not fit: no here, yes at the peer",
        );
        differs(
            ProtocolSettings { integrity_alg: b"crc\x1b", ..base },
            "data-integrity-alg does not fit: none here, crc\\x1b at the peer",
        );
    }

    #[test]
    fn long_names_are_cut() {
        assert_eq!(AlgName::new(&[b'x'; 100]).as_bytes(), [b'x'; 31]);
        assert_eq!(AlgName::new(b"crc32c").as_bytes(), b"crc32c");
    }

    #[test]
    fn local_and_remote_are_mirrored() {
        let local = ProtocolSettings { after_sb_0p: 5, ..settings() };
        let remote = ProtocolSettings { after_sb_0p: 6, ..settings() };
        assert_eq!(compare_protocol(&local, &remote), Ok(()));
        assert_eq!(compare_protocol(&remote, &local), Ok(()));
        assert!(compare_protocol(&local, &local).is_err());
    }
}
