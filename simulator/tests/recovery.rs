//! What random runs have found where several things go wrong one after the other: disks, power, the connection.

use engine::metadata::superblock::{MetaFlags, UI_BITMAP};
use engine::netlink::{AfterSplitBrain, DiskConf, Fencing, NetConf, OnIoError, OnNoData, WireProtocol};
use engine::resource::{AdminRequest, Fault, IoError, Op};
use engine::state::{Conn, Disk, Role};
use simulator::node::VOLUME;
use simulator::scenario::{
    all_the_same, alone, come_back, synced_with, DETACH, FORCE_DETACH, PRIMARY, SECONDARY, WRITE,
};
use simulator::world::Action;
use simulator::{draw, Config, World};

const SEEDS: u64 = 20;

/// Seed 2003229: the disk is kept though it fails, and a flush of its cache failed. What was in the cache was lost, also writes
/// that the peer had acknowledged long ago; nobody had them in mind any more, and after the next resync the halves differed.
#[test]
fn a_flush_that_fails_loses_what_was_written_long_ago() {
    long_ago(|world| assert_eq!(world.io(0, Action::Flush, 0, 0), Ok(()), "the peer has all of it"));
}

/// The same for the flush that goes before a write.
#[test]
fn a_write_whose_flush_fails_loses_what_was_written_long_ago() {
    long_ago(|world| {
        let write = world.start(0, Action::Write { fua: true }, 800, 8);
        assert!(world.operations[write].flushes_first());
        world.run_until("written", 60_000, |world| world.operations[write].result == Some(Ok(())));
    });
}

/// After an odd number of writes the disk of node 0 fails while `flush` is done.
fn long_ago(flush: impl Fn(&mut World)) {
    for seed in 1..=SEEDS {
        let mut config = Config::new(seed);
        config.disk.on_io_error = OnIoError::PassOn;
        let mut world = synced_with(config);
        for block in 0..21 {
            assert_eq!(world.io(0, WRITE, block * 8, 8), Ok(()));
        }
        world.run_for_ms(1_000);
        world.nodes[0].faults.write_percent = 100;
        flush(&mut world);
        world.nodes[0].faults.write_percent = 0;
        assert_eq!(world.status(0).state.disk, Disk::Inconsistent);
        assert_eq!(world.admin(1, AdminRequest::Disconnect { force: true }), 101);
        alone(&mut world, 0);
        assert_eq!(world.connect(1), 1);
        all_the_same(&mut world);
    }
}

/// Seed 9004109: the peer was rebooted after it had acknowledged a write that the own disk, which failed, did not get; that it had begun
/// a generation for that was on its disk, and should be enough.
#[test]
fn a_write_may_end_that_a_rebooted_peer_has_with_its_own_generation() {
    for seed in 1..=SEEDS {
        let mut world = synced_with(Config::new(seed));
        world.nodes[0].faults.slowness = 10_000;
        let held = world.start(0, WRITE, 0, 8);
        world.run_for_ms(10);
        world.ask(0, FORCE_DETACH);
        world.run_for_ms(100);
        assert_eq!((world.status(0).state.disk, world.status(1).state.pdsk), (Disk::Failed, Disk::Failed));
        let write = world.start(0, WRITE, 64, 8);
        let acknowledged = |world: &World| world.trace().any(|line| line.contains("node 1 meta > P_WRITE_ACK 64+8"));
        for _ in 0..10_000 {
            if acknowledged(&world) {
                break;
            }
            world.step();
        }
        assert!(acknowledged(&world), "seed {seed}");
        world.power_cut(1);
        world.boot(1);
        world.run_until("the write", 10_000, |world| world.operations[write].result.is_some());
        world.nodes[0].faults.slowness = 0;
        world.run_until("the disk is let go", 600_000, |world| !world.status(0).has_disk);
        assert!(world.operations[held].result.is_some(), "seed {seed}");
    }
}

/// Seed 11003177: under protocol A the peer lost its power before a write reached it, and then the own disk failed and was kept. That is
/// two failures at once, as where it is let go.
#[test]
fn a_disk_that_fails_and_is_kept_is_the_second_failure_under_protocol_a() {
    for seed in 1..=SEEDS {
        let mut config = Config::new(seed);
        config.net.wire_protocol = WireProtocol::A;
        config.disk.on_io_error = OnIoError::PassOn;
        let mut world = synced_with(config);
        // Its superblock says that its data is good.
        world.run_for_ms(100);
        world.set_direction(0, false);
        assert_eq!(world.io(0, WRITE, 64, 8), Ok(()), "seed {seed}");
        world.power_cut(1);
        world.boot(1);
        world.nodes[0].faults.write_percent = 100;
        let failed = world.start(0, WRITE, 0, 8);
        world.run_until("the disk fails", 10_000, |world| world.status(0).state.disk == Disk::Inconsistent);
        world.nodes[0].faults.write_percent = 0;
        world.set_direction(0, true);
        alone(&mut world, 0);
        assert_eq!(world.operations[failed].result, Some(Err(IoError::Io)), "seed {seed}");
        assert_eq!(world.admin(0, SECONDARY), 1);
        assert_eq!(world.attach(1), 101);
        assert_eq!(world.connect(1), 1);
        all_the_same(&mut world);
        assert_eq!(world.check_acknowledged(0), Ok(()), "seed {seed}");
    }
}

