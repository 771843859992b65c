// SPDX-License-Identifier: GPL-2.0
//! Two nodes meet: features, settings, data generations, state, and the decision that follows from them.
//!
//! The rules are pure functions in `handshake`; here they get their inputs from this node and the packets, and what they
//! decide is carried out. The same packets also arrive later, when something changes while connected.
//! spec: wire-protocol 4, 8.1, 9.4; state-machine 14, 15

use super::api::{Helper, VolumeId};
use super::change::Kind;
use super::incoming::Fault;
use super::inspect::Direction;
use super::volume::ResyncStart;
use super::work::LogLine;
use super::{Engine, Volume};
use crate::handshake::{
    compare_protocol, decide, negotiate, receive_state, receive_uuids, CompareContext, DecideInput, Decision, Demotion,
    Fixup, HandshakeResult, PeerFeatures, PeerStateAction, PeerStateInput, PeerStateRefusal, ProtocolSettings,
    RefuseReason, SbPolicies, SbPolicy, SyncDecision, Thing, UuidSet, UuidsAction, UuidsInput,
};
use crate::metadata::superblock::UI_BITMAP;
use crate::netlink::WireProtocol;
use crate::state::{And, Change, Conn, Disk, Role, State, Susp};
use crate::storage::Storage;
use crate::wire::{
    Features, Protocol, SyncParam, UuidFlags, Uuids, CONN_DRY_RUN, OWN_FEATURES, PRO_VERSION_MAX, PRO_VERSION_MIN,
};

/// First version whose nodes understand that only a dry run is wanted. spec: wire-protocol 3.7
const DRY_RUN_PROTOCOL: u32 = 92;

pub(super) fn set_of(uuids: [u64; 4]) -> UuidSet {
    let [current, bitmap, start, end] = uuids;
    UuidSet { current, bitmap, history: [start, end] }
}

pub(super) fn words_of(set: UuidSet) -> [u64; 4] {
    let [start, end] = set.history;
    [set.current, set.bitmap, start, end]
}

impl<S: Storage> Engine<S> {
    /// P_CONNECTION_FEATURES. spec: wire-protocol 4.2
    pub(super) fn receive_features(&mut self, features: &Features) -> Result<(), Fault> {
        let peer = PeerFeatures { protocol_min: features.min, protocol_max: features.max, flags: features.flags };
        let (apv, features) =
            negotiate(PRO_VERSION_MIN, PRO_VERSION_MAX, OWN_FEATURES, peer).map_err(Fault::Incompatible)?;
        self.log(LogLine::Handshake { apv, features });
        if apv < DRY_RUN_PROTOCOL && self.link.net.tentative {
            return Err(Fault::DryRunUnsupported);
        }
        self.features_agreed(apv, features);
        Ok(())
    }

    /// P_PROTOCOL, and P_PROTOCOL_UPDATE for a change while connected. spec: wire-protocol 4.4
    pub(super) fn receive_protocol(&mut self, packet: &Protocol, update: bool) -> Result<(), Fault> {
        if update {
            return self.adopt_protocol(packet);
        }
        let net = &self.link.net;
        let own = ProtocolSettings {
            protocol: net.wire_protocol.as_u32(),
            after_sb_0p: net.after_sb_0p.as_u32(),
            after_sb_1p: net.after_sb_1p.as_u32(),
            after_sb_2p: net.after_sb_2p.as_u32(),
            two_primaries: net.two_primaries,
            integrity_alg: net.integrity_alg.as_bytes(),
        };
        let peer = ProtocolSettings {
            protocol: packet.wire_protocol,
            after_sb_0p: packet.after_sb_0p,
            after_sb_1p: packet.after_sb_1p,
            after_sb_2p: packet.after_sb_2p,
            two_primaries: packet.two_primaries != 0,
            integrity_alg: packet.integrity_alg.as_bytes(),
        };
        compare_protocol(&own, &peer).map_err(Fault::Protocol)?;
        self.link.peer_dry_run = packet.conn_flags & CONN_DRY_RUN != 0;
        self.link.protocol_checked = true;
        self.set_integrity(Direction::Received, packet.integrity_alg);
        Ok(())
    }

