//! Each kind of fault by itself, and the ends of a backend.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use netio3_core::fault::{FaultBackend, FaultConfig};
use netio3_core::{
    ClosedReason, Completion, CompletionKind, ConnectionParameters, DeregisterError, Endpoint, Handlers, MemoryRegion, NetioStatus,
    NetworkBackend, NetworkConfig,
};

use crate::pair::{Pair, WAIT, params, with_faults};

const MS: Duration = Duration::from_millis(1);

#[test]
fn a_refusal_is_followed_by_one_writable() {
    let pair = Pair::established(FaultConfig { would_block: 1.0, ..FaultConfig::none() }, 1);
    pair.send(0);
    for key in 1..4 {
        assert_eq!(pair.try_send(key).unwrap(), NetioStatus::NoResources);
    }
    assert_eq!(pair.client.only(|life| life.writables), 0, "a callback inside a call");
    pair.turns();
    assert_eq!(pair.client.only(|life| life.writables), 1);
    assert_eq!(pair.received(), [0]);
    pair.send(4);
    pair.turns();
    assert_eq!(pair.received(), [0, 4]);
    assert_eq!(pair.client.only(|life| life.writables), 1);
}

#[test]
fn writable_waits_for_delayed_messages_beside_which_the_refused_one_does_not_fit() {
    let dial = ConnectionParameters { queue_bytes: 100, ..params() };
    let pair = Pair::established_with(FaultConfig::none(), NetworkConfig::default(), &dial);
    let backend = &pair.client.backend;
    let send = |len: usize, key| {
        let status = backend.send_copy(pair.endpoint, &[0; 100][..len], b"", key).unwrap();
        pair.client.only(|life| match status {
            NetioStatus::Ok => life.accepted.push_back(Completion { key, kind: CompletionKind::Copy, len: len as u32 }),
            _ => life.refused = true,
        });
        status
    };
    assert_eq!((send(55, 0), send(60, 1)), (NetioStatus::Ok, NetioStatus::NoResources));
    backend.set_config(FaultConfig { delay: 1.0, ..FaultConfig::none() });
    assert_eq!(send(45, 2), NetioStatus::Ok);
    pair.turns();
    assert_eq!(pair.client.only(|life| (life.returned, life.writables)), (1, 0), "60 bytes do not fit beside the 45 held back");
    pair.clock.advance(10 * MS);
    pair.turns();
    assert_eq!(pair.client.only(|life| (life.returned, life.writables)), (2, 1));
    assert_eq!(send(60, 3), NetioStatus::Ok);
}

#[test]
fn writable_after_a_refusal_does_not_wait_for_buffers_that_the_user_holds() {
    let pair = Pair::established(FaultConfig { would_block: 1.0, ..FaultConfig::none() }, 1);
    let backend = &pair.client.backend;
    let mine: Vec<_> = (0..4).map(|_| backend.take_buffer(pair.endpoint).unwrap().unwrap()).collect();
    assert!(backend.take_buffer(pair.endpoint).unwrap().is_none());
    pair.send(0);
    assert_eq!(pair.try_send(1).unwrap(), NetioStatus::NoResources);
    pair.turns();
    assert_eq!(pair.client.only(|life| (life.returned, life.writables)), (1, 1));
    drop(mine);
    pair.turns();
    assert_eq!(pair.client.only(|life| life.writables), 1, "once for both");
}

#[test]
fn delayed_messages_wait_for_their_time_and_count_against_the_queue() {
    let pair = Pair::established(FaultConfig { delay: 1.0, ..FaultConfig::none() }, 1);
    for key in 0..16 {
        pair.send(key);
    }
    assert_eq!(pair.try_send(16).unwrap(), NetioStatus::NoResources, "the queue takes 16 messages");
    pair.turns();
    assert!(pair.received().is_empty());
    assert_eq!(pair.client.only(|life| (life.returned, life.writables)), (0, 0));
    pair.clock.advance(10 * MS);
    pair.turns();
    assert_eq!(pair.received(), (0..16).collect::<Vec<_>>());
    assert_eq!(pair.client.only(|life| (life.returned, life.writables)), (16, 1));
}

