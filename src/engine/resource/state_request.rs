// SPDX-License-Identifier: GPL-2.0
//! The peer asks for a change of state, of a volume or of the connection, and is answered.
//!
//! One request may have to wait: that this Primary's data be overwritten. What was acknowledged because the peer has it may only be
//! in the cache of the peer's disk, and from the moment of the consent there is no other copy. So nothing new is begun, the
//! peer is asked for a last acknowledgement that its disk has everything, and agreed with after that. (The C module agrees at once.)
//! spec: wire-protocol 9.3

use super::admin::Undrained;
use super::api::VolumeId;
use super::change::Kind;
use super::incoming::{result_code, Fault};
use super::outgoing::MetaOut;
use super::Engine;
use crate::state::{Change, Conn, Disk, Outcome, Role, StateError};
use crate::storage::Storage;
use crate::wire::StateRequest;

/// A request for a change, as it concerns this node, that has not been answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeldRequest {
    pub(super) volume: VolumeId,
    change: Change,
}

impl<S: Storage> Engine<S> {
    /// P_STATE_CHG_REQ.
    pub(super) fn receive_state_request(&mut self, id: VolumeId, request: &StateRequest) -> Result<(), Fault> {
        if self.link.apv < 100 {
            let change = Change::from_request(request.mask, request.val).map_err(Fault::Change)?;
            if change.wanted_conn() == Some(Conn::Disconnecting) {
                return self.receive_connection_request(request);
            }
        }
        let change = Change::from_request(request.mask, request.val).map_err(Fault::Change)?.mirror();
        let held = HeldRequest { volume: id, change };
        if let Some(HeldRequest { volume, .. }) = self.link.held_request.replace(held) {
            // It asks for one thing after the other.
            self.queue_meta(MetaOut::StateReply { volume, code: StateError::ConcurrentStChg.code() });
        }
        self.run_held_request();
        Ok(())
    }

    /// Answers the request that waits, if it need not wait any longer. True when it did.
    pub(super) fn run_held_request(&mut self) -> bool {
        let Some(HeldRequest { volume, change }) = self.link.held_request else { return false };
        if change.wanted_conn() == Some(Conn::StartingSyncT) && !self.is_safe_at_peer(volume) {
            return false;
        }
        self.link.held_request = None;
        self.answer_state_request(volume, change);
        self.reopen_gate();
        true
    }

    /// True while the peer's last request has not been answered, because that has to wait.
    pub fn holds_request(&self) -> bool {
        self.link.held_request.is_some()
    }

    /// Everything that the application has been told is written is on the peer's disk, or this node does not answer for it. Asks
    /// the peer for what is missing.
    pub(super) fn is_safe_at_peer(&mut self, id: VolumeId) -> bool {
        let Some(volume) = self.volume(id) else { return true };
        if volume.state.role != Role::Primary || volume.state.conn != Conn::Connected || self.susp.any() {
            return true;
        }
        if volume.state.disk < Disk::Inconsistent {
            // It is going to be refused. If it waited for the disk to come back, the new resync would meet it.
            return true;
        }
        if volume.upper_pending > 0 {
            return false;
        }
        let safe = self.undrained(id) != Undrained::Awaited;
        if !safe {
            self.want_barrier();
        }
        safe
    }

    fn answer_state_request(&mut self, id: VolumeId, change: Change) {
        // Below version 100 all requests of a connection exclude each other. spec: wire-protocol 9.2
        let asks = self.asks_peer(Some(id)) || (self.link.apv < 100 && self.asks_peer(None));
        let code = if self.link.resolve_conflicts && asks {
            StateError::ConcurrentStChg.code()
        } else {
            let possible = self.check_resync_disks(id, change);
            result_code(possible.and_then(|()| self.change(id, change, Kind::Soft)))
        };
        self.queue_meta(MetaOut::StateReply { volume: id, code });
        if code >= Outcome::Success.code() && change.wanted_conn() == Some(Conn::StartingSyncS) {
            self.with_volume(id, |volume| volume.resync.consent_unheard = true);
            self.fresh_ping();
        }
        self.sync_metadata(id);
    }

    /// The peer asks for a full resync: both disks are needed for that. It may not have heard yet that one of them is gone, and would call
    /// its own worthless if it were told that there is nothing to do, as the C module says.
    fn check_resync_disks(&self, id: VolumeId, change: Change) -> Result<(), StateError> {
        let starts = matches!(change.wanted_conn(), Some(Conn::StartingSyncS | Conn::StartingSyncT));
        match self.volume(id).map(|volume| volume.state).filter(|_| starts) {
            Some(state) if state.disk < Disk::Inconsistent => Err(StateError::NoLocalDisk),
            Some(state) if state.pdsk < Disk::Inconsistent => Err(StateError::NoRemoteDisk),
            _ => Ok(()),
        }
    }

    /// P_CONN_ST_CHG_REQ.
    pub(super) fn receive_connection_request(&mut self, request: &StateRequest) -> Result<(), Fault> {
        if self.link.resolve_conflicts && self.asks_peer(None) {
            self.queue_meta(MetaOut::ConnectionReply { code: StateError::ConcurrentStChg.code() });
            return Ok(());
        }
        let change = Change::from_request(request.mask, request.val).map_err(Fault::Change)?.mirror();
        if change.wanted_conn() == Some(Conn::TearDown) {
            // The answer has to be out before the sockets go: check now, change when it has been sent.
            let code = result_code(self.check_connection(change));
            self.queue_meta(MetaOut::ConnectionReply { code });
            if code >= Outcome::Success.code() {
                self.link.tear_down = Some(change);
            }
            return Ok(());
        }
        let code = result_code(self.change_connection(change, Kind::Soft, true));
        self.queue_meta(MetaOut::ConnectionReply { code });
        Ok(())
    }
}
