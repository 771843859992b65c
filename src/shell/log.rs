// SPDX-License-Identifier: GPL-2.0
//! Lines for the kernel log. They begin with whom they are about: a resource, or a volume as `r0/0 drbd0`. The kernel's own
//! macros take only types of its `fmt`; these take whatever the engine can say about itself.

/// What happens.
macro_rules! log_info {
    ($($arg:tt)*) => {
        $crate::linux::log::print($crate::linux::log::Level::Info, ::core::format_args!($($arg)*))
    };
}

/// What may be wrong.
macro_rules! log_warning {
    ($($arg:tt)*) => {
        $crate::linux::log::print($crate::linux::log::Level::Warning, ::core::format_args!($($arg)*))
    };
}

/// What is wrong.
macro_rules! log_error {
    ($($arg:tt)*) => {
        $crate::linux::log::print($crate::linux::log::Level::Error, ::core::format_args!($($arg)*))
    };
}

pub(crate) use {log_error, log_info, log_warning};
