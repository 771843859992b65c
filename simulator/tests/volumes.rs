//! Several volumes of one resource.

use engine::metadata::superblock::{UI_BITMAP, UI_CURRENT};
use engine::netlink::{Fencing, OnNoData, WireProtocol};
use engine::resource::{AdminRequest, AlgorithmName, VolumeId};
use engine::state::{Conn, Disk};
use simulator::scenario::{all_the_same, good, WRITE};
use simulator::world::{Action, Fence};
use simulator::{Config, World};

const SEEDS: u64 = 10;
const FIRST: VolumeId = VolumeId(0);
const SECOND: VolumeId = VolumeId(1);

/// Two volumes, UpToDate and connected, node 0 Primary of both.
#[track_caller]
fn synced(mut config: Config) -> World {
    config.volumes = 2;
    config.limits.volumes = 2;
    let mut world = World::new(config);
    for node in 0..2 {
        for volume in [FIRST, SECOND] {
            assert_eq!(world.at(volume, |world| world.attach(node)), 101);
        }
        assert_eq!(world.connect(node), 1);
    }
    for volume in [FIRST, SECOND] {
        world.look_at(volume);
        world.run_until("connected", 10_000, |world| {
            (0..2).all(|node| world.status(node).state.conn == Conn::Connected)
        });
        world.run_for_ms(100);
        assert_eq!(world.admin(0, AdminRequest::NewCurrentUuid { volume, clear_bitmap: true }), 101);
        world.run_until("skipped sync", 10_000, good);
        assert_eq!(world.admin(0, AdminRequest::Primary { volume, force: false }), 1);
    }
    world.look_at(FIRST);
    world
}

/// Seed 152 of runs with several volumes: I/O was frozen until the peer would be fenced. `resume-io` for one volume let the others go on as
/// well, and these had not begun a new generation: after a power cut the peer could have taken over without what was acknowledged then.
#[test]
fn each_volume_begins_a_new_generation_when_frozen_io_goes_on() {
    for (seed, asked) in (1..=SEEDS).flat_map(|seed| [(seed, FIRST), (seed, SECOND)]) {
        let mut config = Config::new(seed);
        config.disk.fencing = Fencing::ResourceAndStonith;
        let mut world = synced(config);
        world.helper_exit_code = 1;
        world.set_network(false);
        let writes = [FIRST, SECOND].map(|volume| world.at(volume, |world| world.start(0, WRITE, 64, 8)));
        world
            .run_until("frozen", 60_000, |world| world.is_suspended(0) && world.status(0).state.conn < Conn::Connected);
        world.run_for_ms(1_000);
        assert_eq!(writes.map(|write| world.operations[write].result), [None; 2]);
        assert_eq!(world.admin(0, AdminRequest::ResumeIo { volume: asked }), 1);
        world.run_until("the writes", 10_000, |world| world.open_operations() == 0);
        for volume in [FIRST, SECOND] {
            assert_ne!(world.at(volume, |world| world.superblock(0).uuids[UI_BITMAP]), 0, "seed {seed}, {volume:?}");
        }
    }
}

/// One volume had no data in reach, and I/O of all of them was frozen when the peer was lost. When its disk was back the other one went on
/// without the generation that it owed.
#[test]
fn a_volume_that_waited_with_another_for_its_data_begins_a_new_generation() {
    for seed in 1..=SEEDS {
        let mut config = Config::new(seed);
        config.resource.on_no_data = OnNoData::SuspendIo;
        let mut world = synced(config);
        world.set_network(false);
        world.nodes[0].faults.read_percent = 100;
        let read = world.start(0, Action::Read, 64, 8);
        world.run_until("the disk is let go", 10_000, |world| !world.status(0).has_disk);
        world.nodes[0].faults.read_percent = 0;
        world
            .run_until("frozen", 60_000, |world| world.is_suspended(0) && world.status(0).state.conn < Conn::Connected);
        let write = world.at(SECOND, |world| world.start(0, WRITE, 64, 8));
        world.run_for_ms(100);
        assert_eq!([read, write].map(|number| world.operations[number].result), [None; 2]);
        assert_eq!(world.attach(0), 101);
        world.run_until("both", 10_000, |world| world.open_operations() == 0);
        // A read does not wait for the meta data.
        world.run_for_ms(100);
        for volume in [FIRST, SECOND] {
            assert_ne!(world.at(volume, |world| world.superblock(0).uuids[UI_BITMAP]), 0, "seed {seed}, {volume:?}");
        }
    }
}

