// SPDX-License-Identifier: GPL-2.0
//! Reads configuration files into the [model](super::model).
//!
//! One function a section. A text whose structure is broken ends at once with one message; a word nobody knows or a
//! value out of its range is noted, and reading goes on, so that one run shows every such mistake.
//!
//! spec: drbd-conf 2, 3

use super::lexer::{tokens, Token, TokenKind};
use super::model::{Address, Config, Host, HostKind, MetaDisk, Proxy, Resource, Sections, Setting, Settings, Volume};
use super::source::{Diagnostic, Span};
use crate::options::{self, ConfigOption, Section};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

type Parsed<T> = Result<T, Diagnostic>;

/// Highest volume number.
const MAX_VOLUME: u32 = 65534;
/// Highest minor number.
pub const MAX_MINOR: u32 = (1 << 20) - 1;
/// Highest slot on a meta-data device.
const MAX_META_INDEX: u32 = 255;

/// Options of 8.3 that mean nothing any more; they are read with their value and forgotten.
const FORGOTTEN: &[&str] = &["delay-probe-volume", "delay-probe-interval", "throttle-threshold", "hold-off-threshold"];
const TOP_LEVEL: &[&str] = &["global", "common", "resource", "include", "skip"];
const GLOBAL: &[&str] = &[
    "usage-count",
    "minor-count",
    "dialog-refresh",
    "disable-ip-verification",
    "cmd-timeout-short",
    "cmd-timeout-medium",
    "cmd-timeout-long",
    "udev-always-use-vnr",
];
const COMMON: &[&str] = &["protocol", "disk", "net", "options", "syncer", "startup", "handlers", "proxy"];
const RESOURCE: &[&str] = &[
    "protocol",
    "on",
    "floating",
    "stacked-on-top-of",
    "disk",
    "device",
    "meta-disk",
    "flexible-meta-disk",
    "volume",
    "net",
    "options",
    "syncer",
    "startup",
    "handlers",
    "proxy",
    "ignore-on",
];
const HOST: &[&str] = &[
    "device",
    "disk",
    "meta-disk",
    "flexible-meta-disk",
    "address",
    "alternate-link-address",
    "volume",
    "options",
    "proxy",
];
const STACKED_HOST: &[&str] = &["device", "address", "alternate-link-address", "volume", "proxy"];
const VOLUME: &[&str] = &["device", "disk", "meta-disk", "flexible-meta-disk"];
const FAMILIES: &[&str] = &["ipv4", "ipv6", "sdp", "ssocks", "sci"];

/// Reads texts into one configuration.
#[derive(Debug, Default)]
pub struct Reader {
    /// What was read so far.
    pub config: Config,
    /// What there is to say about it.
    pub diagnostics: Vec<Diagnostic>,
    /// The text is what the kernel side shows, not what people wrote.
    pub is_kernel_output: bool,
    read_files: HashSet<PathBuf>,
}

impl Reader {
    /// Reads a text that was obtained somehow; `include` is relative to `directory`.
    pub fn read_text(&mut self, name: &str, text: &str, directory: &Path) {
        let file = self.config.sources.add(name, text);
        let parsed = tokens(file, text).and_then(|tokens| {
            let mut parser = Parser {
                reader: self,
                tokens,
                at: 0,
                directory: directory.to_owned(),
                seen_in_section: Vec::new(),
                still_open: Vec::new(),
            };
            parser.top_level()
        });
        if let Err(diagnostic) = parsed {
            self.diagnostics.push(diagnostic);
        }
    }

    /// Reads a file, unless it has been read before.
    ///
    /// # Errors
    /// What the file system says.
    pub fn read_file(&mut self, path: &Path) -> std::io::Result<()> {
        let bytes = std::fs::read(path)?;
        let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if self.read_files.insert(real) {
            let directory = path.parent().unwrap_or(Path::new("")).to_owned();
            self.read_text(&path.display().to_string(), &String::from_utf8_lossy(&bytes), &directory);
        }
        Ok(())
    }

