//! What messages consist of, so that each can be told from all others and every byte checked.
//!
//! A message begins with a tag of eight bytes, of which shorter messages carry as many as they have: the
//! sequence number in the lower 48 bits, the number of the connection above. It goes on with a piece of a
//! fixed pattern that begins elsewhere for each of 251 successive messages. So a message can be sent from
//! prepared memory without touching it, and every byte of it can be checked by one comparison.

use std::io::IoSlice;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Bytes of the tag.
pub const TAG_LEN: usize = 8;

/// Bits of the sequence number in a tag.
pub const SEQUENCE_BITS: u32 = 48;
/// How many messages in a row differ in their bodies. A prime, so that an error with a period of a power of
/// two is not hidden.
const VARIANTS: u64 = 251;
/// Bytes between the beginnings of two bodies: a cache line, so that all are aligned alike.
const STRIDE: usize = 64;

/// The bodies of messages of one size.
#[derive(Clone, Copy)]
pub struct Pattern {
    bytes: &'static [u8],
    body_len: usize,
    shift: u64,
}

impl Pattern {
    /// The bodies of messages of `size` bytes on the first connection. They stay in memory until the program ends, and
    /// are made again only for longer ones.
    pub fn new(size: usize) -> Self {
        static LONGEST: Mutex<&[u8]> = Mutex::new(&[]);
        let body_len = size.saturating_sub(TAG_LEN);
        let words = (body_len + (VARIANTS as usize - 1) * STRIDE).div_ceil(8);
        let mut longest = LONGEST.lock().unwrap_or_else(PoisonError::into_inner);
        if longest.len() < 8 * words {
            *longest = (0..words as u64).flat_map(|index| mix(index).to_le_bytes()).collect::<Vec<u8>>().leak();
        }
        Self { bytes: &longest[..8 * words], body_len, shift: 0 }
    }

    /// The same for a certain connection.
    #[must_use]
    pub fn of_stream(self, stream: u16) -> Self {
        Self { shift: u64::from(stream), ..self }
    }

    /// What follows the tag of a message.
    #[inline]
    pub fn body(&self, sequence: u64) -> &'static [u8] {
        let start = self.variant(sequence) * STRIDE;
        &self.bytes[start..start + self.body_len]
    }

    fn variant(&self, sequence: u64) -> usize {
        ((sequence + self.shift) % VARIANTS) as usize
    }
}

