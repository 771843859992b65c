// SPDX-License-Identifier: GPL-2.0
//! Generic netlink: finding the family, asking, listening.
//!
//! Attributes are read and written by the engine; here are only the two headers before them and the socket.
//! spec: netlink 1, 11.1

use crate::failure::Failure;
use engine::netlink::{
    attr::NESTED, AttrReader, AttrWriter, Command, Direction, DrbdHeader, EVENTS_GROUP, FAMILY_HEADER_LEN, FAMILY_NAME,
    FAMILY_VERSION,
};
use netlink_sys::{protocols::NETLINK_GENERIC, Socket, SocketAddr};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Request flag of netlink: this is a request.
const REQUEST: u16 = 0x001;
/// Request flag: list everything.
const DUMP: u16 = 0x300;
/// Request flag: refuse if the object exists, and create it if not.
pub const CREATE_EXCLUSIVE: u16 = 0x600;

const NLMSG_HEADER_LEN: usize = 16;
const GENL_HEADER_LEN: usize = 4;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Number of the controller's family, and of the group in which it tells of changes.
const CONTROLLER: u16 = 0x10;
const CTRL_GET_FAMILY: u8 = 3;
const CTRL_DELETE_GROUP: u8 = 8;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const CTRL_ATTR_VERSION: u16 = 3;
const CTRL_ATTR_HEADER_LEN: u16 = 4;
const CTRL_ATTR_GROUPS: u16 = 7;
const CTRL_GROUP_NAME: u16 = 1;
const CTRL_GROUP_ID: u16 = 2;

/// How long a reply may take.
const REPLY_TIMEOUT: Duration = Duration::from_secs(120);
const SOCKET_BUFFER_BYTES: i32 = 1 << 20;
/// Room for the attributes of any request.
pub const MAX_REQUEST_BYTES: usize = 8192;

/// A message of the module.
#[derive(Clone, Debug)]
pub struct Message {
    /// Number in the netlink header.
    pub sequence: u32,
    /// What it is.
    pub command: u8,
    /// Minor and result.
    pub header: DrbdHeader,
    /// The attributes.
    pub attributes: Vec<u8>,
}

impl Message {
    /// The payload of a top-level attribute.
    pub fn nest(&self, number: u16) -> Option<&[u8]> {
        AttrReader::find(&self.attributes, number).map(|attribute| attribute.payload)
    }
}

/// What a datagram may hold.
#[derive(Clone, Debug)]
pub enum Incoming {
    /// Something from the module.
    Message(Message),
    /// A request was refused by the socket layer, or acknowledged (0); the number is a positive errno.
    Error {
        /// Of the request.
        sequence: u32,
        /// 0 for an acknowledgement.
        errno: i32,
    },
    /// The end of a list, perhaps with an error.
    Done {
        /// Of the request.
        sequence: u32,
        /// 0 when all is well.
        errno: i32,
    },
    /// The module is being unloaded.
    FamilyGone,
}

/// How a list ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DumpEnd {
    /// All is there.
    Complete,
    /// The filter names nothing that exists.
    NoSuchObject,
}

/// A socket that talks to the module.
pub struct Connection {
    socket: Socket,
    family: u16,
    events_group: u32,
    sequence: u32,
}

impl Connection {
    /// Opens a socket and finds the family.
    ///
    /// # Errors
    /// Exit code 20: no module, or one with another interface.
    pub fn open() -> Result<Self, Failure> {
        let failed = |what: &str, error: std::io::Error| Failure::new(20, format!("netlink: {what}: {error}"));
        let mut socket = Socket::new(NETLINK_GENERIC).map_err(|error| failed("no socket", error))?;
        socket.bind_auto().map_err(|error| failed("bind", error))?;
        // A smaller buffer only makes it more likely that a slow reader loses events.
        let _ = socket.set_rx_buf_sz(SOCKET_BUFFER_BYTES);
        let mut connection = Connection { socket, family: CONTROLLER, events_group: 0, sequence: std::process::id() };
        connection.find_family()?;
        Ok(connection)
    }

