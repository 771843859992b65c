//! Disks of a machine: sparse raw files, so that the host can read what a machine has written, with an optional partition 1.

use anyhow::{bail, Context, Result};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Where partition 1 starts in bytes, whatever the sector size (the usual alignment of partitioning tools).
pub const PARTITION_START_BYTES: u64 = 1 << 20;

const PARTITION_TABLE_AT: usize = 446;
const TYPE_LINUX: u8 = 0x83;

/// What a disk is like. The first disk of a machine is /dev/sda, the next /dev/sdb, and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Usable size in MiB: of partition 1 where there is one, else of the disk.
    pub size_mib: u64,
    /// Logical and physical sector size in bytes, 512 or 4096.
    pub sector_bytes: u32,
    /// Whether it has a partition 1 that fills it.
    pub partitioned: bool,
}

impl Disk {
    /// A disk of 512-byte sectors without partitions.
    pub const fn whole(size_mib: u64) -> Disk {
        Disk { size_mib, sector_bytes: 512, partitioned: false }
    }

    /// A disk of 512-byte sectors with a partition 1 of this size.
    pub const fn partitioned(size_mib: u64) -> Disk {
        Disk { size_mib, sector_bytes: 512, partitioned: true }
    }

    /// The same with 4096-byte sectors.
    pub const fn with_4k_sectors(self) -> Disk {
        Disk { sector_bytes: 4096, ..self }
    }

    /// Where the usable area starts in the file, in bytes.
    pub const fn start_bytes(&self) -> u64 {
        if self.partitioned {
            PARTITION_START_BYTES
        } else {
            0
        }
    }

    /// Size of the usable area in bytes.
    pub const fn size_bytes(&self) -> u64 {
        self.size_mib << 20
    }

    /// Makes the file, all zeros but the partition table.
    pub(crate) fn create(&self, path: &Path) -> Result<()> {
        let file = File::create_new(path).with_context(|| format!("creating {}", path.display()))?;
        file.set_len(self.start_bytes() + self.size_bytes())?;
        if self.partitioned {
            file.write_all_at(&self.partition_table()?, 0)?;
        }
        Ok(())
    }

    /// A master boot record: it counts in sectors, so the limit is 2 TiB for 512-byte sectors.
    fn partition_table(&self) -> Result<[u8; 512]> {
        let sectors = |bytes: u64| u32::try_from(bytes / u64::from(self.sector_bytes));
        let (Ok(start), Ok(length)) = (sectors(PARTITION_START_BYTES), sectors(self.size_bytes())) else {
            bail!("a partition of {} MiB is too large for its table", self.size_mib);
        };
        let mut table = [0; 512];
        let entry = &mut table[PARTITION_TABLE_AT..PARTITION_TABLE_AT + 16];
        // Cylinder, head and sector of both ends are "beyond what can be said".
        entry[1..4].copy_from_slice(&[0xfe, 0xff, 0xff]);
        entry[4] = TYPE_LINUX;
        entry[5..8].copy_from_slice(&[0xfe, 0xff, 0xff]);
        entry[8..12].copy_from_slice(&start.to_le_bytes());
        entry[12..16].copy_from_slice(&length.to_le_bytes());
        table[510..].copy_from_slice(&[0x55, 0xaa]);
        Ok(table)
    }
}

/// The name of disk `index`: `sda` is 0.
pub fn name(index: usize) -> String {
    let letter = u8::try_from(index).ok().filter(|&index| index < 26).map_or('z', |index| char::from(b'a' + index));
    format!("sd{letter}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_partition_fills_the_disk() {
        let disk = Disk::partitioned(8192);
        let table = disk.partition_table().unwrap();
        assert_eq!(table[454..458], 2048_u32.to_le_bytes());
        assert_eq!(table[458..462], (8192_u32 * 2048).to_le_bytes());
        assert_eq!(table[510..], [0x55, 0xaa]);
        let table = disk.with_4k_sectors().partition_table().unwrap();
        assert_eq!(table[454..458], 256_u32.to_le_bytes());
        assert_eq!(table[458..462], (8192_u32 * 256).to_le_bytes());
    }

    #[test]
    fn a_file_is_made_once_and_with_its_size() {
        let path = std::env::temp_dir().join(format!("disk-{}", std::process::id()));
        Disk::partitioned(3).create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 4 << 20);
        assert!(Disk::whole(1).create(&path).is_err());
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn disks_are_named_as_linux_names_them() {
        assert_eq!((name(0), name(1)), ("sda".to_owned(), "sdb".to_owned()));
    }
}
