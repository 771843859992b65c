// SPDX-License-Identifier: GPL-2.0
//! What the engine tells about itself: for /proc/drbd, status messages and tests.

use super::api::{Op, PeerId, RequestId, VolumeId};
use super::slots::Local;
use super::verify::is_verifying;
use super::volume::Counters;
use super::Engine;
use crate::activity_log::Statistics;
use crate::metadata::superblock::MetaFlags;
use crate::netlink::WireProtocol;
use crate::netlink::{DiskConf, NetConf, ResourceOpts};
use crate::resync::Figures;
use crate::state::{Aggregates, Conn, Role, State, Susp};
use crate::storage::Storage;
use crate::wire::{max_trim_bytes, FEATURE_TRIM, FEATURE_WZEROES, MAX_TRIM_BYTES};

/// A resync or verify that is running.
#[derive(Clone, Copy, Debug)]
pub struct SyncStatus {
    /// Bits when it began.
    pub total_bits: u64,
    /// Bits that could not be synced.
    pub failed_bits: u64,
    /// Progress, speeds, time left.
    pub figures: Figures,
    /// What the rate controller aims at in KiB/s; 0 on the source.
    pub want_kib: u32,
    /// Next bit to look at.
    pub position_bits: u64,
    /// Where a verify run stops early.
    pub stop_sector: Option<u64>,
}

/// One volume at one moment.
#[derive(Clone, Copy, Debug)]
pub struct VolumeStatus {
    /// Volume number.
    pub number: u16,
    /// Minor.
    pub minor: u32,
    /// State.
    pub state: State,
    /// Size of the virtual device in sectors.
    pub size_sectors: u64,
    /// A backing device is attached.
    pub has_disk: bool,
    /// The four UUIDs; 0 without a disk.
    pub uuids: [u64; 4],
    /// Flags of the meta data; 0 without a disk.
    pub meta_flags: u32,
    /// Generation last exposed.
    pub exposed_uuid: u64,
    /// Bits of the bitmap; 0 without a disk.
    pub bits_total: u64,
    /// Bits set.
    pub bits_out_of_sync: u64,
    /// Amounts.
    pub counters: Counters,
    /// Application requests accepted and not completed.
    pub upper_pending: u32,
    /// Requests on the backing device.
    pub lower_pending: u32,
    /// Application requests sent and not answered.
    pub peer_pending: u32,
    /// Resync requests sent and not answered.
    pub resync_pending: u32,
    /// Requests of the peer not answered.
    pub unacked: u32,
    /// New application I/O is held back.
    pub upper_blocked: bool,
    /// The activity log is not written at present.
    pub log_suspended: bool,
    /// How often it is open.
    pub opens: u32,
    /// Present while a resync or verify runs.
    pub sync: Option<SyncStatus>,
    /// 0 default, 1 degraded, 2 peer outdated. spec: state-machine 14.3
    pub timeout_type: u32,
    /// Usable size of the backing device, 0 without.
    pub backing_sectors: u64,
    /// Largest request to be accepted from above, in bytes.
    pub max_bio_bytes: u32,
    /// Smallest request that the peer's disk takes, in bytes; 0 unknown.
    pub peer_block_bytes: u32,
    /// Largest discard that the peer takes, in bytes; 0: none.
    pub max_discard_bytes: u32,
    /// Largest write of zeroes that the peer takes as such, in bytes; 0: none, they have to be data.
    pub max_write_zeroes_bytes: u32,
}

impl VolumeStatus {
    /// Flags of the meta data that listeners are told with the peer: bit 0 connected, bit 1 outdated, bit 3 full sync. It is the own disk
    /// that is outdated, as with the C module. spec: netlink 3.3 (peer-device flags)
    pub fn peer_flags(&self) -> u32 {
        let flags = MetaFlags(self.meta_flags);
        let outdated = flags.contains(MetaFlags::CONSISTENT) && !flags.contains(MetaFlags::WAS_UP_TO_DATE);
        let bit = |set: bool, bit: u32| u32::from(set) << bit;
        bit(flags.contains(MetaFlags::CONNECTED_IND), 0)
            | bit(outdated, 1)
            | bit(flags.contains(MetaFlags::FULL_SYNC), 3)
    }
}

