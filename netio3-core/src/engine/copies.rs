//! Bytes that are copied one behind the other, and runs of messages among them.

use std::ops::{Deref, Range};

use crate::backend::CopiedMessage;
use crate::engine::RUN_HEAD_LEN;
use crate::status::Completion;

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
        copy_few(header_room, header);
        if let [piece] = pieces {
            return copy_some(rest, piece);
        }
        for piece in pieces {
            let (room, after) = rest.split_at_mut(piece.len());
            room.copy_from_slice(piece);
            rest = after;
        }
        debug_assert!(rest.is_empty());
    }

    /// The same for one piece where there is memory for it: without a call if it is short.
    #[inline(always)]
    pub(super) fn push_message_of_one(&mut self, head: [u8; RUN_HEAD_LEN], header: &[u8], piece: &[u8]) {
        let room = &mut self.memory[self.filled..];
        self.filled += RUN_HEAD_LEN + header.len() + piece.len();
        write_frame(room, head, header, piece);
    }

    /// Adds several messages, each after its head, which together are `len` bytes.
    #[inline(never)]
    pub(super) fn push_messages<const N: usize>(&mut self, messages: &[CopiedMessage<'_>], len: usize, head: impl Fn(usize) -> [u8; N]) {
        let mut room = self.room(len, || None);
        for message in messages {
            room = write_frame(room, head(message.len()), message.header, message.data);
        }
        debug_assert!(room.is_empty());
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

/// How many of copied messages, up to the first that is not to be accepted, fit into so many bytes with a head before each,
/// and the bytes of those.
#[inline]
pub(super) fn fitting(
    messages: &[CopiedMessage<'_>],
    head: usize,
    room: usize,
    accepts: impl Fn(&CopiedMessage<'_>) -> bool,
) -> (usize, usize) {
    let (mut fit, mut end) = (0, 0);
    for message in messages {
        let behind = end + head + message.len();
        if behind > room || !accepts(message) {
            break;
        }
        (fit, end) = (fit + 1, behind);
    }
    (fit, end)
}

/// Writes a head, a header and a piece; gives the room behind them.
#[inline(always)]
fn write_frame<'a, const N: usize>(room: &'a mut [u8], head: [u8; N], header: &[u8], piece: &[u8]) -> &'a mut [u8] {
    let (head_room, room) = room.split_first_chunk_mut::<N>().expect("there is memory for it");
    *head_room = head;
    let (header_room, room) = room.split_at_mut(header.len());
    copy_few(header_room, header);
    let (piece_room, rest) = room.split_at_mut(piece.len());
    copy_some(piece_room, piece);
    rest
}

/// Copies bytes that are mostly few, such as a header: without a call where they are at most 16.
#[inline(always)]
fn copy_few(to: &mut [u8], from: &[u8]) {
    debug_assert_eq!(to.len(), from.len());
    match from.len() {
        17.. => to.copy_from_slice(from),
        8.. => copy_ends::<8>(to, from),
        _ => to.iter_mut().zip(from).for_each(|(to, from)| *to = *from),
    }
}

/// Copies bytes, without a call where they are at most 64.
#[inline(always)]
fn copy_some(to: &mut [u8], from: &[u8]) {
    debug_assert_eq!(to.len(), from.len());
    match from.len() {
        65.. => to.copy_from_slice(from),
        33.. => copy_ends::<32>(to, from),
        17.. => copy_ends::<16>(to, from),
        _ => copy_few(to, from),
    }
}

/// Copies the first `N` bytes and the last `N`, which overlap where there are fewer than twice as many.
#[inline(always)]
fn copy_ends<const N: usize>(to: &mut [u8], from: &[u8]) {
    if let (Some(first), Some(last)) = (from.first_chunk::<N>(), from.last_chunk::<N>()) {
        *to.first_chunk_mut::<N>().expect("as long as `from`") = *first;
        *to.last_chunk_mut::<N>().expect("as long as `from`") = *last;
    }
}

/// Accepted messages that were copied one behind the other, each after the head that
/// [`Transport::RUN_HEAD`](super::Transport::RUN_HEAD) gives.
pub struct Run<'a> {
    pub(super) messages: &'a [Completion],
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
        self.messages.iter().map(move |message| {
            let (message, after) = rest[self.head..].split_at(message.len as usize);
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
