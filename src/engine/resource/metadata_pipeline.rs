// SPDX-License-Identifier: GPL-2.0
//! What is written to the meta-data area, and in which order.
//!
//! One operation at a time: a superblock, an activity log transaction (bitmap pages of evicted extents first, then the
//! block), a bitmap job, or loading the bitmap at attach. The owner pulls the transfers one by one
//! ([`Engine::next_metadata_io`]) and may have several pages of one operation in flight. An operation that needs no
//! transfer finishes at once.
//!
//! # Ordering rules carried out here (spec: metadata 8)
//! * bitmap pages of evicted extents are on the disk before, or made durable by the PREFLUSH of, the activity log block
//!   that evicts them;
//! * bitmap pages that changed are on the disk before a superblock without PRIMARY_IND is: from then on a crash does not
//!   make the activity log stand in for them;
//! * before anything is written that says that blocks are in sync, the data disk's cache is flushed: bits cleared by a
//!   resync stay in core until then, and while pages are on their way no bit is cleared by data that is in the cache;
//!   with external meta data also before extents are evicted and before PRIMARY_IND goes (internal meta data is written
//!   with PREFLUSH to the same disk);
//! * FULL_SYNC is durable before all bits are set, and cleared only after the bitmap is written; the same goes for another
//!   size of the device or another place of the meta data, with AL_DISABLED, because neither log nor bitmap can be
//!   trusted meanwhile;
//! * new UUIDs are durable before they are communicated: packets carry the superblock version they wait for.

use super::api::{IoResult, MetadataIo, VolumeId, Wakes};
use super::volume::{AttachedDisk, DiskError, FlushFor, Release};
use super::Engine;
use crate::bitmap::Pages;
use crate::metadata::superblock::{Magic, MetaFlags, Superblock};
use crate::metadata::{Block, BLOCK_BYTES};
use crate::netlink::DiskConf;
use crate::storage::Storage;

/// What happens when a bitmap job is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    Nothing,
    /// The pages must not stay in the disk's cache: the superblock follows, with a flush before it.
    Flush,
    /// The attach goes on.
    Attached,
    /// The full sync asked for by the administrator starts, as source or target.
    StartSource,
    StartTarget,
    /// The disk is released.
    Detached,
    /// The resync starts, this node being the target.
    SyncTarget,
    /// The administrator's command is finished.
    Admin,
    /// The bitmap was cleared because the initial sync is skipped.
    Skipped,
    /// The device has another size, or the meta data another place.
    Resized,
}

/// Work on the whole bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// Write the pages that changed.
    Write(Then),
    /// Set all bits, crash safe. spec: metadata 5.3
    SetAll(Then),
    /// Clear all bits. spec: metadata 5.4
    ClearAll(Then),
    /// Read all pages.
    Load,
    /// Write nothing until the tables for another size are there.
    Hold,
    /// Write superblock, activity log and bitmap for another size or at another place. spec: metadata 7.2 (5)
    Rewrite(Rewrite),
}

/// How everything is written anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rewrite {
    /// The areas are at another place: every page and the whole log.
    pub(super) moved: bool,
    /// FULL_SYNC as it was before.
    pub(super) full_sync: bool,
    pub(super) then: Then,
}

/// How far that has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The superblock says that neither log nor bitmap can be trusted.
    Announce {
        version: u32,
    },
    /// So many blocks of the log's ring are left.
    Log {
        left: u64,
    },
    Pages,
    /// The superblock says that they can be trusted again.
    Close {
        version: u32,
    },
}

/// What the pipeline is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Current {
    Idle,
    /// The data disk's cache is being flushed; then the transaction that was begun, or whatever comes first.
    DataFlush {
        transaction: bool,
    },
    /// It has been flushed; the next operation is chosen.
    DataFlushed,
    Superblock(u32),
    /// Bitmap pages of the extents that the transaction evicts.
    EvictedPages,
    Transaction,
    Pages(Job),
    /// SetAll waits for FULL_SYNC to be durable (true) or cleared (false); then the job goes on.
    FullSync {
        set: bool,
        version: u32,
        then: Then,
    },
    Load {
        next: u64,
    },
    /// Nothing is written until the owner has made tables.
    Held {
        told: bool,
    },
    Rewrite(Stage, Rewrite),
}

