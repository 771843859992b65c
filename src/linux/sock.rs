// SPDX-License-Identifier: GPL-2.0
//! TCP sockets of the kernel: blocking, with timeouts, ended from another thread by [`Stream::shutdown`].
//!
//! All sockets live in the initial network namespace, which is never freed, and take their memory with `GFP_NOIO`.
//! Nothing here may be called in atomic context.
//!
//! A blocked `accept`, `connect`, `send` or `receive` ends when its timeout is over, when the peer does something, or
//! when another thread calls `shutdown`. A shutdown has no effect on a connect that has not begun, so whoever connects
//! checks its stop condition first and limits the time.

use super::bio::Lent;
use super::mem::{PageChain, PAGE_BYTES};
use super::raw;
use core::fmt;
use core::ops::Range;
use core::ptr::NonNull;
use kernel::error::to_result;
use kernel::prelude::*;

/// Bound: page segments that go to the network stack in one call.
const SEGMENTS_PER_CALL: usize = 32;
/// As many go where only small requests are meant.
const FEW_SEGMENTS: usize = 4;
/// Size in bytes of the largest address the control interface accepts.
pub(crate) const ADDRESS_BYTES_MAX: usize = 128;

/// An IPv4 or IPv6 address with a port, as the raw `sockaddr` that the control interface hands over.
///
/// # Invariants
/// `bytes[..length]` is a complete `sockaddr_in` or `sockaddr_in6`.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C, align(8))]
pub(crate) struct SockAddr {
    bytes: [u8; ADDRESS_BYTES_MAX],
    length: usize,
}

impl SockAddr {
    const IPV4_BYTES: usize = 16;
    const IPV6_BYTES: usize = 28;

    /// Reads a raw `sockaddr`.
    ///
    /// # Errors
    /// `EAFNOSUPPORT` for other families than IPv4 and IPv6, `EINVAL` when bytes are missing or there are too many.
    pub(crate) fn new(raw: &[u8]) -> Result<Self> {
        let family = match raw {
            [low, high, ..] => u32::from(u16::from_ne_bytes([*low, *high])),
            _ => return Err(EINVAL),
        };
        let least = match family {
            raw::AF_INET => Self::IPV4_BYTES,
            raw::AF_INET6 => Self::IPV6_BYTES,
            _ => return Err(super::errno::eafnosupport()),
        };
        if raw.len() < least {
            return Err(EINVAL);
        }
        let mut bytes = [0; ADDRESS_BYTES_MAX];
        bytes.get_mut(..raw.len()).ok_or(EINVAL)?.copy_from_slice(raw);
        Ok(SockAddr { bytes, length: raw.len() })
    }

    /// The bytes as they were handed over; the control interface compares addresses by them.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    /// `ipv4` or `ipv6`: the word helper programs get.
    pub(crate) fn family_name(&self) -> &'static str {
        if self.family() == raw::AF_INET6 {
            "ipv6"
        } else {
            "ipv4"
        }
    }

    fn family(&self) -> u32 {
        u32::from(u16::from_ne_bytes([self.bytes[0], self.bytes[1]]))
    }

    /// The same address with port 0: any free port.
    fn without_port(&self) -> Self {
        let mut address = *self;
        address.bytes[2] = 0;
        address.bytes[3] = 0;
        address
    }

    fn as_raw(&mut self) -> (*mut raw::sockaddr_unsized, kernel::ffi::c_int) {
        let length = if self.family() == raw::AF_INET6 { Self::IPV6_BYTES } else { Self::IPV4_BYTES };
        (self.bytes.as_mut_ptr().cast(), length as kernel::ffi::c_int)
    }
}

/// The address without its port.
impl fmt::Display for SockAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.family() == raw::AF_INET6 {
            let mut octets = [0; 16];
            octets.copy_from_slice(&self.bytes[8..24]);
            core::net::Ipv6Addr::from(octets).fmt(f)
        } else {
            let mut octets = [0; 4];
            octets.copy_from_slice(&self.bytes[4..8]);
            core::net::Ipv4Addr::from(octets).fmt(f)
        }
    }
}

