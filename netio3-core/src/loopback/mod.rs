//! The loopback backend: connections between the backends of one process, without sockets.
//!
//! It keeps the whole contract and is its reference: tests of programs run on it without ports or network,
//! and what differs from it on another backend is that backend's doing. Connections lead from one backend to
//! another, on one loop or on loops of different threads, or from a backend to itself.
//!
//! The process has one network of its own. Any unicast address can be listened on, whether this machine
//! has it or not; a wildcard listener answers for every address of its family on which nobody else listens.
//! Port 0 picks a port from 49,152 on. A connection comes from the address it is made to, unless
//! [`local_address`](crate::ConnectionParameters::local_address) says otherwise, and from a port of its own.
//!
//! ```
//! use std::time::Duration;
//! use netio3_core::{ConnectionParameters, ConnectionParametersRecv, EndPointAddress, EventLoop, Handlers, NetworkConfig, loopback};
//! use netio3_evloop::EpollEventLoop;
//!
//! let ev = EpollEventLoop::new()?;
//! let echo = Handlers::new().on_data(|backend, from, _, message| {
//!     let _ = backend.send_copy(from, &message, b"", 0);
//! });
//! let server = loopback::create_local(NetworkConfig::default(), Box::new(echo), &*ev)?;
//! let address = server.open_listen_endpoint(&EndPointAddress::localhost(0), &ConnectionParametersRecv::default())?;
//!
//! let stop = ev.local();
//! let asking = Handlers::new()
//!     .on_connection_established(|backend, connection| {
//!         let _ = backend.send_copy(connection.endpoint, b"hello", b"", 1);
//!     })
//!     .on_data(move |_, _, _, message| {
//!         assert_eq!(&*message, b"hello");
//!         stop.stop();
//!     });
//! let client = loopback::create_local(NetworkConfig::default(), Box::new(asking), &*ev)?;
//! client.open_send_endpoint(&address, &ConnectionParameters::default())?;
//! ev.run_for(Duration::from_secs(10))?;
//! # assert_eq!(client.totals().messages_received.get(), 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! **Completion** means that the message lies in the pipe to the peer: it was copied there, so that its
//! memory is the user's again. A pipe holds 1,024 messages or 1 MiB, and when empty any one message.
//! What the peer does not take, since it is paused or its loop does not run, therefore fills first the
//! pipe and then the queue. When a connection breaks, what lies in the pipe is still delivered.
//!
//! **Without meaning here:** the interface, socket buffers, the traffic class, and the backlog (attempts to
//! connect wait at the expense of who makes them). A message arrives whole, so that of the memory for assembling
//! only one that is longer than all of it exceeds the limit.

mod line;
mod link;
mod network;
mod outbox;
mod pipe;
mod spares;
mod transport;

use crate::backend::NetworkBackend;
use crate::callbacks::Callbacks;
use crate::config::NetworkConfig;
use crate::engine;
use crate::error::CreateError;
use crate::event_loop::EventLoop;
use crate::loopback::transport::{Loopback, LoopbackOpener};

/// Makes a single-threaded loopback backend, driven by `ev`.
///
/// # Errors
/// The configuration is refused.
pub fn create_local(
    config: NetworkConfig,
    callbacks: Box<dyn Callbacks>,
    ev: &dyn EventLoop,
) -> Result<Box<dyn NetworkBackend>, CreateError> {
    engine::create_local(Loopback::new(ev), LoopbackOpener, config, callbacks, ev)
}

/// Makes a loopback backend that any thread may use, driven by `ev`.
///
/// # Errors
/// The configuration is refused.
pub fn create(
    config: NetworkConfig,
    callbacks: Box<dyn Callbacks + Send>,
    ev: &dyn EventLoop,
) -> Result<Box<dyn NetworkBackend + Send + Sync>, CreateError> {
    engine::create(Loopback::new(ev), LoopbackOpener, config, callbacks, ev)
}
