// SPDX-License-Identifier: GPL-2.0
//! Carrying out a command for its targets.
//!
//! spec: commands 1.9, 2

use super::adjust::{self, Job, Staged};
use super::commands::{CommandRow, Targets};
use super::lines::Lines;
use super::run::{Class, Errors, Line, Runner};
use super::{find_target, handler, has_address, waiting, Request, Target};
use crate::config::model::{Config, Host, Resource, Volume};
use crate::config::parser::Reader;
use crate::config::print;
use crate::config::source::Diagnostic;
use crate::failure::Failure;
use crate::setup::{minor_link, resource_link};
use std::io::Read;
use std::path::Path;
use std::time::Duration;

/// From this exit code on nothing further is tried.
const GIVE_UP: i32 = 20;
const PROMOTION_TRIES: u32 = 5;

/// A command and everything it needs.
pub(super) struct Execution<'a> {
    pub program: &'a str,
    pub config: &'a Config,
    pub node: &'a str,
    pub runner: Runner,
    pub command: &'static CommandRow,
    pub request: &'a Request,
}

impl<'a> Execution<'a> {
    /// Carries it out; gives the highest exit code.
    pub fn run(&self) -> Result<i32, Failure> {
        match self.command.name {
            "dump" | "dump-xml" => return self.dump(),
            "sh-nop" => return Ok(0),
            "sh-resources" => return Ok(self.print_names()),
            "sh-mod-parms" => return Ok(self.print_module_parameters()),
            "sh-status" => return self.print_sh_status(),
            _ => {}
        }
        let targets = self.targets()?;
        for target in &targets {
            self.check_host(target.resource)?;
        }
        if self.command.name == "wait-con-int" {
            return waiting::wait_for_all(self, &targets);
        }
        if matches!(self.command.name, "up" | "adjust" | "adjust-with-progress") {
            return self.staged(&targets);
        }
        let mut worst = 0;
        for target in &targets {
            let code = self.one_target(target)?;
            worst = worst.max(code);
            if code >= GIVE_UP {
                break;
            }
        }
        Ok(worst)
    }

    // ---- targets

    /// All resources of this host and mode.
    pub fn all(&self) -> impl Iterator<Item = &'a Resource> + use<'a> {
        let stacked = self.request.stacked;
        self.config.resources.iter().filter(move |resource| resource.me.is_some() && resource.is_stacked() == stacked)
    }

