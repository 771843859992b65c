// SPDX-License-Identifier: GPL-2.0
//! `create-md`, `restore-md` and moving meta data after the device has grown: everything that writes a superblock where
//! there was none.
//!
//! spec: metadata 9.3, 9.4, 9.8

use super::apply_al::{initialise_ring, read_ring};
use super::device::{AlignedBuffer, Device, BLOCK_BYTES, BLOCK_SECTORS, SECTOR_BYTES};
use super::dump::Dump;
use super::existing::{classify, with_volume_manager_size, Contents, PROBE_BYTES};
use super::store::{bitmap_bytes, look, look_at_last_known, plan, wipe_superblock, write_superblock, Found, Lookup};
use super::Session;
use crate::confirm::confirm;
use crate::failure::Failure;
use engine::metadata::layout::{Layout, MetaIndex, Striping};
use engine::metadata::superblock::{Magic, MetaFlags, Superblock, SuperblockError, MAGIC_07};

/// Largest activity log the tool makes, blocks.
const MAX_CREATED_BLOCKS: u64 = 8192;
/// Meta data of version 0.7 with a fixed size lay this far before the end of the device, sectors.
const FIXED_07_SECTORS: u64 = 262_144;
/// Unit in which bitmaps are copied, bytes.
const COPY_BYTES: usize = 1 << 20;

/// How `create-md` makes the bitmap. Whatever is in it, the first attach of new meta data writes it anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InitialBitmap {
    /// Zeroed by the device itself where it can, else written.
    #[default]
    Automatic,
    /// Zeroed by the device itself, or not made at all.
    ByDevice,
    /// Written.
    Written,
    /// Left as it is.
    Skipped,
}

impl InitialBitmap {
    /// From the word on the command line.
    pub fn from_word(word: &str) -> Option<Self> {
        Some(match word {
            "automatic" => InitialBitmap::Automatic,
            "zeroout" => InitialBitmap::ByDevice,
            "pwrite" => InitialBitmap::Written,
            "skip" => InitialBitmap::Skipped,
            _ => return None,
        })
    }
}

/// Options of `create-md` and `restore-md`.
#[derive(Clone, Copy, Debug, Default)]
pub struct CreateOptions {
    /// Largest bio the peer takes, bytes.
    pub peer_max_bio_bytes: Option<u32>,
    /// Stripes of the activity log.
    pub al_stripes: Option<u32>,
    /// Size of one of them, KiB.
    pub al_stripe_size_kib: Option<u32>,
    /// How the bitmap is made.
    pub bitmap: InitialBitmap,
}

impl CreateOptions {
    fn striping(&self, default: Striping) -> Result<Striping, Failure> {
        let striping = Striping {
            stripes: self.al_stripes.unwrap_or(default.stripes),
            stripe_size_4k: self.al_stripe_size_kib.map_or(default.stripe_size_4k, |kib| kib / 4),
        };
        if !(Striping::MIN_BLOCKS..=MAX_CREATED_BLOCKS).contains(&striping.blocks()) {
            let kib = striping.blocks().saturating_mul(4);
            let text = format!("an activity log of {kib} KiB is not possible, 32 KiB to 32 MiB are");
            return Err(Failure::new(10, text));
        }
        Ok(striping)
    }
}

/// Makes new meta data.
///
/// # Errors
/// Exit code 1 when the user says no, 40 when data would be destroyed, 10 on I/O errors and bad options.
pub fn create(session: &Session, options: CreateOptions) -> Result<(), Failure> {
    let (device, index) = (&session.device, session.index);
    let striping = options.striping(Striping::DEFAULT)?;
    let layout = plan(device, index, striping)?;
    let note = session.note();
    let lookup = look(device, index, device.size_sectors())?;
    if !matches!(lookup, Lookup::Valid(_)) {
        if let Some(old) = look_at_last_known(device, index, note.as_ref(), session.force)? {
            let question = "There is meta data for this device from before it has grown.\nMove it to the new end?";
            if !session.force && confirm(question, false) {
                check_existing_data(session, &layout)?;
                let moved = move_after_growth(device, &old)?;
                session.remember(&moved.superblock);
                return Ok(());
            }
        }
    }
    let same_place = match &lookup {
        Lookup::Nothing => other_internal_version(device, index)?.map(|version| (version, false)),
        Lookup::OtherVersion(error) => Some((error.to_string(), false)),
        Lookup::Valid(found) if found.layout.striping == striping => Some(("v08 meta data".to_owned(), true)),
        Lookup::Valid(_) => Some(("v08 meta data with another activity log layout".to_owned(), true)),
    };
    if let Some((what, same_version)) = same_place {
        let path = device.path().display();
        eprintln!("You want v08 meta data to be created on {path}, and there is already: {what}.");
        let question =
            if same_version { "Overwrite the existing meta data?" } else { "Replace it by new v08 meta data?" };
        if !confirm(question, session.force) {
            return Err(Failure::new(1, "Nothing was changed."));
        }
    }
    let mut superblock = Superblock::new_created(&layout, 0, striping);
    superblock.la_peer_max_bio_bytes = options.peer_max_bio_bytes.unwrap_or(0);
    // Whatever was found: the new activity log may need more room than the old one, and that is where the data ends.
    check_existing_data(session, &layout)?;
    if !matches!(lookup, Lookup::Nothing) {
        wipe_superblock(device, &layout)?;
    }
    println!("initializing activity log");
    initialise_ring(device, &layout)?;
    initialise_bitmap(device, &layout, options.bitmap)?;
    println!("Writing meta data...");
    write_superblock(device, &Found { layout, superblock }, Magic::Clean)?;
    session.remember(&superblock);
    println!("New drbd meta data block successfully created.");
    Ok(())
}

