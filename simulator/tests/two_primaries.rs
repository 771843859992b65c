//! Writes of two Primaries that meet.

use engine::resource::{AdminRequest, AlgorithmName, Fault, Next};
use engine::state::{Conn, Disk};
use simulator::network::META;
use simulator::node::VOLUME;
use simulator::world::{Action, Hostile};
use simulator::{Config, World};

const SEEDS: u64 = 60;
const SECTORS: u64 = 16_384;
/// Where they meet.
const SPOT_SECTORS: u64 = 64;

fn config(seed: u64) -> Config {
    let mut config = Config::new(seed);
    config.internal = false;
    config.sectors = SECTORS;
    config.disk.resync_rate = 100_000;
    config.net.two_primaries = true;
    config.sent_us_most = if seed % 2 == 0 { 60 } else { 20_000 };
    config
}

fn good(world: &World) -> bool {
    (0..2).all(|node| {
        let state = world.status(node).state;
        state.conn == Conn::Connected && state.disk == Disk::UpToDate && state.pdsk == Disk::UpToDate
    })
}

/// Writes by both, so that the activity log does not delay the next ones.
fn warm_up(world: &mut World) {
    for node in 0..2 {
        assert_eq!(world.io(node, Action::Write { fua: false }, 0, 16), Ok(()));
    }
    world.run_for_ms(500);
}

fn two_primaries(seed: u64) -> World {
    two_primaries_with(config(seed))
}

/// Both Primary, connected, UpToDate.
fn two_primaries_with(config: Config) -> World {
    let mut world = World::new(config);
    for node in 0..2 {
        assert_eq!(world.attach(node), 101, "attach");
    }
    for node in 0..2 {
        assert_eq!(world.connect(node), 1, "connect");
    }
    let connected = |world: &World| (0..2).all(|node| world.status(node).state.conn == Conn::Connected);
    world.run_until("connected", 10_000, connected);
    assert_eq!(world.admin(0, AdminRequest::Primary { volume: VOLUME, force: true }), 1);
    world.run_until("resync", 300_000, good);
    assert_eq!(world.admin(1, AdminRequest::Primary { volume: VOLUME, force: false }), 1);
    world
}

#[test]
fn writes_that_meet_leave_both_halves_equal_and_nothing_else_behind() {
    for seed in 1..=SEEDS {
        let mut world = two_primaries(seed);
        for _ in 0..60 {
            for node in 0..2 {
                for _ in 0..world.random.between(0, 4) {
                    let count = world.random.pick(&[1, 8, 8, 16, 24]);
                    let sector = world.random.below(SPOT_SECTORS - count);
                    world.start(node, Action::Write { fua: false }, sector, count);
                }
            }
            let wait = world.random.below(20);
            world.run_for_ms(wait);
            for node in 0..2 {
                assert_eq!(world.status(node).state.conn, Conn::Connected, "seed {seed}: {}", world.describe());
            }
        }
        let open =
            |world: &World| world.operations.iter().all(|operation| operation.result.is_some() || operation.lost);
        world.run_until("all operations", 60_000, open);
        world.run_for_ms(3_000);
        for node in 0..2 {
            assert_eq!(world.status(node).state.conn, Conn::Connected, "seed {seed}: {}", world.describe());
            assert_eq!(
                world.engine_of(node).usage(),
                Default::default(),
                "seed {seed}, left over: {}",
                world.describe()
            );
            assert_eq!(world.status(node).bits_out_of_sync, 0, "seed {seed}");
        }
        let different = world.nodes[0].data.first_difference(&world.nodes[1].data, SECTORS);
        assert_eq!(different, None, "seed {seed}: the halves differ");
        for node in [1, 0] {
            assert_eq!(world.admin(node, AdminRequest::Secondary { volume: VOLUME }), 1);
        }
    }
}

