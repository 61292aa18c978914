//! What a run tells in the end: one JSON object, or a few lines.

use std::fmt::{Display, Write as _};
use std::io::{self, Write as _};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use serde::{Deserialize, Serialize};

use crate::args::{Backend, Mode};
use crate::control::Tally;
use crate::failure::Failure;

/// The libfabric provider at work in this process.
static PROVIDER: OnceLock<String> = OnceLock::new();

/// Notes which libfabric provider is at work.
#[cfg(feature = "rdma")]
pub fn set_provider(name: String) {
    PROVIDER.get_or_init(|| name);
}

/// The result of one run; the field names are those of the JSON object, which the tour and `limits` read.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Report {
    /// `recv`, `send`, `echo` or `ping`.
    pub role: String,
    pub backend: Backend,
    /// The libfabric provider, if one is at work.
    pub provider: Option<String>,
    /// How messages were sent; `null` where this side does not know.
    pub mode: Option<Mode>,
    /// Bytes of each message.
    pub size: usize,
    pub connections: u32,
    /// Messages; of `ping` and `echo`, round trips.
    pub messages: u64,
    /// Their bytes, framing excluded.
    pub bytes: u64,
    /// From when everything is connected to the receiver's acknowledgement of the last message.
    pub seconds: f64,
    pub msgs_per_s: f64,
    /// In 10^9 bytes.
    pub gbytes_per_s: f64,
    /// Of `ping`; otherwise `null`.
    pub rtt_us: Option<RoundTrips>,
    /// Of `ping` beside a busy connection: how long a turn of its loop takes at full load, which is the time for
    /// as much bulk as the budget of a turn allows; otherwise `null`.
    pub turn_us: Option<f64>,
    pub cpu_s: CpuTime,
    pub max_rss_kib: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub reordered: u64,
    pub corrupted: u64,
    /// Whether every byte of every message was checked, which either side's `--verify` asks for; of answers, only that of
    /// `ping`. Otherwise only what marks each as the one that it is.
    pub verified: bool,
    /// Sends that were refused for want of room, and repeated.
    pub refused_sends: u64,
    /// What the backend's statistics say of system calls or posts; `null` where no library is at work.
    pub calls: Option<Calls>,
    /// Of several connections sending for some time: the messages of the slowest one, of the mean; otherwise `null`.
    pub slowest: Option<f64>,
    /// Why the run failed; `null` when everything was delivered.
    pub error: Option<String>,
}

/// System calls of TCP, posts and completions of RDMA.
#[derive(Serialize, Deserialize, Clone, Copy, Debug)]
pub struct Calls {
    /// Those that sent something.
    pub writes: u64,
    /// Posts that asked for a completion of their own.
    pub signalled: u64,
    /// Those that brought something.
    pub reads: u64,
}

/// Round-trip times in microseconds.
#[derive(Serialize, Deserialize, Clone, Copy, Debug)]
pub struct RoundTrips {
    pub min: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// Processor time of the process, in seconds.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default)]
pub struct CpuTime {
    pub user: f64,
    pub sys: f64,
}

impl Report {
    /// A report from the counts; processor time and memory are those of the process until now.
    pub fn new(role: &str, backend: Backend, tally: &Tally, time: Duration) -> Self {
        let seconds = time.as_secs_f64();
        let rate = |amount: u64| if seconds > 0.0 { amount as f64 / seconds } else { 0.0 };
        let usage = getrusage(UsageWho::RUSAGE_SELF).ok();
        let in_seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
        Self {
            role: role.to_owned(),
            backend,
            provider: PROVIDER.get().cloned(),
            mode: None,
            size: 0,
            connections: 1,
            messages: tally.messages,
            bytes: tally.bytes,
            seconds,
            msgs_per_s: rate(tally.messages),
            gbytes_per_s: rate(tally.bytes) / 1e9,
            rtt_us: None,
            turn_us: None,
            cpu_s: usage.map_or_else(CpuTime::default, |usage| CpuTime {
                user: in_seconds(usage.user_time()),
                sys: in_seconds(usage.system_time()),
            }),
            max_rss_kib: max_rss_kib(),
            lost: tally.lost,
            duplicated: tally.duplicated,
            reordered: tally.reordered,
            corrupted: tally.corrupted,
            verified: tally.messages > 0 && tally.verified == tally.messages,
            refused_sends: 0,
            calls: None,
            slowest: None,
            error: None,
        }
    }

