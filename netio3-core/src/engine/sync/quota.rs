//! The room that all send queues have together.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::config::NetworkConfig;
use crate::engine::room::Amount;

/// The room of all queues, in messages and bytes. Mailboxes take it in portions, so that threads sending on
/// different connections do not meet at a shared counter for every message.
pub(super) struct Quota {
    messages: Share,
    bytes: Share,
}

/// What a mailbox has taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Granted {
    messages: usize,
    bytes: usize,
}

impl Granted {
    /// What is left of it with so much in use.
    pub(super) fn beyond(self, used: Amount) -> Amount {
        Amount { messages: self.messages as u64, bytes: self.bytes as u64 }.saturating_sub(used)
    }
}

struct Share {
    used: AtomicUsize,
    limit: usize,
    portion: usize,
}

impl Quota {
    pub(super) fn new(config: &NetworkConfig) -> Self {
        Self { messages: Share::new(config.total_queue_messages, 64), bytes: Share::new(config.total_queue_bytes, 256 << 10) }
    }

    /// Makes what is granted cover so much in use; with `force` even beyond the limit.
    #[inline]
    pub(super) fn cover(&self, granted: &mut Granted, messages: usize, bytes: usize, force: bool) -> bool {
        (messages <= granted.messages || self.messages.cover(&mut granted.messages, messages, force))
            && (bytes <= granted.bytes || self.bytes.cover(&mut granted.bytes, bytes, force))
    }

    /// Whether [`cover`](Self::cover) would succeed.
    pub(super) fn could_cover(&self, granted: Granted, messages: usize, bytes: usize) -> bool {
        self.messages.could_cover(granted.messages, messages) && self.bytes.could_cover(granted.bytes, bytes)
    }

    /// Takes back what a mailbox does not need with so much in use.
    pub(super) fn settle(&self, granted: &mut Granted, messages: usize, bytes: usize) {
        self.messages.settle(&mut granted.messages, messages);
        self.bytes.settle(&mut granted.bytes, bytes);
    }
}

// The counters order nothing but themselves: Relaxed throughout.
impl Share {
    fn new(limit: usize, portion: usize) -> Self {
        // Small limits are kept to the message.
        Self { used: AtomicUsize::new(0), limit, portion: portion.min(limit / 1_024) }
    }

    #[cold]
    fn cover(&self, granted: &mut usize, wanted: usize, force: bool) -> bool {
        let more = wanted - *granted;
        // Portions only while there is plenty: what mailboxes hold unused is then no reason to refuse others.
        let taken = if more < self.portion && self.take(self.portion, self.limit / 2) {
            self.portion
        } else if self.take(more, self.limit) {
            more
        } else if force {
            self.used.fetch_add(more, Ordering::Relaxed);
            more
        } else {
            return false;
        };
        *granted += taken;
        true
    }

    fn take(&self, by: usize, limit: usize) -> bool {
        let fits = |used: usize| used.checked_add(by).filter(|used| *used <= limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }

    fn could_cover(&self, granted: usize, wanted: usize) -> bool {
        wanted <= granted || self.used.load(Ordering::Relaxed).saturating_add(wanted - granted) <= self.limit
    }

    fn settle(&self, granted: &mut usize, in_use: usize) {
        let keep = if in_use == 0 { 0 } else { in_use + self.portion };
        // Not for every message: only when more than another portion is unused.
        if *granted > keep && (in_use == 0 || *granted - keep >= self.portion) {
            self.used.fetch_sub(*granted - keep, Ordering::Relaxed);
            *granted = keep;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(total_queue_messages: usize, total_queue_bytes: usize) -> Quota {
        Quota::new(&NetworkConfig { total_queue_messages, total_queue_bytes, ..Default::default() })
    }

    #[test]
    fn a_small_limit_is_kept_exactly() {
        let quota = quota(3, 1_000);
        let (mut one, mut two) = (Granted::default(), Granted::default());
        assert!(quota.cover(&mut one, 1, 10, false) && quota.cover(&mut two, 2, 20, false));
        assert!(!quota.cover(&mut one, 2, 20, false) && !quota.could_cover(one, 2, 20));
        quota.settle(&mut two, 1, 10);
        assert!(quota.could_cover(one, 2, 20) && quota.cover(&mut one, 2, 20, false));
        assert!(quota.cover(&mut two, 2, 20, true), "forced");
        quota.settle(&mut one, 0, 0);
        quota.settle(&mut two, 0, 0);
        assert_eq!((quota.messages.used.into_inner(), quota.bytes.used.into_inner()), (0, 0));
    }

    #[test]
    fn bytes_are_limited_too() {
        let quota = quota(100, 50);
        let mut granted = Granted::default();
        assert!(!quota.cover(&mut granted, 1, 51, false));
        assert!(quota.cover(&mut granted, 1, 50, false));
    }

    #[test]
    fn portions_are_given_back() {
        let quota = quota(1 << 20, 1 << 30);
        let mut granted = Granted::default();
        assert!(quota.cover(&mut granted, 1, 100, false));
        assert_eq!(granted, Granted { messages: 64, bytes: 256 << 10 });
        assert!(quota.cover(&mut granted, 1_000, 100, false));
        quota.settle(&mut granted, 10, 100);
        assert_eq!(granted.messages, 74);
        quota.settle(&mut granted, 0, 0);
        assert_eq!((granted, quota.messages.used.into_inner()), (Granted::default(), 0));
    }
}
