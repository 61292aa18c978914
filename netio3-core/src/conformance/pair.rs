//! Two nodes on one loop, connected.

use std::time::{Duration, Instant};

use super::node::Node;
use super::plan::Plan;
use super::world::{World, config, wait};
use crate::address::EndPointAddress;
use crate::config::{Buffers, ConnectionParameters, ConnectionParametersRecv, NetworkConfig};
use crate::endpoint::Endpoint;
use crate::status::NetioStatus;

/// How to make a [`Pair`]; `dial` and `accept` hold for its two sides.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) dial: ConnectionParameters,
    pub(super) accept: ConnectionParametersRecv,
    pub(super) dialer: NetworkConfig,
    pub(super) listener: NetworkConfig,
}

impl Default for Setup {
    fn default() -> Self {
        Self { dial: ConnectionParameters::default(), accept: ConnectionParametersRecv::default(), dialer: config(), listener: config() }
    }
}

impl Setup {
    /// The same parameters for both sides.
    pub(super) fn both(connection: ConnectionParameters) -> Self {
        let accept = ConnectionParametersRecv { connection: connection.clone(), ..Default::default() };
        Self { dial: connection, accept, ..Self::default() }
    }

    /// Both sides have buffers.
    pub(super) fn buffers(size: usize, count: usize) -> Self {
        Self::both(ConnectionParameters { buffers: Some(Buffers { size, count }), ..Default::default() })
    }

    /// Queues of this many messages.
    pub(super) fn queue(queue_messages: usize) -> Self {
        Self::both(ConnectionParameters { queue_messages, ..Default::default() })
    }

    /// Little room between the two, so that a paused peer is felt soon.
    pub(super) fn tight() -> Self {
        Self::both(tight())
    }
}

/// Parameters with small queues and small kernel buffers.
pub(super) fn tight() -> ConnectionParameters {
    ConnectionParameters {
        queue_messages: 64,
        queue_bytes: 256 << 10,
        send_buffer: Some(16 << 10),
        receive_buffer: Some(16 << 10),
        ..Default::default()
    }
}

/// `dialer` opened a connection to `listener`, and both saw it established.
pub(super) struct Pair {
    pub(super) dialer: Node,
    pub(super) listener: Node,
    /// The dialer's handle.
    pub(super) out: Endpoint,
    /// The listener's handle.
    pub(super) back: Endpoint,
    /// Where the listener listens.
    pub(super) address: EndPointAddress,
    pub(super) setup: Setup,
}

impl Pair {
    pub(super) fn new(world: &World) -> Self {
        Self::with(world, Setup::default())
    }

    pub(super) fn with(world: &World, setup: Setup) -> Self {
        let listener = world.node("listener", setup.listener.clone());
        let dialer = world.node("dialer", setup.dialer.clone());
        Self::of(world, dialer, listener, setup)
    }

    /// Connects two nodes of one loop.
    pub(super) fn of(world: &World, dialer: Node, listener: Node, setup: Setup) -> Self {
        let address = listener.listen(world.harness.listen_address(), &setup.accept);
        let (out, back) = connected(world, &dialer, &listener, || dialer.open(address, &setup.dial));
        Self { dialer, listener, out, back, address, setup }
    }

    /// One more connection to the same listener: both handles.
    pub(super) fn another(&self, world: &World) -> (Endpoint, Endpoint) {
        connected(world, &self.dialer, &self.listener, || self.dialer.connect(self.address, &self.setup.dial))
    }

    /// Both directions: sender, its handle, receiver, its handle.
    pub(super) fn directions(&self) -> [(&Node, Endpoint, &Node, Endpoint); 2] {
        [(&self.dialer, self.out, &self.listener, self.back), (&self.listener, self.back, &self.dialer, self.out)]
    }

    /// Runs until both sides received all that the other one sent so far, and all keys came back.
    #[track_caller]
    pub(super) fn deliver(&self, world: &World) {
        world.until("all messages arrive and all keys come back", || {
            self.directions().iter().all(|(sender, to, receiver, at)| all_arrived(sender, *to, receiver, *at))
        });
    }

    /// One message each way, to show that the connection lives.
    #[track_caller]
    pub(super) fn prove_alive(&self, world: &World) {
        for (sender, to, ..) in self.directions() {
            sender.sent(to, Plan::copy(100));
        }
        self.deliver(world);
    }

    /// Pauses the listener's side and sends until the dialer's queue is full and stays so; tells how many
    /// messages were accepted.
    #[track_caller]
    pub(super) fn clog(&self, world: &World) -> usize {
        self.listener.backend().pause(self.back).expect("the connection is there");
        fill(world, &self.dialer, self.out, Plan::zero_copy(16 << 10))
    }

    #[track_caller]
    pub(super) fn until_closed(&self, world: &World) {
        world.until("both sides see the connection closed", || {
            self.dialer.closing(self.out).is_some() && self.listener.closing(self.back).is_some()
        });
    }
}

/// Whether everything accepted so far arrived, and its keys came back.
pub(super) fn all_arrived(sender: &Node, to: Endpoint, receiver: &Node, at: Endpoint) -> bool {
    let tally = sender.tally(to);
    tally.completed == tally.accepted && receiver.received(at) == tally.accepted
}

/// Sends until the queue is full and no longer empties; tells how many messages were accepted.
#[track_caller]
pub(super) fn fill(world: &World, sender: &Node, to: Endpoint, plan: Plan) -> usize {
    fill_by(world, sender, to, || sender.send(to, plan))
}

/// The same with sends of the case's own, which journals them.
#[track_caller]
pub(super) fn fill_by(world: &World, sender: &Node, to: Endpoint, mut send: impl FnMut() -> NetioStatus) -> usize {
    const STUCK: Duration = Duration::from_millis(150);
    let mut accepted = 0;
    loop {
        let before = sender.writables(to);
        loop {
            match send() {
                NetioStatus::Ok => accepted += 1,
                NetioStatus::NoResources => break,
                status => panic!("{status:?} while the queue is being filled"),
            }
            assert!(accepted < 100_000, "the sender is never slowed down");
        }
        if !world.within(STUCK, || sender.writables(to) > before) {
            return accepted;
        }
    }
}

/// Runs until a connection that `open` starts is established on both sides: both handles.
#[track_caller]
pub(super) fn connected(world: &World, dialer: &Node, listener: &Node, open: impl FnOnce() -> Endpoint) -> (Endpoint, Endpoint) {
    let before = listener.accepted_peers().len();
    let out = open();
    // One that was given up earlier may turn up at the listener only now: the addresses tell which one is meant.
    let other_end = || {
        let dialed = dialer.tally(out).established?;
        listener.accepted_peers().into_iter().skip(before).find(|peer| peer.address == dialed.local_address)
    };
    let mut back = None;
    world.until("the connection is established on both sides", || {
        back = other_end();
        back.is_some()
    });
    (out, back.expect("just seen").endpoint)
}

/// Connects nodes of two loops of this thread, which run by turns meanwhile: both handles.
#[track_caller]
pub(super) fn connected_across(world: &World, far: &World, dialer: &Node, listener: &Node) -> (Endpoint, Endpoint) {
    let address = listener.listen(world.harness.listen_address(), &ConnectionParametersRecv::default());
    let out = dialer.open(address, &ConnectionParameters::default());
    let started = Instant::now();
    while !dialer.is_established(out) || listener.accepted_peers().is_empty() {
        assert!(started.elapsed() < wait(), "not established on both sides within {:?}", wait());
        world.turn();
        far.turn();
    }
    (out, listener.accepted_peers()[0].endpoint)
}
