//! I/O that is frozen goes on as it should: while the peer is being fenced, while no data is in reach, while the
//! administrator wants it.

use engine::metadata::superblock::{UI_BITMAP, UI_CURRENT};
use engine::netlink::{Fencing, OnIoError, OnNoData, ReadBalancing, ResourceOpts};
use engine::resource::{AdminRequest, Helper, LinkFailure};
use engine::state::{Conn, Disk, Role};
use simulator::node::VOLUME;
use simulator::scenario::{self, up_to_date, WRITE};
use simulator::world::Action;
use simulator::{Config, World};

const SEEDS: u64 = 5;

fn with_fencing(fencing: Fencing, scenario: impl Fn(World)) {
    for seed in 1..=SEEDS {
        let mut config = Config::new(seed);
        config.disk.fencing = fencing;
        scenario(World::new(config));
    }
}

/// Node 0 Primary, both UpToDate.
fn synced(world: &mut World) {
    scenario::synced(world);
    world.helpers.clear();
}

fn suspend_without_data(world: &mut World) {
    for node in 0..2 {
        let conf = ResourceOpts { on_no_data: OnNoData::SuspendIo, ..ResourceOpts::default() };
        assert_eq!(world.admin(node, AdminRequest::ResourceOptions { conf: &conf }), 101);
    }
}

/// Waits until a Primary that has let its disk go has heard of the generation that its peer has begun because of that: when they meet again it
/// takes no other data.
#[track_caller]
fn generation_heard(world: &mut World) {
    let heard = |world: &World| {
        let uuids = world.superblock(1).uuids;
        uuids[UI_BITMAP] != 0 && (world.status(0).exposed_uuid ^ uuids[UI_CURRENT]) & !1 == 0
    };
    world.run_until("the generation", 1_000, heard);
}

/// Seed 9003727, where the disk was back when its refusal came: a read that the peer could not do failed though the next path was the
/// peer again. So did one whose refusal overtook the state that tells of the failed disk.
#[test]
fn a_read_that_the_peer_cannot_do_waits_for_data_with_the_others() {
    for seed in 1..=20 * SEEDS {
        let mut world = World::new(Config::new(seed));
        synced(&mut world);
        suspend_without_data(&mut world);
        assert_eq!(world.admin(0, AdminRequest::Detach { volume: VOLUME, force: false }), 1);
        world.run_until("detached", 10_000, |world| !world.status(0).has_disk);
        world.nodes[1].faults.read_percent = 100;
        let reads = [0, 64, 128, 192].map(|sector| world.start(0, Action::Read, sector, 8));
        world.run_until("no data", 10_000, |world| world.is_suspended(0));
        world.run_for_ms(1_000);
        assert_eq!(reads.map(|read| world.operations[read].result), [None; 4], "seed {seed}");
        world.nodes[1].faults.read_percent = 0;
        assert_eq!(world.attach(1), 101, "seed {seed}");
        let done = |world: &World| reads.iter().all(|&read| world.operations[read].result == Some(Ok(())));
        world.run_until("the reads", 10_000, done);
    }
}

/// Seed 12004469: what the gate had held back began with the demotion, reads and writes that waited for the activity log and then
/// failed, and was taken for writes that the peer may lose.
#[test]
fn a_demotion_without_data_lets_the_reads_go_on_and_the_writes_fail() {
    for seed in 1..=SEEDS {
        let mut config = Config::new(seed);
        config.disk.on_io_error = OnIoError::PassOn;
        let mut world = World::new(config);
        synced(&mut world);
        suspend_without_data(&mut world);
        assert_eq!(world.admin(1, AdminRequest::Detach { volume: VOLUME, force: false }), 1);
        world.nodes[0].faults.write_percent = 100;
        let mut writes = vec![world.start(0, WRITE, 0, 8)];
        world.run_until("no data", 10_000, |world| world.is_suspended(0));
        world.nodes[0].faults.write_percent = 0;
        // Each in an extent of its own.
        writes.extend((2..15).map(|extent| world.start(0, WRITE, 8_192 * extent, 8)));
        let reads: Vec<usize> = (0..100).map(|turn| world.start(0, Action::Read, 8_000 + 8 * turn, 8)).collect();
        assert_eq!(world.admin(0, AdminRequest::Secondary { volume: VOLUME }), 1);
        world.run_for_ms(1_000);
        let result = |operation: &usize| world.operations[*operation].result;
        assert!(writes.iter().all(|write| matches!(result(write), Some(Err(_)))), "seed {seed}");
        assert!(reads.iter().all(|read| result(read) == Some(Ok(()))), "seed {seed}");
    }
}

