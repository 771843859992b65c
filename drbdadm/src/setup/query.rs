// SPDX-License-Identifier: GPL-2.0
//! Commands that ask one volume something: role, states, generation identifiers, and the text for shell scripts.
//!
//! spec: commands 3.4, netlink 8.1

use super::change::{named, Attributes};
use super::genl::{Connection, DumpEnd, Message};
use super::Call;
use crate::adm::shell_escape;
use crate::failure::Failure;
use crate::gi::GenerationIds;
use crate::meta::{LastKnown, NOTE_DIR};
use engine::netlink::{
    result_sentence, CfgContext, Command, DiskConf, DrbdHeader, Nest, NetConf, ParseMode, ResourceOpts, RetCode,
    StateInfo, MINOR_NONE,
};
use engine::state::{Conn, Disk, Role, State, Susp};
use std::fmt::Write;
use std::io::{Seek, SeekFrom};
use std::path::Path;

/// One volume, or a resource without volumes, as the kernel describes it.
#[derive(Clone, Copy, Debug)]
pub struct Item {
    /// Minor, or [`MINOR_NONE`].
    pub minor: u32,
    /// Who it is.
    pub context: CfgContext,
    /// Options of the resource.
    pub resource: Option<ResourceOpts>,
    /// Options of the disk, while attached.
    pub disk: Option<DiskConf>,
    /// Options of the connection, while there is one.
    pub net: Option<NetConf>,
    /// State and counters.
    pub info: Option<StateInfo>,
}

/// Reads a nest of a message; `None` if it is absent.
///
/// # Errors
/// Exit code 20 when it makes no sense.
pub fn nest<N: Nest>(message: &Message) -> Result<Option<N>, Failure> {
    let Some(payload) = message.nest(N::NUMBER) else { return Ok(None) };
    let mut value = N::default();
    match value.parse(payload, ParseMode::Receive) {
        Ok(_) => Ok(Some(value)),
        Err(error) => Err(Failure::new(20, format!("The kernel sent {} that makes no sense: {error:?}", N::NAME))),
    }
}

impl Item {
    /// Reads an item.
    ///
    /// # Errors
    /// As [`nest`].
    pub fn read(message: &Message) -> Result<Self, Failure> {
        Ok(Item {
            minor: message.header.minor,
            context: nest(message)?.unwrap_or_default(),
            resource: nest(message)?,
            disk: nest(message)?,
            net: nest(message)?,
            info: nest(message)?,
        })
    }

    /// Name of the resource.
    pub fn name(&self) -> String {
        self.context
            .ctx_resource_name
            .map_or(String::new(), |name| String::from_utf8_lossy(name.as_bytes()).into_owned())
    }

    /// The state, if one was sent.
    ///
    /// # Errors
    /// Exit code 20 when it has a value nobody knows.
    pub fn state(&self) -> Result<Option<(State, Susp)>, Failure> {
        self.info.map(|info| state_of(info.current_state)).transpose()
    }

    /// Generation identifiers of an attached disk.
    pub fn ids(&self) -> Option<GenerationIds> {
        let info = self.info?;
        let uuids = info.uuids?;
        let uuid = |index| uuids.u64_at(index).unwrap_or(0);
        Some(GenerationIds { uuids: [uuid(0), uuid(1), uuid(2), uuid(3)], flags: info.disk_flags? })
    }
}

/// Splits a state word.
///
/// # Errors
/// Exit code 20 when it has a value nobody knows.
pub fn state_of(word: u32) -> Result<(State, Susp), Failure> {
    State::from_word(word).map_err(|error| Failure::new(20, format!("The kernel sent an unknown state: {error}")))
}

/// StandAlone and Diskless: nothing to be said about it.
pub fn is_unconfigured(state: &State) -> bool {
    state.conn == Conn::StandAlone && state.disk == Disk::Diskless
}

/// Asks for one volume; a failure is printed and its exit code returned.
pub fn of_minor(connection: &mut Connection, minor: u32, shown: &str) -> Result<Result<Item, i32>, Failure> {
    let header = DrbdHeader { minor, flags_or_ret: 0 };
    let reply = connection.request(Command::GetStatus, header, 0, &[])?;
    let number = reply.header.flags_or_ret;
    if number != RetCode::NoError.number() {
        let sentence = result_sentence(number).unwrap_or("unknown error code");
        eprintln!("{shown}: Failure: ({number}) {sentence}");
        return Ok(Err(i32::from(engine::netlink::exit_code(number))));
    }
    Item::read(&reply).map(Ok)
}