/// Seed 41002160 with several volumes: the disk of a Primary failed and was kept, and that node lost its power before its superblock said so.
/// As the disk of a crashed Primary it was the source, and overwrote what had been acknowledged because the peer had it.
#[test]
fn what_only_the_peer_has_is_acknowledged_when_the_disk_that_is_kept_says_that_it_is_bad() {
    let mut in_between = 0;
    for seed in 1..=4 * SEEDS {
        let mut config = Config::new(seed);
        config.disk.on_io_error = OnIoError::PassOn;
        let mut world = synced_with(config);
        assert_eq!(world.io(0, WRITE, 0, 8), Ok(()));
        world.nodes[0].faults.write_percent = 100;
        world.start(0, WRITE, 0, 8);
        // Only the superblock takes long.
        world.nodes[0].faults.slowness = 50;
        world.run_until("the failure", 1_000, |world| world.status(0).state.disk == Disk::Inconsistent);
        world.run_for_us(10);
        world.nodes[0].faults.slowness = 0;
        world.start(0, Action::Write { fua: true }, 64, 8);
        world.start(0, Action::Flush, 0, 0);
        world.run_for_us(seed * 20);
        in_between += u32::from(world.superblock(0).flags.contains(MetaFlags::CONSISTENT));
        world.power_cut(0);
        world.nodes[0].faults.write_percent = 0;
        world.boot(0);
        assert_eq!(world.attach(0), 101);
        assert_eq!(world.connect(0), 1);
        all_the_same(&mut world);
        assert_eq!(world.check_acknowledged(0), Ok(()), "seed {seed}");
    }
    assert!(in_between > 0, "the superblock was there each time");
}

/// The disk of node 0 lacks what its application has seen: alone it is refused, with the disk of node 1 in reach it is brought up to
/// date.
#[track_caller]
fn only_attaches_beside_the_other(world: &mut World, seed: u64) {
    assert_eq!(world.attach(0), 150, "seed {seed}: the disk of node 0 is not what its application has seen");
    assert_eq!(world.attach(1), 101);
    assert_eq!(world.connect(1), 1);
    world.run_until("the other disk", 60_000, |world| world.status(0).state.pdsk == Disk::UpToDate);
    assert_eq!(world.attach(0), 101);
    all_the_same(world);
}

/// Seed 2001508: the disk of one of two Primaries failed, and writes of the other one were refused for want of it. When that one
/// lost its power the disk was attached again and taken for good, though the other one had acknowledged them meanwhile.
#[test]
fn a_disk_that_lacks_writes_of_the_other_primary_is_not_attached_alone() {
    for seed in 1..=SEEDS {
        let mut config = Config::new(seed);
        config.net.two_primaries = true;
        let mut world = synced_with(config);
        assert_eq!(world.admin(1, PRIMARY), 1);
        // Node 1 does not learn of it.
        world.set_direction(0, false);
        world.nodes[0].faults.write_percent = 100;
        world.start(1, WRITE, 0, 8);
        world.run_until("the disk is lost", 1_000, |world| !world.status(0).has_disk);
        world.nodes[0].faults.write_percent = 0;
        world.power_cut(1);
        world.set_direction(0, true);
        world.boot(1);
        alone(&mut world, 0);
        only_attaches_beside_the_other(&mut world, seed);
    }
}

/// The same when the disk is gone before the write comes.
#[test]
fn a_disk_that_was_let_go_before_the_other_primary_wrote_is_not_attached_alone() {
    for seed in 1..=SEEDS {
        let mut config = Config::new(seed);
        config.net.two_primaries = true;
        let mut world = synced_with(config);
        assert_eq!(world.admin(1, PRIMARY), 1);
        // Node 1 does not learn of it.
        world.set_direction(0, false);
        world.ask(0, FORCE_DETACH);
        world.run_until("detached", 1_000, |world| !world.status(0).has_disk);
        world.start(1, WRITE, 0, 8);
        world.run_for_ms(50);
        world.power_cut(1);
        world.set_direction(0, true);
        world.boot(1);
        alone(&mut world, 0);
        let _code = world.poll_admin(0);
        only_attaches_beside_the_other(&mut world, seed);
    }
}

