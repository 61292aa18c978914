//! What is measured, against what, and what is asked.

use std::fmt;
use std::time::Duration;

use crate::args::{Backend, Mode};
use crate::peers::{Outcome, Pairing};
use crate::report::{Report, bytes};

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Row {
    pub own: Setup,
    /// What sets the limit, where the figure is no share of anything in itself.
    pub base: Option<Setup>,
    pub figure: Figure,
    /// The ratio that is asked for, if any: of rates at least, of times at most.
    pub asked: Option<f64>,
}

/// A measurement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    pub pairing: Pairing,
    /// Microseconds that a side polls before it sleeps.
    pub spin: u64,
    /// Bare sockets wait in epoll.
    pub epoll: bool,
    /// The processors are kept awake.
    pub awake: bool,
    title: String,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// Messages per second.
    Rate,
    /// The median of round-trip times, in microseconds.
    P50,
    /// What 99 of 100 round trips stay below, in microseconds.
    P99,
    /// Processor time of the sender per 10^9 bytes, in seconds.
    SenderTime,
    /// The same of the receiver.
    ReceiverTime,
    /// Messages of the slowest connection, of the mean.
    Slowest,
    /// What 99 of 100 round trips stay below, in turns of the loop.
    Turns,
}

impl Figure {
    /// Its value in a measurement.
    pub fn of(self, (active, passive): &Outcome) -> Option<f64> {
        let time = |side: &Report| (side.cpu_s.user + side.cpu_s.sys) / side.bytes as f64 * 1e9;
        match self {
            Self::Rate => Some(active.msgs_per_s),
            Self::P50 => active.rtt_us.map(|rtt| rtt.p50),
            Self::P99 => active.rtt_us.map(|rtt| rtt.p99),
            Self::SenderTime => Some(time(active)),
            Self::ReceiverTime => passive.as_ref().map(time),
            Self::Slowest => active.slowest,
            Self::Turns => active.rtt_us.zip(active.turn_us).map(|(rtt, turn)| rtt.p99 / turn),
        }
    }

    /// Whether less is better.
    pub fn is_cost(self) -> bool {
        !matches!(self, Self::Rate | Self::Slowest)
    }

    /// The unit of its values.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Rate => "/s",
            Self::P50 | Self::P99 => "us",
            Self::SenderTime | Self::ReceiverTime => "s/GB",
            Self::Slowest => "",
            Self::Turns => "turns",
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rate => "",
            Self::P50 => ", p50",
            Self::P99 => ", p99",
            Self::SenderTime => ", processor of the sender",
            Self::ReceiverTime => ", processor of the receiver",
            Self::Slowest => ", slowest connection of the mean",
            Self::Turns => ", p99",
        })
    }
}

impl Row {
    /// What it is called.
    pub fn name(&self) -> String {
        format!("{}{}", self.own, self.figure)
    }

    /// Whether a ratio is good enough; `None` where nothing is asked.
    pub fn passes(&self, ratio: f64) -> Option<bool> {
        self.asked.map(|asked| if self.figure.is_cost() { ratio <= asked } else { ratio >= asked })
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}, {}", self.pairing.backend, self.title, bytes(self.pairing.size as u64))
    }
}

/// Round trips of each measurement.
const ROUND_TRIPS: u64 = 5_000;
/// Connections of the measurement of these.
const CONNECTIONS: u64 = 2_000;
/// Longer than any round trip and any time it is stopped, so that a spinning side never sleeps.
const SPIN: u64 = 10_000_000;
const KIB: usize = 1 << 10;

