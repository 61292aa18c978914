//! What a backend tells its user.

use crate::address::EndPointAddress;
use crate::backend::NetworkBackend;
use crate::config::Limits;
use crate::endpoint::Endpoint;
use crate::message::{Message, Messages};
use crate::status::{ClosedReason, Completion, Direction, RefusedReason};

/// The callbacks of a backend; implement the ones you need, or give closures to [`Handlers`].
///
/// **Context.** All run on the loop's thread, one at a time and never nested: a call into the backend
/// never runs a callback before it returns. Every call of [`NetworkBackend`] is allowed inside, closing
/// this very connection or dropping the backend included; what that leads to is told when the callback has returned.
/// They should not block: everything else on the loop waits meanwhile. Where other threads call a synchronized backend, the
/// loop may tell of what a call has led to before it has returned there: of *established* before `connect` has given the
/// handle, of a completion before `send` has said that it accepted. Such a thread enters a key before the call, and takes
/// it out again if it was refused.
///
/// **Order.** Each open ends in exactly one *refused*, or in exactly one *established* and later exactly
/// one *closed*; a listener's side gets the same pair for each peer whose hello it accepted. In between
/// come data in the peer's order and completions in the order of the sends; between data and completions
/// no order is promised. Nothing comes after *closed*, inside which the address is free again.
///
/// **Panics.** A panic ends the backend: no further callback, its connections are reset, its calls give
/// unknown-endpoint errors. The panic leaves `run*`, which may be called again for other backends.
pub trait Callbacks {
    /// Both hellos were accepted: messages may go both ways.
    fn on_connection_established(&mut self, backend: &dyn NetworkBackend, connection: &ConnectionInfo) {
        let _ = (backend, connection);
    }

    /// The connection could not be established; its handle and address are free again.
    fn on_connection_refused(
        &mut self,
        backend: &dyn NetworkBackend,
        endpoint: Endpoint,
        address: &EndPointAddress,
        reason: RefusedReason,
    ) {
        let _ = (backend, endpoint, address, reason);
    }

    /// The connection ended. `pending` names, in send order, the accepted messages that never completed;
    /// their memory is the user's again. One of them may have arrived all the same, over RDMA whole, and one that completed
    /// need not have: who sends again lets the peer say what it has.
    fn on_connection_closed(
        &mut self,
        backend: &dyn NetworkBackend,
        endpoint: Endpoint,
        address: &EndPointAddress,
        pending: &[Completion],
        reason: ClosedReason,
    ) {
        let _ = (backend, endpoint, address, pending, reason);
    }

    /// A message arrived: one slice, header then payload. It lives until the callback returns, unless
    /// [`Message::into_bytes`] takes it over. Messages come until *closed*, also after one's own `close`.
    ///
    /// Small messages come cheapest where this is short and marked `#[inline]`: those that arrived together are handed
    /// over in a loop that it then becomes a part of.
    fn on_data(&mut self, backend: &dyn NetworkBackend, from: Endpoint, address: &EndPointAddress, message: Message<'_>) {
        let _ = (backend, from, address, message);
    }

    /// For backends: messages that arrived together, each of which goes to [`on_data`](Self::on_data).
    ///
    /// It is here so that it is compiled for the type whose callbacks these are: one indirect call for many messages.
    /// Nobody else can implement it, since the type of `messages` has no name outside this crate.
    #[doc(hidden)]
    fn on_messages(&mut self, backend: &dyn NetworkBackend, from: Endpoint, address: &EndPointAddress, messages: &mut Messages<'_>) {
        messages.each(|message| self.on_data(backend, from, address, message));
    }

    /// Messages left the library (TCP: the kernel holds them) and their memory is no longer referenced;
    /// not that the peer read them. In send order, one slice for many.
    fn on_send_completed(
        &mut self,
        backend: &dyn NetworkBackend,
        endpoint: Endpoint,
        address: &EndPointAddress,
        completions: &[Completion],
    ) {
        let _ = (backend, endpoint, address, completions);
    }

    /// After one or more refusals (a `None` buffer included): the largest refused message fits now, or
    /// the queue is empty; where only a buffer was refused, one is free. Comes exactly once after refusals, never otherwise.
    fn on_writable(&mut self, backend: &dyn NetworkBackend, endpoint: Endpoint, address: &EndPointAddress) {
        let _ = (backend, endpoint, address);
    }
}

/// An established connection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// Its handle.
    pub endpoint: Endpoint,
    /// The peer's address: the one dialled, or the one the accepted peer came from.
    pub address: EndPointAddress,
    /// Which side asked for it.
    pub direction: Direction,
    /// The listener that accepted it.
    pub listener: Option<EndPointAddress>,
    /// This side's address.
    pub local_address: EndPointAddress,
    /// What can be sent.
    pub limits: Limits,
}

impl ConnectionInfo {
    /// For backends: the description of a connection.
    pub fn new(
        endpoint: Endpoint,
        address: EndPointAddress,
        direction: Direction,
        listener: Option<EndPointAddress>,
        local_address: EndPointAddress,
        limits: Limits,
    ) -> Self {
        Self { endpoint, address, direction, listener, local_address, limits }
    }
}

