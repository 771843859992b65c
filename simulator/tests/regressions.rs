//! What random runs have found, each as a scenario of its own.

use engine::netlink::{Fencing, NetConf, OnCongestion, OnNoData, ResizeParms, WireProtocol};
use engine::resource::{AdminRequest, AlgorithmName, Fault, Notice};
use engine::state::{Conn, Disk};
use simulator::node::VOLUME;
use simulator::scenario::{all_the_same, come_back, good, synced_with, WRITE};
use simulator::world::Action;
use simulator::{Config, World};

const SEEDS: u64 = 20;

/// Both nodes UpToDate and connected, node 0 Primary.
fn synced(seed: u64) -> World {
    synced_with(Config::new(seed))
}

/// Its bitmap pages had been written, but were not durable when the first blocks were acknowledged.
#[test]
fn a_target_that_loses_its_power_knows_what_it_was_about_to_resync() {
    for seed in 1..=SEEDS {
        let mut world = synced(seed);
        world.set_network(false);
        for block in 0..200 {
            world.start(0, WRITE, block * 600, 8);
        }
        world.run_until("loss noticed", 60_000, |world| world.status(0).state.conn == Conn::WFConnection);
        world.run_for_ms(100);
        let bits = world.status(0).bits_out_of_sync;
        world.set_network(true);
        world.run_until("some blocks", 60_000, |world| world.status(0).bits_out_of_sync < bits);
        world.power_cut(1);
        come_back(&mut world, 1);
        all_the_same(&mut world);
    }
}

/// The extents were active from before; the superblock did not say yet that the log counts.
#[test]
fn writes_of_a_diskless_primary_are_remembered_right_after_a_reconnect() {
    for seed in 1..=SEEDS {
        let mut world = synced(seed);
        assert_eq!(world.admin(0, AdminRequest::Detach { volume: VOLUME, force: false }), 1);
        assert_eq!(world.io(0, WRITE, 0, 8), Ok(()));
        world.run_for_ms(500);
        world.reset_connection();
        world.run_until("loss noticed", 10_000, |world| world.status(1).state.conn != Conn::Connected);
        world.run_until("reconnect", 60_000, |world| {
            (0..2).all(|node| world.status(node).state.conn == Conn::Connected)
                && world.status(0).state.pdsk == Disk::UpToDate
        });
        assert_eq!(world.io(0, WRITE, 8, 8), Ok(()));
        world.power_cut(1);
        world.power_cut(0);
        come_back(&mut world, 0);
        come_back(&mut world, 1);
        all_the_same(&mut world);
    }
}

/// The peer agreed to be overwritten while the disk here failed: its copy is no good copy any more.
#[test]
fn a_write_does_not_count_on_a_peer_that_has_just_been_invalidated() {
    for seed in 1..=SEEDS {
        let mut world = synced(seed);
        // A state packet from before its consent would make the peer's disk good again.
        world.run_for_ms(100);
        world.ask(0, AdminRequest::InvalidateRemote { volume: VOLUME });
        world.nodes[0].faults.read_percent = 100;
        world.start(0, Action::Read, 0, 8);
        for sector in 0..50 {
            world.start(0, WRITE, sector * 8, 8);
            let pause = seed % 4;
            world.run_for_ms(pause / 3);
        }
        let open = |world: &World| world.open_operations() == 0;
        world.run_until("all operations", 60_000, open);
        world.run_until("the disk is let go", 10_000, |world| !world.status(0).has_disk);
        world.nodes[0].faults.read_percent = 0;
        let _code = world.poll_admin(0);
        let _code = world.admin(0, AdminRequest::Secondary { volume: VOLUME });
        assert_eq!(world.attach(0), 101);
        all_the_same(&mut world);
        if let Err(reason) = world.check_acknowledged(0) {
            panic!("seed {seed}: {reason}");
        }
    }
}

/// A write that comes after an acknowledgement is judged after it, and has a later sequence number.
#[test]
fn writes_of_two_primaries_that_meet_leave_equal_halves() {
    for seed in 1..=SEEDS {
        let mut config = Config::new(seed);
        config.net.two_primaries = true;
        let mut world = synced_with(config);
        assert_eq!(world.admin(1, AdminRequest::Primary { volume: VOLUME, force: false }), 1);
        for _ in 0..40 {
            for node in 0..2 {
                let count = world.random.pick(&[1, 3, 8, 40, 256]);
                let sector = world.random.below(300);
                world.start(node, WRITE, sector, count);
            }
            world.run_for_ms(seed % 3);
        }
        world.run_until("all operations", 60_000, |world| world.open_operations() == 0);
        all_the_same(&mut world);
        assert_eq!(world.faults, []);
    }
}

