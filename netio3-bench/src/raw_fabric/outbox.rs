//! The measured messages of one connection, on their way out.

use std::sync::Arc;

use netio3_libfabric::fabric::{Desc, Endpoint, MemoryRegion};
use nix::libc::iovec;

use crate::args::Mode;
use crate::pattern::Content;
use crate::raw_fabric::link::Link;
use crate::raw_fabric::memory::Block;
use crate::raw_fabric::packet::{HEAD_LEN, Head, Kind, LEN_LEN, RECEIVE_LEN, part_len, parts};
use crate::raw_fabric::receives::Receives;
use crate::raw_fabric::sends::Sends;

/// Messages up to this many bytes are copied together, longer ones sent from where they lie: what is faster. Measured over
/// the provider `tcp`: copying wins up to 16 KiB, the two tie at 24 KiB, and sending from the place wins from 32 KiB on.
pub const COPY_UP_TO: usize = 16 << 10;

/// Packets of copies, or of filled buffers: so many are on their way at once.
const BUFFERS: usize = 8;

/// Bytes of a packet of copied messages: with the provider's own head a little less than 64 KiB, which is one segment
/// of the loopback interface.
const COPIED_LEN: usize = (64 << 10) - 256;

/// The messages of one connection.
pub struct Outbox {
    content: Content,
    size: usize,
    /// The sequence number of the next message.
    next: u64,
    /// Of the first that is not to be sent.
    limit: u64,
    /// Bytes of the next message's frame that were posted.
    offset: usize,
    part_len: usize,
    /// Up to so many bytes a packet is copied by the provider.
    inject_up_to: usize,
    way: Way,
}

enum Way {
    /// One send per message or part, from where it lies.
    Gathered {
        /// Packet heads, tags and headers, by the number of the send modulo the depth.
        heads: Block,
        slot_len: usize,
        /// The memory of all bodies.
        bodies: Option<Arc<MemoryRegion>>,
    },
    /// As many messages in one send as fit.
    Copied {
        buffers: Block,
        /// What the next buffer holds and was not taken: bytes and messages.
        filled: Option<(usize, u64)>,
    },
    /// As `Gathered`, from a buffer that is filled for each message.
    Filled {
        buffers: Block,
        count: u64,
        /// The message in the buffer that was filled last.
        filled: Option<u64>,
    },
}

impl Outbox {
    /// The pieces of one send, at most.
    pub const MAX_PIECES: usize = 8;

    /// How many sends may be on their way, given what the provider allows.
    pub fn depth(mode: Mode, allowed: usize) -> usize {
        if mode == Mode::ZeroCopy { allowed } else { allowed.min(BUFFERS) }
    }

    /// All messages up to a number of them.
    pub fn new(
        link: &Link,
        bodies: Option<&Arc<MemoryRegion>>,
        content: Content,
        size: usize,
        limit: u64,
        mode: Mode,
    ) -> Result<Self, String> {
        let Link { domain, endpoint, sends, .. } = link;
        let (inject_size, depth) = (endpoint.inject_size(), sends.depth() as usize);
        let way = match mode {
            Mode::ZeroCopy => {
                // Short messages are put together here to be injected.
                let slot_len = (HEAD_LEN + content.head_len()).max(inject_size).next_multiple_of(64);
                Way::Gathered { heads: Block::new(domain, depth * slot_len)?, slot_len, bodies: bodies.cloned() }
            }
            Mode::Copy => Way::Copied { buffers: Block::new(domain, depth * RECEIVE_LEN)?, filled: None },
            Mode::Buffered => {
                // As many as can be on their way, and the one being filled.
                let count = depth.div_ceil(parts(size)) + 1;
                Way::Filled { buffers: Block::new(domain, count * (HEAD_LEN + size))?, count: count as u64, filled: None }
            }
        };
        let inject_up_to = inject_size.min(INJECT_UP_TO);
        Ok(Self { content, size, next: 0, limit, offset: 0, part_len: part_len(size), inject_up_to, way })
    }

    /// Messages sent, the one in the middle of which sending is included.
    pub fn sent(&self) -> u64 {
        self.next + u64::from(self.offset > 0)
    }

    /// Sends no message that has not begun.
    pub fn stop(&mut self) {
        let begun = match &self.way {
            Way::Copied { filled: Some((_, messages)), .. } => *messages,
            _ => u64::from(self.offset > 0),
        };
        self.limit = self.limit.min(self.next + begun);
    }

    /// Sends no more than so many messages.
    pub fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// Whether every message was sent.
    pub fn is_finished(&self) -> bool {
        self.next == self.limit
    }

    /// Sends while there is room.
    #[inline]
    pub fn pump(&mut self, endpoint: &Endpoint, sends: &mut Sends, receives: &mut Receives) -> Result<(), String> {
        while self.next < self.limit && sends.room() {
            let place = (sends.next() % sends.depth()) as usize;
            let sent = match self.way {
                Way::Gathered { .. } if self.offset == 0 && HEAD_LEN + self.size <= self.part_len => {
                    self.send_whole(endpoint, sends, receives, place)?
                }
                Way::Gathered { .. } => self.send_part(endpoint, sends, receives, place)?,
                Way::Copied { .. } => self.send_copied(endpoint, sends, receives, place)?,
                Way::Filled { .. } => self.send_filled(endpoint, sends, receives)?,
            };
            if !sent {
                break;
            }
        }
        Ok(())
    }

