// SPDX-License-Identifier: GPL-2.0
//! `dump` and `dump-xml`: the configuration as it was understood.
//!
//! spec: commands 2.12

use super::model::{Address, Config, Global, Host, HostKind, MetaDisk, Resource, Sections, Settings, Volume};
use crate::options::quoted;
use std::fmt::Write;

const INDENT: usize = 4;
/// Column in which values start, counted from the left margin.
const VALUE_COLUMN: usize = 24;
/// Width of the names of the few lines that do not keep to that column.
const FIXED_WIDTH: usize = 16;
const LONGEST_PLAIN: usize = 80;
/// What the tools of 8.4 really use for long and very long commands, seconds.
const EFFECTIVE_MEDIUM_S: u32 = 600;
const EFFECTIVE_LONG_S: u32 = 0;

/// Lines with indentation.
struct Printer {
    text: String,
    level: usize,
}

impl Printer {
    fn line(&mut self, text: &str) {
        let _ = writeln!(self.text, "{:width$}{text}", "", width = self.level * INDENT);
    }

    /// `name value;`, the value in its column.
    fn statement(&mut self, name: &str, value: &str) {
        let width = VALUE_COLUMN.saturating_sub(self.level * INDENT);
        self.line(&format!("{name:<width$} {value:>3};"));
    }

    /// As [`Printer::statement`] with the narrower column of addresses.
    fn fixed(&mut self, name: &str, value: &str) {
        self.line(&format!("{name:<FIXED_WIDTH$} {value};"));
    }

    fn block(&mut self, head: &str, body: impl FnOnce(&mut Self)) {
        self.line(&format!("{head} {{"));
        self.level += 1;
        body(self);
        self.level -= 1;
        self.line("}");
    }

    fn settings(&mut self, name: &str, settings: &Settings) {
        if !settings.is_empty() {
            self.block(name, |printer| printer.bare_settings(settings));
        }
    }

    fn bare_settings(&mut self, settings: &Settings) {
        for setting in settings {
            match &setting.value {
                Some(value) => self.statement(setting.name, &value_text(value)),
                None => self.line(&format!("{};", setting.name)),
            }
        }
    }

    fn sections(&mut self, sections: &Sections) {
        self.settings("options", &sections.options);
        self.settings("net", &sections.net);
        self.settings("disk", &sections.disk);
        if !sections.startup.is_empty() || sections.stacked_timeouts || !sections.become_primary_on.is_empty() {
            self.block("startup", |printer| {
                printer.bare_settings(&sections.startup);
                if sections.stacked_timeouts {
                    printer.line("stacked-timeouts;");
                }
                if !sections.become_primary_on.is_empty() {
                    let names: Vec<_> = sections.become_primary_on.iter().map(|name| value_text(name)).collect();
                    printer.statement("become-primary-on", &names.join(" "));
                }
            });
        }
        self.settings("proxy", &sections.proxy);
        self.settings("handlers", &sections.handlers);
    }
}

/// A value as it is read back: in quotes unless it is one plain word.
fn value_text(value: &str) -> String {
    let plain = |character: char| character.is_ascii_alphanumeric() || matches!(character, '/' | '.' | '_' | '-');
    if value.is_empty() || value.len() > LONGEST_PLAIN || !value.chars().all(plain) {
        quoted(value)
    } else {
        value.to_owned()
    }
}

/// Everything before the resources.
pub fn header(config: &Config, verbose: bool) -> String {
    let mut printer = Printer { text: format!("# {}\n", config.file), level: 0 };
    global(&mut printer, &config.global, verbose);
    let common = &config.common;
    let empty = [&common.options, &common.net, &common.disk, &common.startup, &common.proxy, &common.handlers];
    if empty.iter().any(|settings| !settings.is_empty())
        || common.stacked_timeouts
        || !common.become_primary_on.is_empty()
    {
        printer.block("common", |printer| printer.sections(common));
        printer.line("");
    }
    printer.text
}

