//! A person at the serial consoles: keys go to one machine, its output comes to the terminal. Ctrl-] ends it, Ctrl-\ goes to
//! the next machine.

use anyhow::{Context, Result};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::termios::{cfmakeraw, tcgetattr, tcsetattr, SetArg, Termios};
use std::io::{stdin, stdout, Read, Stdin, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

const KEY_END: u8 = 0x1d;
const KEY_NEXT: u8 = 0x1c;

/// Connects the terminal to the consoles behind these sockets, the first one first, until Ctrl-] or a machine's end.
pub fn attach(sockets: &[PathBuf]) -> Result<()> {
    let mut current = 0;
    let _raw = RawMode::enter()?;
    while let Some(path) = sockets.get(current) {
        match attach_one(path)? {
            End::Next => current = (current + 1) % sockets.len(),
            End::Done => break,
        }
    }
    Ok(())
}

enum End {
    Next,
    Done,
}

fn attach_one(path: &Path) -> Result<End> {
    let mut console = UnixStream::connect(path).with_context(|| format!("console {}", path.display()))?;
    let machine = path.file_stem().unwrap_or_default().to_string_lossy();
    print!("\r\n[{machine}: Ctrl-] leaves, Ctrl-\\ goes to the other machine]\r\n");
    stdout().flush()?;
    console.write_all(b"\r")?;
    let mut buffer = [0; 4096];
    loop {
        let (keys, output) = wait(&console)?;
        if output {
            let count = console.read(&mut buffer)?;
            if count == 0 {
                return Ok(End::Done);
            }
            stdout().write_all(&buffer[..count])?;
            stdout().flush()?;
        }
        if keys {
            let count = stdin().lock().read(&mut buffer)?;
            let typed = &buffer[..count];
            if count == 0 || typed.contains(&KEY_END) {
                return Ok(End::Done);
            }
            if typed.contains(&KEY_NEXT) {
                return Ok(End::Next);
            }
            console.write_all(typed)?;
        }
    }
}

/// Waits for keys and output; says which of them there is.
fn wait(console: &UnixStream) -> Result<(bool, bool)> {
    let stdin = stdin();
    let mut sources = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN), PollFd::new(console.as_fd(), PollFlags::POLLIN)];
    match poll(&mut sources, PollTimeout::NONE) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => (),
        Err(error) => return Err(error.into()),
    }
    Ok((sources[0].any().unwrap_or(false), sources[1].any().unwrap_or(false)))
}

/// The terminal passes every key on; as it was before when this is dropped.
struct RawMode {
    stdin: Stdin,
    before: Termios,
}

impl RawMode {
    fn enter() -> Result<RawMode> {
        let stdin = stdin();
        let before = tcgetattr(&stdin).context("standard input is no terminal")?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&stdin, SetArg::TCSANOW, &raw)?;
        Ok(RawMode { stdin, before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that is gone needs no care.
        let _ = tcsetattr(&self.stdin, SetArg::TCSANOW, &self.before);
    }
}