/// Seed 997: while an attach failed, a write was noted in the bitmap that had not been read, and that page was written.
#[test]
fn an_attach_that_fails_leaves_the_bitmap_on_the_disk_alone() {
    for seed in 1..=SEEDS {
        let mut world = synced(seed);
        world.set_network(false);
        world.run_until("loss noticed", 60_000, |world| world.status(0).state.conn == Conn::WFConnection);
        for block in 0..50 {
            assert_eq!(world.io(0, WRITE, block * 80, 8), Ok(()));
        }
        world.nodes[0].faults.read_percent = 100;
        let _failed = world.io(0, Action::Read, 0, 8);
        world.run_until("the disk is let go", 10_000, |world| !world.status(0).has_disk);
        world.nodes[0].faults.read_percent = 0;
        world.nodes[0].faults.meta_percent = 100;
        assert_eq!(world.start_attach(0), Ok(()));
        for block in 0..10 {
            world.start(0, WRITE, block * 80, 8);
        }
        world.run_until("the attach fails", 10_000, |world| world.status(0).state.disk != Disk::Attaching);
        world.nodes[0].faults.meta_percent = 0;
        world.run_until("all operations", 60_000, |world| world.open_operations() == 0);
        world.run_until("the disk is let go again", 10_000, |world| !world.status(0).has_disk);
        assert_eq!(world.admin(0, AdminRequest::Secondary { volume: VOLUME }), 1);
        assert_eq!(world.attach(0), 101);
        assert!(world.status(0).bits_out_of_sync >= 50, "seed {seed}: {}", world.describe());
        world.set_network(true);
        all_the_same(&mut world);
    }
}

/// Seed 1635: its disk counted as one that is written to before it knew itself what would become of that disk.
#[test]
fn writes_of_a_primary_that_negotiates_its_disk_are_remembered_by_the_peer() {
    for seed in 1..=4 * SEEDS {
        let mut world = synced(seed);
        assert_eq!(world.admin(0, AdminRequest::Detach { volume: VOLUME, force: false }), 1);
        assert_eq!(world.io(0, WRITE, 0, 8), Ok(()));
        assert_eq!(world.start_attach(0), Ok(()));
        let mut block = 1;
        while world.status(1).state.conn == Conn::Connected {
            for _ in 0..4 {
                world.start(0, WRITE, block % 2000 * 8, 8);
                block += 1;
            }
            world.run_for_us(50);
        }
        world.run_for_us(seed * 20);
        world.power_cut(0);
        world.run_for_ms(500);
        come_back(&mut world, 0);
        all_the_same(&mut world);
    }
}

/// Seed 2666 was a disk that does not exist: what a write flushes before itself is safe when that write has begun.
#[test]
fn a_power_cut_in_the_middle_of_a_demotion_does_not_forget_the_bitmap() {
    for seed in 1..=4 * SEEDS {
        let mut world = synced(seed);
        world.set_network(false);
        world.run_until("loss noticed", 60_000, |world| world.status(0).state.conn == Conn::WFConnection);
        for block in 0..20 {
            assert_eq!(world.io(0, WRITE, block * 80, 8), Ok(()));
        }
        world.run_for_ms(500);
        world.nodes[0].faults.slowness = 10;
        world.ask(0, AdminRequest::Secondary { volume: VOLUME });
        world.run_for_us(100 + seed * 40);
        world.power_cut(0);
        world.nodes[0].faults.slowness = 0;
        world.set_network(true);
        come_back(&mut world, 0);
        all_the_same(&mut world);
    }
}

/// Seed 7411: the generation that was due when the peer was lost was made when the peer was back and had everything.
#[test]
fn resuming_io_with_a_good_peer_makes_no_generation() {
    for seed in 1..=SEEDS {
        let mut world = synced(seed);
        assert_eq!(world.admin(0, AdminRequest::SuspendIo { volume: VOLUME }), 1);
        world.set_network(false);
        world.run_until("loss noticed", 60_000, |world| world.status(0).state.conn == Conn::WFConnection);
        world.set_network(true);
        world.run_until("reconnect", 60_000, good);
        assert_eq!(world.admin(0, AdminRequest::ResumeIo { volume: VOLUME }), 1);
        assert_eq!(world.io(0, WRITE, 0, 8), Ok(()));
        all_the_same(&mut world);
        let [zero, one] = [0, 1].map(|node| world.status(node).uuids.map(|uuid| uuid & !1));
        assert_eq!(zero, one, "seed {seed}");
    }
}

/// Seed 7094: I/O that is frozen here does not freeze the writes of a Primary without a disk.
#[test]
fn a_suspended_secondary_tells_apart_what_a_diskless_primary_writes() {
    for seed in 1..=SEEDS {
        let mut world = synced(seed);
        assert_eq!(world.admin(1, AdminRequest::SuspendIo { volume: VOLUME }), 1);
        assert_eq!(world.admin(0, AdminRequest::Detach { volume: VOLUME, force: false }), 1);
        assert_eq!(world.io(0, WRITE, 0, 8), Ok(()));
        world.power_cut(1);
        world.power_cut(0);
        come_back(&mut world, 0);
        come_back(&mut world, 1);
        all_the_same(&mut world);
        if let Err(reason) = world.check_acknowledged(0) {
            panic!("seed {seed}: {reason}");
        }
    }
}

/// Seed 2432 with two Primaries: while an online verify keeps the data socket busy nothing sent the barrier of the last
/// epoch, and after a while the connection was given up because of it.
#[test]
fn a_verify_does_not_hold_up_the_last_barrier() {
    for seed in 1..=3 {
        let mut config = Config::new(seed);
        config.sectors = 1 << 20;
        config.net.timeout = 20;
        config.net.ko_count = 1;
        config.net.verify_alg = AlgorithmName::from_bytes(b"crc32c").expect("a name");
        let mut world = synced_with(config);
        let verify = AdminRequest::Verify { volume: VOLUME, start_sector: Some(0), stop_sector: None };
        assert_eq!(world.admin(0, verify), 1);
        world.run_for_ms(1_000);
        for node in 0..2 {
            assert!(world.status(node).state.conn > Conn::Connected, "the verify is not long enough");
        }
        assert_eq!(world.io(0, WRITE, 0, 8), Ok(()));
        world.run_for_ms(5_000);
        assert!(world.status(0).state.conn > Conn::Connected, "seed {seed}: {}", world.describe());
        assert_eq!(world.faults, []);
    }
}

