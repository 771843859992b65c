// SPDX-License-Identifier: GPL-2.0
//! ATTACH, DETACH, CHG_DISK_OPTS, RESIZE, OUTDATE, SUSPEND_IO, RESUME_IO.

use super::sync::on_volume;
use super::{ask, is_success, unless_refused, wait_for_result, Answer, Task};
use crate::linux::genl;
use crate::shell::backing::Opened;
use crate::shell::disk_io::tell_device_sizes;
use crate::shell::resource::Resource;
use crate::shell::volume::Volume;
use crate::shell::{dependencies, Driver, Minor};
use engine::netlink::{DetachParms, DiskConf, Nest, ParseMode, ResizeParms, RetCode, StateResult};
use engine::resource::{AdminInfo, AdminRequest, AdminResult, VolumeId};
use kernel::prelude::*;
use kernel::sync::Arc;

// spec: netlink 6 ATTACH
#[inline(never)]
pub(super) fn attach(task: &mut Task<'_>) -> Answer {
    let minor = task.minor()?;
    let mut conf = KBox::new(DiskConf::default(), GFP_KERNEL)?;
    if unless_refused!(task.parse(&mut *conf, ParseMode::Create)).is_none() {
        return Ok(task.refuse(RetCode::MandatoryTag, "required attribute missing").0);
    }
    let after = adjust(&mut conf);
    let mut result = attach_once(task.driver, &minor, &conf, after)?;
    for _ in 1..ATTACH_TRIES {
        if result.code != StateResult::InTransientState.number() {
            break;
        }
        // Without the lock, and with others let in: the handshake may wait for a program that gives commands, and as long as the peer likes.
        let resource = &minor.resource;
        let met = || !resource.look(|locked| locked.engine.is_meeting());
        if genl::unlocked(task.request, || resource.changed.wait_until_signal(met)).is_err() {
            return Ok(RetCode::Intr.number());
        }
        result = attach_once(task.driver, &minor, &conf, after)?;
    }
    task.answer(&result)
}

/// Bound: how often an attach is begun. It has to begin anew when the nodes begin to meet, or another size becomes known,
/// between two of its steps.
const ATTACH_TRIES: u32 = 16;

#[inline(never)]
fn attach_once(driver: &Driver, minor: &Minor, conf: &DiskConf, after: i32) -> Result<AdminResult> {
    let _admin = minor.resource.admin.lock();
    minor.resource.pin_module()?;
    let result = match volume_of(&minor.resource, minor.id) {
        Some(volume) => try_to_attach(driver, &volume, conf, after),
        None => RetCode::MinorInvalid.number().into(),
    };
    minor.resource.unpin_unused_module();
    Ok(result)
}

/// The result is -18 if the nodes are just meeting. The caller holds `resource.admin`.
#[inline(never)]
fn try_to_attach(driver: &Driver, volume: &Arc<Volume>, conf: &DiskConf, after: i32) -> AdminResult {
    if !volume.wait_detached() {
        return RetCode::DiskConfigured.number().into();
    }
    let opened = match Opened::open(volume, conf) {
        Ok(opened) => opened,
        Err(code) => return code.number().into(),
    };
    let tables = match opened.make_tables(volume, conf) {
        Ok(tables) => tables,
        Err(refusal) => return refusal,
    };
    // The engine uses the devices as soon as it was asked.
    volume.set_backing(opened.backing());
    let begun = in_order(driver, volume.minor, after, || opened.begin(volume, conf, tables));
    let result = match begun {
        Ok(()) => wait_for_result(&volume.resource),
        Err(code) => code.into(),
    };
    // Before the devices can be closed again.
    drop(opened);
    if !is_success(result.code) {
        volume.attach_failed();
    }
    result
}

/// Brings numbers into their limits. Returns resync-after as it was given: outside of its limits it is refused.
// spec: netlink 6 CHG_DISK_OPTS
fn adjust(conf: &mut DiskConf) -> i32 {
    let after = conf.resync_after;
    conf.clamp();
    after
}

/// Puts disk options into force, unless the resync-after among them, `after`, is refused.
fn in_order(
    driver: &Driver,
    minor: u32,
    after: i32,
    put_into_force: impl FnOnce() -> Result<(), i32>,
) -> Result<(), i32> {
    let _dependencies = driver.dependencies.lock();
    dependencies::check(driver, minor, after).map_err(RetCode::number)?;
    put_into_force()?;
    driver.shared.review_dependencies();
    Ok(())
}

fn volume_of(resource: &Resource, id: VolumeId) -> Option<Arc<Volume>> {
    resource.config.lock().volume(id).map(|config| config.volume.clone())
}

// spec: netlink 6 DETACH
#[inline(never)]
pub(super) fn detach(task: &mut Task<'_>) -> Answer {
    let mut parms = DetachParms::default();
    unless_refused!(task.parse(&mut parms, ParseMode::Create));
    let force = parms.force_detach;
    on_volume(task, |volume| AdminRequest::Detach { volume, force })
}

/// Detaches a volume on the way down.
pub(super) fn take_down(resource: &Arc<Resource>, volume: VolumeId) -> AdminResult {
    ask(resource, AdminRequest::Detach { volume, force: false })
}

// spec: netlink 6 CHG_DISK_OPTS
#[inline(never)]
pub(super) fn chg_disk_opts(task: &mut Task<'_>) -> Answer {
    let minor = task.minor()?;
    let _admin = minor.resource.admin.lock();
    let mut conf = KBox::new(DiskConf::default(), GFP_KERNEL)?;
    match minor.resource.look(|locked| locked.engine.disk_conf(minor.id).copied()) {
        Some(old) => *conf = old,
        None => return Ok(RetCode::NoDisk.number()),
    }
    if task.sets_defaults() {
        conf.reset_changeable();
    }
    unless_refused!(task.parse(&mut *conf, ParseMode::Change));
    let after = adjust(&mut conf);
    let mut result = AdminResult { code: RetCode::NoError.number(), info: AdminInfo::None };
    let checked = in_order(task.driver, minor.number, after, || {
        // The engine answers this one at once.
        result = ask(&minor.resource, AdminRequest::DiskOptions { volume: minor.id, conf: &conf });
        Ok(())
    });
    match checked {
        Ok(()) => task.answer(&result),
        Err(code) => Ok(code),
    }
}

// spec: netlink 6 RESIZE; metadata 7.4
#[inline(never)]
pub(super) fn resize(task: &mut Task<'_>) -> Answer {
    let mut parms = ResizeParms::default();
    unless_refused!(task.parse(&mut parms, ParseMode::Create));
    let minor = task.minor()?;
    let _admin = minor.resource.admin.lock();
    minor.resource.look_mut(|locked| tell_device_sizes(locked, minor.id));
    let result = ask(&minor.resource, AdminRequest::Resize { volume: minor.id, parms: &parms });
    task.answer(&result)
}

#[inline(never)]
pub(super) fn outdate(task: &mut Task<'_>) -> Answer {
    on_volume(task, |volume| AdminRequest::Outdate { volume })
}

#[inline(never)]
pub(super) fn suspend_io(task: &mut Task<'_>) -> Answer {
    on_volume(task, |volume| AdminRequest::SuspendIo { volume })
}

#[inline(never)]
pub(super) fn resume_io(task: &mut Task<'_>) -> Answer {
    on_volume(task, |volume| AdminRequest::ResumeIo { volume })
}
