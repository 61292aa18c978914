//! Keeps the process's signal handlers.
//!
//! libfabric brings the libraries of all its providers along, some of which (`libinfinipath`, `libpsm2`) install handlers
//! for interrupt, termination and crashes when they are loaded. Those print a trace and end the process by `exit`, from
//! inside the handler, which may wait for ever for a lock that the interrupted code holds; and a program that handles these
//! signals itself would never be told again.

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::ptr;

/// What is done about each signal.
pub(super) struct Handlers(Vec<(c_int, libc::sigaction)>);

/// The signals that are not real-time ones; of two of them there is nothing to change.
const SIGNALS: std::ops::RangeInclusive<c_int> = 1..=31;

impl Handlers {
    /// As they are now.
    pub(super) fn current() -> Self {
        Self(SIGNALS.filter_map(|signal| Some((signal, handler(signal)?))).collect())
    }

    /// Puts back those that have changed since.
    pub(super) fn restore(&self) {
        for (signal, before) in &self.0 {
            if handler(*signal).is_some_and(|now| now.sa_sigaction != before.sa_sigaction) {
                tracing::debug!(signal, "a library that came with libfabric has set a handler, which is taken away");
                // SAFETY: it is what the system gave for this signal, so that its handler may be called.
                unsafe { libc::sigaction(*signal, before, ptr::null_mut()) };
            }
        }
    }
}

fn handler(signal: c_int) -> Option<libc::sigaction> {
    let mut handler = MaybeUninit::uninit();
    // SAFETY: nothing is changed, and there is room for what is written.
    let code = unsafe { libc::sigaction(signal, ptr::null(), handler.as_mut_ptr()) };
    // SAFETY: the call succeeded, so that it was written.
    (code == 0).then(|| unsafe { handler.assume_init() })
}
