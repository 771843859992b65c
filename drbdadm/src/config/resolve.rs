// SPDX-License-Identifier: GPL-2.0
//! What a configuration means on this host: volumes completed, host sections chosen, everything checked, options
//! inherited.
//!
//! spec: drbd-conf 4, 5, 7

use super::model::{Address, Config, Host, HostKind, MetaDisk, Resource, Setting, Settings, Volume};
use super::parser::conflict;
use super::source::{Diagnostic, Span};
use std::collections::HashMap;

/// Who this host is.
pub struct Identity<'a> {
    /// Node name.
    pub name: &'a str,
    /// The peer to choose where there are more than two hosts.
    pub peer: Option<&'a str>,
    /// Is this address one of ours?
    pub has_address: &'a dyn Fn(&str) -> bool,
}

/// Completes and checks a configuration; gives what there is to say about it.
pub fn complete(config: &mut Config, identity: &Identity<'_>) -> Vec<Diagnostic> {
    let mut diagnostics = Vec::new();
    complete_volumes(config);
    for resource in &mut config.resources {
        choose_host(resource, identity, &mut diagnostics);
    }
    complete_stacked(config, &mut diagnostics);
    for resource in &mut config.resources {
        choose_peer(resource, identity.peer);
    }
    if let Err(diagnostic) = check_unique(config) {
        diagnostics.push(diagnostic);
        return diagnostics;
    }
    for resource in &config.resources {
        check_resource(config, resource, &mut diagnostics);
    }
    diagnostics
}

/// Hosts take over what is written at resource level, each thing only if they do not say it themselves.
// spec: drbd-conf 5
fn complete_volumes(config: &mut Config) {
    for resource in &mut config.resources {
        for host in &mut resource.hosts {
            let stacked = matches!(host.kind, HostKind::StackedOn(_));
            for outer in resource.volumes.iter().filter(|_| !stacked) {
                let index = host.volumes.iter().position(|volume| volume.number == outer.number);
                let Some(inner) = index.and_then(|index| host.volumes.get_mut(index)) else {
                    host.volumes.push(Volume { settings: Settings::new(), ..outer.clone() });
                    continue;
                };
                if inner.device.is_none() && inner.minor.is_none() {
                    inner.device.clone_from(&outer.device);
                    inner.minor = outer.minor;
                    inner.minor_span.clone_from(&outer.minor_span);
                }
                if inner.disk.is_none() {
                    inner.disk.clone_from(&outer.disk);
                }
                if inner.meta_disk.is_none() {
                    inner.meta_disk.clone_from(&outer.meta_disk);
                }
            }
            host.volumes.sort_by_key(|volume| volume.number);
        }
    }
}

// spec: drbd-conf 4
fn choose_host(resource: &mut Resource, identity: &Identity<'_>, diagnostics: &mut Vec<Diagnostic>) {
    let mut mine: Option<usize> = None;
    for (index, host) in resource.hosts.iter().enumerate() {
        let matches = match &host.kind {
            HostKind::On(names) => names.iter().any(|name| name == identity.name),
            HostKind::This => true,
            HostKind::Floating => {
                host.address.as_ref().is_some_and(|a| a.ip == identity.name || (identity.has_address)(&a.ip))
            }
            HostKind::StackedOn(_) | HostKind::Remote => false,
        };
        match mine.and_then(|first| resource.hosts.get(first)) {
            Some(first) if matches => {
                diagnostics.push(several_sections(host, first, &resource.name));
                return;
            }
            None if matches => mine = Some(index),
            _ => {}
        }
    }
    resource.me = mine;
}

fn several_sections(host: &Host, first: &Host, resource: &str) -> Diagnostic {
    let title = format!("resource {resource} has multiple host sections for this node");
    Diagnostic::error(&host.span, title, "this one matches too").and(&first.span, "this one matches")
}

