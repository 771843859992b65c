// SPDX-License-Identifier: GPL-2.0
//! One tool at a time for a minor: a write lock on a file, released by the kernel when the process ends.

use crate::failure::Failure;
use nix::fcntl::{fcntl, FcntlArg};
use nix::libc;
use std::fs::{File, OpenOptions};

use std::time::{Duration, Instant};

const LOCK_DIR: &str = "/var/lock";
const PATIENCE: Duration = Duration::from_secs(1);
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// Holds the lock on one minor until it is dropped.
#[derive(Debug)]
pub struct MinorLock {
    _file: File,
}

impl MinorLock {
    /// Takes the lock on `minor`, waiting at most a second for another tool.
    ///
    /// # Errors
    /// Exit code 20: the lock file cannot be opened, or another process holds it.
    pub fn take(minor: u32) -> Result<Self, Failure> {
        let path = format!("{LOCK_DIR}/drbd-147-{minor}");
        // Where /var/lock is missing altogether (a bare rescue system) it is made; any other problem shows below.
        let _ = std::fs::create_dir_all(LOCK_DIR);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|error| Failure::new(20, format!("Can not open lock file '{path}': {error}")))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let request = whole_file();
            match fcntl(&file, FcntlArg::F_SETLK(&request)) {
                Ok(_) => return Ok(MinorLock { _file: file }),
                Err(nix::errno::Errno::EACCES | nix::errno::Errno::EAGAIN) if Instant::now() < deadline => {
                    std::thread::sleep(RETRY_INTERVAL);
                }
                Err(nix::errno::Errno::EACCES | nix::errno::Errno::EAGAIN) => {
                    return Err(Failure::new(20, format!("{path}: locked by {}", holder(&file))));
                }
                Err(error) => return Err(Failure::new(20, format!("Can not lock '{path}': {error}"))),
            }
        }
    }
}

fn whole_file() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

fn holder(file: &File) -> String {
    let mut request = whole_file();
    match fcntl(file, FcntlArg::F_GETLK(&mut request)) {
        Ok(_) if request.l_pid > 0 => format!("process {}", request.l_pid),
        _ => "another process".to_owned(),
    }
}
