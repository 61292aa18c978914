//! Message passing over TCP and RDMA behind one interface, driven by callbacks on an event loop.
//!
//! A program opens connections, sends messages of up to 64 MiB over them without copying, and is told in
//! callbacks on one thread what arrived and which messages left. Which backend carries them is chosen at run
//! time by a [`NetworkType`]; everything else is the same on all of them.
//!
//! ```
//! use std::cell::Cell;
//! use std::rc::Rc;
//! use std::time::Duration;
//!
//! use netio3::{
//!     ConnectionParameters, ConnectionParametersRecv, EndPointAddress, EpollEventLoop, EventLoop, Handlers, NetioStatus, NetworkConfig,
//!     NetworkType, create_local,
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let kind: NetworkType = "tcp".parse()?;
//! let ev = EpollEventLoop::new()?;
//!
//! // An echo server: whatever arrives goes back.
//! let echo = Handlers::new().on_data(|backend, from, _, message| {
//!     let status = backend.send_copy(from, &message, &[], 0);
//!     assert_eq!(status, Ok(NetioStatus::Ok));
//! });
//! let server = create_local(kind, NetworkConfig::default(), Box::new(echo), &ev)?;
//! let address = server.open_listen_endpoint(&EndPointAddress::localhost(0), &ConnectionParametersRecv::default())?;
//!
//! // A client: sends as soon as it can, and waits for the answer.
//! let answered = Rc::new(Cell::new(false));
//! let done = answered.clone();
//! let client = Handlers::new()
//!     .on_connection_established(|backend, connection| {
//!         let data = netio3::bytes::Bytes::from_static(b"to whom it may concern");
//!         let status = backend.send(connection.endpoint, &data, b"header ", 42);
//!         assert_eq!(status, Ok(NetioStatus::Ok));
//!     })
//!     .on_send_completed(|_, _, _, completions| assert_eq!(completions[0].key, 42))
//!     .on_data(move |_, _, _, message| {
//!         assert_eq!(&message[..], b"header to whom it may concern");
//!         done.set(true);
//!     });
//! let client = create_local(kind, NetworkConfig::default(), Box::new(client), &ev)?;
//! client.open_send_endpoint(&address, &ConnectionParameters::default())?;
//!
//! assert!(ev.run_until(&mut || answered.get(), Duration::from_secs(10))?);
//! # Ok(())
//! # }
//! ```
//!
//! # Where to read what
//! - [`NetworkBackend`]: every call; what may be called when. On the synchronized kind many small messages are
//!   best handed over together: [`send_copy_batch`](NetworkBackend::send_copy_batch).
//! - [`Callbacks`]: what is told, in which order; [`Handlers`] makes them from closures.
//! - [`NetworkConfig`], [`ConnectionParameters`], [`ConnectionParametersRecv`]: everything that can be set.
//! - [`EventLoop`], [`EpollEventLoop`]: running, timers, signals, descriptors, other event loops.
//! - [`create_local`] and [`create()`]: one thread or many.
//!
//! # Features
//! - `tcp` (default): the TCP backend.
//! - `rdma`: the RDMA backend. libfabric is opened at run time; building needs nothing of it.
//! - `serde`: `Serialize` for the snapshots of all statistics.
//! - `fault`: seeded fault injection, for a program's own tests (`netio3::fault`).
//!
//! [`bytes`] is re-exported, so that a program needs no dependency but this one.
//!
//! What goes wrong without anybody to tell, such as a peer that breaks the protocol or a listener that is out of descriptors,
//! is logged through `tracing`: a program that installs a subscriber sees it.
//!
//! # For users of the C++ netio3
//! Names are the same where the languages allow it. The wire is not: the two cannot talk to each other.
//!
//! | there | here |
//! |---|---|
//! | `NetworkBackend::create(type, config, evloop)` | [`create_local`], [`create()`] |
//! | `NetworkType::ASYNCMSG`, `LIBFABRIC` | [`NetworkType::Tcp`], [`NetworkType::Rdma`] |
//! | `ThreadSafetyModel::UNSAFE`, `SAFE` | [`create_local`], [`create()`]: the compiler knows the difference |
//! | `NetworkMode::TCP`, `RDMA` in `NetworkConfig` | [`RdmaParameters::provider`]: `tcp` or `verbs`; by default what is there |
//! | callbacks in `NetworkConfig` | [`Callbacks`], or closures by [`Handlers`] |
//! | shared send and receive buffers in `NetworkConfig` | limits in [`NetworkConfig`], buffers by [`ConnectionParameters::buffers`] |
//! | `open_send_endpoint` | [`open_send_endpoint`](NetworkBackend::open_send_endpoint); [`connect`](NetworkBackend::connect) for several to one address |
//! | `open_listen_endpoint` | [`open_listen_endpoint`](NetworkBackend::open_listen_endpoint) |
//! | `close_send_endpoint` | [`close_send_endpoint`](NetworkBackend::close_send_endpoint), [`close`](NetworkBackend::close), [`abort`](NetworkBackend::abort) |
//! | `close_listen_endpoint` | [`close_listen_endpoint`](NetworkBackend::close_listen_endpoint) |
//! | `send_data(address, span, …)` | [`send_data`](NetworkBackend::send_data), [`send`](NetworkBackend::send) |
//! | `send_data(address, iovec, …)` | [`send_data_iov`](NetworkBackend::send_data_iov), [`send_iov`](NetworkBackend::send_iov); for raw memory [`send_raw_iov`](NetworkBackend::send_raw_iov) |
//! | `send_data_copy(address, span, …)` | [`send_data_copy`](NetworkBackend::send_data_copy), [`send_copy`](NetworkBackend::send_copy) |
//! | `send_data_copy(address, iovec, …)` | [`send_data_copy_iov`](NetworkBackend::send_data_copy_iov), [`send_copy_iov`](NetworkBackend::send_copy_iov) |
//! | `get_buffer` | [`get_buffer`](NetworkBackend::get_buffer), [`take_buffer`](NetworkBackend::take_buffer) |
//! | `send_buffer` | [`send_buffer`](NetworkBackend::send_buffer), [`send_taken`](NetworkBackend::send_taken) |
//! | `get_num_available_buffers` | [`get_num_available_buffers`](NetworkBackend::get_num_available_buffers), [`available_buffers`](NetworkBackend::available_buffers) |
//! | `on_data_cb` | [`on_data`](Callbacks::on_data) |
//! | `on_connection_established_cb` | [`on_connection_established`](Callbacks::on_connection_established) |
//! | `on_connection_closed_cb` | [`on_connection_closed`](Callbacks::on_connection_closed), with a reason |
//! | `on_connection_refused_cb` | [`on_connection_refused`](Callbacks::on_connection_refused), with a reason |
//! | `on_send_completed_cb` | [`on_send_completed`](Callbacks::on_send_completed), many keys at once |
//! | trying again after `NO_RESOURCES` | [`on_writable`](Callbacks::on_writable) |
//! | `NetioStatus::OK`, `NO_RESOURCES`, `FAILED` | [`NetioStatus`], with more cases |
//! | `NetworkBuffer*` | [`NetworkBuffer`], owned |
//! | registered memory | [`MemoryRegion`], [`register`](NetworkBackend::register) |
//! | `InvalidEndpointAddress`, `SendEndpointAlreadyExists`, `FailedOpenSendEndpoint`, `FailedOpenActiveEndpoint` | [`OpenSendError`] |
//! | `InvalidEndpointAddress`, `ListenEndpointAlreadyExists`, `FailedOpenListenEndpoint` | [`OpenListenError`] |
//! | `UnknownSendEndpoint` | [`SendError`], [`CloseSendError`], [`BufferError`] |
//! | `FailedCloseSendEndpoint` | [`CloseSendError`] |
//! | `UnknownListenEndpoint`, `FailedCloseListenEndpoint` | [`CloseListenError`] |
//! | `NoBuffersAllocated` | [`BufferError`] |
//! | `LibFabricBufferError` | [`RegisterError`] |
//! | the connectionless back end | none: messages go over connections |
//! | `BaseEventLoop`, `EpollEventLoop` | [`EventLoop`], [`EpollEventLoop`] |
//! | `AsioEventLoop` | any foreign loop can drive an [`EpollEventLoop`] by its descriptor |
//! | `register_fd`, `remove_fd` | [`Handle::add_fd`], [`EventLoop::remove_source`]; the loop closes the descriptor: give it a clone of one to keep |
//! | timers, signals | [`Handle::add_timer`], [`Handle::add_interval`], [`Handle::add_signal`] |
//! | the init callback | [`Handle::on_init`] |
//! | work handed to the loop by another thread | [`EventLoop::remote`], [`Remote::post`] |
//! | `run`, `run_for`, `stop` | [`EventLoop::run`], [`run_for`](EventLoop::run_for), [`stop`](EventLoop::stop) |
#![forbid(unsafe_code)]

