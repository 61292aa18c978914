//! A connection as the calling threads see it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::address::EndPointAddress;
use crate::backend::{ConnectionState, CopiedMessage, Phase};
use crate::config::{ConnectionParameters, Limits, NetworkConfig};
use crate::endpoint::Endpoint;
use crate::engine::copies::fitting;
use crate::engine::room::{Amount, Holds, Room};
use crate::engine::staging::SHORT_HEADER;
use crate::engine::sync::batch::Batch;
use crate::engine::sync::front::COPIED_APART;
use crate::engine::sync::quota::{Granted, Quota};
use crate::engine::transport::run_head_len;
use crate::engine::{Outgoing, RUN_HEAD_LEN, Transport};
use crate::memory::{BufferPool, HeldRegions, RegionTable};
use crate::stats::ConnectionCounters;
use crate::status::{Completion, CompletionKind, Direction, NetioStatus};

/// A connection's mailbox: what the calls need to know of it, and what they leave there for the loop.
pub(super) struct Mail {
    pub(super) endpoint: Endpoint,
    pub(super) address: EndPointAddress,
    pub(super) direction: Direction,
    pub(super) listener: Option<EndPointAddress>,
    pub(super) owns_address: bool,
    /// It becomes [`Phase::Closing`] by [`stop`](Self::stop) alone.
    pub(super) phase: Phase,
    pub(super) limits: Limits,
    pub(super) counters: Arc<ConnectionCounters>,
    pub(super) pool: Option<BufferPool>,
    /// What its queue takes: every accepted message counts until it comes back, those that the loop has not seen yet included.
    pub(super) room: Room,
    pub(super) holds: Holds,
    pub(super) granted: Granted,
    /// A buffer was asked for in vain.
    pub(super) starved: bool,
    pub(super) copy_below: usize,
    /// The messages and copied bytes of which either fills a batch.
    pub(super) batch_limits: (usize, usize),

    // What waits for the loop.
    /// Full batches, and the rest of one that was handed over in part; they go first.
    pub(super) full: VecDeque<Batch>,
    /// The one that is filled.
    pub(super) batch: Batch,
    /// Empty ones, for their memory.
    pub(super) spare: Vec<Batch>,
    pub(super) pause: Option<bool>,
    pub(super) end: Option<End>,

    /// The loop was told, or will be, that there is something.
    pub(super) dirty: bool,
    /// It is in the loop's list of those that wait for *writable*.
    pub(super) waiting: bool,
    /// It is in the loop's list of those that have used memory.
    pub(super) untrimmed: bool,
    /// When the loop last found messages here.
    pub(super) used_at: Instant,
}

/// The messages and copied bytes that a batch takes at least: below, handing it over would cost more than they.
const LEAST_BATCH: (usize, usize) = (64, 4 << 10);

/// How a connection was asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum End {
    /// After what was accepted.
    Close,
    /// At once.
    Abort,
}

/// Whether a mailbox is due to be told *writable*.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writable {
    /// It is, and counts as told.
    Due(EndPointAddress),
    /// It waits for it.
    Later,
    /// It does not, or not any more.
    Never,
}

/// What a send call offers, as far as it must be known for accepting it.
#[derive(Clone, Copy)]
pub(super) struct Offer {
    pub(super) header_len: usize,
    pub(super) len: usize,
    pub(super) key: u64,
    pub(super) kind: CompletionKind,
}

impl Offer {
    fn record(&self) -> Completion {
        Completion { key: self.key, kind: self.kind, len: self.len as u32 }
    }
}

impl Mail {
    /// The mailbox of a connection that is being opened.
    pub(super) fn new<T: Transport>(
        endpoint: Endpoint,
        address: EndPointAddress,
        params: &ConnectionParameters,
        config: &NetworkConfig,
        counters: Arc<ConnectionCounters>,
    ) -> Self {
        Self {
            endpoint,
            address,
            direction: Direction::Outgoing,
            listener: None,
            owns_address: false,
            phase: Phase::Opening,
            limits: Limits::new(config, params),
            counters,
            pool: None,
            room: Room::new(params),
            holds: Holds::default(),
            granted: Granted::default(),
            starved: false,
            copy_below: params.copy_below,
            batch_limits: (
                params.flush_messages.unwrap_or(T::FLUSH_MESSAGES).max(LEAST_BATCH.0),
                params.flush_at.clamp(LEAST_BATCH.1, ConnectionParameters::DEFAULT_FLUSH_AT),
            ),
            full: VecDeque::new(),
            batch: Batch::default(),
            spare: Vec::new(),
            pause: None,
            end: None,
            dirty: false,
            waiting: false,
            untrimmed: false,
            used_at: Instant::now(),
        }
    }

