//! Frames: a head of 8 bytes, then the message (header and payload in one).
//!
//! | bytes | field |
//! |---|---|
//! | 0..4 | length of the message in bytes, little-endian; 0 for other kinds |
//! | 4 | kind: `0xD1` data, `0xB2` heartbeat, `0xE3` goodbye |
//! | 5..8 | zero |

/// The length of a head, in bytes.
pub const HEAD_LEN: usize = 8;

const DATA: u64 = 0xD1;
const HEARTBEAT: u64 = 0xB2;
const GOODBYE: u64 = 0xE3;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A message of this many bytes follows.
    Data(usize),
    /// The sender is alive.
    Heartbeat,
    /// The sender will send nothing more.
    Goodbye,
}

/// A head that no sender of this protocol writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadHead {
    /// The kind is unknown, or reserved bytes are not zero.
    Kind,
    /// The length exceeds what may be sent to this side.
    TooLong(usize),
}

impl Frame {
    /// The head of this frame.
    ///
    /// # Panics
    /// In debug builds, when a message is longer than `u32::MAX`; configurations do not allow that.
    #[inline]
    pub fn head(self) -> [u8; HEAD_LEN] {
        let word = match self {
            Self::Data(len) => {
                debug_assert!(u32::try_from(len).is_ok());
                (DATA << 32) | len as u64
            }
            Self::Heartbeat => HEARTBEAT << 32,
            Self::Goodbye => GOODBYE << 32,
        };
        word.to_le_bytes()
    }

    /// Reads a head; `max_len` is the longest message this side takes.
    ///
    /// # Errors
    /// It is none of this protocol's.
    #[inline]
    pub fn parse(head: [u8; HEAD_LEN], max_len: usize) -> Result<Self, BadHead> {
        let word = u64::from_le_bytes(head);
        let len = (word & u64::from(u32::MAX)) as usize;
        match (word >> 32, len) {
            (DATA, len) if len <= max_len => Ok(Self::Data(len)),
            (DATA, len) => Err(BadHead::TooLong(len)),
            (HEARTBEAT, 0) => Ok(Self::Heartbeat),
            (GOODBYE, 0) => Ok(Self::Goodbye),
            _ => Err(BadHead::Kind),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        assert_eq!(Frame::Data(0x01_02_03).head(), [3, 2, 1, 0, 0xD1, 0, 0, 0]);
        assert_eq!(Frame::Heartbeat.head(), [0, 0, 0, 0, 0xB2, 0, 0, 0]);
        assert_eq!(Frame::Goodbye.head(), [0, 0, 0, 0, 0xE3, 0, 0, 0]);
    }

    #[test]
    fn what_is_written_is_read() {
        for frame in [Frame::Data(0), Frame::Data(1), Frame::Data(u32::MAX as usize), Frame::Heartbeat, Frame::Goodbye] {
            assert_eq!(Frame::parse(frame.head(), u32::MAX as usize), Ok(frame));
        }
    }

    #[test]
    fn strange_heads_are_refused() {
        assert_eq!(Frame::parse(Frame::Data(11).head(), 10), Err(BadHead::TooLong(11)));
        for bad in [*b"GET / HT", [0; 8], [0xFF; 8], [0, 0, 0, 0, 0xD1, 1, 0, 0], [1, 0, 0, 0, 0xB2, 0, 0, 0]] {
            assert!(Frame::parse(bad, 1 << 20).is_err(), "{bad:?}");
        }
    }
}
