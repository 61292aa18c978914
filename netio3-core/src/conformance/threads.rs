//! The synchronized kind: calls from several threads at once.

use std::cell::RefCell;
use std::collections::HashSet;
use std::io::IoSlice;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use super::journal::What;
use super::node::Node;
use super::pair::{Pair, Setup};
use super::recorder::Kind;
use super::world::{WAIT, World, config};
use crate::backend::NetworkBackend;
use crate::config::{ConnectionParameters, ConnectionParametersRecv};
use crate::endpoint::Endpoint;
use crate::memory::MemoryRegion;
use crate::status::{ClosedReason, NetioStatus, RefusedReason};

type Shared = Arc<dyn NetworkBackend + Send + Sync>;

/// A synchronized dialer and a listener of the kind under test, whose messages the cases count themselves.
fn shared_pair(world: &World, setup: Setup) -> Pair {
    let listener = world.node("listener", setup.listener.clone());
    let dialer = world.synchronized("dialer", setup.dialer.clone());
    [&dialer, &listener].into_iter().for_each(Node::counts_itself);
    Pair::of(world, dialer, listener, setup)
}

/// Wakes threads that wait for a queue to have room.
#[derive(Default)]
struct Room {
    times: Mutex<usize>,
    changed: Condvar,
}

impl Room {
    fn told_by(node: &Node) -> Arc<Self> {
        let room = Arc::new(Self::default());
        let tell = room.clone();
        node.on(Kind::Writable, move |_| {
            *tell.times.lock() += 1;
            tell.changed.notify_all();
        });
        room
    }

    /// Calls `send` until it is not refused for want of room, waiting for room in between.
    fn retry(&self, mut send: impl FnMut() -> NetioStatus) -> NetioStatus {
        loop {
            let before = *self.times.lock();
            let status = send();
            if status != NetioStatus::NoResources {
                return status;
            }
            let mut times = self.times.lock();
            while *times == before {
                assert!(!self.changed.wait_for(&mut times, WAIT).timed_out(), "no writable after a refusal");
            }
        }
    }
}

/// A message that names its thread and its number there.
fn numbered(thread: usize, number: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![thread as u8 ^ number as u8; len.max(8)];
    bytes[..4].copy_from_slice(&(thread as u32).to_le_bytes());
    bytes[4..8].copy_from_slice(&(number as u32).to_le_bytes());
    bytes
}

fn read_numbers(bytes: &[u8]) -> (usize, usize) {
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize;
    (word(0), word(4))
}

/// Four threads send at once by all families: each thread's order is kept, nothing is lost, each key comes back once.
pub(super) fn four_threads_send_at_once(world: &World) {
    const EACH: usize = 3_000;
    let mut setup = Setup::buffers(1_000, 16);
    setup.dial.queue_messages = 128;
    let pair = shared_pair(world, setup);
    let room = Room::told_by(&pair.dialer);
    let next = Rc::new(RefCell::new([0; 4]));
    let expected = next.clone();
    pair.listener.on(Kind::Data, move |call| {
        call.with_message(|bytes| {
            let (thread, number) = read_numbers(bytes);
            assert_eq!(number, expected.borrow()[thread], "out of order from thread {thread}");
            assert!(bytes[8..].iter().all(|byte| *byte == thread as u8 ^ number as u8), "corrupted");
            expected.borrow_mut()[thread] += 1;
        });
    });
    let keys = Rc::new(RefCell::new(HashSet::new()));
    let seen = keys.clone();
    pair.dialer.on(Kind::Completed, move |call| {
        let What::Completed(completions) = call.what else { return };
        for completion in completions.iter().filter(|completion| completion.kind != crate::CompletionKind::Buffer) {
            assert!(seen.borrow_mut().insert(completion.key), "{completion:?} twice");
        }
    });
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let (backend, room, out) = (pair.dialer.shared(), room.clone(), pair.out);
            thread::spawn(move || {
                for number in 0..EACH {
                    let bytes = numbered(thread, number, number % 3_000);
                    let key = (thread * EACH + number) as u64;
                    let status = room.retry(|| send_by(&backend, out, number % 3, &bytes, key));
                    assert_eq!(status, NetioStatus::Ok);
                }
            })
        })
        .collect();
    world.until("all arrive", || next.borrow().iter().all(|next| *next == EACH));
    threads.into_iter().for_each(|thread| thread.join().expect("the thread sends all"));
    world.until("all keys come back", || pair.dialer.completed(pair.out) == 4 * EACH);
    // Of each thread's messages, a third goes by buffers where they fit, under the buffers' ids.
    let by_buffer = (0..EACH).filter(|number| number % 3 == 2 && (number % 3_000).max(8) <= 1_000).count();
    assert_eq!(keys.borrow().len(), 4 * (EACH - by_buffer));
}

