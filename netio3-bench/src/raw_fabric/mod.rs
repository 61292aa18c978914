//! The other baseline: the same work over bare libfabric calls on message endpoints, without any library.
//!
//! Receives are posted ahead, as many and as long as netio3 posts them. The receiver returns credits for half of them at
//! once. Small messages are copied into packets of nearly 64 KiB, large ones are sent from where they lie, in parts of a
//! receive's length that arrive behind each other in memory. Sends complete a quarter of the queue at a time; one call
//! reads up to 64 completions; a process that finds none sleeps on the queues' descriptors.

mod client;
mod link;
mod memory;
mod net;
mod outbox;
mod packet;
mod ping;
mod receives;
mod send;
mod sends;
mod serve;

pub use ping::ping;
pub use send::send;
pub use serve::{echo, recv};

/// Notes for the reports which provider netio3 takes for an address: it goes by the same order.
pub fn note_provider(common: &crate::args::Common, address: std::net::SocketAddr, passive: bool) {
    if let Ok((_, info)) = net::find(common, address, passive) {
        crate::report::set_provider(info.provider());
    }
}
