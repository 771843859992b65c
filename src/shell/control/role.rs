// SPDX-License-Identifier: GPL-2.0
//! PRIMARY, SECONDARY.

use super::{ask, unless_refused, Answer, Task};
use crate::linux::genl;
use engine::netlink::{ParseMode, SetRoleParms};
use engine::resource::AdminRequest;

// spec: netlink 6.1
#[inline(never)]
pub(super) fn primary(task: &mut Task<'_>) -> Answer {
    let mut parms = SetRoleParms::default();
    unless_refused!(task.parse(&mut parms, ParseMode::Create));
    let minor = task.minor()?;
    change_role(task, AdminRequest::Primary { volume: minor.id, force: parms.assume_uptodate })
}

// spec: netlink 6 SECONDARY
#[inline(never)]
pub(super) fn secondary(task: &mut Task<'_>) -> Answer {
    let minor = task.minor()?;
    change_role(task, AdminRequest::Secondary { volume: minor.id })
}

/// Others are let in meanwhile: the helper that fences the peer may use the tools.
// spec: netlink 1.4
fn change_role(task: &mut Task<'_>, request: AdminRequest<'_>) -> Answer {
    let resource = task.minor()?.resource;
    let result = genl::unlocked(task.request, || {
        let _admin = resource.admin.lock();
        ask(&resource, request)
    });
    task.answer(&result)
}
