//! What is remembered of one connection.

use std::collections::VecDeque;
use std::time::Instant;

use super::message::Held;
use crate::address::EndPointAddress;
use crate::callbacks::ConnectionInfo;
use crate::config::Limits;
use crate::error::SendError;
use crate::status::{Completion, NetioStatus};

/// A connection: what was accepted and has not come back, and the faults it is under.
#[derive(Default)]
pub(super) struct Connection {
    established: Option<Established>,
    /// The user closes or aborts it.
    closing: bool,
    /// The lengths of the messages that were sent on and have not completed.
    sent_on: VecDeque<usize>,
    /// Accepted messages to be sent on later, all after those.
    held: VecDeque<Held>,
    /// The bytes of both.
    bytes: usize,
    debt: Debt,
    /// The user has paused it.
    paused: bool,
    stalled_until: Option<Instant>,
    doom: Doom,
    /// The backend behind takes nothing more, so *closed* is on its way.
    ending: bool,
}

struct Established {
    address: EndPointAddress,
    listener: Option<EndPointAddress>,
    limits: Limits,
}

/// Who is to be told *writable*.
#[derive(Default)]
struct Debt {
    /// The longest message that the user was refused, here or by the backend behind.
    refused: Option<usize>,
    /// The user was told that no buffer is free.
    no_buffer: bool,
    /// One is by now.
    buffer_free: bool,
    /// The backend behind refused a message, so it will say when there is room.
    by_inner: bool,
}

#[derive(Default, PartialEq)]
enum Doom {
    #[default]
    None,
    /// A reset was drawn and is carried out by the loop.
    Drawn,
    Reset,
}

impl Connection {
    pub(super) fn establish(&mut self, info: &ConnectionInfo) {
        self.established = Some(Established { address: info.address, listener: info.listener, limits: info.limits });
    }

    /// Notes that the user ends it; `true` when reading has to go on, for it was stalled.
    pub(super) fn close(&mut self) -> bool {
        self.closing = true;
        self.stalled_until.take().is_some() && !self.paused
    }