/// Without an activity log on the disk a transaction was over before those who wait for it were told that it had begun.
#[test]
fn writes_go_on_without_an_activity_log() {
    for seed in 1..=SEEDS {
        let mut config = Config::new(seed);
        config.disk.al_updates = false;
        let mut world = synced_with(config);
        for extent in 0..12 {
            assert_eq!(world.io(0, WRITE, extent * 8192, 8), Ok(()));
        }
        world.set_network(false);
        world.run_until("loss noticed", 60_000, |world| world.status(0).state.conn == Conn::WFConnection);
        for extent in 0..12 {
            assert_eq!(world.io(0, WRITE, extent * 8192 + 8, 8), Ok(()));
        }
    }
}

/// What the peer had refused because its disk failed was ended, and sent once more when frozen I/O went on.
#[test]
fn what_has_been_ended_is_not_sent_again() {
    for seed in 1..=4 * SEEDS {
        let mut config = Config::new(seed);
        config.disk.fencing = Fencing::ResourceAndStonith;
        let mut world = synced_with(config);
        world.helper_exit_code = 1;
        world.nodes[1].faults.write_percent = 100;
        for block in 0..20 {
            world.start(0, WRITE, block * 8, 8);
        }
        world.run_until("the peer lets its disk go", 60_000, |world| !world.status(1).has_disk);
        world.run_for_us(seed * 10);
        world.reset_connection();
        world.run_until("loss noticed", 60_000, |world| world.status(0).state.conn < Conn::Connected);
        world.run_until("reconnect", 60_000, |world| world.status(0).state.conn == Conn::Connected);
        world.run_until("all operations", 60_000, |world| world.open_operations() == 0);
    }
}

/// Seed 2496: I/O was frozen for want of a disk when the connection ended; with the disk back it went on, but writes of before
/// stayed on the list of what the peer has to confirm, and the demotion waited for that.
#[test]
fn a_demotion_does_not_wait_for_a_connection_that_ended_while_io_was_frozen() {
    for seed in 1..=SEEDS {
        let mut config = Config::new(seed);
        config.resource.on_no_data = OnNoData::SuspendIo;
        let mut world = synced_with(config);
        for block in 0..8 {
            world.start(0, WRITE, block * 8, 8);
        }
        world.run_until("acknowledged", 60_000, |world| world.open_operations() == 0);
        assert_eq!(world.admin(1, AdminRequest::Detach { volume: VOLUME, force: true }), 1);
        assert_eq!(world.admin(0, AdminRequest::Detach { volume: VOLUME, force: true }), 1);
        world.run_until("frozen", 60_000, |world| world.is_suspended(0));
        assert_eq!(world.admin(0, AdminRequest::Disconnect { force: true }), 101);
        world.run_until("the disk is let go", 60_000, |world| !world.status(0).has_disk);
        assert_eq!(world.attach(0), 101);
        assert_eq!(world.admin(0, AdminRequest::Secondary { volume: VOLUME }), 1);
        assert_eq!(world.engine_of(0).usage(), Default::default());
    }
}

/// A hostile peer's seed 1604: the generation of a forced promotion went to the disk along with the mark that all bits had been set,
/// and nobody was told; what was written from then on was never acknowledged.
#[test]
fn a_generation_is_durable_whatever_the_superblock_was_written_for() {
    let mut promoted = 0;
    for seed in 1..=4 * SEEDS {
        let mut world = World::new(Config::new(seed));
        for node in 0..2 {
            assert_eq!(world.attach(node), 101);
            assert_eq!(world.connect(node), 1);
        }
        let connected = |world: &World| (0..2).all(|node| world.status(node).state.conn == Conn::Connected);
        world.run_until("connected", 10_000, connected);
        assert_eq!(world.admin(0, AdminRequest::Primary { volume: VOLUME, force: true }), 1);
        world.run_until("full sync", 10_000, |world| world.status(1).state.conn == Conn::WFBitMapT);
        world.nodes[1].faults.slowness = 10 * seed;
        world.reset_connection();
        world.run_until("lost", 60_000, |world| world.status(1).state.conn < Conn::Connected);
        world.set_network(false);
        world.ask(1, AdminRequest::Primary { volume: VOLUME, force: true });
        let write = world.start(1, WRITE, 0, 8);
        world.run_until("the write", 60_000, |world| world.operations[write].result.is_some());
        promoted += u32::from(world.poll_admin(1) == Some(1));
    }
    assert!(promoted > SEEDS as u32, "promoted in {promoted} runs");
}

