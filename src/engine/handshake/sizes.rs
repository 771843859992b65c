// SPDX-License-Identifier: GPL-2.0
//! How large the device is, given what both disks hold. Every size is in sectors of 512 bytes; 0 means unknown or none.

use crate::state::{Conn, Disk, Role, State};
use core::fmt;

/// What the peer announces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerSizes {
    /// What its disk can hold.
    pub disk: u64,
    /// What its administrator asked for.
    pub user: u64,
    /// How large its device is.
    pub current: u64,
    /// The administrator vouches that the peer has the space (dds flag 1); counts only below Connected.
    pub forced: bool,
}

/// What [`receive_sizes`] looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizesInput {
    /// Own state.
    pub own: State,
    /// What the own disk can hold; without meaning below Inconsistent.
    pub own_disk: u64,
    /// What the own administrator asked for.
    pub own_user: u64,
    /// How large the own device is.
    pub own_current: u64,
    /// The size agreed last, from the meta data.
    pub last_agreed: u64,
    /// The packet.
    pub peer: PeerSizes,
}

/// What becomes of the size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizeDecision {
    /// Nothing changes.
    Keep,
    /// The device gets this size. An error in doing so is a ProtocolError.
    Adopt {
        /// New size.
        size: u64,
        /// New disk-size option.
        user_size: u64,
    },
    /// Disconnecting.
    Refuse(SizeRefusal),
}

/// Why sizes are refused: the device would become smaller than what is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeRefusal {
    /// How large the device is.
    pub current: u64,
    /// How large it would become.
    pub wanted: u64,
}

impl fmt::Display for SizeRefusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { current, wanted } = self;
        write!(out, "the peer's disk would shrink the device from {current} to {wanted} sectors")
    }
}

/// The size both disks can hold: `own` and `peer` are what the disks can hold, `last` what was agreed before, `user`
/// what was asked for (ignored if it is more than that).
// spec: metadata 7.1, steps 2 to 6
pub fn agreed_size(own: u64, peer: u64, last: u64, user: u64) -> u64 {
    let held = match (own, peer) {
        (0, 0) => last,
        (0, known) | (known, 0) if last == 0 => known,
        (0, known) | (known, 0) => last.min(known),
        (own, peer) => own.min(peer),
    };
    if user != 0 && user <= held {
        user
    } else {
        held
    }
}

/// What to make of the peer's sizes.
// spec: wire-protocol 4.6, metadata 7.5
pub fn receive_sizes(input: &SizesInput) -> SizeDecision {
    // A disk that is being attached counts if the peer has one. What the peer tells of its device may be what it had before that grew;
    // if its disk is attached just then as well, each node would take on the other one's size. (In the C module they do.)
    let attaches = input.own.disk == Disk::Negotiating && input.own_disk != 0 && input.peer.disk != 0;
    if input.own.disk >= Disk::Inconsistent || attaches {
        with_disk(input)
    } else {
        without_disk(input)
    }
}

fn with_disk(input: &SizesInput) -> SizeDecision {
    let (own, peer) = (input.own, input.peer);
    let meets = own.conn == Conn::WFReportParams || own.disk == Disk::Negotiating;
    let user_size = match (input.own_user, peer.user) {
        (0, user) | (user, 0) if meets => user,
        (own_user, user) if meets => own_user.min(user),
        (_, user) => user,
    };
    let peer_disk = if peer.forced && own.conn < Conn::Connected { input.own_disk } else { peer.disk };
    // The peer's disk failed right after its device had grown: the application over there may use the new size already, and this
    // disk has the room. (The C module stays at the old size, and the peer refuses it for ever.)
    let ahead = peer.disk == 0 && user_size == 0 && (input.last_agreed..=input.own_disk).contains(&peer.current);
    let last_agreed = if ahead { peer.current } else { input.last_agreed };
    let size = agreed_size(input.own_disk, peer_disk, last_agreed, user_size);
    let in_use = match own.disk {
        Disk::Negotiating => own.role == Role::Primary,
        disk => disk >= Disk::Outdated && (own.conn < Conn::Connected || own.pdsk == Disk::Diskless),
    };
    if size < input.own_current && in_use {
        return SizeDecision::Refuse(SizeRefusal { current: input.own_current, wanted: size });
    }
    if size == input.own_current && user_size == input.own_user {
        return SizeDecision::Keep;
    }
    SizeDecision::Adopt { size, user_size }
}