    /// Says why a connection broke, if one did, and what that has lost.
    pub fn broken_by(&mut self, why: Option<impl Display>) {
        self.error = why.map(|why| format!("{why}: {} messages were not acknowledged", self.lost));
    }

    /// Whether the counts are as they should be; the first that is not, as a failure.
    pub fn verdict(&self) -> Result<(), Failure> {
        if let Some(error) = &self.error {
            return Err(Failure::NotDelivered(error.clone()));
        }
        let Self { lost, duplicated, reordered, corrupted, .. } = self;
        if lost + duplicated + reordered + corrupted > 0 {
            let line = format!("{lost} messages lost, {duplicated} duplicated, {reordered} reordered, {corrupted} corrupted");
            return Err(Failure::NotDelivered(line));
        }
        Ok(())
    }

    /// Prints the report to standard output: as the last line one JSON object, or as text.
    pub fn print(&self, json: bool) {
        show(&if json { serde_json::to_string(self).expect("the report has a JSON form") + "\n" } else { self.text() });
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let mode = self.mode.map(|mode| format!(" ({})", mode.name())).unwrap_or_default();
        let provider = self.provider.as_ref().map(|provider| format!(", provider {provider}")).unwrap_or_default();
        let _ = writeln!(text, "{} over {}{provider}{mode}: {}", self.role, self.backend, plural(self.messages, "message"));
        let _ =
            writeln!(text, "  {} each, {}, {:.3} s", bytes(self.size as u64), plural(self.connections.into(), "connection"), self.seconds);
        let _ = writeln!(text, "  {} messages/s, {:.3} GB/s", metric(self.msgs_per_s), self.gbytes_per_s);
        if let Some(RoundTrips { min, p50, p90, p99, p999, max }) = self.rtt_us {
            let _ =
                writeln!(text, "  round trips: min {min:.1}, p50 {p50:.1}, p90 {p90:.1}, p99 {p99:.1}, p99.9 {p999:.1}, max {max:.1} us");
        }
        if let Some(turn) = self.turn_us {
            let _ = writeln!(text, "  a turn of the loop takes {turn:.1} us at full load");
        }
        if let Some(Calls { writes, signalled, reads }) = self.calls {
            let each = self.messages as f64 / (writes + reads).max(1) as f64;
            let _ = match self.backend {
                Backend::Rdma => {
                    writeln!(text, "  {} ({signalled} signalled), {reads} received: {each:.1} messages each", plural(writes, "post"))
                }
                Backend::Loopback => writeln!(text, "  {} and {reads} reads: {each:.1} messages each", plural(writes, "write")),
                _ => writeln!(text, "  {} to send, {reads} to receive: {each:.1} messages each", plural(writes, "system call")),
            };
        }
        if let Some(slowest) = self.slowest {
            let _ = writeln!(text, "  the slowest connection has {slowest:.2} of the mean");
        }
        let CpuTime { user, sys } = self.cpu_s;
        let _ = writeln!(text, "  processor {user:.2} s user, {sys:.2} s system; memory {} at most", bytes(self.max_rss_kib * 1024));
        let Self { lost, duplicated, reordered, corrupted, .. } = self;
        let corrupted = if self.verified || *corrupted > 0 { corrupted.to_string() } else { "not checked".into() };
        let _ = writeln!(text, "  lost {lost}, duplicated {duplicated}, reordered {reordered}, corrupted {corrupted}");
        text
    }
}

impl Mode {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::ZeroCopy => "zero-copy",
            Self::Copy => "copy",
            Self::Buffered => "buffered",
        }
    }
}

/// The most memory that the process held, from the kernel's account of this very program: the one of
/// `getrusage` includes what the parent held when it started this process.
fn max_rss_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Collects round-trip times.
pub struct RttHistogram {
    times: Histogram<u64>,
    /// The shortest and the longest, in nanoseconds: the histogram has them to a thousandth.
    ends: (u64, u64),
}

impl RttHistogram {
    /// Up to a minute, to a thousandth.
    pub fn new() -> Self {
        let times = Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are fixed and make sense");
        Self { times, ends: (u64::MAX, 0) }
    }

