// SPDX-License-Identifier: GPL-2.0
//! `wait-connect` and `wait-sync`: until the peer is there, or the resync is over, or the time is.
//!
//! spec: commands 3.8

use super::genl::{Connection, Incoming};
use super::query::{nest, state_of};
use super::Call;
use crate::failure::Failure;
use crate::options::MAX_WAIT_S;
use engine::netlink::{Command, DrbdHeader, RetCode, StateInfo, TimeoutParms, TimeoutType, MINOR_NONE};
use engine::state::Conn;
use std::time::{Duration, Instant};

/// Exit code when the time is over.
const TIMED_OUT: i32 = 5;

/// Waiting times, seconds; 0 is for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Times {
    ordinary: u64,
    degraded: u64,
    outdated: u64,
}

impl Times {
    /// The later ones never exceed the earlier ones.
    // spec: commands 3.8 (ordering)
    fn ordered(mut self) -> (Self, Vec<String>) {
        let mut notes = Vec::new();
        if self.ordinary > 0 && (self.degraded > self.ordinary || self.degraded == 0) {
            self.degraded = self.ordinary;
            notes.push(format!("degr-wfc-timeout has to be shorter than wfc-timeout\ndegr-wfc-timeout implicitly set to wfc-timeout ({}s)", self.ordinary));
        }
        if self.degraded > 0 && (self.outdated > self.degraded || self.outdated == 0) {
            self.outdated = self.degraded;
            notes.push(format!("outdated-wfc-timeout has to be shorter than degr-wfc-timeout\noutdated-wfc-timeout implicitly set to degr-wfc-timeout ({}s)", self.degraded));
        }
        (self, notes)
    }

    fn of(self, kind: TimeoutType) -> u64 {
        match kind {
            TimeoutType::Default => self.ordinary,
            TimeoutType::Degraded => self.degraded,
            TimeoutType::PeerOutdated => self.outdated,
        }
    }
}

pub fn wait_connect(call: &Call) -> Result<i32, Failure> {
    wait(call, |state| state >= Conn::Connected)
}

pub fn wait_sync(call: &Call) -> Result<i32, Failure> {
    wait(call, |state| state == Conn::Connected)
}

fn read_times(call: &Call) -> Result<Times, Failure> {
    let read = |name: &str| match call.own_value(name) {
        Some(Some(text)) => text.parse().ok().filter(|seconds| *seconds <= MAX_WAIT_S).ok_or_else(|| {
            Failure::new(20, format!("Option --{name}: invalid argument '{text}'\nexpected 0 to {MAX_WAIT_S} seconds"))
        }),
        _ => Ok(0),
    };
    let times = Times {
        ordinary: read("wfc-timeout")?,
        degraded: read("degr-wfc-timeout")?,
        outdated: read("outdated-wfc-timeout")?,
    };
    let (times, notes) = times.ordered();
    notes.iter().for_each(|note| eprintln!("{note}"));
    Ok(times)
}

fn wait(call: &Call, done: impl Fn(Conn) -> bool) -> Result<i32, Failure> {
    let minor = call.minor.unwrap_or(MINOR_NONE);
    let times = read_times(call)?;
    let after_split_brain = !matches!(call.own_value("wait-after-sb"), None | Some(Some("no")));
    let header = DrbdHeader { minor, flags_or_ret: 0 };
    let mut connection = Connection::open()?;
    let kind = connection.request(Command::GetTimeoutType, header, 0, &[])?;
    if kind.header.flags_or_ret != RetCode::NoError.number() {
        return Err(Failure::new(
            20,
            format!("{}: cannot determine the time to wait: minor not available", call.object),
        ));
    }
    let kind = nest::<TimeoutParms>(&kind)?.unwrap_or_default().timeout_type;
    let seconds = times.of(kind);
    let deadline = (seconds > 0).then(|| Instant::now() + Duration::from_secs(seconds));

    // Listen first, then ask: no change can slip through in between.
    let mut events = Connection::open()?;
    events.subscribe()?;
    let mut state = current_state(&mut connection, header)?;
    let mut said = false;
    loop {
        let Some(connection_state) = state else { return Ok(0) };
        if done(connection_state) {
            return Ok(0);
        }
        if connection_state < Conn::Unconnected {
            if !after_split_brain {
                return Ok(0);
            }
            if !said {
                eprintln!("{}: {connection_state}, waiting nevertheless because of wait-after-sb", call.object);
                said = true;
            }
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(TIMED_OUT);
        }
        match events.receive(left)? {
            None if deadline.is_some() => return Ok(TIMED_OUT),
            // Nobody reads our output any more.
            None => return Ok(0),
            Some(incoming) => {
                if incoming.iter().any(|message| matches!(message, Incoming::FamilyGone)) {
                    return Ok(0);
                }
                state = newest_state(incoming, minor)?
                    .map_or_else(|| current_state(&mut connection, header), |s| Ok(Some(s)))?;
            }
        }
    }
}

/// The connection state in the last event about this minor; `None` if there is none.
fn newest_state(incoming: Vec<Incoming>, minor: u32) -> Result<Option<Conn>, Failure> {
    let mut newest = None;
    for message in incoming {
        if let Incoming::Message(message) = message {
            if message.command == Command::Event.number() && message.header.minor == minor {
                newest = nest::<StateInfo>(&message)?.map(|info| state_of(info.current_state)).transpose()?;
            }
        }
    }
    Ok(newest.map(|(state, _)| state.conn))
}

/// Asks for the state; `None` when the minor has gone.
fn current_state(connection: &mut Connection, header: DrbdHeader) -> Result<Option<Conn>, Failure> {
    let reply = connection.request(Command::GetStatus, header, 0, &[])?;
    if reply.header.flags_or_ret != RetCode::NoError.number() {
        return Ok(None);
    }
    let info = nest::<StateInfo>(&reply)?;
    Ok(info.map(|info| state_of(info.current_state)).transpose()?.map(|(state, _)| state.conn))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_time_sets_the_shorter_ones() {
        let times = |ordinary, degraded, outdated| Times { ordinary, degraded, outdated };
        for (given, used, notes) in [
            (times(0, 0, 0), times(0, 0, 0), 0),
            (times(5, 0, 0), times(5, 5, 5), 2),
            (times(7, 3, 2), times(7, 3, 2), 0),
            (times(7, 3, 0), times(7, 3, 3), 1),
            (times(3, 7, 1), times(3, 3, 1), 1),
            (times(0, 4, 9), times(0, 4, 4), 1),
        ] {
            let (ordered, said) = given.ordered();
            assert_eq!((ordered, said.len()), (used, notes));
        }
        assert_eq!(times(7, 3, 2).of(TimeoutType::Degraded), 3);
    }
}
