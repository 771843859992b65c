//! What a node does where the options, or the peer's wish, decide.
//!
//! # Invariants
//! * A reason that an after-split-brain policy gives is one that the configured policy can have.
//! * Whoever agrees to the peer's wish has carried it out, and whoever refuses has not.
//! * `on-no-data-accessible suspend-io` and `fencing resource-and-stonith` suspend I/O, and with `on-io-error call-local-io-error` the
//!   program is called before the disk is let go. When everything is good again a peer that may have been fenced is unfenced.

use super::*;
use engine::handshake::{Comparison, DecidedBy, RefuseReason, SyncResult};
use engine::netlink::{AfterSplitBrain, Fencing, OnNoData};
use engine::state::{State, Susp};

/// The peer's wishes that are not answered, oldest first.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    link: u64,
    open: VecDeque<Wish>,
}

/// What has become of a wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Refused,
    Granted,
    /// To overwrite this volume's disk, which has to wait.
    Held(VolumeId),
    /// So it was, until the peer agreed that this node does so itself.
    DoneAlready,
}

impl World {
    /// The nodes have met and decided.
    pub(super) fn check_decision(&self, node: usize, comparison: &Comparison, decision: SyncDecision, by: DecidedBy) {
        use AfterSplitBrain::*;
        let Some(net) = self.engine_of(node).net_conf().filter(|_| self.hostile.is_none()) else { return };
        let [zero, one, two] = [net.after_sb_0p, net.after_sb_1p, net.after_sb_2p];
        let is_lost = matches!(comparison.result, SyncResult::SplitBrain { recoverable: false });
        if let DecidedBy::Policy(reason) = by {
            let least = [DiscardYoungerPrimary, DiscardOlderPrimary, DiscardLeastChanges];
            let none = [DiscardYoungerPrimary, DiscardOlderPrimary, DiscardZeroChanges];
            let fits = match reason {
                "after-sb-0pri is disconnect" => zero == Disconnect,
                "after-sb-1pri is disconnect" => one == Disconnect,
                "after-sb-2pri is disconnect" => two == Disconnect,
                "after-sb-0pri is discard-local" => zero == DiscardLocal,
                "after-sb-0pri is discard-remote" => zero == DiscardRemote,
                "the peer was Primary first" | "this node was Primary first" => zero == DiscardYoungerPrimary,
                "the peer was Primary last" | "this node was Primary last" => zero == DiscardOlderPrimary,
                "both nodes wrote" => zero == DiscardZeroChanges,
                "neither node wrote" | "the peer wrote nothing" | "this node wrote nothing" => none.contains(&zero),
                "this node wrote less" | "the peer wrote less" | "both nodes wrote as much" => least.contains(&zero),
                "the policy does not fit the number of Primaries" => {
                    let nobody = |policy| matches!(policy, Consensus | DiscardSecondary | CallPriLost | Violently);
                    let both = |policy| matches!(policy, Disconnect | CallPriLost | Violently);
                    let one_fits = matches!(one, Disconnect | Consensus | DiscardSecondary | CallPriLost | Violently);
                    nobody(zero) || !one_fits || !both(two)
                }
                "no consensus to discard the Secondary's changes" => one == Consensus,
                "the peer is the Secondary" | "this node is the Secondary" => one == DiscardSecondary,
                _ => true,
            };
            assert!(fits, "node {node}: {reason}, and the policies are {zero:?}, {one:?}, {two:?}");
            assert!(!is_lost || net.always_asbp, "node {node}: {reason}, without always-asbp");
        }
        let unasked = is_lost && net.always_asbp && by == DecidedBy::Generations;
        assert!(!unasked, "node {node}: always-asbp, and no policy was asked");
        let violent = net.rr_conflict == Violently;
        let refused = decision == SyncDecision::Refuse(RefuseReason::TargetWhilePrimary);
        assert!(!(refused && violent), "node {node}: rr-conflict is violently, and the resync is refused");
    }

    /// A packet with a wish of the peer has been carried out, or refused.
    pub(super) fn note_wish(&mut self, node: usize, before: State) {
        let wish = match self.status(node).state != before {
            _ if self.engine_of(node).holds_request() => Wish::Held(self.volume),
            true => Wish::Granted,
            false => Wish::Refused,
        };
        let link = self.link_of(node).unwrap_or(0);
        let wishes = &mut self.wishes[node];
        if wishes.link != link {
            *wishes = Wishes { link, ..Wishes::default() };
        }
        wishes.open.push_back(wish);
    }