/// A mixing function with well distributed bits (splitmix64).
fn mix(index: u64) -> u64 {
    let mut z = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The messages of one connection, ready to be sent.
#[derive(Clone)]
pub struct Content {
    stream: u16,
    head_len: usize,
    pieces: usize,
    /// The pieces of all variants' bodies, one variant after the other.
    slices: Arc<[IoSlice<'static>]>,
    pattern: Pattern,
}

/// How messages are handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of each message.
    pub size: usize,
    /// How many of them go as header; `None`: as many as the tag has.
    pub header: Option<usize>,
    /// Pieces of the rest.
    pub pieces: usize,
}

impl Layout {
    /// Bytes that go as header.
    pub fn header_len(&self) -> usize {
        self.header.unwrap_or(TAG_LEN).min(self.size)
    }

    /// Whether the whole tag goes as header.
    pub fn has_tag_in_header(&self) -> bool {
        self.head_len() == self.header_len()
    }

    /// Bytes that differ for each message, or go as header: tag and header.
    fn head_len(&self) -> usize {
        self.header_len().max(TAG_LEN.min(self.size))
    }
}

impl Content {
    /// Messages of this layout, for the first connection.
    pub fn new(layout: &Layout) -> Self {
        let pattern = Pattern::new(layout.size);
        let head_len = layout.head_len();
        let rest = layout.size - head_len;
        let pieces = layout.pieces.min(rest);
        let mut slices = Vec::with_capacity(pieces * VARIANTS as usize);
        for variant in 0..VARIANTS {
            let body = pattern.body(variant);
            let body = &body[body.len() - rest..];
            let cut = |piece| rest * piece / pieces;
            slices.extend((0..pieces).map(|piece| IoSlice::new(&body[cut(piece)..cut(piece + 1)])));
        }
        Self { stream: 0, head_len, pieces, slices: slices.into(), pattern }
    }

    /// The same for another connection, sharing the memory.
    #[must_use]
    pub fn of_stream(&self, stream: u16) -> Self {
        Self { stream, pattern: self.pattern.of_stream(stream), ..self.clone() }
    }

    /// Bytes of tag and header, what [`write_head`](Self::write_head) writes.
    pub fn head_len(&self) -> usize {
        self.head_len
    }

    /// Writes tag and header of a message, which are `head_len` bytes.
    #[inline]
    pub fn write_head(&self, sequence: u64, head: &mut [u8]) {
        let tag = tag(self.stream, sequence).to_le_bytes();
        match head.split_first_chunk_mut::<TAG_LEN>() {
            Some((first, [])) => *first = tag,
            Some((first, more)) => {
                *first = tag;
                more.copy_from_slice(&self.pattern.body(sequence)[..more.len()]);
            }
            None => head.copy_from_slice(&tag[..head.len()]),
        }
    }

    /// Whether a message is the whole of its tag and one piece.
    pub fn is_tag_and_piece(&self) -> bool {
        self.head_len == TAG_LEN && self.pieces == 1
    }

    /// The whole tag of a message.
    #[inline]
    pub fn tag(&self, sequence: u64) -> [u8; TAG_LEN] {
        tag(self.stream, sequence).to_le_bytes()
    }

    /// The piece after the head, where there is one only.
    #[inline]
    pub fn piece(&self, sequence: u64) -> &[u8] {
        &self.slices[self.variant(sequence)]
    }

    /// Where that lies among those of all variants.
    #[inline]
    pub fn variant(&self, sequence: u64) -> usize {
        self.pattern.variant(sequence)
    }

    /// The pieces after the head.
    #[inline]
    pub fn pieces(&self, sequence: u64) -> &[IoSlice<'static>] {
        let start = self.pattern.variant(sequence) * self.pieces;
        &self.slices[start..start + self.pieces]
    }

    /// The pieces of all variants as shared memory, for [`variant_range`](Self::variant_range).
    pub fn shared_pieces(&self) -> Vec<Bytes> {
        // One reference count for all, as for memory of a user's own.
        let whole = Bytes::from_owner(self.pattern.bytes);
        let base = self.pattern.bytes.as_ptr().addr();
        let shared = |slice: &IoSlice<'static>| {
            let start = slice.as_ptr().addr() - base;
            whole.slice(start..start + slice.len())
        };
        self.slices.iter().map(shared).collect()
    }

    /// The memory that all pieces lie in.
    #[cfg(feature = "rdma")]
    pub fn memory(&self) -> &'static [u8] {
        self.pattern.bytes
    }

    /// Where the pieces of a message lie among all.
    #[inline]
    pub fn variant_range(&self, sequence: u64) -> Range<usize> {
        let start = self.pattern.variant(sequence) * self.pieces;
        start..start + self.pieces
    }
}

/// The tag of a message.
#[inline]
pub fn tag(stream: u16, sequence: u64) -> u64 {
    u64::from(stream) << SEQUENCE_BITS | sequence
}

/// The part of a tag that a message begins with.
#[inline]
pub fn read_tag(message: &[u8]) -> u64 {
    match message.first_chunk::<TAG_LEN>() {
        Some(first) => u64::from_le_bytes(*first),
        None => message.iter().rev().fold(0, |tag, byte| tag << 8 | u64::from(*byte)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_share_the_memory_of_their_pattern() {
        // Longer than in any other test, so that none makes it anew meanwhile.
        let first = Pattern::new(3 << 20);
        let second = Pattern::new(4_000).of_stream(1);
        assert!(std::ptr::eq(first.bytes.as_ptr(), second.bytes.as_ptr()));
        assert_eq!(second.body(0), &first.body(1)[..3_992]);
    }

    #[test]
    fn shared_pieces_are_the_pieces() {
        let content = Content::new(&Layout { size: 1_000, header: Some(100), pieces: 7 }).of_stream(3);
        let shared = content.shared_pieces();
        for sequence in [0, 1, 250, 251, 12_345] {
            let shared: Vec<&[u8]> = shared[content.variant_range(sequence)].iter().map(|bytes| &bytes[..]).collect();
            let plain: Vec<&[u8]> = content.pieces(sequence).iter().map(|slice| &slice[..]).collect();
            assert_eq!(shared, plain);
        }
    }
}
