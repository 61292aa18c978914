//! Listeners, and the peers that were accepted and have not said hello.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::address::EndPointAddress;
use crate::config::ConnectionParametersRecv;
use crate::endpoint::MAX_ENDPOINTS;
use crate::engine::connection::Accepted;
use crate::engine::core::{LISTENER, Rcc};
use crate::engine::deadlines::ACCEPT_RETRY;
use crate::engine::{Connection, Engine, Listener, Opener, Release, State, Transport};
use crate::error::descriptors_remedy;
use crate::memory::BufferPool;
use crate::stats::ListenerCounters;
use crate::status::{ClosedReason, Direction, RefusedReason};

/// How often a listener that cannot accept says so, at most.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// What to do where accepting fails, if the error does not say so itself.
fn accept_remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EINVAL) => " (if the listener was shut down from outside, close it and open it again)",
        _ => descriptors_remedy(error),
    }
}

impl<T: Transport> Engine<T> {
    pub(super) fn listens_on(&self, address: &EndPointAddress) -> bool {
        self.listeners.borrow().iter().flatten().any(|listener| listener.address == *address)
    }

    /// Makes a bound listener one of this loop.
    pub(crate) fn adopt_listener(
        &self,
        address: EndPointAddress,
        params: ConnectionParametersRecv,
        counters: Arc<ListenerCounters>,
        listening: <T::Opener as Opener>::Listening,
    ) -> io::Result<()> {
        let index = {
            let mut listeners = self.listeners.borrow_mut();
            let free = listeners.iter().position(Option::is_none);
            free.unwrap_or_else(|| {
                listeners.push(None);
                listeners.len() - 1
            })
        };
        let token = LISTENER | index;
        let link = self.transport.adopt_listener(self, token, listening)?;
        let connection_params = Arc::new(params.connection.clone());
        let listener = Listener {
            address,
            params: Arc::new(params),
            counters,
            link,
            token,
            connection_params,
            complained: Cell::default(),
            retry_at: Cell::default(),
        };
        self.listeners.borrow_mut()[index] = Some(Rc::new(listener));
        tracing::info!(backend = T::NAME, listener = %address, "listener opened");
        Ok(())
    }

    /// The listener watched under a token.
    pub fn listener_at(&self, token: usize) -> Option<Rc<Listener<T::Listener>>> {
        if token & LISTENER == 0 {
            return None;
        }
        self.listeners.borrow().get(token & !LISTENER)?.clone()
    }

    pub(super) fn close_listener(&self, listener: &Rc<Listener<T::Listener>>) {
        if let Some(slot) = self.listeners.borrow_mut().get_mut(listener.token & !LISTENER) {
            *slot = None;
        }
        self.transport.release_listener(self, listener);
        tracing::info!(backend = T::NAME, listener = %listener.address, "listener closed");
    }

    /// Enters an accepted peer that has not said hello yet. `None` when the table or the system is full.
    pub fn stranger(
        self: &Rc<Self>,
        listener: &Listener<T::Listener>,
        address: EndPointAddress,
        link: impl FnOnce(usize) -> io::Result<T::Link>,
    ) -> Option<Rc<Connection<T::Link>>> {
        self.make_room_for_stranger();
        let endpoint = self.ids.allocate(MAX_ENDPOINTS)?;
        let link = match link(endpoint.slot()) {
            Ok(link) => link,
            Err(error) => {
                self.accept_failed(listener, &error);
                self.ids.release(endpoint);
                return None;
            }
        };
        listener.counters.accepted.add(1);
        let accepted = Accepted { address: listener.address, counters: listener.counters.clone(), filter: listener.params.accept.clone() };
        let params = listener.connection_params.clone();
        let connection = Rc::new(self.connection(endpoint, address, Direction::Incoming, Some(accepted), params, Arc::default(), link));
        self.strangers.borrow_mut().push_back(endpoint);
        self.enter(&connection);
        Some(connection)
    }

    /// Counts that a listener could not accept, and says so now and then: peers decide how often it tries.
    pub fn accept_failed(&self, listener: &Listener<T::Listener>, error: &io::Error) {
        listener.counters.accept_failures.add(1);
        self.totals.accept_failures.add(1);
        let now = self.ev.now();
        if listener.complained.get().is_none_or(|last| now.saturating_duration_since(last) >= COMPLAIN_EVERY) {
            listener.complained.set(Some(now));
            let remedy = accept_remedy(error);
            tracing::warn!(backend = T::NAME, listener = %listener.address, %error, "cannot accept{remedy}");
        }
    }

