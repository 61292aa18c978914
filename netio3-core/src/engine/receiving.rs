//! What arrives on connections: whether it is delivered, and counting it.

use std::io;
use std::rc::Rc;
use std::sync::Once;

use crate::engine::core::Rcc;
use crate::engine::{Connection, Engine, State, Transport};
use crate::event_loop::Ready;

/// What to do with messages that arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reception {
    /// Hand them to the user.
    Deliver,
    /// Paused, or at the cap on what the user took over: keep what has come, and take no more.
    Hold,
    /// Closing, and paused: the user does not want them, but the goodbye behind them is needed.
    Discard,
    /// The connection is over.
    Stop,
}

/// What a read or a packet brought.
#[derive(Clone, Copy, Debug, Default)]
pub struct Brought {
    /// Messages handed to the user.
    pub messages: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Messages that are not delivered.
    pub discarded: u64,
}

impl Brought {
    /// Counts a message; tells whether it is to be handed to the user.
    #[inline]
    pub fn take(&mut self, reception: Reception, len: usize) -> bool {
        let is_delivered = reception == Reception::Deliver;
        if is_delivered {
            self.messages += 1;
            self.bytes += len;
        } else {
            self.discarded += 1;
        }
        is_delivered
    }
}

impl<T: Transport> Engine<T> {
    /// Counts a call or completion that brought something.
    #[inline]
    pub fn count_read(&self, connection: &Connection<T::Link>) {
        connection.counters.reads.add(1);
        self.totals.reads.add(1);
    }

    /// What is to be done with messages of a connection now.
    ///
    /// Once one was discarded, so are those after it, since what the user gets has no gaps.
    pub fn reception(&self, connection: &Rc<Connection<T::Link>>) -> Reception {
        match connection.state() {
            State::Closed(_) | State::Refused(_) => Reception::Stop,
            State::Opening => Reception::Deliver,
            State::Closing(_) if connection.is_paused() || connection.discarding.get() => Reception::Discard,
            _ if self.is_receiving(connection) => Reception::Deliver,
            _ => Reception::Hold,
        }
    }

    /// Brings the backend's count of memory for what is not delivered yet up to date, of which this connection holds
    /// `held` bytes now; `false` when it exceeds the limit.
    pub fn count_assembly(&self, connection: &Connection<T::Link>, held: usize) -> bool {
        // What is over was subtracted when it was released.
        let held = if connection.is_over() { 0 } else { held };
        let before = connection.counted_assembly.replace(held);
        if before == held {
            return true;
        }
        let total = &self.totals.assembly_bytes;
        total.set(total.get() + held as u64 - before as u64);
        held < before || total.get() <= self.config.total_assembly_bytes as u64
    }

    /// Notes that bytes arrived from the peer, whatever they mean.
    pub fn heard(&self, connection: &Connection<T::Link>) {
        if let Some(liveness) = &mut *connection.liveness.borrow_mut() {
            liveness.received(self.ev.now());
        }
    }

    /// Counts what a read or a packet brought.
    pub fn count_brought(&self, connection: &Connection<T::Link>, brought: Brought) {
        let (messages, bytes) = (brought.messages as u64, brought.bytes as u64);
        connection.counters.messages_received.add(messages);
        connection.counters.bytes_received.add(bytes);
        self.totals.messages_received.add(messages);
        self.totals.bytes_received.add(bytes);
        if brought.discarded > 0 {
            self.count_discarded(connection, brought.discarded);
        }
    }

    /// Counts messages that arrived and are not delivered.
    pub fn count_discarded(&self, connection: &Connection<T::Link>, messages: u64) {
        connection.discarding.set(true);
        connection.counters.messages_discarded.add(messages);
        self.totals.messages_discarded.add(messages);
    }

    /// Whether messages may be delivered now: the connection is not over, not paused, and below the caps on
    /// what the user took over. Otherwise the transport keeps what it has read and stops reading; it is
    /// called as readable again when that changes.
    ///
    /// A cap once found reached holds until the end of the turn, whatever other threads drop meanwhile: who
    /// asks twice in a turn gets the same answer, so that nothing overtakes what was kept.
    #[inline]
    pub(super) fn is_receiving(&self, connection: &Rc<Connection<T::Link>>) -> bool {
        if connection.is_over() || connection.paused.get() || connection.listed.capped.get() {
            return false;
        }
        !connection.meter.is_full() || self.hold_back(connection)
    }

    /// Lists a connection that has reached a cap; `false`, since it does not receive.
    #[cold]
    fn hold_back(&self, connection: &Rcc<T>) -> bool {
        connection.listed.capped.set(true);
        self.capped.borrow_mut().push(connection.clone());
        false
    }

    /// Says once that what was polled cannot be watched again, so that the loop goes on without sleeping.
    #[cold]
    pub fn cannot_watch(&self, error: &io::Error) {
        static SAID: Once = Once::new();
        SAID.call_once(|| {
            tracing::warn!(backend = T::NAME, %error, "cannot watch a descriptor again: the loop goes on without sleeping");
        });
    }

    /// Has the transport called as readable again for this connection, in the next turn.
    pub fn read_again(&self, connection: &Connection<T::Link>) {
        self.ev.redeliver(self.source(), connection.endpoint.slot(), Ready::READABLE);
    }

    /// Has a connection read again that did not receive for a while.
    pub(super) fn resume_reading(&self, connection: &Connection<T::Link>) {
        if let Some(liveness) = &mut *connection.liveness.borrow_mut() {
            liveness.set_reading(true, self.ev.now());
        }
        // The peer was not judged meanwhile, so that there may be no deadline at all.
        self.update_deadline(connection);
        self.read_again(connection);
    }
}
