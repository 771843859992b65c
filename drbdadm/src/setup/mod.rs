// SPDX-License-Identifier: GPL-2.0
//! `drbdsetup`: one request to the kernel a command.
//!
//! spec: commands 3, netlink 11.3

pub mod address;
mod change;
mod events;
pub mod genl;
mod query;
mod show;
mod status;
mod wait;

pub use change::{minor_link, resource_link};

use crate::failure::Failure;
use crate::getopt::{self, Item, OptionSpec, Value};
use crate::minor_lock::MinorLock;
use crate::options::{in_order, parse_value, words_of, NestSpec, OwnedValue};
use crate::proc_drbd;
use engine::netlink::{
    DetachParms, DisconnectParms, DiskConf, FieldKind, FieldSpec, NetConf, NewCUuidParms, ResizeParms, ResourceOpts,
    SetRoleParms, StartOvParms,
};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::time::Duration;

/// Block major of the devices.
const MAJOR: u64 = 147;

/// What the first word after the command names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Object {
    /// A minor number or a device.
    Minor,
    /// A resource.
    Resource,
    /// The two addresses of a connection.
    Connection,
    /// A resource, or all of them.
    ResourceOrAll,
    /// A minor, a resource, or all of them.
    Any,
}

impl Object {
    fn words(self) -> &'static [&'static str] {
        match self {
            Object::Minor => &["{minor}"],
            Object::Resource => &["{resource}"],
            Object::Connection => &["{local_addr}", "{remote_addr}"],
            Object::ResourceOrAll => &["[{resource}|all]"],
            Object::Any => &["[{minor}|{resource}|all]"],
        }
    }

    fn is_optional(self) -> bool {
        matches!(self, Object::ResourceOrAll | Object::Any)
    }
}

/// Which fields of a nest a command offers as options.
#[derive(Clone, Copy, Debug)]
struct Offer {
    nest: NestSpec,
    /// Also those that cannot be changed later.
    invariant: bool,
    /// `--set-defaults` too.
    set_defaults: bool,
}

const fn offer(nest: NestSpec) -> Option<Offer> {
    Some(Offer { nest, invariant: true, set_defaults: false })
}

const fn offer_changeable(nest: NestSpec) -> Option<Offer> {
    Some(Offer { nest, invariant: false, set_defaults: true })
}

/// One command.
#[derive(Clone, Copy)]
struct CommandRow {
    name: &'static str,
    object: Object,
    arguments: &'static [&'static str],
    offer: Option<Offer>,
    /// Options that are not attributes.
    own_options: &'static [OptionSpec],
    /// Other tools must not work on the minor at the same time.
    locks: bool,
    run: fn(&Call) -> Result<i32, Failure>,
}

const NO_OPTIONS: &[OptionSpec] = &[];
const WAIT_OPTIONS: &[OptionSpec] = &[
    OptionSpec::both("wfc-timeout", 't', Value::Required),
    OptionSpec::both("degr-wfc-timeout", 'd', Value::Required),
    OptionSpec::both("outdated-wfc-timeout", 'o', Value::Required),
    OptionSpec::both("wait-after-sb", 'w', Value::Optional),
];
const SHOW_OPTIONS: &[OptionSpec] = &[OptionSpec::both("show-defaults", 'D', Value::None)];
const STATUS_OPTIONS: &[OptionSpec] = &[
    OptionSpec::both("verbose", 'v', Value::None),
    OptionSpec::both("statistics", 's', Value::None),
    OptionSpec::both("color", 'c', Value::Optional),
];
const EVENTS2_OPTIONS: &[OptionSpec] = &[
    OptionSpec::both("timestamps", 'T', Value::None),
    OptionSpec::both("statistics", 's', Value::None),
    OptionSpec::both("now", 'n', Value::None),
];
/// Short forms of 8.3 that scripts and tutorials still type. spec: commands 8
const FORCE_SHORT: &[(&str, char)] = &[("force", 'f'), ("overwrite-data-of-peer", 'o')];

const fn row(
    name: &'static str,
    object: Object,
    arguments: &'static [&'static str],
    offer: Option<Offer>,
    run: fn(&Call) -> Result<i32, Failure>,
) -> CommandRow {
    CommandRow { name, object, arguments, offer, own_options: NO_OPTIONS, locks: true, run }
}

const fn reading(
    name: &'static str,
    object: Object,
    own_options: &'static [OptionSpec],
    run: fn(&Call) -> Result<i32, Failure>,
) -> CommandRow {
    CommandRow { name, object, arguments: &[], offer: None, own_options, locks: false, run }
}

