//! Objects in, model out.

use super::*;
use karst_manifest::parse;
use karst_policy::{Connection, authorize};

pub(crate) fn mesh() -> Mesh {
    Mesh {
        trust_domain: "cluster.local".into(),
        cluster_domain: "cluster.local".into(),
        cluster_id: "Kubernetes".into(),
        network: String::new(),
        root_namespace: "istio-system".into(),
    }
}
fn run(text: &str) -> (Model, Vec<Problem>) {
    let mut s = State {
        objects: parse::file("t.yaml".as_ref(), text).unwrap().into_iter().map(std::sync::Arc::new).collect(),
        ..State::default()
    };
    s.enrolled.insert("a/p".into());
    compile(&s, &mesh())
}
const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: a, labels: {app: web, version: v2}}\nspec: {nodeName: n, serviceAccountName: sa, containers: [{name: c, ports: [{name: web, containerPort: 8080}]}]}\nstatus: {phase: Running, podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}], conditions: [{type: Ready, status: 'True'}]}\n---\n";

#[test]
fn a_pod_becomes_a_workload_of_its_services() {
    let (m, p) = run(&format!(
        "{POD}apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: a}}\nspec: {{clusterIP: 10.96.0.1, selector: {{app: web}}, ports: [{{name: http, port: 80, targetPort: web}}, {{name: u, port: 53, protocol: UDP}}]}}\n"
    ));
    assert!(p.is_empty(), "{p:?}");
    let w = &m.workloads["Kubernetes//Pod/a/p"];
    assert_eq!(
        (w.tunnel_protocol, w.status, w.addresses.len(), w.canonical_name.as_str(), w.canonical_revision.as_str()),
        (1, 0, 2, "web", "v2")
    );
    let port = &w.services["a/s.a.svc.cluster.local"].ports[..];
    assert_eq!((port.len(), port[0].service_port, port[0].target_port, port[0].app_protocol), (1, 80, 8080, 1));
    assert_eq!(m.services["a/s.a.svc.cluster.local"].ports[0].target_port, 0, "a named target port is sent as 0");
}

/// Whatever object names the address of a pod, or of a WorkloadEntry that takes tunnels: the endpoint is that workload.
#[test]
fn endpoints_by_address_are_the_workloads_there() {
    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: NS}\nspec: {clusterIP: 10.96.0.1, SELECTORports: [{name: web, port: 80, targetPort: 81}, {name: other, port: 90}]}\n---\n";
    const SLICE: &str = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s-1, namespace: NS, labels: {kubernetes.io/service-name: s}}\naddressType: IPv4\nendpoints: [{addresses: [ADDRESS]MORE}]\nports: [PORTS]\n---\n";
    const ENTRY: &str = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: NS}\nspec: {hosts: [e.com], resolution: STATIC, ports: [{number: 80, name: web, protocol: HTTP}], endpoints: [{address: ADDRESS, ports: {web: 9000}MORE}]}\n---\n";
    const MACHINE: &str = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: m, namespace: NS, labels: {app: vmMORE}}\nspec: {address: ADDRESS, ports: {web: 9000}, serviceAccount: vm}\n---\n";
    let slice = |ns: &str, address: &str, more: &str| {
        let text = SERVICE.replace("SELECTOR", "") + SLICE;
        text.replace("NS", ns)
            .replace("ADDRESS", address)
            .replace("MORE", more)
            .replace("PORTS", "{name: web, port: 9000}")
    };
    let entry =
        |ns: &str, address: &str, more: &str| ENTRY.replace("NS", ns).replace("ADDRESS", address).replace("MORE", more);
    let machine = |ns: &str, address: &str, more: &str| {
        let selects = SERVICE.replace("SELECTOR", "selector: {app: vm}, ").replace("targetPort: 81", "targetPort: web");
        (selects + MACHINE).replace("NS", ns).replace("ADDRESS", address).replace("MORE", more)
    };
    // Kind of workload, identity's account, and the ports of its services.
    let all = |text: &str| -> Vec<String> {
        let (m, p) = run(text);
        assert!(p.is_empty(), "{p:?}");
        let one = |w: &karst_api::workload::Workload| {
            let mut kinds = ["Pod", "EndpointSlice", "ServiceEntry", "WorkloadEntry"].into_iter();
            let kind = kinds.find(|k| w.uid.contains(&format!("/{k}/"))).unwrap();
            let port = |p: &karst_api::workload::Port| format!("{}:{}", p.service_port, p.target_port);
            let services: std::collections::BTreeMap<_, _> = w.services.iter().collect();
            let list = services.iter().map(|(k, v)| {
                let ports: Vec<String> = v.ports.iter().map(port).collect();
                format!(" {} {}", k.split('.').next().unwrap_or_default(), ports.join(" "))
            });
            format!("{kind} {}{}", w.tunnel_protocol, list.collect::<String>())
        };
        m.workloads.values().map(|w| one(w)).collect()
    };
    // The pod has 10.0.0.1 and fd00::1 and takes tunnels.
    let pod = |text: &str| all(&format!("{POD}{text}"));
    for address in ["10.0.0.1", "'fd00::1'", "'FD00:0::1'"] {
        for ns in ["a", "b"] {
            assert_eq!(pod(&slice(ns, address, "")), [format!("Pod 1 {ns}/s 80:9000")]);
            assert_eq!(pod(&entry(ns, address, "")), [format!("Pod 1 {ns}/e 80:9000")]);
            assert_eq!(pod(&machine(ns, address, "")), [format!("Pod 1 {ns}/s 80:9000 90:90")]);
        }
    }
    // Nobody's address; that of another network; nobody's pod.
    assert_eq!(pod(&slice("a", "192.0.2.1", "")), ["Pod 1", "EndpointSlice 0 a/s 80:9000"]);
    assert_eq!(pod(&entry("a", "192.0.2.1", "")), ["Pod 1", "ServiceEntry 0 a/e 80:9000"]);
    assert_eq!(pod(&entry("a", "10.0.0.1", ", network: far")).len(), 2);
    assert_eq!(pod(&slice("a", "192.0.2.1", ", targetRef: {kind: Pod, name: gone}")), ["Pod 1"]);
    // A reference: the slice's ports; the address decides, where somebody has it.
    assert_eq!(pod(&slice("a", "192.0.2.1", ", targetRef: {kind: Pod, name: p}")), ["Pod 1 a/s 80:9000"]);
    assert_eq!(pod(&slice("a", "10.0.0.1", ", targetRef: {kind: Pod, name: other}")), ["Pod 1 a/s 80:9000"]);
    assert_eq!(
        pod(&slice("a", "10.0.0.1", ", targetRef: {kind: VirtualMachineInstance, name: x}")),
        ["Pod 1 a/s 80:9000"]
    );
    // What is said to be down is no endpoint; what is about to end, or is wanted all the same, is.
    assert_eq!(pod(&slice("a", "10.0.0.1", ", conditions: {ready: false}")), ["Pod 1"]);
    let ends = ", conditions: {ready: false, serving: true, terminating: true}";
    assert_eq!(pod(&slice("a", "10.0.0.1", ends)), ["Pod 1 a/s 80:9000"]);
    let down = slice("a", "10.0.0.1", ", conditions: {ready: false}");
    assert_eq!(pod(&down.replace("clusterIP", "publishNotReadyAddresses: true, clusterIP")), ["Pod 1 a/s 80:9000"]);
    // A port without number is the service's; a selector's ports are the service's, whatever its slices say.
    let any = slice("a", "10.0.0.1", "").replace("{name: web, port: 9000}", "{name: web}, {name: other, port: 91}");
    assert_eq!(pod(&any), ["Pod 1 a/s 80:81 90:91"]);
    let selected = slice("a", "10.0.0.1", ", targetRef: {kind: Pod, name: p}");
    assert_eq!(pod(&selected.replace("clusterIP", "selector: {app: web}, clusterIP")), ["Pod 1 a/s 80:81 90:90"]);
    let (m, _) = run(&selected);
    assert!(
        m.services["a/s.a.svc.cluster.local"].ports.iter().all(|p| p.target_port == 0),
        "each endpoint says its own"
    );
    // A node's address is nobody's in particular.
    let host = POD.replace("nodeName: n", "nodeName: n, hostNetwork: true");
    assert_eq!(all(&(host + &slice("a", "10.0.0.1", "")))[1], "EndpointSlice 0 a/s 80:9000");
    // A machine with a tunnel of its own, which is no pod.
    let vm = machine("a", "192.0.2.1", ", networking.istio.io/tunnel: http");
    let vm_first = vm.replace("name: s,", "name: v,");
    assert_eq!(all(&format!("{vm_first}{}", entry("b", "192.0.2.1", ""))).len(), 1);
    assert!(
        all(&format!("{vm_first}{}", entry("b", "192.0.2.1", "")))[0].ends_with(" 1 a/v 80:9000 90:90 b/e 80:9000")
    );
    assert!(
        all(&format!("{vm_first}{}", slice("b", "192.0.2.1", "")))[0].ends_with(" 1 a/v 80:9000 90:90 b/s 80:9000")
    );
    // Without tunnel it is one of several that nothing is known of.
    let plain = machine("a", "192.0.2.1", "").replace("name: s,", "name: v,");
    assert_eq!(all(&format!("{plain}{}", entry("b", "192.0.2.1", ""))).len(), 2);
}

