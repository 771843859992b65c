//! What the options of a connection decide where the generations alone do not: `always-asbp`, `rr-conflict`. (The rules themselves have
//! tests beside the code, `engine::handshake`; these see that the options of the connection get there.)

use engine::netlink::{AfterSplitBrain, NetConf};
use engine::resource::{AdminRequest, Helper};
use engine::state::{Conn, Role};
use simulator::node::VOLUME;
use simulator::scenario::{all_the_same, synced_with, PRIMARY, SECONDARY, WRITE};
use simulator::{Config, World};

const SEEDS: u64 = 20;

const NEW_GENERATION: AdminRequest<'static> = AdminRequest::NewCurrentUuid { volume: VOLUME, clear_bitmap: false };

/// Both nodes, node 0 Primary, with a connection of these options; then the network is cut.
fn parted(seed: u64, options: impl Fn(&mut NetConf)) -> World {
    let mut config = Config::new(seed);
    options(&mut config.net);
    let mut world = synced_with(config);
    cut(&mut world);
    world
}

fn cut(world: &mut World) {
    world.set_network(false);
    wait_both(world, Conn::WFConnection);
}

fn wait_both(world: &mut World, conn: Conn) {
    world.run_until(&format!("{conn:?}"), 60_000, |world| (0..2).all(|node| world.status(node).state.conn == conn));
}

/// Each has gone on for two generations since the nodes were parted: what they had in common is history.
fn far_apart(seed: u64, always_asbp: bool) -> World {
    let mut world = parted(seed, |net| {
        net.after_sb_0p = AfterSplitBrain::DiscardLeastChanges;
        net.always_asbp = always_asbp;
    });
    // A generation that both have behind them.
    assert_eq!(world.io(0, WRITE, 0, 8), Ok(()));
    world.set_network(true);
    all_the_same(&mut world);
    cut(&mut world);
    assert_eq!(world.admin(1, PRIMARY), 1);
    for (node, blocks) in [(0, 20), (1, 3)] {
        for block in 0..blocks {
            assert_eq!(world.io(node, WRITE, 800 + block * 8, 8), Ok(()));
        }
        assert_eq!(world.admin(node, SECONDARY), 1);
        assert_eq!(world.admin(node, AdminRequest::Disconnect { force: false }), 101);
        assert_eq!(world.admin(node, NEW_GENERATION), 101, "seed {seed}, node {node}");
    }
    world.set_network(true);
    for node in 0..2 {
        assert_eq!(world.connect(node), 1);
    }
    world
}

#[test]
fn a_split_brain_without_common_bitmaps_is_left_to_the_policies_with_always_asbp() {
    for seed in 1..=SEEDS {
        let mut world = far_apart(seed, true);
        let kept = world.nodes[0].data.get(800);
        all_the_same(&mut world);
        assert_eq!(world.nodes[1].data.get(800), kept, "seed {seed}: who wrote less was the source");
    }
}

#[test]
fn a_split_brain_without_common_bitmaps_is_refused_without_always_asbp() {
    for seed in 1..=SEEDS {
        let mut world = far_apart(seed, false);
        let held = [0, 1].map(|node| world.nodes[node].data.get(800));
        assert_ne!(held[0], held[1]);
        wait_both(&mut world, Conn::StandAlone);
        world.run_for_ms(3_000);
        assert_eq!([0, 1].map(|node| world.nodes[node].data.get(800)), held, "seed {seed}");
    }
}

/// A Primary meets a node that has been promoted meanwhile and has written more, and by the after-split-brain policies that is to be kept.
fn losing_primary(seed: u64, rr_conflict: AfterSplitBrain) -> World {
    let mut world = parted(seed, |net| {
        net.after_sb_0p = AfterSplitBrain::DiscardLeastChanges;
        net.after_sb_1p = AfterSplitBrain::Violently;
        net.rr_conflict = rr_conflict;
    });
    assert_eq!(world.admin(1, PRIMARY), 1);
    for block in 0..5 {
        assert_eq!(world.io(1, WRITE, 800 + block * 8, 8), Ok(()));
    }
    assert_eq!(world.admin(1, SECONDARY), 1);
    world.helpers.clear();
    world.set_network(true);
    world
}

#[test]
fn a_losing_primary_is_the_target_when_rr_conflict_is_violently() {
    for seed in 1..=SEEDS {
        let mut world = losing_primary(seed, AfterSplitBrain::Violently);
        all_the_same(&mut world);
        assert_ne!(world.nodes[0].data.get(800), 0, "seed {seed}");
        assert_eq!(world.status(0).state.role, Role::Primary);
        assert_eq!(world.warned_of_loss, 1, "seed {seed}: the log does not tell");
    }
}

#[test]
fn a_losing_primary_keeps_its_data_otherwise() {
    for (rr_conflict, calls) in [(AfterSplitBrain::Disconnect, false), (AfterSplitBrain::CallPriLost, true)] {
        for seed in 1..=SEEDS {
            let mut world = losing_primary(seed, rr_conflict);
            world.run_until("refused", 60_000, |world| world.status(0).state.conn == Conn::StandAlone);
            world.run_for_ms(3_000);
            assert_eq!(world.nodes[0].data.get(800), 0, "seed {seed}");
            let called = world.helpers.contains(&(0, Helper::PriLost));
            assert_eq!(called, calls, "seed {seed}: {rr_conflict:?}");
            assert_eq!(world.warned_of_loss, 0, "seed {seed}: {rr_conflict:?}");
        }
    }
}