/// Seed 5109: they waited for the activity log when the connection was lost, and started on the local disk alone while I/O
/// was frozen. Nothing sent them when the peer was back with the same data. Nor anything else, where the administrator had
/// frozen it.
#[test]
fn writes_that_start_while_io_is_frozen_are_sent_when_the_peer_is_back() {
    for (by_admin, seed) in [false, true].into_iter().flat_map(|by_admin| (1..=SEEDS).map(move |seed| (by_admin, seed)))
    {
        let mut config = Config::new(seed);
        config.disk.fencing = if by_admin { Fencing::DontCare } else { Fencing::ResourceAndStonith };
        let mut world = synced_with(config);
        // Where nobody has to fence the peer there is a resync, to which no program objects.
        world.helper_exit_code = i32::from(!by_admin);
        assert_eq!(world.io(0, WRITE, 0, 8), Ok(()));
        world.nodes[0].faults.slowness = 2_000;
        let writes: Vec<usize> = (0..4).map(|extent| world.start(0, WRITE, extent * 8192 + 8, 8)).collect();
        if by_admin {
            assert_eq!(world.admin(0, AdminRequest::SuspendIo { volume: VOLUME }), 1);
        }
        world.reset_connection();
        world.run_until("loss noticed", 60_000, |world| world.status(0).state.conn < Conn::Connected);
        world.set_network(false);
        assert!(world.is_suspended(0));
        let started = |world: &World| world.nodes[0].running.as_ref().map_or(0, |running| running.transfers.len());
        world.run_until("they start", 120_000, |world| started(world) > 1);
        world.run_for_ms(seed * 100);
        world.nodes[0].faults.slowness = 0;
        world.set_network(true);
        world.run_until("reconnect", 60_000, |world| world.status(0).state.conn >= Conn::Connected);
        if by_admin {
            // The resync waits for writes that have not been ended.
            world.run_for_ms(1_000);
            assert_eq!(world.admin(0, AdminRequest::ResumeIo { volume: VOLUME }), 1);
        }
        world.run_until("the writes", 60_000, |world| world.open_operations() == 0);
        assert!(writes.iter().all(|&write| world.operations[write].result == Some(Ok(()))));
        all_the_same(&mut world);
        assert_eq!([0, 1].map(|node| world.status(node).bits_out_of_sync), [0, 0], "seed {seed}");
    }
}

/// Seed 7290: the packet that explains why a write was refused came after a barrier, the barrier waited for a write of that
/// peer, and this for the refused one.
#[test]
fn a_refused_write_of_one_of_two_primaries_does_not_hold_up_the_reason() {
    for seed in 1..=10 * SEEDS {
        let mut config = Config::new(seed);
        config.net.two_primaries = true;
        let mut world = synced_with(config);
        assert_eq!(world.admin(1, AdminRequest::Primary { volume: VOLUME, force: false }), 1);
        for turn in 0..12 {
            if turn == 4 {
                world.nodes[0].faults.write_percent = 100;
            }
            for node in 0..2 {
                for _ in 0..4 {
                    let (sector, count) = (world.random.below(60), world.random.pick(&[1, 8, 64]));
                    world.start(node, WRITE, sector, count);
                }
            }
            world.run_for_us(50 + seed % 7 * 50);
        }
        world.run_until("all operations", 4_000, |world| world.open_operations() == 0);
        world.run_for_ms(10_000);
        assert_eq!(world.faults, []);
        assert_eq!(world.status(1).state.pdsk, Disk::Diskless);
    }
}

/// Seed 677: both disks had grown. The Primary looked while it was alone, and at the next connection it told the size of its
/// disk as it is, the other one as it was: each agreed to another size.
#[test]
fn both_nodes_tell_how_large_their_disks_are_now() {
    for seed in 1..=SEEDS {
        let mut world = synced(seed);
        world.set_network(false);
        world.run_until("loss noticed", 60_000, |world| world.status(0).state.conn == Conn::WFConnection);
        for node in 0..2 {
            world.grow_disk(node, 10_008, 1 << (50 + node));
        }
        assert_eq!(world.resize(0, &ResizeParms::default()), 101);
        assert_eq!(world.io(0, WRITE, 0, 8), Ok(()));
        world.set_network(true);
        world.run_until("resync", 300_000, good);
        let sizes = [0, 1].map(|node| world.status(node).size_sectors);
        assert_eq!(sizes[0], sizes[1], "seed {seed}");
        world.run_for_ms(3_000);
        let difference = world.nodes[0].data.first_difference(&world.nodes[1].data, sizes[0]);
        assert_eq!(difference, None, "seed {seed}: the halves differ");
    }
}

/// Seed 681: extents that were active while the activity log was not written counted as logged when it was written again.
#[test]
fn an_activity_log_that_is_switched_on_names_what_is_active() {
    for seed in 1..=SEEDS {
        let mut config = Config::new(seed);
        config.disk.al_updates = false;
        let mut world = synced_with(config);
        for extent in 0..12 {
            assert_eq!(world.io(0, WRITE, extent * 8192, 8), Ok(()));
        }
        world.config.disk.al_updates = true;
        let conf = world.config.disk;
        assert_eq!(world.admin(0, AdminRequest::DiskOptions { volume: VOLUME, conf: &conf }), 101);
        world.run_for_ms(seed % 4 * 20);
        for extent in 0..12 {
            world.start(0, WRITE, extent * 8192 + 8, 8);
        }
        world.run_for_us(2_000);
        world.power_cut(0);
        come_back(&mut world, 0);
        all_the_same(&mut world);
    }
}