/// Seed 16000262: the peer's refusal of a read was here before the sender had told that the request is out. The read went to the peer again,
/// and that was taken for being told of this packet, which was then never sent.
#[test]
fn a_read_that_is_refused_while_it_is_sent_is_tried_again() {
    for seed in 1..=20 * SEEDS {
        let mut config = Config::new(seed);
        config.disk.read_balancing = ReadBalancing::PreferRemote;
        config.sent_us_most = 20_000;
        let mut world = World::new(config);
        synced(&mut world);
        world.nodes[1].faults.read_percent = 100;
        let reads = [0, 64, 128, 192].map(|sector| world.start(0, Action::Read, sector, 8));
        let done = |world: &World| reads.iter().all(|&read| world.operations[read].result == Some(Ok(())));
        world.run_until("the reads", 10_000, done);
    }
}

/// How often node 0 had its peer fenced.
fn fenced(world: &World) -> usize {
    world.helpers.iter().filter(|&&call| call == (0, Helper::FencePeer)).count()
}

/// Nothing is under way, the halves are the same.
#[track_caller]
fn quiet(world: &mut World) {
    world.run_for_ms(3_000);
    for node in 0..2 {
        assert_eq!(world.engine_of(node).usage(), Default::default(), "left over: {}", world.describe());
    }
    let sectors = world.config.sectors;
    assert_eq!(world.nodes[0].data.first_difference(&world.nodes[1].data, sectors), None, "the halves differ");
}

fn lose_the_peer(world: &mut World) {
    world.set_network(false);
    world.run_until("loss noticed", 60_000, |world| world.status(0).state.conn == Conn::WFConnection);
}

#[track_caller]
fn ends(world: &mut World, operation: usize) {
    world.run_until("the write", 5_000, |world| world.operations[operation].result.is_some());
    assert_eq!(world.operations[operation].result, Some(Ok(())));
}

#[test]
fn frozen_until_the_peer_is_fenced() {
    for (exit_code, pdsk) in [(3, Disk::Inconsistent), (4, Disk::Outdated), (5, Disk::Outdated), (7, Disk::Outdated)] {
        with_fencing(Fencing::ResourceAndStonith, |mut world| {
            synced(&mut world);
            let before = world.status(0).uuids[UI_CURRENT] & !1;
            world.helper_exit_code = exit_code;
            world.set_network(false);
            let write = world.start(0, WRITE, 8, 8);
            ends_later(&mut world, write);
            world.run_until("fenced", 60_000, |world| world.status(0).state.pdsk == pdsk);
            assert_eq!(fenced(&world), 1);
            assert_eq!(world.status(0).uuids[UI_BITMAP] & !1, before, "a new generation");
            let more = world.start(0, WRITE, 800, 8);
            ends(&mut world, more);
            world.helper_exit_code = 0;
            world.set_network(true);
            up_to_date(&mut world);
            world.run_for_ms(1_000);
            assert!(world.helpers.contains(&(0, Helper::UnfencePeer)), "{:?}", world.helpers);
            quiet(&mut world);
        });
    }
}

/// It is acknowledged when the peer is known to be fenced, not before.
#[track_caller]
fn ends_later(world: &mut World, write: usize) {
    world.run_until("the write", 60_000, |world| {
        let done = world.operations[write].result.is_some();
        assert!(!done || world.status(0).state.pdsk <= Disk::Outdated, "acknowledged before the peer was fenced");
        done
    });
    assert_eq!(world.operations[write].result, Some(Ok(())));
}

