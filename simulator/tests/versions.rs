//! Older versions of the protocol, and peers without some feature: the daily life of a pair has to go on.
//! spec: wire-protocol 3.7

use engine::netlink::WireProtocol;
use engine::resource::{AdminRequest, Fault, IoError};
use engine::state::Conn;
use simulator::node::VOLUME;
use simulator::scenario::{synced, up_to_date, WRITE};
use simulator::world::Action;
use simulator::{Config, World};

/// All versions at which something changes.
const VERSIONS: &[u32] = &[86, 87, 88, 89, 90, 91, 93, 94, 95, 96, 97, 99, 100, 101];
const FEATURES: u32 = 0xf;

/// Runs a scenario with every version, each with a seed of its own.
fn with_versions(change: impl Fn(&mut Config), mut scenario: impl FnMut(World, u32)) {
    for version in VERSIONS.iter().copied() {
        println!("version {version}");
        let mut config = Config::new(u64::from(version));
        config.offers = Some((version, if version < 100 { 0 } else { FEATURES }));
        change(&mut config);
        scenario(World::new(config), version);
    }
}

fn writes(world: &mut World, count: u64) {
    let sectors = world.config.sectors;
    for _ in 0..count {
        let length = world.random.pick(&[1, 8, 8, 24, 64]);
        let sector = world.random.below(sectors - length);
        world.start(0, WRITE, sector, length);
        let wait = world.random.below(3);
        world.run_for_ms(wait);
    }
}

/// Every write has succeeded, nothing is left over, both halves and generations are the same, no connection was given up.
#[track_caller]
fn quiet(world: &mut World) {
    let open = |world: &World| world.operations.iter().all(|operation| operation.result.is_some());
    world.run_until("all operations", 60_000, open);
    assert!(world.operations.iter().all(|operation| operation.result == Some(Ok(()))), "a write failed");
    world.run_for_ms(3_000);
    for node in 0..2 {
        assert_eq!(world.engine_of(node).usage(), Default::default(), "left over: {}", world.describe());
        assert_eq!(world.status(node).bits_out_of_sync, 0, "{}", world.describe());
    }
    let sectors = world.config.sectors;
    assert_eq!(world.nodes[0].data.first_difference(&world.nodes[1].data, sectors), None, "the halves differ");
    let [zero, one] = [0, 1].map(|node| world.status(node).uuids.map(|uuid| uuid & !1));
    assert_eq!(zero, one, "generations differ");
}

#[test]
fn the_first_resync_and_one_after_an_outage() {
    with_versions(
        |_| {},
        |mut world, version| {
            synced(&mut world);
            assert_eq!(world.engine_of(0).connection_status().apv, version);
            writes(&mut world, 20);
            world.set_network(false);
            writes(&mut world, 20);
            world.run_until("loss noticed", 60_000, |world| {
                (0..2).all(|node| world.status(node).state.conn == Conn::WFConnection)
            });
            writes(&mut world, 20);
            world.set_network(true);
            writes(&mut world, 50);
            up_to_date(&mut world);
            quiet(&mut world);
        },
    );
}

#[test]
fn all_protocols() {
    for wire_protocol in [WireProtocol::A, WireProtocol::B, WireProtocol::C] {
        with_versions(
            |config| config.net.wire_protocol = wire_protocol,
            |mut world, _| {
                synced(&mut world);
                writes(&mut world, 100);
                assert_eq!(world.admin(1, AdminRequest::Invalidate { volume: VOLUME }), 1);
                writes(&mut world, 20);
                up_to_date(&mut world);
                quiet(&mut world);
            },
        );
    }
}

#[test]
fn an_empty_resync_ends_on_both_nodes() {
    with_versions(
        |_| {},
        |mut world, _| {
            synced(&mut world);
            quiet(&mut world);
            // A generation of its own, without a write.
            world.set_network(false);
            world.run_until("loss noticed", 60_000, |world| {
                (0..2).all(|node| world.status(node).state.conn == Conn::WFConnection)
            });
            world.set_network(true);
            up_to_date(&mut world);
            quiet(&mut world);
        },
    );
}

#[test]
fn a_verify_where_there_is_one() {
    with_versions(
        |config| config.net.verify_alg = engine::resource::AlgorithmName::truncated(b"crc32c"),
        |mut world, version| {
            synced(&mut world);
            let verify = AdminRequest::Verify { volume: VOLUME, start_sector: Some(64), stop_sector: Some(4096) };
            if version < 88 {
                assert_eq!(world.admin(0, verify), -17, "not supported");
                return;
            }
            assert_eq!(world.admin(0, verify), 1);
            assert_eq!(world.status(1).state.conn, Conn::VerifyT);
            up_to_date(&mut world);
            quiet(&mut world);
        },
    );
}

#[test]
fn an_orderly_disconnect() {
    with_versions(
        |_| {},
        |mut world, _| {
            synced(&mut world);
            writes(&mut world, 10);
            assert_eq!(world.admin(1, AdminRequest::Disconnect { force: false }), 101);
            assert_eq!(world.status(1).state.conn, Conn::StandAlone);
            world.run_for_ms(3000);
            assert_eq!(world.status(0).state.conn, Conn::WFConnection);
            assert_eq!(world.faults, []);
            writes(&mut world, 10);
            assert_eq!(world.connect(1), 1);
            up_to_date(&mut world);
            quiet(&mut world);
        },
    );
}

