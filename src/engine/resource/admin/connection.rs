// SPDX-License-Identifier: GPL-2.0
//! What an administrator does with the connection: connect, its options, disconnect.
//! spec: state-machine 16.3, 22; netlink 6

use super::role::Undrained;
use super::{AdminInfo, Ask, DisconnectStage, Op, Target, OK};
use crate::netlink::{Fencing, NetConf, OnCongestion, RetCode, WireProtocol};
use crate::resource::change::Kind;
use crate::resource::outgoing::Control;
use crate::resource::work::DeviceWork;
use crate::resource::Engine;
use crate::state::{And, Change, Conn, Disk, Role, StateError};
use crate::storage::Storage;

impl<S: Storage> Engine<S> {
    /// Whether a connection with this configuration could begin now.
    ///
    /// # Errors
    /// What the administrator is told.
    pub fn check_connect(&self, conf: &NetConf) -> Result<(), RetCode> {
        if self.link.conn > Conn::StandAlone || self.link.configured {
            return Err(RetCode::NetConfigured);
        }
        self.check_net_conf(conf)?;
        self.check_net_algorithms(conf)
    }

    pub(super) fn start_connect(&mut self, conf: &NetConf) {
        if let Err(code) = self.check_connect(conf) {
            self.answer(code.number());
            return;
        }
        self.link.net = *conf;
        self.link.configured = true;
        for id in self.volume_ids() {
            self.with_volume(id, |volume| volume.counters.forget_peer());
        }
        match self.change_connection(Change::conn(Conn::Unconnected), Kind::Soft, false) {
            Ok(outcome) => self.answer(outcome.code()),
            Err(error) => {
                self.link.configured = false;
                self.answer(error.code());
            }
        }
    }

    /// spec: netlink 6 CHG_NET_OPTS; state-machine 16.3
    fn check_net_conf(&self, conf: &NetConf) -> Result<(), RetCode> {
        if conf.two_primaries && conf.wire_protocol != WireProtocol::C {
            return Err(RetCode::NotProtoC);
        }
        let stonith = |volume: &crate::resource::Volume<S>| {
            volume.disk.is_some() && volume.conf.fencing == Fencing::ResourceAndStonith
        };
        if conf.wire_protocol == WireProtocol::A && self.volumes_with(stonith).next().is_some() {
            return Err(RetCode::StonithAndProtA);
        }
        let primary = |volume: &crate::resource::Volume<S>| volume.state.role == Role::Primary;
        if conf.discard_my_data && self.volumes_with(primary).next().is_some() {
            return Err(RetCode::DiscardImpossible);
        }
        if conf.on_congestion != OnCongestion::Block && conf.wire_protocol != WireProtocol::A {
            return Err(RetCode::CongNotProtoA);
        }
        Ok(())
    }

    fn check_net_algorithms(&self, conf: &NetConf) -> Result<(), RetCode> {
        self.check_authentication(conf)?;
        self.check_algorithms(conf)
    }

    pub(super) fn set_net_options(&mut self, conf: &NetConf) {
        if !self.link.configured {
            self.answer_with(RetCode::InvalidRequest.number(), AdminInfo::Text("net conf missing, try connect"));
            return;
        }
        let net = &self.link.net;
        let up = self.link.conn >= Conn::WFReportParams;
        let needs_100 = conf.wire_protocol != net.wire_protocol
            || conf.two_primaries != net.two_primaries
            || conf.integrity_alg != net.integrity_alg;
        if up && needs_100 && self.link.apv < 100 {
            self.answer(RetCode::NeedApv100.number());
            return;
        }
        // Whatever volumes they are Primary on.
        let primaries = |own: bool| {
            let role =
                move |volume: &crate::resource::Volume<S>| if own { volume.state.role } else { volume.state.peer };
            self.volumes_with(move |volume| role(volume) == Role::Primary).next().is_some()
        };
        if !conf.two_primaries && primaries(true) && primaries(false) {
            self.answer(RetCode::NeedAllowTwoPri.number());
            return;
        }
        let checks = self.check_net_conf(conf).and_then(|()| self.check_algorithms_unused(conf));
        if let Err(code) = checks.and_then(|()| self.check_net_algorithms(conf)) {
            self.answer(code.number());
            return;
        }
        self.link.net = *conf;
        self.release_sequence();
        for id in self.volume_ids().filter(|_| needs_100) {
            if self.volume(id).is_some() {
                self.order(DeviceWork::Limits { volume: id });
            }
        }
        // Also when only a policy has changed: at the next handshake both have to have the same.
        if up && self.link.apv >= 100 {
            self.queue_control(Control::ProtocolUpdate);
        }
        if up {
            for id in self.volume_ids() {
                if self.volume(id).is_some() {
                    self.queue_control(Control::SyncParam(id));
                }
            }
        }
        self.answer(OK);
    }

