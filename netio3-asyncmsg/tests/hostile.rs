//! Peers that break the protocol, vanish or do nothing: each ends alone, with a reason that names it.

mod util;

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use netio3_asyncmsg::{Frame, HEAD_LEN};
use netio3_core::{
    AcceptFilter, AddressError, ClosedReason, ConnectionParameters, ConnectionParametersRecv, EndPointAddress, Endpoint, EventLoop,
    NetioStatus, NetworkConfig, OpenListenError, RefusedReason,
};
use netio3_evloop::EpollEventLoop;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use util::{Bare, Node, Told, Witness, config, hello, message, until};

/// A server with a witness.
struct Server {
    ev: EpollEventLoop,
    node: Node,
    address: EndPointAddress,
    witness: Witness,
}

impl Server {
    fn new() -> Self {
        Self::with(config(), ConnectionParameters::default())
    }

    fn with(config: NetworkConfig, params: ConnectionParameters) -> Self {
        let ev = EpollEventLoop::new().expect("descriptors are left");
        let node = util::node_with(&ev, config);
        let address = node.listen_with(params);
        let witness = Witness::new(&ev, util::node(&ev), &node, address);
        Self { ev, node, address, witness }
    }

    fn greeted(&self) -> (Bare, Endpoint) {
        Bare::greeted(&self.ev, &self.node, self.address)
    }

    #[track_caller]
    fn until(&self, what: &str, condition: impl FnMut() -> bool) {
        until(&self.ev, what, condition);
    }

    #[track_caller]
    fn until_closed(&self, endpoint: Endpoint) -> (usize, ClosedReason) {
        self.until("the connection is closed", || self.node.closed(endpoint).is_some());
        let (pending, reason) = self.node.closed(endpoint).expect("it was awaited");
        (pending.len(), reason)
    }

    /// Nobody else noticed anything: of connections, there is the witness's alone.
    #[track_caller]
    fn check(mut self) {
        self.witness.testify(&self.ev, &self.node);
        until(&self.ev, "the witness alone is left", || self.node.backend.totals().connections.get() == 1);
        assert_eq!(self.node.backend.connections().len(), 1);
        assert_eq!(self.node.backend.totals().queued_messages.get(), 0);
    }
}

#[test]
fn a_wrong_magic_is_a_failed_hello() {
    let server = Server::new();
    let told = server.node.told().len();
    for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"NETIO2\r\n", &[0xFF; 100]] {
        let mut bare = Bare::connect(server.address);
        bare.write(bytes);
        _ = bare.until_end(&server.ev);
        assert!(bare.arrived.is_empty(), "strangers are told nothing");
    }
    assert_eq!(server.node.listener().failed_hello, 3);
    assert_eq!(server.node.backend.totals().failed_hello.get(), 3);
    assert_eq!(server.node.told().len(), told, "no callback");
    server.check();
}

#[test]
fn a_malformed_hello_is_a_failed_hello() {
    let server = Server::new();
    let malformed: [(usize, &[u8]); 4] = [(8, &[3, 0]), (8, &[0xFF, 0xFF]), (10, &[3, 2]), (16, &[0; 8])];
    for (at, bytes) in malformed {
        let mut bare = Bare::connect(server.address);
        let mut hello = hello();
        hello[at..at + bytes.len()].copy_from_slice(bytes);
        bare.write(&hello);
        _ = bare.until_end(&server.ev);
    }
    assert_eq!(server.node.listener().failed_hello, 4);
    server.check();
}

#[test]
fn a_peer_of_another_version_is_told_so() {
    let server = Server::new();
    let mut bare = Bare::connect(server.address);
    let mut hello = hello();
    hello[10..12].copy_from_slice(&[7, 9]);
    bare.write(&hello);
    assert_eq!(bare.until_end(&server.ev), Ok(()));
    assert_eq!((bare.arrived.len(), bare.arrived[12]), (72, 1), "the verdict");
    assert_eq!((server.node.listener().refused_version, server.node.listener().failed_hello), (1, 0));
    server.check();
}

