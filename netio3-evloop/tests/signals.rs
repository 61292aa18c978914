//! Signals, fired by any thread.

mod util;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use netio3_core::EventLoop;
use netio3_evloop::Signal;

use util::{Count, Dropped, Log, event_loop, ms, run_until};

#[test]
fn firing_is_coalesced_until_the_closure_begins() {
    let event_loop = event_loop();
    let calls = Count::default();
    let count = calls.clone();
    let signal = event_loop.add_signal(move |_| count.add());
    for _ in 0..100 {
        signal.clone().fire();
    }
    event_loop.run_for(ms(2)).unwrap();
    assert_eq!(calls.get(), 1);
    signal.fire();
    run_until(&event_loop, || calls.get() == 2);
}

#[test]
fn firing_inside_the_closure_is_another_call() {
    let event_loop = event_loop();
    let calls = Count::default();
    let own = Rc::new(RefCell::new(None::<Signal>));
    let (count, signal) = (calls.clone(), own.clone());
    *own.borrow_mut() = Some(event_loop.add_signal(move |_| {
        if count.next() < 3 {
            signal.borrow().as_ref().unwrap().fire();
        }
    }));
    own.borrow().as_ref().unwrap().fire();
    run_until(&event_loop, || calls.get() == 3);
}

#[test]
fn what_threads_did_before_firing_is_never_missed() {
    const THREADS: usize = 4;
    const ROUNDS: usize = 5_000;
    let event_loop = event_loop();
    let done = Arc::new(AtomicUsize::new(0));
    let seen = Rc::new(std::cell::Cell::new(0));
    let (theirs, ours) = (done.clone(), seen.clone());
    // Relaxed on purpose: it is the signal that orders.
    let signal = event_loop.add_signal(move |_| ours.set(theirs.load(Ordering::Relaxed)));
    let threads = (0..THREADS).map(|_| {
        let (signal, done) = (signal.clone(), done.clone());
        thread::spawn(move || {
            for _ in 0..ROUNDS {
                done.fetch_add(1, Ordering::Relaxed);
                signal.fire();
            }
        })
    });
    let threads: Vec<_> = threads.collect();
    run_until(&event_loop, || seen.get() == THREADS * ROUNDS);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn a_removed_signal_does_not_fire_though_it_was_fired() {
    let event_loop = event_loop();
    let dropped = Count::default();
    let guard = Dropped(dropped.clone());
    let signal = event_loop.add_signal(move |_| {
        let _guard = &guard;
        panic!("it was removed")
    });
    signal.fire();
    assert!(event_loop.remove_signal(&signal));
    assert!(!event_loop.remove_signal(&signal));
    assert_eq!(dropped.get(), 1);
    signal.fire();
    event_loop.run_for(ms(2)).unwrap();
}

#[test]
fn a_closure_removes_its_own_signal() {
    let event_loop = event_loop();
    let log = Log::default();
    let own = Rc::new(RefCell::new(None::<Signal>));
    let (entries, signal) = (log.clone(), own.clone());
    *own.borrow_mut() = Some(event_loop.add_signal(move |ev| {
        let signal = signal.borrow();
        signal.as_ref().unwrap().fire();
        assert!(ev.remove_signal(signal.as_ref().unwrap()));
        entries.add("once");
    }));
    own.borrow().as_ref().unwrap().fire();
    event_loop.run_for(ms(2)).unwrap();
    assert_eq!(log.take(), ["once"]);
}
