//! A peer that does not keep to the protocol: on one node's way to the other packets are changed, and others are made up.

use super::*;
use engine::wire::command::{PacketSpec, PACKETS};
use engine::wire::header::Header;
use engine::wire::{Socket, ID_SYNCER, MAX_DATA_BYTES};

/// Bytes of the header of a packet.
fn header_bytes(packet: &[u8]) -> usize {
    if packet.starts_with(&[0x86, 0x20, 0xec, 0x20]) {
        16
    } else {
        8
    }
}

/// What was in packets lately is remembered, so that some of what is made up names something that exists.
const REMEMBERED: usize = 32;

/// A node whose packets are tampered with.
#[derive(Clone, Debug)]
pub struct Hostile {
    /// The node.
    pub node: usize,
    /// How many of 100 packets are changed, and before how many another one is sent.
    pub percent: u64,
    seen: VecDeque<u64>,
}

/// A packet, and the application data that goes with it.
pub(super) type Forged = (Vec<u8>, Option<Vec<Stamp>>);

impl Hostile {
    /// This node's packets, so many of 100.
    pub fn new(node: usize, percent: u64) -> Self {
        Hostile { node, percent, seen: VecDeque::new() }
    }

    /// Remembers what a packet of either node names.
    pub(super) fn see(&mut self, packet: &[u8]) {
        for bytes in packet.get(header_bytes(packet)..).unwrap_or_default().chunks_exact(8).take(2) {
            self.seen.push_back(u64::from_be_bytes(bytes.try_into().expect("8 bytes")));
        }
        while self.seen.len() > REMEMBERED {
            self.seen.pop_front();
        }
    }

    /// Changes a packet, perhaps, and makes up one to be sent before it, perhaps.
    pub(super) fn tamper(&mut self, random: &mut Random, socket: usize, packet: &mut [u8]) -> Option<Forged> {
        let header = header_bytes(packet);
        let is_features = packet.starts_with(&[0x83, 0x74, 0x02, 0x67, 0xff, 0xfe]);
        if let Some(place) = packet.get_mut(16..20).filter(|_| is_features && random.percent(20)) {
            // Another version of the protocol, as the newest that it knows.
            place.copy_from_slice(&(random.between(84, 103) as u32).to_be_bytes());
        }
        if random.percent(self.percent) {
            self.change(random, packet.get_mut(header..).unwrap_or_default());
        }
        random.percent(self.percent).then(|| self.forge(random, socket, header))
    }

    fn change(&self, random: &mut Random, body: &mut [u8]) {
        let words = body.len() as u64 / 4;
        if words == 0 {
            return;
        }
        let at = random.below(words) as usize * 4;
        if random.percent(50) && at % 8 == 0 && at + 8 <= body.len() {
            body[at..at + 8].copy_from_slice(&self.long(random).to_be_bytes());
        } else {
            body[at..at + 4].copy_from_slice(&self.word(random).to_be_bytes());
        }
    }

    fn long(&self, random: &mut Random) -> u64 {
        const ODD: &[u64] = &[0, 1, 7, 8, 4711, 4712, 1 << 32, 1 << 51, 1 << 55, i64::MAX as u64, 1 << 63, ID_SYNCER];
        match random.below(6) {
            0 => random.number(),
            1 => random.pick(ODD),
            2 => random.pick(ODD).wrapping_sub(random.below(4096)),
            3 => random.below(1 << 18),
            _ if self.seen.is_empty() => ID_SYNCER,
            _ => self.seen[random.below(self.seen.len() as u64) as usize],
        }
    }

    fn word(&self, random: &mut Random) -> u32 {
        const ODD: &[u32] =
            &[0, 1, 2, 3, 511, 512, 513, 4096, 8192, 65_536, 1 << 20, (1 << 20) + 512, 1 << 27, (1 << 27) + 512];
        const LARGE: &[u32] = &[1 << 31, i32::MAX as u32, u32::MAX, u32::MAX - 511, u32::MAX - 4095];
        match random.below(4) {
            0 => random.number() as u32,
            1 => random.pick(ODD),
            2 => random.pick(LARGE),
            _ => random.below(300) as u32,
        }
    }

    fn forge(&self, random: &mut Random, socket: usize, header: usize) -> Forged {
        let fits = |spec: &&PacketSpec| spec.handled && spec.socket.accepts([Socket::Data, Socket::Meta][socket]);
        let specs: Vec<_> = PACKETS.iter().filter(fits).collect();
        let spec = random.pick(&specs);
        let with_data = ["P_DATA", "P_DATA_REPLY", "P_RS_DATA_REPLY"].contains(&spec.name);
        let more = match spec.max_len.saturating_sub(spec.fixed_len) {
            most if spec.more && !with_data => random.below(u64::from(most.min(200)) + 1) as usize,
            _ => 0,
        };
        let mut body = vec![0; spec.fixed_len as usize + more];
        for place in body.chunks_exact_mut(4) {
            place.copy_from_slice(&self.word(random).to_be_bytes());
        }
        for place in body.chunks_exact_mut(8) {
            if random.percent(60) {
                place.copy_from_slice(&self.long(random).to_be_bytes());
            }
        }
        let mut data = None;
        let mut length = body.len() as u32;
        if with_data && random.percent(80) {
            let bytes =
                random.pick(if header == 16 { &[0, 512, 4096, 65_536, MAX_DATA_BYTES] } else { &[0, 512, 4096] });
            length += bytes;
            data = (bytes > 0).then(|| vec![0; bytes as usize / 512]);
        }
        let mut packet = vec![0; header];
        let version = if header == 16 { 101 } else { 94 };
        let sound = Header { command: spec.command as u16, volume: 0, length }.encode(version, &mut packet);
        sound.expect("room for a header, and a length that fits");
        packet.extend(body);
        (packet, data)
    }
}
