//! The accepted messages of a connection until they come back.

use std::collections::VecDeque;

use crate::backend::CopiedMessage;
use crate::config::ConnectionParameters;
use crate::engine::room::{Amount, Holds, Room};
use crate::memory::{HeldRegions, RegionTable};
use crate::status::{Completion, CompletionKind};

/// What was accepted and has not completed, in send order, and what has completed and was not told yet.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// From `first` on those that have completed and were not told, from `next` on those that have not completed.
    records: Vec<Completion>,
    first: usize,
    next: usize,
    /// What the queue takes.
    pub(crate) room: Room,
    /// What has completed.
    left: Amount,
    holds: Holds,
    /// The records that have completed or were taken out.
    passed: u64,
    /// The numbers of those that are frames of the transport's own, until they complete.
    controls: VecDeque<u64>,
    /// Stream bytes that left and belong to the record at `next`.
    credit: usize,
}

impl Ledger {
    pub(crate) fn new(params: &ConnectionParameters) -> Self {
        Self { room: Room::new(params), ..Self::default() }
    }

    /// Accepted messages that have not completed.
    #[inline]
    pub(crate) fn queued(&self) -> Amount {
        self.room.accepted() - self.left
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
        self.room.accepted().messages
    }

    #[inline(always)]
    pub(crate) fn push(&mut self, key: u64, kind: CompletionKind, len: usize) {
        self.room.accept(len);
        self.push_uncounted(key, kind, len);
    }

    /// Pushes a message that the caller counts later ([`Room::accept_run`]).
    #[inline(always)]
    pub(crate) fn push_uncounted(&mut self, key: u64, kind: CompletionKind, len: usize) {
        self.records.push(Completion { key, kind, len: len as u32 });
    }

    /// How many records there are.
    #[inline(always)]
    pub(crate) fn records(&self) -> usize {
        self.records.len()
    }

    /// Whether there is memory for another one.
    #[inline(always)]
    pub(crate) fn has_memory(&self) -> bool {
        self.records.len() < self.records.capacity()
    }

