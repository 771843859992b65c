// SPDX-License-Identifier: GPL-2.0
//! What the owner has to carry out or tell outside of the data path: notices, log lines, helper programs, device changes.

use core::fmt;

use super::api::{Helper, LinkFailure, VolumeId, Wakes};
use super::incoming::Fault;
use super::{Engine, MAX_WORK};
use crate::handshake::{Comparison, DecidedBy, SyncDecision};
use crate::resync::Pace;
use crate::state::{Conn, Refusal, Role, State, Susp, Warning};
use crate::storage::Storage;

/// Bound: places in the worker's queue that only orders may take.
const RESERVED_ORDERS: usize = 256;

/// An order for the resource's worker, carried out in order.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    /// Something changed: tell listeners, and the kernel log, see [`Engine::poll_log`].
    Notice(Notice),
    /// A line for the kernel log, see [`Engine::poll_log`].
    Log(LogLine),
    /// Run a helper program, then call `helper_done` with the ticket.
    Helper {
        /// Which.
        helper: Helper,
        /// The volume, or `None` for the resource.
        volume: Option<VolumeId>,
        /// For `helper_done`.
        ticket: u32,
    },
    /// The peer named algorithms that are not known: see `wanted_algorithms`.
    Algorithms,
    /// A resync started or ended: volumes with a resync-after dependency may have to pause or resume.
    ResyncDependencies,
}

/// An order for a device, carried out in order, one at a time: by the resource's worker, also while it waits for a program, unless somebody
/// who waits for the answer to a command is faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceWork {
    /// The size of the virtual device changed.
    Capacity {
        /// Volume.
        volume: VolumeId,
        /// New size in sectors.
        sectors: u64,
    },
    /// The bitmap needs another size: make `BitmapTables` for it without holding the lock, then call `resize`.
    Resize {
        /// Volume.
        volume: VolumeId,
        /// Size in sectors.
        sectors: u64,
    },
    /// The limits of the virtual device's queue have to be computed again.
    Limits {
        /// Volume.
        volume: VolumeId,
    },
    /// The device became writable or read-only; a change uevent follows.
    ReadOnly {
        /// Volume.
        volume: VolumeId,
        /// True: read-only.
        read_only: bool,
    },
    /// Tell user space that the device changed.
    Uevent {
        /// Volume.
        volume: VolumeId,
    },
    /// Nothing uses the backing device any more: let go of it, then call `backing_released`.
    ReleaseBacking {
        /// Volume.
        volume: VolumeId,
    },
}

impl DeviceWork {
    fn volume(self) -> VolumeId {
        match self {
            DeviceWork::Capacity { volume, .. }
            | DeviceWork::Resize { volume, .. }
            | DeviceWork::Limits { volume }
            | DeviceWork::ReadOnly { volume, .. }
            | DeviceWork::Uevent { volume }
            | DeviceWork::ReleaseBacking { volume } => volume,
        }
    }

    fn is_overtaken_by(self, later: DeviceWork) -> bool {
        self.volume() == later.volume() && core::mem::discriminant(&self) == core::mem::discriminant(&later)
    }
}

/// What is one for all volumes of a resource, at the moment of a change: when listeners are told it may have changed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overall {
    /// Highest role of the volumes.
    pub role: Role,
    /// Highest role of the peer's volumes.
    pub peer: Role,
    /// The connection (0..=9).
    pub conn: Conn,
}

