//! An event loop on virtual time, whose turns the schedule starts one by one.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use netio3_core::{Budget, EventLoop, Interest, Job, LoopCounters, Next, Ready, Remote, RunError, Source, SourceId, WatchId};

use super::kernel::Kernel;
use super::random::Random;

/// One loop of a schedule; its clones are the same loop.
#[derive(Clone)]
pub(super) struct SimLoop(Rc<Inner>);

struct Inner {
    me: Weak<Self>,
    kernel: Kernel,
    random: RefCell<Random>,
    sources: RefCell<BTreeMap<u64, Entry>>,
    due: RefCell<Vec<Due>>,
    scheduled: Cell<bool>,
    running: Cell<bool>,
    remote: Arc<SimRemote>,
    counters: Arc<LoopCounters>,
}

#[derive(Default)]
struct Entry {
    /// `None` while it runs.
    source: Option<Box<dyn Source>>,
    deadline: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Due {
    source: u64,
    /// `None`: from `redeliver`.
    watch: Option<WatchId>,
    token: usize,
    ready: Ready,
}

#[derive(Default)]
struct SimRemote {
    woken: AtomicBool,
    jobs: Mutex<Vec<Job>>,
}

impl SimLoop {
    pub(super) fn new(kernel: &Kernel, seed: u64) -> Self {
        Self(Rc::new_cyclic(|me| Inner {
            me: me.clone(),
            kernel: kernel.clone(),
            random: RefCell::new(Random::new(seed)),
            sources: RefCell::default(),
            due: RefCell::default(),
            scheduled: Cell::new(false),
            running: Cell::new(false),
            remote: Arc::default(),
            counters: Arc::default(),
        }))
    }

    pub(super) fn as_dyn(&self) -> &dyn EventLoop {
        &*self.0
    }

    /// Whether a turn would do anything.
    pub(super) fn has_work(&self) -> bool {
        let inner = &*self.0;
        let now = inner.now();
        inner.scheduled.get()
            || inner.remote.woken.load(Ordering::SeqCst)
            || !inner.due.borrow().is_empty()
            || inner.sources.borrow().values().any(|entry| entry.deadline.is_some_and(|at| at <= now))
            || inner.kernel.state().has_events(&inner.ids())
    }

    /// One turn, without waiting.
    pub(super) fn turn(&self) {
        let inner = &*self.0;
        assert!(!inner.running.replace(true), "turns do not nest");
        inner.scheduled.set(false);
        inner.remote.woken.store(false, Ordering::SeqCst);
        let events = {
            let ids = inner.ids();
            let mut state = inner.kernel.state();
            // Which source each belongs to is asked one by one: there are only a few.
            ids.iter().flat_map(|id| state.take_events(&[*id]).into_iter().map(|event| (*id, event))).collect::<Vec<_>>()
        };
        for (source, event) in events {
            inner.merge(Due { source, watch: Some(event.watch), token: event.token, ready: event.ready });
        }
        let due = inner.due.take();
        for due in due {
            if due.watch.is_some_and(|watch| !inner.kernel.state().is_watched(watch)) {
                continue;
            }
            let mut budget = inner.budget();
            if inner.with(due.source, |source| source.ready(inner, due.token, due.ready, &mut budget)) == Some(Next::Again) {
                inner.merge(due);
            }
        }
        let jobs = std::mem::take(&mut *inner.remote.jobs.lock().expect("no job runs under the lock"));
        jobs.into_iter().for_each(|job| job(inner));
        let now = inner.now();
        for id in inner.ids() {
            let passed = inner.sources.borrow_mut().get_mut(&id).and_then(|entry| entry.deadline.take_if(|at| *at <= now));
            if passed.is_some() {
                inner.with(id, |source| source.timeout(inner));
            }
        }
        for id in inner.ids() {
            let mut budget = inner.budget();
            if inner.with(id, |source| source.before_sleep(inner, &mut budget)) == Some(Next::Again) {
                inner.scheduled.set(true);
            }
        }
        inner.running.set(false);
    }
}

impl Inner {
    fn ids(&self) -> Vec<u64> {
        self.sources.borrow().keys().copied().collect()
    }

