//! Streams with faults: each kind can be seen, the same seed repeats them, and the living lose nothing.
#![cfg(feature = "fault")]

use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::time::Duration;

use netio3_core::fault::{Clock, FaultConfig, FaultCounts, FaultStream, PipeEnd, pipe};

const MS: Duration = Duration::from_millis(1);

type Outcome = Result<usize, ErrorKind>;

fn faulty_pair(config: FaultConfig, seed: u64, clock: &Clock) -> (FaultStream<PipeEnd>, FaultStream<PipeEnd>) {
    let (near, far) = pipe(10_000);
    let faulty = |end, seed| FaultStream::new(end, config, seed, clock).on_reset(PipeEnd::abort);
    (faulty(near, 2 * seed), faulty(far, 2 * seed + 1))
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

/// One side of a transfer: what it still sends, and what it has received.
struct Side {
    stream: FaultStream<PipeEnd>,
    to_send: Vec<u8>,
    received: Vec<u8>,
    ended: bool,
    trace: Vec<Outcome>,
}

impl Side {
    fn new(stream: FaultStream<PipeEnd>, to_send: Vec<u8>) -> Self {
        Self { stream, to_send, received: Vec::new(), ended: false, trace: Vec::new() }
    }

    /// Writes and reads until both would block; `false` once the connection is reset.
    fn step(&mut self) -> bool {
        while !self.to_send.is_empty() {
            let (head, tail) = self.to_send.split_at(self.to_send.len() / 3);
            let written = self.stream.write_vectored(&[IoSlice::new(head), IoSlice::new(tail)]).map_err(|e| e.kind());
            self.trace.push(written);
            match written {
                Ok(n) => drop(self.to_send.drain(..n)),
                Err(ErrorKind::WouldBlock) => break,
                Err(kind) => return self.died_of(kind),
            }
            if self.to_send.is_empty() {
                self.stream.inner_mut().shutdown();
            }
        }
        while !self.ended {
            let (mut head, mut tail) = ([0; 700], [0; 5_000]);
            let read = self.stream.read_vectored(&mut [IoSliceMut::new(&mut head), IoSliceMut::new(&mut tail)]).map_err(|e| e.kind());
            self.trace.push(read);
            match read {
                Ok(0) => self.ended = true,
                Ok(n) => {
                    self.received.extend_from_slice(&head[..n.min(700)]);
                    self.received.extend_from_slice(&tail[..n.saturating_sub(700)]);
                }
                Err(ErrorKind::WouldBlock) => break,
                Err(kind) => return self.died_of(kind),
            }
        }
        true
    }

    fn died_of(&mut self, kind: ErrorKind) -> bool {
        assert_eq!(kind, ErrorKind::ConnectionReset);
        false
    }
}

/// Sends `len` bytes each way, and half as many; both sides after the end.
fn transfer(config: FaultConfig, seed: u64, len: usize) -> (Side, Side) {
    let clock = Clock::new();
    let (near, far) = faulty_pair(config, seed, &clock);
    let mut near = Side::new(near, pattern(len));
    let mut far = Side::new(far, pattern(len / 2));
    for _ in 0..1_000_000 {
        let alive = near.step() & far.step();
        if !alive || (near.ended && far.ended) {
            return (near, far);
        }
        if clock.next_event().is_some() {
            clock.advance_to_next_event();
        }
    }
    panic!("seed {seed}: the transfer does not end");
}

#[test]
fn the_living_lose_repeat_and_reorder_nothing() {
    let delays = FaultConfig { delay: 0.7, ..FaultConfig::none() };
    for config in [FaultConfig::none(), FaultConfig::short(), FaultConfig::rough(), delays] {
        for seed in 0..40 {
            let (near, far) = transfer(config, seed, 30_000);
            assert!(far.received == pattern(30_000) && near.received == pattern(15_000), "seed {seed}, {config:?}");
        }
    }
}

#[test]
fn what_arrived_before_a_reset_is_right() {
    let mut died = 0;
    for seed in 0..40 {
        let (near, far) = transfer(FaultConfig::resetting(), seed, 30_000);
        assert!(pattern(30_000).starts_with(&far.received), "seed {seed}");
        assert!(pattern(15_000).starts_with(&near.received), "seed {seed}");
        died += near.stream.counts().resets + far.stream.counts().resets;
    }
    assert!((5..40).contains(&died), "{died} of 40 connections died");
}

#[test]
fn the_same_seed_gives_the_same_faults() {
    let run = |seed| {
        let (near, far) = transfer(FaultConfig::resetting(), seed, 20_000);
        (near.trace, far.trace, near.stream.counts(), far.stream.counts())
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

#[test]
fn no_faults_means_none() {
    let (near, _) = transfer(FaultConfig::none(), 1, 30_000);
    assert_eq!(near.stream.counts(), FaultCounts::default());
}

#[test]
fn short_calls_end_anywhere() {
    let clock = Clock::new();
    let (mut near, _far) = faulty_pair(FaultConfig { short: 1.0, ..FaultConfig::none() }, 5, &clock);
    let mut seen = [false; 9];
    for _ in 0..300 {
        seen[near.write(&[0; 8]).unwrap()] = true;
    }
    assert_eq!(seen, [false, true, true, true, true, true, true, true, true]);
    assert!(near.counts().shorts > 100);
    assert!(clock.next_event().is_some());
}

#[test]
fn would_block_passes() {
    let clock = Clock::new();
    let (mut near, _far) = faulty_pair(FaultConfig { would_block: 0.5, ..FaultConfig::none() }, 5, &clock);
    let written = (0..100).filter(|_| near.write(b"x").is_ok()).count() as u64;
    assert_eq!(written, 100 - near.counts().would_blocks);
    assert!((30..70).contains(&written));
    assert!(clock.advance_to_next_event());
}

#[test]
fn a_reset_is_for_ever_and_known_to_both() {
    let clock = Clock::new();
    let (mut near, mut far) = faulty_pair(FaultConfig::none(), 5, &clock);
    near.write_all(b"lost").unwrap();
    near.set_config(FaultConfig { reset: 1.0, ..FaultConfig::none() });
    assert_eq!(near.write(b"x").unwrap_err().kind(), ErrorKind::ConnectionReset);
    near.set_config(FaultConfig::none());
    assert_eq!(near.read(&mut [0; 9]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(near.flush().unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(far.read(&mut [0; 9]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!((near.counts().resets, far.counts().resets), (1, 0));
}

#[test]
fn a_stall_lasts_until_its_time_has_passed() {
    let clock = Clock::new();
    let (mut near, mut far) = faulty_pair(FaultConfig::none(), 5, &clock);
    far.write_all(b"waits").unwrap();
    near.stall(10 * MS);
    for _ in 0..10 {
        assert_eq!(near.read(&mut [0; 9]).unwrap_err().kind(), ErrorKind::WouldBlock);
        assert_eq!(near.write(b"x").unwrap_err().kind(), ErrorKind::WouldBlock);
        clock.advance(MS);
    }
    assert_eq!(near.read(&mut [0; 9]).unwrap(), 5);
    assert_eq!(near.write(b"x").unwrap(), 1);
    assert_eq!(near.counts().stalls, 1);
}

#[test]
fn delayed_bytes_are_readable_later_and_in_order() {
    let clock = Clock::new();
    let config = FaultConfig { delay: 1.0, longest_delay: 10 * MS, ..FaultConfig::none() };
    let (mut near, mut far) = faulty_pair(config, 5, &clock);
    let mut arrived = Vec::new();
    for byte in 0..100 {
        near.write_all(&[byte]).unwrap();
        while let Ok(n @ 1..) = far.read(&mut [0; 9]) {
            arrived.extend((0..n).map(|_| clock.now()));
        }
        clock.advance(MS);
    }
    near.inner_mut().shutdown();
    let mut text = Vec::new();
    while far.read_to_end(&mut text).is_err() {
        assert!(clock.advance_to_next_event());
    }
    assert_eq!(arrived.len() + text.len(), 100);
    assert!(text.iter().copied().eq(100 - text.len() as u8..100));
    assert!(!text.is_empty() && far.counts().delays > 50);
}
