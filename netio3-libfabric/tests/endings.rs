//! Connections that end at unusual moments.

mod util;

use std::cell::{Cell, RefCell};
use std::fs;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use netio3_core::{
    Buffers, Callbacks, ClosedReason, ConnectionParameters, ConnectionParametersRecv, EndPointAddress, EventLoop, Handlers, NetioStatus,
    NetworkBackend, NetworkConfig, Phase, RdmaParameters,
};
use netio3_evloop::EpollEventLoop;

use crate::util::{GOODBYE, LIMIT, Packet, Peer, Told, config, hello, hello_with, is_here, node, node_with, until};

/// Of messages that came in one packet those behind the one in whose callback the connection was aborted are counted.
#[test]
fn what_an_abort_leaves_of_a_packet_is_counted() {
    if !is_here() {
        return;
    }
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let closed = Rc::new(Cell::new(None));
    let end = closed.clone();
    let server = Handlers::new()
        .on_data(|backend, from, _, _| backend.abort(from).expect("it is there"))
        .on_connection_closed(move |_, _, _, _, reason| end.set(Some(reason)));
    let server = netio3_libfabric::create_local(config(), Box::new(server), &ev).expect("libfabric is here");
    let address = server.open_listen_endpoint(&EndPointAddress::localhost(0), &Default::default()).expect("a port is left");
    let client = node(&ev);
    let to = client.backend.connect(&address, &Default::default()).expect("a connection is started");
    until(&ev, &[], "it is established", || client.established() == [to]);
    (0..5).for_each(|key| client.send(to, b"hello", key));
    until(&ev, &[], "the connection is aborted", || closed.get().is_some());
    assert_eq!(closed.get(), Some(ClosedReason::Local));
    let totals = server.totals();
    assert_eq!((totals.messages_received.get(), totals.messages_discarded.get()), (1, 4));
}

/// Who listens is told of peers that are established, and of no other: not of one that was being accepted when the listener
/// was closed, the backend shut down, or the connection aborted.
#[test]
fn an_admitted_peer_that_is_not_established_is_not_told_of() {
    if !is_here() {
        return;
    }
    type End = fn(&dyn NetworkBackend, &EndPointAddress);
    let ends: [End; 3] = [
        |server, address| server.close_listen_endpoint(address).expect("it is there"),
        |server, _| server.shutdown(Duration::from_secs(2)),
        |server, _| server.connections().iter().for_each(|connection| server.abort(connection.endpoint).expect("it is there")),
    ];
    // They are accepted one after the other, so that some are still on the way.
    const PEERS: usize = 8;
    for end in ends {
        // The loops of both sides, so that one can stand still.
        let [here, there] = [(); 2].map(|()| EpollEventLoop::new().expect("descriptors are left"));
        let node = node(&here);
        let (server, address) = (&*node.backend, node.listen());
        let client = netio3_libfabric::create_local(config(), Box::new(Handlers::new()), &there).expect("libfabric is here");
        for _ in 0..PEERS {
            client.connect(&address, &Default::default()).expect("a connection is started");
        }
        let began = Instant::now();
        let turn = |what: &str| {
            assert!(began.elapsed() < LIMIT, "{what}");
            there.run_once(Some(Duration::from_millis(1))).expect("the loop can wait");
            here.run_once(Some(Duration::from_millis(1))).expect("the loop can wait");
        };
        while !server.connections().iter().any(|connection| connection.phase == Phase::Opening) {
            turn("no peer is met while it is being accepted");
        }
        end(server, &address);
        server.shutdown(Duration::from_secs(1));
        while !server.connections().is_empty() || !client.connections().is_empty() {
            turn("the connections do not end");
        }
        assert!(!node.told().iter().any(|told| matches!(told, Told::Refused(..))), "{:?}", node.told());
        assert_eq!(server.totals().refused.get(), 0);
    }
}

/// A peer whose goodbye was read late, and who did not wait, has closed: everything that it sent has arrived.
#[test]
fn a_goodbye_that_is_heard_late_is_one() {
    if !is_here() {
        return;
    }
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let [server, client] = [(); 2].map(|()| node(&ev));
    let params = ConnectionParameters { close_deadline: Duration::from_millis(100), ..Default::default() };
    let to = client.backend.connect(&server.listen(), &params).expect("a connection is started");
    until(&ev, &[], "it is established", || client.established() == [to] && server.established().len() == 1);
    let from = server.established()[0];
    server.backend.pause(from).expect("it is there");
    (0..10).for_each(|key| client.send(to, b"hello", key));
    client.backend.close(to).expect("it is there");
    until(&ev, &[], "the client has closed", || client.closed(to).is_some());
    assert_eq!(client.closed(to), Some((Vec::new(), ClosedReason::Local)));
    server.backend.resume(from).expect("it is there");
    until(&ev, &[], "the server has heard", || server.closed(from).is_some());
    assert_eq!((server.received(from).len(), server.closed(from)), (10, Some((Vec::new(), ClosedReason::PeerClosed))));
}

