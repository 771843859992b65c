//! Resyncs that are interrupted and begun anew.

use engine::metadata::superblock::UI_CURRENT;
use engine::netlink::{Fencing, OnCongestion, OnIoError, WireProtocol};
use engine::resource::{AdminRequest, AlgorithmName, Fault, Helper};
use engine::state::{Conn, Disk, Outcome, StateError};
use simulator::node::VOLUME;
use simulator::scenario::{all_the_same, good, synced_with, PRIMARY, SECONDARY, WRITE};
use simulator::world::Action;
use simulator::{Config, World};

const SEEDS: u64 = 20;

/// Seed 6007470: a request of the target waited on the source for a write in its range. The target let its disk go, had it back, and
/// asked for a part of that range. The answer was taken for one to the first request, and was not long enough.
#[test]
fn a_request_of_an_earlier_resync_is_not_mistaken_for_one_of_this() {
    for seed in 1..=SEEDS {
        let mut config = Config::new(seed);
        config.disk.c_plan_ahead = 0;
        config.disk.resync_rate = 100_000;
        let mut world = synced_with(config);
        world.set_network(false);
        assert_eq!(world.io(0, WRITE, 2048, 2048), Ok(()));
        world.nodes[0].faults.hangs = true;
        let held = world.start(0, WRITE, 3072, 8);
        assert_eq!(world.admin(0, AdminRequest::SuspendIo { volume: VOLUME }), 1);
        world.nodes[0].faults.hangs = false;
        world.set_network(true);
        let asks = |world: &World| world.status(1).resync_pending > 0;
        world.run_until("the first request", 60_000, asks);
        world.run_for_ms(300);
        assert!(asks(&world), "the write does not keep it");
        assert_eq!(world.admin(1, AdminRequest::Detach { volume: VOLUME, force: true }), 1);
        world.run_until("detached", 10_000, |world| !world.status(1).has_disk);
        // No more than a few blocks at once.
        world.config.disk.resync_rate = 250;
        assert_eq!(world.attach(1), 101);
        world.run_for_ms(1_000);
        assert_eq!(world.operations[held].result, None);
        assert_eq!(world.admin(0, AdminRequest::ResumeIo { volume: VOLUME }), 1);
        all_the_same(&mut world);
        assert!(
            !world.faults.iter().any(|(_, fault)| matches!(fault, Fault::UnknownReply { .. })),
            "{:?}",
            world.faults
        );
        assert_eq!(world.operations[held].result, Some(Ok(())));
    }
}

/// Seed 50028398: a request waited on the source for a write in its range. The target let its disk go, had it back, and its old request was
/// answered while the bitmaps were exchanged. Of a write after that the target was only told, and later than of the answer, which it
/// acknowledged in the new resync: the source took the block for equal, whose newest data only it had.
#[test]
fn a_request_of_an_earlier_resync_gets_no_data_while_the_bitmaps_are_exchanged() {
    let mut cancelled = 0;
    for seed in 1..=SEEDS {
        let mut config = Config::new(seed);
        config.disk.c_plan_ahead = 0;
        config.disk.resync_rate = 100_000;
        let mut world = synced_with(config);
        world.set_network(false);
        assert_eq!(world.io(0, WRITE, 2048, 2048), Ok(()));
        world.nodes[0].faults.hangs = true;
        world.start(0, WRITE, 3072, 8);
        assert_eq!(world.admin(0, AdminRequest::SuspendIo { volume: VOLUME }), 1);
        world.nodes[0].faults.hangs = false;
        world.set_network(true);
        world.run_until("the first request", 60_000, |world| world.status(1).resync_pending > 0);
        world.run_for_ms(300);
        assert!(world.status(1).resync_pending > 0, "the write does not keep it");
        assert_eq!(world.admin(1, AdminRequest::Detach { volume: VOLUME, force: true }), 1);
        world.run_until("detached", 10_000, |world| !world.status(1).has_disk);
        world.config.sent_us_most = 20_000;
        assert_eq!(world.attach(1), 101);
        world.run_until("the bitmaps", 60_000, |world| world.status(0).state.conn == Conn::WFBitMapS);
        world.ask(0, AdminRequest::ResumeIo { volume: VOLUME });
        for block in 0..16 {
            world.start(0, WRITE, 2048 + block * 128, 8);
            world.run_for_us(500);
        }
        all_the_same(&mut world);
        cancelled += world.packets_sent.get("P_RS_CANCEL").copied().unwrap_or(0);
    }
    assert!(cancelled > 0, "no old request was answered while the bitmaps were exchanged");
}

/// Seed 21002501: the target's disk failed, and was back while what could not be written was still on its way to be told. The source counted
/// it as failed in the next resync, of which the target had written everything, and took that one's disk for Inconsistent from then on.
#[test]
fn what_failed_in_an_earlier_resync_has_not_failed_in_this_one() {
    let mut seen = 0;
    for seed in 1..=SEEDS {
        let mut config = Config::new(seed);
        config.disk.c_plan_ahead = 0;
        config.disk.resync_rate = 100_000;
        config.sent_us_most = 20_000;
        let mut world = synced_with(config);
        world.set_network(false);
        world.run_until("loss noticed", 60_000, |world| world.status(0).state.conn == Conn::WFConnection);
        for block in 0..200 {
            assert_eq!(world.io(0, WRITE, block * 16, 8), Ok(()));
        }
        world.set_network(true);
        world.run_until("the first resync", 60_000, |world| world.status(1).resync_pending > 10);
        world.nodes[1].faults.write_percent = 100;
        world.run_until("the disk is let go", 10_000, |world| !world.status(1).has_disk);
        world.nodes[1].faults.write_percent = 0;
        assert_eq!(world.attach(1), 101);
        world.run_until("the next resync", 10_000, |world| world.status(0).state.conn == Conn::SyncSource);
        let failed = |world: &World| world.status(0).sync.map_or(0, |sync| sync.failed_bits);
        while world.status(0).state.conn == Conn::SyncSource {
            seen += u32::from(failed(&world) > 0);
            assert!(world.step());
        }
        all_the_same(&mut world);
    }
    assert!(seen > 0, "nothing came late");
}

