//! Everything that happens because time passes.

use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::endpoint::Endpoint;
use crate::engine::{Connection, Engine, Listener, Release, State, Transport, Upcalls};
use crate::event_loop::{Budget, Next, Ready};
use crate::liveness::LivenessAction;
use crate::status::{ClosedReason, RefusedReason};

/// What a deadline belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Due {
    Connection(Endpoint),
    /// A listener that could not accept, by its token.
    Listener(usize),
}

impl Due {
    /// Sorts after everything else that is due at the same instant.
    const LAST: Self = Self::Listener(usize::MAX);
}

/// How long an accept loop waits when the table of descriptors is full and no stranger can make room.
pub(super) const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// How long a device may take to finish accepting an admitted peer.
const LONGEST_ACCEPT: Duration = Duration::from_secs(30);
/// How long a connection stays without traffic before it gives queue memory back.
const TRIM_AFTER: Duration = Duration::from_secs(2);

impl<T: Transport> Engine<T> {
    /// Has a listener called as ready again after a while, since accepting failed for now.
    pub fn accept_later(&self, listener: &Listener<T::Listener>) {
        // Once for all who come meanwhile: each time would ask for the next one.
        if listener.retry_at.get().is_none() {
            let at = self.ev.now() + ACCEPT_RETRY;
            listener.retry_at.set(Some(at));
            self.deadlines.borrow_mut().insert((at, Due::Listener(listener.token)));
            self.arm();
        }
    }

    /// Sets the deadline of a connection anew, from what it waits for. One that is set for earlier stays: it
    /// is found out then what is due next, which costs less than to put it off for each message.
    pub(super) fn update_deadline(&self, connection: &Connection<T::Link>) {
        let next = self.next_deadline(connection);
        if connection.deadline.get().is_none_or(|set| next.is_some_and(|next| next < set)) {
            self.set_deadline(connection, next);
        }
    }

    /// Makes sure that what a flush left in a connection's queue is looked after: it must move, and give its memory
    /// back. `filled`: it is there only since the last one, when its progress began.
    pub(super) fn watch_queue(&self, connection: &Connection<T::Link>, filled: bool) {
        let first = !connection.listed.untrimmed.replace(true);
        let stall = connection.params.stall_timeout.filter(|_| filled);
        if let Some(stall) = stall {
            connection.progress.set(self.ev.clock());
            // Nothing of what this may set is due before that, and nothing else has changed.
            let due = connection.progress.get().checked_add(stall.min(TRIM_AFTER));
            if connection.deadline.get().is_some_and(|set| due.is_none_or(|due| set <= due)) {
                return;
            }
        }
        if first || stall.is_some() {
            self.update_deadline(connection);
        }
    }

    /// Has [`Transport::trim`] called once the connection has been idle for a while.
    pub fn trim_later(&self, connection: &Connection<T::Link>) {
        if !connection.listed.untrimmed.replace(true) {
            // With messages queued it says when they last moved.
            if self.ledger(connection).messages() == 0 {
                connection.progress.set(self.ev.now());
            }
            connection.reads_seen.set(connection.counters.reads.get());
            self.update_deadline(connection);
        }
    }

    pub(super) fn set_deadline(&self, connection: &Connection<T::Link>, at: Option<Instant>) {
        let before = connection.deadline.replace(at);
        if before == at {
            return;
        }
        let due = Due::Connection(connection.endpoint);
        let mut deadlines = self.deadlines.borrow_mut();
        let first = deadlines.first().copied();
        before.inspect(|before| _ = deadlines.remove(&(*before, due)));
        at.inspect(|at| _ = deadlines.insert((*at, due)));
        let changed = deadlines.first().copied() != first;
        drop(deadlines);
        if changed {
            self.arm();
        }
    }

    pub(super) fn arm(&self) {
        let first = self.deadlines.borrow().first().map(|(at, _)| *at);
        if let Some(source) = self.source.get() {
            self.ev.set_deadline(source, first);
        }
    }

    /// How long a connection may take to be established. For one that was asked for here it is the user's deadline;
    /// for a peer that was admitted it is up to a device, and nobody has asked for anything.
    fn connect_limit(&self, connection: &Connection<T::Link>) -> Duration {
        if connection.is_incoming() { LONGEST_ACCEPT } else { connection.params.connect_deadline }
    }

    fn next_deadline(&self, connection: &Connection<T::Link>) -> Option<Instant> {
        let params = &connection.params;
        match connection.state() {
            State::Opening if connection.known.get() => connection.since.get().checked_add(self.connect_limit(connection)),
            State::Opening => {
                let hello = connection.since.get().checked_add(self.config.hello_deadline);
                [hello, self.shutdown_at.get()].into_iter().flatten().min()
            }
            State::Established => {
                let liveness = connection.liveness.borrow().as_ref().and_then(|liveness| liveness.next_deadline());
                let trim = connection.listed.untrimmed.get().then(|| connection.progress.get().checked_add(TRIM_AFTER)).flatten();
                let stall = params.stall_timeout.filter(|_| self.ledger(connection).messages() > 0);
                let stall = stall.and_then(|limit| connection.progress.get().checked_add(limit));
                [liveness, trim, stall].into_iter().flatten().min()
            }
            State::Closing(_) => {
                let at = connection.since.get().checked_add(params.close_deadline);
                [at, self.shutdown_at.get()].into_iter().flatten().min()
            }
            State::Closed(_) | State::Refused(_) => None,
        }
    }

