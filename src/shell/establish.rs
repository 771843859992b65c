// SPDX-License-Identifier: GPL-2.0
//! How the two sockets of a connection come to stand. Both nodes run the same loop: try to connect, else wait for the
//! peer to connect, until both sockets are there; who opened a socket says in its first packet which of the two it is.
//!
//! Every step is bounded: a connect and an accept by `connect-int`, the first packet by four times `ping-timeout`. The
//! supervisor ends each of them early when the link is not to be established any more. That may take weeks; so the options
//! are looked at for each step.
// spec: wire-protocol 1.2

use super::connection::{failed, net_option, tenths_ms, Closing, Link};
use super::log::log_error;
use super::resource::{ConnectionConfig, Resource};
use crate::linux::sock::{Buffers, Listener, PacketData, Sending, Stream};
use crate::linux::{clock, errno};
use engine::netlink::NetConf;
use engine::resource::{LinkFailure, LinkTask};
use engine::wire::command::Command;
use engine::wire::header::{header_size, Header};
use kernel::prelude::*;
use kernel::sync::Arc;

/// Protocol version that rules the first packets.
const FIRST_VERSION: u32 = 80;
/// Size in bytes of the header of the first packets.
const FIRST_HEADER_BYTES: usize = 8;
/// Where the supervisor finds the sockets.
const SLOT_DATA: usize = 0;
const SLOT_META: usize = 1;
const SLOT_NEW: usize = 2;

/// Both sockets stand.
pub(crate) struct Established {
    /// Data socket.
    pub(crate) data: Arc<Stream>,
    /// Meta socket.
    pub(crate) meta: Arc<Stream>,
    /// This node accepted the meta socket: it decides ties.
    pub(crate) resolve_conflicts: bool,
}

/// Establishes both sockets; `None`: not any more, or not possible (which the engine was told).
pub(crate) fn establish(resource: &Arc<Resource>, addresses: &ConnectionConfig) -> Option<Established> {
    let listener = match listen(resource, addresses) {
        Ok(listener) => listener,
        Err(Closing) => return None,
    };
    let mut attempt = Attempt { resource, addresses, listener, data: None, meta: None, resolve_conflicts: false };
    loop {
        match attempt.round() {
            Ok(Some(established)) => return Some(established),
            Ok(None) => {}
            Err(Closing) => return None,
        }
    }
}

fn listen(resource: &Arc<Resource>, addresses: &ConnectionConfig) -> Result<Arc<Listener>, Closing> {
    let listener = Listener::bind(&addresses.my_address, buffers(resource)?)
        .and_then(|listener| Ok(Arc::new(listener, GFP_KERNEL)?))
        .map_err(|error| local_failure(resource, "cannot listen on the local address", error))?;
    Link::register_listener(resource, &listener)?;
    Ok(listener)
}

/// Nothing can be done about the own address here: give up, and say why.
fn local_failure(resource: &Arc<Resource>, what: &str, error: Error) -> Closing {
    log_error!("{}: {}: {:?}", resource.name.as_str(), what, error);
    failed(resource, LinkFailure::LocalAddress)
}

struct Attempt<'a> {
    resource: &'a Arc<Resource>,
    addresses: &'a ConnectionConfig,
    listener: Arc<Listener>,
    data: Option<Arc<Stream>>,
    meta: Option<Arc<Stream>>,
    resolve_conflicts: bool,
}

/// Which of the two sockets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Meta,
}

impl Kind {
    fn first_packet(self) -> Command {
        match self {
            Kind::Data => Command::InitialData,
            Kind::Meta => Command::InitialMeta,
        }
    }

    fn slot(self) -> usize {
        match self {
            Kind::Data => SLOT_DATA,
            Kind::Meta => SLOT_META,
        }
    }
}

