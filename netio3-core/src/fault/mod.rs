//! Faults on demand, the same ones for the same seed: short reads and writes, would-block, resets, stalls, delays.
//!
//! [`wrap`] puts them before a whole backend for the loop's thread (`create_local`), which still keeps the contract, so that a
//! program can be tried against what a bad network does. They are the same ones where the clock is advanced at the same
//! places, for instance between two `run_once` of the loop. [`FaultStream`] stands before a byte stream, for instance one end of a [`pipe`]. Time is a
//! [`Clock`] that only the test advances, so that nothing sleeps and thousands of schedules run in seconds:
//!
//! ```
//! use std::io::{Read, Write};
//! use netio3_core::fault::{Clock, FaultConfig, FaultStream, pipe};
//!
//! let clock = Clock::new();
//! let (mut near, far) = pipe(1024);
//! let mut far = FaultStream::new(far, FaultConfig::rough(), 42, &clock);
//! near.write_all(b"arrives in pieces, but whole").unwrap();
//! near.shutdown();
//! let mut arrived = Vec::new();
//! while let Err(would_block) = far.read_to_end(&mut arrived) {
//!     assert_eq!(would_block.kind(), std::io::ErrorKind::WouldBlock);
//!     assert!(clock.advance_to_next_event());
//! }
//! assert_eq!(arrived, b"arrives in pieces, but whole");
//! ```

mod backend;
mod clock;
mod config;
mod pipe;
mod rng;
mod stream;

pub use backend::{FaultBackend, wrap};
pub use clock::Clock;
pub use config::{FaultConfig, FaultCounts};
pub use pipe::{PipeEnd, pipe};
pub use stream::FaultStream;
