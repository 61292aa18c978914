//! Messages that the user takes over.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;

use super::node::Node;
use super::pair::{Pair, Setup};
use super::pattern::{content, digest};
use super::plan::Plan;
use super::recorder::Kind;
use super::world::{World, config};
use crate::config::NetworkConfig;
use crate::stats::BackendCounters;
use crate::status::{ClosedReason, NetioStatus};

/// The messages that a node has taken over.
type Kept = Rc<RefCell<Vec<Bytes>>>;

fn keep_all(node: &Node) -> Kept {
    let kept = Kept::default();
    let keep = kept.clone();
    node.on(Kind::Data, move |call| keep.borrow_mut().push(call.take_over()));
    kept
}

/// `into_bytes` keeps a message of any size beyond its callback, its connection and its backend.
pub(super) fn a_message_taken_over_outlives_everything(world: &World) {
    let pair = Pair::new(world);
    let kept = keep_all(&pair.listener);
    let sizes = [0, 1, 100, 5_000, 200_000, 300_000, 5 << 20];
    for len in sizes {
        pair.dialer.sent(pair.out, Plan::zero_copy(len));
        pair.dialer.sent(pair.out, Plan::copy(len));
    }
    pair.deliver(world);
    pair.dialer.close(pair.out);
    pair.until_closed(world);
    pair.listener.drop_backend();
    assert_eq!(kept.borrow().len(), sizes.len() * 2);
    for (seq, bytes) in kept.borrow().iter().enumerate() {
        assert_eq!(digest(bytes), digest(&content(pair.out, seq as u64, sizes[seq / 2])), "message {seq}");
    }
}

/// At the cap on taken-over messages reading pauses; dropping some, on another thread, lets it go on.
pub(super) fn at_the_cap_of_messages_reading_pauses(world: &World) {
    let pair = Pair::with(world, Setup { listener: NetworkConfig { owned_messages: 4, ..config() }, ..Default::default() });
    let kept = keep_all(&pair.listener);
    (0..20).for_each(|i| pair.dialer.sent(pair.out, Plan::copy(10 + i * 100)));
    let counters = pair.listener.backend().stats(pair.back).expect("it is there");
    for round in 1..=5 {
        world.until("four more are delivered", || pair.listener.received(pair.back) == round * 4);
        world.watch();
        assert_eq!(pair.listener.received(pair.back), round * 4, "the cap is kept");
        assert_eq!(counters.owned_messages.get(), 4);
        let taken = kept.take();
        std::thread::spawn(move || drop(taken)).join().expect("dropping does not panic");
    }
    pair.deliver(world);
    assert_eq!((counters.owned_messages.get(), counters.owned_bytes.get()), (0, 0));
}

/// At the cap on their bytes reading pauses likewise, and the sender is slowed down.
pub(super) fn at_the_cap_of_bytes_reading_pauses(world: &World) {
    let mut setup = Setup::tight();
    setup.listener.owned_bytes = 1 << 20;
    let pair = Pair::with(world, setup);
    let kept = keep_all(&pair.listener);
    let delivered = || pair.listener.received(pair.back);
    // Where the machine is busy, filling may take a pause for the end.
    let fill = || super::pair::fill(world, &pair.dialer, pair.out, Plan::zero_copy(100_000));
    let accepted: usize = (0..20).map_while(|_| (delivered() < 8).then(fill)).sum();
    let counters = pair.listener.backend().stats(pair.back).expect("it is there");
    let delivered = delivered();
    assert!(delivered < accepted && delivered >= 8, "{delivered} of {accepted} are delivered");
    assert!(counters.owned_bytes.get() < 2 << 20, "{} bytes are held", counters.owned_bytes.get());
    // From now on nothing is kept.
    pair.listener.forget_hooks();
    let taken = kept.take();
    std::thread::spawn(move || drop(taken)).join().expect("dropping does not panic");
    pair.deliver(world);
}

/// What it has taken over is what waits to be sent back, and keeps it at the cap: once the peer is gone that never leaves.
pub(super) fn an_echo_at_its_cap_is_told_of_the_end_of_its_peer(world: &World) {
    let mut setup = Setup::tight();
    setup.listener.owned_messages = 4;
    let pair = Pair::with(world, setup);
    [&pair.dialer, &pair.listener].into_iter().for_each(Node::counts_itself);
    pair.listener.on(Kind::Data, |call| {
        // What comes once the peer is gone finds the queue full in the end.
        let bytes = call.take_over();
        let sent = call.backend.send(call.endpoint, &bytes, b"", 0);
        assert!(matches!(sent, Ok(NetioStatus::Ok | NetioStatus::NoResources)), "{sent:?}");
    });
    pair.dialer.backend().pause(pair.out).expect("it is connected");
    let counters = pair.listener.backend().stats(pair.back).expect("it is there");
    let is_stuck = || super::pair::fill(world, &pair.dialer, pair.out, Plan::zero_copy(20_000)) == 0 && counters.owned_messages.get() == 4;
    assert!((0..20).any(|_| is_stuck()), "it takes over {} messages", counters.owned_messages.get());
    pair.dialer.abort(pair.out);
    world.until("it is told", || pair.listener.tally(pair.back).closed.is_some());
    let (pending, reason) = pair.listener.tally(pair.back).closed.expect("it is told");
    assert!(pending.len() >= 4 && reason == ClosedReason::PeerLost, "{reason:?} with {} pending", pending.len());
    assert_eq!(counters.owned_messages.get(), 0);
}

