// SPDX-License-Identifier: GPL-2.0
//! The devices a volume is made of: opened for an attach, used by requests until the detach.

use super::disk_io::{self, Context};
use super::faults::{self, Fault};
use super::volume::Volume;
use crate::linux::bdev::{Holder, LowerDevice};
use crate::linux::bio::{BioSet, Outcome, Owner};
use crate::linux::clock;
use crate::linux::mem::{PageChain, PagePool, PageReserve, PAGE_BYTES};
use crate::linux::storage::KernelStorage;
use crate::linux::work::Deferred;
use engine::metadata::layout::{superblock_sector, MetaIndex};
use engine::netlink::{DiskConf, RetCode};
use engine::resource::{self, AdminResult, AttachTables, BackingLimits, DeviceSizes, PeerId, RequestId};
use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::Arc;
use kernel::workqueue::{impl_has_work, new_work, Work, WorkItem};

/// Requests that every backing keeps in reserve for its lower devices.
const RESERVED_BIOS: u16 = 64;
/// Pages that every backing keeps in reserve for its meta data: what holds all others may be waiting for the activity log.
const RESERVED_META_PAGES: u16 = 4;
/// Largest request that goes over the wire, in bytes.
const MAX_REQUEST_BYTES: u32 = 1 << 20;
/// Smallest backing device, in sectors. spec: state-machine 13.1
const MIN_BACKING_SECTORS: u64 = 8;

impl_has_work! {
    impl HasWork<Self> for Backing { self.release }
}

/// The devices for an attach, open, with the superblock that was found on them.
pub(crate) struct Opened {
    backing: Arc<Backing>,
    superblock: PageChain,
    index: MetaIndex,
}

impl Opened {
    /// Opens the devices that `conf` names, for `volume` alone, and reads the superblock. May sleep.
    ///
    /// # Errors
    /// 104 or 105 when a device cannot be opened, 116 when devices and index do not go together, 111 when the disk cannot
    /// even hold a superblock, 118 when reading fails.
    // spec: state-machine 13.1 (2..4)
    #[inline(never)]
    pub(crate) fn open(volume: &Arc<Volume>, conf: &DiskConf) -> Result<Opened, RetCode> {
        let index = MetaIndex::from_i32(conf.meta_dev_idx).ok_or(RetCode::MdIdxInvalid)?;
        let own = Holder::new().map_err(|_| RetCode::Nomem)?;
        let data = open_device(volume, conf.backing_dev.as_str(), &own).ok_or(RetCode::OpenDisk)?;
        // Volumes may share a device of fixed areas; everything else is for this volume alone.
        let holder = match index {
            MetaIndex::Fixed(_) => &volume.resource.shared.meta_holder,
            _ => &own,
        };
        let meta = open_device(volume, conf.meta_dev.as_str(), holder).ok_or(RetCode::OpenMdDisk)?;
        let same = data.device_number() == meta.device_number();
        if same != index.is_internal() {
            return Err(RetCode::MdIdxInvalid);
        }
        let meta = if same { None } else { Some(meta) };
        let backing = Backing::new(volume.clone(), data, meta).map_err(|_| RetCode::Nomem)?;
        let superblock = backing.read_superblock(index)?;
        Ok(Opened { backing, superblock, index })
    }

    /// The devices.
    pub(crate) fn backing(&self) -> &Arc<Backing> {
        &self.backing
    }

    /// What the engine wants to know of them.
    pub(crate) fn describe(&self) -> Option<resource::Backing<'_>> {
        let DeviceSizes { backing_sectors, meta_sectors } = self.backing.sizes();
        Some(resource::Backing {
            superblock: self.superblock.first_page()?,
            index: self.index,
            backing_sectors,
            meta_sectors,
            limits: self.backing.limits(),
        })
    }
}

impl Opened {
    /// Makes the tables that the attach needs. May sleep.
    ///
    /// # Errors
    /// The reply, -18 if it has to be tried again later.
    #[inline(never)]
    pub(crate) fn make_tables(
        &self,
        volume: &Volume,
        conf: &DiskConf,
    ) -> Result<AttachTables<KernelStorage>, AdminResult> {
        let backing = self.describe().ok_or(RetCode::Nomem.number())?;
        let plan = volume.resource.locked.with(|locked| locked.engine.plan_attach(volume.id, conf, &backing))?;
        if faults::strikes(volume.minor, Fault::BitmapMemory) {
            return Err(RetCode::NomemBitmap.number().into());
        }
        AttachTables::new(plan).map_err(|code| code.number().into())
    }

