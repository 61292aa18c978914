//! Peers that break the protocol, vanish or do nothing: each ends alone, with a reason that names it.

mod util;

use std::net::TcpStream;
use std::time::Duration;

use netio3_asyncmsg::{Frame, HEAD_LEN};
use netio3_core::{ClosedReason, ConnectionParameters, Endpoint, EventLoop, NetioStatus, NetworkConfig, RefusedReason};
use netio3_evloop::EpollEventLoop;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use util::{Bare, Server, Told, config, hello, message, until};

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
fn a_length_beyond_the_maximum_ends_the_connection_even_if_the_message_is_there() {
    let server = Server::with(NetworkConfig { max_message_len: 100, ..config() }, ConnectionParameters::default());
    let (mut bare, endpoint) = server.greeted();
    bare.write(&[message(&[1; 100]), message(&[2; 101]), message(b"after")].concat());
    assert_eq!(server.until_closed(endpoint), (0, ClosedReason::Protocol));
    assert_eq!(server.node.received(endpoint), [[1; 100]]);
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
        // All that it takes: of such a message the loop is woken for long stretches only.
        while server.node.closed(endpoint).is_none() && bare.socket_write(&[7; 50_000]) > 0 {}
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
    // The longer one has memory of its own, the shorter one lies where everything is read.
    for (len, part, assembled, reset) in
        [(500_000, 100_000, 50_000, false), (500_000, 100_000, 50_000, true), (60_000, 20_000, 0, false), (60_000, 20_000, 0, true)]
    {
        let (mut bare, endpoint) = server.greeted();
        let stats = server.node.backend.stats(endpoint).expect("it is there");
        bare.write(&[&message(b"whole")[..], &message(&vec![1; len])[..part]].concat());
        let assembly = || server.node.backend.totals().assembly_bytes.get();
        server.until("part of it is read", || stats.messages_received.get() > 0 && (assembled == 0 || assembly() > assembled));
        if reset {
            bare.reset()
        } else {
            drop(bare)
        }
        assert_eq!(server.until_closed(endpoint), (0, ClosedReason::PeerLost));
        assert_eq!(server.node.received(endpoint), [b"whole"]);
        assert_eq!(stats.messages_discarded.get(), 1, "{len}, reset: {reset}");
    }
    server.check();
}

#[test]
fn a_message_that_comes_in_parts_is_put_together_where_it_is_read_unless_another_comes_between() {
    const LEN: usize = 60_000;
    let server = Server::new();
    let totals = server.node.backend.totals();
    let mut content = (0..251).cycle();
    let contents: Vec<Vec<u8>> = (0..4).map(|_| content.by_ref().take(LEN).collect()).collect();
    let wire: Vec<Vec<u8>> = contents.iter().map(|content| message(content)).collect();
    let ((mut one, first), (mut two, second)) = (server.greeted(), server.greeted());
    write_and_read(&server, &mut one, first, &wire[0][..20_000]);
    assert_eq!(totals.assembly_bytes.get(), 0, "it stays where it is");
    write_and_read(&server, &mut one, first, &[&wire[0][20_000..], &wire[1][..30_000]].concat());
    server.until("it is whole", || server.node.received(first).len() == 1);
    assert_eq!(totals.assembly_bytes.get(), 0, "so does the next one");
    write_and_read(&server, &mut two, second, &wire[2][..40_000]);
    assert!(totals.assembly_bytes.get() > 0, "it made room for another one");
    write_and_read(&server, &mut two, second, &[&wire[2][40_000..], &wire[3][..50_000]].concat());
    write_and_read(&server, &mut one, first, &wire[1][30_000..]);
    write_and_read(&server, &mut two, second, &wire[3][50_000..]);
    server.until("all are whole", || server.node.received(first).len() == 2 && server.node.received(second).len() == 2);
    assert!(server.node.received(first) == contents[..2] && server.node.received(second) == contents[2..], "something else came out");
    one.reset();
    two.reset();
    assert_eq!(server.until_closed(first).1, ClosedReason::PeerLost);
    assert_eq!(server.until_closed(second).1, ClosedReason::PeerLost);
    server.check();
}

