//! What the tour found, and how it is shown.

use serde::Serialize;

use crate::args::Backend;
use crate::report::{Report, bytes, median, metric, show};
use crate::tour::Quantity;

/// What the tour found.
pub struct Findings {
    pub rows: Vec<Row>,
    pub seconds: f64,
    pub error: Option<String>,
    /// Backends that cannot be used here, and why.
    pub left_out: Vec<String>,
    backends: Vec<Backend>,
}

/// One quantity, measured over the baseline and over each backend.
pub struct Row {
    quantity: Quantity,
    /// One entry per backend, the baseline first; in each, one measurement per round.
    cells: Vec<(Backend, Vec<Report>)>,
}

/// The summary of all rounds of one quantity over one backend; the field names are those of the JSON object.
#[derive(Serialize, Clone, Copy, Debug)]
struct Summary {
    backend: Backend,
    size: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    msgs_per_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gbytes_per_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p50_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p99_us: Option<f64>,
    /// Of the baseline: rates as quotients, times as inverse quotients, so that 1 is as good as bare.
    share_of_raw: f64,
    /// What sets its limit: bare sockets, or bare libfabric calls.
    baseline: Backend,
    /// As `share_of_raw`, of that.
    share_of_baseline: f64,
    rounds: usize,
}

/// The JSON object of the tour.
#[derive(Serialize, Debug)]
struct Object<'a> {
    role: &'static str,
    throughput: Vec<Summary>,
    round_trips: Vec<Summary>,
    messages: u64,
    /// Whether every byte of them was checked.
    verified: bool,
    seconds: f64,
    left_out: &'a [String],
    error: Option<&'a str>,
}

impl Findings {
    /// An empty table.
    pub fn new(quantities: &[Quantity], backends: &[Backend]) -> Self {
        let all: Vec<Backend> = std::iter::once(Backend::Raw).chain(backends.iter().copied()).collect();
        let row = |quantity: &Quantity| Row { quantity: *quantity, cells: all.iter().map(|backend| (*backend, Vec::new())).collect() };
        Self { rows: quantities.iter().map(row).collect(), seconds: 0.0, error: None, left_out: Vec::new(), backends: all }
    }

    /// Every measurement.
    fn all(&self) -> impl Iterator<Item = &Report> {
        self.rows.iter().flat_map(|row| &row.cells).flat_map(|(_, measured)| measured)
    }

    fn messages(&self) -> u64 {
        self.all().map(|measured| measured.messages).sum()
    }

    /// Prints the table, and the object as the last line if asked for.
    pub fn print(&self, json: bool) {
        let summaries = self.rows.iter().flat_map(Row::summaries);
        let (throughput, round_trips): (Vec<_>, Vec<_>) = summaries.partition(|summary| summary.msgs_per_s.is_some());
        let messages = self.messages();
        let verified = messages > 0 && self.all().all(|measured| measured.verified);
        let mut text = String::from(
            "between two processes on this machine (loopback: within one); % is the share of the machine's limit,\n\
             which is what bare sockets reach (for rdma: bare libfabric calls), measured in turns; it is the median of the\n\
             rounds' own shares, the rates are medians by themselves\n\n",
        );
        for over_libfabric in [false, true] {
            let columns: Vec<Backend> =
                self.backends.iter().copied().filter(|backend| backend.is_of_libfabric() == over_libfabric).collect();
            if columns.is_empty() {
                continue;
            }
            text += &block("throughput", &columns, &throughput, |summary| {
                let gbytes = summary.gbytes_per_s.unwrap_or_default();
                format!("{:>9}/s {gbytes:>7.3} GB/s", metric(summary.msgs_per_s.unwrap_or_default()))
            });
            text += &block("round trip", &columns, &round_trips, |summary| {
                let us = |time: Option<f64>| time.unwrap_or_default();
                format!("p50 {:>6.1}, p99 {:>6.1} us", us(summary.p50_us), us(summary.p99_us))
            });
        }
        self.left_out.iter().for_each(|line| text += &format!("{line}\n"));
        if self.error.is_none() {
            let checked = if verified { "every byte checked" } else { "their bytes not checked (--verify does)" };
            text += &format!("{messages} messages in {:.1} s, all delivered once and in order, {checked}\n", self.seconds);
        }
        if json {
            let error = self.error.as_deref();
            let Self { seconds, left_out, .. } = self;
            let object = Object { role: "tour", throughput, round_trips, messages, verified, seconds: *seconds, left_out, error };
            text += &(serde_json::to_string(&object).expect("the findings have a JSON form") + "\n");
        }
        show(&text);
    }
}

