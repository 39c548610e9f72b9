//! Our own command line on the cluster: what it shows is there, what it installs runs, and what it removes is gone.

use crate::{Apps, apps, install_gateway_api, talk};
use karst_e2e::{Following, Istioctl, LONG, Shell, karst, kubectl, try_karst, try_kubectl};
use karst_world::wait_for;
use serde_json::Value;
use std::{fs, io::Read, time::Duration};

const SYSTEM: &str = "istio-system";

/// The words of the first line, one space between them.
fn head(text: &str) -> String {
    text.lines().next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The verbs that read, with Istio's columns, and a waypoint from its making to its end.
pub fn exercise(apps: &Apps) {
    tables();
    versions_and_json();
    waypoint();
    explained(apps);
    tapped(apps);
    policies(apps);
    report_without_secrets();
}

fn tables() {
    let pod = |prefix: &str, table: &str| table.lines().any(|line| line.contains(prefix));
    for (line, columns) in [
        ("proxy-status", "NAME CLUSTER ISTIOD VERSION SUBSCRIBED TYPES"),
        ("zc workload", "NAMESPACE POD NAME ADDRESS NODE WAYPOINT PROTOCOL"),
        ("zc service", "NAMESPACE SERVICE NAME SERVICE VIP WAYPOINT ENDPOINTS"),
        ("zc policy", "NAMESPACE POLICY NAME ACTION SCOPE"),
        ("zc certificate", "CERTIFICATE NAME TYPE STATUS VALID CERT SERIAL NUMBER NOT AFTER NOT BEFORE"),
        ("zc connections", "WORKLOAD DIRECTION LOCAL REMOTE REMOTE TARGET PROTOCOL"),
        ("check", "CHECK STATUS MESSAGE"),
    ] {
        let table = karst(&line.split(' ').collect::<Vec<_>>());
        println!("karst {line}: {} lines", table.lines().count());
        assert_eq!(head(&table), columns, "karst {line}");
        match line {
            "proxy-status" => assert!(pod("ztunnel-", &table), "{table}"),
            "zc workload" => assert!(pod("client", &table) && pod("HBONE", &table), "{table}"),
            "zc service" => assert!(pod("echo", &table), "{table}"),
            "zc certificate" => assert!(pod("spiffe://", &table), "{table}"),
            _ => {}
        }
    }
}

fn versions_and_json() {
    let json = |line: &str| -> Value {
        let text = karst(&line.split(' ').collect::<Vec<_>>());
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("karst {line}: {e}: {text}"))
    };
    let version = json("version -o json");
    assert!(version.pointer("/meshVersion/0/Info/version").is_some(), "{version}");
    assert!(version.pointer("/dataPlaneVersion/0/IstioVersion").is_some(), "{version}");
    for line in ["ps -o json", "zc workload -o json", "zc all -o json", "waypoint list -A -o json"] {
        json(line);
    }
    let described = json("x describe service echo -n app -o json");
    assert_eq!(described["ports"][0]["targetPort"], "9000", "{described}");
}

fn waypoint() {
    let applied = karst(&["waypoint", "apply", "-n", "default", "--name", "karst-cli-test", "--wait"]);
    let listed = karst(&["waypoint", "list", "-n", "default"]);
    let status = karst(&["waypoint", "status", "karst-cli-test", "-n", "default"]);
    let dump = karst(&["pc", "all", "deploy/karst-cli-test", "-n", "default"]);
    let deleted = karst(&["waypoint", "delete", "karst-cli-test", "-n", "default"]);
    assert!(applied.contains("is ready!"), "{applied}");
    assert!(listed.contains("karst-cli-test"), "{listed}");
    assert!(status.contains("True"), "{status}");
    assert!(dump.contains("LISTENER"), "{dump}");
    assert!(deleted.contains("deleted"), "{deleted}");
}

/// What `explain` says of a call is what becomes of it.
fn explained(apps: &Apps) {
    let call = ["explain", "client.app", "echo.app", "--port", "9000"];
    talk(&apps.client, apps.service).unwrap();
    karst(&call);
    crate::policy("nobody", "{}");
    wait_for("the refusal", LONG, || talk(&apps.client, apps.service).err());
    let refused = try_karst(&call).unwrap_err();
    kubectl(&["-n", "app", "delete", "authorizationpolicy", "nobody"]);
    assert!(refused.contains("app/nobody"), "{refused}");
    wait_for("the permission", LONG, || talk(&apps.client, apps.service).ok());
}

/// A refused call is shown within a second, with the policy that has refused it.
fn tapped(apps: &Apps) {
    const DENIED: &str = "denied by policy app/no-calls";
    crate::policy("no-calls", "{action: DENY, rules: [{}]}");
    wait_for("the refusal", LONG, || talk(&apps.client, apps.service).err());
    let look = Following::karst(&["tap", "client", "-n", "app", "--verdict", "dropped", "--for", "2m"]);
    // What is called before it has begun to look is not shown.
    let (first, _) = wait_for("the beginning of the look", LONG, || {
        talk(&apps.client, apps.service).unwrap_err();
        look.next(DENIED, Duration::from_millis(200))
    });
    println!("karst tap: {first}");
    assert!(first.contains("DROPPED"), "{first}");
    let mut slowest = Duration::ZERO;
    for _ in 0..10 {
        look.forget(Duration::from_millis(300));
        talk(&apps.client, apps.service).unwrap_err();
        let (_, took) = look.next(DENIED, Duration::from_secs(10)).expect("the refusal is shown");
        slowest = slowest.max(took);
    }
    println!("karst tap: of ten refused calls the slowest was shown after {} ms", slowest.as_millis());
    drop(look);
    kubectl(&["-n", "app", "delete", "authorizationpolicy", "no-calls"]);
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    wait_for("the permission", LONG, || talk(&apps.client, apps.service).ok());
}