/// Seed 7002677: a resync between disks that were both good had just begun, and the target let its disk go. A write that was refused for
/// that was acknowledged before the superblock told of a generation that the other disk lacks.
#[test]
fn the_start_of_a_resync_is_durable_before_a_write_of_its_source_alone_ends() {
    for seed in 1..=4 * SEEDS {
        let mut world = synced_with(Config::new(seed));
        world.ask(0, AdminRequest::InvalidateRemote { volume: VOLUME });
        world.run_until("the source", 60_000, |world| world.status(0).state.conn == Conn::SyncSource);
        // What is compared here is compared when a write ends.
        world.ask(1, AdminRequest::Detach { volume: VOLUME, force: true });
        for block in 0..40 {
            world.start(0, WRITE, block * 8, 8);
            world.run_for_us(seed % 8 * 3);
        }
        world.run_until("the writes", 60_000, |world| world.open_operations() == 0);
        world.run_until("detached", 60_000, |world| !world.status(1).has_disk);
        world.run_for_ms(100);
        for node in 0..2 {
            let _code = world.poll_admin(node);
        }
        assert_eq!(world.attach(1), 101);
        all_the_same(&mut world);
    }
}

/// What the target told before it agreed came after its consent, which goes over the other socket, and its disk counted as good
/// again: a write might have been acknowledged that only this disk had.
#[test]
fn what_the_target_told_before_it_agreed_is_no_news() {
    let mut seen = 0;
    for seed in 1..=8 * SEEDS {
        let mut world = synced_with(Config::new(seed));
        world.ask(0, AdminRequest::InvalidateRemote { volume: VOLUME });
        world.run_for_us(60 + seed % 40 * 5);
        // It tells of this.
        world.ask(1, AdminRequest::PauseSync { volume: VOLUME });
        let begins =
            |world: &World| world.status(1).resync_pending > 0 || world.status(0).state.conn == Conn::PausedSyncS;
        while !begins(&world) {
            assert!(world.step());
            let [source, target] = [0, 1].map(|node| world.status(node).state);
            assert!(
                source.conn <= Conn::Connected || target.disk == Disk::UpToDate || source.pdsk == Disk::Inconsistent,
                "seed {seed}: {source} {target}"
            );
        }
        let trace: Vec<&str> = world.trace().collect();
        let consent = trace.iter().rposition(|line| line.contains("node 0 meta < P_STATE_CHG_REPLY 1"));
        let late = &trace[consent.expect("the consent")..];
        seen += u32::from(late.iter().any(|line| line.contains("node 0 data < P_STATE Connected")));
        world.run_for_ms(1_000);
        for node in 0..2 {
            let _code = world.poll_admin(node);
        }
        // It may have come too late to be paused.
        assert!(matches!(world.admin(1, AdminRequest::ResumeSync { volume: VOLUME }), 101 | 135));
        all_the_same(&mut world);
    }
    assert!(seen > 0, "nothing came late");
}

/// Seeds 9003526, 9003955: what the source had told before it agreed came late, and the target answered with its generations; before
/// they were sent it had got that of the resync.
#[test]
fn a_target_may_tell_of_the_generation_that_it_had() {
    for seed in 1..=4 * SEEDS {
        let mut world = synced_with(Config::new(seed));
        world.config.sent_us_most = 20_000;
        assert_eq!(world.admin(0, AdminRequest::Secondary { volume: VOLUME }), 1);
        assert_eq!(world.admin(0, AdminRequest::Primary { volume: VOLUME, force: false }), 1);
        world.ask(1, AdminRequest::Invalidate { volume: VOLUME });
        world.run_until("the target", 60_000, |world| world.status(1).state.conn == Conn::SyncTarget);
        all_the_same(&mut world);
    }
}

/// Seed 82037666: a Primary whose peer was fenced pulled ahead before the nodes had told each other their bitmaps. The target then copied only
/// what had been announced since, was done, and counted as good without what it had missed before.
#[test]
fn nobody_pulls_ahead_before_the_bitmaps_are_exchanged() {
    for seed in 1..=2 * SEEDS {
        let mut config = Config::new(seed);
        config.net.wire_protocol = WireProtocol::A;
        config.net.on_congestion = OnCongestion::PullAhead;
        config.net.cong_extents = 4;
        let fenced = seed % 2 == 0;
        if fenced {
            config.disk.fencing = Fencing::ResourceOnly;
        }
        let mut world = synced_with(config);
        world.helper_exit_code = if fenced { 5 } else { 0 };
        world.set_network(false);
        world.run_until("loss noticed", 60_000, |world| world.status(0).state.conn == Conn::WFConnection);
        if fenced {
            world.run_until("fenced", 60_000, |world| world.status(0).state.pdsk == Disk::Outdated);
        }
        world.helper_exit_code = 0;
        assert_eq!(world.io(0, WRITE, 0, 64), Ok(()));
        world.set_network(true);
        let when = if fenced { Conn::WFReportParams } else { Conn::WFBitMapS };
        world.run_until("the meeting", 60_000, |world| world.status(0).state.conn == when);
        for extent in 1..12 {
            world.start(0, WRITE, extent * 8_192, 8);
        }
        all_the_same(&mut world);
        let network = world.faults.iter().all(|(_, fault)| *fault == Fault::PingTimeout);
        assert!(network, "seed {seed}: {:?}", world.faults);
    }
}

