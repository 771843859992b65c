// SPDX-License-Identifier: GPL-2.0
//! `drbdmeta`: meta data on a disk that no kernel is using at the moment.
//!
//! spec: metadata 9, commands 4

mod apply_al;
mod create;
mod device;
mod dump;
mod existing;
mod last_known;
mod store;

pub use last_known::{LastKnown, NOTE_DIR};

use crate::clock;
use crate::confirm::confirm;
use crate::failure::Failure;
use crate::getopt::{parse, Item, OptionSpec, Value};
use crate::gi::GenerationIds;
use crate::minor_lock::MinorLock;
use crate::proc_drbd;
use crate::units::{parse_number, BadNumber, Base};
use create::{CreateOptions, InitialBitmap};
use device::{Device, OpenError, OpenMode};
use engine::metadata::layout::MetaIndex;
use engine::metadata::superblock::{Magic, MetaFlags, Superblock};
use std::io::Write;
use std::path::{Path, PathBuf};
use store::{look, look_at_last_known, update_note, wipe_superblock, write_superblock, Found, Lookup};

/// The highest number a peer of version 9 can have.
const MAX_NODE_ID: u32 = 31;

const OPTIONS: &[OptionSpec] = &[
    OptionSpec::both("force", 'f', Value::None),
    OptionSpec::both("verbose", 'v', Value::None),
    OptionSpec::long("ignore-sanity-checks", Value::None),
    OptionSpec::long("dry-run", Value::None),
    OptionSpec::both("peer-max-bio-size", 'p', Value::Required),
    OptionSpec::both("al-stripes", 's', Value::Required),
    OptionSpec::both("al-stripe-size-kB", 'z', Value::Required),
    OptionSpec::both("initialize-bitmap", 'b', Value::Required),
    OptionSpec::both("node-id", 'i', Value::Required),
    OptionSpec::both("help", 'h', Value::None),
];

/// One command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CommandRow {
    name: &'static str,
    /// Changes the meta data: refused while the device is attached.
    modifies: bool,
    arguments: &'static str,
}

const fn row(name: &'static str, modifies: bool, arguments: &'static str) -> CommandRow {
    CommandRow { name, modifies, arguments }
}

const COMMANDS: &[CommandRow] = &[
    row(
        "create-md",
        true,
        "[--peer-max-bio-size=N] [--al-stripes=N] [--al-stripe-size-kB=N]\n\
         \x20           [--initialize-bitmap={automatic|zeroout|pwrite|skip}]",
    ),
    row("dump-md", false, ""),
    row("restore-md", true, "[FILE]"),
    row("verify-dump", false, "[FILE]"),
    row("apply-al", true, ""),
    row("get-gi", false, ""),
    row("show-gi", false, ""),
    row("set-gi", true, "VALUE"),
    row("dstate", false, ""),
    row("outdate", true, ""),
    row("invalidate", true, ""),
    row("wipe-md", true, ""),
    row("check-resize", true, ""),
    row("read-dev-uuid", false, ""),
    row("write-dev-uuid", true, "HEX"),
];

/// An open device and what the command line says about it.
struct Session {
    device: Device,
    index: MetaIndex,
    minor: i64,
    force: bool,
    ignore_sanity_checks: bool,
    /// Where the notes about grown devices are kept.
    note_dir: PathBuf,
}

impl Session {
    fn note(&self) -> Option<LastKnown> {
        LastKnown::read(&self.note_dir, self.minor)
    }

    fn remember(&self, superblock: &Superblock) {
        update_note(&self.device, self.index, superblock, &self.note_dir, self.minor);
    }

    /// Valid meta data in its place.
    fn find(&self) -> Result<Option<Found>, Failure> {
        match look(&self.device, self.index, self.device.size_sectors())? {
            Lookup::Valid(found) => Ok(Some(found)),
            _ => Ok(None),
        }
    }

    fn require(&self) -> Result<Found, Failure> {
        self.find()?.ok_or_else(|| Failure::new(1, "No valid meta data found"))
    }

    /// Valid meta data in its place, after moving it there if the device has grown.
    fn find_or_move(&self) -> Result<Option<Found>, Failure> {
        if let Some(found) = self.find()? {
            return Ok(Some(found));
        }
        match look_at_last_known(&self.device, self.index, self.note().as_ref(), self.force)? {
            Some(old) => {
                let moved = create::move_after_growth(&self.device, &old)?;
                // At once: without the note nothing finds it again after the next growth.
                self.remember(&moved.superblock);
                Ok(Some(moved))
            }
            None => Ok(None),
        }
    }

