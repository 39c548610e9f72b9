//! The simulated mesh: pods as a Deployment makes them, with the fields that a real API server sends (about 5 KB each).

use crate::api::Api;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Mutex};
use tokio::sync::broadcast;

/// How large.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub namespaces: usize,
    pub services: usize,
    pub pods: usize,
    pub nodes: usize,
}

/// A pod's place: namespace, service and name.
pub struct Place {
    pub namespace: String,
    pub service: String,
    pub name: String,
    pub node: String,
    pub ip: String,
}

impl Size {
    /// Where the pod of this number is.
    pub fn place(&self, i: usize) -> Place {
        let service = i % self.services;
        Place {
            namespace: format!("team-{}", service % self.namespaces),
            service: format!("service-{service}"),
            name: format!("service-{service}-7d4b9c8f6-{i:05}"),
            node: format!("node-{}", i % self.nodes),
            ip: format!("10.{}.{}.{}", 100 + i / 65_000, (i / 250) % 256, i % 250 + 1),
        }
    }
}

/// A pod, ready or not.
pub fn pod(p: &Place, ready: bool, version: usize) -> Value {
    let status = if ready { "True" } else { "False" };
    let time = "2026-01-01T00:00:00Z";
    let condition =
        |t: &str, s: &str| json!({ "type": t, "status": s, "lastProbeTime": null, "lastTransitionTime": time });
    let env: Vec<Value> = (0..12).map(|i| json!({ "name": format!("SETTING_{i}"), "value": format!("the value of setting {i} of {}", p.service) })).collect();
    let probe = json!({ "httpGet": { "path": "/healthz", "port": "http", "scheme": "HTTP" }, "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3 });
    let mount = json!({ "name": "kube-api-access-x7k2p", "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount" });
    json!({
        "metadata": {
            "name": p.name, "namespace": p.namespace, "uid": format!("uid-{}", p.name), "resourceVersion": version.to_string(), "creationTimestamp": time,
            "generateName": format!("{}-7d4b9c8f6-", p.service),
            "labels": { "app": p.service, "version": "v1", "pod-template-hash": "7d4b9c8f6", "app.kubernetes.io/part-of": "shop" },
            "annotations": { "ambient.istio.io/redirection": "enabled", "prometheus.io/scrape": "true", "prometheus.io/port": "9090", "kubectl.kubernetes.io/restartedAt": time },
            "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{}-7d4b9c8f6", p.service), "uid": "a3f5c0de-0000-4000-8000-000000000000", "controller": true, "blockOwnerDeletion": true }],
            "managedFields": [
                { "manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1", "time": time, "fieldsType": "FieldsV1", "fieldsV1": { "f:metadata": { "f:labels": { ".": {}, "f:app": {}, "f:version": {} } }, "f:spec": { "f:containers": { "k:{\"name\":\"app\"}": { ".": {}, "f:env": {}, "f:image": {}, "f:ports": {} } } } } },
                { "manager": "kubelet", "operation": "Update", "apiVersion": "v1", "time": time, "fieldsType": "FieldsV1", "fieldsV1": { "f:status": { "f:conditions": {}, "f:containerStatuses": {}, "f:podIP": {}, "f:podIPs": {} } }, "subresource": "status" },
            ],
        },
        "spec": {
            "nodeName": p.node, "serviceAccountName": p.service, "serviceAccount": p.service, "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler", "priority": 0, "enableServiceLinks": true, "terminationGracePeriodSeconds": 30,
            "containers": [{ "name": "app", "image": format!("registry.local/shop/{}:1.4.2", p.service), "imagePullPolicy": "IfNotPresent", "env": env, "ports": [{ "name": "http", "containerPort": 8080, "protocol": "TCP" }, { "name": "metrics", "containerPort": 9090, "protocol": "TCP" }], "resources": { "requests": { "cpu": "100m", "memory": "128Mi" } }, "volumeMounts": [mount], "livenessProbe": probe, "readinessProbe": probe, "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File" }],
            "volumes": [{ "name": "kube-api-access-x7k2p", "projected": { "defaultMode": 420, "sources": [{ "serviceAccountToken": { "expirationSeconds": 3607, "path": "token" } }, { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } }] } }],
            "tolerations": [{ "key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 }, { "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 }],
        },
        "status": {
            "phase": "Running", "hostIP": "10.0.0.1", "podIP": p.ip, "podIPs": [{ "ip": p.ip }], "startTime": time, "qosClass": "Burstable",
            "conditions": [condition("Initialized", "True"), condition("Ready", status), condition("ContainersReady", status), condition("PodScheduled", "True")],
            "containerStatuses": [{ "name": "app", "ready": ready, "started": true, "restartCount": 0, "image": format!("registry.local/shop/{}:1.4.2", p.service), "imageID": "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", "containerID": "containerd://0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", "state": { "running": { "startedAt": time } }, "lastState": {} }],
        },
    })
}

