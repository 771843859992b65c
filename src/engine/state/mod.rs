// SPDX-License-Identifier: GPL-2.0
//! The state machine: what a volume's state may be, how it may change, and what a change brings about.
//!
//! A volume has one [`State`]; its resource adds the three suspension bits [`Susp`]. A change is wanted as a
//! [`Change`], and one wanted state passes through the same four tables, in this order:
//!
//! 1. [`sanitize`] makes the wanted state coherent (it never refuses),
//! 2. [`transition`] refuses connection states that cannot follow each other, also for facts ("hard" changes),
//! 3. [`validity`] refuses states that must not be entered by request ("soft" changes),
//! 4. [`soft_transition`] refuses requests that come at the wrong moment.
//!
//! [`check_soft`] is 2 to 4 together, [`explain_soft`] the same with the name of the rule that refused. After the new
//! state is stored, [`effects`] lists what must be done because of it. Everything here is a pure function of its
//! arguments: the caller holds the lock, keeps the state and carries out the effects.

mod change;
mod cluster;
mod codes;
mod effects;
mod sanitize;
mod transition;
mod types;
mod validity;

#[cfg(test)]
pub(crate) mod testing;

pub use change::{And, BadChange, Change};
pub use cluster::{cluster_wide, Aggregates};
pub use codes::{Outcome, Refusal, StateError};
pub use effects::{
    effect_rows, effects, initial_disks, io_may_start, lost_peer_data, meta_flags, replicates, sends_out_of_sync,
    Effect, EffectContext, EffectIter, EffectSet,
};
pub use sanitize::{sanitize, Sanitized, Warning};
pub use transition::{
    check_cluster_wide, check_soft, conn_transition, explain_dropped_verify, explain_soft, soft_transition, transition,
};
pub use types::{BadState, Conn, Disk, FencingPolicy, Role, Rules, State, Susp};
pub use validity::validity;
