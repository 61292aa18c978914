//! What comes in an unusual order, or with unusual values.

mod util;

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use netio3_asyncmsg::Frame;
use netio3_core::{
    Budget, ClosedReason, ConnectionParameters, ConnectionParametersRecv, EndPointAddress, EventLoop, Handlers, NetioStatus,
    NetworkBackend, NetworkConfig,
};
use netio3_evloop::EpollEventLoop;

use crate::util::{Bare, Told, config, message, node_with, until};

/// A message is refused for room that was granted to another connection: once that has sent what it has, and given
/// the rest back, *writable* comes, although nothing else happens.
#[test]
fn room_that_a_flush_gives_back_is_told_of() {
    const TOTAL: usize = 64 << 20;
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let node = node_with(&ev, NetworkConfig { total_queue_bytes: TOTAL, ..config() });
    let address = node.listen_with(ConnectionParameters { queue_bytes: 1 << 30, ..Default::default() });
    let [(_peer, one), (_other_peer, other)] = [(); 2].map(|()| Bare::greeted(&ev, &node, address));
    // The sockets of both are full.
    let long = Bytes::from(vec![1; 8 << 20]);
    for to in [one, other] {
        assert_eq!(node.backend.send(to, &long, b"", 1), Ok(NetioStatus::Ok));
    }
    let queued = || node.backend.totals().queued_bytes.get() as usize;
    let mut before = 0;
    while before != queued() {
        before = queued();
        ev.run_for(Duration::from_millis(20)).expect("the loop can wait");
    }
    (0..3).for_each(|key| node.send(other, b"12345678", key));
    let rest = TOTAL - before - 3 * 8 - 1_000;
    let filling = Bytes::from(vec![2; rest]);
    assert_eq!(node.backend.send(one, &filling, b"", 2), Ok(NetioStatus::NoResources), "the other one has been granted more");
    let writable = || node.told().into_iter().filter(|told| matches!(told, Told::Writable(_))).collect::<Vec<_>>();
    until(&ev, "there is room", || writable() == [Told::Writable(one)]);
    assert_eq!(node.backend.send(one, &filling, b"", 2), Ok(NetioStatus::Ok));
}

/// A connection that stands at the cap on messages taken over, is closed and is paused then reads on to the goodbye.
#[test]
fn a_capped_connection_that_is_closed_and_paused_reads_on_to_the_goodbye() {
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let (taken_over, closed) = (Rc::new(RefCell::new(Vec::new())), Rc::new(Cell::new(None)));
    let (taken, end) = (taken_over.clone(), closed.clone());
    let handlers = Handlers::new()
        .on_data(move |_, _, _, message| taken.borrow_mut().push(message.into_bytes()))
        .on_connection_closed(move |_, _, _, pending, reason| end.set(Some((pending.len(), reason))));
    let config = NetworkConfig { owned_messages: 1, ..config() };
    let backend = netio3_asyncmsg::create_local(config, Box::new(handlers), &ev).expect("the configuration is valid");
    let connection = ConnectionParameters { close_deadline: Duration::from_secs(600), ..Default::default() };
    let params = ConnectionParametersRecv { connection, ..Default::default() };
    let address = backend.open_listen_endpoint(&EndPointAddress::localhost(0), &params).expect("a port is left");
    let mut peer = Bare::answered(&ev, address);
    let endpoint = backend.connections()[0].endpoint;
    peer.write(&[message(b"abc").repeat(5), Frame::Goodbye.head().to_vec()].concat());
    until(&ev, "the cap is reached", || taken_over.borrow().len() == 1);
    backend.close(endpoint).expect("it is there");
    ev.run_once(Some(Duration::ZERO)).expect("the loop can wait");
    backend.pause(endpoint).expect("it is there");
    until(&ev, "the connection is closed", || closed.get().is_some());
    assert_eq!(closed.get(), Some((0, ClosedReason::Local)));
    assert_eq!(taken_over.borrow().len(), 1);
}

/// What was accepted before a deadline that has passed at once is written where the socket has room.
#[test]
fn what_was_accepted_is_sent_even_if_there_is_no_time_for_closing() {
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let node = node_with(&ev, config());
    let (mut peer, to) = Bare::greeted(&ev, &node, node.listen());
    node.send(to, b"hello", 1);
    node.backend.shutdown(Duration::ZERO);
    until(&ev, "the connection is closed", || node.closed(to).is_some());
    assert_eq!(node.closed(to), Some((Vec::new(), ClosedReason::Shutdown)));
    let _ = peer.until_end(&ev);
    assert!(peer.arrived.starts_with(&message(b"hello")), "{:?}", peer.arrived);
}

/// A budget of nothing would have every turn end before its first read.
#[test]
fn a_budget_of_zero_lets_something_through() {
    for budget in [Budget { messages: 0, ..Budget::DEFAULT }, Budget { bytes: 0, ..Budget::DEFAULT }] {
        let ev = EpollEventLoop::new().expect("descriptors are left");
        let node = node_with(&ev, config());
        ev.set_budget(budget);
        let (mut peer, from) = Bare::greeted(&ev, &node, node.listen());
        peer.write(&message(b"abc"));
        until(&ev, "it arrives", || node.received(from) == [b"abc"]);
    }
}

/// Memory whose drop panics.
struct Panics(Vec<u8>);

impl AsRef<[u8]> for Panics {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Panics {
    fn drop(&mut self) {
        panic!("the user's");
    }
}

/// Dropping a backend of either kind drops its callbacks, even if the memory of a message panics when it is dropped.
#[test]
fn callbacks_go_with_the_backend_although_memory_panics() {
    let ev = EpollEventLoop::new().expect("descriptors are left");
    for is_synchronized in [false, true] {
        let held = Arc::new(());
        let witness = held.clone();
        let handlers = Box::new(Handlers::new().on_writable(move |_, _, _| _ = &witness));
        let backend: Box<dyn NetworkBackend> = if is_synchronized {
            netio3_asyncmsg::create(config(), handlers, &ev).expect("the configuration is valid")
        } else {
            netio3_asyncmsg::create_local(config(), handlers, &ev).expect("the configuration is valid")
        };
        let address = backend.open_listen_endpoint(&EndPointAddress::localhost(0), &Default::default()).expect("a port is left");
        let _peer = Bare::answered(&ev, address);
        let to = backend.connections()[0].endpoint;
        let memory = Bytes::from_owner(Panics(vec![1; 8 << 20]));
        assert_eq!(backend.send(to, &memory, b"", 1), Ok(NetioStatus::Ok));
        drop(memory);
        // As much as the socket takes.
        ev.run_once(Some(Duration::ZERO)).expect("the loop can wait");
        assert_eq!(Arc::strong_count(&held), 2);
        assert!(catch_unwind(AssertUnwindSafe(|| drop(backend))).is_err(), "the panic is the user's to see");
        assert_eq!(Arc::strong_count(&held), 1, "synchronized: {is_synchronized}");
        ev.run_once(Some(Duration::ZERO)).expect("the loop goes on");
    }
}
