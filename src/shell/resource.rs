// SPDX-License-Identifier: GPL-2.0
//! One resource: its engine, its volumes, its threads.
//!
//! # Locks
//! In this order: [`Resource::admin`] (one administrator's request at a time; held while it waits), [`Resource::orders`],
//! [`Driver::directory`](super::Driver), [`Resource::config`], [`Resource::link`], [`Resource::locked`]. The first
//! five are mutexes for process context; the last is a spinlock, taken in any context, and is held only for one call
//! into the engine.

use super::connection::{Link, Sockets};
use super::disk_io::{self, BlockState, Context};
use super::hashes::Hashes;
use super::slots::Slots;
use super::volume::Volume;
use super::Shared;
use crate::linux::bio::OwnedBio;
use crate::linux::clock;
use crate::linux::mem::{PageChain, PagePool};
use crate::linux::module::ModulePin;
use crate::linux::sock::SockAddr;
use crate::linux::storage::KernelStorage;
use crate::linux::sync::{new_event, new_irq_lock, new_wait_queue, Event, IrqLock, WaitQueue};
use crate::linux::thread::{self, Thread};
use engine::netlink::{ResourceOpts, Text};
use engine::resource::{
    Engine, TableLimits, VolumeId, Wakes, MAX_PEER_REQUESTS_PER_RESOURCE, MAX_REQUESTS_PER_RESOURCE,
    MAX_VOLUMES_PER_RESOURCE,
};
use engine::state::{Conn, Role};
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Full, Relaxed, Release};
use kernel::sync::{new_mutex, Arc, Mutex};

/// Name of a resource, at most 127 bytes.
pub(crate) type Name = Text<128>;

/// A resource.
#[pin_data]
pub(crate) struct Resource {
    /// Counts up with every resource ever created; never reused.
    pub(crate) id: u64,
    /// Its name.
    pub(crate) name: Name,
    /// What it shares with all others.
    pub(crate) shared: Arc<Shared>,
    /// Pages for data of the peer.
    pub(crate) pages: Arc<PagePool>,
    /// The engine and what belongs to its slots.
    #[pin]
    pub(crate) locked: IrqLock<KBox<Locked>>,
    /// One administrator's request at a time.
    #[pin]
    pub(crate) admin: Mutex<()>,
    /// Orders for devices are carried out one at a time.
    #[pin]
    pub(crate) orders: Mutex<()>,
    /// Volumes, and the addresses of the connection.
    #[pin]
    pub(crate) config: Mutex<Config>,
    /// The connection's sockets and thread.
    #[pin]
    pub(crate) link: Mutex<Link>,
    /// The worker, while the resource is in the directory.
    #[pin]
    pub(crate) worker_thread: Mutex<Option<Thread>>,
    /// Programs that fence the peer, while the worker goes on.
    #[pin]
    pub(crate) fencing_threads: Mutex<KVec<Thread>>,
    /// Something may be sent on the data socket.
    #[pin]
    pub(crate) sender: Event,
    /// Something may be sent on the meta socket.
    #[pin]
    pub(crate) acks: Event,
    /// The thread that carries out an order for the disk and will look afterwards what is to be sent; 0: none does.
    pub(crate) looker: Atomic<usize>,
    /// What it will have to look after, as bits of [`Wakes`].
    pub(crate) looker_wakes: Atomic<i32>,
    /// The receiver may go on.
    #[pin]
    pub(crate) receiver: Event,
    /// There is work for the worker.
    #[pin]
    pub(crate) worker: Event,
    /// The connection's thread has something to look at.
    #[pin]
    pub(crate) link_event: Event,
    /// Woken whenever the result of an administrator's request, or what the link has to do, changes.
    #[pin]
    pub(crate) changed: WaitQueue,
    /// [`Config::connection`] is there.
    pub(crate) has_connection: Atomic<bool>,
    /// The supervisor has to look at the link.
    pub(crate) link_changed: Atomic<bool>,
    /// Counts the changes of the option `cpu-mask`.
    pub(crate) cpu_mask_version: Atomic<i32>,
    /// The worker has to end.
    pub(crate) stopping: Atomic<bool>,
    /// What the worker has done, counted as [`Engine::work_ordered`](engine::resource::Engine::work_ordered) does.
    pub(crate) work_done: Atomic<u64>,
    /// The worker runs a program of user space.
    pub(crate) in_program: Atomic<bool>,
    /// The module stays while something of the resource is, or was, in use.
    #[pin]
    module: Mutex<Option<ModulePin>>,
}

