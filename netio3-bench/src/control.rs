//! What the two sides tell each other beside the measured messages.
//!
//! A connection carries `Start` and `Welcome` before the first message, `Done` and `Tally` after the last.
//! They travel as messages themselves. A message of the announced size is a measured one, any other length
//! is one of these, so that telling them apart costs nothing.

use serde::{Deserialize, Serialize};

use crate::args::Mode;

/// A message about the run.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// First, from the side that connected.
    Start(Start),
    /// The other side is ready.
    Welcome,
    /// The other side does not go along.
    Refused {
        /// Why not.
        why: String,
    },
    /// Everything was sent.
    Done {
        /// How many messages on this connection.
        sent: u64,
    },
    /// What the other side received; ends the connection's run.
    Tally(Tally),
}

/// What is going to be sent on a connection.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// The version of this conversation.
    pub version: u32,
    /// What for.
    pub purpose: Purpose,
    /// Names the process, so that its connections are counted as one sender.
    pub session: u64,
    /// How many connections the process makes.
    pub connections: u32,
    /// Which of them this is.
    pub stream: u16,
    /// Bytes of each message.
    pub size: usize,
    /// How many messages on this connection, if known beforehand.
    pub count: Option<u64>,
    /// How they are sent.
    pub mode: Option<Mode>,
    /// Whether every byte follows the pattern and is to be checked.
    pub verify: bool,
}

/// What a connection is for.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// `send` to `recv`.
    Stream,
    /// `ping` to `echo`.
    RoundTrips,
}

impl Purpose {
    /// The roles of the side that listens and of the one that connects.
    pub fn roles(self) -> [&'static str; 2] {
        match self {
            Self::Stream => ["recv", "send"],
            Self::RoundTrips => ["echo", "ping"],
        }
    }
}

/// The receiving side's count.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Messages received.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Messages that never came.
    pub lost: u64,
    /// Messages that came again.
    pub duplicated: u64,
    /// Messages that came after later ones.
    pub reordered: u64,
    /// Messages with wrong bytes.
    pub corrupted: u64,
    /// Messages whose every byte was checked; a side of an earlier version does not tell.
    #[serde(default)]
    pub verified: u64,
}

/// The version of the conversation.
pub const VERSION: u32 = 1;

impl Control {
    /// The message, of any length but `size`.
    pub fn encode(&self, size: usize) -> Vec<u8> {
        let mut text = serde_json::to_vec(self).expect("the types have a JSON form");
        if text.len() == size {
            text.push(b' ');
        }
        text
    }

    /// The message's meaning, if it has one.
    pub fn decode(message: &[u8]) -> Option<Self> {
        serde_json::from_slice(message).ok()
    }
}

impl Tally {
    /// Adds the count of another connection.
    pub fn add(&mut self, other: &Self) {
        self.messages += other.messages;
        self.bytes += other.bytes;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.corrupted += other.corrupted;
        self.verified += other.verified;
    }

    /// Adds what went wrong with messages that the other side received.
    pub fn add_faults(&mut self, other: &Self) {
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.corrupted += other.corrupted;
    }

    /// Whether everything came once, in order and unharmed.
    #[cfg(test)]
    pub fn is_clean(&self) -> bool {
        (self.lost, self.duplicated, self.reordered, self.corrupted) == (0, 0, 0, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_as_long_as_a_measured_message() {
        let done = Control::Done { sent: 12 };
        let len = done.encode(usize::MAX).len();
        let padded = done.encode(len);
        assert_ne!(padded.len(), len);
        assert_eq!(Control::decode(&padded), Some(done));
        assert_eq!(Control::decode(b"\x00\x01"), None);
    }
}
