//! Ends that are not orderly, and the end of a backend: abort, vanishing peers, `shutdown`, drop.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::pair::{Pair, Setup, connected_across};
use super::plan::Plan;
use super::recorder::Kind;
use super::sending::tracked;
use super::world::{World, config};
use crate::config::{ConnectionParameters, ConnectionParametersRecv};
use crate::error::{OpenListenError, OpenSendError};
use crate::status::{ClosedReason, NetioStatus, RefusedReason};

/// `abort` ends a connection at once: all that is pending comes back in send order, and the peer sees *PeerLost*.
pub(super) fn an_abort_returns_what_is_pending(world: &World) {
    let pair = Pair::with(world, Setup::tight());
    pair.clog(world);
    pair.dialer.abort(pair.out);
    assert_eq!(pair.dialer.closing(pair.out), None, "it comes from the loop");
    world.until("closed", || pair.dialer.closing(pair.out).is_some());
    let tally = pair.dialer.tally(pair.out);
    assert_eq!(tally.reason(), Some(ClosedReason::Local));
    assert!(tally.pending() > 0);
    assert_eq!(tally.pending() + tally.completed, tally.accepted);
    let counters = pair.dialer.backend().totals();
    assert_eq!(counters.messages_pending_at_close.get(), tally.pending() as u64);
    pair.listener.backend().resume(pair.back).expect("it is there still");
    world.until("the peer sees the end", || pair.listener.closing(pair.back).is_some());
    assert_eq!(pair.listener.closing(pair.back), Some(ClosedReason::PeerLost));
}

/// `abort` sends nothing more: what was accepted since the last turn is pending, and the peer never sees it.
pub(super) fn an_abort_sends_nothing_more(world: &World) {
    for side in 0..2 {
        let pair = Pair::with(world, Setup::buffers(100, 1));
        let (sender, to, receiver, at) = pair.directions()[side];
        [Plan::copy(10), Plan::zero_copy(5_000), Plan::buffer(100)].iter().for_each(|plan| sender.sent(to, *plan));
        sender.abort(to);
        pair.until_closed(world);
        let tally = sender.tally(to);
        assert_eq!((tally.reason(), tally.pending()), (Some(ClosedReason::Local), 3));
        assert_eq!((receiver.closing(at), receiver.received(at)), (Some(ClosedReason::PeerLost), 0));
    }
}

/// An abort right after sends, from either side, gives each key back once, one way or the other.
pub(super) fn an_abort_at_any_moment_gives_each_key_back(world: &World) {
    for turns in 0..10 {
        let pair = Pair::new(world);
        for (sender, to, ..) in pair.directions() {
            (0..30).for_each(|i| sender.sent(to, Plan::zero_copy(i * 2_000)));
        }
        (0..turns).for_each(|_| world.turn());
        let (node, end, ..) = pair.directions()[turns % 2];
        if node.closing(end).is_none() {
            node.abort(end);
        }
        pair.until_closed(world);
        for (sender, to, ..) in pair.directions() {
            let tally = sender.tally(to);
            assert_eq!(tally.completed + tally.pending(), tally.accepted);
        }
    }
}

/// A peer that vanishes is *PeerLost*; what did not leave comes back as pending.
pub(super) fn a_vanished_peer_is_lost(world: &World) {
    let pair = Pair::with(world, Setup::tight());
    pair.clog(world);
    pair.listener.drop_backend();
    world.until("closed", || pair.dialer.closing(pair.out).is_some());
    let tally = pair.dialer.tally(pair.out);
    assert_eq!(tally.reason(), Some(ClosedReason::PeerLost));
    assert!(tally.pending() > 0 && tally.completed + tally.pending() == tally.accepted);
    let refused = pair.dialer.open(pair.address, &ConnectionParameters::default());
    world.until("refused", || pair.dialer.refusal(refused) == Some(RefusedReason::NoListener));
}

/// An idle connection, too, learns that its peer vanished, on either side.
pub(super) fn a_vanished_peer_of_an_idle_connection_is_lost(world: &World) {
    for side in 0..2 {
        let pair = Pair::new(world);
        let (gone, _, left, at) = pair.directions()[side];
        gone.drop_backend();
        world.until("closed", || left.closing(at).is_some());
        assert_eq!(left.closing(at), Some(ClosedReason::PeerLost));
    }
}

/// A dialer whose peer vanishes while it opens is told once.
pub(super) fn a_peer_that_vanishes_during_opening_is_told_once(world: &World) {
    for turns in 0..8 {
        let listener = world.node("listener", config());
        let dialer = world.node("dialer", config());
        let address = listener.listen(world.harness.listen_address(), &ConnectionParametersRecv::default());
        let params = ConnectionParameters { connect_deadline: Duration::from_secs(2), ..Default::default() };
        let out = dialer.open(address, &params);
        (0..turns).for_each(|_| world.turn());
        listener.drop_backend();
        world.until("told", || dialer.refusal(out).is_some() || dialer.closing(out).is_some());
    }
}