/// What the resource's spinlock protects.
pub(crate) struct Locked {
    /// The engine.
    pub(crate) engine: KBox<Engine<KernelStorage>>,
    /// Volumes by the index in their [`VolumeId`].
    pub(crate) volumes: [Option<Arc<Volume>>; MAX_VOLUMES_PER_RESOURCE],
    /// Application bios by request slot.
    pub(crate) uppers: Slots<OwnedBio>,
    /// Pages by peer request slot.
    pub(crate) peer_pages: Slots<PageChain>,
    /// What belongs to the disks.
    pub(crate) block: BlockState,
    /// The algorithms that can be used.
    pub(crate) hashes: Hashes,
    /// The sockets, while there is a connection. The last reference is dropped in process context.
    pub(crate) sockets: Option<Arc<Sockets>>,
}

/// What a resource consists of.
pub(crate) struct Config {
    /// The connection, once configured.
    pub(crate) connection: Option<ConnectionConfig>,
    /// Volumes, by ascending number.
    pub(crate) volumes: KVec<VolumeConfig>,
}

/// The addresses of a connection.
#[derive(Clone, Copy)]
pub(crate) struct ConnectionConfig {
    /// Own address.
    pub(crate) my_address: SockAddr,
    /// The peer's address.
    pub(crate) peer_address: SockAddr,
    /// The engine has begun to use it.
    pub(crate) started: bool,
}

/// A volume of a resource.
pub(crate) struct VolumeConfig {
    /// In the engine's table.
    pub(crate) id: VolumeId,
    /// Volume number.
    pub(crate) number: u16,
    /// Minor number.
    pub(crate) minor: u32,
    /// The device.
    pub(crate) volume: Arc<Volume>,
}

impl Resource {
    /// A resource without volumes, StandAlone. Its worker is started by [`Resource::start`].
    ///
    /// # Errors
    /// `ENOMEM`.
    #[inline(never)]
    pub(crate) fn new(id: u64, name: Name, options: &ResourceOpts, shared: Arc<Shared>) -> Result<Arc<Self>> {
        let locked = Locked::new(options)?;
        let config = Config { connection: None, volumes: KVec::new() };
        let pages = PagePool::new(shared.page_reserve.clone())?;
        let resource = Arc::pin_init(
            pin_init!(Resource {
                id,
                name,
                shared,
                pages,
                locked <- new_irq_lock!(locked, c"drbd::Resource::locked"),
                admin <- new_mutex!((), "drbd::Resource::admin"),
                orders <- new_mutex!((), "drbd::Resource::orders"),
                config <- new_mutex!(config, "drbd::Resource::config"),
                link <- new_mutex!(Link::default(), "drbd::Resource::link"),
                worker_thread <- new_mutex!(None, "drbd::Resource::worker_thread"),
                fencing_threads <- new_mutex!(KVec::new(), "drbd::Resource::fencing_threads"),
                sender <- new_event!(c"drbd::Resource::sender"),
                acks <- new_event!(c"drbd::Resource::acks"),
                looker: Atomic::new(0),
                looker_wakes: Atomic::new(0),
                receiver <- new_event!(c"drbd::Resource::receiver"),
                worker <- new_event!(c"drbd::Resource::worker"),
                link_event <- new_event!(c"drbd::Resource::link_event"),
                changed <- new_wait_queue!(c"drbd::Resource::changed"),
                has_connection: Atomic::new(false),
                link_changed: Atomic::new(false),
                cpu_mask_version: Atomic::new(1),
                stopping: Atomic::new(false),
                work_done: Atomic::new(0),
                in_program: Atomic::new(false),
                module <- new_mutex!(None, "drbd::Resource::module"),
            }),
            GFP_KERNEL,
        )?;
        resource.add_entropy();
        Ok(resource)
    }

