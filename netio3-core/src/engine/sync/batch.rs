//! Accepted messages on their way from the threads that sent them to the loop.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::Bytes;

use crate::backend::{NetworkBackend, Unsent};
use crate::endpoint::Endpoint;
use crate::engine::core::drop_each;
use crate::engine::{LocalBackend, Outgoing, Payload, Transport};
use crate::error::SendError;
use crate::event_loop::Budget;
use crate::memory::{NetworkBuffer, RawSlice};
use crate::status::NetioStatus;

/// Accepted messages in send order, by kind of memory. It is emptied as a whole and filled again, so that in
/// steady state no message allocates.
#[derive(Default)]
pub(super) struct Batch {
    entries: Vec<Entry>,
    /// Headers, and the payloads that were copied.
    bytes: Vec<u8>,
    shared: Vec<Bytes>,
    raw: Vec<RawSlice>,
    buffers: VecDeque<NetworkBuffer>,
    done: Done,
}

/// A message.
struct Entry {
    key: u64,
    header: u32,
    payload: u32,
    /// Pieces of shared or raw memory.
    pieces: u32,
    form: Form,
}

#[derive(Clone, Copy)]
enum Form {
    /// The payload follows the header. Zero-copy messages that are small enough are copied as well.
    Copied {
        zero_copy: bool,
    },
    Shared,
    Raw,
    Buffer,
}

/// How much was handed over.
#[derive(Clone, Copy, Default)]
struct Done {
    entries: usize,
    bytes: usize,
    shared: usize,
    raw: usize,
    /// Zero-copy messages among them that had been copied.
    copied: usize,
}

/// How far handing over came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// To the end.
    Done,
    /// The turn's budget is used up.
    OutOfBudget,
    /// The backend took no more; it tells when it does.
    Stuck,
}

impl Batch {
    /// Whether there is nothing to hand over.
    pub(super) fn is_empty(&self) -> bool {
        self.done.entries == self.entries.len()
    }

    /// Adds a message. Zero-copy ones up to `copy_below` bytes are copied.
    #[inline(always)]
    pub(super) fn push(&mut self, message: Outgoing<'_>, key: u64, copy_below: usize) {
        let Outgoing { header, payload, len } = message;
        if !header.is_empty() {
            self.bytes.extend_from_slice(header);
        }
        let copy = len <= copy_below;
        let (form, pieces) = match payload {
            Payload::Copied(pieces) => {
                for piece in pieces {
                    self.bytes.extend_from_slice(piece);
                }
                (Form::Copied { zero_copy: false }, 0)
            }
            Payload::Shared(pieces) if copy => {
                for piece in pieces {
                    self.bytes.extend_from_slice(piece);
                }
                (Form::Copied { zero_copy: true }, 0)
            }
            Payload::Raw(pieces) if copy => {
                pieces.held().for_each(|piece| self.bytes.extend_from_slice(piece.as_slice()));
                (Form::Copied { zero_copy: true }, 0)
            }
            Payload::Shared(pieces) => {
                self.shared.extend_from_slice(pieces);
                (Form::Shared, pieces.len())
            }
            Payload::Raw(pieces) => {
                self.raw.extend_from_slice(pieces.slices());
                (Form::Raw, pieces.slices().len())
            }
            Payload::Buffer(buffer) => {
                self.buffers.push_back(Payload::take(buffer));
                (Form::Buffer, 0)
            }
        };
        let (header, payload) = (header.len() as u32, (len - header.len()) as u32);
        self.entries.push(Entry { key, header, payload, pieces: pieces as u32, form });
    }

    /// Hands messages over to the single-threaded backend. Those it does not take because the connection is
    /// ending are left out: they are pending.
    pub(super) fn hand_over<T: Transport>(&mut self, to: Endpoint, inner: &LocalBackend<T>, budget: &mut Budget) -> Progress {
        loop {
            if matches!(self.entries.get(self.done.entries), Some(Entry { form: Form::Copied { .. }, .. })) {
                self.hand_over_granted(to, inner, budget);
            }
            let Some(entry) = self.entries.get(self.done.entries) else { return Progress::Done };
            if budget.is_spent() {
                return Progress::OutOfBudget;
            }
            let (header, payload, pieces) = (entry.header as usize, entry.payload as usize, entry.pieces as usize);
            let mut done = self.done;
            done.entries += 1;
            done.bytes += header;
            let header = &self.bytes[self.done.bytes..done.bytes];
            let outcome = match entry.form {
                Form::Copied { zero_copy } => {
                    let start = done.bytes;
                    done.bytes += payload;
                    done.copied += usize::from(zero_copy);
                    inner.send_copy_iov(to, &[IoSlice::new(&self.bytes[start..done.bytes])], header, entry.key)
                }
                Form::Shared => {
                    done.shared += pieces;
                    inner.send_iov(to, &self.shared[self.done.shared..done.shared], header, entry.key)
                }
                Form::Raw => {
                    done.raw += pieces;
                    send_raw(inner, to, &self.raw[self.done.raw..done.raw], header, entry.key)
                }
                Form::Buffer => match self.buffers.pop_front().map(|buffer| inner.send_taken(to, buffer)) {
                    Some(Err(Unsent { buffer, outcome })) => {
                        if outcome == Ok(NetioStatus::NoResources) {
                            self.buffers.push_front(buffer);
                        }
                        outcome
                    }
                    Some(Ok(())) | None => Ok(NetioStatus::Ok),
                },
            };
            match outcome {
                Ok(NetioStatus::NoResources) => return Progress::Stuck,
                Ok(NetioStatus::Ok | NetioStatus::NotConnected) | Err(SendError::UnknownSendEndpoint(_)) => {}
                Ok(status) => {
                    // It was checked against the same limits. To go on would put keys out of order.
                    tracing::error!(backend = T::NAME, endpoint = %to, %status, "an accepted message cannot be sent");
                    let _ = inner.abort(to);
                }
            }
            self.done = done;
            budget.spend(1, header.len() + payload);
        }
    }

    /// Hands the next copied messages over, as far as the backend takes them without a look at any limit.
    fn hand_over_granted<T: Transport>(&mut self, to: Endpoint, inner: &LocalBackend<T>, budget: &mut Budget) {
        let mut rest = &self.bytes[self.done.bytes..];
        let copies = self.entries[self.done.entries..].iter().take(budget.messages).map_while(|entry| {
            let Form::Copied { .. } = entry.form else { return None };
            let (message, after) = rest.split_at((entry.header + entry.payload) as usize);
            rest = after;
            Some((entry.key, message))
        });
        let (messages, bytes) = inner.submit_granted(to, copies);
        let taken = &self.entries[self.done.entries..][..messages];
        self.done.copied += taken.iter().filter(|entry| matches!(entry.form, Form::Copied { zero_copy: true })).count();
        self.done.entries += messages;
        self.done.bytes += bytes;
        budget.spend(messages, bytes);
    }

    /// Takes the shared memory of what was handed over out; the backend has its own share of it. This is for
    /// batches that are kept: when the last share goes is the affair of the backend alone.
    pub(super) fn take_handed_over(&mut self) -> Vec<Bytes> {
        self.shared.drain(..std::mem::take(&mut self.done.shared)).collect()
    }

    /// How many of the messages handed over were zero-copy ones that had been copied.
    pub(super) fn copied(&self) -> usize {
        self.done.copied
    }

    /// The memory it has for bytes.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Empties it. This drops user memory.
    pub(super) fn clear(&mut self) {
        self.done = Done::default();
        self.entries.clear();
        self.bytes.clear();
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
