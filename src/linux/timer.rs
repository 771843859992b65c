// SPDX-License-Identifier: GPL-2.0
//! Timers. The callback runs in softirq context.

use super::raw;

use kernel::prelude::*;
use kernel::types::Opaque;

/// What a timer does when it expires.
pub(crate) trait Expired: Send + Sync + 'static {
    /// Called in softirq context: must not sleep.
    fn expired(&self);
}

/// A one-shot timer that calls `T::expired`; arming it again from there is allowed.
///
/// Must not be dropped in atomic context: dropping waits for a running callback.
#[repr(C)]
#[pin_data(PinnedDrop)]
pub(crate) struct Timer<T: Expired> {
    #[pin]
    timer: Opaque<raw::timer_list>,
    target: T,
}

// SAFETY: The kernel's timers may be used from every thread, `T` may by bound.
unsafe impl<T: Expired> Send for Timer<T> {}
// SAFETY: As above.
unsafe impl<T: Expired> Sync for Timer<T> {}

impl<T: Expired> Timer<T> {
    /// Makes a timer that is not armed.
    pub(crate) fn new(target: T) -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: `slot` is valid memory for a timer; name and class live for ever.
            timer <- Opaque::ffi_init(|slot| unsafe {
                raw::timer_init_key(
                    slot,
                    Some(expired::<T>),
                    0,
                    c"drbd_timer".as_char_ptr(),
                    kernel::static_lock_class!().as_ptr(),
                )
            }),
            target,
        })
    }

    /// Arms it, or moves it, to expire in `ms` milliseconds. Any context.
    pub(crate) fn arm_ms(self: Pin<&Self>, ms: u32) {
        // SAFETY: Initialised by `new`; pinned, so it does not move while it is armed.
        unsafe { raw::drbd_h_mod_timer_ms(self.timer.get(), ms) };
    }
}

#[pinned_drop]
impl<T: Expired> PinnedDrop for Timer<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Initialised by `new`; waits for the callback and keeps it from being armed again.
        unsafe { raw::timer_shutdown_sync(self.timer.get()) };
    }
}

/// Called by the kernel in softirq context.
///
/// # Safety
/// `timer` is the first field of a pinned, live `Timer<T>`.
unsafe extern "C" fn expired<T: Expired>(timer: *mut raw::timer_list) {
    let timer: *const Timer<T> = timer.cast();
    // SAFETY: By the requirement; `repr(C)` puts the list first, and `drop` waits for this function.
    let timer = unsafe { &*timer };
    timer.target.expired();
}