/// What the engine has to do after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    SuperblockDurable(u32),
    TransactionDone,
    JobDone(Job),
    /// Nothing is on its way; tables of another size can be put in.
    Held,
    Failed,
}

enum Step {
    Io(MetadataIo),
    /// Flush the data disk.
    Flush,
    Event(Event),
    Wait,
}

const MAX_JOBS: usize = 8;
const READ_TICKET: u32 = 0x8000_0000;

/// The state of one volume's meta-data I/O.
pub(super) struct Pipeline {
    current: Current,
    in_flight: u32,
    /// When something was given to the device, or came back from it, last.
    moved_ms: u64,
    failed: bool,
    /// Version of the superblock in core; the version last written; the version on the disk.
    version: u32,
    durable: u32,
    /// PRIMARY_IND of the superblock on the disk, and of the one on its way there.
    primary_on_disk: bool,
    primary_written: bool,
    /// PRIMARY_IND of the one on the disk when everything began to be written anew.
    primary_before: bool,
    /// The disk's cache may hold data that neither a bit nor the activity log covers: bits were cleared because of it, or it was
    /// written before the disk was attached, and the log applied since, or while the log was not used.
    unflushed: bool,
    /// The log has come into use again while a flush was on its way: another one has to follow.
    resumed: bool,
    /// The bitmap in core is the one on the disk with the changes since, not what there was before it was read.
    loaded: bool,
    /// The activity log has not been written to its place yet.
    log_absent: bool,
    transaction_wanted: bool,
    /// One has begun since the owner asked last: without a log on the disk it may be over by now as well.
    transaction_begun: bool,
    /// Of the next transaction. The ring is empty when the disk is attached. (The C module goes on where it has been: where that one is
    /// torn drbdmeta takes the ring for damaged.)
    transaction_number: u32,
    jobs: [Option<Job>; MAX_JOBS],
}

impl Pipeline {
    /// Nothing to do; the superblock in core is the one on the disk. What this node wrote before it let the disk go may still be in
    /// its cache; the log told of it so far, and a new one is begun. (The C module does not care.)
    pub(super) fn new(version: u32, primary_on_disk: bool) -> Self {
        Pipeline {
            current: Current::Idle,
            in_flight: 0,
            moved_ms: 0,
            failed: false,
            version,
            durable: version,
            primary_on_disk,
            primary_written: primary_on_disk,
            primary_before: primary_on_disk,
            unflushed: true,
            resumed: false,
            loaded: false,
            log_absent: false,
            transaction_wanted: false,
            transaction_begun: false,
            transaction_number: 0,
            jobs: [None; MAX_JOBS],
        }
    }

    /// What was written while the activity log was not used may still be in the data disk's cache. The bits that tell of it may be
    /// cleared from now on.
    pub(super) fn log_resumed(&mut self) {
        self.unflushed = true;
        self.resumed = matches!(self.current, Current::DataFlush { .. });
    }

    /// The superblock in core has changed.
    pub(super) fn touch(&mut self) {
        self.version = self.version.wrapping_add(1);
    }

    /// Version of the superblock in core.
    pub(super) fn version(&self) -> u32 {
        self.version
    }

    /// True when that version, or a later one, is on the disk.
    pub(super) fn is_durable(&self, version: u32) -> bool {
        (self.durable.wrapping_sub(version) as i32) >= 0
    }

    /// The superblock in core differs from the one on the disk.
    pub(super) fn is_dirty(&self) -> bool {
        self.version != self.durable
    }

    /// The superblock on the disk says that a crash has to be followed by a replay of the activity log.
    pub(super) fn counts_as_primary(&self) -> bool {
        self.primary_on_disk
    }

    /// So it does, and so does the one that is on its way there, if there is one: that may take the other's place at any moment.
    pub(super) fn log_is_meaningful(&self) -> bool {
        self.primary_on_disk && self.primary_written
    }