/// Sizes of a socket's buffers in bytes; 0 leaves them to the kernel.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Buffers {
    /// Send buffer.
    pub(crate) send_bytes: u32,
    /// Receive buffer.
    pub(crate) receive_bytes: u32,
}

/// `sk_priority` of the two connections. spec: wire-protocol 1.1
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Priority {
    /// Data: `TC_PRIO_INTERACTIVE_BULK`.
    Data = 4,
    /// Meta: `TC_PRIO_INTERACTIVE`.
    Meta = 6,
}

/// How pages are sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sending {
    /// The pages may change afterwards. Without it the network stack keeps using them until the peer has acknowledged
    /// them.
    pub(crate) copy: bool,
    /// More follows soon: an incomplete segment may wait for it.
    pub(crate) more: bool,
    /// May sleep until there is room for something.
    pub(crate) wait: bool,
}

/// An owned `struct socket`.
///
/// # Invariants
/// The pointer is a TCP socket of the kernel which nobody else releases.
struct Socket(NonNull<raw::socket>);

// SAFETY: the socket layer serialises everything on a `struct socket` by the socket's own lock; release happens once,
// in `drop`, when no reference is left.
unsafe impl Send for Socket {}
// SAFETY: as for `Send`; all methods go through the socket's lock or read and write single words.
unsafe impl Sync for Socket {}

impl Socket {
    fn new(address: &SockAddr, buffers: Buffers) -> Result<Self> {
        let mut sock = core::ptr::null_mut();
        // SAFETY: `sock` is a place for the result.
        to_result(unsafe { raw::drbd_h_sock_create(address.family() as kernel::ffi::c_int, &mut sock) })?;
        let socket = Socket(NonNull::new(sock).ok_or(ENOMEM)?);
        socket.set_buffers(buffers);
        // SAFETY: by the type's invariant.
        unsafe { raw::drbd_h_sock_reuse(socket.raw()) };
        Ok(socket)
    }

    fn raw(&self) -> *mut raw::socket {
        self.0.as_ptr()
    }

    fn set_buffers(&self, buffers: Buffers) {
        // SAFETY: by the type's invariant.
        unsafe { raw::drbd_h_sock_buffers(self.raw(), buffers.send_bytes, buffers.receive_bytes) };
    }

    fn bind(&self, mut address: SockAddr) -> Result {
        let (name, length) = address.as_raw();
        // SAFETY: the socket by the type's invariant; `name` is `length` readable bytes that outlive the call.
        to_result(unsafe { raw::kernel_bind(self.raw(), name, length) })
    }

    fn shutdown(&self) {
        // SAFETY: by the type's invariant. The result only says that the socket was not connected.
        unsafe { raw::kernel_sock_shutdown(self.raw(), raw::sock_shutdown_cmd_SHUT_RDWR) };
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // SAFETY: by the type's invariant; this is the last reference.
        unsafe { raw::sock_release(self.raw()) };
    }
}

/// A listening socket.
pub(crate) struct Listener(Socket);

impl Listener {
    /// Listens on `local`.
    ///
    /// # Errors
    /// What the socket layer says, for instance `EADDRINUSE`, `EADDRNOTAVAIL`.
    pub(crate) fn bind(local: &SockAddr, buffers: Buffers) -> Result<Self> {
        const BACKLOG: kernel::ffi::c_int = 5;
        let socket = Socket::new(local, buffers)?;
        socket.bind(*local)?;
        // SAFETY: by the type's invariant.
        to_result(unsafe { raw::kernel_listen(socket.raw(), BACKLOG) })?;
        Ok(Listener(socket))
    }

    /// Whoever connects from now on gets buffers of these sizes; those that are left to the kernel stay as they are.
    pub(crate) fn set_buffers(&self, buffers: Buffers) {
        self.0.set_buffers(buffers);
    }

