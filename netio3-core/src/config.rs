//! Configuration of a backend, of its connections and of its listeners.
//!
//! All are plain structs with documented defaults, to be written as
//! `ConnectionParameters { queue_messages: 64, ..Default::default() }`.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::address::EndPointAddress;
use crate::error::CreateError;
use crate::memory::HEADROOM;

/// What holds for a whole backend.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// Connections in all, opened and accepted. Default 65,536. An open beyond it fails; a peer
    /// beyond it is refused with [`Limit`](crate::RefusedReason::Limit).
    pub max_connections: usize,
    /// Accepted peers that have not said hello yet. Default 1,024. The longest silent one makes
    /// room for a newcomer beyond it. Over RDMA the provider keeps those to itself, and this does not hold.
    pub max_handshakes: usize,
    /// The time an accepted peer has to say hello. Default 5 s. Not over RDMA, as above.
    pub hello_deadline: Duration,
    /// The largest message taken from a peer, header included, in bytes. Default 64 MiB; told to
    /// the peer in the hello. At most `u32::MAX`.
    pub max_message_len: usize,
    /// Silence after which a heartbeat is sent. Default 2 s; zero sends none, and the peer then
    /// never judges this side dead.
    pub heartbeat_interval: Duration,
    /// Heartbeat intervals of the peer without any arriving byte after which it is dead.
    /// Default 5, which makes 10 s with the default interval.
    pub missed_heartbeats: u32,
    /// Taken-over messages of one connection that may be alive at once. Default 65,536. At the cap
    /// reading pauses.
    pub owned_messages: usize,
    /// Their bytes. Default 256 MiB.
    pub owned_bytes: usize,
    /// Taken-over messages of all connections. Default 1,048,576.
    pub total_owned_messages: usize,
    /// Their bytes. Default 1 GiB.
    pub total_owned_bytes: usize,
    /// Messages that all send queues hold together. Default 4,194,304.
    pub total_queue_messages: usize,
    /// Bytes that all send queues hold together. Default 4 GiB.
    pub total_queue_bytes: usize,
    /// Memory in which all connections together assemble large messages, over RDMA also that in which they land
    /// ([`land_up_to`](RdmaParameters::land_up_to)), and keep what was read of them when they were paused (over TCP up to 516 KiB of
    /// each), in bytes. Default 4 GiB. The connection that would exceed it is closed with [`Limit`](crate::ClosedReason::Limit).
    pub total_assembly_bytes: usize,
    /// Memory regions that may be registered at once. Default 64, which is also the maximum.
    pub max_regions: usize,
    /// Whether zero-copy sends must lie in registered regions. Default `false`.
    pub strict_regions: bool,
    /// What only RDMA has; TCP takes no notice of it, but that it is [checked](Self::check) likewise.
    pub rdma: RdmaParameters,
}

/// What only the RDMA backend has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RdmaParameters {
    /// The libfabric provider: `verbs` for RDMA hardware, `tcp` for machines without. Default: `verbs` where it
    /// reaches the address, otherwise `tcp`. `sockets`, which libfabric has given up, is refused.
    pub provider: Option<String>,
    /// The longest message that arrives in one piece, in bytes; longer ones are sent in parts and put together.
    /// Default 64 KiB.
    pub receive_size: usize,
    /// Receive buffers of that size for each connection, besides five for control. They are how many packets a peer
    /// may send before it hears that some were handled. Default 16; at most 4,096.
    pub receives: u16,
    /// Messages longer than `receive_size` and up to this many bytes are put together where they land, without a copy:
    /// a connection that brings one gets receive buffers for two of its length and more, which stay pinned until it
    /// ends, as long as they leave half of `total_assembly_bytes`, and room for one of `max_message_len`, to others. Longer
    /// ones are copied together, and all are where `shared_receives` bounds the buffers. Default 4 MiB.
    pub land_up_to: usize,
    /// Zero-copy messages up to this many bytes are packed together with others, which takes a copy, where the
    /// connection leaves [`copy_below`](ConnectionParameters::copy_below) at its default (a synchronized backend copies up to
    /// that in any case). Each message beyond it
    /// takes a packet, and a credit, of its own. Default 16 KiB: over sockets packing wins up to there.
    pub pack_below: usize,
    /// Buffers of that size for each connection in which small messages are put together for sending. Default 4; at
    /// least 1, at most 4,096.
    pub sends: u16,
    /// Receive buffers of all connections of a device together, control included. Each connection gets up to half of
    /// what is left, at least 6, and its peer credits for no more than that; where fewer are left, opening fails with
    /// `LocalResource`. Default: no limit.
    pub shared_receives: Option<usize>,
    /// The same for send buffers, of which each connection gets at least one.
    pub shared_sends: Option<usize>,
}

