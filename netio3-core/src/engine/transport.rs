//! What a backend has to bring: moving bytes.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::rc::Rc;

use bytes::Bytes;

use crate::address::EndPointAddress;
use crate::config::{ConnectionParameters, ConnectionParametersRecv};
use crate::engine::{Connection, Copies, Engine, Listener, RawPieces, Run, Upcalls, UserMemory};
use crate::error::RegisterError;
use crate::event_loop::{Budget, Next, Polled, Ready};
use crate::memory::{MemoryRegion, NetworkBuffer, RegionId};

/// The part of a backend that any thread may use: it starts connections and listeners, without waiting.
pub trait Opener: Send + Sync + 'static {
    /// A connection that was started, for the loop to adopt.
    type Dialing: Send;
    /// A listener that is bound, for the loop to adopt.
    type Listening: Send;

    /// Starts a connection.
    ///
    /// # Errors
    /// What the user gets as the source of `FailedOpenSendEndpoint`.
    fn dial(&self, address: &EndPointAddress, params: &ConnectionParameters) -> io::Result<Self::Dialing>;

    /// Binds a listener; returns the bound address with it.
    ///
    /// # Errors
    /// What the user gets as the source of `FailedOpenListenEndpoint`.
    fn listen(&self, address: &EndPointAddress, params: &ConnectionParametersRecv) -> io::Result<(Self::Listening, EndPointAddress)>;

    /// Makes memory known to the device, for as long as the region is registered.
    ///
    /// # Errors
    /// Why the device cannot use it; it is then not registered.
    fn register(&self, id: RegionId, region: &MemoryRegion) -> Result<(), RegisterError> {
        let _ = (id, region);
        Ok(())
    }

    /// The backend was dropped on another thread than its loop's: from now on no device may touch the memory of
    /// the user's.
    fn end(&self) {}

    /// Takes memory from the device; no message holds it any more.
    fn deregister(&self, id: RegionId) {
        let _ = id;
    }
}

/// The part of a backend that moves bytes, on the loop's thread.
///
/// No method runs a callback except through the [`Upcalls`] it is given. What a method finds out about the
/// end of a connection it tells by [`Engine::finish`] or [`Engine::refuse`]; the callback follows later.
pub trait Transport: Sized + 'static {
    /// The backend's name, as in errors and logs.
    const NAME: &'static str;
    /// The part that any thread may use.
    type Opener: Opener;
    /// What the transport keeps for each connection.
    type Link: 'static;
    /// What the transport keeps for each listener.
    type Listener: 'static;

    /// Makes a started connection one of this loop, watched under `token`.
    ///
    /// # Errors
    /// The connection is then refused with `LocalResource`.
    fn adopt(&self, engine: &Engine<Self>, token: usize, dialing: <Self::Opener as Opener>::Dialing) -> io::Result<Self::Link>;

    /// Makes a bound listener one of this loop, watched under `token`.
    ///
    /// # Errors
    /// The listener is then gone, and the user told so if he can be.
    fn adopt_listener(
        &self,
        engine: &Engine<Self>,
        token: usize,
        listening: <Self::Opener as Opener>::Listening,
    ) -> io::Result<Self::Listener>;

    /// A connection is ready: read, deliver, go on sending.
    fn ready(&self, up: &mut Upcalls<'_, Self>, connection: &Rc<Connection<Self::Link>>, ready: Ready, budget: &mut Budget) -> Next;

    /// A listener is ready: accept.
    fn listener_ready(&self, engine: &Rc<Engine<Self>>, listener: &Rc<Listener<Self::Listener>>, budget: &mut Budget) -> Next;

    /// Takes an accepted message into the connection's queue. Its record is in the ledger already. Gives what
    /// waits to be sent, in bytes as they count against `flush_at`. It may send, too, but no connection enters or leaves
    /// the engine's table meanwhile.
    fn enqueue(&self, engine: &Engine<Self>, connection: &Rc<Connection<Self::Link>>, message: Outgoing<'_>) -> usize;

    /// The messages at which a queue is flushed before the turn ends, if the user does not say.
    const FLUSH_MESSAGES: usize = usize::MAX;

    /// What goes before each message that is copied into a run, so that a run can be sent as it is. Without it only other
    /// threads' messages make runs.
    const RUN_HEAD: Option<fn(usize) -> [u8; RUN_HEAD_LEN]> = None;

    /// The same as [`enqueue`](Self::enqueue) for each message of a run. Zero-copy ones among them that are copied for
    /// being small were counted already.
    fn enqueue_run(&self, engine: &Engine<Self>, connection: &Rc<Connection<Self::Link>>, run: Run<'_>) -> usize {
        let mut unsent = 0;
        for message in run.messages() {
            let payload = Payload::Copied(&[IoSlice::new(message)]);
            unsent = self.enqueue(engine, connection, Outgoing { header: &[], payload, len: message.len() });
        }
        unsent
    }

    /// Lends the memory behind the end of a connection's queue, if it can, for messages to be copied there, each after its
    /// [`RUN_HEAD`](Self::RUN_HEAD). Whoever uses the queue next calls [`Engine::settle_of`] before, which gives it back.
    fn lend(&self, connection: &Connection<Self::Link>) -> Option<Copies> {
        let _ = connection;
        None
    }

    /// Takes that memory back, with the messages that were copied.
    fn give_back(&self, connection: &Connection<Self::Link>, copies: Copies) {
        let _ = (connection, copies);
    }

    /// Sends what is queued, as far as it goes without waiting. Tells the ledger what left.
    fn flush(&self, engine: &Engine<Self>, connection: &Rc<Connection<Self::Link>>);

    /// The same when so much is queued that it should not wait for the end of the turn. What does not fill a write may wait
    /// for more, and is given, in bytes; 0 when more would not have it leave.
    fn flush_full(&self, engine: &Engine<Self>, connection: &Rc<Connection<Self::Link>>) -> usize {
        self.flush(engine, connection);
        0
    }

    /// Moves memory that is no longer needed into `retired`; after the end of a connection, all of it.
    fn retire(&self, connection: &Connection<Self::Link>, retired: &mut Vec<UserMemory>);

    /// Starts an orderly close: the goodbye follows what is queued. Ends in [`Engine::finish`].
    fn close(&self, engine: &Engine<Self>, connection: &Rc<Connection<Self::Link>>);

    /// Sends a heartbeat.
    fn heartbeat(&self, engine: &Engine<Self>, connection: &Rc<Connection<Self::Link>>);

    /// Frees what the connection holds of the system, so that nothing of it is touched any more. Where that takes
    /// a while, it gives [`Freed::Later`] and calls [`Engine::freed`] when it is done, and the user learns of the
    /// end not before; at the end of the backend ([`Engine::is_gone`]) it is done at once all the same.
    fn release(&self, engine: &Engine<Self>, connection: &Rc<Connection<Self::Link>>, how: Release) -> Freed;

    /// Frees what the listener holds of the system.
    fn release_listener(&self, engine: &Engine<Self>, listener: &Listener<Self::Listener>);

    /// The backend ends; everything is released. What the transport watches itself it unwatches here.
    fn tear_down(&self, engine: &Engine<Self>) {
        let _ = engine;
    }

    /// Gives memory back that an idle connection does not need.
    fn trim(&self, engine: &Engine<Self>, connection: &Connection<Self::Link>) {
        let _ = (engine, connection);
    }

    /// The turn ends, and everything was flushed, except leftovers that are flushed in the second round; for transports that
    /// are not driven by watched descriptors alone. [`Next::Again`] has it called once more, as a rule before the loop goes on.
    fn before_sleep(&self, up: &mut Upcalls<'_, Self>, budget: &mut Budget) -> Next {
        let _ = (up, budget);
        Next::Wait
    }

    /// A descriptor of the transport's own is ready, which it watches under [`OWN`] and bits of its choice.
    fn own_ready(&self, up: &mut Upcalls<'_, Self>, token: usize, budget: &mut Budget) -> Next {
        let _ = (up, token, budget);
        Next::Wait
    }

    /// The loop spins; for transports that can be polled.
    fn poll(&self, up: &mut Upcalls<'_, Self>, budget: &mut Budget) -> Polled {
        let _ = (up, budget);
        Polled::NoDevice
    }

    /// The loop is about to sleep: whether its descriptors will wake it for everything.
    fn may_sleep(&self, engine: &Engine<Self>) -> bool {
        let _ = engine;
        true
    }
}

/// How a connection's resources are freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// Both sides have said goodbye, or the peer is gone.
    Orderly,
    /// At once, so that the peer learns of it as a loss.
    Reset,
}