/// Each has more writes under way than the other one has slots, and all of them wait for what the other one has written.
#[test]
fn writes_that_meet_leave_the_receivers_room() {
    for seed in 1..=SEEDS {
        let mut config = config(seed);
        config.limits.peer_requests = 16;
        config.net.max_buffers = 100_000;
        let mut world = two_primaries_with(config);
        warm_up(&mut world);
        let writes: Vec<usize> = (0..60)
            .flat_map(|number| [0, 1].map(|node| world.start(node, Action::Write { fua: false }, number * 8, 8)))
            .collect();
        world.run_until("the writes", 60_000, |world| {
            writes.iter().all(|&write| world.operations[write].result.is_some())
        });
        assert_eq!(world.faults, [], "seed {seed}");
        assert_eq!(world.nodes[0].data.first_difference(&world.nodes[1].data, SECTORS), None, "seed {seed}");
    }
}

/// Seeds 118 and 172: the deciding node answered a write as overridden while its own write, which overrides it, was still on
/// its way to a slow disk. The other node's was acknowledged, and a reader here found what had been there before both.
#[test]
fn an_overridden_write_counts_when_the_one_that_overrides_it_is_on_the_disk() {
    for seed in 1..=SEEDS {
        let mut world = two_primaries(seed);
        warm_up(&mut world);
        world.nodes[0].faults.slowness = 100;
        world.start(0, Action::Write { fua: false }, 0, 16);
        let inside = world.start(1, Action::Write { fua: false }, 4, 8);
        world.run_until("the inner write", 60_000, |world| world.operations[inside].result.is_some());
        assert!(world.nodes[0].data.get(4) > 2, "seed {seed}: acknowledged, and one disk has neither");
        world.run_until("both", 60_000, |world| world.open_operations() == 0);
        assert_eq!(world.nodes[0].data.first_difference(&world.nodes[1].data, SECTORS), None, "seed {seed}");
    }
}

/// Seed 171: more epochs than expected waited for the peer to be done with a write that it had been refused.
#[test]
fn many_epochs_wait_behind_one_with_a_refused_write() {
    for seed in 1..=SEEDS {
        let mut config = config(seed);
        config.net.max_epoch_size = 1;
        let mut world = two_primaries_with(config);
        warm_up(&mut world);
        let slow = (seed % 2) as usize;
        world.nodes[slow].faults.slowness = 200;
        world.start(1 - slow, Action::Write { fua: false }, 0, 16);
        world.start(slow, Action::Write { fua: false }, 4, 8);
        world.run_for_ms(1);
        world.nodes[slow].faults.slowness = 0;
        for block in 1..50 {
            world.start(slow, Action::Write { fua: false }, block * 16, 8);
        }
        world.run_until("all operations", 60_000, |world| world.open_operations() == 0);
        world.run_for_ms(3_000);
        assert_eq!(world.faults, [], "seed {seed}");
        assert_eq!(world.nodes[0].data.first_difference(&world.nodes[1].data, SECTORS), None, "seed {seed}");
    }
}

/// Seeds 132, 283, 2213 and 2366: a Primary lost its disk while writes of the other one were in its cache only, and made the
/// connection anew. Then the other one's data was not what it had shown, and both went on alone.
#[test]
fn a_primary_that_loses_its_disk_under_writes_of_the_other_one_stays_connected() {
    for seed in 1..=SEEDS {
        let mut world = two_primaries(seed);
        for block in 0..30 {
            for node in 0..2 {
                world.start(node, Action::Write { fua: false }, (block * 2 + node as u64) * 8, 8);
            }
            world.run_for_us(seed * 5);
        }
        world.ask(1, AdminRequest::Detach { volume: VOLUME, force: seed % 3 > 0 });
        for block in 30..60 {
            for node in 0..2 {
                world.start(node, Action::Write { fua: false }, (block * 2 + node as u64) * 8, 8);
            }
            world.run_for_us(seed * 5);
        }
        world.run_until("all operations", 60_000, |world| world.open_operations() == 0);
        world.run_until("the disk is let go", 60_000, |world| !world.status(1).has_disk);
        assert_eq!(world.faults, [], "seed {seed}");
        assert_eq!(world.io(1, Action::Read, 0, 960), Ok(()), "seed {seed}");
        world.poll_admin(1);
        // Everything that the disk had in its cache is lost: the other node remembers it.
        let mut random = world.random.clone();
        world.nodes[1].data.power_cut(&mut random);
        assert_eq!(world.attach(1), 101, "seed {seed}");
        world.run_until("resync", 300_000, good);
        assert_eq!(world.nodes[0].data.first_difference(&world.nodes[1].data, SECTORS), None, "seed {seed}");
    }
}

