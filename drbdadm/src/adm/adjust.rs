// SPDX-License-Identifier: GPL-2.0
//! `up` and `adjust`: what has to be done, in which stage, and doing it.
//!
//! spec: commands 2.5, 2.6, 2.7

use super::lines::Lines;
use super::run::{Class, Errors, Line, Runner};
use crate::config::model::{Address, Host, HostKind, Resource, Setting, Settings, Volume};
use crate::failure::Failure;
use crate::options::{find_config, Section};
use crate::setup::{minor_link, resource_link};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The stages in their order; all resources go through one before any goes into the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// New resources; removal of what is in the way.
    CreateResource,
    /// Options of resources.
    AdjustResource,
    /// New minors.
    PrepareDisk,
    /// Attaching, options of disks, sizes.
    AdjustDisk,
    /// Disconnecting.
    PrepareNet,
    /// Connecting, options of connections.
    AdjustNet,
}

impl Stage {
    const ALL: [Stage; 6] = [
        Stage::CreateResource,
        Stage::AdjustResource,
        Stage::PrepareDisk,
        Stage::AdjustDisk,
        Stage::PrepareNet,
        Stage::AdjustNet,
    ];

    fn name(self) -> &'static str {
        match self {
            Stage::CreateResource => "create res",
            Stage::AdjustResource => "adjust res",
            Stage::PrepareDisk => "prepare disk",
            Stage::AdjustDisk => "adjust disk",
            Stage::PrepareNet => "prepare net",
            Stage::AdjustNet => "adjust net",
        }
    }

    /// Without this nothing later can work for the resource.
    fn is_essential(self) -> bool {
        matches!(self, Stage::CreateResource | Stage::PrepareDisk)
    }
}

/// Something to be done for one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// When.
    pub stage: Stage,
    /// For which resource.
    pub resource: String,
    /// Name of the command, for messages.
    pub name: &'static str,
    /// Its lines; the first that fails ends it.
    pub lines: Vec<(Line, Class)>,
    /// Note of the configuration file, made afterwards.
    pub link: Option<PathBuf>,
}

impl Job {
    fn new(stage: Stage, lines: &Lines<'_>, name: &'static str, line: Line, class: Class) -> Self {
        Job { stage, resource: lines.resource.name.clone(), name, lines: vec![(line, class)], link: None }
    }
}

fn new_resource(lines: &Lines<'_>) -> Job {
    let link = Some(resource_link(&lines.resource.name));
    Job { link, ..Job::new(Stage::CreateResource, lines, "new-resource", lines.new_resource(), Class::Short) }
}

fn new_minor(lines: &Lines<'_>, stage: Stage, volume: &Volume) -> Job {
    let link = volume.minor.map(minor_link);
    Job { link, ..Job::new(stage, lines, "new-minor", lines.new_minor(volume), Class::Short) }
}

fn attach(lines: &Lines<'_>, volume: &Volume) -> Job {
    let mut job = Job::new(Stage::AdjustDisk, lines, "attach", lines.plain_meta("apply-al", volume), Class::Unlimited);
    job.lines.push((lines.attach(volume), Class::Long));
    job
}

fn connect(lines: &Lines<'_>) -> Job {
    Job::new(Stage::AdjustNet, lines, "connect", lines.connect(), Class::Short)
}

/// What sets a resource up from nothing, with all its volumes or one of them.
// spec: commands 2.5
pub fn up(lines: &Lines<'_>, only: Option<u32>) -> Vec<Job> {
    let volumes = || lines.host.volumes.iter().filter(|volume| only.is_none_or(|number| number == volume.number));
    let mut jobs = vec![new_resource(lines)];
    jobs.extend(volumes().map(|volume| new_minor(lines, Stage::CreateResource, volume)));
    jobs.extend(volumes().map(|volume| attach(lines, volume)));
    jobs.push(connect(lines));
    jobs
}

