//! Sends measured messages over a bare socket in batches, in the two ways that are fastest.

use std::io::{self, IoSlice, Write};

use crate::pattern::{Content, TAG_LEN};
use crate::raw::frame::{HEAD_LEN, head};

/// Messages up to this many bytes are copied together, longer ones are gathered: what is faster. Measured over
/// the loopback interface: the two tie at 1 KiB, and gathering reaches 1.1 times the rate at 2 KiB, 1.25 at 4 KiB.
pub const COPY_UP_TO: usize = 1 << 10;

/// Gathered bytes that are prepared at once. They are in no buffer of ours, so that more of them cost nothing; few
/// batches mean few writes that are not full.
const GATHERED_LEN: usize = 4 << 20;
/// The kernel takes that many pieces in one call.
const MAX_PIECES: usize = 1_024;
/// The most copied bytes in one write: two of the stretches in which the kernel hands a stream to the network, which are a
/// little longer over the loopback interface. In writes that are a little longer each byte takes up to twice as long.
const WRITE_LEN: usize = 2 * 62_636;
/// The most gathered bytes in one write.
const GATHERED_WRITE_LEN: usize = 8 * WRITE_LEN;
/// Gathered messages that are prepared at once, so that their heads stay in the cache.
const MAX_GATHERED: usize = 4_096;

/// The messages of one connection, on their way out.
pub struct Outbox {
    content: Content,
    frame_head: [u8; HEAD_LEN],
    /// Bytes of each frame: frame head and message.
    frame_len: usize,
    /// The sequence number of the next message to be batched.
    next: u64,
    /// Of the first that is not to be sent.
    limit: u64,
    batch: Batch,
    /// Bytes of the batch that the socket has taken.
    written: usize,
}

enum Batch {
    /// Whole frames, one after the other.
    Copied { bytes: Box<[u8]>, len: usize },
    /// The frames' heads; the pieces lie elsewhere. Of messages from `first` on.
    Gathered { heads: Vec<u8>, first: u64, count: usize, capacity: usize },
}

/// What a write achieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// The batch is gone.
    All,
    /// The socket takes no more now.
    Blocked,
}

impl Outbox {
    /// All messages up to a number of them, copied or gathered.
    pub fn new(content: Content, limit: u64, gather: bool) -> Self {
        let head_len = HEAD_LEN + content.head_len();
        let frame_len = head_len + content.pieces(0).iter().map(|piece| piece.len()).sum::<usize>();
        let batch = if gather {
            let capacity = GATHERED_LEN.div_ceil(frame_len).min(MAX_GATHERED);
            Batch::Gathered { heads: vec![0; capacity * head_len], first: 0, count: 0, capacity }
        } else {
            Batch::Copied { bytes: vec![0; WRITE_LEN.max(frame_len)].into(), len: 0 }
        };
        Self { frame_head: head(frame_len - HEAD_LEN), content, frame_len, next: 0, limit, batch, written: 0 }
    }

    /// Messages batched so far.
    pub fn sent(&self) -> u64 {
        self.next
    }

    /// Sends nothing beyond what is batched.
    pub fn stop(&mut self) {
        self.limit = self.next;
    }

    /// Whether every message was batched.
    pub fn is_finished(&self) -> bool {
        self.next == self.limit
    }

    /// Batches messages: copied ones as many as go into one write, gathered ones for many.
    pub fn fill(&mut self) {
        let Self { content, frame_head, frame_len, next, limit, batch, written } = self;
        let head_len = HEAD_LEN + content.head_len();
        *written = 0;
        match batch {
            Batch::Copied { bytes, len } => {
                let count = (bytes.len() / *frame_len).min(usize::try_from(*limit - *next).unwrap_or(usize::MAX));
                *len = count * *frame_len;
                if content.is_tag_and_piece() {
                    for (frame, sequence) in bytes[..*len].chunks_exact_mut(*frame_len).zip(*next..) {
                        let (head, body) = frame.split_at_mut(HEAD_LEN + TAG_LEN);
                        head[..HEAD_LEN].copy_from_slice(frame_head);
                        head[HEAD_LEN..].copy_from_slice(&content.tag(sequence));
                        copy(body, content.piece(sequence));
                    }
                    *next += count as u64;
                    return;
                }
                for frame in bytes[..*len].chunks_exact_mut(*frame_len) {
                    let (head, mut body) = frame.split_at_mut(head_len);
                    write_head(content, frame_head, *next, head);
                    for piece in content.pieces(*next) {
                        let (this, rest) = body.split_at_mut(piece.len());
                        this.copy_from_slice(piece);
                        body = rest;
                    }
                    *next += 1;
                }
            }
            Batch::Gathered { heads, first, count, capacity } => {
                *first = *next;
                *count = (*capacity).min(usize::try_from(*limit - *next).unwrap_or(usize::MAX));
                for head in heads[..*count * head_len].chunks_exact_mut(head_len) {
                    write_head(content, frame_head, *next, head);
                    *next += 1;
                }
            }
        }
    }

