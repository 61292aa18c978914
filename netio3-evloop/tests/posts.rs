//! Posted closures, of this thread and of others.

mod util;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::thread;

use netio3_core::{Budget, EventLoop};

use util::{Log, event_loop, run_until};

#[test]
fn posts_run_in_order_and_posts_of_posts_in_the_next_turn() {
    let event_loop = event_loop();
    let log = Log::default();
    for n in 0..3 {
        let entries = log.clone();
        event_loop.post(move |ev| {
            entries.add(n);
            let entries = entries.clone();
            ev.post(move |_| entries.add(n + 10));
        });
    }
    event_loop.run_once(None).unwrap();
    assert_eq!(log.take(), ["0", "1", "2"]);
    event_loop.run_once(None).unwrap();
    assert_eq!(log.take(), ["10", "11", "12"]);
}

#[test]
fn remote_posts_run_on_the_loops_thread() {
    let event_loop = event_loop();
    let remote = event_loop.remote();
    assert!(remote.is_loop_thread());
    let here = thread::current().id();
    let thread = thread::spawn(move || {
        assert!(!remote.is_loop_thread());
        remote.post(Box::new(move |ev| {
            assert_eq!(thread::current().id(), here);
            assert!(ev.remote().is_loop_thread());
            ev.stop();
        }))
    });
    event_loop.run().unwrap();
    assert!(thread.join().unwrap());
}

#[test]
fn no_post_of_many_threads_is_lost_and_each_thread_keeps_its_order() {
    const THREADS: usize = 4;
    const POSTS: usize = 5_000;
    let event_loop = event_loop();
    let arrived = Arc::new(Mutex::new(vec![Vec::new(); THREADS]));
    let threads = (0..THREADS).map(|me| {
        let (remote, arrived) = (event_loop.remote(), arrived.clone());
        thread::spawn(move || {
            for n in 0..POSTS {
                let arrived = arrived.clone();
                assert!(remote.post(Box::new(move |_| arrived.lock().unwrap()[me].push(n))));
            }
        })
    });
    let threads: Vec<_> = threads.collect();
    run_until(&event_loop, || arrived.lock().unwrap().iter().all(|posts| posts.len() == POSTS));
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let order: Vec<usize> = (0..POSTS).collect();
    assert!(arrived.lock().unwrap().iter().all(|posts| *posts == order));
}

#[test]
fn posts_beyond_the_budget_wait_a_turn() {
    let event_loop = event_loop();
    event_loop.set_budget(Budget { messages: 10, bytes: 1 });
    let ran = Rc::new(Cell::new(0));
    for _ in 0..25 {
        let ran = ran.clone();
        event_loop.post(move |_| ran.set(ran.get() + 1));
    }
    let mut after_turns = Vec::new();
    for _ in 0..3 {
        event_loop.run_once(None).unwrap();
        after_turns.push(ran.get());
    }
    assert_eq!(after_turns, [10, 20, 25]);
}

#[test]
fn a_local_post_may_own_what_cannot_be_sent() {
    let event_loop = event_loop();
    let shared = Rc::new(RefCell::new(0));
    let other = shared.clone();
    assert!(event_loop.local().post(move |ev| {
        *other.borrow_mut() = 7;
        ev.stop();
    }));
    event_loop.run().unwrap();
    assert_eq!(*shared.borrow(), 7);
    assert_eq!(Rc::strong_count(&shared), 1);
}
