//! Karst on Kubernetes, from installation to removal. One cluster, so the tests run one after the other, in the order of
//! their names; `cargo xtask test` starts the cluster and installs the charts. Two are for `cargo xtask dashboards`.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::type_complexity,
    reason = "a test's failure is a panic"
)]

#[path = "stages/bookinfo.rs"]
mod bookinfo;
#[path = "stages/crashes.rs"]
mod crashes;
#[path = "stages/dashboards.rs"]
mod dashboards;
#[path = "stages/exercises.rs"]
mod exercises;
#[path = "stages/istioctl.rs"]
mod istioctl;
#[path = "stages/karst.rs"]
mod karst;
#[path = "stages/logins.rs"]
mod logins;
#[path = "stages/pages.rs"]
mod pages;
#[path = "stages/release.rs"]
mod release;
#[path = "stages/swap.rs"]
mod swap;
#[path = "stages/tasks.rs"]
mod tasks;
#[path = "stages/traces.rs"]
mod traces;
#[path = "stages/tutorials/mod.rs"]
mod tutorials;
#[path = "stages/ways_in.rs"]
mod ways_in;

use karst_e2e::{
    Held, LONG, Load, Pod, apply, ask_until, dry_apply, exercise::Exercise, get, helm, kubectl, kubectl_with, link,
    ready, rollout, try_apply, try_helm, try_kubectl, vip, wait_redirected, xtask,
};
use karst_world::{app, sniff::Sniffer, wait_for};
use std::{
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

const MARK: &[u8] = b"plaintext-marker-of-the-cluster-tests";
/// No plaintext into the namespace.
const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: app}\nspec: {mtls: {mode: STRICT}}\n";
const APPS: &str = include_str!("../manifests/apps.yaml");

/// A file of samples/.
fn sample(path: &str) -> String {
    format!("{}/../../samples/{path}", env!("CARGO_MANIFEST_DIR"))
}

struct Apps {
    client: Pod,
    other: Pod,
    outside: Pod,
    echo: Pod,
    service: SocketAddr,
}

fn apps() -> Apps {
    apply(APPS);
    kubectl(&["-n", "app", "rollout", "status", "deploy/echo", "--timeout=90s"]);
    ready("app");
    ready("outside");
    Apps {
        client: Pod::get("app", "client"),
        other: Pod::get("app", "other"),
        outside: Pod::get("outside", "client"),
        echo: Pod::by_label("app", "app=echo"),
        service: (vip("app", "echo"), 9000).into(),
    }
}

impl Apps {
    fn mesh(&self, on: bool) {
        let value = if on { "istio.io/dataplane-mode=ambient" } else { "istio.io/dataplane-mode-" };
        kubectl(&["label", "namespace", "app", "--overwrite", value]);
        wait_redirected(&[&self.client, &self.other, &self.echo], on);
    }
}

/// One connection with one message.
fn talk(from: &Pod, to: SocketAddr) -> Result<(), String> {
    say(from, to, MARK)
}
fn say(from: &Pod, to: SocketAddr, what: &[u8]) -> Result<(), String> {
    let s = from.netns().run(|| TcpStream::connect_timeout(&to, Duration::from_secs(3))).unwrap();
    s.and_then(|mut s| app::ping(&mut s, what)).map_err(|e| e.to_string())
}

fn policy(name: &str, spec: &str) {
    apply(&format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: app}}\nspec: {spec}\n"
    ));
}

#[test]
fn s1_installed_and_ready() {
    for (kind, name) in [("deployment", "istiod"), ("daemonset", "ztunnel"), ("daemonset", "istio-cni-node")] {
        let o = get(&[kind, "-n", "istio-system", name]);
        let s = &o["status"];
        let (have, want) = if kind == "deployment" {
            (&s["readyReplicas"], &o["spec"]["replicas"])
        } else {
            (&s["numberReady"], &s["desiredNumberScheduled"])
        };
        println!("{kind} {name}: {have} of {want} ready");
        assert_eq!(have, want);
    }
    // ztunnel's account may do nothing at all.
    let who = "--as=system:serviceaccount:istio-system:ztunnel";
    for what in [["get", "pods"], ["get", "secrets"], ["create", "tokenreviews"], ["list", "namespaces"]] {
        let answer = try_kubectl(&["auth", "can-i", what[0], what[1], "-A", who]);
        assert!(answer.is_err(), "ztunnel may {what:?}");
    }
    let tested = helm(&["test", "ambient", "-n", "istio-system"]);
    assert!(tested.contains("Phase:          Succeeded"), "{tested}");
    // The root certificate is in every namespace, and comes back.
    let root = || get(&["configmap", "istio-ca-root-cert", "-n", "default"])["data"]["root-cert.pem"].clone();
    let before = root();
    assert!(before.as_str().unwrap().starts_with("-----BEGIN CERTIFICATE-----"));
    kubectl(&["delete", "configmap", "istio-ca-root-cert", "-n", "default"]);
    wait_for("the root certificate again", LONG, || {
        try_kubectl(&["get", "configmap", "istio-ca-root-cert", "-n", "default"]).ok()
    });
    assert_eq!(root(), before);
}

/// Wrong values are refused before anything is installed.
#[test]
fn s0_values_are_checked() {
    for (chart, set, says) in [
        ("cni", "cniBinDr=/x", "additional properties 'cniBinDr' not allowed"),
        ("ztunnel", "xdsAddress=istiod", "at '/xdsAddress'"),
        ("ambient", "istiod.replicaCount=many", "at '/replicaCount'"),
        ("gateway", "service.ports[0].port=0", "at '/service/ports/0/port'"),
        ("ztunnel", "digest=sha256:12", "at '/digest'"),
        ("istiod", "global.waypoint.digest=latest", "at '/global/waypoint/digest'"),
        ("istiod", "dashboard.digest=latest", "at '/dashboard/digest'"),
        ("istiod", "dashboard.enabled=true,dashboard.hosts[0]=mesh.example.com", "set dashboard.tlsSecret, too"),
        ("cni", "seccompProfile.type=None", "at '/seccompProfile/type'"),
        ("ambient", "global.networkPolicy.enabled=maybe", "at '/global/networkPolicy/enabled'"),
    ] {
        let e = try_helm(&["template", "x", &format!("charts/{chart}"), "--kube-version=1.34.0", "--set", set])
            .unwrap_err();
        assert!(e.contains(says), "{chart} {set}: {e}");
    }
    for chart in ["base", "istiod", "cni", "ztunnel", "gateway", "ambient"] {
        helm(&["lint", "--strict", &format!("charts/{chart}")]);
    }
    // What is only there if it is asked for.
    let digest = format!("sha256:{}", "0a".repeat(32));
    for (chart, image) in [("istiod", "pilot"), ("cni", "install-cni"), ("ztunnel", "ztunnel"), ("gateway", "waypoint")]
    {
        let path = format!("charts/{chart}");
        let template = |set: &[&str]| {
            helm(&[&["template", "x", &path, "--kube-version=1.34.0", "-n", "istio-system"], set].concat())
        };
        assert!(!template(&[]).contains("kind: NetworkPolicy"), "{chart}");
        assert!(!template(&[]).contains("monitoring.coreos.com"), "{chart}");
        let with = template(&["--set=global.networkPolicy.enabled=true", "-s", "templates/networkpolicy.yaml"]);
        assert!(dry_apply(&with).unwrap().contains("networkpolicy.networking.k8s.io/"), "{chart}");
        let pinned = template(&[&format!("--set=digest={digest}")]);
        let wanted = format!("image: \"registry.local/karst/{image}@{digest}\"");
        let images: Vec<&str> = pinned.lines().map(str::trim).filter(|l| l.starts_with("image: ")).collect();
        assert!(!images.is_empty() && images.iter().all(|l| *l == wanted), "{chart}: {images:?}");
    }
    let pinned = helm(&[
        "template",
        "x",
        "charts/istiod",
        "--kube-version=1.34.0",
        &format!("--set=global.waypoint.digest={digest}"),
    ]);
    assert!(pinned.contains(&format!("value: \"registry.local/karst/waypoint@{digest}\"")), "{pinned}");
    // What `cargo xtask images` has written for the chart that was installed.
    let values = ["template", "x", "charts/ambient", "--kube-version=1.34.0", "-f", "target/images/digests.yaml"];
    assert_eq!(helm(&values).matches("@sha256:").count(), 5, "four images, one of them twice");
    let with_page = [&values[..], &["--set=istiod.dashboard.enabled=true"]].concat();
    assert!(helm(&with_page).contains("image: \"registry.local/karst/dashboard@sha256:"));
}

