//! The moment at which a measurement begins, and what a process has to see to before.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, raise};
use nix::unistd::getppid;

use crate::failure::Failure;

static HELD: AtomicBool = AtomicBool::new(false);

/// Has this process stop when its measurement is to begin, until whoever started it lets it go on.
pub fn hold() {
    HELD.store(true, Ordering::Relaxed);
    // Nobody else would wake it.
    let _ = set_pdeathsig(Signal::SIGKILL);
}

/// Has this process end with the one that started it.
///
/// # Errors
/// That one has gone already.
pub fn end_with(parent: i32) -> Result<(), Failure> {
    let _ = set_pdeathsig(Signal::SIGKILL);
    // Nothing is signalled of what happened before.
    if getppid().as_raw() == parent {
        return Ok(());
    }
    Err(Failure::NotDelivered(format!("process {parent}, which started this one, has gone")))
}

/// Everything is connected: this is the beginning.
pub fn begin() -> Instant {
    if HELD.swap(false, Ordering::Relaxed) {
        let _ = raise(Signal::SIGSTOP);
    }
    Instant::now()
}