/// The source began a resync three times, twice of them in one connection, before the target had heard of one. Each put the generation before
/// it into the history, and then there was none left that both knew.
#[test]
fn seed_82112335_a_target_that_hears_of_no_resync_is_not_forgotten() {
    let report = simulator::run(82112335);
    assert_eq!(report.failure, None);
}

/// Seed 5001330: the target of a resync was done, told so and pulled ahead at once. The source waited for the answer to a ping before it
/// closed its generations, which then never happened.
#[test]
fn the_end_of_a_resync_is_not_forgotten_when_its_target_pulls_ahead() {
    let mut seen = 0;
    for seed in 1..=4 * SEEDS {
        let mut config = Config::new(seed);
        config.net.wire_protocol = WireProtocol::A;
        config.net.on_congestion = OnCongestion::PullAhead;
        config.net.cong_fill = 100;
        let mut world = synced_with(config);
        // The Primary is the target.
        world.set_network(false);
        world.run_until("loss noticed", 60_000, |world| world.status(1).state.conn == Conn::WFConnection);
        world.set_network(true);
        world.run_until("reconnect", 60_000, good);
        world.run_for_ms(1_000);
        world.ask(0, AdminRequest::Invalidate { volume: VOLUME });
        world.run_until("the end", 300_000, |world| {
            world.status(1).state.conn == Conn::SyncSource && world.status(0).state.conn == Conn::Connected
        });
        for block in 0..20 {
            world.start(0, WRITE, block * 16, 16);
        }
        world.run_until("one or the other", 60_000, |world| world.status(1).state.conn != Conn::SyncSource);
        seen += u32::from(world.status(1).state.conn == Conn::Behind);
        let _code = world.poll_admin(0);
        all_the_same(&mut world);
        assert_eq!(world.superblock(0).uuids.map(|uuid| uuid & !1), world.superblock(1).uuids.map(|uuid| uuid & !1));
    }
    assert!(seen > 0, "the end was never overtaken");
}

/// What the source cannot read counts as failed; the target does not ask for it again and again.
#[test]
fn a_resync_whose_source_cannot_read_ends_on_both_nodes() {
    for seed in 1..=SEEDS {
        let mut config = Config::new(seed);
        config.disk.on_io_error = OnIoError::PassOn;
        let mut world = synced_with(config);
        world.set_network(false);
        assert_eq!(world.io(0, WRITE, 0, 2048), Ok(()));
        world.nodes[0].faults.read_percent = 100;
        world.set_network(true);
        let syncs = |world: &World| world.status(1).state.conn > Conn::Connected;
        world.run_until("the resync", 60_000, syncs);
        world.run_until("the end", 60_000, |world| (0..2).all(|node| world.status(node).state.conn == Conn::Connected));
        for node in 0..2 {
            assert_eq!(world.status(node).bits_out_of_sync, 256, "seed {seed}, node {node}");
        }
        assert_eq!(world.status(1).state.disk, Disk::Inconsistent);
    }
}

/// Seed 88001614: the source could not write what its target had written, and so did not end the resync when the target was done. Then it
/// lost its disk, and took the target for Inconsistent, which had told that it was not.
#[test]
fn a_target_that_is_done_is_good_when_its_source_loses_the_disk() {
    let mut kept = 0;
    for seed in 1..=4 * SEEDS {
        let mut config = Config::new(seed);
        config.disk.on_io_error = OnIoError::PassOn;
        let mut world = synced_with(config);
        world.set_network(false);
        assert_eq!(world.io(0, WRITE, 0, 2048), Ok(()));
        world.set_network(true);
        world.run_until("the resync", 60_000, |world| world.status(1).state.conn == Conn::SyncTarget);
        world.nodes[0].faults.write_percent = 100;
        let _either = world.io(0, WRITE, 0, 8);
        world.nodes[0].faults.write_percent = 0;
        world.run_until("the end", 60_000, |world| world.status(1).state.disk == Disk::UpToDate);
        world.run_for_ms(500);
        let state = world.status(0).state;
        if world.status(0).bits_out_of_sync > 0 {
            // The resync is over all the same, and that was the better disk.
            assert_eq!(
                (state.conn, state.disk, state.pdsk),
                (Conn::Connected, Disk::Inconsistent, Disk::UpToDate),
                "seed {seed}"
            );
            kept += 1;
        }
        if seed % 2 == 0 {
            world.set_network(false);
            world.run_until("loss noticed", 60_000, |world| world.status(0).state.conn == Conn::WFConnection);
            world.set_network(true);
            all_the_same(&mut world);
            continue;
        }
        world.ask(0, AdminRequest::Detach { volume: VOLUME, force: true });
        world.run_until("detached", 10_000, |world| !world.status(0).has_disk);
        world.run_for_ms(3_000);
        assert_eq!(world.status(0).state.pdsk, Disk::UpToDate, "seed {seed}");
        assert_eq!(world.io(0, Action::Read, 0, 8), Ok(()), "seed {seed}");
    }
    assert!(kept > 0);
}