#[test]
fn a_newer_peer_that_speaks_our_version_is_welcome() {
    let server = Server::new();
    let mut bare = Bare::connect(server.address);
    let mut hello = hello();
    hello[8..12].copy_from_slice(&[100, 0, 1, 9]);
    let mut longer = hello.to_vec();
    longer.resize(100, 0x55);
    longer.extend(message(b"first"));
    bare.write(&longer);
    server.until("it is established", || server.node.established().len() == 2);
    let endpoint = server.node.established()[1];
    server.until("its message arrives", || !server.node.received(endpoint).is_empty());
    bare.read();
    assert_eq!(bare.arrived[10..13], [1, 1, 0]);
    drop(bare);
    server.until_closed(endpoint);
    server.check();
}

#[test]
fn an_unknown_frame_ends_the_connection() {
    let server = Server::new();
    for head in [[0; HEAD_LEN], *b"GET / HT", [0, 0, 0, 0, 0xC0, 0, 0, 0], [1, 0, 0, 0, 0xE3, 0, 0, 0], [0, 0, 0, 0, 0xD1, 0, 0, 1]] {
        let (mut bare, endpoint) = server.greeted();
        bare.write(&[&message(b"good")[..], &head].concat());
        assert_eq!(server.until_closed(endpoint), (0, ClosedReason::Protocol));
        assert_eq!(server.node.received(endpoint), [b"good"], "what came before counts");
        _ = bare.until_end(&server.ev);
    }
    server.check();
}

#[test]
fn a_length_beyond_the_maximum_ends_the_connection_and_allocates_nothing() {
    let server = Server::with(NetworkConfig { max_message_len: 100_000, ..config() }, ConnectionParameters::default());
    for len in [100_001, 1 << 30, u32::MAX as usize] {
        let (mut bare, endpoint) = server.greeted();
        bare.write(&Frame::Data(len).head());
        assert_eq!(server.until_closed(endpoint), (0, ClosedReason::Protocol));
        assert_eq!(server.node.backend.totals().assembly_bytes.get(), 0);
    }
    server.check();
}

#[test]
fn nothing_is_allocated_on_a_lengths_word() {
    let server = Server::with(NetworkConfig { max_message_len: u32::MAX as usize, ..config() }, ConnectionParameters::default());
    let (mut bare, endpoint) = server.greeted();
    let totals = server.node.backend.totals();
    bare.write(&Frame::Data(u32::MAX as usize).head());
    bare.write(&[7; 100]);
    server.until("the beginning is read", || totals.assembly_bytes.get() > 0);
    assert!(totals.assembly_bytes.get() <= 64 << 10, "{} bytes held for 100", totals.assembly_bytes.get());
    let mut sent = 100;
    while sent < 2 << 20 {
        let n = bare.socket_write(&[7; 50_000]);
        sent += n;
        server.ev.run_once(Some(Duration::ZERO)).expect("the loop can wait");
        let held = totals.assembly_bytes.get() as usize;
        assert!(held <= (64 << 10).max(2 * sent), "{held} bytes held for {sent}");
    }
    bare.reset();
    assert_eq!(server.until_closed(endpoint), (0, ClosedReason::PeerLost));
    assert_eq!(totals.assembly_bytes.get(), 0);
    server.check();
}

#[test]
fn memory_for_assembling_has_a_limit() {
    let config = NetworkConfig { total_assembly_bytes: 1 << 20, ..config() };
    let server = Server::with(config, ConnectionParameters::default());
    let (mut bare, endpoint) = server.greeted();
    bare.write(&Frame::Data(16 << 20).head());
    server.until("the limit is reached", || {
        if server.node.closed(endpoint).is_none() {
            bare.socket_write(&[7; 50_000]);
        }
        server.node.closed(endpoint).is_some()
    });
    assert_eq!(server.until_closed(endpoint), (0, ClosedReason::Limit));
    assert_eq!(server.node.backend.totals().assembly_bytes.get(), 0);
    server.check();
}