    fn is_on_disk(&mut self, version: u32) {
        self.durable = version;
        self.primary_on_disk = self.primary_written;
    }

    /// Extents changed: a transaction has to be written.
    pub(super) fn want_transaction(&mut self) {
        self.transaction_wanted = true;
    }

    /// Queues a job; false when too many are queued.
    #[must_use]
    pub(super) fn queue(&mut self, job: Job) -> bool {
        match self.jobs.iter_mut().find(|place| place.is_none()) {
            Some(place) => {
                *place = Some(job);
                true
            }
            None => false,
        }
    }

    fn take_job(&mut self) -> Option<Job> {
        let [first, ..] = &mut self.jobs;
        let job = first.take();
        self.jobs.rotate_left(1);
        job
    }

    /// True while jobs that change many bits are queued or under way.
    pub(super) fn changes_all_bits(&self) -> bool {
        let bulk = |job: &Job| !matches!(job, Job::Write(_));
        self.jobs.iter().flatten().any(bulk)
            || match self.current {
                Current::Pages(job) => bulk(&job),
                Current::FullSync { .. } | Current::Load { .. } | Current::Held { .. } | Current::Rewrite(..) => true,
                _ => false,
            }
    }

    /// Every block counts as out of sync, though the bits do not say so yet.
    pub(super) fn is_about_to_set_all(&self) -> bool {
        self.jobs.iter().flatten().any(|job| matches!(job, Job::SetAll(_)))
            || matches!(self.current, Current::FullSync { set: true, .. })
    }

    /// What is on its way are pages of the bitmap.
    fn writes_pages(&self) -> bool {
        matches!(self.current, Current::Pages(_) | Current::EvictedPages | Current::Rewrite(Stage::Pages, _))
    }

    /// Since when the device has not answered.
    pub(super) fn waits_since_ms(&self) -> Option<u64> {
        (self.in_flight > 0).then_some(self.moved_ms)
    }

    /// True while nothing is written because tables of another size are awaited.
    pub(super) fn is_held(&self) -> bool {
        matches!(self.current, Current::Held { .. })
    }

    /// There will be no other tables: go on as before.
    pub(super) fn end_hold(&mut self) {
        if self.is_held() {
            self.current = Current::Idle;
        }
    }
}

impl<S: Storage> AttachedDisk<S> {
    fn step(&mut self, size_sectors: u64, conf: &DiskConf, buffer: &mut Block) -> Step {
        let durable_writes = conf.md_flushes;
        if matches!(self.pipeline.current, Current::Idle | Current::DataFlushed) && !self.choose(conf.disk_flushes) {
            self.pipeline.current = Current::Idle;
            return Step::Wait;
        }
        match self.pipeline.current {
            Current::Idle | Current::DataFlushed => Step::Wait,
            Current::DataFlush { .. } if self.pipeline.in_flight > 0 => Step::Wait,
            Current::DataFlush { .. } => {
                self.pipeline.in_flight = 1;
                Step::Flush
            }
            Current::Held { told } => {
                self.pipeline.current = Current::Held { told: true };
                if told {
                    Step::Wait
                } else {
                    Step::Event(Event::Held)
                }
            }
            Current::Rewrite(Stage::Log { left: 0 }, rewrite) => {
                self.pipeline.log_absent = false;
                self.pipeline.current = Current::Rewrite(Stage::Pages, rewrite);
                self.step(size_sectors, conf, buffer)
            }
            Current::Rewrite(Stage::Log { .. }, _) => {
                if self.pipeline.in_flight > 0 || !self.log.start_transaction() {
                    return Step::Wait;
                }
                self.write_transaction(durable_writes, buffer)
            }
            Current::Superblock(_)
            | Current::FullSync { .. }
            | Current::Rewrite(Stage::Announce { .. } | Stage::Close { .. }, _) => {
                if self.pipeline.in_flight > 0 {
                    return Step::Wait;
                }
                self.pipeline.in_flight = 1;
                self.superblock.la_size_sectors = size_sectors;
                let superblock = self.superblock_to_write();
                self.pipeline.primary_written = superblock.flags.contains(MetaFlags::PRIMARY_IND);
                let magic = if self.in_use { Magic::Unclean } else { Magic::Clean };
                superblock.encode(magic, buffer);
                Step::Io(self.block_io(self.layout.superblock_sector, durable_writes))
            }
            Current::EvictedPages => match self.next_page(Pages::Hinted, buffer) {
                Some(io) => Step::Io(io),
                None if self.pipeline.in_flight > 0 => Step::Wait,
                None if self.pipeline.failed => self.finish(conf),
                None => {
                    self.pipeline.current = Current::Transaction;
                    if self.superblock.flags.contains(MetaFlags::AL_DISABLED) {
                        return self.finish(conf);
                    }
                    self.write_transaction(durable_writes, buffer)
                }
            },
            Current::Transaction => Step::Wait,
            Current::Pages(_) | Current::Rewrite(Stage::Pages, _) => match self.next_page(Pages::Changed, buffer) {
                Some(io) => Step::Io(io),
                None if self.pipeline.in_flight > 0 => Step::Wait,
                None => self.finish(conf),
            },
            Current::Load { next } => {
                if let Some((sector, size_bytes)) =
                    (next < self.bitmap.page_count()).then(|| self.layout.bitmap_page(next)).flatten()
                {
                    self.pipeline.current = Current::Load { next: next + 1 };
                    self.pipeline.in_flight += 1;
                    let ticket = u32::try_from(next).unwrap_or(0) | READ_TICKET;
                    return Step::Io(MetadataIo { ticket, write: false, sector, size_bytes, durable: false });
                }
                if self.pipeline.in_flight > 0 {
                    return Step::Wait;
                }
                self.bitmap.finish_load();
                self.pipeline.loaded = !self.pipeline.failed;
                self.finish(conf)
            }
        }
    }

