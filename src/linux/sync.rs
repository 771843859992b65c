// SPDX-License-Identifier: GPL-2.0
//! Locks against interrupts, and waiting.
//!
//! [`IrqLock`] is offered in closure form only, so that critical sections nest by construction and interrupts come
//! back on in the right order. Nothing that sleeps or allocates may happen inside.
//!
//! Kernel threads wait in the idle state: not interruptible, no part of the load average, no hung-task warning.

use super::raw;
use core::cell::UnsafeCell;
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Full};
use kernel::sync::LockClassKey;
use kernel::types::Opaque;

/// A spinlock that is taken with interrupts off. Usable in every context.
#[pin_data]
pub(crate) struct IrqLock<T> {
    #[pin]
    lock: Opaque<raw::spinlock_t>,
    data: UnsafeCell<T>,
}

// SAFETY: Only the holder of the lock reaches the data, on whatever CPU it runs.
unsafe impl<T: Send> Sync for IrqLock<T> {}
// SAFETY: The lock has no owner while it can be moved; the data may be sent by bound.
unsafe impl<T: Send> Send for IrqLock<T> {}

impl<T> IrqLock<T> {
    /// Makes a lock around `value`; `name` and `class` are for lockdep.
    pub(crate) fn new(value: T, name: &'static CStr, class: Pin<&'static LockClassKey>) -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: `slot` is valid memory for a spinlock, name and class live for ever.
            lock <- Opaque::ffi_init(|slot| unsafe { raw::__spin_lock_init(slot, name.as_char_ptr(), class.as_ptr()) }),
            data: UnsafeCell::new(value),
        })
    }

    /// Runs `critical` with the lock held and interrupts off on this CPU. Not recursive.
    #[inline]
    pub(crate) fn with<R>(&self, critical: impl FnOnce(&mut T) -> R) -> R {
        // SAFETY: The lock was initialised by `new`, the only constructor.
        let flags = unsafe { raw::drbd_h_spin_lock_irqsave(self.lock.get()) };
        // SAFETY: The lock is held until the call below, so this is the only reference.
        let result = critical(unsafe { &mut *self.data.get() });
        // SAFETY: Taken above by this CPU, `flags` are from there.
        unsafe { raw::drbd_h_spin_unlock_irqrestore(self.lock.get(), flags) };
        result
    }
}

/// Declares a lock with its own lockdep class: `new_irq_lock!(value, c"name")`.
#[macro_export]
macro_rules! new_irq_lock {
    ($value:expr, $name:literal) => {
        $crate::linux::sync::IrqLock::new($value, $name, ::kernel::static_lock_class!())
    };
}
pub(crate) use new_irq_lock;

/// The wait was ended by a signal to the waiting task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Interrupted;

/// A queue of tasks that wait for conditions.
#[pin_data]
pub(crate) struct WaitQueue {
    #[pin]
    head: Opaque<raw::wait_queue_head>,
}

// SAFETY: A wait queue head has its own lock.
unsafe impl Sync for WaitQueue {}
// SAFETY: It belongs to no thread.
unsafe impl Send for WaitQueue {}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Condition,
    Time,
    Signal,
}

