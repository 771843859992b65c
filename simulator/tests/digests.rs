//! Whatever needs a look at the data: online verify, checksum-based resync, thin resync.

use engine::netlink::{NetConf, OnIoError, WireProtocol};
use engine::resource::{AdminRequest, AlgorithmName, Fault, Helper, CHALLENGE_BYTES};
use engine::state::{Conn, Disk};
use simulator::inspect::UNKNOWN_ALGORITHM;
use simulator::node::VOLUME;
use simulator::scenario::{synced, up_to_date, DETACH, FORCE_DETACH, WRITE};
use simulator::world::Action;
use simulator::{Config, World};

const SEEDS: u64 = 4;
const SECTORS: u64 = 16_384;
const BLOCKS: u64 = SECTORS / 8;

fn algorithm(name: &str) -> AlgorithmName {
    AlgorithmName::from_bytes(name.as_bytes()).unwrap()
}

/// Runs a scenario with several seeds.
fn with_config(change: impl Fn(&mut Config), scenario: impl Fn(World)) {
    for seed in 1..=SEEDS {
        let mut config = Config::new(seed);
        config.internal = false;
        config.sectors = SECTORS;
        config.disk.resync_rate = 100_000;
        config.net.verify_alg = algorithm("crc32c");
        change(&mut config);
        scenario(World::new(config));
    }
}

#[track_caller]
fn nothing_left_over(world: &mut World) {
    world.run_for_ms(3_000);
    for node in 0..2 {
        assert_eq!(world.engine_of(node).usage(), Default::default(), "left over: {}", world.describe());
    }
}

#[track_caller]
fn equal(world: &mut World) {
    nothing_left_over(world);
    for node in 0..2 {
        assert_eq!(world.status(node).bits_out_of_sync, 0, "{}", world.describe());
    }
    assert_eq!(world.nodes[0].data.first_difference(&world.nodes[1].data, SECTORS), None, "the halves differ");
}

fn verify(volume_start: Option<u64>, stop_sector: Option<u64>) -> AdminRequest<'static> {
    AdminRequest::Verify { volume: VOLUME, start_sector: volume_start, stop_sector }
}

#[track_caller]
fn verified(world: &mut World) {
    world.run_until("verify", 300_000, |world| (0..2).all(|node| world.status(node).state.conn == Conn::Connected));
    world.run_for_ms(100);
}

/// Something on a disk changes behind everybody's back.
fn corrupt(world: &mut World, node: usize, sector: u64) {
    let stamp = world.nodes[node].data.get(sector) + 1_000_000;
    world.nodes[node].data.write(sector, &[stamp], true);
}

fn some_writes(world: &mut World, rounds: u64) {
    for _ in 0..rounds {
        for _ in 0..world.random.between(1, 8) {
            let count = world.random.pick(&[1, 8, 8, 9, 64, 256]);
            let sector = world.random.below(SECTORS - count);
            let action = if world.random.percent(10) { Action::Discard } else { WRITE };
            world.start(0, action, sector, count);
        }
        let wait = world.random.below(30);
        world.run_for_ms(wait);
    }
    let open = |world: &World| world.operations.iter().all(|operation| operation.result.is_some() || operation.lost);
    world.run_until("all operations", 60_000, open);
    for operation in &world.operations {
        assert_eq!(operation.result, Some(Ok(())), "{operation:?}");
    }
}

fn sent(world: &World, name: &str) -> u64 {
    world.packets_sent.get(name).copied().unwrap_or(0)
}

/// Bits set on both nodes.
#[track_caller]
fn out_of_sync(world: &World, blocks: u64) {
    for node in 0..2 {
        assert_eq!(world.status(node).bits_out_of_sync, blocks, "node {node}: {}", world.describe());
    }
}

#[test]
fn verify_finds_what_differs_and_nothing_else() {
    for asked in 0..2 {
        with_config(
            |_| {},
            |mut world| {
                synced(&mut world);
                some_writes(&mut world, 10);
                for sector in [0, 9, 17, 800, SECTORS - 1] {
                    corrupt(&mut world, 1, sector);
                }
                assert_eq!(world.admin(asked, verify(None, None)), 1);
                let conn = [Conn::VerifyS, Conn::VerifyT];
                let found = [world.status(asked).state.conn, world.status(1 - asked).state.conn];
                assert_eq!(found, conn);
                let sync = world.status(asked).sync.unwrap();
                assert_eq!((sync.total_bits, sync.stop_sector), (BLOCKS, None));
                verified(&mut world);
                out_of_sync(&world, 5);
                assert_eq!(sent(&world, "P_OV_REQUEST"), BLOCKS);
                assert_eq!(sent(&world, "P_OV_REPLY"), BLOCKS);
                assert_eq!(sent(&world, "P_OV_RESULT"), BLOCKS);
                let told = |node| world.helpers.iter().filter(|&&helper| helper == (node, Helper::OutOfSync)).count();
                assert_eq!([told(0), told(1)], [1, 1]);
                for node in 0..2 {
                    let state = world.status(node).state;
                    assert_eq!((state.disk, state.pdsk), (Disk::UpToDate, Disk::UpToDate));
                }
                nothing_left_over(&mut world);
                assert_eq!(world.faults, []);
                // The next connect repairs it.
                assert_eq!(world.admin(1, AdminRequest::Disconnect { force: false }), 101);
                world.run_for_ms(2000);
                assert_eq!(world.connect(1), 1);
                up_to_date(&mut world);
                equal(&mut world);
            },
        );
    }
}

