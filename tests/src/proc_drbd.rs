//! `/proc/drbd` taken apart.
//!
//! spec: proc-and-sysfs 1

use anyhow::{bail, Context, Result};
use std::collections::HashMap;

/// One device of `/proc/drbd`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Device {
    /// Connection state.
    pub connection: String,
    /// Own role and the peer's.
    pub roles: String,
    /// Own disk state and the peer's.
    pub disks: String,
    /// The counters of the second line (`ns`, `nr`, … `oos`); those that are numbers.
    pub counters: HashMap<String, u64>,
    /// A resync that is under way.
    pub progress: Option<Progress>,
}

/// A resync that is under way.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// Part that is done in per cent.
    pub percent: f64,
    /// Still to do in KiB.
    pub left_kib: u64,
    /// To do at its start in KiB.
    pub total_kib: u64,
    /// Time left, as `0:00:12`.
    pub finish: String,
    /// KiB a second.
    pub speed_kib: u64,
}

impl Device {
    /// The device `minor` in the text of the file; an unconfigured one has the connection state `Unconfigured`.
    pub fn parse(text: &str, minor: u32) -> Result<Device> {
        let key = format!("{minor}:");
        let mut lines = text.lines().skip_while(|line| !line.trim_start().starts_with(&key));
        let Some(first) = lines.next() else {
            bail!("no minor {minor} in /proc/drbd:\n{text}");
        };
        let mut device = Device::default();
        for word in first.split_whitespace() {
            match word.split_once(':') {
                Some(("cs", value)) => value.clone_into(&mut device.connection),
                Some(("ro", value)) => value.clone_into(&mut device.roles),
                Some(("ds", value)) => value.clone_into(&mut device.disks),
                _ => (),
            }
        }
        let rest: Vec<&str> = lines.take_while(|line| line.starts_with([' ', '\t']) && !is_first(line)).collect();
        for word in rest.first().unwrap_or(&"").split_whitespace() {
            if let Some((name, value)) = word.split_once(':') {
                device.counters.extend(value.parse().ok().map(|number| (name.to_owned(), number)));
            }
        }
        device.progress = progress(&rest).with_context(|| text.to_owned())?;
        Ok(device)
    }

    /// A counter.
    pub fn counter(&self, name: &str) -> Result<u64> {
        self.counters.get(name).copied().with_context(|| format!("no counter {name} in {self:?}"))
    }
}

fn is_first(line: &str) -> bool {
    line.trim_start().split_once(": cs:").is_some_and(|(minor, _)| minor.bytes().all(|byte| byte.is_ascii_digit()))
}

fn progress(lines: &[&str]) -> Result<Option<Progress>> {
    let Some(bar) = lines.iter().find(|line| line.contains("sync'ed:")) else {
        return Ok(None);
    };
    let after = bar.split("sync'ed:").nth(1).unwrap_or_default();
    let (percent, amounts) = after.split_once('%').context("no per cent sign")?;
    let inner = amounts.trim().strip_prefix('(').and_then(|text| text.split_once(')')).context("no amounts")?;
    let unit = if inner.1.starts_with('M') { 1024 } else { 1 };
    let (left, total) = inner.0.split_once('/').context("no amounts")?;
    let mut progress = Progress {
        percent: percent.trim().parse()?,
        left_kib: left.parse::<u64>()? * unit,
        total_kib: total.parse::<u64>()? * unit,
        ..Progress::default()
    };
    if let Some(line) = lines.iter().find(|line| line.contains("finish:")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let Some(at) = words.iter().position(|&word| word == "finish:") {
            progress.finish = (*words.get(at + 1).unwrap_or(&"")).to_owned();
        }
        if let Some(at) = words.iter().position(|&word| word == "speed:") {
            progress.speed_kib = words.get(at + 1).unwrap_or(&"").replace(',', "").parse()?;
        }
    }
    Ok(Some(progress))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
version: 8.4.11 (api:1/proto:86-101)
srcversion: 0123456789ABCDEF0123456 
 0: cs:SyncSource ro:Primary/Secondary ds:UpToDate/Inconsistent C r-----
    ns:1048708 nr:0 dw:0 dr:1050000 al:8 bm:0 lo:0 pe:2 ua:0 ap:0 ep:1 wo:f oos:7339900
\t[=>..................] sync'ed: 12.6% (7164/8192)M
\tfinish: 0:11:56 speed: 10,240 (10,120) K/sec
 1: cs:Unconfigured
";

    #[test]
    fn a_device_in_a_resync() {
        let device = Device::parse(TEXT, 0).unwrap();
        assert_eq!(
            (&*device.connection, &*device.roles, &*device.disks),
            ("SyncSource", "Primary/Secondary", "UpToDate/Inconsistent")
        );
        assert_eq!((device.counter("ns").unwrap(), device.counter("oos").unwrap()), (1_048_708, 7_339_900));
        let progress = device.progress.unwrap();
        assert_eq!((progress.left_kib, progress.total_kib), (7164 << 10, 8192 << 10));
        assert_eq!((progress.percent, &*progress.finish, progress.speed_kib), (12.6, "0:11:56", 10240));
    }

    #[test]
    fn an_unconfigured_one_and_none() {
        let device = Device::parse(TEXT, 1).unwrap();
        assert_eq!((&*device.connection, device.progress), ("Unconfigured", None));
        assert!(Device::parse(TEXT, 2).is_err());
    }
}
