//! Objects in, model out.

use super::*;
use crate::{
    convert::{objects::OWN_GROUP, status::Write},
    model::Model,
};

mod revisions;
mod work;

use karst_manifest::{
    Problem, State, code,
    kinds::*,
    parse::{self, Located},
};
use karst_policy::{Connection, authorize};
use std::{collections::BTreeSet, sync::Arc};

pub(crate) fn mesh() -> Mesh {
    Mesh {
        trust_domain: "cluster.local".into(),
        cluster_domain: "cluster.local".into(),
        cluster_id: "Kubernetes".into(),
        network: String::new(),
        root_namespace: "istio-system".into(),
        revision: Revision::default(),
        virtual_services_are_for: vec!["*".into()],
        destination_rules_are_for: vec!["*".into()],
        privileged_parameters: false,
    }
}
fn run(text: &str) -> (Model, Vec<Problem>) {
    let mut s = State {
        objects: parse::file("t.yaml".as_ref(), text).unwrap().into_iter().map(std::sync::Arc::new).collect(),
        ..State::default()
    };
    s.enrolled.insert("a/p".into());
    let (model, problems) = compile(&s, &mesh());
    for p in &problems {
        assert!(code::of(&p.message).is_some(), "has no code: {p}");
    }
    (model, problems)
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
        (pa("a", "w", "{selector: {matchLabels: {app: web}}, portLevelMtls: {'80': {mode: STRICT}}}"), false, true),
        (pa("a", "w", "{selector: {matchLabels: {app: web}}, portLevelMtls: {\"80\": {mode: STRICT}}}"), false, true),
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

/// Each key of the table: at ztunnel as its row says, and a waypoint is told of an attribute that it knows. (What it makes of
/// that: `every_key_evaluates` in the waypoint.)
#[test]
fn every_key_is_compiled_for_ztunnel_and_for_waypoints() {
    use karst_policy::{
        Attribute as A,
        attribute::{KEYS, SeenBy},
    };
    for k in KEYS {
        let (matches, other) = match k.attribute {
            A::Principal => ("cluster.local/ns/b/sa/x", "cluster.local/ns/b/sa/y"),
            A::Namespace => ("b", "c"),
            A::ServiceAccount => ("b/x", "x"),
            A::TrustDomain => ("cluster.local", "cluster"),
            A::SourceIp => ("10.0.0.9", "10.0.0.8"),
            A::DestinationIp => ("10.0.0.0/24", "10.1.0.0/24"),
            A::Port => ("80", "81"),
            A::RemoteIp => ("10.0.0.9", "10.0.0.8"),
            A::Sni | A::Header | A::RequestPrincipal | A::Claim | A::Audience | A::Presenter => ("x", "y"),
            A::Host | A::Method | A::Path => panic!("{k:?} is no key"),
        };
        let key = format!("{}{}", k.key, if k.is_named() { "[x]" } else { "" });
        for (value, holds) in [(matches, true), (other, false)] {
            for (field, holds) in [("values", holds), ("notValues", !holds)] {
                let spec = |action: &str| {
                    format!("action: {action}, rules: [{{when: [{{key: '{key}', {field}: ['{value}']}}]}}]")
                };
                for action in ["ALLOW", "DENY"] {
                    let (m, p) = run(&policy(&format!("{{{}}}", spec(action))));
                    assert!(p.is_empty(), "{key}: {p:?}");
                    // Of what ztunnel cannot see nothing is allowed, and everything is denied.
                    let allowed = k.attribute.seen_by() == SeenBy::Both && holds == (action == "ALLOW");
                    assert_eq!(verdict(&m, B, 80), allowed, "{action} {key} {field}: {value}");
                    let attached = format!("{{targetRefs: [{{kind: Service, group: '', name: s}}], {}}}", spec(action));
                    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n";
                    let (m, p) = run(&(policy(&attached) + service));
                    assert!(p.is_empty(), "{key}: {p:?}");
                    let access = &m.access["a/s.a.svc.cluster.local"];
                    let test = &access.policies[0].rules[0].clauses[0].matches[0].tests[0];
                    assert_eq!(test.attribute().known(), Some(k.attribute), "{key}");
                    assert_eq!(test.name, if k.is_named() { "x" } else { "" });
                }
            }
        }
    }
}

/// Whatever field it is in: a value that would never be matched is refused, where it is applied and where it is compiled.
#[test]
fn a_star_inside_closes_what_the_policy_selects() {
    let source =
        ["principals", "notPrincipals", "namespaces", "notNamespaces", "requestPrincipals", "notRequestPrincipals"];
    let operation = ["hosts", "notHosts", "methods", "notMethods", "paths", "notPaths"];
    let keys = karst_policy::attribute::KEYS;
    let mut rules: Vec<(String, String)> = vec![];
    for f in source {
        rules.push((format!("from[0].source.{f}[1]"), format!("from: [{{source: {{{f}: ['/x', 'VALUE']}}}}]")));
    }
    for f in operation {
        rules.push((format!("to[0].operation.{f}[1]"), format!("to: [{{operation: {{{f}: ['/x', 'VALUE']}}}}]")));
    }
    let text = |k: &&karst_policy::attribute::Key| k.attribute.values() == karst_policy::attribute::Values::Text;
    for k in keys.iter().filter(text) {
        let key = format!("{}{}", k.key, if k.is_named() { "[x]" } else { "" });
        for f in ["values", "notValues"] {
            rules.push((format!("when[0].{f}[1]"), format!("when: [{{key: '{key}', {f}: ['/x', 'VALUE']}}]")));
        }
    }
    for (field, rule) in rules {
        for (value, fine) in
            [("/a*", true), ("*a", true), ("*", true), ("*a*", false), ("/a*b", false), ("/a**", false)]
        {
            let (m, p) = run(&policy(&format!("{{action: DENY, rules: [{{{}}}]}}", rule.replace("VALUE", value))));
            assert_eq!(p.is_empty(), fine, "{rule} {value}: {p:?}");
            if !fine {
                let said = p[0].to_string();
                let named =
                    format!("AuthorizationPolicy a/ap: spec.rules[0].{field}: {value:?} may contain only one '*'");
                assert!(said.contains(&named), "{said}");
                assert!(!verdict(&m, B, 80) && !verdict(&m, None, 80), "{rule} {value} closes");
            }
        }
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
        let audits = spec.contains("AUDIT");
        let want = if audits {
            (2, 0)
        } else if refuses {
            (1, 1)
        } else {
            (0, 0)
        };
        assert_eq!((p.len(), told), (1, vec![want]), "{spec}");
    }
}

/// One that cannot be understood closes; but nobody outside of the root namespace closes gateways of others by naming their class.
#[test]
fn a_class_of_gateways_is_named_in_the_root_namespace_only() {
    let waypoint = format!("{WAYPOINT}{}", BOUND.replace("NS", "a")).replace("STATUS", READY);
    for (ns, action, policies) in [("b", "ALLOW", 0), ("b", "DENY", 0), ("a", "DENY", 0), ("istio-system", "DENY", 1)] {
        let object = format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: {ns}}}\nspec: {{action: {action}, targetRefs: [{{group: gateway.networking.k8s.io, kind: GatewayClass, name: istio-waypoint}}], rules: [{{}}]}}\n"
        );
        let (m, problems) = run(&(waypoint.clone() + &object));
        let found = m.access.get("a/s.a.svc.cluster.local").map_or(0, |a| a.policies.len());
        assert_eq!((found, problems.len()), (policies, 1 - policies), "{ns} {action}");
    }
}

/// A reference to a Service names one of its own namespace; a name that could be read as a host name of another is nobody's. Nor does
/// a ServiceEntry that is hidden, or not in force, stand for what others have of the same host name.
#[test]
fn no_reference_reaches_into_another_namespace() {
    let base = format!("{WAYPOINT}{}", BOUND.replace("NS", "a")).replace("STATUS", READY);
    let entry = |more: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e, namespace: b}}\nspec: {{hosts: [s.a.svc.cluster.local], {more}}}\n"
        )
    };
    let hidden =
        entry("exportTo: ['~'], resolution: STATIC, location: MESH_INTERNAL, ports: [{number: 80, name: http}]");
    let broken = entry("resolution: NOTHING, ports: [{number: 80, name: http}]");
    let targets = [
        ("{group: '', kind: Service, name: s.a}", ""),
        ("{group: '', kind: Service, name: s.a.svc}", ""),
        ("{group: '', kind: Service, name: s.a.svc.cluster.local}", ""),
        ("{group: networking.istio.io, kind: ServiceEntry, name: e}", hidden.as_str()),
        ("{group: networking.istio.io, kind: ServiceEntry, name: e}", broken.as_str()),
    ];
    let objects = [
        ("security.istio.io/v1", "AuthorizationPolicy", "action: DENY, rules: [{}]"),
        ("security.istio.io/v1", "RequestAuthentication", "jwtRules: [{issuer: i}]"),
        ("karst.io/v1alpha1", "HTTPFilter", "rateLimits: [{requests: 1}]"),
    ];
    let seen = |model: &Model| {
        let access = model.access.get("a/s.a.svc.cluster.local").map_or((0, 0), |a| (a.policies.len(), a.tokens.len()));
        (access, model.routes.get("a/s.a.svc.cluster.local").cloned())
    };
    let (alone, _) = run(&base);
    for (api, kind, spec) in objects {
        let of = |namespace: &str, target: &str| {
            format!(
                "---\napiVersion: {api}\nkind: {kind}\nmetadata: {{name: x, namespace: {namespace}}}\nspec: {{targetRefs: [{target}], {spec}}}\n"
            )
        };
        let (own, problems) = run(&(base.clone() + &of("a", "{group: '', kind: Service, name: s}")));
        assert_ne!(seen(&own), seen(&alone), "{kind} of its own namespace is in force: {problems:?}");
        for (target, more) in targets {
            let (model, _) = run(&(base.clone() + more + &of("b", target)));
            assert_eq!(seen(&model), seen(&alone), "{kind} for {target}");
        }
    }
}

/// In each action, by a value that the newer rules refuse, beside an ALLOW of everything: what is meant to refuse does so.
#[test]
fn values_that_cannot_be_read_close_what_refuses() {
    let waypoint = format!("{WAYPOINT}{}", BOUND.replace("NS", "a")).replace("STATUS", READY);
    let object = |spec: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: bad, namespace: a}}\nspec: {{{spec}}}\n"
        )
    };
    let target = "targetRefs: [{group: '', kind: Service, name: s}]";
    for rule in [
        "to: [{operation: {paths: ['/admin/*', '*/secret/*']}}]",
        "to: [{operation: {hosts: ['*.x.*']}}]",
        "from: [{source: {principals: ['td/ns/bad/*', '*/ns/*/sa/x']}}]",
        "when: [{key: source.trustDomain, values: ['cluster.*']}]",
        "when: [{key: 'request.headers[x]', notValues: ['*x*']}]",
    ] {
        for (action, refuses) in [("ALLOW", false), ("DENY", true), ("CUSTOM", true), ("AUDIT", false)] {
            let spec = format!("action: {action}, rules: [{{{rule}}}]");
            let (m, p) = run(&(policy("{rules: [{}]}") + &object(&spec)));
            assert_eq!((p.len(), verdict(&m, B, 80)), (1, !refuses), "{spec}");
            let (m, p) = run(&(waypoint.clone() + &object(&format!("{target}, {spec}"))));
            let policies = &m.access["a/s.a.svc.cluster.local"].policies;
            let deny = karst_api::route::AccessAction::Deny as i32;
            let closes = policies.iter().any(|p| p.action == deny && p.rules.iter().any(|r| r.clauses.is_empty()));
            assert_eq!((p.len(), closes), (1, refuses), "{spec}");
            // Alone it closes, too, unless it refuses nobody whatever it says.
            let audits = action == "AUDIT";
            assert_eq!(verdict(&run(&policy(&format!("{{{spec}}}"))).0, B, 80), audits, "{spec}");
            let allow = karst_api::route::AccessAction::Allow as i32;
            assert_eq!(policies.iter().all(|p| p.action != allow && p.action != deny), audits, "{spec}");
        }
    }
}

#[test]
fn who_upgrades_is_told_what_comes_of_a_policy() {
    let bad = "rules: [{to: [{operation: {paths: ['/a', '*x*']}}]}]";
    let not = "rules: [{to: [{operation: {notPaths: ['*x*']}}]}]";
    for (spec, wanted) in [
        (format!("action: DENY, {bad}"), Some("denies all traffic that it selects")),
        (format!("action: CUSTOM, {bad}"), Some("denies all traffic that it selects")),
        (not.into(), Some("allows no traffic: traffic that no other policy allows is denied")),
        (bad.into(), Some("ignores the values above; the rest of the policy is in force")),
        ("rules: [{}]".into(), None),
    ] {
        let objects = parse::file("t.yaml".as_ref(), &policy(&format!("{{{spec}}}"))).unwrap();
        let state = State { objects: objects.into_iter().map(std::sync::Arc::new).collect(), ..State::default() };
        let wanted: Vec<String> = wanted.iter().map(|w| format!("AuthorizationPolicy a/ap: {w}")).collect();
        assert_eq!(closing(&state, &mesh()), wanted, "{spec}");
    }
}

/// An ALLOW allows no less without a value that matches nothing: one that was stored goes on letting in whom it names.
#[test]
fn of_a_policy_that_allows_only_what_cannot_match_is_dropped() {
    let say = |spec: &str| {
        let (m, p) = run(&policy(spec));
        let fields: Vec<String> = p.iter().map(|p| p.field.trim_start_matches("spec.rules").to_string()).collect();
        (verdict(&m, B, 80), verdict(&m, B, 81), fields)
    };
    let ns = B.unwrap().split('/').nth(4).unwrap();
    let bad = "'*x*'";
    for (rules, wanted) in [
        // What is left lets in; what has nothing left does not let in everybody.
        (
            format!("[{{from: [{{source: {{namespaces: [{bad}, {ns}]}}}}]}}]"),
            (true, true, vec!["[0].from[0].source.namespaces[0]"]),
        ),
        (
            format!("[{{from: [{{source: {{namespaces: [{bad}]}}}}]}}]"),
            (false, false, vec!["[0].from[0].source.namespaces[0]"]),
        ),
        (
            format!("[{{from: [{{source: {{namespaces: [{bad}]}}}}, {{source: {{namespaces: [{ns}]}}}}]}}]"),
            (true, true, vec!["[0].from[0].source.namespaces[0]"]),
        ),
        (
            format!("[{{from: [{{source: {{namespaces: [{ns}], principals: [{bad}]}}}}]}}]"),
            (false, false, vec!["[0].from[0].source.principals[0]"]),
        ),
        (
            "[{to: [{operation: {ports: ['80', 'x', '0']}}]}]".into(),
            (true, false, vec!["[0].to[0].operation.ports[1]", "[0].to[0].operation.ports[2]"]),
        ),
        (
            format!(
                "[{{when: [{{key: source.namespace, values: [{bad}]}}, {{key: source.namespace, values: [{ns}]}}]}}]"
            ),
            (false, false, vec!["[0].when[0].values[0]"]),
        ),
        (
            format!(
                "[{{when: [{{key: source.namespace, values: [{bad}]}}]}}, {{to: [{{operation: {{ports: ['80']}}}}]}}]"
            ),
            (true, false, vec!["[0].when[0].values[0]"]),
        ),
        // An exception that is dropped would let in more.
        (
            format!("[{{from: [{{source: {{namespaces: [{ns}], notPrincipals: [{bad}]}}}}]}}]"),
            (false, false, vec!["[0].from[0].source.notPrincipals[0]"]),
        ),
    ] {
        let (a, b, fields) = say(&format!("{{rules: {rules}}}"));
        assert_eq!((a, b, fields.iter().map(String::as_str).collect()), wanted, "{rules}");
    }
    // At a waypoint, too.
    let waypoint = format!("{WAYPOINT}{}", BOUND.replace("NS", "a")).replace("STATUS", READY);
    let at = |paths: &str| {
        let object = format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: a}}\nspec: {{targetRefs: [{{group: '', kind: Service, name: s}}], rules: [{{to: [{{operation: {{paths: [{paths}]}}}}]}}]}}\n"
        );
        let (m, p) = run(&(waypoint.clone() + &object));
        let all = m.access["a/s.a.svc.cluster.local"].policies.iter().flat_map(|p| &p.rules).flat_map(|r| &r.clauses);
        let tests = all.flat_map(|c| &c.matches).flat_map(|m| &m.tests);
        (
            p.len(),
            tests.flat_map(|t| t.values.clone()).collect::<Vec<_>>(),
            m.access["a/s.a.svc.cluster.local"].policies[0].rules.len(),
        )
    };
    assert_eq!(at("'/public/*', '/x/*/y'"), (1, vec!["/public/*".to_string()], 1));
    assert_eq!(at("'/x/*/y'"), (1, vec![], 0));
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

