//! What is measured, the same with every library: messages of one length, each with its sequence number in its first
//! bytes.

use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// One measurement.
#[derive(Args, Clone, Copy, Debug)]
pub struct Job {
    #[arg(long, value_enum)]
    pub task: Task,
    /// Bytes of each message, the sequence number included.
    #[arg(long, value_parser = parse_size)]
    pub size: usize,
    /// How long to go on.
    #[arg(long, value_parser = parse_seconds)]
    pub time: Duration,
}

/// What is done with messages.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// One side sends as fast as it can.
    Transfer,
    /// One side sends a message, waits until the other has sent it back, and sends the next.
    RoundTrips,
}

impl Task {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Transfer => "transfer",
            Self::RoundTrips => "round-trips",
        }
    }
}

/// What the driving side found.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum Measured {
    Transfer { messages: u64, seconds: f64 },
    RoundTrips { p50_us: f64, p99_us: f64 },
}

/// The sequence number has to fit.
pub const MIN_SIZE: usize = HEAD_LEN;
/// What netio3 takes by default.
pub const MAX_SIZE: usize = 64 << 20;
/// Bytes of the sequence number.
pub const HEAD_LEN: usize = 8;
/// In place of a message: how many have arrived? The answer is the number, in as many bytes.
pub const QUESTION: [u8; HEAD_LEN] = u64::MAX.to_le_bytes();

/// The first bytes of a message.
pub fn head(sequence: u64) -> [u8; HEAD_LEN] {
    sequence.to_le_bytes()
}

/// Checks what arrives.
pub struct Incoming {
    size: usize,
    arrived: u64,
}

/// What arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrived {
    Message,
    /// The [`QUESTION`], and the answer to it.
    Question([u8; HEAD_LEN]),
}

impl Incoming {
    pub fn new(job: &Job) -> Self {
        Self { size: job.size, arrived: 0 }
    }

    /// Looks at a message.
    ///
    /// # Errors
    /// It is not the next one.
    #[inline]
    pub fn observe(&mut self, message: &[u8]) -> Result<Arrived, String> {
        match message.first_chunk() {
            Some(first) if message.len() == self.size && *first == head(self.arrived) => {
                self.arrived += 1;
                Ok(Arrived::Message)
            }
            Some(first) if message == QUESTION.as_slice() && *first == QUESTION => Ok(Arrived::Question(self.arrived.to_le_bytes())),
            first => Err(format!(
                "message {} of {} bytes was expected, and {} of {} bytes arrived",
                self.arrived,
                self.size,
                first.map_or_else(|| "one without a number".to_owned(), |first| u64::from_le_bytes(*first).to_string()),
                message.len()
            )),
        }
    }
}

/// The most messages that are sent between two looks at the clock.
const MOST_PER_LOOK: usize = 64;

/// The sending side of a transfer.
pub struct Transfer {
    began: Instant,
    time: Duration,
    /// The clock is read before every so many messages.
    every: u64,
    sent: u64,
}

impl Transfer {
    /// Time runs from now on.
    pub fn begin(job: &Job) -> Self {
        Self { began: Instant::now(), time: job.time, every: (65_536 / job.size as u64).clamp(1, MOST_PER_LOOK as u64), sent: 0 }
    }

    /// The first bytes of the next message; `None` when time is up, and the question follows.
    #[inline]
    pub fn next(&self) -> Option<[u8; HEAD_LEN]> {
        let over = self.sent > 0 && self.sent.is_multiple_of(self.every) && self.began.elapsed() >= self.time;
        (!over).then(|| head(self.sent))
    }

    /// The library took it.
    #[inline]
    pub fn accepted(&mut self) {
        self.sent += 1;
    }

    /// The receiver answered the question.
    ///
    /// # Errors
    /// Not everything arrived.
    pub fn end(&self, answer: &[u8]) -> Result<Measured, String> {
        let seconds = self.began.elapsed().as_secs_f64();
        let arrived = answer.try_into().map(u64::from_le_bytes).map_err(|_| format!("the answer has {} bytes", answer.len()))?;
        if arrived != self.sent {
            return Err(format!("{} messages were sent and {arrived} arrived", self.sent));
        }
        Ok(Measured::Transfer { messages: arrived, seconds })
    }
}

/// The asking side of round trips.
pub struct RoundTrips {
    began: Instant,
    time: Duration,
    check: Incoming,
    sent_at: Instant,
    times: Histogram<u64>,
}

/// Round trips that are not counted: caches and kernel buffers find their state.
const WARM_UP: u64 = 100;

impl RoundTrips {
    /// Time runs from now on.
    pub fn begin(job: &Job) -> Self {
        let times = Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are fixed and make sense");
        let now = Instant::now();
        Self { began: now, time: job.time, check: Incoming::new(job), sent_at: now, times }
    }

    /// The first bytes of the next message, which is sent now; `None` when time is up.
    pub fn next(&mut self) -> Option<[u8; HEAD_LEN]> {
        self.sent_at = Instant::now();
        let over = !self.times.is_empty() && self.sent_at - self.began >= self.time;
        (!over).then(|| head(self.check.arrived))
    }

    /// Something came back.
    ///
    /// # Errors
    /// It is not what was sent.
    pub fn came_back(&mut self, message: &[u8]) -> Result<(), String> {
        let time = self.sent_at.elapsed();
        if self.check.observe(message)? != Arrived::Message {
            return Err("a question came back".into());
        }
        if self.check.arrived > WARM_UP {
            self.times.saturating_record(time.as_nanos() as u64);
        }
        Ok(())
    }

    /// The result.
    pub fn end(&self) -> Measured {
        let at = |quantile| self.times.value_at_quantile(quantile) as f64 / 1e3;
        Measured::RoundTrips { p50_us: at(0.5), p99_us: at(0.99) }
    }
}

/// A number of bytes that a message can have.
pub fn parse_size(text: &str) -> Result<usize, String> {
    let size = text.parse().ok().filter(|size| (MIN_SIZE..=MAX_SIZE).contains(size));
    size.ok_or_else(|| format!("must be a number of bytes from {MIN_SIZE} to {MAX_SIZE}"))
}

/// A time that a measurement can take.
pub fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.001..=10.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "must be a number of seconds from 0.001 to 10".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: Job = Job { task: Task::Transfer, size: 16, time: Duration::from_millis(1) };

    fn message(sequence: u64) -> [u8; 16] {
        let mut message = [0; 16];
        message[..HEAD_LEN].copy_from_slice(&head(sequence));
        message
    }

    #[test]
    fn only_the_next_message_is_taken() {
        let mut incoming = Incoming::new(&JOB);
        assert_eq!(incoming.observe(&message(0)), Ok(Arrived::Message));
        for wrong in [&message(0)[..], &message(2), &message(1)[..15], &[], &message(1)[..HEAD_LEN]] {
            assert!(incoming.observe(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(incoming.observe(&QUESTION), Ok(Arrived::Question(head(1))));
        assert_eq!(incoming.observe(&message(1)), Ok(Arrived::Message));
    }

    #[test]
    fn a_lost_message_fails_the_transfer() {
        let mut transfer = Transfer::begin(&JOB);
        transfer.accepted();
        transfer.accepted();
        assert_eq!(transfer.end(&head(1)).unwrap_err(), "2 messages were sent and 1 arrived");
        assert!(transfer.end(&[]).is_err());
        assert!(matches!(transfer.end(&head(2)), Ok(Measured::Transfer { messages: 2, .. })));
    }
}