/// Seed 93011160: the same where writes meet. The refusal of a later write, for want of that disk, came before the state that tells why, and
/// counted as the end of an epoch in which a write had been overridden, whose barrier a C module would not acknowledge.
#[test]
fn a_primary_that_loses_its_disk_where_writes_meet_has_not_got_them() {
    for seed in 1..=4 * SEEDS {
        let mut world = two_primaries(seed);
        warm_up(&mut world);
        let loses = (seed % 2) as usize;
        let write =
            |world: &mut World, node, sector, count| world.start(node, Action::Write { fua: false }, sector, count);
        write(&mut world, loses, 0, 32);
        write(&mut world, 1 - loses, 4, 8);
        for block in 0..10 {
            write(&mut world, 1 - loses, 1024 + block * 16, 8);
        }
        world.run_until("the first writes", 60_000, |world| world.open_operations() == 0);
        // The state has to wait for these; the refusals go over the other socket.
        for number in 0..3 {
            write(&mut world, loses, 4096 + number * 2048, 2048);
        }
        // With the flush that fails the cache is lost.
        world.nodes[loses].faults.flush_percent = 100;
        world.start(loses, Action::Flush, 0, 0);
        for block in 0..30 {
            write(&mut world, 1 - loses, 2048 + block * 8, 8);
            world.run_for_us(20);
        }
        world.run_until("all operations", 60_000, |world| world.open_operations() == 0);
        world.run_until("the disk is let go", 60_000, |world| !world.status(loses).has_disk);
        assert_eq!(world.faults, [], "seed {seed}");
        world.nodes[loses].faults.flush_percent = 0;
        assert_eq!(world.attach(loses), 101, "seed {seed}");
        world.run_until("resync", 300_000, good);
        assert_eq!(world.nodes[0].data.first_difference(&world.nodes[1].data, SECTORS), None, "seed {seed}");
    }
}

/// Seed 18016651: the same, and the disk was attached again before the other one had shown that it knew of the loss. What it had shown did
/// not count any more, and after `timeout` the connection was made anew: a split brain.
#[test]
fn a_primary_that_has_its_disk_back_soon_stays_connected() {
    for seed in 1..=2 * SEEDS {
        let mut world = two_primaries(seed);
        for block in 0..30 {
            for node in 0..2 {
                world.start(node, Action::Write { fua: false }, (block * 2 + node as u64) * 8, 8);
            }
            world.run_for_us(seed * 5);
        }
        world.ask(1, AdminRequest::Detach { volume: VOLUME, force: true });
        world.run_until("the disk is let go", 10_000, |world| !world.status(1).has_disk);
        world.set_network(false);
        world.run_for_ms(100);
        assert_eq!(world.start_attach(1), Ok(()), "seed {seed}");
        world.run_for_ms(100);
        world.set_network(true);
        world.run_until("all operations", 60_000, |world| world.open_operations() == 0);
        world.run_until("resync", 300_000, good);
        world.run_for_ms(10_000);
        assert_eq!(world.faults, [], "seed {seed}");
        assert_eq!(world.nodes[0].data.first_difference(&world.nodes[1].data, SECTORS), None, "seed {seed}");
    }
}

