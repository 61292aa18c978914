//! What happens when the system has no memory to give.

// A global allocator can only be unsafe.
#![allow(unsafe_code)]

mod util;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use netio3_core::{ClosedReason, ConnectionParametersRecv, EndPointAddress, Handlers};
use netio3_evloop::EpollEventLoop;

use crate::util::{Bare, config, hello, message, node, until};

/// Gives no piece of so many bytes or more.
struct Limited;

static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

fn is_too_much(bytes: usize) -> bool {
    bytes >= LIMIT.load(Ordering::Relaxed)
}

// SAFETY: all is left to the system's allocator, or refused.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller has promised.
        if is_too_much(layout.size()) { std::ptr::null_mut() } else { unsafe { System.alloc(layout) } }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller has promised.
        if is_too_much(layout.size()) { std::ptr::null_mut() } else { unsafe { System.alloc_zeroed(layout) } }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller has promised.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: as the caller has promised.
        if is_too_much(new_size) { std::ptr::null_mut() } else { unsafe { System.realloc(memory, layout, new_size) } }
    }
}

/// One test at a time: what is limited is the process.
struct Alone(#[expect(dead_code, reason = "kept")] MutexGuard<'static, ()>);

impl Alone {
    fn new() -> Self {
        static ONE: Mutex<()> = Mutex::new(());
        Self(ONE.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn limit(&self, bytes: usize) {
        LIMIT.store(bytes, Ordering::Relaxed);
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        self.limit(usize::MAX);
    }
}

#[global_allocator]
static ALLOCATOR: Limited = Limited;

/// The memory that all connections read into is asked for when the first peer says something: where there is none, that peer is
/// turned away, and the program goes on.
#[test]
fn a_peer_for_whom_there_is_no_memory_to_read_into_is_dropped() {
    let alone = Alone::new();
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let node = node(&ev);
    let address = node.listen();
    alone.limit(256 << 10);
    let mut early = Bare::connect(address);
    early.write(&hello());
    until(&ev, "the peer is dropped", || node.backend.totals().failed_hello.get() == 1);
    alone.limit(usize::MAX);
    let (mut peer, from) = Bare::greeted(&ev, &node, address);
    peer.write(&message(b"abc"));
    until(&ev, "what a later one sends arrives", || node.received(from) == [b"abc"]);
}

/// What it has read of a connection that is paused meanwhile is kept, in memory of its own.
#[test]
fn a_paused_peer_for_whose_bytes_there_is_no_memory_is_closed() {
    let alone = Alone::new();
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let closed = Rc::new(Cell::new(None));
    let end = closed.clone();
    let callbacks = Handlers::new()
        .on_data(|backend, from, _, _| backend.pause(from).expect("it is connected"))
        .on_connection_closed(move |_, _, _, _, reason| end.set(Some(reason)));
    let backend = netio3_asyncmsg::create_local(config(), Box::new(callbacks), &ev).expect("the configuration is valid");
    let address =
        backend.open_listen_endpoint(&EndPointAddress::localhost(0), &ConnectionParametersRecv::default()).expect("a port is left");
    let mut peer = Bare::connect(address);
    peer.write(&hello());
    until(&ev, "it is established", || backend.totals().established.get() == 1);
    peer.write(&message(&[1; 1_000]).repeat(400));
    alone.limit(16 << 10);
    until(&ev, "it ends", || closed.get().is_some());
    assert_eq!(closed.get(), Some(ClosedReason::Limit));
}
