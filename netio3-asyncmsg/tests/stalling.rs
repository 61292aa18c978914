//! A queue that moved a moment ago is not stalled, however long this side was busy before.

mod util;

use std::cell::Cell;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use netio3_core::{ClosedReason, ConnectionParameters, ConnectionParametersRecv, EndPointAddress, Handlers};
use netio3_evloop::EpollEventLoop;
use util::{Bare, config, hello, message, until};

const STALL: Duration = Duration::from_millis(400);

/// It thinks for longer than that, then answers with more than the system takes at once.
#[test]
fn a_long_callback_that_sends_at_its_end_leaves_the_peer_its_time() {
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let (answered, closed) = (Rc::new(Cell::new(None::<Instant>)), Rc::new(Cell::new(None)));
    let (note, end) = (answered.clone(), closed.clone());
    let data = vec![7; 32 << 20];
    let callbacks = Handlers::new()
        .on_data(move |backend, from, _, _| {
            thread::sleep(STALL + STALL / 4);
            backend.send_copy(from, &data, b"", 1).expect("it is there").to_string();
            note.set(Some(Instant::now()));
        })
        .on_connection_closed(move |_, _, _, _, reason| end.set(Some((Instant::now(), reason))));
    let backend = netio3_asyncmsg::create_local(config(), Box::new(callbacks), &ev).expect("the configuration is valid");
    let connection = ConnectionParameters { stall_timeout: Some(STALL), ..Default::default() };
    let params = ConnectionParametersRecv { connection, ..Default::default() };
    let address = backend.open_listen_endpoint(&EndPointAddress::localhost(0), &params).expect("a port is left");
    let mut bare = Bare::connect(address);
    bare.write(&hello());
    bare.write(&message(b"question"));
    until(&ev, "it is told", || closed.get().is_some());
    let (at, reason) = closed.get().expect("it was awaited");
    let after = at - answered.get().expect("it was asked");
    assert_eq!(reason, ClosedReason::Stalled);
    assert!(after >= STALL / 2, "given up {after:?} after it began to leave");
}

/// The time from a close counts from the close.
#[test]
fn a_long_callback_that_closes_at_its_end_leaves_the_peer_its_time() {
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let (closing, closed) = (Rc::new(Cell::new(None::<Instant>)), Rc::new(Cell::new(None)));
    let (note, end) = (closing.clone(), closed.clone());
    let data = vec![7; 32 << 20];
    let callbacks = Handlers::new()
        .on_data(move |backend, from, _, _| {
            thread::sleep(STALL + STALL / 4);
            backend.send_copy(from, &data, b"", 1).expect("it is there").to_string();
            note.set(Some(Instant::now()));
            backend.close(from).expect("it is there");
        })
        .on_connection_closed(move |_, _, _, pending, _| end.set(Some((Instant::now(), pending.len()))));
    let backend = netio3_asyncmsg::create_local(config(), Box::new(callbacks), &ev).expect("the configuration is valid");
    let connection = ConnectionParameters { close_deadline: STALL, ..Default::default() };
    let params = ConnectionParametersRecv { connection, ..Default::default() };
    let address = backend.open_listen_endpoint(&EndPointAddress::localhost(0), &params).expect("a port is left");
    let mut bare = Bare::connect(address);
    bare.write(&hello());
    bare.write(&message(b"question"));
    until(&ev, "it is told", || closed.get().is_some());
    let (at, pending) = closed.get().expect("it was awaited");
    let after = at - closing.get().expect("it was asked");
    assert!(after >= STALL / 2, "given up {after:?} after the close, with {pending} pending");
}

/// And that from an opening.
#[test]
fn a_long_callback_that_connects_at_its_end_leaves_the_peer_its_time() {
    let ev = EpollEventLoop::new().expect("descriptors are left");
    // It says nothing.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is left");
    let to: EndPointAddress = mute.local_addr().expect("it is bound").into();
    let (opened, refused) = (Rc::new(Cell::new(None::<Instant>)), Rc::new(Cell::new(None::<Instant>)));
    let (note, end) = (opened.clone(), refused.clone());
    let callbacks = Handlers::new()
        .on_connection_established(move |backend, _| {
            thread::sleep(STALL + STALL / 4);
            let params = ConnectionParameters { connect_deadline: STALL, ..Default::default() };
            note.set(Some(Instant::now()));
            backend.connect(&to, &params).expect("it is started");
        })
        .on_connection_refused(move |_, _, _, _| end.set(Some(Instant::now())));
    let backend = netio3_asyncmsg::create_local(config(), Box::new(callbacks), &ev).expect("the configuration is valid");
    let address =
        backend.open_listen_endpoint(&EndPointAddress::localhost(0), &ConnectionParametersRecv::default()).expect("a port is left");
    let mut bare = Bare::connect(address);
    bare.write(&hello());
    until(&ev, "it is told", || refused.get().is_some());
    let after = refused.get().expect("it was awaited") - opened.get().expect("it was opened");
    assert!(after >= STALL / 2, "given up {after:?} after it was opened");
}
