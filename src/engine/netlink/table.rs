// SPDX-License-Identifier: GPL-2.0
//! The attribute table: every nest and field of the control interface, written once.
//!
//! Module and tools take numbers, types, marks, defaults, limits, units and option names from here. Field names are
//! those of the interface. A field of type `Option` is absent unless set.
// spec: netlink 4

use super::nest::{nests, Nest};
use super::value::{Bytes, FieldSpec, FieldValue, Marks, Scale, Value};
use super::words::{
    AfterSplitBrain, Fencing, OnCongestion, OnIoError, OnNoData, ReadBalancing, SibReason, TimeoutType, WireProtocol,
    AFTER_SB_0PRI_WORDS, AFTER_SB_1PRI_WORDS, AFTER_SB_2PRI_WORDS, RR_CONFLICT_WORDS,
};
use crate::wire::text::Text;
use core::fmt;

/// Mandatory to understand.
const M: Marks = Marks { mandatory: true, required: false, invariant: false, sensitive: false };
/// Mandatory and secret.
const M_S: Marks = Marks { sensitive: true, ..M };
/// Mandatory and invariant.
const M_I: Marks = Marks { invariant: true, ..M };
/// Required.
const R: Marks = Marks { required: true, ..O };
/// Required and invariant.
const R_I: Marks = Marks { invariant: true, ..R };
/// Optional to understand.
const O: Marks = Marks { mandatory: false, ..M };

/// Largest minor number.
pub const MINOR_MAX: u32 = (1 << 20) - 1;
/// Largest volume number.
pub const VOLUME_MAX: u32 = 65534;

