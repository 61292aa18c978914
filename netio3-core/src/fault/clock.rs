//! Time that only moves when told to.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::event_loop::Remote;

/// A virtual clock, shared by its clones. It stands still until advanced; nothing ever sleeps.
///
/// What waits for a time puts it on the clock as an *event*, so that a simulation can go from one to the next.
/// An event is only a hint to look again; nothing is called.
#[derive(Clone)]
pub struct Clock(Arc<Mutex<State>>);

struct State {
    now: Instant,
    events: BTreeSet<Instant>,
    /// Loops with something before them that looks at this clock.
    loops: Vec<Arc<dyn Remote>>,
}

impl Clock {
    /// A clock that stands still.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(State { now: Instant::now(), events: BTreeSet::new(), loops: Vec::new() })))
    }

    /// The virtual time; only differences mean anything.
    pub fn now(&self) -> Instant {
        self.0.lock().now
    }

    /// Moves the time on, and wakes the loops of the backends that depend on it.
    pub fn advance(&self, by: Duration) {
        let mut state = self.0.lock();
        state.now += by;
        let now = state.now;
        state.events = state.events.split_off(&(now + Duration::from_nanos(1)));
        let loops = state.loops.clone();
        drop(state);
        loops.iter().for_each(|remote| remote.wake());
    }

    /// The next time at which something waits, later than now.
    pub fn next_event(&self) -> Option<Instant> {
        self.0.lock().events.first().copied()
    }

    /// Moves the time on to the next event; `false` when there is none.
    pub fn advance_to_next_event(&self) -> bool {
        let Some(at) = self.next_event() else { return false };
        self.advance(at.saturating_duration_since(self.now()));
        true
    }

    /// Puts an event on the clock; one that is not in the future is left out.
    pub fn add_event(&self, at: Instant) {
        let mut state = self.0.lock();
        if at > state.now {
            state.events.insert(at);
        }
    }

    /// Wakes this loop whenever the time moves.
    pub(super) fn add_loop(&self, remote: Arc<dyn Remote>) {
        self.0.lock().loops.push(remote);
    }

    /// Undoes one `add_loop`.
    pub(super) fn remove_loop(&self, remote: &Arc<dyn Remote>) {
        let mut state = self.0.lock();
        if let Some(index) = state.loops.iter().position(|known| Arc::ptr_eq(known, remote)) {
            state.loops.swap_remove(index);
        }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.0.lock();
        f.debug_struct("Clock").field("now", &state.now).field("events", &state.events.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_from_event_to_event() {
        let clock = Clock::new();
        let start = clock.now();
        let ms = Duration::from_millis;
        for at in [30, 10, 10, 0] {
            clock.add_event(start + ms(at));
        }
        assert!(clock.advance_to_next_event());
        assert_eq!(clock.now(), start + ms(10));
        assert_eq!(clock.next_event(), Some(start + ms(30)));
        clock.clone().advance(ms(25));
        assert_eq!(clock.now(), start + ms(35));
        assert!(!clock.advance_to_next_event());
    }
}
