// SPDX-License-Identifier: GPL-2.0
//! `status`: resources, volumes and connections for people.
//!
//! spec: commands 3.6

use super::change::{named, Attributes};
use super::genl::{Connection, Message};
use super::query::nest;
use super::Call;
use crate::failure::Failure;
use engine::netlink::{
    CfgContext, Command, ConnectionInfo, ConnectionStatistics, DeviceInfo, DeviceStatistics, PeerDeviceInfo,
    PeerDeviceStatistics, ResourceInfo, ResourceStatistics, RetCode,
};
use engine::state::{Conn, Disk, Role};
use std::io::IsTerminal;

/// Width of the terminal on standard output; 80 if there is none.
pub fn terminal_width() -> usize {
    terminal_size::terminal_size_of(std::io::stdout()).map_or(80, |(width, _)| usize::from(width.0).max(20))
}

/// One resource with what belongs to it.
#[derive(Clone, Debug, Default)]
pub struct Resource {
    name: String,
    info: ResourceInfo,
    statistics: ResourceStatistics,
    devices: Vec<Device>,
    connections: Vec<(ConnectionInfo, ConnectionStatistics)>,
    peer_devices: Vec<(u32, PeerDeviceInfo, PeerDeviceStatistics)>,
}

#[derive(Clone, Debug)]
struct Device {
    volume: u32,
    minor: u32,
    info: DeviceInfo,
    statistics: DeviceStatistics,
}

/// How it is shown.
#[derive(Clone, Copy, Debug, Default)]
struct Style {
    verbose: bool,
    statistics: bool,
    colours: bool,
    width: usize,
}

pub fn status(call: &Call) -> Result<i32, Failure> {
    let colours = match call.own_value("color") {
        None | Some(Some("auto")) => std::io::stdout().is_terminal(),
        Some(None | Some("always")) => true,
        Some(Some("never")) => false,
        Some(Some(other)) => {
            return Err(Failure::new(
                20,
                format!("Option --color: invalid argument '{other}'\nexpected always, never or auto"),
            ))
        }
    };
    let style =
        Style { verbose: call.has("verbose"), statistics: call.has("statistics"), colours, width: terminal_width() };
    let mut connection = Connection::open()?;
    let mut resources = Vec::new();
    for message in dump(&mut connection, Command::GetResources, None)? {
        let context: CfgContext = nest(&message)?.unwrap_or_default();
        let name = context
            .ctx_resource_name
            .map_or(String::new(), |name| String::from_utf8_lossy(name.as_bytes()).into_owned());
        if call.resource_filter().is_none_or(|wanted| wanted == name) {
            resources.push(read_resource(&mut connection, name, &message)?);
        }
    }
    if let (true, Some(wanted)) = (resources.is_empty(), call.resource_filter()) {
        eprintln!("{wanted}: No such resource");
        return Ok(10);
    }
    resources.sort_by(|a, b| a.name.cmp(&b.name));
    for resource in &resources {
        print!("{}", resource.text(style));
    }
    Ok(0)
}

/// The entries of a list, of one resource or of all.
fn dump(connection: &mut Connection, command: Command, resource: Option<&str>) -> Result<Vec<Message>, Failure> {
    let attributes = match resource {
        Some(name) => Attributes::context(&named(name)?)?,
        None => Attributes::none(),
    };
    let mut messages = Vec::new();
    connection.dump(command, attributes.as_bytes(), |message| {
        // The kernel repeats this answer as long as somebody reads; the resource may have gone meanwhile.
        let known = message.header.flags_or_ret != RetCode::ResNotKnown.number();
        if known {
            messages.push(message.clone());
        }
        known
    })?;
    Ok(messages)
}

fn read_resource(connection: &mut Connection, name: String, message: &Message) -> Result<Resource, Failure> {
    let mut resource = Resource {
        info: nest(message)?.unwrap_or_default(),
        statistics: nest(message)?.unwrap_or_default(),
        ..Resource::default()
    };
    let volume_of = |message: &Message| -> Result<u32, Failure> {
        Ok(nest::<CfgContext>(message)?.unwrap_or_default().ctx_volume.unwrap_or(0))
    };
    for message in dump(connection, Command::GetDevices, Some(&name))? {
        resource.devices.push(Device {
            volume: volume_of(&message)?,
            minor: message.header.minor,
            info: nest(&message)?.unwrap_or_default(),
            statistics: nest(&message)?.unwrap_or_default(),
        });
    }
    for message in dump(connection, Command::GetConnections, Some(&name))? {
        resource.connections.push((nest(&message)?.unwrap_or_default(), nest(&message)?.unwrap_or_default()));
    }
    if !resource.devices.is_empty() && !resource.connections.is_empty() {
        for message in dump(connection, Command::GetPeerDevices, Some(&name))? {
            let volume = volume_of(&message)?;
            resource.peer_devices.push((
                volume,
                nest(&message)?.unwrap_or_default(),
                nest(&message)?.unwrap_or_default(),
            ));
        }
    }
    resource.name = name;
    Ok(resource)
}