/// Seed 797: a request that was given up was forgotten when frozen I/O went on, and the disk waited for it for ever.
#[test]
fn a_disk_that_hung_is_let_go_when_it_has_answered() {
    for seed in 1..=SEEDS {
        let mut config = Config::new(seed);
        config.resource.on_no_data = OnNoData::SuspendIo;
        config.disk.disk_timeout = 20;
        // No generation begins before the peer is fenced, so that its data may be used later.
        config.disk.fencing = Fencing::ResourceAndStonith;
        let mut world = synced_with(config);
        world.helper_exit_code = 1;
        world.nodes[0].faults.hangs = true;
        for sector in 0..10 {
            world.start(0, Action::Read, sector * 8, 8);
        }
        assert_eq!(world.admin(0, AdminRequest::SuspendIo { volume: VOLUME }), 1);
        world.reset_connection();
        world.run_until("loss noticed", 60_000, |world| world.status(0).state.conn < Conn::Connected);
        world.set_network(false);
        world.run_until("given up", 60_000, |world| world.status(0).state.disk == Disk::Failed);
        world.set_network(true);
        world.run_until("reconnect", 60_000, |world| world.status(0).state.conn >= Conn::Connected);
        assert_eq!(world.admin(0, AdminRequest::ResumeIo { volume: VOLUME }), 1);
        world.run_until("frozen I/O goes on", 60_000, |world| world.open_operations() == 0);
        world.nodes[0].faults.hangs = false;
        world.run_until("the disk is let go", 10_000, |world| !world.status(0).has_disk);
    }
}

/// Seed 672: a write of the other Primary waited for what had been sent before it when the connection was lost; that wait
/// went on without a connection, and was taken for a fault of the next one.
#[test]
fn a_wait_for_a_packet_ends_with_the_connection() {
    for seed in 1..=4 * SEEDS {
        let mut config = Config::new(seed);
        config.net.two_primaries = true;
        // Acknowledgements go out slowly.
        config.sent_us_most = 20_000;
        let mut world = synced_with(config);
        assert_eq!(world.admin(1, AdminRequest::Primary { volume: VOLUME, force: false }), 1);
        for block in 0..20 {
            world.start(0, WRITE, block * 8, 8);
            world.start(1, WRITE, 2_000 + block * 8, 8);
        }
        let ms = world.random.below(60);
        world.run_for_ms(ms);
        world.power_cut(1);
        world.run_for_ms(100);
        world.boot(1);
        world.run_for_ms(1_000);
        assert_eq!(world.attach(1), 101);
        assert_eq!(world.connect(1), 1);
        world.run_until("reconnect", 60_000, |world| world.status(1).state.conn >= Conn::Connected);
        world.run_for_ms(5_000);
        let missing = world.faults.iter().filter(|(_, fault)| matches!(fault, Fault::MissingSequence { .. }));
        assert_eq!(missing.count(), 0, "seed {seed}");
    }
}

/// Seed 226: the rest of a bitmap that came after the disk was lost ended the connection, and a Primary needs it then.
#[test]
fn a_disk_that_is_lost_during_the_exchange_of_bitmaps_does_not_end_the_connection() {
    for seed in 1..=4 * SEEDS {
        let mut world = synced(seed);
        world.set_network(false);
        world.run_until("loss noticed", 60_000, |world| world.status(0).state.conn == Conn::WFConnection);
        assert_eq!(world.io(0, WRITE, 0, 8), Ok(()));
        world.set_network(true);
        world.run_until("bitmaps", 60_000, |world| world.status(0).state.conn == Conn::WFBitMapS);
        world.faults.clear();
        world.run_for_us(seed * 5);
        let node = seed as usize % 2;
        world.ask(node, AdminRequest::Detach { volume: VOLUME, force: true });
        world.run_for_ms(3_000);
        assert_eq!(world.faults, [], "seed {seed}");
    }
}

/// Seed 3200: the device had grown while one node had no disk. Its disk was negotiated when it heard the size, which then was
/// that of the device but not of its bitmap, in this connection and in all later ones.
#[test]
fn a_disk_that_is_attached_after_the_device_has_grown_has_a_bitmap_of_the_new_size() {
    for seed in 1..=SEEDS {
        let mut world = synced(seed);
        assert_eq!(world.admin(1, AdminRequest::Detach { volume: VOLUME, force: false }), 1);
        for node in 0..2 {
            world.grow_disk(node, 10_008, 1 << (50 + node));
        }
        assert_eq!(world.resize(0, &ResizeParms::default()), 101);
        assert_eq!(world.io(0, WRITE, 0, 8), Ok(()));
        assert_eq!(world.attach(1), 101);
        world.run_until("resync", 300_000, good);
        let sizes = [0, 1].map(|node| world.status(node).size_sectors);
        assert_eq!(sizes[0], sizes[1], "seed {seed}");
        world.run_for_ms(3_000);
        let difference = world.nodes[0].data.first_difference(&world.nodes[1].data, sizes[0]);
        assert_eq!(difference, None, "seed {seed}: the halves differ");
    }
}

