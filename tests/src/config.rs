//! drbd.conf put together: resource `r0` with one volume on the lab's two machines.

use lab::{stretch, ADDRESSES, NAMES};
use std::fmt::{self, Display};

/// Where the file goes.
pub const PATH: &str = "/etc/drbd.conf";

/// The default of `ko-count`.
pub const KO_COUNT: u32 = 7;

/// The times of a connection. How soon a dead peer is noticed is the same everywhere; how slow a living one may be is not: on the
/// debug kernel a write behind a resync takes longer than the stock kernel ever needs, so there `ko-count` is stretched as
/// limits are.
pub fn times(ko_count: u32) -> String {
    let ko_count = ko_count.saturating_mul(stretch());
    format!("connect-int 3; ping-int 3; timeout 20; ping-timeout 30; ko-count {ko_count};")
}

/// A configuration; [`Display`] writes the file. Both machines get the same one.
///
/// The defaults are made for tests: a lost peer is noticed within six seconds, an emulated machine on a busy host is not taken for
/// lost (see [`times`]), a new pair of sockets is looked at for 0.1 s before it is used (else for `ping-timeout`, at every connection), and a
/// resync runs as fast as it can.
#[derive(Clone, Debug)]
pub struct Config {
    /// `A`, `B` or `C`.
    pub protocol: char,
    /// How many times `timeout` a write may take on the peer, as on the stock kernel; 0: for ever.
    pub ko_count: u32,
    /// More options of the `net` section, each with its semicolon.
    pub net: String,
    /// More options of the `disk` section.
    pub disk: String,
    /// What happens when the lower disk fails.
    pub on_io_error: String,
    /// Options of the `options` section.
    pub options: String,
    /// The lower device.
    pub lower: String,
    /// `internal` or the meta device.
    pub meta: String,
    /// The port of both machines.
    pub port: u16,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            protocol: 'C',
            ko_count: KO_COUNT,
            net: String::new(),
            disk: String::new(),
            on_io_error: "detach".into(),
            options: String::new(),
            lower: "/dev/sdb1".into(),
            meta: "internal".into(),
            port: 7788,
        }
    }
}

impl Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Config { protocol, ko_count, net, disk, on_io_error, options, lower, meta, port } = self;
        writeln!(f, "global {{ usage-count no; }}")?;
        writeln!(f, "resource r0 {{")?;
        let times = times(*ko_count);
        writeln!(f, "  net {{ protocol {protocol}; {times} socket-check-timeout 1; {net} }}")?;
        writeln!(f, "  disk {{ on-io-error {on_io_error}; c-plan-ahead 0; resync-rate 100M; c-min-rate 0; {disk} }}")?;
        if !options.is_empty() {
            writeln!(f, "  options {{ {options} }}")?;
        }
        for (name, address) in NAMES.iter().zip(ADDRESSES) {
            writeln!(
                f,
                "  on {name} {{ device /dev/drbd0; disk {lower}; address {address}:{port}; meta-disk {meta}; }}"
            )?;
        }
        writeln!(f, "}}")
    }
}