    /// The way into the engine for process context: calls `f` under the lock, and afterwards, without it, looks after
    /// everything the engine now wants done.
    pub(crate) fn engine<R>(self: &Arc<Self>, f: impl FnOnce(&mut Locked) -> R) -> R {
        disk_io::enter(self, Context::Process, f)
    }

    /// As [`Resource::engine`], but leaves to others what is to be done on the disks, and what is to be sent: submitting a request
    /// waits while the lower device has too many, and a supervisor of all resources must not stop because one disk hangs.
    pub(crate) fn engine_without_disk<R>(self: &Arc<Self>, f: impl FnOnce(&mut Locked) -> R) -> R {
        disk_io::enter(self, Context::Atomic, f)
    }

    /// A lower device has ended a request while it was submitted, and the submitter will look what follows from that: leaves
    /// it to that thread. False if it is not so. Atomic context.
    #[inline]
    pub(crate) fn leave_to_looker(&self, wakes: Wakes) -> bool {
        let looks = thread::is_current(self.looker.load(Relaxed));
        if looks {
            // Only this task changes it.
            let bits = self.looker_wakes.load(Relaxed);
            self.looker_wakes.store(bits | i32::from(wakes.0), Relaxed);
        }
        looks
    }

    /// Calls `submit`, which gives requests to lower devices, and returns what was left to this thread because some of them
    /// have ended already. Process context.
    pub(crate) fn looking_after<R>(&self, submit: impl FnOnce() -> R) -> (R, Wakes) {
        let first = self.looker.cmpxchg(0, thread::current(), Full).is_ok();
        let result = submit();
        if !first {
            return (result, Wakes::default());
        }
        self.looker.store(0, Release);
        // CAST: Only bits of `Wakes` were put in.
        (result, Wakes(self.looker_wakes.xchg(0, Full) as u16))
    }

    /// Looks at the engine without giving it anything to do.
    pub(crate) fn look<R>(&self, f: impl FnOnce(&Locked) -> R) -> R {
        self.locked.with(|locked| f(locked))
    }

    /// Tells the engine something that gives it nothing to do.
    pub(crate) fn look_mut<R>(&self, f: impl FnOnce(&mut Locked) -> R) -> R {
        self.locked.with(|locked| f(locked))
    }

    /// Wakes the threads that have something to do. Any context. The orders to disks are not among it: `disk_io` looks
    /// after them.
    pub(crate) fn wake(&self, wakes: Wakes) {
        for (wake, event) in [
            (Wakes::DATA_SENDER, &self.sender),
            (Wakes::META_SENDER, &self.acks),
            (Wakes::RECEIVER, &self.receiver),
            (Wakes::WORK, &self.worker),
        ] {
            if wakes.contains(wake) {
                event.set();
            }
        }
        if wakes.contains(Wakes::LINK) {
            self.wake_link();
        }
        if wakes.contains(Wakes::ADMIN) || wakes.contains(Wakes::LINK) || wakes.contains(Wakes::WORK) {
            self.changed.wake_all();
        }
    }

    /// Makes the supervisor and all threads of the link look at what the link has to do now.
    pub(crate) fn wake_link(&self) {
        self.link_changed.store(true, Relaxed);
        for event in [&self.sender, &self.acks, &self.receiver, &self.link_event] {
            event.set();
        }
        self.shared.supervisor.set();
    }