/// A node whose disk has just been taken away refuses the peer's writes that are on their way. They have sequence numbers as
/// well: the next write, after the disk is back, must not wait for them.
#[test]
fn writes_refused_for_want_of_a_disk_are_not_waited_for_later() {
    let mut refused = 0;
    for seed in 1..=SEEDS {
        let mut world = two_primaries(seed);
        warm_up(&mut world);
        let without = (seed % 2) as usize;
        for block in 0..12 {
            world.start(1 - without, Action::Write { fua: false }, block * 16, 8);
        }
        assert_eq!(world.admin(without, AdminRequest::Detach { volume: VOLUME, force: true }), 1);
        world.run_until("the writes", 60_000, |world| world.open_operations() == 0);
        world.run_until("detached", 60_000, |world| !world.status(without).has_disk);
        refused += u32::from(world.packets.contains("P_NEG_ACK"));
        assert_eq!(world.attach(without), 101, "seed {seed}");
        world.run_until("resync", 300_000, good);
        assert_eq!(world.io(1 - without, Action::Write { fua: false }, 4096, 8), Ok(()));
        world.run_for_ms(3_000);
        assert_eq!(world.faults, [], "seed {seed}");
    }
    assert!(refused > SEEDS as u32 / 4, "only {refused} of {SEEDS} runs refused a write");
}

/// Seed 10003601: the peer's data is given up, and it is Primary as well. What was written from then on was not mirrored, and the peer, whose
/// bits were not all set yet, read what it had itself.
#[test]
fn who_is_about_to_get_everything_anew_reads_from_the_peer() {
    let mut early = 0;
    for seed in 1..=SEEDS {
        let mut world = two_primaries(seed);
        warm_up(&mut world);
        world.ask(0, AdminRequest::InvalidateRemote { volume: VOLUME });
        world.run_until("it begins", 1_000, |world| world.status(0).state.pdsk == Disk::Inconsistent);
        assert_eq!(world.io(0, Action::Write { fua: false }, 0, 8), Ok(()));
        world.run_for_us(1);
        early += usize::from(world.status(1).bits_out_of_sync == 0);
        assert_eq!(world.io(1, Action::Read, 0, 8), Ok(()));
    }
    assert!(early > 5, "only {early} read before the bits were set");
}

/// Seed 12014425: a Primary gives up its own data, and the other one has agreed, and does not mirror its writes any more. Until the consent
/// arrived this one read what it had itself. (What is written meanwhile is not acknowledged before that by now.)
#[test]
fn who_has_asked_to_get_everything_anew_reads_from_the_peer() {
    let mut early = 0;
    for seed in 1..=SEEDS {
        let mut world = two_primaries(seed);
        warm_up(&mut world);
        world.ask(1, AdminRequest::Invalidate { volume: VOLUME });
        world.run_until("the consent", 1_000, |world| world.status(0).state.pdsk == Disk::Inconsistent);
        let unheard = world.status(1).state.disk == Disk::UpToDate;
        assert!(!world.packets.contains("P_DATA_REQUEST"), "seed {seed}");
        world.start(0, Action::Write { fua: false }, 0, 8);
        let read = world.start(1, Action::Read, 0, 8);
        world.run_until("the read", 10_000, |world| world.operations[read].result.is_some());
        assert_eq!(world.operations[read].result, Some(Ok(())), "seed {seed}");
        assert!(world.packets.contains("P_DATA_REQUEST"), "seed {seed}: read from its own disk");
        early += usize::from(unheard);
    }
    assert!(early > 5, "only {early} read before the consent had arrived");
}

/// Seed 10006270: a write of the peer waits for one of this node, which is detached from its disk and attached to it again. It went to that
/// disk, whose generations and activity log do not tell of it.
#[test]
fn a_write_that_waited_while_the_disk_was_gone_does_not_go_to_the_next_one() {
    let mut refused = 0;
    for seed in 1..=SEEDS {
        let mut world = two_primaries(seed);
        warm_up(&mut world);
        world.nodes[1].faults.hangs = true;
        let writes = [0, 1].map(|node| world.start(node, Action::Write { fua: false }, 0, 8));
        world.run_for_ms(30);
        world.ask(0, AdminRequest::Detach { volume: VOLUME, force: true });
        world.run_until("detached", 1_000, |world| !world.status(0).has_disk);
        assert_eq!(world.start_attach(0), Ok(()));
        world.run_until("attached", 1_000, |world| world.status(0).state.disk > Disk::Attaching);
        world.nodes[1].faults.hangs = false;
        world
            .run_until("both are done", 10_000, |world| writes.iter().all(|&write| !world.operations[write].is_open()));
        refused += world.packets_sent.get("P_NEG_ACK").copied().unwrap_or(0);
        world.run_until("attached", 120_000, good);
        world.run_for_ms(3_000);
        assert_eq!(
            world.nodes[0].data.first_difference(&world.nodes[1].data, world.config.sectors),
            None,
            "seed {seed}"
        );
    }
    assert!(refused > 5, "only {refused} waited");
}

