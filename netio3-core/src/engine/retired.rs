//! Memory of the user's, from the acceptance of a message until it is given back.

use bytes::Bytes;

use crate::memory::{HeldSlice, NetworkBuffer};

/// Memory of the user's that an accepted message holds.
#[derive(Debug)]
pub enum UserMemory {
    /// Shared memory.
    Shared(Bytes),
    /// Raw memory.
    Raw(HeldSlice),
    /// A buffer; it goes back to its pool.
    Buffer(NetworkBuffer),
}

/// The user's memory that a connection's queue needs no longer, until it is [asked for](super::Transport::retire).
#[derive(Debug, Default)]
pub struct Retired {
    memory: Vec<UserMemory>,
    /// Buffers of messages that were given up, whose keys come back at the end of the connection: who got one of them from its
    /// pool before would send under the same key once more.
    kept: Vec<UserMemory>,
}

impl UserMemory {
    /// What is to be sent of it.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Shared(bytes) => bytes,
            Self::Raw(slice) => slice.as_slice(),
            Self::Buffer(buffer) => buffer.as_slice(),
        }
    }
}

impl Retired {
    /// Of messages that have left, in order.
    #[inline]
    pub fn push(&mut self, memory: UserMemory) {
        self.memory.push(memory);
    }

    /// Of messages that will not leave, though their connection has not ended.
    pub fn give_up(&mut self, memory: impl Iterator<Item = UserMemory>) {
        for memory in memory {
            let list = if matches!(memory, UserMemory::Buffer(_)) { &mut self.kept } else { &mut self.memory };
            list.push(memory);
        }
    }

    /// Of messages that will not leave, since their connection has ended; what was kept until then goes before it.
    pub fn end(&mut self, memory: impl Iterator<Item = UserMemory>) {
        self.memory.append(&mut self.kept);
        self.memory.extend(memory);
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.memory.is_empty() && self.kept.is_empty()
    }

    /// Moves what may be given back into `memory`.
    pub fn take(&mut self, memory: &mut Vec<UserMemory>) {
        memory.append(&mut self.memory);
    }
}