/// Two ServiceEntries of one host are one service with the ports of both; an endpoint has those of its own entry.
#[test]
fn service_entries_of_one_host_are_one_service() {
    let entry = |name: &str, port: u16, more: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: a, creationTimestamp: '{name}'}}\nspec: {{hosts: [x.example], addresses: [10.0.{port}.1], resolution: STATIC, ports: [{{number: {port}, name: p, protocol: TCP}}], {more}}}\n---\n"
        )
    };
    let at = |list: &str| format!("endpoints: [{list}]");
    let ports = |list: &karst_api::workload::PortList| -> Vec<String> {
        list.ports.iter().map(|p| format!("{}:{}", p.service_port, p.target_port)).collect()
    };
    let run_all = |text: &str| {
        let (m, p) = run(text);
        let endpoints: Vec<_> = m.workloads.values().map(|w| ports(&w.services["a/x.example"]).join(" ")).collect();
        let s = &m.services["a/x.example"];
        let all: Vec<u32> = s.ports.iter().map(|p| p.service_port).collect();
        (all, s.addresses.len(), endpoints, p.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let two = entry("b", 80, &at("{address: 192.0.2.1}")) + &entry("c", 90, &at("{address: 192.0.2.1}"));
    assert_eq!(run_all(&two), (vec![80, 90], 2, vec!["80:80".into(), "90:90".into()], vec![]));
    // The same by labels: the pod is an endpoint at both.
    let selects = "workloadSelector: {labels: {app: web}}";
    let selected = POD.to_string() + &entry("b", 80, selects) + &entry("c", 90, selects);
    assert_eq!(run_all(&selected).2, ["80:80 90:90"]);
    // Two at one address, told apart by their ports.
    let twins = entry("b", 80, &at("{address: 192.0.2.1, ports: {p: 81}}, {address: 192.0.2.1, ports: {p: 82}}"));
    assert_eq!(run_all(&twins).2, ["80:81", "80:82"]);
    // What cannot be one service stays that of the older one, and is told.
    let other = entry("c", 90, "").replace("resolution: STATIC", "resolution: NONE");
    let (all, addresses, _, problems) = run_all(&(entry("b", 80, &at("{address: 192.0.2.1}")) + &other));
    assert_eq!((all, addresses, problems.len()), (vec![80], 1, 1), "{problems:?}");
    assert!(problems[0].contains("ServiceEntry a/c") && problems[0].contains("different resolution"), "{problems:?}");
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
        let idle = karst_manifest::unsupported::UNSUPPORTED.iter().find(|(k, ..)| *k == kind).map(|(_, g, _)| *g);
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
            assert!(code::of(&text).is_some(), "has no code: {text}");
            let text_of = |p: &Problem| p.to_string().trim_start_matches("t.yaml:1: ").to_string();
            let all: Vec<String> = problems.iter().map(text_of).collect();
            assert_eq!(all.join("; "), text, "{kind} {spec}");
        }
    }
}

/// Everything that a code can stand in: the sources, and the rules of the CRDs.
fn sources(dir: &std::path::Path, out: &mut String) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs" || e == "yaml")
            && !["code.rs", "tests.rs"].iter().any(|f| path.ends_with(f))
        {
            out.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn every_code_is_used_and_documented() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut all = String::new();
    for dir in ["controller/src", "crates", "charts/base/files/crds"] {
        sources(&root.join(dir), &mut all);
    }
    let crds = std::fs::read_dir(root.join("charts/base/files/crds")).unwrap().map(|f| f.unwrap().path());
    for rule in crds.flat_map(|f| std::fs::read_to_string(f).unwrap().lines().map(String::from).collect::<Vec<_>>()) {
        let is_message = rule.trim_start().starts_with("message: ") || rule.contains("\"message\": ");
        assert!(!is_message || code::of(&rule).is_some() || rule.contains("type\": \"string"), "has no code: {rule}");
    }
    let coded = |part: &str| code::of(&format!("[KARST-{}", part.get(..5).unwrap_or_default()));
    let mut used: BTreeSet<u16> = all.split("[KARST-").skip(1).filter_map(coded).collect();
    used.insert(1); // where a parser's text gets it
    let listed: BTreeSet<u16> = code::CODES.iter().map(|(c, _)| *c).collect();
    assert_eq!(used, listed, "used, and in the list");
    let doc = include_str!("../../../docs/refused.md");
    let (_, doc) = doc.split_once("## Codes").unwrap();
    let lines: Vec<String> = doc.lines().filter(|l| l.starts_with("- ")).map(String::from).collect();
    let wanted: Vec<String> = code::CODES.iter().map(|(c, meaning)| format!("- `KARST-{c:04}`: {meaning}")).collect();
    assert_eq!(lines, wanted, "docs/refused.md");
}

const WAYPOINT: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: w, namespace: a, uid: u, generation: 3}\nspec: {gatewayClassName: istio-waypoint, infrastructure: {labels: {team: x}}, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\nSTATUS\n---\n";
const BOUND: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: NS, labels: {istio.io/use-waypoint: w, istio.io/use-waypoint-namespace: a}}\nspec: {clusterIP: 10.96.0.1}\n---\n";
const READY: &str = "status: {addresses: [{type: Hostname, value: w.a.svc.cluster.local}]}";

fn written_with(state: &State, template: &Template, found: Option<&[finding::Finding]>) -> Writes {
    let mut c = Compiler::new(mesh());
    c.update(state);
    c.writes(state, template, found, "2026-01-01T00:00:00Z")
}

fn written(text: &str) -> Writes {
    let objects = parse::file("t.yaml".as_ref(), text).unwrap().into_iter().map(std::sync::Arc::new).collect();
    let state = State { objects, ..State::default() };
    let template = Template { image: "hub/waypoint:1".into(), pull_policy: "Never".into(), ..Template::default() };
    let found = findings(&state, &compile(&state, &mesh()).0, &mesh());
    written_with(&state, &template, Some(&found))
}

/// What a condition says that is False and no refusal.
const REFERS: [&str; 3] = ["No errors found", "see Accepted", "see the other conditions"];

/// Object, type, status, reason of each condition that is written.
fn conditions(w: &Writes) -> Vec<String> {
    let one = |w: &Write| {
        let of = w.status["conditions"].as_array().cloned().unwrap_or_default();
        let to = w.to.to_string();
        for c in of.iter().filter(|c| c["status"] == "False") {
            let text = c["message"].as_str().unwrap();
            assert!(code::of(text).is_some() || REFERS.contains(&text), "has no code: {c}");
        }
        of.into_iter().map(move |c| format!("{to}: {} {} {}", c["type"], c["status"], c["reason"]).replace('"', ""))
    };
    w.statuses.iter().flat_map(one).collect()
}

#[test]
fn waypoints_are_deployed_as_mesh_and_revision_say() {
    let text = WAYPOINT.replace("STATUS", READY);
    let objects = parse::file("t.yaml".as_ref(), &text).unwrap().into_iter().map(std::sync::Arc::new).collect();
    let mesh_config = karst_manifest::MeshConfig::read("defaultConfig: {concurrency: 3}").unwrap();
    let mut state = State { objects, ..State::default() };
    let revision = Revision { name: "canary".into(), tags: vec![] };
    let mut c = Compiler::new(Mesh { revision, ..mesh() });
    let template = Template { pull_secrets: vec!["pull".into()], ..Template::default() };
    let mut deployed = |state: &State| {
        c.update(state);
        let writes = c.writes(state, &template, None, "2026-01-01T00:00:00Z");
        let (_, fields) = writes.objects.into_iter().find(|(r, _)| r.kind == "Deployment").unwrap();
        let pod = fields["spec"]["template"]["spec"].clone();
        let env = pod["containers"][0]["env"].as_array().unwrap().clone();
        let value = move |name: &str| env.iter().find(|e| e["name"] == name).map(|e| e["value"].clone());
        (value("XDS_ADDRESS"), value("KARST_WORKER_THREADS"), pod["imagePullSecrets"].clone())
    };
    let address = Some(serde_json::json!("istiod-canary.istio-system.svc:15012"));
    let secrets = serde_json::json!([{ "name": "pull" }]);
    assert_eq!(deployed(&state), (address.clone(), None, secrets.clone()));
    // It is taken in though no object has changed.
    state.mesh_config = std::sync::Arc::new(mesh_config);
    assert_eq!(deployed(&state), (address, Some(serde_json::json!("3")), secrets));
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

/// A waypoint that cannot be as it is written says so, by Gateway API's reasons; what is bound to it does not go there.
#[test]
fn a_waypoint_with_a_wrong_listener_is_not_programmed() {
    const MADE: &str = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: w, namespace: a, labels: {gateway.istio.io/managed: x}}\nstatus: {availableReplicas: 1}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: w, namespace: a, labels: {gateway.istio.io/managed: x}}\nspec: {clusterIP: 10.96.0.9}\n---\n";
    let with = |listeners: &str, status: &str| {
        let listener = "{name: mesh, port: 15008, protocol: HBONE}";
        WAYPOINT.replace(listener, listeners).replace("STATUS", status) + MADE + &BOUND.replace("NS", "a")
    };
    let said = |text: &str| {
        let w = written(text);
        let of = |c: &serde_json::Value| format!("{} {} {}", c["type"], c["status"], c["reason"]).replace('"', "");
        let status = &w.statuses.iter().find(|s| s.to.kind == "Gateway").unwrap().status;
        let all = [&status["conditions"], &status["listeners"][0]["conditions"]];
        let one = |c: &serde_json::Value| c.as_array().unwrap()[..2].iter().map(of).collect::<Vec<_>>().join(", ");
        (all.map(one), status["addresses"].as_array().unwrap().len(), conditions(&w))
    };
    for (listener, reason) in [
        ("{name: mesh, port: 15008, protocol: HTTP}", "UnsupportedProtocol"),
        ("{name: mesh, port: 80, protocol: HBONE}", "PortUnavailable"),
        ("{name: mesh, port: 80, protocol: HTTP}", "UnsupportedProtocol"),
    ] {
        let ([own, of_listener], addresses, all) = said(&with(listener, ""));
        assert_eq!(own, "Accepted False ListenersNotValid, Programmed False Invalid", "{listener}");
        assert_eq!(of_listener, format!("Accepted False {reason}, Programmed False Invalid"), "{listener}");
        assert_eq!(addresses, 0, "{listener}");
        assert!(all.contains(&"Service a/s: istio.io/WaypointBound False WaypointIsNotReady".to_string()), "{all:#?}");
        // One that served: its policies stay in force.
        let ([own, _], addresses, all) = said(&with(listener, READY));
        assert_eq!((own.as_str(), addresses), ("Accepted False ListenersNotValid, Programmed False Invalid", 1));
        assert!(all.contains(&"Service a/s: istio.io/WaypointBound True WaypointAccepted".to_string()), "{all:#?}");
    }
    let ([own, _], addresses, _) = said(&with("{name: mesh, port: 15008, protocol: HBONE}", ""));
    assert_eq!((own.as_str(), addresses), ("Accepted True Accepted, Programmed True Programmed", 1));
    // Of two the one that can be is there.
    let two = "{name: web, port: 80, protocol: HTTP}, {name: mesh, port: 15008, protocol: HBONE}";
    let ([own, of_listener], addresses, _) = said(&with(two, ""));
    assert_eq!((own.as_str(), addresses), ("Accepted True ListenersNotValid, Programmed True Programmed", 1));
    assert_eq!(of_listener, "Accepted False UnsupportedProtocol, Programmed False Invalid");
}

/// `parametersRef`, of waypoints as of other gateways.
#[test]
fn parameters_change_what_is_deployed() {
    const MAP: &str = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: options, namespace: a}\ndata:\n  deployment: 'spec: {replicas: 3, template: {spec: {containers: [{name: istio-proxy, resources: {requests: {cpu: 222m}}}]}}}'\n  service: 'metadata: {labels: {gateway.istio.io/managed: null}}'\n  horizontalPodAutoscaler: 'spec: {minReplicas: 2, maxReplicas: 5}'\n  podDisruptionBudget: 'spec: {minAvailable: 1}'\n";
    let with = |class: &str, kind: &str, map: &str| {
        let parameters = format!(
            "infrastructure: {{parametersRef: {{group: '', kind: {kind}, name: options}}, labels: {{team: x}}}}"
        );
        let listener = if class == "istio" { "port: 80, protocol: HTTP" } else { "port: 15008, protocol: HBONE" };
        WAYPOINT
            .replace("STATUS", "")
            .replace("istio-waypoint", class)
            .replace("infrastructure: {labels: {team: x}}", &parameters)
            .replace("port: 15008, protocol: HBONE", listener)
            + map
    };
    for (class, name) in [("istio-waypoint", "w"), ("istio", "w-istio")] {
        let w = written(&with(class, "ConfigMap", MAP));
        let kinds: Vec<String> = w.objects[4..].iter().map(|(r, _)| r.to_string()).collect();
        let all = ["ServiceAccount", "HorizontalPodAutoscaler", "PodDisruptionBudget", "Deployment", "Service"];
        assert_eq!(kinds, all.map(|k| format!("{k} a/{name}")));
        let of = |kind: &str| &w.objects.iter().find(|(r, _)| r.kind == kind).unwrap().1;
        let d = of("Deployment");
        let container = &d["spec"]["template"]["spec"]["containers"][0];
        assert_eq!((&d["spec"]["replicas"], &container["resources"]["requests"]["cpu"]), (&3.into(), &"222m".into()));
        assert_eq!(container["resources"]["requests"]["memory"], "128Mi", "what is not said stays");
        let hpa = &of("HorizontalPodAutoscaler")["spec"];
        assert_eq!((&hpa["scaleTargetRef"]["name"], &hpa["maxReplicas"]), (&name.into(), &5.into()));
        assert_eq!(of("PodDisruptionBudget")["spec"]["selector"]["matchLabels"][GATEWAY_NAME], "w");
        assert!(of("Service")["metadata"]["labels"][MANAGED].is_string(), "it stays ours");
        // What is asked for no more is removed, and before that nothing is said to be there.
        let made = d["metadata"]["annotations"].as_object().unwrap();
        let annotations = made.iter().map(|(k, v)| format!("{k}: {v}")).collect::<Vec<_>>().join(", ");
        let there = format!(
            "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}, namespace: a, labels: {{gateway.istio.io/managed: x}}, annotations: {{{annotations}}}}}\n"
        );
        let less = MAP.replace("horizontalPodAutoscaler", "unknown");
        let w = written(&(with(class, "ConfigMap", &less) + &there));
        let removed: Vec<String> = w.removed.iter().map(|(r, owner)| format!("{r} {owner}")).collect();
        assert_eq!(removed, [format!("HorizontalPodAutoscaler a/{name} u")]);
        assert!(w.objects.iter().all(|(r, v)| r.kind == "GatewayClass" || deploy::owner(v) == Some("u")));
        // What cannot be read changes nothing, and is told.
        for (kind, map) in
            [("ConfigMap", ""), ("Secret", MAP), ("ConfigMap", &MAP.replace("'spec: {replicas", "'spec: [{"))]
        {
            let w = written(&with(class, kind, map));
            assert_eq!(w.objects.len(), 4, "{kind} {map}");
            let all = conditions(&w);
            assert!(all.contains(&"Gateway a/w: Accepted False InvalidParameters".to_string()), "{all:#?}");
            assert!(all.contains(&"Gateway a/w: Programmed False Invalid".to_string()), "{all:#?}");
        }
    }
    // Of a class, for all of its Gateways.
    let class = MAP.replace(
        "name: options, namespace: a",
        "name: any, namespace: istio-system, labels: {gateway.istio.io/defaults-for-class: istio-waypoint}",
    );
    let w = written(&(WAYPOINT.replace("STATUS", "") + &class));
    assert!(w.objects.iter().any(|(r, v)| r.kind == "Deployment" && v["spec"]["replicas"] == 3));
}