    fn write_transaction(&mut self, durable_writes: bool, buffer: &mut Block) -> Step {
        self.pipeline.in_flight = 1;
        self.log.encode_transaction(self.pipeline.transaction_number, buffer);
        let sector = self.layout.transaction_sector(self.pipeline.transaction_number);
        Step::Io(self.block_io(sector, durable_writes))
    }

    /// While there is no log where it will be, also where the disk has failed before it was there, the superblock must not ask
    /// the tools to replay it after a crash: they would find none and give up. That a Primary crashed is told by the other flag;
    /// the full sync takes the place of the log. A demotion while everything is written anew is told by the superblock after that, in
    /// its order with the disk's cache and the bitmap.
    fn superblock_to_write(&self) -> Superblock {
        let mut superblock = self.superblock;
        if self.pipeline.primary_before && matches!(self.pipeline.current, Current::Rewrite(..)) {
            superblock.flags.assign(MetaFlags::PRIMARY_IND, true);
        }
        if self.pipeline.log_absent && superblock.flags.contains(MetaFlags::PRIMARY_IND) {
            superblock.flags.assign(MetaFlags::PRIMARY_IND, false);
            superblock.flags.assign(MetaFlags::CRASHED_PRIMARY, true);
        }
        superblock
    }

    /// Size or place have changed in core: everything is written anew. spec: metadata 7.2 (5)
    pub(super) fn begin_rewrite(&mut self, rewrite: Rewrite) {
        self.pipeline.primary_before = self.pipeline.primary_on_disk;
        self.assign_flag(MetaFlags::FULL_SYNC, true);
        self.assign_flag(MetaFlags::AL_DISABLED, true);
        if rewrite.moved {
            self.bitmap.mark_all_pages();
            self.pipeline.log_absent = true;
        }
        let version = self.pipeline.version;
        self.pipeline.current = Current::Rewrite(Stage::Announce { version }, rewrite);
    }

