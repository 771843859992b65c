// SPDX-License-Identifier: GPL-2.0
//! The hash algorithms a resource can use, and looking at data with them.
//!
//! An algorithm is looked for, which may load a module, in process context and without locks; from then on the
//! resource keeps it as long as it lives, and the engine knows that it is there.

use super::resource::Resource;
use crate::linux::hash::Hash;
use crate::linux::mem::PageChain;
use crate::linux::storage::KernelStorage;
use engine::netlink::NetConf;
use engine::resource::{self, AlgorithmName, Digest, Engine, Finding, Inspect, Next, Outgoing};
use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::Arc;

/// Bound: algorithms of one resource in its life.
const MAX_HASHES: usize = 16;

/// Whether data that is received has a digest.
pub(crate) enum Check {
    /// It has none.
    No,
    /// By this algorithm; `None`: it is gone, so nothing can be believed.
    With(Option<Arc<Hash>>),
}

/// The algorithms of a resource, by name.
pub(crate) struct Hashes(KVec<(AlgorithmName, Arc<Hash>)>);

impl Hashes {
    /// None, with room for all. May sleep.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn new() -> Result<Hashes> {
        Ok(Hashes(KVec::with_capacity(MAX_HASHES, GFP_KERNEL)?))
    }

    fn find(&self, name: &AlgorithmName) -> Option<&Arc<Hash>> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, hash)| hash)
    }

    /// What `what` needs under this configuration.
    pub(crate) fn for_inspect(&self, what: Inspect, net: Option<&NetConf>) -> Option<Arc<Hash>> {
        let net = net?;
        match what {
            Inspect::VerifyDigest => self.find(&net.verify_alg).cloned(),
            Inspect::ChecksumDigest => self.find(&net.csums_alg).cloned(),
            Inspect::Zeroes => None,
        }
    }

    /// What the digest of a packet to be sent needs.
    pub(crate) fn for_sending(&self, outgoing: &Outgoing, engine: &Engine<KernelStorage>) -> Option<Arc<Hash>> {
        match outgoing.digest_bytes {
            0 => None,
            _ => self.find(&engine.sent_integrity()).cloned(),
        }
    }

    /// How the data that follows now has to be checked.
    pub(crate) fn for_receiving(&self, next: &Next, engine: &Engine<KernelStorage>) -> Check {
        if !matches!(next, Next::Payload { .. } | Next::ReadReply { .. }) {
            return Check::No;
        }
        engine.received_integrity().map_or(Check::No, |name| Check::With(self.find(&name).cloned()))
    }

    /// Keeps an algorithm as long as there is room.
    fn keep(&mut self, name: &AlgorithmName, hash: Arc<Hash>) -> bool {
        self.0.push_within_capacity((*name, hash)).is_ok()
    }
}

/// Looks for the algorithms with these names, and tells the engine about those that can be had. May sleep and load
/// modules.
pub(crate) fn look_for(resource: &Arc<Resource>, names: &[AlgorithmName]) {
    for name in names.iter().filter(|name| !name.is_empty()) {
        if resource.look(|locked| locked.hashes.find(name).is_some()) {
            continue;
        }
        // The name may be followed by nothing else: text without NUL, so the C string is the same.
        let Ok(text) = CString::try_from_fmt(fmt!("{}", name.as_str())) else { continue };
        let found = Hash::new(&text).and_then(|hash| Ok(Arc::new(hash, GFP_KERNEL)?));
        let Ok(hash) = found else { continue };
        // Whoever looks holds back the others that might: the administrator's lock, or the receiver that waits.
        resource.look_mut(|locked| {
            if locked.hashes.keep(name, hash.clone()) {
                locked.engine.know_algorithm(name, hash.digest_bytes());
            }
        });
    }
}

/// The algorithms that a configuration of the connection needs.
pub(crate) fn needed_by(net: &NetConf) -> [AlgorithmName; 4] {
    [net.verify_alg, net.csums_alg, net.integrity_alg, resource::hmac_of(&net.cram_hmac_alg)]
}

/// The HMACs of both challenges with the secret of the configuration; `None` when they cannot be computed. May sleep.
pub(crate) fn hmacs(net: &NetConf, peer: &[u8], own: &[u8]) -> Option<(Digest, Digest)> {
    let name = resource::hmac_of(&net.cram_hmac_alg);
    let name = CString::try_from_fmt(fmt!("{}", name.as_str())).ok()?;
    let hash = Hash::keyed(&name, net.shared_secret.as_bytes()).ok()?;
    let hmac = |challenge| digest(&hash, core::iter::once(challenge));
    Some((hmac(peer)?, hmac(own)?))
}

/// Finds out about data what the engine wants to know.
pub(crate) fn inspect(what: Inspect, hash: Option<&Arc<Hash>>, pages: &PageChain) -> Finding {
    match (what, hash) {
        (Inspect::Zeroes, _) => Finding::Zeroes(pages.segments().all(is_zero)),
        (Inspect::VerifyDigest | Inspect::ChecksumDigest, Some(hash)) => {
            digest(hash, pages.segments()).map_or(Finding::Failed, Finding::Digest)
        }
        (Inspect::VerifyDigest | Inspect::ChecksumDigest, None) => Finding::Failed,
    }
}

/// The digest of the pieces one after the other; `None` when it cannot be computed. Process context.
pub(crate) fn digest<'a>(hash: &Hash, data: impl Iterator<Item = &'a [u8]>) -> Option<Digest> {
    Digest::new(hash.digest(data).ok()?.get(..hash.digest_bytes())?)
}

/// Eight words at a time, which the compiler turns into wide comparisons.
fn is_zero(data: &[u8]) -> bool {
    let mut chunks = data.chunks_exact(64);
    chunks.all(|chunk| chunk.iter().fold(0, |sum, byte| sum | byte) == 0)
        && chunks.remainder().iter().all(|&byte| byte == 0)
}
