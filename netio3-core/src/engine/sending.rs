//! What is sent on connections: granted, counted, completed, and listed for the end of the turn.

use std::cell::RefMut;
use std::rc::Rc;

use crate::engine::core::Rcc;
use crate::engine::room::Amount;
use crate::engine::staging::Staging;
use crate::engine::{Connection, Engine, Ledger, Outgoing, Payload, RUN_HEAD_LEN, State, Transport};
use crate::status::Completion;

/// The longest message that has those behind it staged, in bytes.
const LONGEST_STAGED: usize = 8 << 10;

impl<T: Transport> Engine<T> {
    /// Bytes of a connection's stream left, in which every message is preceded by a head of `head` bytes.
    pub fn left_bytes(&self, connection: &Rc<Connection<T::Link>>, n: usize, head: usize) {
        let sent = self.ledger(connection).complete_bytes(n, head, &mut self.regions.borrow_mut());
        self.left(connection, sent);
    }

    /// The first `n` messages of a connection's queue left.
    pub fn left_messages(&self, connection: &Rc<Connection<T::Link>>, n: usize) {
        let sent = self.ledger(connection).complete_messages(n, &mut self.regions.borrow_mut());
        self.left(connection, sent);
    }

    fn left(&self, connection: &Rcc<T>, sent: Amount) {
        let now = self.ev.now();
        // What this turn took until now is not the peer's fault.
        let may_stall = connection.params.stall_timeout.is_some() && self.has_unsent(connection);
        connection.progress.set(if may_stall { self.ev.clock() } else { now });
        if let Some(liveness) = &mut *connection.liveness.borrow_mut() {
            liveness.sent(now);
        }
        if sent.messages == 0 {
            return;
        }
        connection.counters.messages_sent.add(sent.messages);
        connection.counters.bytes_sent.add(sent.bytes);
        self.totals.messages_sent.add(sent.messages);
        self.totals.bytes_sent.add(sent.bytes);
        self.queued.set(self.queued.get() - sent);
        self.count_queue(connection);
        if self.ledger(connection).messages() == 0 {
            self.trim_later(connection);
        }
        self.retire_soon(connection);
    }

    /// Has what completed told, and memory dropped that the transport is done with, though nothing may have left.
    pub fn retire_soon(&self, connection: &Rc<Connection<T::Link>>) {
        if !connection.listed.completed.replace(true) {
            self.completed.borrow_mut().push_back(connection.clone());
            self.end_turn_soon();
        }
    }

    /// Everything accepted on a connection that did not complete, at its end.
    pub(super) fn take_pending(&self, connection: &Connection<T::Link>) -> Vec<Completion> {
        self.end_grant(connection);
        let mut ledger = self.ledger(connection);
        self.queued.set(self.queued.get() - ledger.queued());
        let pending = ledger.take_pending(&mut self.regions.borrow_mut());
        drop(ledger);
        self.count_queue(connection);
        pending
    }

    /// Brings the counters of what a connection has accepted and queued up to date, and ends its grant: not for each
    /// message, but when something is flushed, leaves or is refused, and when the user asks for them.
    pub(super) fn count_queue(&self, connection: &Connection<T::Link>) {
        self.end_grant(connection);
        let ledger = self.ledger(connection);
        let newly = ledger.accepted() - connection.counted.replace(ledger.accepted());
        self.totals.messages_accepted.add(newly);
        self.count_queues();
        if !self.is_fronted() {
            connection.counters.messages_accepted.set(ledger.accepted());
            connection.counters.queued_messages.set(ledger.queued().messages);
            connection.counters.queued_bytes.set(ledger.queued().bytes);
        }
    }

    /// The same for the backend's levels.
    pub(super) fn count_queues(&self) {
        self.totals.queued_messages.set(self.queued.get().messages);
        self.totals.queued_bytes.set(self.queued.get().bytes);
    }

    /// Whether the backend's queues together have room for a message.
    #[inline]
    pub(super) fn has_room(&self, len: usize) -> bool {
        let queued = self.queued.get();
        queued.messages < self.config.total_queue_messages as u64 && queued.bytes + len as u64 <= self.config.total_queue_bytes as u64
    }

