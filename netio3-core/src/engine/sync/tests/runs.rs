//! Whatever is sent and however the turns cut it, every message is handed over whole, once and in order.

use bytes::Bytes;
use proptest::prelude::*;

use super::{Scene, Told};
use crate::backend::{CopiedMessage, NetworkBackend};
use crate::config::ConnectionParameters;
use crate::event_loop::{Budget, Next};
use crate::status::NetioStatus;

#[derive(Clone, Debug)]
enum Step {
    Send {
        header: usize,
        len: usize,
        how: How,
    },
    /// Copied ones in one call.
    Batch(Vec<(usize, usize)>),
    Turn {
        messages: usize,
        bytes: usize,
    },
    /// Nothing leaves from now on, or everything does.
    Block(bool),
}

#[derive(Clone, Copy, Debug)]
enum How {
    Copied,
    Shared,
    InPieces,
}

fn step() -> impl Strategy<Value = Step> {
    let len = || prop_oneof![3 => 0_usize..100, 1 => 200_usize..4_000, 1 => Just(20_000_usize)];
    let header = || prop_oneof![3 => Just(0_usize), 1 => 1_usize..30];
    let how = prop_oneof![Just(How::Copied), Just(How::Shared), Just(How::InPieces)];
    prop_oneof![
        20 => (header(), len(), how).prop_map(|(header, len, how)| Step::Send { header, len, how }),
        2 => prop::collection::vec((header(), len()), 0..40).prop_map(Step::Batch),
        2 => (prop_oneof![1_usize..20, Just(8_192)], prop_oneof![1_usize..5_000, Just(1 << 20)])
            .prop_map(|(messages, bytes)| Step::Turn { messages, bytes }),
        1 => any::<bool>().prop_map(Step::Block),
    ]
}

/// When a queue is flushed, and what is copied.
pub(super) fn params() -> impl Strategy<Value = ConnectionParameters> {
    let limit = || prop_oneof![Just(0_usize), Just(1), Just(100), Just(9_000), Just(usize::MAX)];
    (limit(), limit(), prop_oneof![Just(0_usize), Just(100), Just(1_024)]).prop_map(|(flush_at, flush_messages, copy_below)| {
        ConnectionParameters { flush_at, flush_messages: Some(flush_messages), copy_below, queue_messages: 300, ..Default::default() }
    })
}

fn run(params: &ConnectionParameters, steps: Vec<Step>) {
    let (scene, to) = Scene::connected(params);
    let (mut sent, mut told) = (Vec::new(), Vec::new());
    let message = |key: usize, header: usize, len: usize| {
        let body = (0..len).map(|i| (i * 7 + key) as u8).collect::<Vec<u8>>();
        (vec![key as u8; header], body)
    };
    for step in steps {
        match step {
            Step::Send { header, len, how } => {
                let key = sent.len() as u64;
                let (header, body) = message(sent.len(), header, len);
                let status = match how {
                    How::Copied => scene.backend.send_copy(to, &body, &header, key),
                    How::Shared => scene.backend.send(to, &Bytes::from(body.clone()), &header, key),
                    How::InPieces => {
                        let pieces = [Bytes::copy_from_slice(&body[..len / 3]), Bytes::new(), Bytes::copy_from_slice(&body[len / 3..])];
                        scene.backend.send_iov(to, &pieces, &header, key)
                    }
                };
                match status.unwrap() {
                    NetioStatus::Ok => sent.push([header, body].concat()),
                    status => assert_eq!(status, NetioStatus::NoResources),
                }
            }
            Step::Batch(lens) => {
                let batch: Vec<_> = lens.iter().zip(sent.len()..).map(|(&(header, len), key)| (message(key, header, len), key)).collect();
                let copied = batch.iter().map(|((header, data), key)| CopiedMessage { data, header, key: *key as u64 });
                let (accepted, status) = scene.backend.send_copy_batch(to, &copied.collect::<Vec<_>>()).unwrap();
                assert_eq!(status, if accepted == batch.len() { NetioStatus::Ok } else { NetioStatus::NoResources });
                sent.extend(batch.into_iter().take(accepted).map(|((header, body), _)| [header, body].concat()));
            }
            Step::Turn { messages, bytes } => {
                scene.ev.turn_within(Budget { messages, bytes });
            }
            Step::Block(blocked) => scene.wire.blocked.set(blocked),
        }
        told.extend(scene.told());
    }
    scene.wire.blocked.set(false);
    scene.backend.flush(to).unwrap();
    while scene.ev.turn() == Next::Again {}
    told.extend(scene.told());
    assert!(*scene.wire.enqueued.borrow() == sent, "other messages, or in another order");
    let keys = told.into_iter().flat_map(|told| if let Told::Completed(keys) = told { keys } else { Vec::new() });
    assert_eq!(keys.collect::<Vec<_>>(), (0..sent.len() as u64).collect::<Vec<_>>());
    let totals = scene.backend.totals().snapshot();
    assert_eq!((totals.queued_messages, totals.queued_bytes, totals.messages_accepted), (0, 0, sent.len() as u64));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn messages_are_handed_over_whole_and_in_order(params in params(), steps in prop::collection::vec(step(), 0..300)) {
        run(&params, steps);
    }
}
