//! The synchronized kind: opening, closing, dropping and all else from other threads.

use std::cell::Cell;
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use super::pair::{Pair, Setup};
use super::plan::Plan;
use super::recorder::Kind;
use super::threads::{numbered, shared_pair};
use super::world::{World, config, wait};
use crate::config::{ConnectionParameters, ConnectionParametersRecv};
use crate::endpoint::Endpoint;
use crate::memory::MemoryRegion;
use crate::status::{ClosedReason, NetioStatus, RefusedReason};

/// Calls from other threads never wait for the loop: all of them return while it does not run.
pub(super) fn no_call_waits_for_the_loop(world: &World) {
    let pair = shared_pair(world, Setup::buffers(100, 4));
    let (out, address) = (pair.out, pair.address);
    let (listen, nobody) = (world.harness.listen_address(), world.harness.nobody_listens());
    let backend = pair.dialer.shared();
    let (done, finished) = mpsc::channel();
    let caller = thread::spawn(move || {
        let params = ConnectionParameters::default();
        let opened = backend.open_send_endpoint(&nobody, &params).expect("the address is free");
        assert!(backend.open_send_endpoint(&nobody, &params).is_err(), "the front knows the owner");
        let connected = backend.connect(&address, &params).expect("it can be started");
        let bound = backend.open_listen_endpoint(&listen, &ConnectionParametersRecv::default()).expect("a free port");
        assert_ne!(bound.port(), 0);
        assert_eq!(backend.endpoint(&address), Some(out));
        assert_eq!(backend.send_copy(connected, b"x", b"", 0), Ok(NetioStatus::NotConnected));
        for _ in 0..10 {
            assert_eq!(backend.send(out, &Bytes::from_static(b"message"), b"", 1), Ok(NetioStatus::Ok));
            assert_eq!(backend.send_copy(out, b"message", b"", 2), Ok(NetioStatus::Ok));
        }
        assert_eq!(backend.send(out, &Bytes::new(), &[1; 70_000], 1), Ok(NetioStatus::TooBig));
        let mut buffer = backend.take_buffer(out).expect("it has buffers").expect("one is free");
        buffer.extend_from_slice(b"message").expect("it fits");
        backend.send_taken(out, buffer).expect("it is accepted");
        assert!(backend.available_buffers(out).expect("it has buffers") < 4);
        let region = MemoryRegion::new(4_096).expect("memory");
        let id = backend.register(&region).expect("there is room");
        backend.deregister(id).expect("nothing holds it");
        backend.flush(out).expect("it is there");
        backend.pause(out).expect("it is there");
        backend.resume(out).expect("it is there");
        backend.limits(out).expect("it is there");
        backend.stats(out).expect("it is there").snapshot();
        backend.totals().snapshot();
        assert!(backend.connections().len() >= 3);
        assert_eq!(backend.listeners().len(), 1);
        backend.close(connected).expect("it is there");
        backend.close_listen_endpoint(&bound).expect("it listens");
        drop(backend);
        done.send((opened, connected)).expect("the case waits");
    });
    let outcome = finished.recv_timeout(wait());
    let Ok((opened, connected)) = outcome else {
        // Either a call waits for the loop, or an assertion failed.
        assert!(caller.is_finished(), "a call waits for the loop, which does not run");
        std::panic::resume_unwind(caller.join().expect_err("it did not finish its calls"));
    };
    caller.join().expect("the calls succeed");
    world.until("their effects follow", || {
        pair.dialer.refusal(opened) == Some(RefusedReason::NoListener)
            && pair.dialer.refusal(connected) == Some(RefusedReason::Local)
            && pair.listener.received(pair.back) == 21
    });
}

/// What one thread was told is accepted arrives, when another thread closes the connection right after.
pub(super) fn a_close_from_another_thread_flushes(world: &World) {
    let pair = shared_pair(world, Setup::default());
    let mut last = (pair.out, pair.back);
    for round in 0..20 {
        let (backend, out) = (pair.dialer.shared(), last.0);
        let closer = thread::spawn(move || {
            for number in 0..50 {
                assert_eq!(backend.send_copy(out, &numbered(0, number, 500), b"", 0), Ok(NetioStatus::Ok));
            }
            backend.close(out).expect("it is there");
            assert_eq!(backend.send_copy(out, b"late", b"", 0).ok().filter(|status| *status == NetioStatus::Ok), None);
        });
        world.until("closed", || pair.dialer.closing(last.0).is_some() && pair.listener.closing(last.1).is_some());
        closer.join().expect("the calls succeed");
        assert_eq!((pair.listener.received(last.1), pair.dialer.tally(last.0).completed), (50, 50), "round {round}");
        assert_eq!(pair.listener.closing(last.1), Some(ClosedReason::PeerClosed));
        last = pair.another(world);
    }
}

