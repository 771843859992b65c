// SPDX-License-Identifier: GPL-2.0
//! Child programs: their lines, printing them, running them with a time limit.
//!
//! drbdadm does nothing to kernel or disk by itself: everything is a `drbdsetup` or `drbdmeta` line, so that `-d` shows
//! exactly what would happen. The children are other programs only where such are found; else this program again.
//! spec: commands 1.8

use super::shell_escape;
use crate::failure::Failure;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A suppressed child that ran out of time.
pub const TIMED_OUT: i32 = 256;

/// Which program a line is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// `drbdsetup-84`.
    Setup,
    /// `drbdmeta`.
    Meta,
}

/// One child command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The program.
    pub tool: Tool,
    /// Its words.
    pub words: Vec<String>,
}

impl Line {
    /// A `drbdsetup` line.
    pub fn setup<W: Into<String>>(words: impl IntoIterator<Item = W>) -> Self {
        Line { tool: Tool::Setup, words: words.into_iter().map(Into::into).collect() }
    }

    /// A `drbdmeta` line.
    pub fn meta<W: Into<String>>(words: impl IntoIterator<Item = W>) -> Self {
        Line { tool: Tool::Meta, words: words.into_iter().map(Into::into).collect() }
    }

    /// With more words at its end.
    pub fn with<W: Into<String>>(mut self, words: impl IntoIterator<Item = W>) -> Self {
        self.words.extend(words.into_iter().map(Into::into));
        self
    }
}

/// How long a child may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Something that only changes the kernel's memory.
    Short,
    /// Something that may wait for a disk or the peer.
    Long,
    /// Something that may take as long as it likes.
    Unlimited,
}

/// What becomes of a child's standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errors {
    /// It is shown.
    Show,
    /// It is thrown away.
    Suppress,
    /// It is kept and returned.
    Capture,
}

/// How a program is found.
#[derive(Clone, Debug)]
struct Program {
    /// What lines show.
    shown: String,
    /// What is executed; `None` for this program itself.
    path: Option<PathBuf>,
}

impl Program {
    fn find(name: &str, own_path: &str, chosen: Option<&str>) -> Self {
        if let Some(chosen) = chosen {
            return Program { shown: chosen.to_owned(), path: Some(chosen.into()) };
        }
        if let Some((directory, _)) = own_path.rsplit_once('/') {
            let neighbour = format!("{directory}/{name}");
            if Path::new(&neighbour).exists() {
                return Program { path: Some((&neighbour).into()), shown: neighbour };
            }
        }
        let search = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&search).map(|directory| directory.join(name)).find(|path| path.is_file());
        Program { shown: name.to_owned(), path: found }
    }
}

/// Seconds for the time classes; 0 is without limit.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For [`Class::Short`].
    pub short_s: u32,
    /// For [`Class::Long`].
    pub long_s: u32,
    /// For [`Class::Unlimited`].
    pub unlimited_s: u32,
}

/// Runs lines, or prints them.
#[derive(Clone, Debug)]
pub struct Runner {
    setup: Program,
    meta: Program,
    /// Only print.
    pub dry_run: bool,
    /// Print, too.
    pub verbose: bool,
    /// Printed as `NAME=RESOURCE` on a line before each line.
    pub variable: Option<String>,
    /// Nothing of any child's standard error is shown.
    pub quiet: bool,
    /// Time limits.
    pub limits: Limits,
}

impl Runner {
    /// Finds the children for a program that was called as `own_path`.
    pub fn new(own_path: &str, setup: Option<&str>, meta: Option<&str>) -> Self {
        Runner {
            setup: Program::find("drbdsetup-84", own_path, setup),
            meta: Program::find("drbdmeta", own_path, meta),
            dry_run: false,
            verbose: false,
            variable: None,
            quiet: false,
            limits: Limits { short_s: 5, long_s: 600, unlimited_s: 0 },
        }
    }

    /// The line as it is printed.
    pub fn text(&self, line: &Line) -> String {
        let words: Vec<_> = line.words.iter().map(|word| shell_escape(word)).collect();
        format!("{} {}", shell_escape(&self.program(line.tool).shown), words.join(" "))
    }

    /// Prints a line if lines are to be printed.
    pub fn announce(&self, resource: &str, line: &Line) {
        if self.dry_run || self.verbose {
            if let Some(variable) = &self.variable {
                println!("{variable}={}", shell_escape(resource));
            }
            println!("{}", self.text(line));
        }
    }

    /// Prints or runs a line; gives the exit code.
    ///
    /// # Errors
    /// Exit code 20: the program cannot be executed, or did not end in time.
    pub fn run(&self, resource: &str, line: &Line, class: Class, errors: Errors) -> Result<i32, Failure> {
        self.announce(resource, line);
        if self.dry_run {
            return Ok(0);
        }
        Ok(self.execute(resource, line, class, errors)?.0)
    }

    /// As [`Runner::run`], and returns what the child wrote to standard error.
    ///
    /// # Errors
    /// As [`Runner::run`].
    pub fn run_captured(&self, resource: &str, line: &Line, class: Class) -> Result<(i32, String), Failure> {
        self.announce(resource, line);
        if self.dry_run {
            return Ok((0, String::new()));
        }
        self.execute(resource, line, class, Errors::Capture)
    }

