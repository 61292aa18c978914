//! `netio3-peers`: compares netio3 over TCP with what else could carry the messages: ZeroMQ, nng, tokio with
//! length-delimited frames, and asio.
//!
//! ```sh
//! cargo run --release --manifest-path netio3-bench/peers/Cargo.toml
//! ```
//!
//! Needs a C++ compiler, with which libzmq is built, and the headers of libnng and asio (`apt-get install g++ libnng-dev
//! libasio-dev`). Messages go over the loopback interface between two processes, each with all its threads pinned to a
//! processor of its own. Every round measures every library at every size, one after another in changing order, and
//! ratios are taken within a round, since a machine's speed drifts by more than libraries differ. The receiver checks
//! the length and the sequence number of each message, and a transfer ends when it has confirmed the last one.
//!
//! Exit status: 0 all delivered, 1 not, 2 bad arguments.
#![forbid(unsafe_code)]

mod job;
mod library;
mod process;
mod table;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};

use crate::job::{Job, Task};
use crate::library::Library;
use crate::table::{Figure, Row, Table};

/// What went wrong.
type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// Compares netio3 over TCP with ZeroMQ, nng, tokio's length-delimited frames, and asio
#[derive(Parser, Debug)]
#[command(name = "netio3-peers", version, disable_help_subcommand = true, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    side: Option<Side>,
    #[command(flatten)]
    comparison: Comparison,
}

/// The two processes of a measurement, which the program starts itself.
#[derive(Subcommand, Debug)]
enum Side {
    /// Receive, or send back
    #[command(hide = true)]
    Serve {
        #[command(flatten)]
        child: Child,
    },
    /// Send, or wait for what comes back
    #[command(hide = true)]
    Drive {
        /// What the other side announced
        #[arg(long)]
        connect: String,
        #[command(flatten)]
        child: Child,
    },
}

#[derive(Args, Debug)]
struct Child {
    library: Library,
    /// The processor to be pinned to
    #[arg(long)]
    cpu: Option<usize>,
    /// The process that started this one, to end with it
    #[arg(long, value_name = "PID")]
    parent: Option<i32>,
    #[command(flatten)]
    job: Job,
}

impl Child {
    /// What comes before a measurement.
    fn prepare(&self) -> Outcome {
        self.parent.map_or(Ok(()), end_with)?;
        pin(self.cpu)
    }
}

#[derive(Args, Debug)]
struct Comparison {
    /// Bytes of the messages that are sent as fast as possible
    #[arg(long, value_name = "BYTES", value_delimiter = ',', value_parser = job::parse_size,
          default_value = "64,256,1024,4096,16384,65536,1048576")]
    sizes: Vec<usize>,
    /// How often to measure everything
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    rounds: u64,
    /// How long each measurement takes
    #[arg(long, value_name = "SECONDS", default_value = "0.4", value_parser = job::parse_seconds)]
    time: Duration,
    /// Print one JSON object as the last line
    #[arg(long)]
    json: bool,
}

/// The sizes at which round trips are measured.
const ROUND_TRIP_SIZES: [usize; 2] = [64, 1_024];

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.side {
        None => compare(&cli.comparison),
        Some(Side::Serve { child: child @ Child { library, job, .. } }) => child.prepare().and_then(|()| library.serve(job)),
        Some(Side::Drive { connect, child: child @ Child { library, job, .. } }) => {
            child.prepare().and_then(|()| process::report(&library.drive(job, connect)?))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("netio3-peers: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Measures everything and prints the table.
fn compare(comparison: &Comparison) -> Outcome {
    let began = Instant::now();
    let job = |task, size| Job { task, size, time: comparison.time };
    let transfers = comparison.sizes.iter().map(|size| job(Task::Transfer, *size));
    let jobs: Vec<Job> = transfers.chain(ROUND_TRIP_SIZES.map(|size| job(Task::RoundTrips, size))).collect();
    let cpus = two_processors();
    let mut table = Table::new(jobs.iter().flat_map(|job| Figure::of(job.task).iter().map(|figure| Row::new(*figure, job.size))));
    for round in 0..comparison.rounds as usize {
        for job in &jobs {
            for turn in 0..Library::ALL.len() {
                let library = Library::ALL[(round + turn) % Library::ALL.len()];
                table.add(library, job.size, &process::measure(library, job, cpus)?);
            }
        }
        eprintln!("round {} of {} after {:.0} s", round + 1, comparison.rounds, began.elapsed().as_secs_f64());
    }
    if cpus.is_none() {
        table.note("there is one processor only, which both sides shared");
    }
    table.print(comparison.json);
    Ok(())
}

/// Two processors that this process may use.
fn two_processors() -> Option<[usize; 2]> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).ok()?;
    let mut allowed = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    Some([allowed.next()?, allowed.next()?])
}

/// Has this process end with the one that started it, unless that has gone already.
fn end_with(parent: i32) -> Outcome {
    set_pdeathsig(Signal::SIGKILL).map_err(|error| format!("cannot ask to end with process {parent}: {error}"))?;
    if getppid().as_raw() == parent { Ok(()) } else { Err(format!("process {parent}, which started this one, has gone").into()) }
}

/// Pins this thread, and those it will start, to a processor.
fn pin(cpu: Option<usize>) -> Outcome {
    let Some(cpu) = cpu else { return Ok(()) };
    let mut set = CpuSet::new();
    let pinned = set.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    pinned.map_err(|error| format!("cannot pin to processor {cpu}: {error}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
