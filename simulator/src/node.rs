//! One machine: its disks, which outlive a crash, and the engine with what its owner keeps for it, which do not.

use crate::disk::{DataDisk, MetaDisk, Stamp};
use crate::world::Unflushed;
use crate::Random;
use engine::netlink::ResourceOpts;
use engine::resource::{Engine, IoError, LocalIo, MetadataIo, Op, PeerId, RequestId, TableLimits, VolumeId};
use engine::storage::HeapStorage;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::{Deref, DerefMut};

/// The engine as the simulator uses it.
pub type HeapEngine = Engine<HeapStorage>;

/// The volume every run has; it is the first one.
pub const VOLUME: VolumeId = VolumeId(0);

/// Faults of a node's disks.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskFaults {
    /// What is wrong where a transfer fails; nothing in particular otherwise.
    pub error: Option<IoError>,
    /// Percentage of reads that fail.
    pub read_percent: u64,
    /// Percentage of writes that fail.
    pub write_percent: u64,
    /// It cannot discard, though it says that it can.
    pub no_discards: bool,
    /// Percentage of meta-data transfers that fail.
    pub meta_percent: u64,
    /// Percentage of flushes that fail, beside those that fail as writes do.
    pub flush_percent: u64,
    /// Pages of the bitmap cannot be written; the rest of the meta data can.
    pub no_pages: bool,
    /// Nothing comes back.
    pub hangs: bool,
    /// Everything takes so many times longer, less one.
    pub slowness: u64,
}

/// What a request of the application holds while the engine has it.
#[derive(Clone, Debug)]
pub struct Upper {
    /// The engine's name for it.
    pub request: RequestId,
    /// Number of the operation in the world's list.
    pub operation: usize,
    /// Data written, or room for what is read.
    pub data: Vec<Stamp>,
}

/// A transfer on the data disk.
#[derive(Clone, Debug)]
pub struct Transfer {
    /// The order.
    pub io: LocalIo,
    /// Volume.
    pub volume: VolumeId,
    /// Operation.
    pub op: Op,
    /// First sector.
    pub sector: u64,
    /// Data, for a write.
    pub data: Vec<Stamp>,
    /// Sectors.
    pub count: u64,
    /// Durable when completed.
    pub fua: bool,
    /// Flush first.
    pub preflush: bool,
    /// What the cache held when it was submitted.
    pub mark: u64,
    /// When that was.
    pub start_us: u64,
}

/// A transfer on a meta-data disk.
pub struct MetaTransfer {
    /// The order.
    pub io: MetadataIo,
    /// Volume.
    pub volume: VolumeId,
    /// Data, for a write.
    pub block: Box<[u8; 4096]>,
    /// What the cache of the data disk held when it was submitted.
    pub mark: u64,
    /// When that was.
    pub start_us: u64,
}

/// How far an attach has got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attaching {
    /// There is none.
    #[default]
    No,
    /// The engine has it.
    Begun,
    /// It begins again when the nodes have met.
    Waits,
}

/// What dies with a crash.
pub struct Running {
    /// The engine.
    pub engine: HeapEngine,
    /// By request slot.
    pub uppers: Vec<Option<Upper>>,
    /// By peer request slot.
    pub pages: Vec<Option<(PeerId, Vec<Stamp>)>>,
    /// Transfers on the data disk by number.
    pub transfers: BTreeMap<u64, Transfer>,
    /// Transfers on the meta-data disks by number.
    pub meta_transfers: BTreeMap<u64, MetaTransfer>,
    /// I/O was suspended after the last call of the engine.
    pub suspended: bool,
    /// Which kinds of events are in the queue already.
    pub scheduled: [bool; 8],
    /// When the connection thread may look for the peer again.
    pub establish_from_us: u64,
}

impl Running {
    /// A freshly booted machine: its volumes have no disks.
    pub fn new(limits: TableLimits, volumes: u8, options: &ResourceOpts) -> Self {
        let mut engine = HeapEngine::new(options, limits).expect("memory");
        for number in 0..volumes {
            assert_eq!(engine.add_volume(u16::from(number), u32::from(number), 0), Ok(VolumeId(number)));
        }
        Running {
            engine,
            uppers: (0..limits.requests).map(|_| None).collect(),
            pages: (0..limits.peer_requests).map(|_| None).collect(),
            transfers: BTreeMap::new(),
            meta_transfers: BTreeMap::new(),
            suspended: false,
            scheduled: [false; 8],
            establish_from_us: 0,
        }
    }
}