type Established = fn(&dyn NetworkBackend, &ConnectionInfo);
type Refused = fn(&dyn NetworkBackend, Endpoint, &EndPointAddress, RefusedReason);
type Closed = fn(&dyn NetworkBackend, Endpoint, &EndPointAddress, &[Completion], ClosedReason);
type Data = fn(&dyn NetworkBackend, Endpoint, &EndPointAddress, Message<'_>);
type Completed = fn(&dyn NetworkBackend, Endpoint, &EndPointAddress, &[Completion]);
type Writable = fn(&dyn NetworkBackend, Endpoint, &EndPointAddress);

/// Callbacks from closures: `Handlers::new().on_data(|backend, from, address, message| …)`.
///
/// It is `Send` when all its closures are.
pub struct Handlers<E = Established, R = Refused, C = Closed, D = Data, S = Completed, W = Writable> {
    established: E,
    refused: R,
    closed: C,
    data: D,
    completed: S,
    writable: W,
}

impl Handlers {
    /// Callbacks that do nothing.
    pub fn new() -> Self {
        Self {
            established: |_, _| (),
            refused: |_, _, _, _| (),
            closed: |_, _, _, _, _| (),
            data: |_, _, _, _| (),
            completed: |_, _, _, _| (),
            writable: |_, _, _| (),
        }
    }
}

impl Default for Handlers {
    fn default() -> Self {
        Self::new()
    }
}

impl<E, R, C, D, S, W> Handlers<E, R, C, D, S, W> {
    /// Sets [`Callbacks::on_connection_established`].
    pub fn on_connection_established<F>(self, established: F) -> Handlers<F, R, C, D, S, W>
    where
        F: FnMut(&dyn NetworkBackend, &ConnectionInfo),
    {
        let Self { refused, closed, data, completed, writable, .. } = self;
        Handlers { established, refused, closed, data, completed, writable }
    }

    /// Sets [`Callbacks::on_connection_refused`].
    pub fn on_connection_refused<F>(self, refused: F) -> Handlers<E, F, C, D, S, W>
    where
        F: FnMut(&dyn NetworkBackend, Endpoint, &EndPointAddress, RefusedReason),
    {
        let Self { established, closed, data, completed, writable, .. } = self;
        Handlers { established, refused, closed, data, completed, writable }
    }

    /// Sets [`Callbacks::on_connection_closed`].
    pub fn on_connection_closed<F>(self, closed: F) -> Handlers<E, R, F, D, S, W>
    where
        F: FnMut(&dyn NetworkBackend, Endpoint, &EndPointAddress, &[Completion], ClosedReason),
    {
        let Self { established, refused, data, completed, writable, .. } = self;
        Handlers { established, refused, closed, data, completed, writable }
    }

    /// Sets [`Callbacks::on_data`].
    pub fn on_data<F>(self, data: F) -> Handlers<E, R, C, F, S, W>
    where
        F: FnMut(&dyn NetworkBackend, Endpoint, &EndPointAddress, Message<'_>),
    {
        let Self { established, refused, closed, completed, writable, .. } = self;
        Handlers { established, refused, closed, data, completed, writable }
    }

    /// Sets [`Callbacks::on_send_completed`].
    pub fn on_send_completed<F>(self, completed: F) -> Handlers<E, R, C, D, F, W>
    where
        F: FnMut(&dyn NetworkBackend, Endpoint, &EndPointAddress, &[Completion]),
    {
        let Self { established, refused, closed, data, writable, .. } = self;
        Handlers { established, refused, closed, data, completed, writable }
    }

    /// Sets [`Callbacks::on_writable`].
    pub fn on_writable<F>(self, writable: F) -> Handlers<E, R, C, D, S, F>
    where
        F: FnMut(&dyn NetworkBackend, Endpoint, &EndPointAddress),
    {
        let Self { established, refused, closed, data, completed, .. } = self;
        Handlers { established, refused, closed, data, completed, writable }
    }
}

impl<E, R, C, D, S, W> Callbacks for Handlers<E, R, C, D, S, W>
where
    E: FnMut(&dyn NetworkBackend, &ConnectionInfo),
    R: FnMut(&dyn NetworkBackend, Endpoint, &EndPointAddress, RefusedReason),
    C: FnMut(&dyn NetworkBackend, Endpoint, &EndPointAddress, &[Completion], ClosedReason),
    D: FnMut(&dyn NetworkBackend, Endpoint, &EndPointAddress, Message<'_>),
    S: FnMut(&dyn NetworkBackend, Endpoint, &EndPointAddress, &[Completion]),
    W: FnMut(&dyn NetworkBackend, Endpoint, &EndPointAddress),
{
    fn on_connection_established(&mut self, backend: &dyn NetworkBackend, connection: &ConnectionInfo) {
        (self.established)(backend, connection);
    }

    fn on_connection_refused(
        &mut self,
        backend: &dyn NetworkBackend,
        endpoint: Endpoint,
        address: &EndPointAddress,
        reason: RefusedReason,
    ) {
        (self.refused)(backend, endpoint, address, reason);
    }

    fn on_connection_closed(
        &mut self,
        backend: &dyn NetworkBackend,
        endpoint: Endpoint,
        address: &EndPointAddress,
        pending: &[Completion],
        reason: ClosedReason,
    ) {
        (self.closed)(backend, endpoint, address, pending, reason);
    }

    fn on_data(&mut self, backend: &dyn NetworkBackend, from: Endpoint, address: &EndPointAddress, message: Message<'_>) {
        (self.data)(backend, from, address, message);
    }

    fn on_send_completed(
        &mut self,
        backend: &dyn NetworkBackend,
        endpoint: Endpoint,
        address: &EndPointAddress,
        completions: &[Completion],
    ) {
        (self.completed)(backend, endpoint, address, completions);
    }

    fn on_writable(&mut self, backend: &dyn NetworkBackend, endpoint: Endpoint, address: &EndPointAddress) {
        (self.writable)(backend, endpoint, address);
    }
}
