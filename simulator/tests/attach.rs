//! A disk is attached while the nodes meet: it waits for the end of the handshake, as in the C module.

use engine::resource::AdminRequest;
use engine::state::{Conn, Disk, Role};
use simulator::node::{Attaching, VOLUME};
use simulator::scenario::{good, synced_with, DETACH, WRITE};
use simulator::world::Action;
use simulator::{Config, World};

const DISCONNECT: AdminRequest<'static> = AdminRequest::Disconnect { force: false };
const SEEDS: u64 = 150;

/// Both disks UpToDate, node 0 Primary, with a write on both.
fn synced(seed: u64) -> World {
    let mut world = synced_with(Config::new(seed));
    assert_eq!(world.io(0, WRITE, 0, 8), Ok(()));
    world
}

/// The same without connection, and with a write that node 1 lacks; these nodes have no disk.
fn parted(seed: u64, without_disk: &[usize]) -> World {
    let mut world = synced(seed);
    assert_eq!(world.admin(1, DISCONNECT), 101);
    assert_eq!(world.admin(0, DISCONNECT), 101);
    assert_eq!(world.io(0, WRITE, 64, 8), Ok(()));
    for &node in without_disk {
        if node == 0 {
            assert_eq!(world.admin(0, AdminRequest::Secondary { volume: VOLUME }), 1);
        }
        assert_eq!(world.admin(node, DETACH), 1);
        world.run_until("detached", 10_000, |world| !world.status(node).has_disk);
    }
    world
}

#[track_caller]
fn all_the_same(world: &mut World, seed: u64) {
    world.run_until("resync", 300_000, good);
    world.run_for_ms(3_000);
    let sizes = [0, 1].map(|node| world.status(node).size_sectors);
    assert_eq!(sizes[0], sizes[1], "seed {seed}: the sizes differ");
    let difference = world.nodes[0].data.first_difference(&world.nodes[1].data, sizes[0]);
    assert_eq!(difference, None, "seed {seed}: the halves differ");
    assert_eq!(world.faults, [], "seed {seed}");
}

fn attaching(world: &World, node: usize) -> Attaching {
    world.attaching(node, VOLUME)
}

#[test]
fn an_attach_in_the_middle_of_a_handshake_waits_for_its_end() {
    let mut waited = 0;
    for seed in 1..=SEEDS {
        let mut world = parted(seed, &[1]);
        assert_eq!(world.connect(0), 1);
        assert_eq!(world.connect(1), 1);
        world.run_for_us(seed * 20);
        assert_eq!(world.start_attach(1), Ok(()));
        waited += u64::from(attaching(&world, 1) == Attaching::Waits);
        assert_eq!(world.admin_answer(1), 101, "seed {seed}");
        all_the_same(&mut world, seed);
    }
    assert!(waited > 5, "only {waited} came while the nodes met");
}

#[test]
fn both_nodes_attach_while_they_meet() {
    for seed in 1..=SEEDS {
        let mut world = parted(seed, &[0, 1]);
        assert_eq!(world.connect(0), 1);
        assert_eq!(world.connect(1), 1);
        world.run_for_us(seed * 20);
        for node in [0, 1] {
            assert_eq!(world.start_attach(node), Ok(()));
        }
        for node in [0, 1] {
            assert_eq!(world.admin_answer(node), 101, "seed {seed}");
        }
        all_the_same(&mut world, seed);
    }
}

/// The nodes begin to meet while the bitmap of a disk, that `prepare` has made something of, is being loaded or set.
fn overtaken_by_a_handshake(prepare: impl Fn(&mut World)) {
    let mut waited = 0;
    for seed in 1..=SEEDS {
        let mut world = parted(seed, &[1]);
        prepare(&mut world);
        assert_eq!(world.connect(0), 1);
        assert_eq!(world.connect(1), 1);
        world.run_for_us(seed * 10);
        assert_eq!(world.start_attach(1), Ok(()));
        let begun = attaching(&world, 1) == Attaching::Begun;
        world.run_until("the handshake", 60_000, |world| world.status(1).state.conn >= Conn::WFReportParams);
        waited += u64::from(begun && world.status(1).state.disk == Disk::Attaching);
        assert_eq!(world.admin_answer(1), 101, "seed {seed}");
        all_the_same(&mut world, seed);
    }
    assert!(waited > 5, "only {waited} were overtaken by a handshake");
}

