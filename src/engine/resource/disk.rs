// SPDX-License-Identifier: GPL-2.0
//! Attaching and detaching the backing device, and the size of the volume.
//!
//! The owner has opened the devices and read the superblock; here it is checked, the tables are made, the bitmap is
//! loaded (or set, after a crash that requires it), and the disk gets the state it deserves. A disk is let go when no
//! request is on it, after its bitmap was written, if that is still possible.
//! spec: state-machine 13; metadata 2, 5, 7

use super::admin::{AdminInfo, AdminResult, Backing};
use super::api::VolumeId;
use super::change::{policy, Kind};
use super::meeting::set_of;
use super::metadata_pipeline::{Job, Pipeline, Rewrite, Then};
use super::volume::{AttachedDisk, Counters, DiskError, Release};
use super::work::{DeviceWork, LogLine};
use super::{DeviceSizes, Engine, Sabotage};
use crate::activity_log::ActivityLog;
use crate::bitmap::Bitmap;
use crate::handshake::generation_begun_without;
use crate::metadata::layout::{
    agreed_size, check_attach_shrink, check_attach_sizes, clamp_al_extents, missing_meta_sectors, AttachSizes,
    AttachedSize, Layout, SizeInputs,
};
use crate::metadata::superblock::{MetaFlags, Superblock};
use crate::netlink::{DiskConf, Fencing, RetCode, WireProtocol};
use crate::state::{initial_disks, And, Change, Conn, Disk, Role, State, StateError};
use crate::storage::Storage;
use crate::wire::QueueLimits;

/// What an attach needs, found out before anything is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachPlan {
    /// Slots of the activity log.
    pub extents: u32,
    /// Size of the bitmap, as that of the device, in sectors.
    pub size_sectors: u64,
}

/// The tables of an attached disk. Made without holding a lock; making them may sleep.
pub struct AttachTables<S: Storage> {
    plan: AttachPlan,
    log: ActivityLog<S>,
    bitmap: Bitmap<S>,
}

impl<S: Storage> AttachTables<S> {
    /// Makes the tables.
    ///
    /// # Errors
    /// 122 or 140 when there is no memory.
    pub fn new(plan: AttachPlan) -> Result<Self, RetCode> {
        Ok(AttachTables {
            plan,
            log: ActivityLog::new(plan.extents).map_err(|_| RetCode::Nomem)?,
            bitmap: Bitmap::new(plan.size_sectors).map_err(|_| RetCode::NomemBitmap)?,
        })
    }
}

/// Tables that are not used any more; drop them where sleeping is allowed.
pub struct ReleasedTables<S: Storage> {
    _log: ActivityLog<S>,
    _bitmap: Bitmap<S>,
}

impl<S: Storage> Engine<S> {
    /// Checks everything and begins to attach. On success `tables` are taken, the state is Attaching and the bitmap is
    /// being loaded; [`Engine::finish_attach`] does the rest. spec: state-machine 13.1
    pub(super) fn begin_attach(
        &mut self,
        id: VolumeId,
        conf: &DiskConf,
        backing: &Backing<'_>,
        tables: &mut Option<AttachTables<S>>,
    ) -> Result<(), AdminResult> {
        let (plan, superblock, layout) = self.examine(id, conf, backing)?;
        if !tables.as_ref().is_some_and(|tables| tables.plan == plan) {
            // The peer's size became known meanwhile: the owner makes other tables and tries again.
            return Err(StateError::InTransientState.code().into());
        }
        self.change(id, Change::disk(Disk::Attaching), Kind::Soft).map_err(|error| error.code())?;
        let Some(tables) = tables.take() else { return Err(StateError::InTransientState.code().into()) };
        self.install(id, conf, backing, superblock, layout, tables);
        Ok(())
    }

    /// What an attach would need; nothing is changed. Make [`AttachTables`] from it without holding the lock.
    ///
    /// # Errors
    /// The reply. -18: the nodes are meeting, and what is not wrong in any case cannot be told yet.
    pub fn plan_attach(&self, id: VolumeId, conf: &DiskConf, backing: &Backing<'_>) -> Result<AttachPlan, AdminResult> {
        self.examine(id, conf, backing).map(|(plan, _, _)| plan)
    }