/// What was seen is in the book of flows; a policy is judged by it; and the least that it needs lets in what was seen, and no more.
fn policies(apps: &Apps) {
    const CLIENT: &str = "spiffe://cluster.local/ns/app/sa/client";
    const DENY: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-client, namespace: app}
spec: {action: DENY, rules: [{from: [{source: {principals: [cluster.local/ns/app/sa/client]}}]}]}
";
    let is_clients = |flow: &Value| {
        let is_echo = flow["destination"]["workload"] == "echo";
        is_echo && flow["source"]["identity"] == CLIENT && flow["verdict"] == "allowed"
    };
    talk(&apps.client, apps.service).unwrap();
    let mut book = wait_for("the client's flow in the book", LONG, || {
        let book: Value = serde_json::from_str(&karst(&["policy", "flows", "-n", "app", "-o", "json"])).ok()?;
        book["flows"].as_array()?.iter().any(is_clients).then_some(book)
    });
    let shell = Shell::new(Istioctl::Ours, "app");
    fs::write(shell.folder().join("deny.yaml"), DENY).unwrap();
    let judged = shell.run("karst policy test \"$HOME/deny.yaml\"; [ $? = 79 ]", "");
    let is_refused = |line: &str| line.starts_with("refused") && line.contains("cluster.local/ns/app/sa/client");
    assert!(judged.is_success && judged.text.lines().any(is_refused), "{}", judged.text);
    let suggested = karst(&["policy", "suggest", "-n", "app"]);
    assert!(suggested.contains("AuthorizationPolicy") && suggested.contains(", 0 refused."), "{suggested}");
    // Of the client's calls alone: then nobody else's are let in.
    book["flows"].as_array_mut().unwrap().retain(is_clients);
    fs::write(shell.folder().join("book.json"), book.to_string()).unwrap();
    let least = "karst policy suggest --flows \"$HOME/book.json\" > \"$HOME/least.yaml\"";
    let applied = shell.run(&format!("{least} && kubectl apply -f \"$HOME/least.yaml\""), "");
    assert!(applied.is_success, "{}", applied.text);
    wait_for("the least policy in force", LONG, || talk(&apps.other, apps.service).err());
    for _ in 0..10 {
        talk(&apps.client, apps.service).unwrap();
    }
    let deleted = shell.run("kubectl delete -f \"$HOME/least.yaml\"", "");
    assert!(deleted.is_success, "{}", deleted.text);
    wait_for("the permission", LONG, || talk(&apps.other, apps.service).ok());
    println!(
        "karst policy: a denial is told of before it is applied; the least policy lets the client in, and nobody else"
    );
}

fn report_without_secrets() {
    let dir = std::env::temp_dir().join(format!("karst-report-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    karst(&["bug-report", "--dir", dir.to_str().unwrap()]);
    let file = fs::read_dir(&dir).unwrap().next().unwrap().unwrap().path();
    let mut bytes = vec![];
    fs::File::open(&file).unwrap().read_to_end(&mut bytes).unwrap();
    fs::remove_dir_all(&dir).unwrap();
    let has = |what: &str| bytes.windows(what.len()).any(|window| window == what.as_bytes());
    for part in ["versions.txt", "objects/Pod.yaml", "ztunnel/", "istiod/"] {
        assert!(has(part), "{part} is not in {}", file.display());
    }
    assert!(!has("PRIVATE KEY") && !has("kind: Secret"), "{}", file.display());
}

/// With nothing but `karst` and a kubeconfig: installed, unchanged by a second time, used, and removed without a trace.
pub fn installs_and_removes() {
    let installed = karst(&["install", "-y"]);
    println!("{installed}");
    let again = karst(&["install", "--dry-run"]);
    assert!(again.contains("0 to create, 0 to change, 0 to remove"), "{again}");
    install_gateway_api();
    let apps = apps();
    apps.mesh(true);
    talk(&apps.client, apps.service).unwrap();
    let checked = karst(&["check"]);
    println!("{checked}");
    let upgraded = karst(&["upgrade", "-y"]);
    println!("{upgraded}");
    talk(&apps.client, apps.service).unwrap();
    let removed = karst(&["uninstall", "--purge", "-y"]);
    println!("{removed}");
    wait_for("plain traffic", LONG, || talk(&apps.client, apps.service).ok());
    kubectl(&["delete", "namespace", "app", "outside", SYSTEM, "--timeout=90s"]);
    let kinds = "clusterrole,clusterrolebinding,validatingwebhookconfiguration,validatingadmissionpolicy";
    let left = kubectl(&["get", kinds, "-o", "name"]);
    let ours: Vec<&str> = left.lines().filter(|line| line.contains("istio") || line.contains("ztunnel")).collect();
    assert!(ours.is_empty(), "{ours:?}");
    assert!(try_kubectl(&["get", "namespace", SYSTEM]).is_err());
}
