//! Counters, per connection, listener, backend and loop.
//!
//! A counter handle is an `Arc` that any thread may read at any time without touching the loop;
//! `snapshot()` copies it into plain numbers, serializable under the feature `serde`. Counters only
//! grow, except those documented as a level. Totals of a backend survive the connections.
//!
//! What was accepted for sending is counted when it is flushed, or something leaves or is refused, and whenever the backend is
//! asked for the handle: a handle that was asked for before may know less meanwhile.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that one thread at a time writes and any thread reads.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// The present value.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    /// Adds `n`. For backends and loops: one thread at a time may write.
    #[inline]
    pub fn add(&self, n: u64) {
        // No read-modify-write: there is one writer at a time, so a load and a store lose nothing.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Sets a level. For backends and loops: one thread at a time may write.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Raises a level that several threads change.
    pub(crate) fn rise(&self, n: u64) {
        // SeqCst, as for `fall`: a loop that finds a cap reached must not miss the drop that makes room.
        self.0.fetch_add(n, Ordering::SeqCst);
    }

    /// Lowers a level that several threads change.
    pub(crate) fn fall(&self, n: u64) {
        let before = self.0.fetch_sub(n, Ordering::SeqCst);
        debug_assert!(before >= n, "a level falls below nothing");
    }

    /// Raises the value to at least `value`. For backends and loops, as above.
    pub fn raise(&self, value: u64) {
        if value > self.get() {
            self.set(value);
        }
    }
}

/// Declares a struct of counters and the struct of plain numbers that its `snapshot` gives.
macro_rules! counters {
    ($(#[$live_doc:meta])* $live:ident, $(#[$plain_doc:meta])* $plain:ident { $($(#[$doc:meta])* $field:ident,)* }) => {
        $(#[$live_doc])*
        #[derive(Debug, Default)]
        pub struct $live { $($(#[$doc])* pub $field: Counter,)* }

        $(#[$plain_doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize))]
        #[non_exhaustive]
        pub struct $plain { $($(#[$doc])* pub $field: u64,)* }

        impl $live {
            /// The values now. Each is exact; together they may straddle an event.
            pub fn snapshot(&self) -> $plain {
                $plain { $($field: self.$field.get(),)* }
            }
        }

        impl $plain {
            /// Each name with its value, in declared order; the names are stable.
            pub fn fields(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($field), self.$field),)*].into_iter()
            }
        }
    };
}

counters! {
    /// The counters of one connection.
    ConnectionCounters,
    /// A snapshot of [`ConnectionCounters`].
    ConnectionStats {
        /// Messages accepted for sending.
        messages_accepted,
        /// Messages completed: they left the library.
        messages_sent,
        /// Bytes of completed messages, headers included, framing excluded.
        bytes_sent,
        /// Messages handed to `on_data`.
        messages_received,
        /// Their bytes.
        bytes_received,
        /// Sends refused with `NoResources`.
        refused_sends,
        /// Zero-copy messages whose bytes were copied all the same, being small or unregistered.
        copied_messages,
        /// System calls or posts that sent something.
        writes,
        /// Those of the posts that asked for a completion of their own (RDMA).
        signalled,
        /// System calls or completions that received something.
        reads,
        /// Heartbeats sent.
        heartbeats_sent,
        /// Heartbeats received.
        heartbeats_received,
        /// Messages that were read and not delivered before the end, one cut off by it included. What the system holds
        /// unread then is in no count.
        messages_discarded,
        /// Messages returned in *closed*'s pending list.
        messages_pending_at_close,
        /// Level: accepted messages that wait for completion.
        queued_messages,
        /// Level: their bytes.
        queued_bytes,
        /// Level: taken-over messages still alive.
        owned_messages,
        /// Level: their bytes.
        owned_bytes,
    }
}

counters! {
    /// The counters of one listener.
    ListenerCounters,
    /// A snapshot of [`ListenerCounters`].
    ListenerStats {
        /// Peers accepted by the kernel or provider.
        accepted,
        /// Peers that became connections.
        established,
        /// Peers that failed the hello: wrong magic, malformed, hung up.
        failed_hello,
        /// Peers that said no hello within the deadline, or made room for another one.
        silent,
        /// Peers without a common protocol version.
        refused_version,
        /// Peers that the accept filter turned away.
        refused_filter,
        /// Peers beyond the limit of connections, or for whose buffers there was no memory.
        refused_limit,
        /// Times that accepting failed for want of descriptors or memory.
        accept_failures,
    }
}

counters! {
    /// The totals of one backend; they survive the connections.
    BackendCounters,
    /// A snapshot of [`BackendCounters`].
    BackendStats {
        /// Connections opened from this side; of a synchronized backend those that its loop knows of.
        opened,
        /// Connections established, either way.
        established,
        /// Connections refused.
        refused,
        /// Established connections that ended.
        closed,
        /// Messages accepted for sending; of a synchronized backend those that its loop has taken over, or given back at
        /// the end.
        messages_accepted,
        /// Messages completed.
        messages_sent,
        /// Bytes of completed messages, headers included.
        bytes_sent,
        /// Messages handed to `on_data`.
        messages_received,
        /// Their bytes.
        bytes_received,
        /// Sends refused with `NoResources`.
        refused_sends,
        /// System calls or posts that sent something.
        writes,
        /// Those of the posts that asked for a completion of their own (RDMA).
        signalled,
        /// System calls or completions that received something.
        reads,
        /// Messages that arrived but were not delivered.
        messages_discarded,
        /// Messages returned in pending lists.
        messages_pending_at_close,
        /// Peers that failed the hello.
        failed_hello,
        /// Times that accepting failed for want of descriptors or memory.
        accept_failures,
        /// Level: accepted messages that wait for completion; of a synchronized backend those that its loop has
        /// taken over.
        queued_messages,
        /// Level: their bytes.
        queued_bytes,
        /// Level: connections now; of a synchronized backend until the callback of their end has returned, and one more while its
        /// shutdown has not reached the loop.
        connections,
        /// Level: taken-over messages still alive.
        owned_messages,
        /// Level: their bytes.
        owned_bytes,
        /// Level: memory held for assembling large messages and for what was read of paused connections, in bytes.
        assembly_bytes,
        /// Level: bytes of registered regions.
        registered_bytes,
        /// Bytes of the backend's own buffers that a device has pinned (RDMA; a level).
        pinned_bytes,
    }
}

counters! {
    /// The counters of one event loop.
    LoopCounters,
    /// A snapshot of [`LoopCounters`].
    LoopStats {
        /// Turns run.
        turns,
        /// Times the loop slept and was woken, by whatever.
        wakeups,
        /// The longest turn, or the longest that a spinning loop took for what it found by polling, in nanoseconds, sleeping
        /// excluded.
        longest_turn_ns,
        /// Times that a source used a budget up, of which it has one for what is delivered in a turn, one for the turn's end,
        /// and one whenever it is polled.
        budget_hits,
        /// Events delivered to sources.
        events,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_name_every_counter() {
        let live = LoopCounters::default();
        live.turns.add(2);
        live.turns.add(3);
        live.longest_turn_ns.raise(9);
        live.longest_turn_ns.raise(4);
        let plain = live.snapshot();
        assert_eq!((plain.turns, plain.longest_turn_ns), (5, 9));
        assert_eq!(plain.fields().next(), Some(("turns", 5)));
    }
}