impl Default for RdmaParameters {
    fn default() -> Self {
        Self {
            provider: None,
            receive_size: 64 << 10,
            receives: 16,
            land_up_to: 4 << 20,
            pack_below: 16 << 10,
            sends: 4,
            shared_receives: None,
            shared_sends: None,
        }
    }
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            max_connections: 65_536,
            max_handshakes: 1_024,
            hello_deadline: Duration::from_secs(5),
            max_message_len: 64 << 20,
            heartbeat_interval: Duration::from_secs(2),
            missed_heartbeats: 5,
            owned_messages: 65_536,
            owned_bytes: 256 << 20,
            total_owned_messages: 1 << 20,
            total_owned_bytes: 1 << 30,
            total_queue_messages: 4 << 20,
            total_queue_bytes: 4 << 30,
            total_assembly_bytes: 4 << 30,
            max_regions: 64,
            strict_regions: false,
            rdma: RdmaParameters::default(),
        }
    }
}

impl NetworkConfig {
    /// Checks the values against each other and their ranges; backends do so when created.
    ///
    /// # Errors
    /// [`CreateError::Config`] names the field.
    pub fn check(&self) -> Result<(), CreateError> {
        let bad = |field, why: &str| Err(CreateError::Config { field, why: why.to_owned() });
        if self.max_message_len == 0 || self.max_message_len > u32::MAX as usize {
            return bad("max_message_len", "must be from 1 to 4294967295 bytes");
        }
        if self.max_regions > 64 {
            return bad("max_regions", "must be at most 64");
        }
        if self.max_connections > crate::MAX_ENDPOINTS {
            return bad("max_connections", "must be at most 16777216");
        }
        if self.missed_heartbeats == 0 {
            return bad("missed_heartbeats", "must be at least 1");
        }
        if self.heartbeat_interval > Duration::from_millis(u64::from(u32::MAX)) {
            return bad("heartbeat_interval", "must be at most 49 days");
        }
        if !(1..=64 << 20).contains(&self.rdma.receive_size) {
            return bad("rdma.receive_size", "must be from 1 byte to 64 MiB");
        }
        for (field, value) in [("rdma.receives", self.rdma.receives), ("rdma.sends", self.rdma.sends)] {
            if !(1..=4_096).contains(&value) {
                return bad(field, "must be from 1 to 4096");
            }
        }
        for (field, value) in [
            ("max_handshakes", self.max_handshakes),
            ("owned_messages", self.owned_messages),
            ("owned_bytes", self.owned_bytes),
            ("total_owned_messages", self.total_owned_messages),
            ("total_owned_bytes", self.total_owned_bytes),
            ("total_queue_messages", self.total_queue_messages),
            ("total_queue_bytes", self.total_queue_bytes),
            ("total_assembly_bytes", self.total_assembly_bytes),
        ] {
            if value == 0 {
                return bad(field, "must be at least 1");
            }
        }
        Ok(())
    }
}

/// The buffers of a connection opened for buffered sending. In memory each takes its size, rounded up to 64 bytes, and 64
/// bytes more, for what a backend puts before a message; each begins at a multiple of 64 bytes. Where other alignment is
/// needed, as for `O_DIRECT`, cut buffers from a [`MemoryRegion`](crate::MemoryRegion), which begins with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffers {
    /// The capacity of each, in bytes.
    pub size: usize,
    /// How many.
    pub count: usize,
}

impl Buffers {
    /// From one buffer to the next in memory, in bytes.
    pub(crate) fn stride(&self) -> Option<usize> {
        self.size.checked_next_multiple_of(HEADROOM)?.checked_add(HEADROOM)
    }

