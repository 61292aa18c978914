//! The single-threaded backend made of an engine.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::address::EndPointAddress;
use crate::backend::{ConnectionState, CopiedMessage, ListenerState, NetworkBackend, Unsent, send_each};
use crate::callbacks::Callbacks;
use crate::config::{ConnectionParameters, ConnectionParametersRecv, Limits, NetworkConfig};
use crate::endpoint::{Endpoint, EndpointIds};
use crate::engine::core::look_up;
use crate::engine::driver::Driver;
use crate::engine::{Connection, Engine, Opener, Outgoing, Payload, Release, State, Transport};
use crate::error::{
    BufferError, CloseListenError, CloseSendError, CreateError, DeregisterError, OpenListenError, OpenSendError, RegisterError, SendError,
};
use crate::event_loop::EventLoop;
use crate::memory::{MemoryRegion, NetworkBuffer, RegionId};
use crate::stats::{BackendCounters, ConnectionCounters};
use crate::status::{ClosedReason, CompletionKind, NetioStatus, RefusedReason};

/// Makes a single-threaded backend of a transport and adds it to the loop.
///
/// # Errors
/// The configuration is refused.
pub fn create_local<T: Transport>(
    transport: T,
    opener: T::Opener,
    config: NetworkConfig,
    callbacks: Box<dyn Callbacks>,
    ev: &dyn EventLoop,
) -> Result<Box<dyn NetworkBackend>, CreateError> {
    config.check()?;
    let engine = Engine::new(transport, Arc::new(opener), config, EndpointIds::default(), ev);
    Ok(Box::new(LocalBackend::start(engine, callbacks, ev)))
}

/// The calls of a backend, on its loop's thread.
pub(crate) struct LocalBackend<T: Transport> {
    engine: Rc<Engine<T>>,
    /// The user's handle ends the backend when dropped; the one that callbacks see does not.
    owner: bool,
}

impl<T: Transport> LocalBackend<T> {
    /// Adds an engine to its loop; the returned handle owns it.
    pub(crate) fn start(engine: Rc<Engine<T>>, callbacks: Box<dyn Callbacks>, ev: &dyn EventLoop) -> Self {
        let view = Self { engine: engine.clone(), owner: false };
        let source = ev.add_source(Box::new(Driver::new(view, callbacks)));
        engine.source.set(Some(source));
        Self { engine, owner: true }
    }

    /// A handle that does not own the engine.
    pub(super) fn view(engine: Rc<Engine<T>>) -> Self {
        Self { engine, owner: false }
    }

    pub(crate) fn engine(&self) -> &Rc<Engine<T>> {
        &self.engine
    }

    fn known(&self, endpoint: Endpoint) -> Result<Rc<Connection<T::Link>>, SendError> {
        self.engine.get(endpoint).ok_or(SendError::UnknownSendEndpoint(endpoint.into()))
    }

    fn open(&self, address: &EndPointAddress, params: &ConnectionParameters, owns: bool) -> Result<Endpoint, OpenSendError> {
        let engine = &self.engine;
        let address = *address;
        let failed = |source: io::Error| OpenSendError::FailedOpenSendEndpoint { address, source: source.into() };
        address.check_dialable().map_err(|why| OpenSendError::InvalidEndpointAddress { address, why })?;
        if owns && self.endpoint(&address).is_some() {
            return Err(OpenSendError::SendEndpointAlreadyExists { address });
        }
        engine.check_open().and_then(|()| params.check()).map_err(failed)?;
        let endpoint = engine.ids.allocate(crate::MAX_ENDPOINTS).ok_or_else(|| failed(too_many(crate::MAX_ENDPOINTS)))?;
        let dialing = engine.opener.dial(&address, params);
        let adopted = dialing.and_then(|dialing| engine.adopt(endpoint, address, owns, Arc::new(params.clone()), Arc::default(), dialing));
        adopted.inspect_err(|_| engine.ids.release(endpoint)).map_err(failed)?;
        Ok(endpoint)
    }

    fn close_with(&self, connection: &Rc<Connection<T::Link>>, refused: RefusedReason, closed: ClosedReason) {
        match connection.state() {
            State::Opening => self.engine.refuse(connection, refused),
            State::Established => self.engine.start_closing(connection, closed),
            State::Closing(_) | State::Closed(_) | State::Refused(_) => {}
        }
    }

    fn connections_where(&self, wanted: impl Fn(&Connection<T::Link>) -> bool) -> Vec<Rc<Connection<T::Link>>> {
        self.engine.table.borrow().iter().flatten().filter(|connection| wanted(connection)).cloned().collect()
    }

