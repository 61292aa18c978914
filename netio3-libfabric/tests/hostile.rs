//! Peers that break the protocol, vanish or do nothing: each ends alone, with a reason that names it.
//!
//! The peers are made by hand, of the bytes that ARCHITECTURE.md tells of, over provider `tcp` on 127.0.0.1. Skipped,
//! saying so, where libfabric is absent; `NETIO3_REQUIRE_LIBFABRIC=1` makes that a failure.

mod util;

use std::cell::Cell;
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use netio3_core::{
    AcceptFilter, ClosedReason, ConnectionParameters, ConnectionParametersRecv, EndPointAddress, Endpoint, EventLoop, NetioStatus,
    NetworkConfig, RdmaParameters, RefusedReason,
};
use netio3_evloop::EpollEventLoop;
use util::{
    CREDITS, End, FAREWELL, GOODBYE, HEARTBEAT, MESSAGES, Node, Packet, Peer, Told, Witness, config, hello, hello_with, is_here, until,
};

/// Held by all tests, alone by those that count the descriptors of the process.
static DESCRIPTORS: RwLock<()> = RwLock::new(());

/// `None` where libfabric is absent.
fn beside_others() -> Option<RwLockReadGuard<'static, ()>> {
    let beside = DESCRIPTORS.read().unwrap_or_else(PoisonError::into_inner);
    is_here().then_some(beside)
}

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
        let witness = Witness::new(&ev, &node, address);
        Self { ev, node, address, witness }
    }

    #[track_caller]
    fn greeted(&self) -> (Peer, Endpoint) {
        self.greeted_by(&hello())
    }

    #[track_caller]
    fn greeted_by(&self, hello: &[u8]) -> (Peer, Endpoint) {
        Peer::greeted(&self.ev, &self.node, self.address, hello)
    }

    #[track_caller]
    fn until(&self, peers: &[&Peer], what: &str, condition: impl FnMut() -> bool) {
        until(&self.ev, peers, what, condition);
    }

    /// Waits until the connection is closed: how many messages were pending, and why.
    #[track_caller]
    fn until_closed(&self, peers: &[&Peer], endpoint: Endpoint) -> (usize, ClosedReason) {
        self.until(peers, "the connection is closed", || self.node.closed(endpoint).is_some());
        let (pending, reason) = self.node.closed(endpoint).expect("it was awaited");
        (pending.len(), reason)
    }

    /// Waits until the peer is told of the end.
    #[track_caller]
    fn until_end(&self, peer: &Peer) -> End {
        self.until(&[peer], "the peer is told of the end", || peer.end().is_some());
        peer.end().expect("it was awaited")
    }

    /// A connection that is paused, so that what comes is held.
    #[track_caller]
    fn paused(&self) -> (Peer, Endpoint) {
        let (peer, endpoint) = self.greeted();
        self.node.backend.pause(endpoint).expect("it is there");
        (peer, endpoint)
    }

    /// Nobody else noticed anything: of connections, there is the witness's alone.
    #[track_caller]
    fn check(mut self) {
        self.witness.testify(&self.ev, &self.node);
        let totals = self.node.backend.totals();
        until(&self.ev, &[], "the witness alone is left", || totals.connections.get() == 1);
        assert_eq!(self.node.backend.connections().len(), 1);
        assert_eq!((totals.queued_messages.get(), totals.queued_bytes.get(), totals.assembly_bytes.get()), (0, 0, 0));
        assert_eq!(self.witness.client.backend.connections().len(), 1);
    }
}

/// The private data of a rejection.
#[track_caller]
fn refusal(end: End) -> Vec<u8> {
    match end {
        End::Error(data) => data,
        End::Shutdown => panic!("it was accepted"),
    }
}

// ----- hellos -----

#[test]
fn strange_hellos_fail_and_are_told_so() {
    let Some(_beside) = beside_others() else { return };
    let server = Server::new();
    let told = server.node.told().len();
    let strange: [&[u8]; 11] = [
        &[],
        b"nio",
        &hello()[..47],
        b"GET /",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n and more and more",
        &hello_with(0, b"nio2"),
        &hello_with(7, &[47]),
        &hello_with(16, &[0; 4]),
        &hello_with(16, &511_u32.to_le_bytes()),
        &hello_with(20, &[0; 2]),
        &hello_with(22, &[1, 0]),
    ];
    for (n, data) in strange.into_iter().enumerate() {
        let peer = Peer::connect(server.address, data);
        let data = refusal(server.until_end(&peer));
        assert_eq!((data.len() >= 48, &data[..4], data[6]), (true, &b"nio3"[..], 5), "case {n}: the verdict");
        assert_eq!((server.node.listener().failed_hello, server.node.listener().accepted), (n as u64 + 1, n as u64 + 2), "case {n}");
    }
    assert_eq!(server.node.backend.totals().failed_hello.get(), 11);
    assert_eq!(server.node.listener().established, 1, "the witness");
    assert_eq!(server.node.told().len(), told, "no callback");
    server.check();
}

#[test]
fn a_peer_of_another_version_is_told_so() {
    let Some(_beside) = beside_others() else { return };
    let server = Server::new();
    for (n, versions) in [[2, 9], [7, 7], [0, 0], [2, 1]].into_iter().enumerate() {
        let peer = Peer::connect(server.address, &hello_with(4, &versions));
        let data = refusal(server.until_end(&peer));
        assert_eq!((data.len() >= 48, data[6]), (true, 1), "the verdict");
        assert_eq!((server.node.listener().refused_version, server.node.listener().failed_hello), (n as u64 + 1, 0));
    }
    server.check();
}

#[test]
fn a_newer_peer_that_speaks_our_version_is_welcome() {
    let Some(_beside) = beside_others() else { return };
    let server = Server::new();
    // Padded, as some providers do.
    let newer = [&hello_with(4, &[1, 9, 0, 60])[..], &[0x55; 60]].concat();
    let (peer, endpoint) = server.greeted_by(&newer);
    let answer = peer.answer().expect("it came");
    assert_eq!(&answer[..8], b"nio3\x01\x01\x00\x30");
    assert_eq!(&answer[8..24], [0, 0, 0, 4, 0, 0, 0, 0, 0, 2, 1, 0, 16, 0, 2, 0], "64 MiB, no heartbeats, 64.5 KiB, 16 and 2 credits");
    peer.send(&Packet::messages(&[b"first"]));
    server.until(&[&peer], "its message arrives", || !server.node.received(endpoint).is_empty());
    peer.die();
    assert_eq!(server.until_closed(&[&peer], endpoint), (0, ClosedReason::PeerLost));
    server.check();
}