    /// Writes the batch, or as much of it as the socket takes.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn write(&mut self, socket: &mut impl Write) -> io::Result<Written> {
        let Self { content, frame_len, batch, written, .. } = self;
        match batch {
            Batch::Copied { bytes, len } => drive(written, *len, |from| {
                let to = (*len).min(from + WRITE_LEN);
                socket.write(&bytes[from..to])
            }),
            Batch::Gathered { heads, first, count, .. } => drive(written, *count * *frame_len, |from| {
                let head_len = HEAD_LEN + content.head_len();
                let (mut skip, mut room) = (from % *frame_len, GATHERED_WRITE_LEN);
                let mut pieces = Vec::with_capacity(((room / *frame_len + 2) * (1 + content.pieces(0).len())).min(2 * MAX_PIECES));
                for (head, sequence) in heads.chunks_exact(head_len).zip(*first..).take(*count).skip(from / *frame_len) {
                    if room == 0 || pieces.len() >= MAX_PIECES {
                        break;
                    }
                    for piece in std::iter::once(head).chain(content.pieces(sequence).iter().map(|piece| &**piece)) {
                        let rest = &piece[skip.min(piece.len())..];
                        skip -= piece.len() - rest.len();
                        pieces.push(IoSlice::new(&rest[..rest.len().min(room)]));
                        room -= rest.len().min(room);
                    }
                }
                socket.write_vectored(&pieces[..pieces.len().min(MAX_PIECES)])
            }),
        }
    }
}

fn write_head(content: &Content, frame_head: &[u8; HEAD_LEN], sequence: u64, head: &mut [u8]) {
    let (frame, own) = head.split_at_mut(HEAD_LEN);
    frame.copy_from_slice(frame_head);
    content.write_head(sequence, own);
}

/// Copies, without a call what is short.
#[inline(always)]
fn copy(to: &mut [u8], from: &[u8]) {
    match (from.first_chunk::<32>(), from.last_chunk::<32>()) {
        // They overlap.
        (Some(first), Some(last)) if from.len() <= 64 => {
            to[..32].copy_from_slice(first);
            to[from.len() - 32..].copy_from_slice(last);
        }
        _ => to.copy_from_slice(from),
    }
}

/// Writes from where the last write ended until `end`, or until that would block.
fn drive(written: &mut usize, end: usize, mut write: impl FnMut(usize) -> io::Result<usize>) -> io::Result<Written> {
    while *written < end {
        match write(*written) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => *written += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Written::Blocked),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Written::All)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::StreamCheck;
    use crate::pattern::Layout;
    use crate::raw::frame::Inbox;

    /// Takes a few bytes at a time, and none every other time.
    struct Reluctant {
        taken: Vec<u8>,
        at_once: usize,
        turn: bool,
    }

    impl Write for Reluctant {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.turn = !self.turn;
            if self.turn {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let n = bytes.len().min(self.at_once);
            self.taken.extend_from_slice(&bytes[..n]);
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn batches_survive_partial_writes() {
        let others = [(5, None, 1), (64, Some(20), 3), (70_000, None, 2), (1_000, Some(0), 9)];
        // A tag and a piece: without a call if the piece has 32 to 64 bytes.
        let plain = [0, 8, 9, 39, 40, 50, 71, 72, 73, 1_000].map(|size| (size, None, 1));
        for (size, header, pieces) in plain.into_iter().chain(others) {
            for gather in [false, true] {
                let content = Content::new(&Layout { size, header, pieces });
                let mut outbox = Outbox::new(content, 1_500.min(20_000_000 / (size as u64 + 1)), gather);
                let mut socket = Reluctant { taken: Vec::new(), at_once: 4_097, turn: false };
                while !outbox.is_finished() {
                    outbox.fill();
                    while outbox.write(&mut socket).unwrap() == Written::Blocked {}
                }
                let mut check = StreamCheck::new(size, 0, true);
                let (mut inbox, mut taken) = (Inbox::new(), &socket.taken[..]);
                while inbox.read(&mut taken).unwrap() > 0 {
                    while let Some(message) = inbox.next().unwrap() {
                        assert_eq!(message.len(), size);
                        check.observe(message);
                    }
                }
                let tally = check.tally(Some(outbox.sent()));
                assert!(tally.is_clean() && tally.messages == outbox.sent(), "{size}: {tally:?}");
            }
        }
    }
}
