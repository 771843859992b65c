// SPDX-License-Identifier: GPL-2.0
//! The size of the device: agreed with the peer, changed by the administrator, or because a lower disk has grown.
//!
//! A new size, or internal meta data that has to follow the end of its disk, is carried out in three steps. New
//! application I/O is held back and the meta-data pipeline comes to rest ([`Job::Hold`]); the owner makes tables of the
//! new size; then size, place and bitmap change in core at once and everything is written anew ([`Rewrite`]), so that a
//! crash at any moment finds either the old meta data or a superblock that demands a full sync.
//! spec: metadata 7; wire-protocol 4.6

use super::api::{VolumeId, Wakes};
use super::incoming::{Fault, PacketHead};
use super::metadata_pipeline::{Job, Rewrite, Then};
use super::work::{DeviceWork, LogLine};
use super::{Engine, Volume};
use crate::bitmap::BitmapTables;
use crate::handshake::{
    answers_sizes, grow_action, receive_sizes, GrowAction, GrowInput, PeerSizes, SizeDecision, SizesInput,
};
use crate::metadata::layout::{
    agreed_size, clamp_al_extents, size_change, Layout, SizeChangeError, SizeInputs, Striping,
};
use crate::metadata::superblock::MetaFlags;
use crate::metadata::BM_BLOCK_SECTORS;
use crate::netlink::{ResizeParms, RetCode};
use crate::state::{Conn, Disk, Role};
use crate::storage::Storage;
use crate::wire::{max_data_bytes, Command, Sizes, DDS_FORCED, DDS_NO_RESYNC};

/// Sizes of a volume's lower devices, as they are now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceSizes {
    /// Backing device, in sectors.
    pub backing_sectors: u64,
    /// Meta-data device, in sectors; the same for internal meta data.
    pub meta_sectors: u64,
}

/// Who wants another size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Admin,
    Peer(PeerSizes),
}

/// A change of size that is being carried out.
#[derive(Clone, Copy, Debug)]
pub(super) struct PendingResize {
    sectors: u64,
    user_sectors: u64,
    layout: Layout,
    dds_flags: u16,
    by: By,
    /// What the size was before; known when it is carried out.
    from_sectors: Option<u64>,
    /// From a size that was not zero; known when it is carried out.
    grew: bool,
    /// The own disk can hold more or less than before.
    disk_changed: bool,
}

impl<S: Storage> Engine<S> {
    /// Some: the packet tells the sizes of the peer. Before it is handed to [`Engine::data_packet`], tell the sizes of
    /// this volume's lower devices with [`Engine::device_sizes`]: they may have grown. Not during the handshake: there both
    /// nodes have to go by what they have told each other.
    pub fn wants_device_sizes(&self, head: &PacketHead) -> Option<VolumeId> {
        let id = (head.command() == Command::Sizes).then(|| self.volume_by_number(head.volume_number())).flatten();
        id.filter(|id| self.volume(*id).is_some_and(|volume| volume.state.conn >= Conn::Connected))
    }

    /// The sizes of an attached volume's lower devices. Also called before [`Engine::link_up`] and the administrator's resize.
    pub fn device_sizes(&mut self, id: VolumeId, sizes: DeviceSizes) {
        self.with_volume(id, |volume| volume.devices = sizes);
    }

