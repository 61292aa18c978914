//! The shortest way of a copied message.

use std::ops::Deref;

use crate::backend::CopiedMessage;
use crate::endpoint::Endpoint;
use crate::engine::copies::fitting;
use crate::engine::submit::len_of;
use crate::engine::{Copies, Ledger, RUN_HEAD_LEN};
use crate::status::CompletionKind;

/// Where the messages go of one connection that has been granted something, as long as they are copied and within the
/// grant: its ledger, and the memory behind the end of its queue. Here they are reached without a look at the table of
/// connections, or at anything of the connection's.
#[derive(Default)]
pub(super) struct Staging {
    owner: Option<Endpoint>,
    ledger: Ledger,
    copies: Copies,
    /// How far the memory may be filled, in bytes.
    limit: usize,
    short: Short,
    max_header_len: usize,
    /// Shared messages shorter than this are copied.
    shared_below: usize,
    /// How many were.
    shared: u64,
}

/// How far messages may be accepted by the shortest way, which does not count them: when it was last measured there were so
/// many records and bytes, and there may be so many.
#[derive(Clone, Copy, Default)]
struct Short {
    records: usize,
    most_records: usize,
    bytes: usize,
    most_bytes: usize,
}

/// What was lent.
pub(super) struct Staged {
    pub(super) owner: Endpoint,
    pub(super) ledger: Ledger,
    pub(super) copies: Copies,
    /// How many of the messages are shared memory.
    pub(super) shared: u64,
}

/// The longest header that counts as short, in bytes, which every connection takes.
pub(super) const SHORT_HEADER: usize = 16;

impl Staging {
    /// Gives it to a connection, for so many bytes more, heads included. Nobody has it.
    pub(super) fn open(
        &mut self,
        owner: Endpoint,
        ledger: Ledger,
        copies: Copies,
        bytes: usize,
        max_header_len: usize,
        shared_below: usize,
    ) {
        let limit = copies.len() + bytes;
        *self = Self { owner: Some(owner), ledger, copies, limit, short: Short::default(), max_header_len, shared_below, shared: 0 };
        self.measure();
    }

    /// Whether nobody has it.
    pub(super) fn is_free(&self) -> bool {
        self.owner.is_none()
    }

    /// The ledger of the connection that has it.
    #[inline]
    pub(super) fn ledger(&mut self) -> &mut Ledger {
        self.count();
        &mut self.ledger
    }

    /// Takes it from the connection that has it.
    pub(super) fn close(&mut self) -> Option<Staged> {
        let owner = self.owner.take()?;
        self.count();
        let (ledger, copies) = (std::mem::take(&mut self.ledger), std::mem::take(&mut self.copies));
        Some(Staged { owner, ledger, copies, shared: self.shared })
    }

    /// Accepts a message if it is one that this is for; tells whether it is.
    #[inline(always)]
    pub(super) fn push<P: Deref<Target = [u8]>>(
        &mut self,
        to: Endpoint,
        key: u64,
        kind: CompletionKind,
        header: &[u8],
        pieces: &[P],
        head: impl FnOnce(usize) -> [u8; RUN_HEAD_LEN],
    ) -> bool {
        let len = header.len() + len_of(pieces);
        if !self.takes(to, kind, len, self.limit) || header.len() > self.max_header_len {
            return false;
        }
        self.count();
        let is_granted = self.ledger.room.granted().messages > 0;
        if is_granted {
            self.count_shared(kind);
            self.ledger.push(key, kind, len);
            self.copies.push_message(&head(len), header, len, pieces, || None);
        }
        self.measure();
        is_granted
    }

    /// The same for one piece behind a short header, where there is memory for it.
    #[inline(always)]
    pub(super) fn push_one(
        &mut self,
        to: Endpoint,
        key: u64,
        kind: CompletionKind,
        header: &[u8],
        piece: &[u8],
        head: impl FnOnce(usize) -> [u8; RUN_HEAD_LEN],
    ) -> bool {
        let len = header.len() + piece.len();
        let takes = header.len() <= SHORT_HEADER && self.takes(to, kind, len, self.short.most_bytes);
        if !takes || self.ledger.records() >= self.short.most_records || !self.ledger.has_memory() {
            return false;
        }
        self.count_shared(kind);
        self.ledger.push_uncounted(key, kind, len);
        self.copies.push_message_of_one(head(len), header, piece);
        true
    }

