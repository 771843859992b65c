// SPDX-License-Identifier: GPL-2.0
//! The control interface: requests of the tools, one file a group of commands.
//!
//! [`Control`] finds what a request is about and hands it to the function of its command, which answers with a result
//! number and may add texts and attributes to the reply. These functions are not inlined, so that the stack holds the
//! variables of one command only.
// spec: netlink 1.3 to 6

mod disk;
mod dump;
mod minor;
pub(crate) mod net;
pub(crate) mod resource;
mod role;
mod status;
mod sync;

use super::resource::Resource;
use super::{worker, Driver, Minor};
use crate::linux::genl::{self, Dump, Handler, Message, Request};
use crate::linux::sock::SockAddr;
use crate::linux::{clock, errno};
use engine::netlink::{
    AttrReader, AttrWriter, CfgContext, CfgReply, Command, Direction, Need, Nest, ParseMode, Present, Redact, RetCode,
    StateResult, Text, COMMANDS, EVENTS_GROUP, FAMILY_NAME, FAMILY_VERSION, MAX_ATTRIBUTE, MINOR_NONE,
    REQUEST_SET_DEFAULTS, VOLUME_MAX,
};
use engine::resource::{AdminInfo, AdminRequest, AdminResult};
use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::Arc;

/// Bytes of the attributes of one reply; the largest, GET_STATUS, needs about 2 KiB.
pub(crate) const MESSAGE_BYTES_MAX: usize = 6144;
/// Bound: length of the attributes of a request that are looked at.
const REQUEST_BYTES_MAX: usize = 16384;

/// The family, registered.
pub(crate) type Family = genl::Family<Control>;

/// Answers the requests of the tools.
pub(crate) struct Control {
    driver: Arc<Driver>,
}

/// Registers the family.
///
/// # Errors
/// `ENOMEM`; `EEXIST` when another module has registered it.
pub(crate) fn register(driver: Arc<Driver>) -> Result<Family> {
    debug_assert!(FAMILY_NAME == "drbd" && EVENTS_GROUP == "events");
    let identity = genl::Identity {
        name: c"drbd",
        version: FAMILY_VERSION,
        max_attribute: MAX_ATTRIBUTE.into(),
        group: c"events",
    };
    let commands = COMMANDS.iter().filter(|spec| !spec.notification).map(|spec| genl::Command {
        number: spec.number,
        admin: spec.admin,
        can_do: spec.single,
        can_dump: spec.dump,
    });
    genl::Family::register(identity, commands, Arc::new(Control { driver }, GFP_KERNEL)?)
}

impl Handler for Control {
    fn request(&self, request: &Request<'_>) -> Result<Message> {
        let spec = Command::from_number(request.command).and_then(Command::spec).ok_or(errno::eopnotsupp())?;
        // spec: netlink 1.5
        if spec.admin && !request.net_admin {
            return Err(EPERM);
        }
        let mut task = Task::new(&self.driver, request)?;
        let code = match task.find(spec.need) {
            Ok(()) => task.carry_out(spec.command)?,
            Err(refused) => refused.0,
        };
        task.reply.finish(request, code)
    }

    fn dump(&self, request: &Request<'_>) -> Result<Dump> {
        dump::dump(&self.driver, request)
    }
}

/// The request was refused; the result number is in it, texts are in the reply.
#[derive(Clone, Copy, Debug)]
struct Refused(i32);

impl From<RetCode> for Refused {
    fn from(code: RetCode) -> Self {
        Refused(code.number())
    }
}

/// A handler's answer: a result number of `spec/netlink 7`, or an errno instead of a reply.
type Answer = Result<i32>;

const DONE: Answer = Ok(RetCode::NoError.number());

/// One request while it is being answered.
struct Task<'a> {
    driver: &'a Arc<Driver>,
    request: &'a Request<'a>,
    context: CfgContext,
    /// The resource it is about.
    resource: Option<Arc<Resource>>,
    /// The volume it is about.
    minor: Option<Minor>,
    reply: Reply,
}

impl<'a> Task<'a> {
    fn new(driver: &'a Arc<Driver>, request: &'a Request<'a>) -> Result<Self> {
        if request.attributes.len() > REQUEST_BYTES_MAX {
            return Err(EINVAL);
        }
        let mut task =
            Task { driver, request, context: CfgContext::default(), resource: None, minor: None, reply: Reply::new()? };
        if let Some(attribute) = AttrReader::find(request.attributes, CfgContext::NUMBER) {
            task.reply.write(|w| w.put_raw(attribute.raw))?;
            // Texts and addresses that do not fit are no attributes of ours. spec: netlink 2
            task.context.parse(attribute.payload, ParseMode::Receive).map_err(|_| EINVAL)?;
        }
        Ok(task)
    }

