//! The hello that both sides exchange before anything else.
//!
//! The side that opened the connection sends its hello at once and offers a range of versions; the side
//! that accepted it answers with its own, which names the one version chosen, or why it refuses.
//!
//! | bytes | field (little-endian) |
//! |---|---|
//! | 0..8 | magic: `NETIO3\r\n` |
//! | 8..10 | length of the whole hello in bytes; what goes beyond the known fields is skipped |
//! | 10 | lowest version spoken; in an answer the version chosen |
//! | 11 | highest version spoken; in an answer the version chosen |
//! | 12 | verdict: 0 welcome; 1 no common version, 2 filter, 3 limit, 4 shutting down |
//! | 13..16 | zero |
//! | 16..24 | longest message taken, in bytes, header included |
//! | 24..28 | heartbeat interval in milliseconds; 0: none are sent |
//! | 28..32 | zero |
//! | 32..48 | reserved for a token; zero |
//! | 48..72 | reserved for the address of a second transport; zero |

use std::time::Duration;

use netio3_core::RefusedReason;

/// The length of the hello this version writes, in bytes.
pub const HELLO_LEN: usize = 72;
/// The versions this side speaks.
pub const VERSIONS: (u8, u8) = (1, 1);

const MAGIC: [u8; 8] = *b"NETIO3\r\n";
/// A hello that claims to be longer is not one.
const MAX_LEN: usize = 1_024;
/// A hello that claims to be shorter lacks fields of version 1.
const MIN_LEN: usize = 32;

/// What one side tells the other of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The lowest and the highest version it speaks; in an answer both are the one chosen.
    pub versions: (u8, u8),
    /// Whether the connection is wanted; offers are always welcome.
    pub verdict: Result<(), RefusedReason>,
    /// The longest message it takes, in bytes.
    pub max_message_len: u64,
    /// The silence after which it sends a heartbeat; zero for never.
    pub heartbeat_interval: Duration,
}

/// The bytes are not a hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAHello;

impl Hello {
    /// The offer, or the answer before a verdict, of a side with this configuration.
    pub fn new(max_message_len: usize, heartbeat_interval: Duration) -> Self {
        Self { versions: VERSIONS, verdict: Ok(()), max_message_len: max_message_len as u64, heartbeat_interval }
    }

    /// The answer to an offer, by version alone.
    #[must_use]
    pub fn answer(self, offer: &Self) -> Self {
        let (low, high) = (self.versions.0.max(offer.versions.0), self.versions.1.min(offer.versions.1));
        if low > high {
            return Self { verdict: Err(RefusedReason::Version), ..self };
        }
        Self { versions: (high, high), ..self }
    }

