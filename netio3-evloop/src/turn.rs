//! Running: a turn, its phases, and the sleep before it.

use std::cell::Cell;
use std::io;
use std::thread;
use std::time::Instant;

use netio3_core::{Budget, Next, Polled, RunError, Source};

use crate::inner::{Inner, Phase, Post, gone};
use crate::kernel::Fetched;

impl Inner {
    /// Turns until the condition holds, the end is reached or somebody stops; tells whether it holds.
    pub(crate) fn drive(&self, condition: &mut dyn FnMut() -> bool, end: Option<Instant>) -> Result<bool, RunError> {
        let _running = self.enter()?;
        self.begin();
        let mut stop_turns = 0;
        let mut ended = false;
        loop {
            let holds = condition();
            if holds || ended || self.is_gone() {
                self.shared.clear_stop();
                return Ok(holds);
            }
            let stopping = self.shared.is_stopped();
            let delivered = self.counters.events.get();
            self.turn(end)?;
            ended = end.is_some_and(|end| end <= self.latest.get());
            if stopping {
                stop_turns += 1;
                let drained = self.counters.events.get() == delivered && !self.has_work() && self.arm();
                ended |= drained || stop_turns == STOP_TURNS;
            }
        }
    }

    /// One turn.
    pub(crate) fn single(&self, limit: Option<Instant>) -> Result<(), RunError> {
        let _running = self.enter()?;
        self.begin();
        let result = self.turn(limit);
        self.shared.clear_stop();
        result
    }

    /// One turn without sleeping, for a foreign loop.
    pub(crate) fn process(&self) -> Result<(), RunError> {
        let _running = self.enter()?;
        self.nested.set(true);
        self.run_inits();
        self.look().map_err(RunError::Wait)?;
        self.work();
        if !self.has_work() {
            self.arm();
        }
        Ok(())
    }

