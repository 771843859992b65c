// SPDX-License-Identifier: GPL-2.0
//! `drbdadm`: from resources and their configuration to single steps.
//!
//! spec: commands 1, 2

mod adjust;
mod commands;
mod execute;
mod handler;
mod help;
mod lines;
mod run;
mod waiting;

use crate::config::model::{Config, Resource};
use crate::config::parser::Reader;
use crate::config::resolve::{complete, inherit, Identity};
use crate::config::source::{Diagnostic, Severity};
use crate::failure::Failure;
use crate::getopt::{self, Item, OptionSpec, Value};
use crate::setup;
use commands::{find, is_command, CommandRow, Targets};
use execute::Execution;
use run::Runner;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Where the configuration is looked for.
const CONFIG_DIR: &str = "/etc";
const CONFIG_NAMES: &[&str] = &["drbd-84.conf", "drbd-83.conf", "drbd-82.conf", "drbd-08.conf", "drbd.conf"];

/// Options of drbdadm itself.
const GENERAL_OPTIONS: &[OptionSpec] = &[
    OptionSpec::both("stacked", 'S', Value::None),
    OptionSpec::both("dry-run", 'd', Value::None),
    OptionSpec::both("verbose", 'v', Value::None),
    OptionSpec::both("config-file", 'c', Value::Required),
    OptionSpec::both("config-to-test", 't', Value::Required),
    OptionSpec::both("drbdsetup", 's', Value::Required),
    OptionSpec::both("drbdmeta", 'm', Value::Required),
    OptionSpec::both("drbd-proxy-ctl", 'p', Value::Required),
    OptionSpec::both("sh-varname", 'n', Value::Required),
    OptionSpec::both("peer", 'P', Value::Required),
    OptionSpec::both("version", 'V', Value::None),
    OptionSpec::both("setup-option", 'W', Value::Required),
    OptionSpec::both("help", 'h', Value::None),
];

/// A word as a shell reads it back: everything that is not plainly harmless gets a backslash.
// spec: commands 1.8
pub fn shell_escape(word: &str) -> String {
    let harmless = |character: char| character.is_ascii_alphanumeric() || "%+-./:=@_".contains(character);
    word.chars().flat_map(|character| (!harmless(character)).then_some('\\').into_iter().chain([character])).collect()
}

/// Options of a command that are handed on to its child.
// spec: commands 1.2
fn command_options(command: &str) -> Vec<OptionSpec> {
    match command {
        "attach" | "disk-options" | "connect" | "net-options" | "disconnect" | "resource-options" | "detach"
        | "primary" | "new-current-uuid" => setup::options_of(command),
        "create-md" => vec![
            OptionSpec::long("force", Value::Optional),
            OptionSpec::long("peer-max-bio-size", Value::Required),
            OptionSpec::long("al-stripes", Value::Required),
            OptionSpec::long("al-stripe-size-kB", Value::Required),
        ],
        _ => Vec::new(),
    }
}

/// Every option the command line may have.
fn all_options() -> Vec<OptionSpec> {
    let mut all = GENERAL_OPTIONS.to_vec();
    for command in commands::COMMANDS {
        for option in command_options(command.name) {
            if !all.iter().any(|known| known.long == option.long) {
                all.push(option);
            }
        }
    }
    all
}

/// The command line, understood.
#[derive(Debug, Default)]
struct Request {
    command: Option<&'static CommandRow>,
    targets: Vec<String>,
    /// Words for the child, in their order.
    explicit: Vec<String>,
    /// Those among them that were options of drbdadm.
    options: Vec<&'static str>,
    stacked: bool,
    dry_run: u32,
    verbose: u32,
    config_file: Option<String>,
    config_to_test: Option<String>,
    setup: Option<String>,
    meta: Option<String>,
    variable: Option<String>,
    peer: Option<String>,
    help: bool,
    version: bool,
    word_help: bool,
}

/// Runs `drbdadm` with the words after the program name; gives the exit code.
pub fn main(program: &str, words: &[String]) -> i32 {
    run(program, words).unwrap_or_else(Failure::report)
}