#[test]
fn who_is_turned_away_hears_why() {
    let Some(_beside) = beside_others() else { return };
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let node = util::node_with(&ev, NetworkConfig { max_connections: 1, ..config() });
    let params = ConnectionParametersRecv { accept: AcceptFilter::new(|_| false), ..Default::default() };
    let filtered = node.backend.open_listen_endpoint(&EndPointAddress::localhost(0), &params).expect("a port is free");
    let open = node.listen();
    let verdict = |address| {
        let peer = Peer::connect(address, &hello());
        until(&ev, &[&peer], "it is refused", || peer.end().is_some());
        refusal(peer.end().expect("it was awaited"))[6]
    };
    assert_eq!(verdict(filtered), 2);
    let (peer, _) = Peer::greeted(&ev, &node, open, &hello());
    assert_eq!(verdict(open), 3);
    let told = node.told().len();
    let counters: Vec<_> = node.backend.listeners().iter().map(|listener| listener.counters.snapshot()).collect();
    assert_eq!(counters.iter().map(|counters| counters.refused_filter).sum::<u64>(), 1);
    assert_eq!(counters.iter().map(|counters| counters.refused_limit).sum::<u64>(), 1);
    assert_eq!(told, 1, "the one that was welcome");
    drop(peer);
}

/// A client, and a listener made by hand that it asks.
struct Client {
    ev: EpollEventLoop,
    node: Node,
    peer: Peer,
    address: EndPointAddress,
}

impl Client {
    fn new() -> Self {
        let ev = EpollEventLoop::new().expect("descriptors are left");
        let node = util::node(&ev);
        let (peer, address) = Peer::listen();
        Self { ev, node, peer, address }
    }

    /// Asks, and waits until that has arrived.
    #[track_caller]
    fn ask(&self, params: &ConnectionParameters) -> Endpoint {
        let endpoint = self.node.backend.connect(&self.address, params).expect("a connection is started");
        until(&self.ev, &[&self.peer], "the request arrives", || self.peer.request().is_some());
        assert_eq!(&self.peer.request().expect("it was awaited")[..8], b"nio3\x01\x01\x00\x30");
        endpoint
    }

    #[track_caller]
    fn until_refused(&self, endpoint: Endpoint) -> RefusedReason {
        until(&self.ev, &[&self.peer], "it is refused", || self.node.refused(endpoint).is_some());
        self.node.refused(endpoint).expect("it was awaited")
    }
}

/// The request has brought the hello: nobody is silent, and the connect deadline is of those that this side asks for.
#[test]
fn no_deadline_of_a_listener_turns_away_who_said_hello() {
    let Some(_beside) = beside_others() else { return };
    let config = NetworkConfig { hello_deadline: Duration::ZERO, ..config() };
    let server = Server::with(config, ConnectionParameters { connect_deadline: Duration::ZERO, ..Default::default() });
    for _ in 0..5 {
        let (peer, endpoint) = server.greeted();
        peer.die();
        server.until_closed(&[&peer], endpoint);
    }
    assert_eq!(server.node.listener().silent, 0);
    server.check();
}

#[test]
fn every_refusal_of_a_listener_has_its_reason() {
    let Some(_beside) = beside_others() else { return };
    let client = Client::new();
    let params = ConnectionParameters::default();
    let strange: [(&[u8], RefusedReason); 9] = [
        (&hello_with(6, &[1]), RefusedReason::Version),
        (&hello_with(6, &[2]), RefusedReason::Filter),
        (&hello_with(6, &[3]), RefusedReason::Limit),
        (&hello_with(6, &[4]), RefusedReason::Shutdown),
        (&hello_with(6, &[5]), RefusedReason::Protocol),
        (&hello_with(6, &[99]), RefusedReason::Protocol),
        (&[], RefusedReason::NoListener),
        (b"no room", RefusedReason::NoListener),
        // It says welcome and does not let it in.
        (&hello(), RefusedReason::NoListener),
    ];
    for (n, (answer, reason)) in strange.into_iter().enumerate() {
        let endpoint = client.ask(&params);
        client.peer.reject(answer);
        assert_eq!(client.until_refused(endpoint), reason, "case {n}");
    }
    assert_eq!(client.node.told().len(), 9, "and nothing else is told");
    assert_eq!(client.node.backend.totals().refused.get(), 9);
    let endpoint = client.ask(&params);
    client.peer.accept(&hello());
    until(&client.ev, &[&client.peer], "a later one is established", || client.node.established() == [endpoint]);
}

/// What becomes of a connection that is accepted with these private data.
#[track_caller]
fn refused_when_accepted_with(client: &Client, data: &[u8]) -> RefusedReason {
    let endpoint = client.ask(&ConnectionParameters::default());
    client.peer.accept(data);
    let reason = client.until_refused(endpoint);
    until(&client.ev, &[&client.peer], "the peer hears the end", || client.peer.end().is_some());
    assert_eq!(client.node.told(), [Told::Refused(endpoint, reason)], "and nothing else is told");
    assert_eq!(client.node.backend.totals().connections.get(), 0);
    reason
}

#[test]
fn strange_answers_are_refusals_with_a_reason() {
    let Some(_beside) = beside_others() else { return };
    let strange: [(&[u8], RefusedReason); 11] = [
        (&[], RefusedReason::Protocol),
        (&hello()[..40], RefusedReason::Protocol),
        (b"SSH-2.0-OpenSSH\r\n", RefusedReason::Protocol),
        (&hello_with(0, b"nio2"), RefusedReason::Protocol),
        (&hello_with(16, &[0; 4]), RefusedReason::Protocol),
        (&hello_with(20, &[0; 2]), RefusedReason::Protocol),
        (&hello_with(22, &[0; 2]), RefusedReason::Protocol),
        (&hello_with(4, &[7, 7]), RefusedReason::Version),
        (&hello_with(4, &[1, 2]), RefusedReason::Version),
        (&hello_with(6, &[3]), RefusedReason::Limit),
        (&hello_with(6, &[4]), RefusedReason::Shutdown),
    ];
    for (n, (data, reason)) in strange.into_iter().enumerate() {
        assert_eq!(refused_when_accepted_with(&Client::new(), data), reason, "case {n}");
    }
}