    fn write(&self, found: &Found, magic: Magic) -> Result<(), Failure> {
        write_superblock(&self.device, found, magic)?;
        self.remember(&found.superblock);
        Ok(())
    }
}

/// The command line, understood.
#[derive(Debug)]
struct Request {
    minor: i64,
    path: String,
    index: MetaIndex,
    command: CommandRow,
    arguments: Vec<String>,
    force: bool,
    dry_run: bool,
    ignore_sanity_checks: bool,
    options: CreateOptions,
    /// Which peer, of version 9; here there is one.
    node_id: Option<u32>,
    line: String,
}

/// Runs `drbdmeta` with the words after the program name; gives the exit code.
pub fn main(words: &[String]) -> i32 {
    let result = Request::read(words).and_then(|request| match request {
        Some(request) => execute(&request),
        None => {
            print!("{}", usage());
            Ok(0)
        }
    });
    result.unwrap_or_else(Failure::report)
}

fn usage() -> String {
    let mut text = String::from(
        "\nUSAGE: drbdmeta [--force] {MINOR|/dev/drbdN|-} v08 META-DEVICE INDEX COMMAND [ARGUMENT]\n\n\
         INDEX: internal, flex-external, or the number of a slot of 128 MiB\n\nCOMMANDS:\n",
    );
    for command in COMMANDS {
        text += &format!("  {} {}\n", command.name, command.arguments).replace(" \n", "\n");
    }
    text
}

impl Request {
    /// `None` when help was asked for.
    fn read(words: &[String]) -> Result<Option<Request>, Failure> {
        let items = parse(OPTIONS, words).map_err(|text| Failure::new(20, format!("drbdmeta: {text}\n{}", usage())))?;
        let mut request = Request {
            minor: -1,
            path: String::new(),
            index: MetaIndex::FlexibleInternal,
            command: COMMANDS[0],
            arguments: Vec::new(),
            force: false,
            dry_run: false,
            ignore_sanity_checks: false,
            options: CreateOptions::default(),
            node_id: None,
            line: format!("drbdmeta {}", words.join(" ")),
        };
        let mut positional = Vec::new();
        for item in items {
            match item {
                Item::Option("help", _) => return Ok(None),
                Item::Option("force", _) => request.force = true,
                Item::Option("dry-run", _) => request.dry_run = true,
                Item::Option("ignore-sanity-checks", _) => request.ignore_sanity_checks = true,
                Item::Option(name, Some(value)) => request.value_option(name, &value)?,
                Item::Option(..) => {}
                Item::Word(word) | Item::Literal(word) => positional.push(word),
            }
        }
        request.positional(positional)?;
        request.check_options()?;
        Ok(Some(request))
    }

    /// Refuses options that do not go together with the command.
    fn check_options(&self) -> Result<(), Failure> {
        let command = self.command.name;
        let options = &self.options;
        let sets_log = options.al_stripes.or(options.al_stripe_size_kib).is_some();
        let sets_bio = options.peer_max_bio_bytes.is_some_and(|bytes| bytes != 0);
        let foreign = match command {
            "create-md" => None,
            _ if sets_bio => Some("peer-max-bio-size"),
            _ if sets_log && command != "restore-md" => Some("al-stripe*"),
            _ => None,
        };
        let asks_for_ids = matches!(command, "get-gi" | "show-gi" | "set-gi");
        match foreign.or(self.node_id.filter(|_| !asks_for_ids).map(|_| "node-id")) {
            Some(foreign) => Err(Failure::new(10, format!("--{foreign} does not go together with {command}"))),
            None => Ok(()),
        }
    }

    fn value_option(&mut self, name: &str, value: &str) -> Result<(), Failure> {
        let number = |base, min, max| number_of_option(name, value, base, min, max).map(Some);
        match name {
            "peer-max-bio-size" => self.options.peer_max_bio_bytes = number(Base::One, 0, 1 << 20)?,
            "al-stripes" => self.options.al_stripes = number(Base::One, 1, 1024)?,
            "al-stripe-size-kB" => self.options.al_stripe_size_kib = number(Base::Kib, 4, 16_777_216)?,
            "node-id" => self.node_id = number(Base::One, 0, MAX_NODE_ID)?,
            _ => {
                let mode = InitialBitmap::from_word(value);
                let text = || format!("--{name}: '{value}' is none of automatic, zeroout, pwrite, skip");
                self.options.bitmap = mode.ok_or_else(|| Failure::new(10, text()))?;
            }
        }
        Ok(())
    }

