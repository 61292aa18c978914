//! The TCP backend of netio3: framed messages over non-blocking sockets.
//!
//! Small messages leave in batches: what is sent within one turn of the loop goes out together at its end,
//! or as soon as some 122 KiB wait. Large ones go from the user's memory in gathered writes. Receiving takes up
//! to 516 KiB with one call into memory that all connections share, and hands messages out in place; those
//! of more than 128 KiB are read directly into memory of their own. Of a long message that has begun the loop is woken when
//! the rest, or 512 KiB of it, is here.
//!
//! The framing and the wire's byte tables are in ARCHITECTURE.md. Nothing here starts a thread.
#![forbid(unsafe_code)]

mod frame;
mod hello;
mod inbound;
mod link;
mod net;
mod outbound;
mod reading;
mod refusal;
mod session;
#[cfg(test)]
mod sim;
mod stash;
mod transport;

use netio3_core::{Callbacks, CreateError, EventLoop, NetworkBackend, NetworkConfig, engine};

pub use frame::{BadHead, Frame, HEAD_LEN};

use crate::net::{SystemNet, SystemOpener};
use crate::transport::Tcp;

/// A TCP backend for the loop's thread alone.
///
/// # Errors
/// The configuration is refused.
pub fn create_local(
    config: NetworkConfig,
    callbacks: Box<dyn Callbacks>,
    ev: &dyn EventLoop,
) -> Result<Box<dyn NetworkBackend>, CreateError> {
    engine::create_local(Tcp::<SystemNet>::new(), SystemOpener, config, callbacks, ev)
}

/// A TCP backend that any thread may call.
///
/// # Errors
/// The configuration is refused.
pub fn create(
    config: NetworkConfig,
    callbacks: Box<dyn Callbacks + Send>,
    ev: &dyn EventLoop,
) -> Result<Box<dyn NetworkBackend + Send + Sync>, CreateError> {
    engine::create(Tcp::<SystemNet>::new(), SystemOpener, config, callbacks, ev)
}
