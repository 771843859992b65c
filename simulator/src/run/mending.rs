//! After the faults: everything that was broken is mended, and a bounded number of steps later both halves are the same, or it is told
//! why that cannot be.

use super::*;
use engine::resource::Fault;

impl Driver {
    /// Everything that was broken is mended, and an administrator does what is to be done.
    pub(super) fn repair(&mut self) {
        self.world.note(|| "--- everything is mended".into());
        self.world.set_network(true);
        for node in 0..2 {
            self.each(|driver| driver.world.nodes[node].faults = Default::default());
            if !self.world.is_on(node) {
                self.world.boot(node);
            }
        }
        let mut bad_turns = 0;
        // Volumes may have to be copied one after the other; where a packet takes 20 ms, 512 MiB take their time (seeds 1205, 82047745).
        for turn in 0..1800 * u32::from(self.world.config.volumes) {
            if self.in_sync() {
                return;
            }
            self.world.run_for_ms(500);
            self.poll();
            if self.in_sync() {
                return;
            }
            bad_turns = if self.is_stuck() { bad_turns + 1 } else { 0 };
            self.mend_volumes(turn, bad_turns);
        }
        panic!("the pair does not come together; {}; refusals {:?}", self.world.describe(), self.world.refusals);
    }

    fn in_sync(&mut self) -> bool {
        self.all(Driver::volume_in_sync) && self.asked == [Asked::Nothing; 2] && self.world.open_operations() == 0
    }

    fn volume_in_sync(&self) -> bool {
        self.both_good() && (0..2).all(|node| self.world.status(node).bits_out_of_sync == 0)
    }

    /// Connected, and nothing goes on.
    fn is_stuck(&mut self) -> bool {
        let connected = |driver: &Driver| (0..2).any(|node| driver.world.status(node).state.conn == Conn::Connected);
        let several = self.world.config.volumes > 1;
        // With several volumes this one may be in sync while another one gets there.
        self.all(|driver| connected(driver) || (several && driver.volume_in_sync()))
    }

    /// One request at a time: another volume's turn comes first each time.
    fn mend_volumes(&mut self, turn: u32, bad_turns: u32) {
        // A program that fences may take many turns, and nothing else can be asked for meanwhile (seed 31002881 with several volumes).
        self.turns_waited += u32::from(self.asked != [Asked::Nothing; 2]);
        // Where all are in sync something else is still to be done.
        let all = self.all(Driver::volume_in_sync);
        let before = self.volume();
        let volumes = u32::from(self.world.config.volumes);
        for number in turn..turn + volumes {
            self.look_at(VolumeId((number % volumes) as u8));
            // A resync that the administrator holds back holds back those that come after it (seed 20004224).
            let is_paused = (0..2).any(|node| self.world.is_on(node) && self.world.status(node).state.user_isp);
            if all || is_paused || !self.volume_in_sync() {
                self.mend(turn, bad_turns);
            }
        }
        self.look_at(before);
    }

