//! The source that the loop calls.

use std::rc::Rc;
use std::time::Instant;

use crate::engine::driver::Driver;
use crate::engine::sync::loop_side::LoopSide;
use crate::engine::{Transport, sync::shared::Shared};
use crate::event_loop::{Budget, EventLoop, Next, Polled, Ready, Source};

/// A synchronized backend as its loop sees it: the single-threaded one, fed from the mailboxes. Dropping it
/// ends the backend.
pub(super) struct FrontSource<T: Transport> {
    side: Rc<LoopSide<T>>,
    driver: Driver<T>,
    /// When the turn began in which something was delivered last.
    turn: Option<Instant>,
}

impl<T: Transport> FrontSource<T> {
    pub(super) fn new(side: Rc<LoopSide<T>>, driver: Driver<T>) -> Self {
        Self { side, driver, turn: None }
    }

    /// Runs the backend, unless it has ended: then the loop learns of that here, and gets the other answer.
    fn run<R>(&mut self, ev: &dyn EventLoop, ended: R, run: impl FnOnce(&LoopSide<T>, &mut Driver<T>) -> R) -> R {
        let Self { side, driver, .. } = self;
        let Shared { gate, inbox, .. } = &*side.shared;
        let mut answer = None;
        {
            let _inside = gate.lock();
            if !side.shared.is_gone() {
                inbox.attend();
                answer = Some(run(side, driver));
                if inbox.leave() {
                    ev.schedule();
                }
            }
        }
        if side.shared.is_gone() {
            side.tear_down();
            side.remove();
            return ended;
        }
        answer.unwrap_or(ended)
    }
}

impl<T: Transport> Source for FrontSource<T> {
    fn ready(&mut self, ev: &dyn EventLoop, token: usize, ready: Ready, budget: &mut Budget) -> Next {
        let first = self.turn.replace(ev.now()) != Some(ev.now());
        self.run(ev, Next::Wait, |side, driver| {
            if first && side.has_work() {
                // What was sent before the turn goes before what it brings: it may be the peer's goodbye.
                side.drain(&mut budget.clone());
            }
            driver.ready(ev, token, ready, budget)
        })
    }

    fn delivered(&mut self, ev: &dyn EventLoop, budget: &mut Budget) {
        self.run(ev, (), |side, driver| {
            side.drain(budget);
            driver.delivered(ev, budget);
        });
    }

    fn timeout(&mut self, ev: &dyn EventLoop) {
        self.run(ev, (), |_, driver| driver.timeout(ev));
    }

    fn before_sleep(&mut self, ev: &dyn EventLoop, budget: &mut Budget) -> Next {
        self.run(ev, Next::Wait, |side, driver| {
            let mut next = Next::Wait;
            // Twice, so that what callbacks send leaves in the same turn.
            for _ in 0..2 {
                side.engine().ending_turn.set(true);
                // A budget of its own: what the mailboxes bring must not keep the backend from its work.
                side.drain(&mut budget.clone());
                side.tell_refused();
                next = driver.before_sleep(ev, budget);
                side.tell_writable();
                if side.shared.is_gone() || !side.has_work() {
                    break;
                }
            }
            if !side.shared.is_gone() && side.has_work() {
                // So does what they sent in the second round, as far as that left something of the budget; its completions
                // are told in the next turn.
                side.drain(&mut budget.clone());
                driver.delivered(ev, budget);
            }
            side.trim();
            if side.has_work() || side.engine().has_work() { Next::Again } else { next }
        })
    }

    fn poll(&mut self, ev: &dyn EventLoop, budget: &mut Budget) -> Polled {
        self.run(ev, Polled::NoDevice, |_, driver| driver.poll(ev, budget))
    }

    fn may_sleep(&mut self, ev: &dyn EventLoop) -> bool {
        self.run(ev, true, |_, driver| driver.may_sleep(ev))
    }
}

impl<T: Transport> Drop for FrontSource<T> {
    fn drop(&mut self) {
        self.side.tear_down();
    }
}
