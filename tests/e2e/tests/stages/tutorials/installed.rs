//! F02, F04, F11 to F15 and F24 to F28: the demo profile, looked at from all sides, with an application in the mesh.

use super::script::{Step, acts, reads};

/// The demo profile, and the application outside of the mesh.
pub const DEMO: &[Step] = &[
    acts(
        "F02",
        "istioctl install --set profile=demo -y",
        "a tick for core, istiod, both gateways",
        &[
            "✔ Istio core installed",
            "✔ Istiod installed",
            "✔ Egress gateways installed",
            "✔ Ingress gateways installed",
            "✔ Installation complete",
        ],
    ),
    reads(
        "F11",
        "kubectl get pods -n istio-system",
        "gateways, too",
        &["istio-egressgateway- 1/1 Running", "istio-ingressgateway- 1/1 Running", "istiod- 1/1 Running"],
    ),
    reads(
        "F11",
        "kubectl get svc -n istio-system",
        "node ports of the gateway",
        &["istio-ingressgateway LoadBalancer 15021: 80: 443:", "istio-egressgateway ClusterIP"],
    ),
    reads(
        "F11",
        "kubectl get all -n istio-system",
        "all kinds",
        &["pod/istiod- 1/1", "service/istio-ingressgateway", "deployment.apps/istiod 1/1", "daemonset.apps/ztunnel"],
    ),
    acts("F29", "kubectl create namespace bookinfo", "created", &["namespace/bookinfo created"]),
    acts(
        "F29",
        "kubectl apply -f samples/manifests/bookinfo.yaml",
        "created",
        &["deployment.apps/productpage-v1 created"],
    ),
    acts(
        "F12",
        "kubectl apply -f samples/exercises/bookinfo-gateway.yaml",
        "Gateway and VirtualService",
        &[
            "gateway.networking.istio.io/bookinfo-gateway created",
            "virtualservice.networking.istio.io/bookinfo created",
        ],
    ),
    reads(
        "F29",
        "kubectl get pods",
        "the pods run, with one container",
        &[
            "details-v1- 1/1 Running",
            "ratings-v1- 1/1 Running",
            "reviews-v3- 1/1 Running",
            "productpage-v1- 1/1 Running",
        ],
    ),
];

/// Lines that only look, at the control plane and its objects.
pub const INSPECTED: &[Step] = &[
    reads(
        "F12",
        "kubectl api-resources | grep istio",
        "the kinds and their short names",
        &[
            "virtualservices vs networking.istio.io/ true VirtualService",
            "destinationrules dr networking.istio.io/ true DestinationRule",
            "gateways gw networking.istio.io/ true Gateway",
            "serviceentries se networking.istio.io/",
            "peerauthentications pa security.istio.io/",
        ],
    ),
    reads(
        "F12",
        "kubectl get vs,gateway",
        "columns of Istio's",
        &["NAME GATEWAYS HOSTS AGE", "bookinfo bookinfo-gateway"],
    ),
    reads("F12", "kubectl get vs -o wide", "the same", &["NAME GATEWAYS HOSTS AGE"]),
    reads("F12", "kubectl get gateways.networking.istio.io", "Istio's Gateway", &["bookinfo-gateway"]),
    reads(
        "F13",
        "istioctl proxy-status",
        "a row for each proxy",
        &[
            "NAME CLUSTER ISTIOD VERSION SUBSCRIBED TYPES",
            "{ingress}.istio-system Kubernetes istiod-",
            "ztunnel- .istio-system Kubernetes istiod-",
        ],
    )
    .by_both(),
    reads("F13", "istioctl ps -v 1", "in detail", &["SYNCED"]).by_both(),
    reads(
        "F13",
        "istioctl version",
        "versions of all",
        &["client version:", "control plane version:", "data plane version: proxies"],
    ),
    reads("F13", "istioctl version --short", "by istioctl, too", &["control plane version:", "data plane version:"])
        .by_both(),
    reads("F13", "istioctl proxy-config listeners {ingress}.istio-system", "the port of the Gateway", &["80"])
        .by_both(),
    reads(
        "F13",
        "istioctl pc routes {ingress}.istio-system",
        "the VirtualService's routes",
        &["/productpage bookinfo.bookinfo"],
    )
    .by_both(),
    reads(
        "F13",
        "istioctl pc clusters {ingress}.istio-system",
        "the service",
        &["productpage.bookinfo.svc.cluster.local 9080 outbound EDS"],
    )
    .by_both(),
    reads("F13", "istioctl pc endpoints {ingress}.istio-system", "its endpoint", &["HEALTHY productpage"]).by_both(),
    reads("F13", "istioctl pc secret {ingress}.istio-system", "its certificate", &["default ACTIVE true"]).by_both(),
    reads("F13", "istioctl pc bootstrap {ingress}.istio-system -o json", "who it is", &["istio-system"]).by_both(),
    reads("F13", "istioctl pc ecds {ingress}.istio-system -o json", "no extensions", &[]).ends_anyhow().by_both(),
    reads("F13", "istioctl admin log", "scopes and levels", &["ACTIVE SCOPE DESCRIPTION LOG LEVEL"]).by_both(),
    reads("F11", "karst check", "everything is healthy", &["istiod ok", "The mesh is healthy"]),
];