#[test]
fn frozen_until_the_peer_is_back_where_nobody_could_fence_it() {
    with_fencing(Fencing::ResourceAndStonith, |mut world| {
        synced(&mut world);
        let before = world.status(0).uuids[UI_CURRENT];
        world.helper_exit_code = 1;
        world.set_network(false);
        let write = world.start(0, WRITE, 8, 8);
        world.run_for_ms(60_000);
        assert_eq!((world.operations[write].result, fenced(&world)), (None, 1));
        world.set_network(true);
        ends(&mut world, write);
        up_to_date(&mut world);
        assert_eq!(world.status(0).uuids[UI_CURRENT], before, "nothing was written that the peer does not have");
        quiet(&mut world);
    });
}

#[test]
fn resource_only_does_not_freeze() {
    with_fencing(Fencing::ResourceOnly, |mut world| {
        synced(&mut world);
        world.helper_exit_code = 4;
        lose_the_peer(&mut world);
        let write = world.start(0, WRITE, 8, 8);
        ends(&mut world, write);
        world.run_until("fenced", 10_000, |world| world.status(0).state.pdsk == Disk::Outdated);
    });
}

#[test]
fn the_peer_serves_so_the_own_data_gets_old() {
    with_fencing(Fencing::ResourceOnly, |mut world| {
        synced(&mut world);
        assert_eq!(world.admin(0, AdminRequest::Secondary { volume: VOLUME }), 1);
        world.helper_exit_code = 6;
        lose_the_peer(&mut world);
        assert_ne!(world.admin(0, AdminRequest::Primary { volume: VOLUME, force: false }), 1);
        let state = world.status(0).state;
        assert_eq!((state.role, state.disk), (Role::Secondary, Disk::Outdated));
    });
}

#[test]
fn a_promotion_needs_a_fenced_peer() {
    with_fencing(Fencing::ResourceOnly, |mut world| {
        synced(&mut world);
        assert_eq!(world.admin(0, AdminRequest::Secondary { volume: VOLUME }), 1);
        world.helper_exit_code = 1;
        lose_the_peer(&mut world);
        // Asked for four times, each time in vain.
        assert_eq!(world.admin(0, AdminRequest::Primary { volume: VOLUME, force: false }), -7);
        assert_eq!(fenced(&world), 4);
        world.helper_exit_code = 7;
        assert_eq!(world.admin(0, AdminRequest::Primary { volume: VOLUME, force: false }), 1);
        assert_eq!(world.status(0).state.pdsk, Disk::Outdated);
    });
}

#[test]
fn force_promotes_though_the_peer_is_not_fenced() {
    with_fencing(Fencing::ResourceOnly, |mut world| {
        synced(&mut world);
        assert_eq!(world.admin(0, AdminRequest::Secondary { volume: VOLUME }), 1);
        world.helper_exit_code = 1;
        lose_the_peer(&mut world);
        assert_eq!(world.admin(0, AdminRequest::Primary { volume: VOLUME, force: true }), 1);
        assert_eq!((world.status(0).state.pdsk, fenced(&world)), (Disk::Outdated, 1));
    });
}

#[test]
fn without_data_writes_wait_for_the_peer() {
    with_fencing(Fencing::DontCare, |mut world| {
        synced(&mut world);
        suspend_without_data(&mut world);
        assert_eq!(world.admin(0, AdminRequest::Detach { volume: VOLUME, force: false }), 1);
        let write = world.start(0, WRITE, 8, 8);
        ends(&mut world, write);
        generation_heard(&mut world);
        world.set_network(false);
        let write = world.start(0, WRITE, 16, 8);
        world.run_for_ms(60_000);
        let read = world.start(0, Action::Read, 8, 8);
        world.run_for_ms(1_000);
        assert_eq!((world.operations[write].result, world.operations[read].result), (None, None));
        world.set_network(true);
        ends(&mut world, write);
        ends(&mut world, read);
        assert_eq!(world.attach(0), 101);
        up_to_date(&mut world);
        quiet(&mut world);
    });
}