/// A peer that there are no buffers for has not vanished.
#[test]
fn a_peer_that_there_are_no_buffers_for_is_closed_by_the_limit() {
    if !is_here() {
        return;
    }
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let rdma = RdmaParameters { shared_receives: Some(1), ..config().rdma };
    let (server, client) = (node_with(&ev, NetworkConfig { rdma, ..config() }), node(&ev));
    let to = client.backend.connect(&server.listen(), &ConnectionParameters::default()).expect("a connection is started");
    until(&ev, &[], "both sides are told", || client.refused(to).is_some() && server.told().len() == 2);
    let [Told::Established(from, _), Told::Closed(closed, _, reason)] = &server.told()[..] else { panic!("{:?}", server.told()) };
    assert_eq!((from, *reason), (closed, ClosedReason::Limit));
}

/// Connected sockets of this port on this side.
fn connected(port: u16) -> usize {
    let text = fs::read_to_string("/proc/net/tcp").expect("there is /proc");
    let fields = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    fields.filter(|fields| fields[1].ends_with(&format!(":{port:04X}")) && fields[3] == "01").count()
}

/// Nor has a device any of the user's memory when a drop in a callback has returned, be it that of a connection which ended before.
#[test]
fn an_endpoint_is_closed_when_a_drop_in_a_callback_returns() {
    if !is_here() {
        return;
    }
    for aborts in [false, true] {
        let ev = EpollEventLoop::new().expect("descriptors are left");
        let held: Rc<RefCell<Option<Box<dyn NetworkBackend>>>> = Rc::default();
        let (port, seen) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(None)));
        let (mine, at, told) = (held.clone(), port.clone(), seen.clone());
        let server = Handlers::new().on_data(move |backend, from, _, _| {
            if aborts {
                // So that the helper thread has something to do before.
                for n in 0..300 {
                    backend.connect(&EndPointAddress::localhost(2_000 + n), &Default::default()).expect("it is started");
                }
                backend.abort(from).expect("it is connected");
            }
            let before = connected(at.get());
            drop(mine.take());
            told.set(Some((before, connected(at.get()))));
        });
        let server = netio3_libfabric::create_local(config(), Box::new(server), &ev).expect("libfabric is here");
        let address = server.open_listen_endpoint(&EndPointAddress::localhost(0), &Default::default()).expect("a port is left");
        port.set(address.port());
        *held.borrow_mut() = Some(server);
        let client = node(&ev);
        let to = client.backend.connect(&address, &Default::default()).expect("a connection is started");
        until(&ev, &[], "it is established", || client.established() == [to]);
        client.send(to, b"go", 0);
        until(&ev, &[], "the backend is dropped", || seen.get().is_some());
        assert_eq!(seen.get().map(|(_, after)| after), Some(0), "aborted before: {aborts}");
    }
}

/// What it has taken over is what waits to be sent back, which keeps it at its cap: that is given up once the peer is gone.
#[test]
fn an_echo_at_its_cap_hears_of_the_end_of_its_peer() {
    if is_here() {
        [100, 0].into_iter().for_each(an_echo_at_its_cap_ends);
    }
}

/// With a peer that announces heartbeats in this interval, in milliseconds.
fn an_echo_at_its_cap_ends(heartbeat: u8) {
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let (taken, closed) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(None)));
    let (count, end) = (taken.clone(), closed.clone());
    let server = Handlers::new()
        .on_data(move |backend, from, _, message| {
            let is_last = message.len() == 4;
            let bytes = message.into_bytes();
            if !is_last {
                assert_eq!(backend.send(from, &bytes, &[], count.get()), Ok(NetioStatus::Ok));
            }
            count.set(count.get() + 1);
        })
        .on_connection_closed(move |_, _, _, pending, reason| end.set(Some((pending.len(), reason))));
    let heartbeat_interval = Duration::from_millis(heartbeat.into());
    let config = NetworkConfig { owned_messages: 4, heartbeat_interval, ..config() };
    let server = netio3_libfabric::create_local(config, Box::new(server), &ev).expect("libfabric is here");
    let connection = ConnectionParameters { copy_below: 64, ..Default::default() };
    let params = ConnectionParametersRecv { connection, ..Default::default() };
    let address = server.open_listen_endpoint(&EndPointAddress::localhost(0), &params).expect("a port is left");
    // It takes one packet.
    let peer = Peer::connect(address, &hello_with(12, &[heartbeat, 0, 0, 0, 0, 32, 0, 0, 1, 0]));
    until(&ev, &[&peer], "it is established", || peer.answer().is_some());
    for _ in 0..12 {
        peer.send(&Packet::messages(&[&[7; 3_000]]));
    }
    for _ in 0..2 {
        peer.send(&Packet::messages(&[b"last"]));
    }
    // It closes and does not wait for ours.
    peer.send(&Packet::new(GOODBYE));
    until(&ev, &[&peer], "the cap is reached", || taken.get() >= 4 && peer.data_packets() == 1);
    let end = Instant::now() + Duration::from_millis(200);
    until(&ev, &[&peer], "the rest arrives", || Instant::now() > end);
    peer.die();
    until(&ev, &[], "it is closed", || closed.get().is_some());
    // All that came is the user's, and of his own one has left.
    assert_eq!((taken.get(), closed.get()), (14, Some((11, ClosedReason::PeerLost))));
}

