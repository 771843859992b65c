// SPDX-License-Identifier: GPL-2.0
//! Commands that change something: one request, one answer, one exit code.
//!
//! spec: netlink 5, 7, 12.1

use super::genl::{nested, Connection, Message, CREATE_EXCLUSIVE, MAX_REQUEST_BYTES};
use super::{address, Call};
use crate::failure::Failure;
use crate::options::{NestSpec, OwnedValue};
use engine::netlink::attr::MANDATORY;
use engine::netlink::{
    exit_code, result_sentence, AttrReader, AttrWriter, BufferTooSmall, CfgContext, CfgReply, Command, Direction,
    DiskConf, DrbdHeader, Nest, RetCode, Text, MINOR_NONE, REQUEST_SET_DEFAULTS,
};
use std::fs::OpenOptions;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

/// Where drbdadm notes which configuration a minor or a resource came from.
const REGISTRY_DIR: &str = "/var/run/drbd";

/// The note about a minor.
pub fn minor_link(minor: u32) -> PathBuf {
    PathBuf::from(format!("{REGISTRY_DIR}/drbd-minor-{minor}.conf"))
}

/// The note about a resource.
pub fn resource_link(name: &str) -> PathBuf {
    PathBuf::from(format!("{REGISTRY_DIR}/drbd-resource-{name}.conf"))
}

/// The attributes of a request.
pub struct Attributes {
    buffer: Vec<u8>,
    len: usize,
}

impl Attributes {
    /// No attributes.
    pub fn none() -> Self {
        Attributes { buffer: Vec::new(), len: 0 }
    }