/// Something listeners are told.
#[derive(Clone, Copy, Debug)]
pub enum Notice {
    /// The state of a volume changed.
    State {
        /// Volume.
        volume: VolumeId,
        /// Before.
        from: State,
        /// After.
        to: State,
        /// Suspension before.
        susp_before: Susp,
        /// Suspension after.
        susp: Susp,
        /// The resource before; of the connection only what the volumes make of it.
        overall_before: Overall,
        /// The resource after.
        overall: Overall,
        /// Bits that are set in the bitmap: a short resync may be over when listeners are told that it began.
        bits_out_of_sync: u64,
        /// The size of the device: before the first attach has ended it has none.
        size_sectors: u64,
    },
    /// The state of the connection changed (0..=9).
    Connection {
        /// Before.
        from: Conn,
        /// After.
        to: Conn,
        /// The peer's role after.
        peer: Role,
        /// Volumes were connected to the peer's, and are not any more.
        volumes_part: bool,
    },
    /// Application I/O was suspended or goes on.
    Suspended {
        /// Before.
        from: Susp,
        /// After.
        to: Susp,
        /// The own role.
        role: Role,
    },
}

/// A line for the kernel log. What is decided is explained here, with the rule and its evidence.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // The sentences below say what each is.
pub enum LogLine {
    InternalError {
        what: &'static str,
    },
    Refused {
        volume: VolumeId,
        from: State,
        to: State,
        refusal: Refusal,
    },
    Warning {
        volume: VolumeId,
        warning: Warning,
    },
    DiskError {
        volume: VolumeId,
        what: &'static str,
    },
    DiskTimeout {
        volume: VolumeId,
        limit_ms: u64,
    },
    NewGeneration {
        volume: VolumeId,
        uuids: [u64; 4],
    },
    LinkFailed {
        failure: LinkFailure,
    },
    Fault {
        fault: Fault,
    },
    RequestTimeout {
        limit_ms: u64,
    },
    Handshake {
        apv: u32,
        features: u32,
    },
    Uuids {
        volume: VolumeId,
        own: [u64; 4],
        own_bits: u64,
        peer: [u64; 4],
        peer_bits: u64,
    },
    Decision {
        volume: VolumeId,
        comparison: Comparison,
        decision: SyncDecision,
        by: DecidedBy,
    },
    ResyncStarted {
        volume: VolumeId,
        source: bool,
        bits: u64,
    },
    ResyncDone {
        volume: VolumeId,
        source: bool,
        bits: u64,
        equal_bits: u64,
        failed_bits: u64,
        pace: Pace,
    },
    HelperRefused {
        volume: VolumeId,
        helper: Helper,
        exit_code: i32,
    },
    /// What fence-peer found out or did.
    Fenced {
        exit_code: i32,
    },
    /// It shot the peer, under a policy that does not ask for that.
    ShotWithoutStonith,
    FencingFailed {
        exit_code: i32,
    },
    NotFencing,
    VerifyStarted {
        volume: VolumeId,
        sector: u64,
    },
    VerifyFound {
        volume: VolumeId,
        sector: u64,
        sectors: u64,
    },
    VerifyDone {
        volume: VolumeId,
        bits: u64,
        pace: Pace,
    },
    VerifyFoundInAll {
        volume: VolumeId,
        bits: u64,
    },
    UnknownVolume {
        number: u16,
    },
    MissingVolume {
        volume: VolumeId,
    },
    SizesDiffer {
        volume: VolumeId,
        own_sectors: u64,
        peer_sectors: u64,
    },
    SizeRefused {
        volume: VolumeId,
        own_sectors: u64,
        offered_sectors: u64,
    },
    /// The configured size is larger than possible.
    SizeIgnored {
        volume: VolumeId,
        wanted_sectors: u64,
        sectors: u64,
    },
    /// The disk is attached with a smaller size than before, because that is configured.
    Shrinks {
        volume: VolumeId,
        from_sectors: u64,
        sectors: u64,
    },
    /// Nobody has looked whether the peer's disk is large enough.
    PeerAssumed {
        volume: VolumeId,
        sectors: u64,
    },
    PeerExposedDataDiffers {
        volume: VolumeId,
        peer: u64,
        exposed: u64,
    },
    /// A Primary becomes the target of a resync, by the option `rr-conflict violently`: what its application reads changes.
    PrimaryGivesUpData {
        volume: VolumeId,
    },
}

