//! A message that is copied part by part.

use std::io::IoSlice;

/// A message to be copied that is too long for one packet.
pub(crate) struct Long<'a> {
    header: &'a [u8],
    pieces: &'a [IoSlice<'a>],
    /// Which piece comes next, the header being the first, and what of it is copied.
    at: usize,
    offset: usize,
    pub(super) len: usize,
    /// Bytes that are not copied yet.
    pub(super) rest: usize,
}

impl<'a> Long<'a> {
    pub(crate) fn new(header: &'a [u8], pieces: &'a [IoSlice<'a>], len: usize) -> Self {
        Self { header, pieces, at: 0, offset: 0, len, rest: len }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.rest == 0
    }

    /// Copies as much as there is room for; gives how much.
    pub(super) fn copy_to(&mut self, room: &mut [u8]) -> usize {
        let mut filled = 0;
        while filled < room.len() && !self.is_done() {
            let piece: &[u8] = if self.at == 0 { self.header } else { &self.pieces[self.at - 1] };
            let rest = &piece[self.offset..];
            let n = rest.len().min(room.len() - filled);
            room[filled..filled + n].copy_from_slice(&rest[..n]);
            filled += n;
            self.rest -= n;
            if n == rest.len() {
                (self.at, self.offset) = (self.at + 1, 0);
            } else {
                self.offset += n;
            }
        }
        filled
    }
}