impl Attempt<'_> {
    /// One attempt to connect, one wait for the peer.
    fn round(&mut self) -> Result<Option<Established>, Closing> {
        self.connect()?;
        if let Some(established) = self.settled()? {
            return Ok(Some(established));
        }
        self.accept()?;
        self.settled()
    }

    fn connect(&mut self) -> Result<(), Closing> {
        let kind = match (&self.data, &self.meta) {
            (None, _) => Kind::Data,
            (Some(_), None) => Kind::Meta,
            (Some(_), Some(_)) => return Ok(()),
        };
        let stream = match Stream::bound(&self.addresses.my_address, buffers(self.resource)?) {
            Ok(stream) => Arc::new(stream, GFP_KERNEL).map_err(|_| Closing)?,
            Err(error) if may_pass(error) => return Ok(()),
            Err(error) => return Err(local_failure(self.resource, "cannot use the local address", error)),
        };
        Link::register(self.resource, SLOT_NEW, &stream)?;
        let connect_ms = self.option(|net| net.connect_int)?.saturating_mul(1000);
        if stream.connect(&self.addresses.peer_address, connect_ms).is_ok() && send_first(&stream, kind) {
            if kind == Kind::Meta {
                self.resolve_conflicts = false;
            }
            self.keep(kind, stream)?;
        }
        Ok(())
    }

    /// Waits for the peer to connect.
    fn accept(&mut self) -> Result<(), Closing> {
        loop {
            self.listener.set_buffers(buffers(self.resource)?);
            let stream = match self.listener.accept(self.accept_ms()?) {
                Ok(stream) => Arc::new(stream, GFP_KERNEL).map_err(|_| Closing)?,
                Err(error) if error == EAGAIN || error == EINTR => return self.still_wanted(),
                Err(error) => {
                    self.still_wanted()?;
                    return Err(local_failure(self.resource, "cannot accept connections", error));
                }
            };
            Link::register(self.resource, SLOT_NEW, &stream)?;
            let ping_timeo = self.option(|net| net.ping_timeo)?;
            let kind = receive_first(&stream, tenths_ms(ping_timeo).saturating_mul(4));
            self.drop_dead();
            let orderly = match kind {
                Some(kind) => {
                    let crossed = self.held(kind).is_some();
                    if kind == Kind::Meta {
                        self.resolve_conflicts = true;
                    }
                    self.keep(kind, stream)?;
                    !crossed
                }
                None => false,
            };
            // After a crossing both nodes must not do the same thing again: a coin decides.
            if orderly || clock::random_u64() & 1 == 0 {
                return Ok(());
            }
            self.still_wanted()?;
        }
    }

    /// With both sockets there, gives the peer time to have dropped one of them, and looks.
    fn settled(&mut self) -> Result<Option<Established>, Closing> {
        if self.data.is_none() || self.meta.is_none() {
            return Ok(None);
        }
        let check = |net: &NetConf| if net.sock_check_timeo == 0 { net.ping_timeo } else { net.sock_check_timeo };
        self.pause_ms(tenths_ms(self.option(check)?))?;
        self.drop_dead();
        let both = self.data.clone().zip(self.meta.clone());
        let resolve_conflicts = self.resolve_conflicts;
        Ok(both.map(|(data, meta)| Established { data, meta, resolve_conflicts }))
    }

    fn pause_ms(&self, ms: u32) -> Result<(), Closing> {
        let end_ms = clock::monotonic_ms().saturating_add(ms.into());
        loop {
            self.still_wanted()?;
            let left_ms = end_ms.saturating_sub(clock::monotonic_ms());
            if left_ms == 0 {
                return Ok(());
            }
            self.resource.link_event.wait_timeout_ms(u32::try_from(left_ms).unwrap_or(ms));
        }
    }

    fn option<R>(&self, pick: impl FnOnce(&NetConf) -> R) -> Result<R, Closing> {
        net_option(self.resource, pick).ok_or(Closing)
    }

    fn still_wanted(&self) -> Result<(), Closing> {
        match self.resource.engine(|locked| locked.engine.link_task()) {
            LinkTask::Establish => Ok(()),
            LinkTask::Stop | LinkTask::Run | LinkTask::Close => Err(Closing),
        }
    }

    fn held(&mut self, kind: Kind) -> &mut Option<Arc<Stream>> {
        match kind {
            Kind::Data => &mut self.data,
            Kind::Meta => &mut self.meta,
        }
    }

    fn keep(&mut self, kind: Kind, stream: Arc<Stream>) -> Result<(), Closing> {
        Link::register(self.resource, kind.slot(), &stream)?;
        *self.held(kind) = Some(stream);
        Ok(())
    }

    fn drop_dead(&mut self) {
        for kind in [Kind::Data, Kind::Meta] {
            if self.held(kind).as_ref().is_some_and(|stream| !stream.is_open()) {
                *self.held(kind) = None;
            }
        }
    }

    /// `connect-int`, a seventh more or less, so that two nodes do not keep missing each other.
    fn accept_ms(&self) -> Result<u32, Closing> {
        let base_ms = self.option(|net| net.connect_int)?.saturating_mul(1000);
        let seventh_ms = base_ms / 7;
        Ok(if clock::random_u64() & 1 == 0 {
            base_ms.saturating_add(seventh_ms)
        } else {
            base_ms.saturating_sub(seventh_ms)
        })
    }
}

fn buffers(resource: &Resource) -> Result<Buffers, Closing> {
    let sizes = |net: &NetConf| Buffers { send_bytes: net.sndbuf_size, receive_bytes: net.rcvbuf_size };
    net_option(resource, sizes).ok_or(Closing)
}

/// Errors of the network that may be gone at the next attempt.
fn may_pass(error: Error) -> bool {
    [
        EAGAIN,
        EINTR,
        errno::etimedout(),
        errno::einprogress(),
        errno::econnrefused(),
        errno::enetunreach(),
        errno::ehostdown(),
        errno::ehostunreach(),
        errno::erestartsys(),
    ]
    .contains(&error)
}

fn send_first(stream: &Stream, kind: Kind) -> bool {
    let mut packet = [0; FIRST_HEADER_BYTES];
    let header = Header { command: kind.first_packet() as u16, volume: 0, length: 0 };
    let how = Sending { copy: true, more: false, wait: true };
    header.encode(FIRST_VERSION, &mut packet).is_ok()
        && stream.send_packet(&packet, PacketData::None, 0, how) == Ok(packet.len())
}

fn receive_first(stream: &Stream, timeout_ms: u32) -> Option<Kind> {
    let mut packet = [0; FIRST_HEADER_BYTES];
    debug_assert!(header_size(FIRST_VERSION) == packet.len());
    stream.set_timeouts(timeout_ms, timeout_ms);
    if stream.receive(&mut packet, true) != Ok(packet.len()) {
        return None;
    }
    let header = Header::decode(FIRST_VERSION, &packet).ok()?;
    [Kind::Data, Kind::Meta].into_iter().find(|kind| kind.first_packet() as u16 == header.command && header.length == 0)
}