fn run(program: &str, words: &[String]) -> Result<i32, Failure> {
    let base = program.rsplit('/').next().unwrap_or(program);
    let request = read_request(base, words)?;
    if request.version {
        print!("{}", help::version());
        return Ok(0);
    }
    if request.help || request.word_help {
        print!("{}", help::usage(base, request.command));
        return Ok(0);
    }
    let Some(command) = request.command else {
        print!("{}", help::usage(base, None));
        return Err(Failure::new(1, format!("{base}: No command specified")));
    };
    if command.name == "hidden-commands" {
        print!("{}", help::hidden_commands());
        return Ok(0);
    }
    if request.config_to_test.is_some() && !matches!(command.name, "dump" | "dump-xml" | "sh-nop") {
        return Err(Failure::new(1, format!("{base}: --config-to-test goes with dump, dump-xml and sh-nop only")));
    }
    let needs_targets = matches!(command.targets, Targets::Volumes | Targets::OneVolume | Targets::Resources);
    if needs_targets && request.targets.is_empty() {
        print!("{}", help::usage(base, Some(command)));
        return Err(Failure::new(1, format!("{base}: No resource names specified")));
    }
    if command.targets == Targets::None && !request.targets.is_empty() {
        eprintln!("{base}: {} takes no resource names, they are ignored", command.name);
    }
    let node = node_name();
    let mut reader = read_config(&request, command)?;
    let config = understand(&mut reader, &request, command, &node)?;
    let mut runner = Runner::new(program, request.setup.as_deref(), request.meta.as_deref());
    runner.dry_run = request.dry_run > 0;
    runner.verbose = request.verbose > 0;
    runner.variable = request.variable.clone().filter(|name| is_variable_name(base, name));
    let limits = &mut runner.limits;
    limits.short_s = config.global.timeout_short_s.unwrap_or(limits.short_s);
    limits.long_s = config.global.timeout_medium_s.unwrap_or(limits.long_s);
    limits.unlimited_s = config.global.timeout_long_s.unwrap_or(limits.unlimited_s);
    let execution = Execution { program: base, config: &config, node: &node, runner, command, request: &request };
    execution.run()
}

fn is_variable_name(base: &str, name: &str) -> bool {
    let good = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !good {
        eprintln!("{base}: '{name}' is no name of a variable, it is ignored");
    }
    good
}

fn read_request(base: &str, words: &[String]) -> Result<Request, Failure> {
    let items = getopt::parse(&all_options(), words).map_err(|text| {
        let command = words.iter().find(|word| is_command(word)).map_or(String::new(), |word| format!(" {word}"));
        Failure::new(1, format!("{base}: {text}\ntry '{base} help{command}'"))
    })?;
    let mut request = Request::default();
    for item in items {
        match item {
            Item::Option(name, value) => request.option(name, value),
            Item::Word(word) => request.word(base, word, false)?,
            Item::Literal(word) => request.word(base, word, true)?,
        }
    }
    if let Some(command) = request.command.filter(|_| !request.help) {
        let known = command_options(command.name);
        let takes_any = command.name == "create-md";
        let foreign =
            request.options.iter().find(|name| !takes_any && !known.iter().any(|option| option.long == **name));
        if let Some(foreign) = foreign {
            let text = format!("{base}: unrecognized option '--{foreign}'\ntry '{base} help {}'", command.name);
            return Err(Failure::new(1, text));
        }
    }
    Ok(request)
}

impl Request {
    fn option(&mut self, name: &'static str, value: Option<String>) {
        match name {
            "stacked" => self.stacked = true,
            "dry-run" => self.dry_run += 1,
            "verbose" => self.verbose += 1,
            "config-file" => self.config_file = value,
            "config-to-test" => self.config_to_test = value,
            "drbdsetup" => self.setup = value,
            "drbdmeta" => self.meta = value,
            // There is no proxy to control.
            "drbd-proxy-ctl" => {}
            "sh-varname" => self.variable = value,
            "peer" => self.peer = value,
            "version" => self.version = true,
            "help" => self.help = true,
            "setup-option" => self.explicit.extend(value),
            name => {
                self.options.push(name);
                self.explicit.push(value.map_or(format!("--{name}"), |value| format!("--{name}={value}")));
            }
        }
    }

