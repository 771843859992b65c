// SPDX-License-Identifier: GPL-2.0
use super::super::superblock::{MetaFlags, Superblock};
use super::*;

const MIB: u64 = 2048;

fn internal(cap: u64) -> Layout {
    Layout::compute(MetaIndex::Internal, cap, cap, Striping::DEFAULT).unwrap()
}

/// The rows of the table of metadata 3.1: backing size, bitmap, md_size, usable.
#[test]
fn internal_sizes_of_the_table() {
    for (cap, bitmap_sectors, md_size_sectors, usable_sectors) in [
        (100 * MIB, 8, 80, 204_720),
        (1024 * MIB, 64, 136, 2_097_016),
        (1200 * MIB, 80, 152, 2_457_448),
        (10 * 1024 * MIB, 640, 712, 20_970_808),
        (1024 * 1024 * MIB, 65536, 65608, 2_147_418_040),
        (16 * 1024 * 1024 * MIB, 1_048_576, 1_048_648, 34_358_689_720),
    ] {
        let layout = internal(cap);
        assert_eq!(layout.bitmap_sectors, bitmap_sectors);
        assert_eq!(layout.md_size_sectors, md_size_sectors);
        assert_eq!(layout.usable_sectors, usable_sectors);
        assert_eq!(layout.superblock_sector, cap - 8);
        assert_eq!(layout.al_offset, -64);
        assert_eq!(i64::from(layout.bm_offset), 8 - i64::from(md_size_sectors));
        assert_eq!((layout.first_sector, layout.last_sector), (usable_sectors, cap - 1));
        assert_eq!(layout.bitmap_sector(), usable_sectors);
        assert_eq!(layout.al_sector(), cap - 72);
    }
}

#[test]
fn internal_with_a_striped_log() {
    let striping = Striping { stripes: 7, stripe_size_4k: 16 };
    let layout = Layout::compute(MetaIndex::FlexibleInternal, 1300 * MIB, 0, striping).unwrap();
    assert_eq!((layout.bitmap_sectors, layout.md_size_sectors, layout.usable_sectors), (88, 992, 2_661_408));
    assert_eq!(layout.al_offset, -(7 * 16 * 8));
}

#[test]
fn internal_leaves_up_to_seven_sectors_unused() {
    for rest in 0..8 {
        let layout = internal(2_097_152 + rest);
        assert_eq!(layout.superblock_sector, 2_097_144);
        assert_eq!(layout.last_sector, 2_097_151);
        // One sector more than 1 GiB starts another block of the bitmap.
        assert_eq!(layout.bitmap_sectors, if rest == 0 { 64 } else { 72 });
    }
}

#[test]
fn flexible_external_uses_the_whole_device() {
    let layout = Layout::compute(MetaIndex::FlexibleExternal, 2_097_152, 4096, Striping::DEFAULT).unwrap();
    assert_eq!((layout.superblock_sector, layout.al_offset, layout.bm_offset), (0, 8, 72));
    assert_eq!((layout.md_size_sectors, layout.bitmap_sectors), (4096, 4024));
    assert_eq!((layout.first_sector, layout.last_sector), (0, 4095));
    assert_eq!(layout.usable_sectors, 2_097_152);
    let small = Layout::compute(MetaIndex::FlexibleExternal, u64::MAX, 2048, Striping::DEFAULT).unwrap();
    assert_eq!(small.usable_sectors, (2048 - 72) * 32768);
}

#[test]
fn fixed_slots() {
    for slot in [0u32, 1, 7] {
        let end = FIXED_AREA_SECTORS * (u64::from(slot) + 1);
        let layout = Layout::compute(MetaIndex::Fixed(slot), u64::MAX, end, Striping::DEFAULT).unwrap();
        assert_eq!(layout.superblock_sector, u64::from(slot) * 262_144);
        assert_eq!((layout.md_size_sectors, layout.al_offset, layout.bm_offset), (262_144, 8, 72));
        assert_eq!((layout.bitmap_sectors, layout.usable_sectors), (262_072, 8_587_575_296));
        assert_eq!((layout.first_sector, layout.last_sector), (end - 262_144, end - 1));
        let error = Layout::compute(MetaIndex::Fixed(slot), u64::MAX, end - 1, Striping::DEFAULT).unwrap_err();
        assert_eq!(error.error_code(), 112);
    }
    let striped = Striping { stripes: 2, stripe_size_4k: 8 };
    let error = Layout::compute(MetaIndex::Fixed(0), 1 << 20, 1 << 20, striped).unwrap_err();
    assert_eq!(error, LayoutError::BadStriping(striped));
}

