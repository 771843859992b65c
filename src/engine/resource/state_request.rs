// SPDX-License-Identifier: GPL-2.0
//! The peer asks for a change of state, of a volume or of the connection, and is answered.
//! spec: wire-protocol 9.3

use super::api::VolumeId;
use super::change::Kind;
use super::incoming::{result_code, Fault};
use super::outgoing::MetaOut;
use super::Engine;
use crate::state::{Change, Conn, Disk, Outcome, StateError};
use crate::storage::Storage;
use crate::wire::StateRequest;

impl<S: Storage> Engine<S> {
    pub(super) fn receive_state_request(&mut self, id: VolumeId, request: &StateRequest) -> Result<(), Fault> {
        if self.link.apv < 100 {
            let change = Change::from_request(request.mask, request.val).map_err(Fault::Change)?;
            if change.wanted_conn() == Some(Conn::Disconnecting) {
                return self.receive_connection_request(request);
            }
        }
        // Below version 100 all requests of a connection exclude each other. spec: wire-protocol 9.2
        let asks = self.asks_peer(Some(id)) || (self.link.apv < 100 && self.asks_peer(None));
        let code = if self.link.resolve_conflicts && asks {
            StateError::ConcurrentStChg.code()
        } else {
            let change = Change::from_request(request.mask, request.val).map_err(Fault::Change)?.mirror();
            let possible = self.check_resync_disks(id, change);
            result_code(possible.and_then(|()| self.change(id, change, Kind::Soft)))
        };
        self.queue_meta(MetaOut::StateReply { volume: id, code });
        self.sync_metadata(id);
        Ok(())
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