/// What the charts can render beside what is installed is what the API server takes, and notes are shown after an installation.
#[test]
fn s0_what_values_ask_for_is_accepted() {
    let pod = "nodeSelector.a=b,tolerations[0].operator=Exists,podAnnotations.a=b,global.imagePullSecrets[0]=pull";
    let spread = "topologySpreadConstraints[0].maxSkew=1,topologySpreadConstraints[0].topologyKey=kubernetes.io/hostname,topologySpreadConstraints[0].whenUnsatisfiable=ScheduleAnyway";
    for (chart, set) in [
        (
            "istiod",
            format!(
                "{pod},{spread},revision=canary,revisionTags[0]=prod,autoscaleEnabled=true,memory.targetAverageUtilization=70,meshConfig.accessLogFile=/dev/stdout,meshConfig.outboundTrafficPolicy.mode=REGISTRY_ONLY,global.waypoint.resources.limits.cpu=3,gatewayClasses.istio.service.spec.type=ClusterIP,deploymentLabels.a=b,serviceAnnotations.a=b,trafficDistribution=PreferClose,terminationMessagePolicy=FallbackToLogsOnError,pdb.maxUnavailable=1,pdb.unhealthyPodEvictionPolicy=AlwaysAllow,dashboard.enabled=true,dashboard.tlsSecret=page,dashboard.hosts[0]=mesh.example.com,global.networkPolicy.enabled=true"
            ),
        ),
        (
            "cni",
            format!("{pod},global.platform=k3s,podLabels.a=b,resourceQuotas.enabled=true,seLinuxOptions.type=spc_t"),
        ),
        (
            "ztunnel",
            format!(
                "{pod},resourceName=ztunnel2,revision=canary,resourceQuotas.enabled=true,dnsPolicy=ClusterFirst,labels.a=b,meshConfig.outboundTrafficPolicy.mode=REGISTRY_ONLY"
            ),
        ),
        (
            "gateway",
            format!(
                "{pod},{spread},revision=canary,autoscaling.enabled=true,podDisruptionBudget.minAvailable=1,priorityClassName=system-cluster-critical,service.ipFamilyPolicy=SingleStack"
            ),
        ),
        ("gateway", format!("{pod},kind=DaemonSet,strategy.type=OnDelete,minReadySeconds=5,dnsPolicy=ClusterFirst")),
    ] {
        let path = format!("charts/{chart}");
        let rendered = helm(&[
            "template",
            "canary",
            &path,
            "--kube-version=1.34.0",
            "-n",
            "default",
            "--skip-tests",
            "--set",
            &set,
        ]);
        let said = dry_apply(&rendered).unwrap_or_else(|e| panic!("{chart} {set}: {e}"));
        assert!(!said.contains("unknown field"), "{chart}: {said}");
    }
    let args =
        ["install", "other", "charts/ztunnel", "-n", "default", "--dry-run=server", "--set=profile=ambient,env.NO=1"];
    let shown = helm(&args);
    for line in ["- profile: Karst has one data plane", "- env.NO: the program does not read this variable"] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    let refused =
        try_helm(&["install", "other", "charts/istiod", "-n", "default", "--dry-run=server", "--set=pilot.a=b"]);
    assert!(refused.unwrap_err().contains("- pilot: write its keys at the top"));
}

/// ConfigMap `istio` is read while the mesh runs; what cannot be used is said in an event, and changes nothing.
#[test]
fn s4_the_mesh_configuration_is_read_live() {
    let a = apps();
    a.mesh(true);
    let write = |mesh: &str| {
        let patch = serde_json::json!({ "data": { "mesh": mesh } }).to_string();
        kubectl(&["-n", "istio-system", "patch", "configmap", "istio", "--type=merge", "-p", &patch]);
    };
    let before = get(&["configmap", "istio", "-n", "istio-system"])["data"]["mesh"].as_str().unwrap().to_string();
    write("outboundTrafficPolicy: {mode: NOWHERE}\n");
    let text = wait_for("the event", LONG, || {
        let events = get(&["events.events.k8s.io", "-n", "istio-system"]);
        let all = events["items"].as_array()?.clone();
        let ours = all.iter().find(|e| e["reason"] == "MeshConfig" && e["regarding"]["name"] == "istio")?;
        ours["note"].as_str().map(String::from)
    });
    assert!(text.contains("outboundTrafficPolicy.mode: unsupported value \"NOWHERE\""), "{text}");
    talk(&a.client, a.service).unwrap();
    write(&before);
    talk(&a.client, a.service).unwrap();
}

