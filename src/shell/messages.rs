// SPDX-License-Identifier: GPL-2.0
//! Status as netlink attributes: the same nests stand in answers, dumps and notifications.
// spec: netlink 4, 8

use super::control::MESSAGE_BYTES_MAX;
use super::resource::Resource;
use crate::linux::genl::Message;
use engine::netlink::{
    AttrWriter, BufferTooSmall, Bytes, CfgContext, Command, ConnectionInfo, ConnectionStatistics, DeviceInfo,
    DeviceStatistics, Direction, DiskConf, Nest, NetConf, PeerDeviceInfo, PeerDeviceStatistics, Redact, ResourceInfo,
    ResourceOpts, ResourceStatistics, RetCode, SibReason, StateInfo,
};
use engine::resource::{ConnectionStatus, ResourceStatus, VolumeId, VolumeStatus};
use engine::state::{Conn, Disk, Role, State, Susp};
use kernel::prelude::*;

/// Sectors of a block of the bitmap.
const SECTORS_PER_BIT: u64 = 8;

/// What writes attributes.
pub(crate) type Filled = core::result::Result<(), BufferTooSmall>;

/// Makes a message that reports success, with the attributes that `fill` writes.
///
/// # Errors
/// `ENOMEM`; `EMSGSIZE` when the attributes need more than [`MESSAGE_BYTES_MAX`] bytes.
pub(crate) fn message(
    command: Command,
    minor: u32,
    fill: impl FnOnce(&mut AttrWriter<'_>) -> Filled,
) -> Result<Message> {
    let mut buffer = KVec::from_elem(0u8, MESSAGE_BYTES_MAX, GFP_KERNEL)?;
    let mut writer = AttrWriter::new(&mut buffer, Direction::Reply);
    fill(&mut writer).map_err(|_| EMSGSIZE)?;
    let mut attributes = KVec::with_capacity(writer.len(), GFP_KERNEL)?;
    attributes.extend_from_slice(writer.as_bytes(), GFP_KERNEL)?;
    Ok(Message { command: command.number(), minor, code: RetCode::NoError.number(), attributes })
}

/// Names a resource.
pub(crate) fn resource_context(resource: &Resource) -> CfgContext {
    CfgContext { ctx_resource_name: Some(resource.name), ..CfgContext::default() }
}

/// Names a volume.
pub(crate) fn volume_context(resource: &Resource, number: u16) -> CfgContext {
    CfgContext { ctx_volume: Some(number.into()), ..resource_context(resource) }
}

/// Adds the addresses of the connection, if it is configured.
pub(crate) fn with_addresses(resource: &Resource, mut context: CfgContext) -> CfgContext {
    if let Some((my, peer)) = resource.addresses() {
        context.ctx_my_addr = Bytes::from_bytes(my.as_bytes());
        context.ctx_peer_addr = Bytes::from_bytes(peer.as_bytes());
    }
    context
}

/// A resource at one moment, with what there is of its connection.
pub(crate) struct ResourceSnapshot {
    pub(crate) status: ResourceStatus,
    pub(crate) connection: ConnectionStatus,
    pub(crate) options: ResourceOpts,
    pub(crate) net: Option<NetConf>,
}

impl ResourceSnapshot {
    /// Taken under one lock.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn take(resource: &Resource) -> Result<KBox<Self>> {
        let snapshot = resource.look(|locked| ResourceSnapshot {
            status: locked.engine.resource_status(),
            connection: locked.engine.connection_status(),
            options: *locked.engine.resource_opts(),
            net: locked.engine.net_conf().copied(),
        });
        Ok(KBox::new(snapshot, GFP_KERNEL)?)
    }
}

/// A volume at one moment.
pub(crate) struct VolumeSnapshot {
    pub(crate) status: VolumeStatus,
    pub(crate) disk: Option<DiskConf>,
}