#[test]
fn verify_of_busy_halves_finds_nothing() {
    for (asked, protocol) in [(0, WireProtocol::C), (1, WireProtocol::C), (0, WireProtocol::A), (1, WireProtocol::A)] {
        with_config(
            |config| config.net.wire_protocol = protocol,
            |mut world| {
                synced(&mut world);
                assert_eq!(world.admin(asked, verify(None, None)), 1);
                let mut rounds = 0;
                while world.status(asked).state.conn == Conn::VerifyS {
                    some_writes(&mut world, 5);
                    rounds += 1;
                }
                assert!(rounds > 3, "the run was over too early to tell");
                verified(&mut world);
                out_of_sync(&world, 0);
                assert!(world.helpers.iter().all(|&(_, helper)| helper != Helper::OutOfSync));
                equal(&mut world);
                assert_eq!(world.faults, []);
            },
        );
    }
}

#[test]
fn verify_starts_and_stops_where_it_is_told() {
    with_config(
        |_| {},
        |mut world| {
            synced(&mut world);
            let places = [100, 5000, 12_000];
            for sector in places {
                corrupt(&mut world, 1, sector);
            }
            // The start is rounded down to a block.
            assert_eq!(world.admin(0, verify(Some(4007), Some(8000))), 1);
            assert_eq!(world.status(0).sync.unwrap().stop_sector, Some(8000));
            verified(&mut world);
            out_of_sync(&world, 1);
            assert_eq!(sent(&world, "P_OV_REQUEST"), (8000 - 4000) / 8);
            // On from there, to the end.
            assert_eq!(world.admin(0, verify(None, None)), 1);
            verified(&mut world);
            out_of_sync(&world, 2);
            assert_eq!(sent(&world, "P_OV_REQUEST"), (SECTORS - 4000) / 8);
            // From the beginning.
            assert_eq!(world.admin(0, verify(None, Some(1))), 1);
            assert_eq!(world.status(0).sync.unwrap().total_bits, BLOCKS);
            verified(&mut world);
            assert_eq!(sent(&world, "P_OV_REQUEST"), (SECTORS - 4000) / 8 + 1);
            // Beyond the end: the last block. A stop before the start: one block.
            for (start, stop) in [(SECTORS * 2, None), (800, Some(8))] {
                let before = sent(&world, "P_OV_REQUEST");
                assert_eq!(world.admin(0, verify(Some(start), stop)), 1);
                verified(&mut world);
                assert_eq!(sent(&world, "P_OV_REQUEST"), before + 1);
            }
            out_of_sync(&world, 2);
            nothing_left_over(&mut world);
            assert_eq!(world.faults, []);
        },
    );
}

#[test]
fn verify_survives_a_lost_connection_and_goes_on() {
    with_config(
        |config| {
            config.disk.c_plan_ahead = 0;
            config.disk.resync_rate = 4000;
        },
        |mut world| {
            synced(&mut world);
            corrupt(&mut world, 0, 8 * 1000);
            assert_eq!(world.admin(0, verify(None, None)), 1);
            world.run_for_ms(600);
            let asked = sent(&world, "P_OV_RESULT");
            assert!(asked > 100 && asked < 1000, "{asked}");
            world.set_network(false);
            world.run_until("loss noticed", 60_000, |world| {
                (0..2).all(|node| world.status(node).state.conn == Conn::WFConnection)
            });
            world.set_network(true);
            up_to_date(&mut world);
            nothing_left_over(&mut world);
            assert_eq!(world.admin(0, verify(None, None)), 1);
            let total = world.status(0).sync.unwrap().total_bits;
            assert!(total <= BLOCKS - asked + 64 && total < BLOCKS, "{total}");
            verified(&mut world);
            out_of_sync(&world, 1);
            nothing_left_over(&mut world);
        },
    );
}

