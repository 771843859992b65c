//! The lab itself, with machines: both boot, answer, reach each other, and what can be done to them has its effect.
//!
//! Needs the images of `make images`; without them it fails and says so.

use lab::{shared, Disk, Mark, Module, Options, Result, Shared, Throttle, Tools};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(30);

fn machines() -> Result<Shared> {
    shared(Options::default().name("two-machines").module(Module::None).tools(Tools::Utils))
}

#[test]
fn both_answer_by_name_and_reach_each_other() -> Result<()> {
    let cluster = machines()?;
    for (machine, peer) in [(cluster.drbd1(), cluster.drbd2()), (cluster.drbd2(), cluster.drbd1())] {
        assert_eq!(machine.run_ok("hostname")?, machine.name());
        machine.run_ok(&format!("ping -c 1 -W 5 {}", peer.name()))?;
        assert_eq!(machine.run_ok("blockdev --getsize64 /dev/sda /dev/sdb1")?, format!("{}\n{}", 64 << 20, 128 << 20));
    }
    let output = cluster.drbd1().run("echo out; echo err >&2; exit 20")?;
    assert_eq!((output.code(), output.text(), output.error_text()), (20, "out".into(), "err".into()));
    cluster.finish()
}

#[test]
fn files_go_in_and_come_out_unchanged() -> Result<()> {
    let cluster = machines()?;
    let data: Vec<u8> =
        (0..1_000_000_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    cluster.drbd1().put("/tmp/new/data", &data)?;
    assert!(cluster.drbd1().get("/tmp/new/data")? == data);
    assert!(cluster.drbd1().get("/tmp/none").is_err());
    cluster.finish()
}

#[test]
fn a_command_over_its_time_is_killed_while_others_go_on() -> Result<()> {
    let cluster = machines()?;
    let machine = cluster.drbd1();
    let background = machine.spawn("echo there; sleep 1000")?;
    let error = machine.run_for(Duration::from_millis(500), "echo began; sleep 1000").unwrap_err().to_string();
    assert!(error.contains("still ran after") && error.contains("began") && error.contains("--- console"), "{error}");
    assert!(background.running());
    assert_eq!(background.stdout(), b"there\n");
    assert_eq!(background.kill()?.code(), 128 + 9);
    cluster.finish()
}

#[test]
fn a_cut_link_carries_nothing_and_a_delayed_one_is_late() -> Result<()> {
    let cluster = machines()?;
    let machine = cluster.drbd1();
    machine.run_ok("ping -c 1 -W 5 drbd2")?;
    cluster.wire().cut();
    assert!(!machine.run("ping -c 3 -i 0.2 -W 1 drbd2")?.success());
    cluster.wire().restore();
    machine.run_ok("ping -c 1 -W 5 drbd2")?;
    cluster.wire().delay(Duration::from_millis(200));
    let times = machine.run_ok("ping -c 2 -W 5 drbd2 | sed -n 's/.*time=\\([0-9]*\\).*/\\1/p'")?;
    for time in times.lines() {
        assert!(time.parse::<u32>()? >= 400, "{times}");
    }
    cluster.finish()
}

#[test]
fn a_power_cut_keeps_what_the_disk_has_and_loses_the_rest() -> Result<()> {
    let cluster = machines()?;
    let machine = cluster.drbd2();
    machine.run_ok("echo kept >/root/kept; sync; echo lost >/run/lost")?;
    machine.run_ok("printf 'acknowledged' | dd of=/dev/sdb1 bs=4096 conv=sync oflag=direct status=none")?;
    machine.power_cut()?;
    assert!(!machine.is_on() && machine.run("true").is_err());
    let mut bytes = [0; 12];
    File::open(machine.disk_file("sdb"))?.read_exact_at(&mut bytes, Disk::partitioned(128).start_bytes())?;
    assert_eq!(&bytes, b"acknowledged");
    machine.power_on()?;
    assert_eq!(machine.run_ok("cat /root/kept; head -c 12 /dev/sdb1")?, "kept\nacknowledged");
    assert!(!machine.run("cat /run/lost")?.success());
    machine.reboot()?;
    assert_eq!(machine.run_ok("cat /root/kept")?, "kept");
    cluster.drbd1().run_ok("ping -c 1 -W 10 drbd2")?;
    cluster.finish()
}

#[test]
fn a_paused_machine_looks_dead_and_goes_on_later() -> Result<()> {
    let cluster = machines()?;
    cluster.drbd2().pause()?;
    assert!(!cluster.drbd1().run("ping -c 2 -i 0.2 -W 1 drbd2")?.success());
    cluster.drbd2().resume()?;
    cluster.drbd1().wait_success(LIMIT, "the resumed machine to answer", "ping -c 1 -W 1 drbd2")?;
    cluster.finish()
}

#[test]
fn disks_fail_and_are_slow_as_ordered() -> Result<()> {
    let cluster = machines()?;
    let machine = cluster.drbd1();
    let disk = machine.faulty_disk("lower", "/dev/sdb1")?;
    let path = disk.path();
    let read =
        |block: u32| machine.run(&format!("dd if={path} of=/dev/null bs=4096 skip={block} count=1 iflag=direct"));
    let write =
        |block: u32| machine.run(&format!("dd if=/dev/zero of={path} bs=4096 seek={block} count=1 oflag=direct"));
    assert!(read(0)?.success() && write(0)?.success());
    disk.fail_range(5 * 4096, 4096)?;
    assert!(read(4)?.success() && !read(5)?.success() && !write(5)?.success() && write(6)?.success());
    disk.fail_writes()?;
    assert!(read(5)?.success() && !write(5)?.success());
    disk.fail()?;
    assert!(!read(9)?.success() && !write(9)?.success());
    disk.delay(Duration::ZERO, Duration::from_secs(2))?;
    let began = Instant::now();
    assert!(write(0)?.success() && began.elapsed() >= Duration::from_secs(2));
    disk.hang()?;
    let writer = machine.spawn(&format!("dd if=/dev/zero of={path} bs=4096 count=1 oflag=direct"))?;
    machine.run_ok("sleep 1")?;
    assert!(writer.running());
    let command = format!("exec dd if={path} of=/dev/null bs=4096 count=1 iflag=direct");
    let error = machine.run_for(Duration::from_secs(1), &command).unwrap_err().to_string();
    assert!(error.contains("hangs in the kernel") && error.contains("task:dd"), "{error}");
    disk.heal()?;
    assert!(writer.wait(LIMIT)?.success());
    disk.remove()?;

    machine.throttle("sdb", Throttle { iops: 10, bytes_per_second: 0 })?;
    let began = Instant::now();
    machine.run_ok("dd if=/dev/zero of=/dev/sdb1 bs=4096 count=40 oflag=direct")?;
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
    cluster.finish()
}

#[test]
fn a_complaint_of_the_kernel_is_noticed_once() -> Result<()> {
    let cluster = machines()?;
    let machine = cluster.drbd1();
    machine.check_console()?;
    let mark = machine.console().mark();
    machine.run_ok("echo '<4>BUG: made up by a test' >/dev/kmsg")?;
    machine.wait_console(LIMIT, mark, "made up")?;
    let error = machine.check_console().unwrap_err().to_string();
    assert!(error.contains("BUG: made up by a test") && error.contains("drbd1"), "{error}");
    assert!(machine.console().check(Mark::default()).is_err());
    cluster.finish()
}

#[test]
fn the_c_module_mirrors_a_disk() -> Result<()> {
    let cluster = shared(Options::default().name("two-machines").module(Module::Stock).tools(Tools::Utils))?;
    let hosts = cluster.machines().iter().map(|machine| {
        let (name, address) = (machine.name(), machine.address());
        format!("on {name} {{ device /dev/drbd0; disk /dev/sda; address {address}:7788; meta-disk internal; }}\n")
    });
    let configuration = format!("global {{ usage-count no; }}\nresource r0 {{\n{}}}\n", hosts.collect::<String>());
    for machine in cluster.machines() {
        machine.put("/etc/drbd.conf", configuration.as_bytes())?;
        machine.run_ok("drbdadm create-md --force r0 && drbdadm up r0")?;
    }
    let (first, second) = (cluster.drbd1(), cluster.drbd2());
    first.run_ok("drbdadm primary --force r0")?;
    first.run_ok(
        "head -c 1M /dev/urandom >/root/data && dd if=/root/data of=/dev/drbd0 bs=64k oflag=direct status=none",
    )?;
    first.wait_until(4 * LIMIT, "both disks UpToDate", "cat /proc/drbd", |text| text.contains("UpToDate/UpToDate"))?;
    first.run_ok("drbdadm secondary r0")?;
    second.run_ok("drbdadm primary r0")?;
    let expected = first.run_ok("sha256sum </root/data")?;
    assert_eq!(second.run_ok("head -c 1M /dev/drbd0 | sha256sum")?, expected);
    let images = [first, second].map(|machine| std::fs::read(machine.disk_file("sda")));
    let [first_image, second_image] = images;
    let data_bytes = 60 << 20;
    assert!(first_image?[..data_bytes] == second_image?[..data_bytes], "the disks differ");
    cluster.finish()
}
