//! The tour: a table of what this machine reaches, each backend beside bare sockets.
//!
//! Throughput and round trips are measured between two processes (loopback: within one). Every round
//! measures the baseline and then the backends, and shares are taken within a round, since a machine's speed
//! drifts by more than the backends differ.

mod peers;
mod table;

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::args::{Backend, Common};
use crate::failure::Failure;
use crate::info::usable;
use crate::report::bytes;
use crate::tour::peers::{Measured, measure_round_trips, measure_throughput};
use crate::tour::table::Findings;

/// Message sizes of the table.
const SIZES: [usize; 5] = [64, 1 << 10, 16 << 10, 64 << 10, 1 << 20];
/// Bytes of the messages whose round trips are measured.
const ROUND_TRIP_SIZE: usize = 64;
const ROUNDS: usize = 5;
/// How long each transfer takes.
const TRANSFER: Duration = Duration::from_millis(250);
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
    let backends = backends(common)?;
    let quantities: Vec<Quantity> = SIZES.map(Quantity::Throughput).into_iter().chain([Quantity::RoundTrips(ROUND_TRIP_SIZE)]).collect();
    let began = Instant::now();
    let mut findings = Findings::new(&quantities, &backends);
    let steps = quantities.len() * ROUNDS * (1 + backends.len());
    let bar = ProgressBar::new(steps as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {percent:>3} %  {msg}") {
        bar.set_style(style);
    }
    let mut outcome = Ok(());
    'tour: for round in 0..ROUNDS {
        for (row, quantity) in findings.rows.iter_mut().zip(&quantities) {
            if round > 0 && began.elapsed() > ENOUGH {
                break 'tour;
            }
            for backend in std::iter::once(Backend::Raw).chain(backends.iter().copied()) {
                bar.set_message(format!("{quantity} over {backend}"));
                match measure(common, *quantity, backend) {
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
    findings.error = outcome.as_ref().err().map(ToString::to_string);
    findings.print(common.json);
    outcome
}

/// The backends to show: those that can be used, or the one asked for.
fn backends(common: &Common) -> Result<Vec<Backend>, Failure> {
    match common.backend {
        Some(Backend::Raw) => Ok(Vec::new()),
        Some(asked) => usable(asked).map(|()| vec![asked]).map_err(Failure::NoConnection),
        None => Ok([Backend::Tcp, Backend::Rdma, Backend::Loopback].into_iter().filter(|backend| usable(*backend).is_ok()).collect()),
    }
}

fn measure(common: &Common, quantity: Quantity, backend: Backend) -> Result<Measured, Failure> {
    match quantity {
        Quantity::Throughput(size) => measure_throughput(common, backend, size, TRANSFER),
        Quantity::RoundTrips(size) => measure_round_trips(common, backend, size, ROUND_TRIPS),
    }
}

impl std::fmt::Display for Quantity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Throughput(size) => write!(f, "messages of {}", bytes(*size as u64)),
            Self::RoundTrips(size) => write!(f, "round trips of {}", bytes(*size as u64)),
        }
    }
}
