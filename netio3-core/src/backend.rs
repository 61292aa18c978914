//! The interface of every backend.

use std::fmt;
use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::address::EndPointAddress;
use crate::config::{ConnectionParameters, ConnectionParametersRecv, Limits};
use crate::endpoint::Endpoint;
use crate::error::{
    BufferError, CloseListenError, CloseSendError, DeregisterError, OpenListenError, OpenSendError, RegisterError, SendError,
};
use crate::memory::{MemoryRegion, NetworkBuffer, RawSlice, RegionId};
use crate::stats::{BackendCounters, ConnectionCounters, ListenerCounters};
use crate::status::{Completion, CompletionKind, Direction, NetioStatus};

/// A network backend: connections that carry whole messages both ways, driven by an event loop.
///
/// Every per-message call exists by [`Endpoint`], which costs an index, and under the original's name by
/// address, which costs a hash of the address more. A connection opened by
/// [`open_send_endpoint`](Self::open_send_endpoint) owns its address; accepted peers and those opened by
/// [`connect`](Self::connect) are reached by handle.
///
/// **Sending.** The header is prepended to the payload, and the receiver sees one slice. A status other
/// than [`NetioStatus::Ok`] means that nothing was taken. Accepted messages leave at the latest at the end
/// of the loop's turn (on the synchronized kind of the next one, once a turn's budget is used up), and each comes back
/// exactly once: by `on_send_completed`, or in the pending list of `on_connection_closed`. An empty queue accepts any one message within [`limits`](Self::limits).
///
/// **Threads.** As `dyn NetworkBackend` it belongs to the loop's thread. As
/// `dyn NetworkBackend + Send + Sync` (the synchronized kind) any thread may call it and never waits for
/// the loop; an error that only the loop can find then arrives as *refused*.
///
/// **Dropping** closes everything at once: no callback, nothing flushed. It returns when nobody can touch
/// the user's memory any more. Call [`shutdown`](Self::shutdown) first for an orderly end.
pub trait NetworkBackend {
    /// Starts a connection that owns this address; the outcome arrives as *established* or *refused*.
    ///
    /// # Errors
    /// `InvalidEndpointAddress`: port 0, unspecified, multicast. `SendEndpointAlreadyExists`.
    /// `FailedOpenSendEndpoint`: no descriptor, no such local address or interface, too many connections.
    fn open_send_endpoint(&self, address: &EndPointAddress, params: &ConnectionParameters) -> Result<Endpoint, OpenSendError>;

    /// Starts a connection without claiming the address: any number to one address, reached by handle.
    ///
    /// # Errors
    /// As [`open_send_endpoint`](Self::open_send_endpoint), but never `SendEndpointAlreadyExists`.
    fn connect(&self, address: &EndPointAddress, params: &ConnectionParameters) -> Result<Endpoint, OpenSendError>;

    /// Accepts every peer that the limits and the filter allow. Port 0 picks a port. Returns the bound
    /// address; of a wildcard, the wildcard with its port. An IPv6 listener takes IPv6 only.
    ///
    /// # Errors
    /// `InvalidEndpointAddress`, `ListenEndpointAlreadyExists`, `FailedOpenListenEndpoint`.
    fn open_listen_endpoint(
        &self,
        address: &EndPointAddress,
        params: &ConnectionParametersRecv,
    ) -> Result<EndPointAddress, OpenListenError>;

    /// Closes a connection in an orderly way: new sends are refused, accepted ones leave, then *closed*
    /// follows. Before *established* it ends in *refused*. Closing twice is no error.
    ///
    /// What the peer has sent before it hears of it goes to `on_data` still; at the cap on messages taken over it waits for some of
    /// those to be dropped, until the deadline. On a connection that is paused it is discarded, although it has completed there:
    /// resume it first.
    ///
    /// # Errors
    /// `UnknownSendEndpoint`, `FailedCloseSendEndpoint`.
    fn close(&self, endpoint: Endpoint) -> Result<(), CloseSendError>;

    /// Closes at once and sends nothing more; *closed* (or *refused*) follows, with all that is pending.
    ///
    /// # Errors
    /// `UnknownSendEndpoint`.
    fn abort(&self, endpoint: Endpoint) -> Result<(), CloseSendError>;

    /// Stops accepting and closes, in an orderly way, every connection accepted there.
    ///
    /// # Errors
    /// `UnknownListenEndpoint`, `FailedCloseListenEndpoint`.
    fn close_listen_endpoint(&self, address: &EndPointAddress) -> Result<(), CloseListenError>;

