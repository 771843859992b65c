// SPDX-License-Identifier: GPL-2.0
//! How two nodes that both connect and both listen end with one pair of sockets.
//!
//! The side that opens a socket says what it is for by its first packet. A [`Pairing`] keeps which of the two sockets
//! stand and says, after each event, what becomes of the socket and what to do next. It knows no sockets and no clock.
//!
//! The node that accepted the meta socket has the upper hand where both are equal (`resolve_conflicts`); the last
//! event about a meta socket decides, so exactly one node of a pair has it.

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Requests, data, handshake.
    Data,
    /// Acknowledgements, pings.
    Meta,
}

/// The first packet on an accepted socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstPacket {
    /// It shall be this one.
    Initial(Stream),
    /// Something else, or none.
    Senseless,
}

/// What becomes of the socket an event was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketAction {
    /// There was none.
    None,
    /// This node opened it: it becomes this one, its initial packet is sent.
    Announce(Stream),
    /// The peer opened it: it becomes this one; if one was held already that is released.
    Keep(Stream),
    /// It is released.
    Release,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Try one active connect; tell [`Pairing::connected`] or [`Pairing::connect_failed`].
    Connect,
    /// Wait for an incoming connection (connect-int seconds, plus or minus a seventh); tell [`Pairing::accepted`] or
    /// [`Pairing::nobody_came`].
    Accept,
    /// Wait sock-check-timeo (ping-timeo if that is 0), then peek both sockets and tell [`Pairing::checked`].
    Check,
    /// Both sockets stand.
    Done,
}

/// What follows an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// About the socket of the event.
    pub socket: SocketAction,
    /// Afterwards.
    pub next: Next,
}

/// The sockets held so far by one attempt to connect.
// spec: wire-protocol 1.2
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pairing {
    data: bool,
    meta: bool,
    resolve_conflicts: bool,
    after_accept: bool,
}

impl Pairing {
    /// Begins an attempt; the first thing to do is [`Next::Connect`]. `resolve_conflicts` is that of the last
    /// connection, if there was one.
    pub const fn new(resolve_conflicts: bool) -> Self {
        Self { data: false, meta: false, resolve_conflicts, after_accept: false }
    }

    /// Whether this node has the upper hand. Final when the attempt is done.
    pub const fn resolve_conflicts(&self) -> bool {
        self.resolve_conflicts
    }

    /// Whether this socket is held.
    pub const fn holds(&self, stream: Stream) -> bool {
        match stream {
            Stream::Data => self.data,
            Stream::Meta => self.meta,
        }
    }

    /// The active connect succeeded.
    pub fn connected(&mut self) -> Step {
        self.after_accept = false;
        let socket = match (self.data, self.meta) {
            (false, _) => {
                self.data = true;
                SocketAction::Announce(Stream::Data)
            }
            (true, false) => {
                self.meta = true;
                self.resolve_conflicts = false;
                SocketAction::Announce(Stream::Meta)
            }
            (true, true) => SocketAction::Release,
        };
        Step { socket, next: self.check_or(Next::Accept) }
    }

    /// The active connect failed in a way that allows to go on.
    pub fn connect_failed(&mut self) -> Step {
        self.after_accept = false;
        Step { socket: SocketAction::None, next: self.check_or(Next::Accept) }
    }

    /// A held socket was found dead; call this before [`Pairing::accepted`] for what a peek of the held sockets shows.
    pub fn lost(&mut self, stream: Stream) {
        match stream {
            Stream::Data => self.data = false,
            Stream::Meta => self.meta = false,
        }
    }

    /// A connection came in. `coin` is random: after a crossing or an error it decides whether this node waits once
    /// more before it connects itself, so that two nodes do not cross for ever.
    pub fn accepted(&mut self, first: FirstPacket, coin: bool) -> Step {
        self.after_accept = true;
        let (socket, smooth) = match first {
            FirstPacket::Initial(Stream::Data) => {
                let crossed = core::mem::replace(&mut self.data, true);
                (SocketAction::Keep(Stream::Data), !crossed)
            }
            FirstPacket::Initial(Stream::Meta) => {
                let crossed = core::mem::replace(&mut self.meta, true);
                self.resolve_conflicts = true;
                (SocketAction::Keep(Stream::Meta), !crossed)
            }
            FirstPacket::Senseless => (SocketAction::Release, false),
        };
        let again = if smooth || !coin { Next::Connect } else { Next::Accept };
        let next = if again == Next::Accept { again } else { self.check_or(again) };
        Step { socket, next }
    }

    /// Nobody connected in time.
    pub fn nobody_came(&mut self) -> Step {
        self.after_accept = true;
        Step { socket: SocketAction::None, next: self.check_or(Next::Connect) }
    }

    /// Both sockets were peeked. A socket that is not open is released.
    pub fn checked(&mut self, data_open: bool, meta_open: bool) -> Step {
        self.data &= data_open;
        self.meta &= meta_open;
        let next = match (self.data && self.meta, self.after_accept) {
            (true, _) => Next::Done,
            (false, true) => Next::Connect,
            (false, false) => Next::Accept,
        };
        Step { socket: SocketAction::None, next }
    }

