//! What the queues and the helper thread tell: looking at all of them, and waiting for them.

mod completions;
mod done;
mod lost;
mod management;

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use netio3_core::engine::{Engine, Listener, Upcalls, drop_each};
use netio3_core::{Budget, Next};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::fabric::{Completion, EventQueue};
use crate::helper::Done;
use crate::link::{self, Listening};
use crate::transport::{Rdma, Watched};

/// Descriptors looked at with one call.
const POLLED: usize = 8;
/// Completions taken from a queue at once.
pub(crate) const BATCH: usize = 64;
/// How often the queue of a listener may be readable without having anything: the provider works off peers that say nothing yet.
const VAIN_LOOKS: u32 = 256;
/// How often the queues are looked at for each time that event queues are read unasked: nobody may be told of what
/// came while the loop was kept awake.
const PUMPS_PER_EVENTS: u32 = 64;

/// What reading queues brought.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Found {
    Nothing,
    Something,
    /// Something, and there may be more.
    More,
}

impl Rdma {
    /// Looks at all queues once, event queues and completion queues together.
    pub(crate) fn pump(&self, up: &mut Upcalls<'_, Self>, budget: &mut Budget) -> Next {
        let pumps = self.pumps.get().wrapping_add(1);
        self.pumps.set(pumps);
        if pumps.is_multiple_of(PUMPS_PER_EVENTS) {
            self.events_due.set(true);
        }
        let mut batch = self.batch.take().unwrap_or_else(|| Box::new([Completion::default(); BATCH]));
        let mut found = Found::Nothing;
        loop {
            if self.events_due.take() {
                found = found.max(self.read_all_events(up));
            }
            if !up.engine().is_gone() {
                found = found.max(self.read_all_completions(up, &mut batch, budget));
            }
            if up.engine().is_gone() {
                return Next::Wait;
            }
            // An event queue may know why a connection is lost: it is read first.
            if found == Found::More || self.lost.borrow().is_empty() || !self.events_due.get() {
                break;
            }
        }
        self.batch.set(Some(batch));
        self.dry.set(found == Found::Nothing);
        if found == Found::More {
            return Next::Again;
        }
        if !self.lost.borrow().is_empty() {
            self.handle_lost(up);
        }
        Next::Wait
    }

    /// Reads every event queue.
    #[cold]
    fn read_all_events(&self, up: &mut Upcalls<'_, Self>) -> Found {
        let mut found = Found::Nothing;
        for index in 0.. {
            // Asked for anew whenever something was handled: what is watched may change meanwhile.
            let (net, events) = match self.watched.borrow().get(index) {
                Some(Watched::Events { net, events, .. }) => (net.clone(), events.clone()),
                Some(Watched::Completions { .. }) => continue,
                None => break,
            };
            let here = self.read_events(up, &net, &events);
            if up.engine().is_gone() {
                break;
            }
            if here == Found::More {
                self.events_due.set(true);
            }
            if here != Found::Nothing
                && let Some(listener) = self.listener_of(up.engine(), &events)
            {
                listener.link.vain.set(0);
            }
            found = found.max(here);
        }
        found
    }

    /// Whether the descriptors will wake the loop for everything.
    pub(crate) fn descriptors_tell(&self, engine: &Engine<Self>) -> bool {
        if !self.lost.borrow().is_empty() {
            return false;
        }
        let watched = self.watched.borrow();
        let tell = watched.iter().all(|watched| match watched {
            // An error is found again, and told, when the queue is read.
            Watched::Events { events, .. } => {
                let sleeps = events.trywait().unwrap_or(true);
                if !sleeps {
                    self.events_due.set(true);
                }
                sleeps
            }
            Watched::Completions { queue, .. } => queue.completions.trywait().unwrap_or(true),
        });
        tell && !self.is_readable(engine, &watched)
    }

    /// Whether a descriptor is readable already. The loop is told only when one becomes so.
    fn is_readable(&self, engine: &Engine<Self>, watched: &[Watched]) -> bool {
        // A few at a time, so that nothing is allocated.
        let mut readable = false;
        for some in watched.chunks(POLLED) {
            let mut polled: [PollFd<'_>; POLLED] =
                std::array::from_fn(|index| PollFd::from_borrowed_fd(some[index.min(some.len() - 1)].fd(), PollFlags::IN));
            if poll(&mut polled[..some.len()], Some(&Timespec::default())).is_ok_and(|count| count > 0) {
                let found = some.iter().zip(&polled).filter(|(_, polled)| !polled.revents().is_empty());
                readable |= found.map(|(watched, _)| !self.cannot_accept(engine, watched)).fold(false, |any, one| any | one);
            }
        }
        if readable {
            self.events_due.set(true);
        }
        readable
    }

    /// Whether a queue that is readable is that of a listener and has had nothing for so long that its provider is taken to be
    /// short of descriptors, which it does not say. The loop then looks again after a while, instead of all the time.
    fn cannot_accept(&self, engine: &Engine<Self>, watched: &Watched) -> bool {
        let Watched::Events { events, .. } = watched else { return false };
        let Some(listener) = self.listener_of(engine, events) else { return false };
        let Listening { vain, waits, .. } = &listener.link;
        if waits.get() {
            return true;
        }
        vain.set(vain.get().saturating_add(1));
        let is_short = vain.get() >= VAIN_LOOKS;
        if is_short && has_descriptors() {
            // They were peers that say nothing. It rests all the same: there may be another reason.
            vain.set(0);
            waits.set(true);
            engine.accept_later(&listener);
        } else if is_short {
            let why = "the provider does not take a peer that waits, mostly for want of descriptors (ulimit -n)";
            engine.accept_failed(&listener, &io::Error::other(why));
            waits.set(true);
            engine.accept_later(&listener);
        }
        is_short
    }

    /// The listener that an event queue belongs to, if it belongs to one.
    fn listener_of(&self, engine: &Engine<Self>, events: &Arc<EventQueue>) -> Option<Rc<Listener<Listening>>> {
        let listeners = self.listeners.borrow();
        listeners.values().filter_map(|token| engine.listener_at(*token)).find(|listener| Arc::ptr_eq(&listener.link.events, events))
    }
}

/// Whether this process and the system have descriptors left.
pub(crate) fn has_descriptors() -> bool {
    eventfd(0, EventfdFlags::CLOEXEC).is_ok()
}

impl Drop for Rdma {
    fn drop(&mut self) {
        self.helper.stop();
        // Endpoints that the helper thread is still closing use memory of the user's, who may free it from now on.
        self.closing.get_mut().values().for_each(|(_, endpoint)| link::end(endpoint));
        self.helper.join();
        // What was closed meanwhile has memory of the user's, each piece of which is dropped by itself.
        let mut retired = Vec::new();
        for done in self.done.try_iter() {
            if let Done::Closed { body, .. } = done {
                body.dissolve(&mut retired);
            }
        }
        drop_each(&mut retired, drop);
    }
}
