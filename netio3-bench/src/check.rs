//! Whether the messages of a connection came once each, in order and unharmed.

use std::cmp::Ordering;
use std::ops::Range;

use crate::control::Tally;
use crate::pattern::{Pattern, SEQUENCE_BITS, TAG_LEN, read_tag, tag};

/// Checks the messages of one connection.
pub struct StreamCheck {
    size: usize,
    /// The sequence number after the highest one that came.
    next: u64,
    /// The connection's part of the tag.
    stream_bits: u64,
    /// The bits of a tag that messages of this size carry.
    mask: u64,
    /// Whether a message in its place needs no further look: without `pattern`.
    fast: bool,
    received: u64,
    duplicated: u64,
    reordered: u64,
    corrupted: u64,
    /// Sequence numbers that were skipped.
    missing: Vec<Range<u64>>,
    pattern: Option<Pattern>,
}

/// Gaps that are remembered; a late message from an older one counts as a duplicate.
const MAX_GAPS: usize = 4_096;
/// The widest gap that is believed; beyond it the tag is taken for damaged.
const MAX_GAP: i64 = 1 << 40;

impl StreamCheck {
    /// A check of messages of `size` bytes; of every byte if `verify`.
    pub fn new(size: usize, stream: u16, verify: bool) -> Self {
        let tag_bits = 8 * size.min(TAG_LEN) as u32;
        Self {
            size,
            next: 0,
            stream_bits: tag(stream, 0),
            mask: 1u64.checked_shl(tag_bits).map_or(u64::MAX, |limit| limit - 1),
            fast: !verify,
            received: 0,
            duplicated: 0,
            reordered: 0,
            corrupted: 0,
            missing: Vec::new(),
            pattern: verify.then(|| Pattern::new(size).of_stream(stream)),
        }
    }

    /// Bytes of each message.
    #[inline]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Counts a message, which has the right size.
    #[inline]
    pub fn observe(&mut self, message: &[u8]) {
        self.received += 1;
        let tag = read_tag(message);
        if self.fast && tag == (self.stream_bits | self.next) & self.mask {
            self.next += 1;
        } else {
            self.observe_slowly(tag, message);
        }
    }

    /// Counts one that came with another length, and says so.
    #[cold]
    pub fn count_mutilated(&mut self, len: usize) -> String {
        self.received += 1;
        self.corrupted += 1;
        format!("a message of {len} bytes came where {} were announced", self.size)
    }

    /// How many came.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// How many must have been sent for what came.
    pub fn reached(&self) -> u64 {
        self.next
    }

    /// What came, given how many messages were sent (`None`: the sender did not say).
    pub fn tally(&self, sent: Option<u64>) -> Tally {
        let distinct = self.received - self.duplicated;
        Tally {
            messages: self.received,
            bytes: self.received * self.size as u64,
            lost: sent.map_or(0, |sent| sent.saturating_sub(distinct)),
            duplicated: self.duplicated + sent.map_or(0, |sent| distinct.saturating_sub(sent)),
            reordered: self.reordered,
            corrupted: self.corrupted,
            verified: if self.pattern.is_some() { self.received } else { 0 },
        }
    }

    /// Messages out of place, and all whose every byte is checked.
    #[inline(never)]
    fn observe_slowly(&mut self, tag: u64, message: &[u8]) {
        let body = message.get(TAG_LEN..).unwrap_or_default();
        let is_of = |sequence| self.pattern.as_ref().is_none_or(|pattern| body == pattern.body(sequence));
        let sequence = self.find(tag);
        let intact = sequence.is_some_and(is_of);
        // Where the body is that of the message that is due, it is the tag that is damaged, and nothing was skipped.
        let is_due = !intact && self.pattern.is_some() && is_of(self.next);
        self.corrupted += u64::from(!intact);
        if let Some(sequence) = if is_due { Some(self.next) } else { sequence } {
            self.place(sequence);
        }
    }

    /// Finds out which message a tag belongs to, if it can be any.
    fn find(&self, tag: u64) -> Option<u64> {
        let sequence_mask = self.mask & ((1 << SEQUENCE_BITS) - 1);
        if (tag ^ self.stream_bits) & self.mask & !sequence_mask != 0 {
            return None;
        }
        // The distance from the expected sequence number, as a signed number of the bits that there are.
        let bits = sequence_mask.count_ones();
        let ahead = match bits {
            0 => 0,
            _ => (tag.wrapping_sub(self.next) << (64 - bits)) as i64 >> (64 - bits),
        };
        self.next.checked_add_signed(ahead).filter(|_| ahead <= MAX_GAP)
    }

    /// Counts a message that is out of place as such.
    fn place(&mut self, sequence: u64) {
        match sequence.cmp(&self.next) {
            Ordering::Equal => self.next += 1,
            Ordering::Greater => {
                if self.missing.len() == MAX_GAPS {
                    self.missing.remove(0);
                }
                self.missing.push(self.next..sequence);
                self.next = sequence + 1;
            }
            Ordering::Less if self.fill_gap(sequence) => self.reordered += 1,
            Ordering::Less => self.duplicated += 1,
        }
    }