fn without_disk(input: &SizesInput) -> SizeDecision {
    let peer = input.peer;
    let announced = [peer.current, peer.user, peer.disk].into_iter().find(|size| *size != 0);
    let (current, Some(size)) = (input.own_current, announced) else {
        return SizeDecision::Keep;
    };
    // Two diskless nodes have nothing to tell each other about sizes.
    if size == current || (current != 0 && peer.disk == 0) {
        return SizeDecision::Keep;
    }
    if size < current && input.own.role == Role::Primary {
        return SizeDecision::Refuse(SizeRefusal { current, wanted: size });
    }
    SizeDecision::Adopt { size, user_size: input.own_user }
}

/// Whether to answer with the own sizes (current size filled in, the same dds flags).
///
/// `own_current` is the size after [`receive_sizes`] was carried out, `own_disk_changed` tells that the own disk holds
/// more or less than before.
// spec: wire-protocol 4.6 (after the handshake)
pub fn answers_sizes(conn: Conn, own_current: u64, own_disk_changed: bool, peer: &PeerSizes) -> bool {
    conn > Conn::WFReportParams && (peer.current != own_current || own_disk_changed)
}

/// What [`grow_action`] looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrowInput {
    /// Own state.
    pub own: State,
    /// The device grew by this packet.
    pub grew: bool,
    /// This node asked for a resize and waits for the peer.
    pub resize_pending: bool,
    /// The new space needs no resync (dds flag 2).
    pub no_resync: bool,
    /// This node has the upper hand where both are equal.
    pub resolve_conflicts: bool,
}

/// What happens to space the device grew by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrowAction {
    /// Nothing.
    Nothing,
    /// Resync it, from here or to here (then WFSyncUUID).
    Resync {
        /// This node is source.
        source: bool,
    },
    /// Resync it when both disks are past negotiation.
    AfterNegotiation,
}

/// What happens to space the device grew by.
// spec: metadata 7.5, wire-protocol 8.4
pub fn grow_action(input: &GrowInput) -> GrowAction {
    let own = input.own;
    let due = input.resize_pending || (input.grew && own.conn == Conn::Connected);
    // A full resync that was agreed on meanwhile takes the new space along. (The C module forgets that one.)
    if !due || matches!(own.conn, Conn::StartingSyncS | Conn::StartingSyncT) {
        return GrowAction::Nothing;
    }
    if own.disk < Disk::Inconsistent || own.pdsk < Disk::Inconsistent {
        return GrowAction::AfterNegotiation;
    }
    if input.no_resync {
        return GrowAction::Nothing;
    }
    GrowAction::Resync { source: is_source_of_growth(own, input.resolve_conflicts) }
}

