//! What waits to be written to a socket.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::rc::Rc;

use arrayvec::ArrayVec;
use netio3_core::engine::{Copies, Outgoing, Payload, Retired, Run, UserMemory};

use crate::frame::{Frame, HEAD_LEN};

/// The bytes to be written, in order: those that were copied here, and pieces of the user's memory.
///
/// It does no I/O: [`slices`](Self::slices) says what to write, [`written`](Self::written) how far that went.
#[derive(Debug, Default)]
pub(crate) struct Outbound {
    segments: VecDeque<Segment>,
    /// Bytes of the first segment's memory that are written already.
    offset: usize,
    /// Copied bytes, those before `copied_start` written; those from `open` on come after all segments.
    copied: Copies,
    copied_start: usize,
    open: usize,
    /// Bytes that wait in the memory of segments.
    gathered: usize,
    /// Bytes at the front that belong to the hello, not to a frame.
    hello: usize,
    retired: Retired,
    /// Where memory for copied bytes comes from and goes to.
    spares: Rc<Spares>,
}

/// Memory that connections with nothing to be written have left to the others: the latest is in the processor's cache,
/// however many there are.
#[derive(Debug, Default)]
pub(crate) struct Spares(RefCell<Vec<Copies>>);

/// How many are kept, and of what length, in bytes: passing less on is not worth it.
const MOST_SPARES: usize = 64;
const SHORTEST_SPARE: usize = 4 << 10;
const LONGEST_SPARE: usize = 512 << 10;

/// Memory that is written as it lies, behind the next so many copied bytes.
#[derive(Debug)]
struct Segment {
    copied: usize,
    len: usize,
    memory: Memory,
}

#[derive(Debug)]
enum Memory {
    /// A buffer has its head before it, if there is room for one.
    User(UserMemory),
    /// A run of messages, in memory of the library's own.
    Run(Copies),
}

/// Pieces below this many bytes are copied, whatever the message's size: an entry in a gathered write costs
/// about as much as copying some hundred bytes.
const MIN_GATHERED: usize = 256;

impl Spares {
    /// Takes memory over, if it is neither too little nor too much.
    #[inline]
    fn put(&self, memory: &mut Copies) {
        if (SHORTEST_SPARE..=LONGEST_SPARE).contains(&memory.capacity()) {
            let mut spares = self.0.borrow_mut();
            if spares.len() < MOST_SPARES {
                memory.clear();
                spares.push(std::mem::take(memory));
            }
        }
    }

    fn take(&self) -> Option<Copies> {
        self.0.borrow_mut().pop()
    }

    /// Frees them.
    pub(crate) fn clear(&self) {
        self.0.take();
    }
}

impl Outbound {
    pub(crate) fn new(spares: &Rc<Spares>) -> Self {
        Self { spares: spares.clone(), ..Self::default() }
    }

    /// Bytes that wait.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.gathered + self.copied.len() - self.copied_start
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that wait, of which those that were copied count full, since they leave the cache meanwhile, and so many of the
    /// others for one, with their heads.
    #[inline]
    pub(crate) fn weight(&self, gathered: usize) -> usize {
        let copied = self.len() - self.gathered;
        self.gathered / gathered + copied.saturating_sub(HEAD_LEN * self.segments.len())
    }

    /// Adds the hello; nothing else has been added before.
    pub(crate) fn push_hello(&mut self, hello: &[u8]) {
        self.hello = hello.len();
        self.copy(hello);
    }

    /// Adds a frame that carries no message.
    pub(crate) fn push_control(&mut self, frame: Frame) {
        self.copy(&frame.head());
    }

    /// Adds a message; up to `copy_below` bytes it is copied, whatever its payload is.
    #[inline(always)]
    pub(crate) fn push(&mut self, message: Outgoing<'_>, copy_below: usize) {
        let head = Frame::Data(message.len).head();
        match message.payload {
            // Never copied, so that it returns to its pool only after completion.
            Payload::Buffer(buffer) => {
                let mut buffer = Payload::take(buffer);
                if !buffer.put_head(&head) {
                    self.copy(&head);
                }
                self.gather(Memory::User(UserMemory::Buffer(buffer)));
            }
            Payload::Copied(pieces) => self.copy_message(&head, message.header, message.len, pieces),
            Payload::Shared(pieces) if message.len <= copy_below => self.copy_message(&head, message.header, message.len, pieces),
            Payload::Raw(pieces) if message.len <= copy_below => {
                self.copy(&head);
                self.copy(message.header);
                pieces.held().for_each(|piece| self.copy(piece.as_slice()));
            }
            Payload::Shared(pieces) => {
                self.copy_message::<&[u8]>(&head, message.header, message.header.len(), &[]);
                for piece in pieces {
                    if piece.len() < MIN_GATHERED { self.copy(piece) } else { self.gather(Memory::User(UserMemory::Shared(piece.clone()))) }
                }
            }
            Payload::Raw(pieces) => {
                self.copy_message::<&[u8]>(&head, message.header, message.header.len(), &[]);
                for piece in pieces.held() {
                    if piece.as_slice().len() < MIN_GATHERED {
                        self.copy(piece.as_slice())
                    } else {
                        self.gather(Memory::User(UserMemory::Raw(piece)))
                    }
                }
            }
        }
    }

    /// Adds a run of messages, if possible without copying it.
    pub(crate) fn push_run(&mut self, run: Run<'_>) {
        match run.take(SHORTEST_SPARE, || self.spares.take()) {
            Ok(memory) => self.gather(Memory::Run(memory)),
            Err(run) => self.copy(run.bytes()),
        }
    }

