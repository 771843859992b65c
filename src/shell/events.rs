// SPDX-License-Identifier: GPL-2.0
//! Messages to whoever listens: the older EVENTs and the notifications about objects.
//!
//! Both kinds are numbered, each by its own counter, and a listener takes a gap for a lost message. So a number is
//! drawn for every message, also when nobody listens or memory is short, and messages of one change stay together:
//! one mutex covers counting and sending.
// spec: netlink 9

use super::messages::{
    connection_info, connection_statistics, device_info, device_statistics, message, peer_device_info,
    peer_device_statistics, resource_context, resource_info, resource_statistics, volume_context, volume_status,
    with_addresses, Filled, Reason, ResourceSnapshot, VolumeSnapshot,
};
use super::resource::Resource;
use crate::linux::genl::{self, Message};
use engine::netlink::{
    AttrWriter, CfgContext, Command, Helper as HelperNest, Nest, NotificationHeader, NotificationType, Redact, Text,
    MINOR_NONE,
};
use engine::resource::{Helper, Notice, VolumeId, VolumeStatus};
use engine::state::{Conn, Role, State, Susp};
use kernel::prelude::*;
use kernel::sync::{new_mutex, Mutex};

/// Counts and sends messages.
#[pin_data]
pub(crate) struct Events {
    #[pin]
    counters: Mutex<Counters>,
}

/// The numbers of the last messages.
struct Counters {
    events: u32,
    notifications: u32,
}

impl Events {
    /// Counters start at 2, so the first message is number 3.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Events {
            counters <- new_mutex!(Counters { events: 2, notifications: 2 }, "drbd::Events::counters"),
        })
    }
}

impl Counters {
    fn event(&mut self, compose: impl FnOnce() -> Result<Message>) {
        self.events = self.events.wrapping_add(1);
        send(self.events, compose);
    }

    fn notification(&mut self, compose: impl FnOnce() -> Result<Message>) {
        self.notifications = self.notifications.wrapping_add(1);
        send(self.notifications, compose);
    }
}

fn send(number: u32, compose: impl FnOnce() -> Result<Message>) {
    if genl::has_listeners() {
        // Without memory the number is missing for the listener, who sees the gap. There is nothing better to say.
        if let Ok(message) = compose() {
            genl::multicast(&message, number);
        }
    }
}

/// One message about an object.
pub(crate) struct Notification<'a> {
    resource: &'a Resource,
    kind: NotificationType,
    /// More messages of the same change follow.
    continues: bool,
}

impl<'a> Notification<'a> {
    /// A message of this kind.
    pub(crate) fn new(resource: &'a Resource, kind: NotificationType, continues: bool) -> Self {
        Notification { resource, kind, continues }
    }

    fn head(&self, w: &mut AttrWriter<'_>, context: &CfgContext) -> Filled {
        context.emit(w, Redact::Sensitive)?;
        NotificationHeader { nh_type: self.kind.with_continues(self.continues) }.emit(w, Redact::Sensitive)
    }

    /// The information is left out about what is gone.
    fn info<N: Nest>(&self, w: &mut AttrWriter<'_>, info: &N) -> Filled {
        if self.kind == NotificationType::Destroy {
            return Ok(());
        }
        info.emit(w, Redact::Sensitive)
    }

    /// About the resource as it is.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn resource(&self) -> Result<Message> {
        let now = self.resource.look(|locked| locked.engine.resource_status());
        self.resource_as(now.role, now.susp)
    }

    /// About the resource with this role.
    fn resource_as(&self, role: Role, susp: Susp) -> Result<Message> {
        let now = self.resource.look(|locked| locked.engine.resource_status());
        message(Command::ResourceState, MINOR_NONE, |w| {
            self.head(w, &resource_context(self.resource))?;
            self.info(w, &resource_info(role, susp))?;
            resource_statistics(&now).emit(w, Redact::Sensitive)
        })
    }

    /// About the connection as it is.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn connection(&self) -> Result<Message> {
        let now = self.resource.look(|locked| locked.engine.connection_status());
        self.connection_as(now.state, now.peer_role)
    }

    /// About the connection in this state.
    fn connection_as(&self, state: Conn, peer: Role) -> Result<Message> {
        message(Command::ConnectionState, MINOR_NONE, |w| {
            self.head(w, &with_addresses(self.resource, resource_context(self.resource)))?;
            self.info(w, &connection_info(state, peer))?;
            connection_statistics().emit(w, Redact::Sensitive)
        })
    }

    /// About a volume, in this state.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn device(&self, status: &VolumeStatus, state: &State) -> Result<Message> {
        message(Command::DeviceState, status.minor, |w| {
            self.head(w, &volume_context(self.resource, status.number))?;
            self.info(w, &device_info(state))?;
            device_statistics(status).emit(w, Redact::Sensitive)
        })
    }

    /// About a volume on the peer, in this state.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn peer_device(&self, status: &VolumeStatus, state: &State) -> Result<Message> {
        message(Command::PeerDeviceState, MINOR_NONE, |w| {
            self.head(w, &with_addresses(self.resource, volume_context(self.resource, status.number)))?;
            self.info(w, &peer_device_info(state))?;
            peer_device_statistics(status).emit(w, Redact::Sensitive)
        })
    }
}