    fn positional(&mut self, words: Vec<String>) -> Result<(), Failure> {
        let mut words = words.into_iter();
        let (Some(minor), Some(format), Some(path), Some(index), Some(command)) =
            (words.next(), words.next(), words.next(), words.next(), words.next())
        else {
            println!("{}", usage());
            return Err(Failure::silent(20));
        };
        if format != "v08" {
            return Err(Failure::new(20, format!("Unknown format '{format}'; this tool knows v08.")));
        }
        self.minor = minor_of(&minor).ok_or_else(|| Failure::new(20, format!("'{minor}' is no minor number")))?;
        self.index = index_of(&index).ok_or_else(|| Failure::new(20, format!("'{index}' is no meta-data index")))?;
        self.path = path;
        let row = COMMANDS.iter().find(|row| row.name == command);
        self.command = *row.ok_or_else(|| Failure::new(20, format!("Unknown command '{command}'.")))?;
        self.arguments = words.collect();
        if self.arguments.len() > 1 {
            eprintln!("{} takes one word at most, the others are ignored.", self.command.name);
        }
        Ok(())
    }

    fn argument(&self, what: &str) -> Result<&str, Failure> {
        let argument = self.arguments.first().map(String::as_str);
        argument.ok_or_else(|| Failure::new(10, format!("{} needs {what}", self.command.name)))
    }
}

/// The value of an option; without a unit it counts in that of the option.
fn number_of_option(name: &str, value: &str, base: Base, min: u32, max: u32) -> Result<u32, Failure> {
    let out_of_range = || Failure::new(10, format!("--{name}: '{value}' is not a number from {min} to {max}"));
    let number = match parse_number(value, base) {
        Ok(number) => u32::try_from(number).map_err(|_| out_of_range())?,
        Err(BadNumber::TooLarge) => return Err(out_of_range()),
        Err(error) => return Err(Failure::new(20, format!("--{name}: '{value}': {error}"))),
    };
    if (min..=max).contains(&number) {
        Ok(number)
    } else {
        Err(out_of_range())
    }
}

/// `-` is no minor (-1).
fn minor_of(word: &str) -> Option<i64> {
    if word == "-" {
        return Some(-1);
    }
    let digits = word.strip_prefix("/dev/drbd").unwrap_or(word);
    digits.parse::<u32>().ok().filter(|minor| *minor < 1 << 20).map(i64::from)
}

fn index_of(word: &str) -> Option<MetaIndex> {
    match word {
        "internal" | "flex-internal" => Some(MetaIndex::FlexibleInternal),
        "flex-external" => Some(MetaIndex::FlexibleExternal),
        number => number.parse().ok().filter(|slot| *slot <= 255).map(MetaIndex::Fixed),
    }
}

fn execute(request: &Request) -> Result<i32, Failure> {
    if request.command.name == "verify-dump" {
        read_dump(request)?;
        println!("The dump can be read.");
        return Ok(0);
    }
    if request.node_id.is_some_and(|id| id != 0) {
        eprintln!("v08 meta data knows one peer: --node-id is taken as 0.");
    }
    let minor = u32::try_from(request.minor).ok();
    let _lock = minor.map(MinorLock::take).transpose()?;
    let attached = minor.is_some_and(proc_drbd::is_attached);
    if attached && request.command.modifies {
        return Err(Failure::new(20, format!("Device '{}' is configured!", request.minor)));
    }
    let session = Session {
        device: open(request)?,
        index: request.index,
        minor: request.minor,
        force: request.force,
        ignore_sanity_checks: request.ignore_sanity_checks,
        note_dir: NOTE_DIR.into(),
    };
    let code = run(request, &session)?;
    if attached {
        eprintln!("The device is attached: the kernel may hold newer meta data than the disk.");
    }
    Ok(code)
}