/// A Gateway with this as the overlay of one of its objects, in its own ConfigMap or in that of its class.
fn overlaid(class: &str, of_class: bool, key: &str, overlay: &serde_json::Value) -> State {
    let listener = if class == "istio" { "port: 80, protocol: HTTP" } else { "port: 15008, protocol: HBONE" };
    let own = "infrastructure: {parametersRef: {group: '', kind: ConfigMap, name: options}}";
    let gateway = WAYPOINT
        .replace("STATUS", "")
        .replace("istio-waypoint", class)
        .replace("port: 15008, protocol: HBONE", listener)
        .replace("infrastructure: {labels: {team: x}}", if of_class { "infrastructure: {}" } else { own });
    let name = if of_class {
        format!("name: any, namespace: istio-system, labels: {{gateway.istio.io/defaults-for-class: {class}}}")
    } else {
        "name: options, namespace: a".into()
    };
    let data = serde_json::json!({ key: overlay.to_string() });
    let text = format!("{gateway}apiVersion: v1\nkind: ConfigMap\nmetadata: {{{name}}}\ndata: {data}\n");
    let objects = parse::file("t.yaml".as_ref(), &text).unwrap().into_iter().map(std::sync::Arc::new).collect();
    State { objects, ..State::default() }
}

/// Everything odd everywhere: nothing ends the process, and what is deployed stays ours, or the Gateway says what is wrong.
#[test]
fn no_parameters_harm_the_controller() {
    use serde_json::{Value, json};
    let odd = [
        json!(null),
        json!("x"),
        json!(""),
        json!(1),
        json!(true),
        json!([]),
        json!(["a"]),
        json!([[{}]]),
        json!([null]),
        json!({}),
        json!({ "a": "b" }),
        json!({ "a": { "b": [1] } }),
        json!({ "$patch": "replace" }),
        json!({ "$patch": "delete" }),
        json!({ "$patch": ["x"] }),
        json!({ "$retainKeys": ["a"] }),
        json!({ "$deleteFromPrimitiveList/a": 1 }),
        json!([{ "$patch": "replace" }, { "name": null }]),
    ];
    let paths = [
        "",
        "metadata",
        "metadata.labels",
        "metadata.annotations",
        "metadata.labels.gateway.istio.io/managed",
        "metadata.ownerReferences",
        "spec",
        "spec.selector",
        "spec.ports",
        "spec.template",
        "spec.template.metadata",
        "spec.template.metadata.labels",
        "spec.template.spec",
        "spec.template.spec.containers",
        "spec.template.spec.volumes",
        "spec.template.spec.securityContext",
        "secrets",
        "$patch",
        "$retainKeys",
    ];
    let template = Template { image: "i".into(), pull_policy: "Never".into(), ..Template::default() };
    let mut refused = 0;
    for (path, value, of_class) in
        paths.iter().flat_map(|p| odd.iter().flat_map(move |v| [(p, v, false), (p, v, true)]))
    {
        let steps: Vec<&str> = match path.split_once(".labels.") {
            Some((_, key)) => vec!["metadata", "labels", key],
            None => path.split('.').filter(|s| !s.is_empty()).collect(),
        };
        let overlay = steps.iter().rev().fold(value.clone(), |inner, step| json!({ *step: inner }));
        for (class, key) in [("istio", "deployment"), ("istio-waypoint", "service"), ("istio", "podDisruptionBudget")] {
            let w = written_with(&overlaid(class, of_class, key, &overlay), &template, None);
            let made: Vec<_> = w.objects.iter().filter(|(r, _)| r.kind != "GatewayClass").collect();
            let said = conditions(&w).contains(&"Gateway a/w: Accepted False InvalidParameters".to_string());
            assert!(said == made.is_empty(), "{key}: {overlay}: {made:?}");
            refused += usize::from(said);
            for (r, v) in made {
                let text = |of: &str, key: &str| v["metadata"][of].get(key).is_some_and(Value::is_string);
                assert_eq!(deploy::owner(v), Some("u"), "{r}: {overlay}");
                assert!(text("labels", MANAGED) && text("annotations", "gateway.karst.io/digest"), "{r}: {overlay}");
            }
        }
    }
    assert!((200..1_900).contains(&refused), "{refused}");
}

/// What a ConfigMap's writer does not get by it, unless who runs the mesh says so; parameters of a class are his own.
#[test]
fn parameters_give_no_rights() {
    let template = Template { image: "i".into(), pull_policy: "Never".into(), ..Template::default() };
    let of = |key: &str, overlay: &str, of_class: bool, privileged: bool| {
        let overlay: serde_json::Value = serde_yaml_ng::from_str(overlay).unwrap();
        let mut c = Compiler::new(Mesh { privileged_parameters: privileged, ..mesh() });
        let state = overlaid("istio", of_class, key, &overlay);
        c.update(&state);
        let w = c.writes(&state, &template, None, "2026-01-01T00:00:00Z");
        let made = w.objects.iter().any(|(r, _)| r.kind == "Deployment");
        let said = conditions(&w).contains(&"Gateway a/w: Accepted False InvalidParameters".to_string());
        assert!(made != said, "{key}: {overlay}");
        made
    };
    let container = |what: &str| format!("containers: [{{name: istio-proxy, {what}}}]");
    let security = |what: &str| container(&format!("securityContext: {{{what}}}"));
    for pod in [
        "serviceAccountName: admin",
        "serviceAccountName: null",
        "serviceAccount: admin",
        "automountServiceAccountToken: true",
        "automountServiceAccountToken: null",
        "nodeName: n",
        "hostNetwork: true",
        "hostPID: true",
        "hostIPC: true",
        "securityContext: {sysctls: [{name: net.core.somaxconn, value: '1'}]}",
        "securityContext: {runAsUser: 0}",
        "securityContext: {seLinuxOptions: {type: spc_t}}",
        "volumes: [{name: v, hostPath: {path: /}}]",
        "volumes: [{name: v, secret: {secretName: s}}]",
        "volumes: [{name: v, projected: {sources: [{secret: {name: s}}]}}]",
        "volumes: [{name: v, projected: {sources: [{serviceAccountToken: {path: t}}]}}]",
        "initContainers: [{name: i, image: x}]",
        "$patch: replace",
        &container("$patch: replace, image: x"),
        &container("ports: [{containerPort: 80, hostPort: 80}]"),
        &container("env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: k}}}]"),
        &container("envFrom: [{secretRef: {name: s}}]"),
        &container("securityContext: null"),
        &security("privileged: true"),
        &security("allowPrivilegeEscalation: true"),
        &security("allowPrivilegeEscalation: null"),
        &security("runAsNonRoot: false"),
        &security("runAsUser: 0"),
        &security("procMount: Unmasked"),
        &security("seccompProfile: {type: Unconfined}"),
        &security("capabilities: {add: [SYS_ADMIN]}"),
        &security("capabilities: {drop: [NET_RAW]}"),
    ] {
        let overlay = format!("spec: {{template: {{spec: {{{pod}}}}}}}");
        let is = [(false, false), (true, false), (false, true)].map(|(c, p)| of("deployment", &overlay, c, p));
        assert_eq!(is, [false, true, true], "{pod}");
    }
    for (key, overlay) in [
        ("deployment", "spec: {template: {metadata: {labels: {gateway.networking.k8s.io/gateway-name: other}}}}"),
        ("deployment", "spec: {selector: {matchLabels: {app: x}}}"),
        ("service", "spec: {selector: {app: x}}"),
        ("service", "spec: {externalIPs: [10.0.0.1]}"),
        ("horizontalPodAutoscaler", "spec: {scaleTargetRef: {name: other}}"),
        ("podDisruptionBudget", "spec: {selector: {matchLabels: {app: x}}}"),
    ] {
        let is = [(false, false), (true, false), (false, true)].map(|(c, p)| of(key, overlay, c, p));
        assert_eq!(is, [false, true, true], "{overlay}");
    }
    for pod in [
        "nodeSelector: {a: b}, tolerations: [{operator: Exists}], priorityClassName: p, hostNetwork: false",
        "volumes: [{name: v, configMap: {name: c}}, {name: e, emptyDir: {}}], imagePullSecrets: [{name: p}]",
        "securityContext: {fsGroup: 1, runAsNonRoot: true}",
        &container("image: other, args: [x], env: [{name: A, value: b}], resources: {limits: {cpu: 4}}"),
        &security("readOnlyRootFilesystem: false, runAsUser: 1000"),
        "containers: [{name: more, image: m, securityContext: {allowPrivilegeEscalation: false, runAsNonRoot: true, capabilities: {drop: [ALL]}, seccompProfile: {type: RuntimeDefault}}}]",
    ] {
        assert!(of("deployment", &format!("spec: {{template: {{spec: {{{pod}}}}}}}"), false, false), "{pod}");
    }
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
    let host =
        |name: &str, port: u16| format!("group: networking.istio.io, kind: Hostname, name: {name}, port: {port}");
    for (parent, backend, more, wanted) in [
        ("name: s", "name: s, port: 80", "", "Accepted=Accepted ResolvedRefs=ResolvedRefs"),
        ("name: s, port: 81", "name: s, port: 80", "", "Accepted=NoMatchingParent ResolvedRefs=ResolvedRefs"),
        ("name: none", "name: s", "", "Accepted=NoMatchingParent ResolvedRefs=ResolvedRefs"),
        ("name: s", "name: none", "", "Accepted=Accepted ResolvedRefs=BackendNotFound"),
        ("name: s", "name: s, port: 81", "", "Accepted=Accepted ResolvedRefs=BackendNotFound"),
        ("name: s", &host("s.a.svc.cluster.local", 80), "", "Accepted=Accepted ResolvedRefs=ResolvedRefs"),
        ("name: s", &host("s.a.svc.cluster.local", 81), "", "Accepted=Accepted ResolvedRefs=BackendNotFound"),
        ("name: s", &host("x.example", 80), "", "Accepted=Accepted ResolvedRefs=BackendNotFound"),
        ("name: s", "name: s, kind: Pod", "", "Accepted=Accepted ResolvedRefs=InvalidKind"),
        ("name: s", "name: t, namespace: b, port: 80", "", "Accepted=Accepted ResolvedRefs=RefNotPermitted"),
        ("name: s", "name: t, namespace: b, port: 80", grant, "Accepted=Accepted ResolvedRefs=ResolvedRefs"),
        (
            "name: s",
            "name: s, port: 80}], filters: [{type: RequestMirror, requestMirror: {backendRef: {name: none, port: 80}}",
            "",
            "Accepted=Accepted ResolvedRefs=BackendNotFound",
        ),
    ] {
        // Only of a service that is there it can be said.
        let waypoint = if parent == "name: none" { "" } else { " ResolvedWaypoints=MissingUseWaypointLabel" };
        let wanted = format!("{wanted}{waypoint}");
        assert_eq!(said(&(route(parent, backend) + more)), Some(wanted), "{parent} {backend}");
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

/// What a delegate does not say, the rule that delegates to it does; its hosts are those of its own namespace.
#[test]
fn a_delegate_is_merged_into_the_rule_that_names_it() {
    let service = |ns: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: {ns}}}\nspec: {{clusterIP: 10.96.0.1, ports: [{{port: 80}}]}}\n---\n"
        )
    };
    let root = "timeout: 3s, retries: {attempts: 7, perTryTimeout: 1s, retryOn: 5xx}, headers: {request: {set: {x-root: y}}}, fault: {delay: {fixedDelay: 1s, percentage: {value: 5}}}, corsPolicy: {allowOrigins: [{exact: root}]}, mirrors: [{destination: {host: s}}], rewrite: {uri: /root}";
    let leaf = "timeout: 4s, retries: {attempts: 0}, headers: {response: {set: {x-leaf: y}}}, fault: {delay: {fixedDelay: 2s, percentage: {value: 5}}}, corsPolicy: {allowOrigins: [{exact: leaf}]}, mirror: {host: s}, mirrors: [{destination: {host: s}, percentage: {value: 1}}], rewrite: {uri: /leaf}";
    let rule = |leaf: &str| {
        let (m, p) = run(&format!(
            "{}{}apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: root, namespace: a}}\nspec: {{hosts: [s], http: [{{match: [{{uri: {{prefix: /d}}}}], delegate: {{name: part, namespace: b}}, {root}}}]}}\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: part, namespace: b}}\nspec: {{http: [{{route: [{{destination: {{host: s}}}}], {leaf}}}]}}\n",
            service("a"),
            service("b")
        ));
        assert!(p.is_empty(), "{p:?}");
        m.routes["a/s.a.svc.cluster.local"].producer.as_ref().unwrap().http[0].clone()
    };
    let own = "b/s.b.svc.cluster.local";
    let r = rule("");
    assert_eq!((r.timeout_ms, r.retry.as_ref().map(|r| (r.attempts, r.server_error))), (3000, Some((7, true))));
    assert_eq!((r.request.unwrap().set[0].name.as_str(), r.answer), ("x-root", None));
    assert_eq!(r.fault.unwrap().delay_ms, 1000);
    assert!(format!("{:?}", r.cors.unwrap().origins).contains("root"));
    assert!(format!("{:?}", r.rewrite.unwrap()).contains("/root"));
    assert_eq!(r.destinations[0].service, own);
    // The mirror of the root is the root's service.
    assert_eq!((r.mirrors.len(), r.mirrors[0].to.as_ref().unwrap().service.as_str()), (1, "a/s.a.svc.cluster.local"));
    let r = rule(leaf);
    assert_eq!((r.timeout_ms, r.retry), (4000, None));
    assert_eq!((r.request, r.answer.unwrap().set[0].name.as_str()), (None, "x-leaf"));
    assert_eq!(r.fault.unwrap().delay_ms, 2000);
    assert!(format!("{:?}", r.cors.unwrap().origins).contains("leaf"));
    assert!(format!("{:?}", r.rewrite.unwrap()).contains("/leaf"));
    let mirrors: Vec<_> = r.mirrors.iter().map(|m| (m.to.as_ref().unwrap().service.as_str(), m.per_million)).collect();
    assert_eq!(mirrors, [(own, 10_000), (own, 1_000_000)]);
}

const INGRESS: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: gw, namespace: edge, labels: {istio: ingressgateway}}\nspec: {nodeName: n}\nstatus: {phase: Running, podIPs: [{ip: 10.0.0.9}], conditions: [{type: Ready, status: 'True'}]}\n---\n";
const SHOP: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n---\n";

/// Istio's Gateway for the pods of [`INGRESS`].
fn servers(name: &str, list: &[(u16, &str)]) -> String {
    let one = |(i, (port, host)): (usize, &(u16, &str))| {
        format!("{{port: {{number: {port}, name: p{i}, protocol: HTTP}}, hosts: ['{host}']}}")
    };
    let all: Vec<String> = list.iter().enumerate().map(one).collect();
    format!(
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: a}}\nspec: {{selector: {{istio: ingressgateway}}, servers: [{}]}}\n---\n",
        all.join(", ")
    )
}

fn virtual_service(meta: &str, spec: &str) -> String {
    format!("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{{meta}}}\nspec: {{{spec}}}\n---\n")
}

/// What the names of the virtual hosts of a gateway's port begin with.
fn virtual_hosts(m: &Model, port: u32) -> String {
    let listeners = &m.gateways["edge/gw"].listeners;
    let mut all: Vec<_> = listeners.iter().filter(|l| l.port == port).map(|l| l.routes.clone()).collect();
    all.dedup();
    assert_eq!(all.len(), 1, "{listeners:?}");
    all.remove(0)
}

