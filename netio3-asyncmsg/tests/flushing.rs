//! When what is queued is written.

mod util;

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use netio3_core::{ConnectionParameters, EventLoop, Handlers, NetioStatus, NetworkBackend};
use netio3_evloop::EpollEventLoop;

use crate::util::{config, node, until};

/// Of 4,008 bytes with its head: 31 and a quarter make a write.
const MESSAGE: [u8; 4_000] = [7; 4_000];

/// A sender that offers 40 messages whenever completions are told, so many times; gives the writes it took.
fn writes_of_refills(refills: usize) -> u64 {
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let receiver = node(&ev);
    let address = receiver.listen();
    let (left, completed) = (Rc::new(Cell::new(refills)), Rc::new(Cell::new(0)));
    let sender = refilling(&ev, left.clone(), completed.clone());
    sender.open_send_endpoint(&address, &params()).expect("a connection is started");
    let messages = 40 * (refills + 1);
    until(&ev, "everything has left and was told", || completed.get() == messages && left.get() == 0);
    until(&ev, "everything has arrived", || receiver.backend.totals().messages_received.get() == messages as u64);
    sender.totals().writes.get()
}

/// Sends 40 messages when it is connected, and whenever completions are told, `left` times; counts completions.
fn refilling(ev: &EpollEventLoop, left: Rc<Cell<usize>>, completed: Rc<Cell<usize>>) -> Box<dyn NetworkBackend> {
    let fill = |backend: &dyn NetworkBackend, to| {
        (0..40).for_each(|_| assert_eq!(backend.send_copy(to, &MESSAGE, &[], 1), Ok(NetioStatus::Ok)));
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

/// Room in the socket for all of them.
fn params() -> ConnectionParameters {
    ConnectionParameters { send_buffer: Some(1 << 20), ..Default::default() }
}

#[test]
fn what_is_left_over_is_written_with_what_the_next_callback_sends() {
    let writes = writes_of_refills(99);
    // 16,032,000 bytes are 128 full writes; with each callback's rest by itself they were 200.
    assert!((128..=165).contains(&writes), "{writes} writes");
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
    // As many as the socket has room for.
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
        let all = before + 40 * (refills as u64 + 1);
        until(&far, "everything arrives", || receiver.backend.totals().messages_received.get() == all);
    }
}