/// Writes what a dump says.
///
/// # Errors
/// As [`create`].
pub fn restore(session: &Session, options: CreateOptions, dump: &Dump) -> Result<(), Failure> {
    let (device, index) = (&session.device, session.index);
    let lookup = look(device, index, device.size_sectors())?;
    if matches!(lookup, Lookup::Valid(_))
        && !confirm("There is valid meta data in this place already.\nOverwrite it?", session.force)
    {
        return Err(Failure::new(1, "Nothing was changed."));
    }
    let recorded = Striping { stripes: dump.al_stripes, stripe_size_4k: dump.al_stripe_size_4k };
    let striping = options.striping(recorded)?;
    let layout = plan(device, index, striping)?;
    check_existing_data(session, &layout)?;
    let mut superblock = Superblock::new_created(&layout, dump.device_uuid, striping);
    superblock.uuids = dump.uuids;
    superblock.flags = MetaFlags(dump.flags);
    superblock.la_size_sectors = dump.la_size_sectors.min(layout.usable_sectors);
    if superblock.la_size_sectors < dump.la_size_sectors {
        let (dumped, possible) = (dump.la_size_sectors, superblock.la_size_sectors);
        eprintln!("There is no room for {dumped} sectors here: the last agreed size becomes {possible} sectors.");
    }
    superblock.la_peer_max_bio_bytes = dump.la_peer_max_bio_bytes;
    if !matches!(lookup, Lookup::Nothing) {
        wipe_superblock(device, &layout)?;
    }
    write_dumped_bitmap(device, &layout, superblock.la_size_sectors, &dump.bitmap)?;
    // The dump says nothing about the log: an empty one is the truth after a restore.
    initialise_ring(device, &layout)?;
    write_superblock(device, &Found { layout, superblock }, Magic::Clean)?;
    session.remember(&superblock);
    println!("Successfully restored meta data");
    Ok(())
}

/// As much of the bitmap as describes a device of the size of this one.
fn initialise_bitmap(device: &Device, layout: &Layout, how: InitialBitmap) -> Result<(), Failure> {
    let bytes = bitmap_bytes(device.size_sectors()).min(layout.bitmap_sectors * SECTOR_BYTES);
    let sector = layout.bitmap_sector();
    if how == InitialBitmap::Skipped {
        eprintln!("the bitmap is left as it is");
        return Ok(());
    }
    eprintln!("initializing bitmap ({} KB) to all zero", bytes / 1024);
    match how {
        InitialBitmap::Automatic => device.zero(sector, bytes),
        InitialBitmap::Written => device.write_zeroes(sector, bytes),
        InitialBitmap::ByDevice if device.zero_by_itself(sector, bytes)? => Ok(()),
        InitialBitmap::ByDevice => Err(Failure::new(10, format!("{} cannot zero by itself", device.path().display()))),
        InitialBitmap::Skipped => Ok(()),
    }
}

/// Writes the bitmap of a device of this size: what the dump says, and ones where it says nothing.
fn write_dumped_bitmap(
    device: &Device,
    layout: &Layout,
    size_sectors: u64,
    runs: &[(u64, u64)],
) -> Result<(), Failure> {
    let mut sector = layout.bitmap_sector();
    let mut left = bitmap_bytes(size_sectors).min(layout.bitmap_sectors * SECTOR_BYTES);
    let mut needed_words = size_sectors.div_ceil(8).div_ceil(64);
    let mut words = runs.iter().flat_map(|(count, word)| (0..*count).map(|_| *word));
    let mut missing = false;
    while left > 0 {
        let len = left.min(COPY_BYTES as u64);
        let mut chunk = AlignedBuffer::zeroed(len as usize);
        for target in chunk.chunks_exact_mut(8) {
            let word = words.next();
            missing |= word.is_none() && needed_words > 0;
            let unknown = if needed_words > 0 { u64::MAX } else { 0 };
            target.copy_from_slice(&word.unwrap_or(unknown).to_le_bytes());
            needed_words = needed_words.saturating_sub(1);
        }
        device.write(sector, &chunk)?;
        sector += len / SECTOR_BYTES;
        left -= len;
    }
    if missing {
        eprintln!("The dump has less bitmap than its size needs, the rest counts as out of sync.");
    }
    if words.next().is_some() {
        eprintln!("The dump has more bitmap than this device needs, the rest was left out.");
    }
    Ok(())
}