    /// Enters copied messages, of so many bytes together, that hold no regions.
    pub(crate) fn push_copies(&mut self, messages: &[CopiedMessage<'_>], bytes: usize) {
        self.room.accept_run(messages.len(), bytes);
        self.records.extend(messages.iter().map(CopiedMessage::record));
    }

    /// Enters messages of so many bytes together, that hold no regions.
    pub(crate) fn push_run(&mut self, messages: &[Completion], bytes: usize) {
        self.room.accept_run(messages.len(), bytes);
        self.records.extend_from_slice(messages);
    }

    /// The next message holds these regions, if any.
    #[inline(always)]
    pub(crate) fn hold(&mut self, held: HeldRegions) {
        self.holds.push(self.accepted(), held);
    }

    /// Enters a frame of the transport's own, which completes in turn without being told to anybody.
    pub(crate) fn push_control(&mut self) {
        self.controls.push_back(self.passed + (self.records.len() - self.next) as u64);
        self.records.push(Completion { key: 0, kind: CompletionKind::Copy, len: 0 });
    }

    /// `n` bytes of a stream left, in which every message is preceded by a head of `head` bytes.
    pub(crate) fn complete_bytes(&mut self, n: usize, head: usize, regions: &mut RegionTable) -> Amount {
        let waiting = &self.records[self.next..];
        let frame = |message: &Completion| head + message.len as usize;
        let credit = self.credit + n;
        let (mut whole, mut passed) = (0, 0);
        let all = self.bytes() + head * waiting.len();
        let behind = all.saturating_sub(credit);
        if behind < credit {
            // Most of them, as after most writes: those that have not left are counted.
            (whole, passed) = (waiting.len(), all);
            while all - passed < behind && whole > 0 {
                whole -= 1;
                passed -= frame(&waiting[whole]);
            }
        } else {
            for message in waiting {
                let end = passed + frame(message);
                if end > credit {
                    break;
                }
                (whole, passed) = (whole + 1, end);
            }
        }
        self.credit = credit.saturating_sub(passed);
        self.complete(whole, passed - head * whole, regions)
    }

    /// The first `n` records left.
    pub(crate) fn complete_messages(&mut self, n: usize, regions: &mut RegionTable) -> Amount {
        let left = &self.records[self.next..];
        let n = n.min(left.len());
        let bytes = if n == left.len() { self.bytes() } else { left[..n].iter().map(|message| message.len as usize).sum() };
        self.complete(n, bytes, regions)
    }

    /// So many records left, which are messages of so many bytes.
    fn complete(&mut self, n: usize, bytes: usize, regions: &mut RegionTable) -> Amount {
        let messages = n - self.drop_controls(n);
        let done = Amount { messages: messages as u64, bytes: bytes as u64 };
        self.left = self.left + done;
        self.next += messages;
        self.passed += n as u64;
        self.holds.release_below(self.left.messages, regions);
        done
    }

    /// Takes the frames of the transport's own out of the next `n` records; gives how many those were.
    fn drop_controls(&mut self, n: usize) -> usize {
        let mut dropped = 0;
        while let Some(number) = self.controls.front().filter(|number| **number < self.passed + n as u64) {
            let at = self.next + (number - self.passed) as usize - dropped;
            self.controls.pop_front();
            self.records.remove(at);
            dropped += 1;
        }
        dropped
    }

    /// Completions that were not told yet, and how much they are; the given empty vector is taken in exchange, for its memory.
    /// They are in the queue's [room](Room::tell) until they are told.
    pub(crate) fn take_completed(&mut self, mut spare: Vec<Completion>) -> (Vec<Completion>, Amount) {
        let untold = self.left - self.room.told();
        if self.first == 0 && 2 * self.next >= self.records.len() {
            // They stay where they are, and the fewer that have not completed move.
            spare.extend_from_slice(&self.records[self.next..]);
            std::mem::swap(&mut self.records, &mut spare);
            spare.truncate(self.next);
            (self.first, self.next) = (0, 0);
        } else {
            spare.extend_from_slice(&self.records[self.first..self.next]);
            self.first = self.next;
            // So that each is moved at most once on average.
            if 2 * self.next > self.records.len() {
                self.records.drain(..self.next);
                (self.first, self.next) = (0, 0);
            }
        }
        (spare, untold)
    }

    /// Everything that has not completed, at the end of a connection.
    pub(crate) fn take_pending(&mut self, regions: &mut RegionTable) -> Vec<Completion> {
        let (queued, completed) = (self.queued(), self.next);
        self.complete_messages(usize::MAX, regions);
        // They count as told at once, since that is what follows.
        self.room.tell(queued);
        self.room.end_grant();
        self.next = completed;
        self.records.split_off(completed)
    }

    /// Gives the memory of an empty ledger back.
    pub(crate) fn trim(&mut self) {
        if self.first == self.records.len() {
            (self.first, self.next) = (0, 0);
            self.records = Vec::new();
            self.holds = Holds::default();
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
        let (completions, untold) = ledger.take_completed(Vec::new());
        ledger.room.tell(untold);
        completions.iter().map(|completion| completion.key).collect()
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
    fn what_is_granted_is_not_used_up_by_anything_but_messages() {
        let mut ledger = ledger(100, 1_000);
        (1..=5).for_each(|key| push(&mut ledger, key, 1));
        assert_eq!(ledger.room.grant(Amount { messages: 3, bytes: 100 }), Amount { messages: 3, bytes: 100 });
        ledger.push_control();
        push(&mut ledger, 6, 1);
        // The records move to the front of their memory.
        ledger.complete_messages(5, &mut RegionTable::new(0, false));
        push(&mut ledger, 7, 1);
        assert!(ledger.room.is_granted(98) && !ledger.room.is_granted(99));
        assert_eq!(ledger.room.end_grant(), Amount { messages: 1, bytes: 98 });
        assert_eq!((ledger.messages(), ledger.accepted()), (2, 7));
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
                    ledger.room.grant(Amount { messages: 1, bytes: 10 });
                    assert!(ledger.room.is_granted(10));
                    push(&mut ledger, key, 10);
                    key += 1;
                }
                ledger.complete_messages(completed, &mut regions);
                if step % told_every == 0 {
                    assert_eq!(ledger.room.grant(Amount { messages: 3, bytes: 30 }), Amount { messages: 3, bytes: 30 });
                    let (completions, untold) = ledger.take_completed(spare);
                    ledger.room.tell(untold);
                    spare = completions;
                    told.extend(spare.drain(..).map(|completion| completion.key));
                    assert_eq!(ledger.room.end_grant(), Amount { messages: 3, bytes: 30 }, "what is granted stays");
                    assert_eq!(ledger.first, ledger.next, "all was taken");
                }
            }
            told.extend(keys(&mut ledger));
            assert_eq!((told.len() + ledger.messages(), 10 * ledger.messages()), (key as usize, ledger.bytes()));
            told.extend(ledger.take_pending(&mut regions).iter().map(|pending| pending.key));
            assert!((0..key).eq(told), "{accepted} at once, {completed} complete, told every {told_every}");
            assert!(ledger.room.is_empty() && ledger.first == ledger.next);
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
