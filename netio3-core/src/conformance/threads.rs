//! The synchronized kind: sending from several threads at once.

use std::cell::RefCell;
use std::collections::HashSet;
use std::io::IoSlice;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use super::journal::What;
use super::node::Node;
use super::pair::{Pair, Setup};
use super::recorder::Kind;
use super::world::{World, config, wait};
use crate::backend::{CopiedMessage, NetworkBackend};
use crate::endpoint::Endpoint;
use crate::status::NetioStatus;

type Shared = Arc<dyn NetworkBackend + Send + Sync>;

/// A synchronized dialer and a listener of the kind under test, whose messages the cases count themselves.
pub(super) fn shared_pair(world: &World, setup: Setup) -> Pair {
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
                assert!(!self.changed.wait_for(&mut times, wait()).timed_out(), "no writable after a refusal");
            }
        }
    }
}

/// A message that names its thread and its number there.
pub(super) fn numbered(thread: usize, number: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![thread as u8 ^ number as u8; len.max(8)];
    bytes[..4].copy_from_slice(&(thread as u32).to_le_bytes());
    bytes[4..8].copy_from_slice(&(number as u32).to_le_bytes());
    bytes
}

fn read_numbers(bytes: &[u8]) -> (usize, usize) {
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize;
    (word(0), word(4))
}

/// Has the listener check that each thread's messages come in order and whole; counts them.
fn expect_order<const THREADS: usize>(pair: &Pair) -> Rc<RefCell<[usize; THREADS]>> {
    let next = Rc::new(RefCell::new([0; THREADS]));
    let expected = next.clone();
    pair.listener.on(Kind::Data, move |call| {
        call.with_message(|bytes| {
            let (thread, number) = read_numbers(bytes);
            assert_eq!(number, expected.borrow()[thread], "out of order from thread {thread}");
            assert!(bytes[8..].iter().all(|byte| *byte == thread as u8 ^ number as u8), "corrupted");
            expected.borrow_mut()[thread] += 1;
        });
    });
    next
}

/// Four threads send at once by all families: each thread's order is kept, nothing is lost, each key comes back once.
pub(super) fn four_threads_send_at_once(world: &World) {
    const EACH: usize = 3_000;
    let mut setup = Setup::buffers(1_000, 16);
    setup.dial.queue_messages = 128;
    let pair = shared_pair(world, setup);
    let room = Room::told_by(&pair.dialer);
    let next = expect_order::<4>(&pair);
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

/// Threads send in batches of any size, into a queue that is often full: each thread's order is kept, and what is not
/// accepted is the thread's.
pub(super) fn batches_of_several_threads_keep_their_order(world: &World) {
    const EACH: usize = 4_000;
    const THREADS: usize = 3;
    let pair = shared_pair(world, Setup::queue(300));
    let room = Room::told_by(&pair.dialer);
    let next = expect_order::<THREADS>(&pair);
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let (backend, room, out) = (pair.dialer.shared(), room.clone(), pair.out);
            thread::spawn(move || {
                let mut number = 0;
                while number < EACH {
                    let batch: Vec<_> =
                        (number..EACH.min(number + 1 + number % 90)).map(|at| numbered(thread, at, at * 31 % 700)).collect();
                    let message = |bytes| CopiedMessage { data: bytes, ..Default::default() };
                    let messages: Vec<_> = batch.iter().map(|bytes| message(&bytes[..])).collect();
                    let mut left = &messages[..];
                    let status = room.retry(|| {
                        let (accepted, status) = backend.send_copy_batch(out, left).expect("it is there");
                        left = &left[accepted..];
                        status
                    });
                    assert_eq!((status, left.len()), (NetioStatus::Ok, 0));
                    number += messages.len();
                }
            })
        })
        .collect();
    world.until("all arrive", || next.borrow().iter().all(|next| *next == EACH));
    threads.into_iter().for_each(|thread| thread.join().expect("the thread sends all"));
    world.until("all keys come back", || pair.dialer.completed(pair.out) == THREADS * EACH);
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
            arrived.recv_timeout(wait()).expect("the message arrives before the next is sent");
        }
    });
    world.until("all arrive, one by one", || pair.listener.received(pair.back) == TIMES);
    sender.join().expect("the thread sends all");
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
    let arrive = world.within(wait(), || pair.listener.received(pair.back) == MESSAGES);
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
