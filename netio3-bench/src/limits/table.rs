//! What was found, and how it is shown.

use serde::Serialize;

use crate::failure::Failure;
use crate::limits::rows::{Figure, Row};
use crate::report::{median, metric, plural, show};

/// What was measured of one row, round by round.
#[derive(Default, Debug)]
pub struct Ratios {
    own: Vec<f64>,
    base: Vec<f64>,
    /// Why a round could not be measured, and none after it was.
    pub error: Option<String>,
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
    /// Medians over the rounds; `null` where none could be measured.
    base: Option<f64>,
    own: Option<f64>,
    /// The median of the rounds' ratios, the least and the greatest.
    ratio: Option<f64>,
    least: Option<f64>,
    greatest: Option<f64>,
    /// At least this, of times at most; `null` where nothing is asked.
    asked: Option<f64>,
    pass: Option<bool>,
    rounds: usize,
    /// Why it could not be measured, or only in these rounds.
    error: Option<String>,
}

#[derive(Serialize, Debug)]
struct Object<'a> {
    role: &'static str,
    rows: &'a [Line],
    notes: &'a [String],
    seconds: f64,
}

impl Findings {
    /// Prints the table, and the object as the last line if asked for. Fails when a row could not be measured.
    pub fn print(&self, json: bool) -> Result<(), Failure> {
        let lines: Vec<Line> = self.rows.iter().zip(&self.ratios).map(|(row, ratios)| line(row, ratios)).collect();
        let mut text = format!("{:<58}{:>15}{:>15}  {:<22}asked\n", "median over the rounds", "bare", "netio3", "ratio [spread]");
        lines.iter().for_each(|line| text += &line.text());
        let asked: Vec<bool> = lines.iter().filter_map(|line| line.pass).collect();
        let held = asked.iter().filter(|pass| **pass).count();
        self.notes.iter().for_each(|note| text += &format!("{note}\n"));
        let failed: Vec<&str> = lines.iter().filter_map(|line| line.error.as_deref()).collect();
        let unmeasured = if failed.is_empty() { String::new() } else { format!(", {} not measured", failed.len()) };
        text += &format!("{} of {} as asked{unmeasured}, {:.0} s\n", held, asked.len(), self.seconds);
        if json {
            let object = Object { role: "limits", rows: &lines, notes: &self.notes, seconds: self.seconds };
            text += &(serde_json::to_string(&object).expect("the findings have a JSON form") + "\n");
        }
        show(&text);
        match failed.first() {
            Some(why) => Err(Failure::NotDelivered(format!("{} could not be measured: {why}", plural(failed.len() as u64, "row")))),
            None => Ok(()),
        }
    }
}

impl Line {
    fn text(&self) -> String {
        let Self { name, unit, rounds, .. } = self;
        let mut text = String::new();
        if let (Some(base), Some(own), Some(ratio), Some(least), Some(greatest)) =
            (self.base, self.own, self.ratio, self.least, self.greatest)
        {
            let value = |value: f64| if *unit == Figure::Rate.unit() { metric(value) + unit } else { format!("{value:.2} {unit}") };
            let digits = if greatest < 10.0 { 2 } else { 0 };
            let ratio = format!("{ratio:.digits$} [{least:.digits$}..{greatest:.digits$}]");
            let asked = self.asked.map_or(String::new(), |asked| format!("{asked:.2} "));
            let verdict = self.pass.map_or("", |pass| if pass { "ok" } else { "SHORT" });
            text += &format!("{name:<58}{:>15}{:>15}  {ratio:<22}{asked}{verdict}\n", value(base), value(own));
        }
        if let Some(why) = &self.error {
            let after = if *rounds > 0 { format!(" after {}", plural(*rounds as u64, "round")) } else { String::new() };
            text += &format!("{name:<58}  not measured{after}: {why}\n");
        }
        text
    }
}

fn line(row: &Row, ratios: &Ratios) -> Line {
    let ratio = median(ratios.each());
    let missing = || ratio.is_none().then(|| "it told no figure".to_owned());
    Line {
        name: row.name(),
        unit: row.figure.unit(),
        base: median(ratios.base.iter().copied()),
        own: median(ratios.own.iter().copied()),
        ratio,
        least: ratio.map(|_| ratios.each().fold(f64::INFINITY, f64::min)),
        greatest: ratio.map(|_| ratios.each().fold(0.0, f64::max)),
        asked: row.asked,
        pass: ratio.and_then(|ratio| row.passes(ratio)),
        rounds: ratios.own.len(),
        error: ratios.error.clone().or_else(missing),
    }
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
        let line = line(row, &ratios);
        let [ratio, least, greatest] = [line.ratio, line.least, line.greatest].map(Option::unwrap);
        assert!((ratio - 0.9).abs() < 1e-9 && (greatest - least).abs() < 1e-9, "{line:?}");
        assert_eq!((line.own, line.base, line.rounds, line.pass), (Some(0.9), Some(1.0), 3, Some(false)));
        assert_eq!(line.error, None);
    }

    #[test]
    fn what_could_not_be_measured_is_told_beside_what_was() {
        let row = &rows(std::time::Duration::from_secs(1))[1];
        let mut ratios = Ratios { error: Some("no room".into()), ..Default::default() };
        let line_of = |ratios: &Ratios| line(row, ratios);
        let none = line_of(&ratios);
        assert_eq!((none.ratio, none.pass, none.rounds), (None, None, 0));
        assert_eq!((none.text().lines().count(), none.text().contains("not measured: no room")), (1, true), "{}", none.text());
        ratios.add(Some(1.0), Some(1.0));
        let some = line_of(&ratios);
        assert_eq!((some.ratio, some.pass), (Some(1.0), Some(true)));
        assert!(
            some.text().contains("1.00 [1.00..1.00]") && some.text().contains("not measured after 1 round: no room"),
            "{}",
            some.text()
        );
        assert_eq!(line_of(&Ratios::default()).error.as_deref(), Some("it told no figure"));
    }
}
