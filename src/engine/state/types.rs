// SPDX-License-Identifier: GPL-2.0
//! The vocabulary: roles, connection and disk states, the state of a volume and its 32-bit word.
//!
//! A [`State`] cannot hold a value that has no name: words from the wire or the control socket are turned into it by
//! [`State::from_word`], which refuses undefined values.

use core::fmt;

/// Makes a numbered enumeration whose members have a text for people.
macro_rules! numbered {
    ($(#[$attribute:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $number:literal, $text:literal;)* }) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name {
            $($(#[$doc])* $variant = $number,)*
        }

        impl $name {
            /// Every value, by ascending number.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The value with this number, or nothing if the number has no meaning.
            pub const fn from_bits(bits: u32) -> Option<Self> {
                match bits {
                    $($number => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// The number on the wire and in the control protocol.
            pub const fn bits(self) -> u32 {
                self as u32
            }

            /// The word users know it by.
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.pad(self.text())
            }
        }
    };
}

numbered! {
    /// What a node may do with a volume. Ordered Unknown < Secondary < Primary, which is not the order of the numbers.
    // spec: state-machine 1.1
    Role {
        /// The other node, while it cannot be asked.
        Unknown = 0, "Unknown";
        /// May read and write the volume.
        Primary = 1, "Primary";
        /// Only receives what the peer writes.
        Secondary = 2, "Secondary";
    }
}

impl Role {
    const fn rank(self) -> u8 {
        match self {
            Self::Unknown => 0,
            Self::Secondary => 1,
            Self::Primary => 2,
        }
    }
}

impl Ord for Role {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.rank().cmp(&other.rank())
    }
}

impl PartialOrd for Role {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

numbered! {
    /// Connection and replication state of a volume; the connection itself only takes values up to `WFReportParams`.
    // spec: state-machine 1.2
    #[derive(PartialOrd, Ord)]
    Conn {
        /// No network configuration.
        StandAlone = 0, "StandAlone";
        /// On the way to `StandAlone`.
        Disconnecting = 1, "Disconnecting";
        /// About to try again.
        Unconnected = 2, "Unconnected";
        /// The peer did not answer in time.
        Timeout = 3, "Timeout";
        /// Sending failed.
        BrokenPipe = 4, "BrokenPipe";
        /// The connection was lost.
        NetworkFailure = 5, "NetworkFailure";
        /// The peer sent something that makes no sense.
        ProtocolError = 6, "ProtocolError";
        /// The peer disconnects.
        TearDown = 7, "TearDown";
        /// No socket yet.
        WFConnection = 8, "WFConnection";
        /// Sockets stand, the handshake runs.
        WFReportParams = 9, "WFReportParams";
        /// Handshake done, nothing to resynchronise.
        Connected = 10, "Connected";
        /// A full resync towards the peer was requested.
        StartingSyncS = 11, "StartingSyncS";
        /// A full resync from the peer was requested.
        StartingSyncT = 12, "StartingSyncT";
        /// Exchanging bitmaps as the coming source.
        WFBitMapS = 13, "WFBitMapS";
        /// Exchanging bitmaps as the coming target.
        WFBitMapT = 14, "WFBitMapT";
        /// Coming target, waits for the generation of the resync.
        WFSyncUUID = 15, "WFSyncUUID";
        /// Resync towards the peer.
        SyncSource = 16, "SyncSource";
        /// Resync from the peer.
        SyncTarget = 17, "SyncTarget";
        /// Online verify, this node compares.
        VerifyS = 18, "VerifyS";
        /// Online verify, this node sends checksums.
        VerifyT = 19, "VerifyT";
        /// Resync towards the peer, paused.
        PausedSyncS = 20, "PausedSyncS";
        /// Resync from the peer, paused.
        PausedSyncT = 21, "PausedSyncT";
        /// Congested: does not replicate for now.
        Ahead = 22, "Ahead";
        /// The peer is congested.
        Behind = 23, "Behind";
    }
}

numbered! {
    /// What a node's copy of the data is worth.
    // spec: state-machine 1.3
    #[derive(PartialOrd, Ord)]
    Disk {
        /// No backing device.
        Diskless = 0, "Diskless";
        /// Meta data is being read.
        Attaching = 1, "Attaching";
        /// Gave an I/O error or is being detached.
        Failed = 2, "Failed";
        /// Attached while connected, worth is being negotiated.
        Negotiating = 3, "Negotiating";
        /// Blocks of different generations.
        Inconsistent = 4, "Inconsistent";
        /// One generation, known not to be the newest.
        Outdated = 5, "Outdated";
        /// The peer's, while it cannot be asked.
        Unknown = 6, "DUnknown";
        /// One generation, not known whether it is the newest.
        Consistent = 7, "Consistent";
        /// The newest data.
        UpToDate = 8, "UpToDate";
    }
}

numbered! {
    /// What is done so that two nodes that lost sight of each other do not both write.
    // spec: state-machine 1.7
    #[derive(PartialOrd, Ord)]
    FencingPolicy {
        /// Nothing.
        DontCare = 0, "dont-care";
        /// The peer's disk is marked Outdated before this node becomes or stays Primary.
        ResourceOnly = 1, "resource-only";
        /// As `ResourceOnly`, with I/O frozen until the peer is known to be fenced.
        ResourceAndStonith = 2, "resource-and-stonith";
    }
}

impl FencingPolicy {
    /// The policy the rules may look at: `DontCare` while the volume's current disk is below `Inconsistent`.
    // spec: state-machine 5 (last sentence)
    pub fn effective(self, current_disk: Disk) -> Self {
        if current_disk >= Disk::Inconsistent {
            self
        } else {
            Self::DontCare
        }
    }
}

/// The state of a volume as this node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// Own role.
    pub role: Role,
    /// The peer's role.
    pub peer: Role,
    /// Connection and replication state.
    pub conn: Conn,
    /// Own disk.
    pub disk: Disk,
    /// The peer's disk.
    pub pdsk: Disk,
    /// Resync paused because another volume goes first.
    pub aftr_isp: bool,
    /// Resync paused by the peer.
    pub peer_isp: bool,
    /// Resync paused by the administrator.
    pub user_isp: bool,
}

/// Why application I/O of a resource is held back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Susp {
    /// By the administrator.
    pub user: bool,
    /// No node in reach has good data.
    pub no_data: bool,
    /// The peer is being fenced.
    pub fencing: bool,
}

impl Susp {
    /// Whether I/O is held back for any reason.
    pub const fn any(self) -> bool {
        self.user || self.no_data || self.fencing
    }
}

/// A state word with a value that has no meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadState {
    /// The word as it came.
    pub word: u32,
    /// Name of the field with the undefined value.
    pub field: &'static str,
}

impl fmt::Display for BadState {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "state word {:#010x}: undefined value of {}", self.word, self.field)
    }
}