#[test]
fn who_is_about_to_end_is_told() {
    let state = |text: &str| {
        let (m, _) = run(text);
        let w = m.workloads.values().next().unwrap();
        (w.status, w.extensions.iter().any(|e| *e == karst_api::draining()))
    };
    let ends = POD.replace("namespace: a,", "namespace: a, deletionTimestamp: '2026-01-01T00:00:00Z',");
    let not = |text: &str| text.replace("status: 'True'", "status: 'False'");
    assert_eq!(
        [state(POD), state(&not(POD)), state(&ends), state(&not(&ends))],
        [(0, false), (1, false), (1, true), (1, false)]
    );
    let slice = |conditions: &str| {
        state(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: a}}\nspec: {{clusterIP: 10.96.0.1, ports: [{{port: 80}}]}}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s-1, namespace: a, labels: {{kubernetes.io/service-name: s}}}}\naddressType: IPv4\nendpoints: [{{addresses: [192.0.2.1], conditions: {conditions}}}]\nports: [{{port: 80}}]\n"
        ))
    };
    for (conditions, want) in [
        ("{}", (0, false)),
        ("{ready: true, serving: true, terminating: false}", (0, false)),
        ("{ready: false}", (1, false)),
        ("{ready: false, serving: false, terminating: true}", (1, false)),
        ("{ready: false, serving: true, terminating: true}", (1, true)),
        // Not ready, and about nothing else said.
        ("{ready: false, serving: true}", (1, false)),
    ] {
        assert_eq!(slice(conditions), want, "{conditions}");
    }
}

fn verdict(m: &Model, id: Option<&str>, port: u16) -> bool {
    let c = Connection {
        source_identity: id.map(|i| i.parse().unwrap()),
        source_ip: "10.0.0.9".parse().unwrap(),
        destination_ip: "10.0.0.1".parse().unwrap(),
        destination_port: port,
    };
    let w = &m.workloads["Kubernetes//Pod/a/p"];
    let applies = |p: &&karst_policy::Policy| match p.scope {
        karst_policy::Scope::Global => true,
        karst_policy::Scope::Namespace => *p.namespace == *"a",
        karst_policy::Scope::WorkloadSelector => w.authorization_policies.contains(&p.key()),
    };
    authorize(m.policies.values().filter(applies), &c).is_allow()
}
const B: Option<&str> = Some("spiffe://cluster.local/ns/b/sa/x");

fn policy(spec: &str) -> String {
    format!(
        "{POD}apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: ap, namespace: a}}\nspec: {spec}\n"
    )
}

#[test]
fn peer_authentication_modes() {
    let pa = |ns: &str, name: &str, spec: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {ns}}}\nspec: {spec}\n"
        )
    };
    let strict = "{mtls: {mode: STRICT}}";
    for (text, plain_80, plain_81) in [
        (String::new(), true, true),
        (pa("istio-system", "m", strict), false, false),
        (pa("a", "n", strict), false, false),
        (pa("istio-system", "m", strict) + &pa("a", "n", "{mtls: {mode: PERMISSIVE}}"), true, true),
        (pa("a", "w", "{selector: {matchLabels: {app: web}}, portLevelMtls: {80: {mode: STRICT}}}"), false, true),
        (
            pa(
                "a",
                "w",
                "{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {80: {mode: DISABLE}}}",
            ),
            true,
            false,
        ),
        (pa("a", "w", "{selector: {matchLabels: {app: other}}, mtls: {mode: STRICT}}"), true, true),
    ] {
        let (m, p) = run(&format!("{POD}{text}"));
        assert!(p.is_empty(), "{p:?}");
        assert_eq!((verdict(&m, None, 80), verdict(&m, None, 81)), (plain_80, plain_81), "{text}");
        assert!(verdict(&m, B, 80));
    }
}

#[test]
fn policies_at_l4() {
    for (spec, b, plain) in [
        ("{}", false, false),
        ("{rules: [{}]}", true, true),
        ("{rules: [{from: [{source: {namespaces: [b]}}]}]}", true, false),
        ("{rules: [{from: [{source: {serviceAccounts: [b/x]}}]}]}", true, false),
        (
            "{rules: [{from: [{source: {principals: ['cluster.local/ns/b/*']}}], to: [{operation: {ports: ['80']}}]}]}",
            true,
            false,
        ),
        ("{rules: [{from: [{source: {notNamespaces: [b]}}]}]}", false, true),
        ("{action: DENY, rules: [{from: [{source: {ipBlocks: [10.0.0.0/24]}}]}]}", false, false),
        ("{action: DENY, rules: [{when: [{key: destination.port, values: ['80']}]}]}", false, false),
        ("{action: DENY, rules: [{when: [{key: destination.port, values: ['81']}]}]}", true, true),
        // Beyond L4: an ALLOW rule vanishes, a DENY rule denies what is left of it.
        ("{rules: [{to: [{operation: {methods: [GET]}}]}]}", false, false),
        ("{action: DENY, rules: [{to: [{operation: {paths: [/x]}}]}]}", false, false),
        (
            "{action: DENY, rules: [{from: [{source: {namespaces: [b]}}], to: [{operation: {paths: [/x]}}]}]}",
            false,
            true,
        ),
        ("{action: DENY, rules: [{to: [{operation: {paths: [/x], ports: ['81']}}]}]}", true, true),
        ("{selector: {matchLabels: {app: other}}}", true, true),
        ("{targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: w}]}", true, true),
    ] {
        let (m, p) = run(&policy(spec));
        assert!(p.is_empty(), "{spec}: {p:?}");
        assert_eq!((verdict(&m, B, 80), verdict(&m, None, 80)), (b, plain), "{spec}");
    }
}

