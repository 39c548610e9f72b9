//! Prometheus' text format, version 0.0.4: every page of metrics is written with this, and nothing else writes heads (`# HELP`,
//! `# TYPE`; `cargo xtask lint` looks for them) or escapes labels. Why no library does it: docs/architecture.md, "Decisions".
//!
//! How a metric is counted is its own affair: nothing here is called but when somebody reads the page. A family is begun once, and
//! its samples follow its head: the page is lent to it meanwhile.
//!
//! ```
//! use karst_rt::exposition::{self, Kind};
//!
//! let page = exposition::page(|page| {
//!     page.single("pods", Kind::Gauge, "Pods that are served.", 3);
//!     let mut dropped = page.family("dropped_total", Kind::Counter, "Datagrams dropped, by why.");
//!     dropped.sample(&[("reason", "limit")], 1);
//! });
//! assert!(page.ends_with("# TYPE dropped_total counter\ndropped_total{reason=\"limit\"} 1\n"));
//! ```

use std::{
    collections::BTreeSet,
    fmt::{Display, Write},
};

/// The content type of a page.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4";
/// Does a family that is on its page already end the test that has read it?
const CHECKED: bool = cfg!(any(test, debug_assertions, feature = "testing"));

/// What the numbers of a family are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// They grow as long as the process runs.
    Counter,
    /// They rise and fall.
    Gauge,
    /// Each sample is several: how many values were up to each of some bounds.
    Histogram,
}

impl Kind {
    fn text(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A page that is being written.
#[derive(Debug, Default)]
pub struct Page {
    text: String,
    /// Those that have a head; empty where nobody checks.
    families: BTreeSet<&'static str>,
}

/// The text of a page.
pub fn page(write: impl FnOnce(&mut Page)) -> String {
    let mut page = Page::default();
    write(&mut page);
    page.text
}

impl Page {
    /// Begins a family; its samples are to follow. The format has one head of each name (a second is an error to readers): in tests
    /// it panics if the page has this one.
    pub fn family(&mut self, name: &'static str, kind: Kind, help: &str) -> Family<'_> {
        if CHECKED {
            assert!(self.families.insert(name), "{name} is on the page twice");
        }
        let (help, kind) = (help.replace('\\', "\\\\").replace('\n', "\\n"), kind.text());
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Family { text: &mut self.text, name }
    }

    /// A family of one sample without labels.
    pub fn single(&mut self, name: &'static str, kind: Kind, help: &str, value: impl Display) {
        self.family(name, kind, help).series("", value);
    }
}

/// A family whose head is written.
#[derive(Debug)]
pub struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
}

impl Family<'_> {
    /// A sample with these labels (name and value), in their order.
    pub fn sample(&mut self, all: &[(&str, &str)], value: impl Display) {
        self.series(&labels(all), value);
    }

    /// A sample whose labels are text already, as [`label`] writes it; may be empty.
    pub fn series(&mut self, labels: &str, value: impl Display) {
        self.line("", labels, value);
    }

    /// A histogram. `labels`: as those of [`Self::series`]. `bounds`: upper ones, which belong to their buckets, in rising order.
    /// `counts`: how many values are in each bucket; what comes after the bounds' is beyond all of them. `sum`: of all values.
    pub fn histogram(
        &mut self,
        labels: &str,
        bounds: &[impl Display],
        counts: impl IntoIterator<Item = u64>,
        sum: impl Display,
    ) {
        let mut counts = counts.into_iter();
        let (name, comma) = (self.name, if labels.is_empty() { "" } else { "," });
        let mut count = 0;
        for (bound, more) in bounds.iter().zip(counts.by_ref()) {
            count += more;
            let _ = writeln!(self.text, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {count}");
        }
        count += counts.sum::<u64>();
        let _ = writeln!(self.text, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
        self.line("_sum", labels, sum);
        self.line("_count", labels, count);
    }

    fn line(&mut self, suffix: &str, labels: &str, value: impl Display) {
        let name = self.name;
        let _ = match labels {
            "" => writeln!(self.text, "{name}{suffix} {value}"),
            _ => writeln!(self.text, "{name}{suffix}{{{labels}}} {value}"),
        };
    }
}

/// The text of labels (name and value), as it stands between the braces.
pub fn labels(all: &[(&str, &str)]) -> String {
    let mut out = String::new();
    all.iter().for_each(|(name, value)| label(&mut out, name, value));
    out
}

/// Adds a label to such a text.
pub fn label(out: &mut String, name: &str, value: &str) {
    if !out.is_empty() {
        out.push(',');
    }
    let _ = write!(out, "{name}=\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_a_head_and_its_samples() {
        let page = page(|page| {
            page.single("up", Kind::Gauge, "Is it up?", 1);
            let mut ends = page.family("ends_total", Kind::Counter, "Ends, by side and reason.");
            ends.sample(&[("side", "client"), ("reason", "done")], 7_u64);
            ends.series("side=\"server\"", 0.5);
            page.family("none_total", Kind::Counter, "Nothing yet.");
        });
        assert_eq!(
            page,
            "# HELP up Is it up?\n# TYPE up gauge\nup 1\n\
             # HELP ends_total Ends, by side and reason.\n# TYPE ends_total counter\n\
             ends_total{side=\"client\",reason=\"done\"} 7\nends_total{side=\"server\"} 0.5\n\
             # HELP none_total Nothing yet.\n# TYPE none_total counter\n"
        );
    }

    #[test]
    fn a_histogram_counts_up_to_each_bound() {
        let page = page(|page| {
            let mut times = page.family("times", Kind::Histogram, "Times.");
            times.histogram("type=\"t\"", &[0.1, 1.0], [1, 2, 1], 8.6);
            times.histogram("", &[10_u64, 1_000_000_000], [0, 0, 3], 4e9);
        });
        let samples: Vec<&str> = page.lines().skip(2).collect();
        assert_eq!(
            samples,
            [
                "times_bucket{type=\"t\",le=\"0.1\"} 1",
                "times_bucket{type=\"t\",le=\"1\"} 3",
                "times_bucket{type=\"t\",le=\"+Inf\"} 4",
                "times_sum{type=\"t\"} 8.6",
                "times_count{type=\"t\"} 4",
                "times_bucket{le=\"10\"} 0",
                "times_bucket{le=\"1000000000\"} 0",
                "times_bucket{le=\"+Inf\"} 3",
                "times_sum 4000000000",
                "times_count 3",
            ]
        );
        assert!(page.starts_with("# HELP times Times.\n# TYPE times histogram\n"), "{page}");
    }

    /// Whatever a value is, it stays one: no line and no label begins in it.
    #[test]
    fn values_and_texts_are_escaped() {
        let page = page(|page| {
            let mut odd = page.family("odd", Kind::Gauge, "A \\ and\na line, \"quoted\".");
            odd.sample(&[("a", "x\"} 1\ny{b=\"\\"), ("c", "")], 2);
        });
        let head = "# HELP odd A \\\\ and\\na line, \"quoted\".\n# TYPE odd gauge\n";
        assert_eq!(page, format!("{head}odd{{a=\"x\\\"}} 1\\ny{{b=\\\"\\\\\",c=\"\"}} 2\n"));
    }

    #[test]
    #[should_panic(expected = "up is on the page twice")]
    fn a_family_is_on_a_page_once() {
        page(|page| {
            page.single("up", Kind::Gauge, "Is it up?", 1);
            page.single("up", Kind::Gauge, "Is it up?", 1);
        });
    }
}
