//! The worker of a resource: notices, helper programs, orders to the owner.

use super::*;
use engine::handshake::{DecidedBy, RefuseReason, Rule};
use engine::state::State;
use engine::wire::Uuids;

impl World {
    pub(super) fn work(&mut self, node: usize) {
        let (order, work) = self.engine(node, |engine, _| match engine.poll_device_work() {
            None => (None, engine.poll_work()),
            order => (order, None),
        });
        if order.is_some() || work.is_some() {
            self.schedule_own(node, 1, Own::Work);
        }
        if let Some(order) = order {
            self.carry_out_order(node, order);
        }
        let Some(work) = work else { return };
        let volume = match work {
            Work::Notice(Notice::State { volume, .. }) => Some(volume),
            Work::Log(line) => line.volume(),
            _ => None,
        };
        self.at(volume.unwrap_or(VOLUME), |world| world.carry_out(node, work));
    }

    fn carry_out(&mut self, node: usize, work: Work) {
        match work {
            Work::Notice(notice) => {
                self.note(|| match notice {
                    Notice::State { from, to, .. } => format!("node {node} STATE {from} -> {to}"),
                    other => format!("node {node} {other:?}"),
                });
                if let Notice::State { from, to, susp, .. } = notice {
                    if from.conn != Conn::WFBitMapT && to.conn == Conn::WFBitMapT {
                        self.check_overwrite(node);
                    }
                    self.check_resync_end(node, from, to);
                    self.check_state_change(node, from, to);
                    self.check_suspended(node, from, to, susp);
                    self.check_helper_called(node, from, to);
                    self.check_unfenced(node, from, to);
                    let good = |state: State| (state.disk, state.pdsk) == (Disk::UpToDate, Disk::UpToDate);
                    if good(to) && !good(from) && self.both_good() {
                        self.check_differences();
                    }
                    // A disk that is kept though it fails is no better than one that is let go.
                    let failed = to.disk <= Disk::Failed || (self.passes_on() && to.disk == Disk::Inconsistent);
                    if to.role == Role::Primary && failed && to.conn < Conn::Connected {
                        let peer = &self.nodes[1 - node].data;
                        self.oracle.out_of_reach(node, |sector| peer.get(sector));
                    }
                }
                self.history.push((node, notice));
            }
            Work::Log(line) => {
                self.note(|| format!("node {node} LOG {line}"));
                if let LogLine::DiskError { what, .. } = line {
                    self.note_disk_error(node, what);
                }
                match line {
                    LogLine::Fault { fault } => {
                        // A ping waits behind what is queued for the socket.
                        if fault == Fault::PingTimeout && self.config.sent_us_most < MS {
                            self.check_timeout(node, u64::from(self.config.net.ping_timeo) * 100, fault);
                        }
                        if let Fault::HandshakeTimeout { limit_ms } = fault {
                            self.check_timeout(node, limit_ms, fault);
                        }
                        if let Fault::SameSide { .. } = fault {
                            self.refusals.push(format!("node {node}: {fault}"));
                        }
                        if !(fault == Fault::SizeRefused && self.outgrown[node]) {
                            self.faults.push((node, fault));
                        }
                    }
                    LogLine::SizeRefused { volume, own_sectors, offered_sectors } => {
                        self.note_size_refused(node, volume, own_sectors, offered_sectors);
                    }
                    LogLine::RequestTimeout { limit_ms } | LogLine::DiskTimeout { limit_ms, .. } => {
                        self.check_timeout(node, limit_ms, line);
                    }
                    // The other node has lost its power, and now this disk fails: that is two failures.
                    LogLine::DiskError { .. } if self.has_lost_its_end(1 - node) => self.only_left(1 - node),
                    // So it is when the administrator wants a disk that fails not to be let go, and it is the only good one.
                    LogLine::DiskError { .. } if self.passes_on() && !self.is_mirrored(node) => {
                        self.only_left(1 - node)
                    }
                    LogLine::DiskError { .. } => self.overwrite_allowed = true,
                    LogLine::NewGeneration { uuids, .. } => self.note_generation(node, uuids[UI_CURRENT]),
                    LogLine::Refused { .. } => self.changes_refused += 1,
                    LogLine::PeerExposedDataDiffers { .. } => self.old_data_refused += 1,
                    LogLine::PrimaryGivesUpData { .. } => self.warned_of_loss += 1,
                    LogLine::ResyncDone { source: false, .. } => {
                        self.resyncs += 1;
                        let volume = self.volume;
                        self.unheard.retain(|(of, _)| *of != volume);
                    }
                    LogLine::Decision { comparison, decision, by, .. } => {
                        self.rules.insert(format!("{:?}", comparison.rule));
                        self.note_decision(node, decision);
                        self.check_decision(node, &comparison, decision, by);
                        self.overwrite_allowed |= matches!(by, DecidedBy::Policy(_) | DecidedBy::DiscardMyData);
                        if let SyncDecision::Refuse(reason) = decision {
                            self.refused_excusably |= !self.unheard.is_empty()
                                || (comparison.rule == Rule::PeerMissedEndOfResync
                                    && reason == RefuseReason::TargetWhilePrimary);
                            self.refusals.push(format!("node {node}: {reason}"));
                        }
                    }
                    _ => {}
                }
                assert!(!matches!(line, LogLine::InternalError { .. }), "node {node}: {line}");
            }
            Work::Helper { helper, ticket, volume } => {
                if let (Helper::LocalIoError, Some(volume)) = (helper, volume) {
                    let due = self.helpers_due.remove(&(node, volume));
                    assert!(
                        due || self.hostile.is_some(),
                        "node {node}: local-io-error for a disk that has not failed"
                    );
                }
                self.unfences[node] &= helper != Helper::UnfencePeer;
                let exit_code = self.exit_code(node, helper);
                self.helpers.push((node, helper));
                self.note(|| format!("node {node} helper {helper} -> {exit_code}"));
                let delay = self.random.between(100, 20_000);
                let delay = self.programs_us.or_else(|| self.late(helper, ticket)).unwrap_or(delay);
                self.schedule_own(node, delay, Own::Helper { helper, ticket, exit_code });
            }
            Work::Algorithms => {
                let wanted = self.engine(node, |engine, _| engine.wanted_algorithms());
                self.tell_algorithms(node, &wanted);
                self.engine(node, |engine, now| engine.algorithms_looked_for(now));
            }
            Work::ResyncDependencies => self.review_dependencies(node),
        }
    }