    /// All memory that they take, in bytes; `None` if it is more than there are addresses.
    pub(crate) fn bytes(&self) -> Option<usize> {
        self.stride()?.checked_mul(self.count).filter(|bytes| *bytes <= isize::MAX as usize)
    }
}

/// What holds for one connection; for accepted ones, as part of [`ConnectionParametersRecv`].
#[derive(Clone, Debug)]
pub struct ConnectionParameters {
    /// Accepted messages that may wait for completion, at least one. Default 65,536.
    pub queue_messages: usize,
    /// Their bytes, headers included. Default 16 MiB. An empty queue takes any one message.
    pub queue_bytes: usize,
    /// The longest header, in bytes. Default 256; less counts as 256.
    pub max_header_len: usize,
    /// Buffers for `take_buffer` and `get_buffer`. Default none.
    pub buffers: Option<Buffers>,
    /// The time from open to *established* or *refused*. Default 5 s; zero refuses every attempt.
    pub connect_deadline: Duration,
    /// The time from an orderly close to *closed*. Default 5 s.
    pub close_deadline: Duration,
    /// The time a non-empty queue may stay without progress. Default `None`: for ever.
    pub stall_timeout: Option<Duration>,
    /// The address of this machine to connect from. Default: the system's choice.
    pub local_address: Option<IpAddr>,
    /// The network interface to connect through, or of a listener to accept from (may need privileges). Over RDMA opening
    /// fails with one. Default: the system's choice.
    pub interface: Option<String>,
    /// The kernel's send buffer, in bytes; without meaning over RDMA, like the next two. Default: the system's automatic size.
    pub send_buffer: Option<usize>,
    /// The kernel's receive buffer, in bytes. Default: the system's automatic size.
    pub receive_buffer: Option<usize>,
    /// The traffic class (the former type of service) of the packets. Default: the system's.
    pub traffic_class: Option<u8>,
    /// Zero-copy messages up to this many bytes, header included, are copied into the batch all
    /// the same, since that is faster; their keys come back alike. Default
    /// [`DEFAULT_COPY_BELOW`](Self::DEFAULT_COPY_BELOW).
    pub copy_below: usize,
    /// Bytes waiting in a queue at which it is flushed without waiting for the end of the turn. On TCP, if this is at least
    /// the default, bytes that are not copied count for an eighth, and what waits is written as far as it fills writes of
    /// the default's length, unless [`flush_messages`](Self::flush_messages) is set.
    /// Default [`DEFAULT_FLUSH_AT`](Self::DEFAULT_FLUSH_AT).
    pub flush_at: usize,
    /// Messages accepted since a queue was flushed at which it is flushed likewise; it matters where they are small.
    /// Default: as is best for the backend, 1,739 on TCP and without limit over RDMA.
    ///
    /// On a synchronized backend the loop gets messages in batches of at least 64 messages or 4 KiB and at most
    /// [`DEFAULT_FLUSH_AT`](Self::DEFAULT_FLUSH_AT) and a message, whatever this and [`flush_at`](Self::flush_at) say.
    pub flush_messages: Option<usize>,
}

impl ConnectionParameters {
    /// Default of [`copy_below`](Self::copy_below): measured over loopback, copying beats
    /// gathering up to a few hundred bytes and loses from 4 KiB on.
    pub const DEFAULT_COPY_BELOW: usize = 1_024;
    /// Default of [`flush_at`](Self::flush_at): two of the stretches in which Linux hands a TCP stream to the network, of
    /// at most 64 KiB and of whole segments: 65,483 bytes over loopback, 65,160 in packets of 1,500, 62,636 in packets of
    /// 9,000. A write that goes on a little beyond them leaves a tiny one.
    pub const DEFAULT_FLUSH_AT: usize = 2 * 62_636;
}

impl ConnectionParameters {
    /// Checks the values that make no sense for any connection.
    pub(crate) fn check(&self) -> io::Result<()> {
        match self.buffers {
            Some(Buffers { size: 0, .. } | Buffers { count: 0, .. }) => {
                Err(io::Error::new(io::ErrorKind::InvalidInput, "`buffers` must be at least one of at least one byte"))
            }
            Some(buffers) if buffers.bytes().is_none() => {
                Err(io::Error::new(io::ErrorKind::InvalidInput, "`buffers` come to more memory than there are addresses"))
            }
            _ => Ok(()),
        }
    }
}

