//! Stopping, from anywhere.

mod util;

use std::thread;
use std::time::Duration;

use netio3_core::{EventLoop, Next, Ready};

use util::{Count, LIMIT, Probe, event_loop, ms};

#[test]
fn a_callback_stops_the_loop() {
    let event_loop = event_loop();
    let source = event_loop.add_source(Probe::ready(|ev, _, _, _| {
        ev.stop();
        Next::Wait
    }));
    event_loop.redeliver(source, 0, Ready::READABLE);
    event_loop.run().unwrap();
    // And the next run is not concerned.
    assert!(!event_loop.run_until(&mut || false, ms(2)).unwrap());
}

#[test]
fn a_timer_stops_the_loop() {
    let event_loop = event_loop();
    event_loop.add_timer(ms(1), |ev| ev.stop());
    event_loop.run().unwrap();
}

#[test]
fn another_thread_stops_the_loop() {
    let event_loop = event_loop();
    let remote = event_loop.remote();
    let thread = thread::spawn(move || remote.stop());
    event_loop.run().unwrap();
    thread.join().unwrap();
}

#[test]
fn a_stop_before_running_ends_the_next_run_before_it_sleeps() {
    let event_loop = event_loop();
    event_loop.stop();
    event_loop.run().unwrap();
    event_loop.remote().stop();
    event_loop.run().unwrap();
    event_loop.stop();
    event_loop.run_once(None).unwrap();
    assert_eq!(event_loop.counters().snapshot().wakeups, 0);
    event_loop.stop();
    assert!(!event_loop.run_until(&mut || false, LIMIT).unwrap());
}

#[test]
fn stopping_drains_what_is_pending() {
    let event_loop = event_loop();
    let ran = Count::default();
    let count = ran.clone();
    event_loop.post(move |ev| {
        ev.stop();
        let again = count.clone();
        ev.post(move |ev| {
            again.add();
            ev.post(move |_| again.add());
        });
    });
    event_loop.run().unwrap();
    assert_eq!(ran.get(), 2);
}

#[test]
fn stopping_reads_what_has_arrived() {
    let event_loop = event_loop();
    let (a, mut b) = util::pair();
    let bytes = util::count_bytes(&event_loop, a);
    event_loop.post(move |ev| {
        ev.stop();
        std::io::Write::write_all(&mut b, b"late").unwrap();
    });
    event_loop.run().unwrap();
    assert_eq!(bytes.get(), 4);
}

#[test]
fn stopping_is_bounded_though_something_is_always_pending() {
    let event_loop = event_loop();
    let source = event_loop.add_source(Probe::ready(|_, _, _, _| Next::Again));
    event_loop.redeliver(source, 0, Ready::READABLE);
    event_loop.stop();
    event_loop.run().unwrap();
    assert_eq!(event_loop.counters().snapshot().turns, 5);
}

#[test]
fn a_stopped_run_for_ends_early() {
    let event_loop = event_loop();
    event_loop.add_timer(Duration::ZERO, |ev| ev.stop());
    event_loop.run_for(Duration::from_secs(3600)).unwrap();
}