/// Whether this node is the source of the resync of what the device has grown by.
// spec: wire-protocol 8.4
pub fn is_source_of_growth(own: State, resolve_conflicts: bool) -> bool {
    if own.role == own.peer {
        resolve_conflicts
    } else {
        own.role == Role::Primary
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(conn: Conn, disk: Disk) -> State {
        State { conn, disk, pdsk: Disk::UpToDate, peer: Role::Secondary, ..State::initial(conn) }
    }

    fn meeting() -> SizesInput {
        SizesInput {
            own: state(Conn::WFReportParams, Disk::UpToDate),
            own_disk: 1000,
            own_user: 0,
            own_current: 1000,
            last_agreed: 1000,
            peer: PeerSizes { disk: 1000, user: 0, current: 1000, forced: false },
        }
    }

    #[test]
    fn sizes_both_disks_can_hold() {
        for ((own, peer, last, user), size) in [
            ((1000, 900, 500, 0), 900),
            ((900, 1000, 0, 0), 900),
            ((1000, 0, 800, 0), 800),
            ((700, 0, 800, 0), 700),
            ((0, 700, 800, 0), 700),
            ((1000, 0, 0, 0), 1000),
            ((0, 900, 0, 0), 900),
            ((0, 0, 800, 0), 800),
            ((0, 0, 0, 0), 0),
            ((1000, 900, 0, 600), 600),
            ((1000, 900, 0, 900), 900),
            ((1000, 900, 0, 901), 900),
        ] {
            assert_eq!(agreed_size(own, peer, last, user), size, "{own} {peer} {last} {user}");
        }
    }

    #[test]
    fn equal_sizes_change_nothing() {
        assert_eq!(receive_sizes(&meeting()), SizeDecision::Keep);
    }

    #[test]
    fn a_device_in_use_does_not_shrink() {
        let smaller = PeerSizes { disk: 900, ..meeting().peer };
        let refusal = SizeDecision::Refuse(SizeRefusal { current: 1000, wanted: 900 });
        assert_eq!(receive_sizes(&SizesInput { peer: smaller, ..meeting() }), refusal);
        let adopt = SizeDecision::Adopt { size: 900, user_size: 0 };
        let bad = SizesInput { own: state(Conn::WFReportParams, Disk::Inconsistent), peer: smaller, ..meeting() };
        assert_eq!(receive_sizes(&bad), adopt);
        let connected = SizesInput { own: state(Conn::Connected, Disk::UpToDate), ..bad };
        assert_eq!(receive_sizes(&connected), adopt);
        let diskless_peer = State { pdsk: Disk::Diskless, ..connected.own };
        assert_eq!(receive_sizes(&SizesInput { own: diskless_peer, ..connected }), refusal);
    }

    #[test]
    fn the_first_pair_takes_the_smaller_disk() {
        let own = state(Conn::WFReportParams, Disk::Inconsistent);
        let peer = PeerSizes { disk: 900, ..PeerSizes::default() };
        let input = SizesInput { own, last_agreed: 0, own_current: 1000, peer, ..meeting() };
        assert_eq!(receive_sizes(&input), SizeDecision::Adopt { size: 900, user_size: 0 });
    }

    #[test]
    fn user_sizes() {
        let own = state(Conn::WFReportParams, Disk::Inconsistent);
        for (own_user, peer_user, user_size) in [(800, 700, 700), (700, 800, 700), (0, 700, 700), (700, 0, 700)] {
            let peer = PeerSizes { user: peer_user, ..meeting().peer };
            let input = SizesInput { own, own_user, peer, ..meeting() };
            assert_eq!(receive_sizes(&input), SizeDecision::Adopt { size: user_size, user_size });
        }
        // Later the peer's word counts, also that there is none any more.
        let own = state(Conn::Connected, Disk::UpToDate);
        let input = SizesInput { own, own_user: 700, own_current: 700, ..meeting() };
        assert_eq!(receive_sizes(&input), SizeDecision::Adopt { size: 1000, user_size: 0 });
    }

    #[test]
    fn the_forced_flag_counts_only_below_connected() {
        let peer = PeerSizes { disk: 500, forced: true, ..meeting().peer };
        let input = SizesInput { peer, ..meeting() };
        assert_eq!(receive_sizes(&input), SizeDecision::Keep);
        let own = state(Conn::Connected, Disk::UpToDate);
        assert_eq!(receive_sizes(&SizesInput { own, ..input }), SizeDecision::Adopt { size: 500, user_size: 0 });
    }

    #[test]
    fn without_disk_the_peer_decides() {
        let own = state(Conn::WFReportParams, Disk::Diskless);
        let with = |peer, own_current| receive_sizes(&SizesInput { own, own_current, peer, ..meeting() });
        let sizes = |current, user, disk| PeerSizes { disk, user, current, forced: false };
        let adopt = |size| SizeDecision::Adopt { size, user_size: 0 };
        assert_eq!(with(sizes(900, 800, 1000), 0), adopt(900));
        assert_eq!(with(sizes(0, 800, 1000), 0), adopt(800));
        assert_eq!(with(sizes(0, 0, 1000), 0), adopt(1000));
        assert_eq!(with(sizes(0, 0, 0), 0), SizeDecision::Keep);
        assert_eq!(with(sizes(900, 0, 1000), 900), SizeDecision::Keep);
        assert_eq!(with(sizes(900, 0, 0), 800), SizeDecision::Keep, "both diskless");
        assert_eq!(with(sizes(900, 0, 0), 0), adopt(900));
        assert_eq!(with(sizes(700, 0, 1000), 800), adopt(700));
        let primary = State { role: Role::Primary, ..own };
        let input = SizesInput { own: primary, own_current: 800, peer: sizes(700, 0, 1000), ..meeting() };
        let refusal = SizeRefusal { current: 800, wanted: 700 };
        assert_eq!(receive_sizes(&input), SizeDecision::Refuse(refusal));
        assert_eq!(with(sizes(900, 0, 1000), 800), adopt(900));
    }

    #[test]
    fn disks_that_are_attached_at_the_same_time_agree() {
        let own = State { pdsk: Disk::Diskless, ..state(Conn::Connected, Disk::Negotiating) };
        let sizes = |current, user| PeerSizes { disk: 1000, user, current, forced: false };
        let with = |own_current, own_user, peer| {
            receive_sizes(&SizesInput { own, own_current, own_user, last_agreed: own_current, peer, ..meeting() })
        };
        assert_eq!(with(1000, 0, sizes(800, 0)), SizeDecision::Keep);
        assert_eq!(with(800, 0, sizes(1000, 0)), SizeDecision::Adopt { size: 1000, user_size: 0 });
        let limited = SizeDecision::Adopt { size: 900, user_size: 900 };
        assert_eq!(with(1000, 0, sizes(800, 900)), limited);
        assert_eq!(with(800, 950, sizes(1000, 900)), limited);
        assert_eq!(with(1000, 900, sizes(800, 950)), limited);
        let small = PeerSizes { disk: 800, ..sizes(800, 0) };
        assert_eq!(with(1000, 0, small), SizeDecision::Adopt { size: 800, user_size: 0 });
        let input = SizesInput { own: State { role: Role::Primary, ..own }, peer: small, ..meeting() };
        assert_eq!(receive_sizes(&input), SizeDecision::Refuse(SizeRefusal { current: 1000, wanted: 800 }));
        // A peer without a disk has nothing to add.
        let diskless = PeerSizes { disk: 0, ..sizes(800, 0) };
        assert_eq!(with(1000, 0, diskless), SizeDecision::Keep);
    }

    #[test]
    fn when_sizes_are_answered() {
        let peer = meeting().peer;
        assert!(!answers_sizes(Conn::WFReportParams, 900, true, &peer));
        assert!(answers_sizes(Conn::Connected, 900, false, &peer));
        assert!(answers_sizes(Conn::Connected, 1000, true, &peer));
        assert!(!answers_sizes(Conn::Connected, 1000, false, &peer));
    }

    #[test]
    fn resync_of_new_space() {
        let base = GrowInput {
            own: state(Conn::Connected, Disk::UpToDate),
            grew: true,
            resize_pending: false,
            no_resync: false,
            resolve_conflicts: false,
        };
        assert_eq!(grow_action(&base), GrowAction::Resync { source: false });
        assert_eq!(grow_action(&GrowInput { resolve_conflicts: true, ..base }), GrowAction::Resync { source: true });
        let primary = State { role: Role::Primary, ..base.own };
        assert_eq!(grow_action(&GrowInput { own: primary, ..base }), GrowAction::Resync { source: true });
        let secondary = State { peer: Role::Primary, ..base.own };
        let input = GrowInput { own: secondary, resolve_conflicts: true, ..base };
        assert_eq!(grow_action(&input), GrowAction::Resync { source: false });
        assert_eq!(grow_action(&GrowInput { no_resync: true, ..base }), GrowAction::Nothing);
        assert_eq!(grow_action(&GrowInput { grew: false, ..base }), GrowAction::Nothing);
        for conn in [Conn::StartingSyncS, Conn::StartingSyncT] {
            let full = GrowInput { own: State { conn, ..base.own }, resize_pending: true, ..base };
            assert_eq!(grow_action(&full), GrowAction::Nothing, "{conn:?}");
        }
        let pending = GrowInput { grew: false, resize_pending: true, ..base };
        assert_eq!(grow_action(&pending), GrowAction::Resync { source: false });
        let meeting = state(Conn::WFReportParams, Disk::UpToDate);
        assert_eq!(grow_action(&GrowInput { own: meeting, ..base }), GrowAction::Nothing);
        let negotiating = State { disk: Disk::Negotiating, ..base.own };
        assert_eq!(grow_action(&GrowInput { own: negotiating, ..base }), GrowAction::AfterNegotiation);
    }
}