/// Seed 13010042: I/O was frozen for want of the data of one volume, whose disk came back when the connection was lost. A write of another
/// volume, which the peer had not answered, ended before that volume had begun a new generation.
#[test]
fn a_volume_that_gets_its_data_back_does_not_let_others_go_on_without_a_generation() {
    for seed in 1..=SEEDS {
        let mut config = Config::new(seed);
        config.resource.on_no_data = OnNoData::SuspendIo;
        let mut world = synced(config);
        assert_eq!(world.admin(1, AdminRequest::Detach { volume: FIRST, force: false }), 1);
        world.set_network(false);
        let write = world.at(SECOND, |world| world.start(0, WRITE, 64, 8));
        world.run_for_ms(100);
        assert_eq!(world.admin(0, AdminRequest::Detach { volume: FIRST, force: true }), 1);
        world.run_until("detached", 1_000, |world| !world.status(0).has_disk);
        assert!(world.is_suspended(0));
        assert_eq!(world.start_attach(0), Ok(()));
        world.run_until("attached", 1_000, |world| world.status(0).state.disk == Disk::Negotiating);
        assert_eq!(world.operations[write].result, None);
        // What is compared here is compared when the write ends.
        world.reset_connection();
        world.run_until("the write", 60_000, |world| world.open_operations() == 0);
        assert_ne!(world.at(SECOND, |world| world.superblock(0).uuids[UI_BITMAP]), 0, "seed {seed}");
        world.set_network(true);
        let _code = world.admin_answer(0);
        world.at(SECOND, all_the_same);
        assert_eq!(world.attach(1), 101);
        all_the_same(&mut world);
    }
}

/// Seed 2910: I/O was frozen, and the peer came back with one disk outdated: everything counted as not sent, and only the volume of that disk
/// began a new generation. What the other one had under way was acknowledged, and the peer, which lacked it, counted as equal.
#[test]
fn a_volume_whose_writes_will_not_be_sent_again_begins_a_new_generation() {
    for (seed, outdated) in (1..=SEEDS).flat_map(|seed| [(seed, FIRST), (seed, SECOND)]) {
        let mut config = Config::new(seed);
        config.disk.fencing = Fencing::ResourceAndStonith;
        let mut world = synced(config);
        world.helper_exit_code = 1;
        world.set_network(false);
        let writes = [FIRST, SECOND].map(|volume| world.at(volume, |world| world.start(0, WRITE, 64, 8)));
        let lost = |world: &World| (0..2).all(|node| world.status(node).state.conn < Conn::Connected);
        world.run_until("loss noticed", 60_000, lost);
        assert_eq!(world.admin(1, AdminRequest::Outdate { volume: outdated }), 1);
        world.run_for_ms(1_000);
        assert!(world.is_suspended(0), "seed {seed}");
        world.helper_exit_code = 0;
        world.set_network(true);
        world.run_until("the writes", 60_000, |world| world.open_operations() == 0);
        assert_eq!(writes.map(|write| world.operations[write].result), [Some(Ok(())); 2], "seed {seed}");
        for volume in [FIRST, SECOND] {
            world.look_at(volume);
            all_the_same(&mut world);
        }
    }
}

/// Seed 19004432: a write under protocol A had ended when the connection was lost, before its barrier was acknowledged, and I/O was frozen because
/// another volume had no disk. It counted as done by the peer, which did not have it, when that was back: nobody knew of the difference.
#[test]
fn a_write_that_was_only_sent_before_io_was_frozen_is_copied() {
    for seed in 1..=SEEDS {
        let mut config = Config::new(seed);
        config.net.wire_protocol = WireProtocol::A;
        config.resource.on_no_data = OnNoData::SuspendIo;
        let mut world = synced(config);
        assert_eq!(world.admin(0, AdminRequest::Detach { volume: FIRST, force: false }), 1);
        // The peer's new generation has been heard of.
        world.run_for_ms(100);
        world.set_network(false);
        assert_eq!(world.at(SECOND, |world| world.io(0, WRITE, 64, 8)), Ok(()));
        let lost = |world: &World| (0..2).all(|node| world.status(node).state.conn < Conn::Connected);
        world.run_until("loss noticed", 60_000, lost);
        assert!(world.is_suspended(0), "seed {seed}");
        world.set_network(true);
        let connected = |world: &World| (0..2).all(|node| world.status(node).state.conn == Conn::Connected);
        world.run_until("connected", 60_000, connected);
        assert_eq!(world.attach(0), 101);
        for volume in [FIRST, SECOND] {
            world.look_at(volume);
            all_the_same(&mut world);
        }
    }
}

