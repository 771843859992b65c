// SPDX-License-Identifier: GPL-2.0
//! The commands of the control interface and the header every message carries.
// spec: netlink 1.1, 2, 5

use super::nest::Nest;
use super::table::{
    CfgContext, ConnectionStatistics, DetachParms, DeviceStatistics, DisconnectParms, DiskConf, NetConf, NewCUuidParms,
    PeerDeviceStatistics, ResizeParms, ResourceOpts, ResourceStatistics, SetRoleParms, StartOvParms,
};
use crate::wire::BufferTooSmall;

/// Value of [`DrbdHeader::minor`] in messages that are not about one minor.
pub const MINOR_NONE: u32 = 0xffff_ffff;

/// Request flag: options that are not in the request are set to their defaults first.
pub const REQUEST_SET_DEFAULTS: u32 = 1;

/// The header between the generic-netlink header and the attributes, in host byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrbdHeader {
    /// The minor the message is about, or [`MINOR_NONE`].
    pub minor: u32,
    /// Request: its flags. Anything the module sends: the result, which is never 0.
    pub flags_or_ret: i32,
}

impl DrbdHeader {
    /// Its length in bytes.
    pub const LEN: usize = 8;

    /// Reads the header and returns it with the attributes behind it; `None` when the message is too short.
    #[must_use]
    pub fn decode(message: &[u8]) -> Option<(Self, &[u8])> {
        let (minor, rest) = message.split_first_chunk::<4>()?;
        let (flags_or_ret, attributes) = rest.split_first_chunk::<4>()?;
        let header = Self { minor: u32::from_ne_bytes(*minor), flags_or_ret: i32::from_ne_bytes(*flags_or_ret) };
        Some((header, attributes))
    }

    /// Writes the header to the start of `buffer` and returns its length.
    ///
    /// # Errors
    /// [`BufferTooSmall`] when the buffer has less than [`DrbdHeader::LEN`] bytes.
    pub fn encode(&self, buffer: &mut [u8]) -> Result<usize, BufferTooSmall> {
        let (minor, rest) = buffer.split_first_chunk_mut::<4>().ok_or(BufferTooSmall)?;
        let flags_or_ret = rest.first_chunk_mut::<4>().ok_or(BufferTooSmall)?;
        *minor = self.minor.to_ne_bytes();
        *flags_or_ret = self.flags_or_ret.to_ne_bytes();
        Ok(Self::LEN)
    }

    /// The flags of a request.
    #[must_use]
    pub fn flags(&self) -> u32 {
        u32::from_ne_bytes(self.flags_or_ret.to_ne_bytes())
    }
}

/// How a request names the object it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Not at all, or only as a filter.
    None,
    /// By the header's minor.
    Minor,
    /// By the resource name in the context.
    Resource,
    /// By both addresses in the context.
    Connection,
}

/// One row of the command table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandSpec {
    /// The command.
    pub command: Command,
    /// Its number in the generic-netlink header.
    pub number: u8,
    /// Its name.
    pub name: &'static str,
    /// Needs administrator rights.
    pub admin: bool,
    /// Can be asked for one object, with one reply.
    pub single: bool,
    /// Can be asked for a list.
    pub dump: bool,
    /// Is only sent by the module.
    pub notification: bool,
    /// How a single request names its object.
    pub need: Need,
    /// Highest top-level attribute number of a request.
    pub max_attribute: u16,
    /// Success is a positive state result, not `NO_ERROR`.
    pub state_result: bool,
}

/// How a command is used; sets three columns of [`CommandSpec`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Single,
    SingleOrDump,
    Dump,
    Notification,
}

macro_rules! commands {
    ($(
        $number:literal $command:ident $name:literal,
        $admin:literal, $mode:ident, $need:ident, $max:expr, $state:literal;
    )+) => {
        /// A command, by its number in the generic-netlink header.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Command {
            $(#[doc = concat!("`", $name, "`.")] $command = $number,)+
        }

        /// Every command, by number.
        pub const COMMANDS: &[CommandSpec] = &[$(
            CommandSpec {
                command: Command::$command,
                number: $number,
                name: $name,
                admin: $admin,
                single: matches!(Mode::$mode, Mode::Single | Mode::SingleOrDump),
                dump: matches!(Mode::$mode, Mode::Dump | Mode::SingleOrDump),
                notification: matches!(Mode::$mode, Mode::Notification),
                need: Need::$need,
                max_attribute: $max,
                state_result: $state,
            },
        )+];

        impl Command {
            /// The command with this number.
            #[must_use]
            pub const fn from_number(number: u8) -> Option<Self> {
                match number {
                    $($number => Some(Self::$command),)+
                    _ => None,
                }
            }
        }
    };
}

