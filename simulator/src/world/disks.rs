//! The disks of both nodes: transfers of data and meta data, which take their time and may fail.

use super::*;

impl World {
    pub(super) fn disk_delay(&mut self, node: usize) -> u64 {
        let slowness = self.nodes[node].faults.slowness + 1;
        // Now and then a transfer is very late.
        let most = if self.random.percent(3) { 20_000 } else { 300 };
        let takes_us = self.random.between(20, most) * slowness;
        if slowness > 1 {
            self.note_slow_transfer(takes_us);
        }
        takes_us
    }

    fn has_bio(&self, node: usize, request: RequestId) -> bool {
        let running = self.nodes[node].running.as_ref().expect("on");
        running.uppers[usize::from(request.index)].as_ref().is_some_and(|upper| upper.request == request)
    }

    pub(super) fn submit_local(&mut self, node: usize) {
        loop {
            while let Some(io) = self.engine(node, |engine, _| engine.poll_local()) {
                assert_eq!(io.clears(), None, "whoever takes it cannot wait for the disk");
                let volume = match io {
                    LocalIo::Request { volume, .. } | LocalIo::Peer { volume, .. } | LocalIo::Flush { volume } => {
                        volume
                    }
                    // No disk is asked.
                    LocalIo::Inspect { .. } => VOLUME,
                };
                self.at(volume, |world| world.submit_to_disk(node, io));
            }
            // It changes nothing, so it makes no difference to the rest of the run.
            let running = self.nodes[node].running.as_mut().expect("on");
            let ordered = running.engine.clears_ordered();
            if ordered == 0 {
                return;
            }
            for volume in (0..64).filter(|number| ordered & (1 << number) != 0).map(VolumeId) {
                while let Some(io) = self.engine(node, |engine, _| engine.poll_clear(volume)) {
                    assert_eq!(io.clears(), Some(volume), "of another volume's disk");
                    self.at(volume, |world| world.submit_to_disk(node, io));
                }
            }
        }
    }

    fn submit_to_disk(&mut self, node: usize, io: LocalIo) {
        let mark = self.nodes[node].data.mark();
        let start_us = self.now_us;
        let volume = self.volume;
        if let LocalIo::Request { request, copy: true, .. } = io {
            if !self.has_bio(node, request) {
                // It was given up before the disk got it.
                self.engine(node, |engine, now| engine.request_io_done(request, Err(IoError::Io), now));
                return;
            }
        }
        let running = self.nodes[node].running.as_mut().expect("on");
        let transfer = match io {
            LocalIo::Request { request, op, .. } => {
                let view = running.engine.request(request).expect("local I/O of a request that is over");
                let upper = running.uppers[usize::from(request.index)].as_ref().expect("local I/O without a bio");
                assert_eq!(upper.request, request, "local I/O for another bio");
                let operation = &self.operations[upper.operation];
                World::check_local_op(operation, op);
                let fua = operation.action == Action::Write { fua: true };
                let preflush = operation.flushes_first();
                Transfer {
                    io,
                    volume,
                    op,
                    sector: view.sector,
                    data: upper.data.clone(),
                    count: u64::from(view.size_bytes / 512),
                    fua,
                    preflush,
                    mark,
                    start_us,
                }
            }
            LocalIo::Peer { peer, op, sector, size_bytes, flags, .. } => {
                let count = u64::from(size_bytes / 512);
                let data = match (&running.pages[usize::from(peer.index)], op) {
                    (Some((owner, data)), Op::Write) if *owner == peer => data.clone(),
                    (_, Op::Write) => panic!("write of a peer request without its pages"),
                    _ => Vec::new(),
                };
                assert!(op != Op::Write || data.len() as u64 == count, "pages of another size");
                if op == Op::Write && self.hostile.is_none() && !running.engine.is_resync(peer) {
                    let asked =
                        data.first().and_then(|&stamp| self.operations.iter().find(|other| other.stamp == stamp));
                    let fua = asked.is_some_and(|asked| asked.action == Action::Write { fua: true });
                    let preflush = asked.is_some_and(Operation::flushes_first);
                    let sync = asked.is_some_and(Operation::is_waited_for);
                    let [wanted, found] = [(fua, preflush, sync), (flags.fua, flags.preflush, flags.sync)];
                    assert_eq!(found, wanted, "FUA, PREFLUSH or SYNC was lost on the way to the peer's disk");
                }
                Transfer {
                    io,
                    volume,
                    op,
                    sector,
                    data,
                    count,
                    fua: flags.fua,
                    preflush: flags.preflush,
                    mark,
                    start_us,
                }
            }
            LocalIo::Inspect { peer, .. } => {
                let (owner, data) = running.pages[usize::from(peer.index)].take().expect("pages to look at");
                assert_eq!(owner, peer, "pages of another request");
                Transfer {
                    io,
                    volume,
                    op: Op::Read,
                    sector: 0,
                    data,
                    count: 0,
                    fua: false,
                    preflush: false,
                    mark,
                    start_us,
                }
            }
            LocalIo::Flush { .. } => Transfer {
                io,
                volume,
                op: Op::Flush,
                sector: 0,
                data: Vec::new(),
                count: 0,
                fua: false,
                preflush: false,
                mark,
                start_us,
            },
        };
        self.next_transfer += 1;
        let number = self.next_transfer;
        self.note(|| format!("node {node} disk <- {transfer}"));
        self.check_transfer(node, number, &transfer);
        self.nodes[node].running.as_mut().expect("on").transfers.insert(number, transfer);
        let delay = self.disk_delay(node);
        self.schedule_own(node, delay, Own::LocalDone(number));
    }