    /// Has all threads look at the option `cpu-mask`. Those that wait for a packet do so when one comes.
    pub(crate) fn follow_cpu_mask(&self) {
        self.cpu_mask_version.add(1, Relaxed);
        for event in [&self.sender, &self.acks, &self.worker] {
            event.set();
        }
    }

    /// Keeps the module loaded; called before a disk is attached or a connection is made.
    ///
    /// # Errors
    /// `EBUSY` while the module is being unloaded.
    pub(crate) fn pin_module(&self) -> Result {
        let mut module = self.module.lock();
        if module.is_none() {
            *module = Some(ModulePin::new()?);
        }
        Ok(())
    }

    /// Lets the module be unloaded if no volume has a disk or is Primary, and there is no connection. Called when attaching or
    /// connecting may have failed; like the C module, a resource that was in use keeps the module until it is deleted.
    pub(crate) fn unpin_unused_module(&self) {
        let unused = self.look(|locked| {
            let engine = &locked.engine;
            engine.connection_status().state == Conn::StandAlone
                && engine.volumes().all(|id| {
                    let role = engine.volume_status(id).map(|status| status.state.role);
                    role != Some(Role::Primary) && engine.disk_conf(id).is_none()
                })
        });
        if unused {
            *self.module.lock() = None;
        }
    }

    /// Fills the engine's stock of random numbers.
    #[inline(never)]
    pub(crate) fn add_entropy(self: &Arc<Self>) {
        while self.look(|locked| locked.engine.wants_entropy()) {
            let random = clock::random_u64();
            self.engine(|locked| locked.engine.add_entropy(random));
        }
    }

    /// Addresses of the connection: own and the peer's.
    pub(crate) fn addresses(&self) -> Option<(SockAddr, SockAddr)> {
        let config = self.config.lock();
        config.connection.as_ref().map(|connection| (connection.my_address, connection.peer_address))
    }
}

/// Keeps a thread of a resource on the processors of the option `cpu-mask`.
#[derive(Default)]
pub(crate) struct Processors {
    version: i32,
}

impl Processors {
    /// Carries the option out for the current thread if it has changed. Costs next to nothing otherwise.
    #[inline]
    pub(crate) fn follow(&mut self, resource: &Resource) {
        let version = resource.cpu_mask_version.load(Relaxed);
        if version != self.version {
            self.version = version;
            Self::apply(resource);
        }
    }

    #[inline(never)]
    fn apply(resource: &Resource) {
        let mask = resource.look(|locked| locked.engine.resource_opts().cpu_mask);
        thread::set_cpus(mask.as_bytes());
    }
}

impl Locked {
    /// An engine without volumes. Both parts are large: not inlined, so that each is on the stack only while it is made.
    fn new(options: &ResourceOpts) -> Result<KBox<Self>> {
        Self::with_engine(Self::new_engine(options)?)
    }

    #[inline(never)]
    fn new_engine(options: &ResourceOpts) -> Result<KBox<Engine<KernelStorage>>> {
        let engine = Engine::new(options, TableLimits::default()).map_err(|_| ENOMEM)?;
        Ok(KBox::new(engine, GFP_KERNEL)?)
    }

    #[inline(never)]
    fn with_engine(engine: KBox<Engine<KernelStorage>>) -> Result<KBox<Self>> {
        let locked = Locked {
            engine,
            volumes: [const { None }; MAX_VOLUMES_PER_RESOURCE],
            uppers: Slots::new(MAX_REQUESTS_PER_RESOURCE)?,
            peer_pages: Slots::new(MAX_PEER_REQUESTS_PER_RESOURCE)?,
            block: BlockState::default(),
            hashes: Hashes::new()?,
            sockets: None,
        };
        Ok(KBox::new(locked, GFP_KERNEL)?)
    }
}

impl Config {
    /// The volume with this identifier.
    pub(crate) fn volume(&self, id: VolumeId) -> Option<&VolumeConfig> {
        self.volumes.iter().find(|volume| volume.id == id)
    }
}