#[test]
fn an_orderly_close_sends_delayed_messages_and_an_abort_returns_them() {
    for aborts in [false, true] {
        let pair = Pair::established(FaultConfig { delay: 1.0, ..FaultConfig::none() }, 1);
        for key in 0..5 {
            pair.send(key);
        }
        if aborts {
            pair.client.backend.abort(pair.endpoint).unwrap();
        } else {
            pair.client.backend.close(pair.endpoint).unwrap();
        }
        assert_eq!(pair.try_send(5).unwrap(), NetioStatus::NotConnected);
        pair.until(|| pair.client.is_over() && pair.server.is_over());
        assert_eq!(pair.received(), (0..if aborts { 0 } else { 5 }).collect::<Vec<_>>());
        assert_eq!(pair.client.only(|life| (life.returned, life.closed)), (5, Some(ClosedReason::Local)));
    }
}

#[test]
fn closing_the_listener_or_shutting_down_sends_delayed_messages() {
    for shuts_down in [false, true] {
        let pair = Pair::established(FaultConfig { delay: 1.0, ..FaultConfig::none() }, 1);
        let (server, peer) = (&pair.server, *pair.server.lives.borrow().keys().next().unwrap());
        assert_eq!(server.backend.send_copy(peer, b"held", b"", 7).unwrap(), NetioStatus::Ok);
        server.only(|life| life.accepted.push_back(Completion { key: 7, kind: CompletionKind::Copy, len: 4 }));
        let address = server.backend.listeners()[0].address;
        if shuts_down {
            server.backend.shutdown(WAIT);
        } else {
            server.backend.close_listen_endpoint(&address).unwrap();
        }
        pair.until(|| pair.client.is_over() && server.is_over());
        assert_eq!(pair.client.only(|life| life.received.clone()), [b"held"]);
    }
}

#[test]
fn a_stall_stops_both_ways_until_its_time_has_passed() {
    let pair = Pair::established(FaultConfig::none(), 1);
    let peer = *pair.server.lives.borrow().keys().next().unwrap();
    pair.server.backend.set_config(FaultConfig { stall: 1.0, longest_stall: MS, ..FaultConfig::none() });
    pair.send(0);
    pair.turns();
    pair.server.backend.set_config(FaultConfig::none());
    assert_eq!(pair.server.backend.counts().stalls, 1);
    pair.send(1);
    assert_eq!(pair.server.backend.send_copy(peer, b"stalled", b"", 7).unwrap(), NetioStatus::Ok);
    pair.server.only(|life| life.accepted.push_back(Completion { key: 7, kind: CompletionKind::Copy, len: 7 }));
    // What the user asks for meanwhile holds afterwards.
    pair.server.backend.pause(peer).unwrap();
    pair.server.backend.resume(peer).unwrap();
    pair.turns();
    assert_eq!(pair.received(), [0]);
    assert!(pair.client.only(|life| life.received.is_empty()));
    pair.clock.advance(MS);
    pair.turns();
    assert_eq!(pair.received(), [0, 1]);
    assert_eq!(pair.client.only(|life| life.received.len()), 1);
}

#[test]
fn a_connection_paused_by_its_user_stays_so_after_a_stall() {
    let pair = Pair::established(FaultConfig::none(), 1);
    let peer = *pair.server.lives.borrow().keys().next().unwrap();
    pair.server.backend.set_config(FaultConfig { stall: 1.0, longest_stall: MS, ..FaultConfig::none() });
    pair.send(0);
    pair.turns();
    pair.server.backend.set_config(FaultConfig::none());
    pair.server.backend.pause(peer).unwrap();
    pair.send(1);
    pair.clock.advance(MS);
    pair.turns();
    assert_eq!(pair.received(), [0]);
    pair.server.backend.resume(peer).unwrap();
    pair.turns();
    assert_eq!(pair.received(), [0, 1]);
}

