//! Which pods belong to the mesh, and how. The rules are Istio's (label `istio.io/dataplane-mode`), with the plain
//! `dataplane-mode` meaning the same.

use crate::kinds::{Labels, Namespace, Pod};
use std::net::IpAddr;

const MODE: [&str; 2] = ["istio.io/dataplane-mode", "dataplane-mode"];

/// Is this pod to be redirected?
pub fn wanted(ns: Option<&Namespace>, pod: &Pod) -> bool {
    if pod.spec.host_network || is_done(pod) || pod.metadata.annotations.contains_key("sidecar.istio.io/status") {
        return false;
    }
    match mode(&pod.metadata.labels).or_else(|| ns.and_then(|n| mode(&n.metadata.labels))) {
        Some("ambient") => true,
        // `none`, and whatever else: not this mesh's.
        _ => false,
    }
}

/// Does this namespace's label bring its pods into the mesh?
pub fn enrols(ns: &Namespace) -> bool {
    mode(&ns.metadata.labels) == Some("ambient")
}

/// Does this pod's own label bring it in, whatever its namespace says?
pub fn opts_in(pod: &Pod) -> bool {
    mode(&pod.metadata.labels) == Some("ambient")
}

fn mode(labels: &Labels) -> Option<&str> {
    MODE.iter().find_map(|k| labels.get(k)).map(String::as_str)
}

/// Has the pod ended?
pub fn is_done(pod: &Pod) -> bool {
    matches!(pod.status.phase.as_str(), "Succeeded" | "Failed")
}

/// Does it say that it can serve (condition Ready)?
pub fn is_ready(pod: &Pod) -> bool {
    pod.status.conditions.iter().any(|c| c.kind == "Ready" && c.status == "True")
}

/// The pod's addresses (`status.podIPs`, else `status.podIP`); those that cannot be read are left out.
pub fn ips(pod: &Pod) -> Vec<IpAddr> {
    let many: Vec<IpAddr> = pod.status.pod_ips.iter().filter_map(|i| i.ip.parse().ok()).collect();
    if many.is_empty() { pod.status.pod_ip.parse().into_iter().collect() } else { many }
}

/// The pod's service account; Kubernetes' default is `default`.
pub fn service_account(pod: &Pod) -> &str {
    match pod.spec.service_account_name.as_str() {
        "" => "default",
        s => s,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_decide() {
        let labels = |v: &[(&str, &str)]| v.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect::<Labels>();
        let ns = |v: &[(&str, &str)]| {
            let mut n = Namespace::default();
            n.metadata.labels = labels(v);
            n
        };
        let pod = |v: &[(&str, &str)]| {
            let mut p = Pod::default();
            p.metadata.labels = labels(v);
            p
        };
        let ambient = ns(&[("istio.io/dataplane-mode", "ambient")]);
        assert!(wanted(Some(&ambient), &pod(&[])));
        assert!(wanted(Some(&ns(&[("dataplane-mode", "ambient")])), &pod(&[])));
        assert!(!wanted(Some(&ambient), &pod(&[("istio.io/dataplane-mode", "none")])));
        assert!(wanted(Some(&ns(&[])), &pod(&[("istio.io/dataplane-mode", "ambient")])));
        assert!(!wanted(None, &pod(&[])));
        let mut host = pod(&[]);
        host.spec.host_network = true;
        assert!(!wanted(Some(&ambient), &host));
        let mut done = pod(&[]);
        done.status.phase = "Succeeded".into();
        assert!(!wanted(Some(&ambient), &done));
        let mut sidecar = pod(&[]);
        sidecar.metadata.annotations = labels(&[("sidecar.istio.io/status", "{}")]);
        assert!(!wanted(Some(&ambient), &sidecar));
    }
}
