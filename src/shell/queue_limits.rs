// SPDX-License-Identifier: GPL-2.0
//! What the disk of a volume can take, from what its backing device and the peer can take.

use super::volume::Volume;
use crate::linux::disk::DiskLimits;
use engine::state::Conn;

/// Largest request at all, in bytes. spec: proc-and-sysfs 3
const MAX_REQUEST_BYTES: u32 = 1 << 20;

/// Limits before the first attach or connect. spec: proc-and-sysfs 3
pub(crate) const UNATTACHED: DiskLimits = DiskLimits {
    max_request_bytes: 4096,
    logical_block_bytes: 512,
    physical_block_bytes: 512,
    alignment_offset_bytes: 0,
    dma_alignment_mask: 511,
    virt_boundary_mask: 0,
    io_min_bytes: 512,
    io_opt_bytes: 0,
    max_discard_bytes: 0,
    discard_granularity_bytes: 512,
    discard_alignment_bytes: 0,
    max_write_zeroes_bytes: 0,
    rotational: false,
};

/// The limits that apply now. May sleep.
pub(crate) fn compute(volume: &Volume) -> DiskLimits {
    let status = volume.resource.locked.with(|locked| locked.engine.volume_status(volume.id));
    let most = status.as_ref().map_or(0, |status| status.max_bio_bytes).clamp(4096, MAX_REQUEST_BYTES);
    let (peer_block, opens) = status.as_ref().map_or((0, 0), |status| (status.peer_block_bytes, status.opens));
    let zeroes = status.as_ref().map_or((0, 0), |status| (status.max_discard_bytes, status.max_write_zeroes_bytes));
    let Some(backing) = volume.backing() else {
        let block = volume.block_bytes(UNATTACHED.logical_block_bytes, peer_block, opens);
        // What the peer makes of them is its affair.
        let met = status.as_ref().is_some_and(|status| status.state.conn >= Conn::WFReportParams);
        let (max_discard_bytes, max_write_zeroes_bytes) = if met { zeroes } else { (0, 0) };
        return DiskLimits {
            max_request_bytes: most,
            logical_block_bytes: block,
            physical_block_bytes: block,
            io_min_bytes: block,
            max_discard_bytes,
            discard_granularity_bytes: block,
            max_write_zeroes_bytes,
            ..UNATTACHED
        };
    };
    let lower = backing.data().limits();
    let block = volume.block_bytes(lower.logical_block_bytes, peer_block, opens);
    // spec: state-machine 21.1
    let (max_discard_bytes, max_write_zeroes_bytes) = zeroes;
    let discard_granularity_bytes = lower.discard_granularity_bytes.max(block);
    // Where the device takes less than a granule at once, nothing would ever be discarded.
    let discards = discard_granularity_bytes <= lower.max_discard_bytes.min(max_discard_bytes);
    // An application's pages go down as they are, so they have to lie in memory as the lower device wants them: it fails what
    // does not, and a healthy disk would be given up for that.
    let offset = lower.own_alignment_offset_bytes.filter(|offset| offset.checked_rem(block) == Some(0)).unwrap_or(0);
    DiskLimits {
        max_request_bytes: most,
        logical_block_bytes: block,
        physical_block_bytes: lower.physical_block_bytes.max(block),
        alignment_offset_bytes: offset,
        dma_alignment_mask: lower.dma_alignment_mask.max(UNATTACHED.dma_alignment_mask),
        virt_boundary_mask: lower.virt_boundary_mask,
        io_min_bytes: lower.io_min_bytes.max(block),
        io_opt_bytes: lower.io_opt_bytes,
        max_discard_bytes: if discards { max_discard_bytes } else { 0 },
        discard_granularity_bytes,
        discard_alignment_bytes: lower.discard_alignment_bytes,
        // Few bytes on the wire, whatever the lower disk makes of it: it can write them at least.
        max_write_zeroes_bytes,
        rotational: lower.rotational,
    }
}