mod create;
mod network_type;

pub use bytes;
#[cfg(feature = "fault")]
pub use netio3_core::fault;
pub use netio3_core::{
    AcceptFilter, AddressError, BackendCounters, BackendStats, Budget, BufferError, BufferFull, BufferPool, Buffers, Callbacks,
    CloseListenError, CloseSendError, ClosedReason, Completion, CompletionKind, ConnectionCounters, ConnectionInfo, ConnectionParameters,
    ConnectionParametersRecv, ConnectionState, ConnectionStats, CopiedMessage, Counter, CreateError, DeregisterError, Direction,
    EndPointAddress, Endpoint, EventLoop, Handlers, HeldSlice, Interest, Job, Limits, ListenerCounters, ListenerState, ListenerStats,
    LookupError, LoopCounters, LoopStats, MAX_ENDPOINTS, MemoryKind, MemoryRegion, Message, Meter, NetioStatus, NetworkBackend,
    NetworkBuffer, NetworkConfig, Next, OpenListenError, OpenSendError, Phase, Polled, RawSlice, RdmaParameters, Ready, RefusedReason,
    RegionId, RegionInUse, RegionOptions, RegisterError, Remote, RunError, SendError, Source, SourceId, Take, Target, Unsent, WatchId,
    engine, lookup, loopback,
};
pub use netio3_evloop::{EpollEventLoop, Handle, Signal, TimerId};

pub use crate::create::{create, create_local};
pub use crate::network_type::{NetworkType, UnknownNetworkType};

/// The README's example is compiled and run with the documentation's.
#[cfg(all(doctest, feature = "tcp"))]
#[doc = include_str!("../../README.md")]
struct Readme;
