//! `echo` through netio3.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;

use netio3::bytes::Bytes;
use netio3::{Callbacks, ClosedReason, Completion, ConnectionInfo, EndPointAddress, Endpoint, Message, NetioStatus, NetworkBackend};

use crate::args::{Backend, Common, EchoArgs};
use crate::control::Purpose;
use crate::failure::Failure;
use crate::ledger::{Incoming, Ledger};
use crate::library::recv::{End, alone, answer};
use crate::library::table::Table;
use crate::library::{CONNECT_DEADLINE, Ground, listen};
use crate::plan::{announce, parse_listen};
use crate::report::Report;

/// Sends everything back until the client said goodbye.
pub fn echo(common: &Common, backend: Backend, args: &EchoArgs) -> Result<Report, Failure> {
    let address = parse_listen(&args.listen)?;
    let ground = Ground::new(common, backend)?;
    if backend == Backend::Loopback {
        return Err(alone("echo", "ping"));
    }
    let end = if args.forever { End::Never { json: common.json } } else { End::After(1) };
    let echo = Echo::new(backend, end, common.verify);
    let (ledger, done) = (echo.ledger.clone(), echo.done.clone());
    let network = ground.backend(echo)?;
    ground.note(SocketAddr::new(address.ip(), 0), true);
    announce(listen(&*network, &address)?);
    // A client may go between two connections.
    while !ground.run_until(&done, CONNECT_DEADLINE)? {
        let mut ledger = ledger.borrow_mut();
        ledger.look_for_absent();
        done.set(end.is_reached(&mut ledger, backend));
    }
    let report = ledger.borrow().report(backend, None);
    Ok(report)
}

/// Messages up to this many bytes arrive in memory that is read into again, so that they are copied anyway.
const COPY_UP_TO: usize = 256 << 10;

/// The side that sends back.
pub struct Echo {
    backend: Backend,
    end: End,
    clients: Table<Client>,
    /// What came.
    pub ledger: Rc<RefCell<Ledger>>,
    /// Whether the client said goodbye.
    pub done: Rc<Cell<bool>>,
}

#[derive(Default)]
struct Client {
    incoming: Incoming,
    /// Messages that there was no room to send back yet.
    held: VecDeque<Bytes>,
}

impl Echo {
    /// An echo without clients.
    pub fn new(backend: Backend, end: End, verify: bool) -> Self {
        let ledger = Rc::new(RefCell::new(Ledger::new(Purpose::RoundTrips, verify, end.senders())));
        Self { backend, end, clients: Table::new(), ledger, done: Rc::default() }
    }
}

impl Callbacks for Echo {
    fn on_connection_established(&mut self, _: &dyn NetworkBackend, connection: &ConnectionInfo) {
        self.clients.insert(connection.endpoint, Client::default());
    }

    fn on_data(&mut self, backend: &dyn NetworkBackend, from: Endpoint, _: &EndPointAddress, message: Message<'_>) {
        let Some(client) = self.clients.get_mut(from) else { return };
        if !client.incoming.observe(&message) {
            return answer(backend, from, client.incoming.control(&mut self.ledger.borrow_mut(), &message));
        }
        if client.held.is_empty() && message.len() <= COPY_UP_TO && backend.send_copy(from, &message, &[], 0) == Ok(NetioStatus::Ok) {
            return;
        }
        client.held.push_back(message.into_bytes());
        send_held(backend, from, &mut client.held);
    }

    fn on_writable(&mut self, backend: &dyn NetworkBackend, endpoint: Endpoint, _: &EndPointAddress) {
        if let Some(client) = self.clients.get_mut(endpoint) {
            send_held(backend, endpoint, &mut client.held);
        }
    }

    fn on_connection_closed(
        &mut self,
        _: &dyn NetworkBackend,
        endpoint: Endpoint,
        address: &EndPointAddress,
        _: &[Completion],
        reason: ClosedReason,
    ) {
        let incoming = self.clients.remove(endpoint).map(|client| client.incoming);
        let is_over = self.end.close(&mut self.ledger.borrow_mut(), incoming, format!("{address}: {reason}"), self.backend);
        self.done.set(is_over);
    }
}

/// Sends back what is held, and takes no more while some is left.
fn send_held(backend: &dyn NetworkBackend, to: Endpoint, held: &mut VecDeque<Bytes>) {
    while let Some(message) = held.front() {
        if backend.send(to, message, &[], 0) != Ok(NetioStatus::Ok) {
            // If the connection is going down, *closed* follows and tidies up.
            let _ = backend.pause(to);
            return;
        }
        held.pop_front();
    }
    let _ = backend.resume(to);
}
