// SPDX-License-Identifier: GPL-2.0
//! Result numbers of the control interface, a sentence for each, and the exit codes tools make of them.
//!
//! One number carries two families: configuration results from 101 on and state results up to 4.
// spec: netlink 7, state-machine 1.5, 1.6

macro_rules! results {
    ($(#[doc = $doc:literal])* $name:ident {
        $($variant:ident = $number:literal $symbol:literal $sentence:literal,)+
    }) => {
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(i32)]
        pub enum $name {
            $(#[doc = concat!("`", $symbol, "`: ", $sentence, ".")] $variant = $number,)+
        }

        impl $name {
            /// Every result.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The result with this number.
            #[must_use]
            pub const fn from_number(number: i32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)+
                    _ => None,
                }
            }

            /// Its number.
            #[must_use]
            pub const fn number(self) -> i32 {
                self as i32
            }

            /// Its name in the interface.
            #[must_use]
            pub const fn symbol(self) -> &'static str {
                match self {
                    $(Self::$variant => $symbol,)+
                }
            }

            /// What it means, for people; without a full stop.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self {
                    $(Self::$variant => $sentence,)+
                }
            }
        }
    };
}

results! {
    /// Results of configuration requests. A variant is named as its symbol without `ERR_`.
    RetCode {
        NoError = 101 "NO_ERROR" "done",
        LocalAddr = 102 "ERR_LOCAL_ADDR" "the local address and port are already used by another connection",
        PeerAddr = 103 "ERR_PEER_ADDR" "the peer's address and port are already used by another connection",
        OpenDisk = 104 "ERR_OPEN_DISK" "the backing device cannot be opened",
        OpenMdDisk = 105 "ERR_OPEN_MD_DISK" "the meta-data device cannot be opened",
        DiskNotBdev = 107 "ERR_DISK_NOT_BDEV" "the backing device is not a block device",
        MdNotBdev = 108 "ERR_MD_NOT_BDEV" "the meta-data device is not a block device",
        DiskTooSmall = 111 "ERR_DISK_TOO_SMALL" "the backing device is too small",
        MdDiskTooSmall = 112 "ERR_MD_DISK_TOO_SMALL" "the meta-data device is too small",
        BdclaimDisk = 114 "ERR_BDCLAIM_DISK" "something else uses the backing device (mounted, another volume)",
        BdclaimMdDisk = 115 "ERR_BDCLAIM_MD_DISK" "something else uses the meta-data device (mounted, another volume)",
        MdIdxInvalid = 116 "ERR_MD_IDX_INVALID" "backing device, meta-data device and index do not go together",
        IoMdDisk = 118 "ERR_IO_MD_DISK" "reading or writing the meta-data failed",
        MdInvalid = 119 "ERR_MD_INVALID" "there is no valid meta-data; it is made with create-md",
        AuthAlg = 120 "ERR_AUTH_ALG" "the kernel does not know the algorithm of cram-hmac-alg",
        AuthAlgNd = 121 "ERR_AUTH_ALG_ND" "the algorithm of cram-hmac-alg is not a digest",
        Nomem = 122 "ERR_NOMEM" "out of memory",
        DiscardImpossible = 123 "ERR_DISCARD_IMPOSSIBLE" "a Primary cannot discard its data",
        DiskConfigured = 124 "ERR_DISK_CONFIGURED" "a disk is attached already",
        NetConfigured = 125 "ERR_NET_CONFIGURED" "a connection is configured already",
        MandatoryTag = 126 "ERR_MANDATORY_TAG" "an attribute of the request is missing or wrong",
        MinorInvalid = 127 "ERR_MINOR_INVALID" "there is no such minor",
        Intr = 129 "ERR_INTR" "interrupted by a signal",
        ResizeResync = 130 "ERR_RESIZE_RESYNC" "a volume cannot be resized during a resync",
        NoPrimary = 131 "ERR_NO_PRIMARY" "a resize needs one node to be Primary",
        ResyncAfter = 132 "ERR_RESYNC_AFTER" "resync-after names a minor that does not exist",
        ResyncAfterCycle = 133 "ERR_RESYNC_AFTER_CYCLE" "resync-after would wait for itself",
        PauseIsSet = 134 "ERR_PAUSE_IS_SET" "the resync is paused already",
        PauseIsClear = 135 "ERR_PAUSE_IS_CLEAR" "the resync is not paused",
        PacketNr = 137 "ERR_PACKET_NR" "unknown request",
        NoDisk = 138 "ERR_NO_DISK" "no disk is attached",
        NotProtoC = 139 "ERR_NOT_PROTO_C" "this needs protocol C",
        NomemBitmap = 140 "ERR_NOMEM_BITMAP" "out of memory for the bitmap",
        IntegrityAlg = 141 "ERR_INTEGRITY_ALG" "the kernel does not know the algorithm of data-integrity-alg",
        IntegrityAlgNd = 142 "ERR_INTEGRITY_ALG_ND" "the algorithm of data-integrity-alg is not a digest",
        CpuMaskParse = 143 "ERR_CPU_MASK_PARSE" "the CPU mask is not a hexadecimal number",
        CsumsAlg = 144 "ERR_CSUMS_ALG" "the kernel does not know the algorithm of csums-alg",
        CsumsAlgNd = 145 "ERR_CSUMS_ALG_ND" "the algorithm of csums-alg is not a digest",
        VerifyAlg = 146 "ERR_VERIFY_ALG" "the kernel does not know the algorithm of verify-alg",
        VerifyAlgNd = 147 "ERR_VERIFY_ALG_ND" "the algorithm of verify-alg is not a digest",
        CsumsResyncRunning = 148 "ERR_CSUMS_RESYNC_RUNNING" "csums-alg cannot be changed during a resync",
        VerifyRunning = 149 "ERR_VERIFY_RUNNING" "verify-alg cannot be changed during a verification",
        DataNotCurrent = 150 "ERR_DATA_NOT_CURRENT" "the disk does not hold the data the applications saw last",
        Connected = 151 "ERR_CONNECTED" "the resource must not be connected for this",
        Perm = 152 "ERR_PERM" "permission denied",
        NeedApv93 = 153 "ERR_NEED_APV_93" "the peer is too old for this: protocol version 93 is needed",
        StonithAndProtA = 154 "ERR_STONITH_AND_PROT_A" "fencing resource-and-stonith does not work with protocol A",
        CongNotProtoA = 155 "ERR_CONG_NOT_PROTO_A" "an on-congestion policy other than block needs protocol A",
        PicAfterDep = 156 "ERR_PIC_AFTER_DEP" "the resync stays paused: it waits for another one",
        PicPeerDep = 157 "ERR_PIC_PEER_DEP" "the resync stays paused: the peer holds it",
        ResNotKnown = 158 "ERR_RES_NOT_KNOWN" "there is no such resource",
        ResInUse = 159 "ERR_RES_IN_USE" "the resource still has volumes",
        MinorConfigured = 160 "ERR_MINOR_CONFIGURED" "the volume is still in use: attached or Primary",
        MinorOrVolumeExists = 161 "ERR_MINOR_OR_VOLUME_EXISTS" "the minor or the volume exists already",
        InvalidRequest = 162 "ERR_INVALID_REQUEST" "the request makes no sense",
        NeedApv100 = 163 "ERR_NEED_APV_100" "the peer is too old for this: protocol version 100 is needed",
        NeedAllowTwoPri = 164 "ERR_NEED_ALLOW_TWO_PRI" "both nodes are Primary, allow-two-primaries is needed",
        MdUnclean = 165 "ERR_MD_UNCLEAN" "the activity log must be applied first (drbdmeta apply-al)",
        MdLayoutConnected = 166 "ERR_MD_LAYOUT_CONNECTED" "the activity log can only be laid out anew while connected",
        MdLayoutTooBig = 167 "ERR_MD_LAYOUT_TOO_BIG" "the activity log would be too large",
        MdLayoutTooSmall = 168 "ERR_MD_LAYOUT_TOO_SMALL" "the activity log would be too small",
        MdLayoutNoFit = 169 "ERR_MD_LAYOUT_NO_FIT" "the activity log does not fit into the meta-data area",
        ImplicitShrink = 170 "ERR_IMPLICIT_SHRINK" "the volume would become smaller, which needs an explicit size",
    }
}

