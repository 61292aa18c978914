//! Bytes that were read and may not be delivered yet.

/// The rest of what was read of a connection that does not receive. As it is delivered bit by bit, what is
/// left stays where it is.
#[derive(Debug, Default)]
pub(crate) struct Stash {
    memory: Vec<u8>,
    start: usize,
}

impl Stash {
    /// `None` when the system has no memory for them.
    pub(crate) fn new(bytes: &[u8]) -> Option<Self> {
        let mut memory = Vec::new();
        memory.try_reserve_exact(bytes.len()).ok()?;
        memory.extend_from_slice(bytes);
        Some(Self { memory, start: 0 })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.memory.len()
    }

    /// What is left.
    pub(crate) fn rest(&self) -> &[u8] {
        &self.memory[self.start..]
    }

    /// All but the last `n` bytes are done with. The memory is given back when nothing is left.
    pub(crate) fn keep_last(&mut self, n: usize) {
        debug_assert!(n <= self.rest().len());
        self.start = self.memory.len() - n;
        if self.is_empty() {
            *self = Self::default();
        }
    }

    /// Memory held, in bytes.
    pub(crate) fn held(&self) -> usize {
        self.memory.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_stays_where_it_is_until_nothing_is() {
        let mut stash = Stash::new(b"abcdef").expect("so much memory");
        let end = stash.rest().as_ptr_range().end;
        for left in (1..6).rev() {
            stash.keep_last(left);
            assert_eq!(stash.rest(), &b"abcdef"[6 - left..]);
            assert_eq!(stash.rest().as_ptr_range().end, end);
            assert_eq!(stash.held(), 6, "counted whole");
        }
        stash.keep_last(0);
        assert!(stash.is_empty());
        assert_eq!(stash.held(), 0);
    }
}
