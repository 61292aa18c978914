//! Which faults, how often, how long.

use std::time::Duration;

/// Probabilities, from 0 to 1, and bounds of faults.
///
/// Of a stream, every read and write draws; of a backend, every send draws, and what concerns a connection
/// as a whole is drawn whenever one of its messages passes either way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FaultConfig {
    /// A stream's read or write moves only a part of what it could, down to one byte. No meaning for a backend.
    pub short: f64,
    /// A stream's call ends with `WouldBlock`; a backend's send is refused with `NoResources`.
    pub would_block: f64,
    /// The connection is reset, for good.
    pub reset: f64,
    /// The connection makes no progress for a while. On a backend: reading is paused, sends are held back.
    pub stall: f64,
    /// The longest stall, in virtual time.
    pub longest_stall: Duration,
    /// A stream's bytes become readable later than they arrive; a backend's accepted send is held back.
    /// The order stays: what comes after waits too.
    pub delay: f64,
    /// The longest delay, in virtual time.
    pub longest_delay: Duration,
}

impl FaultConfig {
    /// No faults.
    pub const fn none() -> Self {
        Self {
            short: 0.0,
            would_block: 0.0,
            reset: 0.0,
            stall: 0.0,
            longest_stall: Duration::from_millis(50),
            delay: 0.0,
            longest_delay: Duration::from_millis(10),
        }
    }

    /// Almost everything is cut in pieces, and every other call would block.
    pub const fn short() -> Self {
        Self { short: 0.9, would_block: 0.5, ..Self::none() }
    }

    /// A bit of everything that a living connection may suffer.
    pub const fn rough() -> Self {
        Self { short: 0.5, would_block: 0.2, stall: 0.01, delay: 0.2, ..Self::none() }
    }

    /// [`rough`](Self::rough), and connections die of it.
    pub const fn resetting() -> Self {
        Self { reset: 0.005, ..Self::rough() }
    }
}

impl Default for FaultConfig {
    /// [`FaultConfig::none`].
    fn default() -> Self {
        Self::none()
    }
}

/// How many faults of each kind there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FaultCounts {
    /// Reads and writes cut short.
    pub shorts: u64,
    /// Calls that would have blocked for no reason, sends refused for none.
    pub would_blocks: u64,
    /// Resets.
    pub resets: u64,
    /// Stalls.
    pub stalls: u64,
    /// Pieces or messages delayed.
    pub delays: u64,
}
