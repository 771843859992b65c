// SPDX-License-Identifier: GPL-2.0
//! `show`: the configuration the kernel works with, in the language of the configuration file.
//!
//! spec: commands 3.5

use super::genl::Connection;
use super::query::{list, of_minor, Item};
use super::{address, Call};
use crate::failure::Failure;
use crate::options::{format_value, in_order, quoted, NestSpec};
use engine::netlink::{CfgContext, DiskConf, FieldKind, Nest, NetConf, ResourceOpts};
use std::fmt::Write;

pub fn show(call: &Call) -> Result<i32, Failure> {
    let mut connection = Connection::open()?;
    let items = match call.minor {
        Some(minor) => match of_minor(&mut connection, minor, &call.object)? {
            Ok(item) => vec![item],
            Err(code) => return Ok(code),
        },
        None => list(&mut connection, call.resource_filter())?.ok_or_else(|| {
            Failure::new(20, format!("received netlink error reply: {}", nix::errno::Errno::ENODEV.desc()))
        })?,
    };
    let resources: Vec<_> = items.chunk_by(|a, b| a.name() == b.name()).collect();
    let texts: Vec<_> =
        resources.into_iter().map(|volumes| resource_text(volumes, call.has("show-defaults"))).collect();
    print!("{}", texts.join("\n"));
    Ok(0)
}

/// One resource, given its volumes.
pub fn resource_text(volumes: &[Item], defaults: bool) -> String {
    let mut text = String::new();
    let Some(first) = volumes.first() else { return text };
    let _ = writeln!(text, "resource {} {{", plain_or_quoted(&first.name()));
    if let Some(options) = &first.resource {
        section(&mut text, 1, "options", NestSpec::of::<ResourceOpts>(), options, defaults);
    }
    if let Some(net) = &first.net {
        section(&mut text, 1, "net", NestSpec::of::<NetConf>(), net, defaults);
    }
    if let Some(peer) = first.context.ctx_peer_addr {
        let (family, endpoint) = address::format(peer.as_bytes());
        let _ = writeln!(text, "    _remote_host {{\n        address\t\t\t{family} {endpoint};\n    }}");
    }
    text += "    _this_host {\n";
    if let Some(own) = first.context.ctx_my_addr {
        let (family, endpoint) = address::format(own.as_bytes());
        let _ = writeln!(text, "        address\t\t\t{family} {endpoint};");
    }
    for item in volumes {
        volume(&mut text, item, &item.context, defaults);
    }
    text + "    }\n}\n"
}

fn volume(text: &mut String, item: &Item, context: &CfgContext, defaults: bool) {
    let Some(number) = context.ctx_volume else { return };
    let _ = writeln!(text, "        volume {number} {{");
    let _ = writeln!(text, "            device\t\t\tminor {};", item.minor);
    if let Some(disk) = &item.disk {
        let path = |name: &[u8]| quoted(&String::from_utf8_lossy(name));
        let _ = writeln!(text, "            disk\t\t\t{};", path(disk.backing_dev.as_bytes()));
        let meta = path(disk.meta_dev.as_bytes());
        let _ = match disk.meta_dev_idx {
            -1 | -3 => writeln!(text, "            meta-disk\t\t\tinternal;"),
            -2 => writeln!(text, "            meta-disk\t\t\t{meta};"),
            index => writeln!(text, "            meta-disk\t\t\t{meta} [ {index} ];"),
        };
        section(text, 3, "disk", NestSpec::of::<DiskConf>(), disk, defaults);
    }
    *text += "        }\n";
}