    fn adopt_protocol(&mut self, packet: &Protocol) -> Result<(), Fault> {
        let unknown = |value| Fault::UnknownPolicy { value };
        let policy = |value: u32| {
            SbPolicy::from_u32(value)
                .and_then(|policy| crate::netlink::AfterSplitBrain::from_u32(policy.mirrored().number()))
                .ok_or(unknown(value))
        };
        let zero = policy(packet.after_sb_0p)?;
        let one = policy(packet.after_sb_1p)?;
        let two = policy(packet.after_sb_2p)?;
        let letter = WireProtocol::from_u32(packet.wire_protocol).ok_or(unknown(packet.wire_protocol))?;
        let net = &mut self.link.net;
        net.wire_protocol = letter;
        net.after_sb_0p = zero;
        net.after_sb_1p = one;
        net.after_sb_2p = two;
        net.two_primaries = packet.two_primaries != 0;
        self.adopt_integrity(&packet.integrity_alg);
        Ok(())
    }

    /// P_SYNC_PARAM, P_SYNC_PARAM89. spec: wire-protocol 4.5
    pub(super) fn receive_sync_param(&mut self, id: VolumeId, packet: &SyncParam) -> Result<(), Fault> {
        let apv = self.link.apv;
        let net = &self.link.net;
        let reporting = self.volume(id).is_some_and(|volume| volume.state.conn <= Conn::WFReportParams);
        if apv >= 88 && packet.verify_alg != net.verify_alg && reporting {
            return Err(Fault::Algorithm { what: "verify-alg" });
        }
        if apv >= 89 && packet.csums_alg != net.csums_alg && reporting {
            return Err(Fault::Algorithm { what: "csums-alg" });
        }
        // What the version does not tell stays as it is configured here.
        let verify_alg = if apv >= 88 { packet.verify_alg } else { net.verify_alg };
        let csums_alg = if apv >= 89 { packet.csums_alg } else { net.csums_alg };
        self.adopt_algorithms(&verify_alg, &csums_alg);
        self.with_volume(id, |volume| {
            if volume.disk.is_none() {
                return;
            }
            volume.conf.resync_rate = packet.resync_rate.max(1);
            if let Some(controller) = packet.controller {
                volume.conf.c_plan_ahead = controller.c_plan_ahead.min(300);
                volume.conf.c_delay_target = controller.c_delay_target;
                volume.conf.c_fill_target = controller.c_fill_target;
                volume.conf.c_max_rate = controller.c_max_rate;
            }
            volume.configure_resync();
        });
        Ok(())
    }

    /// P_UUIDS. spec: wire-protocol 4.7; state-machine 14.2
    pub(super) fn receive_uuids(&mut self, id: VolumeId, packet: &Uuids) -> Result<(), Fault> {
        let apv = self.link.apv;
        let Some(volume) = self.volume_mut(id) else { return Err(Fault::UnknownVolume) };
        volume.peer.uuids = Some(*packet);
        let peer_current = packet.uuids.first().copied().unwrap_or(0);
        let own_current = volume.disk.as_ref().map_or(0, |disk| disk.current());
        // It has begun a generation, which its bitmap goes with. The generations are told for other reasons as well.
        let records = packet.uuids.get(UI_BITMAP).is_some_and(|&uuid| uuid != 0);
        let peer_knows = volume.state.conn >= Conn::Connected && records && (own_current ^ peer_current) & !1 != 0;
        let action = receive_uuids(&UuidsInput {
            own: volume.state,
            apv,
            own_current: volume.disk.as_ref().map(|disk| disk.current()),
            exposed: volume.exposed_uuid,
            holds_exposed: volume.disk.as_ref().is_some_and(|disk| !volume.has_seen_other_data(disk.current())),
            peer_current,
            skip_initial_sync: packet.flags.contains(UuidFlags::SKIP_INITIAL_SYNC),
        });
        match action {
            UuidsAction::Keep => {}
            UuidsAction::Expose => volume.exposed_uuid = peer_current,
            UuidsAction::Refuse => {
                let exposed = volume.exposed_uuid;
                self.log(LogLine::PeerExposedDataDiffers { volume: id, peer: peer_current, exposed });
                return Err(Fault::DataRefused);
            }
            UuidsAction::SkipInitialSync => {
                let primary = volume.state.role == Role::Primary;
                if let Some(disk) = volume.disk.as_mut() {
                    disk.set_current(peer_current, primary);
                    disk.set_bitmap_uuid(0);
                }
                volume.exposed_uuid = peer_current;
                self.queue_job(id, super::metadata_pipeline::Job::ClearAll(super::metadata_pipeline::Then::Skipped));
            }
        }
        if peer_knows {
            self.loss_recorded(id);
            self.peer_saw_failure(id);
        }
        Ok(())
    }

