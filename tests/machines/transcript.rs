//! What a list of commands says, so that two programs or two modules can be compared.

use anyhow::{bail, ensure, Context};
use lab::Machine;
use machine_tests::Result;
use std::thread;

/// A command, where it ran and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    machine: String,
    command: String,
    code: i32,
    output: Vec<String>,
    errors: Vec<String>,
}

/// What is compared besides exit codes and standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compare {
    /// The standard error output too: the same program on both sides.
    Everything,
    /// Not the standard error output: the programs say things in their own words.
    NotTheErrors,
}

/// The commands so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Transcript {
    entries: Vec<Entry>,
}

impl Transcript {
    /// Runs a command and notes what it says.
    pub(crate) fn run(&mut self, machine: &Machine, command: &str) -> Result<()> {
        self.run_all(machine, &[command])
    }

    /// Runs several commands, one after the other.
    pub(crate) fn run_all(&mut self, machine: &Machine, commands: &[&str]) -> Result<()> {
        self.entries.extend(entries(machine, commands)?);
        Ok(())
    }

    /// Asks several machines the same, all at the same time.
    pub(crate) fn ask(&mut self, machines: &[Machine], questions: &[&str]) -> Result<()> {
        let answers = thread::scope(|scope| {
            let threads: Vec<_> =
                machines.iter().map(|machine| scope.spawn(move || entries(machine, questions))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| bail!("a thread panicked"))).collect()
        });
        let answers: Vec<Result<Vec<Entry>>> = answers;
        for answer in answers {
            self.entries.extend(answer?);
        }
        Ok(())
    }

    /// Notes lines that were collected otherwise.
    pub(crate) fn note(&mut self, machine: &Machine, what: &str, text: &str) {
        self.entries.push(Entry {
            machine: machine.name().into(),
            command: what.into(),
            code: 0,
            output: normalise(text),
            errors: Vec::new(),
        });
    }

    /// Compares with what is expected; the error lists all differences.
    pub(crate) fn check(&self, expected: &Transcript, compare: Compare) -> Result<()> {
        let mut differences = Vec::new();
        for (found, expected) in self.entries.iter().zip(&expected.entries) {
            let everything = compare == Compare::Everything;
            let errors_differ = everything && found.errors != expected.errors;
            // A drawing and a usage text are everybody's own.
            let own_words = !everything && OWN_WORDS.iter().any(|word| found.command.contains(word));
            let output_differs = !own_words && found.output != expected.output;
            if found.code != expected.code || output_differs || errors_differ {
                differences.push(format!(
                    "{}: `{}`\n  expected {}\n  found    {}",
                    found.machine,
                    found.command,
                    show(expected),
                    show(found)
                ));
            }
        }
        if self.entries.len() != expected.entries.len() {
            differences.push(format!("{} commands, expected {}", self.entries.len(), expected.entries.len()));
        }
        if differences.is_empty() {
            return Ok(());
        }
        bail!("{} differences:\n{}", differences.len(), differences.join("\n"))
    }
}

/// Ends a part of what [`SCRIPT`] prints; no program says this.
const MARK: char = '\u{1e}';

/// Runs its arguments and prints of each the exit code, the standard output and the error output.
const SCRIPT: &str = r#"
for command; do
    (eval "$command") >/tmp/transcript.out 2>/tmp/transcript.err
    printf '%s\x1e' $?
    cat /tmp/transcript.out
    printf '\x1e'
    cat /tmp/transcript.err
    printf '\x1e'
done
"#;

/// What came of several commands. One shell runs them all: an emulated machine needs longer to start one than to answer most
/// questions.
fn entries(machine: &Machine, commands: &[&str]) -> Result<Vec<Entry>> {
    let quoted: Vec<String> = commands.iter().map(|command| format!("'{}'", command.replace('\'', r"'\''"))).collect();
    let text = machine.run_ok(&format!("set -- {}{SCRIPT}", quoted.join(" ")))?;
    let parts: Vec<&str> = text.split(MARK).collect();
    ensure!(parts.len() == 3 * commands.len() + 1, "{} parts of {} commands: {text}", parts.len(), commands.len());
    let entry = |(command, parts): (&&str, &[&str])| {
        Ok(Entry {
            machine: machine.name().into(),
            command: (*command).into(),
            code: parts[0].parse().with_context(|| format!("exit code {:?}", parts[0]))?,
            output: normalise(parts[1].trim_end()),
            errors: normalise(parts[2].trim_end()),
        })
    };
    commands.iter().zip(parts.chunks_exact(3)).map(entry).collect()
}

/// Commands that each program answers in its own words.
const OWN_WORDS: [&str; 2] = ["show-gi", "nonsense"];

fn show(entry: &Entry) -> String {
    let mut text = format!("exit code {}", entry.code);
    for line in &entry.output {
        text.push_str(&format!("\n    | {line}"));
    }
    for line in &entry.errors {
        text.push_str(&format!("\n    ! {line}"));
    }
    text
}

/// Statistics that depend on timing, as the tools name them.
const VARIABLE: &[&str] = &[
    "read:",
    "written:",
    "al-writes:",
    "bm-writes:",
    "upper-pending:",
    "lower-pending:",
    "received:",
    "sent:",
    "pending:",
    "unacked:",
    "ns:",
    "nr:",
    "dw:",
    "dr:",
    "al:",
    "bm:",
    "lo:",
    "pe:",
    "ua:",
    "ap:",
    "ep:",
];

/// Replaces what differs between any two runs: generation numbers, checksums, counters.
pub(crate) fn normalise(text: &str) -> Vec<String> {
    text.lines()
        .filter(|line| !line.starts_with("srcversion:"))
        .map(|line| {
            let words = line.split(' ').map(|word| match VARIABLE.iter().find(|name| word.starts_with(**name)) {
                Some(name) => format!("{name}N"),
                None => generations(word),
            });
            words.collect::<Vec<_>>().join(" ").trim_end().to_owned()
        })
        .collect()
}

/// A word with every run of 16 hexadecimal digits replaced, except those that are all zero.
fn generations(word: &str) -> String {
    let mut result = String::new();
    let mut digits = String::new();
    let flush = |digits: &mut String, result: &mut String| {
        let random = digits.len() == 16 && digits.bytes().any(|byte| byte != b'0');
        result.push_str(if random { "UUID" } else { digits });
        digits.clear();
    };
    for character in word.chars() {
        if character.is_ascii_hexdigit() {
            digits.push(character);
        } else {
            flush(&mut digits, &mut result);
            result.push(character);
        }
    }
    flush(&mut digits, &mut result);
    result
}
