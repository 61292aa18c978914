//! What travels: the hello in the connection's private data, and the heads of packets.
//!
//! All numbers are little-endian. The byte tables stand in ARCHITECTURE.md.

use std::time::Duration;

use netio3_core::RefusedReason;

/// The versions of this protocol that this side speaks: lowest and highest.
pub(crate) const VERSIONS: (u8, u8) = (1, 1);
/// Bytes of a hello, and at most as many bytes of private data are needed.
pub(crate) const HELLO_LEN: usize = 48;
/// Bytes of a packet's head.
pub(crate) const HEAD_LEN: usize = 8;
/// Bytes before each message of a packet: its length.
pub(crate) const LEN_LEN: usize = 4;
/// Room of a packet beyond `receive_size`: the heads, and a header of up to 256 bytes beside a message of that size.
pub(crate) const PACKET_EXTRA: usize = 512;
/// Control packets but for credits that may be sent before they are told to be handled.
pub(crate) const CONTROL_CREDITS: u8 = 2;
/// Receives that each side keeps for control packets: for those, and for credits, which use none. Of these no more than
/// three can be on their way: two that tell of half the data credits each, and one that tells of all of the others.
pub(crate) const CONTROL_RECEIVES: u16 = CONTROL_CREDITS as u16 + 3;

const MAGIC: [u8; 4] = *b"nio3";

/// What a side says of itself when it connects or accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    /// Lowest and highest version; the answer names the one chosen, twice.
    pub(crate) versions: (u8, u8),
    /// Why the connection is refused, in an answer.
    pub(crate) verdict: Result<(), RefusedReason>,
    pub(crate) max_message_len: u32,
    pub(crate) heartbeat_interval: Duration,
    /// The longest packet that this side receives, in bytes.
    pub(crate) packet_len: u32,
    /// Packets that may be sent to this side before it returns credits.
    pub(crate) credits: u16,
}

/// What is wrong with a hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadHello {
    #[error("the private data has {0} bytes, a hello {HELLO_LEN}: the provider or fabric cut it, or the peer is no netio3")]
    Short(usize),
    #[error("the peer does not speak netio3 over libfabric")]
    Magic,
    #[error("the peer announces packets of {packet_len} bytes and {credits} credits")]
    Sizes { packet_len: u32, credits: u16 },
    #[error("the peer asks and refuses at once")]
    Verdict,
}

impl Hello {
    pub(crate) fn encode(&self) -> [u8; HELLO_LEN] {
        let mut bytes = [0; HELLO_LEN];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&MAGIC);
        put(&[self.versions.0, self.versions.1, verdict_code(self.verdict), HELLO_LEN as u8]);
        put(&self.max_message_len.to_le_bytes());
        // Rounded up: by a shorter interval than there is the peer would judge too early, by none not at all.
        put(&u32::try_from(self.heartbeat_interval.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX).to_le_bytes());
        put(&self.packet_len.to_le_bytes());
        put(&self.credits.to_le_bytes());
        put(&u16::from(CONTROL_CREDITS).to_le_bytes());
        bytes
    }

    /// Reads a hello. Providers may pad private data, so that what follows is ignored.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, BadHello> {
        let Some(bytes) = bytes.first_chunk::<HELLO_LEN>() else {
            return Err(if bytes.first_chunk().is_none_or(|magic| *magic == MAGIC) {
                BadHello::Short(bytes.len())
            } else {
                BadHello::Magic
            });
        };
        if bytes[..4] != MAGIC || usize::from(bytes[7]) < HELLO_LEN {
            return Err(BadHello::Magic);
        }
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let hello = Self {
            versions: (bytes[4], bytes[5]),
            verdict: verdict(bytes[6]),
            max_message_len: word(8),
            heartbeat_interval: Duration::from_millis(u64::from(word(12))),
            packet_len: word(16),
            credits: half(20),
        };
        let possible = hello.packet_len as usize >= PACKET_EXTRA && hello.credits > 0 && half(22) == u16::from(CONTROL_CREDITS);
        // A refusal says nothing of what the refused might have sent.
        if hello.verdict.is_ok() && !possible {
            return Err(BadHello::Sizes { packet_len: hello.packet_len, credits: hello.credits });
        }
        Ok(hello)
    }

    /// One of a request: it has no verdict, with which its sizes would not have been looked at.
    pub(crate) fn asking(self) -> Result<Self, BadHello> {
        if self.verdict.is_ok() { Ok(self) } else { Err(BadHello::Verdict) }
    }

    /// The version that both sides speak.
    pub(crate) fn common_version(&self) -> Option<u8> {
        let highest = self.versions.1.min(VERSIONS.1);
        (highest >= self.versions.0.max(VERSIONS.0)).then_some(highest)
    }
}

fn verdict_code(verdict: Result<(), RefusedReason>) -> u8 {
    match verdict {
        Ok(()) => 0,
        Err(RefusedReason::Version) => 1,
        Err(RefusedReason::Filter) => 2,
        Err(RefusedReason::Limit) => 3,
        Err(RefusedReason::Shutdown) => 4,
        Err(_) => 5,
    }
}

