//! Memory of messages that are gone, for those to come.

/// Messages up to this length are copied out of memory that is used again and again; longer ones have
/// memory of their own, which the receiver may keep.
pub(super) const SMALL: usize = 4 << 10;

/// Empty vectors, up to a limit in bytes.
#[derive(Default)]
pub(super) struct Spares {
    small: Vec<Vec<u8>>,
    large: Vec<Vec<u8>>,
    bytes: usize,
}

impl Spares {
    /// An empty vector with room for `len` bytes.
    pub(super) fn take(&mut self, len: usize) -> Vec<u8> {
        let kept = if len <= SMALL { self.small.pop() } else { self.large.pop() };
        let kept = kept.inspect(|kept| self.bytes -= kept.capacity());
        if len <= SMALL {
            let mut memory = kept.unwrap_or_default();
            if memory.capacity() < len {
                memory.reserve(len.next_power_of_two().max(64));
            }
            memory
        } else {
            // What is much too large would burden a receiver that keeps the message.
            kept.filter(|kept| (len..=2 * len).contains(&kept.capacity())).unwrap_or_else(|| Vec::with_capacity(len))
        }
    }

    /// Keeps the memory of a message, if it is not too much.
    pub(super) fn put(&mut self, mut memory: Vec<u8>) {
        let capacity = memory.capacity();
        if capacity == 0 || self.bytes + capacity > MOST {
            return;
        }
        memory.clear();
        self.bytes += capacity;
        if capacity <= SMALL { self.small.push(memory) } else { self.large.push(memory) }
    }

    /// Frees everything.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Bytes kept, at most.
const MOST: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again() {
        let mut spares = Spares::default();
        let mut memory = spares.take(100);
        memory.extend_from_slice(&[1; 100]);
        let place = memory.as_ptr();
        spares.put(memory);
        let again = spares.take(60);
        assert!(again.is_empty());
        assert_eq!(again.as_ptr(), place);
    }

    #[test]
    fn large_memory_goes_to_messages_of_about_its_size() {
        let mut spares = Spares::default();
        spares.put(Vec::with_capacity(1 << 20));
        assert!(spares.take(10_000).capacity() < 1 << 20);
        spares.put(Vec::with_capacity(1 << 20));
        assert_eq!(spares.take(1_000_000).capacity(), 1 << 20);
    }

    #[test]
    fn too_much_is_not_kept() {
        let mut spares = Spares::default();
        (0..10).for_each(|_| spares.put(Vec::with_capacity(1 << 20)));
        assert_eq!((spares.large.len(), spares.bytes), (4, 4 << 20));
        spares.put(Vec::new());
        assert!(spares.small.is_empty());
        spares.clear();
        assert_eq!(spares.bytes, 0);
    }
}
