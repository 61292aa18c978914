//! Messages that are copied and too long for one packet. Skipped, saying so, where libfabric is absent;
//! `NETIO3_REQUIRE_LIBFABRIC=1` makes that a failure.

mod util;

use std::io::IoSlice;

use netio3_core::{ConnectionParameters, NetioStatus};
use netio3_evloop::EpollEventLoop;
use util::{Peer, hello, is_here, until};

#[test]
fn the_first_packets_of_a_long_copy_leave_before_the_call_returns() {
    if !is_here() {
        return;
    }
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let (server, client) = (util::node(&ev), util::node(&ev));
    let to = client.backend.connect(&server.listen(), &ConnectionParameters::default()).expect("a connection is started");
    until(&ev, &[], "established", || client.established() == [to] && server.established().len() == 1);
    let stats = client.backend.stats(to).expect("it is there");
    let (header, body): (Vec<u8>, Vec<u8>) = ((0..200).collect(), (0..1_000_000_u32).map(|at| (at % 251) as u8).collect());
    // Two pieces, cut where no packet ends, and one that is empty.
    let pieces = [&body[..300_001], &[], &body[300_001..]].map(IoSlice::new);
    let before = stats.writes.get();
    assert_eq!(client.backend.send_copy_iov(to, &pieces, &header, 1), Ok(NetioStatus::Ok));
    assert!(stats.writes.get() >= before + 4, "{} posts before the loop had a turn", stats.writes.get() - before);
    // What comes behind it comes behind it.
    assert_eq!(client.backend.send_copy_iov(to, &[IoSlice::new(b"next")], &[], 2), Ok(NetioStatus::Ok));
    let from = server.established()[0];
    until(&ev, &[], "both arrived and completed", || server.received(from).len() == 2 && stats.messages_sent.get() == 2);
    let received = server.received(from);
    assert!(received[0] == [header, body].concat() && received[1] == b"next");
}

#[test]
fn a_long_copy_to_a_peer_who_is_gone_is_pending_once() {
    if !is_here() {
        return;
    }
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let node = util::node(&ev);
    let (peer, to) = Peer::greeted(&ev, &node, node.listen(), &hello());
    peer.die();
    assert_eq!(node.backend.send_copy_iov(to, &[IoSlice::new(&vec![3; 4 << 20])], b"head", 7), Ok(NetioStatus::Ok));
    until(&ev, &[], "closed", || node.closed(to).is_some());
    let pending = node.closed(to).map(|(pending, _)| pending.iter().map(|it| it.key).collect::<Vec<_>>());
    assert_eq!([node.completed(to), pending.unwrap_or_default()].concat(), [7]);
}