#[test]
fn a_hello_may_come_one_byte_at_a_time() {
    let server = Server::new();
    let mut bare = Bare::connect(server.address);
    for byte in [&hello()[..], &message(b"slow"), &Frame::Goodbye.head()].concat() {
        bare.write(&[byte]);
        server.ev.run_once(Some(Duration::from_millis(5))).expect("the loop can wait");
    }
    server.until("it is established", || server.node.established().len() == 2);
    let endpoint = server.node.established()[1];
    assert_eq!(server.until_closed(endpoint), (0, ClosedReason::PeerClosed));
    assert_eq!(server.node.received(endpoint), [b"slow"]);
    assert_eq!(bare.until_end(&server.ev), Ok(()));
    assert!(bare.arrived.ends_with(&Frame::Goodbye.head()));
    server.check();
}

#[test]
fn who_never_says_hello_is_dropped_at_the_deadline() {
    let server = Server::with(NetworkConfig { hello_deadline: Duration::from_millis(100), ..config() }, ConnectionParameters::default());
    let mut silent = Bare::connect(server.address);
    let mut half = Bare::connect(server.address);
    half.write(&hello()[..40]);
    _ = silent.until_end(&server.ev);
    _ = half.until_end(&server.ev);
    assert_eq!((server.node.listener().silent, server.node.listener().failed_hello), (2, 0));
    server.check();
}

#[test]
fn who_says_hello_during_a_shutdown_is_told_so() {
    let server = Server::new();
    let mut bare = Bare::connect(server.address);
    let other_loop = EpollEventLoop::new().expect("descriptors are left");
    let dialler = util::node(&other_loop);
    let endpoint = dialler.backend.connect(&server.address, &ConnectionParameters::default()).expect("a connection is started");
    server.until("both are accepted", || server.node.listener().accepted == 3);
    let told = server.node.told().len();
    let counters = server.node.backend.listeners()[0].counters.clone();
    server.node.backend.shutdown(Duration::from_secs(600));
    server.until("the witness has gone", || server.node.backend.connections().is_empty());
    bare.write(&hello());
    assert_eq!(bare.until_end(&server.ev), Ok(()));
    assert_eq!((bare.arrived.len(), bare.arrived[12]), (72, 4), "the verdict");
    until(&other_loop, "the other one is refused", || {
        server.ev.run_once(Some(Duration::ZERO)).expect("the loop can wait");
        dialler.refused(endpoint).is_some()
    });
    assert_eq!(dialler.refused(endpoint), Some(RefusedReason::Shutdown));
    assert_eq!((counters.silent.get(), counters.failed_hello.get(), counters.established.get()), (0, 0, 1));
    assert!(server.node.told()[told..].iter().all(|told| matches!(told, Told::Closed(..))), "of strangers nothing is told");
    assert!(TcpStream::connect(server.address.socket_addr()).is_err(), "nobody listens any more");
}

#[test]
fn who_says_nothing_during_a_shutdown_is_dropped_at_its_deadline() {
    let server = Server::with(NetworkConfig { hello_deadline: Duration::from_secs(600), ..config() }, ConnectionParameters::default());
    let mut silent = Bare::connect(server.address);
    server.until("it is accepted", || server.node.listener().accepted == 2);
    let counters = server.node.backend.listeners()[0].counters.clone();
    server.node.backend.shutdown(Duration::from_millis(100));
    _ = silent.until_end(&server.ev);
    assert!(silent.arrived.is_empty());
    assert_eq!(counters.silent.get(), 1);
}

