//! The messages of one connection, on their way out.

use std::io::IoSlice;
use std::sync::Arc;

use arrayvec::ArrayVec;
use netio3::bytes::{Bytes, BytesMut};
use netio3::{
    BufferError, Buffers, ConnectionParameters, CopiedMessage, Endpoint, NetioStatus, NetworkBackend, NetworkBuffer, SendError, Unsent,
};

use crate::args::{MOST_IN_BATCH, Mode};
use crate::library::STALL_DEADLINE;
use crate::pattern::{Content, Layout, TAG_LEN};
use crate::plan::Plan;

/// What the connections of a process have in common.
#[derive(Clone)]
pub struct Messages {
    layout: Layout,
    mode: Mode,
    /// How many are handed over in one call.
    batch: usize,
    /// Bytes that go as header.
    header_len: usize,
    /// They are their tag, which goes as header, and one piece.
    is_plain: bool,
    content: Content,
    /// The pieces of all messages, as shared memory.
    shared: Arc<[Bytes]>,
    /// Bytes that may wait for the kernel on each connection.
    queue_bytes: usize,
}

impl Messages {
    /// Messages of a plan, sent with this family of calls.
    pub fn new(plan: &Plan, mode: Mode) -> Self {
        let content = Content::new(&plan.layout);
        let shared = content.shared_pieces().into();
        let gathers = mode == Mode::ZeroCopy && plan.layout.size > ConnectionParameters::DEFAULT_COPY_BELOW;
        let most = if gathers { GATHERED_BYTES } else { QUEUE_BYTES };
        let queue_bytes = (ALL_QUEUES_BYTES / plan.busy().max(1) as usize).clamp(QUEUE_BYTES / 16, most);
        let header_len = plan.layout.header_len();
        let is_plain = header_len == TAG_LEN && content.is_tag_and_piece();
        Self { layout: plan.layout, mode, batch: plan.batch, header_len, is_plain, content, shared, queue_bytes }
    }

    /// The same for a thread of each connection, which fill their queues one after the other before any is written.
    pub fn of_threads(plan: &Plan, mode: Mode) -> Self {
        let messages = Self::new(plan, mode);
        let most = THREADS_BYTES / plan.busy().max(1) as usize;
        Self { queue_bytes: messages.queue_bytes.min(most.max(QUEUE_BYTES / 16)), ..messages }
    }

    /// The parameters of a connection for them.
    pub fn parameters(&self) -> ConnectionParameters {
        let size = self.layout.size.max(1);
        let defaults = ConnectionParameters::default();
        let buffers = Buffers { size, count: (self.queue_bytes / size).clamp(4, 4_096) };
        ConnectionParameters {
            queue_bytes: self.queue_bytes.max(4 * size),
            max_header_len: self.layout.header_len().max(defaults.max_header_len),
            buffers: (self.mode == Mode::Buffered).then_some(buffers),
            stall_timeout: Some(STALL_DEADLINE),
            ..defaults
        }
    }
}

/// Bytes that may wait for the kernel: a few writes' worth, so that they stay in the processor's cache.
const QUEUE_BYTES: usize = 1 << 20;
/// The same of bytes that lie in the user's memory anyway: the last write of a turn is seldom full.
const GATHERED_BYTES: usize = 4 << 20;
/// The same of all threads together.
const THREADS_BYTES: usize = 2 << 20;
/// The same of all connections together, so that the first ones do not take all the room there is.
const ALL_QUEUES_BYTES: usize = 512 << 20;

/// The messages of one connection.
pub struct Outgoing {
    messages: Messages,
    /// The sequence number of the next message.
    next: u64,
    /// Of the first that is not to be sent.
    limit: u64,
    /// A refusal was not followed by *writable* yet.
    blocked: bool,
    /// How often a send was refused.
    refused: u64,
    /// Scratch space for tag and header.
    head: Vec<u8>,
    /// Memory for tags that do not travel in the header.
    tags: BytesMut,
    /// Scratch space for the pieces of a message whose tag is one of them.
    pieces: Vec<Bytes>,
    /// A filled buffer that was refused.
    buffer: Option<NetworkBuffer>,
}

/// Why filling ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// Every message is accepted.
    Finished,
    /// *Writable* will follow, or completions.
    NotYet,
}

/// Messages and bytes given to a connection before others have their turn.
const TURN_MESSAGES: u64 = 8_192;

