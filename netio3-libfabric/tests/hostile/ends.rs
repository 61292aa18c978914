//! Peers that vanish, hang up or say goodbye, in each phase.

use netio3_core::Phase;

use super::*;

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

/// It has said that nothing more of its own comes, not that it has all of ours.
#[test]
fn what_is_under_way_when_a_peer_dies_after_its_goodbye_has_not_completed() {
    let Some(_beside) = beside_others() else { return };
    let server = Server::new();
    // It takes long packets, and many; nothing of them is read there.
    let mut hello = hello_with(16, &(1_u32 << 20).to_le_bytes());
    hello[20..22].copy_from_slice(&4_000_u16.to_le_bytes());
    let (peer, endpoint) = server.greeted_by(&hello);
    let count = 90;
    (0..count).for_each(|key| server.node.send(endpoint, &[5; 60_000], key));
    let is_closing = || server.node.backend.connections().iter().any(|connection| connection.phase == Phase::Closing);
    peer.send(&Packet::new(GOODBYE));
    server.until(&[], "its goodbye is heard", is_closing);
    peer.die();
    let (pending, reason) = server.until_closed(&[], endpoint);
    assert!(pending > 0 && reason == ClosedReason::PeerLost, "{pending} of {count} pending, {reason:?}");
    server.node.check_keys(endpoint, count);
    server.check();
}

/// Who is paused until his own answers have left, as an echo may be, hears of it when they never will; and who has nothing to
/// wait for but what was read before.
#[test]
fn a_paused_connection_ends_with_its_peer_where_nothing_can_come_of_waiting() {
    let Some(_beside) = beside_others() else { return };
    for (queued, held) in [(30, 0), (30, 3), (0, 0)] {
        let server = Server::new();
        let (peer, endpoint) = server.paused();
        (0..queued).for_each(|key| server.node.send(endpoint, &[5; 8_000], key));
        (0..held).for_each(|_| _ = peer.send(&Packet::messages(&[b"held"])));
        if queued > 0 {
            server.until(&[&peer], "the credits are used up", || peer.data_packets() == 16);
        }
        peer.die();
        let (pending, reason) = server.until_closed(&[], endpoint);
        assert_eq!((pending > 0, reason), (queued > 0, ClosedReason::PeerLost), "{queued} queued, {held} held");
        server.node.check_keys(endpoint, queued);
    }
}