    pub(super) fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
    }

    // ----- faults -----

    pub(super) fn doom(&mut self) {
        if self.doom == Doom::None {
            self.doom = Doom::Drawn;
        }
    }

    /// Whether it is to be reset now.
    pub(super) fn take_doom(&mut self) -> bool {
        let due = self.doom == Doom::Drawn && self.is_open();
        if due {
            self.doom = Doom::Reset;
        }
        due
    }

    pub(super) fn stall(&mut self, until: Instant) {
        self.stalled_until = Some(until);
    }

    /// Whether a stall ends now and reading goes on.
    pub(super) fn end_stall(&mut self, now: Instant) -> bool {
        self.stalled_until.take_if(|until| *until <= now).is_some() && !self.paused
    }

    // ----- messages -----

    /// Whether a message of this length fits in the queue; an empty one takes any one message.
    pub(super) fn fits(&self, len: usize) -> bool {
        self.is_idle()
            || self.established.as_ref().is_some_and(|Established { limits, .. }| {
                self.sent_on.len() + self.held.len() < limits.queue_messages && self.bytes + len <= limits.queue_bytes
            })
    }

    pub(super) fn push_sent_on(&mut self, len: usize) {
        self.bytes += len;
        self.sent_on.push_back(len);
    }

    pub(super) fn push_held(&mut self, held: Held) {
        self.bytes += held.len();
        self.held.push_back(held);
    }

    /// The first held message, if it is due by `now`.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Held> {
        let is_due = self.held.front().is_some_and(|held| held.due <= now);
        // Although the backend behind may have refused something: perhaps a buffer, and this message has the last one.
        if is_due && !self.is_stalled() { self.pop_held() } else { None }
    }

    /// The first held message, due or not.
    pub(super) fn pop_held(&mut self) -> Option<Held> {
        if self.ending { None } else { self.held.pop_front() }
    }

    /// The popped message was sent on.
    pub(super) fn sent_on(&mut self, len: usize) {
        self.sent_on.push_back(len);
    }

    /// The popped message was not accepted; *closed* will have it, unless it was only a matter of room.
    /// `true` when the connection has to be reset for that.
    pub(super) fn put_back(&mut self, held: Held, outcome: Result<NetioStatus, SendError>) -> bool {
        self.held.push_front(held);
        match outcome {
            Ok(NetioStatus::NoResources) => self.debt.by_inner = true,
            Ok(NetioStatus::NotConnected) | Err(_) => self.ending = true,
            Ok(_) => {
                self.doom();
                return true;
            }
        }
        false
    }

    /// The first `n` of the messages sent on have completed.
    pub(super) fn complete(&mut self, n: usize) {
        self.bytes -= self.sent_on.drain(..n.min(self.sent_on.len())).sum::<usize>();
    }

    /// At the end: what was never sent on, in send order.
    pub(super) fn into_held(self) -> VecDeque<Held> {
        self.held
    }

    pub(super) fn held_completions(&self) -> impl Iterator<Item = Completion> {
        self.held.iter().map(Held::completion)
    }

    // ----- refusals and writable -----

    /// The user was refused a message of this length here.
    pub(super) fn refuse(&mut self, len: usize) {
        self.debt.refused = self.debt.refused.max(Some(len));
    }

    /// The user was refused one by the backend behind.
    pub(super) fn refused_by_inner(&mut self, len: usize) {
        self.refuse(len);
        self.debt.by_inner = true;
    }

    /// The backend behind has no buffer for the user.
    pub(super) fn no_buffer(&mut self) {
        (self.debt.no_buffer, self.debt.buffer_free) = (true, false);
    }

    /// The backend behind says *writable*.
    pub(super) fn writable_by_inner(&mut self) {
        self.debt.by_inner = false;
        self.debt.buffer_free = self.debt.no_buffer;
    }

    /// Whether the user is to be told *writable* now, and at what address; he will not be told again.
    pub(super) fn take_writable(&mut self) -> Option<EndPointAddress> {
        let due = match self.debt.refused {
            // Whatever buffers are free: he may hold them himself.
            Some(len) => !self.debt.by_inner && self.fits(len),
            None => self.debt.buffer_free,
        };
        if !due || !self.is_open() {
            return None;
        }
        // What is held may wait for the backend behind, too.
        self.debt = Debt { by_inner: self.debt.by_inner, ..Debt::default() };
        self.established.as_ref().map(|established| established.address)
    }

    pub(super) fn is_writable_owed(&self) -> bool {
        self.debt.refused.is_some() || self.debt.no_buffer
    }

    // ----- what it is like -----

    /// Whether messages go both ways.
    pub(super) fn is_open(&self) -> bool {
        self.established.is_some() && !self.closing && !self.ending && self.doom != Doom::Reset
    }

    /// Whether no accepted message is waiting to come back.
    pub(super) fn is_idle(&self) -> bool {
        self.sent_on.is_empty() && self.held.is_empty()
    }

    pub(super) fn has_held(&self) -> bool {
        !self.held.is_empty()
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.stalled_until.is_some()
    }

    /// Whether a reset ended it, whatever the user did afterwards.
    pub(super) fn was_reset(&self) -> bool {
        self.doom == Doom::Reset
    }

    pub(super) fn is_accepted_by(&self, listener: &EndPointAddress) -> bool {
        self.established.as_ref().is_some_and(|established| established.listener.as_ref() == Some(listener))
    }

    /// Whether the backend behind will call such a message too big.
    pub(super) fn is_too_big(&self, header_len: usize, len: usize) -> bool {
        self.established
            .as_ref()
            .is_some_and(|Established { limits, .. }| header_len > limits.max_header_len || len > limits.max_message_len)
    }

    /// Before when nothing more can be sent on.
    pub(super) fn held_until(&self) -> Option<Instant> {
        self.stalled_until.max(self.held.back().map(|held| held.due))
    }

    pub(super) fn holds(&self, region: (usize, usize)) -> bool {
        self.held.iter().any(|held| held.uses(region))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Direction;

    fn established() -> Connection {
        let address = EndPointAddress::localhost(1);
        let limits = Limits { max_message_len: 1_000, max_header_len: 256, queue_messages: 3, queue_bytes: 100 };
        let endpoint = crate::endpoint::EndpointIds::default().allocate(1).unwrap();
        let mut connection = Connection::default();
        connection.establish(&ConnectionInfo::new(endpoint, address, Direction::Outgoing, None, address, limits));
        connection
    }

    #[test]
    fn the_queue_has_the_limits_of_the_one_behind() {
        let mut connection = established();
        assert!(connection.fits(1_000), "an empty queue takes any one message");
        connection.push_sent_on(98);
        connection.push_sent_on(1);
        assert!(connection.fits(1) && !connection.fits(2));
        connection.push_sent_on(0);
        assert!(!connection.fits(0));
        connection.complete(1);
        assert!(connection.fits(99));
    }

    #[test]
    fn writable_waits_for_both_who_refused() {
        let mut connection = established();
        assert_eq!(connection.take_writable(), None);
        connection.push_sent_on(60);
        connection.push_sent_on(20);
        connection.refuse(70);
        connection.refused_by_inner(30);
        connection.writable_by_inner();
        assert_eq!(connection.take_writable(), None, "70 bytes do not fit");
        connection.refused_by_inner(30);
        connection.complete(1);
        assert_eq!(connection.take_writable(), None, "not yet told by the one behind");
        connection.writable_by_inner();
        assert!(connection.take_writable().is_some());
        assert_eq!(connection.take_writable(), None);
    }

    #[test]
    fn writable_waits_until_what_the_one_behind_refused_fits_beside_what_is_held() {
        let mut connection = established();
        connection.push_sent_on(60);
        connection.refused_by_inner(90);
        connection.writable_by_inner();
        assert_eq!(connection.take_writable(), None, "the one behind may know less of the queue");
        connection.complete(1);
        assert!(connection.take_writable().is_some());
    }

    #[test]
    fn writable_after_no_buffer_waits_for_one_unless_a_message_was_refused() {
        let mut connection = established();
        connection.push_sent_on(100);
        connection.no_buffer();
        assert_eq!(connection.take_writable(), None, "no buffer is free");
        connection.writable_by_inner();
        connection.no_buffer();
        assert_eq!(connection.take_writable(), None, "none is again");
        connection.writable_by_inner();
        assert!(connection.take_writable().is_some(), "a full queue does not matter");
        connection.no_buffer();
        connection.refuse(50);
        assert_eq!(connection.take_writable(), None, "50 bytes do not fit");
        connection.complete(1);
        assert!(connection.take_writable().is_some(), "a buffer does not matter");
        connection.writable_by_inner();
        assert_eq!(connection.take_writable(), None, "told already");
    }

    #[test]
    fn no_fault_and_no_writable_after_a_close() {
        let mut connection = established();
        connection.refuse(1);
        connection.doom();
        connection.close();
        assert!(!connection.take_doom() && !connection.was_reset());
        assert_eq!(connection.take_writable(), None);
    }
}
