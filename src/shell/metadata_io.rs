// SPDX-License-Identifier: GPL-2.0
//! Carries out a volume's transfers on its meta-data device: superblock, activity log, bitmap pages.
//!
//! The engine says what and in which order; here are only the buffers and the requests. Runs in the volume's work item.

use super::backing::{Backing, Tag};
use super::disk_io::{self, Context};
use super::faults::{self, Fault};
use super::volume::Volume;
use crate::linux::bio::{self, BioFlags, Outcome, Owner, Status};
use crate::linux::mem::{PageChain, PAGE_BYTES};
use crate::linux::work::DeferredArc;
use engine::resource::MetadataIo;
use kernel::sync::Arc;

/// Starts every transfer that the engine wants now. May sleep.
pub(crate) fn start_all(volume: &Arc<Volume>, backing: &DeferredArc<Backing>) {
    loop {
        let mut pages = PageChain::new(backing.meta_pages(), PAGE_BYTES);
        let Some(buffer) = pages.first_page_mut() else { return };
        let next = disk_io::enter(&volume.resource, Context::Process, |locked| {
            locked.engine.next_metadata_io(volume.id, buffer)
        });
        let Some(io) = next else { return };
        start(backing.clone(), io, pages);
    }
}

fn start(backing: DeferredArc<Backing>, io: MetadataIo, mut pages: PageChain) {
    if !io.write {
        // The last page may be read in part.
        pages.zero();
    }
    pages.truncate(io.size_bytes as usize);
    let fault = if io.write { Fault::MetaWrite } else { Fault::MetaRead };
    if faults::strikes(backing.minor(), fault) {
        backing.done(Tag::Metadata(io.ticket), Outcome { result: Err(Status::IO_ERROR), pages: Some(pages) });
        return;
    }
    let durable = io.write && io.durable;
    let flags = BioFlags { fua: durable, preflush: durable, sync: true, meta: true, readahead: false };
    bio::submit_pages(backing, Tag::Metadata(io.ticket), io.write, flags, io.sector, pages);
}
