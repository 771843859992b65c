// SPDX-License-Identifier: GPL-2.0
//! Which changes need the peer's consent, and what the volumes of a connection have in common.

use super::types::{Conn, Disk, Role, State};

/// Whether the peer must agree before a volume goes from `old` to `new`.
// spec: state-machine 3.3
pub fn cluster_wide(old: State, new: State) -> bool {
    if old.conn < Conn::Connected {
        return false;
    }
    let becomes = |conn: Conn| old.conn != conn && new.conn == conn;
    let stays_connected = new.conn >= Conn::Connected;
    stays_connected
        && ((old.role != Role::Primary && new.role == Role::Primary)
            || becomes(Conn::StartingSyncT)
            || becomes(Conn::StartingSyncS)
            || (old.disk != Disk::Failed && new.disk == Disk::Failed))
        || new.conn == Conn::Disconnecting
        || old.conn == Conn::Connected && matches!(new.conn, Conn::VerifyS | Conn::WFReportParams)
}

/// What the volumes of a connection (or the volumes of a resource) have in common.
// spec: state-machine 2
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aggregates {
    /// The resource's role: Primary if any volume is, else Secondary.
    pub highest_role: Role,
    /// The peer's role.
    pub highest_peer: Role,
    /// Best own disk; `Diskless` without volumes.
    pub highest_disk: Disk,
    /// Best disk of the peer; `Diskless` without volumes.
    pub highest_pdsk: Disk,
    /// Worst own disk, nothing without volumes.
    pub lowest_disk: Option<Disk>,
    /// Lowest connection state, nothing without volumes.
    pub lowest_conn: Option<Conn>,
}

impl Aggregates {
    /// Of these volumes.
    pub fn of(volumes: impl IntoIterator<Item = State>) -> Self {
        let none = Self {
            highest_role: Role::Secondary,
            highest_peer: Role::Unknown,
            highest_disk: Disk::Diskless,
            highest_pdsk: Disk::Diskless,
            lowest_disk: None,
            lowest_conn: None,
        };
        volumes.into_iter().fold(none, |all, volume| Self {
            highest_role: all.highest_role.max(volume.role),
            highest_peer: all.highest_peer.max(volume.peer),
            highest_disk: all.highest_disk.max(volume.disk),
            highest_pdsk: all.highest_pdsk.max(volume.pdsk),
            lowest_disk: Some(all.lowest_disk.map_or(volume.disk, |disk| disk.min(volume.disk))),
            lowest_conn: Some(all.lowest_conn.map_or(volume.conn, |conn| conn.min(volume.conn))),
        })
    }

    /// Whether no volume is below `conn`; true without volumes.
    pub fn all_at_least(&self, conn: Conn) -> bool {
        self.lowest_conn.is_none_or(|lowest| lowest >= conn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONNECTED: State = State {
        role: Role::Secondary,
        peer: Role::Secondary,
        conn: Conn::Connected,
        disk: Disk::UpToDate,
        pdsk: Disk::UpToDate,
        aftr_isp: false,
        peer_isp: false,
        user_isp: false,
    };

    fn at(conn: Conn) -> State {
        State { conn, ..CONNECTED }
    }

    #[test]
    fn changes_that_need_consent() {
        let primary = State { role: Role::Primary, ..CONNECTED };
        let failed = State { disk: Disk::Failed, ..CONNECTED };
        for (old, new) in [
            (CONNECTED, primary),
            (CONNECTED, at(Conn::StartingSyncT)),
            (CONNECTED, at(Conn::StartingSyncS)),
            (CONNECTED, failed),
            (CONNECTED, at(Conn::Disconnecting)),
            (at(Conn::SyncSource), at(Conn::Disconnecting)),
            (CONNECTED, at(Conn::VerifyS)),
            (CONNECTED, at(Conn::WFReportParams)),
        ] {
            assert!(cluster_wide(old, new), "{old} -> {new}");
        }
    }

    #[test]
    fn changes_that_do_not() {
        let primary = State { role: Role::Primary, ..CONNECTED };
        let alone = State { conn: Conn::WFConnection, ..CONNECTED };
        for (old, new) in [
            (primary, CONNECTED),
            (CONNECTED, CONNECTED),
            (alone, State { role: Role::Primary, ..alone }),
            (alone, at(Conn::Disconnecting)),
            (CONNECTED, State { disk: Disk::Outdated, ..CONNECTED }),
            (CONNECTED, State { user_isp: true, ..CONNECTED }),
            (CONNECTED, at(Conn::VerifyT)),
            (CONNECTED, at(Conn::NetworkFailure)),
            (at(Conn::SyncSource), at(Conn::VerifyS)),
            (at(Conn::SyncSource), at(Conn::WFReportParams)),
            (CONNECTED, State { role: Role::Primary, ..at(Conn::NetworkFailure) }),
        ] {
            assert!(!cluster_wide(old, new), "{old} -> {new}");
        }
    }

    #[test]
    fn aggregates_of_nothing_and_of_volumes() {
        let none = Aggregates::of([]);
        assert_eq!((none.highest_role, none.highest_peer), (Role::Secondary, Role::Unknown));
        assert_eq!((none.highest_disk, none.lowest_disk, none.lowest_conn), (Disk::Diskless, None, None));
        assert!(none.all_at_least(Conn::Behind));
        let volumes = [
            State { role: Role::Primary, disk: Disk::Inconsistent, ..at(Conn::SyncTarget) },
            State { peer: Role::Unknown, pdsk: Disk::Diskless, ..CONNECTED },
        ];
        let all = Aggregates::of(volumes);
        assert_eq!((all.highest_role, all.highest_peer), (Role::Primary, Role::Secondary));
        assert_eq!((all.highest_disk, all.highest_pdsk), (Disk::UpToDate, Disk::UpToDate));
        assert_eq!((all.lowest_disk, all.lowest_conn), (Some(Disk::Inconsistent), Some(Conn::Connected)));
        assert!(all.all_at_least(Conn::Connected) && !all.all_at_least(Conn::SyncSource));
    }
}