/// The application joins, by both labels that tutorials have, and leaves.
pub const ENROLLED: &[Step] = &[
    acts(
        "F24",
        "kubectl label namespace bookinfo istio-injection=enabled",
        "labelled",
        &["namespace/bookinfo labeled"],
    ),
    reads("F24", "kubectl describe namespace bookinfo", "the label is shown", &["istio-injection=enabled"]),
    reads(
        "F24",
        "istioctl analyze",
        "and said to do nothing, with the one that does",
        &["istio-injection istio.io/dataplane-mode=ambient"],
    )
    .ends_anyhow(),
    acts("F24", "kubectl label namespace bookinfo istio.io/dataplane-mode=ambient", "labelled", &["labeled"]),
    reads(
        "F24",
        "istioctl ztunnel-config workload",
        "the pods are in the mesh",
        &[
            "NAMESPACE POD NAME ADDRESS NODE WAYPOINT PROTOCOL",
            "bookinfo productpage-v1- HBONE",
            "bookinfo reviews-v3- HBONE",
        ],
    )
    .by_both(),
    reads("F24", "kubectl get pods", "1/1, without a restart", &["productpage-v1- 1/1 Running 0"]),
    acts("F25", "kubectl label namespace bookinfo istio-injection-", "unlabelled", &["namespace/bookinfo unlabeled"]),
    reads(
        "F14",
        "istioctl analyze",
        "the line of success",
        &["✔ No validation issues found when analyzing namespace: bookinfo."],
    ),
    reads("F14", "istioctl analyze", "by istioctl: no error", &[])
        .without(&["Error [", "Error: "])
        .ends_anyhow()
        .by_both(),
    reads("F14", "istioctl analyze -A", "of all namespaces: no error", &[])
        .without(&["Error [", "Error: "])
        .ends_anyhow()
        .by_both(),
    acts(
        "F26",
        "kubectl apply -f <(istioctl kube-inject -f samples/manifests/sleep.yaml)",
        "one form of the shell",
        &["deployment.apps/sleep created"],
    ),
    acts(
        "F26",
        "istioctl kube-inject -f samples/manifests/httpbin.yaml | kubectl apply -f -",
        "the other one",
        &["deployment.apps/httpbin created"],
    ),
    reads("F26", "kubectl get pods", "they run, 1/1: no sidecar", &["sleep- 1/1 Running", "httpbin- 1/1 Running"]),
    reads(
        "F27",
        "kubectl describe pod -l app=productpage",
        "redirected, as an annotation says",
        &["ambient.istio.io/redirection: enabled"],
    ),
    reads(
        "F27",
        "istioctl x describe pod {productpage}",
        "what the mesh does for it",
        &["Pod: {productpage}.bookinfo", "Mesh: yes", "Service: productpage.bookinfo", "Effective PeerAuthentication:"],
    ),
    reads(
        "F27",
        "istioctl x authz check {productpage}",
        "policies in force: none yet",
        &["ACTION AuthorizationPolicy RULES"],
    ),
    reads(
        "F28",
        "kubectl exec deploy/ratings-v1 -- /bin/busybox wget -qO- productpage:9080/productpage",
        "the page, through the mesh, unchanged",
        &["<title>Simple Bookstore App</title>"],
    ),
    reads(
        "F27",
        "istioctl ztunnel-config certificate {productpage}.bookinfo",
        "an identity for each account",
        &["spiffe://cluster.local/ns/bookinfo/sa/bookinfo-productpage Leaf Available true"],
    )
    .by_both(),
    reads("F27", "istioctl ztunnel-config service", "services and endpoints", &["bookinfo productpage 1/1"]).by_both(),
    acts("F25", "kubectl label namespace bookinfo istio.io/dataplane-mode-", "unlabelled", &["unlabeled"]),
    reads("F25", "istioctl ztunnel-config workload", "out of the mesh at once", &["bookinfo productpage-v1- TCP"])
        .by_both(),
    acts(
        "F04",
        "istioctl manifest apply --set profile=demo",
        "the same as install",
        &["This will install profile \"demo\" (y/N)", "✔ Installation complete"],
    )
    .typed("y\n"),
];

