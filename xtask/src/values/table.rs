//! The table, `charts/values.tsv`: a line for each key, its columns apart by tabs.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::BTreeSet;

/// The charts, and the sources in which the programs in their pods read environment variables.
pub(super) const CHARTS: [(&str, &[&str]); 6] = [
    ("base", &[]),
    ("istiod", &["controller/src/config.rs"]),
    ("cni", &["cni/src/config.rs"]),
    ("ztunnel", &["ztunnel/src/config.rs", "ztunnel/src/istio.rs", "crates/proxy/src/options.rs"]),
    ("gateway", &["waypoint/src/config.rs", "crates/proxy/src/options.rs"]),
    ("ambient", &[]),
];

/// Names of the columns, in their order.
const COLUMNS: &str = "charts\tkey\tverdict\ttype\tquiet\tgiven\tsample\ttext";
/// How a note begins that is only for those who do not install the other chart as well.
pub(super) const ELSEWHERE: &str = "used by the chart";

/// What becomes of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It changes what is installed.
    Honoured,
    /// It changes nothing, and the notes after the installation say what stands in its place.
    Noted,
    /// The installation stops with the reason.
    Refused,
}

/// A key of some charts.
pub(super) struct Row {
    pub(super) charts: Vec<String>,
    /// Its path, as `global.hub`.
    pub(super) key: String,
    pub(super) verdict: Verdict,
    /// What values are allowed (see [`super::schema`]).
    pub(super) kind: String,
    /// Values of which nothing is said; with a `=` at the start, the only ones of which something is.
    pub(super) quiet: Quiet,
    /// Other keys that must be set for this one to mean something.
    pub(super) given: Vec<(String, Value)>,
    /// A value for tests.
    pub(super) sample: Value,
    pub(super) text: String,
}

/// Values of which nothing is said, besides empty ones.
pub(super) enum Quiet {
    /// Of these nothing is said.
    Except(Vec<String>),
    /// Only of these something is said.
    Only(Vec<String>),
}

/// All keys.
pub(super) struct Table(pub(super) Vec<Row>);

impl Table {
    pub(super) fn read(text: &str) -> Result<Self> {
        let mut lines = text.lines();
        ensure!(lines.next() == Some(COLUMNS), "the first line is not {COLUMNS:?}");
        let rows: Vec<Row> = lines
            .enumerate()
            .map(|(index, line)| row(line).with_context(|| format!("line {}", index + 2)))
            .collect::<Result<_>>()?;
        let mut seen = BTreeSet::new();
        for row in &rows {
            for chart in &row.charts {
                ensure!(seen.insert((chart, &row.key, row.verdict as u8)), "{chart}: {} is there twice", row.key);
            }
        }
        Ok(Self(rows))
    }

    /// The keys of a chart.
    pub(super) fn of<'a>(&'a self, chart: &'a str) -> impl Iterator<Item = &'a Row> {
        self.0.iter().filter(move |row| row.charts.iter().any(|c| c == chart))
    }
}

fn row(line: &str) -> Result<Row> {
    let columns: Vec<&str> = line.split('\t').collect();
    let [charts, key, verdict, kind, quiet, given, sample, text] = columns[..] else {
        bail!("{} columns, not 8", columns.len())
    };
    let list = |text: &str| text.split('|').filter(|v| !v.is_empty()).map(String::from).collect();
    ensure!(!key.is_empty() && !text.contains("{{"), "{key:?}: no key, or a template in the text");
    Ok(Row {
        charts: charts.split(',').map(String::from).collect(),
        key: key.into(),
        verdict: match verdict {
            "honoured" => Verdict::Honoured,
            "noted" => Verdict::Noted,
            "refused" => Verdict::Refused,
            other => bail!("unknown verdict {other:?}"),
        },
        kind: kind.into(),
        quiet: match quiet.strip_prefix('=') {
            Some(only) => Quiet::Only(list(only)),
            None => Quiet::Except(list(quiet)),
        },
        given: given
            .split(';')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (key, value) = pair.split_once('=').with_context(|| format!("given: {pair:?} is no KEY=VALUE"))?;
                Ok((key.to_string(), serde_json::from_str(value)?))
            })
            .collect::<Result<_>>()?,
        sample: serde_json::from_str(sample).with_context(|| format!("{key}: sample {sample}"))?,
        text: text.into(),
    })
}

/// Is it what templates take for false?
pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
    }
}

/// Puts a value at a path.
pub(super) fn put(values: &mut Value, key: &str, value: &Value) {
    let mut at = values;
    for name in key.split('.') {
        if !at.is_object() {
            *at = Value::Object(serde_json::Map::new());
        }
        at = &mut at[name];
    }
    *at = value.clone();
}