results! {
    /// Results of state changes; from 1 on they mean success. A variant is named as its symbol without `SS_`.
    StateResult {
        CwNoNeed = 4 "SS_CW_NO_NEED" "the peer need not be asked any more",
        CwSuccess = 3 "SS_CW_SUCCESS" "the peer has agreed",
        NothingToDo = 2 "SS_NOTHING_TO_DO" "there is nothing to change",
        Success = 1 "SS_SUCCESS" "done",
        UnknownError = 0 "SS_UNKNOWN_ERROR" "the state change came to no result",
        TwoPrimaries = -1 "SS_TWO_PRIMARIES" "both nodes would be Primary",
        NoUpToDateDisk = -2 "SS_NO_UP_TO_DATE_DISK" "a Primary needs access to up-to-date data",
        NoLocalDisk = -4 "SS_NO_LOCAL_DISK" "a resync needs a disk on this node",
        NoRemoteDisk = -5 "SS_NO_REMOTE_DISK" "a resync needs a disk on the peer",
        ConnectedOutdates = -6 "SS_CONNECTED_OUTDATES" "a connected volume cannot be outdated",
        PrimaryNop = -7 "SS_PRIMARY_NOP" "a Primary needs the peer to be outdated or fenced first",
        ResyncRunning = -8 "SS_RESYNC_RUNNING" "a resync or a verification is running already",
        AlreadyStandalone = -9 "SS_ALREADY_STANDALONE" "the connection is StandAlone already",
        CwFailedByPeer = -10 "SS_CW_FAILED_BY_PEER" "the peer has refused",
        IsDiskless = -11 "SS_IS_DISKLESS" "the volume has no disk",
        DeviceInUse = -12 "SS_DEVICE_IN_USE" "the device is held open by somebody",
        NoNetConfig = -13 "SS_NO_NET_CONFIG" "no connection is configured",
        NoVerifyAlg = -14 "SS_NO_VERIFY_ALG" "verify-alg is not set",
        NeedConnection = -15 "SS_NEED_CONNECTION" "this needs a connection to the peer",
        LowerThanOutdated = -16 "SS_LOWER_THAN_OUTDATED" "the disk is in a worse state than Outdated already",
        NotSupported = -17 "SS_NOT_SUPPORTED" "the peer is too old for this",
        InTransientState = -18 "SS_IN_TRANSIENT_STATE" "another state change is under way",
        ConcurrentStChg = -19 "SS_CONCURRENT_ST_CHG" "the peer is changing its state at the same time",
        OVolPeerPri = -20 "SS_O_VOL_PEER_PRI" "the peer is Primary on another volume of the resource",
        OutdateWoConn = -21 "SS_OUTDATE_WO_CONN" "outdating the peer needs a connection to it",
    }
}

