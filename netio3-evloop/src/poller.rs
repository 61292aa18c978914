//! Pollers: for hardware that has no descriptor.

use netio3_core::{Budget, EventLoop, Next, Polled, Source, SourceId};

use crate::handle::Handle;

impl Handle {
    /// Calls a closure at the end of every turn, before the loop sleeps, and over and over while it spins. A
    /// closure that returns [`Next::Again`] keeps the loop awake. Remove it with
    /// [`remove_source`](EventLoop::remove_source).
    pub fn add_poller(&self, call: impl FnMut(&Self) -> Next + 'static) -> SourceId {
        let handle = self.clone();
        SourceId(self.inner.add(true, |_| Box::new(Poller { handle, call })).0)
    }
}

struct Poller<C> {
    handle: Handle,
    call: C,
}

impl<C: FnMut(&Handle) -> Next> Source for Poller<C> {
    fn before_sleep(&mut self, _: &dyn EventLoop, _: &mut Budget) -> Next {
        (self.call)(&self.handle)
    }

    fn poll(&mut self, _: &dyn EventLoop, _: &mut Budget) -> Polled {
        match (self.call)(&self.handle) {
            Next::Again => Polled::Something,
            Next::Wait => Polled::Nothing,
        }
    }
}