    /// Every check of an attach. What the peer has to do with is looked at when the handshake is over.
    /// spec: state-machine 13.1; metadata 2.3, 7.3
    fn examine(
        &self,
        id: VolumeId,
        conf: &DiskConf,
        backing: &Backing<'_>,
    ) -> Result<(AttachPlan, Superblock, Layout), AdminResult> {
        let volume = self.volume(id).ok_or(RetCode::MinorInvalid.number())?;
        if volume.state.disk != Disk::Diskless || volume.disk.is_some() {
            return Err(RetCode::DiskConfigured.number().into());
        }
        if conf.fencing == Fencing::ResourceAndStonith
            && self.link.configured
            && self.link.net.wire_protocol == WireProtocol::A
        {
            return Err(RetCode::StonithAndProtA.number().into());
        }
        let superblock = Superblock::decode(backing.superblock).map_err(|error| error.error_code())?;
        // Where things are is what the superblock says, not what it would say if it were made today.
        let layout = Layout::validate(&superblock, backing.index, backing.backing_sectors, backing.meta_sectors)
            .map_err(|error| error.error_code())?;
        check_attach_sizes(&AttachSizes {
            usable_sectors: layout.usable_sectors,
            user_sectors: conf.disk_size,
            missing_meta_sectors: missing_meta_sectors(backing.index, backing.meta_sectors),
            virtual_sectors: volume.size_sectors,
        })
        .map_err(|error| error.error_code())?;
        if self.link.state_sent {
            return Err(StateError::InTransientState.code().into());
        }
        let plan = self.judge(volume, conf, &superblock, &layout)?;
        Ok((plan, superblock, layout))
    }

    /// The checks that depend on the peer, in their order. spec: state-machine 13.1 (7, 8); metadata 7.3
    fn judge(
        &self,
        volume: &super::Volume<S>,
        conf: &DiskConf,
        superblock: &Superblock,
        layout: &Layout,
    ) -> Result<AttachPlan, AdminResult> {
        let someone_primary = volume.state.role == Role::Primary || volume.state.peer == Role::Primary;
        let current = superblock.uuids.first().copied().unwrap_or(0);
        let other_data = volume.has_seen_other_data(current);
        if volume.state.pdsk != Disk::UpToDate && someone_primary && other_data {
            return Err(RetCode::DataNotCurrent.number().into());
        }
        let last_agreed_sectors = superblock.la_size_sectors;
        let size_sectors = agreed_size(&SizeInputs {
            own_sectors: layout.usable_sectors,
            peer_sectors: volume.peer.disk_sectors,
            last_agreed_sectors,
            user_sectors: conf.disk_size,
            assume_peer_has_space: false,
            is_connected: volume.state.conn >= Conn::Connected,
        })
        .size_sectors;
        check_attach_shrink(&AttachedSize {
            agreed_sectors: size_sectors,
            last_agreed_sectors,
            user_sectors: conf.disk_size,
            is_consistent: superblock.flags.contains(MetaFlags::CONSISTENT),
        })
        .map_err(|error| AdminResult {
            code: error.error_code(),
            info: AdminInfo::WouldShrink { from_sectors: last_agreed_sectors, sectors: size_sectors },
        })?;
        // The size may grow up to that at any time.
        if layout.usable_sectors.div_ceil(8) > layout.bitmap_bits() {
            return Err(RetCode::NomemBitmap.number().into());
        }
        let extents = clamp_al_extents(conf.al_extents, layout.striping.blocks());
        Ok(AttachPlan { extents, size_sectors })
    }

