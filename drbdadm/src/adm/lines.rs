// SPDX-License-Identifier: GPL-2.0
//! From the configuration to child command lines.
//!
//! spec: commands 2.1, 2.4

use super::run::Line;
use crate::config::model::{Address, Config, Host, Resource, Setting, Volume};
use crate::config::resolve::resync_after_minor;

/// Makes the lines for one resource.
#[derive(Clone, Copy)]
pub struct Lines<'a> {
    /// Everything.
    pub config: &'a Config,
    /// The resource; it has a section for this host.
    pub resource: &'a Resource,
    /// This host's section.
    pub host: &'a Host,
    /// Name of this host.
    pub node: &'a str,
    /// Options from the command line, appended as they were typed.
    pub explicit: &'a [String],
}

impl Lines<'_> {
    /// One option as a word; `None` for what means nothing to the kernel.
    fn option(&self, setting: &Setting) -> Option<String> {
        let value = setting.argument();
        let value = match setting.name {
            "use-bmbv" => return None,
            "resync-after" => resync_after_minor(self.config, value).ok()?.to_string(),
            "after-sb-0pri" => match value.strip_prefix("discard-node-") {
                Some(name) if self.host.names.iter().any(|own| own == name) || name == self.node => {
                    "discard-local".to_owned()
                }
                Some(_) => "discard-remote".to_owned(),
                None => value.to_owned(),
            },
            _ => value.to_owned(),
        };
        Some(format!("--{}={value}", setting.name))
    }

    fn options<'s>(&self, settings: impl IntoIterator<Item = &'s Setting>) -> Vec<String> {
        settings.into_iter().filter_map(|setting| self.option(setting)).collect()
    }

    /// `drbdsetup COMMAND MINOR`.
    pub fn of_minor(&self, command: &str, volume: &Volume) -> Line {
        Line::setup([command.to_owned(), minor(volume)]).with(self.explicit)
    }

    /// `drbdsetup COMMAND RESOURCE`.
    pub fn of_resource(&self, command: &str) -> Line {
        Line::setup([command, &self.resource.name]).with(self.explicit)
    }

    /// `drbdsetup COMMAND LOCAL REMOTE`.
    pub fn of_connection(&self, command: &str) -> Line {
        Line::setup([command.to_owned(), self.local(), self.remote()]).with(self.explicit)
    }

    /// `drbdmeta MINOR v08 DEVICE INDEX COMMAND`.
    pub fn meta(&self, command: &str, volume: &Volume) -> Line {
        let place = [minor(volume), "v08".to_owned(), volume.meta_path().to_owned(), volume.index_for_drbdmeta()];
        Line::meta(place).with([command]).with(self.explicit)
    }

    /// As [`Lines::meta`], without the options of the command line.
    pub fn plain_meta(&self, command: &str, volume: &Volume) -> Line {
        Lines { explicit: &[], ..*self }.meta(command, volume)
    }

    /// `new-resource` with its options.
    pub fn new_resource(&self) -> Line {
        let options = self.options(&self.resource.sections.options);
        Line::setup(["new-resource", &self.resource.name]).with(options).with(self.explicit)
    }

    /// `new-minor`.
    pub fn new_minor(&self, volume: &Volume) -> Line {
        let words = ["new-minor".to_owned(), self.resource.name.clone(), minor(volume), volume.number.to_string()];
        Line::setup(words).with(self.explicit)
    }

    /// `attach` with its options.
    pub fn attach(&self, volume: &Volume) -> Line {
        let words = ["attach".to_owned(), minor(volume), volume.disk_path().to_owned(), volume.meta_path().to_owned()];
        let options = self.options(&volume.settings);
        Line::setup(words).with([volume.index_for_attach()]).with(options).with(self.explicit)
    }

    /// `connect` with its options.
    pub fn connect(&self) -> Line {
        let words = ["connect".to_owned(), self.resource.name.clone(), self.local(), self.remote()];
        let alternate = |name: &str, address: &Option<Address>| address.as_ref().map(|a| format!("--{name}={a}"));
        let peer = self.resource.peer_host();
        let own = alternate("alternate-address", &self.host.alternate_address);
        let peers = peer.and_then(|peer| alternate("alternate-peer-address", &peer.alternate_address));
        let options = self.options(&self.resource.sections.net);
        Line::setup(words).with(own).with(peers).with(options).with(self.explicit)
    }

    /// `resource-options` that makes the kernel's options equal to the configured ones.
    pub fn all_resource_options(&self) -> Line {
        let options = self.options(&self.resource.sections.options);
        Line::setup(["resource-options", &self.resource.name, "--set-defaults"]).with(options)
    }

    /// `net-options` that makes the kernel's options equal to the configured ones.
    pub fn all_net_options(&self) -> Line {
        let options = self.options(&self.resource.sections.net);
        let words = ["net-options".to_owned(), self.local(), self.remote(), "--set-defaults".to_owned()];
        Line::setup(words).with(options)
    }

    /// `disk-options` that makes the kernel's options equal to the configured ones.
    pub fn all_disk_options(&self, volume: &Volume) -> Line {
        let changeable = volume.settings.iter().filter(|setting| !matches!(setting.name, "size" | "max-bio-bvecs"));
        Line::setup(["disk-options", &minor(volume), "--set-defaults"]).with(self.options(changeable))
    }

    /// `resize` with the configured size.
    pub fn resize(&self, volume: &Volume) -> Line {
        let size = volume.settings.iter().rev().find(|setting| setting.name == "size");
        Line::setup(["resize", &minor(volume)]).with(self.options(size)).with(self.explicit)
    }

    /// `wait-connect` with the times of the startup section.
    // spec: commands 2.11
    pub fn wait_connect(&self, volume: &Volume, stacked_mode: bool) -> Line {
        let line = Line::setup(["wait-connect", &minor(volume)]);
        let sections = &self.resource.sections;
        if stacked_mode && !sections.stacked_timeouts {
            let connect_int = sections.net.iter().rev().find(|setting| setting.name == "connect-int");
            let seconds = connect_int.and_then(|setting| setting.argument().parse::<u32>().ok()).unwrap_or(10);
            return line.with(["--wfc-timeout".to_owned(), seconds.saturating_mul(2).to_string()]).with(self.explicit);
        }
        line.with(self.options(&sections.startup)).with(self.explicit)
    }

    /// The running values of a setting as the kernel shows them.
    pub fn shown_value(&self, setting: &Setting) -> Option<String> {
        self.option(setting).and_then(|option| option.split_once('=').map(|(_, value)| value.to_owned()))
    }

    /// Own address.
    pub fn local_address(&self) -> Option<&Address> {
        self.host.address.as_ref()
    }

    /// The peer's address, or that of the proxy that leads to it.
    pub fn remote_address(&self) -> Option<&Address> {
        let inside = self.host.proxy.as_ref().and_then(|proxy| proxy.inside.as_ref());
        inside.or(self.resource.peer_host().and_then(|peer| peer.address.as_ref()))
    }

    fn local(&self) -> String {
        self.local_address().map_or("N/A".to_owned(), Address::to_string)
    }

    fn remote(&self) -> String {
        self.remote_address().map_or("N/A".to_owned(), Address::to_string)
    }
}

fn minor(volume: &Volume) -> String {
    volume.minor.map_or("N/A".to_owned(), |minor| minor.to_string())
}
