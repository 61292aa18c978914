//! Counters, and large numbers of connections.

use std::collections::HashMap;
use std::thread;

use super::pair::{Pair, Setup, all_arrived};
use super::plan::Plan;
use super::world::{World, config};
use crate::config::{ConnectionParameters, ConnectionParametersRecv};
use crate::endpoint::Endpoint;
use crate::memory::MemoryRegion;
use crate::status::{CompletionKind, NetioStatus};

/// The counters of a connection and of its backend equal what was sent, refused and received.
pub(super) fn counters_equal_what_happened(world: &World) {
    let pair = Pair::with(world, Setup::queue(20));
    let mut bytes = 0;
    for len in [0, 1, 100, 5_000, 70_000, 300_000] {
        pair.dialer.sent(pair.out, Plan::zero_copy(len));
        pair.dialer.sent(pair.out, Plan::copy(len).header(len.min(30)));
        bytes += 2 * len as u64;
    }
    let out = pair.dialer.backend().stats(pair.out).expect("it is there");
    pair.deliver(world);
    let back = pair.listener.backend().stats(pair.back).expect("it is there");
    assert_eq!((out.messages_accepted.get(), out.messages_sent.get(), out.bytes_sent.get()), (12, 12, bytes));
    assert_eq!((out.queued_messages.get(), out.queued_bytes.get()), (0, 0));
    assert_eq!((back.messages_received.get(), back.bytes_received.get()), (12, bytes));
    (0..20).for_each(|_| pair.dialer.sent(pair.out, Plan::copy(1)));
    (0..3).for_each(|_| assert_eq!(pair.dialer.send(pair.out, Plan::copy(1)), NetioStatus::NoResources));
    // On the synchronized kind the loop counts, a turn later.
    if !world.harness.is_synchronized() {
        assert_eq!((out.refused_sends.get(), out.queued_messages.get(), out.queued_bytes.get()), (3, 20, 20));
    }
    pair.deliver(world);
    assert_eq!((out.refused_sends.get(), out.queued_messages.get(), out.queued_bytes.get()), (3, 0, 0));
    let (sent, received) = (pair.dialer.backend().totals(), pair.listener.backend().totals());
    assert_eq!((sent.messages_accepted.get(), sent.messages_sent.get(), sent.bytes_sent.get()), (32, 32, bytes + 20));
    assert_eq!((received.messages_received.get(), received.bytes_received.get(), sent.refused_sends.get()), (32, bytes + 20, 3));
    assert_eq!((sent.opened.get(), sent.established.get(), sent.connections.get()), (1, 1, 1));
    assert_eq!((received.opened.get(), received.established.get(), received.connections.get()), (0, 1, 1));
    assert!(out.writes.get() > 0 && back.reads.get() > 0);
}

/// Small zero-copy messages are copied, and counted then; what is copied anyway is not, nor is registered memory.
pub(super) fn zero_copy_messages_that_are_copied_are_counted(world: &World) {
    let pair = Pair::new(world);
    let stats = pair.dialer.backend().stats(pair.out).expect("it is there");
    let copy_below = pair.setup.dial.copy_below;
    (0..5).for_each(|i| pair.dialer.sent(pair.out, Plan::zero_copy(copy_below - i * 100).header(10)));
    (0..5).for_each(|_| pair.dialer.sent(pair.out, Plan::copy(100)));
    pair.deliver(world);
    assert_eq!(stats.copied_messages.get(), 5);
    let region = MemoryRegion::new(64 << 10).expect("memory");
    let bytes = region.bytes().expect("it is not cut");
    let id = pair.dialer.backend().register(&region).expect("there is room");
    assert_eq!(pair.dialer.backend().send(pair.out, &bytes, b"", 1), Ok(NetioStatus::Ok));
    pair.dialer.accepted(pair.out, 1, CompletionKind::ZeroCopy, &bytes);
    pair.deliver(world);
    assert_eq!(stats.copied_messages.get(), 5);
    pair.dialer.backend().deregister(id).expect("nothing holds it");
}

