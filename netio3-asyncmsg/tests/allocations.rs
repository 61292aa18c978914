//! What messages and idle connections cost: allocations, system calls, memory, wake-ups.

// A global allocator can only be unsafe.
#![allow(unsafe_code)]

mod util;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use netio3_core::{
    Buffers, Callbacks, Completion, ConnectionInfo, ConnectionParameters, ConnectionParametersRecv, CopiedMessage, CreateError,
    EndPointAddress, Endpoint, EventLoop, Message, NetioStatus, NetworkBackend, NetworkConfig,
};
use netio3_evloop::EpollEventLoop;
use util::{Node, config, until};

/// The system's allocator, counting what each thread does.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static HELD: Cell<i64> = const { Cell::new(0) };
}

fn count(allocations: u64, bytes: i64) {
    // Neither needs memory nor has a destructor, so that both may be used at any time.
    ALLOCATIONS.set(ALLOCATIONS.get() + allocations);
    HELD.set(HELD.get() + bytes);
}

// SAFETY: everything is done by the system's allocator, which upholds the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size() as i64);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size() as i64);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(0, -(layout.size() as i64));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(1, new_size as i64 - layout.size() as i64);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(memory, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Callbacks that count and keep nothing.
#[derive(Clone, Default)]
struct Tally(Arc<Counts>);

#[derive(Default)]
struct Counts {
    established: AtomicBool,
    received: AtomicUsize,
    completed: AtomicUsize,
}

impl Tally {
    fn established(&self) -> bool {
        self.0.established.load(Ordering::Relaxed)
    }

    fn received(&self) -> usize {
        self.0.received.load(Ordering::Relaxed)
    }

    fn completed(&self) -> usize {
        self.0.completed.load(Ordering::Relaxed)
    }
}

impl Callbacks for Tally {
    fn on_connection_established(&mut self, _: &dyn NetworkBackend, _: &ConnectionInfo) {
        self.0.established.store(true, Ordering::Relaxed);
    }

    fn on_data(&mut self, _: &dyn NetworkBackend, _: Endpoint, _: &EndPointAddress, _: Message<'_>) {
        self.0.received.fetch_add(1, Ordering::Relaxed);
    }

    fn on_send_completed(&mut self, _: &dyn NetworkBackend, _: Endpoint, _: &EndPointAddress, completions: &[Completion]) {
        self.0.completed.fetch_add(completions.len(), Ordering::Relaxed);
    }
}

struct Pair {
    ev: EpollEventLoop,
    sender: Box<dyn NetworkBackend>,
    receiver: Box<dyn NetworkBackend>,
    to: Endpoint,
    sent: Tally,
    got: Tally,
}

impl Pair {
    /// Both backends for the loop's thread alone.
    fn new(params: &ConnectionParameters) -> Self {
        Self::with(params, |ev, tally| netio3_asyncmsg::create_local(NetworkConfig::default(), Box::new(tally), ev))
    }

    /// The sender made like this.
    fn with(
        params: &ConnectionParameters,
        create: impl FnOnce(&EpollEventLoop, Tally) -> Result<Box<dyn NetworkBackend>, CreateError>,
    ) -> Self {
        let ev = EpollEventLoop::new().expect("descriptors are left");
        let (sent, got) = (Tally::default(), Tally::default());
        // With heartbeats, as by default.
        let sender = create(&ev, sent.clone()).expect("the configuration is valid");
        let receiver =
            netio3_asyncmsg::create_local(NetworkConfig::default(), Box::new(got.clone()), &ev).expect("the configuration is valid");
        let listen = ConnectionParametersRecv::default();
        let address = receiver.open_listen_endpoint(&EndPointAddress::localhost(0), &listen).expect("a port is free");
        let to = sender.open_send_endpoint(&address, params).expect("a connection is started");
        until(&ev, "established", || sent.established() && got.established());
        Self { ev, sender, receiver, to, sent, got }
    }

    /// Sends so many messages in one turn and waits until they have arrived and come back.
    fn round(&self, count: usize, mut send: impl FnMut(&dyn NetworkBackend, Endpoint) -> bool) {
        let target = self.got.received() + count;
        (0..count).for_each(|_| assert!(send(&*self.sender, self.to), "accepted"));
        until(&self.ev, "arrived", || self.got.received() == target && self.sent.completed() == target);
    }
}

fn accepted(result: Result<NetioStatus, netio3_core::SendError>) -> bool {
    result == Ok(NetioStatus::Ok)
}

