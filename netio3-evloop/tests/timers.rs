//! Timers and the deadlines of sources.

mod util;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use netio3_core::EventLoop;
use netio3_evloop::TimerId;

use util::{Count, LIMIT, Log, Probe, event_loop, ms, run_until, us};

#[test]
fn timers_are_never_early() {
    let event_loop = event_loop();
    let fired = Count::default();
    for delay in [0, 1, 50, 333, 1_000, 1_001, 7_777, 20_000].map(us) {
        let (started, fired) = (Instant::now(), fired.clone());
        event_loop.add_timer(delay, move |_| {
            assert!(started.elapsed() >= delay, "{delay:?} took {:?}", started.elapsed());
            fired.add();
        });
    }
    run_until(&event_loop, || fired.get() == 8);
}

#[test]
fn timers_are_finer_than_a_millisecond() {
    let event_loop = event_loop();
    let best = Rc::new(Cell::new(Duration::MAX));
    let end = Instant::now() + LIMIT;
    // One good one is enough: a wait in whole milliseconds would never be that short.
    while best.get() > us(500) && Instant::now() < end {
        let (best, started, done) = (best.clone(), Instant::now(), Count::default());
        let is_done = done.clone();
        event_loop.add_timer(us(150), move |_| {
            best.set(best.get().min(started.elapsed()));
            done.add();
        });
        run_until(&event_loop, || is_done.get() == 1);
    }
    assert!(best.get() <= us(500), "the best of many timers of 150 us took {:?}", best.get());
}

#[test]
fn timers_fire_in_the_order_of_their_times() {
    let event_loop = event_loop();
    let log = Log::default();
    for delay in [9, 3, 7, 1, 5] {
        let log = log.clone();
        event_loop.add_timer(ms(delay), move |_| log.add(delay));
    }
    // Whether they fall into one turn or not.
    run_until(&event_loop, || log.len() == 5);
    assert_eq!(log.take(), ["1", "3", "5", "7", "9"]);
}

#[test]
fn a_timer_fires_once_and_is_gone() {
    let event_loop = event_loop();
    let fired = Count::default();
    let count = fired.clone();
    let timer = event_loop.add_timer(us(10), move |_| count.add());
    run_until(&event_loop, || fired.get() == 1);
    event_loop.run_for(ms(5)).unwrap();
    assert_eq!(fired.get(), 1);
    assert!(!event_loop.restart_timer(timer, ms(1)));
    assert!(!event_loop.cancel_timer(timer));
}

#[test]
fn an_interval_fires_until_it_is_cancelled() {
    let event_loop = event_loop();
    let fired = Count::default();
    let id = Rc::new(Cell::new(None::<TimerId>));
    let (count, own, started) = (fired.clone(), id.clone(), Instant::now());
    id.set(Some(event_loop.add_interval(us(700), move |ev| {
        let n = count.next();
        assert!(started.elapsed() >= us(700) * n as u32);
        if n == 5 {
            assert!(ev.cancel_timer(own.get().unwrap()));
            assert!(!ev.cancel_timer(own.get().unwrap()));
        }
    })));
    run_until(&event_loop, || fired.get() == 5);
    event_loop.run_for(ms(5)).unwrap();
    assert_eq!(fired.get(), 5);
}

#[test]
fn a_missed_interval_is_left_out() {
    let event_loop = event_loop();
    let fired = Count::default();
    let count = fired.clone();
    event_loop.add_interval(ms(1), move |_| {
        if count.next() == 1 {
            util::burn(ms(20));
        }
    });
    run_until(&event_loop, || fired.get() == 1);
    // The turns after it make no more calls than there are turns.
    event_loop.run_once(Some(Duration::ZERO)).unwrap();
    event_loop.run_once(Some(Duration::ZERO)).unwrap();
    assert!(fired.get() <= 3);
}

#[test]
fn an_interval_of_zero_fires_once_a_turn() {
    let event_loop = event_loop();
    let fired = Count::default();
    let count = fired.clone();
    event_loop.add_interval(Duration::ZERO, move |_| count.add());
    for _ in 0..10 {
        event_loop.run_once(None).unwrap();
    }
    assert!((9..=10).contains(&fired.get()), "{}", fired.get());
}

#[test]
fn a_cancelled_timer_does_not_fire_though_it_is_due() {
    let event_loop = event_loop();
    let log = Log::default();
    let second = Rc::new(Cell::new(None::<TimerId>));
    let (entries, other) = (log.clone(), second.clone());
    event_loop.add_timer(ms(1), move |ev| {
        entries.add("first");
        assert!(ev.cancel_timer(other.get().unwrap()));
    });
    let entries = log.clone();
    second.set(Some(event_loop.add_timer(ms(2), move |_| entries.add("second"))));
    util::burn(ms(3)); // So that both are due in one turn.
    event_loop.run_for(ms(5)).unwrap();
    assert_eq!(log.take(), ["first"]);
}

