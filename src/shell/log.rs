// SPDX-License-Identifier: GPL-2.0
//! Lines for the kernel log. The kernel's own macros take only types of its `fmt`; these take whatever the engine can
//! say about itself.

/// As `pr_info!`, with a line feed.
macro_rules! log_info {
    ($($arg:tt)*) => { ::kernel::pr_info!("{}\n", ::core::format_args!($($arg)*)) };
}

/// As `pr_warn!`, with a line feed.
macro_rules! log_warning {
    ($($arg:tt)*) => { ::kernel::pr_warn!("{}\n", ::core::format_args!($($arg)*)) };
}

/// As `pr_err!`, with a line feed.
macro_rules! log_error {
    ($($arg:tt)*) => { ::kernel::pr_err!("{}\n", ::core::format_args!($($arg)*)) };
}

pub(crate) use {log_error, log_info, log_warning};