    fn carry_out_order(&mut self, node: usize, order: DeviceWork) {
        match order {
            DeviceWork::ReleaseBacking { volume } => self.schedule_own(node, 500, Own::Released(volume)),
            DeviceWork::Resize { volume, sectors } => {
                let tables = engine::bitmap::BitmapTables::new(sectors).ok();
                let _old = self.engine(node, |engine, now| engine.resize(volume, tables, now));
            }
            DeviceWork::Capacity { .. }
            | DeviceWork::Limits { .. }
            | DeviceWork::ReadOnly { .. }
            | DeviceWork::Uevent { .. } => {}
        }
    }

    /// Volumes wait for those that they are to be resynced after, as the owner of several resources sees to it.
    /// spec: state-machine 17.5
    fn review_dependencies(&mut self, node: usize) {
        // A volume that pauses or goes on changes those that follow it.
        for volume in self.volumes().chain(self.volumes()) {
            let state = self.at(volume, |world| world.status(node).state);
            let busy = self.follows_busy(node, volume);
            if busy != state.aftr_isp && (state.conn > Conn::StandAlone || state.disk > Disk::Diskless) {
                self.engine(node, |engine, now| engine.set_paused_by_dependency(volume, busy, now));
            }
        }
    }

    /// One of those that come before the volume is being resynced, or paused.
    fn follows_busy(&self, node: usize, volume: VolumeId) -> bool {
        let engine = self.engine_of(node);
        let before = |volume: &VolumeId| {
            let conf = engine.disk_conf(*volume)?;
            u8::try_from(conf.resync_after).ok().map(VolumeId)
        };
        std::iter::successors(before(&volume), before).any(|first| {
            let state = engine.volume_status(first).expect("volume").state;
            (Conn::SyncSource..=Conn::PausedSyncT).contains(&state.conn) || state.paused()
        })
    }

    /// A node whose peer has lost its disk goes on alone.
    fn note_generation(&mut self, node: usize, current: u64) {
        let other = 1 - node;
        // As it was then: the engine may have gone on, and have lost the connection (seed 27001617 with several volumes).
        let told = self.history.iter().rev().find_map(|&(of, notice)| match notice {
            Notice::State { volume, to, .. } if of == node && volume == self.volume => Some(to),
            _ => None,
        });
        let state = told.unwrap_or(self.status(node).state);
        // Perhaps it has consented to that only now, and the consent does not arrive.
        let promoted = state.peer == Role::Primary;
        let has_primary = self.is_on(other) && (promoted || self.status(other).state.role == Role::Primary);
        if has_primary && state.conn >= Conn::Connected {
            self.unheard.insert((self.volume, current & !1));
        }
    }

