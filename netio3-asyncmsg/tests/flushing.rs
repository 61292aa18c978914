//! When what is queued is written.

mod util;

use std::cell::Cell;
use std::rc::Rc;

use netio3_core::{ConnectionParameters, Handlers, NetioStatus, NetworkBackend};
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
    let (to_send, told) = (left.clone(), completed.clone());
    let fill = |backend: &dyn NetworkBackend, to| {
        (0..40).for_each(|_| assert_eq!(backend.send_copy(to, &MESSAGE, &[], 1), Ok(NetioStatus::Ok)));
    };
    let handlers = Handlers::new().on_connection_established(move |backend, to| fill(backend, to.endpoint)).on_send_completed(
        move |backend, to, _, completions| {
            told.set(told.get() + completions.len());
            if to_send.get() > 0 {
                to_send.set(to_send.get() - 1);
                fill(backend, to);
            }
        },
    );
    let sender = netio3_asyncmsg::create_local(config(), Box::new(handlers), &ev).expect("the configuration is valid");
    let params = ConnectionParameters { send_buffer: Some(1 << 20), ..Default::default() };
    sender.open_send_endpoint(&address, &params).expect("a connection is started");
    let messages = 40 * (refills + 1);
    until(&ev, "everything has left and was told", || completed.get() == messages && left.get() == 0);
    until(&ev, "everything has arrived", || receiver.backend.totals().messages_received.get() == messages as u64);
    sender.totals().writes.get()
}

#[test]
fn what_is_left_over_is_written_with_what_the_next_callback_sends() {
    let writes = writes_of_refills(99);
    // 16,032,000 bytes are 128 full writes; with each callback's rest by itself they were 200.
    assert!((128..=150).contains(&writes), "{writes} writes");
}

#[test]
fn what_is_left_over_leaves_when_nothing_else_is_sent() {
    // The hello, one full write, and the rest.
    assert_eq!(writes_of_refills(0), 3);
}