/// Stacked sections stand on the volumes of another resource.
fn complete_stacked(config: &mut Config, diagnostics: &mut Vec<Diagnostic>) {
    let lowers: HashMap<String, Resource> =
        config.resources.iter().map(|resource| (resource.name.clone(), resource.clone())).collect();
    for resource in &mut config.resources {
        let mut mine = None;
        for (index, host) in resource.hosts.iter_mut().enumerate() {
            let HostKind::StackedOn(name) = &host.kind else { continue };
            let Some(lower) = lowers.get(name) else {
                let title = format!("resource {}: there is no resource {name} to stand on", resource.name);
                diagnostics.push(Diagnostic::error(&host.span, title, "stands on a resource that is not defined"));
                continue;
            };
            host.names = lower.hosts.iter().flat_map(|host| host.names.iter().cloned()).collect();
            let lower_host = lower.my_host().or(lower.hosts.first());
            let is_here = lower.me.is_some();
            for volume in &mut host.volumes {
                let below = lower_host.and_then(|host| host.volumes.iter().find(|v| v.number == volume.number));
                match below {
                    Some(below) if is_here => volume.disk = Some((below.device_name(), host.span.clone())),
                    Some(_) => {}
                    None => {
                        let title = format!("volume {} does not exist in resource {name}", volume.number);
                        diagnostics.push(Diagnostic::error(&volume.span, title, "has nothing to stand on"));
                    }
                }
                volume.meta_disk.get_or_insert((MetaDisk::Internal, host.span.clone()));
            }
            if lower.me.is_some() {
                mine.get_or_insert(index);
            }
        }
        resource.me = resource.me.or(mine);
    }
}

fn choose_peer(resource: &mut Resource, wanted: Option<&str>) {
    let Some(me) = resource.me else { return };
    let mut others = (0..resource.hosts.len()).filter(|index| *index != me);
    resource.peer = match (resource.hosts.len(), wanted) {
        (0 | 1, _) => None,
        (2, _) => others.next(),
        (_, None) => None,
        (_, Some(name)) => {
            let hosts = &resource.hosts;
            let mut matching =
                others.filter(|index| hosts.get(*index).is_some_and(|host| host.names.iter().any(|n| n == name)));
            matching.next().filter(|_| matching.next().is_none())
        }
    };
}

/// Names, minors, disks and addresses that may be used once only.
// spec: drbd-conf 7.1
fn check_unique(config: &Config) -> Result<(), Diagnostic> {
    let mut seen: HashMap<String, Span> = HashMap::new();
    let mut unique = |what: &str, key: String, span: &Span| match seen.insert(format!("{what} {key}"), span.clone()) {
        Some(first) => Err(conflict(what, &key, span, &first)),
        None => Ok(()),
    };
    for resource in &config.resources {
        for host in &resource.hosts {
            let names = match host.kind {
                HostKind::On(_) => host.names.clone(),
                HostKind::Floating => host.address.iter().map(Address::endpoint).collect(),
                HostKind::StackedOn(_) => host.names.clone(),
                HostKind::This | HostKind::Remote => continue,
            };
            for name in &names {
                for volume in &host.volumes {
                    if let Some((device, span)) = &volume.device {
                        unique("device", format!("device:{name}:{device}"), span)?;
                    }
                    if let Some(minor) = volume.minor {
                        unique("device-minor", format!("device-minor:{name}:{minor}"), &volume.minor_span)?;
                    }
                    if let (Some((MetaDisk::Indexed(path, index), span)), false) = (&volume.meta_disk, is_stacked(host))
                    {
                        unique("meta-disk", format!("{name}:{path}[{index}]"), span)?;
                    }
                    if let (Some((MetaDisk::Flexible(path), span)), false) = (&volume.meta_disk, is_stacked(host)) {
                        unique("meta-disk", format!("{name}:{path}"), span)?;
                    }
                    if let (Some((path, span)), false) = (&volume.disk, is_stacked(host)) {
                        unique("disk", format!("{name}:{path}"), span)?;
                    }
                }
            }
            if let Some(address) = &host.address {
                let loopback = address.ip.starts_with("127.") || address.ip == "::1";
                let owner = names.first().filter(|_| loopback).map_or(String::new(), |name| format!("{name}:"));
                unique("IP", format!("{owner}{}", address.endpoint()), &address.span)?;
            }
            if let HostKind::StackedOn(lower) = &host.kind {
                unique("stacked-on-top-of", lower.clone(), &host.span)?;
            }
        }
    }
    Ok(())
}

fn is_stacked(host: &Host) -> bool {
    matches!(host.kind, HostKind::StackedOn(_))
}