impl Default for ConnectionParameters {
    fn default() -> Self {
        Self {
            queue_messages: 65_536,
            queue_bytes: 16 << 20,
            max_header_len: 256,
            buffers: None,
            connect_deadline: Duration::from_secs(5),
            close_deadline: Duration::from_secs(5),
            stall_timeout: None,
            local_address: None,
            interface: None,
            send_buffer: None,
            receive_buffer: None,
            traffic_class: None,
            copy_below: Self::DEFAULT_COPY_BELOW,
            flush_at: Self::DEFAULT_FLUSH_AT,
            flush_messages: None,
        }
    }
}

/// What holds for a listener and for every connection accepted there.
#[derive(Clone, Debug)]
pub struct ConnectionParametersRecv {
    /// The parameters of each accepted connection.
    pub connection: ConnectionParameters,
    /// Who may connect. Default: everybody.
    pub accept: AcceptFilter,
    /// Connections the kernel may hold for this listener until they are accepted. Default 1,024. Without meaning over RDMA,
    /// like the next one.
    pub backlog: u32,
    /// Whether several listeners may share the address (`SO_REUSEPORT`). Default `false`.
    pub reuse_port: bool,
}

impl Default for ConnectionParametersRecv {
    fn default() -> Self {
        Self { connection: ConnectionParameters::default(), accept: AcceptFilter::default(), backlog: 1_024, reuse_port: false }
    }
}

/// Decides by the peer's address whether it may connect; asked once for each peer that said hello.
///
/// Called on the loop's thread, so it must not block, and it must not call into the backend.
#[derive(Clone, Default)]
pub struct AcceptFilter(Option<Arc<Filter>>);

type Filter = dyn Fn(&EndPointAddress) -> bool + Send + Sync;

impl AcceptFilter {
    /// Accepts the peers for which `allow` returns `true`.
    pub fn new(allow: impl Fn(&EndPointAddress) -> bool + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(allow)))
    }

    /// Whether this peer may connect.
    pub fn allows(&self, peer: &EndPointAddress) -> bool {
        self.0.as_ref().is_none_or(|allow| allow(peer))
    }
}

impl fmt::Debug for AcceptFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "AcceptFilter(by function)" } else { "AcceptFilter(everybody)" })
    }
}

/// What can be sent on an established connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest message, header included, in bytes: the smaller of both sides' maxima.
    pub max_message_len: usize,
    /// The longest header, in bytes.
    pub max_header_len: usize,
    /// Messages the queue holds.
    pub queue_messages: usize,
    /// Bytes the queue holds.
    pub queue_bytes: usize,
}

impl Limits {
    /// Those of a connection whose peer has not announced any.
    pub(crate) fn new(config: &NetworkConfig, params: &ConnectionParameters) -> Self {
        Self {
            max_message_len: config.max_message_len,
            max_header_len: params.max_header_len.max(LEAST_MAX_HEADER),
            queue_messages: params.queue_messages.max(1),
            queue_bytes: params.queue_bytes,
        }
    }
}

/// Headers may be this long, in bytes, whatever is configured.
const LEAST_MAX_HEADER: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_pass_and_nonsense_names_its_field() {
        assert!(NetworkConfig::default().check().is_ok());
        let config = NetworkConfig { max_message_len: 5 << 30, ..Default::default() };
        assert!(config.check().unwrap_err().to_string().contains("max_message_len"));
        let config = NetworkConfig { missed_heartbeats: 0, ..Default::default() };
        assert!(config.check().unwrap_err().to_string().contains("missed_heartbeats"));
    }

    #[test]
    fn a_filter_decides_by_address() {
        let filter = AcceptFilter::new(|peer| peer.port() == 1);
        assert!(filter.allows(&EndPointAddress::localhost(1)));
        assert!(!filter.allows(&EndPointAddress::localhost(2)));
        assert!(AcceptFilter::default().allows(&EndPointAddress::localhost(2)));
    }
}
