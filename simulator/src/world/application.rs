//! The application: what it asks for, what it gets, and whether it may get that.

use super::*;

impl World {
    /// Starts an operation; returns its number.
    pub fn start(&mut self, node: usize, action: Action, sector: u64, count: u64) -> usize {
        let zeroes = matches!(action, Action::Discard | Action::WriteZeroes);
        let writes = zeroes || matches!(action, Action::Write { .. });
        let stamp = if writes { self.oracle.begin(node, sector, count, zeroes, self.now_us) } else { 0 };
        let start_us = self.now_us;
        let after = self.epoch_that_is_over(node);
        let number = self.operations.len();
        self.operations.push(Operation {
            node,
            volume: self.volume,
            action,
            sector,
            count,
            stamp,
            start_us,
            result: None,
            lost: false,
            answered: false,
            answered_us: None,
            end_us: None,
            on_disk: false,
            disk_failed: false,
            sent: None,
            epoch: None,
            after,
        });
        self.note(|| format!("node {node} app {action:?} sector {sector} count {count} stamp {stamp} (#{number})"));
        let device = &mut self.nodes[node].device;
        if device.parked.is_empty() {
            self.offer(node, number);
        } else {
            device.parked.push_back(number);
        }
        number
    }

    /// Submits an operation; false when it has to wait (it is parked then).
    pub(super) fn offer(&mut self, node: usize, number: usize) -> bool {
        let operation = self.operations[number].clone();
        let (op, fua) = match operation.action {
            Action::Read | Action::ReadAhead => (Op::Read, false),
            Action::Write { fua } => (Op::Write, fua),
            Action::Discard => (Op::Discard, false),
            Action::WriteZeroes => (Op::WriteZeroes { unmap: false }, false),
            Action::Flush => (Op::Flush, false),
        };
        let io = IoRequest {
            op,
            sector: operation.sector,
            size_bytes: (operation.count * 512) as u32,
            flags: IoFlags {
                fua,
                preflush: operation.flushes_first(),
                sync: operation.is_waited_for(),
                readahead: operation.action == Action::ReadAhead,
                ..IoFlags::default()
            },
        };
        let now_ms = self.now_ms();
        let before = self.before_request(node);
        let running = self.nodes[node].running.as_mut().expect("on");
        let submit = running.engine.submit(self.volume, io, now_ms);
        match submit {
            Submit::Accepted(request) => {
                let alone = self.config.volumes == 1;
                assert!(
                    running.engine.usage().holds == 0 || !alone,
                    "node {node}: {operation:?} begins while nothing may"
                );
                assert!(!running.suspended, "node {node}: {operation:?} begins while I/O is suspended");
                let place = &mut running.uppers[usize::from(request.index)];
                assert!(place.is_none(), "a slot was reused while its bio is under way");
                let data = if op == Op::Write { vec![operation.stamp; operation.count as usize] } else { Vec::new() };
                *place = Some(Upper { request, operation: number, data });
                if let (Some(view), true) = (running.engine.request(request), operation.stamp != 0) {
                    self.oracle.protocol(operation.stamp, view.protocol);
                }
                if let Some(view) = self.engine_of(node).request(request) {
                    self.check_request(&operation, &view, &before);
                }
                if op == Op::Read {
                    self.check_read(node, request);
                }
            }
            Submit::Later => self.nodes[node].device.parked.push_back(number),
            Submit::Failed(error) => self.finish(number, Err(error), &[]),
        }
        let running = self.nodes[node].running.as_mut().expect("on");
        let wakes = running.engine.take_wakes();
        self.look_after(node, wakes);
        submit != Submit::Later
    }

    pub(super) fn gate(&mut self, node: usize) {
        let mut waiting = std::mem::take(&mut self.nodes[node].device.parked);
        while let Some(number) = waiting.pop_front() {
            if !self.offer(node, number) {
                // It was parked again: everybody behind it stays behind it.
                break;
            }
        }
        self.nodes[node].device.parked.extend(waiting);
    }

