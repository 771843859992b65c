// SPDX-License-Identifier: GPL-2.0
//! `events2` and the older `events`: what happens, one line each, until somebody stops reading.
//!
//! spec: commands 3.7, netlink 9

use super::change::{named, Attributes};
use super::genl::{Connection, Incoming, Message};
use super::query::{nest, resynced_percent, state_of, Item};
use super::status::{
    blocked_words, connection_word, disk_word, replication_word, resync_suspended_words, role_word, suspended_words,
    write_ordering_word, yes_no,
};
use super::Call;
use crate::clock;
use crate::failure::Failure;
use engine::netlink::{
    CfgContext, CfgReply, Command, ConnectionInfo, ConnectionStatistics, DeviceInfo, DeviceStatistics, DrbdHeader,
    Helper, NotificationHeader, NotificationType, PeerDeviceInfo, PeerDeviceStatistics, ResourceInfo,
    ResourceStatistics, RetCode, SibReason, MINOR_NONE,
};
use std::collections::HashMap;
use std::io::Write;

/// What a line of `events2` is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Object {
    Resource,
    Device,
    Connection,
    PeerDevice,
    Helper,
}

impl Object {
    fn of(command: Command) -> Option<Self> {
        match command {
            Command::ResourceState => Some(Object::Resource),
            Command::DeviceState => Some(Object::Device),
            Command::ConnectionState => Some(Object::Connection),
            Command::PeerDeviceState => Some(Object::PeerDevice),
            Command::Helper => Some(Object::Helper),
            _ => None,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Object::Resource => "resource",
            Object::Device => "device",
            Object::Connection => "connection",
            Object::PeerDevice => "peer-device",
            Object::Helper => "helper",
        }
    }
}

/// A field of a line and when it is printed.
struct Field {
    name: &'static str,
    value: String,
    /// Also when it has not changed.
    always: bool,
}

fn field(name: &'static str, value: impl ToString) -> Field {
    Field { name, value: value.to_string(), always: false }
}

fn traffic(name: &'static str, value: u64) -> Field {
    Field { name, value: (value / 2).to_string(), always: true }
}

fn counter(name: &'static str, value: impl ToString) -> Field {
    Field { name, value: value.to_string(), always: true }
}

/// Turns messages into lines; remembers what it has said.
#[derive(Default)]
struct Printer {
    timestamps: bool,
    statistics: bool,
    now: bool,
    wanted: Option<String>,
    /// Per key the fields with their last values.
    said: HashMap<String, Vec<(&'static str, String)>>,
    last_sequence: Option<u32>,
    stamp: Option<String>,
}

impl Printer {
    /// The text for one message; `None` when the program is to end.
    fn line(&mut self, message: &Message) -> Result<Option<String>, Failure> {
        let command = Command::from_number(message.command);
        let kind = nest::<NotificationHeader>(message)?.map(|header| NotificationType::split(header.nh_type));
        let Some(Some((kind, continues))) = kind else { return Ok(Some(String::new())) };
        let mut text = self.skipped(message, kind);
        if command == Some(Command::InitialStateDone) {
            text += &self.stamped("exists -\n");
            self.stamp = None;
            if self.now {
                print_now(&text)?;
                return Ok(None);
            }
            return Ok(Some(text));
        }
        if let Some(object) = command.and_then(Object::of) {
            if kind == NotificationType::Exists || !self.now {
                let line = self.object_line(object, kind, message)?;
                if !line.is_empty() {
                    text += &self.stamped(&line);
                }
            }
        }
        if !continues {
            self.stamp = None;
        }
        Ok(Some(text))
    }

    /// A gap in the numbers of the notifications means that some were lost.
    fn skipped(&mut self, message: &Message, kind: NotificationType) -> String {
        if kind == NotificationType::Exists {
            return String::new();
        }
        let expected = self.last_sequence.map(|last| last.wrapping_add(1));
        self.last_sequence = Some(message.sequence);
        match expected {
            Some(expected) if expected != message.sequence => {
                format!("- skipped {}\n", message.sequence.wrapping_sub(expected))
            }
            _ => String::new(),
        }
    }

    /// All lines of one change carry the same time.
    fn stamped(&mut self, line: &str) -> String {
        if !self.timestamps {
            return line.to_owned();
        }
        let stamp = self.stamp.get_or_insert_with(|| {
            let now = clock::since_epoch();
            let (date, time) = clock::date_and_time(now);
            format!("{date}T{time}.{:06}+00:00", now.subsec_micros())
        });
        format!("{stamp} {line}")
    }

