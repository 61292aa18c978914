//! The command line.

use std::fmt;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use netio3::NetworkType;
use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::LevelFilter;

/// Measures netio3 between two processes and checks that every message arrived.
///
/// Without a command: a tour of this machine in under 30 seconds.
#[derive(Parser, Debug)]
#[command(name = "netio3-bench", version, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do; nothing is the tour.
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub common: Common,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Receive and verify what `send` sends; prints `listening on ADDR` when ready
    Recv(RecvArgs),
    /// Send messages as fast as the receiver takes them
    Send(SendArgs),
    /// Send back what `ping` sends; prints `listening on ADDR` when ready
    Echo(EchoArgs),
    /// Measure round trips to an `echo`
    Ping(PingArgs),
    /// Tell which backends can be used here, and what is missing
    Info,
    /// Measure what netio3 reaches of the machine's limits, which are what bare sockets and bare libfabric calls reach
    Limits(LimitsArgs),
    /// Keep a processor from sleeping; `limits` starts it
    #[command(hide = true)]
    StayAwake,
}

/// What every command takes.
#[derive(Args, Clone, Debug)]
pub struct Common {
    /// Through what to send; `raw` and `raw-fabric` are baselines without any library [default: tcp]
    #[arg(long, value_enum, global = true, value_name = "NAME")]
    pub backend: Option<Backend>,
    /// The libfabric provider; with `--backend rdma` or `raw-fabric`
    #[arg(long, global = true, value_name = "NAME")]
    pub provider: Option<String>,
    /// Poll for this long before sleeping
    #[arg(long, global = true, value_name = "MICROSECONDS", default_value_t = 0)]
    pub spin: u64,
    /// Bare sockets wait in epoll for what they read, as an event loop has to, not in the read itself
    #[arg(long, global = true)]
    pub epoll: bool,
    /// Pin this process to a processor; not of the tour, `limits` and `info`
    #[arg(long, global = true, value_name = "N")]
    pub cpu: Option<usize>,
    /// Check every byte, not just order and count
    #[arg(long, global = true)]
    pub verify: bool,
    /// Print one JSON object as the last line
    #[arg(long, global = true)]
    pub json: bool,
    /// What of the library's log goes to standard error: off, error, warn, info, debug or trace
    #[arg(long, global = true, value_name = "LEVEL", default_value = "warn")]
    pub log: LevelFilter,
    /// Stop when everything is connected, until SIGCONT comes; `limits` says so
    #[arg(long, global = true, hide = true)]
    pub held: bool,
    /// End with the process of this number, which started this one; the tour and `limits` say so
    #[arg(long, global = true, hide = true, value_name = "PID")]
    pub parent: Option<i32>,
}

impl Common {
    /// The backend to use.
    pub fn backend(&self) -> Backend {
        self.backend.unwrap_or(Backend::Tcp)
    }

    /// How long to poll before sleeping.
    pub fn spin(&self) -> Duration {
        Duration::from_micros(self.spin)
    }
}

/// Options of `recv`.
#[derive(Args, Clone, Debug)]
pub struct RecvArgs {
    /// Where to listen; port 0 picks one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub listen: String,
    /// End when this many senders said goodbye; further ones are refused
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub senders: u64,
    /// Stay after the senders' goodbyes
    #[arg(long)]
    pub forever: bool,
}

/// Options of `send`.
#[derive(Args, Clone, Debug)]
pub struct SendArgs {
    /// Where a `recv` listens
    #[arg(long, value_name = "ADDR")]
    pub connect: Option<String>,
    /// Bytes of each message, header included (K, M, KiB, MiB … may follow)
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    pub size: usize,
    #[command(flatten)]
    pub amount: Amount,
    /// Which family of calls to send with [default: zero-copy; of raw: the faster one at this size]
    #[arg(long, value_enum)]
    pub mode: Option<Mode>,
    /// Connections to send over, in turns
    #[arg(long, value_name = "C", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub connections: u32,
    /// Connections beside them that are open and send nothing
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=60_000))]
    pub idle: u32,
    /// Send from a thread of its own for each connection, while the main one runs the loop
    #[arg(long, conflicts_with = "idle")]
    pub threads: bool,
    /// How much of each message goes as its header [default: 8, where the sequence number is]
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    pub header: Option<usize>,
    /// Pieces that the rest of each message is handed over in
    #[arg(long, value_name = "PIECES", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    pub iov: u64,
    /// Messages handed over in one call (`send_copy_batch`), each of one piece; with --mode copy
    #[arg(long, value_name = "MESSAGES", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=MOST_IN_BATCH as u64))]
    pub batch: u64,
}

/// The most messages that are handed over in one call.
pub const MOST_IN_BATCH: usize = 256;