const COMMANDS: &[CommandRow] = {
    use Object::{Any, Connection, Minor, Resource, ResourceOrAll};
    &[
        row("new-resource", Resource, &[], offer(NestSpec::of::<ResourceOpts>()), change::new_resource),
        row("new-minor", Resource, &["minor", "volume"], None, change::new_minor),
        row("del-minor", Minor, &[], None, change::del_minor),
        row("del-resource", Resource, &[], None, change::del_resource),
        row(
            "attach",
            Minor,
            &["lower_dev", "meta_data_dev", "meta_data_index"],
            offer(NestSpec::of::<DiskConf>()),
            change::attach,
        ),
        row("disk-options", Minor, &[], offer_changeable(NestSpec::of::<DiskConf>()), change::disk_options),
        row("detach", Minor, &[], offer(NestSpec::of::<DetachParms>()), change::detach),
        row("connect", Resource, &["local_addr", "remote_addr"], offer(NestSpec::of::<NetConf>()), change::connect),
        row("net-options", Connection, &[], offer_changeable(NestSpec::of::<NetConf>()), change::net_options),
        row("disconnect", Connection, &[], offer(NestSpec::of::<DisconnectParms>()), change::disconnect),
        row(
            "resource-options",
            Resource,
            &[],
            offer_changeable(NestSpec::of::<ResourceOpts>()),
            change::resource_options,
        ),
        row("primary", Minor, &[], offer(NestSpec::of::<SetRoleParms>()), change::primary),
        row("secondary", Minor, &[], None, change::secondary),
        row("resize", Minor, &[], offer(NestSpec::of::<ResizeParms>()), change::resize),
        row("verify", Minor, &[], offer(NestSpec::of::<StartOvParms>()), change::verify),
        row("new-current-uuid", Minor, &[], offer(NestSpec::of::<NewCUuidParms>()), change::new_current_uuid),
        row("invalidate", Minor, &[], None, change::invalidate),
        row("invalidate-remote", Minor, &[], None, change::invalidate_remote),
        row("pause-sync", Minor, &[], None, change::pause_sync),
        row("resume-sync", Minor, &[], None, change::resume_sync),
        row("suspend-io", Minor, &[], None, change::suspend_io),
        row("resume-io", Minor, &[], None, change::resume_io),
        row("outdate", Minor, &[], None, change::outdate),
        row("down", Resource, &[], None, change::down),
        reading("role", Minor, NO_OPTIONS, query::role),
        reading("state", Minor, NO_OPTIONS, query::role),
        reading("cstate", Minor, NO_OPTIONS, query::connection_state),
        reading("dstate", Minor, NO_OPTIONS, query::disk_state),
        reading("show-gi", Minor, NO_OPTIONS, query::show_gi),
        reading("get-gi", Minor, NO_OPTIONS, query::get_gi),
        reading("check-resize", Minor, NO_OPTIONS, query::check_resize),
        reading("sh-status", Any, NO_OPTIONS, query::sh_status),
        reading("show", Any, SHOW_OPTIONS, show::show),
        reading("status", ResourceOrAll, STATUS_OPTIONS, status::status),
        reading("events", Any, NO_OPTIONS, events::events),
        reading("events2", ResourceOrAll, EVENTS2_OPTIONS, events::events2),
        reading("wait-connect", Minor, WAIT_OPTIONS, wait::wait_connect),
        reading("wait-sync", Minor, WAIT_OPTIONS, wait::wait_sync),
    ]
};

impl CommandRow {
    /// The attributes offered as options, in the order they are shown.
    fn fields(&self) -> Vec<&'static FieldSpec> {
        let Some(offer) = self.offer else { return Vec::new() };
        let addresses = |field: &FieldSpec| matches!(field.kind, FieldKind::Binary { .. });
        let offered = |field: &&FieldSpec| offer.invariant || !(field.marks.invariant || addresses(field));
        in_order(offer.nest).into_iter().filter(offered).collect()
    }

    fn option_specs(&self) -> Vec<OptionSpec> {
        let mut specs = self.own_options.to_vec();
        for field in self.fields() {
            let Some(option) = field.option else { continue };
            let value = if field.kind == FieldKind::Bool { Value::Optional } else { Value::Required };
            for long in std::iter::once(option.name).chain(option.aliases.iter().copied()) {
                let short = FORCE_SHORT.iter().find(|(name, _)| self.name == "primary" && *name == long);
                specs.push(OptionSpec { long, short: short.map(|(_, letter)| *letter), value });
            }
        }
        if self.offer.is_some_and(|offer| offer.set_defaults) {
            specs.push(OptionSpec::long("set-defaults", Value::None));
        }
        specs
    }
}

