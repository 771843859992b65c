// SPDX-License-Identifier: GPL-2.0
//! What a change of a volume's state brings about, as data, and the small predicates on states that others need.
//!
//! [`effects`] walks two tables: what happens at once, under the lock that protects the state, and what the worker does
//! afterwards. The result is a set; [`EffectSet::iter`] gives its members in the order they must be carried out in. An
//! effect that several rows ask for is carried out once.
//!
//! The order keeps these promises:
//! * the generation of a resync is stored and sent before any state packet,
//! * sizes, generations, state are sent in this order, and before a bitmap,
//! * a new data generation begins before frozen I/O ends, which only this node may have,
//! * the helper for I/O errors is ordered before the peer is told; nobody waits for it,
//! * meta data is written after everything that changes it, and before the disk may be let go.

use super::types::{Conn, Disk, FencingPolicy, Role, State, Susp};

/// Makes the enumeration of the effects together with the list of all of them.
macro_rules! effect_list {
    ($($(#[$doc:meta])* $variant:ident,)*) => {
        /// Something to do because a volume's state changed, in the order of execution.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Effect {
            $($(#[$doc])* $variant,)*
        }

        impl Effect {
            /// Every effect in the order of execution.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
        }
    };
}

effect_list! {
    /// Log old and new state.
    LogChange,
    /// Hold the disk until the worker has seen that it failed or is gone.
    TakeLocalReference,
    /// Forget that a resync was finished.
    ClearResyncDone,
    /// Start a new epoch: writes before and after the change are replicated differently.
    NewEpoch,
    /// Log the generations found on the disk.
    LogUuids,
    /// The handshake is over: end `Rules::state_sent`.
    ClearStateSent,
    /// Wake everything that waits for a state.
    WakeWaiters,
    /// Remember where the online verify stopped.
    RememberVerifyPosition,
    /// The pause is over, add its length.
    AccountPauseTime,
    /// Remember when the pause began.
    RememberPauseTime,
    /// Prepare the counters of an online verify.
    InitVerifyCounters,
    /// Make resync or verify requests now, not only at the next tick.
    RunResyncTimer,
    /// Recompute the flags of the meta data with [`meta_flags`].
    UpdateMetaFlags,
    /// The generation shown to users is the one on the disk.
    RememberExposedUuid,
    /// The peer became Primary while both disks were Inconsistent: its next state packet decides about a resync.
    SetConsiderResync,
    /// Ask the receiver to end.
    StopReceiver,
    /// Ask the receiver to end this connection and try the next.
    RestartReceiver,
    /// Use the activity log again.
    ResumeActivityLog,
    /// One more successful connect.
    CountConnect,
    /// Remember since when the disk is attached.
    RecordAttachTime,
    /// Have the worker carry out the rest.
    QueueAfterWork,

    /// Tell listeners what changed.
    Notify,
    /// Both disks are good: the crash of a Primary is repaired, here and in what is known of the peer.
    ClearCrashedPrimary,
    /// Tell listeners of the old event format.
    LegacyEvent,
    /// Run the helper pri-on-incon-degr.
    HelperPriOnInconDegr,
    /// Start a new data generation.
    NewCurrentUuid,
    /// The peer is back: send everything frozen again, end `Susp::no_data`.
    ThawNoDataResend,
    /// The disk is back: submit everything frozen again, end `Susp::no_data`.
    ThawNoDataRestartDisk,
    /// The peer is back: forget due generations, send everything frozen again, end `Susp::fencing`.
    ThawFencing,
    /// Make, store and send the generation of the resync.
    SyncUuid,
    /// Forget counters and locked extents of an earlier resync.
    ResetResync,
    /// A new data generation is due when I/O goes on.
    DeferNewCurrentUuid,
    /// Write changed bitmap pages.
    WriteBitmap,
    /// Order the helper local-io-error. What follows does not wait for it: the peer would take this disk for good as long as it runs,
    /// and it usually switches this node off. (In the C module everything that is sent waits.)
    HelperLocalIoError,
    /// Abort everything the disk has not answered.
    AbortDiskIo,
    /// Send sizes.
    SendSizes,
    /// Send the generations.
    SendUuids,
    /// Send the new state.
    SendState,
    /// Let go of the extents a resync holds.
    CancelResync,
    /// Have the worker send the bitmap.
    QueueBitmapSend,
    /// Pause resyncs that must wait for this one.
    PauseDependents,
    /// Have the worker set all bits, write them and go on with the full resync; the new state tells the direction.
    StartSetAll,
    /// The device grew while it was attached; that is being taken care of.
    ClearResyncAfterNegotiation,
    /// Resync the space the device grew by.
    GrowResync,
    /// Let resyncs go on that waited for this one.
    ResumeDependents,
    /// Have the worker write changed bitmap pages from copies.
    WriteBitmapCopies,
    /// Write meta data if it changed.
    WriteMetadata,
    /// End of [`Effect::TakeLocalReference`].
    DropLocalReference,
}

/// A set of effects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EffectSet(u64);

// Every effect must have its bit.
const _: () = assert!(Effect::ALL.len() <= u64::BITS as usize);

impl EffectSet {
    /// No effect.
    pub const EMPTY: Self = Self(0);

    const fn bit(effect: Effect) -> u64 {
        1 << effect as u32
    }

    /// Whether this effect is in the set.
    pub const fn contains(self, effect: Effect) -> bool {
        self.0 & Self::bit(effect) != 0
    }

    /// The set and this effect.
    #[must_use]
    pub const fn with(self, effect: Effect) -> Self {
        Self(self.0 | Self::bit(effect))
    }

    /// The set without this effect.
    #[must_use]
    pub const fn without(self, effect: Effect) -> Self {
        Self(self.0 & !Self::bit(effect))
    }

    /// Everything in either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether there is nothing to do.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// What is done under the lock, at once.
    #[must_use]
    pub const fn immediate(self) -> Self {
        Self(self.0 & ((1 << Effect::Notify as u32) - 1))
    }

    /// What the worker does.
    #[must_use]
    pub const fn after(self) -> Self {
        Self(self.0 & !((1 << Effect::Notify as u32) - 1))
    }

    /// The effects in the order of execution.
    pub const fn iter(self) -> EffectIter {
        EffectIter(self)
    }
}

impl IntoIterator for EffectSet {
    type Item = Effect;
    type IntoIter = EffectIter;

    fn into_iter(self) -> EffectIter {
        self.iter()
    }
}

impl FromIterator<Effect> for EffectSet {
    fn from_iter<T: IntoIterator<Item = Effect>>(effects: T) -> Self {
        effects.into_iter().fold(Self::EMPTY, Self::with)
    }
}

/// The effects of a set in the order of execution.
#[derive(Clone, Debug)]
pub struct EffectIter(EffectSet);

impl Iterator for EffectIter {
    type Item = Effect;

    fn next(&mut self) -> Option<Effect> {
        let effect = *Effect::ALL.get(self.0 .0.trailing_zeros() as usize)?;
        self.0 = self.0.without(effect);
        Some(effect)
    }
}

/// What the conditions look at besides the two states.
///
/// [`effects`] may be asked twice, under the lock for [`EffectSet::immediate`] and from the worker for
/// [`EffectSet::after`]; then the second time `current_conn` and the fields after it tell how things are by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EffectContext {
    /// Agreed protocol version.
    pub apv: u32,
    /// Another volume of the connection is still in `WFReportParams`.
    pub other_volume_reporting: bool,
    /// The resource's suspension right after the change.
    pub susp_then: Susp,
    /// The disk fails because of an I/O error and on-io-error is call-local-io-error.
    pub io_error_helper: bool,
    /// The disk is let go without waiting for it.
    pub force_detach: bool,
    /// The volume's connection state now.
    pub current_conn: Conn,
    /// The resource's suspension now.
    pub susp_now: Susp,
    /// No volume of the connection is below `Connected`.
    pub all_volumes_connected: bool,
    /// Every volume's own disk is `UpToDate`.
    pub all_disks_up_to_date: bool,
    /// No volume is Primary here with neither disk UpToDate.
    pub data_in_reach: bool,
    /// The bitmap generation in the meta data is zero.
    pub bitmap_uuid_zero: bool,
    /// The device grew while it was attached, the new space is not yet taken care of.
    pub resync_after_negotiation: bool,
    /// The own disk is Outdated until the peer, a Primary without a disk, has shown that it takes this generation.
    pub unattested: bool,
}

impl EffectContext {
    /// The context of a change to `new` in a resource with one volume, nothing suspended, nothing due.
    pub fn of(new: State, apv: u32) -> Self {
        Self {
            apv,
            other_volume_reporting: false,
            susp_then: Susp::default(),
            io_error_helper: false,
            force_detach: false,
            current_conn: new.conn,
            susp_now: Susp::default(),
            all_volumes_connected: new.conn >= Conn::Connected,
            all_disks_up_to_date: new.disk == Disk::UpToDate,
            data_in_reach: !new.without_data(),
            bitmap_uuid_zero: false,
            resync_after_negotiation: false,
            unattested: false,
        }
    }
}

/// One row: its number in the specification, its condition, what it asks for.
struct Row {
    /// `state-machine` section and row, with a letter where a row has several conditions.
    number: &'static str,
    condition: fn(State, State, &EffectContext) -> bool,
    effects: &'static [Effect],
}

const fn row(
    number: &'static str,
    condition: fn(State, State, &EffectContext) -> bool,
    effects: &'static [Effect],
) -> Row {
    Row { number, condition, effects }
}

fn syncing(state: State) -> bool {
    matches!(state.conn, Conn::SyncSource | Conn::SyncTarget | Conn::PausedSyncS | Conn::PausedSyncT)
}

fn running(state: State) -> bool {
    matches!(state.conn, Conn::SyncSource | Conn::SyncTarget)
}

fn paused(state: State) -> bool {
    matches!(state.conn, Conn::PausedSyncS | Conn::PausedSyncT)
}

fn source(state: State) -> bool {
    matches!(state.conn, Conn::SyncSource | Conn::PausedSyncS)
}

fn verifying(state: State) -> bool {
    matches!(state.conn, Conn::VerifyS | Conn::VerifyT)
}

fn becomes(old: State, new: State, conn: Conn) -> bool {
    old.conn != conn && new.conn == conn
}

fn disk_becomes(old: State, new: State, disk: Disk) -> bool {
    old.disk != disk && new.disk == disk
}

fn usable(new: State) -> bool {
    new.disk >= Disk::Inconsistent
}

/// The peer attaches a disk. When we did so at the same time we may have heard of that before its disk was negotiated, and
/// what we said of ours was too early for it: it is told again. (The C module says it once.)
fn peer_attaches(old: State, new: State) -> bool {
    let begins = old.pdsk == Disk::Diskless && new.pdsk > Disk::Diskless && new.pdsk != Disk::Unknown;
    let ends = old.pdsk == Disk::Attaching && new.pdsk > Disk::Failed && new.pdsk != Disk::Unknown;
    begins || ends
}

fn both_up_to_date(state: State) -> bool {
    state.disk == Disk::UpToDate && state.pdsk == Disk::UpToDate
}

fn connects(old: State, new: State) -> bool {
    old.conn < Conn::Connected && new.conn >= Conn::Connected
}

fn thaw_by_disk(old: State, ctx: &EffectContext) -> bool {
    ctx.susp_then.no_data
        && ctx.susp_now.no_data
        && matches!(old.disk, Disk::Attaching | Disk::Negotiating)
        && ctx.all_disks_up_to_date
}

/// The peer is back, or its disk. (In the C module a peer without a disk ends the wait as well, and what was frozen fails; and a disk
/// that the peer attaches while connected ends it not at all.)
fn thaw_by_peer(old: State, ctx: &EffectContext) -> bool {
    let frozen = ctx.susp_then.no_data && ctx.susp_now.no_data;
    let back = old.conn < Conn::Connected || old.without_data();
    frozen && back && ctx.all_volumes_connected && ctx.data_in_reach && !thaw_by_disk(old, ctx)
}

fn thaw_fencing(ctx: &EffectContext) -> bool {
    ctx.susp_then.fencing && ctx.susp_now.fencing && ctx.all_volumes_connected
}

/// Whether I/O is still frozen after rows 9.5 and 9.6. That the administrator has suspended it is no reason to wait: what was
/// acknowledged before and may still be in the peer's cache is lost when the peer loses its power, and nothing else tells of that.
/// (In the C module it is one. Where I/O is frozen until the peer is fenced, the disk of a peer that was rebooted is not UpToDate.)
fn still_frozen(old: State, ctx: &EffectContext) -> bool {
    (ctx.susp_now.no_data && !thaw_by_disk(old, ctx) && !thaw_by_peer(old, ctx))
        || (ctx.susp_now.fencing && !thaw_fencing(ctx))
}

/// No data diverges before I/O is resumed. The writes of a Primary without a disk are not frozen by this node.
fn may_wait(old: State, new: State, ctx: &EffectContext) -> bool {
    // Not where the peer lacks writes already that were acknowledged, nor where it is there without a disk and what was in that
    // disk's cache is gone: the disk may come back before I/O goes on, and with the same generation nobody would look for them.
    // (The C module waits.)
    let alone = new.conn < Conn::Connected && !sends_out_of_sync(old);
    still_frozen(old, ctx) && new.peer != Role::Primary && alone
}

/// Demoted while Ahead. From then on nothing but the bitmap tells that the peer lacks writes that were acknowledged, and when the
/// peer is lost now no new generation begins any more. (In the C module the peer that comes back counts as good.)
fn demoted_ahead(old: State, new: State, ctx: &EffectContext) -> bool {
    let demoted = old.role == Role::Primary && new.role != Role::Primary;
    demoted && new.conn == Conn::Ahead && ctx.bitmap_uuid_zero && new.disk >= Disk::UpToDate
}

/// The disk is lost while the peer is only told of writes, and nothing but the bitmap that goes with it says what it lacks: with one
/// generation both disks would count as good when they meet again. The peer is not told, it has nothing of this generation. (In the C module
/// they do count as good.)
fn fails_announcing(old: State, new: State, ctx: &EffectContext) -> bool {
    let announces = old.role == Role::Primary && sends_out_of_sync(old) && old.disk >= Disk::UpToDate;
    announces && disk_becomes(old, new, Disk::Failed) && ctx.bitmap_uuid_zero
}

/// Row 9.10 without the question whether I/O is frozen.
fn data_diverges(old: State, new: State, ctx: &EffectContext) -> bool {
    let writer = new.role == Role::Primary || (new.peer == Role::Primary && !comes_without_disk(old, new));
    lost_peer_data(old.pdsk, new.pdsk) && writer && ctx.bitmap_uuid_zero && new.disk >= Disk::UpToDate
}

/// The peer connects and has no disk. If it is Primary it may still find that the data here is not what its application has seen, and
/// nobody knows whether it will write: that generation begins with the first write, see `Engine::record_writer`. If it began now, and
/// the connection broke before the peer has heard of it, the peer would take this node's data for another one's.
/// (The C module does not wait.)
fn comes_without_disk(old: State, new: State) -> bool {
    old.conn < Conn::Connected && new.pdsk <= Disk::Failed
}

/// A peer that is Primary without a usable disk writes to this node alone, and its generation does not tell that.
fn writes_here_alone(new: State, ctx: &EffectContext) -> bool {
    new.peer == Role::Primary && new.pdsk < Disk::Inconsistent && new.disk >= Disk::UpToDate && ctx.bitmap_uuid_zero
}

use Effect as E;

// spec: state-machine 8 (what is done under the lock)
const IMMEDIATE: &[Row] = &[
    row("8.1", |_, _, _| true, &[E::LogChange]),
    row(
        "8.1b",
        |old, new, _| disk_becomes(old, new, Disk::Failed) || disk_becomes(old, new, Disk::Diskless),
        &[E::TakeLocalReference],
    ),
    row("8.2", |old, new, _| !syncing(old) && syncing(new), &[E::ClearResyncDone]),
    row("8.4", |old, new, _| replicates(old) != replicates(new), &[E::NewEpoch]),
    row("8.5", |old, new, _| old.disk == Disk::Attaching && new.disk >= Disk::Negotiating, &[E::LogUuids]),
    row(
        "8.6",
        |old, new, ctx| {
            old.conn == Conn::WFReportParams && new.conn != Conn::WFReportParams && !ctx.other_volume_reporting
        },
        &[E::ClearStateSent],
    ),
    row("8.7", |_, _, _| true, &[E::WakeWaiters]),
    row("8.8", |old, new, _| verifying(old) && new.conn <= Conn::Connected, &[E::RememberVerifyPosition]),
    row("8.9", |old, new, _| paused(old) && running(new), &[E::AccountPauseTime]),
    row("8.9b", |old, new, _| paused(old) && new.conn == Conn::SyncTarget, &[E::RunResyncTimer]),
    row("8.9c", |old, new, _| running(old) && paused(new), &[E::RememberPauseTime]),
    row("8.10", |old, new, _| old.conn == Conn::Connected && verifying(new), &[E::InitVerifyCounters]),
    row("8.10b", |old, new, _| old.conn == Conn::Connected && new.conn == Conn::VerifyS, &[E::RunResyncTimer]),
    row("8.11", |_, new, _| usable(new), &[E::UpdateMetaFlags]),
    row("8.11b", |old, new, _| old.disk < Disk::Consistent && new.disk >= Disk::Consistent, &[E::RememberExposedUuid]),
    row(
        "8.12",
        |old, new, _| {
            old.disk == Disk::Inconsistent
                && old.pdsk == Disk::Inconsistent
                && old.peer == Role::Secondary
                && new.peer == Role::Primary
        },
        &[E::SetConsiderResync],
    ),
    row(
        "8.13",
        |old, new, _| becomes(old, new, Conn::Disconnecting) || becomes(old, new, Conn::StandAlone),
        &[E::StopReceiver],
    ),
    row(
        "8.13b",
        |old, new, _| old.conn > Conn::WFConnection && (Conn::Timeout..=Conn::TearDown).contains(&new.conn),
        &[E::RestartReceiver],
    ),
    row("8.14", |old, new, _| connects(old, new), &[E::ResumeActivityLog, E::CountConnect]),
    row(
        "8.15",
        |old, new, _| matches!(old.disk, Disk::Attaching | Disk::Negotiating) && new.disk > Disk::Negotiating,
        &[E::RecordAttachTime],
    ),
    row("8.16", |_, _, _| true, &[E::QueueAfterWork]),
];

// spec: state-machine 9 (what the worker does); row 9.20 is spread out after 13.4
const AFTER: &[Row] = &[
    row("9.1", |_, _, _| true, &[E::Notify]),
    row("9.2", |old, new, _| !both_up_to_date(old) && both_up_to_date(new), &[E::ClearCrashedPrimary]),
    row("9.3", |_, _, _| true, &[E::LegacyEvent]),
    row("9.4", |old, new, _| !old.without_data() && new.without_data(), &[E::HelperPriOnInconDegr]),
    row("9.5", |old, _, ctx| thaw_by_peer(old, ctx), &[E::ThawNoDataResend]),
    row("9.5b", |old, _, ctx| thaw_by_disk(old, ctx), &[E::ThawNoDataRestartDisk]),
    row("9.6", |_, _, ctx| thaw_fencing(ctx), &[E::ThawFencing]),
    row("9.7", |old, new, ctx| !source(old) && source(new) && ctx.apv >= 96 && usable(new), &[E::SyncUuid]),
    row("9.8", |old, new, _| peer_attaches(old, new), &[E::ResetResync, E::SendUuids, E::SendState]),
    row(
        "9.9",
        |old, new, ctx| becomes(old, new, Conn::WFBitMapS) && ctx.current_conn == Conn::WFBitMapS,
        &[E::QueueBitmapSend],
    ),
    row("9.10", |old, new, ctx| data_diverges(old, new, ctx) && may_wait(old, new, ctx), &[E::DeferNewCurrentUuid]),
    row(
        "9.10b",
        |old, new, ctx| data_diverges(old, new, ctx) && !may_wait(old, new, ctx),
        &[E::NewCurrentUuid, E::SendUuids],
    ),
    row("9.10c", demoted_ahead, &[E::NewCurrentUuid, E::SendUuids]),
    row("9.10d", fails_announcing, &[E::NewCurrentUuid]),
    row(
        "9.11",
        |old, new, ctx| old.peer != Role::Primary && !comes_without_disk(old, new) && writes_here_alone(new, ctx),
        &[E::NewCurrentUuid, E::SendUuids],
    ),
    // The C module goes on with the same generation: when the peer attaches its disk later, nothing tells that it is older.
    row(
        "9.11b",
        |old, new, ctx| {
            old.disk < Disk::UpToDate
                && new.pdsk > Disk::Failed
                && new.disk >= Disk::UpToDate
                && writes_here_alone(new, ctx)
        },
        &[E::NewCurrentUuid, E::SendUuids],
    ),
    // Before both decide by their generations which disk is newer.
    row(
        "9.11c",
        |old, new, ctx| old.pdsk <= Disk::Failed && new.pdsk > Disk::Failed && writes_here_alone(new, ctx),
        &[E::NewCurrentUuid, E::SendUuids],
    ),
    row(
        "9.12",
        |old, new, _| {
            new.pdsk < Disk::Inconsistent && usable(new) && old.peer == Role::Primary && new.peer == Role::Secondary
        },
        &[E::WriteBitmap],
    ),
    row(
        "9.13",
        |old, new, ctx| {
            old.role == Role::Primary
                && new.role == Role::Secondary
                && ctx.current_conn <= Conn::Connected
                && usable(new)
        },
        &[E::WriteBitmap],
    ),
    row(
        "9.14",
        |old, new, _| new.conn >= Conn::Connected && old.disk == Disk::Attaching && new.disk == Disk::Negotiating,
        &[E::SendSizes, E::SendUuids, E::SendState],
    ),
    row(
        "9.15",
        |old, new, _| new.conn >= Conn::Connected && (old.aftr_isp != new.aftr_isp || old.user_isp != new.user_isp),
        &[E::SendState],
    ),
    // Not of the C module. What the target told while it waited for its turn, a disk that is Outdated, is not what a source of the C
    // module hears the end of the resync from.
    row("9.15b", |old, new, _| matches!(old.conn, Conn::WFSyncUUID | Conn::Behind) && syncing(new), &[E::SendState]),
    // Nor is this. A target of what the device has grown by has decided so by the roles; a peer that is demoted may decide by others.
    row(
        "9.15c",
        |old, new, _| {
            let waits = old.conn == Conn::WFSyncUUID && new.conn == Conn::WFSyncUUID;
            waits && old.peer == Role::Primary && new.peer == Role::Secondary
        },
        &[E::SendState],
    ),
    row("9.16", |old, new, _| !old.paused() && new.paused(), &[E::PauseDependents]),
    row(
        "9.17",
        |old, new, ctx| old.conn == Conn::WFReportParams && new.conn >= Conn::Connected && !ctx.unattested,
        &[E::SendState],
    ),
    // In its place: what the disk is, when the peer has attested it.
    row(
        "9.17b",
        |old, new, _| {
            let connected = old.conn == Conn::Connected && new.conn == Conn::Connected;
            connected && old.disk == Disk::Outdated && new.disk == Disk::UpToDate
        },
        &[E::SendState],
    ),
    row("9.18", |old, new, _| becomes(old, new, Conn::Ahead), &[E::SendState]),
    row(
        "9.19",
        |old, new, _| becomes(old, new, Conn::StartingSyncT) || becomes(old, new, Conn::StartingSyncS),
        &[E::StartSetAll],
    ),
    row(
        "9.20",
        |old, new, _| disk_becomes(old, new, Disk::Failed),
        &[E::CancelResync, E::WriteMetadata, E::DropLocalReference],
    ),
    row("9.20b", |old, new, ctx| disk_becomes(old, new, Disk::Failed) && ctx.io_error_helper, &[E::HelperLocalIoError]),
    row("9.20c", |old, new, ctx| disk_becomes(old, new, Disk::Failed) && ctx.force_detach, &[E::AbortDiskIo]),
    row("9.20d", |old, new, _| disk_becomes(old, new, Disk::Failed) && new.conn >= Conn::Connected, &[E::SendState]),
    row("9.21", |old, new, _| disk_becomes(old, new, Disk::Diskless), &[E::DropLocalReference]),
    row("9.21b", |old, new, _| disk_becomes(old, new, Disk::Diskless) && new.conn >= Conn::Connected, &[E::SendState]),
    row(
        "9.22",
        |old, new, _| old.disk == Disk::UpToDate && new.disk == Disk::Inconsistent && new.conn >= Conn::Connected,
        &[E::SendState],
    ),
    row(
        "9.23",
        |_, new, ctx| new.disk > Disk::Negotiating && new.pdsk > Disk::Negotiating && ctx.resync_after_negotiation,
        &[E::ClearResyncAfterNegotiation],
    ),
    row(
        "9.23b",
        |_, new, ctx| {
            new.disk > Disk::Negotiating
                && new.pdsk > Disk::Negotiating
                && ctx.resync_after_negotiation
                && new.conn == Conn::Connected
        },
        &[E::GrowResync],
    ),
    row(
        "9.24",
        |old, new, _| {
            (old.conn > Conn::Connected && new.conn <= Conn::Connected)
                || (old.peer_isp && !new.peer_isp)
                || (old.user_isp && !new.user_isp)
        },
        &[E::ResumeDependents],
    ),
    row(
        "9.25",
        |old, new, _| old.disk < Disk::UpToDate && old.conn >= Conn::SyncSource && new.conn == Conn::Connected,
        &[E::SendState],
    ),
    // Not of the C module: the same before the resync has begun. A target that attached while connected has not told what its disk is.
    row(
        "9.25b",
        |old, new, _| {
            matches!(old.conn, Conn::WFBitMapT | Conn::WFSyncUUID)
                && new.conn == Conn::Connected
                && (Disk::Inconsistent..Disk::UpToDate).contains(&new.disk)
        },
        &[E::SendState],
    ),
    row(
        "9.26",
        |old, new, ctx| old.conn == Conn::VerifyS && new.conn == Conn::Connected && ctx.apv >= 97 && ctx.apv != 100,
        &[E::SendState],
    ),
    row(
        "9.27",
        |old, new, _| {
            old.conn > Conn::Connected
                && old.conn < Conn::Ahead
                && (new.conn == Conn::Connected || new.conn >= Conn::Ahead)
                && usable(new)
        },
        &[E::WriteBitmapCopies],
    ),
    row(
        "9.28",
        |old, new, _| {
            new.disk == Disk::Diskless
                && new.conn == Conn::StandAlone
                && new.role == Role::Secondary
                && old.aftr_isp != new.aftr_isp
        },
        &[E::ResumeDependents],
    ),
    row("9.29", |_, _, _| true, &[E::WriteMetadata]),
];

/// What the change from `old` to `new` brings about. To be asked when the state changed, or only the suspension.
// spec: state-machine 8, 9
pub fn effects(old: State, new: State, ctx: &EffectContext) -> EffectSet {
    firing(old, new, ctx).flat_map(|row| row.effects.iter().copied()).collect()
}

/// The numbers of the specification's rows that apply to the change, to explain [`effects`].
pub fn effect_rows(old: State, new: State, ctx: &EffectContext) -> impl Iterator<Item = &'static str> + '_ {
    firing(old, new, ctx).map(|row| row.number)
}

fn firing(old: State, new: State, ctx: &EffectContext) -> impl Iterator<Item = &'static Row> + '_ {
    IMMEDIATE.iter().chain(AFTER).filter(move |row| (row.condition)(old, new, ctx))
}

/// Whether writes are sent to the peer.
// spec: state-machine 18.4
pub fn replicates(state: State) -> bool {
    state.pdsk == Disk::UpToDate
        || (state.pdsk >= Disk::Inconsistent && state.conn >= Conn::WFBitMapT && state.conn < Conn::Ahead)
}

/// Whether the peer is told which blocks differ, in place of the data.
// spec: state-machine 18.4
pub fn sends_out_of_sync(state: State) -> bool {
    matches!(state.conn, Conn::Ahead | Conn::WFBitMapS)
}

/// Whether the change of the peer's disk takes away the data of the peer that this node counted on.
// spec: metadata 6.3
pub fn lost_peer_data(old_pdsk: Disk, new_pdsk: Disk) -> bool {
    match old_pdsk {
        // The C module leaves out one that is being attached: what was frozen until then goes on without it all the same.
        Disk::Unknown => matches!(new_pdsk, Disk::Diskless | Disk::Attaching | Disk::Failed | Disk::Outdated),
        Disk::Outdated => false,
        _ => {
            old_pdsk >= Disk::Inconsistent
                && (new_pdsk < Disk::Inconsistent || matches!(new_pdsk, Disk::Unknown | Disk::Outdated))
        }
    }
}

/// Whether the state is stable enough for new application I/O. Suspension is another question.
// spec: state-machine 18.3
pub fn io_may_start(state: State, apv: u32) -> bool {
    let exchanging = match state.conn {
        Conn::WFBitMapT | Conn::WFSyncUUID => true,
        Conn::WFBitMapS => apv < 96,
        _ => false,
    };
    !exchanging && !matches!(state.disk, Disk::Attaching | Disk::Negotiating)
}

const CONSISTENT: u32 = 0x001;
const PRIMARY_IND: u32 = 0x002;
const CONNECTED_IND: u32 = 0x004;
const WAS_UP_TO_DATE: u32 = 0x010;
const PEER_OUT_DATED: u32 = 0x020;
const CRASHED_PRIMARY: u32 = 0x040;
const AL_CLEAN: u32 = 0x080;

/// The flags of the meta data for a volume in `state`, from those it has now. Bits that the state does not determine
/// stay, except AL_CLEAN, which only tools set.
// spec: metadata 2.1
pub fn meta_flags(old: u32, state: State, crashed_primary: bool) -> u32 {
    let diskless_peer_writes = state.pdsk < Disk::Inconsistent && state.peer == Role::Primary;
    let determined = [
        (CONSISTENT, state.disk > Disk::Inconsistent),
        (PRIMARY_IND, state.role == Role::Primary || diskless_peer_writes),
        (CONNECTED_IND, state.conn > Conn::WFReportParams),
        (WAS_UP_TO_DATE, state.disk > Disk::Outdated),
        (PEER_OUT_DATED, state.pdsk >= Disk::Inconsistent && state.pdsk <= Disk::Outdated),
        (CRASHED_PRIMARY, crashed_primary),
        (AL_CLEAN, false),
    ];
    determined.iter().fold(old, |flags, (bit, set)| if *set { flags | bit } else { flags & !bit })
}

/// Own and peer's disk after the meta data was read: from its flags, what is known of the peer's disk, and the
/// volume's configured fencing policy.
// spec: state-machine 13.2
pub fn initial_disks(flags: u32, pdsk: Disk, fencing: FencingPolicy) -> (Disk, Disk) {
    let pdsk = if flags & PEER_OUT_DATED == 0 { pdsk } else { Disk::Outdated };
    let disk = if flags & CONSISTENT == 0 {
        Disk::Inconsistent
    } else if flags & WAS_UP_TO_DATE == 0 {
        Disk::Outdated
    } else if pdsk == Disk::Outdated || fencing == FencingPolicy::DontCare {
        Disk::UpToDate
    } else {
        Disk::Consistent
    };
    (disk, pdsk)
}

#[cfg(test)]
mod tests;