    /// The connection that owns this address.
    fn endpoint(&self, address: &EndPointAddress) -> Option<Endpoint>;

    /// Sends pieces of shared memory without copying them; each is cloned on acceptance and held until
    /// the key comes back, or until the peer is gone and the message can no longer leave.
    ///
    /// # Errors
    /// `UnknownSendEndpoint`.
    fn send_iov(&self, to: Endpoint, data: &[Bytes], header: &[u8], key: u64) -> Result<NetioStatus, SendError>;

    /// Sends pieces of borrowed memory; the bytes are taken before the call returns.
    ///
    /// # Errors
    /// `UnknownSendEndpoint`.
    fn send_copy_iov(&self, to: Endpoint, data: &[IoSlice<'_>], header: &[u8], key: u64) -> Result<NetioStatus, SendError>;

    /// Sends pieces of raw memory without copying and without a reference count: the original's contract,
    /// for memory that a device rewrites.
    ///
    /// # Safety
    /// From the call until the key has come back, by `on_send_completed` or in the pending list of
    /// `on_connection_closed`, or until the backend has been dropped, every piece must stay readable.
    /// When the status is not `Ok`, nothing is held.
    ///
    /// # Errors
    /// `UnknownSendEndpoint`.
    #[allow(unsafe_code, reason = "the one call whose contract the compiler cannot check")]
    unsafe fn send_raw_iov(&self, to: Endpoint, data: &[RawSlice], header: &[u8], key: u64) -> Result<NetioStatus, SendError>;

    /// A buffer of the connection's pool; `None` when all are in use (*writable* will follow).
    ///
    /// # Errors
    /// `UnknownSendEndpoint`, `NoBuffersAllocated`.
    fn take_buffer(&self, to: Endpoint) -> Result<Option<NetworkBuffer>, BufferError>;

    /// Sends the filled part of a buffer. It returns to its pool after completion; the key is its id.
    ///
    /// # Errors
    /// [`Unsent`] hands the buffer back with the status or the error.
    fn send_taken(&self, to: Endpoint, buffer: NetworkBuffer) -> Result<(), Unsent>;

    /// The fewest free buffers since the last call.
    ///
    /// # Errors
    /// `UnknownSendEndpoint`, `NoBuffersAllocated`.
    fn available_buffers(&self, to: Endpoint) -> Result<usize, BufferError>;

    /// Makes memory sendable without a copy. On TCP it only counts; over RDMA the calling thread waits until the memory is
    /// pinned, and the device opened if one is being opened. A device that is opened later, as with the first connection, pins
    /// the region then; where it cannot, that connection is refused with `LocalResource`. A region that is registered has
    /// one handle more, so that [`MemoryRegion::as_mut_slice`] is `None`: what is to be filled again is [cut](MemoryRegion::cut).
    ///
    /// # Errors
    /// `TooManyRegions`, `Memlock`, `CannotPin`, `BackendGone`.
    fn register(&self, region: &MemoryRegion) -> Result<RegionId, RegisterError>;

    /// Takes a region back.
    ///
    /// # Errors
    /// `Unknown`; `Busy` while accepted sends hold it.
    fn deregister(&self, region: RegionId) -> Result<(), DeregisterError>;

    /// Stops `on_data` of a connection, and reading with it, so that the peer is slowed down.
    ///
    /// Where messages wait to leave and the peer is gone it ends all the same, and what was not delivered is discarded; what the
    /// system still had of it is in no count. Over TCP a heartbeat that cannot leave is enough for that.
    ///
    /// # Errors
    /// `UnknownSendEndpoint`.
    fn pause(&self, endpoint: Endpoint) -> Result<(), SendError>;

    /// Restarts `on_data` of a connection.
    ///
    /// # Errors
    /// `UnknownSendEndpoint`.
    fn resume(&self, endpoint: Endpoint) -> Result<(), SendError>;

    /// Starts sending what is queued now, not at the end of the turn.
    ///
    /// # Errors
    /// `UnknownSendEndpoint`.
    fn flush(&self, endpoint: Endpoint) -> Result<(), SendError>;

    /// What can be sent; before *established*, what this side's parameters allow.
    ///
    /// # Errors
    /// `UnknownSendEndpoint`.
    fn limits(&self, endpoint: Endpoint) -> Result<Limits, SendError>;

    /// The counters of a connection; what this gives stays readable after it ended.
    ///
    /// # Errors
    /// `UnknownSendEndpoint`.
    fn stats(&self, endpoint: Endpoint) -> Result<Arc<ConnectionCounters>, SendError>;

    /// The counters of the whole backend.
    fn totals(&self) -> Arc<BackendCounters>;

    /// The listeners.
    fn listeners(&self) -> Vec<ListenerState>;

    /// The connections, in no particular order.
    fn connections(&self) -> Vec<ConnectionState>;

    /// Closes everything in an orderly way, with callbacks; what has not ended at the deadline is aborted.
    /// Nothing can be opened any more, and peers that were just accepted are refused when they say hello. Returns
    /// at once; the end is reached with the last *closed* or *refused*,
    /// when [`totals`](Self::totals) counts no `connections` any more.
    fn shutdown(&self, deadline: Duration);

    // ----- provided: one piece instead of many -----

    /// [`send_iov`](Self::send_iov) of one piece.
    ///
    /// # Errors
    /// `UnknownSendEndpoint`.
    fn send(&self, to: Endpoint, data: &Bytes, header: &[u8], key: u64) -> Result<NetioStatus, SendError> {
        self.send_iov(to, std::slice::from_ref(data), header, key)
    }

    /// [`send_copy_iov`](Self::send_copy_iov) of one piece.
    ///
    /// # Errors
    /// `UnknownSendEndpoint`.
    fn send_copy(&self, to: Endpoint, data: &[u8], header: &[u8], key: u64) -> Result<NetioStatus, SendError> {
        self.send_copy_iov(to, &[IoSlice::new(data)], header, key)
    }

    // ----- provided: many messages in one call -----

    /// [`send_copy`](Self::send_copy) of each message, in order, up to the first that is not accepted. Gives how many
    /// were, and the status of that one: [`NetioStatus::Ok`] where there is none. On the synchronized kind a call
    /// for some dozens of small messages takes less time than one for each, since it locks once for 64 KiB; on the
    /// single-threaded kind it takes hardly less over TCP. (Figures: `netio3-bench limits batches`.)
    ///
    /// # Errors
    /// `UnknownSendEndpoint`, where there is one and none was accepted; a connection that ends in between is `NotConnected`.
    fn send_copy_batch(&self, to: Endpoint, messages: &[CopiedMessage<'_>]) -> Result<(usize, NetioStatus), SendError> {
        send_each(self, to, messages, |_| 0)
    }

    // ----- provided: the original's calls, by address -----

    /// [`close`](Self::close) of the connection that owns this address.
    ///
    /// # Errors
    /// `UnknownSendEndpoint`, `FailedCloseSendEndpoint`.
    fn close_send_endpoint(&self, address: &EndPointAddress) -> Result<(), CloseSendError> {
        let endpoint = self.endpoint(address).ok_or(CloseSendError::UnknownSendEndpoint((*address).into()))?;
        self.close(endpoint)
    }

    /// [`send`](Self::send) to the owner of an address.
    ///
    /// # Errors
    /// `UnknownSendEndpoint`.
    fn send_data(&self, to: &EndPointAddress, data: &Bytes, header: &[u8], key: u64) -> Result<NetioStatus, SendError> {
        self.send(self.resolve(to)?, data, header, key)
    }

    /// [`send_iov`](Self::send_iov) to the owner of an address.
    ///
    /// # Errors
    /// `UnknownSendEndpoint`.
    fn send_data_iov(&self, to: &EndPointAddress, data: &[Bytes], header: &[u8], key: u64) -> Result<NetioStatus, SendError> {
        self.send_iov(self.resolve(to)?, data, header, key)
    }

    /// [`send_copy`](Self::send_copy) to the owner of an address.
    ///
    /// # Errors
    /// `UnknownSendEndpoint`.
    fn send_data_copy(&self, to: &EndPointAddress, data: &[u8], header: &[u8], key: u64) -> Result<NetioStatus, SendError> {
        self.send_copy(self.resolve(to)?, data, header, key)
    }

    /// [`send_copy_iov`](Self::send_copy_iov) to the owner of an address.
    ///
    /// # Errors
    /// `UnknownSendEndpoint`.
    fn send_data_copy_iov(&self, to: &EndPointAddress, data: &[IoSlice<'_>], header: &[u8], key: u64) -> Result<NetioStatus, SendError> {
        self.send_copy_iov(self.resolve(to)?, data, header, key)
    }

    /// [`take_buffer`](Self::take_buffer) of the owner of an address.
    ///
    /// # Errors
    /// `UnknownSendEndpoint`, `NoBuffersAllocated`.
    fn get_buffer(&self, to: &EndPointAddress) -> Result<Option<NetworkBuffer>, BufferError> {
        self.take_buffer(self.resolve(to)?)
    }

    /// [`send_taken`](Self::send_taken) to the owner of an address.
    ///
    /// # Errors
    /// [`Unsent`] hands the buffer back with the status or the error.
    fn send_buffer(&self, to: &EndPointAddress, buffer: NetworkBuffer) -> Result<(), Unsent> {
        match self.resolve(to) {
            Ok(endpoint) => self.send_taken(endpoint, buffer),
            Err(error) => Err(Unsent { buffer, outcome: Err(error) }),
        }
    }

    /// [`available_buffers`](Self::available_buffers) of the owner of an address.
    ///
    /// # Errors
    /// `UnknownSendEndpoint`, `NoBuffersAllocated`.
    fn get_num_available_buffers(&self, to: &EndPointAddress) -> Result<usize, BufferError> {
        self.available_buffers(self.resolve(to)?)
    }

    /// [`endpoint`](Self::endpoint) as a result.
    ///
    /// # Errors
    /// `UnknownSendEndpoint`.
    fn resolve(&self, address: &EndPointAddress) -> Result<Endpoint, SendError> {
        self.endpoint(address).ok_or(SendError::UnknownSendEndpoint((*address).into()))
    }
}

/// What [`send_copy`](NetworkBackend::send_copy) takes for one message, for [`send_copy_batch`](NetworkBackend::send_copy_batch).
#[derive(Clone, Copy, Debug, Default)]
pub struct CopiedMessage<'a> {
    /// The payload.
    pub data: &'a [u8],
    /// What goes before it.
    pub header: &'a [u8],
    /// What comes back.
    pub key: u64,
}

impl CopiedMessage<'_> {
    /// The bytes of header and payload.
    #[inline]
    #[allow(clippy::len_without_is_empty, reason = "a message without bytes is one like any other")]
    pub fn len(&self) -> usize {
        self.header.len() + self.data.len()
    }

    /// What comes back.
    #[inline]
    pub(crate) fn record(&self) -> Completion {
        Completion { key: self.key, kind: CompletionKind::Copy, len: self.len() as u32 }
    }
}

/// Sends messages up to the first that is not accepted: as many at once as `accept` takes of those it is shown, and by
/// itself the first of which it takes none.
pub(crate) fn send_each<B: NetworkBackend + ?Sized>(
    backend: &B,
    to: Endpoint,
    messages: &[CopiedMessage<'_>],
    mut accept: impl FnMut(&[CopiedMessage<'_>]) -> usize,
) -> Result<(usize, NetioStatus), SendError> {
    let mut accepted = 0;
    while let Some(next) = messages.get(accepted) {
        let at_once = accept(&messages[accepted..]);
        accepted += at_once;
        if at_once > 0 {
            continue;
        }
        match backend.send_copy(to, next.data, next.header, next.key) {
            Ok(NetioStatus::Ok) => accepted += 1,
            Ok(status) => return Ok((accepted, status)),
            Err(SendError::UnknownSendEndpoint(_)) if accepted > 0 => return Ok((accepted, NetioStatus::NotConnected)),
            Err(error) => return Err(error),
        }
    }
    Ok((accepted, NetioStatus::Ok))
}

/// A buffer that was not accepted, back in its owner's hand.
#[derive(Debug)]
#[must_use = "the buffer is still yours"]
pub struct Unsent {
    /// The buffer, as it was.
    pub buffer: NetworkBuffer,
    /// Why: a status other than `Ok`, or an error.
    pub outcome: Result<NetioStatus, SendError>,
}

impl fmt::Display for Unsent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "buffer {} was not sent: ", self.buffer.id())?;
        match &self.outcome {
            Ok(status) => status.fmt(f),
            Err(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Unsent {}

/// A listener, as [`NetworkBackend::listeners`] tells it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ListenerState {
    /// The bound address.
    pub address: EndPointAddress,
    /// Its counters.
    pub counters: Arc<ListenerCounters>,
}

impl ListenerState {
    /// For backends: a listener's description.
    pub fn new(address: EndPointAddress, counters: Arc<ListenerCounters>) -> Self {
        Self { address, counters }
    }
}

/// A connection, as [`NetworkBackend::connections`] tells it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnectionState {
    /// Its handle.
    pub endpoint: Endpoint,
    /// The peer's address.
    pub address: EndPointAddress,
    /// Which side asked for it.
    pub direction: Direction,
    /// The listener that accepted it.
    pub listener: Option<EndPointAddress>,
    /// Where it is in its life.
    pub phase: Phase,
    /// Its counters.
    pub counters: Arc<ConnectionCounters>,
}

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Opened, not established yet.
    Opening,
    /// Messages go both ways.
    Established,
    /// A close from either side is under way.
    Closing,
}
