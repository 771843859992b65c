//! A peer that does not keep to the protocol: it opens both sockets of a connection, goes through as much of the handshake as
//! the case needs, does one wrong thing, and waits until the other side hangs up.
//!
//! The packets are put together by hand on purpose: what is tested must not be shared with the test.
// spec: wire-protocol 1.2, 2, 3.2, 4

use anyhow::{bail, Context, Result};
use machine_tests::pattern::Random;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

const CONNECT_LIMIT: Duration = Duration::from_secs(20);
const HANG_UP_LIMIT: Duration = Duration::from_secs(15);

const P_DATA: u16 = 0x00;
const P_BITMAP: u16 = 0x04;
const P_DATA_REQUEST: u16 = 0x08;
const P_PROTOCOL: u16 = 0x0b;
const P_SIZES: u16 = 0x0d;
const P_STATE: u16 = 0x0e;
const P_PING: u16 = 0x13;
const P_PING_ACK: u16 = 0x14;
const P_WRITE_ACK: u16 = 0x16;
const P_BARRIER_ACK: u16 = 0x1c;
const P_SYNC_PARAM89: u16 = 0x23;
const P_INITIAL_META: u16 = 0xfff1;
const P_INITIAL_DATA: u16 = 0xfff2;
const P_CONNECTION_FEATURES: u16 = 0xfffe;

/// First state of a Secondary without a disk.
const STATE_DISKLESS: u32 = 0x0000_c082;

pub(crate) fn run(to: &str, case: &str) -> Result<()> {
    let to: SocketAddr = to.parse().with_context(|| format!("address {to:?}"))?;
    let mut peer = Peer::connect(to)?;
    match case {
        "first-garbage" => {
            let mut stream = connect(to)?;
            stream.write_all(&noise(4096))?;
            return hang_up(&mut stream);
        }
        "features-magic" => peer.data(&h80(0x1234_5678, P_CONNECTION_FEATURES, &features(86, 101)))?,
        "features-other" => peer.data(&h80(MAGIC_H80, P_PROTOCOL, &protocol(3)))?,
        "features-length" => peer.data(&h80(MAGIC_H80, P_CONNECTION_FEATURES, &[0; 71]))?,
        "features-truncated" => {
            peer.data(&h80(MAGIC_H80, P_CONNECTION_FEATURES, &features(86, 101))[..20])?;
            return Ok(());
        }
        "features-version" => peer.data(&h80(MAGIC_H80, P_CONNECTION_FEATURES, &features(200, 300)))?,
        _ => {
            peer.data(&h80(MAGIC_H80, P_CONNECTION_FEATURES, &features(86, 101)))?;
            peer.read_features()?;
            if after_features(&mut peer, case)? {
                return Ok(());
            }
        }
    }
    peer.wait_hang_up()
}

/// The cases for which both sides have agreed on version 101; returns whether this side has hung up itself.
fn after_features(peer: &mut Peer, case: &str) -> Result<bool> {
    match case {
        "mute" => {
            peer.tell_sizes()?;
            peer.answer_pings()?;
        }
        "protocol-letter" => peer.data(&packet(0, P_PROTOCOL, &protocol(1)))?,
        "data-first" => peer.data(&packet(0, P_DATA, &data(0, 4096)))?,
        _ => {
            peer.introduce()?;
            match case {
                "deaf" => peer.answer_pings()?,
                "magic" => peer.data(&[&[0xde, 0xad, 0xbe, 0xef], &[0; 12][..]].concat())?,
                "pad" => {
                    let mut bytes = packet(0, P_STATE, &STATE_DISKLESS.to_be_bytes());
                    bytes[15] = 1;
                    peer.data(&bytes)?;
                }
                "unknown" => peer.data(&packet(0, 0x7777, &[]))?,
                "unused" => peer.data(&packet(0, 0x05, &[]))?,
                "short" => peer.data(&packet(0, P_STATE, &[0, 0]))?,
                "oversized" => peer.data(&header(0, P_STATE, u32::MAX))?,
                "data-huge" => peer.data(&header(0, P_DATA, 2 << 30))?,
                "data-odd" => peer.data(&packet(0, P_DATA, &data(0, 100)))?,
                "data-beyond" => peer.data(&packet(0, P_DATA, &data(u64::MAX / 512 - 8, 4096)))?,
                "data-volume" => peer.data(&packet(7, P_DATA, &data(0, 4096)))?,
                "request-beyond" => {
                    let request =
                        [&(1_u64 << 40).to_be_bytes()[..], &[0; 8], &4096_u32.to_be_bytes(), &[0; 4]].concat();
                    peer.data(&packet(0, P_DATA_REQUEST, &request))?;
                }
                "bitmap" => peer.data(&packet(0, P_BITMAP, &[0xff; 4088]))?,
                "noise" => peer.data(&noise(65536))?,
                "truncated" => {
                    peer.data(&header(0, P_DATA, 24 + 4096))?;
                    peer.data(&data(0, 4096)[..100])?;
                    return Ok(true);
                }
                "meta-magic" => peer.meta(&noise(64))?,
                "meta-unknown" => peer.meta(&packet(0, 0x7777, &[]))?,
                "meta-length" => peer.meta(&header(0, P_WRITE_ACK, 1 << 20))?,
                "meta-write-ack" => {
                    let ack = [&8_u64.to_be_bytes()[..], &[0x12; 8], &4096_u32.to_be_bytes(), &[0; 4]].concat();
                    peer.meta(&packet(0, P_WRITE_ACK, &ack))?;
                }
                "meta-barrier-ack" => peer.meta(&packet(0, P_BARRIER_ACK, &[0x12, 0x34, 0x56, 0x78, 0, 0, 0, 9]))?,
                other => bail!("no case {other:?}"),
            }
        }
    }
    Ok(false)
}

