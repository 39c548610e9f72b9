//! The table: what the specification asks, what was seen.

use serde_json::json;

/// What was seen, and whether it is what the specification asks.
pub struct Seen {
    what: String,
    ok: bool,
}

/// As asked.
pub fn good(what: impl Into<String>) -> Seen {
    Seen { what: what.into(), ok: true }
}
/// Not as asked.
pub fn bad(what: impl Into<String>) -> Seen {
    Seen { what: what.into(), ok: false }
}
/// As asked if `ok`.
pub fn seen(ok: bool, what: impl Into<String>) -> Seen {
    Seen { what: what.into(), ok }
}

struct Row {
    item: &'static str,
    check: String,
    expected: String,
    seen: Seen,
}

/// The rows so far.
#[derive(Default)]
pub struct Report(Vec<Row>);

impl Report {
    /// Adds and prints a row. `item`: section of docs/hbone.md.
    pub fn add(&mut self, item: &'static str, check: impl Into<String>, expected: impl Into<String>, seen: Seen) {
        if self.0.is_empty() {
            println!("{:<5} {:<56} {:<26} {:<44} verdict", "item", "check", "expected", "seen");
        }
        let r = Row { item, check: check.into(), expected: expected.into(), seen };
        let verdict = if r.seen.ok { "ok" } else { "FAILS" };
        println!("{:<5} {:<56} {:<26} {:<44} {verdict}", r.item, r.check, r.expected, r.seen.what);
        self.0.push(r);
    }
    /// As JSON, in the form of the demo's reports.
    pub fn json(&self) -> String {
        let row = |r: &Row| json!({ "check": format!("{} {}", r.item, r.check), "expected": r.expected, "measured": r.seen.what, "ok": r.seen.ok });
        format!("{:#}", self.0.iter().map(row).collect::<serde_json::Value>())
    }
    /// The last line. True if all is as asked.
    pub fn end(&self) -> bool {
        let fails = self.0.iter().filter(|r| !r.seen.ok).count();
        println!("{} checks, {fails} fail", self.0.len());
        fails == 0 && !self.0.is_empty()
    }
}
