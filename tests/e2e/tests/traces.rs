//! How traces of Jaeger's query API are read (src/traces.rs): without a cluster.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test's failure is a panic")]

use karst_e2e::traces::{dropped, tree};
use serde_json::{Value, json};

/// A span as Jaeger 1.76 gives it: `id`, its parent's, when it begins, and its tags.
fn span((id, parent): (&str, &str), begins: u64, kind: &str, tags: Value) -> Value {
    let mut all = vec![json!({"key": "span.kind", "type": "string", "value": kind})];
    all.extend(tags.as_object().unwrap().iter().map(|(key, value)| json!({"key": key, "value": value})));
    let above = json!({"refType": "CHILD_OF", "traceID": "1", "spanID": parent});
    let references = if parent.is_empty() { json!([]) } else { json!([above]) };
    json!({"traceID": "1", "spanID": id, "references": references, "startTime": begins, "duration": 5, "tags": all, "processID": "p1"})
}

fn trace(spans: &[Value]) -> Value {
    json!({"traceID": "1", "spans": spans, "processes": {"p1": {"serviceName": "waypoint.app", "tags": []}}})
}

fn tags(called: &str, status: &str) -> Value {
    json!({"upstream_cluster": format!("inbound-vip|9080|http/v1|{called}.app.svc.cluster.local"), "http.status_code": status})
}

#[test]
fn spans_stand_below_their_parents() {
    let mut last = tags("ratings", "500");
    for (key, value) in [("istio.source_workload", json!("reviews-v2")), ("error", json!(true))] {
        last[key] = value;
    }
    let spans = [
        span(("c", "b"), 12, "server", last),
        span(("d", "b"), 13, "server", tags("details", "200")),
        span(("b", "a"), 11, "client", tags("reviews", "200")),
        span(("a", ""), 11, "server", json!({"error": "true"})),
    ];
    let wanted = "\
waypoint.app server - - - > -
  waypoint.app client reviews 200 - > -
    waypoint.app server details 200 - > -
    waypoint.app server ratings 500 reviews-v2 > - ERROR
";
    assert_eq!(tree(&trace(&spans)).unwrap(), wanted);
}

#[test]
fn a_trace_that_is_no_tree_is_none() {
    let one = |id: &str, parent: &str, begins| span((id, parent), begins, "server", json!({}));
    for (spans, says) in [
        (vec![one("a", "", 1), one("c", "b", 2)], "its parent b is not there"),
        (vec![one("a", "", 2), one("b", "a", 1)], "begins before its parent"),
        (vec![one("a", "", 1), one("b", "", 1)], "2 of 2 spans have no parent"),
        (vec![one("a", "", 1), one("b", "c", 1), one("c", "b", 1)], "2 of 3 spans are not below the first"),
        (vec![], "0 of 0 spans have no parent"),
    ] {
        let said = tree(&trace(&spans)).unwrap_err();
        assert!(said.contains(says), "{said}");
    }
    assert_eq!(tree(&Value::Null).unwrap_err(), "no spans");
}

#[test]
fn dropped_spans_are_counted_for_all_reasons() {
    let page = "# TYPE karst_trace_spans_dropped_total counter\nkarst_trace_spans_dropped_total{reason=\"queue_full\"} 2\nkarst_trace_spans_dropped_total{reason=\"export_failed\"} 40\nkarst_trace_spans_exported_total 7\n";
    assert_eq!((dropped(page), dropped("")), (42, 0));
}