    fn install(
        &mut self,
        id: VolumeId,
        conf: &DiskConf,
        backing: &Backing<'_>,
        superblock: Superblock,
        layout: Layout,
        tables: AttachTables<S>,
    ) {
        let AttachTables { plan: AttachPlan { size_sectors, .. }, log, bitmap } = tables;
        let now_ms = self.now_ms;
        let frozen_primary = self.susp.no_data && self.is_primary(id);
        let Some(volume) = self.volume_mut(id) else { return };
        let flags = superblock.flags;
        let grew_from = Some(superblock.la_size_sectors).filter(|&last| last != 0 && last < size_sectors);
        let crashed_primary =
            flags.contains(MetaFlags::CRASHED_PRIMARY) || (flags.contains(MetaFlags::PRIMARY_IND) && !frozen_primary);
        volume.degraded_wait = volume.state.role != Role::Primary
            && flags.contains(MetaFlags::PRIMARY_IND)
            && !flags.contains(MetaFlags::CONNECTED_IND);
        if volume.state.conn < Conn::Connected {
            // A device that is used before the peer is there must not change its limits when it comes. spec: metadata 2
            volume.peer.max_bio_bytes = superblock.la_peer_max_bio_bytes;
        }
        volume.conf = *conf;
        volume.devices = DeviceSizes { backing_sectors: backing.backing_sectors, meta_sectors: backing.meta_sectors };
        volume.io_error = None;
        volume.counters = Counters::default();
        volume.force_detach = false;
        volume.failure_seen = false;
        volume.attached_ms = now_ms;
        volume.holds += 1;
        let full = superblock.la_size_sectors == 0
            || flags.contains(MetaFlags::FULL_SYNC)
            || (crashed_primary && flags.contains(MetaFlags::AL_DISABLED));
        let mut disk = AttachedDisk {
            superblock,
            layout,
            limits: backing.limits,
            bitmap,
            log,
            pipeline: Pipeline::new(volume.superblock_version, flags.contains(MetaFlags::PRIMARY_IND)),
            crashed_primary,
            log_suspended: false,
            resync_after_negotiation: grew_from.is_some(),
            grew_from_sectors: grew_from,
            in_use: false,
            release: Release::No,
        };
        disk.superblock.al_nr_extents = disk.log.extents();
        disk.assign_flag(MetaFlags::AL_DISABLED, !conf.al_updates);
        if grew_from.is_some() {
            disk.assign_flag(MetaFlags::FULL_SYNC, true);
        }
        let from_sectors = disk.superblock.la_size_sectors;
        let shrinks = flags.contains(MetaFlags::CONSISTENT) && size_sectors < from_sectors;
        volume.disk = Some(disk);
        volume.adapt_al_extents();
        volume.adapt_discard_granularity();
        self.log_ignored_size(id, conf.disk_size, size_sectors);
        if shrinks {
            self.log(LogLine::Shrinks { volume: id, from_sectors, sectors: size_sectors });
        }
        self.set_size(id, size_sectors);
        self.queue_job(id, if full { Job::SetAll(Then::Attached) } else { Job::Load });
    }

