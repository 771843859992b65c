// SPDX-License-Identifier: GPL-2.0
//! The options of configuration file and command line.
//!
//! Everything the kernel knows comes from the engine's attribute table: names, kinds, limits, words, defaults, units.
//! What only the tools know (startup, handlers, proxy, and the spelling of 8.3) is written down here.

use crate::units::{parse_number, Base};
use engine::netlink::{
    DiskConf, FieldKind, FieldSpec, Nest, NetConf, ResourceOpts, Value, DISK_OPTION_ORDER, NET_OPTION_ORDER,
};

/// One nest of attributes, without its Rust type.
#[derive(Clone, Copy, Debug)]
pub struct NestSpec {
    /// Top-level attribute number.
    pub number: u16,
    /// Its fields.
    pub fields: &'static [FieldSpec],
}

impl NestSpec {
    /// Of a type of the engine's table.
    pub const fn of<N: Nest>() -> Self {
        NestSpec { number: N::NUMBER, fields: N::FIELDS }
    }

    /// The field an option sets.
    pub fn option(&self, name: &str) -> Option<&'static FieldSpec> {
        self.fields.iter().find(|field| field.is_option(name))
    }
}

/// A value of a field that owns its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnedValue {
    /// Of a boolean.
    Bool(bool),
    /// Of a number of 32 bits or a word.
    U32(u32),
    /// Of a signed number.
    I32(i32),
    /// Of a number of 64 bits.
    U64(u64),
    /// Of a text.
    Text(Vec<u8>),
    /// Of raw bytes.
    Binary(Vec<u8>),
}

impl OwnedValue {
    /// The same as the engine sees it.
    pub fn as_value(&self) -> Value<'_> {
        match self {
            OwnedValue::Bool(value) => Value::Bool(*value),
            OwnedValue::U32(value) => Value::U32(*value),
            OwnedValue::I32(value) => Value::I32(*value),
            OwnedValue::U64(value) => Value::U64(*value),
            OwnedValue::Text(text) => Value::Text(text),
            OwnedValue::Binary(bytes) => Value::Binary(bytes),
        }
    }
}

/// `yes` or `no`.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

/// Reads the value of an option; the range is not looked at.
///
/// # Errors
/// What was expected.
pub fn parse_value(field: &FieldSpec, text: &str) -> Result<OwnedValue, String> {
    let base = Base::of_prefix(field.scale.prefix());
    let number = || parse_number(text, base).map_err(|error| error.to_string());
    match field.kind {
        FieldKind::Bool => parse_bool(text).map(OwnedValue::Bool).ok_or_else(|| "expected `yes` or `no`".to_owned()),
        FieldKind::U32 => u32::try_from(number()?).map(OwnedValue::U32).map_err(|_| "too large".to_owned()),
        FieldKind::I32 => {
            let value: i32 = text.parse().map_err(|_| "not a number".to_owned())?;
            Ok(OwnedValue::I32(value))
        }
        FieldKind::U64 => number().map(OwnedValue::U64),
        FieldKind::Text { capacity } if text.len() >= capacity => {
            Err(format!("{} characters, at most {} are possible", text.len(), capacity - 1))
        }
        FieldKind::Text { .. } => Ok(OwnedValue::Text(text.as_bytes().to_vec())),
        FieldKind::Binary { .. } => Err("not a value".to_owned()),
        FieldKind::Words(_) => {
            let found = field.number_of(text).or_else(|| field.number_of(&text.to_ascii_uppercase()));
            found.map(OwnedValue::U32).ok_or_else(|| format!("expected one of: {}", words_of(field).join(", ")))
        }
    }
}

/// Checks a number against the limits of its option.
///
/// # Errors
/// `out of range` with the limits.
pub fn check_range(field: &FieldSpec, value: &OwnedValue) -> Result<(), String> {
    let (Some((min, max)), Some(number)) = (field.range, value.as_value().as_number()) else { return Ok(()) };
    if (i128::from(min)..=i128::from(max)).contains(&number) {
        return Ok(());
    }
    let unit = field.scale.prefix().map_or(String::new(), String::from);
    Err(format!("{number}{unit} is out of range [{min}{unit}..{max}{unit}]"))
}

/// The words an enumeration offers.
pub fn words_of(field: &FieldSpec) -> Vec<&'static str> {
    field.words().iter().map(|word| word.word).collect()
}

