//! The contract of netio3, a message-passing network library driven by callbacks on an event loop.
//!
//! This crate holds what every backend promises and what every user sees: the [`NetworkBackend`] trait,
//! the [`Callbacks`], configuration, addresses, buffers, statistics, and the [`EventLoop`] and [`Source`]
//! traits. Most programs depend on `netio3`, which re-exports all of it and brings the backends.
#![deny(unsafe_code)]

mod address;
mod backend;
mod callbacks;
mod config;
#[cfg(feature = "conformance")]
pub mod conformance;
mod endpoint;
pub mod engine;
mod error;
mod event_loop;
#[cfg(feature = "fault")]
pub mod fault;
mod liveness;
pub mod loopback;
mod memory;
mod message;
mod stats;
mod status;

pub use address::{EndPointAddress, lookup};
pub use backend::{ConnectionState, CopiedMessage, ListenerState, NetworkBackend, Phase, Unsent};
pub use callbacks::{Callbacks, ConnectionInfo, Handlers};
pub use config::{AcceptFilter, Buffers, ConnectionParameters, ConnectionParametersRecv, Limits, NetworkConfig, RdmaParameters};
pub use endpoint::{Endpoint, MAX_ENDPOINTS};
pub use error::{
    AddressError, BufferError, CloseListenError, CloseSendError, CreateError, DeregisterError, LookupError, OpenListenError, OpenSendError,
    RegisterError, RunError, SendError, Target,
};
pub use event_loop::{Budget, EventLoop, Interest, Job, Next, Polled, Ready, Remote, Source, SourceId, WatchId};
pub use memory::{
    BufferFull, BufferPool, HeldSlice, MemoryKind, MemoryRegion, NetworkBuffer, RawSlice, RegionId, RegionInUse, RegionOptions,
};
pub use message::{Message, Meter, Take};
pub use stats::{
    BackendCounters, BackendStats, ConnectionCounters, ConnectionStats, Counter, ListenerCounters, ListenerStats, LoopCounters, LoopStats,
};
pub use status::{ClosedReason, Completion, CompletionKind, Direction, NetioStatus, RefusedReason};
