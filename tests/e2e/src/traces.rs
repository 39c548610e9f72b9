//! Traces as Jaeger's query API gives them, shown as trees of hops. No cluster is needed for that (tests/traces.rs); [`crate::Jaeger`]
//! asks.

use serde_json::Value;
use std::{collections::BTreeMap, fmt::Write};

/// A trace: a line for each span, below its parent and indented by two more, those of one parent by the service that they call:
/// `SERVICE KIND CALLED STATUS SOURCE > DESTINATION`, and `ERROR` behind it where Jaeger shows one. What a span does not say is `-`.
///
/// # Errors
/// It is not one tree yet (spans come one by one), or a span begins before its parent.
pub fn tree(trace: &Value) -> Result<String, String> {
    let spans = trace["spans"].as_array().ok_or("no spans")?;
    let by_id: BTreeMap<&str, &Value> =
        spans.iter().filter_map(|span| Some((span["spanID"].as_str()?, span))).collect();
    let mut roots = vec![];
    let mut children: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for span in spans {
        let Some(id) = parent(span) else {
            roots.push(span);
            continue;
        };
        let Some(above) = by_id.get(id) else {
            return Err(format!("{}: its parent {id} is not there", line(trace, span)));
        };
        if span["startTime"].as_u64() < above["startTime"].as_u64() {
            return Err(format!("{}: begins before its parent", line(trace, span)));
        }
        children.entry(id).or_default().push(span);
    }
    let [root] = roots[..] else {
        return Err(format!("{} of {} spans have no parent", roots.len(), spans.len()));
    };
    let mut out = String::new();
    // A span that stands twice, or below itself, would never end.
    let mut left = spans.len();
    show(trace, &children, (root, 0), &mut left, &mut out);
    if left > 0 {
        return Err(format!("{left} of {} spans are not below the first", spans.len()));
    }
    Ok(out)
}

fn show(
    trace: &Value,
    children: &BTreeMap<&str, Vec<&Value>>,
    (span, depth): (&Value, usize),
    left: &mut usize,
    out: &mut String,
) {
    if *left == 0 {
        return;
    }
    *left -= 1;
    let _ = writeln!(out, "{}{}", "  ".repeat(depth), line(trace, span));
    let mut below = span["spanID"].as_str().and_then(|id| children.get(id)).cloned().unwrap_or_default();
    below.sort_by_key(|&span| (called(span), span["startTime"].as_u64()));
    for child in below {
        show(trace, children, (child, depth + 1), left, out);
    }
}

fn parent(span: &Value) -> Option<&str> {
    span["references"].as_array()?.iter().find(|one| one["refType"] == "CHILD_OF")?["spanID"].as_str()
}

fn tag<'a>(span: &'a Value, key: &str) -> &'a str {
    let mut tags = span["tags"].as_array().into_iter().flatten();
    tags.find(|tag| tag["key"] == key).and_then(|tag| tag["value"].as_str()).unwrap_or("-")
}

/// The service that is called, by the first label of its name.
fn called(span: &Value) -> &str {
    let host = tag(span, "upstream_cluster").rsplit('|').next().unwrap_or_default();
    host.split('.').next().unwrap_or_default()
}

/// Does Jaeger show an error? It reads OpenTelemetry's status into this tag; the proxies' own of this name is a text.
fn is_error(span: &Value) -> bool {
    span["tags"].as_array().is_some_and(|tags| tags.iter().any(|tag| tag["key"] == "error" && tag["value"] == true))
}

fn line(trace: &Value, span: &Value) -> String {
    let process = &trace["processes"][span["processID"].as_str().unwrap_or_default()];
    format!(
        "{} {} {} {} {} > {}{}",
        process["serviceName"].as_str().unwrap_or("-"),
        tag(span, "span.kind"),
        called(span),
        tag(span, "http.status_code"),
        tag(span, "istio.source_workload"),
        tag(span, "istio.destination_workload"),
        if is_error(span) { " ERROR" } else { "" },
    )
}

/// How many spans a proxy has dropped, for whatever reason, by its page of metrics.
pub fn dropped(metrics: &str) -> u64 {
    let lines = metrics.lines().filter(|line| line.starts_with("karst_trace_spans_dropped_total{"));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}