    /// The bitmap is there: the disk gets its state. spec: state-machine 13.1 (12..14), 13.2
    fn finish_attach(&mut self, id: VolumeId) {
        let Some(volume) = self.volume(id) else { return };
        let State { conn, role, pdsk, .. } = volume.state;
        let fencing = policy(volume.conf.fencing);
        let is_old = volume.disk.as_ref().is_some_and(|disk| volume.has_seen_other_data(disk.current()));
        let other_size = !volume.covers(volume.size_sectors);
        self.with_disk(id, |disk| {
            let Some(from) = disk.grew_from_sectors.take() else { return };
            let bits = disk.bitmap.bits();
            disk.bitmap.set_bits(from / 8, bits.saturating_sub(1));
            // Until they are written the superblock asks for a full sync.
            let rewrite = Rewrite { moved: false, full_sync: false, then: Then::Nothing };
            let _fits = disk.pipeline.queue(Job::Rewrite(rewrite));
        });
        if self.link.state_sent || other_size {
            // The nodes have begun to meet while the bitmap was loaded, or another size became known: the owner tries again.
            // (The C module refuses the attach.)
            self.abort_attach(id, StateError::InTransientState.code());
            return;
        }
        if role == Role::Primary && conn < Conn::Connected && is_old {
            // Begun with the peer's good data in reach; now this disk would be the only one, and it is older than what
            // the application has seen.
            self.abort_attach(id, RetCode::DataNotCurrent.number());
            return;
        }
        self.suspend_useless_log(id);
        // Of a connected peer only what is negotiated counts.
        let known = if conn < Conn::Connected && pdsk == Disk::Outdated { pdsk } else { Disk::Unknown };
        let judged_ms = self.now_ms.saturating_add(u64::from(self.link.net.timeout) * 100);
        let Some(volume) = self.volume_mut(id) else { return };
        let Some(disk) = volume.disk.as_mut() else { return };
        let (own, pdsk) = initial_disks(disk.superblock.flags.0, known, fencing);
        let current = disk.current();
        disk.set_current(current, role == Role::Primary);
        // The superblock on the disk is marked as in use from now on.
        disk.pipeline.touch();
        let outcome = if conn == Conn::Connected {
            volume.negotiated = Some((own, pdsk));
            let told = volume.peer.uuids.take();
            volume.unjudged = told.map(|told| (told, judged_ms));
            if volume.peer_lacks_writes && role == Role::Primary {
                let own = set_of(disk.uuids());
                if let Some(theirs) = told.and_then(|peer| generation_begun_without(&own, &set_of(peer.uuids))) {
                    disk.rotate_bitmap_uuid(theirs);
                }
            }
            let may_lack = (Disk::Outdated..Disk::UpToDate).contains(&volume.state.pdsk);
            if role == Role::Primary && own >= Disk::Consistent && may_lack && !is_old && !volume.records_changes() {
                // It was Ahead when it lost its disk, and so could not record what the peer lacks. Of the same generation they would
                // count as equal. (In the C module they do.)
                self.new_current_uuid(id);
            }
            self.change(id, Change::disk(Disk::Negotiating), Kind::Soft)
        } else {
            let change = Change::disk(own);
            self.change(id, if pdsk == Disk::Outdated { change.pdsk(pdsk) } else { change }, Kind::Soft)
        };
        if let Err(error) = outcome {
            self.abort_attach(id, error.code());
            return;
        }
        self.with_disk(id, |disk| disk.in_use = true);
        if !self.sabotaged(Sabotage::KeepHold) {
            self.with_volume(id, |volume| volume.holds = volume.holds.saturating_sub(1));
        }
        self.update_meta_flags(id);
        self.record_loss_of_peer(id);
        self.sync_metadata(id);
        self.order(DeviceWork::Limits { volume: id });
        self.order(DeviceWork::Uevent { volume: id });
        self.reopen_gate();
        self.admin_attached(id, RetCode::NoError.number());
    }

    /// Contact to the peer, or the peer's disk, was lost while this Primary had no disk to record that on: it does so when it has
    /// one again, before anything that was frozen meanwhile is acknowledged.
    pub(super) fn record_loss_of_peer(&mut self, id: VolumeId) {
        let writes_alone = self.volume(id).is_some_and(|volume| {
            let state = volume.state;
            let unrecorded = volume.disk.is_some() && !volume.records_changes();
            let alone = state.conn < Conn::Connected || state.pdsk < Disk::Inconsistent;
            state.role == Role::Primary && alone && state.disk == Disk::UpToDate && unrecorded
        });
        if writes_alone {
            self.new_current_uuid(id);
            if self.link.conn >= Conn::WFReportParams {
                self.send_uuids(id);
            }
        }
    }

    /// With every bit set and nobody connected there is nothing that the activity log could add. spec: metadata 5.6
    fn suspend_useless_log(&mut self, id: VolumeId) {
        let alone = self.volume(id).is_some_and(|volume| volume.state.conn < Conn::Connected);
        self.with_disk(id, |disk| {
            disk.log_suspended = alone && disk.bitmap.bits() > 0 && disk.bitmap.weight() == disk.bitmap.bits();
        });
    }