    /// How much more may wait on a connection, of which `unsent` bytes do, before it is flushed; `None` when it is time.
    pub(super) fn until_flush(&self, connection: &Connection<T::Link>, unsent: usize) -> Option<Amount> {
        let params = &connection.params;
        let newly = self.ledger(connection).accepted() - connection.flushed.get();
        let messages = (params.flush_messages.unwrap_or(T::FLUSH_MESSAGES) as u64).checked_sub(newly).filter(|rest| *rest > 0)?;
        let bytes = (params.flush_at as u64).checked_sub(unsent as u64).filter(|rest| *rest > 0)?;
        Some(Amount { messages, bytes })
    }

    /// Whether a message is like those that are [staged](Self::grant): copied, and many go into a write.
    pub(super) fn is_stageable(&self, connection: &Connection<T::Link>, message: &Outgoing<'_>) -> bool {
        let is_copied = match message.payload {
            Payload::Copied(_) => true,
            Payload::Shared(_) => message.len < self.shared_staged_below(connection),
            Payload::Raw(_) | Payload::Buffer(_) => false,
        };
        T::RUN_HEAD.is_some() && is_copied && message.len <= LONGEST_STAGED
    }

    /// Shared messages shorter than this can be staged: those that are copied and lie in no region.
    fn shared_staged_below(&self, connection: &Connection<T::Link>) -> usize {
        if self.look_up_regions.get() { 0 } else { connection.params.copy_below.saturating_add(1) }
    }

    /// A queue that was empty has something, or may have before anybody looks.
    #[inline]
    pub(super) fn begin_queue(&self, connection: &Connection<T::Link>) {
        connection.filled.set(true);
        if connection.params.stall_timeout.is_some() {
            // A deadline that passes before the flush must not find it as old as the last message.
            connection.progress.set(self.ev.now());
        }
    }

    /// Lets an established connection accept messages without a look at its state or any limit, until the one with which
    /// so much more waits or it is flushed, which it must be listed for. Whatever changes its state ends the grant,
    /// but for the end of the backend, after which no handle is known.
    ///
    /// `stage`: the messages to come are staged, if nobody else's are and there is room for one of so many bytes.
    pub(super) fn grant(&self, connection: &Connection<T::Link>, rest: Amount, stage: Option<usize>) {
        if connection.state() != State::Established {
            return;
        }
        let limit = Amount { messages: self.config.total_queue_messages as u64, bytes: self.config.total_queue_bytes as u64 };
        let queued = self.queued.get();
        // Only while there is plenty: what connections hold unused is then no reason to refuse others.
        if queued.messages > limit.messages / 2 || queued.bytes > limit.bytes / 2 {
            return;
        }
        // Small limits are kept to the message.
        let portion = Amount { messages: limit.messages / 1_024, bytes: limit.bytes / 1_024 };
        let messages = (rest.messages - 1).min(rest.bytes / 64).min(portion.messages);
        if messages == 0 {
            return;
        }
        let mut staging = self.staging.borrow_mut();
        let stage = stage.filter(|_| staging.is_free());
        // Heads are counted when a message is staged; otherwise there has to be room for those of so many.
        let heads = if stage.is_some() { 0 } else { RUN_HEAD_LEN as u64 * messages };
        let bytes = (rest.bytes - heads).min(connection.limits.get().max_message_len as u64);
        let mut ledger = connection.own_ledger.borrow_mut();
        let granted = ledger.room.grant(Amount { messages, bytes }.min(portion));
        let is_empty = ledger.messages() == 0;
        drop(ledger);
        self.queued.set(queued + granted);
        if is_empty {
            // Nobody looks whether it is when a message within the grant comes.
            self.begin_queue(connection);
        }
        let is_enough = |len: &usize| granted.messages > 0 && granted.bytes >= (RUN_HEAD_LEN + len) as u64;
        if let Some(copies) = stage.filter(is_enough).and_then(|_| self.transport.lend(connection)) {
            let ledger = connection.own_ledger.take();
            let max_header_len = connection.limits.get().max_header_len;
            let shared_below = self.shared_staged_below(connection);
            staging.open(connection.endpoint, ledger, copies, granted.bytes as usize, max_header_len, shared_below);
            connection.is_staging.set(true);
        }
    }

