// SPDX-License-Identifier: GPL-2.0
//! Help texts and `--version`. The shell completion reads the help text, its form is fixed.
//!
//! spec: commands 1.3, 1.5

use super::commands::{CommandRow, Group, COMMANDS};
use super::{command_options, GENERAL_OPTIONS};
use crate::getopt::{OptionSpec, Value};
use crate::proc_drbd;

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Version of the tools this program behaves like; scripts compare it with the module's.
const COMPATIBLE_VERSION: &str = "9.22.0";
const COMPATIBLE_VERSION_CODE: u32 = 0x09_16_00;

fn option_text(spec: &OptionSpec) -> String {
    let value = match spec.value {
        Value::None => "",
        Value::Optional => "[=...]",
        Value::Required => "=...",
    };
    let short = match (spec.short, spec.value) {
        (None, _) => String::new(),
        (Some(letter), Value::None) => format!(", -{letter}"),
        (Some(letter), _) => format!(", -{letter} ..."),
    };
    format!("  --{}{value}{short}\n", spec.long)
}

/// The help text, of one command or of all.
pub fn usage(program: &str, command: Option<&CommandRow>) -> String {
    let name = command.map_or("CMD", |command| command.name);
    let mut text = format!("\nUSAGE: {program} {name} [OPTION...] {{all|RESOURCE...}}\n\nGENERAL OPTIONS:\n");
    text.extend(GENERAL_OPTIONS.iter().map(option_text));
    match command {
        Some(command) => {
            let options = command_options(command.name);
            if !options.is_empty() {
                text += &format!("\nOPTIONS FOR {}:\n", command.name);
                text.extend(options.iter().map(option_text));
            }
        }
        None => {
            text += "\nCOMMANDS:\n";
            text += &columns(Group::Public);
        }
    }
    text + &format!("\nVersion: {COMPATIBLE_VERSION} (api:1)\n{}\n", build_line())
}

/// The commands not everybody needs.
pub fn hidden_commands() -> String {
    let mut text = String::new();
    for (title, group) in [
        ("These commands are for shell scripts:", Group::Shell),
        ("These commands are called by the kernel:", Group::Handler),
        ("These commands are for experts:", Group::Expert),
    ] {
        text += &format!("\n{title}\n\n{}", columns(group));
    }
    text
}

/// Two columns of names.
fn columns(group: Group) -> String {
    let names: Vec<_> = COMMANDS.iter().filter(|row| row.group == group).map(|row| row.name).collect();
    let line = |pair: &[&str]| {
        let line: String = pair.iter().map(|name| format!(" {name:<35}")).collect();
        format!("{}\n", line.trim_end())
    };
    names.chunks(2).map(line).collect()
}

fn build_line() -> String {
    format!("drbd tools in Rust, version {VERSION}")
}

/// Assignments that a shell can evaluate.
pub fn version() -> String {
    let kernel = proc_drbd::version_code();
    format!(
        "DRBDADM_BUILDTAG={}\nDRBDADM_API_VERSION=1\nDRBD_KERNEL_VERSION_CODE=0x{kernel:06x}\n\
         DRBDADM_VERSION_CODE=0x{COMPATIBLE_VERSION_CODE:06x}\nDRBDADM_VERSION={COMPATIBLE_VERSION}\n",
        super::shell_escape(&build_line())
    )
}