    /// The disk is let go again.
    fn abort_attach(&mut self, id: VolumeId, code: i32) {
        self.with_volume(id, |volume| volume.holds = volume.holds.saturating_sub(1));
        self.admin_attached(id, code);
        let _outcome = self.change(id, Change::disk(Disk::Failed), Kind::Hard);
        self.check_disk_idle(id);
    }

    /// A job on the bitmap is done.
    pub(super) fn bitmap_job_done(&mut self, id: VolumeId, job: Job) {
        let then = match job {
            Job::Write(then) | Job::SetAll(then) | Job::ClearAll(then) => then,
            Job::Rewrite(rewrite) => rewrite.then,
            Job::Load => Then::Attached,
            Job::Hold => Then::Nothing,
        };
        let conn = self.volume_state(id).map(|state| state.conn);
        match then {
            Then::Nothing => {}
            Then::Flush => self.with_disk(id, |disk| disk.pipeline.touch()),
            Then::Attached => self.finish_attach(id),
            // Not if a disk or the connection was lost while the bits were being set.
            Then::StartSource if conn == Some(Conn::StartingSyncS) => self.prepare_resync(id, Conn::SyncSource),
            Then::StartTarget if conn == Some(Conn::StartingSyncT) => {
                let _outcome = self.change(id, Change::conn(Conn::WFSyncUUID), Kind::Hard);
            }
            Then::StartSource | Then::StartTarget => {}
            Then::SyncTarget => self.target_prepared(id),
            Then::Detached => self.let_go(id),
            Then::Admin => {
                self.suspend_useless_log(id);
                self.admin_job_done(id, true);
            }
            Then::Skipped => {
                self.initial_sync_skipped(id);
                self.admin_job_done(id, true);
            }
            Then::Resized => self.resized(id),
        }
        // A bitmap may have waited to be sent until all its bits were set.
        self.wakes.insert(super::Wakes::DATA_SENDER);
    }

    /// The disk has failed and the last that is done with it is under way.
    pub(super) fn is_leaving(&self, id: VolumeId) -> bool {
        let disk = self.volume(id).and_then(|volume| volume.disk.as_ref());
        disk.is_some_and(|disk| disk.release == Release::Writing)
    }

    /// A meta-data operation failed; the disk has been failed already. `leaving`: it was being let go before.
    pub(super) fn metadata_failed(&mut self, id: VolumeId, leaving: bool) {
        let Some(state) = self.volume_state(id) else { return };
        match leaving {
            true if self.demand_full_sync(id) => self.queue_job(id, Job::Write(Then::Detached)),
            true => self.let_go(id),
            false if state.disk == Disk::Attaching => self.abort_attach(id, RetCode::IoMdDisk.number()),
            false => {
                self.admin_job_done(id, false);
                self.resize_failed(id);
                self.check_disk_idle(id);
            }
        }
    }

    /// The bitmap of a disk that is let go cannot be written, and with it goes what could not be read: the superblock may
    /// still tell. False: there is nothing to tell, or it has been tried. spec: state-machine 13.4
    fn demand_full_sync(&mut self, id: VolumeId) -> bool {
        let Some(volume) = self.volume_mut(id) else { return false };
        let unread = volume.io_error == Some(DiskError::Read);
        let tried = |disk: &&mut AttachedDisk<S>| disk.superblock.flags.contains(MetaFlags::FULL_SYNC);
        match volume.disk.as_mut().filter(|disk| unread && !tried(disk)) {
            Some(disk) => {
                disk.assign_flag(MetaFlags::FULL_SYNC, true);
                true
            }
            None => false,
        }
    }

    /// A failed disk without requests is let go, after its bitmap was written; so is one that became Diskless at once,
    /// because the connection was lost while it was negotiated. spec: state-machine 4 (4), 13.4
    pub(super) fn check_disk_idle(&mut self, id: VolumeId) {
        let Some(volume) = self.volume_mut(id) else { return };
        if !matches!(volume.state.disk, Disk::Failed | Disk::Diskless) || volume.lower_pending > 0 {
            return;
        }
        let Some(disk) = volume.disk.as_mut().filter(|disk| disk.release == Release::No) else { return };
        disk.release = Release::Writing;
        // Writes waiting for the activity log do not need it any more.
        self.want_activity_retry(id);
        self.queue_job(id, Job::Write(Then::Detached));
    }

