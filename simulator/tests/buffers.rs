//! `max-buffers`: what is in memory for the peer is limited, and the limit does not make anything wait for ever.

use engine::netlink::WireProtocol;
use engine::resource::{AdminRequest, VolumeId};
use engine::state::Conn;
use simulator::scenario::{all_the_same, synced_with, WRITE};
use simulator::world::Action;
use simulator::{Config, World};

const MIB_SECTORS: u64 = 2048;
const SEEDS: u64 = 10;

fn buffered(world: &World, node: usize) -> u64 {
    world.engine_of(node).usage().buffered_bytes
}

/// The smallest limit is 128 KiB; one packet of 1 MiB may go beyond it.
const MOST_BYTES: u64 = (128 << 10) + (1 << 20);

fn small(seed: u64) -> Config {
    let mut config = Config::new(seed);
    config.net.max_buffers = 32;
    config
}

/// A Primary writes faster than the disk of the other node does, and does not wait for it (protocol A).
#[test]
fn a_slow_disk_does_not_fill_the_memory() {
    for seed in 1..=SEEDS {
        let mut config = small(seed);
        config.net.wire_protocol = WireProtocol::A;
        let mut world = synced_with(config);
        world.nodes[1].faults.hangs = true;
        for number in 0..12 {
            world.start(0, WRITE, number * MIB_SECTORS, MIB_SECTORS);
        }
        world.run_for_ms(50);
        assert!(buffered(&world, 1) > 0, "seed {seed}: nothing has arrived");
        assert!(buffered(&world, 1) <= MOST_BYTES, "seed {seed}: {}", buffered(&world, 1));
        // One more every 100 ms.
        let before = buffered(&world, 1);
        world.run_for_ms(350);
        assert!(buffered(&world, 1) >= before + (2 << 20), "seed {seed}: it waits for ever");
        assert!(buffered(&world, 1) <= before + (4 << 20), "seed {seed}: {}", buffered(&world, 1));
        world.nodes[1].faults.hangs = false;
        world.run_until("the writes", 60_000, |world| world.open_operations() == 0);
        all_the_same(&mut world);
        assert_eq!(world.faults, [], "seed {seed}");
    }
}

/// With the default, 8 MiB, nothing is held up that fits.
#[test]
fn the_limit_is_that_of_the_option() {
    for seed in 1..=SEEDS {
        let mut config = Config::new(seed);
        config.net.wire_protocol = WireProtocol::A;
        let mut world = synced_with(config);
        world.nodes[1].faults.hangs = true;
        for number in 0..20 {
            world.start(0, WRITE, number * MIB_SECTORS, MIB_SECTORS);
        }
        world.run_for_ms(90);
        assert!((8 << 20..=9 << 20).contains(&buffered(&world, 1)), "seed {seed}: {}", buffered(&world, 1));
        world.nodes[1].faults.hangs = false;
        world.run_until("the writes", 60_000, |world| world.open_operations() == 0);
        all_the_same(&mut world);
    }
}

/// Each node reads from the other one, more than either may have in memory: the answers fill the sockets, and have to be read by the one
/// that is sending.
#[test]
fn reads_in_both_directions_do_not_wait_for_each_other() {
    const SECOND: VolumeId = VolumeId(1);
    for seed in 1..=SEEDS {
        let mut config = small(seed);
        config.volumes = 2;
        config.limits.volumes = 2;
        config.limits.requests = 64;
        config.net.two_primaries = true;
        let mut world = synced_with_two(config);
        for (volume, node) in [(VolumeId(0), 0), (SECOND, 1)] {
            world.look_at(volume);
            assert_eq!(world.admin(node, AdminRequest::Primary { volume, force: false }), 1);
            assert_eq!(world.admin(node, AdminRequest::Detach { volume, force: false }), 1);
        }
        for number in 0..10 {
            for (volume, node) in [(VolumeId(0), 0), (SECOND, 1)] {
                world.at(volume, |world| world.start(node, Action::Read, number * MIB_SECTORS, MIB_SECTORS));
            }
        }
        world.run_until("the reads", 10_000, |world| world.open_operations() == 0);
        assert!(world.operations.iter().all(|operation| operation.result == Some(Ok(()))), "seed {seed}");
        // A sender may be slow to notice that its last packet is out.
        world.run_for_ms(100);
        assert_eq!([buffered(&world, 0), buffered(&world, 1)], [0; 2], "seed {seed}");
    }
}

#[track_caller]
fn synced_with_two(config: Config) -> World {
    let mut world = World::new(config);
    for node in 0..2 {
        for number in 0..2 {
            assert_eq!(world.at(VolumeId(number), |world| world.attach(node)), 101);
        }
        assert_eq!(world.connect(node), 1);
    }
    for volume in [VolumeId(0), VolumeId(1)] {
        world.look_at(volume);
        let connected = |world: &World| (0..2).all(|node| world.status(node).state.conn == Conn::Connected);
        world.run_until("connected", 10_000, connected);
        world.run_for_ms(100);
        assert_eq!(world.admin(0, AdminRequest::NewCurrentUuid { volume, clear_bitmap: true }), 101);
        world.run_until("skipped sync", 10_000, simulator::scenario::good);
    }
    world
}
