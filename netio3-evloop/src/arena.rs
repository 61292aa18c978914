//! A slab whose keys are never reused in the process, so that a stale key finds nothing, nor one of another loop's.

use std::sync::atomic::{AtomicU64, Ordering};

use slab::Slab;

/// Names an entry of one [`Arena`]; later keys compare greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key(pub(crate) u64);

impl Key {
    pub(crate) const MIN: Self = Self(0);
    pub(crate) const MAX: Self = Self(u64::MAX);

    fn new(serial: u64, index: usize) -> Self {
        assert!(index < MAX_ENTRIES, "an event loop holds at most {MAX_ENTRIES} sources or watches");
        Self(serial << INDEX_BITS | index as u64)
    }

    fn index(self) -> usize {
        (self.0 & (MAX_ENTRIES as u64 - 1)) as usize
    }
}

/// What an arena holds.
pub(crate) trait Entry {
    /// The next serial number for entries of this kind. They have numbers of their own: some come at every turn.
    fn serials() -> &'static AtomicU64;
}

/// Entries found by index and checked by serial number.
pub(crate) struct Arena<T> {
    entries: Slab<(Key, T)>,
}

impl<T: Entry> Arena<T> {
    pub(crate) fn insert_with(&mut self, make: impl FnOnce(Key) -> T) -> Key {
        let vacant = self.entries.vacant_entry();
        // Relaxed: the number only has to be unique, and to grow on each thread.
        let key = Key::new(T::serials().fetch_add(1, Ordering::Relaxed), vacant.key());
        vacant.insert((key, make(key)));
        key
    }

    pub(crate) fn get(&self, key: Key) -> Option<&T> {
        self.entries.get(key.index()).filter(|entry| entry.0 == key).map(|entry| &entry.1)
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        self.entries.get_mut(key.index()).filter(|entry| entry.0 == key).map(|entry| &mut entry.1)
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        self.get(key)?;
        Some(self.entries.remove(key.index()).1)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn into_values(self) -> impl Iterator<Item = T> {
        self.entries.into_iter().map(|(_, (_, value))| value)
    }
}

impl<T> Default for Arena<T> {
    fn default() -> Self {
        Self { entries: Slab::new() }
    }
}

/// The low bits of a key; the 40 above them hold the serial number, enough for a million new entries a
/// second during twelve days, or for ten thousand during three years.
const INDEX_BITS: u32 = 24;
const MAX_ENTRIES: usize = 1 << INDEX_BITS;

#[cfg(test)]
mod tests {
    use super::*;

    impl Entry for char {
        fn serials() -> &'static AtomicU64 {
            static SERIAL: AtomicU64 = AtomicU64::new(0);
            &SERIAL
        }
    }

    #[test]
    fn a_stale_key_finds_nothing_though_its_place_is_taken_again() {
        let mut arena = Arena::default();
        let first = arena.insert_with(|_| 'a');
        assert_eq!(arena.remove(first), Some('a'));
        let second = arena.insert_with(|_| 'b');
        assert_eq!(first.index(), second.index());
        assert!(second > first);
        assert_eq!(arena.get(first), None);
        assert_eq!(arena.remove(first), None);
        assert_eq!(arena.get(second), Some(&'b'));
        assert_eq!(arena.into_values().collect::<Vec<_>>(), ['b']);
    }
}