#[test]
fn a_dry_run_is_told_and_never_enforced() {
    let dry = |spec: &str, mark: &str| {
        policy(spec).replace(
            "namespace: a}\nspec: ",
            &format!("namespace: a, annotations: {{istio.io/dry-run: '{mark}'}}}}\nspec: "),
        )
    };
    let selector = "selector: {matchLabels: {app: web}}";
    for (spec, problems) in [
        ("{}".to_string(), 0),
        ("{action: DENY, rules: [{}]}".to_string(), 0),
        (format!("{{{selector}}}"), 0),
        // What cannot be understood would close; the mark is understood.
        (format!("{{{selector}, action: PERMIT}}"), 1),
        ("{rules: [{when: [{key: source.port, values: ['1']}]}]}".to_string(), 1),
    ] {
        let (m, p) = run(&dry(&spec, "true"));
        assert_eq!(p.len(), problems, "{spec}: {p:?}");
        assert!(verdict(&m, B, 80) && verdict(&m, None, 80), "{spec}");
        assert!(m.policies["a/ap"].dry_run, "{spec}");
        let w = &m.workloads["Kubernetes//Pod/a/p"];
        assert!(w.authorization_policies.is_empty(), "{spec}: it would be waited for, and enforced by others");
        let selected: &[&str] = if spec.contains("selector") { &["a/ap"] } else { &[] };
        assert_eq!(w.karst_dry_run_policies, selected, "{spec}");
        let (m, _) = run(&dry(&spec, "false"));
        assert!(!verdict(&m, B, 80), "{spec}");
        assert_eq!(m.workloads["Kubernetes//Pod/a/p"].authorization_policies, selected, "{spec}");
    }
    // A mark that is not understood is none.
    let (m, p) = run(&dry("{rules: [{}]}", "yes"));
    assert_eq!((p.len(), verdict(&m, B, 80)), (1, false));
    let said = |spec: &str| conditions(&written(&dry(spec, "true")));
    let wanted = "AuthorizationPolicy a/ap: ZtunnelAccepted True Accepted".to_string();
    assert!(said("{}").contains(&wanted), "{:#?}", said("{}"));
}

#[test]
fn session_affinity_is_compiled_with_its_timeout() {
    for (spec, seconds) in [
        ("", 0),
        ("sessionAffinity: None, ", 0),
        ("sessionAffinity: ClientIP, ", 10_800),
        ("sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}, ", 60),
        ("sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}, ", 10_800),
        ("sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 90000}}, ", 86_400),
        ("sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}, ", 0),
    ] {
        let (m, p) = run(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: a}}\nspec: {{{spec}clusterIP: 10.96.0.1, ports: [{{port: 80}}]}}\n"
        ));
        assert!(p.is_empty(), "{p:?}");
        assert_eq!(m.services["a/s.a.svc.cluster.local"].karst_session_affinity_seconds, seconds, "{spec}");
    }
}

#[test]
fn bad_policies_close_and_are_reported() {
    for (spec, field) in [
        ("{action: PERMIT}", "spec.action"),
        ("{action: CUSTOM}", "spec.action"),
        ("{action: DENY}", "spec.rules"),
        ("{rules: [{from: [{source: {ipBlocks: [10.0.0.0/40]}}]}]}", "spec.rules[0].from[0].source.ipBlocks[0]"),
        ("{rules: [{to: [{operation: {ports: [http]}}]}]}", "spec.rules[0].to[0].operation.ports[0]"),
        ("{rules: [{from: [{source: {}}]}]}", "spec.rules[0].from[0].source"),
        ("{rules: [{when: [{key: source.port, values: ['1']}]}]}", "spec.rules[0].when[0].key"),
        ("{rules: [{when: [{key: source.ip}]}]}", "spec.rules[0].when[0]"),
        ("{rules: [{from: [{source: {serviceAccounts: ['*']}}]}]}", "spec.rules[0].from[0].source.serviceAccounts[0]"),
        ("{selector: {matchLabels: {app: web}}, targetRefs: [{kind: Gateway, name: w}]}", "spec.targetRefs"),
    ] {
        let (m, p) = run(&policy(spec));
        assert_eq!(p.iter().map(|p| p.field.as_str()).collect::<Vec<_>>(), [field], "{spec}");
        assert!(!verdict(&m, B, 80), "{spec}: nothing is allowed while a policy cannot be read");
    }
}

/// One that was to refuse, or nobody knows to do what, refuses also where another allows everything.
#[test]
fn a_policy_that_cannot_be_read_refuses_beside_one_that_allows() {
    let waypoint = format!("{WAYPOINT}{}", BOUND.replace("NS", "a")).replace("STATUS", READY);
    for (spec, refuses) in [
        ("action: DENY, rules: [{when: [{key: source.port, values: ['1']}]}]", true),
        ("action: DENY, rules: [{from: [{source: {ipBlocks: [10.0.0.0/40]}}]}]", true),
        ("action: CUSTOM, rules: [{}]", true),
        ("action: PERMIT, rules: [{}]", true),
        ("rules: [{when: [{key: source.port, values: ['1']}]}]", false),
        ("action: AUDIT, rules: [{when: [{key: source.port, values: ['1']}]}]", false),
    ] {
        let object = |name: &str, spec: &str| {
            format!(
                "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: a}}\nspec: {{{spec}}}\n"
            )
        };
        let (m, p) = run(&(policy("{rules: [{}]}") + &object("bad", spec)));
        assert_eq!((p.len(), verdict(&m, B, 80)), (1, !refuses), "{spec}");
        // And at a waypoint.
        let target = "targetRefs: [{group: '', kind: Service, name: s}]";
        let (m, p) = run(&(waypoint.clone() + &object("bad", &format!("{target}, {spec}"))));
        let policies = &m.access["a/s.a.svc.cluster.local"].policies;
        let told: Vec<_> = policies.iter().map(|p| (p.action, p.rules.len())).collect();
        assert_eq!((p.len(), told), (1, vec![if refuses { (1, 1) } else { (0, 0) }]), "{spec}");
    }
}

