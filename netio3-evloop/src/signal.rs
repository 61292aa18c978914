//! Signals: a closure on the loop's thread that any thread may fire.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use netio3_core::{Budget, EventLoop, Next, Ready, Source};

use crate::arena::Key;
use crate::handle::Handle;
use crate::remote::Shared;

/// Fires a closure of a loop, from any thread.
#[derive(Clone)]
pub struct Signal {
    key: Key,
    /// Fired, and the closure has not begun since.
    fired: Arc<AtomicBool>,
    shared: Arc<Shared>,
}

impl Signal {
    /// Makes the closure run soon on the loop's thread; any number of calls before it begins are one. What
    /// this thread did before is visible to the closure. Does nothing once the signal is removed or the
    /// loop is gone.
    pub fn fire(&self) {
        if !self.fired.swap(true, Ordering::AcqRel) {
            self.shared.fire(self.key);
        }
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signal").field("key", &self.key).finish_non_exhaustive()
    }
}

impl Handle {
    /// Adds a closure that any thread may fire. It stays until removed, also when no [`Signal`] is left.
    pub fn add_signal(&self, call: impl FnMut(&Self) + 'static) -> Signal {
        let fired = Arc::new(AtomicBool::new(false));
        let source = Slot { handle: self.clone(), fired: fired.clone(), call };
        let key = self.inner.add(false, |_| Box::new(source));
        Signal { key, fired, shared: self.inner.shared.clone() }
    }

    /// Removes a signal at once, even if it was fired; `false` if it was removed before.
    pub fn remove_signal(&self, signal: &Signal) -> bool {
        self.inner.remove(signal.key)
    }
}

struct Slot<C> {
    handle: Handle,
    fired: Arc<AtomicBool>,
    call: C,
}

impl<C: FnMut(&Handle)> Source for Slot<C> {
    fn ready(&mut self, _: &dyn EventLoop, _: usize, _: Ready, _: &mut Budget) -> Next {
        // Before the call: what is fired during it is another call. A swap, to see what the firing threads did.
        self.fired.swap(false, Ordering::AcqRel);
        (self.call)(&self.handle);
        Next::Wait
    }
}