fn open(request: &Request) -> Result<Device, Failure> {
    let path = Path::new(&request.path);
    let exclusive = !matches!(request.index, MetaIndex::Fixed(_));
    let mode = OpenMode { exclusive, regular_file: request.force, dry_run: request.dry_run };
    match Device::open(path, mode) {
        Ok(device) => Ok(device),
        Err(OpenError::Other(failure)) => Err(failure),
        Err(OpenError::Busy) => {
            let text =
                format!("{} is in use by somebody else (mounted, attached, part of another device).", request.path);
            eprintln!("{text}");
            let force = request.force;
            if (request.command.name == "apply-al" && !force) || !confirm("Open it nevertheless?", force) {
                return Err(Failure::new(20, "Nothing was changed."));
            }
            Device::open(path, OpenMode { exclusive: false, ..mode }).map_err(|error| match error {
                OpenError::Other(failure) => failure,
                OpenError::Busy => Failure::new(20, text),
            })
        }
    }
}

fn run(request: &Request, session: &Session) -> Result<i32, Failure> {
    match request.command.name {
        "create-md" => create::create(session, request.options)?,
        "restore-md" => create::restore(session, request.options, &read_dump(request)?)?,
        "dump-md" => return dump_md(request, session),
        "apply-al" => {
            let mut found = session.find_or_move()?.ok_or_else(|| Failure::new(1, "No valid meta data found"))?;
            if apply_al::apply_al(&session.device, &mut found)? {
                session.remember(&found.superblock);
            }
        }
        "get-gi" => println!("{}", ids_of(&session.require()?.superblock).line()),
        "show-gi" => show_gi(&session.require()?.superblock),
        "set-gi" => return set_gi(request, session),
        "dstate" => println!("{}", disk_state(session.require()?.superblock.flags)),
        "outdate" => return outdate(session),
        "invalidate" => {
            let mut found = session.require()?;
            found.superblock.flags.clear(MetaFlags::CONSISTENT | MetaFlags::WAS_UP_TO_DATE);
            found.superblock.flags.set(MetaFlags::FULL_SYNC);
            session.write(&found, found.superblock.magic)?;
        }
        "wipe-md" => return wipe(session),
        "check-resize" => match session.find_or_move()? {
            Some(found) => session.remember(&found.superblock),
            None => return Ok(1),
        },
        "read-dev-uuid" => println!("{:016X}", session.require()?.superblock.device_uuid),
        "write-dev-uuid" => {
            let text = request.argument("a number of 16 hexadecimal digits")?;
            let digits = text.strip_prefix("0x").unwrap_or(text);
            let uuid = u64::from_str_radix(digits, 16);
            let mut found = session.require()?;
            found.superblock.device_uuid = uuid.map_err(|_| Failure::new(10, format!("'{text}' is no device id")))?;
            session.write(&found, found.superblock.magic)?;
        }
        other => return Err(Failure::new(20, format!("Unknown command '{other}'."))),
    }
    Ok(0)
}

fn ids_of(superblock: &Superblock) -> GenerationIds {
    GenerationIds { uuids: superblock.uuids, flags: superblock.flags.0 }
}

fn show_gi(superblock: &Superblock) {
    print!("{}", ids_of(superblock).drawing());
    match superblock.la_size_sectors {
        0 => println!("last agreed size: none, the volume has never met its peer"),
        sectors => {
            println!("last agreed size: {} KB ({sectors} sectors)", sectors / 2);
            println!("last agreed max bio size: {} Byte", superblock.la_peer_max_bio_bytes);
        }
    }
}

// spec: metadata 9.5
fn disk_state(flags: MetaFlags) -> &'static str {
    if !flags.contains(MetaFlags::CONSISTENT) {
        "Inconsistent"
    } else if !flags.contains(MetaFlags::WAS_UP_TO_DATE) {
        "Outdated"
    } else if flags.contains(MetaFlags::PEER_OUT_DATED) {
        "UpToDate"
    } else {
        "Consistent"
    }
}

fn set_gi(request: &Request, session: &Session) -> Result<i32, Failure> {
    let mut found = session.require()?;
    let before = ids_of(&found.superblock);
    let value = request.argument("the new identifiers, in the form get-gi prints")?;
    let after = before.with_changes(value).map_err(|text| Failure::new(10, text))?;
    println!("previously {}", before.line());
    println!("set GI to  {}", after.line());
    if !confirm("Write these identifiers to the disk?", session.force) {
        println!("Nothing was changed.");
        return Ok(0);
    }
    found.superblock.uuids = after.uuids;
    found.superblock.flags = MetaFlags(after.flags);
    session.write(&found, found.superblock.magic)?;
    Ok(0)
}

