//! Helpers of the tests: backends that note what they are told, and bare sockets as their peers.
#![allow(dead_code, reason = "every test file uses some of it")]

use std::cell::RefCell;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::rc::Rc;
use std::time::Duration;

use netio3_asyncmsg::Frame;
use netio3_core::{
    Callbacks, ClosedReason, Completion, ConnectionInfo, ConnectionParameters, ConnectionParametersRecv, Direction, EndPointAddress,
    Endpoint, EventLoop, ListenerStats, Message, NetioStatus, NetworkBackend, NetworkConfig, RefusedReason,
};
use netio3_evloop::EpollEventLoop;

/// Long enough for a machine that is busy otherwise; reached only by failing tests.
pub const LIMIT: Duration = Duration::from_secs(30);

#[track_caller]
pub fn until(ev: &EpollEventLoop, what: &str, mut condition: impl FnMut() -> bool) {
    assert!(ev.run_until(&mut condition, LIMIT).expect("the loop can wait"), "not within {LIMIT:?}: {what}");
}

/// What a backend told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    Established(Endpoint, Direction),
    Refused(Endpoint, RefusedReason),
    Closed(Endpoint, Vec<Completion>, ClosedReason),
    Data(Endpoint, Vec<u8>),
    Completed(Endpoint, Vec<Completion>),
    Writable(Endpoint),
}

/// A backend and what it told.
pub struct Node {
    pub backend: Box<dyn NetworkBackend>,
    told: Rc<RefCell<Vec<Told>>>,
}

struct Notes(Rc<RefCell<Vec<Told>>>);

impl Node {
    /// Without heartbeats, so that nothing happens but what the test does.
    pub fn new(ev: &EpollEventLoop) -> Self {
        Self::with(ev, config())
    }

    pub fn with(ev: &EpollEventLoop, config: NetworkConfig) -> Self {
        let told = Rc::new(RefCell::new(Vec::new()));
        let backend = netio3_asyncmsg::create_local(config, Box::new(Notes(told.clone())), ev).expect("the configuration is valid");
        Self { backend, told }
    }

    pub fn told(&self) -> Vec<Told> {
        self.told.borrow().clone()
    }

    pub fn listen(&self) -> EndPointAddress {
        self.listen_with(ConnectionParameters::default())
    }

    pub fn listen_with(&self, connection: ConnectionParameters) -> EndPointAddress {
        let params = ConnectionParametersRecv { connection, ..Default::default() };
        self.backend.open_listen_endpoint(&EndPointAddress::localhost(0), &params).expect("a port is free")
    }

    /// The counters of the only listener.
    pub fn listener(&self) -> ListenerStats {
        self.backend.listeners()[0].counters.snapshot()
    }

    /// Forgets received messages and completions.
    pub fn forget(&self) {
        let mut told = self.told.borrow_mut();
        told.retain(|told| !matches!(told, Told::Data(..) | Told::Completed(..)));
        told.shrink_to_fit();
    }

    /// Endpoints in the order in which they were established.
    pub fn established(&self) -> Vec<Endpoint> {
        let told = self.told.borrow();
        told.iter().filter_map(|told| if let Told::Established(endpoint, _) = told { Some(*endpoint) } else { None }).collect()
    }

    pub fn closed(&self, endpoint: Endpoint) -> Option<(Vec<Completion>, ClosedReason)> {
        let told = self.told.borrow();
        told.iter().find_map(|told| match told {
            Told::Closed(of, pending, reason) if *of == endpoint => Some((pending.clone(), *reason)),
            _ => None,
        })
    }

    pub fn refused(&self, endpoint: Endpoint) -> Option<RefusedReason> {
        let told = self.told.borrow();
        told.iter().find_map(|told| if let Told::Refused(of, reason) = told { (*of == endpoint).then_some(*reason) } else { None })
    }

    pub fn received(&self, endpoint: Endpoint) -> Vec<Vec<u8>> {
        let told = self.told.borrow();
        let of = |told: &Told| if let Told::Data(of, data) = told { (*of == endpoint).then(|| data.clone()) } else { None };
        told.iter().filter_map(of).collect()
    }

    pub fn send(&self, to: Endpoint, data: &[u8], key: u64) {
        assert_eq!(self.backend.send_copy(to, data, &[], key), Ok(NetioStatus::Ok));
    }
}

/// No heartbeats.
pub fn config() -> NetworkConfig {
    NetworkConfig { heartbeat_interval: Duration::ZERO, ..Default::default() }
}

impl Callbacks for Notes {
    fn on_connection_established(&mut self, _: &dyn NetworkBackend, connection: &ConnectionInfo) {
        self.0.borrow_mut().push(Told::Established(connection.endpoint, connection.direction));
    }

    fn on_connection_refused(&mut self, _: &dyn NetworkBackend, endpoint: Endpoint, _: &EndPointAddress, reason: RefusedReason) {
        self.0.borrow_mut().push(Told::Refused(endpoint, reason));
    }

    fn on_connection_closed(
        &mut self,
        _: &dyn NetworkBackend,
        endpoint: Endpoint,
        _: &EndPointAddress,
        pending: &[Completion],
        reason: ClosedReason,
    ) {
        self.0.borrow_mut().push(Told::Closed(endpoint, pending.to_vec(), reason));
    }

    fn on_data(&mut self, _: &dyn NetworkBackend, from: Endpoint, _: &EndPointAddress, message: Message<'_>) {
        self.0.borrow_mut().push(Told::Data(from, message.to_vec()));
    }

    fn on_send_completed(&mut self, _: &dyn NetworkBackend, endpoint: Endpoint, _: &EndPointAddress, completions: &[Completion]) {
        self.0.borrow_mut().push(Told::Completed(endpoint, completions.to_vec()));
    }

    fn on_writable(&mut self, _: &dyn NetworkBackend, endpoint: Endpoint, _: &EndPointAddress) {
        self.0.borrow_mut().push(Told::Writable(endpoint));
    }
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
        let mut bare = Self::connect(address);
        bare.write(&hello());
        until(ev, "the hello is answered", || {
            bare.read();
            bare.arrived.len() >= 72 && node.established().len() > before
        });
        assert_eq!(&bare.arrived[..8], b"NETIO3\r\n");
        bare.arrived.drain(..72);
        (bare, node.established()[before])
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

/// A connection between two nodes that must not notice anything.
pub struct Witness {
    pub client: Node,
    out: Endpoint,
    back: Endpoint,
    count: u64,
}

impl Witness {
    #[track_caller]
    pub fn new(ev: &EpollEventLoop, server: &Node, address: EndPointAddress) -> Self {
        let client = Node::new(ev);
        let before = server.established().len();
        let out = client.backend.connect(&address, &ConnectionParameters::default()).expect("a connection is started");
        until(ev, "the witness is established", || client.established().len() == 1 && server.established().len() > before);
        let mut witness = Self { client, out, back: server.established()[before], count: 0 };
        witness.testify(ev, server);
        witness
    }

    /// One more message each way.
    #[track_caller]
    pub fn testify(&mut self, ev: &EpollEventLoop, server: &Node) {
        self.count += 1;
        let text = format!("message {}", self.count).into_bytes();
        self.client.send(self.out, &text, self.count);
        server.send(self.back, &text, self.count);
        until(ev, "the witness goes on", || {
            server.received(self.back).len() as u64 == self.count && self.client.received(self.out).len() as u64 == self.count
        });
        assert_eq!(server.received(self.back).last(), Some(&text));
        assert_eq!(self.client.received(self.out).last(), Some(&text));
    }
}
