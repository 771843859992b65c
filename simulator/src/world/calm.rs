//! What must not take long while nothing disturbs the nodes.
//!
//! A wake-up that the engine forgets, or a timer that it does not arm, is made good by the next packet or by a timeout that ends the
//! connection: in the end all is well. Here it is noticed that something stood still that had no reason to.
//!
//! # Invariants
//! While both nodes are on, the network carries everything, no disk hangs or is slow, I/O is not suspended, and no state changes:
//! * while the application waits for anything, some operation ends within [`PATIENCE_US`];
//! * so does every epoch: its barrier is sent, and acknowledged;
//! * no connection, and no disk, is given up because something has not been answered;
//! * nodes that are connected say of each other what each says of itself;
//! * whoever pauses a resync asks for none of its blocks.

use super::*;
use engine::state::State;

/// How long none may end of those that are under way.
const PATIENCE_US: u64 = 2000 * MS;
/// So long a packet may be on its way.
const TOLD_US: u64 = 1000 * MS;
/// What was under way when a pause began has been sent by then.
const PAUSED_US: u64 = 1000 * MS;

/// Since when nothing has disturbed the nodes.
#[derive(Debug, Default)]
pub(super) struct Calm {
    since_us: u64,
    /// By volume.
    states: Vec<[Option<State>; 2]>,
    /// What was begun on a slow disk may take so long.
    slow_until_us: u64,
    /// When an operation ended last.
    progress_us: u64,
    /// All operations before this one are over.
    first_open: usize,
}

impl World {
    /// A tick of one of the nodes.
    pub(super) fn check_calm(&mut self) {
        let (mut states, mut hangs) = (Vec::new(), self.calm.slow_until_us > self.now_us);
        for volume in self.volumes() {
            self.at(volume, |world| {
                states.push([0, 1].map(|node| world.is_on(node).then(|| world.status(node).state)));
                hangs |= world.nodes.iter().any(|node| node.faults.hangs);
            });
        }
        let suspended = (0..2).any(|node| self.is_on(node) && self.is_suspended(node));
        let is_calm = self.network_up == [true, true]
            && states == self.calm.states
            && states.iter().flatten().all(Option::is_some)
            && !hangs
            && !suspended;
        self.calm.states = states;
        if !is_calm || self.hostile.is_some() {
            self.calm.since_us = self.now_us;
            return;
        }
        let (since_us, now_us) = (self.calm.since_us.max(self.calm.progress_us), self.now_us);
        let open = self.operations[self.calm.first_open..].iter().position(Operation::is_open);
        self.calm.first_open = open.map_or(self.operations.len(), |at| self.calm.first_open + at);
        // Of two Primaries one may wait for `timeout` until the other one has heard of a failed disk, if that waits for it in turn.
        let net = &self.config.net;
        let patience_us = PATIENCE_US + if net.two_primaries { u64::from(net.timeout) * 100 * MS } else { 0 };
        let takes_long = |operation: &&Operation| {
            operation.is_open() && now_us.saturating_sub(operation.start_us.max(since_us)) > patience_us
        };
        if let Some(operation) = self.operations[self.calm.first_open..].iter().find(takes_long) {
            panic!("nothing disturbs the nodes, and {operation:?} waits; {}", self.describe());
        }
        // Whoever has been told that a write is over sends its barrier at the next tick.
        let calm_us = self.calm_for_us();
        if calm_us >= patience_us {
            self.check_barriers(now_us - patience_us);
        }
        // So may the news of one that was taken away (seed 88001842).
        if calm_us >= TOLD_US + patience_us - PATIENCE_US {
            self.volumes().for_each(|volume| self.at(volume, |world| world.check_views()));
        }
    }

    /// What each node believes of the other one.
    fn check_views(&self) {
        let [zero, one] = [0, 1].map(|node| self.status(node).state);
        // Of whoever is ahead, or not accepted with its disk, each thinks in its own way.
        let known =
            |state: State| (Conn::Connected..Conn::Ahead).contains(&state.conn) && state.disk != Disk::Negotiating;
        if !(known(zero) && known(one)) {
            return;
        }
        // Behind what waits for a slow network, or another volume's resync, the news may come late; and one that is made to believe in the other
        // one's disk does so for long.
        let queued = (0..2).any(|node| self.engine_of(node).usage().queued > 0);
        if queued || self.trusts_in_verify.is_some() {
            return;
        }
        let says = |state: engine::state::State| (state.role, state.disk);
        let hears = |state: engine::state::State| (state.peer, state.pdsk);
        if hears(zero) != says(one) || hears(one) != says(zero) {
            let marked = [0, 1].map(|node| self.marked(node, 0, self.status(node).size_sectors).first().copied());
            panic!(
                "the nodes are not what they take each other for; the first blocks marked: {marked:?}; {}",
                self.describe()
            );
        }
        let mirrored = match zero.conn {
            Conn::SyncSource => Conn::SyncTarget,
            Conn::SyncTarget => Conn::SyncSource,
            Conn::PausedSyncS => Conn::PausedSyncT,
            Conn::PausedSyncT => Conn::PausedSyncS,
            Conn::VerifyS => Conn::VerifyT,
            Conn::VerifyT => Conn::VerifyS,
            conn => conn,
        };
        assert_eq!(mirrored, one.conn, "the nodes do not agree; {}", self.describe());
    }

    /// An operation has ended.
    pub(super) fn note_progress(&mut self) {
        self.calm.progress_us = self.now_us;
    }

    /// A transfer begins on a slow disk.
    pub(super) fn note_slow_transfer(&mut self, takes_us: u64) {
        self.calm.slow_until_us = self.calm.slow_until_us.max(self.now_us + takes_us);
    }

    fn calm_for_us(&self) -> u64 {
        self.now_us.saturating_sub(self.calm.since_us)
    }

    /// A node gives something up that has not been answered within `limit_ms`.
    pub(super) fn check_timeout(&self, node: usize, limit_ms: u64, what: impl std::fmt::Display) {
        assert!(
            self.hostile.is_some() || self.calm_for_us() < limit_ms * MS,
            "nothing disturbs the nodes, and node {node} gives up: {what}; {}",
            self.describe()
        );
    }

    /// A packet is about to be sent.
    pub(super) fn check_paused(&self, node: usize, name: &str) {
        let asks = matches!(name, "P_RS_DATA_REQUEST" | "P_RS_THIN_REQ" | "P_CSUM_RS_REQUEST");
        let state = self.status(node).state;
        // It was not, at the last look.
        let is_news =
            || self.calm.states.get(usize::from(self.volume.0)).is_none_or(|states| states[node] != Some(state));
        let paused = matches!(state.conn, Conn::PausedSyncS | Conn::PausedSyncT);
        assert!(
            !asks || !paused || is_news() || self.calm_for_us() < PAUSED_US,
            "node {node}: {name} while the resync is paused; {}",
            self.describe()
        );
    }
}
