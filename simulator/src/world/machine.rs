//! A machine: power, meta data as the tools leave it, attaching its disk.

use super::*;
use engine::metadata::transaction;

impl World {
    /// The power of a machine fails.
    pub fn power_cut(&mut self, node: usize) {
        self.note(|| format!("node {node} POWER CUT"));
        let machine = &mut self.nodes[node];
        let mut random = self.random.clone();
        if let Some(running) = machine.running.take() {
            machine.tear(running, self.config.internal, &mut random);
        }
        machine.incarnation += 1;
        self.unfences[node] = false;
        self.helpers_due.retain(|(due, _)| *due != node);
        for disks in &mut machine.volumes {
            disks.logged = None;
            disks.unflushed.clear();
            disks.data.power_cut(&mut random);
            disks.meta.power_cut(&mut random);
            disks.device = Device::default();
        }
        self.random = random;
        for volume in self.volumes() {
            self.at(volume, |world| world.oracle.power_cut(node));
        }
        for operation in &mut self.operations {
            if operation.node == node && operation.result.is_none() {
                operation.lost = true;
            }
        }
        if let Some(connection) = self.connection.as_mut() {
            connection.ends[node] = None;
            if connection.ends[1 - node].is_none() {
                self.connection = None;
            }
        }
    }

    /// The machine boots; nothing is attached or connected.
    pub fn boot(&mut self, node: usize) {
        self.note(|| format!("node {node} boots"));
        assert!(self.nodes[node].running.is_none());
        self.nodes[node].running = Some(boot(&self.config));
        self.nodes[node].booted_us = self.now_us;
        // It knows nothing of its old connection.
        let now_us = self.now_us;
        if let Some(connection) = self.connection.as_mut() {
            let link = connection.number;
            let ends = [DATA, META].map(|socket| connection.pipes[node][socket].close(now_us + 1000));
            for socket in [DATA, META] {
                self.schedule_at(ends[socket], Event::Receive { node: 1 - node, link, socket });
            }
        }
    }

    /// Before the first resync: much of a disk holds something that nobody has written. A block that is not copied is noticed.
    pub fn leave_junk(&mut self, node: usize) {
        let mut random = Random::new(self.config.seed ^ 0x0000_1a57_c0de);
        let mut sector = random.below(600);
        while sector < self.config.sectors {
            let count = random.between(1, 400).min(self.config.sectors - sector);
            self.nodes[node].data.write(sector, &vec![JUNK; count as usize], true);
            sector += count + random.below(1200);
        }
    }

    /// As `drbdadm create-md`.
    pub fn create_md(&mut self, node: usize) {
        let layout = self.layout(node);
        let device_uuid = self.random.number();
        let mut block: Block = [0; 4096];
        Superblock::new_created(&layout, device_uuid, Striping::DEFAULT).encode(Magic::Clean, &mut block);
        let meta = &mut self.nodes[node].meta;
        meta.write(layout.superblock_sector, &block, 4096, true);
        write_empty_log(meta, &layout);
        for page in 0.. {
            let Some((sector, bytes)) = layout.bitmap_page(page) else { break };
            meta.write(sector, &[0xff; 4096], bytes as usize, true);
        }
    }

    /// As `drbdadm apply-al`, which precedes every attach. spec: metadata 4.6
    pub fn apply_al(&mut self, node: usize) {
        self.follow_the_disk(node);
        let layout = self.layout(node);
        let meta = &mut self.nodes[node].meta;
        let mut superblock = Superblock::decode_raw(&meta.read(layout.superblock_sector)).expect("superblock");
        let blocks = Striping::DEFAULT.blocks() as u32;
        let ring: Vec<Block> = (0..blocks).map(|number| meta.read(layout.transaction_sector(number))).collect();
        let mut table = vec![0u32; MAX_SLOTS];
        let found = replay(blocks, |index| ring.get(index as usize), &mut table);
        let primary = superblock.flags.contains(MetaFlags::PRIMARY_IND);
        match found {
            Replay::Replayed { active, .. } => {
                if primary {
                    for &extent in &table[..active] {
                        mark_extent(meta, &layout, extent);
                    }
                }
                write_empty_log(meta, &layout);
            }
            Replay::Nothing { torn } => {
                let elsewhere = |number: usize| transaction::decode(&ring[number]).is_err();
                assert!(!torn || !primary || !(1..ring.len()).any(elsewhere), "drbdmeta gives up: node {node}");
            }
            Replay::NoUsableLog | Replay::Damaged { .. } => {
                assert!(!primary, "the activity log of node {node} is damaged: {found:?}");
                write_empty_log(meta, &layout);
            }
        }
        superblock.flags.set(MetaFlags::AL_CLEAN);
        let mut block: Block = [0; 4096];
        superblock.encode(Magic::Clean, &mut block);
        self.nodes[node].meta.write(layout.superblock_sector, &block, 4096, true);
    }

