// SPDX-License-Identifier: GPL-2.0
//! Authentication of the peer by a shared secret, between the features and everything else.
//!
//! Each side sends a challenge, answers the other's with its HMAC, and compares the other's answer with the HMAC of its
//! own challenge. The owner computes the HMACs ([`Next::Authenticate`]); the secret never comes into a packet or a log.
//! It happens if this node has a `cram-hmac-alg`; a peer that has none is refused, and the other way round.
//! spec: wire-protocol 4.3

use super::api::{Digest, Next};
use super::incoming::Fault;
use super::inspect::AlgorithmName;
use super::link::Handshake;
use super::outgoing::Control;
use super::Engine;
use crate::netlink::{NetConf, RetCode};
use crate::state::Conn;
use crate::storage::Storage;
use crate::wire::command::Command;

/// Bytes of the own challenge, and the least of the peer's.
pub const CHALLENGE_BYTES: usize = 64;

/// How far the authentication has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Authentication {
    /// Own challenge is on its way, the peer's is awaited.
    Challenge,
    /// The owner computes.
    Compute,
    /// Own answer is on its way, the peer's is awaited.
    Response,
}

/// Which algorithm a `cram-hmac-alg` means. Empty when there is none, or its name is too long.
pub fn hmac_of(name: &AlgorithmName) -> AlgorithmName {
    let mut text = [0; 2 * AlgorithmName::MAX_LEN];
    let parts = [b"hmac(".as_slice(), name.as_bytes(), b")"];
    let bytes = parts.into_iter().flatten();
    for (place, byte) in text.iter_mut().zip(bytes) {
        *place = *byte;
    }
    let known = if name.is_empty() { Ok(AlgorithmName::EMPTY) } else { AlgorithmName::from_bytes(&text) };
    known.unwrap_or(AlgorithmName::EMPTY)
}

impl<S: Storage> Engine<S> {
    /// An algorithm for authentication must be known to the owner, as `hmac(...)`.
    pub(super) fn check_authentication(&self, conf: &NetConf) -> Result<(), RetCode> {
        let hmac = hmac_of(&conf.cram_hmac_alg);
        if conf.cram_hmac_alg.is_empty() || (!hmac.is_empty() && self.knows_algorithm(&hmac)) {
            Ok(())
        } else {
            Err(RetCode::AuthAlg)
        }
    }

    /// The features fit. The peer has to prove that it knows the secret, if there is one.
    pub(super) fn begin_authentication(&mut self) {
        if self.link.net.cram_hmac_alg.is_empty() {
            self.authenticated();
            return;
        }
        let mut challenge = [0; CHALLENGE_BYTES];
        for chunk in challenge.chunks_exact_mut(8) {
            chunk.copy_from_slice(&self.random().to_be_bytes());
        }
        self.handshake_digests.challenge = Digest::new(&challenge).unwrap_or(Digest::EMPTY);
        self.link.handshake = Handshake::Authentication(Authentication::Challenge);
        self.queue_control(Control::AuthChallenge);
    }

    /// What may come next on the data socket.
    pub(super) fn check_authentication_packet(&self, command: Command, stage: Authentication) -> Result<(), Fault> {
        match (stage, command) {
            (Authentication::Challenge, Command::AuthChallenge) | (Authentication::Response, Command::AuthResponse) => {
                Ok(())
            }
            (Authentication::Challenge, _) => Err(Fault::Authentication { what: "the peer does not authenticate" }),
            _ => Err(Fault::NotNow { command }),
        }
    }

    /// P_AUTH_CHALLENGE and P_AUTH_RESPONSE.
    pub(super) fn receive_authentication(&mut self, stage: Authentication, body: &[u8]) -> Result<Next, Fault> {
        match stage {
            Authentication::Challenge => self.receive_challenge(body),
            Authentication::Compute => Err(Fault::NotNow { command: Command::AuthResponse }),
            Authentication::Response => self.receive_response(body).map(|()| Next::Packet),
        }
    }

    fn receive_challenge(&mut self, challenge: &[u8]) -> Result<Next, Fault> {
        if challenge.get(..CHALLENGE_BYTES) == Some(self.handshake_digests.challenge.as_bytes()) {
            return Err(Fault::Authentication { what: "the peer sent our own challenge" });
        }
        self.link.handshake = Handshake::Authentication(Authentication::Compute);
        Ok(Next::Authenticate)
    }

    /// The challenge this node sent.
    pub fn own_challenge(&self) -> Digest {
        self.handshake_digests.challenge
    }

    /// The HMACs of the peer's challenge and of [`Engine::own_challenge`]; `None`: they cannot be computed.
    ///
    /// # Errors
    /// [`Fault`]: the connection is given up.
    pub fn authenticate(&mut self, hmacs: Option<(Digest, Digest)>, now_ms: u64) -> Result<(), Fault> {
        self.now_ms = now_ms;
        if self.link.handshake != Handshake::Authentication(Authentication::Compute) {
            return Err(Fault::Closing);
        }
        let Some((response, expected)) = hmacs else {
            let fault = Fault::Authentication { what: "the algorithm or the secret cannot be used" };
            return Err(self.fail(fault, Conn::Disconnecting));
        };
        self.handshake_digests.response = response;
        self.handshake_digests.expected = expected;
        self.link.handshake = Handshake::Authentication(Authentication::Response);
        self.queue_control(Control::AuthResponse);
        self.wakes.insert(super::Wakes::RECEIVER);
        Ok(())
    }

    fn receive_response(&mut self, response: &[u8]) -> Result<(), Fault> {
        let expected = self.handshake_digests.expected;
        let expected = expected.as_bytes();
        if response.len() != expected.len() {
            let expected = expected.len() as u8;
            return Err(Fault::DigestSize { command: Command::AuthResponse, found: response.len(), expected });
        }
        // Takes the same time wherever they differ.
        let difference = response.iter().zip(expected).fold(0, |sum, (a, b)| sum | (a ^ b));
        if difference != 0 {
            return Err(Fault::Authentication { what: "the peer does not know the secret" });
        }
        self.authenticated();
        Ok(())
    }
}

/// Digests of the handshake.
#[derive(Clone, Copy, Debug)]
pub(super) struct HandshakeDigests {
    /// Random bytes that the peer has to answer.
    pub(super) challenge: Digest,
    /// Our answer.
    pub(super) response: Digest,
    /// The right answer of the peer.
    expected: Digest,
}

impl HandshakeDigests {
    /// Before anything was exchanged.
    pub(super) const NONE: HandshakeDigests =
        HandshakeDigests { challenge: Digest::EMPTY, response: Digest::EMPTY, expected: Digest::EMPTY };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_hmacs() {
        let name = |text: &str| AlgorithmName::from_bytes(text.as_bytes()).unwrap();
        assert_eq!(hmac_of(&name("sha1")).as_bytes(), b"hmac(sha1)");
        assert_eq!(hmac_of(&AlgorithmName::EMPTY), AlgorithmName::EMPTY);
        let longest = name(&"x".repeat(57));
        assert_eq!(hmac_of(&longest).len(), 63);
        assert_eq!(hmac_of(&name(&"x".repeat(58))), AlgorithmName::EMPTY);
    }
}
