// SPDX-License-Identifier: GPL-2.0
//! What `/proc/drbd` says: is the module there, which version is it, is a volume attached.

/// The file.
pub const PATH: &str = "/proc/drbd";

/// Is the module loaded?
pub fn is_loaded() -> bool {
    std::path::Path::new(PATH).exists()
}

/// Has the running kernel a disk attached to this minor?
pub fn is_attached(minor: u32) -> bool {
    std::fs::read_to_string(PATH).is_ok_and(|text| is_attached_in(&text, minor))
}

/// The version of the loaded module as `0xMMmmpp`; 0 when none is loaded.
pub fn version_code() -> u32 {
    std::fs::read_to_string(PATH).ok().and_then(|text| version_code_in(&text)).unwrap_or(0)
}

fn is_attached_in(text: &str, minor: u32) -> bool {
    let key = format!("{minor}:");
    let line = text.lines().find(|line| line.trim_start().starts_with(&key));
    let disks = line.and_then(|line| line.split_whitespace().find_map(|word| word.strip_prefix("ds:")));
    disks.and_then(|disks| disks.split('/').next()).is_some_and(|own| own != "Diskless")
}

fn version_code_in(text: &str) -> Option<u32> {
    let mut words = text.split_whitespace().skip_while(|word| *word != "version:");
    let version = words.nth(1)?;
    let mut code = 0_u32;
    let mut parts = version.split('.');
    for _ in 0..3 {
        let part: u8 = parts.next()?.parse().ok()?;
        code = (code << 8) | u32::from(part);
    }
    Some(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "version: 8.4.11 (api:1/proto:86-101)\nsrcversion: 0123456789ABCDEF0123456 \n\
        \x20 0: cs:SyncSource ro:Primary/Secondary ds:UpToDate/Inconsistent C r-----\n    ns:1 nr:0\n\
        \x20 1: cs:WFConnection ro:Secondary/Unknown ds:Diskless/DUnknown C r-----\n 2: cs:Unconfigured\n";

    #[test]
    fn attached_minors() {
        assert!(is_attached_in(TEXT, 0));
        assert!(!is_attached_in(TEXT, 1));
        assert!(!is_attached_in(TEXT, 2));
        assert!(!is_attached_in(TEXT, 3));
    }

    #[test]
    fn versions() {
        assert_eq!(version_code_in(TEXT), Some(0x08_04_0b));
        assert_eq!(version_code_in("version: 8.x"), None);
        assert_eq!(version_code_in(""), None);
    }
}
