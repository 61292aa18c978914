//! Accepted messages on their way from the threads that sent them to the loop.

use std::collections::VecDeque;
use std::ops::Deref;

use bytes::Bytes;

use crate::backend::{CopiedMessage, NetworkBackend, Unsent};
use crate::endpoint::Endpoint;
use crate::engine::core::drop_each;
use crate::engine::transport::{run_head, run_head_len};
use crate::engine::{Copies, LocalBackend, Outgoing, Payload, RUN_HEAD_LEN, Transport};
use crate::error::SendError;
use crate::event_loop::Budget;
use crate::memory::{NetworkBuffer, RawSlice};
use crate::status::{Completion, CompletionKind, NetioStatus};

/// Accepted messages in send order, by kind of memory. It is emptied as a whole and filled again, so that in
/// steady state no message allocates.
#[derive(Default)]
pub(super) struct Batch {
    records: Vec<Completion>,
    /// Messages that were copied, each after its head, and the headers of the others.
    copies: Copies,
    /// Zero-copy messages that were copied for being small.
    copied: usize,
    /// The messages that were not copied.
    gathered: VecDeque<Gathered>,
    shared: Vec<Bytes>,
    raw: Vec<RawSlice>,
    buffers: VecDeque<NetworkBuffer>,
    done: Done,
}

/// A message that was not copied.
struct Gathered {
    /// The place of its record.
    at: usize,
    header: u32,
    /// Pieces of shared or raw memory.
    pieces: u32,
    form: Form,
}

#[derive(Clone, Copy)]
enum Form {
    Shared,
    Raw,
    Buffer,
}

/// How much was handed over.
#[derive(Clone, Copy, Default)]
struct Done {
    messages: usize,
    bytes: usize,
    shared: usize,
    raw: usize,
}

/// How far handing over came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// To the end.
    Done,
    /// The turn's budget is used up.
    OutOfBudget,
    /// The backend took no more. It tells when it does, or that the connection is over: then what is left is pending.
    Stuck,
}

impl Batch {
    /// Whether there is nothing to hand over.
    pub(super) fn is_empty(&self) -> bool {
        self.done.messages == self.records.len()
    }

    /// Whether it holds so many messages or so many copied bytes.
    #[inline]
    pub(super) fn has(&self, messages: usize, bytes: usize) -> bool {
        self.copies.len() >= bytes || self.records.len() >= messages
    }

    /// How much is missing until it holds so many messages and copied bytes.
    pub(super) fn until(&self, messages: usize, bytes: usize) -> (usize, usize) {
        (messages.saturating_sub(self.records.len()), bytes.saturating_sub(self.copies.len()))
    }