#[test]
fn a_listener_that_never_accepts_is_a_timeout() {
    let Some(_beside) = beside_others() else { return };
    let client = Client::new();
    let params = ConnectionParameters { connect_deadline: Duration::from_millis(150), ..Default::default() };
    // One whose request is not even read, and one whose request is left lying.
    let unread = client.node.backend.connect(&client.address, &params).expect("a connection is started");
    until(&client.ev, &[], "it is refused", || client.node.refused(unread).is_some());
    assert_eq!(client.node.refused(unread), Some(RefusedReason::Timeout));
    let lying = client.ask(&params);
    assert_eq!(client.until_refused(lying), RefusedReason::Timeout);
    assert_eq!(client.node.backend.totals().connections.get(), 0);
    // A later one is accepted; the requests of the former are stale.
    let later = client.node.backend.connect(&client.address, &ConnectionParameters::default()).expect("a connection is started");
    until(&client.ev, &[&client.peer], "a later one is established", || {
        if client.peer.request().is_some() && client.node.established().is_empty() {
            client.peer.accept(&hello());
        }
        client.node.established() == [later]
    });
}

// ----- packets -----

/// A packet of this kind, with a number where most have none.
fn strange(kind: u8, value: u32) -> Vec<u8> {
    Packet { value, ..Packet::new(kind) }.bytes()
}

#[test]
fn what_breaks_the_protocol_ends_the_connection() {
    let Some(_beside) = beside_others() else { return };
    let server = Server::with(NetworkConfig { max_message_len: 1_000, ..config() }, ConnectionParameters::default());
    let messages = |body: &[u8]| Packet { body: body.to_vec(), ..Packet::new(MESSAGES) }.bytes();
    let first = |total: u32, len: usize| Packet::first(total, &vec![7; len]).bytes();
    let next = |len: usize| Packet::next(&vec![7; len]).bytes();
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("nothing at all", vec![vec![]]),
        ("shorter than a head", vec![strange(HEARTBEAT, 0)[..7].to_vec()]),
        ("kind 0", vec![strange(0, 0)]),
        ("kind 0xC0", vec![strange(0xC0, 0)]),
        ("kind 0xC7", vec![strange(0xC7, 0)]),
        ("another protocol", vec![b"GET / HTTP/1.1".to_vec()]),
        ("messages with a number", vec![strange(MESSAGES, 1)]),
        ("credits of nothing", vec![strange(CREDITS, 0)]),
        ("credits with a number", vec![strange(CREDITS, 1)]),
        ("a heartbeat with a number", vec![strange(HEARTBEAT, 1 << 24)]),
        ("a cut length", vec![messages(&[1, 0, 0])]),
        ("a length beyond the end", vec![messages(&[6, 0, 0, 0, 1, 2, 3, 4, 5])]),
        ("a length beyond everything", vec![messages(&[0xFF; 9])]),
        ("a good one before a bad one", vec![messages(&[1, 0, 0, 0, 9, 2, 0, 0, 0, 1])]),
        ("one longer than the maximum", vec![Packet::messages(&[&[7; 1_001]]).bytes()]),
        ("a beginning of nothing", vec![first(0, 0)]),
        ("a beginning above the maximum", vec![first(1_001, 10)]),
        ("a beginning far above the maximum", vec![first(u32::MAX, 10)]),
        ("a beginning with more than all", vec![first(10, 11)]),
        ("a part of no message", vec![next(10)]),
        ("a part after a whole message", vec![first(20, 20), next(1)]),
        ("a part with more than is left", vec![first(20, 10), next(11)]),
        ("a beginning inside a message", vec![first(20, 10), first(20, 10)]),
        ("the head of a beginning inside a message", vec![first(20, 10), first(20, 0)]),
        ("an empty part", vec![first(20, 10), vec![]]),
        ("a message inside a message", vec![first(20, 10), Packet::messages(&[b"inside"]).bytes()]),
    ];
    for (what, packets) in cases {
        let (peer, endpoint) = server.greeted();
        peer.send(&Packet::messages(&[b"good"]));
        packets.iter().for_each(|packet| _ = peer.send_bytes(packet));
        assert_eq!(server.until_closed(&[&peer], endpoint), (0, ClosedReason::Protocol), "{what}");
        assert_eq!(server.node.received(endpoint).first().map(|first| &first[..]), Some(&b"good"[..]), "{what}: what came before counts");
        assert_eq!(server.until_end(&peer), End::Shutdown, "{what}");
        assert_eq!(server.node.backend.totals().assembly_bytes.get(), 0, "{what}");
    }
    server.check();
}

#[test]
fn keys_come_back_once_from_who_breaks_the_protocol() {
    let Some(_beside) = beside_others() else { return };
    let server = Server::new();
    // Three packets may be sent to this peer, of 2 KiB each.
    let (peer, endpoint) = server.greeted_by(&hello_with(16, &[0, 8, 0, 0, 3, 0]));
    for key in 0..40 {
        server.node.send(endpoint, &[5; 1_900], key);
    }
    server.until(&[&peer], "the credits are used up", || peer.data_packets() == 3);
    peer.send_bytes(&strange(0, 0));
    let (pending, reason) = server.until_closed(&[&peer], endpoint);
    assert_eq!((pending, reason), (37, ClosedReason::Protocol));
    server.node.check_keys(endpoint, 40);
    let (pending, _) = server.node.closed(endpoint).expect("it is");
    assert_eq!(server.node.backend.totals().messages_pending_at_close.get(), pending.len() as u64);
    server.check();
}

