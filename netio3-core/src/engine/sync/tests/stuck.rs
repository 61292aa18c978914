//! A mailbox whose messages do not get on.

use std::thread;

use bytes::Bytes;

use super::mock::MockTransport;
use super::{Scene, Told};
use crate::backend::NetworkBackend;
use crate::config::ConnectionParameters;
use crate::endpoint::Endpoint;
use crate::engine::sync::SyncBackend;
use crate::event_loop::{Budget, Next};
use crate::status::{ClosedReason, NetioStatus};

/// How many batches a mailbox has, the empty ones included.
fn batches(scene: &Scene, of: Endpoint) -> usize {
    scene.backend.shared.with(of, |mail| mail.capacities().len()).unwrap()
}

/// The peer has said goodbye while nothing leaves, and others go on sending there.
#[test]
fn memory_of_a_stuck_mailbox_does_not_grow_by_that_of_others() {
    let (scene, stuck) = Scene::connected(&ConnectionParameters::default());
    let other = scene.connect_another();
    scene.send(stuck, 0..1);
    scene.ev.turn();
    scene.wire.blocked.set(true);
    scene.loop_side().inner.close(stuck).unwrap();
    for key in 0..200 {
        scene.send(stuck, 0..1);
        scene.elsewhere(|backend| assert_eq!(backend.send_copy(other, &[1; 60_000], b"", key), Ok(NetioStatus::Ok)));
        scene.ev.turn();
    }
    let (stuck, other) = (batches(&scene, stuck), batches(&scene, other));
    assert!(stuck < 20, "{stuck} batches, and {other} of the other one");
}

/// In every turn it has more than it may hand over.
#[test]
fn memory_of_a_busy_mailbox_does_not_grow_by_that_of_others() {
    let (scene, busy) = Scene::connected(&ConnectionParameters::default());
    let other = scene.connect_another();
    scene.send(busy, 0..150);
    for _ in 0..200 {
        scene.send(other, 0..1);
        scene.send(busy, 0..10);
        scene.ev.turn_within(Budget { messages: 11, bytes: 1 << 20 });
    }
    let (busy, other) = (batches(&scene, busy), batches(&scene, other));
    assert!(busy < 20, "{busy} batches, and {other} of the other one");
}

#[test]
fn an_abort_while_messages_get_stuck_is_carried_out() {
    let (scene, to) = Scene::connected(&ConnectionParameters { flush_messages: Some(0), copy_below: 0, ..Default::default() });
    scene.wire.blocked.set(true);
    // One batch is a run and a longer message, which is the one that gets stuck, and there is another batch.
    scene.send(to, 0..1);
    assert_eq!(scene.backend.send(to, &Bytes::from_static(&[1; 5_000]), b"", 1), Ok(NetioStatus::Ok));
    scene.send(to, 2..200);
    let view = SyncBackend::<MockTransport>::view(scene.backend.shared.clone());
    let side = scene.loop_side();
    let peer_ends_and_others_abort = move || {
        side.inner.close(to).unwrap();
        thread::scope(|scope| scope.spawn(|| view.abort(to).unwrap()).join().unwrap());
    };
    scene.wire.meanwhile.replace(Some(Box::new(peer_ends_and_others_abort)));
    while scene.ev.turn() == Next::Again {}
    scene.wire.meanwhile.take();
    assert_eq!(scene.told(), [Told::Closed((0..200).collect(), ClosedReason::Local)]);
}
