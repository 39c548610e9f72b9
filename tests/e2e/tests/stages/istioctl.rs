//! Istio's own istioctl on the cluster. A row that is missing is a failure; what a row must say comes from the API server.

use crate::{Apps, MARK, condition, policy, talk};
use karst_e2e::{Istioctl, LONG, Pod, Shell, apply, get, istioctl, kubectl, try_istioctl, try_kubectl, vip};
use karst_world::wait_for;
use serde_json::Value;
use std::{
    net::TcpStream,
    time::{Duration, Instant},
};

const SYSTEM: &str = "istio-system";
/// As the controller says it is.
const LEVEL: &str = "1.30.0";
const WAYPOINT: &str = "gateway.networking.k8s.io/gateway-name=waypoint";
const GATEWAY: &str = "gateway.networking.k8s.io/gateway-name=edge";
/// An HTTP port for the waypoint's routes, and a gateway with a route to it.
const OBJECTS: &str = "apiVersion: v1
kind: Service
metadata: {name: web, namespace: app}
spec: {selector: {app: echo}, ports: [{name: http, port: 80, targetPort: 9000}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: app}
spec:
  parentRefs: [{group: \"\", kind: Service, name: web}]
  rules: [{matches: [{path: {type: PathPrefix, value: /istioctl}}], backendRefs: [{name: web, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: app, annotations: {networking.istio.io/service-type: ClusterIP}}
spec: {gatewayClassName: istio, listeners: [{name: http, port: 80, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: edge, namespace: app}
spec:
  parentRefs: [{name: edge}]
  hostnames: [edge.example.com]
  rules: [{backendRefs: [{name: web, port: 80}]}]
";

/// A line that has all these words, as whole words.
fn row<'a>(table: &'a str, words: &[&str]) -> Option<&'a str> {
    table.lines().find(|line| {
        let all: Vec<&str> = line.split([' ', '\t', ',']).collect();
        words.iter().all(|word| all.contains(word))
    })
}

/// Waits until istioctl shows such a line: what it shows is what proxies hold, and they are told a moment later.
fn shows(args: &[&str], words: &[&str]) {
    let (begun, mut last) = (Instant::now(), String::new());
    let found = std::iter::repeat_with(|| {
        last = try_istioctl(args).unwrap_or_else(|e| e);
        row(&last, words).is_some() || {
            std::thread::sleep(Duration::from_millis(500));
            false
        }
    })
    .take_while(|_| begun.elapsed() < LONG)
    .any(|found| found);
    assert!(found, "istioctl {}: no row with {words:?}:\n{last}", args.join(" "));
    println!("istioctl {}: {words:?}", args.join(" "));
}

/// The answer as JSON.
fn json(args: &[&str]) -> Value {
    let text = istioctl(&[args, &["-o", "json"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("istioctl {}: {e}: {text}", args.join(" ")))
}

fn pods(label: &str) -> Vec<Value> {
    let list = get(&["pods", "-n", SYSTEM, "-l", label, "--field-selector=status.phase=Running"]);
    list["items"].as_array().unwrap().clone()
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap()
}

/// All of it, with `app` in the mesh.
pub fn exercise(apps: &Apps) {
    control_plane();
    bug_report();
    ztunnel(apps);
    proxies();
    who_may_read(apps);
    kubectl(&["delete", "--ignore-not-found", "-n", "app", "httproute/web", "httproute/edge", "service/web"]);
    kubectl(&["delete", "--ignore-not-found", "-n", "app", "gateways.gateway.networking.k8s.io/edge"]);
    kubectl(&["-n", "app", "label", "service", "echo", "istio.io/use-waypoint-"]);
    let gone = istioctl(&["waypoint", "delete", "waypoint", "-n", "app"]);
    assert!(gone.contains("waypoint"), "{gone}");
}

/// `version`, `proxy-status`, `admin log`, and by themselves the pages of bug-report.
fn control_plane() {
    let version = json(&["version"]);
    assert_eq!(version["meshVersion"][0]["Info"]["version"], LEVEL, "{version}");
    let proxies = version["dataPlaneVersion"].as_array().unwrap();
    let (ztunnels, controllers) = (pods("app=ztunnel"), pods("app=istiod"));
    assert!(ztunnels.len() == 2 && proxies.len() >= ztunnels.len(), "{version}");
    for pod in &ztunnels {
        let id = format!("{}.{SYSTEM}", name(pod));
        shows(&["proxy-status"], &[&id, "Kubernetes"]);
        assert!(proxies.iter().any(|proxy| proxy["ID"] == id.as_str()), "{id}: {version}");
    }
    let table = istioctl(&["proxy-status"]);
    let served = |line: &&str| controllers.iter().any(|pod| line.contains(name(pod)));
    assert!(table.lines().skip(1).all(|line| served(&line)), "{table}");
    shows(&["proxy-status", "-v", "1"], &["SYNCED"]);
    json(&["proxy-status"]);

    let controller = name(&controllers[0]);
    shows(&["admin", "log", controller], &["audit", "info"]);
    istioctl(&["admin", "log", controller, "--level", "audit:debug"]);
    shows(&["admin", "log", controller], &["audit", "debug"]);
    istioctl(&["admin", "log", controller, "--level", "audit:info"]);
    shows(&["admin", "log", controller], &["audit", "info"]);

    for page in ["syncz", "registryz", "endpointz", "ambientz", "adsz"] {
        let path = format!("debug/{page}");
        let text = kubectl(&["-n", SYSTEM, "exec", controller, "--", "pilot-discovery", "request", "GET", &path]);
        let page: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}: {text}"));
        assert!(page.is_array() || page.is_object(), "{path}: {page}");
    }
    let raw = istioctl(&["x", "internal-debug", "syncz"]);
    assert!(raw.contains("\"proxy_type\"") && raw.contains("\"ztunnel\""), "{raw}");
}

/// `bug-report` of the mesh's own pods: it calls kubectl, and so has a user's shell. It throws away all that it has of istiod's pages, or
/// of a ztunnel's, if one of them is an error.
fn bug_report() {
    // There is no netstat in any image.
    const REPORT: &str = "istioctl bug-report --include istio-system --skip-analyze --skip-netstat --timeout 60s \
        --dir \"$HOME/pages\" --output-dir \"$HOME\" && tar -tzf \"$HOME/bug-report.tar.gz\"";
    let begun = Instant::now();
    let said = Shell::new(Istioctl::Stock, "default").run(REPORT, "");
    println!("istioctl bug-report: {:.1} s", begun.elapsed().as_secs_f64());
    assert!(said.is_success, "{}", said.text);
    let has = |file: &str| assert!(said.text.lines().any(|line| line == file), "no {file}: {}", said.text);
    for pod in pods("app=istiod") {
        for file in ["discovery.log", "debug/syncz", "debug/ambientz", "metrics"] {
            has(&format!("istio/{SYSTEM}/{}/{file}", name(&pod)));
        }
    }
    for pod in pods("app=ztunnel") {
        for file in ["istio-proxy.log", "config_dump"] {
            has(&format!("proxies/{SYSTEM}/{}/{file}", name(&pod)));
        }
    }
    for file in ["versions", "cluster/pods", "cluster/k8s-resources"] {
        has(file);
    }
}

/// Every verb of `ztunnel-config`.
fn ztunnel(apps: &Apps) {
    for pod in [&apps.client, &apps.echo] {
        shows(&["ztunnel-config", "workload"], &["app", &pod.name, &pod.ip.to_string(), "HBONE"]);
    }
    let outside = &apps.outside;
    shows(&["ztunnel-config", "workload"], &["outside", &outside.name, &outside.ip.to_string(), "TCP"]);
    shows(&["ztunnel-config", "service"], &["app", "echo", &vip("app", "echo").to_string(), "2/2"]);
    policy("seen-by-istioctl", "{action: DENY, rules: [{from: [{source: {namespaces: [nobody]}}]}]}");
    shows(&["ztunnel-config", "policy"], &["app", "seen-by-istioctl", "Deny"]);
    kubectl(&["-n", "app", "delete", "authorizationpolicy", "seen-by-istioctl"]);

    let node = get(&["pod", "-n", "app", "client"])["spec"]["nodeName"].as_str().unwrap().to_string();
    let all = pods("app=ztunnel");
    let local = all.iter().find(|pod| pod["spec"]["nodeName"] == node.as_str()).unwrap();
    let local = format!("{}.{SYSTEM}", name(local));
    talk(&apps.client, apps.service).unwrap();
    let certificates = ["ztunnel-config", "certificate", &local];
    let identity = "spiffe://cluster.local/ns/app/sa/client";
    shows(&certificates, &[identity, "Leaf", "Available", "true"]);
    shows(&certificates, &[identity, "Root", "true"]);
    let dump = json(&certificates);
    let own = dump.as_array().unwrap().iter().find(|one| one["identity"] == identity).unwrap();
    let serial = own["certChain"][0]["serialNumber"].as_str().unwrap();
    assert!(!serial.is_empty() && serial.bytes().all(|b| b.is_ascii_digit()), "{serial}");

    let to = apps.service;
    let open = apps.client.netns().run(|| TcpStream::connect_timeout(&to, Duration::from_secs(3))).unwrap().unwrap();
    let mut held = open;
    karst_world::app::ping(&mut held, MARK).unwrap();
    shows(&["ztunnel-config", "connections", &local], &["client.app", "Outbound", "HBONE"]);
    drop(held);

    for verb in ["workload", "service", "policy", "certificate", "all"] {
        let dump = json(&["ztunnel-config", verb, &local]);
        assert!(dump.is_array() || dump.is_object(), "{verb}: {dump}");
    }
    let said = istioctl(&["ztunnel-config", "log", &local, "--level", "info"]);
    assert!(said.contains("info"), "{said}");
}

/// A waypoint and a gateway: `waypoint`, `proxy-config`, `analyze`, `x describe`.
fn proxies() {
    istioctl(&["waypoint", "apply", "-n", "app", "--wait"]);
    shows(&["waypoint", "list", "-n", "app"], &["waypoint", "True"]);
    shows(&["waypoint", "status", "-n", "app"], &["waypoint", "True", "Programmed"]);
    apply(OBJECTS);
    for service in ["echo", "web"] {
        kubectl(&["-n", "app", "label", "service", service, "--overwrite", "istio.io/use-waypoint=waypoint"]);
    }
    let gateway = ["gateways.gateway.networking.k8s.io", "-n", "app", "edge"];
    wait_for("the gateway is programmed", LONG, || {
        condition(&gateway, "Programmed").filter(|(status, _)| status == "True").map(drop)
    });
    wait_for("pods of the proxies", LONG, || {
        let ready = ["rollout", "status", "--timeout=5s", "-n", "app"];
        try_kubectl(&[&ready[..], &["deploy/waypoint"]].concat()).ok()?;
        try_kubectl(&[&ready[..], &["deploy/edge-istio"]].concat()).ok()
    });
    let (waypoint, edge) = (Pod::by_label("app", WAYPOINT).name, Pod::by_label("app", GATEWAY).name);
    let (waypoint, edge) = (format!("{waypoint}.app"), format!("{edge}.app"));
    let host = |service: &str| format!("{service}.app.svc.cluster.local");
    let endpoint = format!("{}:9000", Pod::by_label("app", "app=echo").ip);
    for (proxy, direction) in [(&waypoint, "inbound-vip"), (&edge, "outbound")] {
        shows(&["proxy-status"], &[proxy.as_str()]);
        let config = |what| ["proxy-config", what, proxy.as_str()];
        for (service, port) in [("echo", "9000"), ("web", "80")] {
            shows(&config("clusters"), &[&host(service), port, direction, "EDS"]);
        }
        shows(&config("endpoints"), &[&endpoint, "HEALTHY"]);
        shows(&config("secret"), &["default", "ACTIVE", "true"]);
        shows(&config("secret"), &["ROOTCA", "CA", "true"]);
        for what in ["clusters", "endpoints", "listeners", "routes", "secret", "bootstrap", "all"] {
            json(&config(what));
        }
    }
    let web = format!("inbound-vip|80|http|{}", host("web"));
    shows(&["proxy-config", "routes", &waypoint], &[&web, "PathPrefix:/istioctl"]);
    shows(&["proxy-config", "routes", &edge], &["edge.example.com"]);
    shows(&["proxy-config", "listeners", &edge], &["80"]);
    let listeners = istioctl(&["proxy-config", "listeners", &waypoint]);
    assert!(listeners.contains(&web) && listeners.contains("connect_terminate"), "{listeners}");

    // With findings it ends with a status of its own; none of them may be an error.
    let analysis = try_istioctl(&["analyze", "-n", "app"]).unwrap_or_else(|e| e);
    assert!(!analysis.contains("Error [") && !analysis.is_empty(), "{analysis}");
    // It looks for sidecars' containers (docs/coming-from-istio.md): for a pod of any ambient mesh it fails.
    let described = istioctl(&["x", "describe", "service", "echo", "-n", "app"]);
    assert!(described.contains("has no Istio pods"), "{described}");
}

/// From another pod, metrics and version are for everybody, debug pages are not.
fn who_may_read(apps: &Apps) {
    let ask = |page: &str| {
        let url = format!("http://istiod.{SYSTEM}:15014/{page}");
        let Pod { namespace, name, .. } = &apps.outside;
        try_kubectl(&["-n", namespace, "exec", name, "--", "wget", "-q", "-O-", &url])
    };
    assert!(ask("version").unwrap().starts_with(LEVEL));
    assert!(ask("metrics").unwrap().contains("pilot_xds"));
    for page in ["debug", "debug/syncz", "debug/ambientz"] {
        let refused = ask(page).unwrap_err();
        assert!(refused.contains("401"), "{page}: {refused}");
    }
}
