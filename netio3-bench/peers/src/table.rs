//! What was found, and how it is shown.

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::job::{Measured, Task};
use crate::library::Library;

/// A quantity.
#[derive(Serialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Figure {
    /// Messages per second.
    Rate,
    /// The median of the round trips, in microseconds.
    P50,
    /// What 99 of 100 round trips take at most, in microseconds.
    P99,
}

impl Figure {
    /// What a task gives.
    pub fn of(task: Task) -> &'static [Self] {
        match task {
            Task::Transfer => &[Self::Rate],
            Task::RoundTrips => &[Self::P50, Self::P99],
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Rate => "messages/s",
            Self::P50 | Self::P99 => "us",
        }
    }

    fn value(self, measured: &Measured) -> Option<f64> {
        match (self, *measured) {
            (Self::Rate, Measured::Transfer { messages, seconds }) => Some(messages as f64 / seconds),
            (Self::P50, Measured::RoundTrips { p50_us, .. }) => Some(p50_us),
            (Self::P99, Measured::RoundTrips { p99_us, .. }) => Some(p99_us),
            _ => None,
        }
    }
}

/// A figure at a size, of each library round by round.
#[derive(Debug)]
pub struct Row {
    figure: Figure,
    size: usize,
    rounds: [Vec<f64>; Library::ALL.len()],
}

/// netio3 in relation to another library, within each round.
#[derive(Serialize, Clone, Copy, Debug, PartialEq)]
struct Ratio {
    median: f64,
    least: f64,
    greatest: f64,
}

impl Row {
    pub fn new(figure: Figure, size: usize) -> Self {
        Self { figure, size, rounds: Default::default() }
    }

    fn name(&self) -> String {
        let size = bytes(self.size);
        match self.figure {
            Figure::Rate => size,
            Figure::P50 => format!("round trip, {size}, p50"),
            Figure::P99 => format!("round trip, {size}, p99"),
        }
    }

    fn of(&self, library: Library) -> &[f64] {
        &self.rounds[library as usize]
    }

    fn ratio(&self, peer: Library) -> Ratio {
        let own = self.of(Library::Netio3).iter();
        let ratios: Vec<f64> = own.zip(self.of(peer)).map(|(own, peer)| own / peer).collect();
        let (least, greatest) =
            ratios.iter().fold((f64::INFINITY, 0.0), |(least, greatest), ratio| (ratio.min(least), ratio.max(greatest)));
        Ratio { median: median(&ratios), least, greatest }
    }

    fn object(&self) -> Value {
        let libraries = Library::ALL.map(|library| {
            let rounds = self.of(library);
            (library.name().to_owned(), json!({ "median": median(rounds), "rounds": rounds }))
        });
        let ratios = peers().map(|peer| (peer.name().to_owned(), json!(self.ratio(peer))));
        json!({
            "figure": self.figure,
            "size": self.size,
            "unit": self.figure.unit(),
            "libraries": Map::from_iter(libraries),
            "netio3_to": Map::from_iter(ratios),
        })
    }
}

/// Everything that was found.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Row>,
    notes: Vec<String>,
}

impl Table {
    /// A table to be filled.
    pub fn new(rows: impl Iterator<Item = Row>) -> Self {
        let meaning = "ratios are netio3 to the other, within a round: above 1 netio3 sends more, of round trips below 1 it is faster";
        let usages = Library::ALL.map(|library| format!("{}: {}", library.name(), library.usage()));
        let notes = [meaning.to_owned()].into_iter().chain(usages).collect();
        Self { rows: rows.collect(), notes }
    }

    /// Adds what a library reached in a round.
    pub fn add(&mut self, library: Library, size: usize, measured: &Measured) {
        for row in self.rows.iter_mut().filter(|row| row.size == size) {
            row.rounds[library as usize].extend(row.figure.value(measured));
        }
    }

    /// Says something below the table.
    pub fn note(&mut self, note: &str) {
        self.notes.push(note.to_owned());
    }

    /// Prints the table, and the object as the last line if asked for.
    pub fn print(&self, json: bool) {
        let mut text = format!("{:<26}{:>14}", "median over the rounds", Library::Netio3.name());
        peers().for_each(|peer| text += &format!("{:>14}  {:<22}", peer.name(), "ratio [spread]"));
        for row in &self.rows {
            let value = |library| value(row.figure, median(row.of(library)));
            text = format!("{}\n{:<26}{:>14}", text.trim_end(), row.name(), value(Library::Netio3));
            for peer in peers() {
                let Ratio { median, least, greatest } = row.ratio(peer);
                let ratio = format!("{median:.2} [{least:.2}..{greatest:.2}]");
                text += &format!("{:>14}  {ratio:<22}", value(peer));
            }
        }
        println!("{}", text.trim_end());
        self.notes.iter().for_each(|note| println!("{note}"));
        if json {
            let rows: Vec<Value> = self.rows.iter().map(Row::object).collect();
            println!("{}", json!({ "rows": rows, "notes": self.notes }));
        }
    }
}

/// The libraries that netio3 is compared with.
fn peers() -> impl Iterator<Item = Library> {
    Library::ALL.into_iter().filter(|library| *library != Library::Netio3)
}

/// The middle one; of an even number, the lower of the two.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

fn value(figure: Figure, value: f64) -> String {
    match (figure, value) {
        (Figure::P50 | Figure::P99, us) => format!("{us:.1} us"),
        (Figure::Rate, rate) if rate >= 1e6 => format!("{:.2} M/s", rate / 1e6),
        (Figure::Rate, rate) if rate >= 1e3 => format!("{:.1} k/s", rate / 1e3),
        (Figure::Rate, rate) => format!("{rate:.0} /s"),
    }
}

fn bytes(count: usize) -> String {
    match count {
        c if c >= 1 << 20 && c.is_multiple_of(1 << 20) => format!("{} MiB", c >> 20),
        c if c >= 1 << 10 && c.is_multiple_of(1 << 10) => format!("{} KiB", c >> 10),
        c => format!("{c} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_within_a_round() {
        let mut table = Table::new([Row::new(Figure::Rate, 64), Row::new(Figure::P50, 64)].into_iter());
        // The machine becomes ten times slower from round to round; the ratio stays.
        for seconds in [1.0, 10.0, 100.0] {
            table.add(Library::Netio3, 64, &Measured::Transfer { messages: 3_000, seconds });
            table.add(Library::Tokio, 64, &Measured::Transfer { messages: 1_000, seconds });
        }
        let Ratio { median, least, greatest } = table.rows[0].ratio(Library::Tokio);
        assert!([median, least, greatest].iter().all(|ratio| (ratio - 3.0).abs() < 1e-9));
        assert_eq!(table.rows[0].of(Library::Netio3), [3_000.0, 300.0, 30.0]);
        assert!(table.rows[1].of(Library::Netio3).is_empty());
    }
}
