//! A spinning loop polls the socket of a backend's only connection instead of having it watched.

mod util;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use netio3_core::conformance::expect_heard_at_any_moment;
use netio3_core::{ConnectionParameters, ConnectionParametersRecv, EndPointAddress, EventLoop, Handlers, NetioStatus, Remote};
use netio3_evloop::EpollEventLoop;
use util::{LIMIT, hello, message, node, until};

/// A bare socket that has said hello.
fn greeted(address: EndPointAddress) -> TcpStream {
    let mut socket = TcpStream::connect(address.socket_addr()).expect("somebody listens");
    socket.set_read_timeout(Some(LIMIT)).expect("a timeout can be set");
    socket.write_all(&hello()).expect("the peer is there");
    socket.read_exact(&mut [0; 72]).expect("the peer says hello");
    socket
}

/// Says something and waits for the answer, some times.
fn talk(socket: &mut TcpStream) {
    for _ in 0..ROUNDS {
        socket.write_all(&message(b"there")).expect("the peer is there");
        socket.read_exact(&mut message(b"back")).expect("the peer answers");
    }
}

const ROUNDS: usize = 50;

/// A loop that spins before it sleeps.
fn spinning(time: Duration) -> EpollEventLoop {
    let ev = EpollEventLoop::new().expect("descriptors are left");
    ev.set_spin(time);
    ev
}

/// No test takes so long.
const FOR_EVER: Duration = Duration::from_secs(3_600);

#[test]
fn what_comes_at_any_moment_of_spinning_and_sleeping_is_heard() {
    expect_heard_at_any_moment(spinning, node);
}

#[test]
fn a_polled_socket_is_read_though_the_loop_has_other_work() {
    let ev = spinning(FOR_EVER);
    let node = node(&ev);
    let address = node.listen();
    let (tell, told) = mpsc::channel();
    let peer = thread::spawn(move || {
        let mut socket = greeted(address);
        talk(&mut socket);
        told.recv().expect("the loop is busy");
        socket.write_all(&message(b"last")).expect("the peer is there");
        socket
    });
    until(&ev, "established", || !node.established().is_empty());
    let from = node.established()[0];
    for round in 1..=ROUNDS {
        until(&ev, "a message arrives", || node.received(from).len() == round);
        node.send(from, b"back", round as u64);
    }
    // From here on it never spins.
    fn forever(ev: &netio3_evloop::Handle) {
        ev.post(forever);
    }
    ev.post(forever);
    ev.run_for(Duration::from_millis(5)).expect("the loop can run");
    tell.send(()).expect("the peer waits");
    until(&ev, "the last message", || node.received(from).len() == ROUNDS + 1);
    drop(peer.join());
    until(&ev, "the end of the stream", || node.closed(from).is_some());
}

/// Runs a spinning loop, which answers from within its callbacks, for as long as the peer talks to it.
fn serve(peer: impl FnOnce(EndPointAddress) + Send + 'static) {
    struct Stop(Arc<dyn Remote>);
    impl Drop for Stop {
        fn drop(&mut self) {
            self.0.stop();
        }
    }
    let ev = spinning(FOR_EVER);
    let server = Handlers::new().on_data(|backend, from, _, message| {
        let answer = if *message == *b"more" { vec![7; LEN] } else { b"back".to_vec() };
        assert_eq!(backend.send_copy(from, &answer, &[], 0), Ok(NetioStatus::Ok));
    });
    let server = netio3_asyncmsg::create_local(util::config(), Box::new(server), &ev).expect("the configuration is valid");
    // So small that the long answer fills it, however fast the peer reads.
    let connection = ConnectionParameters { send_buffer: Some(16 << 10), ..Default::default() };
    let listen = ConnectionParametersRecv { connection, ..Default::default() };
    let address = server.open_listen_endpoint(&EndPointAddress::localhost(0), &listen).expect("a port is free");
    let stop = Stop(ev.remote());
    let peer = thread::spawn(move || {
        let _stop = stop;
        peer(address);
    });
    ev.run().expect("the loop can run");
    peer.join().expect("the peer is content");
}

const LEN: usize = 32 << 20;

#[test]
fn a_polled_socket_that_is_full_is_written_when_there_is_room() {
    serve(|address| {
        let mut socket = greeted(address);
        talk(&mut socket);
        socket.write_all(&message(b"more")).expect("the peer is there");
        let mut long = message(&vec![0; LEN]);
        socket.read_exact(&mut long).expect("all of it comes");
        assert!(long == message(&vec![7; LEN]), "other bytes came");
    });
}

#[test]
fn a_second_connection_is_heard_beside_one_that_was_polled() {
    serve(|address| {
        let mut first = greeted(address);
        talk(&mut first);
        let mut second = greeted(address);
        for _ in 0..2 {
            talk(&mut second);
            talk(&mut first);
        }
        drop(second);
        talk(&mut first);
    });
}

/// One that is refused, and one that never says hello.
#[test]
fn strangers_do_not_keep_a_polled_connection_from_being_heard() {
    serve(|address| {
        let mut socket = greeted(address);
        talk(&mut socket);
        let mut refused = TcpStream::connect(address.socket_addr()).expect("somebody listens");
        refused.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("the peer is there");
        refused.set_read_timeout(Some(LIMIT)).expect("a timeout can be set");
        // A reset is as good.
        let _ = refused.read(&mut [0; 100]);
        talk(&mut socket);
        let mut silent = TcpStream::connect(address.socket_addr()).expect("somebody listens");
        silent.write_all(&hello()[..20]).expect("the peer is there");
        let began = Instant::now();
        talk(&mut socket);
        assert!(began.elapsed() < Duration::from_secs(3), "heard after {:?} only", began.elapsed());
    });
}
