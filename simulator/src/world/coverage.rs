//! What the bitmaps forget, and when: compared at once with what the disks hold.
//!
//! A bit that is cleared too early, or for a block too many, does harm only if the connection or the power is lost before
//! the block is written again. Here it is noticed when it is cleared.
//!
//! # Invariants
//! * A bit is cleared when the block is the same on both disks, but for writes that are under way.
//! * What a resync wrote, and the disk may still lose, is marked in every page of the bitmap that goes to the disk.
//! * So is what the application wrote, when nothing else on the disk tells of it any more: when its extent leaves the
//!   activity log, or the superblock says that this node is not Primary.
//! * A generation has been on the disk before the peer hears of it; so is the start of a resync before its first request.
//! * A block that could not be read, or not be written for the peer, is marked; so is what the peer could not write.
//! * No read fails that a good disk in reach can do, and nothing ends or begins while I/O is suspended.
//! * Who says that it is Secondary has no writes that the peer may still lose.
//! * Each resync has a generation of its own, under which its target is marked before it asks for anything; where it is complete
//!   nothing is marked.
//! * A bitmap that is sent marks every write under way, but for what the target of a resync writes itself meanwhile.

use super::promises::overlap;
use super::*;
use engine::metadata::superblock::UUID_JUST_CREATED;
use engine::metadata::AL_EXTENT_SECTORS;
use engine::state::State;
use engine::wire::{BlockAck, BlockRequest, StateWord, SyncUuid, Uuids};

const BITS_PER_PAGE: u64 = 8 * 4096;

/// Data that is in the volatile cache of a disk.
#[derive(Clone, Copy, Debug)]
pub struct Unflushed {
    /// A resync wrote it; otherwise the application here did.
    resync: bool,
    sector: u64,
    count: u64,
    /// Durable when the disk has settled so far.
    mark: u64,
}

/// First sectors of the blocks that a range touches, and of two more on either side.
fn blocks_around(sector: u64, count: u64, sectors: u64) -> impl Iterator<Item = u64> {
    let first = (sector / 8).saturating_sub(2);
    let end = (sector + count).div_ceil(8) + 2;
    (first..end.min(sectors.div_ceil(8))).map(|block| block * 8)
}

impl World {
    // Bits that are cleared.

    /// The blocks in and beside this range that a node has marked.
    pub(super) fn marked_around(&self, node: usize, sector: u64, count: u64) -> Vec<u64> {
        let engine = self.engine_of(node);
        let sectors = self.nodes[node].data.sectors();
        let set = |sector: &u64| engine.is_out_of_sync(self.volume, *sector) == Some(true);
        blocks_around(sector, count, sectors).filter(set).collect()
    }

    /// A packet may clear bits: which ones?
    pub(super) fn marked_before_answer(&self, node: usize, name: &str, body: &[u8]) -> Vec<u64> {
        let honest = self.hostile.is_none();
        match BlockAck::decode(body) {
            Ok(ack)
                if honest && matches!(name, "P_WRITE_ACK" | "P_RS_WRITE_ACK" | "P_RS_IS_IN_SYNC" | "P_RECV_ACK") =>
            {
                self.marked_around(node, ack.sector, u64::from(ack.size_bytes / 512))
            }
            _ => Vec::new(),
        }
    }

    /// Those of the blocks that are not marked any more are the same on both disks.
    pub(super) fn check_cleared(&mut self, node: usize, before: &[u64], what: impl FnOnce() -> String) {
        if before.is_empty() || self.hostile.is_some() {
            return;
        }
        let ends = self.connection.as_ref().map(|connection| [0, 1].map(|node| connection.ends[node].is_some()));
        if ends != Some([true; 2]) || self.status(node).state.disk <= Disk::Failed {
            return;
        }
        let engine = self.engine_of(node);
        let cleared = before.iter().filter(|&&sector| engine.is_out_of_sync(self.volume, sector) == Some(false));
        let wrong = cleared.copied().find(|&sector| self.differs_unexplained(node, sector));
        if let Some(sector) = wrong {
            let describe = self.describe();
            panic!("node {node}: {} clears the bit of sector {sector}, where the halves differ; {describe}", what());
        }
    }

