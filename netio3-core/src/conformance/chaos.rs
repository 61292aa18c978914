//! Seeded random calls, from the program, from inside callbacks and from many threads: the rules hold all the same.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::node::Node;
use super::pattern::Random;
use super::plan::Plan;
use super::recorder::{Call, Kind};
use super::world::{World, config};
use crate::address::EndPointAddress;
use crate::backend::NetworkBackend;
use crate::config::{Buffers, ConnectionParameters, ConnectionParametersRecv};
use crate::endpoint::Endpoint;
use crate::status::NetioStatus;

const NODES: usize = 3;
const MOST_CONNECTIONS: usize = 24;

fn params() -> ConnectionParameters {
    ConnectionParameters {
        queue_messages: 6,
        queue_bytes: 100_000,
        buffers: Some(Buffers { size: 500, count: 3 }),
        close_deadline: Duration::from_secs(2),
        ..Default::default()
    }
}

/// What the random calls of one seed are made on.
struct Playground {
    random: RefCell<Random>,
    nodes: Vec<Node>,
    /// What is dialled.
    addresses: RefCell<Vec<EndPointAddress>>,
    /// The established connections of each node.
    alive: RefCell<Vec<Vec<Endpoint>>>,
}

impl Playground {
    fn new(world: &World, seed: u64) -> Rc<Self> {
        let nodes: Vec<_> = (0..NODES).map(|_| world.node("one of three", config())).collect();
        let accept = ConnectionParametersRecv { connection: params(), ..Default::default() };
        let addresses = RefCell::new(nodes.iter().map(|node| node.listen(world.harness.listen_address(), &accept)).collect());
        let alive = RefCell::new(vec![Vec::new(); NODES]);
        let this = Rc::new(Self { random: RefCell::new(Random::new(seed)), nodes, addresses, alive });
        for (i, node) in this.nodes.iter().enumerate() {
            for kind in Kind::ALL {
                let playground = this.clone();
                node.on(kind, move |call| playground.inside(i, kind, call));
            }
        }
        this
    }

    fn below(&self, bound: usize) -> usize {
        self.random.borrow_mut().below(bound)
    }

    /// In every callback, now and then one more random call.
    fn inside(&self, i: usize, kind: Kind, call: &Call<'_, '_>) {
        match kind {
            Kind::Established => self.alive.borrow_mut()[i].push(call.endpoint),
            Kind::Closed => self.alive.borrow_mut()[i].retain(|endpoint| *endpoint != call.endpoint),
            _ => {}
        }
        if self.below(3) == 0 {
            self.step(i, call.backend);
        }
    }

    /// One random call.
    fn step(&self, i: usize, backend: &dyn NetworkBackend) {
        let node = &self.nodes[i];
        let count = self.alive.borrow()[i].len();
        let to = (count > 0).then(|| self.alive.borrow()[i][self.below(count)]);
        match (self.below(40), to) {
            (0..3, _) if backend.connections().len() < MOST_CONNECTIONS => {
                let address = self.addresses.borrow()[self.below(NODES)];
                if backend.endpoint(&address).is_none() {
                    node.open_through(backend, address, &params()).expect("nobody owns the address");
                }
            }
            (3, Some(to)) => {
                node.did(to, "close");
                backend.close(to).expect("it is alive");
            }
            (4, Some(to)) => {
                node.did(to, "abort");
                backend.abort(to).expect("it is alive");
            }
            (5..8, Some(to)) => {
                node.did(to, "pause");
                backend.pause(to).expect("it is alive");
            }
            (8..14, Some(to)) => {
                node.did(to, "resume");
                backend.resume(to).expect("it is alive");
            }
            (14, Some(to)) => backend.flush(to).expect("it is alive"),
            (15, Some(to)) => drop(backend.take_buffer(to).expect("it has buffers").or_else(|| {
                node.refused(to);
                None
            })),
            (16.., Some(to)) if self.below(8) == 0 => {
                let lengths: Vec<_> = (0..self.below(40)).map(|_| (self.below(9), 9 + self.below(300))).collect();
                let (_, status) = node.send_batch(backend, to, &lengths).expect("it is alive");
                assert!(matches!(status, NetioStatus::Ok | NetioStatus::NoResources | NetioStatus::NotConnected), "{status:?}");
            }
            (16.., Some(to)) => {
                let (len, large) = (self.below(400), self.below(60_000));
                let plan = match self.below(6) {
                    0 => Plan::buffer(len),
                    1 => Plan::zero_copy(large).pieces(1 + len % 4),
                    2 => Plan::copy(large).header(large.min(20)),
                    3 => Plan::zero_copy(len),
                    _ => Plan::copy(len),
                };
                let status = node.send_through(backend, to, plan).expect("it is alive");
                assert!(matches!(status, NetioStatus::Ok | NetioStatus::NoResources | NetioStatus::NotConnected), "{status:?}");
            }
            _ => {}
        }
    }

    /// Lets everything flow and end, with nothing left behind.
    fn wind_up(&self, world: &World) {
        self.nodes.iter().for_each(Node::forget_hooks);
        for node in &self.nodes {
            let backend = node.backend();
            backend.connections().iter().for_each(|connection| backend.resume(connection.endpoint).expect("it is listed"));
            backend.shutdown(Duration::from_secs(5));
        }
        world.until("everything has ended", || self.nodes.iter().all(|node| node.backend().connections().is_empty()));
        for node in &self.nodes {
            let totals = node.backend().totals().snapshot();
            assert_eq!(totals.established, totals.closed);
            assert_eq!(totals.messages_accepted, totals.messages_sent + totals.messages_pending_at_close);
            node.drop_backend();
        }
    }
}