nests! {
    /// Explanations in a reply; the attribute may be repeated.
    CfgReply = 1 "CFG_REPLY", nested_in_reply(false) {
        /// A line for the administrator.
        1 INFO_TEXT info_text: Option<Text<256>> = None, M;
    }

    /// Names the object a message is about.
    CfgContext = 2 "CFG_CONTEXT", nested_in_reply(false) {
        /// Volume number.
        1 CTX_VOLUME ctx_volume: Option<u32> = None, M;
        /// Resource name.
        2 CTX_RESOURCE_NAME ctx_resource_name: Option<Text<128>> = None, M;
        /// Own address of the connection, a raw socket address.
        3 CTX_MY_ADDR ctx_my_addr: Option<Bytes<128>> = None, M;
        /// The peer's address of the connection, a raw socket address.
        4 CTX_PEER_ADDR ctx_peer_addr: Option<Bytes<128>> = None, M;
    }

    /// Configuration of a volume's disk.
    DiskConf = 3 "DISK_CONF", nested_in_reply(true) {
        /// Block device that holds the data.
        1 BACKING_DEV backing_dev: Text<128> = Text::EMPTY, R_I;
        /// Block device that holds the meta-data.
        2 META_DEV meta_dev: Text<128> = Text::EMPTY, R_I;
        /// Slot of the meta-data: 0 and up fixed, -1 internal of old size, -2 external, -3 internal.
        3 META_DEV_IDX meta_dev_idx: i32 = 0, R_I;
        /// Size to use, 0 for all there is.
        4 DISK_SIZE disk_size: u64 = 0, M_I, range(0, 1 << 41), scale(Scale::Sectors), option("size");
        /// Limit of segments per request, 0 for none.
        5 MAX_BIO_BVECS max_bio_bvecs: u32 = 0, M_I, range(0, 128), option("max-bio-bvecs");
        /// What to do when the disk reports an error.
        6 ON_IO_ERROR on_io_error: OnIoError = OnIoError::Detach, M, option("on-io-error");
        /// What a Primary does about a lost peer.
        7 FENCING fencing: Fencing = Fencing::DontCare, M, option("fencing");
        /// Rate of the resync while the controller is off, and its starting value.
        8 RESYNC_RATE resync_rate: u32 = 250, M, range(1, 4_194_304), scale(Scale::KibPerSecond),
            option_or("resync-rate", &["rate"]);
        /// Minor that must have finished its resync first, -1 for none.
        9 RESYNC_AFTER resync_after: i32 = -1, M, range(-1, MINOR_MAX as i64), scale(Scale::Minor),
            option_or("resync-after", &["after"]);
        /// Extents of 4 MiB the activity log keeps hot.
        10 AL_EXTENTS al_extents: u32 = 1237, M, range(67, 65534), option("al-extents");
        /// How far the resync controller looks ahead, 0 for a fixed rate.
        11 C_PLAN_AHEAD c_plan_ahead: u32 = 20, M, range(0, 300), scale(Scale::Tenths), option("c-plan-ahead");
        /// Delay the resync controller aims at.
        12 C_DELAY_TARGET c_delay_target: u32 = 10, M, range(1, 100), scale(Scale::Tenths), option("c-delay-target");
        /// Amount under way the resync controller aims at, 0 to aim at the delay.
        13 C_FILL_TARGET c_fill_target: u32 = 100, M, range(0, 1_048_576), scale(Scale::Sectors),
            option("c-fill-target");
        /// Highest rate the resync controller chooses.
        14 C_MAX_RATE c_max_rate: u32 = 102_400, M, range(250, 4_194_304), scale(Scale::KibPerSecond),
            option("c-max-rate");
        /// Rate below which a resync is not slowed down for the application, 0 for never.
        15 C_MIN_RATE c_min_rate: u32 = 250, M, range(0, 4_194_304), scale(Scale::KibPerSecond), option("c-min-rate");
        /// Order writes by barriers (no longer has an effect).
        16 DISK_BARRIER disk_barrier: bool = false, M, option("disk-barrier");
        /// Order writes by cache flushes.
        17 DISK_FLUSHES disk_flushes: bool = true, M, option("disk-flushes");
        /// Order writes by waiting for the earlier ones.
        18 DISK_DRAIN disk_drain: bool = true, M, option("disk-drain");
        /// Flush the cache of the meta-data device.
        19 MD_FLUSHES md_flushes: bool = true, M, option("md-flushes");
        /// Time after which a request makes the disk count as failed, 0 for never.
        20 DISK_TIMEOUT disk_timeout: u32 = 0, M, range(0, 6000), scale(Scale::Tenths), option("disk-timeout");
        /// Which node serves a read.
        21 READ_BALANCING read_balancing: ReadBalancing = ReadBalancing::PreferLocal, O, option("read-balancing");
        /// Keep the activity log on disk; without it a crash costs a full resync.
        23 AL_UPDATES al_updates: bool = true, O, option("al-updates");
        /// Trust that aligned discards read back as zeroes.
        24 DISCARD_ZEROES_IF_ALIGNED discard_zeroes_if_aligned: bool = true, O, option("discard-zeroes-if-aligned");
        /// Size in which a resync discards zeroed ranges, 0 for not at all.
        25 RS_DISCARD_GRANULARITY rs_discard_granularity: u32 = 0, O, range(0, 1_048_576), scale(Scale::Bytes),
            option("rs-discard-granularity");
        /// Do not pass write-same requests on.
        26 DISABLE_WRITE_SAME disable_write_same: bool = false, O, option("disable-write-same");
    }

    /// Configuration of a resource.
    ResourceOpts = 4 "RESOURCE_OPTS", nested_in_reply(true) {
        /// Processors the threads may use, a hexadecimal mask; empty for all.
        1 CPU_MASK cpu_mask: Text<32> = Text::EMPTY, M, option("cpu-mask");
        /// What happens to I/O without access to up-to-date data.
        2 ON_NO_DATA on_no_data: OnNoData = OnNoData::IoError, M, option("on-no-data-accessible");
    }

    /// Configuration of a connection.
    NetConf = 5 "NET_CONF", nested_in_reply(true) {
        /// Secret both nodes prove to know.
        1 SHARED_SECRET shared_secret: Text<64> = Text::EMPTY, M_S, option("shared-secret");
        /// Digest for that proof; empty for none.
        2 CRAM_HMAC_ALG cram_hmac_alg: Text<64> = Text::EMPTY, M, option("cram-hmac-alg");
        /// Digest that protects all data on the network; empty for none.
        3 INTEGRITY_ALG integrity_alg: Text<64> = Text::EMPTY, M, option("data-integrity-alg");
        /// Digest of the online verification; empty for none.
        4 VERIFY_ALG verify_alg: Text<64> = Text::EMPTY, M, option("verify-alg");
        /// Digest that lets a resync skip equal blocks; empty for none.
        5 CSUMS_ALG csums_alg: Text<64> = Text::EMPTY, M, option("csums-alg");
        /// When a write counts as completed.
        6 WIRE_PROTOCOL wire_protocol: WireProtocol = WireProtocol::C, M, option("protocol");
        /// Time between attempts to connect.
        7 CONNECT_INT connect_int: u32 = 10, M, range(1, 120), scale(Scale::Seconds), option("connect-int");
        /// Time after which a silent peer counts as lost.
        8 TIMEOUT timeout: u32 = 60, M, range(1, 600), scale(Scale::Tenths), option("timeout");
        /// Idle time before a keep-alive packet.
        9 PING_INT ping_int: u32 = 10, M, range(1, 120), scale(Scale::Seconds), option("ping-int");
        /// Time for the answer to a keep-alive packet.
        10 PING_TIMEO ping_timeo: u32 = 5, M, range(1, 300), scale(Scale::Tenths), option("ping-timeout");
        /// Send buffer, 0 for automatic.
        11 SNDBUF_SIZE sndbuf_size: u32 = 0, M, range(0, 10_485_760), scale(Scale::Bytes), option("sndbuf-size");
        /// Receive buffer, 0 for automatic.
        12 RCVBUF_SIZE rcvbuf_size: u32 = 0, M, range(0, 10_485_760), scale(Scale::Bytes), option("rcvbuf-size");
        /// How many times the timeout a peer may block a write, 0 for without limit.
        13 KO_COUNT ko_count: u32 = 7, M, range(0, 200), option("ko-count");
        /// Pages for data under way to the disk.
        14 MAX_BUFFERS max_buffers: u32 = 2048, M, range(32, 131_072), scale(Scale::Pages), option("max-buffers");
        /// Writes between two barriers.
        15 MAX_EPOCH_SIZE max_epoch_size: u32 = 2048, M, range(1, 20_000), option("max-epoch-size");
        /// Requests waiting for the disk that make it start (no longer has an effect).
        16 UNPLUG_WATERMARK unplug_watermark: u32 = 128, M, range(1, 131_072), option("unplug-watermark");
        /// Split brain with no node Primary.
        17 AFTER_SB_0P after_sb_0p: AfterSplitBrain = AfterSplitBrain::Disconnect, M, option("after-sb-0pri"),
            offers(AFTER_SB_0PRI_WORDS);
        /// Split brain with one node Primary.
        18 AFTER_SB_1P after_sb_1p: AfterSplitBrain = AfterSplitBrain::Disconnect, M, option("after-sb-1pri"),
            offers(AFTER_SB_1PRI_WORDS);
        /// Split brain with both nodes Primary.
        19 AFTER_SB_2P after_sb_2p: AfterSplitBrain = AfterSplitBrain::Disconnect, M, option("after-sb-2pri"),
            offers(AFTER_SB_2PRI_WORDS);
        /// A resync would change data under a Primary.
        20 RR_CONFLICT rr_conflict: AfterSplitBrain = AfterSplitBrain::Disconnect, M, option("rr-conflict"),
            offers(RR_CONFLICT_WORDS);
        /// What happens when the network does not keep up.
        21 ON_CONGESTION on_congestion: OnCongestion = OnCongestion::Block, M, option("on-congestion");
        /// Amount under way that counts as congestion, 0 for none.
        22 CONG_FILL cong_fill: u32 = 0, M, range(0, 20_971_520), scale(Scale::Sectors), option("congestion-fill");
        /// Active extents that count as congestion.
        23 CONG_EXTENTS cong_extents: u32 = 1237, M, range(67, 65534), option("congestion-extents");
        /// Both nodes may be Primary.
        24 TWO_PRIMARIES two_primaries: bool = false, M, option("allow-two-primaries");
        /// Give up own changes if there is a split brain.
        25 DISCARD_MY_DATA discard_my_data: bool = false, M_I, option("discard-my-data");
        /// Collect small packets.
        26 TCP_CORK tcp_cork: bool = true, M, option("tcp-cork");
        /// Apply the split-brain policies also when the data sets are unrelated in the usual sense.
        27 ALWAYS_ASBP always_asbp: bool = false, M, option("always-asbp");
        /// Only find out what would happen.
        28 TENTATIVE tentative: bool = false, M_I, option_or("tentative", &["dry-run"]);
        /// Compress the bitmap when it is exchanged.
        29 USE_RLE use_rle: bool = true, M, option("use-rle");
        /// Compare digests only in a resync after a crash.
        33 CSUMS_AFTER_CRASH_ONLY csums_after_crash_only: bool = false, O, option("csums-after-crash-only");
        /// Time after which fresh connections are checked, 0 for that of `ping-timeout`.
        34 SOCK_CHECK_TIMEO sock_check_timeo: u32 = 0, O, range(0, 300), scale(Scale::Tenths),
            option("socket-check-timeout");
        /// Second own address, a raw socket address.
        35 MY_ADDR2 my_addr2: Option<Bytes<128>> = None, O, option("alternate-address");
        /// Second address of the peer, a raw socket address.
        36 PEER_ADDR2 peer_addr2: Option<Bytes<128>> = None, O, option("alternate-peer-address");
    }

    /// How to become Primary.
    SetRoleParms = 6 "SET_ROLE_PARMS", nested_in_reply(true) {
        /// Take the own data as good, whatever is known of it.
        1 ASSUME_UPTODATE assume_uptodate: bool = false, M, option_or("force", &["overwrite-data-of-peer"]);
    }

    /// How to resize.
    ResizeParms = 7 "RESIZE_PARMS", nested_in_reply(true) {
        /// Size to use, 0 for as large as possible.
        1 RESIZE_SIZE resize_size: u64 = 0, M, range(0, 1 << 41), scale(Scale::Sectors), option("size");
        /// Assume that the peer has the space.
        2 RESIZE_FORCE resize_force: bool = false, M, option("assume-peer-has-space");
        /// Do not resynchronise the new area.
        3 NO_RESYNC no_resync: bool = false, M, option("assume-clean");
        /// Stripes of the activity log; absent to keep them.
        4 AL_STRIPES al_stripes: Option<u32> = None, O, range(1, 1024), option("al-stripes");
        /// Size of such a stripe; absent to keep it.
        5 AL_STRIPE_SIZE al_stripe_size: Option<u32> = None, O, range(4, 16_777_216), scale(Scale::Kib),
            option("al-stripe-size-kB");
    }

    /// A volume's state and counters.
    StateInfo = 8 "STATE_INFO", nested_in_reply(false) {
        /// Why this is sent.
        1 SIB_REASON sib_reason: SibReason = SibReason::Status, M;
        /// State word.
        2 CURRENT_STATE current_state: u32 = 0, R;
        /// Size of the volume.
        3 CAPACITY capacity: u64 = 0, M, scale(Scale::Sectors);
        /// Generation the applications last saw.
        4 ED_UUID ed_uuid: u64 = 0, M;
        /// State word before a change.
        5 PREV_STATE prev_state: Option<u32> = None, M;
        /// State word after a change.
        6 NEW_STATE new_state: Option<u32> = None, M;
        /// Current, bitmap and two history UUIDs; with a disk.
        7 UUIDS uuids: Option<Bytes<32>> = None, M;
        /// Flags of the meta-data; with a disk.
        8 DISK_FLAGS disk_flags: Option<u32> = None, M;
        /// Blocks of 4 KiB the bitmap has; with a disk.
        9 BITS_TOTAL bits_total: Option<u64> = None, M;
        /// Blocks of 4 KiB out of sync; with a disk.
        10 BITS_OOS bits_oos: Option<u64> = None, M;
        /// Blocks of 4 KiB the running resync began with.
        11 BITS_RS_TOTAL bits_rs_total: Option<u64> = None, M;
        /// Blocks of 4 KiB the running resync could not copy.
        12 BITS_RS_FAILED bits_rs_failed: Option<u64> = None, M;
        /// Name of a helper.
        13 HELPER helper: Option<Text<32>> = None, M;
        /// Wait status of a helper.
        14 HELPER_EXIT_CODE helper_exit_code: Option<u32> = None, M;
        /// Sent to the peer.
        15 SEND_CNT send_cnt: u64 = 0, O, scale(Scale::Sectors);
        /// Received from the peer.
        16 RECV_CNT recv_cnt: u64 = 0, O, scale(Scale::Sectors);
        /// Read from the disk.
        17 READ_CNT read_cnt: u64 = 0, O, scale(Scale::Sectors);
        /// Written to the disk.
        18 WRIT_CNT writ_cnt: u64 = 0, O, scale(Scale::Sectors);
        /// Transactions of the activity log.
        19 AL_WRIT_CNT al_writ_cnt: u64 = 0, O;
        /// Pages of the bitmap written.
        20 BM_WRIT_CNT bm_writ_cnt: u64 = 0, O;
        /// Requests of applications under way.
        21 AP_BIO_CNT ap_bio_cnt: u32 = 0, O;
        /// Requests of applications the peer has not answered.
        22 AP_PENDING_CNT ap_pending_cnt: u32 = 0, O;
        /// Requests of the resync the peer has not answered.
        23 RS_PENDING_CNT rs_pending_cnt: u32 = 0, O;
    }

    /// What to verify.
    StartOvParms = 9 "START_OV_PARMS", nested_in_reply(true) {
        /// First sector; absent to go on where the last run ended.
        1 OV_START_SECTOR ov_start_sector: Option<u64> = None, M, range(0, i64::MAX), scale(Scale::Sectors),
            option("start");
        /// Sector to stop at; absent for the end of the volume.
        2 OV_STOP_SECTOR ov_stop_sector: Option<u64> = None, M, range(0, i64::MAX), scale(Scale::Sectors),
            option("stop");
    }

    /// How to make a new data generation.
    NewCUuidParms = 10 "NEW_C_UUID_PARMS", nested_in_reply(true) {
        /// Also clear the bitmap.
        1 CLEAR_BM clear_bm: bool = false, M, option("clear-bitmap");
    }

    /// Which waiting time applies.
    TimeoutParms = 11 "TIMEOUT_PARMS", nested_in_reply(true) {
        /// Kind of the time.
        1 TIMEOUT_TYPE timeout_type: TimeoutType = TimeoutType::Default, R;
    }

    /// How to disconnect.
    DisconnectParms = 12 "DISCONNECT_PARMS", nested_in_reply(true) {
        /// Do not ask the peer.
        1 FORCE_DISCONNECT force_disconnect: bool = false, M, option("force");
    }

    /// How to detach.
    DetachParms = 13 "DETACH_PARMS", nested_in_reply(true) {
        /// Do not wait for the disk.
        1 FORCE_DETACH force_detach: bool = false, M, option("force");
    }

    /// State of a resource.
    ResourceInfo = 15 "RESOURCE_INFO", nested_in_reply(true) {
        /// Highest role of its volumes.
        1 RES_ROLE res_role: u32 = 0, O;
        /// I/O suspended by the administrator.
        2 RES_SUSP res_susp: bool = false, O;
        /// I/O suspended for lack of data.
        3 RES_SUSP_NOD res_susp_nod: bool = false, O;
        /// I/O suspended until the peer is fenced.
        4 RES_SUSP_FEN res_susp_fen: bool = false, O;
    }

    /// State of a volume's disk.
    DeviceInfo = 16 "DEVICE_INFO", nested_in_reply(true) {
        /// Disk state.
        1 DEV_DISK_STATE dev_disk_state: u32 = 0, O;
    }

    /// State of a connection.
    ConnectionInfo = 17 "CONNECTION_INFO", nested_in_reply(true) {
        /// Connection state, at most WFReportParams (9).
        1 CONN_CONNECTION_STATE conn_connection_state: u32 = 0, O;
        /// The peer's role.
        2 CONN_ROLE conn_role: u32 = 0, O;
    }

    /// State of a volume on the peer.
    PeerDeviceInfo = 18 "PEER_DEVICE_INFO", nested_in_reply(true) {
        /// Replication state, at least WFReportParams (9).
        1 PEER_REPL_STATE peer_repl_state: u32 = 0, O;
        /// The peer's disk state.
        2 PEER_DISK_STATE peer_disk_state: u32 = 0, O;
        /// Resync paused here.
        3 PEER_RESYNC_SUSP_USER peer_resync_susp_user: u32 = 0, O;
        /// Resync paused by the peer.
        4 PEER_RESYNC_SUSP_PEER peer_resync_susp_peer: u32 = 0, O;
        /// Resync paused by a dependency.
        5 PEER_RESYNC_SUSP_DEPENDENCY peer_resync_susp_dependency: u32 = 0, O;
    }

    /// Counters of a resource.
    ResourceStatistics = 19 "RESOURCE_STATISTICS", nested_in_reply(true) {
        /// How writes are ordered: 0 not, 1 drain, 2 flush, 3 barrier.
        1 RES_STAT_WRITE_ORDERING res_stat_write_ordering: u32 = 0, O;
    }

    /// Counters of a volume.
    DeviceStatistics = 20 "DEVICE_STATISTICS", nested_in_reply(true) {
        /// Size.
        1 DEV_SIZE dev_size: u64 = 0, O, scale(Scale::Sectors);
        /// Read from the disk.
        2 DEV_READ dev_read: u64 = 0, O, scale(Scale::Sectors);
        /// Written to the disk.
        3 DEV_WRITE dev_write: u64 = 0, O, scale(Scale::Sectors);
        /// Transactions of the activity log.
        4 DEV_AL_WRITES dev_al_writes: u64 = 0, O;
        /// Pages of the bitmap written.
        5 DEV_BM_WRITES dev_bm_writes: u64 = 0, O;
        /// Requests of applications under way.
        6 DEV_UPPER_PENDING dev_upper_pending: u32 = 0, O;
        /// Requests to the disk under way.
        7 DEV_LOWER_PENDING dev_lower_pending: u32 = 0, O;
        /// New requests of applications have to wait.
        8 DEV_UPPER_BLOCKED dev_upper_blocked: bool = false, O;
        /// Always false.
        9 DEV_LOWER_BLOCKED dev_lower_blocked: bool = false, O;
        /// The activity log is suspended.
        10 DEV_AL_SUSPENDED dev_al_suspended: bool = false, O;
        /// Generation the applications last saw.
        11 DEV_EXPOSED_DATA_UUID dev_exposed_data_uuid: u64 = 0, O;
        /// Current generation, 0 without a disk.
        12 DEV_CURRENT_UUID dev_current_uuid: u64 = 0, O;
        /// Flags of the meta-data, 0 without a disk.
        13 DEV_DISK_FLAGS dev_disk_flags: u32 = 0, O;
        /// Two history UUIDs and two zeros, in host byte order.
        14 HISTORY_UUIDS history_uuids: Bytes<256> = Bytes::EMPTY, O;
    }

    /// Counters of a connection.
    ConnectionStatistics = 21 "CONNECTION_STATISTICS", nested_in_reply(true) {
        /// The network does not keep up.
        1 CONN_CONGESTED conn_congested: bool = false, O;
    }

    /// Counters of a volume on the peer.
    PeerDeviceStatistics = 22 "PEER_DEVICE_STATISTICS", nested_in_reply(true) {
        /// Received from the peer.
        1 PEER_DEV_RECEIVED peer_dev_received: u64 = 0, O, scale(Scale::Sectors);
        /// Sent to the peer.
        2 PEER_DEV_SENT peer_dev_sent: u64 = 0, O, scale(Scale::Sectors);
        /// Requests sent and not answered.
        3 PEER_DEV_PENDING peer_dev_pending: u32 = 0, O;
        /// Requests received and not answered.
        4 PEER_DEV_UNACKED peer_dev_unacked: u32 = 0, O;
        /// Out of sync.
        5 PEER_DEV_OUT_OF_SYNC peer_dev_out_of_sync: u64 = 0, O, scale(Scale::Sectors);
        /// Not copied by the running resync.
        6 PEER_DEV_RESYNC_FAILED peer_dev_resync_failed: u64 = 0, O, scale(Scale::Sectors);
        /// Generation the bitmap counts from.
        7 PEER_DEV_BITMAP_UUID peer_dev_bitmap_uuid: u64 = 0, O;
        /// Bit 0 connected, 1 outdated, 2 fencing, 3 full sync.
        9 PEER_DEV_FLAGS peer_dev_flags: u32 = 0, O;
    }

    /// What happened to the object of a notification.
    NotificationHeader = 23 "NOTIFICATION_HEADER", nested_in_reply(true) {
        /// A [`NotificationType`](super::words::NotificationType) and the flag that more follows.
        1 NH_TYPE nh_type: u32 = 0, M;
    }

    /// A helper that is called or has answered.
    Helper = 24 "HELPER", nested_in_reply(true) {
        /// Its name.
        1 HELPER_NAME helper_name: Text<32> = Text::EMPTY, M;
        /// Its wait status, 0 when called.
        2 HELPER_STATUS helper_status: u32 = 0, M;
    }
}