    fn object_line(&mut self, object: Object, kind: NotificationType, message: &Message) -> Result<String, Failure> {
        let context: CfgContext = nest(message)?.unwrap_or_default();
        let name = context
            .ctx_resource_name
            .map_or(String::new(), |name| String::from_utf8_lossy(name.as_bytes()).into_owned());
        if self.wanted.as_ref().is_some_and(|wanted| *wanted != name) {
            return Ok(String::new());
        }
        let key = format!("{}{}", object.word(), key_text(object, &context, &name, message.header.minor));
        let head = format!("{} {key}", kind.word());
        if kind == NotificationType::Destroy {
            self.said.remove(&key);
            return Ok(format!("{head}\n"));
        }
        let fields = self.fields(object, kind, message)?;
        if object == Object::Helper {
            return Ok(head
                + &fields.iter().map(|field| format!(" {}:{}", field.name, field.value)).collect::<String>()
                + "\n");
        }
        let is_new = !self.said.contains_key(&key);
        let said = self.said.entry(key).or_default();
        let mut text = String::new();
        for field in &fields {
            let last = said.iter().position(|(name, _)| *name == field.name);
            let changed = last.is_none_or(|index| said[index].1 != field.value);
            if changed || field.always || kind == NotificationType::Exists {
                text += &format!(" {}:{}", field.name, field.value);
            }
            match last {
                Some(index) => said[index].1.clone_from(&field.value),
                None => said.push((field.name, field.value.clone())),
            }
        }
        // A change of something that is not shown is no news; with statistics drbd-utils print it all the same.
        if text.is_empty() && !is_new && kind == NotificationType::Change && !self.statistics {
            return Ok(String::new());
        }
        Ok(format!("{head}{text}\n"))
    }

    fn fields(&self, object: Object, kind: NotificationType, message: &Message) -> Result<Vec<Field>, Failure> {
        let mut fields = Vec::new();
        match object {
            Object::Resource => {
                let info: ResourceInfo = nest(message)?.unwrap_or_default();
                fields.push(field("role", role_word(info.res_role)));
                fields.push(field("suspended", suspended_words(&info)));
                if self.statistics {
                    let statistics: ResourceStatistics = nest(message)?.unwrap_or_default();
                    fields.push(field("write-ordering", write_ordering_word(statistics.res_stat_write_ordering)));
                }
            }
            Object::Device => {
                let info: DeviceInfo = nest(message)?.unwrap_or_default();
                fields.push(field("disk", disk_word(info.dev_disk_state)));
                if self.statistics {
                    device_counters(&nest(message)?.unwrap_or_default(), &mut fields);
                }
            }
            Object::Connection => {
                let info: ConnectionInfo = nest(message)?.unwrap_or_default();
                fields.push(field("connection", connection_word(info.conn_connection_state)));
                fields.push(field("role", role_word(info.conn_role)));
                if self.statistics {
                    let statistics: ConnectionStatistics = nest(message)?.unwrap_or_default();
                    fields.push(field("congested", yes_no(statistics.conn_congested)));
                }
            }
            Object::PeerDevice => {
                let info: PeerDeviceInfo = nest(message)?.unwrap_or_default();
                fields.push(field("replication", replication_word(info.peer_repl_state)));
                fields.push(field("peer-disk", disk_word(info.peer_disk_state)));
                fields.push(field("resync-suspended", resync_suspended_words(&info)));
                if self.statistics {
                    peer_device_counters(&nest(message)?.unwrap_or_default(), &mut fields);
                }
            }
            Object::Helper => {
                let helper: Helper = nest(message)?.unwrap_or_default();
                fields.push(field("helper", String::from_utf8_lossy(helper.helper_name.as_bytes())));
                if kind == NotificationType::Response {
                    fields.push(field("status", helper.helper_status));
                }
            }
        }
        Ok(fields)
    }
}

fn device_counters(statistics: &DeviceStatistics, fields: &mut Vec<Field>) {
    fields.push(counter("size", statistics.dev_size / 2));
    fields.push(traffic("read", statistics.dev_read));
    fields.push(traffic("written", statistics.dev_write));
    fields.push(counter("al-writes", statistics.dev_al_writes));
    fields.push(counter("bm-writes", statistics.dev_bm_writes));
    fields.push(counter("upper-pending", statistics.dev_upper_pending));
    fields.push(counter("lower-pending", statistics.dev_lower_pending));
    fields.push(field("al-suspended", yes_no(statistics.dev_al_suspended)));
    fields.push(field("blocked", blocked_words(statistics)));
}

fn peer_device_counters(statistics: &PeerDeviceStatistics, fields: &mut Vec<Field>) {
    fields.push(traffic("received", statistics.peer_dev_received));
    fields.push(traffic("sent", statistics.peer_dev_sent));
    fields.push(counter("out-of-sync", statistics.peer_dev_out_of_sync / 2));
    fields.push(counter("pending", statistics.peer_dev_pending));
    fields.push(counter("unacked", statistics.peer_dev_unacked));
}

fn key_text(object: Object, context: &CfgContext, name: &str, minor: u32) -> String {
    let mut key = format!(" name:{name}");
    if matches!(object, Object::Connection | Object::PeerDevice | Object::Helper) {
        key += " peer-node-id:0";
    }
    if context.ctx_peer_addr.is_some_and(|address| !address.is_empty()) {
        key += " conn-name:peer";
    }
    if let Some(volume) = context.ctx_volume {
        key += &format!(" volume:{volume}");
    }
    if minor != MINOR_NONE {
        key += &format!(" minor:{minor}");
    }
    key
}

/// Writes at once: readers wait for every line.
fn print_now(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|_| Failure::silent(0))
}