    pub(super) fn complete(&mut self, node: usize) {
        loop {
            let running = self.nodes[node].running.as_mut().expect("on");
            let Some(completion) = running.engine.poll_completion() else { return };
            let index = usize::from(completion.request.index);
            let upper = running.uppers[index].take().expect("a request was completed twice");
            assert_eq!(upper.request, completion.request, "completion of another request");
            let busy = running.transfers.values().any(
                |transfer| matches!(transfer.io, LocalIo::Request { request, copy: false, .. } if request == completion.request),
            );
            assert!(!busy, "a bio was ended while the disk has it");
            let frozen = running.suspended && running.engine.resource_status().susp.any();
            // Nothing was done for what the peer does not understand.
            let refused = completion.result == Err(IoError::NotSupported);
            assert!(
                !frozen || refused,
                "node {node}: an operation ends while I/O is suspended: {:?}",
                completion.request
            );
            let volume = self.operations[upper.operation].volume;
            self.at(volume, |world| world.finish(upper.operation, completion.result, &upper.data));
        }
    }

    pub(super) fn finish(&mut self, number: usize, result: IoResult, data: &[Stamp]) {
        let now_us = self.now_us;
        self.operations[number].result = Some(result);
        self.operations[number].end_us = Some(now_us);
        self.note_progress();
        let operation = self.operations[number].clone();
        self.note_epoch_over(operation.node, operation.epoch);
        self.note(|| format!("node {} app #{number} done {result:?}", operation.node));
        if result.is_err() {
            self.check_error(&operation);
            return;
        }
        self.check_completion(&operation);
        if operation.stamp != 0 {
            self.oracle.acknowledge(operation.stamp, operation.action == Action::Write { fua: true }, now_us);
        }
        // Without a disk it is the peer's cache that counts; if the network does not get there either, those are two failures.
        let no_disk = self.status(operation.node).state.disk <= Disk::Failed;
        if (operation.action == Action::Flush || operation.flushes_first())
            && !(no_disk && self.network_up != [true, true])
        {
            self.oracle.flushed(operation.node, operation.start_us, !no_disk);
        }
        // A disk that loses its cache is not what it was before the node has heard of that (seed 88002391).
        let failing = self.nodes[operation.node].failed_us >= operation.start_us;
        if matches!(operation.action, Action::Read | Action::ReadAhead) && self.config.check_reads && !failing {
            assert_eq!(data.len() as u64, operation.count, "a read without its data");
            for (sector, &stamp) in (operation.sector..).zip(data) {
                if let Err(reason) = self.oracle.check(sector, stamp, operation.start_us, now_us) {
                    panic!("read #{number} on node {}: {reason}", operation.node);
                }
            }
        }
    }

    /// Carries out one operation to its end.
    #[track_caller]
    pub fn io(&mut self, node: usize, action: Action, sector: u64, count: u64) -> IoResult {
        let number = self.start(node, action, sector, count);
        self.run_until("application I/O", 60_000, |world| world.operations[number].result.is_some());
        self.operations[number].result.expect("result")
    }

    /// Does this node's disk hold everything that was acknowledged?
    ///
    /// # Errors
    /// What is missing.
    pub fn check_acknowledged(&self, node: usize) -> Result<(), String> {
        let data = &self.nodes[node].data;
        self.oracle
            .sectors()
            .try_for_each(|sector| self.oracle.check(sector, data.get(sector), self.now_us, self.now_us))
    }

    /// The disk of this node, as it is now, is all that is left: what is not on it may be gone.
    pub fn only_left(&mut self, node: usize) {
        let sectors: Vec<u64> = self.oracle.sectors().collect();
        for sector in sectors {
            self.oracle.lost(sector, self.nodes[node].data.get(sector));
        }
        self.oracle.cache_lost(node);
        for operation in self.operations.iter().filter(|operation| operation.result.is_none()) {
            if operation.stamp != 0 && operation.volume == self.volume {
                self.oracle.doom(operation.stamp);
            }
        }
    }

    /// Those of one node's volume.
    pub fn open_operations_of(&self, node: usize) -> usize {
        let here = |operation: &Operation| (operation.node, operation.volume) == (node, self.volume);
        let open = |operation: &&Operation| operation.is_open() && here(operation);
        self.operations.iter().filter(open).count()
    }

    /// Operations that are neither done nor lost with their machine.
    pub fn open_operations(&self) -> usize {
        self.operations.iter().filter(|operation| operation.is_open()).count()
    }
}
