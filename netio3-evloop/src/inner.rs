//! The loop itself, shared by its owner, its handles and whatever runs on it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use netio3_core::{Budget, EventLoop, Interest, Job, LoopCounters, Ready, Remote, RunError, Source, SourceId, WatchId};

use crate::arena::Key;
use crate::handle::Handle;
use crate::kernel::Kernel;
use crate::registry::{Registry, Removed};
use crate::remote::{Shared, remote};

/// The state of a loop. None of its borrows is held while a source or a closure runs or is dropped.
pub(crate) struct Inner {
    me: Weak<Self>,
    /// `None` once the owner is gone.
    pub(crate) kernel: RefCell<Option<Kernel>>,
    pub(crate) registry: RefCell<Registry>,
    pub(crate) posts: RefCell<VecDeque<Post>>,
    pub(crate) inits: RefCell<VecDeque<LocalJob>>,
    pub(crate) phase: Cell<Phase>,
    /// The time at which the turn began.
    pub(crate) turn_began: Cell<Instant>,
    /// When the clock was read last.
    pub(crate) latest: Cell<Instant>,
    /// The deadline for which a source's `timeout` is running.
    pub(crate) passed_deadline: Cell<Instant>,
    /// Something forbade sleeping when it was last asked.
    pub(crate) again: Cell<bool>,
    /// The sources are to be asked once more before sleeping.
    pub(crate) scheduled: Cell<bool>,
    /// Every source has said, since anything happened last, that it may be slept on.
    pub(crate) armed: Cell<bool>,
    /// How often devices were polled since the kernel was asked.
    pub(crate) polls: Cell<u32>,
    /// The last fetch had no room for all events.
    pub(crate) full: Cell<bool>,
    /// A notice of another thread was taken and its inbox not yet read.
    pub(crate) noticed: Cell<bool>,
    /// Somebody waits on the loop's descriptor, so it must tell of work outside `run*`.
    pub(crate) nested: Cell<bool>,
    /// The descriptor was made readable since the last fetch.
    pub(crate) kicked: Cell<bool>,
    pub(crate) budget: Cell<Budget>,
    pub(crate) spin: Cell<Duration>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) counters: Arc<LoopCounters>,
}

/// A closure to be run once on the loop's thread, which made it.
pub(crate) type LocalJob = Box<dyn FnOnce(&Handle)>;

/// A posted closure.
pub(crate) enum Post {
    Local(LocalJob),
    Remote(Job),
}

/// Where the loop is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Outside `run*` and `process`.
    Idle,
    /// Inside one, between turns.
    Between,
    /// Inside a turn.
    Turn,
}

impl Inner {
    pub(crate) fn new() -> io::Result<(Rc<Self>, mio::Registry)> {
        let (kernel, waker, registry) = Kernel::new()?;
        let now = Instant::now();
        let inner = Rc::new_cyclic(|me| Self {
            me: me.clone(),
            kernel: RefCell::new(Some(kernel)),
            registry: RefCell::default(),
            posts: RefCell::default(),
            inits: RefCell::default(),
            phase: Cell::new(Phase::Idle),
            turn_began: Cell::new(now),
            latest: Cell::new(now),
            passed_deadline: Cell::new(now),
            again: Cell::new(false),
            scheduled: Cell::new(false),
            armed: Cell::new(false),
            polls: Cell::new(0),
            full: Cell::new(false),
            noticed: Cell::new(false),
            nested: Cell::new(false),
            kicked: Cell::new(false),
            budget: Cell::new(Budget::DEFAULT),
            spin: Cell::new(Duration::ZERO),
            shared: Arc::new(Shared::new(waker)),
            counters: Arc::default(),
        });
        Ok((inner, registry))
    }

    pub(crate) fn local(&self) -> Handle {
        // Whoever calls a method of `Inner` holds an `Rc` of it.
        Handle { inner: self.me.upgrade().expect("a loop is owned while it is used") }
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.kernel.borrow().is_none()
    }

    /// Adds a source that is told its key; only a hooked one is asked before sleeping. A loop that is
    /// gone drops it.
    pub(crate) fn add(&self, hooked: bool, make: impl FnOnce(Key) -> Box<dyn Source>) -> Key {
        let key = self.registry.borrow_mut().add(hooked, make);
        if self.is_gone() {
            self.remove(key);
        } else if hooked {
            self.schedule();
        }
        key
    }

    /// Removes a source; `false` if there is no such source any more.
    pub(crate) fn remove(&self, key: Key) -> bool {
        let removed = self.registry.borrow_mut().remove(key);
        let Some(Removed { source, fds }) = removed else { return false };
        if let Some(kernel) = &*self.kernel.borrow() {
            for fd in fds {
                kernel.deregister(fd);
            }
        }
        // Last, since it may call back, and since the descriptors had to be open until here.
        drop(source);
        true
    }

    pub(crate) fn watch_raw(&self, source: Key, fd: RawFd, token: usize, interest: Interest) -> io::Result<Key> {
        let kernel = self.kernel.borrow();
        let kernel = kernel.as_ref().ok_or_else(gone)?;
        let mut registry = self.registry.borrow_mut();
        let watch = registry.watch(source, token, fd).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such source"))?;
        if let Err(error) = kernel.register(fd, watch, interest) {
            registry.unwatch(watch);
            return Err(error);
        }
        Ok(watch)
    }

