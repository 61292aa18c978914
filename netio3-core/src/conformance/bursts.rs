//! Thousands of messages in one turn, of all families and on several connections, by turns and in a row.

use super::node::Node;
use super::pair::{Pair, Setup, all_arrived};
use super::pattern::Random;
use super::plan::Plan;
use super::world::World;
use crate::endpoint::Endpoint;
use crate::error::DeregisterError;
use crate::memory::MemoryRegion;
use crate::status::{CompletionKind, NetioStatus};

const MESSAGES: usize = 5_000;
const BUFFER: usize = 700;

/// Sends a burst on connections of one node, mostly of small messages, now and then a batch, and asks for counters and
/// flushes in between.
fn burst(node: &Node, connections: &[Endpoint], random: &mut Random) {
    let backend = node.backend();
    let mut to = connections[0];
    for _ in 0..MESSAGES {
        // Mostly many in a row.
        if random.below(40) == 0 {
            to = connections[random.below(connections.len())];
        }
        let (small, large) = (random.below(90), random.below(9_000));
        let plan = match random.below(100) {
            0..70 => Plan::copy(small).header(small.min(random.below(24))),
            70..82 => Plan::zero_copy(small),
            82..87 => Plan::copy(large).header(large.min(random.below(200))),
            87..91 => Plan::copy(large).pieces(1 + random.below(5)),
            91..93 => Plan::zero_copy(large).pieces(1 + random.below(3)),
            93..95 => Plan::buffer(random.below(BUFFER)),
            95 => {
                assert_eq!(backend.flush(to), Ok(()));
                continue;
            }
            96 => {
                backend.stats(to).expect("it is there");
                continue;
            }
            _ => {
                let lengths: Vec<_> = (0..random.below(100)).map(|_| (random.below(30), 30 + random.below(90))).collect();
                assert_eq!(node.send_batch(&*backend, to, &lengths), Ok((lengths.len(), NetioStatus::Ok)));
                continue;
            }
        };
        node.sent_or_refused(to, plan);
    }
}

/// Whatever is mixed on whatever connections, each one's messages arrive in order, and its keys come back in order.
pub(super) fn bursts_of_all_families_keep_their_order(world: &World) {
    let pair = Pair::with(world, Setup::buffers(BUFFER, 20));
    let ends: Vec<_> = (0..2).map(|_| pair.another(world)).chain([(pair.out, pair.back)]).collect();
    let (outs, backs): (Vec<_>, Vec<_>) = ends.iter().copied().unzip();
    for seed in 0..4 {
        let mut random = Random::new(seed);
        burst(&pair.dialer, &outs, &mut random);
        burst(&pair.listener, &backs, &mut random);
        world.until("all arrive", || {
            ends.iter().all(|(out, back)| {
                all_arrived(&pair.dialer, *out, &pair.listener, *back) && all_arrived(&pair.listener, *back, &pair.dialer, *out)
            })
        });
    }
}

/// The counters tell of every message there has been, whenever they are asked for.
pub(super) fn counters_are_right_within_a_burst(world: &World) {
    let pair = Pair::new(world);
    let backend = pair.dialer.backend();
    for sent in 1..=4_000 {
        pair.dialer.sent(pair.out, if sent % 3 == 0 { Plan::zero_copy(50) } else { Plan::copy(50).header(8) });
        if sent % 97 < 2 {
            let (counters, totals) = (backend.stats(pair.out).expect("it is there").snapshot(), backend.totals().snapshot());
            let queued = sent - counters.messages_sent;
            assert_eq!((counters.messages_accepted, counters.queued_messages, counters.queued_bytes), (sent, queued, 50 * queued));
            assert!([0, sent / 3].contains(&counters.copied_messages), "{} of {sent} are copied", counters.copied_messages);
            // The loop has not seen yet what was sent through mailboxes.
            if !world.harness.is_synchronized() {
                assert_eq!((totals.messages_accepted, totals.queued_messages, totals.queued_bytes), (sent, queued, 50 * queued));
            }
        }
    }
    pair.deliver(world);
}

/// Memory that is registered while messages are queued is busy from the next message on that it is sent with.
pub(super) fn a_region_registered_within_a_burst_is_held(world: &World) {
    let pair = Pair::new(world);
    let backend = pair.dialer.backend();
    let region = MemoryRegion::new(4_096).expect("memory");
    let bytes = region.bytes().expect("it is not cut").slice(..50);
    for _ in 0..3 {
        (0..100).for_each(|_| pair.dialer.sent(pair.out, Plan::copy(50)));
        let id = backend.register(&region).expect("there is room");
        assert_eq!(backend.send(pair.out, &bytes, b"", 9), Ok(NetioStatus::Ok));
        pair.dialer.accepted(pair.out, 9, CompletionKind::ZeroCopy, &bytes);
        assert_eq!(backend.deregister(id), Err(DeregisterError::Busy(id)));
        pair.deliver(world);
        backend.deregister(id).expect("all its messages are back");
    }
}

/// What was just accepted is pending after an abort, arrives before a close, and goes with a dropped backend.
pub(super) fn a_burst_ends_as_its_connection_does(world: &World) {
    for seed in 0..4 {
        let pair = Pair::with(world, Setup::buffers(BUFFER, 20));
        let (aborted, closed, lives) = (pair.another(world), pair.another(world), (pair.out, pair.back));
        let mut random = Random::new(seed);
        burst(&pair.dialer, &[aborted.0, closed.0, lives.0], &mut random);
        let last = [aborted.0, closed.0][seed as usize % 2];
        pair.dialer.sent(last, Plan::copy(40));
        pair.dialer.sent(last, Plan::copy(40));
        pair.dialer.abort(aborted.0);
        pair.dialer.close(closed.0);
        world.until("both have ended", || [aborted.0, closed.0].iter().all(|out| pair.dialer.closing(*out).is_some()));
        let ended = pair.dialer.tally(aborted.0);
        assert_eq!(ended.completed + ended.pending(), ended.accepted);
        let flushed = pair.dialer.tally(closed.0);
        assert_eq!((flushed.completed, flushed.pending()), (flushed.accepted, 0));
        world.until("all arrive", || {
            all_arrived(&pair.dialer, closed.0, &pair.listener, closed.1) && all_arrived(&pair.dialer, lives.0, &pair.listener, lives.1)
        });
        burst(&pair.dialer, &[lives.0], &mut random);
        pair.dialer.drop_backend();
        world.until("the end is seen", || pair.listener.closing(lives.1).is_some());
    }
}