    fn with_pool<R>(&self, to: Endpoint, f: impl FnOnce(&Rc<Connection<T::Link>>, &mut crate::BufferPool) -> R) -> Result<R, BufferError> {
        let table = self.engine.table.borrow();
        let connection = look_up(&table, to).ok_or(BufferError::UnknownSendEndpoint(to.into()))?;
        match &mut *connection.pool.borrow_mut() {
            Some(pool) => Ok(f(connection, pool)),
            None => Err(BufferError::NoBuffersAllocated(to.into())),
        }
    }
}

pub(super) fn too_many(limit: usize) -> io::Error {
    io::Error::other(format!("{limit} connections are open, which is the limit; raise `max_connections`"))
}

impl<T: Transport> Engine<T> {
    /// Whether anything may be opened or listened on now.
    fn check_alive(&self) -> io::Result<()> {
        if self.gone.get() {
            return Err(io::Error::other("the backend has ended"));
        }
        if self.shutdown_at.get().is_some() {
            return Err(io::Error::other("the backend is being shut down"));
        }
        Ok(())
    }

    /// Whether a connection may be opened now.
    fn check_open(&self) -> io::Result<()> {
        self.check_alive()?;
        if self.is_full() { Err(too_many(self.config.max_connections)) } else { Ok(()) }
    }

    pub(super) fn note_refusal(&self, connection: &Rc<Connection<T::Link>>) {
        connection.counters.refused_sends.add(1);
        self.totals.refused_sends.add(1);
        self.await_writable(connection);
    }

    fn await_writable(&self, connection: &Rc<Connection<T::Link>>) {
        if !connection.listed.waiting.replace(true) {
            self.waiting.borrow_mut().push(connection.clone());
        }
    }

    /// Starts the orderly close of an established connection, from whichever side.
    pub fn start_closing(&self, connection: &Rc<Connection<T::Link>>, reason: ClosedReason) {
        if connection.state() != State::Established {
            return;
        }
        if reason == ClosedReason::PeerClosed
            && let Some(front) = self.front.get().and_then(Weak::upgrade)
        {
            // What was accepted until now leaves before this side's goodbye. The connection may have been closed there, too.
            front.stop(connection.endpoint);
            if connection.state() != State::Established {
                return;
            }
        }
        // Nothing more is accepted.
        self.end_grant(connection);
        connection.state.set(State::Closing(reason));
        connection.since.set(self.ev.clock());
        self.update_deadline(connection);
        self.transport.close(self, connection);
        if !connection.is_over() {
            self.flush_later(connection);
        }
        if connection.paused.get() {
            // What waits unread now stands before the peer's goodbye.
            self.read_again(connection);
        }
    }
}

impl<T: Transport> NetworkBackend for LocalBackend<T> {
    fn open_send_endpoint(&self, address: &EndPointAddress, params: &ConnectionParameters) -> Result<Endpoint, OpenSendError> {
        self.open(address, params, true)
    }

    fn connect(&self, address: &EndPointAddress, params: &ConnectionParameters) -> Result<Endpoint, OpenSendError> {
        self.open(address, params, false)
    }

    fn open_listen_endpoint(
        &self,
        address: &EndPointAddress,
        params: &ConnectionParametersRecv,
    ) -> Result<EndPointAddress, OpenListenError> {
        let engine = &self.engine;
        let address = *address;
        let failed = |source: io::Error| OpenListenError::FailedOpenListenEndpoint { address, source: source.into() };
        address.check_listenable().map_err(|why| OpenListenError::InvalidEndpointAddress { address, why })?;
        if address.port() != 0 && engine.listens_on(&address) {
            return Err(OpenListenError::ListenEndpointAlreadyExists { address });
        }
        engine.check_alive().map_err(failed)?;
        params.connection.check().map_err(failed)?;
        let (listening, bound) = engine.opener.listen(&address, params).map_err(failed)?;
        engine.adopt_listener(bound, params.clone(), Arc::default(), listening).map_err(failed)?;
        Ok(bound)
    }

    fn close(&self, endpoint: Endpoint) -> Result<(), CloseSendError> {
        let connection = self.engine.get(endpoint).ok_or(CloseSendError::UnknownSendEndpoint(endpoint.into()))?;
        self.close_with(&connection, RefusedReason::Local, ClosedReason::Local);
        Ok(())
    }

    fn abort(&self, endpoint: Endpoint) -> Result<(), CloseSendError> {
        let connection = self.engine.get(endpoint).ok_or(CloseSendError::UnknownSendEndpoint(endpoint.into()))?;
        match connection.state() {
            State::Opening => self.engine.refuse(&connection, RefusedReason::Local),
            _ => self.engine.finish(&connection, ClosedReason::Local, Release::Reset),
        }
        Ok(())
    }