/// The value as `show` prints it.
pub fn format_value(field: &FieldSpec, value: &Value<'_>) -> String {
    match value {
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Text(text) => quoted(&String::from_utf8_lossy(text)),
        Value::Binary(_) => String::new(),
        Value::U32(number) => match field.word_of(*number) {
            Some(word) => word.to_owned(),
            None => with_prefix(field, &number.to_string()),
        },
        Value::I32(number) => number.to_string(),
        Value::U64(number) => with_prefix(field, &number.to_string()),
    }
}

fn with_prefix(field: &FieldSpec, number: &str) -> String {
    field.scale.prefix().map_or(number.to_owned(), |prefix| format!("{number}{prefix}"))
}

/// In double quotes, with quotes and backslashes escaped.
pub fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// The fields of a nest in the order tools show them; those without an order come by number.
pub fn in_order(nest: NestSpec) -> Vec<&'static FieldSpec> {
    let order: &[u16] = match nest.number {
        DiskConf::NUMBER => DISK_OPTION_ORDER,
        NetConf::NUMBER => NET_OPTION_ORDER,
        _ => &[],
    };
    let place = |field: &FieldSpec| order.iter().position(|number| *number == field.number).unwrap_or(order.len());
    let mut fields: Vec<_> = nest.fields.iter().filter(|field| field.option.is_some()).collect();
    fields.sort_by_key(|field| (place(field), field.number));
    fields
}

// ---- the configuration file

/// Where an option stands in the file, or belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// `disk { }`.
    Disk,
    /// `net { }`.
    Net,
    /// `options { }`.
    Resource,
    /// `startup { }`.
    Startup,
    /// `handlers { }`.
    Handlers,
    /// `proxy { }`.
    Proxy,
    /// `syncer { }` of 8.3; its options belong elsewhere today.
    Syncer,
}

impl Section {
    /// The word that opens it.
    pub fn word(self) -> &'static str {
        match self {
            Section::Disk => "disk",
            Section::Net => "net",
            Section::Resource => "options",
            Section::Startup => "startup",
            Section::Handlers => "handlers",
            Section::Proxy => "proxy",
            Section::Syncer => "syncer",
        }
    }

    /// The attributes it sets.
    pub fn nest(self) -> Option<NestSpec> {
        match self {
            Section::Disk => Some(NestSpec::of::<DiskConf>()),
            Section::Net => Some(NestSpec::of::<NetConf>()),
            Section::Resource => Some(NestSpec::of::<ResourceOpts>()),
            _ => None,
        }
    }
}

