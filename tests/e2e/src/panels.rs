//! What dashboards ask of a Prometheus (`data/panels.tsv`): read, filled in, and what is answered judged. No cluster is needed for that
//! (tests/panels.rs); [`crate::Prometheus`] asks.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The first line of the table that is no comment.
const COLUMNS: &str = "dashboard\tpanel\texpectation\twhy\tquery";

/// What a query's answer has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expectation {
    /// There are series.
    Data,
    /// There may be none: why.
    Event(String),
    /// There are none, ever: why.
    Absent(String),
}

/// A query of a panel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Of which dashboard.
    pub dashboard: String,
    /// Its title.
    pub panel: String,
    /// What is expected.
    pub expectation: Expectation,
    /// PromQL with Grafana's variables.
    pub text: String,
}

/// Reads the table.
///
/// # Errors
/// With the number of the line that cannot be read.
pub fn read(table: &str) -> Result<Vec<Query>, String> {
    let mut lines = table.lines().enumerate().filter(|(_, line)| !line.starts_with('#'));
    if lines.next().is_none_or(|(_, line)| line != COLUMNS) {
        return Err(format!("the first line is not {COLUMNS:?}"));
    }
    lines.map(|(at, line)| query(line).map_err(|why| format!("line {}: {why}", at + 1))).collect()
}

fn query(line: &str) -> Result<Query, String> {
    let columns: Vec<&str> = line.split('\t').collect();
    let [dashboard, panel, expectation, why, text] = columns[..] else {
        return Err(format!("{} columns, not 5", columns.len()));
    };
    let expectation = match (expectation, why) {
        ("data", "") => Expectation::Data,
        ("data", _) => return Err("data is expected, and a reason is given for none".into()),
        (_, "") => return Err("no reason is given".into()),
        ("event", why) => Expectation::Event(why.into()),
        ("absent", why) => Expectation::Absent(why.into()),
        (other, _) => return Err(format!("unknown expectation {other:?}")),
    };
    if text.is_empty() {
        return Err("no query".into());
    }
    Ok(Query { dashboard: dashboard.into(), panel: panel.into(), expectation, text: text.into() })
}

/// Puts values in the place of Grafana's variables, `$name`.
///
/// # Errors
/// If one has no value.
pub fn fill(text: &str, values: &[(&str, &str)]) -> Result<String, String> {
    let mut parts = text.split('$');
    let mut out = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let end = part.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(part.len());
        let (name, rest) = part.split_at(end);
        let (_, value) = values.iter().find(|(known, _)| *known == name).ok_or(format!("${name} has no value"))?;
        out += value;
        out += rest;
    }
    Ok(out)
}

/// How many series an answer of `/api/v1/query` has. A series without a number (0/0) is none: Grafana shows nothing for it.
///
/// # Errors
/// What Prometheus complains about, or that it is no such answer.
pub fn series(answer: &str) -> Result<usize, String> {
    let answer: Value = serde_json::from_str(answer).map_err(|e| format!("no JSON: {e}"))?;
    if answer["status"] != "success" {
        return Err(answer["error"].as_str().unwrap_or("no status").to_string());
    }
    let result = answer["data"]["result"].as_array().ok_or("no result")?;
    let number =
        |one: &&Value| one["value"][1].as_str().and_then(|v| v.parse::<f64>().ok()).is_some_and(f64::is_finite);
    Ok(result.iter().filter(number).count())
}

/// A text in a query string.
pub fn encode(text: &str) -> String {
    let one = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(one).collect()
}

/// Queries with what was answered: the number of series, or what Prometheus complains about.
pub type Answers = Vec<(Query, Result<usize, String>)>;

/// What is not as expected.
pub fn faults(answers: &Answers) -> Vec<String> {
    let fault = |(query, answer): &(Query, Result<usize, String>)| {
        let said = match (&query.expectation, answer) {
            (_, Err(why)) => format!("is refused: {why}"),
            (Expectation::Data, Ok(0)) => "has no data".into(),
            (Expectation::Absent(why), Ok(n)) if *n > 0 => format!("has {n} series, though {why}"),
            (Expectation::Data | Expectation::Absent(_) | Expectation::Event(_), Ok(_)) => return None,
        };
        Some(format!("{}, {}: {said}: {}", query.dashboard, query.panel, query.text))
    };
    answers.iter().filter_map(fault).collect()
}

/// Of each dashboard: panels with data, panels that must have data, all panels.
pub fn full(answers: &Answers) -> BTreeMap<&str, [usize; 3]> {
    let mut all: BTreeMap<&str, [BTreeSet<&str>; 3]> = BTreeMap::new();
    for (query, answer) in answers {
        let [seen, wanted, panels] = all.entry(&query.dashboard).or_default();
        panels.insert(&query.panel);
        if query.expectation == Expectation::Data {
            wanted.insert(&query.panel);
        }
        if answer.as_ref().is_ok_and(|n| *n > 0) {
            seen.insert(&query.panel);
        }
    }
    all.into_iter().map(|(dashboard, sets)| (dashboard, sets.map(|set| set.len()))).collect()
}

/// Expected beside seen, a line for each query.
pub fn table(answers: &Answers) -> String {
    let mut out = String::new();
    for (query, answer) in answers {
        let expected = match &query.expectation {
            Expectation::Data => "data".to_string(),
            Expectation::Event(why) => format!("perhaps ({why})"),
            Expectation::Absent(why) => format!("none ({why})"),
        };
        let seen = match answer {
            Ok(n) => format!("{n} series"),
            Err(why) => format!("refused: {why}"),
        };
        out += &format!("{:<14} {:<60} {seen:<12} expected: {expected}\n", query.dashboard, query.panel);
    }
    out
}