    /// Runs a line without printing it, and gives what it wrote to standard output; errors do not show.
    ///
    /// # Errors
    /// Exit code 20 if the program cannot be executed.
    pub fn output_of(&self, line: &Line) -> Result<(i32, String), Failure> {
        let mut command = self.command(line);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let output = command.output().map_err(|error| self.cannot_execute(line, &error))?;
        Ok((self.code(line, output.status, Errors::Suppress), String::from_utf8_lossy(&output.stdout).into_owned()))
    }

    /// Starts a line and does not wait for it.
    ///
    /// # Errors
    /// As [`Runner::output_of`].
    pub fn start(&self, line: &Line) -> Result<Child, Failure> {
        self.command(line).stdin(Stdio::null()).spawn().map_err(|error| self.cannot_execute(line, &error))
    }

    fn execute(&self, resource: &str, line: &Line, class: Class, errors: Errors) -> Result<(i32, String), Failure> {
        let errors = if self.quiet && errors == Errors::Show { Errors::Suppress } else { errors };
        let mut command = self.command(line);
        command.env("DRBD_RESOURCE", resource);
        match errors {
            Errors::Show => {}
            Errors::Suppress => {
                command.stderr(Stdio::null());
            }
            Errors::Capture => {
                command.stderr(Stdio::piped());
            }
        }
        let mut child = command.spawn().map_err(|error| self.cannot_execute(line, &error))?;
        let reader = child.stderr.take().map(|mut stderr| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                // What was read before an error is all there is.
                let _ = stderr.read_to_end(&mut bytes);
                String::from_utf8_lossy(&bytes).into_owned()
            })
        });
        let seconds = match class {
            Class::Short => self.limits.short_s,
            Class::Long => self.limits.long_s,
            Class::Unlimited => self.limits.unlimited_s,
        };
        let Some(status) = wait(&mut child, seconds).map_err(|error| self.cannot_execute(line, &error))? else {
            if errors == Errors::Suppress {
                return Ok((TIMED_OUT, String::new()));
            }
            let text = format!("Command '{}' did not terminate within {seconds} seconds", self.plain(line));
            return Err(Failure::new(20, text));
        };
        let captured = reader.and_then(|reader| reader.join().ok()).unwrap_or_default();
        Ok((self.code(line, status, errors), captured))
    }

    /// The exit code; a child that was killed counts as failed.
    fn code(&self, line: &Line, status: ExitStatus, errors: Errors) -> i32 {
        match status.code() {
            Some(code) => {
                if code >= 10 && errors == Errors::Show {
                    eprintln!("Command '{}' terminated with exit code {code}", self.plain(line));
                }
                code
            }
            None => {
                eprintln!("Command '{}' was killed by signal {}", self.plain(line), status.signal().unwrap_or(0));
                20
            }
        }
    }

    fn program(&self, tool: Tool) -> &Program {
        match tool {
            Tool::Setup => &self.setup,
            Tool::Meta => &self.meta,
        }
    }

    fn command(&self, line: &Line) -> Command {
        let program = self.program(line.tool);
        let mut command = match &program.path {
            Some(path) => Command::new(path),
            None => {
                let mut command = Command::new("/proc/self/exe");
                command.arg0(&program.shown);
                command
            }
        };
        command.args(&line.words);
        command
    }

    fn plain(&self, line: &Line) -> String {
        format!("{} {}", self.program(line.tool).shown, line.words.join(" "))
    }

    fn cannot_execute(&self, line: &Line, error: &std::io::Error) -> Failure {
        Failure::new(20, format!("Can not exec {}: {error}", self.program(line.tool).shown))
    }
}

/// Waits for the end; `None` if it did not come in time, the child is killed then.
fn wait(child: &mut Child, seconds: u32) -> std::io::Result<Option<ExitStatus>> {
    if seconds == 0 {
        return child.wait().map(Some);
    }
    let deadline = Instant::now() + Duration::from_secs(u64::from(seconds));
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            // It may have ended just now; either way it is gone afterwards.
            let _ = child.kill();
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runner(program: &str) -> Runner {
        Runner::new("drbdadm", Some(program), None)
    }

    #[test]
    fn exit_codes_and_standard_error() {
        let run = |script: &str| {
            let line = Line::setup(["-c", script]);
            runner("/bin/sh").run_captured("r0", &line, Class::Short).unwrap()
        };
        assert_eq!(run("echo $DRBD_RESOURCE >&2; exit 17"), (17, "r0\n".to_owned()));
        assert_eq!(run("kill -9 $$").0, 20);
    }

    #[test]
    fn time_limits() {
        let mut runner = runner("/bin/sleep");
        runner.limits.short_s = 1;
        let line = Line::setup(["30"]);
        assert_eq!(runner.run("r0", &line, Class::Short, Errors::Suppress), Ok(TIMED_OUT));
        let failure = runner.run("r0", &line, Class::Short, Errors::Show).unwrap_err();
        assert_eq!(failure.message, "Command '/bin/sleep 30' did not terminate within 1 seconds");
    }

    #[test]
    fn lines_are_escaped_for_a_shell() {
        let line = Line::setup(["connect", "r0", "ipv6:[fe80::1]:7789", "--shared-secret=a b"]);
        assert_eq!(runner("x").text(&line), "x connect r0 ipv6:\\[fe80::1\\]:7789 --shared-secret=a\\ b");
    }
}