/// Where the rules of a table come from, in order.
fn origins(table: Option<&karst_api::route::Table>) -> Vec<String> {
    let name = |o: &str| o.trim_start_matches("VirtualService a/").to_string();
    table.into_iter().flat_map(|t| &t.http).map(|r| name(&r.origin)).collect()
}

/// Of one port's servers, whichever Gateways they are of, the routes of a host are one list: the oldest first, but what matches
/// everything last. Istio's httpbin and helloworld samples are like that.
#[test]
fn servers_of_a_port_share_their_virtual_hosts() {
    for (httpbin, helloworld) in [("2024", "2025"), ("2025", "2024")] {
        let text = [
            INGRESS,
            SHOP,
            &servers("httpbin-gateway", &[(80, "*")]),
            &servers("helloworld-gateway", &[(80, "*"), (80, "x.com")]),
            &virtual_service(
                &format!("name: httpbin, namespace: a, creationTimestamp: '{httpbin}'"),
                "hosts: ['*'], gateways: [httpbin-gateway], http: [{route: [{destination: {host: s}}]}]",
            ),
            &virtual_service(
                &format!("name: hello, namespace: a, creationTimestamp: '{helloworld}'"),
                "hosts: ['*'], gateways: [helloworld-gateway, httpbin-gateway], http: [{match: [{uri: {exact: /hello}}], route: [{destination: {host: s}}]}]",
            ),
        ]
        .concat();
        let (m, p) = run(&text);
        assert!(p.is_empty(), "{p:?}");
        assert_eq!(m.gateways["edge/gw"].listeners.len(), 3);
        let routes = virtual_hosts(&m, 80);
        let all = m.routes[&format!("{routes}/*")].producer.as_ref();
        assert_eq!(origins(all), ["hello http[0]", "httpbin http[0]"], "httpbin {httpbin}");
        // A longer host has its own list: that of whoever is bound there.
        let own = m.routes[&format!("{routes}/x.com")].producer.as_ref();
        assert_eq!(origins(own), ["hello http[0]"]);
    }
}

/// Within the mesh the longest host wins, then what does not match everything, then the older one.
#[test]
fn virtual_services_in_the_mesh_are_merged() {
    let vs = |name: &str, host: &str, rules: &str| {
        virtual_service(
            &format!("name: {name}, namespace: a, creationTimestamp: '{name}'"),
            &format!("hosts: ['{host}'], {rules}"),
        )
    };
    let all = "http: [{route: [{destination: {host: s}}]}]";
    let api = "http: [{match: [{uri: {prefix: /api}}], route: [{destination: {host: s}}]}]";
    let of = |parts: &[String], service: &str| {
        let (m, p) = run(&(SHOP.to_string() + &SHOP.replace("name: s,", "name: t,") + &parts.concat()));
        assert!(p.is_empty(), "{p:?}");
        origins(m.routes.get(&format!("a/{service}.a.svc.cluster.local")).and_then(|r| r.producer.as_ref()))
    };
    assert_eq!(of(&[vs("v1", "s", all), vs("v2", "s", api)], "s"), ["v2 http[0]", "v1 http[0]"]);
    let wide = vs("v0", "*.svc.cluster.local", all);
    let near = vs("v1", "*.a.svc.cluster.local", all);
    let own = vs("v2", "s", api);
    let three = [wide, near, own];
    assert_eq!((of(&three, "s"), of(&three, "t")), (vec!["v2 http[0]".into()], vec!["v1 http[0]".to_string()]));
    assert_eq!(of(&three[..1], "t"), ["v0 http[0]"]);
    // Names in TLS hellos, too.
    let tls = |name: &str, sni: &str| {
        vs(name, "s", &format!("tls: [{{match: [{{sniHosts: [{sni}]}}], route: [{{destination: {{host: s}}}}]}}]"))
    };
    let (m, _) = run(&(SHOP.to_string() + &tls("v1", "'*.com', '*'") + &tls("v2", "a.com, '*.b.com'")));
    let table = m.routes["a/s.a.svc.cluster.local"].producer.clone().unwrap();
    let names: Vec<_> = table.tcp.iter().map(|r| r.sni.join(" ")).collect();
    assert_eq!(names, ["a.com", "*.b.com", "*.com", "*"]);
}

/// Connections, as requests: Gateway API before VirtualServices, however old; but the longer name in the hello comes first.
#[test]
fn routes_of_gateway_api_come_first_for_connections_too() {
    let tls = |kind: &str, version: &str, names: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/{version}\nkind: {kind}\nmetadata: {{name: r, namespace: a, creationTimestamp: '2025'}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: s}}], {names} rules: [{{backendRefs: [{{name: s, port: 80}}]}}]}}\n"
        )
    };
    let old = |rules: &str| {
        virtual_service("name: v, namespace: a, creationTimestamp: '2024'", &format!("hosts: [s], {rules}"))
    };
    let (all, to) = ("tcp: [{route: [{destination: {host: s}}]}]", "route: [{destination: {host: s}}]");
    let name = |n: &str| format!("tls: [{{match: [{{sniHosts: ['{n}']}}], {to}}}]");
    let (tcp, named) = (tls("TCPRoute", "v1alpha2", ""), tls("TLSRoute", "v1alpha2", "hostnames: ['*.com'],"));
    let (api, istio) = (|kind: &str| format!("{kind} a/r rule 0"), |entry: &str| format!("VirtualService a/v {entry}"));
    for (own, other, wanted) in [
        (old(all), &tcp, [api("TCPRoute"), istio("tcp[0]")]),
        (old(&name("*.com")), &named, [api("TLSRoute"), istio("tls[0]")]),
        (old(&name("a.com")), &named, [istio("tls[0]"), api("TLSRoute")]),
        (old(all), &named, [api("TLSRoute"), istio("tcp[0]")]),
    ] {
        let (m, p) = run(&[SHOP, &own, other].concat());
        assert!(p.is_empty(), "{p:?}");
        let table = m.routes["a/s.a.svc.cluster.local"].producer.clone().unwrap();
        assert_eq!(table.tcp.iter().map(|r| r.origin.clone()).collect::<Vec<_>>(), wanted, "{own}{other}");
    }
}

/// Of routes at one listener those with the longer host come first, however exact the paths of others are.
#[test]
fn routes_of_the_longer_host_come_first() {
    let route = |name: &str, hosts: &str, path: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: a, creationTimestamp: '{name}'}}\nspec: {{parentRefs: [{{name: g}}], hostnames: [{hosts}], rules: [{{matches: [{{path: {{value: {path}}}}}], backendRefs: [{{name: s, port: 80}}]}}]}}\n---\n"
        )
    };
    let gateway = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: g, namespace: a}\nspec: {gatewayClassName: istio, listeners: [{name: l, port: 80, protocol: HTTP, hostname: a.example.com}]}\n---\n";
    let text = [
        SHOP,
        gateway,
        &route("r1", "", "/long/path"),
        &route("r2", "'*.example.com'", "/longer/path"),
        &route("r3", "a.example.com", "/"),
    ]
    .concat();
    let (m, p) = run(&text);
    assert!(p.is_empty(), "{p:?}");
    let all = origins(m.routes["~Gateway/a/g/l/a.example.com"].producer.as_ref());
    assert_eq!(all, ["r3", "r2", "r1"].map(|r| format!("HTTPRoute a/{r} rule 0")));
}

/// A server's port is the Service's; the pod listens where the Service sends what comes there.
#[test]
fn ports_of_gateways_are_those_of_their_services() {
    let service = |ports: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: gw, namespace: edge}}\nspec: {{clusterIP: 10.96.0.9, selector: {{istio: ingressgateway}}, ports: [{ports}]}}\n---\n"
        )
    };
    let bound = |port: u16| {
        virtual_service(
            "name: v, namespace: a",
            &format!(
                "hosts: [x.com], gateways: [gw], http: [{{match: [{{port: {port}}}], route: [{{destination: {{host: s}}}}]}}]"
            ),
        )
    };
    let of = |services: &str, number: u16| {
        let text = [INGRESS, SHOP, services, &servers("gw", &[(number, "*")]), &bound(number)].concat();
        let (m, p) = run(&text);
        let listeners = &m.gateways["edge/gw"].listeners;
        let ports: Vec<_> = listeners.iter().map(|l| (l.port, l.called)).collect();
        // What a rule calls the port is that of the Gateway.
        let routes = virtual_hosts(&m, ports[0].0);
        let rule = &m.routes[&format!("{routes}/x.com")].producer.as_ref().unwrap().http[0];
        assert!(rule.ports.is_empty(), "{rule:?}");
        let said: Vec<_> = conditions(&written(&text)).into_iter().filter(|c| c.starts_with("Gateway ")).collect();
        (ports, p.iter().map(|p| p.field.clone()).collect::<Vec<_>>(), said)
    };
    let none: Vec<String> = vec![];
    let mapped = service("{name: http, port: 80, targetPort: 8080}");
    assert_eq!(of(&mapped, 80), (vec![(8080, 80)], none.clone(), none.clone()));
    // Istio's newer samples name the pod's port.
    assert_eq!(of(&mapped, 8080), (vec![(8080, 0)], none.clone(), none.clone()));
    assert_eq!(of("", 80), (vec![(80, 0)], none.clone(), none.clone()));
    let reverse = service("{name: http, port: 8080, targetPort: 80}");
    assert_eq!(of(&reverse, 8080), (vec![(80, 8080)], none.clone(), none.clone()));
    let out = mapped
        .replace("name: gw,", "name: gw, labels: {experimental.istio.io/disable-gateway-port-translation: 'true'},");
    assert_eq!(of(&out, 80).0, [(80, 0)]);
    // Two Services: both.
    let two = mapped.clone() + &service("{name: http, port: 80, targetPort: 8081}").replace("name: gw,", "name: gw2,");
    assert_eq!(of(&two, 80).0, [(8080, 80), (8081, 80)]);
    // A Gateway of Gateway API that somebody else runs: the Service that it names must have the ports.
    let named = |port: u16| {
        let text = format!(
            "{mapped}apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: g, namespace: edge}}\nspec: {{gatewayClassName: istio, addresses: [{{type: Hostname, value: gw.edge.svc.cluster.local}}], listeners: [{{name: l, port: {port}, protocol: HTTP}}]}}\n"
        );
        conditions(&written(&text)).into_iter().find(|c| c.contains("Programmed")).unwrap()
    };
    assert_eq!(named(80), "Gateway edge/g: Programmed True Programmed");
    assert_eq!(named(81), "Gateway edge/g: Programmed False AddressNotUsable");
    // No Service has it: it is listened on all the same, and told.
    let (ports, fields, said) = of(&mapped, 9000);
    assert_eq!((ports, fields), (vec![(9000, 0)], vec!["spec.servers[0].port.number".to_string()]));
    assert_eq!(said, ["Gateway a/gw: karst.io/PortsMapped False PortNotInService"]);
    // Requests and bytes at one port of the pod: the first has it, and the other says so.
    let text = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: gw, namespace: a}\nspec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: h, protocol: HTTP}, hosts: ['*']}, {port: {number: 8080, name: t, protocol: TCP}, hosts: ['*']}]}\n";
    let text = [INGRESS, &mapped, text].concat();
    let (m, p) = run(&text);
    let listeners = &m.gateways["edge/gw"].listeners;
    assert_eq!(listeners.iter().map(|l| (l.port, l.called)).collect::<Vec<_>>(), [(8080, 80)]);
    let want = "Gateway a/gw: spec.servers[1].port.number: maps to port 8080 of pod edge/gw, which spec.servers[0] of Gateway a/gw already uses with another protocol: use another port [KARST-0507]";
    assert_eq!(p.iter().map(|p| p.to_string().split_once(": ").unwrap().1.to_string()).collect::<Vec<_>>(), [want]);
    let said: Vec<_> = conditions(&written(&text)).into_iter().filter(|c| c.starts_with("Gateway ")).collect();
    assert_eq!(said, ["Gateway a/gw: karst.io/PortsMapped False PortConflict"]);
    // The same for listeners of Gateway API.
    let text = [
        INGRESS.replace("istio: ingressgateway", "gateway.networking.k8s.io/gateway-name: g").as_str(),
        &mapped.replace("istio: ingressgateway", "gateway.networking.k8s.io/gateway-name: g"),
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: g, namespace: edge}\nspec: {gatewayClassName: istio, listeners: [{name: h, port: 80, protocol: HTTP}, {name: t, port: 8080, protocol: TCP}]}\n",
    ]
    .concat();
    let w = written(&text);
    let status = &w.statuses.iter().find(|s| s.to.kind == "Gateway").unwrap().status;
    let reasons = |of: &serde_json::Value| -> Vec<String> {
        let all = of["conditions"].as_array().unwrap().iter();
        all.map(|c| format!("{} {} {}", c["type"], c["status"], c["reason"]).replace('"', "")).collect()
    };
    assert!(reasons(status).contains(&"Accepted True ListenersNotValid".to_string()), "{status}");
    let [h, t] = [0usize, 1].map(|i| reasons(&status["listeners"][i]));
    assert_eq!(h[..2], ["Accepted True Accepted", "Programmed True Programmed"]);
    assert_eq!(t[..2], ["Accepted False PortUnavailable", "Programmed False Invalid"]);
    let why = status["listeners"][1]["conditions"][0]["message"].as_str().unwrap();
    assert!(
        why.starts_with("port 8080 maps to port 8080 of pod edge/gw, which listener h of Gateway edge/g already uses"),
        "{why}"
    );
}

/// Gateways are found by every name that Istio knows, by VirtualServices that are exported to their pods' namespace.
#[test]
fn virtual_services_are_bound_by_name_and_export() {
    let bound = |gateway: &str, export: &str| {
        let spec = format!(
            "hosts: [x.com], gateways: ['{gateway}'], exportTo: [{export}], http: [{{match: [{{gateways: ['{gateway}']}}], route: [{{destination: {{host: s}}}}]}}]"
        );
        let text =
            [INGRESS, SHOP, &servers("gw", &[(80, "*")]), &virtual_service("name: v, namespace: a", &spec)].concat();
        let (m, p) = run(&text);
        assert!(p.is_empty(), "{p:?}");
        m.routes.iter().any(|(k, r)| k.ends_with("/x.com") && r.producer.as_ref().is_some_and(|t| t.http.len() == 1))
    };
    for name in ["gw", "./gw", "a/gw", "gw.a", "gw.a.svc.cluster.local"] {
        assert!(bound(name, ""), "{name}");
    }
    for name in ["b/gw", "gw.b.svc.cluster.local", "other"] {
        assert!(!bound(name, ""), "{name}");
    }
    for (export, wanted) in
        [("'*'", true), ("edge", true), ("'.'", false), ("b", false), ("'~'", false), ("'.', edge", true)]
    {
        assert_eq!(bound("gw", export), wanted, "{export}");
    }
}

