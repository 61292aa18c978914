//! A byte stream with faults.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::time::{Duration, Instant};

use crate::fault::rng::Rng;
use crate::fault::{Clock, FaultConfig, FaultCounts};

/// A non-blocking byte stream that suffers faults; the same seed and the same calls give the same ones.
///
/// As long as it is not reset, no byte is lost, repeated or out of order. Whenever a fault kept a call from doing all
/// that it could, there is an event on the clock for when to try again, both reading and writing, although the stream
/// behind shows no new readiness. Once reset, every call gives `ConnectionReset`.
#[derive(Debug)]
pub struct FaultStream<S> {
    inner: S,
    config: FaultConfig,
    rng: Rng,
    clock: Clock,
    on_reset: Option<fn(&mut S)>,
    reset: bool,
    stalled_until: Option<Instant>,
    arrived: Arrived,
    counts: FaultCounts,
}

/// Bytes that were read from the stream behind and become readable later.
#[derive(Debug, Default)]
struct Arrived {
    pieces: VecDeque<(Instant, VecDeque<u8>)>,
    len: usize,
    /// What comes after them: the end of the stream, or an error.
    end: Option<io::Result<()>>,
}

impl<S: Read + Write> FaultStream<S> {
    /// Puts faults before a stream, which must not block.
    pub fn new(inner: S, config: FaultConfig, seed: u64, clock: &Clock) -> Self {
        Self {
            inner,
            config,
            rng: Rng::new(seed),
            clock: clock.clone(),
            on_reset: None,
            reset: false,
            stalled_until: None,
            arrived: Arrived::default(),
            counts: FaultCounts::default(),
        }
    }

    /// Makes a reset known to the other side, as by `on_reset(PipeEnd::abort)`.
    #[must_use]
    pub fn on_reset(mut self, tell: fn(&mut S)) -> Self {
        self.on_reset = Some(tell);
        self
    }

    /// Resets it now.
    pub fn reset(&mut self) {
        if !self.reset {
            self.reset = true;
            self.counts.resets += 1;
            self.arrived = Arrived::default();
            if let Some(tell) = self.on_reset {
                tell(&mut self.inner);
            }
        }
    }

    /// Makes no progress for this long, from now.
    pub fn stall(&mut self, time: Duration) {
        let until = self.clock.now() + time;
        self.counts.stalls += 1;
        self.stalled_until = Some(until);
        self.clock.add_event(until);
    }

    /// Changes what happens from now on.
    pub fn set_config(&mut self, config: FaultConfig) {
        self.config = config;
    }

    /// The faults until now.
    pub fn counts(&self) -> FaultCounts {
        self.counts
    }

    /// The stream behind.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    /// The stream behind, for what is neither reading nor writing.
    pub fn inner_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Draws the faults of one call: how many of `len` bytes may be moved.
    fn admit(&mut self, len: usize) -> io::Result<usize> {
        let now = self.clock.now();
        if !self.reset && self.rng.chance(self.config.reset) {
            self.reset();
        }
        if self.reset {
            return Err(ErrorKind::ConnectionReset.into());
        }
        if self.stalled_until.is_none_or(|until| now >= until) && self.rng.chance(self.config.stall) {
            let time = self.rng.time_up_to(self.config.longest_stall);
            self.stall(time);
        }
        if self.stalled_until.is_some_and(|until| now < until) {
            return Err(ErrorKind::WouldBlock.into());
        }
        if self.rng.chance(self.config.would_block) {
            self.counts.would_blocks += 1;
            self.clock.add_event(now + RETRY);
            return Err(ErrorKind::WouldBlock.into());
        }
        if self.rng.chance(self.config.short) {
            let part = self.rng.part_of(len);
            self.counts.shorts += u64::from(part < len);
            self.clock.add_event(now + RETRY);
            return Ok(part);
        }
        Ok(len)
    }

    /// Takes what has arrived behind and decides when it becomes readable.
    fn collect(&mut self) {
        let now = self.clock.now();
        let mut piece = [0; PIECE];
        while self.arrived.len < MOST_HELD && self.arrived.end.is_none() {
            match self.inner.read(&mut piece) {
                Ok(0) => self.arrived.end = Some(Ok(())),
                Ok(n) => {
                    let delayed = self.rng.chance(self.config.delay);
                    let delay = if delayed { self.rng.time_up_to(self.config.longest_delay) } else { Duration::ZERO };
                    self.counts.delays += u64::from(delayed);
                    let after = self.arrived.pieces.back().map_or(now, |last| last.0);
                    let at = after.max(now + delay);
                    self.clock.add_event(at);
                    self.arrived.len += n;
                    self.arrived.pieces.push_back((at, piece[..n].iter().copied().collect()));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => self.arrived.end = Some(Err(error)),
            }
        }
    }

    fn read_arrived(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let now = self.clock.now();
        let mut total = 0;
        for buffer in buffers {
            let mut filled = 0;
            while let Some((_, bytes)) = self.arrived.pieces.front_mut().filter(|(at, _)| *at <= now && filled < buffer.len()) {
                filled += bytes.read(&mut buffer[filled..])?;
                if bytes.is_empty() {
                    self.arrived.pieces.pop_front();
                }
            }
            total += filled;
        }
        self.arrived.len -= total;
        if total > 0 {
            return Ok(total);
        }
        match &self.arrived.end {
            Some(end) if self.arrived.pieces.is_empty() => match end {
                Ok(()) => Ok(0),
                Err(error) => Err(error.kind().into()),
            },
            _ => Err(ErrorKind::WouldBlock.into()),
        }
    }
}

impl<S: Read + Write> Read for FaultStream<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_vectored(&mut [IoSliceMut::new(buffer)])
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let len = buffers.iter().map(|buffer| buffer.len()).sum();
        if len == 0 {
            return Ok(0);
        }
        let mut rest = self.admit(len)?;
        let mut parts = Vec::with_capacity(buffers.len());
        for buffer in buffers {
            let part = buffer.len().min(rest);
            rest -= part;
            parts.push(IoSliceMut::new(&mut buffer[..part]));
        }
        if self.config.delay > 0.0 || self.arrived.len > 0 || self.arrived.end.is_some() {
            self.collect();
            return self.read_arrived(&mut parts);
        }
        self.inner.read_vectored(&mut parts)
    }
}

impl<S: Read + Write> Write for FaultStream<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let len = slices.iter().map(|slice| slice.len()).sum();
        if len == 0 {
            return Ok(0);
        }
        let mut rest = self.admit(len)?;
        let mut parts = Vec::with_capacity(slices.len());
        for slice in slices {
            let part = slice.len().min(rest);
            rest -= part;
            parts.push(IoSlice::new(&slice[..part]));
        }
        self.inner.write_vectored(&parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.reset { Err(ErrorKind::ConnectionReset.into()) } else { self.inner.flush() }
    }
}

/// After a fault of a single call, trying again is worth while so much later.
const RETRY: Duration = Duration::from_micros(1);
/// What is collected at once.
const PIECE: usize = 4 << 10;
/// More than this is not collected, so that the other side is slowed down.
const MOST_HELD: usize = 64 << 10;