#[test]
fn service_entries_get_stable_addresses() {
    let se = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: a}\nspec: {hosts: [x.example], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: 192.0.2.1}]}\n";
    let (m, p) = run(se);
    assert!(p.is_empty(), "{p:?}");
    let vip = m.services["a/x.example"].addresses[0].address.clone();
    assert_eq!(vip[..2], [240, 240]);
    assert_eq!(run(se).0.services["a/x.example"].addresses[0].address, vip);
    assert_eq!(m.workloads.len(), 1);
    // One of each family (2001:2::/48).
    let of = |text: &str| -> Vec<String> {
        let (m, _) = run(text);
        let ip =
            |a: &karst_api::workload::NetworkAddress| karst_core::addr::ip_from_bytes(&a.address).unwrap().to_string();
        m.services["a/x.example"].addresses.iter().map(ip).collect()
    };
    let given = of(se);
    assert!(given.len() == 2 && given[0].starts_with("240.240.") && given[1].starts_with("2001:2::"), "{given:?}");
    // What the status tells stays, if it is one of ours, and if it is of this host; what is missing is given.
    let status = |list: &str| format!("{se}status: {{addresses: [{list}]}}\n");
    let told = "{value: 240.240.3.4, host: x.example}, {value: '2001:2::5', host: x.example}";
    assert_eq!(of(&status(told)), ["240.240.3.4", "2001:2::5"]);
    assert_eq!(of(&status("{value: '2001:2::5', host: x.example}")), [given[0].as_str(), "2001:2::5"]);
    for other in
        ["{value: 10.96.0.1, host: x.example}", "{value: 240.240.3.4, host: y.example}", "{value: x, host: x.example}"]
    {
        assert_eq!(of(&status(other)), given, "{other}");
    }
    // An entry that has been there for longer keeps what its status tells; whoever claims the same gets another.
    let two = format!(
        "{}---\n{}",
        status(told),
        status(told)
            .replace("name: e,", "name: f,")
            .replace("hosts: [x.", "hosts: [y.")
            .replace("host: x.", "host: y.")
    );
    let (m, _) = run(&two);
    let of_host = |h: &str| m.services[h].addresses.iter().map(|a| a.address.clone()).collect::<Vec<_>>();
    assert!(of_host("a/x.example").iter().all(|a| !of_host("a/y.example").contains(a)));
    // None where there are addresses, nothing to look up, or no wish for them.
    for none in [
        se.replace("resolution: STATIC", "addresses: [10.0.0.7], resolution: STATIC"),
        se.replace("namespace: a}", "namespace: a, labels: {networking.istio.io/enable-autoallocate-ip: 'false'}}"),
    ] {
        assert!(of(&none).iter().all(|a| a == "10.0.0.7"), "{none}");
    }
    // Told in the status, once.
    let said = |text: &str| -> Vec<serde_json::Value> {
        let of = |w: Write| (w.manager == "istio.io/ip-autoallocate").then(|| w.status["addresses"].clone());
        written(text).statuses.into_iter().filter_map(of).collect()
    };
    let wanted: Vec<_> = given.iter().map(|v| serde_json::json!({ "value": v, "host": "x.example" })).collect();
    assert_eq!(said(se), [serde_json::json!(wanted)]);
    let list = given.iter().map(|v| format!("{{value: '{v}', host: x.example}}")).collect::<Vec<_>>().join(", ");
    assert!(said(&status(&list)).is_empty() && said(&status(told)).is_empty());
    let own = status(told).replace("resolution: STATIC", "addresses: [10.0.0.7], resolution: STATIC");
    assert_eq!(said(&own), [serde_json::json!([])], "what is not given any more is not told");
    let (_, p) = run(&se.replace("192.0.2.1", "host.example"));
    assert_eq!(p[0].field, "spec.endpoints[0].address");
}

#[test]
fn waypoints_bind_by_label() {
    let text = format!(
        "{POD}apiVersion: v1\nkind: Namespace\nmetadata: {{name: a, labels: {{istio.io/use-waypoint: w}}}}\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: w, namespace: a}}\nspec: {{gatewayClassName: istio-waypoint}}\nstatus: {{addresses: [{{type: IPAddress, value: 10.0.0.50}}]}}\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: a}}\nspec: {{clusterIP: 10.96.0.1}}\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: t, namespace: a, labels: {{istio.io/use-waypoint: none}}}}\nspec: {{clusterIP: 10.96.0.2}}\n"
    );
    let (m, _) = run(&text);
    assert!(m.services["a/s.a.svc.cluster.local"].waypoint.is_some());
    assert!(m.services["a/t.a.svc.cluster.local"].waypoint.is_none());
    assert!(m.workloads["Kubernetes//Pod/a/p"].waypoint.is_none(), "waypoint-for is service by default");
}

/// The rows of docs/refused.md: object, spec, annotations, by whom, text. The cluster's tests try the same on an API server.
fn refused() -> Vec<[String; 5]> {
    let doc = include_str!("../../../docs/refused.md");
    let row = |l: &str| {
        let cells: Vec<&str> = l.split('|').map(str::trim).collect();
        let [_, _, kind, spec, by, text, _] = cells[..] else { panic!("{l}") };
        let codes: Vec<&str> = spec.split('`').skip(1).step_by(2).collect();
        let annotations = codes.get(1).copied().unwrap_or("{}");
        [kind, codes[0], annotations, by, text.trim_matches('`')].map(String::from)
    };
    doc.lines().filter(|l| l.starts_with("| ") && l.as_bytes()[2].is_ascii_digit()).map(row).collect()
}

#[test]
fn what_the_api_server_refuses_is_refused_in_files_too() {
    let rows = refused();
    assert!(rows.len() >= 40);
    for [kind, spec, annotations, by, text] in rows {
        // Of the two Gateways Istio's.
        let ours = |k: &&(&str, &str, bool)| {
            karst_manifest::kinds::api_kind(k.0) == kind && (k.1.ends_with("istio.io") || k.1 == OWN_GROUP)
        };
        let idle = karst_manifest::idle::IDLE.iter().find(|(k, ..)| *k == kind).map(|(_, g, _)| *g);
        let group = karst_manifest::kinds::KINDS.iter().find(ours).map(|k| k.1).or(idle).unwrap();
        let version = if group == OWN_GROUP { "v1alpha1" } else { "v1" };
        let doc = format!(
            "apiVersion: {group}/{version}\nkind: {kind}\nmetadata: {{name: x, namespace: default, annotations: {annotations}}}\nspec: {spec}\n"
        );
        let problems = match parse::file("t.yaml".as_ref(), &doc) {
            Ok(mut o) => check::problems(o.remove(0).object, &mesh()),
            Err(p) => p,
        };
        assert!(!problems.is_empty(), "{kind} {spec}");
        if by == "webhook" {
            let text_of = |p: &Problem| p.to_string().trim_start_matches("t.yaml:1: ").to_string();
            let all: Vec<String> = problems.iter().map(text_of).collect();
            assert_eq!(all.join("; "), text, "{kind} {spec}");
        }
    }
}

const WAYPOINT: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: w, namespace: a, uid: u, generation: 3}\nspec: {gatewayClassName: istio-waypoint, infrastructure: {labels: {team: x}}, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\nSTATUS\n---\n";
const BOUND: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: NS, labels: {istio.io/use-waypoint: w, istio.io/use-waypoint-namespace: a}}\nspec: {clusterIP: 10.96.0.1}\n---\n";
const READY: &str = "status: {addresses: [{type: Hostname, value: w.a.svc.cluster.local}]}";

fn written(text: &str) -> Writes {
    let objects = parse::file("t.yaml".as_ref(), text).unwrap().into_iter().map(std::sync::Arc::new).collect();
    let state = State { objects, ..State::default() };
    let template = deploy::Template { image: "hub/waypoint:1".into(), pull_policy: "Never".into() };
    writes(&state, &mesh(), &template, "2026-01-01T00:00:00Z")
}

