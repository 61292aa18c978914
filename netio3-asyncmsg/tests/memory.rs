//! What happens when the system has no memory to give.

// A global allocator can only be unsafe.
#![allow(unsafe_code)]

mod util;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use netio3_evloop::EpollEventLoop;

use crate::util::{Bare, hello, message, node, until};

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

#[global_allocator]
static ALLOCATOR: Limited = Limited;

/// The memory that all connections read into is asked for when the first peer says something: where there is none, that peer is
/// turned away, and the program goes on.
#[test]
fn a_peer_for_whom_there_is_no_memory_to_read_into_is_dropped() {
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let node = node(&ev);
    let address = node.listen();
    LIMIT.store(256 << 10, Ordering::Relaxed);
    let mut early = Bare::connect(address);
    early.write(&hello());
    until(&ev, "the peer is dropped", || node.backend.totals().failed_hello.get() == 1);
    LIMIT.store(usize::MAX, Ordering::Relaxed);
    let (mut peer, from) = Bare::greeted(&ev, &node, address);
    peer.write(&message(b"abc"));
    until(&ev, "what a later one sends arrives", || node.received(from) == [b"abc"]);
}
