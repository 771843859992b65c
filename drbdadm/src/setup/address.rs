// SPDX-License-Identifier: GPL-2.0
//! Network addresses of the command line as the kernel takes them.
//!
//! spec: commands 3.1, netlink 1.2

use crate::failure::Failure;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Port when none is given.
const DEFAULT_PORT: u16 = 7788;
const AF_INET: u16 = nix::libc::AF_INET as u16;
const AF_INET6: u16 = nix::libc::AF_INET6 as u16;
/// Sockets direct protocol over InfiniBand.
const AF_INET_SDP: u16 = 27;

/// Reads `[FAMILY:]ADDRESS[:PORT]` and gives the bytes of a socket address.
///
/// # Errors
/// Exit code 20.
pub fn parse(text: &str) -> Result<Vec<u8>, Failure> {
    let bad = |why: &str| Failure::new(20, format!("'{text}' is no address: {why}"));
    let families = ["ipv4", "ipv6", "sdp", "ssocks"];
    let split = text.split_once(':').filter(|(word, _)| families.contains(word));
    let (family, rest) = split.unwrap_or(("ipv4", text));
    match family {
        "ipv6" => {
            let (ip, tail) = rest
                .strip_prefix('[')
                .and_then(|rest| rest.split_once(']'))
                .ok_or_else(|| bad("expected ipv6:[ADDRESS]:PORT"))?;
            let port = port_of(tail.strip_prefix(':')).ok_or_else(|| bad("the port is a number from 1 to 65535"))?;
            let (ip, scope) = match ip.split_once('%') {
                Some((ip, scope)) => (ip, scope_of(scope).ok_or_else(|| bad("there is no such interface"))?),
                None => (ip, 0),
            };
            let ip: Ipv6Addr = ip.parse().map_err(|_| bad("not an IPv6 address"))?;
            Ok(ipv6(ip, port, scope))
        }
        "ssocks" => Err(bad("super sockets are not available")),
        family => {
            let (ip, port) = match rest.split_once(':') {
                Some((ip, port)) => (ip, Some(port)),
                None => (rest, None),
            };
            let port = port_of(port).ok_or_else(|| bad("the port is a number from 1 to 65535"))?;
            let ip: Ipv4Addr = ip.parse().map_err(|_| bad("not an IPv4 address"))?;
            Ok(ipv4(if family == "sdp" { AF_INET_SDP } else { AF_INET }, ip, port))
        }
    }
}

/// A socket address as texts: family word and `ADDRESS:PORT`.
pub fn format(bytes: &[u8]) -> (String, String) {
    let family = bytes.first_chunk().map_or(0, |number| u16::from_ne_bytes(*number));
    let port = bytes.get(2..).and_then(|rest| rest.first_chunk()).map_or(0, |number| u16::from_be_bytes(*number));
    let ip4 = || bytes.get(4..).and_then(|rest| rest.first_chunk::<4>()).map(|ip| Ipv4Addr::from(*ip));
    let ip6 = || bytes.get(8..).and_then(|rest| rest.first_chunk::<16>()).map(|ip| Ipv6Addr::from(*ip));
    match family {
        AF_INET6 => {
            let scope =
                bytes.get(24..).and_then(|rest| rest.first_chunk()).map_or(0, |number| u32::from_ne_bytes(*number));
            let scope = if scope == 0 { String::new() } else { format!("%{}", scope_name(scope)) };
            ("ipv6".to_owned(), ip6().map_or(String::new(), |ip| format!("[{ip}{scope}]:{port}")))
        }
        AF_INET | AF_INET_SDP => {
            let word = if family == AF_INET { "ipv4" } else { "sdp" };
            (word.to_owned(), ip4().map_or(String::new(), |ip| format!("{ip}:{port}")))
        }
        _ => ("ssocks".to_owned(), ip4().map_or(String::new(), |ip| format!("{ip}:{port}"))),
    }
}

fn port_of(text: Option<&str>) -> Option<u16> {
    match text {
        None => Some(DEFAULT_PORT),
        Some(text) => text.parse().ok().filter(|port| *port > 0),
    }
}

fn scope_of(name: &str) -> Option<u32> {
    name.parse().ok().or_else(|| nix::net::if_::if_nametoindex(name).ok())
}

fn scope_name(index: u32) -> String {
    let interfaces = nix::net::if_::if_nameindex();
    let name = interfaces.ok().and_then(|list| {
        list.iter().find(|interface| interface.index() == index).map(|i| i.name().to_string_lossy().into_owned())
    });
    name.unwrap_or_else(|| index.to_string())
}

fn ipv4(family: u16, ip: Ipv4Addr, port: u16) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16);
    bytes.extend(family.to_ne_bytes());
    bytes.extend(port.to_be_bytes());
    bytes.extend(ip.octets());
    bytes.extend([0; 8]);
    bytes
}

fn ipv6(ip: Ipv6Addr, port: u16, scope: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(28);
    bytes.extend(AF_INET6.to_ne_bytes());
    bytes.extend(port.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(ip.octets());
    bytes.extend(scope.to_ne_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for (text, family, shown) in [
            ("192.168.1.11:7789", "ipv4", "192.168.1.11:7789"),
            ("ipv4:10.0.0.1", "ipv4", "10.0.0.1:7788"),
            ("sdp:10.0.0.1:1", "sdp", "10.0.0.1:1"),
            ("ipv6:[fe80::1%7777]:7789", "ipv6", "[fe80::1%7777]:7789"),
            ("ipv6:[::1]", "ipv6", "[::1]:7788"),
        ] {
            let bytes = parse(text).unwrap();
            assert_eq!(bytes.len(), if family == "ipv6" { 28 } else { 16 });
            assert_eq!(format(&bytes), (family.to_owned(), shown.to_owned()));
        }
    }

    #[test]
    fn what_is_no_address() {
        for text in ["", "drbd1:7788", "1.2.3.4:0", "1.2.3.4:x", "ipv6:::1:7788", "ipv6:[x]:1", "ssocks:1.2.3.4:1"] {
            assert_eq!(parse(text).unwrap_err().code, 20, "{text}");
        }
        assert_eq!(format(&[]), ("ssocks".to_owned(), String::new()));
    }
}