#[test]
fn a_crowd_that_says_nothing_hinders_nobody() {
    // Both ends are in this process.
    let limit = getrlimit(Resource::Nofile);
    _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    let room = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let crowd = 2_000.min(room.saturating_sub(100) / 2) as usize;
    println!("{crowd} silent connections");
    let mut server = Server::with(NetworkConfig { max_handshakes: 4_096, ..config() }, ConnectionParameters::default());
    let mut silent = Vec::new();
    for _ in 0..crowd {
        silent.push(Bare::connect(server.address));
        if silent.len() % 100 == 0 {
            server.witness.testify(&server.ev, &server.node);
        }
    }
    server.until("all are accepted", || server.node.listener().accepted == crowd as u64 + 1);
    server.witness.testify(&server.ev, &server.node);
    // Somebody new gets through.
    let (bare, endpoint) = server.greeted();
    drop(bare);
    assert_eq!(server.until_closed(endpoint), (0, ClosedReason::PeerLost));
    drop(silent);
    server.until("all are gone", || server.node.listener().failed_hello == crowd as u64);
    server.check();
}

#[test]
fn the_longest_silent_makes_room_for_a_newcomer() {
    let server = Server::with(NetworkConfig { max_handshakes: 3, ..config() }, ConnectionParameters::default());
    let mut silent: Vec<_> = (0..3).map(|_| Bare::connect(server.address)).collect();
    server.until("all are accepted", || server.node.listener().accepted == 4);
    let (bare, endpoint) = server.greeted();
    _ = silent[0].until_end(&server.ev);
    silent[1].read();
    assert_eq!((silent[1].end, server.node.listener().silent), (None, 1));
    drop(bare);
    server.until_closed(endpoint);
    server.check();
}

#[test]
fn a_peer_that_ends_inside_a_frame_is_lost() {
    let server = Server::new();
    for reset in [false, true] {
        let (mut bare, endpoint) = server.greeted();
        let stats = server.node.backend.stats(endpoint).expect("it is there");
        bare.write(&message(b"whole"));
        bare.write(&message(&[1; 500_000])[..100_000]);
        server.until("half of it is read", || server.node.backend.totals().assembly_bytes.get() > 50_000);
        if reset {
            bare.reset()
        } else {
            drop(bare)
        }
        assert_eq!(server.until_closed(endpoint), (0, ClosedReason::PeerLost));
        assert_eq!(server.node.received(endpoint), [b"whole"]);
        assert_eq!(stats.messages_discarded.get(), 1, "reset: {reset}");
    }
    server.check();
}

#[test]
fn what_a_lost_peer_did_not_take_is_pending() {
    let server = Server::new();
    let (bare, endpoint) = server.greeted();
    let stats = server.node.backend.stats(endpoint).expect("it is there");
    let accepted = fill(&server, endpoint);
    bare.reset();
    let (pending, reason) = server.until_closed(endpoint);
    assert_eq!(reason, ClosedReason::PeerLost);
    assert!(pending > 0);
    assert_eq!(stats.messages_sent.get() as usize + pending, accepted);
    let (pending, _) = server.node.closed(endpoint).expect("it is");
    let keys: Vec<u64> = pending.iter().map(|pending| pending.key).collect();
    assert_eq!(keys, ((accepted - pending.len()) as u64..accepted as u64).collect::<Vec<_>>(), "the last ones, in order");
    server.check();
}

/// Sends until nothing leaves any more.
fn fill(server: &Server, endpoint: Endpoint) -> usize {
    let mut accepted = 0;
    let data = [5; 60_000];
    loop {
        match server.node.backend.send_copy(endpoint, &data, &[], accepted).expect("it is there") {
            NetioStatus::Ok => accepted += 1,
            NetioStatus::NoResources => {
                let left = server.node.backend.stats(endpoint).expect("it is there").messages_sent.get();
                server.ev.run_for(Duration::from_millis(50)).expect("the loop can wait");
                if server.node.backend.stats(endpoint).expect("it is there").messages_sent.get() == left {
                    return accepted as usize;
                }
            }
            status => panic!("{status:?}"),
        }
    }
}