/// Whose routes count for whom, by `exportTo`.
#[test]
fn virtual_services_are_for_whom_they_are_exported_to() {
    let vs = |name: &str, ns: &str, export: &str| {
        virtual_service(
            &format!("name: {name}, namespace: {ns}"),
            &format!(
                "hosts: [s.a.svc.cluster.local], {export} http: [{{match: [{{uri: {{prefix: /{name}}}}}], route: [{{destination: {{host: s.a.svc.cluster.local}}}}]}}]"
            ),
        )
    };
    // For everybody, and by callers' namespace.
    let of = |parts: &[String]| {
        let (m, p) = run(&(SHOP.to_string() + &parts.concat()));
        assert!(p.is_empty(), "{p:?}");
        let r = m.routes.get("a/s.a.svc.cluster.local").map(|r| (**r).clone()).unwrap_or_default();
        let name = |t: Option<&karst_api::route::Table>| origins(t).join(" ").replace(" http[0]", "");
        let consumers = r.consumers.iter().map(|c| format!("{}: {}", c.namespace, name(c.table.as_ref())));
        [name(r.producer.as_ref())].into_iter().chain(consumers).collect::<Vec<_>>()
    };
    let all = || vs("all", "a", "");
    assert_eq!(of(&[all()]), ["all"]);
    assert_eq!(of(&[all(), vs("own", "a", "exportTo: ['.'],")]), ["all", "a: all own"]);
    assert_eq!(of(&[all(), vs("two", "a", "exportTo: [b, c],")]), ["all", "b: all two", "c: all two"]);
    assert_eq!(of(&[vs("two", "a", "exportTo: [b],")]), ["", "b: two"]);
    assert_eq!(of(&[all(), vs("none", "a", "exportTo: ['~'],")]), ["all"]);
    // Another namespace's are for its own callers, if they are for them at all.
    let consumer = |export: &str| of(&[all(), vs("mine", "b", export)]);
    assert_eq!(consumer(""), ["all", "b: VirtualService b/mine"]);
    assert_eq!(consumer("exportTo: ['.'],"), ["all", "b: VirtualService b/mine"]);
    assert_eq!(consumer("exportTo: [a],"), ["all"]);
    // Where nothing is said the mesh's default counts.
    let mut mesh = mesh();
    mesh.virtual_services_are_for = vec![".".into()];
    let objects = parse::file("t.yaml".as_ref(), &(SHOP.to_string() + &all())).unwrap();
    let state = State { objects: objects.into_iter().map(std::sync::Arc::new).collect(), ..State::default() };
    let (m, _) = compile(&state, &mesh);
    let r = &m.routes["a/s.a.svc.cluster.local"];
    assert!(r.producer.is_none() && r.consumers[0].namespace == "a");
}

/// The client's namespace first, then the service's, then the root namespace; within it the longest host, and of these the oldest.
#[test]
fn destination_rules_are_found_as_in_istio() {
    let rule = |ns: &str, name: &str, host: &str, export: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}, namespace: {ns}, creationTimestamp: '{name}'}}\nspec: {{host: '{host}', {export} subsets: [{{name: {ns}-{name}, labels: {{v: '1'}}}}]}}\n---\n"
        )
    };
    const FULL: &str = "s.a.svc.cluster.local";
    let of = |parts: &[String]| {
        let (m, p) = run(&(SHOP.to_string() + &parts.concat()));
        assert!(p.is_empty(), "{p:?}");
        let b = m.backends.get("a/s.a.svc.cluster.local").map(|b| (**b).clone()).unwrap_or_default();
        let names = |all: &[karst_api::route::Subset]| all.iter().map(|s| s.name.clone()).collect::<Vec<_>>().join(" ");
        let clients = b.clients.iter().map(|c| format!("{}: {}", c.namespace, names(&c.subsets)));
        [names(&b.subsets)].into_iter().chain(clients).collect::<Vec<_>>()
    };
    let (own, root) = (|n: &str| rule("a", n, "s", ""), |n: &str| rule("istio-system", n, FULL, ""));
    let client = |n: &str| rule("b", n, FULL, "");
    assert_eq!(of(&[own("1")]), ["a-1"]);
    assert_eq!(of(&[root("1")]), ["istio-system-1"]);
    assert_eq!(of(&[root("1"), own("2")]), ["a-2"], "the service's own stand alone");
    assert_eq!(of(&[own("1"), own("2")]), ["a-1 a-2"], "of one host: the oldest, and what others add");
    assert_eq!(of(&[own("1"), root("1"), client("3")]), ["a-1", "b: b-3"]);
    assert_eq!(of(&[client("3")]), ["", "b: b-3"]);
    // The longest host, however old.
    let wide = rule("a", "0", "*.svc.cluster.local", "");
    assert_eq!(of(&[wide.clone(), own("1")]), ["a-1"]);
    assert_eq!(of(&[wide.clone(), rule("a", "1", "*.a.svc.cluster.local", "")]), ["a-1"]);
    assert_eq!(of(&[wide, root("1")]), ["a-0"], "the namespace comes before the host");
    // Exported: to its own namespace, to another, to nobody.
    assert_eq!(of(&[rule("a", "1", "s", "exportTo: ['.'],"), root("2")]), ["istio-system-2", "a: a-1"]);
    assert_eq!(of(&[rule("a", "1", "s", "exportTo: [c],")]), ["", "c: a-1"]);
    assert_eq!(of(&[rule("b", "1", FULL, "exportTo: [c],")]), [""], "not its own clients'");
    assert_eq!(
        of(&[rule("istio-system", "1", FULL, "exportTo: ['.'],"), own("2")]),
        ["a-2", "istio-system: istio-system-1"]
    );
    assert_eq!(of(&[root("1"), own("2")]), ["a-2"], "the root namespace's own clients have the service's, too");
    // For some clients only: for none, rather than for all (of the namespace).
    let some = "workloadSelector: {matchLabels: {app: batch}},";
    assert_eq!(of(&[own("1"), rule("b", "2", FULL, some)]), ["a-1"]);
    assert_eq!(of(&[rule("a", "1", "s", some), root("2")]), ["istio-system-2"]);
}

/// Istio's egress task: subsets of a gateway in another namespace, said beside the application.
#[test]
fn an_egress_gateway_has_the_subsets_of_its_clients() {
    let text = [
        "apiVersion: v1\nkind: Service\nmetadata: {name: istio-egressgateway, namespace: istio-system}\nspec: {clusterIP: 10.96.0.8, selector: {istio: egressgateway}, ports: [{name: http2, port: 80, targetPort: 8080}]}\n---\n",
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: cnn, namespace: default}\nspec: {hosts: [edition.cnn.com], resolution: DNS, ports: [{number: 80, name: http-port, protocol: HTTP}]}\n---\n",
        &INGRESS.replace("name: gw, namespace: edge, labels: {istio: ingressgateway}", "name: gw, namespace: istio-system, labels: {istio: egressgateway}"),
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: istio-egressgateway, namespace: default}\nspec: {selector: {istio: egressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [edition.cnn.com]}]}\n---\n",
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: egressgateway-for-cnn, namespace: default}\nspec: {host: istio-egressgateway.istio-system.svc.cluster.local, subsets: [{name: cnn}]}\n---\n",
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: direct-cnn-through-egress-gateway, namespace: default}\nspec: {hosts: [edition.cnn.com], gateways: [istio-egressgateway, mesh], http: [{match: [{gateways: [mesh], port: 80}], route: [{destination: {host: istio-egressgateway.istio-system.svc.cluster.local, subset: cnn, port: {number: 80}}, weight: 100}]}, {match: [{gateways: [istio-egressgateway], port: 80}], route: [{destination: {host: edition.cnn.com, port: {number: 80}}, weight: 100}]}]}\n",
    ]
    .concat();
    let (m, p) = run(&text);
    assert!(p.is_empty(), "{p:?}");
    const GATEWAY: &str = "istio-system/istio-egressgateway.istio-system.svc.cluster.local";
    let to = |table: Option<&karst_api::route::Table>| {
        let d = table.unwrap().http[0].destinations[0].clone();
        (d.service, d.port, d.subset, d.refuse_status)
    };
    let routes = &m.routes["default/edition.cnn.com"];
    assert_eq!(to(routes.producer.as_ref()), (GATEWAY.into(), 80, "cnn".into(), 0));
    let backend = &m.backends[GATEWAY];
    assert!(backend.rules("default").subsets.iter().any(|s| s.name == "cnn"));
    assert!(backend.rules("other").subsets.is_empty());
    // The gateway listens where its Service sends port 80, and sends on.
    let listener = &m.gateways["istio-system/gw"].listeners[0];
    assert_eq!((listener.port, listener.called), (8080, 80));
    let on = &m.routes[&format!("{}/edition.cnn.com", listener.routes)];
    assert_eq!(to(on.producer.as_ref()), ("default/edition.cnn.com".into(), 80, String::new(), 0));
}

/// A rule of a VirtualService that cannot be read takes no other with it, and is not the default.
#[test]
fn a_virtual_service_is_read_rule_by_rule() {
    let of = |rules: &str| -> Vec<(String, u32)> {
        let (m, p) =
            run(&(SHOP.to_string() + &virtual_service("name: v, namespace: a", &format!("hosts: [s], {rules}"))));
        assert_eq!(p.len(), 1, "{p:?}");
        let table = m.routes["a/s.a.svc.cluster.local"].producer.clone().unwrap();
        let http = table.http.iter().map(|r| {
            let path =
                r.r#match.as_ref().and_then(|m| m.path.as_ref()).map_or(String::new(), |p| format!("{:?}", p.kind));
            (path, r.response.as_ref().map_or(200, |r| r.status))
        });
        http.chain(table.tcp.iter().map(|r| (String::new(), r.destinations[0].refuse_status))).collect()
    };
    let path = |p: &str| format!("Some(Prefix(\"{p}\"))");
    let fine = "{match: [{uri: {prefix: /a}}], route: [{destination: {host: s}}]}";
    let late = "{match: [{uri: {prefix: /b}}], timeout: soon, route: [{destination: {host: s}}]}";
    assert_eq!(of(&format!("http: [{late}, {fine}]")), [(path("/b"), 503), (path("/a"), 200)]);
    let pattern = "{match: [{uri: {regex: '('}}], route: [{destination: {host: s}}]}";
    assert_eq!(of(&format!("http: [{pattern}, {fine}]")), [(path("/a"), 200), (String::new(), 503)]);
    assert_eq!(of("tcp: [{route: []}]"), [(String::new(), 503)]);
}

/// What comes behind a rule for everything is not reached, as in Istio: in its own VirtualService, at its ports, in the mesh and at
/// gateways. Other VirtualServices' rules are.
#[test]
fn a_rule_for_everything_ends_its_virtual_service() {
    let service = SHOP.replace("ports: [{port: 80}]", "ports: [{name: a, port: 80}, {name: b, port: 81}]");
    let to = "route: [{destination: {host: s, port: {number: 80}}}]";
    let api = format!("{{match: [{{uri: {{prefix: /api}}}}], {to}}}");
    let closed = "{directResponse: {status: 503}}";
    let at = |port: u16| format!("{{match: [{{port: {port}}}], {to}}}");
    let other = virtual_service(
        "name: other, namespace: a, creationTimestamp: '2025'",
        &format!("hosts: [s, x.com], gateways: [gw, mesh], http: [{{match: [{{uri: {{exact: /o}}}}], {to}}}]"),
    );
    let part = virtual_service("name: part, namespace: a", &format!("http: [{api}, {{{to}}}, {api}]"));
    // Of each rule where it comes from, and its ports.
    let of = |rules: &str, more: &str| {
        let spec = format!("hosts: [s, x.com], gateways: [gw, mesh], http: [{rules}]");
        let own = virtual_service("name: v, namespace: a, creationTimestamp: '2024'", &spec);
        let (m, p) = run(&[INGRESS, &service, &servers("gw", &[(80, "*")]), &own, more].concat());
        assert!(p.is_empty(), "{p:?}");
        let gateway = format!("{}/x.com", virtual_hosts(&m, 80));
        ["a/s.a.svc.cluster.local", &gateway].map(|key| {
            let table = m.routes[key].producer.as_ref();
            let ports = table.iter().flat_map(|t| &t.http).map(|r| format!("{:?}", r.ports)).collect::<Vec<_>>();
            origins(table).iter().zip(ports).map(|(o, p)| format!("{o} {p}").replace(" []", "")).collect::<Vec<_>>()
        })
    };
    for (rules, more, mesh, gateway) in [
        (format!("{closed}, {api}"), "", vec!["v http[0]"], vec!["v http[0]"]),
        (format!("{{match: [{{uri: {{prefix: /}}}}], {to}}}, {api}"), "", vec!["v http[0]"], vec!["v http[0]"]),
        (format!("{api}, {closed}, {api}"), "", vec!["v http[0]", "v http[1]"], vec!["v http[0]", "v http[1]"]),
        (
            format!("{{match: [{{uri: {{prefix: /}}, method: {{exact: GET}}}}], {to}}}, {api}"),
            "",
            vec!["v http[0]", "v http[1]"],
            vec!["v http[0]", "v http[1]"],
        ),
        (format!("{}, {api}", at(80)), "", vec!["v http[1] [81]", "v http[0] [80]"], vec!["v http[0]"]),
        (format!("{}, {api}", at(81)), "", vec!["v http[1] [80]", "v http[0] [81]"], vec!["v http[1]"]),
        (
            format!("{}, {}, {api}, {{{to}}}", at(80), at(81)),
            "",
            vec!["v http[0] [80]", "v http[1] [81]"],
            vec!["v http[0]"],
        ),
        (format!("{closed}, {api}"), &other, vec!["other http[0]", "v http[0]"], vec!["other http[0]", "v http[0]"]),
        (
            format!("{{delegate: {{name: part}}}}, {api}"),
            &part,
            vec!["part http[0]", "part http[1]"],
            vec!["part http[0]", "part http[1]"],
        ),
    ] {
        assert_eq!(of(&rules, more), [mesh, gateway], "{rules}");
    }
}