    /// The superblock as it is on the disk.
    pub fn superblock(&self, node: usize) -> Superblock {
        self.find_meta(node, |sector| self.nodes[node].meta.read(sector)).1
    }

    /// Where the meta data is, and the superblock that a power cut leaves at least.
    pub(super) fn durable_meta(&self, node: usize) -> (Layout, Superblock) {
        self.find_meta(node, |sector| self.nodes[node].meta.durable(sector))
    }

    fn find_meta(&self, node: usize, read: impl Fn(u64) -> Block) -> (Layout, Superblock) {
        let machine = &self.nodes[node];
        // The disk may have grown, and the meta data not yet be at its end.
        let internal = self.config.internal;
        let found = [machine.backing_sectors, machine.known_sectors].into_iter().find_map(|sectors| {
            let superblock = Superblock::decode_raw(&read(layout(internal, sectors).superblock_sector)).ok()?;
            let striping = superblock.striping().ok()?;
            Some((layout_with(internal, sectors, striping), superblock))
        });
        found.expect("superblock")
    }

    /// Starts an attach; its result is that of [`World::admin_result`], or the error at once.
    ///
    /// # Errors
    /// The number of the reply.
    pub fn start_attach(&mut self, node: usize) -> Result<(), i32> {
        self.apply_al(node);
        self.begin_attach(node)
    }

    fn begin_attach(&mut self, node: usize) -> Result<(), i32> {
        self.nodes[node].logged = None;
        let block = self.nodes[node].meta.read(self.layout(node).superblock_sector);
        let backing = Backing {
            superblock: &block,
            index: index(self.config.internal),
            backing_sectors: self.device_sizes(node).backing_sectors,
            meta_sectors: self.device_sizes(node).meta_sectors,
            limits: LIMITS,
        };
        let conf = self.disk_conf();
        self.note(|| format!("node {node} attach"));
        let volume = self.volume;
        let plan = match self.engine_of(node).plan_attach(volume, &conf, &backing) {
            Ok(plan) => plan,
            Err(AdminResult { code: IN_TRANSIENT_STATE, .. }) => {
                self.nodes[node].device.attaching = Attaching::Waits;
                return Ok(());
            }
            Err(AdminResult { code, .. }) => {
                self.trace.push_back(format!("node {node} attach refused: {code}"));
                return Err(code);
            }
        };
        let tables = AttachTables::new(plan).expect("memory");
        let device = &mut self.nodes[node].device;
        device.backing_open = true;
        device.attaching = Attaching::Begun;
        self.engine(node, |engine, now| engine.attach(volume, &conf, &backing, tables, now));
        Ok(())
    }

    /// How far the attach of a volume has got.
    pub fn attaching(&self, node: usize, volume: VolumeId) -> Attaching {
        self.nodes[node].volumes[usize::from(volume.0)].device.attaching
    }

    /// What an answer means for the attach under way; `None`: it has to begin again.
    pub(super) fn attach_answered(&mut self, node: usize, code: i32) -> Option<i32> {
        let device = &mut self.nodes[node].device;
        let begun = std::mem::take(&mut device.attaching) == Attaching::Begun;
        if begun && code == IN_TRANSIENT_STATE {
            device.attaching = Attaching::Waits;
            return None;
        }
        Some(code)
    }

    /// Begins an attach again when the nodes have met and the devices of the last try are closed; an error at once. It is still the
    /// same command: nobody runs `apply-al` between.
    pub(super) fn attach_again(&mut self, node: usize) -> Option<i32> {
        let waits = self.nodes[node].device.attaching == Attaching::Waits;
        if !waits || self.engine_of(node).is_meeting() || self.status(node).has_disk {
            return None;
        }
        self.nodes[node].device.attaching = Attaching::No;
        self.begin_attach(node).err()
    }

