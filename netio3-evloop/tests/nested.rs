//! The loop inside a foreign epoll, which watches its descriptor by level and by edge.

mod util;

use std::cell::Cell;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use netio3_core::{Budget, EventLoop, Interest, Next, Ready};
use netio3_evloop::EpollEventLoop;
use rustix::event::{Timespec, epoll};

use util::{Count, LIMIT, Probe, count_bytes, event_loop, ms, pair};

/// A foreign loop.
struct Foreign {
    epoll: OwnedFd,
}

impl Foreign {
    fn around(event_loop: &EpollEventLoop, flags: epoll::EventFlags) -> Self {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        epoll::add(&epoll, event_loop.as_fd(), epoll::EventData::new_u64(1), epoll::EventFlags::IN | flags).unwrap();
        Self { epoll }
    }

    /// Whether the loop's descriptor became readable within that time.
    fn wait(&self, time: Duration) -> bool {
        let timeout = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) };
        let mut events = Vec::with_capacity(1);
        loop {
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
                Err(rustix::io::Errno::INTR) => {}
                other => return other.unwrap() == 1,
            }
        }
    }

    /// Processes only when told to, until the condition holds; how many times.
    #[track_caller]
    fn drive(&self, event_loop: &EpollEventLoop, mut condition: impl FnMut() -> bool) -> usize {
        let mut processed = 0;
        while !condition() {
            assert!(self.wait(LIMIT), "the descriptor does not become readable");
            event_loop.process().unwrap();
            processed += 1;
        }
        processed
    }

    /// Processes what there is until the descriptor is no longer readable.
    fn exhaust(&self, event_loop: &EpollEventLoop) {
        for _ in 0..10 {
            if !self.wait(Duration::ZERO) {
                return;
            }
            event_loop.process().unwrap();
        }
        panic!("the descriptor stays readable");
    }
}

/// Runs a test with either way of watching.
fn by_level_and_edge(test: impl Fn(&EpollEventLoop, &Foreign)) {
    for flags in [epoll::EventFlags::empty(), epoll::EventFlags::ET] {
        let event_loop = event_loop();
        let foreign = Foreign::around(&event_loop, flags);
        test(&event_loop, &foreign);
        foreign.exhaust(&event_loop);
        assert_eq!(event_loop.counters().snapshot().wakeups, 0, "process() never sleeps");
    }
}

#[test]
fn events_make_it_readable() {
    by_level_and_edge(|event_loop, foreign| {
        let (a, mut b) = pair();
        let bytes = count_bytes(event_loop, a);
        foreign.exhaust(event_loop);
        for n in 1..=100 {
            b.write_all(b"x").unwrap();
            foreign.drive(event_loop, || bytes.get() == n);
        }
    });
}

#[test]
fn deadlines_make_it_readable_in_time() {
    by_level_and_edge(|event_loop, foreign| {
        let fired = Count::default();
        for delay in [ms(3), ms(1), ms(2)] {
            let (count, start) = (fired.clone(), Instant::now());
            event_loop.add_timer(delay, move |_| {
                assert!(start.elapsed() >= delay);
                count.add();
            });
        }
        let processed = foreign.drive(event_loop, || fired.get() == 3);
        assert!(processed <= 8, "{processed} calls for three timers");
        // Set from foreign code, a nearer one after a farther one.
        let source = event_loop.add_source(Probe::timeout(move |ev| ev.stop()));
        foreign.exhaust(event_loop);
        event_loop.set_deadline(source, Some(Instant::now() + LIMIT * 2));
        event_loop.set_deadline(source, Some(Instant::now() + ms(1)));
        assert!(foreign.wait(LIMIT));
        event_loop.set_deadline(source, None);
    });
}

#[test]
fn unfinished_work_keeps_it_readable() {
    by_level_and_edge(|event_loop, foreign| {
        event_loop.set_budget(Budget { messages: 1, bytes: usize::MAX });
        let calls = Count::default();
        let count = calls.clone();
        let source = event_loop.add_source(Probe::ready(move |_, _, _, budget| {
            budget.spend(1, 0);
            if count.next() < 10 { Next::Again } else { Next::Wait }
        }));
        foreign.exhaust(event_loop);
        event_loop.redeliver(source, 0, Ready::READABLE);
        assert_eq!(foreign.drive(event_loop, || calls.get() == 10), 10);
    });
}

#[test]
fn a_source_that_says_again_keeps_it_readable() {
    by_level_and_edge(|event_loop, foreign| {
        let calls = Count::default();
        let count = calls.clone();
        let poller = event_loop.add_poller(move |_| if count.next() < 10 { Next::Again } else { Next::Wait });
        assert_eq!(foreign.drive(event_loop, || calls.get() == 10), 10);
        event_loop.remove_source(poller);
    });
}

