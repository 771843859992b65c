//! What single packets are answered with, where two engines would never send them to each other.

use engine::resource::{AdminRequest, AlgorithmName, Fault, Next, Parting, PACKET_BUFFER_BYTES};
use engine::state::{Conn, Role};
use engine::wire::{header_size, BlockAck, Command, Data, DataFlags, Header, StateRequest, Trim};
use simulator::node::{HeapEngine, VOLUME};
use simulator::world::Hostile;
use simulator::{Config, World};

const APV: u32 = 101;

fn connected() -> World {
    let mut world = World::new(Config::new(1));
    for node in 0..2 {
        assert_eq!(world.attach(node), 101);
        assert_eq!(world.connect(node), 1);
    }
    world.run_until("connected", 10_000, |world| (0..2).all(|node| world.status(node).state.conn == Conn::Connected));
    world.run_for_ms(100);
    world
}

fn header(command: Command, length: usize) -> [u8; 16] {
    let mut bytes = [0; 16];
    Header { command: command as u16, volume: 0, length: length as u32 }.encode(APV, &mut bytes).expect("fits");
    bytes
}

/// Takes the next packet that is to be sent over the meta socket.
fn answer(engine: &mut HeapEngine, now_ms: u64) -> (Command, BlockAck) {
    let mut buffer = [0; PACKET_BUFFER_BYTES];
    let sent = engine.next_meta(&mut buffer, now_ms).expect("an answer");
    engine.meta_sent(true, now_ms);
    let (head, body) = buffer[..sent.head_bytes].split_at(header_size(APV));
    let number = Header::decode(APV, head).expect("a header").command;
    (Command::from_u16(number).expect("a command"), BlockAck::decode(body).expect("an acknowledgement"))
}

/// The writer may have forgotten the request, and marks what the refusal says.
#[test]
fn a_discard_that_meets_no_disk_is_refused_with_its_size() {
    let mut world = connected();
    assert_eq!(world.admin(1, AdminRequest::Detach { volume: VOLUME, force: false }), 1);
    world.run_for_ms(1_000);
    let data = Data { sector: 64, block_id: 77, seq: 1, flags: DataFlags(0).with(DataFlags::DISCARD) };
    let trim = Trim { data, size_bytes: 1 << 20 };
    let mut body = [0; 28];
    assert_eq!(trim.encode(&mut body).ok(), Some(28));
    let (command, ack) = world.engine(1, |engine, now_ms| {
        let head = engine.data_header(&header(Command::Trim, body.len()), now_ms).expect("a header");
        assert_eq!(engine.data_packet(&head, &body, now_ms), Ok(Next::Packet));
        answer(engine, now_ms)
    });
    assert_eq!(command, Command::NegAck);
    assert_eq!((ack.sector, ack.block_id, ack.size_bytes), (64, 77, 1 << 20));
}

/// A C module that is busy takes the end of the sockets for a loss, and calls fence-peer, if it comes right after the consent to its
/// disconnect: it is left to that one to close them. One that does not is not waited for for ever.
#[test]
fn who_disconnects_closes_the_sockets() {
    let mut world = connected();
    let request = StateRequest { mask: 0x1e1f0, val: 0xa010 };
    let mut body = [0; 8];
    assert_eq!(request.encode(&mut body).ok(), Some(8));
    let since_ms = world.engine(1, |engine, now_ms| {
        let head = engine.data_header(&header(Command::ConnStChgReq, body.len()), now_ms).expect("a header");
        assert_eq!(engine.data_packet(&head, &body, now_ms), Ok(Next::Packet));
        let mut buffer = [0; PACKET_BUFFER_BYTES];
        let sent = engine.next_meta(&mut buffer, now_ms).expect("an answer");
        assert_eq!(engine.parting(now_ms), Parting::AtOnce, "the answer is not out");
        engine.meta_sent(true, now_ms);
        let head = Header::decode(APV, &buffer[..sent.head_bytes]).expect("a header");
        assert_eq!(Command::from_u16(head.command), Some(Command::ConnStChgReply));
        now_ms
    });
    let limit_ms = u64::from(Config::new(1).net.ping_timeo) * 100;
    let engine = world.engine_of(1);
    assert_eq!(engine.connection_status().state, Conn::TearDown);
    assert_eq!(engine.parting(since_ms), Parting::PeerCloses);
    assert_eq!(engine.parting(since_ms + limit_ms - 1), Parting::PeerCloses);
    assert_eq!(engine.parting(since_ms + limit_ms), Parting::AtOnce);
    world.run_until("connected", 20_000, |world| world.status(1).state.conn == Conn::Connected);
}

/// There is no place for a packet of the handshake on the meta socket: as for an unknown one nothing is tried again.
#[test]
fn a_packet_of_the_handshake_on_the_meta_socket_ends_it_all() {
    for command in [Command::InitialMeta, Command::InitialData, Command::AuthChallenge, Command::Data] {
        let mut world = connected();
        let outcome = world.engine(1, |engine, now_ms| engine.meta_header(&header(command, 0), now_ms).map(|_| ()));
        assert!(matches!(outcome, Err(Fault::NotNow { .. } | Fault::WrongSocket { .. })), "{command:?}: {outcome:?}");
        let status = |world: &World| world.engine_of(1).connection_status().state;
        world.run_until("StandAlone", 10_000, |world| status(world) == Conn::StandAlone);
    }
}

