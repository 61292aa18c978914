//! Full queues, *writable*, and paused peers.

use std::cell::Cell;
use std::rc::Rc;

use super::pair::{Pair, Setup, connected, fill, tight};
use super::plan::Plan;
use super::recorder::Kind;
use super::world::{WATCH, World, config};
use crate::config::{ConnectionParameters, ConnectionParametersRecv, NetworkConfig};
use crate::status::{ClosedReason, NetioStatus};

/// A queue full of messages refuses with `NoResources`; nothing is lost or reordered, and *writable* comes exactly once.
pub(super) fn a_full_queue_refuses_and_tells_once_when_it_has_room(world: &World) {
    let pair = Pair::with(world, Setup::queue(8));
    for (sender, to, ..) in pair.directions() {
        for round in 1..=5 {
            (0..8).for_each(|i| sender.sent(to, if i % 2 == 0 { Plan::copy(100) } else { Plan::zero_copy(3_000) }));
            for plan in [Plan::copy(1), Plan::zero_copy(3_000), Plan::copy(70_000), Plan::zero_copy(0)] {
                assert_eq!(sender.send(to, plan), NetioStatus::NoResources, "{plan:?}");
            }
            world.until("writable", || sender.writables(to) == round);
            pair.deliver(world);
            world.watch();
            assert_eq!(sender.writables(to), round, "once after any number of refusals");
        }
    }
}

/// A queue full of bytes refuses likewise.
pub(super) fn a_queue_full_of_bytes_refuses_likewise(world: &World) {
    let pair = Pair::with(world, Setup::both(ConnectionParameters { queue_bytes: 100_000, ..Default::default() }));
    for round in 1..=5 {
        (0..10).for_each(|_| pair.dialer.sent(pair.out, Plan::zero_copy(10_000).header(100)));
        assert_eq!(pair.dialer.send(pair.out, Plan::zero_copy(10_000)), NetioStatus::NoResources);
        assert_eq!(pair.dialer.send(pair.out, Plan::copy(1)), NetioStatus::NoResources);
        world.until("writable", || pair.dialer.writables(pair.out) == round);
        pair.deliver(world);
    }
}

/// An empty queue accepts any one message within the limits, however small the queue.
pub(super) fn an_empty_queue_takes_any_one_message(world: &World) {
    let params = ConnectionParameters { queue_bytes: 1, queue_messages: 1, ..Default::default() };
    let pair = Pair::with(world, Setup::both(params));
    for (sender, to, ..) in pair.directions() {
        for plan in [Plan::zero_copy(3 << 20), Plan::copy(3 << 20).header(256), Plan::copy(2), Plan::zero_copy(0), Plan::copy(0)] {
            sender.sent(to, plan);
            pair.deliver(world);
        }
    }
}

/// A batch is taken as far as there is room for messages and for their bytes; the rest is after *writable*.
pub(super) fn a_batch_goes_as_far_as_there_is_room(world: &World) {
    for (params, room) in [
        (ConnectionParameters { queue_messages: 20, ..Default::default() }, 20),
        (ConnectionParameters { queue_bytes: 1_050, ..Default::default() }, 10),
    ] {
        let pair = Pair::with(world, Setup::both(params));
        for (sender, to, ..) in pair.directions() {
            for round in 1..=5 {
                assert_eq!(sender.send_batch(&*sender.backend(), to, &[(8, 100); 50]), Ok((room, NetioStatus::NoResources)));
                assert_eq!(sender.send_batch(&*sender.backend(), to, &[(8, 100); 50]), Ok((0, NetioStatus::NoResources)));
                world.until("writable", || sender.writables(to) == round);
                pair.deliver(world);
            }
        }
    }
}

/// *writable* comes only after refusals: a flood within the queue sees none.
pub(super) fn writable_never_comes_without_a_refusal(world: &World) {
    let pair = Pair::with(world, Setup::queue(1_000));
    for _ in 0..5 {
        (0..1_000).for_each(|_| pair.dialer.sent(pair.out, Plan::copy(200)));
        pair.deliver(world);
    }
    pair.listener.backend().pause(pair.back).expect("it is there");
    pair.listener.backend().resume(pair.back).expect("it is there");
    world.watch();
    assert_eq!(pair.dialer.writables(pair.out) + pair.listener.writables(pair.back), 0);
}

