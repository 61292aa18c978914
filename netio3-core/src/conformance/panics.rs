//! Panics in callbacks and in the drop of the user's memory.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use super::inside::assert_unknown;
use super::node::Node;
use super::pair::{Pair, Setup};
use super::plan::Plan;
use super::recorder::Kind;
use super::sending::tracked_with;
use super::world::World;
use crate::config::{ConnectionParameters, ConnectionParametersRecv};
use crate::error::RegisterError;
use crate::memory::MemoryRegion;
use crate::status::{ClosedReason, NetioStatus};

/// A panic inside *established* ends that backend alone.
pub(super) fn a_panic_in_established_ends_that_backend_alone(world: &World) {
    panic_inside(world, Kind::Established);
}

/// A panic inside *refused* ends that backend alone.
pub(super) fn a_panic_in_refused_ends_that_backend_alone(world: &World) {
    panic_inside(world, Kind::Refused);
}

/// A panic inside *closed* ends that backend alone.
pub(super) fn a_panic_in_closed_ends_that_backend_alone(world: &World) {
    panic_inside(world, Kind::Closed);
}

/// A panic inside *data* ends that backend alone.
pub(super) fn a_panic_in_data_ends_that_backend_alone(world: &World) {
    panic_inside(world, Kind::Data);
}

/// A panic inside *data* of a message too large for what is read at once ends that backend alone.
pub(super) fn a_panic_in_data_of_a_large_message_ends_that_backend_alone(world: &World) {
    let bystanders = Pair::new(world);
    let pair = Pair::new(world);
    pair.dialer.once(Kind::Data, |call| {
        call.node.expect_silence();
        panic!("on purpose");
    });
    pair.listener.sent(pair.back, Plan::zero_copy(3 << 20));
    assert_eq!(world.until_panic(), "on purpose");
    the_backend_is_gone(world, &pair);
    bystanders.prove_alive(world);
}

/// A panic inside *completed* ends that backend alone.
pub(super) fn a_panic_in_completed_ends_that_backend_alone(world: &World) {
    panic_inside(world, Kind::Completed);
}

/// A panic inside *writable* ends that backend alone.
pub(super) fn a_panic_in_writable_ends_that_backend_alone(world: &World) {
    panic_inside(world, Kind::Writable);
}

fn panic_inside(world: &World, kind: Kind) {
    let bystanders = Pair::new(world);
    let pair = Pair::with(world, Setup::queue(2));
    pair.dialer.once(kind, move |call| {
        call.node.expect_silence();
        panic!("on purpose, inside {kind:?}");
    });
    match kind {
        Kind::Established => {
            pair.dialer.connect(pair.address, &ConnectionParameters::default());
        }
        Kind::Refused => {
            pair.dialer.connect(world.harness.nobody_listens(), &ConnectionParameters::default());
        }
        Kind::Closed => {
            let (_, back) = pair.another(world);
            pair.listener.close(back);
        }
        Kind::Data => pair.listener.sent(pair.back, Plan::copy(10)),
        Kind::Completed => pair.dialer.sent(pair.out, Plan::copy(10)),
        Kind::Writable => while pair.dialer.send(pair.out, Plan::copy(10)) == NetioStatus::Ok {},
    }
    assert_eq!(world.until_panic(), format!("on purpose, inside {kind:?}"));
    the_backend_is_gone(world, &pair);
    bystanders.prove_alive(world);
    pair.dialer.drop_backend();
    bystanders.prove_alive(world);
}

