//! Heartbeats, silence and stalls.

use std::time::{Duration, Instant};

use super::node::Node;
use super::pair::{Pair, Setup, connected_across};
use super::plan::Plan;
use super::world::{World, config};
use crate::config::{ConnectionParameters, NetworkConfig};
use crate::endpoint::Endpoint;
use crate::status::ClosedReason;

/// Heartbeats after so much silence, and death after five times that.
fn beating(interval: Duration) -> NetworkConfig {
    NetworkConfig { heartbeat_interval: interval, ..NetworkConfig::default() }
}

const SHORT: Duration = Duration::from_millis(40);

/// Connects nodes of two loops of this thread: dialer, its handle, listener, its handle.
fn across(world: &World, far: &World, dialer: NetworkConfig, listener: NetworkConfig) -> (Node, Endpoint, Node, Endpoint) {
    let listener = far.node("far listener", listener);
    let dialer = world.node("dialer", dialer);
    let (out, back) = connected_across(world, far, &dialer, &listener);
    (dialer, out, listener, back)
}

/// An idle connection lives by its heartbeats, many times longer than the silence that would be death.
pub(super) fn an_idle_connection_lives(world: &World) {
    let setup = Setup { dialer: beating(SHORT), listener: beating(SHORT), ..Default::default() };
    let pair = Pair::with(world, setup);
    world.within(SHORT * 20, || false);
    assert_eq!((pair.dialer.closing(pair.out), pair.listener.closing(pair.back)), (None, None));
    pair.prove_alive(world);
}

/// Heartbeats are sent in silence, counted, and not delivered as messages.
pub(super) fn heartbeats_are_sent_in_silence_and_counted(world: &World) {
    let setup = Setup { dialer: beating(SHORT), listener: beating(Duration::ZERO), ..Default::default() };
    let pair = Pair::with(world, setup);
    let out = pair.dialer.backend().stats(pair.out).expect("it is there");
    let back = pair.listener.backend().stats(pair.back).expect("it is there");
    world.until("five heartbeats arrive", || back.heartbeats_received.get() >= 5);
    assert!(out.heartbeats_sent.get() >= 5);
    assert_eq!((back.heartbeats_sent.get(), out.heartbeats_received.get()), (0, 0), "an interval of zero sends none");
    assert_eq!((pair.listener.received(pair.back), back.messages_received.get()), (0, 0));
}

/// A peer that is silent longer than its announced heartbeats allow is *closed(HeartbeatTimeout)*, and not before.
pub(super) fn a_silent_peer_is_given_up(world: &World) {
    // The peer is silent because nobody runs its loop.
    let far = world.another_loop();
    let mine = NetworkConfig { missed_heartbeats: 5, ..beating(Duration::from_secs(60)) };
    let (dialer, out, _listener, _) = across(world, &far, mine, beating(SHORT));
    let started = Instant::now();
    world.until("closed", || dialer.closing(out).is_some());
    assert_eq!(dialer.closing(out), Some(ClosedReason::HeartbeatTimeout));
    // The last byte arrived up to an interval before the clock was started here.
    assert!(started.elapsed() >= SHORT * 3 && started.elapsed() < SHORT * 100, "after {:?}", started.elapsed());
}

/// So is one whose heartbeats are less than a millisecond apart.
pub(super) fn a_silent_peer_with_short_heartbeats_is_given_up(world: &World) {
    let far = world.another_loop();
    // Enough of them that a busy machine does not end it before.
    let mine = NetworkConfig { missed_heartbeats: 300, ..beating(Duration::from_secs(60)) };
    let (dialer, out, _listener, _) = across(world, &far, mine, beating(Duration::from_micros(500)));
    world.until("closed", || dialer.closing(out).is_some());
    assert_eq!(dialer.closing(out), Some(ClosedReason::HeartbeatTimeout));
}

/// A peer that announced no heartbeats is never judged by its silence.
pub(super) fn a_peer_without_heartbeats_is_never_judged(world: &World) {
    let far = world.another_loop();
    let (dialer, out, listener, back) = across(world, &far, beating(SHORT), config());
    world.within(SHORT * 15, || false);
    assert_eq!(dialer.closing(out), None);
    dialer.sent(out, Plan::copy(5));
    world.turn();
    far.until("it is there", || listener.received(back) == 1 || listener.closing(back).is_some());
}

/// A stall of this side's own loop blames nobody: what arrived meanwhile is read before the peer is judged.
pub(super) fn a_stall_of_ones_own_blames_nobody(world: &World) {
    // Longer than the few turns take on a busy machine.
    const INTERVAL: Duration = Duration::from_millis(400);
    let (far, nobody) = (world.another_loop(), world.another_loop());
    // A single interval without a byte is death.
    let mine = NetworkConfig { missed_heartbeats: 1, ..beating(Duration::from_secs(60)) };
    let (dialer, out, listener, back) = across(world, &far, mine, beating(INTERVAL));
    // Nobody runs the dialer's loop, while the peer goes on sending its heartbeats or, in the end, is stalled likewise. A
    // check that is late by less than an interval counts, a later one does not.
    for (running, half_intervals) in [(&far, 3), (&far, 5), (&nobody, 5)] {
        running.within(INTERVAL * half_intervals / 2, || false);
        (0..3).for_each(|_| world.turn());
        assert_eq!((dialer.closing(out), listener.closing(back)), (None, None), "after {half_intervals} halves of an interval");
    }
}

/// Neither side of a paused connection is taken for dead.
pub(super) fn a_paused_connection_lives(world: &World) {
    let setup = Setup { dialer: beating(SHORT), listener: beating(SHORT), ..Default::default() };
    let pair = Pair::with(world, setup);
    pair.listener.backend().pause(pair.back).expect("it is there");
    (0..10).for_each(|_| pair.dialer.sent(pair.out, Plan::copy(1_000)));
    world.within(SHORT * 20, || false);
    assert_eq!((pair.dialer.closing(pair.out), pair.listener.closing(pair.back)), (None, None));
    pair.listener.backend().resume(pair.back).expect("it is there");
    pair.deliver(world);
}

/// A queue without progress for `stall_timeout` is *closed(Stalled)*, with its keys pending.
pub(super) fn a_stalled_queue_ends_the_connection(world: &World) {
    let mut setup = Setup::tight();
    setup.dial.stall_timeout = Some(Duration::from_millis(400));
    let pair = Pair::with(world, setup);
    pair.clog(world);
    let started = Instant::now();
    world.until("closed", || pair.dialer.closing(pair.out).is_some());
    assert!(started.elapsed() < Duration::from_secs(4), "after {:?}", started.elapsed());
    let tally = pair.dialer.tally(pair.out);
    assert_eq!(tally.reason(), Some(ClosedReason::Stalled));
    assert!(tally.pending() > 0);
    assert_eq!(tally.completed + tally.pending(), tally.accepted);
}

/// `stall_timeout` judges queues, not silence: an idle connection outlives it many times, and so does a busy one.
pub(super) fn an_idle_or_busy_connection_is_not_stalled(world: &World) {
    let params = ConnectionParameters { stall_timeout: Some(SHORT), ..Default::default() };
    let pair = Pair::with(world, Setup::both(params));
    world.within(SHORT * 10, || false);
    let started = Instant::now();
    while started.elapsed() < SHORT * 10 {
        pair.prove_alive(world);
    }
    world.within(SHORT * 3, || false);
    pair.prove_alive(world);
}