impl VolumeSnapshot {
    /// Taken under one lock; `None` when the volume is gone.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn take(resource: &Resource, id: VolumeId) -> Result<Option<KBox<Self>>> {
        let snapshot = resource.look(|locked| {
            let status = locked.engine.volume_status(id)?;
            Some(VolumeSnapshot { status, disk: locked.engine.disk_conf(id).copied() })
        });
        snapshot.map(|snapshot| Ok(KBox::new(snapshot, GFP_KERNEL)?)).transpose()
    }
}

/// RESOURCE_INFO.
pub(crate) fn resource_info(role: Role, susp: Susp) -> ResourceInfo {
    ResourceInfo { res_role: role.bits(), res_susp: susp.user, res_susp_nod: susp.no_data, res_susp_fen: susp.fencing }
}

/// RESOURCE_STATISTICS.
pub(crate) fn resource_statistics(status: &ResourceStatus) -> ResourceStatistics {
    ResourceStatistics { res_stat_write_ordering: status.write_ordering }
}

/// DEVICE_INFO.
pub(crate) fn device_info(state: &State) -> DeviceInfo {
    DeviceInfo { dev_disk_state: state.disk.bits() }
}

/// DEVICE_STATISTICS.
pub(crate) fn device_statistics(status: &VolumeStatus) -> DeviceStatistics {
    let [current, _, history @ ..] = status.uuids;
    DeviceStatistics {
        dev_size: status.size_sectors,
        dev_read: status.counters.read_sectors,
        dev_write: status.counters.written_sectors,
        dev_al_writes: status.counters.activity_log_writes,
        dev_bm_writes: status.counters.bitmap_writes,
        dev_upper_pending: status.upper_pending,
        dev_lower_pending: status.lower_pending,
        dev_upper_blocked: status.upper_blocked,
        dev_lower_blocked: false,
        dev_al_suspended: status.log_suspended,
        dev_exposed_data_uuid: status.exposed_uuid,
        dev_current_uuid: current,
        dev_disk_flags: status.meta_flags,
        history_uuids: Bytes::from_u64s(&[history[0], history[1], 0, 0]).unwrap_or_default(),
    }
}

/// CONNECTION_INFO. The state of a connection never exceeds WFReportParams.
pub(crate) fn connection_info(state: Conn, peer_role: Role) -> ConnectionInfo {
    ConnectionInfo { conn_connection_state: state.min(Conn::WFReportParams).bits(), conn_role: peer_role.bits() }
}

/// CONNECTION_STATISTICS.
pub(crate) fn connection_statistics() -> ConnectionStatistics {
    ConnectionStatistics { conn_congested: false }
}

/// PEER_DEVICE_INFO. The replication state is never below WFReportParams.
pub(crate) fn peer_device_info(state: &State) -> PeerDeviceInfo {
    PeerDeviceInfo {
        peer_repl_state: state.conn.max(Conn::WFReportParams).bits(),
        peer_disk_state: state.pdsk.bits(),
        peer_resync_susp_user: state.user_isp.into(),
        peer_resync_susp_peer: state.peer_isp.into(),
        peer_resync_susp_dependency: state.aftr_isp.into(),
    }
}

/// PEER_DEVICE_STATISTICS.
pub(crate) fn peer_device_statistics(status: &VolumeStatus) -> PeerDeviceStatistics {
    let [_, bitmap, ..] = status.uuids;
    PeerDeviceStatistics {
        peer_dev_received: status.counters.received_sectors,
        peer_dev_sent: status.counters.sent_sectors,
        peer_dev_pending: status.peer_pending.saturating_add(status.resync_pending),
        peer_dev_unacked: status.unacked,
        peer_dev_out_of_sync: status.bits_out_of_sync.saturating_mul(SECTORS_PER_BIT),
        peer_dev_resync_failed: status.sync.map_or(0, |sync| sync.failed_bits).saturating_mul(SECTORS_PER_BIT),
        peer_dev_bitmap_uuid: bitmap,
        peer_dev_flags: status.peer_flags(),
    }
}

