//! The state of a backend on its loop's thread.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use crate::address::EndPointAddress;
use crate::config::{ConnectionParameters, ConnectionParametersRecv, Limits, NetworkConfig};
use crate::endpoint::{Endpoint, EndpointIds, MAX_ENDPOINTS};
use crate::engine::connection::{Accepted, Listed};
use crate::engine::deadlines::{ACCEPT_RETRY, Due};
use crate::engine::ledger::Sent;
use crate::engine::{Connection, Freed, Ledger, Opener, Release, State, Transport};
use crate::event_loop::{EventLoop, Ready, Remote, SourceId};
use crate::memory::{BufferPool, RegionTable};
use crate::message::{Meter, OwnedCaps};
use crate::stats::{BackendCounters, ConnectionCounters, ListenerCounters};
use crate::status::{ClosedReason, Completion, Direction, RefusedReason};

/// A listener, as the engine sees it.
pub struct Listener<L> {
    /// The bound address.
    pub address: EndPointAddress,
    /// What the user asked for.
    pub params: Arc<ConnectionParametersRecv>,
    /// Its counters.
    pub counters: Arc<ListenerCounters>,
    /// The transport's part.
    pub link: L,
    pub(super) token: usize,
    connection_params: Arc<ConnectionParameters>,
}

/// Watch tokens of listeners have this bit; the others are places in the table of connections.
pub(super) const LISTENER: usize = 1 << 40;

/// Messages that were accepted and have not completed.
#[derive(Default)]
pub(super) struct Queued {
    pub(super) messages: Cell<usize>,
    pub(super) bytes: Cell<usize>,
}

type Rcc<T> = Rc<Connection<<T as Transport>::Link>>;
type Rcl<T> = Rc<Listener<<T as Transport>::Listener>>;

/// The state of a backend: connections, listeners, and what waits for the end of the turn.
pub struct Engine<T: Transport> {
    /// The part that moves bytes.
    pub transport: T,
    /// The part of it that any thread may use.
    pub opener: Arc<T::Opener>,
    /// What the user asked for.
    pub config: NetworkConfig,
    /// Totals; they survive the connections.
    pub totals: Arc<BackendCounters>,
    pub(crate) ids: EndpointIds,
    pub(super) table: RefCell<Vec<Option<Rcc<T>>>>,
    pub(super) by_address: RefCell<HashMap<EndPointAddress, Endpoint>>,
    pub(super) listeners: RefCell<Vec<Option<Rcl<T>>>>,
    pub(super) regions: RefCell<RegionTable>,
    /// Whether zero-copy sends have to be looked up in the table of regions.
    pub(super) look_up_regions: Cell<bool>,
    /// What all connections together have queued.
    pub(super) queued: Queued,
    /// Connections that are over and not told yet.
    pub(super) over: RefCell<VecDeque<Rcc<T>>>,
    pub(super) unflushed: RefCell<Vec<Rcc<T>>>,
    pub(super) completed: RefCell<Vec<Rcc<T>>>,
    pub(super) refused: RefCell<Vec<Rcc<T>>>,
    pub(super) capped: RefCell<Vec<Rcc<T>>>,
    /// Accepted peers that have not said hello, the longest silent first.
    pub(super) strangers: RefCell<VecDeque<Endpoint>>,
    pub(super) deadlines: RefCell<BTreeSet<(Instant, Due)>>,
    /// Set once by `shutdown`: when what has not ended is aborted.
    pub(super) shutdown_at: Cell<Option<Instant>>,
    pub(super) gone: Cell<bool>,
    /// A front keeps books of its own, fuller than these, and counts by them what connections have queued.
    pub(super) fronted: Cell<bool>,
    /// The end of the turn is being done: it finds by itself what is listed meanwhile.
    pub(super) ending_turn: Cell<bool>,
    pub(super) ev: Rc<dyn EventLoop>,
    pub(super) source: Cell<Option<SourceId>>,
    remote: Arc<dyn Remote>,
    caps: Arc<OwnedCaps>,
}