/// Seed 1034 of runs with several volumes: the acknowledgement of a write came when another one, of a part of its range, was under way. The
/// source left all its bits set; the target had cleared its own, asked for nothing there, and was done, and the source was not for ever.
#[test]
fn a_write_in_the_midst_of_another_keeps_no_bits_of_it() {
    for seed in 1..=SEEDS {
        let mut config = Config::new(seed);
        config.net.wire_protocol = WireProtocol::B;
        (config.disk.c_plan_ahead, config.disk.resync_rate) = (0, 4_000);
        let mut world = synced_with(config);
        world.ask(0, AdminRequest::InvalidateRemote { volume: VOLUME });
        world.run_until("the target", 60_000, |world| world.status(1).state.conn == Conn::SyncTarget);
        world.nodes[1].faults.slowness = 20;
        // Far from where the resync is.
        let far = 100_000;
        for (sector, count) in [(far, 256), (far + 64, 9), (far + 130, 1), (far + 200, 3)] {
            world.start(0, WRITE, sector, count);
        }
        world.run_until("the writes", 60_000, |world| world.open_operations() == 0);
        world.nodes[1].faults.slowness = 0;
        all_the_same(&mut world);
    }
}

/// Seed 12000495: the source could not write down the generation with which the resync began, and let its disk go. The packet that tells
/// of it went out all the same, and with it the target had what this disk, attached again, began the next resync as.
#[test]
fn a_resync_generation_that_no_disk_has_is_not_told() {
    for seed in 1..=SEEDS {
        let mut world = synced_with(Config::new(seed));
        world.set_network(false);
        assert_eq!(world.io(0, WRITE, 0, 64), Ok(()));
        world.run_until("loss noticed", 60_000, |world| world.status(1).state.conn == Conn::WFConnection);
        let before = world.superblock(1).uuids;
        world.set_network(true);
        world.run_until("the exchange of the bitmaps", 60_000, |world| world.status(0).state.conn == Conn::WFBitMapS);
        world.nodes[0].faults.meta_percent = 100;
        world.run_until("the failure", 60_000, |world| !world.status(0).has_disk);
        world.run_for_ms(50);
        let [source, target] = [0, 1].map(|node| world.status(node).state);
        assert_eq!(target.pdsk, Disk::Diskless, "seed {seed}: the target has not heard of it");
        assert_eq!((source.conn, target.conn), (Conn::Connected, Conn::Connected), "seed {seed}");
        assert_eq!(
            world.superblock(1).uuids,
            before,
            "seed {seed}: the target has a generation that no other disk has"
        );
        world.nodes[0].faults = Default::default();
        assert_eq!(world.attach(0), 101);
        all_the_same(&mut world);
    }
}

/// Seed 40002938: the target of a resync attached while connected, and the source let its disk go before it began. The target had not told
/// what its disk was then, and counted as Consistent.
#[test]
fn a_resync_that_does_not_begin_leaves_no_wrong_idea_of_the_targets_disk() {
    let mut ended = 0;
    for seed in 1..=2 * SEEDS {
        let mut world = synced_with(Config::new(seed));
        assert_eq!(world.admin(1, AdminRequest::Detach { volume: VOLUME, force: false }), 1);
        world.run_until("detached", 1_000, |world| !world.status(1).has_disk);
        assert_eq!(world.io(0, WRITE, 0, 8), Ok(()));
        assert_eq!(world.admin(0, SECONDARY), 1);
        assert_eq!(world.start_attach(1), Ok(()));
        let waits = |world: &World| matches!(world.status(1).state.conn, Conn::WFBitMapT | Conn::WFSyncUUID);
        world.run_until("the target anew", 1_000, waits);
        world.run_for_us(seed * 10);
        world.ask(0, AdminRequest::Detach { volume: VOLUME, force: false });
        world.run_for_ms(1_000);
        let [source, target] = [0, 1].map(|node| world.status(node).state);
        if target.conn != Conn::Connected || source.disk != Disk::Diskless {
            continue;
        }
        ended += 1;
        assert_eq!((source.pdsk, target.pdsk), (target.disk, source.disk), "seed {seed}");
    }
    assert!(ended > 0, "it began each time");
}

/// A disk that comes back with the generation from before the last resync is recognized by the history.
#[test]
fn the_generation_before_a_resync_is_in_the_history_after_it() {
    let mut world = synced_with(Config::new(1));
    let before = world.superblock(0).uuids[UI_CURRENT];
    world.set_network(false);
    world.reset_connection();
    world.run_for_ms(20);
    assert_eq!(world.io(0, WRITE, 0, 8), Ok(()));
    world.set_network(true);
    all_the_same(&mut world);
    for node in 0..2 {
        let [_, _, history @ ..] = world.superblock(node).uuids;
        let is_there = history.iter().any(|uuid| (uuid ^ before) & !1 == 0);
        assert!(is_there, "node {node}: {before:x} is not in {history:x?}");
    }
}

/// A pair in which node 0 pulls ahead early; its disk, and that of its target, are about to be compared block by block.
fn pulls_ahead(seed: u64) -> World {
    let mut config = Config::new(seed);
    config.net.wire_protocol = WireProtocol::A;
    config.net.on_congestion = OnCongestion::PullAhead;
    config.net.cong_fill = 100;
    config.disk.resync_rate = 50_000;
    let mut world = synced_with(config);
    world.ask(1, AdminRequest::Invalidate { volume: VOLUME });
    world.run_until("the target", 60_000, |world| world.status(1).state.conn == Conn::SyncTarget);
    world.run_until("some blocks", 60_000, |world| world.status(0).bits_out_of_sync < 15_000);
    world
}

/// Nothing is left that the source takes for different and the target does not: that resync would not end.
fn ends_by_itself(world: &mut World, seed: u64) {
    world.run_until("ahead", 60_000, |world| world.status(0).state.conn == Conn::Ahead);
    world.run_until("the end", 60_000, good);
    assert!(world.faults.is_empty(), "seed {seed}: {:?}", world.faults);
    all_the_same(world);
}

