//! A loop as its own callbacks hold it.

use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use netio3_core::{Budget, RunError};

use crate::delegate::delegate_event_loop;
use crate::inner::Inner;

/// A handle to an [`EpollEventLoop`](crate::EpollEventLoop) on its thread, for closures to own.
///
/// Cloning is cheap. It does not keep the loop alive: once the owner is dropped, its calls do nothing,
/// and what is added is dropped at once.
///
/// Everything may be called at any time on the loop's thread, also inside callbacks, where
/// only the `run` family and [`process`](Self::process) fail. A closure that panics is dropped, and nothing else
/// is; the panic leaves `run*`, which may be called again.
#[derive(Clone)]
pub struct Handle {
    pub(crate) inner: Rc<Inner>,
}

impl Handle {
    /// Another handle to the same loop.
    pub fn local(&self) -> Self {
        self.clone()
    }

    /// Runs a closure in the next turn, or in this one if its posts are still to come. Closures run in the
    /// order of posting; those posted by one of them wait for the next turn. `false` when the loop is gone.
    pub fn post(&self, job: impl FnOnce(&Self) + 'static) -> bool {
        self.inner.push_post(Box::new(job))
    }

    /// Runs a closure once on the loop's thread at the start of the next `run*` or `process`, before anything else; called
    /// inside one, it waits for the one after it, unless such a closure calls it: then its turn comes behind that.
    pub fn on_init(&self, init: impl FnOnce(&Self) + 'static) {
        if !self.inner.is_gone() {
            self.inner.inits.borrow_mut().push_back(Box::new(init));
            self.inner.work_came();
        }
    }

    /// One turn without sleeping, for a foreign loop that found the descriptor readable; leaves the
    /// descriptor readable if there is more to do.
    ///
    /// # Errors
    /// [`RunError::Nested`] inside a callback; [`RunError::Wait`] when the kernel refuses or the loop is gone.
    pub fn process(&self) -> Result<(), RunError> {
        self.inner.process()
    }

    /// How long the loop looks for events before it sleeps, calling [`poll`](netio3_core::Source::poll) of every
    /// source over and over. This trades a core for latency; zero, the default, sleeps at once.
    pub fn set_spin(&self, time: Duration) {
        self.inner.spin.set(time);
    }

    /// What a source may do in a turn before others have theirs; at first [`Budget::DEFAULT`].
    ///
    /// Deliveries of one turn share one budget per source; `before_sleep` and `poll` get a fresh one. At
    /// most as many posts run in a turn as there are messages in it. A part that is zero counts as one: with nothing
    /// allowed nothing would ever be done.
    pub fn set_budget(&self, budget: Budget) {
        self.inner.budget.set(Budget { messages: budget.messages.max(1), bytes: budget.bytes.max(1) });
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("phase", &self.inner.phase.get()).finish_non_exhaustive()
    }
}

delegate_event_loop!(Handle, self => self.inner);