/// What values an option of the file takes.
#[derive(Clone, Copy, Debug)]
enum ConfigKind {
    /// As the attribute table says.
    Field(&'static FieldSpec),
    /// A plain number with limits.
    Number(u64, u64),
    /// Nothing, `yes` or `no`.
    Switch,
    /// Any text.
    Text,
}

/// An option of the configuration file.
#[derive(Clone, Copy, Debug)]
pub struct ConfigOption {
    /// Name in today's spelling.
    pub name: &'static str,
    /// Where it belongs today.
    pub section: Section,
    /// Written as `no-NAME`.
    pub negated: bool,
    kind: ConfigKind,
}

/// Options of one attempt to connect; the kernel shows them among the others.
pub const ONCE: &[&str] = &["discard-my-data", "tentative"];
const NEGATABLE: &[&str] = &["disk-barrier", "disk-flushes", "disk-drain", "md-flushes", "tcp-cork"];
/// Longest waiting time at start-up, seconds.
pub const MAX_WAIT_S: u64 = 300_000;

const STARTUP: &[(&str, ConfigKind)] = &[
    ("wfc-timeout", ConfigKind::Number(0, MAX_WAIT_S)),
    ("degr-wfc-timeout", ConfigKind::Number(0, MAX_WAIT_S)),
    ("outdated-wfc-timeout", ConfigKind::Number(0, MAX_WAIT_S)),
    ("wait-after-sb", ConfigKind::Switch),
];

/// Names of handlers, which are also commands of drbdadm.
pub const HANDLERS: &[&str] = &[
    "pri-on-incon-degr",
    "pri-lost-after-sb",
    "pri-lost",
    "initial-split-brain",
    "split-brain",
    "fence-peer",
    "unfence-peer",
    "local-io-error",
    "before-resync-target",
    "after-resync-target",
    "before-resync-source",
    "out-of-sync",
];

const PROXY: &[&str] =
    &["memlimit", "read-loops", "compression", "bwlimit", "sndbuf-size", "rcvbuf-size", "ping-timeout"];

/// Options of `syncer { }` and where they belong. spec: drbd-conf 6.7
const SYNCER: &[(&str, Section)] = &[
    ("rate", Section::Disk),
    ("after", Section::Disk),
    ("al-extents", Section::Disk),
    ("c-plan-ahead", Section::Disk),
    ("c-delay-target", Section::Disk),
    ("c-fill-target", Section::Disk),
    ("c-max-rate", Section::Disk),
    ("c-min-rate", Section::Disk),
    ("verify-alg", Section::Net),
    ("csums-alg", Section::Net),
    ("use-rle", Section::Net),
    ("cpu-mask", Section::Resource),
    ("on-no-data-accessible", Section::Resource),
];

/// The option a word of a section means.
pub fn find_config(section: Section, word: &str) -> Option<ConfigOption> {
    let plain = |name, kind| ConfigOption { name, section, negated: false, kind };
    let listed = |names: &[&'static str]| names.iter().find(|name| **name == word).copied();
    match section {
        Section::Startup => STARTUP.iter().find(|(name, _)| *name == word).map(|(name, kind)| plain(name, *kind)),
        Section::Handlers if word == "outdate-peer" => Some(plain("fence-peer", ConfigKind::Text)),
        Section::Handlers => listed(HANDLERS).map(|name| plain(name, ConfigKind::Text)),
        Section::Proxy => listed(PROXY).map(|name| plain(name, ConfigKind::Text)),
        Section::Syncer => {
            let (_, destination) = SYNCER.iter().find(|(name, _)| *name == word)?;
            find_config(*destination, word)
        }
        Section::Disk if word == "use-bmbv" => Some(plain("use-bmbv", ConfigKind::Switch)),
        Section::Disk | Section::Net | Section::Resource => {
            let nest = section.nest()?;
            let positive = word.strip_prefix("no-").filter(|name| NEGATABLE.contains(name));
            let field = nest.option(positive.unwrap_or(word)).filter(|field| !is_only_for_commands(field))?;
            let option = field.option?;
            Some(ConfigOption {
                name: option.name,
                section,
                negated: positive.is_some(),
                kind: ConfigKind::Field(field),
            })
        }
    }
}

/// Addresses stand in host sections, and what is true for one connect only does not belong into a file.
fn is_only_for_commands(field: &FieldSpec) -> bool {
    let once = field.option.is_some_and(|option| ONCE.contains(&option.name));
    once || matches!(field.kind, FieldKind::Binary { .. })
}

/// Every word that may stand in a section, for messages.
pub fn config_names(section: Section) -> Vec<&'static str> {
    match section {
        Section::Startup => {
            STARTUP.iter().map(|(name, _)| *name).chain(["stacked-timeouts", "become-primary-on"]).collect()
        }
        Section::Handlers => HANDLERS.to_vec(),
        Section::Proxy => PROXY.iter().copied().chain(["plugin"]).collect(),
        Section::Syncer => SYNCER.iter().map(|(name, _)| *name).collect(),
        Section::Disk | Section::Net | Section::Resource => {
            let fields = section.nest().map_or(&[][..], |nest| nest.fields);
            fields
                .iter()
                .filter(|field| !is_only_for_commands(field))
                .filter_map(|field| field.option)
                .map(|o| o.name)
                .collect()
        }
    }
}

impl ConfigOption {
    /// May the value be left out?
    pub fn is_switch(&self) -> bool {
        match self.kind {
            ConfigKind::Field(field) => field.kind == FieldKind::Bool,
            ConfigKind::Switch => true,
            _ => false,
        }
    }

    /// What stands behind the name, for messages.
    pub fn expected(&self) -> String {
        match self.kind {
            ConfigKind::Field(field) => match field.kind {
                FieldKind::Bool => "`yes`, `no` or `;`".to_owned(),
                FieldKind::Words(_) => format!("one of {}", words_of(field).join(", ")),
                FieldKind::Text { .. } => "a text".to_owned(),
                _ => "a number".to_owned(),
            },
            ConfigKind::Number(..) => "a number".to_owned(),
            ConfigKind::Switch => "`yes`, `no` or `;`".to_owned(),
            ConfigKind::Text => "a text".to_owned(),
        }
    }

