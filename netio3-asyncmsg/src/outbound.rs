//! What waits to be written to a socket.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::rc::Rc;

use bytes::Bytes;
use netio3_core::engine::{Copies, Outgoing, Payload, Retired, Run};
use netio3_core::{HeldSlice, NetworkBuffer};

use crate::frame::{Frame, HEAD_LEN};

/// The bytes to be written, in order: those that were copied here, and pieces of the user's memory.
///
/// It does no I/O: [`slices`](Self::slices) says what to write, [`written`](Self::written) how far that went.
#[derive(Debug, Default)]
pub(crate) struct Outbound {
    segments: VecDeque<Segment>,
    /// Bytes of the first segment that are written already.
    offset: usize,
    /// Copied bytes, those before `copied_start` written; those from `open` on come after all segments.
    copied: Copies,
    copied_start: usize,
    open: usize,
    /// Bytes of runs that wait.
    taken: usize,
    /// Bytes that wait in the user's memory.
    gathered: usize,
    /// Bytes at the front that belong to the hello, not to a frame.
    hello: usize,
    retired: Vec<Retired>,
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

#[derive(Debug)]
enum Segment {
    /// The next so many copied bytes.
    Copied(usize),
    Shared(Bytes),
    Raw(HeldSlice),
    Buffer(NetworkBuffer),
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
        self.gathered + self.taken + self.copied.len() - self.copied_start
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
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
                let buffer = Payload::take(buffer);
                self.copy(&head);
                self.gather(buffer.len(), Segment::Buffer(buffer));
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
                    if piece.len() < MIN_GATHERED { self.copy(piece) } else { self.gather(piece.len(), Segment::Shared(piece.clone())) }
                }
            }
            Payload::Raw(pieces) => {
                self.copy_message::<&[u8]>(&head, message.header, message.header.len(), &[]);
                for piece in pieces.held() {
                    let len = piece.as_slice().len();
                    if len < MIN_GATHERED { self.copy(piece.as_slice()) } else { self.gather(len, Segment::Raw(piece)) }
                }
            }
        }
    }

    /// Adds a run of messages, if possible without copying it.
    pub(crate) fn push_run(&mut self, run: Run<'_>) {
        match run.take(SHORTEST_SPARE, || self.spares.take()) {
            Ok(memory) => self.push_memory(memory),
            Err(run) => self.copy(run.bytes()),
        }
    }

    fn push_memory(&mut self, memory: Copies) {
        self.close_copied();
        self.taken += memory.len();
        self.segments.push_back(Segment::Run(memory));
    }

    /// How many pieces wait, not counting copied bytes after the last one of the user's.
    pub(crate) fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Fills `slices` with what is to be written next, at most `max_bytes`; gives their number and their bytes.
    pub(crate) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>], max_bytes: usize) -> (usize, usize) {
        let (mut count, mut bytes) = (0, 0);
        let mut copied = self.copied_start;
        let mut skip = self.offset;
        for segment in &self.segments {
            if count == slices.len() || bytes >= max_bytes {
                break;
            }
            let whole = match segment {
                Segment::Copied(n) => {
                    let from = copied;
                    // The bytes that `offset` counts are gone from `copied` already.
                    copied += n - skip;
                    skip = 0;
                    &self.copied.as_slice()[from..copied]
                }
                Segment::Shared(piece) => piece,
                Segment::Raw(piece) => piece.as_slice(),
                Segment::Buffer(buffer) => buffer.as_slice(),
                Segment::Run(copies) => copies.as_slice(),
            };
            let rest = &whole[skip..];
            let rest = &rest[..rest.len().min(max_bytes - bytes)];
            skip = 0;
            slices[count] = IoSlice::new(rest);
            count += 1;
            bytes += rest.len();
        }
        let open = &self.copied.as_slice()[self.open..];
        let open = &open[..open.len().min(max_bytes - bytes)];
        if !open.is_empty() && count < slices.len() && bytes < max_bytes {
            slices[count] = IoSlice::new(open);
            count += 1;
            bytes += open.len();
        }
        (count, bytes)
    }

    /// `n` bytes were written; gives how many of them belong to frames. [`compact`](Self::compact) follows the last write.
    pub(crate) fn written(&mut self, n: usize) -> usize {
        let mut rest = n;
        while let Some(front) = self.segments.front() {
            let left = front.len() - self.offset;
            let done = rest.min(left);
            rest -= done;
            match front {
                Segment::Copied(_) => self.copied_start += done,
                Segment::Shared(_) | Segment::Raw(_) | Segment::Buffer(_) => self.gathered -= done,
                Segment::Run(_) => self.taken -= done,
            }
            if done < left {
                self.offset += done;
                break;
            }
            self.offset = 0;
            match self.segments.pop_front() {
                Some(Segment::Shared(piece)) => self.retired.push(Retired::Shared(piece)),
                Some(Segment::Buffer(buffer)) => self.retired.push(Retired::Buffer(buffer)),
                Some(Segment::Run(mut memory)) => self.spares.put(&mut memory),
                Some(Segment::Copied(_) | Segment::Raw(_)) | None => {}
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
    pub(crate) fn retire(&mut self, retired: &mut Vec<Retired>) {
        retired.append(&mut self.retired);
    }

    /// Forgets everything that waits; its memory is to be retired.
    pub(crate) fn abandon(&mut self) {
        for segment in self.segments.drain(..) {
            match segment {
                Segment::Shared(piece) => self.retired.push(Retired::Shared(piece)),
                Segment::Buffer(buffer) => self.retired.push(Retired::Buffer(buffer)),
                Segment::Copied(_) | Segment::Raw(_) | Segment::Run(_) => {}
            }
        }
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

    fn gather(&mut self, len: usize, segment: Segment) {
        self.close_copied();
        self.gathered += len;
        self.segments.push_back(segment);
    }

    /// What comes next comes behind all bytes copied so far.
    fn close_copied(&mut self) {
        if self.open < self.copied.len() {
            self.segments.push_back(Segment::Copied(self.copied.len() - self.open));
            self.open = self.copied.len();
        }
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
    fn len(&self) -> usize {
        match self {
            Self::Copied(n) => *n,
            Self::Shared(piece) => piece.len(),
            Self::Raw(piece) => piece.as_slice().len(),
            Self::Buffer(buffer) => buffer.len(),
            Self::Run(memory) => memory.len(),
        }
    }
}

#[cfg(test)]
mod tests;