    /// Waits for somebody who connects, at most `timeout_ms` (0: for ever).
    ///
    /// # Errors
    /// `EAGAIN` when the time is over, `EINVAL` after [`Listener::shutdown`].
    pub(crate) fn accept(&self, timeout_ms: u32) -> Result<Stream> {
        let mut sock = core::ptr::null_mut();
        // SAFETY: by the type's invariant.
        unsafe { raw::drbd_h_sock_receive_timeout(self.0.raw(), timeout_ms) };
        // SAFETY: by the type's invariant; `sock` is a place for the result.
        to_result(unsafe { raw::kernel_accept(self.0.raw(), &mut sock, 0) })?;
        Ok(Stream(Socket(NonNull::new(sock).ok_or(ENOMEM)?)))
    }

    /// Ends a blocked [`Listener::accept`], and every later one.
    pub(crate) fn shutdown(&self) {
        self.0.shutdown();
    }
}

/// A connected socket, or one on the way there.
pub(crate) struct Stream(Socket);

impl Stream {
    /// A socket bound to the address of `local` and any port, not connected yet.
    ///
    /// # Errors
    /// What the socket layer says, for instance `EADDRNOTAVAIL`.
    pub(crate) fn bound(local: &SockAddr, buffers: Buffers) -> Result<Self> {
        let socket = Socket::new(local, buffers)?;
        socket.bind(local.without_port())?;
        Ok(Stream(socket))
    }

    /// Connects, within `timeout_ms`.
    ///
    /// # Errors
    /// What the socket layer says, for instance `ECONNREFUSED`; `ECONNRESET` after a shutdown.
    pub(crate) fn connect(&self, peer: &SockAddr, timeout_ms: u32) -> Result {
        let mut peer = *peer;
        let (name, length) = peer.as_raw();
        self.set_timeouts(timeout_ms, timeout_ms);
        // SAFETY: the socket by the type's invariant; `name` is `length` readable bytes that outlive the call.
        to_result(unsafe { raw::kernel_connect(self.0.raw(), name, length, 0) })
    }

    /// Ends everything that is blocked on this socket, and tells the peer.
    pub(crate) fn shutdown(&self) {
        self.0.shutdown();
    }

    /// Tells the peer that nothing more comes. It may still send.
    pub(crate) fn end_sending(&self) {
        // SAFETY: by the type's invariant. The result only says that the socket was not connected.
        unsafe { raw::kernel_sock_shutdown(self.0.raw(), raw::sock_shutdown_cmd_SHUT_WR) };
    }

    /// Limits the time of one send and one receive call in milliseconds; 0: no limit.
    pub(crate) fn set_timeouts(&self, send_ms: u32, receive_ms: u32) {
        self.set_send_timeout(send_ms);
        self.set_receive_timeout(receive_ms);
    }

    /// Limits the time of one send call in milliseconds; 0: no limit.
    pub(crate) fn set_send_timeout(&self, send_ms: u32) {
        // SAFETY: by the type's invariant.
        unsafe { raw::drbd_h_sock_send_timeout(self.0.raw(), send_ms) };
    }

    /// Limits the time of one receive call in milliseconds; 0: no limit.
    pub(crate) fn set_receive_timeout(&self, receive_ms: u32) {
        // SAFETY: by the type's invariant.
        unsafe { raw::drbd_h_sock_receive_timeout(self.0.raw(), receive_ms) };
    }

    /// Sets the priority of what is sent.
    pub(crate) fn set_priority(&self, priority: Priority) {
        // SAFETY: by the type's invariant.
        unsafe { raw::drbd_h_sock_priority(self.0.raw(), priority as u32) };
    }

    /// Sends at once from now on, and pushes out what is held back.
    pub(crate) fn set_nodelay(&self) {
        // SAFETY: by the type's invariant.
        unsafe { raw::drbd_h_sock_nodelay(self.0.raw()) };
    }

