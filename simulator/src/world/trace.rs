//! The lines of the trace, and watching one sector.

use super::*;
use engine::resource::{MetadataIo, Op};
use std::fmt;

impl fmt::Display for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.io {
            LocalIo::Request { request, .. } => write!(f, "app@{}.{} ", request.index, request.generation)?,
            LocalIo::Peer { peer, .. } => write!(f, "peer@{}.{} ", peer.index, peer.generation)?,
            LocalIo::Inspect { peer, what } => write!(f, "inspect@{}.{} {what:?} ", peer.index, peer.generation)?,
            LocalIo::Flush { .. } => {}
        }
        match self.op {
            Op::Read => f.write_str("read")?,
            Op::Write => f.write_str("write")?,
            Op::Discard => f.write_str("discard")?,
            Op::WriteZeroes { .. } => f.write_str("zero")?,
            Op::Flush => return f.write_str("flush"),
        }
        write!(f, " {}+{}", self.sector, self.count)?;
        if let (Op::Write, Some(stamp)) = (self.op, self.data.first()) {
            write!(f, " of #{stamp}")?;
        }
        Ok(())
    }
}

pub(super) fn meta(io: &MetadataIo) -> String {
    let (what, how) = (if io.write { "write" } else { "read" }, if io.durable { " durable" } else { "" });
    format!("{what} {} bytes at {}{how}", io.size_bytes, io.sector)
}

/// What a packet is about: sector and length where it has both.
pub(super) fn packet_range(name: &str, bytes: &[u8], with_header: bool) -> String {
    let header_bytes = match bytes {
        _ if !with_header => 0,
        [0x86, 0x20, 0xec, 0x20, ..] => 16,
        _ => 8,
    };
    let body = bytes.get(header_bytes..).unwrap_or_default();
    let word = |at: usize| body.get(at..at + 4).map_or(0, |word| u32::from_be_bytes(word.try_into().expect("4 bytes")));
    let long = |at: usize| body.get(at..at + 8).map_or(0, |word| u64::from_be_bytes(word.try_into().expect("8 bytes")));
    match name {
        "P_DATA" => format!("{} id {:x} seq {} flags {:#x}", long(0), long(8), word(16), word(20)),
        "P_TRIM" | "P_ZEROES" => format!("{}+{} id {:x} seq {}", long(0), word(24) / 512, long(8), word(16)),
        "P_DATA_REPLY" | "P_RS_DATA_REPLY" => format!("{}", long(0)),
        "P_RECV_ACK" | "P_WRITE_ACK" | "P_RS_WRITE_ACK" | "P_SUPERSEDED" | "P_RETRY_WRITE" | "P_NEG_ACK"
        | "P_NEG_DREPLY" | "P_NEG_RS_DREPLY" | "P_RS_CANCEL" | "P_RS_IS_IN_SYNC" | "P_OV_RESULT" => {
            format!("{}+{} id {:x} seq {}", long(0), word(16) / 512, long(8), word(20))
        }
        "P_DATA_REQUEST" | "P_RS_DATA_REQUEST" | "P_RS_THIN_REQ" | "P_CSUM_RS_REQUEST" | "P_OV_REQUEST"
        | "P_OV_REPLY" => format!("{}+{}", long(0), word(16) / 512),
        "P_OUT_OF_SYNC" | "P_RS_DEALLOCATED" => format!("{}+{}", long(0), word(8) / 512),
        "P_BARRIER" | "P_BARRIER_ACK" => format!("{:#x} size {}", word(0), word(4)),
        "P_UUIDS" => {
            let uuids: Vec<String> = (0..6).map(|at| format!("{:x}", long(at * 8))).collect();
            uuids.join(":")
        }
        "P_SIZES" => format!("disk {} user {} current {} flags {:#x}", long(0), long(8), long(16), word(28) & 0xffff),
        "P_SYNC_UUID" => format!("{:x}", long(0)),
        "P_STATE" => state(word(0)),
        "P_STATE_CHG_REQ" | "P_CONN_ST_CHG_REQ" => format!("mask {:#x} value {:#x}", word(0), word(4)),
        "P_STATE_CHG_REPLY" | "P_CONN_ST_CHG_REPLY" => format!("{}", word(0) as i32),
        _ => format!("{} bytes", body.len()),
    }
}

fn state(word: u32) -> String {
    engine::state::State::from_word(word).map_or_else(|_| format!("{word:#x}"), |(state, _)| state.to_string())
}

/// What is noted about a watched sector whenever it changes: on each node what the disk holds, whether the bit is set,
/// and whether the activity log covers it.
pub(super) type Watched = [(Stamp, Option<bool>, bool); 2];

impl World {
    /// Notes what has become of the watched sector.
    pub(super) fn watch(&mut self) {
        if let Some((volume, sector)) = self.config.watch {
            self.at(volume, |world| world.watch_sector(sector));
        }
    }

    fn watch_sector(&mut self, sector: u64) {
        let now: Watched = [0, 1].map(|node| {
            let machine = &self.nodes[node];
            let engine = machine.running.as_ref().map(|running| &running.engine);
            let bit = engine.and_then(|engine| engine.is_out_of_sync(self.volume, sector));
            (machine.data.get(sector), bit, engine.is_some_and(|engine| engine.is_marked(self.volume, sector)))
        });
        if now != self.watched {
            self.watched = now;
            let one = |(stamp, bit, marked): (Stamp, Option<bool>, bool)| {
                let bit = bit.map_or("no bitmap", |bit| if bit { "OUT OF SYNC" } else { "in sync" });
                format!("#{stamp} {bit}{}", if marked { " marked" } else { "" })
            };
            self.note(|| format!("=== sector {sector}: node 0 {}, node 1 {}", one(now[0]), one(now[1])));
        }
    }
}
