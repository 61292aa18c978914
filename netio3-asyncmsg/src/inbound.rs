//! What arrives from a socket, cut into hello and frames.

use netio3_core::engine::{Frames, Taken};

use crate::frame::{BadHead, Frame, HEAD_LEN};
use crate::hello::{Hello, NotAHello};

/// Cuts a byte stream into a hello and frames.
///
/// It does no I/O. Bytes are fed as one slice at a time; a message that lies in the slice whole is handed
/// out in place. One that does not stays there until the rest of it has been read behind it, or is
/// [kept](Self::keep): assembled in memory of its own, into which the caller reads the rest directly:
/// [`assembly_room`](Self::assembly_room), then [`assembled`](Self::assembled).
#[derive(Debug)]
pub(crate) struct Inbound {
    max_len: usize,
    hello_done: bool,
    /// A beginning of a head or of the hello, to which further bytes are needed.
    partial: Vec<u8>,
    /// The message being assembled: its length, and how much of it is here.
    assembling: Option<(usize, usize)>,
    /// Initialized memory for assembling; kept for the next message.
    memory: Vec<u8>,
    /// The length of the last message that was whole, or whose beginning stays where it lies.
    last_len: usize,
}

/// What came next in the stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Incoming<'a> {
    Hello(Hello),
    Message(&'a [u8]),
    Heartbeat,
    Goodbye,
}

/// The stream is not one of this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    Hello,
    Head(BadHead),
}

/// Assembly memory begins with this much and doubles as bytes arrive, so that nothing is allocated on a
/// length's word.
const FIRST_STEP: usize = 64 << 10;
/// Frames up to so many bytes are read where others are, longer ones into memory of their own.
const LONGEST_IN_PLACE: usize = 128 << 10;
/// Beginnings of fewer bytes do not stay: moving them costs little, and the rest is read into memory of the message's own.
const LEAST_IN_PLACE: usize = 4 << 10;

impl Inbound {
    pub(crate) fn new(max_len: usize) -> Self {
        Self { max_len, hello_done: false, partial: Vec::new(), assembling: None, memory: Vec::new(), last_len: 0 }
    }

    /// Whether the stream is inside a frame of which nothing stays elsewhere, so that its end now would cut a message off.
    pub(crate) fn is_inside_frame(&self) -> bool {
        self.assembling.is_some() || !self.partial.is_empty()
    }

    /// Bytes kept from earlier slices that the next slice must begin with; they are taken out.
    pub(crate) fn take_partial(&mut self, into: &mut [u8]) -> usize {
        let n = self.partial.len();
        into[..n].copy_from_slice(&self.partial);
        self.partial.clear();
        n
    }

    /// How many bytes [`take_partial`](Self::take_partial) gives.
    pub(crate) fn partial_len(&self) -> usize {
        self.partial.len()
    }

    /// How the messages lie that come next; not before the hello.
    #[inline]
    pub(crate) fn frames(&self) -> Option<Frames> {
        let head = u64::from_le_bytes(Frame::Data(0).head());
        self.hello_done.then_some(Frames { head, max_len: self.max_len as u32 })
    }

    /// These were taken from the front of what was fed.
    pub(crate) fn took(&mut self, taken: Taken) {
        debug_assert!(taken.messages > 0);
        self.last_len = taken.last_len;
    }

