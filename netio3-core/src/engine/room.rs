//! What a queue takes: its limits, and what of them is in use.

use std::collections::VecDeque;
use std::ops::{Add, Sub};

use crate::config::ConnectionParameters;
use crate::memory::{HeldRegions, RegionTable};

/// The room of a connection's queue.
///
/// A message counts until its completion is told, so that a callback which sends as long as it may comes to an end even when
/// everything leaves at once.
#[derive(Debug, Default)]
pub(crate) struct Room {
    limit: Amount,
    /// All that was ever accepted, and what of it was told.
    accepted: Amount,
    told: Amount,
    /// How far `accepted` may go without a look at any limit.
    granted: Amount,
    /// The largest message refused since the last *writable*.
    refused: Option<usize>,
}

/// Messages and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

impl Amount {
    pub(crate) fn min(self, other: Self) -> Self {
        Self { messages: self.messages.min(other.messages), bytes: self.bytes.min(other.bytes) }
    }

    pub(crate) fn saturating_sub(self, other: Self) -> Self {
        Self { messages: self.messages.saturating_sub(other.messages), bytes: self.bytes.saturating_sub(other.bytes) }
    }
}

impl Add for Amount {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { messages: self.messages + other.messages, bytes: self.bytes + other.bytes }
    }
}

impl Sub for Amount {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { messages: self.messages - other.messages, bytes: self.bytes - other.bytes }
    }
}

impl Room {
    pub(crate) fn new(params: &ConnectionParameters) -> Self {
        let limit = Amount { messages: params.queue_messages.max(1) as u64, bytes: params.queue_bytes as u64 };
        Self { limit, ..Self::default() }
    }

    /// All messages ever accepted.
    #[inline]
    pub(crate) fn accepted(&self) -> Amount {
        self.accepted
    }

    /// What of it was told.
    #[inline]
    pub(crate) fn told(&self) -> Amount {
        self.told
    }

    /// Accepted messages that were not told yet.
    #[inline]
    pub(crate) fn untold(&self) -> Amount {
        self.accepted - self.told
    }

    /// Whether there is no such message, so that any one fits.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.untold().messages == 0
    }

    /// Whether a message of this length fits; an empty queue takes any one.
    #[inline]
    pub(crate) fn fits(&self, len: usize) -> bool {
        let untold = self.untold();
        untold.messages == 0 || (untold.messages < self.limit.messages && len as u64 <= self.limit.bytes.saturating_sub(untold.bytes))
    }

    /// Whether a message of this length is within what was granted.
    #[inline]
    pub(crate) fn is_granted(&self, len: usize) -> bool {
        self.accepted.messages < self.granted.messages && self.accepted.bytes + len as u64 <= self.granted.bytes
    }

    /// How much more may be accepted without a look at any limit.
    #[inline]
    pub(crate) fn granted(&self) -> Amount {
        self.granted.saturating_sub(self.accepted)
    }

    /// Lets up to so much more be accepted without a look at any limit, as far as its own limits go; gives how much.
    pub(crate) fn grant(&mut self, more: Amount) -> Amount {
        let more = more.min(self.limit.saturating_sub(self.untold()));
        self.granted = self.accepted + more;
        more
    }

    /// Ends the grant; gives what is left of it.
    pub(crate) fn end_grant(&mut self) -> Amount {
        let left = self.granted();
        self.granted = Amount::default();
        left
    }

    /// A message was accepted.
    #[inline(always)]
    pub(crate) fn accept(&mut self, len: usize) {
        self.accept_run(1, len);
    }

    /// Messages of so many bytes together were.
    #[inline(always)]
    pub(crate) fn accept_run(&mut self, messages: usize, bytes: usize) {
        self.accepted.messages += messages as u64;
        self.accepted.bytes += bytes as u64;
    }

    /// So much is told.
    pub(crate) fn tell(&mut self, told: Amount) {
        self.told = self.told + told;
    }

    /// Notes a refusal.
    pub(crate) fn refuse(&mut self, len: usize) {
        self.refused = self.refused.max(Some(len));
    }

    /// The largest message refused since the last *writable*.
    pub(crate) fn refused(&self) -> Option<usize> {
        self.refused
    }

    pub(crate) fn clear_refusal(&mut self) {
        self.refused = None;
    }
}

/// The regions of accepted messages that hold some, each with the number of its message, of which the first has 0.
#[derive(Debug, Default)]
pub(crate) struct Holds(VecDeque<(u64, HeldRegions)>);

impl Holds {
    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The message with this number, which is accepted next, holds these, if any.
    #[inline(always)]
    pub(crate) fn push(&mut self, number: u64, held: HeldRegions) {
        if !held.is_none() {
            self.0.push_back((number, held));
        }
    }

    /// The messages below this number do not need theirs any more.
    pub(crate) fn release_below(&mut self, number: u64, regions: &mut RegionTable) {
        while let Some((_, held)) = self.0.front().copied().filter(|(held_by, _)| *held_by < number) {
            self.0.pop_front();
            regions.release(held);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(queue_messages: usize, queue_bytes: usize) -> Room {
        Room::new(&ConnectionParameters { queue_messages, queue_bytes, ..Default::default() })
    }

    #[test]
    fn an_empty_queue_takes_any_one_message() {
        let mut room = room(2, 100);
        assert!(room.fits(5_000));
        room.accept(5_000);
        assert!(room.fits(0) && !room.fits(1), "full of bytes");
        room.refuse(7);
        room.refuse(3);
        assert_eq!(room.refused(), Some(7));
    }

    #[test]
    fn a_grant_stays_within_the_limits_of_the_queue() {
        let mut room = room(3, 100);
        room.accept(10);
        assert!(!room.is_granted(0));
        assert_eq!(room.grant(Amount { messages: 50, bytes: 1_000 }), Amount { messages: 2, bytes: 90 });
        assert!(room.is_granted(90) && !room.is_granted(91));
        room.accept(60);
        assert!(room.is_granted(30) && !room.is_granted(31));
        assert_eq!(room.end_grant(), Amount { messages: 1, bytes: 30 });
        assert!(!room.is_granted(0) && room.fits(30));
        room.accept(5_000);
        assert_eq!(room.grant(Amount { messages: 50, bytes: 1_000 }), Amount::default(), "an oversized one used more than there is");
        assert_eq!(room.end_grant(), Amount::default());
    }

    #[test]
    fn a_queue_without_limits_is_granted_room_however_much_was_told() {
        let mut room = room(usize::MAX, usize::MAX);
        room.accept(10);
        room.tell(Amount { messages: 1, bytes: 10 });
        assert_eq!(room.grant(Amount { messages: 5, bytes: 50 }), Amount { messages: 5, bytes: 50 });
        assert_eq!((room.is_empty(), room.accepted()), (true, Amount { messages: 1, bytes: 10 }));
    }

    #[test]
    fn regions_are_held_until_their_message_is_done() {
        let mut table = RegionTable::new(1, false);
        let region = crate::MemoryRegion::new(64).unwrap();
        let id = table.reserve().unwrap();
        table.enter(id, &region);
        let held = table.find(&[(region.address(), 8)]).unwrap();
        table.hold(held);
        let mut holds = Holds::default();
        holds.push(4, HeldRegions::default());
        holds.push(5, held);
        holds.release_below(5, &mut table);
        assert!(table.deregister(id).is_err());
        holds.release_below(6, &mut table);
        assert!(table.deregister(id).is_ok());
    }
}
