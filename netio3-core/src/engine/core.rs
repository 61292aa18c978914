//! The state of a backend on its loop's thread.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::panic::AssertUnwindSafe;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use crate::address::EndPointAddress;
use crate::config::{ConnectionParameters, ConnectionParametersRecv, Limits, NetworkConfig};
use crate::endpoint::{Endpoint, EndpointIds};
use crate::engine::connection::{Accepted, Listed};
use crate::engine::deadlines::Due;
use crate::engine::room::Amount;
use crate::engine::staging::Staging;
use crate::engine::{Connection, Freed, Ledger, Opener, Release, State, Transport};
use crate::event_loop::{EventLoop, Remote, SourceId};
use crate::memory::{BufferPool, RegionTable};
use crate::message::{Meter, OwnedCaps};
use crate::stats::{BackendCounters, ConnectionCounters, ListenerCounters};
use crate::status::{ClosedReason, Direction, RefusedReason};

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
    pub(super) connection_params: Arc<ConnectionParameters>,
    /// When it was last said that it cannot accept.
    pub(super) complained: Cell<Option<Instant>>,
    /// When it is to try again, if it could not accept.
    pub(super) retry_at: Cell<Option<Instant>>,
}

/// What accepts messages before the engine does, for other threads. It keeps books of its own, fuller than the engine's, and counts
/// by them the connections and what they have queued.
pub(super) trait Front {
    /// Hands over what it has accepted on a connection, which accepts nothing more.
    fn stop(&self, endpoint: Endpoint);
}

/// Watch tokens of listeners have this bit; the others are places in the table of connections.
pub(super) const LISTENER: usize = 1 << 40;

