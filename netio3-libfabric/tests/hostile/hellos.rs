//! What the private data says.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;

use nix::errno::Errno;

use super::*;

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

/// What a client is told that connects to somebody who answers so, and hangs up. `before` comes before each turn.
fn refused_by(answer: &'static [u8], before: impl Fn()) -> Option<RefusedReason> {
    let client = Client::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is left");
    let address = listener.local_addr().expect("it is bound").into();
    let stranger = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("somebody connects");
        stream.read_exact(&mut [0; 8]).expect("a request comes");
        stream.write_all(answer).expect("it is taken");
        // So that the answer is not lost to a reset.
        _ = stream.shutdown(Shutdown::Write);
        _ = stream.read_to_end(&mut Vec::new());
    });
    let endpoint = client.node.backend.connect(&address, &ConnectionParameters::default()).expect("a connection is started");
    until(&client.ev, &[], "it is refused", || {
        before();
        client.node.refused(endpoint).is_some()
    });
    let reason = client.node.refused(endpoint);
    drop(client);
    stranger.join().expect("it has said all");
    reason
}

/// What listens there is no provider of libfabric's, such as netio3's own TCP backend.
#[test]
fn what_answers_otherwise_is_told_from_a_shortage_here() {
    let Some(_beside) = beside_others() else { return };
    let answer = b"HTTP/1.1 400 Bad Request\r\n\r\n and more than a provider's answer, whatever version of it";
    assert_eq!(refused_by(answer, || ()), Some(RefusedReason::Protocol));
}

/// Of one who hangs up the provider says whatever `errno` is left from earlier calls.
#[test]
fn who_hangs_up_is_no_listener_whatever_happened_here_before() {
    let Some(_beside) = beside_others() else { return };
    let left = [Errno::EAGAIN, Errno::ENOTDIR, Errno::EMFILE, Errno::ENOMEM, Errno::ENOPROTOOPT, Errno::EHOSTUNREACH, Errno::ETIMEDOUT];
    for errno in left {
        assert_eq!(refused_by(b"", || errno.set()), Some(RefusedReason::NoListener), "{errno}");
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

/// A verdict is for answers; the sizes of one that refuses mean nothing.
#[test]
fn a_request_with_a_verdict_fails_whatever_its_sizes_are() {
    let Some(_beside) = beside_others() else { return };
    let server = Server::new();
    for (verdict, packet_len, credits) in [(2, 0_u32, 16_u16), (5, 11, 16), (1, 13, 16), (2, 64, 1), (2, 8_192, 0), (3, 8_192, 16)] {
        let mut hello = hello_with(16, &packet_len.to_le_bytes());
        hello[6] = verdict;
        hello[20..22].copy_from_slice(&credits.to_le_bytes());
        let failed = server.node.listener().failed_hello;
        let peer = Peer::connect(server.address, &hello);
        server.until(&[&peer], "it is turned away", || peer.end().is_some());
        assert_eq!(server.node.listener().failed_hello, failed + 1, "{verdict}, {packet_len} bytes, {credits} credits");
    }
    server.check();
}

/// They are no want of descriptors, after which a listener would look for one peer at a time.
#[test]
fn who_says_nothing_keeps_nobody_waiting() {
    let Some(_beside) = beside_others() else { return };
    let server = Server::new();
    let silent: Vec<_> = (0..800).map(|_| TcpStream::connect(server.address.socket_addr()).expect("there is room")).collect();
    let (peer, _) = server.greeted();
    assert_eq!(server.node.listener().accept_failures, 0);
    drop((peer, silent));
}