    /// Begins the attach; its answer comes as that of any request of an administrator. The devices must have been given to the
    /// volume before. May sleep.
    #[inline(never)]
    pub(crate) fn begin(
        &self,
        volume: &Volume,
        conf: &DiskConf,
        tables: AttachTables<KernelStorage>,
    ) -> Result<(), i32> {
        let backing = self.describe().ok_or(RetCode::Nomem.number())?;
        let unused = disk_io::enter(&volume.resource, Context::Process, |locked| {
            locked.engine.attach(volume.id, conf, &backing, tables, clock::monotonic_ms())
        });
        drop(unused);
        Ok(())
    }
}

fn open_device(volume: &Volume, path: &str, holder: &Arc<Holder>) -> Option<LowerDevice> {
    let opened = CString::try_from_fmt(fmt!("{path}")).and_then(|path| LowerDevice::open(&path, holder));
    opened.inspect_err(|error| pr_err!("drbd{}: cannot open {}: {:?}\n", volume.minor, path, error)).ok()
}

/// The devices a volume is made of.
#[pin_data]
pub(crate) struct Backing {
    #[pin]
    release: Work<Backing>,
    #[pin]
    bios: BioSet<Backing>,
    data: LowerDevice,
    /// Where the meta data is, unless on the data device.
    meta: Option<LowerDevice>,
    meta_pages: Arc<PagePool>,
    /// Last, so that it is dropped when the devices are closed.
    volume: Counted,
}

/// A backing's reference to its volume, which the volume counts.
struct Counted(Arc<Volume>);

impl Counted {
    fn new(volume: Arc<Volume>) -> Counted {
        volume.count_backing();
        Counted(volume)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.discount_backing();
    }
}

/// Which of a volume's requests to a lower device.
pub(crate) enum Tag {
    /// The local part of an application's request.
    Request(RequestId),
    /// A read for an application's request into pages that are not those of the request.
    ReadCopy(RequestId),
    /// A read for the peer.
    PeerRead(PeerId),
    /// A write for the peer.
    PeerWrite(PeerId),
    /// A flush of the data device.
    Flush,
    /// A transfer on the meta-data device.
    Metadata(u32),
}

impl Backing {
    /// Takes over open devices. May sleep.
    ///
    /// # Errors
    /// `ENOMEM`.
    fn new(volume: Arc<Volume>, data: LowerDevice, meta: Option<LowerDevice>) -> Result<Arc<Backing>> {
        let meta_pages = PagePool::new(PageReserve::new(RESERVED_META_PAGES)?)?;
        let backing = Arc::pin_init(
            try_pin_init!(Backing {
                release <- new_work!("drbd::Backing::release"),
                bios <- BioSet::new(RESERVED_BIOS),
                data,
                meta,
                meta_pages,
                volume: Counted::new(volume),
            }? Error),
            GFP_KERNEL,
        )?;
        Ok(backing)
    }

    /// The minor of its volume.
    #[inline]
    pub(crate) fn minor(&self) -> u32 {
        self.volume.0.minor
    }

    /// The device with the data.
    #[inline]
    pub(crate) fn data(&self) -> &LowerDevice {
        &self.data
    }

    /// The device with the meta data.
    #[inline]
    pub(crate) fn meta(&self) -> &LowerDevice {
        self.meta.as_ref().unwrap_or(&self.data)
    }

    /// Where pages for meta data come from.
    #[inline]
    pub(crate) fn meta_pages(&self) -> &Arc<PagePool> {
        &self.meta_pages
    }

    /// Where pages for data come from.
    #[inline]
    pub(crate) fn page_pool(&self) -> &Arc<PagePool> {
        &self.volume.0.resource.pages
    }

    /// How large the devices are now.
    pub(crate) fn sizes(&self) -> DeviceSizes {
        DeviceSizes { backing_sectors: self.data.size_sectors(), meta_sectors: self.meta().size_sectors() }
    }

