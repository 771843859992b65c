// SPDX-License-Identifier: GPL-2.0
//! INVALIDATE, INVAL_PEER, PAUSE_SYNC, RESUME_SYNC, START_OV, NEW_C_UUID.

use super::{ask, unless_refused, Answer, Task};
use engine::netlink::{NewCUuidParms, ParseMode, RetCode, StartOvParms};
use engine::resource::{AdminRequest, VolumeId};

#[inline(never)]
pub(super) fn invalidate(task: &mut Task<'_>) -> Answer {
    on_volume(task, |volume| AdminRequest::Invalidate { volume })
}

#[inline(never)]
pub(super) fn inval_peer(task: &mut Task<'_>) -> Answer {
    on_volume(task, |volume| AdminRequest::InvalidateRemote { volume })
}

#[inline(never)]
pub(super) fn pause_sync(task: &mut Task<'_>) -> Answer {
    on_volume(task, |volume| AdminRequest::PauseSync { volume })
}

#[inline(never)]
pub(super) fn resume_sync(task: &mut Task<'_>) -> Answer {
    on_volume(task, |volume| AdminRequest::ResumeSync { volume })
}

// spec: netlink 6 START_OV
#[inline(never)]
pub(super) fn start_ov(task: &mut Task<'_>) -> Answer {
    let mut parms = StartOvParms::default();
    unless_refused!(task.parse(&mut parms, ParseMode::Create));
    let StartOvParms { ov_start_sector: start_sector, ov_stop_sector: stop_sector, .. } = parms;
    on_volume(task, |volume| AdminRequest::Verify { volume, start_sector, stop_sector })
}

#[inline(never)]
pub(super) fn new_current_uuid(task: &mut Task<'_>) -> Answer {
    let mut parms = NewCUuidParms::default();
    unless_refused!(task.parse(&mut parms, ParseMode::Create));
    let clear_bitmap = parms.clear_bm;
    on_volume(task, |volume| AdminRequest::NewCurrentUuid { volume, clear_bitmap })
}

/// Hands a request about the volume to the engine.
pub(super) fn on_volume(task: &mut Task<'_>, request: impl FnOnce(VolumeId) -> AdminRequest<'static>) -> Answer {
    let minor = task.minor()?;
    if minor.resource.config.lock().volume(minor.id).is_none() {
        // Deleted by a request that was let in before this one.
        return Ok(RetCode::MinorInvalid.number());
    }
    let _admin = minor.resource.admin.lock();
    let result = ask(&minor.resource, request(minor.id));
    task.answer(&result)
}