/// No callback, unknown handles and addresses, nothing to be opened, and the peer sees the loss.
fn the_backend_is_gone(world: &World, pair: &Pair) {
    let backend = pair.dialer.backend();
    assert_unknown(&*backend, pair.out);
    assert_eq!(backend.endpoint(&pair.address), None);
    assert!(backend.connections().is_empty() && backend.listeners().is_empty());
    assert!(backend.connect(&pair.address, &ConnectionParameters::default()).is_err());
    assert!(backend.open_send_endpoint(&pair.address, &ConnectionParameters::default()).is_err());
    assert!(backend.open_listen_endpoint(&world.harness.listen_address(), &ConnectionParametersRecv::default()).is_err());
    assert!(backend.close_listen_endpoint(&pair.address).is_err());
    let region = MemoryRegion::new(4_096).expect("memory");
    assert!(matches!(backend.register(&region), Err(RegisterError::BackendGone)));
    backend.totals().snapshot();
    backend.shutdown(std::time::Duration::ZERO);
    drop(backend);
    world.until("the peer sees the loss", || pair.listener.closing(pair.back).is_some());
    assert_eq!(pair.listener.closing(pair.back), Some(ClosedReason::PeerLost));
    world.watch();
}

/// A panic in the drop of the user's memory has the same effect as one in a callback.
pub(super) fn a_panic_in_the_drop_of_memory_ends_that_backend_alone(world: &World) {
    let bystanders = Pair::new(world);
    let pair = Pair::new(world);
    [&pair.dialer, &pair.listener].into_iter().for_each(Node::counts_itself);
    let (bytes, _) = tracked_with(100_000, Some(Box::new(|| panic!("on purpose, while dropping"))));
    assert_eq!(pair.dialer.backend().send(pair.out, &bytes, b"", 1), Ok(NetioStatus::Ok));
    drop(bytes);
    assert_eq!(world.until_panic(), "on purpose, while dropping");
    pair.dialer.expect_silence();
    the_backend_is_gone(world, &pair);
    bystanders.prove_alive(world);
}

/// So has one where it is a call of the user's that drops it, instead of the loop.
pub(super) fn a_panic_in_the_drop_of_memory_in_a_flush_ends_that_backend_alone(world: &World) {
    let bystanders = Pair::new(world);
    for len in [5_000, 100_000] {
        let pair = Pair::new(world);
        [&pair.dialer, &pair.listener].into_iter().for_each(Node::counts_itself);
        let (bytes, _) = tracked_with(len, Some(Box::new(|| panic!("on purpose, while dropping"))));
        // In short pieces, which every transport copies.
        let pieces = (0..len).step_by(200).map(|at| bytes.slice(at..len.min(at + 200))).collect::<Vec<_>>();
        drop(bytes);
        assert_eq!(pair.dialer.backend().send_iov(pair.out, &pieces, b"", 1), Ok(NetioStatus::Ok));
        if catch_unwind(AssertUnwindSafe(|| drop(pieces))).is_err() {
            // It was copied: this was the last share.
            continue;
        }
        pair.dialer.expect_silence();
        if catch_unwind(AssertUnwindSafe(|| pair.dialer.backend().flush(pair.out))).is_ok() {
            assert_eq!(world.until_panic(), "on purpose, while dropping");
        }
        the_backend_is_gone(world, &pair);
    }
    bystanders.prove_alive(world);
}

/// The memory of a backend that ended by a panic is released, at the latest when the backend is dropped.
pub(super) fn a_panic_releases_the_memory_of_pending_messages(world: &World) {
    let pair = Pair::with(world, Setup::tight());
    [&pair.dialer, &pair.listener].into_iter().for_each(Node::counts_itself);
    pair.listener.backend().pause(pair.back).expect("it is there");
    let flags = Rc::new(RefCell::new(Vec::new()));
    super::pair::fill_by(world, &pair.dialer, pair.out, || {
        let (bytes, released) = super::sending::tracked(30_000);
        let status = pair.dialer.backend().send(pair.out, &bytes, b"", 1).expect("it is there");
        match status {
            NetioStatus::Ok => flags.borrow_mut().push(released),
            _ => pair.dialer.refused(pair.out),
        }
        status
    });
    pair.dialer.once(Kind::Data, |call| {
        call.node.expect_silence();
        panic!("on purpose");
    });
    assert_eq!(pair.listener.backend().send_copy(pair.back, b"go", b"", 1), Ok(NetioStatus::Ok));
    world.until_panic();
    pair.dialer.drop_backend();
    assert!(flags.borrow().iter().all(|released| released.load(std::sync::atomic::Ordering::SeqCst)));
}