/// One match that cannot be read takes its rule with it, and no other rule: the rule's other matches are refused where they stand, as in
/// Gateway API, what is left of the match behind all other rules, in the mesh and at gateways. So is a condition that is not executed.
#[test]
fn a_match_that_cannot_be_read_is_nobodys() {
    let to = "route: [{destination: {host: s, port: {number: 80}}}]";
    let show = |m: &Model, key: &str| -> Vec<String> {
        let table = m.routes[key].producer.clone().unwrap();
        let http = table.http.iter().map(|r| {
            let m = r.r#match.as_ref().unwrap();
            let path = m.path.as_ref().and_then(|p| p.kind.as_ref()).map_or("any".into(), |p| format!("{p:?}"));
            format!("{path}={}", r.response.as_ref().map_or(200, |r| r.status))
        });
        let tcp = table.tcp.iter().map(|r| {
            let what = if r.sni.is_empty() { format!("{:?}", r.ports) } else { r.sni.join(" ") };
            format!("{what}={}", r.destinations[0].refuse_status)
        });
        http.chain(tcp).collect()
    };
    let gateway = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: gw, namespace: a}\nspec: {selector: {istio: ingressgateway}, servers: [SERVER]}\n---\n";
    let of = |rules: &str, server: &str, more: &str| {
        let spec = format!("hosts: [s, x.com], gateways: [gw, mesh], {rules}");
        let own = virtual_service("name: v, namespace: a", &spec);
        let (m, p) = run(&[INGRESS, SHOP, &gateway.replace("SERVER", server), &own, more].concat());
        let key = format!(
            "{}/{}",
            m.gateways["edge/gw"].listeners[0].routes,
            if server.contains("TCP") { "*" } else { "x.com" }
        );
        let fields: Vec<String> = p.into_iter().map(|p| p.field).collect();
        (fields, show(&m, "a/s.a.svc.cluster.local"), show(&m, &key))
    };
    let part =
        virtual_service("name: part, namespace: a", &format!("http: [{{match: [{{uri: {{prefix: /d/e}}}}], {to}}}]"));
    let web = format!("{{match: [{{uri: {{prefix: /web}}}}], {to}}}");
    let pattern = "{uri: {regex: '('}}";
    let (here, all) = ("spec.http[0].match[0]", "any=503".to_string());
    let prefix = |p: &str, status: u32| format!("Prefix(\"{p}\")={status}");
    for (rules, more, field, wanted) in [
        (
            format!("{{match: [{{uri: {{prefix: /admin}}}}, {pattern}], directResponse: {{status: 403}}}}, {web}"),
            "",
            "spec.http[0].match[1].uri.regex".to_string(),
            vec![prefix("/admin", 503), prefix("/web", 200), all.clone()],
        ),
        (
            format!("{{match: [{pattern}], {to}}}, {{{to}}}"),
            "",
            format!("{here}.uri.regex"),
            vec!["any=200".into(), all.clone()],
        ),
        (
            format!("{{match: [{{uri: {{prefix: /a}}, headers: {{'a b': {{exact: x}}}}}}], {to}}}, {web}"),
            "",
            format!("{here}.headers[a b]"),
            vec![prefix("/web", 200), prefix("/a", 503)],
        ),
        (
            format!("{{match: [{{uri: {{prefix: /a}}, withoutHeaders: {{b: {{regex: '('}}}}}}], {to}}}"),
            "",
            format!("{here}.withoutHeaders[b].regex"),
            vec![prefix("/a", 503)],
        ),
        (
            format!("{{match: [{{uri: {{prefix: /d}}}}, {pattern}], delegate: {{name: part}}}}, {web}"),
            &part,
            "spec.http[0].match[1].uri.regex".into(),
            vec![prefix("/d", 503), prefix("/web", 200), all.clone()],
        ),
        (
            format!("{{match: [{{uri: {{prefix: /d}}}}], delegate: {{name: part}}, {to}}}, {web}"),
            &part,
            "spec.http[0]".into(),
            vec![prefix("/d", 503), prefix("/web", 200)],
        ),
    ] {
        let http = "{port: {number: 80, name: h, protocol: HTTP}, hosts: ['*']}";
        assert_eq!(of(&format!("http: [{rules}]"), http, more), (vec![field], wanted.clone(), wanted), "{rules}");
    }
    let (tcp, tls) = (
        "{port: {number: 80, name: t, protocol: TCP}, hosts: ['*']}",
        "{port: {number: 443, name: s, protocol: TLS}, tls: {mode: PASSTHROUGH}, hosts: ['*']}",
    );
    let at = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    for (rules, server, fields, mesh, gateway) in [
        (
            format!("tcp: [{{match: [{{sourceSubnet: 10.0.0.0/8}}], {to}}}, {{match: [{{port: 80}}], {to}}}]"),
            tcp,
            at(&["spec.tcp[0].match[0].sourceSubnet"]),
            at(&["[80]=0", "[]=503"]),
            at(&["[]=0", "[]=503"]),
        ),
        (
            format!(
                "tcp: [{{match: [{{destinationSubnets: [10.0.0.0/8], sourceSubnet: 10.0.0.0/8, port: 80}}], {to}}}]"
            ),
            tcp,
            at(&["spec.tcp[0].match[0].destinationSubnets", "spec.tcp[0].match[0].sourceSubnet"]),
            at(&["[80]=503"]),
            at(&["[]=503"]),
        ),
        (
            format!(
                "tls: [{{match: [{{sniHosts: [x.com], destinationSubnets: [10.0.0.0/8]}}], {to}}}, {{match: [{{sniHosts: ['*']}}], {to}}}]"
            ),
            tls,
            at(&["spec.tls[0].match[0].destinationSubnets"]),
            at(&["*=0", "x.com=503"]),
            at(&["*=0", "x.com=503"]),
        ),
        (
            format!("tcp: [{{match: [{{port: 80}}, {{sourceSubnet: 10.0.0.0/8}}], {to}}}]"),
            tcp,
            at(&["spec.tcp[0].match[1].sourceSubnet"]),
            at(&["[80]=503", "[]=503"]),
            at(&["[]=503", "[]=503"]),
        ),
        (
            format!("tls: [{{match: [{{sniHosts: [x.com]}}, {{port: 443}}], {to}}}, {{{to}}}]"),
            tls,
            at(&["spec.tls[0].match[1].sniHosts", "spec.tls[1].match"]),
            at(&["x.com=503", "*=503", "*=503"]),
            at(&["x.com=503", "*=503", "*=503"]),
        ),
    ] {
        assert_eq!(of(&rules, server, ""), (fields, mesh, gateway), "{rules}");
    }
}

/// A Service of type ExternalName is another name: destinations of VirtualServices lead to what it stands for, if the mesh knows
/// that, as in Istio. To Gateway API it is no backend and no parent.
#[test]
fn an_external_name_is_another_name() {
    let alias = |name: &str, of: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: a}}\nspec: {{type: ExternalName, externalName: {of}, ports: [{{port: 80}}]}}\n---\n"
        )
    };
    let entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: b}\nspec: {hosts: [x.example], EXPORTresolution: DNS, ports: [{number: 443, name: tls, protocol: TLS}]}\n---\n";
    let of = |host: &str, more: &str| {
        let to = format!("[{{destination: {{host: {host}}}}}]");
        let rules = format!("http: [{{route: {to}, mirror: {{host: {host}}}}}], tcp: [{{route: {to}}}]");
        let v = virtual_service("name: v, namespace: a", &format!("hosts: [s], {rules}"));
        let text = [SHOP, more, &v].concat();
        let (m, p) = run(&text);
        assert!(p.is_empty(), "{p:?}");
        let table = m.routes["a/s.a.svc.cluster.local"].producer.clone().unwrap();
        let http = table.http[0].destinations.iter().chain(&table.http[0].mirrors[0].to);
        let mut all: Vec<_> = http.chain(&table.tcp[0].destinations).cloned().collect();
        all.iter_mut().for_each(|d| d.weight = 0);
        all.dedup();
        assert_eq!(all.len(), 1, "{all:?}");
        let said = conditions(&written(&text));
        let lost = said.iter().any(|c| c == "VirtualService a/v: ResolvedRefs False HostNotFound");
        assert_eq!(lost, all[0].refuse_status == 503, "{said:?}");
        (all[0].service.clone(), all[0].port, all[0].refuse_status)
    };
    let s = ("a/s.a.svc.cluster.local".to_string(), 80, 0);
    for (host, more) in [
        ("ext", alias("ext", "s.a.svc.cluster.local")),
        ("ext.a", alias("ext", "S.a.svc.cluster.local.")),
        ("ext.a.svc.cluster.local", alias("ext", "two.a.svc.cluster.local") + &alias("two", "s.a.svc.cluster.local")),
    ] {
        assert_eq!(of(host, &more), s, "{host}");
    }
    let open = entry.replace("EXPORT", "");
    assert_eq!(of("ext", &(alias("ext", "x.example") + &open)), ("b/x.example".into(), 443, 0));
    for (of_alias, more) in [
        ("x.example", String::new()),
        ("x.example", entry.replace("EXPORT", "exportTo: ['.'], ")),
        ("ext.a.svc.cluster.local", String::new()),
    ] {
        assert_eq!(of("ext", &(alias("ext", of_alias) + &more)), ("ext".into(), 0, 503), "{of_alias} {more}");
    }
    // Rules for the name are for nobody.
    let v = virtual_service("name: v, namespace: a", "hosts: [ext], http: [{route: [{destination: {host: s}}]}]");
    let (m, _) = run(&[SHOP, &alias("ext", "s.a.svc.cluster.local"), &v].concat());
    assert!(m.routes.is_empty(), "{:?}", m.routes);
    let route = |parent: &str, backend: &str| {
        let text = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: a}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: {parent}}}], rules: [{{backendRefs: [{{{backend}, port: 80}}]}}]}}\n"
        );
        let text = [SHOP, &alias("ext", "s.a.svc.cluster.local"), &text].concat();
        let routes = run(&text).0.routes;
        let refused = |r: &karst_api::route::Routes| r.producer.as_ref().unwrap().http[0].destinations[0].refuse_status;
        let w = written(&text);
        let of = w.statuses.iter().find(|s| s.to.kind == "HTTPRoute").unwrap();
        let all = of.status["parents"][0]["conditions"].as_array().unwrap();
        let reasons: Vec<_> = all.iter().filter_map(|c| c["reason"].as_str().map(String::from)).take(2).collect();
        (routes.values().map(|r| refused(r)).collect::<Vec<_>>(), reasons.join(" "))
    };
    let by_host = "group: networking.istio.io, kind: Hostname, name: ext.a.svc.cluster.local";
    for backend in ["name: ext", by_host] {
        assert_eq!(route("s", backend), (vec![500], "Accepted BackendNotFound".into()), "{backend}");
    }
    assert_eq!(route("ext", "name: s"), (vec![], "NoMatchingParent ResolvedRefs".into()));
}

/// `regex: '*'` is how Istio's users write that a header is there, or is not; it is no regular expression.
#[test]
fn a_star_for_a_regular_expression_means_presence() {
    use karst_api::route::text::Kind;
    let of = |conditions: &str| {
        let rule = format!("http: [{{match: [{{{conditions}}}], route: [{{destination: {{host: s}}}}]}}]");
        let v = virtual_service("name: v, namespace: a", &format!("hosts: [s], {rule}"));
        let (m, p) = run(&(SHOP.to_string() + &v));
        let rule = m.routes["a/s.a.svc.cluster.local"].producer.as_ref().unwrap().http[0].clone();
        (rule.r#match.unwrap(), p)
    };
    for there in ["{}", "{regex: '*'}"] {
        let (m, p) = of(&format!(
            "headers: {{a: {there}, ':method': {there}}}, withoutHeaders: {{b: {there}, ':authority': {there}}}, queryParams: {{c: {there}}}"
        ));
        assert!(p.is_empty(), "{p:?}");
        let named = |all: &[karst_api::route::Named]| {
            let one = |n: &karst_api::route::Named| {
                assert_eq!(n.value.as_ref().unwrap().kind, Some(Kind::Present(true)), "{} {there}", n.name);
                format!("{}{}", if n.invert { "!" } else { "" }, n.name)
            };
            all.iter().map(one).collect::<Vec<_>>()
        };
        assert_eq!(named(&m.headers), ["a", "!host", "!b"]);
        assert_eq!(named(&m.query), ["c"]);
        assert_eq!(m.method.unwrap().kind, Some(Kind::Present(true)));
    }
    // Elsewhere it is a regular expression, and a wrong one.
    let fields: Vec<String> = of("uri: {regex: '*'}, authority: {regex: '*'}").1.into_iter().map(|p| p.field).collect();
    assert_eq!(fields, ["spec.http[0].match[0].uri.regex", "spec.http[0].match[0].authority.regex"]);
}

#[test]
fn origins_are_those_of_one_field() {
    let of = |origins: &str| {
        let rule = format!("http: [{{corsPolicy: {{{origins}}}, route: [{{destination: {{host: s}}}}]}}]");
        let v = virtual_service("name: v, namespace: a", &format!("hosts: [s], {rule}"));
        let (m, p) = run(&(SHOP.to_string() + &v));
        assert!(p.is_empty(), "{p:?}");
        let rule = m.routes["a/s.a.svc.cluster.local"].producer.as_ref().unwrap().http[0].clone();
        rule.cors.unwrap().origins.into_iter().filter_map(|o| o.kind).collect::<Vec<_>>()
    };
    let exact = |o: &str| karst_api::route::text::Kind::Exact(o.into());
    assert_eq!(of("allowOrigin: ['*', 'http://a']"), [exact("*"), exact("http://a")]);
    assert_eq!(of("allowOrigins: [{exact: '*'}]"), [exact("*")]);
    assert_eq!(of("allowOrigins: [{exact: 'http://b'}], allowOrigin: ['*']"), [exact("http://b")], "as in Istio");
}

/// In Gateway API a value is sent as it is, but for operators; filters that are for whole rules refuse the requests of a backend.
#[test]
fn filters_of_gateway_api_are_executed_or_refuse() {
    let of = |kind: &str, filters: &str, of_backend: &str| {
        let text = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: r, namespace: a}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: s}}], rules: [{{filters: [{filters}], backendRefs: [{{name: s, port: 80, filters: [{of_backend}]}}]}}]}}\n"
        );
        let (m, p) = run(&(SHOP.to_string() + &text));
        assert!(p.is_empty(), "{p:?}");
        let rule = m.routes["a/s.a.svc.cluster.local"].producer.as_ref().unwrap().http[0].clone();
        assert!(rule.response.is_none(), "{rule:?}");
        let object: serde_json::Value = serde_yaml_ng::from_str(&text).unwrap();
        (rule, check::written(kind, "gateway.networking.k8s.io", &object))
    };
    let header = |kind: &str, value: &str| {
        let field = kind.replacen(|c: char| c.is_uppercase(), &kind[..1].to_lowercase(), 1);
        format!("{{type: {kind}, {field}: {{add: [{{name: x, value: '{value}'}}]}}}}")
    };
    for (value, sent, told) in [
        ("50%", "50%%", true),
        ("/a%20b", "/a%%20b", true),
        ("%PROTOCOL%", "%PROTOCOL%", false),
        ("%FOO%", "%%FOO%%", true),
    ] {
        for kind in ["HTTPRoute", "GRPCRoute"] {
            let (request, response) = (header("RequestHeaderModifier", value), header("ResponseHeaderModifier", value));
            let (rule, warnings) = of(kind, &request, &response);
            let value = |c: &Option<karst_api::route::HeaderChange>| c.as_ref().unwrap().add[0].value.clone();
            assert_eq!(
                (value(&rule.request), value(&rule.destinations[0].answer)),
                (sent.into(), sent.into()),
                "{kind}"
            );
            let at = ["filters[0].requestHeaderModifier", "backendRefs[0].filters[0].responseHeaderModifier"];
            let is_told = |(w, at): (&String, &str)| {
                w.starts_with(&format!("spec.rules[0].{at}.add[0]: ")) && w.ends_with("; the value is sent unchanged")
            };
            assert!(warnings.len() == if told { 2 } else { 0 } && warnings.iter().zip(at).all(is_told), "{warnings:?}");
        }
    }
    for (filter, status) in [
        ("type: URLRewrite, urlRewrite: {hostname: x.com}", 0),
        ("type: RequestRedirect, requestRedirect: {hostname: x.com}", 500),
        ("type: RequestMirror, requestMirror: {backendRef: {name: s, port: 80}}", 500),
        ("type: CORS, cors: {allowOrigins: ['*']}", 500),
        ("type: Other", 500),
    ] {
        let (rule, warnings) = of("HTTPRoute", "", &format!("{{{filter}}}"));
        assert_eq!(rule.destinations[0].refuse_status, status, "{filter}");
        assert_eq!(
            warnings.iter().any(|w| w.contains("answered with 500")),
            status == 500 && filter != "type: Other",
            "{warnings:?}"
        );
    }
}

/// A route with a field that is not known here (of a newer version of the API, say) cannot be read at all: what it is for is refused
/// behind all other rules, and not sent by default.
#[test]
fn a_route_that_cannot_be_read_at_all_is_not_the_default() {
    let parent = "parentRefs: [{group: '', kind: Service, name: s}]";
    let newer = "{newer: [x]}";
    let other = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: other, namespace: a}}\nspec: {{{parent}, rules: [{{matches: [{{path: {{value: /o}}}}], backendRefs: [{{name: s, port: 80}}]}}]}}\n"
    );
    for (kind, spec, wanted) in [
        ("HTTPRoute", format!("{{{parent}, rules: [{newer}]}}"), ["other=200 unread=500", ""]),
        ("HTTPRoute", format!("{{{parent}, rules: [{{filters: [{newer}]}}]}}"), ["other=200 unread=500", ""]),
        ("GRPCRoute", format!("{{{parent}, rules: [{{matches: [{newer}]}}]}}"), ["other=200 unread=500", ""]),
        ("TCPRoute", format!("{{{parent}, rules: [{newer}]}}"), ["other=200", "=500"]),
        ("TLSRoute", format!("{{{parent}, hostnames: [a.com], rules: [{newer}]}}"), ["other=200", "a.com=500"]),
        ("VirtualService", format!("{{hosts: [s], http: [{newer}, {newer}]}}"), ["other=200 unread=503", ""]),
        ("VirtualService", format!("{{hosts: [s], tcp: [{newer}], tls: [{newer}]}}"), ["other=200", "*=503 =503"]),
        // Not for this service.
        ("VirtualService", format!("{{hosts: [t], http: [{newer}]}}"), ["other=200", ""]),
        ("VirtualService", format!("{{hosts: [s], gateways: [g], http: [{newer}]}}"), ["other=200", ""]),
    ] {
        let spec: serde_json::Value = serde_yaml_ng::from_str(&spec).unwrap();
        let raw = serde_json::json!({ "metadata": { "name": "unread", "namespace": "a" }, "spec": spec });
        assert!(parse::value(kind, raw.clone()).is_err(), "{kind} {spec}");
        let object = karst_manifest::closed::closed(kind, raw).unwrap();
        let mut objects = parse::file("t.yaml".as_ref(), &(SHOP.to_string() + &other)).unwrap();
        objects.push(Located { object, file: "t.yaml".into(), line: 0 });
        let state = State { objects: objects.into_iter().map(std::sync::Arc::new).collect(), ..State::default() };
        let (m, _) = compile(&state, &mesh());
        let table = m.routes["a/s.a.svc.cluster.local"].producer.clone().unwrap();
        let http = table.http.iter().map(|r| {
            let name = r.origin.split(['/', ' ']).nth(2).unwrap_or_default();
            format!("{name}={}", r.response.as_ref().map_or(200, |r| r.status))
        });
        let tcp = table.tcp.iter().map(|r| format!("{}={}", r.sni.join(" "), r.destinations[0].refuse_status));
        let is = [http.collect::<Vec<_>>().join(" "), tcp.collect::<Vec<_>>().join(" ")];
        assert_eq!(is, wanted.map(String::from), "{kind} {spec}");
        if kind != "VirtualService" {
            let template =
                Template { image: "hub/waypoint:1".into(), pull_policy: "Never".into(), ..Template::default() };
            let all = written_with(&state, &template, None).statuses;
            let accepted = &all.iter().find(|w| w.to.name == "unread").unwrap().status["parents"][0]["conditions"][0];
            let said = ["type", "status", "reason"].map(|f| accepted[f].as_str().unwrap());
            assert_eq!(said, ["Accepted", "False", "UnsupportedValue"], "{kind}");
        }
    }
}