pub fn events2(call: &Call) -> Result<i32, Failure> {
    let mut printer = Printer {
        timestamps: call.has("timestamps"),
        statistics: call.has("statistics"),
        now: call.has("now"),
        wanted: call.resource_filter().map(str::to_owned),
        ..Printer::default()
    };
    let attributes = match call.resource_filter() {
        Some(name) => Attributes::context(&named(name)?)?,
        None => Attributes::none(),
    };
    let mut connection = Connection::open()?;
    connection.subscribe()?;
    let header = DrbdHeader { minor: MINOR_NONE, flags_or_ret: 0 };
    connection.start_dump(Command::GetInitialState, header, attributes.as_bytes())?;
    listen(&mut connection, |message| printer.line(message))
}

/// Prints what `text` makes of every message until it says stop, the module goes or nobody reads any more.
fn listen(
    connection: &mut Connection,
    mut text: impl FnMut(&Message) -> Result<Option<String>, Failure>,
) -> Result<i32, Failure> {
    loop {
        let Some(incoming) = connection.receive(None)? else { return Ok(0) };
        for incoming in incoming {
            match incoming {
                Incoming::FamilyGone => return Ok(0),
                Incoming::Error { errno, .. } | Incoming::Done { errno, .. } if errno != 0 => {
                    let what = nix::errno::Errno::from_raw(errno).desc();
                    return Err(Failure::new(20, format!("received netlink error reply: {what}")));
                }
                Incoming::Message(message) => match text(&message)? {
                    Some(text) if text.is_empty() => {}
                    Some(text) => print_now(&text)?,
                    None => return Ok(0),
                },
                _ => {}
            }
        }
    }
}

// ---- the older form

pub fn events(call: &Call) -> Result<i32, Failure> {
    let mut connection = Connection::open()?;
    connection.subscribe()?;
    let wanted_minor = call.minor;
    let wanted_name = if wanted_minor.is_some() { None } else { call.resource_filter().map(str::to_owned) };
    match wanted_minor {
        Some(minor) => {
            let header = DrbdHeader { minor, flags_or_ret: 0 };
            let reply = connection.request(Command::GetStatus, header, 0, &[])?;
            print_now(&old_lines(&reply)?)?;
        }
        None => {
            let header = DrbdHeader { minor: MINOR_NONE, flags_or_ret: 0 };
            connection.start_dump(Command::GetStatus, header, &[])?;
        }
    }
    listen(&mut connection, |message| {
        let is_event = [Command::Event, Command::GetStatus].iter().any(|command| command.number() == message.command);
        let is_wanted = wanted_minor.is_none_or(|minor| minor == message.header.minor)
            && match &wanted_name {
                Some(name) => Item::read(message)?.name() == *name,
                None => true,
            };
        if is_event && is_wanted {
            old_lines(message).map(Some)
        } else {
            Ok(Some(String::new()))
        }
    })
}

