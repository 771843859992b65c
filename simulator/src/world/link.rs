//! The connection: two sockets, their readers and senders, and what a network does to them.

use super::promises::Arrivals;
use super::*;
use engine::state::State;

const SOCKETS: [&str; 2] = ["data", "meta"];

/// How far a reader has got.
#[derive(Clone, Debug)]
pub(super) enum Reading {
    Header,
    Body(PacketHead, VolumeId),
    Payload(PeerId, usize),
    ReadReply(RequestId, usize),
    Drain(usize),
    Stopped,
}

/// One machine's half of a connection.
#[derive(Debug)]
pub(super) struct End {
    pub(super) reading: [Reading; 2],
    pub(super) sending: [bool; 2],
    pub(super) blocked_since_us: [Option<u64>; 2],
    pub(super) closing: bool,
    /// By socket: the peer gets to know that nothing more comes.
    pub(super) closed: [bool; 2],
    pub(super) data_arrived: bool,
    pub(super) meta_since_us: u64,
    pub(super) meta_timeout_ms: u32,
    /// By volume.
    pub(super) arrivals: Vec<Arrivals>,
}

pub(super) struct Connection {
    pub(super) number: u64,
    /// By sender, then socket.
    pub(super) pipes: [[Pipe; 2]; 2],
    pub(super) ends: [Option<End>; 2],
}

impl World {
    pub(super) fn link_of(&self, node: usize) -> Option<u64> {
        self.connection
            .as_ref()
            .filter(|connection| connection.ends[node].is_some())
            .map(|connection| connection.number)
    }

    pub(super) fn end(&mut self, node: usize, link: u64) -> Option<&mut End> {
        self.connection.as_mut().filter(|connection| connection.number == link)?.ends[node].as_mut()
    }

    /// The connection thread.
    pub(super) fn link(&mut self, node: usize) {
        let task = self.engine(node, |engine, _| engine.link_task());
        match task {
            LinkTask::Stop | LinkTask::Run => {}
            LinkTask::Establish => self.try_to_meet(),
            LinkTask::Close => self.close(node),
        }
    }

    pub(super) fn try_to_meet(&mut self) {
        if !self.meeting {
            self.meeting = true;
            let delay = self.random.between(100, 3000);
            self.schedule(delay, Event::Meet);
        }
    }

    pub(super) fn meet(&mut self) {
        self.meeting = false;
        let now_us = self.now_us;
        let mut later = None;
        for node in 0..2 {
            let Some(running) = self.nodes[node].running.as_ref() else { return };
            if running.establish_from_us > now_us {
                later = Some(running.establish_from_us);
            }
        }
        let ready = (0..2).all(|node| {
            self.link_of(node).is_none() && self.engine(node, |engine, _| engine.link_task()) == LinkTask::Establish
        });
        if !ready || self.network_up != [true, true] {
            return;
        }
        if let Some(at_us) = later {
            self.meeting = true;
            self.schedule_at(at_us, Event::Meet);
            return;
        }
        let volumes: Vec<VolumeId> = self.volumes().collect();
        let end = || End {
            reading: [Reading::Header, Reading::Header],
            sending: [false; 2],
            blocked_since_us: [None; 2],
            closing: false,
            closed: [false; 2],
            data_arrived: false,
            meta_since_us: now_us,
            meta_timeout_ms: 0,
            arrivals: volumes.iter().map(|_| Arrivals::default()).collect(),
        };
        let number = self.next_connection;
        self.next_connection += 1;
        self.connection = Some(Connection { number, pipes: Default::default(), ends: [Some(end()), Some(end())] });
        let resolver = self.random.below(2) as usize;
        self.note(|| format!("sockets stand, connection {number}, node {resolver} resolves conflicts"));
        for node in 0..2 {
            let sizes: Vec<_> =
                volumes.iter().map(|&volume| self.at(volume, |world| world.device_sizes(node))).collect();
            self.engine(node, |engine, now| {
                for (&volume, &sizes) in volumes.iter().zip(&sizes) {
                    engine.device_sizes(volume, sizes);
                }
                engine.link_up(node == resolver, now);
            });
        }
    }