/// What a running machine keeps for one volume.
#[derive(Debug, Default)]
pub struct Device {
    /// Operations that the gate holds back, by number, in order of arrival.
    pub parked: VecDeque<usize>,
    /// The disks are open.
    pub backing_open: bool,
    /// The attach under way.
    pub attaching: Attaching,
    /// When the disks were closed last.
    pub released_us: u64,
}

/// A machine. Fields of a volume are those of the one the world looks at, see [`crate::World::at`].
pub struct Node {
    /// Number of its boots.
    pub incarnation: u32,
    /// When it was booted last.
    pub booted_us: u64,
    /// `None`: switched off.
    pub running: Option<Running>,
    /// By volume.
    pub volumes: Vec<Disks>,
    /// The volume that is looked at.
    pub looked_at: VolumeId,
}

impl Deref for Node {
    type Target = Disks;

    fn deref(&self) -> &Disks {
        &self.volumes[usize::from(self.looked_at.0)]
    }
}

impl DerefMut for Node {
    fn deref_mut(&mut self) -> &mut Disks {
        &mut self.volumes[usize::from(self.looked_at.0)]
    }
}

/// The disks of a volume.
pub struct Disks {
    /// What dies with a crash.
    pub device: Device,
    /// Data disk.
    pub data: DataDisk,
    /// Meta-data disk.
    pub meta: MetaDisk,
    /// Size of the backing device, in sectors.
    pub backing_sectors: u64,
    /// What that was when the tools found the meta data last.
    pub known_sectors: u64,
    /// Every generation that has been in the superblock on the disk.
    pub generations: BTreeSet<u64>,
    /// The extents in the activity log on the disk, while that is known.
    pub logged: Option<BTreeSet<u32>>,
    /// What the application or a resync has written and the data disk may still lose.
    pub unflushed: Vec<Unflushed>,
    /// Faults to come.
    pub faults: DiskFaults,
    /// Generations of the last two resyncs of which it was told to be the target.
    pub sync_uuids: [u64; 2],
    /// When the data disk failed last.
    pub failed_us: u64,
}

impl DiskFaults {
    /// Nothing fails.
    pub fn is_sound(&self) -> bool {
        self.read_percent + self.write_percent + self.meta_percent + self.flush_percent == 0 && !self.hangs
    }
}

impl Node {
    /// The power fails while these transfers are on the disks: each sector of a write is written or not.
    pub fn tear(&mut self, running: Running, internal: bool, random: &mut Random) {
        for transfer in running.transfers.into_values() {
            let disks = &mut self.volumes[usize::from(transfer.volume.0)];
            if !disks.device.backing_open {
                continue;
            }
            let stamps = match transfer.op {
                Op::Write => transfer.data,
                Op::Discard | Op::WriteZeroes { .. } => vec![0; transfer.count as usize],
                Op::Read | Op::Flush => continue,
            };
            for (sector, stamp) in (transfer.sector..).zip(stamps) {
                if random.percent(50) {
                    disks.data.write(sector, &[stamp], false);
                }
            }
        }
        for MetaTransfer { io, volume, block, mark, .. } in running.meta_transfers.into_values() {
            let disks = &mut self.volumes[usize::from(volume.0)];
            if !io.write || !disks.device.backing_open {
                continue;
            }
            let mut torn = disks.meta.read(io.sector);
            let mut begun = false;
            for sector in (0..io.size_bytes as usize).step_by(512).filter(|_| random.percent(50)) {
                torn[sector..sector + 512].copy_from_slice(&block[sector..sector + 512]);
                begun = true;
            }
            // The caches are flushed before the first sector of a durable write is on its way.
            let flushed = begun && io.durable;
            if flushed && internal {
                disks.data.flush_until(mark);
            }
            disks.meta.write(io.sector, &torn, io.size_bytes as usize, flushed);
        }
    }
}
