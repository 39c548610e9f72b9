//! Istio's samples of gateways, as they are published, on one ingress gateway whose Service maps 80 to 8080: whichever
//! of them was there first, each path reaches its own application. The objects are compiled by the controller, requests
//! go through a gateway in memory.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's failure is a panic")]

use karst_controller::offline::{self, Compiled};
use karst_manifest::{State, parse};
use karst_waypoint::live::{Answer, Live};
use serde_json::{Value, json};
use std::{net::SocketAddr, sync::Arc};

const SAMPLES: [&str; 3] = [
    include_str!("../samples/httpbin-gateway.yaml"),
    include_str!("../samples/helloworld-gateway.yaml"),
    include_str!("../samples/bookinfo-gateway.yaml"),
];
/// The gateway's namespace, pod and account.
const GATEWAY: [&str; 3] = ["istio-system", "ingress", "ingress"];
const GATEWAY_IP: &str = "10.0.1.1";
/// Applications: name, the pod's address, port of the Service and of the pod.
const APPS: [(&str, &str, u16, u16); 3] = [
    ("httpbin", "10.0.0.1", 8000, 8080),
    ("helloworld", "10.0.0.2", 5000, 5000),
    ("productpage", "10.0.0.3", 9080, 9080),
];

fn pod([namespace, name, account]: [&str; 3], ip: &str, labels: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": namespace, "labels": labels },
        "spec": { "nodeName": "n", "serviceAccountName": account },
        "status": {
            "phase": "Running", "podIPs": [{ "ip": ip }], "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

fn service([namespace, name]: [&str; 2], ip: &str, selector: Value, ports: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": namespace },
        "spec": { "clusterIP": ip, "selector": selector, "ports": ports },
    })
}

/// The applications, the gateway, and these of the samples in the order of their making.
fn compile(order: &[usize]) -> Compiled {
    let ingress = json!({ "istio": "ingressgateway", "app": "istio-ingressgateway" });
    let maps = json!([
        { "name": "http2", "port": 80, "targetPort": 8080 }, { "name": "https", "port": 443, "targetPort": 8443 },
    ]);
    let mut all = vec![
        pod(GATEWAY, GATEWAY_IP, ingress.clone()),
        service(["istio-system", "istio-ingressgateway"], "10.96.1.1", ingress, maps),
    ];
    for (number, (name, ip, port, target)) in APPS.into_iter().enumerate() {
        let labels = json!({ "app": name });
        all.push(pod(["default", name, name], ip, labels.clone()));
        let ports = json!([{ "name": "http", "port": port, "targetPort": target }]);
        all.push(service(["default", name], &format!("10.96.0.{}", number + 1), labels, ports));
    }
    let mut objects: Vec<Arc<parse::Located>> = vec![];
    for value in all {
        let object = parse::value(value["kind"].as_str().unwrap(), value.clone()).unwrap();
        objects.push(Arc::new(parse::Located { object, file: "world.yaml".into(), line: 1 }));
    }
    for (age, sample) in order.iter().enumerate() {
        let made =
            format!("metadata:\n  namespace: default\n  creationTimestamp: \"2025-01-0{}T00:00:00Z\"\n", age + 1);
        let text = SAMPLES[*sample].replace("metadata:\n", &made);
        objects.extend(parse::file("sample.yaml".as_ref(), &text).unwrap().into_iter().map(Arc::new));
    }
    offline::compile(&State { objects, ..State::default() }).unwrap()
}

/// The pods that paths lead to at the gateway's port 8080; None: nowhere (404).
fn lead(compiled: &Compiled, paths: &[&str]) -> Vec<Option<String>> {
    let told: Vec<_> = compiled.resources.iter().map(|r| (r.type_url, &*r.name, &r.bytes[..])).collect();
    let gateway = Live::gateway(GATEWAY, &told);
    let from: SocketAddr = "192.0.2.1:40000".parse().unwrap();
    let to = SocketAddr::new(GATEWAY_IP.parse().unwrap(), 8080);
    let went = |path: &&str| {
        let head = http::Request::get(*path).header("host", "example.com").body(()).unwrap();
        match gateway.enter(to, from, head) {
            Answer::Request(200, Some(at), _) => Some(at.to_string()),
            Answer::Request(404, None, _) => None,
            other => panic!("{path}: {other:?}"),
        }
    };
    paths.iter().map(went).collect()
}

const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

#[test]
fn all_of_them_serve_beside_each_other_in_any_order() {
    let paths = ["/hello", "/productpage", "/static/a.css", "/api/v1/products/0", "/get", "/hello/more", "/"];
    let [httpbin, helloworld, bookinfo] = APPS.map(|(_, ip, _, target)| Some(format!("{ip}:{target}")));
    let wanted = [&helloworld, &bookinfo, &bookinfo, &bookinfo, &httpbin, &httpbin, &httpbin].map(Clone::clone);
    for order in ORDERS {
        let compiled = compile(&order);
        assert!(compiled.problems.is_empty(), "{order:?}: {:?}", compiled.problems);
        assert_eq!(lead(&compiled, &paths), wanted, "{order:?}");
    }
}

/// What has none of its paths is answered with 404 as long as the one that takes everything is not there.
#[test]
fn one_alone_and_each_pair_serve_what_is_theirs() {
    let at = |app: usize| Some(format!("{}:{}", APPS[app].1, APPS[app].3));
    let paths = ["/hello", "/productpage", "/get"];
    for (samples, wanted) in [
        (&[0][..], [at(0), at(0), at(0)]),
        (&[1], [at(1), None, None]),
        (&[2], [None, at(2), None]),
        (&[1, 2], [at(1), at(2), None]),
        (&[0, 1], [at(1), at(0), at(0)]),
        (&[0, 2], [at(0), at(2), at(0)]),
    ] {
        let back: Vec<usize> = samples.iter().rev().copied().collect();
        for order in [samples, &back] {
            assert_eq!(lead(&compile(order), &paths), wanted, "{order:?}");
        }
    }
}
