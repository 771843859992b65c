//! The host's side of [`crate::protocol`]: commands in a machine, any number at the same time, each wait with a time limit.

use crate::limit::stretched;
use crate::protocol::{Message, Status, CHUNK_BYTES, HELLO};
use anyhow::{bail, Context, Result};
use std::collections::HashMap;
use std::fmt;
use std::io::BufReader;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long a killed command may take to disappear before it counts as stuck in the kernel.
const KILL_GRACE: Duration = Duration::from_secs(3);

/// What a command said and how it ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub status: Status,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error output.
    pub stderr: Vec<u8>,
}

impl Output {
    /// The exit code; 128 plus the signal's number where a signal ended it, as a shell says it.
    pub fn code(&self) -> i32 {
        match self.status {
            Status::Code(code) => code,
            Status::Signal(signal) => 128 + signal,
        }
    }

    /// Whether the exit code is 0.
    pub fn success(&self) -> bool {
        self.code() == 0
    }

    /// Standard output as text, without white space at the end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// Standard error output as text, without white space at the end.
    pub fn error_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim_end().to_owned()
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Status::Code(code) => write!(f, "exit code {code}")?,
            Status::Signal(signal) => write!(f, "killed by signal {signal}")?,
        }
        for (name, text) in [("stdout", self.text()), ("stderr", self.error_text())] {
            if !text.is_empty() {
                write!(f, "\n--- {name}\n{}", tail(&text, 60))?;
            }
        }
        Ok(())
    }
}

/// The connection to the agent of one machine.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    /// Name of the machine, for messages.
    name: String,
    output: Mutex<UnixStream>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    hello: bool,
    /// Why the connection ended.
    lost: Option<String>,
    next_id: u32,
    commands: HashMap<u32, Entry>,
}

#[derive(Default)]
struct Entry {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    end: Option<Result<Status, String>>,
}

impl Client {
    /// Takes a connected stream; the agent may still be booting, see [`Client::wait_ready`].
    pub fn new(name: &str, stream: UnixStream) -> Result<Client> {
        let input = stream.try_clone().context("agent connection")?;
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            output: Mutex::new(stream),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let client = Client { shared: Arc::clone(&shared) };
        thread::Builder::new().name(format!("agent of {name}")).spawn(move || shared.receive(input))?;
        Ok(client)
    }

    /// Waits until the agent has said hello.
    pub fn wait_ready(&self, limit: Duration) -> Result<()> {
        let ready = self.shared.wait(limit, "an agent that answers", |state| state.hello.then_some(()))?;
        ready.with_context(|| {
            format!("{}: expected an agent that answers within {:.1} s", self.shared.name, limit.as_secs_f32())
        })
    }

    /// Whether the connection has ended (the machine is off).
    pub fn lost(&self) -> bool {
        self.shared.lock().lost.is_some()
    }

    /// Starts a program with arguments; its standard input is open and empty.
    pub fn spawn(&self, arguments: &[&str]) -> Result<Process> {
        let mut state = self.shared.lock();
        let id = state.next_id;
        state.next_id += 1;
        state.commands.insert(id, Entry::default());
        drop(state);
        let process =
            Process { id, command: arguments.join(" "), started: Instant::now(), shared: Arc::clone(&self.shared) };
        self.shared.send(&Message::Exec(id, arguments.iter().map(|&text| text.to_owned()).collect()))?;
        Ok(process)
    }
}

/// A command that was started. Dropping it does not end it; nobody sees its output then.
pub struct Process {
    id: u32,
    command: String,
    started: Instant,
    shared: Arc<Shared>,
}

impl Process {
    /// Sends bytes to the standard input.
    pub fn write(&self, data: &[u8]) -> Result<()> {
        for chunk in data.chunks(CHUNK_BYTES) {
            self.shared.send(&Message::Stdin(self.id, chunk.to_vec()))?;
        }
        Ok(())
    }

    /// Closes the standard input.
    pub fn close_input(&self) -> Result<()> {
        self.shared.send(&Message::StdinEnd(self.id))
    }

    /// Sends a signal to the command and everything it started.
    pub fn signal(&self, signal: nix::sys::signal::Signal) -> Result<()> {
        self.shared.send(&Message::Signal(self.id, signal as i32))
    }

    /// The standard output up to now.
    pub fn stdout(&self) -> Vec<u8> {
        self.shared.lock().commands.get(&self.id).map(|entry| entry.stdout.clone()).unwrap_or_default()
    }

    /// Whether the command is still running.
    pub fn running(&self) -> bool {
        let state = self.shared.lock();
        state.lost.is_none() && state.commands.get(&self.id).is_some_and(|entry| entry.end.is_none())
    }

