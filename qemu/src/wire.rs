//! The cable between the two machines: a thread for each direction that moves Ethernet frames from one QEMU's UNIX datagram
//! socket to the other's, and that can cut, delay or lose them. Nothing in the machines takes part in it.
//!
//! A thread always takes what its machine sends, at once. What cannot be delivered (the other machine is off or paused) waits
//! in a queue of [`QUEUE_FRAMES`] and is dropped beyond it, as a switch drops: a sender never blocks, or its kernel would
//! complain about a network card that hangs. Frames keep their order, also when the delay changes.

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{sendto, MsgFlags, UnixAddr};
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Frames that may wait in one direction.
pub const QUEUE_FRAMES: usize = 20_000;

/// Longest Ethernet frame in bytes that passes (QEMU sends none beyond 64 KiB and a header).
const MAX_FRAME_BYTES: usize = 70_000;

/// Pause before a full receiver is tried again.
const RETRY: Duration = Duration::from_millis(1);

/// How often an idle thread looks whether it is still wanted.
const IDLE: Duration = Duration::from_millis(100);

/// What happens to the frames of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quality {
    /// Nothing arrives.
    pub cut: bool,
    /// Every frame arrives this much later.
    pub delay: Duration,
    /// So many of a thousand frames are lost, chosen by a fixed pseudo-random sequence.
    pub loss_permille: u16,
}

impl Quality {
    /// An undisturbed cable.
    pub const GOOD: Quality = Quality { cut: false, delay: Duration::ZERO, loss_permille: 0 };
}

/// Which frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the first machine to the second.
    Forward,
    /// From the second machine to the first.
    Backward,
}

/// Frames counted since the start, one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Handed to the receiving machine.
    pub delivered: u64,
    /// Not delivered: cut, lost on purpose, receiver off or queue full.
    pub dropped: u64,
}

/// The cable. It ends when it is dropped.
pub struct Wire {
    lanes: [Arc<Lane>; 2],
    threads: Vec<JoinHandle<()>>,
}

/// Paths of the sockets at one end: QEMU binds `machine` and sends to `wire`.
#[derive(Clone, Debug)]
pub struct End {
    /// QEMU's own socket.
    pub machine: PathBuf,
    /// The socket this module binds for it.
    pub wire: PathBuf,
}

impl End {
    /// The sockets of the machine `name` in a directory with a short path.
    pub fn new(directory: &Path, name: &str) -> End {
        End { machine: directory.join(format!("{name}.net")), wire: directory.join(format!("{name}.wire")) }
    }
}

impl Wire {
    /// Binds both sockets and starts moving frames. The machines may come, go and come again.
    pub fn new(first: &End, second: &End) -> Result<Wire> {
        let lanes =
            [Arc::new(Lane::new(&first.wire, &second.machine)?), Arc::new(Lane::new(&second.wire, &first.machine)?)];
        let mut threads = Vec::new();
        for (name, lane) in ["wire forward", "wire backward"].iter().zip(&lanes) {
            let lane = Arc::clone(lane);
            threads.push(thread::Builder::new().name((*name).to_owned()).spawn(move || lane.run())?);
        }
        Ok(Wire { lanes, threads })
    }

    /// Sets one direction. Frames that already wait keep their time, unless the direction is cut.
    pub fn set(&self, direction: Direction, quality: Quality) {
        *self.lane(direction).quality() = quality;
    }

    /// Sets both directions.
    pub fn set_both(&self, quality: Quality) {
        self.set(Direction::Forward, quality);
        self.set(Direction::Backward, quality);
    }

    /// Nothing arrives any more, in both directions, as if the plug were pulled.
    pub fn cut(&self) {
        self.set_both(Quality { cut: true, ..Quality::GOOD });
    }

    /// An undisturbed cable again, in both directions.
    pub fn restore(&self) {
        self.set_both(Quality::GOOD);
    }

    /// Delays every frame in both directions: a round trip takes twice as long.
    pub fn delay(&self, delay: Duration) {
        self.set_both(Quality { delay, ..Quality::GOOD });
    }

    /// Loses so many of a thousand frames in both directions.
    pub fn lose(&self, loss_permille: u16) {
        self.set_both(Quality { loss_permille, ..Quality::GOOD });
    }

    /// Frames up to now.
    pub fn counts(&self, direction: Direction) -> Counts {
        let lane = self.lane(direction);
        Counts { delivered: lane.delivered.load(Ordering::Relaxed), dropped: lane.dropped.load(Ordering::Relaxed) }
    }