    /// Bytes that arrived and were not read yet.
    pub(crate) fn unread_bytes(&self) -> usize {
        // SAFETY: by the type's invariant.
        unsafe { raw::drbd_h_sock_unread(self.0.raw()) }
    }

    /// True while the peer has not closed the connection.
    pub(crate) fn is_open(&self) -> bool {
        // SAFETY: by the type's invariant.
        let result = unsafe { raw::drbd_h_sock_peek(self.0.raw()) };
        result > 0 || result == EAGAIN.to_errno()
    }

    /// Receives at least one byte into `bytes`; with `all`, waits until it is full or the time is over.
    ///
    /// Returns the number of bytes received; 0: the peer has closed the connection, or it was shut down.
    ///
    /// # Errors
    /// `EAGAIN` when the time is over and nothing arrived, else what the socket layer says.
    pub(crate) fn receive(&self, bytes: &mut [u8], all: bool) -> Result<usize> {
        // SAFETY: the socket by the type's invariant; the slice is writable during the call.
        length_of(unsafe { raw::drbd_h_sock_receive(self.0.raw(), bytes.as_mut_ptr().cast(), bytes.len(), all) })
    }

    /// Sends some bytes of a packet, its head and then its data, from `from_byte` on, at least one.
    ///
    /// # Errors
    /// `EAGAIN` when the time is over, or at once if it must not wait; else what the socket layer says.
    pub(crate) fn send_packet(
        &self,
        head: &[u8],
        data: PacketData<'_>,
        from_byte: usize,
        how: Sending,
    ) -> Result<usize> {
        let behind = from_byte.saturating_sub(head.len());
        let head = head.get(from_byte..).unwrap_or_default();
        match data {
            PacketData::None => self.send_parts(head, &[], 0, 0, how),
            PacketData::Bio(bio) => {
                let (bvecs, skip, bytes) = bio.raw_bvecs();
                self.send_parts(head, bvecs, skip.saturating_add(behind), bytes.saturating_sub(behind), how)
            }
            PacketData::Pages(pages, bytes) => with_bvecs(pages, behind, |bvecs| {
                self.send_parts(head, bvecs, 0, bytes.saturating_sub(behind).min(total_bytes(bvecs)), how)
            }),
        }
    }

    fn send_parts(
        &self,
        head: &[u8],
        bvecs: &[raw::bio_vec],
        skip: usize,
        bytes: usize,
        how: Sending,
    ) -> Result<usize> {
        let count = bvecs.len() as u32;
        // SAFETY: `bvecs` are `count` valid vectors; only the page flags are looked at.
        let splice = !how.copy && unsafe { raw::drbd_h_bvecs_spliceable(bvecs.as_ptr(), count) };
        let flags = u32::from(how.more) * raw::DRBD_H_SEND_MORE
            | u32::from(splice) * raw::DRBD_H_SEND_SPLICE
            | u32::from(!how.wait) * raw::DRBD_H_SEND_DONTWAIT;
        // SAFETY: the socket by the type's invariant; the head is readable during the call, which copies it; `bvecs` are
        // `count` vectors over pages that whoever lends them keeps alive, and hold `skip + bytes` bytes; with `splice` the
        // network stack takes its own page references.
        length_of(unsafe {
            raw::drbd_h_sock_send_packet(
                self.0.raw(),
                head.as_ptr().cast(),
                head.len(),
                bvecs.as_ptr(),
                count,
                skip,
                bytes,
                flags,
            )
        })
    }

    /// Receives bytes into `pages[from_byte..to_byte]`, waiting until they are full or the time is over.
    ///
    /// # Errors
    /// As [`Stream::receive`]; 0 as there.
    pub(crate) fn receive_pages(&self, pages: &mut PageChain, from_byte: usize, to_byte: usize) -> Result<usize> {
        with_bvecs(pages, from_byte, |bvecs| self.receive_bvecs(bvecs, 0, to_byte.saturating_sub(from_byte)))
    }