    /// Waits for the end. A command that takes longer than `limit` is killed, and that is an error that carries its output
    /// up to then.
    pub fn wait(&self, limit: Duration) -> Result<Output> {
        if let Some(output) = self.end(limit)? {
            return Ok(output);
        }
        self.signal(nix::sys::signal::Signal::SIGKILL)?;
        let seconds = self.started.elapsed().as_secs_f32();
        match self.end(stretched(KILL_GRACE))? {
            Some(output) => bail!("{}: `{}` still ran after {seconds:.1} s: {output}", self.shared.name, self.command),
            None => Err(anyhow::Error::new(Stuck {
                machine: self.shared.name.clone(),
                command: self.command.clone(),
                stdout: String::from_utf8_lossy(&self.stdout()).into_owned(),
            })),
        }
    }

    /// Kills the command and waits for its end.
    pub fn kill(&self) -> Result<Output> {
        self.signal(nix::sys::signal::Signal::SIGKILL)?;
        self.wait(stretched(KILL_GRACE))
    }

    /// The end, or `None` when it does not come within `limit`.
    fn end(&self, limit: Duration) -> Result<Option<Output>> {
        let what = format!("the end of `{}`", self.command);
        let status = self.shared.wait(limit, &what, |state| match state.commands.get(&self.id) {
            Some(entry) => entry.end.clone(),
            None => Some(Err("forgotten".into())),
        })?;
        let mut state = self.shared.lock();
        let entry = state.commands.entry(self.id).or_default();
        match status {
            Some(Ok(status)) => Ok(Some(Output { status, stdout: entry.stdout.clone(), stderr: entry.stderr.clone() })),
            Some(Err(why)) => bail!("{}: cannot run `{}`: {why}", self.shared.name, self.command),
            None => Ok(None),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.shared.lock().commands.remove(&self.id);
    }
}

/// A command that did not die of SIGKILL: it hangs in the kernel.
#[derive(Debug)]
pub struct Stuck {
    machine: String,
    command: String,
    stdout: String,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: `{}` hangs in the kernel: SIGKILL did not end it", self.machine, self.command)?;
        if !self.stdout.is_empty() {
            write!(f, "\n--- stdout\n{}", tail(&self.stdout, 60))?;
        }
        Ok(())
    }
}

