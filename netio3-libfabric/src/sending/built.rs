//! A packet that is put together, and the memory it lies in.

use super::{Held, MAX_PIECES};
use crate::fabric::Desc;
use crate::slab::{Slab, Slot};
use crate::wire::{HEAD_LEN, Head, Kind, LEN_LEN};

/// Memory of one packet.
pub(super) enum Memory {
    Send(Slot),
    Head(Slot),
    Heap(Box<[u8]>),
}

/// A packet to be posted.
#[derive(Default)]
pub(crate) struct Built {
    pub(super) is_ready: bool,
    /// None of further parts of a message, which have no head.
    pub(super) kind: Option<Kind>,
    /// Parts of a message that need none have none.
    pub(super) memory: Option<Memory>,
    /// Stretches of its own memory and of the user's: address, length, and what the device wants to be told.
    pieces: [(usize, usize, Desc); MAX_PIECES],
    count: usize,
    /// The registrations of those of the user's, until it is posted.
    pub(super) used: Vec<Held>,
    pub(super) messages: u32,
    pub(super) user_pieces: usize,
    /// Bytes of the user's memory that the device does not know and that were copied for it.
    pub(crate) copied: usize,
    pub(crate) len: usize,
}

impl Built {
    /// Becomes a packet that has nothing in it yet.
    pub(super) fn begin(&mut self, kind: Option<Kind>, memory: Option<Memory>, messages: u32, user_pieces: usize) {
        (self.kind, self.memory, self.messages, self.user_pieces) = (kind, memory, messages, user_pieces);
        (self.count, self.copied, self.len) = (0, 0, 0);
        self.is_ready = true;
    }

    pub(super) fn add(&mut self, start: usize, len: usize, desc: Desc) {
        self.pieces[self.count] = (start, len, desc);
        self.count += 1;
        self.len += len;
    }

    pub(super) fn add_memory(&mut self, slab: &Slab, at: usize, len: usize) {
        if let Some((start, desc)) = self.memory.as_ref().map(|memory| memory.start(slab)) {
            self.add(start + at, len, desc);
        }
    }

    /// How many of the bytes are in it that [`Sending::push`](super::Sending::push) counted.
    pub(super) fn waited(&self) -> usize {
        match self.kind {
            // The length of the message was counted and is in the head.
            Some(Kind::First(_)) => self.len - HEAD_LEN + LEN_LEN,
            Some(_) => self.len - HEAD_LEN,
            None => self.len,
        }
    }

    /// Whether it has a head, which credits can be told in.
    pub(crate) fn has_head(&self) -> bool {
        self.kind.is_some()
    }

    /// Writes the head, which tells the credits of this moment.
    pub(crate) fn write_head(&mut self, slab: &Slab, credits: u16, control: u8) {
        if let (Some(kind), Some(memory)) = (self.kind, &mut self.memory) {
            memory.bytes_mut(slab)[..HEAD_LEN].copy_from_slice(&Head { kind, credits, control }.encode());
        }
    }

    /// The pieces to be posted: the address, how long, and what the device wants to be told.
    pub(crate) fn pieces(&self) -> &[(usize, usize, Desc)] {
        &self.pieces[..self.count]
    }

    /// All bytes, if they lie in one piece of its own memory.
    pub(crate) fn contiguous<'a>(&'a self, slab: &'a Slab) -> Option<&'a [u8]> {
        let memory = self.memory.as_ref().filter(|memory| self.count == 1 && memory.start(slab).0 == self.pieces[0].0)?;
        Some(memory.bytes(slab, self.len))
    }
}

impl Memory {
    pub(super) fn bytes<'a>(&'a self, slab: &'a Slab, len: usize) -> &'a [u8] {
        match self {
            Self::Send(slot) | Self::Head(slot) => slab.filled(slot, len),
            Self::Heap(memory) => &memory[..len],
        }
    }

    pub(super) fn bytes_mut<'a>(&'a mut self, slab: &'a Slab) -> &'a mut [u8] {
        match self {
            Self::Send(slot) | Self::Head(slot) => slab.room(slot),
            Self::Heap(memory) => memory,
        }
    }

    fn start(&self, slab: &Slab) -> (usize, Desc) {
        match self {
            Self::Send(slot) | Self::Head(slot) => (slab.start(slot).addr(), slab.desc()),
            Self::Heap(memory) => (memory.as_ptr().addr(), Desc::NONE),
        }
    }
}
