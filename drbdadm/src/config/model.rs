// SPDX-License-Identifier: GPL-2.0
//! A configuration after reading: what each section says and where it says it.

use super::source::{Sources, Span};
use std::fmt;

/// Everything the files say.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The texts, for messages.
    pub sources: Sources,
    /// Path of the main file.
    pub file: String,
    /// The `global` section.
    pub global: Global,
    /// The `common` section.
    pub common: Sections,
    /// In the order of the files.
    pub resources: Vec<Resource>,
}

/// The `global` section.
#[derive(Clone, Debug, Default)]
pub struct Global {
    /// Where it stands.
    pub span: Option<Span>,
    /// `usage-count`: read, checked and without any effect, since nothing is ever counted or sent.
    pub usage_count: Option<String>,
    /// `minor-count`.
    pub minor_count: Option<u32>,
    /// `dialog-refresh`, seconds.
    pub dialog_refresh_s: Option<u32>,
    /// `disable-ip-verification`.
    pub disable_ip_verification: bool,
    /// `cmd-timeout-short`, seconds.
    pub timeout_short_s: Option<u32>,
    /// `cmd-timeout-medium`, seconds.
    pub timeout_medium_s: Option<u32>,
    /// `cmd-timeout-long`, seconds.
    pub timeout_long_s: Option<u32>,
    /// `udev-always-use-vnr`.
    pub udev_always_use_vnr: bool,
}

/// One option as written: the name in today's spelling and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Name in today's spelling.
    pub name: &'static str,
    /// The value as written; `None` for a switch without one.
    pub value: Option<String>,
    /// Name and value.
    pub span: Span,
}

impl Setting {
    /// The value as a child program gets it: a switch without a value is `yes`.
    pub fn argument(&self) -> &str {
        self.value.as_deref().unwrap_or("yes")
    }
}

/// A list of options of one section, in their order.
pub type Settings = Vec<Setting>;

/// The option sections of `common` and of a resource.
#[derive(Clone, Debug, Default)]
pub struct Sections {
    /// `options { }`.
    pub options: Settings,
    /// `net { }`.
    pub net: Settings,
    /// `disk { }`.
    pub disk: Settings,
    /// `startup { }` without the two below.
    pub startup: Settings,
    /// `handlers { }`.
    pub handlers: Settings,
    /// `proxy { }`.
    pub proxy: Settings,
    /// `stacked-timeouts` of `startup { }`.
    pub stacked_timeouts: bool,
    /// `become-primary-on` of `startup { }`: host names, or `both`.
    pub become_primary_on: Vec<String>,
    /// Where that stands.
    pub become_primary_span: Span,
}

/// A resource.
#[derive(Clone, Debug, Default)]
pub struct Resource {
    /// Its name.
    pub name: String,
    /// Where the name stands.
    pub span: Span,
    /// Its options.
    pub sections: Sections,
    /// Volumes and implicit volume written at resource level.
    pub volumes: Vec<Volume>,
    /// Host sections.
    pub hosts: Vec<Host>,
    /// Found by [`super::resolve`]: the section of this host.
    pub me: Option<usize>,
    /// Found by [`super::resolve`]: the section of the peer.
    pub peer: Option<usize>,
}

impl Resource {
    /// The section of this host.
    pub fn my_host(&self) -> Option<&Host> {
        self.me.and_then(|index| self.hosts.get(index))
    }

    /// The section of the peer.
    pub fn peer_host(&self) -> Option<&Host> {
        self.peer.and_then(|index| self.hosts.get(index))
    }

    /// Does this host's section stand on another resource?
    pub fn is_stacked(&self) -> bool {
        self.my_host().is_some_and(|host| matches!(host.kind, HostKind::StackedOn(_)))
    }
}

/// What kind of host section it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostKind {
    /// `on NAME...`.
    On(Vec<String>),
    /// `floating ADDRESS`.
    Floating,
    /// `stacked-on-top-of RESOURCE`.
    StackedOn(String),
    /// `_this_host`, printed by the kernel side.
    This,
    /// `_remote_host`, printed by the kernel side.
    Remote,
}

