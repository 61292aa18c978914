//! Buffers: taking, sending, returning, running out.

use super::node::Node;
use super::pair::{Pair, Setup};
use super::plan::Plan;
use super::recorder::Kind;
use super::world::{World, config};
use crate::config::{Buffers, ConnectionParameters, NetworkConfig};
use crate::endpoint::Endpoint;
use crate::error::{BufferError, DeregisterError, SendError};
use crate::memory::{MemoryRegion, NetworkBuffer};
use crate::status::{ClosedReason, CompletionKind, NetioStatus};

fn take(node: &Node, from: Endpoint) -> NetworkBuffer {
    node.backend().take_buffer(from).expect("it has buffers").expect("one is free")
}

/// Sends a buffer by hand, journalled.
fn send(node: &Node, to: Endpoint, buffer: NetworkBuffer) {
    let (key, bytes) = (buffer.id(), buffer.as_slice().to_vec());
    node.backend().send_taken(to, buffer).expect("the buffer is accepted");
    node.accepted(to, key, CompletionKind::Buffer, &bytes);
}

/// A buffer is taken, filled and sent; its id comes back as the key, and it is free again, empty.
pub(super) fn buffers_go_round(world: &World) {
    let pair = Pair::with(world, Setup::buffers(4_096, 3));
    for (sender, to, ..) in pair.directions() {
        for round in 0..10 {
            let mut buffers: Vec<_> = (0..3).map(|_| take(sender, to)).collect();
            for (i, buffer) in buffers.iter_mut().enumerate() {
                assert_eq!((buffer.len(), buffer.capacity()), (0, 4_096));
                buffer.extend_from_slice(&vec![round as u8; [4_096, 0, 77][i]]).expect("it fits");
            }
            buffers.into_iter().for_each(|buffer| send(sender, to, buffer));
            pair.deliver(world);
        }
    }
}

/// When all are in use there is none; *writable* comes once when one is free, be it completed or dropped unsent.
pub(super) fn no_buffer_is_followed_by_writable(world: &World) {
    let pair = Pair::with(world, Setup::buffers(256, 2));
    let (node, out) = (&pair.dialer, pair.out);
    let none = || {
        assert!(node.backend().take_buffer(out).expect("it has buffers").is_none());
        node.refused(out);
    };
    let (one, two) = (take(node, out), take(node, out));
    none();
    none();
    world.watch();
    assert_eq!(node.writables(out), 0, "none is free yet");
    send(node, out, one);
    world.until("writable after a completion", || node.writables(out) == 1);
    let three = take(node, out);
    none();
    drop(two);
    drop(three);
    world.until("writable after a drop", || node.writables(out) == 2);
    world.watch();
    assert_eq!(node.writables(out), 2, "once");
    let (four, five) = (take(node, out), take(node, out));
    none();
    std::thread::spawn(move || drop((four, five))).join().expect("dropping does not panic");
    world.until("writable after a drop on another thread", || node.writables(out) == 3);
    pair.prove_alive(world);
}

/// *writable* after a refused message asks for no free buffer, although there was none: the user may hold them all, and
/// with them what was refused.
pub(super) fn a_refused_buffer_is_followed_by_writable_though_none_is_free(world: &World) {
    let mut setup = Setup::buffers(256, 1);
    setup.dial.queue_messages = 1;
    let pair = Pair::with(world, setup);
    let (node, out) = (&pair.dialer, pair.out);
    for round in 1..=6 {
        let mut buffer = take(node, out);
        buffer.extend_from_slice(&[round as u8; 200]).expect("it fits");
        let none = || {
            assert!(node.backend().take_buffer(out).expect("it has buffers").is_none());
            node.refused(out);
        };
        if round % 2 == 0 {
            none();
        }
        node.sent(out, Plan::copy(100));
        let unsent = node.backend().send_taken(out, buffer).expect_err("the queue is full");
        assert_eq!(unsent.outcome, Ok(NetioStatus::NoResources));
        node.refused_message(out, 200);
        if round % 2 == 1 {
            none();
        }
        world.until("writable", || node.writables(out) == round);
        pair.deliver(world);
        send(node, out, unsent.buffer);
        pair.deliver(world);
        world.turn();
        assert_eq!(node.writables(out), round, "once for both refusals");
    }
}