    /// P_SIZES. spec: wire-protocol 4.6
    pub(super) fn receive_sizes(&mut self, id: VolumeId, packet: &Sizes) -> Result<(), Fault> {
        let most_bytes = max_data_bytes(self.link.apv, packet.max_bio_size);
        let Some(volume) = self.volume_mut(id) else { return Err(Fault::UnknownVolume) };
        volume.peer.disk_sectors = packet.d_size;
        volume.peer.max_bio_bytes = most_bytes;
        let block = packet.limits.filter(|_| packet.d_size > 0).map_or(0, |limits| limits.logical_block_size);
        volume.peer.logical_block_bytes = if block.is_power_of_two() && block <= 4096 { block } else { 0 };
        let peer = PeerSizes {
            disk: packet.d_size,
            user: packet.u_size,
            current: packet.c_size,
            forced: packet.dds_flags & DDS_FORCED != 0,
        };
        let layout = volume.layout_now(None);
        let disk = volume.disk.as_ref();
        let input = SizesInput {
            own: volume.state,
            own_disk: layout.map_or(0, |layout| layout.usable_sectors),
            own_user: volume.conf.disk_size,
            own_current: volume.size_sectors,
            last_agreed: disk.map_or(0, |disk| disk.superblock.la_size_sectors),
            peer,
        };
        if let Some(disk) = volume.disk.as_mut() {
            if disk.superblock.la_peer_max_bio_bytes != most_bytes {
                disk.superblock.la_peer_max_bio_bytes = most_bytes;
                disk.pipeline.touch();
            }
        }
        if differ_considerably(input.own_disk, peer.disk) {
            self.log(LogLine::SizesDiffer { volume: id, own_sectors: input.own_disk, peer_sectors: peer.disk });
        }
        let (size, user_sectors) = match receive_sizes(&input) {
            SizeDecision::Keep => (input.own_current, input.own_user),
            SizeDecision::Adopt { size, user_size } => (size, user_size),
            SizeDecision::Refuse(refusal) => {
                let (own_sectors, offered_sectors) = (refusal.current, refusal.wanted);
                self.log(LogLine::SizeRefused { volume: id, own_sectors, offered_sectors });
                return Err(Fault::SizeRefused);
            }
        };
        if input.own.disk >= Disk::Inconsistent {
            self.log_ignored_size(id, user_sectors, size);
        }
        let moves = self.volume(id).is_some_and(|volume| volume.must_move(layout) || !volume.covers(size));
        match layout.filter(|_| input.own.disk >= Disk::Negotiating && (moves || size != input.own_current)) {
            Some(layout) if layout.holds(size) => {
                self.with_volume(id, |volume| volume.holds += 1);
                let by = By::Peer(peer);
                self.begin_resize(id, PendingResize::new(size, user_sectors, layout, packet.dds_flags, by));
            }
            Some(_) => return Err(Fault::SizeRefused),
            None => {
                self.with_volume(id, |volume| volume.conf.disk_size = user_sectors);
                self.set_size(id, size);
                self.sizes_settled(id, peer, packet.dds_flags, false, false);
            }
        }
        self.order(DeviceWork::Limits { volume: id });
        self.sync_metadata(id);
        Ok(())
    }

    /// A configured size that is too large is not used; the administrator is told why.
    pub(super) fn log_ignored_size(&mut self, id: VolumeId, wanted_sectors: u64, sectors: u64) {
        if wanted_sectors > sectors {
            self.log(LogLine::SizeIgnored { volume: id, wanted_sectors, sectors });
        }
    }

    /// The pipeline comes to rest, the owner makes the tables; a receiver waits until all is done.
    fn begin_resize(&mut self, id: VolumeId, pending: PendingResize) {
        self.with_volume(id, |volume| volume.resize = Some(pending));
        self.queue_job(id, Job::Hold);
    }

    /// The pipeline has come to rest.
    pub(super) fn order_tables(&mut self, id: VolumeId) {
        match self.volume(id).and_then(|volume| volume.resize) {
            Some(pending) => self.order(DeviceWork::Resize { volume: id, sectors: pending.sectors }),
            None => self.with_disk(id, |disk| disk.pipeline.end_hold()),
        }
    }

    /// The tables of [`DeviceWork::Resize`] are there; `None`: there was no memory. Returns the old ones, to be freed when
    /// the lock is not held.
    pub fn resize(&mut self, id: VolumeId, tables: Option<BitmapTables<S>>, now_ms: u64) -> Option<BitmapTables<S>> {
        self.now_ms = now_ms;
        let Some(volume) = self.volume_mut(id) else { return tables };
        let Some(mut pending) = volume.resize else { return tables };
        let before = volume.size_sectors;
        let usable = volume.state.disk >= Disk::Negotiating;
        let Some(tables) = tables else {
            self.resize_failed(id);
            return None;
        };
        let Some(disk) = volume.disk.as_mut().filter(|disk| usable && disk.pipeline.is_held()) else {
            self.resize_failed(id);
            return Some(tables);
        };
        let set_new_bits = pending.dds_flags & DDS_NO_RESYNC == 0;
        let old = disk.bitmap.resize(tables, set_new_bits);
        let full_sync = disk.superblock.flags.contains(MetaFlags::FULL_SYNC);
        let moved = disk.layout.is_elsewhere(&pending.layout);
        pending.disk_changed = disk.layout.usable_sectors != pending.layout.usable_sectors;
        pending.from_sectors = Some(before);
        pending.grew = before > 0 && pending.sectors > before;
        disk.layout = pending.layout;
        disk.superblock.set_layout(&pending.layout);
        disk.begin_rewrite(Rewrite { moved, full_sync, then: Then::Resized });
        volume.conf.disk_size = pending.user_sectors;
        volume.resize = Some(pending);
        self.set_size(id, pending.sectors);
        self.wakes.insert(Wakes::METADATA);
        Some(old)
    }