    /// Checks a value.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, value: &str) -> Result<(), String> {
        match self.kind {
            // A resource name here; what it means is found out when all resources are known.
            ConfigKind::Field(field) if field.number == DiskConf::RESYNC_AFTER && self.name == "resync-after" => Ok(()),
            ConfigKind::Field(_) if self.name == "after-sb-0pri" && value.starts_with("discard-node-") => Ok(()),
            // The kernel takes the nearest possible number; old files have numbers from 8.3 here.
            ConfigKind::Field(field) if self.name == "al-extents" => parse_value(field, value).map(|_| ()),
            ConfigKind::Field(field) => check_range(field, &parse_value(field, value)?),
            ConfigKind::Number(min, max) => match parse_number(value, Base::One) {
                Ok(number) if (min..=max).contains(&number) => Ok(()),
                Ok(number) => Err(format!("{number} is out of range [{min}..{max}]")),
                Err(error) => Err(error.to_string()),
            },
            ConfigKind::Switch => parse_bool(value).map(|_| ()).ok_or_else(|| "expected `yes` or `no`".to_owned()),
            ConfigKind::Text => Ok(()),
        }
    }

    /// Do two values mean the same? Numbers are compared after conversion.
    pub fn same(&self, a: &str, b: &str) -> bool {
        match self.kind {
            ConfigKind::Field(field) if self.name != "resync-after" => {
                a == b || matches!((parse_value(field, a), parse_value(field, b)), (Ok(a), Ok(b)) if a == b)
            }
            _ => a == b,
        }
    }

    /// Is this the value the kernel uses when nothing is said?
    pub fn is_default(&self, value: &str) -> bool {
        match self.kind {
            ConfigKind::Field(field) => match (field.default(), parse_value(field, value)) {
                (Some(default), Ok(value)) => default == value.as_value(),
                _ => false,
            },
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_spelling_finds_todays_option() {
        let find =
            |section, word| find_config(section, word).map(|option| (option.name, option.section, option.negated));
        assert_eq!(find(Section::Syncer, "rate"), Some(("resync-rate", Section::Disk, false)));
        assert_eq!(find(Section::Syncer, "verify-alg"), Some(("verify-alg", Section::Net, false)));
        assert_eq!(find(Section::Disk, "no-disk-flushes"), Some(("disk-flushes", Section::Disk, true)));
        assert_eq!(find(Section::Disk, "no-al-updates"), None);
        assert_eq!(find(Section::Handlers, "outdate-peer"), Some(("fence-peer", Section::Handlers, false)));
        assert_eq!(find(Section::Syncer, "timeout"), None);
        assert_eq!(find(Section::Net, "alternate-address"), None);
        assert_eq!(find(Section::Net, "discard-my-data"), None);
    }

    #[test]
    fn values_are_checked() {
        let check = |section, word, value| find_config(section, word).unwrap().check(value);
        assert_eq!(check(Section::Net, "timeout", "60"), Ok(()));
        assert_eq!(check(Section::Net, "timeout", "601").unwrap_err(), "601 is out of range [1..600]");
        assert_eq!(check(Section::Disk, "resync-rate", "10X").unwrap_err(), "`X` is no unit; k, M, G and s are");
        assert_eq!(check(Section::Net, "protocol", "c"), Ok(()));
        assert_eq!(check(Section::Net, "protocol", "D").unwrap_err(), "expected one of: A, B, C");
        assert_eq!(check(Section::Net, "after-sb-0pri", "discard-node-drbd1"), Ok(()));
        assert_eq!(check(Section::Disk, "resync-after", "r1/0"), Ok(()));
        assert_eq!(check(Section::Startup, "wfc-timeout", "300001").unwrap_err(), "300001 is out of range [0..300000]");
        assert_eq!(check(Section::Disk, "al-extents", "7"), Ok(()));
    }

    #[test]
    fn values_are_compared_by_what_they_mean() {
        let rate = find_config(Section::Disk, "resync-rate").unwrap();
        assert!(rate.same("10M", "10240k"));
        assert!(!rate.same("10M", "10241k"));
        assert!(rate.is_default("250"));
        let secret = find_config(Section::Net, "shared-secret").unwrap();
        assert!(!secret.same("10M", "10240k"));
        assert!(secret.is_default(""));
    }

    #[test]
    fn options_are_shown_in_their_order() {
        let names: Vec<_> =
            in_order(NestSpec::of::<NetConf>()).iter().filter_map(|f| f.option).map(|o| o.name).collect();
        assert_eq!(names[..3], ["protocol", "timeout", "max-epoch-size"]);
        assert!(names.contains(&"discard-my-data"));
    }
}