/// A field of the state word: the lowest bit and the mask of its values.
// spec: state-machine 1.4
#[derive(Clone, Copy)]
pub(super) struct Field {
    shift: u32,
    values: u32,
    name: &'static str,
}

impl Field {
    pub(super) const ROLE: Self = Self::new("role", 0, 0x3);
    pub(super) const PEER: Self = Self::new("peer", 2, 0x3);
    pub(super) const CONN: Self = Self::new("conn", 4, 0x1f);
    pub(super) const DISK: Self = Self::new("disk", 9, 0xf);
    pub(super) const PDSK: Self = Self::new("pdsk", 13, 0xf);
    pub(super) const SUSP: Self = Self::new("susp", 17, 1);
    pub(super) const AFTR_ISP: Self = Self::new("aftr_isp", 18, 1);
    pub(super) const PEER_ISP: Self = Self::new("peer_isp", 19, 1);
    pub(super) const USER_ISP: Self = Self::new("user_isp", 20, 1);
    pub(super) const SUSP_NOD: Self = Self::new("susp_nod", 21, 1);
    pub(super) const SUSP_FEN: Self = Self::new("susp_fen", 22, 1);

    const fn new(name: &'static str, shift: u32, values: u32) -> Self {
        Self { shift, values, name }
    }

    /// The bits this field occupies in a word.
    pub(super) const fn mask(self) -> u32 {
        self.values << self.shift
    }

    pub(super) const fn put(self, value: u32) -> u32 {
        (value & self.values) << self.shift
    }

    pub(super) const fn get(self, word: u32) -> u32 {
        (word >> self.shift) & self.values
    }

    pub(super) const fn flag(self, word: u32) -> bool {
        self.get(word) != 0
    }

    pub(super) fn read<T>(self, word: u32, named: fn(u32) -> Option<T>) -> Result<T, BadState> {
        named(self.get(word)).ok_or(BadState { word, field: self.name })
    }
}

impl Susp {
    const fn word(self) -> u32 {
        Field::SUSP.put(self.user as u32)
            | Field::SUSP_NOD.put(self.no_data as u32)
            | Field::SUSP_FEN.put(self.fencing as u32)
    }

