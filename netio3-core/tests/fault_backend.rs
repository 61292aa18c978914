//! Backends with faults: a program written on the contract survives them, and each kind can be seen.
#![cfg(feature = "fault")]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use netio3_core::fault::{Clock, FaultBackend, FaultConfig, FaultCounts, wrap};
use netio3_core::{
    Buffers, Callbacks, ClosedReason, Completion, CompletionKind, ConnectionParameters, ConnectionParametersRecv, EndPointAddress,
    Endpoint, EventLoop, Handlers, MemoryRegion, NetioStatus, NetworkBackend, NetworkConfig, SendError, loopback,
};
use netio3_evloop::EpollEventLoop;

const MS: Duration = Duration::from_millis(1);
const WAIT: Duration = Duration::from_secs(20);

/// What is known of one connection of one side, checked while it happens.
#[derive(Default)]
struct Life {
    established: bool,
    closed: Option<ClosedReason>,
    accepted: VecDeque<Completion>,
    returned: usize,
    refused: bool,
    writables: usize,
    received: Vec<Vec<u8>>,
    /// Still to be sent, and what is done when nothing is left.
    to_send: VecDeque<Vec<u8>>,
    closes_when_done: bool,
    sends: usize,
}

impl Life {
    fn came_back(&mut self, completions: &[Completion]) {
        assert!(self.established && self.closed.is_none());
        for completion in completions {
            assert_eq!(self.accepted.pop_front(), Some(*completion), "not the next in send order");
            self.returned += 1;
        }
    }
}

type Lives = Rc<RefCell<BTreeMap<Endpoint, Life>>>;

/// One side: a backend with faults and a program that sends what it has to, whenever it may.
struct Node {
    backend: FaultBackend,
    lives: Lives,
}

impl Node {
    fn new(config: FaultConfig, seed: u64, clock: &Clock, ev: &EpollEventLoop, echoes: bool) -> Self {
        let lives = Lives::default();
        let backend = with_faults(config, seed, clock, ev, Box::new(program(&lives, echoes)));
        Self { backend, lives }
    }

    /// The life of the only connection.
    fn only<R>(&self, f: impl FnOnce(&mut Life) -> R) -> R {
        let mut lives = self.lives.borrow_mut();
        assert_eq!(lives.len(), 1);
        f(lives.values_mut().next().unwrap())
    }

    fn is_over(&self) -> bool {
        let lives = self.lives.borrow();
        !lives.is_empty() && lives.values().all(|life| life.closed.is_some())
    }
}

fn with_faults(config: FaultConfig, seed: u64, clock: &Clock, ev: &dyn EventLoop, callbacks: Box<dyn Callbacks>) -> FaultBackend {
    wrap(config, seed, clock, ev, callbacks, |callbacks| loopback::create_local(NetworkConfig::default(), callbacks, ev)).unwrap()
}

fn program(lives: &Lives, echoes: bool) -> impl Callbacks + use<> {
    let [on_established, on_closed, on_data, on_completed, on_writable] = std::array::from_fn(|_| lives.clone());
    Handlers::new()
        .on_connection_established(move |backend, connection| {
            let mut lives = on_established.borrow_mut();
            let life = lives.entry(connection.endpoint).or_default();
            assert!(!std::mem::replace(&mut life.established, true));
            drop(lives);
            send_more(backend, connection.endpoint, &on_established);
        })
        .on_connection_refused(|_, _, _, reason| panic!("refused: {reason}"))
        .on_connection_closed(move |backend, endpoint, _, pending, reason| {
            let mut lives = on_closed.borrow_mut();
            let life = lives.get_mut(&endpoint).unwrap();
            life.came_back(pending);
            assert_eq!((life.accepted.len(), life.closed.replace(reason)), (0, None));
            assert_ne!(backend.send_copy(endpoint, b"late", b"", 0), Ok(NetioStatus::Ok));
        })
        .on_data(move |backend, from, _, message| {
            let mut lives = on_data.borrow_mut();
            let life = lives.get_mut(&from).unwrap();
            assert!(life.established && life.closed.is_none());
            life.received.push(message.to_vec());
            if echoes {
                life.to_send.push_back(message.to_vec());
                drop(lives);
                send_more(backend, from, &on_data);
            }
        })
        .on_send_completed(move |_, endpoint, _, completions| {
            on_completed.borrow_mut().get_mut(&endpoint).unwrap().came_back(completions);
        })
        .on_writable(move |backend, endpoint, _| {
            let mut lives = on_writable.borrow_mut();
            let life = lives.get_mut(&endpoint).unwrap();
            assert!(life.established && life.closed.is_none());
            assert!(std::mem::take(&mut life.refused), "writable without a refusal since the last");
            life.writables += 1;
            drop(lives);
            send_more(backend, endpoint, &on_writable);
        })
}