    /// Small ones, so that they are spent.
    fn budget(&self) -> Budget {
        let mut random = self.random.borrow_mut();
        Budget { messages: 1 + random.skewed(1_000), bytes: 1 + random.skewed(1 << 20) }
    }

    fn with<R>(&self, id: u64, call: impl FnOnce(&mut dyn Source) -> R) -> Option<R> {
        let mut source = self.sources.borrow_mut().get_mut(&id)?.source.take()?;
        let result = call(&mut *source);
        // One that was removed meanwhile is dropped here, with no borrow held.
        let removed = match self.sources.borrow_mut().get_mut(&id) {
            Some(entry) => entry.source.replace(source),
            None => Some(source),
        };
        drop(removed);
        Some(result)
    }

    fn merge(&self, due: Due) {
        let mut list = self.due.borrow_mut();
        let same = list.iter_mut().find(|known| (known.source, known.watch, known.token) == (due.source, due.watch, due.token));
        match same {
            Some(known) => known.ready |= due.ready,
            None => list.push(due),
        }
    }
}

impl EventLoop for Inner {
    fn handle(&self) -> Rc<dyn EventLoop> {
        self.me.upgrade().expect("a loop is owned while it is used")
    }

    fn remote(&self) -> Arc<dyn Remote> {
        self.remote.clone()
    }

    fn add_source(&self, source: Box<dyn Source>) -> SourceId {
        let id = self.kernel.state().new_id();
        self.sources.borrow_mut().insert(id, Entry { source: Some(source), deadline: None });
        self.schedule();
        SourceId(id)
    }

    fn remove_source(&self, id: SourceId) {
        let removed = self.sources.borrow_mut().remove(&id.0);
        self.due.borrow_mut().retain(|due| due.source != id.0);
        drop(removed);
    }

    fn watch(&self, _id: SourceId, _fd: BorrowedFd<'_>, _token: usize, _interest: Interest) -> io::Result<WatchId> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn unwatch(&self, _watch: WatchId, _fd: BorrowedFd<'_>) {}

    fn redeliver(&self, id: SourceId, token: usize, ready: Ready) {
        self.merge(Due { source: id.0, watch: None, token, ready });
    }

    fn set_deadline(&self, id: SourceId, at: Option<Instant>) {
        if let Some(entry) = self.sources.borrow_mut().get_mut(&id.0) {
            entry.deadline = at;
            at.inspect(|at| self.kernel.clock().add_event(*at));
        }
    }

    fn schedule(&self) {
        self.scheduled.set(true);
    }

    fn now(&self) -> Instant {
        self.kernel.clock().now()
    }

    fn is_running(&self) -> bool {
        self.running.get()
    }

    fn counters(&self) -> Arc<LoopCounters> {
        self.counters.clone()
    }

    fn run(&self) -> Result<(), RunError> {
        Err(driven_by_turns())
    }

    fn run_for(&self, _time: Duration) -> Result<(), RunError> {
        Err(driven_by_turns())
    }

    fn run_until(&self, _condition: &mut dyn FnMut() -> bool, _limit: Duration) -> Result<bool, RunError> {
        Err(driven_by_turns())
    }

    fn run_once(&self, _limit: Option<Duration>) -> Result<(), RunError> {
        Err(driven_by_turns())
    }

    fn stop(&self) {}
}

fn driven_by_turns() -> RunError {
    RunError::Wait(io::ErrorKind::Unsupported.into())
}

impl Remote for SimRemote {
    fn wake(&self) {
        self.woken.store(true, Ordering::SeqCst);
    }

    fn post(&self, job: Job) -> bool {
        self.jobs.lock().expect("no job runs under the lock").push(job);
        self.wake();
        true
    }

    fn stop(&self) {}

    fn is_loop_thread(&self) -> bool {
        true
    }
}
