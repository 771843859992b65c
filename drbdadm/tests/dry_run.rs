// SPDX-License-Identifier: GPL-2.0
//! What `drbdadm -d` prints: the tables of the specification, line by line.
//!
//! spec: commands 2.4, 2.6, 2.7; drbd-conf 5

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The tutorial's configuration, with the comment it has.
const SEED: &str = "\
common {
  syncer { rate 10M; }   # 同步速率
}
resource r0 {
  protocol C;
  disk { on-io-error detach; }
  on drbd1 { device /dev/drbd0; disk /dev/sdb1; address 192.168.1.11:7788; meta-disk internal; }
  on drbd2 { device /dev/drbd0; disk /dev/sdb1; address 192.168.1.12:7788; meta-disk internal; }
}
";

/// Two volumes, external meta data, IPv6, quoting, options on every level.
const LARGE: &str = r#"
global { usage-count no; }
common {
  net { timeout 70; cram-hmac-alg sha1; }
  disk { resync-rate 5M; c-plan-ahead 0; no-disk-flushes; }
  startup { wfc-timeout 7; degr-wfc-timeout 3; wait-after-sb; }
  options { cpu-mask 3; }
}
resource a {
  net { protocol B; allow-two-primaries; shared-secret "a b"; after-sb-0pri discard-node-drbd2; }
  disk { md-flushes no; resync-rate 10M; }
  syncer { verify-alg md5; cpu-mask 5; }
  on drbd1 {
    address 10.0.0.1:7789;
    volume 0 { device minor 1; disk /dev/sda1; meta-disk /dev/sdc[0]; disk { al-extents 3833; } }
    volume 1 { device /dev/drbd_foo minor 2; disk /dev/sda2; meta-disk /dev/sdd; }
  }
  on drbd2 {
    address ipv6 [fe80::1]:7789;
    volume 0 { device minor 1; disk /dev/sda1; meta-disk /dev/sdd; }
    volume 1 { device minor 2; disk /dev/sda2; flexible-meta-disk /dev/sde; }
  }
}
resource b {
  disk { resync-after a/1; size 1000s; }
  device /dev/drbd5; disk /dev/vg/b; meta-disk internal;
  on drbd1 { address 10.0.0.1:7790; }
  on drbd2 { address 10.0.0.2:7790; }
}
"#;

/// A directory with a configuration and, if wanted, a `drbdsetup-84` that shows a running state.
struct Scene {
    directory: PathBuf,
}

