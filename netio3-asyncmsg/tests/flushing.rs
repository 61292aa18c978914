//! When what is queued is written.

mod util;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use netio3_core::{ConnectionParameters, ConnectionStats, Endpoint, EventLoop, Handlers, NetioStatus, NetworkBackend};
use netio3_evloop::EpollEventLoop;

use crate::util::{Server, config, node, until};

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

/// One connection sends just as much as has it flushed, so that it is granted more; then another one sends and is flushed.
#[test]
fn what_a_connection_was_granted_and_did_not_use_is_not_counted_as_queued_for_ever() {
    let server = Server::new();
    let client = node(&server.ev);
    let one = client.backend.connect(&server.address, &ConnectionParameters::default()).expect("it is started");
    let two = client.backend.connect(&server.address, &ConnectionParameters::default()).expect("it is started");
    until(&server.ev, "both are established", || client.established().len() == 2);
    // As many as are flushed together.
    for key in 0..1_739 {
        client.send(one, b"sixty-four", key);
    }
    client.send(two, b"one", 0);
    client.backend.flush(two).expect("it is there");
    until(&server.ev, "all complete", || client.completed(one).len() == 1_739 && client.completed(two).len() == 1);
    server.ev.run_for(Duration::from_millis(50)).expect("the loop can wait");
    let totals = client.backend.totals().snapshot();
    assert_eq!((totals.messages_accepted, totals.messages_sent), (1_740, 1_740));
    assert_eq!((totals.queued_messages, totals.queued_bytes), (0, 0), "nothing is queued");
}

/// Asked for by one connection whose message left, when those of others have left, too, but are not told yet.
#[test]
fn what_has_left_is_not_queued_any_more() {
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let server = node(&ev);
    let address = server.listen();
    let (ends, seen) = (Arc::new(Mutex::new(Vec::<Endpoint>::new())), Arc::new(Mutex::new(Vec::<ConnectionStats>::new())));
    let (all, note, came) = (ends.clone(), seen.clone(), ends.clone());
    let callbacks = Handlers::new()
        .on_connection_established(move |_, connection| came.lock().expect("nobody panicked").push(connection.endpoint))
        .on_send_completed(move |backend, _, _, _| {
            for end in &*all.lock().expect("nobody panicked") {
                note.lock().expect("nobody panicked").push(backend.stats(*end).expect("it is there").snapshot());
            }
        });
    let client = netio3_asyncmsg::create(config(), Box::new(callbacks), &ev).expect("the configuration is valid");
    (0..3).for_each(|_| _ = client.connect(&address, &ConnectionParameters::default()).expect("it is started"));
    until(&ev, "they are established", || ends.lock().expect("nobody panicked").len() == 3);
    for end in &*ends.lock().expect("nobody panicked") {
        assert_eq!(client.send_copy(*end, b"message", b"", 1), Ok(NetioStatus::Ok));
    }
    until(&ev, "they complete", || seen.lock().expect("nobody panicked").len() == 9);
    for stats in &*seen.lock().expect("nobody panicked") {
        let (accepted, sent, queued) = (stats.messages_accepted, stats.messages_sent, stats.queued_messages);
        assert_eq!(accepted, sent + queued, "{sent} sent and {queued} queued");
        assert_eq!(stats.queued_bytes, 7 * queued);
    }
}