impl Outgoing {
    /// The first `limit` messages on a certain connection.
    pub fn new(messages: &Messages, stream: u16, limit: u64) -> Self {
        let messages = Messages { content: messages.content.of_stream(stream), ..messages.clone() };
        let head = vec![0; messages.batch * messages.content.head_len()];
        Self { messages, next: 0, limit, blocked: false, refused: 0, head, tags: BytesMut::new(), pieces: Vec::new(), buffer: None }
    }

    /// Messages accepted.
    pub fn sent(&self) -> u64 {
        self.next
    }

    /// Sends refused.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Sends nothing beyond what is accepted.
    pub fn stop(&mut self) {
        self.limit = self.next;
    }

    /// Whether a refusal was not followed by *writable* yet.
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// There is room again.
    pub fn unblock(&mut self) {
        self.blocked = false;
    }

    /// Sends until everything is accepted, there is no room, or others should have their turn.
    ///
    /// # Errors
    /// The connection takes no such messages, or is gone.
    pub fn fill(&mut self, backend: &dyn NetworkBackend, to: Endpoint) -> Result<Filled, String> {
        let turn = TURN_MESSAGES.min(self.messages.queue_bytes as u64 / self.messages.layout.size.max(1) as u64).max(1);
        let end = self.limit.min(self.next + turn);
        self.send_until(end, backend, to)?;
        Ok(if self.next == self.limit { Filled::Finished } else { Filled::NotYet })
    }

    /// Offers the next message, unless there is no room.
    ///
    /// # Errors
    /// As [`fill`](Self::fill).
    pub fn send_next(&mut self, backend: &dyn NetworkBackend, to: Endpoint) -> Result<(), String> {
        self.send_until(self.next + 1, backend, to)
    }

    /// A loop for each way, so that none of them looks again for what does not change.
    #[inline]
    fn send_until(&mut self, end: u64, backend: &dyn NetworkBackend, to: Endpoint) -> Result<(), String> {
        match self.messages.mode {
            Mode::Buffered => self.offer_until(end, |it, key| it.offer_buffer(key, backend, to)),
            Mode::Copy if self.messages.batch > 1 && self.messages.layout.size > 0 => self.offer_batches_until(end, backend, to),
            Mode::ZeroCopy if self.messages.is_plain => self.offer_until(end, |it, key| it.offer_plain_shared(key, backend, to)),
            Mode::Copy if self.messages.is_plain => self.offer_until(end, |it, key| it.offer_plain_copy(key, backend, to)),
            Mode::ZeroCopy => self.offer_until(end, |it, key| it.offer_shared(key, backend, to)),
            Mode::Copy => self.offer_until(end, |it, key| it.offer_copy(key, backend, to)),
        }
    }

    #[inline(always)]
    fn offer_until(&mut self, end: u64, mut offer: impl FnMut(&mut Self, u64) -> Result<NetioStatus, SendError>) -> Result<(), String> {
        if self.blocked {
            return Ok(());
        }
        // Noted at the end only: calls that might panic have everything written to memory before.
        let mut key = self.next;
        let outcome = loop {
            if key >= end {
                break Ok(());
            }
            match offer(self, key) {
                Ok(NetioStatus::Ok) => key += 1,
                other => break self.not_accepted(other),
            }
        };
        self.next = key;
        outcome
    }

    #[inline(always)]
    fn offer_batches_until(&mut self, end: u64, backend: &dyn NetworkBackend, to: Endpoint) -> Result<(), String> {
        while self.next < end && !self.blocked {
            let Self { messages: Messages { batch, is_plain, content, .. }, next, head, .. } = self;
            let keys = *next..end.min(*next + *batch as u64);
            let mut messages = ArrayVec::<_, MOST_IN_BATCH>::new();
            if *is_plain {
                let (heads, _) = head.as_chunks_mut::<TAG_LEN>();
                heads.iter_mut().zip(keys.clone()).for_each(|(head, key)| *head = content.tag(key));
                messages.extend(heads.iter().zip(keys).map(|(header, key)| CopiedMessage { data: content.piece(key), header, key }));
            } else {
                for (key, header) in keys.zip(head.chunks_exact_mut(content.head_len())) {
                    content.write_head(key, header);
                    messages.push(CopiedMessage { data: content.pieces(key).first().map_or(&[], |piece| piece), header, key });
                }
            }
            let outcome = backend.send_copy_batch(to, &messages);
            drop(messages);
            self.next += outcome.map_or(0, |(accepted, _)| accepted as u64);
            match outcome {
                Ok((_, NetioStatus::Ok)) => {}
                other => self.not_accepted(other.map(|(_, status)| status))?,
            }
        }
        Ok(())
    }