    /// Closes the longest silent stranger to make room; for accept loops that run out of descriptors.
    /// `false` when there is none, or none that had a while to say hello: what it said may be unread yet.
    pub fn evict_stranger(&self) -> bool {
        let is_new = |stranger: &Rcc<T>| self.ev.now().saturating_duration_since(stranger.since.get()) < ACCEPT_RETRY;
        match self.longest_silent() {
            Some(stranger) if !is_new(&stranger) => {
                self.evict(&stranger);
                true
            }
            _ => false,
        }
    }

    /// Whether the next peer would make one go that was accepted in this very turn, whose hello may be here, unread: to be
    /// accepted in the next turn, when it was read.
    pub fn awaits_hellos(&self) -> bool {
        let is_full = self.strangers.borrow().len() >= self.config.max_handshakes;
        is_full && self.longest_silent().is_some_and(|stranger| stranger.entered == self.turns.get())
    }

    /// The accepted peer that has not said hello for the longest time.
    fn longest_silent(&self) -> Option<Rcc<T>> {
        let mut strangers = self.strangers.borrow_mut();
        loop {
            match self.get(*strangers.front()?).filter(|connection| !connection.known.get()) {
                Some(stranger) => return Some(stranger),
                None => _ = strangers.pop_front(),
            }
        }
    }

    fn evict(&self, stranger: &Rcc<T>) {
        tracing::debug!(backend = T::NAME, peer = %stranger.address, "a peer that says no hello makes room for another one");
        stranger.listener_counters().inspect(|counters| counters.silent.add(1));
        self.drop_stranger(stranger);
    }

    fn make_room_for_stranger(&self) {
        let is_full = || self.strangers.borrow().len() >= self.config.max_handshakes;
        let longest_silent = self.longest_silent();
        if is_full() {
            self.strangers.borrow_mut().retain(|endpoint| self.get(*endpoint).is_some_and(|connection| !connection.known.get()));
        }
        if is_full() {
            longest_silent.inspect(|stranger| self.evict(stranger));
        }
    }

    /// Decides about an accepted peer that said hello: a connection from now on, or refused.
    ///
    /// # Errors
    /// `Limit` or `Filter`, counted by the listener, or `Shutdown`; tell the peer and then
    /// [`drop_stranger`](Self::drop_stranger).
    pub fn admit(&self, connection: &Rc<Connection<T::Link>>) -> Result<(), RefusedReason> {
        let listener = connection.listener.as_ref().expect("only accepted connections are admitted");
        if self.shutdown_at.get().is_some() {
            return Err(self.turn_away(listener, connection, RefusedReason::Shutdown));
        }
        if !listener.filter.allows(&connection.address) {
            listener.counters.refused_filter.add(1);
            return Err(self.turn_away(listener, connection, RefusedReason::Filter));
        }
        if self.is_full() {
            listener.counters.refused_limit.add(1);
            return Err(self.turn_away(listener, connection, RefusedReason::Limit));
        }
        match BufferPool::of_connection(connection.endpoint, connection.params.buffers, &self.remote) {
            Ok(pool) => *connection.pool.borrow_mut() = pool,
            Err(error) => {
                tracing::warn!(listener = %listener.address, %error, "no memory for a connection's buffers");
                listener.counters.refused_limit.add(1);
                return Err(RefusedReason::Limit);
            }
        }
        listener.counters.established.add(1);
        connection.known.set(true);
        self.count_connections(self.connections() + 1);
        Ok(())
    }

    fn turn_away(&self, listener: &Accepted, peer: &Connection<T::Link>, reason: RefusedReason) -> RefusedReason {
        tracing::debug!(backend = T::NAME, listener = %listener.address, peer = %peer.address, ?reason, "peer turned away");
        reason
    }

    /// Forgets an accepted peer that did not become a connection. No callback comes of it.
    pub fn drop_stranger(&self, connection: &Rc<Connection<T::Link>>) {
        if connection.is_over() {
            return;
        }
        connection.set_over(State::Closed(ClosedReason::Protocol));
        self.set_deadline(connection, None);
        self.transport.release(self, connection, Release::Orderly);
        self.leave(connection);
    }
}
