//! What a backend needs of an event loop, and what a loop needs of a backend.
//!
//! A loop belongs to the thread that made it. It calls the [`Source`]s added to it one at a time,
//! in turns; a turn collects what is ready, hands it out within the [`Budget`], and ends by asking
//! every source whether the loop may sleep.

use std::ops::{BitOr, BitOrAssign};
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::RunError;
use crate::stats::LoopCounters;

/// An event loop, on the thread that runs it.
///
/// Every method may be called from inside callbacks, but the `run` family fails there.
pub trait EventLoop {
    /// A handle to this loop that owns its share of it. Once the loop itself is dropped, the handle's
    /// calls do nothing, and those that can fail do.
    fn handle(&self) -> Rc<dyn EventLoop>;

    /// A handle for other threads.
    fn remote(&self) -> Arc<dyn Remote>;

    /// Adds a source. It is owned by the loop until removed, dropped with the loop, or dropped because
    /// it panicked.
    fn add_source(&self, source: Box<dyn Source>) -> SourceId;

    /// Removes a source at once: nothing is delivered to it any more, events already fetched
    /// included. A source that is running at this moment is dropped when it returns.
    fn remove_source(&self, id: SourceId);

    /// Watches a descriptor for a source. Readiness comes edge-wise, as `ready(token, …)`; a source
    /// that did not use it up returns [`Next::Again`] or calls [`redeliver`](Self::redeliver).
    ///
    /// # Errors
    /// The kernel refused, or the loop is gone.
    fn watch(&self, id: SourceId, fd: BorrowedFd<'_>, token: usize, interest: Interest) -> std::io::Result<WatchId>;

    /// Ends a watch at once: events already fetched are discarded. Call it before closing `fd`.
    fn unwatch(&self, watch: WatchId, fd: BorrowedFd<'_>);

    /// Delivers `ready(token, ready)` to the source in the next turn, which then comes without
    /// sleeping. Nothing is delivered twice: a token already due is merged.
    fn redeliver(&self, id: SourceId, token: usize, ready: Ready);

    /// Sets or clears the one deadline of a source; [`Source::timeout`] is called once it has passed.
    fn set_deadline(&self, id: SourceId, at: Option<Instant>);

    /// Makes sure that `before_sleep` of every source runs soon, although nothing is ready.
    fn schedule(&self);

    /// The time at which this turn began; outside turns, the time now.
    fn now(&self) -> Instant;

    /// The time now, also inside a turn: for what begins in a callback, which may have taken long. By default as
    /// [`now`](Self::now).
    fn clock(&self) -> Instant {
        self.now()
    }

    /// Whether the loop is inside a turn, so that what is scheduled is done at its end.
    fn is_running(&self) -> bool;

    /// The loop's counters, readable from any thread.
    fn counters(&self) -> Arc<LoopCounters>;

    /// Runs until [`stop`](Self::stop).
    ///
    /// # Errors
    /// [`RunError::Nested`] inside a callback; [`RunError::Wait`] when the kernel refuses to wait.
    fn run(&self) -> Result<(), RunError>;

    /// Runs for this long, or until stopped.
    ///
    /// # Errors
    /// As for [`run`](Self::run).
    fn run_for(&self, time: Duration) -> Result<(), RunError>;

    /// Runs until `condition` holds, the time is over, or stopped; tells whether the condition holds.
    /// It is looked at before the first turn and after every turn.
    ///
    /// # Errors
    /// As for [`run`](Self::run).
    fn run_until(&self, condition: &mut dyn FnMut() -> bool, limit: Duration) -> Result<bool, RunError>;

    /// One turn, sleeping at most `limit` (`None`: until something happens).
    ///
    /// # Errors
    /// As for [`run`](Self::run).
    fn run_once(&self, limit: Option<Duration>) -> Result<(), RunError>;

    /// Ends the running `run*` after draining what is pending, within a bounded number of turns.
    /// Without one running it ends the next one before it sleeps.
    fn stop(&self);
}

/// Something to be run on a loop's thread.
pub type Job = Box<dyn FnOnce(&dyn EventLoop) + Send>;

/// The part of a loop that other threads may use. When the loop is gone, its calls do nothing.
pub trait Remote: Send + Sync {
    /// Makes the loop run a turn soon; any number of calls before that turn are one.
    /// Cheap while the loop is awake: no system call is made then.
    fn wake(&self);

    /// Runs `job` on the loop's thread; `false` when the loop is gone (the job is dropped).
    fn post(&self, job: Job) -> bool;

    /// [`EventLoop::stop`] from any thread.
    fn stop(&self);

    /// Whether the calling thread is the loop's.
    fn is_loop_thread(&self) -> bool;
}

/// Something a loop drives: a backend, or one of the loop's own conveniences.
///
/// If a method panics the loop drops the source, and the panic leaves `run*`.
pub trait Source {
    /// A watched descriptor is ready, or `redeliver` said so. Work within the budget; when it is used
    /// up before the readiness, return [`Next::Again`] and be called again with the same in the next turn.
    fn ready(&mut self, ev: &dyn EventLoop, token: usize, ready: Ready, budget: &mut Budget) -> Next {
        let _ = (ev, token, ready, budget);
        Next::Wait
    }

    /// What was due has been delivered, and others have their turn; or what follows was left over in an earlier turn and
    /// may take long. Send what is queued, within the budget, so that it does not wait for them.
    fn delivered(&mut self, ev: &dyn EventLoop, budget: &mut Budget) {
        let _ = (ev, budget);
    }

    /// The deadline has passed and is cleared; set the next one.
    fn timeout(&mut self, ev: &dyn EventLoop) {
        let _ = ev;
    }

    /// The turn ends: send what is queued, deliver what is due. [`Next::Again`] forbids sleeping.
    fn before_sleep(&mut self, ev: &dyn EventLoop, budget: &mut Budget) -> Next {
        let _ = (ev, budget);
        Next::Wait
    }

    /// Called over and over instead of sleeping while the loop spins, for devices that can be polled. What it finds
    /// it handles, within the budget.
    fn poll(&mut self, ev: &dyn EventLoop, budget: &mut Budget) -> Polled {
        let _ = (ev, budget);
        Polled::NoDevice
    }

    /// The loop is about to sleep, having spun in vain: whether descriptors and the deadline will wake it for everything
    /// of this source. If not, a turn follows instead. It calls nobody back; what there is to do waits for the turn.
    fn may_sleep(&mut self, ev: &dyn EventLoop) -> bool {
        let _ = ev;
        true
    }
}

/// Names a source of one loop; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SourceId(pub u64);

/// Names a watched descriptor of one loop; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WatchId(pub u64);

/// What a source wants after a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing until something happens.
    Wait,
    /// To be called again without the loop sleeping before.
    Again,
}

/// What a source found when it was polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Polled {
    /// It has nothing that could be polled; its descriptors tell everything.
    NoDevice,
    /// Nothing.
    Nothing,
    /// Something, which was handled, so that the turn goes on.
    Something,
}