/// The slice of a service's endpoints; the pod `changed` is ready or not.
pub fn slice(size: Size, service: usize, changed: Option<(usize, bool)>, version: usize) -> Value {
    let pods = (service..size.pods).step_by(size.services);
    let endpoint = |i: usize| {
        let p = size.place(i);
        let ready = changed.is_none_or(|(c, r)| c != i || r);
        json!({ "addresses": [p.ip], "conditions": { "ready": ready, "serving": ready, "terminating": false }, "nodeName": p.node, "targetRef": { "kind": "Pod", "namespace": p.namespace, "name": p.name, "uid": format!("uid-{}", p.name) } })
    };
    let name = format!("service-{service}");
    json!({
        "metadata": { "name": format!("{name}-x2x4q"), "namespace": format!("team-{}", service % size.namespaces), "resourceVersion": version.to_string(), "uid": format!("slice-{service}"), "labels": { "kubernetes.io/service-name": name, "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io" } },
        "addressType": "IPv4",
        "endpoints": pods.map(endpoint).collect::<Vec<_>>(),
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP", "appProtocol": "http" }],
    })
}

/// All of it, and a token for each node's ztunnel.
pub fn mesh(size: Size) -> Api {
    let mut objects: BTreeMap<&'static str, BTreeMap<String, String>> = BTreeMap::new();
    let mut put = |plural: &'static str, v: Value| {
        let at = |f: &str| v.pointer(f).and_then(Value::as_str).unwrap_or_default().to_string();
        let key = format!("{}/{}", at("/metadata/namespace"), at("/metadata/name"));
        objects.entry(plural).or_default().insert(key, v.to_string());
    };
    let mut tokens = BTreeMap::new();
    let ambient = json!({ "istio.io/dataplane-mode": "ambient" });
    put("namespaces", json!({ "metadata": { "name": "istio-system", "uid": "ns" } }));
    for i in 0..size.namespaces {
        put(
            "namespaces",
            json!({ "metadata": { "name": format!("team-{i}"), "uid": format!("ns-{i}"), "labels": ambient } }),
        );
        for kind in ["a", "b"] {
            let spec = json!({ "selector": { "matchLabels": { "app": format!("service-{i}") } }, "rules": [{ "from": [{ "source": { "namespaces": [format!("team-{i}"), kind] } }] }] });
            put(
                "authorizationpolicies",
                json!({ "metadata": { "name": format!("allow-{kind}"), "namespace": format!("team-{i}"), "uid": format!("ap-{kind}-{i}") }, "spec": spec }),
            );
        }
    }
    for i in 0..size.nodes {
        let labels =
            json!({ "topology.kubernetes.io/region": "eu", "topology.kubernetes.io/zone": format!("eu-{}", i % 3) });
        put(
            "nodes",
            json!({ "metadata": { "name": format!("node-{i}"), "uid": format!("node-{i}"), "labels": labels } }),
        );
        let p = Place {
            namespace: "istio-system".into(),
            service: "ztunnel".into(),
            name: format!("ztunnel-{i}"),
            node: format!("node-{i}"),
            ip: format!("10.99.{}.{}", i / 250, i % 250 + 1),
        };
        put("pods", pod(&p, true, 1));
        tokens.insert(format!("token-{i}"), [p.name.clone(), format!("uid-{}", p.name), p.node]);
    }
    for i in 0..size.services {
        let ip = format!("10.96.{}.{}", i / 250, i % 250 + 1);
        let spec = json!({ "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "selector": { "app": format!("service-{i}") }, "ipFamilies": ["IPv4"], "ports": [{ "name": "http", "port": 80, "targetPort": "http", "protocol": "TCP" }] });
        put(
            "services",
            json!({ "metadata": { "name": format!("service-{i}"), "namespace": format!("team-{}", i % size.namespaces), "uid": format!("svc-{i}") }, "spec": spec }),
        );
        put("endpointslices", slice(size, i, None, 1));
    }
    for i in 0..size.pods {
        put("pods", pod(&size.place(i), true, 1));
    }
    for empty in ["configmaps", "serviceentries", "workloadentries", "peerauthentications", "gateways"] {
        objects.insert(empty, BTreeMap::new());
    }
    let kinds = BTreeMap::from([
        ("namespaces", ("Namespace", "v1")),
        ("nodes", ("Node", "v1")),
        ("pods", ("Pod", "v1")),
        ("services", ("Service", "v1")),
        ("configmaps", ("ConfigMap", "v1")),
        ("endpointslices", ("EndpointSlice", "discovery.k8s.io/v1")),
        ("gateways", ("Gateway", "gateway.networking.k8s.io/v1")),
        ("serviceentries", ("ServiceEntry", "networking.istio.io/v1")),
        ("workloadentries", ("WorkloadEntry", "networking.istio.io/v1")),
        ("authorizationpolicies", ("AuthorizationPolicy", "security.istio.io/v1")),
        ("peerauthentications", ("PeerAuthentication", "security.istio.io/v1")),
    ]);
    Api { objects, kinds, secret: Mutex::default(), events: broadcast::channel(4096).0, tokens }
}