/// A read that the peer had not answered when the connection was lost is asked for again when that is back.
#[test]
fn without_data_a_read_under_way_waits_for_the_peer() {
    with_fencing(Fencing::DontCare, |mut world| {
        synced(&mut world);
        suspend_without_data(&mut world);
        assert_eq!(world.io(0, WRITE, 8, 8), Ok(()));
        assert_eq!(world.admin(0, AdminRequest::Detach { volume: VOLUME, force: false }), 1);
        generation_heard(&mut world);
        world.nodes[1].faults.hangs = true;
        let read = world.start(0, Action::Read, 8, 8);
        world.run_for_ms(10);
        world.reset_connection();
        world.run_for_ms(10);
        assert_eq!(world.operations[read].result, None, "frozen");
        world.nodes[1].faults.hangs = false;
        ends(&mut world, read);
        assert_eq!(world.attach(0), 101);
        up_to_date(&mut world);
        quiet(&mut world);
    });
}

#[test]
fn without_data_writes_wait_for_the_disk() {
    with_fencing(Fencing::DontCare, |mut world| {
        synced(&mut world);
        suspend_without_data(&mut world);
        lose_the_peer(&mut world);
        world.nodes[0].faults.write_percent = 100;
        world.nodes[0].faults.read_percent = 100;
        let write = world.start(0, WRITE, 8, 8);
        world.run_until("the disk is let go", 60_000, |world| !world.status(0).has_disk);
        world.run_for_ms(1_000);
        assert_eq!(world.operations[write].result, None);
        world.nodes[0].faults.write_percent = 0;
        world.nodes[0].faults.read_percent = 0;
        assert_eq!(world.attach(0), 101);
        ends(&mut world, write);
        world.set_network(true);
        up_to_date(&mut world);
        quiet(&mut world);
    });
}

#[test]
fn suspended_by_the_administrator() {
    with_fencing(Fencing::DontCare, |mut world| {
        synced(&mut world);
        assert_eq!(world.admin(0, AdminRequest::SuspendIo { volume: VOLUME }), 1);
        let write = world.start(0, WRITE, 8, 8);
        lose_the_peer(&mut world);
        world.run_for_ms(5_000);
        assert_eq!(world.operations[write].result, None);
        assert_eq!(world.admin(0, AdminRequest::ResumeIo { volume: VOLUME }), 1);
        ends(&mut world, write);
        world.set_network(true);
        up_to_date(&mut world);
        quiet(&mut world);
    });
}

#[test]
fn a_demotion_puts_the_bitmap_on_the_disk() {
    with_fencing(Fencing::DontCare, |mut world| {
        synced(&mut world);
        assert_eq!(world.admin(1, AdminRequest::Detach { volume: VOLUME, force: false }), 1);
        world.reset_connection();
        world.run_for_ms(3_000);
        let write = world.start(0, WRITE, 8, 8);
        ends(&mut world, write);
        world.run_for_ms(1_000);
        assert_eq!(world.admin(0, AdminRequest::Secondary { volume: VOLUME }), 1);
        world.power_cut(0);
        world.boot(0);
        assert_eq!(world.attach(0), 101);
        assert_eq!(world.status(0).bits_out_of_sync, 1);
    });
}

/// Seed 21000275: the last barrier was not waited for since I/O was frozen, though the connection stood. What the peer had acknowledged was
/// in the cache of its disk only, both lost their power, and neither disk told of a difference.
#[test]
fn a_demotion_while_io_is_frozen_waits_for_the_last_barrier() {
    for seed in 1..=4 * SEEDS {
        let mut world = World::new(Config::new(seed));
        synced(&mut world);
        for block in 0..20 {
            world.start(0, WRITE, block * 8, 8);
        }
        world.run_until("the writes", 10_000, |world| world.open_operations() == 0);
        assert_eq!(world.admin(0, AdminRequest::SuspendIo { volume: VOLUME }), 1);
        world.power_cut(1);
        world.ask(0, AdminRequest::Secondary { volume: VOLUME });
        let pause = seed * 100;
        world.run_for_ms(pause);
        world.power_cut(0);
        for node in 0..2 {
            world.boot(node);
            assert_eq!(world.attach(node), 101, "seed {seed}");
            assert_eq!(world.connect(node), 1, "seed {seed}");
        }
        up_to_date(&mut world);
        quiet(&mut world);
    }
}