#[test]
fn a_handshake_in_the_middle_of_an_attach_is_waited_for() {
    overtaken_by_a_handshake(|_| {});
}

/// The disk is new: before its bitmap is there the superblock has been written.
#[test]
fn a_new_disk_is_attached_though_the_nodes_begin_to_meet() {
    overtaken_by_a_handshake(|world| world.create_md(1));
}

/// Seed 51026490 with several volumes. The Primary has written alone and let its disk go; what the peer attaches lacks that write.
#[test]
fn a_primary_without_disk_does_not_take_old_data_that_is_attached_while_they_meet() {
    let mut overtaken = 0;
    for seed in 1..=SEEDS {
        let mut world = parted(seed, &[1]);
        assert_eq!(world.admin(0, AdminRequest::Detach { volume: VOLUME, force: true }), 1);
        world.run_until("detached", 10_000, |world| !world.status(0).has_disk);
        assert_eq!(world.connect(0), 1);
        assert_eq!(world.connect(1), 1);
        world.run_for_us(seed * 10);
        assert_eq!(world.start_attach(1), Ok(()));
        world.run_until("the handshake", 60_000, |world| world.status(1).state.conn >= Conn::WFReportParams);
        overtaken += u64::from(world.status(1).state.disk == Disk::Attaching);
        assert_eq!(world.admin_answer(1), 101, "seed {seed}");
        world.run_until("the refusal", 60_000, |world| world.old_data_refused > 0);
        world.run_for_ms(1_000);
        assert_eq!(world.status(0).state.conn, Conn::StandAlone, "seed {seed}");
        assert!(world.io(0, Action::Read, 64, 8).is_err(), "seed {seed}: old data was read");
    }
    assert!(overtaken > 5, "only {overtaken} disks were being attached when the nodes met");
}

/// What the peer says of the size of its disk becomes known in the middle of the attach.
#[test]
fn an_attach_that_hears_of_another_size_costs_no_connection() {
    for seed in 1..=SEEDS {
        let mut world = synced(seed);
        assert_eq!(world.admin(1, DETACH), 1);
        world.run_until("detached", 10_000, |world| !world.status(1).has_disk);
        for node in 0..2 {
            world.grow_disk(node, 10_008, 1 << (50 + node));
        }
        world.start_resize(0, &Default::default());
        world.run_for_us(seed * 10);
        assert_eq!(world.start_attach(1), Ok(()));
        assert_eq!(world.admin_answer(0), 101, "seed {seed}");
        assert_eq!(world.admin_answer(1), 101, "seed {seed}");
        all_the_same(&mut world, seed);
    }
}

/// The peer says nothing any more: when the connection is given up the disk is attached.
#[test]
fn a_lost_connection_ends_the_wait() {
    for seed in 1..=20 {
        let mut world = parted(seed, &[1]);
        assert_eq!(world.connect(0), 1);
        assert_eq!(world.connect(1), 1);
        world.run_until("the handshake", 60_000, |world| world.status(1).state.conn == Conn::WFReportParams);
        world.set_direction(0, false);
        assert_eq!(world.start_attach(1), Ok(()));
        assert_eq!(attaching(&world, 1), Attaching::Waits, "seed {seed}");
        assert_eq!(world.admin_answer(1), 101, "seed {seed}");
        assert_eq!(world.status(1).state.disk, Disk::UpToDate, "seed {seed}");
        world.set_direction(0, true);
        world.run_until("the next connection", 300_000, good);
        world.faults.clear();
        all_the_same(&mut world, seed);
    }
}

/// It was answered with success and did nothing.
#[test]
fn a_resync_is_paused_while_the_nodes_meet() {
    for seed in 1..=20 {
        let mut world = parted(seed, &[]);
        assert_eq!(world.connect(0), 1);
        assert_eq!(world.connect(1), 1);
        world.run_until("the handshake", 60_000, |world| world.status(1).state.conn == Conn::WFReportParams);
        assert_eq!(world.admin(1, AdminRequest::PauseSync { volume: VOLUME }), 101);
        assert!(world.status(1).state.user_isp, "seed {seed}");
        assert_eq!(world.admin(1, AdminRequest::PauseSync { volume: VOLUME }), 134);
        assert_eq!(world.admin(1, AdminRequest::ResumeSync { volume: VOLUME }), 101);
        assert_eq!(world.admin(1, AdminRequest::ResumeSync { volume: VOLUME }), 135);
        all_the_same(&mut world, seed);
    }
}