/// The changeable and the attach-time options of a disk in the order tools show them.
// spec: commands 3.2
pub const DISK_OPTION_ORDER: &[u16] = &[
    DiskConf::DISK_SIZE,
    DiskConf::MAX_BIO_BVECS,
    DiskConf::ON_IO_ERROR,
    DiskConf::FENCING,
    DiskConf::DISK_BARRIER,
    DiskConf::DISK_FLUSHES,
    DiskConf::DISK_DRAIN,
    DiskConf::MD_FLUSHES,
    DiskConf::RESYNC_RATE,
    DiskConf::RESYNC_AFTER,
    DiskConf::AL_EXTENTS,
    DiskConf::AL_UPDATES,
    DiskConf::DISCARD_ZEROES_IF_ALIGNED,
    DiskConf::DISABLE_WRITE_SAME,
    DiskConf::C_PLAN_AHEAD,
    DiskConf::C_DELAY_TARGET,
    DiskConf::C_FILL_TARGET,
    DiskConf::C_MAX_RATE,
    DiskConf::C_MIN_RATE,
    DiskConf::DISK_TIMEOUT,
    DiskConf::READ_BALANCING,
    DiskConf::RS_DISCARD_GRANULARITY,
];

/// The changeable options of a connection in the order tools show them.
// spec: commands 3.2
pub const NET_OPTION_ORDER: &[u16] = &[
    NetConf::WIRE_PROTOCOL,
    NetConf::TIMEOUT,
    NetConf::MAX_EPOCH_SIZE,
    NetConf::MAX_BUFFERS,
    NetConf::UNPLUG_WATERMARK,
    NetConf::CONNECT_INT,
    NetConf::PING_INT,
    NetConf::SNDBUF_SIZE,
    NetConf::RCVBUF_SIZE,
    NetConf::KO_COUNT,
    NetConf::TWO_PRIMARIES,
    NetConf::CRAM_HMAC_ALG,
    NetConf::SHARED_SECRET,
    NetConf::AFTER_SB_0P,
    NetConf::AFTER_SB_1P,
    NetConf::AFTER_SB_2P,
    NetConf::ALWAYS_ASBP,
    NetConf::RR_CONFLICT,
    NetConf::PING_TIMEO,
    NetConf::INTEGRITY_ALG,
    NetConf::TCP_CORK,
    NetConf::ON_CONGESTION,
    NetConf::CONG_FILL,
    NetConf::CONG_EXTENTS,
    NetConf::CSUMS_ALG,
    NetConf::CSUMS_AFTER_CRASH_ONLY,
    NetConf::VERIFY_ALG,
    NetConf::USE_RLE,
    NetConf::SOCK_CHECK_TIMEO,
];