/// Both disks are lost at the same time, and the Primary's comes back first. That the peer lacks what it is given from then on was
/// not recorded, because there was no disk to record it on when the peer's was heard to be lost. Seed 6007154.
#[test]
fn a_disk_that_comes_back_records_that_the_peer_has_none() {
    for seed in 1..=2 * SEEDS {
        let mut world = World::new(Config::new(seed));
        synced(&mut world);
        suspend_without_data(&mut world);
        let detach = AdminRequest::Detach { volume: VOLUME, force: true };
        world.set_direction(1, false);
        let early = (seed % 2 == 0).then(|| world.start(0, WRITE, 0, 8));
        if early.is_some() {
            world.run_until("written by the peer", 1_000, |world| world.packets_sent.contains_key("P_WRITE_ACK"));
        }
        world.run_for_ms(10);
        for node in [1, 0] {
            world.ask(node, detach);
            world.run_until("detached", 1_000, |world| world.status(node).state.disk == Disk::Diskless);
        }
        world.set_direction(1, true);
        world.run_until("no disk", 1_000, |world| world.status(0).state.pdsk == Disk::Diskless);
        let write = early.unwrap_or_else(|| world.start(0, WRITE, 0, 8));
        world.run_for_ms(1_000);
        if early.is_none() {
            assert_eq!(world.operations[write].result, None, "frozen");
        }
        assert_eq!(world.attach(0), 101);
        ends(&mut world, write);
        if early.is_some() {
            // The peer has it as well.
            world.run_for_ms(10);
        }
        assert_ne!(world.superblock(0).uuids[UI_BITMAP], 0);
        assert_eq!(world.attach(1), 101);
        up_to_date(&mut world);
        quiet(&mut world);
    }
}

/// The peer is back, but without a disk, and attaches it later: what is frozen waits for that, and fails at no time.
#[test]
fn without_data_writes_wait_for_the_disk_of_the_peer() {
    for seed in 1..=SEEDS {
        let mut world = World::new(Config::new(seed));
        synced(&mut world);
        suspend_without_data(&mut world);
        let detach = AdminRequest::Detach { volume: VOLUME, force: true };
        world.ask(0, detach);
        world.run_until("detached", 1_000, |world| world.status(0).state.disk == Disk::Diskless);
        generation_heard(&mut world);
        lose_the_peer(&mut world);
        let write = world.start(0, WRITE, 0, 8);
        world.ask(1, detach);
        world.run_until("detached", 1_000, |world| world.status(1).state.disk == Disk::Diskless);
        world.set_network(true);
        world.run_until("connected", 60_000, |world| world.status(0).state.conn == Conn::Connected);
        world.run_for_ms(1_000);
        assert!(world.is_suspended(0));
        assert_eq!(world.operations[write].result, None, "frozen");
        assert_eq!(world.attach(1), 101);
        ends(&mut world, write);
        assert_eq!(world.attach(0), 101);
        up_to_date(&mut world);
        quiet(&mut world);
    }
}

/// What the peer had acknowledged was not sent again when it was back, though it was still in the cache of its disk, and no barrier
/// of the new connection speaks of it. Seed 6006144.
#[test]
fn what_the_peer_acknowledged_before_io_froze_survives_its_power_cut() {
    for seed in 1..=SEEDS {
        let mut config = Config { internal: false, ..Config::new(seed) };
        config.disk.fencing = Fencing::ResourceAndStonith;
        let mut world = World::new(config);
        synced(&mut world);
        world.helper_exit_code = 1;
        for block in 0..40 {
            world.start(0, WRITE, block * 8, 8);
        }
        world.run_until("the writes", 1_000, |world| world.operations.iter().all(|write| write.result.is_some()));
        world.reset_connection();
        world.run_until("frozen", 60_000, |world| world.is_suspended(0));
        world.run_until("back", 60_000, |world| !world.is_suspended(0));
        world.helper_exit_code = 4;
        world.power_cut(1);
        world.run_until("fenced", 60_000, |world| world.status(0).state.pdsk == Disk::Outdated);
        world.helper_exit_code = 0;
        world.boot(1);
        assert_eq!(world.attach(1), 101, "attach");
        assert_eq!(world.connect(1), 1, "connect");
        up_to_date(&mut world);
        quiet(&mut world);
    }
}