/// Object, type, status, reason of each condition that is written.
fn conditions(w: &Writes) -> Vec<String> {
    let one = |w: &Write| {
        let of = w.status["conditions"].as_array().cloned().unwrap_or_default();
        let to = w.to.to_string();
        of.into_iter().map(move |c| format!("{to}: {} {} {}", c["type"], c["status"], c["reason"]).replace('"', ""))
    };
    w.statuses.iter().flat_map(one).collect()
}

#[test]
fn bindings_are_reported() {
    let waypoint = |status: &str| WAYPOINT.replace("STATUS", status);
    let service = |ns: &str| BOUND.replace("NS", ns);
    let second = || waypoint(READY).replace("name: w,", "name: w2,");
    let weight = "}, annotations: {istio.io/use-waypoint-canary-weight";
    let canary = |rest: &str| {
        let bound = format!("istio.io/use-waypoint-namespace: a, istio.io/use-waypoint-canary: {rest}");
        waypoint(READY) + &second() + &service("a").replace("istio.io/use-waypoint-namespace: a", &bound)
    };
    let open = waypoint(READY).replace("protocol: HBONE", "protocol: HBONE, allowedRoutes: {namespaces: {from: All}}");
    let entry = |ns: &str, to: &str| {
        format!(
            "{open}apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e, namespace: {ns}, labels: {{istio.io/use-waypoint: w, istio.io/use-waypoint-namespace: a}}}}\nspec: {{hosts: [x.example.com], exportTo: [{to}], ports: [{{number: 80, name: http, protocol: HTTP}}], resolution: DNS}}\n"
        )
    };
    for (text, wanted) in [
        (service("a"), "Service a/s: istio.io/WaypointBound False WaypointIsNotReady"),
        (waypoint("") + &service("a"), "Service a/s: istio.io/WaypointBound False WaypointIsNotReady"),
        (waypoint(READY) + &service("a"), "Service a/s: istio.io/WaypointBound True WaypointAccepted"),
        (waypoint(READY) + &service("b"), "Service b/s: istio.io/WaypointBound False AttachmentDenied"),
        (
            waypoint(READY).replace("protocol: HBONE", "protocol: HBONE, allowedRoutes: {namespaces: {from: All}}")
                + &service("b"),
            "Service b/s: istio.io/WaypointBound True WaypointAccepted",
        ),
        (
            waypoint(READY).replace("generation: 3", "labels: {istio.io/waypoint-for: workload}") + &service("a"),
            "Service a/s: istio.io/WaypointBound False UnsupportedTrafficType",
        ),
        (canary(&format!("w2{weight}: '30'")), "Service a/s: istio.io/WaypointBound True WaypointAccepted"),
        (canary(&format!("w{weight}: '30'")), "Service a/s: istio.io/WaypointBound False CanarySameAsPrimary"),
        (canary(&format!("w2{weight}: '101'")), "Service a/s: istio.io/WaypointBound False CanaryInvalidWeight"),
        (canary(&format!("w3{weight}: '30'")), "Service a/s: istio.io/WaypointBound False WaypointIsNotReady"),
        (canary("w2"), "Service a/s: istio.io/WaypointBound False CanaryInvalidWeight"),
        (entry("a", "'.'"), "ServiceEntry a/e: istio.io/VisibilityApplied True Namespace"),
        (entry("a", "'.', b"), "ServiceEntry a/e: istio.io/VisibilityApplied True Public"),
        (entry("a", "'.'"), "ServiceEntry a/e: istio.io/WaypointBound True WaypointAccepted"),
        (entry("b", "'.'"), "ServiceEntry b/e: istio.io/WaypointBound True WaypointAccepted"),
        (entry("b", "'*'"), "ServiceEntry b/e: istio.io/WaypointBound True WaypointAccepted"),
    ] {
        let all = conditions(&written(&text));
        assert!(all.iter().any(|c| c == wanted), "{wanted}\n{all:#?}");
    }
    // Written once; taken back with the label; the time of a condition stays while its status does.
    let said = |time: &str, reason: &str| {
        format!(
            "status: {{conditions: [{{type: istio.io/WaypointBound, status: 'True', reason: {reason}, message: 'bound to waypoint a/w', lastTransitionTime: '{time}'}}]}}\n---\n"
        )
    };
    let with = |status: &str| waypoint(READY) + &service("a").replace("---\n", status);
    let of_service = |w: Writes| w.statuses.into_iter().find(|s| s.to.kind == "Service").map(|s| s.status);
    assert_eq!(of_service(written(&with(&said("t", "WaypointAccepted")))), None);
    let again = of_service(written(&with(&said("t", "Other")))).unwrap();
    assert_eq!(again["conditions"][0]["lastTransitionTime"], "t");
    let without = with(&said("t", "WaypointAccepted")).replace("istio.io/use-waypoint: w", "x: y");
    assert_eq!(of_service(written(&without)).unwrap(), serde_json::json!({ "conditions": [] }));
}

#[test]
fn policies_say_who_enforces_them() {
    for (spec, wanted) in [
        ("{rules: [{}]}", "ZtunnelAccepted True Accepted"),
        ("{rules: [{to: [{operation: {methods: [GET]}}]}]}", "ZtunnelAccepted True UnsupportedValue"),
        ("{action: DENY}", "ZtunnelAccepted False UnsupportedValue"),
        ("{targetRefs: [{kind: Service, name: none}]}", "WaypointAccepted False TargetNotFound"),
        ("{targetRefs: [{kind: Service, name: s}]}", "WaypointAccepted True Accepted"),
        ("{targetRefs: [{kind: Service, name: t}]}", "WaypointAccepted False AncestorNotBound"),
        (
            "{targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: w}]}",
            "WaypointAccepted True Accepted",
        ),
    ] {
        let unbound = "apiVersion: v1\nkind: Service\nmetadata: {name: t, namespace: a}\n---\n";
        let text = WAYPOINT.replace("STATUS", READY) + &BOUND.replace("NS", "a") + unbound + &policy(spec);
        let all = conditions(&written(&text));
        let wanted = format!("AuthorizationPolicy a/ap: {wanted}");
        assert!(all.contains(&wanted), "{wanted}\n{all:#?}");
    }
}