#[test]
fn verify_is_refused_when_it_cannot_be() {
    with_config(
        |config| config.net.verify_alg = AlgorithmName::EMPTY,
        |mut world| {
            synced(&mut world);
            assert_eq!(world.admin(0, verify(None, None)), -14);
        },
    );
    with_config(
        |_| {},
        |mut world| {
            assert_eq!(world.attach(0), 101);
            assert!(world.admin(0, verify(None, None)) < 1, "no connection");
            synced_from_attached(&mut world);
            assert_eq!(world.admin(0, verify(None, None)), 1);
            assert_eq!(world.admin(1, verify(None, None)), -8);
            let other = NetConf { verify_alg: algorithm("sha1"), ..world.config.net };
            world.tell_algorithms(0, &[other.verify_alg]);
            assert_eq!(world.admin(0, AdminRequest::NetOptions { conf: &other }), 149);
            verified(&mut world);
        },
    );
}

/// Neither node has two good disks to compare then, and no verify runs.
#[test]
fn a_verify_of_a_disk_that_is_not_good_is_refused() {
    with_config(
        |config| config.disk.on_io_error = OnIoError::PassOn,
        |mut world| {
            synced(&mut world);
            // Node 1 has not heard of the failure when it asks, as a C module that takes the disk for good does not.
            world.set_direction(0, false);
            world.nodes[0].faults.write_percent = 100;
            let write = world.start(0, WRITE, 800, 8);
            world.run_until("the failure", 1_000, |world| world.status(0).state.disk == Disk::Inconsistent);
            world.nodes[0].faults.write_percent = 0;
            world.ask(1, verify(Some(0), None));
            world.run_for_ms(20);
            world.set_direction(0, true);
            let code = world.admin_answer(1);
            assert!(code < 1, "the peer agreed: {code}");
            world.run_until("the write", 10_000, |world| world.operations[write].result.is_some());
            world.run_until("told", 1_000, |world| world.status(1).state.pdsk == Disk::Inconsistent);
            for node in 0..2 {
                assert_eq!(world.admin(node, verify(Some(0), None)), -2, "node {node}");
                assert_eq!(world.status(node).state.conn, Conn::Connected, "node {node}");
            }
            // Nor without a disk.
            assert_eq!(world.admin(0, DETACH), 1);
            for node in 0..2 {
                assert!(world.admin(node, verify(Some(0), None)) < 1, "node {node}");
            }
            assert_eq!(world.faults, []);
        },
    );
}

/// A C module keeps every write of the application out of the 16 MiB around a block whose digest it has told, until it has the result.
/// So there is one for each digest, also when the run is over because the disk is gone; and what has not been asked for by then is not.
#[test]
fn every_digest_has_a_result_also_when_the_own_disk_is_gone() {
    let (mut unsent, mut late) = (0, 0);
    for case in 0..3 {
        for seed in 1..=20 {
            let mut config = Config::new(seed);
            (config.internal, config.sectors) = (false, SECTORS);
            (config.disk.c_plan_ahead, config.disk.resync_rate) = (0, 100_000);
            config.disk.on_io_error = OnIoError::PassOn;
            config.net.verify_alg = algorithm("crc32c");
            let mut world = World::new(config);
            synced(&mut world);
            world.config.sent_us_most = if seed % 2 == 0 { 60 } else { 1_000 };
            assert_eq!(world.admin(1, verify(Some(0), None)), 1);
            world.run_for_ms(100 + seed * 3);
            // What is on its way, or waits for the disk.
            match case {
                0 => {}
                1 => world.set_direction(0, false),
                _ => world.nodes[1].faults.hangs = true,
            }
            world.run_for_ms(20);
            if seed % 3 == 0 {
                world.nodes[1].faults.write_percent = 100;
                world.start(0, WRITE, SECTORS - 8, 8);
            } else {
                world.ask(1, FORCE_DETACH);
            }
            world.run_for_ms(5);
            world.set_direction(0, true);
            world.nodes[1].faults = Default::default();
            let requested = sent(&world, "P_OV_REQUEST");
            let over = |world: &World| world.status(1).state.conn == Conn::Connected;
            if over(&world) {
                unsent += u64::from(world.engine_of(1).usage().queued > 0);
                late += u64::from(sent(&world, "P_OV_REPLY") > sent(&world, "P_OV_RESULT"));
            }
            world.run_until("the end of the run", 10_000, over);
            nothing_left_over(&mut world);
            assert_eq!(sent(&world, "P_OV_RESULT"), sent(&world, "P_OV_REPLY"), "case {case}, seed {seed}");
            assert!(requested > 0, "case {case}, seed {seed}");
            assert_eq!(world.faults, [], "case {case}, seed {seed}");
        }
    }
    assert!(unsent > 5 && late > 5, "{unsent} {late}");
}

