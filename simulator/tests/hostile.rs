//! A peer that sends what no peer should: the other node refuses it with a reason, and goes on.

use engine::netlink::Fencing;
use engine::resource::{AdminRequest, Fault};
use engine::state::{Conn, Disk, Role};
use simulator::draw::{self, Kind};
use simulator::node::VOLUME;
use simulator::world::{Action, Hostile};
use simulator::{Config, Random, World};

/// Seeds of the ordinary test run; `SEEDS` asks for another number, `FIRST_SEED` for others.
fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

fn config(seed: u64) -> Config {
    let mut random = Random::new(!seed);
    let kind = Kind { careful: false, dual: seed % 4 == 0 };
    let mut config = Config::new(seed);
    config.check_reads = false;
    config.sectors = 16_384;
    config.net = draw::net(&mut random, kind);
    config.net.two_primaries = kind.dual;
    config.disk.resync_rate = 100_000;
    config.disk = draw::disk(&mut random, kind, config.disk, &config.net);
    // Frozen I/O may wait for the peer, and this one is not to be waited for.
    config.disk.fencing = Fencing::DontCare;
    config
}

/// Whatever the administrator would do about a node that lost its peer, its disk or its role. He asks for one thing after the
/// other; true when there is an answer to wait for.
fn look_after(world: &mut World, node: usize) -> bool {
    let status = world.status(node);
    if status.state.disk == Disk::Diskless && world.start_attach(node).is_ok() {
        return true;
    }
    if world.engine_of(node).connection_status().state == Conn::StandAlone {
        let _code = world.connect(node);
    }
    if status.state.role != Role::Primary && (node == 0 || world.config.net.two_primaries) {
        world.ask(node, AdminRequest::Primary { volume: VOLUME, force: true });
        return true;
    }
    let volume = VOLUME;
    let request = match world.random.below(30) {
        0 => AdminRequest::Verify { volume, start_sector: Some(0), stop_sector: None },
        1 => AdminRequest::InvalidateRemote { volume },
        2 => AdminRequest::Invalidate { volume },
        3 => AdminRequest::Detach { volume, force: world.random.percent(50) },
        4 => AdminRequest::Disconnect { force: world.random.percent(50) },
        _ => return false,
    };
    world.ask(node, request);
    true
}

fn load(world: &mut World, node: usize) {
    for _ in 0..world.random.between(0, 3) {
        let count = world.random.pick(&[1, 8, 64, 256]);
        let sector = world.random.below(16_384 - 300 - count);
        let action = match world.random.below(8) {
            0 => Action::Read,
            1 => Action::Flush,
            2 => Action::Discard,
            3 => Action::WriteZeroes,
            _ => Action::Write { fua: false },
        };
        world.start(node, action, sector, count);
    }
}

/// Both connected, node 0 Primary.
fn connected(config: Config) -> World {
    let mut world = World::new(config);
    for node in 0..2 {
        assert_eq!(world.attach(node), 101, "attach");
        assert_eq!(world.connect(node), 1, "connect");
    }
    world.run_until("connected", 10_000, |world| world.status(0).state.conn == Conn::Connected);
    assert_eq!(world.admin(0, AdminRequest::Primary { volume: VOLUME, force: true }), 1);
    let good = |world: &World| world.status(0).state.pdsk == Disk::UpToDate;
    world.run_until("resync", 60_000, good);
    world
}

/// An acknowledgement arrives at node 0 that node 1 did not send.
fn acknowledge(world: &mut World, command: u8, sector: u64, block_id: u64, size_bytes: u32) -> Result<(), Fault> {
    let header = [0x86, 0x20, 0xec, 0x20, 0, 0, 0, command, 0, 0, 0, 24, 0, 0, 0, 0];
    let mut body = sector.to_be_bytes().to_vec();
    body.extend(block_id.to_be_bytes());
    body.extend(size_bytes.to_be_bytes());
    body.extend([0, 0, 0, 1]);
    world.engine(0, |engine, now| {
        let head = engine.meta_header(&header, now).expect("a sound header");
        engine.meta_packet(&head, &body, now)
    })
}

/// Seed 890: the end of a range that a block of the resync was refused for did not fit into 64 bits.
#[test]
fn a_block_of_the_resync_is_on_the_device() {
    for (sector, size_bytes) in [(u64::MAX, 4096u32), (1 << 20, 4096), (0, 0), (0, 100), (0, 2 << 20)] {
        for command in [0x15u8, 0x17, 0x19] {
            let mut world = connected(config(1));
            let fault = acknowledge(&mut world, command, sector, u64::MAX, size_bytes);
            assert!(matches!(fault, Err(Fault::BadRange { .. })), "{command:#x} {sector}+{size_bytes}: {fault:?}");
        }
    }
}