/// A line per size, a column per backend.
fn block(title: &str, backends: &[Backend], summaries: &[Summary], cell: impl Fn(&Summary) -> String) -> String {
    let columns = backends.iter().map(|backend| format!("{:<34}", column(*backend)));
    let mut text = format!("{title:<12}{}", columns.collect::<String>());
    let mut size = None;
    for summary in summaries.iter().filter(|summary| backends.contains(&summary.backend)) {
        if size.replace(summary.size) != Some(summary.size) {
            text += &format!("\n{:<12}", bytes(summary.size as u64));
        }
        let share = match summary.backend {
            Backend::Raw => String::new(),
            // Within a process there is no socket that would set the limit.
            _ if summary.share_of_baseline >= 1.995 => format!(" {:>4.1} x", summary.share_of_baseline),
            _ => format!(" {:>4.0} %", summary.share_of_baseline * 100.0),
        };
        text += &format!("{:<34}", cell(summary) + &share);
    }
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n") + "\n\n"
}

fn column(backend: Backend) -> String {
    match backend {
        Backend::Raw => "bare sockets".into(),
        Backend::RawFabric => "bare libfabric (% of sockets)".into(),
        _ => backend.to_string(),
    }
}

impl Row {
    /// Adds the measurement of a round.
    pub fn add(&mut self, backend: Backend, measured: Report) {
        let cell = self.cells.iter_mut().find(|(owner, _)| *owner == backend);
        cell.expect("the row has every backend of the tour").1.push(measured);
    }

    fn summaries(&self) -> Vec<Summary> {
        let of = |wanted: Backend| self.cells.iter().find(|(backend, _)| *backend == wanted).map(|(_, measured)| measured);
        let (size, rate_counts) = match self.quantity {
            Quantity::Throughput(size) => (size, true),
            Quantity::RoundTrips(size) => (size, false),
        };
        let summary = |(backend, measured): &(Backend, Vec<Report>)| {
            let over = |value: fn(&Report) -> Option<f64>| median(measured.iter().filter_map(value));
            let rate = |value: fn(&Report) -> Option<f64>| over(value).filter(|_| rate_counts);
            let share = |bare: &[Report]| {
                median(measured.iter().zip(bare).filter_map(|(own, bare)| match (own.rtt_us, bare.rtt_us) {
                    (Some(own), Some(bare)) => Some(bare.p50 / own.p50),
                    (None, None) => Some(own.msgs_per_s / bare.msgs_per_s),
                    _ => None,
                }))
            };
            let share_of_raw = share(of(Backend::Raw)?)?;
            let baseline = if *backend == Backend::Rdma && of(Backend::RawFabric).is_some() { Backend::RawFabric } else { Backend::Raw };
            let share_of_baseline = share(of(baseline)?)?;
            Some(Summary {
                backend: *backend,
                size,
                msgs_per_s: rate(|measured| Some(measured.msgs_per_s)),
                gbytes_per_s: rate(|measured| Some(measured.gbytes_per_s)),
                p50_us: over(|measured| measured.rtt_us.map(|rtt| rtt.p50)),
                p99_us: over(|measured| measured.rtt_us.map(|rtt| rtt.p99)),
                share_of_raw,
                baseline,
                share_of_baseline,
                rounds: measured.len(),
            })
        };
        self.cells.iter().filter_map(summary).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::control::Tally;

    #[test]
    fn shares_are_taken_within_a_round() {
        let mut findings = Findings::new(&[Quantity::Throughput(64)], &[Backend::Tcp]);
        // The machine becomes ten times slower from round to round; the share stays.
        for factor in [1.0, 0.1, 0.01] {
            let tally = Tally { messages: 1, bytes: 64, ..Default::default() };
            let measured = |rate: f64| Report { msgs_per_s: rate, ..Report::new("send", Backend::Raw, &tally, Duration::ZERO) };
            findings.rows[0].add(Backend::Raw, measured(100.0 * factor));
            findings.rows[0].add(Backend::Tcp, measured(80.0 * factor));
        }
        let summaries = findings.rows[0].summaries();
        assert_eq!(summaries.len(), 2);
        assert!((summaries[1].share_of_raw - 0.8).abs() < 1e-9);
        assert_eq!((summaries[1].msgs_per_s, findings.messages()), (Some(8.0), 6));
    }
}
