//! The guest's side of [`crate::protocol`]: starts commands for the host and reports what they say.
//!
//! Every command is the leader of a process group of its own, so that a signal reaches what it started too. Time limits are
//! the host's business. A command counts as ended when its process has ended and everything it said is on its way to the host;
//! output that background processes still produce afterwards is not waited for longer than [`DRAIN`].

use crate::protocol::{Message, Status, CHUNK_BYTES, HELLO};
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{killpg, Signal};
use nix::sys::wait::{waitid, Id, WaitPidFlag};
use nix::unistd::Pid;
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

/// Milliseconds without output after which a command that has ended is not listened to any longer, although something else
/// keeps its pipe open.
const DRAIN: u16 = 300;

/// How many bytes are still forwarded after the end of a command: more than a pipe holds.
const MOST_AFTER_END: usize = 1 << 20;

/// Serves one host until its stream ends.
///
/// # Errors
/// A frame that makes no sense, or a stream that fails.
pub fn serve(mut input: impl Read, output: impl Write + Send + 'static) -> io::Result<()> {
    let agent = Arc::new(Agent { output: Mutex::new(Box::new(output)), running: Mutex::default() });
    agent.send(&Message::Hello(HELLO.to_vec()))?;
    while let Some(message) = Message::read(&mut input)? {
        match message {
            Message::Exec(id, arguments) => agent.start(id, &arguments)?,
            Message::Stdin(id, data) => agent.feed(id, Some(data)),
            Message::StdinEnd(id) => agent.feed(id, None),
            Message::Signal(id, signal) => agent.signal(id, signal),
            other => return Err(io::Error::new(io::ErrorKind::InvalidData, format!("unexpected {other:?}"))),
        }
    }
    Ok(())
}

struct Agent {
    output: Mutex<Box<dyn Write + Send>>,
    running: Mutex<HashMap<u32, Running>>,
}

struct Running {
    group: Pid,
    /// `None` closes the standard input.
    stdin: Sender<Option<Vec<u8>>>,
}

impl Agent {
    fn send(&self, message: &Message) -> io::Result<()> {
        message.write(&mut *lock(&self.output))
    }

    fn start(self: &Arc<Self>, id: u32, arguments: &[String]) -> io::Result<()> {
        let child = match spawn(arguments) {
            Ok(child) => child,
            Err(error) => return self.send(&Message::Failed(id, error.to_string())),
        };
        let (stdin, data) = mpsc::channel();
        let group = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
        lock(&self.running).insert(id, Running { group, stdin });
        let agent = Arc::clone(self);
        thread::spawn(move || agent.attend(id, child, data));
        Ok(())
    }

    /// Accompanies a command from its start to its end.
    fn attend(self: Arc<Self>, id: u32, mut child: Child, data: Receiver<Option<Vec<u8>>>) {
        if let Some(pipe) = child.stdin.take() {
            thread::spawn(move || write_all(pipe, &data));
        }
        let ended = Arc::new(AtomicBool::new(false));
        let forwarders = [
            self.forward(id, child.stdout.take(), Message::Stdout, &ended),
            self.forward(id, child.stderr.take(), Message::Stderr, &ended),
        ];
        // Not reaped yet: the number stays taken while a signal may still be on its way to it.
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
        while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR) {}
        lock(&self.running).remove(&id);
        let status = child.wait();
        ended.store(true, Ordering::Release);
        for forwarder in forwarders {
            // One that panicked has nothing more to say.
            let _ = forwarder.join();
        }
        let message = match status {
            Ok(status) => match (status.code(), status.signal()) {
                (Some(code), _) => Message::Exit(id, Status::Code(code)),
                (None, signal) => Message::Exit(id, Status::Signal(signal.unwrap_or(0))),
            },
            Err(error) => Message::Failed(id, error.to_string()),
        };
        // A host that is gone does not want to know.
        let _ = self.send(&message);
    }

    fn forward(
        self: &Arc<Self>,
        id: u32,
        pipe: Option<impl Read + AsFd + Send + 'static>,
        wrap: fn(u32, Vec<u8>) -> Message,
        ended: &Arc<AtomicBool>,
    ) -> JoinHandle<()> {
        let (agent, ended) = (Arc::clone(self), Arc::clone(ended));
        thread::spawn(move || {
            let Some(mut pipe) = pipe else { return };
            let mut buffer = vec![0; CHUNK_BYTES];
            let mut left = MOST_AFTER_END;
            while left > 0 {
                // Asked before the pipe is: what an ended command said is in the pipe then.
                let over = ended.load(Ordering::Acquire);
                match readable(&pipe) {
                    Ok(false) if over => break,
                    Ok(false) => continue,
                    Ok(true) => (),
                    Err(_) => break,
                }
                match pipe.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(count) if agent.send(&wrap(id, buffer[..count].to_vec())).is_err() => break,
                    Ok(count) if over => left = left.saturating_sub(count),
                    Ok(_) => (),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                    Err(_) => break,
                }
            }
        })
    }

    fn feed(&self, id: u32, data: Option<Vec<u8>>) {
        if let Some(running) = lock(&self.running).get(&id) {
            // A command that does not read its input is no error.
            let _ = running.stdin.send(data);
        }
    }

    fn signal(&self, id: u32, signal: i32) {
        let running = lock(&self.running);
        if let (Some(running), Ok(signal)) = (running.get(&id), Signal::try_from(signal)) {
            // The group may have ended by itself in this moment.
            let _ = killpg(running.group, signal);
        }
    }
}

fn spawn(arguments: &[String]) -> io::Result<Child> {
    let (program, rest) = arguments.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    Command::new(program)
        .args(rest)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("{program}: {error}")))
}

/// Waits until there is something to read, or the other end is closed; not longer than [`DRAIN`].
fn readable(pipe: &impl AsFd) -> nix::Result<bool> {
    let mut pipes = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    match poll(&mut pipes, PollTimeout::from(DRAIN)) {
        Err(Errno::EINTR) => Ok(false),
        found => found.map(|count| count > 0),
    }
}

fn write_all(mut pipe: ChildStdin, data: &Receiver<Option<Vec<u8>>>) {
    while let Ok(Some(data)) = data.recv() {
        if pipe.write_all(&data).is_err() {
            return;
        }
    }
}

/// A thread that panicked while it held a lock does not make the agent useless.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