/// Seeds 21464, 30732 and 30762: the source pulled ahead while acknowledgements of the resync were on their way. They did not count, the
/// target was done without these blocks, and the source stayed one until the next connection.
#[test]
fn a_source_that_pulls_ahead_tells_what_did_not_count() {
    for seed in 1..=4 * SEEDS {
        let mut world = pulls_ahead(seed);
        world.run_until("acknowledgements", 60_000, |world| world.status(1).resync_pending > 2);
        world.set_direction(1, false);
        for block in 0..20 {
            world.start(0, WRITE, block * 16, 8);
        }
        world.run_for_ms(5 + seed);
        world.set_direction(1, true);
        ends_by_itself(&mut world, seed);
    }
}

/// Seed 1361: the same with a mirrored write, a part of which was written anew and only announced.
#[test]
fn a_source_that_pulls_ahead_tells_what_was_overtaken() {
    for seed in 1..=4 * SEEDS {
        let mut world = pulls_ahead(seed);
        world.set_direction(1, false);
        world.start(0, WRITE, 100_000, 64);
        world.run_for_ms(2);
        for block in 1..8 {
            world.start(0, WRITE, 100_000 + block * 64, 64);
        }
        world.run_until("ahead", 1_000, |world| world.status(0).state.conn == Conn::Ahead);
        world.start(0, WRITE, 100_024, 8);
        world.run_for_ms(100);
        world.set_direction(1, true);
        ends_by_itself(&mut world, seed);
    }
}

/// Seed 18006807: the wish of one node for a verify crossed that of the other one for a full resync, and was taken for one to end it where it
/// had begun. The source went on with a target that was none any more, and waited for it for ever.
#[test]
fn a_verify_that_is_asked_for_too_late_does_not_end_a_resync() {
    for (seed, first) in (1..=SEEDS).flat_map(|seed| [(seed, 0), (seed, 1)]) {
        let mut config = Config::new(seed);
        config.net.verify_alg = AlgorithmName::from_bytes(b"crc32c").unwrap();
        config.disk.resync_rate = 100_000;
        config.sectors = 16_384;
        let mut world = synced_with(config);
        // Both requests are on their way; one of them arrives first.
        world.set_network(false);
        world.ask(0, AdminRequest::Verify { volume: VOLUME, start_sector: Some(0), stop_sector: None });
        world.ask(1, AdminRequest::Invalidate { volume: VOLUME });
        world.run_for_ms(10);
        world.set_direction(first, true);
        world.run_for_us(200 + 20 * seed);
        world.set_direction(1 - first, true);
        let codes = [0, 1].map(|node| world.admin_answer(node));
        all_the_same(&mut world);
        assert!(codes.contains(&1), "seed {seed}: {codes:?}");
        assert_eq!(world.faults, [], "seed {seed}");
    }
}

/// The connection is lost, and node 0 writes these blocks alone; the nodes have not met again.
fn parted(mut world: World, blocks: impl Iterator<Item = u64>) -> World {
    world.set_network(false);
    world.reset_connection();
    world.run_until("loss noticed", 60_000, |world| world.status(0).state.conn == Conn::WFConnection);
    for block in blocks {
        assert_eq!(world.io(0, WRITE, block * 8, 8), Ok(()));
    }
    world
}

/// What the administrator's program says before a resync counts, and nothing has been overwritten by then.
#[test]
fn a_program_that_objects_to_a_resync_ends_the_connection() {
    for (seed, objector) in (1..=SEEDS).flat_map(|seed| [(seed, 0), (seed, 1)]) {
        let mut world = parted(synced_with(Config::new(seed)), 0..1);
        let before = world.nodes[1].data.get(0);
        world.set_network(true);
        if objector == 1 {
            world.run_until("the source's program", 60_000, |world| {
                world.helpers.contains(&(0, Helper::BeforeResyncSource))
            });
        }
        world.helper_exit_code = 1;
        world.run_until("StandAlone", 60_000, |world| world.status(objector).state.conn == Conn::StandAlone);
        world.run_for_ms(2_000);
        assert_eq!(world.nodes[1].data.get(0), before, "seed {seed}: the resync went on");
        assert_eq!(world.resyncs, 0);
    }
}

/// 3: the program is not meant for the source.
#[test]
fn a_program_for_the_target_does_not_end_the_resync_at_the_source() {
    for seed in 1..=SEEDS {
        let mut world = parted(synced_with(Config::new(seed)), 0..1);
        world.helper_exit_code = 3;
        world.set_network(true);
        world.run_until("the source's program", 60_000, |world| {
            world.helpers.contains(&(0, Helper::BeforeResyncSource))
        });
        world.helper_exit_code = 0;
        world.run_until("resync", 60_000, good);
        all_the_same(&mut world);
    }
}

/// How long it takes to sync so many blocks, each with one between it and the next, in milliseconds, while node `primary` is Primary;
/// every 100 us `check` is called.
fn resync_ms(config: Config, blocks: u64, primary: usize, mut check: impl FnMut(&mut World)) -> u64 {
    let mut world = parted(synced_with(config), (0..blocks).map(|block| block * 2));
    if primary == 1 {
        assert_eq!(world.admin(0, AdminRequest::Secondary { volume: VOLUME }), 1);
    }
    world.set_network(true);
    world.run_until("start", 60_000, |world| world.status(1).state.conn == Conn::SyncTarget);
    if primary == 1 {
        assert_eq!(world.admin(1, AdminRequest::Primary { volume: VOLUME, force: false }), 1);
    }
    let start_us = world.now_us();
    while world.status(1).state.conn == Conn::SyncTarget {
        assert!(world.now_us() < start_us + 60_000_000, "no end");
        world.run_for_us(100);
        check(&mut world);
    }
    (world.now_us() - start_us) / 1000
}

