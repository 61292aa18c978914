//! Handles of connections.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// A connection's handle: small, `Copy`, resolved once and never reused.
///
/// The handle of a connection that is gone, or of another backend, is unknown to every call; it
/// never means somebody else's connection. (The low 24 bits index a backend's table, the upper 40
/// are a serial number that the whole process shares.)
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint(NonZeroU64);

const SLOT_BITS: u32 = 24;
const SLOT_MASK: u64 = (1 << SLOT_BITS) - 1;

/// The most connections one backend can hold at once, whatever its configuration says.
pub const MAX_ENDPOINTS: usize = 1 << SLOT_BITS;

impl Endpoint {
    /// The place in a backend's table.
    pub(crate) fn slot(self) -> usize {
        (self.0.get() & SLOT_MASK) as usize
    }

    /// The handle as a number, for logs and for maps of one's own.
    pub fn as_u64(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({})", self)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}.{}", self.0.get() >> SLOT_BITS, self.slot())
    }
}

/// Hands out handles; shared by a backend and the synchronized front before it.
#[derive(Clone, Default)]
pub(crate) struct EndpointIds(Arc<Mutex<Slots>>);

#[derive(Default)]
struct Slots {
    free: Vec<u32>,
    used: u32,
}

impl EndpointIds {
    /// A fresh handle, or `None` when `limit` handles are in use.
    pub(crate) fn allocate(&self, limit: usize) -> Option<Endpoint> {
        static SERIAL: AtomicU64 = AtomicU64::new(1);
        let mut slots = self.0.lock();
        let in_use = slots.used as usize - slots.free.len();
        if in_use >= limit.min(MAX_ENDPOINTS) {
            return None;
        }
        let slot = slots.free.pop().unwrap_or_else(|| {
            slots.used += 1;
            slots.used - 1
        });
        // Relaxed: the number only has to be unique.
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        Some(Endpoint(NonZeroU64::new((serial << SLOT_BITS) | u64::from(slot)).expect("serial numbers begin at 1 and do not run out")))
    }

    /// Makes the place of a handle free for another one.
    pub(crate) fn release(&self, endpoint: Endpoint) {
        self.0.lock().free.push(endpoint.slot() as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_reused_and_handles_are_not() {
        let ids = EndpointIds::default();
        let first = ids.allocate(2).unwrap();
        let second = ids.allocate(2).unwrap();
        assert_ne!(first.slot(), second.slot());
        assert!(ids.allocate(2).is_none());
        ids.release(first);
        let third = ids.allocate(2).unwrap();
        assert_eq!(third.slot(), first.slot());
        assert_ne!(third, first);
        assert_ne!(EndpointIds::default().allocate(1).unwrap(), first);
    }
}