#[test]
fn who_never_reads_is_stalled() {
    let params = ConnectionParameters { stall_timeout: Some(Duration::from_millis(200)), ..Default::default() };
    let server = Server::with(config(), params);
    let (mut bare, endpoint) = server.greeted();
    for key in 0..100 {
        server.node.send(endpoint, &[5; 100_000], key);
    }
    let (pending, reason) = server.until_closed(endpoint);
    assert_eq!(reason, ClosedReason::Stalled);
    assert!(pending > 0);
    assert!(bare.until_end(&server.ev).is_err(), "a reset, not an end that looks orderly");
    server.check();
}

#[test]
fn what_arrives_does_not_keep_a_stalled_queue_alive() {
    // Longer than it takes until an idle connection's memory is looked after.
    let timeout = Duration::from_millis(2_500);
    let params = ConnectionParameters { stall_timeout: Some(timeout), ..Default::default() };
    let server = Server::with(config(), params);
    let (mut bare, endpoint) = server.greeted();
    for key in 0..100 {
        server.node.send(endpoint, &[5; 100_000], key);
    }
    // Too long for what is read at once, so that memory is used for each.
    let stream = message(&[6; 200_000]);
    let (mut written, started) = (0, std::time::Instant::now());
    server.until("it is found stalled", || {
        written += bare.socket_write(&stream[written % stream.len()..]);
        server.node.forget();
        assert!(started.elapsed() < 4 * timeout, "its clock is restarted");
        server.node.closed(endpoint).is_some()
    });
    assert_eq!(server.until_closed(endpoint).1, ClosedReason::Stalled);
    assert!(written > 10 * stream.len(), "only {written} bytes came in");
}

#[test]
fn an_end_without_goodbye_is_a_loss() {
    let server = Server::new();
    let (mut bare, endpoint) = server.greeted();
    bare.write(&message(b"last words"));
    bare.shutdown().expect("it is connected");
    assert_eq!(server.until_closed(endpoint), (0, ClosedReason::PeerLost));
    assert_eq!(server.node.received(endpoint), [b"last words"]);
    server.check();
}

#[test]
fn nothing_counts_after_a_goodbye() {
    let server = Server::new();
    let (mut bare, endpoint) = server.greeted();
    bare.write(&[&message(b"before")[..], &Frame::Goodbye.head(), &message(b"after"), b"and nonsense"].concat());
    assert_eq!(server.until_closed(endpoint), (0, ClosedReason::PeerClosed));
    assert_eq!(server.node.received(endpoint), [b"before"]);
    server.check();
}

#[test]
fn a_peer_that_does_not_answer_a_goodbye_is_left_at_the_deadline() {
    let params = ConnectionParameters { close_deadline: Duration::from_millis(150), ..Default::default() };
    let server = Server::with(config(), params);
    let (mut bare, endpoint) = server.greeted();
    server.node.send(endpoint, b"the last", 1);
    server.node.backend.close(endpoint).expect("it is there");
    assert_eq!(server.until_closed(endpoint), (0, ClosedReason::Local));
    _ = bare.until_end(&server.ev);
    assert_eq!(bare.arrived, [&message(b"the last")[..], &Frame::Goodbye.head()].concat());
    server.check();
}