/// The lines for one message.
fn old_lines(message: &Message) -> Result<String, Failure> {
    if message.header.flags_or_ret != RetCode::NoError.number() {
        return Ok(format!("{} # result {}\n", message.sequence, message.header.flags_or_ret));
    }
    let item = Item::read(message)?;
    let sequence = message.sequence;
    let Some(info) = item.info else {
        if let Some(reply) = nest::<CfgReply>(message)?.and_then(|reply| reply.info_text) {
            let text = String::from_utf8_lossy(reply.as_bytes()).replace('\n', "_");
            return Ok(format!("{sequence} # {text}\n"));
        }
        return Ok(format!("{sequence} R - {}\n", item.name()));
    };
    let place = format!("{},{}[{}]", item.minor, item.name(), item.context.ctx_volume.unwrap_or(0));
    let state = |word: &str, number: u32| -> Result<String, Failure> {
        Ok(format!("{sequence} {word} {place} {{ {} }}\n", state_text(number)?))
    };
    let helper = info.helper.map_or(String::new(), |helper| String::from_utf8_lossy(helper.as_bytes()).into_owned());
    match info.sib_reason {
        SibReason::Status => state("ST", info.current_state),
        SibReason::StateChange => {
            let mut text = String::new();
            if let (Some(previous), Some(new)) = (info.prev_state, info.new_state) {
                text += &state("ST-prev", previous)?;
                text += &state("ST-new", new)?;
            }
            Ok(text + &state("ST", info.current_state)?)
        }
        SibReason::HelperPre => Ok(format!("{sequence} UH {place} {helper}\n")),
        SibReason::HelperPost => {
            Ok(format!("{sequence} UH-post {place} {helper} 0x{:04x}\n", info.helper_exit_code.unwrap_or(0)))
        }
        SibReason::SyncProgress => {
            Ok(format!("{sequence} SP {place} {}\n", resynced_percent(&info).unwrap_or_else(|| "0.0".to_owned())))
        }
    }
}