    fn lane(&self, direction: Direction) -> &Lane {
        match direction {
            Direction::Forward => &self.lanes[0],
            Direction::Backward => &self.lanes[1],
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for lane in &self.lanes {
            lane.stop.store(true, Ordering::Relaxed);
        }
        for thread in self.threads.drain(..) {
            // A lane that panicked has said so itself.
            let _ = thread.join();
        }
    }
}

/// One direction.
struct Lane {
    socket: UnixDatagram,
    receiver: UnixAddr,
    quality: Mutex<Quality>,
    stop: AtomicBool,
    delivered: AtomicU64,
    dropped: AtomicU64,
}

enum Sent {
    Yes,
    /// Nobody is there, or the frame is not to its taste.
    Never,
    /// Its queue is full.
    Later,
}

impl Lane {
    fn new(listen: &Path, receiver: &Path) -> Result<Lane> {
        let socket = UnixDatagram::bind(listen).with_context(|| format!("binding {}", listen.display()))?;
        Ok(Lane {
            socket,
            receiver: UnixAddr::new(receiver).with_context(|| format!("socket {}", receiver.display()))?,
            quality: Mutex::new(Quality::GOOD),
            stop: AtomicBool::new(false),
            delivered: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        })
    }

    fn quality(&self) -> MutexGuard<'_, Quality> {
        self.quality.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut buffer = vec![0; MAX_FRAME_BYTES];
        let mut queue: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
        let mut seed = 0x2545_f491_4f6c_dd1d;
        let mut timeout = Duration::ZERO;
        while !self.stop.load(Ordering::Relaxed) {
            let wanted = self.deliver(&mut queue).max(RETRY);
            if wanted != timeout && self.socket.set_read_timeout(Some(wanted)).is_ok() {
                timeout = wanted;
            }
            match self.socket.recv(&mut buffer) {
                Ok(length) => {
                    let quality = *self.quality();
                    let lost = next_random(&mut seed) % 1000 < u64::from(quality.loss_permille);
                    if quality.cut || lost || queue.len() >= QUEUE_FRAMES {
                        self.dropped.fetch_add(1, Ordering::Relaxed);
                    } else {
                        queue.push_back((Instant::now() + quality.delay, buffer[..length].to_vec()));
                    }
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => (),
                Err(error) => {
                    eprintln!("lab: the wire broke: {error}");
                    return;
                }
            }
        }
    }

    /// Hands over every frame whose time has come; returns how long to wait for the next one.
    fn deliver(&self, queue: &mut VecDeque<(Instant, Vec<u8>)>) -> Duration {
        if self.quality().cut {
            self.dropped.fetch_add(queue.len() as u64, Ordering::Relaxed);
            queue.clear();
        }
        while let Some((due, frame)) = queue.front() {
            let left = due.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                return left.min(IDLE);
            }
            let counter = match self.send(frame) {
                Sent::Later => return RETRY,
                Sent::Yes => &self.delivered,
                Sent::Never => &self.dropped,
            };
            counter.fetch_add(1, Ordering::Relaxed);
            queue.pop_front();
        }
        IDLE
    }

    fn send(&self, frame: &[u8]) -> Sent {
        match sendto(self.socket.as_raw_fd(), frame, &self.receiver, MsgFlags::MSG_DONTWAIT) {
            Ok(_) => Sent::Yes,
            Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::EINTR) => Sent::Later,
            Err(_) => Sent::Never,
        }
    }
}

