//! The baseline: the same work over bare sockets, without any library.
//!
//! Small messages are copied together and written some 122 KiB at a time, large ones are gathered from where they lie, up to
//! eight times as much. What arrives is read 516 KiB at a time and parsed in place.

mod echo;
mod frame;
mod outbox;
mod ping;
mod recv;
mod send;
mod socket;

pub use echo::echo;
pub use ping::ping;
pub use recv::recv;
pub use send::send;
