//! Istio's own node agent with Karst's control plane and ztunnel: as they come, under restarts, and one agent in the place of the
//! other (docs/swapping.md). Istio's comes from its Go module and is installed by its own chart.

use super::{Apps, LONG, Load, MARK, STRICT, apps, start_and_wait, talk};
use karst_e2e::{apply, get, helm, kubectl, link, rollout, xtask};
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
