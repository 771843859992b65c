// SPDX-License-Identifier: GPL-2.0
//! What an administrator does with one disk: detach, invalidate, pause and resume its resync, new generation, options.
//! spec: state-machine 22; metadata 6.2

use super::{Op, Target, OK};
use crate::netlink::{DiskConf, RetCode};
use crate::resource::api::VolumeId;
use crate::resource::change::Kind;
use crate::resource::metadata_pipeline::{Job, Rewrite, Then};
use crate::resource::outgoing::Control;
use crate::resource::volume::DiskError;
use crate::resource::Engine;
use crate::state::{Change, Conn, Disk, Outcome, Role, StateError};
use crate::storage::Storage;

impl<S: Storage> Engine<S> {
    /// The attach has ended, one way or the other.
    pub(in crate::resource) fn admin_attached(&mut self, id: VolumeId, code: i32) {
        if matches!(self.admin.op, Some(Op::Attach { volume, .. }) if volume == id) {
            self.answer(code);
        }
    }

    /// A bitmap job of a command is done.
    pub(in crate::resource) fn admin_job_done(&mut self, id: VolumeId, ok: bool) {
        let Some(Op::Job { volume, success }) = self.admin.op else { return };
        if volume == id {
            self.with_volume(id, |volume| volume.holds = volume.holds.saturating_sub(1));
            self.reopen_gate();
            self.answer(if ok { success } else { RetCode::IoMdDisk.number() });
        }
    }

    pub(super) fn start_detach(&mut self, id: VolumeId, force: bool) {
        let Some(volume) = self.volume_mut(id) else {
            self.answer(RetCode::MinorInvalid.number());
            return;
        };
        if volume.disk.is_none() {
            self.answer(Outcome::NothingToDo.code());
            return;
        }
        if force {
            self.force_detach(id, DiskError::ForceDetach);
            self.answer(Outcome::Success.code());
            return;
        }
        volume.holds += 1;
        self.admin.op = Some(Op::Detach { volume: id, asked: false, result: 0 });
    }

    pub(super) fn run_detach(&mut self, id: VolumeId, asked: bool, result: i32) {
        let Some(volume) = self.volume(id) else {
            self.answer(RetCode::MinorInvalid.number());
            return;
        };
        if result != 0 {
            // Asked and granted: wait until the disk is gone.
            if volume.disk.is_none() {
                self.end_held(id, result);
            } else {
                self.check_disk_idle(id);
            }
            return;
        }
        if !asked {
            if volume.upper_pending == 0 || self.susp.any() {
                self.admin.op = Some(Op::Detach { volume: id, asked: true, result: 0 });
                self.begin_ask(Target::Volume(id), Change::disk(Disk::Failed));
            }
            return;
        }
        match self.run_ask() {
            None => {}
            Some(Ok(outcome)) => {
                self.peer_saw_failure(id);
                self.admin.op = Some(Op::Detach { volume: id, asked: true, result: outcome.code() });
                self.admin.poked = true;
            }
            Some(Err(StateError::IsDiskless)) => self.end_held(id, Outcome::NothingToDo.code()),
            Some(Err(error)) => self.end_held(id, error.code()),
        }
    }

    /// The command is done, and new requests of the application may begin again.
    pub(super) fn end_held(&mut self, id: VolumeId, code: i32) {
        self.with_volume(id, |volume| volume.holds = volume.holds.saturating_sub(1));
        self.answer(code);
        self.reopen_gate();
    }

    /// spec: state-machine 22 invalidate, invalidate-remote
    pub(super) fn start_invalidate(&mut self, id: VolumeId, conn: Conn) {
        let Some(volume) = self.volume_mut(id) else {
            self.answer(RetCode::MinorInvalid.number());
            return;
        };
        if volume.disk.is_none() {
            self.answer(RetCode::NoDisk.number());
            return;
        }
        let state = volume.state;
        let local = state.conn == Conn::StandAlone
            && ((conn == Conn::StartingSyncT && state.role == Role::Secondary)
                || (conn == Conn::StartingSyncS && state.role == Role::Primary));
        if !local && conn == Conn::StartingSyncS {
            self.ask(Target::Volume(id), Change::conn(conn), None);
            return;
        }
        volume.holds += 1;
        if !local {
            self.admin.op = Some(Op::Invalidate { volume: id, asked: false });
            return;
        }
        let change = if conn == Conn::StartingSyncT {
            Change::disk(Disk::Inconsistent)
        } else {
            Change::pdsk(Disk::Inconsistent)
        };
        if let Err(error) = self.change(id, change, Kind::Soft) {
            self.end_held(id, error.code());
            return;
        }
        self.admin.op = Some(Op::Job { volume: id, success: Outcome::Success.code() });
        self.queue_job(id, Job::SetAll(Then::Admin));
    }