    /// A step of [`AttachedDisk::begin_rewrite`] is on the disk.
    fn rewrite_step(&mut self, stage: Stage, rewrite: Rewrite, conf: &DiskConf) -> Step {
        let next = match stage {
            Stage::Announce { version } => {
                self.pipeline.is_on_disk(version);
                // Also where nothing is logged: the tools look for a log there after a crash, and the place may hold anything.
                let blocks = if rewrite.moved { self.layout.striping.blocks() } else { 0 };
                Stage::Log { left: blocks }
            }
            Stage::Log { left } => {
                self.log.committed();
                self.pipeline.transaction_number = self.pipeline.transaction_number.wrapping_add(1);
                Stage::Log { left: left.saturating_sub(1) }
            }
            Stage::Pages => {
                self.assign_flag(MetaFlags::FULL_SYNC, rewrite.full_sync);
                self.assign_flag(MetaFlags::AL_DISABLED, !conf.al_updates);
                Stage::Close { version: self.pipeline.version }
            }
            Stage::Close { version } => {
                self.pipeline.is_on_disk(version);
                if self.pipeline.primary_on_disk && !self.superblock.flags.contains(MetaFlags::PRIMARY_IND) {
                    self.pipeline.touch();
                }
                self.pipeline.current = Current::Idle;
                return Step::Event(Event::JobDone(Job::Rewrite(rewrite)));
            }
        };
        self.pipeline.current = Current::Rewrite(next, rewrite);
        Step::Wait
    }

    /// Picks the next operation. The superblock goes first: its PRIMARY_IND gives the activity log its meaning.
    fn choose(&mut self, flushes: bool) -> bool {
        let flushed = self.pipeline.current == Current::DataFlushed || !flushes;
        let external = !self.layout.index.is_internal();
        self.pipeline.failed = false;
        let demotes = self.pipeline.primary_on_disk && !self.superblock.flags.contains(MetaFlags::PRIMARY_IND);
        let pages_first = demotes && self.page_to_write(Pages::Changed).is_some();
        let without_transaction = pages_first || self.pipeline.is_dirty() || !self.pipeline.transaction_wanted;
        let something = pages_first || self.pipeline.is_dirty() || self.pipeline.jobs.iter().any(Option::is_some);
        // Before the bitmap is there nothing is written that says so.
        let unflushed = self.pipeline.unflushed && self.pipeline.loaded;
        let flush = unflushed || (demotes && external);
        if !flushed && flush && without_transaction && something {
            self.pipeline.current = Current::DataFlush { transaction: false };
        } else if pages_first {
            self.pipeline.current = Current::Pages(Job::Write(Then::Nothing));
        } else if self.pipeline.is_dirty() {
            self.pipeline.current = Current::Superblock(self.pipeline.version);
        } else if self.pipeline.transaction_wanted {
            self.pipeline.transaction_wanted = false;
            if !self.log.start_transaction() {
                return false;
            }
            self.pipeline.transaction_begun = true;
            let mut evicts = false;
            for extent in self.log.evicted_extents() {
                self.bitmap.hint_extent(extent);
                evicts = true;
            }
            let flush = flushes && (self.pipeline.unflushed || (evicts && external));
            self.pipeline.current =
                if flush { Current::DataFlush { transaction: true } } else { Current::EvictedPages };
        } else {
            match self.pipeline.take_job() {
                None => return false,
                Some(Job::SetAll(then)) => {
                    self.assign_flag(MetaFlags::FULL_SYNC, true);
                    let version = self.pipeline.version;
                    self.pipeline.current = Current::FullSync { set: true, version, then };
                }
                Some(Job::ClearAll(then)) => {
                    self.log_suspended = false;
                    self.bitmap.clear_all();
                    self.pipeline.current = Current::Pages(Job::ClearAll(then));
                }
                Some(Job::Load) => self.pipeline.current = Current::Load { next: 0 },
                Some(Job::Hold) => self.pipeline.current = Current::Held { told: false },
                Some(Job::Rewrite(rewrite)) => {
                    let full_sync = rewrite.full_sync && self.superblock.flags.contains(MetaFlags::FULL_SYNC);
                    self.begin_rewrite(Rewrite { full_sync, ..rewrite });
                }
                Some(job @ Job::Write(_)) => self.pipeline.current = Current::Pages(job),
            }
        }
        true
    }

    fn block_io(&self, sector: u64, durable: bool) -> MetadataIo {
        MetadataIo { ticket: 0, write: true, sector, size_bytes: BLOCK_BYTES as u32, durable }
    }

