//! What is done otherwise than by the rules, and why; and what stands around pages.

use super::line::How;

/// A manifest that the cluster of the tests refuses.
pub(super) struct Refused {
    /// The page.
    pub(super) page: &'static str,
    /// The manifest has this.
    pub(super) has: &'static str,
    /// What the API server says of it.
    pub(super) says: &'static str,
    /// Why it is on the page all the same.
    pub(super) why: &'static str,
}

const ADD_ONS: &str = "the add-ons are images of other projects: cargo xtask dashboards builds and runs them";

/// Lines (by their page and how they begin) that are not treated by the rules.
pub(super) const OTHERWISE: &[(&str, &str, How)] = &[
    (
        "tasks/access-logs",
        "kubectl -n istio-system logs -l app=ztunnel --tail=-1 | grep 'trace_id=",
        How::Not(
            "no request is traced without a provider of traces: the field is in a unit test of ztunnel/src/conns.rs",
        ),
    ),
    (
        "tasks/dashboard",
        "kubectl -n istio-system port-forward deploy/karst-dashboard",
        How::Not(
            "the installation before is only asked about: s4_whoever_logs_in_sees_their_own_namespaces installs it",
        ),
    ),
    ("tasks/dashboard", "kubectl -n istio-system create secret tls dashboard-tls", How::Ask),
    ("tasks/dashboards", "karst dashboard prometheus", How::Not(ADD_ONS)),
    ("tasks/dashboards", "karst dashboard grafana", How::Not(ADD_ONS)),
    ("tasks/dashboards", "karst dashboard jaeger", How::Not(ADD_ONS)),
    ("tasks/debugging", "kubectl -n istio-system exec $AGENT -- karst-cni trace", How::Serve("TIME (UTC)")),
    (
        "tasks/external-authorization",
        "kubectl -n bookinfo get authorizationpolicy ask-opa",
        How::Not(
            "without its provider the policy closes the shop: the exercise of the same name has one, and is followed",
        ),
    ),
    (
        "tasks/external-authorization",
        "kubectl -n bookinfo logs deploy/waypoint | grep UAEX",
        How::Not(
            "without its provider the policy closes the shop: the exercise of the same name has one, and is followed",
        ),
    ),
    ("tasks/ingress", "kubectl -n bookinfo apply -f samples/exercises/bookinfo-gateway.yaml", How::Ask),
    (
        "tasks/retries-timeouts",
        "kubectl get -n bookinfo xbackendtrafficpolicies",
        How::Not(
            "XBackendTrafficPolicy is in the experimental channel of Gateway API's CRDs; the tests have the standard one",
        ),
    ),
    ("tasks/tls-ingress", "kubectl -n bookinfo create configmap partners-ca", How::Ask),
    ("tasks/tls-ingress", "curl ", How::Run),
    ("tasks/tracing", "karst dashboard jaeger", How::Not(ADD_ONS)),
];

/// Names on a page that stand for those of the reader's cluster.
pub(super) const FILLED: &[(&str, &str, &str)] = &[
    (
        "tasks/debugging",
        "ztunnel-abcde.istio-system",
        "$(kubectl -n istio-system get pods -l app=ztunnel --field-selector=status.phase=Running -o jsonpath='{.items[0].metadata.name}').istio-system",
    ),
    // The agent's command goes on when the line is ended, and only one can run on a node.
    ("tasks/debugging", "karst-cni trace ", "karst-cni trace --for 5 "),
    // The cluster has no load balancer.
    (
        "tasks/tls-ingress",
        "$ADDRESS",
        "$(kubectl -n bookinfo get pods -l gateway.networking.k8s.io/gateway-name=shop --field-selector=status.phase=Running -o jsonpath='{.items[0].status.podIP}')",
    ),
];

/// Commands before a page: what its reader has by then.
pub(super) const BEFORE: &[(&str, &str)] = &[
    (
        "tasks/dashboard",
        "openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=mesh.example.com -keyout mesh.example.com-key.pem -out mesh.example.com.pem",
    ),
    (
        "tasks/tls-ingress",
        "for file in partners.crt partners.crl; do echo 'what is in it is not asked about' > $file; done",
    ),
    (
        "tasks/tracing",
        "kubectl -n bookinfo exec deploy/sleep -- /bin/busybox wget -qO- --header 'x-request-id: 6d1c0ae2-5b6f-9d0f-8f5b-5cd6c1f3a7f4' nginx:80/",
    ),
];

