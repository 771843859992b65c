// SPDX-License-Identifier: GPL-2.0
//! Lower devices: block devices that hold our data and meta data.

use super::mem::{self, PageChain};
use super::raw;
use core::ptr::NonNull;
use kernel::error::{from_err_ptr, to_result};
use kernel::prelude::*;
use kernel::sync::Arc;

/// Who holds a device exclusively. All devices opened with the same holder may be the same device.
pub(crate) struct Holder {
    /// The kernel compares addresses, so it must have one of its own.
    _place: u8,
}

impl Holder {
    /// Makes a holder. May sleep.
    pub(crate) fn new() -> Result<Arc<Holder>> {
        Ok(Arc::new(Holder { _place: 0 }, GFP_KERNEL)?)
    }
}

/// What the lower device can take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceLimits {
    /// Largest request in bytes.
    pub(crate) max_request_bytes: u32,
    /// Logical block in bytes.
    pub(crate) logical_block_bytes: u32,
    /// Physical block in bytes.
    pub(crate) physical_block_bytes: u32,
    /// Offset of the first physical block of the whole disk in bytes.
    pub(crate) alignment_offset_bytes: u32,
    /// The same counted from the start of this device, which may be a partition; nothing where it does not fit the blocks.
    pub(crate) own_alignment_offset_bytes: Option<u32>,
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
    /// Where the first whole granule begins, in bytes: on a partition, counted from its start.
    pub(crate) discard_alignment_bytes: u32,
    /// It has a moving head.
    pub(crate) rotational: bool,
}

/// An open block device, read and write.
///
/// Must not be dropped in atomic context.
pub(crate) struct LowerDevice {
    file: NonNull<raw::file>,
    bdev: NonNull<raw::block_device>,
    _holder: Arc<Holder>,
}

// SAFETY: Block devices may be used from every thread.
unsafe impl Send for LowerDevice {}
// SAFETY: As above.
unsafe impl Sync for LowerDevice {}

impl LowerDevice {
    /// Opens the device at `path` for `holder` alone. May sleep.
    ///
    /// # Errors
    /// What opening a block device gives: `ENOENT`, `ENOTBLK`, `EBUSY` (somebody else holds it), `EROFS`/`EACCES`, ...
    pub(crate) fn open(path: &CStr, holder: &Arc<Holder>) -> Result<LowerDevice> {
        let token = Arc::as_ptr(holder).cast_mut().cast();
        // SAFETY: The path ends with a zero byte; the token is unique as long as the reference in `Self` lives.
        let file = from_err_ptr(unsafe { raw::drbd_h_bdev_open(path.as_char_ptr(), true, token) })?;
        let file = NonNull::new(file).ok_or(ENODEV)?;
        // SAFETY: The file is an open block device.
        let bdev = unsafe { raw::file_bdev(file.as_ptr()) };
        let Some(bdev) = NonNull::new(bdev) else {
            // SAFETY: Opened above, used by nobody else.
            unsafe { raw::bdev_fput(file.as_ptr()) };
            return Err(ENODEV);
        };
        Ok(LowerDevice { file, bdev, _holder: holder.clone() })
    }

    /// Its size in sectors of 512 bytes.
    pub(crate) fn size_sectors(&self) -> u64 {
        // SAFETY: The device is open.
        unsafe { raw::drbd_h_bdev_nr_sectors(self.as_raw()) }
    }

    /// Device number as `stat(2)` encodes it: tells whether two paths are one device.
    pub(crate) fn device_number(&self) -> u32 {
        // SAFETY: The device is open.
        unsafe { raw::drbd_h_bdev_dev(self.as_raw()) }
    }

    /// What it can take.
    pub(crate) fn limits(&self) -> DeviceLimits {
        // SAFETY: The device is open; its limits live as long as its queue. Single fields may change meanwhile, which
        // is as harmless as for every other reader in the kernel.
        let limits = unsafe { raw::drbd_h_bdev_limits(self.as_raw()) };
        // SAFETY: As above.
        let limits = unsafe { &*limits };
        DeviceLimits {
            max_request_bytes: limits.max_hw_sectors.saturating_mul(512),
            logical_block_bytes: limits.logical_block_size,
            physical_block_bytes: limits.physical_block_size,
            alignment_offset_bytes: limits.alignment_offset,
            // SAFETY: The device is open. It is negative when misaligned.
            own_alignment_offset_bytes: u32::try_from(unsafe { raw::bdev_alignment_offset(self.as_raw()) }).ok(),
            dma_alignment_mask: limits.dma_alignment,
            virt_boundary_mask: limits.virt_boundary_mask,
            io_min_bytes: limits.io_min,
            io_opt_bytes: limits.io_opt,
            // SAFETY: The device is open.
            max_discard_bytes: unsafe { raw::drbd_h_bdev_max_discard_sectors(self.as_raw()) }.saturating_mul(512),
            discard_granularity_bytes: limits.discard_granularity,
            // SAFETY: As above.
            discard_alignment_bytes: unsafe { raw::bdev_discard_alignment(self.as_raw()) },
            rotational: limits.features & raw::DRBD_CONST_BLK_FEAT_ROTATIONAL != 0,
        }
    }

    /// Reads into the first page of `pages`, starting at `sector`, and waits. May sleep.
    pub(crate) fn read_wait(&self, sector: u64, pages: &mut PageChain) -> Result {
        mem::might_sleep();
        let buffer = pages.first_page_mut().ok_or(EINVAL)?;
        // SAFETY: The device is open; the buffer is a page of the direct mapping, borrowed for the time of the call.
        to_result(unsafe {
            raw::bdev_rw_virt(
                self.as_raw(),
                sector,
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                raw::DRBD_CONST_REQ_OP_READ,
            )
        })
    }

    /// Discards a range and waits. May sleep. For memory it waits for no I/O: that may be a request for our disk which waits
    /// for this one.
    pub(crate) fn discard(&self, sector: u64, sectors: u64) -> Result {
        mem::might_sleep();
        // SAFETY: The device is open.
        to_result(unsafe { raw::blkdev_issue_discard(self.as_raw(), sector, sectors, raw::DRBD_CONST_GFP_NOIO) })
    }

    /// Makes a range read as zeroes and waits; `unmap` allows to deallocate. May sleep, as [`LowerDevice::discard`].
    pub(crate) fn zero_out(&self, sector: u64, sectors: u64, unmap: bool) -> Result {
        mem::might_sleep();
        let flags = if unmap { 0 } else { raw::DRBD_CONST_BLKDEV_ZERO_NOUNMAP };
        // SAFETY: As above.
        to_result(unsafe { raw::blkdev_issue_zeroout(self.as_raw(), sector, sectors, raw::DRBD_CONST_GFP_NOIO, flags) })
    }

    #[inline]
    pub(super) fn as_raw(&self) -> *mut raw::block_device {
        self.bdev.as_ptr()
    }
}

impl Drop for LowerDevice {
    fn drop(&mut self) {
        mem::might_sleep();
        // SAFETY: Opened by `open`, given back once.
        unsafe { raw::bdev_fput(self.file.as_ptr()) }
    }
}
