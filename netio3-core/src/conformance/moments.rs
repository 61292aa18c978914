//! Messages that come while a loop spins, when it gives that up, and while it sleeps.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::config::ConnectionParameters;
use crate::conformance::Noted;
use crate::event_loop::EventLoop;

/// Long enough for a machine that is busy otherwise; reached only by failing tests.
const LIMIT: Duration = Duration::from_secs(30);

/// Whenever a message comes, while the loop spins, when it gives up or while it sleeps, it is heard at once: nothing else
/// would wake this loop. `event_loop` makes one that spins for so long, `node` a backend whose heartbeats are rare.
///
/// # Panics
/// When a message is not heard, or the loop never slept.
pub fn expect_heard_at_any_moment<L: EventLoop + 'static>(event_loop: fn(Duration) -> L, node: fn(&L) -> Noted) {
    let (tell, told) = mpsc::channel();
    let echo = thread::spawn(move || {
        let ev = event_loop(Duration::from_micros(300));
        let node = node(&ev);
        tell.send(node.listen()).expect("somebody waits for it");
        until(&ev, "established", || node.established().len() == 1);
        let from = node.established()[0];
        let mut echoed = 0;
        // Sleeps in between for as long as nothing comes.
        while node.closed(from).is_none() {
            ev.run_once(Some(LIMIT)).expect("the loop can wait");
            let received = node.received(from).len();
            (echoed..received).for_each(|_| node.send(from, b"back", 0));
            echoed = received;
        }
        ev.counters().snapshot().wakeups
    });
    let ev = event_loop(Duration::from_micros(100));
    let node = node(&ev);
    let to = node.backend.connect(&told.recv().expect("it listens"), &ConnectionParameters::default()).expect("a connection is started");
    until(&ev, "established", || node.established().len() == 1);
    for round in 1..=400 {
        // From before the end of the other side's spinning to well behind it.
        ev.run_for(Duration::from_micros(round * 7 % 1_000)).expect("the loop can wait");
        let began = Instant::now();
        node.send(to, b"there", round);
        until(&ev, &format!("the answer of round {round}"), || node.received(to).len() == round as usize);
        assert!(began.elapsed() < Duration::from_secs(10), "round {round} took {:?}", began.elapsed());
    }
    node.backend.close(to).expect("it is there");
    until(&ev, "closed", || node.closed(to).is_some());
    assert!(echo.join().expect("the other side is well") > 0, "it never slept");
}

#[track_caller]
fn until(ev: &impl EventLoop, what: &str, mut condition: impl FnMut() -> bool) {
    assert!(ev.run_until(&mut condition, LIMIT).expect("the loop can wait"), "not within {LIMIT:?}: {what}");
}
