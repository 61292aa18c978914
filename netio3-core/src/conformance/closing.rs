//! Orderly closing: nothing accepted is lost, and *closed* comes once on each side.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::node::Node;
use super::pair::{Pair, Setup, connected};
use super::plan::Plan;
use super::recorder::Kind;
use super::world::{World, config};
use crate::config::{ConnectionParameters, ConnectionParametersRecv};
use crate::endpoint::Endpoint;
use crate::error::SendError;
use crate::status::{ClosedReason, NetioStatus};

/// What a side completed before *closed* has arrived at the other one.
#[track_caller]
fn nothing_completed_is_lost(pair: &Pair) {
    for (sender, to, receiver, at) in pair.directions() {
        let (tally, received) = (sender.tally(to), receiver.received(at));
        assert!(received >= tally.completed, "{received} of {} completed messages arrived", tally.completed);
        assert_eq!(tally.completed + tally.pending(), tally.accepted);
    }
}

/// Closing flushes what was accepted; the peer gets all of it, then *closed(PeerClosed)*; this side *closed(Local)*.
pub(super) fn a_close_flushes_what_was_accepted(world: &World) {
    for closer in 0..2 {
        let pair = Pair::new(world);
        let (sender, to, receiver, at) = pair.directions()[closer];
        (0..100).for_each(|i| sender.sent(to, Plan::zero_copy(i * 1_000)));
        sender.close(to);
        pair.until_closed(world);
        let tally = sender.tally(to);
        assert_eq!((tally.reason(), tally.pending(), tally.completed), (Some(ClosedReason::Local), 0, 100));
        assert_eq!((receiver.closing(at), receiver.received(at)), (Some(ClosedReason::PeerClosed), 100));
    }
}

/// A close from one side with data in flight both ways loses nothing that either side completed.
pub(super) fn a_close_with_data_in_flight_loses_nothing_completed(world: &World) {
    for turns in 0..8 {
        let pair = Pair::new(world);
        for i in 0..60 {
            pair.dialer.sent(pair.out, Plan::copy(i * 300));
            pair.listener.sent(pair.back, Plan::zero_copy(i * 700));
        }
        (0..turns).for_each(|_| world.turn());
        pair.dialer.close(pair.out);
        pair.until_closed(world);
        nothing_completed_is_lost(&pair);
        assert_eq!(pair.dialer.closing(pair.out), Some(ClosedReason::Local));
        assert_eq!(pair.listener.closing(pair.back), Some(ClosedReason::PeerClosed));
        assert_eq!(pair.listener.received(pair.back), 60, "all that the closing side had accepted");
    }
}

/// Messages that arrive between a close and its *closed* are still delivered.
pub(super) fn messages_are_delivered_until_closed(world: &World) {
    let pair = Pair::new(world);
    (0..50).for_each(|_| pair.listener.sent(pair.back, Plan::copy(3_000)));
    pair.dialer.close(pair.out);
    assert_eq!(pair.dialer.received(pair.out), 0);
    pair.until_closed(world);
    nothing_completed_is_lost(&pair);
    let tally = pair.listener.tally(pair.back);
    assert_eq!(pair.dialer.received(pair.out), tally.completed);
    assert!(tally.completed > 0, "sent before it could know of the close");
}

/// What callbacks have sent before the peer's goodbye was read reaches it, though both may be in one turn.
pub(super) fn what_was_sent_before_the_goodbye_of_the_peer_was_read_leaves(world: &World) {
    let pair = Pair::new(world);
    let (node, back) = (pair.listener.clone(), pair.back);
    pair.listener.on(Kind::Data, move |_| node.sent(back, Plan::copy(100)));
    (0..10).for_each(|_| pair.dialer.sent(pair.out, Plan::copy(50)));
    pair.dialer.close(pair.out);
    pair.until_closed(world);
    let tally = pair.listener.tally(pair.back);
    assert_eq!((tally.completed, tally.pending(), pair.dialer.received(pair.out)), (10, 0, 10));
}

/// A paused connection that is closed does not wait for a deadline: it reads what stands before the peer's goodbye,
/// whichever side closes first, and however much that is. Resumed after the peer's close, it delivers all of it.
pub(super) fn a_paused_connection_that_is_closed_reads_on_to_the_goodbye(world: &World) {
    for (peer_closes, resumes) in [(false, false), (true, false), (true, true)] {
        let pair = Pair::with(world, Setup::tight());
        pair.dialer.backend().pause(pair.out).expect("it is there");
        // The peer can send nothing more, its goodbye included, until somebody reads.
        let sent = super::pair::fill(world, &pair.listener, pair.back, Plan::copy(16 << 10));
        if peer_closes {
            pair.listener.close(pair.back);
            world.watch();
            assert_eq!((pair.dialer.closing(pair.out), pair.dialer.received(pair.out)), (None, 0), "it is paused");
        }
        let started = Instant::now();
        match resumes {
            true => pair.dialer.backend().resume(pair.out).expect("it is there"),
            false => pair.dialer.close(pair.out),
        }
        pair.until_closed(world);
        assert!(started.elapsed() < pair.setup.dial.close_deadline / 2, "{:?}", started.elapsed());
        let (reason, received) = if resumes { (ClosedReason::PeerClosed, sent) } else { (ClosedReason::Local, 0) };
        assert_eq!((pair.dialer.closing(pair.out), pair.dialer.received(pair.out)), (Some(reason), received));
        let discarded = pair.dialer.backend().totals().messages_discarded.get();
        assert_eq!(discarded, (sent - received) as u64, "what is not delivered is counted");
        assert_eq!(pair.listener.completed(pair.back), sent);
    }
}

