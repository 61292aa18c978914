//! Dropping the loop drops what is on it; handles and remotes stay and do nothing.

mod util;

use std::cell::RefCell;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Instant;

use netio3_core::{EventLoop, Interest, Next, Ready, RunError};
use netio3_evloop::{EpollEventLoop, Handle};

use util::{Count, Dropped, Probe, event_loop, ms, pair};

#[test]
fn everything_on_the_loop_is_dropped_although_it_holds_the_loop() {
    let dropped = Count::default();
    let event_loop = event_loop();
    let keep = |handle: Handle| (handle, Dropped(dropped.clone()));
    let [a, b, c, d, e, f] = std::array::from_fn(|_| keep(event_loop.local()));
    event_loop.add_source(Probe::ready(move |_, _, _, _| {
        let _a = &a;
        Next::Wait
    }));
    event_loop.add_timer(ms(1), move |_| {
        let _b = &b;
    });
    let signal = event_loop.add_signal(move |_| {
        let _c = &c;
    });
    event_loop.post(move |_| drop(d));
    event_loop.on_init(move |_| drop(e));
    event_loop.add_poller(move |_| {
        let _f = &f;
        Next::Wait
    });
    let sent = std::sync::Arc::new(());
    let held = sent.clone();
    let remote = event_loop.remote();
    assert!(remote.post(Box::new(move |_| drop(held))));
    signal.fire();
    drop(event_loop);
    assert_eq!(dropped.get(), 6);
    assert_eq!(std::sync::Arc::strong_count(&sent), 1);
    signal.fire();
}

#[test]
fn handles_do_nothing_afterwards() {
    let event_loop = event_loop();
    let (handle, remote, generic) = (event_loop.local(), event_loop.remote(), event_loop.handle());
    let source = event_loop.add_source(Box::<Probe>::default());
    drop(event_loop);
    assert!(!remote.post(Box::new(|_| panic!("the loop is gone"))));
    remote.wake();
    remote.stop();
    let (a, _b) = pair();
    assert!(generic.watch(source, a.as_fd(), 0, Interest::Both).is_err());
    assert!(handle.add_fd(a, Interest::Both, |_, _, _| Next::Wait).is_err());
    generic.redeliver(source, 0, Ready::READABLE);
    generic.set_deadline(source, Some(Instant::now()));
    generic.schedule();
    generic.remove_source(source);
    generic.stop();
    assert!(!handle.post(|_| panic!("the loop is gone")));
    handle.on_init(|_| panic!("the loop is gone"));
    let timer = handle.add_timer(ms(0), |_| panic!("the loop is gone"));
    assert!(!handle.restart_timer(timer, ms(0)));
    let dropped = Count::default();
    let guard = Dropped(dropped.clone());
    generic.add_source(Probe::ready(move |_, _, _, _| {
        let _guard = &guard;
        Next::Wait
    }));
    assert_eq!(dropped.get(), 1);
    assert!(matches!(generic.run(), Err(RunError::Wait(_))));
    assert!(matches!(handle.process(), Err(RunError::Wait(_))));
}

#[test]
fn a_callback_drops_the_loop_that_runs_it() {
    let event_loop = event_loop();
    let handle = event_loop.local();
    let dropped = Count::default();
    let owner = Rc::new(RefCell::new(None::<EpollEventLoop>));
    for token in 0..2 {
        let (guard, victim, seen) = (Dropped(dropped.clone()), owner.clone(), dropped.clone());
        let source = event_loop.add_source(Probe::ready(move |ev, _, _, _| {
            let _guard = &guard;
            victim.borrow_mut().take();
            // The other one; this one goes when it returns.
            assert_eq!(seen.get(), 1);
            ev.schedule();
            Next::Again
        }));
        event_loop.redeliver(source, token, Ready::READABLE);
    }
    *owner.borrow_mut() = Some(event_loop);
    handle.run().unwrap();
    assert_eq!(dropped.get(), 2);
}

#[test]
fn descriptors_are_closed_with_the_loop() {
    let event_loop = event_loop();
    let (handle, (a, mut b)) = (event_loop.local(), pair());
    event_loop.add_fd(a, Interest::Readable, |_, _, _| Next::Wait).unwrap();
    drop(event_loop);
    assert!(std::io::Write::write_all(&mut b, b"x").is_err());
    drop(handle);
}