/// The connection at one moment.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionStatus {
    /// 0..=9.
    pub state: Conn,
    /// A network configuration is present.
    pub configured: bool,
    /// The peer's role.
    pub peer_role: Role,
    /// Agreed protocol version; the last one while not connected.
    pub apv: u32,
    /// Agreed features.
    pub features: u32,
    /// Number of epochs with writes under way, as /proc/drbd counts them.
    pub epochs: u32,
}

/// The resource at one moment.
#[derive(Clone, Copy, Debug)]
pub struct ResourceStatus {
    /// Highest role of its volumes.
    pub role: Role,
    /// Reasons for suspended I/O.
    pub susp: Susp,
    /// 0 none, 1 drain, 2 flush.
    pub write_ordering: u32,
}

/// What is in use at one moment. All zero when nothing is under way: anything else is a leak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Slots of application requests.
    pub requests: usize,
    /// Slots of peer requests.
    pub peer_requests: usize,
    /// Bytes in memory for these.
    pub buffered_bytes: u64,
    /// Ranges that others may have to wait for.
    pub overlaps: usize,
    /// Activity log extents with references, on all volumes.
    pub log_extents: u32,
    /// Reasons that keep application I/O out, on all volumes.
    pub holds: u32,
    /// Local I/O, completions and packets that nobody has fetched.
    pub queued: usize,
}

/// An application request that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestView {
    /// Volume.
    pub volume: VolumeId,
    /// Operation.
    pub op: Op,
    /// First sector.
    pub sector: u64,
    /// Length in bytes.
    pub size_bytes: u32,
    /// Its local part is on the disk.
    pub on_disk: bool,
    /// It has no local part, and had none since it began.
    pub without_disk: bool,
    /// When it counts as completed.
    pub protocol: WireProtocol,
    /// It waits for no other write and no extent of the activity log.
    pub started: bool,
}

impl<S: Storage> Engine<S> {
    /// A request that is under way.
    pub fn request(&self, id: RequestId) -> Option<RequestView> {
        self.requests.get(id).map(|slot| RequestView {
            volume: slot.volume,
            op: slot.io.op,
            sector: slot.io.sector,
            size_bytes: slot.io.size_bytes,
            protocol: slot.protocol,
            on_disk: slot.local == Local::Pending,
            without_disk: slot.local == Local::None,
            started: slot.phase == super::slots::Phase::Active,
        })
    }

    /// True for a request of the peer, or to it, that is part of a resync or verify.
    pub fn is_resync(&self, id: PeerId) -> bool {
        use super::slots::PeerKind as K;
        self.peers.get(id).is_some_and(|slot| !matches!(slot.kind, K::Read | K::Write))
    }

    /// The minor that a request of the peer, or to it, is about.
    pub fn peer_minor(&self, id: PeerId) -> Option<u32> {
        self.peers.get(id).and_then(|slot| self.volume(slot.volume)).map(|volume| volume.minor)
    }

