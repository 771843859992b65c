//! What is in a disk's volatile cache when nobody has it in mind any more, and a power cut follows.

use engine::metadata::superblock::MetaFlags;
use engine::netlink::{Fencing, OnNoData, WireProtocol};
use engine::resource::AdminRequest;
use engine::state::{Conn, Disk, Role};
use simulator::node::VOLUME;
use simulator::scenario::{all_the_same, alone, come_back, good, synced_with, SECONDARY, WRITE};
use simulator::world::Action;
use simulator::{Config, World};

const SEEDS: u64 = 20;

/// What makes meta data durable does not make data durable.
fn config(seed: u64) -> Config {
    Config { internal: false, ..Config::new(seed) }
}

/// Seed 6007394: I/O was frozen while the connection was made anew, and what the peer had acknowledged over the old one was
/// forgotten with the new one, though it was only in the cache of the peer's disk, or on its way there (protocol B). After a
/// demotion nobody had it in mind.
#[test]
fn what_was_acknowledged_before_a_reconnect_is_durable_after_it() {
    for seed in 1..=4 * SEEDS {
        let mut config = config(seed);
        config.disk.fencing = Fencing::ResourceAndStonith;
        config.net.wire_protocol = WireProtocol::B;
        let mut world = synced_with(config);
        world.helper_exit_code = 1;
        world.nodes[1].faults.slowness = 50;
        for block in 0..8 {
            assert_eq!(world.io(0, WRITE, block * 16, 8), Ok(()));
        }
        world.reset_connection();
        alone(&mut world, 0);
        world.helper_exit_code = 0;
        world.run_until("reconnect", 60_000, good);
        assert_eq!(world.admin(0, SECONDARY), 1);
        world.run_until("demotion", 1_000, |world| world.status(1).state.peer == Role::Secondary);
        for node in [1, 0] {
            world.power_cut(node);
        }
        for node in 0..2 {
            come_back(&mut world, node);
        }
        all_the_same(&mut world);
    }
}

/// Seeds 6008590, 6015068: a disk was let go and attached again; the activity log that told what might be in its cache was begun
/// anew. Its node became the source of a resync, after which no bit told of that either, and lost its power.
#[test]
fn what_a_disk_had_in_its_cache_when_it_was_let_go_is_flushed_when_it_is_back() {
    for seed in 1..=SEEDS {
        let mut config = config(seed);
        config.resource.on_no_data = OnNoData::SuspendIo;
        let mut world = synced_with(config);
        for block in 0..8 {
            assert_eq!(world.io(0, WRITE, block * 16, 8), Ok(()));
        }
        // The peer does not hear of it: then it would have begun a generation that this disk lacks.
        world.set_direction(0, false);
        world.ask(0, AdminRequest::Detach { volume: VOLUME, force: true });
        world.run_until("detached", 1_000, |world| world.status(0).state.disk == Disk::Diskless);
        world.power_cut(1);
        alone(&mut world, 0);
        assert_eq!(world.attach(0), 101);
        world.set_network(true);
        come_back(&mut world, 1);
        all_the_same(&mut world);
        world.power_cut(0);
        come_back(&mut world, 0);
        all_the_same(&mut world);
        world.check_acknowledged(0).unwrap_or_else(|reason| panic!("seed {seed}: {reason}"));
    }
}

/// With every bit set the activity log is not written; a resync clears the bits, and the source loses its power.
#[test]
fn what_was_written_without_an_activity_log_is_flushed_before_the_bits_go() {
    for seed in 1..=SEEDS {
        let mut world = synced_with(config(seed));
        assert_eq!(world.admin(0, AdminRequest::Disconnect { force: false }), 101);
        assert_eq!(world.admin(0, AdminRequest::InvalidateRemote { volume: VOLUME }), 1);
        world.run_until("all bits", 10_000, |world| world.status(0).log_suspended);
        for block in 0..8 {
            assert_eq!(world.io(0, WRITE, block * 16, 8), Ok(()));
        }
        for node in 0..2 {
            if world.status(node).state.conn == Conn::StandAlone {
                assert_eq!(world.connect(node), 1);
            }
        }
        all_the_same(&mut world);
        world.power_cut(0);
        come_back(&mut world, 0);
        all_the_same(&mut world);
        world.check_acknowledged(0).unwrap_or_else(|reason| panic!("seed {seed}: {reason}"));
    }
}

/// Seed 12019260: a node whose peer had been Primary without a disk became Primary itself while its own disk was writing down that it is
/// none. The disk still said that it is, but not for long, and the first writes relied on the activity log.
#[test]
fn a_promotion_overtakes_the_end_of_the_last_one() {
    let mut met = 0;
    for seed in 1..=SEEDS {
        let mut world = synced_with(config(seed));
        // For a Primary without a disk the peer keeps the activity log.
        assert_eq!(world.admin(0, AdminRequest::Detach { volume: VOLUME, force: false }), 1);
        assert_eq!(world.io(0, WRITE, 0, 8), Ok(()));
        assert_eq!(world.io(0, Action::Flush, 0, 0), Ok(()));
        world.run_for_ms(500);
        world.power_cut(0);
        world.nodes[1].faults.slowness = 50;
        assert_eq!(world.admin(1, AdminRequest::Disconnect { force: true }), 101);
        world.run_until("the superblock is on its way", 1_000, |world| {
            let running = world.nodes[1].running.as_ref().expect("on");
            running.meta_transfers.values().any(|transfer| transfer.io.durable)
        });
        let before = world.superblock(1).flags;
        world.ask(1, AdminRequest::Primary { volume: VOLUME, force: false });
        world.run_until("promoted", 1_000, |world| world.status(1).state.role == Role::Primary);
        met += u32::from(before.contains(MetaFlags::PRIMARY_IND));
        // Its extent is in the log since the peer wrote there; its bit is not set.
        world.start(1, WRITE, 64, 8);
        world.run_until("the write", 60_000, |world| world.open_operations() == 0);
        world.nodes[1].faults = Default::default();
        world.run_for_ms(200);
        world.power_cut(1);
        for node in 0..2 {
            come_back(&mut world, node);
        }
        all_the_same(&mut world);
        assert_eq!(world.check_acknowledged(0), Ok(()), "seed {seed}");
    }
    assert!(met > 0, "the superblock was never late");
}

