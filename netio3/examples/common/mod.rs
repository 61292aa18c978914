//! What the examples share: the command line, and how a callback ends the program.
#![allow(dead_code, reason = "not every example uses everything")]

use std::cell::RefCell;
use std::error::Error;
use std::process::ExitCode;

use netio3::{EpollEventLoop, EventLoop, Handle, NetworkType};

/// What a program, or a part of it, comes to.
pub type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// Runs a program with the backend that `--backend NAME` chooses (`tcp` without it, `rdma` only where the example was built
/// with `--features rdma`) and the other arguments.
pub fn run(program: impl FnOnce(NetworkType, &[&str]) -> Outcome) -> ExitCode {
    let Err(error) = arguments().and_then(|(kind, rest)| program(kind, &rest.iter().map(String::as_str).collect::<Vec<_>>())) else {
        return ExitCode::SUCCESS;
    };
    eprint!("{error}");
    let mut error: &dyn Error = &*error;
    while let Some(cause) = error.source() {
        eprint!(": {cause}");
        error = cause;
    }
    eprintln!();
    ExitCode::FAILURE
}

fn arguments() -> Outcome<(NetworkType, Vec<String>)> {
    let mut rest: Vec<String> = std::env::args().skip(1).collect();
    let Some(at) = rest.iter().position(|arg| arg == "--backend") else {
        return Ok((NetworkType::Tcp, rest));
    };
    if at + 1 == rest.len() {
        return Err("--backend needs a name: tcp, rdma or loopback".into());
    }
    let kind = rest.drain(at..at + 2).nth(1).unwrap_or_default();
    Ok((kind.parse()?, rest))
}

/// The end of a program's work, told by a callback and waited for outside.
pub struct Ending {
    ev: Handle,
    outcome: RefCell<Option<Outcome>>,
}

impl Ending {
    /// An end that has not come yet.
    pub fn new(ev: &EpollEventLoop) -> Self {
        Self { ev: ev.local(), outcome: RefCell::new(None) }
    }

    /// Stops the loop with this outcome; only the first one counts.
    pub fn tell(&self, outcome: Outcome) {
        self.outcome.borrow_mut().get_or_insert(outcome);
        self.ev.stop();
    }

    /// Runs the loop until the end is told.
    pub fn wait(&self, ev: &EpollEventLoop) -> Outcome {
        loop {
            if let Some(outcome) = self.outcome.borrow_mut().take() {
                return outcome;
            }
            ev.run()?;
        }
    }
}
