// SPDX-License-Identifier: GPL-2.0
//! `/proc/drbd`: a line or two a volume, read by people and by scripts that count on every blank.
// spec: proc-and-sysfs 1

use super::resource::Resource;
use super::{params, Driver, Minor};
use crate::linux::param;
use crate::linux::procfs::{ProcFile, Show};
use core::fmt::{self, Write};
use engine::activity_log::Statistics;
use engine::netlink::WireProtocol;
use engine::resource::{ConnectionStatus, ResourceStatus, SyncStatus, VolumeStatus};
use engine::resync::Figures;
use engine::state::{Conn, Disk, Role};
use kernel::prelude::*;
use kernel::sync::Arc;

/// Release, version of the control interface, lowest and highest protocol version.
pub(crate) const VERSION: &str = "8.4.11 (api:1/proto:86-101)";

/// The file.
pub(crate) type File = ProcFile<Contents>;

/// What the file shows.
pub(crate) struct Contents {
    driver: Arc<Driver>,
}

/// Creates the file.
///
/// # Errors
/// `ENOMEM`.
pub(crate) fn register(driver: Arc<Driver>) -> Result<File> {
    ProcFile::new(c"drbd", Arc::new(Contents { driver }, GFP_KERNEL)?)
}

impl Show for Contents {
    fn show(&self, out: &mut dyn Write) -> fmt::Result {
        writeln!(out, "version: {VERSION}")?;
        writeln!(out, "srcversion: {:<24}", Source)?;
        let mut expected = 0;
        for minor in self.driver.minors() {
            if minor.number != expected {
                writeln!(out)?;
            }
            expected = minor.number.saturating_add(1);
            show_minor(out, &minor)?;
        }
        Ok(())
    }
}

/// The checksum over the sources, padded like a text.
struct Source;

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(param::source_version().to_str().unwrap_or(""))
    }
}

/// A block of the bitmap in KiB.
const KIB_PER_BIT: u64 = 4;

/// Everything a record is made of, taken under one lock.
struct Snapshot {
    volume: VolumeStatus,
    connection: ConnectionStatus,
    resource: ResourceStatus,
    /// Of the configured connection.
    protocol: Option<WireProtocol>,
}

fn snapshot(resource: &Resource, minor: &Minor) -> Option<Snapshot> {
    resource.look(|locked| {
        let engine = &locked.engine;
        let volume = engine.volume_status(minor.id)?;
        Some(Snapshot {
            volume,
            connection: engine.connection_status(),
            resource: engine.resource_status(),
            protocol: engine.net_conf().map(|net| net.wire_protocol),
        })
    })
}

fn show_minor(out: &mut dyn Write, minor: &Minor) -> fmt::Result {
    let Some(now) = snapshot(&minor.resource, minor) else { return Ok(()) };
    let state = &now.volume.state;
    let number = minor.number;
    if state.conn == Conn::StandAlone && state.disk == Disk::Diskless && state.role == Role::Secondary {
        writeln!(out, "{number:2}: cs:Unconfigured")?;
    } else {
        let (role, peer, disk, pdsk) = (state.role.text(), state.peer.text(), state.disk.text(), state.pdsk.text());
        let flag = |set: bool, letter: char| if set { letter } else { '-' };
        writeln!(
            out,
            "{number:2}: cs:{} ro:{role}/{peer} ds:{disk}/{pdsk} {} {}{}{}{}-{}",
            state.conn.text(),
            protocol_letter(now.protocol),
            if now.resource.susp.any() { 's' } else { 'r' },
            flag(state.aftr_isp, 'a'),
            flag(state.peer_isp, 'p'),
            flag(state.user_isp, 'u'),
            flag(now.volume.log_suspended, 's'),
        )?;
        show_counters(out, &now)?;
        if let Some(sync) = now.volume.sync.filter(|_| is_syncing(state.conn)) {
            show_progress(out, state.conn, &sync)?;
        }
        if params::proc_details() >= 1 && now.volume.has_disk && state.disk >= Disk::Failed {
            show_caches(out, minor)?;
        }
    }
    Ok(())
}

fn is_syncing(conn: Conn) -> bool {
    matches!(conn, Conn::SyncSource | Conn::SyncTarget | Conn::VerifyS | Conn::VerifyT)
}

fn protocol_letter(protocol: Option<WireProtocol>) -> char {
    match protocol {
        Some(WireProtocol::A) => 'A',
        Some(WireProtocol::B) => 'B',
        Some(WireProtocol::C) => 'C',
        None => ' ',
    }
}