    /// Everything is on the disk.
    pub(super) fn resized(&mut self, id: VolumeId) {
        let Some(volume) = self.volume_mut(id) else { return };
        let Some(pending) = volume.resize.take() else { return };
        volume.holds = volume.holds.saturating_sub(1);
        let PendingResize { dds_flags, grew, disk_changed, .. } = pending;
        match pending.by {
            By::Peer(peer) => self.sizes_settled(id, peer, dds_flags, grew, disk_changed),
            By::Admin => self.announce_resize(id, dds_flags, grew),
        }
        self.order(DeviceWork::Limits { volume: id });
        self.wakes.insert(Wakes::RECEIVER);
        self.reopen_gate();
        self.admin_step();
    }

    /// No memory, or the disk is lost. A node whose disk fails needs the connection more than ever, and nothing has seen the new
    /// size yet: the device keeps the one it had, which is also that of the peer.
    pub(super) fn resize_failed(&mut self, id: VolumeId) {
        let Some(volume) = self.volume_mut(id) else { return };
        let Some(pending) = volume.resize.take() else { return };
        let disk_lost = volume.state.disk <= Disk::Failed;
        volume.holds = volume.holds.saturating_sub(1);
        self.with_disk(id, |disk| disk.pipeline.end_hold());
        if let Some(sectors) = pending.from_sectors {
            self.set_size(id, sectors);
        }
        match pending.by {
            By::Peer(peer) if disk_lost => self.sizes_settled(id, peer, pending.dds_flags, false, false),
            By::Peer(_) => _ = self.fail(Fault::SizeRefused, Conn::ProtocolError),
            By::Admin => self.admin_resized(id, RetCode::NomemBitmap.number()),
        }
        self.wakes.insert(Wakes::RECEIVER);
        self.wakes.insert(Wakes::METADATA);
        self.reopen_gate();
    }

    /// The size is agreed: answer if the peer cannot know, and resync what is new.
    fn sizes_settled(&mut self, id: VolumeId, peer: PeerSizes, dds_flags: u16, grew: bool, disk_changed: bool) {
        let Some(volume) = self.volume_mut(id) else { return };
        let (state, size) = (volume.state, volume.size_sectors);
        if answers_sizes(state.conn, size, disk_changed, &peer) {
            self.send_sizes(id, dds_flags, false);
        }
        if state.conn <= Conn::WFReportParams {
            return;
        }
        let resize_pending = self.volume_mut(id).is_some_and(|volume| core::mem::take(&mut volume.resize_pending));
        let action = grow_action(&GrowInput {
            own: state,
            grew,
            resize_pending,
            no_resync: dds_flags & DDS_NO_RESYNC != 0,
            resolve_conflicts: self.link.resolve_conflicts,
        });
        match action {
            GrowAction::Nothing => {}
            GrowAction::Resync { source } => self.start_grow_resync(id, source),
            GrowAction::AfterNegotiation => self.with_disk(id, |disk| disk.resync_after_negotiation = true),
        }
    }

    // The administrator's resize. spec: metadata 7.4

    /// Whether it may be carried out at all.
    pub(super) fn check_resize(&self, id: VolumeId, parms: &ResizeParms) -> Result<(), RetCode> {
        let volume = self.volume(id).ok_or(RetCode::MinorInvalid)?;
        let state = volume.state;
        if volume.disk.is_none() || state.disk < Disk::Inconsistent {
            return Err(RetCode::NoDisk);
        }
        if state.conn > Conn::Connected {
            return Err(RetCode::ResizeResync);
        }
        if state.role == Role::Secondary && state.peer == Role::Secondary {
            return Err(RetCode::NoPrimary);
        }
        if parms.no_resync && self.link.apv < 93 {
            return Err(RetCode::NeedApv93);
        }
        let Some(striping) = volume.new_striping(parms) else { return Ok(()) };
        match striping.blocks() {
            blocks if blocks > Striping::MAX_BLOCKS => Err(RetCode::MdLayoutTooBig),
            blocks if blocks < Striping::MIN_BLOCKS => Err(RetCode::MdLayoutTooSmall),
            _ if state.conn != Conn::Connected && !parms.resize_force => Err(RetCode::MdLayoutConnected),
            _ => Ok(()),
        }
    }