impl WaitQueue {
    /// Makes an empty queue; `name` and `class` are for lockdep.
    pub(crate) fn new(name: &'static CStr, class: Pin<&'static LockClassKey>) -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: `slot` is valid memory for a wait queue head, name and class live for ever.
            head <- Opaque::ffi_init(|slot| unsafe {
                raw::__init_waitqueue_head(slot, name.as_char_ptr(), class.as_ptr())
            }),
        })
    }

    /// Wakes everybody; each looks at its condition. Any context. Whatever the conditions read must have been changed
    /// under a lock or by a fully ordered atomic operation before.
    #[inline]
    pub(crate) fn wake_all(&self) {
        if self.has_waiters() {
            // SAFETY: The head was initialised by `new`.
            unsafe { raw::__wake_up(self.head.get(), raw::DRBD_CONST_TASK_NORMAL, 0, core::ptr::null_mut()) };
        }
    }

    /// Sleeps until `condition` holds.
    pub(crate) fn wait_until(&self, condition: impl FnMut() -> bool) {
        self.wait(raw::DRBD_CONST_TASK_IDLE, raw::DRBD_CONST_MAX_SCHEDULE_TIMEOUT, condition);
    }

    /// Sleeps until `condition` holds, but no longer than `timeout_ms`. True when the condition held.
    pub(crate) fn wait_until_timeout_ms(&self, timeout_ms: u32, condition: impl FnMut() -> bool) -> bool {
        self.wait(raw::DRBD_CONST_TASK_IDLE, jiffies_of_ms(timeout_ms), condition) == Ended::Condition
    }

    /// Sleeps until `condition` holds or the task, one that runs for a user, gets a signal.
    pub(crate) fn wait_until_signal(&self, condition: impl FnMut() -> bool) -> Result<(), Interrupted> {
        match self.wait(raw::DRBD_CONST_TASK_INTERRUPTIBLE, raw::DRBD_CONST_MAX_SCHEDULE_TIMEOUT, condition) {
            Ended::Signal => Err(Interrupted),
            Ended::Condition | Ended::Time => Ok(()),
        }
    }

    /// True if somebody may be waiting; ordered after the caller's change of the condition.
    #[inline]
    fn has_waiters(&self) -> bool {
        // SAFETY: The head was initialised by `new`.
        unsafe { raw::drbd_h_wq_has_sleeper(self.head.get()) }
    }

    fn wait(&self, state: u32, mut jiffies: c_long, mut condition: impl FnMut() -> bool) -> Ended {
        let entry = Opaque::<raw::wait_queue_entry>::uninit();
        // SAFETY: `entry` is valid memory that does not move before `finish_wait`.
        unsafe { raw::init_wait_entry(entry.get(), 0) };
        let ended = loop {
            // SAFETY: Both are initialised; the entry is taken off by `finish_wait` below. CAST: task states are small.
            let signal = unsafe { raw::prepare_to_wait_event(self.head.get(), entry.get(), state as c_int) };
            if condition() {
                break Ended::Condition;
            }
            if signal != 0 {
                break Ended::Signal;
            }
            if jiffies == 0 {
                break Ended::Time;
            }
            // SAFETY: Process context, no lock held: only tasks that may sleep call the waiting functions.
            jiffies = unsafe { raw::schedule_timeout(jiffies) };
        };
        // SAFETY: As above.
        unsafe { raw::finish_wait(self.head.get(), entry.get()) };
        ended
    }
}

/// Declares a wait queue with its own lockdep class: `new_wait_queue!(c"name")`.
#[macro_export]
macro_rules! new_wait_queue {
    ($name:literal) => {
        $crate::linux::sync::WaitQueue::new($name, ::kernel::static_lock_class!())
    };
}
pub(crate) use new_wait_queue;

fn jiffies_of_ms(ms: u32) -> c_long {
    // SAFETY: No requirements.
    let jiffies = unsafe { raw::__msecs_to_jiffies(ms) };
    c_long::try_from(jiffies).unwrap_or(raw::DRBD_CONST_MAX_SCHEDULE_TIMEOUT)
}

/// A flag somebody waits for: setting it wakes the waiter, waiting takes it back. For one waiting thread.
#[pin_data]
pub(crate) struct Event {
    set: Atomic<bool>,
    #[pin]
    queue: WaitQueue,
}

impl Event {
    /// Makes an event that is not set; `name` and `class` are for lockdep.
    pub(crate) fn new(name: &'static CStr, class: Pin<&'static LockClassKey>) -> impl PinInit<Self> {
        pin_init!(Self {
            set: Atomic::new(false),
            queue <- WaitQueue::new(name, class),
        })
    }

    /// Sets it. Any context; costs one atomic operation when it was set already.
    #[inline]
    pub(crate) fn set(&self) {
        if !self.set.xchg(true, Full) {
            self.queue.wake_all();
        }
    }

    /// Takes it back; true if it was set. Any context.
    #[inline]
    pub(crate) fn take(&self) -> bool {
        self.set.xchg(false, Full)
    }

    /// Sleeps until it is set, and takes it back.
    pub(crate) fn wait(&self) {
        if !self.take() {
            self.queue.wait_until(|| self.take());
        }
    }

    /// Sleeps until it is set, and takes it back, but no longer than `timeout_ms`. True when it was set.
    pub(crate) fn wait_timeout_ms(&self, timeout_ms: u32) -> bool {
        self.take() || self.queue.wait_until_timeout_ms(timeout_ms, || self.take())
    }
}

/// Declares an event with its own lockdep class: `new_event!(c"name")`.
#[macro_export]
macro_rules! new_event {
    ($name:literal) => {
        $crate::linux::sync::Event::new($name, ::kernel::static_lock_class!())
    };
}
pub(crate) use new_event;