/// Backends of one loop may panic one after the other; the loop serves the rest.
pub(super) fn a_loop_survives_many_panics(world: &World) {
    let bystanders = Pair::new(world);
    for round in 0..6 {
        let pair = Pair::new(world);
        let (sender, to, receiver, at) = pair.directions()[round % 2];
        receiver.once(Kind::Data, |call| {
            call.node.expect_silence();
            panic!("on purpose");
        });
        sender.sent(to, Plan::copy(1));
        world.until_panic();
        bystanders.prove_alive(world);
        world.until("the peer sees the loss", || sender.closing(to) == Some(ClosedReason::PeerLost));
        assert_unknown(&*receiver.backend(), at);
    }
}

/// A panic in any one of many callbacks, whichever it is, ends that backend alone.
pub(super) fn a_panic_in_any_callback_ends_that_backend_alone(world: &World) {
    let bystanders = Pair::new(world);
    for nth in 0..14 {
        let pair = Pair::with(world, Setup::queue(3));
        let left = Rc::new(std::cell::Cell::new(nth));
        for kind in Kind::ALL {
            let left = left.clone();
            pair.dialer.on(kind, move |call| {
                // A short life: answer, refill, and close towards the end.
                if kind == Kind::Data && left.get() == 2 {
                    call.backend.close(call.endpoint).expect("it is there");
                }
                if left.get() == 0 {
                    call.node.expect_silence();
                    panic!("on purpose");
                }
                left.set(left.get() - 1);
            });
        }
        pair.listener.on(Kind::Data, |call| {
            let status = call.send(call.endpoint, Plan::copy(10));
            assert!(matches!(status, NetioStatus::Ok | NetioStatus::NoResources | NetioStatus::NotConnected), "{status:?}");
        });
        (0..3).for_each(|_| pair.dialer.sent(pair.out, Plan::copy(20)));
        pair.dialer.sent_or_refused(pair.out, Plan::copy(20));
        for _ in 0..nth {
            pair.dialer.connect(world.harness.nobody_listens(), &ConnectionParameters::default());
        }
        assert_eq!(world.until_panic(), "on purpose");
        bystanders.prove_alive(world);
        world.until("its peer sees the end", || pair.listener.closing(pair.back).is_some());
        [pair.dialer, pair.listener].iter().for_each(Node::drop_if_alive);
    }
}

/// A piece of memory whose drop panics does not keep the others from being released, nor does a second one.
pub(super) fn a_panic_in_the_drop_of_memory_keeps_nothing_else(world: &World) {
    let bystanders = Pair::new(world);
    let pair = Pair::new(world);
    [&pair.dialer, &pair.listener].into_iter().for_each(Node::counts_itself);
    let mut flags = Vec::new();
    for i in 0..6 {
        let when_released: Option<Box<dyn FnOnce() + Send>> = match i {
            1 | 4 => Some(Box::new(|| panic!("on purpose, while dropping"))),
            _ => None,
        };
        let (bytes, released) = tracked_with(20_000, when_released);
        assert_eq!(pair.dialer.backend().send(pair.out, &bytes, b"", i), Ok(NetioStatus::Ok));
        flags.push(released);
    }
    assert_eq!(world.until_panic(), "on purpose, while dropping");
    pair.dialer.expect_silence();
    the_backend_is_gone(world, &pair);
    pair.dialer.drop_backend();
    assert!(flags.iter().all(|released| released.load(std::sync::atomic::Ordering::SeqCst)), "{flags:?}");
    bystanders.prove_alive(world);
}