/// Seed 13030282: a demotion did not wait where writes of the two had met, since the C module does not acknowledge their barriers. The
/// other one lost its power and what it had in its disk's cache. It was the source when it was back, being a crashed Primary with the same
/// generation as the demoted node, which alone had what was acknowledged.
#[test]
fn a_demotion_waits_for_the_cache_of_the_other_one_where_writes_have_met() {
    for seed in 1..=4 * SEEDS {
        let mut world = two_primaries(seed);
        warm_up(&mut world);
        for turn in 0..6 {
            for node in 0..2 {
                world.start(node, Action::Write { fua: false }, turn % 3 * 8, 8);
                world.start(node, Action::Write { fua: false }, 64 + (turn * 2 + node as u64) * 8, 8);
            }
            world.run_for_us(seed % 7 * 40);
        }
        world.run_until("the writes", 60_000, |world| world.open_operations() == 0);
        let crashes = (seed / 7 % 2) as usize;
        world.ask(1 - crashes, AdminRequest::Secondary { volume: VOLUME });
        world.run_for_us(seed % 5 * 200);
        world.power_cut(crashes);
        assert_eq!(world.admin_answer(1 - crashes), 1, "seed {seed}");
        world.run_until("loss noticed", 60_000, |world| world.status(1 - crashes).state.conn < Conn::Connected);
        world.boot(crashes);
        assert_eq!(world.attach(crashes), 101, "seed {seed}");
        assert_eq!(world.connect(crashes), 1, "seed {seed}");
        world.run_until("resync", 300_000, good);
        if let Err(reason) = world.check_acknowledged(0) {
            panic!("seed {seed}: {reason}");
        }
        assert_eq!(world.nodes[0].data.first_difference(&world.nodes[1].data, SECTORS), None, "seed {seed}");
    }
}

/// Seed 27001891: what a verify finds out is told over the meta socket, and every write waited on the other node for what had been
/// found before. Where that waited for a slow socket the write was given up, and the connection with it.
#[test]
fn writes_do_not_wait_for_the_results_of_a_verify() {
    for seed in 1..=20 {
        let mut config = config(seed);
        config.limits.peer_requests = 512;
        config.disk.c_plan_ahead = 0;
        config.disk.resync_rate = 1_000_000;
        config.net.verify_alg = AlgorithmName::from_bytes(b"crc32c").expect("short");
        let mut world = two_primaries_with(config);
        warm_up(&mut world);
        world.config.sent_us_most = 60;
        let verify = AdminRequest::Verify { volume: VOLUME, start_sector: Some(0), stop_sector: None };
        assert_eq!(world.admin(0, verify), 1, "seed {seed}");
        // What the peer has read comes all at once, and then there is much to tell.
        world.set_direction(1, false);
        world.run_for_ms(1300);
        world.config.sent_us_most = 20_000;
        world.set_direction(1, true);
        for block in 0..10 {
            world.run_for_ms(20);
            world.start(0, Action::Write { fua: false }, block * 8, 8);
        }
        world.run_until("the writes", 60_000, |world| world.open_operations() == 0);
        assert_eq!(world.faults, [], "seed {seed}");
        assert!(world.status(0).state.conn >= Conn::Connected, "seed {seed}: {:?}", world.status(0).state);
    }
}