/// A Primary without a disk meets older data, and refuses it. A generation that the other node had begun for what that Primary was
/// going to write made it a split brain when the disk was back. Seeds 1337, 3016501 and 3018582.
#[test]
fn a_primary_that_refuses_older_data_begins_no_generation_there() {
    for seed in 1..=2 * SEEDS {
        let mut world = World::new(Config::new(seed));
        synced(&mut world);
        lose_the_peer(&mut world);
        assert_eq!(world.io(0, WRITE, 0, 8), Ok(()));
        world.ask(0, AdminRequest::Detach { volume: VOLUME, force: true });
        world.run_until("detached", 1_000, |world| world.status(0).state.disk == Disk::Diskless);
        world.set_network(true);
        world.run_until("refusal", 60_000, |world| world.status(0).state.conn == Conn::StandAlone);
        assert_eq!(world.attach(0), 101);
        assert_eq!(world.connect(0), 1);
        up_to_date(&mut world);
        quiet(&mut world);
    }
}

/// The same Primary with the same data: the generation begins with its first write, and is durable before that is acknowledged.
#[test]
fn the_first_write_of_a_primary_that_connects_without_a_disk_begins_a_generation() {
    for seed in 1..=4 * SEEDS {
        let mut config = Config::new(seed);
        config.disk.fencing = Fencing::ResourceAndStonith;
        config.resource.on_no_data = OnNoData::SuspendIo;
        let mut world = World::new(config);
        synced(&mut world);
        world.helper_exit_code = 1;
        lose_the_peer(&mut world);
        world.ask(0, AdminRequest::Detach { volume: VOLUME, force: true });
        world.run_until("detached", 1_000, |world| world.status(0).state.disk == Disk::Diskless);
        world.helper_exit_code = 0;
        let before = world.superblock(1).uuids;
        world.set_network(true);
        world.run_until("connected", 60_000, |world| world.status(0).state.conn == Conn::Connected);
        world.run_for_ms(100);
        assert_eq!(world.superblock(1).uuids, before);
        assert_eq!(world.io(0, WRITE, 0, 8), Ok(()));
        let after = world.superblock(1).uuids;
        assert_ne!(after[UI_CURRENT], before[UI_CURRENT]);
        assert_eq!(after[UI_BITMAP] & !1, before[UI_CURRENT] & !1);
        world.run_for_us(seed * 20);
        world.power_cut(0);
        world.boot(0);
        assert_eq!(world.attach(0), 101);
        assert_eq!(world.connect(0), 1);
        up_to_date(&mut world);
        quiet(&mut world);
    }
}

/// A write that began while the Primary had no disk was sent again when both the disk and the peer were back, and not written here.
/// Seed 689.
#[test]
fn a_write_that_began_without_a_disk_is_on_it_when_both_are_back() {
    with_fencing(Fencing::ResourceOnly, |mut world| {
        synced(&mut world);
        world.helper_exit_code = 1;
        suspend_without_data(&mut world);
        world.set_direction(0, false);
        world.ask(0, AdminRequest::Detach { volume: VOLUME, force: true });
        world.run_until("detached", 1_000, |world| world.status(0).state.disk == Disk::Diskless);
        let write = world.start(0, WRITE, 0, 8);
        world.run_for_ms(10);
        world.set_network(false);
        world.run_until("loss noticed", 60_000, |world| world.status(0).state.conn == Conn::WFConnection);
        assert_eq!(world.operations[write].result, None, "frozen");
        assert_eq!(world.attach(0), 101);
        assert_eq!(world.status(0).state.disk, Disk::Consistent);
        world.helper_exit_code = 0;
        // Otherwise it would still hear of the lost disk over the old connection, and begin a generation that node 0 does not know.
        scenario::alone(&mut world, 1);
        world.set_network(true);
        ends(&mut world, write);
        up_to_date(&mut world);
        quiet(&mut world);
    });
}