    /// A step of winding the connection down.
    pub(super) fn close(&mut self, node: usize) {
        let Some(link) = self.link_of(node) else {
            // Given up before it stood.
            self.closed(node);
            return;
        };
        let now_us = self.now_us;
        let delay = self.random.between(50, 2000);
        let parting = self.engine(node, |engine, now| engine.parting(now));
        let Some(connection) = self.connection.as_mut() else { return };
        let waits = parting != Parting::AtOnce && connection.ends[1 - node].as_ref().is_some_and(|end| !end.closing);
        let Some(end) = connection.ends[node].as_mut() else { return };
        if !end.closing {
            end.closing = true;
            end.reading = [Reading::Stopped, Reading::Stopped];
        }
        let closed = end.closed;
        end.closed = if waits { [parting == Parting::PeerJudges, false] } else { [true; 2] };
        let now_closed = [DATA, META].into_iter().filter(|&socket| end.closed[socket] && !closed[socket]);
        let ends: Vec<_> =
            now_closed.map(|socket| (socket, connection.pipes[node][socket].close(now_us + delay))).collect();
        for (socket, at_us) in ends {
            self.schedule_at(at_us, Event::Receive { node: 1 - node, link, socket });
        }
        if waits {
            self.schedule_own(node, MS, Own::Link);
            return;
        }
        let busy = self.end(node, link).is_some_and(|end| end.sending != [false; 2]);
        // The senders see the end of their sockets, then report.
        if !busy && self.engine(node, |engine, _| engine.link_drained()) {
            if let Some(connection) = self.connection.as_mut() {
                connection.ends[node] = None;
                if connection.ends[1 - node].is_none() {
                    self.connection = None;
                }
            }
            self.closed(node);
        }
    }

    pub(super) fn closed(&mut self, node: usize) {
        let reconnect = self.engine(node, |engine, now| engine.link_closed(now));
        self.note(|| format!("node {node} link closed, {reconnect:?}"));
        let wait_us = if reconnect == Reconnect::AfterOneSecond { 1000 * MS } else { 0 };
        let from_us = self.now_us + wait_us;
        self.nodes[node].running.as_mut().expect("on").establish_from_us = from_us;
        self.schedule_own(node, wait_us, Own::Link);
    }

    pub(super) fn link_failed(&mut self, node: usize, link: u64, failure: LinkFailure) {
        let Some(end) = self.end(node, link) else { return };
        match failure {
            LinkFailure::DataReceive => end.reading[DATA] = Reading::Stopped,
            LinkFailure::MetaReceive => end.reading[META] = Reading::Stopped,
            _ => end.reading = [Reading::Stopped, Reading::Stopped],
        }
        self.engine(node, |engine, now| engine.link_failed(failure, now));
        // The other one may say why.
        let goes_on = self.engine_of(node).awaits_reason();
        if let Some(end) = self.end(node, link).filter(|_| !goes_on) {
            end.reading = [Reading::Stopped, Reading::Stopped];
        }
    }