    pub(super) fn local_done(&mut self, node: usize, number: u64) {
        let transfers = self.nodes[node].running.as_ref().map(|running| &running.transfers);
        let volume = transfers.and_then(|transfers| transfers.get(&number)).expect("transfer").volume;
        self.at(volume, |world| world.transfer_over(node, number));
    }

    fn transfer_over(&mut self, node: usize, number: u64) {
        if self.nodes[node].faults.hangs {
            self.schedule_own(node, 20 * MS, Own::LocalDone(number));
            return;
        }
        let running = self.nodes[node].running.as_mut().expect("on");
        let transfer = running.transfers.remove(&number).expect("transfer");
        let faults = self.nodes[node].faults;
        let flushes = transfer.op == Op::Flush || transfer.preflush;
        let percent = match transfer.op {
            Op::Read => faults.read_percent,
            _ if flushes => faults.write_percent.max(faults.flush_percent),
            _ => faults.write_percent,
        };
        let backing_open = self.nodes[node].device.backing_open;
        let no_discard = faults.no_discards && transfer.op == Op::Discard;
        let fails = !backing_open || self.random.percent(percent) || no_discard;
        let mut read = Vec::new();
        if fails && flushes && backing_open {
            // What was in its cache may be gone, as with its power.
            self.note_lost_cache(node);
            self.nodes[node].unflushed.clear();
            let mut random = self.random.clone();
            self.nodes[node].data.power_cut(&mut random);
            self.random = random;
            self.oracle.power_cut(node);
            if !self.is_on(1 - node) || self.status(1 - node).state.disk != Disk::UpToDate {
                self.only_left(node);
            }
        }
        if fails {
            self.nodes[node].failed_us = self.now_us;
        } else {
            self.note_unflushed(node, &transfer);
        }
        let machine = &mut self.nodes[node];
        if !fails {
            if flushes {
                machine.data.flush_until(transfer.mark);
            }
            match transfer.op {
                Op::Read => read = machine.data.read(transfer.sector, transfer.count),
                Op::Write => machine.data.write(transfer.sector, &transfer.data, transfer.fua),
                Op::Discard | Op::WriteZeroes { .. } => {
                    machine.data.write(transfer.sector, &vec![0; transfer.count as usize], transfer.fua);
                }
                Op::Flush => {}
            }
        }
        self.note_done(node, number, transfer.fua, fails);
        let writes = transfer.op.is_write();
        let around = if writes { self.marked_around(node, transfer.sector, transfer.count) } else { Vec::new() };
        let result = if fails { Err(faults.error.unwrap_or(IoError::Io)) } else { Ok(()) };
        self.note(|| format!("node {node} disk -> {transfer} {}", if fails { "FAILED" } else { "ok" }));
        match transfer.io {
            LocalIo::Request { request, .. } => {
                let running = self.nodes[node].running.as_mut().expect("on");
                let wanted = running.engine.request(request).is_some_and(|view| view.on_disk);
                let operation = running.uppers[usize::from(request.index)].as_ref();
                let mut ahead = false;
                if let Some(upper) = operation.filter(|upper| wanted && upper.request == request) {
                    ahead = self.operations[upper.operation].action == Action::ReadAhead;
                    self.operations[upper.operation].on_disk |= !fails;
                    self.operations[upper.operation].disk_failed |= fails;
                }
                if transfer.op == Op::Read && !fails && wanted {
                    let upper = running.uppers[usize::from(request.index)].as_mut();
                    upper.filter(|upper| upper.request == request).expect("bio of a local read").data = read;
                }
                let disk = self.status(node).state.disk;
                self.engine(node, |engine, now| engine.request_io_done(request, result, now));
                if ahead {
                    let now = self.status(node).state.disk;
                    assert_eq!(now, disk, "node {node}: a read ahead that fails says nothing about the disk");
                } else if fails && wanted {
                    self.check_failed(node, &transfer, false);
                }
            }
            LocalIo::Peer { peer, .. } => {
                if transfer.op == Op::Read && !fails {
                    let running = self.nodes[node].running.as_mut().expect("on");
                    running.pages[usize::from(peer.index)] = Some((peer, read));
                }
                let marked = if fails { self.marked(node, transfer.sector, transfer.count) } else { Vec::new() };
                let peers_write = writes && !self.engine_of(node).is_resync(peer);
                self.engine(node, |engine, now| engine.peer_io_done(peer, result, now));
                if fails {
                    self.check_failed(node, &transfer, peers_write);
                }
                self.check_still_marked(node, &transfer, &marked);
            }
            LocalIo::Inspect { peer, what } => {
                let finding = if fails { Finding::Failed } else { inspect::finding(what, &transfer.data) };
                if self.engine(node, |engine, now| engine.inspected(peer, finding, now)) {
                    let running = self.nodes[node].running.as_mut().expect("on");
                    running.pages[usize::from(peer.index)] = Some((peer, transfer.data.clone()));
                }
            }
            LocalIo::Flush { volume } => self.engine(node, |engine, now| engine.flush_done(volume, result, now)),
        }
        self.check_cleared(node, &around, || transfer.to_string());
    }