/// Sends with all families in turn until there is nothing left or a refusal comes.
fn send_more(backend: &dyn NetworkBackend, endpoint: Endpoint, lives: &Lives) {
    let mut lives = lives.borrow_mut();
    let life = lives.get_mut(&endpoint).unwrap();
    while let Some(message) = life.to_send.front() {
        let key = life.sends as u64;
        let (header, payload) = message.split_at(message.len().min(3));
        let mut completion = Completion { key, kind: CompletionKind::ZeroCopy };
        let status = match life.sends % 3 {
            0 => {
                completion.kind = CompletionKind::Copy;
                backend.send_copy(endpoint, payload, header, key)
            }
            1 => backend.send(endpoint, &Bytes::copy_from_slice(payload), header, key),
            _ => match backend.take_buffer(endpoint) {
                Ok(None) => Ok(NetioStatus::NoResources),
                Ok(Some(mut buffer)) => {
                    buffer.extend_from_slice(message).unwrap();
                    completion = Completion { key: buffer.id(), kind: CompletionKind::Buffer };
                    backend.send_taken(endpoint, buffer).map_or_else(|unsent| unsent.outcome, |()| Ok(NetioStatus::Ok))
                }
                Err(error) => panic!("{error}"),
            },
        };
        match status {
            Ok(NetioStatus::Ok) => {
                life.accepted.push_back(completion);
                life.to_send.pop_front();
                life.sends += 1;
            }
            Ok(NetioStatus::NoResources) => {
                life.refused = true;
                return;
            }
            Ok(NetioStatus::NotConnected) => return,
            other => panic!("{other:?}"),
        }
    }
    if life.closes_when_done && life.established {
        life.closes_when_done = false;
        backend.close(endpoint).unwrap();
    }
}

fn params() -> ConnectionParameters {
    let buffers = Some(Buffers { size: 4_096, count: 4 });
    ConnectionParameters { queue_messages: 16, queue_bytes: 10_000, buffers, ..Default::default() }
}

/// A client connected to an echoing server, both with faults.
struct Pair {
    client: Node,
    server: Node,
    endpoint: Endpoint,
    clock: Clock,
    ev: EpollEventLoop,
}

impl Pair {
    fn new(config: FaultConfig, seed: u64, echoes: bool) -> Self {
        let clock = Clock::new();
        let ev = EpollEventLoop::new().unwrap();
        let server = Node::new(config, seed + 1_000, &clock, &ev, echoes);
        let client = Node::new(config, seed, &clock, &ev, false);
        let recv = ConnectionParametersRecv { connection: params(), ..Default::default() };
        let address = server.backend.open_listen_endpoint(&EndPointAddress::localhost(0), &recv).unwrap();
        let endpoint = client.backend.connect(&address, &params()).unwrap();
        client.lives.borrow_mut().insert(endpoint, Life::default());
        Self { client, server, endpoint, clock, ev }
    }

    /// Established on both sides, with the clock at rest.
    fn established(config: FaultConfig, seed: u64) -> Self {
        let pair = Self::new(config, seed, false);
        pair.until(|| pair.client.only(|life| life.established) && pair.server.lives.borrow().len() == 1);
        pair
    }

    fn until(&self, mut condition: impl FnMut() -> bool) {
        assert!(self.ev.run_until(&mut condition, WAIT).unwrap());
    }

    /// Runs with the clock going from event to event.
    fn until_in_time(&self, mut condition: impl FnMut() -> bool) {
        self.until(|| {
            self.clock.advance_to_next_event();
            condition()
        });
    }

    fn turns(&self) {
        for _ in 0..20 {
            self.ev.run_once(Some(Duration::ZERO)).unwrap();
        }
    }

    /// Sends a message that must be accepted.
    fn send(&self, key: u64) {
        assert_eq!(self.try_send(key).unwrap(), NetioStatus::Ok);
    }

    fn try_send(&self, key: u64) -> Result<NetioStatus, SendError> {
        let status = self.client.backend.send_copy(self.endpoint, &key.to_le_bytes(), b"", key);
        self.client.only(|life| match status {
            Ok(NetioStatus::Ok) => life.accepted.push_back(Completion { key, kind: CompletionKind::Copy }),
            Ok(NetioStatus::NoResources) => life.refused = true,
            _ => {}
        });
        status
    }

