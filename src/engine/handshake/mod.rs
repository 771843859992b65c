// SPDX-License-Identifier: GPL-2.0
//! The handshake: what two nodes make of each other when they meet.
//!
//! Each step is a pure function with named inputs, and each verdict names the rule behind it: pairing of the two
//! sockets ([`Pairing`]), protocol version and features ([`negotiate`]), settings that must agree
//! ([`compare_protocol`]), sizes ([`receive_sizes`]), data generations ([`compare`]), split brain
//! ([`after_split_brain`]), the decision about a resync ([`decide`]) and the state packet that triggers it
//! ([`receive_state`]).

mod decide;
mod features;
mod peer_state;
mod protocol;
mod sizes;
mod sockets;
mod split_brain;
mod uuids;

pub use decide::{decide, DecideInput, DecidedBy, Decision, Demotion, RefuseReason, SyncDecision, Thing, Things};
pub use features::{negotiate, Incompatible, PeerFeatures};
pub use peer_state::{receive_state, HandshakeResult, PeerStateAction, PeerStateInput, PeerStateRefusal};
pub use protocol::{compare_protocol, AlgName, ProtocolField, ProtocolMismatch, ProtocolSettings, Setting};
pub use sizes::{
    agreed_size, answers_sizes, grow_action, is_source_of_growth, receive_sizes, GrowAction, GrowInput, PeerSizes,
    SizeDecision, SizeRefusal, SizesInput,
};
pub use sockets::{FirstPacket, Next, Pairing, SocketAction, Step, Stream};
pub use split_brain::{after_split_brain, Action, Helper, SbDecision, SbOutcome, SbPolicies, SbPolicy, SplitBrain};
pub use uuids::{
    compare, generation_begun_without, receive_uuids, CompareContext, Comparison, Fixup, Rule, SyncResult, UuidSet,
    UuidsAction, UuidsInput,
};
