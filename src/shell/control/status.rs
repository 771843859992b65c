// SPDX-License-Identifier: GPL-2.0
//! GET_STATUS of one volume, GET_TIMEOUT_TYPE.

use super::{Answer, Task, DONE};
use crate::linux::genl::Request;
use crate::shell::messages::{volume_status, Reason, ResourceSnapshot, VolumeSnapshot};
use engine::netlink::{Nest, Redact, RetCode, TimeoutParms, TimeoutType};

// spec: netlink 8.1
#[inline(never)]
pub(super) fn get_status(task: &mut Task<'_>) -> Answer {
    let minor = task.minor()?;
    let Some(volume) = VolumeSnapshot::take(&minor.resource, minor.id)? else {
        return Ok(task.refuse(RetCode::MinorInvalid, "unknown minor").0);
    };
    let now = ResourceSnapshot::take(&minor.resource)?;
    let redact = redaction(task.request);
    // The context of the request is in the reply already; readers take the last.
    task.reply.write(|w| volume_status(w, &minor.resource, &now, &volume, &Reason::Status, redact))?;
    DONE
}

/// Secrets are for the administrator's eyes only. spec: netlink 1.5
pub(super) fn redaction(request: &Request<'_>) -> Redact {
    if request.sys_admin {
        Redact::Nothing
    } else {
        Redact::Sensitive
    }
}

// spec: netlink 6 GET_TIMEOUT_TYPE
#[inline(never)]
pub(super) fn get_timeout_type(task: &mut Task<'_>) -> Answer {
    let minor = task.minor()?;
    let kind = minor.resource.look(|locked| locked.engine.volume_status(minor.id).map(|status| status.timeout_type));
    let Some(kind) = kind.and_then(TimeoutType::from_u32) else { return Ok(RetCode::MinorInvalid.number()) };
    task.reply.write(|w| TimeoutParms { timeout_type: kind }.emit(w, Redact::Nothing))?;
    DONE
}
