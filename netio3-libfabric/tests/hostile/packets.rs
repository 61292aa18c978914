//! What packets say.

use super::*;

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

#[test]
fn a_packet_longer_than_receives_are_breaks_the_protocol() {
    let Some(_beside) = beside_others() else { return };
    let server = Server::new();
    let (peer, endpoint) = server.greeted();
    peer.send_bytes(&[MESSAGES; 70_000]);
    assert_eq!(server.until_closed(&[&peer], endpoint), (0, ClosedReason::Protocol));
    server.check();
}

/// However early it comes.
#[test]
fn what_breaks_the_protocol_at_once_is_named() {
    let Some(_beside) = beside_others() else { return };
    let server = Server::new();
    let mut reasons = Vec::new();
    for _ in 0..400 {
        let before = server.node.established().len();
        let peer = Peer::connect(server.address, &hello());
        let mut sent = false;
        server.until(&[&peer], "it is closed", || {
            if !sent && peer.answer().is_some() {
                sent = true;
                peer.send_bytes(&strange(0xC7, 0));
                peer.send(&Packet::messages(&[b"behind it"]));
            }
            let established = server.node.established();
            established.len() > before && server.node.closed(established[before]).is_some()
        });
        let endpoint = server.node.established()[before];
        reasons.push((server.node.closed(endpoint).unwrap().1, server.node.received(endpoint).len()));
    }
    reasons.retain(|reason| *reason != (ClosedReason::Protocol, 0));
    assert!(reasons.is_empty(), "{reasons:?}");
}
