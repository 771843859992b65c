//! Two engines in a simulated world: network, disks, clock, application, administrator.
//!
//! A seed decides everything: delays, the order of what happens at the same time, faults, what the application and the
//! administrator do. The same seed gives the same run on any machine. [`World`] carries out the contract of
//! `engine::resource` exactly as the kernel module does, without its threads: what a thread would do next is an event.
//!
//! Sectors hold a number in place of 512 bytes: that of the write that put it there ([`Stamp`]). So the [`Oracle`] can
//! tell for each sector that is read whether it may hold what it holds.

pub mod disk;
pub mod draw;
pub mod inspect;
pub mod network;
pub mod node;
pub mod oracle;
pub mod random;
pub mod run;
pub mod scenario;
pub mod world;

pub use disk::Stamp;
pub use oracle::Oracle;
pub use random::Random;
pub use run::{run, run_with, Report, Wishes};
pub use world::{Config, World};
