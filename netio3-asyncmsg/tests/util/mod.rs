//! Helpers of the tests: backends that note what they are told, and bare sockets as their peers.
#![allow(dead_code, unused_imports, reason = "every test file uses some of it")]

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use netio3_asyncmsg::Frame;
pub use netio3_core::conformance::{Noted as Node, Told, Witness};
use netio3_core::{ClosedReason, ConnectionParameters, EndPointAddress, Endpoint, EventLoop, NetworkConfig};
use netio3_evloop::EpollEventLoop;

/// Long enough for a machine that is busy otherwise; reached only by failing tests.
pub const LIMIT: Duration = Duration::from_secs(30);

#[track_caller]
pub fn until(ev: &EpollEventLoop, what: &str, mut condition: impl FnMut() -> bool) {
    assert!(ev.run_until(&mut condition, LIMIT).expect("the loop can wait"), "not within {LIMIT:?}: {what}");
}

/// Without heartbeats, so that nothing happens but what the test does.
pub fn node(ev: &EpollEventLoop) -> Node {
    node_with(ev, config())
}

pub fn node_with(ev: &EpollEventLoop, config: NetworkConfig) -> Node {
    Node::new(|callbacks| netio3_asyncmsg::create_local(config, callbacks, ev))
}

/// No heartbeats.
pub fn config() -> NetworkConfig {
    NetworkConfig { heartbeat_interval: Duration::ZERO, ..Default::default() }
}

/// A hello of version 1, by the byte table.
pub fn hello() -> [u8; 72] {
    let mut bytes = [0; 72];
    bytes[..8].copy_from_slice(b"NETIO3\r\n");
    bytes[8..12].copy_from_slice(&[72, 0, 1, 1]);
    bytes[16..24].copy_from_slice(&(64_u64 << 20).to_le_bytes());
    bytes
}

/// A message on the wire.
pub fn message(data: &[u8]) -> Vec<u8> {
    [&Frame::Data(data.len()).head()[..], data].concat()
}

/// A socket that speaks for itself.
pub struct Bare {
    pub socket: TcpStream,
    /// Everything that arrived.
    pub arrived: Vec<u8>,
    /// How the stream ended, if it has.
    pub end: Option<Result<(), ErrorKind>>,
}

impl Bare {
    pub fn connect(address: EndPointAddress) -> Self {
        Self::new(TcpStream::connect_timeout(&address.socket_addr(), LIMIT).expect("somebody listens"))
    }

    pub fn new(socket: TcpStream) -> Self {
        socket.set_nonblocking(true).expect("a socket can be non-blocking");
        socket.set_nodelay(true).expect("a socket can be without delay");
        Self { socket, arrived: Vec::new(), end: None }
    }

    /// One that exchanged hellos with the node that listens there, and its endpoint there.
    #[track_caller]
    pub fn greeted(ev: &EpollEventLoop, node: &Node, address: EndPointAddress) -> (Self, Endpoint) {
        let before = node.established().len();
        let bare = Self::answered(ev, address);
        until(ev, "the peer is established", || node.established().len() > before);
        (bare, node.established()[before])
    }

    /// One that exchanged hellos with whoever listens there.
    #[track_caller]
    pub fn answered(ev: &EpollEventLoop, address: EndPointAddress) -> Self {
        let mut bare = Self::connect(address);
        bare.write(&hello());
        until(ev, "the hello is answered", || {
            bare.read();
            bare.arrived.len() >= 72
        });
        assert_eq!(&bare.arrived[..8], b"NETIO3\r\n");
        bare.arrived.drain(..72);
        bare
    }

    /// Writes what is sure to fit into the kernel's buffer.
    #[track_caller]
    pub fn write(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).expect("there is room");
    }

    /// Writes as much as fits now; nothing once the other side is gone.
    pub fn socket_write(&mut self, bytes: &[u8]) -> usize {
        self.socket.write(bytes).unwrap_or(0)
    }

    /// Takes what has arrived, and notes the end.
    pub fn read(&mut self) {
        let mut buffer = vec![0; 64 << 10];
        while self.end.is_none() {
            match self.socket.read(&mut buffer) {
                Ok(0) => self.end = Some(Ok(())),
                Ok(n) => self.arrived.extend_from_slice(&buffer[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => self.end = Some(Err(error.kind())),
            }
        }
    }

    /// Reads until the other side ended the stream, one way or another.
    #[track_caller]
    pub fn until_end(&mut self, ev: &EpollEventLoop) -> Result<(), ErrorKind> {
        until(ev, "the stream ends", || {
            self.read();
            self.end.is_some()
        });
        self.end.expect("it was awaited")
    }

    /// Closes it by a reset.
    pub fn reset(self) {
        socket2::SockRef::from(&self.socket).set_linger(Some(Duration::ZERO)).expect("a socket can linger");
    }

    /// Ends the stream of this side.
    pub fn shutdown(&self) -> io::Result<()> {
        self.socket.shutdown(std::net::Shutdown::Write)
    }
}

/// A server with a witness.
pub struct Server {
    pub ev: EpollEventLoop,
    pub node: Node,
    pub address: EndPointAddress,
    pub witness: Witness,
}

impl Server {
    pub fn new() -> Self {
        Self::with(config(), ConnectionParameters::default())
    }

    pub fn with(config: NetworkConfig, params: ConnectionParameters) -> Self {
        let ev = EpollEventLoop::new().expect("descriptors are left");
        let node = node_with(&ev, config);
        let address = node.listen_with(params);
        let witness = Witness::new(&ev, self::node(&ev), &node, address);
        Self { ev, node, address, witness }
    }

    pub fn greeted(&self) -> (Bare, Endpoint) {
        Bare::greeted(&self.ev, &self.node, self.address)
    }

    #[track_caller]
    pub fn until(&self, what: &str, condition: impl FnMut() -> bool) {
        until(&self.ev, what, condition);
    }

    #[track_caller]
    pub fn until_closed(&self, endpoint: Endpoint) -> (usize, ClosedReason) {
        self.until("the connection is closed", || self.node.closed(endpoint).is_some());
        let (pending, reason) = self.node.closed(endpoint).expect("it was awaited");
        (pending.len(), reason)
    }

    /// Nobody else noticed anything: of connections, there is the witness's alone.
    #[track_caller]
    pub fn check(mut self) {
        self.witness.testify(&self.ev, &self.node);
        until(&self.ev, "the witness alone is left", || self.node.backend.totals().connections.get() == 1);
        assert_eq!(self.node.backend.connections().len(), 1);
        assert_eq!(self.node.backend.totals().queued_messages.get(), 0);
    }
}
