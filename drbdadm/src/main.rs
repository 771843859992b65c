// SPDX-License-Identifier: GPL-2.0
//! The user tools: `drbdadm`, `drbdsetup` and `drbdmeta`, one program that acts by the name it is called with.
//!
//! * `drbdmeta` works on the meta data of a disk ([`meta`]).
//! * `drbdsetup` asks the kernel one thing over generic netlink ([`setup`]).
//! * `drbdadm` knows the configuration and turns resources into such steps ([`adm`]).
//!
//! Nothing here contacts anything but the kernel of this machine, and nothing waits for an answer where no terminal is.
#![forbid(unsafe_code)]
// A program: nothing can be reached from outside, `pub(crate)` everywhere would be noise.
#![allow(unreachable_pub)]

mod adm;
mod clock;
mod config;
mod confirm;
mod failure;
mod getopt;
mod gi;
mod meta;
mod minor_lock;
mod options;
mod proc_drbd;
mod setup;
mod units;

fn main() {
    let mut words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    let program = words.next().unwrap_or_default();
    let words: Vec<_> = words.collect();
    let base = program.rsplit('/').next().unwrap_or_default();
    let code = match base {
        "drbdmeta" => meta::main(&words),
        "drbdsetup" | "drbdsetup-84" => setup::main(&program, &words),
        "drbdadm" | "drbdadm-84" => adm::main(&program, &words),
        _ => {
            eprintln!("{program}: call this program as drbdadm, drbdsetup or drbdmeta");
            20
        }
    };
    std::process::exit(code);
}
