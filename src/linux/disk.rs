// SPDX-License-Identifier: GPL-2.0
//! Our own disks: `/dev/drbdN`.

use super::bdev::LowerDevice;
use super::bio::OwnedBio;
use super::{mem, raw};
use core::marker::PhantomData;
use core::ptr::NonNull;
use kernel::error::to_result;
use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::atomic::{Atomic, Full, Relaxed};
use kernel::sync::Arc;

/// Block major number. spec: proc-and-sysfs 3
pub(crate) const MAJOR: u32 = 147;
/// What it is called in `/proc/devices`, and what names of disks start with.
const NAME: &CStr = c"drbd";

/// Disks that the kernel has not released yet; the module must not be unloaded before all are.
static LIVE_DISKS: Atomic<u32> = Atomic::new(0);

/// The registration of the major number.
///
/// Dropping it, in process context, waits for the last disk to be released.
pub(crate) struct Major(());

impl Major {
    /// Registers it. May sleep.
    pub(crate) fn register() -> Result<Major> {
        // SAFETY: The name lives for ever.
        to_result(unsafe { raw::__register_blkdev(MAJOR, NAME.as_char_ptr(), None) })?;
        Ok(Major(()))
    }
}

impl Drop for Major {
    fn drop(&mut self) {
        // The release function is code of this module; a file system's last reference may be slow to go.
        while LIVE_DISKS.load(Relaxed) != 0 {
            kernel::time::delay::fsleep(kernel::time::Delta::from_millis(10));
        }
        // SAFETY: Registered by `register`.
        unsafe { raw::unregister_blkdev(MAJOR, NAME.as_char_ptr()) }
    }
}

/// What a disk does. A disk keeps a reference to it until the kernel has let go of the disk.
pub(crate) trait DiskOps: Send + Sync + 'static {
    /// A request has arrived. Process context; must not wait for other I/O through this disk.
    fn submit(self: &Arc<Self>, bio: OwnedBio);

    /// Somebody opens it; `write` if for writing. May sleep.
    ///
    /// # Errors
    /// What `open(2)` will return.
    fn open(&self, write: bool) -> Result;

    /// The last of those who opened it has closed it. May sleep.
    fn release(&self);
}

/// Limits of a disk, for its whole life or until they are changed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DiskLimits {
    /// Largest request in bytes.
    pub(crate) max_request_bytes: u32,
    /// Logical block in bytes.
    pub(crate) logical_block_bytes: u32,
    /// Physical block in bytes.
    pub(crate) physical_block_bytes: u32,
    /// Offset of the first physical block in bytes.
    pub(crate) alignment_offset_bytes: u32,
    /// Bits that must be 0 in the address in memory, and in the length, of what is transferred.
    pub(crate) dma_alignment_mask: u32,
    /// Pieces of memory in one request have to meet where these bits of the address are 0; 0: anywhere.
    pub(crate) virt_boundary_mask: usize,
    /// Preferred smallest request in bytes.
    pub(crate) io_min_bytes: u32,
    /// Preferred request in bytes, 0 if there is none.
    pub(crate) io_opt_bytes: u32,
    /// Largest discard in bytes, 0 if it cannot discard.
    pub(crate) max_discard_bytes: u32,
    /// Granularity of discards in bytes.
    pub(crate) discard_granularity_bytes: u32,
    /// Where the first whole granule begins, in bytes.
    pub(crate) discard_alignment_bytes: u32,
    /// Largest write of zeroes in bytes, 0 if it cannot.
    pub(crate) max_write_zeroes_bytes: u32,
    /// It has a moving head.
    pub(crate) rotational: bool,
}

impl DiskLimits {
    fn apply(&self, limits: &mut raw::queue_limits) {
        // SAFETY: Initialises the struct it is given.
        unsafe { raw::blk_set_stacking_limits(limits) };
        limits.features = raw::DRBD_CONST_BLK_FEAT_WRITE_CACHE
            | raw::DRBD_CONST_BLK_FEAT_FUA
            | raw::DRBD_CONST_BLK_FEAT_STABLE_WRITES
            | raw::DRBD_CONST_BLK_FEAT_IO_STAT;
        if self.rotational {
            limits.features |= raw::DRBD_CONST_BLK_FEAT_ROTATIONAL;
        }
        limits.max_hw_sectors = self.max_request_bytes / 512;
        limits.logical_block_size = self.logical_block_bytes;
        limits.physical_block_size = self.physical_block_bytes;
        limits.alignment_offset = self.alignment_offset_bytes;
        limits.dma_alignment = self.dma_alignment_mask;
        limits.virt_boundary_mask = self.virt_boundary_mask;
        limits.io_min = self.io_min_bytes;
        limits.io_opt = self.io_opt_bytes;
        limits.max_hw_discard_sectors = self.max_discard_bytes / 512;
        limits.discard_granularity = if self.max_discard_bytes > 0 { self.discard_granularity_bytes } else { 0 };
        limits.discard_alignment = if self.max_discard_bytes > 0 { self.discard_alignment_bytes } else { 0 };
        limits.max_write_zeroes_sectors = self.max_write_zeroes_bytes / 512;
        limits.max_hw_wzeroes_unmap_sectors = 0;
    }
}

