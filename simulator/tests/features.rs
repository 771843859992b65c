//! What goes beyond the daily life of a pair, each with several seeds: another size of the device, a disk or a peer
//! that hangs.

use engine::metadata::superblock::MetaFlags;
use engine::netlink::{AfterSplitBrain, NetConf, OnIoError, ReadBalancing, ResizeParms, WireProtocol};
use engine::resource::{AdminRequest, Helper, IoError, IoFlags, IoRequest, Notice, Op, Submit};
use engine::state::{Conn, Disk};
use simulator::node::VOLUME;
use simulator::scenario::{primary, synced, up_to_date, WRITE};
use simulator::world::Action;
use simulator::{Config, World};
use std::num::NonZeroU8;

/// Seeds a scenario; more with the environment variable `SEEDS`.
fn seeds() -> u64 {
    std::env::var("SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(5)
}

/// What new sectors hold on each node before anything is written there.
const JUNK: [u64; 2] = [1 << 50, 1 << 51];
/// 20 MiB: more bitmap, more meta data.
const MORE: u64 = 40_960;

fn with_config(change: impl Fn(&mut Config), scenario: impl Fn(World)) {
    for seed in 1..=seeds() {
        let mut config = Config::new(seed);
        change(&mut config);
        scenario(World::new(config));
    }
}

/// Runs a scenario with internal and with external meta data.
fn with_both(scenario: impl Fn(World)) {
    with_config(|config| config.internal = true, &scenario);
    with_config(|config| config.internal = false, &scenario);
}

/// Nothing is under way, nothing is left over, both halves are the same up to `sectors`.
#[track_caller]
fn quiet(world: &mut World, sectors: u64) {
    world.run_for_ms(3_000);
    for node in 0..2 {
        assert_eq!(world.engine_of(node).usage(), Default::default(), "left over: {}", world.describe());
        assert_eq!(world.status(node).bits_out_of_sync, 0, "{}", world.describe());
        assert_eq!(world.status(node).size_sectors, sectors, "node {node}");
        assert_eq!(world.superblock(node).la_size_sectors, sectors, "node {node}: on the disk");
    }
    assert_eq!(world.nodes[0].data.first_difference(&world.nodes[1].data, sectors), None, "the halves differ");
}

#[track_caller]
fn has_size(world: &mut World, sectors: u64) {
    world.run_until("the new size", 10_000, |world| (0..2).all(|node| world.status(node).size_sectors == sectors));
}

fn grow_both(world: &mut World) {
    for (node, junk) in JUNK.into_iter().enumerate() {
        world.grow_disk(node, MORE, junk);
    }
}

/// What both can hold now.
fn possible(world: &World) -> u64 {
    (0..2).map(|node| world.layout(node).usable_sectors).min().expect("two nodes")
}

/// Writes all over the device, also where it is new.
fn writes(world: &mut World, node: usize, sectors: u64, count: u64) {
    for _ in 0..count {
        let length = world.random.pick(&[1, 8, 8, 24, 256]);
        let sector = world.random.below(sectors - length);
        world.start(node, WRITE, sector, length);
        let wait = world.random.below(3);
        world.run_for_ms(wait);
    }
}

#[track_caller]
fn all_done(world: &mut World) {
    let open = |world: &World| world.operations.iter().all(|operation| operation.result.is_some() || operation.lost);
    world.run_until("all operations", 60_000, open);
    for (number, operation) in world.operations.iter().enumerate() {
        assert!(operation.lost || operation.result == Some(Ok(())), "#{number} {operation:?}");
    }
}

#[test]
fn both_disks_grow_and_the_device_follows() {
    with_both(|mut world| {
        synced(&mut world);
        let before = world.status(0).size_sectors;
        writes(&mut world, 0, before, 20);
        grow_both(&mut world);
        world.start_resize(0, &ResizeParms::default());
        writes(&mut world, 0, before, 20);
        assert_eq!(world.admin_answer(0), 101);
        let after = possible(&world);
        assert!(after > before, "{after}");
        // Only the peer's answer tells that its disk has grown too.
        has_size(&mut world, after);
        up_to_date(&mut world);
        writes(&mut world, 0, after, 40);
        all_done(&mut world);
        up_to_date(&mut world);
        quiet(&mut world, after);
        // What nobody wrote was taken from the Primary.
        assert!(world.nodes[1].data.read(before, after - before).contains(&JUNK[0]));
        assert_eq!(world.faults, []);
    });
}

#[test]
fn the_new_space_is_assumed_clean() {
    with_both(|mut world| {
        synced(&mut world);
        let before = world.status(0).size_sectors;
        for node in 0..2 {
            world.grow_disk(node, MORE, 7);
        }
        let resyncs = world.resyncs;
        assert_eq!(world.resize(0, &ResizeParms { no_resync: true, ..ResizeParms::default() }), 101);
        world.run_for_ms(3000);
        let after = possible(&world);
        writes(&mut world, 0, after, 20);
        all_done(&mut world);
        quiet(&mut world, after);
        assert!(after > before);
        assert_eq!(world.resyncs, resyncs, "nothing was resynced");
    });
}

#[test]
fn one_disk_grows_first() {
    with_both(|mut world| {
        synced(&mut world);
        let before = world.status(0).size_sectors;
        world.grow_disk(0, MORE, JUNK[0]);
        assert_eq!(world.resize(0, &ResizeParms::default()), 101);
        world.run_for_ms(1000);
        quiet(&mut world, before);
        writes(&mut world, 0, before, 20);
        world.grow_disk(1, MORE, JUNK[1]);
        // The Secondary asks as well as the Primary.
        assert_eq!(world.resize(1, &ResizeParms::default()), 101);
        world.run_for_ms(1000);
        up_to_date(&mut world);
        let after = possible(&world);
        assert!(after > before);
        writes(&mut world, 0, after, 20);
        all_done(&mut world);
        up_to_date(&mut world);
        quiet(&mut world, after);
        assert_eq!(world.faults, []);
    });
}

#[test]
fn the_peer_is_away_and_assumed_to_have_the_space() {
    with_both(|mut world| {
        synced(&mut world);
        let before = world.status(0).size_sectors;
        assert_eq!(world.admin(1, AdminRequest::Disconnect { force: false }), 101);
        grow_both(&mut world);
        // The peer was as small as ever when it was seen last.
        assert_eq!(world.resize(0, &ResizeParms::default()), 101);
        assert_eq!(world.status(0).size_sectors, before);
        assert_eq!(world.resize(0, &ResizeParms { resize_force: true, ..ResizeParms::default() }), 101);
        let after = world.status(0).size_sectors;
        assert_eq!(after, world.layout(0).usable_sectors);
        writes(&mut world, 0, after, 40);
        all_done(&mut world);
        // Its own disk has to be looked at as well, or it would offer the old size.
        assert_eq!(world.resize(1, &ResizeParms { resize_force: true, ..ResizeParms::default() }), 101);
        assert_eq!(world.connect(1), 1);
        up_to_date(&mut world);
        quiet(&mut world, after);
    });
}

#[test]
fn smaller_and_larger_again() {
    with_both(|mut world| {
        synced(&mut world);
        let before = world.status(0).size_sectors;
        let small = before / 2 + 8;
        writes(&mut world, 0, before, 30);
        world.start_resize(0, &ResizeParms { resize_size: small, ..ResizeParms::default() });
        assert_eq!(world.admin_answer(0), 101);
        world.run_for_ms(1000);
        all_done(&mut world);
        quiet(&mut world, small);
        assert!(world.io(0, WRITE, small, 8).is_err(), "beyond the end");
        let number = world.operations.len() - 1;
        world.operations.truncate(number);
        assert_eq!(world.resize(0, &ResizeParms { resize_size: small - 80, ..ResizeParms::default() }), 101);
        world.run_for_ms(1000);
        quiet(&mut world, small - 80);
        assert_eq!(world.resize(0, &ResizeParms::default()), 101);
        world.run_for_ms(1000);
        up_to_date(&mut world);
        writes(&mut world, 0, before, 30);
        all_done(&mut world);
        quiet(&mut world, before);
    });
}

#[test]
fn another_activity_log() {
    with_config(
        |config| config.internal = false,
        |mut world| {
            synced(&mut world);
            let before = world.status(0).size_sectors;
            writes(&mut world, 0, before, 10);
            let layout = |stripes, kib| ResizeParms {
                al_stripes: Some(stripes),
                al_stripe_size: Some(kib),
                ..ResizeParms::default()
            };
            assert_eq!(world.resize(0, &layout(1, 4)), 168, "too small");
            assert_eq!(world.resize(0, &layout(1024, 1 << 24)), 167, "too large");
            assert_eq!(world.resize(0, &layout(2, 64)), 101);
            let superblock = world.superblock(0);
            assert_eq!((superblock.al_stripes, superblock.al_stripe_size_4k, superblock.bm_offset), (2, 16, 8 + 256));
            writes(&mut world, 0, before, 40);
            all_done(&mut world);
            quiet(&mut world, before);
        },
    );
}

#[test]
fn refusals() {
    with_config(
        |_| {},
        |mut world| {
            let plain = ResizeParms::default();
            assert_eq!(world.resize(0, &plain), 138, "no disk");
            synced(&mut world);
            assert_eq!(world.admin(0, AdminRequest::InvalidateRemote { volume: VOLUME }), 1);
            assert_eq!(world.resize(0, &plain), 130, "resync");
            up_to_date(&mut world);
            assert_eq!(world.admin(0, AdminRequest::Secondary { volume: VOLUME }), 1);
            assert_eq!(world.resize(0, &plain), 131, "no Primary");
        },
    );
}

/// The power of either machine fails at any moment of the change, and both meet again.
#[test]
fn a_power_cut_while_the_size_changes() {
    for internal in [true, false] {
        for seed in 1..=4 * seeds() {
            let mut world = World::new(Config { internal, ..Config::new(seed) });
            synced(&mut world);
            let before = world.status(0).size_sectors;
            writes(&mut world, 0, before, 10);
            all_done(&mut world);
            grow_both(&mut world);
            world.start_resize(0, &ResizeParms::default());
            let (victim, until_ms) = (seed as usize % 2, world.random.below(60));
            world.run_for_ms(until_ms);
            world.power_cut(victim);
            world.run_for_ms(2000);
            if victim == 1 {
                let _answer = world.poll_admin(0);
            }
            world.boot(victim);
            assert_eq!(world.attach(victim), 101, "seed {seed}");
            assert_eq!(world.connect(victim), 1);
            if victim == 0 {
                world.run_for_ms(3000);
                assert_eq!(world.admin(0, primary(false)), 1, "seed {seed}");
            }
            up_to_date(&mut world);
            // Whatever had got through: asked once more it is complete.
            assert_eq!(world.resize(0, &ResizeParms::default()), 101);
            let after = possible(&world);
            has_size(&mut world, after);
            up_to_date(&mut world);
            writes(&mut world, 0, after, 20);
            all_done(&mut world);
            up_to_date(&mut world);
            quiet(&mut world, after);
        }
    }
}

#[test]
fn a_read_that_the_peer_never_answers_ends_the_connection() {
    with_config(
        |config| (config.net.timeout, config.net.ko_count) = (10, 2),
        |mut world| {
            synced(&mut world);
            assert_eq!(world.admin(0, AdminRequest::Detach { volume: VOLUME, force: false }), 1);
            world.nodes[1].faults.slowness = 1_000_000;
            let number = world.start(0, Action::Read, 0, 8);
            world.run_until("timeout", 10_000, |world| {
                world
                    .history
                    .iter()
                    .any(|(node, notice)| *node == 0 && matches!(notice, Notice::Connection { to: Conn::Timeout, .. }))
            });
            world.run_until("an answer", 10_000, |world| world.operations[number].result.is_some());
            assert!(world.operations[number].result.expect("result").is_err());
        },
    );
}

/// What waits to be sent is not overdue, however long that takes: with a slow network the queue is long.
#[test]
fn a_slow_network_is_no_dead_peer() {
    for wire_protocol in [WireProtocol::A, WireProtocol::C] {
        with_config(
            |config| {
                config.net.wire_protocol = wire_protocol;
                (config.net.timeout, config.net.ko_count) = (5, 2);
            },
            |mut world| {
                synced(&mut world);
                world.run_for_ms(3000);
                world.config.sent_us_most = 100_000;
                for number in 0..60 {
                    world.start(0, WRITE, number * 64, 8);
                }
                all_done(&mut world);
                assert_eq!(world.history.iter().filter(timed_out).count(), 0);
            },
        );
    }
}

fn timed_out((_, notice): &&(usize, Notice)) -> bool {
    matches!(notice, Notice::Connection { to: Conn::Timeout, .. })
}

/// Under protocol A only the acknowledgement of the barrier tells that the peer still does its work.
#[test]
fn a_write_that_the_peer_never_stores_ends_the_connection() {
    for wire_protocol in [WireProtocol::A, WireProtocol::B, WireProtocol::C] {
        with_config(
            |config| {
                config.net.wire_protocol = wire_protocol;
                (config.net.timeout, config.net.ko_count) = (10, 2);
            },
            |mut world| {
                synced(&mut world);
                world.run_for_ms(3000);
                world.nodes[1].faults.slowness = 1_000_000;
                world.start(0, WRITE, 0, 8);
                world.run_until("timeout", 10_000, |world| world.history.iter().any(|entry| timed_out(&entry)));
                all_done(&mut world);
            },
        );
    }
}

/// `read-balancing round-robin`: the own disk first, then the peer, and so on.
#[test]
fn reads_take_turns() {
    with_config(
        |config| config.disk.read_balancing = ReadBalancing::RoundRobin,
        |mut world| {
            synced(&mut world);
            for round in 0..6 {
                let before = world.packets_sent.get("P_DATA_REQUEST").copied().unwrap_or(0);
                world.start(0, Action::Read, round * 8, 8);
                all_done(&mut world);
                let after = world.packets_sent.get("P_DATA_REQUEST").copied().unwrap_or(0);
                assert_eq!(after - before, round % 2, "read {round}");
            }
        },
    );
}

/// What the peer discards reads as zeroes there. Where a disk does not promise that, zeroes are written.
#[test]
fn a_discard_of_the_peer_where_discards_do_not_zero() {
    for zeroes in [true, false] {
        with_config(
            |config| config.disk.discard_zeroes_if_aligned = zeroes,
            |mut world| {
                synced(&mut world);
                world.start(0, Action::Discard, 2048, 64);
                all_done(&mut world);
                let by_peer = |line: &&str| line.contains("node 1 disk <- peer@") && line.contains(" 2048+64");
                let line = world.trace().filter(by_peer).last().expect("the discard on the peer").to_owned();
                let expected = if zeroes { "discard" } else { "zero" };
                assert!(line.contains(expected), "{line}");
            },
        );
    }
}

/// A discard that fails on the disk of the Primary and succeeds at the peer was acknowledged, and what had been there before was read
/// from that disk. Zeroes are written instead, as far as the disk takes writes at all.
#[test]
fn a_discard_that_fails_here_reads_as_zeroes_all_the_same() {
    for (action, percent) in [(Action::Discard, 0), (Action::Discard, 100), (Action::WriteZeroes, 100)] {
        with_config(
            |_| {},
            |mut world| {
                synced(&mut world);
                assert_eq!(world.io(0, WRITE, 2048, 64), Ok(()));
                world.run_for_ms(1);
                world.nodes[0].faults.no_discards = true;
                world.nodes[0].faults.write_percent = percent;
                assert_eq!(world.io(0, action, 2048, 64), Ok(()));
                let disk = if percent == 0 { Disk::UpToDate } else { Disk::Diskless };
                world.run_for_ms(1);
                assert_eq!(world.status(0).state.disk, disk, "the policy");
                assert_eq!(world.io(0, Action::Read, 2048, 64), Ok(()));
                world.nodes[0].faults = Default::default();
                if disk == Disk::Diskless {
                    assert_eq!(world.attach(0), 101);
                }
                up_to_date(&mut world);
                assert_eq!(world.status(0).bits_out_of_sync, 0);
                assert_eq!(world.nodes[0].data.first_difference(&world.nodes[1].data, world.config.sectors), None);
            },
        );
    }
}

/// One that no other disk does fails, and the disk stays: nobody believes that it has been done.
#[test]
fn a_discard_of_a_node_alone_fails() {
    with_config(
        |_| {},
        |mut world| {
            synced(&mut world);
            assert_eq!(world.admin(0, AdminRequest::Disconnect { force: false }), 101);
            world.nodes[0].faults.no_discards = true;
            assert_eq!(world.io(0, Action::Discard, 2048, 64), Err(IoError::Io));
            assert_eq!(world.status(0).state.disk, Disk::UpToDate);
        },
    );
}

/// A new policy reaches the peer while connected: at the next handshake both have to have the same.
#[test]
fn policies_that_change_online_are_told_to_the_peer() {
    with_config(
        |_| {},
        |mut world| {
            synced(&mut world);
            let net = NetConf { after_sb_0p: AfterSplitBrain::DiscardZeroChanges, ..world.config.net };
            assert_eq!(world.admin(0, AdminRequest::NetOptions { conf: &net }), 101);
            world.run_for_ms(100);
            world.reset_connection();
            up_to_date(&mut world);
            assert_eq!(world.faults, []);
            assert_eq!(world.engine_of(1).net_conf().map(|net| net.after_sb_0p), Some(net.after_sb_0p));
        },
    );
}

/// A disk that is attached alone takes requests as large as the last peer did.
#[test]
fn the_largest_request_outlives_a_restart() {
    with_config(
        |_| {},
        |mut world| {
            synced(&mut world);
            assert_eq!(world.status(0).max_bio_bytes, 1 << 20);
            world.power_cut(0);
            world.boot(0);
            assert_eq!(world.attach(0), 101);
            assert_eq!(world.status(0).max_bio_bytes, 1 << 20);
        },
    );
}

/// With every bit set and no peer the activity log is useless, also when `invalidate-remote` has set them.
#[test]
fn invalidate_remote_alone_suspends_the_activity_log() {
    with_config(
        |_| {},
        |mut world| {
            synced(&mut world);
            assert_eq!(world.admin(0, AdminRequest::Disconnect { force: false }), 101);
            assert!(!world.status(0).log_suspended);
            assert_eq!(world.admin(0, AdminRequest::InvalidateRemote { volume: VOLUME }), 1);
            assert!(world.status(0).log_suspended);
            assert_eq!(world.status(0).bits_out_of_sync, world.status(0).bits_total);
            assert_eq!(world.connect(0), 1);
            up_to_date(&mut world);
            assert!(!world.status(0).log_suspended);
        },
    );
}

/// A target that crashes during a long resync goes on where it was, or a little before.
#[test]
fn a_crash_does_not_make_a_resync_start_anew() {
    with_config(
        |config| config.disk.c_max_rate = 2048,
        |mut world| {
            for node in 0..2 {
                assert_eq!(world.attach(node), 101, "attach");
                assert_eq!(world.connect(node), 1, "connect");
            }
            let connected = |world: &World| (0..2).all(|node| world.status(node).state.conn == Conn::Connected);
            world.run_until("connected", 10_000, connected);
            assert_eq!(world.admin(0, primary(true)), 1, "primary --force");
            let half_done = |world: &World| world.status(1).bits_out_of_sync * 2 < world.status(1).bits_total;
            world.run_until("half of it", 60_000, half_done);
            world.power_cut(1);
            world.boot(1);
            assert_eq!(world.attach(1), 101);
            let status = world.status(1);
            assert!(status.bits_out_of_sync * 5 < status.bits_total * 4, "{}", world.describe());
            assert_eq!(world.connect(1), 1);
            up_to_date(&mut world);
            let sectors = world.status(0).size_sectors;
            quiet(&mut world, sectors);
        },
    );
}

/// What could not be read is marked in the bitmap; where that cannot be written the superblock asks for everything.
#[test]
fn a_read_error_is_not_forgotten_with_the_bitmap() {
    with_config(
        |_| {},
        |mut world| {
            synced(&mut world);
            world.nodes[0].faults.no_pages = true;
            world.nodes[0].faults.read_percent = 100;
            world.start(0, Action::Read, 64, 8);
            all_done(&mut world);
            world.run_until("the disk is let go", 10_000, |world| !world.status(0).has_disk);
            world.nodes[0].faults = Default::default();
            assert!(world.superblock(0).flags.contains(MetaFlags::FULL_SYNC));
            assert_eq!(world.attach(0), 101);
            up_to_date(&mut world);
            let sectors = world.status(0).size_sectors;
            quiet(&mut world, sectors);
        },
    );
}

#[test]
fn a_new_pair_skips_the_initial_sync() {
    with_both(|mut world| {
        for node in 0..2 {
            assert_eq!(world.attach(node), 101, "attach");
        }
        let clear = AdminRequest::NewCurrentUuid { volume: VOLUME, clear_bitmap: true };
        for node in 0..2 {
            assert_eq!(world.connect(node), 1, "connect");
        }
        world.run_until("connected", 10_000, |world| {
            (0..2).all(|node| world.status(node).state.conn == Conn::Connected)
        });
        assert_eq!(world.admin(1, AdminRequest::NewCurrentUuid { volume: VOLUME, clear_bitmap: false }), 151);
        assert_eq!(world.admin(0, clear), 101);
        assert_eq!(world.status(0).bits_out_of_sync, 0);
        up_to_date(&mut world);
        assert_eq!(world.resyncs, 0);
        assert_eq!(world.admin(1, clear), 151, "not new any more");
        assert_eq!(world.admin(0, primary(false)), 1);
        let size = world.status(0).size_sectors;
        writes(&mut world, 0, size, 20);
        all_done(&mut world);
        quiet(&mut world, size);
        // Before they meet: what has no peer can be declared new as well.
        assert_eq!(world.admin(1, AdminRequest::Disconnect { force: false }), 101);
        assert_eq!(world.admin(1, clear), 101);
        assert_eq!(world.status(1).bits_out_of_sync, 0);
    });
}

// A disk that hangs.

fn with_disk_timeout(scenario: impl Fn(&mut World)) {
    with_config(
        |config| config.disk.disk_timeout = 20,
        |mut world| {
            synced(&mut world);
            world.run_for_ms(3000);
            scenario(&mut world);
        },
    );
}

/// Reads and writes, near and far, cold and warm.
fn mixed(world: &mut World, count: u64) {
    let size = world.status(0).size_sectors;
    for round in 0..count {
        let sector = world.random.below(size - 8);
        world.start(0, if round % 3 == 0 { Action::Read } else { WRITE }, sector, 8);
    }
    world.start(0, Action::Flush, 0, 0);
    world.run_for_ms(5);
}

#[test]
fn a_disk_that_hangs_is_let_go_and_nobody_notices() {
    with_disk_timeout(|world| {
        mixed(world, 20);
        world.nodes[0].faults.hangs = true;
        mixed(world, 20);
        world.run_until("the timeout", 10_000, |world| world.status(0).state.disk == Disk::Failed);
        all_done(world);
        mixed(world, 20);
        all_done(world);
        assert_eq!(world.status(0).state.disk, Disk::Failed, "as long as the device has requests");
        world.nodes[0].faults.hangs = false;
        world.run_until("the end", 10_000, |world| world.status(0).state.disk == Disk::Diskless);
        mixed(world, 20);
        all_done(world);
        world.run_for_ms(1000);
        assert_eq!(world.attach(0), 101);
        mixed(world, 20);
        up_to_date(world);
        all_done(world);
        let size = world.status(0).size_sectors;
        quiet(world, size);
    });
}

#[test]
fn a_flush_that_hangs_is_given_up_as_well() {
    with_disk_timeout(|world| {
        world.nodes[0].faults.hangs = true;
        let number = world.start(0, Action::Flush, 0, 0);
        world.run_until("the timeout", 10_000, |world| world.status(0).state.disk == Disk::Failed);
        all_done(world);
        assert_eq!(world.operations[number].result, Some(Ok(())), "the peer's disk is there");
        world.nodes[0].faults.hangs = false;
        world.run_until("the end", 10_000, |world| !world.status(0).has_disk);
        assert_eq!(world.attach(0), 101);
        up_to_date(world);
        let size = world.status(0).size_sectors;
        quiet(world, size);
    });
}

#[test]
fn without_a_peer_a_disk_that_hangs_is_an_error() {
    with_disk_timeout(|world| {
        assert_eq!(world.admin(1, AdminRequest::Disconnect { force: false }), 101);
        world.run_for_ms(3000);
        world.nodes[0].faults.hangs = true;
        let number = world.start(0, WRITE, 0, 8);
        world.run_until("an answer", 10_000, |world| world.operations[number].result.is_some());
        assert!(world.operations[number].result.expect("result").is_err());
        world.nodes[0].faults.hangs = false;
        world.run_until("the end", 10_000, |world| !world.status(0).has_disk);
        assert_eq!(world.attach(0), 101);
        assert_eq!(world.connect(1), 1);
        up_to_date(world);
        let size = world.status(0).size_sectors;
        quiet(world, size);
    });
}

#[test]
fn a_forced_detach_does_not_wait_for_the_timeout() {
    with_config(
        |config| config.disk.disk_timeout = 6000,
        |mut world| {
            synced(&mut world);
            world.nodes[0].faults.hangs = true;
            mixed(&mut world, 20);
            let before_us = world.now_us();
            assert_eq!(world.admin(0, AdminRequest::Detach { volume: VOLUME, force: true }), 1);
            all_done(&mut world);
            assert!(world.now_us() - before_us < 1_000_000);
            world.nodes[0].faults.hangs = false;
            world.run_until("the end", 10_000, |world| !world.status(0).has_disk);
            assert_eq!(world.attach(0), 101);
            up_to_date(&mut world);
            let size = world.status(0).size_sectors;
            quiet(&mut world, size);
        },
    );
}

/// The program for a disk that fails may switch the node off: it is not for a disk that the administrator lets go.
#[test]
fn a_forced_detach_calls_no_program() {
    for by_command in [true, false] {
        with_config(
            |config| {
                config.disk.disk_timeout = 20;
                config.disk.on_io_error = OnIoError::CallLocalIoError;
            },
            |mut world| {
                synced(&mut world);
                world.run_for_ms(3000);
                world.nodes[0].faults.hangs = true;
                mixed(&mut world, 5);
                if by_command {
                    assert_eq!(world.admin(0, AdminRequest::Detach { volume: VOLUME, force: true }), 1);
                } else {
                    world.run_until("the timeout", 10_000, |world| world.status(0).state.disk == Disk::Failed);
                }
                all_done(&mut world);
                world.nodes[0].faults.hangs = false;
                world.run_until("the end", 10_000, |world| !world.status(0).has_disk);
                let called = world.helpers.contains(&(0, Helper::LocalIoError));
                assert_eq!(called, !by_command);
            },
        );
    }
}

/// A read waits for a peer that is gone for longer than `disk-timeout` before the own disk is asked: that has just begun then.
#[test]
fn the_time_that_a_read_waits_for_the_peer_is_not_that_of_the_disk() {
    with_config(
        |config| {
            config.disk.disk_timeout = 20;
            config.disk.read_balancing = ReadBalancing::PreferRemote;
        },
        |mut world| {
            synced(&mut world);
            world.run_for_ms(3000);
            world.set_network(false);
            let read = world.start(0, Action::Read, 0, 8);
            world.run_for_ms(3000);
            world.nodes[0].faults.hangs = true;
            let on_disk = |world: &World| world.status(0).lower_pending > 0;
            world.run_until("the own disk", 60_000, on_disk);
            world.run_for_ms(1500);
            assert_eq!(world.status(0).state.disk, Disk::UpToDate);
            world.nodes[0].faults.hangs = false;
            all_done(&mut world);
            assert_eq!(world.operations[read].result, Some(Ok(())));
            assert_eq!(world.status(0).state.disk, Disk::UpToDate);
        },
    );
}

/// The device has an end.
#[test]
fn what_goes_beyond_the_end_is_refused() {
    let mut world = World::new(Config { sectors: 32_768, ..Config::new(1) });
    synced(&mut world);
    let sectors = world.config.sectors;
    for (action, op) in
        [(Action::Read, Op::Read), (Action::Write { fua: false }, Op::Write), (Action::Discard, Op::Discard)]
    {
        assert_eq!(world.io(0, action, sectors - 8, 8), Ok(()), "{action:?}");
        for (sector, size_bytes) in
            [(sectors - 8, 9 * 512), (sectors - 1, 1024), (sectors, 512), (u64::MAX - 4, 8 * 512)]
        {
            let io = IoRequest { op, sector, size_bytes, flags: IoFlags::default() };
            let refused = world.engine(0, |engine, now| engine.submit(VOLUME, io, now));
            assert_eq!(refused, Submit::Failed(IoError::Io), "{op:?} of {size_bytes} bytes at {sector}");
        }
    }
}

/// A peer that says the beginning of a packet of the handshake, and then nothing.
#[test]
fn the_handshake_is_over_when_its_last_packet_is_there_as_a_whole() {
    let mut world = World::new(Config::new(1));
    assert_eq!(world.attach(0), 101);
    assert_eq!(world.connect(0), 1);
    world.run_for_ms(100);
    let header = [0x83, 0x74, 0x02, 0x67, 0xff, 0xfe, 0, 72];
    let mut body = [0; 72];
    body[3] = 86;
    body[11] = 101;
    let is_over = |world: &World| world.engine_of(0).handshake_is_over();
    assert!(!is_over(&world));
    let head = world.engine(0, |engine, now| {
        engine.link_up(true, now);
        engine.data_header(&header, now)
    });
    let head = head.expect("a sound header");
    assert!(!is_over(&world));
    let outcome = world.engine(0, |engine, now| engine.data_packet(&head, &body, now));
    assert!(outcome.is_ok(), "{outcome:?}");
    assert!(is_over(&world));
}

// What the application is told.

#[test]
fn what_is_wrong_with_the_own_disk_reaches_the_application_where_nobody_else_can_help() {
    let no_space = IoError::Lower(NonZeroU8::new(3).expect("a number"));
    let failing = |world: &mut World| {
        world.nodes[0].faults.error = Some(no_space);
        world.nodes[0].faults.read_percent = 100;
        world.nodes[0].faults.write_percent = 100;
    };
    let without_peer = |scenario: &dyn Fn(&mut World)| {
        with_config(
            |_| {},
            |mut world| {
                synced(&mut world);
                assert_eq!(world.admin(1, AdminRequest::Disconnect { force: false }), 101);
                world.run_for_ms(3000);
                failing(&mut world);
                scenario(&mut world);
            },
        );
    };
    without_peer(&|world| {
        assert_eq!(world.io(0, Action::ReadAhead, 0, 8), Err(no_space), "it is not tried again");
        assert_eq!(world.io(0, WRITE, 0, 8), Err(no_space));
        assert_eq!(world.io(0, WRITE, 0, 8), Err(IoError::Io), "there is no disk any more");
    });
    without_peer(&|world| {
        assert_eq!(world.io(0, Action::Read, 0, 8), Err(IoError::Io), "tried again, and there is no disk any more");
    });
    with_config(
        |_| {},
        |mut world| {
            synced(&mut world);
            failing(&mut world);
            assert_eq!(world.io(0, WRITE, 0, 8), Ok(()), "the peer's disk is there");
        },
    );
}
