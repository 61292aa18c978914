//! Pools of buffers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::config::Buffers;
use crate::endpoint::Endpoint;
use crate::event_loop::Remote;
use crate::memory::{MemoryRegion, NetworkBuffer, RegionInUse};

/// A fixed number of buffers of one size.
///
/// Every connection opened with [`buffers`](crate::ConnectionParameters::buffers) has one;
/// [`MemoryRegion::cut`] makes one of the user's own, whose buffers can be sent on any connection.
/// Taking a buffer touches no lock and no atomic read-modify-write unless the pool's own list is empty.
pub struct BufferPool {
    free: Vec<NetworkBuffer>,
    shared: Arc<PoolShared>,
    region: MemoryRegion,
    size: usize,
    low_water: usize,
}

impl std::fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BufferPool").field("size", &self.size).field("available", &self.available()).finish()
    }
}

/// The part of a pool that its buffers know: where they return when dropped.
pub(crate) struct PoolShared {
    /// The connection whose buffers these are; `None` for a pool of the user's.
    owner: Option<Endpoint>,
    returned: Mutex<Returned>,
    /// `returned.buffers.len()`, readable without the lock.
    returned_count: AtomicUsize,
    /// Somebody found the pool empty and waits to be told.
    starved: AtomicBool,
    remote: Option<Arc<dyn Remote>>,
}

struct Returned {
    buffers: Vec<NetworkBuffer>,
    pool_gone: bool,
}

/// Bytes before each buffer of a connection, for a transport's head: a line of the processor's cache.
pub(crate) const HEADROOM: usize = 64;

impl BufferPool {
    /// The pool of a connection, if it is to have one.
    ///
    /// # Errors
    /// Not that much memory.
    pub(crate) fn of_connection(owner: Endpoint, buffers: Option<Buffers>, remote: &Arc<dyn Remote>) -> std::io::Result<Option<Self>> {
        let Some(buffers) = buffers else { return Ok(None) };
        let (Some(stride), Some(bytes)) = (buffers.stride(), buffers.bytes()) else { return Err(std::io::ErrorKind::OutOfMemory.into()) };
        let pool = Self::new(MemoryRegion::new(bytes)?, stride, HEADROOM, buffers.size, Some(owner), Some(remote.clone()));
        Ok(Some(pool.expect("nobody else has the region")))
    }

    pub(super) fn of_region(region: MemoryRegion, size: usize) -> Result<Self, RegionInUse> {
        Self::new(region, size, 0, size, None, None)
    }

    /// A buffer for every `stride` bytes of the region.
    fn new(
        region: MemoryRegion,
        stride: usize,
        headroom: usize,
        size: usize,
        owner: Option<Endpoint>,
        remote: Option<Arc<dyn Remote>>,
    ) -> Result<Self, RegionInUse> {
        region.claim_for_buffers()?;
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let count = region.len() / stride;
        let shared = Arc::new(PoolShared {
            owner,
            returned: Mutex::new(Returned { buffers: Vec::with_capacity(count), pool_gone: false }),
            returned_count: AtomicUsize::new(0),
            starved: AtomicBool::new(false),
            remote,
        });
        // Relaxed: the numbers only have to be unique.
        let first_id = NEXT_ID.fetch_add(count as u64, Ordering::Relaxed);
        let buffer = |i: usize| NetworkBuffer::of_region(&region, i * stride, headroom, size, first_id + i as u64, shared.clone());
        // Reversed, so that buffers are taken in the order of their addresses.
        let free = (0..count).rev().map(buffer).collect();
        Ok(Self { free, shared, region, size, low_water: count })
    }

    /// A buffer, empty, or `None` when all are in use.
    pub fn take(&mut self) -> Option<NetworkBuffer> {
        if self.free.is_empty() {
            self.reclaim();
        }
        let taken = self.free.pop();
        self.low_water = self.low_water.min(self.available());
        taken
    }

    /// How many buffers are free now.
    pub fn available(&self) -> usize {
        // SeqCst: ordered after the store of `set_starved`, as `give_back` does both the other way round.
        self.free.len() + self.shared.returned_count.load(Ordering::SeqCst)
    }

    /// The fewest free buffers since the last call of this.
    pub fn low_water(&mut self) -> usize {
        let available = self.available();
        std::mem::replace(&mut self.low_water, available).min(available)
    }

    /// The memory of all buffers.
    pub fn region(&self) -> &MemoryRegion {
        &self.region
    }

    /// The capacity of each buffer, in bytes.
    pub fn buffer_size(&self) -> usize {
        self.size
    }

