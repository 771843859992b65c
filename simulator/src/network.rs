//! Two byte streams in each direction, as TCP gives them: in order, late, cut off.

use crate::disk::Stamp;
use std::collections::VecDeque;

/// Bytes that fit into one direction of a socket before the sender has to wait.
pub const PIPE_BYTES: usize = 256 << 10;

/// The data socket.
pub const DATA: usize = 0;
/// The meta socket.
pub const META: usize = 1;

#[derive(Clone, Debug)]
enum Chunk {
    Bytes(Vec<u8>),
    /// Application data: one number a sector.
    Sectors(Vec<Stamp>),
}

/// One direction of a socket.
#[derive(Clone, Debug, Default)]
pub struct Pipe {
    chunks: VecDeque<(u64, Chunk)>,
    bytes: usize,
    last_arrival_us: u64,
    /// The sender has closed it; the end is seen after everything before it.
    closed_at_us: Option<u64>,
}

impl Pipe {
    /// True when a sender would have to wait.
    pub fn is_full(&self) -> bool {
        self.bytes >= PIPE_BYTES
    }

    fn arrival(&mut self, at_us: u64) -> u64 {
        self.last_arrival_us = self.last_arrival_us.max(at_us);
        self.last_arrival_us
    }

    /// Puts bytes in, to arrive at `at_us` or later; returns when.
    pub fn send(&mut self, bytes: Vec<u8>, at_us: u64) -> u64 {
        if self.closed_at_us.is_some() {
            // It broke; the sender has not been told yet.
            return at_us;
        }
        self.bytes += bytes.len();
        let at_us = self.arrival(at_us);
        self.chunks.push_back((at_us, Chunk::Bytes(bytes)));
        at_us
    }

    /// Puts application data in.
    pub fn send_sectors(&mut self, stamps: Vec<Stamp>, at_us: u64) -> u64 {
        if self.closed_at_us.is_some() {
            return at_us;
        }
        self.bytes += stamps.len() * 512;
        let at_us = self.arrival(at_us);
        self.chunks.push_back((at_us, Chunk::Sectors(stamps)));
        at_us
    }

    /// Closes it.
    pub fn close(&mut self, at_us: u64) -> u64 {
        let at_us = self.arrival(at_us);
        self.closed_at_us.get_or_insert(at_us);
        at_us
    }

    /// It breaks: what is in it is lost.
    pub fn reset(&mut self, now_us: u64) {
        self.chunks.clear();
        self.bytes = 0;
        self.closed_at_us = Some(now_us);
    }

    /// True when the receiver sees the end of the stream.
    pub fn at_end(&self, now_us: u64) -> bool {
        self.chunks.is_empty() && self.closed_at_us.is_some_and(|at| at <= now_us)
    }

    /// Anything that could be read now?
    pub fn readable(&self, now_us: u64) -> bool {
        self.chunks.front().is_some_and(|(at, _)| *at <= now_us)
    }

    /// When the next chunk can be read.
    pub fn next_arrival(&self) -> Option<u64> {
        self.chunks.front().map(|(at, _)| *at).or(self.closed_at_us)
    }

    /// Exactly `count` bytes if they have arrived.
    ///
    /// # Errors
    /// When application data comes where bytes were expected: the two engines do not agree about the framing.
    pub fn take(&mut self, count: usize, now_us: u64) -> Result<Option<Vec<u8>>, String> {
        let mut available = 0;
        for (at, chunk) in &self.chunks {
            if available >= count || *at > now_us {
                break;
            }
            match chunk {
                Chunk::Bytes(bytes) => available += bytes.len(),
                Chunk::Sectors(_) => {
                    return Err(format!("application data where {count} bytes of a packet were expected"))
                }
            }
        }
        if available < count {
            return Ok(None);
        }
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            let Some((_, Chunk::Bytes(bytes))) = self.chunks.front_mut() else { unreachable!() };
            let part = (count - taken.len()).min(bytes.len());
            taken.extend(bytes.drain(..part));
            if bytes.is_empty() {
                self.chunks.pop_front();
            }
        }
        self.bytes -= count;
        Ok(Some(taken))
    }

    /// One chunk of application data of exactly `count` sectors if it has arrived.
    ///
    /// # Errors
    /// When something else comes: the two engines do not agree about the framing.
    pub fn take_sectors(&mut self, count: usize, now_us: u64) -> Result<Option<Vec<Stamp>>, String> {
        let Some((at, chunk)) = self.chunks.front() else { return Ok(None) };
        if *at > now_us {
            return Ok(None);
        }
        match chunk {
            Chunk::Sectors(stamps) if stamps.len() == count => {}
            other => return Err(format!("{count} sectors of application data expected, found {other:?}")),
        }
        let Some((_, Chunk::Sectors(stamps))) = self.chunks.pop_front() else { unreachable!() };
        self.bytes -= count * 512;
        Ok(Some(stamps))
    }
}