/// What arrives at a paused connection that is closing is lost with it; a `resume` then leaves no gap.
pub(super) fn a_pause_while_closing_leaves_no_gap(world: &World) {
    let pair = Pair::new(world);
    // A paused peer does not see the goodbye behind a message, and goes on sending.
    pair.listener.backend().pause(pair.back).expect("it is there");
    pair.dialer.sent(pair.out, Plan::copy(100));
    pair.dialer.close(pair.out);
    pair.listener.sent(pair.back, Plan::copy(100));
    world.until("delivered while closing", || pair.dialer.received(pair.out) == 1);
    for len in [200, 300_000] {
        pair.dialer.backend().pause(pair.out).expect("it is there");
        (0..5).for_each(|_| pair.listener.sent(pair.back, Plan::zero_copy(len)));
        world.watch();
        assert_eq!(pair.dialer.received(pair.out), 1, "it is paused");
        pair.dialer.backend().resume(pair.out).expect("it is there");
        (0..5).for_each(|_| pair.listener.sent(pair.back, Plan::zero_copy(len)));
        world.watch();
    }
    pair.listener.backend().resume(pair.back).expect("it is there");
    // The journal's check finds the gap.
    pair.until_closed(world);
    let tally = pair.dialer.tally(pair.out);
    assert_eq!(tally.reason(), Some(ClosedReason::Local));
    assert_eq!(pair.listener.closing(pair.back), Some(ClosedReason::PeerClosed));
}

/// Both sides may close at once, with data in flight both ways: all of it arrives, and both see *closed*.
pub(super) fn both_sides_may_close_at_once(world: &World) {
    for turns in 0..4 {
        let pair = Pair::new(world);
        for (sender, to, ..) in pair.directions() {
            (0..80).for_each(|i| sender.sent(to, Plan::zero_copy(i * 500)));
        }
        (0..turns).for_each(|_| world.turn());
        pair.dialer.close(pair.out);
        pair.listener.close(pair.back);
        pair.until_closed(world);
        nothing_completed_is_lost(&pair);
        for (sender, to, ..) in pair.directions() {
            let tally = sender.tally(to);
            assert_eq!((tally.completed, tally.pending()), (80, 0));
            assert!(matches!(tally.reason(), Some(ClosedReason::Local | ClosedReason::PeerClosed)), "{:?}", tally.reason());
        }
    }
}

/// From a close until *closed* sends are `NotConnected`; inside *closed* and after it, `UnknownSendEndpoint`.
pub(super) fn sends_after_a_close_are_refused(world: &World) {
    let pair = Pair::with(world, Setup::buffers(100, 2));
    let inside = Rc::new(Cell::new(0));
    for node in [&pair.dialer, &pair.listener] {
        let count = inside.clone();
        node.on(Kind::Closed, move |call| {
            super::inside::assert_unknown(call.backend, call.endpoint);
            count.set(count.get() + 1);
        });
    }
    // Small messages in a row are accepted with few looks at anything; the close is none the less seen.
    (0..4).for_each(|_| pair.dialer.sent(pair.out, Plan::copy(10)));
    pair.dialer.close(pair.out);
    for plan in [Plan::zero_copy(10), Plan::copy(10), Plan::buffer(10), Plan::copy(0)] {
        assert_eq!(pair.dialer.send(pair.out, plan), NetioStatus::NotConnected);
    }
    pair.until_closed(world);
    assert_eq!(inside.get(), 2);
    super::inside::assert_unknown(&*pair.dialer.backend(), pair.out);
    assert_eq!(pair.dialer.backend().resolve(&pair.address), Err(SendError::UnknownSendEndpoint(pair.address.into())));
}

/// Closing twice, or aborting while closing, is no error and gives one *closed*.
pub(super) fn closing_twice_is_no_error(world: &World) {
    let pair = Pair::new(world);
    pair.dialer.sent(pair.out, Plan::copy(10));
    pair.dialer.close(pair.out);
    pair.dialer.close(pair.out);
    pair.dialer.backend().close_send_endpoint(&pair.address).expect("it is closing");
    pair.until_closed(world);
    let (out, back) = pair.another(world);
    pair.dialer.close(out);
    pair.dialer.abort(out);
    pair.dialer.close(out);
    world.until("closed", || pair.dialer.closing(out).is_some() && pair.listener.closing(back).is_some());
    world.watch();
}