#[test]
fn a_waypoint_gets_what_it_needs_once() {
    let kinds = |w: &Writes| w.objects.iter().map(|(r, _)| r.to_string()).collect::<Vec<_>>();
    let classes = ["istio-waypoint", "karst-waypoint", "istio", "karst"].map(|c| format!("GatewayClass {c}"));
    assert_eq!(kinds(&written("")), classes);
    let w = written(&WAYPOINT.replace("STATUS", ""));
    assert_eq!(kinds(&w)[4..], ["ServiceAccount a/w", "Deployment a/w", "Service a/w"]);
    let (_, d) = &w.objects[5];
    assert_eq!(d["metadata"]["ownerReferences"][0]["uid"], "u");
    assert_eq!(d["metadata"]["labels"]["team"], "x");
    let pod = &d["spec"]["template"];
    assert_eq!(pod["metadata"]["labels"]["istio.io/dataplane-mode"], "none");
    assert_eq!(pod["spec"]["containers"][0]["image"], "hub/waypoint:1");
    assert_eq!(
        conditions(&w),
        ["Gateway a/w: Accepted True Accepted", "Gateway a/w: Programmed False AddressNotAssigned"]
    );
    // What is there as it should be is left alone; what somebody else made, too.
    let made = |available: u32| {
        let digest = d["metadata"]["annotations"]["gateway.karst.io/digest"].as_str().unwrap();
        let meta = format!(
            "{{name: w, namespace: a, labels: {{gateway.istio.io/managed: x}}, annotations: {{gateway.karst.io/digest: '{digest}'}}}}"
        );
        WAYPOINT.replace("STATUS", "")
            + &format!(
                "apiVersion: apps/v1\nkind: Deployment\nmetadata: {meta}\nstatus: {{availableReplicas: {available}}}\n---\napiVersion: v1\nkind: Service\nmetadata: {meta}\nspec: {{clusterIP: 10.96.0.9}}\n"
            )
    };
    assert_eq!(kinds(&written(&made(0))), classes);
    let foreign = written(&made(1).replace("gateway.istio.io/managed", "mine"));
    assert_eq!(kinds(&foreign), classes);
    assert!(conditions(&foreign).contains(&"Gateway a/w: Programmed False AddressNotUsable".to_string()));
    // One that somebody else runs: its address is what the Gateway says.
    let elsewhere = WAYPOINT
        .replace("STATUS", "")
        .replace("listeners:", "addresses: [{type: Hostname, value: w.other.example}], listeners:");
    let elsewhere = written(&elsewhere);
    assert_eq!(kinds(&elsewhere), classes);
    let status = &elsewhere.statuses.iter().find(|s| s.to.kind == "Gateway").unwrap().status;
    assert_eq!(status["addresses"][0]["value"], "w.other.example");
    assert!(conditions(&elsewhere).contains(&"Gateway a/w: Programmed True Programmed".to_string()));
    // Ready with its first pod that is available.
    let ready = written(&made(1));
    assert!(conditions(&ready).contains(&"Gateway a/w: Programmed True Programmed".to_string()));
    let address = &ready.statuses.iter().find(|s| s.to.kind == "Gateway").unwrap().status["addresses"];
    assert_eq!(address[0]["value"], "w.a.svc.cluster.local");
}

/// What PodSecurity's level `restricted` asks for (Kubernetes 1.34), and that no token is there but the one that is used.
#[test]
fn what_is_deployed_passes_pod_security_restricted() {
    let gateway = WAYPOINT
        .replace("istio-waypoint", "istio")
        .replace("name: mesh, port: 15008, protocol: HBONE", "name: http, port: 80, protocol: HTTP");
    for (text, sysctls) in
        [(WAYPOINT, vec![]), (&*gateway, vec![("net.ipv4.ip_unprivileged_port_start".to_string(), "0".to_string())])]
    {
        let w = written(&text.replace("STATUS", ""));
        let (_, d) = w.objects.iter().find(|(r, _)| r.kind == "Deployment").unwrap();
        let pod = &d["spec"]["template"]["spec"];
        let has = |s: &serde_json::Value| (s["name"].as_str().unwrap().into(), s["value"].as_str().unwrap().into());
        let set = pod["securityContext"]["sysctls"].as_array().into_iter().flatten().map(has).collect::<Vec<_>>();
        assert_eq!(set, sysctls, "a port below 1024 needs no capability; this sysctl is one that every pod may set");
        for shared in ["hostNetwork", "hostPID", "hostIPC", "initContainers"] {
            assert!(pod[shared].is_null(), "{shared}");
        }
        for c in pod["containers"].as_array().unwrap() {
            let s = &c["securityContext"];
            for (key, wanted) in [
                ("privileged", false),
                ("allowPrivilegeEscalation", false),
                ("runAsNonRoot", true),
                ("readOnlyRootFilesystem", true),
            ] {
                assert_eq!(s[key], wanted, "{key}");
            }
            assert!(s["runAsUser"].as_u64().is_some_and(|u| u > 0));
            assert_eq!(s["capabilities"], serde_json::json!({ "drop": ["ALL"] }));
            assert_eq!(s["seccompProfile"]["type"], "RuntimeDefault");
            assert!(c["ports"].as_array().unwrap().iter().all(|p| p["hostPort"].is_null()));
        }
        assert_eq!(pod["automountServiceAccountToken"], false);
        let mut tokens = vec![];
        for v in pod["volumes"].as_array().unwrap() {
            assert!(v["configMap"].is_object() || v["projected"].is_object(), "{v}");
            let sources = v["projected"]["sources"].as_array().into_iter().flatten();
            tokens.extend(sources.filter_map(|s| s["serviceAccountToken"]["audience"].as_str().map(String::from)));
        }
        assert_eq!(tokens, ["istio-ca"], "a token that the API server does not take");
    }
}

#[test]
fn routes_say_what_became_of_them() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: t, namespace: b}\nspec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}\n---\n";
    let route = |parent: &str, backend: &str| {
        format!(
            "{service}apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: a, generation: 2}}\nspec: {{parentRefs: [{{group: '', kind: Service, {parent}}}], rules: [{{backendRefs: [{{{backend}}}]}}]}}\n"
        )
    };
    let grant = "---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: b}\nspec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: a}], to: [{group: '', kind: Service}]}\n";
    let said = |text: &str| {
        let w = written(text);
        let s = w.statuses.iter().find(|s| s.to.kind == "HTTPRoute").map(|s| s.status["parents"].clone());
        let reasons = |c: &serde_json::Value| format!("{}={}", c["type"], c["reason"]).replace('"', "");
        s.map(|s| s[0]["conditions"].as_array().unwrap().iter().map(reasons).collect::<Vec<_>>().join(" "))
    };
    for (parent, backend, more, wanted) in [
        ("name: s", "name: s, port: 80", "", "Accepted=Accepted ResolvedRefs=ResolvedRefs"),
        ("name: s, port: 81", "name: s, port: 80", "", "Accepted=NoMatchingParent ResolvedRefs=ResolvedRefs"),
        ("name: none", "name: s", "", "Accepted=NoMatchingParent ResolvedRefs=ResolvedRefs"),
        ("name: s", "name: none", "", "Accepted=Accepted ResolvedRefs=BackendNotFound"),
        ("name: s", "name: s, port: 81", "", "Accepted=Accepted ResolvedRefs=BackendNotFound"),
        ("name: s", "name: s, kind: Pod", "", "Accepted=Accepted ResolvedRefs=InvalidKind"),
        ("name: s", "name: t, namespace: b, port: 80", "", "Accepted=Accepted ResolvedRefs=RefNotPermitted"),
        ("name: s", "name: t, namespace: b, port: 80", grant, "Accepted=Accepted ResolvedRefs=ResolvedRefs"),
    ] {
        assert_eq!(said(&(route(parent, backend) + more)).as_deref(), Some(wanted), "{parent} {backend}");
    }
    // Written once; what another controller has said stays; a Gateway's routes are not ours.
    let fine = route("name: s", "name: s, port: 80");
    let w = written(&fine);
    let status = w.statuses.iter().find(|s| s.to.kind == "HTTPRoute").unwrap().status.clone();
    assert_eq!(said(&format!("{fine}status: {status}\n")), None);
    let other = "status: {parents: [{parentRef: {name: g}, controllerName: example.com/other, conditions: [{type: Accepted, status: 'True', reason: Accepted}]}]}\n";
    let w = written(&format!("{fine}{other}"));
    let all = w.statuses.iter().find(|s| s.to.kind == "HTTPRoute").unwrap().status["parents"].clone();
    assert_eq!((all.as_array().unwrap().len(), all[1]["controllerName"].as_str()), (2, Some("example.com/other")));
    assert_eq!(said(&fine.replace("group: '', kind: Service, name: s", "name: g")), None);
}

