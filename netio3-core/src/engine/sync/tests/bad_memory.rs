//! Memory of the user's that panics when it is dropped.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use bytes::Bytes;

use super::Scene;
use crate::address::EndPointAddress;
use crate::backend::NetworkBackend;
use crate::config::{ConnectionParameters, ConnectionParametersRecv};
use crate::endpoint::Endpoint;
use crate::event_loop::{Budget, Next};
use crate::status::NetioStatus;

/// Memory that panics when it is dropped, and is counted then.
struct Bad([u8; 5_000], Arc<AtomicUsize>);

impl AsRef<[u8]> for Bad {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Bad {
    fn drop(&mut self) {
        self.1.fetch_add(1, Ordering::SeqCst);
        panic!("on purpose, while dropping");
    }
}

/// A scene with so many messages of such memory: some with the backend, some left of a batch, the others in the
/// mailbox.
fn with_bad_memory(messages: u64) -> (Scene, Endpoint, Arc<AtomicUsize>) {
    let (scene, to) = Scene::connected(&ConnectionParameters::default());
    scene.wire.blocked.set(true);
    let dropped = Arc::new(AtomicUsize::new(0));
    let send = |key| send_bad(&scene, to, key, &dropped);
    (0..4).for_each(send);
    assert_eq!(scene.ev.turn_within(Budget { messages: 1, bytes: 1_000_000 }), Next::Again);
    (4..messages).for_each(send);
    (scene, to, dropped)
}

fn send_bad(scene: &Scene, to: Endpoint, key: u64, dropped: &Arc<AtomicUsize>) {
    let bytes = Bytes::from_owner(Bad([7; 5_000], dropped.clone()));
    assert_eq!(scene.backend.send(to, &bytes, b"", key), Ok(NetioStatus::Ok));
    // The last share is not this one, which would panic.
    drop(bytes);
}

fn panics(f: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(f)).is_err()
}

#[test]
fn memory_that_panics_is_dropped_piece_by_piece_at_the_end_of_a_backend() {
    let (scene, _, dropped) = with_bad_memory(8);
    let Scene { backend, wire, told, ev } = scene;
    assert!(panics(|| drop(backend)), "the first panic goes on");
    drop((wire, told, ev));
    assert_eq!(dropped.load(Ordering::SeqCst), 8, "all of it");
}

#[test]
fn memory_that_panics_is_dropped_piece_by_piece_by_another_thread() {
    let (scene, _, dropped) = with_bad_memory(8);
    let Scene { backend, ev, .. } = scene;
    let dropped_there = thread::scope(|scope| scope.spawn(|| panics(|| drop(backend))).join().unwrap());
    assert!(dropped_there, "the first panic goes on");
    // What the loop has goes when it next looks.
    assert!(panics(|| _ = ev.turn()));
    assert_eq!(dropped.load(Ordering::SeqCst), 8, "all of it");
}

#[test]
fn memory_that_panics_is_dropped_piece_by_piece_at_the_end_of_a_connection() {
    let (scene, to, dropped) = with_bad_memory(8);
    scene.backend.abort(to).unwrap();
    assert!(panics(|| while scene.ev.turn() == Next::Again {}), "the first panic goes on");
    assert!(!scene.ev.has_source(), "and ends the backend");
    drop(scene);
    assert_eq!(dropped.load(Ordering::SeqCst), 8, "all of it");
}

#[test]
fn memory_that_panics_is_dropped_during_another_panic() {
    let (scene, _, dropped) = with_bad_memory(8);
    let Scene { backend, wire, told, ev } = scene;
    assert!(panics(|| {
        let _kept = (backend, wire, told, ev);
        panic!("the first");
    }));
    assert_eq!(dropped.load(Ordering::SeqCst), 8, "all of it");
}

type Call = (&'static str, fn(&Scene, Endpoint));

/// Where it lies with the mailbox only, each call here that hands over what is there drops it.
#[test]
fn memory_that_panics_in_a_call_ends_the_backend() {
    const LISTENER: EndPointAddress = EndPointAddress::localhost(99);
    let calls: [Call; 8] = [
        ("flush", |scene, to| scene.backend.flush(to).unwrap()),
        ("pause", |scene, to| scene.backend.pause(to).unwrap()),
        ("resume", |scene, to| scene.backend.resume(to).unwrap()),
        ("close", |scene, to| scene.backend.close(to).unwrap()),
        ("abort", |scene, to| scene.backend.abort(to).unwrap()),
        ("shutdown", |scene, _| scene.backend.shutdown(Duration::from_secs(1))),
        ("close_listen_endpoint", |scene, _| scene.backend.close_listen_endpoint(&LISTENER).unwrap()),
        ("open_listen_endpoint", |scene, _| {
            scene.elsewhere(|backend| backend.shutdown(Duration::from_secs(1)));
            _ = scene.backend.open_listen_endpoint(&EndPointAddress::localhost(98), &ConnectionParametersRecv::default());
        }),
    ];
    for (name, call) in calls {
        let (scene, to) = Scene::connected(&ConnectionParameters::default());
        scene.backend.open_listen_endpoint(&LISTENER, &ConnectionParametersRecv::default()).unwrap();
        scene.backend.shared.with(to, |mail| mail.listener = Some(LISTENER));
        scene.wire.copies.set(true);
        let dropped = Arc::new(AtomicUsize::new(0));
        send_bad(&scene, to, 1, &dropped);
        assert!(panics(|| call(&scene, to)) == (name != "abort"), "{name}: an abort hands nothing over");
        if name == "abort" {
            assert!(panics(|| while scene.ev.turn() == Next::Again {}));
        }
        assert_eq!(dropped.load(Ordering::SeqCst), 1, "{name}");
        assert!(!scene.ev.has_source(), "{name}: the backend lives on");
        assert!(scene.backend.send_copy(to, b"", b"", 2).is_err() && scene.backend.connections().is_empty(), "{name}");
        assert_eq!((scene.backend.totals().connections.get(), scene.told()), (0, vec![]), "{name}: nothing is told");
    }
}