    /// Is there anything that makes the configuration unusable?
    pub fn is_invalid(&self) -> bool {
        self.diagnostics.iter().any(|diagnostic| diagnostic.severity == super::source::Severity::Error)
    }
}

struct Parser<'a> {
    reader: &'a mut Reader,
    tokens: Vec<Token>,
    at: usize,
    directory: PathBuf,
    /// For every open section: what was said in it, and where.
    seen_in_section: Vec<HashMap<String, Span>>,
    /// The braces that opened them.
    still_open: Vec<Span>,
}

impl Parser<'_> {
    // ---- tokens

    fn peek(&self) -> &Token {
        // The list ends with an `End` token, which is never passed.
        &self.tokens[self.at.min(self.tokens.len() - 1)]
    }

    fn peek_after(&self) -> &Token {
        &self.tokens[(self.at + 1).min(self.tokens.len() - 1)]
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        if token.kind != TokenKind::End {
            self.at += 1;
        }
        token
    }

    fn accept(&mut self, mark: char) -> bool {
        let found = self.peek().is(mark);
        if found {
            self.at += 1;
        }
        found
    }

    /// An error where something else should stand. If the line is over, the gap behind it is what is shown.
    fn unexpected(&self, expected: &str) -> Diagnostic {
        let found = self.peek();
        let title = format!("expected {expected}, found {}", found.found());
        let mut span = found.span.clone();
        if let Some(previous) = self.at.checked_sub(1).and_then(|index| self.tokens.get(index)) {
            let gap = previous.span.range.end..found.span.range.start;
            let text = self.reader.config.sources.text(found.span.file);
            if text.get(gap).is_some_and(|gap| gap.contains('\n')) {
                let end = previous.span.range.end;
                span = Span { file: span.file, range: end.saturating_sub(1)..end };
                return Diagnostic::error(&span, title, format!("expected {expected} after this"));
            }
        }
        Diagnostic::error(&span, title, format!("expected {expected} here"))
    }

    fn expect(&mut self, mark: char) -> Parsed<Span> {
        if self.peek().is(mark) {
            Ok(self.next().span)
        } else {
            Err(self.unexpected(&format!("`{mark}`")))
        }
    }

    fn expect_text(&mut self, what: &str) -> Parsed<Token> {
        if self.peek().is_text() {
            Ok(self.next())
        } else {
            Err(self.unexpected(what))
        }
    }

    fn expect_word_of(&mut self, words: &[&'static str], what: &str) -> Parsed<&'static str> {
        let found = self.peek().clone();
        match words.iter().find(|word| found.is_text() && **word == found.text) {
            Some(word) => {
                self.at += 1;
                Ok(word)
            }
            None => Err(self.unexpected(what)),
        }
    }

    fn expect_number(&mut self, what: &str, min: u32, max: u32) -> Parsed<(u32, Span)> {
        let token = self.expect_text(what)?;
        let value = token.text.parse::<u32>().ok().filter(|value| (min..=max).contains(value));
        value.map(|value| (value, token.span.clone())).ok_or_else(|| {
            let label = format!("expected {what}, {min} to {max}");
            Diagnostic::error(&token.span, format!("{} is not {what}", token.found()), label)
        })
    }

    // ---- sections

    fn note(&mut self, diagnostic: Diagnostic) {
        self.reader.diagnostics.push(diagnostic);
    }

    /// Reads `{ statements }`.
    fn block(&mut self, mut statement: impl FnMut(&mut Self) -> Parsed<()>) -> Parsed<()> {
        let open = self.expect('{')?;
        self.seen_in_section.push(HashMap::new());
        self.still_open.push(open.clone());
        while !self.accept('}') {
            if self.peek().kind == TokenKind::End {
                let diagnostic = self.unexpected("`}`");
                return Err(diagnostic.and(&open, "this section is still open"));
            }
            statement(self)?;
        }
        self.seen_in_section.pop();
        self.still_open.pop();
        Ok(())
    }

    /// Refuses a second statement or section of the same kind.
    fn once(&mut self, what: &str, key: &str, span: &Span) -> Parsed<()> {
        let seen = self.seen_in_section.last_mut();
        match seen.and_then(|seen| seen.insert(format!("{what} {key}"), span.clone())) {
            Some(first) => Err(conflict(what, key, span, &first)),
            None => Ok(()),
        }
    }

    /// A word that cannot stand here: noted with the nearest one, and its statement or section is passed over.
    fn unknown_word(&mut self, place: &str, known: &[&str]) -> Parsed<()> {
        let token = self.peek().clone();
        if !token.is_text() {
            return Err(self.unexpected(&format!("a keyword of {place} or `}}`")));
        }
        self.at += 1;
        let diagnostic = unknown(&token, place, known);
        self.note(match self.still_open.last() {
            // A word of the next outer level: rather a forgotten brace than a wrong word.
            Some(open)
                if self.still_open.len() > 1 && !known.contains(&"on") && RESOURCE.contains(&token.text.as_str()) =>
            {
                Diagnostic { help: None, label: "belongs outside of this section".to_owned(), ..diagnostic }
                    .and(open, "is the `}` missing that ends what begins here?")
            }
            _ => diagnostic,
        });
        self.pass_over()
    }

    /// Skips to behind the `;` or the `}` that ends the current statement.
    fn pass_over(&mut self) -> Parsed<()> {
        let mut depth = 0_u32;
        loop {
            let token = self.peek().clone();
            match token.kind {
                TokenKind::End => return Err(self.unexpected(if depth > 0 { "`}`" } else { "`;`" })),
                TokenKind::Punctuation('{') => depth += 1,
                TokenKind::Punctuation('}') if depth == 0 => return Err(self.unexpected("`;`")),
                TokenKind::Punctuation('}') => depth -= 1,
                _ => {}
            }
            self.at += 1;
            if depth == 0 && (token.is(';') || token.is('}')) {
                return Ok(());
            }
        }
    }

    fn top_level(&mut self) -> Parsed<()> {
        self.seen_in_section.push(HashMap::new());
        while self.peek().kind != TokenKind::End {
            let token = self.peek().clone();
            match token.text.as_str() {
                "global" if token.is_text() => self.global()?,
                "common" if token.is_text() => self.common()?,
                "resource" if token.is_text() => self.resource()?,
                "include" if token.is_text() => self.include()?,
                "skip" if token.is_text() => self.skip()?,
                _ if token.is_text() => self.unknown_word("the file", TOP_LEVEL)?,
                _ => return Err(self.unexpected("`global`, `common`, `resource`, `include` or `skip`")),
            }
        }
        Ok(())
    }

    fn skip(&mut self) -> Parsed<()> {
        self.next();
        while self.peek().is_text() {
            self.next();
        }
        if !self.peek().is('{') {
            return Err(self.unexpected("`{`"));
        }
        self.pass_over()
    }

    fn include(&mut self) -> Parsed<()> {
        let keyword = self.next();
        let pattern = self.expect_text("a file name or pattern")?;
        let span = keyword.span.to(&pattern.span);
        self.expect(';')?;
        let path = self.directory.join(&pattern.text);
        let is_pattern = pattern.text.contains(['*', '?', '[']);
        let matches = glob::glob(&path.to_string_lossy());
        let matches = matches.map_err(|error| Diagnostic::error(&span, "bad pattern", error.to_string()))?;
        let mut found = false;
        for path in matches.flatten() {
            found = true;
            if let Err(error) = self.reader.read_file(&path) {
                let title = format!("cannot read {}", path.display());
                self.note(Diagnostic::error(&span, title, error.to_string()));
            }
        }
        if !found && !is_pattern {
            self.note(Diagnostic::error(&span, format!("cannot read {}", path.display()), "there is no such file"));
        }
        Ok(())
    }

    fn global(&mut self) -> Parsed<()> {
        let keyword = self.next();
        if let Some(first) = self.reader.config.global.span.replace(keyword.span.clone()) {
            return Err(conflict("section", "global", &keyword.span, &first));
        }
        if !self.reader.config.resources.is_empty() {
            let label = "should stand before the resources";
            self.note(Diagnostic::warning(&keyword.span, "the global section comes late", label));
        }
        self.block(|parser| {
            let token = parser.peek().clone();
            let Some(name) = GLOBAL.iter().find(|name| token.is_text() && **name == token.text) else {
                return parser.unknown_word("global { }", GLOBAL);
            };
            parser.once("option", name, &token.span)?;
            parser.at += 1;
            let mut number = |max| parser.expect_number("a number", u32::from(max < 600), max).map(|(value, _)| value);
            match *name {
                "minor-count" => parser.reader.config.global.minor_count = Some(number(255)?),
                "dialog-refresh" => parser.reader.config.global.dialog_refresh_s = Some(number(600)?),
                "cmd-timeout-short" => parser.reader.config.global.timeout_short_s = Some(number(900)?),
                "cmd-timeout-medium" => parser.reader.config.global.timeout_medium_s = Some(number(900)?),
                "cmd-timeout-long" => parser.reader.config.global.timeout_long_s = Some(number(900)?),
                "disable-ip-verification" => parser.reader.config.global.disable_ip_verification = true,
                "udev-always-use-vnr" => parser.reader.config.global.udev_always_use_vnr = true,
                _ => {
                    let answer = parser.expect_word_of(&["yes", "no", "ask"], "`yes`, `no` or `ask`")?;
                    parser.reader.config.global.usage_count = Some(answer.to_owned());
                }
            }
            parser.expect(';').map(|_| ())
        })
    }

    fn common(&mut self) -> Parsed<()> {
        let keyword = self.next();
        self.once("section", "common", &keyword.span)?;
        let mut common = std::mem::take(&mut self.reader.config.common);
        let result = self.block(|parser| {
            if parser.option_section(&mut common)? {
                return Ok(());
            }
            parser.unknown_word("common { }", COMMON)
        });
        self.reader.config.common = common;
        result
    }

    fn resource(&mut self) -> Parsed<()> {
        self.next();
        let name = self.expect_text("the name of the resource")?;
        if name.text.is_empty() || name.text.chars().any(char::is_control) {
            return Err(Diagnostic::error(
                &name.span,
                "bad resource name",
                "a name is needed, without control characters",
            ));
        }
        if let Some(first) = self.reader.config.resources.iter().find(|resource| resource.name == name.text) {
            return Err(conflict("resource section", &name.text, &name.span, &first.span));
        }
        let mut resource = Resource { name: name.text, span: name.span, ..Resource::default() };
        self.block(|parser| parser.resource_item(&mut resource))?;
        self.reader.config.resources.push(resource);
        Ok(())
    }

    fn resource_item(&mut self, resource: &mut Resource) -> Parsed<()> {
        let token = self.peek().clone();
        if !token.is_text() {
            return self.unknown_word("resource { }", RESOURCE);
        }
        match token.text.as_str() {
            "disk" if !self.peek_after().is('{') => self.volume_item(implicit(&mut resource.volumes, &token.span)),
            "device" | "meta-disk" | "flexible-meta-disk" => {
                self.volume_item(implicit(&mut resource.volumes, &token.span))
            }
            "volume" => self.volume(&mut resource.volumes, VOLUME),
            "on" | "floating" | "stacked-on-top-of" | "_this_host" | "_remote_host" => {
                let host = self.host()?;
                for name in &host.names {
                    self.once("host section", name, &host.span)?;
                }
                resource.hosts.push(host);
                Ok(())
            }
            "ignore-on" => {
                self.next();
                let label = "has no effect any more";
                self.note(Diagnostic::warning(&token.span, "ignore-on is deprecated", label));
                self.expect_text("a host name")?;
                self.expect(';').map(|_| ())
            }
            _ => {
                if self.option_section(&mut resource.sections)? {
                    return Ok(());
                }
                self.unknown_word("resource { }", RESOURCE)
            }
        }
    }

    /// Sections that `common` and a resource share; false if the next word starts none of them.
    fn option_section(&mut self, sections: &mut Sections) -> Parsed<bool> {
        let token = self.peek().clone();
        let section = match token.text.as_str() {
            _ if !token.is_text() => return Ok(false),
            "protocol" => {
                self.once("statement", "protocol", &token.span)?;
                self.setting(Section::Net, sections)?;
                return Ok(true);
            }
            "net" => Section::Net,
            "disk" => Section::Disk,
            "options" => Section::Resource,
            "startup" => Section::Startup,
            "handlers" => Section::Handlers,
            "proxy" => Section::Proxy,
            "syncer" => Section::Syncer,
            _ => return Ok(false),
        };
        self.once("section", &token.text, &token.span)?;
        self.at += 1;
        self.block(|parser| parser.setting(section, sections))?;
        Ok(true)
    }

    // ---- options

    /// One option of a section, put where it belongs today.
    fn setting(&mut self, section: Section, sections: &mut Sections) -> Parsed<()> {
        let token = self.peek().clone();
        match (section, token.text.as_str()) {
            (Section::Startup, "stacked-timeouts") => {
                self.at += 1;
                sections.stacked_timeouts = true;
                return self.expect(';').map(|_| ());
            }
            (Section::Startup, "become-primary-on") => {
                self.once("option", "become-primary-on", &token.span)?;
                self.at += 1;
                sections.become_primary_span = token.span;
                sections.become_primary_on.push(self.expect_text("a host name or `both`")?.text);
                while self.peek().is_text() {
                    sections.become_primary_on.push(self.next().text);
                }
                return self.expect(';').map(|_| ());
            }
            (Section::Proxy, "plugin") => {
                self.at += 1;
                return self.block(Self::pass_over);
            }
            _ => {}
        }
        if let Some((destination, setting)) = self.plain_setting(section)? {
            let list = match destination {
                Section::Net => &mut sections.net,
                Section::Resource => &mut sections.options,
                Section::Startup => &mut sections.startup,
                Section::Handlers => &mut sections.handlers,
                Section::Proxy => &mut sections.proxy,
                Section::Disk | Section::Syncer => &mut sections.disk,
            };
            list.push(setting);
        }
        Ok(())
    }

    /// One option with its value; `None` if it was passed over.
    fn plain_setting(&mut self, section: Section) -> Parsed<Option<(Section, Setting)>> {
        let token = self.peek().clone();
        let place = format!("{} {{ }}", section.word());
        let shown_once = self.reader.is_kernel_output && options::ONCE.contains(&token.text.as_str());
        if token.is_text() && (shown_once || FORGOTTEN.contains(&token.text.as_str())) {
            return self.pass_over().map(|()| None);
        }
        let Some(found) = (if token.is_text() { options::find_config(section, &token.text) } else { None }) else {
            let known = options::config_names(section);
            return self.unknown_word(&place, &known).map(|()| None);
        };
        self.at += 1;
        let value = self.setting_value(&found)?;
        let setting = Setting {
            name: found.name,
            value: value.as_ref().map(|value| value.text.clone()),
            span: value.as_ref().map_or(token.span.clone(), |value| token.span.to(&value.span)),
        };
        self.expect(';')?;
        if let (Some(value), Err(problem)) = (&value, found.check(setting.argument())) {
            let title = format!("{} is no value for `{}`", value.found(), token.text);
            self.note(Diagnostic::error(&value.span, title, problem));
        }
        let switched = if found.negated { "no" } else { "yes" };
        let folded =
            setting.value.map(|value| if found.name == "protocol" { value.to_ascii_uppercase() } else { value });
        let value = folded.or_else(|| found.is_switch().then(|| switched.to_owned()));
        Ok(Some((found.section, Setting { value, ..setting })))
    }

    fn setting_value(&mut self, option: &ConfigOption) -> Parsed<Option<Token>> {
        if option.negated || (option.is_switch() && self.peek().is(';')) {
            return Ok(None);
        }
        self.expect_text(&option.expected()).map(Some)
    }

    // ---- hosts and volumes

    fn host(&mut self) -> Parsed<Host> {
        let keyword = self.next();
        let mut host = Host {
            kind: HostKind::This,
            span: keyword.span.clone(),
            names: Vec::new(),
            address: None,
            alternate_address: None,
            options: Settings::new(),
            volumes: Vec::new(),
            proxy: None,
        };
        let mut known = HOST;
        match keyword.text.as_str() {
            "on" => {
                host.names.push(self.expect_text("a host name")?.text);
                while self.peek().is_text() {
                    host.names.push(self.next().text);
                }
                host.kind = HostKind::On(host.names.clone());
            }
            "floating" => {
                host.address = Some(self.address()?);
                host.kind = HostKind::Floating;
            }
            "stacked-on-top-of" => {
                let lower = self.expect_text("the name of the lower resource")?;
                host.kind = HostKind::StackedOn(lower.text);
                known = STACKED_HOST;
            }
            "_remote_host" => host.kind = HostKind::Remote,
            _ => {}
        }
        if host.kind == HostKind::Floating && self.accept(';') {
            return Ok(host);
        }
        self.block(|parser| parser.host_item(&mut host, known))?;
        Ok(host)
    }

    fn host_item(&mut self, host: &mut Host, known: &[&'static str]) -> Parsed<()> {
        let token = self.peek().clone();
        if !token.is_text() || !known.contains(&token.text.as_str()) {
            return self.unknown_word("a host section", known);
        }
        match token.text.as_str() {
            "address" if host.kind == HostKind::Floating => {
                let label = "the address of a floating section stands in its first line";
                Err(Diagnostic::error(&token.span, "address in a floating section", label))
            }
            "address" => {
                self.next();
                self.once("statement", "address", &token.span)?;
                host.address = Some(self.address()?);
                self.expect(';').map(|_| ())
            }
            "alternate-link-address" => {
                self.next();
                self.once("statement", "alternate-link-address", &token.span)?;
                host.alternate_address = Some(self.address()?);
                self.expect(';').map(|_| ())
            }
            "volume" => {
                let known = if known == STACKED_HOST { &VOLUME[..1] } else { VOLUME };
                self.volume(&mut host.volumes, known)
            }
            "options" => {
                self.next();
                self.block(|parser| {
                    host.options.extend(parser.plain_setting(Section::Resource)?.map(|(_, setting)| setting));
                    Ok(())
                })
            }
            "proxy" => {
                host.proxy = Some(self.proxy()?);
                Ok(())
            }
            _ => self.volume_item(implicit(&mut host.volumes, &token.span)),
        }
    }

    fn proxy(&mut self) -> Parsed<Proxy> {
        let keyword = self.next();
        self.once("section", "proxy", &keyword.span)?;
        self.expect_word_of(&["on"], "`on`")?;
        let mut proxy = Proxy {
            span: keyword.span,
            hosts: vec![self.expect_text("a host name")?.text],
            inside: None,
            outside: None,
        };
        while self.peek().is_text() {
            proxy.hosts.push(self.next().text);
        }
        self.block(|parser| match parser.peek().text.as_str() {
            "inside" => {
                parser.next();
                proxy.inside = Some(parser.address()?);
                parser.expect(';').map(|_| ())
            }
            "outside" => {
                parser.next();
                proxy.outside = Some(parser.address()?);
                parser.expect(';').map(|_| ())
            }
            "options" => {
                parser.next();
                parser.block(|parser| parser.plain_setting(Section::Proxy).map(|_| ()))
            }
            _ => parser.unknown_word("proxy { }", &["inside", "outside", "options"]),
        })?;
        Ok(proxy)
    }

    fn volume(&mut self, volumes: &mut Vec<Volume>, known: &[&'static str]) -> Parsed<()> {
        let keyword = self.next();
        let (number, span) = self.expect_number("a volume number", 0, MAX_VOLUME)?;
        self.once("volume", &number.to_string(), &span)?;
        let mut volume = Volume { number, span: keyword.span.to(&span), ..Volume::default() };
        self.block(|parser| {
            let token = parser.peek().clone();
            if token.is_text() && known.contains(&token.text.as_str()) {
                parser.volume_item(&mut volume)
            } else {
                parser.unknown_word("volume { }", known)
            }
        })?;
        volumes.push(volume);
        Ok(())
    }

    fn volume_item(&mut self, volume: &mut Volume) -> Parsed<()> {
        let keyword = self.next();
        let what = if self.peek().is('{') { "section" } else { "statement" };
        let key = if keyword.text == "flexible-meta-disk" { "meta-disk" } else { &keyword.text };
        self.once(what, key, &keyword.span)?;
        match keyword.text.as_str() {
            "device" => self.device(volume),
            "disk" if self.peek().is('{') => self.block(|parser| {
                volume.settings.extend(parser.plain_setting(Section::Disk)?.map(|(_, setting)| setting));
                Ok(())
            }),
            "disk" => {
                let path = self.expect_text("the path of the backing device")?;
                volume.disk = Some((path.text, path.span));
                self.expect(';').map(|_| ())
            }
            flavour => self.meta_disk(volume, flavour == "flexible-meta-disk"),
        }
    }

    fn meta_disk(&mut self, volume: &mut Volume, flexible: bool) -> Parsed<()> {
        let path = self.expect_text("`internal` or the path of a device")?;
        let meta_disk = if path.text == "internal" {
            MetaDisk::Internal
        } else if !flexible && self.accept('[') {
            let (index, _) = self.expect_number("a slot number", 0, MAX_META_INDEX)?;
            self.expect(']')?;
            MetaDisk::Indexed(path.text, index)
        } else {
            MetaDisk::Flexible(path.text)
        };
        volume.meta_disk = Some((meta_disk, path.span));
        self.expect(';').map(|_| ())
    }

    fn device(&mut self, volume: &mut Volume) -> Parsed<()> {
        let token = self.expect_text("a device name or `minor`")?;
        let named = token.text != "minor" || token.kind == TokenKind::Quoted;
        let mut span = token.span.clone();
        if named {
            volume.device = Some((token.text.clone(), token.span.clone()));
            if self.peek().is_text() {
                self.expect_word_of(&["minor"], "`minor` or `;`")?;
            }
        }
        if self.peek().is_text() {
            let (minor, place) = self.expect_number("a minor number", 0, MAX_MINOR)?;
            volume.minor = Some(minor);
            span = place;
        }
        volume.minor_span = span;
        self.check_device_name(volume)?;
        self.expect(';').map(|_| ())
    }

    // spec: drbd-conf 3.6
    fn check_device_name(&mut self, volume: &mut Volume) -> Parsed<()> {
        let Some((name, span)) = volume.device.clone() else {
            return if volume.minor.is_some() { Ok(()) } else { Err(self.unexpected("a minor number")) };
        };
        let base = name.strip_prefix("/dev/").unwrap_or(&name);
        let Some(tail) = base.strip_prefix("drbd") else {
            let label = "expected `/dev/drbd0`, or `/dev/drbd_NAME minor 0`";
            self.note(Diagnostic::error(&span, "not the name of a replicated device", label));
            return Ok(());
        };
        match (tail.parse::<u32>().ok().filter(|minor| *minor <= MAX_MINOR), volume.minor) {
            (Some(number), Some(minor)) if number != minor => {
                let title = format!("{name} cannot have the minor number {minor}");
                self.note(Diagnostic::error(&volume.minor_span, title, format!("expected {number}, or another name")));
            }
            (Some(number), _) => volume.minor = Some(number),
            (None, _) if !tail.starts_with('_') => {
                let label = "expected a number or `_NAME` after `drbd`";
                self.note(Diagnostic::error(&span, "bad device name", label));
            }
            (None, None) => {
                let label = "expected `minor` and a number after this name";
                self.note(Diagnostic::error(&span, "the minor number is missing", label));
            }
            (None, Some(_)) => {}
        }
        Ok(())
    }

    // spec: drbd-conf 3.5
    fn address(&mut self) -> Parsed<Address> {
        let start = self.peek().span.clone();
        let mut family = "ipv4";
        if let Some(word) = FAMILIES.iter().find(|word| self.peek().is_text() && **word == self.peek().text) {
            family = if *word == "sci" { "ssocks" } else { word };
            self.at += 1;
        }
        let (ip, ip_span) = if family == "ipv6" {
            self.bracketed_address()?
        } else {
            let token = self.expect_text("an IPv4 address")?;
            (token.text, token.span)
        };
        let valid = match ip.split_once('%') {
            _ if family != "ipv6" => ip.parse::<std::net::Ipv4Addr>().is_ok(),
            Some((ip, scope)) => !scope.is_empty() && ip.parse::<std::net::Ipv6Addr>().is_ok(),
            None => ip.parse::<std::net::Ipv6Addr>().is_ok(),
        };
        if !valid {
            let label = match family {
                "ipv6" => "expected an IPv6 address, like `fe80::1%eth0`",
                _ => "expected four numbers from 0 to 255 with dots; names are not possible here",
            };
            return Err(Diagnostic::error(&ip_span, format!("`{ip}` is not an address"), label));
        }
        self.expect(':')?;
        let (port, port_span) = self.expect_number("a port number", 1, 65535)?;
        let port = u16::try_from(port).unwrap_or(u16::MAX);
        Ok(Address { family, ip, port, span: start.to(&port_span) })
    }

    fn bracketed_address(&mut self) -> Parsed<(String, Span)> {
        let open = self.expect('[')?;
        let mut text = String::new();
        while !self.peek().is(']') {
            let token = self.peek().clone();
            if !(token.kind == TokenKind::Word || token.is(':') || token.is('%')) {
                return Err(self.unexpected("an IPv6 address and `]`"));
            }
            text += &token.text;
            self.at += 1;
        }
        let close = self.expect(']')?;
        Ok((text, open.to(&close)))
    }
}

/// The implicit volume of a list, made when it is first needed.
fn implicit<'a>(volumes: &'a mut Vec<Volume>, span: &Span) -> &'a mut Volume {
    let index = volumes.iter().position(|volume| volume.implicit).unwrap_or_else(|| {
        volumes.push(Volume { implicit: true, span: span.clone(), ..Volume::default() });
        volumes.len() - 1
    });
    &mut volumes[index]
}

/// Something that may be used once is used again.
// spec: drbd-conf 7.1
pub fn conflict(what: &str, key: &str, here: &Span, first: &Span) -> Diagnostic {
    Diagnostic::error(here, format!("conflicting use of {what} '{key}'"), "used again here")
        .and(first, format!("{what} '{key}' first used here"))
}

fn unknown(token: &Token, place: &str, known: &[&str]) -> Diagnostic {
    let label = match nearest(&token.text, known) {
        Some(word) => format!("did you mean `{word}`?"),
        None => "nobody knows this word here".to_owned(),
    };
    let mut sorted = known.to_vec();
    sorted.sort_unstable();
    Diagnostic::error(&token.span, format!("unknown word {} in {place}", token.found()), label)
        .help(format!("expected one of: {}", sorted.join(", ")))
}

/// The known word that was probably meant.
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let limit = (word.len() / 3).max(1);
    let distances = known.iter().map(|candidate| (strsim::osa_distance(word, candidate), *candidate));
    distances.filter(|(distance, _)| *distance <= limit).min().map(|(_, candidate)| candidate)
}