/// Names are used again; the uid says which pod it is.
#[test]
fn a_workload_says_which_pod_it_is() {
    use prost::Message;
    let uid = |text: &str| {
        let (m, _) = run(text);
        let w = &m.workloads["Kubernetes//Pod/a/p"];
        let own = w.extensions.iter().filter_map(|e| e.config.as_ref()).find(|c| c.type_url == karst_api::POD_TYPE);
        own.map(|c| karst_api::route::Pod::decode(&c.value[..]).unwrap().uid)
    };
    assert_eq!(uid(POD), None);
    assert_eq!(uid(&POD.replace("name: p, ", "name: p, uid: u-1, ")), Some("u-1".into()));
}

#[test]
fn nodes_tell_what_their_pods_have_addresses_from() {
    let node = |name: &str, spec: &str| {
        format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n---\n")
    };
    let (m, p) = run(&format!(
        "{}{}{}",
        node("one", "podCIDRs: [10.77.0.0/24, 'fd77:0::/64'], podCIDR: 10.77.0.0/24"),
        node("two", ""),
        node("three", "podCIDRs: [10.77.2.0/24, 10.77.2.0/33]")
    ));
    let told: Vec<_> = m.pod_ranges.iter().map(|(n, r)| (n.as_str(), r.ranges.join(" "))).collect();
    assert_eq!(told, [("one", "10.77.0.0/24 fd77::/64".into()), ("three", "10.77.2.0/24".into())]);
    let problems: Vec<String> = p.iter().map(ToString::to_string).collect();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("spec.podCIDRs[1]") && problems[0].contains("10.77.2.0/33"), "{problems:?}");
}

/// `controller/golden`: manifests, and what becomes of them. KARST_BLESS=1 writes it; what has changed is then to be read.
#[test]
fn golden() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let mut inputs: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|f| f.unwrap().path()).collect();
    inputs.retain(|p| p.extension().is_some_and(|e| e == "yaml"));
    assert!(inputs.len() >= 6);
    for input in inputs {
        let (m, problems) = run(&std::fs::read_to_string(&input).unwrap());
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let is = format!(
            "routes {:#?}\nbackends {:#?}\naccess {:#?}\ngateways {:#?}\nproblems {problems:#?}\n",
            m.routes, m.backends, m.access, m.gateways
        );
        let path = input.with_extension("ir");
        if std::env::var_os("KARST_BLESS").is_some() {
            std::fs::write(&path, &is).unwrap();
        }
        let want = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            is == want,
            "{} is not what comes of it: run with KARST_BLESS=1, and read the difference",
            path.display()
        );
    }
}

/// What a proxy shows to endpoints is told to pods of the Secret's namespace, and only for rules of there or of the root namespace.
#[test]
fn credentials_are_told_to_their_namespace_only() {
    let pod = |ns: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: {ns}, labels: {{gateway.networking.k8s.io/gateway-name: w}}}}\nspec: {{nodeName: n}}\nstatus: {{phase: Running, podIPs: [{{ip: 10.0.0.1}}]}}\n---\n"
        )
    };
    let pair = crate::ca::Signer::generate("cluster.local").unwrap();
    let indented = |pem: &str| pem.lines().map(|l| format!("    {l}\n")).collect::<String>();
    let secret = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: c, namespace: a}}\nstringData:\n  tls.crt: |\n{}  tls.key: |\n{}---\n",
        indented(&pair.0),
        indented(&pair.1)
    );
    let rule = |ns: &str, mode: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: d, namespace: {ns}}}\nspec: {{host: x.com, trafficPolicy: {{tls: {{mode: {mode}, credentialName: c}}}}}}\n"
        )
    };
    for (of, mode, told) in
        [("a", "MUTUAL", true), ("istio-system", "MUTUAL", true), ("b", "MUTUAL", false), ("a", "SIMPLE", false)]
    {
        let (m, p) = run(&(pod("a") + &pod("b") + &secret + &rule(of, mode)));
        assert!(p.is_empty(), "{p:?}");
        let has = |pod: &str| m.gateways.get(pod).is_some_and(|g| g.credentials.contains_key("c"));
        assert_eq!((has("a/p"), has("b/p")), (told, false), "{of} {mode}");
    }
}

/// What wants TLS and cannot be read gets no connection; what does not, and cannot be read, changes nothing.
#[test]
fn tls_that_cannot_be_is_none_without() {
    let of = |policy: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: a}}\nspec: {{clusterIP: 10.96.0.1, ports: [{{port: 80}}]}}\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: d, namespace: a}}\nspec: {{host: s, trafficPolicy: {policy}}}\n"
        );
        let (m, p) = run(&text);
        assert_eq!(p.len(), 1, "{policy}: {p:?}");
        let b = m.backends.get("a/s.a.svc.cluster.local").cloned();
        b.and_then(|b| Some(b.policy.as_ref()?.tls.as_ref()?.broken.clone()))
    };
    for wants in [
        "{tls: {mode: SIMPLE, caCertificates: /ca.pem}}",
        "{portLevelSettings: [{port: {number: 80}, tls: {mode: MUTUAL}}]}",
        "{tls: {mode: SIMPLE}, outlierDetection: {interval: soon}}",
        "{tls: {mode: NEW}}",
    ] {
        assert!(of(wants).is_some_and(|b| b.contains("DestinationRule a/d: spec.trafficPolicy")), "{wants}");
    }
    assert_eq!(of("{tls: {mode: DISABLE}, outlierDetection: {interval: soon}}"), None);
}

#[test]
fn a_filter_that_nobody_executes_is_reported() {
    let text = |label: &str| {
        format!(
            "{WAYPOINT}{}apiVersion: karst.io/v1alpha1\nkind: HTTPFilter\nmetadata: {{name: f, namespace: a}}\nspec: {{targetRefs: [{{kind: Service, name: s}}], rateLimits: [{{requests: 1}}]}}\n",
            BOUND.replace("NS", "a").replace("istio.io/use-waypoint:", label)
        )
        .replace("STATUS", READY)
    };
    let (m, p) = run(&text("istio.io/use-waypoint:"));
    assert!(p.is_empty() && m.routes["a/s.a.svc.cluster.local"].limits.len() == 1, "{p:?}");
    let (_, p) = run(&text("x/y:"));
    assert_eq!((p.len(), p[0].field.as_str()), (1, "spec.targetRefs[0]"), "{p:?}");
}