    fn head(&self, receives: &Receives) -> Head {
        Head { kind: Kind::Message, credits: receives.owed(), total: self.size as u32 }
    }

    /// One message with one send.
    #[allow(unsafe_code)]
    #[inline]
    fn send_whole(&mut self, endpoint: &Endpoint, sends: &mut Sends, receives: &mut Receives, place: usize) -> Result<bool, String> {
        let head = self.head(receives);
        let Way::Gathered { heads, slot_len, bodies } = &self.way else { unreachable!("the caller saw it") };
        let start = heads.at(place * slot_len);
        // SAFETY: the send that used this part of the block is over, and it lies within.
        let slot = unsafe { std::slice::from_raw_parts_mut(start, *slot_len) };
        let head_len = HEAD_LEN + self.content.head_len();
        slot[..HEAD_LEN].copy_from_slice(&head.encode());
        self.content.write_head(self.next, &mut slot[HEAD_LEN..head_len]);
        let pieces = self.content.pieces(self.next);
        let sent = if HEAD_LEN + self.size <= self.inject_up_to {
            let mut len = head_len;
            for piece in pieces {
                slot[len..len + piece.len()].copy_from_slice(piece);
                len += piece.len();
            }
            sends.inject(endpoint, &slot[..len])?
        } else {
            let mut vectors = [EMPTY; Self::MAX_PIECES];
            vectors[0] = iovec { iov_base: start.cast(), iov_len: head_len };
            for (vector, piece) in vectors[1..].iter_mut().zip(pieces) {
                *vector = iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() };
            }
            let count = 1 + pieces.len();
            let mut descs = [Desc::NONE; Self::MAX_PIECES];
            let descs = describe(&mut descs[..count], Some(heads), bodies.as_ref());
            // SAFETY: the head's place is used again after this send is over; the bodies are never freed. The
            // registrations go after the endpoint.
            unsafe { sends.post(endpoint, &vectors[..count], descs, false)? }
        };
        if sent {
            receives.grant(head.credits);
            self.next += 1;
        }
        Ok(sent)
    }

    /// The next part of a long message.
    #[allow(unsafe_code)]
    fn send_part(&mut self, endpoint: &Endpoint, sends: &mut Sends, receives: &mut Receives, place: usize) -> Result<bool, String> {
        let head = self.head(receives);
        let Way::Gathered { heads, slot_len, bodies } = &self.way else { unreachable!("the caller saw it") };
        let head_len = HEAD_LEN + self.content.head_len();
        let (mut vectors, mut count) = ([EMPTY; Self::MAX_PIECES], 0);
        let (mut skip, mut room) = (self.offset, self.part_len);
        let mut add = |start: *const u8, len: usize| {
            let cut = skip.min(len);
            skip -= cut;
            let take = room.min(len - cut);
            if take > 0 {
                vectors[count] = iovec { iov_base: start.wrapping_add(cut).cast_mut().cast(), iov_len: take };
                count += 1;
                room -= take;
            }
        };
        let start = heads.at(place * slot_len);
        if self.offset < head_len {
            // SAFETY: as in `send_whole`.
            let slot = unsafe { std::slice::from_raw_parts_mut(start, head_len) };
            slot[..HEAD_LEN].copy_from_slice(&head.encode());
            self.content.write_head(self.next, &mut slot[HEAD_LEN..]);
        }
        add(start, head_len);
        self.content.pieces(self.next).iter().for_each(|piece| add(piece.as_ptr(), piece.len()));
        let len = self.part_len - room;
        let mut descs = [Desc::NONE; Self::MAX_PIECES];
        let heads = (self.offset < head_len).then_some(heads);
        let descs = describe(&mut descs[..count], heads, bodies.as_ref());
        // SAFETY: as in `send_whole`.
        let sent = unsafe { sends.post(endpoint, &vectors[..count], descs, false)? };
        if sent {
            if self.offset == 0 {
                receives.grant(head.credits);
            }
            self.part_sent(len);
        }
        Ok(sent)
    }

    /// So much of a message was posted.
    fn part_sent(&mut self, len: usize) {
        self.offset += len;
        if self.offset == HEAD_LEN + self.size {
            self.offset = 0;
            self.next += 1;
        }
    }

    /// A message from a buffer, or its next part.
    #[allow(unsafe_code)]
    fn send_filled(&mut self, endpoint: &Endpoint, sends: &mut Sends, receives: &mut Receives) -> Result<bool, String> {
        let head = self.head(receives);
        let Way::Filled { buffers, count, filled } = &mut self.way else { unreachable!("the caller saw it") };
        let whole = HEAD_LEN + self.size;
        let start = buffers.at((self.next % *count) as usize * whole);
        if self.offset == 0 {
            // SAFETY: the buffer lies within the block. No send of it is on its way, since there is one more than can be.
            let buffer = unsafe { std::slice::from_raw_parts_mut(start, whole) };
            let (own, mut rest) = buffer.split_at_mut(HEAD_LEN + self.content.head_len());
            own[..HEAD_LEN].copy_from_slice(&head.encode());
            if *filled != Some(self.next) {
                self.content.write_head(self.next, &mut own[HEAD_LEN..]);
                for piece in self.content.pieces(self.next) {
                    let (this, more) = rest.split_at_mut(piece.len());
                    this.copy_from_slice(piece);
                    rest = more;
                }
                *filled = Some(self.next);
            }
        }
        let part = iovec { iov_base: start.wrapping_add(self.offset).cast(), iov_len: self.part_len.min(whole - self.offset) };
        // SAFETY: the buffer is written again when this send is over; the registration goes after the endpoint.
        let sent = unsafe { sends.post(endpoint, &[part], buffers.descs(), false)? };
        if sent {
            if self.offset == 0 {
                receives.grant(head.credits);
            }
            self.part_sent(part.iov_len);
        }
        Ok(sent)
    }

    /// A packet of copies: several messages, or a part of a long one.
    #[allow(unsafe_code)]
    fn send_copied(&mut self, endpoint: &Endpoint, sends: &mut Sends, receives: &mut Receives, place: usize) -> Result<bool, String> {
        let head = self.head(receives);
        let Way::Copied { buffers, filled } = &mut self.way else { unreachable!("the caller saw it") };
        let start = buffers.at(place * RECEIVE_LEN);
        // SAFETY: the send that used this buffer is over, and it lies within the block.
        let buffer = unsafe { std::slice::from_raw_parts_mut(start, RECEIVE_LEN) };
        let frame_len = LEN_LEN + self.size;
        let long = HEAD_LEN + frame_len > COPIED_LEN;
        let (len, messages) = match *filled {
            Some(filled) => filled,
            None if long => (copy_part(&self.content, self.next, self.offset, self.part_len, buffer), 0),
            None => {
                let count = ((COPIED_LEN - HEAD_LEN) / frame_len).min(usize::try_from(self.limit - self.next).unwrap_or(usize::MAX));
                let head_len = LEN_LEN + self.content.head_len();
                for (frame, sequence) in buffer[HEAD_LEN..HEAD_LEN + count * frame_len].chunks_exact_mut(frame_len).zip(self.next..) {
                    let (own, mut body) = frame.split_at_mut(head_len);
                    own[..LEN_LEN].copy_from_slice(&(self.size as u32).to_le_bytes());
                    self.content.write_head(sequence, &mut own[LEN_LEN..]);
                    for piece in self.content.pieces(sequence) {
                        let (this, rest) = body.split_at_mut(piece.len());
                        this.copy_from_slice(piece);
                        body = rest;
                    }
                }
                (HEAD_LEN + count * frame_len, count as u64)
            }
        };
        let first = !long || self.offset == 0;
        if first {
            let head = if long { head } else { Head { kind: Kind::Batch, total: messages as u32, ..head } };
            buffer[..HEAD_LEN].copy_from_slice(&head.encode());
        }
        // SAFETY: the buffer is used again after this send is over.
        let sent = unsafe { sends.post(endpoint, &[iovec { iov_base: start.cast(), iov_len: len }], buffers.descs(), false)? };
        *filled = if sent { None } else { Some((len, messages)) };
        if sent {
            if first {
                receives.grant(head.credits);
            }
            self.next += messages;
            if long {
                self.part_sent(len);
            }
        }
        Ok(sent)
    }
}