/// Nothing begins then, but the run that is under way takes the new end, as in the C module.
#[test]
fn a_running_verify_takes_a_new_stop_sector() {
    with_config(
        |config| (config.disk.c_plan_ahead, config.disk.resync_rate) = (0, 4_000),
        |mut world| {
            synced(&mut world);
            assert_eq!(world.admin(0, verify(Some(0), None)), 1);
            world.run_for_ms(300);
            // On the node that only answers there is nothing to stop.
            assert_eq!(world.admin(1, verify(None, Some(8))), -8);
            assert_eq!(world.admin(0, verify(Some(160), Some(4_000))), 2);
            assert_eq!(world.status(0).sync.unwrap().stop_sector, Some(4_000));
            verified(&mut world);
            assert_eq!(sent(&world, "P_OV_REQUEST"), 4_000 / 8);
            // The next one goes on there, and is stopped where it has been already: at once.
            assert_eq!(world.admin(0, verify(None, None)), 1);
            world.run_for_ms(300);
            assert_eq!(world.admin(0, verify(None, Some(8))), 2);
            world.run_for_ms(300);
            for node in 0..2 {
                assert_eq!(world.status(node).state.conn, Conn::Connected, "node {node}");
            }
            assert!(sent(&world, "P_OV_REQUEST") < BLOCKS);
            nothing_left_over(&mut world);
            assert_eq!(world.faults, []);
        },
    );
}

fn synced_from_attached(world: &mut World) {
    assert_eq!(world.attach(1), 101, "attach");
    for node in 0..2 {
        assert_eq!(world.connect(node), 1, "connect");
    }
    world.run_until("connected", 10_000, |world| (0..2).all(|node| world.status(node).state.conn == Conn::Connected));
    assert_eq!(world.admin(0, AdminRequest::Primary { volume: VOLUME, force: true }), 1);
    up_to_date(world);
}

#[test]
fn unknown_algorithms_are_refused() {
    for (option, code) in [("csums-alg", 144), ("verify-alg", 146)] {
        with_config(
            |config| {
                let unknown = algorithm(UNKNOWN_ALGORITHM);
                match option {
                    "csums-alg" => config.net.csums_alg = unknown,
                    _ => config.net.verify_alg = unknown,
                }
            },
            |mut world| assert_eq!(world.connect(0), code),
        );
    }
}

/// Without it the digests of a verify, or of a resync, would be of different sizes, or never equal.
#[test]
fn nodes_with_different_algorithms_do_not_come_together() {
    for verify in [true, false] {
        with_config(
            |config| config.net.csums_alg = algorithm("crc32c"),
            |mut world| {
                for node in 0..2 {
                    assert_eq!(world.attach(node), 101);
                }
                assert_eq!(world.connect(0), 1);
                let net = &mut world.config.net;
                *if verify { &mut net.verify_alg } else { &mut net.csums_alg } = AlgorithmName::EMPTY;
                assert_eq!(world.connect(1), 1);
                world.run_until("parted", 10_000, |world| {
                    (0..2).any(|node| world.status(node).state.conn == Conn::StandAlone)
                });
                world.run_for_ms(100);
                let what = if verify { "verify-alg" } else { "csums-alg" };
                assert!(
                    world.faults.iter().any(|&(_, fault)| fault == Fault::Algorithm { what }),
                    "{:?}",
                    world.faults
                );
            },
        );
    }
}

#[test]
fn a_change_of_algorithms_reaches_the_peer() {
    with_config(
        |_| {},
        |mut world| {
            synced(&mut world);
            let other = NetConf { verify_alg: algorithm("sha1"), csums_alg: algorithm("md5"), ..world.config.net };
            assert_eq!(world.admin(0, AdminRequest::NetOptions { conf: &other }), 144);
            world.tell_algorithms(0, &[other.verify_alg, other.csums_alg]);
            assert_eq!(world.admin(0, AdminRequest::NetOptions { conf: &other }), 101);
            world.run_for_ms(1000);
            let conf = world.engine_of(1).net_conf().unwrap();
            assert_eq!((conf.verify_alg, conf.csums_alg), (other.verify_alg, other.csums_alg));
            corrupt(&mut world, 1, 77);
            assert_eq!(world.admin(1, verify(None, None)), 1);
            verified(&mut world);
            out_of_sync(&world, 1);
            assert_eq!(world.faults, []);
            // One that only this node has: the peer leaves.
            let unknown = algorithm(UNKNOWN_ALGORITHM);
            assert!(world.engine(0, |engine, _| engine.know_algorithm(&unknown, 16)));
            let other = NetConf { verify_alg: unknown, ..other };
            assert_eq!(world.admin(0, AdminRequest::NetOptions { conf: &other }), 101);
            world.run_for_ms(3000);
            assert_eq!(world.status(1).state.conn, Conn::StandAlone);
            assert!(world.faults.iter().any(|(node, fault)| *node == 1 && matches!(fault, Fault::Algorithm { .. })));
        },
    );
}

