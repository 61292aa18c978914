//! Spinning before sleeping.

mod util;

use std::io::Write;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use netio3_core::{EventLoop, Next, Polled};

use util::{Count, Probe, count_bytes, event_loop, ms, pair, run_until, us};

const LONG: Duration = Duration::from_secs(60);

#[test]
fn sources_are_polled_instead_of_sleeping() {
    let event_loop = event_loop();
    event_loop.set_spin(LONG);
    let (polled, asked) = (Count::default(), Count::default());
    let (count, turns) = (polled.clone(), asked.clone());
    event_loop.add_source(Box::new(Probe {
        poll: Box::new(move |_, _| if count.next() == 1000 { Polled::Something } else { Polled::Nothing }),
        before_sleep: Box::new(move |_, _| {
            turns.add();
            Next::Wait
        }),
        ..Probe::default()
    }));
    event_loop.run_once(None).unwrap();
    let before = asked.get();
    event_loop.run_once(None).unwrap();
    assert_eq!(polled.get(), 1000);
    assert!(asked.get() > before);
    assert_eq!(event_loop.counters().snapshot().wakeups, 0);
}

#[test]
fn timers_descriptors_and_other_threads_are_noticed_while_spinning() {
    let event_loop = event_loop();
    event_loop.set_spin(LONG);
    let fired = Count::default();
    let count = fired.clone();
    let started = Instant::now();
    event_loop.add_timer(ms(2), move |_| count.add());
    run_until(&event_loop, || fired.get() == 1);
    assert!(started.elapsed() >= ms(2));

    let (a, mut b) = pair();
    let bytes = count_bytes(&event_loop, a);
    let writer = thread::spawn(move || b.write_all(b"x").map(|()| b));
    run_until(&event_loop, || bytes.get() == 1);
    let _open = writer.join().unwrap();

    let remote = event_loop.remote();
    let stopper = thread::spawn(move || remote.stop());
    event_loop.run().unwrap();
    stopper.join().unwrap();
    event_loop.run_for(ms(2)).unwrap();
    assert_eq!(event_loop.counters().snapshot().wakeups, 0);
}

/// Without descriptors the kernel is not asked while devices are polled.
#[test]
fn beside_devices_and_no_descriptors_everything_else_is_noticed() {
    let event_loop = event_loop();
    event_loop.set_spin(LONG);
    // Has room for one, and is refilled when that was taken.
    let (polling, polled) = mpsc::sync_channel(1);
    event_loop.add_source(Box::new(Probe {
        poll: Box::new(move |_, _| {
            _ = polling.try_send(());
            Polled::Nothing
        }),
        ..Probe::default()
    }));
    let fired = Count::default();
    let count = fired.clone();
    event_loop.add_timer(ms(2), move |_| count.add());
    run_until(&event_loop, || fired.get() == 1);

    let remote = event_loop.remote();
    let stopper = thread::spawn(move || {
        // The first one may be of before.
        (0..2).for_each(|_| polled.recv_timeout(LONG).expect("it polls"));
        remote.stop();
    });
    event_loop.run().unwrap();
    stopper.join().unwrap();

    let (a, mut b) = pair();
    let bytes = count_bytes(&event_loop, a);
    b.write_all(b"x").unwrap();
    run_until(&event_loop, || bytes.get() == 1);
    assert_eq!(event_loop.counters().snapshot().wakeups, 0);
}

#[test]
fn after_spinning_it_sleeps() {
    let event_loop = event_loop();
    event_loop.set_spin(ms(1));
    let polled = Count::default();
    let count = polled.clone();
    event_loop.add_poller(move |_| {
        count.add();
        Next::Wait
    });
    event_loop.add_interval(ms(5), |_| {});
    // On a busy machine the next beat may be due before the spinning is over.
    run_until(&event_loop, || event_loop.counters().snapshot().wakeups >= 3);
    assert!(polled.get() > 3);
}

#[test]
fn sources_are_asked_for_leave_to_sleep_only_after_spinning_in_vain() {
    let event_loop = event_loop();
    event_loop.set_spin(LONG);
    let (polled, asked) = (Count::default(), Count::default());
    let (polls, asks) = (polled.clone(), asked.clone());
    event_loop.add_source(Box::new(Probe {
        poll: Box::new(move |_, _| if polls.next() % 100 == 0 { Polled::Something } else { Polled::Nothing }),
        may_sleep: Box::new(move || {
            asks.add();
            true
        }),
        ..Probe::default()
    }));
    run_until(&event_loop, || polled.get() == 1000);
    assert_eq!(asked.get(), 0);
    event_loop.set_spin(us(1));
    event_loop.add_timer(ms(5), |_| {});
    run_until(&event_loop, || event_loop.counters().snapshot().wakeups > 0);
    assert!(asked.get() > 0);
}

#[test]
fn every_run_looks_at_descriptors_however_short() {
    let event_loop = event_loop();
    event_loop.set_spin(ms(1));
    event_loop.add_source(Box::new(Probe { poll: Box::new(|_, _| Polled::Nothing), ..Probe::default() }));
    let (a, mut b) = pair();
    let bytes = count_bytes(&event_loop, a);
    event_loop.run_for(Duration::ZERO).unwrap();
    for round in 1..=20 {
        b.write_all(b"x").unwrap();
        event_loop.run_once(Some(Duration::ZERO)).unwrap();
        assert_eq!(bytes.get(), round);
    }
}

#[test]
fn descriptors_are_read_although_polling_always_finds_something() {
    let event_loop = event_loop();
    event_loop.set_spin(LONG);
    let turns = Count::default();
    let count = turns.clone();
    event_loop.add_source(Box::new(Probe {
        poll: Box::new(move |_, _| {
            count.add();
            Polled::Something
        }),
        ..Probe::default()
    }));
    let (a, mut b) = pair();
    let bytes = count_bytes(&event_loop, a);
    b.write_all(b"x").unwrap();
    run_until(&event_loop, || bytes.get() == 1);
    assert!(turns.get() < 20, "{} turns", turns.get());
}

#[test]
fn what_polling_takes_is_counted() {
    let event_loop = event_loop();
    event_loop.set_spin(LONG);
    let polled = Count::default();
    let count = polled.clone();
    event_loop.add_source(Box::new(Probe {
        poll: Box::new(move |_, _| {
            count.add();
            thread::sleep(ms(20));
            Polled::Something
        }),
        ..Probe::default()
    }));
    run_until(&event_loop, || polled.get() > 0);
    let longest = event_loop.counters().snapshot().longest_turn_ns;
    assert!(longest >= 20_000_000, "{longest} ns");
}
