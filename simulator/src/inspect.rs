//! Digests of simulated data, and looking for zeroes.

use crate::disk::Stamp;
use engine::resource::{AlgorithmName, Digest, Finding, Inspect};

/// Size of every digest, in bytes.
pub const DIGEST_BYTES: usize = 16;

/// An algorithm no node has.
pub const UNKNOWN_ALGORITHM: &str = "unheard-of";

/// What `what` finds out about sectors.
pub fn finding(what: Inspect, data: &[Stamp]) -> Finding {
    match what {
        Inspect::Zeroes => Finding::Zeroes(data.iter().all(|&stamp| stamp == 0)),
        Inspect::VerifyDigest | Inspect::ChecksumDigest => {
            Digest::new(&digest(data)).map_or(Finding::Failed, Finding::Digest)
        }
    }
}

/// Twice FNV-1a, over the sectors and over them in reverse: 128 bits that no two of a run's blocks share.
pub fn digest(data: &[Stamp]) -> [u8; DIGEST_BYTES] {
    fn fnv<'a>(stamps: impl Iterator<Item = &'a Stamp>) -> u64 {
        stamps
            .flat_map(|stamp| stamp.to_be_bytes())
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
    }
    let both = (u128::from(fnv(data.iter())) << 64) | u128::from(fnv(data.iter().rev()));
    both.to_be_bytes()
}

/// True when the nodes can compute digests by it.
pub fn is_known(name: &AlgorithmName) -> bool {
    !name.is_empty() && name.as_str() != UNKNOWN_ALGORITHM
}

/// Depends on every byte of both.
pub fn hmac(secret: &str, challenge: &[u8]) -> Option<Digest> {
    let bytes: Vec<Stamp> = secret.bytes().chain(challenge.iter().copied()).map(Stamp::from).collect();
    Digest::new(&digest(&bytes))
}
