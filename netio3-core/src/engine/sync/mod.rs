//! The synchronized front: what makes a single-threaded backend one that every thread may call.
//!
//! Every connection has a mailbox, with a lock of its own. A send takes that lock, decides by the mailbox's
//! own books whether the message is accepted, and leaves it in the mailbox's batch. The loop takes whole
//! batches out, in exchange for empty ones, and hands them over to the single-threaded backend, which knows
//! nothing of threads. So all sends on a connection have one order, a thread's own included, and a message
//! costs one lock. The loop is woken only when it does not know yet that there is something.
//!
//! What is accepted, and when *writable* is due, is ruled by the books here. Those of the backend behind are never fuller, so
//! it refuses nothing. What it tells of messages that left goes on to the user, and what was not handed over comes
//! behind that when the connection ends.
//!
//! Opening and listening start on the calling thread; the loop adopts what they made. Calls on the loop's own
//! thread go to the backend at once where that can be noticed: [`pause`](NetworkBackend::pause) in a
//! callback stops the next message.

mod batch;
mod callbacks;
mod front;
mod inbox;
mod loop_side;
mod mailbox;
mod quota;
mod shared;
mod slots;
mod source;
#[cfg(test)]
mod tests;

use std::marker::PhantomData;
use std::sync::Arc;
use std::thread;

use crate::backend::NetworkBackend;
use crate::callbacks::Callbacks;
use crate::config::NetworkConfig;
use crate::endpoint::EndpointIds;
use crate::engine::driver::Driver;
use crate::engine::sync::callbacks::FrontCallbacks;
use crate::engine::sync::loop_side::LoopSide;
use crate::engine::sync::shared::Shared;
use crate::engine::sync::source::FrontSource;
use crate::engine::{Engine, LocalBackend, Opener, Transport};
use crate::error::CreateError;
use crate::event_loop::EventLoop;

/// Makes a backend of a transport that every thread may call, and adds it to the loop.
///
/// Callbacks run on the loop's thread, and calls never wait for the loop. What only the loop can find out
/// arrives later: an open that it cannot carry out as *refused* with `LocalResource`. A callback may run before
/// the call that caused it has returned on its thread, *established* before the open included. An address
/// that was listened on is free once the loop has closed the listener, which on another thread is a moment
/// after `close_listen_endpoint`.
///
/// **Dropping** on the loop's thread ends the backend at once. On another thread it waits until the loop is
/// outside the backend; after that no callback runs and no memory of the user's is read. The loop closes the
/// connections and releases the memory in its next turn. A callback must not wait for a thread that drops the
/// backend: both would wait for ever.
///
/// # Errors
/// The configuration is refused.
///
/// # Threads
/// What this returns may go to other threads:
/// ```
/// fn share(backend: Box<dyn netio3_core::NetworkBackend + Send + Sync>) {
///     std::thread::spawn(move || backend.connections());
/// }
/// ```
/// What [`create_local`](crate::engine::create_local) returns may not; it belongs to its loop's thread, and
/// the compiler sees to that, whether it is moved
/// ```compile_fail,E0277
/// fn share(backend: Box<dyn netio3_core::NetworkBackend>) {
///     std::thread::spawn(move || backend.connections());
/// }
/// ```
/// or shared:
/// ```compile_fail,E0277
/// fn share(backend: &dyn netio3_core::NetworkBackend) {
///     std::thread::scope(|scope| scope.spawn(|| backend.connections()).join().unwrap());
/// }
/// ```
/// So it is for the loop, of which other threads have the [`remote`](EventLoop::remote) handle:
/// ```compile_fail,E0277
/// fn share(ev: Box<dyn netio3_core::EventLoop>) {
///     std::thread::spawn(move || ev.run());
/// }
/// ```
/// ```compile_fail,E0277
/// fn share(ev: &dyn netio3_core::EventLoop) {
///     std::thread::scope(|scope| scope.spawn(|| ev.stop()).join().unwrap());
/// }
/// ```
/// And callbacks that hold something of one thread are for `create_local` alone:
/// ```compile_fail,E0277
/// use netio3_core::{Callbacks, Handlers};
/// let seen = std::rc::Rc::new(std::cell::Cell::new(0));
/// let callbacks: Box<dyn Callbacks + Send> = Box::new(Handlers::new().on_writable(move |_, _, _| seen.set(1)));
/// ```
pub fn create<T: Transport>(
    transport: T,
    opener: T::Opener,
    config: NetworkConfig,
    callbacks: Box<dyn Callbacks + Send>,
    ev: &dyn EventLoop,
) -> Result<Box<dyn NetworkBackend + Send + Sync>, CreateError> {
    config.check()?;
    Ok(Box::new(SyncBackend::start(transport, opener, config, callbacks, ev)))
}

/// The calls of a synchronized backend.
struct SyncBackend<T: Transport> {
    shared: Arc<Shared<T::Opener>>,
    /// The user's handle ends the backend when dropped; the one that callbacks see does not.
    owner: bool,
    transport: PhantomData<fn() -> T>,
}

impl<T: Transport> SyncBackend<T> {
    fn start(transport: T, opener: T::Opener, config: NetworkConfig, callbacks: Box<dyn Callbacks + Send>, ev: &dyn EventLoop) -> Self {
        let ids = EndpointIds::default();
        let engine = Engine::new(transport, Arc::new(opener), loop_side::inner_config(&config), ids.clone(), ev);
        let shared = Arc::new(Shared::new(engine.opener.clone(), config, ids, engine.totals.clone(), engine.caps.clone(), ev.remote()));
        let side = LoopSide::new(shared.clone(), engine.clone(), callbacks);
        let driver = Driver::new(LocalBackend::view(engine.clone()), Box::new(FrontCallbacks(side.clone())));
        let source = ev.add_source(Box::new(FrontSource::new(side, driver)));
        engine.source.set(Some(source));
        Self { shared, owner: true, transport: PhantomData }
    }

    fn view(shared: Arc<Shared<T::Opener>>) -> Self {
        Self { shared, owner: false, transport: PhantomData }
    }
}

impl<T: Transport> Drop for SyncBackend<T> {
    fn drop(&mut self) {
        if !self.owner {
            return;
        }
        if let Some(side) = loop_side::here::<T>(&self.shared) {
            // In this order, as of the single-threaded kind.
            side.remove();
            side.tear_down();
            return;
        }
        let remains = self.shared.end();
        self.shared.inbox.wake();
        // Once the gate was open, the loop is outside the backend and finds it ended when it comes again.
        // On its own thread, where a call inside the backend may have ended it before, the loop would wait for itself.
        if self.shared.thread != thread::current().id() {
            drop(self.shared.gate.lock());
        }
        self.shared.opener.end();
        drop(remains);
    }
}