/// Dropping the backend closes at once: no callback, nothing flushed, and no memory held when it returns.
pub(super) fn a_drop_closes_at_once_without_callbacks(world: &World) {
    let pair = Pair::with(world, Setup::tight());
    let (bytes, released) = tracked(100_000);
    // One that fits in any kernel's buffer, and one that does not.
    assert_eq!(pair.dialer.backend().send_copy(pair.out, b"small", b"", 0), Ok(NetioStatus::Ok));
    let status = pair.dialer.backend().send(pair.out, &bytes, b"", 1).expect("it is there");
    assert_eq!(status, NetioStatus::Ok);
    drop(bytes);
    let opening = pair.dialer.connect(pair.address, &ConnectionParameters::default());
    let callbacks = pair.dialer.callbacks();
    pair.listener.counts_itself();
    pair.dialer.drop_backend();
    assert!(released.load(Ordering::SeqCst), "nobody can touch the memory any more");
    world.until("the peer sees the end", || pair.listener.closing(pair.back).is_some());
    assert_eq!((pair.listener.closing(pair.back), pair.listener.received(pair.back)), (Some(ClosedReason::PeerLost), 0));
    world.watch();
    assert_eq!(pair.dialer.callbacks(), callbacks);
    assert_eq!(pair.dialer.refusal(opening), None);
}

/// `shutdown` closes everything in an orderly way and with callbacks; the peers see *PeerClosed*.
pub(super) fn a_shutdown_closes_everything_with_callbacks(world: &World) {
    let pair = Pair::new(world);
    let own = pair.dialer.listen(world.harness.listen_address(), &ConnectionParametersRecv::default());
    let (incoming, far) =
        super::pair::connected(world, &pair.listener, &pair.dialer, || pair.listener.open(own, &ConnectionParameters::default()));
    (0..40).for_each(|i| pair.dialer.sent(pair.out, Plan::zero_copy(i * 900)));
    let opening = pair.dialer.connect(pair.address, &ConnectionParameters::default());
    pair.dialer.backend().shutdown(Duration::from_secs(5));
    assert_eq!(pair.dialer.closing(pair.out), None, "it returns at once");
    assert_eq!(pair.dialer.send(pair.out, Plan::copy(1)), NetioStatus::NotConnected);
    pair.until_closed(world);
    world.until("all have ended", || {
        pair.dialer.refusal(opening).is_some() && pair.dialer.closing(far).is_some() && pair.listener.closing(incoming).is_some()
    });
    assert_eq!(pair.dialer.refusal(opening), Some(RefusedReason::Shutdown));
    assert_eq!((pair.dialer.closing(pair.out), pair.dialer.closing(far)), (Some(ClosedReason::Shutdown), Some(ClosedReason::Shutdown)));
    assert_eq!(pair.listener.closing(pair.back), Some(ClosedReason::PeerClosed));
    assert_eq!(pair.listener.closing(incoming), Some(ClosedReason::PeerClosed));
    assert_eq!((pair.listener.received(pair.back), pair.dialer.completed(pair.out)), (40, 40));
    assert!(pair.dialer.backend().connections().is_empty() && pair.dialer.backend().listeners().is_empty());
    world.watch();
}

/// After `shutdown` nothing can be opened any more, neither connections nor listeners.
pub(super) fn after_a_shutdown_nothing_can_be_opened(world: &World) {
    let pair = Pair::new(world);
    pair.dialer.backend().shutdown(Duration::from_secs(5));
    let fails = || {
        let backend = pair.dialer.backend();
        let opened = backend.connect(&pair.address, &ConnectionParameters::default());
        assert!(matches!(opened, Err(OpenSendError::FailedOpenSendEndpoint { .. })), "{opened:?}");
        let opened = backend.open_listen_endpoint(&world.harness.listen_address(), &ConnectionParametersRecv::default());
        assert!(matches!(opened, Err(OpenListenError::FailedOpenListenEndpoint { .. })), "{opened:?}");
    };
    fails();
    pair.until_closed(world);
    fails();
    pair.dialer.backend().shutdown(Duration::ZERO);
    world.watch();
    assert_eq!(pair.dialer.callbacks(), 2);
}

