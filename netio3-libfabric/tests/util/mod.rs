//! Helpers of the tests: backends over provider `tcp` that note what they are told, and peers made by hand from the
//! wrappers, which say what the tests tell them to.
#![allow(dead_code, unused_imports, reason = "every test file uses some of it")]

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{env, fs};

pub use netio3_core::conformance::{Noted as Node, Told, Witness};
use netio3_core::{ConnectionParameters, EndPointAddress, Endpoint as Handle, EventLoop, NetworkConfig, RdmaParameters};
use netio3_evloop::EpollEventLoop;
use netio3_libfabric::fabric::{
    CmEvent, Completion as Done, CompletionQueue, CqError, Desc, Direction, Domain, Endpoint, EventQueue, Fabric, Hints, Info, Library,
    PassiveEndpoint, Posted,
};

/// Long enough for a machine that is busy otherwise; reached only by failing tests.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Whether libfabric is there; says so where it is not, and fails where it must be.
pub fn is_here() -> bool {
    match netio3_libfabric::availability() {
        Ok(()) => true,
        Err(error) => {
            assert!(env::var("NETIO3_REQUIRE_LIBFABRIC").as_deref() != Ok("1"), "NETIO3_REQUIRE_LIBFABRIC=1, but {error}");
            println!("skipped: {error}");
            false
        }
    }
}

/// How many threads this process has that make the calls which may block.
pub fn helpers() -> usize {
    let tasks = fs::read_dir("/proc/self/task").expect("the kernel tells of threads");
    // One may end meanwhile.
    tasks.flatten().filter(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim_end() == "netio3-fabric")).count()
}

/// Runs the loop and the peers until the condition holds.
#[track_caller]
pub fn until(ev: &EpollEventLoop, peers: &[&Peer], what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    loop {
        peers.iter().for_each(|peer| peer.turn());
        if condition() {
            return;
        }
        assert!(Instant::now() < end, "not within {LIMIT:?}: {what}");
        // Peers have queues of their own, which the loop does not know.
        ev.run_once(Some(Duration::from_millis(1))).expect("the loop can wait");
    }
}

/// Without heartbeats, so that nothing happens but what the test does.
pub fn node(ev: &EpollEventLoop) -> Node {
    node_with(ev, config())
}

pub fn node_with(ev: &EpollEventLoop, config: NetworkConfig) -> Node {
    Node::new(|callbacks| netio3_libfabric::create_local(config, callbacks, ev))
}

/// No heartbeats; provider `tcp`.
pub fn config() -> NetworkConfig {
    let rdma = RdmaParameters { provider: Some("tcp".into()), ..Default::default() };
    NetworkConfig { heartbeat_interval: Duration::ZERO, rdma, ..Default::default() }
}

/// A hello of version 1, by the byte table: packets of 8 KiB, 16 credits, no heartbeats, messages up to 64 MiB.
pub fn hello() -> [u8; 48] {
    let mut bytes = [0; 48];
    bytes[..4].copy_from_slice(b"nio3");
    bytes[4..8].copy_from_slice(&[1, 1, 0, 48]);
    bytes[8..12].copy_from_slice(&(64_u32 << 20).to_le_bytes());
    bytes[16..20].copy_from_slice(&(PACKET_LEN as u32).to_le_bytes());
    bytes[20..22].copy_from_slice(&16_u16.to_le_bytes());
    bytes[22..24].copy_from_slice(&2_u16.to_le_bytes());
    bytes
}

/// The hello with some bytes put elsewise.
pub fn hello_with(at: usize, bytes: &[u8]) -> [u8; 48] {
    let mut hello = hello();
    hello[at..at + bytes.len()].copy_from_slice(bytes);
    hello
}

/// Kinds of packets.
pub const MESSAGES: u8 = 0xC1;
pub const FIRST: u8 = 0xC2;
pub const CREDITS: u8 = 0xC3;
pub const HEARTBEAT: u8 = 0xC4;
pub const GOODBYE: u8 = 0xC5;
pub const FAREWELL: u8 = 0xC6;
/// Not on the wire: a further part of a message, which has no head.
pub const PART: u8 = 0xFF;