    /// Lends the memory of copied bytes, to be given back before anything else is asked of this.
    pub(crate) fn lend(&mut self) -> Copies {
        if self.copied.capacity() == 0 {
            self.copied = self.spares.take().unwrap_or_default();
        }
        std::mem::take(&mut self.copied)
    }

    /// Takes it back, with what was added to it.
    pub(crate) fn give_back(&mut self, copied: Copies) {
        self.copied = copied;
    }

    /// Adds to `slices` what is to be written next, at most `max_bytes`; gives how many.
    pub(crate) fn slices<'a, const N: usize>(&'a self, slices: &mut ArrayVec<IoSlice<'a>, N>, max_bytes: usize) -> usize {
        let mut left = max_bytes;
        let (mut copied, mut offset) = (&self.copied.as_slice()[self.copied_start..], self.offset);
        for segment in &self.segments {
            let (before, after) = copied.split_at(segment.copied);
            let memory = &segment.memory.as_slice()[std::mem::take(&mut offset)..];
            copied = after;
            if !offer(slices, &mut left, before) || !offer(slices, &mut left, memory) {
                return max_bytes - left;
            }
        }
        offer(slices, &mut left, copied);
        max_bytes - left
    }

    /// `n` bytes were written; gives how many of them belong to frames. [`compact`](Self::compact) follows the last write.
    pub(crate) fn written(&mut self, n: usize) -> usize {
        let mut rest = n;
        while let Some(front) = self.segments.front_mut() {
            let copied = rest.min(front.copied);
            front.copied -= copied;
            self.copied_start += copied;
            rest -= copied;
            let left = front.len - self.offset;
            let done = rest.min(left);
            self.gathered -= done;
            rest -= done;
            if front.copied > 0 || done < left {
                self.offset += done;
                break;
            }
            self.offset = 0;
            match self.segments.pop_front().map(|segment| segment.memory) {
                Some(Memory::User(memory)) => self.retired.push(memory),
                Some(Memory::Run(mut memory)) => self.spares.put(&mut memory),
                None => {}
            }
        }
        // What is left belongs to the open end: only with all segments gone is it more than nothing.
        self.copied_start += rest;
        self.open = self.open.max(self.copied_start);
        debug_assert!(self.copied_start <= self.copied.len(), "more was written than waited");
        let hello = n.min(self.hello);
        self.hello -= hello;
        n - hello
    }

    /// Moves user memory that is no longer needed into `retired`.
    pub(crate) fn retire(&mut self, retired: &mut Vec<UserMemory>) {
        self.retired.take(retired);
    }

    /// Gives everything up that waits, of a connection that goes on. Buffers are kept until it ends.
    pub(crate) fn give_up(&mut self) {
        self.retired.give_up(self.segments.drain(..).filter_map(Segment::user));
        self.forget();
    }

    /// The same of one that has ended.
    pub(crate) fn abandon(&mut self) {
        self.retired.end(self.segments.drain(..).filter_map(Segment::user));
        self.forget();
    }

    fn forget(&mut self) {
        *self = Self { retired: std::mem::take(&mut self.retired), ..Self::new(&self.spares) };
    }

    /// Gives memory back that is not in use.
    pub(crate) fn trim(&mut self) {
        if self.is_empty() && self.retired.is_empty() {
            *self = Self { hello: self.hello, ..Self::new(&self.spares) };
        }
    }

    fn copy(&mut self, bytes: &[u8]) {
        self.copied.push(bytes, || self.spares.take());
    }

    /// Copies a whole message: its head, its header, and pieces, which together with the header are `len` bytes.
    #[inline(always)]
    fn copy_message<P: std::ops::Deref<Target = [u8]>>(&mut self, head: &[u8; HEAD_LEN], header: &[u8], len: usize, pieces: &[P]) {
        self.copied.push_message(head, header, len, pieces, || self.spares.take());
    }

    /// Adds memory behind all bytes copied so far.
    fn gather(&mut self, memory: Memory) {
        let len = memory.as_slice().len();
        self.gathered += len;
        let copied = self.copied.len() - std::mem::replace(&mut self.open, self.copied.len());
        self.segments.push_back(Segment { copied, len, memory });
    }

    /// Keeps the copied bytes from wandering off: they move to the front when more room is lost there than
    /// they take, so that each byte is moved at most once on average.
    pub(crate) fn compact(&mut self) {
        let left = self.copied.len() - self.copied_start;
        if left == 0 {
            (self.copied_start, self.open) = (0, 0);
            self.copied.clear();
            self.spares.put(&mut self.copied);
        } else if self.copied_start > left {
            self.copied.drop_front(self.copied_start);
            (self.copied_start, self.open) = (0, self.open - self.copied_start);
        }
    }
}

impl Segment {
    /// Its memory, if that is the user's.
    fn user(self) -> Option<UserMemory> {
        match self.memory {
            Memory::User(memory) => Some(memory),
            Memory::Run(_) => None,
        }
    }
}

impl Memory {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::User(UserMemory::Buffer(buffer)) => buffer.with_head(),
            Self::User(memory) => memory.as_slice(),
            Self::Run(memory) => memory.as_slice(),
        }
    }
}

/// Adds bytes to what is to be written, as far as `left` goes; whether there is room for more.
#[inline(always)]
fn offer<'a, const N: usize>(slices: &mut ArrayVec<IoSlice<'a>, N>, left: &mut usize, next: &'a [u8]) -> bool {
    let next = &next[..next.len().min(*left)];
    if !next.is_empty() && slices.try_push(IoSlice::new(next)).is_ok() {
        *left -= next.len();
    }
    *left > 0 && !slices.is_full()
}

#[cfg(test)]
mod tests;
