//! What the tests in the machines, the demonstration and the benchmark share.
//!
//! * [`pair`]: resource `r0` on two machines, each with a module and tools of its own choice.
//! * [`pattern`]: sectors that say where they belong and when they were written; [`acks`]: what a writer was promised.
//! * [`proc_drbd`]: `/proc/drbd` taken apart; [`config`]: drbd.conf put together.
//! * [`torture`]: power cuts and link cuts at random.
//! * [`helpers`]: the program that a module runs for events.
//! * [`guest`]: the program that runs inside the machines (`src/bin/guest.rs`), seen from the host.

pub mod acks;
pub mod config;
pub mod guest;
pub mod helpers;
pub mod pair;
pub mod pattern;
pub mod proc_drbd;
pub mod torture;
pub mod tutorial;

pub use anyhow::Result;
pub use config::Config;
pub use pair::{Pair, Pairing};

/// Whether time is short (`LAB_SHORT=1`, as `make test` has it): the tests share their rows, cases and rounds out.
pub fn is_short() -> bool {
    std::env::var_os("LAB_SHORT").is_some()
}
