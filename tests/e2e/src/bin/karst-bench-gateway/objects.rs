//! Objects, as JSON, and where they are.

use crate::api::{Api, GATEWAY_API};
use anyhow::Result;
use serde_json::{Value, json};

/// The namespace of the gateway.
pub const EDGE: &str = "bench";
/// The gateway.
pub const GATEWAY: &str = "bench";
/// All that is made has it in its namespace.
pub const LABEL: &str = "karst-bench=gateway-api";

/// The list of routes of a namespace.
pub fn routes(namespace: &str) -> String {
    format!("{GATEWAY_API}/namespaces/{namespace}/httproutes")
}

/// A list of the core of a namespace.
pub fn core(namespace: &str, kind: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/{kind}")
}

/// Makes a namespace that is not in the mesh.
pub fn namespace(api: &mut Api, name: &str) -> Result<()> {
    let (key, value) = LABEL.split_once('=').unwrap_or((LABEL, ""));
    let object =
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": { key: value } } });
    api.create("/api/v1/namespaces", &object).map(drop)
}

/// A Service of which kube-proxy takes no notice: gateways go to endpoints, and 5,000 Services would keep the nodes busy.
pub fn service(name: &str, app: &str, ports: &[(u16, u16)]) -> Value {
    let port =
        |(port, target): &(u16, u16)| json!({ "name": format!("http-{port}"), "port": port, "targetPort": target });
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "labels": { "service.kubernetes.io/service-proxy-name": "none" } },
        "spec": { "selector": { "app": app }, "ports": ports.iter().map(port).collect::<Vec<_>>() },
    })
}

/// A pod that does nothing by itself: what serves in it is started by the bench.
pub fn pod(name: &str, app: &str, node: &str) -> Value {
    let image = "registry.local/busybox:1";
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": { "app": app } },
        "spec": {
            "nodeName": node, "terminationGracePeriodSeconds": 0,
            "containers": [{ "name": "c", "image": image, "imagePullPolicy": "Never", "command": ["sleep", "1000000"] }],
        },
    })
}

/// A reference to the gateway.
pub fn parent(gateway: &str) -> Value {
    json!({ "name": gateway, "namespace": EDGE })
}

/// A rule: what begins so goes there.
pub fn rule(path: &str, service: &str, port: u16) -> Value {
    json!({
        "matches": [{ "path": { "type": "PathPrefix", "value": path } }],
        "backendRefs": [{ "name": service, "port": port }],
    })
}

/// A route for a host.
pub fn route(name: &str, parents: &[Value], host: &str, rules: &[Value]) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": { "name": name },
        "spec": { "parentRefs": parents, "hostnames": [host], "rules": rules },
    })
}

/// A filter that sets a header of requests or of answers.
pub fn header(of: &str, name: &str, value: &str) -> Value {
    let field = of[..1].to_lowercase() + &of[1..];
    json!({ "type": of, field: { "set": [{ "name": name, "value": value }] } })
}