    /// The same as `offer_copy` for messages of a tag and one piece.
    #[inline(always)]
    fn offer_plain_copy(&mut self, key: u64, backend: &dyn NetworkBackend, to: Endpoint) -> Result<NetioStatus, SendError> {
        let content = &self.messages.content;
        backend.send_copy(to, content.piece(key), &content.tag(key), key)
    }

    #[inline(always)]
    fn offer_plain_shared(&mut self, key: u64, backend: &dyn NetworkBackend, to: Endpoint) -> Result<NetioStatus, SendError> {
        let Messages { content, shared, .. } = &self.messages;
        backend.send(to, &shared[content.variant(key)], &content.tag(key), key)
    }

    #[inline(always)]
    fn offer_copy(&mut self, key: u64, backend: &dyn NetworkBackend, to: Endpoint) -> Result<NetioStatus, SendError> {
        let Self { messages: Messages { header_len, content, .. }, head, .. } = self;
        content.write_head(key, head);
        if head.len() == *header_len {
            return backend.send_copy_iov(to, content.pieces(key), head, key);
        }
        let (header, tag) = head.split_at(*header_len);
        match content.pieces(key) {
            [piece] => backend.send_copy_iov(to, &[IoSlice::new(tag), *piece], header, key),
            pieces => backend.send_copy_iov(to, &[&[IoSlice::new(tag)], pieces].concat(), header, key),
        }
    }

    #[inline(always)]
    fn offer_shared(&mut self, key: u64, backend: &dyn NetworkBackend, to: Endpoint) -> Result<NetioStatus, SendError> {
        let Self { messages: Messages { header_len, content, shared, .. }, head, .. } = self;
        content.write_head(key, head);
        let pieces = &shared[content.variant_range(key)];
        if head.len() == *header_len {
            return backend.send_iov(to, pieces, head, key);
        }
        let (header, tag) = head.split_at(*header_len);
        // The tag needs memory of its own until the message has left.
        if self.tags.capacity() < tag.len() {
            self.tags.reserve(64 << 10);
        }
        self.tags.extend_from_slice(tag);
        self.pieces.clear();
        self.pieces.push(self.tags.split().freeze());
        self.pieces.extend_from_slice(pieces);
        backend.send_iov(to, &self.pieces, header, key)
    }

    #[cold]
    fn not_accepted(&mut self, status: Result<NetioStatus, SendError>) -> Result<(), String> {
        match status {
            Ok(NetioStatus::NoResources) => {
                self.refused += 1;
                self.blocked = true;
                Ok(())
            }
            Ok(NetioStatus::TooBig) => Err("messages or headers of this size are too big for this connection".into()),
            Ok(other) => Err(other.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn offer_buffer(&mut self, key: u64, backend: &dyn NetworkBackend, to: Endpoint) -> Result<NetioStatus, SendError> {
        let buffer = match self.buffer.take() {
            Some(buffer) => buffer,
            None => match backend.take_buffer(to) {
                Ok(Some(buffer)) => self.filled(key, buffer),
                Ok(None) => return Ok(NetioStatus::NoResources),
                Err(BufferError::UnknownSendEndpoint(known)) => return Err(SendError::UnknownSendEndpoint(known)),
                Err(error) => unreachable!("the connection has buffers: {error}"),
            },
        };
        match backend.send_taken(to, buffer) {
            Ok(()) => Ok(NetioStatus::Ok),
            Err(Unsent { buffer, outcome }) => {
                self.buffer = Some(buffer);
                outcome
            }
        }
    }

    fn filled(&self, key: u64, mut buffer: NetworkBuffer) -> NetworkBuffer {
        let content = &self.messages.content;
        let head_len = content.head_len();
        content.write_head(key, &mut buffer.spare_mut()[..head_len]);
        buffer.advance(head_len);
        for piece in content.pieces(key) {
            buffer.extend_from_slice(piece).expect("the buffers have the size of a message");
        }
        buffer
    }
}