/// Seed 1000041: the source was faster than its own consent, which comes on the other socket; its generation was dropped, and the
/// target waited for it for ever.
#[test]
fn the_source_may_be_faster_than_its_consent() {
    for seed in 1..=4 * SEEDS {
        let mut world = synced(seed);
        world.set_direction(1, false);
        world.ask(0, AdminRequest::Invalidate { volume: VOLUME });
        world.run_until("the source", 60_000, |world| world.status(1).state.conn == Conn::SyncSource);
        world.set_direction(1, true);
        all_the_same(&mut world);
        assert_eq!(world.poll_admin(0), Some(1), "seed {seed}");
    }
}

/// Seed 1001742: a resync began anew on the same connection while a block of the one before was still on its way to the disk; the
/// answer to the second request for that block was taken for one that nobody had asked for.
#[test]
fn a_resync_begins_anew_while_blocks_of_the_last_one_are_on_a_slow_disk() {
    for seed in 1..=SEEDS {
        let mut config = Config::new(seed);
        config.disk.resync_rate = 100_000;
        let mut world = synced_with(config);
        world.ask(1, AdminRequest::Invalidate { volume: VOLUME });
        world.run_until("the target", 60_000, |world| world.status(1).state.conn == Conn::SyncTarget);
        world.nodes[1].faults.slowness = 2_000;
        world.run_until("a block on the disk", 60_000, |world| world.status(1).lower_pending > 3);
        world.nodes[1].faults.slowness = 0;
        assert_eq!(world.poll_admin(1), Some(1), "seed {seed}");
        assert_eq!(world.admin(0, AdminRequest::Detach { volume: VOLUME, force: true }), 1);
        world.run_until("the source has no disk", 60_000, |world| !world.status(0).has_disk);
        assert_eq!(world.attach(0), 101);
        all_the_same(&mut world);
        assert_eq!(world.faults, [], "seed {seed}");
    }
}

/// Seed 70359: the read of a resync block waited for a write in the same place while the disk was let go and attached again; that it found no
/// disk then counted as an error of the new one.
#[test]
fn a_read_that_lost_its_disk_says_nothing_about_the_next_one() {
    for seed in 1..=SEEDS {
        let mut config = Config::new(seed);
        config.disk.resync_rate = 100_000;
        // One operation of a disk as slow as that may take 20 s, and others wait for it.
        config.net.ko_count = 0;
        let mut world = synced_with(config);
        world.ask(1, AdminRequest::Invalidate { volume: VOLUME });
        world.run_until("the target", 60_000, |world| world.status(1).state.conn == Conn::SyncTarget);
        assert_eq!(world.poll_admin(1), Some(1), "seed {seed}");
        world.nodes[1].faults.slowness = 2_000;
        for block in 0..200 {
            world.start(0, WRITE, block * 160, 8);
        }
        world.run_for_ms(300 + 10 * seed);
        assert_eq!(world.admin(0, AdminRequest::Detach { volume: VOLUME, force: true }), 1);
        world.run_until("the source has no disk", 60_000, |world| !world.status(0).has_disk);
        assert_eq!(world.attach(0), 101);
        world.run_until("all operations", 240_000, |world| world.open_operations() == 0);
        world.nodes[1].faults.slowness = 0;
        assert!(world.status(0).has_disk, "seed {seed}");
        all_the_same(&mut world);
    }
}

/// The end of the sockets was noticed before the sender had told that the consent to the peer's disconnect is out: a
/// NetworkFailure in place of TearDown.
#[test]
fn a_peer_that_disconnects_in_order_is_no_failure() {
    for seed in 1..=2 * SEEDS {
        let mut config = Config::new(seed);
        config.sent_us_most = 20_000;
        let mut world = synced_with(config);
        world.history.clear();
        assert_eq!(world.admin(1, AdminRequest::Disconnect { force: false }), 101, "seed {seed}");
        world.run_for_ms(1_000);
        let ends = world.history.iter().filter_map(|(node, notice)| match notice {
            Notice::Connection { from: Conn::WFReportParams, to, .. } if *node == 0 => Some(*to),
            _ => None,
        });
        assert_eq!(ends.collect::<Vec<_>>(), [Conn::TearDown], "seed {seed}");
    }
}

/// Seed 2001413: a write during congestion, of a block that was out of sync anyway, was not announced; the acknowledgement of an
/// earlier write of that block cleared its bit on both sides.
#[test]
fn an_earlier_write_does_not_hide_one_made_during_congestion() {
    for seed in 1..=4 * SEEDS {
        let mut config = Config::new(seed);
        config.net.wire_protocol = WireProtocol::A;
        config.net.on_congestion = OnCongestion::PullAhead;
        config.net.cong_fill = 100;
        let mut world = synced_with(config);
        world.ask(1, AdminRequest::Invalidate { volume: VOLUME });
        world.run_until("resync", 60_000, |world| world.status(1).state.conn == Conn::SyncTarget);
        assert_eq!(world.poll_admin(1), Some(1), "seed {seed}");
        // The acknowledgement of the first write is late.
        world.set_direction(1, false);
        let at = 100_000;
        world.start(0, WRITE, at, 8);
        world.run_for_us(seed * 5);
        for block in 1..20 {
            world.start(0, WRITE, at + block * 16, 8);
        }
        world.run_until("ahead", 60_000, |world| world.status(0).state.conn == Conn::Ahead);
        let again = world.start(0, WRITE, at, 8);
        world.run_until("the last write", 60_000, |world| world.operations[again].result.is_some());
        world.set_direction(1, true);
        all_the_same(&mut world);
    }
}