/// Asks for all volumes, or those of a resource; `None` when there is no such resource.
pub fn list(connection: &mut Connection, resource: Option<&str>) -> Result<Option<Vec<Item>>, Failure> {
    let attributes = match resource {
        Some(name) => Attributes::context(&named(name)?)?,
        None => Attributes::none(),
    };
    let mut messages = Vec::new();
    let end = connection.dump(Command::GetStatus, attributes.as_bytes(), |message| {
        messages.push(message.clone());
        true
    })?;
    match end {
        DumpEnd::NoSuchObject => Ok(None),
        DumpEnd::Complete => messages.iter().map(Item::read).collect::<Result<_, _>>().map(Some),
    }
}

/// The volume a call is about.
fn item_of(call: &Call) -> Result<Result<Item, i32>, Failure> {
    of_minor(&mut Connection::open()?, call.minor.unwrap_or(MINOR_NONE), &call.object)
}

fn print_state(call: &Call, text: impl Fn(&State) -> String) -> Result<i32, Failure> {
    let item = match item_of(call)? {
        Ok(item) => item,
        Err(code) => return Ok(code),
    };
    match item.state()? {
        Some((state, _)) if !is_unconfigured(&state) => println!("{}", text(&state)),
        _ => println!("Unconfigured"),
    }
    Ok(0)
}

pub fn role(call: &Call) -> Result<i32, Failure> {
    print_state(call, |state| format!("{}/{}", state.role, state.peer))
}

pub fn connection_state(call: &Call) -> Result<i32, Failure> {
    print_state(call, |state| state.conn.to_string())
}

pub fn disk_state(call: &Call) -> Result<i32, Failure> {
    print_state(call, |state| format!("{}/{}", state.disk, state.pdsk))
}

fn with_ids(call: &Call, print: impl Fn(&GenerationIds)) -> Result<i32, Failure> {
    let item = match item_of(call)? {
        Ok(item) => item,
        Err(code) => return Ok(code),
    };
    match (item.state()?, item.ids()) {
        (_, Some(ids)) => {
            print(&ids);
            return Ok(0);
        }
        (Some((state, _)), None) if !is_unconfigured(&state) => eprintln!("Device has no disk"),
        _ => eprintln!("Device is unconfigured"),
    }
    Ok(1)
}

pub fn get_gi(call: &Call) -> Result<i32, Failure> {
    with_ids(call, |ids| println!("{}", ids.line()))
}

pub fn show_gi(call: &Call) -> Result<i32, Failure> {
    with_ids(call, |ids| print!("{}", ids.drawing()))
}

/// Notes where the internal meta data of an attached disk is, so that it is found after the disk has grown.
pub fn check_resize(call: &Call) -> Result<i32, Failure> {
    let item = match item_of(call)? {
        Ok(item) => item,
        Err(code) => return Ok(code),
    };
    let Some(disk) = item.disk else { return Ok(1) };
    let (minor, dir) = (i64::from(item.minor), Path::new(NOTE_DIR));
    let path = String::from_utf8_lossy(disk.backing_dev.as_bytes()).into_owned();
    let result = if disk.meta_dev_idx == -1 || disk.meta_dev_idx == -3 {
        let size = std::fs::File::open(&path).and_then(|mut device| device.seek(SeekFrom::End(0)));
        let size_bytes = size.map_err(|error| Failure::new(20, format!("{path}: {error}")))?;
        // The kernel does not tell the device's id; the one noted at create-md stays true for the same disk.
        let device_uuid =
            LastKnown::read(dir, minor).filter(|note| note.path == path).and_then(|note| note.device_uuid);
        LastKnown { size_bytes, path, device_uuid }.write(dir, minor)
    } else {
        LastKnown::remove(dir, minor)
    };
    result.map_err(|error| Failure::new(20, format!("{NOTE_DIR}: {error}")))?;
    Ok(0)
}

/// Assignments for shell scripts, one block a volume.
pub fn sh_status(call: &Call) -> Result<i32, Failure> {
    let mut connection = Connection::open()?;
    let items = match call.minor {
        Some(minor) => match of_minor(&mut connection, minor, &call.object)? {
            Ok(item) => vec![item],
            // Scripts ask about minors that do not exist yet.
            Err(_) => {
                print!("{}", sh_block(minor, None)?);
                return Ok(0);
            }
        },
        None => match list(&mut connection, call.resource_filter())? {
            Some(items) => items,
            // The errno the list ended with. spec: commands 3.5 (unknown resource)
            None => return Ok(nix::libc::ENODEV),
        },
    };
    for item in items.iter().filter(|item| item.minor != MINOR_NONE) {
        print!("{}", sh_block(item.minor, Some(item))?);
    }
    Ok(0)
}