#[test]
fn a_source_that_may_not_sleep_keeps_it_readable() {
    by_level_and_edge(|event_loop, foreign| {
        foreign.exhaust(event_loop);
        let calls = Count::default();
        let count = calls.clone();
        event_loop.add_source(Box::new(Probe { may_sleep: Box::new(move || count.next() > 5), ..Probe::default() }));
        assert_eq!(foreign.drive(event_loop, || calls.get() == 6), 6);
        assert!(!foreign.wait(Duration::ZERO));
    });
}

#[test]
fn after_a_run_it_is_readable_until_the_sources_let_it_sleep() {
    by_level_and_edge(|event_loop, foreign| {
        foreign.exhaust(event_loop);
        let calls = Count::default();
        let count = calls.clone();
        event_loop.add_source(Box::new(Probe {
            may_sleep: Box::new(move || {
                count.add();
                true
            }),
            ..Probe::default()
        }));
        // It ends without sleeping, so that nobody was asked.
        event_loop.run_for(Duration::ZERO).unwrap();
        assert_eq!(calls.get(), 0);
        assert_eq!(foreign.drive(event_loop, || calls.get() == 1), 1);
        assert!(!foreign.wait(Duration::ZERO));
    });
}

#[test]
fn calls_from_foreign_code_make_it_readable() {
    by_level_and_edge(|event_loop, foreign| {
        let calls = Count::default();
        let count = calls.clone();
        event_loop.add_source(Probe::before_sleep(move |_, _| {
            count.add();
            Next::Wait
        }));
        foreign.exhaust(event_loop);
        for _ in 0..3 {
            let before = calls.get();
            event_loop.schedule();
            assert_eq!(foreign.drive(event_loop, || calls.get() > before), 1);
        }
        let posts = Count::default();
        let count = posts.clone();
        event_loop.post(move |ev| {
            count.add();
            ev.post(move |_| count.add());
        });
        assert_eq!(foreign.drive(event_loop, || posts.get() == 2), 2);
        let count = posts.clone();
        event_loop.on_init(move |_| count.add());
        foreign.drive(event_loop, || posts.get() == 3);
    });
}

/// However long after the loop was made: deadlines count from this time.
#[test]
fn inits_are_told_the_time_of_their_turn() {
    let event_loop = event_loop();
    let told = Rc::new(Cell::new(None));
    let now = told.clone();
    event_loop.on_init(move |ev| now.set(Some(ev.now())));
    let before = Instant::now();
    event_loop.process().unwrap();
    assert!(told.get().is_some_and(|now| now >= before));
}

#[test]
fn other_threads_make_it_readable() {
    by_level_and_edge(|event_loop, foreign| {
        const ROUNDS: usize = 2_000;
        let (answer, answers) = std::sync::mpsc::channel();
        let remote = event_loop.remote();
        let thread = thread::spawn(move || {
            for _ in 0..ROUNDS {
                let answer = answer.clone();
                remote.post(Box::new(move |_| answer.send(()).unwrap()));
                remote.wake();
            }
        });
        let mut answered = 0;
        foreign.drive(event_loop, || {
            answered += answers.try_iter().count();
            answered == ROUNDS
        });
        thread.join().unwrap();
    });
}

#[test]
fn work_from_before_it_was_nested_is_told() {
    let event_loop = event_loop();
    event_loop.remote().wake();
    event_loop.run_once(None).unwrap();
    let done = Count::default();
    let count = done.clone();
    event_loop.post(move |_| count.add());
    let foreign = Foreign::around(&event_loop, epoll::EventFlags::ET);
    foreign.drive(&event_loop, || done.get() == 1);
    // A wake-up that came while it ran and stayed unnoticed.
    event_loop.add_timer(Duration::ZERO, |ev| ev.remote().wake());
    foreign.exhaust(&event_loop);
}

#[test]
fn a_panic_leaves_it_readable() {
    by_level_and_edge(|event_loop, foreign| {
        let done = Count::default();
        let count = done.clone();
        event_loop.post(|_| panic!("bad post"));
        event_loop.post(move |_| count.add());
        assert!(foreign.wait(LIMIT));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| event_loop.process())).is_err());
        foreign.drive(event_loop, || done.get() == 1);
    });
}

#[test]
fn more_events_than_fit_at_once_are_all_told() {
    by_level_and_edge(|event_loop, foreign| {
        let told = Count::default();
        let count = told.clone();
        let source = event_loop.add_source(Probe::ready(move |_, _, _, _| {
            count.add();
            Next::Wait
        }));
        let pairs: Vec<_> = (0..600).map(|_| pair()).collect();
        for (token, (a, b)) in pairs.iter().enumerate() {
            event_loop.watch(source, a.as_fd(), 2 * token, Interest::Writable).unwrap();
            event_loop.watch(source, b.as_fd(), 2 * token + 1, Interest::Writable).unwrap();
        }
        foreign.drive(event_loop, || told.get() == 1200);
        event_loop.remove_source(source);
    });
}
