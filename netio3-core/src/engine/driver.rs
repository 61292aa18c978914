//! The source that the loop calls, and the way to the user's callbacks.

use std::rc::Rc;
use std::time::Duration;

use crate::address::EndPointAddress;
use crate::callbacks::{Callbacks, ConnectionInfo};
use crate::config::Limits;
use crate::engine::core::{LISTENER, drop_each};
use crate::engine::{Connection, Engine, LocalBackend, OWN, Reception, State, Transport, UserMemory};
use crate::event_loop::{Budget, EventLoop, Next, Polled, Ready, Source};
use crate::liveness::Liveness;
use crate::message::{Frames, Message, Messages, Taken};
use crate::status::{Completion, Direction};

/// A backend as its loop sees it: the callbacks and the engine. Dropping it ends the backend.
pub(crate) struct Driver<T: Transport> {
    /// What callbacks get as their backend.
    view: LocalBackend<T>,
    callbacks: Box<dyn Callbacks>,
    scratch: Scratch,
}

/// How often a turn ends over again while the transport finds more to do, before the loop looks elsewhere.
const ROUNDS: usize = 16;

/// Memory used again and again.
#[derive(Default)]
struct Scratch {
    completions: Vec<Completion>,
    retired: Vec<UserMemory>,
}

/// The way to the user's callbacks, open while the loop runs the backend.
pub struct Upcalls<'a, T: Transport> {
    view: &'a LocalBackend<T>,
    callbacks: &'a mut dyn Callbacks,
}

impl<T: Transport> Driver<T> {
    pub(crate) fn new(view: LocalBackend<T>, callbacks: Box<dyn Callbacks>) -> Self {
        Self { view, callbacks, scratch: Scratch::default() }
    }

    fn engine(&self) -> Rc<Engine<T>> {
        self.view.engine().clone()
    }