/// Messages wait to leave, the peer is gone, and it is paused only then, before its end was found.
pub(super) fn who_pauses_after_the_end_of_the_peer_is_told_all_the_same(world: &World) {
    let mut setup = Setup::tight();
    setup.listener.owned_messages = 1;
    let pair = Pair::with(world, setup);
    let kept = Kept::default();
    let keep = kept.clone();
    pair.listener.on(Kind::Data, move |call| {
        if call.node.received(call.endpoint) > 1 {
            return call.backend.pause(call.endpoint).expect("it is there");
        }
        keep.borrow_mut().push(call.take_over());
    });
    pair.dialer.backend().pause(pair.out).expect("it is connected");
    (0..10).for_each(|_| pair.dialer.sent(pair.out, Plan::copy(10)));
    world.until("it is at its cap", || kept.borrow().len() == 1);
    super::pair::fill(world, &pair.listener, pair.back, Plan::zero_copy(20_000));
    pair.dialer.abort(pair.out);
    world.watch();
    assert!(pair.listener.tally(pair.back).closed.is_none(), "it is at its cap");
    drop(kept.take());
    world.until("it is told", || pair.listener.tally(pair.back).closed.is_some());
    let (pending, reason) = pair.listener.tally(pair.back).closed.expect("it is told");
    assert!(!pending.is_empty() && reason == ClosedReason::PeerLost, "{reason:?} with {} pending", pending.len());
}

/// The cap on all connections together pauses all of them, and lets all go on.
pub(super) fn at_the_cap_of_all_connections_reading_pauses(world: &World) {
    let listener = NetworkConfig { total_owned_messages: 5, ..config() };
    five_at_a_time(world, listener, [50, 60], |totals| assert_eq!(totals.owned_messages.get(), 5));
}

/// The cap on the bytes of all of them pauses likewise.
pub(super) fn at_the_cap_of_the_bytes_of_all_connections_reading_pauses(world: &World) {
    let listener = NetworkConfig { total_owned_bytes: 5_000, ..config() };
    five_at_a_time(world, listener, [1_000; 2], |totals| assert_eq!(totals.owned_bytes.get(), 5_000));
}

/// A listener takes five messages over, of two connections with messages of these lengths, before it reads on.
#[track_caller]
fn five_at_a_time(world: &World, listener: NetworkConfig, lens: [usize; 2], check: impl Fn(&BackendCounters)) {
    let pair = Pair::with(world, Setup { listener, ..Default::default() });
    let kept = keep_all(&pair.listener);
    let (second, second_back) = pair.another(world);
    for _ in 0..10 {
        pair.dialer.sent(pair.out, Plan::copy(lens[0]));
        pair.dialer.sent(second, Plan::copy(lens[1]));
    }
    let received = || pair.listener.received(pair.back) + pair.listener.received(second_back);
    for round in 1..=4 {
        world.until("five more are delivered", || received() == round * 5);
        world.watch();
        assert_eq!(received(), round * 5, "the cap is kept");
        check(&pair.listener.backend().totals());
        kept.take();
    }
    pair.deliver(world);
}

/// Messages that are only looked at are never counted against the cap.
pub(super) fn messages_only_looked_at_are_not_counted(world: &World) {
    let pair = Pair::with(world, Setup { listener: NetworkConfig { owned_messages: 1, owned_bytes: 1, ..config() }, ..Default::default() });
    for len in [10, 10_000, 400_000, 2 << 20] {
        (0..3).for_each(|_| pair.dialer.sent(pair.out, Plan::zero_copy(len)));
        pair.deliver(world);
    }
    assert_eq!(pair.listener.backend().totals().owned_bytes.get(), 0);
}

/// Both at the cap, a `pause` and a `resume` change nothing: reading goes on only when there is room.
pub(super) fn resume_does_not_lift_the_cap(world: &World) {
    let pair = Pair::with(world, Setup { listener: NetworkConfig { owned_messages: 2, ..config() }, ..Default::default() });
    let kept = keep_all(&pair.listener);
    (0..6).for_each(|_| pair.dialer.sent(pair.out, Plan::copy(1_000)));
    world.until("the cap is reached", || pair.listener.received(pair.back) == 2);
    pair.listener.backend().pause(pair.back).expect("it is there");
    pair.listener.backend().resume(pair.back).expect("it is there");
    world.watch();
    assert_eq!(pair.listener.received(pair.back), 2);
    pair.listener.backend().pause(pair.back).expect("it is there");
    kept.take();
    world.watch();
    assert_eq!(pair.listener.received(pair.back), 2, "it is paused now");
    pair.listener.forget_hooks();
    pair.listener.backend().resume(pair.back).expect("it is there");
    pair.deliver(world);
}
