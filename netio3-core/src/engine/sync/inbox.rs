//! What tells the loop that there is something to do.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use crate::address::EndPointAddress;
use crate::config::{ConnectionParameters, ConnectionParametersRecv};
use crate::endpoint::Endpoint;
use crate::engine::Opener;
use crate::event_loop::Remote;
use crate::stats::{ConnectionCounters, ListenerCounters};

/// The list of mailboxes that have something, and of what concerns no mailbox.
pub(super) struct Inbox<O: Opener> {
    contents: Mutex<Contents<O>>,
    pub(super) remote: Arc<dyn Remote>,
}

struct Contents<O: Opener> {
    dirty: Vec<Endpoint>,
    commands: Vec<Command<O>>,
    /// The loop runs the backend and will look here before it leaves, so nobody has to wake it.
    attended: bool,
}

/// What the loop is to do.
pub(super) enum Command<O: Opener> {
    /// Take a started connection on.
    Adopt(Adoption<O>),
    /// Take a bound listener on.
    Listen {
        address: EndPointAddress,
        params: Box<ConnectionParametersRecv>,
        counters: Arc<ListenerCounters>,
        listening: O::Listening,
    },
    CloseListener(EndPointAddress),
    Shutdown {
        at: Instant,
    },
}

/// A started connection on its way to the loop.
pub(super) struct Adoption<O: Opener> {
    pub(super) endpoint: Endpoint,
    pub(super) address: EndPointAddress,
    pub(super) params: Arc<ConnectionParameters>,
    pub(super) counters: Arc<ConnectionCounters>,
    pub(super) dialing: O::Dialing,
}

impl<O: Opener> Inbox<O> {
    pub(super) fn new(remote: Arc<dyn Remote>) -> Self {
        let contents = Contents { dirty: Vec::new(), commands: Vec::new(), attended: false };
        Self { contents: Mutex::new(contents), remote }
    }

    // ----- on any thread -----

    /// Tells the loop of a mailbox. It is woken only when it knows of nothing else yet.
    pub(super) fn tell(&self, endpoint: Endpoint) {
        let mut contents = self.contents.lock();
        let wake = contents.is_unheeded();
        contents.dirty.push(endpoint);
        drop(contents);
        if wake {
            self.remote.wake();
        }
    }

    /// Leaves a command. The caller looked under the directory's lock that the backend lives, and calls
    /// [`wake`](Self::wake) when it holds no lock any more.
    pub(super) fn command(&self, command: Command<O>) {
        self.contents.lock().commands.push(command);
    }

    /// Makes the loop look here.
    pub(super) fn wake(&self) {
        self.remote.wake();
    }

    /// Takes the commands that nobody will carry out.
    pub(super) fn abandon(&self) -> Vec<Command<O>> {
        std::mem::take(&mut self.contents.lock().commands)
    }

    // ----- on the loop's thread -----

    /// The loop begins to run the backend.
    pub(super) fn attend(&self) {
        self.contents.lock().attended = true;
    }

    /// The loop leaves the backend; `true` when it must come back.
    pub(super) fn leave(&self) -> bool {
        let mut contents = self.contents.lock();
        contents.attended = false;
        !contents.is_empty()
    }

    /// Whether there is something.
    pub(super) fn is_filled(&self) -> bool {
        !self.contents.lock().is_empty()
    }

    /// How many mailboxes it tells of.
    #[cfg(test)]
    pub(super) fn listed(&self) -> usize {
        self.contents.lock().dirty.len()
    }

    /// Moves the mailboxes that have something to the end of a list.
    pub(super) fn take_dirty(&self, list: &mut Vec<Endpoint>) {
        list.append(&mut self.contents.lock().dirty);
    }

    /// Moves the commands to the end of a list.
    pub(super) fn take_commands(&self, list: &mut VecDeque<Command<O>>) {
        list.extend(self.contents.lock().commands.drain(..));
    }
}

impl<O: Opener> Contents<O> {
    fn is_empty(&self) -> bool {
        self.dirty.is_empty() && self.commands.is_empty()
    }

    /// Whether the loop does not know yet that there is something.
    fn is_unheeded(&self) -> bool {
        !self.attended && self.is_empty()
    }
}
