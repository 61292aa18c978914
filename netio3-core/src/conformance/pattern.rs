//! Message contents that show loss, duplication, reordering, corruption and truncation.

use crate::endpoint::Endpoint;

/// What is remembered of a message: enough to tell it from every other one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Digest {
    pub(super) len: usize,
    hash: u64,
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes {:08x}", self.len, self.hash as u32)
    }
}

/// The content of message number `seq` of the stream that leaves by `stream`.
pub(super) fn content(stream: Endpoint, seq: u64, len: usize) -> Vec<u8> {
    let seed = mix(stream.as_u64()) ^ mix(seq.wrapping_add(0x5eed));
    let mut bytes = vec![0; len];
    let mut state = seed;
    let mut words = bytes.chunks_exact_mut(8);
    for word in &mut words {
        state = state.wrapping_add(STEP);
        word.copy_from_slice(&mix(state).to_le_bytes());
    }
    let rest = words.into_remainder();
    let last = mix(state.wrapping_add(STEP)).to_le_bytes();
    rest.copy_from_slice(&last[..rest.len()]);
    bytes
}

pub(super) fn digest(bytes: &[u8]) -> Digest {
    let mut hash = bytes.len() as u64;
    let words = bytes.chunks_exact(8);
    for byte in words.remainder() {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(STEP).rotate_left(23);
    }
    for word in words {
        let word = u64::from_le_bytes(word.try_into().expect("chunks of eight"));
        hash = (hash ^ word).wrapping_mul(STEP).rotate_left(23);
    }
    Digest { len: bytes.len(), hash }
}

/// A small seeded generator, for sizes.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(STEP);
        (mix(self.0) % bound as u64) as usize
    }
}

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