/// A packet on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub kind: u8,
    /// Receives for control that are free again.
    pub control: u8,
    /// Other receives that are free again.
    pub credits: u16,
    /// The length of a message that begins.
    pub value: u32,
    pub body: Vec<u8>,
}

impl Packet {
    pub fn new(kind: u8) -> Self {
        Self { kind, control: 0, credits: 0, value: 0, body: Vec::new() }
    }

    /// A packet of whole messages.
    pub fn messages(messages: &[&[u8]]) -> Self {
        let one = |message: &&[u8]| [&(message.len() as u32).to_le_bytes()[..], message].concat();
        Self { body: messages.iter().flat_map(one).collect(), ..Self::new(MESSAGES) }
    }

    /// The beginning of a message.
    pub fn first(total: u32, part: &[u8]) -> Self {
        Self { value: total, body: part.to_vec(), ..Self::new(FIRST) }
    }

    /// A further part of it.
    pub fn next(part: &[u8]) -> Self {
        Self { body: part.to_vec(), ..Self::new(PART) }
    }

    /// Nothing but credits.
    pub fn credits(credits: u16, control: u8) -> Self {
        Self { credits, control, ..Self::new(CREDITS) }
    }

    pub fn bytes(&self) -> Vec<u8> {
        if self.kind == PART {
            return self.body.clone();
        }
        let [c0, c1] = self.credits.to_le_bytes();
        [&[self.kind, self.control, c0, c1], &self.value.to_le_bytes()[..], &self.body].concat()
    }

    fn read(bytes: &[u8]) -> Self {
        let value = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        Self { kind: bytes[0], control: bytes[1], credits: u16::from_le_bytes([bytes[2], bytes[3]]), value, body: bytes[8..].to_vec() }
    }

    pub fn is_control(&self) -> bool {
        (CREDITS..=FAREWELL).contains(&self.kind)
    }
}

/// How a connection ended for a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Shutdown,
    /// Refused, with private data, or broken.
    Error(Vec<u8>),
}

/// Bytes of the longest packet that a peer receives.
pub const PACKET_LEN: usize = 8 << 10;
/// Packets for which a peer has memory.
const RECEIVES: usize = 40;

/// A peer that speaks for itself.
pub struct Peer {
    endpoint: RefCell<Option<Endpoint>>,
    passive: RefCell<Option<PassiveEndpoint>>,
    events: Arc<EventQueue>,
    completions: Arc<CompletionQueue>,
    domain: Arc<Domain>,
    /// Memory that is the device's until the endpoint is closed.
    receives: Vec<*mut [u8]>,
    /// Those that could not be posted yet.
    unposted: RefCell<Vec<usize>>,
    sends: RefCell<HashMap<usize, *mut [u8]>>,
    sent: Cell<usize>,
    requests: RefCell<VecDeque<(Info, Vec<u8>)>>,
    arrived: RefCell<Vec<Packet>>,
    /// Bytes that are to come of a message in parts.
    coming: Cell<usize>,
    answer: RefCell<Option<Vec<u8>>>,
    end: RefCell<Option<End>>,
}

/// Contexts of sends are numbered from here.
const SEND: usize = 1 << 20;

impl Peer {
    fn new(library: &Arc<Library>, info: &Info) -> Self {
        let fabric = Fabric::open(library, info).expect("tcp is everywhere");
        let domain = Domain::open(&fabric, info).expect("tcp is everywhere");
        Self {
            endpoint: RefCell::default(),
            passive: RefCell::default(),
            events: EventQueue::open(&fabric).expect("descriptors are left"),
            completions: CompletionQueue::open(&domain, 1_024).expect("descriptors are left"),
            domain,
            receives: (0..RECEIVES).map(|_| Box::into_raw(vec![0; PACKET_LEN].into_boxed_slice())).collect(),
            unposted: RefCell::default(),
            sends: RefCell::default(),
            sent: Cell::new(0),
            requests: RefCell::default(),
            arrived: RefCell::default(),
            coming: Cell::default(),
            answer: RefCell::default(),
            end: RefCell::default(),
        }
    }