/// What makes the running state equal to the configuration.
// spec: commands 2.6
pub fn adjust(lines: &Lines<'_>, running: Option<&Resource>) -> Vec<Job> {
    let Some(running) = running else {
        let mut jobs = up(lines, None);
        for job in jobs.iter_mut().filter(|job| job.name == "new-minor") {
            job.stage = Stage::PrepareDisk;
        }
        return jobs;
    };
    let mut jobs = Vec::new();
    let configured = &lines.resource.sections.options;
    if !same(lines, Section::Resource, configured, &running.sections.options) {
        let line = lines.all_resource_options();
        jobs.push(Job::new(Stage::AdjustResource, lines, "resource-options", line, Class::Short));
    }
    let this = running.hosts.iter().find(|host| host.kind == HostKind::This);
    adjust_disks(lines, this.map_or(&[], |host| &host.volumes), &mut jobs);
    adjust_connection(lines, running, this, &mut jobs);
    jobs
}

fn adjust_disks(lines: &Lines<'_>, running: &[Volume], jobs: &mut Vec<Job>) {
    let stays = |volume: &Volume| {
        lines.host.volumes.iter().any(|wanted| wanted.number == volume.number && wanted.minor == volume.minor)
    };
    for volume in running.iter().filter(|volume| !stays(volume)) {
        remove_disk(lines, volume, jobs);
        let line = Line::setup(["del-minor".to_owned(), minor_text(volume)]);
        jobs.push(Job::new(Stage::CreateResource, lines, "del-minor", line, Class::Short));
    }
    for wanted in &lines.host.volumes {
        let now = running.iter().find(|volume| volume.number == wanted.number && volume.minor == wanted.minor);
        let Some(now) = now else {
            jobs.push(new_minor(lines, Stage::PrepareDisk, wanted));
            jobs.push(attach(lines, wanted));
            continue;
        };
        adjust_disk(lines, wanted, now, jobs);
    }
}

/// Detaches what is attached.
fn remove_disk(lines: &Lines<'_>, volume: &Volume, jobs: &mut Vec<Job>) {
    if volume.disk.is_some() {
        let line = Line::setup(["detach".to_owned(), minor_text(volume)]);
        jobs.push(Job::new(Stage::CreateResource, lines, "detach", line, Class::Long));
    }
}

fn adjust_disk(lines: &Lines<'_>, wanted: &Volume, now: &Volume, jobs: &mut Vec<Job>) {
    let only = |settings: &Settings, name: &str| -> Settings {
        settings.iter().filter(|setting| setting.name == name).cloned().collect()
    };
    let same_option =
        |name: &str| same(lines, Section::Disk, &only(&wanted.settings, name), &only(&now.settings, name));
    let same_place = wanted.disk_path() == now.disk_path() && same_meta_place(wanted, now);
    if now.disk.is_none() || !same_place || !same_option("max-bio-bvecs") {
        remove_disk(lines, now, jobs);
        jobs.push(attach(lines, wanted));
        return;
    }
    if !same_option("size") {
        let line = lines.resize(wanted);
        jobs.push(Job::new(Stage::AdjustDisk, lines, "resize", line, Class::Short));
    }
    let changeable = |settings: &Settings| -> Settings {
        settings.iter().filter(|setting| !matches!(setting.name, "size" | "max-bio-bvecs")).cloned().collect()
    };
    if !same(lines, Section::Disk, &changeable(&wanted.settings), &changeable(&now.settings)) {
        let line = lines.all_disk_options(wanted);
        jobs.push(Job::new(Stage::AdjustDisk, lines, "disk-options", line, Class::Short));
    }
}

/// Internal or external, and on which device; the slot is not compared.
fn same_meta_place(wanted: &Volume, now: &Volume) -> bool {
    let internal = |volume: &Volume| volume.index_for_attach() == "internal";
    internal(wanted) == internal(now) && wanted.meta_path() == now.meta_path()
}

fn adjust_connection(lines: &Lines<'_>, running: &Resource, this: Option<&Host>, jobs: &mut Vec<Job>) {
    let address = |host: Option<&'_ Host>| host.and_then(|host| host.address.clone());
    let remote = running.hosts.iter().find(|host| host.kind == HostKind::Remote);
    let (own, peer) = (address(this), address(remote));
    let Some(peer) = peer else {
        jobs.push(connect(lines));
        return;
    };
    let same_end = |a: Option<&Address>, b: Option<&Address>| a.map(Address::canonical) == b.map(Address::canonical);
    if !same_end(own.as_ref(), lines.local_address()) || !same_end(Some(&peer), lines.remote_address()) {
        let own = own.map_or(String::new(), |own| own.to_string());
        let line = Line::setup(["disconnect".to_owned(), own, peer.to_string()]);
        jobs.push(Job::new(Stage::PrepareNet, lines, "disconnect", line, Class::Short));
        jobs.push(connect(lines));
        return;
    }
    if !same(lines, Section::Net, &lines.resource.sections.net, &running.sections.net) {
        jobs.push(Job::new(Stage::AdjustNet, lines, "net-options", lines.all_net_options(), Class::Short));
    }
}

