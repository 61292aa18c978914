//! Backends and their loops: sharing, threads, order of dropping, idling, stopping.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::pair::{Pair, Setup, all_arrived, connected, connected_across};
use super::plan::Plan;
use super::recorder::Kind;
use super::world::{World, config, wait};
use crate::config::{ConnectionParameters, ConnectionParametersRecv};
use crate::memory::MemoryRegion;
use crate::status::{ClosedReason, NetioStatus};

/// Several backends share one loop, each connected to each.
pub(super) fn backends_share_a_loop(world: &World) {
    let nodes: Vec<_> = (0..4).map(|_| world.node("one of four", config())).collect();
    let addresses: Vec<_> =
        nodes.iter().map(|node| node.listen(world.harness.listen_address(), &ConnectionParametersRecv::default())).collect();
    let mut ends = Vec::new();
    for (i, dialer) in nodes.iter().enumerate() {
        for (j, address) in addresses.iter().enumerate() {
            // A backend may dial itself, too.
            let (out, back) = connected(world, dialer, &nodes[j], || dialer.open(*address, &ConnectionParameters::default()));
            ends.push((i, out, j, back));
        }
    }
    for round in 0..20 {
        for (i, out, j, back) in &ends {
            nodes[*i].sent(*out, Plan::copy(round * 10));
            nodes[*j].sent(*back, Plan::zero_copy(round * 50));
        }
    }
    world.until("all arrive", || {
        ends.iter()
            .all(|(i, out, j, back)| all_arrived(&nodes[*i], *out, &nodes[*j], *back) && all_arrived(&nodes[*j], *back, &nodes[*i], *out))
    });
}

/// Loops on threads of their own, each with a backend of its own, talk to each other.
pub(super) fn loops_on_several_threads_talk(world: &World) {
    const DIALERS: usize = 3;
    const MESSAGES: usize = 1_000;
    let listener = world.node("listener", config());
    let address = listener.listen(world.harness.listen_address(), &ConnectionParametersRecv::default());
    listener.on(Kind::Data, |call| {
        // Half of the messages are answered.
        if call.node.received(call.endpoint) % 2 == 0 {
            assert_eq!(call.send(call.endpoint, Plan::copy(100)), NetioStatus::Ok);
        }
    });
    let threads: Vec<_> = (0..DIALERS)
        .map(|_| {
            let (harness, journal) = (world.harness.clone(), world.journal.clone());
            thread::spawn(move || {
                let far = World::new(harness, journal);
                let dialer = far.node("far dialer", config());
                let out = dialer.open(address, &Setup::queue(50).dial);
                far.until("established", || dialer.is_established(out));
                for i in 0..MESSAGES {
                    while dialer.send(out, Plan::copy(i)) != NetioStatus::Ok {
                        let before = dialer.writables(out);
                        far.until("writable", || dialer.writables(out) > before);
                    }
                }
                far.until("the answers arrive", || dialer.received(out) == MESSAGES / 2);
                dialer.close(out);
                far.until("closed", || dialer.closing(out).is_some());
            })
        })
        .collect();
    world.until("all come and go", || {
        let peers = listener.accepted_peers();
        peers.len() == DIALERS && peers.iter().all(|peer| listener.closing(peer.endpoint).is_some())
    });
    threads.into_iter().for_each(|thread| thread.join().expect("the dialer is content"));
    for peer in listener.accepted_peers() {
        assert_eq!((listener.received(peer.endpoint), listener.closing(peer.endpoint)), (MESSAGES, Some(ClosedReason::PeerClosed)));
    }
}

/// The loop may be dropped before the backend: no callback, the peers see the loss, all calls fail.
pub(super) fn a_loop_may_be_dropped_before_its_backend(world: &World) {
    let far = world.another_loop();
    let listener = world.node("listener", config());
    let dialer = far.node("dialer", config());
    let (out, back) = connected_across(&far, world, &dialer, &listener);
    let address = dialer.tally(out).established.expect("it is established").address;
    let (bytes, released) = super::sending::tracked(50_000);
    assert_eq!(dialer.backend().send(out, &bytes, b"", 1), Ok(NetioStatus::Ok));
    drop(bytes);
    listener.counts_itself();
    dialer.expect_silence();
    far.drop_loop();
    world.until("the peer sees the loss", || listener.closing(back) == Some(ClosedReason::PeerLost));
    super::inside::assert_unknown(&*dialer.backend(), out);
    assert_eq!(dialer.backend().endpoint(&address), None);
    assert!(dialer.backend().connect(&address, &ConnectionParameters::default()).is_err());
    assert!(dialer.backend().open_listen_endpoint(&world.harness.listen_address(), &ConnectionParametersRecv::default()).is_err());
    assert!(dialer.backend().register(&MemoryRegion::new(4_096).expect("memory")).is_err());
    assert!(dialer.backend().connections().is_empty());
    dialer.drop_backend();
    assert!(released.load(std::sync::atomic::Ordering::SeqCst));
}