/// Seed 16002313: the nodes had met without disks, and that of the Primary was attached before the other one had told that it has none. It went on
/// without the generation that tells that the peer's disk lacks what is written now.
#[test]
fn a_disk_that_hears_in_the_end_that_the_peer_has_none_begins_a_new_generation() {
    let mut negotiated = 0;
    for seed in 1..=SEEDS {
        let mut world = synced(seed);
        assert_eq!(world.admin(0, AdminRequest::Detach { volume: VOLUME, force: true }), 1);
        world.power_cut(1);
        world.run_until("the loss", 60_000, |world| world.status(0).state.conn < Conn::Connected);
        world.boot(1);
        assert_eq!(world.connect(1), 1);
        world.run_until("the peer", 60_000, |world| world.status(0).state.conn == Conn::Connected);
        assert_eq!(world.attach(0), 101);
        negotiated += usize::from(world.status(0).state.disk == Disk::Negotiating);
        // Whether it is told there is compared with the disks when it ends.
        assert_eq!(world.io(0, WRITE, 128, 8), Ok(()));
        assert_eq!(world.attach(1), 101);
        // Of the power cut.
        world.faults.clear();
        all_the_same(&mut world, seed);
    }
    assert!(negotiated > 0, "no attach was met by the handshake");
}

/// Seed 18004267: the target of a resync whose source lost its disk says that its own one is Outdated. The other node took that for the state of
/// a good disk, as while two nodes of the C module are connected.
#[test]
fn a_node_without_disk_believes_its_peer_that_has_old_data() {
    for seed in 1..=SEEDS {
        let mut world = parted(seed, &[]);
        assert_eq!(world.admin(0, AdminRequest::Secondary { volume: VOLUME }), 1);
        assert_eq!([0, 1].map(|node| world.connect(node)), [1, 1]);
        world.run_until("the target", 60_000, |world| world.status(1).state.conn == Conn::WFBitMapT);
        assert_eq!(world.admin(0, AdminRequest::Detach { volume: VOLUME, force: true }), 1);
        world.run_for_ms(2_000);
        let [own, other] = [0, 1].map(|node| world.status(node).state);
        assert_eq!((own.conn, own.disk, other.conn), (Conn::Connected, Disk::Diskless, Conn::Connected), "seed {seed}");
        assert!(other.disk < Disk::UpToDate, "seed {seed}: {other}");
        assert_eq!(own.pdsk, other.disk, "seed {seed}");
        assert_eq!(world.attach(0), 101);
        all_the_same(&mut world, seed);
    }
}

/// Seed 4123: a disk that is attached while connected meets a split brain. The node with the good disk refused, and told nothing of it; the other
/// one waited for its verdict for ever. (The C module does.) Seed 91030132: the same, and that disk is Outdated, which it stays beside a node
/// without one.
#[test]
fn a_disk_that_meets_a_split_brain_is_let_go() {
    for seed in 1..=SEEDS / 10 {
        let mut world = parted(seed, &[]);
        // The other half goes its own way as well.
        assert_eq!(world.admin(1, AdminRequest::Primary { volume: VOLUME, force: false }), 1);
        assert_eq!(world.io(1, WRITE, 128, 8), Ok(()));
        for node in 0..2 {
            assert_eq!(world.admin(node, AdminRequest::Secondary { volume: VOLUME }), 1);
        }
        let attacher = (seed % 2) as usize;
        let outdated = seed % 3 == 0;
        if outdated {
            assert_eq!(world.admin(1 - attacher, AdminRequest::Outdate { volume: VOLUME }), 1);
        }
        assert_eq!(world.admin(attacher, DETACH), 1);
        world.run_until("detached", 10_000, |world| !world.status(attacher).has_disk);
        for node in 0..2 {
            assert_eq!(world.connect(node), 1);
        }
        world.run_until("connected", 60_000, |world| {
            (0..2).all(|node| world.status(node).state.conn == Conn::Connected)
        });
        assert_eq!(world.attach(attacher), 101, "seed {seed}");
        world.run_until("let go", 10_000, |world| world.status(attacher).state.disk == Disk::Diskless);
        let state = world.status(1 - attacher).state;
        assert_eq!(
            (state.conn, state.disk, state.pdsk),
            (Conn::Connected, if outdated { Disk::Outdated } else { Disk::UpToDate }, Disk::Diskless),
            "seed {seed}"
        );
    }
}