#[test]
fn devices_that_are_too_small_or_too_large() {
    for cap in [0, 7, 8, 72, 80, 87] {
        let error = Layout::compute(MetaIndex::Internal, cap, cap, Striping::DEFAULT).unwrap_err();
        assert!(
            matches!(error, LayoutError::MetaDeviceTooSmall { found_sectors, .. } if found_sectors == cap),
            "{cap}"
        );
    }
    assert_eq!(internal(88).usable_sectors, 8);
    let flexible = |mcap| Layout::compute(MetaIndex::FlexibleExternal, 1 << 20, mcap, Striping::DEFAULT);
    assert!(matches!(flexible(72), Err(LayoutError::MetaDeviceTooSmall { .. })));
    assert_eq!(flexible(73).unwrap().usable_sectors, 32768);
    assert_eq!(flexible(1 << 32), Err(LayoutError::MetaDeviceTooLarge));
    let huge = Layout::compute(MetaIndex::Internal, u64::MAX, u64::MAX, Striping::DEFAULT);
    assert_eq!(huge, Err(LayoutError::MetaDeviceTooLarge));
    assert_eq!(missing_meta_sectors(MetaIndex::Internal, 2047), 1);
    assert_eq!(missing_meta_sectors(MetaIndex::FlexibleExternal, 2048), 0);
    assert_eq!(missing_meta_sectors(MetaIndex::Fixed(1), 2048), 2 * 262_144 - 2048);
}

#[test]
fn index_numbers() {
    for (number, index) in [
        (-1, MetaIndex::Internal),
        (-2, MetaIndex::FlexibleExternal),
        (-3, MetaIndex::FlexibleInternal),
        (0, MetaIndex::Fixed(0)),
        (255, MetaIndex::Fixed(255)),
        (i32::MAX, MetaIndex::Fixed(0x7FFF_FFFF)),
    ] {
        assert_eq!(MetaIndex::from_i32(number), Some(index));
        assert_eq!(index.as_i32(), number);
    }
    assert_eq!(MetaIndex::from_i32(-4), None);
    assert_eq!(MetaIndex::from_i32(i32::MIN), None);
}

#[test]
fn ring_positions() {
    let two_by_eight = Striping { stripes: 2, stripe_size_4k: 8 };
    let blocks: Vec<u64> = (0..16).map(|number| two_by_eight.ring_block(number)).collect();
    assert_eq!(blocks, [0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15]);
    assert_eq!(two_by_eight.ring_block(u32::MAX), 15);
    assert_eq!(two_by_eight.ring_block(0), 0);
    assert_eq!(Striping::DEFAULT.ring_block(19), 3);
    let layout = internal(2_097_152);
    assert_eq!(layout.transaction_sector(9), 2_097_144 - 64 + 8);
}

#[test]
fn bitmap_pages_end_with_the_area() {
    let layout = Layout::compute(MetaIndex::FlexibleExternal, 1 << 20, 2061, Striping::DEFAULT).unwrap();
    assert_eq!(layout.bitmap_sectors, 1989);
    assert_eq!(layout.bitmap_page(0), Some((72, 4096)));
    assert_eq!(layout.bitmap_page(247), Some((72 + 247 * 8, 4096)));
    assert_eq!(layout.bitmap_page(248), Some((72 + 248 * 8, 5 * 512)));
    assert_eq!(layout.bitmap_page(249), None);
    assert_eq!(layout.bitmap_page(u64::MAX), None);
    assert_eq!(layout.bitmap_bits(), 1989 * 4096);
    assert_eq!(internal(2_097_152).bitmap_page(8), None);
}

#[test]
fn slots_that_fit_the_log() {
    for (blocks, extents) in [(8, 6433), (16, 13785), (72, 65249), (73, 65534), (4_194_304, 65534)] {
        assert_eq!(max_al_extents(blocks), extents);
    }
    assert_eq!(clamp_al_extents(1237, 8), 1237);
    assert_eq!(clamp_al_extents(7, 8), 67);
    assert_eq!(clamp_al_extents(65534, 8), 6433);
}

fn superblock_of(layout: &Layout) -> Superblock {
    Superblock::new_created(layout, 0, layout.striping)
}