/// Threads that open, use and close connections of their own do not disturb each other.
pub(super) fn threads_open_and_close_at_once(world: &World) {
    const THREADS: usize = 4;
    const EACH: usize = 25;
    let pair = shared_pair(world, Setup::default());
    let states: Arc<Mutex<HashSet<Endpoint>>> = Arc::default();
    let established = states.clone();
    pair.dialer.on(Kind::Established, move |call| {
        established.lock().insert(call.endpoint);
    });
    let finished = Arc::new(AtomicUsize::new(0));
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let (backend, address, states, finished) = (pair.dialer.shared(), pair.address, states.clone(), finished.clone());
            let remote = world.ev().remote();
            thread::spawn(move || {
                for _ in 0..EACH {
                    let out = backend.connect(&address, &ConnectionParameters::default()).expect("it can be started");
                    let opened = Instant::now();
                    while !states.lock().contains(&out) {
                        assert!(opened.elapsed() < wait(), "not established in time");
                        thread::yield_now();
                    }
                    assert_eq!(backend.send_copy(out, b"hello", b"", 0), Ok(NetioStatus::Ok));
                    backend.close(out).expect("it is there");
                }
                finished.fetch_add(1, Ordering::SeqCst);
                remote.wake();
            })
        })
        .collect();
    world.until("all are done", || finished.load(Ordering::SeqCst) == THREADS);
    threads.into_iter().for_each(|thread| thread.join().expect("the calls succeed"));
    world.until("all are closed", || pair.dialer.backend().connections().len() == 1 && pair.listener.backend().connections().len() == 1);
    let received: usize = pair.listener.accepted_peers().iter().map(|peer| pair.listener.received(peer.endpoint)).sum();
    assert_eq!(received, THREADS * EACH);
}

/// The backend may be dropped on another thread while the loop runs: no callback follows, and the peer sees the loss.
pub(super) fn dropping_on_another_thread_is_a_drop(world: &World) {
    for round in 0..10 {
        let pair = shared_pair(world, Setup::default());
        let (bytes, released) = super::sending::tracked(200_000);
        let backend = pair.dialer.give_away();
        assert_eq!(backend.send(pair.out, &bytes, b"", 1), Ok(NetioStatus::Ok));
        drop(bytes);
        let dropper = thread::spawn(move || {
            (0..round).for_each(|_| thread::yield_now());
            drop(backend);
        });
        // The end of the thread wakes no loop, so it is not waited for here.
        world.until("the peer sees the loss", || pair.listener.closing(pair.back).is_some());
        dropper.join().expect("dropping does not panic");
        // What the loop had taken over already goes when the loop learns of the end.
        world.until("the memory is given up", || released.load(Ordering::SeqCst));
        let callbacks = pair.dialer.callbacks();
        world.within(Duration::from_millis(10), || false);
        assert_eq!(pair.dialer.callbacks(), callbacks);
        assert_eq!(pair.listener.closing(pair.back), Some(ClosedReason::PeerLost));
    }
}

/// Once another thread drops the backend no message is delivered, those read already included.
pub(super) fn nothing_read_already_follows_a_drop_on_another_thread(world: &World) {
    let pair = shared_pair(world, Setup::default());
    let dropper = Rc::new(Cell::new(None));
    let started = dropper.clone();
    pair.dialer.on(Kind::Data, move |call| {
        if call.node.received(call.endpoint) == 3 {
            let backend = call.node.give_away();
            // It waits for this very callback.
            started.set(Some(thread::spawn(move || drop(backend))));
            let deadline = Instant::now() + wait();
            while !call.backend.connections().is_empty() {
                assert!(Instant::now() < deadline, "the other thread does not drop the backend");
                thread::yield_now();
            }
            call.node.expect_silence();
        }
    });
    (0..20).for_each(|i| pair.listener.sent(pair.back, Plan::copy(i * 10)));
    world.until("the peer sees the end", || pair.listener.closing(pair.back).is_some());
    dropper.take().expect("the third message came").join().expect("dropping does not panic");
    assert_eq!(pair.dialer.received(pair.out), 3);
}

/// After the loop is dropped, calls from any thread fail and never block.
pub(super) fn calls_after_the_loop_is_gone_fail(world: &World) {
    let far = world.another_loop();
    let dialer = far.synchronized("dialer", config());
    let listener = far.node("listener", config());
    let pair = Pair::of(&far, dialer, listener, Setup::default());
    let backend = pair.dialer.shared();
    pair.dialer.expect_silence();
    far.drop_loop();
    let (out, address) = (pair.out, pair.address);
    let caller = thread::spawn(move || {
        super::inside::assert_unknown(&*backend, out);
        assert!(backend.connect(&address, &ConnectionParameters::default()).is_err());
        assert!(backend.register(&MemoryRegion::new(4_096).expect("memory")).is_err());
        backend.shutdown(Duration::ZERO);
    });
    caller.join().expect("the calls fail and return");
}

/// Sends that race with the end of their connection are all accounted for: completed, or pending in *closed*.
pub(super) fn sends_racing_with_the_end_are_accounted_for(world: &World) {
    for round in 0..10 {
        let mut setup = Setup::default();
        setup.dial.queue_messages = 1_000;
        let pair = shared_pair(world, setup);
        let accepted = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (backend, out, accepted) = (pair.dialer.shared(), pair.out, accepted.clone());
                thread::spawn(move || {
                    let started = Instant::now();
                    while let Ok(status) = backend.send_copy(out, b"is it counted?", b"", 7) {
                        match status {
                            NetioStatus::Ok => {
                                accepted.fetch_add(1, Ordering::SeqCst);
                            }
                            NetioStatus::NoResources | NetioStatus::NotConnected => {
                                assert!(started.elapsed() < wait(), "not closed in time");
                                thread::yield_now();
                            }
                            status => panic!("{status:?}"),
                        }
                    }
                })
            })
            .collect();
        world.until("some arrive", || pair.listener.received(pair.back) > round * 50);
        match round % 3 {
            0 => pair.dialer.close(pair.out),
            1 => pair.dialer.abort(pair.out),
            _ => pair.listener.drop_backend(),
        }
        world.until("closed", || pair.dialer.closing(pair.out).is_some());
        threads.into_iter().for_each(|thread| thread.join().expect("the sends are refused in the end"));
        let tally = pair.dialer.tally(pair.out);
        assert_eq!(tally.completed + tally.pending(), accepted.load(Ordering::SeqCst), "round {round}");
    }
}
