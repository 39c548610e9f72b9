//! What came of it: a table of what is expected and what was seen, and the same for programs.

use crate::{
    direct::Director,
    how::How,
    memory::{Memory, TELLS, Trend},
    shared::{Judged, Shared, Well},
    site::STEADY,
};
use karst_world::{
    sniff,
    soak::judge::{Failure, PLACES, Place, Window},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// A certificate of 20 s is renewed every 12 s at the latest; at least one is wanted for so many seconds.
const SECONDS_OF_CERTIFICATE: u64 = 40;
/// So many failed calls are shown, and so many written.
const SHOWN: usize = 20;
const WRITTEN: usize = 500;

/// A run that is over.
pub struct Run<'a> {
    /// What was asked for.
    pub how: &'a How,
    /// What callers have seen.
    pub shared: &'a Shared,
    /// What the sniffer has seen.
    pub seen: sniff::Seen,
    /// Who has made the faults.
    pub director: &'a Director,
    /// Of the mesh's processes.
    pub memory: &'a Memory,
    /// How many certificates a workload has had.
    pub certificates: usize,
    /// Panics in the mesh's logs.
    pub panics: usize,
    /// What was not carried out, in words.
    pub broken: Vec<String>,
    /// How long there was load.
    pub loaded: Duration,
}

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
    command: String,
    seed: u64,
    seconds: f64,
    faults: Vec<Value>,
}

/// What came of the calls of a place.
#[derive(Default)]
struct Calls {
    well: Well,
    excused: u64,
    not: u64,
}

impl Report {
    /// Of a run.
    pub fn of(run: Run<'_>) -> Self {
        let Run { how, shared, seen, director, memory, certificates, panics, broken, loaded } = run;
        let mut report = Self {
            rows: vec![],
            failed: vec![],
            broken,
            command: how.command(),
            seed: how.seed,
            seconds: loaded.as_secs_f64(),
            faults: vec![],
        };
        let failed = shared.failed();
        report.calls(shared, &failed);
        report.leaks(shared, seen);
        report.faults(shared, director, &failed);
        let wanted = (how.length.as_secs() / SECONDS_OF_CERTIFICATE) as usize;
        report.row(
            "certificates of 20 s of one workload",
            format!("at least {wanted}"),
            certificates.to_string(),
            certificates >= wanted,
        );
        report.row("panics in logs", "0", panics.to_string(), panics == 0);
        report.memory(&memory.trends(), how.length >= TELLS);
        report
    }

    fn row(&mut self, what: impl Into<String>, expected: impl Into<String>, seen: String, holds: bool) {
        self.rows.push(Row { what: what.into(), expected: expected.into(), seen, holds });
    }

    fn calls(&mut self, shared: &Shared, failed: &[Judged]) {
        // New pods of all nodes are one row.
        let name = |place: &Place| place.to_string();
        let mut all: BTreeMap<String, Calls> = PLACES.iter().map(|place| (name(place), Calls::default())).collect();
        // They come in every run, too.
        all.entry(name(&Place::NewPod(0))).or_default();
        for (place, well) in &shared.well() {
            let of = &mut all.entry(name(place)).or_default().well;
            *of = Well { calls: of.calls + well.calls, slowest: of.slowest.max(well.slowest) };
        }
        for judged in failed {
            let of = all.entry(name(&judged.call.place)).or_default();
            *(if judged.by.is_some() { &mut of.excused } else { &mut of.not }) += 1;
        }
        for (what, Calls { well, excused, not }) in all {
            let slowest = well.slowest.as_millis();
            let seen = format!("{not} failed, {} ok (slowest {slowest} ms), {excused} excused by a fault", well.calls);
            self.row(what, "0 failed", seen, not == 0 && well.calls > 0);
        }
        let (excused, not) = shared.counts();
        let beyond = (excused + not).saturating_sub(failed.len() as u64);
        if beyond > 0 {
            self.row("failed calls beyond those above", "0", beyond.to_string(), false);
        }
        let wrong = failed.iter().filter(|judged| judged.call.failure == Failure::Wrong).count();
        let bytes = shared.bytes.load(Relaxed);
        let seen = format!("{wrong} calls, of {bytes} bytes compared");
        self.row("wrong bytes", "0 calls", seen, wrong == 0 && bytes > 0);
        self.failed = failed.iter().filter(|judged| judged.by.is_none()).take(WRITTEN).map(Judged::text).collect();
    }

    fn leaks(&mut self, shared: &Shared, seen: sniff::Seen) {
        let said = format!("{} of {} ({} of tunnels)", seen.marked, seen.frames, seen.hbone);
        self.row("plaintext frames between nodes", "0", said, seen.marked == 0 && seen.hbone > 0);
        let other = seen.other_tcp;
        self.row("TCP between nodes outside of tunnels", "0 frames", other.to_string(), other == 0);
        self.row("frames that were not looked at", "0", seen.lost.to_string(), seen.lost == 0);
        let get = |count: &AtomicU64| count.load(Relaxed);
        let (asked, served) = (get(&shared.forbidden), get(&shared.served_forbidden));
        self.row("calls served that a policy forbids", "0", format!("{served} of {asked}"), served == 0 && asked > 0);
        self.row("requests asked again on a new connection", "-", get(&shared.asked_again).to_string(), true);
    }

    fn faults(&mut self, shared: &Shared, director: &Director, failed: &[Judged]) {
        for (kind, (planned, over)) in director.counts() {
            let excused = failed.iter().filter(|judged| judged.by.is_some_and(|by| by.kind() == *kind)).count();
            self.row(*kind, planned.to_string(), format!("{over}; {excused} calls excused"), planned == over);
        }
        let row = |w: &Window| {
            let (from, to) = (w.from.as_secs_f64(), w.to.map(|to| to.as_secs_f64()));
            json!({ "fault": w.fault.to_string(), "from_s": from, "to_s": to })
        };
        self.faults = shared.windows().iter().map(row).collect();
    }

    /// `tells`: it was long enough for slopes to mean something.
    fn memory(&mut self, trends: &[Trend], tells: bool) {
        for trend in trends {
            let what = format!("memory: {}", trend.role);
            let Some(line) = trend.line else {
                self.row(what, "-", format!("{} samples", trend.samples), !(tells && trend.is_steady));
                continue;
            };
            let is_judged = tells && trend.is_steady;
            let expected = if is_judged { format!("grows by at most {:.1} MiB", line.bound()) } else { "-".into() };
            let (growth, error, mean, samples) = (line.growth, line.error, line.mean, trend.samples);
            let seen = format!("{growth:+.1} MiB (error {error:.1}), mean {mean:.1}, {samples} samples");
            self.row(what, expected, seen, !is_judged || line.is_flat());
        }
        for role in STEADY {
            let of = trends.iter().find(|trend| trend.role == role);
            let processes = of.map_or(0, |trend| trend.processes);
            self.row(format!("processes: {role}"), "1", processes.to_string(), processes == 1);
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
        println!("\n{:.0} s of load; the same faults again: {}", self.seconds, self.command);
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let row = |r: &Row| json!({ "what": r.what, "expected": r.expected, "seen": r.seen, "ok": r.holds });
        json!({
            "seed": self.seed,
            "command": self.command,
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
