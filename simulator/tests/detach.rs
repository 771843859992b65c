//! A Primary whose disk fails, or is detached, and that loses its power before the peer has heard of it: what has been acknowledged since
//! is on the peer's disk alone, and the one that was let go must not come back as the good one.

use engine::netlink::{OnIoError, WireProtocol};
use engine::resource::{AdminRequest, Helper};
use engine::state::{Conn, Disk, Role};
use simulator::node::VOLUME;
use simulator::scenario::{all_the_same, come_back, good, synced_with, DETACH, PRIMARY, WRITE};
use simulator::world::Action;
use simulator::{Config, World};

const SEEDS: u64 = 40;

/// A sender that is slow to go on: what is queued behind a write is sent when that has long been acknowledged.
fn config(seed: u64) -> Config {
    Config { internal: false, sent_us_most: 20_000, ..Config::new(seed) }
}

#[track_caller]
fn lose_power_and_come_back(world: &mut World, seed: u64) {
    world.power_cut(0);
    world.nodes[0].faults = Default::default();
    world.run_for_ms(20);
    come_back(world, 0);
    all_the_same(world);
    world.check_acknowledged(0).unwrap_or_else(|reason| panic!("seed {seed}: {reason}"));
}

/// Seeds 9000632, 9002738: the disk was gone when the acknowledgement came, and nothing on it told that it lacked the write.
#[test]
fn a_write_that_failed_here_is_acknowledged_when_that_is_known() {
    for protocol in [WireProtocol::A, WireProtocol::B, WireProtocol::C] {
        for seed in 1..=SEEDS {
            let mut config = config(seed);
            config.net.wire_protocol = protocol;
            let mut world = synced_with(config);
            world.nodes[0].faults.write_percent = 100;
            assert_eq!(world.io(0, Action::Write { fua: true }, 0, 8), Ok(()));
            lose_power_and_come_back(&mut world, seed);
        }
    }
}

/// Seed 9004661: what was written before was in the cache of the disk that was let go, and a flush after that was acknowledged.
#[test]
fn what_a_disk_has_in_its_cache_when_it_is_let_go_is_on_it_before_a_flush_ends() {
    for seed in 1..=SEEDS {
        let mut world = synced_with(config(seed));
        assert_eq!(world.io(0, Action::Write { fua: false }, 0, 8), Ok(()));
        world.ask(0, AdminRequest::Detach { volume: VOLUME, force: true });
        world.run_for_us(seed * 20);
        assert!(world.status(0).state.disk <= Disk::Failed);
        assert_eq!(world.io(0, Action::Flush, 0, 0), Ok(()));
        lose_power_and_come_back(&mut world, seed);
    }
}

/// Seed 12001947: the next disk was attached before the peer had told that it knows of the loss of this one. Then nobody looked
/// after the write any more, everything that overlapped it waited for ever, and with that the resync.
#[test]
fn what_is_held_back_until_the_peer_knows_outlasts_the_next_attach() {
    for seed in 1..=SEEDS {
        let mut world = synced_with(config(seed));
        // The acknowledgement is on its way when the disk is let go, and the peer does not hear of that.
        world.set_direction(1, false);
        let write = world.start(0, Action::Write { fua: false }, 0, 8);
        world.run_for_ms(50);
        world.set_direction(0, false);
        assert_eq!(world.admin(0, AdminRequest::Detach { volume: VOLUME, force: true }), 1);
        world.set_direction(1, true);
        world.run_for_ms(50);
        assert!(world.operations[write].on_disk && world.operations[write].answered);
        assert_eq!(world.attach(0), 101);
        world.run_for_ms(50);
        assert!(world.operations[write].is_open(), "seed {seed}: acknowledged before the peer knows");
        world.set_direction(0, true);
        // It is the peer that tells, and not the end of the time for that.
        world.run_until("the end of the write", 1_000, |world| !world.operations[write].is_open());
        assert_eq!(world.operations[write].result, Some(Ok(())));
        all_the_same(&mut world);
    }
}

/// The program that is told of a failed disk usually switches its node off, after it has written letters. The node goes on meanwhile: the
/// peer has heard that it has the only good disk, and what is acknowledged from then on is there; the disk is let go, and another one can be
/// attached.
#[test]
fn nobody_waits_for_the_program_that_is_told_of_a_failed_disk() {
    for seed in 1..=SEEDS {
        for (weak, switches_off) in [(0, true), (0, false), (1, false)] {
            let mut config = config(seed);
            config.disk.on_io_error = OnIoError::CallLocalIoError;
            let mut world = synced_with(config);
            // Longer than everything here.
            world.programs_us = Some(3_600_000_000);
            world.nodes[weak].faults.write_percent = 100;
            assert_eq!(world.io(0, Action::Write { fua: false }, 0, 8), Ok(()));
            world.run_until("the end of the disk", 1_000, |world| !world.status(weak).has_disk);
            assert!(world.helpers.contains(&(weak, Helper::LocalIoError)), "seed {seed}");
            world.programs_us = None;
            world.run_until("news", 1_000, |world| world.status(1 - weak).state.pdsk == Disk::Diskless);
            for sector in 1..=10 {
                assert_eq!(world.io(0, WRITE, sector * 8, 8), Ok(()));
            }
            if switches_off {
                lose_power_and_come_back(&mut world, seed);
            } else {
                world.nodes[weak].faults = Default::default();
                assert_eq!(world.attach(weak), 101, "seed {seed}");
                all_the_same(&mut world);
            }
        }
    }
}

