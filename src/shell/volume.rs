// SPDX-License-Identifier: GPL-2.0
//! A volume: the disk that applications see, and the devices it is made of.
//!
//! # Life
//! A volume exists from `NEW_MINOR` to `DEL_MINOR`; its [`Backing`] from attach to detach. Requests to the lower devices
//! refer to the backing, the backing to the volume, the volume to its resource; the kernel's disk refers to the volume
//! until [`Volume::remove`].

use super::backing::Backing;
use super::disk_io::{self, Context};
use super::metadata_io;
use super::queue_limits;
use super::resource::{Locked, Resource};
use super::worker;
use crate::linux::bio::{BioOp, OwnedBio, Status};
use crate::linux::disk::{Disk, DiskOps};
use crate::linux::mem::NoIoScope;
use crate::linux::sync::{new_wait_queue, WaitQueue};
use crate::linux::work::DeferredArc;
use crate::linux::{bio, clock, errno, param};
use engine::netlink::RetCode;
use engine::resource::{IoFlags, IoRequest, Op, OpenError, Submit, VolumeId, Wakes};
use engine::state::Disk as DiskState;
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Full, Relaxed};
use kernel::sync::{new_mutex, Arc, Mutex};
use kernel::workqueue::{impl_has_work, new_work, Work, WorkItem};

/// Bound: rounds of meta-data I/O and of what it makes possible, in one run of a work item.
const MAX_ROUNDS: usize = 16;

/// Which of a volume's work items discards and zeroes.
pub(crate) const CLEARS: u64 = 1;

/// A volume.
#[pin_data]
pub(crate) struct Volume {
    /// Whose volume it is.
    pub(crate) resource: Arc<Resource>,
    /// In the engine's table.
    pub(crate) id: VolumeId,
    /// Minor number of the disk.
    pub(crate) minor: u32,
    /// Number within the resource.
    pub(crate) number: u16,
    #[pin]
    work: Work<Volume>,
    /// For what waits for the disk.
    #[pin]
    clears: Work<Volume, CLEARS>,
    /// The disk, until the volume is removed.
    #[pin]
    disk: Mutex<Option<Disk<Volume>>>,
    #[pin]
    opens: Mutex<Opens>,
    /// Logical block of the disk in bytes.
    block_bytes: Atomic<u32>,
    /// Backings of this volume that have not let go of their devices yet.
    live_backings: Atomic<u32>,
    /// For those who wait for that.
    #[pin]
    released: WaitQueue,
}

/// How often the disk is open. The block layer does not tell on closing what the opening was for, so readers are
/// counted off first; only the sum means something.
#[derive(Default)]
struct Opens {
    readers: u32,
    writers: u32,
    /// Readers of a Secondary, which the engine does not know of.
    unofficial: u32,
}

impl_has_work! {
    impl HasWork<Self> for Volume { self.work }
    impl HasWork<Self, 1> for Volume { self.clears }
}

impl Volume {
    /// Makes the disk of a volume that the engine has just added. May sleep.
    ///
    /// # Errors
    /// 122 when there is not enough memory, 161 when the kernel has a disk with that number.
    pub(crate) fn create(
        resource: &Arc<Resource>,
        id: VolumeId,
        minor: u32,
        number: u16,
    ) -> Result<Arc<Volume>, RetCode> {
        let volume = Arc::pin_init(
            pin_init!(Volume {
                resource: resource.clone(),
                id,
                minor,
                number,
                work <- new_work!("drbd::Volume::work"),
                clears <- new_work!("drbd::Volume::clears"),
                disk <- new_mutex!(None, "drbd::Volume::disk"),
                opens <- new_mutex!(Opens::default(), "drbd::Volume::opens"),
                block_bytes: Atomic::new(queue_limits::UNATTACHED.logical_block_bytes),
                live_backings: Atomic::new(0),
                released <- new_wait_queue!(c"drbd::Volume::released"),
            }),
            GFP_KERNEL,
        )
        .map_err(|_| RetCode::Nomem)?;
        resource.locked.with(|locked| {
            if let Some(place) = locked.volumes.get_mut(usize::from(id.0)) {
                *place = Some(volume.clone());
            }
        });
        match Disk::add(minor, &queue_limits::UNATTACHED, volume.clone()) {
            Ok(disk) => {
                *volume.disk.lock() = Some(disk);
                Ok(volume)
            }
            Err(error) => {
                volume.leave_table();
                pr_err!("drbd{}: cannot make the disk: {:?}\n", minor, error);
                Err(if error == ENOMEM { RetCode::Nomem } else { RetCode::MinorOrVolumeExists })
            }
        }
    }

