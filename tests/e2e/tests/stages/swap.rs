//! Istio's own node agent with Karst's control plane and ztunnel, and Istio's own control plane with Karst's agent and ztunnel: as they
//! come, under restarts, and one in the place of the other (docs/swapping.md). Istio's come from its Go module and are installed by
//! its own charts.

use super::{Apps, LONG, Load, MARK, STRICT, apps, start_and_wait, talk};
use karst_e2e::{Pod, apply, get, helm, kubectl, link, rollout, try_apply, try_kubectl, xtask};
use karst_world::{Loaded, sniff::Sniffer, wait_for};

const SYSTEM: [&str; 2] = ["-n", "istio-system"];

fn install_istios_agent() {
    let values = [
        "--set=profile=ambient",
        "--set=image=registry.local/istio/install-cni:1",
        "--set=global.imagePullPolicy=Never",
        "--set=global.nativeNftables=true",
    ];
    let chart = ["install", "istio-cni", "target/cluster/bin/istio-charts/istio-cni"];
    helm(&[&chart[..], &SYSTEM, &values, &["--wait", "--timeout=90s"]].concat());
}

fn install(release: &str, chart: &str, args: &[&str]) {
    helm(&[&["install", release, &format!("charts/{chart}")][..], &SYSTEM, &["--create-namespace"], args].concat());
}

fn remove_agent(release: &str) {
    helm(&[&["uninstall", release][..], &SYSTEM, &["--wait"]].concat());
    kubectl(&[&SYSTEM[..], &["wait", "--for=delete", "pod", "-l", "k8s-app=istio-cni-node", "--timeout=60s"]].concat());
}

fn install_istios_control_plane() {
    let values = [
        "--set=profile=ambient",
        "--set=image=registry.local/istio/pilot:1",
        "--set=global.imagePullPolicy=Never",
        "--set=autoscaleEnabled=false",
        "--set=resources.requests.cpu=10m",
        "--set=resources.requests.memory=64Mi",
    ];
    let chart = ["install", "istiod", "target/cluster/bin/istio-charts/istio-control/istio-discovery"];
    helm(&[&chart[..], &SYSTEM, &["--create-namespace"], &values, &["--wait", "--timeout=120s"]].concat());
}

/// Istio's or Karst's: both are the release `istiod`.
fn remove_control_plane() {
    helm(&[&["uninstall", "istiod"][..], &SYSTEM, &["--wait"]].concat());
    kubectl(&[&SYSTEM[..], &["wait", "--for=delete", "pod", "-l", "app=istiod", "--timeout=60s"]].concat());
}

/// Whose control plane it is, it is obeyed: a policy comes into force and goes, and a new pod has its identity.
fn is_obeyed(a: &Apps, whose: &str, pod: &str) {
    let deny = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: nobody, namespace: app}\nspec: {action: DENY, rules: [{from: [{source: {namespaces: [app]}}]}]}\n";
    // The webhook of the one before may be remembered for a moment.
    wait_for(&format!("{whose} control plane takes a policy"), LONG, || try_apply(deny).ok());
    wait_for(&format!("the policy in force by {whose} control plane"), LONG, || talk(&a.client, a.service).err());
    wait_for("the policy's removal", LONG, || {
        try_kubectl(&["-n", "app", "delete", "authorizationpolicy", "nobody", "--ignore-not-found"]).ok()
    });
    wait_for(&format!("the policy gone by {whose} control plane"), LONG, || talk(&a.client, a.service).ok());
    start_and_wait("app", pod, "client");
    let new = Pod::get("app", pod);
    wait_for(&format!("a new pod known by {whose} control plane"), LONG, || talk(&new, a.service).ok());
    let sniffer = Sniffer::start(&link(), MARK);
    for _ in 0..20 {
        talk(&a.client, a.service).unwrap();
        talk(&new, a.service).unwrap();
    }
    let seen = sniffer.seen();
    println!("{whose} control plane, Karst's ztunnel: {} marked frames, {} of HBONE", seen.marked, seen.hbone);
    assert!(seen.marked == 0 && seen.hbone > 0);
}

fn tell(what: &str, loaded: &Loaded) {
    println!("{what}: {} ok, {} failed, slowest {} ms", loaded.ok, loaded.failed.len(), loaded.slowest_ms);
}

/// Runs something under load from inside and outside of the mesh; gives what failed.
fn under_load(a: &Apps, what: &str, work: impl FnOnce()) -> Vec<String> {
    let loads = [&a.client, &a.outside].map(|from| Load::start(&from.netns(), a.service, 100, MARK));
    work();
    let mut all = vec![];
    for (load, from) in loads.into_iter().zip(["inside", "outside"]) {
        let loaded = load.end();
        tell(&format!("{what}, from {from}"), &loaded);
        assert!(loaded.ok > 10, "{what}: the load has run");
        all.extend(loaded.failed.into_iter().map(|why| format!("{what}, from {from}: {why}")));
    }
    all
}