/// Moves internal meta data to the end of a device that has grown.
///
/// The part of the bitmap that is new is written as out of sync: nobody has ever synchronised that storage.
/// Interrupting this while old and new area overlap loses the meta data; elsewhere it leaves the old or the new.
///
/// # Errors
/// Exit code 10, and 40 when the new place reaches into the data.
// spec: metadata 9.8
pub fn move_after_growth(device: &Device, old: &Found) -> Result<Found, Failure> {
    let layout = plan(device, old.layout.index, old.layout.striping)?;
    if old.superblock.la_size_sectors > layout.usable_sectors {
        let text = "The device has grown by less than its meta data, which would destroy the end of the data now.";
        return Err(Failure::new(40, format!("Refused: {text} Let it grow a little more.")));
    }
    let ring = read_ring(device, &old.layout)?;
    let old_bytes = old.layout.bitmap_sectors * SECTOR_BYTES;
    let new_bytes = layout.bitmap_sectors * SECTOR_BYTES;
    let overlaps = old.layout.superblock_sector + BLOCK_SECTORS > layout.bitmap_sector();
    if overlaps {
        // Half moved, the old superblock would speak for a bitmap that is not the old one any more.
        wipe_superblock(device, &old.layout)?;
    }
    let mut chunks: Vec<u64> = (0..old_bytes).step_by(COPY_BYTES).collect();
    // The area moves towards higher sectors, but for the case that the device has hardly grown and the bitmap has.
    if layout.bitmap_sector() > old.layout.bitmap_sector() {
        chunks.reverse();
    }
    for at in chunks {
        let len = (old_bytes - at).min(COPY_BYTES as u64);
        let chunk = device.read(old.layout.bitmap_sector() + at / SECTOR_BYTES, len as usize)?;
        device.write(layout.bitmap_sector() + at / SECTOR_BYTES, &chunk)?;
    }
    let mut at = old_bytes;
    while at < new_bytes {
        let mut ones = AlignedBuffer::zeroed((new_bytes - at).min(COPY_BYTES as u64) as usize);
        ones.fill(0xFF);
        device.write(layout.bitmap_sector() + at / SECTOR_BYTES, &ones)?;
        at += ones.len() as u64;
    }
    device.write(layout.al_sector(), &ring)?;
    let mut superblock = old.superblock;
    superblock.set_layout(&layout);
    let moved = Found { layout, superblock };
    write_superblock(device, &moved, superblock.magic)?;
    if !overlaps {
        wipe_superblock(device, &old.layout)?;
    }
    eprintln!("The device has grown, the meta data was moved to its new end.");
    Ok(moved)
}

/// Meta data of a version that lies in another place of the device.
fn other_internal_version(device: &Device, index: MetaIndex) -> Result<Option<String>, Failure> {
    if !index.is_internal() {
        return Ok(None);
    }
    let Some(sector) = (device.size_sectors() & !7).checked_sub(FIXED_07_SECTORS) else {
        return Ok(None);
    };
    let block = super::store::read_block(device, sector)?;
    Ok(match Superblock::decode_raw(&block) {
        Err(SuperblockError::Old07) => Some(format!("meta data of version 0.7 ({MAGIC_07:#x})")),
        _ => None,
    })
}

/// Refuses or asks when the device holds something that is not ours.
// spec: metadata 9.4
fn check_existing_data(session: &Session, layout: &Layout) -> Result<(), Failure> {
    let device = &session.device;
    let probe = PROBE_BYTES.min((device.size_bytes() as usize) / BLOCK_BYTES * BLOCK_BYTES);
    let head = device.read(0, probe)?;
    let contents = with_volume_manager_size(classify(&head), device.path());
    if contents == Contents::Empty {
        return Ok(());
    }
    println!("md_offset {}", layout.superblock_sector * SECTOR_BYTES);
    println!("al_offset {}", layout.al_sector() * SECTOR_BYTES);
    println!("bm_offset {}", layout.bitmap_sector() * SECTOR_BYTES);
    let usable_kib = layout.usable_sectors / 2;
    let path = device.path().display();
    let refused = |why: &str| Err(Failure::new(40, format!("Refused: {why}")));
    match contents {
        Contents::Empty => Ok(()),
        _ if contents.is_recognised() && !session.index.is_internal() => {
            println!("\nFound on {path}: {}", name_of(&contents));
            if session.ignore_sanity_checks {
                return Ok(());
            }
            refused("this would destroy it. If it is not needed any more, zero out the beginning of the device.")
        }
        Contents::Unsized { name } => {
            println!("\nFound on {path}: {name}, of unknown size");
            if session.ignore_sanity_checks {
                return Ok(());
            }
            refused(
                "internal meta data could destroy its end. If it is not needed, zero out the beginning of the device.",
            )
        }
        Contents::Sized { name, bytes } => {
            println!("\nFound on {path}: {name}");
            println!("{:12} kB data area apparently used", bytes / 1024);
            println!("{usable_kib:12} kB left usable by current configuration\n");
            if bytes.div_ceil(SECTOR_BYTES) > layout.usable_sectors {
                return refused(
                    "the meta data would overwrite the end of it. Shrink it first, or use an external meta-disk.",
                );
            }
            ask("The meta data seems to fit behind it, but that is only a guess.\nProceed?", session)
        }
        Contents::Unknown => {
            println!("\nFound some data on {path}\n\n ==> This might destroy existing data! <==");
            ask("Proceed?", session)
        }
    }
}