    fn upcalls(&mut self) -> Upcalls<'_, T> {
        Upcalls { view: &self.view, callbacks: &mut *self.callbacks }
    }

    /// Tells completions of the connections that have some.
    fn tell_completions(&mut self, engine: &Engine<T>, budget: &mut Budget) {
        // What completes meanwhile is told in the next round.
        let count = engine.completed.borrow().len();
        for _ in 0..count {
            let next = engine.completed.borrow_mut().pop_front();
            let Some(connection) = next else { return };
            connection.listed.completed.set(false);
            self.tell_completions_of(engine, &connection, budget);
        }
    }

    fn tell_completions_of(&mut self, engine: &Engine<T>, connection: &Rc<Connection<T::Link>>, budget: &mut Budget) {
        // Before their memory is dropped, whose drop may send and flush: what that completes is told in the next round, when
        // its own memory is dropped.
        let spare = std::mem::take(&mut self.scratch.completions);
        let (mut completions, untold) = engine.ledger(connection).take_completed(spare);
        self.retire(engine, connection);
        if !completions.is_empty() && !engine.is_gone() {
            engine.ledger(connection).room.tell(untold);
            budget.spend(completions.len(), 0);
            self.callbacks.on_send_completed(&self.view, connection.endpoint, &connection.address, &completions);
        }
        completions.clear();
        self.scratch.completions = completions;
    }

    /// Drops the user memory of messages that left, or gives buffers back, with no borrow held.
    fn retire(&mut self, engine: &Engine<T>, connection: &Rc<Connection<T::Link>>) {
        engine.transport.retire(connection, &mut self.scratch.retired);
        if self.scratch.retired.is_empty() {
            return;
        }
        let mut retired = std::mem::take(&mut self.scratch.retired);
        drop_each(&mut retired, |memory| match memory {
            UserMemory::Shared(bytes) => drop(bytes),
            UserMemory::Raw(_) => {}
            UserMemory::Buffer(buffer) => match &mut *connection.pool.borrow_mut() {
                Some(pool) => pool.put_back(buffer),
                None => drop(buffer),
            },
        });
        self.scratch.retired = retired;
    }

    /// Tells *writable* to the connections that wait for it and have room.
    fn tell_writable(&mut self, engine: &Engine<T>) {
        if engine.waiting.borrow().is_empty() {
            return;
        }
        let waiting = engine.waiting.take();
        for connection in waiting {
            if engine.is_gone() {
                return;
            }
            if !matches!(connection.state(), State::Opening | State::Established) {
                connection.listed.waiting.set(false);
                continue;
            }
            if !engine.is_writable_due(&connection) {
                engine.waiting.borrow_mut().push(connection);
                continue;
            }
            connection.listed.waiting.set(false);
            engine.ledger(&connection).room.clear_refusal();
            connection.starved.set(false);
            self.callbacks.on_writable(&self.view, connection.endpoint, &connection.address);
        }
    }

    /// Tells the ends of connections, each after its last completions.
    fn tell_ends(&mut self, engine: &Engine<T>, budget: &mut Budget) {
        // Those that end meanwhile come later, so that a user who reopens in vain does not keep the loop.
        let count = engine.over.borrow().len();
        for _ in 0..count {
            let Some(connection) = self.next_end(engine) else { return };
            self.tell_completions_of(engine, &connection, budget);
            if engine.is_gone() {
                return;
            }
            let pending = engine.take_pending(&connection);
            connection.counters.messages_pending_at_close.add(pending.len() as u64);
            engine.totals.messages_pending_at_close.add(pending.len() as u64);
            engine.leave(&connection);
            let (endpoint, address) = (connection.endpoint, &connection.address);
            match connection.state() {
                // A peer that was admitted: the listening side is told of those alone that are established.
                State::Refused(reason) if connection.is_incoming() => {
                    tracing::info!(backend = T::NAME, %endpoint, peer = %address, %reason, "an admitted peer did not come about");
                }
                State::Refused(reason) => {
                    engine.totals.refused.add(1);
                    tracing::info!(backend = T::NAME, %endpoint, peer = %address, %reason, "connection refused");
                    self.callbacks.on_connection_refused(&self.view, endpoint, address, reason);
                }
                State::Closed(reason) => {
                    engine.totals.closed.add(1);
                    let pending_count = pending.len();
                    tracing::info!(backend = T::NAME, %endpoint, peer = %address, %reason, pending = pending_count, "connection closed");
                    self.callbacks.on_connection_closed(&self.view, endpoint, address, &pending, reason);
                }
                State::Opening | State::Established | State::Closing(_) => {}
            }
        }
    }

    fn next_end(&self, engine: &Engine<T>) -> Option<Rc<Connection<T::Link>>> {
        if engine.is_gone() { None } else { engine.over.borrow_mut().pop_front() }
    }

    /// Sends what is queued. What is left over on a connection whose first messages have left already may wait, where
    /// their completions are told in the same turn: that mostly brings more for the same write.
    fn flush(engine: &Engine<T>, leftovers_wait: bool) {
        let count = engine.unflushed.borrow().len();
        for _ in 0..count {
            let next = engine.unflushed.borrow_mut().pop_front();
            let Some(connection) = next else { return };
            if leftovers_wait && connection.listed.completed.get() && !connection.is_over() {
                engine.unflushed.borrow_mut().push_back(connection);
                continue;
            }
            connection.listed.unflushed.set(false);
            if !connection.is_over() {
                engine.flush(&connection);
            }
        }
    }

    /// Has the connections read again that stopped at a cap, where there is room now.
    fn resume_capped(&mut self, engine: &Engine<T>) {
        engine.capped.borrow_mut().retain(|connection| {
            // One that is closing and paused discards what waits unread; otherwise a paused one reads when it is resumed.
            let discards = engine.reception(connection) == Reception::Discard;
            let rests = connection.is_over() || (connection.is_paused() && !discards);
            let stays = !rests && !discards && connection.meter.is_full();
            connection.listed.capped.set(stays);
            if !rests && !stays {
                engine.resume_reading(connection);
            } else if rests && !connection.is_over() {
                // Nobody reads it any more: one that cannot be written to ends by that.
                engine.read_again(connection);
            }
            stays
        });
    }
}

impl<T: Transport> Source for Driver<T> {
    fn ready(&mut self, _ev: &dyn EventLoop, token: usize, ready: Ready, budget: &mut Budget) -> Next {
        let engine = self.engine();
        if engine.is_gone() {
            return Next::Wait;
        }
        if token & OWN != 0 {
            return engine.transport.own_ready(&mut self.upcalls(), token, budget);
        }
        if token & LISTENER != 0 {
            return match engine.listener_at(token) {
                Some(listener) => engine.transport.listener_ready(&engine, &listener, budget),
                None => Next::Wait,
            };
        }
        let Some(connection) = engine.at(token) else { return Next::Wait };
        engine.transport.ready(&mut self.upcalls(), &connection, ready, budget)
    }

    fn delivered(&mut self, _ev: &dyn EventLoop, _budget: &mut Budget) {
        let engine = self.engine();
        if !engine.is_gone() {
            Self::flush(&engine, false);
        }
    }

    fn timeout(&mut self, _ev: &dyn EventLoop) {
        let engine = self.engine();
        if !engine.is_gone() {
            engine.expire(&mut self.upcalls());
        }
    }

