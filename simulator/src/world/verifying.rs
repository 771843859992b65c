//! What a verify keeps out, on the node that only tells its digests (VerifyT).
//!
//! # Invariants
//! * It reads a block when the peer has acknowledged the barrier of what was sent there under protocol A or B.
//! * Between the digest and the result no write of the application goes to that block, unless the result takes longer than `timeout`.

use super::promises::overlap;
use super::*;
use engine::netlink::WireProtocol;
use engine::wire::{BlockAck, BlockRequest};

/// A digest that the peer has, and has not told the result of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told {
    volume: VolumeId,
    sector: u64,
    count: u64,
    since_us: u64,
}

impl World {
    fn is_verify_target(&self, node: usize) -> bool {
        self.status(node).state.conn == Conn::VerifyT
    }

    /// A digest is about to be sent.
    pub(super) fn note_digest_told(&mut self, node: usize, body: &[u8]) {
        // Of a run that is over nothing is awaited.
        let Ok(range) = BlockRequest::decode(body) else { return };
        if self.is_verify_target(node) {
            let (volume, since_us) = (self.volume, self.now_us);
            let count = u64::from(range.size_bytes / 512);
            self.told(node).push(Told { volume, sector: range.sector, count, since_us });
        }
    }

    /// The result has come.
    pub(super) fn note_result(&mut self, node: usize, body: &[u8]) {
        let Ok(result) = BlockAck::decode(body) else { return };
        let volume = self.volume;
        let told = self.told(node);
        if let Some(at) = told.iter().position(|told| (told.volume, told.sector) == (volume, result.sector)) {
            told.remove(at);
        }
    }

    /// The run is over.
    pub(super) fn forget_told(&mut self, node: usize) {
        let volume = self.volume;
        self.told(node).retain(|told| told.volume != volume);
    }

    /// A write of the application is about to go to the disk.
    pub(super) fn check_verify_waits(&mut self, node: usize, transfer: &Transfer) {
        if !self.is_verify_target(node) {
            return;
        }
        let timeout = self.engine_of(node).net_conf().map_or(0, |net| net.timeout);
        let (volume, now_us) = (self.volume, self.now_us);
        let met = self.told(node).iter().copied().find(|told| {
            told.volume == volume
                && overlap(transfer.sector, transfer.count, told.sector, told.count)
                && now_us - told.since_us < u64::from(timeout) * 100 * MS
        });
        assert!(met.is_none(), "node {node}: {transfer} goes to the disk while the peer compares {met:?}");
    }

    /// A block is about to be read for the digest.
    pub(super) fn check_verify_read(&self, node: usize, transfer: &Transfer) {
        // What the peer has refused is not awaited.
        let sound = self.nodes.iter().all(|node| node.faults.is_sound());
        if !self.is_verify_target(node) || !sound {
            return;
        }
        let early = self.sent_to(node, transfer.sector, transfer.count).find(|view| view.protocol != WireProtocol::C);
        assert!(
            early.is_none(),
            "node {node}: {transfer} for a digest, and the peer may not have {early:?} on its disk"
        );
    }
}
