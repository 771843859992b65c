// SPDX-License-Identifier: GPL-2.0
//! Keeping the module loaded.

use super::raw;
use kernel::prelude::*;

/// As long as this exists the module cannot be unloaded.
///
/// # Invariants
/// One reference to the module is held.
pub(crate) struct ModulePin(());

impl ModulePin {
    /// Keeps the module loaded.
    ///
    /// # Errors
    /// `EBUSY` when it is just being unloaded.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: may be called at any time while code of the module runs.
        if unsafe { raw::drbd_h_module_get() } {
            Ok(ModulePin(()))
        } else {
            Err(EBUSY)
        }
    }
}

impl Drop for ModulePin {
    fn drop(&mut self) {
        // SAFETY: gives back the reference of the type's invariant.
        unsafe { raw::drbd_h_module_put() };
    }
}