    /// One volume.
    pub fn volume_status(&self, id: VolumeId) -> Option<VolumeStatus> {
        let volume = self.volume(id)?;
        let disk = volume.disk.as_ref();
        let syncing = (Conn::SyncSource..=Conn::PausedSyncT).contains(&volume.state.conn);
        let weight = volume.weight();
        let verifying = is_verifying(volume.state.conn);
        let left = if verifying { volume.verify.left_blocks } else { weight.saturating_sub(volume.resync.failed_bits) };
        let outdated = volume.state.pdsk == crate::state::Disk::Outdated;
        Some(VolumeStatus {
            number: volume.number,
            minor: volume.minor,
            state: volume.state,
            size_sectors: volume.size_sectors,
            has_disk: disk.is_some(),
            uuids: disk.map_or([0; 4], |disk| disk.uuids()),
            meta_flags: disk.map_or(0, |disk| disk.superblock.flags.0),
            exposed_uuid: volume.exposed_uuid,
            bits_total: disk.map_or(0, |disk| disk.bitmap.bits()),
            bits_out_of_sync: weight,
            counters: volume.counters,
            upper_pending: volume.upper_pending,
            lower_pending: volume.lower_pending,
            peer_pending: volume.peer_pending,
            resync_pending: volume.resync.requests_in_flight,
            unacked: volume.unacked,
            upper_blocked: !self.gate_open(id),
            log_suspended: disk.is_some_and(|disk| disk.log_suspended),
            opens: volume.readers + volume.writers,
            sync: syncing.then(|| SyncStatus {
                total_bits: volume.resync.total_bits,
                failed_bits: volume.resync.failed_bits,
                figures: volume.resync.progress.figures(left, self.now_ms),
                want_kib: volume.resync.controller.as_ref().map_or(0, |controller| controller.target_rate_kib()),
                position_bits: volume.resync.position,
                stop_sector: volume.verify.stop_sector().filter(|_| verifying),
            }),
            timeout_type: if outdated { 2 } else { u32::from(volume.degraded_wait) },
            backing_sectors: disk.map_or(0, |disk| disk.layout.usable_sectors),
            max_bio_bytes: volume.request_limit_bytes(),
            peer_block_bytes: volume.peer.logical_block_bytes,
            max_discard_bytes: self.max_discard_bytes(),
            max_write_zeroes_bytes: self.max_write_zeroes_bytes(),
        })
    }

    /// Without a peer everything is possible. spec: state-machine 21.1; wire-protocol 3.3, 3.7
    fn max_discard_bytes(&self) -> u32 {
        let understood = self.link.apv >= 95 && self.link.features & FEATURE_TRIM != 0;
        match (self.link.is_running(), understood) {
            (false, _) => MAX_TRIM_BYTES,
            (true, true) => max_trim_bytes(self.link.features),
            (true, false) => 0,
        }
    }

    /// The connected peer understands the request if it is a discard or zeroes.
    pub(super) fn peer_takes(&self, io: &super::IoRequest) -> bool {
        match io.op {
            super::Op::Discard => io.size_bytes <= self.max_discard_bytes(),
            super::Op::WriteZeroes { .. } => {
                io.size_bytes <= self.max_discard_bytes() && self.link.net.integrity_alg.is_empty()
            }
            _ => true,
        }
    }

    /// The C module expects a digest with a packet of zeroes, which has none. spec: wire-protocol 13 (H1)
    fn max_write_zeroes_bytes(&self) -> u32 {
        let understood = self.link.features & FEATURE_WZEROES != 0 && self.max_discard_bytes() > 0;
        let refused = self.link.is_running() && !understood;
        let checked = !self.link.net.integrity_alg.is_empty();
        if refused || checked {
            0
        } else {
            MAX_TRIM_BYTES
        }
    }

    /// Of the activity log of an attached disk: slots with references, slots, and counters.
    pub fn activity_status(&self, id: VolumeId) -> Option<(u32, u32, Statistics)> {
        let disk = self.volume(id)?.disk.as_ref()?;
        Some((disk.log.used(), disk.log.extents(), disk.log.statistics()))
    }

    /// The state of one volume.
    pub fn volume_state(&self, id: VolumeId) -> Option<State> {
        self.volume(id).map(|volume| volume.state)
    }