    fn before_sleep(&mut self, _ev: &dyn EventLoop, budget: &mut Budget) -> Next {
        let engine = self.engine();
        let mut next = Next::Wait;
        engine.ending_turn.set(true);
        engine.turns.set(engine.turns.get() + 1);
        for round in 1..=ROUNDS {
            if engine.is_gone() {
                return Next::Wait;
            }
            self.tell_ends(&engine, budget);
            self.tell_completions(&engine, budget);
            self.tell_writable(&engine);
            // Leftovers wait for the second round, no longer: all that was accepted leaves in this turn.
            Self::flush(&engine, round == 1);
            next = engine.transport.before_sleep(&mut self.upcalls(), budget);
            // At least twice, so that what the flush completes is told in the same turn.
            let goes_on = (next == Next::Again && !budget.is_spent()) || (round == 1 && engine.has_work());
            if !goes_on {
                break;
            }
        }
        if engine.is_gone() {
            return Next::Wait;
        }
        // What callbacks sent while the transport had its last look.
        Self::flush(&engine, false);
        self.resume_capped(&engine);
        engine.ending_turn.set(false);
        // A flush may have given back what was granted to one connection, and another was refused.
        if engine.has_work() || engine.owes_writable() { Next::Again } else { next }
    }

    fn poll(&mut self, _ev: &dyn EventLoop, budget: &mut Budget) -> Polled {
        let engine = self.engine();
        if engine.is_gone() {
            return Polled::NoDevice;
        }
        let polled = engine.transport.poll(&mut self.upcalls(), budget);
        if polled == Polled::Something && !engine.is_gone() {
            // An answer need not wait for the turn.
            Self::flush(&engine, false);
        }
        polled
    }

    fn may_sleep(&mut self, _ev: &dyn EventLoop) -> bool {
        let engine = self.view.engine();
        engine.is_gone() || engine.transport.may_sleep(engine)
    }
}

impl<T: Transport> Drop for Driver<T> {
    fn drop(&mut self) {
        self.view.engine().tear_down();
    }
}

impl<T: Transport> Engine<T> {
    /// Whether the end of a turn has something to do at once.
    pub(super) fn has_work(&self) -> bool {
        !self.over.borrow().is_empty() || !self.completed.borrow().is_empty() || !self.unflushed.borrow().is_empty()
    }

    /// Whether a connection is to be told *writable*.
    fn owes_writable(&self) -> bool {
        self.waiting.borrow().iter().any(|connection| self.is_writable_due(connection))
    }

    fn is_writable_due(&self, connection: &Connection<T::Link>) -> bool {
        connection.state() == State::Established && connection.is_writable_due(&self.ledger(connection), |len| self.has_room(len))
    }
}

impl<T: Transport> Upcalls<'_, T> {
    /// The engine.
    pub fn engine(&self) -> &Rc<Engine<T>> {
        self.view.engine()
    }

    /// Both hellos were accepted: the connection is established from here on, and the user told so.
    /// `peer_max_len` and `peer_heartbeat` are what the peer announced.
    pub fn established(
        &mut self,
        connection: &Rc<Connection<T::Link>>,
        local_address: EndPointAddress,
        peer_max_len: usize,
        peer_heartbeat: Duration,
    ) {
        let engine = self.view.engine();
        let now = engine.ev.now();
        let own = engine.config.max_message_len;
        let limits = Limits { max_message_len: own.min(peer_max_len), ..connection.limits.get() };
        connection.limits.set(limits);
        connection.state.set(State::Established);
        connection.since.set(now);
        let missed = engine.config.missed_heartbeats;
        *connection.liveness.borrow_mut() = Some(Liveness::new(engine.config.heartbeat_interval, peer_heartbeat, missed, now));
        engine.update_deadline(connection);
        engine.totals.established.add(1);
        let (endpoint, peer) = (connection.endpoint, connection.address);
        let incoming = connection.direction == Direction::Incoming;
        tracing::info!(backend = T::NAME, %endpoint, %peer, incoming, "connection established");
        let listener = connection.listener.as_ref().map(|listener| listener.address);
        let info = ConnectionInfo::new(endpoint, peer, connection.direction, listener, local_address, limits);
        self.callbacks.on_connection_established(self.view, &info);
    }

    /// Hands a message to the user; tells whether the next one may follow.
    #[inline]
    pub fn data(&mut self, connection: &Rc<Connection<T::Link>>, message: Message<'_>) -> bool {
        self.callbacks.on_data(self.view, connection.endpoint, &connection.address, message);
        self.view.engine().is_receiving(connection)
    }

    /// Hands the messages to the user that bytes begin with, one after the other for as long as the next one may follow;
    /// gives what he got, and how many bytes are left.
    #[inline]
    pub fn messages(&mut self, connection: &Rc<Connection<T::Link>>, bytes: &[u8], frames: Frames) -> (Taken, usize) {
        let mut messages = Messages::new(bytes, frames, &connection.meter, &connection.state, &connection.paused);
        self.callbacks.on_messages(self.view, connection.endpoint, &connection.address, &mut messages);
        messages.finish()
    }
}