    fn let_go(&mut self, id: VolumeId) {
        self.with_disk(id, |disk| disk.release = Release::Releasing);
        self.activate_without_log(id);
        let _outcome = self.change(id, Change::disk(Disk::Diskless), Kind::Hard);
        self.order(DeviceWork::ReleaseBacking { volume: id });
    }

    /// The owner has closed the backing device. Returns the tables, to be freed when the lock is not held.
    pub fn backing_released(&mut self, id: VolumeId, now_ms: u64) -> Option<ReleasedTables<S>> {
        self.now_ms = now_ms;
        let volume = self.volume_mut(id)?;
        if volume.state.disk != Disk::Diskless {
            return None;
        }
        let disk = volume.disk.take()?;
        volume.superblock_version = disk.pipeline.version();
        volume.negotiated = None;
        volume.generation_version = None;
        volume.loss_version = None;
        self.forget_unwritten_resync(id, |version| disk.pipeline.is_durable(version));
        // Jobs that were still queued went with the disk.
        self.admin_job_done(id, false);
        self.resize_failed(id);
        self.forget_activity(id);
        self.settle_all();
        self.admin_step();
        Some(ReleasedTables { _log: disk.log, _bitmap: disk.bitmap })
    }

    /// The size of the virtual device.
    pub(super) fn set_size(&mut self, id: VolumeId, size_sectors: u64) {
        let Some(volume) = self.volume_mut(id) else { return };
        if volume.size_sectors != size_sectors {
            volume.size_sectors = size_sectors;
            if let Some(disk) = volume.disk.as_mut() {
                disk.pipeline.touch();
            }
            self.order(DeviceWork::Capacity { volume: id, sectors: size_sectors });
        }
    }

    /// Both nodes have just been created and their disks are declared equal. spec: metadata 6.2 (19)
    fn initial_sync_skipped(&mut self, id: VolumeId) {
        let _outcome = self.change(id, Change::disk(Disk::UpToDate).pdsk(Disk::UpToDate), Kind::Hard);
        self.with_volume(id, |volume| {
            // What the peer said before is out of date: the end of a later resync goes by it.
            if let (Some(peer), Some(disk)) = (volume.peer.uuids.as_mut(), volume.disk.as_ref()) {
                peer.uuids = disk.uuids();
            }
        });
        // A state packet from before may still be on its way to the peer, who would believe it.
        if let Some(state) = self.volume(id).map(|volume| volume.state) {
            self.send_state(id, state);
        }
        self.sync_metadata(id);
    }
}

impl<S: Storage> super::Volume<S> {
    /// Brings al-extents to what the activity log on the disk has room for, which is what `show` tells. spec: metadata 3.6; netlink 6
    /// CHG_DISK_OPTS
    pub(super) fn adapt_al_extents(&mut self) {
        let Some(blocks) = self.disk.as_ref().map(|disk| disk.layout.striping.blocks()) else { return };
        self.conf.al_extents = clamp_al_extents(self.conf.al_extents, blocks);
    }

    /// Makes rs-discard-granularity fit the disk: rounded up, at most what it discards at once. spec: state-machine 21.1
    pub(super) fn adapt_discard_granularity(&mut self) {
        let Some(limits) = self.disk.as_ref().map(|disk| disk.limits) else { return };
        let wanted = self.conf.rs_discard_granularity;
        if wanted == 0 || limits.max_discard_bytes == 0 {
            self.conf.rs_discard_granularity = 0;
            return;
        }
        let granularity = limits.discard_granularity_bytes.max(1);
        let fitting = wanted.checked_next_multiple_of(granularity).unwrap_or(u32::MAX);
        self.conf.rs_discard_granularity = fitting.min(limits.max_discard_bytes);
    }