/// Buffers dropped unsent, on whichever thread, are free again at once.
pub(super) fn a_buffer_dropped_unsent_returns(world: &World) {
    let pair = Pair::with(world, Setup::buffers(64, 2));
    for round in 0..20 {
        let mut buffers = [take(&pair.dialer, pair.out), take(&pair.dialer, pair.out)];
        buffers[0].extend_from_slice(b"unsent").expect("it fits");
        if round % 2 == 0 {
            drop(buffers);
        } else {
            std::thread::spawn(move || drop(buffers)).join().expect("dropping does not panic");
        }
    }
    assert!(take(&pair.dialer, pair.out).is_empty());
    pair.prove_alive(world);
    assert_eq!(pair.dialer.writables(pair.out), 0);
}

/// `available_buffers` tells the fewest free ones since its last call.
pub(super) fn the_low_water_mark_is_told(world: &World) {
    let pair = Pair::with(world, Setup::buffers(64, 5));
    let low = || pair.dialer.backend().available_buffers(pair.out).expect("it has buffers");
    assert_eq!(low(), 5);
    let three: Vec<_> = (0..3).map(|_| take(&pair.dialer, pair.out)).collect();
    drop(three);
    assert_eq!(low(), 2, "the fewest since the last call");
    assert_eq!(low(), 5, "told once");
    (0..4).for_each(|_| pair.dialer.sent(pair.out, Plan::buffer(64)));
    assert_eq!(low(), 1);
    pair.deliver(world);
    assert_eq!(low(), 1, "it was so when last asked");
    assert_eq!(low(), 5);
}

/// A connection opened without buffers answers `NoBuffersAllocated`, and sends by the other families.
pub(super) fn without_buffers_there_are_none(world: &World) {
    let setup = Setup { accept: Setup::buffers(64, 1).accept, ..Default::default() };
    let pair = Pair::with(world, setup);
    let none = BufferError::NoBuffersAllocated(pair.out.into());
    assert_eq!(pair.dialer.backend().take_buffer(pair.out).expect_err("it has none"), none);
    assert_eq!(pair.dialer.backend().available_buffers(pair.out), Err(none));
    pair.dialer.sent(pair.out, Plan::copy(64));
    pair.listener.sent(pair.back, Plan::buffer(64));
    pair.deliver(world);
}

/// A buffer of another connection is `Failed` and handed back as it was.
pub(super) fn a_foreign_buffer_is_handed_back(world: &World) {
    let pair = Pair::with(world, Setup::buffers(64, 1));
    let (second, _) = pair.another(world);
    let mut buffer = take(&pair.dialer, second);
    buffer.extend_from_slice(b"mine").expect("it fits");
    let id = buffer.id();
    let unsent = pair.dialer.backend().send_taken(pair.out, buffer).expect_err("it is another connection's");
    assert_eq!(unsent.outcome, Ok(NetioStatus::Failed));
    assert_eq!((unsent.buffer.id(), unsent.buffer.as_slice()), (id, &b"mine"[..]));
    let unsent = pair.listener.backend().send_taken(pair.back, unsent.buffer).expect_err("it is another backend's");
    assert_eq!(unsent.outcome, Ok(NetioStatus::Failed));
    send(&pair.dialer, second, unsent.buffer);
    world.until("its own connection sends it", || pair.dialer.completed(second) == 1);
}

/// A refused buffer is handed back whole: `NoResources`, `TooBig`, `NotConnected`, `UnknownSendEndpoint`.
pub(super) fn a_refused_buffer_is_handed_back(world: &World) {
    let mut setup = Setup::buffers(9_000, 4);
    setup.dial.queue_messages = 1;
    setup.listener = NetworkConfig { max_message_len: 5_000, ..config() };
    let pair = Pair::with(world, setup);
    let (node, out) = (&pair.dialer, pair.out);
    let refuse = |len: usize, outcome: Result<NetioStatus, SendError>, mut buffer: NetworkBuffer| {
        buffer.clear();
        buffer.extend_from_slice(&vec![9; len]).expect("it fits");
        let id = buffer.id();
        let unsent = node.backend().send_taken(out, buffer).expect_err("it is refused");
        assert_eq!(unsent.outcome, outcome);
        assert_eq!((unsent.buffer.id(), unsent.buffer.as_slice()), (id, &vec![9; len][..]));
        unsent.buffer
    };
    let buffer = refuse(5_001, Ok(NetioStatus::TooBig), take(node, out));
    node.sent(out, Plan::buffer(5_000));
    let buffer = refuse(10, Ok(NetioStatus::NoResources), buffer);
    node.refused(out);
    pair.deliver(world);
    world.until("writable", || node.writables(out) == 1);
    node.close(out);
    let buffer = refuse(11, Ok(NetioStatus::NotConnected), buffer);
    pair.until_closed(world);
    refuse(12, Err(SendError::UnknownSendEndpoint(out.into())), buffer);
}

