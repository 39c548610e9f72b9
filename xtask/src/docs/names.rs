//! Pages that list names, against the sources: docs/metrics.md has every metric that a program renders, docs/labels.md every label
//! and annotation of Istio's and ours that it knows, the table in docs/operations.md every debug page of proxies and node agents; and
//! none has others. (Those of the controller are compared by its own test.)

use super::sources::{self, Source};
use anyhow::{Context, Result, ensure};
use std::{collections::BTreeSet, fs, path::Path};

const METRICS: &str = "docs/metrics.md";
const LABELS: &str = "docs/labels.md";
const OPERATIONS: &str = "docs/operations.md";

/// Files that serve debug pages, and what the table calls their program.
const SERVERS: [(&str, &str); 3] = [
    ("ztunnel/src/admin.rs", "ztunnel"),
    ("waypoint/src/admin.rs", "waypoint, gateway"),
    ("cni/src/metrics.rs", "node agent"),
];

/// Names of the same form that are no labels: of controllers, field managers and the like. Each is in the sources.
const NO_LABELS: &[&str] = &[
    "istio.io/authorization-policy",
    "istio.io/ca-root",
    "istio.io/debug",
    "istio.io/gateway-class",
    "istio.io/gateway-controller",
    "istio.io/ip-autoallocate",
    "istio.io/mesh-controller",
    "karst.io/findings",
    "karst.io/gateway-ports",
    "karst.io/revision",
];

/// What begins the names of metrics, ours and those that Istio's components have.
pub(super) const PREFIXES: &[&str] =
    &["istio_", "karst_", "citadel_", "galley_", "pilot_", "process_", "workload_", "ztunnel_"];

/// Differences, each with the fix.
pub(super) fn check() -> Result<Vec<String>> {
    let all = sources::read()?;
    let metrics: BTreeSet<String> = all.iter().flat_map(metrics).collect();
    let mut labels: BTreeSet<String> = all.iter().flat_map(labels).collect();
    ensure!(!metrics.is_empty() && !labels.is_empty(), "no names in the sources: the search is broken");
    for name in NO_LABELS {
        ensure!(labels.remove(*name), "{name} is not in the sources any more: take it out of NO_LABELS");
    }
    let mut faults = differences(METRICS, "metric", &metrics, &listed(METRICS)?, &BTreeSet::new());
    // Labels of Kubernetes' own may be listed, too.
    let texts: BTreeSet<String> = all.iter().flat_map(|source| source.found.literals.iter().cloned()).collect();
    faults.extend(differences(LABELS, "label", &labels, &listed(LABELS)?, &texts));
    let operations = fs::read_to_string(OPERATIONS).with_context(|| OPERATIONS.to_string())?;
    for (file, program) in SERVERS {
        let source = all.iter().find(|source| source.path == Path::new(file));
        let served =
            served(source.with_context(|| format!("{file} is not in the sources any more: name the new one"))?);
        ensure!(!served.is_empty(), "{file} serves no page: the search is broken");
        let what = format!("debug page of {program},");
        faults.extend(differences(OPERATIONS, &what, &served, &pages_listed(&operations, program), &BTreeSet::new()));
    }
    Ok(faults)
}

/// The paths that a file serves: literals that are one as a whole.
fn served(source: &Source) -> BTreeSet<String> {
    let is_path = |text: &&String| {
        text.strip_prefix('/').is_some_and(|rest| !rest.is_empty())
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'/' || byte == b'_')
    };
    source.found.literals.iter().filter(is_path).cloned().collect()
}

/// Those that the table of debug pages has for a program, without their queries.
fn pages_listed(text: &str, program: &str) -> BTreeSet<String> {
    let rows = text.lines().filter(|line| line.starts_with(&format!("| {program} | ")));
    let words = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    let paths = words.filter(|word| word.starts_with('/')).map(|word| word.split('?').next().unwrap_or(word));
    paths.map(String::from).collect()
}

/// The metrics that docs/metrics.md lists.
pub(super) fn metrics_listed() -> Result<BTreeSet<String>> {
    listed(METRICS)
}

