//! The table: what is claimed, expected and measured.

use std::{
    io::{IsTerminal, Write},
    time::Instant,
};

struct Row {
    check: String,
    expected: String,
    measured: String,
    ok: bool,
}

/// The claims so far.
pub struct Table {
    rows: Vec<Row>,
    started: Instant,
    colour: bool,
}

impl Table {
    /// An empty one; the time runs from here.
    pub fn new() -> Self {
        Self { rows: vec![], started: Instant::now(), colour: std::io::stdout().is_terminal() }
    }
    /// Says what is done now.
    pub fn step(&self, text: &str) {
        println!("[{:5.1} s] {text}", self.started.elapsed().as_secs_f64());
        let _ = std::io::stdout().flush();
    }
    /// Adds a claim, and says what came of it.
    pub fn row(&mut self, check: &str, expected: &str, measured: String, ok: bool) {
        self.step(&format!("{} {check}: {measured}", if ok { "ok  " } else { "FAIL" }));
        self.rows.push(Row { check: check.into(), expected: expected.into(), measured, ok });
    }
    /// Prints all.
    pub fn print(&self) {
        let w = |f: fn(&Row) -> &str| self.rows.iter().map(|r| f(r).chars().count()).max().unwrap_or(0);
        let (a, b, c) = (w(|r| &r.check), w(|r| &r.expected), w(|r| &r.measured));
        println!("\n{:<a$}  {:<b$}  {:<c$}  verdict", "claim", "expected", "measured");
        println!("{}", "-".repeat(a + b + c + 13));
        for r in &self.rows {
            let verdict = match (r.ok, self.colour) {
                (true, true) => "\x1b[32mok\x1b[0m",
                (true, false) => "ok",
                (false, true) => "\x1b[31mFAIL\x1b[0m",
                (false, false) => "FAIL",
            };
            println!("{:<a$}  {:<b$}  {:<c$}  {verdict}", r.check, r.expected, r.measured);
        }
        let good = self.rows.iter().filter(|r| r.ok).count();
        println!("\n{good} of {} claims hold, in {:.1} s", self.rows.len(), self.started.elapsed().as_secs_f64());
    }
    /// Does every claim hold?
    pub fn all_hold(&self) -> bool {
        self.rows.iter().all(|r| r.ok)
    }
    /// The same for programs.
    pub fn json(&self) -> serde_json::Value {
        self.rows
            .iter()
            .map(
                |r| serde_json::json!({ "check": r.check, "expected": r.expected, "measured": r.measured, "ok": r.ok }),
            )
            .collect()
    }
}