/// Seed 10015447: a Primary let its disk go and was taking it back when the peer, which had not heard of either, was lost. Both have
/// the same generation, and it is the source, because its disk counts as that of a crashed one. What was frozen was done on
/// it and acknowledged while the bitmaps were exchanged, when no disk told yet that the peer's is out of date.
#[test]
fn nothing_is_acknowledged_before_a_disk_tells_that_the_peers_is_out_of_date() {
    let mut sources = 0;
    for seed in 1..=60 * SEEDS {
        // A sender that is slow to go on: the peer hears of everything late.
        let mut config = Config { sent_us_most: 60_000, ..Config::new(seed) };
        config.disk.fencing = Fencing::ResourceOnly;
        config.resource.on_no_data = OnNoData::SuspendIo;
        let mut world = World::new(config);
        synced(&mut world);
        world.helper_exit_code = 1;
        let write = world.start(0, WRITE, 0, 8);
        world.ask(0, AdminRequest::Detach { volume: VOLUME, force: true });
        world.run_until("detached", 1_000, |world| world.status(0).state.disk == Disk::Diskless);
        world.run_for_ms(5);
        if world.status(1).state.pdsk != Disk::UpToDate || world.start_attach(0) != Ok(()) {
            continue;
        }
        world.run_for_us(100);
        world.reset_connection();
        if world.status(1).state.pdsk != Disk::UpToDate {
            // It has heard of the lost disk after all.
            continue;
        }
        world.run_until("loss noticed", 60_000, |world| world.status(0).state.conn < Conn::Connected);
        world.run_until("meeting", 60_000, |world| world.status(0).state.conn > Conn::WFReportParams);
        sources += u32::from(world.status(0).state.conn == Conn::WFBitMapS);
        ends(&mut world, write);
    }
    assert!(sources > 0, "never met");
}

/// Seed 19006531 of runs with several volumes: a write of a Primary that is the target of a resync was acknowledged while I/O was frozen, and the
/// connection lost. The next bitmaps marked its block on both nodes; when I/O went on the target took it for in sync, and the source did not.
#[test]
fn what_the_peer_cleared_before_the_bitmaps_were_exchanged_is_marked_again() {
    for seed in 1..=4 * SEEDS {
        let mut config = Config::new(seed);
        config.disk.c_plan_ahead = 0;
        config.disk.resync_rate = 20_000;
        let mut world = World::new(config);
        synced(&mut world);
        world.ask(0, AdminRequest::Invalidate { volume: VOLUME });
        let syncs = |world: &World| world.status(0).state.conn == Conn::SyncTarget;
        world.run_until("the target", 60_000, syncs);
        assert_eq!(world.poll_admin(0), Some(1));
        world.set_direction(1, false);
        let held = world.start(0, WRITE, 130_000, 8);
        world.run_for_ms(5);
        assert_eq!(world.admin(0, AdminRequest::SuspendIo { volume: VOLUME }), 1);
        world.set_direction(1, true);
        world.run_for_ms(50);
        assert!(world.operations[held].answered && world.operations[held].result.is_none(), "seed {seed}");
        world.reset_connection();
        world.run_until("loss noticed", 10_000, |world| !syncs(world));
        world.run_until("the target again", 60_000, syncs);
        assert_eq!(world.admin(0, AdminRequest::ResumeIo { volume: VOLUME }), 1);
        up_to_date(&mut world);
        assert_eq!(world.operations[held].result, Some(Ok(())), "seed {seed}");
    }
}

