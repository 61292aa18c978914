//! What became of a send, a connection attempt and a connection.

use std::fmt;
use std::io;

/// The outcome of a send that reached a known connection.
///
/// A message that was not accepted stays the caller's, whole: it is never half taken and never
/// dropped in silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "a message that was not accepted is still yours"]
#[non_exhaustive]
pub enum NetioStatus {
    /// Accepted: it comes back exactly once, as a completion or in *closed*'s pending list.
    Ok,
    /// The queue, the header slots or the buffers are full; *writable* will follow.
    NoResources,
    /// The connection is not established yet, or is being closed.
    NotConnected,
    /// Header plus payload exceed the smaller of both sides' maxima, or the header its own limit.
    TooBig,
    /// Strict regions are on and a piece lies outside every registered region.
    NotRegistered,
    /// The backend cannot send this at all; for `send_buffer`, the buffer is another connection's.
    Failed,
}

impl fmt::Display for NetioStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "accepted",
            Self::NoResources => "no resources, writable will follow",
            Self::NotConnected => "not connected",
            Self::TooBig => "message or header too big",
            Self::NotRegistered => "memory not registered",
            Self::Failed => "failed",
        })
    }
}

/// One accepted message that came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Completion {
    /// The key given with the message, or the id of the buffer.
    pub key: u64,
    /// The family of calls it was sent with.
    pub kind: CompletionKind,
    /// Its bytes, header included.
    pub len: u32,
}

/// The family of calls a message was sent with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CompletionKind {
    /// `send`, `send_iov`, `send_raw_iov` and their by-address forms.
    ZeroCopy,
    /// `send_copy`, `send_copy_iov` and their by-address forms.
    Copy,
    /// `send_taken` and `send_buffer`; the key is the buffer's id.
    Buffer,
}

/// Which side asked for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// This side, by `open_send_endpoint` or `connect`.
    Outgoing,
    /// The peer; it was accepted by a listener.
    Incoming,
}

/// Why a connection attempt ended without being established.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RefusedReason {
    /// Closed by this side before it was established.
    Local,
    /// No answer within the connect deadline.
    Timeout,
    /// The host answers but nobody listens on the port, or what listens hung up.
    NoListener,
    /// There is no route to the host.
    Unreachable,
    /// The peers have no protocol version in common.
    Version,
    /// What answered does not speak this protocol.
    Protocol,
    /// The peer's accept filter turned this side away.
    Filter,
    /// The peer holds as many connections as it may.
    Limit,
    /// This process ran out of something: descriptors, memory, ports.
    LocalResource,
    /// The backend is being shut down, here or at the peer's. A peer tells so that had accepted the connection
    /// before; one that had not is [`NoListener`](Self::NoListener).
    Shutdown,
}

impl RefusedReason {
    /// For backends: why connecting failed, by the system's error.
    pub fn of_error(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected
            | io::ErrorKind::UnexpectedEof => Self::NoListener,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable | io::ErrorKind::NetworkDown => Self::Unreachable,
            // No device reaches it.
            io::ErrorKind::Unsupported => Self::Unreachable,
            io::ErrorKind::TimedOut => Self::Timeout,
            _ => Self::LocalResource,
        }
    }
}

impl fmt::Display for RefusedReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "closed by this side before it was established",
            Self::Timeout => "no answer within the connect deadline",
            Self::NoListener => "nobody listens there, or not with this backend",
            Self::Unreachable => "no route to the host",
            Self::Version => "no protocol version in common",
            Self::Protocol => "what answered does not speak netio3",
            Self::Filter => "turned away by the peer's accept filter",
            Self::Limit => "the peer holds as many connections as it may",
            Self::LocalResource => "this process is out of descriptors, ports or memory",
            Self::Shutdown => "the backend is being shut down",
        })
    }
}

/// Why an established connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ClosedReason {
    /// Closed or aborted by this side; if `close_deadline` passed meanwhile, or the connection broke, with what had not left
    /// pending: the first cause is the one that is told.
    Local,
    /// The peer closed in an orderly way: everything it had accepted has arrived.
    PeerClosed,
    /// The peer vanished: reset, killed, or ended without a goodbye.
    PeerLost,
    /// Nothing arrived for longer than the peer's heartbeats allow.
    HeartbeatTimeout,
    /// The queue made no progress within `stall_timeout`.
    Stalled,
    /// The peer broke the protocol: unknown frame, length over the maximum.
    Protocol,
    /// A limit of this backend was exceeded, as for memory of incoming messages.
    Limit,
    /// The backend was shut down: the connection was closed in an orderly way, or at the deadline, then with what had not left
    /// by then pending.
    Shutdown,
}

impl fmt::Display for ClosedReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "closed by this side",
            Self::PeerClosed => "closed by the peer",
            Self::PeerLost => "the peer vanished",
            Self::HeartbeatTimeout => "nothing arrived from the peer for too long",
            Self::Stalled => "the send queue made no progress",
            Self::Protocol => "the peer broke the protocol",
            Self::Limit => "a limit of this backend was exceeded",
            Self::Shutdown => "the backend was shut down",
        })
    }
}
