// SPDX-License-Identifier: GPL-2.0
//! Faults on purpose: lets requests to lower devices, and what is received, fail as the module's parameters
//! `enable_faults`, `fault_rate` and `fault_devs` say, so that it can be tried what happens then. All is off unless
//! `enable_faults` is set.
// spec: proc-and-sysfs 4

use crate::linux::{clock, param};

/// What can be made to fail; its bit in `enable_faults`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Writing meta data.
    MetaWrite = 0,
    /// Reading meta data.
    MetaRead = 1,
    /// Writing data of a resync.
    ResyncWrite = 2,
    /// Reading data for a resync.
    ResyncRead = 3,
    /// Writing data.
    DataWrite = 4,
    /// Reading data.
    DataRead = 5,
    /// Reading data ahead.
    ReadAhead = 6,
    /// Making a bitmap.
    BitmapMemory = 7,
    /// Memory for a request of the peer: the connection is given up.
    PeerRequest = 8,
    /// Data that is received: some of it arrives as something else.
    Receive = 9,
}

/// Minors that `fault_devs` can name; 0 in it means all.
const NAMED_MINORS: u32 = 32;

/// Whether this fails now and then. Any context; one look at a variable.
#[inline]
pub(crate) fn is_enabled(fault: Fault) -> bool {
    param::enable_faults() & (1 << fault as u32) != 0
}

/// Has this to fail now? Any context. One look at a variable while faults are off.
#[inline]
pub(crate) fn strikes(minor: u32, fault: Fault) -> bool {
    is_enabled(fault) && draw(minor)
}

#[inline(never)]
fn draw(minor: u32) -> bool {
    let minors = param::fault_devs();
    let is_meant = minors == 0 || (minor < NAMED_MINORS && minors & (1 << minor) != 0);
    // A percentage; the bias of a remainder of 64 bits does not show.
    let strikes = is_meant && clock::random_u64() % 100 < u64::from(param::fault_rate());
    if strikes {
        param::count_fault();
    }
    strikes
}