fn sh_block(minor: u32, item: Option<&Item>) -> Result<String, Failure> {
    let mut text = format!("_minor={minor}\n");
    let name = item.map_or(String::new(), Item::name);
    if !name.is_empty() {
        let _ = writeln!(text, "_res_name={}", shell_escape(&name));
    }
    if let Some(volume) = item.and_then(|item| item.context.ctx_volume) {
        let _ = writeln!(text, "_volume={volume}");
    }
    match item.map(Item::state).transpose()?.flatten() {
        None => text += "_known=NA # not available or not yet created\n\n_cstate=Unconfigured\n_role=\n_peer=\n_disk=\n_pdsk=\n_flags_susp=\n_flags_aftr_isp=\n_flags_peer_isp=\n_flags_user_isp=\n_resynced_percent=\n",
        Some((state, _)) if is_unconfigured(&state) && state.role != Role::Primary => {
            text += "_known=Unconfigured\n\n_cstate=Unconfigured\n_role=\n_peer=\n_disk=\n_pdsk=\n_flags_susp=\n_flags_aftr_isp=\n_flags_peer_isp=\n_flags_user_isp=\n_resynced_percent=\n";
        }
        Some((state, susp)) => {
            let flag = |set: bool| if set { "1" } else { "" };
            let _ = write!(
                text,
                "_known=Configured\n\n_cstate={}\n_role={}\n_peer={}\n_disk={}\n_pdsk={}\n\n",
                state.conn, state.role, state.peer, state.disk, state.pdsk
            );
            let _ = write!(
                text,
                "_flags_susp={}\n_flags_aftr_isp={}\n_flags_peer_isp={}\n_flags_user_isp={}\n\n",
                flag(susp.any()),
                flag(state.aftr_isp),
                flag(state.peer_isp),
                flag(state.user_isp)
            );
            let percent = item.and_then(|item| item.info).and_then(|info| resynced_percent(&info));
            let _ = writeln!(text, "_resynced_percent={}", percent.unwrap_or_default());
        }
    }
    Ok(text + "\n_sh_status_process\n\n\n")
}

/// `N.N` while a resync runs. spec: proc-and-sysfs 1.3
pub fn resynced_percent(info: &StateInfo) -> Option<String> {
    let total = info.bits_rs_total.filter(|total| *total > 0)?;
    let left = info.bits_oos?.saturating_sub(info.bits_rs_failed.unwrap_or(0));
    let permille = if left > total {
        0
    } else {
        let shift = if total > u64::from(u32::MAX) { 16 } else { 10 };
        1000_u64.saturating_sub((left >> shift).saturating_mul(1000) / (1 + (total >> shift)))
    };
    Some(format!("{}.{}", permille / 10, permille % 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages() {
        let info = |total, oos| StateInfo {
            bits_rs_total: Some(total),
            bits_oos: Some(oos),
            bits_rs_failed: Some(0),
            ..StateInfo::default()
        };
        for (total, oos, text) in
            [(2_097_152, 1_834_975, "12.6"), (2_097_152, 0, "100.0"), (1000, 2000, "0.0"), (1 << 33, 1 << 32, "50.1")]
        {
            assert_eq!(resynced_percent(&info(total, oos)).unwrap(), text, "{total} {oos}");
        }
        assert_eq!(resynced_percent(&StateInfo::default()), None);
    }

    #[test]
    fn a_volume_for_shell_scripts() {
        let state = State {
            conn: Conn::Connected,
            role: Role::Primary,
            peer: Role::Secondary,
            disk: Disk::UpToDate,
            pdsk: Disk::UpToDate,
            ..State::initial(Conn::Connected)
        };
        let item = Item {
            minor: 3,
            context: CfgContext { ctx_volume: Some(1), ..named("r 0").unwrap() },
            resource: None,
            disk: None,
            net: None,
            info: Some(StateInfo {
                current_state: state.word(Susp { user: true, ..Susp::default() }),
                ..StateInfo::default()
            }),
        };
        assert_eq!(
            sh_block(3, Some(&item)).unwrap(),
            "_minor=3\n_res_name=r\\ 0\n_volume=1\n_known=Configured\n\n_cstate=Connected\n_role=Primary\n_peer=Secondary\n\
             _disk=UpToDate\n_pdsk=UpToDate\n\n_flags_susp=1\n_flags_aftr_isp=\n_flags_peer_isp=\n_flags_user_isp=\n\n\
             _resynced_percent=\n\n_sh_status_process\n\n\n"
        );
        assert!(sh_block(9, None).unwrap().starts_with("_minor=9\n_known=NA # not available"));
    }
}