/// After a warm-up of unknown length, in which queues grow to what is needed, 50 rounds allocate nothing.
#[track_caller]
fn expect_no_allocation(what: &str, pair: &Pair, count: usize, mut send: impl FnMut(&dyn NetworkBackend, Endpoint) -> bool) {
    let mut runs = Vec::new();
    for _ in 0..20 {
        let before = ALLOCATIONS.get();
        (0..50).for_each(|_| pair.round(count, &mut send));
        let allocations = ALLOCATIONS.get() - before;
        if allocations == 0 {
            return;
        }
        runs.push(allocations);
    }
    panic!("{what}: runs of {} messages went on allocating: {runs:?}", 50 * count);
}

#[test]
fn no_message_costs_an_allocation() {
    expect_no_allocations(usize::MAX, Pair::new);
}

/// It takes the way over the mailbox even on the loop's thread. Long copies are made in memory of their own, so that no
/// lock is held meanwhile.
#[test]
fn no_message_of_the_synchronized_kind_costs_an_allocation() {
    expect_no_allocations(64 << 10, |params| {
        Pair::with(params, |ev, tally| Ok(netio3_asyncmsg::create(NetworkConfig::default(), Box::new(tally), ev)?))
    });
}

/// In every mode, copies up to a length.
fn expect_no_allocations(longest_copy: usize, pair: impl Fn(&ConnectionParameters) -> Pair) {
    for len in [64, 1 << 10, 64 << 10, 1 << 20] {
        let params = ConnectionParameters { buffers: Some(Buffers { size: len, count: 64 }), queue_bytes: 1 << 30, ..Default::default() };
        let pair = pair(&params);
        let count = (4 << 20) / len;
        let count = count.clamp(2, 32);
        let data = Bytes::from(vec![7; len]);
        let pieces = [data.slice(..len / 2), data.slice(len / 2..)];
        let header = [1; 16];
        expect_no_allocation(&format!("zero-copy, {len} bytes"), &pair, count, |backend, to| accepted(backend.send(to, &data, &header, 1)));
        expect_no_allocation(&format!("iov, {len} bytes"), &pair, count, |backend, to| accepted(backend.send_iov(to, &pieces, &header, 1)));
        if len <= longest_copy {
            let send_copy = |backend: &dyn NetworkBackend, to| accepted(backend.send_copy(to, &data, &header, 1));
            expect_no_allocation(&format!("copy, {len} bytes"), &pair, count, send_copy);
            let message = CopiedMessage { data: &data, header: &header, key: 1 };
            expect_no_allocation(&format!("a batch of one copy, {len} bytes"), &pair, count, |backend, to| {
                backend.send_copy_batch(to, &[message]) == Ok((1, NetioStatus::Ok))
            });
            expect_no_allocation(&format!("copy iov, {len} bytes"), &pair, count, |backend, to| {
                accepted(backend.send_copy_iov(to, &[IoSlice::new(&pieces[0]), IoSlice::new(&pieces[1])], &header, 1))
            });
        }
        expect_no_allocation(&format!("buffered, {len} bytes"), &pair, count, |backend, to| {
            let mut buffer = backend.take_buffer(to).expect("there are buffers").expect("one is free");
            buffer.extend_from_slice(&data).expect("it fits");
            backend.send_taken(to, buffer).is_ok()
        });
    }
}

#[test]
fn messages_of_one_turn_share_their_system_calls() {
    let pair = Pair::new(&ConnectionParameters::default());
    let data = [7; 64];
    let calls = |backend: &dyn NetworkBackend| (backend.totals().writes.get(), backend.totals().reads.get());
    let ((writes, _), (_, reads)) = (calls(&*pair.sender), calls(&*pair.receiver));
    pair.round(10_000, |backend, to| accepted(backend.send_copy(to, &data, &[], 1)));
    let writes = calls(&*pair.sender).0 - writes;
    let reads = calls(&*pair.receiver).1 - reads;
    println!("10,000 messages of 64 bytes: {writes} writes, {reads} reads");
    // 720,000 bytes; each write takes 60 KiB, more where the socket was full meanwhile.
    assert!(writes <= 30, "{writes} writes");
    assert!(reads <= 30, "{reads} reads");
}

