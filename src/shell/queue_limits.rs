// SPDX-License-Identifier: GPL-2.0
//! What the disk of a volume can take, from what its backing device and the peer can take.

use super::volume::Volume;
use crate::linux::disk::DiskLimits;
use engine::resource::VolumeStatus;

/// Largest request at all, in bytes. spec: proc-and-sysfs 3
const MAX_REQUEST_BYTES: u32 = 1 << 20;

/// Limits before the first attach or connect. spec: proc-and-sysfs 3
pub(crate) const UNATTACHED: DiskLimits = DiskLimits {
    max_request_bytes: 4096,
    logical_block_bytes: 512,
    physical_block_bytes: 512,
    io_min_bytes: 512,
    io_opt_bytes: 0,
    max_discard_bytes: 0,
    discard_granularity_bytes: 512,
    max_write_zeroes_bytes: 0,
    rotational: false,
};

/// The limits that apply now. May sleep.
pub(crate) fn compute(volume: &Volume) -> DiskLimits {
    let status = volume.resource.locked.with(|locked| locked.engine.volume_status(volume.id));
    let most = status.as_ref().map_or(0, |status| status.max_bio_bytes).clamp(4096, MAX_REQUEST_BYTES);
    let (peer_block, opens) = status.as_ref().map_or((0, 0), |status| (status.peer_block_bytes, status.opens));
    let Some(backing) = volume.backing() else {
        let block = volume.block_bytes(UNATTACHED.logical_block_bytes, peer_block, opens);
        return DiskLimits {
            max_request_bytes: most,
            logical_block_bytes: block,
            physical_block_bytes: block,
            io_min_bytes: block,
            ..UNATTACHED
        };
    };
    let lower = backing.data().limits();
    let block = volume.block_bytes(lower.logical_block_bytes, peer_block, opens);
    // spec: state-machine 21.1
    let limit = |of: fn(&VolumeStatus) -> u32| match &status {
        Some(status) if lower.max_discard_bytes > 0 => of(status),
        _ => 0,
    };
    DiskLimits {
        max_request_bytes: most,
        logical_block_bytes: block,
        physical_block_bytes: lower.physical_block_bytes.max(block),
        io_min_bytes: lower.io_min_bytes.max(block),
        io_opt_bytes: lower.io_opt_bytes,
        max_discard_bytes: limit(|status| status.max_discard_bytes),
        discard_granularity_bytes: lower.discard_granularity_bytes.max(block),
        max_write_zeroes_bytes: limit(|status| status.max_write_zeroes_bytes),
        rotational: lower.rotational,
    }
}