    /// Accepts those of copied messages, from the first on, that this is for; gives how many.
    pub(super) fn push_all(&mut self, to: Endpoint, messages: &[CopiedMessage<'_>], head: impl Fn(usize) -> [u8; RUN_HEAD_LEN]) -> usize {
        if self.owner != Some(to) {
            return 0;
        }
        self.count();
        let messages = &messages[..messages.len().min(self.ledger.room.granted().messages as usize)];
        let room = self.limit.saturating_sub(self.copies.len());
        let (accepted, len) = fitting(messages, RUN_HEAD_LEN, room, |message| message.header.len() <= self.max_header_len);
        let messages = &messages[..accepted];
        self.ledger.push_copies(messages, len - RUN_HEAD_LEN * accepted);
        self.copies.push_messages(messages, len, head);
        self.measure();
        accepted
    }

    /// Whether a message is the connection's, is copied, and ends within this limit.
    #[inline(always)]
    fn takes(&self, to: Endpoint, kind: CompletionKind, len: usize, limit: usize) -> bool {
        let is_copied = kind != CompletionKind::ZeroCopy || len < self.shared_below;
        self.owner == Some(to) && is_copied && self.copies.len() + RUN_HEAD_LEN + len <= limit
    }

    #[inline(always)]
    fn count_shared(&mut self, kind: CompletionKind) {
        self.shared += u64::from(kind == CompletionKind::ZeroCopy);
    }

    /// Counts what was accepted by the shortest way, which is closed until it is measured again.
    #[inline]
    fn count(&mut self) {
        let Short { records, most_records, bytes, .. } = std::mem::take(&mut self.short);
        if records < most_records {
            let messages = self.ledger.records() - records;
            self.ledger.room.accept_run(messages, self.copies.len() - bytes - RUN_HEAD_LEN * messages);
        }
    }

    /// Opens the shortest way, as far as it goes.
    #[inline]
    fn measure(&mut self) {
        self.short = Short {
            records: self.ledger.records(),
            most_records: self.ledger.records().saturating_add(self.ledger.room.granted().messages as usize),
            bytes: self.copies.len(),
            most_bytes: self.limit.min(self.copies.capacity()),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use super::*;
    use crate::config::ConnectionParameters;
    use crate::endpoint::EndpointIds;
    use crate::engine::room::Amount;

    const HEAD: fn(usize) -> [u8; RUN_HEAD_LEN] = |len| (len as u64).to_le_bytes();

    #[test]
    fn staged_messages_are_counted_whichever_way_they_came() {
        let to = EndpointIds::default().allocate(1).unwrap();
        let mut ledger = Ledger::new(&ConnectionParameters::default());
        let grant = ledger.room.grant(Amount { messages: 201, bytes: 10_000 });
        let mut staging = Staging::default();
        staging.open(to, ledger, Copies::default(), grant.bytes as usize, 64, 0);
        let (mut sent, mut short) = (Amount::default(), 0);
        for round in 0..20 {
            let data = vec![1; round % 7];
            for header in [&b""[..], &b"four"[..]] {
                let goes_short = staging.push_one(to, 0, CompletionKind::Copy, header, &data, HEAD);
                assert!(goes_short || staging.push(to, 0, CompletionKind::Copy, header, &[IoSlice::new(&data)], HEAD));
                short += usize::from(goes_short);
                assert!(staging.push(to, 0, CompletionKind::Copy, header, &[&data[..], b"xy"], HEAD));
                assert_eq!(staging.push_all(to, &[CopiedMessage { data: &data, header, key: 0 }; 3], HEAD), 3);
                sent = sent + Amount { messages: 5, bytes: 5 * (data.len() + header.len()) as u64 + 2 };
            }
            if round % 3 == 1 {
                assert_eq!(staging.ledger().queued(), sent);
            }
        }
        assert!(short > 20, "{short} went the shortest way");
        assert!(!staging.push_one(to, 0, CompletionKind::Copy, b"", b"", HEAD), "what looked at the ledger closed it");
        assert!(staging.push(to, 0, CompletionKind::Copy, b"", &[&b"last"[..]], HEAD));
        assert!(!staging.push_one(to, 0, CompletionKind::Copy, b"", b"", HEAD), "nothing is granted any more");
        let Staged { mut ledger, copies, .. } = staging.close().unwrap();
        assert_eq!((ledger.accepted(), ledger.room.end_grant().messages), (201, 0));
        assert_eq!(copies.len(), ledger.bytes() + 201 * RUN_HEAD_LEN);
    }
}
