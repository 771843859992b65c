// SPDX-License-Identifier: GPL-2.0
//! Command line words, read by the rules the three programs share.
//!
//! Long options may be abbreviated as long as the abbreviation is not ambiguous, options and words may stand in any
//! order, and `--` ends the options. Nothing is interpreted here: the caller gets the items in the order they were
//! typed. (No option parser of the crate registry accepts abbreviations, which scripts use.)

use std::collections::VecDeque;

/// Does an option take a value?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// A switch.
    None,
    /// `--name` or `--name=value`.
    Optional,
    /// `--name=value` or `--name value`.
    Required,
}

/// One option of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionSpec {
    /// Long name without the dashes.
    pub long: &'static str,
    /// One-letter form.
    pub short: Option<char>,
    /// Whether a value follows.
    pub value: Value,
}

impl OptionSpec {
    /// An option without a one-letter form.
    pub const fn long(long: &'static str, value: Value) -> Self {
        OptionSpec { long, short: None, value }
    }

    /// An option with a one-letter form.
    pub const fn both(long: &'static str, short: char, value: Value) -> Self {
        OptionSpec { long, short: Some(short), value }
    }
}

/// One item of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// An option with its full long name and the value, if one was given.
    Option(&'static str, Option<String>),
    /// A word that is no option.
    Word(String),
    /// A word that stands behind `--`.
    Literal(String),
}

/// Reads `words` with the options of `specs`.
///
/// # Errors
/// A sentence that names the option which is unknown, ambiguous, lacks its value or takes none.
pub fn parse(specs: &[OptionSpec], words: &[String]) -> Result<Vec<Item>, String> {
    let mut rest: VecDeque<&str> = words.iter().map(String::as_str).collect();
    let mut items = Vec::new();
    while let Some(word) = rest.pop_front() {
        if word == "--" {
            items.extend(rest.drain(..).map(|literal| Item::Literal(literal.to_owned())));
        } else if let Some(long) = word.strip_prefix("--") {
            items.push(long_option(specs, long, &mut rest)?);
        } else if word.len() > 1 && word.starts_with('-') {
            short_options(specs, &word[1..], &mut rest, &mut items)?;
        } else {
            items.push(Item::Word(word.to_owned()));
        }
    }
    Ok(items)
}

fn long_option(specs: &[OptionSpec], text: &str, rest: &mut VecDeque<&str>) -> Result<Item, String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    let spec = find_long(specs, name)?;
    match (spec.value, value) {
        (Value::None, Some(_)) => Err(format!("option '--{}' doesn't allow an argument", spec.long)),
        (Value::Required, None) => match rest.pop_front() {
            Some(value) => Ok(Item::Option(spec.long, Some(value.to_owned()))),
            None => Err(format!("option '--{}' requires an argument", spec.long)),
        },
        (_, value) => Ok(Item::Option(spec.long, value)),
    }
}

fn find_long<'a>(specs: &'a [OptionSpec], name: &str) -> Result<&'a OptionSpec, String> {
    if let Some(exact) = specs.iter().find(|spec| spec.long == name) {
        return Ok(exact);
    }
    let mut candidates = specs.iter().filter(|spec| !name.is_empty() && spec.long.starts_with(name));
    let Some(first) = candidates.next() else {
        return Err(format!("unrecognized option '--{name}'"));
    };
    let others: Vec<_> = candidates.filter(|spec| spec.long != first.long).map(|spec| spec.long).collect();
    if others.is_empty() {
        return Ok(first);
    }
    let all: Vec<_> = std::iter::once(first.long).chain(others).map(|long| format!("'--{long}'")).collect();
    Err(format!("option '--{name}' is ambiguous; possibilities: {}", all.join(" ")))
}

fn short_options(
    specs: &[OptionSpec],
    letters: &str,
    rest: &mut VecDeque<&str>,
    items: &mut Vec<Item>,
) -> Result<(), String> {
    let mut chars = letters.chars();
    while let Some(letter) = chars.next() {
        let spec = specs
            .iter()
            .find(|spec| spec.short == Some(letter))
            .ok_or_else(|| format!("invalid option -- '{letter}'"))?;
        let attached = chars.as_str();
        match spec.value {
            Value::None => items.push(Item::Option(spec.long, None)),
            _ if !attached.is_empty() => {
                items.push(Item::Option(spec.long, Some(attached.trim_start_matches('=').to_owned())));
                return Ok(());
            }
            Value::Optional => items.push(Item::Option(spec.long, None)),
            Value::Required => {
                let value = rest.pop_front().ok_or_else(|| format!("option requires an argument -- '{letter}'"))?;
                items.push(Item::Option(spec.long, Some(value.to_owned())));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPECS: &[OptionSpec] = &[
        OptionSpec::both("dry-run", 'd', Value::None),
        OptionSpec::both("config-file", 'c', Value::Required),
        OptionSpec::long("config-to-test", Value::Required),
        OptionSpec::long("force", Value::Optional),
    ];

    fn read(words: &[&str]) -> Result<Vec<Item>, String> {
        parse(SPECS, &words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn options_and_words_in_any_order() {
        assert_eq!(
            read(&["up", "-dc", "x", "--fo=yes", "r0", "--", "-d"]).unwrap(),
            [
                Item::Word("up".into()),
                Item::Option("dry-run", None),
                Item::Option("config-file", Some("x".into())),
                Item::Option("force", Some("yes".into())),
                Item::Word("r0".into()),
                Item::Literal("-d".into()),
            ]
        );
    }

    #[test]
    fn a_lone_dash_is_a_word() {
        assert_eq!(read(&["-c", "-"]).unwrap(), [Item::Option("config-file", Some("-".into()))]);
        assert_eq!(read(&["-"]).unwrap(), [Item::Word("-".into())]);
    }

    #[test]
    fn bad_options_are_named() {
        for (words, message) in [
            (&["--config-"][..], "option '--config-' is ambiguous; possibilities: '--config-file' '--config-to-test'"),
            (&["--nope"], "unrecognized option '--nope'"),
            (&["-x"], "invalid option -- 'x'"),
            (&["--dry-run=yes"], "option '--dry-run' doesn't allow an argument"),
            (&["--config-file"], "option '--config-file' requires an argument"),
        ] {
            assert_eq!(read(words).unwrap_err(), message);
        }
    }
}
