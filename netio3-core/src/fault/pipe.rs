//! A connection in memory.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::sync::Arc;

use parking_lot::Mutex;

/// Two connected ends, with room for `capacity` bytes each way, that behave like non-blocking stream sockets.
///
/// An empty pipe and a full one give `WouldBlock`. After the other end's [`shutdown`](PipeEnd::shutdown) or drop,
/// what is left can be read, then comes the end of the stream. After an [`abort`](PipeEnd::abort) of either end, a
/// drop with bytes unread, or a write to an end that is gone, all is lost and both sides get `ConnectionReset`.
pub fn pipe(capacity: usize) -> (PipeEnd, PipeEnd) {
    let shared = Arc::new(Mutex::new(Shared { directions: [Direction::default(), Direction::default()], capacity, reset: false }));
    (PipeEnd { shared: shared.clone(), side: 0 }, PipeEnd { shared, side: 1 })
}

/// One end of a [`pipe`].
#[derive(Debug)]
pub struct PipeEnd {
    shared: Arc<Mutex<Shared>>,
    /// Index of the direction that this end writes to.
    side: usize,
}

#[derive(Debug)]
struct Shared {
    directions: [Direction; 2],
    capacity: usize,
    reset: bool,
}

#[derive(Debug, Default)]
struct Direction {
    bytes: VecDeque<u8>,
    /// The writer will send nothing more.
    ended: bool,
    reader_gone: bool,
}

impl PipeEnd {
    /// Ends the stream of this side, as `shutdown(WR)` does; reading goes on.
    pub fn shutdown(&mut self) {
        self.shared.lock().directions[self.side].ended = true;
    }

    /// Resets the connection, as a socket does that is closed with linger zero.
    pub fn abort(&mut self) {
        self.shared.lock().abort();
    }

    /// How many bytes can be read.
    pub fn readable_len(&self) -> usize {
        self.shared.lock().directions[1 - self.side].bytes.len()
    }
}

impl Shared {
    fn abort(&mut self) {
        self.reset = true;
        self.directions.iter_mut().for_each(|direction| direction.bytes.clear());
    }
}

impl Read for PipeEnd {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_vectored(&mut [IoSliceMut::new(buffer)])
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let mut shared = self.shared.lock();
        if shared.reset {
            return Err(ErrorKind::ConnectionReset.into());
        }
        let Direction { bytes, ended, .. } = &mut shared.directions[1 - self.side];
        if bytes.is_empty() && !*ended && buffers.iter().any(|buffer| !buffer.is_empty()) {
            return Err(ErrorKind::WouldBlock.into());
        }
        let before = bytes.len();
        for buffer in buffers {
            // Reading from a `VecDeque` stops where its memory wraps around.
            let first = bytes.read(buffer)?;
            bytes.read(&mut buffer[first..])?;
        }
        Ok(before - bytes.len())
    }
}

impl Write for PipeEnd {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut shared = self.shared.lock();
        let capacity = shared.capacity;
        if shared.reset {
            return Err(ErrorKind::ConnectionReset.into());
        }
        let direction = &mut shared.directions[self.side];
        if direction.ended {
            return Err(ErrorKind::BrokenPipe.into());
        }
        if direction.reader_gone {
            shared.abort();
            return Err(ErrorKind::ConnectionReset.into());
        }
        let before = direction.bytes.len();
        for slice in slices {
            let room = capacity - direction.bytes.len();
            direction.bytes.extend(&slice[..slice.len().min(room)]);
        }
        match direction.bytes.len() - before {
            0 if slices.iter().any(|slice| !slice.is_empty()) => Err(ErrorKind::WouldBlock.into()),
            written => Ok(written),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for PipeEnd {
    fn drop(&mut self) {
        let mut shared = self.shared.lock();
        shared.directions[self.side].ended = true;
        let incoming = &mut shared.directions[1 - self.side];
        incoming.reader_gone = true;
        if !incoming.bytes.is_empty() {
            shared.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind<T: std::fmt::Debug>(result: io::Result<T>) -> ErrorKind {
        result.unwrap_err().kind()
    }

    #[test]
    fn bytes_arrive_in_order_and_full_or_empty_would_block() {
        let (mut near, mut far) = pipe(5);
        let mut buffer = [0; 8];
        assert_eq!(kind(far.read(&mut buffer)), ErrorKind::WouldBlock);
        assert_eq!(near.write_vectored(&[IoSlice::new(b"abc"), IoSlice::new(b""), IoSlice::new(b"defg")]).unwrap(), 5);
        assert_eq!(kind(near.write(b"f")), ErrorKind::WouldBlock);
        assert_eq!(far.read(&mut buffer[..2]).unwrap(), 2);
        assert_eq!(near.write(b"fgh").unwrap(), 2);
        assert_eq!(far.readable_len(), 5);
        let (left, right) = buffer.split_at_mut(1);
        assert_eq!(far.read_vectored(&mut [IoSliceMut::new(left), IoSliceMut::new(right)]).unwrap(), 5);
        assert_eq!(&buffer[..5], b"cdefg");
        assert_eq!((near.write(b"").unwrap(), far.read(&mut []).unwrap()), (0, 0));
    }

    #[test]
    fn the_other_direction_outlives_a_shutdown() {
        let (mut near, mut far) = pipe(8);
        near.write_all(b"last").unwrap();
        near.shutdown();
        assert_eq!(kind(near.write(b"x")), ErrorKind::BrokenPipe);
        let mut text = String::new();
        far.read_to_string(&mut text).unwrap();
        assert_eq!(text, "last");
        far.write_all(b"answer").unwrap();
        drop(far);
        near.read_to_string(&mut text).unwrap();
        assert_eq!(text, "lastanswer");
    }

    #[test]
    fn resets_lose_everything_on_both_sides() {
        let abort: fn(PipeEnd, &mut PipeEnd) = |mut end, _| end.abort();
        let drop_unread: fn(PipeEnd, &mut PipeEnd) = |end, other| {
            other.write_all(b"unread").unwrap();
            drop(end);
        };
        let write_to_nobody: fn(PipeEnd, &mut PipeEnd) = |end, other| {
            drop(end);
            assert_eq!(kind(other.write(b"x")), ErrorKind::ConnectionReset);
        };
        for reset in [abort, drop_unread, write_to_nobody] {
            let (mut near, mut far) = pipe(8);
            near.write_all(b"lost").unwrap();
            reset(near, &mut far);
            assert_eq!(kind(far.read(&mut [0; 8])), ErrorKind::ConnectionReset);
            assert_eq!(kind(far.write(b"x")), ErrorKind::ConnectionReset);
        }
    }
}