impl LogLine {
    /// The volume it is about.
    pub fn volume(&self) -> Option<VolumeId> {
        match *self {
            LogLine::Refused { volume, .. }
            | LogLine::Warning { volume, .. }
            | LogLine::DiskError { volume, .. }
            | LogLine::DiskTimeout { volume, .. }
            | LogLine::NewGeneration { volume, .. }
            | LogLine::Uuids { volume, .. }
            | LogLine::Decision { volume, .. }
            | LogLine::ResyncStarted { volume, .. }
            | LogLine::ResyncDone { volume, .. }
            | LogLine::HelperRefused { volume, .. }
            | LogLine::VerifyStarted { volume, .. }
            | LogLine::VerifyFound { volume, .. }
            | LogLine::VerifyDone { volume, .. }
            | LogLine::VerifyFoundInAll { volume, .. }
            | LogLine::MissingVolume { volume }
            | LogLine::SizesDiffer { volume, .. }
            | LogLine::SizeRefused { volume, .. }
            | LogLine::SizeIgnored { volume, .. }
            | LogLine::Shrinks { volume, .. }
            | LogLine::PeerAssumed { volume, .. }
            | LogLine::PrimaryGivesUpData { volume }
            | LogLine::PeerExposedDataDiffers { volume, .. } => Some(volume),
            _ => None,
        }
    }

    /// True for what an administrator should not overlook.
    pub fn is_error(&self) -> bool {
        matches!(
            self,
            LogLine::InternalError { .. }
                | LogLine::DiskError { .. }
                | LogLine::DiskTimeout { .. }
                | LogLine::Fault { .. }
                | LogLine::RequestTimeout { .. }
                | LogLine::HelperRefused { .. }
                | LogLine::FencingFailed { .. }
                | LogLine::ShotWithoutStonith
                | LogLine::VerifyFound { .. }
                | LogLine::SizeRefused { .. }
                | LogLine::SizeIgnored { .. }
                | LogLine::PeerExposedDataDiffers { .. }
                | LogLine::PrimaryGivesUpData { .. }
        )
    }
}