#[cfg(test)]
mod tests {
    use super::super::value::FieldKind;
    use super::*;

    /// A field as text: number, name, kind, marks, default, limits, option; `-` for what it has not.
    fn row(spec: &FieldSpec) -> String {
        let kind = match spec.kind {
            FieldKind::Bool => "bool".into(),
            FieldKind::U32 => "u32".into(),
            FieldKind::I32 => "s32".into(),
            FieldKind::U64 => "u64".into(),
            FieldKind::Text { capacity } => format!("string{capacity}"),
            FieldKind::Binary { capacity } => format!("binary{capacity}"),
            FieldKind::Words(_) => "enum".into(),
        };
        let Marks { mandatory, required, invariant, sensitive } = spec.marks;
        let marks: String = [(mandatory, 'M'), (required, 'R'), (invariant, 'I'), (sensitive, 'S')]
            .iter()
            .filter_map(|&(set, letter)| set.then_some(letter))
            .collect();
        let default = match spec.default() {
            None => "-".into(),
            Some(Value::Text(text) | Value::Binary(text)) => format!("{:?}", String::from_utf8_lossy(text)),
            Some(value) => value.as_number().unwrap().to_string(),
        };
        let limits = spec.range.map_or("-".into(), |(min, max)| format!("{min}..{max}"));
        let option = spec.option.map_or("-".into(), |option| [&[option.name], option.aliases].concat().join(","));
        let marks = if marks.is_empty() { "-".into() } else { marks };
        format!("{} {} {kind} {marks} {default} {limits} {option}", spec.number, spec.name)
    }