/// What `status` and `events2` call the state of a connection.
// spec: commands 3.9
pub fn connection_word(number: u32) -> &'static str {
    match Conn::from_bits(number) {
        Some(Conn::WFConnection) => "Connecting",
        Some(Conn::WFReportParams) => "Connected",
        Some(state) => state.text(),
        None => "unknown",
    }
}

/// What `status` and `events2` call the replication state.
pub fn replication_word(number: u32) -> &'static str {
    match Conn::from_bits(number) {
        Some(Conn::WFReportParams) => "Off",
        Some(Conn::Connected) => "Established",
        Some(state) => state.text(),
        None => "unknown",
    }
}

/// A disk state.
pub fn disk_word(number: u32) -> &'static str {
    Disk::from_bits(number).map_or("unknown", Disk::text)
}

/// A role.
pub fn role_word(number: u32) -> &'static str {
    Role::from_bits(number).map_or("unknown", Role::text)
}

/// Why a resource's I/O is suspended; `no` if it is not.
pub fn suspended_words(info: &ResourceInfo) -> String {
    reasons(&[(info.res_susp, "user"), (info.res_susp_nod, "no-data"), (info.res_susp_fen, "fencing")])
}

/// Why a resync is suspended; `no` if it is not.
pub fn resync_suspended_words(info: &PeerDeviceInfo) -> String {
    reasons(&[
        (info.peer_resync_susp_user != 0, "user"),
        (info.peer_resync_susp_peer != 0, "peer"),
        (info.peer_resync_susp_dependency != 0, "dependency"),
    ])
}

/// Whose requests are blocked; `no` if nobody's are.
pub fn blocked_words(statistics: &DeviceStatistics) -> String {
    reasons(&[(statistics.dev_upper_blocked, "upper"), (statistics.dev_lower_blocked, "lower")])
}

fn reasons(all: &[(bool, &str)]) -> String {
    let words: Vec<_> = all.iter().filter(|(set, _)| *set).map(|(_, word)| *word).collect();
    if words.is_empty() {
        "no".to_owned()
    } else {
        words.join(",")
    }
}

/// How writes are ordered.
pub fn write_ordering_word(number: u32) -> &'static str {
    ["none", "drain", "flush", "barrier"].get(number as usize).copied().unwrap_or("unknown")
}

/// Fields of one object, broken into lines.
struct Lines {
    text: String,
    column: usize,
    indent: usize,
    width: usize,
}

impl Lines {
    fn new(indent: usize, continuation: usize, width: usize) -> Self {
        Lines { text: " ".repeat(indent), column: indent, indent: continuation, width }
    }

    /// Adds a field; `plain` is its text without colours.
    fn field(&mut self, plain: &str, shown: &str) {
        let at_start = self.text.ends_with(' ') || self.text.is_empty();
        if !at_start && self.column + 1 + plain.len() > self.width {
            self.line_break();
        }
        let blank = if self.text.ends_with(' ') || self.text.is_empty() { "" } else { " " };
        self.text += blank;
        self.text += shown;
        self.column += blank.len() + plain.len();
    }

    fn plain(&mut self, text: &str) {
        self.field(text, text);
    }

    fn line_break(&mut self) {
        self.text += "\n";
        self.text += &" ".repeat(self.indent);
        self.column = self.indent;
    }

    fn finish(self) -> String {
        self.text + "\n"
    }
}

const OWN_GOOD: &str = "1;32";
const OWN_BAD: &str = "1;31";

/// Colour codes of a value. spec: commands 3.6 (colours)
fn role_colour(word: &str, own: bool) -> Option<&'static str> {
    match (word, own) {
        ("Primary", true) => Some("1;36"),
        ("Primary", false) => Some("36"),
        _ => None,
    }
}

fn disk_colour(word: &str, own: bool) -> Option<&'static str> {
    match (word, own) {
        ("UpToDate", true) => Some(OWN_GOOD),
        ("UpToDate", false) => Some("32"),
        ("Diskless" | "Inconsistent" | "Outdated", true) => Some(OWN_BAD),
        ("Diskless" | "Inconsistent" | "Outdated", false) => Some("31"),
        (_, true) => Some("1"),
        (_, false) => None,
    }
}

fn connection_colour(word: &str) -> Option<&'static str> {
    match word {
        "Connected" => None,
        "StandAlone" | "Connecting" => Some(OWN_BAD),
        _ => Some("1"),
    }
}