#[test]
fn a_queue_of_many_messages_is_flushed_before_the_turn_ends() {
    let pair = Pair::new(&ConnectionParameters { flush_messages: Some(10), ..Default::default() });
    let writes = || pair.sender.totals().writes.get();
    let before = writes();
    let send = || assert!(accepted(pair.sender.send_copy(pair.to, &[7; 8], &[], 1)));
    (0..9).for_each(|_| send());
    assert_eq!(writes(), before);
    (9..44).for_each(|_| send());
    assert_eq!(writes(), before + 4);
}

#[test]
fn a_queue_of_many_bytes_is_flushed_in_full_writes_and_the_rest_of_it_when_the_turn_ends() {
    let params = ConnectionParameters { send_buffer: Some(1 << 20), ..Default::default() };
    let pair = Pair::new(&params);
    let (writes, before) = (|| pair.sender.totals().writes.get(), pair.sender.totals().writes.get());
    let left = || pair.sender.totals().messages_sent.get();
    // 31 and a quarter of such frames make a write.
    let data = Bytes::from(vec![7; 4_000]);
    let send = || assert!(accepted(pair.sender.send_copy(pair.to, &data, &[], 1)));
    (0..31).for_each(|_| send());
    assert_eq!((writes(), left()), (before, 0));
    (31..60).for_each(|_| send());
    assert_eq!((writes(), left()), (before + 1, 31), "the 32nd is cut, and the others wait for more or for the end of the turn");
    until(&pair.ev, "the rest has left", || left() == 60);
    assert_eq!(writes(), before + 2);

    // Of memory that is not copied eight times as much.
    let pair = Pair::new(&params);
    let (writes, before) = (|| pair.sender.totals().writes.get(), pair.sender.totals().writes.get());
    let send = || assert!(accepted(pair.sender.send(pair.to, &data, &[], 1)));
    (0..250).for_each(|_| send());
    assert_eq!(writes(), before);
    send();
    assert_eq!(writes(), before + 1);
    until(&pair.ev, "the rest has left", || pair.sender.totals().messages_sent.get() == 251);

    // Asked for less than a write's worth, everything leaves at once.
    let pair = Pair::new(&ConnectionParameters { flush_at: 10_000, ..params });
    let send = || assert!(accepted(pair.sender.send_copy(pair.to, &data, &[], 1)));
    (0..3).for_each(|_| send());
    assert_eq!(pair.sender.totals().messages_sent.get(), 3);
}

#[test]
fn an_idle_connection_costs_little_memory_and_no_time() {
    const CONNECTIONS: usize = 200;
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let server = util::node_with(&ev, config());
    let address = server.listen();
    let client = util::node_with(&ev, config());
    // The first one pays for what all share.
    let open = |count: usize| {
        let known = client.established().len();
        for _ in 0..count {
            _ = client.backend.connect(&address, &ConnectionParameters::default()).expect("a connection is started");
        }
        until(&ev, "established", || client.established().len() == known + count && server.established().len() == known + count);
    };
    let talk = |from: usize| {
        let data = vec![7; 300_000];
        for (out, back) in client.established()[from..].iter().zip(&server.established()[from..]) {
            client.send(*out, &data, 1);
            client.send(*out, &[1; 64], 2);
            server.send(*back, &data, 1);
        }
        until(&ev, "arrived", || {
            let received = |node: &Node| node.backend.totals().messages_received.get() as usize;
            received(&server) == 2 * client.established().len() && received(&client) == client.established().len()
        });
        client.forget();
        server.forget();
    };
    open(1);
    talk(0);
    let assembling = || server.backend.totals().assembly_bytes.get() + client.backend.totals().assembly_bytes.get();
    until(&ev, "the first one's memory is given back", || assembling() == 0);
    let before = HELD.get();
    open(CONNECTIONS);
    talk(1);
    // Until memory was given back.
    let own = || (HELD.get() - before) / (2 * CONNECTIONS as i64);
    let peak = own();
    until(&ev, "the memory is given back", || assembling() == 0 && own() <= 16 << 10);
    // What else is due to be done for the idle.
    ev.run_for(Duration::from_millis(2_500)).expect("the loop can wait");
    println!("an idle connection holds {} bytes, {peak} when it was used", own());
    assert!(own() <= 16 << 10);
    let wakeups = ev.counters().wakeups.get();
    ev.run_for(Duration::from_millis(300)).expect("the loop can wait");
    let wakeups = ev.counters().wakeups.get() - wakeups;
    assert!(wakeups <= 1, "{wakeups} wake-ups of an idle loop");
}