#[test]
fn who_exceeds_his_credits_for_data_is_closed() {
    let Some(_beside) = beside_others() else { return };
    let server = Server::new();
    let (peer, endpoint) = server.paused();
    for _ in 0..16 {
        peer.send(&Packet::messages(&[b"within"]));
    }
    let reads = server.node.backend.stats(endpoint).expect("it is there");
    server.until(&[&peer], "all have arrived", || reads.reads.get() == 16);
    assert_eq!(server.node.closed(endpoint), None);
    assert_eq!(peer.arrived(), [], "no credits are returned for what is not handled");
    peer.send(&Packet::messages(&[b"beyond"]));
    assert_eq!(server.until_closed(&[&peer], endpoint), (0, ClosedReason::Protocol));
    assert_eq!(server.node.received(endpoint), [[0; 0]; 0], "it was paused");
    assert_eq!(reads.messages_discarded.get(), 16);
    server.check();
}

#[test]
fn credits_for_control_return_as_often_as_they_are_used() {
    let Some(_beside) = beside_others() else { return };
    let server = Server::new();
    let (peer, endpoint) = server.greeted();
    for n in 1..=5 {
        peer.send(&Packet::new(HEARTBEAT));
        peer.send(&Packet::new(HEARTBEAT));
        // By packets that need no credits themselves.
        server.until(&[&peer], "both are returned", || peer.arrived().len() == n);
        assert_eq!(peer.arrived()[n - 1], Packet::credits(0, 2));
    }
    assert_eq!(server.node.closed(endpoint), None);
    peer.die();
    server.until_closed(&[&peer], endpoint);
    server.check();
}

#[test]
fn goodbyes_that_wait_use_up_the_credits_for_control() {
    let Some(_beside) = beside_others() else { return };
    let server = Server::new();
    let (peer, endpoint) = server.paused();
    (0..3).for_each(|_| _ = peer.send(&Packet::new(GOODBYE)));
    assert_eq!(server.until_closed(&[&peer], endpoint), (0, ClosedReason::Protocol));
    server.check();
}

#[test]
fn who_returns_credits_that_nobody_had_is_closed() {
    let Some(_beside) = beside_others() else { return };
    let server = Server::new();
    for (credits, control) in [(1, 0), (0, 1), (u16::MAX, u8::MAX)] {
        let (peer, endpoint) = server.greeted();
        peer.send(&Packet::messages(&[b"good"]));
        peer.send(&Packet { credits, control, ..Packet::messages(&[b"here"]) });
        assert_eq!(server.until_closed(&[&peer], endpoint), (0, ClosedReason::Protocol));
        assert_eq!(server.node.received(endpoint), [b"good"]);
    }
    server.check();
}

#[test]
fn nothing_is_allocated_on_a_lengths_word() {
    let Some(_beside) = beside_others() else { return };
    let server = Server::with(NetworkConfig { max_message_len: u32::MAX as usize, ..config() }, ConnectionParameters::default());
    let (peer, endpoint) = server.greeted();
    let totals = server.node.backend.totals();
    peer.send(&Packet::first(u32::MAX, &[7; 100]));
    server.until(&[&peer], "the beginning is there", || totals.assembly_bytes.get() > 0);
    assert!(totals.assembly_bytes.get() <= 64 << 10, "{} bytes held for 100", totals.assembly_bytes.get());
    let mut sent = 100;
    let mut credits = 15;
    let returned = Cell::new(0);
    while sent < 2 << 20 {
        if credits == 0 {
            server.until(&[&peer], "credits are returned", || peer.arrived().len() > returned.get());
            credits = peer.arrived()[returned.get()..].iter().map(|packet| packet.credits).sum();
            returned.set(peer.arrived().len());
        }
        peer.send(&Packet::next(&[7; 8_000]));
        credits -= 1;
        sent += 8_000;
        server.ev.run_once(Some(Duration::ZERO)).expect("the loop can wait");
        let held = totals.assembly_bytes.get() as usize;
        assert!(held <= (64 << 10).max(2 * sent), "{held} bytes held for {sent}");
    }
    peer.die();
    assert_eq!(server.until_closed(&[&peer], endpoint), (0, ClosedReason::PeerLost));
    assert_eq!(totals.assembly_bytes.get(), 0);
    assert_eq!(totals.messages_discarded.get(), 1, "the one that was cut off");
    server.check();
}

#[test]
fn memory_for_assembling_has_a_limit() {
    let Some(_beside) = beside_others() else { return };
    let server = Server::with(NetworkConfig { total_assembly_bytes: 50_000, ..config() }, ConnectionParameters::default());
    let (peer, endpoint) = server.greeted();
    peer.send(&Packet::first(16 << 20, &[7; 8_000]));
    (0..15).for_each(|_| _ = peer.send(&Packet::next(&[7; 8_000])));
    assert_eq!(server.until_closed(&[&peer], endpoint), (0, ClosedReason::Limit));
    assert_eq!(server.node.backend.totals().assembly_bytes.get(), 0);
    server.check();
}

#[test]
fn a_message_in_many_packets_arrives_whole() {
    let Some(_beside) = beside_others() else { return };
    let server = Server::new();
    let (peer, endpoint) = server.greeted();
    let data: Vec<u8> = (0..30_000).map(|n: u32| n as u8).collect();
    peer.send(&Packet::first(30_000, &data[..1]));
    peer.send(&Packet::new(HEARTBEAT));
    data[1..].chunks(8_000).for_each(|part| _ = peer.send(&Packet::next(part)));
    peer.send(&Packet::messages(&[]));
    peer.send(&Packet::messages(&[b"", b"a", b"bc"]));
    server.until(&[&peer], "they arrive", || server.node.received(endpoint).len() == 4);
    assert_eq!(server.node.received(endpoint), [&data[..], b"", b"a", b"bc"]);
    // And the other way: packets of at most 8 KiB, as the peer asked for.
    server.node.send(endpoint, &data, 0);
    server.until(&[&peer], "it arrives", || peer.arrived().iter().map(|packet| packet.body.len()).sum::<usize>() == 30_000);
    let arrived = peer.arrived();
    let parts: Vec<_> = arrived.iter().filter(|packet| !packet.is_control()).collect();
    assert_eq!((parts[0].kind, parts[0].value), (util::FIRST, 30_000));
    assert!(parts[1..].iter().all(|part| part.kind == util::PART));
    assert!(parts.iter().flat_map(|part| part.body.clone()).eq(data));
    peer.die();
    server.until_closed(&[&peer], endpoint);
    server.check();
}

