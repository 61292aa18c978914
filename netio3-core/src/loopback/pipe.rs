//! One direction of a connection.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::Mutex;

use crate::loopback::spares::{SMALL, Spares};
use crate::status::RefusedReason;

/// What goes through a pipe.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// The first thing from who connects.
    Hello(Hello),
    /// The listening side's answer: accepted.
    Welcome(Hello),
    /// The listening side's answer: not accepted.
    Refusal(RefusedReason),
    /// Something was to be heard.
    Heartbeat,
    /// Nothing more will come.
    Goodbye,
    /// A message.
    Message(Vec<u8>),
}

/// What each side tells the other at the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    /// The largest message it takes, in bytes.
    pub(super) max_message_len: usize,
    /// Its silence after which it sends a heartbeat; zero for never.
    pub(super) heartbeat_interval: Duration,
}

/// A bounded queue of frames with one writer and one reader, on whatever threads.
///
/// Methods that change what the other side waits for tell whether it has to be woken; no lock is held then.
#[derive(Default)]
pub(super) struct Pipe(Mutex<Inside>);

#[derive(Default)]
struct Inside {
    frames: VecDeque<Frame>,
    /// What the reader has not consumed, be it still among the frames or not.
    load: Load,
    /// Memory of consumed messages, for the writer to use again.
    returned: Vec<Vec<u8>>,
    /// The writer found the pipe full.
    writer_waits: bool,
    writer_gone: bool,
    reader_gone: bool,
}

/// How much lies in a pipe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) messages: usize,
    pub(super) bytes: usize,
}

/// What a reader found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Frames.
    Frames,
    /// Nothing yet; it will be woken.
    Nothing,
    /// Nothing, and the writer is gone.
    End,
}

// For the writer.
impl Pipe {
    /// How full the pipe is at most, `None` when the reader is gone. Memory that came back goes to `spares`.
    pub(super) fn load(&self, spares: &mut Spares) -> Option<Load> {
        let mut inside = self.0.lock();
        if inside.reader_gone {
            return None;
        }
        inside.returned.drain(..).for_each(|memory| spares.put(memory));
        Some(inside.load)
    }

    /// Puts frames in, which make up `load`; `next` is the length of the message that the writer would put
    /// next. Tells whether to wake the reader, and whether the next message fits by now; if not, the
    /// writer will be woken.
    pub(super) fn put(&self, frames: &mut Vec<Frame>, load: Load, next: Option<usize>) -> (bool, bool) {
        let mut inside = self.0.lock();
        if inside.reader_gone {
            drop(inside);
            frames.clear();
            return (false, false);
        }
        let wake = inside.frames.is_empty() && !frames.is_empty();
        inside.frames.extend(frames.drain(..));
        inside.load.messages += load.messages;
        inside.load.bytes += load.bytes;
        let fits = next.is_some_and(|len| inside.load.has_room(len));
        inside.writer_waits = next.is_some() && !fits;
        (wake, fits)
    }

    /// Puts a frame in if nothing waits for the reader anyway; tells whether, and then to wake the reader.
    pub(super) fn put_if_empty(&self, frame: Frame) -> bool {
        let mut inside = self.0.lock();
        let put = inside.frames.is_empty() && !inside.reader_gone;
        if put {
            inside.frames.push_back(frame);
        }
        put
    }

    /// The writer leaves; what it put in stays.
    pub(super) fn leave_writing(&self) {
        let returned = {
            let mut inside = self.0.lock();
            inside.writer_gone = true;
            inside.writer_waits = false;
            std::mem::take(&mut inside.returned)
        };
        drop(returned);
    }

    /// Whether the reader has left.
    pub(super) fn is_reader_gone(&self) -> bool {
        self.0.lock().reader_gone
    }

    /// Gives memory back that an idle pipe does not need.
    pub(super) fn trim(&self) {
        let mut inside = self.0.lock();
        inside.returned = Vec::new();
        if inside.frames.is_empty() {
            inside.frames = VecDeque::new();
        }
    }
}