/// A resource was created.
pub(crate) fn tell_resource_created(resource: &Resource) {
    let mut counters = resource.shared.events.counters.lock();
    counters.notification(|| Notification::new(resource, NotificationType::Create, false).resource());
}

/// A resource is about to be deleted.
pub(crate) fn tell_resource_destroyed(resource: &Resource) {
    let mut counters = resource.shared.events.counters.lock();
    counters.notification(|| Notification::new(resource, NotificationType::Destroy, false).resource());
}

/// A volume was created.
pub(crate) fn tell_volume_created(resource: &Resource, id: VolumeId) {
    if let Some(volume) = take(resource, id) {
        tell_volume(resource, &volume, NotificationType::Create);
    }
}

/// What is to be told about a volume that is about to be deleted.
pub(crate) struct VolumeDestroyed(Option<KBox<VolumeSnapshot>>);

impl VolumeDestroyed {
    /// Call it while the volume is there.
    pub(crate) fn prepare(resource: &Resource, id: VolumeId) -> Self {
        VolumeDestroyed(take(resource, id))
    }

    /// Call it when the volume is gone.
    pub(crate) fn tell(self, resource: &Resource) {
        if let Some(volume) = self.0 {
            tell_volume(resource, &volume, NotificationType::Destroy);
        }
    }
}

/// The volume first when it comes, last when it goes.
fn tell_volume(resource: &Resource, volume: &VolumeSnapshot, kind: NotificationType) {
    let status = &volume.status;
    let has_peer = resource.addresses().is_some();
    let is_creation = kind == NotificationType::Create;
    let about = |continues| Notification::new(resource, kind, continues);
    let mut counters = resource.shared.events.counters.lock();
    if is_creation {
        counters.notification(|| about(has_peer).device(status, &status.state));
    }
    if has_peer {
        counters.notification(|| about(!is_creation).peer_device(status, &status.state));
    }
    if !is_creation {
        counters.notification(|| about(false).device(status, &status.state));
    }
}

/// A connection is about to begin.
pub(crate) fn tell_connection_created(resource: &Resource) {
    let volumes = volumes(resource);
    let about = |continues| Notification::new(resource, NotificationType::Create, continues);
    let mut counters = resource.shared.events.counters.lock();
    counters.notification(|| about(!volumes.is_empty()).connection());
    for (index, volume) in volumes.iter().enumerate() {
        let continues = index + 1 < volumes.len();
        counters.notification(|| about(continues).peer_device(&volume.status, &volume.status.state));
    }
}

/// A connection is about to be forgotten.
pub(crate) fn tell_connection_destroyed(resource: &Resource) {
    let about = |continues| Notification::new(resource, NotificationType::Destroy, continues);
    let volumes = volumes(resource);
    let mut counters = resource.shared.events.counters.lock();
    for volume in volumes.iter() {
        counters.notification(|| about(true).peer_device(&volume.status, &volume.status.state));
    }
    counters.notification(|| about(false).connection());
}

fn take(resource: &Resource, id: VolumeId) -> Option<KBox<VolumeSnapshot>> {
    VolumeSnapshot::take(resource, id).ok().flatten()
}

/// All volumes by ascending number, as many as there is memory for.
pub(crate) fn volumes(resource: &Resource) -> KVec<KBox<VolumeSnapshot>> {
    let mut volumes = KVec::new();
    let config = resource.config.lock();
    for volume in config.volumes.iter() {
        if let Some(snapshot) = take(resource, volume.id) {
            let _ = volumes.push(snapshot, GFP_KERNEL);
        }
    }
    volumes
}

