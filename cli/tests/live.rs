//! `tap` and `top` by recorded lines: what is printed of them, and how it ends.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use serde_json::Value;
use std::{
    path::PathBuf,
    process::{Command, Output},
};

/// What `karst tap -o json` has printed: a request, a denied connection, one that goes on, and that something was lost.
const RECORDED: &str = concat!(
    r#"{"node_status":{"node_name":"waypoint-1"}}"#,
    "\n",
    r#"{"flow":{"time":"2026-11-29T15:00:00.123456Z","verdict":"FORWARDED","IP":{"source":"10.0.0.1","destination":"10.0.0.2"},"l4":{"TCP":{"source_port":4000,"destination_port":9080}},"source":{"identity":"spiffe://cluster.local/ns/shop/sa/web","namespace":"shop","pod_name":"web-1","workloads":[{"name":"web","kind":"deployment"}]},"destination":{"namespace":"shop","pod_name":"reviews-v1-1","workloads":[{"name":"reviews-v1","kind":"deployment"}]},"Type":"L7","node_name":"waypoint-1","l7":{"type":"RESPONSE","latency_ns":12345678,"http":{"code":503,"method":"GET","url":"/reviews/7","authority":"reviews","protocol":"HTTP/1.1"}},"destination_service":{"name":"reviews","namespace":"shop"},"traffic_direction":"INGRESS","karst":{"reporter":"waypoint","phase":"request","mtls":true,"bytes_received":0,"bytes_sent":2,"duration_ns":12345678,"service":"shop/reviews.shop.svc.cluster.local"}}}"#,
    "\n",
    r#"{"flow":{"time":"2026-11-29T15:00:01.000001Z","verdict":"DROPPED","drop_reason_desc":"connection denied by policy shop/deny","IP":{"source":"10.0.0.3","destination":"10.0.0.4"},"l4":{"TCP":{"source_port":4001,"destination_port":5432}},"source":{"namespace":"front","pod_name":"sleep-\u001b[2J1","workloads":[{"name":"sleep","kind":"deployment"}]},"destination":{"namespace":"shop","pod_name":"db-0","workloads":[{"name":"db","kind":"statefulset"}]},"Type":"L3_L4","node_name":"node-1","traffic_direction":"INGRESS","ingress_denied_by":[{"namespace":"shop","name":"deny","kind":"AuthorizationPolicy"}],"karst":{"reporter":"ztunnel","phase":"close","response_flags":"DENY","mtls":true,"bytes_received":0,"bytes_sent":0,"duration_ns":1000,"policy":"shop/deny"}}}"#,
    "\n",
    r#"{"flow":{"time":"2026-11-29T15:00:02.000001Z","verdict":"FORWARDED","IP":{"source":"192.0.2.1","destination":"10.0.0.4"},"l4":{"TCP":{"source_port":4002,"destination_port":5432}},"source":{},"destination":{"namespace":"shop","pod_name":"db-0","workloads":[{"name":"db","kind":"statefulset"}]},"Type":"L3_L4","node_name":"node-1","traffic_direction":"INGRESS","karst":{"reporter":"ztunnel","phase":"open","mtls":false,"bytes_received":0,"bytes_sent":0,"duration_ns":1000}}}"#,
    "\n",
    r#"{"lost_events":{"num_events_lost":12}}"#,
    "\n",
);

struct Recorded(PathBuf);

impl Recorded {
    fn new(name: &str) -> Self {
        let file = std::env::temp_dir().join(format!("karst-live-{name}-{}.jsonl", std::process::id()));
        std::fs::write(&file, RECORDED).unwrap();
        Self(file)
    }

    fn run(&self, line: &str) -> Output {
        let words = line.split(' ');
        let mut command = Command::new(env!("CARGO_BIN_EXE_karst"));
        command.args(words).arg("--file").arg(&self.0).env_clear().env("HOME", "/nowhere").output().unwrap()
    }

    fn lines(&self, line: &str) -> Vec<String> {
        let out = self.run(line);
        assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().lines().map(String::from).collect()
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn each_request_and_connection_is_a_line_with_its_reason() {
    let recorded = Recorded::new("text");
    assert_eq!(
        recorded.lines("tap"),
        [
            "15:00:00.123  FORWARDED  shop/web-1 -> shop/reviews:9080  GET /reviews/7 503 12.3ms",
            "15:00:01.000  DROPPED    front/sleep-\u{fffd}[2J1 -> shop/db-0:5432  tcp DENY: connection denied by policy shop/deny",
            "15:00:02.000  FORWARDED  192.0.2.1 -> shop/db-0:5432  tcp opened plaintext",
        ]
    );
    let said = String::from_utf8(recorded.run("tap").stderr).unwrap();
    assert!(said.contains("lost: 12 more than could be sent"), "{said}");
}

#[test]
fn filters_are_those_of_the_proxies() {
    let recorded = Recorded::new("filter");
    for (line, wanted) in [
        ("tap --verdict dropped,error", 1),
        ("tap --status 5xx", 1),
        ("tap -n front", 1),
        ("tap -n other", 0),
        ("tap web.shop", 1),
        ("tap svc/reviews.shop", 1),
        ("tap --to db.shop", 2),
        ("tap --from sleep --to db", 1),
        ("tap --path /reviews/* --method get", 1),
        ("tap --identity */sa/web", 1),
        ("tap --limit 2", 2),
    ] {
        assert_eq!(recorded.lines(line).len(), wanted, "{line}");
    }
}

/// A script reads Hubble's fields; what was lost is among the lines.
#[test]
fn json_is_the_same_lines_again() {
    let recorded = Recorded::new("json");
    let lines: Vec<Value> =
        recorded.lines("tap -o json").iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let wanted: Vec<Value> = RECORDED.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines, wanted);
}

#[test]
fn top_has_rates_success_and_latencies() {
    let recorded = Recorded::new("top");
    let rows: Vec<Vec<String>> = recorded
        .lines("top --paths")
        .iter()
        .map(|line| line.split("   ").map(|cell| cell.trim().to_owned()).filter(|cell| !cell.is_empty()).collect())
        .collect();
    assert_eq!(rows[0], ["FROM", "TO", "REQUEST", "RATE", "SUCCESS", "P50", "P99"]);
    assert_eq!(rows[1], ["front/sleep", "shop/db-0:5432", "tcp", "1.0/s", "0.0%", "-", "-"]);
    assert_eq!(rows[2][..5], ["shop/web", "shop/reviews:9080", "GET /reviews/{*}", "1.0/s", "0.0%"]);
    assert_eq!(rows.len(), 3, "a connection counts when it ends: {rows:?}");
    let value: Value = serde_json::from_str(&recorded.lines("top -o json").concat()).unwrap();
    assert_eq!((&value[0]["count"], &value[0]["success"]), (&1.into(), &0.0.into()));
}
