//! However long this side was busy before, a peer has its time from when it was asked for something.

mod util;

use std::cell::Cell;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use netio3_core::{ClosedReason, ConnectionParameters, ConnectionParametersRecv, EndPointAddress, Endpoint, Handlers, NetworkBackend};
use netio3_evloop::EpollEventLoop;
use util::{Bare, config, hello, message, until};

const PATIENCE: Duration = Duration::from_millis(400);

/// How long after a callback that took longer than that and did something at its end a connection was given up, and why if it
/// had been established. Its peer asks, and then does nothing.
#[track_caller]
fn given_up_after(
    connection: ConnectionParameters,
    act: impl Fn(&dyn NetworkBackend, Endpoint) + 'static,
) -> (Duration, Option<ClosedReason>) {
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let (acted, told) = (Rc::new(Cell::new(None)), Rc::new(Cell::new(None)));
    let (note, refused, closed) = (acted.clone(), told.clone(), told.clone());
    let callbacks = Handlers::new()
        .on_data(move |backend, from, _, _| {
            thread::sleep(PATIENCE + PATIENCE / 4);
            act(backend, from);
            note.set(Some(Instant::now()));
        })
        .on_connection_refused(move |_, _, _, _| refused.set(Some((Instant::now(), None))))
        .on_connection_closed(move |_, _, _, _, reason| closed.set(Some((Instant::now(), Some(reason)))));
    let backend = netio3_asyncmsg::create_local(config(), Box::new(callbacks), &ev).expect("the configuration is valid");
    let params = ConnectionParametersRecv { connection, ..Default::default() };
    let address = backend.open_listen_endpoint(&EndPointAddress::localhost(0), &params).expect("a port is left");
    let mut bare = Bare::connect(address);
    bare.write(&hello());
    bare.write(&message(b"question"));
    until(&ev, "it is told", || told.get().is_some());
    let (at, reason) = told.get().expect("it was awaited");
    (at - acted.get().expect("it was asked"), reason)
}

/// More than the system takes at once.
fn answer(backend: &dyn NetworkBackend, to: Endpoint) {
    backend.send_copy(to, &vec![7; 8 << 20], b"", 1).expect("it is there").to_string();
}

#[test]
fn a_long_callback_that_sends_at_its_end_leaves_the_peer_its_time() {
    let (after, reason) = given_up_after(ConnectionParameters { stall_timeout: Some(PATIENCE), ..Default::default() }, answer);
    assert!(after >= PATIENCE / 2 && reason == Some(ClosedReason::Stalled), "{reason:?} {after:?} after it began to leave");
}

#[test]
fn a_long_callback_that_closes_at_its_end_leaves_the_peer_its_time() {
    let (after, reason) = given_up_after(ConnectionParameters { close_deadline: PATIENCE, ..Default::default() }, |backend, from| {
        answer(backend, from);
        backend.close(from).expect("it is there");
    });
    assert!(after >= PATIENCE / 2 && reason == Some(ClosedReason::Local), "{reason:?} {after:?} after the close");
}

#[test]
fn a_long_callback_that_connects_at_its_end_leaves_the_peer_its_time() {
    // It says nothing.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is left");
    let to: EndPointAddress = mute.local_addr().expect("it is bound").into();
    let (after, reason) = given_up_after(ConnectionParameters::default(), move |backend, _| {
        let params = ConnectionParameters { connect_deadline: PATIENCE, ..Default::default() };
        backend.connect(&to, &params).expect("it is started");
    });
    assert!(after >= PATIENCE / 2 && reason.is_none(), "{reason:?} {after:?} after it was opened");
}