fn replication_colour(word: &str) -> Option<&'static str> {
    match word {
        "Established" | "VerifyS" | "VerifyT" | "PausedSyncS" | "Ahead" => None,
        "SyncTarget" | "PausedSyncT" => Some(OWN_BAD),
        "SyncSource" => Some("31"),
        "Behind" => Some("1"),
        _ => None,
    }
}

impl Resource {
    fn text(&self, style: Style) -> String {
        let mut text = self.head(style);
        for device in &self.devices {
            text += &self.device(device, style);
        }
        for (info, statistics) in &self.connections {
            text += &self.connection(info, *statistics, style);
        }
        text + "\n"
    }

    /// A volume's number is left out when it is the only one and 0.
    fn shows_volume(&self, style: Style) -> bool {
        style.verbose || self.devices.len() != 1 || self.devices.iter().any(|device| device.volume != 0)
    }

    fn head(&self, style: Style) -> String {
        let mut lines = Lines::new(0, 4, style.width);
        lines.plain(&self.name);
        let role = role_word(self.info.res_role);
        coloured(&mut lines, style, "role", role, role_colour(role, true));
        let suspended = suspended_words(&self.info);
        if suspended != "no" || style.verbose {
            lines.plain(&format!("suspended:{suspended}"));
        }
        if style.statistics && style.verbose {
            lines.line_break();
            lines.plain(&format!("write-ordering:{}", write_ordering_word(self.statistics.res_stat_write_ordering)));
        }
        lines.finish()
    }

    fn device(&self, device: &Device, style: Style) -> String {
        let mut lines = Lines::new(2, 6, style.width);
        if self.shows_volume(style) {
            lines.plain(&format!("volume:{}", device.volume));
        }
        if style.verbose {
            lines.plain(&format!("minor:{}", device.minor));
        }
        let disk = disk_word(device.info.dev_disk_state);
        coloured(&mut lines, style, "disk", disk, disk_colour(disk, true));
        let statistics = &device.statistics;
        if style.statistics {
            lines.line_break();
            if style.verbose {
                lines.plain(&format!("size:{}", statistics.dev_size / 2));
            }
            lines.plain(&format!("read:{}", statistics.dev_read / 2));
            lines.plain(&format!("written:{}", statistics.dev_write / 2));
            if style.verbose {
                lines.plain(&format!("al-writes:{}", statistics.dev_al_writes));
                lines.plain(&format!("bm-writes:{}", statistics.dev_bm_writes));
                lines.plain(&format!("upper-pending:{}", statistics.dev_upper_pending));
                lines.plain(&format!("lower-pending:{}", statistics.dev_lower_pending));
                lines.plain(&format!("al-suspended:{}", yes_no(statistics.dev_al_suspended)));
            }
        }
        let blocked = blocked_words(statistics);
        if blocked != "no" || style.verbose {
            lines.plain(&format!("blocked:{blocked}"));
        }
        lines.finish()
    }

    fn connection(&self, info: &ConnectionInfo, statistics: ConnectionStatistics, style: Style) -> String {
        let connected = info.conn_connection_state >= Conn::WFReportParams.bits();
        let mut lines = Lines::new(2, 6, style.width);
        lines.plain("peer");
        if !connected || style.verbose {
            let word = connection_word(info.conn_connection_state);
            coloured(&mut lines, style, "connection", word, connection_colour(word));
        }
        if connected || style.verbose {
            let role = role_word(info.conn_role);
            coloured(&mut lines, style, "role", role, role_colour(role, false));
        }
        if statistics.conn_congested || style.verbose {
            lines.plain(&format!("congested:{}", yes_no(statistics.conn_congested)));
        }
        let mut text = lines.finish();
        if connected || style.verbose || style.statistics {
            for (volume, info, statistics) in &self.peer_devices {
                text += &self.peer_device(*volume, info, statistics, style);
            }
        }
        text
    }

