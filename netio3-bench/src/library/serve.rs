//! What `recv` and `echo` have in common: listening until all have gone that were awaited.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;

use netio3::{Callbacks, ClosedReason, EndPointAddress, Endpoint, NetioStatus, NetworkBackend};

use crate::args::{Backend, Common};
use crate::control::Purpose;
use crate::failure::Failure;
use crate::ledger::{Answer, Incoming, Ledger};
use crate::library::{CONNECT_DEADLINE, Ground, calls, listen};
use crate::plan::{announce, dial, parse_listen};
use crate::report::Report;

/// What came to a listening side, and whether that was all.
#[derive(Clone)]
pub struct Book {
    backend: Backend,
    json: bool,
    /// What came.
    pub ledger: Rc<RefCell<Ledger>>,
    /// Whether all senders that were awaited said goodbye.
    pub done: Rc<Cell<bool>>,
}

impl Book {
    /// An empty one, of so many senders; of any number, reports are printed instead of coming to an end.
    pub fn new(common: &Common, backend: Backend, purpose: Purpose, senders: Option<u64>) -> Self {
        let ledger = Rc::new(RefCell::new(Ledger::new(purpose, common.verify, senders)));
        Self { backend, json: common.json, ledger, done: Rc::default() }
    }

    /// Enters that a connection has ended, if it had sent anything.
    pub fn close(&self, incoming: Option<Incoming>, address: &EndPointAddress, reason: ClosedReason) {
        if let Some(incoming) = incoming {
            incoming.close(&mut self.ledger.borrow_mut(), Some(format!("{address}: {reason}")));
        }
        self.settle();
    }

    /// Looks whether everything is over, or all has gone that came.
    fn settle(&self) {
        let mut ledger = self.ledger.borrow_mut();
        ledger.print_round(self.backend, self.json);
        self.done.set(ledger.is_over());
    }
}

/// Listens until all senders have gone that were awaited.
pub fn serve<C: Callbacks + 'static>(
    common: &Common,
    backend: Backend,
    purpose: Purpose,
    at: &str,
    senders: Option<u64>,
    callbacks: impl FnOnce(Book) -> C,
) -> Result<Report, Failure> {
    let address = parse_listen(at)?;
    let ground = Ground::new(common, backend)?;
    if backend == Backend::Loopback {
        let [role, other] = purpose.roles();
        return Err(Failure::NoConnection(format!(
            "`{role}` cannot be reached over loopback, which lives within one process; `{other} --backend loopback` brings its own peer"
        )));
    }
    let book = Book::new(common, backend, purpose, senders);
    let network = ground.backend(callbacks(book.clone()))?;
    ground.note(SocketAddr::new(address.ip(), 0), true);
    announce(listen(&*network, &address)?);
    // A client may go between two connections.
    while !ground.run_until(&book.done, CONNECT_DEADLINE)? {
        book.ledger.borrow_mut().look_for_absent();
        book.settle();
    }
    let report = book.ledger.borrow().report(backend, None);
    Ok(Report { calls: calls(&*network), ..report })
}

/// The other side where it has to live in this process, and whether it has ended.
pub type Own = (Box<dyn NetworkBackend>, Rc<Cell<bool>>);

/// Where to connect to: where `--connect` says, or over loopback to a side of this process's own.
pub fn other_side<C: Callbacks + 'static>(
    ground: &Ground,
    backend: Backend,
    purpose: Purpose,
    connect: Option<&str>,
    callbacks: impl FnOnce(Book) -> C,
) -> Result<(Vec<SocketAddr>, Option<Own>), Failure> {
    if backend != Backend::Loopback {
        let addresses = dial(connect)?;
        ground.note(addresses[0], false);
        return Ok((addresses, None));
    }
    let book = Book::new(&ground.common, backend, purpose, Some(1));
    let done = book.done.clone();
    let network = ground.backend(callbacks(book))?;
    let address = listen(&*network, &EndPointAddress::localhost(0))?;
    Ok((vec![address], Some((network, done))))
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