    fn build(write: impl FnOnce(&mut AttrWriter<'_>) -> Result<(), BufferTooSmall>) -> Result<Self, Failure> {
        let mut buffer = vec![0; MAX_REQUEST_BYTES];
        let mut writer = AttrWriter::new(&mut buffer, Direction::Request);
        write(&mut writer).map_err(|_| Failure::new(20, "The request is too large."))?;
        let len = writer.len();
        Ok(Attributes { buffer, len })
    }

    /// Only a context.
    pub fn context(context: &CfgContext) -> Result<Self, Failure> {
        Self::build(|writer| context.emit(writer, engine::netlink::Redact::Nothing))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

/// A resource name as the kernel takes it.
///
/// # Errors
/// Exit code 20 when it is too long.
pub fn name_text(name: &str) -> Result<Text<128>, Failure> {
    Text::from_bytes(name.as_bytes()).map_err(|_| Failure::new(20, format!("'{name}' is too long for a resource name")))
}

/// A context that names a resource.
///
/// # Errors
/// As [`name_text`].
pub fn named(name: &str) -> Result<CfgContext, Failure> {
    Ok(CfgContext { ctx_resource_name: Some(name_text(name)?), ..CfgContext::default() })
}

fn raw_address(text: &str) -> Result<Option<engine::netlink::Bytes<128>>, Failure> {
    Ok(engine::netlink::Bytes::from_bytes(&address::parse(text)?))
}

/// What a request consists of besides its options.
struct Request<'a> {
    command: Command,
    minor: u32,
    context: Option<CfgContext>,
    /// Fields that come from arguments.
    fixed: Vec<(u16, OwnedValue)>,
    netlink_flags: u16,
    /// How messages name the object.
    shown: &'a str,
}

impl<'a> Request<'a> {
    fn of_minor(call: &'a Call, command: Command) -> Self {
        let minor = call.minor.unwrap_or(MINOR_NONE);
        Request { command, minor, context: None, fixed: Vec::new(), netlink_flags: 0, shown: &call.object }
    }

    fn of_resource(call: &'a Call, command: Command) -> Result<Self, Failure> {
        let context = Some(named(&call.object)?);
        Ok(Request { command, minor: MINOR_NONE, context, fixed: Vec::new(), netlink_flags: 0, shown: &call.object })
    }

    fn of_connection(call: &'a Call, command: Command) -> Result<Self, Failure> {
        let remote = call.arguments.first().map_or("", String::as_str);
        let context = CfgContext {
            ctx_my_addr: raw_address(&call.object)?,
            ctx_peer_addr: raw_address(remote)?,
            ..CfgContext::default()
        };
        Ok(Request {
            command,
            minor: MINOR_NONE,
            context: Some(context),
            fixed: Vec::new(),
            netlink_flags: 0,
            shown: "??",
        })
    }

    /// Sends it with the options of the call; prints what went wrong; gives the exit code.
    fn send(self, call: &Call) -> Result<i32, Failure> {
        let attributes = self.attributes(call)?;
        let flags = if call.set_defaults { REQUEST_SET_DEFAULTS } else { 0 };
        let header = DrbdHeader { minor: self.minor, flags_or_ret: flags as i32 };
        let mut connection = Connection::open()?;
        let reply = connection.request(self.command, header, self.netlink_flags, attributes.as_bytes())?;
        if reply.header.minor != self.minor {
            eprintln!("The kernel answered about minor {}, asked was {}.", reply.header.minor, self.minor);
        }
        Ok(report(self.shown, &reply))
    }

    fn attributes(&self, call: &Call) -> Result<Attributes, Failure> {
        Attributes::build(|writer| {
            if let Some(context) = &self.context {
                context.emit(writer, engine::netlink::Redact::Nothing)?;
            }
            match call.row.offer {
                Some(offer) if !(call.values.is_empty() && self.fixed.is_empty()) => {
                    self.options(writer, offer.nest, call)
                }
                _ => Ok(()),
            }
        })
    }

    fn options(&self, writer: &mut AttrWriter<'_>, nest: NestSpec, call: &Call) -> Result<(), BufferTooSmall> {
        let given = |number| call.values.iter().rev().find(|(field, _)| field.number == number).map(|(_, value)| value);
        let fixed = |number| self.fixed.iter().find(|(field, _)| *field == number).map(|(_, value)| value);
        let open = writer.begin_nest(nested(nest.number))?;
        for field in nest.fields {
            if let Some(value) = fixed(field.number).or_else(|| given(field.number)) {
                let mandatory = if field.marks.mandatory { MANDATORY } else { 0 };
                writer.put_value(field.number | mandatory, &field.kind, &value.as_value())?;
            }
        }
        writer.end_nest(open)
    }
}

/// Prints what an answer means unless it is a success; gives the exit code.
// spec: netlink 7
fn report(shown: &str, reply: &Message) -> i32 {
    let number = reply.header.flags_or_ret;
    let code = i32::from(exit_code(number));
    if code != 0 {
        match result_sentence(number) {
            Some(sentence) if RetCode::from_number(number).is_some() => {
                eprintln!("{shown}: Failure: ({number}) {sentence}");
            }
            Some(sentence) => eprintln!("{shown}: State change failed: ({number}) {sentence}"),
            None => eprintln!("{shown}: unknown error code {number}; are module and tools of the same version?"),
        }
    }
    // With a success the kernel explains itself only when there is something to know.
    let texts = info_texts(reply);
    if !texts.is_empty() && code != 0 {
        eprintln!("additional info from kernel:");
    }
    for text in texts {
        eprintln!("{text}");
    }
    code
}

fn info_texts(reply: &Message) -> Vec<String> {
    let is_reply = |attribute: &engine::netlink::Attr<'_>| attribute.number == CfgReply::NUMBER;
    let nests = AttrReader::new(&reply.attributes).flatten().filter(is_reply);
    let texts = nests.flat_map(|nest| AttrReader::new(nest.payload).flatten().collect::<Vec<_>>());
    texts
        .filter(|text| text.number == CfgReply::INFO_TEXT)
        .map(|text| String::from_utf8_lossy(text.payload).trim_end_matches(['\0', '\n']).to_owned())
        .collect()
}

fn number_argument(call: &Call, index: usize, what: &str, max: u32) -> Result<u32, Failure> {
    let text = call.arguments.get(index).map_or("", String::as_str);
    let value = text.parse().ok().filter(|number| *number <= max);
    value.ok_or_else(|| Failure::new(20, format!("'{text}' is no {what}: expected a number from 0 to {max}")))
}

pub fn new_resource(call: &Call) -> Result<i32, Failure> {
    // One that exists already is as good as a new one: scripts rely on it.
    Request::of_resource(call, Command::NewResource)?.send(call)
}

pub fn new_minor(call: &Call) -> Result<i32, Failure> {
    let mut request = Request::of_resource(call, Command::NewMinor)?;
    let minor = call.arguments.first().and_then(|text| super::minor_of(text));
    request.minor = minor.ok_or_else(|| {
        Failure::new(
            20,
            format!(
                "Cannot determine minor device number of device '{}'",
                call.arguments.first().map_or("", |text| text)
            ),
        )
    })?;
    let volume = number_argument(call, 1, "volume number", engine::netlink::VOLUME_MAX)?;
    if let Some(context) = &mut request.context {
        context.ctx_volume = Some(volume);
    }
    request.netlink_flags = CREATE_EXCLUSIVE;
    request.send(call)
}

pub fn del_minor(call: &Call) -> Result<i32, Failure> {
    let code = Request::of_minor(call, Command::DelMinor).send(call)?;
    if let (0, Some(minor)) = (code, call.minor) {
        remove_link(minor_link(minor));
    }
    Ok(code)
}

pub fn del_resource(call: &Call) -> Result<i32, Failure> {
    let code = Request::of_resource(call, Command::DelResource)?.send(call)?;
    if code == 0 {
        remove_link(resource_link(&call.object));
    }
    Ok(code)
}

fn remove_link(path: PathBuf) {
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => eprintln!("{}: {error}", path.display()),
        _ => {}
    }
}

pub fn attach(call: &Call) -> Result<i32, Failure> {
    let [lower, meta, index] = call.arguments.as_slice() else { return Err(Failure::silent(20)) };
    for path in [lower, meta] {
        check_block_device(path)?;
    }
    let index = match index.as_str() {
        "internal" | "flex-internal" => -3,
        "flexible" | "flex-external" => -2,
        number => number.parse::<i32>().ok().filter(|index| *index >= 0).ok_or_else(|| {
            Failure::new(20, format!("'{number}' is no meta-data index: expected internal, flexible or a number"))
        })?,
    };
    let mut request = Request::of_minor(call, Command::Attach);
    request.fixed = vec![
        (DiskConf::BACKING_DEV, path_value(lower)?),
        (DiskConf::META_DEV, path_value(meta)?),
        (DiskConf::META_DEV_IDX, OwnedValue::I32(index)),
    ];
    request.send(call)
}

fn path_value(path: &str) -> Result<OwnedValue, Failure> {
    if path.len() >= 128 {
        return Err(Failure::new(20, format!("'{path}' is too long for the path of a device")));
    }
    Ok(OwnedValue::Text(path.as_bytes().to_vec()))
}

fn check_block_device(path: &str) -> Result<(), Failure> {
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.map_err(|error| Failure::new(20, format!("Can not open device '{path}': {error}")))?;
    let kind = file.metadata().map_err(|error| Failure::new(20, format!("{path}: {error}")))?.file_type();
    if !kind.is_block_device() {
        return Err(Failure::new(20, format!("'{path}' is not a block device!")));
    }
    Ok(())
}

pub fn connect(call: &Call) -> Result<i32, Failure> {
    let [local, remote] = call.arguments.as_slice() else { return Err(Failure::silent(20)) };
    let mut request = Request::of_resource(call, Command::Connect)?;
    if let Some(context) = &mut request.context {
        context.ctx_my_addr = raw_address(local)?;
        context.ctx_peer_addr = raw_address(remote)?;
    }
    request.send(call)
}

pub fn net_options(call: &Call) -> Result<i32, Failure> {
    Request::of_connection(call, Command::ChgNetOpts)?.send(call)
}

pub fn disconnect(call: &Call) -> Result<i32, Failure> {
    Request::of_connection(call, Command::Disconnect)?.send(call)
}

pub fn resource_options(call: &Call) -> Result<i32, Failure> {
    Request::of_resource(call, Command::ResourceOpts)?.send(call)
}

macro_rules! of_minor {
    ($($function:ident = $command:ident;)+) => {$(
        pub fn $function(call: &Call) -> Result<i32, Failure> {
            Request::of_minor(call, Command::$command).send(call)
        }
    )+};
}

of_minor! {
    disk_options = ChgDiskOpts;
    detach = Detach;
    primary = Primary;
    secondary = Secondary;
    resize = Resize;
    verify = StartOv;
    new_current_uuid = NewCUuid;
    invalidate = Invalidate;
    invalidate_remote = InvalPeer;
    pause_sync = PauseSync;
    resume_sync = ResumeSync;
    suspend_io = SuspendIo;
    resume_io = ResumeIo;
    outdate = Outdate;
}

/// Takes a resource down; that there is none is fine.
pub fn down(call: &Call) -> Result<i32, Failure> {
    let context = Attributes::context(&named(&call.object)?)?;
    let mut minors = Vec::new();
    Connection::open()?.dump(Command::GetStatus, context.as_bytes(), |message| {
        minors.push(message.header.minor);
        true
    })?;
    let header = DrbdHeader { minor: MINOR_NONE, flags_or_ret: 0 };
    let reply = Connection::open()?.request(Command::Down, header, 0, context.as_bytes())?;
    let unknown = reply.header.flags_or_ret == RetCode::ResNotKnown.number();
    let code = if unknown { 0 } else { report(&call.object, &reply) };
    if code == 0 {
        remove_link(resource_link(&call.object));
        minors.into_iter().filter(|minor| *minor != MINOR_NONE).for_each(|minor| remove_link(minor_link(minor)));
    }
    Ok(code)
}