    /// The engine has been called: what has become of the wish that it let wait? By the time the answer is sent the disk may have gone
    /// and come back (seed 50038818).
    pub(super) fn note_held_wish(&mut self, node: usize) {
        let Some(&Wish::Held(volume)) = self.wishes[node].open.back() else { return };
        let engine = self.engine_of(node);
        if engine.holds_request() {
            return;
        }
        let begun = engine.volume_status(volume).is_some_and(|status| status.state.conn == Conn::StartingSyncT);
        let wish = match begun {
            false => Wish::Refused,
            // What an administrator asks for here at the same time is the same thing (seeds 50029785, 51025709).
            true if self.gives_up[node] => Wish::DoneAlready,
            true => Wish::Granted,
        };
        self.wishes[node].open.pop_back();
        self.wishes[node].open.push_back(wish);
    }

    /// The answer is about to be sent.
    pub(super) fn check_wish_answered(&mut self, node: usize, body: &[u8]) {
        let Ok(engine::wire::StateReply { code }) = engine::wire::StateReply::decode(body) else { return };
        let link = self.link_of(node).unwrap_or(0);
        let wish = self.wishes[node].open.pop_front().filter(|_| self.wishes[node].link == link);
        let Some(wish) = wish.filter(|_| self.hostile.is_none()) else { return };
        let fits = match wish {
            Wish::Granted => code == 1,
            Wish::DoneAlready => matches!(code, 1 | 2),
            // One that waits is refused when another one comes.
            Wish::Refused | Wish::Held(_) => code != 1,
        };
        assert!(fits, "node {node} answers {code} to a wish of the peer, {wish:?}");
    }

    /// A state has changed: is I/O suspended where it has to be?
    pub(super) fn check_suspended(&self, node: usize, from: State, to: State, susp: Susp) {
        if self.hostile.is_some() {
            return;
        }
        let engine = self.engine_of(node);
        let suspends = engine.resource_opts().on_no_data == OnNoData::SuspendIo;
        let lost = to.without_data() && !from.without_data();
        assert!(!(suspends && lost) || susp.no_data, "node {node}: {from} -> {to}, and I/O is not suspended");
        let alone =
            |state: State| state.role == Role::Primary && state.conn < Conn::Connected && state.pdsk > Disk::Outdated;
        let fences = self.config.disk.fencing == Fencing::ResourceAndStonith && from.disk >= Disk::Inconsistent;
        let lost = alone(to) && !alone(from);
        assert!(!(fences && lost) || susp.fencing, "node {node}: {from} -> {to}, and I/O is not suspended");
    }

    /// A resync has ended at its source, and everything is good again: the peer is unfenced before anything else happens.
    pub(super) fn check_unfenced(&mut self, node: usize, from: State, to: State) {
        use Conn::{PausedSyncS, SyncSource};
        assert!(!self.unfences[node], "node {node}: everything is good again, and unfence-peer is not called");
        let good =
            |state: State| (state.conn, state.disk, state.pdsk) == (Conn::Connected, Disk::UpToDate, Disk::UpToDate);
        let ends = matches!(from.conn, SyncSource | PausedSyncS) && good(to) && self.status(node).state == to;
        // Several volumes may come to their ends at once.
        let alone = self.config.volumes == 1 && self.hostile.is_none();
        self.unfences[node] = ends && alone && self.config.disk.fencing != Fencing::DontCare;
    }

    /// A disk is being let go because it has failed: the program that may be called is called first. Not where it is by command.
    pub(super) fn note_disk_error(&mut self, node: usize, what: &str) {
        let calls = self.config.disk.on_io_error == OnIoError::CallLocalIoError && what != "forced detach";
        if calls && self.hostile.is_none() {
            self.helpers_due.insert((node, self.volume));
        }
    }

    /// The disk is let go.
    pub(super) fn check_helper_called(&mut self, node: usize, from: State, to: State) {
        let due = self.helpers_due.contains(&(node, self.volume));
        let gone = from.disk == Disk::Failed && to.disk == Disk::Diskless;
        assert!(!(due && gone), "node {node}: the disk has failed, and local-io-error was not called");
    }
}