    pub(super) fn send(&mut self, node: usize, link: u64, socket: usize) {
        let now_us = self.now_us;
        let Some(connection) = self.connection.as_mut().filter(|connection| connection.number == link) else { return };
        let full = connection.pipes[node][socket].is_full();
        let Some(end) = connection.ends[node].as_mut() else { return };
        if end.sending[socket] || end.closing {
            return;
        }
        if full {
            if end.blocked_since_us[socket].is_none() {
                end.blocked_since_us[socket] = Some(now_us);
                let patience_us = self.send_patience_ms() * MS;
                self.schedule(patience_us, Event::Patience { node, link, socket, blocked_at_us: now_us });
            }
            return;
        }
        end.blocked_since_us[socket] = None;
        let mut buffer = std::mem::take(&mut self.buffer);
        let outgoing = self.engine(node, |engine, now| {
            if socket == DATA {
                engine.next_data(&mut buffer, now)
            } else {
                engine.next_meta(&mut buffer, now)
            }
        });
        let head = outgoing.map(|outgoing| buffer[..outgoing.head_bytes].to_vec());
        self.buffer = buffer;
        let (Some(outgoing), Some(mut head)) = (outgoing, head) else { return };
        let running = self.nodes[node].running.as_mut().expect("on");
        let mut payload = match outgoing.payload {
            Payload::None => None,
            Payload::Request(request) => {
                let upper = running.uppers[usize::from(request.index)].as_ref();
                Some(upper.filter(|upper| upper.request == request).expect("bio to be sent").data.clone())
            }
            Payload::Peer(peer, bytes) => {
                let pages = running.pages[usize::from(peer.index)].take();
                let (owner, data) = pages.expect("pages to be sent");
                assert!(owner == peer && data.len() == bytes as usize / 512, "pages of another request");
                Some(data)
            }
        };
        if outgoing.digest_bytes > 0 {
            head.extend(inspect::digest(payload.as_deref().expect("a digest goes with data")));
            if let (Some(first), true) = (payload.as_mut().and_then(|data| data.first_mut()), self.garble) {
                self.garble = false;
                *first += 1 << 40;
            }
        }
        if let Some(offers) = self.config.offers {
            offer_less(&mut head, offers);
        }
        let mut forged = None;
        if let Some(hostile) = self.hostile.as_mut() {
            hostile.see(&head);
            if hostile.node == node {
                forged = hostile.tamper(&mut self.random, socket, &mut head);
            }
        }
        let name = packet_name(&head);
        self.packets.insert(name);
        let header_bytes = if head.starts_with(&HEADER_100) { 16 } else { 8 };
        let body = head.get(header_bytes..).unwrap_or_default();
        let payload_bytes = payload.as_ref().map(|stamps| stamps.len() as u32 * 512);
        self.at(self.volume_named(&head), |world| {
            world.check_promise(node, name, body);
            world.check_told(node, name, body);
            world.check_paused(node, name);
            world.check_wire(node, name, body, payload_bytes);
            if name == "P_STATE_CHG_REPLY" {
                world.check_wish_answered(node, body);
            }
            world.note_coming(node, name, body, payload_bytes);
            let range = || trace::packet_range(name, &head, true);
            world.note(|| format!("node {node} {} > {name} {}", SOCKETS[socket], range()));
        });
        *self.packets_sent.entry(name).or_default() += 1;
        let most = if self.random.percent(3) { 5000 } else { 200 };
        let arrival = now_us + self.random.between(30, most) + self.late_us[node][socket];
        let Some(connection) = self.connection.as_mut().filter(|connection| connection.number == link) else { return };
        let pipe = &mut connection.pipes[node][socket];
        if let Some((packet, data)) = forged {
            pipe.send(packet, arrival);
            data.map(|stamps| pipe.send_sectors(stamps, arrival));
        }
        let mut at_us = pipe.send(head, arrival);
        if let Some(stamps) = payload {
            at_us = pipe.send_sectors(stamps, arrival);
        }
        if let Some(end) = connection.ends[node].as_mut() {
            end.sending[socket] = true;
        }
        self.schedule_at(at_us, Event::Receive { node: 1 - node, link, socket });
        let delay = self.random.between(1, self.config.sent_us_most);
        self.schedule(delay, Event::Sent { node, link, socket });
    }

    /// How long a sender waits for a socket.
    pub(super) fn send_patience_ms(&self) -> u64 {
        let net = &self.config.net;
        u64::from(net.timeout) * 100 * u64::from(net.ko_count.max(1))
    }

    pub(super) fn sent(&mut self, node: usize, link: u64, socket: usize) {
        let Some(end) = self.end(node, link) else { return };
        end.sending[socket] = false;
        let ok = !end.closing;
        self.engine(node, |engine, now| {
            if socket == DATA {
                engine.data_sent(ok, now);
            } else {
                engine.meta_sent(ok, now);
            }
        });
        if ok {
            self.send(node, link, socket);
        } else {
            self.schedule_own(node, 1, Own::Link);
        }
    }

