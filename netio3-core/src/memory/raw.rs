//! Raw memory for `send_raw_iov`.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::slice;

/// A piece of raw memory: an address and a length, without owner or lifetime.
///
/// Making one promises nothing; the promise is made by the caller of
/// [`send_raw_iov`](crate::NetworkBackend::send_raw_iov).
#[derive(Clone, Copy, Debug)]
pub struct RawSlice {
    address: usize,
    len: usize,
    _not_static: PhantomData<*const u8>,
}

// SAFETY: an address and a length are plain numbers; reading through them is `as_slice`'s affair, whose
// caller vouches that the memory may be read from his thread.
unsafe impl Send for RawSlice {}

impl RawSlice {
    /// A piece of `len` bytes from `start`.
    pub fn new(start: *const u8, len: usize) -> Self {
        Self { address: start.expose_provenance(), len, _not_static: PhantomData }
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its address.
    pub fn address(&self) -> usize {
        self.address
    }

    /// The memory.
    ///
    /// # Safety
    /// The memory must be readable, and must not change, for all of `'a`.
    pub unsafe fn as_slice<'a>(&self) -> &'a [u8] {
        if self.len == 0 {
            return &[];
        }
        let start = std::ptr::with_exposed_provenance(self.address);
        // SAFETY: the caller vouches for `len` readable bytes that do not change during `'a`; the address
        // is not null, since no readable memory is there.
        unsafe { slice::from_raw_parts(start, self.len) }
    }
}

/// A piece of raw memory that an accepted message holds: readable until the message comes back.
///
/// Only the engine makes these, from the slices of a `send_raw_iov` whose caller gave that promise, so
/// that backends can read the memory without unsafe code of their own.
#[derive(Debug)]
pub struct HeldSlice(RawSlice);

impl HeldSlice {
    /// # Safety
    /// The memory must be readable until the returned value is dropped.
    pub(crate) unsafe fn new(slice: RawSlice) -> Self {
        Self(slice)
    }

    /// The memory.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: by the contract of `new` it is readable as long as `self` is.
        unsafe { self.0.as_slice() }
    }
}

impl AsRef<[u8]> for HeldSlice {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}
