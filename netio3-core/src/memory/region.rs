//! Regions of memory to send from.
#![allow(unsafe_code)]

use std::io;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use bytes::Bytes;
use thiserror::Error;

use crate::memory::BufferPool;

/// A region of memory, page-aligned and zeroed, that can be registered with a backend and sent from.
///
/// Cloning gives another handle to the same memory. It is used in one of three ways at a time: filled
/// through [`as_mut_slice`](Self::as_mut_slice) while this is the only handle; shared for reading as
/// [`Bytes`]; or cut into [`NetworkBuffer`](crate::NetworkBuffer)s that are written and sent one by one. What
/// has been shared or cut can be used in another way once that is all dropped and `as_mut_slice` has given the memory.
#[derive(Clone, Debug)]
pub struct MemoryRegion(Arc<Mapping>);

/// How to make a region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegionOptions {
    /// Take huge pages (2 MiB) from the kernel's reserve (`vm.nr_hugepages`); fails when there are too
    /// few. The length is rounded up to whole pages. Default: normal pages.
    pub huge_pages: bool,
    /// Place the memory on this NUMA node. Default: where it is touched first.
    pub numa_node: Option<u32>,
    /// What memory it is. Default: the host's.
    pub kind: MemoryKind,
}

/// What memory a region lies in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemoryKind {
    /// The host's main memory.
    #[default]
    Host,
}

/// The region is shared as [`Bytes`] or cut into buffers, so it cannot be used in the other way.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the memory region is in use {0}; drop those, then call `as_mut_slice`, which ends that use")]
pub struct RegionInUse(pub(crate) &'static str);

const FREE: u8 = 0;
const SHARED: u8 = 1;
const CUT: u8 = 2;

impl MemoryRegion {
    /// A region of normal pages.
    ///
    /// # Errors
    /// The system has not that much memory; `len` is 0.
    pub fn new(len: usize) -> io::Result<Self> {
        Self::with_options(len, RegionOptions::default())
    }

    /// A region as described by `options`.
    ///
    /// # Errors
    /// Not that much memory, too few huge pages reserved, no such NUMA node; `len` is 0.
    pub fn with_options(len: usize, options: RegionOptions) -> io::Result<Self> {
        Mapping::new(len, options).map(|mapping| Self(Arc::new(mapping)))
    }

    /// The length in bytes.
    #[allow(clippy::len_without_is_empty, reason = "a region is never empty")]
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// The address of the first byte, as a number.
    pub fn address(&self) -> usize {
        self.0.start.as_ptr().addr()
    }

    /// The memory for writing, or `None` while other handles, `Bytes` or buffers of it exist. A backend that it is
    /// registered with has a handle.
    pub fn as_mut_slice(&mut self) -> Option<&mut [u8]> {
        let mapping = Arc::get_mut(&mut self.0)?;
        *mapping.usage.get_mut() = FREE;
        // SAFETY: `start` is a mapping of `len` initialized bytes; `get_mut` shows that this is the only
        // handle, and `Bytes` and buffers each hold one, so nobody else reads or writes the memory.
        Some(unsafe { slice::from_raw_parts_mut(mapping.start.as_ptr(), mapping.len) })
    }

    /// The memory for reading, shared; slices of it can be sent.
    ///
    /// # Errors
    /// The region is cut into buffers.
    pub fn bytes(&self) -> Result<Bytes, RegionInUse> {
        self.claim(SHARED, "as buffers")?;
        Ok(Bytes::from_owner(SharedMapping(self.0.clone())))
    }

    /// Cuts the region into buffers of `size` bytes each, which belong to no connection.
    ///
    /// # Errors
    /// The region is shared as `Bytes`, or cut already.
    ///
    /// # Panics
    /// When `size` is 0.
    pub fn cut(&self, size: usize) -> Result<BufferPool, RegionInUse> {
        assert!(size > 0, "buffers have at least one byte");
        BufferPool::of_region(self.clone(), size)
    }

    /// From now on the region is used through buffers alone. Cut twice, two of them would share bytes.
    pub(super) fn claim_for_buffers(&self) -> Result<(), RegionInUse> {
        if self.0.usage.load(Ordering::Acquire) == CUT {
            return Err(RegionInUse("as buffers"));
        }
        self.claim(CUT, "as shared bytes")
    }

    fn claim(&self, usage: u8, otherwise: &'static str) -> Result<(), RegionInUse> {
        match self.0.usage.compare_exchange(FREE, usage, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(()),
            Err(present) if present == usage && usage == SHARED => Ok(()),
            Err(_) => Err(RegionInUse(otherwise)),
        }
    }

    /// The address of the byte at `offset`; for buffers cut from this region.
    pub(super) fn at(&self, offset: usize) -> NonNull<u8> {
        debug_assert!(offset < self.0.len);
        // SAFETY: `offset` lies within the mapping, as the cutter computes it.
        unsafe { self.0.start.add(offset) }
    }
}

/// What a shared region looks like to [`Bytes`].
struct SharedMapping(Arc<Mapping>);

impl AsRef<[u8]> for SharedMapping {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `start` is a mapping of `len` initialized bytes; while the usage is `SHARED`, which it
        // stays until the last handle but one is gone, nobody writes to it.
        unsafe { slice::from_raw_parts(self.0.start.as_ptr(), self.0.len) }
    }
}

