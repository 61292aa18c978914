//! Buffers to be filled and sent.
#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;

use thiserror::Error;

use crate::memory::MemoryRegion;
use crate::memory::pool::PoolShared;

/// A buffer of a pool: owned and `Send`, written by its holder, sent without a copy.
///
/// Sending it consumes it, and it returns to its pool after completion; dropped unsent it returns at
/// once, from any thread.
// Boxed once and for all, since it passes through many hands on its way.
pub struct NetworkBuffer(Option<Box<Block>>);

/// The memory of a buffer and where it belongs.
pub(super) struct Block {
    start: NonNull<u8>,
    /// Bytes from the start that are not the user's, of which the last `head` precede what he filled.
    headroom: usize,
    head: usize,
    capacity: usize,
    len: usize,
    id: u64,
    pool: Arc<PoolShared>,
    /// Keeps the memory mapped.
    region: MemoryRegion,
}

// SAFETY: a block is the only way to its part of the region (a region is cut once, into parts that do not
// overlap), so it may be used from whichever thread holds it.
unsafe impl Send for Block {}
// SAFETY: through a shared block the memory can only be read.
unsafe impl Sync for Block {}

/// The bytes do not fit in the buffer; nothing was written.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("{wanted} bytes do not fit in the {spare} left of the buffer")]
pub struct BufferFull {
    /// Bytes to be appended.
    pub wanted: usize,
    /// Room that was left.
    pub spare: usize,
}

impl NetworkBuffer {
    /// The part of `region` from `offset`, of `headroom` and `capacity` bytes; the caller makes sure that parts do not
    /// overlap.
    pub(super) fn of_region(
        region: &MemoryRegion,
        offset: usize,
        headroom: usize,
        capacity: usize,
        id: u64,
        pool: Arc<PoolShared>,
    ) -> Self {
        let start = region.at(offset);
        Self(Some(Box::new(Block { start, headroom, head: 0, capacity, len: 0, id, pool, region: region.clone() })))
    }

    /// The number that comes back as the key when the buffer was sent; unique in the process.
    #[inline]
    pub fn id(&self) -> u64 {
        self.block().id
    }

    /// How many bytes it can hold.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.block().capacity
    }

    /// How many bytes are filled; these are sent.
    #[inline]
    pub fn len(&self) -> usize {
        self.block().len
    }

    /// Whether nothing is filled.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The filled bytes.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        let block = self.block();
        &block.memory()[block.headroom..][..block.len]
    }

    /// The filled bytes for writing.
    #[inline]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        let block = self.block_mut();
        let (headroom, len) = (block.headroom, block.len);
        &mut block.memory_mut()[headroom..][..len]
    }

    /// The room after the filled bytes. Write there, then [`advance`](Self::advance).
    #[inline]
    pub fn spare_mut(&mut self) -> &mut [u8] {
        let block = self.block_mut();
        let filled = block.headroom + block.len;
        &mut block.memory_mut()[filled..]
    }

    /// Counts `n` bytes of the spare room as filled.
    ///
    /// # Panics
    /// When there is not that much room.
    #[inline]
    pub fn advance(&mut self, n: usize) {
        let block = self.block_mut();
        assert!(n <= block.capacity - block.len, "advanced past the capacity");
        block.len += n;
    }

    /// Appends bytes, all or none.
    ///
    /// # Errors
    /// They do not fit.
    #[inline]
    pub fn extend_from_slice(&mut self, bytes: &[u8]) -> Result<(), BufferFull> {
        let spare = self.spare_mut();
        let full = BufferFull { wanted: bytes.len(), spare: spare.len() };
        spare.get_mut(..bytes.len()).ok_or(full)?.copy_from_slice(bytes);
        self.advance(bytes.len());
        Ok(())
    }

    /// Empties it.
    #[inline]
    pub fn clear(&mut self) {
        let block = self.block_mut();
        (block.head, block.len) = (0, 0);
    }

    /// Puts a transport's head before the filled bytes, so that both are one piece; `false` if there is no room for it.
    #[doc(hidden)]
    #[inline]
    pub fn put_head<const N: usize>(&mut self, head: &[u8; N]) -> bool {
        let block = self.block_mut();
        let headroom = block.headroom;
        let Some(room) = block.memory_mut()[..headroom].last_chunk_mut::<N>() else { return false };
        *room = *head;
        block.head = N;
        true
    }

    /// The filled bytes with the head that was put before them, if any.
    #[doc(hidden)]
    #[inline]
    pub fn with_head(&self) -> &[u8] {
        let block = self.block();
        &block.memory()[block.headroom - block.head..block.headroom + block.len]
    }

    /// The region it was cut from.
    pub fn region(&self) -> &MemoryRegion {
        &self.block().region
    }

    /// Address and length of the filled part.
    pub(crate) fn range(&self) -> (usize, usize) {
        (self.as_slice().as_ptr().addr(), self.len())
    }

    pub(crate) fn pool(&self) -> &Arc<PoolShared> {
        &self.block().pool
    }

    #[inline]
    fn block(&self) -> &Block {
        self.0.as_ref().expect("only `drop` takes the block")
    }

    #[inline]
    fn block_mut(&mut self) -> &mut Block {
        self.0.as_mut().expect("only `drop` takes the block")
    }
}

impl Block {
    #[inline]
    fn memory(&self) -> &[u8] {
        // SAFETY: the block is so many initialized bytes of a mapping that `region` keeps alive, and nobody else has
        // access to them.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.headroom + self.capacity) }
    }

    #[inline]
    fn memory_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `memory`, and `self` is borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.headroom + self.capacity) }
    }
}

impl Drop for NetworkBuffer {
    fn drop(&mut self) {
        if let Some(block) = self.0.take() {
            let pool = block.pool.clone();
            pool.give_back(Self(Some(block)));
        }
    }
}

impl NetworkBuffer {
    /// Drops the memory for good; the pool is gone.
    pub(super) fn discard(mut self) {
        self.0 = None;
    }
}

impl AsRef<[u8]> for NetworkBuffer {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl io::Write for NetworkBuffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(self.spare_mut().len());
        self.spare_mut()[..n].copy_from_slice(&bytes[..n]);
        self.advance(n);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for NetworkBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetworkBuffer").field("id", &self.id()).field("len", &self.len()).field("capacity", &self.capacity()).finish()
    }
}