    /// The first command name is the command, what follows are targets; before it, words behind `--` are for the child.
    fn word(&mut self, base: &str, word: String, literal: bool) -> Result<(), Failure> {
        if self.command.is_some() {
            self.targets.push(word);
            return Ok(());
        }
        if word == "help" {
            self.word_help = true;
            return Ok(());
        }
        match find(&word) {
            Some(row) => {
                if row.name != word {
                    eprintln!("{base}: '{word}' is deprecated, use '{}' instead.", row.name);
                }
                self.command = Some(row);
            }
            None if literal => self.explicit.push(word),
            // `help` alone knows no such command, and says what it knows.
            None if self.word_help => {}
            None => return Err(Failure::new(1, format!("{base}: Unknown command '{word}'"))),
        }
        Ok(())
    }
}

/// The name of this host; tests may pretend to be another one.
// spec: drbd-conf 4
fn node_name() -> String {
    match std::env::var("__DRBD_NODE__") {
        Ok(name) => {
            eprintln!("\n   found __DRBD_NODE__ in environment\n   PRETENDING that I am >>{name}<<\n");
            name
        }
        Err(_) => {
            nix::sys::utsname::uname().map(|names| names.nodename().to_string_lossy().into_owned()).unwrap_or_default()
        }
    }
}

/// Reads the files; nothing is checked yet.
// spec: commands 1.7
fn read_config(request: &Request, command: &CommandRow) -> Result<Reader, Failure> {
    let mut reader = Reader::default();
    if request.config_file.as_deref() == Some("-") {
        let mut text = String::new();
        let read = std::io::stdin().lock().read_to_string(&mut text);
        read.map_err(|error| Failure::new(20, format!("Can not read from standard input: {error}")))?;
        reader.config.file = "STDIN".to_owned();
        reader.read_text("STDIN", &text, Path::new(""));
    } else {
        let path = config_path(request, command)?;
        let code = if request.config_file.is_some() { 20 } else { 10 };
        reader.config.file = path.display().to_string();
        reader
            .read_file(&path)
            .map_err(|error| Failure::new(code, format!("Can not open '{}': {error}", path.display())))?;
    }
    if let Some(file) = &request.config_to_test {
        let path = std::path::absolute(file).unwrap_or_else(|_| file.into());
        reader.read_file(&path).map_err(|error| Failure::new(20, format!("Can not open '{file}': {error}")))?;
    }
    Ok(reader)
}

fn config_path(request: &Request, command: &CommandRow) -> Result<PathBuf, Failure> {
    if let Some(file) = &request.config_file {
        return Ok(std::path::absolute(file).unwrap_or_else(|_| file.into()));
    }
    if command.registered_config {
        let target = request.targets.first().map_or("", String::as_str);
        let link = match target.strip_prefix("minor-").and_then(|number| number.parse().ok()) {
            Some(minor) => setup::minor_link(minor),
            None => setup::resource_link(target),
        };
        match std::fs::canonicalize(&link) {
            Ok(path) => return Ok(path),
            Err(_) => eprintln!("{}: there is no such note, the usual configuration is read", link.display()),
        }
    }
    let mut paths = CONFIG_NAMES.iter().map(|name| Path::new(CONFIG_DIR).join(name));
    let found = paths.find(|path| std::fs::File::open(path).is_ok());
    found.ok_or_else(|| Failure::new(10, format!("Can not open '{CONFIG_DIR}/drbd.conf': No such file or directory")))
}

/// Completes, checks and inherits; says what is wrong.
fn understand(reader: &mut Reader, request: &Request, command: &CommandRow, node: &str) -> Result<Config, Failure> {
    let report = |config: &Config, diagnostics: &[Diagnostic]| {
        diagnostics.iter().for_each(|diagnostic| diagnostic.print(&config.sources));
    };
    if reader.is_invalid() {
        report(&reader.config, &reader.diagnostics);
        return Err(Failure::silent(10));
    }
    let identity = Identity { name: node, peer: request.peer.as_deref(), has_address: &has_address };
    let mut diagnostics = std::mem::take(&mut reader.diagnostics);
    diagnostics.extend(complete(&mut reader.config, &identity));
    report(&reader.config, &diagnostics);
    if diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error) {
        return Err(Failure::silent(10));
    }
    let mut config = std::mem::take(&mut reader.config);
    let plain_dump = matches!(command.name, "dump" | "dump-xml") && request.dry_run == 0 && request.verbose == 0;
    if !plain_dump {
        inherit(&mut config);
    }
    Ok(config)
}