    /// Adds copied messages, which together with their heads are `len` bytes.
    pub(super) fn push_copies<T: Transport>(&mut self, messages: &[CopiedMessage<'_>], len: usize) {
        match T::RUN_HEAD {
            Some(_) => self.copies.push_messages(messages, len, run_head::<T>),
            None => self.copies.push_messages(messages, len, |_| []),
        }
        self.records.extend(messages.iter().map(CopiedMessage::record));
    }

    /// Adds a message of one piece, which is copied, if it ends within so many bytes and there is memory for it; tells
    /// whether it did.
    #[inline(always)]
    pub(super) fn push_one<T: Transport>(&mut self, record: Completion, header: &[u8], piece: &[u8], bytes: usize) -> bool {
        let len = record.len as usize;
        let Some(head) = T::RUN_HEAD.filter(|_| self.copies.len() + RUN_HEAD_LEN + len <= bytes.min(self.copies.capacity())) else {
            return false;
        };
        self.copies.push_message_of_one(head(len), header, piece);
        self.copied += usize::from(record.kind == CompletionKind::ZeroCopy);
        self.records.push(record);
        true
    }

    /// Adds a message. Zero-copy ones up to `copy_below` bytes are copied.
    #[inline(always)]
    pub(super) fn push<T: Transport>(&mut self, record: Completion, message: Outgoing<'_>, copy_below: usize) {
        let Outgoing { header, payload, len } = message;
        let copy = len <= copy_below;
        match payload {
            Payload::Copied(pieces) => self.copy::<T, _>(header, len, pieces),
            Payload::Shared(pieces) if copy => {
                // A long copy comes as shared memory, too.
                self.copied += usize::from(record.kind == CompletionKind::ZeroCopy);
                self.copy::<T, _>(header, len, pieces);
            }
            Payload::Raw(pieces) if copy => {
                self.copied += 1;
                T::RUN_HEAD.inspect(|head| self.copies.push(&head(len), || None));
                self.copies.push(header, || None);
                pieces.held().for_each(|piece| self.copies.push(piece.as_slice(), || None));
            }
            Payload::Shared(pieces) => {
                self.shared.extend_from_slice(pieces);
                self.gather(header, pieces.len(), Form::Shared);
            }
            Payload::Raw(pieces) => {
                self.raw.extend_from_slice(pieces.slices());
                self.gather(header, pieces.slices().len(), Form::Raw);
            }
            Payload::Buffer(buffer) => {
                self.buffers.push_back(Payload::take(buffer));
                self.gather(header, 0, Form::Buffer);
            }
        }
        self.records.push(record);
    }

    #[inline(always)]
    fn copy<T: Transport, P: Deref<Target = [u8]>>(&mut self, header: &[u8], len: usize, pieces: &[P]) {
        match T::RUN_HEAD {
            Some(head) => self.copies.push_message(&head(len), header, len, pieces, || None),
            None => self.copies.push_message(&[], header, len, pieces, || None),
        }
    }

    fn gather(&mut self, header: &[u8], pieces: usize, form: Form) {
        self.copies.push(header, || None);
        self.gathered.push_back(Gathered { at: self.records.len(), header: header.len() as u32, pieces: pieces as u32, form });
    }

    /// Hands messages over to the single-threaded backend.
    pub(super) fn hand_over<T: Transport>(&mut self, to: Endpoint, inner: &LocalBackend<T>, budget: &mut Budget) -> Progress {
        loop {
            if self.is_empty() {
                return Progress::Done;
            }
            if budget.is_spent() {
                return Progress::OutOfBudget;
            }
            let next = self.gathered.front().map_or(self.records.len(), |gathered| gathered.at);
            let taken = if self.done.messages < next {
                self.hand_over_run(to, inner, budget, next.min(self.done.messages.saturating_add(budget.messages)))
            } else {
                self.hand_over_gathered(to, inner, budget)
            };
            if !taken {
                return Progress::Stuck;
            }
        }
    }

    /// Hands copied messages over, up to the one at `end`; where that is not all, without their memory. `false` when the
    /// backend takes no more.
    fn hand_over_run<T: Transport>(&mut self, to: Endpoint, inner: &LocalBackend<T>, budget: &mut Budget, end: usize) -> bool {
        let records = &self.records[self.done.messages..end];
        let head = run_head_len::<T>();
        let bytes = records.iter().map(|message| head + message.len as usize).sum::<usize>();
        let start = self.done.bytes;
        if !inner.submit_run(to, records, &mut self.copies, start..start + bytes) {
            return false;
        }
        budget.spend(records.len(), bytes);
        self.done.messages = end;
        // Where the backend took the memory, there were no other bytes in it.
        self.done.bytes = (start + bytes).min(self.copies.len());
        true
    }

    /// Hands a message over that was not copied; `false` when the backend takes no more.
    fn hand_over_gathered<T: Transport>(&mut self, to: Endpoint, inner: &LocalBackend<T>, budget: &mut Budget) -> bool {
        let Some(&Gathered { at, header, pieces, form }) = self.gathered.front() else { return true };
        let Completion { key, kind, len } = self.records[at];
        let mut done = self.done;
        done.messages += 1;
        done.bytes += header as usize;
        let header = &self.copies.as_slice()[self.done.bytes..done.bytes];
        let outcome = match form {
            Form::Shared => {
                done.shared += pieces as usize;
                inner.submit_gathered(to, &self.shared[self.done.shared..done.shared], header, key, kind)
            }
            Form::Raw => {
                done.raw += pieces as usize;
                send_raw(inner, to, &self.raw[self.done.raw..done.raw], header, key)
            }
            Form::Buffer => match self.buffers.pop_front().map(|buffer| inner.send_taken(to, buffer)) {
                Some(Err(Unsent { buffer, outcome })) => {
                    self.buffers.push_front(buffer);
                    outcome
                }
                Some(Ok(())) | None => Ok(NetioStatus::Ok),
            },
        };
        match outcome {
            Ok(NetioStatus::Ok) => {}
            Ok(NetioStatus::NoResources | NetioStatus::NotConnected) | Err(SendError::UnknownSendEndpoint(_)) => return false,
            Ok(status) => {
                // It was checked against the same limits. To go on would put keys out of order.
                tracing::error!(backend = T::NAME, endpoint = %to, %status, "an accepted message cannot be sent");
                let _ = inner.abort(to);
                return false;
            }
        }
        self.gathered.pop_front();
        self.done = done;
        budget.spend(1, len as usize);
        true
    }

    /// Moves the shared memory of what was handed over into `handed_over`; the backend has its own share of it. This is
    /// for batches that are kept: when the last share goes is the affair of the backend alone.
    pub(super) fn take_handed_over(&mut self, handed_over: &mut Vec<Bytes>) {
        handed_over.extend(self.shared.drain(..std::mem::take(&mut self.done.shared)));
    }

    /// The messages that were not handed over.
    pub(super) fn rest(&self) -> &[Completion] {
        &self.records[self.done.messages..]
    }

    /// How many of the messages are zero-copy ones that were copied.
    pub(super) fn copied(&self) -> usize {
        self.copied
    }

    /// The memory it has for bytes.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.copies.capacity()
    }

    /// Empties it. This drops user memory.
    pub(super) fn clear(&mut self) {
        self.done = Done::default();
        self.copied = 0;
        self.records.clear();
        self.copies.clear();
        self.gathered.clear();
        self.raw.clear();
        self.buffers.clear();
        drop_each(&mut self.shared, drop);
    }
}

/// Wherever a batch ends, of its memory no two pieces panic at once.
impl Drop for Batch {
    fn drop(&mut self) {
        self.clear();
    }
}

/// The way of raw memory on to the backend.
#[allow(unsafe_code, reason = "forwards the trait's one call whose contract the compiler cannot check")]
fn send_raw<T: Transport>(
    inner: &LocalBackend<T>,
    to: Endpoint,
    pieces: &[RawSlice],
    header: &[u8],
    key: u64,
) -> Result<NetioStatus, SendError> {
    // SAFETY: the pieces came in as `RawPieces`, for which the caller of `send_raw_iov` vouched that they stay
    // readable until the message has come back or the backend is gone. Neither has happened: the message is
    // still to be handed over, and nothing is once the backend ended.
    unsafe { inner.send_raw_iov(to, pieces, header, key) }
}
