//! The simulated mesh: pods as a Deployment makes them, with the fields that a real API server sends (about 5 KB each).

use crate::api::{Api, List};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, atomic::AtomicU64},
};

/// Coprime to the number of pods: spreads those of a service over the nodes.
const STEP: usize = 7919;

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

impl Place {
    /// What its workload is called.
    pub fn uid(&self) -> String {
        format!("Kubernetes//Pod/{}/{}", self.namespace, self.name)
    }
}

impl Size {
    /// Is there an address for all, in ranges as nodes have them?
    pub fn fits(self) -> bool {
        let all = [self.namespaces, self.services, self.nodes];
        let some = all.iter().all(|n| *n > 0) && self.pods >= self.services && !self.pods.is_multiple_of(STEP);
        some && self.services <= 60_000 && self.nodes <= 30_000 && self.pods.div_ceil(self.nodes) <= 250
    }

    /// Where the pod of this number is.
    pub fn place(self, i: usize) -> Place {
        let service = i % self.services;
        let (node, number) = self.seat(i);
        Place {
            namespace: format!("team-{}", service % self.namespaces),
            service: format!("service-{service}"),
            name: format!("service-{service}-7d4b9c8f6-{i:05}"),
            node: format!("node-{node}"),
            ip: format!("10.{}.{}.{}", 100 + node / 256, node % 256, number + 1),
        }
    }

    /// The node of the pod of this number, and its number there.
    pub fn seat(self, i: usize) -> (usize, usize) {
        let (seat, each) = (i * STEP % self.pods, self.pods.div_ceil(self.nodes));
        (seat / each, seat % each)
    }

    /// Where the ztunnel of this node is.
    pub fn ztunnel(self, node: usize) -> Place {
        Place {
            namespace: "istio-system".into(),
            service: "ztunnel".into(),
            name: format!("ztunnel-{node}"),
            node: format!("node-{node}"),
            ip: format!("10.99.{}.{}", node / 250, node % 250 + 1),
        }
    }

    /// The pods of a service.
    pub fn of_service(self, service: usize) -> impl Iterator<Item = usize> {
        (service..self.pods).step_by(self.services)
    }

    /// The address of a service, and what it is called.
    pub fn service(self, service: usize) -> (String, String) {
        let namespace = format!("team-{}", service % self.namespaces);
        let ip = format!("10.96.{}.{}", service / 250, service % 250 + 1);
        (ip, format!("{namespace}/service-{service}.{namespace}.svc.cluster.local"))
    }
}

/// Pods as text, ready and not: what differs is written between `@`.
pub struct Pods {
    ready: Vec<String>,
    not_ready: Vec<String>,
}

impl Pods {
    pub fn new() -> Self {
        let any = |part: &str| format!("@{part}@");
        let all = Place {
            namespace: any("namespace"),
            service: any("service"),
            name: any("name"),
            node: any("node"),
            ip: any("ip"),
        };
        let parts = |ready| pod(&all, ready).to_string().split('@').map(String::from).collect();
        Self { ready: parts(true), not_ready: parts(false) }
    }

    /// The pod of this place.
    pub fn text(&self, place: &Place, ready: bool, version: usize) -> String {
        let version = version.to_string();
        let parts = if ready { &self.ready } else { &self.not_ready };
        let fill = |(i, part): (usize, &String)| match (i % 2, part.as_str()) {
            (1, "namespace") => place.namespace.clone(),
            (1, "service") => place.service.clone(),
            (1, "name") => place.name.clone(),
            (1, "node") => place.node.clone(),
            (1, "ip") => place.ip.clone(),
            (1, "version") => version.clone(),
            (_, text) => text.into(),
        };
        parts.iter().enumerate().map(fill).collect()
    }
}