// ----- credits -----

#[test]
fn who_returns_no_credits_is_stalled() {
    let Some(_beside) = beside_others() else { return };
    let timeout = Duration::from_millis(200);
    let params = ConnectionParameters { stall_timeout: Some(timeout), queue_messages: 20, ..Default::default() };
    let server = Server::with(config(), params);
    let (peer, endpoint) = server.greeted_by(&hello_with(20, &[2, 0]));
    let mut accepted = 0;
    server.until(&[&peer], "the queue is full", || {
        match server.node.backend.send_copy(endpoint, &[5; 8_000], &[], accepted) {
            Ok(NetioStatus::Ok) => accepted += 1,
            Ok(NetioStatus::NoResources) => return peer.data_packets() == 2,
            other => panic!("{other:?}"),
        }
        false
    });
    let (full, began) = (accepted, Instant::now());
    let (pending, reason) = server.until_closed(&[&peer], endpoint);
    assert_eq!((pending, reason), (full as usize - 2, ClosedReason::Stalled));
    assert!(began.elapsed() < 10 * timeout, "{:?}", began.elapsed());
    server.node.check_keys(endpoint, full);
    assert_eq!(peer.data_packets(), 2, "no more than there were credits");
    assert_eq!(server.until_end(&peer), End::Shutdown);
    server.check();
}

#[test]
fn returned_credits_let_the_queue_go_on() {
    let Some(_beside) = beside_others() else { return };
    let server = Server::new();
    let (peer, endpoint) = server.greeted_by(&hello_with(20, &[1, 0]));
    for key in 0..30 {
        server.node.send(endpoint, &[5; 8_000], key);
    }
    for sent in 1..=30 {
        server.until(&[&peer], "one more arrives", || peer.data_packets() == sent);
        server.until(&[&peer], "its key comes back", || server.node.completed(endpoint).len() == sent);
        // By packets of their own, which need none; and with data.
        let returns = if sent % 2 == 0 { Packet::credits(1, 0) } else { Packet { credits: 1, ..Packet::messages(&[b"x"]) } };
        peer.send(&returns);
    }
    peer.die();
    server.until_closed(&[&peer], endpoint);
    server.node.check_keys(endpoint, 30);
    server.check();
}

/// Both sides may use up their credits for control at the same time: what they owe each other must still be told.
#[test]
fn control_packets_that_cross_leave_nobody_dumb() {
    let Some(_beside) = beside_others() else { return };
    let server = Server::new();
    let (peer, endpoint) = server.greeted();
    // The server tells of eight handled packets twice.
    for told in 1..=2 {
        (0..8).for_each(|_| _ = peer.send(&Packet::messages(&[b"data"])));
        server.until(&[&peer], "credits are told", || peer.arrived().len() == told);
        assert_eq!(peer.arrived()[told - 1], Packet::credits(8, 0));
    }
    // The peer has used up its credits for control before it heard of that.
    peer.send(&Packet::new(HEARTBEAT));
    peer.send(&Packet::new(HEARTBEAT));
    server.until(&[&peer], "the server returns them", || peer.arrived().iter().any(|packet| packet.control == 2));
    peer.die();
    server.until_closed(&[&peer], endpoint);
    server.check();
}

/// The same while both say goodbye, with one receive for control used up before.
#[test]
fn goodbyes_that_cross_end_in_farewells() {
    let Some(_beside) = beside_others() else { return };
    let server = Server::with(config(), ConnectionParameters { close_deadline: Duration::from_secs(60), ..Default::default() });
    let (peer, endpoint) = server.greeted();
    (0..8).for_each(|_| _ = peer.send(&Packet::messages(&[b"data"])));
    server.until(&[&peer], "credits are told", || peer.arrived() == [Packet::credits(8, 0)]);
    server.node.backend.close(endpoint).expect("it is there");
    server.until(&[&peer], "our goodbye arrives", || peer.has_heard(GOODBYE));
    // The peer has heard nothing of that yet.
    peer.send(&Packet::new(HEARTBEAT));
    peer.send(&Packet::new(GOODBYE));
    server.until(&[&peer], "the server returns them", || peer.arrived().iter().any(|packet| packet.control == 2));
    peer.send(&Packet { control: 2, credits: 1, ..Packet::new(FAREWELL) });
    server.until(&[&peer], "our farewell arrives", || peer.has_heard(FAREWELL));
    assert_eq!(server.until_closed(&[&peer], endpoint), (0, ClosedReason::Local));
    server.check();
}

// ----- ends -----

#[test]
fn who_dies_while_connecting_leaves_nothing() {
    let Some(_beside) = beside_others() else { return };
    let server = Server::new();
    let told = server.node.told().len();
    for n in 0..10 {
        let peer = Peer::connect(server.address, &hello());
        // Between having asked and having been heard, in different places.
        for _ in 0..n {
            peer.turn();
            if n % 2 == 0 {
                server.ev.run_once(Some(Duration::ZERO)).expect("the loop can wait");
            }
        }
        peer.die();
        drop(peer);
    }
    // One that comes later is heard later.
    let (peer, endpoint) = server.greeted();
    peer.die();
    server.until_closed(&[&peer], endpoint);
    server.until(&[], "all are gone", || server.node.backend.totals().connections.get() == 1);
    // Who was established was closed as well, and of others nothing is told.
    let told = server.node.told().split_off(told);
    let established = told.iter().filter(|told| matches!(told, Told::Established(..))).count();
    let closed = told.iter().filter(|told| matches!(told, Told::Closed(_, pending, ClosedReason::PeerLost) if pending.is_empty())).count();
    assert_eq!(established, closed, "{told:?}");
    assert_eq!(established + closed, told.len(), "{told:?}");
    server.check();
}