    /// No application I/O is under way: begin. The hold of the request becomes that of the change.
    pub(super) fn carry_out_resize(&mut self, id: VolumeId, parms: &ResizeParms) -> Result<(), RetCode> {
        let volume = self.volume_mut(id).ok_or(RetCode::MinorInvalid)?;
        let striping = volume.new_striping(parms);
        let layout = volume.layout_now(striping).ok_or(RetCode::MdLayoutNoFit)?;
        let (state, before, user_sectors) = (volume.state, volume.size_sectors, parms.resize_size);
        let agreed = agreed_size(&SizeInputs {
            own_sectors: layout.usable_sectors,
            peer_sectors: volume.peer.disk_sectors,
            last_agreed_sectors: before,
            user_sectors,
            assume_peer_has_space: parms.resize_force,
            is_connected: state.conn >= Conn::Connected,
        });
        let size = agreed.size_sectors;
        self.log_ignored_size(id, user_sectors, size);
        if agreed.peer_assumed {
            self.log(LogLine::PeerAssumed { volume: id, sectors: size });
        }
        let volume = self.volume_mut(id).ok_or(RetCode::MinorInvalid)?;
        size_change(before, size, user_sectors, striping.is_some()).map_err(|error| match error {
            SizeChangeError::ImplicitShrink => RetCode::ImplicitShrink,
            SizeChangeError::NoSpaceForMetaData => RetCode::MdLayoutNoFit,
        })?;
        let extents = volume.disk.as_ref().map_or(0, |disk| disk.log.extents());
        if !layout.holds(size) || extents > clamp_al_extents(extents, layout.striping.blocks()) {
            return Err(RetCode::MdLayoutNoFit);
        }
        let flag = |set: bool, flag: u16| if set { flag } else { 0 };
        let dds_flags = flag(parms.resize_force, DDS_FORCED) | flag(parms.no_resync, DDS_NO_RESYNC);
        let pending = PendingResize::new(size, user_sectors, layout, dds_flags, By::Admin);
        if size != before || volume.must_move(Some(layout)) {
            self.begin_resize(id, pending);
        } else {
            volume.conf.disk_size = user_sectors;
            volume.resize = Some(pending);
            self.resized(id);
        }
        Ok(())
    }

    /// The administrator's change is on the disk: the peer is asked to follow.
    fn announce_resize(&mut self, id: VolumeId, dds_flags: u16, grew: bool) {
        if self.volume(id).is_some_and(|volume| volume.state.conn == Conn::Connected) {
            self.with_volume(id, |volume| volume.resize_pending |= grew);
            self.send_uuids(id);
            self.send_sizes(id, dds_flags, true);
        }
        self.sync_metadata(id);
        self.admin_resized(id, RetCode::NoError.number());
    }
}

/// By more than an eighth of the smaller one; 0 is no disk. spec: metadata 7.5
fn differ_considerably(one: u64, other: u64) -> bool {
    let (smaller, larger) = (one.min(other), one.max(other));
    smaller > 0 && larger - smaller > smaller / 8
}

impl PendingResize {
    fn new(sectors: u64, user_sectors: u64, layout: Layout, dds_flags: u16, by: By) -> Self {
        PendingResize {
            sectors,
            user_sectors,
            layout,
            dds_flags,
            by,
            from_sectors: None,
            grew: false,
            disk_changed: false,
        }
    }
}

impl<S: Storage> Volume<S> {
    /// Where the meta data belongs on the devices as they are now, with another striping of the activity log or the
    /// present one. Where that is impossible: where it is.
    pub(super) fn layout_now(&self, striping: Option<Striping>) -> Option<Layout> {
        let disk = self.disk.as_ref()?;
        let DeviceSizes { backing_sectors, meta_sectors } = self.devices;
        let wanted = striping.unwrap_or(disk.layout.striping);
        let layout = Layout::compute(disk.layout.index, backing_sectors, meta_sectors, wanted);
        match striping {
            Some(_) => layout.ok(),
            None => Some(layout.unwrap_or(disk.layout)),
        }
    }

    /// The bitmap is that of a device of this size. It has to be, also while the disk is being negotiated.
    pub(super) fn covers(&self, size_sectors: u64) -> bool {
        self.disk.as_ref().is_none_or(|disk| disk.bitmap.capacity_sectors() == size_sectors)
    }

    /// The areas are not where they belong.
    fn must_move(&self, layout: Option<Layout>) -> bool {
        self.disk.as_ref().zip(layout).is_some_and(|(disk, layout)| disk.layout != layout)
    }

    /// The striping of the activity log that a resize asks for, if it is another one.
    fn new_striping(&self, parms: &ResizeParms) -> Option<Striping> {
        let present = self.disk.as_ref()?.layout.striping;
        let wanted = Striping {
            stripes: parms.al_stripes.unwrap_or(present.stripes),
            stripe_size_4k: parms.al_stripe_size.map_or(present.stripe_size_4k, |kib| kib / 4),
        };
        (wanted != present).then_some(wanted)
    }
}

impl Layout {
    /// Whether the bitmap has room for a device of that size. spec: metadata 5.5
    fn holds(&self, sectors: u64) -> bool {
        sectors.div_ceil(BM_BLOCK_SECTORS) <= self.bitmap_bits()
    }

    /// Whether the other layout has some area at another place.
    fn is_elsewhere(&self, other: &Layout) -> bool {
        self.superblock_sector != other.superblock_sector
            || self.md_size_sectors != other.md_size_sectors
            || self.striping != other.striping
            || self.bitmap_sector() != other.bitmap_sector()
    }
}