/// Seeds 1001276, 1003567, 5488: one node went by a policy, the other one, which could not be demoted during the handshake, by
/// discard-my-data of the first. Both became the source of the resync and waited for each other.
#[test]
fn two_sources_of_a_resync_part_again() {
    for seed in 1..=SEEDS {
        let mut config = Config::new(seed);
        config.net.after_sb_0p = AfterSplitBrain::DiscardRemote;
        config.net.after_sb_1p = AfterSplitBrain::CallPriLost;
        let mut world = synced_with(config);
        world.set_network(false);
        alone(&mut world, 0);
        alone(&mut world, 1);
        assert_eq!(world.admin(1, PRIMARY), 1);
        for node in 0..2 {
            assert_eq!(world.io(node, WRITE, node as u64 * 800, 8), Ok(()));
            assert_eq!(world.admin(node, AdminRequest::Disconnect { force: false }), 101);
        }
        assert_eq!(world.admin(0, SECONDARY), 1);
        world.set_network(true);
        let discards = NetConf { discard_my_data: true, ..draw::net_of(0, &world.config.net) };
        assert_eq!(world.admin(0, AdminRequest::Connect { conf: &discards }), 1);
        assert_eq!(world.connect(1), 1);
        world.run_until("they part", 60_000, |world| {
            (0..2).any(|node| world.status(node).state.conn == Conn::StandAlone)
        });
        world.run_for_ms(1_000);
        let same_side = |(_, fault): &(usize, Fault)| *fault == Fault::SameSide { source: true };
        assert!(world.faults.iter().any(same_side), "seed {seed}: {:?}", world.faults);
        for node in 0..2 {
            let state = world.status(node).state;
            assert!(state.conn <= Conn::WFConnection && state.disk == Disk::UpToDate, "seed {seed}: {state:?}");
        }
    }
}

/// Seed 2769: the connection was lost while a disk without good data was negotiated. What it had been found to be at attach spoke
/// for it ever after, also when it had been forced to be good: it was refused as source of a resync.
#[test]
fn a_disk_that_was_negotiated_once_can_be_forced_to_be_good() {
    for seed in 1..=SEEDS {
        let mut config = Config::new(seed);
        config.disk.on_io_error = OnIoError::PassOn;
        let mut world = synced_with(config);
        // No good disk is left.
        assert_eq!(world.admin(1, DETACH), 1);
        world.run_for_ms(1_000);
        world.nodes[0].faults.write_percent = 100;
        world.start(0, WRITE, 0, 8);
        world.run_until("a bad disk", 1_000, |world| world.status(0).state.disk == Disk::Inconsistent);
        world.nodes[0].faults.write_percent = 0;
        assert_eq!(world.admin(0, FORCE_DETACH), 1);
        world.run_until("no disk", 1_000, |world| !world.status(0).has_disk);
        world.start_attach(0).expect("attach");
        world.run_until("negotiation", 1_000, |world| world.status(0).state.disk == Disk::Negotiating);
        world.power_cut(1);
        world.boot(1);
        alone(&mut world, 0);
        assert_eq!(world.admin_answer(0), 101);
        assert_eq!(world.status(0).state.disk, Disk::Inconsistent, "seed {seed}");
        assert_eq!(world.admin(0, SECONDARY), 1);
        assert_eq!(world.admin(0, AdminRequest::Primary { volume: VOLUME, force: true }), 1);
        world.create_md(1);
        assert_eq!(world.attach(1), 101);
        assert_eq!(world.connect(1), 1);
        all_the_same(&mut world);
    }
}

/// Seed 3002202: a Primary lost its peer while it was demoted, and I/O froze. It became Secondary with writes that the peer had
/// acknowledged and not yet flushed; neither bitmap nor activity log told of them when both nodes lost their power.
#[test]
fn a_demotion_with_frozen_writes_is_not_the_end_of_the_activity_log() {
    for seed in 1..=4 * SEEDS {
        let mut config = Config::new(seed);
        config.disk.fencing = Fencing::ResourceAndStonith;
        // What makes meta data durable does not make data durable.
        config.internal = false;
        let mut world = synced_with(config);
        world.helper_exit_code = 1;
        for block in 0..8 {
            assert_eq!(world.io(0, WRITE, block * 16, 8), Ok(()));
        }
        world.set_network(false);
        world.ask(0, SECONDARY);
        world.run_until("demotion", 60_000, |world| world.status(0).state.role == Role::Secondary);
        world.run_for_ms(1_000);
        for node in 0..2 {
            world.power_cut(node);
        }
        world.helper_exit_code = 0;
        world.set_network(true);
        for node in 0..2 {
            come_back(&mut world, node);
        }
        all_the_same(&mut world);
    }
}

