// SPDX-License-Identifier: GPL-2.0
//! The device that carries the meta data: opened for direct I/O, read and written in aligned blocks.
//!
//! # Invariants
//! Every transfer starts on a multiple of [`BLOCK_BYTES`], is a multiple of it long or reaches to the last sector of the
//! device, and goes through memory aligned to it. Nothing but the meta-data area is ever handed to [`Device::write`]: the
//! callers take their offsets from the engine's layout.

use crate::failure::Failure;
use nix::fcntl::{fallocate, FallocateFlags, OFlag};
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Unit of every transfer, bytes.
pub const BLOCK_BYTES: usize = 4096;
/// Sectors in a block.
pub const BLOCK_SECTORS: u64 = 8;
/// Bytes in a sector.
pub const SECTOR_BYTES: u64 = 512;
/// The largest single transfer, bytes.
const CHUNK_BYTES: usize = 1 << 20;

/// Zero-filled memory aligned for direct I/O.
pub struct AlignedBuffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        let memory = vec![0; len + BLOCK_BYTES];
        let start = memory.as_ptr().align_offset(BLOCK_BYTES).min(BLOCK_BYTES);
        AlignedBuffer { memory, start, len }
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

/// How the device is opened.
#[derive(Clone, Copy, Debug)]
pub struct OpenMode {
    /// Refuse a device that somebody else has claimed.
    pub exclusive: bool,
    /// Accept a regular file.
    pub regular_file: bool,
    /// Never write.
    pub dry_run: bool,
}

/// Why a device could not be opened.
#[derive(Debug)]
pub enum OpenError {
    /// Somebody else holds it: mounted, part of another device, attached.
    Busy,
    /// Anything else; the sentence is complete.
    Other(Failure),
}

/// An open meta-data device.
pub struct Device {
    file: File,
    path: PathBuf,
    size_bytes: u64,
    dry_run: bool,
    /// After so many more transfers to the device the power fails.
    #[cfg(test)]
    pub writes_left: std::cell::Cell<u32>,
}

impl Device {
    /// Opens `path` for direct reading and writing.
    ///
    /// # Errors
    /// [`OpenError::Busy`] if it was to be exclusive and is not; exit code 20 for everything else.
    pub fn open(path: &Path, mode: OpenMode) -> Result<Self, OpenError> {
        let other = |text: String| OpenError::Other(Failure::new(20, text));
        let shown = path.display();
        let open = |flags: OFlag| OpenOptions::new().read(true).write(true).custom_flags(flags.bits()).open(path);
        let kind = std::fs::metadata(path).map_err(|error| other(format!("open({shown}) failed: {error}")))?;
        let is_block_device = kind.file_type().is_block_device();
        let acceptable = is_block_device || (mode.regular_file && kind.is_file());
        if !acceptable {
            return Err(other(format!("'{shown}' is not a block device!")));
        }
        let exclusive = if mode.exclusive && is_block_device { OFlag::O_EXCL } else { OFlag::empty() };
        let file = match open(OFlag::O_DIRECT | exclusive) {
            // A file system without direct I/O; only a regular file can meet it.
            Err(error) if !is_block_device && error.raw_os_error() == Some(nix::libc::EINVAL) => open(OFlag::empty()),
            result => result,
        };
        let mut file = match file {
            Err(error) if mode.exclusive && error.raw_os_error() == Some(nix::libc::EBUSY) => {
                return Err(OpenError::Busy)
            }
            result => result.map_err(|error| other(format!("open({shown}) failed: {error}")))?,
        };
        let size_bytes =
            file.seek(SeekFrom::End(0)).map_err(|error| other(format!("size of {shown} unknown: {error}")))?;
        Ok(Device {
            file,
            path: path.to_owned(),
            size_bytes,
            dry_run: mode.dry_run,
            #[cfg(test)]
            writes_left: u32::MAX.into(),
        })
    }

    /// Size of the device, bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Size of the device, whole sectors.
    pub fn size_sectors(&self) -> u64 {
        self.size_bytes / SECTOR_BYTES
    }

    /// True if nothing is ever written.
    pub fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads `len` bytes from `sector` on: whole blocks, the last of a device excepted.
    ///
    /// # Errors
    /// Exit code 10 on an I/O error and for a range that leaves the device.
    pub fn read(&self, sector: u64, len: usize) -> Result<AlignedBuffer, Failure> {
        let offset = self.check_range(sector, len)?;
        let mut buffer = AlignedBuffer::zeroed(len);
        for (index, chunk) in buffer.chunks_mut(CHUNK_BYTES).enumerate() {
            let at = offset + (index * CHUNK_BYTES) as u64;
            self.file.read_exact_at(chunk, at).map_err(|error| self.io_failure("read", at, chunk.len(), &error))?;
        }
        Ok(buffer)
    }