#[test]
fn what_is_created_validates_to_the_same_layout() {
    let striped = Striping { stripes: 7, stripe_size_4k: 16 };
    for (index, backing, meta, striping) in [
        (MetaIndex::Internal, 2_097_152, 2_097_152, Striping::DEFAULT),
        (MetaIndex::FlexibleInternal, 2_662_405, 0, striped),
        (MetaIndex::FlexibleExternal, 2_097_152, 4096, striped),
        (MetaIndex::Fixed(3), 2_097_152, 4 * 262_144, Striping::DEFAULT),
    ] {
        let layout = Layout::compute(index, backing, meta, striping).unwrap();
        let superblock = superblock_of(&layout);
        assert_eq!(Layout::validate(&superblock, index, backing, meta), Ok(layout));
        assert!(layout.matches(&superblock));
    }
}

#[test]
fn broken_offsets_are_refused() {
    let cap = 2_097_152;
    let good = superblock_of(&internal(cap));
    let check = |change: fn(&mut Superblock)| {
        let mut superblock = good;
        change(&mut superblock);
        Layout::validate(&superblock, MetaIndex::Internal, cap, cap)
    };
    assert_eq!(check(|s| s.al_offset = -56), Err(LayoutError::BadActivityLogOffset { al_offset: -56 }));
    assert_eq!(check(|s| s.al_offset = i32::MIN), Err(LayoutError::BadBitmapOffset { bm_offset: -128 }));
    assert_eq!(check(|s| s.al_offset = 8), Err(LayoutError::BadActivityLogOffset { al_offset: 8 }));
    assert_eq!(check(|s| s.bm_offset = -63), Err(LayoutError::BadBitmapOffset { bm_offset: -63 }));
    assert_eq!(check(|s| s.bm_offset = -127), Err(LayoutError::AreaBeyondDevice));
    assert_eq!(
        check(|s| {
            s.bm_offset = -129;
            s.md_size_sectors = 137;
        }),
        Err(LayoutError::BadBitmapOffset { bm_offset: -129 })
    );
    assert_eq!(check(|s| s.bm_offset = i32::MIN), Err(LayoutError::AreaBeyondDevice));
    assert_eq!(check(|s| s.md_size_sectors = 137), Err(LayoutError::AreaBeyondDevice));
    assert_eq!(check(|s| s.md_size_sectors = u32::MAX), Err(LayoutError::AreaBeyondDevice));
    assert!(check(|s| s.al_stripes = 2).is_err());
    // 64 sectors of bitmap describe 64 * 4096 bits; the division of the reference rounds down.
    assert!(check(|s| s.la_size_sectors = 64 * 32768).is_ok());
    assert!(check(|s| s.la_size_sectors = 64 * 32768 + 32760).is_ok());
    assert_eq!(
        check(|s| s.la_size_sectors = 64 * 32768 + 32761),
        Err(LayoutError::BitmapTooSmall { needed_sectors: 65, found_sectors: 64 })
    );
    assert!(matches!(check(|s| s.la_size_sectors = u64::MAX), Err(LayoutError::BitmapTooSmall { .. })));
    assert_eq!(check(|s| s.flags.set(MetaFlags::PRIMARY_IND)), Ok(internal(cap)));
}

#[test]
fn foreign_external_superblocks_are_refused() {
    let fixed = Layout::compute(MetaIndex::Fixed(0), 1 << 20, 262_144, Striping::DEFAULT).unwrap();
    let mut superblock = superblock_of(&fixed);
    superblock.md_size_sectors = 262_136;
    let result = Layout::validate(&superblock, MetaIndex::Fixed(0), 1 << 20, 262_144);
    assert_eq!(result, Err(LayoutError::BadFixedArea));
    // An internal superblock at the start of an external device.
    let inside = superblock_of(&internal(2_097_152));
    let result = Layout::validate(&inside, MetaIndex::FlexibleExternal, 1 << 20, 2_097_152);
    assert_eq!(result, Err(LayoutError::BadActivityLogOffset { al_offset: -64 }));
    // The device became smaller.
    let flexible = Layout::compute(MetaIndex::FlexibleExternal, 1 << 20, 4096, Striping::DEFAULT).unwrap();
    let result = Layout::validate(&superblock_of(&flexible), MetaIndex::FlexibleExternal, 1 << 20, 4095);
    assert_eq!(result, Err(LayoutError::AreaBeyondDevice));
    assert_eq!(result.unwrap_err().error_code(), 119);
}

#[test]
fn moved_meta_data_does_not_match() {
    let old = superblock_of(&internal(2_097_152));
    assert!(!internal(2_457_600).matches(&old));
}

