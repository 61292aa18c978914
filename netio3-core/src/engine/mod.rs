//! What all backends share, for those who write one.
//!
//! The [`Engine`] keeps the promises of the contract that do not depend on how bytes move: the table of
//! connections and their states, admission of sends, completions in order and exactly once, *writable*,
//! pools, regions, deadlines and counters. A [`Transport`] moves the bytes: it is told what was accepted,
//! and tells what arrived and what left. [`create_local`] makes a backend of a transport.
//!
//! Everything here belongs to one thread. Borrows of a connection's cells are never held while a callback
//! runs or user memory is dropped, so that both may call into the backend.

mod connection;
mod copies;
mod core;
mod deadlines;
mod driver;
mod ledger;
mod local;
mod peers;
mod raw_send;
mod receiving;
mod retired;
mod room;
mod sending;
mod staging;
mod submit;
mod sync;
mod transport;

pub use self::connection::{Connection, State};
pub use self::copies::{Copies, Run};
pub use self::core::{Engine, Listener, drop_each};
pub use self::driver::Upcalls;
pub(crate) use self::ledger::Ledger;
pub(crate) use self::local::LocalBackend;
pub use self::local::create_local;
pub use self::raw_send::RawPieces;
pub use self::receiving::{Brought, Reception};
pub use self::retired::{Retired, UserMemory};
pub use self::sync::create;
pub use self::transport::{Freed, OWN, Opener, Outgoing, Payload, RUN_HEAD_LEN, Release, Transport};
pub use crate::message::{Assembled, Frames, Taken};
