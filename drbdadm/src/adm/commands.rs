// SPDX-License-Identifier: GPL-2.0
//! The commands of drbdadm.
//!
//! spec: commands 2.1

use super::run::Class;

/// What a command is carried out for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Targets {
    /// Every volume of each target.
    Volumes,
    /// Exactly one volume.
    OneVolume,
    /// Whole resources.
    Resources,
    /// Whole resources, all of them when none is named.
    ResourcesOrAll,
    /// Nothing.
    None,
}

/// Which list of the help text it stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// For everybody.
    Public,
    /// For shell scripts.
    Shell,
    /// Called by the kernel.
    Handler,
    /// For those who know what they do.
    Expert,
}

/// One command.
#[derive(Clone, Copy, Debug)]
pub struct CommandRow {
    /// Its name.
    pub name: &'static str,
    /// What it is for.
    pub targets: Targets,
    /// The own address has to be an address of this machine.
    pub checks_address: bool,
    /// There has to be one peer.
    pub needs_peer: bool,
    /// The configuration that was used when the volume was set up is read.
    pub registered_config: bool,
    /// How long children may run.
    pub class: Class,
    /// List of the help text.
    pub group: Group,
}

const fn row(name: &'static str, targets: Targets, class: Class) -> CommandRow {
    CommandRow {
        name,
        targets,
        checks_address: false,
        needs_peer: false,
        registered_config: false,
        class,
        group: Group::Public,
    }
}

impl CommandRow {
    const fn address(mut self) -> Self {
        self.checks_address = true;
        self
    }

    const fn peer(mut self) -> Self {
        self.checks_address = true;
        self.needs_peer = true;
        self
    }

    const fn in_group(mut self, group: Group) -> Self {
        self.group = group;
        self
    }

    const fn handler(mut self) -> Self {
        self.registered_config = true;
        self.group = Group::Handler;
        self
    }

    const fn registered(mut self) -> Self {
        self.registered_config = true;
        self
    }

    /// Is it the name of a handler?
    pub fn is_handler(&self) -> bool {
        self.group == Group::Handler
    }
}

/// All commands in the order of the help text.
pub const COMMANDS: &[CommandRow] = {
    use Class::{Long, Short, Unlimited};
    use Group::{Expert, Shell};
    use Targets::{None, OneVolume, Resources, ResourcesOrAll, Volumes};
    &[
        row("attach", Volumes, Long),
        row("disk-options", Volumes, Long),
        row("detach", Volumes, Long),
        row("connect", Resources, Short).peer(),
        row("net-options", Resources, Short).peer(),
        row("disconnect", Resources, Short),
        row("up", Volumes, Long).peer(),
        row("resource-options", Resources, Short),
        row("down", Resources, Long),
        row("primary", Volumes, Long),
        row("secondary", Volumes, Long),
        row("invalidate", Volumes, Short),
        row("invalidate-remote", Volumes, Long).address(),
        row("outdate", Volumes, Short),
        row("resize", Volumes, Short).address(),
        row("verify", Volumes, Short).address(),
        row("pause-sync", Volumes, Short).address(),
        row("resume-sync", Volumes, Short).address(),
        row("adjust", Resources, Long).peer(),
        row("adjust-with-progress", Resources, Long).peer(),
        row("wait-connect", Volumes, Unlimited).address(),
        row("wait-sync", Volumes, Unlimited).address(),
        row("wait-con-int", None, Unlimited).address(),
        row("role", Volumes, Short),
        row("cstate", Volumes, Short),
        row("dstate", Volumes, Short),
        row("status", ResourcesOrAll, Short),
        row("dump", ResourcesOrAll, Short).address(),
        row("dump-xml", ResourcesOrAll, Short).address(),
        row("create-md", Volumes, Unlimited),
        row("show-gi", Volumes, Short),
        row("get-gi", Volumes, Short),
        row("dump-md", Volumes, Unlimited),
        row("wipe-md", Volumes, Unlimited),
        row("apply-al", Volumes, Unlimited),
        row("hidden-commands", None, Short),
        row("sh-nop", None, Short).in_group(Shell),
        row("sh-resources", None, Short).in_group(Shell),
        row("sh-resource", Resources, Short).in_group(Shell),
        row("sh-mod-parms", None, Short).in_group(Shell),
        row("sh-dev", Volumes, Short).in_group(Shell),
        row("sh-udev", OneVolume, Short).registered().in_group(Shell),
        row("sh-minor", Volumes, Short).in_group(Shell),
        row("sh-ll-dev", Volumes, Short).in_group(Shell),
        row("sh-md-dev", Volumes, Short).in_group(Shell),
        row("sh-md-idx", Volumes, Short).in_group(Shell),
        row("sh-ip", Volumes, Short).in_group(Shell),
        row("sh-lr-of", Volumes, Short).in_group(Shell),
        row("sh-b-pri", Volumes, Short).in_group(Shell),
        row("sh-status", None, Short).in_group(Shell),
        row("pri-on-incon-degr", OneVolume, Unlimited).handler(),
        row("pri-lost-after-sb", OneVolume, Unlimited).handler(),
        row("pri-lost", OneVolume, Unlimited).handler(),
        row("initial-split-brain", OneVolume, Unlimited).handler(),
        row("split-brain", OneVolume, Unlimited).handler(),
        row("out-of-sync", OneVolume, Unlimited).handler(),
        row("fence-peer", Resources, Unlimited).handler(),
        row("unfence-peer", Resources, Unlimited).handler(),
        row("local-io-error", OneVolume, Unlimited).handler(),
        row("before-resync-target", OneVolume, Unlimited).handler(),
        row("after-resync-target", OneVolume, Unlimited).handler(),
        row("before-resync-source", OneVolume, Unlimited).handler(),
        row("suspend-io", Volumes, Short).in_group(Expert),
        row("resume-io", Volumes, Short).in_group(Expert),
        row("set-gi", OneVolume, Unlimited).in_group(Expert),
        row("new-current-uuid", OneVolume, Short).in_group(Expert),
        row("check-resize", Volumes, Short).in_group(Expert),
        row("new-resource", Resources, Short).in_group(Expert),
        row("new-minor", Volumes, Short).in_group(Expert),
        row("sh-new-minor", Volumes, Short).in_group(Expert),
    ]
};

/// The command with this name; `state` and `outdate-peer` are the old names of two.
pub fn find(name: &str) -> Option<&'static CommandRow> {
    let name = match name {
        "state" => "role",
        "outdate-peer" => "fence-peer",
        name => name,
    };
    COMMANDS.iter().find(|row| row.name == name)
}

/// Is this the name of a command?
pub fn is_command(name: &str) -> bool {
    find(name).is_some() || name == "help"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::HANDLERS;

    #[test]
    fn every_handler_is_a_command() {
        for name in HANDLERS {
            assert!(find(name).unwrap().is_handler(), "{name}");
        }
        let handlers = COMMANDS.iter().filter(|row| row.is_handler()).count();
        assert_eq!(handlers, HANDLERS.len());
    }

    #[test]
    fn names_are_unique() {
        for row in COMMANDS {
            assert_eq!(COMMANDS.iter().filter(|other| other.name == row.name).count(), 1, "{}", row.name);
        }
    }
}