/// After *writable* the largest refused message fits, or the queue is empty: it is accepted.
pub(super) fn after_writable_the_refused_message_is_accepted(world: &World) {
    let pair = Pair::with(world, Setup::both(ConnectionParameters { queue_bytes: 50_000, ..Default::default() }));
    let accepted = Rc::new(Cell::new(0));
    for refused in [30_000, 49_000, 400_000] {
        pair.dialer.sent(pair.out, Plan::copy(40_000));
        assert_eq!(pair.dialer.send(pair.out, Plan::zero_copy(20_000)), NetioStatus::NoResources);
        assert_eq!(pair.dialer.send(pair.out, Plan::zero_copy(refused)), NetioStatus::NoResources);
        let count = accepted.clone();
        pair.dialer.once(Kind::Writable, move |call| {
            assert_eq!(call.send(call.endpoint, Plan::zero_copy(refused)), NetioStatus::Ok);
            count.set(count.get() + 1);
        });
        let before = accepted.get();
        world.until("writable", || accepted.get() > before);
        pair.deliver(world);
    }
}

/// A stream far longer than its queue, continued in *writable*, arrives whole.
pub(super) fn a_stream_continued_in_writable_arrives_whole(world: &World) {
    const MESSAGES: usize = 5_000;
    let pair = Pair::with(world, Setup::queue(7));
    for (sender, to, ..) in pair.directions() {
        let stream = move |call: &super::recorder::Call<'_, '_>| {
            while call.node.tally(to).accepted < MESSAGES {
                let len = call.node.tally(to).accepted % 600;
                match call.send(to, if len.is_multiple_of(3) { Plan::zero_copy(len * 9) } else { Plan::copy(len) }) {
                    NetioStatus::Ok => {}
                    NetioStatus::NoResources => return,
                    status => panic!("{status:?}"),
                }
            }
        };
        sender.on(Kind::Writable, stream);
        while sender.send(to, Plan::copy(5)) == NetioStatus::Ok {}
    }
    world.until("both streams are sent", || pair.directions().iter().all(|(sender, to, ..)| sender.tally(*to).accepted == MESSAGES));
    pair.deliver(world);
}

/// The queues of all connections together are bounded by the backend's totals, with the same refusal and *writable*.
pub(super) fn the_totals_of_all_queues_are_bounded(world: &World) {
    let dialer = NetworkConfig { total_queue_messages: 6, ..config() };
    let pair = Pair::with(world, Setup { dialer, ..Default::default() });
    let (second, second_back) = pair.another(world);
    (0..3).for_each(|_| pair.dialer.sent(pair.out, Plan::copy(10)));
    (0..3).for_each(|_| pair.dialer.sent(second, Plan::copy(10)));
    assert_eq!(pair.dialer.send(pair.out, Plan::copy(10)), NetioStatus::NoResources);
    assert_eq!(pair.dialer.send(second, Plan::copy(10)), NetioStatus::NoResources);
    world.until("both are writable", || pair.dialer.writables(pair.out) == 1 && pair.dialer.writables(second) == 1);
    pair.deliver(world);
    pair.dialer.sent(second, Plan::copy(10));
    world.until("they arrive", || pair.listener.received(second_back) == 4);
}

/// Large totals are kept to the message as well, however room is dealt out to connections.
pub(super) fn large_totals_of_all_queues_are_bounded(world: &World) {
    const TOTAL: usize = 4_100;
    let dialer = NetworkConfig { total_queue_messages: TOTAL, ..config() };
    // Nothing leaves meanwhile.
    let dial = ConnectionParameters { flush_messages: Some(usize::MAX), ..Default::default() };
    let pair = Pair::with(world, Setup { dial, dialer, ..Default::default() });
    let (second, second_back) = pair.another(world);
    let mut open = vec![pair.out, second];
    while !open.is_empty() {
        open.retain(|to| pair.dialer.send(*to, Plan::copy(3)) == NetioStatus::Ok);
    }
    let accepted = [pair.out, second].map(|to| pair.dialer.tally(to).accepted);
    assert_eq!(accepted.iter().sum::<usize>(), TOTAL);
    pair.deliver(world);
    world.until("they arrive", || pair.listener.received(second_back) == accepted[1]);
    world.until("both are writable", || [pair.out, second].iter().all(|to| pair.dialer.writables(*to) == 1));
    assert_eq!(pair.dialer.backend().totals().snapshot().queued_messages, 0);
}