fn with_checksums(config: &mut Config) {
    config.net.csums_alg = algorithm("sha1");
}

#[test]
fn equal_blocks_are_not_sent_again() {
    for busy in [false, true] {
        with_config(with_checksums, |mut world| {
            synced(&mut world);
            some_writes(&mut world, 10);
            for sector in [5, 4000, 4001, 9000] {
                corrupt(&mut world, 1, sector);
            }
            world.packets_sent.clear();
            assert_eq!(world.admin(1, AdminRequest::Invalidate { volume: VOLUME }), 1);
            if busy {
                some_writes(&mut world, 20);
            }
            up_to_date(&mut world);
            equal(&mut world);
            assert_eq!(sent(&world, "P_RS_DATA_REQUEST"), 0);
            assert!(sent(&world, "P_CSUM_RS_REQUEST") > 0);
            if !busy {
                assert!(sent(&world, "P_RS_IS_IN_SYNC") > 0);
                assert!((1..=4).contains(&sent(&world, "P_RS_DATA_REPLY")), "{:?}", world.packets_sent);
                let answers = sent(&world, "P_RS_DATA_REPLY") + sent(&world, "P_RS_IS_IN_SYNC");
                assert_eq!(sent(&world, "P_CSUM_RS_REQUEST"), answers);
            }
            assert_eq!(world.faults, []);
        });
    }
}

#[test]
fn checksums_only_after_a_crash_of_a_primary() {
    with_config(
        |config| {
            with_checksums(config);
            config.net.csums_after_crash_only = true;
        },
        |mut world| {
            synced(&mut world);
            world.packets_sent.clear();
            assert_eq!(world.admin(1, AdminRequest::Invalidate { volume: VOLUME }), 1);
            up_to_date(&mut world);
            assert_eq!(sent(&world, "P_CSUM_RS_REQUEST"), 0);
            assert!(sent(&world, "P_RS_DATA_REQUEST") > 0);
            // The Primary crashes, the other takes over: now node 0 is the target, with the mark.
            some_writes(&mut world, 3);
            world.power_cut(0);
            world.run_until("loss noticed", 60_000, |world| world.status(1).state.conn == Conn::WFConnection);
            assert_eq!(world.admin(1, AdminRequest::Primary { volume: VOLUME, force: false }), 1);
            world.boot(0);
            world.apply_al(0);
            world.packets_sent.clear();
            assert_eq!(world.attach(0), 101);
            assert_eq!(world.connect(0), 1);
            up_to_date(&mut world);
            assert_eq!(sent(&world, "P_RS_DATA_REQUEST"), 0);
            assert!(sent(&world, "P_CSUM_RS_REQUEST") > 0);
            equal(&mut world);
        },
    );
}

#[test]
fn holes_stay_holes() {
    for busy in [false, true] {
        with_config(
            |config| config.disk.rs_discard_granularity = 65_536,
            |mut world| {
                for node in 0..2 {
                    // The target is full of something else, the source has data here and there.
                    for sector in (0..SECTORS).filter(|sector| node == 1 || sector % 1024 == 3) {
                        let stamp = 2_000_000 + sector + node as u64 * SECTORS;
                        world.nodes[node].data.write(sector, &[stamp], true);
                    }
                }
                for node in 0..2 {
                    assert_eq!(world.attach(node), 101);
                    assert_eq!(world.connect(node), 1);
                }
                world.run_until("connected", 10_000, |world| world.status(0).state.conn == Conn::Connected);
                assert_eq!(world.admin(0, AdminRequest::Primary { volume: VOLUME, force: true }), 1);
                if busy {
                    some_writes(&mut world, 20);
                }
                up_to_date(&mut world);
                equal(&mut world);
                if !busy {
                    // 16 of the 128 pieces have data.
                    assert_eq!(sent(&world, "P_RS_THIN_REQ"), 128, "{:?}", world.packets_sent);
                    assert_eq!(sent(&world, "P_RS_DEALLOCATED"), 112);
                    assert_eq!(sent(&world, "P_RS_DATA_REPLY"), 16);
                }
                assert!(sent(&world, "P_RS_DEALLOCATED") > 0);
                assert_eq!(world.faults, []);
            },
        );
    }
}