/// What a source may still do in this turn, so that no source starves another.
///
/// A source subtracts what it did; both may fall to zero but not below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Messages.
    pub messages: usize,
    /// Bytes.
    pub bytes: usize,
}

impl Budget {
    /// The default of a loop: a turn of a flooding source then takes about a millisecond. What one read or completion
    /// brought is handed out whole, over TCP up to 516 KiB.
    pub const DEFAULT: Self = Self { messages: 8_192, bytes: 1 << 20 };

    /// Takes this much away.
    pub fn spend(&mut self, messages: usize, bytes: usize) {
        self.messages = self.messages.saturating_sub(messages);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// Whether either part is used up.
    pub fn is_spent(&self) -> bool {
        self.messages == 0 || self.bytes == 0
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// What to watch a descriptor for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Reading.
    Readable,
    /// Writing.
    Writable,
    /// Both.
    Both,
}

/// What a descriptor is ready for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready(u8);

impl Ready {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Something can be read, or reading would tell of an end or an error.
    pub const READABLE: Self = Self(1);
    /// Something can be written.
    pub const WRITABLE: Self = Self(2);
    /// The peer will send nothing more. After a short read this means: read on to the end.
    pub const READ_CLOSED: Self = Self(4);
    /// The descriptor has an error to tell.
    pub const ERROR: Self = Self(8);

    /// Whether all of `other` is in this.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether there is nothing in this.
    pub fn is_none(self) -> bool {
        self.0 == 0
    }

    /// This without `other`.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl BitOr for Ready {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Ready {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}