/// Seed 30002064: the disk of the deciding node failed while its writes met one of the other node. What that had answered ended only when it knew of
/// the failure, its own write, which came after these answers, waited for that end, and it waited for an answer to that before it
/// read on, and so did not hear of the failure until a write had taken too long.
#[test]
fn writes_that_meet_do_not_wait_for_the_news_of_a_failed_disk() {
    for seed in 1..=SEEDS {
        let mut config = config(seed);
        config.sent_us_most = 60;
        let mut world = two_primaries_with(config);
        warm_up(&mut world);
        let decides = usize::from(!world.trace().any(|line| line.contains("node 0 resolves")));
        let write = Action::Write { fua: false };
        // There is a lot for the other node to answer, and its answers are slow.
        for block in 0..12 {
            world.start(decides, write, block * 8, 8);
        }
        world.run_for_us(400);
        world.config.sent_us_most = 20_000;
        world.run_for_us(200);
        // It is in the way of the next one, which is in its way, and it reads no further than to the barrier after that.
        world.start(1 - decides, write, 0, 128);
        world.run_for_us(seed * 20);
        world.start(decides, write, 100, 8);
        world.start(decides, Action::Flush, 0, 0);
        world.run_for_ms(1);
        world.start(decides, write, 800, 8);
        world.run_for_ms(seed);
        world.nodes[decides].faults.write_percent = 100;
        world.start(decides, write, 900, 8);
        world.run_until("the loss of the disk", 1_000, |world| !world.status(decides).has_disk);
        world.run_until("all writes", 2_000, |world| world.open_operations() == 0);
        assert_eq!(world.status(decides).state.conn, Conn::Connected, "seed {seed}");
    }
}

/// Seed 94002533: a flush of one node's disk failed, and with it went what had been acknowledged; before the other node had heard of that, its
/// disk was taken by force. Back again, both were disks of a crashed Primary, and the one that lacked the writes could be the source.
#[test]
fn a_disk_that_lost_its_cache_is_not_the_source_for_one_that_was_taken_by_force() {
    for seed in 1..=SEEDS {
        let mut world = two_primaries(seed);
        for block in 0..8 {
            assert_eq!(world.io(1, Action::Write { fua: false }, block * 16, 8), Ok(()));
        }
        let loser = (seed % 2) as usize;
        world.nodes[loser].faults.flush_percent = 100;
        world.set_direction(loser, false);
        world.start(loser, Action::Flush, 0, 0);
        world.run_until("the failure", 1_000, |world| world.status(loser).state.disk <= Disk::Failed);
        world.nodes[loser].faults.flush_percent = 0;
        world.ask(1 - loser, AdminRequest::Detach { volume: VOLUME, force: true });
        world.run_until("the other one", 1_000, |world| world.status(1 - loser).state.disk <= Disk::Failed);
        world.set_direction(loser, true);
        assert_eq!(world.admin_answer(1 - loser), 1);
        world.run_until("detached", 60_000, |world| (0..2).all(|node| !world.status(node).has_disk));
        // Each refuses its disk as long as somebody is Primary: the other one may have written meanwhile.
        for node in 0..2 {
            assert_eq!(world.admin(node, AdminRequest::Secondary { volume: VOLUME }), 1, "seed {seed}");
        }
        world.run_for_ms(100);
        for node in [0, 1] {
            assert_eq!(world.attach(if seed % 3 == 0 { 1 - node } else { node }), 101, "seed {seed}");
        }
        world.run_until("resync", 300_000, good);
        world.run_for_ms(1_000);
        for node in 0..2 {
            assert_eq!(world.check_acknowledged(node), Ok(()), "seed {seed}, node {node}");
        }
    }
}

