//! The verbs on a cluster with the mesh installed. Read-only but for one waypoint in a namespace of its own.
//!
//! `KUBECONFIG=… cargo test -p karst-cli --test cluster -- --ignored --test-threads 1`
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use std::process::Command;

struct Answer {
    status: i32,
    out: String,
    err: String,
}

fn karst(line: &str) -> Answer {
    let out = Command::new(env!("CARGO_BIN_EXE_karst")).args(line.split(' ')).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Answer { status: out.status.code().unwrap_or(-1), out: text(&out.stdout), err: text(&out.stderr) }
}

/// The words of the first line, one space between them.
fn head(text: &str) -> String {
    text.lines().next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
#[ignore = "needs a cluster with the mesh: KUBECONFIG"]
fn every_verb_that_reads_prints_istios_columns() {
    let mut failed = vec![];
    for (line, columns) in [
        ("proxy-status", "NAME CLUSTER ISTIOD VERSION SUBSCRIBED TYPES"),
        ("zc workload", "NAMESPACE POD NAME ADDRESS NODE WAYPOINT PROTOCOL"),
        ("zc service", "NAMESPACE SERVICE NAME SERVICE VIP WAYPOINT ENDPOINTS"),
        ("zc policy", "NAMESPACE POLICY NAME ACTION SCOPE"),
        ("zc certificate", "CERTIFICATE NAME TYPE STATUS VALID CERT SERIAL NUMBER NOT AFTER NOT BEFORE"),
        ("zc connections", "WORKLOAD DIRECTION LOCAL REMOTE REMOTE TARGET PROTOCOL"),
        ("check", "CHECK STATUS MESSAGE"),
    ] {
        let answer = karst(line);
        let rows = answer.out.lines().count();
        // A mesh without policies or connections has tables without rows.
        let is_empty = rows < 2 && !matches!(line, "zc policy" | "zc connections");
        if answer.status != 0 || head(&answer.out) != columns || is_empty {
            failed.push(format!("karst {line}: status {}\n{}{}", answer.status, answer.out, answer.err));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
#[ignore = "needs a cluster with the mesh: KUBECONFIG"]
fn versions_and_json() {
    let answer = karst("version -o json");
    let version: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
    assert!(version.pointer("/meshVersion/0/Info/version").is_some(), "{version}\n{}", answer.err);
    assert!(version.pointer("/dataPlaneVersion/0/IstioVersion").is_some(), "{version}");
    for line in ["ps -o json", "zc workload -o json", "zc all -o json", "waypoint list -A -o json"] {
        let answer = karst(line);
        let parsed: Result<serde_json::Value, _> = serde_json::from_str(&answer.out);
        assert!(answer.status == 0 && parsed.is_ok(), "karst {line}: {}{}", answer.out, answer.err);
    }
}

#[test]
#[ignore = "needs a cluster with the mesh: KUBECONFIG"]
fn a_waypoint_is_applied_shown_and_deleted() {
    let place = "default";
    let applied = karst(&format!("waypoint apply -n {place} --name karst-cli-test --wait"));
    let listed = karst(&format!("waypoint list -n {place}"));
    let status = karst(&format!("waypoint status karst-cli-test -n {place}"));
    let routes = karst(&format!("pc all deploy/karst-cli-test -n {place}"));
    let deleted = karst(&format!("waypoint delete karst-cli-test -n {place}"));
    assert!(applied.out.contains("is ready!"), "{}{}", applied.out, applied.err);
    assert!(listed.out.contains("karst-cli-test"), "{}", listed.out);
    assert!(status.status == 0 && status.out.contains("True"), "{}{}", status.out, status.err);
    assert!(routes.status == 0 && routes.out.contains("LISTENER"), "{}{}", routes.out, routes.err);
    assert!(deleted.out.contains("deleted"), "{}{}", deleted.out, deleted.err);
}

#[test]
#[ignore = "needs a cluster with the mesh: KUBECONFIG"]
fn a_report_has_no_secret() {
    let dir = std::env::temp_dir().join(format!("karst-report-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let answer = karst(&format!("bug-report --dir {}", dir.display()));
    let file = std::fs::read_dir(&dir).unwrap().next().unwrap().unwrap().path();
    let mut archive = tar::Archive::new(std::fs::File::open(&file).unwrap());
    let mut names = vec![];
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        names.push(entry.path().unwrap().display().to_string());
        let mut text = String::new();
        std::io::Read::read_to_string(&mut entry, &mut text).unwrap();
        assert!(!text.contains("PRIVATE KEY"), "{names:?}");
    }
    std::fs::remove_dir_all(&dir).unwrap();
    assert_eq!(answer.status, 0, "{}", answer.err);
    for part in ["versions.txt", "objects/Pod.yaml", "ztunnel/", "istiod/", "missing.txt"] {
        assert!(names.iter().any(|name| name.contains(part)), "{part}: {names:?}");
    }
    assert!(!names.iter().any(|name| name.contains("Secret")), "{names:?}");
}