    const fn from_word(word: u32) -> Self {
        Self { user: Field::SUSP.flag(word), no_data: Field::SUSP_NOD.flag(word), fencing: Field::SUSP_FEN.flag(word) }
    }
}

impl State {
    /// What a volume starts with on a connection in state `conn`.
    // spec: state-machine 2
    pub const fn initial(conn: Conn) -> Self {
        Self {
            role: Role::Secondary,
            peer: Role::Unknown,
            conn,
            disk: Disk::Diskless,
            pdsk: Disk::Unknown,
            aftr_isp: false,
            peer_isp: false,
            user_isp: false,
        }
    }

    /// A Primary without good data in reach.
    // spec: state-machine 4 (rule 8)
    pub fn without_data(self) -> bool {
        self.role == Role::Primary && self.disk < Disk::UpToDate && self.pdsk < Disk::UpToDate
    }

    /// Whether anything pauses a resync of this volume.
    pub const fn paused(self) -> bool {
        self.aftr_isp || self.peer_isp || self.user_isp
    }

    /// The 32-bit word of this volume state and the resource's suspension bits.
    // spec: state-machine 1.4
    pub const fn word(self, susp: Susp) -> u32 {
        Field::ROLE.put(self.role.bits())
            | Field::PEER.put(self.peer.bits())
            | Field::CONN.put(self.conn.bits())
            | Field::DISK.put(self.disk.bits())
            | Field::PDSK.put(self.pdsk.bits())
            | Field::AFTR_ISP.put(self.aftr_isp as u32)
            | Field::PEER_ISP.put(self.peer_isp as u32)
            | Field::USER_ISP.put(self.user_isp as u32)
            | susp.word()
    }

    /// Reads a word. Bits 23 to 31 have no meaning and are ignored, so that a newer peer may use them.
    ///
    /// # Errors
    /// [`BadState`] if a field holds a value that has no name.
    pub fn from_word(word: u32) -> Result<(Self, Susp), BadState> {
        let state = Self {
            role: Field::ROLE.read(word, Role::from_bits)?,
            peer: Field::PEER.read(word, Role::from_bits)?,
            conn: Field::CONN.read(word, Conn::from_bits)?,
            disk: Field::DISK.read(word, Disk::from_bits)?,
            pdsk: Field::PDSK.read(word, Disk::from_bits)?,
            aftr_isp: Field::AFTR_ISP.flag(word),
            peer_isp: Field::PEER_ISP.flag(word),
            user_isp: Field::USER_ISP.flag(word),
        };
        Ok((state, Susp::from_word(word)))
    }
}

impl fmt::Display for State {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}/{} {}/{}", self.conn, self.role, self.peer, self.disk, self.pdsk)?;
        for (set, name) in [(self.aftr_isp, "aftr_isp"), (self.peer_isp, "peer_isp"), (self.user_isp, "user_isp")] {
            if set {
                write!(out, " {name}")?;
            }
        }
        Ok(())
    }
}

/// What the rules may look at besides the states themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The connection has a network configuration.
    pub net_configured: bool,
    /// allow-two-primaries.
    pub two_primaries: bool,
    /// The peer is Primary on some other volume of the connection.
    pub peer_primary_on_other_volume: bool,
    /// How many times the volume is held open.
    pub open_count: u32,
    /// The policy after [`FencingPolicy::effective`].
    pub fencing: FencingPolicy,
    /// A verify-alg is configured.
    pub has_verify_alg: bool,
    /// Agreed protocol version, 86..=101.
    pub apv: u32,
    /// on-no-data-accessible is suspend-io.
    pub on_no_data_suspend: bool,
    /// The own parameters were sent and some volume still waits for the peer's: the handshake is in progress.
    pub state_sent: bool,
    /// Own and peer's disk as found at attach, remembered while the disk is `Negotiating`.
    pub negotiated: Option<(Disk, Disk)>,
    /// The generation last shown to users is the one on the disk.
    pub ed_uuid_matches: bool,
    /// The peer is connected and says that its disk is Outdated or Consistent, as only this engine does.
    pub peer_says_worse: bool,
    /// WFSyncUUID was entered because the device has grown, and no other resync has begun since: the disk is as good as it was.
    pub target_of_growth: bool,
    /// The nodes have agreed on a full resync of the peer, and nothing has come from it since: it may not know that it agreed.
    pub target_unheard: bool,
}