/// Options of `limits`.
#[derive(Args, Clone, Debug)]
pub struct LimitsArgs {
    /// Measure only what has this in its name, for example `round trip` or `rdma`
    #[arg(value_name = "PART")]
    pub only: Option<String>,
    /// How often to measure everything
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    pub rounds: u64,
    /// How long a transfer takes, up to 60 s; one over many connections takes up to ten times as long
    #[arg(long, value_name = "SECONDS", default_value = "0.4", value_parser = parse_up_to_a_minute)]
    pub time: Duration,
}

/// How much to send.
#[derive(Args, Clone, Copy, Debug)]
#[group(required = true, multiple = false)]
pub struct Amount {
    /// Messages to send in all
    #[arg(long, value_name = "N")]
    pub messages: Option<u64>,
    /// Time to send for
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub duration: Option<Duration>,
}

/// Options of `echo`.
#[derive(Args, Clone, Debug)]
pub struct EchoArgs {
    /// Where to listen; port 0 picks one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub listen: String,
    /// Stay after the client's goodbye
    #[arg(long)]
    pub forever: bool,
}

/// Options of `ping`.
#[derive(Args, Clone, Debug)]
pub struct PingArgs {
    /// Where an `echo` listens
    #[arg(long, value_name = "ADDR")]
    pub connect: Option<String>,
    /// Bytes of each message (K, M, KiB, MiB … may follow)
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    pub size: usize,
    /// Round trips
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: u64,
    /// Messages in flight
    #[arg(long, value_name = "W", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub window: u64,
    /// Keep a second connection of the same loop busy with messages of so many bytes
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    pub beside: Option<usize>,
    /// Open a connection for each round trip, and close it, all of which counts as its time
    #[arg(long, conflicts_with_all = ["beside", "window"])]
    pub reconnect: bool,
}

/// Through what messages go.
#[derive(ValueEnum, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// netio3 over TCP
    Tcp,
    /// netio3 over RDMA
    Rdma,
    /// netio3 within one process
    Loopback,
    /// Bare sockets
    Raw,
    /// Bare libfabric calls
    RawFabric,
}

impl Backend {
    /// The network of the library that it is, or whose libfabric it needs; bare sockets need nothing.
    pub fn network(self) -> Option<NetworkType> {
        match self {
            Self::Tcp => Some(NetworkType::Tcp),
            Self::Rdma | Self::RawFabric => Some(NetworkType::Rdma),
            Self::Loopback => Some(NetworkType::Loopback),
            Self::Raw => None,
        }
    }

    /// Whether libfabric is at work.
    pub fn is_of_libfabric(self) -> bool {
        matches!(self, Self::Rdma | Self::RawFabric)
    }
}

/// The name on the command line.
impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.to_possible_value().expect("every one can be chosen").get_name())
    }
}

/// Which family of calls to send with.
#[derive(ValueEnum, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// From the caller's memory (`send_data`); raw: gathered writes
    ZeroCopy,
    /// Taken before the call returns (`send_data_copy`); raw: copied into batches
    Copy,
    /// In the connection's buffers (`send_buffer`); raw: as `copy`
    Buffered,
}

/// The largest message that the program deals with.
pub const MAX_SIZE: usize = 1 << 30;

const NO_SIZE: &str = "not a number of bytes, such as 64, 16KiB or 1MiB, of at most 1 GiB";

fn parse_size(text: &str) -> Result<usize, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match text[digits.len()..].trim() {
        "" | "B" => 1,
        "K" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "KB" | "kB" => 1_000,
        "MB" => 1_000_000,
        _ => return Err(NO_SIZE.into()),
    };
    let count: usize = digits.parse().map_err(|_| NO_SIZE)?;
    count.checked_mul(unit).filter(|size| *size <= MAX_SIZE).ok_or_else(|| "at most 1 GiB".into())
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds")?;
    if seconds > f64::from(i32::MAX) {
        return Err(format!("at most {}", i32::MAX));
    }
    Duration::try_from_secs_f64(seconds).ok().filter(|time| *time > Duration::ZERO).ok_or_else(|| "must be a time above 0".into())
}

fn parse_up_to_a_minute(text: &str) -> Result<Duration, String> {
    let time = parse_seconds(text)?;
    if time <= Duration::from_secs(60) { Ok(time) } else { Err("at most 60".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("0"), Ok(0));
        assert_eq!(parse_size("64KiB"), Ok(65_536));
        assert_eq!(parse_size("1M"), Ok(1 << 20));
        for text in ["", "x", "-1", "1.5K", "2G", "99999999999999999999", "1 furlong"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_of_rows_are_up_to_a_minute() {
        assert_eq!(parse_up_to_a_minute("60"), Ok(Duration::from_secs(60)));
        for text in ["60.1", "3600", "0", "1e300", "-1"] {
            assert!(parse_up_to_a_minute(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_are_positive() {
        assert_eq!(parse_seconds("0.25"), Ok(Duration::from_millis(250)));
        for text in ["0", "-1", "nan", "inf", "", "1e300"] {
            assert!(parse_seconds(text).is_err(), "{text}");
        }
    }
}