    /// Asks for one thing and gives the reply.
    ///
    /// # Errors
    /// Exit code 20: the request was refused by the socket layer, or no reply came.
    pub fn request(
        &mut self,
        command: Command,
        header: DrbdHeader,
        flags: u16,
        attributes: &[u8],
    ) -> Result<Message, Failure> {
        let sequence = self.send(command.number(), &header_bytes(header), REQUEST | flags, attributes)?;
        let deadline = Instant::now() + REPLY_TIMEOUT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            for incoming in self.receive(Some(left))?.ok_or_else(no_answer)? {
                match incoming {
                    Incoming::Message(message) if message.sequence == sequence => return Ok(message),
                    Incoming::Error { sequence: of, errno } if of == sequence && errno != 0 => {
                        return Err(refused(errno));
                    }
                    _ => {}
                }
            }
        }
    }

    /// Starts a list; the messages come with [`Connection::receive`], with the sequence number returned.
    ///
    /// # Errors
    /// Exit code 20.
    pub fn start_dump(&mut self, command: Command, header: DrbdHeader, attributes: &[u8]) -> Result<u32, Failure> {
        self.send(command.number(), &header_bytes(header), REQUEST | DUMP, attributes)
    }

    /// Asks for a list and hands every entry to `each` until that says stop (false).
    ///
    /// # Errors
    /// Exit code 20, or 5 when the kernel stops answering.
    pub fn dump(
        &mut self,
        command: Command,
        attributes: &[u8],
        mut each: impl FnMut(&Message) -> bool,
    ) -> Result<DumpEnd, Failure> {
        let header = DrbdHeader { minor: engine::netlink::MINOR_NONE, flags_or_ret: 0 };
        let sequence = self.start_dump(command, header, attributes)?;
        loop {
            let received = self.receive(Some(REPLY_TIMEOUT))?;
            for incoming in received.ok_or_else(|| Failure::new(5, "netlink: no answer from the kernel"))? {
                match incoming {
                    Incoming::Message(message) if message.sequence == sequence && !each(&message) => {
                        return Ok(DumpEnd::Complete);
                    }
                    Incoming::Done { sequence: of, errno } | Incoming::Error { sequence: of, errno }
                        if of == sequence =>
                    {
                        return match errno {
                            0 => Ok(DumpEnd::Complete),
                            nix::libc::ENODEV => Ok(DumpEnd::NoSuchObject),
                            errno => Err(refused(errno)),
                        };
                    }
                    _ => {}
                }
            }
        }
    }

    /// From now on also receives what the module tells everybody.
    ///
    /// # Errors
    /// Exit code 20.
    pub fn subscribe(&mut self) -> Result<(), Failure> {
        let failed = |error| Failure::new(20, format!("netlink: cannot listen to events: {error}"));
        self.socket.add_membership(self.events_group).map_err(failed)?;
        self.socket.add_membership(u32::from(CONTROLLER)).map_err(failed)
    }

    /// Waits for one datagram; `None` when the time is over, or when nobody reads standard output any more and
    /// `timeout` is unlimited.
    ///
    /// # Errors
    /// Exit code 20.
    pub fn receive(&mut self, timeout: Option<Duration>) -> Result<Option<Vec<Incoming>>, Failure> {
        let stdout = std::io::stdout();
        let mut watched =
            [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN), PollFd::new(stdout.as_fd(), PollFlags::empty())];
        let limit = timeout.map_or(PollTimeout::NONE, |time| {
            PollTimeout::try_from(time.as_millis().saturating_add(1)).unwrap_or(PollTimeout::MAX)
        });
        let watch_stdout = if timeout.is_none() { 2 } else { 1 };
        match poll(&mut watched[..watch_stdout], limit) {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => return Ok(Some(Vec::new())),
            Err(error) => return Err(Failure::new(20, format!("netlink: poll: {error}"))),
        }
        if !watched[0].any().unwrap_or(true) {
            return Ok(None);
        }
        let (bytes, sender) = match self.socket.recv_from_full() {
            Ok(received) => received,
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => {
                eprintln!("netlink: events came faster than they could be read, some are lost");
                return Ok(Some(Vec::new()));
            }
            Err(error) => return Err(Failure::new(20, format!("netlink: receive: {error}"))),
        };
        Ok(Some(if sender.port_number() == 0 { self.split(&bytes) } else { Vec::new() }))
    }

    /// The messages of a datagram.
    fn split(&self, mut bytes: &[u8]) -> Vec<Incoming> {
        let mut messages = Vec::new();
        while let Some((kind, sequence, payload, rest)) = split_one(bytes) {
            bytes = rest;
            let errno = || payload.first_chunk().map_or(0, |number| i32::from_ne_bytes(*number).saturating_neg());
            match kind {
                NLMSG_ERROR => messages.push(Incoming::Error { sequence, errno: errno() }),
                NLMSG_DONE => messages.push(Incoming::Done { sequence, errno: errno() }),
                CONTROLLER if self.family != CONTROLLER => {
                    let is_gone = payload.first() == Some(&CTRL_DELETE_GROUP) && is_about(payload, self.family);
                    messages.extend(is_gone.then_some(Incoming::FamilyGone));
                }
                kind if kind == self.family => messages.extend(self.message(sequence, payload).map(Incoming::Message)),
                _ => {}
            }
        }
        messages
    }

    fn message(&self, sequence: u32, payload: &[u8]) -> Option<Message> {
        let command = *payload.first()?;
        let body = payload.get(GENL_HEADER_LEN..)?;
        let none = DrbdHeader { minor: 0, flags_or_ret: 0 };
        let (header, attributes) = if self.family == CONTROLLER { (none, body) } else { DrbdHeader::decode(body)? };
        Some(Message { sequence, command, header, attributes: attributes.to_vec() })
    }

    fn send(&mut self, command: u8, family_header: &[u8], flags: u16, attributes: &[u8]) -> Result<u32, Failure> {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let len = NLMSG_HEADER_LEN + GENL_HEADER_LEN + family_header.len() + attributes.len();
        let mut bytes = Vec::with_capacity(len);
        bytes.extend(u32::try_from(len).unwrap_or(u32::MAX).to_ne_bytes());
        bytes.extend(self.family.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(self.sequence.to_ne_bytes());
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend([command, FAMILY_VERSION, 0, 0]);
        bytes.extend(family_header);
        bytes.extend(attributes);
        let kernel = SocketAddr::new(0, 0);
        let sent = self.socket.send_to(&bytes, &kernel, 0);
        sent.map_err(|error| Failure::new(20, format!("netlink: send: {error}")))?;
        Ok(self.sequence)
    }

    fn find_family(&mut self) -> Result<(), Failure> {
        let mut buffer = [0; 64];
        let mut writer = AttrWriter::new(&mut buffer, Direction::Request);
        let written = writer.put_text_bytes(CTRL_ATTR_FAMILY_NAME, FAMILY_NAME.as_bytes());
        written.map_err(|_| Failure::new(20, "netlink: name of the family too long"))?;
        let sequence = self.send(CTRL_GET_FAMILY, &[], REQUEST, writer.as_bytes())?;
        loop {
            for incoming in self.receive(Some(REPLY_TIMEOUT))?.ok_or_else(no_answer)? {
                match incoming {
                    Incoming::Error { sequence: of, errno } if of == sequence && errno != 0 => {
                        return Err(Failure::new(
                            20,
                            "The kernel does not know the netlink family \"drbd\": is the module loaded?",
                        ));
                    }
                    Incoming::Message(message) if message.sequence == sequence => return self.take_family(&message),
                    _ => {}
                }
            }
        }
    }

    fn take_family(&mut self, message: &Message) -> Result<(), Failure> {
        let find = |number| AttrReader::find(&message.attributes, number);
        let number = |number| find(number).and_then(|attribute| attribute.as_u32());
        let (version, header_len) = (number(CTRL_ATTR_VERSION), number(CTRL_ATTR_HEADER_LEN));
        if version != Some(u32::from(FAMILY_VERSION)) || header_len != Some(FAMILY_HEADER_LEN as u32) {
            let text =
                format!("The module speaks another version of the interface: {version:?}, header {header_len:?}.");
            return Err(Failure::new(20, text));
        }
        let groups = find(CTRL_ATTR_GROUPS).map_or(&[][..], |attribute| attribute.payload);
        for group in AttrReader::new(groups).flatten() {
            let name = AttrReader::find(group.payload, CTRL_GROUP_NAME);
            let is_events = name.is_some_and(|name| name.payload.strip_suffix(&[0]) == Some(EVENTS_GROUP.as_bytes()));
            if is_events {
                let id = AttrReader::find(group.payload, CTRL_GROUP_ID).and_then(|id| id.as_u32());
                self.events_group = id.unwrap_or(0);
            }
        }
        let family = find(CTRL_ATTR_FAMILY_ID).and_then(|attribute| attribute.as_u16());
        self.family = family.ok_or_else(|| Failure::new(20, "netlink: the family has no number"))?;
        Ok(())
    }
}