    const fn check_or(&self, other: Next) -> Next {
        if self.data && self.meta {
            Next::Check
        } else {
            other
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(socket: SocketAction, next: Next) -> Step {
        Step { socket, next }
    }

    const DATA: FirstPacket = FirstPacket::Initial(Stream::Data);
    const META: FirstPacket = FirstPacket::Initial(Stream::Meta);

    #[test]
    fn the_usual_way() {
        // X opens data, Y accepts it and opens meta.
        let (mut x, mut y) = (Pairing::new(false), Pairing::new(false));
        assert_eq!(y.connect_failed(), step(SocketAction::None, Next::Accept));
        assert_eq!(x.connected(), step(SocketAction::Announce(Stream::Data), Next::Accept));
        assert_eq!(y.accepted(DATA, true), step(SocketAction::Keep(Stream::Data), Next::Connect));
        assert_eq!(y.connected(), step(SocketAction::Announce(Stream::Meta), Next::Check));
        assert_eq!(x.accepted(META, true), step(SocketAction::Keep(Stream::Meta), Next::Check));
        assert_eq!(x.checked(true, true).next, Next::Done);
        assert_eq!(y.checked(true, true).next, Next::Done);
        assert!(x.resolve_conflicts() && !y.resolve_conflicts());
    }

    #[test]
    fn one_node_may_open_both() {
        let mut x = Pairing::new(true);
        assert_eq!(x.connected().socket, SocketAction::Announce(Stream::Data));
        assert_eq!(x.nobody_came().next, Next::Connect);
        assert_eq!(x.connected(), step(SocketAction::Announce(Stream::Meta), Next::Check));
        assert!(!x.resolve_conflicts());
    }

    #[test]
    fn a_crossing_keeps_the_new_socket_and_tosses_the_coin() {
        for (coin, next) in [(true, Next::Accept), (false, Next::Connect)] {
            let mut x = Pairing::new(false);
            x.connected();
            assert_eq!(x.accepted(DATA, coin), step(SocketAction::Keep(Stream::Data), next));
            assert!(x.holds(Stream::Data) && !x.holds(Stream::Meta));
        }
        let mut x = Pairing::new(false);
        x.connected();
        x.connected();
        assert_eq!(x.accepted(META, false), step(SocketAction::Keep(Stream::Meta), Next::Check));
        assert!(x.resolve_conflicts(), "the last event about a meta socket wins");
    }

    #[test]
    fn senseless_connections_are_released() {
        for (coin, next) in [(true, Next::Accept), (false, Next::Connect)] {
            let mut x = Pairing::new(false);
            assert_eq!(x.accepted(FirstPacket::Senseless, coin), step(SocketAction::Release, next));
            assert!(!x.holds(Stream::Data));
        }
    }

    #[test]
    fn dead_sockets_are_given_up() {
        let mut x = Pairing::new(false);
        x.connected();
        x.lost(Stream::Data);
        assert_eq!(x.accepted(DATA, true), step(SocketAction::Keep(Stream::Data), Next::Connect), "no crossing");
        x.connected();
        assert_eq!(x.checked(true, false).next, Next::Accept);
        assert_eq!(x.accepted(META, true).next, Next::Check);
        assert_eq!(x.checked(false, true).next, Next::Connect);
        assert!(!x.holds(Stream::Data) && x.holds(Stream::Meta));
        assert_eq!(x.connected().socket, SocketAction::Announce(Stream::Data));
        x.lost(Stream::Meta);
        assert_eq!(x.connected().socket, SocketAction::Announce(Stream::Meta));
    }

    #[test]
    fn a_third_socket_is_not_wanted() {
        let mut x = Pairing::new(false);
        x.connected();
        x.connected();
        assert_eq!(x.connected(), step(SocketAction::Release, Next::Check));
    }

    // Whatever way two nodes find together, exactly one has the upper hand if both hold the same meta socket.
    #[test]
    fn property_one_node_has_the_upper_hand() {
        let mut random = crate::state::testing::Random::new(10);
        for _ in 0..10_000 {
            let mut nodes = [Pairing::new(random.flag()), Pairing::new(random.flag())];
            // Who opened the meta socket last; both events of one socket happen in one turn.
            for _ in 0..random.pick(&[2usize, 3, 4, 6]) {
                let opener = usize::from(random.flag());
                if nodes[opener].holds(Stream::Data) && nodes[opener].holds(Stream::Meta) {
                    continue;
                }
                if let SocketAction::Announce(stream) = nodes[opener].connected().socket {
                    nodes[1 - opener].accepted(FirstPacket::Initial(stream), random.flag());
                }
            }
            if nodes[0].holds(Stream::Meta) && nodes[1].holds(Stream::Meta) {
                assert_ne!(nodes[0].resolve_conflicts(), nodes[1].resolve_conflicts());
            }
        }
    }
}