fn name_of(contents: &Contents) -> &'static str {
    match contents {
        Contents::Sized { name, .. } | Contents::Unsized { name } => name,
        Contents::Empty => "nothing",
        Contents::Unknown => "some data",
    }
}

fn ask(question: &str, session: &Session) -> Result<(), Failure> {
    if confirm(question, session.force) {
        Ok(())
    } else {
        Err(Failure::new(1, "Nothing was changed."))
    }
}

#[cfg(test)]
mod tests {
    use super::super::apply_al::apply_al;
    use super::super::device::OpenMode;
    use super::super::dump::write_dump;
    use super::super::last_known::LastKnown;
    use super::super::store::{read_block, write_block};
    use super::*;
    use engine::metadata::transaction::{decode, Kind, Transaction};
    use std::os::unix::fs::FileExt;
    use std::path::PathBuf;

    /// A disk in a file, and the directory of its notes beside it.
    struct Disk {
        path: PathBuf,
        notes: PathBuf,
    }

    impl Disk {
        fn new(name: &str, mib: u64) -> Self {
            let path = std::env::temp_dir().join(format!("drbdmeta-{name}-{}", std::process::id()));
            std::fs::File::create(&path).unwrap().set_len(mib << 20).unwrap();
            Disk { notes: path.with_extension("notes"), path }
        }

        fn resize(&self, bytes: u64) {
            std::fs::OpenOptions::new().write(true).open(&self.path).unwrap().set_len(bytes).unwrap();
        }

        fn device(&self) -> Device {
            let mode = OpenMode { exclusive: true, regular_file: true, dry_run: false };
            Device::open(&self.path, mode).map_err(|error| format!("{error:?}")).unwrap()
        }

        fn write(&self, offset: u64, bytes: &[u8]) {
            let file = std::fs::OpenOptions::new().write(true).open(&self.path).unwrap();
            file.write_all_at(bytes, offset).unwrap();
        }

        /// Makes it look like a file system of so many blocks of 1 KiB.
        fn make_ext2(&self, kib: u32) {
            self.write(0x438, &[0x53, 0xEF]);
            self.write(0x404, &kib.to_le_bytes());
        }

        /// With a minor that has no note.
        fn session(&self, index: MetaIndex) -> Session {
            Session {
                device: self.device(),
                index,
                minor: -1,
                force: false,
                ignore_sanity_checks: false,
                note_dir: self.notes.clone(),
            }
        }

        /// In which every question is answered with yes.
        fn forced(&self, index: MetaIndex) -> Session {
            Session { force: true, ..self.session(index) }
        }
    }