/// Both sockets of a connection.
struct Peer {
    data: TcpStream,
    meta: TcpStream,
}

impl Peer {
    fn connect(to: SocketAddr) -> Result<Peer> {
        let mut data = connect(to)?;
        data.write_all(&h80(MAGIC_H80, P_INITIAL_DATA, &[]))?;
        // Long enough for the first one to be taken: their order is what both sides go by.
        thread::sleep(Duration::from_millis(100));
        let mut meta = connect(to)?;
        meta.write_all(&h80(MAGIC_H80, P_INITIAL_META, &[]))?;
        Ok(Peer { data, meta })
    }

    fn data(&mut self, bytes: &[u8]) -> Result<()> {
        send(&mut self.data, bytes)
    }

    fn meta(&mut self, bytes: &[u8]) -> Result<()> {
        send(&mut self.meta, bytes)
    }

    fn read_features(&mut self) -> Result<()> {
        self.data.set_read_timeout(Some(CONNECT_LIMIT))?;
        let mut bytes = [0; 80];
        self.data.read_exact(&mut bytes).context("reading the peer's features")?;
        if bytes[..8] != h80(MAGIC_H80, P_CONNECTION_FEATURES, &[0; 72])[..8] {
            bail!("expected the peer's features, found {bytes:02x?}");
        }
        Ok(())
    }

    /// The rest of a proper handshake, as a Secondary without a disk.
    fn introduce(&mut self) -> Result<()> {
        self.tell_sizes()?;
        self.data(&packet(0, P_STATE, &STATE_DISKLESS.to_be_bytes()))?;
        // Long enough for the other side to be Connected.
        thread::sleep(Duration::from_millis(300));
        Ok(())
    }

    /// As much of it as comes before the state.
    fn tell_sizes(&mut self) -> Result<()> {
        let sizes = [&[0; 24][..], &(1_u32 << 20).to_be_bytes(), &[0; 28]].concat();
        let mut parameters = vec![0; 148];
        parameters[..4].copy_from_slice(&250_u32.to_be_bytes());
        self.data(&packet(0, P_PROTOCOL, &protocol(3)))?;
        self.data(&packet(0, P_SYNC_PARAM89, &parameters))?;
        self.data(&packet(0, P_SIZES, &sizes))
    }

    /// Shows that it is there, and says nothing else, until the other side hangs up.
    fn answer_pings(&mut self) -> Result<()> {
        self.meta.set_read_timeout(None)?;
        let mut header = [0; 16];
        // Nothing longer than a header comes on this socket to a peer that says nothing.
        while self.meta.read_exact(&mut header).is_ok() {
            if header[6..8] == P_PING.to_be_bytes() {
                self.meta(&packet(0, P_PING_ACK, &[]))?;
            }
        }
        Ok(())
    }

    fn wait_hang_up(mut self) -> Result<()> {
        hang_up(&mut self.data).context("data socket")?;
        hang_up(&mut self.meta).context("meta socket")
    }
}

/// Waits until the other side ends the connection; what it still says does not matter.
fn hang_up(stream: &mut TcpStream) -> Result<()> {
    let until = Instant::now() + HANG_UP_LIMIT;
    stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut buffer = [0; 65536];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => (),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => (),
            Err(_) => return Ok(()),
        }
        if Instant::now() > until {
            bail!("the connection was not ended within {HANG_UP_LIMIT:?}");
        }
    }
}

/// The other side may have hung up already: that is what is wanted.
fn send(stream: &mut TcpStream, bytes: &[u8]) -> Result<()> {
    match stream.write_all(bytes) {
        Err(error) if !matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => Err(error.into()),
        _ => Ok(()),
    }
}

/// The other side does not listen all the time.
fn connect(to: SocketAddr) -> Result<TcpStream> {
    let until = Instant::now() + CONNECT_LIMIT;
    loop {
        match TcpStream::connect_timeout(&to, Duration::from_secs(3)) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) if Instant::now() > until => return Err(error).with_context(|| format!("connecting to {to}")),
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

const MAGIC_H80: u32 = 0x8374_0267;
const MAGIC_H100: u32 = 0x8620_ec20;

fn h80(magic: u32, command: u16, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u16;
    [&magic.to_be_bytes()[..], &command.to_be_bytes(), &length.to_be_bytes(), payload].concat()
}

fn header(volume: u16, command: u16, length: u32) -> Vec<u8> {
    [&MAGIC_H100.to_be_bytes()[..], &volume.to_be_bytes(), &command.to_be_bytes(), &length.to_be_bytes(), &[0; 4]]
        .concat()
}

fn packet(volume: u16, command: u16, payload: &[u8]) -> Vec<u8> {
    [&header(volume, command, payload.len() as u32)[..], payload].concat()
}

fn features(oldest: u32, newest: u32) -> Vec<u8> {
    [&oldest.to_be_bytes()[..], &0xf_u32.to_be_bytes(), &newest.to_be_bytes(), &[0; 60]].concat()
}

/// Protocol A, B or C by number, every policy "disconnect", no integrity algorithm.
fn protocol(letter: u32) -> Vec<u8> {
    [&letter.to_be_bytes()[..], &[0; 20], &[0]].concat()
}

/// A write of so many bytes; the last flag asks for a write acknowledgement.
fn data(sector: u64, length: usize) -> Vec<u8> {
    let fields =
        [&sector.to_be_bytes()[..], &1_u64.to_be_bytes(), &1_u32.to_be_bytes(), &256_u32.to_be_bytes()].concat();
    [fields, noise(length)].concat()
}

fn noise(length: usize) -> Vec<u8> {
    let mut random = Random::new(42);
    (0..length).map(|_| random.next_word() as u8).collect()
}