    /// Gives the connection that is staging its ledger and its queue back, and ends its grant.
    #[inline(never)]
    pub(super) fn settle(&self) {
        let Some(staged) = self.staging.borrow_mut().close() else { return };
        // Whatever ends its grant settles, and its end does before it leaves the table.
        let connection = self.get(staged.owner).expect("who is staging is in the table");
        connection.is_staging.set(false);
        connection.own_ledger.replace(staged.ledger);
        self.transport.give_back(&connection, staged.copies);
        connection.counters.copied_messages.add(staged.shared);
        self.end_grant(&connection);
    }

    /// The same if it is this connection; for transports, before its queue is used.
    #[inline]
    pub fn settle_of(&self, connection: &Connection<T::Link>) {
        if self.is_staging(connection) {
            self.settle();
        }
    }

    #[inline]
    pub(super) fn is_staging(&self, connection: &Connection<T::Link>) -> bool {
        T::RUN_HEAD.is_some() && connection.is_staging.get()
    }

    /// The ledger of a connection, wherever it is.
    #[inline]
    pub(super) fn ledger<'a>(&'a self, connection: &'a Connection<T::Link>) -> RefMut<'a, Ledger> {
        if self.is_staging(connection) {
            return RefMut::map(self.staging.borrow_mut(), Staging::ledger);
        }
        connection.own_ledger.borrow_mut()
    }

    /// Whether messages that were accepted have not left.
    pub fn has_unsent(&self, connection: &Connection<T::Link>) -> bool {
        self.ledger(connection).messages() > 0
    }

    /// Enters a frame of the transport's own into the order of completions.
    pub fn push_control(&self, connection: &Connection<T::Link>) {
        self.ledger(connection).push_control();
    }

    pub(super) fn end_grant(&self, connection: &Connection<T::Link>) {
        if self.is_staging(connection) {
            return self.settle();
        }
        let unspent = connection.own_ledger.borrow_mut().room.end_grant();
        if unspent != Amount::default() {
            self.queued.set(self.queued.get() - unspent);
            // They may have been counted with it, for another connection, and nothing more may come.
            self.count_queues();
        }
    }

    /// Sends what a connection has queued, as far as it goes without waiting.
    pub(super) fn flush(&self, connection: &Rc<Connection<T::Link>>) {
        self.end_grant(connection);
        self.transport.flush(self, connection);
        self.flushed(connection);
    }

    /// Sends what a connection has queued, as far as it is worth it before the end of the turn; gives the bytes that wait
    /// for more.
    pub(super) fn flush_full(&self, connection: &Rc<Connection<T::Link>>) -> usize {
        self.end_grant(connection);
        let unsent = self.transport.flush_full(self, connection);
        self.flushed(connection);
        self.flush_later(connection);
        unsent
    }

    fn flushed(&self, connection: &Connection<T::Link>) {
        connection.flushed.set(self.ledger(connection).accepted());
        // What is to be sent should not wait for being counted, and is if it left.
        if connection.counted.get() != connection.flushed.get() {
            self.count_queue(connection);
        }
        let filled = connection.filled.take();
        if (filled || !connection.listed.untrimmed.get()) && self.ledger(connection).messages() > 0 {
            self.watch_queue(connection, filled);
        }
    }

    /// Makes sure that what was listed is found.
    pub(super) fn end_turn_soon(&self) {
        if !self.ending_turn.get() {
            self.ev.schedule();
        }
    }

    /// Has a connection flushed at the end of the turn.
    #[inline]
    pub fn flush_later(&self, connection: &Rc<Connection<T::Link>>) {
        if !connection.listed.unflushed.replace(true) {
            self.list_unflushed(connection);
        }
    }

    #[cold]
    fn list_unflushed(&self, connection: &Rcc<T>) {
        self.unflushed.borrow_mut().push_back(connection.clone());
        self.end_turn_soon();
    }

    /// Counts a call or post that sent something.
    #[inline]
    pub fn count_write(&self, connection: &Connection<T::Link>) {
        connection.counters.writes.add(1);
        self.totals.writes.add(1);
    }

    /// Counts a post that asked for a completion of its own.
    #[inline]
    pub fn count_signalled(&self, connection: &Connection<T::Link>) {
        connection.counters.signalled.add(1);
        self.totals.signalled.add(1);
    }
}