/// A peer that does not read is given up at `close_deadline`; what did not leave is pending.
pub(super) fn the_close_deadline_is_kept(world: &World) {
    let mut setup = Setup::tight();
    setup.dial.close_deadline = Duration::from_millis(200);
    let pair = Pair::with(world, setup);
    pair.clog(world);
    let started = Instant::now();
    pair.dialer.close(pair.out);
    world.until("closed", || pair.dialer.closing(pair.out).is_some());
    assert!(started.elapsed() >= Duration::from_millis(200) && started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    let tally = pair.dialer.tally(pair.out);
    assert_eq!(tally.reason(), Some(ClosedReason::Local));
    assert!(tally.pending() > 0);
    pair.listener.backend().resume(pair.back).expect("it is there still");
    world.until("the peer sees the end", || pair.listener.closing(pair.back).is_some());
    assert_eq!(pair.listener.closing(pair.back), Some(ClosedReason::PeerLost), "it was not told goodbye");
}

/// A peer that resumes in time gets everything, however late.
pub(super) fn a_slow_peer_gets_everything_before_the_deadline(world: &World) {
    let pair = Pair::with(world, Setup::tight());
    pair.clog(world);
    pair.dialer.close(pair.out);
    world.watch();
    assert_eq!(pair.dialer.closing(pair.out), None);
    pair.listener.backend().resume(pair.back).expect("it is there");
    pair.until_closed(world);
    let tally = pair.dialer.tally(pair.out);
    assert_eq!((tally.pending(), pair.listener.received(pair.back)), (0, tally.accepted));
    assert_eq!(pair.listener.closing(pair.back), Some(ClosedReason::PeerClosed));
}

/// Inside *closed* the address is free: the connection can be reopened there and then, over and over.
pub(super) fn an_address_can_be_reopened_inside_closed(world: &World) {
    const TIMES: usize = 20;
    let pair = Pair::new(world);
    let address = pair.address;
    let current = Rc::new(RefCell::new(vec![pair.out]));
    let opened = current.clone();
    pair.dialer.on(Kind::Closed, move |call| {
        assert_eq!(call.backend.endpoint(&address), None);
        if opened.borrow().len() < TIMES {
            let again = call.node.open_through(call.backend, address, &ConnectionParameters::default()).expect("the address is free");
            opened.borrow_mut().push(again);
        }
    });
    let last = || *current.borrow().last().expect("there is a first");
    for i in 0..TIMES {
        world.until("established again", || current.borrow().len() == i + 1 && pair.dialer.is_established(last()));
        pair.dialer.sent(last(), Plan::copy(100).by_address(address));
        if i % 2 == 0 {
            pair.dialer.close(last());
        } else {
            world.until("accepted", || pair.listener.accepted_peers().len() == i + 1);
            pair.listener.close(pair.listener.accepted_peers()[i].endpoint);
        }
        let closing = current.borrow()[i];
        world.until("closed", || pair.dialer.closing(closing).is_some());
    }
    world
        .until("each message arrives", || pair.listener.accepted_peers().iter().all(|peer| pair.listener.closing(peer.endpoint).is_some()));
}

/// Closing one connection of several to the same peer leaves the others alone.
pub(super) fn closing_one_leaves_the_others(world: &World) {
    let pair = Pair::new(world);
    let others: Vec<(Endpoint, Endpoint)> = (0..6).map(|_| pair.another(world)).collect();
    for (i, (out, back)) in others.iter().enumerate() {
        match i % 3 {
            0 => pair.dialer.close(*out),
            1 => pair.listener.close(*back),
            _ => pair.dialer.abort(*out),
        }
        pair.prove_alive(world);
        world.until("closed", || pair.dialer.closing(*out).is_some() && pair.listener.closing(*back).is_some());
    }
    assert_eq!(pair.dialer.backend().connections().len(), 1);
}

/// A hundred connections opened, used and closed one after the other leave nothing behind.
pub(super) fn opening_and_closing_leaves_nothing_behind(world: &World) {
    let listener = world.node("listener", config());
    let dialer = world.node("dialer", config());
    let address = listener.listen(world.harness.listen_address(), &ConnectionParametersRecv::default());
    for i in 0..100 {
        let (out, back) = connected(world, &dialer, &listener, || dialer.open(address, &ConnectionParameters::default()));
        dialer.sent(out, Plan::copy(i));
        let (node, end): (&Node, Endpoint) = if i % 2 == 0 { (&dialer, out) } else { (&listener, back) };
        node.close(end);
        world.until("closed", || dialer.closing(out).is_some() && listener.closing(back).is_some());
    }
    for node in [&dialer, &listener] {
        let totals = node.backend().totals();
        assert_eq!((totals.established.get(), totals.closed.get(), totals.connections.get()), (100, 100, 0));
        assert!(node.backend().connections().is_empty());
    }
}