/// Random calls on three backends, by the program and inside their callbacks, break no rule.
pub(super) fn random_calls_break_no_rule(world: &World) {
    for seed in 0..12 {
        world.note(format!("----- seed {seed}"));
        let playground = Playground::new(world, seed);
        for _ in 0..500 {
            let i = playground.below(NODES);
            playground.step(i, &*playground.nodes[i].backend());
            if playground.below(3) == 0 {
                world.turn();
            }
        }
        playground.wind_up(world);
    }
}

/// Random calls with the end of a backend at a random moment: its peers are told, each key comes back once.
pub(super) fn random_ends_of_a_backend_break_no_rule(world: &World) {
    for seed in 100..120 {
        world.note(format!("----- seed {seed}"));
        let playground = Playground::new(world, seed);
        let moment = playground.below(300);
        for step in 0..300 {
            let i = playground.below(NODES - 1) + usize::from(step < moment) * playground.below(2);
            playground.step(i, &*playground.nodes[i].backend());
            if step == moment {
                let last = &playground.nodes[NODES - 1];
                last.forget_hooks();
                last.drop_backend();
                playground.alive.borrow_mut()[NODES - 1].clear();
                // Another test may get the port now, and would be taken for the end that is none.
                playground.addresses.borrow_mut()[NODES - 1] = world.harness.nobody_listens();
            }
            if playground.below(3) == 0 {
                world.turn();
            }
        }
        let rest = &playground.nodes[..NODES - 1];
        rest.iter().for_each(Node::forget_hooks);
        for node in rest {
            let backend = node.backend();
            backend.connections().iter().for_each(|connection| backend.resume(connection.endpoint).expect("it is listed"));
            backend.shutdown(Duration::from_secs(5));
        }
        world.until("everything has ended", || rest.iter().all(|node| node.backend().connections().is_empty()));
        rest.iter().for_each(Node::drop_backend);
    }
}

/// Random calls from four threads at once on the synchronized kind: every connection ends once, every message is accounted for.
pub(super) fn random_calls_from_threads_break_no_rule(world: &World) {
    const THREADS: usize = 4;
    for seed in 0..4 {
        let listener = world.synchronized("listener", config());
        let caller = world.synchronized("caller", config());
        [&listener, &caller].into_iter().for_each(Node::counts_itself);
        let accept = ConnectionParametersRecv { connection: params(), ..Default::default() };
        let address = listener.listen(world.harness.listen_address(), &accept);
        let alive: Arc<Mutex<Vec<Endpoint>>> = Arc::default();
        let (here, gone) = (alive.clone(), alive.clone());
        caller.on(Kind::Established, move |call| here.lock().push(call.endpoint));
        caller.on(Kind::Closed, move |call| gone.lock().retain(|endpoint| *endpoint != call.endpoint));
        listener.on(Kind::Data, |call| {
            // An answer now and then; it may find the queue full or the connection closing.
            let _ = call.with_message(|bytes| call.backend.send_copy(call.endpoint, bytes, b"", 0));
        });
        let finished = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (0..THREADS as u64)
            .map(|thread| {
                let (backend, alive, finished, remote) = (caller.shared(), alive.clone(), finished.clone(), world.ev().remote());
                thread::spawn(move || {
                    let mut random = Random::new(seed * 1_000 + thread);
                    (0..1_500).for_each(|_| call_at_random(&*backend, &mut random, &alive, address));
                    finished.fetch_add(1, Ordering::SeqCst);
                    remote.wake();
                })
            })
            .collect();
        world.until("the threads are done", || finished.load(Ordering::SeqCst) == THREADS);
        threads.into_iter().for_each(|thread| thread.join().expect("no call panics"));
        for node in [&caller, &listener] {
            let backend = node.backend();
            for connection in backend.connections() {
                let _ = backend.resume(connection.endpoint);
            }
            backend.shutdown(Duration::from_secs(5));
        }
        world.until("everything has ended", || [&caller, &listener].iter().all(|node| node.backend().connections().is_empty()));
        world.turn();
        let totals = caller.backend().totals().snapshot();
        assert_eq!(totals.established, totals.closed);
        assert_eq!(totals.messages_accepted, totals.messages_sent + totals.messages_pending_at_close);
        [caller, listener].iter().for_each(Node::drop_backend);
    }
}

/// One random call; those on connections may find them gone, since other threads close them.
fn call_at_random(backend: &dyn NetworkBackend, random: &mut Random, alive: &Mutex<Vec<Endpoint>>, address: EndPointAddress) {
    let to = {
        let alive = alive.lock();
        (!alive.is_empty()).then(|| alive[random.below(alive.len())])
    };
    match (random.below(60), to) {
        (0..3, _) if backend.connections().len() < MOST_CONNECTIONS => drop(backend.connect(&address, &params())),
        (3, Some(to)) => drop(backend.close(to)),
        (4, Some(to)) => drop(backend.abort(to)),
        (5, Some(to)) => drop(backend.pause(to)),
        (6..10, Some(to)) => drop(backend.resume(to)),
        (10, Some(to)) => drop(backend.flush(to)),
        (11, Some(to)) => drop(backend.stats(to)),
        (12, _) => drop(backend.connections()),
        (13, Some(to)) => drop(backend.available_buffers(to)),
        (14..20, Some(to)) => {
            if let Ok(Some(mut buffer)) = backend.take_buffer(to) {
                buffer.extend_from_slice(&[7; 300]).expect("it fits");
                // Sent, or handed back and dropped.
                drop(backend.send_taken(to, buffer));
            }
        }
        (20..40, Some(to)) => drop(backend.send_copy(to, &[3; 200], b"header", 1)),
        (_, Some(to)) => drop(backend.send(to, &Bytes::from(vec![5; random.below(5_000)]), b"", 2)),
        _ => thread::yield_now(),
    }
}
