//! `echo` through netio3.

use std::collections::VecDeque;

use netio3::bytes::Bytes;
use netio3::{Callbacks, ClosedReason, Completion, ConnectionInfo, EndPointAddress, Endpoint, Message, NetioStatus, NetworkBackend};

use crate::args::{Backend, Common, EchoArgs};
use crate::control::Purpose;
use crate::failure::Failure;
use crate::ledger::Incoming;
use crate::library::serve::{Book, answer, serve};
use crate::library::table::Table;
use crate::report::Report;

/// Sends everything back until the client said goodbye.
pub fn echo(common: &Common, backend: Backend, args: &EchoArgs) -> Result<Report, Failure> {
    let report = serve(common, backend, Purpose::RoundTrips, &args.listen, (!args.forever).then_some(1), Echo::new)?;
    Ok(Report { calls: None, ..report })
}

/// Messages up to this many bytes arrive in memory that is read into again, so that they are copied anyway.
const COPY_UP_TO: usize = 256 << 10;

/// The side that sends back.
pub struct Echo {
    book: Book,
    clients: Table<Client>,
}

#[derive(Default)]
struct Client {
    incoming: Incoming,
    /// Messages that there was no room to send back yet.
    held: VecDeque<Bytes>,
}

impl Echo {
    /// An echo without clients.
    pub fn new(book: Book) -> Self {
        Self { book, clients: Table::new() }
    }
}

impl Callbacks for Echo {
    fn on_connection_established(&mut self, _: &dyn NetworkBackend, connection: &ConnectionInfo) {
        self.clients.insert(connection.endpoint, Client::default());
    }

    fn on_data(&mut self, backend: &dyn NetworkBackend, from: Endpoint, _: &EndPointAddress, message: Message<'_>) {
        let Some(client) = self.clients.get_mut(from) else { return };
        if !client.incoming.observe(&message) {
            return answer(backend, from, client.incoming.control(&mut self.book.ledger.borrow_mut(), &message));
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
        self.book.close(incoming, address, reason);
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