/// Totals survive the connections; a connection's counters stay readable, from any thread, after its end.
pub(super) fn totals_survive_the_connections(world: &World) {
    let pair = Pair::new(world);
    let out = pair.dialer.backend().stats(pair.out).expect("it is there");
    let totals = pair.dialer.backend().totals();
    (0..10).for_each(|_| pair.dialer.sent(pair.out, Plan::copy(100)));
    pair.dialer.close(pair.out);
    pair.until_closed(world);
    let (second, _) = pair.another(world);
    pair.dialer.sent(second, Plan::copy(50));
    world.until("sent", || pair.dialer.completed(second) == 1);
    pair.dialer.drop_backend();
    let read = thread::spawn(move || (out.snapshot(), totals.snapshot())).join().expect("reading does not panic");
    assert_eq!((read.0.messages_sent, read.0.bytes_sent), (10, 1_000));
    assert_eq!((read.1.messages_sent, read.1.bytes_sent, read.1.established, read.1.closed), (11, 1_050, 2, 1));
}

/// As many connections as one process can hold, all at once: each carries its own messages both ways, and closes.
pub(super) fn many_connections_at_once(world: &World) {
    let count = world.harness.connections();
    println!("{count} connections");
    let listener = world.node("listener", config());
    let dialer = world.node("dialer", config());
    let address = listener.listen(world.harness.listen_address(), &ConnectionParametersRecv::default());
    let handles: Vec<_> = (0..count).map(|_| dialer.connect(address, &ConnectionParameters::default())).collect();
    let all_established = |node: &super::node::Node, count: usize| node.backend().totals().established.get() as usize == count;
    world.until("all are established", || all_established(&dialer, count) && all_established(&listener, count));
    // They need not be accepted in the order of the calls.
    let peers: HashMap<_, _> = listener.accepted_peers().into_iter().map(|peer| (peer.address, peer.endpoint)).collect();
    let other_end = |out: &Endpoint| peers[&dialer.tally(*out).established.expect("all are").local_address];
    let pairs: Vec<_> = handles.iter().map(|out| (*out, other_end(out))).collect();
    for round in 0..3 {
        for (i, (out, back)) in pairs.iter().enumerate() {
            dialer.sent(*out, Plan::copy(16 + i + round));
            listener.sent(*back, Plan::zero_copy(2_000 + i));
        }
    }
    let received = |node: &super::node::Node| node.backend().totals().messages_received.get() as usize;
    world.until("all arrive", || received(&dialer) == 3 * count && received(&listener) == 3 * count);
    for (i, (out, back)) in pairs.iter().enumerate() {
        assert_eq!((dialer.received(*out), listener.received(*back)), (3, 3));
        match i % 2 {
            0 => dialer.close(*out),
            _ => listener.close(*back),
        }
    }
    world.until("all are closed", || dialer.backend().connections().is_empty() && listener.backend().connections().is_empty());
    assert_eq!(dialer.backend().totals().closed.get() as usize, count);
    assert_eq!(listener.backend().totals().closed.get() as usize, count);
}

/// A backend dropped with many busy connections ends all of them, and its peers see each end once.
pub(super) fn many_connections_dropped_at_once(world: &World) {
    let count = world.harness.connections().min(100);
    let pair = Pair::new(world);
    let others: Vec<_> = (1..count).map(|_| pair.another(world)).collect();
    for (out, _) in &others {
        (0..20).for_each(|i| pair.dialer.sent(*out, Plan::zero_copy(i * 100)));
    }
    pair.dialer.drop_backend();
    world.until("all ends are seen", || others.iter().all(|(_, back)| pair.listener.closing(*back).is_some()));
    world.until("nothing is left", || pair.listener.backend().connections().is_empty());
}

/// Many short messages on many connections, all interleaved, arrive in order on each.
pub(super) fn interleaved_streams_keep_apart(world: &World) {
    let count = world.harness.connections().min(16);
    let pair = Pair::new(world);
    let ends: Vec<_> = (1..count).map(|_| pair.another(world)).chain([(pair.out, pair.back)]).collect();
    for i in 0..300 {
        for (out, back) in &ends {
            pair.dialer.sent(*out, Plan::copy(8 + i % 90));
            pair.listener.sent(*back, Plan::copy(8 + i % 70));
        }
        if i % 40 == 0 {
            world.turn();
        }
    }
    world.until("all arrive", || {
        ends.iter().all(|(out, back)| {
            all_arrived(&pair.dialer, *out, &pair.listener, *back) && all_arrived(&pair.listener, *back, &pair.dialer, *out)
        })
    });
}
