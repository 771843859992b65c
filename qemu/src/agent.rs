//! The guest's side of [`crate::protocol`]: starts commands for the host and reports what they say.
//!
//! Every command is the leader of a process group of its own, so that a signal reaches what it started too. Time limits are
//! the host's business. A command counts as ended when its process has ended; output that background processes still
//! produce afterwards is not waited for longer than [`DRAIN`].

use crate::protocol::{Message, Status, CHUNK_BYTES, HELLO};
use nix::sys::signal::{killpg, Signal};
use nix::sys::wait::{waitid, Id, WaitPidFlag};
use nix::unistd::Pid;
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// How long output is collected after the end of a command whose pipes something else keeps open.
const DRAIN: Duration = Duration::from_millis(300);

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
        let (done, ended) = mpsc::channel();
        self.forward(id, child.stdout.take(), Message::Stdout, done.clone());
        self.forward(id, child.stderr.take(), Message::Stderr, done);
        // Not reaped yet: the number stays taken while a signal may still be on its way to it.
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
        while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(nix::errno::Errno::EINTR) {}
        lock(&self.running).remove(&id);
        let status = child.wait();
        for _ in 0..2 {
            if ended.recv_timeout(DRAIN).is_err() {
                break;
            }
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
        pipe: Option<impl Read + Send + 'static>,
        wrap: fn(u32, Vec<u8>) -> Message,
        done: Sender<()>,
    ) {
        let agent = Arc::clone(self);
        thread::spawn(move || {
            let mut buffer = vec![0; CHUNK_BYTES];
            if let Some(mut pipe) = pipe {
                loop {
                    match pipe.read(&mut buffer) {
                        Ok(0) => break,
                        Ok(count) if agent.send(&wrap(id, buffer[..count].to_vec())).is_err() => break,
                        Ok(_) => (),
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                        Err(_) => break,
                    }
                }
            }
            // The command's attendant may have stopped waiting.
            let _ = done.send(());
        });
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