/// Seed 3003740: the peer was lost while writes were announced to it (it was getting the bitmap), and I/O froze. What was announced
/// waited for a packet that had gone with the connection, for ever.
#[test]
fn writes_that_are_only_announced_survive_frozen_io() {
    for seed in 1..=4 * SEEDS {
        let mut config = Config::new(seed);
        config.disk.fencing = Fencing::ResourceAndStonith;
        config.sent_us_most = 20_000;
        let mut world = synced_with(config);
        world.helper_exit_code = 4;
        world.set_network(false);
        world.run_until("fenced", 60_000, |world| world.status(0).state.pdsk == Disk::Outdated);
        assert_eq!(world.io(0, WRITE, 0, 8), Ok(()));
        world.helper_exit_code = 0;
        world.set_network(true);
        world.run_until("bitmaps", 60_000, |world| world.status(0).state.conn == Conn::WFBitMapS);
        let writes: Vec<usize> = (1..20).map(|block| world.start(0, WRITE, block * 800, 8)).collect();
        world.run_for_us(seed * 50);
        // Nobody can fence the peer.
        world.helper_exit_code = 1;
        world.reset_connection();
        world.helper_exit_code = 0;
        world.run_until("the writes", 300_000, |world| {
            writes.iter().all(|&write| world.operations[write].result == Some(Ok(())))
        });
        all_the_same(&mut world);
    }
}

/// Seed 3004554: the peer was promoted when it had heard of the demotion of this node, whose superblock did not tell yet. Both lost
/// their power, both counted as crashed Primaries, and the wrong one was taken for the newer one.
#[test]
fn a_demotion_is_durable_before_the_peer_hears_of_it() {
    for seed in 1..=SEEDS {
        let mut world = synced_with(Config::new(seed));
        assert_eq!(world.io(0, WRITE, 0, 8), Ok(()));
        world.run_for_ms(1_000);
        world.nodes[0].faults.slowness = 200;
        world.ask(0, SECONDARY);
        world.run_until("demotion", 60_000, |world| world.status(1).state.peer == Role::Secondary);
        assert!(!world.superblock(0).flags.contains(MetaFlags::PRIMARY_IND), "seed {seed}");
    }
}

/// Seed 82101841: a write of a Primary without a disk waited for the activity log when the connection ended. The superblock did not ask for
/// the log any more when it got to the disk, and a crash would have forgotten that this half may have it and the other one not.
#[test]
fn a_write_for_a_lost_primary_is_covered_by_the_activity_log() {
    for seed in 1..=8 * SEEDS {
        let mut world = synced_with(Config { sent_us_most: 200, ..Config::new(seed) });
        assert_eq!(world.admin(0, DETACH), 1);
        // Each needs a transaction; the checks look at each that goes to the disk.
        for extent in 0..14 {
            world.start(0, WRITE, extent * 8_192, 8);
        }
        world.run_for_us(100 + seed * 10);
        world.reset_connection();
        world.power_cut(0);
        world.run_for_ms(100);
        assert!(!world.superblock(1).flags.contains(MetaFlags::PRIMARY_IND), "seed {seed}");
        come_back(&mut world, 0);
        all_the_same(&mut world);
    }
}

/// Seed 85011671: `al-updates` was switched on, and while a block of the log was written anew a write came for an extent that was not in it.
/// It waited for the next transaction, and nobody told it of the end of this one.
#[test]
fn a_write_that_comes_while_the_log_is_made_anew_goes_on() {
    for seed in 1..=8 * SEEDS {
        let mut config = Config::new(seed);
        config.disk.al_updates = false;
        let mut world = synced_with(config);
        let conf = DiskConf { al_updates: true, ..world.config.disk };
        world.ask(0, AdminRequest::DiskOptions { volume: VOLUME, conf: &conf });
        world.run_for_us(seed * 20);
        let write = world.start(0, WRITE, 8_192, 8);
        world.run_until("the write", 10_000, |world| world.operations[write].result.is_some());
        assert_eq!(world.admin_answer(0), 101);
        all_the_same(&mut world);
    }
}

/// Seed 3009609: the peer lost its power, and what was in its disk's cache, while I/O was suspended here. It came back without a
/// disk, so nothing told that it had been away, and attached the disk before I/O went on: with the same generation it counted as good.
#[test]
fn a_peer_that_was_rebooted_while_io_is_suspended_is_resynced() {
    for seed in 1..=4 * SEEDS {
        let mut world = synced_with(Config::new(seed));
        for block in 0..8 {
            assert_eq!(world.io(0, WRITE, block * 16, 8), Ok(()));
        }
        assert_eq!(world.admin(0, AdminRequest::SuspendIo { volume: VOLUME }), 1);
        world.power_cut(1);
        world.boot(1);
        assert_eq!(world.connect(1), 1);
        world.run_until("connected", 60_000, |world| {
            (0..2).all(|node| world.status(node).state.conn == Conn::Connected)
        });
        assert_eq!(world.attach(1), 101);
        world.run_for_ms(1_000);
        assert_eq!(world.admin(0, AdminRequest::ResumeIo { volume: VOLUME }), 1);
        all_the_same(&mut world);
        assert!(world.check_acknowledged(1).is_ok(), "seed {seed}");
    }
}