/// All lines, for transfers of this duration.
pub fn rows(time: Duration) -> Vec<Row> {
    let lasting = |time: Duration, backend: Backend, size: usize, title: &str, args: &[&str]| {
        let mut pairing = Pairing::transfer(backend, size, time);
        pairing.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        Setup { pairing, spin: 0, epoll: false, awake: false, title: title.into() }
    };
    let transfer = |backend: Backend, size: usize, title: &str, args: &[&str]| lasting(time, backend, size, title, args);
    let in_mode = |backend: Backend, size: usize, mode: Mode| transfer(backend, size, mode.name(), &["--mode", mode.name()]);
    // Without a mode: the one that is faster at this size.
    let raw = |size: usize| transfer(Backend::Raw, size, "the faster way", &[]);
    let rate = |own: Setup, base: Setup, asked: Option<f64>| Row { own, base: Some(base), figure: Figure::Rate, asked };
    let mut rows = Vec::new();

    for (size, asked) in [(64, 0.85), (256, 0.95), (KIB, 0.95), (4 * KIB, 0.95)] {
        rows.push(rate(in_mode(Backend::Tcp, size, Mode::Copy), raw(size), Some(asked)));
    }
    let in_batches = |size: usize, title: &str, args: &[&str]| {
        transfer(Backend::Tcp, size, &format!("{title}in batches of 64"), &[args, &["--mode", "copy", "--batch", "64"]].concat())
    };
    for (size, asked) in [(64, 0.85), (256, 0.95), (KIB, 0.95)] {
        rows.push(rate(in_batches(size, "copy ", &[]), raw(size), Some(asked)));
    }
    for (size, asked) in [(64, 0.60), (KIB, 0.90), (16 * KIB, 0.97), (64 * KIB, 0.97), (KIB * KIB, 0.97)] {
        rows.push(rate(in_mode(Backend::Tcp, size, Mode::ZeroCopy), raw(size), Some(asked)));
    }
    // What libraries are compared with that always spin.
    let spinning = |backend| Setup { spin: SPIN, ..transfer(backend, KIB * KIB, "zero-copy, spinning", &["--mode", "zero-copy"]) };
    rows.push(rate(spinning(Backend::Tcp), spinning(Backend::Raw), Some(0.97)));
    // Bare sockets fill their buffer, too.
    rows.push(rate(in_mode(Backend::Tcp, 16 * KIB, Mode::Buffered), in_mode(Backend::Raw, 16 * KIB, Mode::Copy), Some(0.97)));
    let pieces = ["--header", "16", "--iov", "4"];
    let in_pieces = |backend: Backend| transfer(backend, KIB, "header of 16 B and 4 pieces", &pieces);
    rows.push(rate(in_pieces(Backend::Tcp), in_pieces(Backend::Raw), Some(0.85)));
    // It takes a while until the windows of so many have grown.
    for (connections, time) in [("64", time), ("1024", 5 * time)] {
        let title = format!("{connections} connections (of one)");
        let of = |title: &str, connections: &str| {
            lasting(time, Backend::Tcp, KIB, title, &["--mode", "zero-copy", "--connections", connections])
        };
        let own = of(&title, connections);
        rows.push(rate(own.clone(), of("zero-copy", "1"), Some(0.90)));
        rows.push(Row { own, base: None, figure: Figure::Slowest, asked: Some(0.8) });
    }
    let idle = ["--mode", "zero-copy", "--connections", "64", "--idle", "10000"];
    let beside_idle = transfer(Backend::Tcp, KIB, "64 connections beside 10000 idle ones (of 64 alone)", &idle);
    let alone = transfer(Backend::Tcp, KIB, "64 connections (of one)", &idle[..4]);
    rows.push(rate(beside_idle, alone, Some(0.90)));
    let from_threads = |size: usize, mode: Mode, threads: &str, title: &str| {
        transfer(Backend::Tcp, size, title, &["--mode", mode.name(), "--threads", "--connections", threads])
    };
    for (size, mode, asked) in [(64, Mode::Copy, 0.55), (KIB, Mode::ZeroCopy, 0.90)] {
        let one = from_threads(size, mode, "1", "from another thread");
        rows.push(rate(one.clone(), raw(size), Some(asked)));
        rows.push(rate(from_threads(size, mode, "4", "from four threads (of one)"), one, Some(0.90)));
        let threads = ["--threads", "--connections", "1"];
        rows.push(rate(in_batches(size, "from another thread ", &threads), raw(size), Some(asked)));
    }
    for (size, mode, asked) in [(64, Mode::Copy, 1.15), (64 * KIB, Mode::ZeroCopy, 1.05)] {
        for figure in [Figure::SenderTime, Figure::ReceiverTime] {
            rows.push(Row { own: in_mode(Backend::Tcp, size, mode), base: Some(raw(size)), figure, asked: Some(asked) });
        }
    }
    let figure = Figure::SenderTime;
    rows.push(Row { own: in_batches(64, "copy ", &[]), base: Some(raw(64)), figure, asked: Some(1.15) });
    for (spin, title) in [(0, "round trip sleeping"), (SPIN, "round trip spinning")] {
        for size in [64, KIB, 64 * KIB] {
            let asked = if spin > 0 || size == 64 * KIB { 1.10 } else { 1.05 };
            rows.extend(round_trips(Backend::Tcp, Backend::Raw, size, spin, title, asked));
        }
    }
    // What any event loop adds, whatever it is used by.
    let in_epoll = |own: Setup| Setup { epoll: true, title: format!("{} in epoll", own.title), ..own };
    for row in round_trips(Backend::Raw, Backend::Raw, 64, 0, "round trip sleeping", 1.0) {
        rows.push(Row { own: in_epoll(row.own), asked: None, ..row });
    }
    for size in [64, 64 * KIB] {
        rows.push(Row { own: in_epoll(raw(size)), base: Some(raw(size)), figure: Figure::ReceiverTime, asked: None });
    }
    let connections = |backend: Backend| {
        let mut pairing = Pairing::round_trips(backend, 64, CONNECTIONS);
        pairing.args.push("--reconnect".into());
        Setup { pairing, spin: 0, epoll: false, awake: false, title: "connections opened, used once and closed".into() }
    };
    rows.push(rate(connections(Backend::Tcp), connections(Backend::Raw), None));
    // Each takes a few turns of both loops.
    let mut beside = Pairing::round_trips(Backend::Tcp, 64, ROUND_TRIPS / 5);
    beside.args.extend(["--beside", "65536"].map(str::to_owned));
    let own = Setup { pairing: beside, spin: 0, epoll: false, awake: false, title: "round trip beside bulk of the same loop".into() };
    rows.push(Row { own, base: None, figure: Figure::Turns, asked: Some(3.0) });

    for size in [64, KIB, 16 * KIB, 64 * KIB, KIB * KIB] {
        for mode in [Mode::ZeroCopy, Mode::Copy, Mode::Buffered] {
            // One post for each message; where copying takes its time, with a copy of each where netio3 or its user
            // makes one.
            let base = if size < 64 * KIB { Mode::ZeroCopy } else { mode };
            let base = in_mode(Backend::RawFabric, size, base);
            rows.push(rate(in_mode(Backend::Rdma, size, mode), base, Some(0.95)));
        }
    }
    for (spin, title) in [(0, "round trip sleeping"), (SPIN, "round trip spinning")] {
        rows.extend(round_trips(Backend::Rdma, Backend::RawFabric, 64, spin, title, 1.05).into_iter().take(1));
    }
    rows
}

