// SPDX-License-Identifier: GPL-2.0
//! Kernel threads that are joined by their own completion.
//!
//! A thread ends when its function returns; whoever owns the [`Thread`] first tells the function to end (a flag and an
//! event, or a socket shutdown) and then drops the `Thread`, which waits. `kthread_stop` is not used: it interrupts
//! socket calls and therefore is not a join.

use super::raw;
use core::fmt::{self, Write};
use kernel::error::from_err_ptr;
use kernel::ffi::{c_int, c_void};
use kernel::prelude::*;
use kernel::types::Opaque;

/// A running, or finished, kernel thread. Dropping it waits for the end of its function.
///
/// # Invariants
/// The completion is completed once, by the thread itself, which does not touch it afterwards.
pub(crate) struct Thread {
    done: Pin<KBox<Done>>,
}

// SAFETY: a completion may be waited for and completed in different threads.
unsafe impl Send for Thread {}
// SAFETY: there are no methods on `&Thread` that change anything.
unsafe impl Sync for Thread {}

#[pin_data]
struct Done {
    #[pin]
    completion: Opaque<raw::completion>,
}

impl Done {
    fn new() -> impl PinInit<Self> {
        pin_init!(Done {
            completion <- Opaque::ffi_init(|slot| {
                // SAFETY: `slot` is memory for a completion.
                unsafe { raw::drbd_h_completion_init(slot) }
            }),
        })
    }
}

/// What the new thread takes over: its function and where to say that it has ended.
struct Start<F> {
    function: F,
    done: *mut raw::completion,
}

impl Thread {
    /// Starts `function` in a thread of its own. Names are cut to 15 characters.
    ///
    /// # Errors
    /// `ENOMEM`, `EINTR` when the starting process is being killed.
    pub(crate) fn spawn<F>(name: fmt::Arguments<'_>, function: F) -> Result<Self>
    where
        F: FnOnce() + Send + 'static,
    {
        const NO_NODE: c_int = -1;
        let name = ThreadName::new(name);
        let done = KBox::pin_init(Done::new(), GFP_KERNEL)?;
        let start = KBox::new(Start { function, done: done.completion.get() }, GFP_KERNEL)?;
        let start = KBox::into_raw(start);
        // SAFETY: `run::<F>` is a thread function and takes over `start`; the format takes one string, which is
        // NUL-terminated and copied.
        let task = from_err_ptr(unsafe {
            raw::kthread_create_on_node(
                Some(run::<F>),
                start.cast(),
                NO_NODE,
                c"%s".as_char_ptr(),
                name.0.as_ptr().cast::<c_void>(),
            )
        });
        match task {
            Ok(task) => {
                // SAFETY: the thread was created and has not run, so its task exists.
                unsafe { raw::wake_up_process(task) };
                Ok(Thread { done })
            }
            Err(error) => {
                // SAFETY: no thread was created, so `start` is still ours.
                drop(unsafe { KBox::from_raw(start) });
                Err(error)
            }
        }
    }
}

impl Thread {
    /// Its function has ended: dropping it does not wait.
    pub(crate) fn is_finished(&self) -> bool {
        // SAFETY: by the type's invariant it is an initialised completion.
        unsafe { raw::completion_done(self.done.completion.get()) }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        // SAFETY: by the type's invariant the thread completes it.
        unsafe { raw::wait_for_completion(self.done.completion.get()) };
    }
}

/// Gives the current thread a low real-time priority.
pub(crate) fn set_fifo_low() {
    // SAFETY: changes only the current task.
    unsafe { raw::drbd_h_thread_fifo_low() };
}

/// A number for the task that runs now; 0 in an interrupt. Any context.
#[inline]
pub(crate) fn current() -> usize {
    // SAFETY: no requirements.
    unsafe { raw::drbd_h_current_task() }
}

/// True if `task` is not 0 and [`current`] says the same. Any context.
#[inline]
pub(crate) fn is_current(task: usize) -> bool {
    task != 0 && task == current()
}

/// Lets the current thread run only on the processors of `mask`, hexadecimal digits; on all when it is empty or names
/// none that is there. Sleeps.
pub(crate) fn set_cpus(mask: &[u8]) {
    // SAFETY: the text is readable for its length; changes only the current task.
    unsafe { raw::drbd_h_thread_set_cpus(mask.as_ptr().cast(), mask.len()) };
}

/// # Safety
/// Called once by the kernel, with the `Start` that [`Thread::spawn`] passed.
unsafe extern "C" fn run<F: FnOnce()>(data: *mut c_void) -> c_int {
    // SAFETY: `data` is the box that `spawn` gave away.
    let start = unsafe { KBox::from_raw(data.cast::<Start<F>>()) };
    let Start { function, done } = KBox::into_inner(start);
    function();
    // SAFETY: the owner of the completion frees it only after it was completed; nothing of ours runs afterwards, so
    // the module may go.
    unsafe { raw::kthread_complete_and_exit(done, 0) }
}

/// 15 characters and a NUL.
struct ThreadName([u8; 16]);

impl ThreadName {
    fn new(text: fmt::Arguments<'_>) -> Self {
        let mut name = Cursor { bytes: [0; 16], used: 0 };
        // A name that is too long is cut.
        let _ = name.write_fmt(text);
        ThreadName(name.bytes)
    }
}

struct Cursor {
    bytes: [u8; 16],
    used: usize,
}

impl fmt::Write for Cursor {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for byte in s.bytes() {
            match self.bytes.get_mut(self.used) {
                Some(place) if self.used < 15 => *place = byte,
                _ => return Err(fmt::Error),
            }
            self.used += 1;
        }
        Ok(())
    }
}