    /// The disk has grown since the meta data was written: it is moved to the end. spec: metadata 9.8
    pub(super) fn follow_the_disk(&mut self, node: usize) {
        let (internal, known) = (self.config.internal, self.nodes[node].known_sectors);
        let (old, new) = (layout(internal, known), self.layout(node));
        self.nodes[node].known_sectors = self.nodes[node].backing_sectors;
        let meta = &mut self.nodes[node].meta;
        if Superblock::decode_raw(&meta.read(new.superblock_sector)).is_ok() {
            return;
        }
        let mut superblock = Superblock::decode_raw(&meta.read(old.superblock_sector)).expect("superblock");
        for number in 0..Striping::DEFAULT.blocks() as u32 {
            let block = meta.read(old.transaction_sector(number));
            meta.write(new.transaction_sector(number), &block, 4096, true);
        }
        let pages: Vec<Block> = (0..).map_while(|page| old.bitmap_page(page)).map(|(at, _)| meta.read(at)).collect();
        for (page, block) in pages.iter().enumerate() {
            let (sector, bytes) = new.bitmap_page(page as u64).expect("larger than before");
            meta.write(sector, block, bytes as usize, true);
        }
        superblock.set_layout(&new);
        let mut block: Block = [0; 4096];
        superblock.encode(superblock.magic, &mut block);
        meta.write(new.superblock_sector, &block, 4096, true);
    }

    /// As `drbdsetup resize`.
    #[track_caller]
    pub fn resize(&mut self, node: usize, parms: &ResizeParms) -> i32 {
        self.start_resize(node, parms);
        self.admin_answer(node)
    }

    /// The same without waiting for the answer.
    pub fn start_resize(&mut self, node: usize, parms: &ResizeParms) {
        let (volume, sizes) = (self.volume, self.device_sizes(node));
        self.note(|| format!("node {node} resize {parms:?}"));
        self.engine(node, |engine, now| {
            engine.device_sizes(volume, sizes);
            engine.admin(AdminRequest::Resize { volume, parms }, now);
        });
    }

    /// A lower disk becomes larger by so many sectors, which hold `stamp`.
    pub fn grow_disk(&mut self, node: usize, sectors: u64, stamp: Stamp) {
        let machine = &mut self.nodes[node];
        machine.backing_sectors += sectors;
        machine.logged = None;
        let end = machine.data.sectors() + sectors;
        machine.data.grow(end, stamp);
    }

    pub(super) fn device_sizes(&self, node: usize) -> DeviceSizes {
        let backing_sectors = self.nodes[node].backing_sectors;
        let meta_sectors = if self.config.internal { backing_sectors } else { META_SECTORS };
        DeviceSizes { backing_sectors, meta_sectors }
    }

    /// Where the meta data of a node belongs on its disk as it is now.
    pub fn layout(&self, node: usize) -> Layout {
        layout(self.config.internal, self.nodes[node].backing_sectors)
    }
}

const META_SECTORS: u64 = 1 << 16;
/// What a disk holds that had been used for something else.
const JUNK: Stamp = 1 << 52;

pub(super) fn boot(config: &Config) -> Running {
    #[allow(unused_mut)] // Only changed to be broken.
    let mut running = Running::new(config.limits, config.volumes, &config.resource);
    #[cfg(feature = "sabotage")]
    if let Some(how) = config.sabotage {
        running.engine.sabotage(how);
    }
    running
}

pub(super) fn index(internal: bool) -> MetaIndex {
    if internal {
        MetaIndex::Internal
    } else {
        MetaIndex::FlexibleExternal
    }
}

pub(super) fn layout(internal: bool, backing_sectors: u64) -> Layout {
    layout_with(internal, backing_sectors, Striping::DEFAULT)
}

fn layout_with(internal: bool, backing_sectors: u64, striping: Striping) -> Layout {
    let meta_sectors = if internal { backing_sectors } else { META_SECTORS };
    Layout::compute(index(internal), backing_sectors, meta_sectors, striping).expect("the meta data fits")
}

/// The answer to an attach that came while the nodes met: it has to wait.
const IN_TRANSIENT_STATE: i32 = -18;

/// Limits of the simulated disks.
const LIMITS: BackingLimits = BackingLimits {
    max_bio_bytes: 1 << 20,
    logical_block_bytes: 512,
    physical_block_bytes: 4096,
    alignment_offset_bytes: 0,
    io_min_bytes: 4096,
    io_opt_bytes: 0,
    max_discard_bytes: 64 << 20,
    discard_granularity_bytes: 4096,
};

pub(super) fn write_empty_log(meta: &mut MetaDisk, layout: &Layout) {
    let mut block: Block = [0; 4096];
    Transaction::INITIALIZED.encode(&mut block);
    for number in 0..Striping::DEFAULT.blocks() as u32 {
        meta.write(layout.transaction_sector(number), &block, 4096, true);
    }
}

/// Sets the 128 bytes of the bitmap that stand for an activity log extent.
pub(super) fn mark_extent(meta: &mut MetaDisk, layout: &Layout, extent: u32) {
    let Some((sector, bytes)) = layout.bitmap_page(u64::from(extent) / 32) else { return };
    let mut block = meta.read(sector);
    let first = (extent as usize % 32) * 128;
    block[first..first + 128].fill(0xff);
    meta.write(sector, &block, bytes as usize, true);
}