impl Scene {
    fn new(name: &str, config: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("drbdadm-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("drbd.conf"), config).unwrap();
        Scene { directory }
    }

    fn running(self, shown: &str) -> Self {
        std::fs::write(self.directory.join("shown"), shown).unwrap();
        let script = format!("#!/bin/sh\n[ \"$1\" = show ] && cat {}\n", self.directory.join("shown").display());
        let path = self.directory.join("drbdsetup-84");
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    /// Standard output and exit code.
    fn run(&self, words: &[&str]) -> (String, i32) {
        self.run_with("drbd.conf", words)
    }

    /// With the configuration on standard input nothing is noted below /var/run.
    fn run_from_input(&self, words: &[&str]) -> (String, i32) {
        self.run_with("-", words)
    }

    fn run_with(&self, config: &str, words: &[&str]) -> (String, i32) {
        let path = format!("{}:{}", self.directory.display(), std::env::var("PATH").unwrap());
        // What the build has in its environment (DRBD_CACHE) would be told to the handlers too.
        let ours = std::env::vars_os().map(|(name, _)| name).filter(|name| name.to_string_lossy().starts_with("DRBD_"));
        let mut program = Command::new(env!("CARGO_BIN_EXE_drbdadm"));
        for name in ours {
            program.env_remove(name);
        }
        let output = program
            .arg0("drbdadm")
            .args(["-c", config])
            .args(words)
            .stdin(std::fs::File::open(self.directory.join("drbd.conf")).unwrap())
            .current_dir(&self.directory)
            .env("__DRBD_NODE__", "drbd1")
            .env("PATH", path)
            .output()
            .unwrap();
        (String::from_utf8(output.stdout).unwrap(), output.status.code().unwrap())
    }

    fn lines(&self, words: &[&str]) -> String {
        let (text, code) = self.run(words);
        assert_eq!(code, 0, "{words:?}: {text}");
        text
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

const UP: &str = "\
drbdsetup-84 new-resource r0
drbdsetup-84 new-minor r0 0 0
drbdmeta 0 v08 /dev/sdb1 internal apply-al
drbdsetup-84 attach 0 /dev/sdb1 /dev/sdb1 internal --on-io-error=detach --resync-rate=10M
drbdsetup-84 connect r0 ipv4:192.168.1.11:7788 ipv4:192.168.1.12:7788 --protocol=C
";
const ADDRESSES: &str = "ipv4:192.168.1.11:7788 ipv4:192.168.1.12:7788";

#[test]
fn lines_of_the_tutorial_configuration() {
    let scene = Scene::new("seed", SEED).running("");
    let connect = format!("drbdsetup-84 connect r0 {ADDRESSES} --protocol=C");
    let table: &[(&str, String)] = &[
        ("up r0", UP.to_owned()),
        ("adjust r0", UP.to_owned()),
        ("create-md r0", "drbdmeta 0 v08 /dev/sdb1 internal create-md\n".to_owned()),
        ("-- --force create-md r0", "drbdmeta 0 v08 /dev/sdb1 internal create-md --force\n".to_owned()),
        ("create-md --force r0", "drbdmeta 0 v08 /dev/sdb1 internal create-md --force\n".to_owned()),
        ("-- --overwrite-data-of-peer primary r0", "drbdsetup-84 primary 0 --overwrite-data-of-peer\n".to_owned()),
        ("primary --force r0", "drbdsetup-84 primary 0 --force\n".to_owned()),
        ("connect r0", format!("{connect}\n")),
        ("connect --discard-my-data r0", format!("{connect} --discard-my-data\n")),
        ("disconnect r0", format!("drbdsetup-84 disconnect {ADDRESSES}\n")),
        ("net-options r0", format!("drbdsetup-84 net-options {ADDRESSES}\n")),
        ("attach r0", UP.lines().skip(2).take(2).map(|line| format!("{line}\n")).collect()),
        ("down r0", "drbdsetup-84 down r0\n".to_owned()),
        ("resource-options r0", "drbdsetup-84 resource-options r0\n".to_owned()),
        ("status r0", "drbdsetup-84 status r0\n".to_owned()),
        ("wait-connect r0", "drbdsetup-84 wait-connect 0\n".to_owned()),
        ("new-current-uuid r0/0", "drbdsetup-84 new-current-uuid 0\n".to_owned()),
        ("up all", UP.to_owned()),
        ("role minor-0", "drbdsetup-84 role 0\n".to_owned()),
        ("down minor-0", "drbdsetup-84 down r0\n".to_owned()),
    ];
    for (words, expected) in table {
        let words: Vec<_> = std::iter::once("-d").chain(words.split(' ')).collect();
        assert_eq!(&scene.lines(&words), expected, "{words:?}");
    }
    for command in
        ["role", "cstate", "detach", "secondary", "verify", "pause-sync", "resume-sync", "suspend-io", "resume-io"]
    {
        assert_eq!(scene.lines(&["-d", command, "r0"]), format!("drbdsetup-84 {command} 0\n"));
    }
    for command in ["dstate", "show-gi", "get-gi", "invalidate", "outdate"] {
        let expected = format!("drbdsetup-84 {command} 0\ndrbdmeta 0 v08 /dev/sdb1 internal {command}\n");
        assert_eq!(scene.lines(&["-d", command, "r0"]), expected);
    }
    for command in ["resize", "check-resize"] {
        assert_eq!(scene.lines(&["-d", command, "r0"]), "drbdsetup-84 resize 0\ndrbdsetup-84 check-resize 0\n");
    }
    for command in ["dump-md", "wipe-md", "apply-al", "set-gi"] {
        assert_eq!(scene.lines(&["-d", command, "r0"]), format!("drbdmeta 0 v08 /dev/sdb1 internal {command}\n"));
    }
}

#[test]
fn options_of_every_level() {
    let scene = Scene::new("large", LARGE).running("");
    let expected = "\
drbdsetup-84 new-resource a --cpu-mask=5
drbdsetup-84 new-minor a 1 0
drbdsetup-84 new-minor a 2 1
drbdsetup-84 new-resource b --cpu-mask=3
drbdsetup-84 new-minor b 5 0
drbdmeta 1 v08 /dev/sdc 0 apply-al
drbdsetup-84 attach 1 /dev/sda1 /dev/sdc 0 --resync-rate=10M --md-flushes=no --c-plan-ahead=0 --disk-flushes=no --al-extents=3833
drbdmeta 2 v08 /dev/sdd flex-external apply-al
drbdsetup-84 attach 2 /dev/sda2 /dev/sdd flexible --resync-rate=10M --md-flushes=no --c-plan-ahead=0 --disk-flushes=no
drbdmeta 5 v08 /dev/vg/b internal apply-al
drbdsetup-84 attach 5 /dev/vg/b /dev/vg/b internal --size=1000s --resync-after=2 --resync-rate=5M --c-plan-ahead=0 --disk-flushes=no
drbdsetup-84 connect a ipv4:10.0.0.1:7789 ipv6:\\[fe80::1\\]:7789 --cram-hmac-alg=sha1 --timeout=70 --protocol=B \
--allow-two-primaries=yes --shared-secret=a\\ b --after-sb-0pri=discard-remote --verify-alg=md5
drbdsetup-84 connect b ipv4:10.0.0.1:7790 ipv4:10.0.0.2:7790 --cram-hmac-alg=sha1 --timeout=70
";
    assert_eq!(scene.lines(&["-d", "up", "all"]), expected);
    assert_eq!(scene.lines(&["-d", "sh-udev", "minor-2"]), "RESOURCE=a/1\nDEVICE=drbd_foo\nDISK=sda2\n");
    assert_eq!(
        scene.lines(&["-d", "wait-connect", "b"]),
        "drbdsetup-84 wait-connect 5 --wait-after-sb=yes --degr-wfc-timeout=3 --wfc-timeout=7\n"
    );
    assert_eq!(scene.lines(&["sh-resources"]), "a b\n");
    assert_eq!(scene.lines(&["sh-minor", "a"]), "1\n2\n");
}

/// The running state of the tutorial's resource with some things replaced.
fn shown(replacements: &[(&str, &str)]) -> String {
    let mut text = String::from(
        "resource r0 {\n    options {\n    }\n    net {\n    }\n    _remote_host {\n        address\t\t\tipv4 192.168.1.12:7788;\n    \
         }\n    _this_host {\n        address\t\t\tipv4 192.168.1.11:7788;\n        volume 0 {\n            device\t\t\tminor 0;\n            \
         disk\t\t\t\"/dev/sdb1\";\n            meta-disk\t\t\tinternal;\n            disk {\n                resync-rate     \t10240k; \
         # bytes/second\n            }\n        }\n    }\n}\n",
    );
    for (from, to) in replacements {
        assert!(text.contains(from));
        text = text.replace(from, to);
    }
    text
}

#[test]
fn adjust_does_what_differs() {
    let attach = "drbdmeta 0 v08 /dev/sdb1 internal apply-al\n\
        drbdsetup-84 attach 0 /dev/sdb1 /dev/sdb1 internal --on-io-error=detach --resync-rate=10M\n";
    let connect = format!("drbdsetup-84 connect r0 {ADDRESSES} --protocol=C\n");
    let table: &[(&str, String, String)] = &[
        ("equal", shown(&[]), String::new()),
        ("once", shown(&[("net {", "net { discard-my-data yes;")]), String::new()),
        (
            "disk options",
            shown(&[("10240k;", "20480k; on-io-error pass_on;")]),
            "drbdsetup-84 disk-options 0 --set-defaults --on-io-error=detach --resync-rate=10M\n".to_owned(),
        ),
        (
            "other disk, other peer",
            shown(&[("\"/dev/sdb1\"", "\"/dev/sdc1\""), ("1.12:7788", "1.13:7788")]),
            format!(
                "drbdsetup-84 detach 0\n{attach}drbdsetup-84 disconnect ipv4:192.168.1.11:7788 ipv4:192.168.1.13:7788\n{connect}"
            ),
        ),
        (
            "other minor",
            shown(&[("minor 0", "minor 5")]),
            format!("drbdsetup-84 detach 5\ndrbdsetup-84 del-minor 5\ndrbdsetup-84 new-minor r0 0 0\n{attach}"),
        ),
        (
            "other options",
            shown(&[("options {", "options { cpu-mask \"3\";"), ("net {", "net { timeout 70;")]),
            format!(
                "drbdsetup-84 resource-options r0 --set-defaults\n\
                 drbdsetup-84 net-options {ADDRESSES} --set-defaults --protocol=C\n"
            ),
        ),
        (
            "diskless and standing alone",
            "resource r0 { options { } _this_host { volume 0 { device minor 0; } } }".to_owned(),
            format!("{attach}{connect}"),
        ),
        (
            "one volume too many",
            shown(&[("        volume 0", "        volume 1 { device minor 7; }\n        volume 0")]),
            "drbdsetup-84 del-minor 7\n".to_owned(),
        ),
        (
            "another size",
            shown(&[("10240k;", "10240k; size 2048s;")]),
            "drbdsetup-84 resize 0\n".to_owned(),
        ),
        (
            "external meta data",
            shown(&[("meta-disk\t\t\tinternal", "meta-disk\t\t\t\"/dev/sdc\" [ 1 ]")]),
            format!("drbdsetup-84 detach 0\n{attach}"),
        ),
    ];
    for (name, running, expected) in table {
        let scene = Scene::new(&name.replace([' ', ','], "-"), SEED).running(running);
        assert_eq!(&scene.lines(&["-d", "adjust", "r0"]), expected, "{name}");
    }
}

#[test]
fn the_same_address_written_differently_is_no_difference() {
    let config =
        SEED.replace("address 192.168.1.11", "address ipv6 [fe80:0:0::0:1]").replace("protocol C", "protocol c");
    let running = shown(&[("ipv4 192.168.1.11", "ipv6 [fe80::1]")]);
    let scene = Scene::new("ipv6", &config).running(&running);
    assert_eq!(scene.lines(&["-d", "adjust", "r0"]), "");
}

#[test]
fn exit_codes() {
    let scene = Scene::new("codes", LARGE).running("");
    for (words, code) in [
        (&["-d", "up", "nope"][..], 1),
        (&["-d", "up"], 1),
        (&["nope", "a"], 1),
        (&[], 1),
        (&["-d", "down", "a/1"], 1),
        (&["-d", "set-gi", "a"], 1),
        (&["-d", "role", "a/9"], 1),
        (&["-d", "role", "a/x"], 20),
        (&["-d", "-S", "up", "a"], 1),
        (&["-d", "-c", "missing.conf", "up", "a"], 20),
        (&["-t", "drbd.conf", "up", "a"], 1),
        (&["help"], 0),
        (&["help", "sh-b-pri"], 0),
        (&["--version"], 0),
        (&["sh-nop"], 0),
        // The address is not one of this machine's.
        (&["connect", "a"], 10),
        (&["before-resync-target", "minor-5"], 0),
    ] {
        assert_eq!(scene.run(words).1, code, "{words:?}");
    }
}

#[test]
fn a_dump_is_read_back_unchanged() {
    let scene = Scene::new("dump", LARGE);
    let first = scene.lines(&["-d", "dump"]);
    let again = Scene::new("dump-again", &first);
    let second = again.lines(&["-d", "dump"]);
    let body =
        |text: &str| -> Vec<String> { text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect() };
    assert_eq!(body(&first), body(&second));
    assert_eq!(again.lines(&["-d", "up", "all"]).lines().count(), scene.lines(&["-d", "up", "all"]).lines().count());
}

#[test]
fn handlers_get_their_environment() {
    let config = SEED.replace(
        "protocol C;",
        "protocol C; handlers { before-resync-target \"env | grep ^DRBD_ | sort; exit 3\"; fence-peer \"echo $DRBD_MINOR $DRBD_PEERS; exit 7\"; }",
    );
    let scene = Scene::new("handlers", &config);
    let (text, code) = scene.run(&["before-resync-target", "minor-0"]);
    let conf = scene.directory.join("drbd.conf");
    let expected = format!(
        "DRBD_CONF={}\nDRBD_LL_DISK=/dev/sdb1\nDRBD_MINOR=0\nDRBD_PEER=drbd2\nDRBD_PEERS=drbd2\n\
         DRBD_PEER_ADDRESS=192.168.1.12\nDRBD_PEER_AF=ipv4\nDRBD_RESOURCE=r0\nDRBD_VOLUME=0\n",
        conf.display()
    );
    assert_eq!((text, code), (expected, 3));
    assert_eq!(scene.run(&["fence-peer", "r0"]), ("0 drbd2\n".to_owned(), 7));
    assert_eq!(scene.run(&["split-brain", "minor-0"]), (String::new(), 0));
}

/// Everything the kernel is asked to do in a real run, and what becomes of failures.
#[test]
fn a_stage_that_fails_is_the_last() {
    let scene = Scene::new("stages", &format!("global {{ disable-ip-verification; }}\n{SEED}"));
    let log = scene.directory.join("log");
    let script = |failing: &str| {
        let text = format!(
            "#!/bin/sh\n[ $1 = show ] && exit 0\necho \"${{0##*/}} $1\" >> {}\n[ \"$1\" = {failing} ] && exit 10\nexit 0\n",
            log.display()
        );
        for program in ["drbdsetup-84", "drbdmeta"] {
            let path = scene.directory.join(program);
            std::fs::write(&path, &text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let _ = std::fs::remove_file(&log);
    };
    let said = |log: &Path| std::fs::read_to_string(log).unwrap();
    script("new-resource");
    assert_eq!(scene.run_from_input(&["up", "r0"]).1, 1);
    assert_eq!(said(&log), "drbdsetup-84 new-resource\n");
    script("attach");
    assert_eq!(scene.run_from_input(&["adjust-with-progress", "r0"]).1, 1);
    assert_eq!(
        said(&log),
        "drbdsetup-84 new-resource\ndrbdsetup-84 new-minor\ndrbdmeta 0\ndrbdsetup-84 attach\ndrbdsetup-84 connect\n"
    );
}