#[test]
fn a_reset_at_any_moment_ends_that_connection_alone() {
    let server = Server::new();
    let stranger = |bytes: &[u8]| {
        let mut bare = Bare::connect(server.address);
        bare.write(bytes);
        bare
    };
    // Strangers: no callback, and no word of when the reset is noticed but the counter.
    let failed = |n| server.until("the hello has failed", || server.node.listener().failed_hello >= n);
    stranger(&[]).reset();
    failed(1);
    stranger(&hello()[..30]).reset();
    failed(2);
    stranger(b"nonsense").reset();
    failed(3);
    // Either it is found before the hello is read, or the connection is established and lost.
    stranger(&hello()).reset();
    let ended = |told: &Told| matches!(told, Told::Closed(_, _, ClosedReason::PeerLost));
    server.until("it has ended", || server.node.listener().failed_hello == 4 || server.node.told().iter().any(ended));

    type Prepare = fn(&Server, &mut Bare, Endpoint);
    let prepared: [(Prepare, ClosedReason); 6] = [
        (|_, _, _| (), ClosedReason::PeerLost),
        (|_, bare, _| bare.write(&message(b"half a message")[..12]), ClosedReason::PeerLost),
        (|_, bare, _| bare.write(&Frame::Data(5).head()[..3]), ClosedReason::PeerLost),
        (|server, _, endpoint| server.node.send(endpoint, &[0; 10_000_000], 1), ClosedReason::PeerLost),
        (|server, _, endpoint| server.node.backend.pause(endpoint).expect("it is there"), ClosedReason::PeerLost),
        (|server, _, endpoint| server.node.backend.close(endpoint).expect("it is there"), ClosedReason::Local),
    ];
    for (i, (prepare, expected)) in prepared.into_iter().enumerate() {
        let (mut bare, endpoint) = server.greeted();
        prepare(&server, &mut bare, endpoint);
        server.ev.run_once(Some(Duration::ZERO)).expect("the loop can wait");
        bare.reset();
        if i == 4 {
            // Not read from, so that the end is found afterwards.
            server.node.backend.resume(endpoint).expect("it is there");
        }
        assert_eq!(server.until_closed(endpoint).1, expected, "case {i}");
    }
    server.check();
}

// ----- listeners of other kinds, met by our client -----

/// A client and a bare listener that it dials; tells what becomes of it when it is answered like this.
fn refused_when_answered(answer: &[u8]) -> RefusedReason {
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let node = util::node(&ev);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = EndPointAddress::from(listener.local_addr().expect("it is bound"));
    let endpoint = node.backend.open_send_endpoint(&address, &ConnectionParameters::default()).expect("a connection is started");
    let (socket, _) = listener.accept().expect("it dials");
    let mut bare = Bare::new(socket);
    until(&ev, "its hello arrives", || {
        bare.read();
        bare.arrived.len() == 72
    });
    bare.write(answer);
    drop(bare);
    until(&ev, "it is refused", || node.refused(endpoint).is_some());
    assert_eq!(node.told().len(), 1, "and nothing else is told");
    node.refused(endpoint).expect("it was awaited")
}

#[test]
fn strange_listeners_are_refusals_with_a_reason() {
    let with = |at: usize, bytes: &[u8]| {
        let mut hello = hello();
        hello[at..at + bytes.len()].copy_from_slice(bytes);
        hello
    };
    assert_eq!(refused_when_answered(b"SSH-2.0-OpenSSH\r\n"), RefusedReason::Protocol);
    assert_eq!(refused_when_answered(b""), RefusedReason::NoListener, "it hangs up");
    assert_eq!(refused_when_answered(&hello()[..50]), RefusedReason::NoListener, "it hangs up in the middle");
    assert_eq!(refused_when_answered(&with(10, &[7, 7])), RefusedReason::Version);
    assert_eq!(refused_when_answered(&with(12, &[1])), RefusedReason::Version);
    assert_eq!(refused_when_answered(&with(12, &[2])), RefusedReason::Filter);
    assert_eq!(refused_when_answered(&with(12, &[3])), RefusedReason::Limit);
    assert_eq!(refused_when_answered(&with(12, &[4])), RefusedReason::Shutdown);
    assert_eq!(refused_when_answered(&with(16, &[0; 8])), RefusedReason::Protocol);
}