fn pod(p: &Place, ready: bool) -> Value {
    let status = if ready { "True" } else { "False" };
    let time = "2026-01-01T00:00:00Z";
    let condition =
        |t: &str, s: &str| json!({ "type": t, "status": s, "lastProbeTime": null, "lastTransitionTime": time });
    let env: Vec<Value> = (0..12).map(|i| json!({ "name": format!("SETTING_{i}"), "value": format!("the value of setting {i} of {}", p.service) })).collect();
    let probe = json!({ "httpGet": { "path": "/healthz", "port": "http", "scheme": "HTTP" }, "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3 });
    let mount = json!({ "name": "kube-api-access-x7k2p", "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount" });
    json!({
        "metadata": {
            "name": p.name, "namespace": p.namespace, "uid": format!("uid-{}", p.name), "resourceVersion": "@version@", "creationTimestamp": time,
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

/// The slice of a service's endpoints. `ready`: whether the pod of a number is.
pub fn slice(size: Size, service: usize, ready: impl Fn(usize) -> bool, version: usize) -> Value {
    let endpoint = |i: usize| {
        let (p, ready) = (size.place(i), ready(i));
        json!({ "addresses": [p.ip], "conditions": { "ready": ready, "serving": ready, "terminating": false }, "nodeName": p.node, "targetRef": { "kind": "Pod", "namespace": p.namespace, "name": p.name, "uid": format!("uid-{}", p.name) } })
    };
    let name = format!("service-{service}");
    json!({
        "metadata": { "name": format!("{name}-x2x4q"), "namespace": format!("team-{}", service % size.namespaces), "resourceVersion": version.to_string(), "uid": format!("slice-{service}"), "labels": { "kubernetes.io/service-name": name, "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io" } },
        "addressType": "IPv4",
        "endpoints": size.of_service(service).map(endpoint).collect::<Vec<_>>(),
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP", "appProtocol": "http" }],
    })
}

/// All of it, and a token for each node's ztunnel.
pub fn mesh(size: Size) -> Api {
    let core = |kind| (kind, "v1");
    let ambient = json!({ "istio.io/dataplane-mode": "ambient" });
    let mut namespaces = vec![json!({ "metadata": { "name": "istio-system", "uid": "ns" } })];
    let mut policies = vec![];
    for i in 0..size.namespaces {
        let namespace = format!("team-{i}");
        namespaces.push(json!({ "metadata": { "name": namespace, "uid": format!("ns-{i}"), "labels": ambient } }));
        for kind in ["a", "b"] {
            let spec = json!({ "selector": { "matchLabels": { "app": format!("service-{i}") } }, "rules": [{ "from": [{ "source": { "namespaces": [namespace, kind] } }] }] });
            policies.push(json!({ "metadata": { "name": format!("allow-{kind}"), "namespace": namespace, "uid": format!("ap-{kind}-{i}") }, "spec": spec }));
        }
    }
    let node = |i: usize| {
        let labels =
            json!({ "topology.kubernetes.io/region": "eu", "topology.kubernetes.io/zone": format!("eu-{}", i % 3) });
        let range = format!("10.{}.{}.0/24", 100 + i / 256, i % 256);
        json!({ "metadata": { "name": format!("node-{i}"), "uid": format!("node-{i}"), "labels": labels }, "spec": { "podCIDR": range, "podCIDRs": [range] } })
    };
    let service = move |i: usize| {
        let (ip, _) = size.service(i);
        let spec = json!({ "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "selector": { "app": format!("service-{i}") }, "ipFamilies": ["IPv4"], "ports": [{ "name": "http", "port": 80, "targetPort": "http", "protocol": "TCP" }] });
        json!({ "metadata": { "name": format!("service-{i}"), "namespace": format!("team-{}", i % size.namespaces), "uid": format!("svc-{i}") }, "spec": spec })
    };
    let pods = Pods::new();
    let pod = move |i: usize| {
        let place = if i < size.nodes { size.ztunnel(i) } else { size.place(i - size.nodes) };
        pods.text(&place, true, 1)
    };
    let slice = move |i: usize| slice(size, i, |_| true, 1).to_string();
    let token = |i: usize| {
        let p = size.ztunnel(i);
        (format!("token-{i}"), [p.name.clone(), format!("uid-{}", p.name), p.node])
    };
    let lists = BTreeMap::from([
        ("namespaces", List::of(core("Namespace"), namespaces)),
        ("nodes", List::of(core("Node"), (0..size.nodes).map(node).collect())),
        ("pods", List::new(core("Pod"), size.nodes + size.pods, pod)),
        ("services", List::of(core("Service"), (0..size.services).map(service).collect())),
        ("configmaps", List::of(core("ConfigMap"), vec![])),
        ("endpointslices", List::new(("EndpointSlice", "discovery.k8s.io/v1"), size.services, slice)),
        ("gateways", List::of(("Gateway", "gateway.networking.k8s.io/v1"), vec![])),
        ("serviceentries", List::of(("ServiceEntry", "networking.istio.io/v1"), vec![])),
        ("workloadentries", List::of(("WorkloadEntry", "networking.istio.io/v1"), vec![])),
        ("authorizationpolicies", List::of(("AuthorizationPolicy", "security.istio.io/v1"), policies)),
        ("peerauthentications", List::of(("PeerAuthentication", "security.istio.io/v1"), vec![])),
    ]);
    let tokens = (0..size.nodes).map(token).collect();
    Api { lists, secret: Mutex::default(), tokens, lost: Arc::new(AtomicU64::new(0)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_pod_has_an_address_of_its_node_and_services_are_spread() {
        for (services, pods, nodes) in [(1000, 10_000, 100), (10_000, 100_000, 5000), (3, 7, 2)] {
            let size = Size { namespaces: 3, services, pods, nodes };
            assert!(size.fits());
            let places: Vec<Place> = (0..pods).map(|i| size.place(i)).collect();
            assert_eq!(places.iter().map(|p| &p.ip).collect::<BTreeSet<_>>().len(), pods);
            assert!((0..pods).all(|i| size.seat(i).0 < nodes));
            for service in [0, services - 1] {
                let of: Vec<usize> = size.of_service(service).collect();
                let on: BTreeSet<_> = of.iter().map(|i| &places[*i].node).collect();
                assert!(on.len() >= of.len().min(nodes) / 2, "{} pods on {} nodes", of.len(), on.len());
            }
        }
    }

    #[test]
    fn a_pod_is_filled_in() {
        let size = Size { namespaces: 2, services: 3, pods: 7, nodes: 2 };
        let place = size.place(4);
        let pod: Value = serde_json::from_str(&Pods::new().text(&place, false, 9)).unwrap();
        assert_eq!(pod["metadata"]["name"], place.name);
        assert_eq!(pod["metadata"]["resourceVersion"], "9");
        assert_eq!(pod["status"]["podIP"], place.ip);
        assert_eq!(pod["status"]["containerStatuses"][0]["ready"], false);
        assert!(!pod.to_string().contains('@'));
    }
}