fn section(text: &mut String, level: usize, name: &str, spec: NestSpec, values: &impl Nest, defaults: bool) {
    let indent = " ".repeat(4 * level);
    let _ = writeln!(text, "{indent}{name} {{");
    for field in in_order(spec) {
        let (Some(option), Some(value)) = (field.option, values.get(field.number)) else { continue };
        let is_default = field.default() == Some(value);
        if matches!(field.kind, FieldKind::Binary { .. }) || (is_default && !defaults) {
            continue;
        }
        if OF_ONE_CONNECT.contains(&option.name) {
            continue;
        }
        let unit = field.scale.unit().filter(|_| !WITHOUT_UNIT.contains(&option.name));
        let mut notes: Vec<&str> = unit.into_iter().collect();
        if is_default {
            notes.push("default");
        }
        let notes = if notes.is_empty() { String::new() } else { format!(" # {}", notes.join(", ")) };
        let _ = writeln!(text, "{indent}    {:<16}\t{};{notes}", option.name, format_value(field, &value));
    }
    let _ = writeln!(text, "{indent}}}");
}

/// Options of a single connect, not of the connection.
const OF_ONE_CONNECT: [&str; 2] = ["discard-my-data", "tentative"];

/// Options behind which scripts that read the output expect no unit, though they have one.
const WITHOUT_UNIT: [&str; 2] = ["socket-check-timeout", "rs-discard-granularity"];

/// Names that would not be read back as one word get quotes.
fn plain_or_quoted(name: &str) -> String {
    let plain = |character: char| character.is_ascii_alphanumeric() || matches!(character, '/' | '.' | '_' | '-');
    if !name.is_empty() && name.chars().all(plain) {
        name.to_owned()
    } else {
        quoted(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::change::named;
    use engine::netlink::{Bytes, Text, WireProtocol};

    fn item() -> Item {
        let raw = |text| Bytes::from_bytes(&address::parse(text).unwrap());
        let context = CfgContext {
            ctx_volume: Some(0),
            ctx_my_addr: raw("192.168.1.11:7788"),
            ctx_peer_addr: raw("192.168.1.12:7788"),
            ..named("r0").unwrap()
        };
        Item {
            minor: 0,
            context,
            resource: Some(ResourceOpts { cpu_mask: Text::from_bytes(b"3").unwrap(), ..ResourceOpts::default() }),
            disk: Some(DiskConf {
                backing_dev: Text::from_bytes(b"/dev/sdb1").unwrap(),
                meta_dev: Text::from_bytes(b"/dev/sdb1").unwrap(),
                meta_dev_idx: -3,
                resync_rate: 10240,
                ..DiskConf::default()
            }),
            net: Some(NetConf { timeout: 70, wire_protocol: WireProtocol::C, ..NetConf::default() }),
            info: None,
        }
    }

    #[test]
    fn the_form_of_the_specification() {
        let expected = "resource r0 {\n    options {\n        cpu-mask        \t\"3\";\n    }\n    net {\n        \
             timeout         \t70; # 1/10 seconds\n    }\n    _remote_host {\n        address\t\t\tipv4 192.168.1.12:7788;\n    \
             }\n    _this_host {\n        address\t\t\tipv4 192.168.1.11:7788;\n        volume 0 {\n            \
             device\t\t\tminor 0;\n            disk\t\t\t\"/dev/sdb1\";\n            meta-disk\t\t\tinternal;\n            \
             disk {\n                resync-rate     \t10240k; # bytes/second\n            }\n        }\n    }\n}\n";
        assert_eq!(resource_text(&[item()], false), expected);
    }

    #[test]
    fn defaults_are_marked() {
        let text = resource_text(&[item()], true);
        assert!(text.contains("        protocol        \tC; # default\n"), "{text}");
        assert!(text.contains("                size            \t0s; # bytes, default\n"), "{text}");
        assert!(text.contains("        ping-timeout    \t5; # 1/10 seconds, default\n"), "{text}");
    }

    #[test]
    fn a_diskless_volume_without_connection() {
        let bare = Item {
            disk: None,
            net: None,
            resource: None,
            context: CfgContext { ctx_volume: Some(2), ..named("a b").unwrap() },
            ..item()
        };
        let expected = "resource \"a b\" {\n    _this_host {\n        volume 2 {\n            device\t\t\tminor 0;\n        }\n    }\n}\n";
        assert_eq!(resource_text(&[bare], false), expected);
    }
}
