//! A Primary that is Ahead, its peer Behind, and what goes wrong then.

use engine::netlink::{OnCongestion, OnNoData, WireProtocol};
use engine::resource::{AdminRequest, AlgorithmName, IoError};
use engine::state::{Conn, Disk, Role, StateError};
use simulator::node::VOLUME;
use simulator::scenario::{all_the_same, come_back, synced_with, DETACH, PRIMARY, SECONDARY, WRITE};
use simulator::world::Action;
use simulator::{Config, World};

const SEEDS: u64 = 20;

/// A Primary that sends announcements in place of data; the peer lacks acknowledged writes.
fn ahead(seed: u64) -> World {
    ahead_with(Config::new(seed))
}

fn ahead_with(mut config: Config) -> World {
    config.net.wire_protocol = WireProtocol::A;
    config.net.on_congestion = OnCongestion::PullAhead;
    config.net.cong_fill = 100;
    let mut world = synced_with(config);
    world.set_direction(1, false);
    let writes: Vec<usize> = (0..30).map(|block| world.start(0, WRITE, block * 16, 8)).collect();
    world.run_until("ahead", 60_000, |world| world.status(0).state.conn == Conn::Ahead);
    world.run_until("the writes", 1_000, |world| writes.iter().all(|&write| world.operations[write].result.is_some()));
    world.run_until("behind", 1_000, |world| world.status(1).state.conn == Conn::Behind);
    world
}

/// Seed 3007986: a Primary that was Ahead was demoted, then the peer lost its power. Nobody began a new generation, because nobody
/// was Primary, and the peer came back as good without the writes that it had only been told of.
#[test]
fn a_node_that_is_demoted_while_ahead_remembers_what_the_peer_lacks() {
    let mut demoted_ahead = 0;
    for seed in 1..=SEEDS {
        let mut world = ahead(seed);
        world.ask(0, SECONDARY);
        world.set_direction(1, true);
        world.run_until("demotion", 60_000, |world| world.status(0).state.role == Role::Secondary);
        demoted_ahead += u32::from(world.status(0).state.conn == Conn::Ahead);
        assert_eq!(world.admin_answer(0), 1);
        for node in 0..=(seed % 2) as usize {
            world.power_cut(1 - node);
            come_back(&mut world, 1 - node);
        }
        all_the_same(&mut world);
        assert!(world.check_acknowledged(1).is_ok(), "seed {seed}");
    }
    assert!(demoted_ahead > SEEDS as u32 / 2, "{demoted_ahead}");
}

/// Seed 3008191: the peer of a node that was Ahead and suspended its I/O detached its disk. The new generation waited for I/O to go
/// on; the disk came back before that, with the same generation, and counted as good.
#[test]
fn a_disk_that_leaves_while_its_peer_is_ahead_and_suspended_is_resynced() {
    for seed in 1..=SEEDS {
        let mut world = ahead(seed);
        assert_eq!(world.admin(0, AdminRequest::SuspendIo { volume: VOLUME }), 1);
        world.ask(1, DETACH);
        world.set_direction(1, true);
        assert_eq!(world.admin_answer(1), 1);
        assert_eq!(world.attach(1), 101);
        world.run_for_ms(1_000);
        assert_eq!(world.admin(0, AdminRequest::ResumeIo { volume: VOLUME }), 1);
        all_the_same(&mut world);
        assert!(world.check_acknowledged(1).is_ok(), "seed {seed}");
    }
}

/// Seed 80002804: a Primary lost its disk while it was Ahead, so that it could not record what the peer lacked, and attached it again. With
/// the same generation both counted as equal, and at the next meeting as good.
#[test]
fn a_disk_that_was_lost_while_ahead_is_the_source_when_it_is_back() {
    for seed in 1..=4 * SEEDS {
        let mut config = Config::new(seed);
        // The disk then counts as one that the application has never left, not as that of a crashed Primary.
        config.resource.on_no_data = OnNoData::SuspendIo;
        let mut world = ahead_with(config);
        world.ask(0, AdminRequest::Detach { volume: VOLUME, force: true });
        world.set_direction(1, true);
        assert_eq!(world.admin_answer(0), 1);
        if seed % 2 == 0 {
            world.run_for_ms(seed % 8);
        } else {
            world.run_until("outdated", 1_000, |world| world.status(0).state.pdsk == Disk::Outdated);
        }
        if seed % 3 == 0 {
            world.set_network(false);
            world.run_until("loss noticed", 60_000, |world| world.status(0).state.conn < Conn::Connected);
        }
        world.run_until("detached", 10_000, |world| !world.status(0).has_disk);
        assert_eq!(world.attach(0), 101);
        if seed % 3 != 0 {
            world.run_for_ms(1_000);
            world.set_network(false);
            world.run_until("the next loss", 60_000, |world| world.status(0).state.conn < Conn::Connected);
        }
        world.set_network(true);
        all_the_same(&mut world);
        assert!(world.check_acknowledged(1).is_ok(), "seed {seed}");
    }
}

