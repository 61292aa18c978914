//! What the TCP backend keeps for each connection.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use netio3_core::{EventLoop, RefusedReason, SourceId, WatchId};

use crate::inbound::Inbound;
use crate::net::Stream;
use crate::outbound::{Outbound, Spares};
use crate::session::Session;
use crate::stash::Stash;

/// A connection's socket and the bytes on their way to and from it.
pub(crate) struct Link<S> {
    socket: RefCell<Option<Watched<S>>>,
    /// The peer or the network refused when the connection was started.
    pub(crate) refused: Cell<Option<io::Error>>,
    pub(crate) session: Cell<Session>,
    pub(crate) inbound: RefCell<Inbound>,
    /// Reached by [`Tcp::outbound`](crate::transport::Tcp::outbound), but for lending of it.
    pub(crate) own_outbound: RefCell<Outbound>,
    /// Bytes that were read and may not be delivered yet.
    pub(crate) stash: RefCell<Stash>,
    /// The memory that the stash has, also while it is taken out to be delivered.
    pub(crate) stash_held: Cell<usize>,
    /// The socket takes nothing more until it is writable again.
    pub(crate) blocked: Cell<bool>,
    /// Writing failed; what is left to read is still delivered.
    pub(crate) unwritable: Cell<Option<Unwritable>>,
    /// The system told that the stream ends.
    pub(crate) read_closed: Cell<bool>,
    /// From how many bytes on the system tells of what came.
    low_water: Cell<usize>,
}

/// What becomes of a connection that cannot be written to.
#[derive(Clone, Copy)]
pub(crate) struct Unwritable {
    pub(crate) reason: RefusedReason,
    /// So many bytes are read at most before it ends.
    pub(crate) unread: usize,
}

struct Watched<S> {
    socket: Rc<S>,
    /// None while the socket is polled instead.
    watch: Option<WatchId>,
}

impl<S: Stream> Link<S> {
    /// Of a connection that cannot be written to, so many bytes less are read from now on. Tells whether it is one.
    #[inline]
    pub(crate) fn has_read(&self, bytes: usize) -> bool {
        let Some(Unwritable { reason, unread }) = self.unwritable.get() else { return false };
        self.unwritable.set(Some(Unwritable { reason, unread: unread.saturating_sub(bytes) }));
        true
    }

    pub(crate) fn new(socket: S, watch: WatchId, session: Session, max_len: usize, spares: &Rc<Spares>) -> Self {
        Self {
            socket: RefCell::new(Some(Watched { socket: Rc::new(socket), watch: Some(watch) })),
            refused: Cell::new(None),
            session: Cell::new(session),
            inbound: RefCell::new(Inbound::new(max_len)),
            own_outbound: RefCell::new(Outbound::new(spares)),
            stash: RefCell::default(),
            stash_held: Cell::new(0),
            blocked: Cell::new(false),
            unwritable: Cell::new(None),
            read_closed: Cell::new(false),
            low_water: Cell::new(1),
        }
    }

    /// The socket, until it is taken.
    pub(crate) fn socket(&self) -> Option<Rc<S>> {
        self.socket.borrow().as_ref().map(|watched| watched.socket.clone())
    }

    /// Takes the socket out, to be unwatched and closed.
    pub(crate) fn take_socket(&self) -> Option<(Rc<S>, Option<WatchId>)> {
        self.socket.take().map(|Watched { socket, watch }| (socket, watch))
    }

    /// Has the socket watched again.
    pub(crate) fn watch(&self, ev: &dyn EventLoop, source: SourceId, token: usize) -> io::Result<()> {
        if let Some(watched) = self.socket.borrow_mut().as_mut().filter(|watched| watched.watch.is_none()) {
            watched.watch = Some(watched.socket.watch(ev, source, token)?);
        }
        Ok(())
    }

    /// Ends the watch of the socket, which is polled from now on.
    pub(crate) fn unwatch(&self, ev: &dyn EventLoop) {
        if let Some(watched) = &mut *self.socket.borrow_mut() {
            watched.watch.take().into_iter().for_each(|watch| watched.socket.unwatch(ev, watch));
        }
    }

    /// Has the system tell of what comes once so many bytes are here.
    pub(crate) fn set_low_water(&self, bytes: usize) {
        if bytes != self.low_water.get() && self.socket().is_some_and(|socket| socket.set_low_water(bytes).is_ok()) {
            self.low_water.set(bytes);
        }
    }

    /// Changes the session; gives what the change gives.
    pub(crate) fn with_session<R>(&self, change: impl FnOnce(&mut Session) -> R) -> R {
        let mut session = self.session.get();
        let result = change(&mut session);
        self.session.set(session);
        result
    }
}