    /// Runs a source. If it panics, it is dropped and the panic goes on.
    pub(crate) fn with_source(&self, key: Key, call: impl FnOnce(&mut dyn Source)) {
        let taken = self.registry.borrow_mut().take(key);
        let Some(mut source) = taken else { return };
        match catch_unwind(AssertUnwindSafe(|| call(&mut *source))) {
            Ok(()) => {
                let removed = self.registry.borrow_mut().put_back(key, source);
                drop(removed);
            }
            Err(panic) => {
                tracing::warn!(source = key.0, "a source panicked and is dropped");
                self.remove(key);
                // Its drop may panic too; the first panic says more.
                let _ = catch_unwind(AssertUnwindSafe(|| drop(source)));
                resume_unwind(panic);
            }
        }
    }

    pub(crate) fn push_post(&self, job: LocalJob) -> bool {
        if self.is_gone() {
            return false;
        }
        self.posts.borrow_mut().push_back(Post::Local(job));
        self.work_came();
        true
    }

    /// Whether there is something to do without any event.
    pub(crate) fn has_work(&self) -> bool {
        self.again.get()
            || self.scheduled.get()
            || self.full.get()
            || self.noticed.get()
            || self.registry.borrow().ready_sources() > 0
            || !self.posts.borrow().is_empty()
            // Those that come while it runs wait for the next time.
            || (self.phase.get() == Phase::Idle && !self.inits.borrow().is_empty())
            || self.shared.is_notified()
    }

    /// Outside `run*`, tells a foreign loop of work; inside, the turn will find it.
    pub(crate) fn work_came(&self) {
        if self.phase.get() == Phase::Idle {
            self.settle();
        }
    }

    /// Leaves the descriptor readable if there is work, or as soon as the nearest deadline passes.
    pub(crate) fn settle(&self) {
        if !self.nested.get() {
            return;
        }
        if self.has_work() || !self.armed.get() {
            if !self.kicked.replace(true) {
                self.shared.write_waker();
            }
        } else if let Some(kernel) = &mut *self.kernel.borrow_mut() {
            kernel.wake_at(self.registry.borrow().nearest_deadline());
        }
    }

    /// Ends the loop: drops all it owns and leaves handles without effect.
    pub(crate) fn close(&self) {
        // First, so that whatever the drops below call finds the loop gone.
        let kernel = self.kernel.take();
        let inbox = self.shared.close();
        let sources = self.registry.take().into_sources();
        let posts = self.posts.take();
        let inits = self.inits.take();
        drop((sources, posts, inits, inbox, kernel));
    }
}

impl EventLoop for Inner {
    fn handle(&self) -> Rc<dyn EventLoop> {
        self.local().inner
    }

    fn remote(&self) -> Arc<dyn Remote> {
        remote(&self.shared)
    }

    fn add_source(&self, source: Box<dyn Source>) -> SourceId {
        SourceId(self.add(true, |_| source).0)
    }

    fn remove_source(&self, id: SourceId) {
        self.remove(Key(id.0));
    }

    fn watch(&self, id: SourceId, fd: BorrowedFd<'_>, token: usize, interest: Interest) -> io::Result<WatchId> {
        self.watch_raw(Key(id.0), fd.as_raw_fd(), token, interest).map(|key| WatchId(key.0))
    }

    fn unwatch(&self, watch: WatchId, fd: BorrowedFd<'_>) {
        let kernel = self.kernel.borrow();
        let Some(kernel) = &*kernel else { return };
        if self.registry.borrow_mut().unwatch(Key(watch.0)) {
            kernel.deregister(fd.as_raw_fd());
        }
    }

    fn redeliver(&self, id: SourceId, token: usize, ready: Ready) {
        self.registry.borrow_mut().redeliver(Key(id.0), token, ready);
        self.work_came();
    }

    fn set_deadline(&self, id: SourceId, at: Option<Instant>) {
        self.registry.borrow_mut().set_deadline(Key(id.0), at);
        self.work_came();
    }

    fn schedule(&self) {
        self.scheduled.set(true);
        self.work_came();
    }

    fn now(&self) -> Instant {
        if self.phase.get() == Phase::Turn { self.turn_began.get() } else { Instant::now() }
    }

    fn clock(&self) -> Instant {
        Instant::now()
    }

    fn is_running(&self) -> bool {
        self.phase.get() == Phase::Turn
    }

    fn counters(&self) -> Arc<LoopCounters> {
        self.counters.clone()
    }

    fn run(&self) -> Result<(), RunError> {
        self.drive(&mut || false, None).map(drop)
    }

    fn run_for(&self, time: Duration) -> Result<(), RunError> {
        self.drive(&mut || false, Some(after(time))).map(drop)
    }

    fn run_until(&self, condition: &mut dyn FnMut() -> bool, limit: Duration) -> Result<bool, RunError> {
        self.drive(condition, Some(after(limit)))
    }

    fn run_once(&self, limit: Option<Duration>) -> Result<(), RunError> {
        self.single(limit.map(after))
    }

    fn stop(&self) {
        self.shared.stop_here();
    }
}

/// The time that long from now; what overflows is far enough away.
pub(crate) fn after(time: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(time).unwrap_or_else(|| now + FAR_AWAY)
}

pub(crate) fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the event loop was dropped")
}

const FAR_AWAY: Duration = Duration::from_secs(60 * 60 * 24 * 365 * 30);