#[test]
fn a_resync_keeps_to_its_rate() {
    for seed in 1..=3 {
        let mut config = Config::new(seed);
        config.disk.c_plan_ahead = 0;
        config.disk.resync_rate = 400;
        let took_ms = resync_ms(config, 200, 0, |_| {});
        assert!((1_500..3_000).contains(&took_ms), "800 KiB at 400 KiB/s took {took_ms} ms");
    }
}

#[test]
fn a_resync_has_half_of_max_buffers_under_way() {
    for seed in 1..=3 {
        let mut config = Config::new(seed);
        config.disk.c_plan_ahead = 0;
        config.disk.resync_rate = 40_000;
        config.net.max_buffers = 32;
        let mut most = 0;
        resync_ms(config, 200, 0, |world| most = most.max(world.status(1).resync_pending));
        assert_eq!(most, 16);
    }
}

/// Beside an application that keeps the disks busy it is no faster than `c-min-rate`: the source gives way where it is Primary, the target
/// where that is.
#[test]
fn a_resync_gives_way_to_the_application() {
    for (seed, primary) in (1..=3).flat_map(|seed| [(seed, 0), (seed, 1)]) {
        let took_ms = |busy: bool| {
            let mut config = Config::new(seed);
            config.disk.c_plan_ahead = 0;
            config.disk.resync_rate = 4_000;
            config.disk.c_min_rate = 100;
            let mut next_us = 0;
            resync_ms(config, 600, primary, |world| {
                if busy && world.now_us() >= next_us {
                    next_us = world.now_us() + 20_000;
                    world.start(primary, WRITE, 100_000, 40);
                }
            })
        };
        let [alone_ms, beside_ms] = [took_ms(false), took_ms(true)];
        assert!(
            alone_ms < 1_500 && beside_ms > 3 * alone_ms,
            "Primary {primary}: {alone_ms} ms alone, {beside_ms} ms beside the application"
        );
    }
}

/// Seed 18006136: a request of a Primary that is the target of a resync waited for one write after the other in its range. In the end all of
/// the range was in sync by these writes, and it asked for it all the same.
#[test]
fn a_target_does_not_ask_for_what_the_application_has_written_meanwhile() {
    for seed in 1..=SEEDS {
        let mut world = synced_with(Config::new(seed));
        assert_eq!(world.admin(0, AdminRequest::Detach { volume: VOLUME, force: false }), 1);
        // So much else is out of sync that what is not asked for must not count as asked for.
        for range in [1_024].into_iter().chain((0..16).map(|range| 4_096 + range * 2_048)) {
            assert_eq!(world.io(0, WRITE, range, 2_048), Ok(()));
        }
        // Each waits for the one before.
        world.nodes[1].faults.slowness = 500;
        for _ in 0..60 {
            world.start(0, WRITE, 1_024, 2_048);
        }
        world.run_for_ms(seed);
        assert_eq!(world.attach(0), 101);
        world.run_until("the target", 60_000, |world| world.status(0).state.conn == Conn::SyncTarget);
        assert!(world.open_operations() > 10, "seed {seed}: too few writes");
        world.run_until("the writes", 600_000, |world| world.open_operations() == 0);
        world.nodes[1].faults.slowness = 0;
        all_the_same(&mut world);
    }
}

/// Seed 20008847: the source of a resync wrote its bitmap just when it had done a write of the Primary, its target. It kept the bit and told that
/// the block was in sync: the target was done without it, and the source waited for ever.
#[test]
fn a_source_that_keeps_a_bit_does_not_say_that_the_block_is_in_sync() {
    for seed in 1..=3 {
        let mut config = Config::new(seed);
        config.disk.c_plan_ahead = 0;
        config.disk.resync_rate = 4_000;
        let mut world = synced_with(config);
        world.ask(0, AdminRequest::Invalidate { volume: VOLUME });
        world.run_until("the target", 60_000, |world| world.status(0).state.conn == Conn::SyncTarget);
        world.nodes[1].faults.slowness = 20;
        // Every ten seconds the source writes down what has been done.
        for block in 0..2_000 {
            world.start(0, WRITE, 120_000 - block * 40, 8);
            world.run_for_ms(6);
        }
        world.nodes[1].faults.slowness = 0;
        world.run_until("the end", 60_000, good);
        assert_eq!(world.faults, [], "seed {seed}");
        all_the_same(&mut world);
    }
}

/// Seed 34007807: a request for a full resync came when the disk was gone. None began, but the disk of the node that had asked counted as
/// worthless from then on.
#[test]
fn a_full_resync_without_a_disk_makes_no_disk_worthless() {
    for seed in 1..=SEEDS {
        for request in [AdminRequest::Invalidate { volume: VOLUME }, AdminRequest::InvalidateRemote { volume: VOLUME }]
        {
            let mut world = synced_with(Config::new(seed));
            world.set_direction(0, false);
            world.ask(0, request);
            world.run_for_ms(1);
            assert_eq!(world.admin(1, AdminRequest::Detach { volume: VOLUME, force: true }), 1, "seed {seed}");
            world.run_until("the disk is gone", 1_000, |world| !world.status(1).has_disk);
            world.set_direction(0, true);
            let code = world.admin_answer(0);
            let refused = code == StateError::CwFailedByPeer.code();
            assert!(refused || code == Outcome::NothingToDo.code(), "seed {seed}: {code}");
            world.run_for_ms(1_000);
            for node in 0..2 {
                let state = world.status(node).state;
                let [own, peer] = if node == 0 { [state.disk, state.pdsk] } else { [state.pdsk, state.disk] };
                assert_eq!((state.conn, own, peer), (Conn::Connected, Disk::UpToDate, Disk::Diskless), "seed {seed}");
            }
            assert_eq!(world.attach(1), 101, "seed {seed}");
            all_the_same(&mut world);
        }
    }
}

