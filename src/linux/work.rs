// SPDX-License-Identifier: GPL-2.0
//! Work queues of our own, and references that may be dropped in any context.

use super::raw;
use core::ptr::NonNull;
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::workqueue::{HasWork, Queue, WorkItem};

/// An ordered work queue: one item at a time, with a thread in reserve for when memory is short.
///
/// Must not be dropped in atomic context, nor by an item that runs on it: dropping waits for all items.
pub(crate) struct WorkQueue {
    queue: NonNull<raw::workqueue_struct>,
}

// SAFETY: A work queue may be used from every thread.
unsafe impl Send for WorkQueue {}
// SAFETY: As above.
unsafe impl Sync for WorkQueue {}

impl WorkQueue {
    /// Makes a queue; `name` is what its threads are called. May sleep.
    pub(crate) fn new(name: &CStr) -> Result<WorkQueue> {
        // SAFETY: The name is copied.
        let queue = unsafe { raw::drbd_h_alloc_workqueue(name.as_char_ptr()) };
        Ok(WorkQueue {
            queue: NonNull::new(queue).ok_or(ENOMEM)?,
        })
    }

    /// The queue, to put items on. Any context.
    #[inline]
    pub(crate) fn queue(&self) -> &Queue {
        // SAFETY: The queue lives as long as `self`.
        unsafe { Queue::from_raw(self.queue.as_ptr()) }
    }

    /// Waits until everything that is on the queue now has run. May sleep.
    pub(crate) fn flush(&self) {
        // SAFETY: The queue is alive.
        unsafe { raw::__flush_workqueue(self.queue.as_ptr()) }
    }
}

impl Drop for WorkQueue {
    fn drop(&mut self) {
        // SAFETY: Nobody can put items on it any more; those that are there run first.
        unsafe { raw::destroy_workqueue(self.queue.as_ptr()) }
    }
}

/// An object whose release sleeps, though its last reference may go in atomic context.
///
/// The work item does nothing but drop the reference it is given.
pub(crate) trait Deferred:
    WorkItem<0, Pointer = Arc<Self>> + HasWork<Self, 0> + Sized + Send + Sync + 'static
{
    /// Where the object is released when its last reference went in atomic context. The queue must outlive the object.
    fn release_queue(&self) -> Arc<WorkQueue>;
}

/// A reference to an object, which may be dropped in any context.
pub(crate) struct DeferredArc<T: Deferred>(Option<Arc<T>>);

impl<T: Deferred> DeferredArc<T> {
    /// Wraps a reference.
    #[inline]
    pub(crate) fn new(object: Arc<T>) -> Self {
        DeferredArc(Some(object))
    }
}

impl<T: Deferred> Clone for DeferredArc<T> {
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
            let last: Arc<T> = last.into();
            let queue = last.release_queue();
            // It cannot be on the queue already: that would be another reference.
            let _ = queue.queue().enqueue::<Arc<T>, 0>(last);
        }
    }
}
