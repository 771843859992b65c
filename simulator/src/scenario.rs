//! How the named scenarios of the tests begin and end.

use crate::node::VOLUME;
use crate::{Config, World};
use engine::resource::AdminRequest;
use engine::state::{Conn, Disk};

/// Both nodes are connected, and both disks good.
pub fn good(world: &World) -> bool {
    (0..2).all(|node| {
        let state = world.status(node).state;
        (state.conn, state.disk, state.pdsk) == (Conn::Connected, Disk::UpToDate, Disk::UpToDate)
    })
}

/// Both nodes UpToDate and connected, node 0 Primary.
#[track_caller]
pub fn synced_with(config: Config) -> World {
    let mut world = World::new(config);
    for node in 0..2 {
        assert_eq!(world.attach(node), 101);
        assert_eq!(world.connect(node), 1);
    }
    world.run_until("connected", 10_000, |world| (0..2).all(|node| world.status(node).state.conn == Conn::Connected));
    world.run_for_ms(100);
    assert_eq!(world.admin(0, AdminRequest::NewCurrentUuid { volume: VOLUME, clear_bitmap: true }), 101);
    world.run_until("skipped sync", 10_000, good);
    assert_eq!(world.admin(0, AdminRequest::Primary { volume: VOLUME, force: false }), 1);
    world
}

/// The nodes come together, and are equal as far as the device goes.
#[track_caller]
pub fn all_the_same(world: &mut World) {
    world.run_until("resync", 300_000, good);
    world.run_for_ms(3_000);
    let sizes = [0, 1].map(|node| world.status(node).size_sectors);
    assert_eq!(sizes[0], sizes[1], "the sizes differ");
    assert_eq!(world.nodes[0].data.first_difference(&world.nodes[1].data, sizes[0]), None, "the halves differ");
}

/// A node that lost its power boots, attaches its disk and connects.
#[track_caller]
pub fn come_back(world: &mut World, node: usize) {
    world.boot(node);
    assert_eq!(world.attach(node), 101);
    assert_eq!(world.connect(node), 1);
}