    fn received(&self) -> Vec<u64> {
        self.server.only(|life| life.received.iter().map(|message| u64::from_le_bytes(message[..].try_into().unwrap())).collect())
    }
}

fn messages(count: usize, seed: u64) -> VecDeque<Vec<u8>> {
    let len = |i: usize| (i * 733 + seed as usize * 97) % 3_000;
    (0..count).map(|i| (0..len(i)).map(|at| (at + i) as u8).collect()).collect()
}

/// Sends a number of messages, with echoes, and closes.
fn converse(config: FaultConfig, seed: u64) -> (FaultCounts, usize) {
    let pair = Pair::new(config, seed, true);
    let sent = messages(120, seed);
    pair.client.only(|life| {
        life.to_send = sent.clone();
        life.closes_when_done = true;
    });
    pair.until_in_time(|| pair.client.is_over() && pair.server.is_over());
    let sent: Vec<_> = sent.into();
    let received = pair.server.only(|life| std::mem::take(&mut life.received));
    let reasons = (pair.client.only(|life| life.closed), pair.server.only(|life| life.closed));
    let was_orderly = reasons == (Some(ClosedReason::Local), Some(ClosedReason::PeerClosed));
    assert!(sent.starts_with(&received), "lost, repeated or reordered");
    assert!(!was_orderly || sent.len() == received.len(), "lost in an orderly close");
    pair.client.only(|life| assert!(sent.starts_with(&life.received)));
    let (a, b) = (pair.client.backend.counts(), pair.server.backend.counts());
    assert!(was_orderly || a.resets + b.resets > 0, "{reasons:?}");
    let writables = pair.client.only(|life| life.writables) + pair.server.only(|life| life.writables);
    let total = FaultCounts::default();
    (sum(sum(total, a), b), writables)
}

fn sum(mut total: FaultCounts, more: FaultCounts) -> FaultCounts {
    total.would_blocks += more.would_blocks;
    total.resets += more.resets;
    total.stalls += more.stalls;
    total.delays += more.delays;
    total
}

#[test]
fn a_program_survives_rough_treatment() {
    let mut total = FaultCounts::default();
    for seed in 0..30 {
        let (counts, writables) = converse(FaultConfig::rough(), seed);
        assert!(counts.resets == 0 && (counts.would_blocks == 0) <= (writables > 0));
        total = sum(total, counts);
    }
    assert!(total.would_blocks > 100 && total.stalls > 30 && total.delays > 500, "{total:?}");
}

#[test]
fn a_program_survives_resets() {
    let resets: u64 = (0..40).map(|seed| converse(FaultConfig::resetting(), seed).0.resets).sum();
    assert!(resets > 10, "{resets}");
}

#[test]
fn no_faults_means_none() {
    assert_eq!(converse(FaultConfig::none(), 0).0, FaultCounts::default());
}

#[test]
fn the_same_seed_gives_the_same_faults() {
    let config = FaultConfig::resetting();
    assert_eq!(converse(config, 3), converse(config, 3));
}

#[test]
fn a_refusal_is_followed_by_one_writable() {
    let pair = Pair::established(FaultConfig { would_block: 1.0, ..FaultConfig::none() }, 1);
    pair.send(0);
    for key in 1..4 {
        assert_eq!(pair.try_send(key).unwrap(), NetioStatus::NoResources);
    }
    assert_eq!(pair.client.only(|life| life.writables), 0, "a callback inside a call");
    pair.turns();
    assert_eq!(pair.client.only(|life| life.writables), 1);
    assert_eq!(pair.received(), [0]);
    pair.send(4);
    pair.turns();
    assert_eq!(pair.received(), [0, 4]);
    assert_eq!(pair.client.only(|life| life.writables), 1);
}

#[test]
fn delayed_messages_wait_for_their_time_and_count_against_the_queue() {
    let pair = Pair::established(FaultConfig { delay: 1.0, ..FaultConfig::none() }, 1);
    for key in 0..16 {
        pair.send(key);
    }
    assert_eq!(pair.try_send(16).unwrap(), NetioStatus::NoResources, "the queue takes 16 messages");
    pair.turns();
    assert!(pair.received().is_empty());
    assert_eq!(pair.client.only(|life| (life.returned, life.writables)), (0, 0));
    pair.clock.advance(10 * MS);
    pair.turns();
    assert_eq!(pair.received(), (0..16).collect::<Vec<_>>());
    assert_eq!(pair.client.only(|life| (life.returned, life.writables)), (16, 1));
}