fn show_counters(out: &mut dyn Write, now: &Snapshot) -> fmt::Result {
    let volume = &now.volume;
    let counters = &volume.counters;
    // Counters of 32 bits, in KiB: they wrap, as they always did.
    let kib = |sectors: u64| (sectors / 2) as u32;
    writeln!(
        out,
        "    ns:{} nr:{} dw:{} dr:{} al:{} bm:{} lo:{} pe:{} ua:{} ap:{} ep:{} wo:{} oos:{}",
        kib(counters.sent_sectors),
        kib(counters.received_sectors),
        kib(counters.written_sectors),
        kib(counters.read_sectors),
        counters.activity_log_writes,
        counters.bitmap_writes,
        volume.lower_pending,
        volume.peer_pending.saturating_add(volume.resync_pending),
        volume.unacked,
        volume.upper_pending,
        now.connection.epochs,
        match now.resource.write_ordering {
            0 => 'n',
            1 => 'd',
            _ => 'f',
        },
        volume.bits_out_of_sync.saturating_mul(4),
    )
}

/// The resync has no cache of extents here, so its line counts nothing.
// spec: proc-and-sysfs 1.4
fn show_caches(out: &mut dyn Write, minor: &Minor) -> fmt::Result {
    let activity = minor.resource.look(|locked| locked.engine.activity_status(minor.id));
    show_cache(out, "resync", 0, 0, &Statistics::default())?;
    activity.map_or(Ok(()), |(used, slots, statistics)| show_cache(out, "act_log", used, slots, &statistics))
}

fn show_cache(out: &mut dyn Write, name: &str, used: u32, slots: u32, statistics: &Statistics) -> fmt::Result {
    let Statistics { hits, misses, starving, locked, changed } = statistics;
    writeln!(
        out,
        "\t{name}: used:{used}/{slots} hits:{hits} misses:{misses} starving:{starving} locked:{locked} changed:{changed}"
    )
}

// spec: proc-and-sysfs 1.3
fn show_progress(out: &mut dyn Write, conn: Conn, sync: &SyncStatus) -> fmt::Result {
    let Figures { total_bits, left_bits, permille, .. } = sync.figures;
    let steps = permille / 50;
    out.write_str("\t[")?;
    for _ in 1..steps {
        out.write_char('=')?;
    }
    out.write_char('>')?;
    for _ in steps..20 {
        out.write_char('.')?;
    }
    let label = if is_verifying(conn) { "verified:" } else { "sync'ed:" };
    write!(out, "] {label}{:3}.{}% ", permille / 10, permille % 10)?;
    let kib = |bits: u64| bits.saturating_mul(KIB_PER_BIT);
    if total_bits > 1 << 20 {
        writeln!(out, "({}/{})M", kib(left_bits >> 10), kib(total_bits >> 10))?;
    } else {
        writeln!(out, "({}/{})K", kib(left_bits), kib(total_bits))?;
    }
    show_speed(out, conn, sync)
}

fn show_speed(out: &mut dyn Write, conn: Conn, sync: &SyncStatus) -> fmt::Result {
    let figures = &sync.figures;
    let seconds = figures.finish_s;
    let (hours, minutes) = (seconds / 3600, seconds % 3600 / 60);
    write!(out, "\tfinish: {hours}:{minutes:02}:{:02} speed: {} (", seconds % 60, Grouped(figures.speed_kib))?;
    if params::proc_details() >= 1 {
        write!(out, "{} -- ", Grouped(figures.short_speed_kib))?;
    }
    write!(out, "{})", Grouped(figures.average_speed_kib))?;
    if matches!(conn, Conn::SyncTarget | Conn::VerifyS) {
        write!(out, " want: {}", Grouped(sync.want_kib.into()))?;
    }
    writeln!(out, " K/sec{}", if figures.is_stalled { " (stalled)" } else { "" })?;
    if params::proc_details() >= 1 {
        show_position(out, conn, sync)?;
    }
    Ok(())
}

fn show_position(out: &mut dyn Write, conn: Conn, sync: &SyncStatus) -> fmt::Result {
    let bits = sync.total_bits;
    let position = if is_verifying(conn) { bits.saturating_sub(sync.figures.left_bits) } else { sync.position_bits };
    let sectors = |bits: u64| bits.saturating_mul(8);
    write!(out, "\t{:3}% sector pos: {}/{}", position / (bits / 100 + 1), sectors(position), sectors(bits))?;
    if let Some(sector) = sync.stop_sector {
        write!(out, " stop sector: {sector}")?;
    }
    out.write_char('\n')
}

fn is_verifying(conn: Conn) -> bool {
    matches!(conn, Conn::VerifyS | Conn::VerifyT)
}

/// A number with a comma before every three digits, at most two of them.
struct Grouped(u64);

impl fmt::Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.0;
        match number {
            0..=999 => write!(f, "{number}"),
            1000..=999_999 => write!(f, "{},{:03}", number / 1000, number % 1000),
            _ => write!(f, "{},{:03},{:03}", number / 1_000_000, number / 1000 % 1000, number % 1000),
        }
    }
}