impl<T: Transport> Engine<T> {
    pub(crate) fn new(transport: T, opener: Arc<T::Opener>, config: NetworkConfig, ids: EndpointIds, ev: &dyn EventLoop) -> Rc<Self> {
        let totals = Arc::new(BackendCounters::default());
        let remote = ev.remote();
        let caps = Arc::new(OwnedCaps {
            messages: config.owned_messages as u64,
            bytes: config.owned_bytes as u64,
            total_messages: config.total_owned_messages as u64,
            total_bytes: config.total_owned_bytes as u64,
            backend: totals.clone(),
            in_use: AtomicBool::new(false),
            blocked: AtomicBool::new(false),
            remote: remote.clone(),
        });
        Rc::new(Self {
            transport,
            opener,
            totals,
            ids,
            table: RefCell::default(),
            by_address: RefCell::default(),
            listeners: RefCell::default(),
            regions: RefCell::new(RegionTable::new(config.max_regions, config.strict_regions)),
            look_up_regions: Cell::new(config.strict_regions),
            queued: Queued::default(),
            over: RefCell::default(),
            unflushed: RefCell::default(),
            completed: RefCell::default(),
            refused: RefCell::default(),
            capped: RefCell::default(),
            strangers: RefCell::default(),
            deadlines: RefCell::default(),
            shutdown_at: Cell::new(None),
            gone: Cell::new(false),
            fronted: Cell::new(false),
            ending_turn: Cell::new(false),
            ev: ev.handle(),
            source: Cell::new(None),
            remote,
            caps,
            config,
        })
    }

    /// The loop this backend lives on.
    pub fn event_loop(&self) -> &dyn EventLoop {
        &*self.ev
    }

    /// The backend's name on its loop; for watching descriptors.
    ///
    /// # Panics
    /// Before the backend was added to its loop, which no transport sees.
    pub fn source(&self) -> SourceId {
        self.source.get().expect("a backend is added to its loop when it is created")
    }

    /// Whether the backend has ended.
    pub fn is_gone(&self) -> bool {
        self.gone.get()
    }

    // ----- connections -----

    pub(super) fn get(&self, endpoint: Endpoint) -> Option<Rcc<T>> {
        self.table.borrow().get(endpoint.slot())?.clone().filter(|connection| connection.endpoint == endpoint)
    }

    /// The connection watched under a token.
    pub fn at(&self, token: usize) -> Option<Rcc<T>> {
        self.table.borrow().get(token)?.clone()
    }

    /// Whether another connection may be opened or admitted.
    pub(crate) fn is_full(&self) -> bool {
        self.totals.connections.get() >= self.config.max_connections as u64
    }