/// An anonymous mapping, unmapped when dropped.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    len: usize,
    usage: AtomicU8,
}

// SAFETY: a mapping belongs to the process, not to a thread; who may read or write it is ruled by `usage`
// and by the count of handles.
unsafe impl Send for Mapping {}
// SAFETY: as above; through a shared `Mapping` only its address, its length and an atomic are reachable.
unsafe impl Sync for Mapping {}

const HUGE_PAGE: usize = 2 << 20;

impl Mapping {
    fn new(len: usize, options: RegionOptions) -> io::Result<Self> {
        let MemoryKind::Host = options.kind;
        if len == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a memory region has at least one byte"));
        }
        let (flags, len) = match options.huge_pages {
            true => (libc::MAP_HUGETLB, len.checked_next_multiple_of(HUGE_PAGE)),
            false => (0, Some(len)),
        };
        let len = len.filter(|len| *len <= isize::MAX as usize);
        let Some(len) = len else {
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, "a memory region cannot be that large"));
        };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no existing memory.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            let cause = io::Error::last_os_error();
            if options.huge_pages {
                let text = format!("no {len} bytes of huge pages ({cause}); raise vm.nr_hugepages");
                return Err(io::Error::new(cause.kind(), text));
            }
            return Err(cause);
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mmap gave a null mapping"))?;
        let mapping = Self { start, len, usage: AtomicU8::new(FREE) };
        if let Some(node) = options.numa_node {
            mapping.place_on(node)?;
        }
        Ok(mapping)
    }

    fn place_on(&self, node: u32) -> io::Result<()> {
        const MPOL_BIND: libc::c_ulong = 2;
        const NODES: usize = 1_024;
        const BITS: usize = libc::c_ulong::BITS as usize;
        let no_such_node = || io::Error::new(io::ErrorKind::InvalidInput, format!("there is no NUMA node {node}"));
        let mut mask = [0 as libc::c_ulong; NODES / BITS];
        *mask.get_mut(node as usize / BITS).ok_or_else(no_such_node)? |= 1 << (node as usize % BITS);
        // SAFETY: the range is this mapping, the mask has `NODES` bits and outlives the call, which only
        // sets the placement policy of pages that nobody has touched.
        let result = unsafe { libc::syscall(libc::SYS_mbind, self.start.as_ptr(), self.len, MPOL_BIND, mask.as_ptr(), NODES + 1, 0) };
        if result == 0 {
            return Ok(());
        }
        let cause = io::Error::last_os_error();
        Err(if cause.kind() == io::ErrorKind::InvalidInput { no_such_node() } else { cause })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `start` and `len` are those of a successful `mmap`, and the last handle is being dropped.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_filled_then_shared_then_filled_again() {
        let mut region = MemoryRegion::new(10_000).unwrap();
        region.as_mut_slice().unwrap()[9_999] = 7;
        let bytes = region.bytes().unwrap();
        assert_eq!(bytes[9_999], 7);
        assert!(region.as_mut_slice().is_none());
        assert_eq!(
            region.cut(100).unwrap_err().to_string(),
            "the memory region is in use as shared bytes; drop those, then call `as_mut_slice`, which ends that use"
        );
        drop(bytes);
        region.as_mut_slice().unwrap()[0] = 1;
    }

    #[test]
    fn a_region_is_cut_once() {
        let mut region = MemoryRegion::new(1_000).unwrap();
        let mut pool = region.cut(300).unwrap();
        assert!(region.cut(300).is_err());
        assert!(region.clone().bytes().is_err());
        let buffers: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(buffers.len(), 3);
        drop(pool);
        assert!(region.as_mut_slice().is_none(), "buffers still write to it");
        drop(buffers);
        assert!(region.as_mut_slice().is_some());
        assert_eq!(region.bytes().unwrap().len(), 1_000);
    }

    #[test]
    fn what_cannot_be_had_is_an_error() {
        assert!(MemoryRegion::new(0).is_err());
        assert!(MemoryRegion::new(usize::MAX).is_err());
        let options = RegionOptions { huge_pages: true, ..Default::default() };
        if let Err(error) = MemoryRegion::with_options(1 << 50, options) {
            assert!(error.to_string().contains("nr_hugepages"), "{error}");
        }
        let options = RegionOptions { numa_node: Some(5_000), ..Default::default() };
        assert!(MemoryRegion::with_options(4_096, options).unwrap_err().to_string().contains("5000"));
    }
}