/// Port-forwards to what has an add-on's label and port: stand-ins, since the add-ons' images are not here.
pub const ADD_ONS: &[Step] = &[
    reads(
        "F15",
        "istioctl dashboard kiali --browser=false",
        "none: what to install",
        &["no kiali is running", "next:"],
    )
    .fails(),
    acts("F15", STAND_INS, "stand-ins of the add-ons", &["pod/kiali created", "pod/grafana created"]),
    acts(
        "F15",
        "kubectl -n istio-system wait --for=condition=Ready pod/kiali pod/grafana pod/prometheus --timeout=60s",
        "ready",
        &["pod/kiali condition met"],
    ),
    reads("F15", KIALI, "a port-forward, and it answers", &["http://localhost:20001/kiali", "200 OK"]).by_both(),
    reads("F15", GRAFANA, "the same", &["http://localhost:3000", "200 OK"]).by_both(),
    reads("F15", PROMETHEUS, "the same", &["http://localhost:9090", "200 OK"]).by_both(),
];

const STAND_INS: &str = "for one in kiali:20001:app=kiali grafana:3000:app.kubernetes.io/name=grafana \
    prometheus:9090:app.kubernetes.io/name=prometheus; do IFS=: read name port label <<< $one; \
    kubectl -n istio-system run $name --image=registry.local/karst/samples:1 --image-pull-policy=Never \
    --overrides='{\"spec\": {\"terminationGracePeriodSeconds\": 1}}' \
    --labels=$label --command -- sample-http --flavour nginx --listen 0.0.0.0:$port; done";

/// The dashboard runs until it is ended; meanwhile its page is asked for.
macro_rules! dashboard {
    ($name:literal, $port:literal, $path:literal) => {
        concat!(
            "istioctl dashboard ",
            $name,
            " --browser=false & for try in $(seq 40); do sleep 0.3; curl -si http://localhost:",
            $port,
            $path,
            " && break; done; kill $!"
        )
    };
}
const KIALI: &str = dashboard!("kiali", "20001", "/kiali");
const GRAFANA: &str = dashboard!("grafana", "3000", "/");
const PROMETHEUS: &str = dashboard!("prometheus", "9090", "/");
