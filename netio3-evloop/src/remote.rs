//! What other threads may do to a loop, and how they wake it without needless system calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread::{self, ThreadId};

use mio::Waker;
use netio3_core::{Job, Remote};
use parking_lot::Mutex;

use crate::arena::Key;

/// The part of a loop that every thread may touch.
///
/// `state` decides who makes the system call. The loop is `AWAKE` while it works, and whoever wakes it
/// then only leaves `NOTIFIED` behind, which the loop finds before it sleeps. It sleeps, or leaves
/// `run`, by going from `AWAKE` to `ASLEEP`; the first to change that to `NOTIFIED` writes the
/// wake-up descriptor. Every change is a read-modify-write, so all of them have one order: a wake-up either
/// precedes the loop's [`take_notice`](Self::take_notice), which then sees all the waker did before,
/// or follows it and keeps the loop from sleeping.
pub(crate) struct Shared {
    state: AtomicU8,
    stop: AtomicBool,
    inbox: Mutex<Inbox>,
    waker: Waker,
    thread: ThreadId,
}

/// What other threads left for the loop.
#[derive(Default)]
pub(crate) struct Inbox {
    closed: bool,
    pub(crate) jobs: Vec<Job>,
    pub(crate) fired: Vec<Key>,
}

// On the loop's thread.
impl Shared {
    pub(crate) fn new(waker: Waker) -> Self {
        let state = AtomicU8::new(ASLEEP);
        Self { state, stop: AtomicBool::new(false), inbox: Mutex::default(), waker, thread: thread::current().id() }
    }

    /// The loop begins to work. A notice stays.
    pub(crate) fn rise(&self) {
        let _ = self.state.compare_exchange(ASLEEP, AWAKE, Ordering::AcqRel, Ordering::Acquire);
    }

    /// The loop will sleep, unless there is a notice.
    pub(crate) fn try_sleep(&self) -> bool {
        self.state.compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The loop woke, or looks whether it should: takes the notice if there is one.
    pub(crate) fn take_notice(&self) -> bool {
        // The load spares the common case the read-modify-write; a notice after it is found next time.
        self.state.load(Ordering::Acquire) != AWAKE && self.state.swap(AWAKE, Ordering::AcqRel) == NOTIFIED
    }

    pub(crate) fn is_notified(&self) -> bool {
        self.state.load(Ordering::Acquire) == NOTIFIED
    }

    /// Makes the loop's descriptor readable.
    pub(crate) fn write_waker(&self) {
        if let Err(error) = self.waker.wake() {
            tracing::error!(%error, "cannot wake the event loop");
        }
    }

    pub(crate) fn take_inbox(&self) -> Inbox {
        let mut inbox = self.inbox.lock();
        Inbox { closed: inbox.closed, jobs: std::mem::take(&mut inbox.jobs), fired: std::mem::take(&mut inbox.fired) }
    }

    /// The loop is gone; what is in the inbox is for the caller to drop.
    pub(crate) fn close(&self) -> Inbox {
        self.inbox.lock().closed = true;
        self.take_inbox()
    }

    pub(crate) fn stop_here(&self) {
        self.stop.store(true, Ordering::Release);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    pub(crate) fn clear_stop(&self) {
        self.stop.store(false, Ordering::Release);
    }
}

// On any thread.
impl Shared {
    /// Delivers to the source of a signal.
    pub(crate) fn fire(&self, source: Key) {
        let mut inbox = self.inbox.lock();
        if inbox.closed {
            return;
        }
        inbox.fired.push(source);
        drop(inbox);
        self.wake();
    }
}

impl Remote for Shared {
    fn wake(&self) {
        if self.state.swap(NOTIFIED, Ordering::AcqRel) == ASLEEP {
            self.write_waker();
        }
    }

    fn post(&self, job: Job) -> bool {
        let mut inbox = self.inbox.lock();
        if inbox.closed {
            // The job is dropped by the caller's frame, after the lock.
            drop(inbox);
            return false;
        }
        inbox.jobs.push(job);
        drop(inbox);
        self.wake();
        true
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
    }

    fn is_loop_thread(&self) -> bool {
        thread::current().id() == self.thread
    }
}

/// A loop's [`Remote`] as others get it.
pub(crate) fn remote(shared: &Arc<Shared>) -> Arc<dyn Remote> {
    shared.clone()
}

const AWAKE: u8 = 0;
const ASLEEP: u8 = 1;
const NOTIFIED: u8 = 2;