    fn enter(&self) -> Result<Running<'_>, RunError> {
        if self.phase.get() != Phase::Idle {
            return Err(RunError::Nested);
        }
        if self.is_gone() {
            return Err(RunError::Wait(gone()));
        }
        self.phase.set(Phase::Between);
        self.shared.rise();
        Ok(Running(self))
    }

    /// What comes before the first turn: init callbacks, and what was called before running.
    fn begin(&self) {
        // Whoever runs the loop for an instant only is told of descriptors too.
        self.polls.set(POLLS_WITHOUT_FETCH);
        self.run_inits();
        // With work at hand the first turn does not sleep, and asks at its end.
        if !self.has_work() {
            self.ask_sources();
        }
        self.phase.set(Phase::Between);
    }

    fn turn(&self, limit: Option<Instant>) -> Result<(), RunError> {
        self.phase.set(Phase::Turn);
        self.wait(limit).map_err(RunError::Wait)?;
        self.work();
        self.phase.set(Phase::Between);
        Ok(())
    }

    /// Fetches events, after spinning and sleeping if there is nothing else to do, and reads the clock.
    fn wait(&self, limit: Option<Instant>) -> io::Result<()> {
        if self.has_work() || self.shared.is_stopped() {
            return self.look();
        }
        if !self.spin.get().is_zero() && self.spin(limit)? {
            return Ok(());
        }
        loop {
            let rests = self.arm() && !self.shared.is_stopped();
            let deadline = earlier(limit, self.registry.borrow().nearest_deadline());
            // What is due since the clock was read wakes the loop at once.
            if !rests || deadline.is_some_and(|at| at <= self.latest.get()) {
                return self.look();
            }
            if let Some(kernel) = &mut *self.kernel.borrow_mut() {
                kernel.wake_at(deadline);
            }
            if !self.shared.try_sleep() {
                return self.look();
            }
            let found = self.fetch(true)?;
            self.counters.wakeups.add(1);
            self.take_notice();
            // Otherwise the timer fired for a deadline that has moved since.
            let now = self.read_clock();
            if found.any || self.noticed.get() || deadline.is_some_and(|at| at <= now) {
                return Ok(());
            }
        }
    }

    /// Fetches what there is, and reads the clock.
    fn look(&self) -> io::Result<()> {
        self.fetch(false)?;
        self.take_notice();
        self.read_clock();
        Ok(())
    }

    /// Looks everywhere over and over instead of sleeping, and reads the clock; tells whether there is something to do.
    fn spin(&self, limit: Option<Instant>) -> io::Result<bool> {
        let began = self.read_clock();
        loop {
            let before = self.latest.get();
            let found = self.poll_sources()?;
            self.take_notice();
            let now = self.read_clock();
            if found {
                // What was found was handled, and may have taken as long as a turn.
                self.counters.longest_turn_ns.raise(now.saturating_duration_since(before).as_nanos() as u64);
            }
            self.turn_began.set(now);
            let deadline = earlier(limit, self.registry.borrow().nearest_deadline());
            if found || self.has_work() || self.shared.is_stopped() || deadline.is_some_and(|at| at <= now) {
                return Ok(true);
            }
            if now.saturating_duration_since(began) >= self.spin.get() {
                return Ok(false);
            }
        }
    }

    /// Looks once at all devices that can be polled and, where there are some, less often at the kernel: that takes
    /// longer. If they are all there is to wait for, the kernel has nothing to say. Tells whether there was something.
    fn poll_sources(&self) -> io::Result<bool> {
        self.armed.set(false);
        let found = Cell::new(Polled::NoDevice);
        self.each_hooked(|source| found.set(found.get().max(self.within_budget(|budget| source.poll(self, budget)))));
        if found.get() != Polled::NoDevice && !self.registry.borrow().has_watches() {
            return Ok(found.get() == Polled::Something);
        }
        let polls = self.polls.get() + 1;
        let enough = match found.get() {
            Polled::NoDevice => 0,
            Polled::Nothing => POLLS_PER_FETCH,
            // What it leads to goes first.
            Polled::Something => POLLS_WITHOUT_FETCH,
        };
        if polls < enough {
            self.polls.set(polls);
            return Ok(found.get() == Polled::Something);
        }
        self.polls.set(0);
        Ok(self.fetch(false)?.any || found.get() == Polled::Something)
    }

    /// Has every source make sure that its descriptors wake the loop, when there is no work; tells whether they will.
    fn arm(&self) -> bool {
        if !self.armed.get() {
            let phase = self.phase.replace(Phase::Turn);
            self.armed.set(true);
            self.each_hooked(|source| self.armed.set(source.may_sleep(self) && self.armed.get()));
            self.phase.set(phase);
        }
        self.armed.get() && !self.has_work()
    }

    fn fetch(&self, wait: bool) -> io::Result<Fetched> {
        self.kicked.set(false);
        let mut kernel = self.kernel.borrow_mut();
        // A source may have dropped the loop while spinning.
        let Some(kernel) = &mut *kernel else { return Ok(Fetched { any: true, full: false }) };
        let mut registry = self.registry.borrow_mut();
        let found = kernel.fetch(wait, |watch, ready| registry.fetched(watch, ready))?;
        self.full.set(found.full);
        Ok(found)
    }

    fn take_notice(&self) {
        if self.shared.take_notice() {
            self.noticed.set(true);
        }
    }

    /// Everything of a turn but waiting, which ended when the clock was read last.
    fn work(&self) {
        let began = self.latest.get();
        self.turn_began.set(began);
        self.counters.turns.add(1);
        self.read_inbox();
        let sources = self.registry.borrow_mut().line_up();
        for _ in 0..sources {
            self.deliver_to_next();
        }
        self.run_posts();
        self.run_timeouts();
        self.ask_sources();
        self.counters.longest_turn_ns.raise(self.read_clock().saturating_duration_since(began).as_nanos() as u64);
    }

    /// Reads the clock and remembers what it said, so that a turn need not read it again.
    fn read_clock(&self) -> Instant {
        let now = Instant::now();
        self.latest.set(now);
        now
    }

    fn read_inbox(&self) {
        if !self.noticed.replace(false) {
            return;
        }
        let inbox = self.shared.take_inbox();
        self.posts.borrow_mut().extend(inbox.jobs.into_iter().map(Post::Remote));
        let mut registry = self.registry.borrow_mut();
        for signal in inbox.fired {
            registry.redeliver(signal, 0, netio3_core::Ready::NONE);
        }
    }

    /// Delivers to the next source what is due to it now, within its budget.
    fn deliver_to_next(&self) {
        let next = self.registry.borrow_mut().pop_ready();
        let Some((key, mut left)) = next else { return };
        self.with_source(key, |source| {
            let mut budget = self.budget.get();
            let mut sending = self.budget.get();
            let mut told = true;
            while !left.is_nothing() {
                let due = self.registry.borrow_mut().pop_due(key, &mut left);
                let Some(due) = due else { break };
                if due.late && !told {
                    source.delivered(self, &mut sending);
                }
                told = false;
                self.counters.events.add(1);
                if source.ready(self, due.number, due.ready, &mut budget) == Next::Again {
                    self.registry.borrow_mut().again(key, due);
                }
                if budget.is_spent() {
                    self.counters.budget_hits.add(1);
                    break;
                }
            }
            if !told {
                source.delivered(self, &mut sending);
            }
        });
        self.registry.borrow_mut().relist(key, left);
    }

    fn run_posts(&self) {
        // What a post posts waits for the next turn, and so do posts beyond the budget.
        let count = self.posts.borrow().len().min(self.budget.get().messages);
        for _ in 0..count {
            let post = self.posts.borrow_mut().pop_front();
            match post {
                Some(Post::Local(job)) => job(&self.local()),
                Some(Post::Remote(job)) => job(self),
                None => break,
            }
        }
    }

    fn run_timeouts(&self) {
        let now = self.turn_began.get();
        // Counted before, and each behind the last one, so that a source whose next deadline has passed already waits for the
        // next turn, and keeps nobody else waiting.
        let count = self.registry.borrow().passed(now);
        let mut last = None;
        for _ in 0..count {
            last = self.registry.borrow_mut().pop_passed(now, last);
            let Some((at, key)) = last else { break };
            self.passed_deadline.set(at);
            self.with_source(key, |source| source.timeout(self));
        }
    }

    fn ask_sources(&self) {
        self.armed.set(false);
        self.again.set(false);
        self.scheduled.set(false);
        self.each_hooked(|source| {
            if self.within_budget(|budget| source.before_sleep(self, budget)) == Next::Again {
                self.again.set(true);
            }
        });
    }

    /// Calls every hooked source there is now. Those that are added meanwhile have their turn next time.
    fn each_hooked(&self, call: impl Fn(&mut dyn Source)) {
        let last = self.registry.borrow().last_hooked();
        let mut called = None;
        while called < last {
            called = self.registry.borrow().next_hooked(called);
            let Some(key) = called.filter(|_| called <= last) else { return };
            self.with_source(key, &call);
        }
    }

    /// Makes a call with a budget of its own: one spent on reading must not keep a source from sending.
    fn within_budget<R>(&self, call: impl FnOnce(&mut Budget) -> R) -> R {
        let mut budget = self.budget.get();
        let answer = call(&mut budget);
        if budget.is_spent() {
            self.counters.budget_hits.add(1);
        }
        answer
    }

    fn run_inits(&self) {
        self.phase.set(Phase::Turn);
        // Deadlines of what they open count from now.
        self.turn_began.set(self.read_clock());
        loop {
            let init = self.inits.borrow_mut().pop_front();
            let Some(init) = init else { break };
            init(&self.local());
        }
    }
}

/// Proof that the loop runs; dropping it ends that, also by a panic.
struct Running<'a>(&'a Inner);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let Self(inner) = self;
        inner.phase.set(Phase::Idle);
        if thread::panicking() {
            // The turn was cut short: the next one comes without sleeping.
            inner.scheduled.set(true);
        }
        // From here on the first wake-up writes the descriptor; one that came before is a notice, which
        // the next run finds, and a foreign loop by what `settle` does.
        inner.shared.try_sleep();
        inner.settle();
    }
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// How often devices are polled for each look at the kernel, which takes some hundred nanoseconds.
const POLLS_PER_FETCH: u32 = 4;
/// How often at most, when they have something every time.
const POLLS_WITHOUT_FETCH: u32 = 16;
/// How many turns, none of which sleeps, `stop` grants to what is pending.
const STOP_TURNS: usize = 5;
