// SPDX-License-Identifier: GPL-2.0
//! A wanted change: some fields of a state get new values, the others stay.
//!
//! On the wire a change is a pair of state words, the mask of the fields meant and their values. A [`Change`] is that
//! pair with the guarantee that each field is meant entirely or not at all and that each value has a name.

use super::types::{BadState, Conn, Disk, Field, Role, State, Susp};
use core::fmt;

/// Some fields of a state and the values they shall get.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Change {
    mask: u32,
    val: u32,
}

/// A request of the peer that no node of this protocol makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadChange {
    /// The mask covers a field only in part.
    PartialMask {
        /// The mask as it came.
        mask: u32,
    },
    /// A wanted value has no name.
    Value(BadState),
    /// A connection state that a node cannot ask of its peer.
    Conn(Conn),
    /// A state of the receiver's disk that only its own node can bring about.
    Disk(Disk),
}

impl fmt::Display for BadChange {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PartialMask { mask } => write!(out, "mask {mask:#010x} covers a field only in part"),
            Self::Value(bad) => bad.fmt(out),
            Self::Conn(conn) => write!(out, "a peer cannot ask for {conn}"),
            Self::Disk(disk) => write!(out, "a peer cannot ask that the disk here is {disk}"),
        }
    }
}

const FIELDS: [Field; 11] = [
    Field::ROLE,
    Field::PEER,
    Field::CONN,
    Field::DISK,
    Field::PDSK,
    Field::SUSP,
    Field::AFTR_ISP,
    Field::PEER_ISP,
    Field::USER_ISP,
    Field::SUSP_NOD,
    Field::SUSP_FEN,
];