    /// Makes the disk vanish; to be called when the engine has removed the volume. Requests that still wait fail. May
    /// sleep.
    pub(crate) fn remove(self: &Arc<Self>) {
        let disk = self.disk.lock().take();
        drop(disk);
        self.leave_table();
    }

    fn leave_table(&self) {
        let (volume, parked) = self.resource.locked.with(|locked| {
            let volume = locked.volumes.get_mut(usize::from(self.id.0)).and_then(Option::take);
            (volume, locked.block.parked(self.id).map(core::mem::take))
        });
        drop((volume, parked));
    }

    /// Changes the size of the disk and tells user space. May sleep.
    pub(crate) fn set_capacity(self: &Arc<Self>, sectors: u64) {
        self.with_disk(|disk| disk.set_size_sectors(sectors));
    }

    /// Makes the disk read-only or writable, and tells user space. May sleep.
    pub(crate) fn set_role_read_only(self: &Arc<Self>, read_only: bool) {
        self.with_disk(|disk| {
            disk.set_read_only(read_only);
            disk.tell_change();
        });
    }

    /// Tells user space that the disk has changed. May sleep.
    pub(crate) fn uevent_change(self: &Arc<Self>) {
        self.with_disk(Disk::tell_change);
    }

    /// The logical block of the disk: that of the own and of the peer's disk, whichever is larger, so that neither gets a
    /// request that it cannot take. It does not grow for the peer's sake while somebody uses the disk.
    pub(crate) fn block_bytes(&self, own: u32, peer: u32, opens: u32) -> u32 {
        let now = self.block_bytes.load(Relaxed);
        let wanted = if opens > 0 { peer.min(now) } else { peer };
        let block = own.max(wanted);
        self.block_bytes.store(block, Relaxed);
        block
    }

    /// Computes the limits of the disk anew. May sleep.
    pub(crate) fn update_limits(self: &Arc<Self>) {
        let limits = &queue_limits::compute(self);
        let set = self.with_disk(|disk| disk.set_limits(limits)).unwrap_or(Ok(()));
        if let Err(error) = set {
            pr_err!("drbd{}: the block layer refuses the limits {:?}: {:?}\n", self.minor, limits, error);
        }
    }

    fn with_disk<R>(&self, f: impl FnOnce(&Disk<Volume>) -> R) -> Option<R> {
        self.disk.lock().as_ref().map(f)
    }

    /// The devices the volume is made of, while attached.
    pub(crate) fn backing(&self) -> Option<DeferredArc<Backing>> {
        self.resource.locked.with(|locked| locked.block.backing(self.id).cloned())
    }

    /// Installs the devices for an attach that is about to begin. May sleep.
    pub(crate) fn set_backing(&self, backing: &Arc<Backing>) {
        self.with_disk(|disk| {
            for device in backing.devices() {
                // Only what sysfs shows depends on it.
                let _ = disk.link_lower(device);
            }
        });
        let backing = DeferredArc::new(backing.clone());
        let old = self.resource.locked.with(|locked| locked.block.set_backing(self.id, Some(backing)));
        drop(old);
    }

    /// Lets go of the devices, tells the engine, and returns when they are closed; to be called when the engine says
    /// that nothing uses them any more. May sleep.
    pub(crate) fn release_backing(self: &Arc<Self>) {
        self.drop_backing();
        let tables = disk_io::enter(&self.resource, Context::Process, |locked| {
            locked.engine.backing_released(self.id, clock::monotonic_ms())
        });
        // Large, so they are freed without the lock.
        drop(tables);
        self.resource.changed.wake_all();
    }