/// Seed 89008514: a node that is Ahead loses its power and comes back without its disk. What its peer lacks is on that disk, and nobody
/// says that it can be done without: the peer stays Outdated, and is promoted only by force.
#[test]
fn an_outdated_disk_does_not_become_good_because_a_peer_without_one_connects() {
    for seed in 1..=SEEDS {
        let mut world = ahead(seed);
        world.set_direction(1, true);
        let promoted = seed % 2 == 0;
        if promoted {
            assert_eq!(world.admin(0, AdminRequest::PauseSync { volume: VOLUME }), 101);
            assert_eq!(world.admin(0, SECONDARY), 1);
            assert_eq!(world.admin(1, PRIMARY), 1);
        }
        assert_eq!(world.status(1).state.disk, Disk::Outdated, "seed {seed}");
        world.power_cut(0);
        world.run_until("loss noticed", 60_000, |world| world.status(1).state.conn == Conn::WFConnection);
        world.boot(0);
        assert_eq!(world.connect(0), 1);
        world.run_until("met", 60_000, |world| (0..2).all(|node| world.status(node).state.conn == Conn::Connected));
        world.run_for_ms(100);
        assert_eq!(world.status(1).state.disk, Disk::Outdated, "seed {seed}");
        assert_eq!(world.status(0).state.pdsk, Disk::Outdated, "seed {seed}");
        if promoted {
            assert_eq!(world.io(1, Action::Read, 0, 8), Err(IoError::Io), "nobody has good data");
        } else {
            assert_eq!(world.admin(1, PRIMARY), StateError::NoUpToDateDisk.code(), "seed {seed}");
            assert_eq!(world.admin(0, PRIMARY), StateError::NoUpToDateDisk.code(), "seed {seed}");
        }
        if seed % 5 == 0 && !promoted {
            let force = AdminRequest::Primary { volume: VOLUME, force: true };
            assert_eq!(world.admin(1, force), 1, "seed {seed}");
            world.run_for_ms(100);
            assert_eq!(world.status(0).state.pdsk, Disk::UpToDate, "seed {seed}");
            assert_eq!(world.io(1, Action::Read, 0, 8), Ok(()), "seed {seed}: the administrator takes it for good");
            continue;
        }
        assert_eq!(world.attach(0), 101);
        all_the_same(&mut world);
        assert!(world.check_acknowledged(1).is_ok(), "seed {seed}");
    }
}

/// Seeds 95011617 and 96000655: a Primary that was Ahead lost its disk by force, and its peer lost its own as well before it had another
/// generation. Nothing on either disk told what the peer lacked.
#[test]
fn two_disks_that_are_lost_while_ahead_are_not_equal_when_they_are_back() {
    for seed in 1..=8 * SEEDS {
        let mut config = Config::new(seed);
        config.resource.on_no_data = OnNoData::SuspendIo;
        let mut world = ahead_with(config);
        let force = AdminRequest::Detach { volume: VOLUME, force: true };
        world.ask(0, force);
        world.set_direction(1, true);
        world.run_for_ms(seed % 4);
        world.ask(1, if seed % 3 == 0 { DETACH } else { force });
        assert_eq!(world.admin_answer(0), 1);
        assert_eq!(world.admin_answer(1), 1, "seed {seed}");
        world.run_until("detached", 10_000, |world| (0..2).all(|node| !world.status(node).has_disk));
        if seed % 8 < 6 {
            // Both at once, or nearly.
            assert_eq!(world.start_attach(0), Ok(()), "seed {seed}");
            world.run_for_ms(seed % 3);
            if world.start_attach(1) != Ok(()) {
                // The generation of the other disk is known already, and that it is there is not.
                world.run_for_ms(100);
                assert_eq!(world.start_attach(1), Ok(()), "seed {seed}");
            }
            assert_eq!([0, 1].map(|node| world.admin_answer(node)), [101, 101], "seed {seed}");
        } else {
            let _refused = world.attach(1);
            world.run_for_ms(100);
            assert_ne!(world.status(1).state.disk, Disk::UpToDate, "seed {seed}");
            assert_eq!(world.attach(0), 101, "seed {seed}");
        }
        world.run_for_ms(100);
        for node in 0..2 {
            // The Primary refuses data of an older generation.
            if world.status(node).state.conn == Conn::StandAlone {
                assert_eq!(world.connect(node), 1, "seed {seed}");
            }
        }
        all_the_same(&mut world);
        assert!(world.check_acknowledged(1).is_ok(), "seed {seed}");
    }
}