    /// The bytes on the wire.
    pub fn encode(&self) -> [u8; HELLO_LEN] {
        let mut bytes = [0; HELLO_LEN];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&(HELLO_LEN as u16).to_le_bytes());
        bytes[10] = self.versions.0;
        bytes[11] = self.versions.1;
        bytes[12] = match self.verdict {
            Ok(()) => 0,
            Err(RefusedReason::Version) => 1,
            Err(RefusedReason::Filter) => 2,
            Err(RefusedReason::Shutdown) => 4,
            Err(_) => 3,
        };
        bytes[16..24].copy_from_slice(&self.max_message_len.to_le_bytes());
        // Rounded up: by a shorter interval than there is the peer would judge too early, by none not at all.
        let interval = u32::try_from(self.heartbeat_interval.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX);
        bytes[24..28].copy_from_slice(&interval.to_le_bytes());
        bytes
    }

    /// Reads a hello from the beginning of a stream: how many bytes it took, or `None` when more are needed.
    ///
    /// # Errors
    /// As soon as the bytes cannot become a hello.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, NotAHello> {
        let magic = bytes.len().min(MAGIC.len());
        if bytes[..magic] != MAGIC[..magic] {
            return Err(NotAHello);
        }
        let Some(len) = bytes.get(8..10) else { return Ok(None) };
        let len = usize::from(u16::from_le_bytes([len[0], len[1]]));
        if !(MIN_LEN..=MAX_LEN).contains(&len) {
            return Err(NotAHello);
        }
        let Some(bytes) = bytes.get(..len) else { return Ok(None) };
        let mut max_message_len = [0; 8];
        max_message_len.copy_from_slice(&bytes[16..24]);
        let mut interval = [0; 4];
        interval.copy_from_slice(&bytes[24..28]);
        let hello = Self {
            versions: (bytes[10], bytes[11]),
            verdict: match bytes[12] {
                0 => Ok(()),
                1 => Err(RefusedReason::Version),
                2 => Err(RefusedReason::Filter),
                4 => Err(RefusedReason::Shutdown),
                _ => Err(RefusedReason::Limit),
            },
            max_message_len: u64::from_le_bytes(max_message_len),
            heartbeat_interval: Duration::from_millis(u64::from(u32::from_le_bytes(interval))),
        };
        if hello.max_message_len == 0 || hello.versions.0 > hello.versions.1 {
            return Err(NotAHello);
        }
        Ok(Some((hello, len)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        Hello::new(0x0004_0302, Duration::from_secs(2))
    }

    #[test]
    fn golden_bytes() {
        let mut golden = [0; HELLO_LEN];
        golden[..8].copy_from_slice(b"NETIO3\r\n");
        golden[8..12].copy_from_slice(&[72, 0, 1, 1]);
        golden[16..20].copy_from_slice(&[2, 3, 4, 0]);
        golden[24..28].copy_from_slice(&[0xD0, 7, 0, 0]);
        assert_eq!(hello().encode(), golden);
    }

    #[test]
    fn a_hello_is_read_however_it_is_cut() {
        let mut bytes = hello().encode().to_vec();
        bytes.extend_from_slice(b"next");
        for cut in 0..HELLO_LEN {
            assert_eq!(Hello::decode(&bytes[..cut]), Ok(None), "{cut}");
        }
        assert_eq!(Hello::decode(&bytes), Ok(Some((hello(), HELLO_LEN))));
    }

    #[test]
    fn an_interval_is_told_no_shorter_than_it_is() {
        let told = |nanos| match Hello::decode(&Hello::new(1, Duration::from_nanos(nanos)).encode()) {
            Ok(Some((hello, _))) => hello.heartbeat_interval.as_millis(),
            other => panic!("{other:?}"),
        };
        assert_eq!([0, 1, 999_999, 1_000_000, 1_000_001, 1_999_999].map(told), [0, 1, 1, 1, 2, 2]);
    }

    #[test]
    fn unknown_fields_are_skipped() {
        let mut bytes = hello().encode().to_vec();
        bytes[8..10].copy_from_slice(&100u16.to_le_bytes());
        bytes.resize(100, 0xAA);
        assert_eq!(Hello::decode(&bytes), Ok(Some((hello(), 100))));
    }

    #[test]
    fn strangers_are_known_by_their_first_wrong_byte() {
        assert_eq!(Hello::decode(b"G"), Err(NotAHello));
        assert_eq!(Hello::decode(b"NETIO3\n"), Err(NotAHello));
        let with = |at: usize, bytes: &[u8]| {
            let mut hello = hello().encode();
            hello[at..at + bytes.len()].copy_from_slice(bytes);
            Hello::decode(&hello)
        };
        assert_eq!(with(8, &[255, 255]), Err(NotAHello));
        assert_eq!(with(8, &[31, 0]), Err(NotAHello));
        assert_eq!(with(16, &[0; 8]), Err(NotAHello));
        assert_eq!(with(10, &[2, 1]), Err(NotAHello));
    }

    #[test]
    fn the_highest_common_version_is_chosen() {
        let speaks = |low, high| Hello { versions: (low, high), ..hello() };
        assert_eq!(speaks(1, 3).answer(&speaks(2, 7)).versions, (3, 3));
        assert_eq!(speaks(1, 3).answer(&speaks(4, 7)).verdict, Err(RefusedReason::Version));
    }
}