/// Seed 35007329 with several volumes: each node was the target of one volume and the source of another. Both had all their slots taken by
/// what they had asked for and what they were asked for; neither read on, and so the answers did not get through.
#[test]
fn resyncs_in_both_directions_do_not_keep_each_other_from_being_read() {
    for seed in 1..=SEEDS {
        let mut config = Config::new(seed);
        config.limits.peer_requests = 16;
        config.net.max_buffers = 100_000;
        config.disk.c_plan_ahead = 0;
        config.disk.resync_rate = 1_000_000;
        let mut world = synced(config);
        for (volume, target) in [(FIRST, 1), (SECOND, 0)] {
            world.look_at(volume);
            assert_eq!(world.admin(0, AdminRequest::Secondary { volume }), 1);
            assert_eq!(world.admin(target, AdminRequest::PauseSync { volume }), 101);
            assert_eq!(world.admin(target, AdminRequest::Invalidate { volume }), 1);
            let waits = |world: &World| world.status(target).state.conn == Conn::PausedSyncT;
            world.run_until("a target that waits", 10_000, waits);
        }
        // Both ask for all that they may before either is asked for anything.
        world.set_network(false);
        for (volume, target) in [(FIRST, 1), (SECOND, 0)] {
            assert_eq!(world.at(volume, |world| world.admin(target, AdminRequest::ResumeSync { volume })), 101);
        }
        world.run_for_ms(300);
        world.set_network(true);
        for volume in [FIRST, SECOND] {
            world.at(volume, all_the_same);
        }
        assert_eq!(world.faults, [], "seed {seed}");
    }
}

/// Each node is without a disk of one volume, and reads it from the other one: as much as it likes, in both directions at once.
#[test]
fn reads_in_both_directions_do_not_keep_each_other_from_being_answered() {
    for seed in 1..=SEEDS {
        let mut config = Config::new(seed);
        config.limits.peer_requests = 16;
        config.net.max_buffers = 100_000;
        config.net.two_primaries = true;
        let mut world = synced(config);
        for (volume, reader) in [(FIRST, 0), (SECOND, 1)] {
            world.look_at(volume);
            if reader == 1 {
                assert_eq!(world.admin(0, AdminRequest::Secondary { volume }), 1);
                assert_eq!(world.admin(1, AdminRequest::Primary { volume, force: false }), 1);
            }
            assert_eq!(world.admin(reader, AdminRequest::Detach { volume, force: false }), 1);
            world.run_until("detached", 10_000, |world| !world.status(reader).has_disk);
        }
        // Both ask for all that they may before either is asked for anything.
        world.set_network(false);
        let mut reads = Vec::new();
        for (volume, reader) in [(FIRST, 0), (SECOND, 1)] {
            world.look_at(volume);
            reads.extend((0..60).map(|number| world.start(reader, Action::Read, number * 256, 256)));
        }
        world.run_for_ms(300);
        world.set_network(true);
        world.run_until("the reads", 60_000, |world| reads.iter().all(|&read| world.operations[read].result.is_some()));
        assert!(reads.iter().all(|&read| world.operations[read].result == Some(Ok(()))), "seed {seed}");
        assert_eq!(world.faults, [], "seed {seed}");
    }
}

/// Seed 50020923: the program that fences ended while the nodes were proving to each other who they are. It was to begin a new generation of a
/// volume whose resync might have ended without this node's hearing of it, and the peer, told of that at such a time, gave up the connection.
#[test]
fn who_is_fenced_while_the_nodes_meet_hears_of_a_new_generation_when_they_have_met() {
    let mut begun = 0;
    for seed in 1..=4 * SEEDS {
        let mut config = Config::new(seed);
        config.disk.fencing = Fencing::ResourceOnly;
        config.net.cram_hmac_alg = AlgorithmName::from_bytes(b"sha256").expect("short");
        config.net.shared_secret = AlgorithmName::from_bytes(b"open sesame").expect("short");
        config.sent_us_most = 20_000;
        let mut world = synced(config);
        world.fence = Fence::Truthful;
        world.reset_connection();
        let syncs = |world: &World| world.status(0).state.conn == Conn::SyncSource;
        world.run_until("the resync of the first volume", 60_000, syncs);
        if world.at(SECOND, |world| world.status(0).state.conn) >= Conn::SyncSource {
            // Fenced is who has a disk of which nothing is known.
            continue;
        }
        let generation = world.status(0).uuids[UI_CURRENT];
        world.reset_connection();
        let meets = |world: &World| world.status(0).state.conn == Conn::WFConnection;
        world.run_until("the connection is made anew", 10_000, meets);
        world.run_until("the handshake", 60_000, |world| !meets(world));
        begun += u64::from(world.status(0).uuids[UI_CURRENT] != generation);
        assert_eq!(world.faults, [], "seed {seed}");
        world.at(SECOND, all_the_same);
        all_the_same(&mut world);
        assert_eq!(world.faults, [], "seed {seed}");
    }
    assert!(begun > 0, "the program never ended in time");
}
