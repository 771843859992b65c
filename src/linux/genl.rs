// SPDX-License-Identifier: GPL-2.0
//! The module's generic netlink family: requests and dumps come in as bytes, messages go out as bytes.
//!
//! The attributes are read and written by the engine; the C side (`helpers_net.c`) adds and removes the netlink
//! headers. All handlers run one after the other under the family's mutex, except within [`unlocked`]. They run in the
//! requesting process and may sleep.

use super::raw;
use core::marker::PhantomData;
use kernel::alloc::kvec::KVec;
use kernel::error::{from_result, to_result};
use kernel::ffi::{c_int, c_void};
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::types::ForeignOwnable;

/// One command of the family, for registration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Command {
    /// Its number.
    pub(crate) number: u8,
    /// Needs `CAP_NET_ADMIN`.
    pub(crate) admin: bool,
    /// Answers a single request.
    pub(crate) can_do: bool,
    /// Answers a dump.
    pub(crate) can_dump: bool,
}

/// A request of user space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    /// Number of the command.
    pub(crate) command: u8,
    /// Minor number in the family's header; `u32::MAX`: none.
    pub(crate) minor: u32,
    /// Flags in the family's header.
    pub(crate) flags: u32,
    /// The request must create something (`NLM_F_EXCL`).
    pub(crate) exclusive: bool,
    /// The sender has `CAP_NET_ADMIN`.
    pub(crate) net_admin: bool,
    /// The sender has `CAP_SYS_ADMIN`.
    pub(crate) sys_admin: bool,
    /// The attributes, not looked at yet.
    pub(crate) attributes: &'a [u8],
}

/// A message to user space.
pub(crate) struct Message {
    /// Number of the command.
    pub(crate) command: u8,
    /// Minor number in the family's header; `u32::MAX`: none.
    pub(crate) minor: u32,
    /// Result code in the family's header.
    pub(crate) code: i32,
    /// Encoded attributes.
    pub(crate) attributes: KVec<u8>,
}

/// The complete answer to a dump request.
pub(crate) struct Dump {
    messages: KVVec<Message>,
    next: usize,
    style: DumpStyle,
    end: Result,
}

/// How the messages of a dump are marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DumpStyle {
    /// Parts of an answer: `NLM_F_MULTI`, the requester's port.
    Items,
    /// Like notifications: neither.
    Events,
}

impl Dump {
    /// An answer without messages.
    pub(crate) fn new(style: DumpStyle) -> Self {
        Dump { messages: KVVec::new(), next: 0, style, end: Ok(()) }
    }

    /// Adds a message.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn push(&mut self, message: Message) -> Result {
        Ok(self.messages.push(message, GFP_KERNEL)?)
    }

    /// The answer ends with this error, told to the requester after the last message.
    pub(crate) fn fail(&mut self, error: Error) {
        self.end = Err(error);
    }
}

/// Who answers requests.
pub(crate) trait Handler: Send + Sync + 'static {
    /// Answers a single request.
    ///
    /// # Errors
    /// An errno, told to the requester instead of an answer.
    fn request(&self, request: &Request<'_>) -> Result<Message>;

    /// Makes the whole answer to a dump request.
    ///
    /// # Errors
    /// An errno, told to the requester instead of an answer.
    fn dump(&self, request: &Request<'_>) -> Result<Dump>;
}

/// Names and numbers of the family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    /// Name, at most 15 characters.
    pub(crate) name: &'static CStr,
    /// Version.
    pub(crate) version: u8,
    /// Largest number of a top-level attribute.
    pub(crate) max_attribute: u32,
    /// Name of the only multicast group, at most 15 characters.
    pub(crate) group: &'static CStr,
}

/// The registered family; there is at most one. Dropping it waits for running handlers.
///
/// # Invariants
/// The family is registered with `data`, an `Arc<H>`.
pub(crate) struct Family<H: Handler> {
    data: *mut c_void,
    _handles: PhantomData<Arc<H>>,
}

