//! An idle loop sleeps.

mod util;

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use netio3_core::{EventLoop, Interest, Next};

use util::{Count, Probe, event_loop, ms, pair};

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn an_idle_loop_is_woken_by_nothing_but_the_end_of_the_run() {
    let event_loop = event_loop();
    let (a, _b) = pair();
    let source = event_loop.add_source(Box::<Probe>::default());
    event_loop.watch(source, a.as_fd(), 0, Interest::Readable).unwrap();
    event_loop.set_deadline(source, Some(Instant::now() + HOUR));
    let _timer = event_loop.add_interval(HOUR, |_| {});
    let _signal = event_loop.add_signal(|_| {});
    let _remote = event_loop.remote();
    event_loop.run_for(ms(5)).unwrap();
    let before = event_loop.counters().snapshot();
    event_loop.run_for(ms(200)).unwrap();
    let after = event_loop.counters().snapshot();
    assert!(after.wakeups - before.wakeups <= 1);
    assert_eq!(after.turns - before.turns, 1);
    assert_eq!(after.events, before.events);
}

#[test]
fn a_deadline_that_moves_back_costs_one_wake_up_and_no_turn() {
    let event_loop = event_loop();
    let source = event_loop.add_source(Box::<Probe>::default());
    event_loop.set_deadline(source, Some(Instant::now() + ms(50)));
    event_loop.run_for(Duration::ZERO).unwrap();
    event_loop.remote().post(Box::new(move |ev| ev.set_deadline(source, Some(Instant::now() + HOUR))));
    event_loop.run_once(None).unwrap();
    let before = event_loop.counters().snapshot();
    event_loop.run_for(ms(200)).unwrap();
    let after = event_loop.counters().snapshot();
    assert!(after.wakeups - before.wakeups <= 2);
    assert_eq!(after.turns - before.turns, 1);
}

#[test]
fn without_deadlines_nothing_wakes_it() {
    let event_loop = event_loop();
    let timer = event_loop.add_timer(ms(20), |_| {});
    // Sleeps on it once.
    event_loop.run_for(ms(1)).unwrap();
    event_loop.cancel_timer(timer);
    let remote = event_loop.remote();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(ms(100));
        remote.stop();
    });
    let before = event_loop.counters().snapshot();
    event_loop.run().unwrap();
    let after = event_loop.counters().snapshot();
    assert!(after.wakeups - before.wakeups <= 1);
    thread.join().unwrap();
}

#[test]
fn a_source_that_may_not_sleep_gets_another_turn() {
    let event_loop = event_loop();
    let (asked, turns) = (Count::default(), Count::default());
    let (asks, count) = (asked.clone(), turns.clone());
    event_loop.add_source(Box::new(Probe {
        may_sleep: Box::new(move || asks.next() > 10),
        before_sleep: Box::new(move |_, _| {
            count.add();
            Next::Wait
        }),
        ..Probe::default()
    }));
    // Beside one that may.
    event_loop.add_source(Box::<Probe>::default());
    let timer = event_loop.add_timer(HOUR, |_| {});
    util::run_until(&event_loop, || turns.get() >= 11);
    assert_eq!(event_loop.counters().snapshot().wakeups, 0);
    event_loop.cancel_timer(timer);
    event_loop.run_for(ms(5)).unwrap();
    assert_eq!(asked.get(), 11, "it is asked once for a sleep");
    assert_eq!(event_loop.counters().snapshot().wakeups, 1);
}

#[test]
fn what_a_source_does_when_asked_for_leave_to_sleep_counts() {
    let event_loop = event_loop();
    let handle = event_loop.handle();
    let source = std::rc::Rc::new(std::cell::Cell::new(None));
    let (id, timed_out) = (source.clone(), Count::default());
    let (count, asked) = (timed_out.clone(), Count::default());
    let asks = asked.clone();
    source.set(Some(event_loop.add_source(Box::new(Probe {
        may_sleep: Box::new(move || {
            match (asks.next(), id.get()) {
                (1, Some(id)) => handle.set_deadline(id, Some(Instant::now() + ms(2))),
                (_, _) => handle.stop(),
            }
            true
        }),
        timeout: Box::new(move |_| count.add()),
        ..Probe::default()
    }))));
    // Were it not to notice, it would sleep for ever.
    let remote = event_loop.remote();
    let (over, rescue) = std::sync::mpsc::channel::<()>();
    let rescuer = std::thread::spawn(move || {
        rescue.recv_timeout(util::LIMIT).is_err_and(|_| {
            remote.stop();
            true
        })
    });
    event_loop.run().unwrap();
    over.send(()).unwrap();
    assert!(!rescuer.join().unwrap(), "it slept");
    assert_eq!(timed_out.get(), 1);
}

#[test]
fn a_source_that_says_again_keeps_it_awake() {
    let event_loop = event_loop();
    let asked = Count::default();
    let count = asked.clone();
    event_loop.add_source(Probe::before_sleep(move |_, _| if count.next() == 10 { Next::Wait } else { Next::Again }));
    util::run_until(&event_loop, || asked.get() == 10);
    assert_eq!(event_loop.counters().snapshot().wakeups, 0);
}
