//! Tests that need the two machines: one file a scenario.
//!
//! `make machine-test` runs them all; `build/cargo test -p machine-tests --features machines -- --test-threads=1 interop::` a
//! part of them. `LAB_INSTEAD=both` runs the same scenarios with the C module and drbd-utils on both sides: what fails then is
//! wrong in the test.

mod attach;
mod bad_input;
mod commands;
mod events;
mod failing_allocations;
mod failures;
mod features;
mod generations;
mod hanging_disk;
mod injected;
mod interop;
mod leaks;
mod lower_disks;
mod metadata;
mod powercut;
mod replication;
mod resize;
mod resync;
mod rows;
mod sectors;
mod tools;
mod torture;
mod transcript;
mod tutorial;
mod volumes;