    fn peer_device(
        &self,
        volume: u32,
        info: &PeerDeviceInfo,
        statistics: &PeerDeviceStatistics,
        style: Style,
    ) -> String {
        let mut lines = Lines::new(4, 8, style.width);
        if self.shows_volume(style) {
            lines.plain(&format!("volume:{volume}"));
        }
        let replication = replication_word(info.peer_repl_state);
        if info.peer_repl_state >= Conn::Connected.bits() || style.verbose {
            coloured(&mut lines, style, "replication", replication, replication_colour(replication));
        }
        let disk = disk_word(info.peer_disk_state);
        coloured(&mut lines, style, "peer-disk", disk, disk_colour(disk, false));
        let resyncing = (Conn::SyncSource.bits()..=Conn::PausedSyncT.bits()).contains(&info.peer_repl_state);
        if resyncing {
            let size = self
                .devices
                .iter()
                .find(|device| device.volume == volume)
                .map_or(0, |device| device.statistics.dev_size);
            lines.plain(&format!("done:{:.2}", percent_done(statistics.peer_dev_out_of_sync, size)));
        }
        let suspended = resync_suspended_words(info);
        if suspended != "no" || style.verbose {
            lines.plain(&format!("resync-suspended:{suspended}"));
        }
        if style.statistics {
            lines.line_break();
            lines.plain(&format!("received:{}", statistics.peer_dev_received / 2));
            lines.plain(&format!("sent:{}", statistics.peer_dev_sent / 2));
            if statistics.peer_dev_out_of_sync != 0 || style.verbose {
                lines.plain(&format!("out-of-sync:{}", statistics.peer_dev_out_of_sync / 2));
            }
            if style.verbose {
                lines.plain(&format!("pending:{}", statistics.peer_dev_pending));
                lines.plain(&format!("unacked:{}", statistics.peer_dev_unacked));
            }
        }
        lines.finish()
    }
}

fn percent_done(out_of_sync_sectors: u64, size_sectors: u64) -> f64 {
    if size_sectors == 0 {
        return 100.0;
    }
    100.0 * (1.0 - out_of_sync_sectors as f64 / size_sectors as f64)
}

/// `yes` or `no`.
pub fn yes_no(value: bool) -> &'static str {
    if value {
        "yes"
    } else {
        "no"
    }
}

fn coloured(lines: &mut Lines, style: Style, name: &str, word: &str, colour: Option<&str>) {
    let plain = format!("{name}:{word}");
    match colour.filter(|_| style.colours) {
        Some(code) => lines.field(&plain, &format!("{name}:\x1b[{code}m{word}\x1b[0m")),
        None => lines.plain(&plain),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy() -> Resource {
        Resource {
            name: "r0".into(),
            info: ResourceInfo { res_role: 1, ..ResourceInfo::default() },
            devices: vec![Device {
                volume: 0,
                minor: 0,
                info: DeviceInfo { dev_disk_state: 8 },
                statistics: DeviceStatistics { dev_size: 1000, dev_read: 8, ..DeviceStatistics::default() },
            }],
            connections: vec![(
                ConnectionInfo { conn_connection_state: 9, conn_role: 2 },
                ConnectionStatistics::default(),
            )],
            peer_devices: vec![(
                0,
                PeerDeviceInfo { peer_repl_state: 10, peer_disk_state: 8, ..PeerDeviceInfo::default() },
                PeerDeviceStatistics::default(),
            )],
            ..Resource::default()
        }
    }

    const STYLE: Style = Style { verbose: false, statistics: false, colours: false, width: 80 };

    #[test]
    fn a_healthy_resource() {
        let expected = "r0 role:Primary\n  disk:UpToDate\n  peer role:Secondary\n    replication:Established peer-disk:UpToDate\n\n";
        assert_eq!(healthy().text(STYLE), expected);
    }

    #[test]
    fn a_resync_and_a_lost_peer() {
        let mut resource = healthy();
        resource.peer_devices[0].1.peer_repl_state = Conn::SyncSource.bits();
        resource.peer_devices[0].2.peer_dev_out_of_sync = 250;
        assert!(resource.text(STYLE).contains("    replication:SyncSource peer-disk:UpToDate done:75.00\n"));
        resource.connections[0].0.conn_connection_state = Conn::WFConnection.bits();
        assert_eq!(resource.text(STYLE), "r0 role:Primary\n  disk:UpToDate\n  peer connection:Connecting\n\n");
    }

    #[test]
    fn everything_there_is_to_say() {
        let style = Style { verbose: true, statistics: true, ..STYLE };
        let expected = "r0 role:Primary suspended:no\n    write-ordering:none\n  volume:0 minor:0 disk:UpToDate\n      \
            size:500 read:4 written:0 al-writes:0 bm-writes:0 upper-pending:0\n      lower-pending:0 al-suspended:no blocked:no\n  \
            peer connection:Connected role:Secondary congested:no\n    volume:0 replication:Established peer-disk:UpToDate \
            resync-suspended:no\n        received:0 sent:0 out-of-sync:0 pending:0 unacked:0\n\n";
        assert_eq!(healthy().text(style), expected);
    }

    #[test]
    fn colours_stand_around_the_value() {
        let text = healthy().text(Style { colours: true, ..STYLE });
        assert!(text.starts_with("r0 role:\x1b[1;36mPrimary\x1b[0m\n  disk:\x1b[1;32mUpToDate\x1b[0m\n"));
    }
}