/// Pages that are followed: what they change is changed, and is taken back by these commands.
pub(super) const FOLLOWED: &[(&str, &str)] = &[
    ("tasks/circuit-breaking", "kubectl -n bookinfo delete -f samples/exercises/httpbin-breaker.yaml"),
    ("tasks/dashboard", "kubectl -n bookinfo delete serviceaccount/viewer rolebinding/viewer"),
    (
        "tasks/debugging",
        "karst ztunnel-config log --level info\nkarst proxy-config log deploy/waypoint -n bookinfo --level info\nkarst admin log --reset",
    ),
    ("tasks/egress", "kubectl -n bookinfo delete -f samples/exercises/egress-tls.yaml"),
    ("tasks/fault-injection", "kubectl -n bookinfo delete virtualservice reviews --ignore-not-found"),
    ("tasks/header-routing", "kubectl -n bookinfo delete virtualservice reviews"),
    ("tasks/ingress", "kubectl -n bookinfo delete -f samples/exercises/bookinfo-gateway-api.yaml"),
    ("tasks/jwt", "kubectl -n bookinfo delete -f samples/exercises/httpbin-jwt.yaml"),
    ("tasks/l4-policy", "kubectl delete -f httpbin-callers.yaml"),
    ("tasks/l7-policy", "kubectl delete -f reviews-readers.yaml"),
    ("tasks/mirroring", "kubectl -n bookinfo delete -f samples/exercises/nginx-mirror.yaml"),
    ("tasks/mutual-tls", "kubectl delete -f strict.yaml"),
    ("tasks/rate-limits", "kubectl -n bookinfo delete -f samples/exercises/rate-limit.yaml"),
    ("tasks/retries-timeouts", "kubectl delete -f ratings-retries.yaml"),
    ("tasks/tls-ingress", "kubectl -n bookinfo delete secret/shop-cert\nkubectl delete -f shop.yaml"),
    ("tasks/traffic-shifting", "kubectl -n bookinfo delete virtualservice reviews"),
    // Its own last lines take back the rest.
    (
        "tasks/waypoints",
        "kubectl -n bookinfo label service reviews ratings istio.io/use-waypoint-
for attempt in 1 2 3 4 5 6 7 8 9 10; do
  if kubectl -n bookinfo exec deploy/ratings-v1 -- /bin/busybox wget -qO /dev/null productpage:9080/productpage; then exit 0; fi
  sleep 1
done
exit 1",
    ),
];

/// Manifests that the cluster of the tests refuses: whether that is still so, and in these words, is looked at.
pub(super) const REFUSED: &[Refused] = &[
    Refused {
        page: "tasks/external-authorization",
        has: "type: ExternalAuth",
        says: "externalAuth",
        why: "externalAuth is in the experimental channel of Gateway API's CRDs; the tests have the standard one",
    },
    Refused {
        page: "tasks/load-balancing",
        has: "sessionPersistence:",
        says: "sessionPersistence",
        why: "sessionPersistence is in the experimental channel of Gateway API's CRDs; the tests have the standard one",
    },
    Refused {
        page: "tasks/retries-timeouts",
        has: "kind: XBackendTrafficPolicy",
        says: "no matches for kind",
        why: "XBackendTrafficPolicy is in the experimental channel of Gateway API's CRDs; the tests have the standard one",
    },
    Refused {
        page: "tasks/tls-ingress",
        has: "kind: ClusterTrustBundle",
        says: "ClusterTrustBundle",
        why: "ClusterTrustBundle is served as v1 since Kubernetes 1.37, and the tests have 1.34",
    },
];

/// Values (by their page and first key) of charts that are not ours.
pub(super) const VALUES_OF_OTHERS: &[(&str, &str)] = &[
    // Kiali's.
    ("tasks/dashboards", "auth"),
];
