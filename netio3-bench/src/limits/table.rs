//! What was found, and how it is shown.

use serde::Serialize;

use crate::limits::rows::{Figure, Row};
use crate::report::{median, metric, show};

/// What was measured of one row, round by round.
#[derive(Default, Debug)]
pub struct Ratios {
    own: Vec<f64>,
    base: Vec<f64>,
}

impl Ratios {
    /// Adds a round, if both sides have the figure.
    pub fn add(&mut self, own: Option<f64>, base: Option<f64>) {
        if let (Some(own), Some(base)) = (own, base) {
            self.own.push(own);
            self.base.push(base);
        }
    }

    fn each(&self) -> impl Iterator<Item = f64> {
        self.own.iter().zip(&self.base).map(|(own, base)| own / base)
    }
}

/// Everything that was found.
pub struct Findings {
    pub rows: Vec<Row>,
    pub ratios: Vec<Ratios>,
    pub notes: Vec<String>,
    pub seconds: f64,
}

/// A row of the JSON object.
#[derive(Serialize, Debug)]
struct Line {
    name: String,
    unit: &'static str,
    /// Medians over the rounds.
    base: f64,
    own: f64,
    /// The median of the rounds' ratios, the least and the greatest.
    ratio: f64,
    least: f64,
    greatest: f64,
    /// At least this, of times at most; `null` where nothing is asked.
    asked: Option<f64>,
    pass: Option<bool>,
    rounds: usize,
}

#[derive(Serialize, Debug)]
struct Object<'a> {
    role: &'static str,
    rows: &'a [Line],
    notes: &'a [String],
    seconds: f64,
}

impl Findings {
    /// Prints the table, and the object as the last line if asked for.
    pub fn print(&self, json: bool) {
        let lines: Vec<Line> = self.rows.iter().zip(&self.ratios).filter_map(|(row, ratios)| line(row, ratios)).collect();
        let mut text = format!("{:<58}{:>15}{:>15}  {:<22}asked\n", "median over the rounds", "bare", "netio3", "ratio [spread]");
        for line in &lines {
            let value =
                |value: f64| if line.unit == Figure::Rate.unit() { metric(value) + line.unit } else { format!("{value:.2} {}", line.unit) };
            let digits = if line.greatest < 10.0 { 2 } else { 0 };
            let ratio = format!("{:.digits$} [{:.digits$}..{:.digits$}]", line.ratio, line.least, line.greatest);
            let asked = line.asked.map_or(String::new(), |asked| format!("{asked:.2} "));
            let verdict = line.pass.map_or("", |pass| if pass { "ok" } else { "SHORT" });
            text += &format!("{:<58}{:>15}{:>15}  {ratio:<22}{asked}{verdict}\n", line.name, value(line.base), value(line.own));
        }
        let asked: Vec<bool> = lines.iter().filter_map(|line| line.pass).collect();
        let held = asked.iter().filter(|pass| **pass).count();
        self.notes.iter().for_each(|note| text += &format!("{note}\n"));
        text += &format!("{} of {} as asked, {:.0} s\n", held, asked.len(), self.seconds);
        if json {
            let object = Object { role: "limits", rows: &lines, notes: &self.notes, seconds: self.seconds };
            text += &(serde_json::to_string(&object).expect("the findings have a JSON form") + "\n");
        }
        show(&text);
    }
}

fn line(row: &Row, ratios: &Ratios) -> Option<Line> {
    let ratio = median(ratios.each())?;
    Some(Line {
        name: row.name(),
        unit: row.figure.unit(),
        base: median(ratios.base.iter().copied())?,
        own: median(ratios.own.iter().copied())?,
        ratio,
        least: ratios.each().fold(f64::INFINITY, f64::min),
        greatest: ratios.each().fold(0.0, f64::max),
        asked: row.asked,
        pass: row.passes(ratio),
        rounds: ratios.own.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::rows::rows;

    #[test]
    fn ratios_are_taken_within_a_round() {
        let mut ratios = Ratios::default();
        // The machine becomes ten times slower from round to round; the ratio stays.
        for factor in [1.0, 0.1, 0.01] {
            ratios.add(Some(9.0 * factor), Some(10.0 * factor));
        }
        ratios.add(None, Some(1.0));
        let row = &rows(std::time::Duration::from_secs(1))[1];
        let line = line(row, &ratios).unwrap();
        assert!((line.ratio - 0.9).abs() < 1e-9 && (line.greatest - line.least).abs() < 1e-9, "{line:?}");
        assert_eq!((line.own, line.base, line.rounds, line.pass), (0.9, 1.0, 3, Some(false)));
    }
}