/// Whether a connection's resources are free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freed {
    /// They are.
    AtOnce,
    /// [`Engine::freed`] will tell.
    Later,
}

/// The length of what goes before each message of a run, in bytes, if anything does.
pub const RUN_HEAD_LEN: usize = 8;

/// The length of the heads of a transport's messages that are copied one behind the other, in bytes.
pub(super) const fn run_head_len<T: Transport>() -> usize {
    if T::RUN_HEAD.is_some() { RUN_HEAD_LEN } else { 0 }
}

/// The head of one that is so long, where they have one: not by way of a pointer to call.
#[inline(always)]
pub(super) fn run_head<T: Transport>(len: usize) -> [u8; RUN_HEAD_LEN] {
    T::RUN_HEAD.map_or([0; RUN_HEAD_LEN], |head| head(len))
}

/// Watch tokens of a transport's own descriptors have this bit.
pub const OWN: usize = 1 << 41;

/// An accepted message on its way into a transport's queue.
#[derive(Clone, Copy)]
pub struct Outgoing<'a> {
    /// Goes before the payload; always copied.
    pub header: &'a [u8],
    /// The payload.
    pub payload: Payload<'a>,
    /// Header and payload together, in bytes.
    pub len: usize,
}

/// The payload of a message.
#[derive(Clone, Copy)]
pub enum Payload<'a> {
    /// Shared memory; clone what is held.
    Shared(&'a [Bytes]),
    /// Borrowed memory; copy it.
    Copied(&'a [IoSlice<'a>]),
    /// Raw memory, readable until the message comes back.
    Raw(RawPieces<'a>),
    /// A buffer, to be taken out: with nothing to drop, a message need never be built in memory.
    Buffer(&'a Cell<Option<NetworkBuffer>>),
}

impl Payload<'_> {
    /// Takes a buffer out.
    ///
    /// # Panics
    /// When it was taken already.
    pub fn take(buffer: &Cell<Option<NetworkBuffer>>) -> NetworkBuffer {
        buffer.take().expect("a message is accepted once")
    }
}