/// The bytes of all queues together are bounded likewise.
pub(super) fn the_total_bytes_of_all_queues_are_bounded(world: &World) {
    let dialer = NetworkConfig { total_queue_bytes: 60_000, ..config() };
    let pair = Pair::with(world, Setup { dialer, ..Default::default() });
    let (second, second_back) = pair.another(world);
    (0..5).for_each(|_| pair.dialer.sent(pair.out, Plan::copy(10_000)));
    pair.dialer.sent(second, Plan::copy(9_000));
    assert_eq!(pair.dialer.send(second, Plan::copy(9_000)), NetioStatus::NoResources);
    world.until("writable", || pair.dialer.writables(second) == 1);
    pair.dialer.sent(second, Plan::copy(9_000));
    pair.deliver(world);
    world.until("they arrive", || pair.listener.received(second_back) == 2);
}

/// While paused nothing is delivered; after `resume` everything is, in order.
pub(super) fn nothing_is_delivered_while_paused(world: &World) {
    let pair = Pair::new(world);
    for (sender, to, receiver, at) in pair.directions() {
        for round in 1..=3 {
            receiver.backend().pause(at).expect("it is there");
            receiver.backend().pause(at).expect("twice is once");
            (0..30).for_each(|i| sender.sent(to, Plan::copy(i * 40)));
            world.watch();
            assert_eq!(receiver.received(at), (round - 1) * 30);
            receiver.backend().resume(at).expect("it is there");
            receiver.backend().resume(at).expect("twice is once");
            pair.deliver(world);
        }
    }
}

/// `pause` inside `on_data` holds from the next message on, those read already included.
pub(super) fn pausing_inside_data_holds_at_once(world: &World) {
    let pair = Pair::new(world);
    pair.listener.on(Kind::Data, |call| call.backend.pause(call.endpoint).expect("it is there"));
    (0..20).for_each(|i| pair.dialer.sent(pair.out, Plan::copy(i * 10)));
    for received in 1..=20 {
        world.until("one more", || pair.listener.received(pair.back) == received);
        world.within(WATCH / 10, || false);
        assert_eq!(pair.listener.received(pair.back), received);
        pair.listener.backend().resume(pair.back).expect("it is there");
    }
    world.until("all keys come back", || pair.dialer.completed(pair.out) == 20);
}

/// Who has paused a connection and waits for messages to leave it hears that its peer is gone, whatever came before.
pub(super) fn a_paused_connection_with_messages_to_leave_ends_with_its_peer(world: &World) {
    let pair = Pair::with(world, Setup::tight());
    for (node, at) in [(&pair.dialer, pair.out), (&pair.listener, pair.back)] {
        node.backend().pause(at).expect("it is there");
    }
    pair.dialer.sent(pair.out, Plan::copy(10));
    fill(world, &pair.listener, pair.back, Plan::zero_copy(20_000));
    pair.dialer.abort(pair.out);
    world.until("it is told", || pair.listener.tally(pair.back).closed.is_some());
    let (pending, reason) = pair.listener.tally(pair.back).closed.expect("it is told");
    assert!(!pending.is_empty() && reason == ClosedReason::PeerLost, "{reason:?} with {} pending", pending.len());
}

/// A paused peer slows the sender down until it gets `NoResources`; after `resume` all arrives, with one *writable*.
pub(super) fn a_paused_peer_slows_the_sender_down(world: &World) {
    let pair = Pair::with(world, Setup::tight());
    let accepted = pair.clog(world);
    assert_eq!(pair.listener.received(pair.back), 0);
    let (tally, writables) = (pair.dialer.tally(pair.out), pair.dialer.writables(pair.out));
    assert!(tally.completed < accepted, "the queue holds some");
    pair.listener.backend().resume(pair.back).expect("it is there");
    pair.deliver(world);
    world.until("writable", || pair.dialer.writables(pair.out) == writables + 1);
}

/// A paused connection hinders no other one, and goes on sending itself.
pub(super) fn a_paused_connection_hinders_no_other(world: &World) {
    let pair = Pair::with(world, Setup::tight());
    let (second, second_back) = pair.another(world);
    pair.clog(world);
    for round in 1..=20 {
        pair.dialer.sent(second, Plan::zero_copy(20_000));
        pair.listener.sent(pair.back, Plan::copy(1_000));
        world
            .until("the others' messages pass", || pair.listener.received(second_back) == round && pair.dialer.received(pair.out) == round);
    }
    assert_eq!(pair.listener.received(pair.back), 0);
}