    /// Waits until the devices of an earlier attach are closed, if they are about to be. True when none is attached. May
    /// sleep.
    pub(crate) fn wait_detached(&self) -> bool {
        let status = || self.resource.locked.with(|locked| locked.engine.volume_status(self.id));
        let closing = || status().is_some_and(|it| it.has_disk && it.state.disk == DiskState::Diskless);
        let ordered = || self.resource.look(|locked| locked.engine.has_device_work());
        while closing() {
            // The worker may be busy with the program that has asked for this.
            worker::carry_out_orders(&self.resource);
            self.resource.changed.wait_until(|| !closing() || ordered());
        }
        status().is_none_or(|it| !it.has_disk)
    }

    /// Closes the devices, and returns when they are closed. May sleep.
    fn drop_backing(&self) {
        let backing = self.resource.locked.with(|locked| locked.block.set_backing(self.id, None));
        let Some(backing) = backing else { return };
        self.with_disk(|disk| {
            for device in backing.devices() {
                disk.unlink_lower(device);
            }
        });
        // Requests that are just ending may still hold it.
        drop(backing.into_inner());
        self.released.wait_until(|| self.live_backings.load(Relaxed) == 0);
    }

    /// Takes the devices away again after a failed attach, as soon as the engine has no disk any more. May sleep.
    pub(crate) fn attach_failed(self: &Arc<Self>) {
        let resource = &self.resource;
        resource.changed.wait_until(|| {
            let status = resource.locked.with(|locked| locked.engine.volume_status(self.id));
            status.is_none_or(|status| status.state.disk == DiskState::Diskless)
        });
        self.drop_backing();
    }

    /// Counts a backing that refers to this volume.
    pub(super) fn count_backing(&self) {
        self.live_backings.fetch_add(1, Full);
    }

    /// A backing has let go of its devices. Any context.
    pub(super) fn discount_backing(&self) {
        self.live_backings.fetch_sub(1, Full);
        self.released.wake_all();
    }

    /// Offers a request to the engine. Gives it back with a status when it has to end at once.
    fn offer(&self, locked: &mut Locked, mut bio: OwnedBio, io: IoRequest, first: bool) -> Offer {
        let waits = locked.block.parked(self.id).is_none_or(|parked| !parked.is_empty());
        let answer =
            if waits && first { Submit::Later } else { locked.engine.submit(self.id, io, clock::monotonic_ms()) };
        match answer {
            Submit::Accepted(request) => {
                bio.start_accounting();
                match locked.uppers.put(request, bio) {
                    None => Offer::Taken,
                    Some(stale) => Offer::End(stale, Status::IO_ERROR),
                }
            }
            Submit::Failed(error) => Offer::End(bio, disk_io::status_of(Err(error))),
            Submit::Later => match locked.block.parked(self.id) {
                Some(parked) if first => {
                    parked.push_back(bio);
                    Offer::Parked
                }
                Some(parked) => {
                    parked.push_front(bio);
                    Offer::Parked
                }
                None => Offer::End(bio, Status::IO_ERROR),
            },
        }
    }

    /// Offers the requests that had to wait once more, in order of arrival.
    fn offer_parked(&self, held: &mut Wakes) {
        loop {
            let offer = disk_io::enter_holding(
                &self.resource,
                held,
                || false,
                |locked| {
                    let bio = locked.block.parked(self.id)?.pop_front()?;
                    match request_of(&bio) {
                        Some(io) => Some(self.offer(locked, bio, io, false)),
                        None => Some(Offer::End(bio, Status::NOT_SUPPORTED)),
                    }
                },
            );
            match offer {
                Some(Offer::Taken) => (),
                Some(Offer::End(bio, status)) => bio.complete(status),
                Some(Offer::Parked) | None => return,
            }
        }
    }
}