    pub(super) fn start_disconnect(&mut self, force: bool) {
        if self.link.conn == Conn::StandAlone {
            self.answer(OK);
            return;
        }
        if force {
            self.hard_disconnect();
            return;
        }
        self.want_barrier();
        let until_ms = self.now_ms.saturating_add(u64::from(self.link.net.ping_timeo).saturating_mul(100));
        self.admin.op = Some(Op::Disconnect { stage: DisconnectStage::Drain { until_ms } });
        self.admin.poked = true;
    }

    /// What was written last counts as replicated when its barrier has been acknowledged: else it would be copied once more.
    /// Not waited for while the application writes: then something is under way whenever the connection ends.
    fn waits_for_last_barrier(&self) -> bool {
        let mut volumes = self.volume_ids();
        self.link.is_running() && self.upper_pending == 0 && volumes.any(|id| self.undrained(id) == Undrained::Awaited)
    }

    /// spec: state-machine 22 disconnect
    pub(super) fn run_disconnect(&mut self, stage: DisconnectStage) {
        if self.link.conn == Conn::StandAlone {
            self.answer(OK);
            return;
        }
        if stage == DisconnectStage::Close || self.link.conn == Conn::Disconnecting {
            return;
        }
        let plain = Change::conn(Conn::Disconnecting);
        if let DisconnectStage::Drain { until_ms } = stage {
            if self.now_ms < until_ms && self.waits_for_last_barrier() {
                return;
            }
            self.admin.op = Some(Op::Disconnect { stage: DisconnectStage::Ask });
            self.begin_ask(Target::Connection, plain);
        }
        let change = self.admin.ask.map(|ask| ask.change);
        let Some(result) = self.run_ask() else { return };
        match result {
            Ok(_) => self.admin.op = Some(Op::Disconnect { stage: DisconnectStage::Close }),
            Err(StateError::AlreadyStandalone) => self.answer(OK),
            // Both nodes disconnect at once and the peer decides: it leaves, and then nobody has to be asked. Looked at
            // again when that shows, or at the next tick.
            Err(StateError::ConcurrentStChg) => {
                let change = change.unwrap_or(plain);
                self.admin.ask = Some(Ask::new(Target::Connection, change));
            }
            Err(StateError::PrimaryNop) if change == Some(plain) => {
                self.begin_ask(Target::Connection, plain.pdsk(Disk::Outdated));
            }
            Err(StateError::OutdateWoConn) => self.hard_disconnect(),
            Err(StateError::CwFailedByPeer) if change == Some(plain) && self.link.conn > Conn::WFConnection => {
                self.begin_ask(Target::Connection, plain.disk(Disk::Outdated));
            }
            Err(StateError::IsDiskless | StateError::LowerThanOutdated) => self.hard_disconnect(),
            // The connection that the peer's refusal came on is gone: from the start.
            Err(StateError::CwFailedByPeer) if change == Some(plain) => self.begin_ask(Target::Connection, plain),
            Err(error) => self.answer(error.code()),
        }
    }

    fn hard_disconnect(&mut self) {
        self.admin.op = Some(Op::Disconnect { stage: DisconnectStage::Close });
        let _outcome = self.change_connection(Change::conn(Conn::Disconnecting), Kind::Hard, false);
    }
}