/// The names in the first column of a page's tables.
fn listed(page: &str) -> Result<BTreeSet<String>> {
    let text = fs::read_to_string(page).with_context(|| page.to_string())?;
    Ok(first_column(&text))
}

pub(super) fn first_column(text: &str) -> BTreeSet<String> {
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once(" |"));
    rows.flat_map(|(cell, _)| cell.split('`').step_by(2).map(String::from)).filter(|name| !name.is_empty()).collect()
}

fn differences(
    page: &str,
    what: &str,
    known: &BTreeSet<String>,
    listed: &BTreeSet<String>,
    also: &BTreeSet<String>,
) -> Vec<String> {
    let missing = known.difference(listed).map(|name| format!("{page}: the {what} `{name}` is missing: add a row"));
    let gone = listed.iter().filter(|name| !known.contains(*name) && !also.contains(*name));
    missing.chain(gone.map(|name| format!("{page}: no program has the {what} `{name}`: remove its row"))).collect()
}

/// Metrics that a file renders: literals that are names, in a file that writes pages of metrics.
fn metrics(source: &Source) -> Vec<String> {
    let is_name = |text: &str| {
        PREFIXES.iter().any(|prefix| text.starts_with(prefix))
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
    };
    if !source.found.writes_metrics {
        return vec![];
    }
    source.found.literals.iter().filter(|text| is_name(text)).cloned().collect()
}

/// Labels and annotations that a file names: a literal that is one as a whole, of a domain of Istio's or ours.
fn labels(source: &Source) -> Vec<String> {
    let is_label = |text: &str| {
        let Some((domain, name)) = text.split_once('/') else { return false };
        let ours = ["istio.io", "karst.io"].iter().any(|end| domain == *end || domain.ends_with(&format!(".{end}")));
        let version =
            name.strip_prefix('v').is_some_and(|rest| rest.starts_with(|letter: char| letter.is_ascii_digit()));
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte == b'-';
        ours && !version && !name.is_empty() && name.bytes().all(plain)
    };
    // The command line writes examples; what it reads of objects, the controller and the agent know.
    let texts = source.found.literals.iter().filter(|_| !source.path.starts_with(Path::new("cli")));
    texts.filter(|text| is_label(text)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::docs::sources::Found;

    fn source(literals: &[&str]) -> Source {
        let literals = literals.iter().map(|text| text.to_string()).collect();
        Source { path: "controller/src/a.rs".into(), found: Found { literals, writes_metrics: false } }
    }

    #[test]
    fn a_metric_is_a_name_where_pages_are_written() {
        let mut file = source(&["istio_build", "karst_workloads", "See karst_services.", "pilot"]);
        assert_eq!(metrics(&file), [""; 0], "a name elsewhere is a mention");
        file.found.writes_metrics = true;
        assert_eq!(metrics(&file), ["istio_build", "karst_workloads"]);
    }

    #[test]
    fn a_label_is_a_whole_text_of_our_domains() {
        let file =
            ["istio.io/rev", "networking.istio.io/v1", "istio.io/WaypointBound", "see istio.io/rev", "example.com/rev"];
        assert_eq!(labels(&source(&file)), ["istio.io/rev"]);
    }

    #[test]
    fn debug_pages_are_paths_of_a_program() {
        let file = ["/flows", "/", "GET", "/config_dump", "pages: /metrics\\n", "/Upper"];
        assert_eq!(served(&source(&file)), ["/config_dump", "/flows"].map(String::from).into());
        let table = "| a | `x:1` | `/flows`, ours `/config_dump?all` (see `b`) | who |\n| b | `y` | `/other` | who |\n";
        assert_eq!(pages_listed(table, "a"), ["/config_dump", "/flows"].map(String::from).into());
    }

    #[test]
    fn what_is_missing_and_what_is_gone_are_named() {
        let page = first_column("| `a` | x |\n| `b`, `c` | y |\n|---|---|\ntext `d` |");
        assert_eq!(page, ["a", "b", "c"].map(String::from).into());
        let known = ["a", "e"].map(String::from).into();
        let faults = differences("p", "metric", &known, &page, &["b".to_string()].into());
        assert_eq!(
            faults,
            ["p: the metric `e` is missing: add a row", "p: no program has the metric `c`: remove its row"]
        );
    }
}