/// Everything that has to be there, and what contradicts itself.
// spec: drbd-conf 7.2
fn check_resource(config: &Config, resource: &Resource, diagnostics: &mut Vec<Diagnostic>) {
    if resource.hosts.is_empty() {
        let title = format!("resource {} has no host section", resource.name);
        let label = "expected two sections like `on HOST { ... }` in this resource";
        diagnostics.push(Diagnostic::error(&resource.span, title, label));
    }
    for host in &resource.hosts {
        if matches!(host.kind, HostKind::This | HostKind::Remote) {
            continue;
        }
        check_host(resource, host, diagnostics);
    }
    check_same_volumes(resource, diagnostics);
    check_proxies(resource, diagnostics);
    check_become_primary(config, resource, diagnostics);
    for setting in
        resource.sections.disk.iter().chain(resource.hosts.iter().flat_map(|h| &h.volumes).flat_map(|v| &v.settings))
    {
        check_resync_after(config, setting, diagnostics);
    }
}

fn missing(span: &Span, resource: &Resource, keyword: &str, example: &str) -> Diagnostic {
    let title = format!("in resource {}: '{keyword}' keyword missing", resource.name);
    Diagnostic::error(span, title, format!("expected `{example}` in this section"))
}

fn check_host(resource: &Resource, host: &Host, diagnostics: &mut Vec<Diagnostic>) {
    if host.address.is_none() {
        diagnostics.push(missing(&host.span, resource, "address", "address 192.168.1.11:7788;"));
    }
    if host.volumes.is_empty() {
        diagnostics.push(missing(&host.span, resource, "device", "device /dev/drbd0;"));
    }
    for volume in &host.volumes {
        let span = if volume.implicit { &host.span } else { &volume.span };
        if volume.minor.is_none() && volume.device.is_none() {
            diagnostics.push(missing(span, resource, "device", "device /dev/drbd0;"));
        }
        if volume.disk.is_none() && !is_stacked(host) {
            diagnostics.push(missing(span, resource, "disk", "disk /dev/sdb1;"));
        }
        if volume.meta_disk.is_none() && !is_stacked(host) {
            diagnostics.push(missing(span, resource, "meta-disk", "meta-disk internal;"));
        }
    }
    let implicit = host.volumes.iter().find(|volume| volume.implicit);
    let explicit = host.volumes.iter().find(|volume| !volume.implicit);
    if let (Some(implicit), Some(explicit)) = (implicit, explicit) {
        let title = format!("resource {} mixes volumes with and without a section of their own", resource.name);
        let label = "a volume with a section";
        diagnostics.push(Diagnostic::error(&explicit.span, title, label).and(&implicit.span, "one without"));
    }
}

/// All hosts have the same volumes.
fn check_same_volumes(resource: &Resource, diagnostics: &mut Vec<Diagnostic>) {
    let hosts = || resource.hosts.iter().filter(|host| !matches!(host.kind, HostKind::This | HostKind::Remote));
    for host in hosts().filter(|host| !host.volumes.is_empty()) {
        for (other, volume) in hosts().flat_map(|other| other.volumes.iter().map(move |volume| (other, volume))) {
            let same = host.volumes.iter().find(|mine| mine.number == volume.number);
            match same {
                None => {
                    let title = format!("resource {}: volume {} is missing on one host", resource.name, volume.number);
                    let label = format!("expected `volume {} {{ ... }}` in this section", volume.number);
                    let span = if volume.implicit { &other.span } else { &volume.span };
                    diagnostics.push(Diagnostic::error(&host.span, title, label).and(span, "it exists here"));
                }
                Some(mine) if mine.implicit && !volume.implicit => {
                    let title =
                        format!("resource {}: volume 0 has a section of its own on one host only", resource.name);
                    let label = "expected `volume 0 { ... }` here, too";
                    diagnostics
                        .push(Diagnostic::error(&host.span, title, label).and(&volume.span, "it is written here"));
                }
                Some(_) => {}
            }
        }
    }
}

fn check_proxies(resource: &Resource, diagnostics: &mut Vec<Diagnostic>) {
    for proxy in resource.hosts.iter().filter_map(|host| host.proxy.as_ref()) {
        for (address, keyword) in [(&proxy.inside, "inside"), (&proxy.outside, "outside")] {
            if address.is_none() {
                diagnostics.push(missing(&proxy.span, resource, keyword, &format!("{keyword} 127.0.0.1:7789;")));
            }
        }
    }
    if let [a, b] = resource.hosts.as_slice() {
        if a.proxy.is_some() != b.proxy.is_some() {
            let without = if a.proxy.is_none() { a } else { b };
            let title = format!("resource {}: only one of the two hosts has a proxy", resource.name);
            diagnostics.push(Diagnostic::error(&without.span, title, "expected a `proxy on HOST { ... }` here, too"));
        }
    }
}

