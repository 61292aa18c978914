//! `recv` through netio3.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;

use netio3::{Callbacks, ClosedReason, Completion, ConnectionInfo, EndPointAddress, Endpoint, Message, NetioStatus, NetworkBackend};

use crate::args::{Backend, Common, RecvArgs};
use crate::control::Purpose;
use crate::failure::Failure;
use crate::ledger::{Answer, Incoming, Ledger};
use crate::library::table::Table;
use crate::library::{FOR_EVER, Ground, calls, listen};
use crate::plan::{announce, parse_listen};
use crate::report::Report;

/// Receives, and with `--forever` prints a report whenever the last of the senders has gone.
pub fn recv(common: &Common, backend: Backend, args: &RecvArgs) -> Result<Report, Failure> {
    let address = parse_listen(&args.listen)?;
    let ground = Ground::new(common, backend)?;
    if backend == Backend::Loopback {
        return Err(alone("recv", "send"));
    }
    let end = if args.forever { End::Never { json: common.json } } else { End::After(args.senders) };
    let receiver = Receiver::new(backend, end, common.verify);
    let (ledger, done) = (receiver.ledger.clone(), receiver.done.clone());
    let network = ground.backend(receiver)?;
    ground.note(SocketAddr::new(address.ip(), 0), true);
    announce(listen(&*network, &address)?);
    ground.run_until(&done, FOR_EVER)?;
    let report = ledger.borrow().report(backend, None);
    Ok(Report { calls: calls(&*network), ..report })
}

/// The loopback backend reaches nobody outside the process.
pub fn alone(role: &str, other: &str) -> Failure {
    Failure::NoConnection(format!(
        "`{role}` cannot be reached over loopback, which lives within one process; `{other} --backend loopback` brings its own peer"
    ))
}

/// When to stop receiving.
#[derive(Clone, Copy)]
pub enum End {
    /// After the goodbyes of that many senders.
    After(u64),
    /// Never; reports are printed instead.
    Never { json: bool },
}

impl End {
    /// How many senders are awaited.
    pub fn senders(&self) -> Option<u64> {
        match self {
            Self::After(senders) => Some(*senders),
            Self::Never { .. } => None,
        }
    }

    /// Enters into the book that a connection has ended, if it had sent anything; tells whether it was the last.
    pub fn close(&self, ledger: &mut Ledger, incoming: Option<Incoming>, why: String, backend: Backend) -> bool {
        if let Some(incoming) = incoming {
            incoming.close(ledger, Some(why));
        }
        self.is_reached(ledger, backend)
    }

    /// Whether everything is over. Otherwise prints a report of all that has gone, if nothing is left.
    pub fn is_reached(&self, ledger: &mut Ledger, backend: Backend) -> bool {
        match self {
            Self::After(_) => ledger.is_over(),
            Self::Never { json } => {
                ledger.print_round(backend, *json);
                false
            }
        }
    }
}

/// The receiving side.
pub struct Receiver {
    backend: Backend,
    end: End,
    connections: Table<Incoming>,
    /// What came.
    pub ledger: Rc<RefCell<Ledger>>,
    /// Whether all senders said goodbye.
    pub done: Rc<Cell<bool>>,
}

impl Receiver {
    /// A receiver that nobody has sent to yet.
    pub fn new(backend: Backend, end: End, verify: bool) -> Self {
        let ledger = Rc::new(RefCell::new(Ledger::new(Purpose::Stream, verify, end.senders())));
        Self { backend, end, connections: Table::new(), ledger, done: Rc::default() }
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
            answer(backend, from, incoming.control(&mut self.ledger.borrow_mut(), message));
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
        let incoming = self.connections.remove(endpoint);
        let is_over = self.end.close(&mut self.ledger.borrow_mut(), incoming, format!("{address}: {reason}"), self.backend);
        self.done.set(is_over);
    }
}

/// Answers a message that was not a measured one.
#[cold]
pub fn answer(backend: &dyn NetworkBackend, to: Endpoint, answer: Answer) {
    let sent = match &answer {
        Answer::Send(message) | Answer::Refuse(message) => backend.send_copy(to, message, &[], u64::MAX) == Ok(NetioStatus::Ok),
        Answer::HangUp => false,
    };
    // An endpoint that is gone already needs no closing.
    let _ = match answer {
        Answer::Send(_) if sent => Ok(()),
        Answer::Refuse(_) if sent => backend.close(to),
        _ => backend.abort(to),
    };
}
