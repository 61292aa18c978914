//! Messages on a bare socket: a head of eight bytes (length, kind), then the message.

use std::io::{self, Read};

/// Bytes of a head.
pub const HEAD_LEN: usize = 8;

/// Bytes read at once.
const READ_LEN: usize = (512 << 10) + (4 << 10);

/// Reads begin at ever other places of a page, and what an earlier one has left over is put before. Where the place copied
/// to lies up to 31 bytes behind that copied from, modulo a page, the kernel takes up to twenty times as long (AMD Zen 3
/// and Zen 4), and a place that stays the same meets that again and again at some lengths of messages.
const PAGE: usize = 4 << 10;
const STEP: usize = 17 * 64;

/// Moving less than this costs less than a read that finds little room.
const LONG_REST: usize = 4 << 10;

/// Marks every frame, so that strangers are noticed.
const KIND: u32 = u32::from_le_bytes(*b"raw0");

/// The head of a message.
pub fn head(len: usize) -> [u8; HEAD_LEN] {
    let mut head = [0; HEAD_LEN];
    head[..4].copy_from_slice(&(len as u32).to_le_bytes());
    head[4..].copy_from_slice(&KIND.to_le_bytes());
    head
}

/// A message as one frame; for the few that are not measured.
pub fn frame(message: &[u8]) -> Vec<u8> {
    [&head(message.len()), message].concat()
}

/// Reads a socket and parses what came in place.
pub struct Inbox {
    buffer: Vec<u8>,
    /// What has been read and not parsed.
    start: usize,
    end: usize,
    /// Where in a page the next read begins.
    place: usize,
}

impl Inbox {
    /// An empty inbox.
    pub fn new() -> Self {
        Self { buffer: vec![0; 2 * PAGE + READ_LEN], start: PAGE, end: PAGE, place: 0 }
    }

    /// An inbox for the few messages that a sender receives.
    pub fn small() -> Self {
        Self { buffer: vec![0; 3 * PAGE], start: PAGE, end: PAGE, place: 0 }
    }

    /// What has been read and not parsed.
    pub fn rest(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Begins with what was the rest of another connection's inbox, which must fit.
    pub fn begin_with(&mut self, rest: &[u8]) {
        self.start = PAGE.saturating_sub(rest.len());
        self.end = self.start + rest.len();
        self.buffer[self.start..self.end].copy_from_slice(rest);
    }

    /// Reads once; 0 means the end of the stream.
    ///
    /// # Errors
    /// Those of the socket. `UnexpectedEof` when the stream ends within a message.
    pub fn read(&mut self, socket: &mut impl Read) -> io::Result<usize> {
        self.make_room();
        // Interrupted by what stops a process and lets it go on.
        let n = loop {
            match socket.read(&mut self.buffer[self.end..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        self.end += n;
        if n == 0 && self.start < self.end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(n)
    }

    /// The next whole message, if it is here.
    ///
    /// # Errors
    /// `InvalidData`: this is no frame of ours.
    #[inline]
    pub fn next(&mut self) -> io::Result<Option<&[u8]>> {
        let Some((head, rest)) = self.buffer[self.start..self.end].split_first_chunk::<HEAD_LEN>() else {
            return Ok(None);
        };
        let head = u64::from_le_bytes(*head);
        if (head >> 32) as u32 != KIND {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let len = head as u32 as usize;
        if rest.len() < len {
            return Ok(None);
        }
        self.start += HEAD_LEN + len;
        Ok(Some(&rest[..len]))
    }

    /// How many bytes the message needs that has begun; nothing when none has.
    pub fn missing(&self) -> usize {
        match self.rest().first_chunk() {
            Some(len) => (u32::from_le_bytes(*len) as usize + HEAD_LEN).saturating_sub(self.rest().len()),
            None => 0,
        }
    }

    /// Parsed frames as they came, heads included; positions hold until the next read.
    pub fn range(&self, from: usize, to: usize) -> &[u8] {
        &self.buffer[from..to]
    }

    /// Where the next message begins.
    pub fn position(&self) -> usize {
        self.start
    }

    /// Makes room for a read: moves the rest to the front, and grows as a long message arrives.
    fn make_room(&mut self) {
        let frame_len = match self.buffer[self.start..self.end].first_chunk() {
            Some(len) => u32::from_le_bytes(*len) as usize + HEAD_LEN,
            None => HEAD_LEN,
        };
        // A long message that has begun and can be completed where it lies is not moved.
        let stays = self.end - self.start >= LONG_REST && self.start + frame_len <= self.buffer.len();
        if !stays {
            let rest = self.end - self.start;
            let start = (PAGE + self.place).saturating_sub(rest);
            self.place = (self.place + STEP) % PAGE;
            self.buffer.copy_within(self.start..self.end, start);
            (self.start, self.end) = (start, start + rest);
        }
        if self.end == self.buffer.len() {
            self.buffer.resize((self.start + frame_len).min(self.buffer.len() * 2), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_however_they_are_cut() {
        let messages: Vec<Vec<u8>> = [0, 1, 7, 300_000, 8, 1_000_000, 3].map(|len| vec![len as u8; len]).into();
        let stream: Vec<u8> = messages.iter().flat_map(|message| frame(message)).collect();
        for cut in [1, 9, 1_000, 100_000, stream.len()] {
            let mut inbox = Inbox::new();
            let mut found = Vec::new();
            let mut chunks = stream.chunks(cut.max(stream.len() / 50_000)).flat_map(|chunk| chunk.chunks(READ_LEN));
            let mut part: &[u8] = &[];
            loop {
                if part.is_empty() {
                    part = chunks.next().unwrap_or_default();
                }
                if inbox.read(&mut part).unwrap() == 0 {
                    break;
                }
                while let Some(message) = inbox.next().unwrap() {
                    found.push(message.to_vec());
                }
            }
            assert_eq!(found, messages);
        }
    }

    #[test]
    fn strangers_and_cut_messages_are_errors() {
        let mut inbox = Inbox::new();
        inbox.read(&mut &b"GET / HTTP/1.1"[..]).unwrap();
        assert_eq!(inbox.next().unwrap_err().kind(), io::ErrorKind::InvalidData);
        let mut inbox = Inbox::new();
        inbox.read(&mut &frame(b"abc")[..9]).unwrap();
        assert!(inbox.next().unwrap().is_none());
        assert_eq!(inbox.read(&mut &[][..]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