/// Hands the next packet of the data socket back to the engine that sends it.
fn reflect(engine: &mut HeapEngine, now_ms: u64) -> Result<Next, Fault> {
    let mut buffer = [0; PACKET_BUFFER_BYTES];
    let header_bytes = engine.data_header_bytes();
    let sent = engine.next_data(&mut buffer, now_ms).expect("a packet");
    engine.data_sent(true, now_ms);
    let (head, body) = buffer[..sent.head_bytes].split_at(header_bytes);
    let head = engine.data_header(head, now_ms)?;
    engine.data_packet(&head, body, now_ms)
}

/// Who gets the own challenge answered by the own side needs no secret.
#[test]
fn a_challenge_that_comes_back_is_refused() {
    let algorithm = |name: &str| AlgorithmName::from_bytes(name.as_bytes()).expect("short");
    let mut config = Config::new(1);
    config.net.cram_hmac_alg = algorithm("sha256");
    config.net.shared_secret = algorithm("open sesame");
    let mut world = World::new(config);
    assert_eq!(world.connect(0), 1);
    let looks = |world: &World| world.engine_of(0).connection_status().state == Conn::WFConnection;
    world.run_until("WFConnection", 10_000, looks);
    let outcome = world.engine(0, |engine, now_ms| {
        engine.link_up(true, now_ms);
        assert_eq!(reflect(engine, now_ms), Ok(Next::Packet), "the features");
        reflect(engine, now_ms)
    });
    assert!(matches!(outcome, Err(Fault::Authentication { .. })), "{outcome:?}");
    // Nothing is tried again.
    world.run_for_ms(10_000);
    assert_eq!(world.engine_of(0).connection_status().state, Conn::StandAlone);
}

/// A peer that shows that it is there, tells its sizes and never its state: a command waited for it for ever, and the log told ten times a
/// second that it did.
#[test]
fn a_peer_that_never_tells_its_state_is_given_up() {
    let mut config = Config::new(1);
    (config.net.timeout, config.net.ping_int) = (20, 60);
    let mut world = World::new(config);
    assert_eq!(world.attach(0), 101);
    assert_eq!(world.admin(0, AdminRequest::Primary { volume: VOLUME, force: true }), 1);
    assert_eq!(world.connect(0), 1);
    let looks = |world: &World| world.engine_of(0).connection_status().state == Conn::WFConnection;
    world.run_until("WFConnection", 10_000, looks);
    world.engine(0, |engine, now_ms| {
        engine.link_up(true, now_ms);
        assert_eq!(reflect(engine, now_ms), Ok(Next::Packet), "the features");
        // What it says itself would do as what a peer says, but for the state.
        let mut buffer = [0; PACKET_BUFFER_BYTES];
        while let Some(sent) = engine.next_data(&mut buffer, now_ms) {
            engine.data_sent(true, now_ms);
            let (head, body) = buffer[..sent.head_bytes].split_at(engine.data_header_bytes());
            if Header::decode(APV, head).expect("a header").command == Command::State as u16 {
                continue;
            }
            let head = engine.data_header(head, now_ms).expect("a header");
            assert_eq!(engine.data_packet(&head, body, now_ms), Ok(Next::Packet));
        }
    });
    assert_eq!(world.status(0).state.conn, Conn::WFReportParams);
    world.hostile = Some(Hostile::new(1, 0));
    let before = world.changes_refused;
    world.ask(0, AdminRequest::Secondary { volume: VOLUME });
    world.run_for_ms(3_500);
    assert_eq!(world.poll_admin(0), None, "it may tell yet");
    world.run_for_ms(1_000);
    assert_eq!(world.poll_admin(0), Some(1));
    assert_eq!(world.changes_refused - before, 1, "told once");
    assert_eq!(world.faults, [(0, Fault::HandshakeTimeout { limit_ms: 4_000 })]);
    assert_eq!(world.status(0).state.role, Role::Secondary);
}

/// A peer that is there and never answers what it is asked for: a command waited for it for ever.
#[test]
fn a_peer_that_never_answers_a_request_is_given_up() {
    let mut world = connected();
    world.hostile = Some(Hostile::new(1, 0));
    world.ask(0, AdminRequest::Disconnect { force: false });
    // It is lost on the way.
    world.engine(0, |engine, now_ms| {
        let mut buffer = [0; PACKET_BUFFER_BYTES];
        let sent = engine.next_data(&mut buffer, now_ms).expect("a packet");
        engine.data_sent(true, now_ms);
        let (head, _) = buffer[..sent.head_bytes].split_at(engine.data_header_bytes());
        assert_eq!(Header::decode(APV, head).expect("a header").command, Command::ConnStChgReq as u16);
    });
    let net = Config::new(1).net;
    let limit_ms = u64::from(net.timeout) * 100 * u64::from(net.ko_count);
    world.run_for_ms(limit_ms - 100);
    assert_eq!(world.poll_admin(0), None);
    let answered = |world: &mut World| {
        (0..20).find_map(|_| {
            world.run_for_ms(200);
            world.poll_admin(0)
        })
    };
    assert_eq!(answered(&mut world), Some(101));
    assert_eq!(world.status(0).state.conn, Conn::StandAlone);
}

/// One that comes while no bitmaps are exchanged, and have not been, is not what was on its way when an exchange ended.
#[test]
fn a_bitmap_of_a_peer_without_disk_ends_the_connection() {
    let mut world = connected();
    assert_eq!(world.admin(1, AdminRequest::Detach { volume: VOLUME, force: false }), 1);
    world.run_for_ms(1_000);
    let fault = world.engine(0, |engine, now_ms| {
        let head = engine.data_header(&header(Command::Bitmap, 8), now_ms).expect("a header");
        engine.data_packet(&head, &[0xff; 8], now_ms)
    });
    assert_eq!(fault, Err(Fault::UnexpectedBitmap { conn: Conn::Connected }));
}
