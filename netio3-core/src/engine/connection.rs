//! One connection, as the engine sees it.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Instant;

use crate::address::EndPointAddress;
use crate::backend::{ConnectionState, Phase};
use crate::config::{ConnectionParameters, Limits};
use crate::endpoint::Endpoint;
use crate::engine::Ledger;
use crate::liveness::Liveness;
use crate::memory::BufferPool;
use crate::message::Meter;
use crate::stats::{ConnectionCounters, ListenerCounters};
use crate::status::{ClosedReason, Direction, RefusedReason};

/// A connection, from the moment its socket (or the like) exists until its last callback.
///
/// Its cells are borrowed only for moments, never across a callback.
pub struct Connection<L> {
    /// Its handle.
    pub endpoint: Endpoint,
    /// The peer's address.
    pub address: EndPointAddress,
    /// Which side asked for it.
    pub direction: Direction,
    /// What the user asked for.
    pub params: Arc<ConnectionParameters>,
    /// Its counters.
    pub counters: Arc<ConnectionCounters>,
    /// Counts the messages that the user took over.
    pub meter: Meter,
    /// The transport's part.
    pub link: L,
    /// A message was discarded.
    pub(super) discarding: Cell<bool>,
    /// Its part in the backend's count of memory for what is not delivered yet, in bytes.
    pub(super) counted_assembly: Cell<usize>,
    /// The listener that accepted it.
    pub(super) listener: Option<Accepted>,
    pub(super) state: Cell<State>,
    /// Whether the user knows of it: opened here, or accepted and its hello too.
    pub(super) known: Cell<bool>,
    /// How many turns had ended when it was begun.
    pub(super) entered: u64,
    pub(super) owns_address: bool,
    pub(super) paused: Cell<bool>,
    pub(super) limits: Cell<Limits>,
    /// Its ledger, unless it is staged: reached by [`Engine::ledger`](super::Engine::ledger).
    pub(super) own_ledger: RefCell<Ledger>,
    /// Its messages go by the engine's staging.
    pub(super) is_staging: Cell<bool>,
    /// How many accepted messages are in the backend's totals.
    pub(super) counted: Cell<u64>,
    /// Messages accepted when it was flushed last.
    pub(super) flushed: Cell<u64>,
    pub(super) pool: RefCell<Option<BufferPool>>,
    /// A buffer was asked for in vain.
    pub(super) starved: Cell<bool>,
    pub(super) liveness: RefCell<Option<Liveness>>,
    /// When the present state began.
    pub(super) since: Cell<Instant>,
    /// Since the last flush a message was accepted with nothing before it.
    pub(super) filled: Cell<bool>,
    /// When the queue last moved.
    pub(super) progress: Cell<Instant>,
    /// The reads that there were when its memory was to be given back.
    pub(super) reads_seen: Cell<u64>,
    pub(super) deadline: Cell<Option<Instant>>,
    pub(super) listed: Listed,
}

/// The listener of an accepted connection.
pub(super) struct Accepted {
    pub(super) address: EndPointAddress,
    pub(super) counters: Arc<ListenerCounters>,
    pub(super) filter: crate::config::AcceptFilter,
}

/// In which of the engine's lists a connection is, so that it is there once.
#[derive(Default)]
pub(super) struct Listed {
    /// Has something to flush.
    pub(super) unflushed: Cell<bool>,
    /// Has completions to tell.
    pub(super) completed: Cell<bool>,
    /// Waits to be told *writable*.
    pub(super) waiting: Cell<bool>,
    /// Does not read because a cap on taken-over messages is reached.
    pub(super) capped: Cell<bool>,
    /// Has used memory that should be given back when idle.
    pub(super) untrimmed: Cell<bool>,
}

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Being connected, or exchanging hellos.
    Opening,
    /// *Established* was delivered or is just being delivered.
    Established,
    /// An orderly close is under way; the reason is that of the coming *closed*.
    Closing(ClosedReason),
    /// Over; *closed* follows.
    Closed(ClosedReason),
    /// Over; *refused* follows.
    Refused(RefusedReason),
}

impl State {
    /// Whether it is over.
    #[inline]
    pub(crate) fn is_over(self) -> bool {
        matches!(self, Self::Closed(_) | Self::Refused(_))
    }
}

impl<L> Connection<L> {
    /// Where it is in its life.
    pub fn state(&self) -> State {
        self.state.get()
    }

    /// Whether it is over, so that nothing may be read or delivered any more.
    pub fn is_over(&self) -> bool {
        self.state.get().is_over()
    }

    /// The token that it is watched under.
    pub fn token(&self) -> usize {
        self.endpoint.slot()
    }

    /// Whether the peer asked for it.
    pub fn is_incoming(&self) -> bool {
        self.direction == Direction::Incoming
    }

    /// Whether the user paused it.
    pub fn is_paused(&self) -> bool {
        self.paused.get()
    }

    /// The counters of the listener that accepted it.
    pub fn listener_counters(&self) -> Option<&ListenerCounters> {
        self.listener.as_ref().map(|listener| &*listener.counters)
    }

    /// What the user sees of it.
    pub(super) fn describe(&self) -> ConnectionState {
        ConnectionState {
            endpoint: self.endpoint,
            address: self.address,
            direction: self.direction,
            listener: self.listener.as_ref().map(|listener| listener.address),
            phase: match self.state.get() {
                State::Opening => Phase::Opening,
                State::Established => Phase::Established,
                State::Closing(_) | State::Closed(_) | State::Refused(_) => Phase::Closing,
            },
            counters: self.counters.clone(),
        }
    }

    /// It is over from here on, in this state.
    pub(super) fn set_over(&self, state: State) {
        self.state.set(state);
        self.meter.interrupt();
    }

    /// The user does not want its messages now.
    pub(super) fn set_paused(&self) {
        self.paused.set(true);
        self.meter.interrupt();
    }

    /// Whether the user waits for *writable* and it is due.
    pub(super) fn is_writable_due(&self, ledger: &Ledger, room: impl Fn(usize) -> bool) -> bool {
        let fits = ledger.room.refused().is_some_and(|len| ledger.room.is_empty() || (ledger.room.fits(len) && room(len)));
        let buffer_free = || {
            self.pool.borrow().as_ref().is_some_and(|pool| {
                // Asked for again each time: the buffer that was told of may have been taken since.
                pool.set_starved();
                pool.available() > 0
            })
        };
        // With both, the message alone decides: who was refused may hold the very buffers, to send them then.
        if ledger.room.refused().is_some() { fits } else { self.starved.get() && buffer_free() }
    }
}