fn outdate(session: &Session) -> Result<i32, Failure> {
    let mut found = session.require()?;
    if !found.superblock.flags.contains(MetaFlags::CONSISTENT) {
        eprintln!("The data is inconsistent, it cannot become outdated.");
        return Ok(5);
    }
    found.superblock.flags.clear(MetaFlags::WAS_UP_TO_DATE);
    session.write(&found, found.superblock.magic)?;
    Ok(0)
}

fn wipe(session: &Session) -> Result<i32, Failure> {
    let Some(found) = session.find()? else {
        eprintln!("There is no meta data to wipe out.");
        return Ok(0);
    };
    if !confirm("Wipe out the meta data?", session.force) {
        return Err(Failure::new(1, "Nothing was changed."));
    }
    println!("Wiping meta data...");
    wipe_superblock(&session.device, &found.layout)?;
    if !session.device.is_dry_run() {
        if let Err(error) = LastKnown::remove(&session.note_dir, session.minor) {
            eprintln!("The note about minor {} was not removed: {error}", session.minor);
        }
    }
    println!("DRBD meta data block successfully wiped out.");
    Ok(0)
}

fn dump_md(request: &Request, session: &Session) -> Result<i32, Failure> {
    let found = match session.find()? {
        Some(found) => found,
        None => {
            let old = look_at_last_known(&session.device, session.index, session.note().as_ref(), session.force)?;
            let found = old.ok_or_else(|| Failure::new(1, "No valid meta data found"))?;
            println!("# The meta data was found where it was before the device has grown.");
            found
        }
    };
    let clean = found.superblock.magic == Magic::Clean && found.superblock.flags.contains(MetaFlags::AL_CLEAN);
    if !clean && !session.force {
        return Err(Failure::new(1, "Found meta data is \"unclean\", please apply-al first"));
    }
    let now = clock::since_epoch();
    let (date, time) = clock::date_and_time(now);
    let host = nix::unistd::gethostname().unwrap_or_default();
    let host = host.to_string_lossy();
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let failed = |error: std::io::Error| Failure::new(10, format!("writing the dump: {error}"));
    writeln!(out, "# DRBD meta data dump\n# {date} {time} +0000 [{}]", now.as_secs()).map_err(failed)?;
    writeln!(out, "# {host}> {}\n#\n", request.line).map_err(failed)?;
    dump::write_dump(&session.device, &found, !clean, &mut out)?;
    out.flush().map_err(failed)?;
    Ok(0)
}