    /// Takes the next thing from the front of `bytes`, which shrinks accordingly. `None`: more is needed than is left.
    #[inline]
    pub(crate) fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Incoming<'a>>, Broken> {
        debug_assert!(self.assembling.is_none() && self.partial.is_empty());
        if !self.hello_done {
            return self.next_hello(bytes);
        }
        let Some((head, rest)) = bytes.split_first_chunk::<HEAD_LEN>() else { return Ok(None) };
        match Frame::parse(*head, self.max_len).map_err(Broken::Head)? {
            Frame::Data(len) => {
                let Some((message, rest)) = rest.split_at_checked(len) else { return Ok(None) };
                self.last_len = len;
                *bytes = rest;
                Ok(Some(Incoming::Message(message)))
            }
            Frame::Heartbeat => {
                // Whatever comes after a pause, or a flood of these, is not read a head at a time.
                self.last_len = 0;
                *bytes = rest;
                Ok(Some(Incoming::Heartbeat))
            }
            Frame::Goodbye => {
                *bytes = rest;
                Ok(Some(Incoming::Goodbye))
            }
        }
    }

    fn next_hello<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Incoming<'a>>, Broken> {
        match Hello::decode(bytes).map_err(|NotAHello| Broken::Hello)? {
            Some((hello, len)) => {
                self.hello_done = true;
                *bytes = &bytes[len..];
                Ok(Some(Incoming::Hello(hello)))
            }
            None => Ok(None),
        }
    }

    /// The length of the frame that begins with what is left, if that stays where it lies: then the rest is to be read
    /// behind it.
    pub(crate) fn stays(&mut self, bytes: &[u8]) -> Option<usize> {
        let len = self.message_len(bytes).filter(|_| self.hello_done && bytes.len() >= LEAST_IN_PLACE)?;
        let frame = HEAD_LEN + len;
        if frame > LONGEST_IN_PLACE {
            return None;
        }
        self.last_len = len;
        Some(frame)
    }

    /// Keeps what is left, of which more is needed, and which does not stay; `false` when the system has no memory for it.
    pub(crate) fn keep(&mut self, bytes: &[u8]) -> bool {
        match self.message_len(bytes).filter(|_| self.hello_done) {
            Some(len) => self.start_assembly(len, &bytes[HEAD_LEN..]),
            None => {
                self.partial.extend_from_slice(bytes);
                true
            }
        }
    }

    /// The length of the message that begins here, if its head is whole.
    fn message_len(&self, bytes: &[u8]) -> Option<usize> {
        match Frame::parse(*bytes.first_chunk::<HEAD_LEN>()?, self.max_len) {
            Ok(Frame::Data(len)) => Some(len),
            _ => None,
        }
    }

    fn start_assembly(&mut self, len: usize, first: &[u8]) -> bool {
        if self.memory.len() < first.len() && !self.grow_to(len.min(first.len().max(FIRST_STEP))) {
            return false;
        }
        self.memory[..first.len()].copy_from_slice(first);
        self.assembling = Some((len, first.len()));
        true
    }

    /// To which length the memory must grow before more of the message can be read.
    fn grown_len(&self) -> Option<usize> {
        let (len, have) = self.assembling?;
        (have == self.memory.len()).then(|| len.min((2 * have).max(FIRST_STEP)))
    }

    /// Makes room for more of the message being assembled; `false` when the system has no memory for it.
    pub(crate) fn make_room(&mut self) -> bool {
        self.grown_len().is_none_or(|len| self.grow_to(len))
    }

    fn grow_to(&mut self, len: usize) -> bool {
        let grows = self.memory.try_reserve_exact(len - self.memory.len()).is_ok();
        if grows {
            self.memory.resize(len, 0);
        }
        grows
    }

    /// The memory into which the rest of the message being assembled is to be read, for which [room](Self::make_room) was
    /// made; and whether it is all that the message needs. `None` when no message is being assembled.
    pub(crate) fn assembly_room(&mut self) -> Option<(&mut [u8], bool)> {
        let (len, have) = self.assembling?;
        debug_assert!(have < self.memory.len());
        let end = len.min(self.memory.len());
        Some((&mut self.memory[have..end], end == len))
    }

    /// How many bytes should be read behind the `have` that are here already, with so much room for both: as many as frames
    /// like the last one take that are whole, since one that is cut off may have to be copied, and of a longer one only its
    /// head.
    pub(crate) fn read_len(&self, room: usize, have: usize) -> usize {
        let frame = HEAD_LEN + self.last_len;
        let whole = match frame {
            _ if !self.hello_done => room,
            0..=LONGEST_IN_PLACE => room - room % frame,
            _ => HEAD_LEN,
        };
        whole.saturating_sub(have).max(1)
    }

    /// How many bytes the frame needs that has begun with what was kept, or `in_place` with what stays there; nothing when
    /// none has.
    pub(crate) fn missing(&self, in_place: &[u8]) -> usize {
        match (self.assembling, self.message_len(in_place)) {
            (Some((len, have)), _) => len - have,
            (None, Some(len)) => HEAD_LEN + len - in_place.len(),
            (None, None) => 0,
        }
    }

    /// `n` bytes were read into the room; gives the length of the message when that completes it.
    pub(crate) fn assembled(&mut self, n: usize) -> Option<usize> {
        let (len, have) = self.assembling.as_mut()?;
        *have += n;
        let done = (have == len).then_some(*len);
        if let Some(len) = done {
            self.assembling = None;
            self.last_len = len;
        }
        done
    }

    /// The memory that the assembled message lies at the beginning of. What the user leaves of it is used
    /// for the next one.
    pub(crate) fn memory(&mut self) -> &mut Vec<u8> {
        &mut self.memory
    }

    /// Memory held, in bytes.
    pub(crate) fn held(&self) -> usize {
        self.memory.capacity()
    }

    /// Memory that will be held once there is [room](Self::assembly_room) for the next bytes.
    pub(crate) fn held_with_room(&self) -> usize {
        self.grown_len().map_or(self.held(), |len| len.max(self.held()))
    }

    /// How many messages begin in a piece of the stream that was not fed, a cut-off one included.
    pub(crate) fn count_messages(&self, mut bytes: &[u8]) -> u64 {
        let mut messages = 0;
        while let Some((head, rest)) = bytes.split_first_chunk::<HEAD_LEN>() {
            let len = match Frame::parse(*head, self.max_len) {
                Ok(Frame::Data(len)) => len,
                Ok(Frame::Heartbeat) => {
                    bytes = rest;
                    continue;
                }
                // Nothing counts after these.
                Ok(Frame::Goodbye) | Err(_) => return messages,
            };
            messages += 1;
            bytes = rest.get(len..).unwrap_or_default();
        }
        messages + u64::from(!bytes.is_empty())
    }

    /// Gives memory back that is not in use.
    pub(crate) fn trim(&mut self) {
        if self.assembling.is_none() {
            self.memory = Vec::new();
        }
        if self.partial.is_empty() {
            self.partial = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests;
