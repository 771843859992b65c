// SPDX-License-Identifier: GPL-2.0
//! Ways to break the engine, so that a test can show that the simulator notices each of them.
//!
//! Without the feature `sabotage`, which only tests switch on, every question is answered with a constant `false`.

use super::Engine;
use crate::storage::Storage;

/// A way to break the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "sabotage"), allow(dead_code, unreachable_pub))]
#[allow(missing_docs)] // The names say what goes wrong.
pub enum Sabotage {
    AcknowledgeWithoutPeer,
    AcknowledgeBeforeDisk,
    SkipBarrierFlush,
    ForgetBeforeBarrier,
    LoseBitmapBit,
    ForgetActivityLogExtent,
    CompleteTwice,
    KeepGeneration,
    RotateWrongly,
    IgnoreOverlap,
    NeverCloseEpoch,
    ReadStaleBlocks,
    KeepHold,
    IgnoreConflict,
    ReuseSlotEarly,
    AcceptRefusal,
    AcknowledgeFailedWrite,
    ClearFailedResync,
    IgnoreFailedFlush,
    AcknowledgeBeforeGeneration,
    CountBadDisk,
    VerifyWithoutMark,
    AnnounceWithoutMark,
    OvertakeResyncData,
    ReadWhileWriting,
    ForgetReceiveAck,
    AskWhilePaused,
}

#[cfg(feature = "sabotage")]
impl Sabotage {
    /// All of them.
    pub const ALL: [Sabotage; 27] = [
        Sabotage::AcknowledgeWithoutPeer,
        Sabotage::AcknowledgeBeforeDisk,
        Sabotage::SkipBarrierFlush,
        Sabotage::ForgetBeforeBarrier,
        Sabotage::LoseBitmapBit,
        Sabotage::ForgetActivityLogExtent,
        Sabotage::CompleteTwice,
        Sabotage::KeepGeneration,
        Sabotage::RotateWrongly,
        Sabotage::IgnoreOverlap,
        Sabotage::NeverCloseEpoch,
        Sabotage::ReadStaleBlocks,
        Sabotage::KeepHold,
        Sabotage::IgnoreConflict,
        Sabotage::ReuseSlotEarly,
        Sabotage::AcceptRefusal,
        Sabotage::AcknowledgeFailedWrite,
        Sabotage::ClearFailedResync,
        Sabotage::IgnoreFailedFlush,
        Sabotage::AcknowledgeBeforeGeneration,
        Sabotage::CountBadDisk,
        Sabotage::VerifyWithoutMark,
        Sabotage::AnnounceWithoutMark,
        Sabotage::OvertakeResyncData,
        Sabotage::ReadWhileWriting,
        Sabotage::ForgetReceiveAck,
        Sabotage::AskWhilePaused,
    ];
}

impl<S: Storage> Engine<S> {
    /// Breaks the engine from now on.
    #[cfg(feature = "sabotage")]
    pub fn sabotage(&mut self, how: Sabotage) {
        self.sabotage = Some(how);
    }

    /// Is this what is broken?
    #[cfg(feature = "sabotage")]
    pub(super) fn sabotaged(&self, how: Sabotage) -> bool {
        self.sabotage == Some(how)
    }

    /// Is this what is broken? Never.
    #[cfg(not(feature = "sabotage"))]
    pub(super) const fn sabotaged(&self, _how: Sabotage) -> bool {
        false
    }
}