fn minor_text(volume: &Volume) -> String {
    volume.minor.map_or("N/A".to_owned(), |minor| minor.to_string())
}

/// Do both lists mean the same to the kernel? An option on one side only has to have its default value.
fn same(lines: &Lines<'_>, section: Section, configured: &[Setting], running: &[Setting]) -> bool {
    let configured: BTreeMap<&str, String> =
        configured.iter().filter_map(|setting| Some((setting.name, lines.shown_value(setting)?))).collect();
    let running: BTreeMap<&str, String> =
        running.iter().map(|setting| (setting.name, setting.argument().to_owned())).collect();
    let names = configured.keys().chain(running.keys());
    names.into_iter().all(|name| {
        let option = find_config(section, name);
        match (configured.get(name), running.get(name)) {
            (Some(a), Some(b)) => option.is_some_and(|option| option.same(a, b)),
            (Some(only), None) | (None, Some(only)) => option.is_some_and(|option| option.is_default(only)),
            (None, None) => true,
        }
    })
}

/// How jobs are carried out.
pub struct Staged<'a> {
    /// For the lines.
    pub runner: &'a Runner,
    /// For messages.
    pub program: &'a str,
    /// Path of the configuration file, for the notes; `None` when there is none to be found again.
    pub config_file: Option<&'a Path>,
    /// One line a stage instead of error messages; failures do not end it.
    pub progress: bool,
}

impl Staged<'_> {
    /// Carries out all jobs; 1 if anything failed.
    ///
    /// # Errors
    /// Exit code 20 when a child cannot be executed or does not end.
    pub fn run(&self, jobs: &[Job]) -> Result<i32, Failure> {
        let mut broken: Vec<&str> = Vec::new();
        let mut failed = false;
        if self.progress {
            print!("[");
        }
        for stage in Stage::ALL {
            let of_stage: Vec<_> = jobs.iter().filter(|job| job.stage == stage).collect();
            if self.progress && !of_stage.is_empty() {
                print!("\n{:>15}:", stage.name());
            }
            let mut shown = "";
            for job in of_stage {
                if broken.contains(&job.resource.as_str()) {
                    self.say_skipped(job);
                    failed = true;
                    continue;
                }
                if self.progress && shown != job.resource {
                    shown = &job.resource;
                    print!(" {shown}");
                }
                let code = self.run_job(job)?;
                if code != 0 {
                    failed = true;
                    if self.progress {
                        print!(":failed({}:{code})", job.name);
                    }
                    if stage.is_essential() {
                        broken.push(&job.resource);
                    }
                }
            }
            if failed && !self.progress {
                break;
            }
        }
        if self.progress {
            println!("\n]");
        }
        Ok(i32::from(failed))
    }

    fn say_skipped(&self, job: &Job) {
        if self.progress {
            print!(" [skipped:{}]", job.resource);
        } else {
            eprintln!("{}: {} {}: skipped due to earlier error", self.program, job.name, job.resource);
        }
    }

    fn run_job(&self, job: &Job) -> Result<i32, Failure> {
        for (line, class) in &job.lines {
            let code = self.runner.run(&job.resource, line, *class, Errors::Show)?;
            if code != 0 {
                return Ok(code);
            }
        }
        if let (Some(link), Some(file), false) = (&job.link, self.config_file, self.runner.dry_run) {
            register(link, file);
        }
        Ok(0)
    }
}

/// Notes which configuration file something came from, for handlers and udev.
// spec: netlink 11.5
pub fn register(link: &Path, file: &Path) {
    let make = || -> std::io::Result<()> {
        if let Some(directory) = link.parent() {
            std::fs::create_dir_all(directory)?;
        }
        match std::fs::remove_file(link) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::os::unix::fs::symlink(file, link)
    };
    if let Err(error) = make() {
        eprintln!("{}: {error}", link.display());
    }
}