commands! {
    1 Event "EVENT", false, Notification, None, 0, false;
    2 GetStatus "GET_STATUS", false, SingleOrDump, Minor, CfgContext::NUMBER, false;
    5 NewMinor "NEW_MINOR", true, Single, Resource, CfgContext::NUMBER, false;
    6 DelMinor "DEL_MINOR", true, Single, Minor, CfgContext::NUMBER, false;
    7 NewResource "NEW_RESOURCE", true, Single, None, ResourceOpts::NUMBER, false;
    8 DelResource "DEL_RESOURCE", true, Single, Resource, CfgContext::NUMBER, false;
    9 ResourceOpts "RESOURCE_OPTS", true, Single, Resource, ResourceOpts::NUMBER, false;
    10 Connect "CONNECT", true, Single, Resource, NetConf::NUMBER, true;
    11 Disconnect "DISCONNECT", true, Single, Connection, DisconnectParms::NUMBER, false;
    12 Attach "ATTACH", true, Single, Minor, DiskConf::NUMBER, false;
    13 Resize "RESIZE", true, Single, Minor, ResizeParms::NUMBER, false;
    14 Primary "PRIMARY", true, Single, Minor, SetRoleParms::NUMBER, true;
    15 Secondary "SECONDARY", true, Single, Minor, SetRoleParms::NUMBER, true;
    16 NewCUuid "NEW_C_UUID", true, Single, Minor, NewCUuidParms::NUMBER, false;
    17 StartOv "START_OV", true, Single, Minor, StartOvParms::NUMBER, true;
    18 Detach "DETACH", true, Single, Minor, DetachParms::NUMBER, true;
    19 Invalidate "INVALIDATE", true, Single, Minor, CfgContext::NUMBER, true;
    20 InvalPeer "INVAL_PEER", true, Single, Minor, CfgContext::NUMBER, true;
    21 PauseSync "PAUSE_SYNC", true, Single, Minor, CfgContext::NUMBER, false;
    22 ResumeSync "RESUME_SYNC", true, Single, Minor, CfgContext::NUMBER, false;
    23 SuspendIo "SUSPEND_IO", true, Single, Minor, CfgContext::NUMBER, true;
    24 ResumeIo "RESUME_IO", true, Single, Minor, CfgContext::NUMBER, true;
    25 Outdate "OUTDATE", true, Single, Minor, CfgContext::NUMBER, true;
    26 GetTimeoutType "GET_TIMEOUT_TYPE", true, Single, Minor, CfgContext::NUMBER, false;
    27 Down "DOWN", true, Single, Resource, CfgContext::NUMBER, false;
    28 ChgDiskOpts "CHG_DISK_OPTS", true, Single, Minor, DiskConf::NUMBER, false;
    29 ChgNetOpts "CHG_NET_OPTS", true, Single, Connection, NetConf::NUMBER, false;
    30 GetResources "GET_RESOURCES", false, Dump, None, ResourceStatistics::NUMBER, false;
    31 GetDevices "GET_DEVICES", false, Dump, None, DeviceStatistics::NUMBER, false;
    32 GetConnections "GET_CONNECTIONS", false, Dump, None, ConnectionStatistics::NUMBER, false;
    33 GetPeerDevices "GET_PEER_DEVICES", false, Dump, None, PeerDeviceStatistics::NUMBER, false;
    34 ResourceState "RESOURCE_STATE", false, Notification, None, 0, false;
    35 DeviceState "DEVICE_STATE", false, Notification, None, 0, false;
    36 ConnectionState "CONNECTION_STATE", false, Notification, None, 0, false;
    37 PeerDeviceState "PEER_DEVICE_STATE", false, Notification, None, 0, false;
    38 GetInitialState "GET_INITIAL_STATE", false, Dump, None, CfgContext::NUMBER, false;
    40 Helper "HELPER", false, Notification, None, 0, false;
    41 InitialStateDone "INITIAL_STATE_DONE", false, Notification, None, 0, false;
}

impl Command {
    /// Its number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// Its row of the table; `None` never happens, every command has one.
    #[must_use]
    pub fn spec(self) -> Option<&'static CommandSpec> {
        COMMANDS.iter().find(|spec| spec.command == self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_its_row() {
        assert_eq!(COMMANDS.len(), 38);
        for spec in COMMANDS {
            assert_eq!(Command::from_number(spec.number), Some(spec.command));
            assert_eq!(spec.command.number(), spec.number);
            assert_eq!(spec.command.spec(), Some(spec));
            assert_ne!(spec.notification, spec.single || spec.dump, "{}", spec.name);
        }
        for unused in [0, 3, 4, 39, 42, 255] {
            assert_eq!(Command::from_number(unused), None);
        }
    }

    #[test]
    fn addressing_is_that_of_the_interface() {
        let with = |need| -> Vec<u8> {
            COMMANDS.iter().filter(|spec| spec.single && spec.need == need).map(|spec| spec.number).collect()
        };
        let minor = [2, 6, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 28];
        assert_eq!(with(Need::Minor), minor);
        assert_eq!(with(Need::Resource), [5, 8, 9, 10, 27]);
        assert_eq!(with(Need::Connection), [11, 29]);
        assert_eq!(with(Need::None), [7]);
    }

    #[test]
    fn everything_but_looking_needs_rights() {
        for spec in COMMANDS {
            assert_eq!(spec.admin, spec.single && spec.command != Command::GetStatus, "{}", spec.name);
        }
        let max = |number| Command::from_number(number).unwrap().spec().unwrap().max_attribute;
        assert_eq!([2, 7, 10, 11, 12, 13, 14, 16, 17, 18, 26, 29].map(max), [2, 4, 5, 12, 3, 7, 6, 10, 9, 13, 2, 5]);
        assert_eq!([30, 31, 32, 33, 38].map(max), [19, 20, 21, 22, 2]);
    }

    #[test]
    fn header_round_trip() {
        let header = DrbdHeader { minor: MINOR_NONE, flags_or_ret: -2 };
        let mut bytes = [0; 9];
        assert_eq!(header.encode(&mut bytes), Ok(8));
        assert_eq!(DrbdHeader::decode(&bytes), Some((header, &[0][..])));
        assert_eq!(DrbdHeader::decode(&bytes[..7]), None);
        assert_eq!(header.encode(&mut bytes[..7]), Err(BufferTooSmall));
        assert_eq!(header.flags(), 0xffff_fffe);
    }
}