/// Is this one of our addresses?
fn has_address(ip: &str) -> bool {
    let (ip, _) = ip.split_once('%').unwrap_or((ip, ""));
    let Ok(wanted) = ip.parse::<std::net::IpAddr>() else { return false };
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return false };
    let mut addresses = interfaces.filter_map(|interface| interface.address);
    addresses.any(|address| match wanted {
        std::net::IpAddr::V4(ip) => address.as_sockaddr_in().is_some_and(|own| own.ip() == ip),
        std::net::IpAddr::V6(ip) => address.as_sockaddr_in6().is_some_and(|own| own.ip() == ip),
    })
}

/// A resource, and a volume if only one is meant.
#[derive(Clone, Copy, Debug)]
struct Target<'a> {
    resource: &'a Resource,
    /// Number of the volume.
    volume: Option<u32>,
}

/// Finds what a word means.
///
/// # Errors
/// Exit code 1 when it names nothing, 20 when the volume is no number.
// spec: commands 1.4
fn find_target<'a>(config: &'a Config, word: &str) -> Result<Target<'a>, Failure> {
    let unknown = || Failure::new(1, format!("'{word}' not defined in your config (for this host)."));
    let named = |name: &str| config.resources.iter().find(|resource| resource.name == name);
    if let Some(resource) = named(word) {
        return Ok(Target { resource, volume: None });
    }
    if let Some(number) = word.strip_prefix("minor-") {
        let minor: u32 = number.parse().map_err(|_| unknown())?;
        let volumes = config.resources.iter().flat_map(|resource| {
            resource.my_host().into_iter().flat_map(|host| &host.volumes).map(move |volume| (resource, volume))
        });
        let (resource, volume) = { volumes }.find(|(_, volume)| volume.minor == Some(minor)).ok_or_else(unknown)?;
        return Ok(Target { resource, volume: Some(volume.number) });
    }
    if let Some((name, number)) = word.split_once('/') {
        let volume: u32 = number.parse().map_err(|_| Failure::new(20, format!("'{number}' is not a valid number")))?;
        let resource = named(name).ok_or_else(unknown)?;
        let exists = resource.my_host().is_some_and(|host| host.volumes.iter().any(|v| v.number == volume));
        return if exists { Ok(Target { resource, volume: Some(volume) }) } else { Err(unknown()) };
    }
    Err(unknown())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(words: &[&str]) -> Result<Request, Failure> {
        read_request("drbdadm", &words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn words_for_the_child_stand_before_the_command() {
        let r = request(&["--", "--discard-my-data", "connect", "r0"]).unwrap();
        assert_eq!(
            (r.command.unwrap().name, r.targets, r.explicit),
            ("connect", vec!["r0".into()], vec!["--discard-my-data".into()])
        );
        let r = request(&["connect", "--", "--discard-my-data", "r0"]).unwrap();
        assert_eq!(r.targets, ["--discard-my-data", "r0"]);
        let r = request(&["-W", "-x", "primary", "r0", "--force"]).unwrap();
        assert_eq!(r.explicit, ["-x", "--force"]);
    }

    #[test]
    fn options_belong_to_their_commands() {
        for words in [
            &["verify", "--start=7", "r0"][..],
            &["up", "--force", "r0"],
            &["primary", "--overwrite-data-of-peer", "r0"],
        ] {
            assert_eq!(request(words).unwrap_err().code, 1, "{words:?}");
        }
        assert_eq!(request(&["create-md", "--force", "r0"]).unwrap().explicit, ["--force"]);
        assert_eq!(request(&["nope", "r0"]).unwrap_err().message, "drbdadm: Unknown command 'nope'");
        assert_eq!(request(&["connect", "--dry-run", "r0"]).unwrap().dry_run, 1);
    }
}