/// The flush for a barrier failed, and data of the resync was gone with the cache that had been acknowledged. The next flush, for
/// the bitmap, had nothing left to do and succeeded; so the bits were cleared on the disk, and nobody knew of the difference.
#[test]
fn seed_1346_bits_stay_set_when_the_flush_for_a_barrier_fails() {
    let report = simulator::run(1346);
    assert_eq!(report.failure, None);
}

/// Seeds 6004607 and 6005017: what a disk had been given before it failed was still in its cache when it came back, and the
/// activity log, which had covered it, had been applied. The resync copied it to the peer and cleared the bits; then it was lost.
#[test]
fn what_a_disk_was_given_before_it_failed_survives_a_power_cut_after_the_resync() {
    for seed in 1..=SEEDS {
        let mut world = synced_with(Config { internal: false, ..Config::new(seed) });
        world.set_network(false);
        world.run_until("loss noticed", 60_000, |world| world.status(0).state.conn == Conn::WFConnection);
        for block in 0..50 {
            assert_eq!(world.io(0, WRITE, block * 600, 8), Ok(()));
        }
        assert_eq!(world.admin(0, AdminRequest::Detach { volume: VOLUME, force: true }), 1);
        world.run_until("without disk", 10_000, |world| world.status(0).state.disk == Disk::Diskless);
        world.run_for_ms(100);
        assert_eq!(world.attach(0), 101);
        world.set_network(true);
        world.run_until("resync", 300_000, good);
        // Until then the bits are still set on the disk.
        world.run_for_ms(30_000);
        world.power_cut(0);
        come_back(&mut world, 0);
        all_the_same(&mut world);
    }
}

fn protocol_of(world: &World, node: usize) -> Option<WireProtocol> {
    world.engine_of(node).net_conf().map(|net| net.wire_protocol)
}

/// Seed 6001827: the peer had protocol C set while this node was configured to pull ahead. A write that was made under C was
/// acknowledged without the peer, which was still good.
#[test]
fn nobody_pulls_ahead_when_the_peer_has_asked_for_another_protocol() {
    for seed in 1..=SEEDS {
        let mut config = Config::new(seed);
        config.net.wire_protocol = WireProtocol::A;
        config.net.on_congestion = OnCongestion::PullAhead;
        config.net.cong_fill = 8;
        let mut world = synced_with(config);
        let conf = NetConf { wire_protocol: WireProtocol::C, on_congestion: OnCongestion::Block, ..world.config.net };
        assert_eq!(world.admin(1, AdminRequest::NetOptions { conf: &conf }), 101);
        world.run_until("the other protocol", 1_000, |world| protocol_of(world, 0) == Some(WireProtocol::C));
        world.config.net.wire_protocol = WireProtocol::C;
        let writes: Vec<_> = (0..20).map(|block| world.start(0, WRITE, block * 8, 8)).collect();
        while writes.iter().any(|&write| world.operations[write].result.is_none()) {
            assert_eq!(world.status(0).state.conn, Conn::Connected);
            world.step();
        }
        all_the_same(&mut world);
    }
}

/// Seed 6018892: generations that were to be told when they are durable waited behind writes while the disk was lost, and were then held
/// until the superblock of the next disk, which began to count anew, would have been written as often. Nothing came after them.
#[test]
fn generations_of_a_lost_disk_do_not_wait_for_the_next_one() {
    for seed in 1..=SEEDS {
        let mut world = synced_with(Config { sent_us_most: 20_000, ..Config::new(seed) });
        for block in 0..30 {
            world.start(0, WRITE, block * 8, 8);
        }
        for node in [1, 0] {
            world.ask(node, AdminRequest::Detach { volume: VOLUME, force: true });
            world.run_until("told", 10_000, |world| {
                let state = world.status(0).state;
                [state.disk, state.pdsk][node] <= Disk::Failed
            });
        }
        for node in 0..2 {
            world.run_until("detached", 10_000, |world| !world.status(node).has_disk);
            assert_eq!(world.attach(node), 101);
            world.run_for_ms(3_000);
        }
        all_the_same(&mut world);
    }
}

/// Seeds 309 and 1835: a source pulled ahead before its target had begun. The target began all the same, with bits that were only in
/// its memory: a crash would have forgotten what it was about to copy.
#[test]
fn a_target_does_not_begin_once_its_source_is_ahead() {
    for seed in 1..=4 * SEEDS {
        let mut config = Config::new(seed);
        config.net.wire_protocol = WireProtocol::A;
        config.net.on_congestion = OnCongestion::PullAhead;
        config.net.cong_fill = 100;
        let mut world = synced_with(config);
        world.set_network(false);
        for block in 0..20 {
            world.start(0, WRITE, block * 600, 8);
        }
        world.run_until("loss noticed", 60_000, |world| world.status(0).state.conn == Conn::WFConnection);
        world.set_network(true);
        world.run_until("source", 60_000, |world| world.status(0).state.conn == Conn::SyncSource);
        for block in 0..40 {
            world.start(0, WRITE, 50_000 + block * 16, 8);
        }
        world.run_until("ahead", 60_000, |world| world.status(0).state.conn == Conn::Ahead);
        all_the_same(&mut world);
    }
}

