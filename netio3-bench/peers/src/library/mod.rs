//! The libraries, one file each with the same two functions.

mod asio;
mod netio3;
mod nng;
mod tokio;
mod zeromq;

use std::time::Duration;

use clap::ValueEnum;

use crate::Outcome;
use crate::job::{Job, Measured};

/// What carries the messages.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    Netio3,
    Zeromq,
    Nng,
    Tokio,
    Asio,
}

/// The time without any progress after which the other side counts as gone.
const STALL_LIMIT: Duration = Duration::from_secs(10);

impl Library {
    /// All of them; the first is the one that the others are compared with.
    pub const ALL: [Self; 5] = [Self::Netio3, Self::Zeromq, Self::Nng, Self::Tokio, Self::Asio];

    /// The name on the command line and in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Netio3 => "netio3",
            Self::Zeromq => "zeromq",
            Self::Nng => "nng",
            Self::Tokio => "tokio",
            Self::Asio => "asio",
        }
    }

    /// How it is used, in a line.
    pub fn usage(self) -> &'static str {
        match self {
            Self::Netio3 => "one thread; copied below 1 KiB, zero-copy from there on, a call for each message",
            Self::Zeromq => "libzmq 4.3.5, two threads on its processor; PUSH/PULL, PAIR; 100,000 messages or 16 MiB may wait",
            Self::Nng => "the system's libnng, all its threads on its processor; PAIR; 4,096 messages or 16 MiB may wait on each side",
            Self::Tokio => "one thread; LengthDelimitedCodec, fed and written 128 KiB at a time",
            Self::Asio => "one thread; frames by hand: copied together below 4 KiB, 128 KiB for each write, gathered from there on",
        }
    }

    /// Announces an address, and receives or sends back until the other side has gone. ZeroMQ and nng do not tell
    /// that; their servers end after [`STALL_LIMIT`], or with the process.
    ///
    /// # Errors
    /// What arrived is not what should have.
    pub fn serve(self, job: &Job) -> Outcome {
        match self {
            Self::Netio3 => netio3::serve(job),
            Self::Zeromq => zeromq::serve(job),
            Self::Nng => nng::serve(job),
            Self::Tokio => tokio::serve(job),
            Self::Asio => asio::serve(job),
        }
    }

    /// Connects to the address and measures.
    ///
    /// # Errors
    /// The connection broke, or not everything arrived.
    pub fn drive(self, job: &Job, address: &str) -> Outcome<Measured> {
        match self {
            Self::Netio3 => netio3::drive(job, address),
            Self::Zeromq => zeromq::drive(job, address),
            Self::Nng => nng::drive(job, address),
            Self::Tokio => tokio::drive(job, address),
            Self::Asio => asio::drive(job, address),
        }
    }
}