    // spec: commands 1.4
    fn targets(&self) -> Result<Vec<Target<'a>>, Failure> {
        let words = &self.request.targets;
        let takes_all = matches!(self.command.targets, Targets::None)
            || (words.is_empty() && self.command.targets == Targets::ResourcesOrAll)
            || words.iter().any(|word| word == "all");
        if self.config.resources.is_empty() && self.command.targets != Targets::ResourcesOrAll {
            return Err(Failure::new(1, "no resources defined!"));
        }
        if takes_all {
            let all: Vec<_> = self.all().map(|resource| Target { resource, volume: None }).collect();
            if all.is_empty() {
                let mode = if self.request.stacked { "stacked" } else { "normal" };
                return Err(Failure::new(
                    1,
                    format!("WARN: no {mode} resources defined for this host ({})!?", self.node),
                ));
            }
            return Ok(all);
        }
        let mut targets = Vec::new();
        for word in words {
            let target = find_target(self.config, word)?;
            if target.resource.me.is_none() {
                return Err(Failure::new(1, format!("'{word}' not defined in your config (for this host).")));
            }
            self.check_mode(target.resource)?;
            targets.push(self.checked_volume(target)?);
        }
        Ok(targets)
    }

    fn check_mode(&self, resource: &Resource) -> Result<(), Failure> {
        let (is, mode) = match (resource.is_stacked(), self.request.stacked) {
            (true, false) => ("stacked", "normal"),
            (false, true) => ("normal", "stacked"),
            _ => return Ok(()),
        };
        // The kernel calls handlers without knowing about modes.
        if self.command.is_handler() || self.command.name == "sh-udev" {
            return Ok(());
        }
        Err(Failure::new(1, format!("'{}' is a {is} resource, and not available in {mode} mode.", resource.name)))
    }

    /// Commands for whole resources take no volume, some need exactly one.
    fn checked_volume(&self, mut target: Target<'a>) -> Result<Target<'a>, Failure> {
        let volumes = target.resource.my_host().map_or(&[][..], |host| &host.volumes);
        let explicit = |number| volumes.iter().any(|volume| volume.number == number && !volume.implicit);
        match (self.command.targets, target.volume) {
            (Targets::Resources | Targets::ResourcesOrAll, Some(number)) if !explicit(number) => target.volume = None,
            (Targets::Resources | Targets::ResourcesOrAll, Some(_)) => {
                let text =
                    format!("{} operates on whole resources, but you specified a specific volume!", self.command.name);
                return Err(Failure::new(1, text));
            }
            (Targets::OneVolume, None) => match volumes {
                [only] if only.implicit => target.volume = Some(only.number),
                _ => {
                    let text = format!(
                        "{} requires a specific volume, but {} has several.\nTry minor-N, or {}/VOLUME.",
                        self.command.name, target.resource.name, target.resource.name
                    );
                    return Err(Failure::new(1, text));
                }
            },
            _ => {}
        }
        Ok(target)
    }

    /// The own address and the peer, for commands that need them.
    fn check_host(&self, resource: &Resource) -> Result<(), Failure> {
        let Some(host) = resource.my_host() else { return Ok(()) };
        let skips_address = self.config.global.disable_ip_verification || self.request.dry_run == 1;
        if let Some(address) = host.address.as_ref().filter(|_| self.command.checks_address && !skips_address) {
            if !has_address(&address.ip) {
                let place = self.config.sources.place(&address.span);
                let name = host.names.join(" ");
                return Err(Failure::new(
                    10,
                    format!(
                        "{place}: in resource {}, on {name}:\n\tIP {} not found on this host.",
                        resource.name, address.ip
                    ),
                ));
            }
        }
        if self.command.needs_peer && resource.peer_host().is_none() {
            let (title, label) = if resource.hosts.len() > 2 {
                ("has more than one possible peer", "choose one of its hosts with --peer=HOST")
            } else {
                ("has no peer", "expected a second section like `on HOST { ... }` in this resource")
            };
            let title = format!("resource {} {title}", resource.name);
            Diagnostic::error(&resource.span, title, label).print(&self.config.sources);
            return Err(Failure::silent(10));
        }
        Ok(())
    }

    pub fn lines(&self, resource: &'a Resource) -> Option<Lines<'a>> {
        let host = resource.my_host()?;
        Some(Lines { config: self.config, resource, host, node: self.node, explicit: &self.request.explicit })
    }

    // ---- one target

    fn one_target(&self, target: &Target<'a>) -> Result<i32, Failure> {
        let Some(lines) = self.lines(target.resource) else { return Ok(1) };
        let chosen = |volume: &&Volume| target.volume.is_none_or(|number| number == volume.number);
        if self.command.is_handler() {
            let volume = lines.host.volumes.iter().find(chosen).filter(|_| self.command.targets == Targets::OneVolume);
            return handler::run(&lines, self.command.name, volume, self.runner.dry_run);
        }
        if matches!(self.command.targets, Targets::Resources | Targets::ResourcesOrAll) {
            return self.one_resource(&lines);
        }
        for volume in lines.host.volumes.iter().filter(chosen) {
            let code = self.one_volume(&lines, volume)?;
            if code != 0 {
                return Ok(code);
            }
        }
        Ok(0)
    }

    fn go(&self, lines: &Lines<'_>, line: &Line, class: Class) -> Result<i32, Failure> {
        self.runner.run(&lines.resource.name, line, class, Errors::Show)
    }

    fn one_resource(&self, lines: &Lines<'_>) -> Result<i32, Failure> {
        let name = self.command.name;
        let line = match name {
            "connect" => lines.connect(),
            "disconnect" | "net-options" => lines.of_connection(name),
            "new-resource" => lines.new_resource(),
            "sh-resource" => {
                println!("{}", lines.resource.name);
                return Ok(0);
            }
            _ => lines.of_resource(name),
        };
        let code = self.go(lines, &line, self.command.class)?;
        if code == 0 && name == "new-resource" {
            self.register(&resource_link(&lines.resource.name));
        }
        Ok(code)
    }

    fn one_volume(&self, lines: &Lines<'_>, volume: &Volume) -> Result<i32, Failure> {
        let (name, class) = (self.command.name, self.command.class);
        match name {
            "attach" => {
                let applied = self.go(lines, &lines.plain_meta("apply-al", volume), Class::Unlimited)?;
                if applied != 0 {
                    return Ok(applied);
                }
                self.go(lines, &lines.attach(volume), class)
            }
            "dump-md" | "wipe-md" | "apply-al" | "set-gi" => self.go(lines, &lines.meta(name, volume), class),
            "create-md" => self.create_md(lines, volume),
            "dstate" | "show-gi" | "get-gi" | "invalidate" => self.with_fallback(lines, volume),
            "outdate" => self.outdate(lines, volume),
            "resize" => {
                let code = self.go(lines, &lines.resize(volume), class)?;
                if code == 0 {
                    let check = Line::setup(["check-resize".to_owned(), minor_text(volume)]);
                    self.go(lines, &check, class)?;
                }
                Ok(code)
            }
            "check-resize" => self.check_resize(lines, volume),
            "wait-connect" => self.go(lines, &lines.wait_connect(volume, self.request.stacked), class),
            "new-minor" | "sh-new-minor" => {
                let code = self.go(lines, &lines.new_minor(volume), class)?;
                if let (0, Some(minor)) = (code, volume.minor) {
                    self.register(&minor_link(minor));
                }
                Ok(code)
            }
            "sh-b-pri" => self.become_primary(lines, volume),
            name if name.starts_with("sh-") => self.print_fact(lines, volume),
            name => self.go(lines, &lines.of_minor(name, volume), class),
        }
    }

    /// Notes the configuration file, unless it cannot be found again.
    fn register(&self, link: &Path) {
        if let (Some(file), false) = (self.config_file(), self.runner.dry_run) {
            adjust::register(link, file);
        }
    }

    fn config_file(&self) -> Option<&Path> {
        Some(Path::new(&self.config.file)).filter(|path| path.is_absolute())
    }

    /// The kernel is asked first; what it cannot say is on the disk.
    // spec: commands 2.9
    fn with_fallback(&self, lines: &Lines<'_>, volume: &Volume) -> Result<i32, Failure> {
        let name = self.command.name;
        let resource = &lines.resource.name;
        let line = lines.of_minor(name, volume);
        let (code, errors) = self.runner.run_captured(resource, &line, self.command.class)?;
        if matches!(code, 11 | 17) {
            eprint!("{errors}");
            return Ok(code);
        }
        if code == 0 && !self.runner.dry_run {
            return Ok(0);
        }
        self.go(lines, &lines.meta(name, volume), Class::Unlimited)
    }

    // spec: commands 2.9
    fn outdate(&self, lines: &Lines<'_>, volume: &Volume) -> Result<i32, Failure> {
        let line = lines.of_minor("outdate", volume);
        let code = self.runner.run(&lines.resource.name, &line, self.command.class, Errors::Suppress)?;
        if code == 17 || (code == 0 && !self.runner.dry_run) {
            return Ok(code);
        }
        let on_disk = self.go(lines, &lines.meta("outdate", volume), Class::Unlimited)?;
        Ok(if code == 5 && on_disk != 0 { 5 } else { on_disk })
    }

    fn check_resize(&self, lines: &Lines<'_>, volume: &Volume) -> Result<i32, Failure> {
        let resource = &lines.resource.name;
        let quiet = |line: &Line| self.runner.run(resource, line, self.command.class, Errors::Suppress);
        if quiet(&lines.resize(volume))? == 0 {
            return quiet(&Line::setup(["check-resize".to_owned(), minor_text(volume)]));
        }
        self.go(lines, &lines.plain_meta("check-resize", volume), Class::Unlimited)
    }

    /// New meta data; the identity of the disk is kept, or made.
    // spec: commands 2.10
    fn create_md(&self, lines: &Lines<'_>, volume: &Volume) -> Result<i32, Failure> {
        let resource = &lines.resource.name;
        let read = lines.plain_meta("read-dev-uuid", volume);
        let old = if self.runner.dry_run { (1, String::new()) } else { self.runner.output_of(&read)? };
        let code = self.go(lines, &lines.meta("create-md", volume), Class::Unlimited)?;
        if code != 0 || self.runner.dry_run {
            return Ok(code);
        }
        let old_uuid = u64::from_str_radix(old.1.trim(), 16).ok().filter(|uuid| old.0 == 0 && *uuid != 0);
        let Some(uuid) = old_uuid.or_else(random_number) else { return Ok(0) };
        let write = lines.plain_meta("write-dev-uuid", volume).with([format!("{uuid:016X}")]);
        // The disk is as good without an identity.
        self.runner.run(resource, &write, Class::Unlimited, Errors::Suppress)?;
        Ok(0)
    }

    fn become_primary(&self, lines: &Lines<'_>, volume: &Volume) -> Result<i32, Failure> {
        let wanted = &lines.resource.sections.become_primary_on;
        if !wanted.iter().any(|name| name == "both" || lines.host.names.contains(name)) {
            return Ok(0);
        }
        let line = lines.of_minor("primary", volume);
        let mut code = 0;
        for attempt in 0..PROMOTION_TRIES {
            if attempt > 0 {
                std::thread::sleep(Duration::from_secs(1));
            }
            code = self.go(lines, &line, Class::Long)?;
            if code == 0 {
                break;
            }
        }
        Ok(code)
    }

    // ---- staged commands

    fn staged(&self, targets: &[Target<'a>]) -> Result<i32, Failure> {
        let mut jobs: Vec<Job> = Vec::new();
        for target in targets {
            let Some(lines) = self.lines(target.resource) else { continue };
            if self.command.name == "up" {
                jobs.extend(adjust::up(&lines, target.volume));
            } else {
                let running = self.running(target.resource)?;
                jobs.extend(adjust::adjust(&lines, running.as_ref()));
            }
        }
        let mut runner = self.runner.clone();
        let progress = self.command.name == "adjust-with-progress" && !runner.dry_run && !runner.verbose;
        runner.quiet = progress;
        Staged { runner: &runner, program: self.program, config_file: self.config_file(), progress }.run(&jobs)
    }

    /// What the kernel has of a resource.
    fn running(&self, resource: &Resource) -> Result<Option<Resource>, Failure> {
        let (_, text) = self.runner.output_of(&Line::setup(["show", &resource.name]))?;
        let mut reader = Reader::default();
        reader.is_kernel_output = true;
        reader.read_text("drbdsetup show", &text, Path::new("/"));
        if reader.is_invalid() {
            reader.diagnostics.iter().for_each(|diagnostic| diagnostic.print(&reader.config.sources));
            return Err(Failure::new(20, "The kernel's configuration cannot be understood."));
        }
        Ok(reader.config.resources.into_iter().find(|running| running.name == resource.name))
    }

    // ---- printing

    fn dump(&self) -> Result<i32, Failure> {
        let named = !self.request.targets.is_empty() && !self.request.targets.iter().any(|word| word == "all");
        let resources: Vec<&Resource> = if named {
            let mut resources = Vec::new();
            for word in &self.request.targets {
                resources.push(find_target(self.config, word)?.resource);
            }
            resources
        } else {
            self.config.resources.iter().collect()
        };
        for resource in &resources {
            self.check_host(resource)?;
        }
        if self.command.name == "dump-xml" {
            print!("{}", print::xml_text(self.config, resources.into_iter(), !named));
            return Ok(0);
        }
        if !named {
            print!("{}", print::header(self.config, self.request.verbose > 0));
        }
        for resource in resources {
            print!("{}", print::resource(self.config, resource, self.node));
        }
        Ok(0)
    }

    fn print_names(&self) -> i32 {
        let names: Vec<_> = self.all().map(|resource| super::shell_escape(&resource.name)).collect();
        if !names.is_empty() {
            println!("{}", names.join(" "));
        }
        0
    }

    // spec: commands 2.13
    fn print_module_parameters(&self) -> i32 {
        let minors =
            self.config.resources.iter().filter_map(Resource::my_host).map(|host| host.volumes.len()).sum::<usize>();
        let computed = u32::try_from(minors).unwrap_or(255).saturating_add(3).clamp(32, 255);
        println!("minor_count={}", self.config.global.minor_count.unwrap_or(computed));
        0
    }

    fn print_fact(&self, lines: &Lines<'_>, volume: &Volume) -> Result<i32, Failure> {
        match self.command.name {
            "sh-dev" => println!("{}", volume.device_name()),
            "sh-minor" => println!("{}", minor_text(volume)),
            "sh-ll-dev" => println!("{}", volume.disk_path()),
            "sh-md-dev" => println!("{}", volume.meta_path()),
            "sh-md-idx" => println!("{}", volume.index_for_attach()),
            "sh-ip" => println!("{}", lines.host.address.as_ref().map_or("", |address| &address.ip)),
            "sh-udev" => self.print_udev(lines, volume),
            "sh-lr-of" => match &lines.host.kind {
                crate::config::model::HostKind::StackedOn(lower) => println!("{lower}"),
                _ => {
                    return Err(Failure::new(
                        1,
                        format!("{} is no stacked resource; sh-lr-of goes with -S", lines.resource.name),
                    ))
                }
            },
            other => return Err(Failure::new(42, format!("{other}: nothing known about it"))),
        }
        Ok(0)
    }

    // spec: proc-and-sysfs 5
    fn print_udev(&self, lines: &Lines<'_>, volume: &Volume) {
        let with_number = !volume.implicit || self.config.global.udev_always_use_vnr;
        let number = if with_number { format!("/{}", volume.number) } else { String::new() };
        let device = volume.device_name();
        let bare = |path: &str| path.strip_prefix("/dev/").unwrap_or(path).to_owned();
        println!(
            "RESOURCE={}{number}\nDEVICE={}\nDISK={}",
            lines.resource.name,
            bare(&device),
            bare(volume.disk_path())
        );
    }

    // spec: commands 2.13 (sh-status)
    fn print_sh_status(&self) -> Result<i32, Failure> {
        if !self.runner.dry_run {
            println!("_drbd_version=9.22.0\n_drbd_api=1\n_config_file={}\n\n", super::shell_escape(&self.config.file));
        }
        for resource in &self.config.resources {
            let Some(lines) = self.lines(resource) else { continue };
            println!("_conf_res_name={}", super::shell_escape(&resource.name));
            println!("_conf_file_line={}\n", super::shell_escape(&self.config.sources.place(&resource.span)));
            let lower = self.lower_of(lines.host);
            match lower {
                Some(lower) => println!("_stacked_on={}", super::shell_escape(&lower.name)),
                None => println!("_stacked_on=\n_stacked_on_device=\n_stacked_on_minor="),
            }
            for volume in &lines.host.volumes {
                let below = lower
                    .and_then(Resource::my_host)
                    .and_then(|host| host.volumes.iter().find(|v| v.number == volume.number));
                if let Some(below) = below {
                    println!("_stacked_on_device={}\n_stacked_on_minor={}", below.device_name(), minor_text(below));
                }
                println!("_conf_volume={}", volume.number);
                let code = self.go(&lines, &Line::setup(["sh-status".to_owned(), minor_text(volume)]), Class::Short)?;
                if code != 0 {
                    return Ok(code);
                }
            }
        }
        Ok(0)
    }

    fn lower_of(&self, host: &Host) -> Option<&'a Resource> {
        let crate::config::model::HostKind::StackedOn(name) = &host.kind else { return None };
        self.config.resources.iter().find(|resource| resource.name == *name)
    }
}

fn minor_text(volume: &Volume) -> String {
    volume.minor.map_or("N/A".to_owned(), |minor| minor.to_string())
}

/// 64 random bits.
fn random_number() -> Option<u64> {
    let mut bytes = [0; 8];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut bytes));
    read.ok().map(|()| u64::from_ne_bytes(bytes))
}