    /// The nest has exactly these rows, and its typed default agrees with them.
    fn check<N: Nest>(number: u16, name: &str, rows: &[&str]) {
        assert_eq!((N::NUMBER, N::NAME), (number, name));
        assert_eq!(N::FIELDS.iter().map(row).collect::<Vec<_>>(), rows, "{name}");
        let default = N::default();
        for spec in N::FIELDS {
            assert_eq!(default.get(spec.number), spec.default(), "{}", spec.name);
            assert!(spec.number > 0 && spec.number < 64);
            assert!(!spec.help.is_empty() && !spec.help.starts_with(' '));
            let within = |value: Value<'_>| spec.range.is_none_or(|range| value.clamped(range) == value);
            assert!(spec.default().is_none_or(within), "{}", spec.name);
        }
        assert!(N::FIELDS.is_sorted_by_key(|spec| spec.number));
    }

    // spec: netlink 4.3
    #[test]
    fn disk_conf() {
        check::<DiskConf>(
            3,
            "DISK_CONF",
            &[
                r#"1 backing_dev string128 RI "" - -"#,
                r#"2 meta_dev string128 RI "" - -"#,
                "3 meta_dev_idx s32 RI 0 - -",
                "4 disk_size u64 MI 0 0..2199023255552 size",
                "5 max_bio_bvecs u32 MI 0 0..128 max-bio-bvecs",
                "6 on_io_error enum M 2 - on-io-error",
                "7 fencing enum M 0 - fencing",
                "8 resync_rate u32 M 250 1..4194304 resync-rate,rate",
                "9 resync_after s32 M -1 -1..1048575 resync-after,after",
                "10 al_extents u32 M 1237 67..65534 al-extents",
                "11 c_plan_ahead u32 M 20 0..300 c-plan-ahead",
                "12 c_delay_target u32 M 10 1..100 c-delay-target",
                "13 c_fill_target u32 M 100 0..1048576 c-fill-target",
                "14 c_max_rate u32 M 102400 250..4194304 c-max-rate",
                "15 c_min_rate u32 M 250 0..4194304 c-min-rate",
                "16 disk_barrier bool M 0 - disk-barrier",
                "17 disk_flushes bool M 1 - disk-flushes",
                "18 disk_drain bool M 1 - disk-drain",
                "19 md_flushes bool M 1 - md-flushes",
                "20 disk_timeout u32 M 0 0..6000 disk-timeout",
                "21 read_balancing enum - 0 - read-balancing",
                "23 al_updates bool - 1 - al-updates",
                "24 discard_zeroes_if_aligned bool - 1 - discard-zeroes-if-aligned",
                "25 rs_discard_granularity u32 - 0 0..1048576 rs-discard-granularity",
                "26 disable_write_same bool - 0 - disable-write-same",
            ],
        );
    }

