//! What whoever follows a tutorial types to install, inspect and remove the mesh (F01 to F28 of the table of features in
//! the project's reference), literally but for the names of archives, registries and samples' folders. `istioctl` is our
//! program called by that name; lines that only look are run by Istio's own, too.
//!
//! Not here: the archive of F01 (the release folder's own test), F22 and F23 (minikube, kind and MetalLB: platforms, of
//! which this cluster is one).

mod ambient;
mod helm;
mod installed;
mod removed;
mod script;

use karst_e2e::{Files, Pod, kubectl};
use script::{Script, acts, reads};
use std::fs;

/// Where the samples are.
const NAMESPACE: &str = "bookinfo";

/// All of it, on a cluster without a mesh, which it leaves so.
pub fn follow() {
    let mut script = Script::new(NAMESPACE);
    script.run(BEFORE, &[]);
    script.run(removed::DEFAULT_PROFILE, &[]);
    script.run(installed::DEMO, &[]);
    let ingress = Pod::by_label("istio-system", "istio=ingressgateway").name;
    let page = Pod::by_label(NAMESPACE, "app=productpage").name;
    let names = [("ingress", ingress.as_str()), ("productpage", page.as_str())];
    script.run(installed::INSPECTED, &names);
    script.run(installed::ENROLLED, &names);
    script.run(installed::ADD_ONS, &[]);
    script.run(removed::PURGED, &[]);
    by_helm(&mut script);
    script.run(ambient::GUIDE, &[]);
    script.run(helm::REMOVED, &[]);
    kubectl(&["delete", "namespace", NAMESPACE, "istio-system", "--ignore-not-found", "--timeout=90s"]);
    script.end();
}

/// The charts, from a repository on loopback.
fn by_helm(script: &mut Script) {
    let folder = script.shell().folder().join("charts");
    fs::create_dir_all(&folder).unwrap();
    for chart in ["base", "istiod", "cni", "ztunnel", "gateway"] {
        karst_e2e::helm(&["package", &format!("charts/{chart}"), "-d", folder.to_str().unwrap()]);
    }
    karst_e2e::helm(&["repo", "index", folder.to_str().unwrap()]);
    let files = Files::serve(&folder);
    script.run(helm::INSTALLED, &[("repository", &files.url())]);
}

/// What asks no cluster.
const BEFORE: &[script::Step] = &[
    reads("F01", "istioctl version --remote=false", "the program runs", &["client version:"]).by_both(),
    reads(
        "F05",
        "istioctl profile list",
        "a header and the profiles",
        &["configuration profiles:", "default", "demo", "empty", "minimal", "openshift", "preview", "remote"],
    ),
    reads("F06", "istioctl profile dump default", "the profile as YAML", &["kind: IstioOperator", "components:"]),
    reads("F10", "istioctl profile dump demo", "another one", &["name: demo", "egressGateways:", "accessLogFile:"]),
    reads("F10", "istioctl profile diff default demo", "what it has more", &["+ enabled: true"]).fails(),
    reads("F10", "istioctl manifest generate --set profile=minimal", "the control plane alone", &["name: istiod"])
        .without(&["kind: DaemonSet"]),
    reads(
        "F10",
        "istioctl manifest generate --set values.pilot.replicaCount=2",
        "a value of one's own",
        &["replicas: 2"],
    ),
    reads(
        "F07",
        "cmp <(istioctl manifest generate --set profile=demo) <(istioctl manifest generate --set profile=demo) && echo same",
        "the same bytes twice",
        &["same"],
    ),
    reads(
        "F26",
        "istioctl kube-inject -f samples/manifests/sleep.yaml",
        "why there is nothing to do",
        &["nothing was injected", "istio.io/dataplane-mode=ambient", "kind: Deployment"],
    ),
    acts(
        "F21",
        "kubectl get crd gateways.gateway.networking.k8s.io &> /dev/null || \
         kubectl apply --server-side -f target/cluster/bin/gateway-api.yaml; kubectl get crd",
        "Gateway API's CRDs are there",
        &["gateways.gateway.networking.k8s.io", "httproutes.gateway.networking.k8s.io"],
    ),
    reads("F21", "istioctl x precheck", "nothing in the way", &["No issues found"]).by_both(),
];
