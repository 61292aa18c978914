//! A whole conversation under every preset.

use std::collections::VecDeque;

use netio3_core::ClosedReason;
use netio3_core::fault::{FaultConfig, FaultCounts};

use crate::pair::Pair;

#[test]
fn a_program_survives_rough_treatment() {
    let mut total = FaultCounts::default();
    for seed in 0..30 {
        let (counts, writables) = converse(FaultConfig::rough(), seed);
        assert!(counts.resets == 0 && (counts.would_blocks == 0) <= (writables > 0));
        total = sum(total, counts);
    }
    assert!(total.would_blocks > 100 && total.stalls > 30 && total.delays > 500, "{total:?}");
}

#[test]
fn a_program_survives_resets() {
    let resets: u64 = (0..40).map(|seed| converse(FaultConfig::resetting(), seed).0.resets).sum();
    assert!(resets > 10, "{resets}");
}

#[test]
fn no_faults_means_none() {
    assert_eq!(converse(FaultConfig::none(), 0).0, FaultCounts::default());
}

#[test]
fn the_same_seed_gives_the_same_faults() {
    let config = FaultConfig::resetting();
    assert_eq!(converse(config, 3), converse(config, 3));
}

/// Sends a number of messages, with echoes, and closes.
fn converse(config: FaultConfig, seed: u64) -> (FaultCounts, usize) {
    let pair = Pair::new(config, seed, true);
    let sent = messages(120, seed);
    pair.client.only(|life| {
        life.to_send = sent.clone();
        life.closes_when_done = true;
    });
    pair.until_in_time(|| pair.client.is_over() && pair.server.is_over());
    let sent: Vec<_> = sent.into();
    let received = pair.server.only(|life| std::mem::take(&mut life.received));
    let reasons = (pair.client.only(|life| life.closed), pair.server.only(|life| life.closed));
    let was_orderly = reasons == (Some(ClosedReason::Local), Some(ClosedReason::PeerClosed));
    assert!(sent.starts_with(&received), "lost, repeated or reordered");
    assert!(!was_orderly || sent.len() == received.len(), "lost in an orderly close");
    pair.client.only(|life| assert!(sent.starts_with(&life.received)));
    let (a, b) = (pair.client.backend.counts(), pair.server.backend.counts());
    assert!(was_orderly || a.resets + b.resets > 0, "{reasons:?}");
    let writables = pair.client.only(|life| life.writables) + pair.server.only(|life| life.writables);
    let total = FaultCounts::default();
    (sum(sum(total, a), b), writables)
}

fn sum(mut total: FaultCounts, more: FaultCounts) -> FaultCounts {
    total.would_blocks += more.would_blocks;
    total.resets += more.resets;
    total.stalls += more.stalls;
    total.delays += more.delays;
    total
}

fn messages(count: usize, seed: u64) -> VecDeque<Vec<u8>> {
    let len = |i: usize| (i * 733 + seed as usize * 97) % 3_000;
    (0..count).map(|i| (0..len(i)).map(|at| (at + i) as u8).collect()).collect()
}