impl fmt::Display for LogLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            LogLine::InternalError { what } => write!(f, "internal error: {what}; connecting anew"),
            LogLine::Refused { from, to, refusal, .. } => {
                write!(f, "state change refused: {refusal}; from {from} to {to}")
            }
            LogLine::Warning { warning, .. } => write!(f, "{warning}"),
            LogLine::DiskError { what, .. } => write!(f, "local disk: {what}"),
            LogLine::DiskTimeout { limit_ms, .. } => {
                write!(f, "local disk: no answer for more than {limit_ms} ms (disk-timeout), letting it go")
            }
            LogLine::NewGeneration { uuids: [current, bitmap, ..], .. } => {
                write!(f, "new data generation {current:016X}, bitmap against {bitmap:016X}")
            }
            LogLine::LinkFailed { failure } => f.write_str(match failure {
                LinkFailure::DataReceive => "the peer closed the data connection, or it broke",
                LinkFailure::MetaReceive => "the peer closed the meta connection, or it broke",
                LinkFailure::Send => "sending failed, the connection is broken",
                LinkFailure::SendTimeout => "the peer takes no data any more, giving the connection up",
                LinkFailure::LocalAddress => "the local address cannot be used, staying StandAlone",
            }),
            LogLine::Fault { fault } => write!(f, "{fault}"),
            LogLine::RequestTimeout { limit_ms } => {
                write!(f, "the peer left a request unanswered for more than {limit_ms} ms (timeout x ko-count)")
            }
            LogLine::Handshake { apv, features } => {
                write!(f, "handshake successful: agreed protocol version {apv}, features {features:#x}")
            }
            LogLine::Uuids { own, own_bits, peer, peer_bits, .. } => write!(
                f,
                "own {:016X}:{:016X}:{:016X}:{:016X} bits {own_bits}, peer {:016X}:{:016X}:{:016X}:{:016X} bits {peer_bits}",
                own[0], own[1], own[2], own[3], peer[0], peer[1], peer[2], peer[3]
            ),
            LogLine::Decision { comparison, decision, by: by @ DecidedBy::Generations, .. } => {
                write!(f, "{decision} {by} ({})", comparison.rule)
            }
            LogLine::Decision { comparison, decision, by, .. } => {
                write!(f, "{decision} {by}; the data generations say: {comparison}")
            }
            LogLine::ResyncStarted { source, bits, .. } => write!(
                f,
                "resync starts as {}: {} KiB in {bits} blocks",
                if source { "source" } else { "target" },
                bits.saturating_mul(4)
            ),
            LogLine::ResyncDone { source, bits, equal_bits, failed_bits, pace, .. } => {
                let side = if source { "source" } else { "target" };
                write!(f, "Resync done {pace} as {side}: {} KiB", bits.saturating_mul(4))?;
                if equal_bits > 0 {
                    write!(f, ", {} KiB were equal by their checksums", equal_bits.saturating_mul(4))?;
                }
                write!(f, ", {failed_bits} blocks failed")
            }
            LogLine::HelperRefused { helper, exit_code, .. } => {
                write!(f, "helper {helper} returned {exit_code}: disconnecting")
            }
            LogLine::Fenced { exit_code } => {
                let meaning = match exit_code {
                    3 => "the peer's disk is Inconsistent or worse",
                    4 => "the peer's disk is Outdated",
                    5 => "the peer cannot be reached; its disk counts as Outdated if the own one is UpToDate",
                    6 => "the peer is Primary: the own disk gets Outdated",
                    _ => "the peer was shot",
                };
                write!(f, "helper fence-peer returned {exit_code}: {meaning}")
            }
            LogLine::ShotWithoutStonith => f.write_str(
                "fence-peer shot the peer though the policy is not resource-and-stonith, so that writes went on meanwhile: \
                 set `fencing resource-and-stonith`",
            ),
            LogLine::FencingFailed { exit_code } => {
                write!(f, "helper fence-peer returned {exit_code}, which means nothing: the peer counts as not fenced")
            }
            LogLine::NotFencing => f.write_str("not fencing the peer: the own data is not even Consistent"),
            LogLine::VerifyStarted { sector, .. } => write!(f, "online verify starts at sector {sector}"),
            LogLine::VerifyFound { sector, sectors, .. } => {
                write!(f, "Out of sync: start={sector}, size={sectors} (sectors)")
            }
            LogLine::VerifyDone { bits, pace, .. } => {
                write!(f, "Online verify done {pace}: {} KiB", bits.saturating_mul(4))
            }
            // The words that are looked for in logs.
            LogLine::VerifyFoundInAll { bits, .. } => write!(f, "Online verify found {bits} 4k block out of sync!"),
            LogLine::UnknownVolume { number } => {
                write!(f, "the peer has a volume {number} that is not configured here: ignored")
            }
            LogLine::MissingVolume { .. } => {
                f.write_str("the peer does not have this volume: nothing is replicated until it is configured there")
            }
            LogLine::SizesDiffer { own_sectors, peer_sectors, .. } => write!(
                f,
                "disk sizes differ considerably: {own_sectors} sectors here, {peer_sectors} at the peer"
            ),
            LogLine::SizeRefused { own_sectors, offered_sectors, .. } => write!(
                f,
                "the peer's disk is too small: the device has {own_sectors} sectors, the peer offers {offered_sectors}; disconnecting"
            ),
            LogLine::SizeIgnored { wanted_sectors, sectors, .. } => write!(
                f,
                "the configured size of {wanted_sectors} sectors is more than the disks can hold: ignored, the device has {sectors}"
            ),
            LogLine::Shrinks { from_sectors, sectors, .. } => {
                write!(f, "the device becomes smaller, as configured: {sectors} sectors instead of {from_sectors}")
            }
            LogLine::PeerAssumed { sectors, .. } => {
                write!(f, "assuming that the peer has room for {sectors} sectors, as told")
            }
            LogLine::PrimaryGivesUpData { .. } => f.write_str(
                "Primary, and the target of the resync (rr-conflict violently): the data changes that the application sees",
            ),
            LogLine::PeerExposedDataDiffers { peer, exposed, .. } => write!(
                f,
                "the peer's data {peer:016X} is not what the application has seen ({exposed:016X}): disconnecting"
            ),
        }
    }
}