/// Seed 25501599 with several volumes: the target let its disk go while the source was still setting its bits, and that became the source of a
/// resync without a target when it had done so.
#[test]
fn a_full_resync_whose_target_is_gone_does_not_begin() {
    for seed in 1..=SEEDS {
        for source in 0..2 {
            let mut world = synced_with(Config::new(seed));
            for node in 0..2 {
                world.nodes[node].faults.slowness = if node == source { 100 } else { 0 };
            }
            world.ask(source, AdminRequest::InvalidateRemote { volume: VOLUME });
            let starts = |world: &World| world.status(source).state.conn == Conn::StartingSyncS;
            world.run_until("the bits are being set", 60_000, starts);
            world.ask(1 - source, AdminRequest::Detach { volume: VOLUME, force: false });
            world.run_until("detached", 60_000, |world| !world.status(1 - source).has_disk);
            world.run_for_ms(2_000);
            assert_eq!(world.status(source).state.conn, Conn::Connected, "seed {seed}: {}", world.describe());
            world.nodes[source].faults.slowness = 0;
            for node in 0..2 {
                let _code = world.poll_admin(node);
            }
            assert_eq!(world.attach(1 - source), 101, "seed {seed}");
            all_the_same(&mut world);
        }
    }
}

/// Seed 25000246: the connection broke before the node that had asked to be resynced heard that the Primary agreed. That one took its disk for
/// Inconsistent, and went on in the same generation: when they met again neither saw a difference.
#[test]
fn a_consent_to_a_resync_that_is_lost_means_a_new_generation() {
    for seed in 1..=SEEDS {
        for lost in [true, false] {
            let mut world = synced_with(Config::new(seed));
            world.ask(1, AdminRequest::Invalidate { volume: VOLUME });
            let agrees = |world: &World| world.status(0).state.conn == Conn::StartingSyncS;
            world.run_until("the consent", 60_000, agrees);
            if !lost {
                let heard = |world: &World| world.status(1).state.conn == Conn::StartingSyncT;
                world.run_until("the consent is heard", 60_000, heard);
            }
            world.set_network(false);
            world.reset_connection();
            assert_eq!(world.status(1).state.disk == Disk::Inconsistent, !lost, "seed {seed}");
            for block in 0..10 {
                assert_eq!(world.io(0, WRITE, block * 80, 8), Ok(()), "seed {seed}");
            }
            if seed % 2 == 0 {
                world.power_cut(1);
                world.boot(1);
                assert_eq!(world.attach(1), 101, "seed {seed}");
                assert_eq!(world.connect(1), 1, "seed {seed}");
            }
            world.set_network(true);
            world.run_until("connected", 60_000, |world| world.status(0).state.conn >= Conn::Connected);
            let _code = world.poll_admin(1);
            all_the_same(&mut world);
            if let Err(reason) = world.check_acknowledged(1) {
                panic!("seed {seed}: {reason}");
            }
        }
    }
}

/// A rate that is planned ahead never exceeds `c-max-rate`.
#[test]
fn a_resync_that_is_planned_ahead_keeps_to_its_highest_rate() {
    for seed in 1..=3 {
        let mut config = Config::new(seed);
        config.disk.resync_rate = 40_000;
        config.disk.c_max_rate = 400;
        let took_ms = resync_ms(config, 200, 0, |_| {});
        assert!((1_500..4_000).contains(&took_ms), "800 KiB at no more than 400 KiB/s took {took_ms} ms");
    }
}

/// With `c-fill-target` that much is to be on its way, and not what arrives in the time of `c-delay-target`.
#[test]
fn a_resync_has_as_much_on_its_way_as_it_is_to_have() {
    for seed in 1..=3 {
        let [little, much] = [40, 4_000].map(|sectors| {
            let mut config = Config::new(seed);
            config.disk.resync_rate = 1_000;
            config.disk.c_fill_target = sectors;
            config.disk.c_delay_target = 100;
            resync_ms(config, 1_000, 0, |_| {})
        });
        assert!(little > 2 * much, "seed {seed}: {little} ms with 20 KiB on the way, {much} ms with 2 MB");
    }
}

/// Seed 27000480: everything was copied, and the target had asked whether the source knew. A read of the application failed on its disk
/// before the answer came, and marked a block: the resync was over all the same, and the block stayed marked.
#[test]
fn what_cannot_be_read_at_the_end_of_a_resync_is_copied_before_it_is_over() {
    let mut late = 0u64;
    for seed in 1..=SEEDS {
        let mut config = Config::new(seed);
        config.disk.on_io_error = OnIoError::PassOn;
        config.sent_us_most = 20_000;
        let mut world = synced_with(config);
        assert_eq!(world.io(0, WRITE, 0, 64), Ok(()), "seed {seed}");
        world.run_for_ms(2000);
        world.ask(0, AdminRequest::Invalidate { volume: VOLUME });
        let copied = |world: &World| {
            let status = world.status(0);
            status.state.conn == Conn::SyncTarget && status.bits_out_of_sync == 0
        };
        world.run_until("everything copied", 300_000, copied);
        world.nodes[0].faults.read_percent = 100;
        assert_eq!(world.io(0, Action::Read, 8, 8), Ok(()), "seed {seed}");
        world.nodes[0].faults.read_percent = 0;
        if world.status(0).state.conn == Conn::Connected {
            late += 1;
            continue;
        }
        all_the_same(&mut world);
    }
    assert!(late < SEEDS / 2, "{late} reads came too late");
}