/// The same, and the node with the good disk says nothing, as a C module does: by what it has told before, this one comes to the verdict alone.
/// If that is another one it is the peer's to tell.
#[test]
fn a_disk_that_meets_a_split_brain_is_let_go_without_a_word_of_the_peer() {
    for seed in 1..=SEEDS / 10 {
        for diverged in [true, false] {
            let mut config = Config::new(seed);
            (config.net.timeout, config.net.ping_int) = (20, 60);
            let mut world = synced_with(config);
            assert_eq!(world.admin(1, DISCONNECT), 101);
            assert_eq!(world.admin(0, DISCONNECT), 101);
            assert_eq!(world.io(0, WRITE, 64, 8), Ok(()));
            if diverged {
                assert_eq!(world.admin(1, AdminRequest::Primary { volume: VOLUME, force: false }), 1);
                assert_eq!(world.io(1, WRITE, 128, 8), Ok(()));
                assert_eq!(world.admin(1, AdminRequest::Secondary { volume: VOLUME }), 1);
            }
            assert_eq!(world.admin(1, DETACH), 1);
            world.run_until("detached", 10_000, |world| !world.status(1).has_disk);
            assert_eq!([0, 1].map(|node| world.connect(node)), [1, 1]);
            let connected = |world: &World| (0..2).all(|node| world.status(node).state.conn == Conn::Connected);
            world.run_until("connected", 60_000, connected);
            world.set_direction(0, false);
            assert_eq!(world.attach(1), 101, "seed {seed}");
            world.run_for_ms(2_500);
            let state = world.status(1).state;
            let expected = if diverged { Disk::Diskless } else { Disk::Negotiating };
            assert_eq!((state.conn, state.disk), (Conn::Connected, expected), "seed {seed}");
            world.set_direction(0, true);
            if diverged {
                world.run_for_ms(1_000);
                let state = world.status(0).state;
                let expected = (Role::Primary, Conn::Connected, Disk::UpToDate, Disk::Diskless);
                assert_eq!((state.role, state.conn, state.disk, state.pdsk), expected, "seed {seed}");
                assert_eq!(world.io(0, WRITE, 256, 8), Ok(()));
            } else {
                all_the_same(&mut world, seed);
            }
        }
    }
}

/// Seed 51008349: as above, and the node with the good disk is Primary. A promotion of the other one waited for the verdict, and nothing else
/// could be asked for.
#[test]
fn a_disk_that_meets_a_split_brain_with_a_primary_is_let_go() {
    for seed in 1..=SEEDS / 10 {
        let mut world = parted(seed, &[]);
        assert_eq!(world.admin(1, AdminRequest::Primary { volume: VOLUME, force: false }), 1);
        assert_eq!(world.io(1, WRITE, 128, 8), Ok(()));
        assert_eq!(world.admin(1, AdminRequest::Secondary { volume: VOLUME }), 1);
        assert_eq!(world.admin(1, DETACH), 1);
        world.run_until("detached", 10_000, |world| !world.status(1).has_disk);
        for node in 0..2 {
            assert_eq!(world.connect(node), 1);
        }
        world.run_until("connected", 60_000, |world| {
            (0..2).all(|node| world.status(node).state.conn == Conn::Connected)
        });
        assert_eq!(world.attach(1), 101, "seed {seed}");
        world.run_until("let go", 10_000, |world| world.status(1).state.disk == Disk::Diskless);
        let state = world.status(0).state;
        let expected = (Role::Primary, Conn::Connected, Disk::UpToDate, Disk::Diskless);
        assert_eq!((state.role, state.conn, state.disk, state.pdsk), expected, "seed {seed}");
        assert_eq!(world.io(0, WRITE, 256, 8), Ok(()));
    }
}