/// A disk that is visible to the system.
///
/// Must not be dropped in atomic context. Dropping makes it vanish; those who have it open get errors.
///
/// # Invariants
/// `disk` was added to the system; its `private_data` is a reference made by `Arc::into_raw`, released by `free`.
pub(crate) struct Disk<T: DiskOps> {
    disk: NonNull<raw::gendisk>,
    _operations: PhantomData<Arc<T>>,
}

// SAFETY: Disks may be used from every thread.
unsafe impl<T: DiskOps> Send for Disk<T> {}
// SAFETY: As above.
unsafe impl<T: DiskOps> Sync for Disk<T> {}

impl<T: DiskOps> Disk<T> {
    const TABLE: raw::block_device_operations = raw::block_device_operations {
        submit_bio: Some(submit::<T>),
        open: Some(open::<T>),
        release: Some(release::<T>),
        free_disk: Some(free::<T>),
        owner: &raw mut raw::__this_module,
        ..pin_init::zeroed()
    };

    /// Makes `/dev/drbd<minor>`, read-only and of size 0. May sleep.
    ///
    /// # Errors
    /// `ENOMEM`, `EBUSY`/`EEXIST` when a disk with this number exists.
    pub(crate) fn add(minor: u32, limits: &DiskLimits, operations: Arc<T>) -> Result<Disk<T>> {
        let mut raw_limits: raw::queue_limits = pin_init::zeroed();
        limits.apply(&mut raw_limits);
        // SAFETY: The limits are copied.
        let disk = kernel::error::from_err_ptr(unsafe { raw::drbd_h_alloc_disk(&mut raw_limits) })?;
        let disk = NonNull::new(disk).ok_or(ENOMEM)?;
        let added = Self::fill(disk, minor).and_then(|()| {
            // SAFETY: Ours alone until it is added.
            unsafe { (*disk.as_ptr()).private_data = Arc::into_raw(operations).cast_mut().cast() };
            LIVE_DISKS.fetch_add(1, Full);
            // SAFETY: Completely filled in.
            to_result(unsafe { raw::drbd_h_add_disk(disk.as_ptr()) }).inspect_err(|_| {
                // SAFETY: `free` is not called for a disk that was not added.
                drop(core::mem::ManuallyDrop::into_inner(unsafe { operations_of::<T>(disk.as_ptr()) }));
                LIVE_DISKS.fetch_sub(1, Full);
            })
        });
        if let Err(error) = added {
            // SAFETY: Allocated above, not added.
            unsafe { raw::put_disk(disk.as_ptr()) };
            return Err(error);
        }
        Ok(Disk { disk, _operations: PhantomData })
    }

    fn fill(disk: NonNull<raw::gendisk>, minor: u32) -> Result {
        let name = CString::try_from_fmt(fmt!("drbd{minor}"))?;
        // SAFETY: Fresh from the allocator, nobody else knows it.
        let disk = unsafe { &mut *disk.as_ptr() };
        disk.major = MAJOR as c_int;
        disk.first_minor = c_int::try_from(minor).map_err(|_| EINVAL)?;
        disk.minors = 1;
        // CAST: flags are small.
        disk.flags |= raw::DRBD_CONST_GENHD_FL_NO_PART as c_int;
        disk.fops = &Self::TABLE;
        for (place, byte) in disk.disk_name.iter_mut().zip(name.to_bytes_with_nul()) {
            // CAST: The kernel's characters are bytes.
            *place = *byte as c_char;
        }
        // SAFETY: As above.
        unsafe { raw::set_disk_ro(disk, true) };
        Ok(())
    }

    /// Size in sectors of 512 bytes.
    pub(crate) fn size_sectors(&self) -> u64 {
        // SAFETY: By the invariant.
        unsafe { raw::drbd_h_get_capacity(self.disk.as_ptr()) }
    }

    /// Changes the size and tells user space. May sleep.
    pub(crate) fn set_size_sectors(&self, sectors: u64) {
        mem::might_sleep();
        let before = self.size_sectors();
        // SAFETY: By the invariant.
        let told = unsafe { raw::set_capacity_and_notify(self.disk.as_ptr(), sectors) };
        // The kernel tells nobody when a disk gets its first size or loses its last.
        if !told && before != sectors {
            self.tell_change();
        }
    }

    /// Sends a change event to user space. May sleep.
    pub(crate) fn tell_change(&self) {
        // SAFETY: By the invariant.
        unsafe { raw::drbd_h_disk_uevent_change(self.disk.as_ptr()) }
    }