fn state_text(word: u32) -> Result<String, Failure> {
    let (state, susp) = state_of(word)?;
    let flag = |set: bool, letter: char| if set { letter } else { '-' };
    Ok(format!(
        "cs:{} ro:{}/{} ds:{}/{} {}{}{}{}",
        state.conn,
        state.role,
        state.peer,
        state.disk,
        state.pdsk,
        if susp.any() { 's' } else { 'r' },
        flag(state.aftr_isp, 'a'),
        flag(state.peer_isp, 'p'),
        flag(state.user_isp, 'u'),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::netlink::{AttrWriter, Bytes, Direction, Nest, Redact, StateInfo};

    fn message(command: Command, minor: u32, sequence: u32, write: impl FnOnce(&mut AttrWriter<'_>)) -> Message {
        let mut buffer = vec![0; 4096];
        let mut writer = AttrWriter::new(&mut buffer, Direction::Reply);
        write(&mut writer);
        let attributes = writer.as_bytes().to_vec();
        Message { sequence, command: command.number(), header: DrbdHeader { minor, flags_or_ret: 101 }, attributes }
    }

    fn put(writer: &mut AttrWriter<'_>, nest: &impl Nest) {
        nest.emit(writer, Redact::Nothing).unwrap();
    }

    fn context(volume: Option<u32>, peer: bool) -> CfgContext {
        let address = peer.then(|| Bytes::from_bytes(&[1; 16]).unwrap());
        CfgContext { ctx_volume: volume, ctx_peer_addr: address, ..named("r0").unwrap() }
    }

    fn header(kind: NotificationType) -> NotificationHeader {
        NotificationHeader { nh_type: kind.as_u32() }
    }

    fn resource(kind: NotificationType, sequence: u32, role: u32) -> Message {
        message(Command::ResourceState, MINOR_NONE, sequence, |w| {
            put(w, &context(None, false));
            put(w, &header(kind));
            put(w, &ResourceInfo { res_role: role, ..ResourceInfo::default() });
        })
    }

    #[test]
    fn lines_of_the_specification() {
        let mut printer = Printer::default();
        let mut line = |message: &Message| printer.line(message).unwrap().unwrap();
        assert_eq!(
            line(&resource(NotificationType::Exists, 1, 2)),
            "exists resource name:r0 role:Secondary suspended:no\n"
        );
        let connection = message(Command::ConnectionState, MINOR_NONE, 1, |w| {
            put(w, &context(None, true));
            put(w, &header(NotificationType::Exists));
            put(w, &ConnectionInfo { conn_connection_state: 9, conn_role: 2 });
        });
        assert_eq!(
            line(&connection),
            "exists connection name:r0 peer-node-id:0 conn-name:peer connection:Connected role:Secondary\n"
        );
        let peer_device = message(Command::PeerDeviceState, 0, 1, |w| {
            put(w, &context(Some(0), true));
            put(w, &header(NotificationType::Exists));
            put(w, &PeerDeviceInfo { peer_repl_state: 10, peer_disk_state: 8, ..PeerDeviceInfo::default() });
        });
        assert_eq!(
            line(&peer_device),
            "exists peer-device name:r0 peer-node-id:0 conn-name:peer volume:0 minor:0 replication:Established \
             peer-disk:UpToDate resync-suspended:no\n"
        );
        let done = message(Command::InitialStateDone, MINOR_NONE, 1, |w| put(w, &header(NotificationType::Exists)));
        assert_eq!(line(&done), "exists -\n");
    }

    #[test]
    fn only_news_is_printed() {
        let mut printer = Printer::default();
        let mut line = |message: &Message| printer.line(message).unwrap().unwrap();
        line(&resource(NotificationType::Exists, 1, 2));
        assert_eq!(line(&resource(NotificationType::Change, 10, 1)), "change resource name:r0 role:Primary\n");
        assert_eq!(line(&resource(NotificationType::Change, 11, 1)), "");
        assert_eq!(
            line(&resource(NotificationType::Change, 14, 2)),
            "- skipped 2\nchange resource name:r0 role:Secondary\n"
        );
        assert_eq!(line(&resource(NotificationType::Destroy, 15, 2)), "destroy resource name:r0\n");
        assert_eq!(
            line(&resource(NotificationType::Create, 16, 2)),
            "create resource name:r0 role:Secondary suspended:no\n"
        );
    }

    #[test]
    fn other_resources_are_left_out() {
        let mut printer = Printer { wanted: Some("r1".into()), ..Printer::default() };
        assert_eq!(printer.line(&resource(NotificationType::Exists, 1, 2)).unwrap().unwrap(), "");
    }

    #[test]
    fn helpers_are_not_suppressed() {
        let mut printer = Printer::default();
        let helper = |kind, status| {
            message(Command::Helper, 0, 1, |w| {
                put(w, &context(Some(0), true));
                put(w, &header(kind));
                let helper_name = engine::netlink::Text::from_bytes(b"before-resync-target").unwrap();
                put(w, &Helper { helper_name, helper_status: status });
            })
        };
        let key = "helper name:r0 peer-node-id:0 conn-name:peer volume:0 minor:0 helper:before-resync-target";
        assert_eq!(printer.line(&helper(NotificationType::Call, 0)).unwrap().unwrap(), format!("call {key}\n"));
        printer.last_sequence = None;
        assert_eq!(
            printer.line(&helper(NotificationType::Response, 256)).unwrap().unwrap(),
            format!("response {key} status:256\n")
        );
    }

    #[test]
    fn the_older_lines() {
        let event = |info: StateInfo| {
            message(Command::Event, 0, 7, |w| {
                put(w, &context(Some(0), false));
                put(w, &info);
            })
        };
        let base = StateInfo { current_state: 0x0001_0002, ..StateInfo::default() };
        let text = old_lines(&event(base)).unwrap();
        assert!(text.starts_with("7 ST 0,r0[0] { cs:StandAlone ro:Secondary/Unknown ds:"), "{text}");
        let change = StateInfo {
            sib_reason: SibReason::StateChange,
            prev_state: Some(2),
            new_state: Some(2 | (1 << 17)),
            ..base
        };
        let text = old_lines(&event(change)).unwrap();
        assert_eq!(
            text.lines().map(|line| line.split(' ').nth(1).unwrap()).collect::<Vec<_>>(),
            ["ST-prev", "ST-new", "ST"]
        );
        assert!(text.lines().nth(1).unwrap().ends_with("s--- }"));
        let name = engine::netlink::Text::from_bytes(b"pri-lost").unwrap();
        let post =
            StateInfo { sib_reason: SibReason::HelperPost, helper: Some(name), helper_exit_code: Some(256), ..base };
        assert_eq!(old_lines(&event(post)).unwrap(), "7 UH-post 0,r0[0] pri-lost 0x0100\n");
    }
}