    /// A bitmap that was never loaded must not take the place of the one on the disk.
    fn page_to_write(&mut self, which: Pages) -> Option<u64> {
        self.pipeline.loaded.then(|| self.bitmap.next_page_to_write(which)).flatten()
    }

    fn next_page(&mut self, which: Pages, buffer: &mut Block) -> Option<MetadataIo> {
        if self.pipeline.failed {
            return None;
        }
        let page = self.page_to_write(which)?;
        self.bitmap.copy_page(page, buffer);
        // Changed again meanwhile, it waits: two writes of one page would end in any order.
        self.bitmap.lock_page_io(page);
        let Some((sector, size_bytes)) = self.layout.bitmap_page(page) else {
            self.bitmap.unlock_page_io(page);
            self.pipeline.failed = true;
            return None;
        };
        self.pipeline.in_flight += 1;
        Some(MetadataIo { ticket: u32::try_from(page).unwrap_or(0), write: true, sector, size_bytes, durable: false })
    }

    /// The operation under way has no transfer left.
    fn finish(&mut self, conf: &DiskConf) -> Step {
        let current = core::mem::replace(&mut self.pipeline.current, Current::Idle);
        let failed = core::mem::take(&mut self.pipeline.failed);
        if failed {
            let log = matches!(current, Current::EvictedPages | Current::Transaction);
            if log || matches!(current, Current::Rewrite(Stage::Log { .. }, _)) {
                // Nobody may go on as if it had been written; the disk fails and the writes go on without it.
                self.log.committed();
            }
            if matches!(current, Current::EvictedPages | Current::Pages(_) | Current::Rewrite(Stage::Pages, _)) {
                // Which of them are on the disk is not known any more.
                self.bitmap.mark_all_pages();
            }
            return Step::Event(Event::Failed);
        }
        match current {
            Current::Superblock(version) => {
                self.pipeline.is_on_disk(version);
                Step::Event(Event::SuperblockDurable(version))
            }
            Current::FullSync { set: true, version, then } => {
                self.pipeline.is_on_disk(version);
                self.bitmap.set_all();
                self.pipeline.loaded = true;
                self.pipeline.current = Current::Pages(Job::SetAll(then));
                Step::Event(Event::SuperblockDurable(version))
            }
            Current::Pages(Job::SetAll(then)) => {
                self.assign_flag(MetaFlags::FULL_SYNC, false);
                let version = self.pipeline.version;
                self.pipeline.current = Current::FullSync { set: false, version, then };
                Step::Wait
            }
            Current::FullSync { set: false, version, then } => {
                self.pipeline.is_on_disk(version);
                Step::Event(Event::JobDone(Job::SetAll(then)))
            }
            Current::Transaction => {
                self.log.committed();
                if !self.superblock.flags.contains(MetaFlags::AL_DISABLED) {
                    self.pipeline.transaction_number = self.pipeline.transaction_number.wrapping_add(1);
                }
                Step::Event(Event::TransactionDone)
            }
            Current::Pages(job) => Step::Event(Event::JobDone(job)),
            Current::Load { .. } => Step::Event(Event::JobDone(Job::Load)),
            Current::Rewrite(stage, rewrite) => self.rewrite_step(stage, rewrite, conf),
            Current::Idle
            | Current::EvictedPages
            | Current::DataFlush { .. }
            | Current::DataFlushed
            | Current::Held { .. } => Step::Wait,
        }
    }

    /// The data disk has been flushed, or could not be: then nothing is known to be in sync.
    fn data_flushed(&mut self, ok: bool) {
        self.pipeline.in_flight = 0;
        // Not earlier: another flush may fail while this one is on its way, and then this one finds nothing to write.
        self.pipeline.unflushed = core::mem::take(&mut self.pipeline.resumed);
        if !ok {
            self.bitmap.set_all();
        }
        self.pipeline.current = match self.pipeline.current {
            Current::DataFlush { transaction: true } => Current::EvictedPages,
            Current::DataFlush { transaction: false } => Current::DataFlushed,
            current => current,
        };
    }