/// Seed 19003179 with several volumes: I/O was frozen, and the next connection had digests, with which there is no packet for zeroes. The
/// write of zeroes that waited for it was acknowledged with the peer connected, which lacked it, in the old generation; one that had not been
/// sent before was sent all the same.
#[test]
fn zeroes_that_the_next_connection_does_not_take_mean_a_new_generation() {
    for early in [true, false] {
        with_fencing(Fencing::ResourceAndStonith, |mut world| {
            synced(&mut world);
            world.helper_exit_code = 1;
            world.set_network(false);
            // Otherwise it waits for its place in the activity log until the connection is lost.
            world.nodes[0].faults.hangs = !early;
            let write = world.start(0, Action::WriteZeroes, 64, 8);
            world.run_until("frozen", 60_000, |world| {
                world.is_suspended(0) && (0..2).all(|node| world.status(node).state.conn < Conn::Connected)
            });
            world.nodes[0].faults.hangs = false;
            for node in 0..2 {
                assert_eq!(world.admin(node, AdminRequest::Disconnect { force: true }), 101);
            }
            world.config.net.integrity_alg = engine::resource::AlgorithmName::from_bytes(b"crc32c").unwrap();
            world.helper_exit_code = 0;
            world.run_for_ms(100);
            assert_eq!(world.operations[write].result, None);
            let sent = world.packets_sent.get("P_ZEROES").copied();
            let before = world.superblock(0).uuids[UI_CURRENT];
            assert_eq!([0, 1].map(|node| world.connect(node)), [1, 1]);
            world.set_network(true);
            world.run_until("the write", 60_000, |world| world.open_operations() == 0);
            assert_eq!(world.operations[write].result, Some(Ok(())));
            up_to_date(&mut world);
            assert_ne!(world.superblock(0).uuids[UI_CURRENT], before);
            assert_eq!(world.packets_sent.get("P_ZEROES").copied(), sent);
            assert_eq!(world.nodes[0].data.first_difference(&world.nodes[1].data, world.config.sectors), None);
        });
    }
}

/// The peer agrees and closes the connection. The end of the data socket may be here before the consent on the other one is.
#[test]
fn a_peer_that_has_agreed_to_part_is_not_fenced() {
    for seed in 1..=10 * SEEDS {
        let mut config = Config::new(seed);
        config.disk.fencing = Fencing::ResourceOnly;
        config.trace = true;
        let mut world = World::new(config);
        synced(&mut world);
        assert_eq!(world.admin(0, AdminRequest::Disconnect { force: false }), 101, "seed {seed}");
        world.run_for_ms(2_000);
        let lost = world.trace().find(|line| line.contains("BrokenPipe") || line.contains("NetworkFailure"));
        assert_eq!(lost, None, "seed {seed}");
        assert!(world.helpers.iter().all(|(_, helper)| *helper != Helper::FencePeer), "seed {seed}");
        assert_eq!(world.status(0).state.conn, Conn::StandAlone, "seed {seed}");
        assert_eq!(world.status(0).state.pdsk, Disk::Outdated, "seed {seed}");
    }
}

/// It may as well have lost its power.
#[test]
fn a_peer_that_does_not_answer_before_the_connection_ends_is_lost() {
    for (failure, conn) in [(LinkFailure::DataReceive, "BrokenPipe"), (LinkFailure::MetaReceive, "NetworkFailure")] {
        let mut config = Config::new(1);
        config.trace = true;
        let mut world = World::new(config);
        synced(&mut world);
        world.set_direction(1, false);
        world.ask(0, AdminRequest::Disconnect { force: false });
        world.run_for_ms(600);
        assert_eq!(world.status(0).state.conn, Conn::Connected);
        world.engine(0, |engine, now| engine.link_failed(failure, now));
        world.run_for_ms(400);
        assert_eq!(world.status(0).state.conn, Conn::Connected);
        assert!(world.engine_of(0).awaits_reason());
        world.run_for_ms(400);
        let lost = |line: &str| line.contains("node 0 STATE Connected") && line.contains(&format!("-> {conn} "));
        assert!(world.trace().any(lost), "{failure:?}");
        assert_eq!(world.admin_answer(0), 101, "{failure:?}");
        assert_eq!(world.status(0).state.conn, Conn::StandAlone, "{failure:?}");
    }
}