/// One host section.
#[derive(Clone, Debug)]
pub struct Host {
    /// What kind, and the names.
    pub kind: HostKind,
    /// Head of the section.
    pub span: Span,
    /// For stacked sections: the host names of the lower resource's matching section; else the names of `on`.
    pub names: Vec<String>,
    /// `address`.
    pub address: Option<Address>,
    /// `alternate-link-address`.
    pub alternate_address: Option<Address>,
    /// `options { }` of a host section.
    pub options: Settings,
    /// Volumes; the implicit one is among them.
    pub volumes: Vec<Volume>,
    /// Has a `proxy` section (which is read but not carried out).
    pub proxy: Option<Proxy>,
}

/// The `proxy on HOST... { }` section of a host.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// Head of the section.
    pub span: Span,
    /// Hosts it runs on.
    pub hosts: Vec<String>,
    /// `inside`.
    pub inside: Option<Address>,
    /// `outside`.
    pub outside: Option<Address>,
}

/// A volume of a resource or of a host.
#[derive(Clone, Debug, Default)]
pub struct Volume {
    /// Volume number.
    pub number: u32,
    /// Not written as `volume N { }`.
    pub implicit: bool,
    /// Where it begins.
    pub span: Span,
    /// `device` name, if one was written.
    pub device: Option<(String, Span)>,
    /// Minor number, written or part of the name.
    pub minor: Option<u32>,
    /// Where the minor comes from.
    pub minor_span: Span,
    /// `disk`.
    pub disk: Option<(String, Span)>,
    /// `meta-disk`.
    pub meta_disk: Option<(MetaDisk, Span)>,
    /// `disk { }` of the volume.
    pub settings: Settings,
}

impl Volume {
    /// Device name; made from the minor if none was written.
    pub fn device_name(&self) -> String {
        match (&self.device, self.minor) {
            (Some((name, _)), _) => name.clone(),
            (None, Some(minor)) => format!("/dev/drbd{minor}"),
            (None, None) => String::new(),
        }
    }

    /// Path of the backing disk; empty if none was written.
    pub fn disk_path(&self) -> &str {
        self.disk.as_ref().map_or("", |(path, _)| path)
    }

    /// Path of the device with the meta data.
    pub fn meta_path(&self) -> &str {
        match &self.meta_disk {
            Some((MetaDisk::Flexible(path) | MetaDisk::Indexed(path, _), _)) => path,
            _ => self.disk_path(),
        }
    }

    /// How `drbdmeta` wants to be told where the meta data is.
    pub fn index_for_drbdmeta(&self) -> String {
        match &self.meta_disk {
            Some((MetaDisk::Flexible(_), _)) => "flex-external".to_owned(),
            Some((MetaDisk::Indexed(_, index), _)) => index.to_string(),
            _ => "internal".to_owned(),
        }
    }

    /// How `drbdsetup attach` wants to be told, and what `sh-md-idx` prints.
    pub fn index_for_attach(&self) -> String {
        match &self.meta_disk {
            Some((MetaDisk::Flexible(_), _)) => "flexible".to_owned(),
            Some((MetaDisk::Indexed(_, index), _)) => index.to_string(),
            _ => "internal".to_owned(),
        }
    }
}

/// Where the meta data is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaDisk {
    /// At the end of the backing disk.
    Internal,
    /// The whole of another device.
    Flexible(String),
    /// A slot of 128 MiB on another device.
    Indexed(String, u32),
}

/// A network address with its family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// `ipv4`, `ipv6`, `sdp` or `ssocks`.
    pub family: &'static str,
    /// The address itself, without brackets.
    pub ip: String,
    /// Port.
    pub port: u16,
    /// Where it stands.
    pub span: Span,
}

impl Address {
    /// One text for all ways to write the same end of a connection, with the family.
    pub fn canonical(&self) -> String {
        let (ip, scope) = self.ip.split_once('%').unwrap_or((&self.ip, ""));
        let ip = ip.parse::<std::net::IpAddr>().map_or_else(|_| ip.to_owned(), |ip| ip.to_string());
        format!("{} {ip} {scope} {}", self.family, self.port)
    }

    /// The address without the family: `1.2.3.4:7788`, `[::1]:7788`.
    pub fn endpoint(&self) -> String {
        if self.family == "ipv6" {
            format!("[{}]:{}", self.ip, self.port)
        } else {
            format!("{}:{}", self.ip, self.port)
        }
    }
}

/// The form child programs read.
impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.family, self.endpoint())
    }
}