    /// Handles what is due now.
    pub(super) fn expire(self: &Rc<Self>, up: &mut Upcalls<'_, T>) {
        let now = self.ev.now();
        // Taken out first: what is set anew belongs to a later turn, even if it should be due already.
        let due = {
            let mut deadlines = self.deadlines.borrow_mut();
            let later = deadlines.split_off(&(now, Due::LAST));
            std::mem::replace(&mut *deadlines, later)
        };
        for (at, due) in due {
            match due {
                Due::Connection(endpoint) => {
                    if let Some(connection) = self.get(endpoint) {
                        self.set_deadline(&connection, None);
                        self.expire_connection(up, &connection, now);
                        self.update_deadline(&connection);
                    }
                }
                // Another time is that of one that was closed, whose place this one has.
                Due::Listener(token) => {
                    if let Some(listener) = self.listener_at(token).filter(|listener| listener.retry_at.get() == Some(at)) {
                        listener.retry_at.set(None);
                        self.ev.redeliver(self.source(), token, Ready::READABLE);
                    }
                }
            }
        }
        self.arm();
    }

    fn expire_connection(&self, up: &mut Upcalls<'_, T>, connection: &Rc<Connection<T::Link>>, now: Instant) {
        let passed = |limit: Duration| connection.since.get().checked_add(limit).is_some_and(|at| at <= now);
        match connection.state() {
            State::Opening if !connection.known.get() => {
                if passed(self.config.hello_deadline) || self.shutdown_at.get().is_some_and(|at| at <= now) {
                    connection.listener_counters().inspect(|counters| counters.silent.add(1));
                    self.drop_stranger(connection);
                }
            }
            State::Opening => {
                if passed(self.connect_limit(connection)) {
                    self.refuse(connection, RefusedReason::Timeout);
                }
            }
            State::Closing(reason) => {
                if passed(connection.params.close_deadline) || self.shutdown_at.get().is_some_and(|at| at <= now) {
                    // This turn may be the first one since.
                    self.flush(connection);
                    if connection.is_over() {
                        return;
                    }
                    // With everything gone from here, what the system holds may still arrive.
                    let all_left = self.ledger(connection).messages() == 0;
                    self.finish(connection, reason, if all_left { Release::Orderly } else { Release::Reset });
                }
            }
            State::Established => self.look_after(up, connection, now),
            State::Closed(_) | State::Refused(_) => {}
        }
    }

    /// Whether a queue has not moved for as long as `stall_timeout` allows.
    fn is_stalled(&self, connection: &Connection<T::Link>, now: Instant) -> bool {
        let idle_for = now.saturating_duration_since(connection.progress.get());
        self.ledger(connection).messages() > 0 && connection.params.stall_timeout.is_some_and(|limit| idle_for >= limit)
    }

    /// Heartbeats, a dead peer, a stalled queue, memory of an idle connection.
    fn look_after(&self, up: &mut Upcalls<'_, T>, connection: &Rc<Connection<T::Link>>, now: Instant) {
        if self.is_stalled(connection, now) {
            // This side may have been slow itself; what can leave does so now.
            let mut budget = Budget::DEFAULT;
            if self.transport.ready(up, connection, Ready::WRITABLE, &mut budget) == Next::Again {
                self.read_again(connection);
            }
            if connection.is_over() {
                return;
            }
            self.transport.flush(self, connection);
            if self.is_stalled(connection, now) {
                return self.finish(connection, ClosedReason::Stalled, Release::Reset);
            }
        }
        let idle_for = now.saturating_duration_since(connection.progress.get());
        let queued = self.ledger(connection).messages() > 0;
        let trims = !queued && idle_for >= TRIM_AFTER && connection.listed.untrimmed.get();
        let reads = connection.counters.reads.get();
        if trims && connection.reads_seen.replace(reads) != reads {
            // Something has come meanwhile.
            connection.progress.set(now);
        } else if trims {
            connection.listed.untrimmed.set(false);
            self.ledger(connection).trim();
            self.transport.trim(self, connection);
        } else if queued && idle_for >= TRIM_AFTER {
            // A queue that does not move is looked at again when it does.
            connection.listed.untrimmed.set(false);
        }
        loop {
            let action = match &mut *connection.liveness.borrow_mut() {
                Some(liveness) => {
                    liveness.set_reading(self.is_receiving(connection), now);
                    liveness.check(now)
                }
                None => return,
            };
            match action {
                LivenessAction::Nothing => return,
                LivenessAction::SendHeartbeat => {
                    self.transport.heartbeat(self, connection);
                    self.transport.flush(self, connection);
                }
                LivenessAction::Probe => {
                    let reads = connection.counters.reads.get();
                    let mut budget = Budget::DEFAULT;
                    let again = self.transport.ready(up, connection, Ready::READABLE, &mut budget) == Next::Again;
                    if again {
                        self.read_again(connection);
                    }
                    if connection.is_over() {
                        return;
                    }
                    // What was held back may have been handed out instead, so that nothing was read that found nothing.
                    let found = again || connection.counters.reads.get() != reads || !self.is_receiving(connection);
                    let probed = connection.liveness.borrow_mut().as_mut().map(|liveness| liveness.probed(found, now));
                    if probed == Some(LivenessAction::Dead) {
                        return self.finish(connection, ClosedReason::HeartbeatTimeout, Release::Reset);
                    }
                }
                LivenessAction::Dead => return self.finish(connection, ClosedReason::HeartbeatTimeout, Release::Reset),
            }
        }
    }
}
