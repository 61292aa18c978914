//! A backend that notes what it is told, for tests of what is particular to one, and a connection that must not be
//! disturbed meanwhile.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use crate::address::EndPointAddress;
use crate::backend::NetworkBackend;
use crate::callbacks::{Callbacks, ConnectionInfo};
use crate::config::{ConnectionParameters, ConnectionParametersRecv};
use crate::endpoint::Endpoint;
use crate::error::CreateError;
use crate::event_loop::EventLoop;
use crate::message::Message;
use crate::stats::ListenerStats;
use crate::status::{ClosedReason, Completion, Direction, NetioStatus, RefusedReason};

/// Long enough for a machine that is busy otherwise; reached only by failing tests.
const LIMIT: Duration = Duration::from_secs(30);

/// What a backend told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// *established*.
    Established(Endpoint, Direction),
    /// *refused*.
    Refused(Endpoint, RefusedReason),
    /// *closed*, with what was pending.
    Closed(Endpoint, Vec<Completion>, ClosedReason),
    /// *data*.
    Data(Endpoint, Vec<u8>),
    /// *completed*.
    Completed(Endpoint, Vec<Completion>),
    /// *writable*.
    Writable(Endpoint),
}

/// A backend and what it told.
pub struct Noted {
    /// The backend.
    pub backend: Box<dyn NetworkBackend>,
    told: Rc<RefCell<Vec<Told>>>,
}

struct Notes(Rc<RefCell<Vec<Told>>>);

impl Noted {
    /// A backend that is made with the callbacks given.
    pub fn new(create: impl FnOnce(Box<dyn Callbacks>) -> Result<Box<dyn NetworkBackend>, CreateError>) -> Self {
        let told = Rc::new(RefCell::new(Vec::new()));
        let backend = create(Box::new(Notes(told.clone()))).expect("the backend can be made");
        Self { backend, told }
    }

    /// Everything, in order.
    pub fn told(&self) -> Vec<Told> {
        self.told.borrow().clone()
    }

    /// Listens on a free port.
    pub fn listen(&self) -> EndPointAddress {
        self.listen_with(ConnectionParameters::default())
    }

    /// Listens on a free port, with these parameters.
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

    /// What *closed* said of a connection.
    pub fn closed(&self, endpoint: Endpoint) -> Option<(Vec<Completion>, ClosedReason)> {
        let told = self.told.borrow();
        told.iter().find_map(|told| match told {
            Told::Closed(of, pending, reason) if *of == endpoint => Some((pending.clone(), *reason)),
            _ => None,
        })
    }

    /// What *refused* said of it.
    pub fn refused(&self, endpoint: Endpoint) -> Option<RefusedReason> {
        let told = self.told.borrow();
        told.iter().find_map(|told| if let Told::Refused(of, reason) = told { (*of == endpoint).then_some(*reason) } else { None })
    }

    /// The messages received on it.
    pub fn received(&self, endpoint: Endpoint) -> Vec<Vec<u8>> {
        let told = self.told.borrow();
        let of = |told: &Told| if let Told::Data(of, data) = told { (*of == endpoint).then(|| data.clone()) } else { None };
        told.iter().filter_map(of).collect()
    }

    /// Keys that completed.
    pub fn completed(&self, endpoint: Endpoint) -> Vec<u64> {
        let told = self.told.borrow();
        let of = |told: &Told| match told {
            Told::Completed(of, completions) if *of == endpoint => completions.iter().map(|completion| completion.key).collect(),
            _ => Vec::new(),
        };
        told.iter().flat_map(of).collect()
    }

    /// The keys of 0 to this have all come back, each once and in order: those that completed, then those pending.
    #[track_caller]
    pub fn check_keys(&self, endpoint: Endpoint, count: u64) {
        let (pending, _) = self.closed(endpoint).expect("it was closed");
        let mut keys = self.completed(endpoint);
        keys.extend(pending.iter().map(|pending| pending.key));
        assert_eq!(keys, (0..count).collect::<Vec<_>>());
    }

    /// Sends a copy, which must be accepted.
    #[track_caller]
    pub fn send(&self, to: Endpoint, data: &[u8], key: u64) {
        assert_eq!(self.backend.send_copy(to, data, &[], key), Ok(NetioStatus::Ok));
    }
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

/// A connection between two nodes that must not notice anything.
pub struct Witness {
    /// The one that connected.
    pub client: Noted,
    out: Endpoint,
    back: Endpoint,
    count: u64,
}

impl Witness {
    /// Connects a client to a server that listens.
    #[track_caller]
    pub fn new(ev: &dyn EventLoop, client: Noted, server: &Noted, address: EndPointAddress) -> Self {
        let before = server.established().len();
        let out = client.backend.connect(&address, &ConnectionParameters::default()).expect("a connection is started");
        until(ev, "the witness is established", || client.established().len() == 1 && server.established().len() > before);
        let mut witness = Self { client, out, back: server.established()[before], count: 0 };
        witness.testify(ev, server);
        witness
    }

    /// One more message each way.
    #[track_caller]
    pub fn testify(&mut self, ev: &dyn EventLoop, server: &Noted) {
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

#[track_caller]
fn until(ev: &dyn EventLoop, what: &str, mut condition: impl FnMut() -> bool) {
    assert!(ev.run_until(&mut condition, LIMIT).expect("the loop can wait"), "not within {LIMIT:?}: {what}");
}
