//! The lab: machines made of QEMU, the stock kernel and a small Debian, and everything a test wants to do to them.
//!
//! ```no_run
//! # fn main() -> lab::Result<()> {
//! use lab::{shared, Module, Options, Tools};
//! let cluster = shared(Options::default().modules([Module::Ours, Module::Stock]).tools(Tools::Utils))?;
//! cluster.drbd1().run_ok("drbdadm create-md r0")?;
//! cluster.wire().cut();
//! cluster.drbd2().power_cut()?;
//! cluster.finish()
//! # }
//! ```
//!
//! * [`cluster`]: one or two machines with a private link ([`wire`]), a module and tools; [`machine`]: one of them.
//! * [`client`] (host) and [`agent`] (guest) speak [`protocol`] over a virtio-serial port: commands, files.
//! * [`faults`]: disks that fail or are slow, by the device mapper in the machine; memory that cannot be had.
//! * [`console`]: the serial log and the complaints of a kernel in it.
//! * [`script`]: the language of `lab try`.
//!
//! Every wait has a time limit ([`limit`]), and the error says what was expected, what was found, and the end of the serial
//! log.

pub mod agent;
pub mod client;
pub mod cluster;
pub mod console;
pub mod disk;
pub mod faults;
pub mod initrd;
pub mod limit;
pub mod machine;
pub mod paths;
pub mod protocol;
pub mod qemu;
pub mod qmp;
pub mod script;
pub mod terminal;
pub mod wire;

pub use anyhow::Result;
pub use client::{Output, Process};
pub use cluster::{shared, Cluster, Module, Options, Setup, Shared, Tools};
pub use console::Mark;
pub use disk::Disk;
pub use limit::{is_debug_kernel, stretch, stretched};
pub use machine::{Machine, Throttle};
pub use qemu::Accelerator;
pub use wire::{Direction, Quality, Wire};

/// Host names of the machines, in order.
pub const NAMES: [&str; 2] = ["drbd1", "drbd2"];

/// Addresses of the machines on the private link, in order.
pub const ADDRESSES: [&str; 2] = ["192.168.1.11", "192.168.1.12"];

/// Where a machine's first process notes what did not work while booting.
pub const FAILURES: &str = "/run/lab/failures";

/// `/etc/hosts` of the machines.
pub fn hosts_file() -> String {
    let mut text = String::from("127.0.0.1\tlocalhost\n");
    for (name, address) in NAMES.iter().zip(ADDRESSES) {
        text.push_str(&format!("{address}\t{name}\n"));
    }
    text
}