/// Seed 98020460: a node had its data given up (`invalidate`), the other one agreed, and acknowledged a write that only its own disk had, and
/// lost its power, all before the first one had the answer: that went on with its data.
#[test]
fn a_node_that_agrees_to_be_the_source_acknowledges_nothing_alone_before_that_is_known() {
    let mut lost = 0;
    for seed in 1..=3 * SEEDS {
        let mut world = two_primaries(seed);
        let both = seed % 3 != 0;
        if !both {
            assert_eq!(world.admin(1, AdminRequest::Secondary { volume: VOLUME }), 1, "seed {seed}");
        }
        assert_eq!(world.io(0, Action::Write { fua: false }, 0, 16), Ok(()));
        world.run_for_ms(500);
        world.set_direction(0, false);
        world.ask(1, AdminRequest::Invalidate { volume: VOLUME });
        world.run_until("the consent", 2_000, |world| world.status(0).state.conn == Conn::StartingSyncS);
        let write = world.start(0, Action::Write { fua: true }, 0, 8);
        world.run_for_ms(seed % 50);
        assert_eq!(world.operations[write].result, None, "seed {seed}");
        if seed % 4 == 0 {
            // It is acknowledged when the answer is there, or the connection is lost.
            if seed % 8 == 0 {
                world.set_direction(0, true);
            } else {
                world.reset_connection();
            }
            world.run_until("the write", 60_000, |world| world.operations[write].result.is_some());
            world.set_direction(0, true);
            assert_eq!(world.operations[write].result, Some(Ok(())), "seed {seed}");
            world.run_for_ms(1_000);
            continue;
        }
        world.power_cut(0);
        world.run_until("loss noticed", 60_000, |world| world.status(1).state.conn < Conn::Connected);
        world.set_direction(0, true);
        let _code = world.admin_answer(1);
        lost += 1;
        if !both {
            assert_eq!(world.admin(1, AdminRequest::Primary { volume: VOLUME, force: false }), 1, "seed {seed}");
        }
        simulator::scenario::come_back(&mut world, 0);
        world.run_until("resync", 300_000, good);
        assert_eq!(world.check_acknowledged(0), Ok(()), "seed {seed}");
    }
    assert!(lost > 0);
}

/// A packet of the other node, with the header of version 100, made up.
fn arrives(world: &mut World, node: usize, meta: bool, command: u8, body: &[u8]) -> Result<Next, Fault> {
    let length = (body.len() as u32).to_be_bytes();
    let mut header = vec![0x86, 0x20, 0xec, 0x20, 0, 0, 0, command];
    header.extend(length.iter().chain(&[0; 4]));
    world.engine(node, |engine, now| {
        if meta {
            let head = engine.meta_header(&header, now)?;
            engine.meta_packet(&head, body, now).map(|()| Next::Packet)
        } else {
            let head = engine.data_header(&header, now)?;
            engine.data_packet(&head, body, now)
        }
    })
}

/// The other node's write number `seq`, of which nothing is to be told to it.
fn write_arrives(world: &mut World, node: usize, seq: u32) {
    let mut body = 800u64.to_be_bytes().to_vec();
    body.extend(7u64.to_be_bytes());
    body.extend(seq.to_be_bytes().iter().chain(&[0; 4]));
    body.extend(4096u32.to_be_bytes());
    // P_TRIM: without data.
    let outcome = arrives(world, node, false, 0x31, &body);
    assert!(matches!(outcome, Ok(Next::Packet)), "{outcome:?}");
}

/// P_RS_CANCEL for a block that was not asked for.
fn answer_arrives(world: &mut World, node: usize, seq: u32) {
    let mut body = 0u64.to_be_bytes().to_vec();
    body.extend(u64::MAX.to_be_bytes());
    body.extend(4096u32.to_be_bytes().iter().chain(&seq.to_be_bytes()));
    let outcome = arrives(world, node, true, 0x29, &body);
    assert!(outcome.is_ok(), "{outcome:?}");
}

/// The node that decides has a write whose number says that answers sent before it are still on their way.
fn write_that_waits(seed: u64, primaries: usize) -> Option<World> {
    let mut world = two_primaries(seed);
    for node in primaries..2 {
        assert_eq!(world.admin(node, AdminRequest::Secondary { volume: VOLUME }), 1);
    }
    world.run_for_ms(500);
    // What is made up here is not looked for at the other node.
    world.hostile = Some(Hostile::new(0, 0));
    write_arrives(&mut world, 1, 1_000_000);
    let waits = !world.engine_of(1).receiver_may_read();
    waits.then_some(world)
}