// For the reader.
impl Pipe {
    /// Takes all frames into `arrived`, which is empty. They count as being in the pipe until consumed.
    pub(super) fn take(&self, arrived: &mut VecDeque<Frame>) -> Taken {
        let mut inside = self.0.lock();
        if !inside.frames.is_empty() {
            std::mem::swap(&mut inside.frames, arrived);
            Taken::Frames
        } else if inside.writer_gone {
            Taken::End
        } else {
            Taken::Nothing
        }
    }

    /// Messages were consumed; their memory comes back, as far as it still is there. Tells whether to wake
    /// the writer, which happens when half of the pipe is free.
    pub(super) fn consumed(&self, spent: &mut Spent) -> bool {
        let mut inside = self.0.lock();
        inside.load.messages -= spent.load.messages;
        inside.load.bytes -= spent.load.bytes;
        spent.load = Load::default();
        if !inside.writer_gone {
            inside.returned.append(&mut spent.memory);
        }
        let wake = inside.writer_waits && inside.load.messages <= MAX_MESSAGES / 2 && inside.load.bytes <= MAX_BYTES / 2;
        inside.writer_waits &= !wake;
        wake
    }

    /// The reader leaves; returns what it did not take.
    pub(super) fn leave_reading(&self) -> VecDeque<Frame> {
        let mut inside = self.0.lock();
        inside.reader_gone = true;
        inside.writer_waits = false;
        std::mem::take(&mut inside.frames)
    }
}

impl Load {
    /// Whether a message of this length fits in addition; an empty pipe takes any one.
    pub(super) fn has_room(&self, len: usize) -> bool {
        self.messages == 0 || (self.messages < MAX_MESSAGES && self.bytes.saturating_add(len) <= MAX_BYTES)
    }

    pub(super) fn add(&mut self, len: usize) {
        self.messages += 1;
        self.bytes += len;
    }
}

/// Messages that the reader has consumed and not reported yet.
#[derive(Default)]
pub(super) struct Spent {
    memory: Vec<Vec<u8>>,
    load: Load,
}

impl Spent {
    /// Adds a message of `len` bytes; tells whether it is time to report.
    pub(super) fn add(&mut self, len: usize, memory: Vec<u8>) -> bool {
        // Neither what was taken over nor memory that would outweigh a full pipe.
        if memory.capacity() > 0 && memory.capacity() <= MAX_BYTES {
            self.memory.push(memory);
        }
        self.load.add(len);
        self.load.messages >= REPORT_MESSAGES || self.load.bytes >= REPORT_BYTES
    }

    pub(super) fn is_empty(&self) -> bool {
        self.load.messages == 0
    }
}

