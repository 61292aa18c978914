//! Bytes that are copied one behind the other, and runs of messages among them.

use std::ops::{Deref, Range};

/// Memory that is filled from the front, and used again and again.
#[derive(Debug, Default)]
pub struct Copies {
    /// All of it is initialized, so that nothing is cleared before it is filled.
    memory: Vec<u8>,
    filled: usize,
}

impl Copies {
    /// What was copied here.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        &self.memory[..self.filled]
    }

    /// The number of bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.filled
    }

    /// Whether nothing was copied here.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// How many bytes there is memory for.
    pub fn capacity(&self) -> usize {
        self.memory.len()
    }

    /// Forgets the bytes, not the memory.
    pub fn clear(&mut self) {
        self.filled = 0;
    }

    /// Forgets the first `n` bytes; the others move to the front.
    pub fn drop_front(&mut self, n: usize) {
        self.memory.copy_within(n..self.filled, 0);
        self.filled -= n;
    }

    /// Adds bytes. `spare` is asked for memory where there is none.
    #[inline]
    pub fn push(&mut self, bytes: &[u8], spare: impl FnOnce() -> Option<Self>) {
        self.room(bytes.len(), spare).copy_from_slice(bytes);
    }

    /// Adds a whole message: its head, its header, and pieces, which together with the header are `len` bytes.
    #[inline(always)]
    pub fn push_message<P: Deref<Target = [u8]>>(
        &mut self,
        head: &[u8],
        header: &[u8],
        len: usize,
        pieces: &[P],
        spare: impl FnOnce() -> Option<Self>,
    ) {
        let (head_room, message) = self.room(head.len() + len, spare).split_at_mut(head.len());
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

    /// Room for so many more bytes, to be filled by the caller.
    #[inline(always)]
    fn room(&mut self, n: usize, spare: impl FnOnce() -> Option<Self>) -> &mut [u8] {
        let start = self.filled;
        // One look at the length: in this way round the compiler needs no other.
        match start.checked_add(n) {
            Some(end) if end <= self.memory.len() => {
                self.filled = end;
                &mut self.memory[start..end]
            }
            _ => self.grow(n, spare),
        }
    }

    #[cold]
    fn grow(&mut self, n: usize, spare: impl FnOnce() -> Option<Self>) -> &mut [u8] {
        if self.memory.is_empty() {
            *self = spare().unwrap_or_default();
        }
        if self.memory.len() - self.filled < n {
            self.memory.truncate(self.filled);
            self.memory.reserve(n);
            self.memory.resize(self.memory.capacity(), 0);
        }
        let room = &mut self.memory[self.filled..][..n];
        self.filled += n;
        room
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

/// Accepted messages that were copied one behind the other, each after the head that
/// [`Transport::RUN_HEAD`](super::Transport::RUN_HEAD) gives.
pub struct Run<'a> {
    /// The bytes of each message.
    pub(super) lens: &'a [u32],
    pub(super) copies: &'a mut Copies,
    /// Where it lies.
    pub(super) place: Range<usize>,
    /// The length of a head.
    pub(super) head: usize,
}

impl Run<'_> {
    /// The messages, without their heads.
    pub fn messages(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.bytes();
        self.lens.iter().map(move |len| {
            let (message, after) = rest[self.head..].split_at(*len as usize);
            rest = after;
            message
        })
    }

    /// The messages with their heads.
    pub fn bytes(&self) -> &[u8] {
        &self.copies.as_slice()[self.place.clone()]
    }

    /// Takes the memory that it lies in, in exchange for other, where nothing else lies there.
    ///
    /// # Errors
    /// The run, where something does, or where it is less than `least` bytes or a small part of the memory.
    pub fn take(self, least: usize, spare: impl FnOnce() -> Option<Copies>) -> Result<Copies, Self> {
        let len = self.copies.len();
        if self.place == (0..len) && len >= least && len >= self.copies.capacity() / 8 {
            Ok(std::mem::replace(self.copies, spare().unwrap_or_default()))
        } else {
            Err(self)
        }
    }
}
