//! When what is queued is written.

mod util;

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use netio3_core::{ConnectionParameters, EventLoop, Handlers, NetioStatus, NetworkBackend};
use netio3_evloop::EpollEventLoop;

use crate::util::{config, node, until};

/// With its head: ten make a write.
const MESSAGE: [u8; 1_000] = [7; 1_000];
/// So many are sent at once: one write, and two left over.
const FILL: usize = 12;

/// A sender that offers a fill of messages whenever completions are told, so many times; gives the writes it took.
fn writes_of_refills(refills: usize) -> u64 {
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let receiver = node(&ev);
    let address = receiver.listen();
    let (left, completed) = (Rc::new(Cell::new(refills)), Rc::new(Cell::new(0)));
    let sender = refilling(&ev, left.clone(), completed.clone());
    sender.open_send_endpoint(&address, &params()).expect("a connection is started");
    let messages = FILL * (refills + 1);
    until(&ev, "everything has left and was told", || completed.get() == messages && left.get() == 0);
    until(&ev, "everything has arrived", || receiver.backend.totals().messages_received.get() == messages as u64);
    sender.totals().writes.get()
}

/// Sends a fill of messages when it is connected, and whenever completions are told, `left` times; counts completions.
fn refilling(ev: &EpollEventLoop, left: Rc<Cell<usize>>, completed: Rc<Cell<usize>>) -> Box<dyn NetworkBackend> {
    let fill = |backend: &dyn NetworkBackend, to| {
        (0..FILL).for_each(|_| assert_eq!(backend.send_copy(to, &MESSAGE, &[], 1), Ok(NetioStatus::Ok)));
    };
    let handlers = Handlers::new().on_connection_established(move |backend, to| fill(backend, to.endpoint)).on_send_completed(
        move |backend, to, _, completions| {
            completed.set(completed.get() + completions.len());
            if left.get() > 0 {
                left.set(left.get() - 1);
                fill(backend, to);
            }
        },
    );
    netio3_asyncmsg::create_local(config(), Box::new(handlers), ev).expect("the configuration is valid")
}

/// Little at once, so that any socket has room for what these tests send in a turn.
fn params() -> ConnectionParameters {
    ConnectionParameters { flush_at: 10_000, ..Default::default() }
}

#[test]
fn what_is_left_over_is_written_with_what_the_next_callback_sends() {
    let writes = writes_of_refills(99);
    // 1,200 messages are 120 full writes; with each callback's rest by itself they were 200.
    assert!((120..=160).contains(&writes), "{writes} writes");
}

#[test]
fn what_is_left_over_leaves_when_nothing_else_is_sent() {
    // Of an odd number of fills something is left over when the last callback returns.
    let writes = writes_of_refills(2);
    assert!((4..=6).contains(&writes), "{writes} writes");
}

/// Whoever runs the loop for one turn at a time need not run it once more.
#[test]
fn what_is_left_over_leaves_in_the_turn_in_which_it_was_accepted() {
    let (ev, far) = (EpollEventLoop::new().expect("descriptors are left"), EpollEventLoop::new().expect("descriptors are left"));
    let receiver = node(&far);
    let address = receiver.listen();
    for refills in 1..=5 {
        let (before, left) = (receiver.backend.totals().messages_received.get(), Rc::new(Cell::new(refills)));
        let sender = refilling(&ev, left.clone(), Rc::default());
        sender.open_send_endpoint(&address, &params()).expect("a connection is started");
        let began = Instant::now();
        while left.get() > 0 {
            assert!(began.elapsed() < Duration::from_secs(20), "not refilled");
            ev.run_until(&mut || left.get() == 0, Duration::from_millis(5)).expect("it can be run");
            far.run_for(Duration::from_millis(1)).expect("it can be run");
        }
        let all = before + (FILL * (refills + 1)) as u64;
        until(&far, "everything arrives", || receiver.backend.totals().messages_received.get() == all);
    }
}