#[test]
fn a_timer_can_be_restarted_from_outside_and_from_its_own_callback() {
    let event_loop = event_loop();
    let id = Rc::new(Cell::new(None::<TimerId>));
    let times = Rc::new(RefCell::new(Vec::new()));
    let (own, log) = (id.clone(), times.clone());
    id.set(Some(event_loop.add_timer(Duration::from_secs(3600), move |ev| {
        log.borrow_mut().push(Instant::now());
        if log.borrow().len() < 3 {
            assert!(ev.restart_timer(own.get().unwrap(), ms(2)));
        }
    })));
    let started = Instant::now();
    assert!(event_loop.restart_timer(id.get().unwrap(), ms(1)));
    run_until(&event_loop, || times.borrow().len() == 3);
    let times = times.borrow();
    assert!(times[0] - started >= ms(1) && times[1] - times[0] >= ms(2) && times[2] - times[1] >= ms(2));
    assert!(!event_loop.restart_timer(id.get().unwrap(), ms(1)));
}

#[test]
fn callbacks_add_timers() {
    let event_loop = event_loop();
    let log = Log::default();
    let entries = log.clone();
    event_loop.add_timer(us(100), move |ev| {
        entries.add("outer");
        let entries = entries.clone();
        ev.add_timer(Duration::ZERO, move |_| entries.add("inner"));
    });
    run_until(&event_loop, || log.len() == 2);
    assert_eq!(log.take(), ["outer", "inner"]);
}

#[test]
fn a_source_has_one_deadline_which_is_cleared_when_it_passes() {
    let event_loop = event_loop();
    let passed = Count::default();
    let count = passed.clone();
    let source = event_loop.add_source(Probe::timeout(move |_| count.add()));
    let start = Instant::now();
    event_loop.set_deadline(source, Some(start + Duration::from_secs(3600)));
    event_loop.set_deadline(source, Some(start + ms(2)));
    run_until(&event_loop, || passed.get() == 1);
    assert!(start.elapsed() >= ms(2));
    event_loop.run_for(ms(5)).unwrap();
    assert_eq!(passed.get(), 1);
    event_loop.set_deadline(source, Some(Instant::now()));
    event_loop.set_deadline(source, None);
    event_loop.run_for(ms(5)).unwrap();
    assert_eq!(passed.get(), 1);
}

#[test]
fn a_deadline_moved_forward_is_kept() {
    let event_loop = event_loop();
    let passed = Count::default();
    let count = passed.clone();
    let source = event_loop.add_source(Probe::timeout(move |_| count.add()));
    event_loop.set_deadline(source, Some(Instant::now() + Duration::from_secs(3600)));
    // Sleeps on the late one, then the deadline comes closer.
    event_loop.run_for(ms(2)).unwrap();
    event_loop.set_deadline(source, Some(Instant::now() + ms(1)));
    run_until(&event_loop, || passed.get() == 1);
}

#[test]
fn endless_times_are_taken() {
    let event_loop = event_loop();
    let timer = event_loop.add_timer(Duration::MAX, |_| panic!("it is not that late"));
    event_loop.run_for(ms(1)).unwrap();
    assert!(event_loop.cancel_timer(timer));
    event_loop.post(|ev| ev.stop());
    event_loop.run_for(Duration::MAX).unwrap();
}

#[test]
fn an_interval_of_zero_keeps_nobody_else_waiting() {
    let event_loop = event_loop();
    let (ticks, fired, passed) = (Count::default(), Count::default(), Count::default());
    let tick = ticks.clone();
    event_loop.add_interval(Duration::ZERO, move |_| tick.add());
    let fire = fired.clone();
    event_loop.add_timer(ms(1), move |_| fire.add());
    let pass = passed.clone();
    let source = event_loop.add_source(Probe::timeout(move |_| pass.add()));
    event_loop.set_deadline(source, Some(Instant::now() + ms(1)));
    run_until(&event_loop, || fired.get() == 1 && passed.get() == 1);
    assert!(ticks.get() as u64 <= event_loop.counters().snapshot().turns, "once a turn");
}

#[test]
fn a_timer_of_another_loop_is_unknown() {
    let (one, two) = (event_loop(), event_loop());
    let of_one = one.add_timer(ms(10_000), |_| panic!("long before"));
    let fired = Count::default();
    let count = fired.clone();
    two.add_timer(ms(1), move |_| count.add());
    assert!(!two.cancel_timer(of_one), "it is somebody else's here");
    run_until(&two, || fired.get() == 1);
    assert!(one.cancel_timer(of_one));
}
