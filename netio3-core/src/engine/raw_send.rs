//! The way of raw memory from `send_raw_iov` to a transport.
#![allow(unsafe_code)]

use crate::memory::{HeldSlice, RawSlice};

/// The pieces of a raw message being accepted.
#[derive(Clone, Copy, Debug)]
pub struct RawPieces<'a>(&'a [RawSlice]);

impl<'a> RawPieces<'a> {
    /// # Safety
    /// The pieces must stay readable until the message they make up has come back, or its backend is gone.
    pub(crate) unsafe fn new(pieces: &'a [RawSlice]) -> Self {
        Self(pieces)
    }

    /// The pieces as they were given.
    pub(super) fn slices(self) -> &'a [RawSlice] {
        self.0
    }

    /// The pieces that are not empty, to be held until the message is done.
    pub fn held(self) -> impl Iterator<Item = HeldSlice> + 'a {
        let filled = self.0.iter().filter(|piece| !piece.is_empty());
        // SAFETY: by the contract of `new` the memory is readable until the message has come back; a transport
        // drops what it holds before that, by the contract of `Transport::retire` and `Transport::release`.
        filled.map(|piece| unsafe { HeldSlice::new(*piece) })
    }
}
