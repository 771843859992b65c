// SPDX-License-Identifier: GPL-2.0
//! Every file in `bad/` has one kind of mistake in it; the file next to it holds what is said about it.
//!
//! `UPDATE_EXPECTED=1 cargo test -p drbdadm` writes those files anew; read the difference before it is kept.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Runs `drbdadm dump` as drbd1 on a file of `bad/`; gives standard error and the exit code.
fn complaint(directory: &Path, file: &str) -> (String, i32) {
    let output = Command::new(env!("CARGO_BIN_EXE_drbdadm"))
        .arg0("drbdadm")
        .args(["-d", "-c", file, "dump"])
        .current_dir(directory)
        .env("__DRBD_NODE__", "drbd1")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    let text = text.split_once("drbd1<<\n\n").unwrap().1;
    let text = text.replace(&format!("{}/", directory.display()), "");
    (text, output.status.code().unwrap())
}

#[test]
fn every_mistake_is_shown_where_it_is() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bad");
    let update = std::env::var_os("UPDATE_EXPECTED").is_some();
    let mut names: Vec<_> = std::fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".conf"))
        .collect();
    names.sort();
    assert!(names.len() >= 25);
    for name in names {
        let (text, code) = complaint(&directory, &name);
        assert_eq!(code, 10, "{name}:\n{text}");
        let expected_path = directory.join(name.replace(".conf", ".expected"));
        if update {
            std::fs::write(&expected_path, &text).unwrap();
        }
        let expected = std::fs::read_to_string(&expected_path).unwrap_or_default();
        assert_eq!(text, expected, "{name}");
        assert!(text.contains(&format!("--> {name}:")), "{name} is not named with line and column:\n{text}");
    }
}

#[test]
fn damaged_files_never_panic() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bad");
    let text = std::fs::read(directory.join("different_volumes.conf")).unwrap();
    for cut in (0..text.len()).step_by(7) {
        let path = std::env::temp_dir().join(format!("drbdadm-cut-{}.conf", std::process::id()));
        let mut damaged = text[..cut].to_vec();
        damaged.extend([b'"', b'{', 0xFF, b';'].iter().cycle().skip(cut % 4).take(cut % 5));
        std::fs::write(&path, damaged).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_drbdadm"))
            .arg0("drbdadm")
            .args(["-d", "-c", path.to_str().unwrap(), "dump"])
            .output()
            .unwrap();
        std::fs::remove_file(&path).unwrap();
        let code = output.status.code().unwrap();
        assert!(code == 0 || code == 10, "cut at {cut}: {code}");
    }
}
