// SPDX-License-Identifier: GPL-2.0
//! The module's parameters. They are defined in C, because `module!` knows neither strings nor sysfs files.

// spec: proc-and-sysfs 4

use super::raw;
use kernel::prelude::*;

/// Size in bytes of the path of the helper program, with its NUL.
pub(crate) const HELPER_PATH_BYTES: usize = 80;

/// Number of devices that memory pools are sized for, as given: the caller checks the range 1..=255.
pub(crate) fn minor_count() -> u32 {
    // SAFETY: reads a variable that never changes after the module was loaded.
    unsafe { raw::drbd_h_param_minor_count() }
}

/// True: copy all data into sockets.
pub(crate) fn disable_sendpage() -> bool {
    // SAFETY: reads one byte.
    unsafe { raw::drbd_h_param_disable_sendpage() }
}

/// True: reading from a Secondary is allowed.
pub(crate) fn allow_oos() -> bool {
    // SAFETY: reads a variable that never changes after the module was loaded.
    unsafe { raw::drbd_h_param_allow_oos() }
}

/// Level of detail in `/proc/drbd`.
pub(crate) fn proc_details() -> i32 {
    // SAFETY: reads one word.
    unsafe { raw::drbd_h_param_proc_details() }
}

/// Which kinds of requests are made to fail, a bit each.
#[inline]
pub(crate) fn enable_faults() -> u32 {
    // SAFETY: reads one word.
    unsafe { raw::drbd_h_param_enable_faults() }
}

/// On which minors, a bit each; 0 for all.
pub(crate) fn fault_devs() -> u32 {
    // SAFETY: reads one word.
    unsafe { raw::drbd_h_param_fault_devs() }
}

/// How many of them, 0..=100 percent.
pub(crate) fn fault_rate() -> u32 {
    // SAFETY: reads one word.
    unsafe { raw::drbd_h_param_fault_rate() }
}

/// One was made to fail.
pub(crate) fn count_fault() {
    // SAFETY: writes one word.
    unsafe { raw::drbd_h_param_count_fault() };
}

/// Copies the path of the program that is run for events. Sleeps.
pub(crate) fn usermode_helper(path: &mut [u8; HELPER_PATH_BYTES]) -> Result<&CStr> {
    // SAFETY: `path` is writable for its length; the C side terminates it.
    unsafe { raw::drbd_h_param_usermode_helper(path.as_mut_ptr().cast(), path.len()) };
    CStr::from_bytes_until_nul(path).map_err(|_| EINVAL)
}

/// Checksum over the module's sources, made by the build; empty when the kernel keeps none.
pub(crate) fn source_version() -> &'static CStr {
    // SAFETY: reads a pointer that never changes after the module was loaded.
    let text = unsafe { raw::drbd_h_source_version() };
    if text.is_null() {
        return c"";
    }
    // SAFETY: a NUL-terminated string that lives as long as the module.
    unsafe { CStr::from_char_ptr(text) }
}
