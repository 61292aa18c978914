//! Where the mailboxes are: found by an index, without a lock that is shared.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use std::{hint, thread};

use spin::mutex::{SpinMutex, SpinMutexGuard};

use crate::endpoint::{Endpoint, MAX_ENDPOINTS};
use crate::engine::sync::mailbox::Mail;

/// The places of all mailboxes. It grows as places are used and never moves or frees one, so that finding a
/// mailbox takes no lock but its own.
pub(super) struct Slots([OnceLock<Box<[Slot]>>; SEGMENTS]);

/// A place, on a cache line of its own so that neighbours' locks do not slow each other down.
///
/// Every message takes this lock, uncontended, so it is one whose release is a plain store. Taking it is an atomic
/// read-modify-write, which on x86-64 waits until all that was written before has reached the cache; releasing one that wakes
/// its waiters takes another. So nobody is woken here, and who waits looks again by himself.
#[derive(Default)]
#[repr(align(64))]
pub(super) struct Slot {
    mail: SpinMutex<Option<Box<Mail>>>,
    /// Those who have waited for long.
    waiting: AtomicUsize,
}

/// A locked place.
pub(super) type Locked<'a> = SpinMutexGuard<'a, Option<Box<Mail>>>;

/// How often who waits looks before he lets others run: about a microsecond, in which most holders are done.
const LOOKS: usize = 20;
/// How often he does that, letting others run in between, before he sleeps: a holder may have been interrupted, or have a
/// lower priority.
const TURNS: usize = 16;
/// How long he sleeps: as short as the kernel's timers are by default.
const SLEEP: Duration = Duration::from_micros(50);

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
    pub(super) fn lock(&self) -> Locked<'_> {
        // Relaxed: the count orders nothing, and who misses it goes first once.
        if self.waiting.load(Ordering::Relaxed) == 0
            && let Some(locked) = self.mail.try_lock()
        {
            return locked;
        }
        self.wait()
    }

    /// Waits for the lock. While somebody has waited for long, who comes waits a little, too, so that threads which send again
    /// and again keep nobody out.
    #[cold]
    fn wait(&self) -> Locked<'_> {
        if self.waiting.load(Ordering::Relaxed) > 0 {
            (0..LOOKS).for_each(|_| hint::spin_loop());
        }
        let mut turns = 0;
        let locked = loop {
            if let Some(locked) = self.look() {
                break locked;
            }
            turns += 1;
            if turns == TURNS {
                self.waiting.fetch_add(1, Ordering::Relaxed);
            }
            // After a sleep he looks as often as before: the lock may be free for moments only.
            if turns % TURNS > 0 { thread::yield_now() } else { thread::sleep(SLEEP) }
        };
        if turns >= TURNS {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        locked
    }

    fn look(&self) -> Option<Locked<'_>> {
        (0..LOOKS).find_map(|_| {
            hint::spin_loop();
            // Only read until it is free, which leaves the line to the holder.
            (!self.mail.is_locked()).then(|| self.mail.try_lock()).flatten()
        })
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
    use std::time::Instant;

    use super::*;

    #[test]
    fn places_do_not_overlap() {
        assert_eq!((position(0), position(63), position(64), position(191), position(192)), ((0, 0), (0, 63), (1, 0), (1, 127), (2, 0)));
        let (segment, offset) = position(MAX_ENDPOINTS - 1);
        assert!(segment < SEGMENTS && offset < FIRST << segment);
    }

    #[test]
    fn who_has_waited_for_long_is_counted_until_he_has_the_lock() {
        let slot = Slot::default();
        let held = slot.lock();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| drop(slot.lock()));
            let deadline = Instant::now() + Duration::from_secs(20);
            while slot.waiting.load(Ordering::Relaxed) == 0 {
                assert!(Instant::now() < deadline, "nobody waits");
                thread::yield_now();
            }
            drop(held);
            waiter.join().expect("he got it");
        });
        assert_eq!(slot.waiting.into_inner(), 0);
    }

    #[test]
    fn who_comes_while_somebody_waits_gets_a_lock_that_is_free() {
        let slot = Slot { waiting: AtomicUsize::new(1), ..Slot::default() };
        drop(slot.lock());
        assert_eq!(slot.waiting.into_inner(), 1);
    }

    #[test]
    fn one_at_a_time_has_the_lock() {
        const ROUNDS: usize = 2_000;
        let slot = Slot::default();
        let inside = AtomicUsize::new(0);
        let come_and_go = || {
            for round in 0..ROUNDS {
                let locked = slot.lock();
                assert_eq!(inside.fetch_add(1, Ordering::Relaxed), 0, "somebody else is in");
                // Interrupted while he holds it, now and then.
                if round % 64 == 0 {
                    thread::yield_now();
                }
                inside.fetch_sub(1, Ordering::Relaxed);
                drop(locked);
            }
        };
        thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(come_and_go))));
        assert!(!slot.mail.is_locked());
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