    fn info(library: &Arc<Library>, address: EndPointAddress, passive: bool) -> Info {
        let hints = Hints { provider: Some("tcp".into()), node: Some(address.socket_addr()), passive, source: None };
        library.infos(&hints).expect("it can be asked").into_iter().next().expect("tcp is everywhere")
    }

    fn open(&self, info: &Info) {
        let mut endpoint = Endpoint::open(&self.domain, info, 1).expect("descriptors are left");
        endpoint.bind_events(&self.events).expect("it is of the same fabric");
        endpoint.bind_completions(&self.completions, Direction::Both, true).expect("it is of the same domain");
        endpoint.enable().expect("it is bound");
        *self.endpoint.borrow_mut() = Some(endpoint);
        (0..self.receives.len()).for_each(|index| self.post(index));
    }

    fn post(&self, index: usize) {
        let endpoint = self.endpoint.borrow();
        let Some(endpoint) = &*endpoint else { return };
        let memory = self.receives[index];
        // SAFETY: the memory is freed after the endpoint is closed, and read only after the completion.
        #[allow(unsafe_code)]
        let posted = unsafe { endpoint.recv(memory.cast(), PACKET_LEN, Desc::NONE, index) };
        // Once the connection has ended nothing can be posted.
        if posted == Ok(Posted::Again) {
            self.unposted.borrow_mut().push(index);
        }
    }

    /// Asks to be connected, with this as private data.
    pub fn connect(address: EndPointAddress, data: &[u8]) -> Self {
        let library = Library::open().expect("libfabric is there");
        let info = Self::info(&library, address, false);
        let peer = Self::new(&library, &info);
        peer.open(&info);
        let connecting = peer.endpoint.borrow().as_ref().expect("just opened").connect(address.socket_addr(), data);
        connecting.expect("it begins");
        peer
    }

    /// One that is connected to the node that listens there, and its endpoint there.
    #[track_caller]
    pub fn greeted(ev: &EpollEventLoop, node: &Node, address: EndPointAddress, hello: &[u8]) -> (Self, Handle) {
        let before = node.established().len();
        let peer = Self::connect(address, hello);
        until(ev, &[&peer], "the hello is answered", || peer.answer().is_some() && node.established().len() > before);
        (peer, node.established()[before])
    }

    /// Listens, and its address.
    pub fn listen() -> (Self, EndPointAddress) {
        let library = Library::open().expect("libfabric is there");
        let info = Self::info(&library, EndPointAddress::localhost(0), true);
        let peer = Self::new(&library, &info);
        let passive = PassiveEndpoint::open(peer.domain.fabric(), &info, 2).expect("descriptors are left");
        passive.bind(&peer.events).expect("it is of the same fabric");
        passive.listen().expect("a port is free");
        let address = passive.local_address().expect("it is bound").into();
        *peer.passive.borrow_mut() = Some(passive);
        (peer, address)
    }

    /// Private data of the first request, once there is one.
    pub fn request(&self) -> Option<Vec<u8>> {
        self.requests.borrow().front().map(|(_, data)| data.clone())
    }

    /// Accepts the first request, with this as private data.
    pub fn accept(&self, data: &[u8]) {
        let (info, _) = self.requests.borrow_mut().pop_front().expect("somebody asked");
        self.open(&info);
        self.endpoint.borrow().as_ref().expect("just opened").accept(data).expect("it waits");
    }

    /// Rejects the first request, with this as private data.
    pub fn reject(&self, data: &[u8]) {
        let (info, _) = self.requests.borrow_mut().pop_front().expect("somebody asked");
        self.passive.borrow().as_ref().expect("it listens").reject(info, data).expect("it waits");
    }