/// A state has changed. What is told is the state after this change, whatever has happened since: a listener that waits
/// for a state sees it also when it lasted for a moment only.
// spec: netlink 9.2 (ordering and the continue flag)
pub(crate) fn tell(resource: &Resource, notice: &Notice) {
    let about = |continues| Notification::new(resource, NotificationType::Change, continues);
    match notice {
        Notice::State { volume, bits_out_of_sync, size_sectors, .. } => {
            if let Some(mut volume) = take(resource, *volume) {
                volume.status.bits_out_of_sync = *bits_out_of_sync;
                volume.status.size_sectors = *size_sectors;
                tell_state(resource, &volume, notice);
            }
        }
        Notice::Connection { to, peer, volumes_part, .. } => {
            // Each volume has told of itself before; now all of them are told about together.
            let volumes = if *volumes_part { volumes(resource) } else { KVec::new() };
            let mut counters = resource.shared.events.counters.lock();
            counters.notification(|| about(!volumes.is_empty()).connection_as(*to, *peer));
            for (index, volume) in volumes.iter().enumerate() {
                let continues = index + 1 < volumes.len();
                counters.notification(|| about(continues).peer_device(&volume.status, &volume.status.state));
            }
        }
        Notice::Suspended { to, role, .. } => {
            let mut counters = resource.shared.events.counters.lock();
            counters.notification(|| about(false).resource_as(*role, *to));
        }
    }
}

fn tell_state(resource: &Resource, volume: &VolumeSnapshot, notice: &Notice) {
    let Notice::State { from, to, susp_before, susp, overall_before, overall, .. } = notice else { return };
    let status = &volume.status;
    let of_resource = overall_before.role != overall.role || susp_before != susp;
    let of_connection = overall_before.peer != overall.peer;
    let of_device = from.disk != to.disk;
    let pauses = |state: &State| (state.user_isp, state.peer_isp, state.aftr_isp);
    let replication = |state: &State| peer_device_info(state).peer_repl_state;
    let of_peer = from.pdsk != to.pdsk || replication(from) != replication(to) || pauses(from) != pauses(to);
    let about = |continues| Notification::new(resource, NotificationType::Change, continues);
    let mut counters = resource.shared.events.counters.lock();
    if of_resource {
        counters.notification(|| about(of_connection || of_device || of_peer).resource_as(overall.role, *susp));
    }
    if of_connection {
        counters.notification(|| about(of_device || of_peer).connection_as(overall.conn, overall.peer));
    }
    if of_device {
        counters.notification(|| about(of_peer).device(status, to));
    }
    if of_peer {
        counters.notification(|| about(false).peer_device(status, to));
    }
    let reason = Reason::Change { from, susp_before: *susp_before, to, susp: *susp };
    counters.event(|| event(resource, volume, &reason));
}

/// A resync goes on; nothing is told of a volume that is not syncing.
// spec: netlink 9.1
pub(crate) fn tell_progress(resource: &Resource, id: VolumeId) {
    let syncs = |state: State| matches!(state.conn, Conn::SyncSource | Conn::SyncTarget);
    if !resource.look(|locked| locked.engine.volume_state(id).is_some_and(syncs)) {
        return;
    }
    if let Some(volume) = take(resource, id) {
        let mut counters = resource.shared.events.counters.lock();
        counters.event(|| event(resource, &volume, &Reason::Progress));
    }
}

fn event(resource: &Resource, volume: &VolumeSnapshot, reason: &Reason<'_>) -> Result<Message> {
    let now = ResourceSnapshot::take(resource)?;
    message(Command::Event, volume.status.minor, |w| {
        volume_status(w, resource, &now, volume, reason, Redact::Sensitive)
    })
}

/// A helper is about to run (`status` is `None`) or has ended.
// spec: netlink 9.1, 9.3
pub(crate) fn tell_helper(resource: &Resource, helper: Helper, id: Option<VolumeId>, status: Option<i32>) {
    let volume = id.and_then(|id| take(resource, id));
    let kind = if status.is_some() { NotificationType::Response } else { NotificationType::Call };
    let about = Notification::new(resource, kind, false);
    let nest = HelperNest {
        helper_name: Text::truncated(helper.name().as_bytes()),
        // The wait status is passed on bit for bit.
        helper_status: status.unwrap_or(0) as u32,
    };
    let mut counters = resource.shared.events.counters.lock();
    if let Some(volume) = &volume {
        let reason = Reason::Helper { name: helper.name(), status };
        counters.event(|| event(resource, volume, &reason));
    }
    counters.notification(|| {
        let minor = volume.as_ref().map_or(MINOR_NONE, |volume| volume.status.minor);
        let context = match &volume {
            Some(volume) => volume_context(resource, volume.status.number),
            None => resource_context(resource),
        };
        message(Command::Helper, minor, |w| {
            about.head(w, &with_addresses(resource, context))?;
            nest.emit(w, Redact::Sensitive)
        })
    });
}
