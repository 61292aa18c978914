//! What travels: packets of at most a receive's length.
//!
//! A packet of two bytes returns credits. Any other begins with a head of eight bytes, unless it goes on with a message
//! that the packet before began: what follows in one is the message from where it was cut, and nothing else, so that
//! the parts of a message lie behind each other in the receiver's memory.

/// Bytes of a receive, as netio3's rdma backend posts them.
pub const RECEIVE_LEN: usize = (64 << 10) + 512;
/// Packets that may be on their way before the receiver returns credits.
pub const CREDITS: usize = 16;
/// Receives beside those, for returned credits.
pub const CONTROL_RECEIVES: usize = 2;
/// Receives posted at once.
pub const RECEIVES: usize = CREDITS + CONTROL_RECEIVES;
/// Bytes of a head.
pub const HEAD_LEN: usize = 8;
/// Bytes before each message of a batch: its length.
pub const LEN_LEN: usize = 4;
/// Bytes of a packet that returns credits.
pub const CREDIT_LEN: usize = 2;

/// What a packet with a head brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A message that is not a measured one.
    Control = 1,
    /// A measured message, or the first part of one.
    Message = 2,
    /// Several measured messages, each with its length before it.
    Batch = 3,
}

/// The head of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub kind: Kind,
    /// Credits returned.
    pub credits: u16,
    /// Bytes of the message; of a batch, how many messages.
    pub total: u32,
}

impl Head {
    pub fn encode(self) -> [u8; HEAD_LEN] {
        let word = self.kind as u64 | u64::from(self.credits) << 16 | u64::from(self.total) << 32;
        word.to_le_bytes()
    }

    pub fn decode(bytes: [u8; HEAD_LEN]) -> Option<Self> {
        let word = u64::from_le_bytes(bytes);
        let kind = match word as u16 {
            1 => Kind::Control,
            2 => Kind::Message,
            3 => Kind::Batch,
            _ => return None,
        };
        Some(Self { kind, credits: (word >> 16) as u16, total: (word >> 32) as u32 })
    }
}

/// Bytes of each but the last packet of a message: never so that the last one looks like credits.
pub fn part_len(size: usize) -> usize {
    if (HEAD_LEN + size) % RECEIVE_LEN == CREDIT_LEN { RECEIVE_LEN - 8 } else { RECEIVE_LEN }
}

/// In how many packets a message goes.
pub fn parts(size: usize) -> usize {
    (HEAD_LEN + size).div_ceil(part_len(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receives_are_those_of_the_library() {
        let defaults = netio3::RdmaParameters::default();
        assert_eq!((RECEIVE_LEN, CREDITS), (defaults.receive_size + 512, usize::from(defaults.receives)));
    }

    #[test]
    fn heads_survive() {
        for kind in [Kind::Control, Kind::Message, Kind::Batch] {
            let head = Head { kind, credits: 16, total: 1 << 30 };
            assert_eq!(Head::decode(head.encode()), Some(head));
        }
        assert_eq!(Head::decode(*b"GET / HT"), None);
    }

    #[test]
    fn no_part_looks_like_credits() {
        for parts in 1..20 {
            for beyond in 0..32 {
                let size = parts * RECEIVE_LEN - 16 + beyond;
                let last = (HEAD_LEN + size) % part_len(size);
                assert_ne!(last, CREDIT_LEN, "{size}");
            }
        }
    }
}
