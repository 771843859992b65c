//! How long things may take.
//!
//! Limits are written for the stock kernel, emulated on a busy host. The debug kernel executes several times as many
//! instructions for the same work and its machine has one processor of the host, so with it every limit on the way to a
//! machine is stretched here, and nowhere else. Times that are part of what is tested are not.

use crate::paths::Paths;
use std::sync::OnceLock;
use std::time::Duration;

/// How much longer everything may take with the debug kernel.
const DEBUG_KERNEL: u32 = 5;

/// A limit, longer with the debug kernel.
pub fn stretched(limit: Duration) -> Duration {
    limit.saturating_mul(stretch())
}

/// How many times as long as on the stock kernel everything may take.
pub fn stretch() -> u32 {
    if is_debug_kernel() {
        DEBUG_KERNEL
    } else {
        1
    }
}

/// Whether the machines run the debug kernel.
pub fn is_debug_kernel() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    // Without the lab's files nothing boots.
    *ANSWER.get_or_init(|| Paths::from_env().is_ok_and(|paths| paths.debug_kernel()))
}