#[test]
fn a_reset_closes_once_as_if_the_peer_was_lost() {
    let pair = Pair::established(FaultConfig { reset: 1.0, delay: 1.0, ..FaultConfig::none() }, 1);
    pair.send(0);
    pair.until(|| pair.client.is_over() && pair.server.is_over());
    assert_eq!(pair.client.only(|life| (life.returned, life.closed)), (1, Some(ClosedReason::PeerLost)));
    assert_eq!(pair.client.backend.counts().resets, 1);
    assert!(pair.try_send(1).is_err());
}

#[test]
fn a_reset_is_told_as_such_whatever_the_user_does_afterwards() {
    for shuts_down in [false, true] {
        let pair = Pair::established(FaultConfig { reset: 1.0, ..FaultConfig::none() }, 1);
        pair.send(0);
        pair.until(|| pair.client.backend.counts().resets == 1);
        assert!(!pair.client.is_over(), "it is told in the next turn");
        if shuts_down {
            pair.client.backend.shutdown(WAIT);
        } else {
            let _ = pair.client.backend.close(pair.endpoint);
        }
        pair.until(|| pair.client.is_over() && pair.server.is_over());
        assert_eq!(pair.client.only(|life| (life.returned, life.closed)), (1, Some(ClosedReason::PeerLost)));
    }
}

#[test]
fn user_memory_is_free_when_its_key_comes_back_and_busy_before() {
    let pair = Pair::established(FaultConfig { delay: 1.0, ..FaultConfig::none() }, 1);
    let backend = &pair.client.backend;
    assert_eq!(backend.send(pair.endpoint, &Bytes::from_static(b"outside every region"), b"", 0).unwrap(), NetioStatus::Ok);
    let region = MemoryRegion::new(4_096).unwrap();
    let id = backend.register(&region).unwrap();
    assert_eq!(backend.send(pair.endpoint, &region.bytes().unwrap().slice(..100), b"", 1).unwrap(), NetioStatus::Ok);
    let memory = Arc::new([0_u8; 100]);
    let owner = Bytes::from_owner(Shared(memory.clone()));
    assert_eq!(backend.send(pair.endpoint, &owner, b"", 2).unwrap(), NetioStatus::Ok);
    drop(owner);
    assert!(backend.deregister(id).is_err() && Arc::strong_count(&memory) > 1);
    pair.client.only(|life| {
        life.accepted.extend([(0, 20), (1, 100), (2, 100)].map(|(key, len)| Completion { key, kind: CompletionKind::ZeroCopy, len }))
    });
    backend.abort(pair.endpoint).unwrap();
    pair.until(|| pair.client.is_over());
    assert_eq!(Arc::strong_count(&memory), 1);
    backend.deregister(id).unwrap();
}

#[test]
fn a_buffer_of_a_region_that_is_held_back_is_that_regions_use() {
    let network = NetworkConfig { strict_regions: true, ..Default::default() };
    let pair = Pair::established_with(FaultConfig { delay: 1.0, ..FaultConfig::none() }, network, &params());
    let backend = &pair.client.backend;
    let region = MemoryRegion::new(3_000).unwrap();
    let mut pool = region.cut(1_000).unwrap();
    let mut fill = || {
        let mut buffer = pool.take().unwrap();
        buffer.extend_from_slice(&[1; 700]).unwrap();
        buffer
    };
    // Twice: whether regions are strict shows with the first one.
    for _ in 0..2 {
        let unsent = backend.send_taken(pair.endpoint, fill()).unwrap_err();
        assert_eq!(unsent.outcome, Ok(NetioStatus::NotRegistered));
    }
    let id = backend.register(&region).unwrap();
    let buffer = fill();
    pair.client.only(|life| life.accepted.push_back(Completion { key: buffer.id(), kind: CompletionKind::Buffer, len: 700 }));
    backend.send_taken(pair.endpoint, buffer).unwrap();
    assert_eq!(backend.deregister(id), Err(DeregisterError::Busy(id)));
    pair.turns();
    assert_eq!(backend.deregister(id), Err(DeregisterError::Busy(id)), "it is held back still");
    pair.clock.advance(10 * MS);
    pair.turns();
    assert_eq!(pair.client.only(|life| (life.returned, life.closed)), (1, None));
    assert_eq!(pair.server.only(|life| life.received.len()), 1);
    backend.deregister(id).unwrap();
    assert_eq!(backend.send_taken(pair.endpoint, fill()).unwrap_err().outcome, Ok(NetioStatus::NotRegistered));
}