    fn mend(&mut self, turn: u32, bad_turns: u32) {
        if turn.saturating_sub(self.turns_waited) > 20 && self.is_hopeless() && self.start_over() {
            return;
        }
        if !self.dual && (0..2).all(|node| self.is_primary(node)) {
            // The careless one made both Primary; nothing but a demotion brings them together.
            let poor = (0..2).find(|&node| self.world.status(node).state.disk != Disk::UpToDate);
            let node = poor.unwrap_or_else(|| self.victim());
            // A demotion waits for I/O that is suspended.
            if self.world.is_suspended(node) {
                self.ask(node, Asked::Other, AdminRequest::ResumeIo { volume: self.volume() });
            } else {
                self.demote(node);
            }
        }
        if turn >= 500 && matches!(self.world.status(0).state.conn, Conn::VerifyS | Conn::VerifyT) {
            // At its rate it takes longer than there is time. Two Primaries must not lose sight of each other for that.
            let both_primary = (0..2).all(|node| self.is_primary(node));
            match (both_primary, self.asked) {
                (true, [_, Asked::Nothing]) => self.demote(1),
                (false, [Asked::Nothing, _]) => self.ask(0, Asked::Other, AdminRequest::Disconnect { force: true }),
                _ => {}
            }
        }
        for node in 0..2 {
            if self.asked[node] != Asked::Nothing {
                continue;
            }
            let status = self.world.status(node);
            if self.world.is_suspended(node) {
                self.ask(node, Asked::Other, AdminRequest::ResumeIo { volume: self.volume() });
            } else if status.state.user_isp {
                self.ask(node, Asked::Other, AdminRequest::ResumeSync { volume: self.volume() });
            } else if turn % 8 == 7 && status.state.conn < Conn::WFReportParams && status.state.conn > Conn::StandAlone
            {
                // Its options may be those from before the last change.
                self.set_net_options(node);
            } else if !status.has_disk {
                if turn > 20 && self.is_primary(node) && !self.world.refusals.is_empty() {
                    // Its data is refused time and again: whoever is Primary with the other's data does not get out of that.
                    self.demote(node);
                } else if !self.attach(node) {
                    // A Primary without good data has shown what this disk does not have: it has to give up first.
                    for primary in (0..2).filter(|&node| self.is_primary(node)).collect::<Vec<_>>() {
                        self.demote(primary);
                    }
                }
            } else if status.state.conn == Conn::StandAlone {
                // A Primary without a disk refuses data that it has not seen, and I/O is frozen until somebody asks for more after each
                // attempt. What that volume needs comes first every now and then (seed 35013492 with several volumes).
                let sees_no_disk = |driver: &Driver| driver.is_primary(node) && !driver.world.status(node).has_disk;
                if turn > 20 && turn % 8 >= 4 && !self.all(|driver| !sees_no_disk(driver)) {
                    continue;
                }
                let mut conf = self.world.config.net;
                let refused = !self.world.refusals.is_empty();
                if refused && turn % 2 == 0 && node != self.victim() && self.waits_for_peer(1 - node) {
                    // That one has to say first that its data is given up.
                    self.ask(1 - node, Asked::Other, AdminRequest::Disconnect { force: false });
                    continue;
                }
                if refused {
                    self.world.overwrite_allowed = true;
                    conf.discard_my_data = node == self.victim();
                    if self.is_primary(node) {
                        self.demote(node);
                    }
                    // What has no disk when the nodes meet does not tell the peer that its data is given up.
                    let ready = |driver: &Driver| !driver.is_primary(node) && driver.world.status(node).has_disk;
                    if !self.all(ready) {
                        continue;
                    }
                }
                self.connect(node, &conf);
            } else if !self.world.refusals.is_empty() && status.state.conn == Conn::WFConnection {
                // The other one refused: begin again, as told above.
                if self.world.status(1 - node).state.conn == Conn::StandAlone && node == self.victim() {
                    self.ask(node, Asked::Other, AdminRequest::Disconnect { force: false });
                }
            } else if bad_turns == 5 && node == 0 && self.both_good() {
                // An invalidate that was interrupted before it began leaves its bits. He repeats it.
                self.ask(node, Asked::Other, AdminRequest::InvalidateRemote { volume: self.volume() });
            } else if bad_turns > 10 && bad_turns % 10 == 1 && (node == 0 || self.asked[0] != Asked::Nothing) {
                // Blocks that could not be synced while the disk failed are tried again with the next connection. So does a promotion
                // wait for it, which finds that the peer has better data (seed 9201291). Two Primaries must not lose sight of each other for
                // that, nor where `max-buffers` lets only one packet through in 100 ms (seed 50014738, and 51023677 with several volumes).
                match (0..2).all(|node| self.is_primary(node)) {
                    true => self.demote(1),
                    false => self.ask(1, Asked::Other, AdminRequest::Disconnect { force: true }),
                }
            }
        }
    }

    /// The module refuses while the device is open, as it is while somebody waits for the gate.
    fn demote(&mut self, node: usize) {
        if self.world.nodes[node].device.parked.is_empty() {
            self.ask(node, Asked::Other, AdminRequest::Secondary { volume: self.volume() });
        }
    }

    fn waits_for_peer(&self, node: usize) -> bool {
        self.world.status(node).state.conn == Conn::WFConnection
    }

    /// There is no good disk, or they have no past in common: nothing comes together by itself.
    fn is_hopeless(&self) -> bool {
        let unrelated = |refusal: &String| refusal.contains("never held the same data");
        !self.started_over.contains(&self.volume())
            && (!self.has_good_disk() || self.world.refusals.iter().any(unrelated))
    }

