#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
use crate::{options::Global, problem::Exit, session::Session, verbs::Verb};
use serde_json::{Value, json};
use std::{fs, path::PathBuf, process};

const OBJECTS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web, pod-template-hash: abc}}
spec: {serviceAccountName: web}
status: {phase: Running, podIPs: [{ip: 10.0.1.1}], conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db-1, namespace: shop, labels: {app: db}}
spec: {serviceAccountName: db}
status: {phase: Running, podIPs: [{ip: 10.0.1.2}], conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec: {clusterIP: 10.96.0.1, selector: {app: reviews}, ports: [{name: http, port: 9080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: waypoint-1, namespace: shop, labels: {gw: w, networking.istio.io/tunnel: http, istio.io/dataplane-mode: none}}
spec: {serviceAccountName: waypoint}
status: {phase: Running, podIPs: [{ip: 10.0.1.50}], conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Service
metadata: {name: waypoint, namespace: shop, labels: {gateway.networking.k8s.io/managed: istio.io-mesh-controller}}
spec: {clusterIP: 10.96.0.2, selector: {gw: w}, ports: [{name: mesh, port: 15008}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
status: {addresses: [{type: IPAddress, value: 10.96.0.2}]}
";

/// A directory of this test's own.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir = Self(std::env::temp_dir().join(format!("karst-policy-{name}-{}", process::id())));
        fs::create_dir_all(&dir.0).unwrap();
        dir.write("objects.yaml", OBJECTS);
        dir.write("book.json", &book().to_string());
        dir
    }
    fn write(&self, file: &str, text: &str) {
        fs::write(self.0.join(file), text).unwrap();
    }
    /// What is printed, and how the process would end.
    fn run(&self, line: &str) -> (String, Option<Exit>) {
        let dir = self.0.display().to_string();
        let words: Vec<_> = line.split(' ').map(|word| word.replace("DIR", &dir).into()).collect();
        let cli = crate::parse(&words, "karst").unwrap();
        let Verb::Policy(verb) = cli.verb else { unreachable!() };
        let (global, mut out): (&Global, _) = (&cli.global, vec![]);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let ended = {
            let mut session = Session::to(global, "karst", &mut out);
            runtime.block_on(verb.run(&mut session))
        };
        (String::from_utf8(out).unwrap(), ended.err().map(|e| e.status()))
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn book() -> Value {
    let flow = |reporter: &str, to: Value, port: u16, source: Value, more: Value| {
        let mut flow = json!({
            "reporter": reporter, "destination": to, "port": port, "source": source, "verdict": "allowed",
            "count": 10, "first": 1_700_000_000, "last": 1_700_000_100,
            "example": { "from": "10.0.1.1", "to": "10.0.1.2:5432" },
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            flow[key] = value.clone();
        }
        flow
    };
    let by = |account: &str| json!({ "identity": format!("spiffe://cluster.local/ns/shop/sa/{account}") });
    let request = |method: &str, path: &str, example: &str| {
        let example = json!({ "from": "10.0.1.1", "to": "10.96.0.1:9080", "host": "reviews.shop", "path": example });
        json!({ "method": method, "path": path, "example": example })
    };
    let reviews = json!({ "namespace": "shop", "service": "shop/reviews.shop.svc.cluster.local" });
    let db = json!({ "namespace": "shop", "workload": "db-1" });
    json!({ "enabled": true, "since": 1_700_000_000, "capacity": 4096, "evicted": 0, "flows": [
        flow("ztunnel", db.clone(), 5432, by("web"), json!({})),
        flow("ztunnel", db, 5432, by("batch"), json!({ "count": 2 })),
        flow("waypoint", reviews.clone(), 9080, by("web"), request("GET", "/reviews/{*}", "/reviews/17")),
        flow("waypoint", reviews, 9080, by("web"), request("DELETE", "/reviews/{*}", "/reviews/4")),
    ] })
}

const OFFLINE: &str = "--flows DIR/book.json --objects DIR/objects.yaml";

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: new, namespace: shop}}\nspec: {spec}\n"
    )
}

#[test]
fn what_would_be_refused_is_told_with_an_example() {
    let dir = Dir::new("refused");
    dir.write(
        "new.yaml",
        &policy(
            "{targetRefs: [{group: '', kind: Service, name: reviews}], rules: [{to: [{operation: {methods: [GET]}}]}]}",
        ),
    );
    let (out, exit) = dir.run(&format!("karst policy test DIR/new.yaml {OFFLINE}"));
    let words: Vec<&str> = out.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!((words[0], words[1], exit), ("refused", "10", Some(Exit::Findings)), "{out}");
    assert!(out.contains("DELETE /reviews/{*}   no ALLOW policy matches   10.0.1.1 /reviews/4"), "{out}");
    assert!(out.contains("4 flows (32 calls) of 1 proxies") && out.contains("newly refused 1 (10 calls)"), "{out}");
    let (out, exit) = dir.run(&format!("karst policy test DIR/new.yaml {OFFLINE} -o json"));
    let answer: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((answer["flows"].as_u64(), answer["changes"][0]["change"].as_str()), (Some(4), Some("refused")));
    assert_eq!((answer["changes"][0]["method"].as_str(), exit), (Some("DELETE"), Some(Exit::Findings)));
}

#[test]
fn what_cannot_be_known_is_said() {
    let dir = Dir::new("unknown");
    let header = "rules: [{when: [{key: 'request.headers[x-role]', values: [admin]}]}]";
    dir.write(
        "new.yaml",
        &policy(&format!("{{action: DENY, targetRefs: [{{group: '', kind: Service, name: reviews}}], {header}}}")),
    );
    let (out, exit) = dir.run(&format!("karst policy test DIR/new.yaml {OFFLINE}"));
    assert!(out.contains("cannot be said 2 (20 calls)") && out.contains("headers, tokens or names of TLS"), "{out}");
    assert_eq!(exit, Some(Exit::Unknown), "{out}");
}

#[test]
fn a_proxy_that_could_not_be_read_is_no_all_clear() {
    let dir = Dir::new("unread");
    let mut saved = json!({ "proxies": [{ "name": "a", "enabled": true, "since": 1, "evicted": 0 }] });
    saved["flows"] = book()["flows"].clone();
    let policy = policy("{action: DENY, rules: [{from: [{source: {principals: [cluster.local/ns/x/sa/x]}}]}]}");
    dir.write("new.yaml", &policy);
    dir.write("book.json", &saved.to_string());
    let line = format!("karst policy test DIR/new.yaml {OFFLINE}");
    let (out, exit) = dir.run(&line);
    assert_eq!(exit, None, "{out}");
    saved["unread"] = json!([{ "name": "ztunnel-2.istio-system", "why": "no answer" }]);
    dir.write("book.json", &saved.to_string());
    let (out, exit) = dir.run(&line);
    let note = "1 of 2 proxies could not be read, and what they have seen is not known: ztunnel-2.istio-system";
    assert!(out.contains(note), "{out}");
    assert_eq!(exit, Some(Exit::Unknown), "{out}");
    let (out, exit) = dir.run(&format!("{line} -o json"));
    let answer: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((answer["unread"][0]["why"].as_str(), exit), (Some("no answer"), Some(Exit::Unknown)), "{out}");
    assert!(answer["limits"][0].as_str().unwrap().starts_with(note), "{out}");
}

#[test]
fn what_would_be_allowed_is_told() {
    let dir = Dir::new("allowed");
    dir.write("objects.yaml", &format!("{OBJECTS}---\n{}", policy("{selector: {matchLabels: {app: db}}}")));
    let allow = "rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]";
    dir.write("new.yaml", &policy(&format!("{{selector: {{matchLabels: {{app: db}}}}, {allow}}}")));
    let (out, exit) = dir.run(&format!("karst policy test DIR/new.yaml {OFFLINE}"));
    assert!(out.contains("newly refused 0 (0 calls), newly allowed 1 (10 calls)"), "{out}");
    assert!(out.contains("Note: 2 flows end otherwise by the present policies"), "{out}");
    assert_eq!(exit, None, "{out}");
}

#[test]
fn what_is_suggested_is_valid_and_refuses_nothing() {
    let dir = Dir::new("suggest");
    let (out, exit) = dir.run(&format!("karst policy suggest -n shop {OFFLINE}"));
    assert_eq!(exit, None, "{out}");
    assert!(out.contains("# Replayed: 4 flows (32 calls), 0 refused."), "{out}");
    let documents: Vec<Value> = out.split("---\n").skip(1).map(|text| serde_yaml_ng::from_str(text).unwrap()).collect();
    let names: Vec<_> = documents.iter().map(|one| one["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["callers-of-reviews", "connections-to-db"]);
    assert_eq!(documents[1]["spec"]["selector"]["matchLabels"], json!({ "app": "db" }));
    dir.write("new.yaml", &out);
    let (tested, exit) = dir.run(&format!("karst policy test DIR/new.yaml {OFFLINE}"));
    assert!(exit.is_none() && tested.contains("newly refused 0 (0 calls)"), "{tested}");
    assert_eq!(dir.run(&format!("karst policy suggest -n shop {OFFLINE}")).0, out, "the same book, the same text");
    let marked = dir.run(&format!("karst policy suggest -n shop --dry-run {OFFLINE}")).0;
    assert_eq!(marked.matches("istio.io/dry-run: 'true'").count(), 2, "{marked}");
    assert_eq!(dir.run(&format!("karst policy suggest -n nowhere {OFFLINE}")).1, Some(Exit::Unknown));
}

/// A ServiceEntry with a waypoint gets one as a service does; of a gateway it is said why it gets none.
#[test]
fn policies_are_suggested_for_service_entries_and_gateways_are_left_to_the_user() {
    let dir = Dir::new("entries");
    let entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: maps, namespace: shop, labels: \
                 {istio.io/use-waypoint: waypoint}}\nspec: {hosts: [maps.example.com], addresses: [240.240.0.9], resolution: \
                 STATIC, location: MESH_EXTERNAL, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: \
                 192.0.2.9}]}\n";
    let same_name = "apiVersion: v1\nkind: Service\nmetadata: {name: maps, namespace: shop}\nspec: {clusterIP: 10.96.0.9, \
                     selector: {app: maps}, ports: [{name: http, port: 80}]}\n";
    dir.write("objects.yaml", &format!("{OBJECTS}---\n{entry}---\n{same_name}"));
    let mut book = book();
    let mut flow = book["flows"][2].clone();
    flow["destination"]["service"] = "shop/maps.example.com".into();
    flow["port"] = 80.into();
    flow["example"]["host"] = "maps.example.com".into();
    flow["example"]["to"] = "240.240.0.9:80".into();
    let gateway = json!({
        "reporter": "gateway", "destination": { "namespace": "shop", "workload": "web-1" }, "port": 80,
        "source": { "addresses": "203.0.113.0/24" }, "verdict": "allowed", "count": 1, "first": 1, "last": 2,
        "method": "GET", "path": "/", "example": { "from": "203.0.113.9", "to": "10.0.1.1:80", "path": "/" },
    });
    book["flows"] = json!([flow, gateway]);
    dir.write("book.json", &book.to_string());
    let (out, exit) = dir.run(&format!("karst policy suggest -n shop {OFFLINE}"));
    assert_eq!(exit, None, "{out}");
    assert!(out.contains("# Replayed: 1 flows (10 calls), 0 refused."), "{out}");
    assert!(out.contains("left out: 1 flows are of callers of gateways"), "{out}");
    let documents: Vec<Value> = out.split("---\n").skip(1).map(|text| serde_yaml_ng::from_str(text).unwrap()).collect();
    assert_eq!(documents.len(), 1, "{out}");
    let target = json!([{ "group": "networking.istio.io", "kind": "ServiceEntry", "name": "maps" }]);
    assert_eq!(documents[0]["spec"]["targetRefs"], target, "{out}");
    let deny = out.replace("action: ALLOW", "action: DENY");
    dir.write("deny.yaml", &deny);
    let (tested, _) = dir.run(&format!("karst policy test DIR/deny.yaml {OFFLINE}"));
    assert!(tested.contains("newly refused 1 (10 calls)"), "it is attached to what was called: {tested}");
}

#[test]
fn an_empty_book_says_nothing() {
    let dir = Dir::new("empty");
    dir.write("new.yaml", &policy("{}"));
    dir.write("book.json", r#"{"enabled": true, "flows": []}"#);
    assert_eq!(dir.run(&format!("karst policy test DIR/new.yaml {OFFLINE}")).1, Some(Exit::Unknown));
    let (out, exit) = dir.run("karst policy flows --flows DIR/book.json");
    assert_eq!((out.lines().count(), exit), (1, None), "{out}");
}
