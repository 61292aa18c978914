//! Received messages.

use std::cell::Cell;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use crate::engine::{RUN_HEAD_LEN, State};
use crate::event_loop::Remote;
use crate::stats::{BackendCounters, ConnectionCounters};

/// A received message: one slice, header then payload; where the boundary lies is the users' affair.
///
/// It borrows the backend's memory until the callback returns. [`into_bytes`](Self::into_bytes) takes it
/// over for as long as needed.
pub struct Message<'a>(Body<'a>);

enum Body<'a> {
    /// Lies in memory that is read into again.
    Borrowed(&'a [u8], &'a Meter),
    /// Has memory of its own.
    Whole(&'a mut dyn Take),
}

/// Messages that arrived together, of a stream of [frames](Frames). There is a next one for as long as their connection
/// receives.
pub struct Messages<'a> {
    rest: &'a [u8],
    frames: Frames,
    taken: Taken,
    /// One of the following may have changed.
    interrupted: &'a AtomicBool,
    meter: &'a Meter,
    state: &'a Cell<State>,
    paused: &'a Cell<bool>,
    /// Another thread has ended the backend.
    gone: &'a AtomicBool,
}

static NEVER: AtomicBool = AtomicBool::new(false);

/// For backends: how messages lie one behind the other, each after a head of 8 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Frames {
    /// The head of an empty message, as a little-endian number whose lower 32 bits are 0. Other messages have their length
    /// there.
    pub head: u64,
    /// The longest message.
    pub max_len: u32,
}

/// For backends: what the user was given of messages that arrived together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Taken {
    /// How many messages.
    pub messages: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Those of the last one.
    pub last_len: usize,
}

impl<'a> Messages<'a> {
    pub(crate) fn new(bytes: &'a [u8], frames: Frames, meter: &'a Meter, state: &'a Cell<State>, paused: &'a Cell<bool>) -> Self {
        let interrupted = &meter.shared.interrupted;
        Self { rest: bytes, frames, taken: Taken::default(), interrupted, meter, state, paused, gone: &NEVER }
    }

    /// Whether there is no next one.
    #[cold]
    fn stops(&self) -> bool {
        let is_gone = || self.gone.load(Ordering::SeqCst);
        if self.state.get().is_over() || self.paused.get() || self.meter.is_full() || is_gone() {
            return true;
        }
        // For as long as the user has messages, a cap may be reached.
        if self.meter.shared.backend.owned_messages.get() == 0 {
            // SeqCst: another thread first says that the backend is gone, then interrupts. Either that comes behind this, or
            // the other is seen.
            self.interrupted.store(false, Ordering::SeqCst);
            if is_gone() {
                self.interrupted.store(true, Ordering::SeqCst);
                return true;
            }
        }
        false
    }

    /// Calls for each.
    #[inline(always)]
    pub(crate) fn each(&mut self, mut call: impl FnMut(Message<'a>)) {
        // A copy, so that it may be in registers meanwhile.
        let mut rest = Self { ..*self };
        for message in &mut rest {
            call(message);
        }
        *self = rest;
    }

    /// Lends the messages to `call`, for which there is no next one once `gone` is set.
    pub(crate) fn until(&mut self, gone: &AtomicBool, call: impl FnOnce(&mut Messages<'_>)) {
        let mut messages = Messages { gone, ..*self };
        call(&mut messages);
        let (taken, left) = messages.finish();
        self.taken = taken;
        self.rest = &self.rest[self.rest.len() - left..];
    }

    /// What was taken, and the number of bytes that were not.
    pub(crate) fn finish(self) -> (Taken, usize) {
        (self.taken, self.rest.len())
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    #[inline(always)]
    fn next(&mut self) -> Option<Message<'a>> {
        // Relaxed: this thread's own writes are in order, and those of another one only have to be seen some time.
        if self.interrupted.load(Ordering::Relaxed) && self.stops() {
            return None;
        }
        let (head, rest) = self.rest.split_first_chunk::<RUN_HEAD_LEN>()?;
        // A head of another kind differs in the upper 32 bits, so that it is more than any length.
        let len = u64::from_le_bytes(*head) ^ self.frames.head;
        if len > u64::from(self.frames.max_len) {
            return None;
        }
        let (message, rest) = rest.split_at_checked(len as usize)?;
        self.rest = rest;
        let Taken { messages, bytes, .. } = self.taken;
        self.taken = Taken { messages: messages + 1, bytes: bytes + message.len(), last_len: message.len() };
        Some(Message::borrowed(message, self.meter))
    }
}

/// A message in memory of its own, which can be handed over without a copy.
pub trait Take {
    /// The message.
    fn as_slice(&self) -> &[u8];
    /// Gives the memory away; afterwards the message is empty here.
    fn take(&mut self) -> Bytes;
}

/// For backends: a message that was put together in memory which is used again unless the user takes it over.
pub struct Assembled<'a> {
    /// Begins with the message.
    pub memory: &'a mut Vec<u8>,
    /// How long the message is.
    pub len: usize,
    /// Of its connection.
    pub meter: &'a Meter,
}

impl Take for Assembled<'_> {
    fn as_slice(&self) -> &[u8] {
        &self.memory[..self.len]
    }