    pub(super) fn receive(&mut self, node: usize, link: u64, socket: usize) {
        loop {
            if !self.network_up[1 - node] {
                return;
            }
            let now_us = self.now_us;
            let Some(connection) = self.connection.as_mut().filter(|connection| connection.number == link) else {
                return;
            };
            let Some(end) = connection.ends[node].as_ref() else { return };
            let pipe = &mut connection.pipes[1 - node][socket];
            if matches!(end.reading[socket], Reading::Stopped) {
                return;
            }
            if pipe.at_end(now_us) {
                self.link_failed(
                    node,
                    link,
                    if socket == DATA { LinkFailure::DataReceive } else { LinkFailure::MetaReceive },
                );
                return;
            }
            let nothing_to_wait_for = matches!(&end.reading[socket], Reading::Body(head, _) if head.body_bytes == 0);
            if !(nothing_to_wait_for || pipe.readable(now_us)) || !self.read_some(node, link, socket) {
                return;
            }
            if self.random.percent(30) {
                let delay = self.random.between(1, 100);
                self.schedule(delay, Event::Receive { node, link, socket });
                return;
            }
        }
    }

    /// One step of a reader; false when it has to wait.
    pub(super) fn read_some(&mut self, node: usize, link: u64, socket: usize) -> bool {
        let now_us = self.now_us;
        let Some(reading) = self.end(node, link).map(|end| end.reading[socket].clone()) else { return false };
        let engine = self.engine_of(node);
        let header_bytes = match socket {
            DATA => engine.receiver_may_read().then(|| engine.data_header_bytes()),
            _ => engine.meta_header_bytes(),
        };
        let Some(connection) = self.connection.as_mut() else { return false };
        let pipe = &mut connection.pipes[1 - node][socket];
        let was_full = pipe.is_full();
        let next = match reading {
            Reading::Stopped => return false,
            Reading::Header => {
                let Some(bytes) = header_bytes else { return false };
                let taken = pipe.take(bytes, now_us);
                let Some(bytes) = self.framed(node, link, socket, taken) else { return false };
                self.engine(node, |engine, now| match socket {
                    DATA => engine.data_header(&bytes, now),
                    _ => engine.meta_header(&bytes, now),
                })
                .map(|head| Reading::Body(head, self.volume_named(&bytes)))
            }
            Reading::Body(head, volume) => {
                let taken = pipe.take(head.body_bytes, now_us);
                let Some(bytes) = self.framed(node, link, socket, taken) else { return false };
                self.at(volume, |world| world.body_received(node, socket, &head, &bytes))
            }
            Reading::Payload(peer, count) => {
                let taken = pipe.take_sectors(count, now_us);
                let Some(stamps) = self.framed(node, link, socket, taken) else { return false };
                let running = self.nodes[node].running.as_mut().expect("on");
                let digest = engine::resource::Digest::new(&inspect::digest(&stamps));
                running.pages[usize::from(peer.index)] = Some((peer, stamps));
                self.check_payload(node, digest)
                    .and_then(|()| self.engine(node, |engine, now| engine.payload_received(peer, now)))
                    .map(|()| Reading::Header)
            }
            Reading::ReadReply(request, count) => {
                let taken = pipe.take_sectors(count, now_us);
                let Some(stamps) = self.framed(node, link, socket, taken) else { return false };
                let running = self.nodes[node].running.as_mut().expect("on");
                let upper = running.uppers[usize::from(request.index)].as_mut();
                let digest = engine::resource::Digest::new(&inspect::digest(&stamps));
                upper.filter(|upper| upper.request == request).expect("bio of a remote read").data = stamps;
                self.check_payload(node, digest)
                    .and_then(|()| self.engine(node, |engine, now| engine.read_reply_received(request, now)))
                    .map(|()| Reading::Header)
            }
            Reading::Drain(count) => {
                let taken = pipe.take_sectors(count, now_us);
                let Some(_stamps) = self.framed(node, link, socket, taken) else { return false };
                Ok(Reading::Header)
            }
        };
        if was_full {
            self.schedule(1, Event::Send { node: 1 - node, link, socket });
        }
        let goes_on = next.is_ok();
        if let Some(end) = self.end(node, link) {
            if !matches!(end.reading[socket], Reading::Stopped) {
                end.reading[socket] = next.unwrap_or(Reading::Stopped);
            }
            if socket == META {
                end.meta_since_us = now_us;
            } else {
                end.data_arrived = true;
            }
        }
        goes_on
    }

    /// The volume that a packet is about: the first one, if it is about none.
    fn volume_named(&self, head: &[u8]) -> VolumeId {
        let number = match head {
            [_, _, _, _, 0, number, ..] if head.starts_with(&HEADER_100) => *number,
            _ => 0,
        };
        self.volumes().find(|volume| volume.0 == number).unwrap_or(VOLUME)
    }