/// A write of the peer with PREFLUSH could not be done, and what had been in the disk's cache before was gone. The barrier of what the
/// peer had written there was acknowledged all the same, after another flush that found nothing; then nobody had it in mind.
#[test]
fn a_write_of_the_peer_whose_flush_fails_loses_what_was_in_the_cache() {
    for seed in 1..=2 * SEEDS {
        let mut world = synced_with(config(seed));
        let first = world.start(0, WRITE, 0, 8);
        world.run_until("on the peer's disk", 1_000, |world| {
            world.nodes[1].data.get(0) == world.operations[first].stamp
        });
        world.nodes[1].faults.flush_percent = 100;
        // Every other one flushes first.
        let both = [8, 16].map(|sector| world.start(0, Action::Write { fua: true }, sector, 8));
        assert!(both.iter().any(|&number| world.operations[number].flushes_first()));
        world
            .run_until("written", 60_000, |world| both.iter().all(|&number| world.operations[number].result.is_some()));
        world.nodes[1].faults.flush_percent = 0;
        world.run_until("without disk", 60_000, |world| !world.status(1).has_disk);
        assert_eq!(world.attach(1), 101);
        world.run_until("resync", 60_000, good);
        all_the_same(&mut world);
    }
}

/// The same, asked for by the Primary itself.
#[test]
fn a_primary_gives_up_its_own_data_only_when_the_peer_has_it_on_its_disk() {
    let mut agreed = 0;
    for seed in 1..=SEEDS {
        let mut world = synced_with(config(seed));
        for block in 0..8 {
            assert_eq!(world.io(0, WRITE, block * 16, 8), Ok(()));
        }
        let pending = world.start(0, WRITE, 500, 64);
        world.ask(0, AdminRequest::Invalidate { volume: VOLUME });
        world.run_for_us(seed * 100);
        world.power_cut(1);
        alone(&mut world, 0);
        agreed += u32::from(world.status(0).state.disk == Disk::Inconsistent);
        world.run_until("the write", 60_000, |world| world.operations[pending].result.is_some());
        come_back(&mut world, 1);
        all_the_same(&mut world);
        world.check_acknowledged(0).unwrap_or_else(|reason| panic!("seed {seed}: {reason}"));
    }
    assert!((1..SEEDS as u32).contains(&agreed), "{agreed} times it gave its data up in time");
}

/// A write that comes while the command waits is done when the data has been given up.
#[test]
fn a_write_waits_while_a_primary_gives_up_its_data() {
    for seed in 1..=5 {
        let mut world = synced_with(config(seed));
        let pending = world.start(0, WRITE, 500, 64);
        world.ask(0, AdminRequest::Invalidate { volume: VOLUME });
        let late = world.start(0, WRITE, 0, 8);
        assert!(world.operations[late].epoch.is_none(), "it has begun");
        world.run_until("given up", 1_000, |world| world.status(0).state.disk == Disk::Inconsistent);
        assert!(world.operations[pending].result.is_some() && world.operations[late].result.is_none(), "seed {seed}");
        world.run_until("the write", 1_000, |world| world.operations[late].result.is_some());
        all_the_same(&mut world);
    }
}

/// Seed 30005670: a node had the Primary's data declared worthless, and lost its power before the Primary heard of that. What was in its
/// cache was lost, and the Primary agreed all the same.
#[test]
fn data_is_given_up_only_when_the_peer_has_it_on_its_disk() {
    let mut agreed = 0;
    for seed in 1..=4 * SEEDS {
        let mut world = synced_with(config(seed));
        // Its superblock says that its data is good.
        world.run_for_ms(100);
        for block in 0..8 {
            assert_eq!(world.io(0, WRITE, block * 16, 8), Ok(()));
        }
        let pending = world.start(0, WRITE, 500, 64);
        world.ask(1, AdminRequest::InvalidateRemote { volume: VOLUME });
        let asks = |world: &World| world.packets_sent.contains_key("P_STATE_CHG_REQ");
        let before = world.packets_sent.remove("P_STATE_CHG_REQ");
        world.run_until("the request", 1_000, asks);
        world.packets_sent.extend(before.map(|count| ("P_STATE_CHG_REQ", count)));
        world.run_for_us(seed * 25);
        world.power_cut(1);
        alone(&mut world, 0);
        agreed += u32::from(world.status(0).state.disk == Disk::Inconsistent);
        world.run_until("the write", 60_000, |world| world.operations[pending].result.is_some());
        come_back(&mut world, 1);
        all_the_same(&mut world);
        world.check_acknowledged(0).unwrap_or_else(|reason| panic!("seed {seed}: {reason}"));
    }
    assert!((1..4 * SEEDS as u32).contains(&agreed), "{agreed} times it agreed in time");
}