pub fn istios_agent_with_our_ztunnel() {
    xtask(&["cluster", "istio-agent"]);
    let a = apps();
    kubectl(&["label", "namespace", "app", "--overwrite", "istio.io/dataplane-mode-"]);
    install("istio-base", "base", &[]);
    install("istiod", "istiod", &["--wait"]);
    // It waits for an agent.
    install("ztunnel", "ztunnel", &[]);
    install_istios_agent();
    kubectl(&[&SYSTEM[..], &["rollout", "status", "ds/ztunnel", "--timeout=60s"]].concat());

    a.mesh(true);
    wait_for("the way through the mesh", LONG, || talk(&a.client, a.service).ok());
    let sniffer = Sniffer::start(&link(), MARK);
    for _ in 0..20 {
        talk(&a.client, a.service).unwrap();
    }
    let seen = sniffer.seen();
    println!("Istio's agent, Karst's ztunnel: {} marked frames, {} of HBONE", seen.marked, seen.hbone);
    assert!(seen.marked == 0 && seen.hbone > 0);
    apply(STRICT);
    wait_for("STRICT in force", LONG, || talk(&a.outside, a.service).is_err().then_some(()));
    talk(&a.client, a.service).unwrap();
    // Over several periods of the kubelet's probes.
    std::thread::sleep(std::time::Duration::from_secs(4));
    assert_eq!(get(&["deployment", "-n", "app", "echo"])["status"]["readyReplicas"], 2, "probes pass under STRICT");
    kubectl(&["-n", "app", "delete", "peerauthentication", "default"]);
    wait_for("PERMISSIVE again", LONG, || talk(&a.outside, a.service).ok());
    start_and_wait("app", "under-istios-agent", "client");

    let mut failed = under_load(&a, "ztunnel restarted", || rollout("istio-system", "ds/ztunnel"));
    failed.extend(under_load(&a, "Istio's agent restarted", || rollout("istio-system", "ds/istio-cni-node")));
    // Each agent takes its own redirection back; then they change places.
    let mut istios = under_load(&a, "out of the mesh by Istio's agent", || a.mesh(false));
    failed.extend(under_load(&a, "Karst's agent in the place of Istio's", || {
        remove_agent("istio-cni");
        install("cni", "cni", &["--wait"]);
        a.mesh(true);
    }));
    talk(&a.client, a.service).unwrap();
    failed.extend(under_load(&a, "Istio's agent in the place of Karst's", || {
        a.mesh(false);
        remove_agent("cni");
        install_istios_agent();
    }));
    istios.extend(under_load(&a, "into the mesh by Istio's agent", || a.mesh(true)));
    assert!(failed.is_empty(), "{failed:?}");
    // Istio's agent redirects a running pod before it tells ztunnel of it, and takes the rules away before that: what is just then
    // on its way is lost, whoever's ztunnel it is.
    println!("lost while Istio's agent took pods in and out: {} {istios:?}", istios.len());
    assert!(istios.len() < 20, "{istios:?}");
    wait_for("the way through the mesh", LONG, || talk(&a.client, a.service).ok());

    a.mesh(false);
    remove_agent("istio-cni");
    for release in ["ztunnel", "istiod", "istio-base"] {
        helm(&[&["uninstall", release][..], &SYSTEM, &["--wait"]].concat());
    }
    kubectl(&["delete", "namespace", "app", "outside", "istio-system", "--timeout=90s"]);
}

pub fn istios_control_plane_with_our_agent_and_ztunnel() {
    for program in ["istiod", "istio-agent"] {
        xtask(&["cluster", program]);
    }
    let a = apps();
    kubectl(&["label", "namespace", "app", "--overwrite", "istio.io/dataplane-mode-"]);
    install("istio-base", "base", &[]);
    install_istios_control_plane();
    install("ztunnel", "ztunnel", &[]);
    install("cni", "cni", &["--wait"]);
    kubectl(&[&SYSTEM[..], &["rollout", "status", "ds/ztunnel", "--timeout=60s"]].concat());
    a.mesh(true);
    wait_for("the way through the mesh", LONG, || talk(&a.client, a.service).ok());
    is_obeyed(&a, "Istio's", "under-istios-istiod");

    let mut failed = under_load(&a, "Istio's control plane restarted", || rollout("istio-system", "deploy/istiod"));
    failed.extend(under_load(&a, "ztunnel restarted under it", || rollout("istio-system", "ds/ztunnel")));
    // In place and back, while pods stay in the mesh: the authority is the same Secret, so that no certificate is renewed for it.
    failed.extend(under_load(&a, "Karst's control plane in the place of Istio's", || {
        remove_control_plane();
        install("istiod", "istiod", &["--wait"]);
    }));
    is_obeyed(&a, "Karst's", "under-our-istiod");
    failed.extend(under_load(&a, "Istio's control plane in the place of Karst's", || {
        remove_control_plane();
        install_istios_control_plane();
    }));
    is_obeyed(&a, "Istio's", "under-istios-istiod-again");
    assert!(failed.is_empty(), "{failed:?}");

    // Both of Istio's, and ztunnel alone is Karst's.
    a.mesh(false);
    remove_agent("cni");
    install_istios_agent();
    a.mesh(true);
    wait_for("the way through the mesh", LONG, || talk(&a.client, a.service).ok());
    is_obeyed(&a, "Istio's", "under-both-of-istios");

    a.mesh(false);
    remove_agent("istio-cni");
    for release in ["ztunnel", "istiod", "istio-base"] {
        helm(&[&["uninstall", release][..], &SYSTEM, &["--wait"]].concat());
    }
    kubectl(&["delete", "namespace", "app", "outside", "istio-system", "--timeout=90s"]);
}