    /// What was read, unless there is no sense in it: only a hostile peer sends that, and then it ends the connection.
    fn framed<T>(&mut self, node: usize, link: u64, socket: usize, taken: Result<Option<T>, String>) -> Option<T> {
        match taken {
            Ok(taken) => taken,
            Err(error) => {
                assert!(self.hostile.is_some(), "framing: {error}");
                let failures = [LinkFailure::DataReceive, LinkFailure::MetaReceive];
                self.link_failed(node, link, failures[socket]);
                None
            }
        }
    }

    /// Data has arrived: is it what its digest says?
    pub(super) fn check_payload(&mut self, node: usize, digest: Option<engine::resource::Digest>) -> Result<(), Fault> {
        match self.engine_of(node).received_integrity() {
            Some(_) => self.engine(node, |engine, now| engine.check_payload(digest, now)),
            None => Ok(()),
        }
    }

    /// What a C module makes of a state during a verify: it goes on, and both disks are good.
    fn believed(&self, node: usize, name: &str, bytes: &[u8]) -> Option<[u8; 4]> {
        if self.trusts_in_verify != Some(node) || name != "P_STATE" {
            return None;
        }
        let conn = self.status(node).state.conn;
        let (told, susp) = State::from_word(u32::from_be_bytes(bytes.try_into().ok()?)).ok()?;
        let spoilt = matches!(conn, Conn::VerifyS | Conn::VerifyT) && told.disk == Disk::Inconsistent;
        let word = State { disk: Disk::UpToDate, conn, ..told }.word(susp);
        spoilt.then(|| word.to_be_bytes())
    }

    pub(super) fn body_received(
        &mut self,
        node: usize,
        socket: usize,
        head: &PacketHead,
        bytes: &[u8],
    ) -> Result<Reading, Fault> {
        self.note(|| {
            format!(
                "node {node} {} < {} {}",
                SOCKETS[socket],
                head.name(),
                trace::packet_range(head.name(), bytes, false)
            )
        });
        if socket == META {
            // Whatever ends with this answer has been answered.
            self.note_answer(node, head.name(), bytes);
            self.note_meta_packet(node, head.name(), bytes);
            let marked = self.marked_before_answer(node, head.name(), bytes);
            self.engine(node, |engine, now| engine.meta_packet(head, bytes, now))?;
            self.check_cleared(node, &marked, || head.name().into());
            self.check_answer(node, head.name(), bytes);
            return Ok(Reading::Header);
        }
        let believed = self.believed(node, head.name(), bytes);
        let bytes = believed.as_ref().map_or(bytes, |word| &word[..]);
        let sizes = self.device_sizes(node);
        let reads = matches!(
            head.name(),
            "P_DATA_REQUEST" | "P_RS_DATA_REQUEST" | "P_RS_THIN_REQ" | "P_CSUM_RS_REQUEST" | "P_OV_REQUEST"
        );
        let wish = head.name() == "P_STATE_CHG_REQ" && self.config.offers.is_none();
        let before = (reads || wish).then(|| self.status(node));
        let next = self.engine(node, |engine, now| {
            if let Some(volume) = engine.wants_device_sizes(head) {
                engine.device_sizes(volume, sizes);
            }
            engine.data_packet(head, bytes, now)
        })?;
        let payload_bytes = match next {
            Next::Payload { size_bytes, .. } => Some(size_bytes),
            _ => None,
        };
        match before {
            Some(before) if wish => self.note_wish(node, before.state),
            Some(before) => self.check_served(node, head.name(), &before),
            None => {}
        }
        self.note_arrival(node, head.name(), bytes, payload_bytes);
        self.note_sync_generation(node, head.name(), bytes);
        self.note_heard(node, head.name(), bytes);
        Ok(match next {
            Next::Packet => Reading::Header,
            Next::Authenticate => {
                let net = &self.config.net;
                let secret = if self.wrong_secret[node] { "wrong" } else { net.shared_secret.as_str() };
                let own = self.engine_of(node).own_challenge();
                let hmacs = inspect::hmac(secret, bytes).zip(inspect::hmac(secret, own.as_bytes()));
                self.engine(node, |engine, now| engine.authenticate(hmacs, now))?;
                Reading::Header
            }
            Next::Payload { peer, size_bytes } => Reading::Payload(peer, size_bytes as usize / 512),
            Next::ReadReply { request, size_bytes } => {
                self.note_request_answered(node, request);
                Reading::ReadReply(request, size_bytes as usize / 512)
            }
            Next::Drain { size_bytes } => Reading::Drain(size_bytes as usize / 512),
        })
    }

