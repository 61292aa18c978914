//! The accepted messages of a connection until they come back.

use std::collections::VecDeque;

use crate::config::ConnectionParameters;
use crate::memory::{HeldRegions, RegionTable};
use crate::status::{Completion, CompletionKind};

/// What was accepted and has not completed, in send order, and what has completed and was not told yet.
#[derive(Debug)]
pub struct Ledger {
    records: VecDeque<Record>,
    messages: usize,
    bytes: usize,
    max_messages: usize,
    max_bytes: usize,
    /// Stream bytes that left and belong to the front record.
    credit: usize,
    /// The largest message refused since the last *writable*.
    refused: Option<usize>,
    completed: Vec<Completion>,
    /// Bytes of the completions that were not told yet.
    completed_bytes: usize,
}

#[derive(Clone, Copy, Debug)]
struct Record {
    key: u64,
    len: u32,
    /// `None` for the transport's own frames.
    kind: Option<CompletionKind>,
    held: HeldRegions,
}

/// What a call that completes messages counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
}

impl Ledger {
    pub(crate) fn new(params: &ConnectionParameters) -> Self {
        Self {
            records: VecDeque::new(),
            messages: 0,
            bytes: 0,
            max_messages: params.queue_messages.max(1),
            max_bytes: params.queue_bytes,
            credit: 0,
            refused: None,
            completed: Vec::new(),
            completed_bytes: 0,
        }
    }

    /// Accepted messages that have not completed.
    #[inline]
    pub(crate) fn messages(&self) -> usize {
        self.messages
    }

    /// Their bytes.
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a message of this length fits; an empty queue takes any one.
    ///
    /// A message counts until its completion is told, so that a callback which sends as long as it may comes
    /// to an end even when everything leaves at once.
    #[inline]
    pub(crate) fn fits(&self, len: usize) -> bool {
        let messages = self.messages + self.completed.len();
        let bytes = self.bytes + self.completed_bytes;
        messages == 0 || (messages < self.max_messages && len <= self.max_bytes.saturating_sub(bytes))
    }

    /// Whether nothing is queued, so that any one message fits.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.messages == 0 && self.completed.is_empty()
    }

    /// Notes a refusal; `true` for the first since the last *writable*.
    pub(crate) fn refuse(&mut self, len: usize) -> bool {
        self.refused.replace(self.refused.unwrap_or(0).max(len)).is_none()
    }

    /// The largest message refused since the last *writable*.
    pub(crate) fn refused(&self) -> Option<usize> {
        self.refused
    }

    pub(crate) fn clear_refusal(&mut self) {
        self.refused = None;
    }

    #[inline]
    pub(crate) fn push(&mut self, key: u64, kind: CompletionKind, len: usize, held: HeldRegions) {
        self.messages += 1;
        self.bytes += len;
        self.records.push_back(Record { key, len: len as u32, kind: Some(kind), held });
    }

    /// Enters a frame of the transport's own, which completes in turn without being told to anybody.
    pub fn push_control(&mut self) {
        self.records.push_back(Record { key: 0, len: 0, kind: None, held: HeldRegions::default() });
    }

    /// `n` bytes of a stream left, in which every message is preceded by a head of `head` bytes.
    pub(crate) fn complete_bytes(&mut self, n: usize, head: usize, regions: &mut RegionTable) -> Sent {
        let mut credit = self.credit + n;
        let mut whole = 0;
        for record in &self.records {
            let Some(rest) = credit.checked_sub(head + record.len as usize) else { break };
            credit = rest;
            whole += 1;
        }
        self.credit = credit;
        self.complete_messages(whole, regions)
    }

    /// The first `n` records left.
    pub(crate) fn complete_messages(&mut self, n: usize, regions: &mut RegionTable) -> Sent {
        let mut sent = Sent::default();
        for record in self.records.drain(..n.min(self.records.len())) {
            let Some(kind) = record.kind else { continue };
            sent.messages += 1;
            sent.bytes += record.len as usize;
            if !record.held.is_none() {
                regions.release(record.held);
            }
            self.completed.push(Completion { key: record.key, kind });
        }
        self.messages -= sent.messages;
        self.bytes -= sent.bytes;
        self.completed_bytes += sent.bytes;
        sent
    }

    /// Completions that were not told yet; the given vector is taken in exchange, for its memory.
    pub(crate) fn take_completed(&mut self, spare: Vec<Completion>) -> Vec<Completion> {
        self.completed_bytes = 0;
        std::mem::replace(&mut self.completed, spare)
    }

    pub(crate) fn has_completed(&self) -> bool {
        !self.completed.is_empty()
    }

    /// Everything that has not completed, at the end of a connection.
    pub(crate) fn take_pending(&mut self, regions: &mut RegionTable) -> Vec<Completion> {
        let records = std::mem::take(&mut self.records);
        (self.messages, self.bytes) = (0, 0);
        let told = |record: Record| {
            regions.release(record.held);
            record.kind.map(|kind| Completion { key: record.key, kind })
        };
        records.into_iter().filter_map(told).collect()
    }

    /// Gives the memory of an empty ledger back.
    pub(crate) fn trim(&mut self) {
        if self.records.is_empty() && self.completed.is_empty() {
            self.records = VecDeque::new();
            self.completed = Vec::new();
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
        ledger.push(key, CompletionKind::Copy, len, HeldRegions::default());
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
        assert_eq!(ledger.complete_bytes(17, 8, &mut regions), Sent::default());
        assert_eq!(ledger.complete_bytes(1, 8, &mut regions), Sent { messages: 1, bytes: 10 });
        assert_eq!(keys(&mut ledger), [1]);
        assert_eq!(ledger.complete_bytes(16, 8, &mut regions), Sent { messages: 1, bytes: 0 });
        assert_eq!(keys(&mut ledger), [2]);
        assert_eq!((ledger.messages(), ledger.bytes()), (0, 0));
    }

    #[test]
    fn an_empty_queue_takes_any_one_message() {
        let mut ledger = ledger(2, 100);
        assert!(ledger.fits(5_000));
        push(&mut ledger, 1, 5_000);
        assert!(ledger.fits(0) && !ledger.fits(1), "full of bytes");
        assert!(ledger.refuse(7) && !ledger.refuse(3));
        assert_eq!(ledger.refused(), Some(7));
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
