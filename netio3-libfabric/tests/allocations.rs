//! No message costs an allocation, whichever way it is sent. Skipped, saying so, where libfabric is absent;
//! `NETIO3_REQUIRE_LIBFABRIC=1` makes that a failure.

// A global allocator can only be unsafe.
#![allow(unsafe_code)]

mod util;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::IoSlice;
use std::rc::Rc;

use bytes::Bytes;
use netio3_core::{
    Buffers, Callbacks, Completion, ConnectionInfo, ConnectionParameters, ConnectionParametersRecv, EndPointAddress, Endpoint, Message,
    NetioStatus, NetworkBackend, NetworkConfig, RawSlice,
};
use netio3_evloop::EpollEventLoop;
use util::{config, is_here, until};

/// The system's allocator, counting what each thread does. What libfabric allocates for itself is not counted.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    /// Set to have the next one printed, which shows who asks for it.
    static SHOWN: Cell<bool> = const { Cell::new(false) };
}

fn count() {
    // Neither needs memory nor has a destructor, so that both may be used at any time.
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
    if SHOWN.replace(false) {
        eprintln!("an allocation by\n{}", std::backtrace::Backtrace::force_capture());
    }
}

// SAFETY: everything is done by the system's allocator, which upholds the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(memory, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Callbacks that count and keep nothing.
#[derive(Clone, Default)]
struct Tally(Rc<Counts>);

#[derive(Default)]
struct Counts {
    established: Cell<Option<Endpoint>>,
    received: Cell<usize>,
    bytes: Cell<usize>,
    completed: Cell<usize>,
}

impl Callbacks for Tally {
    fn on_connection_established(&mut self, _: &dyn NetworkBackend, connection: &ConnectionInfo) {
        self.0.established.set(Some(connection.endpoint));
    }

    fn on_data(&mut self, _: &dyn NetworkBackend, _: Endpoint, _: &EndPointAddress, message: Message<'_>) {
        self.0.received.set(self.0.received.get() + 1);
        self.0.bytes.set(self.0.bytes.get() + message.len());
    }

    fn on_send_completed(&mut self, _: &dyn NetworkBackend, _: Endpoint, _: &EndPointAddress, completions: &[Completion]) {
        self.0.completed.set(self.0.completed.get() + completions.len());
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
    fn new(params: &ConnectionParameters) -> Self {
        let ev = EpollEventLoop::new().expect("descriptors are left");
        let (sent, got) = (Tally::default(), Tally::default());
        // With heartbeats, as by default.
        let config = NetworkConfig { heartbeat_interval: NetworkConfig::default().heartbeat_interval, ..config() };
        let create = |tally: &Tally| netio3_libfabric::create_local(config.clone(), Box::new(tally.clone()), &ev);
        let sender = create(&sent).expect("libfabric is there");
        let receiver = create(&got).expect("libfabric is there");
        let listen = ConnectionParametersRecv::default();
        let address = receiver.open_listen_endpoint(&EndPointAddress::localhost(0), &listen).expect("a port is free");
        let to = sender.open_send_endpoint(&address, params).expect("a connection is started");
        until(&ev, &[], "established", || sent.0.established.get().is_some() && got.0.established.get().is_some());
        Self { ev, sender, receiver, to, sent, got }
    }

    /// Sends so many messages in one turn and waits until they have arrived and come back.
    fn round(&self, count: usize, send: &mut impl FnMut(&dyn NetworkBackend, Endpoint) -> bool) {
        let target = self.got.0.received.get() + count;
        (0..count).for_each(|_| assert!(send(&*self.sender, self.to), "accepted"));
        until(&self.ev, &[], "arrived", || self.got.0.received.get() == target && self.sent.0.completed.get() == target);
    }
}

fn accepted(result: Result<NetioStatus, netio3_core::SendError>) -> bool {
    result == Ok(NetioStatus::Ok)
}

/// Rounds without an allocation that are asked for.
const ROUNDS: usize = 25;

/// After a warm-up of unknown length, in which queues grow to what is needed, so many rounds allocate nothing.
#[track_caller]
fn expect_no_allocation(what: &str, pair: &Pair, count: usize, mut send: impl FnMut(&dyn NetworkBackend, Endpoint) -> bool) {
    let mut runs = Vec::with_capacity(40);
    for _ in 0..40 {
        let before = ALLOCATIONS.get();
        (0..ROUNDS).for_each(|_| pair.round(count, &mut send));
        let allocations = ALLOCATIONS.get() - before;
        if allocations == 0 {
            return;
        }
        runs.push(allocations);
    }
    SHOWN.set(true);
    (0..ROUNDS).for_each(|_| pair.round(count, &mut send));
    SHOWN.set(false);
    panic!("{what}: runs of {} messages went on allocating: {runs:?}", ROUNDS * count);
}

fn check(len: usize) {
    if !is_here() {
        return;
    }
    let params = ConnectionParameters { buffers: Some(Buffers { size: len, count: 64 }), queue_bytes: 1 << 30, ..Default::default() };
    let pair = Pair::new(&params);
    let count = ((4 << 20) / len).clamp(2, 32);
    let data = Bytes::from(vec![7; len]);
    let pieces = [data.slice(..len / 2), data.slice(len / 2..)];
    let header = [1; 16];
    expect_no_allocation("zero-copy", &pair, count, |backend, to| accepted(backend.send(to, &data, &header, 1)));
    expect_no_allocation("iov", &pair, count, |backend, to| accepted(backend.send_iov(to, &pieces, &header, 1)));
    expect_no_allocation("raw", &pair, count, |backend, to| {
        let raw = [RawSlice::new(pieces[0].as_ptr(), len / 2), RawSlice::new(pieces[1].as_ptr(), len - len / 2)];
        // SAFETY: the memory lives as long as the backend.
        accepted(unsafe { backend.send_raw_iov(to, &raw, &header, 1) })
    });
    expect_no_allocation("copy", &pair, count, |backend, to| accepted(backend.send_copy(to, &data, &header, 1)));
    expect_no_allocation("copy iov", &pair, count, |backend, to| {
        accepted(backend.send_copy_iov(to, &[IoSlice::new(&pieces[0]), IoSlice::new(&pieces[1])], &header, 1))
    });
    expect_no_allocation("buffered", &pair, count, |backend, to| {
        let mut buffer = backend.take_buffer(to).expect("there are buffers").expect("one is free");
        buffer.extend_from_slice(&data).expect("it fits");
        backend.send_taken(to, buffer).is_ok()
    });
    let received = pair.got.0.received.get() as u64;
    assert_eq!(pair.receiver.totals().messages_received.get(), received);
}

#[test]
fn a_message_of_64_bytes_costs_no_allocation() {
    check(64);
}

#[test]
fn a_message_of_4_kib_costs_no_allocation() {
    check(4 << 10);
}

#[test]
fn a_message_of_64_kib_costs_no_allocation() {
    check(64 << 10);
}

/// In seventeen packets each.
#[test]
fn a_message_of_1_mib_costs_no_allocation() {
    check(1 << 20);
}