    /// Finds the object of the request and checks that everything said about it agrees.
    // spec: netlink 2
    fn find(&mut self, need: Need) -> Result<(), Refused> {
        self.minor = match self.request.minor {
            MINOR_NONE => None,
            number => self.driver.minor(number),
        };
        self.resource = self.context.ctx_resource_name.as_ref().and_then(|name| self.driver.resource(name.as_bytes()));
        match need {
            Need::None => {}
            Need::Minor if self.minor.is_none() => return Err(self.refuse(RetCode::MinorInvalid, "unknown minor")),
            Need::Minor => {}
            Need::Resource if self.resource.is_none() => {
                let named = self.context.ctx_resource_name.is_some();
                let code = if named { RetCode::ResNotKnown } else { RetCode::InvalidRequest };
                return Err(self.refuse(code, "unknown resource"));
            }
            Need::Resource => {}
            Need::Connection => self.find_connection()?,
        }
        self.check_agreement()
    }

    fn find_connection(&mut self) -> Result<(), Refused> {
        if self.resource.is_some() {
            return Err(self.refuse(RetCode::InvalidRequest, "no resource name expected"));
        }
        if self.minor.is_some() {
            return Err(self.refuse(RetCode::InvalidRequest, "no minor number expected"));
        }
        let (mine, peers) = (self.context.ctx_my_addr, self.context.ctx_peer_addr);
        let is_wanted = |address: &SockAddr, wanted: &Option<engine::netlink::Bytes<128>>| {
            wanted.as_ref().is_some_and(|wanted| wanted.as_bytes() == address.as_bytes())
        };
        let found = self.driver.resources().find(|resource| {
            let addresses = resource.addresses();
            addresses.is_some_and(|(my, peer)| is_wanted(&my, &mine) && is_wanted(&peer, &peers))
        });
        match found {
            Some(resource) => {
                self.resource = Some(resource);
                Ok(())
            }
            None => Err(self.refuse(RetCode::InvalidRequest, "unknown connection")),
        }
    }

    fn check_agreement(&mut self) -> Result<(), Refused> {
        let Some(minor) = &self.minor else { return Ok(()) };
        if self.resource.as_ref().is_some_and(|resource| resource.id != minor.resource.id) {
            return Err(self.refuse(RetCode::InvalidRequest, "minor exists in different resource"));
        }
        if self.context.ctx_volume.is_some_and(|volume| volume != u32::from(minor.volume_number)) {
            return Err(self.refuse(RetCode::InvalidRequest, "minor exists as different volume"));
        }
        Ok(())
    }

    fn carry_out(&mut self, command: Command) -> Answer {
        match command {
            Command::GetStatus => status::get_status(self),
            Command::GetTimeoutType => status::get_timeout_type(self),
            Command::NewResource => resource::new_resource(self),
            Command::ResourceOpts => resource::resource_opts(self),
            Command::DelResource => resource::del_resource(self),
            Command::Down => resource::down(self),
            Command::NewMinor => minor::new_minor(self),
            Command::DelMinor => minor::del_minor(self),
            Command::Attach => disk::attach(self),
            Command::Detach => disk::detach(self),
            Command::ChgDiskOpts => disk::chg_disk_opts(self),
            Command::Resize => disk::resize(self),
            Command::Outdate => disk::outdate(self),
            Command::SuspendIo => disk::suspend_io(self),
            Command::ResumeIo => disk::resume_io(self),
            Command::Connect => net::connect(self),
            Command::Disconnect => net::disconnect(self),
            Command::ChgNetOpts => net::chg_net_opts(self),
            Command::Primary => role::primary(self),
            Command::Secondary => role::secondary(self),
            Command::Invalidate => sync::invalidate(self),
            Command::InvalPeer => sync::inval_peer(self),
            Command::PauseSync => sync::pause_sync(self),
            Command::ResumeSync => sync::resume_sync(self),
            Command::StartOv => sync::start_ov(self),
            Command::NewCUuid => sync::new_current_uuid(self),
            Command::Event
            | Command::GetResources
            | Command::GetDevices
            | Command::GetConnections
            | Command::GetPeerDevices
            | Command::ResourceState
            | Command::DeviceState
            | Command::ConnectionState
            | Command::PeerDeviceState
            | Command::GetInitialState
            | Command::Helper
            | Command::InitialStateDone => Err(errno::eopnotsupp()),
        }
    }

    /// The resource of a command that needs one, or a connection.
    fn resource(&self) -> Result<Arc<Resource>> {
        self.resource.clone().ok_or(EINVAL)
    }

    /// The volume of a command that needs a minor.
    fn minor(&self) -> Result<Minor> {
        self.minor.clone().ok_or(EINVAL)
    }

    /// True when options that are not mentioned have to be set to their defaults.
    fn sets_defaults(&self) -> bool {
        self.request.flags & REQUEST_SET_DEFAULTS != 0
    }