// SAFETY: unregistering and giving up a counted reference may happen in any thread.
unsafe impl<H: Handler> Send for Family<H> {}
// SAFETY: there are no methods on `&Family`.
unsafe impl<H: Handler> Sync for Family<H> {}

impl<H: Handler> Family<H> {
    const CALLBACKS: raw::drbd_h_genl_callbacks = raw::drbd_h_genl_callbacks {
        request: Some(on_request::<H>),
        release_reply: Some(release_reply),
        dump_start: Some(dump_start::<H>),
        dump_peek: Some(dump_peek),
        dump_advance: Some(dump_advance),
        dump_done: Some(dump_done),
    };

    /// Registers the family. Called once, while the module is loaded.
    ///
    /// # Errors
    /// `EEXIST` when the name is taken (the kernel's own module is loaded), `EINVAL` for too many commands.
    pub(crate) fn register(
        identity: Identity,
        commands: impl Iterator<Item = Command>,
        handler: Arc<H>,
    ) -> Result<Self> {
        let mut table = KVec::new();
        for command in commands {
            let entry = raw::drbd_h_genl_command {
                command: command.number,
                admin: command.admin,
                can_do: command.can_do,
                can_dump: command.can_dump,
            };
            table.push(entry, GFP_KERNEL)?;
        }
        let data = handler.into_foreign();
        // SAFETY: names and table are copied; the callbacks are a constant that lives for ever; `data` stays valid
        // until the family is unregistered.
        let result = to_result(unsafe {
            raw::drbd_h_genl_register(
                identity.name.as_char_ptr(),
                identity.version,
                identity.max_attribute,
                identity.group.as_char_ptr(),
                table.as_ptr(),
                table.len() as u32,
                &Self::CALLBACKS,
                data,
            )
        });
        if let Err(error) = result {
            // SAFETY: nothing was registered, so the reference is still ours.
            drop(unsafe { Arc::<H>::from_foreign(data) });
            return Err(error);
        }
        Ok(Family { data, _handles: PhantomData })
    }
}

impl<H: Handler> Drop for Family<H> {
    fn drop(&mut self) {
        // SAFETY: registered, by the type's invariant; waits for running handlers.
        unsafe { raw::drbd_h_genl_unregister() };
        // SAFETY: by the type's invariant; no handler runs any more.
        drop(unsafe { Arc::<H>::from_foreign(self.data) });
    }
}

/// Sends a message to the members of the multicast group. Nobody there is not an error. Sleeps.
///
/// Call it only while the [`Family`] is registered.
pub(crate) fn multicast(message: &Message, sequence: u32) {
    // SAFETY: the message is valid during the call, which copies it. A listener that does not keep up is told by its
    // own socket; there is nothing to do here.
    let _ = unsafe { raw::drbd_h_genl_multicast(&to_raw(message, DumpStyle::Events), sequence) };
}

/// True when the multicast group has members.
pub(crate) fn has_listeners() -> bool {
    // SAFETY: only looks at the family.
    unsafe { raw::drbd_h_genl_has_listeners() }
}

/// Runs `f` while other requests are let in. Called from within [`Handler::request`] only; the caller may not hold a
/// lock that another handler needs.
pub(crate) fn unlocked<R>(_request: &Request<'_>, f: impl FnOnce() -> R) -> R {
    // SAFETY: a handler runs with the mutex held; a `Request` exists only during a handler.
    unsafe { raw::drbd_h_genl_unlock() };
    let result = f();
    // SAFETY: taken again before the handler returns.
    unsafe { raw::drbd_h_genl_lock() };
    result
}

fn to_raw(message: &Message, style: DumpStyle) -> raw::drbd_h_genl_message {
    raw::drbd_h_genl_message {
        command: message.command,
        multi: style == DumpStyle::Items,
        kernel_port: style == DumpStyle::Events,
        minor: message.minor,
        code: message.code,
        attributes: message.attributes.as_ptr().cast(),
        attributes_bytes: message.attributes.len(),
    }
}

