//! The tour: a table of what this machine reaches, each backend beside bare sockets or bare libfabric calls.
//!
//! Throughput and round trips are measured between two processes (loopback: within one). Every round
//! measures the baseline and then the backends, and shares are taken within a round, since a machine's speed
//! drifts by more than the backends differ.

mod table;

use std::time::{Duration, Instant};

use crate::args::{Backend, Common};
use crate::failure::Failure;
use crate::info::choose;
use crate::peers::Pairing;
use crate::report::{Report, bytes, progress};
use crate::tour::table::Findings;

/// Message sizes of the table.
const SIZES: [usize; 5] = [64, 1 << 10, 16 << 10, 64 << 10, 1 << 20];
/// Bytes of the messages whose round trips are measured.
const ROUND_TRIP_SIZE: usize = 64;
const ROUNDS: usize = 5;
/// How long the transfers of one quantity take in a round, shared among the backends.
const TRANSFERS: Duration = Duration::from_millis(750);
/// Round trips of each measurement.
const ROUND_TRIPS: u64 = 2_000;
/// The tour skips further rounds from here on, to end within half a minute on any machine.
const ENOUGH: Duration = Duration::from_secs(20);

/// What a step of the tour measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// Messages of a size per second.
    Throughput(usize),
    /// Round trips of messages of a size.
    RoundTrips(usize),
}

/// Measures everything, prints the table, and fails when any message was not delivered.
pub fn tour(common: &Common) -> Result<(), Failure> {
    let (backends, left_out) = backends(common)?;
    let transfer = TRANSFERS / (1 + backends.len()) as u32;
    let quantities: Vec<Quantity> = SIZES.map(Quantity::Throughput).into_iter().chain([Quantity::RoundTrips(ROUND_TRIP_SIZE)]).collect();
    let began = Instant::now();
    let mut findings = Findings::new(&quantities, &backends);
    let steps = quantities.len() * ROUNDS * (1 + backends.len());
    let bar = progress(steps);
    let mut outcome = Ok(());
    'tour: for round in 0..ROUNDS {
        for (row, quantity) in findings.rows.iter_mut().zip(&quantities) {
            if round > 0 && began.elapsed() > ENOUGH {
                break 'tour;
            }
            for backend in std::iter::once(Backend::Raw).chain(backends.iter().copied()) {
                bar.set_message(format!("{quantity} over {backend}"));
                match measure(common, *quantity, backend, transfer) {
                    Ok(measured) => row.add(backend, measured),
                    Err(failure) => {
                        outcome = Err(failure);
                        break 'tour;
                    }
                }
                bar.inc(1);
            }
        }
    }
    bar.finish_and_clear();
    findings.seconds = began.elapsed().as_secs_f64();
    findings.left_out = left_out;
    findings.error = outcome.as_ref().err().map(ToString::to_string);
    findings.print(common.json);
    outcome
}

/// The backends and baselines to show beside bare sockets: those that can be used, or the one asked for. And why the others
/// are left out.
fn backends(common: &Common) -> Result<(Vec<Backend>, Vec<String>), Failure> {
    let wanted: &[Backend] = match common.backend {
        Some(Backend::Raw) => &[],
        Some(Backend::Tcp) => &[Backend::Tcp],
        Some(Backend::Loopback) => &[Backend::Loopback],
        Some(Backend::RawFabric) => &[Backend::RawFabric],
        Some(Backend::Rdma) => &[Backend::RawFabric, Backend::Rdma],
        None => &[Backend::Tcp, Backend::Loopback, Backend::RawFabric, Backend::Rdma],
    };
    choose(common, wanted)
}

fn measure(common: &Common, quantity: Quantity, backend: Backend, transfer: Duration) -> Result<Report, Failure> {
    let pairing = match quantity {
        Quantity::Throughput(size) => Pairing::transfer(backend, size, transfer),
        Quantity::RoundTrips(size) => Pairing::round_trips(backend, size, ROUND_TRIPS),
    };
    pairing.run(common).map(|(measured, _)| measured)
}

impl std::fmt::Display for Quantity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Throughput(size) => write!(f, "messages of {}", bytes(*size as u64)),
            Self::RoundTrips(size) => write!(f, "round trips of {}", bytes(*size as u64)),
        }
    }
}