    /// Why a message is not accepted, apart from regions and room.
    #[inline]
    pub(super) fn objection(&self, offer: &Offer) -> Option<NetioStatus> {
        if self.phase != Phase::Established {
            return Some(NetioStatus::NotConnected);
        }
        (offer.header_len > self.limits.max_header_len || offer.len > self.limits.max_message_len).then_some(NetioStatus::TooBig)
    }

    /// Whether there is room for a message; an empty queue takes any one.
    #[inline]
    pub(super) fn has_room(&mut self, len: usize, quota: &Quota) -> bool {
        self.room.is_granted(len) || self.make_room(len, quota)
    }

    /// Looks at all limits, and how much may come before that has to be done again.
    #[inline(never)]
    fn make_room(&mut self, len: usize, quota: &Quota) -> bool {
        let (messages, bytes) = self.queued_with(len);
        let has_room = self.room.fits(len) && quota.cover(&mut self.granted, messages, bytes, self.room.is_empty());
        if has_room {
            self.room.grant(self.granted.beyond(self.room.untold()));
        }
        has_room
    }

    /// The messages and bytes that are queued with one of this length.
    fn queued_with(&self, len: usize) -> (usize, usize) {
        let queued = self.room.untold();
        (queued.messages as usize + 1, queued.bytes as usize + len)
    }

    /// No more messages are accepted.
    pub(super) fn stop(&mut self) {
        self.phase = Phase::Closing;
        self.room.end_grant();
    }

    /// The first messages have come back: gives room back that is not needed.
    pub(super) fn complete(&mut self, done: Amount, quota: &Quota, regions: &Mutex<RegionTable>) {
        self.room.tell(done);
        self.room.end_grant();
        let queued = self.room.untold();
        quota.settle(&mut self.granted, queued.messages as usize, queued.bytes as usize);
        if !self.holds.is_empty() {
            self.holds.release_below(self.room.told().messages, &mut regions.lock());
        }
    }

    /// All messages have come back: those that were handed over, and these.
    pub(super) fn take_pending(&mut self, regions: &Mutex<RegionTable>) -> impl Iterator<Item = Completion> {
        self.room.tell(self.room.untold());
        self.holds.release_below(u64::MAX, &mut regions.lock());
        self.full.iter().chain([&self.batch]).flat_map(Batch::rest).copied()
    }

    /// Accepts a message.
    #[inline(always)]
    pub(super) fn accept<T: Transport>(&mut self, offer: &Offer, held: HeldRegions, message: Outgoing<'_>) {
        self.holds.push(self.room.accepted().messages, held);
        self.room.accept(offer.len);
        self.batch.push::<T>(offer.record(), message, self.copy_below);
        self.close_full_batch();
    }

    /// Accepts a message of one piece by the shortest way, if it is copied and has a short header, and was granted; tells whether
    /// it did.
    #[inline(always)]
    pub(super) fn accept_one<T: Transport>(&mut self, key: u64, kind: CompletionKind, header: &[u8], piece: &[u8]) -> bool {
        let len = header.len() + piece.len();
        let is_copied = kind == CompletionKind::Copy || len <= self.copy_below;
        let is_short = header.len() <= SHORT_HEADER && len <= self.limits.max_message_len;
        let accepts = is_copied && is_short && self.room.is_granted(len);
        let record = Completion { key, kind, len: len as u32 };
        if !accepts || !self.batch.push_one::<T>(record, header, piece, self.batch_limits.1) {
            return false;
        }
        debug_assert!(self.phase == Phase::Established, "what was granted ends with it");
        self.room.accept(len);
        self.close_full_batch();
        true
    }

