//! Timers.

use std::time::{Duration, Instant};

use netio3_core::{EventLoop, Source};

use crate::arena::Key;
use crate::handle::Handle;
use crate::inner::after;

/// Names a timer of one loop; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerId(Key);

impl Handle {
    /// Calls a closure once, when `delay` has passed; then the timer is gone, unless the closure restarted it.
    ///
    /// A timer is never early. How late it is depends on what else the loop does; an idle loop is late by
    /// what the kernel needs to wake a thread, some 50 to 150 us. Timers fire in the order of their times.
    pub fn add_timer(&self, delay: Duration, call: impl FnMut(&Self) + 'static) -> TimerId {
        self.start_timer(delay, None, call)
    }

    /// Calls a closure every `period`, first when one has passed, until the timer is cancelled.
    ///
    /// The calls keep to the grid of the first one; those missed, because the loop was busy, are left out. A period
    /// of zero means every turn, without sleeping.
    pub fn add_interval(&self, period: Duration, call: impl FnMut(&Self) + 'static) -> TimerId {
        self.start_timer(period, Some(period), call)
    }

    /// Lets a timer fire (next) when `delay` has passed from now; `false` if there is no such timer any more.
    /// Inside its own callback, a timer that fires once is still there.
    pub fn restart_timer(&self, timer: TimerId, delay: Duration) -> bool {
        let found = self.inner.registry.borrow_mut().set_deadline(timer.0, Some(after(delay)));
        self.inner.work_came();
        found
    }

    /// Removes a timer at once; `false` if there is no such timer any more. Inside its own callback, the closure is dropped
    /// when it returns.
    pub fn cancel_timer(&self, timer: TimerId) -> bool {
        self.inner.remove(timer.0)
    }

    fn start_timer(&self, delay: Duration, period: Option<Duration>, call: impl FnMut(&Self) + 'static) -> TimerId {
        let handle = self.clone();
        let key = self.inner.add(false, |key| Box::new(Timer { key, handle, period, call }));
        self.inner.registry.borrow_mut().set_deadline(key, Some(after(delay)));
        self.inner.work_came();
        TimerId(key)
    }
}

struct Timer<F> {
    key: Key,
    handle: Handle,
    period: Option<Duration>,
    call: F,
}

impl<F: FnMut(&Handle)> Source for Timer<F> {
    fn timeout(&mut self, _: &dyn EventLoop) {
        let inner = &self.handle.inner;
        if let Some(period) = self.period {
            // Before the call, which may restart or cancel it.
            let next = next_on_grid(inner.passed_deadline.get(), period, inner.turn_began.get());
            inner.registry.borrow_mut().set_deadline(self.key, Some(next));
        }
        (self.call)(&self.handle);
        if self.period.is_none() && inner.registry.borrow().deadline(self.key).is_none() {
            inner.remove(self.key);
        }
    }
}

/// The first time after `now` that is a whole number of periods after `last`.
fn next_on_grid(last: Instant, period: Duration, now: Instant) -> Instant {
    let next = last.checked_add(period).unwrap_or_else(|| after(period));
    if next > now || period.is_zero() {
        return next;
    }
    let since_grid = (now - last).as_nanos() % period.as_nanos();
    now + period - Duration::from_nanos(since_grid as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missed_periods_are_left_out() {
        let last = Instant::now();
        let ms = Duration::from_millis;
        assert_eq!(next_on_grid(last, ms(10), last + ms(3)), last + ms(10));
        assert_eq!(next_on_grid(last, ms(10), last + ms(10)), last + ms(20));
        assert_eq!(next_on_grid(last, ms(10), last + ms(47)), last + ms(50));
        assert_eq!(next_on_grid(last, ms(0), last + ms(47)), last);
    }
}