fn send_by(backend: &Shared, to: Endpoint, family: usize, bytes: &[u8], key: u64) -> NetioStatus {
    match family {
        0 => backend.send(to, &Bytes::copy_from_slice(bytes), b"", key).expect("it is there"),
        1 => backend.send_copy_iov(to, &[IoSlice::new(&bytes[..4]), IoSlice::new(&bytes[4..])], b"", key).expect("it is there"),
        _ if bytes.len() > 1_000 => backend.send_copy(to, &bytes[8..], &bytes[..8], key).expect("it is there"),
        _ => {
            let Some(mut buffer) = backend.take_buffer(to).expect("it has buffers") else { return NetioStatus::NoResources };
            buffer.extend_from_slice(bytes).expect("it fits");
            match backend.send_taken(to, buffer) {
                Ok(()) => NetioStatus::Ok,
                Err(unsent) => unsent.outcome.expect("it is there"),
            }
        }
    }
}

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
    let outcome = finished.recv_timeout(WAIT);
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

/// A call from another thread wakes a sleeping loop, each time.
pub(super) fn a_call_wakes_the_sleeping_loop(world: &World) {
    const TIMES: usize = 300;
    let pair = shared_pair(world, Setup::default());
    let (told, arrived) = mpsc::channel();
    pair.listener.on(Kind::Data, move |_| told.send(()).expect("the sender waits"));
    let (backend, out) = (pair.dialer.shared(), pair.out);
    let sender = thread::spawn(move || {
        for _ in 0..TIMES {
            assert_eq!(backend.send_copy(out, b"wake up", b"", 0), Ok(NetioStatus::Ok));
            arrived.recv_timeout(WAIT).expect("the message arrives before the next is sent");
        }
    });
    world.until("all arrive, one by one", || pair.listener.received(pair.back) == TIMES);
    sender.join().expect("the thread sends all");
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
                    while !states.lock().contains(&out) {
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

/// Pausing and resuming from other threads loses nothing.
pub(super) fn pausing_from_another_thread_loses_nothing(world: &World) {
    const MESSAGES: usize = 2_000;
    let listener = world.synchronized("listener", config());
    let dialer = world.node("dialer", config());
    let pair = Pair::of(world, dialer, listener, Setup::queue(64));
    let (backend, back) = (pair.listener.shared(), pair.back);
    let (stop, stopped) = mpsc::channel::<()>();
    let pauser = thread::spawn(move || {
        while stopped.try_recv().is_err() {
            backend.pause(back).expect("it is there");
            thread::yield_now();
            backend.resume(back).expect("it is there");
        }
    });
    let plan = super::plan::Plan::copy(300);
    pair.dialer.on(Kind::Writable, move |call| {
        while call.node.tally(call.endpoint).accepted < MESSAGES && call.send(call.endpoint, plan) == NetioStatus::Ok {}
    });
    while pair.dialer.send(pair.out, plan) == NetioStatus::Ok {}
    let arrive = world.within(WAIT, || pair.listener.received(pair.back) == MESSAGES);
    stop.send(()).expect("the thread waits");
    pauser.join().expect("the calls succeed");
    assert!(arrive, "not all arrived in time");
}

/// A buffer taken on one thread may be filled and sent on another.
pub(super) fn buffers_travel_between_threads(world: &World) {
    let pair = shared_pair(world, Setup::buffers(64, 4));
    let room = Room::told_by(&pair.dialer);
    let (give, take) = mpsc::channel();
    let (taker, sender) = (pair.dialer.shared(), pair.dialer.shared());
    let out = pair.out;
    let taking = thread::spawn(move || {
        for _ in 0..500 {
            let status = room.retry(|| match taker.take_buffer(out).expect("it has buffers") {
                Some(buffer) => {
                    give.send(buffer).expect("the other thread takes it");
                    NetioStatus::Ok
                }
                None => NetioStatus::NoResources,
            });
            assert_eq!(status, NetioStatus::Ok);
        }
    });
    let sending = thread::spawn(move || {
        for (i, mut buffer) in take.into_iter().enumerate() {
            if i % 5 == 4 {
                continue; // dropped unsent, here
            }
            buffer.extend_from_slice(b"travelled").expect("it fits");
            sender.send_taken(out, buffer).expect("the queue has room for all buffers");
        }
    });
    world.until("all arrive", || pair.listener.received(pair.back) == 400);
    taking.join().expect("all are taken");
    sending.join().expect("all are sent");
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
            released.load(Ordering::SeqCst)
        });
        world.until("dropped, and the peer sees the loss", || dropper.is_finished() && pair.listener.closing(pair.back).is_some());
        assert!(dropper.join().expect("dropping does not panic"), "the memory is still held after the drop");
        let callbacks = pair.dialer.callbacks();
        world.within(Duration::from_millis(10), || false);
        assert_eq!(pair.dialer.callbacks(), callbacks);
        assert_eq!(pair.listener.closing(pair.back), Some(ClosedReason::PeerLost));
    }
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