    /// Is this block not the same on both disks, and is nothing under way there?
    fn differs_unexplained(&self, node: usize, sector: u64) -> bool {
        let [zero, one] = [0, 1].map(|node| &self.nodes[node].data);
        // The disks may have grown, and the device has not, or not yet.
        let device = self.status(node).size_sectors;
        let end = (sector + 8).min(zero.sectors()).min(one.sectors()).min(device);
        if (sector..end).all(|sector| zero.get(sector) == one.get(sector)) {
            return false;
        }
        // What a disk has lost that fails, its own node knows. So it does what it writes when it has given the connection up, or has agreed that
        // this node lets its disk go (seed 82049769).
        let other = 1 - node;
        // So it does what it has heard that this node's disk did not write (seed 83007414).
        let fails = self.nodes.iter().any(|node| node.faults.write_percent > 0);
        let state = self.status(other).state;
        let alone = state.conn < Conn::Connected || state.pdsk < Disk::Inconsistent;
        let knows = fails || state.disk < Disk::Inconsistent || alone;
        if knows && self.engine_of(other).is_out_of_sync(self.volume, sector) != Some(false) {
            return false;
        }
        // What it refuses since its disk is gone is marked when this node hears of it, or of the end of the connection; what it had done before
        // it tells first (seed 53000951).
        if state.disk < Disk::Inconsistent && self.is_sent(node, sector, end - sector) {
            return false;
        }
        !(0..2).any(|node| self.is_being_written(node, sector, end - sector))
    }

    /// A write of this node's application, or one that is on its way to this node, concerns the range.
    pub(super) fn is_being_written(&self, node: usize, sector: u64, count: u64) -> bool {
        let uppers = self.nodes[node].running.as_ref().into_iter().flat_map(|running| running.uppers.iter().flatten());
        let open = uppers.map(|upper| &self.operations[upper.operation]);
        let mut open = open.filter(|operation| operation.stamp != 0 && operation.volume == self.volume);
        let connection = self.connection.as_ref().and_then(|connection| connection.ends[node].as_ref());
        open.any(|operation| overlap(sector, count, operation.sector, operation.count))
            || connection.is_some_and(|end| end.arrivals[usize::from(self.volume.0)].concern(sector, count))
    }

    /// A transfer has failed: is it known where?
    pub(super) fn check_failed(&self, node: usize, transfer: &Transfer, peers_write: bool) {
        let own_read = matches!(transfer.io, LocalIo::Request { .. }) && transfer.op == Op::Read;
        if self.hostile.is_none() && transfer.count > 0 && (own_read || peers_write) {
            let unmarked = self.unmarked(node, transfer.sector, transfer.count);
            assert!(unmarked.is_none(), "node {node}: {transfer} failed, and sector {unmarked:?} is not marked");
        }
    }

    /// An operation ends with an error. If it is a read: was there no disk that could do it?
    pub(super) fn check_error(&self, operation: &Operation) {
        let node = operation.node;
        let state = self.status(node).state;
        let sound = |node: usize| self.nodes[node].faults.is_sound();
        let peer = state.conn >= Conn::Connected && state.pdsk == Disk::UpToDate && self.is_on(1 - node);
        let peer = peer && self.status(1 - node).state.disk == Disk::UpToDate && sound(1 - node);
        // A disk that came back meanwhile is not asked again.
        let stayed = self.nodes[node].device.released_us < operation.start_us;
        // Nor is one that is kept though it failed to do just this, and counts as good again because the peer's data is given up
        // (seed 10014794).
        let own = state.disk == Disk::UpToDate && sound(node) && stayed && !operation.disk_failed;
        assert!(
            !(own || peer) || operation.action != Action::Read || self.hostile.is_some(),
            "node {node}: {operation:?} fails, and a good disk could have done it; {state}"
        );
    }

    // What may still be lost.

    /// A write is about to be over, and in the cache.
    pub(super) fn note_unflushed(&mut self, node: usize, transfer: &Transfer) {
        let resync = match transfer.io {
            LocalIo::Request { .. } => false,
            LocalIo::Peer { peer, .. } if self.engine_of(node).is_resync(peer) => true,
            _ => return,
        };
        if !transfer.op.is_write() || transfer.fua {
            return;
        }
        let machine = &mut self.nodes[node];
        let settled = machine.data.settled();
        machine.unflushed.retain(|old| old.mark > settled);
        let Transfer { sector, count, .. } = *transfer;
        let mark = machine.data.mark() + count;
        if !resync {
            machine.unflushed.push(Unflushed { resync, sector, count, mark });
            return;
        }
        // What a resync wrote that was there before cannot be lost.
        for block in sector.div_ceil(8)..(sector + count) / 8 {
            let stamp = |at: u64| transfer.data.get((at - sector) as usize).copied().unwrap_or(0);
            if (block * 8..block * 8 + 8).any(|at| machine.data.get(at) != stamp(at)) {
                machine.unflushed.push(Unflushed { resync, sector: block * 8, count: 8, mark });
            }
        }
    }