    /// The data disk's cache could not be flushed: what was in it may be gone, also what both nodes count as written long ago.
    /// Where the disk is let go for that, and the activity log applied when it comes back, only what a resync wrote is not
    /// covered by the log.
    pub(super) fn cache_lost(&mut self, stays: bool) {
        if stays || self.pipeline.unflushed {
            self.bitmap.set_all();
        }
    }

    /// Data was written that is the same as the peer's. While pages are being written the bits stay: they would be
    /// cleared on the disk before the data is durable. The resync comes back to them. True: they have been cleared.
    pub(super) fn written_in_sync(&mut self, sector: u64, size_bytes: u32) -> bool {
        let writing = matches!(
            self.pipeline.current,
            Current::DataFlush { .. }
                | Current::DataFlushed
                | Current::EvictedPages
                | Current::Pages(_)
                | Current::Held { .. }
                | Current::Rewrite(..)
        );
        if !writing {
            self.bitmap.clear_range_sectors(sector, size_bytes);
            self.pipeline.unflushed = true;
        }
        !writing
    }
}

impl<S: Storage> Engine<S> {
    /// The next transfer on the meta-data device of a volume, with its contents in `buffer` if it is a write.
    /// `None`: nothing now, wait for [`Wakes::METADATA`].
    pub fn next_metadata_io(&mut self, id: VolumeId, buffer: &mut Block) -> Option<MetadataIo> {
        let now_ms = self.now_ms;
        loop {
            let volume = self.volume_mut(id)?;
            let size_sectors = volume.size_sectors;
            let Volume { disk, log, peer_log, counters, conf, .. } = volume;
            // Once the owner has been told to close the devices, they are not touched any more.
            let disk = disk.as_mut().filter(|disk| disk.release != Release::Releasing)?;
            let before = disk.pipeline.current;
            let step = disk.step(size_sectors, conf, buffer);
            if matches!(step, Step::Io(_) | Step::Flush) {
                disk.pipeline.moved_ms = now_ms;
            }
            if core::mem::take(&mut disk.pipeline.transaction_begun) {
                log.begin_transaction();
                peer_log.begin_transaction();
            }
            match step {
                Step::Io(io) => {
                    let current = disk.pipeline.current;
                    let rewritten = matches!(current, Current::Rewrite(Stage::Pages, _));
                    if rewritten || matches!(current, Current::Pages(_) | Current::EvictedPages) {
                        counters.bitmap_writes = counters.bitmap_writes.wrapping_add(1);
                    }
                    return Some(io);
                }
                Step::Event(event) => self.metadata_event(id, event),
                Step::Flush => self.submit_flush(id, FlushFor::Metadata),
                Step::Wait => {
                    let again = self.volume(id)?.disk.as_ref().is_some_and(|disk| {
                        let current = disk.pipeline.current;
                        let goes_on = matches!(current, Current::FullSync { .. } | Current::Rewrite(..));
                        goes_on && current != before && disk.pipeline.in_flight == 0
                    });
                    if !again {
                        return None;
                    }
                }
            }
        }
    }

    /// A transfer of [`Engine::next_metadata_io`] has completed; `buffer` holds what was read.
    pub fn metadata_io_done(&mut self, id: VolumeId, ticket: u32, result: IoResult, buffer: &Block, now_ms: u64) {
        self.now_ms = now_ms;
        let Some(volume) = self.volume_mut(id) else { return };
        let Volume { disk: Some(disk), conf, .. } = volume else { return };
        disk.pipeline.in_flight = disk.pipeline.in_flight.saturating_sub(1);
        disk.pipeline.moved_ms = now_ms;
        if disk.pipeline.writes_pages() {
            disk.bitmap.unlock_page_io(u64::from(ticket));
        }
        if result.is_err() {
            disk.pipeline.failed = true;
        } else if ticket & READ_TICKET != 0 {
            disk.bitmap.load_page(u64::from(ticket & !READ_TICKET), buffer);
        }
        let single = match disk.pipeline.current {
            Current::Superblock(_) | Current::FullSync { .. } | Current::Transaction => true,
            Current::Rewrite(stage, _) => stage != Stage::Pages,
            _ => false,
        };
        if disk.pipeline.in_flight == 0 && (single || disk.pipeline.failed) {
            if let Step::Event(event) = disk.finish(conf) {
                self.metadata_event(id, event);
            }
        }
        self.wakes.insert(Wakes::METADATA);
        self.check_disk_idle(id);
    }