#[test]
fn size_decision() {
    let agreed = |own, peer, la, user| {
        agreed_size(&SizeInputs {
            own_sectors: own,
            peer_sectors: peer,
            last_agreed_sectors: la,
            user_sectors: user,
            ..SizeInputs::default()
        })
        .size_sectors
    };
    assert_eq!(agreed(100, 80, 0, 0), 80);
    assert_eq!(agreed(80, 100, 50, 0), 80);
    // Only one disk known, a size was agreed on.
    assert_eq!(agreed(100, 0, 90, 0), 90);
    assert_eq!(agreed(70, 0, 90, 0), 70);
    assert_eq!(agreed(0, 60, 90, 0), 60);
    assert_eq!(agreed(0, 0, 90, 0), 90);
    // Nothing agreed on.
    assert_eq!(agreed(100, 0, 0, 0), 100);
    assert_eq!(agreed(0, 100, 0, 0), 100);
    assert_eq!(agreed(0, 0, 0, 0), 0);
    // Configured.
    assert_eq!(agreed(100, 80, 0, 50), 50);
    assert_eq!(agreed(100, 80, 0, 80), 80);
    assert_eq!(agreed(100, 80, 0, 81), 80);
}

#[test]
fn size_decision_says_what_to_log() {
    let inputs = SizeInputs { own_sectors: 100, last_agreed_sectors: 60, ..SizeInputs::default() };
    assert_eq!(agreed_size(&inputs).size_sectors, 60);
    let forced = SizeInputs { assume_peer_has_space: true, ..inputs };
    assert_eq!(agreed_size(&forced), AgreedSize { size_sectors: 100, peer_assumed: true });
    let connected = SizeInputs { is_connected: true, peer_sectors: 70, ..forced };
    assert_eq!(agreed_size(&connected), AgreedSize { size_sectors: 70, peer_assumed: false });
    let too_big = agreed_size(&SizeInputs { user_sectors: 101, ..inputs });
    assert_eq!(too_big, AgreedSize { size_sectors: 60, peer_assumed: false });
}

#[test]
fn size_changes() {
    assert_eq!(size_change(0, 100, 0, false), Ok(SizeChange::GrewFromZero));
    assert_eq!(size_change(0, 0, 0, false), Ok(SizeChange::Unchanged));
    assert_eq!(size_change(50, 100, 0, true), Ok(SizeChange::Grew));
    assert_eq!(size_change(100, 50, 50, true), Ok(SizeChange::Shrunk));
    assert_eq!(size_change(100, 50, 0, false), Ok(SizeChange::Shrunk));
    assert_eq!(size_change(100, 50, 0, true), Err(SizeChangeError::ImplicitShrink));
    assert_eq!(size_change(100, 50, 60, false), Err(SizeChangeError::NoSpaceForMetaData));
    assert_eq!(SizeChange::GrewFromZero as i32, 3);
    assert_eq!(SizeChangeError::ImplicitShrink as i32, -3);
}

#[test]
fn sizes_at_attach() {
    let fits = AttachSizes { usable_sectors: 100, ..AttachSizes::default() };
    assert_eq!(check_attach_sizes(&fits), Ok(()));
    let configured = AttachSizes { user_sectors: 101, ..fits };
    assert_eq!(check_attach_sizes(&configured), Err(AttachSizeError::BelowConfigured));
    let in_use = AttachSizes { virtual_sectors: 101, ..fits };
    let little_meta = AttachSizes { missing_meta_sectors: 1, ..in_use };
    assert_eq!(check_attach_sizes(&little_meta), Err(AttachSizeError::MetaDeviceTooSmall));
    let both = AttachSizes { user_sectors: 101, ..little_meta };
    assert_eq!(check_attach_sizes(&both), Err(AttachSizeError::BelowConfigured));
    assert_eq!(check_attach_sizes(&in_use), Err(AttachSizeError::BelowVirtualDevice));
    let same = AttachedSize { agreed_sectors: 100, last_agreed_sectors: 100, user_sectors: 0, is_consistent: true };
    assert_eq!(check_attach_shrink(&same), Ok(false));
    let shrunk = AttachedSize { agreed_sectors: 90, ..same };
    assert_eq!(check_attach_shrink(&shrunk), Err(AttachSizeError::ImplicitShrink));
    assert_eq!(check_attach_shrink(&AttachedSize { user_sectors: 90, ..shrunk }), Ok(true));
    assert_eq!(check_attach_shrink(&AttachedSize { is_consistent: false, ..shrunk }), Ok(false));
    assert_eq!(AttachSizeError::BelowConfigured.error_code(), 111);
    assert_eq!(AttachSizeError::MetaDeviceTooSmall.error_code(), 112);
    assert_eq!(AttachSizeError::ImplicitShrink.error_code(), 170);
}