impl<S: Storage> Engine<S> {
    /// The next order for the resource's worker.
    pub fn poll_work(&mut self) -> Option<Work> {
        let was_behind = self.worker_is_behind();
        let work = self.work.pop();
        self.work_logged = self.work_logged.saturating_sub(1);
        if was_behind && !self.worker_is_behind() {
            self.wakes.insert(Wakes::RECEIVER);
        }
        work
    }

    /// The next of the worker's orders that the kernel log has to tell of and has not yet, a notice or a line. It stays an order. So the log,
    /// which people read while a program runs, says at once what happens; listeners hear of it in order, after the program.
    pub fn poll_log(&mut self) -> Option<Work> {
        while let Some(work) = self.work.get(self.work_logged) {
            self.work_logged += 1;
            if matches!(work, Work::Log(_) | Work::Notice(_)) {
                return Some(work);
            }
        }
        None
    }

    /// The worker has so much to do that the peer has to wait: what it sends may lead to more. A helper program may take minutes.
    pub(super) fn worker_is_behind(&self) -> bool {
        self.work.len() > MAX_WORK / 2
    }

    /// Gives an order to the worker. Control events are rare, the queue is long, and at half of its length nothing more is read from the
    /// peer. Should it fill up nevertheless, log lines are left out first, then notices; somebody waits for each of the rest.
    pub(super) fn work(&mut self, work: Work) {
        let reserve = match work {
            Work::Log(_) => 2 * RESERVED_ORDERS,
            Work::Notice(_) => RESERVED_ORDERS,
            _ => 0,
        };
        if self.work.free() <= reserve {
            return;
        }
        if self.work.push(work) {
            self.work_ordered = self.work_ordered.wrapping_add(1);
        }
        self.wakes.insert(Wakes::WORK);
    }

    /// How many orders the worker has been given so far; it wraps. Who counts what it has done knows whether it has told everything.
    pub fn work_ordered(&self) -> u64 {
        self.work_ordered
    }

    /// The next order for a device.
    pub fn poll_device_work(&mut self) -> Option<DeviceWork> {
        self.device_work.pop()
    }

    /// True when [`Engine::poll_device_work`] has something.
    pub fn has_device_work(&self) -> bool {
        !self.device_work.is_empty()
    }

    /// Gives an order for a device. An earlier one of the same kind that nobody has got to is overtaken by it: a peer that tells another
    /// size again and again does not fill the queue.
    pub(super) fn order(&mut self, order: DeviceWork) {
        self.device_work.retain(|earlier| !earlier.is_overtaken_by(order));
        let _pushed = self.device_work.push(order);
        self.wakes.insert(Wakes::WORK);
    }

    pub(super) fn notify(&mut self, notice: Notice) {
        self.work(Work::Notice(notice));
    }

    pub(super) fn log(&mut self, line: LogLine) {
        self.work(Work::Log(line));
    }

    /// Has a helper program run; nobody waits for its result unless a ticket is remembered.
    pub(super) fn call_helper(&mut self, helper: Helper, volume: Option<VolumeId>) -> u32 {
        let ticket = self.new_ticket();
        let volume = if helper.is_for_resource() { None } else { volume };
        self.work(Work::Helper { helper, volume, ticket });
        ticket
    }
}

#[cfg(test)]
mod tests {
    use super::super::TableLimits;
    use super::*;
    use crate::storage::HeapStorage;

