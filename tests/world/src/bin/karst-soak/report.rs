//! What came of it: a table of what is expected and what was seen, and the same for programs.

use crate::{
    direct::Director,
    how::How,
    memory::{Memory, TELLS},
    shared::{Failed, Shared},
};
use karst_world::{
    sniff,
    soak::judge::{Failure, PLACES, Place},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::atomic::Ordering::Relaxed};

/// A certificate of 20 s is renewed every 12 s at the latest; at least one is wanted for so many seconds.
const SECONDS_OF_CERTIFICATE: u64 = 40;
/// So many failed calls are shown, and so many written.
const SHOWN: usize = 20;
const WRITTEN: usize = 500;

struct Row {
    what: String,
    expected: String,
    seen: String,
    holds: bool,
}

/// See above.
pub struct Report {
    rows: Vec<Row>,
    /// Failed calls that nothing excuses, in words.
    failed: Vec<String>,
    broken: Vec<String>,
    seed: u64,
    seconds: f64,
    faults: Vec<Value>,
}

impl Report {
    /// After a run.
    pub fn new(
        how: &How,
        shared: &Shared,
        seen: sniff::Seen,
        director: &Director,
        memory: &Memory,
        certificates: usize,
    ) -> Self {
        let mut report = Self {
            rows: vec![],
            failed: vec![],
            broken: director.broken().to_vec(),
            seed: how.seed,
            seconds: shared.now().as_secs_f64(),
            faults: vec![],
        };
        report.calls(shared);
        report.leaks(shared, seen);
        report.faults(shared, director);
        let wanted = (how.length.as_secs() / SECONDS_OF_CERTIFICATE) as usize;
        report.row(
            "certificates of 20 s of one workload".into(),
            format!("at least {wanted}"),
            certificates.to_string(),
            certificates >= wanted,
        );
        report.memory(memory, how.length >= TELLS);
        report
    }

    fn row(&mut self, what: String, expected: String, seen: String, holds: bool) {
        self.rows.push(Row { what, expected, seen, holds });
    }

    fn calls(&mut self, shared: &Shared) {
        let (ok, (failures, not_kept)) = (shared.ok(), shared.failures());
        // New pods of all nodes are one row.
        let name = |place: &Place| place.to_string();
        let mut all: BTreeMap<String, (u64, Failed)> =
            PLACES.iter().map(|place| (name(place), (0, Failed::default()))).collect();
        for (place, count) in &ok {
            all.entry(name(place)).or_default().0 += count;
        }
        for (place, failed) in &failures {
            let (_, of) = all.entry(name(place)).or_default();
            of.excused += failed.excused;
            of.not += failed.not;
        }
        for (what, (ok, failed)) in all {
            let seen = format!("{} failed, {ok} ok, {} excused by a fault", failed.not, failed.excused);
            self.row(what, "0 failed".into(), seen, failed.not == 0 && ok > 0);
        }
        if not_kept > 0 {
            self.row("failed calls beyond those kept".into(), "0".into(), not_kept.to_string(), false);
        }
        let judged = shared.judged();
        let wrong = judged.iter().filter(|(call, _)| call.failure == Failure::Wrong).count();
        let bytes = shared.bytes.load(Relaxed);
        self.row(
            "wrong bytes".into(),
            "0 calls".into(),
            format!("{wrong} calls, of {bytes} bytes compared"),
            wrong == 0,
        );
        self.failed = judged
            .iter()
            .filter(|(_, by)| by.is_none())
            .take(WRITTEN)
            .map(|(call, _)| {
                let (began, ended) = (call.began.as_secs_f64(), call.ended.as_secs_f64());
                format!("{}, {began:.1} to {ended:.1} s: {:?}: {}", call.place, call.failure, call.text)
            })
            .collect();
    }

    fn leaks(&mut self, shared: &Shared, seen: sniff::Seen) {
        let said = format!("{} of {} ({} of tunnels)", seen.marked, seen.frames, seen.hbone);
        self.row("plaintext frames between nodes".into(), "0".into(), said, seen.marked == 0 && seen.hbone > 0);
        let other = seen.other_tcp;
        self.row("TCP between nodes outside of tunnels".into(), "0 frames".into(), other.to_string(), other == 0);
        let (asked, served) = (shared.forbidden.load(Relaxed), shared.served_forbidden.load(Relaxed));
        let said = format!("{served} of {asked}");
        self.row("calls served that a policy forbids".into(), "0".into(), said, served == 0 && asked > 0);
        let again = shared.asked_again.load(Relaxed);
        self.row("requests asked again on a new connection".into(), "-".into(), again.to_string(), true);
    }

    fn faults(&mut self, shared: &Shared, director: &Director) {
        for (kind, (planned, over)) in director.counts() {
            self.row((*kind).into(), planned.to_string(), over.to_string(), planned == over);
        }
        self.faults = shared
            .windows()
            .iter()
            .map(|w| {
                let (from, to) = (w.from.as_secs_f64(), w.to.map(|to| to.as_secs_f64()));
                json!({ "fault": w.fault.to_string(), "from_s": from, "to_s": to })
            })
            .collect();
    }

    fn memory(&mut self, memory: &Memory, tells: bool) {
        for trend in memory.trends() {
            let (line, is_judged) = (trend.line, tells && trend.is_steady);
            let expected = match is_judged {
                true => format!("grows by at most {:.1} MiB", line.bound()),
                false => "-".into(),
            };
            let (mean, growth, error) = (line.mean, line.growth, line.error);
            let samples = trend.samples;
            let seen = format!("{growth:+.1} MiB (error {error:.1}), mean {mean:.1}, {samples} samples");
            self.row(format!("memory: {}", trend.role), expected, seen, !is_judged || line.is_flat());
        }
    }

    /// Prints the table, and what has failed.
    pub fn print(&self) {
        let width = |of: fn(&Row) -> &str| self.rows.iter().map(|r| of(r).chars().count()).max().unwrap_or(0);
        let (a, b, c) = (width(|r| &r.what), width(|r| &r.expected), width(|r| &r.seen));
        println!("\n{:<a$}  {:<b$}  {:<c$}  verdict", "what", "expected", "seen");
        println!("{}", "-".repeat(a + b + c + 13));
        for r in &self.rows {
            let verdict = if r.holds { "ok" } else { "FAIL" };
            println!("{:<a$}  {:<b$}  {:<c$}  {verdict}", r.what, r.expected, r.seen);
        }
        for text in self.broken.iter().chain(self.failed.iter().take(SHOWN)) {
            println!("FAILED: {text}");
        }
        println!("\nseed {}, {:.0} s", self.seed, self.seconds);
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let row = |r: &Row| json!({ "what": r.what, "expected": r.expected, "seen": r.seen, "ok": r.holds });
        json!({
            "seed": self.seed,
            "seconds": self.seconds,
            "ok": self.all_hold(),
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
            "faults": self.faults,
            "not_carried_out": self.broken,
            "failed": self.failed,
        })
    }

    /// Has everything that was expected been seen?
    pub fn all_hold(&self) -> bool {
        self.broken.is_empty() && self.rows.iter().all(|r| r.holds)
    }
}
