//! The accepted messages of a connection until they come back.

use std::collections::VecDeque;
use std::ops::{Add, Sub};

use crate::backend::CopiedMessage;
use crate::config::ConnectionParameters;
use crate::memory::{HeldRegions, RegionTable};
use crate::status::{Completion, CompletionKind};

/// What was accepted and has not completed, in send order, and what has completed and was not told yet.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// From `first` on those that have completed and were not told, from `next` on those that have not completed.
    records: Vec<Completion>,
    first: usize,
    next: usize,
    /// The regions of those that hold some, each with the number of its record.
    held: VecDeque<(u64, HeldRegions)>,
    /// The number of the record at `next`.
    passed: u64,
    /// The bytes of all that was ever accepted.
    accepted_bytes: u64,
    /// What of it has completed, and what of that was told.
    left: Amount,
    told: Amount,
    /// How far `records` and `accepted_bytes` may go without a look at any limit.
    granted_records: usize,
    granted_bytes: u64,
    limit: Amount,
    /// The numbers of those that are frames of the transport's own, until they complete.
    controls: VecDeque<u64>,
    /// Stream bytes that left and belong to the record at `next`.
    credit: usize,
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

impl Ledger {
    pub(crate) fn new(params: &ConnectionParameters) -> Self {
        let limit = Amount { messages: params.queue_messages.max(1) as u64, bytes: params.queue_bytes as u64 };
        Self { limit, ..Self::default() }
    }

    /// Accepted messages that have not completed.
    #[inline]
    pub(crate) fn queued(&self) -> Amount {
        let messages = self.records.len() - self.next - self.controls.len();
        Amount { messages: messages as u64, bytes: self.accepted_bytes - self.left.bytes }
    }

    /// The number of them.
    #[inline]
    pub(crate) fn messages(&self) -> usize {
        self.queued().messages as usize
    }