/// An idle loop sleeps: connections without traffic cost no turns.
pub(super) fn an_idle_loop_sleeps(world: &World) {
    let pair = Pair::new(world);
    let (out, back) = pair.another(world);
    pair.prove_alive(world);
    pair.dialer.close(out);
    world.until("closed", || pair.listener.closing(back).is_some() && pair.dialer.closing(out).is_some());
    world.watch();
    let counters = world.ev().counters();
    let before = counters.turns.get();
    world.within(Duration::from_millis(400), || false);
    let turns = counters.turns.get() - before;
    assert!(turns <= 20, "{turns} turns in an idle loop");
}

/// A loop whose connections are paused or full sleeps as well.
pub(super) fn a_loop_with_stuck_connections_sleeps(world: &World) {
    let pair = Pair::with(world, Setup::tight());
    pair.clog(world);
    world.watch();
    let counters = world.ev().counters();
    let before = counters.turns.get();
    world.within(Duration::from_millis(400), || false);
    let turns = counters.turns.get() - before;
    assert!(turns <= 20, "{turns} turns in a loop with nothing to do");
    pair.listener.backend().resume(pair.back).expect("it is there");
    pair.deliver(world);
}

/// `stop` inside any callback ends the run; the next one goes on where it stopped, and nothing is lost.
pub(super) fn stopping_inside_callbacks_loses_nothing(world: &World) {
    let pair = Pair::with(world, Setup::queue(4));
    let stops = Rc::new(Cell::new(0));
    for node in [&pair.dialer, &pair.listener] {
        for kind in [Kind::Data, Kind::Completed, Kind::Writable, Kind::Closed] {
            let (ev, count) = (world.ev().handle(), stops.clone());
            node.on(kind, move |_| {
                ev.stop();
                count.set(count.get() + 1);
            });
        }
    }
    let run_on = |what: &str, done: &dyn Fn() -> bool| {
        let started = Instant::now();
        while !done() {
            assert!(started.elapsed() < wait(), "not in time: {what}");
            world.within(wait(), done);
        }
    };
    for _ in 0..30 {
        while pair.dialer.send(pair.out, Plan::copy(100)) == NetioStatus::Ok {}
        pair.listener.sent(pair.back, Plan::copy(100));
        run_on("delivered", &|| {
            all_arrived(&pair.dialer, pair.out, &pair.listener, pair.back) && all_arrived(&pair.listener, pair.back, &pair.dialer, pair.out)
        });
    }
    assert!(stops.get() > 30);
    pair.dialer.close(pair.out);
    run_on("closed", &|| pair.dialer.closing(pair.out).is_some() && pair.listener.closing(pair.back).is_some());
}

/// A connection that floods does not starve the others.
pub(super) fn a_flood_starves_nobody(world: &World) {
    const ROUNDS: usize = 40;
    let pair = Pair::with(world, Setup::queue(256));
    let (second, second_back) = pair.another(world);
    let flood = pair.out;
    let refill = |call: &super::recorder::Call<'_, '_>| {
        if call.backend.endpoint(&call.address) == Some(call.endpoint) {
            while call.send(call.endpoint, Plan::copy(2_000)) == NetioStatus::Ok {}
        }
    };
    pair.dialer.on(Kind::Writable, refill);
    while pair.dialer.send(flood, Plan::copy(2_000)) == NetioStatus::Ok {}
    for round in 1..=ROUNDS {
        pair.dialer.sent(second, Plan::copy(10));
        world.until("the other connection's message passes", || pair.listener.received(second_back) == round);
    }
    pair.dialer.forget_hooks();
    pair.deliver(world);
}

/// Neither does one that receives what its own callback sends and flushes, however quickly that arrives.
pub(super) fn a_connection_that_feeds_itself_starves_nobody(world: &World) {
    /// Many turns' worth.
    const MOST: usize = 5_000;
    let pair = Pair::new(world);
    let node = &pair.listener;
    let (feeding, fed) = connected(world, node, node, || node.connect(pair.address, &ConnectionParameters::default()));
    let seen = Rc::new(Cell::new(0));
    let count = seen.clone();
    node.on(Kind::Data, move |call| {
        if call.endpoint == fed && count.replace(count.get() + 1) < MOST {
            assert_eq!(call.send(feeding, Plan::copy(10_000)), NetioStatus::Ok);
            call.backend.flush(feeding).expect("it is there");
        }
    });
    node.sent(feeding, Plan::copy(10_000));
    world.until("it goes on", || seen.get() > 1);
    for round in 1..=10 {
        seen.set(0);
        pair.dialer.sent(pair.out, Plan::copy(10));
        world.until("the other connection's message passes", || node.received(pair.back) == round);
        assert!(seen.get() < MOST, "only when the other one had stopped");
    }
    node.forget_hooks();
    world.until("all is delivered", || all_arrived(node, feeding, node, fed));
}

