//! The disks of both nodes: transfers of data and meta data, which take their time and may fail.

use super::*;

impl World {
    pub(super) fn disk_delay(&mut self, node: usize) -> u64 {
        let slowness = self.nodes[node].faults.slowness + 1;
        // Now and then a transfer is very late.
        let most = if self.random.percent(3) { 20_000 } else { 300 };
        self.random.between(20, most) * slowness
    }

    fn has_bio(&self, node: usize, request: RequestId) -> bool {
        let running = self.nodes[node].running.as_ref().expect("on");
        running.uppers[usize::from(request.index)].as_ref().is_some_and(|upper| upper.request == request)
    }

    pub(super) fn submit_local(&mut self, node: usize) {
        loop {
            let mark = self.nodes[node].data.mark();
            let Some(io) = self.engine(node, |engine, _| engine.poll_local()) else { return };
            if let LocalIo::Request { request, copy: true, .. } = io {
                if !self.has_bio(node, request) {
                    // It was given up before the disk got it.
                    self.engine(node, |engine, now| engine.request_io_done(request, Err(IoError::Io), now));
                    continue;
                }
            }
            let running = self.nodes[node].running.as_mut().expect("on");
            let transfer = match io {
                LocalIo::Request { request, op, .. } => {
                    let view = running.engine.request(request).expect("local I/O of a request that is over");
                    let upper = running.uppers[usize::from(request.index)].as_ref().expect("local I/O without a bio");
                    assert_eq!(upper.request, request, "local I/O for another bio");
                    let flags = match self.operations[upper.operation].action {
                        Action::Write { fua } => fua,
                        _ => false,
                    };
                    Transfer {
                        io,
                        op,
                        sector: view.sector,
                        data: upper.data.clone(),
                        count: u64::from(view.size_bytes / 512),
                        fua: flags,
                        preflush: false,
                        mark,
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
                        assert_eq!(flags.fua, fua, "FUA was lost on the way to the peer's disk");
                    }
                    Transfer { io, op, sector, data, count, fua: flags.fua, preflush: flags.preflush, mark }
                }
                LocalIo::Inspect { peer, .. } => {
                    let (owner, data) = running.pages[usize::from(peer.index)].take().expect("pages to look at");
                    assert_eq!(owner, peer, "pages of another request");
                    Transfer { io, op: Op::Read, sector: 0, data, count: 0, fua: false, preflush: false, mark }
                }
                LocalIo::Flush { .. } => Transfer {
                    io,
                    op: Op::Flush,
                    sector: 0,
                    data: Vec::new(),
                    count: 0,
                    fua: false,
                    preflush: false,
                    mark,
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
    }

    pub(super) fn local_done(&mut self, node: usize, number: u64) {
        if self.nodes[node].faults.hangs {
            self.schedule_own(node, 20 * MS, Own::LocalDone(number));
            return;
        }
        let machine = &mut self.nodes[node];
        let running = machine.running.as_mut().expect("on");
        let transfer = running.transfers.remove(&number).expect("transfer");
        let faults = machine.faults;
        let percent = match transfer.op {
            Op::Read => faults.read_percent,
            Op::Flush => faults.write_percent.max(faults.flush_percent),
            _ => faults.write_percent,
        };
        let backing_open = running.backing_open;
        let no_discard = faults.no_discards && transfer.op == Op::Discard;
        let fails = !backing_open || self.random.percent(percent) || no_discard;
        let mut read = Vec::new();
        if fails && transfer.op == Op::Flush && backing_open {
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
        if !fails {
            self.note_unflushed(node, &transfer);
        }
        let machine = &mut self.nodes[node];
        if !fails {
            if transfer.preflush || transfer.op == Op::Flush {
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
        let result = if fails { Err(IoError::Io) } else { Ok(()) };
        self.note(|| format!("node {node} disk -> {transfer} {}", if fails { "FAILED" } else { "ok" }));
        match transfer.io {
            LocalIo::Request { request, .. } => {
                let running = self.nodes[node].running.as_mut().expect("on");
                let wanted = running.engine.request(request).is_some_and(|view| view.on_disk);
                let operation = running.uppers[usize::from(request.index)].as_ref();
                if let Some(upper) = operation.filter(|upper| wanted && !fails && upper.request == request) {
                    self.operations[upper.operation].on_disk = true;
                }
                if transfer.op == Op::Read && !fails && wanted {
                    let upper = running.uppers[usize::from(request.index)].as_mut();
                    upper.filter(|upper| upper.request == request).expect("bio of a local read").data = read;
                }
                self.engine(node, |engine, now| engine.request_io_done(request, result, now));
                if fails && wanted {
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
        loop {
            let mut block = Box::new([0u8; 4096]);
            let Some(io) = self.engine(node, |engine, _| engine.next_metadata_io(VOLUME, &mut block)) else { return };
            self.next_transfer += 1;
            let number = self.next_transfer;
            self.note(|| format!("node {node} meta <- {}", trace::meta(&io)));
            let running = self.nodes[node].running.as_ref().expect("on");
            let met =
                running.meta_transfers.values().any(|(other, ..)| io.write && other.write && other.sector == io.sector);
            assert!(!met, "node {node}: two writes of one block of meta data at sector {} at once", io.sector);
            let mark = self.nodes[node].data.mark();
            self.nodes[node].running.as_mut().expect("on").meta_transfers.insert(number, (io, block, mark));
            let delay = self.disk_delay(node);
            self.schedule_own(node, delay, Own::MetadataDone(number));
        }
    }

    pub(super) fn metadata_done(&mut self, node: usize, number: u64) {
        if self.nodes[node].faults.hangs {
            self.schedule_own(node, 20 * MS, Own::MetadataDone(number));
            return;
        }
        let machine = &mut self.nodes[node];
        let running = machine.running.as_mut().expect("on");
        let (io, mut block, mark) = running.meta_transfers.remove(&number).expect("transfer");
        let percent = machine.faults.meta_percent;
        let is_page = io.write && !io.durable;
        let fails = !running.backing_open || self.random.percent(percent) || (is_page && machine.faults.no_pages);
        let machine = &mut self.nodes[node];
        if !fails {
            if io.write {
                let superblock = self.durable_meta(node).1;
                let machine = &mut self.nodes[node];
                machine.meta.write(io.sector, &block, io.size_bytes as usize, io.durable);
                if io.durable && self.config.internal {
                    machine.data.flush_until(mark);
                }
                self.check_forgotten(node, io.sector);
                if is_page {
                    self.check_page(node, io.sector, &block);
                }
                self.check_superblock(node, &superblock);
            } else {
                *block = machine.meta.read(io.sector);
                block[io.size_bytes as usize..].fill(0);
            }
        }
        let result = if fails { Err(IoError::Io) } else { Ok(()) };
        self.note(|| format!("node {node} meta -> {} {}", trace::meta(&io), if fails { "FAILED" } else { "ok" }));
        self.engine(node, |engine, now| engine.metadata_io_done(VOLUME, io.ticket, result, &block, now));
    }

    pub(super) fn release_backing(&mut self, node: usize) {
        let running = self.nodes[node].running.as_mut().expect("on");
        // Looking at data that has been read needs no disk.
        let on_disk = |transfer: &&Transfer| !matches!(transfer.io, LocalIo::Inspect { .. });
        let left = running.transfers.values().find(on_disk);
        assert!(left.is_none(), "the disk is let go with transfers on it: {left:?}");
        assert!(running.meta_transfers.is_empty(), "the disk is let go with meta-data transfers on it");
        running.backing_open = false;
        running.released_us = self.now_us;
        if let Some(arrivals) = self.arrivals(node) {
            arrivals.disk_gone();
        }
        let _tables = self.engine(node, |engine, now| engine.backing_released(VOLUME, now));
    }
}