    /// Counts a round trip.
    #[inline]
    pub fn record(&mut self, time: Duration) {
        let time = time.as_nanos() as u64;
        self.ends = (self.ends.0.min(time), self.ends.1.max(time));
        self.times.saturating_record(time);
    }

    /// The summary, if there was any.
    pub fn summary(&self) -> Option<RoundTrips> {
        let us = |nanoseconds: u64| nanoseconds as f64 / 1e3;
        let (min, max) = self.ends;
        let at = |quantile| us(self.times.value_at_quantile(quantile).clamp(min, max));
        (!self.times.is_empty()).then(|| RoundTrips {
            min: us(min),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: us(max),
        })
    }
}

/// A bar that shows how many of so many steps are done, and which one is under way.
pub fn progress(steps: usize) -> ProgressBar {
    let bar = ProgressBar::new(steps as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {percent:>3} %  {msg}") {
        bar.set_style(style);
    }
    bar
}

/// Whether something could not be written to standard output.
static UNWRITTEN: AtomicBool = AtomicBool::new(false);

/// Writes to standard output.
pub fn show(text: &str) {
    let mut out = std::io::stdout().lock();
    written(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}

/// Complains, once, about what could not be written to standard output. Whoever reads it may have gone; the run is not worse
/// for that.
pub fn written(outcome: io::Result<()>) {
    match outcome {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe && !UNWRITTEN.swap(true, Ordering::Relaxed) => {
            complain(format_args!("cannot write to standard output: {error}"));
        }
        _ => {}
    }
}

/// Whether something was lost that way.
pub fn is_unwritten() -> bool {
    UNWRITTEN.load(Ordering::Relaxed)
}

/// Says on standard error what went wrong. If that cannot be written to, the exit status tells.
pub fn complain(what: impl Display) {
    let _ = writeln!(io::stderr(), "netio3-bench: {what}");
}

/// A count with its noun.
pub fn plural(count: u64, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// A number of bytes with a binary unit where it is a round one.
pub fn bytes(count: u64) -> String {
    match count {
        c if c >= 1 << 30 && c % (1 << 30) == 0 => format!("{} GiB", c >> 30),
        c if c >= 1 << 20 && c % (1 << 20) == 0 => format!("{} MiB", c >> 20),
        c if c >= 1 << 10 && c % (1 << 10) == 0 => format!("{} KiB", c >> 10),
        c => format!("{c} B"),
    }
}

/// A rate with a metric prefix.
pub fn metric(rate: f64) -> String {
    match rate {
        r if r >= 1e6 => format!("{:.2} M", r / 1e6),
        r if r >= 1e3 => format!("{:.1} k", r / 1e3),
        r if r >= 10.0 => format!("{r:.0}"),
        r => format!("{r:.2}"),
    }
}

/// The middle one; of an even number, the mean of the two.
pub fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = values.filter(|value| value.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    Some(f64::midpoint(sorted[last / 2], sorted[last.div_ceil(2)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_one_or_the_mean_of_the_two() {
        assert_eq!(median([4.0, 1.0, 2.0, 8.0].into_iter()), Some(3.0));
        assert_eq!(median([4.0, 1.0].into_iter()), Some(2.5));
        assert_eq!(median([3.0, f64::NAN, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([].into_iter()), None);
    }

    #[test]
    fn the_object_has_the_promised_units() {
        let tally = Tally { messages: 10, bytes: 640, ..Default::default() };
        let mut report = Report::new("ping", Backend::RawFabric, &tally, Duration::from_millis(500));
        let mut times = RttHistogram::new();
        times.record(Duration::from_micros(10));
        report.rtt_us = times.summary();
        report.mode = Some(Mode::ZeroCopy);
        let object = serde_json::to_value(&report).unwrap();
        for name in ["min", "p50", "p90", "p99", "p999", "max"] {
            assert_eq!(object["rtt_us"][name], 10.0, "{name}");
        }
        assert_eq!((&object["backend"], &object["mode"]), (&"raw-fabric".into(), &"zero-copy".into()));
        assert_eq!(object["msgs_per_s"], 20.0);
    }

    #[test]
    fn any_wrong_count_fails_the_run() {
        let report = Report::new("recv", Backend::Raw, &Tally { reordered: 1, ..Default::default() }, Duration::ZERO);
        assert_eq!(report.verdict().unwrap_err().status(), 1);
    }
}