impl StateResult {
    /// Whether the change was made or not needed.
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.number() >= 1
    }
}

/// The sentence for any result number; `None` for numbers nobody knows.
#[must_use]
pub fn result_sentence(number: i32) -> Option<&'static str> {
    RetCode::from_number(number)
        .map(RetCode::sentence)
        .or_else(|| StateResult::from_number(number).map(StateResult::sentence))
}

/// The exit code of a tool that got this result.
// spec: netlink 7, commands 3.3
#[must_use]
pub fn exit_code(number: i32) -> u8 {
    if let Some(code) = RetCode::from_number(number) {
        return if code == RetCode::NoError { 0 } else { 10 };
    }
    match StateResult::from_number(number) {
        Some(result) if result.is_success() => 0,
        Some(StateResult::NoUpToDateDisk) => 17,
        Some(StateResult::LowerThanOutdated) => 5,
        Some(StateResult::NoLocalDisk) => 16,
        Some(_) => 11,
        None => 20,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_results() {
        let unused = [106, 109, 110, 113, 117, 128, 136];
        for number in 101..=170 {
            assert_eq!(RetCode::from_number(number).is_none(), unused.contains(&number), "{number}");
        }
        assert_eq!(RetCode::from_number(100), None);
        assert_eq!(RetCode::from_number(171), None);
        for (number, symbol) in [
            (102, "ERR_LOCAL_ADDR"),
            (118, "ERR_IO_MD_DISK"),
            (126, "ERR_MANDATORY_TAG"),
            (138, "ERR_NO_DISK"),
            (150, "ERR_DATA_NOT_CURRENT"),
            (158, "ERR_RES_NOT_KNOWN"),
            (162, "ERR_INVALID_REQUEST"),
            (170, "ERR_IMPLICIT_SHRINK"),
        ] {
            assert_eq!(RetCode::from_number(number).unwrap().symbol(), symbol);
        }
    }

    #[test]
    fn exit_codes() {
        for (number, exit) in [(101, 0), (158, 10), (4, 0), (1, 0), (0, 11), (-1, 11), (-2, 17), (-4, 16), (-16, 5)] {
            assert_eq!(exit_code(number), exit, "{number}");
        }
        for number in [-3, -22, 5, 100, 106, 171, i32::MIN, i32::MAX] {
            assert_eq!(exit_code(number), 20, "{number}");
        }
    }

    #[test]
    fn every_result_has_a_sentence_of_its_own() {
        let sentences: std::collections::BTreeSet<_> = RetCode::ALL.iter().map(|code| code.sentence()).collect();
        assert_eq!(sentences.len(), RetCode::ALL.len());
        for result in StateResult::ALL {
            assert_eq!(StateResult::from_number(result.number()), Some(*result));
            assert_eq!(result_sentence(result.number()), Some(result.sentence()));
        }
    }
}