    /// A helper program keeps the worker for minutes, and the peer sends one state after the other.
    #[test]
    fn a_worker_that_is_behind_stops_the_peer_and_misses_no_order() {
        let mut engine = Engine::<HeapStorage>::new(&Default::default(), TableLimits::default()).expect("memory");
        let volume = engine.add_volume(0, 0, 0).expect("a volume");
        engine.link.conn = Conn::WFReportParams;
        while engine.poll_work().is_some() {}
        assert!(engine.receiver_may_read());
        for _ in 0..=MAX_WORK / 2 {
            engine.log(LogLine::MissingVolume { volume });
        }
        assert!(!engine.receiver_may_read());
        for _ in 0..MAX_WORK {
            engine.log(LogLine::MissingVolume { volume });
            engine.notify(Notice::Suspended { from: Susp::default(), to: Susp::default(), role: Role::Primary });
        }
        assert!(engine.work.free() >= RESERVED_ORDERS);
        let ticket = engine.call_helper(Helper::FencePeer, None);
        let _wakes = engine.take_wakes();
        let mut woken = 0;
        let mut last = None;
        while let Some(work) = engine.poll_work() {
            woken += usize::from(engine.take_wakes().contains(Wakes::RECEIVER));
            last = Some(work);
        }
        assert!(matches!(last, Some(Work::Helper { ticket: of, .. }) if of == ticket), "{last:?}");
        assert_eq!(woken, 1);
        assert!(engine.receiver_may_read());
    }

    #[test]
    fn the_log_does_not_wait_for_a_program() {
        let mut engine = Engine::<HeapStorage>::new(&Default::default(), TableLimits::default()).expect("memory");
        let volume = engine.add_volume(0, 0, 0).expect("a volume");
        while engine.poll_work().is_some() {}
        let line = LogLine::MissingVolume { volume };
        let notice = Notice::Suspended { from: Susp::default(), to: Susp::default(), role: Role::Primary };
        engine.log(line);
        engine.call_helper(Helper::AfterResyncTarget, Some(volume));
        engine.notify(notice);
        assert!(matches!(engine.poll_log(), Some(Work::Log(_))));
        assert!(matches!(engine.poll_log(), Some(Work::Notice(_))));
        assert!(engine.poll_log().is_none(), "each once");
        // Listeners hear of it when its turn comes.
        assert!(matches!(engine.poll_work(), Some(Work::Log(_))));
        assert!(matches!(engine.poll_work(), Some(Work::Helper { .. })));
        engine.log(line);
        assert!(matches!(engine.poll_log(), Some(Work::Log(_))));
        assert!(matches!(engine.poll_work(), Some(Work::Notice(_))));
        assert!(matches!(engine.poll_work(), Some(Work::Log(_))));
        // What nobody has looked at was not logged.
        engine.log(line);
        assert!(matches!(engine.poll_work(), Some(Work::Log(_))));
        assert!(engine.poll_log().is_none());
        engine.log(line);
        assert!(matches!(engine.poll_log(), Some(Work::Log(_))));
    }

    #[test]
    fn an_order_for_a_device_does_not_stand_behind_a_program() {
        let mut engine = Engine::<HeapStorage>::new(&Default::default(), TableLimits::default()).expect("memory");
        let volume = engine.add_volume(0, 0, 0).expect("a volume");
        engine.call_helper(Helper::AfterResyncTarget, Some(volume));
        let (limits, writable) = (DeviceWork::Limits { volume }, DeviceWork::ReadOnly { volume, read_only: false });
        engine.order(limits);
        engine.order(DeviceWork::ReadOnly { volume, read_only: true });
        engine.order(writable);
        assert!(engine.take_wakes().contains(Wakes::WORK));
        let orders = [(); 2].map(|()| engine.has_device_work().then(|| engine.poll_device_work()).flatten());
        assert_eq!(orders, [Some(limits), Some(writable)]);
        assert!(!engine.has_device_work());
        let program = core::iter::from_fn(|| engine.poll_work()).find(|work| matches!(work, Work::Helper { .. }));
        assert!(program.is_some(), "the worker has it");
    }
}
