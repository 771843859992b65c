// SPDX-License-Identifier: GPL-2.0
//! Random states and rules for the property tests of this module.

use super::types::{Conn, Disk, FencingPolicy, Role, Rules, State};

/// A small generator of pseudo random numbers; a seed gives the same sequence for ever.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn flag(&mut self) -> bool {
        self.next() >> 63 == 1
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[(self.next() >> 33) as usize % from.len()]
    }

    pub(crate) fn state(&mut self) -> State {
        State {
            role: self.pick(Role::ALL),
            peer: self.pick(Role::ALL),
            conn: self.pick(Conn::ALL),
            disk: self.pick(Disk::ALL),
            pdsk: self.pick(Disk::ALL),
            aftr_isp: self.flag() && self.flag(),
            peer_isp: self.flag() && self.flag(),
            user_isp: self.flag() && self.flag(),
        }
    }

    pub(crate) fn rules(&mut self) -> Rules {
        let negotiated = self.flag().then_some((self.pick(Disk::ALL), self.pick(Disk::ALL)));
        Rules {
            net_configured: self.flag(),
            two_primaries: self.flag(),
            peer_primary_on_other_volume: self.flag(),
            open_count: self.pick(&[0, 0, 1, u32::MAX]),
            fencing: self.pick(FencingPolicy::ALL),
            has_verify_alg: self.flag(),
            apv: self.pick(&[86, 87, 88, 95, 96, 100, 101]),
            on_no_data_suspend: self.flag(),
            state_sent: self.flag(),
            negotiated,
            ed_uuid_matches: self.flag(),
            peer_says_worse: self.flag(),
            target_of_growth: self.flag(),
            // The source of a resync does not negotiate its disk.
            target_unheard: negotiated.is_none() && self.flag(),
        }
    }
}