    /// The peer's generations have arrived.
    pub(super) fn note_heard(&mut self, node: usize, name: &str, body: &[u8]) {
        let state = self.status(node).state;
        // The peer consented to a detach, and the consent did not arrive: both go on with a disk that the other one takes for old.
        let as_told = state.conn >= Conn::Connected && state.disk <= Disk::Failed;
        if let ("P_UUIDS", true, Ok(Uuids { uuids, .. })) = (name, as_told, Uuids::decode(body)) {
            self.unheard.remove(&(self.volume, uuids[UI_CURRENT] & !1));
        }
    }

    /// One of the nodes has begun a generation of which the peer, which was Primary, did not hear before they lost each other; at present, or
    /// when they refused each other. Or the protocol has them refuse each other in another way.
    pub fn is_excused(&self) -> bool {
        self.refused_excusably || !self.unheard.is_empty()
    }

    /// A program that fences may take so long that the peer is back when it ends. A generator of its own decides.
    fn late(&self, helper: Helper, ticket: u32) -> Option<u64> {
        let mut random = Random::new(self.config.seed ^ self.now_us ^ (u64::from(ticket) << 32));
        (helper == Helper::FencePeer && random.percent(25)).then(|| random.between(100 * MS, 8_000 * MS))
    }

    /// A helper program ends. What fences looks once more, if the peer is not back.
    pub(super) fn helper_ended(&mut self, node: usize, helper: Helper, ticket: u32, exit_code: i32) {
        let truthful = helper == Helper::FencePeer && self.fence == Fence::Truthful;
        let away = self.status(node).state.conn < Conn::Connected;
        let exit_code = if truthful && away { self.truth_about_peer(1 - node) } else { exit_code };
        self.engine(node, |engine, now| engine.helper_done(ticket, exit_code, now));
    }

    fn exit_code(&mut self, node: usize, helper: Helper) -> i32 {
        match (helper, self.fence) {
            (Helper::FencePeer, Fence::Truthful) => self.truth_about_peer(1 - node),
            (Helper::FencePeer, Fence::Any) => self.random.pick(&[0, 1, 3, 4, 5, 6, 7]),
            _ => self.helper_exit_code,
        }
    }

    /// spec: state-machine 12
    fn truth_about_peer(&self, other: usize) -> i32 {
        if !self.is_on(other) {
            return 5;
        }
        let states = self.volumes().map(|volume| self.engine_of(other).volume_status(volume).expect("volume").state);
        let states: Vec<State> = states.collect();
        let all = |disk: Disk| states.iter().all(|state| state.disk == disk);
        match () {
            () if states.iter().any(|state| state.role == Role::Primary) => 6,
            () if all(Disk::Inconsistent) => 3,
            () if all(Disk::Outdated) => 4,
            // It cannot be reached, and may be as good as this one.
            () => 1,
        }
    }

    /// The administrator wants a disk that fails not to be let go.
    pub fn passes_on(&self) -> bool {
        self.config.disk.on_io_error == OnIoError::PassOn
    }

    /// This node is without power, or was since it had a connection that the other one still believes in.
    fn has_lost_its_end(&self, node: usize) -> bool {
        let gone = self.connection.as_ref().is_some_and(|connection| connection.ends[node].is_none());
        !self.is_on(node) || gone
    }

    fn is_mirrored(&self, node: usize) -> bool {
        let state = self.status(node).state;
        state.conn >= Conn::Connected && state.pdsk == Disk::UpToDate
    }

    /// This Primary has lost its disk, and lost its peer before that could grow with it: what the peer offers is too small for
    /// what the application has seen, even if its disk has grown since (seeds 3018024, 20008867; 31002426 with several volumes).
    fn note_size_refused(&mut self, node: usize, volume: VolumeId, own_sectors: u64, offered_sectors: u64) {
        let state = self.engine_of(node).volume_status(volume).expect("volume").state;
        self.outgrown[node] =
            state.role == Role::Primary && state.disk <= Disk::Failed && offered_sectors < own_sectors;
    }

    /// This node's data is about to be overwritten: is what was acknowledged and is only here given up by somebody?
    fn check_overwrite(&mut self, node: usize) {
        if self.overwrite_allowed {
            return;
        }
        let [own, other] = [node, 1 - node].map(|node| &self.nodes[node].data);
        let lost =
            self.oracle.sectors().find(|&sector| self.oracle.is_newer(sector, own.get(sector), other.get(sector)));
        if let Some(sector) = lost {
            panic!(
                "nobody said that node {node} may lose what it has in sector {sector}: {} and not {}; {}",
                own.get(sector),
                other.get(sector),
                self.describe()
            );
        }
    }
}
