// SPDX-License-Identifier: GPL-2.0
//! Who sends on a socket.
//!
//! Whoever makes a packet and may sleep sends it on the spot, as long as the socket takes it without waiting: that saves a
//! wake-up and a context switch for each. Everything else is left to the socket's thread: what became known in atomic
//! context, and the rest of what the socket did not take. One at a time sends; who comes meanwhile leaves the work to the one
//! that is at it.

use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Full};
use kernel::sync::{new_mutex, Mutex};

/// The sending side of a socket.
#[pin_data]
pub(crate) struct Outlet<T> {
    /// Something may have become ready since whoever is sending looked.
    pending: Atomic<bool>,
    #[pin]
    state: Mutex<T>,
}

impl<T: Unpin> Outlet<T> {
    /// Around `state`.
    pub(crate) fn new(state: T) -> impl PinInit<Self> {
        pin_init!(Self {
            pending: Atomic::new(false),
            state <- new_mutex!(state, "drbd::Outlet::state"),
        })
    }

    /// Calls `send`, now or, by whoever is sending, soon. Process context.
    pub(crate) fn offer(&self, mut send: impl FnMut(&mut T)) {
        self.pending.xchg(true, Full);
        // Who does not get the state has told its holder, who looks again after letting go of it.
        while let Some(mut state) = self.state.try_lock() {
            self.pending.xchg(false, Full);
            send(&mut state);
            drop(state);
            if !self.pending.xchg(false, Full) {
                return;
            }
        }
    }

    /// Calls `send`, again and again while others leave their work to it. Sleeps.
    pub(crate) fn take(&self, mut send: impl FnMut(&mut T)) {
        loop {
            let mut state = self.state.lock();
            self.pending.xchg(false, Full);
            send(&mut state);
            drop(state);
            if !self.pending.xchg(false, Full) {
                return;
            }
        }
    }
}