/// Why a STATE_INFO is sent, with what belongs to the reason.
pub(crate) enum Reason<'a> {
    /// It was asked for.
    Status,
    /// A state changed.
    Change { from: &'a State, susp_before: Susp, to: &'a State, susp: Susp },
    /// A resync goes on.
    Progress,
    /// A helper is about to run, or has ended with this wait status.
    Helper { name: &'static str, status: Option<i32> },
}

/// STATE_INFO.
// spec: netlink 4.5
pub(crate) fn state_info(status: &VolumeStatus, reason: &Reason<'_>) -> StateInfo {
    let with_disk = |value: u64| status.has_disk.then_some(value);
    let syncing = (Conn::SyncSource..=Conn::PausedSyncT).contains(&status.state.conn);
    let sync = status.sync.filter(|_| status.has_disk && syncing);
    let mut info = StateInfo {
        // Suspension is a matter of the resource: the word of a volume does not have it.
        current_state: status.state.word(Susp::default()),
        capacity: status.size_sectors,
        ed_uuid: status.exposed_uuid,
        uuids: status.has_disk.then(|| Bytes::from_u64s(&status.uuids)).flatten(),
        disk_flags: status.has_disk.then_some(status.meta_flags),
        bits_total: with_disk(status.bits_total),
        bits_oos: with_disk(status.bits_out_of_sync),
        bits_rs_total: sync.map(|sync| sync.total_bits),
        bits_rs_failed: sync.map(|sync| sync.failed_bits),
        send_cnt: status.counters.sent_sectors,
        recv_cnt: status.counters.received_sectors,
        read_cnt: status.counters.read_sectors,
        writ_cnt: status.counters.written_sectors,
        al_writ_cnt: status.counters.activity_log_writes,
        bm_writ_cnt: status.counters.bitmap_writes,
        ap_bio_cnt: status.upper_pending,
        ap_pending_cnt: status.peer_pending,
        rs_pending_cnt: status.resync_pending,
        ..StateInfo::default()
    };
    match reason {
        Reason::Status => {}
        Reason::Progress => info.sib_reason = SibReason::SyncProgress,
        Reason::Change { from, susp_before, to, susp } => {
            info.sib_reason = SibReason::StateChange;
            info.prev_state = Some(from.word(*susp_before));
            info.new_state = Some(to.word(*susp));
        }
        Reason::Helper { name, status } => {
            info.sib_reason = if status.is_some() { SibReason::HelperPost } else { SibReason::HelperPre };
            info.helper = engine::netlink::Text::from_bytes(name.as_bytes()).ok();
            // The wait status is passed on bit for bit.
            info.helper_exit_code = status.map(|status| status as u32);
        }
    }
    info
}

/// Writes what GET_STATUS and EVENT say about a volume.
// spec: netlink 8.1
pub(crate) fn volume_status(
    w: &mut AttrWriter<'_>,
    resource: &Resource,
    now: &ResourceSnapshot,
    volume: &VolumeSnapshot,
    reason: &Reason<'_>,
    redact: Redact,
) -> Filled {
    with_addresses(resource, volume_context(resource, volume.status.number)).emit(w, redact)?;
    now.options.emit(w, redact)?;
    if let Some(disk) = &volume.disk {
        disk.emit(w, redact)?;
    }
    if let Some(net) = &now.net {
        net.emit(w, redact)?;
    }
    state_info(&volume.status, reason).emit(w, redact)
}

/// Writes what GET_STATUS says about a resource without volumes: not its options.
// spec: netlink 8.1
pub(crate) fn empty_resource_status(w: &mut AttrWriter<'_>, resource: &Resource, now: &ResourceSnapshot) -> Filled {
    with_addresses(resource, resource_context(resource)).emit(w, Redact::Sensitive)?;
    if let Some(net) = &now.net {
        net.emit(w, Redact::Sensitive)?;
    }
    Ok(())
}

/// True for what `DISK_CONF` belongs to.
pub(crate) fn is_attached(status: &VolumeStatus) -> bool {
    status.has_disk && status.state.disk > Disk::Diskless
}