/// Seed 4595: the peer agreed to a promotion and let its disk go. The promotion failed then, and the peer believed in it.
#[test]
fn the_peer_hears_that_nothing_came_of_a_promotion() {
    let mut stopped = 0;
    for seed in 1..=SEEDS {
        let mut world = synced_with(config(seed));
        assert_eq!(world.admin(0, AdminRequest::Secondary { volume: VOLUME }), 1);
        assert_eq!(world.admin(1, AdminRequest::Detach { volume: VOLUME, force: false }), 1);
        world.run_for_ms(100);
        world.ask(1, AdminRequest::Primary { volume: VOLUME, force: false });
        world.run_until("agreed", 10_000, |world| world.status(0).state.peer == Role::Primary);
        world.ask(0, AdminRequest::Detach { volume: VOLUME, force: true });
        world.run_for_ms(3_000);
        stopped += u64::from(world.status(1).state.role == Role::Secondary);
        assert_eq!(world.status(0).state.peer, world.status(1).state.role, "seed {seed}: {}", world.describe());
    }
    assert!(stopped > 0);
}

/// Seed 50038818: the peer, which had not heard of it, asked to overwrite a disk that had been let go. The answer waited for the
/// writes that the peer had, and no write began meanwhile; when it was given the disk was back, and what was refused was a new resync.
#[test]
fn a_wish_to_overwrite_a_disk_that_is_gone_is_refused_at_once() {
    for seed in 1..=SEEDS {
        let mut world = synced_with(config(seed));
        world.set_direction(0, false);
        let write = world.start(0, Action::Write { fua: false }, 0, 8);
        world.run_for_ms(50);
        assert_eq!(world.admin(0, AdminRequest::Detach { volume: VOLUME, force: true }), 1);
        world.run_until("detached", 10_000, |world| !world.status(0).has_disk);
        world.ask(1, AdminRequest::InvalidateRemote { volume: VOLUME });
        world.run_for_ms(50);
        assert!(world.operations[write].is_open(), "seed {seed}: the peer has got it");
        assert_eq!(world.status(1).state.pdsk, Disk::UpToDate, "seed {seed}: the peer has heard of it");
        assert!(!world.engine_of(0).holds_request(), "seed {seed}: no answer");
        world.set_direction(0, true);
        assert_ne!(world.admin_answer(1), 1, "seed {seed}");
        world.run_until("the write", 60_000, |world| !world.operations[write].is_open());
        assert_eq!(world.attach(0), 101);
        all_the_same(&mut world);
    }
}

/// A Primary attaches its disk, and is to let it go again before its peer, which has no good data either, is ready for the resync: refused, and
/// the peer does not hear of it.
#[test]
fn a_primary_without_good_data_keeps_the_disk_that_it_attaches() {
    for seed in 1..=SEEDS {
        let mut world = World::new(Config::new(seed));
        for node in 0..2 {
            assert_eq!(world.attach(node), 101);
            assert_eq!(world.connect(node), 1);
        }
        world.run_until("connected", 10_000, |world| {
            (0..2).all(|node| world.status(node).state.conn == Conn::Connected)
        });
        assert_eq!(world.admin(0, AdminRequest::Primary { volume: VOLUME, force: true }), 1);
        world.run_until("the resync", 10_000, |world| world.status(0).state.conn == Conn::SyncSource);
        assert_eq!(world.admin(0, AdminRequest::Detach { volume: VOLUME, force: true }), 1);
        world.run_until("detached", 10_000, |world| world.status(1).state.pdsk == Disk::Diskless);
        world.run_for_ms(100);
        world.set_direction(1, false);
        assert_eq!(world.attach(0), 101);
        world.run_until("the target", 10_000, |world| world.status(1).state.conn == Conn::WFBitMapT);
        assert_eq!(world.admin(0, DETACH), -2, "seed {seed}");
        world.set_direction(1, true);
        all_the_same(&mut world);
    }
}

/// Seed 95021649: the first transaction of the activity log after a detach and an attach was torn by a power cut, the first one after that
/// as well, and the two were in different places: the log was taken for damaged, and the disk could not be attached any more.
#[test]
fn first_transactions_that_are_torn_again_and_again_are_in_one_place() {
    for seed in 1..=3 * SEEDS {
        let mut world = synced_with(Config::new(seed));
        assert_eq!(world.io(0, WRITE, 0, 8), Ok(()));
        assert_eq!(world.admin(0, DETACH), 1);
        assert_eq!(world.attach(0), 101);
        for extent in 1..5 {
            world.run_until("resync", 60_000, good);
            if world.status(0).state.role != Role::Primary {
                assert_eq!(world.admin(0, PRIMARY), 1);
            }
            world.start(0, WRITE, extent % 2 * 8192, 8);
            let wait_us = world.random.below(400);
            world.run_for_us(wait_us);
            world.power_cut(0);
            come_back(&mut world, 0);
        }
        all_the_same(&mut world);
        assert_eq!(world.check_acknowledged(0), Ok(()), "seed {seed}");
    }
}
