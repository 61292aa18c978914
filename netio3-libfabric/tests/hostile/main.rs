//! Peers that break the protocol, vanish or do nothing: each ends alone, with a reason that names it.
//!
//! The peers are made by hand, of the bytes that ARCHITECTURE.md tells of, over provider `tcp` on 127.0.0.1. Skipped,
//! saying so, where libfabric is absent; `NETIO3_REQUIRE_LIBFABRIC=1` makes that a failure.

mod credits;
mod drops;
mod ends;
mod heartbeats;
mod hellos;
mod memory;
mod packets;
#[path = "../util/mod.rs"]
mod util;

use std::cell::Cell;
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use netio3_core::{
    AcceptFilter, ClosedReason, ConnectionParameters, ConnectionParametersRecv, EndPointAddress, Endpoint, EventLoop, NetioStatus,
    NetworkConfig, RdmaParameters, RefusedReason,
};
use netio3_evloop::EpollEventLoop;
use util::{
    CREDITS, End, FAREWELL, GOODBYE, HEARTBEAT, MESSAGES, Node, Packet, Peer, Told, Witness, config, hello, hello_with, is_here, until,
};

/// Held by all tests, alone by those that count the descriptors of the process.
static DESCRIPTORS: RwLock<()> = RwLock::new(());

/// `None` where libfabric is absent.
fn beside_others() -> Option<RwLockReadGuard<'static, ()>> {
    let beside = DESCRIPTORS.read().unwrap_or_else(PoisonError::into_inner);
    is_here().then_some(beside)
}

/// A server with a witness.
struct Server {
    ev: EpollEventLoop,
    node: Node,
    address: EndPointAddress,
    witness: Witness,
}

impl Server {
    fn new() -> Self {
        Self::with(config(), ConnectionParameters::default())
    }

    fn with(config: NetworkConfig, params: ConnectionParameters) -> Self {
        let ev = EpollEventLoop::new().expect("descriptors are left");
        let node = util::node_with(&ev, config);
        let address = node.listen_with(params);
        let witness = Witness::new(&ev, util::node(&ev), &node, address);
        Self { ev, node, address, witness }
    }

    #[track_caller]
    fn greeted(&self) -> (Peer, Endpoint) {
        self.greeted_by(&hello())
    }

    #[track_caller]
    fn greeted_by(&self, hello: &[u8]) -> (Peer, Endpoint) {
        Peer::greeted(&self.ev, &self.node, self.address, hello)
    }

    #[track_caller]
    fn until(&self, peers: &[&Peer], what: &str, condition: impl FnMut() -> bool) {
        until(&self.ev, peers, what, condition);
    }

    /// Waits until the connection is closed: how many messages were pending, and why.
    #[track_caller]
    fn until_closed(&self, peers: &[&Peer], endpoint: Endpoint) -> (usize, ClosedReason) {
        self.until(peers, "the connection is closed", || self.node.closed(endpoint).is_some());
        let (pending, reason) = self.node.closed(endpoint).expect("it was awaited");
        (pending.len(), reason)
    }

    /// Waits until the peer is told of the end.
    #[track_caller]
    fn until_end(&self, peer: &Peer) -> End {
        self.until(&[peer], "the peer is told of the end", || peer.end().is_some());
        peer.end().expect("it was awaited")
    }

    /// A connection that is paused, so that what comes is held.
    #[track_caller]
    fn paused(&self) -> (Peer, Endpoint) {
        let (peer, endpoint) = self.greeted();
        self.node.backend.pause(endpoint).expect("it is there");
        (peer, endpoint)
    }

    /// Nobody else noticed anything: of connections, there is the witness's alone.
    #[track_caller]
    fn check(mut self) {
        self.witness.testify(&self.ev, &self.node);
        let totals = self.node.backend.totals();
        until(&self.ev, &[], "the witness alone is left", || totals.connections.get() == 1);
        assert_eq!(self.node.backend.connections().len(), 1);
        assert_eq!((totals.queued_messages.get(), totals.queued_bytes.get(), totals.assembly_bytes.get()), (0, 0, 0));
        assert_eq!(self.witness.client.backend.connections().len(), 1);
    }
}

/// The private data of a rejection.
#[track_caller]
fn refusal(end: End) -> Vec<u8> {
    match end {
        End::Error(data) => data,
        End::Shutdown => panic!("it was accepted"),
    }
}

/// A client, and a listener made by hand that it asks.
struct Client {
    ev: EpollEventLoop,
    node: Node,
    peer: Peer,
    address: EndPointAddress,
}

impl Client {
    fn new() -> Self {
        let ev = EpollEventLoop::new().expect("descriptors are left");
        let node = util::node(&ev);
        let (peer, address) = Peer::listen();
        Self { ev, node, peer, address }
    }

    /// Asks, and waits until that has arrived.
    #[track_caller]
    fn ask(&self, params: &ConnectionParameters) -> Endpoint {
        let endpoint = self.node.backend.connect(&self.address, params).expect("a connection is started");
        until(&self.ev, &[&self.peer], "the request arrives", || self.peer.request().is_some());
        assert_eq!(&self.peer.request().expect("it was awaited")[..8], b"nio3\x01\x01\x00\x30");
        endpoint
    }

    #[track_caller]
    fn until_refused(&self, endpoint: Endpoint) -> RefusedReason {
        until(&self.ev, &[&self.peer], "it is refused", || self.node.refused(endpoint).is_some());
        self.node.refused(endpoint).expect("it was awaited")
    }
}

/// A packet of this kind, with a number where most have none.
fn strange(kind: u8, value: u32) -> Vec<u8> {
    Packet { value, ..Packet::new(kind) }.bytes()
}
