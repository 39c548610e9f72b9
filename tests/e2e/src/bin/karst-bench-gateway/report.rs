//! What was expected and what was seen.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::{fs, path::Path, time::Instant};

/// What a figure is to be.
#[derive(Clone, Copy)]
pub enum Aim {
    /// Less than this.
    Under(f64),
    /// Exactly this.
    Exactly(f64),
    /// There is none: it is only told.
    Told,
}

impl Aim {
    fn text(self, unit: &str) -> String {
        match self {
            Aim::Under(limit) => format!("under {limit} {unit}"),
            Aim::Exactly(value) => format!("{value} {unit}"),
            Aim::Told => String::new(),
        }
    }

    fn is_met(self, seen: f64) -> Option<bool> {
        match self {
            Aim::Under(limit) => Some(seen < limit),
            Aim::Exactly(value) => Some(seen == value),
            Aim::Told => None,
        }
    }
}

/// All figures so far.
pub struct Report {
    began: Instant,
    rows: Vec<Value>,
}

impl Report {
    /// None yet.
    pub fn new() -> Self {
        Self { began: Instant::now(), rows: vec![] }
    }

    /// Says how far it has come.
    pub fn say(&self, what: &str) {
        println!("[{:6.1} s] {what}", self.began.elapsed().as_secs_f64());
    }

    /// A figure.
    pub fn note(&mut self, test: &str, what: &str, aim: Aim, seen: f64, unit: &str) {
        self.say(&format!("{test}: {what}: {seen:.3} {unit}"));
        let (expected, met) = (aim.text(unit), aim.is_met(seen));
        self.rows.push(json!({
            "test": test, "what": what, "expected": expected, "seen": seen, "unit": unit, "met": met,
        }));
    }

    /// A test that was not run, or has failed, and why.
    pub fn left_out(&mut self, test: &str, why: &str, is_failure: bool) {
        self.say(&format!("{test}: {why}"));
        let met = is_failure.then_some(false);
        self.rows.push(json!({ "test": test, "what": why, "expected": "", "seen": null, "unit": "", "met": met }));
    }

    /// Figures of a test that others are compared with.
    pub fn seen(&self, test: &str, what: &str) -> Option<f64> {
        self.rows.iter().find(|row| row["test"] == test && row["what"] == what)?["seen"].as_f64()
    }

    /// The table; gives how many aims are missed.
    pub fn print(&self) -> usize {
        println!("\n{:<26} {:<52} {:<20} {:>16}", "test", "what", "expected", "seen");
        for row in &self.rows {
            let text = |key: &str| row[key].as_str().unwrap_or_default();
            let seen = row["seen"].as_f64().map(|seen| format!("{seen:.2} {}", text("unit"))).unwrap_or_default();
            let verdict = match row["met"].as_bool() {
                Some(true) => "  met",
                Some(false) => "  NOT MET",
                None => "",
            };
            println!("{:<26} {:<52} {:<20} {seen:>16}{verdict}", text("test"), text("what"), text("expected"));
        }
        self.rows.iter().filter(|row| row["met"] == false).count()
    }

    /// Writes them as JSON.
    pub fn write(&self, to: &Path) -> Result<()> {
        fs::write(to, serde_json::to_string_pretty(&self.rows)? + "\n").with_context(|| to.display().to_string())
    }
}

/// The value below which so many of a hundred are.
pub fn percentile(sorted: &[f64], of_hundred: usize) -> f64 {
    let at = (sorted.len() * of_hundred).div_ceil(100).saturating_sub(1);
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let all: Vec<f64> = (1..=10).map(f64::from).collect();
        assert_eq!([50, 90, 99, 100].map(|n| percentile(&all, n)), [5.0, 9.0, 10.0, 10.0]);
        assert_eq!(percentile(&[7.0], 50), 7.0);
        assert!(percentile(&[], 50).is_nan());
    }

    #[test]
    fn an_aim_is_met_or_not_and_what_is_told_is_neither() {
        let met = |aim: Aim, seen: f64| aim.is_met(seen);
        assert_eq!([met(Aim::Under(10.0), 9.9), met(Aim::Under(10.0), 10.0)], [Some(true), Some(false)]);
        assert_eq!([met(Aim::Exactly(0.0), 0.0), met(Aim::Exactly(0.0), 1.0)], [Some(true), Some(false)]);
        assert_eq!(met(Aim::Told, 1.0), None);
        let mut report = Report::new();
        report.note("a", "errors", Aim::Exactly(0.0), 3.0, "");
        report.left_out("b", "not there", false);
        report.left_out("c", "it has failed", true);
        assert_eq!((report.print(), report.seen("a", "errors"), report.seen("b", "not there")), (2, Some(3.0), None));
    }
}