    fn take(&mut self) -> Bytes {
        let len = std::mem::take(&mut self.len);
        // Memory much larger than the message, kept from a larger one, is better kept.
        if self.memory.capacity() > 2 * len {
            return self.meter.own(self.memory[..len].to_vec());
        }
        let mut memory = std::mem::take(self.memory);
        memory.truncate(len);
        self.meter.own(memory)
    }
}

impl<'a> Message<'a> {
    /// For backends: a message in memory that will be read into again.
    #[inline]
    pub fn borrowed(data: &'a [u8], meter: &'a Meter) -> Self {
        Self(Body::Borrowed(data, meter))
    }

    /// For backends: a message in memory of its own.
    pub fn whole(owner: &'a mut dyn Take) -> Self {
        Self(Body::Whole(owner))
    }

    /// The message.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        match &self.0 {
            Body::Borrowed(data, _) => data,
            Body::Whole(owner) => owner.as_slice(),
        }
    }

    /// Takes the message over: without a copy where it came in memory of its own (on TCP as a rule those of more than
    /// 128 KiB, unless that memory is more than twice as large), copied otherwise.
    ///
    /// It holds receive memory until the last clone is dropped, on any thread. What is held is capped by
    /// [`owned_messages`](crate::NetworkConfig::owned_messages) and its siblings; at the cap the backend
    /// stops reading from this connection until some are dropped.
    pub fn into_bytes(self) -> Bytes {
        match self.0 {
            Body::Borrowed([], _) => Bytes::new(),
            Body::Borrowed(data, meter) => meter.own(data.to_vec()),
            Body::Whole(owner) => owner.take(),
        }
    }
}

impl Deref for Message<'_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl AsRef<[u8]> for Message<'_> {
    #[inline]
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl fmt::Debug for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Message({} bytes)", self.len())
    }
}

/// Counts what users hold of a connection's taken-over messages, against its caps and the backend's.
#[derive(Clone)]
pub struct Meter {
    connection: Arc<ConnectionCounters>,
    shared: Arc<OwnedCaps>,
}

/// The caps on taken-over messages, and who is told when they fall below.
pub(crate) struct OwnedCaps {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    pub(crate) total_messages: u64,
    pub(crate) total_bytes: u64,
    pub(crate) backend: Arc<BackendCounters>,
    /// Messages were taken over, so that the caps have to be looked at. Written by the loop's thread alone.
    pub(crate) in_use: AtomicBool,
    /// Messages that are being handed out may have to stop: some were taken over, a connection was paused or has ended, or
    /// another thread has ended the backend.
    pub(crate) interrupted: AtomicBool,
    /// The loop found a cap reached and waits for room.
    pub(crate) blocked: AtomicBool,
    pub(crate) remote: Arc<dyn Remote>,
}

impl OwnedCaps {
    /// Has messages that are being handed out looked at for a reason to stop, which is there already.
    pub(crate) fn interrupt(&self) {
        // SeqCst: as in `Messages::stops`.
        self.interrupted.store(true, Ordering::SeqCst);
    }
}

impl Meter {
    pub(crate) fn new(connection: Arc<ConnectionCounters>, shared: Arc<OwnedCaps>) -> Self {
        Self { connection, shared }
    }

    /// Makes memory that holds a message the user's, counted until dropped.
    pub fn own(&self, memory: Vec<u8>) -> Bytes {
        let held = memory.capacity() as u64;
        self.shared.in_use.store(true, Ordering::Relaxed);
        self.shared.interrupted.store(true, Ordering::Relaxed);
        self.connection.owned_messages.rise(1);
        self.connection.owned_bytes.rise(held);
        self.shared.backend.owned_messages.rise(1);
        self.shared.backend.owned_bytes.rise(held);
        Bytes::from_owner(Owned { memory, held, meter: self.clone() })
    }

    /// As [`OwnedCaps::interrupt`].
    pub(crate) fn interrupt(&self) {
        self.shared.interrupt();
    }

    /// Whether a cap is reached; if so, the loop is woken when something is dropped. On the loop's thread, as
    /// `own`.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.shared.in_use.load(Ordering::Relaxed) && self.look()
    }

    #[cold]
    fn look(&self) -> bool {
        if !self.at_cap() {
            // Others only drop.
            if self.shared.backend.owned_messages.get() == 0 {
                self.shared.in_use.store(false, Ordering::Relaxed);
            }
            return false;
        }
        // SeqCst: ordered against the counters in `drop`, so that one of the two sides sees the other.
        self.shared.blocked.store(true, Ordering::SeqCst);
        self.at_cap()
    }

    fn at_cap(&self) -> bool {
        let OwnedCaps { messages, bytes, total_messages, total_bytes, backend, .. } = &*self.shared;
        self.connection.owned_messages.get() >= *messages
            || self.connection.owned_bytes.get() >= *bytes
            || backend.owned_messages.get() >= *total_messages
            || backend.owned_bytes.get() >= *total_bytes
    }
}

struct Owned {
    memory: Vec<u8>,
    held: u64,
    meter: Meter,
}

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        &self.memory
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.memory = Vec::new();
        let Meter { connection, shared } = &self.meter;
        connection.owned_messages.fall(1);
        connection.owned_bytes.fall(self.held);
        shared.backend.owned_messages.fall(1);
        shared.backend.owned_bytes.fall(self.held);
        if shared.blocked.swap(false, Ordering::SeqCst) {
            shared.remote.wake();
        }
    }
}