/// The node agent's account sets and removes one annotation, of pods of the node that its token is of, whatever RBAC gives it.
#[test]
fn s1_the_agent_changes_one_annotation_on_its_own_node() {
    let a = apps();
    let agents = get(&["pods", "-n", "istio-system", "-l", "k8s-app=istio-cni-node"]);
    let agent = agents["items"].as_array().unwrap().iter().find(|p| p["spec"]["nodeName"] == "n1").unwrap();
    let (name, uid) = (&agent["metadata"]["name"], &agent["metadata"]["uid"]);
    let mint = ["create", "token", "istio-cni", "-n", "istio-system"];
    let bound = [
        "--bound-object-kind=Pod".to_string(),
        format!("--bound-object-name={}", name.as_str().unwrap()),
        format!("--bound-object-uid={}", uid.as_str().unwrap()),
    ];
    let bound: Vec<&str> = mint.into_iter().chain(bound.iter().map(String::as_str)).collect();
    let (token, of_nowhere) = (kubectl(&bound).trim().to_string(), kubectl(&mint).trim().to_string());
    // More rights than it has: kubectl reads before it patches, and what RBAC would refuse is not what is tried here.
    let extra = "agent-may-do-anything";
    kubectl(&[
        "create",
        "clusterrolebinding",
        extra,
        "--clusterrole=cluster-admin",
        "--serviceaccount=istio-system:istio-cni",
    ]);
    let pod = |p: &Pod| ["-n".to_string(), p.namespace.clone(), p.name.clone()];
    let patch = |token: &str, p: &Pod, status: bool, patch: &str| {
        let [flag, namespace, name] = pod(p);
        let mut args = vec!["patch", "pod", &flag, &namespace, &name, "--type=strategic", "-p", patch];
        if status {
            args.push("--subresource=status");
        }
        kubectl_with(token, &args)
    };
    let set = r#"{"metadata":{"annotations":{"ambient.istio.io/redirection":"enabled"}}}"#;
    let unset = r#"{"metadata":{"annotations":{"ambient.istio.io/redirection":null}}}"#;
    // RBAC's cache takes a moment.
    wait_for("the right to try", LONG, || patch(&token, &a.outside, true, set).ok());
    let removed = patch(&token, &a.outside, true, unset);
    let mut said = vec![];
    for (what, token, p, status, change, why) in [
        ("a pod of another node", &token, &a.echo, true, set, "is not on the node of this agent"),
        ("a token of no node", &of_nowhere, &a.outside, true, set, "names no node"),
        ("a label", &token, &a.outside, true, r#"{"metadata":{"labels":{"app":"echo"}}}"#, "changes no labels"),
        (
            "another annotation",
            &token,
            &a.outside,
            true,
            r#"{"metadata":{"annotations":{"a":"b"}}}"#,
            "no annotation but",
        ),
        (
            "another value",
            &token,
            &a.outside,
            true,
            r#"{"metadata":{"annotations":{"ambient.istio.io/redirection":"x"}}}"#,
            "is enabled, or is not there",
        ),
        (
            "a finalizer",
            &token,
            &a.outside,
            true,
            r#"{"metadata":{"finalizers":["a.example/b"]}}"#,
            "changes no labels, finalizers",
        ),
        ("the status", &token, &a.outside, true, r#"{"status":{"phase":"Failed"}}"#, "spec or status"),
        ("not by the status", &token, &a.outside, false, set, "nothing of a pod but an annotation, by its status"),
    ] {
        said.push((what, why, patch(token, p, status, change)));
    }
    let [flag, namespace, name] = pod(&a.outside);
    let why = "nothing of a pod but an annotation";
    said.push(("removal", why, kubectl_with(&token, &["delete", "pod", &flag, &namespace, &name, "--dry-run=server"])));
    kubectl(&["delete", "clusterrolebinding", extra]);
    removed.unwrap();
    for (what, why, answer) in said {
        let e = answer.expect_err(what);
        assert!(e.contains("denied request") && e.contains(why), "{what}: {e}");
    }
    // Everybody else's changes are not its business.
    kubectl(&["-n", "outside", "label", "pod", "client", "by=admin"]);
    kubectl(&["-n", "outside", "label", "pod", "client", "by-"]);
}

/// Agent and ztunnel run under the runtime's profile of system calls.
#[test]
fn s1_system_calls_are_filtered() {
    for label in ["k8s-app=istio-cni-node", "app=ztunnel", "app=istiod"] {
        let pod = Pod::by_label("istio-system", label);
        let filtered = pod.seccomp();
        println!("{label}: {filtered:?}");
        assert!(!filtered.is_empty() && filtered.iter().all(|(_, mode)| mode == "2"), "{filtered:?}");
    }
}

#[test]
fn s2_a_label_enrols_running_pods() {
    let a = apps();
    let sniffer = Sniffer::start(&link(), MARK);
    talk(&a.client, a.service).unwrap();
    let before = sniffer.seen();
    assert!(before.marked > 0, "without the mesh the sniffer sees plaintext");
    kubectl(&["label", "namespace", "app", "istio.io/dataplane-mode=ambient"]);
    let begun = Instant::now();
    // The first connection whose bytes are not seen between the nodes.
    let captured = wait_for("captured traffic", LONG, || {
        let marked = sniffer.seen().marked;
        talk(&a.client, a.service).unwrap();
        std::thread::sleep(Duration::from_millis(5));
        (sniffer.seen().marked == marked).then(|| begun.elapsed())
    });
    wait_redirected(&[&a.client, &a.other, &a.echo], true);
    let settled = sniffer.seen();
    for _ in 0..50 {
        talk(&a.client, a.service).unwrap();
    }
    let after = sniffer.seen();
    println!(
        "label to captured traffic: {} ms; then 50 connections: {} marked frames, {} frames of HBONE",
        captured.as_millis(),
        after.marked - settled.marked,
        after.hbone - settled.hbone
    );
    assert_eq!(after.marked, settled.marked);
    assert!(after.hbone > settled.hbone + 50);
    // ztunnel's access log has both identities.
    let log = kubectl(&["-n", "istio-system", "logs", "-l", "app=ztunnel", "--tail=400"]);
    assert!(
        log.lines().any(|l| l.contains(r#"direction="inbound""#)
            && l.contains(r#"src.identity="spiffe://cluster.local/ns/app/sa/client""#)
            && l.contains(r#"dst.identity="spiffe://cluster.local/ns/app/sa/echo""#)),
        "{log}"
    );
}

#[test]
fn s3_flips_under_load_break_nothing() {
    let a = apps();
    a.mesh(true);
    let (inside, outside) = (a.client.netns(), a.outside.netns());
    let loads = [Load::start(&inside, a.service, 100, MARK), Load::start(&outside, a.service, 100, MARK)];
    let mut held: Vec<Held> = [&inside, &outside].map(|n| Held::open(n, a.service, 10)).into();
    let mut broken = 0;
    for i in 0..20 {
        a.mesh(i % 2 == 1);
        broken += held.iter_mut().map(Held::broken).sum::<usize>();
        held.push(Held::open(if i % 4 < 2 { &inside } else { &outside }, a.service, 2));
    }
    let [inside, outside] = loads.map(Load::end);
    println!(
        "20 flips: mesh client {} ok, {} failed, slowest {} ms; outside client {} ok, {} failed, slowest {} ms; {broken} of 60 held broken",
        inside.ok,
        inside.failed.len(),
        inside.slowest_ms,
        outside.ok,
        outside.failed.len(),
        outside.slowest_ms
    );
    assert_eq!(
        (inside.failed.len(), outside.failed.len(), broken),
        (0, 0, 0),
        "{:?} {:?}",
        inside.failed,
        outside.failed
    );
    assert!(inside.ok > 500 && outside.ok > 500);
}

#[test]
fn s4_strict_and_policies() {
    let a = apps();
    a.mesh(true);
    talk(&a.outside, a.service).unwrap();
    apply(STRICT);
    let begun = Instant::now();
    wait_for("STRICT in force", LONG, || talk(&a.outside, a.service).is_err().then_some(()));
    println!("STRICT refuses plaintext after {} ms", begun.elapsed().as_millis());
    talk(&a.client, a.service).unwrap();
    // The kubelet's probes pass: the pods stay ready over several periods.
    std::thread::sleep(Duration::from_secs(4));
    let d = get(&["deployment", "-n", "app", "echo"]);
    assert_eq!(d["status"]["readyReplicas"], 2, "probes pass under STRICT");
    kubectl(&["-n", "app", "delete", "peerauthentication", "default"]);
    wait_for("PERMISSIVE again", LONG, || talk(&a.outside, a.service).ok());
    policy(
        "allow-client",
        r#"{selector: {matchLabels: {app: echo}}, action: ALLOW, rules: [{from: [{source: {principals: ["cluster.local/ns/app/sa/client"]}}]}]}"#,
    );
    wait_for("the policy in force", LONG, || talk(&a.other, a.service).is_err().then_some(()));
    talk(&a.client, a.service).unwrap();
    assert!(talk(&a.outside, a.service).is_err(), "no identity, no entry");
    kubectl(&["-n", "app", "delete", "authorizationpolicy", "allow-client"]);
    wait_for("without the policy", LONG, || talk(&a.other, a.service).ok());
    // What cannot be meant is refused where it is written.
    let refused = try_apply("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: bad, namespace: app}\nspec: {rules: [{from: [{source: {principal: [x]}}]}]}\n").unwrap_err();
    assert!(refused.contains(r#"unknown field "spec.rules[0].from[0].source.principal""#), "{refused}");
}

/// A Service with both families, and pods by the address that is not their first.
#[test]
fn s4_both_families() {
    let a = apps();
    a.mesh(true);
    apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: both, namespace: app}\nspec: {ipFamilyPolicy: RequireDualStack, selector: {app: echo}, ports: [{name: tcp, port: 9000}]}\n",
    );
    let addresses = |o: &serde_json::Value, of: fn(&serde_json::Value) -> &serde_json::Value| -> Vec<SocketAddr> {
        let ip = |v: &serde_json::Value| SocketAddr::new(of(v).as_str().unwrap().parse().unwrap(), 9000);
        o.as_array().unwrap().iter().map(ip).collect()
    };
    let mut all = addresses(&get(&["service", "-n", "app", "both"])["spec"]["clusterIPs"], |v| v);
    all.extend(addresses(&get(&["pod", "-n", "app", &a.echo.name])["status"]["podIPs"], |v| &v["ip"]));
    assert_eq!(all.iter().filter(|a| a.is_ipv6()).count(), 2, "{all:?}");
    for to in &all {
        // kube-proxy and ztunnel hear of a Service some time after it was made.
        wait_for(&format!("{to} from outside"), LONG, || say(&a.outside, *to, b"plain").ok());
    }
    apply(STRICT);
    for to in &all {
        wait_for("STRICT in force", LONG, || say(&a.outside, *to, b"plain").is_err().then_some(()));
        wait_for(&format!("{to} by HBONE"), LONG, || say(&a.client, *to, b"known").ok());
    }
    let sniffer = Sniffer::start(&link(), MARK);
    for to in &all {
        for _ in 0..20 {
            talk(&a.client, *to).unwrap();
        }
        say(&a.outside, *to, b"plain").unwrap_err();
    }
    let seen = sniffer.seen();
    println!("both families: {all:?}; {} marked frames, {} of HBONE", seen.marked, seen.hbone);
    assert!(seen.marked == 0 && seen.hbone > 80);
    kubectl(&["-n", "app", "delete", "peerauthentication/default", "service/both"]);
}

#[test]
fn s5_restarts_under_load() {
    let a = apps();
    a.mesh(true);
    let load = Load::start(&a.client.netns(), a.service, 100, MARK);
    let mut total = (0, vec![]);
    let mut load = Some(load);
    let ztunnels = || get(&["pods", "-n", "istio-system", "-l", "app=ztunnel"])["items"].as_array().map_or(0, Vec::len);
    let nodes = ztunnels();
    for (ns, what) in [
        ("app", "deploy/echo"),
        ("istio-system", "ds/istio-cni-node"),
        ("istio-system", "deploy/istiod"),
        ("istio-system", "ds/ztunnel"),
        ("app", "deploy/echo"),
    ] {
        // Open before the rollout of the ztunnels that carry them: they go on in the next ones.
        let mut held = (what == "ds/ztunnel").then(|| Held::open(&a.client.netns(), a.service, 50));
        assert_eq!(held.as_mut().map_or(0, Held::broken), 0, "they have never worked");
        let begun = Instant::now();
        rollout(ns, what);
        let r = load.take().unwrap().end();
        println!(
            "{what} restarted in {:.1} s: {} ok, {} failed, slowest {} ms",
            begun.elapsed().as_secs_f64(),
            r.ok,
            r.failed.len(),
            r.slowest_ms
        );
        total.0 += r.ok;
        total.1.extend(r.failed.into_iter().map(|f| format!("{what}: {f}")));
        if let Some(held) = &mut held {
            // Whatever a former one still has is cut when it ends.
            ask_until("the former ztunnels are gone", || (ztunnels() == nodes).then_some(()));
            let broken = held.broken();
            println!("{what}: {broken} of 50 held connections broken");
            assert_eq!(broken, 0, "{what}: held connections are broken");
        }
        load = Some(Load::start(&a.client.netns(), a.service, 100, MARK));
    }
    drop(load.take().unwrap().end());
    assert!(total.1.is_empty(), "{:?}", total.1);
    assert!(total.0 > 500);
}

/// Each node's process that serves, killed 100 times.
#[test]
#[ignore = "soak: about three minutes"]
fn s5_crashes_are_a_pause() {
    crashes::are_a_pause();
}

/// Without a probe, so that the time to Ready is that of the start and not of a probe's period.
const NEW: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: NAME, namespace: NS}\nspec:\n  serviceAccountName: SA\n  nodeName: n1\n  terminationGracePeriodSeconds: 0\n  containers: [{name: c, image: 'registry.local/karst/samples:1', imagePullPolicy: Never, command: [sample-tcp, serve, --listen, '0.0.0.0:9000']}]\n";

fn new_pod(namespace: &str, name: &str, account: &str) {
    apply(&NEW.replace("NAME", name).replace("NS", namespace).replace("SA", account));
}

fn start_and_wait(namespace: &str, name: &str, account: &str) -> Duration {
    let begun = Instant::now();
    new_pod(namespace, name, account);
    kubectl(&["-n", namespace, "wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]);
    begun.elapsed()
}

#[test]
fn s6_new_pods_are_redirected_before_they_start_or_held() {
    let a = apps();
    a.mesh(true);
    let (mut inside, mut outside) = (vec![], vec![]);
    for i in 0..5 {
        outside.push(start_and_wait("outside", &format!("new-{i}"), "default").as_millis());
        inside.push(start_and_wait("app", &format!("new-{i}"), "client").as_millis());
    }
    inside.sort_unstable();
    outside.sort_unstable();
    println!("pod to Ready, median of 5: {} ms in the mesh, {} ms outside", inside[2], outside[2]);
    let p = Pod::get("app", "new-0");
    assert!(p.redirected());
    // What the annotation says is kept true, whoever edits it.
    kubectl(&["-n", "app", "annotate", "pod", "new-0", "ambient.istio.io/redirection-"]);
    wait_redirected(&[&p], true);
    talk(&p, a.service).unwrap();
    // Without the controller: the node has the identity, so it works.
    kubectl(&["-n", "istio-system", "scale", "deploy/istiod", "--replicas=0"]);
    kubectl(&["-n", "istio-system", "wait", "--for=delete", "pod", "-l", "app=istiod", "--timeout=60s"]);
    start_and_wait("app", "without-controller", "client");
    talk(&Pod::get("app", "without-controller"), a.service).unwrap();
    kubectl(&["-n", "istio-system", "scale", "deploy/istiod", "--replicas=1"]);
    kubectl(&["-n", "istio-system", "rollout", "status", "deploy/istiod", "--timeout=60s"]);
    // Without the agent: held, with an event that says so; started once it is there.
    let nowhere = r#"{"spec":{"template":{"spec":{"nodeSelector":{"no":"node"}}}}}"#;
    kubectl(&["-n", "istio-system", "patch", "ds", "istio-cni-node", "-p", nowhere]);
    kubectl(&["-n", "istio-system", "wait", "--for=delete", "pod", "-l", "k8s-app=istio-cni-node", "--timeout=60s"]);
    talk(&a.client, a.service).unwrap();
    let begun = Instant::now();
    start_and_wait("outside", "without-agent", "default");
    println!("without the agent: a pod outside the mesh is ready after {:.1} s", begun.elapsed().as_secs_f64());
    new_pod("app", "held", "client");
    let event = wait_for("an event", LONG, || {
        let e = kubectl(&[
            "-n",
            "app",
            "get",
            "events",
            "--field-selector=involvedObject.name=held",
            "-o",
            "jsonpath={.items[*].message}",
        ]);
        e.contains("is held").then_some(e)
    });
    println!(
        "without the agent: {}",
        event.split("karst: ").nth(1).unwrap_or(&event).chars().take(140).collect::<String>()
    );
    let waiting = get(&["pod", "-n", "app", "held"]);
    assert_eq!(waiting["status"]["phase"], "Pending");
    let back = r#"{"spec":{"template":{"spec":{"nodeSelector":{"no":null}}}}}"#;
    kubectl(&["-n", "istio-system", "patch", "ds", "istio-cni-node", "-p", back]);
    kubectl(&["-n", "istio-system", "rollout", "status", "ds/istio-cni-node", "--timeout=60s"]);
    kubectl(&["-n", "app", "wait", "--for=condition=Ready", "pod/held", "--timeout=60s"]);
    assert!(Pod::get("app", "held").redirected());
    talk(&Pod::get("app", "held"), a.service).unwrap();
    kubectl(&["-n", "app", "delete", "pod", "held", "without-controller", "--wait=false"]);
    kubectl(&["-n", "outside", "delete", "pod", "without-agent", "--wait=false"]);
}

/// A node loses its power, with the controller on it: who can be reached is reached, and what comes back is redirected
/// before it serves anyone.
#[test]
fn s6_nodes_die_and_come_back() {
    let a = apps();
    a.mesh(true);
    let here = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: echo-here, namespace: app}\nspec: {selector: {matchLabels: {on: n1}}, template: {metadata: {labels: {app: echo, on: n1}}, spec: {serviceAccountName: echo, nodeName: n1, terminationGracePeriodSeconds: 3, containers: [{name: c, image: 'registry.local/karst/samples:1', imagePullPolicy: Never, command: [sample-tcp, serve, --listen, '0.0.0.0:9000']}]}}}\n";
    apply(here);
    kubectl(&["-n", "app", "rollout", "status", "deploy/echo-here", "--timeout=60s"]);
    kubectl(&["cordon", "n1"]);
    rollout("istio-system", "deploy/istiod");
    kubectl(&["uncordon", "n1"]);
    let echoes = || -> Vec<Pod> {
        let pods = get(&["pods", "-n", "app", "-l", "app=echo"]);
        let names = pods["items"].as_array().unwrap().iter().map(|p| p["metadata"]["name"].as_str().unwrap());
        names.map(|n| Pod::get("app", n)).collect()
    };
    apply(STRICT);
    for p in echoes() {
        wait_for("STRICT in force", LONG, || talk(&a.outside, p.at(9000)).is_err().then_some(()));
    }
    let sniffer = Sniffer::start(&link(), MARK);
    let client = a.client.netns();
    let load = Load::start(&client, a.service, 50, MARK);
    let outside = Load::start(&a.outside.netns(), a.service, 20, b"somebody-without-an-identity");
    std::thread::sleep(Duration::from_secs(1));
    xtask(&["cluster", "stop-node", "2"]);
    kubectl(&["wait", "--for=condition=Ready=unknown", "node/n2", "--timeout=60s"]);
    let dying = load.end();
    let load = Load::start(&client, a.service, 50, MARK);
    std::thread::sleep(Duration::from_secs(3));
    let dead = load.end();
    let load = Load::start(&client, a.service, 50, MARK);
    let begun = Instant::now();
    xtask(&["cluster", "start-node", "2"]);
    kubectl(&["wait", "--for=condition=Ready", "node/n2", "--timeout=60s"]);
    ready("app");
    for ds in ["ds/istio-cni-node", "ds/ztunnel"] {
        kubectl(&["-n", "istio-system", "rollout", "status", ds, "--timeout=60s"]);
    }
    let back = begun.elapsed();
    let pods = echoes();
    wait_redirected(&pods.iter().collect::<Vec<_>>(), true);
    for p in &pods {
        // Until ztunnel has been told of the new address it is one outside the mesh, where STRICT lets nothing in.
        wait_for(&format!("an answer of {}", p.name), LONG, || say(&a.client, p.at(9000), b"known").ok());
        talk(&a.client, p.at(9000)).unwrap();
    }
    let booting = load.end();
    let load = Load::start(&client, a.service, 50, MARK);
    std::thread::sleep(Duration::from_secs(3));
    let (after, outside, seen) = (load.end(), outside.end(), sniffer.seen());
    for (when, r) in [("dies", &dying), ("is away", &dead), ("boots", &booting), ("is back", &after)] {
        println!("while the node {when}: {} ok, {} failed, slowest {} ms", r.ok, r.failed.len(), r.slowest_ms);
    }
    println!(
        "power to ready {:.1} s; {} of {} plaintext attempts got in under STRICT; {} marked frames",
        back.as_secs_f64(),
        outside.ok,
        outside.ok as usize + outside.failed.len(),
        seen.marked
    );
    assert!(pods.len() == 3 && seen.hbone > 0);
    assert_eq!((outside.ok, seen.marked), (0, 0), "nobody serves before it is redirected");
    assert!(outside.failed.len() > 100, "somebody tried all the time");
    // Open connections end with their node; new ones go elsewhere.
    let refused = |r: &karst_world::Loaded| r.failed.iter().filter(|f| f.starts_with("refused")).count();
    assert!(
        refused(&dying) == 0 && refused(&booting) == 0 && dead.failed.is_empty() && after.failed.is_empty(),
        "{dying:?} {dead:?} {after:?}"
    );
    kubectl(&["-n", "app", "delete", "peerauthentication", "default"]);
    kubectl(&["-n", "app", "delete", "deploy", "echo-here"]);
}

#[test]
fn s7_removal_leaves_running_pods_alone() {
    let a = apps();
    a.mesh(true);
    helm(&["uninstall", "ambient", "-n", "istio-system", "--wait"]);
    kubectl(&["-n", "istio-system", "wait", "--for=delete", "pod", "-l", "k8s-app=istio-cni-node", "--timeout=60s"]);
    // A ztunnel that still drains closes its tunnels later.
    ask_until("the end of ztunnel", || {
        get(&["pods", "-n", "istio-system", "-l", "app=ztunnel"])["items"].as_array()?.is_empty().then_some(())
    });
    wait_for("plain traffic", LONG, || talk(&a.client, a.service).ok());
    let sniffer = Sniffer::start(&link(), MARK);
    for _ in 0..5 {
        talk(&a.client, a.service).unwrap();
        talk(&a.outside, a.service).unwrap();
    }
    std::thread::sleep(Duration::from_millis(50));
    let seen = sniffer.seen();
    println!("after removal: {} marked frames, {} of HBONE", seen.marked, seen.hbone);
    assert!(seen.marked > 0 && seen.hbone == 0);
    // New pods start, in the namespace that still has the label, too.
    start_and_wait("app", "afterwards", "client");
}

/// The releases that Istio's users know, installed one by one and removed in an order that nobody should choose.
#[test]
fn s8_separate_releases_in_any_order() {
    let a = apps();
    let install = |release: &str, chart: &str| {
        let begun = Instant::now();
        helm(&["install", release, &format!("charts/{chart}"), "-n", "istio-system", "--create-namespace", "--wait"]);
        println!("helm install {release}: {:.1} s", begun.elapsed().as_secs_f64());
    };
    // ztunnel before what it waits for: installed without --wait, ready once the others are.
    helm(&["install", "ztunnel", "charts/ztunnel", "-n", "istio-system", "--create-namespace"]);
    install("istio-base", "base");
    install("istiod", "istiod");
    install("cni", "cni");
    kubectl(&["-n", "istio-system", "rollout", "status", "ds/ztunnel", "--timeout=60s"]);
    a.mesh(true);
    talk(&a.client, a.service).unwrap();
    let load = Load::start(&a.client.netns(), a.service, 50, MARK);
    helm(&["uninstall", "istio-base", "-n", "istio-system", "--wait"]);
    helm(&["uninstall", "istiod", "-n", "istio-system", "--wait"]);
    // The CRDs stay, and no webhook is left behind that would refuse everything.
    policy("afterwards", "{selector: {matchLabels: {app: none}}}");
    kubectl(&["-n", "app", "delete", "authorizationpolicy", "afterwards"]);
    std::thread::sleep(Duration::from_secs(1));
    let r = load.end();
    println!("without base and controller: {} ok, {} failed", r.ok, r.failed.len());
    assert!(r.failed.is_empty() && r.ok > 30, "{:?}", r.failed);
    // Without ztunnel what is redirected cannot get through, and must not in plaintext; the agent takes the redirection back.
    helm(&["uninstall", "ztunnel", "-n", "istio-system", "--wait"]);
    helm(&["uninstall", "cni", "-n", "istio-system", "--wait"]);
    kubectl(&["-n", "istio-system", "wait", "--for=delete", "pod", "-l", "k8s-app=istio-cni-node", "--timeout=60s"]);
    wait_for("plain traffic", LONG, || talk(&a.client, a.service).ok());
    talk(&a.outside, a.service).unwrap();
    start_and_wait("app", "afterwards-2", "client");
    // Nothing is stuck.
    kubectl(&["delete", "namespace", "app", "outside", "istio-system", "--timeout=90s"]);
    let kinds = "clusterrole,clusterrolebinding,validatingwebhookconfiguration,validatingadmissionpolicy,validatingadmissionpolicybinding";
    let left = kubectl(&["get", kinds, "-o", "name"]);
    let ours: Vec<&str> = left.lines().filter(|l| l.contains("istio") || l.contains("ztunnel")).collect();
    assert!(ours.is_empty(), "{ours:?}");
}

/// A row of docs/refused.md, with the words that it gives: is it refused (else warned of)? None: it is a head.
fn is_refused(cells: &[&str]) -> Option<bool> {
    let (kind, spec, text, wrong) = match *cells {
        [_, "#" | "object", ..] => return None,
        [_, _, kind, spec, _, text, _] => (kind, spec, text, true),
        [_, kind, spec, text, _] => (kind, spec, text, false),
        _ => panic!("{cells:?}"),
    };
    let codes: Vec<&str> = spec.split('`').skip(1).step_by(2).collect();
    let annotations = codes.get(1).unwrap_or(&"{}");
    let version = match kind {
        "AuthorizationPolicy" | "PeerAuthentication" | "RequestAuthentication" => "security.istio.io/v1",
        "HTTPFilter" => "karst.io/v1alpha1",
        "Telemetry" => "telemetry.istio.io/v1",
        "EnvoyFilter" => "networking.istio.io/v1alpha3",
        "WasmPlugin" => "extensions.istio.io/v1alpha1",
        "ProxyConfig" => "networking.istio.io/v1beta1",
        _ => "networking.istio.io/v1",
    };
    let answer = dry_apply(&format!(
        "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: x, namespace: default, annotations: {annotations}}}\nspec: {}\n",
        codes[0]
    ));
    let said = if wrong {
        let e = answer.expect_err(spec);
        let after = ["denied the request: ", "strict decoding error: ", "is invalid: "];
        let after = after.iter().find_map(|m| Some(e.split_once(m)?.1.trim_start().to_string()));
        let said = after.unwrap_or(e);
        said.trim_start_matches("* ").lines().next().unwrap_or_default().to_string()
    } else {
        answer.expect(spec).lines().find_map(|l| l.strip_prefix("Warning: ")).unwrap_or_default().to_string()
    };
    assert_eq!(said, text.trim_matches('`'), "{kind} {spec}");
    Some(wrong)
}

/// docs/refused.md, row by row.
#[test]
fn s1_wrong_manifests_are_refused() {
    wait_for("the webhook in force", LONG, || {
        let w = get(&["validatingwebhookconfiguration", "istio-validator-istio-system"]);
        (w["webhooks"][0]["failurePolicy"] == "Fail").then_some(())
    });
    let doc = include_str!("../../../docs/refused.md");
    let rows = doc.lines().filter(|l| l.starts_with("| ")).map(|l| l.split('|').map(str::trim).collect::<Vec<_>>());
    let rows: Vec<_> = rows.collect();
    // Two at a time: most of it is the start of a program.
    let judged: Vec<bool> = std::thread::scope(|s| {
        let halves: Vec<_> = rows
            .chunks(rows.len().div_ceil(2))
            .map(|half| s.spawn(move || half.iter().filter_map(|cells| is_refused(cells)).collect::<Vec<_>>()))
            .collect();
        halves.into_iter().flat_map(|half| half.join().unwrap()).collect()
    });
    let refused = judged.iter().filter(|refused| **refused).count();
    let warned = judged.len() - refused;
    println!("{refused} wrong manifests refused, {warned} warned of, each with the words of docs/refused.md");
    assert!(refused >= 40 && warned > 0);
    // What users of Istio write is accepted, in all versions that Istio serves.
    let accepted = dry_apply(include_str!("../manifests/accepted.yaml")).unwrap();
    println!("{} manifests accepted", accepted.lines().filter(|l| l.contains("(server dry run)")).count());
    // Services that are not there, or have no waypoint, are told, and nothing else.
    let of_services = |l: &&str| l.contains("this has no effect until") || l.contains("uses no waypoint");
    let others: Vec<&str> = accepted.lines().filter(|l| l.starts_with("Warning") && !of_services(l)).collect();
    assert!(others.is_empty(), "{others:?}");
}

/// A root near its end is renewed, with the same key, while connections go on.
#[test]
fn s5_the_root_is_renewed() {
    use base64::{Engine, prelude::BASE64_STANDARD as B64};
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};
    let a = apps();
    a.mesh(true);
    let secret = || {
        let s = get(&["secret", "-n", "istio-system", "istio-ca-secret"]);
        let text = |k: &str| String::from_utf8(B64.decode(s["data"][k].as_str().unwrap()).unwrap()).unwrap();
        (text("ca-cert.pem"), text("ca-key.pem"))
    };
    let published = || get(&["configmap", "istio-ca-root-cert", "-n", "app"])["data"]["root-cert.pem"].clone();
    // The root that is there, but made 90 days ago for 100.
    let (_, key) = secret();
    let pair = KeyPair::from_pem(&key).unwrap();
    let mut p = CertificateParams::default();
    p.distinguished_name = rcgen::DistinguishedName::new();
    p.distinguished_name.push(DnType::OrganizationName, "cluster.local");
    p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    p.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    p.not_before = time::OffsetDateTime::now_utc() - time::Duration::days(90);
    p.not_after = time::OffsetDateTime::now_utc() + time::Duration::days(10);
    let old = p.self_signed(&pair).unwrap().pem();
    let load = Load::start(&a.client.netns(), a.service, 50, MARK);
    let patch = serde_json::json!({ "data": { "ca-cert.pem": B64.encode(&old) } }).to_string();
    kubectl(&["-n", "istio-system", "patch", "secret", "istio-ca-secret", "-p", &patch]);
    rollout("istio-system", "deploy/istiod");
    let begun = Instant::now();
    let new = wait_for("a renewed root", LONG, || Some(secret().0).filter(|c| *c != old));
    assert_eq!(secret().1, key, "the key stays");
    wait_for("the new root everywhere", LONG, || (published() == new.as_str()).then_some(()));
    println!("root renewed and published after {:.1} s", begun.elapsed().as_secs_f64());
    // A ztunnel that has certificates of before talks to one that is new, with certificates of now.
    let on = |node: &str| format!("--field-selector=spec.nodeName={node}");
    kubectl(&["-n", "istio-system", "delete", "pod", "-l", "app=ztunnel", &on("n1"), "--wait=false"]);
    kubectl(&["-n", "istio-system", "rollout", "status", "ds/ztunnel", "--timeout=60s"]);
    std::thread::sleep(Duration::from_secs(1));
    let r = load.end();
    println!("meanwhile {} ok, {} failed", r.ok, r.failed.len());
    assert!(r.failed.is_empty() && r.ok > 100, "{:?}", r.failed);
    // The webhook is verified by the new root.
    wait_for("the new root at the webhook", LONG, || {
        let w = get(&["validatingwebhookconfiguration", "istio-validator-istio-system"]);
        let w = &w["webhooks"][0];
        (w["clientConfig"]["caBundle"] == B64.encode(&new) && w["failurePolicy"] == "Fail").then_some(())
    });
    policy("renewed", "{selector: {matchLabels: {app: none}}}");
    kubectl(&["-n", "app", "delete", "authorizationpolicy", "renewed"]);
}

/// The book shop: four services that call each other by name, enrolled, restarted and scaled while it is visited.
#[test]
fn s5_bookinfo_is_visited_all_the_time() {
    bookinfo::is_visited_all_the_time();
}

/// The Gateway API's CRDs; what watches them picks them up.
fn install_gateway_api() {
    let crds = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/cluster/bin/gateway-api.yaml");
    kubectl(&["apply", "--server-side", "-f", crds]);
    wait_condition(&["gatewayclass", "istio-waypoint"], "Accepted", ("True", "Accepted"));
}

/// Status and reason of a condition.
fn condition(args: &[&str], kind: &str) -> Option<(String, String)> {
    let o: serde_json::Value =
        serde_json::from_str(&try_kubectl(&[&["get"], args, &["-o", "json"]].concat()).ok()?).unwrap();
    let c = o["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind)?;
    Some((c["status"].as_str()?.into(), c["reason"].as_str()?.into()))
}

fn wait_condition(args: &[&str], kind: &str, wanted: (&str, &str)) {
    ask_until(&format!("{args:?} {kind} {wanted:?}"), || {
        condition(args, kind).filter(|(s, r)| (s.as_str(), r.as_str()) == wanted).map(drop)
    });
}

#[test]
fn s4_waypoints_are_deployed_and_statuses_written() {
    let _ = apps();
    // The controller has started without Gateway API; it is picked up when it is installed.
    install_gateway_api();
    kubectl(&["-n", "app", "label", "service", "echo", "istio.io/use-waypoint=waypoint"]);
    let service = ["service", "-n", "app", "echo"];
    wait_condition(&service, "istio.io/WaypointBound", ("False", "WaypointIsNotReady"));
    apply(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: waypoint, namespace: app, labels: {istio.io/waypoint-for: service}}\nspec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\n",
    );
    let gateway = ["gateways.gateway.networking.k8s.io", "-n", "app", "waypoint"];
    wait_condition(&gateway, "Accepted", ("True", "Accepted"));
    for kind in ["serviceaccount", "deployment", "service"] {
        let o = wait_for(kind, LONG, || try_kubectl(&["get", kind, "-n", "app", "waypoint", "-o", "name"]).ok());
        print!("made: {o}");
    }
    // What is removed is made again.
    kubectl(&["-n", "app", "delete", "deployment", "waypoint"]);
    wait_for("the deployment again", LONG, || try_kubectl(&["get", "deployment", "-n", "app", "waypoint"]).ok());
    wait_condition(&gateway, "Programmed", ("True", "Programmed"));
    wait_condition(&service, "istio.io/WaypointBound", ("True", "WaypointAccepted"));
    assert_eq!(get(&gateway)["status"]["addresses"][0]["value"], "waypoint.app.svc.cluster.local");
    // Policies say who enforces them.
    policy("bound", r#"{targetRefs: [{kind: Service, group: "", name: echo}]}"#);
    policy("plain", r#"{selector: {matchLabels: {app: none}}, rules: [{}]}"#);
    wait_condition(&["authorizationpolicy", "-n", "app", "bound"], "WaypointAccepted", ("True", "Accepted"));
    wait_condition(&["authorizationpolicy", "-n", "app", "plain"], "ZtunnelAccepted", ("True", "Accepted"));
    kubectl(&["-n", "app", "delete", "authorizationpolicy", "bound", "plain"]);
    // Routes say what became of them; what another namespace has may be referred to once it says so.
    apply(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: abroad, namespace: app}\nspec: {parentRefs: [{group: '', kind: Service, name: echo}], rules: [{backendRefs: [{name: istiod, namespace: istio-system, port: 15014}]}]}\n",
    );
    let said = |reason: &str| {
        wait_for(reason, LONG, || {
            let r = get(&["httproute", "-n", "app", "abroad"]);
            let c = r["status"]["parents"][0]["conditions"].as_array()?.clone();
            c.iter().any(|c| c["reason"] == reason).then_some(())
        });
    };
    said("Accepted");
    said("RefNotPermitted");
    apply(
        "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: app, namespace: istio-system}\nspec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: app}], to: [{group: '', kind: Service, name: istiod}]}\n",
    );
    said("ResolvedRefs");
    wait_for("the reference resolved", LONG, || {
        let r = get(&["httproute", "-n", "app", "abroad"]);
        r["status"]["parents"][0]["conditions"].as_array()?.iter().all(|c| c["status"] == "True").then_some(())
    });
    kubectl(&["-n", "app", "delete", "httproute", "abroad"]);
    kubectl(&["-n", "istio-system", "delete", "referencegrant", "app"]);
    // Of two replicas one writes, and the other goes on when it has gone.
    let holder = || {
        let l = get(&["lease", "-n", "istio-system", "istio-leader"]);
        l["spec"]["holderIdentity"].as_str().unwrap_or_default().to_string()
    };
    kubectl(&["-n", "istio-system", "scale", "deploy/istiod", "--replicas=2"]);
    kubectl(&["-n", "istio-system", "rollout", "status", "deploy/istiod", "--timeout=60s"]);
    let first = holder();
    let begun = Instant::now();
    kubectl(&["-n", "istio-system", "delete", "pod", &first, "--wait=false"]);
    kubectl(&["-n", "app", "label", "service", "echo", "istio.io/use-waypoint-"]);
    let none = || get(&service)["status"]["conditions"].as_array().is_none_or(Vec::is_empty).then_some(());
    wait_for("the status taken back by the other replica", LONG, none);
    println!("{first} has gone; {} goes on after {:.1} s", holder(), begun.elapsed().as_secs_f64());
    assert!(holder() != first);
    kubectl(&["-n", "istio-system", "scale", "deploy/istiod", "--replicas=1"]);
    kubectl(&["-n", "istio-system", "rollout", "status", "deploy/istiod", "--timeout=60s"]);
    // With the Gateway goes what it had.
    kubectl(&["-n", "app", "delete", gateway[0], "waypoint"]);
    wait_for("the waypoint's removal", LONG, || {
        let left =
            kubectl(&["get", "serviceaccount,deployment,service", "-n", "app", "--ignore-not-found", "-o", "name"]);
        (!left.contains("waypoint")).then_some(())
    });
}

/// Gateways and waypoints, deployed or of the chart, where nothing runs that PodSecurity's `restricted` does not let in.
#[test]
fn s4_what_is_deployed_runs_under_pod_security_restricted() {
    install_gateway_api();
    apply(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: restricted, labels: {pod-security.kubernetes.io/enforce: restricted, pod-security.kubernetes.io/warn: restricted}}\n",
    );
    apply(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: in, namespace: restricted, annotations: {networking.istio.io/service-type: ClusterIP}}\nspec: {gatewayClassName: istio, listeners: [{name: http, port: 80, protocol: HTTP}]}\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: waypoint, namespace: restricted}\nspec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\n",
    );
    helm(&["install", "chart", "charts/gateway", "-n", "restricted", "--set", "service.type=ClusterIP", "--wait"]);
    for name in ["in-istio", "waypoint", "chart"] {
        let there = ["get", "deployment", "-n", "restricted", name, "-o", "name"];
        wait_for(name, LONG, || try_kubectl(&there).ok());
        kubectl(&["-n", "restricted", "rollout", "status", &format!("deploy/{name}"), "--timeout=60s"]);
    }
    // No token that the API server takes.
    let pods = get(&["pods", "-n", "restricted"]);
    let pods = pods["items"].as_array().unwrap();
    assert!(pods.len() >= 3);
    for p in pods {
        let volumes = p["spec"]["volumes"].as_array().unwrap();
        let sources = volumes.iter().flat_map(|v| v["projected"]["sources"].as_array().into_iter().flatten());
        let audiences: Vec<_> = sources.filter_map(|s| s["serviceAccountToken"]["audience"].as_str()).collect();
        assert_eq!(audiences, ["istio-ca"], "{}", p["metadata"]["name"]);
    }
    // The controller would run there, too; ztunnel would not, as the same question shows.
    for (chart, file, fits) in [("istiod", "deployment", true), ("ztunnel", "ztunnel", false)] {
        let template = ["template", "x", &format!("charts/{chart}"), "--kube-version=1.34.0", "-n", "restricted", "-s"];
        let said = dry_apply(&helm(&[&template[..], &[&format!("templates/{file}.yaml")]].concat())).unwrap();
        assert_eq!(!said.contains("would violate PodSecurity"), fits, "{chart}: {said}");
    }
    helm(&["uninstall", "chart", "-n", "restricted", "--wait"]);
    kubectl(&["delete", "namespace", "restricted", "--wait=false"]);
}

/// A Prometheus has data for the panels of Istio's dashboards and ours, and for Kiali's graph. Alone, on a fresh cluster.
#[test]
#[ignore = "its Prometheus builds for 11 to 19 minutes: cargo xtask dashboards"]
fn s4_with_prometheus_the_dashboards_have_data() {
    dashboards::have_data();
}

/// Jaeger has every hop of a visit to the book shop; without it no visit fails. Alone, on a fresh cluster.
#[test]
#[ignore = "its Jaeger builds for minutes: cargo xtask dashboards --only traces"]
fn s4_with_jaeger_a_trace_has_every_hop() {
    traces::have_every_hop();
}

/// Stock istioctl, from the Go module proxy: its tables have the objects that are there.
#[test]
fn s4_with_istioctl_the_real_objects_are_seen() {
    install_gateway_api();
    let apps = apps();
    apps.mesh(true);
    istioctl::exercise(&apps);
}

/// Our own command line shows the same, and explains a call as it then goes.
#[test]
fn s4_with_karst_the_real_objects_are_seen() {
    install_gateway_api();
    let apps = apps();
    apps.mesh(true);
    karst::exercise(&apps);
}

/// The page in the cluster, for users with rights in one namespace each.
#[test]
fn s4_whoever_logs_in_sees_their_own_namespaces() {
    let apps = apps();
    apps.mesh(true);
    logins::see_their_own_namespaces(&apps);
}

/// After the charts: nothing is installed when it begins.
#[test]
fn s9_karst_installs_and_removes() {
    karst::installs_and_removes();
}

/// After that: what the tutorials' readers type, from installation to removal, by three ways of installing.
#[test]
fn s9_the_tutorials_lines_show_what_they_promise() {
    tutorials::follow();
}

/// What a release page would hold, and nothing else.
#[test]
fn s9_release_installs_from_its_folder_alone() {
    release::installs_from_its_folder_alone();
}

/// Istio's node agent, with our control plane and ztunnel.
#[test]
fn s9_swaps_with_istios_agent() {
    swap::istios_agent_with_our_ztunnel();
}

/// Istio's control plane, with our agent and ztunnel; and with its own agent, our ztunnel alone. The last of all.
#[test]
#[ignore = "builds Istio's control plane, which takes minutes: a stage of its own"]
fn s9_swaps_with_istios_control_plane() {
    swap::istios_control_plane_with_our_agent_and_ztunnel();
}

/// A release by the script of samples/store: a good one gets everything and nobody loses a sale; one that fails is taken back.
#[test]
fn s5_a_canary_is_released_or_taken_back() {
    let _a = apps();
    // Of a run that has failed.
    kubectl(&["delete", "namespace", "store", "--ignore-not-found"]);
    install_gateway_api();
    let mut exercise = Exercise::open("canary");
    exercise.through("service checkout");
    let seen = || {
        let wget = ["/bin/busybox", "wget", "-qO-", "127.0.0.1:8080/"];
        let text = kubectl(&[&["-n", "store", "exec", "deploy/shopper-v1", "--"], &wget[..]].concat());
        let v: serde_json::Value = serde_json::from_str(&text).unwrap();
        (v["sold"].as_u64().unwrap(), v["failed"].as_u64().unwrap())
    };
    let weights = || {
        let v = get(&["virtualservice", "-n", "store", "checkout"]);
        let route = &v["spec"]["http"][0]["route"];
        [0, 1].map(|i| (route[i]["destination"]["subset"].as_str().unwrap().to_string(), route[i]["weight"].as_u64()))
    };
    let subset = |name: &str, weight: u64| (name.to_string(), Some(weight));
    // What comes after the namespace is bound is what counts.
    wait_for("sales", LONG, || (seen().0 > 0).then_some(()));
    std::thread::sleep(Duration::from_secs(2));
    let before = seen();
    exercise.through("checkout v1 v2");
    assert_eq!(weights(), [subset("v1", 0), subset("v2", 100)]);
    let after = seen();
    assert!(after.0 > before.0 + 90 && after.1 == before.1, "a release costs no sale: {before:?}, {after:?}");
    exercise.through("checkout v2 v3");
    assert_eq!(weights(), [subset("v2", 100), subset("v3", 0)]);
    let lost = seen().1;
    assert!(lost > after.1, "some were lost, at ten per cent");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(seen().1, lost, "and none since");
    exercise.finish();
}
