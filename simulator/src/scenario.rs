//! How the named scenarios of the tests begin and end, and what they ask for most.

use crate::node::VOLUME;
use crate::world::Action;
use crate::{Config, World};
use engine::resource::AdminRequest;
use engine::state::{Conn, Disk};

/// A write without FUA.
pub const WRITE: Action = Action::Write { fua: false };
/// `primary`.
pub const PRIMARY: AdminRequest<'static> = primary(false);
/// `secondary`.
pub const SECONDARY: AdminRequest<'static> = AdminRequest::Secondary { volume: VOLUME };
/// `detach`.
pub const DETACH: AdminRequest<'static> = AdminRequest::Detach { volume: VOLUME, force: false };
/// `detach --force`.
pub const FORCE_DETACH: AdminRequest<'static> = AdminRequest::Detach { volume: VOLUME, force: true };

/// `primary`, perhaps with `--force`.
pub const fn primary(force: bool) -> AdminRequest<'static> {
    AdminRequest::Primary { volume: VOLUME, force }
}

/// What takes the place of a scenario's seed: `SCENARIO_SEED` asks for other ones, and so for other delays, of all of them.
pub(crate) fn seed(of_scenario: u64) -> u64 {
    let others = std::env::var("SCENARIO_SEED").ok().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    of_scenario.wrapping_add(others << 32)
}

/// Both nodes are connected, and both disks good.
pub fn good(world: &World) -> bool {
    (0..2).all(|node| {
        let state = world.status(node).state;
        (state.conn, state.disk, state.pdsk) == (Conn::Connected, Disk::UpToDate, Disk::UpToDate)
    })
}

/// Both disks are attached, and the nodes have met.
#[track_caller]
pub fn connected(world: &mut World) {
    for node in 0..2 {
        assert_eq!(world.attach(node), 101, "attach");
    }
    for node in 0..2 {
        assert_eq!(world.connect(node), 1, "connect");
    }
    world.run_until("connected", 10_000, |world| (0..2).all(|node| world.status(node).state.conn == Conn::Connected));
}

/// The same, node 0 was made Primary with `--force`, and its whole disk has been copied.
#[track_caller]
pub fn synced(world: &mut World) {
    connected(world);
    assert_eq!(world.admin(0, primary(true)), 1, "primary --force");
    up_to_date(world);
}

/// Waits until both disks are good.
#[track_caller]
pub fn up_to_date(world: &mut World) {
    world.run_until("resync", 300_000, good);
}

/// Waits until a node has noticed that it has lost the peer.
#[track_caller]
pub fn alone(world: &mut World, node: usize) {
    world.run_until("loss noticed", 60_000, |world| world.status(node).state.conn == Conn::WFConnection);
}

/// Both nodes UpToDate and connected, node 0 Primary, without a resync.
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
    up_to_date(world);
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