#[test]
fn a_listener_that_says_nothing_is_a_timeout() {
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let node = util::node(&ev);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = EndPointAddress::from(listener.local_addr().expect("it is bound"));
    let params = ConnectionParameters { connect_deadline: Duration::from_millis(100), ..Default::default() };
    let endpoint = node.backend.open_send_endpoint(&address, &params).expect("a connection is started");
    until(&ev, "it is refused", || node.refused(endpoint).is_some());
    assert_eq!(node.refused(endpoint), Some(RefusedReason::Timeout));
}

#[test]
fn who_is_filtered_is_told_so() {
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let (server, client) = (util::node(&ev), util::node(&ev));
    let params = ConnectionParametersRecv { accept: AcceptFilter::new(|_| false), ..Default::default() };
    let address = server.backend.open_listen_endpoint(&EndPointAddress::localhost(0), &params).expect("a port is free");
    let endpoint = client.backend.connect(&address, &ConnectionParameters::default()).expect("a connection is started");
    until(&ev, "it is refused", || client.refused(endpoint).is_some());
    assert_eq!(client.refused(endpoint), Some(RefusedReason::Filter));
    assert_eq!((server.listener().refused_filter, server.told().len()), (1, 0));
}

#[test]
fn an_address_in_use_is_said_to_be() {
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let node = util::node(&ev);
    let other = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let taken = EndPointAddress::from(other.local_addr().expect("it is bound"));
    match node.backend.open_listen_endpoint(&taken, &ConnectionParametersRecv::default()) {
        Err(OpenListenError::FailedOpenListenEndpoint { address, source }) => {
            assert_eq!(address, taken);
            assert_eq!(source.kind(), std::io::ErrorKind::AddrInUse);
            assert!(source.to_string().contains("in use"), "{source}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_name_is_not_an_address() {
    for text in ["localhost:1234", "example.org", "1.2.3.4", ""] {
        assert_eq!(text.parse::<EndPointAddress>(), Err(AddressError::NotAnAddress { text: text.to_owned() }));
    }
}

// ----- processes of their own -----

/// Names the role of this process, when a test started it.
const ROLE: &str = "NETIO3_TEST_ROLE";

fn is(role: &str) -> bool {
    std::env::var(ROLE).is_ok_and(|value| value == role)
}

/// A command that runs one test of this file in a process of its own.
fn this_test(name: &str, before: &[&str]) -> Command {
    let this = std::env::current_exe().expect("this program has a path");
    let words = before.iter().map(std::ffi::OsString::from).chain([this.into_os_string()]).collect::<Vec<_>>();
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).args([name, "--exact", "--nocapture", "--test-threads=1"]).env(ROLE, name);
    command
}

#[test]
fn a_host_without_a_route_is_unreachable() {
    const NAME: &str = "a_host_without_a_route_is_unreachable";
    if !is(NAME) {
        // A network of its own has no routes.
        let output = this_test(NAME, &["unshare", "--map-root-user", "--net"]).output();
        match output {
            Ok(output) if String::from_utf8_lossy(&output.stdout).contains("unreachable as expected") => assert!(output.status.success()),
            Ok(output) if output.stdout.is_empty() => println!("skipped: {}", String::from_utf8_lossy(&output.stderr).trim()),
            Ok(output) => panic!("{output:?}"),
            Err(error) => println!("skipped: cannot run unshare: {error}"),
        }
        return;
    }
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let node = util::node(&ev);
    let address: EndPointAddress = "192.0.2.1:7".parse().expect("it is an address");
    let endpoint = node.backend.open_send_endpoint(&address, &ConnectionParameters::default()).expect("told by the loop");
    until(&ev, "it is refused", || node.refused(endpoint).is_some());
    assert_eq!(node.refused(endpoint), Some(RefusedReason::Unreachable));
    println!("unreachable as expected");
}

#[test]
fn a_full_table_of_descriptors_is_survived() {
    const NAME: &str = "a_full_table_of_descriptors_is_survived";
    const PEERS: usize = 60;
    if is(NAME) {
        return serve_with_few_descriptors(PEERS);
    }
    let mut child = this_test(NAME, &[]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("this program can be run");
    let mut output = child.stdout.take().expect("it is piped");
    let mut text = String::new();
    let address = loop {
        let mut byte = [0];
        assert_eq!(output.read(&mut byte).expect("it can be read"), 1, "it ended: {text}");
        text.push(char::from(byte[0]));
        let line = text.lines().find_map(|line| line.split_once("listening on ")?.1.strip_suffix(';'));
        if let Some(address) = line {
            break address.parse::<EndPointAddress>().expect("it prints its address");
        }
    };
    // More than it can take; the kernel holds those that it cannot.
    let mut waiting: Vec<_> = (0..PEERS)
        .map(|_| {
            let mut bare = Bare::connect(address);
            bare.write(&hello());
            bare
        })
        .collect();
    // Who is served leaves, so that descriptors become free for the others.
    let deadline = std::time::Instant::now() + util::LIMIT;
    let mut served = 0;
    while served < PEERS {
        assert!(std::time::Instant::now() < deadline, "only {served} of {PEERS} were served");
        for bare in &mut waiting {
            bare.read();
            assert!(bare.end.is_none(), "an honest peer was turned away: {:?}", bare.end);
        }
        let before = waiting.len();
        waiting.retain(|bare| bare.arrived.len() < 72);
        served += before - waiting.len();
        std::thread::yield_now();
    }
    let rest = std::io::read_to_string(&mut output).expect("it can be read");
    assert!(child.wait().expect("it runs").success(), "{text}{rest}");
}

/// The other process of the test above.
fn serve_with_few_descriptors(peers: usize) {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(32), ..limit }).expect("a limit can be lowered");
    let mut server = Server::new();
    println!("listening on {};", server.address);
    server.until("all were served", || server.node.established().len() == peers + 1);
    assert!(server.node.listener().accept_failures > 0, "the table was never full");
    assert!(server.node.backend.totals().accept_failures.get() > 0);
    assert_eq!(server.node.listener().silent, 0, "nobody had to go");
    server.witness.testify(&server.ev, &server.node);
    server.check();
}

#[test]
fn the_silent_make_room_when_the_table_of_descriptors_is_full() {
    const NAME: &str = "the_silent_make_room_when_the_table_of_descriptors_is_full";
    if !is(NAME) {
        let output = this_test(NAME, &[]).output().expect("this program can be run");
        assert!(output.status.success(), "{output:?}");
        return;
    }
    let server = Server::new();
    let mut silent: Vec<_> = (0..5).map(|_| Bare::connect(server.address)).collect();
    server.until("they are accepted", || server.node.listener().accepted == 6);
    let newcomer = TcpStream::connect(server.address.socket_addr()).expect("it listens");
    // No descriptor is left for accepting it.
    let limit = getrlimit(Resource::Nofile);
    let first_free = std::fs::File::open("/dev/null").expect("it can be opened").as_raw_fd();
    setrlimit(Resource::Nofile, Rlimit { current: Some(first_free as u64), ..limit }).expect("a limit can be lowered");
    let mut bare = Bare::new(newcomer);
    bare.write(&hello());
    server.until("the newcomer is established", || server.node.established().len() == 2);
    setrlimit(Resource::Nofile, limit).expect("a limit can be raised again");
    _ = silent[0].until_end(&server.ev);
    assert!(server.node.listener().accept_failures > 0);
    // The system does not tell whether somebody waits when the table is full: one more may have to go.
    assert!((1..=2).contains(&server.node.listener().silent));
    silent[2].read();
    assert_eq!(silent[2].end, None, "the others stay");
    bare.write(&Frame::Goodbye.head());
    server.until_closed(server.node.established()[1]);
    server.check();
}