    /// Takes over the fields of a top-level nest; which of them were there, or `None` when the nest is absent.
    fn parse<N: Nest>(&mut self, nest: &mut N, mode: ParseMode) -> Result<Option<Present>, Refused> {
        let Some(attribute) = AttrReader::find(self.request.attributes, N::NUMBER) else { return Ok(None) };
        match nest.parse(attribute.payload, mode) {
            Ok(present) => Ok(Some(present)),
            Err(error) => Err(self.refuse(RetCode::MandatoryTag, error.info_text())),
        }
    }

    /// The answer the engine has given.
    fn answer(&mut self, result: &AdminResult) -> Answer {
        self.explain_result(result);
        Ok(result.code)
    }

    /// One step of several: goes on after a success, explains a failure.
    fn step(&mut self, result: &AdminResult, failure: &str) -> Result<(), Refused> {
        if is_success(result.code) {
            return Ok(());
        }
        self.explain(failure);
        self.explain_result(result);
        Err(Refused(result.code))
    }

    fn explain_result(&mut self, result: &AdminResult) {
        match result.info {
            AdminInfo::None => {}
            AdminInfo::Text(text) => self.explain(text),
            // Without memory the number has to do.
            info => {
                if let Ok(text) = CString::try_from_fmt(format_args!("{info}")) {
                    self.reply.explain(Text::truncated(text.to_bytes()));
                }
            }
        }
    }

    /// Adds a text to the reply; returns the refusal with this result.
    fn refuse(&mut self, code: RetCode, text: &str) -> Refused {
        self.explain(text);
        code.into()
    }

    /// Adds a text to the reply.
    fn explain(&mut self, text: &str) {
        self.reply.explain(Text::truncated(text.as_bytes()));
    }
}

/// Turns a refusal into an answer, inside of a handler.
macro_rules! unless_refused {
    ($result:expr) => {
        match $result {
            Ok(value) => value,
            Err(refused) => return Ok($crate::shell::control::Refused::from(refused).0),
        }
    };
}
use unless_refused;

/// Gives the engine an administrator's request and waits for its result. The caller holds `resource.admin`.
fn ask(resource: &Arc<Resource>, request: AdminRequest<'_>) -> AdminResult {
    resource.engine(|locked| locked.engine.admin(request, clock::monotonic_ms()));
    wait_for_result(resource)
}

/// Waits for the result of the request that was given to the engine, and for the devices to be what the request has made of them. A
/// signal to the requesting process cancels the request; the engine then comes to a result at once.
fn wait_for_result(resource: &Arc<Resource>) -> AdminResult {
    let mut cancelled = false;
    loop {
        let mut result = None;
        let mut due = || {
            resource.locked.with(|locked| {
                result = locked.engine.admin_result();
                result.is_some() || locked.engine.has_device_work()
            })
        };
        if cancelled {
            resource.changed.wait_until(&mut due);
        } else if resource.changed.wait_until_signal(&mut due).is_err() {
            cancelled = true;
            resource.engine(|locked| locked.engine.admin_cancel(clock::monotonic_ms()));
        }
        // The worker may be busy with a program, even one that waits for this answer.
        worker::carry_out_orders(resource);
        if let Some(result) = result {
            // Listeners hear of what the command has done before it ends: the next one may delete what they are told of.
            worker::wait_told(resource);
            return result;
        }
    }
}

/// True for the result of a request that was carried out, or was not necessary.
fn is_success(code: i32) -> bool {
    code == RetCode::NoError.number() || StateResult::from_number(code).is_some_and(StateResult::is_success)
}

/// The reply to one request.
struct Reply {
    buffer: KVec<u8>,
    used: usize,
}

impl Reply {
    fn new() -> Result<Self> {
        Ok(Reply { buffer: KVec::from_elem(0u8, MESSAGE_BYTES_MAX, GFP_KERNEL)?, used: 0 })
    }

    /// Appends attributes.
    fn write(
        &mut self,
        fill: impl FnOnce(&mut AttrWriter<'_>) -> Result<(), engine::netlink::BufferTooSmall>,
    ) -> Result {
        let free = self.buffer.get_mut(self.used..).ok_or(EINVAL)?;
        let mut writer = AttrWriter::new(free, Direction::Reply);
        fill(&mut writer).map_err(|_| EMSGSIZE)?;
        self.used = self.used.saturating_add(writer.len());
        Ok(())
    }

    /// Appends a text for the administrator; left out when there is no room.
    fn explain(&mut self, text: Text<256>) {
        let reply = CfgReply { info_text: Some(text) };
        let _ = self.write(|w| reply.emit(w, Redact::Nothing));
    }

    fn finish(mut self, request: &Request<'_>, code: i32) -> Result<Message> {
        self.buffer.truncate(self.used);
        Ok(Message { command: request.command, minor: request.minor, code, attributes: self.buffer })
    }
}

/// A volume number from a context; at most [`VOLUME_MAX`].
fn volume_number(context: &CfgContext) -> Option<u16> {
    context.ctx_volume.filter(|volume| *volume <= VOLUME_MAX).and_then(|volume| u16::try_from(volume).ok())
}
