//! The end of each turn: faults pass, and what was held back goes on.

use super::FaultBackend;
use crate::endpoint::Endpoint;
use crate::event_loop::{Budget, EventLoop, Next, Source};

/// The backend in front, as the loop sees it. Dropping it ends the backend.
pub(super) struct FaultSource {
    view: FaultBackend,
}

impl FaultSource {
    pub(super) fn new(view: FaultBackend) -> Self {
        Self { view }
    }
}

impl Source for FaultSource {
    fn before_sleep(&mut self, _: &dyn EventLoop, _: &mut Budget) -> Next {
        let core = &self.view.core;
        core.take_work();
        let mut last = None;
        while let Some(endpoint) = core.next_after(last) {
            self.view.tend(endpoint);
            last = Some(endpoint);
        }
        if core.take_work() { Next::Again } else { Next::Wait }
    }
}

impl Drop for FaultSource {
    fn drop(&mut self) {
        self.view.core.end();
    }
}

impl FaultBackend {
    fn tend(&self, endpoint: Endpoint) {
        let Some(inner) = self.core.inner() else { return };
        if self.core.with(endpoint, |connection| connection.take_doom()) {
            self.core.count(|counts| counts.resets += 1);
            // Should it have ended meanwhile, that has been told or will be.
            let _ = inner.abort(endpoint);
            return;
        }
        let now = self.core.clock.now();
        if self.core.with(endpoint, |connection| connection.end_stall(now)) {
            let _ = inner.resume(endpoint);
        }
        self.send_due(endpoint);
        self.tell_writable(endpoint);
    }

    /// Sends the messages on that are due.
    pub(super) fn send_due(&self, endpoint: Endpoint) {
        let now = self.core.clock.now();
        while let Some(held) = self.core.with(endpoint, |connection| connection.pop_due(now)) {
            if !self.send_on(endpoint, held) {
                return;
            }
        }
    }

    /// Sends all held messages on, due or not, as far as the backend behind has room.
    pub(super) fn send_all(&self, endpoint: Endpoint) {
        while let Some(held) = self.core.with(endpoint, |connection| connection.pop_held()) {
            if !self.send_on(endpoint, held) {
                return;
            }
        }
    }

    /// Tells the user *writable* if it is due.
    pub(super) fn tell_writable(&self, endpoint: Endpoint) {
        if let Some(address) = self.core.with(endpoint, |connection| connection.take_writable()) {
            self.core.call(|callbacks| callbacks.on_writable(self, endpoint, &address));
        }
    }
}