    /// Their bytes.
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.queued().bytes as usize
    }

    /// All messages ever accepted.
    pub(crate) fn accepted(&self) -> u64 {
        self.left.messages + self.queued().messages
    }

    /// Accepted messages that were not told yet.
    #[inline]
    fn untold(&self) -> Amount {
        self.left + self.queued() - self.told
    }

    /// Whether a message of this length fits; an empty queue takes any one.
    ///
    /// A message counts until its completion is told, so that a callback which sends as long as it may comes
    /// to an end even when everything leaves at once.
    #[inline]
    pub(crate) fn fits(&self, len: usize) -> bool {
        let untold = self.untold();
        untold.messages == 0 || (untold.messages < self.limit.messages && len as u64 <= self.limit.bytes.saturating_sub(untold.bytes))
    }

    /// Whether nothing is queued, so that any one message fits.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.untold().messages == 0
    }

    /// Whether a message of this length is within what was granted.
    #[inline]
    pub(crate) fn is_granted(&self, len: usize) -> bool {
        self.records.len() < self.granted_records && self.accepted_bytes + len as u64 <= self.granted_bytes
    }

    /// How many more messages may be accepted without a look at any limit.
    #[inline]
    pub(crate) fn granted_messages(&self) -> usize {
        self.granted_records.saturating_sub(self.records.len())
    }

    /// How many bytes more.
    #[inline]
    pub(crate) fn granted_bytes(&self) -> usize {
        self.granted_bytes.saturating_sub(self.accepted_bytes) as usize
    }

    /// Lets up to so much more be accepted without a look at any limit, as far as its own limits go; gives how much.
    pub(crate) fn grant(&mut self, more: Amount) -> Amount {
        let more = more.min(self.limit.saturating_sub(self.untold()));
        self.granted_records = self.records.len() + more.messages as usize;
        self.granted_bytes = self.accepted_bytes + more.bytes;
        more
    }

    /// Ends the grant; gives what is left of it.
    pub(crate) fn end_grant(&mut self) -> Amount {
        let (messages, bytes) = (self.granted_messages() as u64, self.granted_bytes() as u64);
        (self.granted_records, self.granted_bytes) = (0, 0);
        Amount { messages, bytes }
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

    #[inline(always)]
    pub(crate) fn push(&mut self, key: u64, kind: CompletionKind, len: usize) {
        self.accepted_bytes += len as u64;
        self.records.push(Completion { key, kind, len: len as u32 });
    }

    /// Whether another message may be pushed without a look at any limit, and there is memory for its record.
    #[inline(always)]
    pub(crate) fn has_granted_record(&self) -> bool {
        self.records.len() < self.granted_records && self.records.len() < self.records.capacity()
    }

    /// Enters copied messages, of so many bytes together, that hold no regions.
    pub(crate) fn push_copies(&mut self, messages: &[CopiedMessage<'_>], bytes: usize) {
        self.accepted_bytes += bytes as u64;
        let record = |message: &CopiedMessage<'_>| Completion { key: message.key, kind: CompletionKind::Copy, len: message.len() as u32 };
        self.records.extend(messages.iter().map(record));
    }

    /// The next message holds these regions, if any.
    #[inline(always)]
    pub(crate) fn hold(&mut self, held: HeldRegions) {
        if !held.is_none() {
            self.held.push_back((self.next_number(), held));
        }
    }

    /// The number that the next record gets.
    fn next_number(&self) -> u64 {
        self.passed + (self.records.len() - self.next) as u64
    }

    /// The latest `n` messages.
    pub(crate) fn latest(&self, n: usize) -> &[Completion] {
        &self.records[self.records.len() - n..]
    }

    /// Enters messages of so many bytes together, that hold no regions.
    pub(crate) fn push_run(&mut self, messages: &[Completion], bytes: usize) {
        self.accepted_bytes += bytes as u64;
        self.records.extend_from_slice(messages);
    }

    /// Enters a frame of the transport's own, which completes in turn without being told to anybody.
    pub(crate) fn push_control(&mut self) {
        self.controls.push_back(self.next_number());
        // It does not use up what is granted.
        self.granted_records += usize::from(self.granted_records > 0);
        self.records.push(Completion { key: 0, kind: CompletionKind::Copy, len: 0 });
    }

    /// `n` bytes of a stream left, in which every message is preceded by a head of `head` bytes.
    pub(crate) fn complete_bytes(&mut self, n: usize, head: usize, regions: &mut RegionTable) -> Amount {
        let waiting = &self.records[self.next..];
        let frame = |message: &Completion| head + message.len as usize;
        let mut credit = self.credit + n;
        let mut whole = 0;
        let behind = (self.bytes() + head * waiting.len()).saturating_sub(credit);
        if behind < credit {
            // Most of them, as after most writes: those that have not left are counted.
            whole = waiting.len();
            let mut counted = 0;
            while counted < behind && whole > 0 {
                whole -= 1;
                counted += frame(&waiting[whole]);
            }
            credit = counted.saturating_sub(behind);
        } else {
            for message in waiting {
                let Some(rest) = credit.checked_sub(frame(message)) else { break };
                credit = rest;
                whole += 1;
            }
        }
        self.credit = credit;
        self.complete_messages(whole, regions)
    }

    /// The first `n` records left.
    pub(crate) fn complete_messages(&mut self, n: usize, regions: &mut RegionTable) -> Amount {
        let n = n.min(self.records.len() - self.next);
        let left = self.next..self.next + n;
        let count = |messages: &[Completion]| messages.iter().map(|message| u64::from(message.len)).sum();
        let bytes = if left.end == self.records.len() { self.queued().bytes } else { count(&self.records[left]) };
        let controls = self.drop_controls(n);
        let done = Amount { messages: (n - controls) as u64, bytes };
        self.left = self.left + done;
        self.next += n - controls;
        self.passed += n as u64;
        self.release_passed(regions);
        done
    }

    /// Takes the frames of the transport's own out of the next `n` records; gives how many those were.
    fn drop_controls(&mut self, n: usize) -> usize {
        let mut dropped = 0;
        while let Some(number) = self.controls.front().filter(|number| **number < self.passed + n as u64) {
            let at = self.next + (number - self.passed) as usize - dropped;
            self.controls.pop_front();
            self.records.remove(at);
            self.granted_records = self.granted_records.saturating_sub(1);
            dropped += 1;
        }
        dropped
    }

    fn release_passed(&mut self, regions: &mut RegionTable) {
        while let Some((number, held)) = self.held.front().copied() {
            if number >= self.passed {
                break;
            }
            self.held.pop_front();
            regions.release(held);
        }
    }

    /// Completions that were not told yet; the given empty vector is taken in exchange, for its memory.
    pub(crate) fn take_completed(&mut self, mut spare: Vec<Completion>) -> Vec<Completion> {
        self.told = self.left;
        if self.first == 0 && 2 * self.next >= self.records.len() {
            // They stay where they are, and the fewer that have not completed move.
            spare.extend_from_slice(&self.records[self.next..]);
            std::mem::swap(&mut self.records, &mut spare);
            spare.truncate(self.next);
            self.begin_at_next();
        } else {
            spare.extend_from_slice(&self.records[self.first..self.next]);
            self.first = self.next;
            // So that each is moved at most once on average.
            if 2 * self.next > self.records.len() {
                self.records.drain(..self.next);
                self.begin_at_next();
            }
        }
        spare
    }

    /// The records before `next` have been taken out.
    fn begin_at_next(&mut self) {
        self.granted_records = self.granted_records.saturating_sub(self.next);
        (self.first, self.next) = (0, 0);
    }

    pub(crate) fn has_completed(&self) -> bool {
        self.first < self.next
    }

    /// Everything that has not completed, at the end of a connection.
    pub(crate) fn take_pending(&mut self, regions: &mut RegionTable) -> Vec<Completion> {
        let (queued, completed) = (self.queued(), self.next);
        self.complete_messages(usize::MAX, regions);
        // They count as told at once, since that is what follows.
        self.told = self.told + queued;
        self.next = completed;
        (self.granted_records, self.granted_bytes) = (0, 0);
        self.records.split_off(completed)
    }

    /// Gives the memory of an empty ledger back.
    pub(crate) fn trim(&mut self) {
        if self.first == self.records.len() {
            self.begin_at_next();
            self.records = Vec::new();
            self.held = VecDeque::new();
            self.controls = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(queue_messages: usize, queue_bytes: usize) -> Ledger {
        Ledger::new(&ConnectionParameters { queue_messages, queue_bytes, ..Default::default() })
    }

    fn push(ledger: &mut Ledger, key: u64, len: usize) {
        ledger.push(key, CompletionKind::Copy, len);
    }

    fn keys(ledger: &mut Ledger) -> Vec<u64> {
        ledger.take_completed(Vec::new()).iter().map(|completion| completion.key).collect()
    }

    #[test]
    fn bytes_complete_whole_messages_in_order() {
        let mut regions = RegionTable::new(0, false);
        let mut ledger = ledger(10, 1_000);
        push(&mut ledger, 1, 10);
        ledger.push_control();
        push(&mut ledger, 2, 0);
        assert_eq!(ledger.complete_bytes(17, 8, &mut regions), Amount::default());
        assert_eq!(ledger.complete_bytes(1, 8, &mut regions), Amount { messages: 1, bytes: 10 });
        assert_eq!(keys(&mut ledger), [1]);
        assert_eq!(ledger.complete_bytes(16, 8, &mut regions), Amount { messages: 1, bytes: 0 });
        assert_eq!(keys(&mut ledger), [2]);
        assert_eq!((ledger.messages(), ledger.bytes()), (0, 0));
    }

    #[test]
    fn bytes_complete_the_same_messages_however_they_are_cut() {
        const HEAD: usize = 8;
        // Every fifth is a frame of the transport's own.
        let len = |at: usize| if at % 5 == 4 { 0 } else { at * 37 % 90 };
        let ends: Vec<usize> = (0..200).scan(0, |end, at| Some(std::mem::replace(end, *end + HEAD + len(at)) + HEAD + len(at))).collect();
        let all = ends[199];
        for cut in [1, 7, 90, 1_000, all - 1, all] {
            let mut regions = RegionTable::new(0, false);
            let mut ledger = ledger(1_000, 100_000);
            for at in 0..200 {
                if at % 5 == 4 { ledger.push_control() } else { push(&mut ledger, at as u64, len(at)) }
            }
            let mut told = Vec::new();
            for from in (0..all).step_by(cut) {
                let to = all.min(from + cut);
                ledger.complete_bytes(to - from, HEAD, &mut regions);
                told.extend(keys(&mut ledger));
                let expected = (0..200).filter(|at| ends[*at] <= to && at % 5 != 4).map(|at| at as u64);
                assert!(expected.eq(told.iter().copied()), "{to} bytes, {cut} at once");
                assert_eq!(ledger.messages() + told.len(), 160);
            }
            assert_eq!(ledger.bytes(), 0);
        }
    }

    #[test]
    fn an_empty_queue_takes_any_one_message() {
        let mut ledger = ledger(2, 100);
        assert!(ledger.fits(5_000));
        push(&mut ledger, 1, 5_000);
        assert!(ledger.fits(0) && !ledger.fits(1), "full of bytes");
        ledger.refuse(7);
        ledger.refuse(3);
        assert_eq!(ledger.refused(), Some(7));
    }

    #[test]
    fn a_grant_stays_within_the_limits_of_the_queue() {
        let mut ledger = ledger(3, 100);
        push(&mut ledger, 1, 10);
        assert!(!ledger.is_granted(0));
        assert_eq!(ledger.grant(Amount { messages: 50, bytes: 1_000 }), Amount { messages: 2, bytes: 90 });
        assert!(ledger.is_granted(90) && !ledger.is_granted(91));
        push(&mut ledger, 2, 60);
        assert!(ledger.is_granted(30) && !ledger.is_granted(31));
        assert_eq!(ledger.end_grant(), Amount { messages: 1, bytes: 30 });
        assert!(!ledger.is_granted(0) && ledger.fits(30));
        push(&mut ledger, 3, 5_000);
        assert_eq!(ledger.grant(Amount { messages: 50, bytes: 1_000 }), Amount::default(), "an oversized one used more than there is");
        assert_eq!(ledger.end_grant(), Amount::default());
    }

    #[test]
    fn what_is_granted_is_not_used_up_by_anything_but_messages() {
        let mut ledger = ledger(100, 1_000);
        (1..=5).for_each(|key| push(&mut ledger, key, 1));
        assert_eq!(ledger.grant(Amount { messages: 3, bytes: 100 }), Amount { messages: 3, bytes: 100 });
        ledger.push_control();
        push(&mut ledger, 6, 1);
        // The records move to the front of their memory.
        ledger.complete_messages(5, &mut RegionTable::new(0, false));
        push(&mut ledger, 7, 1);
        assert!(ledger.is_granted(98) && !ledger.is_granted(99));
        assert_eq!(ledger.end_grant(), Amount { messages: 1, bytes: 98 });
        assert_eq!((ledger.messages(), ledger.accepted()), (2, 7));
    }

    #[test]
    fn a_queue_without_limits_is_granted_room_however_much_was_told() {
        let mut ledger = ledger(usize::MAX, usize::MAX);
        push(&mut ledger, 1, 10);
        ledger.complete_messages(1, &mut RegionTable::new(0, false));
        assert_eq!(keys(&mut ledger), [1]);
        assert_eq!(ledger.grant(Amount { messages: 5, bytes: 50 }), Amount { messages: 5, bytes: 50 });
    }

    #[test]
    fn completions_are_told_in_order_however_many_wait_behind_them() {
        // So many are accepted, complete and are told of at once; every seventh is a frame of the transport's own.
        for (accepted, completed, told_every) in [(1, 1, 1), (10, 9, 1), (10, 3, 1), (10, 3, 4), (50, 49, 3), (7, 6, 50)] {
            let mut regions = RegionTable::new(0, false);
            let mut ledger = ledger(100_000, 1_000_000);
            let (mut told, mut spare, mut key) = (Vec::new(), Vec::new(), 0);
            for step in 0..100 {
                for at in 0..accepted {
                    if at % 7 == 6 {
                        ledger.push_control();
                        continue;
                    }
                    ledger.grant(Amount { messages: 1, bytes: 10 });
                    assert!(ledger.is_granted(10));
                    push(&mut ledger, key, 10);
                    key += 1;
                }
                ledger.complete_messages(completed, &mut regions);
                if step % told_every == 0 {
                    assert_eq!(ledger.grant(Amount { messages: 3, bytes: 30 }), Amount { messages: 3, bytes: 30 });
                    spare = ledger.take_completed(spare);
                    told.extend(spare.drain(..).map(|completion| completion.key));
                    assert_eq!(ledger.end_grant(), Amount { messages: 3, bytes: 30 }, "what is granted stays");
                    assert!(!ledger.has_completed());
                }
            }
            told.extend(keys(&mut ledger));
            assert_eq!((told.len() + ledger.messages(), 10 * ledger.messages()), (key as usize, ledger.bytes()));
            told.extend(ledger.take_pending(&mut regions).iter().map(|pending| pending.key));
            assert!((0..key).eq(told), "{accepted} at once, {completed} complete, told every {told_every}");
            assert!(ledger.is_empty() && !ledger.has_completed());
        }
    }

    #[test]
    fn what_has_not_completed_is_pending() {
        let mut regions = RegionTable::new(0, false);
        let mut ledger = ledger(10, 1_000);
        (1..=3).for_each(|key| push(&mut ledger, key, 1));
        ledger.push_control();
        ledger.complete_messages(1, &mut regions);
        assert_eq!(ledger.take_pending(&mut regions).iter().map(|pending| pending.key).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(keys(&mut ledger), [1]);
    }
}
