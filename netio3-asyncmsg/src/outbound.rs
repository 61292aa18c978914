//! What waits to be written to a socket.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::rc::Rc;

use bytes::Bytes;
use netio3_core::engine::{Outgoing, Payload, Retired};
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
    /// Memory for the copied bytes, which lie from `copied_start` to `copied_end`; those from `open` on come after all
    /// segments.
    copied: Vec<u8>,
    copied_start: usize,
    open: usize,
    copied_end: usize,
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
pub(crate) struct Spares(RefCell<Vec<Vec<u8>>>);

/// How many are kept, and of what length, in bytes: passing less on is not worth it.
const MOST_SPARES: usize = 16;
const SHORTEST_SPARE: usize = 4 << 10;
const LONGEST_SPARE: usize = 256 << 10;

#[derive(Debug)]
enum Segment {
    /// The next so many copied bytes.
    Copied(usize),
    Shared(Bytes),
    Raw(HeldSlice),
    Buffer(NetworkBuffer),
}

/// Pieces below this many bytes are copied, whatever the message's size: an entry in a gathered write costs
/// about as much as copying some hundred bytes.
const MIN_GATHERED: usize = 256;

impl Spares {
    /// Takes memory over, if it is neither too little nor too much.
    #[inline]
    fn put(&self, memory: &mut Vec<u8>) {
        if (SHORTEST_SPARE..=LONGEST_SPARE).contains(&memory.len()) {
            let mut spares = self.0.borrow_mut();
            if spares.len() < MOST_SPARES {
                spares.push(std::mem::take(memory));
            }
        }
    }

    fn take(&self) -> Option<Vec<u8>> {
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
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.gathered + self.copied_end - self.copied_start
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.gathered == 0 && self.copied_start == self.copied_end
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

    /// How much waits, as far as it bears on when to write: bytes that were copied count whole, those to be
    /// gathered a quarter. Copied ones are best written while they are in the cache, gathered ones many at once.
    #[inline]
    pub(crate) fn weight(&self) -> usize {
        self.copied_end - self.copied_start + self.gathered / 4
    }

    /// How many pieces wait, not counting copied bytes after the last one of the user's.
    pub(crate) fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Fills `slices` with what is to be written next, at most `max_bytes` (but at least one piece); gives
    /// their number and their bytes.
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
                    &self.copied[from..copied]
                }
                Segment::Shared(piece) => piece,
                Segment::Raw(piece) => piece.as_slice(),
                Segment::Buffer(buffer) => buffer.as_slice(),
            };
            let rest = &whole[skip..];
            skip = 0;
            slices[count] = IoSlice::new(rest);
            count += 1;
            bytes += rest.len();
        }
        if self.open < self.copied_end && count < slices.len() && bytes < max_bytes {
            slices[count] = IoSlice::new(&self.copied[self.open..self.copied_end]);
            count += 1;
            bytes += self.copied_end - self.open;
        }
        (count, bytes)
    }

    /// `n` bytes were written; gives how many of them belong to frames.
    pub(crate) fn written(&mut self, n: usize) -> usize {
        let mut rest = n;
        while let Some(front) = self.segments.front() {
            let left = front.len() - self.offset;
            let done = rest.min(left);
            rest -= done;
            match front {
                Segment::Copied(_) => self.copied_start += done,
                Segment::Shared(_) | Segment::Raw(_) | Segment::Buffer(_) => self.gathered -= done,
            }
            if done < left {
                self.offset += done;
                break;
            }
            self.offset = 0;
            match self.segments.pop_front() {
                Some(Segment::Shared(piece)) => self.retired.push(Retired::Shared(piece)),
                Some(Segment::Buffer(buffer)) => self.retired.push(Retired::Buffer(buffer)),
                Some(Segment::Copied(_) | Segment::Raw(_)) | None => {}
            }
        }
        // What is left belongs to the open end: only with all segments gone is it more than nothing.
        self.copied_start += rest;
        self.open = self.open.max(self.copied_start);
        debug_assert!(self.copied_start <= self.copied_end, "more was written than waited");
        self.compact();
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
                Segment::Copied(_) | Segment::Raw(_) => {}
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
        self.room(bytes.len()).copy_from_slice(bytes);
    }

    /// Copies a whole message: its head, its header, and pieces, which together with the header are `len` bytes.
    #[inline(always)]
    fn copy_message<P: std::ops::Deref<Target = [u8]>>(&mut self, head: &[u8; HEAD_LEN], header: &[u8], len: usize, pieces: &[P]) {
        let (head_room, message) = self.room(HEAD_LEN + len).split_at_mut(HEAD_LEN);
        head_room.copy_from_slice(head);
        let (header_room, mut rest) = message.split_at_mut(header.len());
        copy_short(header_room, header);
        if let [piece] = pieces {
            return rest.copy_from_slice(piece);
        }
        for piece in pieces {
            let (room, after) = rest.split_at_mut(piece.len());
            room.copy_from_slice(piece);
            rest = after;
        }
        debug_assert!(rest.is_empty());
    }

    /// Room for so many more copied bytes, to be filled by the caller.
    #[inline(always)]
    fn room(&mut self, n: usize) -> &mut [u8] {
        if self.copied.len() - self.copied_end < n {
            self.grow(n);
        }
        let start = self.copied_end;
        self.copied_end += n;
        &mut self.copied[start..start + n]
    }

    #[cold]
    fn grow(&mut self, n: usize) {
        if self.copied.is_empty() {
            self.copied = self.spares.take().unwrap_or_default();
            if self.copied.len() >= n {
                return;
            }
        }
        self.copied.truncate(self.copied_end);
        self.copied.reserve(n);
        self.copied.resize(self.copied.capacity(), 0);
    }

    fn gather(&mut self, len: usize, segment: Segment) {
        if self.open < self.copied_end {
            self.segments.push_back(Segment::Copied(self.copied_end - self.open));
            self.open = self.copied_end;
        }
        self.gathered += len;
        self.segments.push_back(segment);
    }

    /// Keeps the copied bytes from wandering off: they move to the front when more room is lost there than
    /// they take, so that each byte is moved at most once on average.
    fn compact(&mut self) {
        let left = self.copied_end - self.copied_start;
        if left == 0 {
            (self.copied_start, self.open, self.copied_end) = (0, 0, 0);
            self.spares.put(&mut self.copied);
        } else if self.copied_start > left {
            self.copied.copy_within(self.copied_start..self.copied_end, 0);
            (self.copied_start, self.open, self.copied_end) = (0, self.open - self.copied_start, left);
        }
    }
}

/// Copies bytes that are mostly few, such as a header: without a call where they are at most 16.
#[inline(always)]
fn copy_short(to: &mut [u8], from: &[u8]) {
    if from.len() > 16 {
        return to.copy_from_slice(from);
    }
    // Two halves that overlap where the length is not a power of two.
    if let (Some(head), Some(tail)) = (from.first_chunk::<8>(), from.last_chunk::<8>()) {
        to[..8].copy_from_slice(head);
        *to.last_chunk_mut::<8>().expect("as long as `from`") = *tail;
    } else {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    }
}

impl Segment {
    fn len(&self) -> usize {
        match self {
            Self::Copied(n) => *n,
            Self::Shared(piece) => piece.len(),
            Self::Raw(piece) => piece.as_slice().len(),
            Self::Buffer(buffer) => buffer.len(),
        }
    }
}

#[cfg(test)]
mod tests;