impl std::error::Error for Stuck {}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, message: &Message) -> Result<()> {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        message.write(&mut *output).with_context(|| format!("{}: no connection to the agent", self.name))
    }

    fn receive(&self, stream: UnixStream) {
        let mut input = BufReader::with_capacity(2 * CHUNK_BYTES, stream);
        let reason = loop {
            match Message::read(&mut input) {
                Ok(Some(message)) => {
                    if let Err(why) = self.lock().take(message) {
                        break why;
                    }
                    self.changed.notify_all();
                }
                Ok(None) => break "the machine is off".to_owned(),
                Err(error) => break error.to_string(),
            }
        };
        self.lock().lost = Some(reason);
        self.changed.notify_all();
        // Nobody is left to hear it; a blocked sender must not wait for ever.
        let _ = input.get_ref().shutdown(std::net::Shutdown::Both);
    }

    /// Waits for something; `None` when it does not come within `limit`.
    fn wait<T>(&self, limit: Duration, what: &str, mut get: impl FnMut(&State) -> Option<T>) -> Result<Option<T>> {
        let until = Instant::now() + limit;
        let mut state = self.lock();
        loop {
            if let Some(value) = get(&state) {
                return Ok(Some(value));
            }
            if let Some(why) = &state.lost {
                bail!("{}: expected {what}, but the connection to its agent ended: {why}", self.name);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl State {
    fn take(&mut self, message: Message) -> Result<(), String> {
        match message {
            Message::Hello(text) if text == HELLO => self.hello = true,
            Message::Hello(text) => {
                return Err(format!("agent of another version: {:?}", String::from_utf8_lossy(&text)));
            }
            Message::Stdout(id, data) => self.with(id, |entry| entry.stdout.extend_from_slice(&data)),
            Message::Stderr(id, data) => self.with(id, |entry| entry.stderr.extend_from_slice(&data)),
            Message::Exit(id, status) => self.with(id, |entry| entry.end = Some(Ok(status))),
            Message::Failed(id, why) => self.with(id, |entry| entry.end = Some(Err(why))),
            other => return Err(format!("unexpected {other:?}")),
        }
        Ok(())
    }

    /// Output of a command that nobody waits for any more is thrown away.
    fn with(&mut self, id: u32, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.commands.get_mut(&id) {
            change(entry);
        }
    }
}

/// The last `lines` lines of a text.
pub fn tail(text: &str, lines: usize) -> &str {
    let start = text.trim_end().rmatch_indices('\n').nth(lines.saturating_sub(1)).map_or(0, |(at, _)| at + 1);
    text[start..].trim_end()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent;

    fn pair() -> Client {
        let (host, guest) = UnixStream::pair().unwrap();
        let output = guest.try_clone().unwrap();
        thread::spawn(move || agent::serve(guest, output));
        let client = Client::new("here", host).unwrap();
        client.wait_ready(Duration::from_secs(5)).unwrap();
        client
    }

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn output_and_exit_code_come_back() {
        let process = pair().spawn(&["sh", "-c", "echo out; echo err >&2; exit 20"]).unwrap();
        let output = process.wait(LIMIT).unwrap();
        assert_eq!((output.code(), output.text(), output.error_text()), (20, "out".into(), "err".into()));
    }

    #[test]
    fn a_signal_shows_as_a_shell_shows_it() {
        let output = pair().spawn(&["sh", "-c", "kill -TERM $$"]).unwrap().wait(LIMIT).unwrap();
        assert_eq!((output.status, output.code()), (Status::Signal(15), 143));
    }

    #[test]
    fn a_program_that_does_not_exist_is_named() {
        let error = pair().spawn(&["/no/such/program"]).unwrap().wait(LIMIT).unwrap_err();
        assert!(error.to_string().contains("/no/such/program: No such file"), "{error}");
    }

    #[test]
    fn megabytes_go_in_and_come_out_unchanged() {
        let data: Vec<u8> =
            (0..3_000_000_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let process = pair().spawn(&["cat"]).unwrap();
        process.write(&data).unwrap();
        process.close_input().unwrap();
        assert!(process.wait(LIMIT).unwrap().stdout == data);
    }

    #[test]
    fn commands_run_side_by_side() {
        let client = pair();
        let slow = client.spawn(&["cat"]).unwrap();
        let quick = client.spawn(&["echo", "quick"]).unwrap();
        assert_eq!(quick.wait(LIMIT).unwrap().text(), "quick");
        assert!(slow.running());
        slow.close_input().unwrap();
        assert!(slow.wait(LIMIT).unwrap().success());
        assert!(!slow.running());
    }

    #[test]
    fn the_time_limit_kills_and_tells_what_was_said() {
        let error = pair().spawn(&["sh", "-c", "echo began; sleep 60 | cat"]).unwrap();
        let error = error.wait(Duration::from_millis(300)).unwrap_err().to_string();
        assert!(error.contains("still ran after 0.") && error.contains("began"), "{error}");
    }

    #[test]
    fn a_background_process_does_not_hold_up_the_end() {
        let process = pair().spawn(&["sh", "-c", "sleep 30 & echo $!"]).unwrap();
        let began = Instant::now();
        let output = process.wait(LIMIT).unwrap();
        assert!(began.elapsed() < Duration::from_secs(5));
        let pid = nix::unistd::Pid::from_raw(output.text().parse().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    }

    /// A stream that takes half a second for every chunk, as one of a busy machine may.
    struct Slow(UnixStream);

    impl std::io::Write for Slow {
        fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
            if data.len() >= CHUNK_BYTES {
                thread::sleep(Duration::from_millis(500));
            }
            self.0.write(data)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            self.0.flush()
        }
    }

    #[test]
    fn a_command_ends_after_all_that_it_said() {
        let (host, guest) = UnixStream::pair().unwrap();
        let output = Slow(guest.try_clone().unwrap());
        thread::spawn(move || agent::serve(guest, output));
        let client = Client::new("slow", host).unwrap();
        client.wait_ready(LIMIT).unwrap();
        let said = client.spawn(&["head", "-c", "131072", "/dev/zero"]).unwrap().wait(LIMIT).unwrap().stdout;
        assert_eq!(said.len(), 131_072);
    }

    #[test]
    fn a_machine_that_dies_ends_every_wait() {
        let (host, guest) = UnixStream::pair().unwrap();
        let client = Client::new("gone", host).unwrap();
        let process = client.spawn(&["true"]).unwrap();
        drop(guest);
        let error = process.wait(LIMIT).unwrap_err().to_string();
        assert!(error.contains("gone") && error.contains("ended"), "{error}");
        assert!(client.lost());
    }

    #[test]
    fn the_tail_is_the_last_lines() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a\nb", 9), "a\nb");
        assert_eq!(tail("", 3), "");
    }
}
