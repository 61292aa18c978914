//! A backend with faults.

mod calls;
mod connection;
mod core;
mod interposer;
mod message;
mod source;

use std::rc::Rc;

use self::core::Core;
use self::interposer::Interposer;
use self::source::FaultSource;
use crate::backend::NetworkBackend;
use crate::callbacks::Callbacks;
use crate::event_loop::EventLoop;
use crate::fault::{Clock, FaultConfig, FaultCounts};

/// Any backend with faults before it, which keeps the contract: a program written on that survives it.
///
/// - Would-block: a send, or the taking of a buffer, is refused with `NoResources` although there is room, and
///   *writable* follows. An empty queue still takes any one message.
/// - Reset: the connection is aborted and ends with [`PeerLost`](crate::ClosedReason::PeerLost); the peer sees whatever
///   the backend behind makes of an abort.
/// - Stall: nothing is sent or read on the connection for a while of virtual time.
/// - Delay: an accepted message is held back for a while of virtual time; those after it wait too. It counts
///   against the queue's limits, an orderly close sends it on as far as the backend behind has room, and a pending
///   list includes it.
///
/// Faults befall established connections. The clock must move on for stalls and delays to end; it wakes the loop.
/// The counters, and the limits on all queues together, are those of the backend behind, which knows a message only
/// once it was sent on. So when an orderly close or a shutdown meets those limits with messages still held back, what
/// exceeds them comes back as pending. A backend with faults belongs to its loop's thread, and so must the one behind.
pub struct FaultBackend {
    core: Rc<Core>,
    /// The user's handle ends the backend when dropped; the one that callbacks see does not.
    owner: bool,
}

/// Puts faults before the backend that `create` makes; it gets the callbacks it must be made with.
///
/// # Errors
/// Those of `create`.
pub fn wrap<E>(
    config: FaultConfig,
    seed: u64,
    clock: &Clock,
    ev: &dyn EventLoop,
    callbacks: Box<dyn Callbacks>,
    create: impl FnOnce(Box<dyn Callbacks>) -> Result<Box<dyn NetworkBackend>, E>,
) -> Result<FaultBackend, E> {
    let core = Rc::new(Core::new(config, seed, clock, ev, callbacks));
    let view = FaultBackend { core: core.clone(), owner: false };
    let inner = create(Box::new(Interposer::new(view)))?;
    core.begin(inner);
    let view = FaultBackend { core: core.clone(), owner: false };
    core.set_source(ev.add_source(Box::new(FaultSource::new(view))));
    Ok(FaultBackend { core, owner: true })
}

impl FaultBackend {
    /// Changes what happens from now on.
    pub fn set_config(&self, config: FaultConfig) {
        self.core.config.set(config);
    }

    /// The faults until now.
    pub fn counts(&self) -> FaultCounts {
        self.core.counts.get()
    }
}

impl Drop for FaultBackend {
    fn drop(&mut self) {
        if self.owner {
            self.core.end();
        }
    }
}

impl std::fmt::Debug for FaultBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FaultBackend").field("config", &self.core.config.get()).field("counts", &self.counts()).finish_non_exhaustive()
    }
}