#[test]
fn a_listener_that_dies_while_it_is_asked_is_lost_or_none() {
    let Some(_beside) = beside_others() else { return };
    // Nothing is read of the request; the request is read; it is accepted.
    for accepts in [None, Some(false), Some(true)] {
        let Client { ev, node, peer, address } = Client::new();
        let endpoint = node.backend.connect(&address, &ConnectionParameters::default()).expect("a connection is started");
        if let Some(accepts) = accepts {
            until(&ev, &[&peer], "the request arrives", || peer.request().is_some());
            if accepts {
                peer.accept(&hello());
            }
        } else {
            until(&ev, &[], "the request is sent", || ev.counters().turns.get() > 20);
        }
        drop(peer);
        until(&ev, &[], "it is over", || node.refused(endpoint).is_some() || node.closed(endpoint).is_some());
        match (node.refused(endpoint), node.closed(endpoint)) {
            (Some(RefusedReason::NoListener), None) => assert_eq!(node.told().len(), 1),
            (None, Some((pending, ClosedReason::PeerLost))) if accepts == Some(true) => {
                assert_eq!((pending.len(), node.told().len()), (0, 2));
            }
            other => panic!("{accepts:?}: {other:?}"),
        }
        assert_eq!(node.backend.totals().connections.get(), 0);
    }
}

#[test]
fn who_dies_at_any_moment_is_lost_alone() {
    let Some(_beside) = beside_others() else { return };
    let server = Server::with(config(), ConnectionParameters { close_deadline: Duration::from_secs(20), ..Default::default() });
    type Prepare = fn(&Server, &Peer, Endpoint);
    let prepared: [(&str, u64, Prepare, ClosedReason); 9] = [
        ("at once", 0, |_, _, _| (), ClosedReason::PeerLost),
        ("after a message", 0, |_, peer, _| _ = peer.send(&Packet::messages(&[b"last words"])), ClosedReason::PeerLost),
        (
            "in the middle of a message",
            0,
            |server, peer, _| {
                peer.send(&Packet::first(100_000, &[7; 8_000]));
                server.until(&[peer], "it begins", || server.node.backend.totals().assembly_bytes.get() > 0);
            },
            ClosedReason::PeerLost,
        ),
        ("with sends just accepted", 30, |_, _, _| (), ClosedReason::PeerLost),
        ("with sends posted", 30, |server, _, _| server.ev.run_once(Some(Duration::ZERO)).expect("it can wait"), ClosedReason::PeerLost),
        (
            "with sends queued for want of credits",
            30,
            |server, peer, _| server.until(&[peer], "the credits are used up", || peer.data_packets() == 16),
            ClosedReason::PeerLost,
        ),
        (
            "after our goodbye",
            0,
            |server, peer, endpoint| {
                server.node.backend.close(endpoint).expect("it is there");
                server.until(&[peer], "our goodbye arrives", || peer.has_heard(GOODBYE));
            },
            ClosedReason::Local,
        ),
        (
            "while we close, with sends queued",
            30,
            |server, peer, endpoint| {
                server.node.backend.close(endpoint).expect("it is there");
                server.until(&[peer], "the credits are used up", || peer.data_packets() == 16);
            },
            ClosedReason::Local,
        ),
        (
            "after its goodbye, with sends queued here",
            30,
            |server, peer, _| {
                server.until(&[peer], "the credits are used up", || peer.data_packets() == 16);
                peer.send(&Packet::new(GOODBYE));
                server.until(&[peer], "it is noticed", || server.node.backend.connections().iter().any(is_closing));
            },
            ClosedReason::PeerLost,
        ),
    ];
    for (what, count, prepare, expected) in prepared {
        let (peer, endpoint) = server.greeted();
        (0..count).for_each(|key| server.node.send(endpoint, &[5; 8_000], key));
        prepare(&server, &peer, endpoint);
        peer.die();
        assert_eq!(server.until_closed(&[&peer], endpoint).1, expected, "{what}");
        server.node.check_keys(endpoint, count);
    }
    assert_eq!(server.node.backend.totals().messages_discarded.get(), 1, "the one that was cut off");
    server.check();
}

fn is_closing(connection: &netio3_core::ConnectionState) -> bool {
    connection.phase == netio3_core::Phase::Closing
}

#[test]
fn a_peer_that_says_goodbye_and_dies_has_closed() {
    let Some(_beside) = beside_others() else { return };
    let server = Server::new();
    for waits in [false, true] {
        let (peer, endpoint) = server.greeted();
        peer.send(&Packet::messages(&[b"last words"]));
        peer.send(&Packet::new(GOODBYE));
        // Whether it waits for the answer or not; nothing was under way to it.
        if waits {
            server.until(&[&peer], "our goodbye arrives", || peer.has_heard(GOODBYE));
            peer.die();
            assert_eq!(server.until_closed(&[&peer], endpoint), (0, ClosedReason::PeerClosed));
        } else {
            server.until(&[&peer], "its goodbye arrives", || !server.node.received(endpoint).is_empty());
            peer.die();
            let reason = server.until_closed(&[&peer], endpoint).1;
            assert!(matches!(reason, ClosedReason::PeerClosed | ClosedReason::PeerLost), "{reason:?}");
        }
        assert_eq!(server.node.received(endpoint), [b"last words"]);
    }
    server.check();
}

#[test]
fn an_orderly_close_is_said_by_both() {
    let Some(_beside) = beside_others() else { return };
    let server = Server::new();
    // Ours first.
    let (peer, endpoint) = server.greeted();
    server.node.send(endpoint, b"the last", 0);
    server.node.backend.close(endpoint).expect("it is there");
    server.until(&[&peer], "our goodbye arrives", || peer.has_heard(GOODBYE));
    assert_eq!(peer.arrived(), [Packet::messages(&[b"the last"]), Packet::new(GOODBYE)]);
    peer.send(&Packet::messages(&[b"yours too"]));
    peer.send(&Packet { credits: 1, control: 1, ..Packet::new(GOODBYE) });
    server.until(&[&peer], "our farewell arrives", || peer.has_heard(FAREWELL));
    assert_eq!(server.node.closed(endpoint), None, "the peer has not said all");
    peer.send(&Packet::new(FAREWELL));
    assert_eq!(server.until_closed(&[&peer], endpoint), (0, ClosedReason::Local));
    assert_eq!(server.node.received(endpoint), [b"yours too"]);
    server.node.check_keys(endpoint, 1);
    // The peer's first.
    let (peer, endpoint) = server.greeted();
    peer.send(&Packet::new(GOODBYE));
    server.until(&[&peer], "goodbye and farewell arrive", || peer.has_heard(GOODBYE) && peer.has_heard(FAREWELL));
    assert_eq!(server.node.closed(endpoint), None, "the peer has not said all");
    peer.send(&Packet { control: 2, ..Packet::new(FAREWELL) });
    assert_eq!(server.until_closed(&[&peer], endpoint), (0, ClosedReason::PeerClosed));
    server.check();
}