#[test]
fn who_cannot_keep_what_has_begun_is_closed_and_nobody_else() {
    let server = Server::with(NetworkConfig { total_assembly_bytes: 50_000, ..config() }, ConnectionParameters::default());
    let ((mut one, first), (mut two, second)) = (server.greeted(), server.greeted());
    let stats = server.node.backend.stats(first).expect("it is there");
    write_and_read(&server, &mut one, first, &message(&[1; 60_000])[..20_000]);
    assert_eq!(server.node.closed(first), None, "it needs no memory of its own yet");
    two.write(&message(b"it makes room for this"));
    assert_eq!(server.until_closed(first), (0, ClosedReason::Limit));
    assert_eq!(stats.messages_discarded.get(), 1);
    server.until("the other one's message arrives", || server.node.received(second).len() == 1);
    assert_eq!(server.node.backend.totals().assembly_bytes.get(), 0);
    two.reset();
    server.until_closed(second);
    server.check();
}

#[test]
fn a_message_that_has_begun_ends_with_its_connection() {
    let server = Server::new();
    let ((mut one, first), (mut two, second)) = (server.greeted(), server.greeted());
    let stats = server.node.backend.stats(first).expect("it is there");
    write_and_read(&server, &mut one, first, &message(&[1; 60_000])[..20_000]);
    server.node.backend.pause(first).expect("it is there");
    server.node.backend.abort(first).expect("it is there");
    assert_eq!(stats.messages_discarded.get(), 1);
    two.write(&message(b"read where it lay"));
    server.until("the other one's message arrives", || server.node.received(second) == [b"read where it lay"]);
    assert_eq!(server.until_closed(first), (0, ClosedReason::Local));
    two.reset();
    server.until_closed(second);
    server.check();
}

/// Writes, and waits until some of it is read.
#[track_caller]
fn write_and_read(server: &Server, bare: &mut Bare, endpoint: Endpoint, bytes: &[u8]) {
    let stats = server.node.backend.stats(endpoint).expect("it is there");
    let reads = stats.reads.get();
    bare.write(bytes);
    server.until("it is read", || stats.reads.get() > reads);
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
fn a_burst_of_small_messages_is_found_stalled_in_time() {
    let params = ConnectionParameters {
        stall_timeout: Some(Duration::from_millis(200)),
        queue_messages: 1 << 20,
        queue_bytes: 64 << 20,
        // However much the machine allows.
        send_buffer: Some(256 << 10),
        ..Default::default()
    };
    let server = Server::with(NetworkConfig { total_queue_messages: 1 << 20, ..config() }, params);
    let (_bare, endpoint) = server.greeted();
    // More than the kernel takes, in one turn.
    for key in 0..300_000 {
        server.node.send(endpoint, &[5; 64], key);
    }
    let began = std::time::Instant::now();
    assert_eq!(server.until_closed(endpoint).1, ClosedReason::Stalled);
    // Not with what is looked after every 2 s.
    assert!(began.elapsed() < Duration::from_millis(1_500), "after {:?}", began.elapsed());
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

/// What they said lies in the kernel when they are accepted: they are not silent, whatever the limit on those that are.
#[test]
fn peers_that_said_hello_before_they_were_accepted_do_not_make_room_for_each_other() {
    const PEERS: usize = 40;
    let server = Server::with(NetworkConfig { max_handshakes: 3, ..config() }, ConnectionParameters::default());
    let mut peers: Vec<_> = (0..PEERS).map(|_| Bare::connect(server.address)).collect();
    peers.iter_mut().for_each(|peer| peer.write(&hello()));
    server.until("all are answered, or turned away", || {
        peers.iter_mut().for_each(Bare::read);
        peers.iter().all(|peer| peer.arrived.len() >= 72 || peer.end.is_some())
    });
    let answered = peers.iter().filter(|peer| peer.arrived.len() >= 72).count();
    assert_eq!((answered, server.node.listener().silent), (PEERS, 0), "of {PEERS}");
}