/// Seed 1816: a write that began before a Primary attached its disk was sent after the bitmaps had been exchanged, and neither of them
/// had it.
#[test]
fn a_write_that_began_without_a_disk_is_in_the_bitmap_of_the_disk_that_is_attached() {
    for seed in 1..=4 * SEEDS {
        let mut config = Config::new(seed);
        config.sent_us_most = 20_000;
        let mut world = synced_with(config);
        assert_eq!(world.admin(0, AdminRequest::Detach { volume: VOLUME, force: false }), 1);
        // Each waits for the one before.
        for _ in 0..40 {
            world.start(0, WRITE, 1_000, 8);
        }
        let us = seed * 400;
        world.run_for_us(us);
        assert_eq!(world.start_attach(0), Ok(()), "seed {seed}");
        all_the_same(&mut world);
    }
}

/// The connection was lost when the disk of a Primary, attached again, was about to hear what it lacks: its bitmap did not tell, and it served
/// reads of the application.
#[test]
fn a_disk_that_has_not_heard_what_it_lacks_serves_no_reads() {
    let report = simulator::run(61338);
    assert_eq!(report.failure, None);
}

/// Seed 18000016: a block of the resync was written while the disk's cache was being flushed for the bitmap, so its bit stayed. Asked for again,
/// with its checksum, it was found equal, and the bit was cleared on the disk before the block was durable.
#[test]
fn a_block_that_is_equal_by_its_checksum_may_still_be_in_the_cache() {
    for seed in 1..=4 * SEEDS {
        let mut config = Config::new(seed);
        config.net.csums_alg = AlgorithmName::from_bytes(b"crc32c").unwrap();
        config.disk.al_extents = 7;
        config.disk.resync_rate = 100_000;
        let mut world = synced_with(config);
        world.leave_junk(0);
        world.ask(0, AdminRequest::Invalidate { volume: VOLUME });
        world.run_until("the target", 60_000, |world| world.status(0).state.conn == Conn::SyncTarget);
        world.run_until("some blocks", 60_000, |world| world.status(0).bits_out_of_sync < 16_000);
        for extent in 0..16 {
            // A transaction of the activity log, for which the cache is flushed, slowly.
            world.nodes[0].faults.slowness = 2_000;
            world.start(0, WRITE, extent * 8192, 8);
            world.run_for_us(25);
            world.nodes[0].faults.slowness = 0;
            world.run_for_ms(60);
        }
        all_the_same(&mut world);
    }
}

/// Seed 18006516: a disk was let go while the bitmaps were exchanged, and attached again, with a bitmap of the peer half sent. A state packet from
/// before made the peer begin the next exchange, and start that bitmap over instead of sending its end; the node with the new disk, which took
/// the first half for its own, gave up the connection.
#[test]
fn a_bitmap_that_has_been_begun_is_sent_to_its_end() {
    for seed in 1..=10 * SEEDS {
        let mut config = Config::new(seed);
        config.sent_us_most = 20_000;
        config.net.use_rle = false;
        config.sectors = 32_768;
        config.disk.resync_rate = 100_000;
        let mut world = World::new(config);
        for node in 0..2 {
            assert_eq!(world.attach(node), 101);
            assert_eq!(world.connect(node), 1);
        }
        let connected = |world: &World| (0..2).all(|node| world.status(node).state.conn == Conn::Connected);
        world.run_until("connected", 10_000, connected);
        assert_eq!(world.admin(0, AdminRequest::Primary { volume: VOLUME, force: true }), 1);
        world.run_until("bitmaps", 60_000, |world| world.status(1).state.conn == Conn::WFBitMapT);
        world.run_for_us(seed * 50);
        // Behind the wish of node 1 goes its state because of what node 0 does: as in the exchange.
        world.ask(1, AdminRequest::Detach { volume: VOLUME, force: false });
        assert_eq!(world.admin(0, AdminRequest::Secondary { volume: VOLUME }), 1);
        if world.admin_answer(1) == 1 {
            world.run_until("detached", 10_000, |world| !world.status(1).has_disk);
            world.run_for_ms(seed % 10);
            assert_eq!(world.attach(1), 101, "seed {seed}");
        }
        all_the_same(&mut world);
        assert_eq!(world.faults, [], "seed {seed}");
    }
}

/// Seed 18018550: the acknowledgements of one write after the other waited for a slow meta socket, and slots were free again before they were
/// out: the queue was full at some time, and the connection was given up.
#[test]
fn a_slow_meta_socket_holds_up_the_peers_writes() {
    for seed in 1..=SEEDS {
        let mut config = Config::new(seed);
        config.net.wire_protocol = WireProtocol::B;
        config.limits.requests = 256;
        config.limits.peer_requests = 16;
        config.sent_us_most = 5_000;
        let mut world = synced_with(config);
        // Each write has two answers then.
        world.ask(1, AdminRequest::Invalidate { volume: VOLUME });
        world.run_until("the target", 60_000, |world| world.status(1).state.conn == Conn::SyncTarget);
        for block in 0..600 {
            world.start(0, WRITE, block * 8, 8);
        }
        world.run_until("all operations", 60_000, |world| world.open_operations() == 0);
        assert_eq!(world.faults, [], "seed {seed}");
        all_the_same(&mut world);
    }
}