#[test]
fn an_orderly_close_sends_delayed_messages_and_an_abort_returns_them() {
    for aborts in [false, true] {
        let pair = Pair::established(FaultConfig { delay: 1.0, ..FaultConfig::none() }, 1);
        for key in 0..5 {
            pair.send(key);
        }
        if aborts {
            pair.client.backend.abort(pair.endpoint).unwrap();
        } else {
            pair.client.backend.close(pair.endpoint).unwrap();
        }
        assert_eq!(pair.try_send(5).unwrap(), NetioStatus::NotConnected);
        pair.until(|| pair.client.is_over() && pair.server.is_over());
        assert_eq!(pair.received(), (0..if aborts { 0 } else { 5 }).collect::<Vec<_>>());
        assert_eq!(pair.client.only(|life| (life.returned, life.closed)), (5, Some(ClosedReason::Local)));
    }
}

#[test]
fn closing_the_listener_or_shutting_down_sends_delayed_messages() {
    for shuts_down in [false, true] {
        let pair = Pair::established(FaultConfig { delay: 1.0, ..FaultConfig::none() }, 1);
        let (server, peer) = (&pair.server, *pair.server.lives.borrow().keys().next().unwrap());
        assert_eq!(server.backend.send_copy(peer, b"held", b"", 7).unwrap(), NetioStatus::Ok);
        server.only(|life| life.accepted.push_back(Completion { key: 7, kind: CompletionKind::Copy }));
        let address = server.backend.listeners()[0].address;
        if shuts_down {
            server.backend.shutdown(WAIT);
        } else {
            server.backend.close_listen_endpoint(&address).unwrap();
        }
        pair.until(|| pair.client.is_over() && server.is_over());
        assert_eq!(pair.client.only(|life| life.received.clone()), [b"held"]);
    }
}

#[test]
fn a_stall_stops_both_ways_until_its_time_has_passed() {
    let pair = Pair::established(FaultConfig::none(), 1);
    let peer = *pair.server.lives.borrow().keys().next().unwrap();
    pair.server.backend.set_config(FaultConfig { stall: 1.0, longest_stall: MS, ..FaultConfig::none() });
    pair.send(0);
    pair.turns();
    pair.server.backend.set_config(FaultConfig::none());
    assert_eq!(pair.server.backend.counts().stalls, 1);
    pair.send(1);
    assert_eq!(pair.server.backend.send_copy(peer, b"stalled", b"", 7).unwrap(), NetioStatus::Ok);
    pair.server.only(|life| life.accepted.push_back(Completion { key: 7, kind: CompletionKind::Copy }));
    // What the user asks for meanwhile holds afterwards.
    pair.server.backend.pause(peer).unwrap();
    pair.server.backend.resume(peer).unwrap();
    pair.turns();
    assert_eq!(pair.received(), [0]);
    assert!(pair.client.only(|life| life.received.is_empty()));
    pair.clock.advance(MS);
    pair.turns();
    assert_eq!(pair.received(), [0, 1]);
    assert_eq!(pair.client.only(|life| life.received.len()), 1);
}

#[test]
fn a_connection_paused_by_its_user_stays_so_after_a_stall() {
    let pair = Pair::established(FaultConfig::none(), 1);
    let peer = *pair.server.lives.borrow().keys().next().unwrap();
    pair.server.backend.set_config(FaultConfig { stall: 1.0, longest_stall: MS, ..FaultConfig::none() });
    pair.send(0);
    pair.turns();
    pair.server.backend.set_config(FaultConfig::none());
    pair.server.backend.pause(peer).unwrap();
    pair.send(1);
    pair.clock.advance(MS);
    pair.turns();
    assert_eq!(pair.received(), [0]);
    pair.server.backend.resume(peer).unwrap();
    pair.turns();
    assert_eq!(pair.received(), [0, 1]);
}

#[test]
fn a_reset_closes_once_as_if_the_peer_was_lost() {
    let pair = Pair::established(FaultConfig { reset: 1.0, delay: 1.0, ..FaultConfig::none() }, 1);
    pair.send(0);
    pair.until(|| pair.client.is_over() && pair.server.is_over());
    assert_eq!(pair.client.only(|life| (life.returned, life.closed)), (1, Some(ClosedReason::PeerLost)));
    assert_eq!(pair.client.backend.counts().resets, 1);
    assert!(pair.try_send(1).is_err());
}