    impl Drop for Disk {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.path);
            let _ = std::fs::remove_dir_all(&self.notes);
        }
    }

    const INDEX: MetaIndex = MetaIndex::FlexibleInternal;

    /// Meta data of an attached Primary of the whole disk, in the state a crash leaves.
    fn crashed(device: &Device) -> Found {
        let layout = plan(device, INDEX, Striping::DEFAULT).unwrap();
        let mut superblock = Superblock::new_created(&layout, 7, Striping::DEFAULT);
        superblock.la_size_sectors = layout.usable_sectors;
        superblock.flags = MetaFlags::CONSISTENT | MetaFlags::PRIMARY_IND | MetaFlags::WAS_UP_TO_DATE;
        initialise_ring(device, &layout).unwrap();
        let found = Found { layout, superblock };
        write_superblock(device, &found, Magic::Unclean).unwrap();
        found
    }

    fn found(device: &Device) -> Found {
        found_at(device, INDEX)
    }

    fn found_at(device: &Device, index: MetaIndex) -> Found {
        match look(device, index, device.size_sectors()).unwrap() {
            Lookup::Valid(found) => found,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_log_that_was_applied_stays_applied() {
        let disk = Disk::new("apply", 300);
        let device = disk.device();
        let layout = crashed(&device).layout;
        let mut block = [0; BLOCK_BYTES];
        let hot = Transaction {
            number: 3,
            kind: Kind::Update,
            updates: &[(0, 1), (1, 33)],
            context_start: 0,
            context_size: 1237,
            context: &[],
        };
        hot.encode(&mut block);
        write_block(&device, layout.transaction_sector(3), &block).unwrap();

        let mut crashed = found(&device);
        assert_eq!(crashed.superblock.magic, Magic::Unclean);
        assert!(apply_al(&device, &mut crashed).unwrap());
        let clean = found(&device).superblock;
        assert_eq!((clean.magic, clean.flags), (Magic::Clean, crashed.superblock.flags));
        assert!(clean.flags.contains(MetaFlags::AL_CLEAN | MetaFlags::PRIMARY_IND));
        let bitmap = device.read(layout.bitmap_sector(), 8192).unwrap();
        let set: Vec<_> = (0..8192).filter(|at| bitmap[*at] != 0).collect();
        assert_eq!(set, (128..256).chain(4096 + 128..4096 + 256).collect::<Vec<_>>());
        assert_eq!(
            decode(&read_block(&device, layout.transaction_sector(3)).unwrap()).unwrap().kind(),
            Kind::Initialized
        );

        let before = std::fs::read(&disk.path).unwrap();
        assert!(!apply_al(&device, &mut found(&device)).unwrap());
        assert!(std::fs::read(&disk.path).unwrap() == before);
    }

    #[test]
    fn a_log_is_applied_in_the_part_of_a_block_at_the_end_of_a_device() {
        let disk = Disk::new("part", 8);
        disk.resize((8 << 20) - 512);
        let device = disk.device();
        let layout = plan(&device, MetaIndex::FlexibleExternal, Striping::DEFAULT).unwrap();
        let mut superblock = Superblock::new_created(&layout, 7, Striping::DEFAULT);
        superblock.la_size_sectors = layout.usable_sectors;
        superblock.flags = MetaFlags::CONSISTENT | MetaFlags::PRIMARY_IND;
        initialise_ring(&device, &layout).unwrap();
        write_superblock(&device, &Found { layout, superblock }, Magic::Unclean).unwrap();
        let mut block = [0; BLOCK_BYTES];
        // The last extent there is, and the one behind it.
        let last = (layout.usable_sectors / 8192) as u32 - 1;
        let hot = Transaction {
            number: 0,
            kind: Kind::Update,
            updates: &[(0, last), (1, last + 1)],
            context_start: 0,
            context_size: 1237,
            context: &[],
        };
        hot.encode(&mut block);
        write_block(&device, layout.transaction_sector(0), &block).unwrap();

        assert!(apply_al(&device, &mut Found { layout, superblock }).unwrap());
        let image = std::fs::read(&disk.path).unwrap();
        assert!(image[image.len() - 128..].iter().all(|byte| *byte == 0xFF));
        assert!(image[image.len() - 512..image.len() - 128].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_log_that_is_needed_and_lost_is_not_ignored() {
        let disk = Disk::new("lost", 100);
        let device = disk.device();
        let layout = crashed(&device).layout;
        device.zero(layout.al_sector(), 8 * 4096).unwrap();
        assert_eq!(apply_al(&device, &mut found(&device)).unwrap_err().code, 1);
        assert_eq!(found(&device).superblock.magic, Magic::Unclean);
    }

    #[test]
    fn after_growth_nothing_out_of_sync_is_forgotten() {
        let disk = Disk::new("grow", 300);
        let old = crashed(&disk.device());
        let mut words = AlignedBuffer::zeroed(4096);
        words[56] = 0x81;
        disk.device().write(old.layout.bitmap_sector(), &words).unwrap();
        let note = LastKnown { size_bytes: 300 << 20, path: String::new(), device_uuid: Some(7) };

        disk.resize(900 << 20);
        let device = disk.device();
        assert!(matches!(look(&device, INDEX, device.size_sectors()).unwrap(), Lookup::Nothing));
        let other = LastKnown { device_uuid: Some(8), ..note.clone() };
        assert!(look_at_last_known(&device, INDEX, Some(&other), false).unwrap().is_none());
        let seen = look_at_last_known(&device, INDEX, Some(&note), false).unwrap().unwrap();
        move_after_growth(&device, &seen).unwrap();

        let moved = found(&device);
        assert_eq!(moved.superblock.la_size_sectors, old.superblock.la_size_sectors);
        assert_eq!((moved.superblock.uuids, moved.superblock.magic), (old.superblock.uuids, Magic::Unclean));
        let bytes = (moved.layout.bitmap_sectors * 512) as usize;
        let bitmap = device.read(moved.layout.bitmap_sector(), bytes).unwrap();
        let old_bytes = (old.layout.bitmap_sectors * 512) as usize;
        assert_eq!(bitmap[..64].iter().position(|byte| *byte != 0), Some(56));
        assert!(bitmap[57..old_bytes].iter().all(|byte| *byte == 0));
        assert!(bitmap[old_bytes..].iter().all(|byte| *byte == 0xFF));
        assert!(read_block(&device, old.layout.superblock_sector).unwrap().iter().all(|byte| *byte == 0));
    }

    #[test]
    fn data_on_the_disk_is_not_overwritten() {
        for (name, index, prepare, code) in [
            ("full", INDEX, (&|disk: &Disk| disk.make_ext2(64 << 10)) as &dyn Fn(&Disk), 40),
            ("fits", INDEX, &|disk: &Disk| disk.make_ext2(60 << 10), 1),
            ("external", MetaIndex::FlexibleExternal, &|disk: &Disk| disk.make_ext2(1 << 10), 40),
            ("unknown", INDEX, &|disk: &Disk| disk.write(5000, b"x"), 1),
            ("swap", INDEX, &|disk: &Disk| disk.write(4086, b"SWAPSPACE2"), 40),
        ] {
            let disk = Disk::new(name, 64);
            prepare(&disk);
            let before = std::fs::read(&disk.path).unwrap();
            assert_eq!(create(&disk.session(index), CreateOptions::default()).unwrap_err().code, code, "{name}");
            assert!(std::fs::read(&disk.path).unwrap() == before, "{name}");
        }
        let small = Disk::new("small", 0);
        assert_eq!(create(&small.session(INDEX), CreateOptions::default()).unwrap_err().code, 10);
    }
    #[test]
    fn meta_data_in_its_place_does_not_vouch_for_the_data_before_it() {
        let larger_log = CreateOptions { al_stripes: Some(7), al_stripe_size_kib: Some(64), ..Default::default() };
        let disk = Disk::new("vouch", 64);
        create(&disk.forced(INDEX), CreateOptions::default()).unwrap();
        let usable = found(&disk.device()).layout.usable_sectors;
        disk.make_ext2((usable / 2) as u32);

        let before = std::fs::read(&disk.path).unwrap();
        assert_eq!(create(&disk.forced(INDEX), larger_log).unwrap_err().code, 40);
        assert!(std::fs::read(&disk.path).unwrap() == before);

        // As large as it was, it leaves the file system whole.
        create(&disk.forced(INDEX), CreateOptions::default()).unwrap();
        // Behind a smaller one a larger log has room.
        disk.make_ext2((usable / 2) as u32 - 1000);
        create(&disk.forced(INDEX), larger_log).unwrap();
        assert_eq!(found(&disk.device()).layout.striping.blocks(), 7 * 16);
    }
    /// What `dump-md` says, and what `restore-md` reads.
    fn dump(device: &Device, index: MetaIndex) -> Dump {
        let mut text = Vec::new();
        write_dump(device, &found_at(device, index), false, &mut text).unwrap();
        Dump::parse(&String::from_utf8(text).unwrap()).unwrap()
    }

    #[test]
    fn a_dump_brings_everything_back() {
        // Sectors of the data: of external meta data, far more than its own device has.
        for (name, index, mib, sectors) in [
            ("internal", INDEX, 300, (300 << 11) - 200),
            ("flexible", MetaIndex::FlexibleExternal, 8, 8 << 21),
            ("odd", MetaIndex::FlexibleExternal, 8, 16311 << 15),
            ("slot", MetaIndex::Fixed(1), 256, 1 << 29),
        ] {
            let disk = Disk::new(&format!("back-{name}"), mib);
            if name == "odd" {
                // No whole number of blocks.
                disk.resize((mib << 20) - 512);
            }
            let device = disk.device();
            let layout = plan(&device, index, Striping::DEFAULT).unwrap();
            let mut superblock = Superblock::new_created(&layout, 0xAB, Striping::DEFAULT);
            superblock.la_size_sectors = sectors;
            superblock.uuids = [9, 8, 7, 6];
            superblock.flags = MetaFlags::CONSISTENT | MetaFlags::WAS_UP_TO_DATE | MetaFlags::AL_CLEAN;
            superblock.la_peer_max_bio_bytes = 1 << 20;
            initialise_ring(&device, &layout).unwrap();
            // Out of sync: something at the beginning, and the last block of the data.
            let last = (sectors - 1) / 8;
            disk.write(layout.bitmap_sector() * SECTOR_BYTES + 3, &[0x5A]);
            disk.write(layout.bitmap_sector() * SECTOR_BYTES + last / 8, &[1 << (last % 8)]);
            write_superblock(&device, &Found { layout, superblock }, Magic::Clean).unwrap();

            let before = dump(&device, index);
            assert_eq!(before.la_size_sectors, sectors, "{name}");
            assert_eq!(before.bitmap.iter().filter(|(_, word)| *word != 0).count(), 2, "{name}");
            device.zero(0, device.size_sectors() / 8 * 4096).unwrap();
            restore(&disk.session(index), CreateOptions::default(), &before).unwrap();
            assert_eq!(dump(&device, index), before, "{name}");
            restore(&disk.forced(index), CreateOptions::default(), &before).unwrap();
            assert_eq!(dump(&device, index), before, "{name}");
        }
    }

    #[test]
    fn what_a_dump_does_not_say_is_out_of_sync() {
        let disk = Disk::new("short", 300);
        let dump = Dump { la_size_sectors: 500_000, bitmap: vec![(100, 0), (1, 1)], ..Dump::default() };
        let log = CreateOptions { al_stripes: Some(1), al_stripe_size_kib: Some(32), ..Default::default() };
        restore(&disk.session(INDEX), log, &dump).unwrap();
        let device = disk.device();
        let bitmap = device.read(found(&device).layout.bitmap_sector(), 8192).unwrap();
        let word = |index: usize| u64::from_le_bytes(bitmap[index * 8..index * 8 + 8].try_into().unwrap());
        // 62500 blocks in 977 words.
        assert!((0..100).all(|index| word(index) == 0));
        assert_eq!(word(100), 1);
        assert!((101..977).all(|index| word(index) == u64::MAX));
        assert!((977..1024).all(|index| word(index) == 0));
    }

    #[test]
    fn a_restored_size_is_what_data_or_bitmap_have_room_for() {
        let text = |sectors: u64| {
            format!(
                "version \"v08\"; uuid {{ 0x0000000000000009; 0x0000000000000000; 0x0000000000000000; \
                 0x0000000000000000; flags 0x00000081; }} la-size-sect {sectors}; bm-byte-per-bit 4096; \
                 device-uuid 0x0000000000000000; la-peer-max-bio-size 0; al-stripes 1; al-stripe-size-4k 8; bm {{ }}"
            )
        };
        for (name, index, mib, sectors) in [
            ("internal", INDEX, 100, 204_720),
            // As drbdmeta 9.22 does.
            ("flexible", MetaIndex::FlexibleExternal, 8, 534_511_616),
        ] {
            let disk = Disk::new(&format!("room-{name}"), mib);
            let dumped = Dump::parse(&text(999_999_999_999)).unwrap();
            restore(&disk.session(index), CreateOptions::default(), &dumped).unwrap();
            assert_eq!(found_at(&disk.device(), index).superblock.la_size_sectors, sectors, "{name}");
        }
    }
    #[test]
    fn the_bitmap_is_made_as_asked() {
        for (how, is_zeroed) in [
            (InitialBitmap::Automatic, true),
            (InitialBitmap::ByDevice, true),
            (InitialBitmap::Written, true),
            (InitialBitmap::Skipped, false),
        ] {
            let disk = Disk::new(&format!("{how:?}"), 300);
            let layout = plan(&disk.device(), INDEX, Striping::DEFAULT).unwrap();
            let area = (layout.bitmap_sectors * SECTOR_BYTES) as usize;
            disk.write(layout.bitmap_sector() * SECTOR_BYTES, &vec![0x55; area]);
            create(&disk.session(INDEX), CreateOptions { bitmap: how, ..Default::default() }).unwrap();
            let bitmap = disk.device().read(layout.bitmap_sector(), area).unwrap();
            assert_eq!(bitmap.iter().all(|byte| *byte == 0), is_zeroed, "{how:?}");
        }
    }

    /// Does something that the power interrupts after every possible number of writes; then looks what is there.
    fn interrupted(prepared: &Disk, act: impl Fn(Device) -> Result<(), Failure>, check: impl Fn(&Device, u32)) {
        let image = std::fs::read(&prepared.path).unwrap();
        for writes in 0.. {
            std::fs::write(&prepared.path, &image).unwrap();
            let device = prepared.device();
            device.writes_left.set(writes);
            let result = act(device);
            check(&prepared.device(), writes);
            if result.is_ok() {
                return;
            }
        }
    }

    /// Meta data with bits that must not get lost.
    fn out_of_sync(device: &Device) -> (Found, Vec<u8>) {
        let mut found = crashed(device);
        found.superblock.uuids = [9, 8, 7, 6];
        write_superblock(device, &found, Magic::Unclean).unwrap();
        let bytes = (found.layout.bitmap_sectors * SECTOR_BYTES) as usize;
        let mut bitmap = AlignedBuffer::zeroed(bytes);
        for (at, byte) in bitmap.iter_mut().enumerate() {
            *byte = (at % 251) as u8;
        }
        device.write(found.layout.bitmap_sector(), &bitmap).unwrap();
        (found, bitmap.to_vec())
    }

    #[test]
    fn no_old_superblock_speaks_for_a_new_bitmap() {
        let disk = Disk::new("cut", 20);
        let (old, bitmap) = out_of_sync(&disk.device());
        let check = |device: &Device, writes: u32| {
            let Lookup::Valid(now) = look(device, INDEX, device.size_sectors()).unwrap() else { return };
            if now.superblock.uuids == old.superblock.uuids {
                let found = device.read(old.layout.bitmap_sector(), bitmap.len()).unwrap();
                assert!(*found == bitmap, "after {writes} writes");
            }
        };
        interrupted(&disk, |device| create(&Session { device, ..disk.forced(INDEX) }, CreateOptions::default()), check);
        let mut other = dump(&disk.device(), INDEX);
        other.la_size_sectors = 30_000;
        other.uuids = [5, 5, 5, 5];
        out_of_sync(&disk.device());
        let restore = |device| restore(&Session { device, ..disk.forced(INDEX) }, CreateOptions::default(), &other);
        interrupted(&disk, restore, check);
    }

    #[test]
    fn meta_data_moved_in_part_is_none() {
        for (name, grown_by) in [("little", 8192), ("more", 40 << 10), ("far", 10 << 20)] {
            let disk = Disk::new(&format!("moved-{name}"), 20);
            let (old, bitmap) = out_of_sync(&disk.device());
            let size_bytes = 20 << 20;
            let note = LastKnown { size_bytes, path: String::new(), device_uuid: None };
            disk.resize(size_bytes + grown_by);
            let check = |device: &Device, writes: u32| {
                let now = match look(device, INDEX, device.size_sectors()).unwrap() {
                    Lookup::Valid(now) => Some(now),
                    _ => look_at_last_known(device, INDEX, Some(&note), false).unwrap(),
                };
                // None is better than one that has forgotten something.
                let Some(now) = now else { return };
                let found = device.read(now.layout.bitmap_sector(), bitmap.len()).unwrap();
                assert!(*found == bitmap, "{name}, after {writes} writes");
                assert_eq!(now.superblock.uuids, old.superblock.uuids);
            };
            interrupted(&disk, |device| move_after_growth(&device, &old).map(|_| ()), check);
            assert!(matches!(look(&disk.device(), INDEX, disk.device().size_sectors()).unwrap(), Lookup::Valid(_)));
        }
    }
    #[test]
    fn a_larger_bitmap_that_needs_the_place_of_data_does_not_get_it() {
        // One sector more begins a new block of the bitmap, and leaves the end of the meta data where it is.
        let size_bytes: u64 = 64 << 30;
        let disk = Disk::new("sector", size_bytes >> 20);
        let (old, bitmap) = out_of_sync(&disk.device());
        disk.resize(size_bytes + 512);
        let note = LastKnown { size_bytes, path: String::new(), device_uuid: None };
        let device = disk.device();
        let mut seen = look_at_last_known(&device, INDEX, Some(&note), false).unwrap().unwrap();
        assert_eq!(seen.superblock.la_size_sectors, old.layout.usable_sectors);
        assert_eq!(move_after_growth(&device, &seen).unwrap_err().code, 40);
        let area = device.read(old.layout.bitmap_sector(), bitmap.len()).unwrap();
        assert!(*area == bitmap);

        seen.superblock.la_size_sectors -= 8;
        let moved = move_after_growth(&device, &seen).unwrap();
        assert_eq!(moved.layout.bitmap_sector(), old.layout.bitmap_sector() - 8);
        let area = device.read(moved.layout.bitmap_sector(), bitmap.len()).unwrap();
        assert!(*area == bitmap);
        assert_eq!(found(&device).superblock.uuids, old.superblock.uuids);
    }
    #[test]
    fn the_note_names_the_place_after_a_move_and_only_then() {
        let disk = Disk::new("note", 20);
        crashed(&disk.device());
        let session = disk.session(INDEX);
        session.remember(&found(&session.device).superblock);
        let first = session.note().unwrap();
        assert_eq!((first.size_bytes, first.device_uuid), (20 << 20, Some(7)));

        // Looking how it would be forgets nothing.
        disk.resize(30 << 20);
        let mode = OpenMode { exclusive: true, regular_file: true, dry_run: true };
        let device = Device::open(&disk.path, mode).map_err(|error| format!("{error:?}")).unwrap();
        let dry_run = Session { device, ..disk.session(INDEX) };
        let moved = dry_run.find_or_move().unwrap().unwrap();
        dry_run.remember(&moved.superblock);
        assert_eq!(dry_run.note(), Some(first));

        // Once it has moved, with nothing more to be written.
        disk.session(INDEX).find_or_move().unwrap().unwrap();
        assert_eq!(disk.session(INDEX).note().unwrap().size_bytes, 30 << 20);
    }
}