/// Seed 3010995: the source of a resync could not write what the Primary, its target, sent, and kept its disk. The Primary waited
/// for it to tell of the loss of its disk, and the application for the Primary.
#[test]
fn a_write_that_the_source_of_a_resync_cannot_do_fails() {
    for seed in 1..=SEEDS {
        let mut config = Config::new(seed);
        config.disk.on_io_error = OnIoError::PassOn;
        let mut world = synced_with(config);
        assert_eq!(world.admin(0, SECONDARY), 1);
        assert_eq!(world.admin(1, PRIMARY), 1);
        world.ask(1, AdminRequest::Invalidate { volume: VOLUME });
        world.run_until("the target", 60_000, |world| world.status(1).state.conn == Conn::SyncTarget);
        world.nodes[0].faults.write_percent = 100;
        let write = world.start(1, WRITE, 100_000, 8);
        world.run_until("the write", 60_000, |world| world.operations[write].result.is_some());
        assert!(world.operations[write].result.is_some_and(|result| result.is_err()), "seed {seed}");
    }
}

/// Seed 3015436: the same where I/O froze with the loss of the peer, which attached its disk before it connected and was then told,
/// as by the program that fences, that it has old data. Only a disk that was Consistent counted as that of a rebooted peer.
#[test]
fn a_peer_that_was_rebooted_and_outdated_while_io_is_frozen_is_resynced() {
    for seed in 1..=4 * SEEDS {
        let mut config = Config::new(seed);
        config.disk.fencing = Fencing::ResourceAndStonith;
        let mut world = synced_with(config);
        world.helper_exit_code = 1;
        // Until its superblock tells that it is UpToDate.
        world.run_for_ms(100);
        for block in 0..8 {
            assert_eq!(world.io(0, WRITE, block * 16, 8), Ok(()));
        }
        world.power_cut(1);
        world.boot(1);
        alone(&mut world, 0);
        assert_eq!(world.attach(1), 101);
        assert_eq!(world.admin(1, AdminRequest::Outdate { volume: VOLUME }), 1);
        world.helper_exit_code = 0;
        assert_eq!(world.connect(1), 1);
        all_the_same(&mut world);
        assert!(world.check_acknowledged(1).is_ok(), "seed {seed}");
    }
}

/// Found while looking at that: the same where the administrator had suspended I/O.
#[test]
fn a_peer_that_was_rebooted_and_attached_while_io_is_suspended_is_resynced() {
    for seed in 1..=4 * SEEDS {
        let mut world = synced_with(Config::new(seed));
        for block in 0..8 {
            assert_eq!(world.io(0, WRITE, block * 16, 8), Ok(()));
        }
        assert_eq!(world.admin(0, AdminRequest::SuspendIo { volume: VOLUME }), 1);
        world.power_cut(1);
        come_back(&mut world, 1);
        world.run_for_ms(1_000);
        assert_eq!(world.admin(0, AdminRequest::ResumeIo { volume: VOLUME }), 1);
        all_the_same(&mut world);
        assert!(world.check_acknowledged(1).is_ok(), "seed {seed}");
    }
}

/// Seed 3019481: protocol A. A Primary lost its disk and the connection at once, and I/O froze for want of data. What had been handed
/// to that connection counted as written when the peer was back, and was acknowledged though nobody had it.
#[test]
fn what_was_handed_to_a_connection_that_is_gone_is_sent_again() {
    for seed in 1..=SEEDS {
        let mut config = Config::new(seed);
        config.net.wire_protocol = WireProtocol::A;
        config.resource.on_no_data = OnNoData::SuspendIo;
        let mut world = synced_with(config);
        assert_eq!(world.io(0, WRITE, 8, 8), Ok(()));
        world.run_for_ms(1_000);
        world.nodes[0].faults.slowness = 50;
        world.set_direction(0, false);
        let write = world.start(0, WRITE, 0, 8);
        world.run_for_us(500);
        world.ask(0, FORCE_DETACH);
        world.reset_connection();
        world.set_direction(0, true);
        world.run_until("the write", 60_000, |world| world.operations[write].result.is_some());
        assert_eq!(world.operations[write].result, Some(Ok(())), "seed {seed}");
        world.run_for_ms(1_000);
        assert_eq!(world.check_acknowledged(1), Ok(()), "seed {seed}");
    }
}

/// Seed 3022016: the same for a write of which the peer's acknowledgement, which clears bits during a resync, came after the flush.
#[test]
fn an_acknowledgement_after_a_flush_that_failed_clears_no_bits() {
    for seed in 1..=2 * SEEDS {
        let mut config = Config::new(seed);
        config.disk.on_io_error = OnIoError::PassOn;
        config.internal = false;
        let mut world = synced_with(config);
        world.ask(0, AdminRequest::Invalidate { volume: VOLUME });
        world.run_until("the target", 60_000, |world| world.status(0).state.conn == Conn::SyncTarget);
        assert_eq!(world.poll_admin(0), Some(1));
        world.io(0, WRITE, 100_016, 8).expect("a write");
        world.set_direction(1, false);
        world.start(0, WRITE, 100_000, 8);
        world.run_for_ms(30);
        world.nodes[0].faults.write_percent = 100;
        world.start(0, Action::Flush, 0, 0);
        world.run_for_ms(30);
        world.nodes[0].faults.write_percent = 0;
        world.set_direction(1, true);
        all_the_same(&mut world);
    }
}