    /// Makes a started connection one of this loop. Whatever goes wrong is told as *refused*.
    #[allow(clippy::too_many_arguments, reason = "the parts of a connection")]
    pub(crate) fn adopt(
        self: &Rc<Self>,
        endpoint: Endpoint,
        address: EndPointAddress,
        owns_address: bool,
        params: Arc<ConnectionParameters>,
        counters: Arc<ConnectionCounters>,
        dialing: <T::Opener as Opener>::Dialing,
    ) -> io::Result<()> {
        let pool = match params.buffers {
            Some(buffers) => Some(BufferPool::of_connection(endpoint, buffers.size, buffers.count, self.remote.clone())?),
            None => None,
        };
        let link = self.transport.adopt(self, endpoint.slot(), dialing, &params)?;
        let connection = self.connection(endpoint, address, Direction::Outgoing, None, params, counters, link);
        let connection = Rc::new(Connection { known: Cell::new(true), owns_address, pool: RefCell::new(pool), ..connection });
        if owns_address {
            self.by_address.borrow_mut().insert(address, endpoint);
        }
        self.totals.opened.add(1);
        self.enter(&connection);
        self.ev.schedule();
        Ok(())
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
                tracing::warn!(listener = %listener.address, peer = %address, %error, "cannot take an accepted peer on");
                listener.counters.accept_failures.add(1);
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
        if let Some(buffers) = connection.params.buffers {
            match BufferPool::of_connection(connection.endpoint, buffers.size, buffers.count, self.remote.clone()) {
                Ok(pool) => *connection.pool.borrow_mut() = Some(pool),
                Err(error) => {
                    tracing::warn!(listener = %listener.address, %error, "no memory for a connection's buffers");
                    listener.counters.refused_limit.add(1);
                    return Err(RefusedReason::Limit);
                }
            }
        }
        listener.counters.established.add(1);
        connection.known.set(true);
        self.totals.connections.set(self.totals.connections.get() + 1);
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
        connection.state.set(State::Closed(ClosedReason::Protocol));
        self.set_deadline(connection, None);
        self.transport.release(self, connection, Release::Orderly);
        self.leave(connection);
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of a connection")]
    fn connection(
        &self,
        endpoint: Endpoint,
        address: EndPointAddress,
        direction: Direction,
        listener: Option<Accepted>,
        params: Arc<ConnectionParameters>,
        counters: Arc<ConnectionCounters>,
        link: T::Link,
    ) -> Connection<T::Link> {
        let now = self.ev.now();
        let limits = Limits {
            max_message_len: self.config.max_message_len,
            max_header_len: params.max_header_len.max(256),
            queue_messages: params.queue_messages.max(1),
            queue_bytes: params.queue_bytes,
        };
        Connection {
            endpoint,
            address,
            direction,
            ledger: RefCell::new(Ledger::new(&params)),
            counted: Cell::new(0),
            meter: Meter::new(Arc::clone(&counters), self.caps.clone()),
            params,
            counters,
            link,
            listener,
            state: Cell::new(State::Opening),
            known: Cell::new(false),
            owns_address: false,
            paused: Cell::new(false),
            limits: Cell::new(limits),
            pool: RefCell::new(None),
            starved: Cell::new(false),
            liveness: RefCell::new(None),
            since: Cell::new(now),
            progress: Cell::new(now),
            deadline: Cell::new(None),
            listed: Listed::default(),
        }
    }

    /// Puts a new connection into the table and starts its deadline.
    fn enter(&self, connection: &Rcc<T>) {
        let mut table = self.table.borrow_mut();
        let slot = connection.endpoint.slot();
        if table.len() <= slot {
            table.resize(slot + 1, None);
        }
        table[slot] = Some(connection.clone());
        drop(table);
        if connection.known.get() {
            self.totals.connections.set(self.totals.connections.get() + 1);
        }
        self.update_deadline(connection);
    }

    /// Takes a connection out of the table; its handle is unknown from now on and its address free.
    pub(super) fn leave(&self, connection: &Rcc<T>) {
        if let Some(slot) = self.table.borrow_mut().get_mut(connection.endpoint.slot()) {
            if slot.take_if(|present| present.endpoint == connection.endpoint).is_none() {
                return;
            }
        }
        if connection.owns_address {
            self.by_address.borrow_mut().remove(&connection.address);
        }
        if connection.known.get() {
            self.totals.connections.set(self.totals.connections.get().saturating_sub(1));
        }
        self.ids.release(connection.endpoint);
    }

    // ----- the end of a connection -----

    /// Ends a connection that was never established; *refused* follows.
    pub fn refuse(&self, connection: &Rc<Connection<T::Link>>, reason: RefusedReason) {
        self.end(connection, State::Refused(reason), Release::Reset);
    }

    /// Ends an established connection; *closed* follows. A stranger is just dropped.
    pub fn finish(&self, connection: &Rc<Connection<T::Link>>, reason: ClosedReason, how: Release) {
        let reason = match connection.state.get() {
            // The first cause is the one that is told.
            State::Closing(first) if how == Release::Orderly || first != ClosedReason::PeerClosed => first,
            _ => reason,
        };
        self.end(connection, State::Closed(reason), how);
    }

    fn end(&self, connection: &Rcc<T>, state: State, how: Release) {
        if connection.is_over() {
            return;
        }
        if !connection.known.get() {
            return self.drop_stranger(connection);
        }
        connection.state.set(state);
        self.set_deadline(connection, None);
        if self.transport.release(self, connection, how) == Freed::AtOnce {
            self.freed(connection);
        }
    }

    /// Everything of a connection that is over is freed: its end may be told.
    pub fn freed(&self, connection: &Rc<Connection<T::Link>>) {
        if connection.known.get() && !self.gone.get() {
            self.over.borrow_mut().push_back(connection.clone());
            self.end_turn_soon();
        }
    }

    // ----- sending -----

    /// Bytes of a connection's stream left, in which every message is preceded by a head of `head` bytes.
    pub fn left_bytes(&self, connection: &Rc<Connection<T::Link>>, n: usize, head: usize) {
        let sent = connection.ledger.borrow_mut().complete_bytes(n, head, &mut self.regions.borrow_mut());
        self.left(connection, sent);
    }

    /// The first `n` messages of a connection's queue left.
    pub fn left_messages(&self, connection: &Rc<Connection<T::Link>>, n: usize) {
        let sent = connection.ledger.borrow_mut().complete_messages(n, &mut self.regions.borrow_mut());
        self.left(connection, sent);
    }

    fn left(&self, connection: &Rcc<T>, sent: Sent) {
        let now = self.ev.now();
        connection.progress.set(now);
        if let Some(liveness) = &mut *connection.liveness.borrow_mut() {
            liveness.sent(now);
        }
        if sent.messages == 0 {
            return;
        }
        let (messages, bytes) = (sent.messages as u64, sent.bytes as u64);
        connection.counters.messages_sent.add(messages);
        connection.counters.bytes_sent.add(bytes);
        self.totals.messages_sent.add(messages);
        self.totals.bytes_sent.add(bytes);
        self.unqueue(sent.messages, sent.bytes);
        self.count_queue(connection);
        if connection.ledger.borrow().messages() == 0 {
            self.trim_later(connection);
        }
        if !connection.listed.completed.replace(true) {
            self.completed.borrow_mut().push(connection.clone());
            self.end_turn_soon();
        }
    }

    /// Everything accepted on a connection that did not complete, at its end.
    pub(super) fn take_pending(&self, connection: &Connection<T::Link>) -> Vec<Completion> {
        let mut ledger = connection.ledger.borrow_mut();
        self.unqueue(ledger.messages(), ledger.bytes());
        let pending = ledger.take_pending(&mut self.regions.borrow_mut());
        drop(ledger);
        self.count_queue(connection);
        pending
    }

    fn unqueue(&self, messages: usize, bytes: usize) {
        self.queued.messages.set(self.queued.messages.get() - messages);
        self.queued.bytes.set(self.queued.bytes.get() - bytes);
        self.count_queues();
    }

    /// Brings the counters of what a connection has accepted and queued up to date: not for each message, but
    /// when something is flushed, leaves or is refused, and when the user asks for them.
    pub(super) fn count_queue(&self, connection: &Connection<T::Link>) {
        self.count_queues();
        let ledger = connection.ledger.borrow();
        let newly = ledger.accepted() - connection.counted.replace(ledger.accepted());
        self.totals.messages_accepted.add(newly);
        if !self.fronted.get() {
            connection.counters.messages_accepted.set(ledger.accepted());
            connection.counters.queued_messages.set(ledger.messages() as u64);
            connection.counters.queued_bytes.set(ledger.bytes() as u64);
        }
    }

    /// The same for the backend's levels.
    pub(super) fn count_queues(&self) {
        self.totals.queued_messages.set(self.queued.messages.get() as u64);
        self.totals.queued_bytes.set(self.queued.bytes.get() as u64);
    }

    /// Whether the backend's queues together have room for a message.
    #[inline]
    pub(super) fn has_room(&self, len: usize) -> bool {
        self.queued.messages.get() < self.config.total_queue_messages && self.queued.bytes.get() + len <= self.config.total_queue_bytes
    }

    /// Sends what a connection has queued, as far as it goes without waiting.
    pub(super) fn flush(&self, connection: &Rc<Connection<T::Link>>) {
        self.count_queue(connection);
        self.transport.flush(self, connection);
    }

    /// Makes sure that what was listed is found.
    fn end_turn_soon(&self) {
        if !self.ending_turn.get() {
            self.ev.schedule();
        }
    }

    /// Has a connection flushed at the end of the turn.
    #[inline]
    pub fn flush_later(&self, connection: &Rc<Connection<T::Link>>) {
        if !connection.listed.unflushed.replace(true) {
            self.list_unflushed(connection);
        }
    }

    #[cold]
    fn list_unflushed(&self, connection: &Rcc<T>) {
        self.unflushed.borrow_mut().push(connection.clone());
        self.end_turn_soon();
    }

    // ----- receiving -----

    /// Notes that bytes arrived from the peer, whatever they mean.
    pub fn heard(&self, connection: &Connection<T::Link>) {
        if let Some(liveness) = &mut *connection.liveness.borrow_mut() {
            liveness.received(self.ev.now());
        }
    }

    /// Counts what a read brought.
    pub fn count_received(&self, connection: &Connection<T::Link>, messages: usize, bytes: usize) {
        connection.counters.messages_received.add(messages as u64);
        connection.counters.bytes_received.add(bytes as u64);
        self.totals.messages_received.add(messages as u64);
        self.totals.bytes_received.add(bytes as u64);
    }

    /// Counts messages that arrived and are not delivered.
    pub fn count_discarded(&self, connection: &Connection<T::Link>, messages: u64) {
        connection.counters.messages_discarded.add(messages);
        self.totals.messages_discarded.add(messages);
    }

    /// Whether messages may be delivered now: the connection is not over, not paused, and below the caps on
    /// what the user took over. Otherwise the transport keeps what it has read and stops reading; it is
    /// called as readable again when that changes.
    ///
    /// A cap once found reached holds until the end of the turn, whatever other threads drop meanwhile: who
    /// asks twice in a turn gets the same answer, so that nothing overtakes what was kept.
    #[inline]
    pub fn is_receiving(&self, connection: &Rc<Connection<T::Link>>) -> bool {
        if connection.is_over() || connection.paused.get() || connection.listed.capped.get() {
            return false;
        }
        !connection.meter.is_full() || self.hold_back(connection)
    }

    /// Lists a connection that has reached a cap; `false`, since it does not receive.
    #[cold]
    fn hold_back(&self, connection: &Rcc<T>) -> bool {
        connection.listed.capped.set(true);
        self.capped.borrow_mut().push(connection.clone());
        false
    }

    /// Has the transport called as readable again for this connection, in the next turn.
    pub fn read_again(&self, connection: &Connection<T::Link>) {
        self.ev.redeliver(self.source(), connection.endpoint.slot(), Ready::READABLE);
    }

    /// Has a connection read again that did not receive for a while.
    pub(super) fn resume_reading(&self, connection: &Connection<T::Link>) {
        if let Some(liveness) = &mut *connection.liveness.borrow_mut() {
            liveness.set_reading(true, self.ev.now());
        }
        // The peer was not judged meanwhile, so that there may be no deadline at all.
        self.update_deadline(connection);
        self.read_again(connection);
    }

    // ----- listeners -----

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
        let listener = Listener { address, params: Arc::new(params), counters, link, token, connection_params };
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

    /// Takes everything down at once: no callback, nothing flushed.
    pub(crate) fn tear_down(&self) {
        if self.gone.replace(true) {
            return;
        }
        let table = std::mem::take(&mut *self.table.borrow_mut());
        let listeners = std::mem::take(&mut *self.listeners.borrow_mut());
        for connection in table.iter().flatten() {
            if !connection.is_over() {
                connection.state.set(State::Closed(ClosedReason::Local));
                self.transport.release(self, connection, Release::Reset);
            }
            self.ids.release(connection.endpoint);
        }
        listeners.iter().flatten().for_each(|listener| self.transport.release_listener(self, listener));
        self.transport.tear_down(self);
        self.by_address.borrow_mut().clear();
        let lists = [&self.unflushed, &self.completed, &self.refused, &self.capped].map(RefCell::take);
        let over = self.over.take();
        self.totals.connections.set(0);
        self.queued.messages.set(0);
        self.queued.bytes.set(0);
        self.count_queues();
        // User memory goes last, with no borrow held: its drop may call into the backend.
        let mut retired = Vec::new();
        for connection in table.iter().flatten().chain(&over) {
            self.transport.retire(connection, &mut retired);
        }
        drop((lists, over, listeners, table));
        drop_each(&mut retired, drop);
    }
}

/// Drops memory whose drop is the user's code. One that panics does not keep the others from being dropped;
/// its panic goes on afterwards, or is only logged during another panic, where it would end the process.
pub(crate) fn drop_each<M>(memory: &mut Vec<M>, give_up: impl Fn(M)) {
    let mut first = None;
    for piece in memory.drain(..) {
        if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(|| give_up(piece))) {
            first.get_or_insert(panic);
        }
    }
    match first {
        Some(_) if std::thread::panicking() => tracing::error!("the drop of a message's memory panicked during another panic"),
        Some(panic) => std::panic::resume_unwind(panic),
        None => {}
    }
}