    /// Sends bytes as one packet; `false` when the connection is over.
    #[track_caller]
    pub fn send_bytes(&self, bytes: &[u8]) -> bool {
        let context = SEND + self.sent.replace(self.sent.get() + 1);
        let memory = Box::into_raw(bytes.to_vec().into_boxed_slice());
        self.sends.borrow_mut().insert(context, memory);
        let pieces = [libc::iovec { iov_base: memory.cast(), iov_len: bytes.len() }];
        let end = Instant::now() + LIMIT;
        loop {
            let posted = match &*self.endpoint.borrow() {
                // SAFETY: the memory is freed after the completion or after the endpoint is closed.
                #[allow(unsafe_code)]
                Some(endpoint) => unsafe { endpoint.send(&pieces, &[], context, libfabric_sys::FI_COMPLETION) },
                None => return false,
            };
            match posted {
                Ok(Posted::Yes) => return true,
                Ok(Posted::Again) => self.turn(),
                Err(_) => return false,
            }
            assert!(Instant::now() < end, "there is no room for a packet");
        }
    }

    #[track_caller]
    pub fn send(&self, packet: &Packet) -> bool {
        self.send_bytes(&packet.bytes())
    }

    /// Reads its queues.
    pub fn turn(&self) {
        self.unposted.take().into_iter().for_each(|index| self.post(index));
        while let Some(event) = self.events.read().expect("it can be read") {
            match event {
                CmEvent::ConnectRequest { info, data, .. } => self.requests.borrow_mut().push_back((info, data)),
                CmEvent::Connected { data, .. } => _ = self.answer.borrow_mut().replace(data),
                CmEvent::Shutdown { .. } => _ = self.end.borrow_mut().get_or_insert(End::Shutdown),
                CmEvent::Error { data, .. } => _ = self.end.borrow_mut().get_or_insert(End::Error(data)),
            }
        }
        let mut room = [Done::default(); 16];
        loop {
            match self.completions.read(&mut room) {
                Ok(0) => return,
                Ok(count) => room[..count].iter().for_each(|done| self.done(done)),
                Err(CqError::Operation(_)) => {}
                Err(CqError::Queue(error)) => panic!("{error}"),
            }
        }
    }

    fn done(&self, done: &Done) {
        if done.context >= SEND {
            if let Some(memory) = self.sends.borrow_mut().remove(&done.context) {
                // SAFETY: it came from a box, and the device is done with it.
                #[allow(unsafe_code)]
                drop(unsafe { Box::from_raw(memory) });
            }
            return;
        }
        // SAFETY: the receive has completed, so that nobody writes there until it is posted again.
        #[allow(unsafe_code)]
        let memory = unsafe { &*self.receives[done.context] };
        let bytes = &memory[..done.len];
        let packet = if self.coming.get() > 0 && bytes.len() != 8 { Packet::next(bytes) } else { Packet::read(bytes) };
        match packet.kind {
            FIRST => self.coming.set(packet.value as usize - packet.body.len()),
            PART => self.coming.set(self.coming.get() - packet.body.len()),
            _ => {}
        }
        self.arrived.borrow_mut().push(packet);
        self.post(done.context);
    }

    /// The answer to its hello, once it is connected; nothing on the side that accepted.
    pub fn answer(&self) -> Option<Vec<u8>> {
        self.answer.borrow().clone()
    }

    pub fn end(&self) -> Option<End> {
        self.end.borrow().clone()
    }

    /// All packets that arrived.
    pub fn arrived(&self) -> Vec<Packet> {
        self.arrived.borrow().clone()
    }

    /// How many of them use credits for data.
    pub fn data_packets(&self) -> usize {
        self.arrived.borrow().iter().filter(|packet| !packet.is_control()).count()
    }

    pub fn has_heard(&self, kind: u8) -> bool {
        self.arrived.borrow().iter().any(|packet| packet.kind == kind)
    }

    /// Vanishes without a word; the memory stays until this is dropped.
    pub fn die(&self) {
        let endpoint = self.endpoint.take();
        drop(endpoint);
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.die();
        for memory in self.receives.drain(..).chain(self.sends.take().into_values()) {
            // SAFETY: it came from a box, and the endpoint is closed.
            #[allow(unsafe_code)]
            drop(unsafe { Box::from_raw(memory) });
        }
    }
}