/// Of two policies for the same port the older one counts; a wrong one means no connection, and its status says why.
#[test]
fn backend_tls_policies_say_what_became_of_them() {
    let policy = |name: &str, time: &str, target: &str, validation: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {{name: {name}, namespace: a, creationTimestamp: '{time}'}}\nspec: {{targetRefs: [{{group: '', kind: Service, name: s{target}}}], validation: {{{validation}}}}}\n"
        )
    };
    const SYSTEM: &str = "hostname: x, wellKnownCACertificates: System";
    let pem = crate::ca::Signer::generate("cluster.local").unwrap().0;
    let map = format!(
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: ca, namespace: a}}\ndata:\n  ca.crt: |\n{}",
        pem.lines().map(|l| format!("    {l}\n")).collect::<String>()
    );
    let base = format!("{WAYPOINT}{}", BOUND.replace("NS", "a")).replace("STATUS", READY);
    let base = base.replace("clusterIP: 10.96.0.1}", "clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]}");
    let said = |policies: &str| -> Vec<(String, String)> {
        let reasons = |w: status::Write| {
            let all = w.status["ancestors"][0]["conditions"].as_array().cloned().unwrap_or_default();
            let of = |i: usize| all[i]["reason"].as_str().unwrap_or_default().to_string();
            (format!("{} {}", w.to.name, of(0)), of(1))
        };
        let all = written(&format!("{base}{map}{policies}")).statuses;
        all.into_iter().filter(|w| w.to.kind == "BackendTLSPolicy").map(reasons).collect()
    };
    let one = |target: &str, validation: &str| said(&policy("p", "1", target, validation)).remove(0);
    let both = |a: &str, b: &str| (format!("p {a}"), b.to_string());
    assert_eq!(one("", SYSTEM), both("Accepted", "ResolvedRefs"));
    let refs = |list: &str| format!("hostname: x, caCertificateRefs: [{list}]");
    let good = "{group: '', kind: ConfigMap, name: ca}";
    assert_eq!(one("", &refs(good)), both("Accepted", "ResolvedRefs"));
    let lost = "{group: '', kind: ConfigMap, name: none}";
    assert_eq!(one("", &refs(lost)), both("NoValidCACertificate", "InvalidCACertificateRef"));
    assert_eq!(one("", &refs(&format!("{lost}, {good}"))), both("Accepted", "InvalidCACertificateRef"));
    assert_eq!(one("", &refs("{group: '', kind: Pod, name: ca}")), both("NoValidCACertificate", "InvalidKind"));
    assert_eq!(one(", sectionName: none", SYSTEM), both("TargetNotFound", "ResolvedRefs"));
    assert_eq!(one("", "hostname: x"), both("Invalid", "ResolvedRefs"));
    let two = said(&(policy("young", "2", "", SYSTEM) + &policy("old", "1", "", SYSTEM)));
    assert_eq!(two.iter().map(|(a, _)| a.as_str()).collect::<Vec<_>>(), ["old Accepted", "young Conflicted"]);
    let two = said(&(policy("young", "2", "", SYSTEM) + &policy("old", "1", ", sectionName: http", SYSTEM)));
    assert_eq!(two.iter().map(|(a, _)| a.as_str()).collect::<Vec<_>>(), ["old Accepted", "young Accepted"]);
}

/// Whose tokens are taken is said beside the service, or in the root namespace for a whole class; what is wrong takes nobody's.
#[test]
fn issuers_are_named_where_they_may_be() {
    let base = format!("{WAYPOINT}{}", BOUND.replace("NS", "a")).replace("STATUS", READY);
    let tokens = |ns: &str, target: &str, rule: &str| {
        let text = format!(
            "{base}apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: r, namespace: {ns}}}\nspec: {{targetRefs: [{target}], jwtRules: [{{issuer: i, outputClaimToHeaders: [{{header: X-Sub, claim: sub}}], {rule}}}]}}\n"
        );
        let (m, p) = run(&text);
        let access = m.access.get("a/s.a.svc.cluster.local").cloned();
        let broken: Vec<_> = access.iter().flat_map(|a| &a.tokens).map(|t| t.broken.clone()).collect();
        // Whatever is wrong, no client writes what only proxies write.
        assert!(access.iter().flat_map(|a| &a.tokens).all(|t| t.claim_headers[0].header == "x-sub"));
        (broken, p.len())
    };
    const KEYS: &str = r#"jwks: '{"keys": [{"kty": "EC", "crv": "P-256", "x": "e-y4scs2WBMwaIE0WvgVG0UZa9sB8aS-BgmB4N5Q0Ls", "y": "eWJ4nB_CTnISFQXtcUJuRMXRJgi_LaEJN6ycvLl4xgs"}]}'"#;
    let (service, class) = (
        "{group: '', kind: Service, name: s}",
        "{group: gateway.networking.k8s.io, kind: GatewayClass, name: istio-waypoint}",
    );
    let fine = (vec![String::new()], 0);
    assert_eq!(tokens("a", service, KEYS), fine);
    assert_eq!(tokens("b", service, KEYS), (vec![], 0), "the service of another namespace is not meant");
    assert_eq!(tokens("istio-system", class, KEYS), fine);
    assert_eq!(tokens("b", class, KEYS), (vec![], 1), "not everybody names issuers for all");
    let (broken, problems) = tokens("a", service, "jwks: nonsense");
    assert!(broken[0].contains("is no JSON Web Key Set") && problems == 1, "{broken:?}");
    let (broken, problems) = tokens("a", service, r#"jwks: '{"keys": [{"kty": "oct", "k": "MDEyMw"}]}'"#);
    assert!(broken[0].contains("has no public key") && problems == 1, "{broken:?}");
    let (broken, problems) = tokens("a", service, "jwksUri: 'https://i/keys'");
    assert!(broken[0].contains("not fetched yet") && problems == 0, "{broken:?}");
}

/// What users of Istio write is taken, each object by itself, as the webhook sees it.
#[test]
fn what_users_write_is_accepted_alone() {
    let text = include_str!("../../../tests/e2e/manifests/accepted.yaml");
    let all = parse::file("accepted.yaml".as_ref(), text).unwrap();
    assert!(all.len() > 20);
    for o in all {
        let p = check::problems(o.object, &mesh());
        assert!(p.is_empty(), "{p:?}");
    }
}

/// A wildcard that is looked up needs a waypoint: said in its status, until it has one.
#[test]
fn wildcards_without_a_waypoint_are_told_so() {
    let entry = |label: &str| {
        format!(
            "{WAYPOINT}apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e, namespace: a, labels: {{{label}}}}}\nspec: {{hosts: ['*.x.example'], resolution: DYNAMIC_DNS, ports: [{{number: 443, name: tls, protocol: TLS}}]}}\n"
        )
        .replace("STATUS", READY)
    };
    let said = |label: &str| -> Vec<String> {
        conditions(&written(&entry(label))).into_iter().filter(|c| c.contains("ServiceEntry")).collect()
    };
    let without = said("");
    assert!(
        without.len() == 1 && without[0].ends_with("istio.io/WaypointMissing True NoWaypointForWildcardService"),
        "{without:?}"
    );
    let with = said("istio.io/use-waypoint: w");
    assert!(with.len() == 1 && with[0].contains("WaypointBound True"), "{with:?}");
    let (m, p) = run(&entry("istio.io/use-waypoint: w"));
    assert!(
        p.is_empty() && m.backends["a/*.x.example"].by_name && m.services["a/*.x.example"].addresses.len() == 2,
        "{p:?}"
    );
}