/// A header that cannot be read is refused when it is applied; of what is stored the rest holds, and nobody else's value stands in the
/// place of one that was to be set.
#[test]
fn a_header_that_cannot_be_read_takes_no_rule_with_it() {
    let of = |headers: &str, of_destination: &str| {
        let rule = format!(
            "http: [{{headers: {{{headers}}}, route: [{{destination: {{host: s}}, headers: {{{of_destination}}}}}]}}]"
        );
        let (m, p) =
            run(&(SHOP.to_string() + &virtual_service("name: v, namespace: a", &format!("hosts: [s], {rule}"))));
        let rule = m.routes["a/s.a.svc.cluster.local"].producer.as_ref().unwrap().http[0].clone();
        assert!(rule.response.is_none() && rule.destinations[0].refuse_status == 0, "{rule:?}");
        let show = |c: &Option<karst_api::route::HeaderChange>| {
            let names =
                |all: &[karst_api::route::Header]| all.iter().map(|h| h.name.clone()).collect::<Vec<_>>().join(" ");
            c.as_ref().map_or(String::new(), |c| format!("{}/{}/{}", names(&c.set), names(&c.add), c.remove.join(" ")))
        };
        let d = &rule.destinations[0];
        let changes = [show(&rule.request), show(&rule.answer), show(&d.request), show(&d.answer)];
        let at = "spec.http[0].";
        (changes, p.iter().map(|p| p.field.trim_start_matches(at).to_string()).collect::<Vec<_>>(), rule.rewrite)
    };
    let is = |changes: [&str; 4], fields: &[&str]| {
        (changes.map(String::from), fields.iter().map(ToString::to_string).collect::<Vec<_>>(), None)
    };
    let set = "request: {set: {x-y: '50%', x-z: '%PROTOCOL%'}}";
    assert_eq!(of(set, ""), is(["x-z//x-y", "", "", ""], &["headers.request.set[x-y]"]));
    assert_eq!(of("", set), is(["", "", "x-z//x-y", ""], &["route[0].headers.request.set[x-y]"]));
    assert_eq!(
        of("response: {add: {x-y: '%FOO%'}, remove: ['a b', c]}", ""),
        is(["", "//c", "", ""], &["headers.response.add[x-y]", "headers.response.remove"])
    );
    assert_eq!(
        of("request: {set: {'a b': x}}", "response: {set: {x-y: '%REQ()%'}}"),
        is(["", "", "", "//x-y"], &["route[0].headers.response.set[x-y]", "headers.request.set[a b]"])
    );
    assert_eq!(of("request: {set: {host: '%REQ(x)%'}}", ""), is(["", "", "", ""], &["headers.request.set[host]"]));
}

/// A rule that cannot be read takes no other with it, and its requests are not sent by default: 500, and a condition that says why.
#[test]
fn a_rule_that_cannot_be_read_is_not_the_default() {
    let base = "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n---\n";
    let route = |kind: &str, rules: &str| {
        format!(
            "{base}apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: r, namespace: a, generation: 2}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: s}}], rules: [{rules}]}}\n"
        )
    };
    // Each rule as PATH=ANSWER, in order.
    let rules = |text: &str| -> Vec<String> {
        let (m, p) = run(text);
        assert!(p.iter().all(|p| p.field.starts_with("spec.rules[")), "{p:?}");
        let table = m.routes["a/s.a.svc.cluster.local"].producer.clone().unwrap();
        let one = |r: &karst_api::route::HttpRule| {
            let m = r.r#match.as_ref().unwrap();
            let path = m.path.as_ref().and_then(|p| p.kind.as_ref()).map_or("any".into(), |k| format!("{k:?}"));
            let headers: String = m.headers.iter().map(|h| format!(" {}", h.name)).collect();
            format!("{path}{headers}={}", r.response.as_ref().map_or(200, |r| r.status))
        };
        table.http.iter().map(one).collect()
    };
    let said = |text: &str| {
        let w = written(text);
        let of = w.statuses.iter().find(|s| s.to.kind.ends_with("Route")).unwrap();
        let all = of.status["parents"][0]["conditions"].as_array().unwrap().clone();
        let reason = |c: &serde_json::Value| format!("{}={}", c["type"], c["reason"]).replace('"', "");
        let text = all.iter().map(|c| c["message"].as_str().unwrap()).collect::<Vec<_>>().join(" ");
        for c in all.iter().filter(|c| (c["status"] == "False") != (c["type"] == "PartiallyInvalid")) {
            assert!(code::of(c["message"].as_str().unwrap()).is_some(), "has no code: {c}");
        }
        (all.iter().map(reason).collect::<Vec<_>>().join(" "), text)
    };
    let to = "backendRefs: [{name: s, port: 80}]";
    let path = |kind: &str, value: &str| {
        format!("{{path: {{type: {kind}, value: '{value}'}}, headers: [{{name: h, value: v}}]}}")
    };
    let (fine, pattern) = (path("PathPrefix", "/a"), path("RegularExpression", "/b("));
    let good = format!("{{matches: [{fine}], {to}}}");
    // A match: what is left of it, behind all others. With another match of its own the rule does not hold either.
    let bad_match = format!("{{matches: [{}, {pattern}], {to}}}", path("Exact", "/c"));
    let text = route("HTTPRoute", &format!("{good}, {bad_match}"));
    assert_eq!(rules(&text), ["Exact(\"/c\") h=500", "Segments(\"/a\") h=200", "any h=500"]);
    let (reasons, text) = said(&text);
    let none = "ResolvedWaypoints=MissingUseWaypointLabel";
    assert_eq!(
        reasons,
        format!("Accepted=Accepted ResolvedRefs=ResolvedRefs {none} PartiallyInvalid=UnsupportedValue")
    );
    assert!(text.contains("Dropped Rule spec.rules[1].matches[1].path.value"), "{text}");
    // What is done: where the rule matches.
    for wrong in [
        "timeouts: {request: soon}",
        "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: 'a b', value: x}]}}]",
        "filters: [{type: RequestRedirect}]",
    ] {
        let text = route("HTTPRoute", &format!("{good}, {{matches: [{{path: {{value: /d}}}}], {wrong}, {to}}}"));
        assert_eq!(rules(&text), ["Segments(\"/a\") h=200", "Segments(\"/d\")=500"], "{wrong}");
        assert!(said(&text).1.contains("Dropped Rule spec.rules[1]."), "{wrong}");
    }
    // What a backend does, or what is not executed for one: its share.
    for wrong in [
        "type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: 'a b', value: x}]}",
        "type: CORS, cors: {allowOrigins: ['*']}",
        "type: RequestRedirect, requestRedirect: {hostname: x.com}",
        "type: RequestMirror, requestMirror: {backendRef: {name: s, port: 80}}",
        "type: ExternalAuth",
    ] {
        let text = route(
            "HTTPRoute",
            &format!("{{backendRefs: [{{name: s, port: 80}}, {{name: s, port: 80, filters: [{{{wrong}}}]}}]}}"),
        );
        let (m, _) = run(&text);
        let rule = m.routes["a/s.a.svc.cluster.local"].producer.as_ref().unwrap().http[0].clone();
        let statuses: Vec<u32> = rule.destinations.iter().map(|d| d.refuse_status).collect();
        assert_eq!((rule.response, statuses), (None, vec![0, 500]), "{wrong}");
        let (reasons, text) = said(&text);
        assert!(reasons.starts_with("Accepted=Accepted") && reasons.ends_with("PartiallyInvalid=UnsupportedValue"));
        assert!(text.contains("Dropped Rule spec.rules[0].backendRefs[1].filters[0]"), "{text}");
    }
    // None of its backends is left: the rule serves nothing, and so does a route of such rules.
    let lost = "{name: s, port: 80, filters: [{type: ExternalAuth}]}";
    let refused = |rules: &str| said(&route("HTTPRoute", rules)).0;
    let (not_accepted, partly) = ("Accepted=UnsupportedValue", "PartiallyInvalid=UnsupportedValue");
    for rule in [format!("{lost}, {lost}"), format!("{lost}, {{name: s, port: 80, weight: 0}}")] {
        let rule = format!("{{backendRefs: [{rule}]}}");
        assert!(refused(&rule).starts_with(not_accepted), "{rule}");
        let two = refused(&format!("{rule}, {good}"));
        assert!(two.starts_with("Accepted=Accepted") && two.ends_with(partly), "{two}");
    }
    // A filter of a rule that is not known: the rule.
    let text = route("GRPCRoute", &format!("{{filters: [{{type: ExternalAuth}}], {to}}}, {{{to}}}"));
    assert_eq!(rules(&text), ["Segments(\"/\")=500", "Segments(\"/\")=200"]);
    assert!(said(&text).1.contains("Dropped Rule spec.rules[0].filters[0]: unsupported filter type \"ExternalAuth\""));
    // Nothing is left: the route is not accepted, and the service is not called all the same.
    let text = route("HTTPRoute", &format!("{{matches: [{pattern}], {to}}}"));
    assert_eq!(rules(&text), ["any h=500"]);
    assert_eq!(said(&text).0, format!("Accepted=UnsupportedValue ResolvedRefs=ResolvedRefs {none}"));
    let text = route("GRPCRoute", &format!("{{matches: [{{method: {{type: Other, service: x}}}}], {to}}}, {{{to}}}"));
    assert_eq!(rules(&text), ["Segments(\"/\")=200", "Segments(\"/\")=500"]);
    assert!(said(&text).0.contains("PartiallyInvalid"));
    // The condition goes with its reason.
    let good = route("HTTPRoute", &good);
    let fine = written(&good).statuses.into_iter().find(|s| s.to.kind == "HTTPRoute").unwrap().status;
    let mut old = fine.clone();
    let partly = serde_json::json!({"type": "PartiallyInvalid", "status": "True", "reason": "UnsupportedValue", "observedGeneration": 2});
    old["parents"][0]["conditions"].as_array_mut().unwrap().push(partly);
    let wrote = |status: &serde_json::Value| !written(&format!("{good}status: {status}\n")).statuses.is_empty();
    assert_eq!((wrote(&fine), wrote(&old)), (false, true));
}

/// Nothing is for a Service of type ExternalName, whoever's: policies say so, and what it stands for is told in its namespace only.
#[test]
fn nothing_is_attached_to_an_external_name() {
    let alias = "apiVersion: v1\nkind: Service\nmetadata: {name: ext, namespace: NS, labels: {istio.io/use-waypoint: w, istio.io/use-waypoint-namespace: a}}\nspec: {type: ExternalName, externalName: secret.example, ports: [{port: 80}]}\n---\n";
    let waypoint = WAYPOINT.replace("STATUS", READY);
    let said = |ns: &str, text: &str, kind: &str| -> Vec<serde_json::Value> {
        let all = written(&[&*waypoint, &alias.replace("NS", ns), text].concat()).statuses;
        all.into_iter().filter(|w| w.to.kind == kind).map(|w| w.status).collect()
    };
    let reason = |c: &serde_json::Value| format!("{} {} {}", c["type"], c["status"], c["reason"]).replace('"', "");
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: a}\nspec: {targetRefs: [{kind: Service, name: ext}], rules: [{}]}\n";
    let is = &said("a", policy, "AuthorizationPolicy")[0]["conditions"][0];
    assert_eq!(reason(is), "WaypointAccepted False TargetNotFound");
    assert!(is["message"].as_str().unwrap().ends_with("refer to \"secret.example\" itself [KARST-0321]"), "{is}");
    assert_eq!(said("a", "", "Service"), [serde_json::Value::Null; 0], "it is bound to nothing");
    let bound =
        "status: {conditions: [{type: istio.io/WaypointBound, status: 'True', reason: WaypointAccepted}]}\n---\n";
    let stale = alias.replace("NS", "b").replace("---\n", bound);
    assert_eq!(said("a", &stale, "Service"), [serde_json::json!({ "conditions": [] })]);
    let tls = "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {name: p, namespace: a}\nspec: {targetRefs: [{group: '', kind: Service, name: ext}], validation: {hostname: x, wellKnownCACertificates: System}}\n";
    let (_, problems) = run(&[&alias.replace("NS", "a"), tls].concat());
    assert!(problems.iter().any(|p| p.message.contains("not supported as a target")), "{problems:?}");
    // Of another namespace's nobody learns what it stands for.
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: a}\nspec: {parentRefs: [{group: '', kind: Service, name: ext, namespace: NS}]}\n";
    for (ns, is_told) in [("a", true), ("b", false)] {
        let accepted = said(ns, &route.replace("NS", ns), "HTTPRoute")[0]["parents"][0]["conditions"][0].clone();
        assert_eq!(reason(&accepted), "Accepted False NoMatchingParent");
        assert_eq!(accepted["message"].as_str().unwrap().contains("secret.example"), is_told, "{accepted}");
        let to = format!("hosts: [x.com], http: [{{route: [{{destination: {{host: ext.{ns}.svc.cluster.local}}}}]}}]");
        let v = virtual_service("name: v, namespace: a", &to);
        let lost = &said(ns, &v, "VirtualService")[0].to_string();
        assert!(lost.contains("ExternalName") && lost.contains("secret.example") == is_told, "{lost}");
    }
}

/// A route leads to ports that a service has, and never to a number: 500 for Gateway API, 503 for Istio's.
#[test]
fn routes_lead_to_ports_that_services_have() {
    let base = "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: two, namespace: a}\nspec: {clusterIP: 10.96.0.2, ports: [{name: a, port: 80, targetPort: 8080}, {name: b, port: 81}]}\n---\n";
    let first = |text: &str| {
        let (m, p) = run(&format!("{base}{text}"));
        assert!(p.is_empty(), "{p:?}");
        let table = m.routes["a/s.a.svc.cluster.local"].producer.clone().unwrap();
        let http = table.http.iter().flat_map(|r| r.destinations.iter().chain(r.mirrors.iter().flat_map(|m| &m.to)));
        let tcp = table.tcp.iter().flat_map(|r| &r.destinations);
        http.chain(tcp).map(|d| (d.port, d.refuse_status)).collect::<Vec<_>>()
    };
    let istio = |rules: &str| {
        first(&format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: v, namespace: a}}\nspec: {{hosts: [s], {rules}}}\n"
        ))
    };
    let to = |host: &str, port: u16| format!("destination: {{host: {host}, port: {{number: {port}}}}}");
    for (host, port, wanted) in [
        ("two", 80, (80, 0)),
        // What its endpoints listen on is no port of the service.
        ("two", 8080, (8080, 503)),
        ("two", 0, (0, 0)),
        ("s", 0, (80, 0)),
        ("none", 80, (80, 503)),
    ] {
        assert_eq!(istio(&format!("http: [{{route: [{{{}}}]}}]", to(host, port))), [wanted], "{host} {port}");
        assert_eq!(istio(&format!("tcp: [{{route: [{{{}}}]}}]", to(host, port))), [wanted], "{host} {port}");
        let tls = istio(&format!("tls: [{{match: [{{sniHosts: [s]}}], route: [{{{}}}]}}]", to(host, port)));
        assert_eq!(tls, [wanted], "{host} {port}");
        let mirror = istio(&format!("http: [{{route: [{{{}}}], mirrors: [{{{}}}]}}]", to("s", 80), to(host, port)));
        assert_eq!(mirror, [(80, 0), wanted], "{host} {port}");
    }
    for (kind, group) in [("HTTPRoute", "v1"), ("GRPCRoute", "v1"), ("TCPRoute", "v1alpha2"), ("TLSRoute", "v1")] {
        let route = |backend: &str| {
            first(&format!(
                "apiVersion: gateway.networking.k8s.io/{group}\nkind: {kind}\nmetadata: {{name: r, namespace: a}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: s}}], rules: [{{backendRefs: [{{{backend}}}]}}]}}\n"
            ))
        };
        assert_eq!(route("name: two, port: 81"), [(81, 0)], "{kind}");
        assert_eq!(route("name: two, port: 8080"), [(8080, 500)], "{kind}");
        let host = "group: networking.istio.io, kind: Hostname, name: two.a.svc.cluster.local";
        assert_eq!(route(&format!("{host}, port: 82")), [(82, 500)], "{kind}");
    }
}

