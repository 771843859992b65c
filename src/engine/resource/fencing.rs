// SPDX-License-Identifier: GPL-2.0
//! A peer that cannot be seen may still write. The program fence-peer finds out, or sees to it that it cannot; what it
//! exits with decides what this node believes of the peer's disk.
//! spec: state-machine 12, 10 (4)

use super::api::Helper;
use super::change::Kind;
use super::work::LogLine;
use super::{Engine, Volume};
use crate::netlink::Fencing;
use crate::state::{Aggregates, Change, Conn, Disk, Role, Susp};
use crate::storage::Storage;

/// The exit code of a program that has shot the peer.
const SHOT: i32 = 7;

/// The program that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FenceRun {
    /// Under which its end is reported.
    pub(super) ticket: u32,
    /// Connections made so far: its answer is about the peer of that time.
    connects: u32,
}

/// What an attempt to fence came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FenceStart {
    /// The program runs.
    Runs(FenceRun),
    /// There is nothing to run; true: the peer need not be feared.
    Over(bool),
}

/// What the program says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// The peer's disk is this.
    Peer(Disk),
    /// The peer could not be reached, and there is no better data here to go on with.
    Nothing,
    /// The peer serves: the own data is what gets old.
    OwnOutdated,
    /// None of the agreed codes.
    Broken,
}

impl Answer {
    fn of(exit_code: i32, own_up_to_date: bool) -> Self {
        match exit_code {
            3 => Answer::Peer(Disk::Inconsistent),
            4 | SHOT => Answer::Peer(Disk::Outdated),
            5 if own_up_to_date => Answer::Peer(Disk::Outdated),
            5 => Answer::Nothing,
            6 => Answer::OwnOutdated,
            _ => Answer::Broken,
        }
    }

    fn change(self) -> Option<Change> {
        match self {
            Answer::Peer(disk) => Some(Change::pdsk(disk)),
            Answer::OwnOutdated => Some(Change::disk(Disk::Outdated)),
            Answer::Nothing | Answer::Broken => None,
        }
    }
}

impl<S: Storage> Engine<S> {
    fn all(&self) -> Aggregates {
        Aggregates::of(self.volumes.iter().flatten().map(|volume| volume.state))
    }

    /// The strictest policy of the volumes whose data is worth anything.
    fn fencing_policy(&self) -> Option<Fencing> {
        let worth = self.volumes.iter().flatten().filter(|volume| volume.state.disk >= Disk::Consistent);
        worth.map(|volume| volume.conf.fencing).max_by_key(|policy| policy.as_u32())
    }

    /// A Primary has lost its peer.
    pub(super) fn fence_lost_peer(&mut self) {
        let all = self.all();
        if all.highest_role != Role::Primary || all.highest_pdsk < Disk::Unknown {
            return;
        }
        if let FenceStart::Runs(run) = self.start_fencing() {
            self.link.fence = Some(run);
        }
    }

    /// Has the peer fenced, if there is a reason to.
    pub(super) fn start_fencing(&mut self) -> FenceStart {
        if self.link.conn >= Conn::WFReportParams {
            return FenceStart::Over(false);
        }
        match self.fencing_policy() {
            Some(Fencing::DontCare) => FenceStart::Over(true),
            Some(_) => {
                let ticket = self.call_helper(Helper::FencePeer, None);
                FenceStart::Runs(FenceRun { ticket, connects: self.link.connects })
            }
            None => {
                self.log(LogLine::NotFencing);
                if self.susp.fencing {
                    self.thaw(Susp { fencing: false, ..self.susp });
                }
                if !self.susp.any() {
                    self.fail_network_parts();
                }
                FenceStart::Over(false)
            }
        }
    }

    /// The program has ended. True: the peer need not be feared.
    pub(super) fn end_fencing(&mut self, run: FenceRun, exit_code: i32) -> bool {
        let all = self.all();
        let answer = Answer::of(exit_code, all.highest_disk == Disk::UpToDate);
        if answer == Answer::Broken {
            self.log(LogLine::FencingFailed { exit_code });
            return false;
        }
        self.log(LogLine::Fenced { exit_code });
        if exit_code == SHOT && self.fencing_policy() != Some(Fencing::ResourceAndStonith) {
            self.log(LogLine::ShotWithoutStonith);
        }
        let is_alone = self.link.conn < Conn::WFReportParams && !self.link.state_sent;
        if is_alone && run.connects == self.link.connects {
            if let Some(change) = answer.change() {
                // A refusal is in the log.
                let _outcome = self.change_connection(change, Kind::Soft, false);
            }
        }
        self.all().highest_pdsk <= Disk::Outdated
    }

    /// Once the peer is known to have old data, frozen I/O goes on as a new generation.
    pub(super) fn thaw_if_fenced(&mut self) {
        if !self.susp.fencing || self.all().highest_pdsk > Disk::Outdated {
            return;
        }
        for id in self.volume_ids() {
            if self.volume(id).is_some_and(|volume| volume.generation_due) {
                self.new_current_uuid(id);
            }
        }
        self.fail_network_parts();
        self.thaw(Susp { fencing: false, ..self.susp });
    }

    /// The peer was fenced once, and now everything is good on both sides: undo it. spec: state-machine 11
    pub(super) fn unfence_if_done(&mut self) {
        let fenced = self.volumes_with(|volume| volume.conf.fencing != Fencing::DontCare).next().is_some();
        let good = |volume: &Volume<S>| volume.state.disk == Disk::UpToDate && volume.state.pdsk == Disk::UpToDate;
        let all_good = self.volumes_with(|volume| !good(volume)).next().is_none();
        if fenced && all_good {
            self.call_helper(Helper::UnfencePeer, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agreed_codes() {
        assert_eq!(Answer::of(3, false), Answer::Peer(Disk::Inconsistent));
        assert_eq!(Answer::of(4, false), Answer::Peer(Disk::Outdated));
        assert_eq!(Answer::of(5, true), Answer::Peer(Disk::Outdated));
        assert_eq!(Answer::of(5, false), Answer::Nothing);
        assert_eq!(Answer::of(6, true), Answer::OwnOutdated);
        assert_eq!(Answer::of(7, false), Answer::Peer(Disk::Outdated));
        for code in [0, 1, 2, 8, 255] {
            assert_eq!(Answer::of(code, true), Answer::Broken);
        }
    }
}