/// A peer's orderly close waits behind the data of a paused connection: after `resume` come the data, then *closed*.
pub(super) fn a_close_waits_behind_paused_data(world: &World) {
    let pair = Pair::new(world);
    pair.listener.backend().pause(pair.back).expect("it is there");
    (0..10).for_each(|_| pair.dialer.sent(pair.out, Plan::copy(500)));
    pair.dialer.close(pair.out);
    world.watch();
    assert_eq!((pair.listener.received(pair.back), pair.listener.closing(pair.back)), (0, None));
    pair.listener.backend().resume(pair.back).expect("it is there");
    pair.until_closed(world);
    assert_eq!((pair.listener.received(pair.back), pair.listener.closing(pair.back)), (10, Some(ClosedReason::PeerClosed)));
    assert_eq!(pair.dialer.closing(pair.out), Some(ClosedReason::Local));
}

/// Both sides may send without reading until both queues are full, and then recover.
pub(super) fn both_sides_full_recover(world: &World) {
    let listener = world.node("listener", config());
    let dialer = world.node("dialer", config());
    let accept = ConnectionParametersRecv { connection: tight(), ..Default::default() };
    let address = listener.listen(world.harness.listen_address(), &accept);
    let (out, back) = connected(world, &dialer, &listener, || dialer.open(address, &tight()));
    dialer.backend().pause(out).expect("it is there");
    listener.backend().pause(back).expect("it is there");
    fill(world, &dialer, out, Plan::copy(5_000));
    fill(world, &listener, back, Plan::zero_copy(7_000));
    dialer.backend().resume(out).expect("it is there");
    listener.backend().resume(back).expect("it is there");
    world.until("all arrive", || {
        super::pair::all_arrived(&dialer, out, &listener, back) && super::pair::all_arrived(&listener, back, &dialer, out)
    });
}

/// The connection that would exceed `total_assembly_bytes` is *closed(Limit)*; others go on.
pub(super) fn memory_for_assembling_is_bounded(world: &World) {
    let listener = NetworkConfig { total_assembly_bytes: 1 << 20, ..config() };
    let pair = Pair::with(world, Setup { listener, ..Default::default() });
    let (second, second_back) = pair.another(world);
    pair.dialer.sent(pair.out, Plan::zero_copy(8 << 20));
    world.until("closed", || pair.listener.closing(pair.back).is_some() && pair.dialer.closing(pair.out).is_some());
    assert_eq!(pair.listener.closing(pair.back), Some(ClosedReason::Limit));
    assert_eq!(pair.dialer.closing(pair.out), Some(ClosedReason::PeerLost));
    pair.dialer.sent(second, Plan::zero_copy(500_000));
    world.until("the other one's message arrives", || pair.listener.received(second_back) == 1);
    let held = pair.listener.backend().totals();
    assert!(held.assembly_bytes.get() <= 1 << 20);
    pair.dialer.close(second);
    world.until("closed", || pair.listener.closing(second_back).is_some());
    assert_eq!(held.assembly_bytes.get(), 0, "nothing is held for connections that are gone");
}

/// What a connection keeps of the memory that it has assembled messages in takes nothing from the others, and is given back
/// when the connection is idle.
pub(super) fn memory_kept_for_assembling_hinders_no_other(world: &World) {
    let listener = NetworkConfig { total_assembly_bytes: 8 << 20, ..config() };
    let pair = Pair::with(world, Setup { listener, ..Default::default() });
    let others: Vec<_> = (1..8).map(|_| pair.another(world)).collect();
    let held = pair.listener.backend().totals();
    // Never more than one message is under way, which takes a quarter of the memory.
    for (out, back) in [(pair.out, pair.back)].into_iter().chain(others) {
        pair.dialer.sent(out, Plan::zero_copy(2 << 20));
        world.until("it arrives", || pair.listener.received(back) == 1 || pair.listener.closing(back).is_some());
        assert_eq!(pair.listener.closing(back), None);
        assert!(held.assembly_bytes.get() <= 8 << 20);
    }
    world.until("it is given back", || held.assembly_bytes.get() == 0);
}