fn check_become_primary(config: &Config, resource: &Resource, diagnostics: &mut Vec<Diagnostic>) {
    let sections = &resource.sections;
    for name in &sections.become_primary_on {
        let net = || sections.net.iter().chain(&config.common.net);
        let both_possible =
            net().find(|setting| setting.name == "allow-two-primaries").is_some_and(|s| s.argument() == "yes");
        if name == "both" && !both_possible {
            let title = format!("resource {}: both hosts shall become Primary, which is not allowed", resource.name);
            let label = "expected `allow-two-primaries;` in the net section";
            diagnostics.push(Diagnostic::error(&sections.become_primary_span, title, label));
        }
        let known = resource.hosts.iter().any(|host| host.names.contains(name));
        if name != "both" && !known {
            let title = format!("resource {}: host {name} shall become Primary, but has no section", resource.name);
            let label = "expected the name of one of the hosts, or `both`";
            diagnostics.push(Diagnostic::error(&sections.become_primary_span, title, label));
        }
    }
}

fn check_resync_after(config: &Config, setting: &Setting, diagnostics: &mut Vec<Diagnostic>) {
    if setting.name != "resync-after" {
        return;
    }
    let value = setting.argument();
    match resync_after_minor(config, value) {
        Ok(_) => {}
        Err(ResyncAfterError::Unknown) => {
            let title = format!("resync-after: there is no resource {value} on this host");
            diagnostics.push(Diagnostic::warning(&setting.span, title, "left out"));
        }
        Err(ResyncAfterError::Ambiguous) => {
            let title = format!("resync-after: resource {value} has several volumes");
            diagnostics.push(Diagnostic::error(&setting.span, title, format!("expected `{value}/VOLUME`")));
        }
    }
}

/// Why a `resync-after` names no minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResyncAfterError {
    /// No such resource or volume.
    Unknown,
    /// The resource has more than one volume.
    Ambiguous,
}

/// The minor that `NAME` or `NAME/VOLUME` is on this host.
///
/// # Errors
/// [`ResyncAfterError`].
pub fn resync_after_minor(config: &Config, value: &str) -> Result<u32, ResyncAfterError> {
    let exact = config.resources.iter().find(|resource| resource.name == value);
    let split = value.rsplit_once('/').and_then(|(name, number)| Some((name, number.parse::<u32>().ok()?)));
    let (resource, number) = match (exact, split) {
        (Some(resource), _) => (Some(resource), None),
        (None, Some((name, number))) => (config.resources.iter().find(|resource| resource.name == name), Some(number)),
        (None, None) => (None, None),
    };
    let volumes = resource.and_then(|r| r.my_host().or(r.hosts.first())).map_or(&[][..], |host| &host.volumes);
    let found = match (number, volumes) {
        (Some(number), volumes) => volumes.iter().find(|volume| volume.number == number),
        (None, [only]) => Some(only),
        (None, []) => None,
        (None, _) => return Err(ResyncAfterError::Ambiguous),
    };
    found.and_then(|volume| volume.minor).ok_or(ResyncAfterError::Unknown)
}

/// Hands the options of `common` to every resource and those of a resource to its volumes.
// spec: drbd-conf 5
pub fn inherit(config: &mut Config) {
    let common = &config.common;
    for resource in &mut config.resources {
        let sections = &mut resource.sections;
        take_over(&mut sections.net, &common.net);
        take_over(&mut sections.disk, &common.disk);
        take_over(&mut sections.startup, &common.startup);
        take_over(&mut sections.handlers, &common.handlers);
        take_over(&mut sections.options, &common.options);
        take_over(&mut sections.proxy, &common.proxy);
        sections.stacked_timeouts |= common.stacked_timeouts;
        if sections.become_primary_on.is_empty() {
            sections.become_primary_on.clone_from(&common.become_primary_on);
        }
        for host in &mut resource.hosts {
            for volume in &mut host.volumes {
                let outer = resource.volumes.iter().find(|outer| outer.number == volume.number);
                take_over(&mut volume.settings, &resource.sections.disk);
                if let Some(outer) = outer {
                    take_over(&mut volume.settings, &outer.settings);
                }
            }
        }
    }
}

/// What is missing is put in front, one after the other: on command lines it stands first, in reverse order.
fn take_over(inner: &mut Settings, outer: &[Setting]) {
    for setting in outer {
        if !inner.iter().any(|own| own.name == setting.name) {
            inner.insert(0, setting.clone());
        }
    }
}