    // spec: netlink 4.4
    #[test]
    fn net_conf() {
        check::<NetConf>(
            5,
            "NET_CONF",
            &[
                r#"1 shared_secret string64 MS "" - shared-secret"#,
                r#"2 cram_hmac_alg string64 M "" - cram-hmac-alg"#,
                r#"3 integrity_alg string64 M "" - data-integrity-alg"#,
                r#"4 verify_alg string64 M "" - verify-alg"#,
                r#"5 csums_alg string64 M "" - csums-alg"#,
                "6 wire_protocol enum M 3 - protocol",
                "7 connect_int u32 M 10 1..120 connect-int",
                "8 timeout u32 M 60 1..600 timeout",
                "9 ping_int u32 M 10 1..120 ping-int",
                "10 ping_timeo u32 M 5 1..300 ping-timeout",
                "11 sndbuf_size u32 M 0 0..10485760 sndbuf-size",
                "12 rcvbuf_size u32 M 0 0..10485760 rcvbuf-size",
                "13 ko_count u32 M 7 0..200 ko-count",
                "14 max_buffers u32 M 2048 32..131072 max-buffers",
                "15 max_epoch_size u32 M 2048 1..20000 max-epoch-size",
                "16 unplug_watermark u32 M 128 1..131072 unplug-watermark",
                "17 after_sb_0p enum M 0 - after-sb-0pri",
                "18 after_sb_1p enum M 0 - after-sb-1pri",
                "19 after_sb_2p enum M 0 - after-sb-2pri",
                "20 rr_conflict enum M 0 - rr-conflict",
                "21 on_congestion enum M 0 - on-congestion",
                "22 cong_fill u32 M 0 0..20971520 congestion-fill",
                "23 cong_extents u32 M 1237 67..65534 congestion-extents",
                "24 two_primaries bool M 0 - allow-two-primaries",
                "25 discard_my_data bool MI 0 - discard-my-data",
                "26 tcp_cork bool M 1 - tcp-cork",
                "27 always_asbp bool M 0 - always-asbp",
                "28 tentative bool MI 0 - tentative,dry-run",
                "29 use_rle bool M 1 - use-rle",
                "33 csums_after_crash_only bool - 0 - csums-after-crash-only",
                "34 sock_check_timeo u32 - 0 0..300 socket-check-timeout",
                "35 my_addr2 binary128 - - - alternate-address",
                "36 peer_addr2 binary128 - - - alternate-peer-address",
            ],
        );
    }