    /// What this Primary has acknowledged because the peer has it may only be in the cache of the peer's disk, which is the only copy
    /// soon: nothing new begins until the data here is given up. (The C module asks at once.)
    pub(super) fn run_invalidate(&mut self, id: VolumeId, asked: bool) {
        if !asked {
            if self.is_safe_at_peer(id) {
                self.admin.op = Some(Op::Invalidate { volume: id, asked: true });
                self.begin_ask(Target::Volume(id), Change::conn(Conn::StartingSyncT));
            }
            return;
        }
        if let Some(result) = self.run_ask() {
            self.end_held(id, result.map_or_else(|error| error.code(), |outcome| outcome.code()));
        }
    }

    pub(super) fn start_pause(&mut self, id: VolumeId, on: bool) {
        self.admin.op = Some(Op::Pause { volume: id, on });
        self.begin_ask(Target::Volume(id), Change::user_isp(on));
    }

    /// spec: state-machine 17.7
    pub(super) fn run_pause(&mut self, id: VolumeId, on: bool) {
        let Some(result) = self.run_ask() else { return };
        let Some(state) = self.volume(id).map(|volume| volume.state) else {
            self.answer(RetCode::MinorInvalid.number());
            return;
        };
        let paused = matches!(state.conn, Conn::PausedSyncS | Conn::PausedSyncT);
        self.answer(match result {
            Ok(Outcome::NothingToDo) if on => RetCode::PauseIsSet.number(),
            Ok(Outcome::NothingToDo) if paused && state.aftr_isp => RetCode::PicAfterDep.number(),
            Ok(Outcome::NothingToDo) if paused && state.peer_isp => RetCode::PicPeerDep.number(),
            Ok(Outcome::NothingToDo) => RetCode::PauseIsClear.number(),
            _ => OK,
        });
    }

    /// spec: metadata 6.2 (18)
    pub(super) fn start_new_current_uuid(&mut self, id: VolumeId, clear_bitmap: bool) {
        let Some(volume) = self.volume(id) else {
            self.answer(RetCode::MinorInvalid.number());
            return;
        };
        let Some(disk) = volume.disk.as_ref() else {
            self.answer(RetCode::NoDisk.number());
            return;
        };
        let fresh = disk.current() & !1 == crate::metadata::superblock::UUID_JUST_CREATED;
        let skip = volume.state.conn == Conn::Connected && self.link.apv >= 90 && fresh && clear_bitmap;
        if volume.state.conn != Conn::StandAlone && !skip {
            self.answer(RetCode::Connected.number());
            return;
        }
        self.with_disk(id, |disk| disk.rotate_bitmap_uuid(0));
        self.new_current_uuid(id);
        if !clear_bitmap {
            self.answer(OK);
            return;
        }
        if skip {
            self.announce_skip_initial_sync(id);
            self.with_disk(id, |disk| disk.set_bitmap_uuid(0));
        }
        self.with_volume(id, |volume| volume.holds += 1);
        self.admin.op = Some(Op::Job { volume: id, success: OK });
        self.queue_job(id, Job::ClearAll(if skip { Then::Skipped } else { Then::Admin }));
        self.sync_metadata(id);
    }

    pub(super) fn set_disk_options(&mut self, id: VolumeId, conf: &DiskConf) {
        let up = self.link.is_running();
        let Some(volume) = self.volume_mut(id) else {
            self.answer(RetCode::MinorInvalid.number());
            return;
        };
        if volume.disk.is_none() {
            self.answer(RetCode::NoDisk.number());
            return;
        }
        volume.conf = *conf;
        volume.adapt_al_extents();
        volume.adapt_discard_granularity();
        volume.configure_resync();
        let connected = volume.state.conn >= Conn::Connected;
        self.use_activity_log(id, conf.al_updates);
        if up && connected {
            self.queue_control(Control::SyncParam(id));
        }
        self.sync_metadata(id);
        self.answer(OK);
    }

    /// The activity log is written from now on, or not. The extents that are active are not in the log on the disk while it is
    /// not written: before a crash may rely on it again everything is written anew.
    fn use_activity_log(&mut self, id: VolumeId, wanted: bool) {
        let flag = crate::metadata::superblock::MetaFlags::AL_DISABLED;
        let mut anew = false;
        self.with_disk(id, |disk| {
            anew = wanted && disk.superblock.flags.contains(flag);
            if !wanted {
                disk.assign_flag(flag, true);
            }
        });
        if anew {
            self.queue_job(id, Job::Rewrite(Rewrite { moved: true, full_sync: true, then: Then::Nothing }));
        }
    }
}
