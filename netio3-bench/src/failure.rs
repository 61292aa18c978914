//! Why a run failed, and with which exit status.

use std::fmt;
use std::io;

use nix::libc;

/// One line for the user, and the exit status that goes with it.
#[derive(Debug)]
pub enum Failure {
    /// Not everything was delivered, or not as it was sent: exit status 1.
    NotDelivered(String),
    /// Bad arguments, or no connection came about: exit status 2.
    NoConnection(String),
}

impl Failure {
    /// No connection came about, with the operating system's reason.
    pub fn connecting(what: impl fmt::Display, cause: &io::Error) -> Self {
        Self::NoConnection(format!("{what}: {}", with_remedy(cause)))
    }

    /// The exit status.
    pub fn status(&self) -> u8 {
        match self {
            Self::NotDelivered(_) => 1,
            Self::NoConnection(_) => 2,
        }
    }
}

/// An error of the operating system's, with what to do about it where it does not say so itself.
pub fn with_remedy(cause: &io::Error) -> String {
    let remedy = match cause.raw_os_error() {
        Some(libc::EMFILE) => "; raise the limit of open files, `ulimit -n`",
        Some(libc::EADDRINUSE) => "; take another port, or 0 for any",
        _ => "",
    };
    format!("{cause}{remedy}")
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotDelivered(why) | Self::NoConnection(why) => f.write_str(why),
        }
    }
}