/// The synchronized kind's callbacks and sends on the loop's thread behave as those of the single-threaded kind.
pub(super) fn the_loops_thread_may_call_as_well(world: &World) {
    const ROUNDS: usize = 500;
    let dialer = world.synchronized("dialer", config());
    let listener = world.synchronized("listener", config());
    let pair = Pair::of(world, dialer, listener, Setup::default());
    for node in [&pair.dialer, &pair.listener] {
        node.on(Kind::Data, |call| {
            if call.node.received(call.endpoint) <= ROUNDS {
                assert_eq!(call.send(call.endpoint, super::plan::Plan::copy(64)), NetioStatus::Ok);
            }
        });
    }
    pair.dialer.sent(pair.out, super::plan::Plan::copy(64));
    world.until("the message goes to and fro", || pair.dialer.received(pair.out) == ROUNDS);
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
                    while let Ok(status) = backend.send_copy(out, b"is it counted?", b"", 7) {
                        match status {
                            NetioStatus::Ok => {
                                accepted.fetch_add(1, Ordering::SeqCst);
                            }
                            NetioStatus::NoResources | NetioStatus::NotConnected => thread::yield_now(),
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

/// A thread that waits for *writable* after each refusal is told exactly once each time.
pub(super) fn refusals_of_another_thread_are_answered_once(world: &World) {
    let mut setup = Setup::default();
    setup.dial.queue_messages = 16;
    let pair = shared_pair(world, setup);
    let room = Room::told_by(&pair.dialer);
    let (backend, out) = (pair.dialer.shared(), pair.out);
    let sender = thread::spawn(move || {
        let mut refusals = 0;
        for number in 0..3_000 {
            let bytes = numbered(0, number, 100);
            let status = room.retry(|| {
                let status = backend.send_copy(out, &bytes, b"", 0).expect("it is there");
                refusals += usize::from(status == NetioStatus::NoResources);
                status
            });
            assert_eq!(status, NetioStatus::Ok);
        }
        refusals
    });
    world.until("all arrive", || pair.listener.received(pair.back) == 3_000);
    let refusals = sender.join().expect("all are sent");
    world.watch();
    assert_eq!(pair.dialer.writables(pair.out), refusals);
}