    /// Receives at least one byte, into `head[range]` and what comes behind it into the first pages of `pages`, as far as
    /// a small request has some.
    ///
    /// # Errors
    /// As [`Stream::receive`]; 0 as there. `EINVAL` when there is no such range.
    pub(crate) fn receive_packet(
        &self,
        head: &mut KVec<u8>,
        range: Range<usize>,
        pages: &mut PageChain,
    ) -> Result<usize> {
        let head = head.get_mut(range).filter(|head| !head.is_empty()).ok_or(EINVAL)?;
        let mut bvecs = [const { EMPTY_BVEC }; FEW_SEGMENTS + 1];
        let count = bvecs.get_mut(1..).map_or(0, |bvecs| pages.bvecs(0, bvecs));
        let bytes = total_bytes(bvecs.get(..=count).ok_or(EINVAL)?);
        // SAFETY: the socket by the type's invariant; the slice is writable during the call and in memory from kmalloc,
        // as that of every `KVec`; the vectors behind the first are those of pages that the caller owns.
        length_of(unsafe {
            raw::drbd_h_sock_receive_packet(
                self.0.raw(),
                head.as_mut_ptr().cast(),
                head.len(),
                bvecs.as_mut_ptr(),
                count as u32 + 1,
                bytes,
            )
        })
    }

    /// Receives bytes into an application's bio, from `from_byte` on; otherwise as [`Stream::receive_pages`].
    ///
    /// # Errors
    /// As [`Stream::receive`]; 0 as there.
    pub(crate) fn receive_lent(&self, bio: &mut Lent, from_byte: usize) -> Result<usize> {
        let (bvecs, skip, bytes) = bio.raw_bvecs();
        self.receive_bvecs(bvecs, skip.saturating_add(from_byte), bytes.saturating_sub(from_byte))
    }

    fn receive_bvecs(&self, bvecs: &[raw::bio_vec], skip: usize, bytes: usize) -> Result<usize> {
        let count = bvecs.len() as u32;
        let bytes = bytes.min(total_bytes(bvecs).saturating_sub(skip));
        // SAFETY: the socket by the type's invariant; `bvecs` are `count` vectors over pages which the caller may
        // write to: it owns them, or holds the bio of a read.
        length_of(unsafe { raw::drbd_h_sock_receive_bvecs(self.0.raw(), bvecs.as_ptr(), count, skip, bytes) })
    }
}

/// The data of a packet.
#[derive(Clone, Copy)]
pub(crate) enum PacketData<'a> {
    /// There is none.
    None,
    /// All of an application's bio.
    Bio(&'a Lent),
    /// So many bytes of these pages.
    Pages(&'a PageChain, usize),
}

/// Runs `f` with the pages from `from_byte` on, as far as they go in one call. Most requests are small, and filling a
/// table costs time.
fn with_bvecs<R>(pages: &PageChain, from_byte: usize, f: impl FnOnce(&[raw::bio_vec]) -> R) -> R {
    if pages.bytes() <= FEW_SEGMENTS * PAGE_BYTES {
        let mut bvecs = [const { EMPTY_BVEC }; FEW_SEGMENTS];
        let count = pages.bvecs(from_byte, &mut bvecs);
        f(bvecs.get(..count).unwrap_or_default())
    } else {
        let mut bvecs = [const { EMPTY_BVEC }; SEGMENTS_PER_CALL];
        let count = pages.bvecs(from_byte, &mut bvecs);
        f(bvecs.get(..count).unwrap_or_default())
    }
}

const EMPTY_BVEC: raw::bio_vec = raw::bio_vec { bv_page: core::ptr::null_mut(), bv_len: 0, bv_offset: 0 };

fn total_bytes(bvecs: &[raw::bio_vec]) -> usize {
    bvecs.iter().fold(0, |sum: usize, bvec| sum.saturating_add(bvec.bv_len as usize))
}

/// A count of bytes, or a negative errno.
fn length_of(result: kernel::ffi::c_int) -> Result<usize> {
    to_result(result)?;
    Ok(usize::try_from(result).unwrap_or(0))
}