/// Before version 92 the peer does not understand that nothing shall happen: so nothing is begun.
#[test]
fn a_dry_run_needs_version_92() {
    for version in [91, 92] {
        let mut config = Config::new(1);
        config.offers = Some((version, 0));
        config.net.tentative = true;
        let mut world = World::new(config);
        for node in 0..2 {
            assert_eq!(world.attach(node), 101, "attach");
        }
        for node in 0..2 {
            assert_eq!(world.connect(node), 1, "connect");
        }
        world.run_until("the end", 10_000, |world| !world.faults.is_empty());
        world.run_for_ms(1000);
        let alone = (0..2).any(|node| world.status(node).state.conn == Conn::StandAlone);
        // Both only ask: each of them connects anew for the sake of the other.
        assert_eq!(alone, version < 92);
        let unsupported = world.faults.iter().any(|(_, fault)| *fault == Fault::DryRunUnsupported);
        assert_eq!(unsupported, version < 92, "{:?}", world.faults);
    }
}

/// Discards are offered only where the peer understands them, and as large as it takes them.
#[test]
fn discards_by_version_and_feature() {
    let rows = [
        (101, 0xf, 128 << 20, 128 << 20),
        (101, 0b0111, 128 << 20, 0),
        (101, 0b1011, 4 << 20, 128 << 20),
        (101, 0b1110, 0, 0),
        (94, 0xf, 0, 0),
    ];
    for (version, features, discard, zeroes) in rows {
        let mut config = Config::new(1);
        config.offers = Some((version, features));
        let mut world = World::new(config);
        synced(&mut world);
        let status = world.status(0);
        let found = (status.max_discard_bytes, status.max_write_zeroes_bytes);
        assert_eq!(found, (discard, zeroes), "version {version}, features {features:#x}");
    }
}

#[test]
fn largest_requests_by_version() {
    let rows = [(86, 32 << 10), (94, 32 << 10), (95, 128 << 10), (99, 128 << 10), (100, 1 << 20)];
    for (version, most_bytes) in rows {
        let mut config = Config::new(1);
        config.offers = Some((version, 0));
        let mut world = World::new(config);
        synced(&mut world);
        assert_eq!(world.status(0).max_bio_bytes, most_bytes, "version {version}");
    }
}

/// Node 0 has been alone for a while; `start` begins something with every step of the handshake.
fn meets_again(world: &mut World, start: impl Fn(&mut World)) {
    synced(world);
    world.set_network(false);
    writes(world, 20);
    world.run_until("loss noticed", 60_000, |world| {
        (0..2).all(|node| world.status(node).state.conn == Conn::WFConnection)
    });
    writes(world, 20);
    world.faults.clear();
    world.set_network(true);
    world.run_until("the handshake", 60_000, |world| world.status(0).state.conn == Conn::WFReportParams);
    while !matches!(world.status(0).state.conn, Conn::SyncSource | Conn::Connected) {
        start(world);
        world.run_for_us(30);
    }
}

/// A write whose extent of the activity log was not yet on the disk when the bitmap was sent was announced to a peer that does not
/// know that packet.
#[test]
fn an_old_peer_is_told_of_writes_by_the_bitmap_alone() {
    let mut seen = 0;
    with_versions(
        |config| config.sent_us_most = 2_000,
        |mut world, version| {
            meets_again(&mut world, |world| {
                let extents = world.config.sectors >> 13;
                let sector = (world.random.below(extents) << 13) + world.random.below(1000) * 8;
                world.start(0, WRITE, sector, 8);
            });
            let told = world.packets.contains("P_OUT_OF_SYNC");
            assert!(version >= 96 || !told, "version {version} does not know P_OUT_OF_SYNC");
            seen += u32::from(told);
            up_to_date(&mut world);
            quiet(&mut world);
        },
    );
    assert!(seen > 0, "no write came while bitmaps were exchanged");
}

/// Discards and zeroes that had been accepted when the peer was not known yet cost the connection.
#[test]
fn discards_that_the_peer_does_not_understand_are_refused() {
    let mut refused = 0;
    with_versions(
        |_| {},
        |mut world, _| {
            meets_again(&mut world, |world| {
                let extents = world.config.sectors >> 13;
                let sector = (world.random.below(extents) << 13) + world.random.below(1000) * 8;
                let action = world.random.pick(&[Action::Discard, Action::WriteZeroes]);
                world.start(0, action, sector, 8);
            });
            up_to_date(&mut world);
            world.run_for_ms(3_000);
            assert_eq!(world.faults, []);
            let is_refused =
                |operation: &simulator::world::Operation| operation.result == Some(Err(IoError::NotSupported));
            refused += world.operations.iter().filter(|operation| is_refused(operation)).count();
            assert!(world.operations.iter().all(|operation| operation.result == Some(Ok(())) || is_refused(operation)));
            let sectors = world.config.sectors;
            assert_eq!(world.nodes[0].data.first_difference(&world.nodes[1].data, sectors), None, "the halves differ");
            assert_eq!([0, 1].map(|node| world.status(node).bits_out_of_sync), [0; 2]);
        },
    );
    assert!(refused > 0, "none was accepted before the peer was known");
}
