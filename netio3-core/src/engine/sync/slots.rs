//! Where the mailboxes are: found by an index, without a lock that is shared.

use std::sync::OnceLock;

use parking_lot::{Mutex, MutexGuard};

use crate::endpoint::{Endpoint, MAX_ENDPOINTS};
use crate::engine::sync::mailbox::Mail;

/// The places of all mailboxes. It grows as places are used and never moves or frees one, so that finding a
/// mailbox takes no lock but its own.
pub(super) struct Slots([OnceLock<Box<[Slot]>>; SEGMENTS]);

/// A place, on a cache line of its own so that neighbours' locks do not slow each other down.
#[derive(Default)]
#[repr(align(64))]
pub(super) struct Slot(Mutex<Option<Box<Mail>>>);

/// Places in the first segment; each further one has twice as many.
const FIRST: usize = 64;
const SEGMENTS: usize = (MAX_ENDPOINTS / FIRST).ilog2() as usize + 1;

impl Slots {
    pub(super) fn new() -> Self {
        Self([const { OnceLock::new() }; SEGMENTS])
    }

    /// The place of a mailbox, for whatever is in it now.
    #[inline]
    pub(super) fn get(&self, slot: usize) -> Option<&Slot> {
        let (segment, offset) = position(slot);
        self.0[segment].get()?.get(offset)
    }

    /// The place of a mailbox to be put there.
    pub(super) fn get_or_make(&self, slot: usize) -> &Slot {
        let (segment, offset) = position(slot);
        let slots = self.0[segment].get_or_init(|| (0..FIRST << segment).map(|_| Slot::default()).collect());
        &slots[offset]
    }

    /// All places that were ever used, and some that were not.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.0.iter().filter_map(OnceLock::get).flatten()
    }
}

impl Slot {
    #[inline]
    pub(super) fn lock(&self) -> MutexGuard<'_, Option<Box<Mail>>> {
        self.0.lock()
    }

    /// Takes a mailbox out, if it is this one's place still.
    pub(super) fn take(&self, endpoint: Endpoint) -> Option<Box<Mail>> {
        self.lock().take_if(|mail| mail.endpoint == endpoint)
    }
}

#[inline]
fn position(slot: usize) -> (usize, usize) {
    let segment = (slot / FIRST + 1).ilog2() as usize;
    (segment, slot - FIRST * ((1 << segment) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_do_not_overlap() {
        assert_eq!((position(0), position(63), position(64), position(191), position(192)), ((0, 0), (0, 63), (1, 0), (1, 127), (2, 0)));
        let (segment, offset) = position(MAX_ENDPOINTS - 1);
        assert!(segment < SEGMENTS && offset < FIRST << segment);
    }

    #[test]
    fn what_was_not_made_is_not_there() {
        let slots = Slots::new();
        assert!(slots.get(70).is_none());
        slots.get_or_make(70);
        assert!(slots.get(70).is_some() && slots.get(3).is_none());
        assert_eq!(slots.iter().count(), 128);
    }
}