#[test]
fn buffers_that_are_held_back_come_round_again() {
    let pair = Pair::established(FaultConfig { delay: 1.0, ..FaultConfig::none() }, 1);
    let backend = &pair.client.backend;
    for _ in 0..4 {
        let buffer = backend.take_buffer(pair.endpoint).unwrap().unwrap();
        let completion = Completion { key: buffer.id(), kind: CompletionKind::Buffer, len: 0 };
        backend.send_taken(pair.endpoint, buffer).unwrap();
        pair.client.only(|life| life.accepted.push_back(completion));
    }
    assert!(backend.take_buffer(pair.endpoint).unwrap().is_none());
    pair.client.only(|life| life.refused = true);
    pair.until_in_time(|| pair.client.only(|life| life.writables == 1));
    assert!(backend.take_buffer(pair.endpoint).unwrap().is_some());
}

#[test]
fn dropping_inside_a_callback_ends_it() {
    let slot: Rc<RefCell<Option<FaultBackend>>> = Rc::default();
    let inside = slot.clone();
    let (pair, backend, _) = with_writable(move || drop(inside.take()));
    slot.replace(backend.take());
    pair.until(|| slot.borrow().is_none());
    pair.turns();
    assert_eq!(pair.client.only(|life| life.closed), None, "another backend of the loop lives on");
}

#[test]
fn a_panic_in_a_callback_ends_the_backend_and_leaves_the_loop_usable() {
    let (pair, backend, endpoint) = with_writable(|| panic!("on purpose"));
    assert!(catch_unwind(AssertUnwindSafe(|| pair.turns())).is_err());
    assert!(backend.borrow().as_ref().unwrap().send_copy(endpoint, b"x", b"", 0).is_err());
    pair.send(1);
    pair.turns();
    let lives = pair.server.lives.borrow();
    assert_eq!(lives.values().filter(|life| life.received.len() == 1).count(), 2);
    assert_eq!(lives.values().filter(|life| life.closed.is_some()).count(), 1);
}

/// A client whose `on_writable`, which comes from the wrapper itself, does what is asked.
fn with_writable(act: impl Fn() + 'static) -> (Pair, Rc<RefCell<Option<FaultBackend>>>, Endpoint) {
    let pair = Pair::established(FaultConfig::none(), 1);
    let address = pair.server.backend.listeners()[0].address;
    let established = Rc::new(Cell::new(false));
    let seen = established.clone();
    let callbacks = Handlers::new()
        .on_connection_established(move |_, _| seen.set(true))
        .on_connection_closed(|_, _, _, _, _| panic!("a callback after the end"))
        .on_writable(move |_, _, _| act());
    let config = FaultConfig { would_block: 1.0, ..FaultConfig::none() };
    let backend = with_faults(config, 1, &pair.clock, &pair.ev, Box::new(callbacks));
    let endpoint = backend.connect(&address, &params()).unwrap();
    pair.until(|| established.get());
    assert_eq!(backend.send_copy(endpoint, b"x", b"", 0).unwrap(), NetioStatus::Ok);
    assert_eq!(backend.send_copy(endpoint, b"x", b"", 0).unwrap(), NetioStatus::NoResources);
    (pair, Rc::new(RefCell::new(Some(backend))), endpoint)
}

struct Shared(Arc<[u8; 100]>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &*self.0
    }
}