/// Messages in a pipe, at most.
pub(super) const MAX_MESSAGES: usize = 1_024;
/// Their bytes, at most, unless it is one message.
pub(super) const MAX_BYTES: usize = 1 << 20;
/// The reader reports so often that writer and reader can work at the same time.
const REPORT_MESSAGES: usize = MAX_MESSAGES / 16;
const REPORT_BYTES: usize = MAX_BYTES / 8;
const _: () = assert!(SMALL < REPORT_BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    fn put(pipe: &Pipe, lens: &[usize], next: Option<usize>) -> (bool, bool) {
        let mut load = Load::default();
        lens.iter().for_each(|len| load.add(*len));
        pipe.put(&mut lens.iter().map(|len| Frame::Message(vec![0; *len])).collect(), load, next)
    }

    fn take(pipe: &Pipe) -> VecDeque<Frame> {
        let mut arrived = VecDeque::new();
        pipe.take(&mut arrived);
        arrived
    }

    fn consume(pipe: &Pipe, frames: impl IntoIterator<Item = Frame>) -> bool {
        let mut spent = Spent::default();
        for frame in frames {
            let Frame::Message(memory) = frame else { continue };
            spent.add(memory.len(), memory);
        }
        pipe.consumed(&mut spent)
    }

    #[test]
    fn the_reader_is_woken_when_there_is_something_at_last() {
        let pipe = Pipe::default();
        assert_eq!(pipe.take(&mut VecDeque::new()), Taken::Nothing);
        assert!(put(&pipe, &[1], None).0);
        assert!(!put(&pipe, &[2], None).0, "it has been woken for the first one");
        assert_eq!(take(&pipe), [Frame::Message(vec![0; 1]), Frame::Message(vec![0; 2])]);
        assert!(put(&pipe, &[3], None).0);
        assert!(!put(&pipe, &[], None).0);
    }

    #[test]
    fn a_pipe_is_full_until_messages_are_consumed_not_just_taken() {
        let pipe = Pipe::default();
        put(&pipe, &[10; MAX_MESSAGES], None);
        let taken = take(&pipe);
        assert_eq!(pipe.load(&mut Spares::default()).map(|load| load.has_room(0)), Some(false));
        assert_eq!(put(&pipe, &[], Some(10)), (false, false));
        let mut taken = taken.into_iter();
        assert!(!consume(&pipe, taken.by_ref().take(MAX_MESSAGES / 2 - 1)), "less than half is free");
        assert!(consume(&pipe, taken.by_ref().take(1)));
        assert!(!consume(&pipe, taken), "the writer has been woken already");
        assert_eq!(pipe.load(&mut Spares::default()), Some(Load::default()));
    }

    #[test]
    fn an_empty_pipe_takes_any_one_message() {
        let pipe = Pipe::default();
        assert!(Load::default().has_room(10 * MAX_BYTES));
        assert_eq!(put(&pipe, &[2 * MAX_BYTES], Some(0)), (true, false));
        let taken = take(&pipe);
        assert!(consume(&pipe, taken));
        assert_eq!(put(&pipe, &[], Some(2 * MAX_BYTES)), (false, true));
    }

    #[test]
    fn the_end_comes_after_what_was_put_in() {
        let pipe = Pipe::default();
        put(&pipe, &[5], None);
        pipe.leave_writing();
        let mut arrived = VecDeque::new();
        assert_eq!(pipe.take(&mut arrived), Taken::Frames);
        arrived.clear();
        assert_eq!(pipe.take(&mut arrived), Taken::End);
    }

    #[test]
    fn nothing_is_put_in_when_the_reader_is_gone() {
        let pipe = Pipe::default();
        put(&pipe, &[1, 2], Some(MAX_BYTES));
        assert_eq!(pipe.leave_reading().len(), 2);
        assert!(pipe.is_reader_gone());
        assert_eq!(pipe.load(&mut Spares::default()), None);
        assert_eq!(put(&pipe, &[1], Some(1)), (false, false));
        assert!(!pipe.put_if_empty(Frame::Heartbeat));
    }

    #[test]
    fn heartbeats_do_not_pile_up() {
        let pipe = Pipe::default();
        assert!(pipe.put_if_empty(Frame::Heartbeat));
        assert!(!pipe.put_if_empty(Frame::Heartbeat));
        assert_eq!(take(&pipe), [Frame::Heartbeat]);
    }

    #[test]
    fn memory_goes_round() {
        let pipe = Pipe::default();
        let mut spares = Spares::default();
        let mut memory = spares.take(64);
        memory.extend_from_slice(&[7; 64]);
        let place = memory.as_ptr();
        pipe.put(&mut vec![Frame::Message(memory)], Load { messages: 1, bytes: 64 }, None);
        consume(&pipe, take(&pipe));
        pipe.load(&mut spares);
        let again = spares.take(64);
        assert_eq!(again.as_ptr(), place);
    }
    #[test]
    fn an_idle_pipe_gives_memory_back() {
        let pipe = Pipe::default();
        put(&pipe, &[10; 100], None);
        consume(&pipe, take(&pipe));
        pipe.trim();
        let inside = pipe.0.lock();
        assert_eq!((inside.returned.capacity(), inside.frames.capacity()), (0, 0));
    }
}