    /// The receive timeout of the meta socket may have changed.
    pub(super) fn watch_meta(&mut self, node: usize, link: u64) {
        let engine = self.engine_of(node);
        if engine.meta_header_bytes().is_none() {
            return;
        }
        let timeout_ms = engine.meta_receive_timeout_ms();
        let now_us = self.now_us;
        let Some(end) = self.end(node, link) else { return };
        if end.meta_timeout_ms != timeout_ms {
            end.meta_timeout_ms = timeout_ms;
            end.meta_since_us = now_us;
            self.schedule(u64::from(timeout_ms) * MS, Event::MetaTimer { node, link });
        }
    }

    pub(super) fn meta_timer(&mut self, node: usize, link: u64) {
        let now_us = self.now_us;
        let Some(end) = self.end(node, link) else { return };
        if matches!(end.reading[META], Reading::Stopped) {
            return;
        }
        let due_us = end.meta_since_us + u64::from(end.meta_timeout_ms) * MS;
        if now_us >= due_us {
            end.meta_since_us = now_us;
            let arrived = std::mem::take(&mut end.data_arrived);
            if self.engine(node, |engine, now| engine.meta_timeout(arrived, now)).is_err() {
                return;
            }
        }
        let Some(end) = self.end(node, link) else { return };
        let due_us = (end.meta_since_us + u64::from(end.meta_timeout_ms) * MS).max(now_us + MS);
        self.schedule_at(due_us, Event::MetaTimer { node, link });
    }

    /// Cuts or restores the network, in both directions.
    pub fn set_network(&mut self, up: bool) {
        self.set_direction(0, up);
        self.set_direction(1, up);
    }

    /// Cuts or restores what `from` sends.
    pub fn set_direction(&mut self, from: usize, up: bool) {
        self.note(|| format!("network from node {from}: {}", if up { "up" } else { "cut" }));
        self.network_up[from] = up;
        if up {
            if let Some(link) = self.connection.as_ref().map(|connection| connection.number) {
                for socket in [DATA, META] {
                    self.schedule(200, Event::Receive { node: 1 - from, link, socket });
                }
            }
            self.try_to_meet();
        }
    }

    /// Both sockets break.
    pub fn reset_connection(&mut self) {
        let now_us = self.now_us;
        let Some(connection) = self.connection.as_mut() else { return };
        let link = connection.number;
        for pipe in connection.pipes.iter_mut().flatten() {
            pipe.reset(now_us);
        }
        self.note(|| "connection reset".into());
        for node in 0..2 {
            for socket in [DATA, META] {
                let delay = self.random.below(3000);
                self.schedule(delay, Event::Receive { node, link, socket });
            }
        }
    }
}

/// The first bytes of a header that names a volume.
const HEADER_100: [u8; 4] = [0x86, 0x20, 0xec, 0x20];

pub(super) fn packet_name(head: &[u8]) -> &'static str {
    let command = match head {
        [0x86, 0x20, 0xec, 0x20, _, _, high, low, ..] => [*high, *low],
        [_, _, _, _, high, low, ..] => [*high, *low],
        _ => [0xff, 0xff],
    };
    engine::wire::Command::from_u16(u16::from_be_bytes(command)).map_or("?", |command| command.name())
}

/// Makes P_CONNECTION_FEATURES offer no newer version than this, and only these features.
fn offer_less(packet: &mut [u8], (version, features): (u32, u32)) {
    const FEATURES: [u8; 6] = [0x83, 0x74, 0x02, 0x67, 0xff, 0xfe];
    if packet.starts_with(&FEATURES) {
        packet[12..16].copy_from_slice(&features.to_be_bytes());
        packet[16..20].copy_from_slice(&version.to_be_bytes());
    }
}