    // spec: netlink 4.2
    #[test]
    fn small_request_nests() {
        check::<CfgReply>(1, "CFG_REPLY", &["1 info_text string256 M - - -"]);
        check::<CfgContext>(
            2,
            "CFG_CONTEXT",
            &[
                "1 ctx_volume u32 M - - -",
                "2 ctx_resource_name string128 M - - -",
                "3 ctx_my_addr binary128 M - - -",
                "4 ctx_peer_addr binary128 M - - -",
            ],
        );
        check::<ResourceOpts>(
            4,
            "RESOURCE_OPTS",
            &[r#"1 cpu_mask string32 M "" - cpu-mask"#, "2 on_no_data enum M 0 - on-no-data-accessible"],
        );
        check::<SetRoleParms>(6, "SET_ROLE_PARMS", &["1 assume_uptodate bool M 0 - force,overwrite-data-of-peer"]);
        check::<ResizeParms>(
            7,
            "RESIZE_PARMS",
            &[
                "1 resize_size u64 M 0 0..2199023255552 size",
                "2 resize_force bool M 0 - assume-peer-has-space",
                "3 no_resync bool M 0 - assume-clean",
                "4 al_stripes u32 - - 1..1024 al-stripes",
                "5 al_stripe_size u32 - - 4..16777216 al-stripe-size-kB",
            ],
        );
        check::<StartOvParms>(
            9,
            "START_OV_PARMS",
            &[
                "1 ov_start_sector u64 M - 0..9223372036854775807 start",
                "2 ov_stop_sector u64 M - 0..9223372036854775807 stop",
            ],
        );
        check::<NewCUuidParms>(10, "NEW_C_UUID_PARMS", &["1 clear_bm bool M 0 - clear-bitmap"]);
        check::<TimeoutParms>(11, "TIMEOUT_PARMS", &["1 timeout_type enum R 0 - -"]);
        check::<DisconnectParms>(12, "DISCONNECT_PARMS", &["1 force_disconnect bool M 0 - force"]);
        check::<DetachParms>(13, "DETACH_PARMS", &["1 force_detach bool M 0 - force"]);
    }

    // spec: netlink 4.2, 4.5
    #[test]
    fn what_the_module_reports() {
        check::<StateInfo>(
            8,
            "STATE_INFO",
            &[
                "1 sib_reason enum M 1 - -",
                "2 current_state u32 R 0 - -",
                "3 capacity u64 M 0 - -",
                "4 ed_uuid u64 M 0 - -",
                "5 prev_state u32 M - - -",
                "6 new_state u32 M - - -",
                "7 uuids binary32 M - - -",
                "8 disk_flags u32 M - - -",
                "9 bits_total u64 M - - -",
                "10 bits_oos u64 M - - -",
                "11 bits_rs_total u64 M - - -",
                "12 bits_rs_failed u64 M - - -",
                "13 helper string32 M - - -",
                "14 helper_exit_code u32 M - - -",
                "15 send_cnt u64 - 0 - -",
                "16 recv_cnt u64 - 0 - -",
                "17 read_cnt u64 - 0 - -",
                "18 writ_cnt u64 - 0 - -",
                "19 al_writ_cnt u64 - 0 - -",
                "20 bm_writ_cnt u64 - 0 - -",
                "21 ap_bio_cnt u32 - 0 - -",
                "22 ap_pending_cnt u32 - 0 - -",
                "23 rs_pending_cnt u32 - 0 - -",
            ],
        );
        check::<ResourceInfo>(
            15,
            "RESOURCE_INFO",
            &[
                "1 res_role u32 - 0 - -",
                "2 res_susp bool - 0 - -",
                "3 res_susp_nod bool - 0 - -",
                "4 res_susp_fen bool - 0 - -",
            ],
        );
        check::<DeviceInfo>(16, "DEVICE_INFO", &["1 dev_disk_state u32 - 0 - -"]);
        check::<ConnectionInfo>(
            17,
            "CONNECTION_INFO",
            &["1 conn_connection_state u32 - 0 - -", "2 conn_role u32 - 0 - -"],
        );
        check::<PeerDeviceInfo>(
            18,
            "PEER_DEVICE_INFO",
            &[
                "1 peer_repl_state u32 - 0 - -",
                "2 peer_disk_state u32 - 0 - -",
                "3 peer_resync_susp_user u32 - 0 - -",
                "4 peer_resync_susp_peer u32 - 0 - -",
                "5 peer_resync_susp_dependency u32 - 0 - -",
            ],
        );
        check::<ResourceStatistics>(19, "RESOURCE_STATISTICS", &["1 res_stat_write_ordering u32 - 0 - -"]);
        check::<DeviceStatistics>(
            20,
            "DEVICE_STATISTICS",
            &[
                "1 dev_size u64 - 0 - -",
                "2 dev_read u64 - 0 - -",
                "3 dev_write u64 - 0 - -",
                "4 dev_al_writes u64 - 0 - -",
                "5 dev_bm_writes u64 - 0 - -",
                "6 dev_upper_pending u32 - 0 - -",
                "7 dev_lower_pending u32 - 0 - -",
                "8 dev_upper_blocked bool - 0 - -",
                "9 dev_lower_blocked bool - 0 - -",
                "10 dev_al_suspended bool - 0 - -",
                "11 dev_exposed_data_uuid u64 - 0 - -",
                "12 dev_current_uuid u64 - 0 - -",
                "13 dev_disk_flags u32 - 0 - -",
                r#"14 history_uuids binary256 - "" - -"#,
            ],
        );
        check::<ConnectionStatistics>(21, "CONNECTION_STATISTICS", &["1 conn_congested bool - 0 - -"]);
        check::<PeerDeviceStatistics>(
            22,
            "PEER_DEVICE_STATISTICS",
            &[
                "1 peer_dev_received u64 - 0 - -",
                "2 peer_dev_sent u64 - 0 - -",
                "3 peer_dev_pending u32 - 0 - -",
                "4 peer_dev_unacked u32 - 0 - -",
                "5 peer_dev_out_of_sync u64 - 0 - -",
                "6 peer_dev_resync_failed u64 - 0 - -",
                "7 peer_dev_bitmap_uuid u64 - 0 - -",
                "9 peer_dev_flags u32 - 0 - -",
            ],
        );
        check::<NotificationHeader>(23, "NOTIFICATION_HEADER", &["1 nh_type u32 M 0 - -"]);
        check::<Helper>(24, "HELPER", &[r#"1 helper_name string32 M "" - -"#, "2 helper_status u32 M 0 - -"]);
    }

    // spec: drbd-conf 6.1, 6.2; commands 3.5
    #[test]
    fn units_of_the_options() {
        let unit = |spec: Option<&FieldSpec>| spec.map(|spec| (spec.scale.prefix(), spec.scale.unit()));
        for name in ["resync-rate", "c-max-rate", "c-min-rate"] {
            assert_eq!(unit(DiskConf::field_of_option(name)), Some((Some('k'), Some("bytes/second"))), "{name}");
        }
        for name in ["size", "c-fill-target"] {
            assert_eq!(unit(DiskConf::field_of_option(name)), Some((Some('s'), Some("bytes"))), "{name}");
        }
        for name in ["timeout", "ping-timeout", "socket-check-timeout"] {
            assert_eq!(unit(NetConf::field_of_option(name)), Some((None, Some("1/10 seconds"))), "{name}");
        }
        assert_eq!(unit(NetConf::field_of_option("connect-int")), Some((None, Some("seconds"))));
        assert_eq!(unit(NetConf::field_of_option("congestion-fill")), Some((Some('s'), Some("bytes"))));
        assert_eq!(unit(ResizeParms::field_of_option("al-stripe-size-kB")), Some((Some('k'), Some("bytes"))));
        assert_eq!(unit(NetConf::field_of_option("no-such-option")), None);
    }

    #[test]
    fn show_order_has_every_option_that_can_be_shown() {
        let shown = |fields: &[FieldSpec], not: &[u16]| -> Vec<u16> {
            let options = fields.iter().filter(|spec| spec.option.is_some() && !not.contains(&spec.number));
            options.map(|spec| spec.number).collect()
        };
        let sorted = |order: &[u16]| {
            let mut order = order.to_vec();
            order.sort_unstable();
            order
        };
        assert_eq!(sorted(DISK_OPTION_ORDER), shown(DiskConf::FIELDS, &[]));
        let connect_only = [NetConf::DISCARD_MY_DATA, NetConf::TENTATIVE, NetConf::MY_ADDR2, NetConf::PEER_ADDR2];
        assert_eq!(sorted(NET_OPTION_ORDER), shown(NetConf::FIELDS, &connect_only));
    }

    #[test]
    fn words_an_option_offers() {
        let rr_conflict = NetConf::field_of_option("rr-conflict").unwrap();
        assert_eq!(rr_conflict.number_of("call-pri-lost"), Some(9));
        assert_eq!(rr_conflict.number_of("call-pri-lost-after-sb"), None);
        assert_eq!(rr_conflict.word_of(10), Some("violently"));
        let after_sb_2p = NetConf::field_of_option("after-sb-2pri").unwrap();
        assert_eq!(after_sb_2p.words().iter().map(|word| word.number).collect::<Vec<_>>(), [0, 9, 10]);
        assert_eq!(after_sb_2p.number_of("consensus"), None);
        assert_eq!(after_sb_2p.word_of(7), Some("consensus"), "can be shown though not chosen");
        assert_eq!(DiskConf::field_of_option("size").unwrap().word_of(0), None);
    }
}