/// xorshift64: a fixed sequence, so that a run with losses can be repeated.
fn next_random(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    /// Two "machines": sockets as QEMU would bind them.
    struct Rig {
        wire: Wire,
        first: UnixDatagram,
        second: UnixDatagram,
        ends: [End; 2],
        directory: PathBuf,
    }

    impl Rig {
        fn new() -> Rig {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let directory = std::env::temp_dir().join(format!("wire-{}-{number}", std::process::id()));
            std::fs::create_dir_all(&directory).unwrap();
            let ends = [End::new(&directory, "a"), End::new(&directory, "b")];
            let wire = Wire::new(&ends[0], &ends[1]).unwrap();
            let bind = |end: &End| {
                let socket = UnixDatagram::bind(&end.machine).unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                socket
            };
            Rig { first: bind(&ends[0]), second: bind(&ends[1]), wire, ends, directory }
        }

        fn send_first(&self, frame: &[u8]) {
            self.first.send_to(frame, &self.ends[0].wire).unwrap();
        }

        fn send_second(&self, frame: &[u8]) {
            self.second.send_to(frame, &self.ends[1].wire).unwrap();
        }
    }

    impl Drop for Rig {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.directory).unwrap();
        }
    }

    fn received(socket: &UnixDatagram) -> Vec<u8> {
        let mut buffer = [0; 100];
        let length = socket.recv(&mut buffer).expect("a frame");
        buffer[..length].to_vec()
    }

    fn eventually(what: &str, mut check: impl FnMut() -> bool) {
        let until = Instant::now() + Duration::from_secs(5);
        while !check() {
            assert!(Instant::now() < until, "{what} did not happen");
            thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn frames_pass_both_ways_in_order() {
        let rig = Rig::new();
        for number in 0..200_u8 {
            rig.send_first(&[number, 1]);
            rig.send_second(&[number, 2]);
            assert_eq!(received(&rig.second), [number, 1]);
            assert_eq!(received(&rig.first), [number, 2]);
        }
        eventually("counting", || rig.wire.counts(Direction::Forward) == Counts { delivered: 200, dropped: 0 });
    }

    #[test]
    fn a_cut_cable_drops_and_a_restored_one_delivers() {
        let rig = Rig::new();
        rig.wire.cut();
        rig.send_first(b"lost");
        eventually("the drop", || rig.wire.counts(Direction::Forward).dropped == 1);
        rig.wire.restore();
        rig.send_first(b"found");
        assert_eq!(received(&rig.second), b"found");
    }

    #[test]
    fn one_direction_can_be_cut() {
        let rig = Rig::new();
        rig.wire.set(Direction::Backward, Quality { cut: true, ..Quality::GOOD });
        rig.send_second(b"lost");
        rig.send_first(b"found");
        assert_eq!(received(&rig.second), b"found");
        eventually("the drop", || rig.wire.counts(Direction::Backward) == Counts { delivered: 0, dropped: 1 });
    }

    #[test]
    fn a_delay_delays_and_keeps_the_order() {
        let rig = Rig::new();
        rig.wire.delay(Duration::from_millis(120));
        let began = Instant::now();
        rig.send_first(b"1");
        eventually("taking the frame", || rig.first.send_to(b"2", &rig.ends[0].wire).is_ok());
        assert_eq!(received(&rig.second), b"1");
        assert!(began.elapsed() >= Duration::from_millis(120));
        assert_eq!(received(&rig.second), b"2");
    }

    #[test]
    fn a_cut_also_drops_what_is_on_its_way() {
        let rig = Rig::new();
        rig.wire.delay(Duration::from_millis(300));
        rig.send_first(b"late");
        thread::sleep(Duration::from_millis(50));
        rig.wire.cut();
        eventually("the drop", || rig.wire.counts(Direction::Forward) == Counts { delivered: 0, dropped: 1 });
    }

    #[test]
    fn losses_are_about_as_many_as_ordered() {
        let rig = Rig::new();
        rig.wire.lose(250);
        for _ in 0..1000 {
            rig.send_first(b"x");
            let sum = || {
                let counts = rig.wire.counts(Direction::Forward);
                counts.delivered + counts.dropped
            };
            rig.second.set_nonblocking(true).unwrap();
            while rig.second.recv(&mut [0; 10]).is_ok() {}
            if sum() > 990 {
                break;
            }
        }
        let mut drained = [0; 10];
        eventually("the last frame", || {
            while rig.second.recv(&mut drained).is_ok() {}
            let counts = rig.wire.counts(Direction::Forward);
            counts.delivered + counts.dropped == 1000 || counts.dropped > 200
        });
        let dropped = rig.wire.counts(Direction::Forward).dropped;
        assert!((180..=320).contains(&dropped), "{dropped} of 1000 lost");
    }

    #[test]
    fn a_machine_that_is_off_or_does_not_listen_never_blocks_the_sender() {
        let rig = Rig::new();
        rig.first.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        // The second machine does not read: its socket fills, then the queue; every frame is still taken.
        for number in 0..2000_u32 {
            rig.send_first(&number.to_le_bytes());
        }
        for number in 0..2000_u32 {
            assert_eq!(received(&rig.second), number.to_le_bytes());
        }
        std::fs::remove_file(&rig.ends[1].machine).unwrap();
        rig.send_first(b"nobody");
        eventually("the drop", || rig.wire.counts(Direction::Forward).dropped == 1);
    }
}
