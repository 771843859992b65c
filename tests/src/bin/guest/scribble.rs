//! A program that changes its pages while they are being written.

use super::Arguments;
use anyhow::{Context, Result};
use machine_tests::pattern::{Random, SECTOR_BYTES};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Bytes of a change: less than a page, so that a page that is being written changes in parts.
const CHANGE_BYTES: u64 = 64;

/// Threads change the pages of the cache without a pause, and the pages are written out so many times meanwhile.
pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let device = File::options().read(true).write(true).open(&arguments.device);
    let device = device.with_context(|| format!("opening {}", arguments.device))?;
    let done = AtomicBool::new(false);
    let length = arguments.sectors * SECTOR_BYTES as u64;
    thread::scope(|scope| {
        for thread in 0..arguments.threads {
            let (device, done) = (&device, &done);
            scope.spawn(move || -> Result<()> {
                let mut random = Random::new(thread);
                while !done.load(Ordering::Relaxed) {
                    let at = arguments.start * SECTOR_BYTES as u64 + random.below(length / CHANGE_BYTES) * CHANGE_BYTES;
                    let bytes: Vec<u8> = (0..CHANGE_BYTES / 8).flat_map(|_| random.next_word().to_le_bytes()).collect();
                    device.write_all_at(&bytes, at)?;
                }
                Ok(())
            });
        }
        let mut outcome = Ok(());
        for _ in 0..arguments.count.unwrap_or(1) {
            outcome = device.sync_data();
            if outcome.is_err() {
                break;
            }
        }
        done.store(true, Ordering::Relaxed);
        outcome.context("writing the pages out")
    })?;
    Ok(device.sync_data()?)
}