/// Flushes of the data disk that are on their way.
fn flushes(world: &World, node: usize) -> usize {
    let running = world.nodes[node].running.as_ref().expect("on");
    running.transfers.values().filter(|transfer| transfer.op == Op::Flush).count()
}

/// Seed 3023444: a write was on the disk, but not acknowledged yet, because I/O was frozen; then a flush failed, and the disk's cache
/// was lost. When the disk came back the write was acknowledged, and was not on it.
#[test]
fn a_frozen_write_that_was_in_a_lost_cache_is_done_anew() {
    let mut seen = 0;
    for seed in 1..=SEEDS {
        let mut config = Config::new(seed);
        config.resource.on_no_data = OnNoData::SuspendIo;
        let mut world = synced_with(config);
        assert_eq!(world.admin(1, AdminRequest::Disconnect { force: true }), 101);
        alone(&mut world, 0);
        // The extents are in the activity log: the writes and the flush go to the disk at once.
        assert_eq!(world.io(0, WRITE, 0, 2048), Ok(()));
        let writes: Vec<usize> = (0..8).map(|block| world.start(0, WRITE, block * 8, 8)).collect();
        world.start(0, Action::Flush, 0, 0);
        world.ask(0, AdminRequest::SuspendIo { volume: VOLUME });
        assert_eq!(world.poll_admin(0), Some(1));
        world.run_until("the flush", 1_000, |world| flushes(world, 0) == 1);
        world.run_until("a write", 1_000, |world| writes.iter().any(|&write| world.operations[write].on_disk));
        let in_time = flushes(&world, 0) == 1;
        world.nodes[0].faults.write_percent = 100;
        world.run_for_ms(1_000);
        world.nodes[0].faults.write_percent = 0;
        if !in_time {
            continue;
        }
        seen += 1;
        assert_eq!(world.status(0).state.disk, Disk::Diskless);
        assert_eq!(world.attach(0), 101);
        assert_eq!(world.admin(0, AdminRequest::ResumeIo { volume: VOLUME }), 1);
        world.run_for_ms(1_000);
        assert!(writes.iter().all(|&write| world.operations[write].result == Some(Ok(()))), "seed {seed}");
        assert_eq!(world.check_acknowledged(0), Ok(()), "seed {seed}");
    }
    assert!(seen > SEEDS / 4, "{seen}");
}

/// What a resync has written is in the disk's cache, and is being flushed before the bits that it cleared are written; another flush,
/// for a barrier, fails, and the cache is lost. The first one then finds nothing to write, and the bits were cleared for good.
#[test]
fn a_flush_that_fails_beside_one_for_the_meta_data_clears_no_bits() {
    let mut seen = 0;
    for seed in 1..=SEEDS {
        let mut world = synced_with(Config::new(seed));
        assert_eq!(world.admin(1, AdminRequest::Disconnect { force: true }), 101);
        alone(&mut world, 0);
        let size = world.status(0).size_sectors;
        for part in 0..size / 2048 {
            assert_eq!(world.io(0, WRITE, part * 2048, 2048), Ok(()));
        }
        assert_eq!(world.connect(1), 1);
        world.run_until("the target", 60_000, |world| world.status(1).state.conn == Conn::SyncTarget);
        world.run_for_ms(9_000);
        world.nodes[1].faults.slowness = 100;
        let end_us = world.now_us() + 20_000_000;
        // Barriers, until the progress of the resync is saved while one is being answered.
        while flushes(&world, 1) < 2 && world.now_us() < end_us {
            if world.open_operations() == 0 {
                world.start(0, WRITE, 0, 8);
                world.start(0, Action::Flush, 0, 0);
            }
            world.step();
        }
        if flushes(&world, 1) < 2 {
            continue;
        }
        world.nodes[1].faults.slowness = 0;
        assert_eq!(world.status(1).state.conn, Conn::SyncTarget);
        seen += 1;
        world.nodes[1].faults.write_percent = 100;
        world.run_until("a flush", 1_000, |world| flushes(world, 1) < 2);
        world.nodes[1].faults.write_percent = 0;
        world.run_until("the loss", 60_000, |world| world.status(1).state.disk == Disk::Diskless);
        world.run_for_ms(100);
        assert_eq!(world.attach(1), 101);
        all_the_same(&mut world);
    }
    assert!(seen > SEEDS / 4, "{seen}");
}