    /// True when a difference of the two halves in this sector is known: its bit is set, or a crash of this node would
    /// set it because its activity log extent is active.
    pub fn is_marked(&self, id: VolumeId, sector: u64) -> bool {
        let (extent, _) = super::slots::extents(sector, 512);
        let disk = self.volume(id).and_then(|volume| volume.disk.as_ref());
        disk.is_some_and(|disk| disk.bitmap.any_set(sector, 512) || disk.log.is_in_use(extent))
    }

    /// The bit of this sector; `None` without a disk.
    pub fn is_out_of_sync(&self, id: VolumeId, sector: u64) -> Option<bool> {
        let disk = self.volume(id).and_then(|volume| volume.disk.as_ref());
        disk.map(|disk| disk.bitmap.any_set(sector, 512))
    }

    /// What is in use.
    pub fn usage(&self) -> Usage {
        let volumes = || self.volumes.iter().flatten();
        Usage {
            requests: self.requests.used(),
            peer_requests: self.peers.used(),
            buffered_bytes: self.buffered_bytes(),
            overlaps: self.overlaps.used(),
            log_extents: volumes().filter_map(|volume| volume.disk.as_ref()).map(|disk| disk.log.used()).sum(),
            holds: volumes().map(|volume| volume.holds).sum(),
            queued: self.local.len()
                + self.clears.len()
                + self.completions.len()
                + self.data_out.len()
                + self.control.len()
                + self.meta_out.len(),
        }
    }

    /// The disk options in force.
    pub fn disk_conf(&self, id: VolumeId) -> Option<&DiskConf> {
        self.volume(id).filter(|volume| volume.disk.is_some()).map(|volume| &volume.conf)
    }

    /// The net options in force.
    pub fn net_conf(&self) -> Option<&NetConf> {
        self.link.configured.then_some(&self.link.net)
    }

    /// The resource options in force.
    pub fn resource_opts(&self) -> &ResourceOpts {
        &self.options
    }

    /// The connection.
    pub fn connection_status(&self) -> ConnectionStatus {
        let all = Aggregates::of(self.volumes.iter().flatten().map(|volume| volume.state));
        ConnectionStatus {
            state: self.link.conn,
            configured: self.link.configured,
            peer_role: all.highest_peer,
            apv: self.link.apv,
            features: self.link.features,
            epochs: 1,
        }
    }

    /// The resource.
    pub fn resource_status(&self) -> ResourceStatus {
        let all = Aggregates::of(self.volumes.iter().flatten().map(|volume| volume.state));
        let ordering = self
            .volumes
            .iter()
            .flatten()
            .filter(|volume| volume.disk.is_some())
            .map(|volume| match (volume.conf.disk_flushes, volume.conf.disk_drain) {
                (true, _) => 2,
                (false, true) => 1,
                (false, false) => 0,
            })
            .min();
        ResourceStatus { role: all.highest_role, susp: self.susp, write_ordering: ordering.unwrap_or(2) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::TableLimits;
    use super::*;
    use crate::storage::HeapStorage;

    #[test]
    fn the_flags_told_with_the_peer_say_whether_the_own_disk_is_outdated() {
        let mut engine = Engine::<HeapStorage>::new(&Default::default(), TableLimits::default()).expect("memory");
        let volume = engine.add_volume(0, 0, 0).expect("a volume");
        let status = engine.volume_status(volume).expect("a volume");
        let told = |flags: MetaFlags| VolumeStatus { meta_flags: flags.0, ..status }.peer_flags();
        let (consistent, good) = (MetaFlags::CONSISTENT, MetaFlags::WAS_UP_TO_DATE);
        assert_eq!(told(MetaFlags::default()), 0);
        assert_eq!(told(consistent), 2);
        assert_eq!(told(MetaFlags(consistent.0 | good.0)), 0);
        assert_eq!(told(MetaFlags(consistent.0 | good.0 | MetaFlags::PEER_OUT_DATED.0)), 0);
        assert_eq!(told(MetaFlags(MetaFlags::CONNECTED_IND.0 | MetaFlags::FULL_SYNC.0)), 9);
    }
}