/// A buffer outlives its connection and its backend: it can still be written, and dropped.
pub(super) fn a_buffer_outlives_its_backend(world: &World) {
    let pair = Pair::with(world, Setup::buffers(1_000, 2));
    let (mut one, mut two) = (take(&pair.dialer, pair.out), take(&pair.dialer, pair.out));
    pair.dialer.close(pair.out);
    pair.until_closed(world);
    one.extend_from_slice(&[1; 1_000]).expect("it fits");
    drop(one);
    pair.dialer.drop_backend();
    two.extend_from_slice(&[2; 1_000]).expect("it fits");
    assert_eq!(two.as_slice(), [2; 1_000]);
    std::thread::spawn(move || drop(two)).join().expect("dropping does not panic");
}

/// Buffers cut from a region of the user's can be sent on any connection, and return to their own pool.
pub(super) fn buffers_cut_from_a_region_go_anywhere(world: &World) {
    // Neither connection needs buffers of its own.
    let pair = Pair::new(world);
    let (second, second_back) = pair.another(world);
    let region = MemoryRegion::new(4 * 1_000).expect("memory");
    let id = pair.dialer.backend().register(&region).expect("there is room");
    let mut pool = region.cut(1_000).expect("it is cut once");
    for round in 1..=5 {
        for i in 0..4 {
            let mut buffer = pool.take().expect("all have returned");
            buffer.extend_from_slice(&[round as u8; 900][..i * 300]).expect("it fits");
            send(&pair.dialer, if i % 2 == 0 { pair.out } else { second }, buffer);
        }
        assert!(pool.take().is_none());
        pair.deliver(world);
        world.until("the second's arrive", || {
            pair.listener.received(second_back) == 2 * round && pair.dialer.completed(second) == 2 * round
        });
        assert_eq!(pool.available(), 4);
    }
    pair.dialer.backend().deregister(id).expect("nothing holds it");
}

/// Buffers that are queued when the connection ends come back in the pending list, under their ids.
pub(super) fn queued_buffers_are_pending_at_the_end(world: &World) {
    let connection = ConnectionParameters { buffers: Some(Buffers { size: 16 << 10, count: 64 }), ..super::pair::tight() };
    let pair = Pair::with(world, Setup::both(connection));
    pair.listener.backend().pause(pair.back).expect("it is there");
    super::pair::fill(world, &pair.dialer, pair.out, Plan::buffer(16 << 10));
    pair.dialer.sent_or_refused(pair.out, Plan::copy(3));
    pair.dialer.abort(pair.out);
    world.until("closed", || pair.dialer.closing(pair.out).is_some());
    let tally = pair.dialer.tally(pair.out);
    assert_eq!(tally.reason(), Some(ClosedReason::Local));
    assert!(tally.pending() > 0 && tally.pending() + tally.completed == tally.accepted);
}

