//! A panic drops what panicked and nothing else, and leaves the loop usable.

mod util;

use std::io::Write;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use netio3_core::{EventLoop, Interest, Next, Polled, Ready};
use netio3_evloop::EpollEventLoop;

use util::{Count, Dropped, Probe, event_loop, ms, pair, run_until};

/// Runs until the loop panics, and checks with what.
#[track_caller]
fn expect_panic(event_loop: &EpollEventLoop, text: &str) {
    let panic = catch_unwind(AssertUnwindSafe(|| event_loop.run_for(util::LIMIT))).expect_err("a panic");
    assert_eq!(panic.downcast_ref::<&str>(), Some(&text));
    assert!(!event_loop.is_running());
}

#[test]
fn a_source_that_panics_is_dropped_and_others_go_on() {
    let event_loop = event_loop();
    let (dropped, others) = (Count::default(), Count::default());
    let guard = Dropped(dropped.clone());
    let bad = event_loop.add_source(Probe::ready(move |_, _, _, _| {
        let _guard = &guard;
        panic!("bad source")
    }));
    let count = others.clone();
    let good = event_loop.add_source(Probe::ready(move |_, _, _, _| {
        count.add();
        Next::Wait
    }));
    let (a, mut b) = pair();
    event_loop.watch(bad, a.as_fd(), 0, Interest::Readable).unwrap();
    b.write_all(b"x").unwrap();
    event_loop.redeliver(bad, 1, Ready::READABLE);
    event_loop.redeliver(good, 0, Ready::READABLE);
    expect_panic(&event_loop, "bad source");
    assert_eq!(dropped.get(), 1);
    run_until(&event_loop, || others.get() == 1);
    event_loop.run_for(ms(2)).unwrap();
    // Its watch has ended with it.
    event_loop.watch(good, a.as_fd(), 0, Interest::Readable).unwrap();
    run_until(&event_loop, || others.get() == 2);
}

#[test]
fn panics_in_every_call_of_a_source_drop_it() {
    for which in 0..3 {
        let event_loop = event_loop();
        let dropped = Count::default();
        let guard = Dropped(dropped.clone());
        let check = move |now: bool| {
            let _guard = &guard;
            assert!(!now, "as told");
        };
        let check = std::rc::Rc::new(check);
        let [a, b, c] = std::array::from_fn(|_| check.clone());
        drop(check);
        let source = event_loop.add_source(Box::new(Probe {
            timeout: Box::new(move |_| a(which == 0)),
            before_sleep: Box::new(move |_, _| {
                b(which == 1);
                Next::Wait
            }),
            poll: Box::new(move |_, _| {
                c(which == 2);
                Polled::Nothing
            }),
            ..Probe::default()
        }));
        if which == 0 {
            event_loop.set_deadline(source, Some(event_loop.now()));
        }
        if which == 2 {
            event_loop.set_spin(ms(1));
        }
        expect_panic(&event_loop, "as told");
        assert_eq!(dropped.get(), 1);
        event_loop.run_for(ms(1)).unwrap();
    }
}

#[test]
fn a_closure_that_panics_is_dropped_and_others_go_on() {
    let event_loop = event_loop();
    let (dropped, others) = (Count::default(), Count::default());
    let guards: [_; 5] = std::array::from_fn(|_| Dropped(dropped.clone()));
    let [timer, signal, fd, poller, post] = guards;
    fn bad<T>(_: &Dropped) -> T {
        panic!("bad closure")
    }
    event_loop.add_interval(ms(0), move |_| bad(&timer));
    expect_panic(&event_loop, "bad closure");
    event_loop.add_signal(move |_| bad(&signal)).fire();
    expect_panic(&event_loop, "bad closure");
    let (a, _b) = pair();
    event_loop.add_fd(a, Interest::Both, move |_, _, _| bad(&fd)).unwrap();
    expect_panic(&event_loop, "bad closure");
    event_loop.add_poller(move |_| bad(&poller));
    expect_panic(&event_loop, "bad closure");
    let count = others.clone();
    event_loop.post(move |_| bad(&post));
    event_loop.post(move |_| count.add());
    expect_panic(&event_loop, "bad closure");
    assert_eq!(dropped.get(), 5);
    run_until(&event_loop, || others.get() == 1);
}

#[test]
fn a_panic_in_the_condition_or_an_init_callback_leaves_the_loop_usable() {
    let event_loop = event_loop();
    event_loop.on_init(|_| panic!("bad init"));
    expect_panic(&event_loop, "bad init");
    let condition = &mut || panic!("bad condition");
    assert!(catch_unwind(AssertUnwindSafe(|| event_loop.run_until(condition, ms(1)))).is_err());
    event_loop.run_for(ms(1)).unwrap();
}

#[test]
fn a_source_whose_drop_panics_too_does_not_abort() {
    struct Bad;
    impl Drop for Bad {
        fn drop(&mut self) {
            panic!("bad drop");
        }
    }
    let event_loop = event_loop();
    let bad = Bad;
    let source = event_loop.add_source(Probe::ready(move |_, _, _, _| {
        let _bad = &bad;
        panic!("bad source")
    }));
    event_loop.redeliver(source, 0, Ready::READABLE);
    expect_panic(&event_loop, "bad source");
    event_loop.run_for(ms(1)).unwrap();
}
