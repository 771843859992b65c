// SPDX-License-Identifier: GPL-2.0
//! Protocol version and features: the first thing two nodes agree on.

use core::fmt;

/// What the peer offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerFeatures {
    /// Oldest version it speaks.
    pub protocol_min: u32,
    /// Newest version it speaks; 0 means no other than the oldest.
    pub protocol_max: u32,
    /// Its features.
    pub flags: u32,
}

/// No version that both nodes speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incompatible {
    /// Oldest and newest version of this node.
    pub own: (u32, u32),
    /// Oldest and newest version of the peer.
    pub peer: (u32, u32),
}

impl fmt::Display for Incompatible {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((own_min, own_max), (min, max)) = (self.own, self.peer);
        write!(out, "no common protocol version: {own_min} to {own_max} here, {min} to {max} at the peer")
    }
}

/// The agreed version (the newest both speak) and the agreed features (what both have).
///
/// # Errors
/// [`Incompatible`] if there is no common version; then the connection goes StandAlone.
// spec: wire-protocol 4.2
pub fn negotiate(own_min: u32, own_max: u32, own_flags: u32, peer: PeerFeatures) -> Result<(u32, u32), Incompatible> {
    let peer_max = if peer.protocol_max == 0 { peer.protocol_min } else { peer.protocol_max };
    // A peer whose newest version is below its oldest speaks none.
    if own_max < peer.protocol_min || own_min > peer_max || peer_max < peer.protocol_min {
        return Err(Incompatible { own: (own_min, own_max), peer: (peer.protocol_min, peer_max) });
    }
    Ok((own_max.min(peer_max), own_flags & peer.flags))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(protocol_min: u32, protocol_max: u32) -> Result<(u32, u32), Incompatible> {
        negotiate(86, 101, 0b0111, PeerFeatures { protocol_min, protocol_max, flags: 0b1101 })
    }

    #[test]
    fn the_newest_common_version_and_the_common_features() {
        assert_eq!(with(86, 101), Ok((101, 0b0101)));
        assert_eq!(with(86, 121), Ok((101, 0b0101)));
        assert_eq!(with(80, 94), Ok((94, 0b0101)));
        assert_eq!(with(96, 0), Ok((96, 0b0101)));
        assert_eq!(with(80, 86), Ok((86, 0b0101)));
        assert_eq!(with(101, 101), Ok((101, 0b0101)));
    }

    #[test]
    fn no_common_version() {
        for (min, max) in [(102, 121), (80, 85), (85, 0), (0, 0), (101, 90), (u32::MAX, u32::MAX)] {
            assert!(with(min, max).is_err(), "{min} {max}");
        }
        let text = with(110, 121).unwrap_err().to_string();
        assert_eq!(text, "no common protocol version: 86 to 101 here, 110 to 121 at the peer");
    }
}
