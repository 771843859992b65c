// SPDX-License-Identifier: GPL-2.0
//! The module's parameters, checked.

use crate::linux::param;
use kernel::prelude::*;

pub(crate) use crate::linux::param::{disable_sendpage, proc_details};

/// Checks what can be checked when the module is loaded.
///
/// # Errors
/// `EINVAL`, with a line in the log.
// spec: proc-and-sysfs 4
pub(crate) fn check() -> Result {
    let minor_count = param::minor_count();
    if !(1..=255).contains(&minor_count) {
        pr_err!("minor_count is {}, it must be between 1 and 255\n", minor_count);
        return Err(EINVAL);
    }
    Ok(())
}
