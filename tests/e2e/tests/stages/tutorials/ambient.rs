//! F20: Istio's guide to ambient mode, with the book shop.

use super::script::{Step, acts, reads};

/// The busybox of the samples stands for curl.
macro_rules! wget {
    ($options:literal) => {
        concat!("kubectl exec deploy/sleep -- /bin/busybox wget -O- ", $options, " http://productpage:9080/productpage")
    };
}

/// From the label to a split of traffic.
pub const GUIDE: &[Step] = &[
    acts("F20", VERSIONS, "a Service for each release", &["service/reviews-v1 created", "service/reviews-v2 created"]),
    acts("F20", "kubectl apply -f samples/exercises/bookinfo-gateway-api.yaml", "a Gateway", &["bookinfo-gateway"]),
    reads(
        "F20",
        "kubectl get gateways.gateway.networking.k8s.io",
        "it is programmed",
        &["bookinfo-gateway istio bookinfo-gateway-istio True"],
    ),
    acts("F20", "kubectl label namespace bookinfo istio.io/dataplane-mode=ambient", "labelled", &["labeled"]),
    reads(
        "F20",
        "istioctl ztunnel-config workload",
        "in the mesh",
        &["bookinfo sleep- HBONE", "bookinfo productpage-v1- HBONE"],
    )
    .by_both(),
    reads("F20", wget!(""), "the page", &["<title>Simple Bookstore App</title>"]),
    acts(
        "F20",
        L4,
        "a policy of L4: the gateway alone",
        &["authorizationpolicy.security.istio.io/productpage-ztunnel"],
    ),
    reads("F20", wget!(""), "refused: the connection is closed", &["wget:"]).without(&["<title>"]).fails(),
    reads("F20", "istioctl ztunnel-config policy", "it is there", &["bookinfo productpage-ztunnel Allow"]).by_both(),
    acts(
        "F20",
        "istioctl waypoint apply --enroll-namespace --wait",
        "applied, ready, the namespace labelled",
        &[
            "waypoint bookinfo/waypoint applied",
            "waypoint bookinfo/waypoint is ready!",
            "namespace bookinfo labeled with \"istio.io/use-waypoint: waypoint\"",
        ],
    ),
    acts(
        "F20",
        "kubectl get gateways.gateway.networking.k8s.io waypoint",
        "programmed",
        &["waypoint istio-waypoint True"],
    ),
    reads("F20", "istioctl waypoint list", "its row", &["NAME REVISION TRAFFIC TYPE PROGRAMMED", "waypoint True"])
        .by_both(),
    reads("F20", "istioctl waypoint status", "its state", &["waypoint True Programmed"]).by_both(),
    acts("F20", L7, "a policy of L7: sleep may GET", &["authorizationpolicy.security.istio.io/productpage-waypoint"]),
    acts("F20", L4_OF_THE_WAYPOINT, "and the waypoint may connect", &["productpage-ztunnel configured"]),
    reads("F20", wget!("--post-data=a=b"), "refused: not a GET", &["403 Forbidden"]).fails(),
    reads(
        "F20",
        "kubectl exec deploy/ratings-v1 -- /bin/busybox wget -O- http://productpage:9080/productpage",
        "refused: not sleep",
        &["403 Forbidden"],
    )
    .fails(),
    reads("F20", wget!(""), "allowed", &["<title>Simple Bookstore App</title>"]),
    acts("F20", SPLIT, "nine of ten to v1", &["httproute.gateway.networking.k8s.io/reviews created"]),
    reads("F20", MANY, "both releases, v1 most of the time", &["none: black: split as wanted"]),
    reads(
        "F14",
        "istioctl analyze",
        "the line of success",
        &["✔ No validation issues found when analyzing namespace: bookinfo."],
    ),
    reads(
        "F20",
        "istioctl x describe service reviews",
        "its route and waypoint",
        &["Waypoint: bookinfo/waypoint", "HTTPRoute: reviews.bookinfo"],
    ),
    acts("F20", "kubectl label namespace bookinfo istio.io/use-waypoint-", "unlabelled", &["unlabeled"]),
    acts("F20", "istioctl waypoint delete --all", "deleted", &["waypoint bookinfo/waypoint deleted"]),
    acts("F20", "kubectl label namespace bookinfo istio.io/dataplane-mode-", "unlabelled", &["unlabeled"]),
    acts("F20", "kubectl delete gateways.gateway.networking.k8s.io bookinfo-gateway", "deleted", &["deleted"]),
];

const VERSIONS: &str = "kubectl apply -f - <<EOF
apiVersion: v1
kind: Service
metadata: {name: reviews-v1}
spec: {selector: {app: reviews, version: v1}, ports: [{port: 9080, name: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: reviews-v2}
spec: {selector: {app: reviews, version: v2}, ports: [{port: 9080, name: http}]}
EOF";

const L4: &str = "kubectl apply -f - <<EOF
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: productpage-ztunnel}
spec:
  selector: {matchLabels: {app: productpage}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/bookinfo/sa/bookinfo-gateway-istio]}}]}]
EOF";

const L4_OF_THE_WAYPOINT: &str = "kubectl apply -f - <<EOF
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: productpage-ztunnel}
spec:
  selector: {matchLabels: {app: productpage}}
  action: ALLOW
  rules:
  - from:
    - source:
        principals: [cluster.local/ns/bookinfo/sa/bookinfo-gateway-istio, cluster.local/ns/bookinfo/sa/waypoint]
EOF";

const L7: &str = "kubectl apply -f - <<EOF
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: productpage-waypoint}
spec:
  targetRefs: [{kind: Service, group: \"\", name: productpage}]
  action: ALLOW
  rules:
  - from: [{source: {principals: [cluster.local/ns/bookinfo/sa/sleep]}}]
    to: [{operation: {methods: [GET]}}]
EOF";

const SPLIT: &str = "kubectl apply -f - <<EOF
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: reviews}
spec:
  parentRefs: [{group: \"\", kind: Service, name: reviews, port: 9080}]
  rules:
  - backendRefs: [{name: reviews-v1, port: 9080, weight: 90}, {name: reviews-v2, port: 9080, weight: 10}]
EOF";

/// Sixty pages in one go; those of v2 have black stars, those of v3 would have red ones.
const MANY: &str = "pages=$(kubectl exec deploy/sleep -- /bin/busybox sh -c \
    'for page in $(/bin/busybox seq 60); do /bin/busybox wget -qO- http://productpage:9080/productpage | \
    /bin/busybox grep -o \"color=.[a-z]*\" | /bin/busybox head -1 | /bin/busybox grep . || echo none; done'); \
    none=$(grep -c none <<< \"$pages\"); black=$(grep -c black <<< \"$pages\"); red=$(grep -c red <<< \"$pages\"); \
    verdict=; (( none > 40 && black > 0 && red == 0 )) && verdict='split as wanted'; \
    echo none: $none black: $black red: $red $verdict";