/// A route that nobody executes says so, as in Istio; what is mended is taken back.
#[test]
fn routes_without_a_waypoint_say_so() {
    let base = |label: &str| {
        WAYPOINT.replace("STATUS", READY) + &BOUND.replace("NS", "a").replace("istio.io/use-waypoint:", label)
    };
    let (with, without) = (base("istio.io/use-waypoint:"), base("x:"));
    let http = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: a}\nspec: {parentRefs: [{group: '', kind: Service, name: s}], rules: [{backendRefs: [{name: s}]}]}\n---\n";
    let istio = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v, namespace: a}\nspec: {hosts: [s], http: [{route: [{destination: {host: TO}}]}]}\nSTATUS\n---\n";
    let rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: d, namespace: a}\nspec: {host: none}\n---\n";
    let parent = |text: &str| {
        let w = written(&(text.to_string() + http));
        let route = w.statuses.into_iter().find(|s| s.to.kind == "HTTPRoute").unwrap();
        let c = &route.status["parents"][0]["conditions"][2];
        format!("{} {} {}", c["type"], c["status"], c["reason"]).replace('"', "")
    };
    assert_eq!(parent(&with), "ResolvedWaypoints True ResolvedWaypoints");
    assert_eq!(parent(&without), "ResolvedWaypoints False MissingUseWaypointLabel");
    let said = |text: &str, to: &str, status: &str| {
        let all = written(&(text.to_string() + &istio.replace("TO", to).replace("STATUS", status) + rule));
        let mut all = conditions(&all);
        all.retain(|c| c.starts_with("VirtualService") || c.starts_with("DestinationRule"));
        all
    };
    let lost = "DestinationRule a/d: ResolvedRefs False HostNotFound";
    assert_eq!(said(&with, "s", ""), [lost]);
    let missing = "VirtualService a/v: ResolvedWaypoints False MissingUseWaypointLabel";
    assert_eq!(said(&without, "s", ""), [missing, lost]);
    let refs = "VirtualService a/v: ResolvedRefs False HostNotFound";
    assert_eq!(said(&without, "gone", ""), [missing, refs, lost]);
    let old = "status: {conditions: [{type: ResolvedRefs, status: 'False', reason: HostNotFound, message: x, lastTransitionTime: t}]}";
    let w = written(&(with.clone() + &istio.replace("TO", "s").replace("STATUS", old)));
    let of = w.statuses.iter().find(|s| s.to.kind == "VirtualService").unwrap();
    assert_eq!(of.status, serde_json::json!({ "conditions": [] }));
    // Before anything is known, what was said stays.
    let text = with + &istio.replace("TO", "s").replace("STATUS", old);
    let objects = parse::file("t.yaml".as_ref(), &text).unwrap().into_iter().map(std::sync::Arc::new).collect();
    let template = Template { image: String::new(), pull_policy: String::new(), ..Template::default() };
    let w = written_with(&State { objects, ..State::default() }, &template, None);
    assert!(w.statuses.iter().all(|s| s.to.kind != "VirtualService"));
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

/// Secret `c` of namespace a.
fn key_pair() -> String {
    let pair = crate::ca::Signer::generate("cluster.local").unwrap();
    let indented = |pem: &str| pem.lines().map(|l| format!("    {l}\n")).collect::<String>();
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: c, namespace: a}}\nstringData:\n  tls.crt: |\n{}  tls.key: |\n{}---\n",
        indented(&pair.0),
        indented(&pair.1)
    )
}

/// Where clients are to show certificates nobody is served without, and it is told.
#[test]
fn listeners_that_ask_for_client_certificates_are_refused() {
    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: a, labels: {gateway.networking.k8s.io/gateway-name: g}}\nspec: {nodeName: n}\nstatus: {phase: Running, podIPs: [{ip: 10.0.0.1}]}\n---\n";
    const MODE: &str = "gateway.istio.io/tls-terminate-mode";
    let secret = key_pair();
    let of = |gateway: &str, one: &str| -> Vec<String> {
        let tls = "certificateRefs: [{name: c}]";
        let text = format!(
            "{POD}{secret}apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: g, namespace: a}}\nspec: {{gatewayClassName: istio, {gateway} listeners: [
            {{name: one, port: 443, protocol: HTTPS, hostname: A.x.com, tls: {{{tls}, {one}}}}},
            {{name: wide, port: 443, protocol: HTTPS, hostname: '*.x.com', tls: {{{tls}}}}},
            {{name: narrow, port: 443, protocol: HTTPS, hostname: a.a.x.com, tls: {{{tls}}}}},
            {{name: other, port: 8443, protocol: HTTPS, tls: {{{tls}}}}},
            {{name: bytes, port: 9443, protocol: TLS, tls: {{{tls}}}}},
            {{name: pass, port: 9444, protocol: TLS, tls: {{mode: Passthrough}}}},
            {{name: plain, port: 80, protocol: HTTP}}]}}\n"
        );
        let (m, p) = run(&text);
        let served: Vec<&str> =
            m.gateways["a/p"].listeners.iter().map(|l| l.origin.rsplit('/').next().unwrap()).collect();
        let w = written(&text);
        let status = &w.statuses.iter().find(|s| s.to.kind == "Gateway").unwrap().status;
        let refused = status["listeners"].as_array().unwrap().iter().filter(|l| {
            let c = l["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Accepted").unwrap();
            (&c["status"], &c["reason"]) == (&"False".into(), &"UnsupportedValue".into())
        });
        let refused: Vec<String> = refused.map(|l| l["name"].as_str().unwrap().to_string()).collect();
        assert!(refused.iter().all(|r| !served.contains(&r.as_str())) && refused.len() + served.len() == 7);
        let told: Vec<&str> = p.iter().map(|p| p.field.as_str()).collect();
        assert_eq!(told, refused.iter().map(|r| format!("spec.listeners[{r}]")).collect::<Vec<_>>(), "{p:?}");
        refused
    };
    const CA: &str = "{caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]}";
    let option = |mode: &str| format!("options: {{{MODE}: {mode}}}");
    let none: [&str; 0] = [];
    assert_eq!(of("", ""), none);
    assert_eq!(of("", "options: {other/option: MUTUAL}"), none);
    assert_eq!(of("tls: {frontend: {default: {}}},", &option("SIMPLE")), none);
    for mode in ["MUTUAL", "OPTIONAL_MUTUAL", "ISTIO_MUTUAL", "mutual"] {
        assert_eq!(of("", &option(mode)), ["one", "wide"], "{mode}");
    }
    assert_eq!(of("", &format!("frontendValidation: {CA}")), ["one", "wide"]);
    let all = ["one", "wide", "narrow", "other", "bytes"];
    assert_eq!(of(&format!("tls: {{frontend: {{default: {{validation: {CA}}}}}}},"), ""), all);
    let per_port = |default: &str, tls: &str| {
        of(&format!("tls: {{frontend: {{default: {{{default}}}, perPort: [{{port: 443, tls: {{{tls}}}}}]}}}},"), "")
    };
    assert_eq!(per_port("", &format!("validation: {CA}")), ["one", "wide", "narrow"]);
    assert_eq!(per_port(&format!("validation: {CA}"), ""), ["other", "bytes"]);
}

/// What a proxy shows to endpoints is told to pods of the Secret's namespace, and only for rules of there or of the root namespace.
#[test]
fn credentials_are_told_to_their_namespace_only() {
    let pod = |ns: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: {ns}, labels: {{gateway.networking.k8s.io/gateway-name: w}}}}\nspec: {{nodeName: n}}\nstatus: {{phase: Running, podIPs: [{{ip: 10.0.0.1}}]}}\n---\n"
        )
    };
    let secret = key_pair();
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

/// What stands for a policy that cannot be read closes, and does not say that all is well; once said, it is not said again.
#[test]
fn a_policy_that_cannot_be_read_says_so() {
    for (action, target, condition) in [
        ("ALLOW", "selector: {matchLabels: {app: web}}", "ZtunnelAccepted False UnsupportedValue"),
        ("DENY", "selector: {matchLabels: {app: web}}", "ZtunnelAccepted False UnsupportedValue"),
        ("ALLOW", "targetRefs: [{kind: Service, name: s}]", "WaypointAccepted False Invalid"),
        ("DENY", "targetRefs: [{kind: Service, name: s}]", "WaypointAccepted False Invalid"),
    ] {
        let spec = format!("{{action: {action}, {target}, rules: [{{new: 1}}]}}");
        let spec: serde_json::Value = serde_yaml_ng::from_str(&spec).unwrap();
        let of = |status: serde_json::Value| {
            let raw =
                serde_json::json!({ "metadata": { "name": "p", "namespace": "a" }, "spec": spec, "status": status });
            assert!(parse::value("AuthorizationPolicy", raw.clone()).is_err());
            let object = karst_manifest::closed::closed("AuthorizationPolicy", raw).unwrap();
            let mut objects = parse::file("t.yaml".as_ref(), &(POD.to_string() + SHOP)).unwrap();
            objects.push(Located { object, file: "t.yaml".into(), line: 0 });
            let state = State { objects: objects.into_iter().map(Arc::new).collect(), ..State::default() };
            let template =
                Template { image: "hub/waypoint:1".into(), pull_policy: "Never".into(), pull_secrets: vec![] };
            let all = written_with(&state, &template, None).statuses;
            (state, all.into_iter().find(|w| w.to.kind == "AuthorizationPolicy").map(|w| w.status))
        };
        let (state, status) = of(serde_json::Value::Null);
        let status = status.unwrap();
        let is = &status["conditions"][0];
        assert_eq!(format!("{} {} {}", is["type"], is["status"], is["reason"]).replace('"', ""), condition);
        assert_eq!(of(status).1, None, "said already");
        let (model, _) = compile(&state, &mesh());
        // One rule, which denies everything; or none, which allows nothing.
        let is = match model.access.get("a/s.a.svc.cluster.local").map(|access| &access.policies[0]) {
            Some(policy) => (policy.action == karst_api::route::AccessAction::Deny as i32, policy.rules.len()),
            None => (model.policies["a/p"].action == karst_policy::Action::Deny, model.policies["a/p"].rules.len()),
        };
        let denies = action == "DENY";
        assert_eq!(is, (denies, usize::from(denies)), "{action} {target}");
    }
}

/// Stored with a field of a newer version, and first seen so: tokens are refused, and nothing goes in plaintext that may have been
/// meant to go by TLS.
#[test]
fn what_cannot_be_read_of_tokens_and_tls_is_closed() {
    let base = format!("{WAYPOINT}{}", BOUND.replace("NS", "a")).replace("STATUS", READY);
    let base = base.replace("clusterIP: 10.96.0.1}", "clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]}");
    let with = |kind: &str, spec: &str| {
        let spec: serde_json::Value = serde_yaml_ng::from_str(spec).unwrap();
        let raw = serde_json::json!({ "metadata": { "name": "unread", "namespace": "a" }, "spec": spec });
        assert!(parse::value(kind, raw.clone()).is_err(), "{kind} {spec}");
        let mut objects = parse::file("t.yaml".as_ref(), &base).unwrap();
        let object = karst_manifest::closed::closed(kind, raw).unwrap_or_else(|| panic!("{kind} vanishes"));
        objects.push(Located { object, file: "t.yaml".into(), line: 0 });
        State { objects: objects.into_iter().map(Arc::new).collect(), ..State::default() }
    };
    let key = "a/s.a.svc.cluster.local";
    for (target, is_for_service) in [
        ("targetRefs: [{group: '', kind: Service, name: s}]", true),
        ("targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: w}]", true),
        // For the waypoints or services that a newer kind of reference selects.
        ("targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, matchLabels: {}}]", true),
        ("targetRefs: [{group: '', kind: Service, name: other}]", false),
    ] {
        let rules = "jwtRules: [{issuer: i, fromHeaders: [{name: x-token}], new: 1}]";
        let state = with("RequestAuthentication", &format!("{{{target}, {rules}}}"));
        let (model, _) = compile(&state, &mesh());
        let tokens: Vec<_> = model.access.get(key).map(|a| a.tokens.clone()).unwrap_or_default();
        assert_eq!(!tokens.is_empty(), is_for_service, "{target}");
        assert!(tokens.iter().all(|t| !t.broken.is_empty() && t.headers[0].name == "x-token"), "{tokens:?}");
    }
    let tls = |state: &State| {
        let (model, _) = compile(state, &mesh());
        let backend = model.backends.get(key)?;
        let policy = backend.ports.get(&80).or(backend.policy.as_ref());
        policy.and_then(|p| p.tls.clone())
    };
    for spec in ["{host: s, trafficPolicy: {tls: {mode: SIMPLE, new: 1}}}", "{host: s, trafficPolicy: {new: 1}}"] {
        let broken = tls(&with("DestinationRule", spec)).unwrap_or_else(|| panic!("plaintext: {spec}")).broken;
        assert!(broken.starts_with("DestinationRule a/unread: cannot be read"), "{broken}");
    }
    let kept = "{host: s, trafficPolicy: {tls: {mode: SIMPLE, sni: x}, loadBalancer: {new: 1}}}";
    let kept = tls(&with("DestinationRule", kept)).unwrap();
    assert_eq!((kept.sni.as_str(), kept.broken.as_str()), ("x", ""));
    assert_eq!(tls(&with("DestinationRule", "{host: s, trafficPolicy: {loadBalancer: {new: 1}}}")), None);
    let refs = "targetRefs: [{group: '', kind: Service, name: s}]";
    let validation = "validation: {hostname: x, wellKnownCACertificates: System";
    for spec in [format!("{{{refs}, {validation}, new: 1}}}}"), format!("{{{refs}, {validation}}}, new: 1}}")] {
        let state = with("BackendTLSPolicy", &spec);
        let broken = tls(&state).unwrap_or_else(|| panic!("plaintext: {spec}")).broken;
        assert!(broken.starts_with("BackendTLSPolicy a/unread: spec: cannot be read"), "{broken}");
        let template = Template { image: "hub/waypoint:1".into(), pull_policy: "Never".into(), pull_secrets: vec![] };
        let all = written_with(&state, &template, None).statuses;
        let status = &all.iter().find(|w| w.to.kind == "BackendTLSPolicy").unwrap().status;
        assert_eq!(status["ancestors"][0]["conditions"][0]["reason"], "Invalid");
    }
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
        let reasons = |w: Write| {
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
    assert!(broken[0].contains("is not a valid JSON Web Key Set") && problems == 1, "{broken:?}");
    let (broken, problems) = tokens("a", service, r#"jwks: '{"keys": [{"kty": "oct", "k": "MDEyMw"}]}'"#);
    assert!(broken[0].contains("contains no usable public key") && problems == 1, "{broken:?}");
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