impl Default for Rules {
    /// A volume without network configuration and with every option at its default.
    fn default() -> Self {
        Self {
            net_configured: false,
            two_primaries: false,
            peer_primary_on_other_volume: false,
            open_count: 0,
            fencing: FencingPolicy::DontCare,
            has_verify_alg: false,
            apv: 101,
            on_no_data_suspend: false,
            state_sent: false,
            negotiated: None,
            ed_uuid_matches: false,
            peer_says_worse: false,
            target_of_growth: false,
            target_unheard: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(role: Role, peer: Role, conn: Conn, disk: Disk, pdsk: Disk) -> State {
        State { role, peer, disk, pdsk, ..State::initial(conn) }
    }

    // The example words of wire-protocol 9.1.
    #[test]
    fn words_of_the_specification() {
        use Disk::{Inconsistent, Unknown, UpToDate};
        use Role::{Primary, Secondary};
        let examples = [
            (0x0000_c882, state(Secondary, Role::Unknown, Conn::WFConnection, Inconsistent, Unknown)),
            (0x0000_88aa, state(Secondary, Secondary, Conn::Connected, Inconsistent, Inconsistent)),
            (0x0001_10a9, state(Primary, Secondary, Conn::Connected, UpToDate, UpToDate)),
            (0x0001_10a6, state(Secondary, Primary, Conn::Connected, UpToDate, UpToDate)),
            (0x0000_90d9, state(Primary, Secondary, Conn::WFBitMapS, UpToDate, Inconsistent)),
            (0x0001_08e6, state(Secondary, Primary, Conn::WFBitMapT, Inconsistent, UpToDate)),
            (0x0001_0916, state(Secondary, Primary, Conn::SyncTarget, Inconsistent, UpToDate)),
        ];
        for (word, state) in examples {
            assert_eq!(state.word(Susp::default()), word, "{state}");
            assert_eq!(State::from_word(word), Ok((state, Susp::default())), "{word:#x}");
        }
    }

    #[test]
    fn every_flag_has_its_bit() {
        let zero = State { role: Role::Unknown, pdsk: Disk::Diskless, ..State::initial(Conn::StandAlone) };
        assert_eq!(zero.word(Susp { user: true, ..Susp::default() }), 1 << 17);
        assert_eq!(State { aftr_isp: true, ..zero }.word(Susp::default()), 1 << 18);
        assert_eq!(State { peer_isp: true, ..zero }.word(Susp::default()), 1 << 19);
        assert_eq!(State { user_isp: true, ..zero }.word(Susp::default()), 1 << 20);
        assert_eq!(zero.word(Susp { no_data: true, ..Susp::default() }), 1 << 21);
        assert_eq!(zero.word(Susp { fencing: true, ..Susp::default() }), 1 << 22);
    }

    #[test]
    fn undefined_values_are_refused_and_spare_bits_ignored() {
        for (word, field) in [(0x3, "role"), (0xc, "peer"), (24 << 4, "conn"), (9 << 9, "disk"), (15 << 13, "pdsk")] {
            assert_eq!(State::from_word(word), Err(BadState { word, field }));
        }
        assert_eq!(State::from_word(0xff80_88aa), State::from_word(0x0000_88aa));
    }

    #[test]
    fn a_word_survives_the_round_trip() {
        for word in 0..(1u32 << 23) {
            if let Ok((state, susp)) = State::from_word(word) {
                assert_eq!(state.word(susp), word);
            }
        }
    }

    #[test]
    fn numbers_and_texts() {
        assert_eq!(Role::ALL.len(), 3);
        assert_eq!(Conn::ALL.len(), 24);
        assert_eq!(Disk::ALL.len(), 9);
        for (number, conn) in (0..).zip(Conn::ALL) {
            assert_eq!((conn.bits(), Conn::from_bits(number)), (number, Some(*conn)));
        }
        assert_eq!(Conn::from_bits(31), None);
        assert_eq!(format!("{} {} {}", Conn::WFBitMapS, Disk::Unknown, Role::Primary), "WFBitMapS DUnknown Primary");
    }

    #[test]
    fn the_highest_role_is_primary() {
        assert_eq!(Role::ALL.iter().max(), Some(&Role::Primary));
        assert_eq!(Role::ALL.iter().min(), Some(&Role::Unknown));
    }

    #[test]
    fn fencing_counts_only_with_a_disk() {
        let policy = FencingPolicy::ResourceAndStonith;
        assert_eq!(policy.effective(Disk::Inconsistent), policy);
        assert_eq!(policy.effective(Disk::Negotiating), FencingPolicy::DontCare);
    }
}
