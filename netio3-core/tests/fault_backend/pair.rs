//! Two backends with faults, connected on one loop.

use std::time::Duration;

use netio3_core::fault::{Clock, FaultBackend, FaultConfig, wrap};
use netio3_core::{
    Buffers, Callbacks, Completion, CompletionKind, ConnectionParameters, ConnectionParametersRecv, EndPointAddress, Endpoint, EventLoop,
    NetioStatus, NetworkBackend, NetworkConfig, SendError, loopback,
};
use netio3_evloop::EpollEventLoop;

use crate::program::{Life, Lives, program};

pub const WAIT: Duration = Duration::from_secs(20);

/// A client connected to an echoing server, both with faults.
pub struct Pair {
    pub client: Node,
    pub server: Node,
    pub endpoint: Endpoint,
    pub clock: Clock,
    pub ev: EpollEventLoop,
}

impl Pair {
    pub fn new(config: FaultConfig, seed: u64, echoes: bool) -> Self {
        Self::of(config, seed, echoes, NetworkConfig::default(), &params())
    }

    fn of(config: FaultConfig, seed: u64, echoes: bool, network: NetworkConfig, dial: &ConnectionParameters) -> Self {
        let clock = Clock::new();
        let ev = EpollEventLoop::new().unwrap();
        let server = Node::new(config, seed + 1_000, &clock, &ev, echoes, NetworkConfig::default());
        let client = Node::new(config, seed, &clock, &ev, false, network);
        let recv = ConnectionParametersRecv { connection: params(), ..Default::default() };
        let address = server.backend.open_listen_endpoint(&EndPointAddress::localhost(0), &recv).unwrap();
        let endpoint = client.backend.connect(&address, dial).unwrap();
        client.lives.borrow_mut().insert(endpoint, Life::default());
        Self { client, server, endpoint, clock, ev }
    }

    /// Established on both sides, with the clock at rest.
    pub fn established(config: FaultConfig, seed: u64) -> Self {
        Self::new(config, seed, false).when_established()
    }

    /// The same with a client of this configuration, and parameters of its own for the connection.
    pub fn established_with(config: FaultConfig, network: NetworkConfig, dial: &ConnectionParameters) -> Self {
        Self::of(config, 1, false, network, dial).when_established()
    }

    fn when_established(self) -> Self {
        self.until(|| self.client.only(|life| life.established) && self.server.lives.borrow().len() == 1);
        self
    }

    pub fn until(&self, mut condition: impl FnMut() -> bool) {
        assert!(self.ev.run_until(&mut condition, WAIT).unwrap());
    }

    /// Runs with the clock going from event to event.
    pub fn until_in_time(&self, mut condition: impl FnMut() -> bool) {
        self.until(|| {
            self.clock.advance_to_next_event();
            condition()
        });
    }

    pub fn turns(&self) {
        for _ in 0..20 {
            self.ev.run_once(Some(Duration::ZERO)).unwrap();
        }
    }

    /// Sends a message that must be accepted.
    pub fn send(&self, key: u64) {
        assert_eq!(self.try_send(key).unwrap(), NetioStatus::Ok);
    }

    pub fn try_send(&self, key: u64) -> Result<NetioStatus, SendError> {
        let status = self.client.backend.send_copy(self.endpoint, &key.to_le_bytes(), b"", key);
        self.client.only(|life| match status {
            Ok(NetioStatus::Ok) => life.accepted.push_back(Completion { key, kind: CompletionKind::Copy, len: 8 }),
            Ok(NetioStatus::NoResources) => life.refused = true,
            _ => {}
        });
        status
    }

    pub fn received(&self) -> Vec<u64> {
        self.server.only(|life| life.received.iter().map(|message| u64::from_le_bytes(message[..].try_into().unwrap())).collect())
    }
}

/// One side: a backend with faults and a program that sends what it has to, whenever it may.
pub struct Node {
    pub backend: FaultBackend,
    pub lives: Lives,
}

impl Node {
    fn new(config: FaultConfig, seed: u64, clock: &Clock, ev: &EpollEventLoop, echoes: bool, network: NetworkConfig) -> Self {
        let lives = Lives::default();
        let callbacks = Box::new(program(&lives, echoes));
        let backend = wrap(config, seed, clock, ev, callbacks, |callbacks| loopback::create_local(network, callbacks, ev)).unwrap();
        Self { backend, lives }
    }

    /// The life of the only connection.
    pub fn only<R>(&self, f: impl FnOnce(&mut Life) -> R) -> R {
        let mut lives = self.lives.borrow_mut();
        assert_eq!(lives.len(), 1);
        f(lives.values_mut().next().unwrap())
    }

    pub fn is_over(&self) -> bool {
        let lives = self.lives.borrow();
        !lives.is_empty() && lives.values().all(|life| life.closed.is_some())
    }
}

pub fn with_faults(config: FaultConfig, seed: u64, clock: &Clock, ev: &dyn EventLoop, callbacks: Box<dyn Callbacks>) -> FaultBackend {
    wrap(config, seed, clock, ev, callbacks, |callbacks| loopback::create_local(NetworkConfig::default(), callbacks, ev)).unwrap()
}

pub fn params() -> ConnectionParameters {
    let buffers = Some(Buffers { size: 4_096, count: 4 });
    ConnectionParameters { queue_messages: 16, queue_bytes: 10_000, buffers, ..Default::default() }
}
