// SPDX-License-Identifier: GPL-2.0
//! The module's own objects: resources with their volumes, connections and threads, and what user space sees of them.
//!
//! Nothing here decides anything about replication: events go into the engine, its orders are carried out. All code is
//! safe; what touches the kernel's C interfaces is in `crate::linux`.

pub(crate) mod acks;
pub(crate) mod backing;
pub(crate) mod connection;
pub(crate) mod control;
pub(crate) mod dependencies;
pub(crate) mod disk_io;
pub(crate) mod establish;
pub(crate) mod events;
pub(crate) mod faults;
pub(crate) mod hashes;
pub(crate) mod helpers;
pub(crate) mod log;
pub(crate) mod messages;
pub(crate) mod metadata_io;
pub(crate) mod outlet;
pub(crate) mod params;
pub(crate) mod proc;
pub(crate) mod queue_limits;
pub(crate) mod receiver;
pub(crate) mod resource;
pub(crate) mod sender;
pub(crate) mod slots;
pub(crate) mod volume;
pub(crate) mod worker;

use crate::linux::bdev::Holder;
use crate::linux::clock;
use crate::linux::mem::{NoIoScope, PageReserve};
use crate::linux::sync::{new_event, Event};
use crate::linux::thread::Thread;
use engine::resource::VolumeId;
use events::Events;
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Full, Relaxed};
use kernel::sync::{new_mutex, Arc, Mutex};
use resource::{Name, Resource};

/// The engine's clock step.
const TICK_MS: u64 = 100;
/// How often listeners are told how far a resync is.
const PROGRESS_MS: u64 = 2000;
/// Pages kept in reserve for data on its way from the network to a disk, or back.
const RESERVE_PAGES: u16 = 512;

/// What all resources share.
#[pin_data]
pub(crate) struct Shared {
    /// The supervisor has something to look at.
    #[pin]
    pub(crate) supervisor: Event,
    /// Not 0: volumes may have to wait, or may go on, because of others.
    dependencies_changed: Atomic<i32>,
    /// Messages to listeners.
    #[pin]
    pub(crate) events: Events,
    /// Pages for data of the peer, for when there are no others.
    pub(crate) page_reserve: Arc<PageReserve>,
    /// Holds devices on which several volumes have their meta data.
    pub(crate) meta_holder: Arc<Holder>,
    /// Threads that run fence-peer for resources that are gone. They end before the module does.
    #[pin]
    left_fencing: Mutex<KVec<Thread>>,
}

/// All resources, and the thread that gives them time.
#[pin_data]
pub(crate) struct Driver {
    /// What all resources share.
    pub(crate) shared: Arc<Shared>,
    /// Which resources and minors there are.
    #[pin]
    pub(crate) directory: Mutex<Directory>,
    /// Held while the resync-after of a volume is checked and put into force. After a resource's `admin`, before
    /// `directory`.
    #[pin]
    pub(crate) dependencies: Mutex<()>,
    stopping: Atomic<bool>,
}

/// Which resources and minors there are.
pub(crate) struct Directory {
    /// In the order of their creation, which is that of their numbers.
    resources: KVec<Arc<Resource>>,
    /// By ascending minor.
    minors: KVec<Minor>,
    next_id: u64,
}

/// A volume by its minor.
#[derive(Clone)]
pub(crate) struct Minor {
    /// The minor.
    pub(crate) number: u32,
    /// Its resource.
    pub(crate) resource: Arc<Resource>,
    /// In the engine's table.
    pub(crate) id: VolumeId,
    /// Volume number.
    pub(crate) volume_number: u16,
}

impl Shared {
    /// Has the supervisor look which volumes have to wait for others.
    pub(crate) fn review_dependencies(&self) {
        self.dependencies_changed.xchg(1, Full);
        self.supervisor.set();
    }

    /// Takes over threads that nobody else waits for: a program may take minutes, and use the tools meanwhile. Without memory it waits for
    /// them. Sleeps.
    pub(crate) fn leave_fencing(&self, threads: KVec<Thread>) {
        let mut left = self.left_fencing.lock();
        left.retain(|thread| !thread.is_finished());
        if left.reserve(threads.len(), GFP_KERNEL).is_ok() {
            for thread in threads {
                let _pushed = left.push(thread, GFP_KERNEL);
            }
        }
    }

    /// Waits for the threads of [`Shared::leave_fencing`].
    fn join_fencing(&self) {
        let left = core::mem::take(&mut *self.left_fencing.lock());
        drop(left);
    }
}