    /// Writes `data` from `sector` on: whole blocks, the last of a device excepted.
    ///
    /// # Errors
    /// As [`Device::read`].
    pub fn write(&self, sector: u64, data: &AlignedBuffer) -> Result<(), Failure> {
        let offset = self.check_range(sector, data.len())?;
        if self.dry_run {
            return Ok(());
        }
        for (index, chunk) in data.chunks(CHUNK_BYTES).enumerate() {
            #[cfg(test)]
            self.count_write()?;
            let at = offset + (index * CHUNK_BYTES) as u64;
            self.file.write_all_at(chunk, at).map_err(|error| self.io_failure("write", at, chunk.len(), &error))?;
        }
        Ok(())
    }

    /// Fills `bytes` bytes from `sector` on with zeroes, by the device itself where it can.
    ///
    /// # Errors
    /// As [`Device::read`].
    pub fn zero(&self, sector: u64, bytes: u64) -> Result<(), Failure> {
        if self.zero_by_itself(sector, bytes)? {
            return Ok(());
        }
        self.write_zeroes(sector, bytes)
    }

    /// Has the device fill `bytes` bytes from `sector` on with zeroes; false if it cannot.
    ///
    /// # Errors
    /// Exit code 10 for a range that leaves the device.
    pub fn zero_by_itself(&self, sector: u64, bytes: u64) -> Result<bool, Failure> {
        let (offset, len) = self.check_long_range(sector, bytes)?;
        if self.dry_run || len == 0 {
            return Ok(true);
        }
        let (Ok(start), Ok(length)) = (i64::try_from(offset), i64::try_from(len)) else {
            return Ok(false);
        };
        #[cfg(test)]
        self.count_write()?;
        Ok(fallocate(&self.file, FallocateFlags::FALLOC_FL_ZERO_RANGE, start, length).is_ok())
    }

    /// Writes `bytes` zero bytes from `sector` on.
    ///
    /// # Errors
    /// As [`Device::read`].
    pub fn write_zeroes(&self, sector: u64, bytes: u64) -> Result<(), Failure> {
        let (offset, len) = self.check_long_range(sector, bytes)?;
        if self.dry_run {
            return Ok(());
        }
        let zeroes = AlignedBuffer::zeroed(len.min(CHUNK_BYTES));
        let mut done = 0;
        while done < len {
            let part = zeroes.len().min(len - done);
            let at = offset + done as u64;
            #[cfg(test)]
            self.count_write()?;
            self.file.write_all_at(&zeroes[..part], at).map_err(|error| self.io_failure("write", at, part, &error))?;
            done += part;
        }
        Ok(())
    }

    /// Makes everything written so far survive a power cut.
    ///
    /// # Errors
    /// Exit code 10.
    pub fn sync(&self) -> Result<(), Failure> {
        if self.dry_run {
            return Ok(());
        }
        self.file.sync_all().map_err(|error| Failure::new(10, format!("fsync({}): {error}", self.path.display())))
    }

    fn check_long_range(&self, sector: u64, bytes: u64) -> Result<(u64, usize), Failure> {
        let len = usize::try_from(bytes).map_err(|_| Failure::new(10, "meta-data area too large"))?;
        Ok((self.check_range(sector, len)?, len))
    }

    fn check_range(&self, sector: u64, len: usize) -> Result<u64, Failure> {
        let offset = sector.checked_mul(SECTOR_BYTES);
        let end = offset.and_then(|offset| offset.checked_add(len as u64));
        let device_end = self.size_sectors() * SECTOR_BYTES;
        // What describes the last of the data may lie in a block of which the device has only a part.
        let is_whole = |end: u64| len % BLOCK_BYTES == 0 || (end == device_end && (len as u64) % SECTOR_BYTES == 0);
        match (offset, end) {
            (Some(offset), Some(end)) if end <= device_end && sector % BLOCK_SECTORS == 0 && is_whole(end) => {
                Ok(offset)
            }
            _ => Err(Failure::new(
                10,
                format!("{}: {len} bytes at sector {sector} are outside of the device", self.path.display()),
            )),
        }
    }

    #[cfg(test)]
    fn count_write(&self) -> Result<(), Failure> {
        let left = self.writes_left.get().checked_sub(1).ok_or_else(|| Failure::new(10, "the power has failed"))?;
        self.writes_left.set(left);
        Ok(())
    }

    fn io_failure(&self, what: &str, offset: u64, len: usize, error: &std::io::Error) -> Failure {
        Failure::new(10, format!("{what} of {len} bytes at {offset} of {} failed: {error}", self.path.display()))
    }
}
