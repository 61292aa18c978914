//! An idle backend sleeps. Skipped, saying so, where libfabric is absent; `NETIO3_REQUIRE_LIBFABRIC=1` makes that a
//! failure.

mod util;

use std::time::{Duration, Instant};

use netio3_core::conformance::expect_heard_at_any_moment;
use netio3_core::{ConnectionParameters, Endpoint, EventLoop, LoopStats, NetworkConfig};
use netio3_evloop::EpollEventLoop;
use util::{Node, Packet, Peer, config, hello, is_here, until};

/// Two connected backends on one loop.
struct Pair {
    ev: EpollEventLoop,
    server: Node,
    client: Node,
    out: Endpoint,
    back: Endpoint,
}

impl Pair {
    fn new(config: NetworkConfig) -> Self {
        let ev = EpollEventLoop::new().expect("descriptors are left");
        let (server, client) = (util::node_with(&ev, config.clone()), util::node_with(&ev, config));
        let address = server.listen();
        let out = client.backend.connect(&address, &ConnectionParameters::default()).expect("a connection is started");
        until(&ev, &[], "established", || server.established().len() == 1 && client.established().len() == 1);
        let back = server.established()[0];
        Self { ev, server, client, out, back }
    }

    /// So many messages both ways.
    #[track_caller]
    fn talk(&self, count: usize, len: usize) {
        let before = (self.server.received(self.back).len(), self.client.received(self.out).len());
        for key in 0..count {
            self.client.send(self.out, &vec![7; len], key as u64);
            self.server.send(self.back, &vec![7; len], key as u64);
        }
        until(&self.ev, &[], "all arrived and came back", || {
            let arrived = (self.server.received(self.back).len(), self.client.received(self.out).len());
            let queued = |node: &Node| node.backend.totals().queued_messages.get();
            arrived == (before.0 + count, before.1 + count) && queued(&self.server) + queued(&self.client) == 0
        });
    }
}

/// What a loop does meanwhile, sleeping in between as it likes; and the processor time of this thread.
fn over(ev: &EpollEventLoop, time: Duration) -> (LoopStats, LoopStats, Duration) {
    let (before, cpu) = (ev.counters().snapshot(), thread_time());
    ev.run_for(time).expect("the loop can wait");
    (before, ev.counters().snapshot(), thread_time() - cpu)
}

fn thread_time() -> Duration {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).expect("there is such a clock");
    Duration::new(now.tv_sec() as u64, now.tv_nsec() as u32)
}

/// The loop slept all the while, but for a handful of times.
#[track_caller]
fn expect_sleep(what: &str, ev: &EpollEventLoop, time: Duration) {
    let (before, after, cpu) = over(ev, time);
    let (wakeups, turns) = (after.wakeups - before.wakeups, after.turns - before.turns);
    println!("{what}: {wakeups} wake-ups, {turns} turns, {} events, {cpu:?} of {time:?}", after.events - before.events);
    assert!(wakeups <= 5 && turns <= 8, "{what}: {wakeups} wake-ups and {turns} turns in {time:?}");
    assert!(cpu < time / 20, "{what}: {cpu:?} of {time:?}");
}

/// Heartbeats far apart.
fn quiet() -> NetworkConfig {
    NetworkConfig { heartbeat_interval: Duration::from_secs(60), ..config() }
}

#[test]
fn an_idle_pair_sleeps() {
    if !is_here() {
        return;
    }
    let pair = Pair::new(quiet());
    // What is left of connecting.
    pair.ev.run_for(Duration::from_millis(50)).expect("the loop can wait");
    expect_sleep("after connecting", &pair.ev, Duration::from_secs(1));
}

#[test]
fn a_loop_goes_back_to_sleep_after_traffic() {
    if !is_here() {
        return;
    }
    let pair = Pair::new(quiet());
    for (count, len) in [(1, 64), (1_000, 64), (40, 64 << 10), (4, 1 << 20)] {
        pair.talk(count, len);
        pair.ev.run_for(Duration::from_millis(50)).expect("the loop can wait");
        expect_sleep(&format!("after {count} of {len} bytes"), &pair.ev, Duration::from_millis(300));
    }
    // Memory is given back once, after 2 s.
    expect_sleep("while memory is given back", &pair.ev, Duration::from_millis(2_500));
    pair.talk(10, 64);
}

