//! The life of a pair, step by step, each with several seeds: what an administrator does first.

use engine::metadata::superblock::{UI_BITMAP, UI_CURRENT, UI_HISTORY_END, UI_HISTORY_START};
use engine::netlink::{OnIoError, WireProtocol};
use engine::resource::{AdminRequest, Fault, Helper, IoError, Notice, OpenError};
use engine::state::{Conn, Disk, Role};
use simulator::node::VOLUME;
use simulator::scenario::{connected, primary, synced, up_to_date, DETACH, SECONDARY, WRITE};
use simulator::world::Action;
use simulator::{Config, World};

/// Seeds a scenario; more with the environment variable `SEEDS`.
fn seeds() -> u64 {
    std::env::var("SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(5)
}

/// Runs a scenario with several seeds.
fn with_seeds(scenario: impl Fn(World)) {
    with_config(|_| {}, scenario);
}

fn with_config(change: impl Fn(&mut Config), scenario: impl Fn(World)) {
    for seed in 1..=seeds() {
        let mut config = Config::new(seed);
        change(&mut config);
        scenario(World::new(config));
    }
}

/// Nothing is under way, nothing is left over, both halves are the same.
#[track_caller]
fn quiet(world: &mut World) {
    world.run_for_ms(3_000);
    for node in 0..2 {
        assert_eq!(world.engine_of(node).usage(), Default::default(), "left over: {}", world.describe());
        assert_eq!(world.status(node).bits_out_of_sync, 0, "{}", world.describe());
    }
    let sectors = world.config.sectors;
    assert_eq!(world.nodes[0].data.first_difference(&world.nodes[1].data, sectors), None, "the halves differ");
    let [zero, one] = [0, 1].map(|node| world.status(node).uuids.map(|uuid| uuid & !1));
    assert_eq!(zero, one, "generations differ");
    assert_eq!(zero[UI_BITMAP], 0);
}

/// The peer says nothing about a volume that it does not have: nothing waits for it longer than `timeout`, and it joins in as
/// soon as the peer gets it.
#[test]
fn a_volume_that_the_peer_does_not_have() {
    let volumes = |config: &mut Config| config.limits.volumes = 2;
    with_config(volumes, |mut world| {
        let second = world.engine(0, |engine, now_ms| engine.add_volume(1, 1, now_ms)).expect("a second volume");
        let conn_of =
            |world: &World, node: usize| world.engine_of(node).volume_status(second).map(|status| status.state.conn);
        synced(&mut world);
        // The resync of the first volume does not wait for the second.
        world.set_network(false);
        world.run_until("the loss", 30_000, |world| (0..2).all(|node| world.status(node).state.conn < Conn::Connected));
        assert_eq!(world.io(0, WRITE, 64, 8), Ok(()));
        world.set_network(true);
        up_to_date(&mut world);
        assert_eq!(world.admin(0, SECONDARY), 1, "secondary");
        assert_eq!(conn_of(&world, 0), Some(Conn::WFReportParams));
        let other = world.engine(1, |engine, now_ms| engine.add_volume(1, 1, now_ms));
        assert_eq!(other, Ok(second));
        world.run_until("the second volume", 10_000, |world| {
            (0..2).all(|node| conn_of(world, node) == Some(Conn::Connected))
        });
        quiet(&mut world);
    });
}

#[test]
fn a_fresh_pair_connects_without_resync() {
    with_seeds(|mut world| {
        connected(&mut world);
        world.run_for_ms(1000);
        for node in 0..2 {
            let status = world.status(node);
            assert_eq!((status.state.disk, status.state.pdsk), (Disk::Inconsistent, Disk::Inconsistent));
            assert_eq!(status.uuids, [4, 0, 0, 0]);
            assert_eq!(status.bits_out_of_sync, world.config.sectors.div_ceil(8));
        }
        assert_eq!(world.faults, []);
    });
}

#[test]
fn the_first_promotion_syncs_everything() {
    // Fast enough to be over before the bitmap is written for the first time: what arrives meanwhile is asked for again.
    let fast = |config: &mut Config| (config.disk.c_plan_ahead, config.disk.resync_rate) = (0, 20_480);
    with_config(fast, |mut world| {
        connected(&mut world);
        for sector in 0..1000 {
            let stamp = world.oracle.begin(0, sector * 100, 1, false, 0);
            world.oracle.acknowledge(stamp, true, 1);
            world.nodes[0].data.write(sector * 100, &[stamp], true);
        }
        assert_eq!(world.admin(0, primary(true)), 1);
        up_to_date(&mut world);
        quiet(&mut world);
        // spec: metadata 6.5, fresh pair
        let uuids = world.status(0).uuids;
        assert_eq!((uuids[UI_CURRENT] & 1, uuids[UI_HISTORY_END]), (1, 4));
        assert_ne!(uuids[UI_HISTORY_START], 0);
        assert_eq!(world.status(1).uuids[UI_CURRENT], uuids[UI_CURRENT] & !1);
        assert_eq!((world.status(0).state.role, world.status(0).state.peer), (Role::Primary, Role::Secondary));
        assert_eq!(world.superblock(0).uuids, uuids, "durable");
        // Every sector went over the wire once, and is counted once.
        let (source, target) = (world.status(0).counters, world.status(1).counters);
        let sectors = world.config.sectors;
        assert_eq!((source.sent_sectors, source.read_sectors), (sectors, sectors));
        assert_eq!((target.received_sectors, target.written_sectors), (sectors, sectors));
    });
}

/// Whoever follows the events and sees that a resync is over finds what the helper program has done; the program itself finds a
/// volume that is in sync.
#[test]
fn the_helper_after_a_resync_runs_before_its_end_is_told() {
    with_seeds(|mut world| {
        connected(&mut world);
        assert_eq!(world.admin(0, primary(true)), 1, "primary --force");
        world.run_until("the helper", 300_000, |world| world.helpers.contains(&(1, Helper::AfterResyncTarget)));
        let state = world.status(1).state;
        assert_eq!((state.conn, state.disk), (Conn::Connected, Disk::UpToDate));
        let told = |(node, notice): &(usize, Notice)| {
            *node == 1 && matches!(notice, Notice::State { from, .. } if from.conn == Conn::SyncTarget)
        };
        assert!(!world.history.iter().any(told), "told before");
        world.run_until("the notice", 1_000, |world| world.history.iter().any(told));
        up_to_date(&mut world);
        quiet(&mut world);
    });
}

fn mixed_io(world: &mut World, node: usize, rounds: u64) {
    for _ in 0..rounds {
        for _ in 0..world.random.between(1, 12) {
            let count = world.random.pick(&[1, 1, 3, 7, 8, 8, 8, 9, 16, 40, 256, 2048]);
            let near = world.random.percent(60);
            let room = if near { 4096 } else { world.config.sectors };
            let sector = world.random.below(room - count);
            let action = match world.random.below(20) {
                0..=6 => Action::Read,
                7 => Action::Discard,
                8 => Action::WriteZeroes,
                9 => Action::Write { fua: true },
                10 => Action::Flush,
                _ => WRITE,
            };
            let (sector, count) = if action == Action::Flush { (0, 0) } else { (sector, count) };
            world.start(node, action, sector, count);
        }
        let wait = world.random.below(4);
        world.run_for_ms(wait);
    }
    let open = |world: &World| world.operations.iter().all(|operation| operation.result.is_some() || operation.lost);
    world.run_until("all operations", 60_000, open);
}

#[track_caller]
fn all_succeeded(world: &World) {
    for (number, operation) in world.operations.iter().enumerate() {
        assert_eq!(operation.result, Some(Ok(())), "#{number} {operation:?}");
    }
}

fn io_under(protocol: WireProtocol) {
    with_config(
        |config| config.net.wire_protocol = protocol,
        |mut world| {
            synced(&mut world);
            mixed_io(&mut world, 0, 60);
            all_succeeded(&world);
            quiet(&mut world);
            assert_eq!(world.faults, []);
        },
    );
}

#[test]
fn mixed_io_under_protocol_a() {
    io_under(WireProtocol::A);
}

#[test]
fn mixed_io_under_protocol_b() {
    io_under(WireProtocol::B);
}

#[test]
fn mixed_io_under_protocol_c() {
    io_under(WireProtocol::C);
}

#[test]
fn io_while_the_first_resync_runs() {
    with_seeds(|mut world| {
        connected(&mut world);
        assert_eq!(world.admin(0, primary(true)), 1);
        world.run_for_ms(50);
        mixed_io(&mut world, 0, 100);
        all_succeeded(&world);
        up_to_date(&mut world);
        quiet(&mut world);
    });
}

#[test]
fn an_outage_is_resynced_by_bitmap() {
    with_seeds(|mut world| {
        synced(&mut world);
        let before = world.status(0).uuids[UI_CURRENT] & !1;
        mixed_io(&mut world, 0, 5);
        world.set_network(false);
        mixed_io(&mut world, 0, 20);
        world.run_until("loss noticed", 60_000, |world| {
            (0..2).all(|node| world.status(node).state.conn == Conn::WFConnection)
        });
        mixed_io(&mut world, 0, 20);
        let bits = world.status(0).bits_out_of_sync;
        assert!(bits > 0 && bits < world.config.sectors.div_ceil(8), "{bits} bits");
        assert_eq!(world.status(0).uuids[UI_BITMAP] & !1, before);
        world.set_network(true);
        world.run_for_ms(20);
        mixed_io(&mut world, 0, 50);
        up_to_date(&mut world);
        all_succeeded(&world);
        quiet(&mut world);
        // spec: metadata 6.5, link loss while Primary
        let uuids = world.status(0).uuids;
        assert_eq!(uuids[UI_HISTORY_END] & !1, before);
        assert_eq!(uuids[UI_HISTORY_START] & !1, before + (1 << 48));
    });
}

#[test]
fn roles_change_both_ways() {
    with_seeds(|mut world| {
        synced(&mut world);
        for round in 0..4 {
            let (from, to) = (round % 2, 1 - round % 2);
            mixed_io(&mut world, from, 10);
            assert_eq!(world.admin(to, primary(false)), -1, "two Primaries");
            assert_eq!(world.admin(from, SECONDARY), 1);
            assert_eq!(world.admin(to, primary(false)), 1);
            mixed_io(&mut world, to, 10);
            let roles = [0, 1].map(|node| world.status(node).state.role);
            assert_eq!((roles[to], roles[from]), (Role::Primary, Role::Secondary));
        }
        all_succeeded(&world);
        quiet(&mut world);
    });
}

#[test]
fn an_orderly_disconnect_and_connect() {
    with_seeds(|mut world| {
        synced(&mut world);
        mixed_io(&mut world, 0, 5);
        assert_eq!(world.admin(1, AdminRequest::Disconnect { force: false }), 101);
        assert_eq!(world.status(1).state.conn, Conn::StandAlone);
        world.run_for_ms(3000);
        // spec: wire-protocol 12.5
        assert_eq!(world.status(0).state.conn, Conn::WFConnection);
        assert_eq!(world.faults, []);
        mixed_io(&mut world, 0, 10);
        assert_eq!(world.connect(1), 1);
        up_to_date(&mut world);
        // The Primary leaves.
        assert_eq!(world.admin(0, AdminRequest::Disconnect { force: false }), 101);
        world.run_for_ms(3000);
        assert_eq!(world.status(0).state.conn, Conn::StandAlone);
        assert_eq!(world.status(1).state.conn, Conn::WFConnection);
        assert_eq!(world.status(1).state.disk, Disk::UpToDate);
        mixed_io(&mut world, 0, 10);
        assert_eq!(world.connect(0), 1);
        up_to_date(&mut world);
        all_succeeded(&world);
        quiet(&mut world);
    });
}

#[test]
fn what_was_acknowledged_before_a_disconnect_is_not_copied_again() {
    with_seeds(|mut world| {
        synced(&mut world);
        mixed_io(&mut world, 0, 3);
        assert_eq!(world.admin(0, AdminRequest::Disconnect { force: false }), 101);
        assert_eq!(world.status(0).state.conn, Conn::StandAlone);
        assert_eq!(world.status(0).bits_out_of_sync, 0);
        assert_eq!(world.connect(0), 1);
        up_to_date(&mut world);
        all_succeeded(&world);
        quiet(&mut world);
    });
}

#[test]
fn detach_and_attach_while_connected() {
    with_seeds(|mut world| {
        synced(&mut world);
        mixed_io(&mut world, 0, 5);
        // The Secondary's disk.
        assert_eq!(world.admin(1, AdminRequest::Detach { volume: VOLUME, force: false }), 1);
        assert_eq!(world.status(1).state.disk, Disk::Diskless);
        mixed_io(&mut world, 0, 10);
        assert_eq!(world.status(0).state.pdsk, Disk::Diskless);
        assert_eq!(world.attach(1), 101);
        up_to_date(&mut world);
        quiet(&mut world);
        // The Primary's disk: everything goes through the peer.
        assert_eq!(world.admin(0, AdminRequest::Detach { volume: VOLUME, force: false }), 1);
        assert_eq!((world.status(0).state.disk, world.status(0).has_disk), (Disk::Diskless, false));
        mixed_io(&mut world, 0, 10);
        all_succeeded(&world);
        assert_eq!(world.attach(0), 101);
        mixed_io(&mut world, 0, 10);
        up_to_date(&mut world);
        all_succeeded(&world);
        quiet(&mut world);
    });
}

#[test]
fn a_peer_crashes_and_comes_back() {
    with_seeds(|mut world| {
        synced(&mut world);
        mixed_io(&mut world, 0, 10);
        world.start(0, WRITE, 0, 8);
        world.power_cut(1);
        mixed_io(&mut world, 0, 10);
        world.run_until("loss noticed", 60_000, |world| world.status(0).state.conn == Conn::WFConnection);
        mixed_io(&mut world, 0, 10);
        world.boot(1);
        assert_eq!(world.attach(1), 101);
        assert_eq!(world.connect(1), 1);
        up_to_date(&mut world);
        all_succeeded(&world);
        quiet(&mut world);
    });
}

/// Everything the application was told is done is on this node's disk.
#[track_caller]
fn acknowledged_is_on_disk(world: &World, node: usize) {
    if let Err(reason) = world.check_acknowledged(node) {
        panic!("node {node}: {reason}");
    }
}

#[test]
fn a_primary_crashes_and_the_other_takes_over() {
    with_seeds(|mut world| {
        synced(&mut world);
        mixed_io(&mut world, 0, 10);
        for sector in 0..20 {
            world.start(0, WRITE, sector * 4, 8);
        }
        world.run_for_ms(1);
        acknowledged_is_on_disk(&world, 1);
        world.power_cut(0);
        world.run_until("loss noticed", 60_000, |world| world.status(1).state.conn == Conn::WFConnection);
        acknowledged_is_on_disk(&world, 1);
        assert_eq!(world.admin(1, primary(false)), 1);
        mixed_io(&mut world, 1, 10);
        world.boot(0);
        assert_eq!(world.attach(0), 101);
        assert_eq!(world.connect(0), 1);
        up_to_date(&mut world);
        mixed_io(&mut world, 1, 10);
        quiet(&mut world);
        acknowledged_is_on_disk(&world, 0);
    });
}

#[test]
fn a_split_brain_is_refused() {
    with_seeds(|mut world| {
        synced(&mut world);
        world.set_network(false);
        world.run_until("loss noticed", 60_000, |world| {
            (0..2).all(|node| world.status(node).state.conn == Conn::WFConnection)
        });
        assert_eq!(world.admin(1, primary(false)), 1);
        assert_eq!(world.io(0, WRITE, 0, 8), Ok(()));
        assert_eq!(world.io(1, WRITE, 800, 8), Ok(()));
        world.set_network(true);
        // Each comes to its own verdict: none may wait for a peer that has left for good.
        world.run_until("split brain", 30_000, |world| {
            (0..2).all(|node| world.status(node).state.conn == Conn::StandAlone)
        });
        world.run_for_ms(5000);
        assert_eq!((world.nodes[0].data.get(0), world.nodes[0].data.get(800)), (1, 0));
        assert_eq!((world.nodes[1].data.get(0), world.nodes[1].data.get(800)), (0, 2));
        // The administrator decides whose changes are lost.
        assert_eq!(world.admin(1, SECONDARY), 1);
        let _code = world.admin(1, AdminRequest::Disconnect { force: false });
        let _code = world.admin(0, AdminRequest::Disconnect { force: false });
        let mut conf = world.config.net;
        conf.discard_my_data = true;
        assert_eq!(world.admin(1, AdminRequest::Connect { conf: &conf }), 1);
        assert_eq!(world.connect(0), 1);
        up_to_date(&mut world);
        quiet(&mut world);
        assert_eq!((world.nodes[1].data.get(0), world.nodes[1].data.get(800)), (1, 0));
    });
}

#[test]
fn a_local_read_error_is_served_by_the_peer() {
    with_seeds(|mut world| {
        synced(&mut world);
        mixed_io(&mut world, 0, 5);
        world.nodes[0].faults.read_percent = 100;
        mixed_io(&mut world, 0, 10);
        all_succeeded(&world);
        world.run_until("the disk is let go", 10_000, |world| !world.status(0).has_disk);
        world.nodes[0].faults.read_percent = 0;
        assert_eq!(world.attach(0), 101);
        up_to_date(&mut world);
        quiet(&mut world);
    });
}

#[test]
fn a_write_error_on_either_side_goes_unnoticed_by_the_application() {
    for bad in 0..2 {
        with_seeds(|mut world| {
            synced(&mut world);
            world.nodes[bad].faults.write_percent = 100;
            mixed_io(&mut world, 0, 10);
            world.run_until("the disk is let go", 10_000, |world| !world.status(bad).has_disk);
            mixed_io(&mut world, 0, 10);
            all_succeeded(&world);
            world.nodes[bad].faults.write_percent = 0;
            assert_eq!(world.attach(bad), 101);
            up_to_date(&mut world);
            quiet(&mut world);
        });
    }
}

/// What failed stays marked on both nodes, and both see that the resync is over; the next connection does the rest.
#[test]
fn a_resync_that_fails_in_part_ends_on_both_nodes() {
    with_config(
        |config| config.disk.on_io_error = OnIoError::PassOn,
        |mut world| {
            synced(&mut world);
            world.set_network(false);
            mixed_io(&mut world, 0, 20);
            world.run_until("loss noticed", 60_000, |world| world.status(0).state.conn == Conn::WFConnection);
            mixed_io(&mut world, 0, 20);
            world.nodes[1].faults.write_percent = 50;
            world.set_network(true);
            world.run_until("the end", 60_000, |world| {
                let [source, target] = [0, 1].map(|node| world.status(node).state);
                [source.conn, target.conn] == [Conn::Connected; 2]
                    && [source.pdsk, target.disk] == [Disk::Inconsistent; 2]
            });
            let bits = [0, 1].map(|node| world.status(node).bits_out_of_sync);
            // A flush that failed may have cost the target more.
            assert!(bits[0] > 0 && bits[0] <= bits[1], "{bits:?}");
            world.nodes[1].faults.write_percent = 0;
            world.reset_connection();
            up_to_date(&mut world);
            all_succeeded(&world);
            quiet(&mut world);
        },
    );
}

#[test]
fn a_failing_meta_data_disk_is_detached() {
    for bad in 0..2 {
        with_config(
            |config| config.sectors = 1 << 20,
            |mut world| {
                synced(&mut world);
                world.nodes[bad].faults.meta_percent = 100;
                mixed_io(&mut world, 0, 30);
                if bad == 1 {
                    assert_eq!(world.admin(1, AdminRequest::Disconnect { force: false }), 101);
                }
                world.run_until("the disk is let go", 10_000, |world| !world.status(bad).has_disk);
                mixed_io(&mut world, 0, 10);
                all_succeeded(&world);
                world.nodes[bad].faults.meta_percent = 0;
                assert_eq!(world.attach(bad), 101);
                if bad == 1 {
                    assert_eq!(world.connect(1), 1);
                }
                up_to_date(&mut world);
                quiet(&mut world);
            },
        );
    }
}

#[test]
fn invalidate_copies_everything_again() {
    with_seeds(|mut world| {
        synced(&mut world);
        mixed_io(&mut world, 0, 10);
        assert_eq!(world.admin(1, AdminRequest::Invalidate { volume: VOLUME }), 1);
        mixed_io(&mut world, 0, 10);
        up_to_date(&mut world);
        assert_eq!(world.admin(0, AdminRequest::InvalidateRemote { volume: VOLUME }), 1);
        mixed_io(&mut world, 0, 10);
        up_to_date(&mut world);
        all_succeeded(&world);
        quiet(&mut world);
    });
}

#[test]
fn the_initial_sync_can_be_skipped() {
    with_seeds(|mut world| {
        connected(&mut world);
        assert_eq!(world.admin(0, AdminRequest::NewCurrentUuid { volume: VOLUME, clear_bitmap: true }), 101);
        up_to_date(&mut world);
        quiet(&mut world);
        assert_eq!(world.admin(1, primary(false)), 1);
        mixed_io(&mut world, 1, 10);
        all_succeeded(&world);
        quiet(&mut world);
    });
}

#[test]
fn the_activity_log_is_smaller_than_the_working_set() {
    many_extents(true);
}

/// What makes the activity log durable makes no data durable then.
#[test]
fn what_leaves_the_activity_log_on_another_device_is_durable_before() {
    many_extents(false);
}

fn many_extents(internal: bool) {
    with_config(
        |config| {
            config.sectors = 1 << 21; // 256 extents
            config.internal = internal;
        },
        |mut world| {
            connected(&mut world);
            assert_eq!(world.admin(0, AdminRequest::NewCurrentUuid { volume: VOLUME, clear_bitmap: true }), 101);
            up_to_date(&mut world);
            assert_eq!(world.admin(0, primary(false)), 1);
            for round in 0..6 {
                for extent in 0..256 {
                    world.start(0, WRITE, extent * 8192 + round, 8);
                }
                world.run_for_ms(5);
            }
            mixed_io(&mut world, 0, 1);
            all_succeeded(&world);
            assert!(world.status(0).counters.activity_log_writes > 5);
            quiet(&mut world);
            for extent in 0..256 {
                world.start(0, WRITE, extent * 8192, 8);
            }
            world.run_for_ms(2);
            acknowledged_is_on_disk(&world, 1);
            world.power_cut(0);
            world.run_until("loss noticed", 60_000, |world| world.status(1).state.conn == Conn::WFConnection);
            acknowledged_is_on_disk(&world, 1);
            world.boot(0);
            assert_eq!(world.attach(0), 101);
            assert!(world.status(0).bits_out_of_sync > 0, "the activity log was replayed");
            assert_eq!(world.connect(0), 1);
            up_to_date(&mut world);
            quiet(&mut world);
        },
    );
}

#[test]
fn detach_of_both_and_down() {
    with_seeds(|mut world| {
        synced(&mut world);
        mixed_io(&mut world, 0, 3);
        assert_eq!(world.admin(0, SECONDARY), 1);
        for node in 0..2 {
            assert_eq!(world.admin(node, AdminRequest::Disconnect { force: false }), 101);
            assert_eq!(world.admin(node, AdminRequest::Detach { volume: VOLUME, force: false }), 1);
        }
        world.run_for_ms(1000);
        for node in 0..2 {
            assert_eq!(world.status(node).state.conn, Conn::StandAlone);
            assert_eq!(world.engine_of(node).usage(), Default::default(), "{}", world.describe());
            assert_eq!(world.engine(node, |engine, now| engine.remove_volume(VOLUME, now)), Ok(()));
        }
    });
}

/// A promotion sends a ping. The meta reader, which has waited for ping-int until that moment, must not take the silence before
/// for silence after it.
#[test]
fn a_ping_that_was_just_sent_is_not_overdue() {
    with_seeds(|mut world| {
        synced(&mut world);
        assert_eq!(world.admin(0, SECONDARY), 1, "secondary");
        world.ask(1, primary(false));
        let verdict = world.engine(1, |engine, now_ms| engine.meta_timeout(false, now_ms));
        assert!(verdict.is_ok(), "{verdict:?}");
        world.run_until("the new role", 10_000, |world| world.status(1).state.role == Role::Primary);
        assert_eq!(world.status(1).state.conn, Conn::Connected);
    });
}

/// Nothing is written; only the pings notice that nobody is there any more.
#[test]
fn a_network_that_is_dead_is_noticed_without_io() {
    with_seeds(|mut world| {
        synced(&mut world);
        world.set_network(false);
        let limit_ms = u64::from(world.config.net.ping_int) * 1000 + u64::from(world.config.net.ping_timeo) * 100;
        let alone = |world: &World| (0..2).all(|node| world.status(node).state.conn < Conn::Connected);
        world.run_until("both are alone", 2 * limit_ms, alone);
        world.set_network(true);
        up_to_date(&mut world);
    });
}

#[test]
fn settings_that_do_not_fit_are_refused() {
    with_seeds(|mut world| {
        for node in 0..2 {
            assert_eq!(world.attach(node), 101);
        }
        assert_eq!(world.connect(0), 1);
        world.config.net.wire_protocol = WireProtocol::A;
        assert_eq!(world.connect(1), 1);
        world.run_for_ms(5_000);
        for node in 0..2 {
            assert!(world.status(node).state.conn < Conn::Connected, "{}", world.describe());
        }
        assert!(world.faults.iter().any(|(_, fault)| matches!(fault, Fault::Protocol(_))), "{:?}", world.faults);
    });
}

#[test]
fn a_read_ahead_that_fails_costs_no_disk_and_is_not_tried_again() {
    with_seeds(|mut world| {
        synced(&mut world);
        mixed_io(&mut world, 0, 5);
        world.nodes[0].faults.read_percent = 100;
        let asked = world.packets_sent.get("P_DATA_REQUEST").copied();
        assert_eq!(world.io(0, Action::ReadAhead, 0, 8), Err(IoError::Io));
        assert_eq!(world.packets_sent.get("P_DATA_REQUEST").copied(), asked);
        let status = world.status(0);
        assert_eq!((status.state.disk, status.bits_out_of_sync), (Disk::UpToDate, 0));
        assert_eq!(world.io(0, Action::Read, 0, 8), Ok(()), "the peer has it");
        world.run_until("the disk is let go", 10_000, |world| !world.status(0).has_disk);
    });
}

#[test]
fn a_device_that_is_held_open_is_not_demoted() {
    for write in [true, false] {
        with_seeds(|mut world| {
            synced(&mut world);
            let refused = if write { OpenError::ReadOnly } else { OpenError::NotPrimary };
            assert_eq!(world.engine(1, |engine, _| engine.open(VOLUME, write)), Err(refused));
            assert_eq!(world.engine(0, |engine, _| engine.open(VOLUME, write)), Ok(()));
            assert_eq!(world.admin(0, SECONDARY), -12);
            assert_eq!(world.status(0).state.role, Role::Primary);
            world.engine(0, |engine, _| engine.release(VOLUME, write));
            assert_eq!(world.admin(0, SECONDARY), 1);
        });
    }
}

/// The peer acknowledges nothing, so that the transfer log does not drain: whoever holds the device open is the reason to tell at once, and
/// not when a log that he goes on filling has drained.
#[test]
fn a_device_that_is_held_open_is_not_demoted_while_it_is_written_to() {
    with_seeds(|mut world| {
        synced(&mut world);
        assert_eq!(world.engine(0, |engine, _| engine.open(VOLUME, true)), Ok(()));
        world.set_direction(1, false);
        let write = world.start(0, WRITE, 0, 8);
        world.run_for_ms(10);
        world.ask(0, SECONDARY);
        assert_eq!(world.poll_admin(0), Some(-12));
        assert!(world.operations[write].is_open());
        world.set_direction(1, true);
        world.run_until("the write", 10_000, |world| !world.operations[write].is_open());
        world.engine(0, |engine, _| engine.release(VOLUME, true));
        assert_eq!(world.admin(0, SECONDARY), 1);
    });
}

/// Nobody holds the device open when its demotion begins, and somebody opens it before all is at the peer, and goes on writing.
#[test]
fn a_device_that_is_opened_while_it_is_demoted_stays_primary() {
    with_seeds(|mut world| {
        synced(&mut world);
        world.set_direction(1, false);
        let write = world.start(0, WRITE, 0, 8);
        world.run_for_ms(10);
        world.ask(0, SECONDARY);
        world.run_for_ms(10);
        assert_eq!(world.poll_admin(0), None);
        assert_eq!(world.engine(0, |engine, _| engine.open(VOLUME, true)), Ok(()));
        world.set_direction(1, true);
        let mut last = write;
        let refused = (1..200).find_map(|round| {
            // Each begins before the one before it is over: the log never drains.
            let next = world.start(0, WRITE, round * 8, 8);
            world.run_until("a write", 10_000, |world| !world.operations[last].is_open());
            last = next;
            world.poll_admin(0)
        });
        assert_eq!(refused, Some(-12));
        assert_eq!(world.status(0).state.role, Role::Primary);
        world.engine(0, |engine, _| engine.release(VOLUME, true));
        assert_eq!(world.admin(0, SECONDARY), 1);
    });
}

/// The only disk is no good any more, and kept (`on-io-error pass_on`). This Primary has no data then, which must not excuse that it lets
/// the disk go as well; nor is the peer asked.
#[test]
fn a_primary_without_good_data_does_not_let_its_disk_go() {
    with_config(
        |config| config.disk.on_io_error = OnIoError::PassOn,
        |mut world| {
            synced(&mut world);
            assert_eq!(world.admin(1, DETACH), 1);
            world.run_until("without a disk", 10_000, |world| world.status(0).state.pdsk == Disk::Diskless);
            world.nodes[0].faults.write_percent = 100;
            world.start(0, WRITE, 0, 8);
            world.run_until("the failure", 10_000, |world| world.status(0).state.disk == Disk::Inconsistent);
            world.run_for_ms(100);
            world.nodes[0].faults.write_percent = 0;
            let asked = world.packets_sent.get("P_STATE_CHG_REQ").copied();
            assert_eq!(world.admin(0, DETACH), -2);
            assert_eq!(world.status(0).state.disk, Disk::Inconsistent);
            assert_eq!(world.packets_sent.get("P_STATE_CHG_REQ").copied(), asked);
        },
    );
}
