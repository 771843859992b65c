//! Writes of two Primaries that meet.

use engine::resource::AdminRequest;
use engine::state::{Conn, Disk};
use simulator::node::VOLUME;
use simulator::world::Action;
use simulator::{Config, World};

const SEEDS: u64 = 60;
const SECTORS: u64 = 16_384;
/// Where they meet.
const SPOT_SECTORS: u64 = 64;

/// Both Primary, connected, UpToDate.
fn two_primaries(seed: u64) -> World {
    let mut config = Config::new(seed);
    config.internal = false;
    config.sectors = SECTORS;
    config.disk.resync_rate = 100_000;
    config.net.two_primaries = true;
    config.sent_us_most = if seed % 2 == 0 { 60 } else { 20_000 };
    let mut world = World::new(config);
    for node in 0..2 {
        assert_eq!(world.attach(node), 101, "attach");
    }
    for node in 0..2 {
        assert_eq!(world.connect(node), 1, "connect");
    }
    let connected = |world: &World| (0..2).all(|node| world.status(node).state.conn == Conn::Connected);
    world.run_until("connected", 10_000, connected);
    assert_eq!(world.admin(0, AdminRequest::Primary { volume: VOLUME, force: true }), 1);
    world.run_until("resync", 300_000, |world| {
        (0..2).all(|node| {
            let state = world.status(node).state;
            state.conn == Conn::Connected && state.disk == Disk::UpToDate && state.pdsk == Disk::UpToDate
        })
    });
    assert_eq!(world.admin(1, AdminRequest::Primary { volume: VOLUME, force: false }), 1);
    world
}

#[test]
fn writes_that_meet_leave_both_halves_equal_and_nothing_else_behind() {
    for seed in 1..=SEEDS {
        let mut world = two_primaries(seed);
        for _ in 0..60 {
            for node in 0..2 {
                for _ in 0..world.random.between(0, 4) {
                    let count = world.random.pick(&[1, 8, 8, 16, 24]);
                    let sector = world.random.below(SPOT_SECTORS - count);
                    world.start(node, Action::Write { fua: false }, sector, count);
                }
            }
            let wait = world.random.below(20);
            world.run_for_ms(wait);
            for node in 0..2 {
                assert_eq!(world.status(node).state.conn, Conn::Connected, "seed {seed}: {}", world.describe());
            }
        }
        let open =
            |world: &World| world.operations.iter().all(|operation| operation.result.is_some() || operation.lost);
        world.run_until("all operations", 60_000, open);
        world.run_for_ms(3_000);
        for node in 0..2 {
            assert_eq!(world.status(node).state.conn, Conn::Connected, "seed {seed}: {}", world.describe());
            assert_eq!(
                world.engine_of(node).usage(),
                Default::default(),
                "seed {seed}, left over: {}",
                world.describe()
            );
            assert_eq!(world.status(node).bits_out_of_sync, 0, "seed {seed}");
        }
        let different = world.nodes[0].data.first_difference(&world.nodes[1].data, SECTORS);
        assert_eq!(different, None, "seed {seed}: the halves differ");
        for node in [1, 0] {
            assert_eq!(world.admin(node, AdminRequest::Secondary { volume: VOLUME }), 1);
        }
    }
}