#[test]
fn checksums_and_holes_survive_lost_connections() {
    for thin in [false, true] {
        with_config(
            |config| {
                if thin {
                    config.disk.rs_discard_granularity = 16_384;
                } else {
                    with_checksums(config);
                }
            },
            |mut world| {
                synced(&mut world);
                some_writes(&mut world, 10);
                assert_eq!(world.admin(1, AdminRequest::Invalidate { volume: VOLUME }), 1);
                for _ in 0..5 {
                    let wait = world.random.between(100, 900);
                    world.run_for_ms(wait);
                    world.set_network(false);
                    some_writes(&mut world, 2);
                    world.run_until("loss noticed", 60_000, |world| world.status(0).state.conn == Conn::WFConnection);
                    world.set_network(true);
                }
                up_to_date(&mut world);
                equal(&mut world);
            },
        );
    }
}

fn with_secret(config: &mut Config) {
    config.net.cram_hmac_alg = algorithm("sha256");
    config.net.shared_secret = algorithm("open sesame");
}

#[test]
fn nodes_with_the_same_secret_come_together() {
    with_config(with_secret, |mut world| {
        synced(&mut world);
        assert_eq!((sent(&world, "P_AUTH_CHALLENGE"), sent(&world, "P_AUTH_RESPONSE")), (2, 2));
        assert_eq!(world.engine_of(0).own_challenge().as_bytes().len(), CHALLENGE_BYTES);
        assert_ne!(world.engine_of(0).own_challenge(), world.engine_of(1).own_challenge());
        world.set_network(false);
        some_writes(&mut world, 3);
        world.run_until("loss noticed", 60_000, |world| world.status(0).state.conn == Conn::WFConnection);
        world.set_network(true);
        up_to_date(&mut world);
        equal(&mut world);
    });
}

#[test]
fn another_secret_is_refused() {
    with_config(with_secret, |mut world| {
        world.wrong_secret[1] = true;
        for node in 0..2 {
            assert_eq!(world.attach(node), 101);
            assert_eq!(world.connect(node), 1);
        }
        world.run_for_ms(20_000);
        let alone = (0..2).filter(|&node| world.status(node).state.conn == Conn::StandAlone).count();
        assert!(alone > 0, "{}", world.describe());
        assert!(world.faults.iter().any(|(_, fault)| matches!(fault, Fault::Authentication { .. })));
        assert_eq!(sent(&world, "P_PROTOCOL"), 0);
    });
}

#[test]
fn a_secret_on_one_side_only_is_refused() {
    with_config(with_secret, |mut world| {
        for node in 0..2 {
            assert_eq!(world.attach(node), 101);
        }
        assert_eq!(world.connect(0), 1);
        world.config.net.cram_hmac_alg = AlgorithmName::EMPTY;
        assert_eq!(world.connect(1), 1);
        world.run_for_ms(10_000);
        // spec: wire-protocol 4.3: the one with the secret gives up, the other goes on trying.
        assert_eq!(world.status(0).state.conn, Conn::StandAlone, "{}", world.describe());
        assert_ne!(world.status(1).state.conn, Conn::StandAlone);
        assert!(world.status(1).state.conn < Conn::WFReportParams || world.status(1).state.conn < Conn::Connected);
    });
}

#[test]
fn an_unknown_algorithm_for_secrets_is_refused() {
    with_config(
        |config| {
            with_secret(config);
            config.net.cram_hmac_alg = algorithm(&"x".repeat(60));
        },
        |mut world| assert_eq!(world.connect(0), 120),
    );
}

fn with_integrity(config: &mut Config) {
    config.net.integrity_alg = algorithm("crc32c");
}

#[test]
fn data_that_was_damaged_on_its_way_is_never_written() {
    with_config(with_integrity, |mut world| {
        synced(&mut world);
        some_writes(&mut world, 10);
        assert_eq!(world.faults, []);
        for _ in 0..3 {
            world.garble = true;
            let wait = world.random.below(5);
            some_writes(&mut world, 3);
            world.run_for_ms(wait);
            up_to_date(&mut world);
        }
        assert!(!world.garble, "nothing was damaged");
        assert!(world.faults.iter().all(|(_, fault)| *fault == Fault::Integrity) && world.faults.len() == 3);
        equal(&mut world);
        for sector in 0..SECTORS {
            assert!(world.nodes[1].data.get(sector) < 1 << 40, "sector {sector}");
        }
    });
}