/// # Safety
/// `request` and its attributes are valid while the result is in use.
unsafe fn from_raw<'a>(request: *const raw::drbd_h_genl_request) -> Request<'a> {
    // SAFETY: by the function's own duty.
    let request = unsafe { &*request };
    let attributes = if request.attributes_bytes == 0 {
        &[]
    } else {
        // SAFETY: so many bytes of the request's message.
        unsafe { core::slice::from_raw_parts(request.attributes.cast::<u8>(), request.attributes_bytes) }
    };
    Request {
        command: request.command,
        minor: request.minor,
        flags: request.flags,
        exclusive: request.exclusive,
        net_admin: request.net_admin,
        sys_admin: request.sys_admin,
        attributes,
    }
}

/// # Safety
/// Called by the C side for a request, with the `Arc<H>` of the registration; the other pointers are valid.
unsafe extern "C" fn on_request<H: Handler>(
    data: *mut c_void,
    request: *const raw::drbd_h_genl_request,
    reply: *mut raw::drbd_h_genl_message,
    owner: *mut *mut c_void,
) -> c_int {
    // SAFETY: the registration holds the reference.
    let handler = unsafe { Arc::<H>::borrow(data) };
    // SAFETY: valid during this call.
    let request = unsafe { from_raw(request) };
    from_result(|| {
        let message = KBox::new(handler.request(&request)?, GFP_KERNEL)?;
        // SAFETY: a place for the reply. Its bytes belong to the box given away in the next line.
        unsafe { *reply = to_raw(&message, DumpStyle::Items) };
        // SAFETY: as above. A reply is not a part of something.
        unsafe { (*reply).multi = false };
        // SAFETY: a place for the owner.
        unsafe { *owner = KBox::into_raw(message).cast() };
        Ok(0)
    })
}

/// # Safety
/// `owner` came from [`on_request`].
unsafe extern "C" fn release_reply(owner: *mut c_void) {
    // SAFETY: by the function's own duty.
    drop(unsafe { KBox::from_raw(owner.cast::<Message>()) });
}

/// # Safety
/// As [`on_request`].
unsafe extern "C" fn dump_start<H: Handler>(
    data: *mut c_void,
    request: *const raw::drbd_h_genl_request,
    dump: *mut *mut c_void,
) -> c_int {
    // SAFETY: the registration holds the reference.
    let handler = unsafe { Arc::<H>::borrow(data) };
    // SAFETY: valid during this call.
    let request = unsafe { from_raw(request) };
    from_result(|| {
        let answer = KBox::new(handler.dump(&request)?, GFP_KERNEL)?;
        // SAFETY: a place for the answer.
        unsafe { *dump = KBox::into_raw(answer).cast() };
        Ok(0)
    })
}

/// # Safety
/// `dump` came from [`dump_start`]; `message` is a place for the result, which is valid until [`dump_done`].
unsafe extern "C" fn dump_peek(dump: *mut c_void, message: *mut raw::drbd_h_genl_message) -> c_int {
    // SAFETY: the C side calls the functions of one dump one after the other.
    let dump = unsafe { &*dump.cast::<Dump>() };
    match dump.messages.get(dump.next) {
        Some(next) => {
            // SAFETY: by the function's own duty.
            unsafe { *message = to_raw(next, dump.style) };
            1
        }
        None => dump.end.map_or_else(|error| error.to_errno(), |()| 0),
    }
}

/// # Safety
/// As [`dump_peek`].
unsafe extern "C" fn dump_advance(dump: *mut c_void) {
    // SAFETY: as in `dump_peek`.
    let dump = unsafe { &mut *dump.cast::<Dump>() };
    dump.next = dump.next.saturating_add(1);
}

/// # Safety
/// `dump` came from [`dump_start`] and is not used afterwards.
unsafe extern "C" fn dump_done(dump: *mut c_void) {
    // SAFETY: by the function's own duty.
    drop(unsafe { KBox::from_raw(dump.cast::<Dump>()) });
}