    /// Queue limits as P_SIZES carries them. spec: wire-protocol 4.6
    pub(super) fn queue_limits(&self) -> QueueLimits {
        let limits = self.disk.as_ref().map(|disk| disk.limits);
        QueueLimits {
            physical_block_size: limits.map_or(4096, |limits| limits.physical_block_bytes),
            logical_block_size: limits.map_or(512, |limits| limits.logical_block_bytes),
            alignment_offset: limits.map_or(0, |limits| limits.alignment_offset_bytes),
            io_min: limits.map_or(4096, |limits| limits.io_min_bytes),
            io_opt: limits.map_or(0, |limits| limits.io_opt_bytes),
            discard_enabled: u8::from(limits.is_some_and(|limits| limits.max_discard_bytes > 0)),
            discard_zeroes_data: 0,
            write_same_capable: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::TableLimits;
    use super::*;
    use crate::metadata::layout::{MetaIndex, Striping};
    use crate::metadata::superblock::Magic;
    use crate::storage::HeapStorage;

    const DISK_SECTORS: u64 = 1 << 20;

    fn superblock(index: MetaIndex, meta_sectors: u64) -> Superblock {
        let layout = Layout::compute(index, DISK_SECTORS, meta_sectors, Striping::DEFAULT).expect("a layout");
        Superblock::new_created(&layout, 0, Striping::DEFAULT)
    }

    fn attached(index: MetaIndex, meta_sectors: u64, superblock: &Superblock) -> Result<AttachPlan, AdminResult> {
        let mut engine = Engine::<HeapStorage>::new(&Default::default(), TableLimits::default()).expect("memory");
        let volume = engine.add_volume(0, 0, 0).expect("a volume");
        let mut block = [0; 4096];
        superblock.encode(Magic::Clean, &mut block);
        let limits = Default::default();
        let backing = Backing { superblock: &block, index, backing_sectors: DISK_SECTORS, meta_sectors, limits };
        engine.plan_attach(volume, &DiskConf::default(), &backing)
    }

    #[test]
    fn a_superblock_is_judged_before_the_size_of_its_device() {
        let good = superblock(MetaIndex::FlexibleExternal, 1024);
        assert_eq!(attached(MetaIndex::FlexibleExternal, 1024, &good), Err(AdminResult::from(112)));
        let bad = Superblock { bm_bytes_per_bit: 512, ..good };
        assert_eq!(attached(MetaIndex::FlexibleExternal, 1024, &bad), Err(AdminResult::from(119)));
    }

    #[test]
    fn the_areas_are_where_the_superblock_says() {
        // The meta-data device has grown since.
        let old = superblock(MetaIndex::FlexibleExternal, 2056);
        let plan = attached(MetaIndex::FlexibleExternal, 4096, &old).expect("fits");
        assert_eq!(plan.size_sectors, DISK_SECTORS);
        // A bitmap for half of the disk.
        let mut small = superblock(MetaIndex::Internal, DISK_SECTORS);
        small.bm_offset += 16;
        small.md_size_sectors -= 16;
        assert_eq!(attached(MetaIndex::Internal, DISK_SECTORS, &small), Err(AdminResult::from(140)));
    }

    /// The administrator hears by how much.
    #[test]
    fn a_disk_that_is_smaller_than_the_device_was_is_refused_with_both_sizes() {
        let mut used = superblock(MetaIndex::FlexibleExternal, 2056);
        used.la_size_sectors = DISK_SECTORS + 4096;
        used.flags.set(MetaFlags::CONSISTENT);
        let refused = attached(MetaIndex::FlexibleExternal, 2056, &used).expect_err("it would shrink");
        assert_eq!(refused.code, 170);
        let text = std::format!("{}", refused.info);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("1052672 sectors") && text.contains("1048576 now"), "{text}");
        // Nothing of it is worth anything: it may.
        used.flags.clear(MetaFlags::CONSISTENT);
        assert!(attached(MetaIndex::FlexibleExternal, 2056, &used).is_ok());
    }
}