/// One of either kind.
fn backend(
    synchronized: bool,
    config: NetworkConfig,
    callbacks: impl Callbacks + Send + 'static,
    ev: &EpollEventLoop,
) -> Box<dyn NetworkBackend> {
    if synchronized {
        netio3_libfabric::create(config, Box::new(callbacks), ev).expect("libfabric is here")
    } else {
        netio3_libfabric::create_local(config, Box::new(callbacks), ev).expect("libfabric is here")
    }
}

/// Once a peer's goodbye was read nothing more is accepted, which could not leave any more: on either kind.
#[test]
fn nothing_is_accepted_after_a_goodbye_was_read() {
    if !is_here() {
        return;
    }
    for synchronized in [false, true] {
        let ev = EpollEventLoop::new().expect("descriptors are left");
        let server = backend(synchronized, config(), Handlers::new(), &ev);
        let address = server.open_listen_endpoint(&EndPointAddress::localhost(0), &Default::default()).expect("a port is left");
        let peer = Peer::connect(address, &hello());
        until(&ev, &[&peer], "it is established", || peer.answer().is_some() && server.connections().len() == 1);
        let from = server.connections()[0].endpoint;
        peer.send(&Packet::new(GOODBYE));
        // It says no farewell, so that the connection waits for that.
        until(&ev, &[&peer], "the goodbye is answered", || peer.has_heard(GOODBYE));
        assert_eq!(server.send_copy(from, b"late", &[], 1), Ok(NetioStatus::NotConnected), "synchronized: {synchronized}");
    }
}

/// What *established* sends to a peer that no endpoint could be opened for comes back when that ends, which is next: each buffer
/// once, on either kind.
#[test]
fn buffers_sent_to_a_peer_without_an_endpoint_come_back_once() {
    if !is_here() {
        return;
    }
    for synchronized in [false, true] {
        let ev = EpollEventLoop::new().expect("descriptors are left");
        let (accepted, closed) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(None)));
        let (sent, end) = (accepted.clone(), closed.clone());
        let callbacks = Handlers::new()
            .on_connection_established(move |backend, connection| {
                for _ in 0..2 {
                    let mut buffer = backend.take_buffer(connection.endpoint).expect("it has a pool").expect("one is free");
                    buffer.extend_from_slice(b"hello").expect("it fits");
                    let id = buffer.id();
                    backend.send_taken(connection.endpoint, buffer).expect("it is established");
                    sent.lock().expect("nobody panicked").push(id);
                }
                backend.flush(connection.endpoint).expect("it is there");
            })
            .on_connection_closed(move |_, _, _, pending, _| {
                end.lock().expect("nobody panicked").replace(pending.iter().map(|pending| pending.key).collect::<Vec<_>>());
            });
        let config = NetworkConfig { rdma: RdmaParameters { shared_receives: Some(1), ..config().rdma }, ..config() };
        let server = backend(synchronized, config, callbacks, &ev);
        let connection = ConnectionParameters { buffers: Some(Buffers { size: 100, count: 4 }), ..Default::default() };
        let params = ConnectionParametersRecv { connection, ..Default::default() };
        let address = server.open_listen_endpoint(&EndPointAddress::localhost(0), &params).expect("a port is left");
        let client = node(&ev);
        client.backend.connect(&address, &ConnectionParameters::default()).expect("a connection is started");
        until(&ev, &[], "it is closed", || closed.lock().expect("nobody panicked").is_some());
        let pending = closed.lock().expect("nobody panicked").take();
        assert_eq!(pending, Some(accepted.lock().expect("nobody panicked").clone()), "synchronized: {synchronized}");
    }
}