/// A Primary has let its disk go, then loses the peer, which never got the last write. It has the disk back first: the write, which
/// is on that disk, was acknowledged before the generation that tells so was durable. Seed 719.
#[test]
fn a_disk_that_comes_back_to_a_lonely_primary_records_that_before_frozen_writes_end() {
    for seed in 1..=SEEDS {
        let mut config = Config::new(seed);
        config.resource.on_no_data = OnNoData::SuspendIo;
        let mut world = synced_with(config);
        assert_eq!(world.io(0, WRITE, 0, 8), Ok(()));
        world.set_direction(0, false);
        let write = world.start(0, WRITE, 0, 8);
        world.run_until("the write", 1_000, |world| world.operations[write].on_disk);
        world.ask(0, FORCE_DETACH);
        world.run_until("detached", 1_000, |world| world.status(0).state.disk == Disk::Diskless);
        world.set_network(false);
        alone(&mut world, 0);
        assert_eq!(world.operations[write].result, None, "frozen");
        assert_eq!(world.attach(0), 101);
        world.run_until("the write ends", 1_000, |world| world.operations[write].result == Some(Ok(())));
        assert_ne!(world.superblock(0).uuids[UI_BITMAP], 0);
        // Otherwise it would still hear of the lost disk over the old connection, and begin a generation of its own.
        alone(&mut world, 1);
        world.set_network(true);
        all_the_same(&mut world);
    }
}

/// I/O is frozen until the peer is fenced; the peer comes back before, and is attaching its disk: it gets none of the frozen writes.
/// They were acknowledged with no generation to tell that. Seed 5000983.
#[test]
fn a_peer_that_comes_back_while_it_attaches_means_a_new_generation() {
    let mut seen = 0;
    for seed in 1..=2 * SEEDS {
        let mut config = Config::new(seed);
        config.disk.fencing = Fencing::ResourceAndStonith;
        let mut world = synced_with(config);
        world.helper_exit_code = 1;
        world.power_cut(1);
        alone(&mut world, 0);
        let write = world.start(0, WRITE, 0, 8);
        world.run_for_ms(100);
        assert_eq!(world.operations[write].result, None, "frozen");
        world.helper_exit_code = 0;
        world.boot(1);
        assert_eq!(world.connect(1), 1);
        world.run_for_us(600 + seed * 15);
        assert_eq!(world.start_attach(1), Ok(()));
        world.run_until("the peer", 60_000, |world| world.status(0).state.conn == Conn::Connected);
        seen += u64::from(world.status(1).state.disk == Disk::Attaching);
        world.run_until("the write ends", 60_000, |world| world.operations[write].result == Some(Ok(())));
        assert_eq!(world.admin_answer(1), 101);
        all_the_same(&mut world);
    }
    assert!(seen > 0, "never attaching when the nodes met");
}

/// Seed 135: a node detached its disk, and when the Primary had agreed, that one's disk failed. The news of that overtook the consent,
/// which comes over the other socket; so both had begun a generation for what the other one was going to lack.
#[test]
fn a_disk_that_is_being_detached_begins_no_generation_when_the_other_one_fails() {
    let mut seen = 0;
    for seed in 1..=8 * SEEDS {
        let mut world = synced_with(Config::new(seed));
        world.ask(1, DETACH);
        world.run_until("the consent", 10_000, |world| world.status(0).state.pdsk == Disk::Failed);
        world.ask(0, FORCE_DETACH);
        world.run_until("the failure", 10_000, |world| world.status(1).state.pdsk <= Disk::Failed);
        seen += u32::from(world.status(1).state.disk == Disk::UpToDate);
        world.run_until("both detached", 10_000, |world| (0..2).all(|node| !world.status(node).has_disk));
        for node in 0..2 {
            let _code = world.poll_admin(node);
            assert_eq!(world.attach(node), 101);
            world.run_until("the disk", 60_000, |world| world.status(node).state.disk == Disk::UpToDate);
            world.run_for_ms(100);
        }
        all_the_same(&mut world);
    }
    assert!(seen > 0, "the consent was never overtaken");
}

/// Seed 7003439: I/O is frozen until the peer is fenced; the peer comes back before, without a disk. What was frozen was acknowledged
/// before the generation that the peer's disk lacks had begun.
#[test]
fn a_peer_that_comes_back_without_its_disk_means_a_new_generation() {
    for seed in 1..=SEEDS {
        let mut config = Config::new(seed);
        config.disk.fencing = Fencing::ResourceAndStonith;
        let mut world = synced_with(config);
        world.helper_exit_code = 1;
        world.power_cut(1);
        alone(&mut world, 0);
        let write = world.start(0, WRITE, 0, 8);
        world.run_for_ms(100);
        assert_eq!(world.operations[write].result, None, "frozen");
        world.helper_exit_code = 0;
        world.boot(1);
        assert_eq!(world.connect(1), 1);
        world.run_until("the write ends", 60_000, |world| world.operations[write].result == Some(Ok(())));
        assert_ne!(world.superblock(0).uuids[UI_BITMAP], 0);
        world.run_for_ms(100);
        assert_eq!(world.attach(1), 101);
        all_the_same(&mut world);
    }
}

