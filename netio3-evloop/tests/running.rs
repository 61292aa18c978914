//! The ways of running, and what comes first.

mod util;

use std::time::{Duration, Instant};

use netio3_core::{EventLoop, Next, Ready, RunError};

use util::{Count, Log, Probe, event_loop, ms, run_until};

#[test]
fn running_inside_a_callback_is_an_error() {
    let event_loop = event_loop();
    let log = Log::default();
    let entries = log.clone();
    let outer = event_loop.local();
    event_loop.post(move |ev| {
        entries.add(matches!(ev.run(), Err(RunError::Nested)));
        entries.add(matches!(ev.run_once(None), Err(RunError::Nested)));
        entries.add(matches!(ev.run_for(ms(1)), Err(RunError::Nested)));
        entries.add(matches!(outer.run_until(&mut || true, ms(1)), Err(RunError::Nested)));
        entries.add(matches!(ev.process(), Err(RunError::Nested)));
    });
    event_loop.run_once(None).unwrap();
    assert_eq!(log.take(), ["true"; 5]);
    event_loop.run_once(Some(Duration::ZERO)).unwrap();
}

#[test]
fn run_once_sleeps_no_longer_than_told() {
    let event_loop = event_loop();
    let start = Instant::now();
    event_loop.run_once(Some(ms(3))).unwrap();
    assert!(start.elapsed() >= ms(3));
    event_loop.run_once(Some(Duration::ZERO)).unwrap();
    assert_eq!(event_loop.counters().snapshot().turns, 2);
}

#[test]
fn run_for_takes_its_time() {
    let event_loop = event_loop();
    let start = Instant::now();
    event_loop.run_for(ms(5)).unwrap();
    assert!(start.elapsed() >= ms(5));
}

#[test]
fn run_until_looks_before_the_first_turn_and_tells_the_outcome() {
    let event_loop = event_loop();
    assert!(event_loop.run_until(&mut || true, Duration::ZERO).unwrap());
    assert_eq!(event_loop.counters().snapshot().turns, 0);
    assert!(!event_loop.run_until(&mut || false, ms(2)).unwrap());
    let mut looked = 0;
    let mut third = || {
        looked += 1;
        looked == 3
    };
    event_loop.add_interval(ms(1), |_| {});
    assert!(event_loop.run_until(&mut third, util::LIMIT).unwrap());
}

/// Nothing else wakes a loop that is to end in the past.
#[test]
fn a_limit_that_passes_while_the_condition_is_looked_at_is_kept() {
    let (done, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut slow = || {
            std::thread::sleep(ms(20));
            false
        };
        let _ = done.send(event_loop().run_until(&mut slow, ms(5)).unwrap());
    });
    assert_eq!(ended.recv_timeout(util::LIMIT), Ok(false));
}

#[test]
fn what_the_condition_of_run_until_starts_is_done_without_sleeping() {
    let event_loop = event_loop();
    let handle = event_loop.local();
    let asked = Count::default();
    let count = asked.clone();
    event_loop.add_source(Probe::before_sleep(move |_, _| {
        count.add();
        Next::Wait
    }));
    let seen = asked.clone();
    run_until(&event_loop, move || {
        assert!(!handle.is_running());
        handle.schedule();
        seen.get() >= 5
    });
    assert_eq!(event_loop.counters().snapshot().wakeups, 0);
}

#[test]
fn init_callbacks_run_once_and_first() {
    let event_loop = event_loop();
    let log = Log::default();
    let (early, asked) = (log.clone(), log.clone());
    event_loop.add_source(Probe::before_sleep(move |_, _| {
        asked.add("asked");
        Next::Wait
    }));
    let posted = log.clone();
    event_loop.post(move |_| posted.add("posted"));
    event_loop.on_init(move |ev| {
        assert!(ev.is_running());
        early.add("init");
        let nested = early.clone();
        ev.on_init(move |_| nested.add("init of init"));
    });
    event_loop.run_once(None).unwrap();
    assert_eq!(log.take(), ["init", "init of init", "posted", "asked"]);
    event_loop.run_once(Some(Duration::ZERO)).unwrap();
    assert!(!log.take().contains(&"init".to_owned()));
}

#[test]
fn a_turn_delivers_then_posts_then_times_then_asks() {
    let event_loop = event_loop();
    let log = Log::default();
    let [ready, timeout, asked, posted] = std::array::from_fn(|_| log.clone());
    let source = event_loop.add_source(Box::new(Probe {
        ready: Box::new(move |_, _, _, _| {
            ready.add("ready");
            Next::Wait
        }),
        timeout: Box::new(move |_| timeout.add("timeout")),
        before_sleep: Box::new(move |_, _| {
            asked.add("asked");
            Next::Wait
        }),
        ..Probe::default()
    }));
    event_loop.set_deadline(source, Some(Instant::now()));
    event_loop.post(move |_| posted.add("posted"));
    event_loop.redeliver(source, 0, Ready::READABLE);
    event_loop.run_once(None).unwrap();
    assert_eq!(log.take(), ["ready", "posted", "timeout", "asked"]);
}

#[test]
fn the_time_stands_still_inside_a_turn() {
    let event_loop = event_loop();
    let log = Log::default();
    let entries = log.clone();
    event_loop.post(move |ev| {
        let before = ev.now();
        util::burn(ms(1));
        entries.add(ev.now() == before && before <= Instant::now());
    });
    event_loop.run_once(None).unwrap();
    assert_eq!(log.take(), ["true"]);
    let before = Instant::now();
    assert!(event_loop.now() >= before);
    assert!(event_loop.counters().snapshot().longest_turn_ns >= 1_000_000);
}

#[test]
fn pollers_are_called_every_turn() {
    let event_loop = event_loop();
    let calls = Count::default();
    let count = calls.clone();
    let poller = event_loop.add_poller(move |_| if count.next() < 5 { Next::Again } else { Next::Wait });
    run_until(&event_loop, || calls.get() == 5);
    assert_eq!(event_loop.counters().snapshot().wakeups, 0);
    event_loop.remove_source(poller);
    event_loop.run_for(ms(2)).unwrap();
    assert_eq!(calls.get(), 5);
}

#[test]
fn an_init_callback_added_inside_waits_for_the_next_run() {
    let event_loop = event_loop();
    let called = Count::default();
    let count = called.clone();
    event_loop.post(move |ev| ev.on_init(move |_| count.add()));
    event_loop.run_for(ms(20)).unwrap();
    let turns = event_loop.counters().snapshot().turns;
    assert!(called.get() == 0 && turns < 10, "{turns} turns with nothing to do");
    event_loop.run_once(Some(Duration::ZERO)).unwrap();
    assert_eq!(called.get(), 1);
}