#[test]
fn a_peer_that_does_not_answer_a_goodbye_is_left_at_the_deadline() {
    let Some(_beside) = beside_others() else { return };
    let params = ConnectionParameters { close_deadline: Duration::from_millis(150), ..Default::default() };
    let server = Server::with(config(), params);
    let (peer, endpoint) = server.greeted();
    server.node.send(endpoint, b"the last", 0);
    server.node.backend.close(endpoint).expect("it is there");
    assert_eq!(server.until_closed(&[&peer], endpoint), (0, ClosedReason::Local));
    server.node.check_keys(endpoint, 1);
    assert_eq!(server.until_end(&peer), End::Shutdown);
    assert_eq!(peer.arrived(), [Packet::messages(&[b"the last"]), Packet::new(GOODBYE)]);
    server.check();
}

#[test]
fn data_after_a_goodbye_break_nothing_else() {
    let Some(_beside) = beside_others() else { return };
    let server = Server::new();
    let (peer, endpoint) = server.greeted();
    peer.send(&Packet::messages(&[b"before"]));
    peer.send(&Packet::new(GOODBYE));
    peer.send_bytes(&strange(0, 0));
    let (pending, reason) = server.until_closed(&[&peer], endpoint);
    assert_eq!(pending, 0);
    assert!(matches!(reason, ClosedReason::PeerClosed | ClosedReason::Protocol), "{reason:?}");
    assert_eq!(server.node.received(endpoint), [b"before"]);
    server.check();
}

// ----- heartbeats -----

#[test]
fn a_silent_peer_is_dead() {
    let Some(_beside) = beside_others() else { return };
    let server = Server::with(NetworkConfig { missed_heartbeats: 3, ..config() }, ConnectionParameters::default());
    // It announces one every 60 ms.
    let (peer, endpoint) = server.greeted_by(&hello_with(12, &60_u32.to_le_bytes()));
    // It keeps its word for a while, within what is returned to it.
    let stats = server.node.backend.stats(endpoint).expect("it is there");
    let (began, last) = (Instant::now(), Cell::new(Instant::now()));
    let (mut sent, mut heard, mut credits, mut owed) = (0, 0, 2, 0);
    server.until(&[&peer], "ten heartbeats are heard", || {
        for packet in &peer.arrived()[heard..] {
            credits += packet.control;
            owed += u8::from(packet.is_control() && packet.kind != util::CREDITS);
            heard += 1;
        }
        if sent < 10 && credits > 0 && began.elapsed() >= Duration::from_millis(40 * sent) {
            last.set(Instant::now());
            peer.send(&Packet { control: std::mem::take(&mut owed), ..Packet::new(HEARTBEAT) });
            (sent, credits) = (sent + 1, credits - 1);
        }
        stats.heartbeats_received.get() == 10
    });
    assert_eq!(server.node.closed(endpoint), None);
    server.node.send(endpoint, b"are you there?", 0);
    assert_eq!(server.until_closed(&[&peer], endpoint), (0, ClosedReason::HeartbeatTimeout));
    assert!(last.get().elapsed() >= Duration::from_millis(3 * 60), "{:?}", last.get().elapsed());
    server.node.check_keys(endpoint, 1);
    assert_eq!(server.until_end(&peer), End::Shutdown);
    server.check();
}

#[test]
fn idle_backends_stay_alive() {
    let Some(_beside) = beside_others() else { return };
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let interval = Duration::from_millis(20);
    let rdma = RdmaParameters { receives: 4, ..config().rdma };
    let config = NetworkConfig { heartbeat_interval: interval, missed_heartbeats: 10, rdma, ..config() };
    let (server, client) = (util::node_with(&ev, config.clone()), util::node_with(&ev, config));
    let address = server.listen();
    let out = client.backend.connect(&address, &ConnectionParameters::default()).expect("a connection is started");
    until(&ev, &[], "established", || server.established().len() == 1 && client.established().len() == 1);
    let back = server.established()[0];
    let stats = [client.backend.stats(out).expect("it is there"), server.backend.stats(back).expect("it is there")];
    // Idle, and again after both have sent as much as they may at once.
    for round in 0..5 {
        let heard = stats.each_ref().map(|stats| stats.heartbeats_received.get());
        until(&ev, &[], "heartbeats are heard", || {
            stats.iter().zip(heard).all(|(stats, heard)| stats.heartbeats_received.get() >= heard + 12)
        });
        for key in 0..40 {
            client.send(out, &[round; 60_000], key);
            server.send(back, &[round; 60_000], key);
        }
        let count = 40 * (usize::from(round) + 1);
        until(&ev, &[], "all arrived", || {
            let received = |stats: &netio3_core::ConnectionCounters| stats.messages_received.get() as usize == count;
            stats.iter().all(|stats| received(stats) && stats.queued_messages.get() == 0)
        });
    }
    assert!(stats.iter().all(|stats| stats.heartbeats_sent.get() >= 60), "{stats:?}");
    assert_eq!((client.closed(out), server.closed(back)), (None, None));
}

// ----- dropping the backend -----

/// Memory of the user's, which counts itself.
struct Tracked(Vec<u8>, Arc<AtomicUsize>);

impl AsRef<[u8]> for Tracked {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::SeqCst);
    }
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").expect("it is there").count()
}

