// SPDX-License-Identifier: GPL-2.0
use super::*;
use crate::storage::HeapStorage;

type TestBitmap = Bitmap<HeapStorage>;

fn bitmap(capacity_sectors: u64) -> TestBitmap {
    Bitmap::new(capacity_sectors).unwrap()
}

/// Bits of the model that are set, and that weight and search agree with them.
fn assert_same(bitmap: &TestBitmap, model: &[bool]) {
    assert_eq!(bitmap.bits(), model.len() as u64);
    assert_eq!(bitmap.weight(), model.iter().filter(|set| **set).count() as u64);
    for (bit, set) in model.iter().enumerate() {
        assert_eq!(bitmap.is_set(bit as u64), *set, "bit {bit}");
    }
    let in_words: u64 = bitmap.words.iter().map(|word| u64::from(word.count_ones())).sum();
    assert_eq!(in_words, bitmap.weight(), "bits beyond the end");
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

#[test]
fn sizes_at_every_edge() {
    for (sectors, bits, words, pages) in [
        (0, 0, 0, 0),
        (1, 1, 1, 1),
        (8, 1, 1, 1),
        (9, 2, 1, 1),
        (511, 64, 1, 1),
        (512, 64, 1, 1),
        (513, 65, 2, 1),
        (262_144, 32768, 512, 1),
        (262_145, 32769, 513, 2),
    ] {
        let bitmap = bitmap(sectors);
        assert_eq!((bitmap.bits(), bitmap.word_count(), bitmap.page_count()), (bits, words, pages), "{sectors}");
    }
}

#[test]
fn setting_rounds_outward_and_clearing_inward() {
    let mut bitmap = bitmap(1000);
    assert_eq!(bitmap.set_range_sectors(7, 1024), 2);
    assert!(bitmap.is_set(0) && bitmap.is_set(1) && !bitmap.is_set(2));
    assert_eq!(bitmap.set_range_sectors(8, 512), 0);
    assert_eq!(bitmap.clear_range_sectors(1, 4096), 0);
    assert_eq!(bitmap.clear_range_sectors(7, 4608), 1);
    assert!(bitmap.is_set(0) && !bitmap.is_set(1));
    assert_eq!(bitmap.clear_range_sectors(0, 7 * 512), 0);
    assert_eq!(bitmap.clear_range_sectors(0, 4096), 1);
    assert_eq!(bitmap.weight(), 0);
}

#[test]
fn the_last_partial_block_is_cleared_by_a_range_to_the_end() {
    let mut bitmap = bitmap(1003);
    assert_eq!(bitmap.bits(), 126);
    assert_eq!(bitmap.set_range_sectors(1002, 512), 1);
    assert_eq!(bitmap.clear_range_sectors(1000, 1024), 0);
    assert_eq!(bitmap.clear_range_sectors(1001, 1024), 0);
    assert_eq!(bitmap.clear_range_sectors(1000, 1536), 1);
    assert_eq!(bitmap.set_range_sectors(1002, 512), 1);
    // Cut at the end of the device.
    assert_eq!(bitmap.clear_range_sectors(992, 1 << 20), 1);
}

#[test]
fn impossible_ranges_change_nothing() {
    let mut bitmap = bitmap(1 << 20);
    for size_bytes in [0, 1, 513, MAX_RANGE_BYTES + 512, u32::MAX] {
        assert_eq!(bitmap.set_range_sectors(0, size_bytes), 0);
        assert!(!bitmap.any_set(0, size_bytes));
    }
    assert_eq!(bitmap.set_range_sectors(1 << 20, 512), 0);
    assert_eq!(bitmap.set_range_sectors(u64::MAX, 512), 0);
    assert_eq!(bitmap.set_range_sectors((1 << 20) - 1, MAX_RANGE_BYTES), 1);
    assert_eq!(bitmap.set_range_sectors(0, MAX_RANGE_BYTES), 32768);
    assert_eq!(bitmap.clear_bits(5, 4) + bitmap.count_in(5, 4) + bitmap.count_in(u64::MAX, u64::MAX), 0);
}

#[test]
fn random_changes_agree_with_a_list_of_booleans() {
    let mut random = Random(0x5EED_0001);
    for capacity_sectors in [1u64, 8, 505, 512, 513, 1024, 4099, 8192] {
        let mut bitmap = bitmap(capacity_sectors);
        let mut model = vec![false; bitmap.bits() as usize];
        for _ in 0..400 {
            let sector = random.below(capacity_sectors + 10);
            let sectors = 1 + random.below(300);
            let end = (sector + sectors).min(capacity_sectors);
            let set = random.below(2) == 0;
            let mut changed = 0;
            for (bit, value) in model.iter_mut().enumerate() {
                let block = bit as u64 * 8..(bit as u64 * 8 + 8).min(capacity_sectors);
                let touched = block.start < end && sector < block.end;
                let covered = sector <= block.start && block.end <= end;
                if (if set { touched } else { covered }) && *value != set {
                    *value = set;
                    changed += 1;
                }
            }
            let size_bytes = sectors as u32 * 512;
            let result = if set {
                bitmap.set_range_sectors(sector, size_bytes)
            } else {
                bitmap.clear_range_sectors(sector, size_bytes)
            };
            assert_eq!(result, changed, "{capacity_sectors}: {set} {sector}+{sectors}");
        }
        assert_same(&bitmap, &model);
    }
}

#[test]
fn searches_agree_with_a_list_of_booleans() {
    let mut random = Random(0x5EED_0002);
    for bits in [1u64, 63, 64, 65, 128, 200, 640] {
        for density in [1, 3, 30] {
            let mut bitmap = bitmap(bits * 8);
            let model: Vec<bool> = (0..bits).map(|_| random.below(density) == 0).collect();
            for bit in (0..bits).filter(|bit| model[*bit as usize]) {
                bitmap.set_bits(bit, bit);
            }
            for from in 0..bits {
                let tail = &model[from as usize..];
                let find = |set| tail.iter().position(|value| *value == set).map(|at| from + at as u64);
                let as_scan = |found: Option<u64>| found.map_or(Scan::None, Scan::Found);
                assert_eq!(bitmap.next_set(from, usize::MAX), as_scan(find(true)));
                assert_eq!(bitmap.next_clear(from, usize::MAX), as_scan(find(false)));
                for set in [true, false] {
                    let expected = find(!set).unwrap_or(bits) - from;
                    assert_eq!(bitmap.run_length(from, set), expected);
                }
                let last = from + random.below(bits);
                let count = tail.iter().take((last - from + 1) as usize).filter(|set| **set).count();
                assert_eq!(bitmap.count_in(from, last), count as u64);
            }
            assert_eq!(bitmap.next_set(bits, 1), Scan::None);
            assert_eq!(bitmap.run_length(bits, true), 0);
            assert_eq!(bitmap.run_length(u64::MAX, false), 0);
        }
    }
}

#[test]
fn a_search_in_steps_finds_the_same() {
    let mut bitmap = bitmap(8 * 64 * 10);
    bitmap.set_bits(64 * 7 + 5, 64 * 7 + 5);
    assert_eq!(bitmap.next_set(3, 2), Scan::Continue(128));
    assert_eq!(bitmap.next_set(128, 5), Scan::Continue(64 * 7));
    assert_eq!(bitmap.next_set(64 * 7, 1), Scan::Found(64 * 7 + 5));
    assert_eq!(bitmap.next_set(64 * 7 + 6, 0), Scan::Continue(64 * 8));
    assert_eq!(bitmap.next_set(64 * 8, 2), Scan::None);
}

#[test]
fn any_set_looks_at_touched_blocks_only() {
    let mut bitmap = bitmap(8 * 200);
    bitmap.set_bits(64, 64);
    assert!(!bitmap.any_set(0, 64 * 4096));
    assert!(bitmap.any_set(0, 64 * 4096 + 512));
    assert!(bitmap.any_set(64 * 8 + 7, 512));
    assert!(!bitmap.any_set(65 * 8, MAX_RANGE_BYTES));
}

#[test]
fn set_all_and_clear_all_in_steps() {
    for bits in [1u64, 63, 64, 65, 32768, 32769, 65536] {
        let mut bitmap = bitmap(bits * 8);
        let mut from = Some(0);
        while let Some(word) = from {
            from = bitmap.set_all_from(word, 100);
        }
        assert_eq!(bitmap.weight(), bits);
        assert_eq!(bitmap.run_length(0, true), bits);
        assert_eq!(bitmap.next_page_to_write(Pages::Changed), Some(0));
        let mut from = Some(0);
        while let Some(word) = from {
            from = bitmap.clear_all_from(word, 7);
        }
        assert_eq!(bitmap.weight(), 0);
    }
    let mut bitmap = bitmap(8 * 100);
    bitmap.set_all();
    assert_eq!(bitmap.weight(), 100);
    bitmap.clear_all();
    assert_eq!(bitmap.weight(), 0);
    assert_eq!(self::bitmap(0).set_all_from(0, 100), None);
}

#[test]
fn words_of_the_peer_are_added_and_cut() {
    let mut bitmap = bitmap(8 * 70);
    bitmap.set_bits(65, 65);
    assert_eq!(bitmap.or_word(0, 0xF0), 4);
    assert_eq!(bitmap.or_word(1, u64::MAX), 5);
    assert_eq!(bitmap.or_word(2, u64::MAX), 0);
    assert_eq!(bitmap.weight(), 10);
    assert_eq!((bitmap.word(0), bitmap.word(1), bitmap.word(2)), (0xF0, 0x3F, 0));
}

/// Sweeps over the pages to be written and copies each.
fn sweep(bitmap: &mut TestBitmap, which: Pages) -> Vec<u64> {
    let mut written = Vec::new();
    while let Some(page) = bitmap.next_page_to_write(which) {
        bitmap.copy_page(page, &mut [0; 4096]);
        written.push(page);
    }
    written
}

#[test]
fn changed_pages_are_written_once() {
    let mut bitmap = bitmap(8 * BITS_PER_PAGE * 5);
    assert_eq!(sweep(&mut bitmap, Pages::Changed), []);
    bitmap.set_bits(BITS_PER_PAGE - 1, BITS_PER_PAGE);
    bitmap.merge_bits(4 * BITS_PER_PAGE, 4 * BITS_PER_PAGE);
    assert_eq!(sweep(&mut bitmap, Pages::Changed), [0, 1, 4]);
    assert_eq!(sweep(&mut bitmap, Pages::Changed), []);
    // A change that changes nothing is none.
    bitmap.set_bits(BITS_PER_PAGE, BITS_PER_PAGE);
    assert_eq!(sweep(&mut bitmap, Pages::Changed), []);
    bitmap.clear_bits(BITS_PER_PAGE, BITS_PER_PAGE);
    assert_eq!(sweep(&mut bitmap, Pages::Changed), [1]);
    bitmap.mark_all_pages();
    assert_eq!(sweep(&mut bitmap, Pages::Changed), [0, 1, 2, 3, 4]);
}

#[test]
fn hinted_pages_are_written_when_they_changed() {
    let mut bitmap = bitmap(8 * BITS_PER_PAGE * 5);
    bitmap.set_bits(BITS_PER_PAGE * 3, BITS_PER_PAGE * 3);
    bitmap.set_bits(BITS_PER_PAGE * 2, BITS_PER_PAGE * 2);
    bitmap.hint_extent(31);
    bitmap.hint_extent(3 * 32);
    bitmap.hint_extent(5 * 32);
    bitmap.hint_extent(u32::MAX);
    assert_eq!(sweep(&mut bitmap, Pages::Hinted), [3]);
    assert_eq!(sweep(&mut bitmap, Pages::Hinted), []);
    // The needless hint for page 0 is forgotten.
    bitmap.set_bits(0, 0);
    assert_eq!(sweep(&mut bitmap, Pages::Hinted), []);
    assert_eq!(sweep(&mut bitmap, Pages::Changed), [0, 2]);
}

#[test]
fn a_page_on_its_way_is_left_out_until_it_arrived() {
    let mut bitmap = bitmap(8 * BITS_PER_PAGE * 3);
    bitmap.set_bits(0, 0);
    bitmap.set_bits(2 * BITS_PER_PAGE, 2 * BITS_PER_PAGE);
    assert!(bitmap.lock_page_io(0));
    assert!(!bitmap.lock_page_io(0));
    assert!(!bitmap.lock_page_io(3));
    bitmap.copy_page(0, &mut [0; 4096]);
    bitmap.set_bits(1, 1);
    bitmap.hint_extent(0);
    assert_eq!(bitmap.pages_in_flight(), 1);
    assert_eq!(bitmap.next_page_to_write(Pages::Hinted), None);
    assert_eq!(sweep(&mut bitmap, Pages::Changed), [2]);
    bitmap.unlock_page_io(0);
    bitmap.unlock_page_io(0);
    assert_eq!(bitmap.pages_in_flight(), 0);
    assert_eq!(bitmap.next_page_to_write(Pages::Hinted), Some(0));
    assert_eq!(sweep(&mut bitmap, Pages::Changed), [0]);
}

#[test]
fn pages_go_to_disk_and_come_back() {
    for bits in [1u64, 63, 64, 65, 32704, 32768, 32769, 40000] {
        let mut random = Random(bits + 1);
        let mut bitmap = bitmap(bits * 8);
        let model: Vec<bool> = (0..bits).map(|_| random.below(2) == 0).collect();
        for bit in (0..bits).filter(|bit| model[*bit as usize]) {
            bitmap.set_bits(bit, bit);
        }
        let mut loaded = self::bitmap(bits * 8);
        for page in 0..bitmap.page_count() {
            let mut block = [0xAA; 4096];
            bitmap.copy_page(page, &mut block);
            let byte = |bit: usize| (block[(bit % 32768) / 8] >> (bit % 8)) & 1 == 1;
            let first = page as usize * 32768;
            for (bit, set) in model.iter().enumerate().skip(first).take(32768) {
                assert_eq!(byte(bit), *set);
            }
            loaded.load_page(page, &block);
        }
        assert_eq!(loaded.finish_load(), bitmap.weight());
        assert_same(&loaded, &model);
        assert_eq!(sweep(&mut loaded, Pages::Changed), []);
    }
}

#[test]
fn loading_ignores_what_lies_beyond_the_end_and_keeps_the_last_word() {
    for bits in [1u64, 63, 64, 65, 128, 32768, 32832] {
        let mut bitmap = bitmap(bits * 8);
        for page in 0..bitmap.page_count() + 1 {
            bitmap.load_page(page, &[0xFF; 4096]);
        }
        assert_eq!(bitmap.finish_load(), bits);
        assert_same(&bitmap, &vec![true; bits as usize]);
    }
}

#[test]
fn what_was_set_before_loading_stays_and_is_written() {
    let mut bitmap = bitmap(8 * 40_000);
    bitmap.set_bits(3, 4);
    bitmap.load_page(0, &[0x10; 4096]);
    bitmap.load_page(1, &[0; 4096]);
    assert_eq!((bitmap.word(0), bitmap.word(1)), (0x1010_1010_1010_1018, 0x1010_1010_1010_1010));
    assert_eq!(bitmap.finish_load(), 4096 + 1);
    assert_eq!(sweep(&mut bitmap, Pages::Changed), [0]);
}

#[test]
fn growing_and_shrinking() {
    let mut bitmap = bitmap(8 * 65);
    bitmap.set_bits(60, 64);
    bitmap.resize(BitmapTables::new(8 * 130).unwrap(), true);
    assert_eq!((bitmap.bits(), bitmap.weight()), (130, 5 + 65));
    bitmap.resize(BitmapTables::new(8 * 33000).unwrap(), false);
    assert_eq!((bitmap.bits(), bitmap.weight(), bitmap.page_count()), (33000, 70, 2));
    assert_eq!(sweep(&mut bitmap, Pages::Changed), [0]);
    // Down to an exact multiple of 64: the last word stays.
    let old = bitmap.resize(BitmapTables::new(8 * 64).unwrap(), true);
    assert_eq!(old.capacity_sectors, 8 * 33000);
    assert_eq!((bitmap.bits(), bitmap.weight()), (64, 4));
    bitmap.resize(BitmapTables::new(8 * 62).unwrap(), true);
    assert_eq!((bitmap.bits(), bitmap.weight(), bitmap.word(0)), (62, 2, 3 << 60));
    bitmap.resize(BitmapTables::new(0).unwrap(), true);
    assert_eq!((bitmap.bits(), bitmap.weight(), bitmap.page_count()), (0, 0, 0));
    bitmap.resize(BitmapTables::new(8 * 512).unwrap(), true);
    assert_eq!(bitmap.weight(), 512);
}

#[test]
fn an_empty_bitmap_has_nothing() {
    let mut bitmap = bitmap(0);
    assert_eq!(bitmap.set_range_sectors(0, 4096) + bitmap.clear_range_sectors(0, 4096), 0);
    assert_eq!(bitmap.next_set(0, 1), Scan::None);
    assert_eq!(bitmap.or_word(0, 1), 0);
    assert!(!bitmap.any_set(0, 4096) && !bitmap.is_set(0));
    bitmap.load_page(0, &[0xFF; 4096]);
    bitmap.copy_page(0, &mut [0; 4096]);
    assert_eq!(bitmap.finish_load(), 0);
}