/// What a callback starts, the loop goes on with: chains of callbacks need no outside event.
pub(super) fn chains_of_callbacks_need_no_outside_event(world: &World) {
    let pair = Pair::new(world);
    let address = pair.address;
    let steps = Rc::new(RefCell::new(Vec::new()));
    let seen = steps.clone();
    pair.dialer.on(Kind::Completed, move |call| {
        // completed → close → closed → open → established → send → completed …
        seen.borrow_mut().push("completed");
        if seen.borrow().len() < 40 {
            call.backend.close(call.endpoint).expect("it is there");
        }
    });
    pair.dialer.on(Kind::Closed, move |call| {
        call.node.open_through(call.backend, address, &ConnectionParameters::default()).expect("the address is free");
    });
    pair.dialer.on(Kind::Established, |call| assert_eq!(call.send(call.endpoint, Plan::copy(9)), NetioStatus::Ok));
    pair.dialer.sent(pair.out, Plan::copy(9));
    world.until("forty rounds", || steps.borrow().len() == 40);
}

/// Work posted from another thread runs on the loop's thread, and may call a backend there.
pub(super) fn posted_work_may_call_the_backend(world: &World) {
    thread_local! {
        static SENDER: RefCell<Option<(super::node::Node, crate::Endpoint)>> = const { RefCell::new(None) };
    }
    let pair = Pair::new(world);
    SENDER.set(Some((pair.dialer.clone(), pair.out)));
    let remote = world.ev().remote();
    let (done, finished) = mpsc::channel();
    let poster = thread::spawn(move || {
        for _ in 0..50 {
            let post = Box::new(move |_: &dyn crate::EventLoop| {
                SENDER.with_borrow(|sender| {
                    let (node, out) = sender.as_ref().expect("the loop's thread has it");
                    node.sent(*out, Plan::copy(20));
                });
            });
            assert!(remote.post(post), "the loop is there");
            assert!(!remote.is_loop_thread());
        }
        done.send(()).expect("the case waits");
    });
    world.until("fifty messages arrive", || pair.listener.received(pair.back) == 50);
    finished.recv_timeout(wait()).expect("the thread ends");
    poster.join().expect("posting succeeds");
    SENDER.set(None);
}

/// A backend may be made on the loop from inside a callback of another one, and dropped in another callback.
pub(super) fn a_backend_may_be_made_inside_a_callback(world: &World) {
    let pair = Pair::new(world);
    let made: Rc<RefCell<Vec<super::node::Node>>> = Rc::default();
    let (ev, harness, journal, address, nodes) =
        (world.ev().handle(), world.harness.clone(), world.journal.clone(), pair.address, made.clone());
    pair.listener.on(Kind::Data, move |_| {
        let node = super::node::Node::new("made inside", &journal, |callbacks| harness.backend(config(), callbacks, &*ev));
        node.open(address, &ConnectionParameters::default());
        nodes.borrow_mut().push(node);
    });
    for count in 1..=5 {
        pair.dialer.sent(pair.out, Plan::copy(1));
        world.until("one more is made and connected", || pair.listener.accepted_peers().len() == count + 1);
    }
    let to_drop = made.clone();
    pair.listener.once(Kind::Completed, move |_| to_drop.borrow().iter().for_each(super::node::Node::drop_backend));
    pair.listener.sent(pair.back, Plan::copy(1));
    world.until("all are dropped and lost", || pair.listener.backend().connections().len() == 1);
}

/// A callback of one backend may use another one of its loop: a bridge forwards all, in order, both ways.
pub(super) fn a_callback_may_use_another_backend(world: &World) {
    const MESSAGES: usize = 300;
    let (left, right) = (Pair::new(world), Pair::new(world));
    // left.dialer → left.listener ⇒ right.dialer → right.listener, and back.
    let (bridge_left, bridge_right) = (left.listener.clone(), right.dialer.clone());
    let (to_right, to_left) = (right.out, left.back);
    left.listener.on(Kind::Data, move |_| bridge_right.sent(to_right, Plan::copy(70)));
    right.dialer.on(Kind::Data, move |_| bridge_left.sent(to_left, Plan::copy(80)));
    (0..MESSAGES).for_each(|_| left.dialer.sent(left.out, Plan::copy(50)));
    (0..MESSAGES).for_each(|_| right.listener.sent(right.back, Plan::copy(60)));
    world.until("all pass the bridge", || right.listener.received(right.back) == MESSAGES && left.dialer.received(left.out) == MESSAGES);
    left.deliver(world);
    right.deliver(world);
}