/// A backend that listens, one that asks, and peers made by hand of both.
struct Stage {
    ev: EpollEventLoop,
    node: Node,
    address: EndPointAddress,
    alive: Arc<AtomicUsize>,
    peers: Vec<Peer>,
}

impl Stage {
    fn send(&self, to: Endpoint, count: u64) {
        for key in 0..count {
            self.alive.fetch_add(1, Ordering::SeqCst);
            let data = Bytes::from_owner(Tracked(vec![5; 7_000], self.alive.clone()));
            assert_eq!(self.node.backend.send(to, &data, &[], key), Ok(NetioStatus::Ok));
        }
    }

    #[track_caller]
    fn until(&self, what: &str, condition: impl FnMut() -> bool) {
        until(&self.ev, &self.peers.iter().collect::<Vec<_>>(), what, condition);
    }

    #[track_caller]
    fn greeted(&mut self) -> Endpoint {
        let (peer, endpoint) = Peer::greeted(&self.ev, &self.node, self.address, &hello());
        self.peers.push(peer);
        endpoint
    }

    /// Asks a listener made by hand.
    #[track_caller]
    fn ask(&mut self) -> Endpoint {
        let (peer, address) = Peer::listen();
        self.peers.push(peer);
        self.node.backend.connect(&address, &ConnectionParameters::default()).expect("a connection is started")
    }
}

#[test]
fn a_drop_at_any_moment_leaves_nothing_behind() {
    let _alone = DESCRIPTORS.write().unwrap_or_else(PoisonError::into_inner);
    if !is_here() {
        return;
    }
    type Prepare = fn(&mut Stage);
    // Not among them: a peer whose socket is connected and whose request has not come. Provider `tcp` forgets its socket
    // when the listener closes.
    let moments: [(&str, Prepare); 16] = [
        ("nothing but a listener", |_| ()),
        ("a connection that is just asked for", |stage| _ = stage.ask()),
        ("a request that nobody reads", |stage| {
            stage.ask();
            until(&stage.ev, &[], "it is under way", || stage.ev.counters().turns.get() > 20);
        }),
        ("a request that nobody answers", |stage| {
            stage.ask();
            stage.until("it arrives", || stage.peers[0].request().is_some());
        }),
        ("a request that is just accepted", |stage| {
            stage.ask();
            stage.until("it arrives", || stage.peers[0].request().is_some());
            stage.peers[0].accept(&hello());
        }),
        ("a connection that was refused", |stage| {
            let endpoint = stage.ask();
            stage.until("it arrives", || stage.peers[0].request().is_some());
            stage.peers[0].reject(&hello_with(6, &[2]));
            stage.until("it is refused", || stage.node.refused(endpoint).is_some());
        }),
        ("a stranger that is just heard", |stage| {
            stage.peers.push(Peer::connect(stage.address, &hello()));
            stage.until("it is accepted", || stage.node.listener().accepted == 1);
        }),
        ("a stranger that talks nonsense", |stage| {
            stage.peers.push(Peer::connect(stage.address, b"nonsense"));
            stage.until("it is refused", || stage.node.listener().failed_hello == 1);
        }),
        ("an idle connection", |stage| _ = stage.greeted()),
        ("sends that were just accepted", |stage| {
            let endpoint = stage.greeted();
            stage.send(endpoint, 100);
        }),
        ("sends that were just posted", |stage| {
            let endpoint = stage.greeted();
            stage.send(endpoint, 100);
            stage.ev.run_once(Some(Duration::ZERO)).expect("the loop can wait");
        }),
        ("sends that wait for credits", |stage| {
            let endpoint = stage.greeted();
            stage.send(endpoint, 100);
            stage.until("the credits are used up", || stage.peers[0].data_packets() == 16);
        }),
        ("half a message", |stage| {
            stage.greeted();
            stage.peers[0].send(&Packet::first(100_000, &[7; 8_000]));
            stage.until("it begins", || stage.node.backend.totals().assembly_bytes.get() > 0);
        }),
        ("messages for a paused connection", |stage| {
            let endpoint = stage.greeted();
            stage.node.backend.pause(endpoint).expect("it is there");
            (0..5).for_each(|_| _ = stage.peers[0].send(&Packet::messages(&[b"held"])));
            stage.until("they arrive", || stage.node.backend.totals().reads.get() == 5);
        }),
        ("a close that waits for credits", |stage| {
            let endpoint = stage.greeted();
            stage.send(endpoint, 100);
            stage.node.backend.close(endpoint).expect("it is there");
            stage.until("the credits are used up", || stage.peers[0].data_packets() == 16);
        }),
        ("a connection that is just being ended", |stage| {
            let endpoint = stage.greeted();
            stage.send(endpoint, 100);
            stage.node.backend.abort(endpoint).expect("it is there");
        }),
    ];
    for (what, prepare) in moments {
        let mut before = 0;
        for round in 0..4 {
            until_helpers(0);
            let ev = EpollEventLoop::new().expect("descriptors are left");
            let node = util::node(&ev);
            until_helpers(1);
            let address = node.listen();
            let mut stage = Stage { ev, node, address, alive: Arc::default(), peers: Vec::new() };
            prepare(&mut stage);
            let Stage { ev, node, alive, peers, .. } = stage;
            drop(node);
            assert_eq!(alive.load(Ordering::SeqCst), 0, "{what}: memory is held");
            // The helper thread ends by itself, and closes what it was just opening.
            until_helpers(0);
            drop((ev, peers));
            // The first one pays for what the process opens once.
            if round == 0 {
                before = open_descriptors();
            }
            assert_eq!(open_descriptors(), before, "{what}, round {round}");
        }
    }
}

/// Waits until there are so many threads of backends.
#[track_caller]
fn until_helpers(count: usize) {
    let end = Instant::now() + util::LIMIT;
    let is_helper = |entry: &fs::DirEntry| fs::read_to_string(entry.path().join("comm")).is_ok_and(|name| name.trim() == "netio3-fabric");
    while fs::read_dir("/proc/self/task").expect("it is there").flatten().filter(is_helper).count() != count {
        assert!(Instant::now() < end, "not {count} threads of backends");
        std::thread::sleep(Duration::from_millis(1));
    }
}
