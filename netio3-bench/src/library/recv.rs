//! `recv` through netio3.

use netio3::{Callbacks, ClosedReason, Completion, ConnectionInfo, EndPointAddress, Endpoint, Message, NetworkBackend};

use crate::args::{Backend, Common, RecvArgs};
use crate::control::Purpose;
use crate::failure::Failure;
use crate::ledger::Incoming;
use crate::library::serve::{Book, answer, serve};
use crate::library::table::Table;
use crate::report::Report;

/// Receives, and with `--forever` prints a report whenever the last of the senders has gone.
pub fn recv(common: &Common, backend: Backend, args: &RecvArgs) -> Result<Report, Failure> {
    serve(common, backend, Purpose::Stream, &args.listen, (!args.forever).then_some(args.senders), Receiver::new)
}

/// The receiving side.
pub struct Receiver {
    book: Book,
    connections: Table<Incoming>,
}

impl Receiver {
    /// A receiver that nobody has sent to yet.
    pub fn new(book: Book) -> Self {
        Self { book, connections: Table::new() }
    }
}

impl Callbacks for Receiver {
    fn on_connection_established(&mut self, _: &dyn NetworkBackend, connection: &ConnectionInfo) {
        self.connections.insert(connection.endpoint, Incoming::default());
    }

    // Always: it is to become a part of the loop over messages that came together.
    #[inline(always)]
    fn on_data(&mut self, backend: &dyn NetworkBackend, from: Endpoint, _: &EndPointAddress, message: Message<'_>) {
        let Some(incoming) = self.connections.get_mut(from) else { return };
        let message = message.as_slice();
        if !incoming.observe(message) {
            answer(backend, from, incoming.control(&mut self.book.ledger.borrow_mut(), message));
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
        self.book.close(self.connections.remove(endpoint), address, reason);
    }
}