/// A Primary without a disk refuses the data of a peer that lacks writes only after it has told that it is Primary. Until then the Outdated
/// disk over there must not count as good: it could be promoted afterwards without force.
#[test]
fn an_outdated_disk_is_good_only_when_the_primary_without_one_has_taken_it() {
    for seed in 1..=2 * SEEDS {
        let mut world = if seed % 2 == 0 { ahead(seed) } else { synced_with(Config::new(seed)) };
        if seed % 2 == 0 {
            world.ask(0, AdminRequest::Detach { volume: VOLUME, force: true });
            world.set_network(false);
            world.set_direction(1, true);
            assert_eq!(world.admin_answer(0), 1, "seed {seed}");
            world.run_until("detached", 60_000, |world| !world.status(0).has_disk);
        } else {
            // The application has seen what the peer has, and nothing else.
            assert_eq!(world.io(0, WRITE, 0, 8), Ok(()));
            assert_eq!(world.admin(0, DETACH), 1, "seed {seed}");
            world.run_for_ms(100);
            world.set_network(false);
        }
        world.run_until("loss noticed", 60_000, |world| {
            (0..2).all(|node| world.status(node).state.conn < Conn::Connected)
        });
        if world.status(1).state.disk == Disk::UpToDate {
            assert_eq!(world.admin(1, AdminRequest::Outdate { volume: VOLUME }), 1, "seed {seed}");
        }
        assert_eq!(world.status(1).state.disk, Disk::Outdated, "seed {seed}");
        world.set_network(true);
        world.run_for_ms(30_000);
        let states = [0, 1].map(|node| world.status(node).state);
        if seed % 2 == 0 {
            assert_eq!((states[0].conn, states[1].disk), (Conn::StandAlone, Disk::Outdated), "seed {seed}");
            assert_eq!(world.admin(1, PRIMARY), StateError::NoUpToDateDisk.code(), "seed {seed}");
            assert_eq!(world.attach(0), 101, "seed {seed}");
            assert_eq!(world.connect(0), 1, "seed {seed}");
        } else {
            assert_eq!((states[1].conn, states[1].disk), (Conn::Connected, Disk::UpToDate), "seed {seed}");
            assert_eq!(states[0].pdsk, Disk::UpToDate, "seed {seed}");
            assert_eq!(world.io(0, Action::Read, 0, 8), Ok(()), "seed {seed}");
            assert_eq!(world.attach(0), 101, "seed {seed}");
        }
        all_the_same(&mut world);
        assert!(world.check_acknowledged(1).is_ok(), "seed {seed}");
    }
}

/// The target of a resync is done, as it has told, and a write congests the connection before the answer to the ping that the end waits
/// for: the node is Ahead, and stays that until it has caught up. The answer made it Connected, and nothing told the peer what it lacked.
#[test]
fn a_source_that_pulls_ahead_at_the_end_of_the_resync_stays_ahead() {
    let mut met = 0;
    for (seed, verify) in (1..=SEEDS).flat_map(|seed| [(seed, false), (seed, true)]) {
        let mut config = Config::new(seed);
        config.net.wire_protocol = WireProtocol::A;
        config.net.on_congestion = OnCongestion::PullAhead;
        config.net.cong_fill = 100;
        config.net.verify_alg = AlgorithmName::from_bytes(b"crc32c").unwrap();
        config.disk.resync_rate = 100_000;
        (config.internal, config.sectors) = (false, 1_600);
        let mut world = synced_with(config);
        // Who compares tells the other one.
        if verify {
            world.ask(1, AdminRequest::Verify { volume: VOLUME, start_sector: Some(0), stop_sector: Some(800) });
        } else {
            world.ask(1, AdminRequest::Invalidate { volume: VOLUME });
        }
        let side = if verify { Conn::VerifyS } else { Conn::SyncTarget };
        world.run_until("the run", 10_000, |world| world.status(1).state.conn == side);
        world.run_until("its end", 60_000, |world| world.status(1).state.conn == Conn::Connected);
        // What the peer has told arrives, and nothing of what it answers.
        let pings = world.packets_sent.get("P_PING").copied();
        world.run_until("the ping", 1_000, |world| world.packets_sent.get("P_PING").copied() > pings);
        world.set_direction(1, false);
        let waits = world.status(0).state.conn != Conn::Connected;
        for block in 0..30 {
            world.start(0, WRITE, block * 16, 8);
        }
        world.run_until("ahead", 100, |world| world.status(0).state.conn == Conn::Ahead);
        let pdsk = world.status(0).state.pdsk;
        assert_eq!(pdsk, Disk::Consistent, "seed {seed}, verify {verify}: it was told that this disk is good");
        world.set_direction(1, true);
        world.run_until("behind", 100, |world| world.status(1).state.conn == Conn::Behind);
        world.run_for_ms(2);
        assert_eq!(world.status(0).state.conn, Conn::Ahead, "seed {seed}, verify {verify}");
        met += u32::from(waits);
        if seed % 3 == 0 {
            // The generations tell that the peer is the one that lacks something.
            world.set_network(false);
            world.run_until("loss noticed", 60_000, |world| world.status(0).state.conn == Conn::WFConnection);
            world.set_network(true);
        }
        all_the_same(&mut world);
        assert!(world.check_acknowledged(1).is_ok(), "seed {seed}, verify {verify}");
    }
    assert!(met > SEEDS as u32, "{met}");
}