impl Driver {
    /// A driver without resources.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn new() -> Result<Arc<Self>> {
        let page_reserve = PageReserve::new(RESERVE_PAGES)?;
        let meta_holder = Holder::new()?;
        let shared = Arc::pin_init(
            pin_init!(Shared {
                supervisor <- new_event!(c"drbd::Shared::supervisor"),
                dependencies_changed: Atomic::new(0),
                events <- Events::new(),
                page_reserve,
                meta_holder,
                left_fencing <- new_mutex!(KVec::new(), "drbd::Shared::left_fencing"),
            }),
            GFP_KERNEL,
        )?;
        let directory = Directory { resources: KVec::new(), minors: KVec::new(), next_id: 1 };
        Arc::pin_init(
            pin_init!(Driver {
                shared,
                directory <- new_mutex!(directory, "drbd::Driver::directory"),
                dependencies <- new_mutex!((), "drbd::Driver::dependencies"),
                stopping: Atomic::new(false),
            }),
            GFP_KERNEL,
        )
    }

    /// The resource that was created next after the one with number `id`; 0 for the first.
    pub(crate) fn resource_after(&self, id: u64) -> Option<Arc<Resource>> {
        let directory = self.directory.lock();
        let next = directory.resources.partition_point(|resource| resource.id <= id);
        directory.resources.get(next).cloned()
    }

    /// All resources, oldest first.
    pub(crate) fn resources(&self) -> impl Iterator<Item = Arc<Resource>> + '_ {
        let mut last = 0;
        core::iter::from_fn(move || {
            let resource = self.resource_after(last)?;
            last = resource.id;
            Some(resource)
        })
    }

    /// The resource with this name.
    pub(crate) fn resource(&self, name: &[u8]) -> Option<Arc<Resource>> {
        let directory = self.directory.lock();
        directory.resources.iter().find(|resource| resource.name.as_bytes() == name).cloned()
    }

    /// The volume with this minor.
    pub(crate) fn minor(&self, number: u32) -> Option<Minor> {
        self.directory.lock().minor(number).cloned()
    }

    /// The volume with the next higher minor than `number`, or the first.
    pub(crate) fn minor_after(&self, number: Option<u32>) -> Option<Minor> {
        let directory = self.directory.lock();
        let next = directory.minors.partition_point(|minor| number.is_some_and(|number| minor.number <= number));
        directory.minors.get(next).cloned()
    }

    /// All volumes by ascending minor.
    pub(crate) fn minors(&self) -> impl Iterator<Item = Minor> + '_ {
        let mut last = None;
        core::iter::from_fn(move || {
            let minor = self.minor_after(last)?;
            last = Some(minor.number);
            Some(minor)
        })
    }

    /// Gives every resource its clock, and starts and ends connections, until the module goes.
    fn supervise(&self) {
        let _no_io = NoIoScope::enter();
        let (mut last_tick_ms, mut last_progress_ms) = (0, 0);
        while !self.stopping.load(Relaxed) {
            let now_ms = clock::monotonic_ms();
            let tick = now_ms.saturating_sub(last_tick_ms) >= TICK_MS;
            if self.shared.dependencies_changed.xchg(0, Full) != 0 {
                dependencies::review(self);
            }
            let mut idle = true;
            for resource in self.resources() {
                idle = false;
                connection::supervise(&resource);
                if tick && resource.look(|locked| locked.engine.wants_tick()) {
                    resource.engine_without_disk(|locked| locked.engine.tick(now_ms));
                }
            }
            if tick {
                last_tick_ms = now_ms;
            }
            if now_ms.saturating_sub(last_progress_ms) >= PROGRESS_MS {
                last_progress_ms = now_ms;
                for minor in self.minors() {
                    events::tell_progress(&minor.resource, minor.id);
                }
            }
            if idle {
                self.shared.supervisor.wait();
            } else {
                self.shared.supervisor.wait_timeout_ms(TICK_MS as u32);
            }
        }
    }
}

impl Directory {
    /// The volume with this minor.
    pub(crate) fn minor(&self, number: u32) -> Option<&Minor> {
        let at = self.minors.partition_point(|minor| minor.number < number);
        self.minors.get(at).filter(|minor| minor.number == number)
    }

    /// Adds a resource made by `make` from its number.
    ///
    /// # Errors
    /// `EEXIST`, `ENOMEM`, and those of `make`.
    pub(crate) fn add_resource(
        &mut self,
        name: &Name,
        make: impl FnOnce(u64) -> Result<Arc<Resource>>,
    ) -> Result<Arc<Resource>> {
        if self.resources.iter().any(|resource| resource.name == *name) {
            return Err(EEXIST);
        }
        self.resources.reserve(1, GFP_KERNEL)?;
        let resource = make(self.next_id)?;
        self.next_id = self.next_id.saturating_add(1);
        self.resources.push(resource.clone(), GFP_KERNEL)?;
        Ok(resource)
    }

    /// Takes a resource out.
    pub(crate) fn remove_resource(&mut self, id: u64) {
        self.resources.retain(|resource| resource.id != id);
    }

    /// Adds a volume.
    ///
    /// # Errors
    /// `EEXIST`, `ENOMEM`.
    pub(crate) fn add_minor(&mut self, minor: Minor) -> Result {
        let at = self.minors.partition_point(|other| other.number < minor.number);
        if self.minors.get(at).is_some_and(|other| other.number == minor.number) {
            return Err(EEXIST);
        }
        self.minors.reserve(1, GFP_KERNEL)?;
        self.minors.insert_within_capacity(at, minor).map_err(|_| ENOMEM)
    }

    /// Takes a volume out.
    pub(crate) fn remove_minor(&mut self, number: u32) {
        self.minors.retain(|minor| minor.number != number);
    }
}

/// The running driver. Dropping it forgets the resources that are left and ends the supervisor; nothing of them is in
/// use, because that would keep the module loaded.
pub(crate) struct Running {
    driver: Arc<Driver>,
    thread: Option<Thread>,
}

impl Running {
    /// Starts the supervisor.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn start(driver: Arc<Driver>) -> Result<Self> {
        let supervised = driver.clone();
        let thread = Thread::spawn(fmt!("drbd_supervisor"), move || supervised.supervise())?;
        Ok(Running { driver, thread: Some(thread) })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        control::resource::delete_all(&self.driver);
        self.driver.stopping.store(true, Relaxed);
        self.driver.shared.supervisor.set();
        drop(self.thread.take());
        self.driver.shared.join_fencing();
    }
}