/// The command line, understood.
struct Call {
    row: &'static CommandRow,
    /// The object as it was typed; empty for all.
    object: String,
    /// The minor, for objects that are one.
    minor: Option<u32>,
    /// The second address and the arguments.
    arguments: Vec<String>,
    /// Options that are attributes.
    values: Vec<(&'static FieldSpec, OwnedValue)>,
    /// Options that are not.
    own: Vec<(&'static str, Option<String>)>,
    set_defaults: bool,
}

impl Call {
    /// Was this option given?
    fn has(&self, name: &str) -> bool {
        self.own.iter().any(|(option, _)| *option == name)
    }

    /// The value of an option that is not an attribute; the last one counts.
    fn own_value(&self, name: &str) -> Option<Option<&str>> {
        self.own.iter().rev().find(|(option, _)| *option == name).map(|(_, value)| value.as_deref())
    }

    /// The name of a resource to ask for; `None` for all.
    fn resource_filter(&self) -> Option<&str> {
        Some(self.object.as_str()).filter(|name| !name.is_empty())
    }
}

/// The options of a command that drbdadm takes, too; not the second names some of them have.
pub fn options_of(command: &str) -> Vec<OptionSpec> {
    let Some(row) = COMMANDS.iter().find(|row| row.name == command) else { return Vec::new() };
    let names: Vec<_> = row.fields().iter().filter_map(|field| field.option).map(|option| option.name).collect();
    let offered = |spec: &OptionSpec| names.contains(&spec.long) || spec.long == "set-defaults";
    row.option_specs().into_iter().filter(offered).map(|spec| OptionSpec { short: None, ..spec }).collect()
}

/// Runs `drbdsetup` with the words after the program name; gives the exit code.
pub fn main(program: &str, words: &[String]) -> i32 {
    // Nothing keeps a file system busy because a tool was started in it.
    let _ = std::env::set_current_dir("/");
    let base = program.rsplit('/').next().unwrap_or(program);
    run(base, words).unwrap_or_else(Failure::report)
}

fn run(program: &str, words: &[String]) -> Result<i32, Failure> {
    let mut words = words.to_vec();
    if let Some(code) = help(program, &words) {
        return Ok(code);
    }
    let is_command = |word: Option<&String>| word.is_some_and(|word| COMMANDS.iter().any(|row| row.name == word));
    if !is_command(words.first()) && is_command(words.get(1)) {
        words.swap(0, 1);
    }
    let Some(row) = words.first().and_then(|word| COMMANDS.iter().find(|row| row.name == word)) else {
        print!("{}", general_usage(program));
        let text = words.first().map_or(String::new(), |word| format!("{program}: invalid command '{word}'"));
        return Err(Failure::new(20, text));
    };
    if row.name == "state" {
        eprintln!("'{program} state' is deprecated, use '{program} role' instead.");
    }
    require_module()?;
    let call = read_call(program, row, &words[1..])?;
    let _lock = match call.minor {
        Some(minor) if row.locks => Some(MinorLock::take(minor)?),
        _ => None,
    };
    (row.run)(&call)
}

/// Answers a request for help; `None` if none was made.
fn help(program: &str, words: &[String]) -> Option<i32> {
    let first = words.first().map(String::as_str);
    let wants = words.iter().take_while(|word| *word != "--").any(|word| word == "--help" || word == "-h");
    if first == Some("xml-help") {
        let row = words.get(1).and_then(|word| COMMANDS.iter().find(|row| row.name == word));
        return Some(row.map_or(20, |row| {
            print!("{}", xml_help(row));
            0
        }));
    }
    if !wants && first != Some("help") {
        return None;
    }
    let named = words.iter().find_map(|word| COMMANDS.iter().find(|row| row.name == word));
    match named {
        Some(row) => {
            print!("{}", usage(program, row));
            Some(0)
        }
        None => {
            print!("{}", general_usage(program));
            Some(20)
        }
    }
}

fn general_usage(program: &str) -> String {
    let mut text = format!("\nUSAGE: {program} command {{object}} [arguments] [options]\n\nCommands:\n");
    for names in COMMANDS.chunks(4) {
        let line: String = names.iter().map(|row| format!(" {:<19}", row.name)).collect();
        text += &format!("{}\n", line.trim_end());
    }
    text + &format!("\n\"{program} help COMMAND\" tells more about a command.\n")
}

fn usage(program: &str, row: &CommandRow) -> String {
    let mut parts: Vec<String> = row.object.words().iter().map(|word| (*word).to_owned()).collect();
    parts.extend(row.arguments.iter().map(|argument| format!("{{{argument}}}")));
    for field in row.fields() {
        let Some(option) = field.option else { continue };
        let range = field.range.map(|(min, max)| format!("({min} ... {max})"));
        let value = match field.kind {
            FieldKind::Bool => "{yes|no}".to_owned(),
            FieldKind::Words(_) => format!("{{{}}}", words_of(field).join("|")),
            FieldKind::Text { .. } | FieldKind::Binary { .. } => "<str>".to_owned(),
            _ => range.unwrap_or_else(|| "<num>".to_owned()),
        };
        parts.push(format!("[--{}={value}]", option.name));
    }
    for spec in row.own_options {
        let value = match spec.value {
            Value::None => "",
            Value::Optional => "[=...]",
            Value::Required => "=...",
        };
        parts.push(format!("[--{}{value}]", spec.long));
    }
    if row.offer.is_some_and(|offer| offer.set_defaults) {
        parts.push("[--set-defaults]".to_owned());
    }
    let mut text = String::from("\nUSAGE:\n");
    let mut line = format!(" {program} {}", row.name);
    for part in parts {
        if line.len() + 1 + part.len() > status::terminal_width() {
            text += &format!("{line}\n");
            line = "   ".to_owned();
        }
        line += &format!(" {part}");
    }
    text + &line + "\n"
}

fn xml_help(row: &CommandRow) -> String {
    let mut text = format!("<command name=\"{}\">\n", row.name);
    for argument in
        row.object.words().iter().map(|word| word.trim_matches(['{', '}'])).chain(row.arguments.iter().copied())
    {
        text += &format!("\t<argument>{argument}</argument>\n");
    }
    for field in row.fields() {
        let Some(option) = field.option else { continue };
        let kind = match field.kind {
            FieldKind::Bool => "boolean",
            FieldKind::Words(_) => "handler",
            FieldKind::Text { .. } | FieldKind::Binary { .. } => "string",
            _ => "numeric",
        };
        text += &format!("\t<option name=\"{}\" type=\"{kind}\">\n", option.name);
        for word in words_of(field) {
            text += &format!("\t\t<handler>{word}</handler>\n");
        }
        if let (Some((min, max)), "numeric") = (field.range, kind) {
            text += &format!("\t\t<min>{min}</min>\n\t\t<max>{max}</max>\n");
        }
        let default = field.default().filter(|_| matches!(kind, "numeric" | "boolean"));
        if let Some(default) = default {
            let shown = match default {
                engine::netlink::Value::Bool(value) => if value { "yes" } else { "no" }.to_owned(),
                value => value.as_number().map_or(String::new(), |number| number.to_string()),
            };
            text += &format!("\t\t<default>{shown}</default>\n");
        }
        if kind == "numeric" {
            let prefix = field.scale.prefix().unwrap_or('1');
            text += &format!("\t\t<unit_prefix>{prefix}</unit_prefix>\n");
            text += &field.scale.unit().map_or(String::new(), |unit| format!("\t\t<unit>{unit}</unit>\n"));
        }
        text += "\t</option>\n";
    }
    text + "</command>\n"
}

/// Loads the module if it is not there.
// spec: netlink 11.3
fn require_module() -> Result<(), Failure> {
    if proc_drbd::is_loaded() {
        return Ok(());
    }
    // A failure shows in the file not appearing.
    let _ = std::process::Command::new("/sbin/modprobe").arg("drbd").status();
    for _ in 0..11 {
        if proc_drbd::is_loaded() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(Failure::new(20, "The module is not loaded, and 'modprobe drbd' did not help:\n/proc/drbd does not exist."))
}

fn read_call(program: &str, row: &'static CommandRow, words: &[String]) -> Result<Call, Failure> {
    let wrong = |text: String| {
        print!("{}", usage(program, row));
        Failure::new(20, format!("{program}: {text}"))
    };
    let items = getopt::parse(&row.option_specs(), words).map_err(wrong)?;
    let mut call = Call {
        row,
        object: String::new(),
        minor: None,
        arguments: Vec::new(),
        values: Vec::new(),
        own: Vec::new(),
        set_defaults: false,
    };
    let mut positional = Vec::new();
    for item in items {
        match item {
            Item::Option("set-defaults", _) => call.set_defaults = true,
            Item::Option(name, value) => read_option(&mut call, name, value)?,
            Item::Word(word) | Item::Literal(word) => positional.push(word),
        }
    }
    let needed = row.object.words().len() + row.arguments.len();
    if positional.len() < needed && !row.object.is_optional() {
        return Err(wrong(format!("{} needs {needed} arguments, {} were given", row.name, positional.len())));
    }
    if positional.len() > needed {
        return Err(wrong(format!("'{}' is one argument too many", positional[needed])));
    }
    let mut positional = positional.into_iter();
    call.object = positional.next().filter(|word| !(row.object.is_optional() && word == "all")).unwrap_or_default();
    call.arguments = positional.collect();
    call.minor = match row.object {
        Object::Minor => Some(minor_of(&call.object).ok_or_else(|| {
            Failure::new(20, format!("Cannot determine minor device number of device '{}'", call.object))
        })?),
        Object::Any => minor_of(&call.object),
        _ => None,
    };
    Ok(call)
}

fn read_option(call: &mut Call, name: &'static str, value: Option<String>) -> Result<(), Failure> {
    let Some(field) = call.row.fields().into_iter().find(|field| field.is_option(name)) else {
        call.own.push((name, value));
        return Ok(());
    };
    // A switch without a value is switched on.
    let text = value.unwrap_or_else(|| "yes".to_owned());
    let bad = |why: String| Failure::new(20, format!("Option --{name}: invalid argument '{text}'\n{why}"));
    let value = match field.kind {
        FieldKind::Binary { .. } => OwnedValue::Binary(address::parse(&text)?),
        _ => parse_value(field, &text).map_err(bad)?,
    };
    call.values.push((field, value));
    Ok(())
}

/// A number, a device name, or a block device with our major number.
// spec: commands 3.1
fn minor_of(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("/dev/drbd").unwrap_or(text);
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if is_number {
        return digits.parse().ok().filter(|minor| *minor <= engine::netlink::MINOR_MAX);
    }
    let node = std::fs::metadata(text).ok().filter(|node| node.file_type().is_block_device())?;
    let (major, minor) = (nix::sys::stat::major(node.rdev()), nix::sys::stat::minor(node.rdev()));
    (major == MAJOR).then(|| u32::try_from(minor).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(words: &[&str]) -> Result<Call, Failure> {
        let row = COMMANDS.iter().find(|row| row.name == words[0]).unwrap();
        let words: Vec<_> = words[1..].iter().map(|word| (*word).to_owned()).collect();
        read_call("drbdsetup", row, &words)
    }

    fn values(call: &Call) -> Vec<(&'static str, OwnedValue)> {
        call.values.iter().map(|(field, value)| (field.name, value.clone())).collect()
    }

    #[test]
    fn options_become_attributes() {
        let attach =
            call(&["attach", "/dev/drbd4", "/dev/sda", "/dev/sda", "internal", "--resync-rate=10M", "--no", "x"]);
        assert_eq!(attach.err().unwrap().code, 20);
        let attach = call(&[
            "attach",
            "/dev/drbd4",
            "/dev/sda",
            "/dev/sdb",
            "3",
            "--resync-rate=10M",
            "--disk-flushes=no",
            "--md-flushes",
        ])
        .unwrap();
        assert_eq!(attach.minor, Some(4));
        assert_eq!(attach.arguments, ["/dev/sda", "/dev/sdb", "3"]);
        let expected = [
            ("resync_rate", OwnedValue::U32(10240)),
            ("disk_flushes", OwnedValue::Bool(false)),
            ("md_flushes", OwnedValue::Bool(true)),
        ];
        assert_eq!(values(&attach), expected);
    }

    #[test]
    fn the_forms_of_force() {
        for option in ["-o", "-f", "--force", "--overwrite-data-of-peer", "--force=yes"] {
            let call = call(&["primary", "0", option]).unwrap();
            assert_eq!(values(&call), [("assume_uptodate", OwnedValue::Bool(true))], "{option}");
        }
    }

    #[test]
    fn refused_calls() {
        for words in [
            &["primary", "r0"][..],
            &["primary"],
            &["primary", "0", "1"],
            &["primary", "0", "--nope"],
            &["secondary", "0", "--force"],
            &["disk-options", "0", "--size=1"],
            &["disk-options", "0", "--on-io-error=ignore"],
            &["net-options", "1.2.3.4", "1.2.3.5", "--discard-my-data"],
            &["new-minor", "r0", "0"],
            &["role", "1048576"],
        ] {
            assert_eq!(call(words).err().unwrap().code, 20, "{words:?}");
        }
    }

    #[test]
    fn objects_may_be_left_out() {
        assert_eq!(call(&["show"]).unwrap().object, "");
        assert_eq!(call(&["status", "all"]).unwrap().resource_filter(), None);
        assert_eq!(call(&["show", "7"]).unwrap().minor, Some(7));
        assert_eq!(call(&["events2", "r0", "--now"]).unwrap().resource_filter(), Some("r0"));
    }
}
