//! libfabric in types that own what they stand for.
//!
//! A [`Library`] finds [`Info`]s; an `Info` opens a [`Fabric`] and a [`Domain`] in it; the fabric has
//! [`EventQueue`]s and [`PassiveEndpoint`]s, the domain [`CompletionQueue`]s, [`MemoryRegion`]s and
//! [`Endpoint`]s. Whatever is opened in something keeps it alive, and dropping closes in the order that
//! libfabric asks for, whichever the order of dropping is.
//!
//! What a program must do for itself:
//!
//! - Drive all queues together: before waiting on their descriptors, ask `trywait` of each; after waking,
//!   read the event queue and the completion queues. The `tcp` provider of 1.17 reports the end of a
//!   connection only while its completion queue is driven.
//! - Leave memory of posted operations alone until they completed or the endpoint was dropped. Posting is
//!   therefore `unsafe`; all else is safe.
//!
//! # Threads
//!
//! Everything is `Send` and `Sync`. libfabric allows that: infos that do not promise `FI_THREAD_SAFE` are
//! left out by [`Library::infos`], and that promise is that any object may be used by any thread at any time.
//! Its exception is made up for here: what changes an endpoint's properties (binding, enabling) must not run
//! beside other calls on it, so these methods take `&mut self` or a lock. Calls that manage a connection
//! also take a lock, since providers keep its state without one.

mod address;
mod completion_queue;
mod domain;
mod endpoint;
mod error;
mod event_queue;
#[expect(clippy::module_inception, reason = "libfabric's word for it")]
mod fabric;
mod hints;
mod info;
mod library;
mod memory_monitor;
mod memory_region;
mod passive_endpoint;
mod signals;

use nix::errno::Errno;

pub use completion_queue::{Completion, CompletionError, CompletionQueue, CqError};
pub use domain::Domain;
pub use endpoint::{Direction, Endpoint, Posted};
pub use error::FabricError;
pub use event_queue::{CmEvent, EventQueue};
pub use fabric::Fabric;
pub use hints::Hints;
pub use info::{Info, LinkState, Nic};
pub use library::{Library, LoadError};
pub use memory_region::{Access, Desc, MemoryRegion, RegistrationError};
pub use passive_endpoint::PassiveEndpoint;

/// Closes an object; what the provider says against it can only be logged.
///
/// # Safety
/// The object must be open, and nobody may use it any more, nor anything that was opened in it.
unsafe fn close(object: *mut libfabric_sys::fid, what: &'static str) {
    // SAFETY: the caller vouches for the object.
    let code = unsafe { libfabric_sys::fi_close(object) };
    if code != 0 {
        tracing::warn!(code = -code, what, "fi_close failed; the object stays behind");
    }
}

/// The provider `tcp` takes the error of a connection whose peer hung up from `errno`, which nothing has set then but some
/// earlier call of this thread's: with none there it says EIO.
fn forget_errno() {
    Errno::clear();
}