    fn close_listen_endpoint(&self, address: &EndPointAddress) -> Result<(), CloseListenError> {
        let found = self.engine.listeners.borrow().iter().flatten().find(|listener| listener.address == *address).cloned();
        let listener = found.ok_or(CloseListenError::UnknownListenEndpoint { address: *address })?;
        self.engine.close_listener(&listener);
        for connection in self.connections_where(|c| c.listener.as_ref().is_some_and(|listener| listener.address == *address)) {
            match connection.known.get() {
                true => self.close_with(&connection, RefusedReason::Local, ClosedReason::Local),
                false => self.engine.drop_stranger(&connection),
            }
        }
        Ok(())
    }

    fn endpoint(&self, address: &EndPointAddress) -> Option<Endpoint> {
        self.engine.by_address.borrow().get(address).copied()
    }

    fn send_iov(&self, to: Endpoint, data: &[Bytes], header: &[u8], key: u64) -> Result<NetioStatus, SendError> {
        match data {
            [piece] => self.send(to, piece, header, key),
            data => self.stage_or_submit_shared(to, data, header, key),
        }
    }

    fn send_copy_iov(&self, to: Endpoint, data: &[IoSlice<'_>], header: &[u8], key: u64) -> Result<NetioStatus, SendError> {
        match data {
            [piece] => self.send_copy(to, piece, header, key),
            data => self.stage_or_submit_copied(to, data, header, key),
        }
    }

    // Not by way of several pieces: where the message is staged, nothing of it needs a place on the stack.
    fn send(&self, to: Endpoint, data: &Bytes, header: &[u8], key: u64) -> Result<NetioStatus, SendError> {
        if self.stage_one(to, data, header, key, CompletionKind::ZeroCopy) {
            return Ok(NetioStatus::Ok);
        }
        self.send_one_shared(to, data, header, key)
    }

    fn send_copy(&self, to: Endpoint, data: &[u8], header: &[u8], key: u64) -> Result<NetioStatus, SendError> {
        if self.stage_one(to, data, header, key, CompletionKind::Copy) {
            return Ok(NetioStatus::Ok);
        }
        self.send_one_copied(to, data, header, key)
    }

    fn send_copy_batch(&self, to: Endpoint, messages: &[CopiedMessage<'_>]) -> Result<(usize, NetioStatus), SendError> {
        send_each(self, to, messages, |rest| self.stage_all(to, rest))
    }

    #[allow(unsafe_code, reason = "the trait's one call whose contract the compiler cannot check")]
    unsafe fn send_raw_iov(&self, to: Endpoint, data: &[crate::RawSlice], header: &[u8], key: u64) -> Result<NetioStatus, SendError> {
        let len = header.len() + data.iter().map(crate::RawSlice::len).sum::<usize>();
        // SAFETY: the caller vouches that the pieces stay readable until the key comes back or the backend is
        // dropped; what is made of them here is dropped before either.
        let pieces = unsafe { crate::engine::RawPieces::new(data) };
        let message = || Outgoing { header, payload: Payload::Raw(pieces), len };
        self.submit(to, key, CompletionKind::ZeroCopy, Some(|engine: &Engine<T>| engine.find_regions(data)), message)
    }

    fn take_buffer(&self, to: Endpoint) -> Result<Option<NetworkBuffer>, BufferError> {
        self.with_pool(to, |connection, pool| {
            let taken = pool.take();
            if taken.is_none() {
                connection.starved.set(true);
                pool.set_starved();
                self.engine.await_writable(connection);
            }
            taken
        })
    }

    fn send_taken(&self, to: Endpoint, buffer: NetworkBuffer) -> Result<(), Unsent> {
        if buffer.pool().owner().is_some_and(|owner| owner != to) {
            let outcome = self.known(to).map(|_| NetioStatus::Failed);
            return Err(Unsent { buffer, outcome });
        }
        let (len, key) = (buffer.len(), buffer.id());
        // A connection's own buffers are known to the device anyway; others lie in a region of the user's.
        let range = buffer.pool().owner().is_none().then(|| buffer.range());
        let regions = range.map(|range| move |engine: &Engine<T>| engine.find_regions(&[range]));
        let offered = Cell::new(Some(buffer));
        let message = || Outgoing { header: &[], payload: Payload::Buffer(&offered), len };
        let outcome = self.submit(to, key, CompletionKind::Buffer, regions, message);
        match offered.into_inner() {
            None => Ok(()),
            Some(buffer) => Err(Unsent { buffer, outcome }),
        }
    }

    fn available_buffers(&self, to: Endpoint) -> Result<usize, BufferError> {
        self.with_pool(to, |_, pool| pool.low_water())
    }

    fn register(&self, region: &MemoryRegion) -> Result<RegionId, RegisterError> {
        if self.engine.is_gone() {
            return Err(RegisterError::BackendGone);
        }
        let mut regions = self.engine.regions.borrow_mut();
        let id = regions.reserve()?;
        self.engine.opener.register(id, region).inspect_err(|_| regions.give_up())?;
        regions.enter(id, region);
        self.engine.totals.registered_bytes.set(regions.bytes());
        // What is staged is not looked up.
        self.engine.settle();
        self.engine.look_up_regions.set(true);
        Ok(id)
    }

    fn deregister(&self, region: RegionId) -> Result<(), DeregisterError> {
        let mut regions = self.engine.regions.borrow_mut();
        let freed = regions.deregister(region)?;
        self.engine.opener.deregister(region);
        self.engine.totals.registered_bytes.set(regions.bytes());
        self.engine.look_up_regions.set(self.engine.config.strict_regions || regions.bytes() > 0);
        drop(regions);
        drop(freed);
        Ok(())
    }

    fn pause(&self, endpoint: Endpoint) -> Result<(), SendError> {
        let connection = self.known(endpoint)?;
        connection.set_paused();
        if connection.listed.capped.get() {
            // It is looked at there whether it is over by that.
            self.engine.end_turn_soon();
        }
        Ok(())
    }

    fn resume(&self, endpoint: Endpoint) -> Result<(), SendError> {
        let connection = self.known(endpoint)?;
        if connection.paused.replace(false) && !connection.is_over() {
            self.engine.resume_reading(&connection);
        }
        Ok(())
    }

    fn flush(&self, endpoint: Endpoint) -> Result<(), SendError> {
        let connection = self.known(endpoint)?;
        if !connection.is_over() {
            self.engine.flush(&connection);
        }
        Ok(())
    }

    fn limits(&self, endpoint: Endpoint) -> Result<Limits, SendError> {
        Ok(self.known(endpoint)?.limits.get())
    }

    fn stats(&self, endpoint: Endpoint) -> Result<Arc<ConnectionCounters>, SendError> {
        let connection = self.known(endpoint)?;
        self.engine.count_queue(&connection);
        Ok(connection.counters.clone())
    }

    fn totals(&self) -> Arc<BackendCounters> {
        self.engine.unflushed.borrow().iter().for_each(|connection| self.engine.count_queue(connection));
        self.engine.totals.clone()
    }

    fn listeners(&self) -> Vec<ListenerState> {
        let state = |listener: &Rc<crate::engine::Listener<T::Listener>>| ListenerState::new(listener.address, listener.counters.clone());
        self.engine.listeners.borrow().iter().flatten().map(state).collect()
    }

    fn connections(&self) -> Vec<ConnectionState> {
        self.connections_where(|connection| connection.known.get()).iter().map(|connection| connection.describe()).collect()
    }

    fn shutdown(&self, deadline: Duration) {
        let engine = &self.engine;
        if engine.is_gone() || engine.shutdown_at.get().is_some() {
            return;
        }
        let connections = engine.connections();
        tracing::info!(backend = T::NAME, ?deadline, connections, "shutdown begun");
        engine.shutdown_at.set(Some(engine.ev.clock() + deadline.min(LONGEST_SHUTDOWN)));
        let listeners: Vec<_> = engine.listeners.borrow().iter().flatten().cloned().collect();
        listeners.iter().for_each(|listener| engine.close_listener(listener));
        for connection in self.connections_where(|_| true) {
            // Peers that have not said hello are told when they do, for as long as the backend lasts.
            if connection.known.get() {
                self.close_with(&connection, RefusedReason::Shutdown, ClosedReason::Shutdown);
            }
            engine.update_deadline(&connection);
        }
    }
}

/// An instant further away than this may not be representable.
pub(super) const LONGEST_SHUTDOWN: Duration = Duration::from_secs(365 * 24 * 3_600);

impl<T: Transport> Drop for LocalBackend<T> {
    fn drop(&mut self) {
        if self.owner {
            // The callbacks first: dropping what was to be sent may panic. A source that is running stays until it returns.
            if let Some(source) = self.engine.source.get() {
                self.engine.ev.remove_source(source);
            }
            self.engine.tear_down();
        }
    }
}