/// The peer is gone, and what waits is given up, but its end is not told yet since this side is at its cap. A buffer that could
/// be had again would be pending twice under its id.
pub(super) fn no_buffer_is_free_before_its_key_comes_back_though_its_message_was_given_up(world: &World) {
    let connection = ConnectionParameters { buffers: Some(Buffers { size: 16 << 10, count: 8 }), ..super::pair::tight() };
    let mut setup = Setup::both(connection);
    setup.listener.owned_messages = 1;
    let pair = Pair::with(world, setup);
    let held = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let hold = held.clone();
    pair.listener.on(Kind::Data, move |call| hold.borrow_mut().push(call.take_over()));
    pair.dialer.backend().pause(pair.out).expect("it is connected");
    (0..4).for_each(|_| pair.dialer.sent(pair.out, Plan::copy(10)));
    world.until("it is at its cap", || held.borrow().len() == 1);
    super::pair::fill(world, &pair.listener, pair.back, Plan::buffer(16 << 10));
    pair.dialer.abort(pair.out);
    world.watch();
    let backend = pair.listener.backend();
    assert!(backend.take_buffer(pair.back).expect("it is not told yet").is_none(), "none has completed");
    world.until("it is told", || {
        drop(held.take());
        pair.listener.tally(pair.back).closed.is_some()
    });
    assert_eq!(pair.listener.tally(pair.back).pending(), 8);
}

/// Inside *completed* the buffer is free again.
pub(super) fn a_completed_buffer_is_free_inside_the_callback(world: &World) {
    let pair = Pair::with(world, Setup::buffers(128, 1));
    let rounds = std::rc::Rc::new(std::cell::Cell::new(0));
    let count = rounds.clone();
    pair.dialer.on(Kind::Completed, move |call| {
        count.set(count.get() + 1);
        if count.get() < 50 {
            assert_eq!(call.send(call.endpoint, Plan::buffer(100)), NetioStatus::Ok);
        }
    });
    pair.dialer.sent(pair.out, Plan::buffer(100));
    world.until("the one buffer goes round fifty times", || rounds.get() == 50);
    pair.deliver(world);
}

/// Families mixed on one connection keep their order.
pub(super) fn families_keep_their_order_when_mixed(world: &World) {
    let pair = Pair::with(world, Setup::buffers(500, 200));
    for i in 0..200 {
        let plan = [Plan::buffer(i * 2), Plan::copy(i * 30), Plan::zero_copy(i * 90)][i % 3];
        pair.dialer.sent(pair.out, plan);
    }
    pair.deliver(world);
}

/// A buffer of a connection that is gone is `Failed` on the next one to the same peer.
pub(super) fn a_buffer_of_a_former_connection_is_foreign(world: &World) {
    let pair = Pair::with(world, Setup::buffers(64, 1));
    let old = take(&pair.dialer, pair.out);
    pair.dialer.close(pair.out);
    pair.until_closed(world);
    let (out, _) = pair.another(world);
    let unsent = pair.dialer.backend().send_taken(out, old).expect_err("it belonged to another connection");
    assert_eq!(unsent.outcome, Ok(NetioStatus::Failed));
    drop(unsent);
    send(&pair.dialer, out, take(&pair.dialer, out));
    world.until("its own goes", || pair.dialer.completed(out) == 1);
}

/// A buffer cut from a region holds it as zero-copy sends do: it is `Busy` meanwhile. With strict regions, one cut
/// from a region that is not registered is `NotRegistered`, and handed back.
pub(super) fn buffers_cut_from_a_region_count_as_its_use(world: &World) {
    let dialer = NetworkConfig { strict_regions: true, ..config() };
    let pair = Pair::with(world, Setup { dialer, ..Default::default() });
    let region = MemoryRegion::new(2 * 1_000).expect("memory");
    let mut pool = region.cut(1_000).expect("it is cut once");
    let mut fill = |byte| {
        let mut buffer = pool.take().expect("one is free");
        buffer.extend_from_slice(&[byte; 700]).expect("it fits");
        buffer
    };
    let unsent = pair.dialer.backend().send_taken(pair.out, fill(1)).expect_err("the region is not registered");
    assert_eq!((unsent.outcome, unsent.buffer.as_slice()), (Ok(NetioStatus::NotRegistered), &[1; 700][..]));
    let id = pair.dialer.backend().register(&region).expect("there is room");
    send(&pair.dialer, pair.out, unsent.buffer);
    assert_eq!(pair.dialer.backend().deregister(id), Err(DeregisterError::Busy(id)), "the loop has not run since");
    send(&pair.dialer, pair.out, fill(2));
    pair.deliver(world);
    pair.dialer.backend().deregister(id).expect("nothing holds it");
    let unsent = pair.dialer.backend().send_taken(pair.out, fill(3)).expect_err("the region is not registered any more");
    assert_eq!(unsent.outcome, Ok(NetioStatus::NotRegistered));
}
