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
pub struct NetworkBuffer(Option<Block>);

/// The memory of a buffer and where it belongs.
pub(super) struct Block {
    start: NonNull<u8>,
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
    /// The part of `region` from `offset`; the caller makes sure that parts do not overlap.
    pub(super) fn of_region(region: &MemoryRegion, offset: usize, capacity: usize, id: u64, pool: Arc<PoolShared>) -> Self {
        Self(Some(Block { start: region.at(offset), capacity, len: 0, id, pool, region: region.clone() }))
    }

    /// The number that comes back as the key when the buffer was sent; unique in the process.
    pub fn id(&self) -> u64 {
        self.block().id
    }

    /// How many bytes it can hold.
    pub fn capacity(&self) -> usize {
        self.block().capacity
    }

    /// How many bytes are filled; these are sent.
    pub fn len(&self) -> usize {
        self.block().len
    }

    /// Whether nothing is filled.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The filled bytes.
    pub fn as_slice(&self) -> &[u8] {
        let block = self.block();
        // SAFETY: the block is `capacity >= len` initialized bytes of a mapping that `region` keeps alive,
        // and nobody else has access to them.
        unsafe { slice::from_raw_parts(block.start.as_ptr(), block.len) }
    }

    /// The filled bytes for writing.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        let len = self.len();
        &mut self.whole()[..len]
    }

    /// The room after the filled bytes. Write there, then [`advance`](Self::advance).
    pub fn spare_mut(&mut self) -> &mut [u8] {
        let len = self.len();
        &mut self.whole()[len..]
    }

    /// Counts `n` bytes of the spare room as filled.
    ///
    /// # Panics
    /// When there is not that much room.
    pub fn advance(&mut self, n: usize) {
        let block = self.block_mut();
        assert!(n <= block.capacity - block.len, "advanced past the capacity");
        block.len += n;
    }

    /// Appends bytes, all or none.
    ///
    /// # Errors
    /// They do not fit.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) -> Result<(), BufferFull> {
        let spare = self.spare_mut();
        let full = BufferFull { wanted: bytes.len(), spare: spare.len() };
        spare.get_mut(..bytes.len()).ok_or(full)?.copy_from_slice(bytes);
        self.advance(bytes.len());
        Ok(())
    }

    /// Empties it.
    pub fn clear(&mut self) {
        self.block_mut().len = 0;
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

    fn whole(&mut self) -> &mut [u8] {
        let block = self.block_mut();
        // SAFETY: as in `as_slice`, and `self` is borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(block.start.as_ptr(), block.capacity) }
    }

    fn block(&self) -> &Block {
        self.0.as_ref().expect("only `drop` takes the block")
    }

    fn block_mut(&mut self) -> &mut Block {
        self.0.as_mut().expect("only `drop` takes the block")
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
