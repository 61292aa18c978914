//! A wake-up from another thread is never lost.

mod util;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use netio3_core::{EventLoop, Next};

use util::{LIMIT, Probe, event_loop, run_until, us};

/// Another thread sends a number and wakes; the loop answers; twenty thousand times, each of which would hang if
/// its wake-up were lost.
fn ping_pong(spin: std::time::Duration) {
    const ROUNDS: usize = 20_000;
    let event_loop = event_loop();
    event_loop.set_spin(spin);
    let asked = Arc::new(AtomicUsize::new(0));
    let (answer, answers) = mpsc::channel();
    let remote = event_loop.remote();
    let asking = asked.clone();
    let thread = thread::spawn(move || {
        for round in 1..=ROUNDS {
            asking.store(round, Ordering::Relaxed);
            remote.wake();
            assert_eq!(answers.recv_timeout(LIMIT), Ok(round));
        }
    });
    let mut answered = 0;
    event_loop.add_source(Probe::before_sleep(move |ev, _| {
        let round = asked.load(Ordering::Relaxed);
        if round > answered {
            answered = round;
            answer.send(round).unwrap();
            if round == ROUNDS {
                ev.stop();
            }
        }
        Next::Wait
    }));
    event_loop.run().unwrap();
    thread.join().unwrap();
}

#[test]
fn no_wake_up_is_lost_to_a_sleeping_loop() {
    ping_pong(us(0));
}

#[test]
fn no_wake_up_is_lost_to_a_spinning_loop() {
    ping_pong(us(20));
}

#[test]
fn no_wake_up_of_many_threads_is_lost() {
    const THREADS: usize = 4;
    const ROUNDS: usize = 10_000;
    let event_loop = event_loop();
    let done = Arc::new(AtomicUsize::new(0));
    let threads = (0..THREADS).map(|_| {
        let (remote, done) = (event_loop.remote(), done.clone());
        thread::spawn(move || {
            for _ in 0..ROUNDS {
                done.fetch_add(1, Ordering::Relaxed);
                remote.wake();
            }
        })
    });
    let threads: Vec<_> = threads.collect();
    // The condition is looked at after every turn, and every wake-up makes one.
    run_until(&event_loop, || done.load(Ordering::Relaxed) == THREADS * ROUNDS);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn a_wake_up_before_running_keeps_the_next_run_from_sleeping() {
    let event_loop = event_loop();
    event_loop.remote().wake();
    event_loop.run_once(None).unwrap();
    let remote = event_loop.remote();
    thread::spawn(move || remote.wake()).join().unwrap();
    event_loop.run_once(None).unwrap();
}

#[test]
fn wake_ups_of_an_awake_loop_are_one_turn_and_no_sleep() {
    let event_loop = event_loop();
    event_loop.post(|ev| {
        let remote = ev.remote();
        (0..1000).for_each(|_| remote.wake());
    });
    event_loop.run_once(None).unwrap();
    let before = event_loop.counters().snapshot();
    event_loop.run_once(None).unwrap();
    let after = event_loop.counters().snapshot();
    assert_eq!((after.turns - before.turns, after.wakeups), (1, 0));
}
