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
    /// Not 0: something may have become ready since whoever is sending looked. Set by anybody, and then the state is tried
    /// for; cleared only by who holds the state, before looking, and looked at after letting go of it. So whoever fails to
    /// get the state has left its work to somebody who will still see the flag.
    pending: Atomic<i32>,
    #[pin]
    state: Mutex<T>,
}

impl<T: Unpin> Outlet<T> {
    /// Around `state`.
    pub(crate) fn new(state: T) -> impl PinInit<Self> {
        pin_init!(Self {
            pending: Atomic::new(0),
            state <- new_mutex!(state, "drbd::Outlet::state"),
        })
    }

    /// Calls `send`, now or, by whoever is sending, soon. Process context.
    pub(crate) fn offer(&self, mut send: impl FnMut(&mut T)) {
        self.pending.xchg(1, Full);
        while self.is_pending() {
            let Some(mut state) = self.state.try_lock() else { return };
            self.pending.xchg(0, Full);
            send(&mut state);
        }
    }

    /// Calls `send`, again and again while others leave their work to it. Sleeps.
    pub(crate) fn take(&self, mut send: impl FnMut(&mut T)) {
        loop {
            let mut state = self.state.lock();
            self.pending.xchg(0, Full);
            send(&mut state);
            drop(state);
            if !self.is_pending() {
                return;
            }
        }
    }

    /// Looks at the flag after everything that came before is visible to others: a plain load could be early.
    fn is_pending(&self) -> bool {
        self.pending.fetch_add(0, Full) != 0
    }
}