pub(super) type Rcc<T> = Rc<Connection<<T as Transport>::Link>>;
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
    /// Connections that the user knows of.
    pub(super) connections: Cell<u64>,
    pub(super) listeners: RefCell<Vec<Option<Rcl<T>>>>,
    pub(super) regions: RefCell<RegionTable>,
    /// Whether zero-copy sends have to be looked up in the table of regions.
    pub(super) look_up_regions: Cell<bool>,
    /// Where the messages of the connection go that is sending many.
    pub(super) staging: RefCell<Staging>,
    /// What all connections together have queued, or are granted.
    pub(super) queued: Cell<Amount>,
    /// Connections that are over and not told yet.
    pub(super) over: RefCell<VecDeque<Rcc<T>>>,
    /// Those with something to flush.
    pub(super) unflushed: RefCell<VecDeque<Rcc<T>>>,
    /// Those with completions to tell.
    pub(super) completed: RefCell<VecDeque<Rcc<T>>>,
    /// Those that wait for *writable*.
    pub(super) waiting: RefCell<Vec<Rcc<T>>>,
    /// Those that do not read because a cap on taken-over messages is reached. All of them have `Listed::capped` set.
    pub(super) capped: RefCell<Vec<Rcc<T>>>,
    /// Accepted peers that have not said hello, the longest silent first.
    pub(super) strangers: RefCell<VecDeque<Endpoint>>,
    pub(super) deadlines: RefCell<BTreeSet<(Instant, Due)>>,
    /// Set once by `shutdown`: when what has not ended is aborted.
    pub(super) shutdown_at: Cell<Option<Instant>>,
    pub(super) gone: Cell<bool>,
    pub(super) front: OnceCell<Weak<dyn Front>>,
    /// The end of the turn is being done: it finds by itself what is listed meanwhile.
    pub(super) ending_turn: Cell<bool>,
    /// How often a turn ended.
    pub(super) turns: Cell<u64>,
    pub(super) ev: Rc<dyn EventLoop>,
    pub(super) source: Cell<Option<SourceId>>,
    pub(super) remote: Arc<dyn Remote>,
    pub(super) caps: Arc<OwnedCaps>,
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
            interrupted: AtomicBool::new(false),
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
            connections: Cell::new(0),
            listeners: RefCell::default(),
            regions: RefCell::new(RegionTable::new(config.max_regions, config.strict_regions)),
            look_up_regions: Cell::new(config.strict_regions),
            staging: RefCell::default(),
            queued: Cell::default(),
            over: RefCell::default(),
            unflushed: RefCell::default(),
            completed: RefCell::default(),
            waiting: RefCell::default(),
            capped: RefCell::default(),
            strangers: RefCell::default(),
            deadlines: RefCell::default(),
            shutdown_at: Cell::new(None),
            gone: Cell::new(false),
            front: OnceCell::new(),
            ending_turn: Cell::new(false),
            turns: Cell::new(0),
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
        look_up(&self.table.borrow(), endpoint).cloned()
    }

    /// The connection watched under a token.
    pub fn at(&self, token: usize) -> Option<Rcc<T>> {
        self.table.borrow().get(token)?.clone()
    }

    /// The connections that the user knows of.
    pub fn connections(&self) -> u64 {
        self.connections.get()
    }

    pub(super) fn is_fronted(&self) -> bool {
        self.front.get().is_some()
    }

    pub(super) fn count_connections(&self, connections: u64) {
        self.connections.set(connections);
        // A front counts them from the call that opens them until their end was told.
        if !self.is_fronted() {
            self.totals.connections.set(connections);
        }
    }

    /// Whether another connection may be opened or admitted.
    pub(crate) fn is_full(&self) -> bool {
        self.connections() >= self.config.max_connections as u64
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
        let pool = BufferPool::of_connection(endpoint, params.buffers, &self.remote)?;
        let link = self.transport.adopt(self, endpoint.slot(), dialing)?;
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

    #[allow(clippy::too_many_arguments, reason = "the parts of a connection")]
    pub(super) fn connection(
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
        let limits = Limits::new(&self.config, &params);
        Connection {
            endpoint,
            address,
            direction,
            own_ledger: RefCell::new(Ledger::new(&params)),
            is_staging: Cell::new(false),
            counted: Cell::new(0),
            flushed: Cell::new(0),
            meter: Meter::new(Arc::clone(&counters), self.caps.clone()),
            params,
            counters,
            link,
            discarding: Cell::new(false),
            counted_assembly: Cell::new(0),
            listener,
            state: Cell::new(State::Opening),
            known: Cell::new(false),
            entered: self.turns.get(),
            owns_address: false,
            paused: Cell::new(false),
            limits: Cell::new(limits),
            pool: RefCell::new(None),
            starved: Cell::new(false),
            liveness: RefCell::new(None),
            // Not the beginning of a turn whose callbacks may have taken long.
            since: Cell::new(self.ev.clock()),
            filled: Cell::new(false),
            progress: Cell::new(now),
            reads_seen: Cell::new(0),
            deadline: Cell::new(None),
            listed: Listed::default(),
        }
    }

    /// Puts a new connection into the table and starts its deadline.
    pub(super) fn enter(&self, connection: &Rcc<T>) {
        let mut table = self.table.borrow_mut();
        let slot = connection.endpoint.slot();
        if table.len() <= slot {
            table.resize(slot + 1, None);
        }
        table[slot] = Some(connection.clone());
        drop(table);
        if connection.known.get() {
            self.count_connections(self.connections() + 1);
        }
        self.update_deadline(connection);
    }

    /// Takes a connection out of the table; its handle is unknown from now on and its address free.
    pub(super) fn leave(&self, connection: &Rcc<T>) {
        if let Some(slot) = self.table.borrow_mut().get_mut(connection.endpoint.slot())
            && slot.take_if(|present| present.endpoint == connection.endpoint).is_none()
        {
            return;
        }
        if connection.owns_address {
            self.by_address.borrow_mut().remove(&connection.address);
        }
        if connection.known.get() {
            self.count_connections(self.connections().saturating_sub(1));
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
        connection.set_over(state);
        // It may be a while until a device frees it, and nothing is accepted any more.
        self.end_grant(connection);
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

    /// Takes everything down at once: no callback, nothing flushed.
    pub(crate) fn tear_down(&self) {
        if self.gone.replace(true) {
            return;
        }
        self.settle();
        let table = std::mem::take(&mut *self.table.borrow_mut());
        let listeners = std::mem::take(&mut *self.listeners.borrow_mut());
        for connection in table.iter().flatten() {
            if !connection.is_over() {
                connection.set_over(State::Closed(ClosedReason::Local));
                self.transport.release(self, connection, Release::Reset);
            }
            self.ids.release(connection.endpoint);
        }
        listeners.iter().flatten().for_each(|listener| self.transport.release_listener(self, listener));
        self.transport.tear_down(self);
        self.by_address.borrow_mut().clear();
        let lists = [&self.unflushed, &self.completed].map(RefCell::take);
        let waiting = [&self.waiting, &self.capped].map(RefCell::take);
        let over = self.over.take();
        self.connections.set(0);
        self.totals.connections.set(0);
        self.queued.set(Amount::default());
        self.count_queues();
        // User memory goes last, with no borrow held: its drop may call into the backend.
        let mut retired = Vec::new();
        for connection in table.iter().flatten().chain(&over) {
            self.transport.retire(connection, &mut retired);
        }
        drop((lists, waiting, over, listeners, table));
        drop_each(&mut retired, drop);
    }
}

/// The connection of a handle, if it is in the table.
#[inline]
pub(super) fn look_up<C>(table: &[Option<Rc<Connection<C>>>], endpoint: Endpoint) -> Option<&Rc<Connection<C>>> {
    table.get(endpoint.slot())?.as_ref().filter(|connection| connection.endpoint == endpoint)
}

/// Drops memory whose drop is the user's code. One that panics does not keep the others from being dropped;
/// its panic goes on afterwards, or is only logged during another panic, where it would end the process.
pub fn drop_each<M>(memory: &mut Vec<M>, give_up: impl Fn(M)) {
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