/// Seed 50000764 (of several volumes): the target was done, and told soon after that it does not pause any more. The source, which waited for
/// the answer to the ping that ends the resync, made nothing of it: it counted the peer as paused for ever, and the volumes that come after
/// this one as well.
#[test]
fn a_source_that_ends_a_resync_hears_that_its_target_pauses_no_more() {
    let mut seen = 0;
    for seed in 1..=4 * SEEDS {
        let mut config = Config::new(seed);
        config.sent_us_most = 5_000;
        let mut world = synced_with(config);
        world.set_network(false);
        world.run_until("loss noticed", 60_000, |world| world.status(0).state.conn == Conn::WFConnection);
        assert_eq!(world.io(0, WRITE, 0, 8), Ok(()));
        world.set_network(true);
        world.run_until("the block", 60_000, |world| {
            world.status(1).state.conn == Conn::SyncTarget && world.status(1).bits_out_of_sync == 0
        });
        assert_eq!(world.admin(1, AdminRequest::PauseSync { volume: VOLUME }), 101);
        let paused = |world: &World| world.status(0).state.peer_isp;
        world.run_until("the target's end", 60_000, |world| world.status(1).state.conn == Conn::Connected);
        seen += u32::from(paused(&world) && world.status(0).state.conn == Conn::PausedSyncS);
        assert_eq!(world.admin(1, AdminRequest::ResumeSync { volume: VOLUME }), 101);
        all_the_same(&mut world);
        assert!(!paused(&world), "seed {seed}: {}", world.describe());
    }
    assert!(seen > 0, "the target was never done while it paused");
}

/// The target's acknowledgements of a resync that was ended came late, in the next one: the source took blocks for equal that had been written
/// while the bitmaps were exchanged.
#[test]
fn what_is_acknowledged_late_of_an_earlier_resync_does_not_count_in_this_one() {
    let mut late = 0;
    for seed in 1..=2 * SEEDS {
        let mut config = Config::new(seed);
        config.disk.c_plan_ahead = 0;
        config.disk.resync_rate = 100_000;
        config.sent_us_most = 20_000;
        let mut world = synced_with(config);
        world.set_network(false);
        world.run_until("loss noticed", 60_000, |world| world.status(0).state.conn == Conn::WFConnection);
        for block in 0..25 {
            assert_eq!(world.io(0, WRITE, block * 16, 8), Ok(()));
        }
        world.set_network(true);
        world.run_until("the resync", 60_000, |world| world.status(1).resync_pending > 0);
        world.nodes[1].faults.hangs = true;
        world.run_for_ms(2_000);
        world.nodes[1].faults.hangs = false;
        world.run_until("the blocks", 10_000, |world| world.status(1).bits_out_of_sync == 0);
        assert_eq!(world.admin(1, AdminRequest::Detach { volume: VOLUME, force: true }), 1);
        world.run_until("detached", 10_000, |world| !world.status(1).has_disk);
        assert_eq!(world.attach(1), 101);
        world.run_until("the bitmaps", 60_000, |world| world.status(0).state.conn == Conn::WFBitMapS);
        for block in 0..25 {
            world.start(0, WRITE, block * 16, 8);
        }
        world.run_until("the next resync", 60_000, |world| world.status(0).state.conn == Conn::SyncSource);
        let acknowledged = |world: &World| world.packets_sent.get("P_RS_WRITE_ACK").copied().unwrap_or(0);
        let before = acknowledged(&world);
        world.run_until("its requests", 60_000, |world| world.status(1).state.conn == Conn::SyncTarget);
        late += acknowledged(&world) - before;
        all_the_same(&mut world);
    }
    assert!(late > 0, "nothing came late");
}

/// What the target of a resync, or who has compared, tells before this node has made sure of the end: it may have been demoted meanwhile, and
/// tells that once.
#[test]
fn a_role_that_changes_at_the_end_of_a_resync_is_not_forgotten() {
    let mut met = 0;
    for (seed, verify) in (1..=SEEDS).flat_map(|seed| [(seed, false), (seed, true)]) {
        let mut config = Config::new(seed);
        config.net.verify_alg = AlgorithmName::from_bytes(b"crc32c").unwrap();
        config.disk.resync_rate = 100_000;
        (config.internal, config.sectors) = (false, 1_600);
        let mut world = synced_with(config);
        assert_eq!(world.admin(0, SECONDARY), 1);
        assert_eq!(world.admin(1, PRIMARY), 1);
        if verify {
            world.ask(1, AdminRequest::Verify { volume: VOLUME, start_sector: Some(0), stop_sector: Some(800) });
        } else {
            world.ask(1, AdminRequest::Invalidate { volume: VOLUME });
        }
        let side = if verify { Conn::VerifyS } else { Conn::SyncTarget };
        world.run_until("the run", 10_000, |world| world.status(1).state.conn == side);
        world.run_until("its end", 60_000, |world| world.status(1).state.conn == Conn::Connected);
        // The peer does not get the ping, and so is not done yet.
        world.set_direction(0, false);
        world.run_for_ms(2);
        met += u32::from(world.status(0).state.conn != Conn::Connected);
        assert_eq!(world.admin(1, SECONDARY), 1, "seed {seed}");
        world.run_for_ms(2);
        world.set_direction(0, true);
        world.run_for_ms(1_000);
        for node in 0..2 {
            let [own, other] = [node, 1 - node].map(|node| world.status(node).state);
            assert_eq!((own.conn, own.peer), (Conn::Connected, other.role), "seed {seed}, verify {verify}");
        }
        assert_eq!(world.admin(0, PRIMARY), 1, "seed {seed}, verify {verify}");
        assert_eq!(world.faults, [], "seed {seed}");
    }
    assert!(met > SEEDS as u32, "{met}");
}