#[test]
fn user_memory_is_free_when_its_key_comes_back_and_busy_before() {
    let pair = Pair::established(FaultConfig { delay: 1.0, ..FaultConfig::none() }, 1);
    let backend = &pair.client.backend;
    assert_eq!(backend.send(pair.endpoint, &Bytes::from_static(b"outside every region"), b"", 0).unwrap(), NetioStatus::Ok);
    let region = MemoryRegion::new(4_096).unwrap();
    let id = backend.register(&region).unwrap();
    assert_eq!(backend.send(pair.endpoint, &region.bytes().unwrap().slice(..100), b"", 1).unwrap(), NetioStatus::Ok);
    let memory = Arc::new([0_u8; 100]);
    let owner = Bytes::from_owner(Shared(memory.clone()));
    assert_eq!(backend.send(pair.endpoint, &owner, b"", 2).unwrap(), NetioStatus::Ok);
    drop(owner);
    assert!(backend.deregister(id).is_err() && Arc::strong_count(&memory) > 1);
    pair.client.only(|life| life.accepted.extend([0, 1, 2].map(|key| Completion { key, kind: CompletionKind::ZeroCopy })));
    backend.abort(pair.endpoint).unwrap();
    pair.until(|| pair.client.is_over());
    assert_eq!(Arc::strong_count(&memory), 1);
    backend.deregister(id).unwrap();
}

struct Shared(Arc<[u8; 100]>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &*self.0
    }
}

/// A client whose `on_writable`, which comes from the wrapper itself, does what is asked.
fn with_writable(act: impl Fn() + 'static) -> (Pair, Rc<RefCell<Option<FaultBackend>>>, Endpoint) {
    let pair = Pair::established(FaultConfig::none(), 1);
    let address = pair.server.backend.listeners()[0].address;
    let established = Rc::new(Cell::new(false));
    let seen = established.clone();
    let callbacks = Handlers::new()
        .on_connection_established(move |_, _| seen.set(true))
        .on_connection_closed(|_, _, _, _, _| panic!("a callback after the end"))
        .on_writable(move |_, _, _| act());
    let config = FaultConfig { would_block: 1.0, ..FaultConfig::none() };
    let backend = with_faults(config, 1, &pair.clock, &pair.ev, Box::new(callbacks));
    let endpoint = backend.connect(&address, &params()).unwrap();
    pair.until(|| established.get());
    assert_eq!(backend.send_copy(endpoint, b"x", b"", 0).unwrap(), NetioStatus::Ok);
    assert_eq!(backend.send_copy(endpoint, b"x", b"", 0).unwrap(), NetioStatus::NoResources);
    (pair, Rc::new(RefCell::new(Some(backend))), endpoint)
}

#[test]
fn dropping_inside_a_callback_ends_it() {
    let slot: Rc<RefCell<Option<FaultBackend>>> = Rc::default();
    let inside = slot.clone();
    let (pair, backend, _) = with_writable(move || drop(inside.take()));
    slot.replace(backend.take());
    pair.until(|| slot.borrow().is_none());
    pair.turns();
    assert_eq!(pair.client.only(|life| life.closed), None, "another backend of the loop lives on");
}

#[test]
fn a_panic_in_a_callback_ends_the_backend_and_leaves_the_loop_usable() {
    let (pair, backend, endpoint) = with_writable(|| panic!("on purpose"));
    assert!(catch_unwind(AssertUnwindSafe(|| pair.turns())).is_err());
    assert!(backend.borrow().as_ref().unwrap().send_copy(endpoint, b"x", b"", 0).is_err());
    pair.send(1);
    pair.turns();
    let lives = pair.server.lives.borrow();
    assert_eq!(lives.values().filter(|life| life.received.len() == 1).count(), 2);
    assert_eq!(lives.values().filter(|life| life.closed.is_some()).count(), 1);
}

#[test]
fn buffers_that_are_held_back_come_round_again() {
    let pair = Pair::established(FaultConfig { delay: 1.0, ..FaultConfig::none() }, 1);
    let backend = &pair.client.backend;
    for _ in 0..4 {
        let buffer = backend.take_buffer(pair.endpoint).unwrap().unwrap();
        let completion = Completion { key: buffer.id(), kind: CompletionKind::Buffer };
        backend.send_taken(pair.endpoint, buffer).unwrap();
        pair.client.only(|life| life.accepted.push_back(completion));
    }
    assert!(backend.take_buffer(pair.endpoint).unwrap().is_none());
    pair.client.only(|life| life.refused = true);
    pair.until_in_time(|| pair.client.only(|life| life.writables == 1));
    assert!(backend.take_buffer(pair.endpoint).unwrap().is_some());
}