/// The dump in the file that is named, or on standard input.
fn read_dump(request: &Request) -> Result<dump::Dump, Failure> {
    let (path, text) = match request.arguments.first() {
        Some(path) => (path.as_str(), std::fs::read_to_string(path)),
        None => ("standard input", std::io::read_to_string(std::io::stdin())),
    };
    dump::Dump::parse(&text.map_err(|error| Failure::new(20, format!("{path}: {error}")))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(words: &[&str]) -> Result<Request, Failure> {
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        Request::read(&words).map(|request| request.unwrap())
    }

    #[test]
    fn command_line_forms() {
        let r =
            request(&["/dev/drbd7", "v08", "/dev/sdb1", "flex-external", "create-md", "--force", "--al-stripes", "2"])
                .unwrap();
        assert_eq!((r.minor, r.index, r.command.name, r.force), (7, MetaIndex::FlexibleExternal, "create-md", true));
        assert_eq!(r.options.al_stripes, Some(2));
        let r = request(&["--force", "-", "v08", "x", "3", "set-gi", "1:2"]).unwrap();
        assert_eq!((r.minor, r.index, r.arguments), (-1, MetaIndex::Fixed(3), vec!["1:2".to_owned()]));
    }

    #[test]
    fn numbers_with_units() {
        let options = |option: &str| request(&["0", "v08", "d", "internal", "create-md", option]).unwrap().options;
        for (option, bytes) in [
            ("--peer-max-bio-size=1M", 1 << 20),
            ("--peer-max-bio-size=8s", 4096),
            ("--peer-max-bio-size=100", 100),
            ("-p4k", 4096),
        ] {
            assert_eq!(options(option).peer_max_bio_bytes, Some(bytes), "{option}");
        }
        for (option, kib) in [
            ("--al-stripe-size-kB=1M", 1024),
            ("--al-stripe-size-kB=64s", 32),
            ("--al-stripe-size-kB=36K", 36),
            ("--al-stripe-size-kB=64", 64),
            ("-z64", 64),
        ] {
            assert_eq!(options(option).al_stripe_size_kib, Some(kib), "{option}");
        }
        assert_eq!(options("--al-stripes=1k").al_stripes, Some(1024));
        assert_eq!(options("-s7").al_stripes, Some(7));
    }

    #[test]
    fn options_of_drbdmeta_9_22() {
        let bitmap = |mode: &str| {
            let option = format!("--initialize-bitmap={mode}");
            request(&["0", "v08", "d", "internal", "create-md", &option]).unwrap().options.bitmap
        };
        assert_eq!(bitmap("automatic"), InitialBitmap::Automatic);
        assert_eq!(bitmap("zeroout"), InitialBitmap::ByDevice);
        assert_eq!(bitmap("pwrite"), InitialBitmap::Written);
        assert_eq!(bitmap("skip"), InitialBitmap::Skipped);
        for words in [
            &["--node-id=3", "0", "v08", "d", "internal", "get-gi"][..],
            &["0", "v08", "d", "internal", "show-gi", "-i", "0"],
            &["0", "v08", "d", "internal", "set-gi", "1:2", "--node-id=0"],
            &["0", "v08", "d", "internal", "get-gi", "-b", "skip", "--peer-max-bio-size=0"],
            // More words than a command takes.
            &["0", "v08", "d", "internal", "get-gi", "more", "and", "more"],
        ] {
            request(words).unwrap();
        }
        let without = request(&["0", "v08", "d", "internal", "set-gi"]).unwrap();
        assert_eq!(without.argument("identifiers").unwrap_err().code, 10);
    }

    #[test]
    fn refused_command_lines() {
        for (words, code) in [
            (&["0", "v09", "d", "internal", "dstate"][..], 20),
            (&["x", "v08", "d", "internal", "dstate"], 20),
            (&["0", "v08", "d", "256", "dstate"], 20),
            (&["0", "v08", "d", "internal", "nope"], 20),
            (&["0", "v08", "d", "internal", "dstate", "--al-stripes=2"], 10),
            (&["0", "v08", "d", "internal", "create-md", "--al-stripes=0"], 10),
            (&["0", "v08", "d", "internal", "dstate", "--nope"], 20),
            (&["0", "v08", "d", "internal", "create-md", "--al-stripes=2k"], 10),
            (&["0", "v08", "d", "internal", "create-md", "--al-stripe-size-kB=3"], 10),
            (&["0", "v08", "d", "internal", "create-md", "--al-stripe-size-kB=17G"], 10),
            (&["0", "v08", "d", "internal", "create-md", "--al-stripe-size-kB=1x"], 20),
            (&["0", "v08", "d", "internal", "create-md", "--peer-max-bio-size=2M"], 10),
            (&["0", "v08", "d", "internal", "get-gi", "--peer-max-bio-size=4096"], 10),
            (&["0", "v08", "d", "internal", "create-md", "--initialize-bitmap=auto"], 10),
            (&["0", "v08", "d", "internal", "create-md", "--node-id=0"], 10),
            (&["0", "v08", "d", "internal", "get-gi", "--node-id=32"], 10),
            (&["0", "v08", "d", "internal", "get-gi", "--node-id=x"], 20),
        ] {
            assert_eq!(request(words).unwrap_err().code, code, "{words:?}");
        }
    }

    #[test]
    fn disk_state_of_the_flags() {
        let all = MetaFlags::CONSISTENT | MetaFlags::WAS_UP_TO_DATE;
        for (flags, word) in [
            (MetaFlags(0), "Inconsistent"),
            (MetaFlags::WAS_UP_TO_DATE, "Inconsistent"),
            (MetaFlags::CONSISTENT, "Outdated"),
            (all, "Consistent"),
            (all | MetaFlags::PEER_OUT_DATED, "UpToDate"),
        ] {
            assert_eq!(disk_state(flags), word);
        }
    }
}