    /// The data disk has been flushed for the sake of the meta data.
    pub(super) fn metadata_flushed(&mut self, id: VolumeId, ok: bool) {
        self.with_disk(id, |disk| disk.data_flushed(ok));
        self.wakes.insert(Wakes::METADATA);
    }

    fn metadata_event(&mut self, id: VolumeId, event: Event) {
        match event {
            Event::SuperblockDurable(_) => self.superblock_durable(id),
            Event::TransactionDone => {
                if let Some(volume) = self.volume_mut(id) {
                    volume.counters.activity_log_writes = volume.counters.activity_log_writes.wrapping_add(1);
                }
                self.activity_logged(id);
            }
            Event::JobDone(job) => {
                // Some jobs write the superblock on their way.
                self.superblock_durable(id);
                if matches!(job, Job::Rewrite(_)) {
                    // Who came while a block of the log was on its way has got no slot.
                    self.want_activity_retry(id);
                }
                self.bitmap_job_done(id, job);
            }
            Event::Held => self.order_tables(id),
            Event::Failed => {
                // Not whether the failure itself is what has the disk let go.
                let leaving = self.is_leaving(id);
                self.disk_failed(id, DiskError::Metadata);
                self.activity_logged(id);
                self.metadata_failed(id, leaving);
            }
        }
    }

    fn superblock_durable(&mut self, id: VolumeId) {
        let Some(volume) = self.volume_mut(id) else { return };
        let durable = volume
            .disk
            .as_ref()
            .is_none_or(|disk| volume.generation_version.is_none_or(|version| disk.pipeline.is_durable(version)));
        let lost = volume
            .disk
            .as_ref()
            .is_none_or(|disk| volume.loss_version.is_some_and(|version| disk.pipeline.is_durable(version)));
        if durable && volume.generation_version.take().is_some() {
            self.settle_all();
            self.want_activity_retry(id);
        }
        if lost {
            self.loss_recorded(id);
        }
        // Packets may have waited for it, and the first requests of a resync.
        self.wakes.insert(Wakes::DATA_SENDER);
        self.resync_turn(id);
        self.admin_step();
    }

    /// Has the superblock written if it differs from the one on the disk.
    pub(super) fn sync_metadata(&mut self, id: VolumeId) {
        if self.volume(id).and_then(|volume| volume.disk.as_ref()).is_some_and(|disk| disk.pipeline.is_dirty()) {
            self.wakes.insert(Wakes::METADATA);
        }
    }

    /// True when the meta data of the volume, or of all volumes, is on the disks as far as it will get there by itself. To be
    /// waited for, but not for ever, before a helper program runs: that may well end this node.
    // spec: state-machine 11
    pub fn metadata_is_stored(&self, id: Option<VolumeId>) -> bool {
        let concerned = id.map_or(0..self.volumes_end, |id| usize::from(id.0)..usize::from(id.0) + 1);
        concerned
            .filter_map(|at| self.volumes.get(at)?.as_ref()?.disk.as_ref())
            .all(|disk| disk.release == Release::Releasing || disk.pipeline.is_held() || !disk.pipeline.is_dirty())
    }

    /// Queues work on the bitmap.
    pub(super) fn queue_job(&mut self, id: VolumeId, job: Job) {
        let Some(disk) = self.volume_mut(id).and_then(|volume| volume.disk.as_mut()) else { return };
        // Writing what changed twice in a row is once too often.
        if matches!(job, Job::Write(Then::Nothing | Then::Flush)) && disk.pipeline.jobs.contains(&Some(job)) {
            return;
        }
        if !disk.pipeline.queue(job) {
            self.internal_error("too many bitmap jobs");
        }
        self.wakes.insert(Wakes::METADATA);
    }
}

use super::volume::Volume;