/// Seed 35003251 with several volumes: one of two Primaries let its disk go, and the other one, which had agreed, wrote on and lost its power. None
/// of that had reached the first one: it attached its disk before it noticed, went on with that alone, and was the source when they met.
#[test]
fn a_disk_that_was_let_go_beside_another_primary_does_not_go_on_alone() {
    for seed in 1..=SEEDS {
        for attaches_early in [true, false] {
            let mut config = Config::new(seed);
            config.net.two_primaries = true;
            let mut world = synced_with(config);
            assert_eq!(world.admin(1, PRIMARY), 1);
            world.ask(0, DETACH);
            world.run_until("the consent", 1_000, |world| world.status(0).state.disk <= Disk::Failed);
            // Node 0 hears no more.
            world.set_direction(1, false);
            assert_eq!(world.admin_answer(0), 1, "seed {seed}");
            assert_eq!(world.io(1, WRITE, 0, 8), Ok(()));
            world.power_cut(1);
            if attaches_early {
                assert_eq!(world.attach(0), 101, "seed {seed}: the peer may be there");
            }
            alone(&mut world, 0);
            world.set_direction(1, true);
            assert_eq!(world.status(0).state.disk, Disk::Diskless, "seed {seed}");
            world.run_until("the disk is let go", 1_000, |world| !world.status(0).has_disk);
            world.boot(1);
            assert_eq!(world.attach(0), 150, "seed {seed}: the disk of node 0 is not what its application has seen");
            // Nor is the other one's, as far as node 0 knows. Whoever demotes it gives that up.
            assert_eq!(world.admin(0, SECONDARY), 1, "seed {seed}");
            assert_eq!(world.attach(0), 101, "seed {seed}");
            assert_eq!(world.attach(1), 101, "seed {seed}");
            assert_eq!(world.connect(1), 1, "seed {seed}");
            all_the_same(&mut world);
            assert_eq!(world.check_acknowledged(0), Ok(()), "seed {seed}");
        }
    }
}

/// Whoever attaches the disk of a Secondary alone decides that what it lacks is given up: it is all that an application sees from then on.
/// The node remembered what had been written to the other disk, and refused its own the next time.
#[test]
fn a_disk_that_was_chosen_by_its_administrator_is_not_refused_later() {
    for seed in 1..=SEEDS {
        let mut world = synced_with(Config::new(seed));
        assert_eq!(world.admin(0, DETACH), 1, "seed {seed}");
        assert_eq!(world.io(0, WRITE, 0, 8), Ok(()), "seed {seed}");
        world.power_cut(1);
        alone(&mut world, 0);
        assert_eq!(world.attach(0), 150, "seed {seed}: the write is missing");
        assert_eq!(world.admin(0, SECONDARY), 1, "seed {seed}");
        assert_eq!(world.attach(0), 101, "seed {seed}");
        world.only_left(0);
        assert_eq!(world.admin(0, PRIMARY), 1, "seed {seed}");
        assert_eq!(world.admin(0, FORCE_DETACH), 1, "seed {seed}");
        world.run_until("the disk is let go", 1_000, |world| !world.status(0).has_disk);
        assert_eq!(world.attach(0), 101, "seed {seed}: nothing is missing");
    }
}

/// Seed 50035414: a node was promoted whose peer had no disk, and began a generation without telling. The peer, promoted after it, took what it
/// read from there for the generation of its own disk, which it attached when it was alone: its application saw old data, and the node with
/// what had been acknowledged was refused.
#[test]
fn a_node_without_disk_hears_of_the_generation_that_begins_with_a_promotion() {
    for seed in 1..=SEEDS {
        let mut world = synced_with(Config::new(seed));
        world.power_cut(0);
        world.run_until("loss noticed", 60_000, |world| world.status(1).state.conn == Conn::WFConnection);
        world.boot(0);
        assert_eq!(world.connect(0), 1);
        world.run_until("reconnect", 60_000, |world| {
            (0..2).all(|node| world.status(node).state.conn == Conn::Connected)
        });
        world.run_for_ms(100);
        assert_eq!(world.admin(1, PRIMARY), 1);
        assert_eq!(world.io(1, WRITE, 0, 8), Ok(()));
        assert_eq!(world.admin(1, SECONDARY), 1);
        assert_eq!(world.admin(0, PRIMARY), 1);
        assert_eq!(world.io(0, Action::Read, 0, 8), Ok(()));
        world.power_cut(1);
        world.run_until("loss noticed", 60_000, |world| world.status(0).state.conn < Conn::Connected);
        assert_eq!(world.attach(0), 150, "seed {seed}: the disk of node 0 is not what its application has seen");
        come_back(&mut world, 1);
        world.run_until("reconnect", 60_000, |world| world.status(0).state.conn == Conn::Connected);
        assert_eq!(world.io(0, Action::Read, 0, 8), Ok(()));
        world.run_for_ms(100);
        assert_eq!(world.attach(0), 101);
        all_the_same(&mut world);
        assert_eq!(world.refusals, [""; 0], "seed {seed}");
    }
}