    /// Makes it read-only or not. May sleep.
    pub(crate) fn set_read_only(&self, read_only: bool) {
        // SAFETY: By the invariant.
        unsafe { raw::set_disk_ro(self.disk.as_ptr(), read_only) }
    }

    /// Changes the limits; waits for requests under way in our submit function. May sleep.
    ///
    /// # Errors
    /// `EINVAL` when the block layer finds them contradictory; nothing is changed then.
    pub(crate) fn set_limits(&self, limits: &DiskLimits) -> Result {
        let mut raw_limits: raw::queue_limits = pin_init::zeroed();
        // SAFETY: By the invariant; takes the lock that the commit releases.
        unsafe { raw::drbd_h_queue_limits_start_update(self.disk.as_ptr(), &mut raw_limits) };
        limits.apply(&mut raw_limits);
        // SAFETY: Started above.
        to_result(unsafe { raw::drbd_h_queue_limits_commit(self.disk.as_ptr(), &mut raw_limits) })
    }

    /// Shows in sysfs that this disk is made of `device`. Undone by [`Disk::unlink_lower`]. May sleep.
    pub(crate) fn link_lower(&self, device: &LowerDevice) -> Result {
        // SAFETY: Both are alive; the device is held exclusively by us.
        to_result(unsafe { raw::drbd_h_link_holder(device.as_raw(), self.disk.as_ptr()) })
    }

    /// Takes back [`Disk::link_lower`]. May sleep.
    pub(crate) fn unlink_lower(&self, device: &LowerDevice) {
        // SAFETY: Both are alive.
        unsafe { raw::drbd_h_unlink_holder(device.as_raw(), self.disk.as_ptr()) }
    }
}

impl<T: DiskOps> Drop for Disk<T> {
    fn drop(&mut self) {
        mem::might_sleep();
        // SAFETY: By the invariant it was added.
        unsafe { raw::del_gendisk(self.disk.as_ptr()) };
        // SAFETY: The reference from the allocation.
        unsafe { raw::put_disk(self.disk.as_ptr()) };
    }
}

/// The disk's own reference to what carries out its operations.
///
/// # Safety
/// `disk` was made by `Disk<T>::add` and has not been freed.
unsafe fn operations_of<T: DiskOps>(disk: *mut raw::gendisk) -> core::mem::ManuallyDrop<Arc<T>> {
    // SAFETY: By the requirement.
    let operations = unsafe { (*disk).private_data };
    // SAFETY: By the requirement; the reference stays with the disk.
    core::mem::ManuallyDrop::new(unsafe { Arc::from_raw(operations.cast()) })
}

/// Called by the block layer in process context with a request for our disk.
///
/// # Safety
/// `bio` is a request for a disk made by `Disk<T>::add` and becomes ours.
unsafe extern "C" fn submit<T: DiskOps>(bio: *mut raw::bio) {
    // SAFETY: By the requirement. Sends what is too much for one request back to this function.
    let bio = unsafe { raw::bio_split_to_limits(bio) };
    let Some(bio) = NonNull::new(bio) else { return };
    // SAFETY: Ours by the requirement.
    let bdev = unsafe { (*bio.as_ptr()).bi_bdev };
    // SAFETY: The request's device is alive as long as the request.
    let disk = unsafe { (*bdev).bd_disk };
    // SAFETY: As above.
    let operations = unsafe { operations_of::<T>(disk) };
    // SAFETY: Ours by the requirement.
    operations.submit(unsafe { OwnedBio::from_raw(bio) });
}

/// Called by the block layer when somebody opens the disk.
///
/// # Safety
/// `disk` was made by `Disk<T>::add`.
unsafe extern "C" fn open<T: DiskOps>(disk: *mut raw::gendisk, mode: raw::blk_mode_t) -> c_int {
    // SAFETY: By the requirement.
    let operations = unsafe { operations_of::<T>(disk) };
    match operations.open(mode & raw::DRBD_CONST_BLK_OPEN_WRITE != 0) {
        Ok(()) => 0,
        Err(error) => error.to_errno(),
    }
}

/// Called by the block layer for each close.
///
/// # Safety
/// As for [`open`].
unsafe extern "C" fn release<T: DiskOps>(disk: *mut raw::gendisk) {
    // SAFETY: By the requirement.
    unsafe { operations_of::<T>(disk) }.release();
}

/// Called by the block layer when the last reference to the disk is gone.
///
/// # Safety
/// As for [`open`]; called once.
unsafe extern "C" fn free<T: DiskOps>(disk: *mut raw::gendisk) {
    // SAFETY: By the requirement; not used any more.
    drop(core::mem::ManuallyDrop::into_inner(unsafe { operations_of::<T>(disk) }));
    LIVE_DISKS.fetch_sub(1, Full);
}
