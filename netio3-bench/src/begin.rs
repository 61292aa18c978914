//! The moment at which a measurement begins.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, raise};

static HELD: AtomicBool = AtomicBool::new(false);

/// Has this process stop when its measurement is to begin, until whoever started it lets it go on.
pub fn hold() {
    HELD.store(true, Ordering::Relaxed);
    // Nobody else would wake it.
    let _ = set_pdeathsig(Signal::SIGKILL);
}

/// Everything is connected: this is the beginning.
pub fn begin() -> Instant {
    if HELD.swap(false, Ordering::Relaxed) {
        let _ = raise(Signal::SIGSTOP);
    }
    Instant::now()
}