fn global(printer: &mut Printer, global: &Global, verbose: bool) {
    let usage_count = global.usage_count.as_deref().unwrap_or("ask");
    let refresh = global.dialog_refresh_s.unwrap_or(1);
    let medium = global.timeout_medium_s.unwrap_or(EFFECTIVE_MEDIUM_S);
    let long = global.timeout_long_s.unwrap_or(EFFECTIVE_LONG_S);
    let is_default = !global.disable_ip_verification
        && global.minor_count.is_none()
        && refresh == 1
        && usage_count == "ask"
        && !global.udev_always_use_vnr
        && global.timeout_short_s.is_none()
        && global.timeout_medium_s.is_none()
        && global.timeout_long_s.is_none();
    if is_default && !verbose {
        return;
    }
    printer.block("global", |printer| {
        if global.disable_ip_verification {
            printer.line("disable-ip-verification;");
        }
        if let Some(count) = global.minor_count {
            printer.line(&format!("minor-count {count};"));
        }
        if refresh != 1 {
            printer.line(&format!("dialog-refresh {refresh};"));
        }
        if usage_count != "ask" {
            printer.line(&format!("usage-count {usage_count};"));
        }
        if let Some(seconds) = global.timeout_short_s.filter(|seconds| *seconds != 5) {
            printer.line(&format!("cmd-timeout-short {seconds};"));
        }
        printer.line(&format!("cmd-timeout-medium {medium};"));
        printer.line(&format!("cmd-timeout-long {long};"));
        if global.udev_always_use_vnr {
            printer.line("udev-always-use-vnr;");
        }
    });
    printer.line("");
}

/// One resource.
pub fn resource(config: &Config, resource: &Resource, node: &str) -> String {
    let ignored = if resource.me.is_some() { "not ignored" } else { "ignored" };
    let stacked = if resource.is_stacked() { "stacked" } else { "not stacked" };
    let mut printer = Printer { text: String::new(), level: 0 };
    printer.line(&format!("# resource {} on {node}: {ignored}, {stacked}", value_text(&resource.name)));
    printer.line(&format!("# defined at {}", config.sources.place(&resource.span)));
    printer.block(&format!("resource {}", value_text(&resource.name)), |printer| {
        for host in &resource.hosts {
            host_section(printer, host);
        }
        printer.sections(&resource.sections);
    });
    printer.line("");
    printer.text
}

fn host_section(printer: &mut Printer, host: &Host) {
    let head = match &host.kind {
        HostKind::On(names) => {
            format!("on {}", names.iter().map(|name| value_text(name)).collect::<Vec<_>>().join(" "))
        }
        HostKind::Floating => format!("floating {}", host.address.as_ref().map_or(String::new(), address_text)),
        HostKind::StackedOn(lower) => format!("stacked-on-top-of {}", value_text(lower)),
        HostKind::This => "_this_host".to_owned(),
        HostKind::Remote => "_remote_host".to_owned(),
    };
    let stacked = matches!(host.kind, HostKind::StackedOn(_));
    printer.block(&head, |printer| {
        if stacked {
            printer.line(&format!("# on {} ", host.names.join(" ")));
        }
        printer.settings("options", &host.options);
        for volume in &host.volumes {
            if volume.implicit {
                volume_lines(printer, volume, stacked);
            } else {
                printer.block(&format!("volume {}", volume.number), |printer| volume_lines(printer, volume, stacked));
            }
        }
        if let Some(address) = host.address.as_ref().filter(|_| host.kind != HostKind::Floating) {
            printer.fixed("address", &address_text(address));
        }
        if let Some(address) = &host.alternate_address {
            printer.fixed("alternate-link-address", &address_text(address));
        }
    });
}

fn address_text(address: &Address) -> String {
    format!("{} {}", address.family, address.endpoint())
}

fn volume_lines(printer: &mut Printer, volume: &Volume, stacked: bool) {
    printer.settings("disk", &volume.settings);
    let minor = volume.minor.map_or(String::new(), |minor| format!(" minor {minor}"));
    printer.statement("device", &format!("{}{minor}", value_text(&volume.device_name())));
    if stacked {
        return;
    }
    if let Some((path, _)) = &volume.disk {
        printer.statement("disk", &value_text(path));
    }
    match &volume.meta_disk {
        Some((MetaDisk::Internal, _)) => printer.statement("meta-disk", "internal"),
        Some((MetaDisk::Flexible(path), _)) => printer.fixed("meta-disk", &value_text(path)),
        Some((MetaDisk::Indexed(path, index), _)) => {
            printer.fixed("meta-disk", &format!("{} [{index}]", value_text(path)))
        }
        None => {}
    }
}

// ---- XML

/// Text with the five characters that mean something in XML replaced.
fn xml(text: &str) -> String {
    let replaced = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    replaced.replace('"', "&quot;").replace('\'', "&apos;")
}

impl Printer {
    fn element(&mut self, name: &str, head: &str, body: impl FnOnce(&mut Self)) {
        self.line(&format!("<{head}>"));
        self.level += 1;
        body(self);
        self.level -= 1;
        self.line(&format!("</{name}>"));
    }