/// Makes, for each field, the constructor `Change::field(value)` and the chained `change.field(value)`.
macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident: $type:ty => $field:expr, $bits:expr;)*) => {
        impl Change {
            $($(#[$doc])* pub fn $name(value: $type) -> Self {
                Self::default().with($field, $bits(value))
            })*
        }

        /// Chaining: `Change::role(Role::Primary).disk(Disk::UpToDate)`.
        ///
        /// A trait, because a type cannot have a constructor and a method of the same name.
        pub trait And: Sized {
            $($(#[$doc])* fn $name(self, value: $type) -> Self;)*
        }

        impl And for Change {
            $(fn $name(self, value: $type) -> Self {
                self.with($field, $bits(value))
            })*
        }
    };
}

fields! {
    /// Own role.
    role: Role => Field::ROLE, Role::bits;
    /// The peer's role.
    peer: Role => Field::PEER, Role::bits;
    /// Connection state.
    conn: Conn => Field::CONN, Conn::bits;
    /// Own disk.
    disk: Disk => Field::DISK, Disk::bits;
    /// The peer's disk.
    pdsk: Disk => Field::PDSK, Disk::bits;
    /// Paused because another volume goes first.
    aftr_isp: bool => Field::AFTR_ISP, u32::from;
    /// Paused by the peer.
    peer_isp: bool => Field::PEER_ISP, u32::from;
    /// Paused by the administrator.
    user_isp: bool => Field::USER_ISP, u32::from;
    /// I/O suspended by the administrator.
    susp: bool => Field::SUSP, u32::from;
    /// I/O suspended because no data is in reach.
    susp_nod: bool => Field::SUSP_NOD, u32::from;
    /// I/O suspended while the peer is fenced.
    susp_fen: bool => Field::SUSP_FEN, u32::from;
}

impl Change {
    /// A change to exactly this volume state; the suspension bits stay.
    pub fn to(state: State) -> Self {
        let susp = Field::SUSP.mask() | Field::SUSP_NOD.mask() | Field::SUSP_FEN.mask();
        let all = FIELDS.iter().fold(0, |mask, field| mask | field.mask());
        Self { mask: all & !susp, val: state.word(Susp::default()) }
    }

    /// A request as it came from the peer, still from the peer's point of view (see [`Change::mirror`]).
    ///
    /// # Errors
    /// [`BadChange`] for masks and values that nothing in the protocol uses. The reference would map an odd connection
    /// state to StandAlone (spec: state-machine 23, row 11); here such a request is refused as a whole.
    // spec: wire-protocol 9.2
    pub fn from_request(mask: u32, val: u32) -> Result<Self, BadChange> {
        if FIELDS.iter().any(|field| mask & field.mask() != 0 && mask & field.mask() != field.mask()) {
            return Err(BadChange::PartialMask { mask });
        }
        let known = FIELDS.iter().fold(0, |known, field| known | field.mask());
        let change = Self { mask: mask & known, val: val & mask & known };
        State::from_word(change.val).map_err(BadChange::Value)?;
        // A disk cannot begin to be attached, or be good, because the peer says so: nobody here would go on with it. What a peer may
        // do is to declare that its data is old.
        match (change.wanted_conn(), change.wanted_pdsk()) {
            (Some(conn), _) if mirrored_conn(conn).is_none() => Err(BadChange::Conn(conn)),
            (_, Some(disk)) if !matches!(disk, Disk::Inconsistent | Disk::Outdated) => Err(BadChange::Disk(disk)),
            _ => Ok(change),
        }
    }

    /// The mask and the value for the wire.
    pub const fn request(self) -> (u32, u32) {
        (self.mask, self.val)
    }

    /// Mask of the fields meant.
    pub const fn mask(self) -> u32 {
        self.mask
    }

    /// Values of the fields meant; zero elsewhere.
    pub const fn val(self) -> u32 {
        self.val
    }

    /// The role asked for, if the change is about it.
    pub fn wanted_role(self) -> Option<Role> {
        self.wanted(Field::ROLE, Role::from_bits)
    }

    /// The connection state asked for, if the change is about it.
    pub fn wanted_conn(self) -> Option<Conn> {
        self.wanted(Field::CONN, Conn::from_bits)
    }

    /// The own disk state asked for, if the change is about it.
    pub fn wanted_disk(self) -> Option<Disk> {
        self.wanted(Field::DISK, Disk::from_bits)
    }

    /// The peer's disk state asked for, if the change is about it.
    pub fn wanted_pdsk(self) -> Option<Disk> {
        self.wanted(Field::PDSK, Disk::from_bits)
    }

    /// The same change without its part about the own disk.
    pub fn without_disk(self) -> Self {
        self.without(Field::DISK)
    }

    /// The same change without its part about the peer's disk.
    pub fn without_pdsk(self) -> Self {
        self.without(Field::PDSK)
    }

    /// The state after the change, before [`super::sanitize`].
    pub fn apply(self, state: State) -> State {
        let word = (state.word(Susp::default()) & !self.mask) | self.val;
        // Every field of both sides is a named value, so the mixture always is one.
        State::from_word(word).map_or(state, |(changed, _)| changed)
    }

    /// The suspension bits after the change.
    pub fn apply_susp(self, susp: Susp) -> Susp {
        let bit = |field: Field, old: bool| {
            if self.mask & field.mask() == 0 {
                old
            } else {
                field.flag(self.val)
            }
        };
        Susp {
            user: bit(Field::SUSP, susp.user),
            no_data: bit(Field::SUSP_NOD, susp.no_data),
            fencing: bit(Field::SUSP_FEN, susp.fencing),
        }
    }

    /// The same change from the other side's point of view.
    ///
    /// Pauses arrive there as "paused by the peer"; suspension concerns only the node itself and is left out. A
    /// connection state without a counterpart becomes StandAlone; [`Change::from_request`] lets none through.
    // spec: state-machine 3.4, wire-protocol 9.3 step 2
    pub fn mirror(self) -> Self {
        let mut seen = Self::default();
        for (from, to) in [
            (Field::ROLE, Field::PEER),
            (Field::PEER, Field::ROLE),
            (Field::DISK, Field::PDSK),
            (Field::PDSK, Field::DISK),
        ] {
            if self.mask & from.mask() != 0 {
                seen = seen.with(to, from.get(self.val));
            }
        }
        if let Some(conn) = self.wanted_conn() {
            seen = And::conn(seen, mirrored_conn(conn).unwrap_or(Conn::StandAlone));
        }
        if self.mask & (Field::AFTR_ISP.mask() | Field::USER_ISP.mask()) != 0 {
            seen = And::peer_isp(seen, Field::AFTR_ISP.flag(self.val) || Field::USER_ISP.flag(self.val));
        }
        seen
    }

    fn with(self, field: Field, value: u32) -> Self {
        Self { mask: self.mask | field.mask(), val: (self.val & !field.mask()) | field.put(value) }
    }

    fn without(self, field: Field) -> Self {
        Self { mask: self.mask & !field.mask(), val: self.val & !field.mask() }
    }

    fn wanted<T>(self, field: Field, named: fn(u32) -> Option<T>) -> Option<T> {
        if self.mask & field.mask() == 0 {
            return None;
        }
        named(field.get(self.val))
    }
}

/// What the peer is in when this node is in `conn`, for the states that are requested of a peer.
fn mirrored_conn(conn: Conn) -> Option<Conn> {
    Some(match conn {
        Conn::WFReportParams => Conn::WFReportParams,
        Conn::Connected => Conn::Connected,
        Conn::StartingSyncS => Conn::StartingSyncT,
        Conn::StartingSyncT => Conn::StartingSyncS,
        Conn::Disconnecting => Conn::TearDown,
        Conn::VerifyS => Conn::VerifyT,
        _ => return None,
    })
}

impl fmt::Debug for Change {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Change({:#x}, {:#x})", self.mask, self.val)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        let mut part = |name: &str, value: Option<&str>| match value {
            None => Ok(()),
            Some(value) => {
                write!(out, "{separator}{name}={value}")?;
                separator = " ";
                Ok(())
            }
        };
        let flag = |field: Field| (self.mask & field.mask() != 0).then(|| if field.flag(self.val) { "1" } else { "0" });
        part("role", self.wanted_role().map(Role::text))?;
        part("peer", self.wanted(Field::PEER, Role::from_bits).map(Role::text))?;
        part("conn", self.wanted_conn().map(Conn::text))?;
        part("disk", self.wanted_disk().map(Disk::text))?;
        part("pdsk", self.wanted_pdsk().map(Disk::text))?;
        part("aftr_isp", flag(Field::AFTR_ISP))?;
        part("peer_isp", flag(Field::PEER_ISP))?;
        part("user_isp", flag(Field::USER_ISP))?;
        part("susp", flag(Field::SUSP))?;
        part("susp_nod", flag(Field::SUSP_NOD))?;
        part("susp_fen", flag(Field::SUSP_FEN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The requests of wire-protocol 9.2.
    #[test]
    fn requests_of_the_specification() {
        let requests = [
            (Change::role(Role::Primary), 0x0000_0003, 0x0000_0001),
            (Change::role(Role::Primary).disk(Disk::UpToDate), 0x0000_1e03, 0x0000_1001),
            (Change::disk(Disk::Failed), 0x0000_1e00, 0x0000_0400),
            (Change::conn(Conn::StartingSyncT), 0x0000_01f0, 0x0000_00c0),
            (Change::conn(Conn::StartingSyncS), 0x0000_01f0, 0x0000_00b0),
            (Change::conn(Conn::VerifyS), 0x0000_01f0, 0x0000_0120),
            (Change::conn(Conn::WFReportParams), 0x0000_01f0, 0x0000_0090),
            (Change::conn(Conn::Disconnecting), 0x0000_01f0, 0x0000_0010),
            (Change::conn(Conn::Disconnecting).disk(Disk::Outdated), 0x0000_1ff0, 0x0000_0a10),
            (Change::conn(Conn::Disconnecting).pdsk(Disk::Outdated), 0x0001_e1f0, 0x0000_a010),
        ];
        for (change, mask, val) in requests {
            assert_eq!(change.request(), (mask, val), "{change}");
            assert_eq!(Change::from_request(mask, val), Ok(change));
        }
    }

    #[test]
    fn mirror_swaps_sides() {
        assert_eq!(
            Change::role(Role::Primary).disk(Disk::UpToDate).mirror(),
            Change::peer(Role::Primary).pdsk(Disk::UpToDate)
        );
        assert_eq!(
            Change::peer(Role::Secondary).pdsk(Disk::Outdated).mirror(),
            Change::role(Role::Secondary).disk(Disk::Outdated)
        );
    }

    #[test]
    fn mirror_of_the_connection_states() {
        let pairs = [
            (Conn::WFReportParams, Conn::WFReportParams),
            (Conn::Connected, Conn::Connected),
            (Conn::StartingSyncS, Conn::StartingSyncT),
            (Conn::StartingSyncT, Conn::StartingSyncS),
            (Conn::Disconnecting, Conn::TearDown),
            (Conn::VerifyS, Conn::VerifyT),
        ];
        for conn in Conn::ALL.iter().copied() {
            let expected = pairs.iter().find(|(asked, _)| *asked == conn).map(|(_, seen)| *seen);
            assert_eq!(Change::conn(conn).mirror(), Change::conn(expected.unwrap_or(Conn::StandAlone)));
            let request = Change::from_request(0x1f0, conn.bits() << 4);
            assert_eq!(request.is_ok(), expected.is_some(), "{conn}");
        }
    }

    #[test]
    fn mirror_of_pauses_and_suspension() {
        assert_eq!(Change::aftr_isp(true).mirror(), Change::peer_isp(true));
        assert_eq!(Change::user_isp(true).aftr_isp(false).mirror(), Change::peer_isp(true));
        assert_eq!(Change::user_isp(false).mirror(), Change::peer_isp(false));
        assert_eq!(Change::peer_isp(true).mirror(), Change::default());
        assert_eq!(Change::susp(true).susp_nod(true).susp_fen(true).mirror(), Change::default());
    }

    #[test]
    fn senseless_requests_are_refused() {
        assert_eq!(Change::from_request(0x0001, 1), Err(BadChange::PartialMask { mask: 1 }));
        assert!(matches!(Change::from_request(0x3, 0x3), Err(BadChange::Value(_))));
        assert!(matches!(Change::from_request(0x1f0, 0x1f0), Err(BadChange::Value(_))));
        // The disk here, as the peer sees it (seed 11 of the hostile peer): it counted as being attached for ever.
        for disk in [Disk::Attaching, Disk::Negotiating, Disk::UpToDate] {
            let (mask, val) = Change::pdsk(disk).request();
            assert_eq!(Change::from_request(mask, val), Err(BadChange::Disk(disk)));
        }
        // Values outside the mask, and bits without meaning, do nothing.
        assert_eq!(Change::from_request(0xff80_0003, 0xffff_fffd), Ok(Change::role(Role::Primary)));
    }

    #[test]
    fn apply_changes_only_what_is_meant() {
        let old = State { role: Role::Primary, disk: Disk::UpToDate, ..State::initial(Conn::Connected) };
        let new = Change::pdsk(Disk::Outdated).user_isp(true).susp(true).apply(old);
        assert_eq!(new, State { pdsk: Disk::Outdated, user_isp: true, ..old });
        assert_eq!(Change::default().apply(old), old);
        assert_eq!(Change::to(old).apply(State::initial(Conn::StandAlone)), old);
    }

    #[test]
    fn apply_susp_changes_only_what_is_meant() {
        let old = Susp { user: false, no_data: true, fencing: true };
        assert_eq!(
            Change::susp(true).susp_fen(false).apply_susp(old),
            Susp { user: true, no_data: true, fencing: false }
        );
        assert_eq!(Change::to(State::initial(Conn::StandAlone)).apply_susp(old), old);
    }

    #[test]
    fn parts_can_be_taken_back() {
        let change = Change::conn(Conn::Disconnecting).pdsk(Disk::Outdated).disk(Disk::Outdated);
        assert_eq!(change.without_pdsk().without_disk(), Change::conn(Conn::Disconnecting));
        assert_eq!(change.to_string(), "conn=Disconnecting disk=Outdated pdsk=Outdated");
        assert_eq!(Change::user_isp(true).susp(false).to_string(), "user_isp=1 susp=0");
    }
}