/// The median and the tail of round trips.
fn round_trips(own: Backend, base: Backend, size: usize, spin: u64, title: &str, asked: f64) -> [Row; 2] {
    // Spinning ones take a fraction of the time.
    let count = if spin > 0 { 4 * ROUND_TRIPS } else { ROUND_TRIPS };
    let setup =
        |backend| Setup { pairing: Pairing::round_trips(backend, size, count), spin, epoll: false, awake: spin == 0, title: title.into() };
    [Figure::P50, Figure::P99].map(|figure| Row { own: setup(own), base: Some(setup(base)), figure, asked: Some(asked) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_rows_have_the_same_name() {
        let mut names: Vec<String> = rows(Duration::from_secs(1)).iter().map(Row::name).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn no_row_counts_as_stuck_while_it_takes_its_time() {
        let rows = rows(Duration::from_secs(120));
        let setups = || rows.iter().flat_map(|row| row.base.iter().chain([&row.own]));
        let duration = |setup: &Setup| {
            let at = setup.pairing.args.iter().position(|arg| arg == "--duration")?;
            Some(Duration::from_secs_f64(setup.pairing.args[at + 1].parse().unwrap()))
        };
        assert!(setups().filter_map(duration).max() >= Some(Duration::from_secs(600)));
        for setup in setups() {
            let patience = Duration::from_secs(30);
            assert_eq!(setup.pairing.limit(patience), duration(setup).unwrap_or_default() + patience, "{setup}");
        }
    }

    #[test]
    fn rates_are_asked_to_be_high_and_times_to_be_low() {
        let rows = rows(Duration::from_secs(1));
        let with = |figure| rows.iter().find(|row| row.figure == figure).unwrap();
        assert_eq!((with(Figure::Rate).passes(1.0), with(Figure::Rate).passes(0.1)), (Some(true), Some(false)));
        assert_eq!((with(Figure::P50).passes(1.0), with(Figure::P50).passes(2.0)), (Some(true), Some(false)));
    }
}