fn header_bytes(header: DrbdHeader) -> [u8; DrbdHeader::LEN] {
    let mut bytes = [0; DrbdHeader::LEN];
    // The buffer has exactly the length of the header.
    let _ = header.encode(&mut bytes);
    bytes
}

/// Type, sequence number and payload of the first message, and what follows it.
fn split_one(bytes: &[u8]) -> Option<(u16, u32, &[u8], &[u8])> {
    let len = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let sequence = u32::from_ne_bytes(*bytes.get(8..)?.first_chunk()?);
    let payload = bytes.get(NLMSG_HEADER_LEN..len)?;
    let next = len.checked_next_multiple_of(4)?.min(bytes.len());
    Some((kind, sequence, payload, bytes.get(next..)?))
}

fn is_about(payload: &[u8], family: u16) -> bool {
    let attributes = payload.get(GENL_HEADER_LEN..).unwrap_or_default();
    AttrReader::find(attributes, CTRL_ATTR_FAMILY_ID).and_then(|attribute| attribute.as_u16()) == Some(family)
}

fn no_answer() -> Failure {
    Failure::new(20, "netlink: no answer from the kernel")
}

fn refused(errno: i32) -> Failure {
    let text = nix::errno::Errno::from_raw(errno).desc();
    Failure::new(20, format!("received netlink error reply: {text}"))
}

/// The number of a nest as a request carries it.
pub const fn nested(number: u16) -> u16 {
    number | NESTED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_are_split() {
        let mut bytes = Vec::new();
        for (kind, payload) in [(0x1c_u16, &b"abcde"[..]), (NLMSG_DONE, &0_i32.to_ne_bytes())] {
            let len = NLMSG_HEADER_LEN + payload.len();
            bytes.extend((len as u32).to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 2]);
            bytes.extend(7_u32.to_ne_bytes());
            bytes.extend([0; 4]);
            bytes.extend(payload);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let (kind, sequence, payload, rest) = split_one(&bytes).unwrap();
        assert_eq!((kind, sequence, payload), (0x1c, 7, &b"abcde"[..]));
        let (kind, _, payload, rest) = split_one(rest).unwrap();
        assert_eq!((kind, payload.len(), rest.len()), (NLMSG_DONE, 4, 0));
        assert!(split_one(rest).is_none());
    }

    #[test]
    fn broken_datagrams_end() {
        for bytes in [&[][..], &[1, 0, 0, 0], &[255; 40], &[8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
            assert!(split_one(bytes).is_none());
        }
    }
}
