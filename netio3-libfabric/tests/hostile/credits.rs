//! Who sends more than he may, or tells of more than there is.

use super::*;

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

#[test]
fn who_is_dealt_fewer_receives_tells_of_no_more_credits() {
    let Some(_beside) = beside_others() else { return };
    // Half of what the witness leaves: six of twelve, of which five are for control.
    let rdma = RdmaParameters { receives: 7, shared_receives: Some(24), ..config().rdma };
    let server = Server::with(NetworkConfig { rdma, ..config() }, ConnectionParameters::default());
    let (peer, endpoint) = server.greeted();
    let answer = peer.answer().expect("it is connected");
    assert_eq!(answer[20..22], [1, 0]);
    for n in 1..=5 {
        peer.send(&Packet::messages(&[b"one"]));
        server.until(&[&peer], "its credit comes back", || peer.arrived().len() == n);
        assert_eq!(peer.arrived()[n - 1], Packet::credits(1, 0));
    }
    assert_eq!(server.node.received(endpoint).len(), 5);
    peer.die();
    server.until_closed(&[&peer], endpoint);
    server.check();
}

/// Each of its parts is progress.
#[test]
fn a_long_message_that_leaves_slowly_is_not_stalled() {
    let Some(_beside) = beside_others() else { return };
    let params = ConnectionParameters { stall_timeout: Some(Duration::from_secs(1)), ..Default::default() };
    let server = Server::with(config(), params);
    let (peer, endpoint) = server.greeted_by(&hello_with(20, &[2, 0]));
    server.node.send(endpoint, &[5; 8_000 * 20], 0);
    let (mut told, mut last) = (0, Instant::now());
    server.until(&[&peer], "all of it has arrived, or it is over", || {
        // Each packet is handled after a tenth of the time.
        if peer.data_packets() > told && last.elapsed() > Duration::from_millis(100) {
            (told, last) = (told + 1, Instant::now());
            peer.send(&Packet::credits(1, 0));
        }
        server.node.completed(endpoint).len() == 1 || server.node.closed(endpoint).is_some()
    });
    assert_eq!(server.node.closed(endpoint), None, "{told} packets were handled");
}