/// What has not ended at the deadline of `shutdown` is aborted: its pending keys come back then.
pub(super) fn a_shutdown_keeps_its_deadline(world: &World) {
    let pair = Pair::with(world, Setup::tight());
    pair.clog(world);
    let started = Instant::now();
    pair.dialer.backend().shutdown(Duration::from_millis(200));
    world.until("closed", || pair.dialer.closing(pair.out).is_some());
    assert!(started.elapsed() >= Duration::from_millis(200) && started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    let tally = pair.dialer.tally(pair.out);
    assert_eq!(tally.reason(), Some(ClosedReason::Shutdown));
    assert!(tally.pending() > 0);
}

/// A dialer whose peer shuts down while it opens is *refused(Shutdown)* or sees nobody; never both.
pub(super) fn a_peer_that_shuts_down_takes_nobody_new(world: &World) {
    for turns in 0..6 {
        let listener = world.node("listener", config());
        let dialer = world.node("dialer", config());
        let address = listener.listen(world.harness.listen_address(), &ConnectionParametersRecv::default());
        let out = dialer.open(address, &ConnectionParameters::default());
        (0..turns).for_each(|_| world.turn());
        listener.backend().shutdown(Duration::from_secs(5));
        world.until("told", || dialer.refusal(out).is_some() || dialer.closing(out).is_some());
        if let Some(reason) = dialer.refusal(out) {
            // A transport that had begun with the peer when its listener ended may leave it to its own deadline.
            let fits = [RefusedReason::Shutdown, RefusedReason::NoListener, RefusedReason::Limit, RefusedReason::Timeout];
            assert!(fits.contains(&reason), "{reason:?}");
        }
        let late = dialer.open(address, &ConnectionParameters::default());
        world.until("nobody is there", || dialer.refusal(late).is_some());
    }
}

/// Data that arrived before the peer vanished is delivered before *closed*.
pub(super) fn data_comes_before_the_loss_of_its_sender(world: &World) {
    // The receiver's loop stands still until both are there.
    let far = world.another_loop();
    let (dialer, listener) = (far.node("far dialer", config()), world.node("listener", config()));
    let (out, back) = connected_across(&far, world, &dialer, &listener);
    (0..20).for_each(|i| dialer.sent(out, Plan::copy(i * 100)));
    far.until("they have left", || dialer.completed(out) == 20);
    // A device may be sending still what has left the library.
    far.watch();
    dialer.drop_backend();
    assert_eq!(listener.received(back), 0);
    world.until("closed", || listener.closing(back).is_some());
    assert_eq!((listener.closing(back), listener.received(back)), (Some(ClosedReason::PeerLost), 20));
}

/// The key of a message is returned by *closed* after its memory was released.
pub(super) fn pending_memory_is_released_inside_closed(world: &World) {
    let pair = Pair::with(world, Setup::tight());
    [&pair.dialer, &pair.listener].into_iter().for_each(super::node::Node::counts_itself);
    pair.listener.backend().pause(pair.back).expect("it is there");
    let mut flags = Vec::new();
    super::pair::fill_by(world, &pair.dialer, pair.out, || {
        let (bytes, released) = tracked(30_000);
        let status = pair.dialer.backend().send(pair.out, &bytes, b"", flags.len() as u64).expect("it is there");
        match status {
            NetioStatus::Ok => flags.push(released),
            _ => pair.dialer.refused(pair.out),
        }
        status
    });
    let held = flags.clone();
    pair.dialer.once(Kind::Closed, move |call| {
        let super::journal::What::Closed(pending, _) = call.what else { return };
        assert!(!pending.is_empty());
        let last = pending.last().expect("not empty").key;
        assert_eq!(last as usize, held.len() - 1, "the last one sent");
        assert!(held.iter().all(|released| released.load(Ordering::SeqCst)), "its memory is the user's again");
    });
    pair.dialer.abort(pair.out);
    world.until("closed", || pair.dialer.closing(pair.out).is_some());
    drop(flags);
}

/// A backend dropped at any moment of a busy life is seen to be gone once, and each key comes back once.
pub(super) fn a_drop_at_any_moment_is_seen_once(world: &World) {
    for turns in 0..16 {
        let pair = Pair::new(world);
        for (sender, to, ..) in pair.directions() {
            (0..30).for_each(|i| sender.sent(to, Plan::zero_copy(i * 3_000)));
        }
        (0..turns / 2).for_each(|_| world.turn());
        let (gone, _, left, at) = pair.directions()[turns % 2];
        gone.drop_backend();
        world.until("closed", || left.closing(at).is_some());
        let tally = left.tally(at);
        assert_eq!((tally.reason(), tally.completed + tally.pending()), (Some(ClosedReason::PeerLost), tally.accepted));
    }
}

/// The addresses of a backend are free as soon as its drop returns: another one can listen there at once.
pub(super) fn addresses_are_free_after_a_drop(world: &World) {
    let pair = Pair::new(world);
    let mut address = pair.address;
    pair.prove_alive(world);
    pair.listener.drop_backend();
    world.until("closed", || pair.dialer.closing(pair.out).is_some());
    for _ in 0..5 {
        let next = world.node("next listener", config());
        address = next.listen(address, &ConnectionParametersRecv::default());
        let (out, _) = super::pair::connected(world, &pair.dialer, &next, || pair.dialer.open(address, &ConnectionParameters::default()));
        next.drop_backend();
        world.until("closed", || pair.dialer.closing(out).is_some());
    }
}