/// Seed 6008482: a disk that is kept though it fails counted as good as long as a verify ran, and reads found what had been there before
/// the write that failed. The other way round, the peer's writes that were refused waited for it to tell of its disk.
#[test]
fn a_disk_that_fails_and_is_kept_ends_a_verify() {
    for weak in 0..2 {
        for asked in 0..2 {
            let change = |config: &mut Config| {
                config.disk.on_io_error = OnIoError::PassOn;
                config.disk.resync_rate = 250;
            };
            with_config(change, |mut world| {
                world.config.check_reads = true;
                synced(&mut world);
                world.ask(asked, verify(Some(0), None));
                world.run_until("verify", 10_000, |world| {
                    (0..2).all(|node| matches!(world.status(node).state.conn, Conn::VerifyS | Conn::VerifyT))
                });
                world.nodes[weak].faults.write_percent = 100;
                assert_eq!(world.io(0, WRITE, 4000, 8), Ok(()));
                world.nodes[weak].faults.write_percent = 0;
                assert_eq!(world.io(0, Action::Read, 4000, 8), Ok(()));
                let ended = |world: &World| {
                    let [own, other] = [weak, 1 - weak].map(|node| world.status(node).state);
                    own.conn == Conn::Connected && own.disk == Disk::Inconsistent && other.pdsk == own.disk
                };
                world.run_until("the end of the verify", 1_000, ended);
                nothing_left_over(&mut world);
                world.reset_connection();
                world.run_until("loss noticed", 10_000, |world| world.status(0).state.conn < Conn::Connected);
                up_to_date(&mut world);
                equal(&mut world);
            });
        }
    }
}

/// The same with a C module as the node whose disk is good: it goes on with the verify, and takes the other disk for good until that is over.
#[test]
fn a_peer_that_goes_on_with_a_verify_hears_of_the_failed_disk_in_the_end() {
    for weak in 0..2 {
        for asked in 0..2 {
            let change = |config: &mut Config| {
                config.disk.on_io_error = OnIoError::PassOn;
                config.disk.resync_rate = 25_000;
            };
            with_config(change, |mut world| {
                synced(&mut world);
                world.ask(asked, verify(Some(0), None));
                world.run_until("verify", 10_000, |world| {
                    (0..2).all(|node| matches!(world.status(node).state.conn, Conn::VerifyS | Conn::VerifyT))
                });
                world.trusts_in_verify = Some(1 - weak);
                world.nodes[weak].faults.read_percent = 100;
                world.run_until("the failure", 1_000, |world| world.status(weak).state.disk == Disk::Inconsistent);
                world.nodes[weak].faults.read_percent = 0;
                assert_eq!(world.status(weak).state.conn, Conn::Connected);
                assert_eq!(world.status(1 - weak).state.pdsk, Disk::UpToDate);
                let ended = |world: &World| {
                    let state = world.status(1 - weak).state;
                    state.conn == Conn::Connected && state.pdsk == Disk::Inconsistent
                };
                world.run_until("the end of the verify", 60_000, ended);
                world.trusts_in_verify = None;
                nothing_left_over(&mut world);
                world.reset_connection();
                world.run_until("loss noticed", 10_000, |world| world.status(0).state.conn < Conn::Connected);
                up_to_date(&mut world);
                equal(&mut world);
                assert_eq!(world.faults, []);
            });
        }
    }
}

#[test]
fn digests_go_with_every_kind_of_data() {
    with_config(with_integrity, |mut world| {
        synced(&mut world);
        // Reads and writes through the peer.
        assert_eq!(world.admin(0, AdminRequest::Detach { volume: VOLUME, force: false }), 1);
        some_writes(&mut world, 10);
        for sector in [0, 100, 5000] {
            assert_eq!(world.io(0, Action::Read, sector, 64), Ok(()));
        }
        assert!(sent(&world, "P_DATA_REPLY") > 0);
        assert_eq!(world.attach(0), 101);
        up_to_date(&mut world);
        equal(&mut world);
        assert_eq!(world.faults, []);
    });
}

#[test]
fn the_integrity_algorithm_changes_under_load() {
    with_config(
        |_| {},
        |mut world| {
            synced(&mut world);
            for name in ["sha1", "", "md5"] {
                for node in 0..2 {
                    for sector in 0..20 {
                        world.start(0, WRITE, sector * 200, 64);
                    }
                    let conf = NetConf { integrity_alg: algorithm(name), ..world.config.net };
                    // Only the node whose configuration it is knows the algorithm beforehand.
                    world.tell_algorithms(node, &[conf.integrity_alg]);
                    assert_eq!(world.admin(node, AdminRequest::NetOptions { conf: &conf }), 101);
                    some_writes(&mut world, 3);
                }
            }
            assert_eq!(world.faults, []);
            equal(&mut world);
        },
    );
}