    /// Takes a sent buffer back, without touching the shared list.
    pub(crate) fn put_back(&mut self, mut buffer: NetworkBuffer) {
        if Arc::ptr_eq(buffer.pool(), &self.shared) {
            buffer.clear();
            self.free.push(buffer);
        }
    }

    /// Asks to be woken when a buffer is dropped; call it after `take` gave `None`.
    pub(crate) fn set_starved(&self) {
        // SeqCst: ordered against the load in `give_back`, so that one of the two sides sees the other.
        self.shared.starved.store(true, Ordering::SeqCst);
    }

    fn reclaim(&mut self) {
        if self.shared.returned_count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut returned = self.shared.returned.lock();
        self.free.append(&mut returned.buffers);
        self.shared.returned_count.store(0, Ordering::Release);
    }
}

impl Drop for BufferPool {
    fn drop(&mut self) {
        let stranded = {
            let mut returned = self.shared.returned.lock();
            returned.pool_gone = true;
            std::mem::take(&mut returned.buffers)
        };
        // Buffers know their pool, so they have to be taken apart for both to be freed.
        stranded.into_iter().chain(self.free.drain(..)).for_each(NetworkBuffer::discard);
    }
}

impl PoolShared {
    /// The connection whose buffers these are.
    pub(crate) fn owner(&self) -> Option<Endpoint> {
        self.owner
    }

    /// Takes a dropped buffer back, from any thread.
    pub(super) fn give_back(&self, mut buffer: NetworkBuffer) {
        buffer.clear();
        let mut returned = self.returned.lock();
        if returned.pool_gone {
            drop(returned);
            return buffer.discard();
        }
        returned.buffers.push(buffer);
        self.returned_count.store(returned.buffers.len(), Ordering::SeqCst);
        drop(returned);
        if self.starved.swap(false, Ordering::SeqCst)
            && let Some(remote) = &self.remote
        {
            remote.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn low_water_is_the_minimum_since_the_last_call() {
        let mut pool = MemoryRegion::new(64 * 4).unwrap().cut(64).unwrap();
        assert_eq!(pool.low_water(), 4);
        let taken: Vec<_> = (0..3).map(|_| pool.take().unwrap()).collect();
        drop(taken);
        assert_eq!(pool.low_water(), 1);
        assert_eq!(pool.low_water(), 4);
    }

    #[test]
    fn buffers_of_a_connection_have_room_for_a_head_and_share_no_byte() {
        let mut pool = BufferPool::new(MemoryRegion::new(3 * (64 + 128)).unwrap(), 64 + 128, HEADROOM, 100, None, None).unwrap();
        let mut taken: Vec<_> = (0..3).map(|_| pool.take().unwrap()).collect();
        assert!(pool.take().is_none());
        for (i, buffer) in taken.iter_mut().enumerate() {
            buffer.extend_from_slice(&[i as u8; 100]).unwrap();
            assert_eq!(buffer.with_head(), [i as u8; 100]);
            assert!(buffer.put_head(&[0xA0 + i as u8; 8]) && !buffer.put_head(&[0; 65]));
            // There is no other way to its memory.
            assert!(buffer.region().bytes().is_err() && buffer.region().cut(64).is_err());
        }
        for (i, buffer) in taken.iter().enumerate() {
            let whole = [&[0xA0 + i as u8; 8][..], &[i as u8; 100]].concat();
            assert_eq!((buffer.as_slice(), buffer.with_head()), (&[i as u8; 100][..], &whole[..]));
            assert_eq!(buffer.as_slice().as_ptr().addr() % 64, 0);
        }
        drop(taken);
        let mut again = pool.take().unwrap();
        again.extend_from_slice(b"new").unwrap();
        assert_eq!(again.with_head(), b"new");
        // Of a region of the user's, whose parts he chose himself.
        let mut buffer = MemoryRegion::new(64).unwrap().cut(64).unwrap().take().unwrap();
        assert!(!buffer.put_head(&[0; 8]));
    }

    #[test]
    fn buffers_return_empty_from_any_thread_and_survive_their_pool() {
        let mut pool = MemoryRegion::new(64 * 2).unwrap().cut(64).unwrap();
        let mut one = pool.take().unwrap();
        let mut two = pool.take().unwrap();
        assert!(pool.take().is_none());
        assert_ne!(one.id(), two.id());
        one.extend_from_slice(b"left").unwrap();
        std::thread::spawn(move || drop(one)).join().unwrap();
        let again = pool.take().unwrap();
        assert!(again.is_empty());
        drop(again);
        drop(pool);
        two.extend_from_slice(&[7; 64]).unwrap();
        assert_eq!(two.extend_from_slice(b"x"), Err(crate::BufferFull { wanted: 1, spare: 0 }));
        assert_eq!(two.as_slice(), [7; 64]);
    }
}
