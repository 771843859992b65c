// SPDX-License-Identifier: GPL-2.0
//! The module's work queue, and references that may be dropped in any context.

use super::raw;
use core::ptr;
use kernel::prelude::*;
use kernel::sync::atomic::{Acquire, Atomic, Full};
use kernel::sync::Arc;
use kernel::workqueue::{HasWork, Queue, WorkItem};

/// The module's queue, while there is a [`WorkQueue`].
static QUEUE: Atomic<*mut raw::workqueue_struct> = Atomic::new(ptr::null_mut());

/// Keeps the module's work queue: items run in process context, on any CPU, and make progress when memory is short.
///
/// It belongs into the module's own structure, where it is dropped after everything that uses the queue: dropping runs
/// what is still queued, and waits for it.
pub(crate) struct WorkQueue(());

impl WorkQueue {
    /// Makes the queue. To be called once, when the module is loaded. May sleep.
    pub(crate) fn new() -> Result<WorkQueue> {
        // SAFETY: No requirements.
        let queue = unsafe { raw::drbd_h_alloc_workqueue(c"drbd_submit".as_char_ptr()) };
        if queue.is_null() {
            return Err(ENOMEM);
        }
        QUEUE.xchg(queue, Full);
        Ok(WorkQueue(()))
    }
}

impl Drop for WorkQueue {
    fn drop(&mut self) {
        let queue = QUEUE.xchg(ptr::null_mut(), Full);
        // SAFETY: Made by `new`; by the rule of the type nobody uses it any more.
        unsafe { raw::destroy_workqueue(queue) }
    }
}

/// Runs `f` with the module's queue. Any context.
#[inline]
fn with_queue<R>(f: impl FnOnce(&Queue) -> R) -> R {
    let queue = QUEUE.load(Acquire);
    if queue.is_null() {
        f(kernel::workqueue::system())
    } else {
        // SAFETY: The queue is destroyed last of all, when nobody calls this function any more.
        f(unsafe { Queue::from_raw(queue) })
    }
}

/// Queues an item, unless it is queued already. Any context. `ID` says which, where an object has several.
#[inline]
pub(crate) fn run_soon<T, const ID: u64>(item: Arc<T>)
where
    T: WorkItem<ID, Pointer = Arc<T>> + HasWork<T, ID> + Send + Sync + 'static,
{
    // An item that is queued already gives the reference back.
    let _ = with_queue(|queue| queue.enqueue::<Arc<T>, ID>(item));
}

/// An object whose release sleeps, though its last reference may go in atomic context.
///
/// Its work item does nothing but drop the reference it is given.
pub(crate) trait Deferred:
    WorkItem<0, Pointer = Arc<Self>> + HasWork<Self, 0> + Sized + Send + Sync + 'static
{
}

/// A reference to an object, which may be dropped in any context.
pub(crate) struct DeferredArc<T: Deferred>(Option<Arc<T>>);

impl<T: Deferred> DeferredArc<T> {
    /// Wraps a reference.
    #[inline]
    pub(crate) fn new(object: Arc<T>) -> Self {
        DeferredArc(Some(object))
    }

    /// The plain reference, for whoever may release the object on the spot.
    pub(crate) fn into_inner(mut self) -> Option<Arc<T>> {
        self.0.take()
    }
}

impl<T: Deferred> Clone for DeferredArc<T> {
    #[inline]
    fn clone(&self) -> Self {
        DeferredArc(self.0.clone())
    }
}

impl<T: Deferred> core::ops::Deref for DeferredArc<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        match &self.0 {
            Some(object) => object,
            // Only `drop` takes it out.
            None => unreachable!(),
        }
    }
}

impl<T: Deferred> Drop for DeferredArc<T> {
    #[inline]
    fn drop(&mut self) {
        if let Some(last) = self.0.take().and_then(Arc::into_unique_or_drop) {
            // It cannot be queued already: that would be another reference.
            run_soon::<T, 0>(last.into());
        }
    }
}
