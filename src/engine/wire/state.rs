// SPDX-License-Identifier: GPL-2.0
//! State packets. What the 32-bit words mean is the business of the state tables.
// spec: wire-protocol 9.1, 9.2

use super::codec::{layouts, DecodeError, Fields, Room, WireField};
use super::BufferTooSmall;

layouts! {
    /// `P_STATE`: the sender's state.
    StateWord, 4 bytes exact, pad 0 {
        /// The state word.
        word: u32,
    }

    /// `P_STATE_CHG_REQ` and `P_CONN_ST_CHG_REQ`: the sender asks for a change.
    StateRequest, 8 bytes exact, pad 0 {
        /// The fields that change.
        mask: u32,
        /// Their new values.
        val: u32,
    }

    /// `P_STATE_CHG_REPLY` and `P_CONN_ST_CHG_REPLY`.
    StateReply, 4 bytes exact, pad 0 {
        /// Result of the change; from 1 on the sender agrees.
        code: i32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips() {
        let mut buffer = [0; 8];
        let word = StateWord { word: 0x0000_c882 };
        assert_eq!(word.encode(&mut buffer), Ok(4));
        assert_eq!(buffer[..4], [0, 0, 0xc8, 0x82]);
        assert_eq!(StateWord::decode(&buffer[..4]), Ok(word));

        let request = StateRequest { mask: 0x1e03, val: 0x1001 };
        assert_eq!(request.encode(&mut buffer), Ok(8));
        assert_eq!(buffer, [0, 0, 0x1e, 3, 0, 0, 0x10, 1]);
        assert_eq!(StateRequest::decode(&buffer), Ok(request));

        let reply = StateReply { code: -10 };
        assert_eq!(reply.encode(&mut buffer), Ok(4));
        assert_eq!(buffer[..4], [0xff, 0xff, 0xff, 0xf6]);
        assert_eq!(StateReply::decode(&buffer[..4]), Ok(reply));
    }

    #[test]
    fn other_lengths_are_refused() {
        let bytes = [0; 9];
        for found in [0, 3, 5, 8] {
            assert!(StateWord::decode(&bytes[..found]).is_err());
            assert!(StateReply::decode(&bytes[..found]).is_err());
        }
        for found in [0, 7, 9] {
            assert!(StateRequest::decode(&bytes[..found]).is_err());
        }
        assert_eq!(StateRequest { mask: 0, val: 0 }.encode(&mut [0; 7]), Err(BufferTooSmall));
    }
}
