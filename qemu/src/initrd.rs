//! What a machine gets from the host at boot: files in a second archive behind the initial RAM disk. The image of the root
//! file system therefore never changes when the module, the tools or the agent change.

use anyhow::{Context, Result};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

const MODE_DIRECTORY: u32 = 0o040_755;
const MODE_FILE: u32 = 0o100_000;

/// A program or a module of the host without the information for debuggers, which is ten times as large as the rest and makes an
/// emulated machine boot seconds later. As it is where there is no `strip`.
pub fn stripped(source: &Path) -> Result<Vec<u8>> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let target = std::env::temp_dir().join(format!("lab-strip-{}-{number}", std::process::id()));
    let mut command = Command::new("strip");
    command.arg("--strip-debug").arg("-o").arg(&target).arg(source).stderr(Stdio::null());
    let done = matches!(command.status(), Ok(status) if status.success());
    let from = if done { &target } else { source };
    let data = std::fs::read(from).with_context(|| format!("reading {}", from.display()));
    // It may not be there.
    let _ = std::fs::remove_file(&target);
    data
}

/// A cpio archive ("newc") in the making.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a directory; parents first.
    pub fn directory(&mut self, path: &str) {
        self.entry(path, MODE_DIRECTORY, &[]);
    }

    /// Adds a file with these permissions.
    pub fn file(&mut self, path: &str, permissions: u32, data: &[u8]) {
        self.entry(path, MODE_FILE | permissions, data);
    }

    /// Adds a program or a module of the host with its permissions, [`stripped`].
    pub fn host_program(&mut self, path: &str, source: &Path) -> Result<()> {
        let data = stripped(source)?;
        let permissions = std::fs::metadata(source)?.permissions().mode() & 0o777;
        self.file(path, permissions, &data);
        Ok(())
    }

    /// The archive behind another one: the kernel unpacks both.
    pub fn append_to(mut self, mut base: Vec<u8>) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        pad(&mut base);
        base.extend_from_slice(&self.bytes);
        base
    }

    fn entry(&mut self, path: &str, mode: u32, data: &[u8]) {
        self.entries += 1;
        let links = 1;
        let size = u32::try_from(data.len()).expect("a file for the initial RAM disk is far below 4 GiB");
        let name_size = u32::try_from(path.len() + 1).expect("a path is short");
        // inode, mode, uid, gid, links, time, size, device (2), special device (2), size of the name, checksum
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        pad(&mut self.bytes);
        self.bytes.extend_from_slice(data);
        pad(&mut self.bytes);
    }
}

/// Entries and archives start at multiples of four bytes.
fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stripped_program_is_smaller_and_a_text_stays() {
        let program = std::env::current_exe().unwrap();
        let size = std::fs::metadata(&program).unwrap().len() as usize;
        let stripped_program = stripped(&program).unwrap();
        assert!(stripped_program.starts_with(b"\x7fELF") && stripped_program.len() < size);
        let text = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
        assert_eq!(stripped(text).unwrap(), std::fs::read(text).unwrap());
    }

    #[test]
    fn an_entry_is_what_the_kernel_expects() {
        let mut archive = Archive::default();
        archive.directory("payload");
        archive.file("payload/a", 0o755, b"12345");
        let bytes = archive.append_to(vec![b'x'; 5]);
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(&bytes[..8], b"xxxxx\0\0\0");
        let text = String::from_utf8_lossy(&bytes[8..]).into_owned();
        assert!(text.starts_with("07070100000001000041ed"), "{text}");
        let second = &text[110 + 8 + 2..];
        assert!(second.starts_with("07070100000002000081ed"), "{second}");
        assert_eq!(&second[54..62], "00000005");
        assert_eq!(&second[110..120], "payload/a\0");
        assert!(second[120..].starts_with("12345\0\0\x00070701"), "{second}");
        assert!(text.contains("TRAILER!!!\0"));
    }
}
