//! The event loop of netio3.
#![forbid(unsafe_code)]

mod arena;
mod delegate;
mod event_loop;
mod handle;
mod inner;
mod kernel;
mod registry;
mod remote;
mod turn;

pub use event_loop::EpollEventLoop;
pub use handle::Handle;