    // Meta-data disk.

    pub(super) fn next_metadata(&mut self, node: usize) {
        let volume = self.volume;
        loop {
            let mut block = Box::new([0u8; 4096]);
            let Some(io) = self.engine(node, |engine, _| engine.next_metadata_io(volume, &mut block)) else { return };
            self.next_transfer += 1;
            let number = self.next_transfer;
            self.note(|| format!("node {node} meta <- {}", trace::meta(&io)));
            let running = self.nodes[node].running.as_ref().expect("on");
            let met = running
                .meta_transfers
                .values()
                .any(|other| io.write && other.io.write && (other.volume, other.io.sector) == (volume, io.sector));
            assert!(!met, "node {node}: two writes of one block of meta data at sector {} at once", io.sector);
            let mark = self.nodes[node].data.mark();
            let transfer = MetaTransfer { io, volume, block, mark, start_us: self.now_us };
            self.nodes[node].running.as_mut().expect("on").meta_transfers.insert(number, transfer);
            let delay = self.disk_delay(node);
            self.schedule_own(node, delay, Own::MetadataDone(number));
        }
    }

    pub(super) fn metadata_done(&mut self, node: usize, number: u64) {
        let transfers = self.nodes[node].running.as_ref().map(|running| &running.meta_transfers);
        let volume = transfers.and_then(|transfers| transfers.get(&number)).expect("transfer").volume;
        self.at(volume, |world| world.meta_transfer_over(node, number));
    }

    fn meta_transfer_over(&mut self, node: usize, number: u64) {
        if self.nodes[node].faults.hangs {
            self.schedule_own(node, 20 * MS, Own::MetadataDone(number));
            return;
        }
        let running = self.nodes[node].running.as_mut().expect("on");
        let MetaTransfer { io, volume, mut block, mark, start_us } =
            running.meta_transfers.remove(&number).expect("transfer");
        let faults = self.nodes[node].faults;
        let is_page = io.write && !io.durable;
        let is_closed = !self.nodes[node].device.backing_open;
        let fails = is_closed || self.random.percent(faults.meta_percent) || (is_page && faults.no_pages);
        if !fails {
            if io.write {
                let superblock = self.durable_meta(node).1;
                let machine = &mut self.nodes[node];
                machine.meta.write(io.sector, &block, io.size_bytes as usize, io.durable);
                if io.durable && self.config.internal {
                    machine.data.flush_until(mark);
                }
                self.check_forgotten(node, io.sector, start_us);
                if is_page {
                    self.check_page(node, io.sector, &block);
                }
                self.check_superblock(node, &superblock);
            } else {
                *block = self.nodes[node].meta.read(io.sector);
                block[io.size_bytes as usize..].fill(0);
            }
        }
        let result = if fails { Err(IoError::Io) } else { Ok(()) };
        self.note(|| format!("node {node} meta -> {} {}", trace::meta(&io), if fails { "FAILED" } else { "ok" }));
        self.engine(node, |engine, now| engine.metadata_io_done(volume, io.ticket, result, &block, now));
    }

    pub(super) fn release_backing(&mut self, node: usize) {
        let running = self.nodes[node].running.as_ref().expect("on");
        // Looking at data that has been read needs no disk.
        let volume = self.volume;
        let on_disk =
            |transfer: &&Transfer| transfer.volume == volume && !matches!(transfer.io, LocalIo::Inspect { .. });
        let left = running.transfers.values().find(on_disk);
        assert!(left.is_none(), "the disk is let go with transfers on it: {left:?}");
        let meta = running.meta_transfers.values().any(|transfer| transfer.volume == volume);
        assert!(!meta, "the disk is let go with meta-data transfers on it");
        let now_us = self.now_us;
        let device = &mut self.nodes[node].device;
        device.backing_open = false;
        device.released_us = now_us;
        if let Some(arrivals) = self.arrivals(node) {
            arrivals.disk_gone();
        }
        let _tables = self.engine(node, |engine, now| engine.backing_released(volume, now));
    }
}