    fn fill_gap(&mut self, sequence: u64) -> bool {
        let Some(index) = self.missing.iter().position(|gap| gap.contains(&sequence)) else {
            return false;
        };
        let gap = self.missing.swap_remove(index);
        self.missing.extend([gap.start..sequence, sequence + 1..gap.end].into_iter().filter(|part| !part.is_empty()));
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pattern::{Content, Layout};

    /// The messages as a receiver gets them.
    fn messages(layout: &Layout, stream: u16, count: u64) -> Vec<Vec<u8>> {
        let content = Content::new(layout).of_stream(stream);
        let message = |sequence| {
            let mut message = vec![0; content.head_len()];
            content.write_head(sequence, &mut message);
            content.pieces(sequence).iter().for_each(|piece| message.extend_from_slice(piece));
            message
        };
        (0..count).map(message).collect()
    }

    fn check(messages: &[Vec<u8>], size: usize, stream: u16, verify: bool, sent: u64) -> Tally {
        let mut check = StreamCheck::new(size, stream, verify);
        messages.iter().for_each(|message| check.observe(message));
        check.tally(Some(sent))
    }

    const PLAIN: Layout = Layout { size: 64, header: None, pieces: 1 };

    #[test]
    fn loss_is_counted_at_both_ends_and_within() {
        let sent = messages(&PLAIN, 0, 100);
        for verify in [false, true] {
            assert_eq!(check(&sent[3..], 64, 0, verify, 100).lost, 3);
            assert_eq!(check(&sent[..97], 64, 0, verify, 100).lost, 3);
            let mut gap = sent.clone();
            gap.drain(40..50);
            let verified = if verify { 90 } else { 0 };
            let expected = Tally { messages: 90, bytes: 5_760, lost: 10, verified, ..Default::default() };
            assert_eq!(check(&gap, 64, 0, verify, 100), expected);
        }
    }

    #[test]
    fn repeated_and_late_messages_are_told_apart() {
        let sent = messages(&PLAIN, 0, 100);
        let mut twice = sent.clone();
        twice.insert(50, sent[20].clone());
        let expected = Tally { messages: 101, bytes: 6_464, duplicated: 1, verified: 101, ..Default::default() };
        assert_eq!(check(&twice, 64, 0, true, 100), expected);
        let mut late = sent.clone();
        let moved = late.remove(20);
        late.insert(50, moved);
        let expected = Tally { messages: 100, bytes: 6_400, reordered: 1, ..Default::default() };
        assert_eq!(check(&late, 64, 0, false, 100), expected);
    }

    #[test]
    fn a_message_of_another_stream_is_corrupt() {
        let mut sent = messages(&PLAIN, 1, 10);
        sent[5] = messages(&PLAIN, 2, 10).swap_remove(5);
        let tally = check(&sent, 64, 1, false, 10);
        assert_eq!((tally.corrupted, tally.lost), (1, 0));
    }

    #[test]
    fn messages_without_a_byte_are_counted() {
        let nothing = messages(&Layout { size: 0, ..PLAIN }, 0, 10);
        assert_eq!(check(&nothing, 0, 0, true, 10), Tally { messages: 10, verified: 10, ..Default::default() });
        assert_eq!(check(&nothing, 0, 0, true, 12).lost, 2);
        assert_eq!(check(&nothing, 0, 0, true, 9).duplicated, 1);
    }

    #[test]
    fn short_sequence_numbers_wrap() {
        for size in 1..=9 {
            let sent = messages(&Layout { size, ..PLAIN }, 0, 1_000);
            let tally = check(&sent, size, 0, false, 1_000);
            assert!(tally.is_clean() && tally.messages == 1_000, "{size}: {tally:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_sent_verifies(size in 0usize..3_000, header in prop::option::of(0usize..300), pieces in 1usize..20, stream: u16) {
            let layout = Layout { size, header, pieces };
            let sent = messages(&layout, stream, 300);
            prop_assert!(sent.iter().all(|message| message.len() == size));
            prop_assert!(check(&sent, size, stream, true, 300).is_clean());
            prop_assert!(check(&sent, size, stream, false, 300).is_clean());
        }

        #[test]
        fn one_wrong_byte_is_found(size in 9usize..2_000, at: prop::sample::Index, flip in 1u8.., message in 0usize..300) {
            let mut sent = messages(&Layout { size, ..PLAIN }, 5, 300);
            let at = TAG_LEN + at.index(size - TAG_LEN);
            sent[message][at] ^= flip;
            let tally = check(&sent, size, 5, true, 300);
            prop_assert_eq!((tally.corrupted, tally.lost), (1, 0));
        }

        #[test]
        fn a_wrong_bit_of_the_tag_is_one_wrong_message(size in 16usize..2_000, bit in 0..8 * TAG_LEN, message in 0usize..300) {
            let mut sent = messages(&Layout { size, ..PLAIN }, 5, 300);
            sent[message][bit / 8] ^= 1 << (bit % 8);
            let expected = Tally { messages: 300, bytes: 300 * size as u64, corrupted: 1, verified: 300, ..Default::default() };
            prop_assert_eq!(check(&sent, size, 5, true, 300), expected);
        }

        #[test]
        fn any_loss_and_any_order_add_up(order in Just((0..60usize).collect::<Vec<_>>()).prop_shuffle(), keep in 0usize..60) {
            let sent = messages(&PLAIN, 0, 60);
            let came: Vec<_> = order[..keep].iter().map(|index| sent[*index].clone()).collect();
            let tally = check(&came, 64, 0, true, 60);
            prop_assert_eq!((tally.lost, tally.duplicated, tally.corrupted), (60 - keep as u64, 0, 0));
            let late = order[..keep].iter().scan(0, |top, index| { *top = (*top).max(*index); Some(*index < *top) });
            prop_assert_eq!(tally.reordered, late.filter(|late| *late).count() as u64);
        }
    }
}