/// Short packets are injected up to this length, where the provider takes them.
const INJECT_UP_TO: usize = 256;

const EMPTY: iovec = iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

/// The registrations of a packet's pieces, of which the first one lies in `heads` if given; none if there are none.
fn describe<'a>(descs: &'a mut [Desc], heads: Option<&Block>, bodies: Option<&Arc<MemoryRegion>>) -> &'a [Desc] {
    let Some(bodies) = bodies else { return &[] };
    descs.fill(bodies.desc());
    if let Some(heads) = heads {
        descs[0] = heads.desc();
    }
    descs
}

/// Copies a part of a message's frame, without the packet's head; gives its length, with it.
fn copy_part(content: &Content, sequence: u64, offset: usize, part_len: usize, buffer: &mut [u8]) -> usize {
    let (mut skip, mut at) = (offset, 0);
    let mut own = vec![0; HEAD_LEN + content.head_len()];
    content.write_head(sequence, &mut own[HEAD_LEN..]);
    let mut add = |bytes: &[u8]| {
        let cut = skip.min(bytes.len());
        skip -= cut;
        let take = (part_len - at).min(bytes.len() - cut);
        buffer[at..at + take].copy_from_slice(&bytes[cut..cut + take]);
        at += take;
    };
    add(&own);
    content.pieces(sequence).iter().for_each(|piece| add(piece));
    at
}