#[test]
fn heartbeats_are_all_that_wakes_an_idle_pair() {
    if !is_here() {
        return;
    }
    let interval = Duration::from_millis(100);
    let pair = Pair::new(NetworkConfig { heartbeat_interval: interval, ..config() });
    let (before, after, cpu) = over(&pair.ev, 10 * interval);
    let heartbeats = [&pair.server, &pair.client].map(|node| node.backend.connections()[0].counters.heartbeats_sent.get());
    let (wakeups, turns) = (after.wakeups - before.wakeups, after.turns - before.turns);
    println!("{heartbeats:?} heartbeats, {wakeups} wake-ups, {turns} turns, {cpu:?}");
    // For each: its deadline, its arrival, and what the peer returns.
    assert!(wakeups <= 12 * 8 && turns <= 12 * 16, "{wakeups} wake-ups and {turns} turns for {heartbeats:?} heartbeats");
}

/// Sends that wait for a peer's credits, a paused connection with messages, a listener: none of it is polled.
#[test]
fn what_waits_for_a_peer_lets_the_loop_sleep() {
    if !is_here() {
        return;
    }
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let node = util::node_with(&ev, quiet());
    let address = node.listen();
    expect_sleep("a listener", &ev, Duration::from_millis(300));

    let (stuck, to) = Peer::greeted(&ev, &node, address, &hello());
    (0..100).for_each(|key| node.send(to, &[5; 8_000], key));
    until(&ev, &[&stuck], "the credits are used up", || stuck.data_packets() == 16);
    let (talker, from) = Peer::greeted(&ev, &node, address, &hello());
    node.backend.pause(from).expect("it is there");
    (0..16).for_each(|_| _ = talker.send(&Packet::messages(&[b"held"])));
    let stats = node.backend.stats(from).expect("it is there");
    until(&ev, &[&stuck, &talker], "they arrive", || stats.reads.get() == 16);
    ev.run_for(Duration::from_millis(50)).expect("the loop can wait");
    expect_sleep("sends without credits and a paused connection", &ev, Duration::from_millis(500));

    // A peer that asks and is not driven on, and one that never answers.
    let (silent, elsewhere) = Peer::listen();
    node.backend.connect(&elsewhere, &ConnectionParameters::default()).expect("a connection is started");
    until(&ev, &[&silent], "it is asked", || silent.request().is_some());
    ev.run_for(Duration::from_millis(50)).expect("the loop can wait");
    expect_sleep("a connection that is not answered", &ev, Duration::from_millis(500));
    stuck.die();
    talker.die();
    until(&ev, &[&stuck, &talker], "one is closed, the other waits to be resumed", || node.closed(to).is_some());
    ev.run_for(Duration::from_millis(50)).expect("the loop can wait");
    expect_sleep("a peer that is gone, behind a pause", &ev, Duration::from_millis(300));
    node.backend.resume(from).expect("it is there");
    until(&ev, &[], "the other is closed", || node.closed(from).is_some());
    assert_eq!(node.received(from).len(), 16);
}

#[test]
fn spinning_ends_in_sleep() {
    if !is_here() {
        return;
    }
    let pair = Pair::new(quiet());
    pair.ev.set_spin(Duration::from_millis(20));
    pair.talk(10, 64);
    let began = Instant::now();
    let (before, after, cpu) = over(&pair.ev, Duration::from_millis(400));
    let turns = after.turns - before.turns;
    println!("spinning for 20 ms: {turns} turns, {cpu:?} of {:?}", began.elapsed());
    assert!(turns <= 10, "{turns} turns");
}

#[test]
fn what_comes_at_any_moment_of_spinning_and_sleeping_is_heard() {
    if is_here() {
        let event_loop = |spin| {
            let ev = EpollEventLoop::new().expect("descriptors are left");
            ev.set_spin(spin);
            ev
        };
        expect_heard_at_any_moment(event_loop, |ev| util::node_with(ev, quiet()));
    }
}