fn verdict(code: u8) -> Result<(), RefusedReason> {
    match code {
        0 => Ok(()),
        1 => Err(RefusedReason::Version),
        2 => Err(RefusedReason::Filter),
        3 => Err(RefusedReason::Limit),
        4 => Err(RefusedReason::Shutdown),
        _ => Err(RefusedReason::Protocol),
    }
}

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Whole messages, each preceded by its length.
    Messages,
    /// The beginning of a message of this many bytes. Its other parts have no head: within a message every packet is
    /// one, but for those that are nothing but a head.
    First(u32),
    /// Nothing but credits.
    Credits,
    /// The sender is alive.
    Heartbeat,
    /// The sender will send no more messages.
    Goodbye,
    /// The sender has heard the other's goodbye, said its own, and sends nothing any more.
    Farewell,
}

impl Kind {
    /// Whether it is nothing but a head.
    pub(crate) fn is_control(self) -> bool {
        !matches!(self, Self::Messages | Self::First(_))
    }
}

/// The head of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kind: Kind,
    /// Receives that are free again.
    pub(crate) credits: u16,
    /// The same of those for control packets.
    pub(crate) control: u8,
}

impl Head {
    #[inline]
    pub(crate) fn encode(self) -> [u8; HEAD_LEN] {
        let (kind, value) = match self.kind {
            Kind::Messages => (0xC1, 0),
            Kind::First(total) => (0xC2, total),
            Kind::Credits => (0xC3, 0),
            Kind::Heartbeat => (0xC4, 0),
            Kind::Goodbye => (0xC5, 0),
            Kind::Farewell => (0xC6, 0),
        };
        let word = u64::from(value) << 32 | u64::from(self.credits) << 16 | u64::from(self.control) << 8 | kind;
        word.to_le_bytes()
    }

    #[inline]
    pub(crate) fn decode(bytes: [u8; HEAD_LEN]) -> Option<Self> {
        let word = u64::from_le_bytes(bytes);
        let value = (word >> 32) as u32;
        let kind = match (word & 0xFF, value) {
            (0xC1, 0) => Kind::Messages,
            (0xC2, total) => Kind::First(total),
            (0xC3, 0) => Kind::Credits,
            (0xC4, 0) => Kind::Heartbeat,
            (0xC5, 0) => Kind::Goodbye,
            (0xC6, 0) => Kind::Farewell,
            _ => return None,
        };
        Some(Self { kind, credits: (word >> 16) as u16, control: (word >> 8) as u8 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        Hello {
            versions: VERSIONS,
            verdict: Ok(()),
            max_message_len: 0x0102_0304,
            heartbeat_interval: Duration::from_secs(2),
            packet_len: 66_048,
            credits: 16,
        }
    }

    #[test]
    fn golden_bytes_of_a_hello() {
        let bytes = hello().encode();
        assert_eq!(&bytes[..12], b"nio3\x01\x01\x00\x30\x04\x03\x02\x01");
        assert_eq!(&bytes[12..24], [0xD0, 7, 0, 0, 0, 2, 1, 0, 16, 0, 2, 0]);
        assert_eq!(bytes[24..], [0; 24]);
        assert_eq!(Hello::decode(&[&bytes[..], &[0; 16]].concat()), Ok(hello()), "padded by the provider");
    }

    #[test]
    fn an_interval_is_told_no_shorter_than_it_is() {
        let told = |nanos| {
            let hello = Hello { heartbeat_interval: Duration::from_nanos(nanos), ..hello() };
            Hello::decode(&hello.encode()).expect("it is one").heartbeat_interval.as_millis()
        };
        assert_eq!([0, 1, 999_999, 1_000_000, 1_000_001, 1_999_999].map(told), [0, 1, 1, 1, 2, 2]);
    }

    #[test]
    fn every_verdict_survives() {
        use RefusedReason::{Filter, Limit, Protocol, Shutdown, Version};
        for verdict in [Version, Filter, Limit, Shutdown, Protocol] {
            let refusal = Hello { verdict: Err(verdict), packet_len: 0, credits: 0, ..hello() };
            assert_eq!(Hello::decode(&refusal.encode()), Ok(refusal));
        }
    }

    #[test]
    fn strange_hellos_are_told_apart() {
        let bytes = hello().encode();
        assert_eq!(Hello::decode(&bytes[..40]), Err(BadHello::Short(40)));
        assert_eq!(Hello::decode(&[]), Err(BadHello::Short(0)));
        assert_eq!(Hello::decode(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n and more and more"), Err(BadHello::Magic));
        assert_eq!(Hello::decode(b"GET /"), Err(BadHello::Magic));
        for bad in [Hello { credits: 0, ..hello() }, Hello { packet_len: 8, ..hello() }] {
            assert!(matches!(Hello::decode(&bad.encode()), Err(BadHello::Sizes { .. })));
        }
    }

    #[test]
    fn the_highest_common_version_is_used() {
        assert_eq!(Hello { versions: (1, 9), ..hello() }.common_version(), Some(1));
        assert_eq!(Hello { versions: (2, 9), ..hello() }.common_version(), None);
    }

    #[test]
    fn heads_survive_and_strange_ones_do_not() {
        for kind in [Kind::Messages, Kind::First(u32::MAX), Kind::Credits, Kind::Heartbeat, Kind::Goodbye, Kind::Farewell] {
            let head = Head { kind, credits: 0x1234, control: 2 };
            assert_eq!(Head::decode(head.encode()), Some(head));
        }
        assert_eq!(Head { kind: Kind::First(5), credits: 0x0201, control: 3 }.encode(), [0xC2, 3, 1, 2, 5, 0, 0, 0]);
        assert_eq!(Head::decode(*b"GET / HT"), None);
        assert_eq!(Head::decode([0xC3, 0, 0, 0, 1, 0, 0, 0]), None);
    }
}