    /// P_STATE. spec: wire-protocol 9.4; state-machine 14.3
    pub(super) fn receive_state(&mut self, id: VolumeId, word: u32) -> Result<(), Fault> {
        let (received, _) = State::from_word(word).map_err(Fault::State)?;
        self.check_exposed_data(id)?;
        self.with_volume(id, |volume| {
            volume.peer.state_told = true;
            volume.peer.negotiates = received.disk == Disk::Negotiating;
            let is_worse = (Disk::Outdated..Disk::UpToDate).contains(&received.disk);
            volume.peer.says_worse = received.conn == Conn::Connected && is_worse;
            volume.resync.target_unheard &= received.conn == Conn::Connected;
            volume.peer_lacks_writes &= received.role == Role::Secondary;
            volume.resync.begin_unheard &= !matches!(received.conn, Conn::SyncTarget | Conn::PausedSyncT);
            if received.conn == Conn::Ahead {
                // It has pulled ahead before this node has begun, and will tell when it starts anew. Until then what it announces
                // only reaches the bitmap in core.
                volume.resync.start = ResyncStart::No;
                volume.resync.target_prepares = false;
            }
        });
        let takes_not_all = self.has_what_peer_does_not_take(id);
        // The own disk may fail during the decision: then it starts over, once.
        for _ in 0..2 {
            if self.attaches_old_data(id, received) {
                let _outcome = self.change(id, Change::disk(Disk::Failed), Kind::Hard);
            }
            let given_up = self.bits_given_up(id);
            let Some(volume) = self.volume(id) else { return Err(Fault::UnknownVolume) };
            let mut input = PeerStateInput {
                own: volume.state,
                received,
                uuids_known: volume.peer.uuids.is_some(),
                peer_negotiates_inconsistent: volume
                    .peer
                    .uuids
                    .is_some_and(|uuids| uuids.flags.contains(UuidFlags::INCONSISTENT)),
                consider_resync: volume.consider_resync,
                resync_complete: volume.weight() <= given_up,
                negotiated: volume.negotiated.map(|(own, _)| own),
                suspended: self.susp.any(),
                new_generation_due: volume.generation_due,
                takes_not_all,
                target_unheard: volume.resync.target_unheard,
                peer_lacks_writes: volume.peer_lacks_writes,
                unattested: volume.unattested,
                handshake: None,
            };
            let mut action = receive_state(&input);
            if let PeerStateAction::RunHandshake { peer_disk } = action {
                input.handshake = Some(self.decide_sync(id, received, peer_disk));
                action = receive_state(&input);
            }
            match action {
                PeerStateAction::FailOwnDisk => {
                    let _outcome = self.change(id, Change::disk(Disk::Failed), Kind::Hard);
                }
                other => {
                    if !matches!(other, PeerStateAction::Apply { .. } | PeerStateAction::Refuse(_)) {
                        // The end has to wait; that the peer pauses, or does not any more, or that it is not Primary any more, it does not tell
                        // again. (The C module forgets it.)
                        let paused = received.aftr_isp || received.user_isp;
                        let _outcome = self.change(id, Change::peer_isp(paused).peer(received.role), Kind::Hard);
                    }
                    self.carry_out_peer_state(id, other)?;
                    if received.conn == Conn::WFSyncUUID {
                        self.peer_waits_for_growth(id);
                    }
                    self.check_verify_untold(id, received);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// This Primary lost its disk during the handshake: the peer's data must be what the application has seen, as it must
    /// when the generations arrive without a disk here. spec: state-machine 14.2
    fn check_exposed_data(&mut self, id: VolumeId) -> Result<(), Fault> {
        let Some(volume) = self.volume(id) else { return Err(Fault::UnknownVolume) };
        let state = volume.state;
        let meets = state.role == Role::Primary && state.conn < Conn::Connected && state.disk < Disk::Inconsistent;
        let peer = volume.peer.uuids.and_then(|uuids| uuids.uuids.first().copied());
        let exposed = volume.exposed_uuid;
        match peer.filter(|peer| meets && (peer ^ exposed) & !1 != 0) {
            Some(peer) => {
                self.log(LogLine::PeerExposedDataDiffers { volume: id, peer, exposed });
                Err(Fault::DataRefused)
            }
            None => Ok(()),
        }
    }

    /// A disk is being negotiated, the peer's disk is lost meanwhile, and ours is not what the application has seen: it
    /// must not become UpToDate. As at attach. spec: state-machine 13.1 (9)
    fn attaches_old_data(&self, id: VolumeId, received: State) -> bool {
        self.volume(id).is_some_and(|volume| {
            let someone_primary = volume.state.role == Role::Primary || received.role == Role::Primary;
            let current = volume.disk.as_ref().map_or(0, |disk| disk.current());
            volume.state.disk == Disk::Negotiating
                && received.disk < Disk::Negotiating
                && someone_primary
                && volume.has_seen_other_data(current)
        })
    }

    fn carry_out_peer_state(&mut self, id: VolumeId, action: PeerStateAction) -> Result<(), Fault> {
        match action {
            PeerStateAction::FinishResync => self.finish_resync(id),
            // Some of our bits are cleared by barrier acknowledgements that have not come yet; the target will not tell
            // again that it is done.
            PeerStateAction::ResyncNotComplete => {
                self.with_volume(id, |volume| volume.resync.peer_done = true);
                self.want_barrier();
                self.check_resync_end(id);
            }
            PeerStateAction::ResyncFailed => {
                self.with_volume(id, |volume| volume.resync.peer_failed = true);
                self.finish_resync(id);
            }
            PeerStateAction::RunHandshake { .. } | PeerStateAction::FailOwnDisk => {}
            PeerStateAction::FinishVerify => self.peer_finished_verify(id),
            PeerStateAction::Refuse(PeerStateRefusal::GoingDown) => return Err(Fault::Closing),
            PeerStateAction::Refuse(PeerStateRefusal::PeerRebooted) => {
                // Of all volumes: none of them sends again what it has under way.
                self.fail_network_parts();
                for id in self.volume_ids() {
                    if self.volume(id).is_some_and(|volume| volume.generation_due) {
                        self.new_current_uuid(id);
                    }
                }
                self.thaw(Susp { user: false, ..self.susp });
                return Err(Fault::PeerRebooted);
            }
            PeerStateAction::Refuse(PeerStateRefusal::AheadTooEarly) => return Err(Fault::AheadTooEarly),
            PeerStateAction::Refuse(PeerStateRefusal::SameSide { source }) => return Err(Fault::SameSide { source }),
            PeerStateAction::Refuse(PeerStateRefusal::PeerDryRun) => return Err(Fault::DryRun),
            PeerStateAction::Refuse(PeerStateRefusal::Disconnect) => {
                // While the programs run the connection stands, so that the peer comes to a verdict of its own.
                self.link.refusal = self.link.told;
                if self.link.refusal.is_none() {
                    return Err(Fault::HandshakeRefused);
                }
            }
            PeerStateAction::Apply { new, soft, send_uuids_and_state } => {
                self.with_volume(id, |volume| volume.consider_resync = false);
                let kind = if soft { Kind::Soft } else { Kind::Hard };
                self.change(id, Change::to(new), kind).map_err(Fault::StateRefused)?;
                if send_uuids_and_state {
                    self.send_uuids(id);
                    if let Some(state) = self.volume(id).map(|volume| volume.state) {
                        self.send_state(id, state);
                    }
                }
                self.with_volume(id, |volume| volume.discard_my_data = false);
                self.update_meta_flags(id);
                self.sync_metadata(id);
            }
        }
        Ok(())
    }

    /// Who has the better data, and what follows. spec: wire-protocol 8.1
    fn decide_sync(&mut self, id: VolumeId, received: State, peer_disk: Disk) -> HandshakeResult {
        let peer_dry_run = self.link.peer_dry_run;
        let failed = HandshakeResult::Failed { peer_dry_run, both_refuse: false };
        self.link.told = None;
        let Some(mut input) = self.decide_input(id, received, peer_disk) else {
            return failed;
        };
        self.log(LogLine::Uuids {
            volume: id,
            own: words_of(input.own),
            own_bits: input.own_changes,
            peer: words_of(input.peer),
            peer_bits: input.peer_changes,
        });
        let mut decision = decide(&input);
        if decision.decision == SyncDecision::Demote {
            // What has to be told before is told once.
            self.carry_out_decision(id, &decision, received);
            let demoted = self.change(id, Change::role(Role::Secondary), Kind::Soft).is_ok();
            input.demotion = if demoted { Demotion::Done } else { Demotion::Failed };
            decision = decide(&input);
        }
        self.log(LogLine::Decision {
            volume: id,
            comparison: decision.comparison,
            decision: decision.decision,
            by: decision.by,
        });
        if decision.violent && matches!(decision.decision, SyncDecision::SyncTarget { .. }) {
            self.log(LogLine::PrimaryGivesUpData { volume: id });
        }
        self.carry_out_decision(id, &decision, received);
        match HandshakeResult::of(decision.decision, peer_dry_run) {
            // The peer knows nothing of the attempt to step down.
            Some(HandshakeResult::Failed { .. }) if input.demotion != Demotion::NotTried => failed,
            result => result.unwrap_or(failed),
        }
    }

    /// The clock. A C module that does not take the disk that is being attached here says nothing. But it comes to that verdict by what it
    /// has told before, if that is a split brain or unrelated data: so does this node, and lets the disk go. Any other verdict is the
    /// peer's to tell.
    pub(super) fn check_verdict_comes(&mut self, id: VolumeId) {
        let now_ms = self.now_ms;
        let Some(volume) = self.volume_mut(id) else { return };
        let own = volume.state;
        let waits = own.conn == Conn::Connected && own.disk == Disk::Negotiating && volume.peer.uuids.is_none();
        let Some((told, _)) = volume.unjudged.filter(|(_, due_ms)| waits && now_ms >= *due_ms) else { return };
        volume.unjudged = None;
        volume.peer.uuids = Some(told);
        let peer = State { role: own.peer, peer: own.role, disk: own.pdsk, pdsk: own.disk, ..own };
        let verdict = self.decide_input(id, peer, own.pdsk).map(|input| decide(&input).decision);
        if let Some(SyncDecision::Refuse(RefuseReason::Unrelated | RefuseReason::SplitBrain)) = verdict {
            // Once more, with what is told of it.
            let _refused = self.decide_sync(id, peer, own.pdsk);
            let _outcome = self.change(id, Change::disk(Disk::Failed), Kind::Hard);
        } else {
            self.with_volume(id, |volume| volume.peer.uuids = None);
        }
    }

    fn decide_input(&self, id: VolumeId, received: State, peer_disk: Disk) -> Option<DecideInput> {
        let volume = self.volume(id)?;
        let disk = volume.disk.as_ref()?;
        let peer = volume.peer.uuids?;
        let net = &self.link.net;
        let policy = |value: u32| SbPolicy::from_u32(value).unwrap_or(SbPolicy::Disconnect);
        Some(DecideInput {
            own: set_of(disk.uuids()),
            peer: set_of(peer.uuids),
            context: CompareContext {
                apv: self.link.apv,
                features: self.link.features,
                own_crashed: disk.crashed_primary,
                peer_crashed: peer.flags.contains(UuidFlags::CRASHED_PRIMARY),
                own_primary: volume.state.role == Role::Primary,
                peer_primary: received.role == Role::Primary,
                resolve_conflicts: self.link.resolve_conflicts,
            },
            own_disk: volume.negotiated.map_or(volume.state.disk, |(own, _)| own),
            current_disk: volume.state.disk,
            peer_disk,
            own_changes: volume.told_bits,
            peer_changes: peer.dirty_bits,
            policies: SbPolicies {
                zero: policy(net.after_sb_0p.as_u32()),
                one: policy(net.after_sb_1p.as_u32()),
                two: policy(net.after_sb_2p.as_u32()),
            },
            always_asbp: net.always_asbp,
            own_discards: volume.discard_my_data,
            peer_discards: peer.flags.contains(UuidFlags::DISCARD_MY_DATA),
            rr_conflict: policy(net.rr_conflict.as_u32()),
            dry_run: net.tentative || self.link.peer_dry_run,
            demotion: Demotion::NotTried,
        })
    }

    fn carry_out_decision(&mut self, id: VolumeId, decision: &Decision, received: State) {
        match decision.comparison.fixup {
            // A peer that has just attached its disk gets our generations only now, and has to come to the same
            // conclusion by them: they are corrected when the resync starts.
            Some(fixup @ (Fixup::OwnFinish | Fixup::OwnUndoStart)) if received.disk == Disk::Negotiating => {
                self.with_volume(id, |volume| volume.late_fixup = Some(fixup));
            }
            Some(fixup) => self.correct_generations(id, fixup),
            None => {}
        }
        for thing in decision.things.iter() {
            match thing {
                Thing::CallHelper(helper) => {
                    let helper = match helper {
                        crate::handshake::Helper::InitialSplitBrain => Helper::InitialSplitBrain,
                        crate::handshake::Helper::SplitBrain => Helper::SplitBrain,
                        crate::handshake::Helper::PriLost => Helper::PriLost,
                        crate::handshake::Helper::PriLostAfterSb => Helper::PriLostAfterSb,
                    };
                    self.link.told = Some(self.call_helper(helper, Some(id)));
                }
                // The bitmap is sent when all its bits are set and written; see `may_go`.
                Thing::SetAllBits => {
                    self.queue_job(id, super::metadata_pipeline::Job::SetAll(super::metadata_pipeline::Then::Nothing));
                }
            }
        }
    }

    /// spec: metadata 6.2 (20..22)
    pub(super) fn correct_generations(&mut self, id: VolumeId, fixup: Fixup) {
        self.with_volume(id, |volume| {
            let (Some(disk), Some(peer)) = (volume.disk.as_mut(), volume.peer.uuids.as_mut()) else { return };
            let (mut own_set, mut peer_set) = (set_of(disk.uuids()), set_of(peer.uuids));
            fixup.apply(&mut own_set, &mut peer_set);
            if words_of(own_set) != disk.uuids() {
                disk.set_uuids(words_of(own_set));
            }
            peer.uuids = words_of(peer_set);
        });
    }
}

impl<S: Storage> Volume<S> {
    /// The rate controller of a running resync follows changed options.
    pub(super) fn configure_resync(&mut self) {
        let config = self.rate_config();
        if let Some(controller) = self.resync.controller.as_mut() {
            controller.configure(config);
        }
    }
}
