//! Accepted messages until they are put into the pipe.

use std::collections::VecDeque;

use crate::engine::{Outgoing, Payload, Retired, UserMemory};
use crate::loopback::spares::Spares;

/// The queue of one connection.
#[derive(Default)]
pub(super) struct Outbox {
    waiting: VecDeque<Waiting>,
    /// The pieces of all waiting messages, in order.
    pieces: VecDeque<UserMemory>,
    bytes: usize,
    /// Memory for copies; refilled by what the receiver has consumed.
    pub(super) spares: Spares,
    retired: Retired,
}

/// A message: what was copied of it, and how many pieces follow.
struct Waiting {
    copied: Vec<u8>,
    pieces: usize,
    len: usize,
}

impl Outbox {
    /// Takes a message in. Zero-copy messages up to `copy_below` bytes are copied at once; tells whether
    /// that happened.
    pub(super) fn push(&mut self, message: Outgoing<'_>, copy_below: usize) -> bool {
        let Outgoing { header, payload, len } = message;
        let small = len <= copy_below && len > header.len();
        let copied_len = if small || matches!(payload, Payload::Copied(_)) { len } else { header.len() };
        let mut copied = if copied_len == 0 { Vec::new() } else { self.spares.take(copied_len) };
        copied.extend_from_slice(header);
        let before = self.pieces.len();
        let mut copied_early = false;
        match payload {
            Payload::Copied(pieces) => pieces.iter().for_each(|piece| copied.extend_from_slice(piece)),
            Payload::Shared(pieces) if small => {
                copied_early = true;
                pieces.iter().for_each(|piece| copied.extend_from_slice(piece));
            }
            Payload::Shared(pieces) => {
                self.pieces.extend(pieces.iter().filter(|piece| !piece.is_empty()).cloned().map(UserMemory::Shared));
            }
            Payload::Raw(pieces) if small => {
                copied_early = true;
                pieces.held().for_each(|piece| copied.extend_from_slice(piece.as_slice()));
            }
            Payload::Raw(pieces) => self.pieces.extend(pieces.held().map(UserMemory::Raw)),
            // Not copied early: it goes back to its pool by being retired.
            Payload::Buffer(buffer) => self.pieces.push_back(UserMemory::Buffer(Payload::take(buffer))),
        }
        self.bytes += len;
        self.waiting.push_back(Waiting { copied, pieces: self.pieces.len() - before, len });
        copied_early
    }

    /// The first message as one piece of memory of its own; what it held is retired.
    pub(super) fn pop(&mut self) -> Option<Vec<u8>> {
        let Waiting { copied, pieces, len } = self.waiting.pop_front()?;
        self.bytes -= len;
        if pieces == 0 {
            return Some(copied);
        }
        let mut whole = self.spares.take(len);
        whole.extend_from_slice(&copied);
        self.spares.put(copied);
        for piece in self.pieces.drain(..pieces) {
            whole.extend_from_slice(piece.as_slice());
            self.retired.push(piece);
        }
        Some(whole)
    }

    /// The length of the first message.
    pub(super) fn next_len(&self) -> Option<usize> {
        self.waiting.front().map(|message| message.len)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Bytes waiting.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Gives the user memory of messages back that were put into the pipe, or given up.
    pub(super) fn retire(&mut self, retired: &mut Vec<UserMemory>) {
        self.retired.take(retired);
    }

    /// Gives everything up of a connection that goes on. Buffers are kept until it ends.
    pub(super) fn give_up(&mut self) {
        self.retired.give_up(self.pieces.drain(..));
        self.forget();
    }

    /// Gives everything up of one that has ended.
    pub(super) fn abandon(&mut self) {
        self.retired.end(self.pieces.drain(..));
        self.forget();
    }

    fn forget(&mut self) {
        *self = Self { retired: std::mem::take(&mut self.retired), ..Self::default() };
    }

    /// Gives memory back that an idle connection does not need.
    pub(super) fn trim(&mut self) {
        self.spares.clear();
        if self.is_empty() {
            self.waiting = VecDeque::new();
            self.pieces = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use bytes::Bytes;

    use super::*;

    fn shared<'a>(header: &'a [u8], pieces: &'a [Bytes]) -> Outgoing<'a> {
        let len = header.len() + pieces.iter().map(Bytes::len).sum::<usize>();
        Outgoing { header, payload: Payload::Shared(pieces), len }
    }

    #[test]
    fn a_message_is_its_header_and_all_its_pieces() {
        let mut outbox = Outbox::default();
        let pieces = [Bytes::from_static(b"one"), Bytes::new(), Bytes::from_static(b"two")];
        assert!(!outbox.push(shared(b"h:", &pieces), 0));
        assert!(outbox.push(shared(b"", &pieces), 100), "small ones are copied");
        let lent = [IoSlice::new(b"le"), IoSlice::new(b"nt")];
        assert!(!outbox.push(Outgoing { header: b">", payload: Payload::Copied(&lent), len: 5 }, 0));
        assert!(!outbox.push(shared(b"", &[]), 0));
        assert_eq!((outbox.bytes(), outbox.next_len()), (19, Some(8)));
        let popped: Vec<_> = std::iter::from_fn(|| outbox.pop()).collect();
        assert_eq!(popped, [&b"h:onetwo"[..], b"onetwo", b">lent", b""]);
        assert!(outbox.is_empty() && outbox.bytes() == 0);
    }

    #[test]
    fn memory_is_held_until_it_was_copied_and_then_retired() {
        let mut outbox = Outbox::default();
        let bytes = Bytes::from(vec![1; 10]);
        outbox.push(shared(b"", std::slice::from_ref(&bytes)), 0);
        outbox.push(shared(b"", std::slice::from_ref(&bytes)), 0);
        let mut retired = Vec::new();
        outbox.retire(&mut retired);
        assert!(retired.is_empty());
        outbox.pop();
        outbox.retire(&mut retired);
        assert_eq!(retired.len(), 1);
        outbox.abandon();
        outbox.retire(&mut retired);
        assert_eq!(retired.len(), 2);
        drop((retired, outbox));
        assert!(bytes.is_unique());
    }
}