/// What became of a request that was offered to the engine.
enum Offer {
    Taken,
    Parked,
    End(OwnedBio, Status),
}

/// The engine's view of a request; nothing if it is of a kind that we do not advertise.
fn request_of(bio: &OwnedBio) -> Option<IoRequest> {
    let flags = bio.flags();
    let size_bytes = bio.bytes();
    let op = match bio.op() {
        BioOp::Read => Op::Read,
        BioOp::Write if size_bytes == 0 => Op::Flush,
        BioOp::Write => Op::Write,
        BioOp::Discard => Op::Discard,
        BioOp::WriteZeroes { unmap } => Op::WriteZeroes { unmap },
        BioOp::Other => return None,
    };
    let flags = IoFlags {
        fua: flags.fua,
        preflush: flags.preflush,
        sync: flags.sync,
        readahead: flags.readahead,
        unplug: false,
    };
    Some(IoRequest { op, sector: bio.sector(), size_bytes, flags })
}

impl DiskOps for Volume {
    fn submit(self: &Arc<Self>, bio: OwnedBio) {
        let Some(io) = request_of(&bio) else {
            bio.complete(Status::NOT_SUPPORTED);
            return;
        };
        let offer = disk_io::enter(&self.resource, Context::Submit, |locked| self.offer(locked, bio, io, true));
        if let Offer::End(bio, status) = offer {
            bio.complete(status);
        }
    }

    // spec: proc-and-sysfs 3; state-machine 13.6
    fn open(&self, write: bool) -> Result {
        let mut opens = self.opens.lock();
        let answer = disk_io::enter(&self.resource, Context::Process, |locked| locked.engine.open(self.id, write));
        match answer {
            Ok(()) if write => opens.writers += 1,
            Ok(()) => opens.readers += 1,
            Err(OpenError::NotPrimary) if param::allow_oos() => opens.unofficial += 1,
            Err(OpenError::NotPrimary) => return Err(errno::emediumtype()),
            Err(OpenError::ReadOnly) => return Err(errno::erofs()),
        }
        Ok(())
    }

    fn release(&self) {
        let mut opens = self.opens.lock();
        let write = if opens.unofficial > 0 {
            opens.unofficial -= 1;
            return;
        } else if opens.readers > 0 {
            opens.readers -= 1;
            false
        } else {
            opens.writers = opens.writers.saturating_sub(1);
            true
        };
        disk_io::enter(&self.resource, Context::Process, |locked| locked.engine.release(self.id, write));
    }
}

impl WorkItem for Volume {
    type Pointer = Arc<Volume>;

    /// Does what could not be done where it became known: local I/O, meta-data I/O, requests that had to wait.
    fn run(this: Arc<Volume>) {
        let _no_io = NoIoScope::enter();
        let mut held = Wakes::default();
        let mut left = Wakes::default();
        bio::plugged(|| {
            for _ in 0..MAX_ROUNDS {
                disk_io::enter_holding(&this.resource, &mut held, || false, |_| ());
                let Some(backing) = this.backing() else { break };
                // What a transfer makes possible that ends at once is done at once.
                let ((), ended) = this.resource.looking_after(|| metadata_io::start_all(&this, &backing));
                held.insert(Wakes(ended.0 & disk_io::SENDERS.0));
                left = Wakes(ended.0 & !disk_io::SENDERS.0);
                if left.is_empty() {
                    break;
                }
                this.resource.locked.with(|locked| disk_io::kick_others(locked, left, Some(this.id)));
            }
            if !left.is_empty() {
                this.resource.locked.with(|locked| disk_io::kick(locked, this.id));
            }
            this.offer_parked(&mut held);
        });
        disk_io::send_held(&this.resource, &mut held);
    }
}

impl WorkItem<CLEARS> for Volume {
    type Pointer = Arc<Volume>;

    /// Discards and zeroes, however long the disk takes.
    fn run(this: Arc<Volume>) {
        let _no_io = NoIoScope::enter();
        disk_io::clear_all(&this);
    }
}
