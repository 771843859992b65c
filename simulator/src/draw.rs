//! The options of a random run.

use crate::world::Fence;
use crate::Random;
use engine::netlink::{
    AfterSplitBrain, DiskConf, Fencing, NetConf, OnCongestion, OnIoError, OnNoData, ReadBalancing, ResourceOpts,
    WireProtocol,
};
use engine::resource::AlgorithmName;

/// What kind of run the options are for.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// The administrator never lets the halves diverge.
    pub careful: bool,
    /// Both nodes may be Primary.
    pub dual: bool,
}

fn some(random: &mut Random, percent: u64, name: &str) -> AlgorithmName {
    let algorithm = AlgorithmName::from_bytes(name.as_bytes()).ok().filter(|_| random.percent(percent));
    algorithm.unwrap_or(AlgorithmName::EMPTY)
}

/// Options of the connection.
pub fn net(random: &mut Random, kind: Kind) -> NetConf {
    use AfterSplitBrain::*;
    let letters = [WireProtocol::C, WireProtocol::C, WireProtocol::B, WireProtocol::A];
    let wire_protocol = if kind.dual { WireProtocol::C } else { random.pick(&letters) };
    let mut conf = NetConf {
        wire_protocol,
        two_primaries: kind.dual,
        verify_alg: some(random, 30, "crc32c"),
        csums_alg: some(random, 20, "crc32c"),
        csums_after_crash_only: random.percent(30),
        integrity_alg: some(random, 15, "crc32c"),
        max_epoch_size: random.pick(&[2048, 2048, 20, 3]),
        ko_count: if kind.dual { 7 } else { random.pick(&[7, 2, 1]) },
        timeout: if kind.dual { 60 } else { random.pick(&[60, 20]) },
        use_rle: random.percent(80),
        cram_hmac_alg: some(random, 10, "sha256"),
        shared_secret: some(random, 100, "open sesame"),
        ..NetConf::default()
    };
    if wire_protocol == WireProtocol::A {
        conf.on_congestion = random.pick(&[
            OnCongestion::Block,
            OnCongestion::PullAhead,
            OnCongestion::PullAhead,
            OnCongestion::Disconnect,
        ]);
        conf.cong_fill = random.pick(&[200, 1000, 4000]);
        conf.cong_extents = random.pick(&[20, 1237]);
    }
    if !kind.careful && random.percent(60) {
        let nobody = [
            Disconnect,
            DiscardYoungerPrimary,
            DiscardOlderPrimary,
            DiscardZeroChanges,
            DiscardLeastChanges,
            DiscardLocal,
            DiscardRemote,
        ];
        conf.after_sb_0p = random.pick(&nobody);
        conf.after_sb_1p = random.pick(&[Disconnect, Consensus, DiscardSecondary, CallPriLost, Violently]);
        conf.after_sb_2p = random.pick(&[Disconnect, CallPriLost, Violently]);
        conf.rr_conflict = random.pick(&[Disconnect, CallPriLost, Violently]);
        conf.always_asbp = random.percent(50);
    }
    conf
}

/// The same for one of the nodes: what is local to one is remote to the other.
pub fn net_of(node: usize, conf: &NetConf) -> NetConf {
    let after_sb_0p = match (node, conf.after_sb_0p) {
        (1, AfterSplitBrain::DiscardLocal) => AfterSplitBrain::DiscardRemote,
        (1, AfterSplitBrain::DiscardRemote) => AfterSplitBrain::DiscardLocal,
        (_, policy) => policy,
    };
    NetConf { after_sb_0p, ..*conf }
}

/// Options of the disks.
pub fn disk(random: &mut Random, kind: Kind, conf: DiskConf, net: &NetConf) -> DiskConf {
    let balancing = [
        ReadBalancing::PreferLocal,
        ReadBalancing::PreferLocal,
        ReadBalancing::RoundRobin,
        ReadBalancing::PreferRemote,
        ReadBalancing::LeastPending,
        ReadBalancing::WhenCongestedRemote,
        ReadBalancing::Striping32K,
        ReadBalancing::Striping1M,
    ];
    let fencing = match (kind.dual, net.wire_protocol) {
        (true, _) => Fencing::DontCare,
        (_, WireProtocol::A) => random.pick(&[Fencing::DontCare, Fencing::DontCare, Fencing::ResourceOnly]),
        _ => random.pick(&[Fencing::DontCare, Fencing::DontCare, Fencing::ResourceOnly, Fencing::ResourceAndStonith]),
    };
    let errors = [OnIoError::Detach, OnIoError::Detach, OnIoError::CallLocalIoError, OnIoError::PassOn];
    let fixed_rate = random.percent(30);
    DiskConf {
        read_balancing: random.pick(&balancing),
        rs_discard_granularity: random.pick(&[0, 0, 65_536]),
        fencing,
        on_io_error: if kind.dual { OnIoError::Detach } else { random.pick(&errors) },
        al_updates: !random.percent(5),
        disk_timeout: random.pick(&[0, 0, 0, 20]),
        c_plan_ahead: if fixed_rate { 0 } else { conf.c_plan_ahead },
        resync_rate: if fixed_rate { 20_000 } else { conf.resync_rate },
        ..conf
    }
}

/// Options of the resource.
pub fn resource(random: &mut Random) -> ResourceOpts {
    let on_no_data = random.pick(&[OnNoData::IoError, OnNoData::IoError, OnNoData::SuspendIo]);
    ResourceOpts { on_no_data, ..ResourceOpts::default() }
}

/// What the program says that has to fence the peer.
pub fn fence(random: &mut Random, kind: Kind) -> Fence {
    if kind.careful || random.percent(50) {
        Fence::Truthful
    } else {
        Fence::Any
    }
}

/// Pages that what the peer sends may take. From a generator of its own as well; few of them hold everything up that is large.
pub fn max_buffers(seed: u64) -> u32 {
    Random::new(seed ^ 0x0b0f_fe25).pick(&[2048, 2048, 2048, 2048, 8000, 512, 256])
}

/// Number of volumes. From a generator of its own: the runs with one are as they were before there were any with more.
pub fn volumes(seed: u64, kind: Kind, percent: u64) -> u8 {
    let mut random = Random::new(seed ^ 0x0b01_00e5);
    // Two Primaries must not lose each other for any of the volumes.
    let several = random.percent(percent) && !kind.dual;
    if several {
        random.pick(&[2, 2, 3])
    } else {
        1
    }
}