    fn unflushed(&self, node: usize, resync: bool) -> impl Iterator<Item = Unflushed> + '_ {
        let machine = &self.nodes[node];
        let settled = machine.data.settled();
        machine.unflushed.iter().copied().filter(move |data| data.resync == resync && data.mark > settled)
    }

    /// A page of the bitmap is on the disk.
    pub(super) fn check_page(&mut self, node: usize, page_sector: u64, block: &Block) {
        if self.hostile.is_some() {
            return;
        }
        self.check_all_set(node);
        if self.unflushed(node, true).next().is_none() {
            return;
        }
        let (layout, superblock) = self.durable_meta(node);
        let primary = superblock.flags.contains(MetaFlags::PRIMARY_IND);
        let logged = if primary { self.logged(node, &layout).clone() } else { BTreeSet::new() };
        for data in self.unflushed(node, true) {
            let bit = data.sector / 8;
            let here = layout.bitmap_page(bit / BITS_PER_PAGE).is_some_and(|(sector, _)| sector == page_sector);
            let set = block[(bit % BITS_PER_PAGE / 8) as usize] & (1 << (bit % 8)) != 0;
            // A write of the application has come since, of which the log tells.
            let told = logged.contains(&((data.sector / AL_EXTENT_SECTORS) as u32));
            assert!(
                !here || set || told || self.is_announced(node, data.sector),
                "node {node}: the bitmap on the disk says that sector {} is in sync, and that may still be lost",
                data.sector
            );
        }
    }

    /// The source has written this block while it was Ahead, and told this target, Behind it, after the page of the bitmap had been copied; then
    /// came data of the resync that was asked for before. So the page is older than the mark, and the data does not count on either
    /// node: both have the block marked, and before the resync goes on the page is written once more (seeds 51014322, 51017522).
    fn is_announced(&self, node: usize, sector: u64) -> bool {
        let mark = |node: usize| self.engine_of(node).is_out_of_sync(self.volume, sector) == Some(true);
        let behind = self.status(node).state.conn == Conn::Behind;
        behind && mark(node) && self.is_on(1 - node) && mark(1 - node)
    }

    /// A full resync is about to begin, and its bits go to the disk: would a power cut between two pages forget the rest?
    fn check_all_set(&self, node: usize) {
        let status = self.status(node);
        let starts = matches!(status.state.conn, Conn::StartingSyncS | Conn::StartingSyncT);
        if starts && status.bits_out_of_sync == status.size_sectors.div_ceil(8) {
            let flags = self.durable_meta(node).1.flags;
            assert!(
                flags.contains(MetaFlags::FULL_SYNC),
                "node {node}: all bits are being set, and the superblock does not tell"
            );
        }
    }

    /// The superblock is on the disk; what did it say before?
    pub(super) fn check_superblock(&mut self, node: usize, before: &Superblock) {
        let (layout, now) = self.durable_meta(node);
        self.nodes[node].generations.extend(now.uuids.map(|uuid| uuid & !1));
        let ends = before.flags.contains(MetaFlags::PRIMARY_IND) && !now.flags.contains(MetaFlags::PRIMARY_IND);
        // While the log moves the full sync takes its place.
        let ends = ends && !now.flags.contains(MetaFlags::FULL_SYNC);
        if ends && self.hostile.is_none() && self.status(node).state.disk > Disk::Failed {
            self.check_written_here(node, &layout, |_| true, "this node is not Primary");
        }
    }

    /// What the application wrote and the disk may lose is marked on the disk, since the log does not tell any more.
    pub(super) fn check_written_here(&self, node: usize, layout: &Layout, which: impl Fn(u64) -> bool, why: &str) {
        for data in self.unflushed(node, false) {
            let sectors = (data.sector..data.sector + data.count).filter(|sector| which(*sector));
            let lost = sectors.step_by(8).find(|sector| !self.is_set_on_disk(node, layout, sector / 8));
            assert!(
                lost.is_none(),
                "node {node}: {why}, and sector {lost:?} that was written is in the disk's cache and not marked"
            );
        }
    }

    // What is told.

    /// A packet is about to be sent that tells of what has to be on the disk.
    pub(super) fn check_told(&mut self, node: usize, name: &str, body: &[u8]) {
        if self.hostile.is_some() {
            return;
        }
        if let ("P_SYNC_UUID", Ok(SyncUuid { uuid })) = (name, SyncUuid::decode(body)) {
            // Also when that disk has failed since: it may be attached again.
            self.check_generation(node, name, uuid);
            self.check_sync_generation(node, uuid);
        }
        if let ("P_STATE", Ok(word)) = (name, StateWord::decode(body)) {
            // A C module that knows of that says nothing of its own disk when this one is there.
            let told = State::from_word(word.word).map(|(state, _)| state.disk);
            assert_ne!(told, Ok(Disk::Attaching), "node {node} tells of a disk that is not there yet");
        }
        if self.status(node).state.disk <= Disk::Failed {
            return;
        }
        match name {
            "P_UUIDS" => {
                if let Ok(Uuids { uuids, .. }) = Uuids::decode(body) {
                    self.check_generation(node, name, uuids[UI_CURRENT]);
                    self.check_generation(node, name, uuids[UI_BITMAP]);
                }
            }
            "P_STATE" => {
                if let Some((state, _)) = StateWord::decode(body).ok().and_then(|word| State::from_word(word.word).ok())
                {
                    self.check_role(node, state);
                }
            }
            "P_RS_DATA_REQUEST" | "P_RS_THIN_REQ" | "P_CSUM_RS_REQUEST" => {
                if let Ok(request) = BlockRequest::decode(body) {
                    self.check_started(node, &request);
                }
            }
            "P_BITMAP" | "P_COMPRESSED_BITMAP" => self.check_bitmap(node),
            _ => {}
        }
    }

    fn check_generation(&self, node: usize, name: &str, uuid: u64) {
        let durable = self.durable_meta(node).1.uuids;
        // It may have become history since. Or the target of a resync has taken over the one of its source: no disk has the old one
        // any more then, and the source, which has its own, makes nothing of it. In the C module such a packet may wait in the socket.
        let was = self.nodes[node].generations.contains(&(uuid & !1));
        let is = durable.iter().any(|known| (known ^ uuid) & !1 == 0);
        let known = is || was || matches!(uuid & !1, 0 | UUID_JUST_CREATED);
        assert!(known, "node {node}: {name} tells of generation {uuid:x}, and the disk has {durable:x?}");
    }

    /// Each resync has a generation of its own, so that half of it is never taken for what it was made of. One that the target has only
    /// announced itself, when it was to be the source since the same generation, was never that of a disk: this node would be of it, or
    /// have it behind it, and make another one of it.
    fn check_sync_generation(&self, node: usize, uuid: u64) {
        let known = self.durable_meta(1 - node).1.uuids;
        let mut held = known.iter().enumerate().filter(|(at, _)| *at != UI_BITMAP).map(|(_, known)| known);
        let is_new = held.all(|known| (known ^ uuid) & !1 != 0);
        assert!(is_new, "node {node} begins a resync as generation {uuid:x}, which its target has: {known:x?}");
    }

    /// The node has been told to be the target of a resync.
    pub(super) fn note_sync_generation(&mut self, node: usize, name: &str, body: &[u8]) {
        if let ("P_SYNC_UUID", Ok(SyncUuid { uuid })) = (name, SyncUuid::decode(body)) {
            let [_, last] = self.nodes[node].sync_uuids;
            self.nodes[node].sync_uuids = [last, uuid & !1];
        }
    }

    /// A resync has ended, and both disks count as good: are they?
    pub(super) fn check_resync_end(&self, node: usize, from: State, to: State) {
        use Conn::{PausedSyncS, PausedSyncT, SyncSource, SyncTarget};
        let synced =
            matches!(from.conn, SyncSource | SyncTarget | PausedSyncS | PausedSyncT) && to.conn == Conn::Connected;
        let good = (to.disk, to.pdsk) == (Disk::UpToDate, Disk::UpToDate);
        let status = self.status(node);
        if !synced || !good || status.state != to || status.bits_out_of_sync == 0 || self.hostile.is_some() {
            return;
        }
        let sectors = status.size_sectors;
        let engine = self.engine_of(node);
        let marked = (0..sectors).step_by(8).filter(|&sector| engine.is_out_of_sync(self.volume, sector) == Some(true));
        let mut undone = marked.filter(|&sector| !(0..2).any(|node| self.is_being_written(node, sector, 8)));
        if let Some(sector) = undone.next() {
            panic!("node {node}: a resync is complete, and sector {sector} is marked; {}", self.describe());
        }
    }

    /// Who says that it is Secondary would not be taken for a crashed Primary.
    fn check_role(&self, node: usize, told: State) {
        let own = self.status(node).state;
        let was_primary = self.durable_meta(node).1.flags.contains(MetaFlags::PRIMARY_IND);
        let needs_log = own.peer == Role::Primary
            || own.disk <= Disk::Negotiating
            || self.is_suspended(node)
            || own.conn < Conn::Connected;
        assert!(
            told.role != Role::Secondary || own.role == Role::Primary || needs_log || !was_primary,
            "node {node} tells that it is Secondary, and the disk says Primary; {own}"
        );
        let kept = self.writes_kept(node);
        // Those of another volume are counted with them.
        let alone = self.config.volumes == 1;
        // What was frozen may be sent again when the nodes have just met.
        // Where no disk is good I/O was frozen, and what a peer without a disk has refused is marked; only the end of its epoch is
        // still awaited (seed 13002549).
        let refused = own.disk == Disk::Inconsistent && own.pdsk <= Disk::Failed;
        let settled = !alone || needs_log || own.conn != Conn::Connected || self.config.net.two_primaries || kept == 0;
        let settled = settled || refused;
        assert!(
            told.role != Role::Secondary || own.role == Role::Primary || settled,
            "node {node} tells that it is Secondary, with {kept} writes that the peer may still lose; {own}"
        );
    }

    /// Writes that somebody may have: each has a request of the engine until the peer cannot lose it any more. Others have one as well,
    /// reads, flushes, and writes that wait for their turn; those that the gate held back begin when a demotion without data ends
    /// what was frozen (seed 12004469).
    fn writes_kept(&self, node: usize) -> usize {
        let engine = self.engine_of(node);
        let uppers = self.nodes[node].running.as_ref().into_iter().flat_map(|running| running.uppers.iter().flatten());
        let others = uppers.filter(|upper| {
            let view = engine.request(upper.request);
            view.is_some_and(|view| !view.started || self.operations[upper.operation].stamp == 0)
        });
        engine.usage().requests - others.count()
    }

    /// The disk says that it is being overwritten, and with what.
    fn check_started(&self, node: usize, request: &BlockRequest) {
        let (layout, superblock) = self.durable_meta(node);
        let consistent = superblock.flags.contains(MetaFlags::CONSISTENT);
        assert!(!consistent, "node {node} asks for blocks of a resync, and the disk still says that it is good");
        let [current, bitmap, ..] = superblock.uuids;
        let told = self.nodes[node].sync_uuids;
        assert!(
            bitmap == 0 && told.contains(&(current & !1)),
            "node {node} asks for blocks of the resyncs {told:x?}, and the generations on the disk are {current:x}, {bitmap:x}"
        );
        if self.nodes[node].faults.write_percent > 0 || self.passes_on() {
            // Blocks that could not be written have been marked since.
            return;
        }
        let bits = request.sector / 8..(request.sector + u64::from(request.size_bytes / 512)).div_ceil(8);
        let lost = bits.into_iter().find(|&bit| !self.is_set_on_disk(node, &layout, bit));
        assert!(lost.is_none(), "node {node} asks for {request:?}, and bit {lost:?} is not set on the disk");
    }

    fn check_bitmap(&self, node: usize) {
        let engine = self.engine_of(node);
        let uppers = self.nodes[node].running.as_ref().into_iter().flat_map(|running| running.uppers.iter().flatten());
        let source = self.status(node).state.conn == Conn::WFBitMapS;
        let started = |upper: &&Upper| {
            let view = engine.request(upper.request).filter(|view| view.started);
            view.is_some_and(|view| source || !(view.on_disk || self.operations[upper.operation].on_disk))
        };
        let here = |upper: &&Upper| self.operations[upper.operation].volume == self.volume;
        for upper in uppers.filter(here).filter(started) {
            let operation = &self.operations[upper.operation];
            let unmarked = self.unmarked(node, operation.sector, operation.count);
            assert!(
                operation.stamp == 0 || unmarked.is_none(),
                "node {node} sends its bitmap, and a write under way is not marked: {operation:?}"
            );
        }
    }
}
