//! F03, F07 to F09 and F11: the default profile, installed by an answer and deleted by its manifest; all that is left, purged.

use super::script::{Step, acts, reads};

/// `install`, looked at, and deleted object by object.
pub const DEFAULT_PROFILE: &[Step] = &[
    acts("F03", "istioctl install", "no answer: nothing is done", &["Proceed? (y/N)", "nothing was changed"]).fails(),
    acts(
        "F03",
        "istioctl install",
        "profile, components, (y/N), a tick each, the end",
        &[
            "This will install profile \"default\" Istiod (y/N)",
            "✔ Istio core installed",
            "✔ Istiod installed",
            "✔ CNI installed",
            "✔ Ztunnel installed",
            "✔ Installation complete",
        ],
    )
    .typed("y\n"),
    reads("F11", "kubectl get ns", "the namespace", &["istio-system Active"]),
    reads(
        "F11",
        "kubectl get pods -n istio-system",
        "all pods ready",
        &["istiod- 1/1 Running", "ztunnel- 1/1 Running", "istio-cni-node- 1/1 Running"],
    ),
    reads(
        "F11",
        "kubectl get svc -n istio-system",
        "istiod's ports (15010, plaintext, is not served)",
        &["istiod ClusterIP 15012/TCP,443/TCP,15014/TCP"],
    ),
    reads("F11", "kubectl get deploy -n istio-system -o wide", "its container", &["istiod 1/1 discovery app=istiod"]),
    acts(
        "F07",
        "istioctl manifest generate | kubectl delete -f -",
        "all resources are removed",
        &["deployment.apps \"istiod\" deleted", "daemonset.apps \"ztunnel\" deleted", "customresourcedefinition"],
    ),
    acts(
        "F07",
        "istioctl manifest generate --set profile=demo | kubectl delete --ignore-not-found=true -f -",
        "it can be run again",
        &[],
    ),
    acts(
        "F09",
        "kubectl delete namespace istio-system --timeout=90s",
        "the namespace ends",
        &["namespace \"istio-system\" deleted"],
    ),
    nothing_left("F09"),
];

/// Both of the spellings, and again.
pub const PURGED: &[Step] = &[
    acts(
        "F08",
        "istioctl x uninstall --purge",
        "what is removed, (y/N), the end",
        &["Proceed? (y/N)", "removed Deployment istio-system/istiod", "✔ Uninstall complete"],
    )
    .typed("y\n"),
    acts(
        "F08",
        "istioctl uninstall --purge -y",
        "again: nothing is there",
        &["Nothing that karst has installed is there"],
    ),
    nothing_left("F08"),
    reads(
        "F28",
        "kubectl exec deploy/ratings-v1 -- /bin/busybox wget -qO- productpage:9080/productpage",
        "the application goes on",
        &["<title>Simple Bookstore App</title>"],
    ),
    acts(
        "F09",
        "kubectl delete namespace istio-system --timeout=90s",
        "the namespace ends",
        &["\"istio-system\" deleted"],
    ),
];

/// No object of the cluster is the mesh's.
const fn nothing_left(feature: &'static str) -> Step {
    reads(
        feature,
        "kubectl get clusterrole,clusterrolebinding,validatingwebhookconfiguration,validatingadmissionpolicy -o name",
        "nothing of the mesh is left",
        &["clusterrole.rbac.authorization.k8s.io/cluster-admin"],
    )
    .without(&["istio", "ztunnel"])
}