/// The answers come one after the other, each within `ping-timeout`, and all of them together take longer.
#[test]
fn a_write_waits_for_what_was_sent_before_it_as_long_as_something_comes() {
    let mut waited = 0;
    for seed in 1..=10 {
        let Some(mut world) = write_that_waits(seed, 2) else { continue };
        waited += 1;
        for number in 0..4 {
            world.run_for_ms(400);
            // A number that no write depends on may repeat the last one.
            answer_arrives(&mut world, 1, 999_990 + number / 2);
            assert!(!world.engine_of(1).receiver_may_read(), "seed {seed}");
        }
        world.run_for_ms(400);
        answer_arrives(&mut world, 1, 999_999);
        assert!(world.engine_of(1).receiver_may_read(), "seed {seed}");
        world.run_for_ms(1_000);
        assert_eq!(world.faults, [], "seed {seed}");
    }
    assert!(waited > 0);
}

#[test]
fn a_write_does_not_wait_when_nothing_comes() {
    let worlds = (1..=10).filter_map(|seed| write_that_waits(seed, 2));
    let faults: Vec<_> = worlds
        .map(|mut world| {
            world.run_for_ms(1_000);
            world.faults.clone()
        })
        .collect();
    assert!(!faults.is_empty());
    for faults in faults {
        assert!(matches!(faults[..], [(1, Fault::MissingSequence { seq: 1_000_000 }), ..]), "{faults:?}");
    }
}

/// Nothing meets a write of an only Primary, whatever was sent before it.
#[test]
fn nothing_is_waited_for_when_two_primaries_are_not_allowed_any_more() {
    let mut waited = 0;
    for seed in 1..=10 {
        let Some(mut world) = write_that_waits(seed, 1) else { continue };
        waited += 1;
        let mut conf = world.config.net;
        conf.two_primaries = false;
        assert_eq!(world.admin(1, AdminRequest::NetOptions { conf: &conf }), 101, "seed {seed}");
        assert!(world.engine_of(1).receiver_may_read(), "seed {seed}");
        world.run_for_ms(1_000);
        assert_eq!(world.faults, [], "seed {seed}");
    }
    assert!(waited > 0);
}

/// Node 1 has done a write of node 0, whose disk has it too, but the answer takes its time, and what node 1 itself writes to the same
/// place is there before it. Then node 0 loses its disk. The barrier behind that write was read before what shows that node 1 knows of the
/// loss, and waited for it, and it for the own write, which waited for that.
#[test]
fn what_shows_that_the_peer_knows_is_not_held_up_by_a_write_of_its_own() {
    let mut met = 0;
    for seed in 1..=20 {
        let mut config = config(seed);
        // A barrier between any two writes.
        config.net.max_epoch_size = 1;
        let mut world = two_primaries_with(config);
        warm_up(&mut world);
        world.late_us[1][META] = 200_000;
        let before = world.packets_sent["P_WRITE_ACK"];
        let own = world.start(0, Action::Write { fua: false }, 0, 8);
        let done = |world: &World| world.packets_sent["P_WRITE_ACK"] > before && world.operations[own].on_disk;
        world.run_until("done on both disks", 1_000, done);
        let peers = world.start(1, Action::Write { fua: false }, 0, 8);
        world.run_for_ms(30);
        if !world.engine_of(0).receiver_may_read() {
            // Node 0 decides which goes first, and waits for the answer.
            continue;
        }
        met += 1;
        let last = world.start(1, Action::Write { fua: false }, 64, 8);
        world.ask(0, AdminRequest::Detach { volume: VOLUME, force: true });
        world.run_for_ms(100);
        assert_eq!(world.operations[own].result, None, "seed {seed}: no answer yet");
        world.late_us[1][META] = 0;
        let writes = [own, peers, last];
        let done = |world: &World| writes.iter().all(|&write| world.operations[write].result == Some(Ok(())));
        world.run_until("the writes", 1_000, done);
    }
    assert!(met > 0);
}