    fn xml_settings(&mut self, name: &str, settings: &Settings) {
        if settings.is_empty() {
            return;
        }
        self.element("section", &format!("section name=\"{name}\""), |printer| printer.xml_options(settings));
    }

    fn xml_options(&mut self, settings: &Settings) {
        for setting in settings {
            match &setting.value {
                Some(value) => self.line(&format!("<option name=\"{}\" value=\"{}\"/>", setting.name, xml(value))),
                None => self.line(&format!("<option name=\"{}\"/>", setting.name)),
            }
        }
    }

    fn xml_sections(&mut self, sections: &Sections) {
        self.xml_settings("options", &sections.options);
        self.xml_settings("net", &sections.net);
        self.xml_settings("disk", &sections.disk);
        if !sections.startup.is_empty() || sections.stacked_timeouts || !sections.become_primary_on.is_empty() {
            self.element("section", "section name=\"startup\"", |printer| {
                printer.xml_options(&sections.startup);
                if sections.stacked_timeouts {
                    printer.line("<option name=\"stacked-timeouts\"/>");
                }
                if !sections.become_primary_on.is_empty() {
                    let names = xml(&sections.become_primary_on.join(" "));
                    printer.line(&format!("<option name=\"become-primary-on\" value=\"{names}\"/>"));
                }
            });
        }
        self.xml_settings("proxy", &sections.proxy);
        self.xml_settings("handlers", &sections.handlers);
    }
}

/// The configuration as XML; `frame` for the whole file.
pub fn xml_text<'a>(config: &Config, resources: impl Iterator<Item = &'a Resource>, frame: bool) -> String {
    let mut printer = Printer { text: String::new(), level: 0 };
    if frame {
        printer.line(&format!("<config file=\"{}\">", xml(&config.file)));
        printer.level = 1;
        xml_global(&mut printer, &config.global);
        let before = printer.text.len();
        printer.element("common", "common", |printer| printer.xml_sections(&config.common));
        if printer.text[before..].lines().count() == 2 {
            printer.text.truncate(before);
        }
    }
    for resource in resources {
        xml_resource(&mut printer, config, resource);
    }
    if frame {
        printer.level = 0;
        printer.line("</config>");
    }
    printer.text
}

fn xml_global(printer: &mut Printer, global: &Global) {
    if !global.disable_ip_verification && global.minor_count.is_none() && global.dialog_refresh_s.is_none() {
        return;
    }
    printer.element("global", "global", |printer| {
        if global.disable_ip_verification {
            printer.line("<disable-ip-verification/>");
        }
        if let Some(count) = global.minor_count {
            printer.line(&format!("<minor-count count=\"{count}\"/>"));
        }
        if let Some(seconds) = global.dialog_refresh_s {
            printer.line(&format!("<dialog-refresh refresh=\"{seconds}\"/>"));
        }
    });
}

fn xml_resource(printer: &mut Printer, config: &Config, resource: &Resource) {
    let place = xml(&config.sources.place(&resource.span));
    let head = format!("resource name=\"{}\" conf-file-line=\"{place}\"", xml(&resource.name));
    printer.element("resource", &head, |printer| {
        for host in &resource.hosts {
            let head = match host.kind {
                HostKind::Floating => "host floating=\"1\"".to_owned(),
                _ => format!("host name=\"{}\"", xml(&host.names.join(" "))),
            };
            printer.element("host", &head, |printer| {
                for volume in &host.volumes {
                    xml_volume(printer, volume);
                }
                if let Some(address) = &host.address {
                    printer.line(&format!(
                        "<address family=\"{}\" port=\"{}\">{}</address>",
                        address.family,
                        address.port,
                        xml(&address.ip)
                    ));
                }
            });
        }
        printer.xml_sections(&resource.sections);
    });
}

fn xml_volume(printer: &mut Printer, volume: &Volume) {
    printer.element("volume", &format!("volume vnr=\"{}\"", volume.number), |printer| {
        printer.xml_settings("disk", &volume.settings);
        printer.line(&format!(
            "<device minor=\"{}\">{}</device>",
            volume.minor.unwrap_or(0),
            xml(&volume.device_name())
        ));
        printer.line(&format!("<disk>{}</disk>", xml(volume.disk_path())));
        match &volume.meta_disk {
            Some((MetaDisk::Flexible(path), _)) => printer.line(&format!("<meta-disk>{}</meta-disk>", xml(path))),
            Some((MetaDisk::Indexed(path, index), _)) => {
                printer.line(&format!("<meta-disk index=\"{index}\">{}</meta-disk>", xml(path)));
            }
            _ => printer.line("<meta-disk>internal</meta-disk>"),
        }
    });
}