/// Seed 19005302: the last ping of a verify stood behind all its results, which came at once and left one by one, and was late before it
/// had been sent.
#[test]
fn a_ping_that_waits_for_its_turn_is_not_late() {
    for seed in 1..=10 {
        let mut config = Config::new(seed);
        (config.internal, config.sectors) = (false, 1_600);
        config.limits.peer_requests = 512;
        (config.disk.c_plan_ahead, config.disk.resync_rate) = (0, 1_000_000);
        config.net.verify_alg = algorithm("crc32c");
        config.sent_us_most = 60;
        let mut world = World::new(config);
        synced(&mut world);
        assert_eq!(world.admin(0, verify(Some(0), None)), 1, "seed {seed}");
        world.set_direction(1, false);
        world.run_for_ms(400);
        world.config.sent_us_most = 20_000;
        world.set_direction(1, true);
        world.run_for_ms(200);
        assert!(world.engine_of(0).usage().queued > 60, "seed {seed}: {:?}", world.engine_of(0).usage());
        verified(&mut world);
        assert_eq!(world.faults, [], "seed {seed}");
    }
}

/// A C module compares while writes arrive that were sent after the digest, and took them for differences: they have to wait for the
/// result.
#[test]
fn writes_wait_for_the_result_of_a_verify() {
    let waited = std::cell::Cell::new(0);
    with_config(
        |config| config.disk.resync_rate = 100,
        |mut world| {
            synced(&mut world);
            assert_eq!(world.admin(1, verify(Some(0), None)), 1);
            world.run_until("the first digest", 60_000, |world| world.engine_of(0).usage().peer_requests > 0);
            // The result, and whatever else node 1 tells.
            world.set_direction(1, false);
            world.run_for_ms(20);
            let write = world.start(0, Action::Write { fua: false }, 0, 8);
            world.run_for_ms(20);
            // If the result was not out before, nothing of it is on the disk or on its way.
            let waits = world.engine_of(0).usage().peer_requests > 0;
            assert!(!waits || world.nodes[0].data.get(0) == 0, "the write did not wait");
            waited.set(waited.get() + u32::from(waits));
            world.set_direction(1, true);
            world.run_until("the write", 10_000, |world| world.operations[write].result.is_some());
            equal(&mut world);
        },
    );
    assert!(waited.get() > 0);
}

/// A node that compares and cannot read its own block tells no result. Writes do not wait for that for ever.
#[test]
fn writes_do_not_wait_for_ever_for_the_result_of_a_verify() {
    with_config(
        |config| config.net.wire_protocol = WireProtocol::A,
        |mut world| {
            synced(&mut world);
            world.nodes[1].faults.hangs = true;
            assert_eq!(world.admin(1, verify(Some(0), None)), 1);
            world.run_until("the first digest", 60_000, |world| world.engine_of(0).usage().peer_requests > 0);
            world.run_for_ms(100);
            let write = world.start(0, Action::Write { fua: false }, 0, 8);
            world.run_for_ms(1_000);
            assert_eq!(world.operations[write].result, None, "the write did not wait");
            world.run_until("the write", 10_000, |world| world.operations[write].result.is_some());
            assert_eq!(world.status(0).state.conn, Conn::VerifyT);
            world.nodes[1].faults.hangs = false;
            equal(&mut world);
        },
    );
}

/// Under protocol A and B a write is over before it is on the peer's disk, and a C module reads its block beside it: the digest has to
/// wait for the barrier.
#[test]
fn a_digest_waits_until_the_peer_has_what_was_written() {
    for wire_protocol in [WireProtocol::A, WireProtocol::B] {
        with_config(
            |config| config.net.wire_protocol = wire_protocol,
            |mut world| {
                synced(&mut world);
                world.nodes[1].faults.hangs = true;
                assert_eq!(world.io(0, WRITE, 4, 60), Ok(()));
                assert_eq!(world.admin(1, verify(Some(0), Some(8))), 1);
                world.run_for_ms(500);
                assert!(sent(&world, "P_OV_REQUEST") > 0);
                assert_eq!(sent(&world, "P_OV_REPLY"), 0, "the digest of what the peer may not have");
                world.nodes[1].faults.hangs = false;
                verified(&mut world);
                assert!(sent(&world, "P_OV_REPLY") > 0);
                equal(&mut world);
                // Nobody waits for what lies beside it, and what waits does not outlive the connection.
                let before = sent(&world, "P_OV_REPLY");
                world.nodes[1].faults.hangs = true;
                assert_eq!(world.io(0, WRITE, 64, 8), Ok(()));
                assert_eq!(world.admin(1, verify(Some(0), None)), 1);
                world.run_for_ms(500);
                assert!(sent(&world, "P_OV_REPLY") >= before + 8);
                assert!(world.engine_of(0).usage().peer_requests > 0, "nothing waits");
                world.set_network(false);
                world.reset_connection();
                world.nodes[1].faults.hangs = false;
                world.run_for_ms(100);
                world.set_network(true);
                up_to_date(&mut world);
                equal(&mut world);
            },
        );
    }
}
