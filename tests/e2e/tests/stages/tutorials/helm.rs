//! F16 to F19: the charts of a repository, by helm; and their removal.

use super::script::{Step, acts, reads};

/// As Istio's page of helm has it, one after the other.
pub const INSTALLED: &[Step] = &[
    acts("F16", "helm repo add istio {repository}", "added", &["\"istio\" has been added to your repositories"]),
    acts("F16", "helm repo update", "usable", &["Successfully got an update \"istio\"", "Update Complete"]),
    reads(
        "F16",
        "helm search repo istio",
        "the charts",
        &["istio/base", "istio/istiod", "istio/cni", "istio/ztunnel", "istio/gateway"],
    ),
    acts("F17", "kubectl create namespace istio-system", "created", &["created"]),
    acts(
        "F17",
        "helm install istio-base istio/base -n istio-system --set defaultRevision=default",
        "deployed",
        &["STATUS: deployed"],
    ),
    reads("F17", "helm ls -n istio-system", "the release", &["istio-base istio-system 1 deployed base-"]),
    reads(
        "F17",
        "kubectl get crd",
        "CRDs are present",
        &["virtualservices.networking.istio.io", "authorizationpolicies.security.istio.io"],
    ),
    acts("F18", "helm install istiod istio/istiod -n istio-system --wait", "deployed", &["STATUS: deployed"]),
    reads("F18", "helm ls -n istio-system", "both releases", &["istio-base deployed", "istiod deployed"]),
    reads("F18", "helm status istiod -n istio-system", "its notes", &["STATUS: deployed", "NOTES:"]),
    reads(
        "F18",
        "kubectl get deployments -n istio-system --output wide",
        "istiod is available",
        &["istiod 1/1 1 1 discovery app=istiod"],
    ),
    acts(
        "F20",
        "helm install istio-cni istio/cni -n istio-system --set profile=ambient --wait",
        "deployed",
        &["deployed"],
    ),
    acts("F20", "helm install ztunnel istio/ztunnel -n istio-system --wait", "deployed", &["deployed"]),
    acts("F19", "kubectl create namespace istio-ingress", "created", &["created"]),
    acts("F19", "helm install istio-ingressgateway istio/gateway -n istio-ingress", "deployed", &["STATUS: deployed"]),
    acts(
        "F19",
        "kubectl -n istio-ingress rollout status deploy/istio-ingressgateway --timeout=60s",
        "the gateway is available",
        &["successfully rolled out"],
    ),
    reads(
        "F19",
        "kubectl get svc -n istio-ingress",
        "a Service of a load balancer",
        &["istio-ingressgateway LoadBalancer 80: 443:"],
    ),
    reads(
        "F19",
        "kubectl get pods -n istio-ingress -l istio=ingressgateway",
        "found by the usual label",
        &["1/1 Running"],
    ),
    reads("F18", "istioctl proxy-status", "all proxies", &["istio-ingressgateway- .istio-ingress Kubernetes istiod-"])
        .by_both(),
];

/// In reverse, then what charts leave, as Istio's page has it.
pub const REMOVED: &[Step] = &[
    acts("F19", "helm delete istio-ingressgateway -n istio-ingress", "uninstalled", &["uninstalled"]),
    acts("F19", "kubectl delete namespace istio-ingress", "deleted", &["deleted"]),
    acts("F20", "helm delete ztunnel -n istio-system --wait", "uninstalled", &["uninstalled"]),
    acts("F20", "helm delete istio-cni -n istio-system --wait", "uninstalled", &["uninstalled"]),
    acts("F18", "helm delete istiod -n istio-system --wait", "uninstalled", &["uninstalled"]),
    acts("F17", "helm delete istio-base -n istio-system", "uninstalled", &["uninstalled"]),
    acts(
        "F09",
        "kubectl delete namespace istio-system --timeout=90s",
        "the namespace ends",
        &["\"istio-system\" deleted"],
    ),
    acts(
        "F17",
        "kubectl get crd -oname | grep --color=never 'istio.io' | xargs kubectl delete",
        "the CRDs, which charts leave",
        &["virtualservices.networking.istio.io\" deleted"],
    ),
];