    /// One disk is declared to be good, the other one gets new meta data. False: there is nothing to be done just now.
    fn start_over(&mut self) -> bool {
        let worse = self.victim();
        let better = 1 - worse;
        let [state, other] = [better, worse].map(|node| self.world.status(node));
        self.world.overwrite_allowed = true;
        if self.asked != [Asked::Nothing; 2] {
            return true;
        }
        if state.state.disk != Disk::UpToDate {
            if !state.has_disk {
                return false;
            }
            let promote = AdminRequest::Primary { volume: self.volume(), force: true };
            let demote = AdminRequest::Secondary { volume: self.volume() };
            let primary = self.is_primary(better);
            self.ask(better, Asked::Other, if primary { demote } else { promote });
        } else if other.has_disk {
            self.ask(worse, Asked::Other, AdminRequest::Detach { volume: self.volume(), force: true });
        } else {
            self.world.create_md(worse);
            self.started_over.insert(self.volume());
        }
        true
    }

    fn has_good_disk(&self) -> bool {
        (0..2).any(|node| self.world.status(node).state.disk == Disk::UpToDate)
    }

    /// After a split brain: whose changes are given up, of all volumes.
    fn victim(&mut self) -> usize {
        // A node that met a Primary without disk may have begun a generation before that one refused its old data.
        // So may one with which the Primary lost the connection when it had just lost its disk: that Primary does not hear of it, and
        // attaches its disk again (seed 12003488). The protocol is like that; neither of them has written anything.
        let excused = !self.careful || self.world.old_data_refused > 0 || self.world.is_excused();
        // With the disks that fail kept, there may be no good one: one of the nodes has to be forced.
        let excused = excused || self.world.passes_on();
        assert!(excused, "refused: {:?}", self.world.refusals);
        let [zero, one] = [0, 1].map(|node| self.all(|driver| driver.world.check_acknowledged(node).is_ok()));
        usize::from(zero || !one)
    }

    pub(super) fn verify(&mut self) {
        self.world.run_for_ms(3000);
        let world = &self.world;
        for node in 0..2 {
            assert_eq!(
                world.engine_of(node).usage(),
                Default::default(),
                "left over on node {node}: {}",
                world.describe()
            );
        }
        let excusable = |fault: &Fault| is_excusable(fault) || (self.grown > 0 && matches!(fault, Fault::Bitmap(_)));
        if let Some((node, fault)) = world.faults.iter().find(|(_, fault)| !excusable(fault)) {
            panic!("node {node} gave up a connection: {fault}");
        }
        self.each(|driver| driver.verify_volume());
    }

    fn verify_volume(&self) {
        let world = &self.world;
        for node in 0..2 {
            let status = world.status(node);
            let pending = [status.upper_pending, status.lower_pending, status.peer_pending, status.unacked];
            assert_eq!(pending, [0; 4], "counted on node {node} as under way: {}", world.describe());
        }
        for node in 0..2 {
            let superblock = world.superblock(node);
            let size = world.status(node).size_sectors;
            assert_eq!(superblock.la_size_sectors, size, "the size that node {node} has written down");
            assert!(
                !superblock.flags.contains(MetaFlags::FULL_SYNC),
                "node {node} would copy everything when it boots"
            );
        }
        let [zero, one] = [0, 1].map(|node| world.status(node).uuids.map(|uuid| uuid & !1));
        assert_eq!(zero[UI_CURRENT], one[UI_CURRENT], "generations differ");
        assert_eq!([zero[UI_BITMAP], one[UI_BITMAP]], [0, 0], "generations are not closed");
        let sectors = world.status(0).size_sectors;
        assert_eq!(sectors, world.status(1).size_sectors, "the sizes differ");
        let difference = world.nodes[0].data.first_difference(&world.nodes[1].data, sectors);
        assert_eq!(difference, None, "the halves differ; {}", world.describe());
        if self.careful {
            for node in 0..2 {
                if let Err(reason) = world.check_acknowledged(node) {
                    panic!("node {node} lacks an acknowledged write: {reason}");
                }
            }
        }
    }
}

/// Two engines of ours never break the protocol. What is left is what they tell each other on purpose, what silence does, and two
/// changes of a state that cross each other on their way: then the connection is made anew.
fn is_excusable(fault: &Fault) -> bool {
    matches!(
        fault,
        Fault::Closing
            | Fault::DataRefused
            | Fault::InsideBitmap { .. }
            | Fault::HandshakeRefused
            | Fault::HandshakeTimeout { .. }
            | Fault::MissingSequence { .. }
            | Fault::NotDurable
            | Fault::PeerRebooted
            | Fault::PingTimeout
            | Fault::SameSide { .. }
            | Fault::SourceFailed
            | Fault::StateRefused(_)
            | Fault::UnexpectedBitmap { .. }
            | Fault::Algorithm { .. }
            | Fault::Protocol(_)
    )
}