/// Seed 8612: a write that had been ended was refused in favour of one of the peer's, and done again without its bio.
#[test]
fn what_has_been_acknowledged_cannot_be_refused() {
    for command in [0x18u8, 0x2c] {
        let mut config = config(4);
        config.trace = true;
        let mut world = connected(config);
        assert_eq!(world.io(0, Action::Write { fua: false }, 77, 8), Ok(()));
        let id = world.trace().filter(|line| line.contains("node 0 data > P_DATA 77 id ")).last().expect("the packet");
        let id = id.split(" id ").nth(1).and_then(|rest| rest.split(' ').next()).expect("its handle");
        let id = u64::from_str_radix(id, 16).expect("a number");
        let fault = acknowledge(&mut world, command, 77, id, 4096);
        assert!(matches!(fault, Err(Fault::UnknownRequest { .. })), "{command:#x}: {fault:?}");
        world.run_for_ms(5_000);
        assert_eq!(world.open_operations(), 0);
    }
}

/// Seed 12799: a flush at the end of the address space waited for room in the activity log, and the end of the connection for the
/// flush.
#[test]
fn a_flush_of_the_peer_names_no_sector_behind_the_device() {
    for (sector, is_sound) in [(0u64, true), (1 << 20, false), (u64::MAX, false)] {
        let mut world = connected(config(4));
        let mut body = sector.to_be_bytes().to_vec();
        body.extend(7u64.to_be_bytes());
        body.extend([0, 0, 0, 1]);
        // FLUSH, and an answer is wanted.
        body.extend(288u32.to_be_bytes());
        let outcome = world.engine(1, |engine, now| {
            let head = engine.data_header(&[0x86, 0x20, 0xec, 0x20, 0, 0, 0, 0, 0, 0, 0, 24, 0, 0, 0, 0], now);
            engine.data_packet(&head.expect("a sound header"), &body, now).map(|_| ())
        });
        assert_eq!(outcome.is_ok(), is_sound, "{sector}: {outcome:?}");
        assert!(is_sound || matches!(outcome, Err(Fault::BadRange { .. })), "{sector}: {outcome:?}");
        world.run_for_ms(5_000);
        assert_eq!(world.engine_of(1).usage().peer_requests, 0, "{sector}");
    }
}

/// A run with a peer that does not keep to the protocol; whatever is wrong is a panic.
fn meet_a_hostile_peer(world: &mut World, seed: u64) {
    for node in 0..2 {
        assert_eq!(world.attach(node), 101, "attach");
    }
    for node in 0..2 {
        let _code = world.connect(node);
    }
    world.run_for_ms(2_000);
    let percent = world.random.pick(&[1, 3, 10]);
    world.hostile = Some(Hostile::new((seed / 2 % 2) as usize, percent));
    let mut asked = [false; 2];
    for _ in 0..60 {
        for (node, asked) in asked.iter_mut().enumerate() {
            *asked = match *asked {
                true => world.poll_admin(node).is_none(),
                false => world.random.percent(40) && look_after(world, node),
            };
            if world.status(node).state.role == Role::Primary {
                load(world, node);
            }
        }
        let wait = world.random.below(100);
        world.run_for_ms(wait);
    }
    // Without its peer a node finishes everything.
    world.set_network(false);
    world.run_for_ms(120_000);
    let open: usize = (0..2).map(|node| world.open_operations_of(node)).sum();
    assert_eq!(open, 0, "operations that do not end; {}", world.describe());
}

#[test]
fn nothing_that_a_peer_says_breaks_a_node() {
    let first = number("FIRST_SEED", 1);
    let mut faults = 0;
    for seed in first..first + number("SEEDS", 300) {
        let mut world = World::new(config(seed));
        world.overwrite_allowed = true;
        let run = std::panic::AssertUnwindSafe(|| meet_a_hostile_peer(&mut world, seed));
        if let Err(panic) = std::panic::catch_unwind(run) {
            world.trace().for_each(|line| eprintln!("{line}"));
            eprintln!("replay: FIRST_SEED={seed} SEEDS=1 build/cargo test -p simulator --test hostile");
            std::panic::resume_unwind(panic);
        }
        faults += world.faults.len();
    }
    assert!(faults > 0, "nothing was ever refused");
}