    /// Accepts copied messages, from the first on, until they come to so many bytes or one is not to be accepted, or not
    /// under the lock; gives how many.
    pub(super) fn accept_copies<T: Transport>(&mut self, messages: &[CopiedMessage<'_>], bytes: usize, quota: &Quota) -> usize {
        let head = run_head_len::<T>();
        let Limits { max_header_len, max_message_len, .. } = self.limits;
        let (mut rest, mut left) = (messages, bytes);
        while let Some(first) = rest.first()
            && left > 0
        {
            let len = first.len();
            let offer = Offer { header_len: first.header.len(), len, key: first.key, kind: CompletionKind::Copy };
            if len >= COPIED_APART || self.objection(&offer).is_some() || !self.has_room(len, quota) {
                break;
            }
            // There is room for the first one. Of the others those are entered with it that need no other look.
            let (most, room) = self.batch.until(self.batch_limits.0, self.batch_limits.1);
            let granted = self.room.granted();
            let most = rest.len().min(most).min(granted.messages as usize);
            let room = room.min(left).min(granted.bytes as usize);
            let accepts = |message: &CopiedMessage<'_>| message.header.len() <= max_header_len && message.len() <= max_message_len;
            let (accepted, bytes) = match fitting(&rest[..most], head, room, accepts) {
                (0, _) => (1, head + len),
                fit => fit,
            };
            let len = bytes - head * accepted;
            self.room.accept_run(accepted, len);
            self.batch.push_copies::<T>(&rest[..accepted], bytes);
            self.close_full_batch();
            // Each counts with a head, where it has none, too: there may be many empty ones.
            (rest, left) = (&rest[accepted..], left.saturating_sub(RUN_HEAD_LEN * accepted + len));
        }
        messages.len() - rest.len()
    }

    #[inline]
    fn close_full_batch(&mut self) {
        if self.batch.has(self.batch_limits.0, self.batch_limits.1) {
            self.close_batch();
        }
    }

    #[inline(never)]
    fn close_batch(&mut self) {
        let next = self.spare.pop().unwrap_or_default();
        self.full.push_back(std::mem::replace(&mut self.batch, next));
    }

    /// Takes the next batch out, in exchange for one that was emptied.
    pub(super) fn take_batch(&mut self, emptied: Option<Batch>) -> Batch {
        self.spare.extend(emptied);
        if self.full.is_empty() {
            self.close_batch();
        }
        self.full.pop_front().expect("one was closed")
    }

    /// Brings the counters of what was accepted and is queued up to date: not for each message, but when the loop looks,
    /// one is refused, and when the user asks for them. Like all counters kept here, these are written under the
    /// mailbox's lock alone.
    pub(super) fn count_queue(&self) {
        let accepted = self.room.accepted();
        // What has left and is not told yet takes room, but is not queued any more.
        let left = Amount { messages: self.counters.messages_sent.get(), bytes: self.counters.bytes_sent.get() };
        let queued = self.room.untold().min(accepted.saturating_sub(left));
        self.counters.messages_accepted.set(accepted.messages);
        self.counters.queued_messages.set(queued.messages);
        self.counters.queued_bytes.set(queued.bytes);
    }

    /// Marks it as having something for the loop; `true` when the loop must be told.
    #[inline]
    pub(super) fn mark(&mut self) -> bool {
        !std::mem::replace(&mut self.dirty, true)
    }

    /// Whether messages wait for the loop.
    pub(super) fn is_filled(&self) -> bool {
        !self.full.is_empty() || !self.batch.is_empty()
    }

    /// Whether *writable* is owed.
    pub(super) fn owes_writable(&self) -> bool {
        self.room.refused().is_some() || self.starved
    }

    /// Looks whether *writable* is due.
    pub(super) fn poll_writable(&mut self, quota: &Quota) -> Writable {
        let refused = self.room.refused();
        if self.phase == Phase::Closing || !self.owes_writable() {
            self.waiting = false;
            return Writable::Never;
        }
        let room = |len: usize| {
            let (messages, bytes) = self.queued_with(len);
            self.room.is_empty() || (self.room.fits(len) && quota.could_cover(self.granted, messages, bytes))
        };
        let buffer = || {
            let Some(pool) = &self.pool else { return true };
            // Asked for again each time: another thread may have taken the buffer that was told of.
            pool.set_starved();
            pool.available() > 0
        };
        // With both, the message alone decides: who was refused may hold the very buffers, to send them then.
        if self.phase != Phase::Established || !refused.map_or_else(buffer, room) {
            return Writable::Later;
        }
        self.room.clear_refusal();
        self.starved = false;
        self.waiting = false;
        Writable::Due(self.address)
    }

    /// Gives memory back if it was not used for so long; `false` when it was.
    pub(super) fn trim(&mut self, now: Instant, idle: Duration) -> bool {
        if self.is_filled() || !self.room.is_empty() || now.saturating_duration_since(self.used_at) < idle {
            return false;
        }
        (self.full, self.batch, self.spare) = Default::default();
        self.holds = Holds::default();
        self.untrimmed = false;
        true
    }

    /// The memory that each of its batches has for copied bytes.
    #[cfg(test)]
    pub(super) fn capacities(&self) -> Vec<usize> {
        self.full.iter().chain([&self.batch]).chain(&self.spare).map(Batch::capacity).collect()
    }

    /// What the user sees of it.
    pub(super) fn describe(&self) -> ConnectionState {
        self.count_queue();
        ConnectionState {
            endpoint: self.endpoint,
            address: self.address,
            direction: self.direction,
            listener: self.listener,
            phase: self.phase,
            counters: self.counters.clone(),
        }
    }
}