    /// What the data device can take.
    fn limits(&self) -> BackingLimits {
        let limits = self.data.limits();
        BackingLimits {
            max_bio_bytes: limits.max_request_bytes.min(MAX_REQUEST_BYTES),
            logical_block_bytes: limits.logical_block_bytes,
            physical_block_bytes: limits.physical_block_bytes,
            alignment_offset_bytes: limits.alignment_offset_bytes,
            io_min_bytes: limits.io_min_bytes,
            io_opt_bytes: limits.io_opt_bytes,
            max_discard_bytes: limits.max_discard_bytes,
            discard_granularity_bytes: limits.discard_granularity_bytes,
        }
    }

    /// Reads the superblock, and waits for it.
    // spec: metadata 2.3, 3
    fn read_superblock(&self, index: MetaIndex) -> Result<PageChain, RetCode> {
        if self.data.size_sectors() < MIN_BACKING_SECTORS {
            return Err(RetCode::DiskTooSmall);
        }
        let sector = superblock_sector(index, self.data.size_sectors()).map_err(|_| RetCode::MdDiskTooSmall)?;
        if faults::strikes(self.minor(), Fault::MetaRead) {
            return Err(RetCode::IoMdDisk);
        }
        let mut pages = PageChain::new(self.meta_pages(), PAGE_BYTES);
        self.meta().read_wait(sector, &mut pages).map_err(|_| RetCode::IoMdDisk)?;
        Ok(pages)
    }

    /// What was read for an application's request goes into it, if it still waits for that.
    fn copy_to_request(&self, request: RequestId, pages: &PageChain) {
        let lent = self.volume.0.resource.look(|locked| {
            let wanted = locked.engine.request(request).is_some_and(|view| view.on_disk);
            locked.uppers.get(request).filter(|_| wanted).map(|upper| upper.lend())
        });
        if let Some(mut lent) = lent {
            disk_io::copy(pages.segments(), lent.segments_mut());
        }
    }

    /// Each device once.
    pub(super) fn devices(&self) -> impl Iterator<Item = &LowerDevice> {
        [Some(&self.data), self.meta.as_ref()].into_iter().flatten()
    }
}

impl WorkItem for Backing {
    type Pointer = Arc<Backing>;

    fn run(this: Arc<Backing>) {
        drop(this);
    }
}

impl Deferred for Backing {}

impl Owner for Backing {
    type Tag = Tag;

    #[inline]
    fn bios(&self) -> &BioSet<Backing> {
        &self.bios
    }

    #[inline]
    fn device(&self, tag: &Tag) -> &LowerDevice {
        match tag {
            Tag::Metadata(_) => self.meta(),
            Tag::Request(_) | Tag::ReadCopy(_) | Tag::PeerRead(_) | Tag::PeerWrite(_) | Tag::Flush => &self.data,
        }
    }

    fn done(&self, tag: Tag, outcome: Outcome) {
        let now_ms = clock::monotonic_ms();
        let result = disk_io::result_of(outcome.result);
        let id = self.volume.0.id;
        let mut pages = outcome.pages;
        if let (Tag::ReadCopy(request), Some(pages), true) = (&tag, &pages, result.is_ok()) {
            self.copy_to_request(*request, pages);
        }
        disk_io::enter(&self.volume.0.resource, Context::Atomic, |locked| match tag {
            Tag::Request(request) | Tag::ReadCopy(request) => locked.engine.request_io_done(request, result, now_ms),
            Tag::PeerRead(peer) => {
                if let Some(read) = pages.take() {
                    pages = locked.peer_pages.put(peer, read);
                }
                locked.engine.peer_io_done(peer, result, now_ms);
            }
            Tag::PeerWrite(peer) => locked.engine.peer_io_done(peer, result, now_ms),
            Tag::Flush => locked.engine.flush_done(id, result, now_ms),
            Tag::Metadata(ticket) => {
                if let Some(page) = pages.as_ref().and_then(PageChain::first_page) {
                    locked.engine.metadata_io_done(id, ticket, result, page, now_ms);
                }
            }
        });
    }
}
